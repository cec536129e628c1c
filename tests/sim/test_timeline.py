"""The cycle model against a machine that is stepped cycle by cycle."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.hw.isa import ISSUE_TO_LOAD, LAYER_TO_RUN, RAW_TO_WRITE, SCAN_OVERHEAD, ArraySpec, Descriptor
from bitwright.hw.plan import plan
from bitwright.sim.timeline import layer_timing, layer_writes, window_inside
from programs import conv, linear, shapes

ARRAYS = st.builds(
    ArraySpec,
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    lanes=st.just(32),
    zero_skip=st.sampled_from(["off", "gate", "skip"]),
)


@st.composite
def layers(draw: st.DrawFn) -> tuple[ArraySpec, Descriptor]:
    """One layer of a small network on a small array: convolution or linear, codes or raw."""
    spec = draw(ARRAYS)
    size = draw(st.tuples(st.integers(1, 3), st.integers(5, 8), st.integers(5, 8)))
    first = conv(
        draw(st.integers(1, 9)),
        draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 2)),
        pool=draw(st.integers(1, 2)),
        weight_bits=draw(st.integers(1, 3)),
        output_planes=draw(st.integers(1, 3)),
    )
    second = conv(draw(st.integers(1, 4)), 1, padding=draw(st.integers(0, 1)))
    planned = plan(
        shapes(size, [first, second, linear(3)]),
        spec,
        input_bits=draw(st.integers(1, 4)),
        batch=draw(st.integers(1, 2)),
    )
    return spec, draw(st.sampled_from(planned.descriptors))


def step_machine(layer: Descriptor, spec: ArraySpec, active: np.ndarray) -> dict[str, int]:
    """Scanner, issuer and drain as three little machines, one cycle at a time."""
    words, planes = layer.window_words, layer.activation_planes
    groups = [range(start, min(start + spec.columns, layer.pixels)) for start in range(0, layer.pixels, spec.columns)]
    scan = spec.columns + planes * words + SCAN_OVERHEAD
    scanned, scan_left = 0, scan  # the first group's wait is its first cycle
    ready = False
    current: int | None = None
    tile = position = 0
    drain_wait = busy = stalls = issued = 0
    now = LAYER_TO_RUN + 1
    while True:
        take = ready and current is None
        if current is not None:
            group = active[list(groups[current])]
            lengths = group.any(0).sum(-1) if spec.zero_skip == "skip" else np.full(planes, words)
            operations = [step for entry in layer.passes for step in range(max(1, lengths[entry.activation_plane]))]
            tile_last = position == len(operations) - 1
            if tile_last and drain_wait:
                stalls += 1
            else:
                busy += 1
                position += 1
                if tile_last:
                    drain_wait = len(groups[current]) * layer.drain_steps(spec)
                    issued, position, tile = now, 0, tile + 1
                    if tile == layer.row_tiles:
                        tile = 0
                        if current == len(groups) - 1:
                            break
                        take = ready
                        current = None
        drain_wait = max(0, drain_wait - 1)
        if scanned < len(groups) and (scan_left < scan or not ready):
            scan_left -= 1
        if take:
            current, ready = scanned - 1, False
        if scan_left == 0:
            ready, scan_left, scanned = True, scan, scanned + 1
        now += 1
    last = issued + ISSUE_TO_LOAD + len(groups[-1]) * layer.drain_steps(spec)
    return {"busy": busy, "stalls": stalls, "end": last + (RAW_TO_WRITE if layer.raw else 1 + layer.output_planes)}


@given(layers(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_recurrences_equal_the_stepped_machine(drawn: tuple[ArraySpec, Descriptor], seed: int, density: float) -> None:
    spec, layer = drawn
    shape = (1, layer.pixels, layer.activation_planes, layer.window_words)
    inside = np.tile(window_inside(layer), (layer.images, 1))
    nonzero = (np.random.default_rng(seed).random(shape) < density) & inside[None, :, None]
    timing = layer_timing(layer, spec, np.zeros(1, np.int64), nonzero)
    active = nonzero[0] if spec.zero_skip != "off" else np.broadcast_to(inside[:, None], shape[1:])
    stepped = step_machine(layer, spec, active)
    assert stepped == {
        "busy": timing.counters["busy"][0],
        "stalls": timing.counters["stalls"][0],
        "end": timing.end[0],
    }
    assert timing.counters["writes"][0] == len(
        layer_writes(layer, spec, timing, 0, np.zeros((layer.pixels // layer.pool_area, layer.channels), np.int64))
    )


@given(layers(), st.integers(0, 2**32 - 1))
def test_runs_are_timed_apart(drawn: tuple[ArraySpec, Descriptor], seed: int) -> None:
    spec, layer = drawn
    rng = np.random.default_rng(seed)
    nonzero = rng.random((3, layer.pixels, layer.activation_planes, layer.window_words)) < 0.5
    start = rng.integers(0, 100, 3)
    together = layer_timing(layer, spec, start, nonzero)
    for run in range(3):
        alone = layer_timing(layer, spec, start[run : run + 1], nonzero[run : run + 1])
        assert alone.end[0] == together.end[run]
        assert {name: value[0] for name, value in alone.counters.items()} == {
            name: value[run] for name, value in together.counters.items()
        }


@pytest.mark.parametrize(("weight_bits", "input_bits"), [(1, 1), (2, 2), (4, 4), (8, 8)])
def test_cycles_follow_the_bits(weight_bits: int, input_bits: int) -> None:
    spec = ArraySpec(activation_depth=16384, threshold_depth=4096)
    network = shapes((64, 16, 16), [conv(64, 3, weight_bits=weight_bits, output_planes=1), linear(8)])
    layer = plan(network, spec, input_bits=input_bits).descriptors[0]
    timing = layer_timing(layer, spec, np.zeros(1, np.int64))
    bound = (64 // 8) * -(-14 * 14 // 8) * 9 * weight_bits * input_bits
    assert timing.counters["busy"][0] == bound
    assert timing.end[0] + 1 <= 1.05 * bound
