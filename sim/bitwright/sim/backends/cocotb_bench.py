"""cocotb bench: executes the commands of :mod:`bitwright.sim.backends.commands` on the emitted Verilog.

It runs in the simulator's Python, and is also the program that builds and starts the simulator::

    python -m bitwright.sim.backends.cocotb_bench build SIMULATOR VERILOG FOLDER
    python -m bitwright.sim.backends.cocotb_bench test SIMULATOR VERILOG FOLDER MODULE WORKING

The first builds the simulator of a Verilog file in a folder, the second runs the bench in a Python module on it, in a
working folder, and fails if one of its tests does.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge

from bitwright.hw.accelerator import PROBE_WRITES
from bitwright.sim.backends.commands import END, LAYER_DONE, LAYER_START, LAYER_WRITE, READ, STREAM, WRITE
from bitwright.sim.backends.recorder import PROBED

COMMANDS, RECORDS = "BITWRIGHT_COMMANDS", "BITWRIGHT_RECORDS"
"""Environment variables that name the files."""

BUILD_ARGUMENTS = {
    # cocotb's runner makes every signal visible, which takes ten times as long to compile; benches need the ports.
    "verilator": ["--no-public-flat-rw", "-fno-inline", "-Wno-fatal", "-Wno-lint", "-Wno-style"],
    "icarus": ["-Wno-timescale"],
}

PORTS = '`verilator_config\npublic_flat_rw -module "{top}" -var "*"\n'
"""Verilator's control file, which makes the ports visible."""


class Bench:
    """Drives the host bus and watches the probes.

    Inputs change and outputs are read at the falling edge, when everything that the rising edge did has settled. An
    undefined output has no integer value, and ends the test.

    Parameters
    ----------
    dut
        The accelerator.
    """

    def __init__(self, dut: Any) -> None:
        self.dut = dut
        self.host = {name: getattr(dut, f"host__{name}") for name in ("address", "write_data", "write", "read")}
        self.probe = {
            name: getattr(dut, f"probe__{name}")
            for name in (
                *("cycle", "layer", "layer_start", "layer_done"),
                *("write", "write_raw"),
                *(f"write_{part}__{plane}" for part in ("position", "data") for plane in range(PROBE_WRITES)),
                *PROBED,
            )
        }
        self.records: list[int] = []
        self.stream: list[int] = []

    async def tick(self) -> None:
        """One clock cycle."""
        await FallingEdge(self.dut.clk)

    async def reset(self) -> None:
        """Start the clock and reset the machine; all its outputs have values from then on."""
        for signal in (*self.host.values(), self.dut.weights__valid, self.dut.weights__payload):
            signal.value = 0
        self.dut.rst.value = 1
        self.dut.clk.value = 0
        Clock(self.dut.clk, 10, "ns").start(start_high=False)
        for _ in range(4):
            await self.tick()
        self.dut.rst.value = 0
        await self.tick()
        for signal in (*self.probe.values(), self.dut.host__read_valid, self.dut.interrupt):
            int(signal.value)

    async def write(self, address: int, data: int) -> None:
        """Write to the bus."""
        self.host["address"].value = address
        self.host["write_data"].value = data
        self.host["write"].value = 1
        await self.tick()
        self.host["write"].value = 0

    async def read(self, address: int) -> None:
        """Read from the bus and record the answer."""
        self.host["address"].value = address
        self.host["read"].value = 1
        await self.tick()
        self.host["read"].value = 0
        while not int(self.dut.host__read_valid.value):
            await self.tick()
        self.records.append(int(self.dut.host__read_data.value))

    async def run(self, limit: int, traced: set[int]) -> bool:
        """Watch until the interrupt, at most ``limit`` cycles; returns whether it came."""
        started, done, written = self.probe["layer_start"], self.probe["layer_done"], self.probe["write"]
        streamed = 0
        for _ in range(limit):
            if self.stream:
                left = streamed < len(self.stream)
                self.dut.weights__valid.value = left
                self.dut.weights__payload.value = self.stream[streamed] if left else 0
                streamed += left and int(self.dut.weights__ready.value)
            await self.tick()
            if int(started.value):
                self._record(LAYER_START, "layer", "cycle")
            if (writes := int(written.value)) and int(self.probe["layer"].value) in traced:
                for plane in range(PROBE_WRITES):
                    if writes >> plane & 1:
                        self._record(LAYER_WRITE, "layer", "cycle", "write_raw", f"write_position__{plane}")
                        data = int(self.probe[f"write_data__{plane}"].value)
                        self.records += [data & 0xFFFFFFFF, data >> 32]
            if int(done.value):
                self._record(LAYER_DONE, "layer", "cycle", *PROBED)
            if int(self.dut.interrupt.value):
                self.records += [END, 0]
                return True
        self.records += [END, 1]
        return False

    def _record(self, kind: int, *names: str) -> None:
        self.records += [kind, *(int(self.probe[name].value) for name in names)]

    async def execute(self, words: Iterator[int]) -> None:
        """Execute commands until they end, or a run does not."""
        for kind in words:
            if kind == WRITE:
                await self.write(next(words), next(words))
            elif kind == READ:
                await self.read(next(words))
            elif kind == STREAM:
                self.stream = [next(words) for _ in range(next(words))]
            else:
                limit, count = next(words), next(words)
                if not await self.run(limit, {next(words) for _ in range(count)}):
                    return


@cocotb.test()
async def execute_commands(dut: Any) -> None:
    """Execute the file of commands, write the file of records."""
    bench = Bench(dut)
    await bench.reset()
    await bench.execute(iter(np.fromfile(os.environ[COMMANDS], np.uint32).tolist()))
    np.array(bench.records, np.uint32).tofile(os.environ[RECORDS])


def main(action: str, simulator: str, verilog: str, folder: str, *bench: str) -> None:
    """Build the simulator of a Verilog file in a folder, or run a bench in it."""
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    runner = get_runner(simulator)
    top = Path(verilog).stem
    if action == "build":
        sources = [verilog]
        if simulator == "verilator":
            control = Path(folder) / "ports.vlt"
            control.write_text(PORTS.format(top=top))
            sources.insert(0, str(control))
        runner.build(
            sources=sources,
            hdl_toplevel=top,
            build_args=BUILD_ARGUMENTS[simulator],
            build_dir=folder,
            timescale=("1ns", "1ns"),
        )
    else:
        module, working = bench
        results = runner.test(
            test_module=module,
            hdl_toplevel=top,
            hdl_toplevel_lang="verilog",
            build_dir=folder,
            test_dir=working,
            results_xml=str(Path(working) / "results.xml"),
        )
        tests, failed = get_results(results)
        if failed or not tests:
            sys.exit(f"{failed} of {tests} tests of {module} failed.")


if __name__ == "__main__":
    main(*sys.argv[1:])
