import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
from amaranth.hdl import Module
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.drain import Drain, ThresholdUnit, threshold_layout
from bitwright.hw.isa import DRAIN_TO_WRITE, FLAG_OFFSET, FLAG_RAW, RAW_TO_WRITE, ArraySpec
from drive import drive, header, wrap

WIDTH = 10
LIMIT = 1 << (WIDTH - 1)
VALUES = st.one_of(st.integers(-LIMIT, LIMIT - 1), st.integers(-6, 6))


def reached(value: int, threshold: int, *, negate: bool) -> bool:
    """Whether a value is on the far side of a threshold."""
    return value < threshold if negate else value >= threshold


def code_of(value: int, thresholds: list[int], *, negate: bool) -> int:
    """Thresholds that a value reaches; they lie in order."""
    return sum(reached(value, threshold, negate=negate) for threshold in thresholds)


# ThresholdUnit -------------------------------------------------------------------------------------------------------


@given(
    planes=st.integers(1, 8),
    negate=st.booleans(),
    pool_min=st.booleans(),
    spread=st.sampled_from([3, 100, LIMIT]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_code_counts_the_thresholds_reached(planes, negate, pool_min, spread, seed):
    rng = random.Random(seed)
    dut = ThresholdUnit(ArraySpec(accumulator_width=WIDTH))
    thresholds = sorted((rng.randint(-spread, spread - 1) for _ in range((1 << planes) - 1)), reverse=negate)
    values = [-LIMIT, LIMIT - 1, *(rng.randint(-spread, spread - 1) for _ in range(8))]
    values += [rng.choice(thresholds) + side for side in (-1, 0, 1)]

    async def bench(ctx):
        for value in (wrap(value, WIDTH) for value in values):
            ctx.set(dut.value, value)
            ctx.set(dut.step, 1)
            code = 0
            for plane in reversed(range(planes)):
                ctx.set(dut.bit, 1 << plane)
                ctx.set(dut.first, plane == planes - 1)
                threshold = thresholds[(code | 1 << plane) - 1]
                ctx.set(dut.entry, {"value": threshold, "negate": negate, "pool_min": pool_min})
                code = ctx.get(dut.next_code)
                await ctx.tick()
                assert ctx.get(dut.code) == code
            assert code == code_of(value, thresholds, negate=negate)
            assert ctx.get(dut.pool_min) == pool_min
            ctx.set(dut.step, 0)
            ctx.set(dut.bit, 1)
            await ctx.tick()
            assert ctx.get(dut.code) == code  # held between searches

    drive(dut, bench)


# Drain ---------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A layer to drain: windows in groups of ``columns``, each with the sums of all channels."""

    spec: ArraySpec
    layer: dict[str, int]
    pool: int
    sums: list[list[int]]  # windows, channels
    column_sums: list[int]
    thresholds: list[list[int]]  # channels, levels
    flags: list[tuple[bool, bool]]  # negate and pool_min of each channel
    loads: list[int] = field(default_factory=list)  # cycle of each row tile of each group

    @property
    def raw(self) -> bool:
        return bool(self.layer["flags"] & FLAG_RAW)

    @property
    def steps(self) -> int:
        """Cycles of one column."""
        return self.spec.rows if self.raw else self.layer["output_planes"]

    @cached_property
    def groups(self) -> list[list[int]]:
        """Windows of each group."""
        columns = self.spec.columns
        return [list(range(len(self.sums)))[start:][:columns] for start in range(0, len(self.sums), columns)]

    def value(self, window: int, channel: int) -> int:
        """What the thresholds see."""
        total = self.sums[window][channel]
        offset = self.layer["flags"] & FLAG_OFFSET
        return wrap(2 * total - self.column_sums[window] if offset else total, WIDTH)

    def tile(self, group: int, tile: int) -> dict[str, int]:
        """A row tile of a group, as the issuer describes it."""
        spec, windows = self.spec, self.groups[group]
        completed = windows[0] // self.pool
        word, slot = divmod(tile, spec.derived.slots)
        place = tile * spec.rows if self.raw else word
        levels = (1 << self.layer["output_planes"]) - 1
        return {
            "valid": (1 << len(windows)) - 1,
            "pool_first": sum((window % self.pool == 0) << column for column, window in enumerate(windows)),
            "pool_last": sum((window % self.pool == self.pool - 1) << column for column, window in enumerate(windows)),
            "output_address": (self.layer["output_base"] + completed * self.layer["output_words"] + place) & 0xFFFF,
            "slot": slot,
            "tile": tile,
            "channel": tile * spec.rows,
            "threshold_address": (self.layer["threshold_base"] + tile * levels) % spec.threshold_depth,
            "last": int(group == len(self.groups) - 1 and tile == self.layer["row_tiles"] - 1),
        }

    def threshold_memory(self, row: int) -> list[Any]:
        """Entries of a row's bank."""
        entries: list[Any] = [{}] * self.spec.threshold_depth
        for tile in range(self.layer["row_tiles"]):
            channel = tile * self.spec.rows + row
            negate, pool_min = self.flags[channel]
            for index, threshold in enumerate(self.thresholds[channel]):
                address = self.layer["threshold_base"] + tile * len(self.thresholds[channel]) + index + 1
                entries[address % self.spec.threshold_depth] = {
                    "value": threshold,
                    "negate": int(negate),
                    "pool_min": int(pool_min),
                }
        return entries

    def writes(self) -> list[tuple[int, ...]]:
        """(cycle, raw, address, slot, data, flag) of every write, in order."""
        spec, layer = self.spec, self.layer
        found = []
        for group, windows in enumerate(self.groups):
            for tile in range(layer["row_tiles"]):
                load = self.loads[group * layer["row_tiles"] + tile]
                address = self.tile(group, tile)["output_address"]
                for column, window in enumerate(windows):
                    if self.raw:
                        found += self._raw_writes(load + 1 + column * spec.rows, address, window, tile)
                    elif window % self.pool == self.pool - 1:
                        found += self._code_writes(load + (column + 1) * self.steps, address, window, tile)
                    if self.raw or window % self.pool == self.pool - 1:
                        address += layer["output_words"]
        return sorted(found)

    def _raw_writes(self, start: int, address: int, window: int, tile: int) -> list[tuple[int, ...]]:
        rows, channels = self.spec.rows, self.layer["channels"]
        kept = [row for row in range(rows) if tile * rows + row < channels]
        values = [self.value(window, tile * rows + row) for row in kept]
        return [
            (start + row + RAW_TO_WRITE, 1, (address + row) & 0xFFFF, 0, value, 0)
            for row, value in zip(kept, values, strict=True)
        ]

    def _code_writes(self, compared: int, address: int, window: int, tile: int) -> list[tuple[int, ...]]:
        rows, slots = self.spec.rows, self.spec.derived.slots
        codes = [self._pooled(window, channel) for channel in range((tile + 1) * rows)]
        found = []
        for plane in range(self.layer["output_planes"]):
            bits = [code >> plane & 1 for code in codes]
            data = sum(bit << row for row, bit in enumerate(bits[tile * rows :]))
            word_so_far = bits[tile // slots * slots * rows :]
            target = (address + plane * self.layer["output_plane_stride"]) & 0xFFFF
            found.append((compared + DRAIN_TO_WRITE + plane, 0, target, tile % slots, data, int(any(word_so_far))))
        return found

    def _pooled(self, last: int, channel: int) -> int:
        """Code of the pooling window that ends with a window."""
        negate, pool_min = self.flags[channel]
        values = [self.value(window, channel) for window in range(last - self.pool + 1, last + 1)]
        codes = [code_of(value, self.thresholds[channel], negate=negate) for value in values]
        return min(codes) if pool_min else max(codes)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A layer whose loads come as closely as the issuer lets them, or later."""
    spec = ArraySpec(
        rows=draw(st.sampled_from([1, 2, 3, 8, 32])),
        columns=draw(st.integers(1, 5)),
        lanes=32,
        activation_planes_max=draw(st.sampled_from([4, 5])),
        accumulator_width=WIDTH,
        threshold_depth=256,
        row_tiles_max=16,
    )
    tiles, planes, pool = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 1, 2, 4, 9]))
    raw = draw(st.booleans())
    pool = 1 if raw else pool
    channels = tiles * spec.rows
    layer = header(
        flags=draw(st.sampled_from([0, FLAG_OFFSET])) | (FLAG_RAW if raw else 0),
        row_tiles=tiles,
        threshold_base=draw(st.sampled_from([0, 17, 0xFFFF])),
        output_planes=1 if raw else planes,
        output_base=draw(st.integers(0, 0xFFFF)),
        output_plane_stride=draw(st.integers(0, 0xFFFF)),
        output_words=draw(st.integers(1, 9)),
        channels=channels - draw(st.integers(0, spec.rows - 1)),
    )
    windows = pool * draw(st.integers(1, 5))
    rng = random.Random(draw(st.integers(0, 2**32)))
    small = rng.choice([4, LIMIT])
    levels = 0 if raw else (1 << planes) - 1
    flags = [(rng.random() < 0.5, rng.random() < 0.5) for _ in range(channels)]
    case = Case(
        spec=spec,
        layer=layer,
        pool=pool,
        sums=[[rng.randint(-small, small - 1) for _ in range(channels)] for _ in range(windows)],
        column_sums=[rng.randint(-small, small - 1) for _ in range(windows)],
        thresholds=[
            sorted((rng.randint(-small, small - 1) for _ in range(levels)), reverse=negate) for negate, _ in flags
        ],
        flags=flags,
    )
    slack = rng.choice([0, 0, 5])
    cycle = 0
    for group in case.groups:
        # A group takes at least as long as its scan: a cycle a column, one word of one plane, and the overhead.
        for tile in range(tiles):
            case.loads.append(cycle + rng.randint(0, slack))
            cycle = case.loads[-1] + len(group) * case.steps
            if tile == tiles - 1:
                cycle = max(cycle, case.loads[-tiles] + spec.columns + 3)
    return case


def drained(case: Case) -> tuple[list[tuple[int, ...]], list[int], int]:
    """Writes, cycles of ``layer_done``, and comparisons of a case."""
    dut = Drain(case.spec)
    m = Module()
    m.submodules.dut = dut
    for row in range(case.spec.rows):
        m.submodules[f"thresholds_{row}"] = store = memory.Memory(
            shape=threshold_layout(case.spec), depth=case.spec.threshold_depth, init=case.threshold_memory(row)
        )
        port = store.read_port()
        m.d.comb += [port.addr.eq(dut.threshold_address[row]), dut.thresholds[row].eq(port.data)]
    writes: list[tuple[int, ...]] = []
    done: list[int] = []
    comparisons = 0
    tiles, rows = case.layer["row_tiles"], case.spec.rows
    tile_by_load = {load: divmod(number, tiles) for number, load in enumerate(case.loads)}

    async def bench(ctx: Any) -> None:
        nonlocal comparisons
        ctx.set(dut.layer, case.layer)
        chain: list[tuple[list[int], int]] = []  # sums and column sum of each column
        for cycle in range(case.loads[-1] + case.spec.columns * case.steps + 20):
            loaded = tile_by_load.get(cycle)
            ctx.set(dut.load, loaded is not None)
            if loaded:
                ctx.set(dut.tile, case.tile(*loaded))
            if ctx.get(dut.write):
                raw = ctx.get(dut.write_raw)
                data = ctx.get(dut.write_value if raw else dut.write_bits)
                slot, flag = (0, 0) if raw else (ctx.get(dut.write_slot), ctx.get(dut.write_flag))
                writes.append((cycle, raw, ctx.get(dut.write_address), slot, data, flag))
            if ctx.get(dut.layer_done):
                done.append(cycle)
            comparisons += ctx.get(dut.comparing)
            shift = ctx.get(dut.shift)
            await ctx.tick()
            if loaded:
                group, tile = loaded
                part = slice(tile * rows, (tile + 1) * rows)
                chain = [(case.sums[window][part], case.column_sums[window]) for window in case.groups[group]]
            elif shift:
                chain = chain[1:]
            if chain and (loaded or shift):
                ctx.set(dut.sums, chain[0][0])
                ctx.set(dut.column_sum, chain[0][1])

    drive(m, bench, max_cycles=100_000)
    return writes, done, comparisons


@given(cases())
@settings(max_examples=40, deadline=None)
def test_drain_writes_pooled_codes_and_raw_results_on_time(case):
    writes, done, comparisons = drained(case)
    expected = case.writes()
    assert writes == expected
    assert done == [
        case.loads[-1]
        + len(case.groups[-1]) * case.steps
        + (RAW_TO_WRITE if case.raw else DRAIN_TO_WRITE + case.layer["output_planes"] - 1)
    ]
    assert comparisons == (0 if case.raw else len(case.sums) * case.layer["row_tiles"] * case.steps)


@pytest.mark.parametrize("columns", [1, 2, 4, 5])
def test_a_pooling_window_may_span_groups(columns):
    """Nine windows of each channel: the extreme one anywhere, by maximum and by minimum."""
    spec = ArraySpec(rows=2, columns=columns, lanes=32, accumulator_width=WIDTH, threshold_depth=16, row_tiles_max=4)
    layer = header(row_tiles=2, output_planes=2, output_words=1, threshold_base=0xFFFF)
    loads = [number * 30 for number in range(2 * -(-18 // columns))]
    for extreme in (0, 3, 4, 8):
        sums = [[10, 10, 10, 10] for _ in range(18)]
        sums[extreme] = [30, 0, 30, 0]
        case = Case(spec, layer, 9, sums, [0] * 18, [[0, 10, 20]] * 4, [(False, False), (False, True)] * 2, loads=loads)
        writes, _, _ = drained(case)
        assert writes == case.writes()
        # Channel 0 (maximum) sees code 3 and channel 1 (minimum) code 1 in the first pooling window only.
        data = [entry[4] for entry in writes if entry[3] == 0]
        assert data == [0b11 if plane == 0 else 0b01 for plane in (0, 1)] + [0b00, 0b11]
