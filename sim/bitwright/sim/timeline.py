"""The cycle model: when each layer starts and ends, what the counters show, when each write happens.

Every cycle of the machine follows from a few recurrences over pixel groups. With, for group ``g``,

- ``scan = columns + activation planes · window words + 2``, the cycles that the scanner takes,
- ``operations[g]``, the operations of a row tile: over its passes, the words listed, at least one,
- ``drain[g]``, the cycles that a row tile takes to drain: valid columns × steps of a column,

the scanner leaves its wait in cycle ``free[g]``, the group is ready in ``ready[g] = free[g] + scan`` and taken in
``take[g]``, and the last operation of its row tile ``t`` is issued in ``last[g, t]``::

    free[g] = max(ready[g-1], take[g-1] + 1)
    take[g] = max(ready[g], last[g-1, tiles-1])
    last[g, 0] = max(take[g] + operations[g], last[g-1, tiles-1] + drain[g-1])
    last[g, t] = last[g, t-1] + max(operations[g], drain[g])

All functions work on many runs of the machine at once; cycles count from the start of the program.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.isa import (
    COUNTERS,
    DRAIN_TO_WRITE,
    ISSUE_TO_LOAD,
    LAYER_TO_RUN,
    RAW_TO_WRITE,
    SCAN_OVERHEAD,
    ArraySpec,
    Descriptor,
)
from bitwright.hw.program import Program
from bitwright.sim.execution import Execution, LayerExecution

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerTiming:
    """One layer on the clock, for a number of runs.

    Parameters
    ----------
    start, end
        First and last cycle, shape (runs,).
    counters
        The layer's share of each counter but ``cycles``, shape (runs,).
    last_issue
        Cycle in which the last operation of each row tile is issued, shape (runs, groups, row tiles).
    """

    start: Ints
    end: Ints
    counters: dict[str, Ints]
    last_issue: Ints


def window_inside(layer: Descriptor) -> npt.NDArray[np.bool_]:
    """Whether each word of each window lies inside the image rather than in the padding.

    Returns
    -------
    ndarray
        Shape (pixels of one image, window words): pixels in the order in which the machine walks them.
    """
    index = np.indices((layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)).reshape(4, -1)
    top = layer.start_y + index[0] * layer.output_y_step + index[2] * layer.pool_y_step
    left = layer.start_x + index[1] * layer.output_x_step + index[3] * layer.pool_x_step
    y = top[:, None] + np.arange(layer.kernel_height) * layer.dilation
    x = left[:, None] + np.arange(layer.kernel_width) * layer.dilation
    y_inside, x_inside = (y >= 0) & (y < layer.input_height), (x >= 0) & (x < layer.input_width)
    inside = y_inside[:, :, None] & x_inside[:, None, :]
    return np.repeat(inside.reshape(len(top), -1), layer.input_words, axis=1)


def layer_timing(
    layer: Descriptor, spec: ArraySpec, start: Ints, nonzero: npt.NDArray[np.bool_] | None = None
) -> LayerTiming:
    """Time one layer.

    Parameters
    ----------
    layer, spec
        Descriptor and array.
    start
        Cycle in which the layer starts, shape (runs,).
    nonzero
        Whether each word of each window has a bit set and lies inside the image, shape (runs, pixels of all images,
        activation planes, window words); only used with zero skip. None counts every word inside the image.
    """
    runs, columns = len(start), spec.columns
    words, planes, tiles = layer.window_words, layer.activation_planes, layer.row_tiles
    groups = -(-layer.pixels // columns)
    valid = np.minimum(columns, layer.pixels - columns * np.arange(groups))

    if nonzero is None or spec.zero_skip == "off":
        inside = np.tile(window_inside(layer), (layer.images, 1))
        nonzero = np.broadcast_to(inside[None, :, None, :], (1, layer.pixels, planes, words))
    padded = np.zeros((len(nonzero), groups * columns, planes, words), bool)
    padded[:, : layer.pixels] = nonzero
    active = padded.reshape(len(nonzero), groups, columns, planes, words)
    lengths = (
        active.any(axis=2).sum(axis=-1) if spec.zero_skip == "skip" else np.full((len(nonzero), groups, planes), words)
    )
    active_words = active.sum(axis=(2, 4))  # runs, groups, planes
    held_words = valid[:, None] * lengths - active_words

    pass_planes = np.array([entry.activation_plane for entry in layer.passes])
    operations = np.maximum(lengths, 1)[:, :, pass_planes].sum(axis=-1)  # runs, groups
    drain = valid * layer.drain_steps(spec)
    scan = columns + planes * words + SCAN_OVERHEAD

    first_last = np.empty((runs, groups), np.int64)
    stalls = np.zeros(runs, np.int64)
    free = start + LAYER_TO_RUN + 1
    last = np.full(runs, np.iinfo(np.int64).min // 2)
    for group in range(groups):
        ready = free + scan
        take = np.maximum(ready, last)
        natural = take + operations[:, group]
        issued = np.maximum(natural, last + drain[group - 1]) if group else natural
        step = np.maximum(operations[:, group], drain[group])
        stalls += issued - natural + (tiles - 1) * (step - operations[:, group])
        first_last[:, group] = issued
        last = issued + (tiles - 1) * step
        free = np.maximum(ready, take + 1)

    steps = np.maximum(operations, drain)[..., None] * np.arange(tiles)
    last_issue = first_last[..., None] + steps
    load = last_issue[:, -1, -1] + ISSUE_TO_LOAD
    after = RAW_TO_WRITE if layer.raw else DRAIN_TO_WRITE + layer.output_planes - 1
    outputs = layer.pixels // layer.pool_area
    per_run = {
        "busy": tiles * operations.sum(axis=1),
        "stalls": stalls,
        "computed": tiles * active_words[:, :, pass_planes].sum(axis=(1, 2)),
        "gated": tiles * held_words[:, :, pass_planes].sum(axis=(1, 2)),
        "skipped": tiles * (words - lengths)[:, :, pass_planes].sum(axis=(1, 2)),
        "compares": np.array(0 if layer.raw else tiles * drain.sum()),
        "writes": np.array(outputs * (layer.channels if layer.raw else tiles * layer.output_planes)),
    }
    counters = {name: np.broadcast_to(value, runs).astype(np.int64) for name, value in per_run.items()}
    return LayerTiming(start, load + drain[-1] + after, counters, last_issue)


def layer_writes(layer: Descriptor, spec: ArraySpec, timing: LayerTiming, run: int, outputs: Ints) -> Ints:
    """List every write of one layer in one run.

    Parameters
    ----------
    layer, spec, timing
        As for :func:`layer_timing`, and its result.
    run
        Which of the runs.
    outputs
        Codes, or raw accumulators, shape (output pixels of all images, channels).

    Returns
    -------
    ndarray
        Shape (writes, 5): cycle, raw (0 or 1), address, slot, data, by cycle. Data is the row tile's bits of a plane,
        row 0 in bit 0, or the raw accumulator.
    """
    columns, rows, tiles = spec.columns, spec.rows, layer.row_tiles
    load = timing.last_issue[run] + ISSUE_TO_LOAD  # groups, tiles
    pixel = np.arange(layer.pool_area - 1, layer.pixels, layer.pool_area)  # windows that complete an output pixel
    group, column = np.divmod(pixel, columns)
    output = np.arange(len(pixel))
    channels = np.zeros((len(pixel), tiles * rows), np.int64)
    channels[:, : layer.channels] = outputs
    base = layer.output_base + output * layer.output_words
    if layer.raw:
        channel = np.arange(layer.channels)
        tile, row = np.divmod(channel, rows)
        cycle = load[group][:, tile] + 1 + RAW_TO_WRITE + column[:, None] * rows + row
        address = base[:, None] + channel
        fields = [cycle, np.ones_like(cycle), address & 0xFFFF, np.zeros_like(cycle), outputs]
    else:
        planes = layer.output_planes
        tile, plane = np.arange(tiles)[:, None], np.arange(planes)
        word, slot = np.divmod(tile, spec.derived.slots)
        compared = load[group][:, :, None] + (column[:, None, None] + 1) * planes
        cycle = compared + DRAIN_TO_WRITE + plane
        address = base[:, None, None] + word + plane * layer.output_plane_stride
        bits = channels.reshape(len(pixel), tiles, 1, rows) >> plane[:, None] & 1
        data = (bits << np.arange(rows)).sum(axis=-1)
        fields = [cycle, np.zeros_like(cycle), address & 0xFFFF, np.broadcast_to(slot, cycle.shape), data]
    table = np.stack([field.ravel() for field in fields], axis=1)
    return table[np.argsort(table[:, 0], kind="stable")]


def run(
    program: Program,
    runs: int,
    nonzero: Callable[[int], npt.NDArray[np.bool_] | None] = lambda layer: None,
    outputs: Callable[[int], npt.NDArray[Any]] | None = None,
    trace: Collection[int] = (),
) -> list[Execution]:
    """Time all layers of a number of runs; their ``accumulators`` stay empty.

    Parameters
    ----------
    program
        What runs.
    runs
        Number of runs, each of one batch.
    nonzero
        Gives for the number of a layer what :func:`layer_timing` takes. Only asked with zero skip.
    outputs
        Gives for the number of a layer its codes or raw results, shape (runs, output pixels of all images, channels).
        Only asked for traced layers.
    trace
        Numbers of the layers whose writes are listed.
    """
    spec = program.spec
    start = np.zeros(runs, np.int64)
    executions = [
        Execution(np.empty((0, 0), np.int64), 0, dict.fromkeys(COUNTERS, 0), [], writes={} if trace else None)
        for _ in range(runs)
    ]
    for number, (info, layer) in enumerate(zip(program.layers, program.parsed, strict=True)):
        timing = layer_timing(layer, spec, start, None if spec.zero_skip == "off" else nonzero(number))
        start = timing.end + 1
        for index, execution in enumerate(executions):
            share = {name: int(values[index]) for name, values in timing.counters.items()}
            execution.layers.append(LayerExecution(info.name, int(timing.start[index]), int(start[index]), share))
            execution.cycles = execution.counters["cycles"] = int(start[index])
            for name, value in share.items():
                execution.counters[name] += value
            if execution.writes is not None and outputs is not None and number in trace:
                execution.writes[number] = layer_writes(layer, spec, timing, index, outputs(number)[index])
    return executions
