"""The accelerator on AXI4: registers and memories by AXI4-Lite; commands, replies and weights by AXI4-Stream."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.bus import (
    HostArbiter,
    ResponseQueue,
    StreamRegister,
    client_signature,
)
from bitwright.hw.isa import BUS_WIDTH, READ_LATENCY, ArraySpec
from bitwright.hw.packets import ADDRESS_BITS, Opcode

OKAY, SLVERR = 0, 2
"""Values of BRESP and RRESP."""

_BYTES = BUS_WIDTH // 8
_BYTE_BITS = (_BYTES - 1).bit_length()


def axi_lite_signature(spec: ArraySpec) -> wiring.Signature:
    """AXI4-Lite, seen by the master. Addresses are of bytes."""
    address_width = spec.derived.bus_address_width + _BYTE_BITS
    return wiring.Signature(
        {
            "awaddr": Out(address_width),
            "awprot": Out(3),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(BUS_WIDTH),
            "wstrb": Out(_BYTES),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(address_width),
            "arprot": Out(3),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(BUS_WIDTH),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def axi_stream_signature(*, last: bool = False, user: bool = False) -> wiring.Signature:
    """AXI4-Stream of 32 bits, seen by the sender; with TLAST, with one bit of TUSER."""
    members = {"tdata": Out(BUS_WIDTH), "tvalid": Out(1), "tready": In(1)}
    return wiring.Signature(members | ({"tlast": Out(1)} if last else {}) | ({"tuser": Out(1)} if user else {}))


class AxiLite(wiring.Component):
    """Turn AXI4-Lite transfers into requests.

    Addresses and data may come in any order and ahead of each other; responses may wait. ``QUEUE_DEPTH`` requests of
    each direction may be waiting for theirs. A write must have all its strobes: others do nothing and are answered with
    SLVERR, and so is everything that is not in the address map. The low two bits of an address are ignored.

    Members
    -------
    bus : ``In(axi_lite_signature(spec))``
        The bus.
    write, read : ``Out(client_signature(spec))``
        Requests of each direction.
    """

    bus: Any
    write: Any
    read: Any

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        client = client_signature(spec)
        super().__init__({"bus": In(axi_lite_signature(spec)), "write": Out(client), "read": Out(client)})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        bus, address_width = self.bus, self.spec.derived.bus_address_width
        word = data.StructLayout({"data": BUS_WIDTH, "strobes": _BYTES})
        answer = data.StructLayout({"data": BUS_WIDTH, "error": 1})

        m.submodules.write_address = write_address = StreamRegister(address_width)
        m.submodules.write_data = write_data = StreamRegister(word)
        m.submodules.read_address = read_address = StreamRegister(address_width)
        m.submodules.write_queue = write_queue = ResponseQueue(1)
        m.submodules.read_queue = read_queue = ResponseQueue(answer)

        written, read = self.write.request, self.read.request
        m.d.comb += [
            write_address.i.valid.eq(bus.awvalid),
            write_address.i.payload.eq(bus.awaddr[_BYTE_BITS:]),
            bus.awready.eq(write_address.i.ready),
            write_data.i.valid.eq(bus.wvalid),
            write_data.i.payload.data.eq(bus.wdata),
            write_data.i.payload.strobes.eq(bus.wstrb),
            bus.wready.eq(write_data.i.ready),
            written.valid.eq(write_address.o.valid & write_data.o.valid & write_queue.room),
            written.payload.address.eq(write_address.o.payload),
            written.payload.data.eq(write_data.o.payload.data),
            written.payload.write.eq(1),
            written.payload.refuse.eq(~write_data.o.payload.strobes.all()),
            write_queue.claim.eq(written.valid & written.ready),
            write_address.o.ready.eq(write_queue.claim),
            write_data.o.ready.eq(write_queue.claim),
            write_queue.i.valid.eq(self.write.response.valid),
            write_queue.i.payload.eq(self.write.response.payload.error),
            bus.bvalid.eq(write_queue.o.valid),
            bus.bresp.eq(Mux(write_queue.o.payload, SLVERR, OKAY)),
            write_queue.o.ready.eq(bus.bready),
            read_address.i.valid.eq(bus.arvalid),
            read_address.i.payload.eq(bus.araddr[_BYTE_BITS:]),
            bus.arready.eq(read_address.i.ready),
            read.valid.eq(read_address.o.valid & read_queue.room),
            read.payload.address.eq(read_address.o.payload),
            read_queue.claim.eq(read.valid & read.ready),
            read_address.o.ready.eq(read_queue.claim),
            read_queue.i.valid.eq(self.read.response.valid),
            read_queue.i.payload.eq(self.read.response.payload),
            bus.rvalid.eq(read_queue.o.valid),
            bus.rdata.eq(read_queue.o.payload.data),
            bus.rresp.eq(Mux(read_queue.o.payload.error, SLVERR, OKAY)),
            read_queue.o.ready.eq(bus.rready),
        ]
        return m


class StreamCommands(wiring.Component):
    """Execute the commands of :mod:`bitwright.hw.packets`, one after the other.

    A beat with TLAST ends its command whatever the count says, so the word after it begins a command. What a command
    could not do (a word outside of the address map, an unknown opcode, words that TLAST cut off) is left out and
    remembered: the last word of the next reply, or of the reply that it happened in, has TUSER set.

    Members
    -------
    commands : ``In(axi_stream_signature(last=True))``
        Commands.
    replies : ``Out(axi_stream_signature(last=True, user=True))``
        What was read; TLAST is set in the last word of each ``READ``.
    client : ``Out(client_signature(spec))``
        Requests.
    interrupt : ``In(1)``
        The last run has ended.
    """

    commands: Any
    replies: Any
    client: Any
    interrupt: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "commands": In(axi_stream_signature(last=True)),
                "replies": Out(axi_stream_signature(last=True, user=True)),
                "client": Out(client_signature(spec)),
                "interrupt": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        beat = data.StructLayout({"data": BUS_WIDTH, "last": 1})
        reply = data.StructLayout({"data": BUS_WIDTH, "last": 1, "refused": 1})
        m.submodules.beats = beats = StreamRegister(beat)
        m.submodules.queue = queue = ResponseQueue(reply)
        m.d.comb += [
            beats.i.valid.eq(self.commands.tvalid),
            beats.i.payload.data.eq(self.commands.tdata),
            beats.i.payload.last.eq(self.commands.tlast),
            self.commands.tready.eq(beats.i.ready),
            self.replies.tvalid.eq(queue.o.valid),
            self.replies.tdata.eq(queue.o.payload.data),
            self.replies.tlast.eq(queue.o.payload.last),
            self.replies.tuser.eq(queue.o.payload.refused),
            queue.o.ready.eq(self.replies.tready),
        ]

        opcode, address, left = Signal(2), Signal(ADDRESS_BITS), Signal(BUS_WIDTH)
        word, request, response = beats.o.payload, self.client.request, self.client.response
        made, malformed, refused = Signal(), Signal(), Signal()
        under_way = Signal(range(READ_LATENCY + 1))
        address_width = self.spec.derived.bus_address_width
        m.d.comb += [
            made.eq(request.valid & request.ready),
            request.payload.address.eq(address),
            request.payload.data.eq(word.data),
            request.payload.write.eq(opcode == Opcode.WRITE),
            request.payload.refuse.eq(address[address_width:].any()),
        ]
        m.d.sync += under_way.eq(under_way + made - response.valid)
        with m.If(made):
            m.d.sync += [address.eq(address + 1), left.eq(left - 1)]

        with m.FSM():
            with m.State("opcode"):
                m.d.comb += beats.o.ready.eq(1)
                m.d.sync += [address.eq(word.data[:ADDRESS_BITS]), opcode.eq(word.data[ADDRESS_BITS:])]
                with m.If(beats.o.valid):
                    m.d.comb += malformed.eq(word.last)
                    with m.If(~word.last):
                        m.next = "count"
            with m.State("count"):
                m.d.comb += beats.o.ready.eq(1)
                m.d.sync += left.eq(word.data)
                with m.If(beats.o.valid):
                    m.next = "opcode"
                    with m.Switch(opcode):
                        with m.Case(Opcode.WRITE):
                            m.d.comb += malformed.eq(word.last & word.data.any())
                            with m.If(~word.last & word.data.any()):
                                m.next = "write"
                        with m.Case(Opcode.READ), m.If(word.data.any()):
                            m.next = "read"
                        with m.Case(Opcode.WAIT):
                            m.next = "wait"
                        with m.Default():
                            m.d.comb += malformed.eq(1)
            with m.State("write"):
                m.d.comb += [request.valid.eq(beats.o.valid), beats.o.ready.eq(request.ready)]
                with m.If(made & (word.last | (left == 1))):
                    m.d.comb += malformed.eq(left != 1)
                    m.next = "finish"
            with m.State("read"):
                m.d.comb += [request.valid.eq(queue.room), queue.claim.eq(made)]
                with m.If(made & (left == 1)):
                    m.next = "finish"
            # Responses belong to the last command, and a start has acted before a wait begins.
            with m.State("finish"), m.If(under_way == 0):
                m.next = "opcode"
            with m.State("wait"), m.If(self.interrupt):
                m.next = "opcode"

        last = Signal()
        m.d.comb += [
            last.eq((left == 0) & (under_way == 1)),
            queue.i.valid.eq(response.valid & (opcode == Opcode.READ)),
            queue.i.payload.data.eq(response.payload.data),
            queue.i.payload.last.eq(last),
            queue.i.payload.refused.eq(last & (refused | response.payload.error)),
        ]
        with m.If(queue.i.valid & last):
            m.d.sync += refused.eq(0)
        with m.Elif(malformed | (response.valid & response.payload.error)):
            m.d.sync += refused.eq(1)
        return m


def axi_accelerator_signature(spec: ArraySpec) -> wiring.Signature:
    """Ports of :class:`AxiAccelerator`, but clock and reset."""
    weights = {"s_axis_weights": In(axi_stream_signature())} if spec.weight_stream else {}
    return wiring.Signature(
        {
            "s_axi": In(axi_lite_signature(spec)),
            "s_axis": In(axi_stream_signature(last=True)),
            "m_axis": Out(axi_stream_signature(last=True, user=True)),
            **weights,
            "interrupt": Out(1),
        }
    )


class AxiAccelerator(wiring.Component):
    """The accelerator with AXI ports. AXI4-Lite and the stream of commands take turns, word by word.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    s_axi
        Registers and memories: :class:`AxiLite`.
    s_axis, m_axis
        Commands and replies: :class:`StreamCommands`.
    s_axis_weights
        Weights of layers that stream them; only with ``weight_stream``.
    interrupt : ``Out(1)``
        A program has ended, or was stopped by an error.
    """

    s_axi: Any
    s_axis: Any
    m_axis: Any
    s_axis_weights: Any
    interrupt: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(axi_accelerator_signature(spec))

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.accelerator = accelerator = Accelerator(self.spec)
        m.submodules.lite = lite = AxiLite(self.spec)
        m.submodules.commands = commands = StreamCommands(self.spec)
        clients = (lite.write, lite.read, commands.client)
        m.submodules.arbiter = arbiter = HostArbiter(self.spec, len(clients))
        wiring.connect(m, wiring.flipped(self.s_axi), lite.bus)
        wiring.connect(m, wiring.flipped(self.s_axis), commands.commands)
        wiring.connect(m, commands.replies, wiring.flipped(self.m_axis))
        wiring.connect(m, arbiter.host, accelerator.host)
        for index, client in enumerate(clients):
            wiring.connect(m, client, arbiter.clients[index])
        m.d.comb += [self.interrupt.eq(accelerator.interrupt), commands.interrupt.eq(accelerator.interrupt)]
        if self.spec.weight_stream:
            connect_weights(m, accelerator.weights, self.s_axis_weights)
        return m


def connect_weights(m: Module, weights: stream.Interface, port: Any) -> None:
    """Connect the stream of weights to an AXI4-Stream port."""
    m.d.comb += [
        weights.valid.eq(port.tvalid),
        weights.payload.eq(port.tdata),
        port.tready.eq(weights.ready),
    ]
