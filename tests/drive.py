"""Testbenches in Amaranth's simulator: a watchdog ends every run, and a failure leaves its waveform."""

import contextlib
import os
import random
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator

from bitwright.hw.isa import READ_LATENCY, ArraySpec, Region, Register, descriptor_fields

PERIOD = 1e-6
WAVEFORMS = Path(__file__).parents[1] / "build" / "waveforms"

Bench = Callable[[Any], Coroutine[Any, Any, None]]


def drive(dut: Elaboratable, *benches: Bench, background: Bench | None = None, max_cycles: int = 10_000) -> None:
    """Simulate until all testbenches but the ``background`` one have ended.

    An exception of a testbench is raised here, after the run has been repeated to record its waveform: what a
    testbench draws at random must be drawn before, or from a generator that it creates.
    """

    async def watchdog(ctx: Any) -> None:
        await ctx.delay(max_cycles * PERIOD)
        raise TimeoutError(f"No end after {max_cycles} cycles.")

    simulator = Simulator(dut)
    simulator.add_clock(PERIOD, if_exists=True)
    for bench in benches:
        simulator.add_testbench(bench)
    for bench in (watchdog, background) if background else (watchdog,):
        simulator.add_testbench(bench, background=True)
    try:
        simulator.run()
    except Exception as error:
        path = _waveform_path()
        simulator.reset()
        with simulator.write_vcd(str(path)), contextlib.suppress(Exception):
            simulator.run()
        error.add_note(f"Waveform: {path}")
        raise


def _waveform_path() -> Path:
    """One file for a test: of a failure that is being reduced, the last and smallest example stays."""
    WAVEFORMS.mkdir(parents=True, exist_ok=True)
    test = os.environ.get("PYTEST_CURRENT_TEST", "failure").split(" ")[0].rsplit("/")[-1]
    return WAVEFORMS / f"{re.sub('[^A-Za-z0-9_.-]+', '-', test)}.vcd"


def header(**fields: int) -> dict[str, int]:
    """Descriptor header: the fields given, and the least of each count and 0 for the rest."""
    defaults = {field.name: max(field.low, 0) for field in descriptor_fields(ArraySpec())}
    unknown = fields.keys() - defaults.keys()
    assert not unknown, unknown
    return defaults | fields


def random_word(rng: random.Random, lanes: int) -> int:
    """Word of random bits, often sparse, full or empty."""
    word = rng.getrandbits(lanes)
    return rng.choice([word, word, word & rng.getrandbits(lanes) & rng.getrandbits(lanes), 0, (1 << lanes) - 1])


def wrap(value: int, width: int) -> int:
    """Two's complement value of the low ``width`` bits."""
    half = 1 << (width - 1)
    return ((value + half) & ((1 << width) - 1)) - half


CONTROLS = ("valid", "clear", "double", "negate")
"""What an accumulator is told with each count."""


def accumulated(total: int, count: int, width: int, *, clear: bool, double: bool, negate: bool) -> int:
    """What an accumulator holds after one more count."""
    base = 0 if clear else 2 * total if double else total
    return wrap(base - count if negate else base + count, width)


class Bus:
    """The host's side of the host bus.

    Parameters
    ----------
    ctx
        Of the testbench.
    spec
        Array.
    port
        The bus.
    """

    def __init__(self, ctx: Any, spec: ArraySpec, port: Any) -> None:
        self.ctx = ctx
        self.at = spec.derived.host_address
        self.port = port

    def request(self, address: int, data: int | None = None) -> None:
        """Put a request on the bus: a write of ``data``, or a read."""
        self.ctx.set(self.port.address, address)
        self.ctx.set(self.port.write_data, data or 0)
        self.ctx.set(self.port.write, data is not None)
        self.ctx.set(self.port.read, data is None)

    def idle(self) -> None:
        """Request nothing."""
        self.ctx.set(self.port.write, 0)
        self.ctx.set(self.port.read, 0)

    async def write(self, address: int, data: int) -> None:
        """Write, and return in the cycle in which the write acts."""
        self.request(address, data)
        await self.ctx.tick()
        self.idle()

    async def read(self, address: int) -> int:
        """Read, and return in the cycle of the answer."""
        self.request(address)
        await self.ctx.tick()
        self.idle()
        await self.ctx.tick().repeat(READ_LATENCY - 1)
        assert self.ctx.get(self.port.read_valid)
        return self.ctx.get(self.port.read_data)

    async def control(self, bits: int) -> None:
        """Write the control register."""
        await self.write(self.at(Region.REGISTERS, Register.CONTROL), bits)

    async def register(self, register: Register) -> int:
        """Read a register."""
        return await self.read(self.at(Region.REGISTERS, register))
