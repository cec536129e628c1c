"""What the benches of the standard buses share: networks for one array, expected replies, a model of its memories.

It runs in the simulator's Python.
"""

import os
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, ReadOnly, RisingEdge, with_timeout

from bitwright.hw.isa import REGISTER_HELP, Region, Register
from bitwright.hw.program import Program
from bitwright.sim.backends.recorder import cycle_limit, read_addresses, split_read, start_write
from bitwright.sim.golden import execute
from programs import conv, linear, random_images, random_program
from tiny import spec

PERIOD = 10
"""Nanoseconds of a clock cycle."""

SPEC = spec(4, 2, lanes=64, weight_stream=True, weight_depth=8, result_depth=16, zero_skip="skip")
"""Words of two bus words; weights that are streamed; memories that do not fill their part of the address map."""

AT = SPEC.derived.host_address
CONTROL = AT(Region.REGISTERS, Register.CONTROL)
STATUS = AT(Region.REGISTERS, Register.STATUS)
ERROR = AT(Region.REGISTERS, Register.ERROR)
START, STOP = 1, 2

Case = tuple[Program, npt.NDArray[np.uint8]]


def streaming() -> Case:
    """A network with more weights than the array holds, and two runs of it."""
    rng = np.random.default_rng(3)
    program = random_program(rng, SPEC, [conv(9, 2), linear(3)], in_shape=(3, 4, 4), input_bits=2)
    assert len(program.stream)
    return program, random_images(rng, program, 2)


def resident() -> Case:
    """A network whose weights stay; the second one to be loaded."""
    rng = np.random.default_rng(4)
    program = random_program(rng, SPEC, [conv(3, 2, output_planes=1), linear(4)], in_shape=(2, 3, 3), input_bits=2)
    assert not len(program.stream)
    return program, random_images(rng, program, 2)


def readings(program: Program) -> list[int]:
    """Addresses of the registers and results of a run."""
    return list(read_addresses(program))


def check(program: Program, image: npt.NDArray[np.uint8], words: Iterable[int], *, timed: bool = True) -> None:
    """Compare what was read with the golden model's results and counters; cycles and stalls only if ``timed``."""
    registers, results = split_read(np.array(list(words), np.uint32))
    (golden,) = execute(program, image[None])
    assert registers.pop("error") == 0
    expected = golden.counters | {"cycles": golden.cycles}
    if not timed:
        for name in ("cycles", "stalls"):
            assert registers.pop(name) >= expected.pop(name)
    assert registers == expected
    assert results.tolist() == golden.accumulators.ravel().tolist()


def start_writes(program: Program, image: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Writes that load an image and start its run."""
    return [*program.image_writes(image[None]), start_write(program)]


async def interrupted(dut: Any, program: Program) -> None:
    """Wait for the end of a run."""
    clock = dut.aclk if hasattr(dut, "aclk") else dut.clk
    for _ in range(8):  # in which the last run's interrupt goes
        await RisingEdge(clock)
    if not int(dut.interrupt.value):
        await with_timeout(RisingEdge(dut.interrupt), cycle_limit(program) * PERIOD, "ns")


def transactions() -> int:
    """Random accesses to make."""
    return int(os.environ.get("BITWRIGHT_TRANSACTIONS", "300"))


def limit(accesses: int = 0) -> dict[str, Any]:
    """What a test must not take longer than, in simulated time, with its random accesses."""
    return {"timeout_time": (100_000 + 200 * accesses) * PERIOD, "timeout_unit": "ns"}


def stalls(rng: random.Random, share: float) -> Iterator[bool]:
    """Whether to pause, cycle by cycle, in bursts."""
    while True:
        pause = rng.random() < share
        for _ in range(rng.randrange(1, 4)):
            yield pause


async def start_clock(clock: Any, reset: Any, active: int) -> None:
    """Reset and clock from the start; returns after the reset."""
    reset.value = active
    Clock(clock, PERIOD, "ns").start(start_high=False)
    await ClockCycles(clock, 4)
    reset.value = 1 - active
    await ClockCycles(clock, 1)


async def steady(clock: Any, reset: Any, active: int, valid: Any, ready: Any, payload: list[Any]) -> None:
    """Fail if an offer changes or goes before it is taken, or if there is one in a reset."""
    offered: list[int] | None = None
    while True:
        await FallingEdge(clock)
        await ReadOnly()
        in_reset = int(reset.value) == active
        values = [int(signal.value) for signal in payload] if int(valid.value) else None
        if offered is not None and not in_reset:
            assert values == offered, f"{valid._name} or its payload changed before it was taken"
        await RisingEdge(clock)  # what holds at the edge
        values = [int(signal.value) for signal in payload] if int(valid.value) else None
        taken = values is None or int(ready.value)
        offered = None if taken or in_reset else values


# ---------------------------------------------------------------------------------------------------------------------
# Random accesses


class Memories:
    """What accesses should do: which are answered with an error, and what activation memory holds.

    Written from the tables of the manual, apart from the hardware's decoder.

    Parameters
    ----------
    contents
        Activation memory, by bus word.
    """

    def __init__(self, contents: list[int]) -> None:
        self.contents = contents
        self.ever = [{word} for word in contents]
        self.staged = 0
        self.readable = {
            AT(Region.REGISTERS, register) for register, (access, _) in REGISTER_HELP.items() if "r" in access
        }
        self.readable |= {AT(Region.ACTIVATIONS) + word for word in range(len(contents))}
        self.readable |= {AT(Region.RESULTS) + word for word in range(SPEC.result_depth)}
        self.writable = {CONTROL} | {AT(Region.DESCRIPTORS) + word for word in range(SPEC.descriptor_depth)}
        for row in range(SPEC.rows):
            self.writable |= {AT(Region.THRESHOLDS, entry, row) for entry in range(SPEC.threshold_depth)}
            for word in range(SPEC.weight_depth):
                self.writable |= {AT(Region.WEIGHTS, word, row, chunk) for chunk in range(SPEC.derived.chunks)}
        self.writable |= {AT(Region.ACTIVATIONS) + word for word in range(len(contents))}

    def write(self, address: int, data: int) -> None:
        """Note a write that is answered with no error."""
        region, chunk = address >> SPEC.derived.region_width, address % 2
        if region not in (Region.WEIGHTS, Region.ACTIVATIONS):
            return
        if chunk == 0:
            self.staged = data
        elif region == Region.ACTIVATIONS:
            word = address - AT(Region.ACTIVATIONS)
            for place, value in ((word - 1, self.staged), (word, data)):
                self.contents[place] = value
                self.ever[place].add(value)

    def plausible(self, address: int, data: int) -> bool:
        """Whether a read can have given this: it may have come before or after writes under way."""
        word = address - AT(Region.ACTIVATIONS)
        return not 0 <= word < len(self.contents) or data in self.ever[word]


def random_address(rng: random.Random) -> int:
    """Any address, often one at the edge of something."""
    at_random = rng.getrandbits(SPEC.derived.bus_address_width)
    edges = [AT(region) + offset for region in Region for offset in (-1, 0, 1)]
    for window_end in (
        AT(Region.ACTIVATIONS, SPEC.activation_depth - 1, chunk=1),
        AT(Region.RESULTS, SPEC.result_depth - 1),
        AT(Region.DESCRIPTORS, SPEC.descriptor_depth - 1),
        AT(Region.WEIGHTS, SPEC.weight_depth - 1, SPEC.rows - 1, 1),
        AT(Region.THRESHOLDS, SPEC.threshold_depth - 1, SPEC.rows - 1),
        AT(Region.REGISTERS, Register.LOADS),
    ):
        edges += [window_end, window_end + 1]
    active = AT(Region.ACTIVATIONS) + rng.randrange(2 * SPEC.activation_depth)
    return rng.choice([at_random, rng.choice(edges), active, active]) % (1 << SPEC.derived.bus_address_width)


def harmless(address: int, program: Program) -> bool:
    """Whether a write there leaves the program that is loaded, and the machine, as they are."""
    return address not in {CONTROL, *(place for place, _ in program.host_writes())}
