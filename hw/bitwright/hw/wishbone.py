"""The accelerator on a Wishbone bus, revision B4, as LiteX uses it."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.bus import decode
from bitwright.hw.host import host_signature
from bitwright.hw.isa import BUS_WIDTH, READ_LATENCY, ArraySpec


def wishbone_signature(spec: ArraySpec) -> wiring.Signature:
    """Wishbone B4, seen by the master. ``adr`` is of 32-bit words: bit 0 is bit 2 of a byte address."""
    return wiring.Signature(
        {
            "cyc": Out(1),
            "stb": Out(1),
            "we": Out(1),
            "adr": Out(spec.derived.bus_address_width),
            "sel": Out(BUS_WIDTH // 8),
            "dat_w": Out(BUS_WIDTH),
            "dat_r": In(BUS_WIDTH),
            "ack": In(1),
            "err": In(1),
            "stall": In(1),
        }
    )


class Wishbone(wiring.Component):
    """Turn Wishbone cycles into accesses to the host bus, one at a time.

    It is a classic slave with a registered answer: a write takes two cycles, a read ``READ_LATENCY + 1``. ``stall``
    holds a request until the cycle of its answer, so a pipelined master can use the same port; a classic one leaves
    ``stall`` open. A write must select all bytes: others do nothing and are answered with ``err``,
    and so is everything that is not in the address map. A cycle that its master gives up is forgotten.

    Members
    -------
    bus : ``In(wishbone_signature(spec))``
        The bus.
    host : ``Out(host_signature(spec))``
        The accelerator's bus.
    """

    bus: Any
    host: Any

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__({"bus": In(wishbone_signature(spec)), "host": Out(host_signature(spec))})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        bus, host = self.bus, self.host
        selected, requested, accepted = Signal(), Signal(), Signal()
        answer, error = Signal(), Signal()
        reading = Signal(READ_LATENCY - 1)  # a read is under way, and how far
        mapped = decode(m, self.spec, bus.adr, bus.we)
        m.d.comb += [
            selected.eq(bus.cyc & bus.stb),
            requested.eq(selected & ~answer & ~reading.any()),
            accepted.eq(requested & mapped & (~bus.we | bus.sel.all())),
            host.address.eq(bus.adr),
            host.write_data.eq(bus.dat_w),
            host.write.eq(accepted & bus.we),
            host.read.eq(accepted & ~bus.we),
            bus.dat_r.eq(host.read_data),
            # A master may give up at any time, and must get no answer then.
            bus.ack.eq(answer & ~error & selected),
            bus.err.eq(answer & error & selected),
            bus.stall.eq(selected & ~answer),
        ]
        reads = Cat(accepted & ~bus.we, reading)
        m.d.sync += [
            reading.eq(Mux(selected, reads, 0)),
            answer.eq(selected & (reads[-1] | (requested & ~(accepted & ~bus.we)))),
            error.eq(requested & ~accepted),
        ]
        return m


def wishbone_accelerator_signature(spec: ArraySpec) -> wiring.Signature:
    """Ports of :class:`WishboneAccelerator`, but clock and reset."""
    weights = {"weights": In(stream.Signature(BUS_WIDTH))} if spec.weight_stream else {}
    return wiring.Signature({"wb": In(wishbone_signature(spec)), **weights, "interrupt": Out(1)})


class WishboneAccelerator(wiring.Component):
    """The accelerator with a Wishbone port.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    wb
        Registers and memories: :class:`Wishbone`.
    weights : ``In(stream.Signature(32))``
        Weights of layers that stream them; only with ``weight_stream``.
    interrupt : ``Out(1)``
        A program has ended, or was stopped by an error.
    """

    wb: Any
    weights: stream.Interface
    interrupt: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(wishbone_accelerator_signature(spec))

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.accelerator = accelerator = Accelerator(self.spec)
        m.submodules.slave = slave = Wishbone(self.spec)
        wiring.connect(m, wiring.flipped(self.wb), slave.bus)
        wiring.connect(m, slave.host, accelerator.host)
        m.d.comb += self.interrupt.eq(accelerator.interrupt)
        if self.spec.weight_stream:
            wiring.connect(m, wiring.flipped(self.weights), accelerator.weights)
        return m
