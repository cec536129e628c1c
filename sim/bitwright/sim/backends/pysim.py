"""Back end: Amaranth's own simulator. Needs nothing; for tiny arrays."""

from collections.abc import Collection, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from amaranth.sim import Simulator

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.sim.backends import recorder
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
        machine = Accelerator(self.spec)
        executions: list[Execution] = []
        limit = recorder.cycle_limit(program)

        async def testbench(ctx: Any) -> None:
            await _write(ctx, machine, program.host_writes())
            for first in range(0, len(images), program.batch):
                batch = images[first : first + program.batch]
                await _write(ctx, machine, [*program.image_writes(batch), recorder.start_write(program)])
                record = recorder.Recorder(program, trace)
                await _watch(ctx, machine, record, limit)
                words = [await _read(ctx, machine, address) for address in recorder.read_addresses(program)]
                registers, results = recorder.split_read(np.array(words, np.uint32))
                executions.append(record.execution(len(batch), results, registers))

        simulator = Simulator(machine)
        simulator.add_clock(_PERIOD)
        simulator.add_testbench(testbench)
        with simulator.write_vcd(str(self.vcd)) if self.vcd else nullcontext():
            simulator.run()
        return executions


async def _write(ctx: Any, machine: Any, writes: Iterable[tuple[int, int]]) -> None:
    ctx.set(machine.host.write, 1)
    for address, data in writes:
        ctx.set(machine.host.address, address)
        ctx.set(machine.host.write_data, data)
        await ctx.tick()
    ctx.set(machine.host.write, 0)


async def _read(ctx: Any, machine: Any, address: int) -> int:
    ctx.set(machine.host.address, address)
    ctx.set(machine.host.read, 1)
    await ctx.tick()
    ctx.set(machine.host.read, 0)
    while not ctx.get(machine.host.read_valid):
        await ctx.tick()
    return ctx.get(machine.host.read_data)


async def _watch(ctx: Any, machine: Any, record: recorder.Recorder, limit: int) -> None:
    probe, spec = machine.probe, machine.spec
    for _ in range(limit):
        await ctx.tick()
        cycle, layer = ctx.get(probe.cycle), ctx.get(probe.layer)
        if ctx.get(probe.layer_start):
            record.layer_start(layer, cycle)
        if ctx.get(probe.write):
            raw = ctx.get(probe.write_raw)
            data = recorder.probed_data(spec, ctx.get(probe.write_data), raw=bool(raw))
            record.write(layer, (cycle, raw, ctx.get(probe.write_address), ctx.get(probe.write_slot), data))
        if ctx.get(probe.layer_done):
            record.layer_done(layer, cycle, [ctx.get(getattr(probe, name)) for name in recorder.PROBED])
        if ctx.get(machine.interrupt):
            return
    raise BitwrightError(recorder.hung(record.program))
