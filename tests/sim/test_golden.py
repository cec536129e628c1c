import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import COUNTERS, ArraySpec, Descriptor, preset, unpack_words
from bitwright.sim import golden
from bitwright.sim.bitserial import Machine
from programs import conv, linear, random_images, random_program
from strategies import programs

SPEC = ArraySpec(rows=4, columns=3, lanes=32, accumulator_width=16)


def read_codes(machine: Machine, layer: Descriptor) -> np.ndarray:
    """Output codes of a layer from activation memory: (images, channels, height, width)."""
    spec = machine.program.spec
    pixels = layer.images * layer.output_height * layer.output_width
    planes = np.arange(layer.output_planes)[:, None, None] * layer.output_plane_stride
    addresses = layer.output_base + planes + np.arange(pixels * layer.output_words).reshape(pixels, -1)
    bits = unpack_words(machine.activations[addresses % spec.activation_depth])[..., : spec.derived.channels_per_word]
    codes = (
        bits.reshape(layer.output_planes, pixels, -1).astype(int) << np.arange(layer.output_planes)[:, None, None]
    ).sum(0)
    codes = codes[:, : layer.channels].reshape(layer.images, layer.output_height, layer.output_width, -1)
    return codes.transpose(0, 3, 1, 2)


def assert_equal_to_bit_serial(program, images):
    runs = golden.execute(program, images, cycles=False, keep=True)
    assert len(runs) == -(-len(images) // program.batch)
    machine = Machine(program)
    for number, run in enumerate(runs):
        batch = images[number * program.batch :][: program.batch]
        addresses, words = program.pack_images(batch)
        machine.activations[addresses] = words
        assert run.codes is not None
        for index, layer in enumerate(program.parsed):
            machine.run_layer(layer)
            if not layer.raw:
                np.testing.assert_array_equal(run.codes[index], read_codes(machine, layer)[: len(batch)])
        results = machine.results[: program.batch * run.accumulators.shape[1]].reshape(program.batch, -1)
        np.testing.assert_array_equal(run.accumulators, results[: len(batch)])


@given(programs())
@settings(max_examples=60, deadline=None)
def test_any_network_equals_the_bit_serial_machine(case):
    assert_equal_to_bit_serial(*case)


@pytest.mark.parametrize(
    ("encoding", "bits"),
    [(e, b) for e in ("signed", "odd") for b in range(1, 9)] + [("bipolar", 1), ("ternary", 2)],
)
def test_every_encoding_equals_the_bit_serial_machine(encoding, bits):
    rng = np.random.default_rng(bits)
    weights = {"weight_encoding": encoding, "weight_bits": bits}
    layers = [conv(6, 3, pool=2, output_planes=bits, **weights), linear(3, **weights)]
    program = random_program(rng, SPEC, layers, in_shape=(2, 6, 5), input_bits=8, batch=2)
    assert_equal_to_bit_serial(program, random_images(rng, program, 3))


def test_values_wrap_as_narrow_accumulators_do():
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(SPEC, accumulator_width=8)
    layers = [conv(6, 3, weight_bits=8), linear(5, weight_bits=8, weight_encoding="odd")]
    program = random_program(rng, spec, layers, in_shape=(3, 6, 6))
    assert max(layer.value_bound for layer in golden.read_layers(program)) > 1 << 7
    assert_equal_to_bit_serial(program, random_images(rng, program, 2))


def test_sums_beyond_float32_are_exact():
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(SPEC, accumulator_width=30, lanes=64)
    program = random_program(rng, spec, [linear(3, weight_bits=8, weight_encoding="odd")], in_shape=(3, 20, 20))
    [layer] = golden.read_layers(program)
    assert layer.weights.dtype == np.float64
    images = np.full((1, 3, 20, 20), 255, np.uint8)
    expected = 255 * layer.weights[:, :3].astype(np.int64).sum(0)  # unsigned part q of 2q - 255
    total = 255 * 255 * 1200
    np.testing.assert_array_equal(golden.execute(program, images)[0].accumulators[0], 2 * expected - total)


def test_the_search_is_binary_even_where_thresholds_are_not_in_order():
    layer = golden.read_layers(
        random_program(np.random.default_rng(0), SPEC, [conv(4), linear(2)], in_shape=(1, 4, 4))
    )[0]
    layer = dataclasses.replace(layer, thresholds=np.array([[5, 0, 2]] * 4, np.int32), negate=np.zeros(4, bool))
    # 1: not below 0, then below 2: code 2, though it is below the first threshold.
    np.testing.assert_array_equal(golden.threshold_codes(np.full((1, 4), 1), layer), np.full((1, 4), 2))
    np.testing.assert_array_equal(golden.threshold_codes(np.full((1, 4), -1), layer), np.zeros((1, 4)))


@given(programs())
@settings(max_examples=40, deadline=None)
def test_word_activity_equals_the_words_that_are_fetched(case):
    program, images = case
    machine = Machine(program)
    images = np.concatenate([images, np.zeros((-len(images) % program.batch, *images.shape[1:]), np.uint8)])
    stages = next(golden.network_values(program, images[: program.batch]))
    machine.activations[program.pack_images(images[: program.batch])[0]] = program.pack_images(images[: program.batch])[
        1
    ]
    spec = dataclasses.replace(program.spec, zero_skip="skip")
    for codes, info, layer in zip(stages, program.layers, program.parsed, strict=False):
        active = golden.word_activity(codes, layer, spec, info.input_channels_per_word)
        fetched = machine._fetch(layer).any(-1)
        np.testing.assert_array_equal(active.reshape(fetched.shape), fetched)
        machine.run_layer(layer)


def test_word_activity_without_zero_skip_counts_everything_inside_the_image():
    rng = np.random.default_rng(0)
    layers = [conv(40, 1, output_planes=1), conv(2, 3, padding=1, stride=2)]
    program = random_program(rng, SPEC, layers, in_shape=(1, 3, 3))
    stages = next(golden.network_values(program, random_images(rng, program, 1)))
    active = golden.word_activity(stages[1], program.parsed[1], SPEC, 32)
    assert active.shape == (1, 4, 1, 18)
    # Windows at the corners of a 3×3 image see 2×2 pixels of 2 words.
    np.testing.assert_array_equal(active.sum(-1), np.full((1, 4, 1), 8))
    np.testing.assert_array_equal(active[0, 0, 0].reshape(3, 3, 2)[0], False)


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
def test_totals_are_the_sums_of_the_layers(zero_skip):
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(preset("demo"), zero_skip=zero_skip)
    program = random_program(rng, spec, [conv(20, 3, pool=2), linear(10)], in_shape=(1, 8, 8), batch=2)
    runs = golden.execute(program, random_images(rng, program, 3), trace=(0, 1))
    assert [len(run.accumulators) for run in runs] == [2, 1]
    for run in runs:
        assert tuple(run.counters) == COUNTERS
        assert run.cycles == run.counters["cycles"] == sum(layer.end - layer.start for layer in run.layers)
        assert run.counters["busy"] == sum(layer.counters["busy"] for layer in run.layers)
        assert run.writes is not None
        for index, layer in enumerate(run.layers):
            writes = run.writes[index]
            assert len(writes) == layer.counters["writes"]
            assert layer.start < writes[0, 0]
            assert writes[-1, 0] < layer.end
        np.testing.assert_array_equal(np.sort(run.writes[1][:, 4])[-3:], np.sort(runs_values(program, run))[-3:])


def runs_values(program, run):
    """All raw results of a run, those of the black images that fill it up included."""
    black = golden.execute(program, np.zeros((1, 1, 8, 8), np.uint8), cycles=False)[0].accumulators
    missing = program.batch - len(run.accumulators)
    return np.concatenate([run.accumulators, *[black] * missing]).reshape(-1)


def test_results_do_not_depend_on_how_images_are_grouped():
    rng = np.random.default_rng(0)
    program = random_program(rng, SPEC, [conv(5, 3), linear(3)], in_shape=(2, 5, 5))
    images = random_images(rng, program, 9)
    together = np.concatenate([run.accumulators for run in golden.execute(program, images, cycles=False)])
    groups = [stages[-1] for stages in golden.network_values(program, images, at_once=4)]
    assert [len(group) for group in groups] == [4, 4, 1]
    np.testing.assert_array_equal(together, np.concatenate(groups)[..., :3].reshape(9, 3))


def rewritten(program, index, **changes):
    """The Program with other fields in one descriptor."""
    layers = list(program.parsed)
    layers[index] = dataclasses.replace(layers[index], fields=dict(layers[index].fields) | changes)
    return dataclasses.replace(program, descriptors=np.concatenate([layer.encode(program.spec) for layer in layers]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_address": 7}, "start_address is 7"),
        ({"tap_y_stride": 1}, "tap_y_stride is 1"),
        ({"input_height": 2}, "input has 2"),
        ({"pool_x_step": 3, "pool_x_address_step": 3}, "multiples"),
    ],
)
def test_layers_that_do_not_read_what_was_written_are_refused(changes, message):
    rng = np.random.default_rng(0)
    layers = [conv(4, 1), conv(4, 2, pool=2), linear(3)]
    program = random_program(rng, SPEC, layers, in_shape=(1, 6, 6))
    with pytest.raises(BitwrightError, match=rf"'layer1'.*{message}"):
        golden.read_layers(rewritten(program, 1, **changes))


def test_passes_that_are_no_product_of_planes_are_refused():
    program = random_program(np.random.default_rng(0), SPEC, [linear(3)], in_shape=(1, 2, 2))
    layer = program.parsed[0]
    layer = dataclasses.replace(layer, passes=layer.passes[::-1])
    program = dataclasses.replace(program, descriptors=layer.encode(SPEC))
    with pytest.raises(BitwrightError, match=r"'layer0'.*pair"):
        golden.read_layers(program)


def test_a_channel_with_two_kinds_of_thresholds_is_refused():
    program = random_program(np.random.default_rng(0), SPEC, [conv(4, 1), linear(3)], in_shape=(1, 2, 2))
    thresholds = program.thresholds.copy()
    thresholds[0, 0] ^= 1 << SPEC.accumulator_width
    with pytest.raises(BitwrightError, match=r"'layer0'.*flags"):
        golden.read_layers(dataclasses.replace(program, thresholds=thresholds))


def test_images_of_another_shape_are_named_as_given():
    program = random_program(np.random.default_rng(0), SPEC, [linear(3)], in_shape=(1, 2, 2), batch=2)
    with pytest.raises(BitwrightError, match=r"shape \(3, 1, 2, 3\), expected \(images, 1, 2, 2\)"):
        golden.execute(program, np.zeros((3, 1, 2, 3), np.uint8))


def test_images_are_needed():
    program = random_program(np.random.default_rng(0), SPEC, [linear(3)], in_shape=(1, 2, 2))
    with pytest.raises(BitwrightError, match="no images"):
        golden.execute(program, np.zeros((0, 1, 2, 2), np.uint8))
