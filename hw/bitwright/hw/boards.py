"""Boards: the accelerator behind a serial line, the clock that feeds it, and the pins of ``amaranth-boards``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.errors import BitwrightError
from bitwright.hw.framing import SILENCE_SECONDS
from bitwright.hw.isa import ArraySpec, preset
from bitwright.hw.link import DIVISOR_MIN, Link, UARTReceiver, UARTTransmitter
from bitwright.hw.popcount import Fabric

BAUD_ERROR_MAX = 0.02
"""How far a line may be off: a tenth of a bit after a byte is half of what a sample bears, the rest is the host's."""


class BoardMachine(wiring.Component):
    """An accelerator whose host is a serial line: all of a board but its clock and its pins.

    Parameters
    ----------
    spec
        Array; without ``weight_stream``.
    divisor
        Clock cycles of a bit on the line.
    silence_cycles
        After so long a pause, a frame that has begun is dropped.
    fabric
        What the PEs are built for.

    Members
    -------
    rx, tx : ``In(1)``, ``Out(1)``
        Serial line, from and to the host.
    done : ``Out(1)``
        The last Program has ended.
    """

    rx: Signal
    tx: Signal
    done: Signal

    def __init__(self, spec: ArraySpec, divisor: int, silence_cycles: int, fabric: Fabric = "portable") -> None:
        self.spec, self.divisor, self.silence_cycles = spec, divisor, silence_cycles
        self.fabric: Fabric = fabric
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "done": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.receiver = receiver = UARTReceiver(self.divisor)
        m.submodules.transmitter = transmitter = UARTTransmitter(self.divisor)
        m.submodules.link = link = Link(self.spec, self.silence_cycles)
        m.submodules.accelerator = accelerator = Accelerator(self.spec, self.fabric)
        wiring.connect(m, receiver.received, link.received)
        wiring.connect(m, link.answer, transmitter.bytes)
        wiring.connect(m, link.bus, accelerator.host)
        m.d.comb += [
            receiver.line.eq(self.rx),
            self.tx.eq(transmitter.line),
            link.interrupt.eq(accelerator.interrupt),
            self.done.eq(accelerator.interrupt),
        ]
        return m


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that Bitwright builds for.

    Parameters
    ----------
    title
        As people call it.
    part
        Its FPGA, a name in :data:`bitwright.hw.synthesis.PARTS`.
    array
        Array that is built unless another one is asked for, which fits.
    oscillator_mhz, clock_mhz
        Clock on the board, and the one that the machine runs at.
    baud
        Bits a second on the serial line.
    platform
        Makes the platform of ``amaranth-boards``.
    """

    title: str
    part: str
    array: ArraySpec
    oscillator_mhz: float
    clock_mhz: float
    baud: int
    platform: Callable[[], Any]

    @property
    def divisor(self) -> int:
        """Clock cycles of a bit on the serial line."""
        return round(self.clock_mhz * 1e6 / self.baud)

    @property
    def silence_cycles(self) -> int:
        """Cycles after which a frame that has begun is dropped: a power of two, for a plain counter."""
        return 1 << int(self.clock_mhz * 1e6 * SILENCE_SECONDS).bit_length()

    def check(self, spec: ArraySpec) -> None:
        """Refuse what cannot work: a line too fast for the clock, an array that streams weights.

        Raises
        ------
        BitwrightError
            If so.
        """
        error = abs(self.clock_mhz * 1e6 / self.divisor / self.baud - 1) if self.divisor else 1.0
        if self.divisor < DIVISOR_MIN or error > BAUD_ERROR_MAX:
            raise BitwrightError(
                f"At {self.clock_mhz:g} MHz a bit of {self.baud:g} baud takes {self.divisor} cycles, {error:.1%} off; "
                f"expected at least {DIVISOR_MIN} cycles and at most {BAUD_ERROR_MAX:.0%}: choose another clock."
            )
        if spec.weight_stream:
            raise BitwrightError(
                "The array takes a stream of weights (weight_stream), which the serial link does not carry; "
                "choose an array without it."
            )

    def machine(self, spec: ArraySpec, fabric: Fabric = "portable") -> BoardMachine:
        """What :meth:`check` lets pass, as hardware."""
        self.check(spec)
        return BoardMachine(spec, self.divisor, self.silence_cycles, fabric)


def _icebreaker() -> Any:
    from amaranth_boards.icebreaker import ICEBreakerPlatform

    return ICEBreakerPlatform()


def _ulx3s() -> Any:
    from amaranth_boards.ulx3s import ULX3S_85F_Platform

    return ULX3S_85F_Platform()


BOARDS: dict[str, Board] = {
    "icebreaker": Board(
        title="iCEBreaker",
        part="up5k",
        array=preset("tiny"),
        oscillator_mhz=12,
        clock_mhz=24,
        baud=1_000_000,
        platform=_icebreaker,
    ),
    "ulx3s": Board(
        title="ULX3S-85F",
        part="85k",
        array=preset("edge"),
        oscillator_mhz=25,
        clock_mhz=50,
        baud=1_000_000,
        platform=_ulx3s,
    ),
}
"""Boards by name."""


def board(name: str) -> Board:
    """Board of a name in :data:`BOARDS`."""
    if name not in BOARDS:
        raise BitwrightError(f"Unknown board {name!r}, expected one of {', '.join(BOARDS)}.")
    return BOARDS[name]
