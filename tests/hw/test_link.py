"""UART and link, each by itself and together, against the Python end of the same frames."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.framing import (
    ANSWER_BYTES,
    BURST_WORDS,
    ESCAPE,
    FLAG,
    REQUEST_BYTES,
    Answer,
    Command,
    FrameReader,
    Reply,
    Request,
    frame,
)
from bitwright.hw.isa import READ_LATENCY, ArraySpec, Region, Register
from bitwright.hw.link import BYTE_CYCLES, Link, UARTReceiver, UARTTransmitter
from drive import drive

SPEC = ArraySpec(
    rows=12,
    columns=2,
    lanes=64,
    drain_planes=1,
    activation_depth=64,
    weight_depth=32,
    threshold_depth=128,
    descriptor_depth=64,
    result_depth=16,
)
AT = SPEC.derived.host_address
CONTROL = AT(Region.REGISTERS, Register.CONTROL)
SILENCE = 200
SPECIAL = [FLAG, ESCAPE, FLAG ^ 0x20, ESCAPE ^ 0x20, 0, 0xFF]


# UART ----------------------------------------------------------------------------------------------------------------


async def send(ctx: Any, line: Any, byte: int, cycles: float, *, stop: int = 1) -> None:
    """A byte on the line, its bits ``cycles`` clock cycles long."""
    bits = [0, *(byte >> index & 1 for index in range(8)), stop]
    now = 0
    for index, bit in enumerate(bits):
        ctx.set(line, bit)
        end = round((index + 1) * cycles)
        await ctx.tick().repeat(end - now)
        now = end
    ctx.set(line, 1)


async def collect(ctx: Any, dut: UARTReceiver, found: list[int | None]) -> None:
    """Bytes received; None for a framing error."""
    async for _, _, valid, error, data in ctx.tick().sample(dut.received.valid, dut.received.error, dut.received.data):
        if error:
            found.append(None)
        if valid:
            found.append(data)


@pytest.mark.parametrize(("divisor", "drift"), [(4, 0), (5, 0), (12, -0.025), (12, 0.025), (25, -0.025), (25, 0.025)])
def test_receiver_takes_bytes_of_a_clock_that_is_off(divisor: int, drift: float) -> None:
    dut, found = UARTReceiver(divisor), []
    sent = [0x00, 0xFF, 0x55, 0xAA, 0x7E, 0x01, 0x80]

    async def bench(ctx: Any) -> None:
        for byte in sent:
            await send(ctx, dut.line, byte, divisor * (1 + drift))
        await ctx.tick().repeat(2 * divisor)

    async def background(ctx: Any) -> None:
        await collect(ctx, dut, found)

    drive(dut, bench, background=background)
    assert found == sent


def test_receiver_votes_on_each_bit() -> None:
    """A spike of a cycle in the middle of each bit changes nothing; one on the quiet line is no start bit."""
    divisor, found = 12, []
    dut = UARTReceiver(divisor)

    async def bench(ctx: Any) -> None:
        ctx.set(dut.line, 0)
        await ctx.tick().repeat(2)
        ctx.set(dut.line, 1)
        await ctx.tick().repeat(3 * divisor)
        for bit in [0, *(0x36 >> index & 1 for index in range(8)), 1]:
            for cycle in range(divisor):
                ctx.set(dut.line, bit ^ (cycle == divisor // 2))
                await ctx.tick()
        await ctx.tick().repeat(2 * divisor)

    async def background(ctx: Any) -> None:
        await collect(ctx, dut, found)

    drive(dut, bench, background=background)
    assert found == [0x36]


def test_a_byte_without_stop_bit_is_an_error() -> None:
    divisor, found = 8, []
    dut = UARTReceiver(divisor)

    async def bench(ctx: Any) -> None:
        await send(ctx, dut.line, 0x41, divisor)
        await send(ctx, dut.line, 0x42, divisor, stop=0)
        await ctx.tick().repeat(divisor)
        ctx.set(dut.line, 0)  # a line that is held low is one error
        await ctx.tick().repeat(40 * divisor)
        ctx.set(dut.line, 1)
        await ctx.tick().repeat(2 * divisor)
        await send(ctx, dut.line, 0x43, divisor)
        await ctx.tick().repeat(2 * divisor)

    async def background(ctx: Any) -> None:
        await collect(ctx, dut, found)

    drive(dut, bench, background=background)
    assert found == [0x41, None, None, 0x43]


@pytest.mark.parametrize("divisor", [4, 9])
def test_transmitter_sends_what_a_line_expects(divisor: int) -> None:
    dut, levels, sent = UARTTransmitter(divisor), [], [0x00, 0xFF, 0xA5, 0x7E]

    async def bench(ctx: Any) -> None:
        ctx.set(dut.bytes.valid, 1)
        for byte in sent:
            ctx.set(dut.bytes.payload, byte)
            await ctx.tick().until(dut.bytes.ready)
        ctx.set(dut.bytes.valid, 0)
        await ctx.tick().repeat(12 * divisor)

    async def background(ctx: Any) -> None:
        async for _, _, level in ctx.tick().sample(dut.line):
            levels.append(level)

    drive(dut, bench, background=background)
    at, found = 0, []
    while 0 in levels[at:]:
        start = levels.index(0, at)
        bits = [levels[start + index * divisor + divisor // 2] for index in range(10)]
        assert (bits[0], bits[9]) == (0, 1)
        assert all(len({*levels[start + index * divisor : start + (index + 1) * divisor]}) == 1 for index in range(9))
        found.append(sum(bit << index for index, bit in enumerate(bits[1:9])))
        at = start + 9 * divisor + 1
    assert found == sent


# Link ----------------------------------------------------------------------------------------------------------------


class LinkBench:
    """Talks to a link in bytes, with a bus that remembers what was written and reads back the address."""

    def __init__(self, seed: int = 0) -> None:
        self.dut = Link(SPEC, SILENCE)
        self.rng = random.Random(seed)
        self.writes: list[tuple[int, int]] = []
        self.reader = FrameReader(ANSWER_BYTES)
        self.answers: list[Answer] = []
        self.ctx: Any = None

    async def background(self, ctx: Any) -> None:
        """The bus and the other end of the line."""
        empty: list[int | None] = [None] * (READ_LATENCY - 1)
        dut, rng, reads = self.dut, random.Random(1), empty
        ctx.set(dut.answer.ready, 1)
        signals = (dut.bus.write, dut.bus.read, dut.bus.address, dut.bus.write_data, dut.answer.valid)
        async for _, _, write, read, address, value, valid, ready, payload in ctx.tick().sample(
            *signals, dut.answer.ready, dut.answer.payload
        ):
            if write:
                self.writes.append((address, value))
            reads.append(self.content(address) if read else None)
            found = reads.pop(0)
            ctx.set(dut.bus.read_valid, found is not None)
            ctx.set(dut.bus.read_data, found or 0)
            if valid and ready:
                self.answers += map(Answer.decode, self.reader.feed(bytes([payload])))
            ctx.set(dut.answer.ready, rng.random() < 0.7)

    @staticmethod
    def content(address: int) -> int:
        """What stands at a bus address: with bytes that need an escape."""
        return (address * 0x01000193 ^ 0x7E7D5D5E) & 0xFFFFFFFF if address % 3 else 0x7E7D7E7D

    async def put(self, line: bytes) -> None:
        """Bytes as the receiver gives them."""
        for byte in line:
            self.ctx.set(self.dut.received.data, byte)
            self.ctx.set(self.dut.received.valid, 1)
            await self.ctx.tick()
            self.ctx.set(self.dut.received.valid, 0)
            await self.ctx.tick().repeat(BYTE_CYCLES - 1)

    async def ask(self, request: Request, patience: int = 400) -> Answer | None:
        """Answer of a request; None if there is none."""
        self.answers.clear()
        await self.put(request.encode())
        return await self.answer(patience + 80 * request.count)

    async def answer(self, patience: int = 400) -> Answer | None:
        """The next answer."""
        for _ in range(patience):
            if self.answers:
                return self.answers.pop(0)
            await self.ctx.tick()
        return None

    async def connect(self, session: int = 0x7E, sequence: int = 0) -> None:
        """Begin a session."""
        answer = await self.ask(Request(session, sequence, Command.CONNECT))
        assert answer == Answer(session, sequence, Reply.DONE, 0, 0)

    def run(self, bench: Any, max_cycles: int = 100_000) -> None:
        async def started(ctx: Any) -> None:
            self.ctx = ctx
            await bench()

        drive(self.dut, started, background=self.background, max_cycles=max_cycles)


def write(session: int, sequence: int, address: int, words: list[int]) -> Request:
    data = b"".join(word.to_bytes(4, "little") for word in words)
    return Request(session, sequence, Command.WRITE, len(words), address, data)


def read(session: int, sequence: int, address: int, count: int) -> Request:
    return Request(session, sequence, Command.READ, count, address)


@pytest.mark.parametrize("count", [1, 2, BURST_WORDS])
def test_bursts_are_written_and_read(count: int) -> None:
    bench = LinkBench()
    address = AT(Region.WEIGHTS, 3, 2)
    words = [bench.rng.choice([0x7E7E7D7D, 0x5E5D7E00, bench.rng.getrandbits(32)]) for _ in range(count)]

    async def talk() -> None:
        await bench.connect()
        assert await bench.ask(write(0x7E, 1, address, words)) == Answer(0x7E, 1, Reply.DONE, 0, 0)
        assert bench.writes == [(address + index, word) for index, word in enumerate(words)]
        answer = await bench.ask(read(0x7E, 2, address, count))
        assert answer is not None
        assert (answer.reply, answer.sequence) == (Reply.DONE, 2)
        assert answer.words.tolist() == [bench.content(address + index) for index in range(count)]
        assert bench.writes[count:] == []

    bench.run(talk)


def test_a_request_is_executed_once_and_answered_as_often_as_it_comes() -> None:
    bench = LinkBench()

    async def talk() -> None:
        await bench.connect(5, 254)
        for _ in range(3):
            assert await bench.ask(write(5, 255, CONTROL, [1])) == Answer(5, 255, Reply.DONE, 1, 0)
        assert bench.writes == [(CONTROL, 1)]
        bench.ctx.set(bench.dut.interrupt, 1)
        for _ in range(2):
            answer = await bench.ask(read(5, 0, 4, 3))
            assert answer is not None
            assert (answer.runs, answer.done, answer.words.tolist()) == (1, True, [*map(bench.content, (4, 5, 6))])
        assert await bench.ask(write(5, 255, CONTROL, [1])) == Answer(5, 255, Reply.SEQUENCE, 1, 1)
        assert await bench.ask(write(5, 2, CONTROL, [1])) == Answer(5, 2, Reply.SEQUENCE, 1, 1)
        assert await bench.ask(write(5, 1, CONTROL, [2])) == Answer(5, 1, Reply.DONE, 1, 1)  # a stop is no start
        assert bench.writes == [(CONTROL, 1), (CONTROL, 2)]

    bench.run(talk)


def test_nothing_is_executed_outside_of_a_session() -> None:
    bench = LinkBench()

    async def talk() -> None:
        assert await bench.ask(write(0, 0, CONTROL, [1])) == Answer(0, 0, Reply.SESSION, 0, 0)
        assert await bench.ask(Request(0, 0, Command.STATUS)) == Answer(0, 0, Reply.SESSION, 0, 0)
        await bench.connect(9)
        assert await bench.ask(write(8, 1, CONTROL, [1])) == Answer(8, 1, Reply.SESSION, 0, 0)
        assert await bench.ask(Request(9, 1, Command.STATUS)) == Answer(9, 1, Reply.DONE, 0, 0)
        await bench.connect(8, 77)
        assert await bench.ask(Request(9, 2, Command.STATUS)) == Answer(9, 2, Reply.SESSION, 0, 0)
        assert await bench.ask(Request(8, 78, Command.STATUS)) == Answer(8, 78, Reply.DONE, 0, 0)
        assert bench.writes == []

    bench.run(talk)


@pytest.mark.parametrize(
    ("address", "written"),
    [
        (AT(Region.DESCRIPTORS, SPEC.descriptor_depth - 1), 1),
        (AT(Region.WEIGHTS, SPEC.weight_depth - 1, SPEC.rows - 1, 1), 1),
        (AT(Region.WEIGHTS, 0, SPEC.rows), 0),
        (AT(Region.THRESHOLDS, SPEC.threshold_depth - 1, SPEC.rows - 1), 1),
        (AT(Region.ACTIVATIONS, SPEC.activation_depth - 1, chunk=1), 1),
        (AT(Region.RESULTS), 0),
        (AT(Region.COEFFICIENTS), 0),
        (7 << SPEC.derived.region_width, 0),
        (CONTROL, 1),
        (CONTROL + 1, 0),
        (CONTROL - 1, 0),
    ],
)
def test_no_write_outside_of_the_memories(address: int, written: int) -> None:
    bench = LinkBench()

    async def talk() -> None:
        await bench.connect()
        answer = await bench.ask(write(0x7E, 1, address, [4, 5, 6]))
        assert answer is not None
        assert answer.reply == Reply.REFUSED
        assert bench.writes == [(address + index, 4 + index) for index in range(written)]
        # It does not count: neither as the last request nor as the next.
        assert await bench.ask(Request(0x7E, 1, Command.STATUS)) == Answer(0x7E, 1, Reply.DONE, 0, 0)

    bench.run(talk)


@pytest.mark.parametrize(
    "request_",
    [
        Request(0x7E, 1, 4),
        Request(0x7E, 1, 0x82, 1, 0),
        Request(0x7E, 1, Command.READ, 0, 0),
        Request(0x7E, 1, Command.READ, 1, 0, bytes(4)),
        Request(0x7E, 1, Command.WRITE, 0, AT(Region.DESCRIPTORS)),
        Request(0x7E, 1, Command.WRITE, 2, AT(Region.DESCRIPTORS), bytes(4)),
        Request(0x7E, 1, Command.WRITE, 1, AT(Region.DESCRIPTORS), bytes(8)),
        Request(0x7E, 1, Command.WRITE, 1, AT(Region.DESCRIPTORS), bytes(5)),
        Request(0x7E, 1, Command.STATUS, 0, 0, bytes(1)),
        Request(0x7E, 1, Command.WRITE, 1, AT(Region.DESCRIPTORS) | 1 << 31, bytes(4)),
    ],
    ids=str,
)
def test_whole_frames_that_make_no_sense_are_refused(request_: Request) -> None:
    bench = LinkBench()

    async def talk() -> None:
        await bench.connect()
        answer = await bench.ask(request_)
        assert answer is not None
        assert answer.reply == Reply.REFUSED
        assert bench.writes == []

    bench.run(talk)


def test_a_silent_line_ends_a_frame() -> None:
    bench = LinkBench()
    whole = write(0x7E, 1, CONTROL, [1]).encode()

    async def talk() -> None:
        await bench.connect()
        await bench.put(whole[:10])
        await bench.ctx.tick().repeat(SILENCE + 1)
        await bench.put(whole[10:])
        assert await bench.answer() is None
        await bench.put(whole[:10])
        await bench.ctx.tick().repeat(SILENCE - 2 * BYTE_CYCLES)
        await bench.put(whole[10:])
        assert await bench.answer() == Answer(0x7E, 1, Reply.DONE, 1, 0)

    bench.run(talk)
    assert bench.writes == [(CONTROL, 1)]


def test_a_framing_error_ends_a_frame() -> None:
    bench = LinkBench()
    whole = write(0x7E, 1, CONTROL, [1]).encode()

    async def talk() -> None:
        await bench.connect()
        await bench.put(whole[:10])
        bench.ctx.set(bench.dut.received.error, 1)
        await bench.ctx.tick()
        bench.ctx.set(bench.dut.received.error, 0)
        await bench.put(whole[10:])
        assert await bench.answer() is None
        assert await bench.ask(Request(0x7E, 1, Command.STATUS)) == Answer(0x7E, 1, Reply.DONE, 0, 0)

    bench.run(talk)
    assert bench.writes == []


def test_frames_that_are_too_long_are_dropped() -> None:
    bench = LinkBench()

    async def talk() -> None:
        await bench.connect()
        for length in (503, 504, 1024):
            await bench.put(frame(write(0x7E, 1, AT(Region.DESCRIPTORS), []).encode()[1:9] + bytes(length)))
            answer = await bench.answer()
            assert answer is None or answer.reply == Reply.REFUSED
        assert await bench.ask(Request(0x7E, 1, Command.STATUS)) == Answer(0x7E, 1, Reply.DONE, 0, 0)

    bench.run(talk)
    assert bench.writes == []


def damage(rng: random.Random, line: bytes) -> bytes:
    """Bytes with some dropped, changed, doubled or put between, and at least one of it."""
    changed = bytearray(line)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(changed))
        kind = rng.randrange(5)
        if kind == 0:
            del changed[at : at + rng.randint(1, 4)]
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at] = rng.choice(SPECIAL)
        elif kind == 3:
            changed[at:at] = changed[at : at + rng.randint(1, 8)]
        else:
            changed[at:at] = bytes(rng.choices([*SPECIAL, rng.randrange(256)], k=rng.randint(1, 4)))
        if not changed:
            break
    return bytes(changed)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_what_is_executed_is_what_the_python_end_reads(seed: int) -> None:
    """Damaged lines: hardware and Python find the same whole frames in them, and only those are executed."""
    bench = LinkBench(seed)
    rng = bench.rng
    expected: list[tuple[int, int]] = []

    async def talk() -> None:
        await bench.connect()
        sequence = 1
        for _ in range(12):
            words = [rng.choice([0x7E7D7E7D, rng.getrandbits(32)]) for _ in range(rng.randint(1, 4))]
            request = write(0x7E, sequence, AT(Region.DESCRIPTORS, rng.randrange(32)), words)
            line = damage(rng, request.encode())
            found = [*FrameReader(REQUEST_BYTES).feed(line)]
            await bench.put(line)
            await bench.ctx.tick().repeat(SILENCE + 300)
            if found:
                assert {Request.decode(each) for each in found} == {request}  # doubled flags, or nothing lost
                expected.extend((request.address + index, word) for index, word in enumerate(words))
                sequence = (sequence + 1) % 256
            assert bench.writes == expected

    bench.run(talk)
