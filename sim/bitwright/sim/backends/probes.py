"""What the hardware shows on its probe, cycle by cycle: simulated with Amaranth's simulator, for tiny arrays."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitwright.hw.program import Program
from bitwright.sim.backends.pysim import PysimBackend

PORTS = ("probe__", "weights__")
"""What the names of the accelerator's ports that are watched begin with."""


def watch(program: Program, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.int64]]:
    """Simulate the first run and watch the probe and the weight stream.

    Parameters
    ----------
    program
        What to run, on an array that Amaranth's simulator can bear.
    images
        ``uint8``, shape (n, channels, height, width).

    Returns
    -------
    values
        Of each signal of the ports, such as ``probe__issue``, in every cycle of the run, from cycle 0 on.
    """
    with tempfile.TemporaryDirectory() as folder:
        waveform = Path(folder) / "run.vcd"
        (run,) = PysimBackend(program.spec, waveform).run(program, images[: program.batch])
        names, samples = _sample(waveform)
    first = int(np.argmax(samples[:, names.index("probe__layer_start")]))
    return dict(zip(names, samples[first : first + run.cycles].T, strict=True))


def _sample(waveform: Path) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Names of the ports' signals, and their values at every falling edge of the clock: in the middle of each cycle.

    Signals of the top module are declared before those of modules inside it; a waveform's changes follow in lines of a
    value and the signal's identifier.
    """
    numbers: dict[str, int] = {}  # of the signal of each identifier
    names: list[str] = []
    values: list[int] = []
    rows: list[list[int]] = []
    clock = ""
    with waveform.open(encoding="utf-8") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == ["$var"]:
                identifier, name = words[3:5]
                if name == "clk":
                    clock = clock or identifier
                elif name.startswith(PORTS) and name not in names:
                    numbers[identifier] = len(names)
                    names.append(name)
                    values.append(0)
            elif line[0] == "b" and words[1] in numbers:
                values[numbers[words[1]]] = int(words[0][1:], 2)
            elif line[0] in "01":
                if words[0][1:] in numbers:
                    values[numbers[words[0][1:]]] = int(line[0])
                elif words[0] == "0" + clock:
                    rows.append(values.copy())
    return names, np.array(rows, np.uint64).astype(np.int64)
