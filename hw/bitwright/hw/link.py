"""A serial line as host: UART, and the frames of :mod:`bitwright.hw.framing` executed on the host bus."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.crc import catalog
from amaranth.lib.wiring import In, Out

from bitwright.hw.framing import (
    ANSWER_BYTES,
    ANSWER_FIELDS,
    CRC_BYTES,
    ESCAPE,
    ESCAPED_BIT,
    FLAG,
    REQUEST_BYTES,
    REQUEST_FIELDS,
    Command,
    Reply,
)
from bitwright.hw.host import host_signature
from bitwright.hw.isa import BUS_WIDTH, ArraySpec, Region, Register

DIVISOR_MIN = 4
"""Fewest clock cycles of a bit: three samples are taken in the middle of it."""

BYTE_SIGNATURE = wiring.Signature({"data": Out(8), "valid": Out(1), "error": Out(1)})
"""Received bytes: ``valid`` or ``error`` for one cycle each; they cannot wait."""

BYTE_CYCLES = 10
"""Cycles from a byte to the next one that the link can take."""

_BUFFER_BYTES = 512


class UARTReceiver(wiring.Component):
    """Receives bytes of 8 bits, no parity, a stop bit.

    Each bit is the majority of three samples around its middle. A byte without its stop bit is a framing error; after
    it, as after a pulse shorter than half a bit, the next fall of the line begins a byte.

    Parameters
    ----------
    divisor
        Clock cycles of a bit, at least ``DIVISOR_MIN``.

    Members
    -------
    line : ``In(1)``
        The line, asynchronous; high at rest.
    received
        :data:`BYTE_SIGNATURE`, in the middle of the stop bit.
    """

    line: Signal
    received: Any

    def __init__(self, divisor: int) -> None:
        assert divisor >= DIVISOR_MIN
        self.divisor = divisor
        line: Any = In(1, init=1)  # pyright: ignore[reportCallIssue]  # not in the stubs
        super().__init__({"line": line, "received": Out(BYTE_SIGNATURE)})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        level, samples = Signal(init=1), Signal(3, init=0b111)
        m.submodules.synchronizer = FFSynchronizer(self.line, level, init=1)
        m.d.sync += samples.eq(Cat(level, samples))
        majority = Signal()
        m.d.comb += majority.eq((samples[0] & samples[1]) | (samples[0] & samples[2]) | (samples[1] & samples[2]))

        # A start bit, eight data bits and a stop bit are left; the samples end one cycle after the middle of a bit.
        left, timer = Signal(range(11)), Signal(range(self.divisor))
        m.d.sync += [self.received.valid.eq(0), self.received.error.eq(0)]
        with m.If(left == 0):
            m.d.sync += timer.eq(self.divisor // 2)
            with m.If(samples[0] & ~level):
                m.d.sync += left.eq(10)
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self.divisor - 1), left.eq(left - 1)]
            with m.If(left == 10), m.If(majority):
                m.d.sync += left.eq(0)
            with m.Elif(left == 1):
                m.d.sync += [self.received.valid.eq(majority), self.received.error.eq(~majority)]
            with m.Else():
                m.d.sync += self.received.data.eq(Cat(self.received.data[1:], majority))
        return m


class UARTTransmitter(wiring.Component):
    """Sends bytes of 8 bits, no parity, a stop bit.

    Parameters
    ----------
    divisor
        Clock cycles of a bit.

    Members
    -------
    bytes : ``In(stream.Signature(8))``
        What to send. A byte is taken when its start bit begins.
    line : ``Out(1)``
        The line, high at rest.
    """

    bytes: stream.Interface
    line: Signal

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor
        line: Any = Out(1, init=1)  # pyright: ignore[reportCallIssue]  # not in the stubs
        super().__init__({"bytes": In(stream.Signature(8)), "line": line})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        left, timer = Signal(range(11)), Signal(range(self.divisor))
        rest = Signal(9, init=0x1FF)  # bits that follow the one on the line
        m.d.comb += self.bytes.ready.eq(left == 0)
        with m.If(left == 0), m.If(self.bytes.valid):
            m.d.sync += [rest.eq(Cat(self.bytes.payload, 1)), self.line.eq(0)]
            m.d.sync += [timer.eq(self.divisor - 1), left.eq(10)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self.divisor - 1), left.eq(left - 1)]
            m.d.sync += [self.line.eq(rest[0]), rest.eq(Cat(rest[1:], 1))]
        return m


class Link(wiring.Component):
    """Executes requests on the host bus and answers each.

    A request waits in a buffer until its CRC has come: nothing of a damaged frame is ever executed.

    Parameters
    ----------
    spec
        Array.
    silence_cycles
        After this many cycles without a byte, a frame that has begun is dropped.

    Members
    -------
    received
        :data:`BYTE_SIGNATURE`, at least ``BYTE_CYCLES`` apart; dropped while a request is executed or answered.
    answer : ``Out(stream.Signature(8))``
        Bytes to send.
    bus
        The accelerator's host bus.
    interrupt : ``In(1)``
        The last Program has ended.
    """

    received: Any
    answer: stream.Interface
    bus: Any
    interrupt: Signal

    def __init__(self, spec: ArraySpec, silence_cycles: int) -> None:
        self.spec = spec
        self.silence_cycles = silence_cycles
        super().__init__(
            {
                "received": In(BYTE_SIGNATURE),
                "answer": Out(stream.Signature(8)),
                "bus": Out(host_signature(spec)),
                "interrupt": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        derived = self.spec.derived
        m = Module()

        # The CRC of either direction takes a bit a cycle: a fraction of the logic for a byte a cycle.
        crc: Any = catalog.CRC32_ISO_HDLC(data_width=1).create()
        m.submodules.crc = crc
        crc_bits, crc_left = Signal(8), Signal(range(9))
        m.d.comb += [crc.data.eq(crc_bits[0]), crc.valid.eq(crc_left != 0)]
        with m.If(crc_left != 0):
            m.d.sync += [crc_bits.eq(crc_bits >> 1), crc_left.eq(crc_left - 1)]

        m.submodules.buffer = buffer = memory.Memory(shape=8, depth=_BUFFER_BYTES, init=[])
        store, fetch = buffer.write_port(), buffer.read_port()
        request = Signal(data.StructLayout({name: bits for name, bits, _ in REQUEST_FIELDS}))
        is_write, is_read = request.command == Command.WRITE, request.command == Command.READ

        # Position of the next byte in the buffer: of one that comes, then of one that is written.
        position, last_position = Signal(range(_BUFFER_BYTES)), _BUFFER_BYTES - 1
        receiving, escaped = Signal(), Signal()
        silence = Signal(range(self.silence_cycles + 1))
        refused = Signal()

        connected, session, expected = Signal(), Signal(8), Signal(8)
        following = Signal(8)
        m.d.comb += following.eq(request.sequence + 1)
        reply, runs = Signal(Reply), Signal(8)

        # The word under way between buffer or line and bus.
        word, index = Signal(BUS_WIDTH), Signal(3)
        shifted = Cat(word[8:], fetch.data)
        address = request.address[: derived.bus_address_width]
        writable = Signal()
        m.d.comb += [
            writable.eq(self._writable(request.address)),
            store.addr.eq(position),
            store.data.eq(self.received.data ^ Mux(escaped, ESCAPED_BIT, 0)),
            fetch.addr.eq(position),
            self.bus.address.eq(address),
            self.bus.write_data.eq(word),
        ]
        with m.If(self.bus.write & self._is_control(request.address) & word[0] & ~word[1]):
            m.d.sync += runs.eq(runs + 1)

        # Sending: a byte of the contents, after an escape if it needs one.
        content, sending, sent = Signal(8), Signal(), Signal()
        special = (content == FLAG) | (content == ESCAPE)
        with m.If(sending):
            m.d.comb += [
                self.answer.valid.eq(crc_left == 0),
                self.answer.payload.eq(Mux(special & ~escaped, ESCAPE, content ^ Mux(escaped, ESCAPED_BIT, 0))),
            ]
            with m.If(self.answer.valid & self.answer.ready):
                m.d.comb += sent.eq(~special | escaped)
                m.d.sync += escaped.eq(special & ~escaped)
        covered = Signal()  # by the CRC
        with m.If(sent):
            m.d.sync += index.eq(index + 1)
            with m.If(covered):
                m.d.sync += [crc_bits.eq(content), crc_left.eq(8)]

        with m.If(self.received.valid | ~receiving):
            m.d.sync += silence.eq(0)
        with m.Else():
            m.d.sync += silence.eq(silence + 1)
            with m.If((silence & self.silence_cycles) == self.silence_cycles):  # one bit, for a power of two
                m.d.sync += receiving.eq(0)
        with m.If(self.received.error):
            m.d.sync += receiving.eq(0)

        header = {"session": request.session, "sequence": request.sequence, "reply": reply, "runs": runs}
        header["state"] = self.interrupt
        with m.FSM():
            with m.State("receive"), m.If(self.received.valid):
                with m.If(self.received.data == FLAG):
                    m.d.comb += crc.start.eq(1)
                    m.d.sync += [receiving.eq(1), escaped.eq(0), position.eq(0)]
                    length = REQUEST_BYTES + CRC_BYTES + (Mux(is_write, request.count, 0) << 2)
                    empty = (is_write | is_read) & (request.count == 0)
                    m.d.sync += refused.eq((position != length) | empty | (request.command > max(Command)))
                    whole = receiving & ~escaped & crc.match_detected & (position >= REQUEST_BYTES + CRC_BYTES)
                    with m.If(whole):
                        m.next = "check"
                with m.Elif(self.received.data == ESCAPE):
                    m.d.sync += escaped.eq(1)
                with m.Else():
                    m.d.comb += store.en.eq(receiving)
                    m.d.sync += [escaped.eq(0), crc_bits.eq(store.data), crc_left.eq(8), position.eq(position + 1)]
                    with m.If(position == last_position):
                        m.d.sync += receiving.eq(0)
                    with m.If(position < REQUEST_BYTES):
                        m.d.sync += request.as_value().word_select(position[:3], 8).eq(store.data)

            with m.State("check"):
                m.d.comb += crc.start.eq(1)
                m.d.sync += [receiving.eq(0), position.eq(REQUEST_BYTES), index.eq(0), reply.eq(Reply.DONE)]
                m.next = "open"
                with m.If(refused):
                    m.d.sync += reply.eq(Reply.REFUSED)
                with m.Elif(request.command == Command.CONNECT):
                    m.d.sync += [connected.eq(1), session.eq(request.session), expected.eq(following)]
                with m.Elif(~connected | (request.session != session)):
                    m.d.sync += reply.eq(Reply.SESSION)
                with m.Elif(request.sequence == expected):
                    with m.If(is_write):
                        m.next = "fetch"
                    with m.Else():
                        m.d.sync += expected.eq(following)
                with m.Elif(following != expected):
                    m.d.sync += reply.eq(Reply.SEQUENCE)

            # Four bytes from the buffer; each comes a cycle after its address.
            with m.State("fetch"):
                m.d.sync += [word.eq(shifted), index.eq(index + 1)]
                with m.If(index == 4):
                    m.d.sync += index.eq(0)
                    m.next = "write"
                with m.Else():
                    m.d.sync += position.eq(position + 1)
            with m.State("write"):
                m.d.comb += self.bus.write.eq(writable)
                m.d.sync += [address.eq(address + 1), request.count.eq(request.count - 1)]
                m.next = "fetch"
                with m.If(~writable):
                    m.d.sync += reply.eq(Reply.REFUSED)
                    m.next = "open"
                with m.Elif(request.count == 1):
                    m.d.sync += expected.eq(following)
                    m.next = "open"

            with m.State("open"):
                m.d.comb += [self.answer.valid.eq(1), self.answer.payload.eq(FLAG)]
                with m.If(self.answer.ready):
                    m.next = "header"
            with m.State("header"):
                m.d.comb += [sending.eq(1), covered.eq(1)]
                with m.Switch(index):
                    for number, (name, _, _) in enumerate(ANSWER_FIELDS):
                        with m.Case(number):
                            m.d.comb += content.eq(header[name])
                with m.If(sent & (index == ANSWER_BYTES - 1)):
                    m.d.sync += index.eq(0)
                    m.next = "end"
                    with m.If(is_read & (reply == Reply.DONE)):
                        m.next = "read"

            with m.State("read"):
                m.d.comb += self.bus.read.eq(1)
                m.d.sync += [address.eq(address + 1), request.count.eq(request.count - 1)]
                m.next = "wait"
            with m.State("wait"), m.If(self.bus.read_valid):
                m.d.sync += word.eq(self.bus.read_data)
                m.next = "word"
            with m.State("word"):
                m.d.comb += [sending.eq(1), covered.eq(1), content.eq(word)]
                with m.If(sent):
                    m.d.sync += word.eq(shifted)
                    with m.If(index == 3):
                        m.d.sync += index.eq(0)
                        m.next = "read"
                        with m.If(request.count == 0):
                            m.next = "end"

            with m.State("end"):
                m.d.comb += [sending.eq(1), content.eq(crc.crc.word_select(index[:2], 8))]
                with m.If(sent & (index == CRC_BYTES - 1)):
                    m.next = "close"
            with m.State("close"):
                m.d.comb += [self.answer.valid.eq(1), self.answer.payload.eq(FLAG)]
                with m.If(self.answer.ready):
                    m.next = "receive"
        return m

    def _is_control(self, address: Any) -> Any:
        """Whether a bus address is that of the control register."""
        return address == self.spec.derived.host_address(Region.REGISTERS, Register.CONTROL)

    def _writable(self, address: Any) -> Any:
        """Whether a bus address lies in a memory, or is that of the control register."""
        derived = self.spec.derived
        region, offset = address[derived.region_width :], address[: derived.region_width]
        memories = [each for each in Region if each not in (Region.REGISTERS, Region.RESULTS)]
        inside = [(region == each) & (offset < derived.region_words(each)) for each in memories]
        return Cat(self._is_control(address), *inside).any()
