"""The cycle model: when each part starts and ends, what the counters show, when each write happens, where cycles go.

A *part* is what one descriptor computes: a layer or some of its row tiles. Every cycle of the machine follows from a
few recurrences over pixel groups. With, for group ``g`` of a part whose start pulse is in cycle ``X``,

- ``loads``, the cycles in which a group's windows are read, one group like the other,
- ``operations[g]``, the operations of a row tile: the words listed, over its passes, and those that only double,
- ``drain[g]``, the cycles that a row tile takes to drain: :meth:`Descriptor.drain_cycles` of its valid columns,
- ``loading``, the cycles from a group's first read until it is ready, if nothing else holds that up:
  :meth:`Descriptor.ready_cycles`,

the first read is issued in cycle ``load[g]``, the group is ready, its passes scheduled, in ``ready[g]`` and taken in
``take[g]``, and the last operation of its row tile ``t`` is issued in ``last[g, t]``::

    load[g] = max(load[g-1] + loads + columns, last[g-2, tiles-1] + 1)          load[0] = X + columns + 1
    ready[g] = max(load[g] + loading, take[g-1] + passes + SCHEDULE_END)      where words are skipped
    ready[g] = max(load[g] + loading, X + passes + SCHEDULE_OVERHEAD)         where they are not
    take[g] = max(ready[g], last[g-1, tiles-1])
    last[g, 0] = max(take[g] + operations[g], last[g-1, tiles-1] + drain[g-1])
    last[g, t] = last[g, t-1] + max(operations[g], drain[g])

So a group keeps its half of the buffers from its first read to its last operation, and where words are skipped its
first pass is listed after the group before was taken. Terms of groups that there are not do not count.

Parts follow each other. With ``fetch[k]`` the cycle in which the fetch of part ``k``'s header starts, ``stream[k]`` the
cycles in which its weights come in, if any, and ``end[k]`` its last cycle::

    start[k] = max(fetch[k] + HEADER_TO_READY + stream[k], end[k-1] + 1)
    X[k] = start[k] + 1        fetch[0] = 0        fetch[k+1] = X[k], or end[k] + 1 without prefetch

All functions work on many runs of the machine at once; cycles count from the start of the program. Arrays have a first
axis of one entry instead of one a run where nothing depends on data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitwright.hw.isa import (
    COUNTERS,
    DRAIN_TO_WRITE,
    GRANULE,
    HEADER_TO_READY,
    SCHEDULE_END,
    SCHEDULE_OVERHEAD,
    ArraySpec,
    Descriptor,
    ZeroSkip,
    granules_of,
)
from bitwright.hw.plan import Plan
from bitwright.hw.program import Program
from bitwright.sim.execution import Execution, LayerExecution

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint8]

ACCOUNT: tuple[str, ...] = (
    "computing",
    "lane_padding",
    "array_padding",
    "doubling",
    "drain",
    "load",
    "weight_stream",
    "start",
    "end",
)
"""What the cycles of a part are spent on.

``computing``: products of a weight bit and an activation bit of the network. ``lane_padding``: lanes of computed words
that hold nothing of the network, or channels of another group. ``array_padding``: rows without a channel and columns
without a window, while others compute. ``doubling``: operations without a word. ``drain``: a row tile's last operation
waits for the drain of the one before. ``load``: the array waits for windows. ``weight_stream``: the part waits for its
weights. ``start``: until its first operation, else. ``end``: after its last operation.
"""


# ---------------------------------------------------------------------------------------------------------------------
# What a part is asked to do


@dataclass(frozen=True)
class Work:
    """What the pixel groups of a part ask of the array.

    Parameters
    ----------
    words
        Operations on a word, of each row tile, shape (runs, groups).
    doublings
        Operations that only double, of each row tile, shape (runs, groups).
    computed, gated
        Words of columns that one row tile computes and holds still, over all passes, shape (runs,).
    useful
        Bit products of the network, over all row tiles and columns, shape (runs,).
    """

    words: Ints
    doublings: Ints
    computed: Ints
    gated: Ints
    useful: Ints

    @classmethod
    def join(cls, works: Sequence["Work"], zero_skip: ZeroSkip) -> "Work":
        """Work of some runs and of others, of a layer that does this with words of zeros."""
        by_run = {"off": (), "gate": ("computed", "gated"), "skip": tuple(vars(works[0]))}[zero_skip]
        return replace(works[0], **{name: np.concatenate([getattr(work, name) for work in works]) for name in by_run})


def window_inside(layer: Descriptor, spec: ArraySpec) -> npt.NDArray[np.bool_]:
    """Whether each word of a plane of each window holds something of the image, rather than padding only.

    Returns
    -------
    ndarray
        Shape (words, windows of one image): windows in the order in which the machine walks them.
    """
    index = np.indices((layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)).reshape(4, -1)
    top = layer.start_y + index[0] * layer.output_y_rows + index[2] * layer.pool_y_rows
    left = layer.start_x + index[1] * layer.output_x_step + index[3] * layer.pool_x_step
    y = top[:, None] + np.arange(layer.kernel_height) * layer.tap_y_rows
    taps = np.add.outer(np.arange(layer.kernel_width) * layer.tap_x_step, np.arange(layer.run_granules))
    x = left[:, None] + taps.reshape(-1)
    y_inside, x_inside = (y >= 0) & (y < layer.input_height), (x >= 0) & (x < layer.input_width)
    inside = (y_inside[:, :, None] & x_inside[:, None, :]).reshape(len(top), -1)
    granules = spec.derived.granules
    filled = np.pad(inside, [(0, 0), (0, -inside.shape[1] % granules)])
    return np.any(filled.reshape(len(top), -1, granules), axis=-1).T


def dense_words(layer: Descriptor, spec: ArraySpec) -> list[Words]:
    """Activity of the words of one run, as :func:`part_work` takes it, where no code inside the images is zero."""
    inside = np.tile(window_inside(layer, spec), layer.images)[:, None]
    words = [inside * np.uint8((1 << layer.activation_planes) - 1)]
    if layer.residual_planes:
        shape = (layer.residual_words(spec), 1, layer.pixels)
        words.append(np.full(shape, (1 << layer.residual_planes) - 1, np.uint8))
    return words


def pass_doublings(layer: Descriptor, listed: int) -> int:
    """Operations of a row tile that only double, if these bits of the codes, by ``Descriptor.code_bit``, have words.

    Passes of the other planes are dropped, and their doublings left to the next one: the first operation of a pass
    doubles too, but only once, and what is left at the end takes an operation each. A tile has at least one operation.
    """
    return _doublings(tuple((entry.doubles, layer.code_bit(entry.plane)) for entry in layer.passes), listed)


@lru_cache(maxsize=1 << 16)
def _doublings(passes: tuple[tuple[int, int], ...], listed: int) -> int:
    """The same for the doublings and code bit of each pass."""
    pending = operations = 0
    started = False
    for doubles, bit in passes:
        pending += doubles
        if listed >> bit & 1:
            operations += max(0, pending - 1) if started else 0
            started, pending = True, 0
    return operations + pending if started else 1


def part_work(layer: Descriptor, spec: ArraySpec, useful: Sequence[Ints], active: Sequence[Words] | None) -> Work:
    """What the groups of a part ask of the array.

    Parameters
    ----------
    layer, spec
        Descriptor and array.
    useful
        From :func:`useful_lanes`.
    active
        Which planes of each word are not zero, plane ``j`` in bit ``j``: ``uint8``, shape (words of a plane, runs,
        windows of all images), of the input and, if there is one, of the residual addend. None for arrays without zero
        skip.
    """
    columns = spec.columns
    groups = -(-layer.pixels // columns)
    valid = np.minimum(columns, layer.pixels - columns * np.arange(groups))
    # How many passes read each bit of the codes.
    counts = np.bincount([layer.code_bit(entry.plane) for entry in layer.passes], minlength=16)
    first = layer.activation_planes
    operands = [counts[:first], counts[first : first + layer.residual_planes]][: len(useful)]

    if layer.zero_skip(spec) != "skip" or active is None:
        whole = sum(int(passes.sum()) * len(lanes) for passes, lanes in zip(operands, useful, strict=True))
        products = sum(int(passes.sum() * lanes.sum()) for passes, lanes in zip(operands, useful, strict=True))
        computed = np.array([layer.pixels * whole])
        if active is not None and layer.zero_skip(spec) == "gate":
            pairs = zip(active, operands, strict=True)
            computed = np.sum([_weigh(*pair).sum((0, 2), dtype=np.int64) for pair in pairs], axis=0)
        return Work(
            np.full((1, groups), whole),
            np.full((1, groups), pass_doublings(layer, -1)),
            computed,
            layer.pixels * whole - computed,
            np.array([layer.pixels * products]),
        )

    runs = active[0].shape[1]
    words = np.zeros((runs, groups), np.int64)
    products = np.zeros((runs, groups), np.int64)
    computed = np.zeros(runs, np.int64)
    listed_planes = np.zeros((runs, groups), np.int64)
    first = 0
    for each, passes, lanes in zip(active, operands, useful, strict=True):
        computed += _weigh(each, passes).sum((0, 2), dtype=np.int64)
        listed = _or_columns(each, columns)
        number = _weigh(listed, passes)
        words += number.sum(0, dtype=np.int64)
        products += np.tensordot(lanes, number, 1)
        listed_planes |= np.bitwise_or.reduce(listed).astype(np.int64) << first
        first += len(passes)
    counts = np.bincount(listed_planes.reshape(-1))
    steps = tuple((entry.doubles, layer.code_bit(entry.plane)) for entry in layer.passes)
    table = np.array([_doublings(steps, planes) if count else 0 for planes, count in enumerate(counts.tolist())])
    return Work(words, table[listed_planes], computed, (words * valid).sum(1) - computed, (products * valid).sum(1))


def _or_columns(active: Words, columns: int) -> Words:
    """Planes of each word that are not zero in some column, shape (words, runs, groups)."""
    words, runs, pixels = active.shape
    whole = pixels // columns * columns
    # As many columns as fit an integer at once.
    size = min(8, columns & -columns)
    grouped = np.ascontiguousarray(active[..., :whole]).view(f"u{size}").reshape(words, runs, -1, columns // size)
    listed = np.bitwise_or.reduce(grouped, axis=-1) if columns > size else grouped[..., 0]
    while size > 1:
        size //= 2
        listed = listed | listed >> listed.dtype.type(8 * size)
    listed = listed.astype(np.uint8)
    if whole == pixels:
        return listed
    return np.concatenate([listed, np.bitwise_or.reduce(active[..., whole:], axis=-1, keepdims=True)], axis=-1)


def _weigh(planes: Words, passes: Ints) -> npt.NDArray[np.integer[Any]]:
    """In how many passes the words of these planes are read, given how many read each plane; shape as ``planes``."""
    numbers = np.unique(passes[passes > 0]).tolist()
    total: npt.NDArray[np.integer[Any]] = np.zeros((), np.uint8)
    for number in numbers:
        mask = sum(1 << plane for plane in np.flatnonzero(passes == number).tolist())
        # At most 8 planes in 8 passes each.
        total = total + np.bitwise_count(planes & np.uint8(mask)) * np.uint8(number)
    return np.broadcast_to(total, planes.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Lanes that count


def useful_lanes(network: Program | Plan, number: int) -> list[Ints]:
    """Lanes of each word of a window plane that hold something of the network, summed over a part's channels.

    Parameters
    ----------
    network
        Program or plan.
    number
        Of the part.

    Returns
    -------
    lanes
        Shape (words of a plane,): of the input and, if there is one, of the residual addend.
    """
    layers, parts = _parts(network)
    layer, info, spec = layers[number], network.layers[parts[number]], network.spec
    first = sum(layers[other].channels for other in range(number) if parts[other] == parts[number])
    stored = _stored_channels(network, info.source)
    # Channel of the input that each lane of a run holds.
    granule = (layer.start_x + np.arange(layer.run_granules)) % granules_of(stored)
    channel = (granule[:, None] * GRANULE + np.arange(GRANULE)).reshape(-1)
    group = np.arange(first, first + layer.channels) // (info.conv_shape[0] // info.groups)
    used = np.zeros(len(channel), np.int64)
    per_group = stored // info.groups
    for index, rows in zip(*np.unique(group, return_counts=True), strict=True):
        used += rows * ((channel >= index * per_group) & (channel < (index + 1) * per_group))
    lanes = [np.tile(used, layer.kernel_height * layer.kernel_width)]
    if info.residual_source is not None:
        channel = np.arange(layer.residual_granules * GRANULE)
        lanes.append(layer.channels * (channel < _stored_channels(network, info.residual_source)))
    return [np.pad(each, (0, -len(each) % spec.lanes)).reshape(-1, spec.lanes).sum(1) for each in lanes]


def _stored_channels(network: Program | Plan, source: int) -> int:
    return network.layers[source].conv_shape[0] if source >= 0 else network.input.stored_shape[2]


def _parts(network: Program | Plan) -> tuple[Sequence[Descriptor], Sequence[int]]:
    """Descriptors, and the number of each one's layer."""
    if isinstance(network, Program):
        return network.parsed, network.parts
    return network.descriptors, [part.layer for part in network.parts]


# ---------------------------------------------------------------------------------------------------------------------
# One part on the clock


@dataclass(frozen=True)
class PartTiming:
    """One part on the clock; cycles count from its start pulse.

    Parameters
    ----------
    take
        Cycle in which the first group is taken: its first operation is issued in the next one.
    loads, takes
        Cycle of the first read of each group's windows, and that in which it is taken, shape (runs, groups).
    last_issue
        Cycle in which the last operation of each group's first row tile is issued, shape (runs, groups).
    tile_cycles
        Cycles from row tile to row tile, shape (runs, groups).
    stalls, waits
        Cycles in which a row tile's last operation waits for the drain, and in which there is no group to compute,
        shape (runs,).
    last, end
        Cycle in which the part's last operation is issued, and its last cycle, shape (runs,).
    """

    take: int
    loads: Ints
    takes: Ints
    last_issue: Ints
    tile_cycles: Ints
    stalls: Ints
    waits: Ints
    last: Ints
    end: Ints


def part_timing(layer: Descriptor, spec: ArraySpec, work: Work) -> PartTiming:
    """Time one part."""
    columns, tiles = spec.columns, layer.row_tiles
    groups = work.words.shape[1]
    operations = work.words + work.doublings
    drain = np.full(groups, layer.drain_cycles(columns, spec))
    drain[-1] = layer.drain_cycles(last_columns := layer.pixels - columns * (groups - 1), spec)
    tile_cycles = np.maximum(operations, drain)

    pace = pace_of(layer, spec)
    if len(operations) < _VECTOR_RUNS:
        # Plain numbers are faster than short vectors.
        walks = [_issues(numbers, tiles, drain.tolist(), pace, max) for numbers in operations.tolist()]
        starts, take, last_issue = np.array(walks).swapaxes(0, 1)
    else:
        numbers = np.ascontiguousarray(operations.T)
        walk = _issues(numbers, tiles, drain.tolist(), pace, np.maximum)
        starts, take, last_issue = np.array(walk).swapaxes(1, 2)

    last = last_issue + (tiles - 1) * tile_cycles
    stalls = (last - take - tiles * operations).sum(1)
    waits = (take[:, 1:] - last[:, :-1]).sum(1)
    loaded = last[:, -1] + spec.derived.issue_to_load
    if layer.raw:
        end = loaded + drain[-1] + spec.derived.raw_to_write
    else:
        last_plane = layer.output_planes - 1
        end = loaded + write_offset(layer, spec, last_columns - 1, last_plane)
    return PartTiming(int(take[0, 0]), starts, take, last_issue, tile_cycles, stalls, waits, last[:, -1], end)


class Pace(NamedTuple):
    """How fast the groups of a part can be loaded and listed, in cycles.

    Parameters
    ----------
    first
        From the part's start pulse to the first group's first read.
    period
        From the first read of a group to that of the next one, at least.
    load
        From the first read of a group until it is ready, at least.
    relist
        From the take of a group until the next one is ready, at least: 0 where lists are not made anew.
    shared
        From the part's start pulse until the list that all groups share is complete: 0 where lists are made anew.
    """

    first: int
    period: int
    load: int
    relist: int
    shared: int


def pace_of(layer: Descriptor, spec: ArraySpec) -> Pace:
    """How fast the groups of a part can be loaded and listed."""
    first, period, passes = spec.columns + 1, layer.group_loads(spec) + spec.columns, len(layer.passes)
    relist, shared = passes + SCHEDULE_END, passes + SCHEDULE_OVERHEAD
    skips = layer.zero_skip(spec) == "skip"
    return Pace(first, period, layer.ready_cycles(spec), relist if skips else 0, 0 if skips else shared)


def write_offset(layer: Descriptor, spec: ArraySpec, column: Any, plane: Any) -> Any:
    """Cycles from the load of a row tile's sums into the drain to the write of a plane; numbers or arrays."""
    turns, steps = spec.derived.turns, layer.drain_steps(spec)
    compared = layer.drain_offset(column, spec) + turns * spec.drain_planes * steps
    return compared + DRAIN_TO_WRITE + turns * (plane // spec.drain_planes)


_VECTOR_RUNS = 12
"""From so many runs on, vectors of them are faster than plain numbers."""


def _issues(
    operations: Any, tiles: int, drain: list[int], pace: Pace, maximum: Callable[..., Any]
) -> tuple[list[Any], list[Any], list[Any]]:
    """The recurrences over groups: of each the first read, when it is taken, and its first row tile's last operation.

    Parameters
    ----------
    operations
        Of each group: a number, or a vector of one number a run, which ``maximum`` takes too.
    tiles, drain
        Row tiles, and cycles in which one of each group drains.
    pace
        Of loading and listing.
    """
    loads, takes, issues = [], [], []
    last = before = drained = operations[0] * 0 - 1  # of the group before, and of the one before that
    load, take = last + 1 + pace.first - pace.period, last + 1 + pace.shared - pace.relist
    for number, draining in zip(operations, drain, strict=True):
        load = maximum(load + pace.period, before + 1)
        take = maximum(maximum(load + pace.load, last), take + pace.relist)
        issue = maximum(take + number, drained)
        before = last
        last = issue + (tiles - 1) * maximum(number, draining)
        drained = last + draining
        loads.append(load)
        takes.append(take)
        issues.append(issue)
    return loads, takes, issues


def part_counters(layer: Descriptor, spec: ArraySpec, work: Work, timing: PartTiming) -> dict[str, Ints]:
    """A part's share of each counter but ``cycles``, shape (runs,), or (1,) where it is the same in all."""
    tiles = layer.row_tiles
    groups = work.words.shape[1]
    outputs = layer.pixels // layer.pool_area
    lengths = layer.plane_words(spec)
    listed = work.words.sum(1)
    whole = groups * sum(lengths[entry.plane] for entry in layer.passes)
    counters = {
        "busy": tiles * (listed + work.doublings.sum(1)),
        "stalls": timing.stalls,
        "computed": tiles * work.computed,
        "gated": tiles * work.gated,
        "skipped": tiles * (whole - listed),
        "compares": 0 if layer.raw else tiles * layer.pixels * layer.drain_steps(spec),
        "writes": outputs * (layer.channels if layer.raw else tiles * layer.output_planes),
        "loads": groups * layer.group_loads(spec),
    }
    return {name: np.atleast_1d(value) for name, value in counters.items()}


def part_account(
    layer: Descriptor, spec: ArraySpec, work: Work, timing: PartTiming, start: Ints, stream: Ints
) -> dict[str, Ints]:
    """Where the cycles of a part went, by :data:`ACCOUNT`, in bit products of the whole array, shape (runs,).

    Parameters
    ----------
    layer, spec, work, timing
        The part.
    start
        Cycles from the part's first one to its start pulse.
    stream
        How many of them its weights took.
    """
    tiles, columns = layer.row_tiles, spec.columns
    cycle = spec.rows * columns * spec.lanes
    words = tiles * work.words.sum(1)
    last_columns = layer.pixels - columns * (work.words.shape[1] - 1)
    filled = columns * work.words.sum(1) - (columns - last_columns) * work.words[:, -1]
    filled = filled * layer.channels * spec.lanes  # bit products of rows with a channel and columns with a window
    account = {
        "computing": work.useful,
        "lane_padding": filled - work.useful,
        "array_padding": words * cycle - filled,
        "doubling": tiles * work.doublings.sum(1) * cycle,
        "drain": timing.stalls * cycle,
        "load": timing.waits * cycle,
        "weight_stream": stream * cycle,
        "start": (start + timing.take + 1 - stream) * cycle,
        "end": (timing.end - timing.last) * cycle,
    }
    return {name: account[name] for name in ACCOUNT}


def part_writes(
    layer: Descriptor, spec: ArraySpec, timing: PartTiming, run: int, pulse: int, outputs: npt.NDArray[Any]
) -> Ints:
    """List every write of one part in one run.

    Parameters
    ----------
    layer, spec, timing
        The part.
    run
        Which of the runs.
    pulse
        Cycle of its start pulse.
    outputs
        Codes, or raw accumulators, shape (output pixels of all images, channels).

    Returns
    -------
    ndarray
        Shape (writes, 4): cycle, raw (0 or 1), position or address of a raw result, data, by cycle and plane. Data is
        the row tile's bits of a plane, row 0 in bit 0, or the raw accumulator.
    """
    rows, tiles, derived = spec.rows, layer.row_tiles, spec.derived
    run %= len(timing.last_issue)
    tile_numbers = np.arange(tiles)
    load = pulse + timing.last_issue[run][:, None] + timing.tile_cycles[run][:, None] * tile_numbers
    load += derived.issue_to_load  # groups, tiles
    pixel = np.arange(layer.pool_area - 1, layer.pixels, layer.pool_area)  # windows that complete an output pixel
    group, column = np.divmod(pixel, spec.columns)
    base = layer.output_base + np.arange(len(pixel)) * layer.output_granules
    outputs = outputs.astype(np.int64)
    if layer.raw:
        channel = np.arange(layer.channels)
        tile, row = np.divmod(channel, rows)
        cycle = load[group][:, tile] + 1 + derived.raw_to_write + column[:, None] * rows + row
        address = (base[:, None] + channel) % spec.result_depth
        fields = [cycle, np.ones_like(cycle), address, outputs]
    else:
        plane = np.arange(layer.output_planes)
        cycle = load[group][:, :, None] + write_offset(layer, spec, column[:, None, None], plane)
        position = base[:, None, None] + tile_numbers[:, None] * derived.tile_granules
        position = (position + plane * layer.output_plane_stride) % (spec.activation_depth * derived.granules)
        channels = np.zeros((len(pixel), tiles * rows), np.int64)
        channels[:, : layer.channels] = outputs
        bits = channels.reshape(len(pixel), tiles, 1, rows) >> plane[:, None] & 1
        fields = [cycle, np.zeros_like(cycle), position, (bits << np.arange(rows)).sum(axis=-1)]
    table = np.stack([field.ravel() for field in fields], axis=1)
    return table[np.argsort(table[:, 0], kind="stable")]


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def run(
    network: Program | Plan,
    runs: int,
    works: Sequence[Work],
    outputs: Mapping[int, npt.NDArray[Any]] | None = None,
) -> list[Execution]:
    """Time all parts of a number of runs; the ``accumulators`` stay empty.

    Parameters
    ----------
    network
        What runs.
    runs
        Number of runs, each of one batch.
    works
        What each part is asked to do, in all runs.
    outputs
        For each part whose writes are listed, its codes or raw results, shape (runs, output pixels of all images,
        channels).
    """
    spec = network.spec
    layers, parts = _parts(network)
    executions = untimed(runs)
    fetch, start = np.zeros(1, np.int64), np.zeros(1, np.int64)
    totals: dict[str, Ints] = dict.fromkeys(COUNTERS, np.zeros(1, np.int64))
    for number, (layer, work) in enumerate(zip(layers, works, strict=True)):
        timing = part_timing(layer, spec, work)
        header = fetch + HEADER_TO_READY
        switch = np.maximum(header + layer.stream_cycles(spec), start)
        stream = switch - np.maximum(header, start)
        pulse = switch + 1
        end = pulse + timing.end + 1
        counters = part_counters(layer, spec, work, timing)
        account = part_account(layer, spec, work, timing, pulse - start, stream)
        for name, values in counters.items():
            totals[name] = totals[name] + values
        name, index = network.layers[parts[number]].name, parts[number]
        rows = _rows(runs, [start, end, *counters.values(), *account.values()])
        split = 2 + len(counters)
        for execution, row in zip(executions, rows, strict=True):
            share, spent = dict(zip(counters, row[2:split], strict=True)), dict(zip(account, row[split:], strict=True))
            execution.layers.append(LayerExecution(name, index, row[0], row[1], share, spent))
        if outputs and number in outputs:
            for order, [cycle] in enumerate(_rows(runs, [pulse])):
                writes = part_writes(layer, spec, timing, order, cycle, outputs[number][order])
                executions[order].writes = (executions[order].writes or {}) | {number: writes}
        fetch = pulse if spec.prefetch else end
        start = end
    totals["cycles"] = start
    for execution, events in zip(executions, _rows(runs, list(totals.values())), strict=True):
        execution.counters = dict(zip(totals, events, strict=True))
        execution.cycles = execution.counters["cycles"]
    return executions


def untimed(runs: int) -> list[Execution]:
    """Executions that say nothing yet."""
    return [Execution(np.empty((0, 0), np.int64), 0, {}, []) for _ in range(runs)]


def _rows(runs: int, columns: Sequence[Ints]) -> list[list[int]]:
    """For each run, its entry of every column."""
    table = np.empty((runs, len(columns)), np.int64)
    for index, column in enumerate(columns):
        table[:, index] = column
    return table.tolist()


def estimate(network: Program | Plan) -> Execution:
    """Predict one run without images: no code inside the images is taken to be zero.

    Exact for arrays that do not skip. The counters ``computed`` and ``gated`` of arrays that gate, and everything of
    those that skip, are bounds.
    """
    spec = network.spec
    works = []
    for number, layer in enumerate(_parts(network)[0]):
        active = None if spec.zero_skip == "off" else dense_words(layer, spec)
        works.append(part_work(layer, spec, useful_lanes(network, number), active))
    return run(network, 1, works)[0]
