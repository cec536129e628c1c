import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.isa import (
    FIELD_NAMES,
    FIELD_PLACES,
    FLAG_LAST,
    HEADER_TO_READY,
    HEADER_WORDS,
    STREAM_OVERHEAD,
    ArraySpec,
    Descriptor,
    ErrorCode,
    Pass,
    descriptor_fields,
)
from bitwright.hw.sequencer import LayerSequencer
from bitwright.hw.streamer import WeightStreamer
from control import CONTROL, RESIDENT_CONTROL
from drive import drive, header
from strategies import descriptors

PIPELINED = dataclasses.replace(CONTROL, pipelined=True)


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


@given(data=st.data(), spec=st.sampled_from([CONTROL, RESIDENT_CONTROL, PIPELINED]))
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
                    for name in ("weight_base", "stream_words"):
                        assert ctx.get(dut.stream_layer[name]) == layer.fields[name] & kept[name]
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
    good = Descriptor(fields=header(), passes=(Pass(0, 0, 0, 0, False),)).encode(CONTROL)
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


FIELDS = {field.name: field for field in descriptor_fields(CONTROL)}
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
@pytest.mark.parametrize(("work", "spec"), [(0, CONTROL), (100, PIPELINED)])
def test_a_field_out_of_range_stops_the_machine(name, value, work, spec):
    """When its layer would start: however early the header was fetched."""
    dut, module = sequenced(spec, corrupted(name, value))

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


@pytest.mark.parametrize("spec", [CONTROL, PIPELINED])
def test_the_first_field_out_of_range_is_named(spec):
    words = corrupted("residual_planes", 0xFFFF)
    second = words[len(words) // 2 :]
    for name in ("window_length", "images", "output_planes"):
        put(second, name, 0)
    dut, module = sequenced(spec, words)

    async def bench(ctx):
        await first_layer(ctx, dut)
        assert ctx.get(dut.finished)
        assert ctx.get(dut.error_field) == FIELD_NAMES.index("residual_planes")

    drive(module, bench)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(("end", "spec"), [("low", PIPELINED), ("high", CONTROL)])
def test_the_ends_of_each_range_are_accepted(name, end, spec):
    value = getattr(FIELDS[name], end)
    dut, module = sequenced(spec, corrupted(name, value))

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
    sizes = [CONTROL.derived.passes_max] * 2
    sizes.append(CONTROL.descriptor_depth - sum(sizes) - 3 * HEADER_WORDS + over)
    assert 1 <= sizes[-1] <= CONTROL.derived.passes_max + 90
    while sizes[-1] > CONTROL.derived.passes_max:
        sizes.append(sizes.pop() - HEADER_WORDS - CONTROL.derived.passes_max)
        sizes.insert(0, CONTROL.derived.passes_max)
    layers = [Descriptor(fields=header(passes=size), passes=one * size) for size in sizes]
    words = np.concatenate([layer.encode(CONTROL) for layer in layers])  # none is flagged last
    assert len(words) == CONTROL.descriptor_depth + over
    dut, module = sequenced(CONTROL, words)

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
    dut, module = sequenced(CONTROL, corrupted("flags", 0))

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


def test_a_layer_waits_for_its_weights():
    words = 3
    layer = Descriptor(fields=header(stream_words=words, flags=FLAG_LAST), passes=(Pass(0, 0, 0, 0, False),))
    dut, module = sequenced(CONTROL, layer.encode(CONTROL))
    module.submodules.streamer = streamer = WeightStreamer(CONTROL)
    module.d.comb += [
        streamer.start.eq(dut.stream_start),
        streamer.layer.eq(dut.stream_layer),
        dut.stream_done.eq(streamer.done),
        streamer.beats.valid.eq(1),
    ]

    async def bench(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        beats = CONTROL.rows * words * CONTROL.derived.chunks
        assert await until(ctx, dut.run) == HEADER_TO_READY + STREAM_OVERHEAD + beats + 1

    drive(module, bench)
