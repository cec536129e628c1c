"""cocotb bench of the accelerator with AXI ports; masters, sources and sinks are those of cocotbext-axi."""

import random
from collections.abc import Iterable
from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles, with_timeout
from cocotb.utils import get_sim_time
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp, AxiStreamBus, AxiStreamSink, AxiStreamSource

import onbus
from bitwright.hw.isa import ErrorCode, Region
from bitwright.hw.packets import Opcode, command, write_commands
from bitwright.hw.program import Program
from onbus import AT, CONTROL, ERROR, PERIOD, SPEC, STATUS, STOP

CHANNELS = (("s_axi_b", ("bresp",)), ("s_axi_r", ("rdata", "rresp")), ("m_axis_t", ("tdata", "tlast", "tuser")))
"""What the accelerator offers."""


class Bench:
    """Models on every port.

    Parameters
    ----------
    dut
        The accelerator.
    """

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        port = dut.aclk, dut.aresetn, False
        self.lite: Any = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), *port)
        self.commands = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis"), *port, byte_lanes=1)
        self.replies = AxiStreamSink(AxiStreamBus.from_prefix(dut, "m_axis"), *port, byte_lanes=1)
        self.weights = AxiStreamSource(AxiStreamBus.from_prefix(dut, "s_axis_weights"), *port, byte_lanes=1)
        for prefix, payload in CHANNELS:
            bus = prefix.rsplit("_", 1)[0]
            signals = [getattr(dut, f"{bus}_{name}") for name in payload]
            valid, ready = getattr(dut, f"{prefix}valid"), getattr(dut, f"{prefix}ready")
            cocotb.start_soon(onbus.steady(dut.aclk, dut.aresetn, 0, valid, ready, signals))

    async def start(self) -> None:
        """Clock and reset."""
        await onbus.start_clock(self.dut.aclk, self.dut.aresetn, 0)

    def stall(self, seed: int, share: float = 0.3) -> None:
        """Let every model but the source of weights, whose waiting costs cycles, pause at random."""
        write, read = self.lite.write_if, self.lite.read_if
        channels = (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
        for index, model in enumerate((*channels, self.commands, self.replies)):
            model.set_pause_generator(onbus.stalls(random.Random(seed * 10 + index), share))

    async def write(self, address: int, words: list[int]) -> AxiResp:
        """Write consecutive words by AXI4-Lite; an error of one is the answer."""
        return (await self.lite.write(4 * address, np.array(words, "<u4").tobytes())).resp

    async def read(self, address: int, count: int = 1) -> list[int]:
        """Read consecutive words by AXI4-Lite."""
        answer = await self.lite.read(4 * address, 4 * count)
        assert answer.resp == AxiResp.OKAY
        return np.frombuffer(answer.data, "<u4").tolist()

    async def load(self, writes: Iterable[tuple[int, int]]) -> None:
        """Make writes by AXI4-Lite, consecutive ones at once."""
        data = dict(writes)
        for first, count in bursts(list(data)):
            words = [data[address] for address in range(first, first + count)]
            assert await self.write(first, words) == AxiResp.OKAY

    async def run(self, program: Program, image: Any) -> list[int]:
        """Load an image, run and read by AXI4-Lite."""
        await self.weights.send(program.stream.tolist())
        await self.load(onbus.start_writes(program, image))
        await onbus.interrupted(self.dut, program)
        return [word for first, count in bursts(onbus.readings(program)) for word in await self.read(first, count)]

    async def reply(self) -> tuple[list[int], bool]:
        """Next reply of the stream, and whether it tells of something refused; TUSER is in no word but the last."""
        frame = await with_timeout(self.replies.recv(compact=False), 100_000 * PERIOD, "ns")
        assert not any(frame.tuser[:-1])
        return list(frame.tdata), bool(frame.tuser[-1])


def bursts(addresses: list[int]) -> list[tuple[int, int]]:
    """First address and length of each sequence of consecutive ones."""
    words = write_commands((address, 0) for address in addresses).tolist()
    found: list[tuple[int, int]] = []
    while words:
        found.append((words[0], words[1]))
        words = words[2 + words[1] :]
    return found


def reads(addresses: list[int]) -> list[int]:
    """Commands that read."""
    return [word for burst in bursts(addresses) for word in command(Opcode.READ, *burst)]


def run_packet(program: Program, image: Any) -> list[int]:
    """Commands that load an image, start, wait and read."""
    writes = write_commands(onbus.start_writes(program, image)).tolist()
    return [*writes, *command(Opcode.WAIT), *reads(onbus.readings(program))]


@cocotb.test(**onbus.limit())
async def networks_by_axi_lite(dut: Any) -> None:
    """Two networks, one loaded over the other, images back to back, all channels stalling."""
    bench = Bench(dut)
    await bench.start()
    bench.stall(1)
    for program, images in (onbus.streaming(), onbus.resident()):
        await bench.load(program.host_writes())
        for image in images:
            onbus.check(program, image, await bench.run(program, image))


@cocotb.test(**onbus.limit())
async def networks_by_stream(dut: Any) -> None:
    """The same by commands, all of them queued at once, while the other bus polls; weights that stall."""
    bench = Bench(dut)
    await bench.start()
    bench.stall(2)
    cases = onbus.resident(), onbus.streaming()

    async def poll() -> None:
        while True:
            assert (await bench.read(STATUS))[0] in (0, 1, 2)

    polling = cocotb.start_soon(poll())
    for program, images in cases:
        await bench.commands.send(write_commands(program.host_writes()).tolist())
        for image in images:
            await bench.commands.send(run_packet(program, image))
            await bench.weights.send(program.stream.tolist())
    for program, images in cases:
        for image in images:
            words: list[int] = []
            for _, count in bursts(onbus.readings(program)):
                answer, refused = await bench.reply()
                assert (len(answer), refused) == (count, False)
                words += answer
            onbus.check(program, image, words)
    polling.cancel()

    program, images = cases[1]
    bench.weights.set_pause_generator(onbus.stalls(random.Random(3), 0.5))
    onbus.check(program, images[0], await bench.run(program, images[0]), timed=False)


@cocotb.test(**onbus.limit())
async def reset_in_a_burst(dut: Any) -> None:
    """Reset while both buses write and answers wait, and while a run takes weights; then all works as at first."""
    bench = Bench(dut)
    await bench.start()
    program, images = onbus.streaming()
    for delay in (37, 150):
        bench.stall(delay)
        burst = cocotb.start_soon(bench.lite.write(4 * AT(Region.ACTIVATIONS), bytes(4 * 200)))
        reading = cocotb.start_soon(bench.lite.read(4 * AT(Region.ACTIVATIONS), 4 * 200))
        await bench.commands.send(write_commands(program.host_writes()).tolist())
        await ClockCycles(dut.aclk, delay)
        dut.aresetn.value = 0
        await ClockCycles(dut.aclk, 3)
        assert not any(int(signal.value) for signal in (dut.s_axi_bvalid, dut.s_axi_rvalid, dut.m_axis_tvalid))
        bench.commands.clear()
        dut.aresetn.value = 1
        await burst
        await reading
        await ClockCycles(dut.aclk, 2)
    await bench.load(program.host_writes())
    await bench.weights.send(program.stream.tolist()[: len(program.stream) // 2])
    await bench.load(onbus.start_writes(program, images[0]))
    await ClockCycles(dut.aclk, 50)
    assert await bench.read(STATUS) == [1]
    dut.aresetn.value = 0
    await ClockCycles(dut.aclk, 3)
    bench.weights.clear()
    dut.aresetn.value = 1
    await ClockCycles(dut.aclk, 2)
    assert await bench.read(STATUS) == [0]
    onbus.check(program, images[1], await bench.run(program, images[1]))


@cocotb.test(**onbus.limit())
async def what_is_refused(dut: Any) -> None:
    """Partial writes, addresses of nothing, malformed commands; a write during a run."""
    bench = Bench(dut)
    await bench.start()
    program, images = onbus.streaming()
    await bench.load(program.host_writes())
    place = AT(Region.ACTIVATIONS, 5)
    await bench.load([(place, 0x11111111), (place + 1, 0x22222222)])
    for offset, size in ((0, 1), (0, 3), (1, 3), (3, 1), (1, 2)):
        assert (await bench.lite.write(4 * place + 4 + offset, b"\xff" * size)).resp == AxiResp.SLVERR
    assert await bench.read(place, 2) == [0x11111111, 0x22222222]
    assert (await bench.lite.read(4 * AT(Region.WEIGHTS), 4)).resp == AxiResp.SLVERR
    assert await bench.write(AT(Region.REGISTERS, 0), [1]) == AxiResp.SLVERR

    async def told(*words: int) -> bool:
        await bench.commands.send([*words])
        await bench.commands.send(command(Opcode.READ, place, 2))
        answer, refused = await bench.reply()
        assert answer == [0x11111111, 0x22222222]
        return refused

    write = command(Opcode.WRITE, AT(Region.RESULTS), 2)
    assert not await told(*command(Opcode.WRITE, place, 2), 0x11111111, 0x22222222)
    assert await told(*write, 7, 8)  # no such place to write
    assert not await told(*command(Opcode.READ, place, 0))
    assert await told(*command(Opcode.WRITE, place, 3), 0x11111111, 0x22222222)  # cut off
    assert await told(place)  # half a header
    assert await told(*command(Opcode.WRITE, place, 3))  # no words
    assert await told(3 << 30, 0)  # no such command
    assert await told(*command(Opcode.WRITE, 1 << 29 | place, 2), 7, 8)  # far beyond the address map
    await bench.commands.send(command(Opcode.READ, AT(Region.RESULTS, SPEC.result_depth - 1), 3))
    assert (await bench.reply())[1]
    assert not await told(*command(Opcode.WRITE, place, 0))

    await bench.weights.send(program.stream.tolist()[:-1])
    await bench.load(onbus.start_writes(program, images[0]))
    await ClockCycles(dut.aclk, 20)
    assert await bench.write(place, [3, 4]) == AxiResp.OKAY
    assert await bench.read(ERROR) == [ErrorCode.BUSY]
    await bench.weights.send(program.stream.tolist()[-1:])
    await onbus.interrupted(dut, program)
    assert await bench.read(STATUS) == [0b110]
    assert await bench.write(CONTROL, [STOP]) == AxiResp.OKAY
    assert await bench.read(STATUS) == [0]
    onbus.check(program, images[0], await bench.run(program, images[0]))


@cocotb.test(**onbus.limit())
async def an_access_a_cycle(dut: Any) -> None:
    """Where no model stalls, each bus by itself makes an access in every cycle, but for a few at the ends."""
    bench = Bench(dut)
    await bench.start()
    place, count = AT(Region.ACTIVATIONS), 400

    async def cycles(action: Any) -> float:
        started = get_sim_time("ns")
        await action
        return (get_sim_time("ns") - started) / PERIOD

    async def by_stream() -> list[int]:
        await bench.commands.send([*command(Opcode.WRITE, place, count), *range(count, 2 * count)])
        await bench.commands.send(command(Opcode.READ, place, count))
        return (await bench.reply())[0]

    assert await cycles(bench.write(place, [*range(count)])) < count + 20
    assert await cycles(bench.read(place, count)) < count + 20
    assert await bench.read(place, count) == [*range(count)]
    assert await cycles(by_stream()) < 2 * count + 40
    assert await bench.read(place, count) == [*range(count, 2 * count)]


@cocotb.test(**onbus.limit(onbus.transactions()))
async def random_accesses(dut: Any) -> None:
    """Accesses to anything, from both buses at once: each is answered as the manual says, nothing else changes."""
    bench, rng = Bench(dut), random.Random(5)
    await bench.start()
    program, images = onbus.streaming()
    await bench.load(program.host_writes())
    everything = command(Opcode.READ, AT(Region.ACTIVATIONS), 2 * SPEC.activation_depth)
    await bench.commands.send(everything)
    memories = onbus.Memories((await bench.reply())[0])
    bench.stall(6)

    async def write(address: int) -> None:
        size = rng.choice([4, 4, 4, 1, 2, 3])
        offset = rng.randrange(5 - size)
        data = rng.getrandbits(32)
        good = size == 4 and address in memories.writable
        if good:
            memories.write(address, data)  # writes are made in the order in which they are started
        answer = await bench.lite.write(4 * address + offset, data.to_bytes(4, "little")[offset : offset + size])
        assert answer.resp == (AxiResp.OKAY if good else AxiResp.SLVERR), hex(address)

    async def read(address: int) -> None:
        answer = await bench.lite.read(4 * address, 4)
        assert answer.resp == (AxiResp.OKAY if address in memories.readable else AxiResp.SLVERR), hex(address)
        assert memories.plausible(address, int.from_bytes(answer.data, "little"))

    async def by_stream(commands: int) -> None:
        own = random.Random(7)
        for _ in range(commands):
            first, count = onbus.random_address(own), own.randrange(1, 6)
            refused = any(address not in memories.readable for address in range(first, first + count))
            if own.random() < 0.5:  # to a memory that cannot be written
                write = command(Opcode.WRITE, AT(Region.RESULTS) + first % 256, count)
                await bench.commands.send([*write, *range(count)])
                refused = True
            await bench.commands.send(command(Opcode.READ, first, count))
            answer, told = await bench.reply()
            assert (len(answer), told) == (count, refused), hex(first)
            assert all(memories.plausible(first + index, word) for index, word in enumerate(answer))

    streaming = cocotb.start_soon(by_stream(onbus.transactions() // 8))
    waiting: list[Any] = []
    for _ in range(onbus.transactions()):
        address, kind = onbus.random_address(rng), rng.choice((write, read))
        if kind is read or onbus.harmless(address, program):
            waiting.append(cocotb.start_soon(kind(address)))
        if len(waiting) >= rng.randrange(1, 9):
            while waiting:
                await with_timeout(waiting.pop(), 10_000 * PERIOD, "ns")
    for task in (*waiting, streaming):
        await with_timeout(task, 10_000_000 * PERIOD, "ns")
    await bench.commands.send(everything)
    assert await bench.reply() == (memories.contents, False)
    onbus.check(program, images[0], await bench.run(program, images[0]))
