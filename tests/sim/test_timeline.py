"""The cycle model against a machine that is stepped cycle by cycle."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.isa import (
    COUNTERS,
    DRAIN_TO_WRITE,
    FLAG_DENSE,
    HEADER_TO_READY,
    RAW_TO_WRITE,
    SCHEDULE_END,
    SCHEDULE_START,
    ArraySpec,
    Descriptor,
    preset,
)
from bitwright.hw.plan import Plan
from bitwright.hw.planner import plan
from bitwright.sim import golden, reader, timeline
from programs import conv, linear, random_images, random_program, shapes
from strategies import Network, networks, planned, programs

Words = npt.NDArray[np.uint8]


@st.composite
def parts(draw: st.DrawFn) -> tuple[Plan, int]:
    """A part of a small network on a small array: any descriptor that the planner makes."""
    found = planned(draw(networks()))
    return found, draw(st.sampled_from(range(len(found.descriptors))))


def random_words(rng: np.random.Generator, layer: Descriptor, spec: ArraySpec, runs: int) -> list[Words]:
    """Activity of the words of some runs: some planes of which are mostly zero."""
    words = []
    for planes, count in (
        (layer.activation_planes, layer.window_words(spec)),
        (layer.residual_planes, layer.residual_words(spec)),
    ):
        if planes:
            density = rng.random((planes, 1, 1, 1)) ** 3
            bits = rng.random((planes, count, runs, layer.pixels)) < density
            words.append((bits << np.arange(planes)[:, None, None, None]).sum(0).astype(np.uint8))
    return words


def operations(layer: Descriptor, spec: ArraySpec, active: list[npt.NDArray[np.bool_]], valid: int) -> list[Any]:
    """What a row tile of a group does, one entry an operation: active columns of its word, or None without a word."""
    steps: list[Any] = []
    missing = 0  # doublings that no operation has done yet
    for entry in layer.passes:
        columns = active[entry.plane]
        listed = [word for word in range(len(columns)) if columns[word].any() or layer.zero_skip(spec) != "skip"]
        missing += entry.doubles
        if listed:
            steps += [None] * (missing - 1) if steps else []
            steps += [valid if spec.zero_skip == "off" else int(columns[word].sum()) for word in listed]
        if listed or not steps:
            missing = 0
    return steps + [None] * missing or [None]


def step_machine(layer: Descriptor, spec: ArraySpec, active: list[Words]) -> dict[str, Any]:
    """Walker, loader, scheduler, issuer and drain, one cycle at a time; cycle 0 is that of the start pulse."""
    bits = [
        (words[:, 0] >> bit & 1).astype(bool)
        for words, count in zip(active, (layer.activation_planes, layer.residual_planes), strict=False)
        for bit in range(count)
    ]
    planes = [bits[layer.code_bit(plane)] for plane in range(len(bits))]
    groups = [range(start, min(start + spec.columns, layer.pixels)) for start in range(0, layer.pixels, spec.columns)]
    events = dict.fromkeys(("busy", "stalls", "computed", "gated", "skipped", "waits", "doublings"), 0)
    walk_left, reads_left = spec.columns, 0
    started = taken = 0  # groups whose reads have begun, and that the issuer has taken
    ages: dict[int, int] = {}  # of the groups that occupy a half of the buffers, cycles since their first read
    listing = 0  # cycles since the start pulse, which began the list
    scheduled, until_complete = 0, 0  # passes of the schedule, and cycles after that
    current: int | None = None
    steps: list[int | None] = []
    tile = position = drain_wait = last = 0
    loads: list[int] = []
    takes: list[int] = []
    for now in range(1, 1 << 30):
        # The walker steps, or the loader reads, into a half that no group occupies.
        ages = {group: age + 1 for group, age in ages.items()}
        if walk_left:
            walk_left -= 1
        elif not reads_left and len(ages) < 2 and started < len(groups):
            ages[started] = 0
            loads.append(now)
            started, reads_left = started + 1, layer.group_loads(spec)
        if reads_left:
            reads_left -= 1
            if not reads_left:
                walk_left = spec.columns
        # The scheduler takes a pass a cycle: of the layer, or of the next group, once the plane is there.
        age = ages.get(taken, -1)
        there = [age >= at + spec.derived.load_latency for at in np.cumsum(layer.plane_loads(spec)).tolist()]
        listing += 1
        if until_complete:
            until_complete -= 1
        if scheduled < len(layer.passes):
            listed = there[layer.passes[scheduled].plane] or layer.zero_skip(spec) != "skip"
            if listed and listing >= SCHEDULE_START:
                scheduled = scheduled + 1
                until_complete = SCHEDULE_END
        ready = all(there) and scheduled == len(layer.passes) and not until_complete

        idle = current is None
        if current is not None:
            tile_last = position == len(steps) - 1
            if tile_last and drain_wait:
                events["stalls"] += 1
            else:
                columns, step = len(groups[current]), steps[position]
                events["busy"] += 1
                events["doublings"] += step is None
                events["computed"] += step or 0
                events["gated"] += columns - step if step is not None else 0
                position += 1
                if tile_last:
                    drain_wait, last = layer.drain_cycles(columns, spec), now
                    words = sum(len(planes[entry.plane]) for entry in layer.passes)
                    events["skipped"] += words - sum(step is not None for step in steps)
                    position, tile = 0, tile + 1
                if tile == layer.row_tiles:
                    idle, tile = True, 0
                    del ages[current]
                    if current == len(groups) - 1:
                        break
        drain_wait = max(0, drain_wait - 1)
        if idle and ready:
            current, taken = taken, taken + 1
            takes.append(now)
            if layer.zero_skip(spec) == "skip":
                listing, scheduled = SCHEDULE_START - 1, 0  # the first pass has been read ahead
            window = [words[:, list(groups[current])] for words in planes]
            steps = operations(layer, spec, window, len(groups[current]))
        elif idle:
            current = None
            events["waits"] += bool(takes)
    load = last + spec.derived.issue_to_load
    columns, drain_steps = len(groups[-1]), layer.drain_steps(spec)
    if layer.raw:
        end = load + columns * spec.rows + RAW_TO_WRITE + spec.derived.turns - 1
    else:
        # The last column starts, passes all comparators, and has its planes written, all in its turns.
        turns = spec.derived.turns
        start = (columns - 1) * drain_steps if turns == 1 else (columns - 1) // 2 * 2 * drain_steps + (columns - 1) % 2
        end = load + start + turns * (spec.drain_planes * drain_steps + drain_steps - 1) + DRAIN_TO_WRITE
    return events | {"end": end, "loads": loads, "takes": takes, "last": last}


@given(parts(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_recurrences_equal_the_stepped_machine(drawn: tuple[Plan, int], seed: int) -> None:
    found, number = drawn
    spec, layer = found.spec, found.descriptors[number]
    active = random_words(np.random.default_rng(seed), layer, spec, 1)
    useful = timeline.useful_lanes(found, number)
    work = timeline.part_work(layer, spec, useful, None if spec.zero_skip == "off" else active)
    timing = timeline.part_timing(layer, spec, work)
    counters = timeline.part_counters(layer, spec, work, timing)
    predicted = {name: int(counters[name][0]) for name in ("busy", "stalls", "computed", "gated", "skipped")}
    predicted |= {"waits": int(timing.waits[0]), "doublings": layer.row_tiles * int(work.doublings.sum())}
    predicted |= {"end": int(timing.end[0]), "last": int(timing.last[0])}
    predicted |= {"loads": timing.loads[0].tolist(), "takes": timing.takes[0].tolist()}
    assert predicted == step_machine(layer, spec, active)
    outputs = np.zeros((layer.pixels // layer.pool_area, layer.channels), np.int64)
    writes = timeline.part_writes(layer, spec, timing, 0, 100, outputs)
    assert len(writes) == counters["writes"][0]
    whole = layer.channels % spec.rows == 0 or not layer.raw
    assert writes[-1, 0] == 100 + timing.end[0] if whole else writes[-1, 0] < 100 + timing.end[0]


@given(parts(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_runs_are_timed_apart(drawn: tuple[Plan, int], seed: int) -> None:
    """Many runs, in vectors, as each of them alone, in plain numbers."""
    found, number = drawn
    spec, layer = dataclasses.replace(found.spec, zero_skip="skip"), found.descriptors[number]
    active = random_words(np.random.default_rng(seed), layer, spec, 13)
    useful = timeline.useful_lanes(found, number)
    works = [
        timeline.part_work(layer, spec, useful, [words[:, run : run + 1] for words in active]) for run in range(13)
    ]
    together = timeline.part_timing(layer, spec, timeline.part_work(layer, spec, useful, active))
    joined = timeline.part_timing(layer, spec, timeline.Work.join(works, layer.zero_skip(spec)))
    for run, work in enumerate(works):
        alone = timeline.part_timing(layer, spec, work)
        for name in ("last_issue", "tile_cycles", "stalls", "waits", "last", "end"):
            all_runs = getattr(together, name)  # one for all of them in a dense layer
            np.testing.assert_array_equal(getattr(alone, name)[0], all_runs[run % len(all_runs)])
            np.testing.assert_array_equal(getattr(together, name), getattr(joined, name))


@given(networks(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_parts_follow_each_other(network: Network, prefetch: bool) -> None:
    """The sequencer, one cycle at a time, around parts that take as long as they do."""
    found = planned(dataclasses.replace(network, spec=dataclasses.replace(network.spec, prefetch=prefetch)))
    spec = found.spec
    estimate = timeline.estimate(found)
    lengths = []
    for number, layer in enumerate(found.descriptors):
        active = None if spec.zero_skip == "off" else timeline.dense_words(layer, spec)
        work = timeline.part_work(layer, spec, timeline.useful_lanes(found, number), active)
        lengths.append(int(timeline.part_timing(layer, spec, work).end[0]))
    fetched, fetch_left = -1, 0  # part whose header is being fetched, and its cycles until it may start
    running, run_left, start = -1, 0, 0
    bounds = []
    now = 0
    while len(bounds) < len(lengths):
        due = now == start if running < 0 or not prefetch else run_left == lengths[running]
        if due and fetched == running and fetched + 1 < len(lengths):
            fetched += 1
            fetch_left = HEADER_TO_READY + found.descriptors[fetched].stream_cycles(spec)
        if run_left > 0 or (running >= 0 and len(bounds) == running):
            if run_left == 0:
                bounds.append((start, now + 1))
                start = now + 1
            run_left -= 1
        elif fetched > running and fetch_left == 0:
            running, run_left = fetched, lengths[fetched]  # the pulse comes in the next cycle
        fetch_left = max(0, fetch_left - 1)
        now += 1
    assert [(part.start, part.end) for part in estimate.layers] == bounds
    assert estimate.cycles == bounds[-1][1] == estimate.counters["cycles"]
    assert [part.layer for part in estimate.layers] == [part.layer for part in found.parts]


@given(networks())
@settings(max_examples=60, deadline=None)
def test_the_account_has_every_cycle(network: Network) -> None:
    found = planned(network)
    spec = found.spec
    estimate = timeline.estimate(found)
    assert tuple(estimate.counters) == COUNTERS
    for part in estimate.layers:
        assert part.account is not None
        assert tuple(part.account) == timeline.ACCOUNT
        assert min(part.account.values()) >= 0
        assert sum(part.account.values()) == (part.end - part.start) * spec.rows * spec.columns * spec.lanes


@given(networks())
@settings(max_examples=60, deadline=None)
def test_useful_products_are_those_of_the_network(network: Network) -> None:
    """With nothing skipped: multiply-accumulates × weight planes × activation planes, and those of the residual."""
    found = planned(dataclasses.replace(network, spec=dataclasses.replace(network.spec, zero_skip="off")))
    estimate = timeline.estimate(found)
    for number, info in enumerate(found.layers):
        # Windows that pooling drops are not computed, and those in two pooling windows twice.
        pixels = np.prod(info.out_shape[1:]) * np.prod(info.pool) * network.batch
        products = info.fan_in * info.weight_planes * info.input_planes
        if info.residual_source is not None:
            addend = found.layers[info.residual_source].conv_shape[0]
            products += addend * info.residual_bits * info.residual_planes
        computing = sum(part.account["computing"] for part in estimate.layers if part.layer == number and part.account)
        assert computing == products * pixels * info.conv_shape[0]


def test_an_estimate_of_an_array_that_skips_nothing_is_exact() -> None:
    rng = np.random.default_rng(0)
    spec = ArraySpec(rows=4, columns=3, lanes=32, drain_planes=1)
    layers = [conv(6, 3, padding=1, pool=2), conv(5, 2), linear(3)]
    program = random_program(rng, spec, layers, in_shape=(2, 6, 6), batch=2)
    estimate = timeline.estimate(program)
    for run in golden.execute(program, random_images(rng, program, 3)):
        assert run.counters == estimate.counters
        assert run.layers == estimate.layers


@given(programs())
@settings(max_examples=40, deadline=None)
def test_an_estimate_is_a_bound(case: Any) -> None:
    program, images = case
    estimate = timeline.estimate(program)
    for run in golden.execute(program, images):
        assert run.cycles <= estimate.cycles
        assert run.counters["computed"] <= estimate.counters["computed"]
        assert run.counters["loads"] == estimate.counters["loads"]


def test_words_of_padding_are_zero_at_best() -> None:
    rng = np.random.default_rng(0)
    spec = ArraySpec(rows=4, columns=2, lanes=32, drain_planes=1, zero_skip="skip")
    program = random_program(rng, spec, [conv(8, 1), conv(2, 3, padding=1, stride=2)], in_shape=(1, 3, 3))
    inside = timeline.window_inside(program.parsed[1], spec)
    # 3 × 3 taps of 2 granules are 18 granules: words of 8, 8 and 2. The first window sees nothing in its first row.
    assert inside.shape == (3, 4)
    granules = np.zeros((3, 3, 2), bool)
    granules[1:, 1:] = True
    expected = np.pad(granules.reshape(-1), (0, 6)).reshape(3, 8).any(1)
    np.testing.assert_array_equal(inside[:, 0], expected)
    part = reader.read_layers(program)[1].parts[0]
    ones = np.full((1, 3, 3, 8), 3, np.uint8)
    activity = golden.word_activity(ones, part.operands[0].windows, spec)
    np.testing.assert_array_equal(activity[:, 0] == 3, inside)
    np.testing.assert_array_equal(activity, timeline.dense_words(program.parsed[1], spec)[0])


@pytest.mark.parametrize(("weight_bits", "input_bits"), [(1, 1), (2, 2), (4, 4), (8, 8)])
def test_cycles_follow_the_bits(weight_bits: int, input_bits: int) -> None:
    spec = ArraySpec(activation_depth=16384, threshold_depth=4096, window_depth=256)
    network = shapes((64, 16, 16), [conv(64, 3, weight_bits=weight_bits, output_planes=1), linear(8)])
    layer = timeline.estimate(plan(network, spec, input_bits=input_bits)).layers[0]
    bound = (64 // 8) * -(-14 * 14 // 8) * 9 * weight_bits * input_bits
    assert layer.counters["busy"] == bound
    assert layer.end <= 1.05 * bound + 200


def test_narrow_layers_fill_lanes() -> None:
    """16 channels of 3 × 3 taps are 144 elements: three words of 64 lanes, in stead of nine."""
    spec = ArraySpec()
    network = shapes((16, 8, 8), [conv(8, 3, padding=1, weight_bits=1, output_planes=1), linear(8)])
    layer = timeline.estimate(plan(network, spec, input_bits=1)).layers[0]
    assert layer.counters["busy"] == 8 * 3
    assert layer.account is not None
    useful, padding = layer.account["computing"], layer.account["lane_padding"]
    assert (useful, padding) == (8 * 8 * 8 * 144, 8 * 8 * 8 * (192 - 144))


@pytest.mark.parametrize("name", ["demo", "edge"])
def test_skipping_costs_next_to_nothing_where_nothing_is_zero(name: str) -> None:
    """Layers of all sizes, each on its own: those that do not skip take the cycles of an array that only gates."""
    memories: dict[str, Any] = {"window_depth": 1024, "activation_depth": 1 << 15}
    totals = []
    for zero_skip in ("gate", "skip"):
        spec, cycles = dataclasses.replace(preset(name), zero_skip=zero_skip, **memories), []
        for size, channels, bits in itertools.product((4, 8, 16), (3, 16, 64), (1, 2, 4)):
            layers = [conv(channels, 3, weight_bits=bits), linear(10)]  # padding is zero
            found = plan(shapes((channels, size, size), layers), spec, input_bits=bits)
            executed = timeline.estimate(found).layers
            for layer, part in zip(found.descriptors, executed, strict=True):
                cycles.append((part.end - part.start, bool(layer.flags & FLAG_DENSE)))
        totals.append(cycles)
    gated, skipped = totals
    assert all(one == other for (one, _), (other, dense) in zip(gated, skipped, strict=True) if dense)
    assert {dense for _, dense in skipped} == {False, True}
    assert sum(one for one, _ in skipped) < 1.002 * sum(one for one, _ in gated)
