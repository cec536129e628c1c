import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import data, memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.fetch import length_layout
from bitwright.hw.isa import (
    FLAG_DENSE,
    HEADER_WORDS,
    SCHEDULE_END,
    SCHEDULE_OVERHEAD,
    SCHEDULE_START,
    ArraySpec,
    Descriptor,
    Pass,
    descriptor_fields,
)
from bitwright.hw.schedule import PassScheduler
from control import RESIDENT_CONTROL, counted, told
from drive import drive, header
from strategies import descriptors


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


def scheduler(spec: ArraySpec, words: np.ndarray) -> "tuple[PassScheduler, data.View[Any], Module]":
    """A scheduler with its descriptor memory, and the lengths that it may look up."""
    dut, lengths = PassScheduler(spec), Signal(data.ArrayLayout(length_layout(spec), spec.derived.lists))
    m = Module()
    m.submodules.dut = dut
    m.submodules.store = store = memory.Memory(shape=32, depth=spec.descriptor_depth, init=words.tolist())
    port = store.read_port()
    m.d.comb += [port.addr.eq(dut.address), port.en.eq(dut.read), dut.word.eq(port.data)]
    m.d.comb += dut.length.eq(lengths[dut.length_plane])
    return dut, lengths, m


def listing(layer: Descriptor, arrivals: Sequence[int], first: int = SCHEDULE_START) -> int:
    """In which cycle all passes are listed: one a cycle, each once its plane has arrived, from the cycle ``first`` on.

    A plane that the window does not have is not waited for longer than the window.
    """
    listed = first - 1
    for entry in layer.passes:
        listed = max(listed + 1, arrivals[min(entry.plane, len(arrivals) - 1)])
    return listed + SCHEDULE_END


async def load(
    ctx: Any,
    dut: PassScheduler,
    known: "data.View[Any]",
    layer: Descriptor,
    arrivals: Sequence[int],
    lengths: Sequence[int],
    rng: random.Random,
    *,
    start: bool,
    since: int,
) -> None:
    """Load a group until it can be taken, and compare each cycle whether its list is complete.

    Parameters
    ----------
    ctx, dut, known, layer
        Where, the lengths that the scheduler may look up, and the layer.
    arrivals, lengths
        Of each plane the cycle in which it is loaded, counted from now, and its words.
    rng
        Of what groups and layers before it have left.
    start
        Start the layer now.
    since
        Else, cycles since the one that followed the last take.
    """
    complete = listing(layer, arrivals, SCHEDULE_START if start else -since)
    for cycle in range(max(complete, arrivals[-1]) + 1):
        if cycle:
            await ctx.tick()
        loaded = sum(arrival <= cycle for arrival in arrivals)
        left = [rng.randint(0, dut.spec.window_depth) for _ in range(dut.spec.derived.lists - loaded)]
        ctx.set(dut.start, start and cycle == 0)
        ctx.set(dut.loaded_planes, loaded)
        ctx.set(dut.group_ready, loaded == len(arrivals))
        ctx.set(known, told([*lengths[:loaded], *left]))
        assert ctx.get(dut.complete) == (cycle >= complete), cycle


async def take(ctx: Any, dut: PassScheduler) -> None:
    """Take the group; its list is complete until then. There is no next one."""
    ctx.set(dut.take, 1)
    assert ctx.get(dut.complete)
    await ctx.tick()
    ctx.set(dut.take, 0)
    ctx.set(dut.group_ready, 0)
    ctx.set(dut.loaded_planes, 0)


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
    spec = dataclasses.replace(RESIDENT_CONTROL, zero_skip="skip")
    layers = data.draw(st.lists(descriptors(spec), min_size=1, max_size=3))
    layers = [
        dataclasses.replace(layer, fields=layer.fields | {"flags": layer.flags & ~FLAG_DENSE}) for layer in layers
    ]
    groups, address = [], 0
    for layer in layers:
        address += HEADER_WORDS
        sizes = layer.plane_words(spec)
        for number in range(3):
            lengths = [rng.choice([0, size, rng.randint(0, size)]) for size in sizes]
            arrivals = random_arrivals(rng, len(sizes))
            waits = [rng.choice([0, 0, 1, 9]) for _ in range(2)]
            groups.append((layer, address, number == 0, arrivals, lengths, waits))
        address += len(layer.passes)
    seed = rng.getrandbits(32)
    dut, known, m = scheduler(spec, np.concatenate([layer.encode(spec) for layer in layers]))
    cycle = Signal(32)
    m.d.sync += cycle.eq(cycle + 1)

    async def bench(ctx):
        left = random.Random(seed)
        taken = 0
        for number, (layer, pass_address, start, arrivals, lengths, waits) in enumerate(groups):
            buffer = number % 2
            ctx.set(dut.layer, kept_fields(layer, spec))
            ctx.set(dut.pass_address, pass_address)
            ctx.set(dut.group_buffer, buffer)
            await load(ctx, dut, known, layer, arrivals, lengths, left, start=start, since=ctx.get(cycle) - taken)
            await ctx.tick().repeat(1 + waits[0])  # the issuer is busy
            await check_list(ctx, dut, layer, buffer, lengths)
            await take(ctx, dut)
            taken = ctx.get(cycle)
            for _ in range(waits[1]):  # the loader is
                assert not ctx.get(dut.complete)
                await ctx.tick()

    drive(m, bench)


@given(data=st.data(), zero_skip=st.sampled_from(["gate", "off", "skip"]), rng=st.randoms(use_true_random=True))
@settings(max_examples=40, deadline=None)
def test_without_skipping_passes_are_listed_once_a_layer(data, zero_skip, rng):
    """From the start of the layer, whatever the loader does; where the array could skip, in dense layers."""
    spec = dataclasses.replace(RESIDENT_CONTROL, zero_skip=zero_skip)
    layers = data.draw(st.lists(descriptors(spec), min_size=1, max_size=3))
    layers = [layer.flagged(FLAG_DENSE, zero_skip == "skip") for layer in layers]
    waits = [rng.randrange(4) for _ in layers]
    seed = rng.getrandbits(32)
    dut, known, m = scheduler(spec, np.concatenate([layer.encode(spec) for layer in layers]))

    def disturb(ctx: Any, rng: random.Random) -> None:
        ctx.set(dut.group_ready, rng.randrange(2))
        ctx.set(dut.group_buffer, rng.randrange(2))
        ctx.set(dut.loaded_planes, rng.randint(0, spec.derived.lists))
        ctx.set(known, told([rng.randint(0, spec.window_depth) for _ in range(spec.derived.lists)]))

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
                await check_list(ctx, dut, layer, loader.randrange(2), layer.plane_words(spec))

    drive(m, bench)


def test_the_list_of_a_group_stays_while_the_next_is_made():
    """The next group is there, and its first pass is listed in the cycle after the take."""
    spec = dataclasses.replace(RESIDENT_CONTROL, zero_skip="skip")
    layer = Descriptor(
        fields=header(passes=3, activation_planes=3, run_granules=8 * 4, window_length=4),
        passes=tuple(Pass(5 * plane, plane, 4 * plane, 1, False) for plane in range(3)),
    )
    dut, known, m = scheduler(spec, layer.encode(spec))

    async def bench(ctx):
        ctx.set(dut.layer, {**layer.fields, "start_x": 0})
        ctx.set(dut.pass_address, HEADER_WORDS)
        for group in range(4):
            ctx.set(dut.group_buffer, group % 2)
            lengths = [1 + (group + plane) % 4 for plane in range(3)]
            ctx.set(known, told(lengths + [0] * (spec.derived.lists - 3)))
            ctx.set(dut.start, group == 0)
            ctx.set(dut.loaded_planes, 3)
            ctx.set(dut.group_ready, 1)
            # The list of the group before is read meanwhile.
            for cycle in range(len(layer.passes) + SCHEDULE_OVERHEAD - (SCHEDULE_START if group else 0)):
                ctx.set(dut.entry_buffer, 1 - group % 2)
                ctx.set(dut.entry_index, cycle % 3)
                ctx.set(dut.entry_read, 1)
                assert not ctx.get(dut.complete)
                await ctx.tick()
                ctx.set(dut.start, 0)
                if group:
                    assert ctx.get(dut.entry.length) == 1 + (group - 1 + cycle % 3) % 4
                    assert ctx.get(dut.entry.index) == cycle % 3
            # However long the group waits, its list is made once.
            for _ in range(2 * group):
                assert ctx.get(dut.complete)
                await ctx.tick()
            await take(ctx, dut)

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
    spec = dataclasses.replace(RESIDENT_CONTROL, zero_skip=zero_skip)
    layer, words = corrupt_layer(planes, 1, spec)
    dut, known, m = scheduler(spec, words)
    # With skipping, the window is there after a while.
    cycles = listing(layer, [9 if zero_skip == "skip" else 1])
    lengths = [1] + [0] * 15

    async def bench(ctx):
        ctx.set(dut.layer, layer.fields)
        ctx.set(dut.pass_address, HEADER_WORDS)
        ctx.set(known, told(lengths[: spec.derived.lists]))
        for cycle in range(cycles):
            ctx.set(dut.start, cycle == 0)
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
    window_planes=st.integers(1, RESIDENT_CONTROL.activation_planes_max),
    rng=st.randoms(use_true_random=True),
)
@settings(max_examples=40, deadline=None)
def test_passes_over_planes_that_never_arrive_wait_for_the_group_only(planes, window_planes, rng):
    """Whatever lengths earlier layers left: the list is completed, and its entries have operations that end."""
    spec = dataclasses.replace(RESIDENT_CONTROL, zero_skip="skip")
    layer, words = corrupt_layer(planes, window_planes, spec)
    arrivals = [random_arrivals(rng, window_planes) for _ in range(3)]
    lengths = [[rng.randint(0, 1) for _ in range(window_planes)] for _ in arrivals]
    seed = rng.getrandbits(32)
    dut, known, m = scheduler(spec, words)

    async def bench(ctx):
        left = random.Random(seed)
        ctx.set(dut.layer, layer.fields)
        ctx.set(dut.pass_address, HEADER_WORDS)
        for number, group in enumerate(zip(arrivals, lengths, strict=True)):
            ctx.set(dut.group_buffer, number % 2)
            await load(ctx, dut, known, layer, *group, left, start=number == 0, since=0)
            entries = await read_entries(ctx, dut, number % 2)
            await take(ctx, dut)
            assert entries
            assert all(entry["length"] + entry["extra"] for entry in entries)

    drive(m, bench)
