"""Images split into digits: exactly the network that reads whole pixels, on arrays with fewer planes."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.planner import plan
from bitwright.hw.program import InputSpec, Program
from bitwright.hw.shapes import LayerShape
from bitwright.sim import golden
from bitwright.sim.backends.pysim import PysimBackend
from bitwright.sim.energy import estimate_plan
from bitwright.sim.timeline import estimate
from bitwright.sw.digits import digits_of, input_costs, plan_image, split_shape, split_weights
from bitwright.sw.lowering import lower, verify
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.quantizers import ImageInput

torch.set_num_threads(1)

SPEC = ArraySpec(rows=4, columns=2, lanes=64, accumulator_width=30, threshold_depth=4096, descriptor_depth=2048)


def narrow(planes):
    """An array whose activations have so many planes."""
    return dataclasses.replace(SPEC, activation_planes_max=planes)


def images_of(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Numbers --------------------------------------------------------------------------------------------------------------


@given(image_bits=st.integers(2, 8), digit_bits=st.integers(1, 7), channels=st.integers(1, 3))
def test_digits_are_those_of_the_codes(image_bits, digit_bits, channels):
    digits = digits_of(image_bits, digit_bits)
    whole = InputSpec(channels=channels, height=4, width=3, bits=image_bits, base=0, plane_stride=0)
    split = dataclasses.replace(whole, bits=digit_bits, image_bits=image_bits)
    images = images_of(5, channels, 4, 3)
    codes, found = whole.codes(images).astype(int), split.codes(images).astype(int)
    assert split.digits == digits
    assert found.shape == (5, *split.stored_shape) == (5, 4, 3, channels * digits)
    assert found.max() < 1 << digit_bits
    values = found.reshape(5, 4, 3, channels, digits) * (1 << digit_bits * np.arange(digits))
    np.testing.assert_array_equal(values.sum(-1), codes)


@given(data=st.data(), image_bits=st.integers(2, 8), digit_bits=st.integers(1, 7), groups=st.sampled_from([1, 3]))
@settings(max_examples=60)
def test_dot_products_are_those_of_the_codes(data, image_bits, digit_bits, groups):
    encodings = [("signed", 4), ("bipolar", 1), ("odd", 3), ("ternary", 2), ("unsigned", 3)]
    encoding, bits = data.draw(st.sampled_from(encodings))
    shape = LayerShape(
        name="conv", kind="conv", in_shape=(3, 4, 3), out_channels=3, kernel=(4, 3), groups=groups,
        weight_encoding=encoding, weight_bits=bits,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    choices = {
        "signed": np.arange(-8, 8), "bipolar": np.array([-1, 1]), "odd": np.arange(-7, 8, 2),
        "ternary": np.arange(-1, 2), "unsigned": np.arange(8),
    }  # fmt: skip
    weights = rng.choice(choices[encoding], (3, 3 // groups, 4, 3))
    split = split_shape(shape, image_bits, digit_bits)
    numbers = split_weights(weights, shape, image_bits, digit_bits)
    digits = digits_of(image_bits, digit_bits)
    assert split.in_shape == (3 * digits, 4, 3)
    assert numbers.shape == (3, 3 // groups * digits, 4, 3)
    low, high = -(1 << (split.weight_bits - 1)), (1 << (split.weight_bits - 1)) - 1
    assert split.weight_encoding == "signed"
    assert low <= numbers.min()
    assert numbers.max() <= high
    image = InputSpec(channels=3, height=4, width=3, bits=image_bits, base=0, plane_stride=0)
    pixels = images_of(6, 3, 4, 3)
    codes = image.codes(pixels).astype(int).transpose(0, 3, 1, 2)
    halves = dataclasses.replace(image, bits=digit_bits, image_bits=image_bits) if digit_bits < image_bits else image
    parts = halves.codes(pixels).astype(int).transpose(0, 3, 1, 2)
    for group in range(groups):  # out channel = group, where there are three
        outputs = slice(group, group + 1) if groups == 3 else slice(None)
        of = len(codes[0]) // groups
        expected = np.einsum("nchw,ochw->no", codes[:, group * of : (group + 1) * of], weights[outputs])
        found = np.einsum("nchw,ochw->no", parts[:, group * of * digits : (group + 1) * of * digits], numbers[outputs])
        np.testing.assert_array_equal(found, expected)


# Networks -------------------------------------------------------------------------------------------------------------


def conv_network(recipe, channels=2, groups=1, low=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(
        ImageInput(8, low, 1.0), nn.Conv2d(channels, 6, 3, padding=1, groups=groups), nn.BatchNorm2d(6), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 4),
    )  # fmt: skip
    nn.init.normal_(model.get_parameter("2.weight"))
    return quantize(model.eval(), recipe)


def linear_network(recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 36, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    return quantize(model.eval(), recipe)


def assert_exact(network, spec, images, **options) -> Program:
    program = lower(network, spec, images.shape[1:], **options)
    result = verify(network, program, images)
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)
    return program


@pytest.mark.parametrize("input_bits", [8, 5])
@pytest.mark.parametrize(("weights", "bits"), [("fpnn", 3), ("dorefa", 1), ("dorefa", 2), ("twn", 2), ("clustered", 2)])
@pytest.mark.parametrize("build", [conv_network, linear_network])
def test_networks_equal_float64_on_arrays_of_four_planes(build, weights, bits, input_bits):
    options = {"planes": 4} if weights == "clustered" else {}
    network = build(Recipe(
        weights=weights, weight_bits=bits, weight_options=options, activations="dorefa", activation_bits=3,
        input_bits=input_bits,
    ))  # fmt: skip
    images = images_of(12, 2, 6, 6)
    program = assert_exact(network, narrow(4), images)
    assert (program.input.bits, program.input.image_bits, program.input.channels) == (4, input_bits, 2)
    whole = assert_exact(network, SPEC, images)
    assert (whole.input.bits, whole.input.image_bits) == (input_bits, None)
    # The same accumulators: the same thresholds, and the same results.
    np.testing.assert_array_equal(program.thresholds, whole.thresholds)
    (ours,), (theirs,) = golden.network_values(program, images), golden.network_values(whole, images)
    for split, expected in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_array_equal(split, expected)


@pytest.mark.parametrize("digit_bits", [2, 3, 4, 6])
def test_images_are_split_where_asked_to(digit_bits):
    network = conv_network(Recipe(weights="fpnn", weight_bits=2, activation_bits=4), low=-0.5)
    images = images_of(12, 2, 6, 6)
    calibrate(network, torch.from_numpy(images).float())
    program = assert_exact(network, SPEC, images, digit_bits=digit_bits)
    digits = digits_of(8, digit_bits)
    assert program.layers[0].in_shape == (2 * digits, 6, 6)
    assert program.layers[0].weight_bits == 2 + digit_bits * (digits - 1)
    assert program.layers[0].input_planes == digit_bits


def test_groups_read_the_digits_of_their_channels():
    network = conv_network(Recipe(weights="fpnn", weight_bits=3, activation_bits=4), groups=2)
    images = images_of(12, 2, 6, 6)
    calibrate(network, torch.from_numpy(images).float())
    assert assert_exact(network, narrow(4), images).layers[0].groups == 2


def test_the_machine_agrees_on_values_and_cycles():
    """In RTL, with an image of 8 bits on an array of 4 planes."""
    spec = dataclasses.replace(
        narrow(4), columns=1, lanes=32, drain_planes=1, activation_depth=512, window_depth=64, weight_depth=256,
        threshold_depth=256, descriptor_depth=256, residual=False, prefetch=False,
    )  # fmt: skip
    network = linear_network(Recipe(weights="fpnn", weight_bits=3, activations="dorefa", activation_bits=2))
    images = images_of(1, 2, 6, 6)
    program = lower(network, spec, (2, 6, 6))
    (expected,) = golden.execute(program, images)
    (found,) = PysimBackend(spec).run(program, images)
    np.testing.assert_array_equal(found.accumulators, expected.accumulators)
    assert found.cycles == expected.cycles


def test_programs_are_saved_with_their_digits(tmp_path):
    network = linear_network(Recipe(weights="fpnn", weight_bits=3, activations="dorefa", activation_bits=2))
    program = lower(network, narrow(4), (2, 6, 6))
    program.save(tmp_path / "a.bw")
    loaded = Program.load(tmp_path / "a.bw")
    assert loaded.input == program.input
    assert loaded.input.image_bits == 8
    damaged = dataclasses.replace(program.input, image_bits=4)
    with pytest.raises(BitwrightError, match="codes of 4 bits as digits of 4, expected more bits"):
        dataclasses.replace(program, input=damaged)


# Costs ----------------------------------------------------------------------------------------------------------------


def shapes_of(channels, weight_bits, out_channels=16):
    first = LayerShape(
        name="conv", kind="conv", in_shape=(channels, 18, 18), out_channels=out_channels, kernel=(3, 3),
        weight_bits=weight_bits, output_planes=2,
    )  # fmt: skip
    return [first, LayerShape(name="fc", kind="linear", in_shape=first.out_shape, out_channels=4, weight_bits=2)]


WIDE = dataclasses.replace(SPEC, rows=8, columns=8, activation_depth=1 << 14, weight_depth=1 << 14)


def test_planes_take_no_more_cycles_than_digits_of_bytes():
    """(W + Q (D - 1)) Q passes against 8 W, and W + Q (D - 1) planes at most 8: digits save none."""
    for weight_bits in (1, 2, 3, 4):
        costs = input_costs(shapes_of(3, weight_bits), WIDE, input_bits=8, batch=4)
        assert [cost.digit_bits for cost in costs][-1] == 8
        assert len(costs) > 1
        native = costs[-1]
        assert (native.weight_planes, native.words) == (weight_bits, 1)
        for cost in costs[:-1]:
            assert cost.cycles >= native.cycles * 0.99
            digits = digits_of(8, cost.digit_bits)
            assert cost.weight_planes == weight_bits + cost.digit_bits * (digits - 1)


def test_digits_in_idle_lanes_save_cycles():
    """An image of 4 bits under weights of 5: (5 + 3) * 1 passes over 36 lanes that one channel left idle, not 5 * 4."""
    costs = {cost.digit_bits: cost for cost in input_costs(shapes_of(1, 5), WIDE, input_bits=4, batch=4)}
    assert list(costs) == [1, 2, 3, 4]
    assert {cost.words for cost in costs.values()} == {1}
    assert costs[1].cycles < 0.5 * costs[4].cycles
    assert costs[2].cycles < costs[4].cycles


def test_costs_are_those_of_the_plan():
    shapes = shapes_of(3, 4)
    (cost, *_, native) = input_costs(shapes, WIDE, input_bits=8, batch=2)
    planned = plan(shapes, WIDE, input_bits=8, batch=2)
    layer = estimate(planned).layers[0]
    assert native.cycles == (layer.end - layer.start) / 2
    assert native.uj == estimate_plan(planned).by("layer")["conv",]
    split = plan_image(shapes, WIDE, input_bits=8, batch=2, digit_bits=cost.digit_bits)
    layer = estimate(split).layers[0]
    assert cost.cycles == (layer.end - layer.start) / 2
    assert split.input.channels == 3


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named():
    network = linear_network(Recipe(weights="fpnn", weight_bits=6, activations="dorefa", activation_bits=2))
    with pytest.raises(
        BitwrightError, match=r"'1' reads an image of 8 bits in digits of 4, .* take 10 planes, this arr"
    ):
        lower(network, narrow(4), (2, 6, 6))
    with pytest.raises(BitwrightError, match="Digits of the image have 0 bits"):
        lower(network, SPEC, (2, 6, 6), digit_bits=0)
    network = linear_network(Recipe(weights="lqnets", weight_bits=2, activations="dorefa", activation_bits=2))
    with pytest.raises(BitwrightError, match="'1' has weights with a basis"):
        lower(network, narrow(4), (2, 6, 6))
    with pytest.raises(BitwrightError, match="'conv' reads 3 channels of an image of 8 bits in digits of 4"):
        plan(shapes_of(3, 2), SPEC, input_bits=4, image_bits=8)
    with pytest.raises(BitwrightError, match="'conv' reads an image of 8 bits in digits of 4"):
        input_costs(shapes_of(3, 8), narrow(4), input_bits=8)
