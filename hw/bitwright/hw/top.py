"""Top modules for other tools: plain port names, and a clock and a reset named and polarized as a bus wants them."""

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import ClockDomain, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In


@dataclass(frozen=True)
class Clocking:
    """Clock and reset ports.

    Parameters
    ----------
    clock, reset
        Names of the ports; the reset is synchronous.
    active_low
        Whether 0 resets.
    """

    clock: str
    reset: str
    active_low: bool = False


class Top(wiring.Component):
    """A component with the ports of its interfaces joined by one underscore, as IP tools expect them.

    Parameters
    ----------
    component
        What to wrap; it has one clock domain, ``sync``.
    clocking
        Names of clock and reset.

    Members
    -------
    clock, reset : ``In(1)``
        By the names of ``clocking``.
    others
        ``s_axi.awaddr`` of the component is ``s_axi_awaddr`` here.
    """

    def __init__(self, component: wiring.Component, clocking: Clocking) -> None:
        self.component: Any = component
        self.clocking = clocking
        inner: Any = component.signature
        self.paths = {"_".join(map(str, path)): path for path, _, _ in inner.flatten(component)}
        members = {"_".join(map(str, path)): member for path, member, _ in inner.flatten(component)}
        super().__init__({clocking.clock: In(1), clocking.reset: In(1), **members})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.core = self.component
        domain: Any = ClockDomain("sync")
        m.domains.sync = domain
        reset = getattr(self, self.clocking.reset)
        m.d.comb += [
            domain.clk.eq(getattr(self, self.clocking.clock)),
            domain.rst.eq(~reset if self.clocking.active_low else reset),
        ]
        for name, path in self.paths.items():
            inner: Any = self.component
            for part in path:
                inner = getattr(inner, str(part))
            port = getattr(self, name)
            m.d.comb += inner.eq(port) if self.signature.members[name].flow == In else port.eq(inner)
        return m
