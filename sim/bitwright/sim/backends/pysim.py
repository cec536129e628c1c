"""Back end: Amaranth's own simulator. Needs nothing; for tiny arrays."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.sim import Simulator

from bitwright.hw.accelerator import PROBE_WRITES, Accelerator
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.sim.backends.commands import (
    END,
    LAYER_DONE,
    LAYER_START,
    LAYER_WRITE,
    READ,
    STREAM,
    WRITE,
    decode,
    encode,
)
from bitwright.sim.backends.recorder import PROBED
from bitwright.sim.execution import Execution

_PERIOD = 1e-8  # s


class PysimBackend:
    """Runs Programs on the Amaranth description itself.

    Parameters
    ----------
    spec
        Array.
    vcd
        Also write a waveform there.
    """

    name = "pysim"

    def __init__(self, spec: ArraySpec, vcd: Path | None = None) -> None:
        self.spec = spec
        self.vcd = vcd

    def run(self, program: Program, images: npt.NDArray[np.uint8], trace: Collection[int] = ()) -> list[Execution]:
        """Run images, a batch at a time. See :meth:`bitwright.sim.backends.verilator.VerilatorBackend.run`."""
        commands = encode(program, images, trace).tolist()
        records: list[int] = []
        with ExitStack() as stack:
            waveform = None if self.vcd is None else stack.enter_context(replacing(self.vcd))
            machine = Accelerator(self.spec)

            async def testbench(ctx: Any) -> None:
                bench = _Bench(ctx, machine, records)
                await bench.execute(iter(commands))

            simulator = Simulator(machine)
            simulator.add_clock(_PERIOD)
            simulator.add_testbench(testbench)
            if waveform is not None:
                stack.enter_context(simulator.write_vcd(str(waveform)))
            simulator.run()
        return decode(program, images, trace, np.array(records, np.uint32))


class _Bench:
    """Executes commands and keeps records, as ``harness.cpp`` does."""

    def __init__(self, ctx: Any, machine: Any, records: list[int]) -> None:
        self.ctx, self.host, self.probe, self.interrupt = ctx, machine.host, machine.probe, machine.interrupt
        self.weights = machine.weights
        self.records = records
        self.stream: list[int] = []

    async def execute(self, words: Iterator[int]) -> None:
        for kind in words:
            if kind == WRITE:
                await self._write(next(words), next(words))
            elif kind == READ:
                await self._read(next(words))
            elif kind == STREAM:
                self.stream = [next(words) for _ in range(next(words))]
            else:
                limit, count = next(words), next(words)
                if not await self._run(limit, {next(words) for _ in range(count)}):
                    return

    async def _write(self, address: int, data: int) -> None:
        self.ctx.set(self.host.address, address)
        self.ctx.set(self.host.write_data, data)
        self.ctx.set(self.host.write, 1)
        await self.ctx.tick()
        self.ctx.set(self.host.write, 0)

    async def _read(self, address: int) -> None:
        self.ctx.set(self.host.address, address)
        self.ctx.set(self.host.read, 1)
        await self.ctx.tick()
        self.ctx.set(self.host.read, 0)
        while not self.ctx.get(self.host.read_valid):
            await self.ctx.tick()
        self.records.append(self.ctx.get(self.host.read_data))

    async def _run(self, limit: int, traced: set[int]) -> bool:
        get, probe = self.ctx.get, self.probe
        streamed = 0
        for _ in range(limit):
            if self.stream:
                left = streamed < len(self.stream)
                self.ctx.set(self.weights.valid, left)
                self.ctx.set(self.weights.payload, self.stream[streamed] if left else 0)
                streamed += left and get(self.weights.ready)
            await self.ctx.tick()
            if get(probe.layer_start):
                self._record(LAYER_START, "layer", "cycle")
            if (written := get(probe.write)) and get(probe.layer) in traced:
                for plane in range(PROBE_WRITES):
                    if written >> plane & 1:
                        self._record(LAYER_WRITE, "layer", "cycle", "write_raw")
                        data = get(probe.write_data[plane])
                        self.records += [get(probe.write_position[plane]), data & 0xFFFFFFFF, data >> 32]
            if get(probe.layer_done):
                self._record(LAYER_DONE, "layer", "cycle", *PROBED)
            if get(self.interrupt):
                self.records += [END, 0]
                return True
        self.records += [END, 1]
        return False

    def _record(self, kind: int, *names: str) -> None:
        self.records += [kind, *(self.ctx.get(getattr(self.probe, name)) for name in names)]
