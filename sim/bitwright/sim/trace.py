"""A timeline of one run, from the cycle model: which part of the machine does what in which cycle.

Exact: a test compares it with the hardware's probe, cycle by cycle. It is written as trace events in JSON, which
Perfetto (https://ui.perfetto.dev) and Chrome (``chrome://tracing``) show. Their unit of time is the microsecond: here
one microsecond stands for one cycle.

=============  =====================================================================================================
track          slices
=============  =====================================================================================================
layers         each layer, and in it each of its parts, where it has several
descriptors    the fetch of each part's header, with ``prefetch`` while the part before runs
weight stream  the weights of a part coming in, where they are streamed
load           pixel groups: their windows are walked, then read from activation memory
schedule       pixel groups: their passes are listed, then wait for the array
compute        pixel groups, in them row tiles, in these passes, and in these the operations that only double and the
               stalls for the drain; between groups the waits
drain          row tiles: the first comparator of each row works, or raw results are taken one by one
writes         writes to activation or result memory, where they follow each other without a gap
=============  =====================================================================================================

A counter shows the window words passed over so far. A pass is called after its weight plane and the bit of the
activation codes, or, with ``r``, of the residual's.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bitwright.hw.files import replacing
from bitwright.hw.isa import (
    HEADER_TO_READY,
    HEADER_WORDS,
    ArraySpec,
    Descriptor,
)
from bitwright.hw.program import Program
from bitwright.sim import golden, timeline
from bitwright.sim.execution import LayerExecution

Ints = npt.NDArray[np.int64]
Detail = Literal["passes", "tiles", "groups"]

TRACKS: tuple[str, ...] = (
    "layers",
    "descriptors",
    "weight stream",
    "load",
    "schedule",
    "compute",
    "drain",
    "writes",
)

SKIPPED = "skipped words"
"""Name of the counter."""

EVENTS_MAX = 200_000
"""About as many events are written where the user names no number: some 30 MB."""

LOAD_TO_COMPARE = 2
"""Cycles from the load of a row tile's sums into the drain to its first comparison or first raw result; one more in a
pipelined array."""


@dataclass(frozen=True)
class Slice:
    """Something that goes on for some cycles.

    Parameters
    ----------
    track
        One of :data:`TRACKS`. Slices of a track do not overlap, or lie one in the other, the outer one first.
    name
        What goes on.
    start, cycles
        First cycle, and how many.
    values
        What else is known of it.
    """

    track: str
    name: str
    start: int
    cycles: int
    values: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """First cycle after it."""
        return self.start + self.cycles


@dataclass(frozen=True)
class Trace:
    """Timeline of one run.

    Parameters
    ----------
    cycles
        Of the run.
    slices
        What goes on, track by track in no particular order, each track by start.
    skipped
        Cycles, rising, and the words passed over up to and including each.
    detail
        For each part, by the number of its descriptor, how much is told of it.
    """

    cycles: int
    slices: list[Slice]
    skipped: list[tuple[int, int]]
    detail: list[str]

    def events(self) -> Iterator[dict[str, Any]]:
        """Trace events: names of tracks, complete events, and values of the counter."""
        process = {"pid": 1}
        yield {"ph": "M", "name": "process_name", **process, "tid": 0, "args": {"name": "accelerator"}}
        for number, track in enumerate(TRACKS, 1):
            thread = {**process, "tid": number}
            yield {"ph": "M", "name": "thread_name", **thread, "args": {"name": track}}
            yield {"ph": "M", "name": "thread_sort_index", **thread, "args": {"sort_index": number}}
        numbers = {track: number for number, track in enumerate(TRACKS, 1)}
        for each in self.slices:
            place = {"ts": each.start, "dur": each.cycles, **process, "tid": numbers[each.track]}
            yield {"ph": "X", "name": each.name, "cat": each.track, **place, "args": each.values}
        for cycle, words in self.skipped:
            yield {"ph": "C", "name": SKIPPED, "ts": cycle, **process, "tid": 0, "args": {"words": words}}

    def write(self, path: str | Path) -> None:
        """Write trace events as JSON, one a line."""
        other = {"unit": "one microsecond is one cycle", "cycles": self.cycles, "detail": ", ".join(self.detail)}
        with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.write('{"displayTimeUnit": "ns",\n"otherData": ' + json.dumps(other) + ',\n"traceEvents": [\n')
            for number, event in enumerate(self.events()):
                out.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
            out.write("\n]}\n")


def trace(program: Program, images: npt.NDArray[np.uint8], *, events: int = EVENTS_MAX) -> Trace:
    """Timeline of the first run.

    Parameters
    ----------
    program
        What runs.
    images
        ``uint8``, shape (n, channels, height, width); only the first batch of them matters.
    events
        About as many events are enough. Each part of the network gets its share. One whose passes would take more is
        told by row tiles; one whose row tiles would take more by pixel groups; and one that has too many of these by
        as many groups at once as needed, as one slice from the first one's begin to the last one's end, waits included.
        Stalls, doublings and numbers of words are then values of the slices.
    """
    spec = program.spec
    (run,) = golden.execute(program, images[: program.batch])
    parts = list(zip(program.parsed, run.layers, golden.first_activity(program, images), strict=True))
    share = max(1, events // len(parts))
    slices, skipped, detail = [*_layers(program, run.layers)], [(0, 0)], []
    fetch = words = 0
    for number, (layer, executed, active) in enumerate(parts):
        work = timeline.part_work(layer, spec, timeline.useful_lanes(program, number), active)
        part = _Part(layer, spec, executed, work, active, share)
        slices += part.slices(fetch)
        for cycle, more in part.skipped():
            words += more
            skipped.append((cycle, words))
        detail.append(f"part {number}: {part.told}")
        fetch = part.pulse if spec.prefetch else executed.end
    return Trace(run.cycles, slices, [*skipped, (run.cycles, words)], detail)


def _layers(program: Program, executed: Sequence[LayerExecution]) -> Iterator[Slice]:
    """Layers and their parts."""
    cycle = program.spec.rows * program.spec.columns * program.spec.lanes
    for number, info in enumerate(program.layers):
        parts = [part for part in executed if part.layer == number]
        values: dict[str, int | str] = {"weight planes": info.weight_planes, "input planes": info.input_planes}
        told = [
            {**part.counters, **{what: f"{units / cycle:,.1f} cycles" for what, units in (part.account or {}).items()}}
            for part in parts
        ]
        if len(parts) == 1:
            values |= told[0]
        yield Slice("layers", info.name, parts[0].start, parts[-1].end - parts[0].start, values)
        if len(parts) > 1:
            for index, (part, part_values) in enumerate(zip(parts, told, strict=True)):
                yield Slice("layers", f"part {index}", part.start, part.end - part.start, part_values)


class Entry(NamedTuple):
    """A scheduled pass of a row tile.

    Parameters
    ----------
    number
        Of the pass; None for doublings that are left over at the end.
    doublings
        Operations that only double, first.
    words
        Operations on a word.
    """

    number: int | None
    doublings: int
    words: int


def schedule(layer: Descriptor, lengths: Sequence[int]) -> tuple[Entry, ...]:
    """Passes of each row tile of a group, given how many words of each plane of its windows are listed."""
    entries: list[Entry] = []
    doubles = 0
    for number, entry in enumerate(layer.passes):
        doubles += entry.doubles if entries else 0
        if lengths[entry.plane]:
            # The first word doubles, too.
            entries.append(Entry(number, max(0, doubles - 1), lengths[entry.plane]))
            doubles = 0
    if doubles or not entries:
        entries.append(Entry(None, max(1, doubles), 0))
    return tuple(entries)


def listed_words(
    layer: Descriptor, spec: ArraySpec, active: Sequence[npt.NDArray[np.uint8]] | None
) -> list[tuple[int, ...]]:
    """How many words of each plane of the windows of each pixel group are listed, in the order of loading.

    Parameters
    ----------
    layer, spec
        The part.
    active
        As :func:`timeline.part_work` takes it, of one run.
    """
    groups = -(-layer.pixels // spec.columns)
    if layer.zero_skip(spec) != "skip" or active is None:
        return [tuple(layer.plane_words(spec))] * groups
    starts = np.arange(0, layer.pixels, spec.columns)
    bits = [np.bitwise_or.reduceat(words[:, 0], starts, axis=1) for words in active]
    planes = layer.activation_planes, layer.residual_planes
    # By bit of the codes; then by plane of the window.
    counts = [(each >> bit & 1).sum(0) for each, count in zip(bits, planes, strict=False) for bit in range(count)]
    table = np.array([counts[layer.code_bit(plane)] for plane in range(len(counts))])
    return [tuple(column) for column in table.T.tolist()]


class _Part:
    """What one descriptor's part does, in cycles of the run."""

    def __init__(
        self,
        layer: Descriptor,
        spec: ArraySpec,
        executed: LayerExecution,
        work: timeline.Work,
        active: Sequence[npt.NDArray[np.uint8]] | None,
        share: int,
    ) -> None:
        self.layer, self.spec, self.executed = layer, spec, executed
        self.timing = timeline.part_timing(layer, spec, work)
        self.pulse = executed.end - 1 - int(self.timing.end[0])
        self.lengths = listed_words(layer, spec, active)
        self.names = _pass_names(layer)
        self.groups = len(self.lengths)
        # When each group is first read, taken, and issued for the last time; when its row tiles are.
        self.load = self.pulse + self.timing.loads[0]
        self.take = self.pulse + self.timing.takes[0]
        tiles = np.arange(layer.row_tiles) * self.timing.tile_cycles[0][:, None]
        self.tile_last = self.pulse + self.timing.last_issue[0][:, None] + tiles
        self.entries = lru_cache(lambda lengths: schedule(layer, lengths))
        self.detail, self.at_once = self._choose(share)
        self.told = self.detail if self.at_once == 1 else f"{self.at_once} groups at once"

    def _choose(self, share: int) -> tuple[Detail, int]:
        """How much is told: as much as the share of events allows."""
        tiles = self.layer.row_tiles
        per_group, per_tile = 6, 4  # with drain, writes and counter
        passes = sum(sum(2 + (entry.doublings > 0) for entry in self.entries(each)) for each in self.lengths)
        by_tile = self.groups * (per_group + tiles * per_tile)
        by_pass = by_tile + tiles * (passes + self.groups * (self.spec.columns - 1))  # columns may be written apart
        if by_pass <= share:
            return "passes", 1
        if by_tile <= share:
            return "tiles", 1
        return "groups", max(1, -(-self.groups * (per_group + per_tile) // share))

    def _bundles(self) -> Iterator[range]:
        """Groups that are told at once."""
        for first in range(0, self.groups, self.at_once):
            yield range(first, min(first + self.at_once, self.groups))

    def slices(self, fetch: int) -> Iterator[Slice]:
        """All slices but those of layers.

        Parameters
        ----------
        fetch
            Cycle in which the fetch of the header starts.
        """
        spec, layer = self.spec, self.layer
        name = self.executed.name
        yield Slice("descriptors", f"header of {name}", fetch, HEADER_WORDS + 1)
        if layer.stream_words:
            words = {"words of a row": len(layer.stream_addresses()), "beats": layer.stream_beats(spec)}
            cycles = layer.stream_cycles(spec)
            yield Slice("weight stream", f"weights of {name}", fetch + HEADER_TO_READY, cycles, words)
        yield from self._loads()
        yield from self._schedules()
        yield from self._computes()
        yield from self._drains()
        yield from self._writes()

    def _loads(self) -> Iterator[Slice]:
        reads = self.layer.group_loads(self.spec)
        # The walk of a group begins when the reads of the one before have ended.
        walks = [self.pulse + 1, *(self.load[:-1] + reads).tolist()]
        for groups in self._bundles():
            load, name = int(self.load[groups[0]]), _group_name(groups)
            if self.at_once == 1:
                yield Slice("load", "walk", walks[groups[0]], self.spec.columns, {"group": groups[0]})
            yield Slice("load", name, load, int(self.load[groups[-1]]) + reads - load, {"reads": reads * len(groups)})

    def _schedules(self) -> Iterator[Slice]:
        layer, spec = self.layer, self.spec
        skip, pace = layer.zero_skip(spec) == "skip", timeline.pace_of(layer, spec)
        # A list is made from the cycle after the group's first read and the take of the group before; no group waits
        # for the array before that take.
        taken = np.append(self.pulse, self.take[:-1])
        begin = np.maximum(self.load, taken) + 1
        ready = np.maximum(self.load + pace.load, taken + max(1, pace.relist))
        if not skip:
            yield Slice("schedule", "all groups", self.pulse, pace.shared, {"passes": len(layer.passes)})
            ready = np.maximum(ready, self.pulse + pace.shared)
        for groups in self._bundles():
            first, last, name = groups[0], groups[-1], _group_name(groups)
            if self.at_once > 1:
                start = int(begin[first] if skip else ready[first])
                yield Slice("schedule", name, start, int(self.take[last]) + 1 - start)
                continue
            if skip:
                kept = {"passes": sum(entry.number is not None for entry in self.entries(self.lengths[first]))}
                yield Slice("schedule", name, int(begin[first]), int(ready[first] - begin[first]), kept)
            yield Slice("schedule", f"{name} waits", int(ready[first]), int(self.take[first] - ready[first]) + 1)

    def _computes(self) -> Iterator[Slice]:
        start = self.executed.start
        yield Slice("compute", "start", start, int(self.take[0]) + 1 - start)
        for groups in self._bundles():
            first, last = groups[0], groups[-1]
            begin, end = int(self.take[first]) + 1, int(self.tile_last[last, -1]) + 1
            yield Slice("compute", _group_name(groups), begin, end - begin, self._work(groups))
            if self.detail != "groups":
                yield from self._tiles(first)
            if last + 1 < self.groups and (wait := int(self.take[last + 1]) + 1 - end):
                yield Slice("compute", "waits for windows", end, wait)
        end = int(self.tile_last[-1, -1]) + 1
        yield Slice("compute", "end", end, self.executed.end - end)

    def _work(self, groups: Sequence[int], tiles: int | None = None) -> dict[str, int | str]:
        """Operations, doublings and stalls of groups: of all their row tiles, or of so many without a stall."""
        entries = [entry for group in groups for entry in self.entries(self.lengths[group])]
        words, doublings = sum(entry.words for entry in entries), sum(entry.doublings for entry in entries)
        count = self.layer.row_tiles if tiles is None else tiles
        values: dict[str, int | str] = {"words": count * words, "doublings": count * doublings}
        if tiles is None:
            busy = count * (words + doublings)
            spent = sum(int(self.tile_last[group, -1] - self.take[group]) for group in groups)
            values["stalls"] = spent - busy
        return values

    def _tiles(self, group: int) -> Iterator[Slice]:
        """Row tiles of a group, and what is in them."""
        entries = self.entries(self.lengths[group])
        operations = sum(entry.doublings + entry.words for entry in entries)
        work = self._work([group], 1)
        bounds = [int(self.take[group]), *self.tile_last[group].tolist()]
        for tile, (before, last) in enumerate(itertools.pairwise(bounds)):
            stall = last - before - operations
            values = {**work, "stalls": stall}
            yield Slice("compute", f"tile {tile}", before + 1, last - before, values)
            if self.detail == "passes":
                yield from self._passes(before + 1, entries, stall)

    def _passes(self, start: int, entries: Sequence[Entry], stall: int) -> Iterator[Slice]:
        """Passes of a row tile. The last operation of the last one stalls."""
        for index, entry in enumerate(entries):
            waits = stall if index == len(entries) - 1 else 0
            cycles = entry.doublings + entry.words + waits
            name = "doubling" if entry.number is None else self.names[entry.number]
            yield Slice("compute", name, start, cycles, {"words": entry.words})
            last = start + cycles - 1
            if entry.words:
                if entry.doublings:
                    yield Slice("compute", "doubles", start, entry.doublings)
                if waits:
                    yield Slice("compute", "stalls", last - waits, waits)
            else:
                if entry.doublings > 1:
                    yield Slice("compute", "doubles", start, entry.doublings - 1)
                if waits:
                    yield Slice("compute", "stalls", last - waits, waits)
                yield Slice("compute", "doubles", last, 1)
            start += cycles

    def _drains(self) -> Iterator[Slice]:
        layer, spec = self.layer, self.spec
        steps = layer.drain_steps(spec)
        delay = spec.derived.issue_to_load + LOAD_TO_COMPARE + spec.derived.turns - 1
        what = "results" if layer.raw else "compare"
        valid = [spec.columns] * (self.groups - 1) + [layer.pixels - spec.columns * (self.groups - 1)]
        for groups in self._bundles():
            name = _group_name(groups)
            starts = self.tile_last[list(groups)] + delay
            if self.detail == "groups":
                last = int(starts[-1, -1])
                start, end = int(starts[0, 0]), max(last + at + length for at, length in self._turns(valid[groups[-1]]))
                spent = sum(valid[group] * steps * layer.row_tiles for group in groups)
                yield Slice("drain", what, start, end - start, {"groups": name, "cycles": spent})
                continue
            for tile, start in enumerate(starts[0].tolist()):
                values = {"group": groups[0], "tile": tile, "columns": valid[groups[0]], "cycles of a column": steps}
                for at, length in self._turns(valid[groups[0]]):
                    yield Slice("drain", what, start + at, length, values)

    def _turns(self, columns: int) -> list[tuple[int, int]]:
        """When the drain works on a row tile of so many columns, from its first cycle on: starts and lengths.

        A last column that shares a comparator with no other works in its own turns only.
        """
        layer, spec = self.layer, self.spec
        turns = 1 if layer.raw else spec.derived.turns
        together = columns - columns % turns
        found = [(0, layer.drain_cycles(together, spec))] if together else []
        if columns > together:
            start = layer.drain_offset(together, spec)
            found += [(start + step * turns, 1) for step in range(layer.drain_steps(spec))]
        return found

    def _writes(self) -> Iterator[Slice]:
        layer = self.layer
        outputs = np.zeros((layer.pixels // layer.pool_area, layer.channels), np.int64)
        rows = timeline.part_writes(layer, self.spec, self.timing, 0, self.pulse, outputs)
        cycles, counts = np.unique(rows[:, 0], return_counts=True)
        starts = np.flatnonzero(np.diff(cycles, prepend=cycles[0] - 2) > 1)
        if self.detail != "passes":  # about as many slices as row tiles or groups
            most = -(-self.groups // self.at_once) * (1 if self.detail == "groups" else layer.row_tiles)
            starts = starts[:: -(-len(starts) // most)]
        ends = np.append(starts[1:], len(cycles))
        totals = np.add.reduceat(counts, starts)
        what = "results" if layer.raw else "planes"
        for first, end, total in zip(starts.tolist(), ends.tolist(), totals.tolist(), strict=True):
            start = int(cycles[first])
            yield Slice("writes", what, start, int(cycles[end - 1]) + 1 - start, {what: total})

    def skipped(self) -> Iterator[tuple[int, int]]:
        """Cycles, and words that were passed over by then and since the one before."""
        lengths = self.layer.plane_words(self.spec)
        whole = sum(lengths[entry.plane] for entry in self.layer.passes)
        for groups in self._bundles():
            missing = [whole - sum(entry.words for entry in self.entries(self.lengths[group])) for group in groups]
            if self.detail == "groups":
                yield int(self.tile_last[groups[-1], -1]), self.layer.row_tiles * sum(missing)
            else:
                yield from ((cycle, missing[0]) for cycle in self.tile_last[groups[0]].tolist())


def _group_name(groups: Sequence[int]) -> str:
    return f"group {groups[0]}" if len(groups) == 1 else f"groups {groups[0]} to {groups[-1]}"


def _pass_names(layer: Descriptor) -> list[str]:
    """Weight plane and bit of the codes of each pass."""
    first = layer.activation_planes
    residual_offsets = sorted({entry.weight_offset for entry in layer.passes if entry.plane >= first})
    names: list[str] = []
    for entry in layer.passes:
        bit = layer.code_bit(entry.plane)
        if entry.plane < first:
            names.append(f"w{entry.weight_offset // layer.window_length}×a{bit}")
        else:
            names.append(f"w{residual_offsets.index(entry.weight_offset)}×r{bit - first}")
    return names
