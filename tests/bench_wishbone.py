"""cocotb bench of the accelerator with a Wishbone port.

The master is that of cocotbext-wishbone, as a classic one and as a pipelined one, and one of our own that stalls, gives
cycles up, and puts its next request on the bus without a gap. A checker watches the rules of the standard.
"""

import random
from collections.abc import Iterable
from typing import Any

import cocotb
from cocotb.triggers import ClockCycles, RisingEdge
from cocotbext.wishbone.driver import WBOp, WishboneMaster

import onbus
from bitwright.hw.isa import READ_LATENCY, ErrorCode, Region
from bitwright.hw.program import Program
from onbus import AT, CONTROL, ERROR, SPEC, STATUS, STOP

ACK, ERR = 1, 2


class Classic(WishboneMaster):
    """The package's master, which takes a port with ``stall`` for a pipelined one, without it."""

    _optional_signals = ["sel", "err"]


class Bench:
    """A master and a checker.

    Parameters
    ----------
    dut
        The accelerator.
    master
        Class of the master.
    """

    def __init__(self, dut: Any, master: type[WishboneMaster] = Classic) -> None:
        self.dut = dut
        names = ("cyc", "stb", "we", "adr", "ack")
        signals = {name: name for name in names} | {"datwr": "dat_w", "datrd": "dat_r"}
        self.master = master(dut, "wb", dut.clk, timeout=100, signals_dict=signals)
        self.beats: list[int] = []
        dut.weights_valid.value = 0

    async def start(self) -> None:
        """Clock and reset, checker and weights."""
        await onbus.start_clock(self.dut.clk, self.dut.rst, 1)
        cocotb.start_soon(rules(self.dut))
        cocotb.start_soon(self._feed())

    async def _feed(self) -> None:
        """Offer the weights, always valid."""
        dut = self.dut
        while True:
            dut.weights_valid.value = bool(self.beats)
            dut.weights_payload.value = self.beats[0] if self.beats else 0
            await RisingEdge(dut.clk)
            if int(dut.weights_valid.value) and int(dut.weights_ready.value):
                self.beats.pop(0)

    async def cycle(self, *operations: WBOp) -> list[int]:
        """Operations in one cycle; returns what was read."""
        answers = await self.master.send_cycle(list(operations))
        assert [answer.ack for answer in answers] == [ACK] * len(operations)
        return [int(answer.datrd) for answer in answers]

    async def load(self, writes: Iterable[tuple[int, int]]) -> None:
        """Make writes."""
        await self.cycle(*(WBOp(adr=address, dat=data) for address, data in writes))

    async def run(self, program: Program, image: Any) -> list[int]:
        """Load an image, run and read."""
        self.beats += program.stream.tolist()
        await self.load(onbus.start_writes(program, image))
        await onbus.interrupted(self.dut, program)
        return await self.cycle(*(WBOp(adr=address) for address in onbus.readings(program)))


async def rules(dut: Any) -> None:
    """Fail if an answer breaks a rule of the standard.

    At most one of ACK_O and ERR_O, and only in a cycle with STB_I; not in a reset; and STALL_O holds every request but
    the one that is answered, so that a pipelined master counts as many answers as requests.
    """
    while True:
        await RisingEdge(dut.clk)
        ack, err, stall = int(dut.wb_ack.value), int(dut.wb_err.value), int(dut.wb_stall.value)
        asked = int(dut.wb_cyc.value) and int(dut.wb_stb.value)
        assert not (ack and err)
        if ack or err:
            assert asked, "an answer without a request"
        if asked:
            assert stall == (not (ack or err)), "a request that is taken and not answered, or answered twice"


async def networks(dut: Any, master: type[WishboneMaster]) -> None:
    """Two networks, one loaded over the other, images back to back."""
    bench = Bench(dut, master)
    await bench.start()
    for program, images in (onbus.streaming(), onbus.resident()):
        await bench.load(program.host_writes())
        for image in images:
            onbus.check(program, image, await bench.run(program, image))


@cocotb.test(**onbus.limit())
async def networks_by_a_classic_master(dut: Any) -> None:
    """Without STALL_O."""
    await networks(dut, Classic)


@cocotb.test(**onbus.limit())
async def networks_by_a_pipelined_master(dut: Any) -> None:
    """With STALL_O."""
    await networks(dut, WishboneMaster)


@cocotb.test(**onbus.limit())
async def what_is_refused(dut: Any) -> None:
    """Partial writes, addresses of nothing; a write during a run."""
    bench = Bench(dut)
    await bench.start()
    program, images = onbus.streaming()
    await bench.load(program.host_writes())
    place = AT(Region.ACTIVATIONS, 5)
    await bench.load([(place, 0x11111111), (place + 1, 0x22222222)])
    wrong = [WBOp(adr=place + 1, dat=7, sel=sel) for sel in range(15)]
    wrong += [WBOp(adr=AT(Region.REGISTERS, 0), dat=1), WBOp(adr=AT(Region.WEIGHTS)), WBOp(adr=AT(Region.RESULTS, 99))]
    for operation in wrong:
        (answer,) = await bench.master.send_cycle([operation])
        assert answer.ack == ERR
    assert await bench.cycle(WBOp(adr=place), WBOp(adr=place + 1, sel=1)) == [0x11111111, 0x22222222]

    bench.beats += program.stream.tolist()[:-1]
    await bench.load(onbus.start_writes(program, images[0]))
    await ClockCycles(dut.clk, 20)
    await bench.load([(place, 3), (place + 1, 4)])
    assert await bench.cycle(WBOp(adr=ERROR)) == [ErrorCode.BUSY]
    bench.beats += program.stream.tolist()[-1:]
    await onbus.interrupted(dut, program)
    assert await bench.cycle(WBOp(adr=STATUS)) == [0b110]
    await bench.load([(CONTROL, STOP)])
    assert await bench.cycle(WBOp(adr=STATUS)) == [0]
    onbus.check(program, images[0], await bench.run(program, images[0]))


@cocotb.test(**onbus.limit())
async def reset_in_a_burst(dut: Any) -> None:
    """Reset while a program is loaded, with a request on the bus, and during a run; then all works as at first."""
    bench = Bench(dut)
    await bench.start()
    program, images = onbus.streaming()

    async def reset() -> None:
        dut.rst.value = 1
        await ClockCycles(dut.clk, 3)
        assert not int(dut.wb_ack.value)
        assert not int(dut.wb_err.value)
        dut.rst.value = 0

    bench.beats += program.stream.tolist()[: len(program.stream) // 2]
    for delay in (101, 102, 103):
        burst = cocotb.start_soon(bench.load(program.host_writes()))
        await ClockCycles(dut.clk, delay)
        await reset()
        await burst  # the master has kept its request
    await bench.load(onbus.start_writes(program, images[0]))
    await ClockCycles(dut.clk, 50)
    assert await bench.cycle(WBOp(adr=STATUS)) == [1]
    await reset()
    bench.beats.clear()
    assert await bench.cycle(WBOp(adr=STATUS)) == [0]
    onbus.check(program, images[1], await bench.run(program, images[1]))


@cocotb.test(**onbus.limit(onbus.transactions()))
async def random_accesses(dut: Any) -> None:
    """Accesses to anything, some given up: each is answered as the manual says, nothing else changes."""
    bench, rng = Bench(dut), random.Random(5)
    await bench.start()
    program, images = onbus.streaming()
    await bench.load(program.host_writes())
    everything = [WBOp(adr=AT(Region.ACTIVATIONS) + word) for word in range(2 * SPEC.activation_depth)]
    memories = onbus.Memories(await bench.cycle(*everything))

    async def access(address: int, data: int | None, sel: int, patience: int) -> None:
        """One request, without a gap after the last; given up after ``patience`` cycles without an answer."""
        write = data is not None
        for name, value in (
            ("cyc", 1),
            ("stb", 1),
            ("we", write),
            ("adr", address),
            ("dat_w", data or 0),
            ("sel", sel),
        ):
            getattr(dut, f"wb_{name}").value = value
        good = address in (memories.writable if write else memories.readable) and (sel == 15 or not write)
        if data is not None and good:
            memories.write(address, data)  # in the first cycle: it cannot be given up
        for cycles in range(1, patience + 1):
            await RisingEdge(dut.clk)
            if int(dut.wb_ack.value) or int(dut.wb_err.value):
                assert int(dut.wb_ack.value) == good, hex(address)
                assert cycles == (READ_LATENCY + 1 if data is None and good else 2)
                if data is None and good:
                    assert memories.plausible(address, int(dut.wb_dat_r.value))
                return
        assert patience < 8, f"no answer at {address:#x}"
        dut.wb_stb.value = 0
        await RisingEdge(dut.clk)

    for _ in range(onbus.transactions()):
        address = onbus.random_address(rng)
        write = rng.random() < 0.5 and onbus.harmless(address, program)
        sel = rng.choice([15, 15, 15, rng.randrange(16)])
        await access(address, rng.getrandbits(32) if write else None, sel, rng.choice([1, 2, 3, 8, 8, 8, 8, 8, 8, 8]))
        if rng.random() < 0.3:
            getattr(dut, rng.choice(["wb_cyc", "wb_stb"])).value = 0
            await ClockCycles(dut.clk, rng.randrange(1, 4))
    dut.wb_stb.value = 0
    dut.wb_cyc.value = 0
    assert await bench.cycle(*everything) == memories.contents
    onbus.check(program, images[0], await bench.run(program, images[0]))
