import dataclasses
import itertools
import random
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.isa import (
    FIELD_NAMES,
    FLAG_LAST,
    FLAG_RAW,
    HEADER_WORDS,
    LAYER_TO_RUN,
    ArraySpec,
    Descriptor,
    ErrorCode,
    Pass,
    descriptor_fields,
)
from bitwright.hw.sequencer import LayerSequencer, TileIssuer
from drive import drive, header

SPEC = ArraySpec(
    rows=3,
    columns=2,
    lanes=32,
    weight_planes_max=4,
    activation_planes_max=4,
    activation_depth=256,
    weight_depth=256,
    threshold_depth=64,
    descriptor_depth=128,
    window_words_max=16,
    row_tiles_max=8,
)


# LayerSequencer ------------------------------------------------------------------------------------------------------


class Sequencer:
    """A sequencer with its descriptor memory, and a count of cycles from the start."""

    def __init__(self, words: np.ndarray) -> None:
        self.dut = dut = LayerSequencer(SPEC)
        self.cycle = Signal(32)
        self.module = m = Module()
        m.submodules.dut = dut
        m.submodules.descriptors = store = memory.Memory(shape=32, depth=SPEC.descriptor_depth, init=words.tolist())
        port = store.read_port()
        m.d.comb += [port.addr.eq(dut.address), port.en.eq(dut.read), dut.word.eq(port.data)]
        m.d.sync += self.cycle.eq(self.cycle + 1)

    async def start(self, ctx: Any) -> None:
        """Start, and return in the first cycle of the first layer."""
        ctx.set(self.dut.start, 1)
        await ctx.tick()
        ctx.set(self.dut.start, 0)
        assert ctx.get(self.dut.busy)

    async def until(self, ctx: Any, port: Any) -> int:
        """Wait for a port to be 1; return the cycles that took."""
        start = ctx.get(self.cycle)
        while not ctx.get(port):
            await ctx.tick()
        return ctx.get(self.cycle) - start


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """Any header that this array accepts, not flagged last, and any passes."""
    fields = {field.name: draw(st.integers(field.low, field.high)) for field in descriptor_fields(SPEC)}
    fields |= {"flags": fields["flags"] & ~FLAG_LAST, "kernel_height": 1, "kernel_width": 1, "input_words": 1}
    entry = st.builds(Pass, st.integers(0, 2**14 - 1), st.integers(0, 7), st.booleans(), st.booleans())
    passes = draw(st.lists(entry, min_size=1, max_size=4))
    return Descriptor(fields=fields | {"passes": len(passes)}, passes=tuple(passes))


def program(layers: list[Descriptor]) -> np.ndarray:
    """Descriptor memory, the last layer flagged."""
    last = layers[-1]
    last = dataclasses.replace(last, fields=dict(last.fields) | {"flags": last.flags | FLAG_LAST})
    return np.concatenate([layer.encode(SPEC) for layer in [*layers[:-1], last]])


@given(layers=st.lists(descriptors(), min_size=1, max_size=3), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_layers_run_one_after_the_other(layers, seed):
    words = program(layers)
    sequencer = Sequencer(words)
    dut = sequencer.dut

    async def bench(ctx):
        rng = random.Random(seed)
        await sequencer.start(ctx)
        for number, layer in enumerate(layers):
            assert ctx.get(dut.layer_start)
            assert ctx.get(dut.layer_index) == number
            assert await sequencer.until(ctx, dut.run) == LAYER_TO_RUN
            flags = layer.flags | (FLAG_LAST if number == len(layers) - 1 else 0)
            assert {name: ctx.get(dut.layer[name]) for name in FIELD_NAMES} == dict(layer.fields) | {"flags": flags}
            # The passes come over and over, each held until it is taken.
            for index in itertools.islice(itertools.cycle(range(len(layer.passes))), 20):
                await sequencer.until(ctx, dut.passes.valid)
                taken = False
                while not taken:
                    item, entry = dut.passes.payload, layer.passes[index]
                    assert (ctx.get(item.first), ctx.get(item.last)) == (index == 0, index == len(layer.passes) - 1)
                    found = {name: ctx.get(item.word[name]) for name in dataclasses.asdict(entry)}
                    assert found == dataclasses.asdict(entry)
                    taken = rng.random() < 0.6
                    ctx.set(dut.passes.ready, taken)
                    await ctx.tick()
                    assert not ctx.get(dut.run)
            ctx.set(dut.passes.ready, 0)
            ctx.set(dut.layer_done, 1)
            assert ctx.get(dut.finished) == (number == len(layers) - 1)
            assert ctx.get(dut.error) == ErrorCode.NONE
            await ctx.tick()
            ctx.set(dut.layer_done, 0)
        assert not ctx.get(dut.busy)

    drive(sequencer.module, bench)


def test_a_pass_is_offered_from_the_second_cycle_of_a_run():
    sequencer = Sequencer(program([Descriptor(fields=header(), passes=(Pass(5, 0, False, False),))]))

    async def bench(ctx):
        await sequencer.start(ctx)
        await sequencer.until(ctx, sequencer.dut.run)
        assert await sequencer.until(ctx, sequencer.dut.passes.valid) == 1
        ctx.set(sequencer.dut.passes.ready, 1)
        for _ in range(5):  # a pass every cycle, even if there is only one
            assert ctx.get(sequencer.dut.passes.valid)
            assert ctx.get(sequencer.dut.passes.payload.word.weight_offset) == 5
            await ctx.tick()

    drive(sequencer.module, bench)


def corrupted(name: str, value: int) -> np.ndarray:
    """A layer that is right, then one with a field out of range, written as the compiler never would."""
    good = Descriptor(fields=header(), passes=(Pass(0, 0, False, False),)).encode(SPEC)
    bad = good.copy()
    index, shift = FIELD_NAMES.index(name) // 2, FIELD_NAMES.index(name) % 2 * 16
    bad[index] = bad[index] & ~np.uint32(0xFFFF << shift) | np.uint32((value & 0xFFFF) << shift)
    return np.concatenate([good, bad])


async def second_layer(ctx: Any, sequencer: Sequencer) -> None:
    """Start, and end the first layer."""
    await sequencer.start(ctx)
    await sequencer.until(ctx, sequencer.dut.run)
    ctx.set(sequencer.dut.layer_done, 1)
    await ctx.tick()
    ctx.set(sequencer.dut.layer_done, 0)
    assert ctx.get(sequencer.dut.layer_index) == 1


FIELDS = {field.name: field for field in descriptor_fields(SPEC)}
WRONG = [(field.name, field.low - 1) for field in FIELDS.values() if field.low > (-0x8000 if field.signed else 0)]
WRONG += [
    (field.name, field.high + 1) for field in FIELDS.values() if field.high < (0x7FFF if field.signed else 0xFFFF)
]
WRONG += [(name, -0x8000 if FIELDS[name].signed else 0xFFFF) for name, value in WRONG if value > 0]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_out_of_range_stops_the_machine(name, value):
    sequencer = Sequencer(corrupted(name, value))
    dut = sequencer.dut

    async def bench(ctx):
        await second_layer(ctx, sequencer)
        assert await sequencer.until(ctx, dut.finished) == LAYER_TO_RUN - 1
        if ctx.get(dut.error) == ErrorCode.END:  # too many passes may not fit in the memory either
            assert name == "passes"
        else:
            assert ctx.get(dut.error) == ErrorCode.FIELD
            assert ctx.get(dut.error_field) == FIELD_NAMES.index(name)
        await ctx.tick()
        assert not ctx.get(dut.busy)
        assert not ctx.get(dut.run)

    drive(sequencer.module, bench)


@pytest.mark.parametrize(("name", "low", "high"), [(field.name, field.low, field.high) for field in FIELDS.values()])
def test_the_ends_of_each_range_are_accepted(name, low, high):
    for value in (low, high):
        sequencer = Sequencer(corrupted(name, value))

        async def bench(ctx, sequencer=sequencer):
            await second_layer(ctx, sequencer)
            assert await sequencer.until(ctx, sequencer.dut.run) == LAYER_TO_RUN

        drive(sequencer.module, bench)


@pytest.mark.parametrize("over", [0, 1])
def test_descriptors_end_with_their_memory(over):
    passes = (Pass(0, 0, False, False),) * 16
    layer = Descriptor(fields=header(passes=len(passes)), passes=passes)
    count = SPEC.descriptor_depth // layer.words
    spare = SPEC.descriptor_depth - count * layer.words - HEADER_WORDS
    assert 1 <= spare < SPEC.derived.passes_max
    final = Descriptor(fields=header(passes=spare + over), passes=passes[:1] * (spare + over))
    words = program([layer] * count + [final])[: SPEC.descriptor_depth]
    sequencer = Sequencer(words)
    dut = sequencer.dut

    async def bench(ctx):
        await sequencer.start(ctx)
        for _ in range(count):
            await sequencer.until(ctx, dut.run)
            ctx.set(dut.layer_done, 1)
            await ctx.tick()
            ctx.set(dut.layer_done, 0)
        if over:
            assert await sequencer.until(ctx, dut.finished) == LAYER_TO_RUN - 1
            assert ctx.get(dut.error) == ErrorCode.END
        else:
            assert await sequencer.until(ctx, dut.run) == LAYER_TO_RUN

    drive(sequencer.module, bench)


def test_a_window_too_large_stops_the_machine():
    sequencer = Sequencer(corrupted("flags", 0))
    dut = sequencer.dut

    async def bench(ctx):
        await second_layer(ctx, sequencer)
        await sequencer.until(ctx, dut.run)
        await ctx.tick().repeat(7)
        assert not ctx.get(dut.finished)
        ctx.set(dut.overflow, 1)
        assert ctx.get(dut.finished)
        assert ctx.get(dut.error) == ErrorCode.WINDOW
        await ctx.tick()
        assert not ctx.get(dut.busy)

    drive(sequencer.module, bench)


# TileIssuer ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Issue:
    """An operation with what goes with it."""

    clear: bool
    double: bool
    negate: bool
    empty: bool
    pass_last: bool
    last: bool
    plane: int
    index: int
    weight_address: int
    skipped: int | None
    tile: dict[str, int]


@st.composite
def issued_layers(draw: st.DrawFn) -> tuple[dict[str, int], list[dict[str, Any]], list[Pass]]:
    """A descriptor, its groups as the scanner gives them, and its passes."""
    passes = draw(
        st.lists(
            st.builds(Pass, st.integers(0, 100), st.integers(0, 3), st.booleans(), st.booleans()),
            min_size=1,
            max_size=4,
        )
    )
    layer = header(
        flags=draw(st.sampled_from([0, FLAG_RAW])),
        row_tiles=draw(st.integers(1, 8)),
        weight_base=draw(st.integers(0, 255)),
        weight_tile_stride=draw(st.integers(0, 255)),
        threshold_base=draw(st.sampled_from([0, 9, 0xFFFF])),
        output_planes=draw(st.integers(1, 4)),
    )
    count = draw(st.integers(1, 4))
    lengths = st.lists(st.integers(0, 5), min_size=4, max_size=4)
    columns = st.integers(1, (1 << SPEC.columns) - 1)
    groups = [
        {
            "valid": draw(columns),
            "pool_first": draw(columns),
            "pool_last": draw(columns),
            "output_address": draw(st.integers(0, 0xFFFF)),
            "drain_cycles": draw(st.integers(1, SPEC.columns * 4)),
            "window_words": 5,
            "list_lengths": draw(lengths),
            "last": int(number == count - 1),
        }
        for number in range(count)
    ]
    return layer, groups, passes


def issues(layer: dict[str, int], group: dict[str, Any], passes: list[Pass]) -> list[Issue]:
    """Operations of a group: row tiles, passes, words of the list."""
    found = []
    levels = (1 << layer["output_planes"]) - 1
    for tile in range(layer["row_tiles"]):
        word, slot = divmod(tile, SPEC.derived.slots)
        channel = tile * SPEC.rows
        known = {
            **{name: group[name] for name in ("valid", "pool_first", "pool_last")},
            "output_address": (group["output_address"] + (channel if layer["flags"] & FLAG_RAW else word)) & 0xFFFF,
            "slot": slot,
            "tile": tile,
            "channel": channel,
            "threshold_address": (layer["threshold_base"] + tile * levels) % SPEC.threshold_depth,
            "last": int(group["last"] and tile == layer["row_tiles"] - 1),
        }
        for number, entry in enumerate(passes):
            length = group["list_lengths"][entry.activation_plane]
            for index in range(max(length, 1)):
                pass_last = index == max(length, 1) - 1
                weights = layer["weight_base"] + tile * layer["weight_tile_stride"] + entry.weight_offset
                found.append(
                    Issue(
                        clear=number == 0 and index == 0,
                        double=entry.double and index == 0,
                        negate=entry.negate,
                        empty=length == 0,
                        pass_last=pass_last,
                        last=pass_last and number == len(passes) - 1,
                        plane=entry.activation_plane,
                        index=index,
                        weight_address=weights % SPEC.weight_depth,
                        skipped=group["window_words"] - length if pass_last else None,
                        tile=known,
                    )
                )
    return found


def observed(ctx: Any, dut: TileIssuer) -> Issue:
    """The operation of this cycle."""
    operation = dut.operation
    names = ("clear", "double", "negate", "empty", "pass_last", "last")
    bits = {name: bool(ctx.get(operation[name])) for name in names}
    return Issue(
        **bits,
        plane=ctx.get(operation.list_plane),
        index=ctx.get(operation.list_index),
        weight_address=ctx.get(operation.weight_address),
        skipped=ctx.get(dut.skipped) if bits["pass_last"] else None,
        tile={name: ctx.get(dut.tile[name]) for name, _ in dut.tile.shape()},
    )


@given(case=issued_layers(), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_issuer_runs_every_word_of_every_pass_of_every_tile(case, seed):
    layer, groups, passes = case
    dut = TileIssuer(SPEC)
    rng = random.Random(seed)
    waits = [rng.choice([0, 0, 30]) for _ in groups]

    async def bench(ctx):
        ctx.set(dut.layer, layer)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        cycle, last, drain, next_pass = 0, -100, 0, 0
        buffer, current = 0, groups[0]
        pending: list[Issue] = []
        waiting = list(zip(groups, waits, strict=True))
        ready_from = waiting[0][1]
        while waiting or pending:
            ready = bool(waiting) and cycle >= ready_from
            ctx.set(dut.group_ready, ready)
            ctx.set(dut.group, waiting[0][0] if ready else groups[0])
            ctx.set(dut.group_buffer, 1 - buffer)
            ctx.set(dut.passes.valid, 1)
            ctx.set(dut.passes.payload.word, dataclasses.asdict(passes[next_pass]))
            ctx.set(dut.passes.payload.first, next_pass == 0)
            ctx.set(dut.passes.payload.last, next_pass == len(passes) - 1)

            # The last operation of a tile waits until the tile before has been drained.
            stalled = bool(pending) and pending[0].last and cycle < last + drain
            assert ctx.get(dut.stalled) == stalled, cycle
            assert ctx.get(dut.operation.valid) == (bool(pending) and not stalled), cycle
            taken = ready and (not pending or (len(pending) == 1 and not stalled))
            assert ctx.get(dut.take) == taken, cycle
            if pending and not stalled:
                operation = pending.pop(0)
                assert observed(ctx, dut) == operation, cycle
                assert ctx.get(dut.operation.list_buffer) == buffer
                assert ctx.get(dut.passes.ready) == operation.pass_last
                next_pass = (next_pass + operation.pass_last) % len(passes)
                if operation.last:
                    last, drain = cycle, current["drain_cycles"]
            if taken:
                current = waiting.pop(0)[0]
                pending = issues(layer, current, passes)
                buffer = 1 - buffer
                ready_from = cycle + 1 + (waiting[0][1] if waiting else 0)
            await ctx.tick()
            cycle += 1
        ctx.set(dut.group_ready, 0)
        assert not ctx.get(dut.operation.valid)

    drive(dut, bench)
