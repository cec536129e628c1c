"""Back end: the emitted Verilog or a synthesized netlist, compiled by Verilator with a small C++ harness."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.netlist import NetlistFamily
from bitwright.hw.program import Program
from bitwright.hw.verilog import TOP
from bitwright.sim.backends.commands import decode, encode
from bitwright.sim.backends.source import cache_folder, netlist, verilog
from bitwright.sim.execution import Execution
from bitwright.sim.tools import compiler, make, perl, verilator, verilator_environment

_HARNESS = files("bitwright.sim.backends").joinpath("harness.cpp")
_FLAGS = (
    "-O3",
    "-fno-inline",  # one C++ function for all PEs: a quarter of the compiler's time, and no slower
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
)


class VerilatorBackend:
    """Runs Programs on the compiled Verilog of one array.

    Parameters
    ----------
    spec
        Array.
    vcd
        Also write a waveform there.
    saif
        Instead of a waveform, count toggles: of run ``N`` in the file of that name with ``.N`` added. Bits that are 1
        when the run starts count as toggles of that cycle; another file, with ``.N.start`` added, has these alone.
    family
        Run the netlist that synthesis for this fabric makes, instead of what it is made of.
    """

    def __init__(
        self,
        spec: ArraySpec,
        vcd: Path | None = None,
        saif: Path | None = None,
        family: NetlistFamily | None = None,
    ) -> None:
        self.name = f"netlist-{family}" if family else "verilator"
        self.spec = spec
        self.vcd = vcd
        self.saif = saif
        self._simulator = build(spec, "saif" if saif else "vcd" if vcd else None, family)

    def run(self, program: Program, images: npt.NDArray[np.uint8], trace: Collection[int] = ()) -> list[Execution]:
        """Run images, a batch at a time, in one process: the Program is loaded once.

        Parameters
        ----------
        program
            Compiled for this array.
        images
            ``uint8``, shape (images, channels, height, width).
        trace
            Layers whose writes to list.
        """
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bitwright-")))
            encode(program, images, trace).tofile(folder / "commands")
            arguments: list[str | Path] = [self._simulator, folder / "commands", folder / "records"]
            if self.saif is not None:
                arguments.append(self.saif)
            elif self.vcd is not None:
                arguments.append(stack.enter_context(replacing(self.vcd)))
            ended = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603
            if ended.returncode:
                raise BitwrightError(
                    f"The simulator of the array ended with code {ended.returncode}, "
                    f"saying {ended.stderr.strip() or 'nothing'!r}; is there room on the disk?"
                )
            records = np.fromfile(folder / "records", np.uint32)
        return decode(program, images, trace, records)


def build(spec: ArraySpec, trace: Literal["vcd", "saif"] | None = None, family: NetlistFamily | None = None) -> Path:
    """Compile the simulator of an array, and what it can write of all signals; see :func:`compile_simulator`."""
    text = netlist(spec, family) if family else verilog(spec)
    return compile_simulator(text, TOP, _HARNESS.read_text(), [f"--trace-{trace}"] if trace else [])


def compile_simulator(text: str, top: str, harness: str, options: Sequence[str] = ()) -> Path:
    """Compile Verilog with a C++ program that drives it, unless that was done before; returns the executable.

    Parameters
    ----------
    text
        Verilog.
    top
        Its top module, a class ``Vtop`` in C++.
    harness
        C++ program.
    options
        Of Verilator, beside the usual ones.

    Raises
    ------
    BitwrightError
        If a tool is missing, or the compilation fails.
    """
    for tool in (compiler(), make(), perl()):
        tool.require()
    binary, environment = verilator().require(), verilator_environment()
    options = [*_FLAGS, *options]
    key = hashlib.sha256(
        "\0".join([text, harness, verilator().version, environment["MAKEFLAGS"], *options]).encode()
    ).hexdigest()[:24]
    folder = cache_folder() / "verilator" / key
    if (folder / "simulator").exists():
        return folder / "simulator"
    with replacing(folder) as building:
        building.mkdir()
        (building / f"{top}.v").write_text(text)
        (building / "harness.cpp").write_text(harness)
        command = [binary, "--cc", "--exe", "--build", "-j", str(os.cpu_count() or 1), *options]
        command += ["--top-module", top, "--prefix", "Vtop", "--Mdir", "objects", "-o", "../simulator"]
        ended = subprocess.run(  # noqa: S603
            [*command, f"{top}.v", "harness.cpp"],
            cwd=building,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            lines = [line for line in (ended.stdout + ended.stderr).splitlines() if "rror" in line]
            raise BitwrightError(f"Verilator could not compile the array: {lines[0] if lines else 'no message'}.")
        shutil.rmtree(building / "objects")
    return folder / "simulator"
