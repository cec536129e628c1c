"""Back end: the emitted Verilog under cocotb, watched cycle by cycle from Python.

Simulated by Verilator, or by Icarus where there is no Verilator: slower to run, but without a build.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.hw.verilog import TOP
from bitwright.sim.backends.source import cache_folder, verilog
from bitwright.sim.execution import Execution, LayerExecution
from bitwright.sim.tools import icarus, verilator, verilator_environment

_VERILATOR_FLAGS = ["-Wno-fatal", "-Wno-lint", "-Wno-style"]


class CocotbBackend:
    """Runs Programs on the emitted Verilog of one array, with its bus driven by cocotb.

    Parameters
    ----------
    spec
        Array.
    vcd
        Also write a waveform there.
    simulator
        ``verilator`` or ``icarus``; None takes the first that is installed.
    """

    name = "cocotb"

    def __init__(self, spec: ArraySpec, vcd: Path | None = None, simulator: str | None = None) -> None:
        self.spec = spec
        self.vcd = vcd
        self.simulator = simulator or ("verilator" if verilator().path else "icarus")
        (verilator if self.simulator == "verilator" else icarus)().require()

    def run(self, program: Program, images: npt.NDArray[np.uint8], trace: Collection[int] = ()) -> list[Execution]:
        """Run images, a batch at a time. See :meth:`bitwright.sim.backends.verilator.VerilatorBackend.run`."""
        from cocotb_tools.runner import get_runner

        text = verilog(self.spec)
        environment = verilator_environment() if self.simulator == "verilator" else dict(os.environ)
        key = hashlib.sha256(f"{self.simulator}{self.vcd is not None}{text}".encode()).hexdigest()[:24]
        build = cache_folder() / "cocotb" / key
        with replacing(cache_folder() / "run" / f"cocotb-{os.getpid()}") as folder, _environment(environment):
            folder.mkdir()
            program.save(folder / "program.bw")
            np.save(folder / "images.npy", images)
            (folder / f"{TOP}.v").write_text(text)
            runner = get_runner(self.simulator)
            runner.build(
                sources=[folder / f"{TOP}.v"],
                hdl_toplevel=TOP,
                build_dir=build,
                timescale=("1ns", "1ps"),
                waves=self.vcd is not None,
                build_args=_VERILATOR_FLAGS if self.simulator == "verilator" else [],
                log_file=folder / "build.log",
            )
            runner.test(
                hdl_toplevel=TOP,
                test_module="bitwright.sim.backends.cocotb_bench",
                test_dir=folder,
                build_dir=build,
                waves=self.vcd is not None,
                results_xml=str(folder / "results.xml"),
                log_file=folder / "test.log",
                extra_env={
                    "BITWRIGHT_JOB": str(folder),
                    "BITWRIGHT_TRACE": json.dumps(sorted(trace)),
                    "PYTHONPATH": os.pathsep.join([*_source_roots(), os.environ.get("PYTHONPATH", "")]),
                },
            )
            result = folder / "executions.json"
            if not result.exists():
                lines = [line for line in (folder / "test.log").read_text().splitlines() if "Error" in line]
                raise BitwrightError(f"The cocotb bench failed: {lines[-1].strip() if lines else 'no message'}.")
            if self.vcd is not None:
                self._keep_waveform(folder)
            return [_execution(values) for values in json.loads(result.read_text())]

    def _keep_waveform(self, folder: Path) -> None:
        found = [path for path in folder.iterdir() if path.suffix in (".vcd", ".fst")]
        if not found or self.vcd is None:
            raise BitwrightError("The simulator wrote no waveform; run without one, or with another back end.")
        with replacing(self.vcd.with_suffix(found[0].suffix)) as temporary:
            temporary.write_bytes(found[0].read_bytes())


def _execution(values: dict[str, Any]) -> Execution:
    """Execution from the bench's JSON."""
    values["accumulators"] = np.array(values["accumulators"], np.int64)
    values["layers"] = [LayerExecution(**layer) for layer in values["layers"]]
    if values["writes"] is not None:
        writes = values["writes"].items()
        values["writes"] = {int(layer): np.array(rows, np.int64).reshape(-1, 5) for layer, rows in writes}
    return Execution(**values)


def _source_roots() -> list[str]:
    """Folders that hold the parts of the package: the simulator's Python may not see an uninstalled one."""
    import bitwright

    return [str(Path(root).parent) for root in bitwright.__path__]


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set this process's environment for a while: the runner finds its tools through it."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
