"""The files between Bitwright and a simulator that is a process of its own: commands in, records out.

Both are sequences of 32-bit words, little endian; ``harness.cpp`` and ``cocotb_bench.py`` execute them alike::

    commands   0 address data            write
               1 address                 read
               2 limit count layers...   run to the interrupt, at most `limit` cycles, with these layers' writes
               3 count words...          what the weight stream offers, always valid, from the start of each run
    records    1 layer cycle             first cycle of a layer (here and below: of a descriptor)
               2 layer cycle counters... last cycle of a layer
               3 layer cycle raw position data data_high
               0 reason                  end of a run: 0 interrupt, 1 limit
               data                      of each read, in order
"""

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.program import Program
from bitwright.sim.backends import recorder
from bitwright.sim.execution import Execution

WRITE, READ, RUN, STREAM = range(4)
"""Kinds of commands."""

END, LAYER_START, LAYER_DONE, LAYER_WRITE = range(4)
"""Kinds of records."""


def encode(program: Program, images: npt.NDArray[np.uint8], trace: Collection[int]) -> npt.NDArray[np.uint32]:
    """Commands that load a Program once, then for each batch load its images, run, and read registers and results."""
    start = [*_writes([recorder.start_write(program)]), RUN, recorder.cycle_limit(program), len(trace), *sorted(trace)]
    reads = [word for address in recorder.read_addresses(program) for word in (READ, address)]
    after = np.array([*start, *reads], np.uint32)
    parts = [_writes(program.host_writes()), np.array([STREAM, len(program.stream)], np.uint32), program.stream]
    for batch in batches(program, images):
        parts += [_writes(program.image_writes(batch)), after]
    return np.concatenate(parts)


def batches(program: Program, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    """Images of each run."""
    return [images[first : first + program.batch] for first in range(0, len(images), program.batch)]


def decode(
    program: Program, images: npt.NDArray[np.uint8], trace: Collection[int], records: npt.NDArray[np.uint32]
) -> list[Execution]:
    """Executions from the records of :func:`encode`'s commands.

    Raises
    ------
    BitwrightError
        If the machine did not end, or stopped with an error.
    """
    executions: list[Execution] = []
    words = iter(records.tolist())

    def take(count: int) -> list[int]:
        return [next(words) for _ in range(count)]

    reads = len(recorder.READ_BACK) + recorder.result_count(program)
    for batch in batches(program, images):
        record = recorder.Recorder(program, trace)
        while kind := next(words):
            if kind == LAYER_START:
                record.layer_start(*take(2))
            elif kind == LAYER_DONE:
                layer, cycle, *totals = take(2 + len(recorder.PROBED))
                record.layer_done(layer, cycle, totals)
            else:
                layer, cycle, raw, position, low, high = take(6)
                data = recorder.probed_data(program.spec, low | high << 32, raw=bool(raw))
                record.write(layer, (cycle, raw, position, data))
        if next(words):
            raise BitwrightError(recorder.hung(program))
        registers, results = recorder.split_read(np.array(take(reads), np.uint32))
        executions.append(record.execution(len(batch), results, registers))
    return executions


def _writes(pairs: Iterable[tuple[int, int]]) -> npt.NDArray[np.uint32]:
    return np.fromiter((word for address, data in pairs for word in (WRITE, address, data)), np.uint32)
