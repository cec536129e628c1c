import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import Module
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.drain import Drain, SearchControl, ThresholdUnit, threshold_layout
from bitwright.hw.isa import (
    DRAIN_TO_WRITE,
    FLAG_COEFFICIENTS,
    FLAG_OFFSET,
    FLAG_RAW,
    FLAG_TABLE,
    GRANULE,
    RAW_TO_WRITE,
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    ArraySpec,
    descriptor_fields,
    granules_of,
)
from drive import drive, header, wrap

WIDTH = 10
LIMIT = 1 << (WIDTH - 1)
DRAIN_PLANES = st.sampled_from([1, 2, 4])
TURNS = st.sampled_from([1, 2])


def reached(value: int, threshold: int, *, negate: bool) -> bool:
    """Whether a value is on the far side of a threshold."""
    return value < threshold if negate else value >= threshold


def rank_of(value: int, thresholds: list[int], *, negate: bool) -> int:
    """Thresholds that a value reaches; they lie in order."""
    return sum(reached(value, threshold, negate=negate) for threshold in thresholds)


def flags_of(negate: bool, pool_min: bool) -> int:
    return negate * THRESHOLD_NEGATE + pool_min * THRESHOLD_POOL_MIN


def tree(thresholds: list[int], flags: int) -> npt.NDArray[np.int64]:
    """Entries of a channel, built by walking: the middle one is the root of what lies to either side."""
    entries = np.zeros(len(thresholds) + 1, np.int64)
    entries[0] = flags

    def place(node: int, part: list[int]) -> None:
        if part:
            middle = len(part) // 2
            entries[node] = part[middle]
            place(2 * node, part[:middle])
            place(2 * node + 1, part[middle + 1 :])

    place(1, thresholds)
    return entries


# ThresholdUnit -------------------------------------------------------------------------------------------------------


@given(
    planes=st.integers(1, 8),
    planes_max=st.integers(1, 8),
    drain_planes=DRAIN_PLANES,
    turns=TURNS,
    negate=st.booleans(),
    pool_min=st.booleans(),
    spread=st.sampled_from([3, 100, LIMIT]),
    slack=st.sampled_from([0, 0, 3]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_code_counts_the_thresholds_reached(
    planes, planes_max, drain_planes, turns, negate, pool_min, spread, slack, seed
):
    rng = random.Random(seed)
    planes = min(planes, planes_max)
    spec = ArraySpec(
        rows=4,
        accumulator_width=WIDTH,
        activation_planes_max=planes_max,
        drain_planes=drain_planes,
        pipelined=turns == 2,
        lanes=64,
    )
    thresholds = sorted((rng.randint(-spread, spread - 1) for _ in range((1 << planes) - 1)), reverse=negate)
    values = [-LIMIT, LIMIT - 1, *(rng.randint(-spread, spread - 1) for _ in range(8))]
    values += [wrap(rng.choice(thresholds) + side, WIDTH) for side in (-1, 0, 1)]
    steps = spec.derived.search_steps(planes)
    # In each turn, a column starts when the one before has left.
    starts = [1]
    while len(starts) < len(values):
        start = starts[-1] + 1 + rng.randint(0, slack)
        while any((start - other) % turns == 0 and start - other < turns * steps for other in starts):
            start += 1
        starts.append(start)
    by_start = dict(zip(starts, values, strict=True))

    m = Module()
    m.submodules.control = control = SearchControl(spec)
    m.submodules.unit = unit = ThresholdUnit(spec)
    # Entries of other channels must never be taken for its own: their flags are others.
    number_of_channel = rng.randint(0, 3)
    base = number_of_channel << planes >> 1
    own = tree(thresholds, flags_of(negate, pool_min))
    other = tree([0] * len(thresholds), flags_of(not negate, not pool_min))
    pairs: Any = np.concatenate([other] * number_of_channel + [own] + [other] * 3).reshape(-1, 2)
    for number in range(drain_planes):
        m.submodules[f"memory_{number}"] = store = memory.Memory(
            shape=threshold_layout(spec), depth=1024, init=pairs.tolist()
        )
        port = store.read_port()
        m.d.comb += [
            port.addr.eq(unit.address[number]),
            unit.pairs[number].eq(port.data),
            unit.stages[number].eq(control.stages[number]),
        ]
    found = []
    compared = 0

    async def bench(ctx):
        nonlocal compared
        ctx.set(control.planes, planes)
        ctx.set(unit.planes, planes)
        ctx.set(unit.first, base)
        ctx.set(unit.base, [base] * drain_planes)
        complements = [0] * turns
        for cycle in range(starts[-1] + turns * drain_planes * steps + 4):
            ctx.set(unit.complement, complements[cycle % turns])
            start = cycle in by_start
            ctx.set(control.start, start)
            assert not start or ctx.get(control.ready)
            finished = ctx.get(control.finish)
            compared += ctx.get(control.comparing)
            await ctx.tick()
            if start:  # held from the turn after the start
                complements[cycle % turns] = ~by_start[cycle]
            if finished:
                found.append((cycle, ctx.get(unit.code), ctx.get(unit.pool_min)))

    drive(m, bench)
    assert found == [
        (start + turns * drain_planes * steps, rank_of(value, thresholds, negate=negate), pool_min)
        for start, value in by_start.items()
    ]
    assert compared == steps * len(values)


# Drain ---------------------------------------------------------------------------------------------------------------

Write = tuple[int, int, int, int, int]


@dataclass
class Case:
    """A layer to drain: windows in groups of up to ``columns``, each with the sums of all rows of all tiles."""

    spec: ArraySpec
    layer: dict[str, int]
    pool: int
    groups: list[list[int]]  # windows
    sums: list[list[int]]  # windows, rows of all tiles
    column_sums: list[int]
    thresholds: list[list[int]]  # rows of all tiles, levels
    flags: list[tuple[bool, bool]]  # negate and pool_min of each row of all tiles
    loads: list[int] = field(default_factory=list)  # cycle of each row tile of each group

    @property
    def raw(self) -> bool:
        return bool(self.layer["flags"] & FLAG_RAW)

    @property
    def steps(self) -> int:
        """Cycles of one column, or turns in a comparator."""
        return self.spec.rows if self.raw else -(-self.layer["output_planes"] // self.spec.drain_planes)

    @property
    def turns(self) -> int:
        """Columns that are drained at a time."""
        return 1 if self.raw else self.spec.derived.turns

    def offset(self, column: int) -> int:
        """Cycles from the start of a tile's first column to that of another one, or of the next tile."""
        return sum(self.steps * self.turns for _ in range(self.turns, column + 1, self.turns)) + column % self.turns

    def cycles(self, columns: int) -> int:
        """Cycles that a tile takes: whole turns."""
        return self.offset(columns + columns % self.turns)

    @cached_property
    def tiles(self) -> list[tuple[int, int]]:
        """Group and row tile of each load."""
        return [(group, tile) for group in range(len(self.groups)) for tile in range(self.layer["row_tiles"])]

    def value(self, window: int, channel: int) -> int:
        """What the thresholds see."""
        total = self.sums[window][channel]
        offset = self.layer["flags"] & FLAG_OFFSET and not self.layer["flags"] & FLAG_COEFFICIENTS
        return wrap(2 * total - self.column_sums[window] if offset else total, WIDTH)

    def output(self, window: int) -> int:
        """Position (raw: address) of the output pixel to which a window belongs."""
        return self.layer["output_base"] + window // self.pool * self.layer["output_granules"]

    def tile(self, group: int, tile: int) -> dict[str, int]:
        """A row tile of a group, as the issuer describes it."""
        windows = self.groups[group]
        return {
            "valid": (1 << len(windows)) - 1,
            "pool_first": sum((window % self.pool == 0) << column for column, window in enumerate(windows)),
            "pool_last": sum((window % self.pool == self.pool - 1) << column for column, window in enumerate(windows)),
            "first": int(tile == 0),
            "last": int(group == len(self.groups) - 1 and tile == self.layer["row_tiles"] - 1),
        }

    def _threshold_address(self, tile: int) -> int:
        return self.layer["threshold_base"] + (tile << self.layer["output_planes"])

    def threshold_memory(self, row: int) -> Any:
        """Pairs of a row's bank; those of no channel are all different from their neighbors."""
        entries = np.arange(self.spec.threshold_depth)
        for tile in range(0 if self.raw else self.layer["row_tiles"]):
            channel = tile * self.spec.rows + row
            own = tree(self.thresholds[channel], flags_of(*self.flags[channel]))
            entries[(self._threshold_address(tile) + np.arange(len(own))) % len(entries)] = own
        return entries.reshape(-1, 2).tolist()

    def writes(self) -> list[Write]:
        """(cycle, plane or -1 for raw, position or address, data, granules) of every write, in order."""
        found = []
        for load, (group, tile) in zip(self.loads, self.tiles, strict=True):
            for column, window in enumerate(self.groups[group]):
                if self.raw:
                    found += self._raw_writes(load + 1 + column * self.spec.rows, window, tile)
                elif window % self.pool == self.pool - 1:
                    compared = load + self.offset(column) + self.turns * self.spec.drain_planes * self.steps
                    found += self._code_writes(compared, window, tile)
        return sorted(found)

    def _kept(self, tile: int) -> int:
        """Rows of a tile that hold channels."""
        return min(self.spec.rows, self.layer["channels"] - tile * self.spec.rows)

    def _raw_writes(self, start: int, window: int, tile: int) -> list[Write]:
        found = []
        for row in range(self._kept(tile)):
            channel = tile * self.spec.rows + row
            address = (self.output(window) + channel) % self.spec.result_depth
            found.append((start + row + self.spec.derived.raw_to_write, -1, address, self.value(window, channel), 0))
        return found

    def _code_writes(self, compared: int, window: int, tile: int) -> list[Write]:
        spec, kept = self.spec, self._kept(tile)
        codes = [self._code(window, tile * spec.rows + row) for row in range(kept)]
        position = self.output(window) + tile * spec.derived.tile_granules
        found = []
        for plane in range(self.layer["output_planes"]):
            data = sum((code >> plane & 1) << row for row, code in enumerate(codes))
            target = (position + plane * self.layer["output_plane_stride"]) % (1 << spec.derived.position_width)
            cycle = compared + DRAIN_TO_WRITE + plane // spec.drain_planes * self.turns
            found.append((cycle, plane, target, data, (1 << granules_of(kept)) - 1))
        return found

    def _code(self, last: int, channel: int) -> int:
        """Code of the pooling window that ends with a window."""
        negate, pool_min = self.flags[channel]
        values = [self.value(window, channel) for window in range(last - self.pool + 1, last + 1)]
        ranks = [rank_of(value, self.thresholds[channel], negate=negate) for value in values]
        rank = min(ranks) if pool_min else max(ranks)
        if not self.layer["flags"] & FLAG_TABLE:
            return rank
        planes = range(self.layer["output_planes"])
        return sum((self.layer[f"code_table_{plane}"] >> rank & 1) << plane for plane in planes)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A layer whose loads come as closely as the issuer lets them, or later."""
    rows, drain_planes, turns = draw(st.sampled_from([4, 4, 8, 12])), draw(DRAIN_PLANES), draw(TURNS)
    spec = ArraySpec(
        rows=rows,
        columns=turns * draw(st.integers(1, 5 if turns == 1 else 3)),
        pipelined=turns == 2,
        lanes=128,
        activation_planes_max=draw(st.integers(1, 8)),
        accumulator_width=WIDTH,
        coefficient_bits=draw(st.sampled_from([0, 2])),
        drain_planes=drain_planes,
        activation_depth=draw(st.sampled_from([2, 256])),
        threshold_depth=1024,
        result_depth=draw(st.sampled_from([4, 256])),
        row_tiles_max=4,
    )
    tiles, planes = draw(st.integers(1, 4)), draw(st.integers(1, spec.activation_planes_max))
    raw, table = draw(st.sampled_from([(False, False), (False, True), (True, False)]))
    pool = 1 if raw else draw(st.sampled_from([1, 1, 2, 4, 9]))
    flags = (FLAG_RAW if raw else 0) | draw(st.sampled_from([0, FLAG_OFFSET]))
    if spec.coefficient_bits:
        flags |= draw(st.sampled_from([0, FLAG_COEFFICIENTS])) | (FLAG_TABLE if table else 0)
        planes = min(planes, 4) if table else planes
    rng = random.Random(draw(st.integers(0, 2**32)))
    fields = header(
        flags=flags,
        row_tiles=tiles,
        threshold_base=draw(st.sampled_from([0, 3, 0xFFFF])) << planes & 0xFFFF,
        output_planes=1 if raw else planes,
        output_base=draw(st.integers(0, 0xFFFF)),
        output_plane_stride=draw(st.integers(0, 0xFFFF)),
        output_granules=draw(st.integers(0, 9)),
        channels=tiles * rows - draw(st.integers(0, rows - 1)),
        **{f"code_table_{plane}": rng.getrandbits(16) for plane in range(4)},
    )
    layer = {entry.name: fields[entry.name] & ((1 << entry.width) - 1) for entry in descriptor_fields(spec)}
    windows = pool * draw(st.integers(1, 5))
    partial = draw(st.booleans())  # groups with any number of windows; otherwise only the last one has fewer
    groups: list[list[int]] = []
    while (first := sum(map(len, groups))) < windows:
        size = rng.randint(1, spec.columns) if partial else spec.columns
        groups.append(list(range(first, min(first + size, windows))))
    small = rng.choice([4, LIMIT])
    channel_flags = [(rng.random() < 0.5, rng.random() < 0.5) for _ in range(tiles * rows)]
    levels = 0 if raw else (1 << planes) - 1
    case = Case(
        spec=spec,
        layer=layer,
        pool=pool,
        groups=groups,
        sums=[[rng.randint(-small, small - 1) for _ in range(tiles * rows)] for _ in range(windows)],
        column_sums=[rng.randint(-small, small - 1) for _ in range(windows)],
        thresholds=[
            sorted((rng.randint(-small, small - 1) for _ in range(levels)), reverse=negate)
            for negate, _ in channel_flags
        ],
        flags=channel_flags,
    )
    slack = rng.choice([0, 0, 1, 7])
    cycle = 0
    for group, _ in case.tiles:
        case.loads.append(cycle + rng.randint(0, slack))
        cycle = case.loads[-1] + case.cycles(len(groups[group]))
    return case


def drained(case: Case) -> tuple[list[Write], list[int], int]:
    """Writes, cycles of ``layer_done``, and cycles of comparisons of a case."""
    spec = case.spec
    dut = Drain(spec)
    m = Module()
    m.submodules.dut = dut
    for row in range(spec.rows):
        m.submodules[f"thresholds_{row}"] = store = memory.Memory(
            shape=threshold_layout(spec), depth=spec.threshold_depth // 2, init=case.threshold_memory(row)
        )
        for number in range(spec.drain_planes):
            port = store.read_port()
            m.d.comb += [
                port.addr.eq(dut.threshold_address[number][row]),
                dut.thresholds[number][row].eq(port.data),
            ]
    writes: list[Write] = []
    done: list[int] = []
    comparisons = 0
    tile_by_load = dict(zip(case.loads, case.tiles, strict=True))

    async def bench(ctx: Any) -> None:
        nonlocal comparisons
        ctx.set(dut.layer, case.layer)
        chain: list[tuple[list[int], int]] = []  # sums and column sum of each column
        planes = [0] * case.turns  # the next write's
        for cycle in range(case.loads[-1] + (spec.columns + 2 * spec.drain_planes) * case.steps + 30):
            loaded = tile_by_load.get(cycle)
            ctx.set(dut.load, loaded is not None)
            ctx.set(dut.tile, case.tile(*loaded) if loaded else {})
            if ctx.get(dut.write_raw):
                writes.append((cycle, -1, ctx.get(dut.write_address), ctx.get(dut.write_value), 0))
            enabled = ctx.get(dut.write)
            assert not (enabled & enabled + 1), "planes written at once start with the first"
            turn = cycle % case.turns
            for number in range(enabled.bit_length()):
                target, data = ctx.get(dut.write_position[number]), ctx.get(dut.write_data[number])
                writes.append((cycle, planes[turn], target, data, ctx.get(dut.write_granules)))
                planes[turn] = (planes[turn] + 1) % case.layer["output_planes"]
            if ctx.get(dut.layer_done):
                done.append(cycle)
            comparisons += ctx.get(dut.comparing)
            shift = ctx.get(dut.shift)
            await ctx.tick()
            if loaded:
                group, tile = loaded
                part = slice(tile * spec.rows, (tile + 1) * spec.rows)
                chain = [(case.sums[window][part], case.column_sums[window]) for window in case.groups[group]]
            elif shift:
                chain = chain[1:]
            # Beyond the last column the chain holds what the drain must not look at.
            sums, column_sum = chain[0] if chain else ([-LIMIT] * spec.rows, LIMIT - 1)
            ctx.set(dut.sums, sums)
            ctx.set(dut.column_sum, column_sum)

    drive(m, bench, max_cycles=100_000)
    return writes, done, comparisons


@given(cases())
@settings(max_examples=50, deadline=None)
def test_drain_writes_pooled_codes_and_raw_results_on_time(case):
    writes, done, comparisons = drained(case)
    assert writes == case.writes()
    columns, steps = len(case.groups[-1]), case.steps
    if case.raw:
        assert done == [case.loads[-1] + columns * steps + RAW_TO_WRITE + case.spec.derived.turns - 1]
    else:
        in_turns = case.turns * (case.spec.drain_planes * steps + steps - 1)
        assert done == [case.loads[-1] + case.offset(columns - 1) + in_turns + DRAIN_TO_WRITE]
        assert done == [writes[-1][0]]
    assert comparisons == (0 if case.raw else len(case.sums) * case.layer["row_tiles"] * steps)


@pytest.mark.parametrize("columns", [1, 2, 4, 5])
@pytest.mark.parametrize("tiles", [1, 2, 3])
@pytest.mark.parametrize("drain_planes", [1, 4])
@pytest.mark.parametrize("turns", [1, 2])
def test_a_pooling_window_may_span_groups(turns, drain_planes, tiles, columns):
    """Nine windows of each channel, as fast as they can come: the extreme one anywhere, by maximum and by minimum."""
    spec = ArraySpec(
        rows=4,
        columns=columns * turns,
        drain_planes=drain_planes,
        pipelined=turns == 2,
        accumulator_width=WIDTH,
        threshold_depth=16,
        row_tiles_max=4,
    )
    planes = 2
    channels = tiles * spec.rows
    layer = header(row_tiles=tiles, output_planes=planes, output_granules=tiles, channels=channels, threshold_base=12)
    groups = [list(range(18))[start:][: spec.columns] for start in range(0, 18, spec.columns)]
    thresholds, flags = [[0, 10, 20]] * channels, [(False, False), (False, True)] * (channels // 2)
    for extreme in (0, 3, 4, 8):
        sums = [[10] * channels for _ in range(18)]
        sums[extreme] = [30, 0] * (channels // 2)
        case = Case(spec, layer, 9, groups, sums, [0] * 18, thresholds, flags)
        cycle = 0
        for group, _ in case.tiles:
            case.loads.append(cycle)
            cycle += case.cycles(len(groups[group]))
        writes, _, _ = drained(case)
        assert writes == case.writes()
        # Channel 0 (maximum) sees code 3 and channel 1 (minimum) code 1 in the first pooling window only.
        data = [entry[3] for entry in writes]
        assert data == [0b1111, 0b0101] * tiles + [0b0000, 0b1111] * tiles


@pytest.mark.parametrize("rows", [4, 8, 16])
@pytest.mark.parametrize("channels", [1, 4, 5, 11, 16, 17])
def test_only_granules_with_channels_are_written(channels, rows):
    """All rows reach their threshold, beyond the last channel too."""
    spec = ArraySpec(rows=rows, columns=1, lanes=128, accumulator_width=WIDTH, threshold_depth=32, row_tiles_max=8)
    tiles = -(-channels // rows)
    layer = header(row_tiles=tiles, channels=channels, output_granules=granules_of(channels))
    size = tiles * rows
    case = Case(spec, layer, 1, [[0]], [[1] * size], [0], [[1]] * size, [(False, False)] * size, list(range(tiles)))
    writes, _, _ = drained(case)
    written = {
        position * GRANULE + row: data >> row & 1
        for _, _, position, data, granules in writes
        for row in range(rows)
        if granules >> row // GRANULE & 1
    }
    assert written == {lane: int(lane < channels) for lane in range(granules_of(channels) * GRANULE)}
