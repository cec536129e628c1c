"""From what a simulator shows of the machine's probes to executions."""

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import COUNTERS, ArraySpec, ErrorCode, Region, Register, descriptor_fields
from bitwright.hw.program import Program
from bitwright.sim.execution import Execution, LayerExecution

PROBED = COUNTERS[1:]
"""Counters on the probe: all but ``cycles``."""


class Recorder:
    """Collects one run.

    Parameters
    ----------
    program
        What runs.
    trace
        Layers whose writes are kept.
    """

    def __init__(self, program: Program, trace: Collection[int]) -> None:
        self.program = program
        self.starts: dict[int, int] = {}
        self.layers: list[LayerExecution] = []
        self.totals = dict.fromkeys(PROBED, 0)
        self.writes: dict[int, list[tuple[int, ...]]] = {number: [] for number in trace}

    def layer_start(self, layer: int, cycle: int) -> None:
        """Note the first cycle of a layer."""
        self.starts[layer] = cycle

    def layer_done(self, layer: int, cycle: int, totals: Collection[int]) -> None:
        """Note the last cycle of a layer, with all probed counters."""
        now = dict(zip(PROBED, totals, strict=True))
        share = {name: now[name] - self.totals[name] for name in PROBED}
        self.totals = now
        number = self.program.parts[layer]
        name = self.program.layers[number].name
        self.layers.append(LayerExecution(name, number, self.starts[layer], cycle + 1, share))

    def write(self, layer: int, row: tuple[int, ...]) -> None:
        """Note a write: cycle, raw, position or address, data."""
        if layer in self.writes:
            self.writes[layer].append(row)

    def execution(self, images: int, results: npt.NDArray[np.int64], registers: dict[str, int]) -> Execution:
        """Finish the run.

        Parameters
        ----------
        images
            Images of the run; a batch may have been filled up.
        results
            Result memory, all images of the batch.
        registers
            Error and counter registers.

        Raises
        ------
        BitwrightError
            If the machine stopped with an error.
        """
        if registers["error"]:
            raise BitwrightError(describe_error(self.program, registers["error"]))
        return Execution(
            accumulators=results.reshape(self.program.batch, -1)[:images],
            cycles=registers["cycles"],
            counters={name: registers[name] for name in COUNTERS},
            layers=self.layers,
            writes={layer: np.array(rows, np.int64).reshape(-1, 4) for layer, rows in self.writes.items()}
            if self.writes
            else None,
        )


def describe_error(program: Program, register: int) -> str:
    """Sentence for the value of the error register."""
    code = ErrorCode(register & 0xFFFF)
    field = f" (field {descriptor_fields(program.spec)[register >> 16].name})" if code == ErrorCode.FIELD else ""
    return (
        f"The accelerator stopped with error {code.name}{field}; the Program does not fit the array, compile it again."
    )


READ_BACK = ("error", *COUNTERS)
"""Registers read after a run."""


def read_addresses(program: Program) -> Iterator[int]:
    """Bus addresses to read after a run: the registers of ``READ_BACK``, then the results."""
    derived = program.spec.derived
    for name in READ_BACK:
        yield derived.host_address(Region.REGISTERS, Register[name.upper()])
    for index in range(result_count(program)):
        yield derived.host_address(Region.RESULTS, index)


def result_count(program: Program) -> int:
    """Raw results of one run."""
    return program.parsed[-1].pixels * len(program.output_scale)


def start_write(program: Program) -> tuple[int, int]:
    """Bus write that starts a run."""
    return program.spec.derived.host_address(Region.REGISTERS, Register.CONTROL), 1


def split_read(words: npt.NDArray[np.uint32]) -> tuple[dict[str, int], npt.NDArray[np.int64]]:
    """Registers and results from what :func:`read_addresses` read."""
    registers = dict(zip(READ_BACK, words[: len(READ_BACK)].tolist(), strict=True))
    return registers, words[len(READ_BACK) :].astype(np.int32).astype(np.int64)


def cycle_limit(program: Program) -> int:
    """Cycles after which a run is taken for hung: twice what it takes with nothing skipped, and some."""
    from bitwright.sim.timeline import estimate

    predicted = estimate(program)
    largest = max(predicted.cycles, *predicted.counters.values())
    if largest >> program.spec.counter_width:
        raise BitwrightError(
            f"A run counts up to {largest} of an event, the array's counters have {program.spec.counter_width} bits "
            "(counter_width) and would wrap around; choose a smaller batch or wider counters."
        )
    return 2 * predicted.cycles + 10_000


def probed_data(spec: ArraySpec, data: int, *, raw: bool) -> int:
    """Data of a write as traces hold it: raw results with their sign, 64 row bits as a signed number."""
    width = spec.accumulator_width if raw else 64
    data &= (1 << width) - 1
    return data - (1 << width) if data >> (width - 1) else data


def hung(program: Program) -> str:
    """Sentence for a machine that does not end."""
    return (
        f"The accelerator has not ended after {cycle_limit(program)} cycles; this is a defect of Bitwright, report it."
    )
