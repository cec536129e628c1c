"""The bench of the cocotb back end. It runs inside the simulator and finds its job in a folder."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

from bitwright.hw.program import Program
from bitwright.sim.backends import recorder


@cocotb.test()
async def execute(dut: Any) -> None:
    """Load the Program, run all images, leave the executions as JSON."""
    folder = Path(os.environ["BITWRIGHT_JOB"])
    trace = json.loads(os.environ["BITWRIGHT_TRACE"])
    program = Program.load(folder / "program.bw")
    images = np.load(folder / "images.npy")
    limit = recorder.cycle_limit(program)

    dut.rst.value = 1
    dut.host__write.value = dut.host__read.value = 0
    dut.host__address.value = dut.host__write_data.value = 0
    Clock(dut.clk, 10, unit="ns").start(start_high=False)
    for _ in range(4):
        await RisingEdge(dut.clk)
    await FallingEdge(dut.clk)
    dut.rst.value = 0
    _check_defined(dut)

    await _write(dut, program.host_writes())
    executions = []
    for first in range(0, len(images), program.batch):
        batch = images[first : first + program.batch]
        await _write(dut, [*program.image_writes(batch), recorder.start_write(program)])
        record = recorder.Recorder(program, trace)
        await _watch(dut, record, limit)
        words = [await _read(dut, address) for address in recorder.read_addresses(program)]
        registers, results = recorder.split_read(np.array(words, np.uint32))
        executions.append(dataclasses.asdict(record.execution(len(batch), results, registers)))
    for execution in executions:
        execution["accumulators"] = execution["accumulators"].tolist()
        if execution["writes"] is not None:
            execution["writes"] = {layer: rows.tolist() for layer, rows in execution["writes"].items()}
    (folder / "executions.json").write_text(json.dumps(executions))


def _check_defined(dut: Any) -> None:
    """After reset no output may be undefined, except data of memories that were never written."""
    for handle in dut:
        name = handle._name
        if name.startswith("probe__") or name == "interrupt":
            assert handle.value.is_resolvable, f"{name} is {handle.value} after reset, expected a number"


# Inputs change, and outputs are looked at, at the falling edge: the middle of a cycle.


async def _write(dut: Any, writes: Iterable[tuple[int, int]]) -> None:
    dut.host__write.value = 1
    for address, data in writes:
        dut.host__address.value = int(address)
        dut.host__write_data.value = int(data)
        await FallingEdge(dut.clk)
    dut.host__write.value = 0


async def _read(dut: Any, address: int) -> int:
    dut.host__address.value = address
    dut.host__read.value = 1
    await FallingEdge(dut.clk)
    dut.host__read.value = 0
    while not dut.host__read_valid.value:
        await FallingEdge(dut.clk)
    return dut.host__read_data.value.to_unsigned()


async def _watch(dut: Any, record: recorder.Recorder, limit: int) -> None:
    spec = record.program.spec
    for _ in range(limit):
        await FallingEdge(dut.clk)
        start, done = dut.probe__layer_start.value, dut.probe__layer_done.value
        write = dut.probe__write.value
        if start or done or write:
            cycle, layer = dut.probe__cycle.value.to_unsigned(), dut.probe__layer.value.to_unsigned()
            if start:
                record.layer_start(layer, cycle)
            if write:
                raw = int(dut.probe__write_raw.value)
                place = dut.probe__write_address.value.to_unsigned(), dut.probe__write_slot.value.to_unsigned()
                data = recorder.probed_data(spec, dut.probe__write_data.value.to_unsigned(), raw=bool(raw))
                record.write(layer, (cycle, raw, *place, data))
            if done:
                totals = [getattr(dut, f"probe__{name}").value.to_unsigned() for name in recorder.PROBED]
                record.layer_done(layer, cycle, totals)
        if dut.interrupt.value:
            return
    raise TimeoutError(recorder.hung(record.program))
