"""Back end: the emitted Verilog, compiled by Verilator with a small C++ harness."""

import hashlib
import os
import subprocess
from collections.abc import Collection, Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.hw.verilog import TOP
from bitwright.sim.backends import recorder
from bitwright.sim.backends.source import cache_folder, verilog
from bitwright.sim.execution import Execution
from bitwright.sim.tools import compiler, make, perl, verilator, verilator_environment

_HARNESS = files("bitwright.sim.backends").joinpath("harness.cpp")
_FLAGS = ("-O3", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-CFLAGS", "-O2")

# Record kinds of harness.cpp, and the words that follow each.
_END, _LAYER_START, _LAYER_DONE, _WRITE = range(4)


class VerilatorBackend:
    """Runs Programs on the compiled Verilog of one array.

    Parameters
    ----------
    spec
        Array.
    vcd
        Also write a waveform there.
    """

    name = "verilator"

    def __init__(self, spec: ArraySpec, vcd: Path | None = None) -> None:
        self.spec = spec
        self.vcd = vcd
        self._simulator = build(spec, trace=vcd is not None)

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
        commands: list[npt.NDArray[np.uint32]] = [_writes(program.host_writes())]
        reads = np.array([(1, address) for address in recorder.read_addresses(program)], np.uint32).ravel()
        start = np.array(
            [0, *recorder.start_write(program), 2, recorder.cycle_limit(program), len(trace), *sorted(trace)], np.uint32
        )
        batches = [images[first : first + program.batch] for first in range(0, len(images), program.batch)]
        for batch in batches:
            commands += [_writes(program.image_writes(batch)), start, reads]
        with replacing(cache_folder() / "run" / f"{os.getpid()}") as folder:
            folder.mkdir()
            (folder / "commands").write_bytes(np.concatenate(commands).tobytes())
            arguments = [self._simulator, folder / "commands", folder / "records"]
            if self.vcd is not None:
                arguments.append(self.vcd)
            ended = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603
            if ended.returncode:
                raise BitwrightError(
                    f"The simulator of the array ended with code {ended.returncode}, "
                    f"saying {ended.stderr.strip() or 'nothing'!r}; is there room on the disk?"
                )
            records = np.fromfile(folder / "records", np.uint32)
        return _executions(program, batches, trace, records)


def _writes(pairs: Iterable[tuple[int, int]]) -> npt.NDArray[np.uint32]:
    return np.fromiter((word for address, data in pairs for word in (0, address, data)), np.uint32)


def _executions(
    program: Program,
    batches: list[npt.NDArray[np.uint8]],
    trace: Collection[int],
    records: npt.NDArray[np.uint32],
) -> list[Execution]:
    executions: list[Execution] = []
    position = 0
    reads = len(recorder.READ_BACK) + recorder.result_count(program)
    for batch in batches:
        record = recorder.Recorder(program, trace)
        while (kind := int(records[position])) != _END:
            if kind == _LAYER_START:
                record.layer_start(*records[position + 1 : position + 3].tolist())
                position += 3
            elif kind == _LAYER_DONE:
                layer, cycle, *totals = records[position + 1 : position + 3 + len(recorder.PROBED)].tolist()
                record.layer_done(layer, cycle, totals)
                position += 3 + len(recorder.PROBED)
            else:
                layer, cycle, raw, address, slot, low, high = records[position + 1 : position + 8].tolist()
                data = recorder.probed_data(program.spec, low | high << 32, raw=bool(raw))
                record.write(layer, (cycle, raw, address, slot, data))
                position += 8
        if records[position + 1]:
            raise BitwrightError(recorder.hung(program))
        position += 2
        registers, results = recorder.split_read(records[position : position + reads])
        executions.append(record.execution(len(batch), results, registers))
        position += reads
    return executions


def build(spec: ArraySpec, *, trace: bool = False) -> Path:
    """Compile the simulator of an array, unless that was done before; returns the executable.

    Raises
    ------
    BitwrightError
        If a tool is missing, or the compilation fails.
    """
    for tool in (compiler(), make(), perl()):
        tool.require()
    binary, environment = verilator().require(), verilator_environment()
    text, harness = verilog(spec), _HARNESS.read_text()
    options = [*_FLAGS, *(["--trace-vcd"] if trace else [])]
    key = hashlib.sha256("\0".join([text, harness, verilator().version, *options]).encode()).hexdigest()[:24]
    folder = cache_folder() / "verilator" / key
    if (folder / "simulator").exists():
        return folder / "simulator"
    with replacing(folder) as building:
        building.mkdir()
        (building / f"{TOP}.v").write_text(text)
        (building / "harness.cpp").write_text(harness)
        command = [binary, "--cc", "--exe", "--build", "-j", str(os.cpu_count() or 1), *options]
        command += ["--top-module", TOP, "--prefix", "Vtop", "--Mdir", "objects", "-o", "../simulator"]
        ended = subprocess.run(  # noqa: S603
            [*command, f"{TOP}.v", "harness.cpp"],
            cwd=building,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            lines = [line for line in (ended.stdout + ended.stderr).splitlines() if "rror" in line]
            raise BitwrightError(f"Verilator could not compile the array: {lines[0] if lines else 'no message'}.")
    return folder / "simulator"
