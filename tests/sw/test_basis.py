import copy
import dataclasses
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bases import BasisWeight, GivenBasis, with_bases
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, has_coefficients
from bitwright.sim import golden
from bitwright.sw.layers import layer_numbers
from bitwright.sw.lowering import layer_shapes, lower, verify
from bitwright.sw.quantize import Recipe, calibrate
from bitwright.sw.quantizers.basis import BasisCodes, bit_values, fit_basis, fixed_point, rounded
from bitwright.sw.residual import Residual, Shortcut
from bitwright.sw.stages import stages

torch.set_num_threads(1)

SPEC = ArraySpec(
    rows=4,
    columns=2,
    lanes=64,
    accumulator_width=30,
    coefficient_bits=16,
    coefficient_depth=1024,
    weight_depth=1 << 14,
    threshold_depth=1 << 14,
    descriptor_depth=2048,
)
SKEWED = [Fraction(1), Fraction(2), Fraction(5, 2)]
"""Code 3 is above code 4: ranks are not codes."""


# Fitting --------------------------------------------------------------------------------------------------------------


def error(weight, fitted):
    return (fitted.values() - weight.double()).square().mean().item()


@pytest.mark.parametrize("encoding", ["basis", "bipolar_basis"])
@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_the_error_never_rises(encoding, planes):
    weight = torch.randn(5, 40, 3, 3, generator=torch.Generator().manual_seed(planes))
    errors = [error(weight, fit_basis(weight, planes, encoding, iterations=count)) for count in range(12)]
    assert all(after <= before + 1e-6 for before, after in pairwise(errors))
    assert errors[-1] < errors[0]


def test_one_bipolar_plane_is_the_mean_magnitude():
    weight = torch.randn(4, 200, generator=torch.Generator().manual_seed(0)).double()
    fitted = fit_basis(weight, 1)
    torch.testing.assert_close(fitted.basis[:, 0], weight.abs().mean(1), rtol=1e-5, atol=0)
    assert torch.equal(fitted.integers, (weight > 0).long())


@pytest.mark.parametrize(("planes", "expected"), [(1, 0.3634), (2, 0.1175), (3, 0.0371), (4, 0.0115)])
def test_errors_of_normal_weights_are_those_of_the_literature(planes, expected):
    weight = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(1))
    assert error(weight, fit_basis(weight, planes, iterations=100)) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("encoding", ["basis", "bipolar_basis"])
def test_weights_of_a_basis_are_found_again(encoding):
    generator = torch.Generator().manual_seed(2)
    basis = torch.tensor([[0.9, 2.1], [0.2, 0.5]], dtype=torch.float64)
    exact = BasisCodes(torch.randint(0, 4, (2, 300), generator=generator), basis, encoding)
    fitted = fit_basis(exact.values(), 2, encoding, iterations=60)
    assert error(exact.values(), fitted) < 1e-8


def test_weights_that_are_all_alike():
    for value in (0.0, 0.5):
        fitted = fit_basis(torch.full((2, 9), value), 2)
        assert fitted.basis.isfinite().all()
        assert error(torch.full((2, 9), value), fitted) < 1e-6


def test_values_of_codes():
    basis = torch.tensor([[1.0, 10.0], [2.0, 0.5]], dtype=torch.float64)
    codes = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert BasisCodes(codes, basis, "basis").values().tolist() == [[0, 1, 10, 11], [2.5, 0.5, 2, 0]]
    assert BasisCodes(codes, basis, "bipolar_basis").values().tolist() == [[-11, -9, 9, 11], [2.5, -1.5, 1.5, -2.5]]


# Activations ----------------------------------------------------------------------------------------------------------


def test_inputs_get_the_nearest_level_and_halfway_the_lower():
    activation = GivenBasis(SKEWED)
    assert activation.code_table() == (0, 1, 2, 4, 3, 5, 6, 7)
    x = torch.tensor([-9, 0.4, 0.5, 0.51, 1.5, 2.25, 2.26, 2.75, 2.76, 3.6, 99], dtype=torch.float64)
    assert activation(x).tolist() == [0, 0, 0, 1, 1, 2, 2.5, 2.5, 3, 3.5, 5.5]
    codes = activation.codes(x)
    assert codes.tolist() == [0, 0, 0, 1, 1, 2, 4, 4, 3, 5, 7]
    assert torch.equal(activation.codes_of(activation(x)), codes)
    with pytest.raises(BitwrightError, match="GivenBasis has a basis and no step"):
        activation.step()


def test_code_zero_need_not_be_the_least_level():
    activation = GivenBasis([Fraction(-1), Fraction(2)], Fraction(1, 2))
    assert activation.levels_by_code() == [Fraction(1, 2), Fraction(-1, 2), Fraction(5, 2), Fraction(3, 2)]
    assert activation.code_table() == (1, 0, 3, 2)
    assert activation(torch.tensor([-3.0, 0.4, 7.0])).tolist() == [-0.5, 0.5, 2.5]


def test_the_gradient_passes_up_to_the_greatest_level():
    x = torch.tensor([-1.0, 2.0, 5.4, 5.5, 6.0], requires_grad=True)
    GivenBasis(SKEWED)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 0, 0]


# Fixed point ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.fractions(-1000, 1000, max_denominator=997), min_size=1, max_size=9), st.integers(2, 16))
@settings(max_examples=200)
def test_the_point_is_as_far_right_as_fits(values, bits):
    f = fixed_point(values, bits)
    half = 1 << (bits - 1)
    if not any(values):
        assert f == 0
        return
    assert all(-half <= number < half for number in rounded(values, f))
    assert not all(-half <= number < half for number in rounded(values, f + 1))


def test_rounding_is_half_to_even():
    assert rounded([Fraction(1, 2), Fraction(3, 2), Fraction(-5, 4)], 0) == [0, 2, -1]
    assert rounded([Fraction(1, 2), Fraction(3, 2), Fraction(-5, 4)], 1) == [1, 3, -2]
    assert rounded([Fraction(6)], -2) == [2]


# Networks -------------------------------------------------------------------------------------------------------------


def small_network(encoding, planes, activation, *, random=False, weights=("conv2", "fc"), channels=6):
    """Three layers; those named have bases, the others fixed-point weights."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, module in {
        "conv1": nn.Conv2d(2, channels, 3, padding=1), "bn1": nn.BatchNorm2d(channels), "act1": activation,
        "conv2": nn.Conv2d(channels, 5, 3, padding=1), "pool": nn.MaxPool2d(2), "bn2": nn.BatchNorm2d(5),
        "act2": GivenBasis([0.3, 0.7]), "flat": nn.Flatten(), "fc": nn.Linear(5 * 9, 4),
    }.items():  # fmt: skip
        model.add_module(name, module)
    for name, reach in (("bn1", 5.5), ("bn2", 1.0)):
        norm = cast("nn.BatchNorm2d", model.get_submodule(name))
        norm.momentum = 1
        nn.init.normal_(norm.weight, 0, reach / 2)
        nn.init.normal_(norm.bias, reach / 2, reach / 4)
    generator = torch.Generator().manual_seed(3) if random else None
    chosen = {name: BasisWeight(planes, encoding, generator) for name in weights}
    layers = {name: {"weight_bits": None} for name in weights}
    recipe = Recipe(weight_bits=4, activation_bits=4, layers=layers)
    network = with_bases(model, chosen, recipe)
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 6, 6), np.uint8)
    network(torch.from_numpy(images).float())  # for the statistics of the batch norms
    return network.eval(), images


def numbers_of(network, name, spec=SPEC, in_shape=(2, 6, 6)) -> tuple[Any, Any, Any]:
    network = network.double()
    found = zip(stages(network), layer_shapes(network, in_shape), strict=True)
    stage, shape = next((stage, shape) for stage, shape in found if stage.name == name)
    return stage, shape, layer_numbers(stage, shape, spec)


def kept(program, images):
    """Raw results, and the codes of every layer before them, channel first."""
    runs = golden.execute(program, images, cycles=False, keep=True)
    codes = zip(*(run.codes or () for run in runs), strict=True)
    return np.concatenate([run.accumulators for run in runs]), *map(np.concatenate, codes)


def products(numbers, codes, planes, input_planes, encoding, **options):
    """Accumulators in plain arithmetic: counts of ones of every pair of planes, times their coefficient."""
    counted = bit_values(planes, encoding)[torch.from_numpy(numbers.weights)].reshape(*numbers.weights.shape, planes)
    total = np.zeros((), np.int64)
    for i in range(planes):
        for j in range(input_planes):
            bits = torch.from_numpy(codes >> j & 1).double()
            counts = nn.functional.conv2d(bits, counted[..., i], **options).long().numpy()
            total = total + counts * numbers.coefficients[:, i, j, None, None]
    return total


@pytest.mark.parametrize("encoding", ["basis", "bipolar_basis"])
@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("planes", [1, 2, 3])
def test_the_golden_model_computes_products_of_coefficients_and_counts(encoding, random, planes):
    network, images = small_network(encoding, planes, GivenBasis(SKEWED), random=random)
    program = lower(network, SPEC, (2, 6, 6))
    results, first, second = kept(program, images)
    assert np.array_equal(np.unique(first), np.arange(8))
    assert np.array_equal(np.unique(second), np.arange(4))

    stage, _, numbers = numbers_of(network, "conv2")
    sums = products(numbers, first, planes, 3, encoding, padding=1)
    lines = zip(numbers.lines, sums.swapaxes(0, 1), strict=True)
    values = np.stack([float(line.gain) * each + float(line.constant) for line, each in lines], axis=1)
    signs = np.array([-1 if line.falling else 1 for line in numbers.lines])[:, None, None]
    pooled = nn.functional.max_pool2d(torch.from_numpy(values * signs), 2) * torch.from_numpy(signs)
    assert np.array_equal(stage.activation.codes(pooled).numpy(), second)

    _, _, numbers = numbers_of(network, "fc")
    wide = dataclasses.replace(numbers, weights=numbers.weights.reshape(4, 5, 3, 3))
    expected = products(wide, second, planes, 2, encoding)[:, :, 0, 0]
    assert np.array_equal(results, expected)
    assert len(np.unique(expected)) > 8

    layer = program.parsed[0]
    codes_by_rank = (0, 1, 2, 4, 3, 5, 6, 7)
    for plane in range(3):
        found = [layer.fields[f"code_table_{plane}"] >> rank & 1 for rank in range(8)]
        assert found == [code >> plane & 1 for code in codes_by_rank]


def coefficients_by_definition(network, numbers, name, values):
    """Products of the bases of a layer, and the point of each channel."""
    stage = next(stage for stage in stages(network) if stage.name == name)
    codes: Any = stage.weight_codes()
    for channel, row in enumerate(codes.basis.tolist()):
        real = [Fraction(weight) * value for weight in row for value in values]
        points = [f for f in range(-20, 60) if rounded(real, f) == numbers.coefficients[channel].reshape(-1).tolist()]
        yield real, points


@pytest.mark.parametrize("bits", [2, 5, 8, 16])
def test_each_channel_has_its_own_point_as_far_right_as_its_coefficients_fit(bits):
    network, _ = small_network("bipolar_basis", 2, GivenBasis(SKEWED))
    network.get_submodule("conv2").parametrizations.weight.original.data[0] *= 100  # pyright: ignore
    spec = dataclasses.replace(SPEC, coefficient_bits=bits)
    _, _, numbers = numbers_of(network, "conv2", spec)
    chosen = []
    for real, points in coefficients_by_definition(network, numbers, "conv2", SKEWED):
        chosen.append(fixed_point(real, bits))
        assert chosen[-1] in points
    assert len(set(chosen)) > 1
    assert min(chosen) == chosen[0]
    assert np.abs(numbers.coefficients).max() <= 1 << (bits - 1)


def test_narrow_accumulators_move_the_point():
    network, images = small_network("bipolar_basis", 2, GivenBasis(SKEWED))
    spec = dataclasses.replace(SPEC, accumulator_width=15)
    _, _, numbers = numbers_of(network, "conv2", spec)
    assert max(max(numbers.high) + 1, -min(numbers.low) - 1).bit_length() == 14
    for real, points in coefficients_by_definition(network, numbers, "conv2", SKEWED):
        assert max(points) < fixed_point(real, 16)
    program = lower(network, spec, (2, 6, 6))
    results, _, second = kept(program, images)
    wide = numbers_of(network, "fc", spec)[2]
    wide = dataclasses.replace(wide, weights=wide.weights.reshape(4, 5, 3, 3))
    assert np.array_equal(results, products(wide, second, 2, 2, "bipolar_basis")[:, :, 0, 0])
    with pytest.raises(BitwrightError, match="'conv2' leaves no bit for its coefficients in accumulators of 8 bits"):
        numbers_of(small_network("bipolar_basis", 1, GivenBasis([1, 2, 3, 4]), channels=60)[0], "conv2",
                   dataclasses.replace(SPEC, accumulator_width=8))  # fmt: skip


def test_more_bits_of_coefficients_make_fewer_mismatches():
    network, _ = small_network("bipolar_basis", 2, GivenBasis(SKEWED))
    images = np.random.default_rng(1).integers(0, 256, (200, 2, 6, 6), np.uint8)
    rates = []
    for bits in (3, 6, 16):
        spec = dataclasses.replace(SPEC, coefficient_bits=bits)
        found = verify(network, lower(network, spec, (2, 6, 6)), images)
        assert found.mismatches["conv1"] == 0
        rates.append(found.mismatches["conv2"] / found.activations["conv2"])
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] < 1e-3


@pytest.mark.parametrize(("method", "bits"), [("fixed", 2), ("fixed", 4), ("qnn", 3), ("qnn", 1), ("sign", 1)])
@pytest.mark.parametrize("offset", [Fraction(0), Fraction(-1)])
def test_uniform_weights_after_a_basis_activation(method, bits, offset):
    """Their coefficients are powers of two, and so exact."""
    torch.manual_seed(bits)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), GivenBasis([Fraction(1), Fraction(1, 4)], offset),
        nn.Conv2d(6, 8, 3, padding=1, dilation=2), nn.BatchNorm2d(8), GivenBasis([Fraction(1, 2), Fraction(1)], offset),
        nn.AvgPool2d(2, 1), nn.Hardtanh(),
        nn.Conv2d(8, 4, 1), GivenBasis([Fraction(1), Fraction(1, 2), Fraction(1, 8)], offset),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    recipe = Recipe(weights=method, weight_bits=bits, activations="fixed", activation_bits=3)
    network = with_bases(model.eval(), {}, recipe)
    images = np.random.default_rng(0).integers(0, 256, (20, 2, 7, 7), np.uint8)
    calibrate(network, torch.from_numpy(images).float())
    program = lower(network, SPEC, (2, 7, 7))
    assert [info.weight_encoding[-5:] == "basis" for info in program.layers] == [False, True, True, False, True]
    result = verify(network, program, images)
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)


def test_ternary_weights_count_both_planes():
    from bitwright.sw.layers import _Weights, _with_basis

    given_weights = _Weights(np.array([[-1, 0, 1]]), "ternary", 2, [Fraction(3)], [])
    found = _with_basis(given_weights)
    assert (found.encoding, found.planes) == ("basis", 2)
    values = [sum(value for bit, value in enumerate(found.basis[0]) if code >> bit & 1) for code in found.integers[0]]
    assert values == [-3, 0, 3]


def test_what_does_not_go_with_a_basis():
    network, _ = small_network("basis", 2, GivenBasis([1, 2]))
    with pytest.raises(BitwrightError, match="'conv2' has weights of encoding basis, this array has no multipliers"):
        lower(network, dataclasses.replace(SPEC, coefficient_bits=0), (2, 6, 6))


# Residual blocks ------------------------------------------------------------------------------------------------------

RESIDUAL = dataclasses.replace(SPEC, residual=True)


def block_with_bases(outer, inner, weight, *, channels=5, bits=3):
    """A network with one block, where a basis is given of what it adds, of what it convolves, and of its weights."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), outer or nn.ReLU(),
        Residual(
            nn.Conv2d(4, 6, 3, 2, padding=1), nn.BatchNorm2d(6), inner or nn.ReLU(),
            nn.Conv2d(6, channels, 3, padding=1), Shortcut(2), nn.BatchNorm2d(channels), GivenBasis([1, 0.5]),
        ),
        nn.Flatten(), nn.Linear(9 * channels, 3),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
            nn.init.normal_(module.weight, 0, 1)
            nn.init.normal_(module.bias, 0.5, 0.5)
    layers = {"3.3": {"weight_bits": None}} if weight else {}
    recipe = Recipe(weight_bits=bits, activation_bits=bits, layers=layers)
    network = with_bases(model, {"3.3": weight} if weight else {}, recipe)
    images = np.random.default_rng(2).integers(0, 256, (30, 2, 6, 6), np.uint8)
    network(torch.from_numpy(images).float())
    calibrate(network.eval(), torch.from_numpy(images).float())
    return network, images


POWERS = [Fraction(1), Fraction(1, 4)]


@pytest.mark.parametrize("outer", [None, GivenBasis(POWERS), GivenBasis(POWERS, Fraction(-1, 2))])
@pytest.mark.parametrize("inner", [None, GivenBasis([Fraction(1, 2), Fraction(2)])])
@pytest.mark.parametrize("channels", [4, 7])
def test_blocks_with_bases_of_powers_of_two_are_exact(outer, inner, channels):
    network, images = block_with_bases(copy.deepcopy(outer), copy.deepcopy(inner), None, channels=channels)
    program = lower(network, RESIDUAL, (2, 6, 6))
    assert has_coefficients(program.layers[2].weight_encoding) == (outer is not None or inner is not None)
    result = verify(network, program, images)
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)


@pytest.mark.parametrize("encoding", ["basis", "bipolar_basis"])
@pytest.mark.parametrize("uniform", [False, True])
def test_an_addend_counts_the_rounded_value_of_its_planes(encoding, uniform):
    outer = None if uniform else GivenBasis([Fraction(7, 10), Fraction(9, 5)], Fraction(1, 3))
    network, images = block_with_bases(outer, GivenBasis([Fraction(1, 3), Fraction(2, 3)]), BasisWeight(2, encoding))
    program = lower(network, RESIDUAL, (2, 6, 6))
    _, first, second, third = kept(program, images)
    stage, shape, numbers = numbers_of(network, "3.3", RESIDUAL)
    assert shape.residual.channels == 4
    assert numbers.residual_coefficients.shape == (5, 1, 2)
    assert not numbers.residual_coefficients[4].any()
    sums = products(numbers, second, 2, 2, encoding, padding=1)
    values = stage.addend_quantizer
    planes = values.basis() if not uniform else [values.step() * (1 << plane) for plane in range(2)]
    for channel, line in enumerate(numbers.lines[:4]):
        f = round(math.log2(abs(bn_factor(stage, channel)) / abs(float(line.gain))))
        assert numbers.residual_coefficients[channel, 0].tolist() == rounded(planes, f)
    for plane in range(2):
        bits = first[:, :, ::2, ::2] >> plane & 1
        sums[:, :4] += bits * numbers.residual_coefficients[:4, 0, plane, None, None]
    for channel, (low, high) in enumerate(zip(numbers.low, numbers.high, strict=True)):
        assert low <= sums[:, channel].min()
        assert sums[:, channel].max() <= high
    lines = zip(numbers.lines, sums.swapaxes(0, 1), strict=True)
    reached = np.stack([float(line.gain) * each + float(line.constant) for line, each in lines], axis=1)
    assert np.array_equal(stage.activation.codes(torch.from_numpy(reached)).numpy(), third)
    result = verify(network, program, images)
    assert result.mismatches["3.3"] < 0.01 * result.activations["3.3"]


def bn_factor(stage, channel):
    return float(stage.norm.weight.detach()[channel] / torch.sqrt(stage.norm.running_var[channel] + stage.norm.eps))
