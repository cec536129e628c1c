import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.isa import (
    DOUBLES_MAX,
    FIELD_NAMES,
    FIELD_PLACES,
    FLAG_LAST,
    HEADER_TO_READY,
    HEADER_WORDS,
    SCHEDULE_END,
    SCHEDULE_OVERHEAD,
    SCHEDULE_START,
    STREAM_OVERHEAD,
    ArraySpec,
    Descriptor,
    ErrorCode,
    Pass,
    descriptor_fields,
)
from bitwright.hw.sequencer import LayerSequencer, PassScheduler, TileIssuer, WeightStreamer
from drive import drive, header
from strategies import descriptors

SPEC = ArraySpec(
    rows=4,
    columns=2,
    lanes=32,
    weight_planes_max=4,
    activation_planes_max=4,
    coefficient_bits=4,
    drain_planes=1,
    weight_stream=True,
    activation_depth=256,
    window_depth=32,
    weight_depth=256,
    threshold_depth=64,
    coefficient_depth=128,
    descriptor_depth=256,
    row_tiles_max=8,
)
RESIDENT = dataclasses.replace(SPEC, weight_stream=False)


# LayerSequencer ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """Cycles of one layer of a program without errors, counted from the first in which the machine is busy."""

    fetch: int
    stream: int | None
    streamed: int | None
    begin: int
    run: int
    end: int


def timeline(layers: Sequence[Descriptor], work: Sequence[int], load: Sequence[int]) -> list[Run]:
    """When each layer is fetched, streams its weights, runs and ends, if it works and loads for so many cycles."""
    runs: list[Run] = []
    fetch, ended = 0, -1
    for layer, working, loading in zip(layers, work, load, strict=True):
        ready, stream, streamed = fetch + HEADER_TO_READY, None, None
        if layer.stream_words:
            stream = ready - 1
            streamed = stream + loading
            ready = streamed + 1
        run = max(ready, ended + 1) + 1
        runs.append(Run(fetch, stream, streamed, ended + 1, run, run + working))
        fetch, ended = run, run + working
    return runs


def sequenced(spec: ArraySpec, words: np.ndarray) -> tuple[LayerSequencer, Module]:
    """A sequencer with its descriptor memory."""
    dut = LayerSequencer(spec)
    m = Module()
    m.submodules.dut = dut
    init = words[: spec.descriptor_depth].tolist()
    m.submodules.descriptors = store = memory.Memory(shape=32, depth=spec.descriptor_depth, init=init)
    port = store.read_port()
    m.d.comb += [port.addr.eq(dut.address), dut.word.eq(port.data)]
    return dut, m


def program(layers: Sequence[Descriptor], spec: ArraySpec) -> np.ndarray:
    """Descriptor memory, the last layer flagged and no other."""
    flagged = []
    for index, layer in enumerate(layers):
        flags = layer.flags & ~FLAG_LAST | (FLAG_LAST if index == len(layers) - 1 else 0)
        flagged.append(dataclasses.replace(layer, fields={**layer.fields, "flags": flags}))
    return np.concatenate([layer.encode(spec) for layer in flagged])


@given(data=st.data(), spec=st.sampled_from([SPEC, RESIDENT]))
@settings(max_examples=30, deadline=None)
def test_layers_run_one_after_the_other(data, spec):
    layers = data.draw(st.lists(descriptors(spec), min_size=1, max_size=4))
    cycles = st.lists(st.sampled_from([0, 1, 7, HEADER_WORDS, 90]), min_size=len(layers), max_size=len(layers))
    runs = timeline(layers, data.draw(cycles), [1 + cycle for cycle in data.draw(cycles)])
    words = program(layers, spec)
    dut, module = sequenced(spec, words)
    kept = {field.name: (1 << field.width) - 1 for field in descriptor_fields(spec)}

    async def bench(ctx):
        ctx.set(dut.start, 1)
        assert not ctx.get(dut.busy)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for cycle in range(runs[-1].end + 1):
            number = sum(run.end < cycle for run in runs)
            now, last = runs[number], number == len(runs) - 1
            ctx.set(dut.layer_done, cycle == now.end)
            ctx.set(dut.stream_done, any(cycle == run.streamed for run in runs))
            assert ctx.get(dut.busy)
            assert ctx.get(dut.layer_index) == number
            assert ctx.get(dut.layer_start) == (cycle == now.begin)
            assert ctx.get(dut.run) == (cycle == now.run), cycle
            assert ctx.get(dut.finished) == (last and cycle == now.end)
            assert ctx.get(dut.error) == ErrorCode.NONE
            streaming = [layer for layer, run in zip(layers, runs, strict=True) if run.stream == cycle]
            assert ctx.get(dut.stream_start) == bool(streaming)
            for layer, run in zip(layers, runs, strict=True):
                if run.stream is not None and run.streamed is not None and run.stream <= cycle <= run.streamed:
                    assert (ctx.get(dut.stream_base), ctx.get(dut.stream_words)) == (
                        layer.weight_base & kept["weight_base"],
                        layer.stream_words,
                    )
            if cycle in (now.run, (now.run + now.end) // 2, now.end):
                flags = layers[number].flags & ~FLAG_LAST | (FLAG_LAST if last else 0)
                expected = {**layers[number].fields, "flags": flags}
                found = {name: ctx.get(dut.layer[name]) & mask for name, mask in kept.items()}
                assert found == {name: value & kept[name] for name, value in expected.items()}
                assert ctx.get(dut.pass_address) == sum(layer.words for layer in layers[:number]) + HEADER_WORDS
            await ctx.tick()
        ctx.set(dut.layer_done, 0)
        for _ in range(2 * HEADER_WORDS):
            assert not any(ctx.get(port) for port in (dut.busy, dut.run, dut.layer_start, dut.stream_start))
            await ctx.tick()

    drive(module, bench)


def corrupted(name: str, value: int) -> np.ndarray:
    """A layer that is right, then one with a field out of range, written as the compiler never would."""
    good = Descriptor(fields=header(), passes=(Pass(0, 0, 0, 0, False),)).encode(SPEC)
    bad = good.copy()
    put(bad, name, value)
    return np.concatenate([good, bad])


def put(words: np.ndarray, name: str, value: int) -> None:
    """Write a field of a header, whatever its range."""
    word, bit = FIELD_PLACES[name]
    mask = (1 << FIELDS[name].bits) - 1
    words[word] = int(words[word]) & ~(mask << bit) | (value & mask) << bit


async def until(ctx: Any, port: Any) -> int:
    """Wait for a port to be 1; return the cycles that took."""
    for cycle in itertools.count():
        if ctx.get(port):
            return cycle
        await ctx.tick()
    raise AssertionError("unreachable")


async def first_layer(ctx: Any, dut: LayerSequencer, work: int = 100) -> None:
    """Start, and run the first layer for so many cycles, without an error, to its end."""
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
    assert await until(ctx, dut.run) == HEADER_TO_READY + 1
    for _ in range(work):
        assert not ctx.get(dut.finished)
        await ctx.tick()
    ctx.set(dut.layer_done, 1)
    assert not ctx.get(dut.finished)
    await ctx.tick()
    ctx.set(dut.layer_done, 0)
    assert ctx.get(dut.layer_start)
    assert ctx.get(dut.layer_index) == 1


FIELDS = {field.name: field for field in descriptor_fields(SPEC)}
WRONG = [
    (field.name, field.low - 1)
    for field in FIELDS.values()
    if field.low > (-(1 << (field.bits - 1)) if field.signed else 0)
]
WRONG += [
    (field.name, field.high + 1) for field in FIELDS.values() if field.high < (1 << (field.bits - field.signed)) - 1
]
WRONG += [
    (name, 0x7FFF if FIELDS[name].signed else 0xFFFF) for name, value in WRONG if value > max(0, FIELDS[name].high)
]


@pytest.mark.parametrize(("name", "value"), WRONG)
@pytest.mark.parametrize("work", [0, 100])
def test_a_field_out_of_range_stops_the_machine(name, value, work):
    """When its layer would start: however early the header was fetched."""
    dut, module = sequenced(SPEC, corrupted(name, value))

    async def bench(ctx):
        await first_layer(ctx, dut, work)
        assert await until(ctx, dut.finished) == max(0, HEADER_TO_READY - work - 1)
        if ctx.get(dut.error) == ErrorCode.END:  # too many passes may not fit in the memory either
            assert name == "passes"
        else:
            assert ctx.get(dut.error) == ErrorCode.FIELD
            assert ctx.get(dut.error_field) == FIELD_NAMES.index(name)
        assert not ctx.get(dut.run)
        await ctx.tick()
        assert not ctx.get(dut.busy)
        assert not ctx.get(dut.run)

    drive(module, bench)


def test_the_first_field_out_of_range_is_named():
    words = corrupted("residual_planes", 0xFFFF)
    second = words[len(words) // 2 :]
    for name in ("window_length", "images", "output_planes"):
        put(second, name, 0)
    dut, module = sequenced(SPEC, words)

    async def bench(ctx):
        await first_layer(ctx, dut)
        assert ctx.get(dut.finished)
        assert ctx.get(dut.error_field) == FIELD_NAMES.index("residual_planes")

    drive(module, bench)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_each_range_are_accepted(name, end):
    value = getattr(FIELDS[name], end)
    dut, module = sequenced(SPEC, corrupted(name, value))

    async def bench(ctx):
        await first_layer(ctx, dut, 0)
        if name == "stream_words" and value:
            await until(ctx, dut.stream_start)
            ctx.set(dut.stream_done, 1)
        await until(ctx, dut.run)
        mask = (1 << FIELDS[name].width) - 1
        assert ctx.get(dut.layer[name]) & mask == value & mask
        assert not ctx.get(dut.finished)

    drive(module, bench)


@pytest.mark.parametrize("over", [0, 1])
def test_descriptors_end_with_their_memory(over):
    """Also for a header that would begin beyond the end."""
    one = (Pass(0, 0, 0, 0, False),)
    sizes = [SPEC.derived.passes_max] * 2
    sizes.append(SPEC.descriptor_depth - sum(sizes) - 3 * HEADER_WORDS + over)
    assert 1 <= sizes[-1] <= SPEC.derived.passes_max + 90
    while sizes[-1] > SPEC.derived.passes_max:
        sizes.append(sizes.pop() - HEADER_WORDS - SPEC.derived.passes_max)
        sizes.insert(0, SPEC.derived.passes_max)
    layers = [Descriptor(fields=header(passes=size), passes=one * size) for size in sizes]
    words = np.concatenate([layer.encode(SPEC) for layer in layers])  # none is flagged last
    assert len(words) == SPEC.descriptor_depth + over
    dut, module = sequenced(SPEC, words)

    async def bench(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _ in range(len(layers) - over):
            await until(ctx, dut.run)
            ctx.set(dut.layer_done, 1)
            await ctx.tick()
            ctx.set(dut.layer_done, 0)
        assert await until(ctx, dut.finished) == HEADER_TO_READY - 1
        assert ctx.get(dut.error) == ErrorCode.END
        assert ctx.get(dut.error_field) == 0
        assert ctx.get(dut.layer_index) == len(layers) - over

    drive(module, bench)


def test_a_window_too_large_stops_the_machine():
    dut, module = sequenced(SPEC, corrupted("flags", 0))

    async def bench(ctx):
        await first_layer(ctx, dut)
        await until(ctx, dut.run)
        await ctx.tick().repeat(7)
        assert not ctx.get(dut.finished)
        ctx.set(dut.overflow, 1)
        assert ctx.get(dut.finished)
        assert ctx.get(dut.error) == ErrorCode.WINDOW
        await ctx.tick()
        assert not ctx.get(dut.busy)

    drive(module, bench)


# WeightStreamer ------------------------------------------------------------------------------------------------------


@given(
    lanes=st.sampled_from([32, 64, 128]),
    transfers=st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(1, 5)), min_size=1, max_size=3),
    gaps=st.sampled_from([0, 0.4, 0.9]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_streamed_words_are_written_row_by_row(lanes, transfers, gaps, seed):
    spec = ArraySpec(rows=4, lanes=lanes, drain_planes=1, weight_stream=True)
    dut = WeightStreamer(spec)

    async def bench(ctx):
        rng = random.Random(seed)
        for base, words in transfers:
            data = [[rng.getrandbits(lanes) for _ in range(words)] for _ in range(spec.rows)]
            expected = [
                (row, (base + number) & 0xFFFF, word)
                for row in range(spec.rows)
                for number, word in enumerate(data[row])
            ]
            beats = [word >> 32 * chunk & 0xFFFFFFFF for _, _, word in expected for chunk in range(spec.derived.chunks)]
            ctx.set(dut.base, base)
            ctx.set(dut.words, words)
            ctx.set(dut.beats.valid, 1)  # before the start nothing is taken
            for _ in range(rng.randrange(3)):
                assert not ctx.get(dut.beats.ready)
                await ctx.tick()
            ctx.set(dut.start, 1)
            assert not ctx.get(dut.beats.ready)
            await ctx.tick()
            ctx.set(dut.start, 0)
            written, cycle, last = [], 0, 0
            while True:
                cycle += 1
                valid = rng.random() >= gaps
                ctx.set(dut.beats.valid, valid)
                ctx.set(dut.beats.payload, beats[0] if beats else 0xDEADBEEF)
                if ctx.get(dut.write):
                    written.append((ctx.get(dut.write_row), ctx.get(dut.write_address), ctx.get(dut.write_word)))
                if ctx.get(dut.done):
                    break
                assert ctx.get(dut.beats.ready)  # it never waits
                if valid:
                    beats.pop(0)
                    last = cycle
                await ctx.tick()
            assert beats == []
            assert cycle == last + 1
            assert written == expected
            await ctx.tick()
            for _ in range(3):
                assert not ctx.get(dut.beats.ready)
                assert not ctx.get(dut.write)
                await ctx.tick()

    drive(dut, bench)


def test_a_layer_waits_for_its_weights():
    words = 3
    layer = Descriptor(fields=header(stream_words=words, flags=FLAG_LAST), passes=(Pass(0, 0, 0, 0, False),))
    dut, module = sequenced(SPEC, layer.encode(SPEC))
    module.submodules.streamer = streamer = WeightStreamer(SPEC)
    module.d.comb += [
        streamer.start.eq(dut.stream_start),
        streamer.base.eq(dut.stream_base),
        streamer.words.eq(dut.stream_words),
        dut.stream_done.eq(streamer.done),
        streamer.beats.valid.eq(1),
    ]

    async def bench(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        beats = SPEC.rows * words * SPEC.derived.chunks
        assert await until(ctx, dut.run) == HEADER_TO_READY + STREAM_OVERHEAD + beats + 1

    drive(module, bench)


# PassScheduler -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """A scheduled pass: its number (None if it only doubles), how often sums double before it, words it computes."""

    number: int | None
    doubles: int
    words: int


def scheduled(layer: Descriptor, lengths: Sequence[int]) -> list[Entry]:
    """Passes with words, and by how much the significance falls between them, and after the last one."""
    falls = list(itertools.accumulate(entry.doubles for entry in layer.passes))
    kept = [number for number, entry in enumerate(layer.passes) if lengths[entry.plane]]
    if not kept:
        return [Entry(None, 0, 0)]
    entries, before = [], falls[kept[0]]
    for number in kept:
        entries.append(Entry(number, falls[number] - before, lengths[layer.passes[number].plane]))
        before = falls[number]
    return entries + ([Entry(None, falls[-1] - before, 0)] if falls[-1] > before else [])


def told(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Lengths as a group has them."""
    return [{"words": length, "some": int(length != 0), "one": int(length == 1)} for length in lengths]


def counted(length: int, extra: int) -> dict[str, int]:
    """Both numbers of an entry, and what the issuer is told of them."""
    told = {"no_word": length == 0, "one_word": length == 1, "no_extra": extra == 0, "one_extra": extra == 1}
    return {"length": length, "extra": extra, **{name: int(value) for name, value in told.items()}}


def entry_fields(layer: Descriptor, entry: Entry, spec: ArraySpec) -> dict[str, int]:
    """What the list holds of an entry."""
    double = int(entry.doubles > 0)
    if entry.number is None:
        return counted(0, max(1, entry.doubles)) | {"double": double}
    known = layer.passes[entry.number]
    return counted(entry.words, max(0, entry.doubles - 1)) | {
        "weight_offset": known.weight_offset % spec.weight_depth,
        "base": known.base,
        "double": double,
        "negate": known.negate,
        "residual": known.plane >= layer.activation_planes,
        "index": entry.number,
    }


def scheduler(spec: ArraySpec, words: np.ndarray) -> tuple[PassScheduler, Module]:
    """A scheduler with its descriptor memory."""
    dut = PassScheduler(spec)
    m = Module()
    m.submodules.dut = dut
    m.submodules.store = store = memory.Memory(shape=32, depth=spec.descriptor_depth, init=words.tolist())
    port = store.read_port()
    m.d.comb += [port.addr.eq(dut.address), port.en.eq(dut.read), dut.word.eq(port.data)]
    return dut, m


def listing(layer: Descriptor, arrivals: Sequence[int]) -> int:
    """Cycles from the start of a group until its passes are listed: one a cycle, each once its plane has arrived.

    A plane that the window does not have is not waited for longer than the window.
    """
    listed = SCHEDULE_START - 1
    for entry in layer.passes:
        listed = max(listed + 1, arrivals[min(entry.plane, len(arrivals) - 1)])
    return listed + SCHEDULE_END


async def load(
    ctx: Any, dut: PassScheduler, layer: Descriptor, arrivals: Sequence[int], lengths: Sequence[int], rng: random.Random
) -> None:
    """Load a group until it can be taken, and compare each cycle whether its list is complete.

    Parameters
    ----------
    ctx, dut, layer
        Where, and the layer.
    arrivals, lengths
        Of each plane the cycle in which it is loaded, counted from the group's start, and its words.
    rng
        Of what groups and layers before it have left.
    """
    complete = listing(layer, arrivals)
    for cycle in range(max(complete, arrivals[-1]) + 1):
        if cycle:
            await ctx.tick()
        loaded = sum(arrival <= cycle for arrival in arrivals)
        left = [rng.randint(0, dut.spec.window_depth) for _ in range(dut.spec.derived.lists - loaded)]
        ctx.set(dut.group_started, cycle == 0)
        ctx.set(dut.loaded_planes, loaded)
        ctx.set(dut.group_ready, loaded == len(arrivals))
        ctx.set(dut.group, {"lengths": told([*lengths[:loaded], *left])})
        assert ctx.get(dut.complete) == (cycle >= complete), cycle


async def take(ctx: Any, dut: PassScheduler) -> None:
    """Take the group; its list is complete until then, and stays described one cycle longer."""
    counts = ctx.get(dut.count), ctx.get(dut.skipped)
    ctx.set(dut.take, 1)
    assert ctx.get(dut.complete)
    await ctx.tick()
    ctx.set(dut.take, 0)
    ctx.set(dut.group_ready, 0)
    ctx.set(dut.loaded_planes, 0)
    assert (ctx.get(dut.count), ctx.get(dut.skipped)) == counts


async def read_entries(ctx: Any, dut: PassScheduler, buffer: int) -> list[dict[str, int]]:
    """Read a list: each entry stays until the next is read."""
    found = []
    for index in range(ctx.get(dut.count)):
        ctx.set(dut.entry_buffer, buffer)
        ctx.set(dut.entry_index, index)
        ctx.set(dut.entry_read, 1)
        await ctx.tick()
        ctx.set(dut.entry_read, 0)
        ctx.set(dut.entry_index, 0)
        await ctx.tick()
        found.append({name: ctx.get(dut.entry[name]) for name in dut.entry.shape().members})
    return found


async def check_list(ctx: Any, dut: PassScheduler, layer: Descriptor, buffer: int, lengths: Sequence[int]) -> None:
    """Compare a list with the passes that have words."""
    sizes = layer.plane_words(dut.spec)
    assert ctx.get(dut.skipped) == sum(sizes[entry.plane] - lengths[entry.plane] for entry in layer.passes)
    entries = await read_entries(ctx, dut, buffer)
    assert {name: ctx.get(dut.first[name]) for name in entries[0]} == entries[0]
    for found, entry in zip(entries, scheduled(layer, lengths), strict=True):
        fields = entry_fields(layer, entry, dut.spec)
        assert {name: found[name] for name in fields} == fields


def kept_fields(layer: Descriptor, spec: ArraySpec) -> dict[str, int]:
    """The bits of each field that the hardware keeps."""
    kept = {field.name: (1 << field.width) - 1 for field in descriptor_fields(spec)}
    return {name: value if value < 0 else value & kept[name] for name, value in layer.fields.items()}


def random_arrivals(rng: random.Random, planes: int) -> list[int]:
    """Cycles in which planes arrive one after the other, faster or slower than their passes are listed."""
    slowest = rng.choice([1, 3, 20])
    return list(itertools.accumulate(rng.randint(1, slowest) for _ in range(planes)))


@given(data=st.data(), rng=st.randoms(use_true_random=True))
@settings(max_examples=60, deadline=None)
def test_schedules_list_the_passes_with_words_while_planes_arrive(data, rng):
    spec = dataclasses.replace(RESIDENT, zero_skip="skip")
    layers = data.draw(st.lists(descriptors(spec), min_size=1, max_size=3))
    groups, address = [], 0
    for layer in layers:
        address += HEADER_WORDS
        sizes = layer.plane_words(spec)
        for _ in range(3):
            lengths = [rng.choice([0, size, rng.randint(0, size)]) for size in sizes]
            groups.append((layer, address, random_arrivals(rng, len(sizes)), lengths, rng.randrange(4)))
        address += len(layer.passes)
    seed = rng.getrandbits(32)
    dut, m = scheduler(spec, np.concatenate([layer.encode(spec) for layer in layers]))

    async def bench(ctx):
        left = random.Random(seed)
        for number, (layer, pass_address, arrivals, lengths, wait) in enumerate(groups):
            buffer = number % 2
            ctx.set(dut.layer, kept_fields(layer, spec))
            ctx.set(dut.pass_address, pass_address)
            ctx.set(dut.group_buffer, buffer)
            await load(ctx, dut, layer, arrivals, lengths, left)
            for _ in range(wait):  # the issuer is busy
                await ctx.tick()
            await take(ctx, dut)
            for _ in range(wait):
                assert not ctx.get(dut.complete)
                await ctx.tick()
            await check_list(ctx, dut, layer, buffer, lengths)

    drive(m, bench)


@given(data=st.data(), zero_skip=st.sampled_from(["gate", "off"]), rng=st.randoms(use_true_random=True))
@settings(max_examples=30, deadline=None)
def test_without_skipping_passes_are_listed_once_a_layer(data, zero_skip, rng):
    """From the start of the layer, whatever the loader does."""
    spec = dataclasses.replace(RESIDENT, zero_skip=zero_skip)
    layers = data.draw(st.lists(descriptors(spec), min_size=1, max_size=3))
    waits = [rng.randrange(4) for _ in layers]
    seed = rng.getrandbits(32)
    dut, m = scheduler(spec, np.concatenate([layer.encode(spec) for layer in layers]))

    def disturb(ctx: Any, rng: random.Random) -> None:
        ctx.set(dut.group_started, rng.randrange(2))
        ctx.set(dut.group_ready, rng.randrange(2))
        ctx.set(dut.group_buffer, rng.randrange(2))
        ctx.set(dut.loaded_planes, rng.randint(0, spec.derived.lists))

    async def bench(ctx):
        loader = random.Random(seed)
        address = 0
        for layer, wait in zip(layers, waits, strict=True):
            ctx.set(dut.layer, kept_fields(layer, spec))
            ctx.set(dut.pass_address, address + HEADER_WORDS)
            address += layer.words
            ctx.set(dut.start, 1)
            for cycle in range(1, len(layer.passes) + SCHEDULE_OVERHEAD + 1 + wait):
                disturb(ctx, loader)
                await ctx.tick()
                ctx.set(dut.start, 0)
                assert ctx.get(dut.complete) == (cycle >= len(layer.passes) + SCHEDULE_OVERHEAD), cycle
            for _ in range(3):
                disturb(ctx, loader)
                await take(ctx, dut)
                assert ctx.get(dut.complete)
                await check_list(ctx, dut, layer, 0, layer.plane_words(spec))

    drive(m, bench)


def test_the_list_of_a_group_stays_while_the_next_is_made():
    spec = dataclasses.replace(RESIDENT, zero_skip="skip")
    layer = Descriptor(
        fields=header(passes=3, activation_planes=3, run_granules=8 * 4, window_length=4),
        passes=tuple(Pass(5 * plane, plane, 4 * plane, 1, False) for plane in range(3)),
    )
    dut, m = scheduler(spec, layer.encode(spec))

    async def bench(ctx):
        ctx.set(dut.layer, {**layer.fields, "start_x": 0})
        ctx.set(dut.pass_address, HEADER_WORDS)
        for group in range(4):
            ctx.set(dut.group_buffer, group % 2)
            lengths = [1 + (group + plane) % 4 for plane in range(3)]
            ctx.set(dut.group, {"lengths": told(lengths + [0] * (spec.derived.lists - 3))})
            ctx.set(dut.loaded_planes, 3)
            ctx.set(dut.group_ready, 1)
            # The list of the group before is read meanwhile.
            for cycle in range(len(layer.passes) + SCHEDULE_OVERHEAD):
                ctx.set(dut.group_started, cycle == 0)
                ctx.set(dut.entry_buffer, 1 - group % 2)
                ctx.set(dut.entry_index, cycle % 3)
                ctx.set(dut.entry_read, 1)
                assert not ctx.get(dut.complete)
                await ctx.tick()
                if group:
                    assert ctx.get(dut.entry.length) == 1 + (group - 1 + cycle % 3) % 4
                    assert ctx.get(dut.entry.index) == cycle % 3
            await take(ctx, dut)
            await ctx.tick()

    drive(m, bench)


def corrupt_layer(planes: Sequence[int], window_planes: int, spec: ArraySpec) -> tuple[Descriptor, np.ndarray]:
    """A layer with passes over planes that its window need not have, and its words: the compiler never writes them."""
    passes = tuple(Pass(0, plane, 0, plane % 3, False) for plane in planes)
    fields = header(passes=len(planes), activation_planes=window_planes)
    words = Descriptor(fields=fields, passes=()).encode(spec)
    return Descriptor(fields=fields, passes=passes), np.append(words, [entry.encode() for entry in passes])


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
@pytest.mark.parametrize("planes", [(2, 0), (0, 7), (1, 1), (15,)])
def test_passes_over_planes_that_a_layer_does_not_have_are_left_out(zero_skip, planes):
    """A corrupt pass has no word in any mode: the issuer, which counts up to the last one, would not find it."""
    spec = dataclasses.replace(RESIDENT, zero_skip=zero_skip)
    layer, words = corrupt_layer(planes, 1, spec)
    dut, m = scheduler(spec, words)
    # With skipping, the window is there after a while.
    cycles = listing(layer, [9 if zero_skip == "skip" else 1])
    lengths = [1] + [0] * 15

    async def bench(ctx):
        ctx.set(dut.layer, layer.fields)
        ctx.set(dut.pass_address, HEADER_WORDS)
        ctx.set(dut.group, {"lengths": told(lengths[: spec.derived.lists])})
        for cycle in range(cycles):
            ctx.set(dut.start, cycle == 0)
            ctx.set(dut.group_started, cycle == 0)
            ctx.set(dut.loaded_planes, cycle >= 9)
            ctx.set(dut.group_ready, cycle >= 9)
            assert not ctx.get(dut.complete)
            await ctx.tick()
        assert ctx.get(dut.complete)
        for found, entry in zip(await read_entries(ctx, dut, 0), scheduled(layer, lengths), strict=True):
            fields = entry_fields(layer, entry, spec)
            assert {name: found[name] for name in fields} == fields

    drive(m, bench)


@given(
    planes=st.lists(st.integers(0, 15), min_size=1, max_size=8),
    window_planes=st.integers(1, RESIDENT.activation_planes_max),
    rng=st.randoms(use_true_random=True),
)
@settings(max_examples=40, deadline=None)
def test_passes_over_planes_that_never_arrive_wait_for_the_group_only(planes, window_planes, rng):
    """Whatever lengths earlier layers left: the list is completed, and its entries have operations that end."""
    spec = dataclasses.replace(RESIDENT, zero_skip="skip")
    layer, words = corrupt_layer(planes, window_planes, spec)
    arrivals = [random_arrivals(rng, window_planes) for _ in range(3)]
    lengths = [[rng.randint(0, 1) for _ in range(window_planes)] for _ in arrivals]
    seed = rng.getrandbits(32)
    dut, m = scheduler(spec, words)

    async def bench(ctx):
        left = random.Random(seed)
        ctx.set(dut.layer, layer.fields)
        ctx.set(dut.pass_address, HEADER_WORDS)
        for number, group in enumerate(zip(arrivals, lengths, strict=True)):
            ctx.set(dut.group_buffer, number % 2)
            await load(ctx, dut, layer, *group, left)
            await take(ctx, dut)
            entries = await read_entries(ctx, dut, number % 2)
            assert entries
            assert all(entry["length"] + entry["extra"] for entry in entries)

    drive(m, bench)


# TileIssuer ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Issue:
    """An operation with what goes with it; None is what does not matter."""

    clear: bool
    double: bool
    empty: bool
    last: bool
    negate: bool | None
    residual: bool | None
    base: int | None
    list_address: int | None
    weight_address: int | None
    coefficient_address: int | None
    skipped: int
    tile: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Group:
    """A pixel group, its schedule, and after how many cycles it is ready."""

    known: dict[str, Any]
    entries: list[dict[str, int]]
    skipped: int
    wait: int


@st.composite
def schedules(draw: st.DrawFn, spec: ArraySpec) -> list[dict[str, int]]:
    """Entries as the scheduler makes them."""
    derived = spec.derived
    entries: list[dict[str, int]] = []
    for _ in range(draw(st.integers(0, 4))):
        doubles = draw(st.sampled_from([0, 1, 2, 5])) if entries else 0
        entries.append(
            counted(draw(st.integers(1, 4)), max(0, doubles - 1))
            | {
                "weight_offset": draw(st.integers(0, spec.weight_depth - 1)),
                "base": draw(st.integers(0, spec.window_depth - 1)),
                "double": int(doubles > 0),
                "negate": draw(st.integers(0, 1)),
                "residual": draw(st.integers(0, 1)),
                "index": draw(st.integers(0, derived.passes_max - 1)),
            }
        )
    doubles = draw(st.sampled_from([0, 1, 3, DOUBLES_MAX])) if entries else 0
    if doubles or not entries:
        zeros = dict.fromkeys(("weight_offset", "base", "negate", "residual", "index"), 0)
        entries.append({**zeros, **counted(0, max(1, doubles)), "double": int(doubles > 0)})
    return entries


@st.composite
def issued_layers(draw: st.DrawFn) -> tuple[dict[str, int], list[Group]]:
    """A descriptor, and its groups as the loader gives them, with their schedules."""
    layer = header(
        passes=draw(st.integers(1, SPEC.derived.passes_max)),
        row_tiles=draw(st.sampled_from([1, 2, 3, SPEC.row_tiles_max])),
        weight_base=draw(st.integers(0, 255)),
        weight_tile_stride=draw(st.integers(0, 255)),
        threshold_base=draw(st.sampled_from([0, 16, 48])),
        coefficient_base=draw(st.integers(0, SPEC.coefficient_depth - 1)),
        output_planes=draw(st.integers(1, 4)),
    )
    count = draw(st.integers(1, 4))
    columns = st.integers(1, (1 << SPEC.columns) - 1)
    groups = []
    for number in range(count):
        known = {
            "valid": draw(columns),
            "pool_first": draw(columns),
            "pool_last": draw(columns),
            "drain_cycles": draw(st.integers(1, SPEC.columns * 4)),
            "lengths": told([0] * SPEC.derived.lists),
            "last": int(number == count - 1),
        }
        skipped, wait = draw(st.integers(0, 500)), draw(st.sampled_from([0, 0, 1, 30]))
        groups.append(Group(known, draw(schedules(SPEC)), skipped, wait))
    return layer, groups


def issues(layer: dict[str, int], group: Group) -> list[Issue]:
    """Operations of a group: row tiles, entries of the schedule, doublings and words of each."""
    found = []
    for tile in range(layer["row_tiles"]):
        known = {
            **{name: group.known[name] for name in ("valid", "pool_first", "pool_last")},
            "first": int(tile == 0),
            "last": int(group.known["last"] and tile == layer["row_tiles"] - 1),
        }
        weights = layer["weight_base"] + tile * layer["weight_tile_stride"]
        coefficients = layer["coefficient_base"] + tile * layer["passes"]
        operations: list[Issue] = []
        for entry in group.entries:
            for number in range(entry["extra"] + entry["length"]):
                word = number - entry["extra"]
                operations.append(
                    Issue(
                        clear=not operations,
                        double=bool(entry["double"]) and word <= 0,
                        empty=word < 0,
                        last=False,
                        negate=bool(entry["negate"]) if word >= 0 else None,
                        residual=bool(entry["residual"]) if word >= 0 else None,
                        base=entry["base"] if word >= 0 else None,
                        list_address=(entry["base"] + word) % SPEC.window_depth if word >= 0 else None,
                        weight_address=(weights + entry["weight_offset"]) % SPEC.weight_depth if word >= 0 else None,
                        coefficient_address=(coefficients + entry["index"]) % SPEC.coefficient_depth
                        if word >= 0
                        else None,
                        skipped=0,
                        tile=known,
                    )
                )
        operations[-1] = dataclasses.replace(operations[-1], last=True, skipped=group.skipped)
        found += operations
    return found


def observed(ctx: Any, dut: TileIssuer) -> Issue:
    """The operation of this cycle."""
    operation = dut.operation
    empty = bool(ctx.get(operation.empty))

    def of_word(name: str) -> int | None:
        return None if empty else ctx.get(operation[name])

    return Issue(
        clear=bool(ctx.get(operation.clear)),
        double=bool(ctx.get(operation.double)),
        empty=empty,
        last=bool(ctx.get(operation.last)),
        negate=None if empty else bool(ctx.get(operation.negate)),
        residual=None if empty else bool(ctx.get(operation.residual)),
        base=of_word("base"),
        list_address=of_word("list_address"),
        weight_address=of_word("weight_address"),
        coefficient_address=of_word("coefficient_address"),
        skipped=ctx.get(dut.tile_skipped),
        tile={name: ctx.get(dut.tile[name]) for name, _ in dut.tile.shape()},
    )


def test_issues_are_as_many_as_the_contract_says():
    """Doublings take a cycle each, but the first word of a pass doubles as well."""
    layer = header(passes=3, row_tiles=2)
    empty = dict.fromkeys(("weight_offset", "base", "negate", "residual", "index"), 0)
    entries = [
        {**empty, "length": 3, "extra": 0, "double": 0},
        {**empty, "length": 2, "extra": 2, "double": 1},
        {**empty, "length": 0, "extra": 4, "double": 1},
    ]
    known = {"valid": 1, "pool_first": 1, "pool_last": 1, "last": 1}
    assert len(issues(layer, Group(known, entries, 0, 0))) == 2 * (3 + (2 + 3 - 1) + 4)


@given(case=issued_layers())
@settings(max_examples=60, deadline=None)
def test_issuer_runs_every_word_of_every_pass_of_every_tile(case):
    layer, groups = case
    dut = TileIssuer(SPEC)

    async def bench(ctx):
        ctx.set(dut.layer, layer)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        cycle, last, drain = 0, -100, 0
        buffer, current = 0, groups[0]
        lists: list[list[dict[str, int]]] = [[], []]
        pending: list[Issue] = []
        waiting = list(groups)
        ready_from = waiting[0].wait
        while waiting or pending:
            ready = bool(waiting) and cycle >= ready_from
            offered = waiting[0] if ready else groups[0]
            ctx.set(dut.group_ready, ready)
            ctx.set(dut.group, offered.known)
            ctx.set(dut.count, len(offered.entries))
            ctx.set(dut.skipped, offered.skipped)
            ctx.set(dut.first, offered.entries[0])
            ctx.set(dut.group_buffer, 1 - buffer)
            if ready:
                lists[1 - buffer] = offered.entries

            # The last operation of a tile waits until the tile before has been drained.
            stalled = bool(pending) and pending[0].last and cycle < last + drain
            assert ctx.get(dut.stalled) == stalled, cycle
            assert ctx.get(dut.operation.valid) == (bool(pending) and not stalled), cycle
            taken = ready and (not pending or (len(pending) == 1 and not stalled))
            assert ctx.get(dut.take) == taken, cycle
            if pending and not stalled:
                operation = pending.pop(0)
                assert observed(ctx, dut) == operation, cycle
                assert ctx.get(dut.operation.buffer) == buffer
                if operation.last:
                    last, drain = cycle, current.known["drain_cycles"]
            else:
                assert ctx.get(dut.tile_skipped) == 0
            if taken:
                current = waiting.pop(0)
                pending = issues(layer, current)
                buffer = 1 - buffer
                ready_from = cycle + 1 + (waiting[0].wait if waiting else 0)
            # The memory of the schedule: what is read comes a cycle later, and stays.
            read = ctx.get(dut.entry_read), ctx.get(dut.entry_buffer), ctx.get(dut.entry_index)
            await ctx.tick()
            if read[0] and read[2] < len(lists[read[1]]):
                ctx.set(dut.entry, lists[read[1]][read[2]])
            cycle += 1
        ctx.set(dut.group_ready, 0)
        assert not ctx.get(dut.operation.valid)

    drive(dut, bench)


def test_a_start_ends_what_an_issuer_was_doing():
    dut = TileIssuer(SPEC)
    layer = header(row_tiles=2)
    known = {"valid": 1, "pool_first": 1, "pool_last": 1, "last": 1, "drain_cycles": 8}
    entry = dict.fromkeys(("weight_offset", "base", "negate", "residual", "index", "double"), 0)

    async def bench(ctx):
        ctx.set(dut.layer, layer)
        ctx.set(dut.group, {**known, "lengths": told([0] * SPEC.derived.lists)})
        ctx.set(dut.count, 1)
        ctx.set(dut.first, {**entry, **counted(2, 0)})
        for after in (1, 2, 3, 4, 5, 12):
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            assert not ctx.get(dut.operation.valid)
            ctx.set(dut.group_ready, 1)
            assert ctx.get(dut.take)
            await ctx.tick()
            ctx.set(dut.group_ready, 0)
            assert ctx.get(dut.operation.clear)
            assert ctx.get(dut.tile.first)
            assert not ctx.get(dut.stalled)
            await ctx.tick().repeat(after)

    drive(dut, bench)
