"""Back ends that execute the hardware, all with one interface and the same test vectors."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.sim.execution import Execution


class Backend(Protocol):
    """Executes Programs on one array."""

    name: str

    def run(self, program: Program, images: npt.NDArray[np.uint8], trace: Collection[int] = ()) -> list[Execution]:
        """Run images, a batch at a time; list the writes of the layers in ``trace``."""
        ...


def _pysim(spec: ArraySpec, vcd: Path | None) -> Backend:
    from bitwright.sim.backends.pysim import PysimBackend

    return PysimBackend(spec, vcd)


def _verilator(spec: ArraySpec, vcd: Path | None) -> Backend:
    from bitwright.sim.backends.verilator import VerilatorBackend

    return VerilatorBackend(spec, vcd)


def _netlist_ice40(spec: ArraySpec, vcd: Path | None) -> Backend:
    from bitwright.sim.backends.verilator import VerilatorBackend

    return VerilatorBackend(spec, vcd, family="ice40")


def _netlist_ecp5(spec: ArraySpec, vcd: Path | None) -> Backend:
    from bitwright.sim.backends.verilator import VerilatorBackend

    return VerilatorBackend(spec, vcd, family="ecp5")


def _cocotb(spec: ArraySpec, vcd: Path | None) -> Backend:
    from bitwright.sim.backends.cocotb import CocotbBackend

    return CocotbBackend(spec, vcd)


BACKENDS: dict[str, Callable[[ArraySpec, Path | None], Backend]] = {
    "pysim": _pysim,
    "verilator": _verilator,
    "cocotb": _cocotb,
    "netlist-ice40": _netlist_ice40,
    "netlist-ecp5": _netlist_ecp5,
}
"""Back ends by name. Each is imported when it is asked for: not everybody has every tool."""


def backend(name: str, spec: ArraySpec, vcd: str | Path | None = None) -> Backend:
    """Back end of a name for an array.

    Parameters
    ----------
    name
        One of :data:`BACKENDS`.
    spec
        Array.
    vcd
        Where to write a waveform, if anywhere.
    """
    if name not in BACKENDS:
        raise BitwrightError(f"Unknown back end {name!r}, expected one of {', '.join(BACKENDS)}.")
    return BACKENDS[name](spec, Path(vcd).resolve() if vcd else None)


def simulate(
    program: Program,
    images: npt.NDArray[np.uint8],
    backend_name: str = "verilator",
    trace: Collection[int] = (),
    vcd: str | Path | None = None,
) -> list[Execution]:
    """Execute images in RTL: one execution for each batch."""
    return backend(backend_name, program.spec, vcd).run(program, images, trace)
