import copy
import itertools
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.sw.lowering import lower, verify
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, calibrate, quantize, summary
from bitwright.sw.quantizers import method
from bitwright.sw.quantizers.basis import BasisEncoding, Levels
from bitwright.sw.quantizers.lqnets import BELOW_ALL, LQNetsActivation, LQNetsWeight
from bitwright.sw.training import descend

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
BITS = [1, 2, 3, 4]
MOMENTUM, EPSILON = 0.9, 1e-4


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def fresh_weight(bits, weight, training=True):
    quantizer = LQNetsWeight(bits)
    quantizer.fit(weight)
    return quantizer.train(training)


def with_basis(quantizer, basis):
    quantizer.coefficients = torch.tensor(basis, dtype=torch.float64)
    return quantizer


# The method written out, number by number ----------------------------------------------------------------------------


def step_by_step(numbers, basis, signs):
    """Levels of the numbers with the current basis, and the basis with the least squared error; plain NumPy."""
    codes = list(itertools.product(signs, repeat=len(basis)))
    levels = sorted((sum(b * v for b, v in zip(code, basis, strict=True)), code) for code in codes)
    chosen, values = [], []
    for number in numbers:
        rank = sum(number > (low[0] + high[0]) / 2 for low, high in pairwise(levels))
        values.append(levels[rank][0])
        chosen.append(levels[rank][1])
    b = np.array(chosen, float)
    squares = b.T @ b + EPSILON * np.eye(len(basis))
    return values, np.linalg.solve(squares, b.T @ np.array(numbers) + EPSILON * np.array(basis))


def without_bias(history: list[Any], initial: Any = None) -> Any:
    """Moving average from zero over all new bases so far, divided by the sum of their weights, as TensorFlow has it."""
    if not history:
        return initial
    total, weight = np.zeros_like(history[0]), 0.0
    for basis in history:
        total, weight = MOMENTUM * total + (1 - MOMENTUM) * basis, MOMENTUM * weight + (1 - MOMENTUM)
    return total / weight


@pytest.mark.parametrize("bits", BITS)
def test_weights_follow_the_paper_step_by_step(bits):
    weight = normal(3, 4, 3, 3, seed=bits)
    quantizer = fresh_weight(bits, weight)
    deviation = math.sqrt(2 / (3 * 9))  # of He's initialization, by the outputs of a weight
    initial = np.array([[0.6745 * deviation / 2 ** (bits - 1) * 2**i for i in range(bits)]] * 3)
    np.testing.assert_allclose(quantizer.coefficients, initial, rtol=1e-12)
    history: list[list[Any]] = [[], [], []]
    for step in range(8):
        weight = weight + 0.05 * normal(3, 4, 3, 3, seed=100 + step)
        found = quantizer(weight).reshape(3, -1)
        for channel, numbers in enumerate(weight.reshape(3, -1).tolist()):
            basis = without_bias(history[channel], initial[channel])
            values, best = step_by_step(numbers, basis, (-1, 1))
            np.testing.assert_allclose(found[channel], values, rtol=1e-9, atol=1e-12)
            history[channel].append(best)
            np.testing.assert_allclose(
                quantizer.coefficients[channel], without_bias(history[channel]), rtol=1e-9, atol=1e-12
            )


@pytest.mark.parametrize("bits", BITS)
def test_activations_follow_the_paper_step_by_step(bits):
    quantizer = LQNetsActivation(bits).double()
    initial = np.array([0.6745 * 2 / (2**bits - 1) * 2**i for i in range(bits)])
    np.testing.assert_allclose(quantizer.coefficients[0], initial, rtol=1e-6)
    quantizer.coefficients = torch.tensor(initial)[None]
    history: list[Any] = []
    for step in range(6):
        x = 1.5 * normal(2, 3, 4, 5, seed=step)
        found = quantizer(x)
        numbers = [max(0.0, number) for number in x.flatten().tolist()]
        values, best = step_by_step(numbers, without_bias(history, initial), (0, 1))
        np.testing.assert_allclose(found.flatten(), values, rtol=1e-9, atol=1e-12)
        history.append(best)
        np.testing.assert_allclose(quantizer.coefficients[0], without_bias(history), rtol=1e-9, atol=1e-12)
    assert quantizer.steps == 6


def test_the_first_step_takes_the_new_basis_over_exactly():
    weight = normal(5, 60, dtype=torch.float32)
    quantizer = fresh_weight(2, weight)
    levels = Levels.of(quantizer.coefficients.clone(), "bipolar_basis")
    best = levels.best_basis(levels.nearest(weight[None])[1])
    quantizer(weight)
    assert torch.equal(quantizer.coefficients, best.float())
    assert quantizer.steps == 1


@given(st.integers(1, 4), st.lists(st.floats(-2, 2), min_size=4, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_bases_of_any_sign_and_order(bits, basis, seed):
    """The least squares may cross: levels are sorted anew at every step."""
    numbers = normal(1, 2, 30, seed=seed)
    cases: list[tuple[BasisEncoding, tuple[int, int]]] = [("bipolar_basis", (-1, 1)), ("basis", (0, 1))]
    for encoding, signs in cases:
        levels = Levels.of(torch.tensor([basis[:bits]] * 2, dtype=torch.float64), encoding)
        found, moments = levels.nearest(numbers)
        best = levels.best_basis(moments)
        for channel in range(2):
            values, expected = step_by_step(numbers[0, channel].tolist(), basis[:bits], signs)
            np.testing.assert_allclose(found[0, channel], values, rtol=1e-9, atol=1e-9)
            if len(set(np.round(levels.values[channel].tolist(), 9))) == 1 << bits:
                # Levels that coincide have no order, and so several best bases.
                np.testing.assert_allclose(best[channel], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 3, 5), (1, 4, 9), (5, 2, 1)])
@pytest.mark.parametrize("bases", [1, None])
def test_blocks_of_numbers_do_not_change_a_bit(shape, bases, monkeypatch):
    numbers = normal(*shape, dtype=torch.float32)
    basis = normal(bases or shape[1], 3, seed=1, dtype=torch.float32).abs()
    whole, moments = Levels.of(basis, "basis").nearest(numbers)
    for cached in (0, 11, 31, 60):
        monkeypatch.setattr("bitwright.sw.quantizers.basis.CACHED_NUMBERS", cached)
        found, others = Levels.of(basis, "basis").nearest(numbers)
        assert torch.equal(found, whole)
        assert torch.equal(others.counts, moments.counts)
        assert torch.equal(others.sums, moments.sums)


# Numbers that need no data --------------------------------------------------------------------------------------------


def fixed_point_of(numbers, bits, encoding, iterations):
    """Basis and mean squared errors of alternating from the published initial basis."""
    least = 0.6745 / 2 ** (bits - 1) if encoding == "bipolar_basis" else 0.6745 * 2 / (2**bits - 1)
    basis, errors = least * 2.0 ** torch.arange(bits, dtype=torch.float64)[None], []
    for _ in range(iterations):
        levels = Levels.of(basis, encoding)
        values, moments = levels.nearest(numbers)
        errors.append((values - numbers).square().mean().item())
        basis = levels.best_basis(moments)
    return sorted(basis[0].tolist()), errors


@pytest.mark.parametrize(
    ("bits", "basis", "error"),
    [(1, [0.798], 0.3634), (2, [0.528, 0.982], 0.1175), (3, [0.301, 0.607, 1.159], 0.0371), (4, None, 0.0115)],
)
def test_levels_of_normal_weights(bits, basis, error):
    found, errors = fixed_point_of(normal(1, 1, 100_000), bits, "bipolar_basis", 80)
    assert errors[-1] == pytest.approx(error, rel=0.03)
    if basis is not None:
        assert found == pytest.approx(basis, rel=0.03)
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))


@pytest.mark.parametrize(
    ("bits", "basis", "error"),
    [(1, [1.22], 0.0953), (2, [0.653, 1.301], 0.0234), (3, [0.352, 0.702, 1.414], 0.0064), (4, None, 0.0019)],
)
def test_levels_of_rectified_normal_activations(bits, basis, error):
    found, errors = fixed_point_of(normal(1, 1, 100_000).relu(), bits, "basis", 80)
    assert errors[-1] == pytest.approx(error, rel=0.05)
    if basis is not None:
        assert found == pytest.approx(basis, rel=0.03)
    assert all(after <= before + 1e-9 for before, after in pairwise(errors))


def test_one_bit_is_the_mean_magnitude():
    weight = normal(4, 50)
    quantizer = fresh_weight(1, weight)
    quantizer(weight)
    mean, before = weight.abs().mean(1), math.sqrt(2 / 4) * 0.6745
    expected = (weight.abs().sum(1) + EPSILON * before) / (50 + EPSILON)
    torch.testing.assert_close(quantizer.coefficients[:, 0], expected, rtol=1e-12, atol=0)
    quantizer.coefficients[:, 0] = mean
    quantizer(weight)
    torch.testing.assert_close(quantizer.coefficients[:, 0], mean, rtol=1e-14, atol=0)


# Ties, gradients, modes -----------------------------------------------------------------------------------------------


def test_halfway_is_the_lower_level():
    weight = with_basis(LQNetsWeight(2), [[1.0, 2.0]]).eval()
    halves = torch.tensor([[-2.0, 0.0, 2.0]], dtype=torch.float64)
    assert weight(halves).tolist() == [[-3, -1, 1]]
    assert weight(torch.nextafter(halves, torch.full_like(halves, 9))).tolist() == [[-1, 1, 3]]
    activation = with_basis(LQNetsActivation(2), [[1.0, 2.0]]).eval()
    halves = torch.tensor([[0.5, 1.5, 2.5]], dtype=torch.float64)
    assert activation(halves).tolist() == [[0, 1, 2]]
    assert activation(torch.nextafter(halves, torch.full_like(halves, 9))).tolist() == [[1, 2, 3]]


def test_weights_pass_the_gradient_unchanged():
    weight, gradient = normal(3, 20).mul(5).requires_grad_(), normal(3, 20, seed=1)
    for training in (True, False):
        quantizer = fresh_weight(2, weight, training)
        weight.grad = None
        quantizer(weight).backward(gradient)
        assert weight.grad is not None
        assert torch.equal(weight.grad, gradient)
    assert not quantizer.coefficients.requires_grad


@pytest.mark.parametrize("basis", [[1.0, 2.0], [2.0, 1.0], [3.0, -0.5]])
def test_activations_pass_the_gradient_above_zero_and_below_the_greatest_level(basis):
    top = max(sum(b for b in chosen) for chosen in ([0], basis[:1], basis[1:], basis))
    near = [math.nextafter(top, 0), top, math.nextafter(top, 9), top + 1]
    x = torch.tensor([[-1.0, -0.0, 0.0, 1e-300, 0.3, *near]], dtype=torch.float64, requires_grad=True)
    quantizer = with_basis(LQNetsActivation(2), [basis])
    quantizer(x).backward(torch.full_like(x, 7))
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 0, 7, 7, 7, 0, 0, 0]]
    quantizer = with_basis(quantizer, [basis])
    assert quantizer.quantized(x.detach())[1].tolist() == (x.grad == 7).tolist()


def test_only_training_moves_the_basis():
    network = quantize(build("digits_cnn", (1, 8, 8), 10), recipe(2))
    images = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    quantizers = [module for module in network.modules() if isinstance(module, (LQNetsWeight, LQNetsActivation))]
    assert [each.steps for each in quantizers] == [0] * 5  # building the network has not run it
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval()(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    summary(network.train())
    assert [each.steps for each in quantizers] == [0] * 5
    network(images)
    assert [each.steps for each in quantizers] == [1] * 5
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in before if name.endswith("coefficients")} <= changed


def recipe(bits):
    return Recipe(weights="lqnets", weight_bits=bits, activations="lqnets", activation_bits=bits)


def trained_steps(network, optimizer, first, count):
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        images = torch.randint(0, 256, (16, 1, 8, 8), generator=generator, dtype=torch.uint8)
        descend(network, optimizer, images, torch.randint(0, 10, (16,), generator=generator))


@pytest.mark.parametrize("name", ["lqnets", "direct"])
def test_training_resumes_exactly_from_the_state_dict(name):
    torch.manual_seed(0)
    chosen = Recipe(weights=name, weight_bits=2, activations=name, activation_bits=3)
    network = quantize(build("digits_cnn", (1, 8, 8), 10, channels=[4, 6]), chosen).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    trained_steps(network, optimizer, 0, 3)
    states = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    trained_steps(network, optimizer, 3, 3)
    torch.manual_seed(1)
    again = quantize(build("digits_cnn", (1, 8, 8), 10, channels=[4, 6]), chosen).train()
    resumed = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    trained_steps(again, resumed, 3, 3)
    expected = network.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())
    assert any(key.endswith("coefficients") for key in expected)


# Corners --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_filters_of_zeros_and_of_one_value(bits):
    weight = torch.stack([torch.zeros(9), torch.full((9,), 0.3), normal(9, dtype=torch.float32)])
    quantizer = fresh_weight(bits, weight)
    for _ in range(80):
        found = quantizer(weight)
        assert found.isfinite().all()
    assert quantizer.coefficients.isfinite().all()
    torch.testing.assert_close(found[:2], weight[:2], rtol=0, atol=2e-3)
    codes = quantizer.codes(weight)
    assert codes.basis.isfinite().all()
    torch.testing.assert_close(codes.values()[:2], weight[:2].double(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.9])
def test_activations_that_are_all_alike(bits, value):
    quantizer = LQNetsActivation(bits)
    x = torch.full((4, 2, 3, 3), value)
    for _ in range(80):
        found = quantizer(x)
    torch.testing.assert_close(found, x.relu(), rtol=0, atol=2e-3)
    assert quantizer.coefficients.isfinite().all()
    quantizer.fit(x)
    torch.testing.assert_close(quantizer.eval()(x), x.relu(), rtol=0, atol=1e-3)


def test_a_single_sample():
    quantizer = LQNetsActivation(3)
    assert quantizer(torch.tensor([[0.7]])).shape == (1, 1)
    assert quantizer.coefficients.isfinite().all()
    assert fresh_weight(4, torch.tensor([[0.5]]))(torch.tensor([[0.5]])).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    weight = torch.tensor([[0.5, value]])
    quantizer = fresh_weight(2, weight)
    for refused in (quantizer.codes, quantizer.calibrate, LQNetsActivation(2).fit):
        with pytest.raises(BitwrightError, match="A number is NaN or infinite, expected finite ones; train with"):
            refused(weight)


def test_bits_and_functions_that_are_not_offered():
    for kind in (LQNetsWeight, LQNetsActivation):
        with pytest.raises(BitwrightError, match=f"{kind.__name__} takes 1 to 4 bits, found 5"):
            kind(5)
    with pytest.raises(BitwrightError, match="Method 'lqnets' does not quantize Hardtanh, expected ReLU"):
        method("lqnets").replace_activation(nn.Hardtanh(), 2)
    with pytest.raises(BitwrightError, match="LQNetsWeight has a basis and no scale"):
        LQNetsWeight(2).quantized(torch.zeros(1, 1))


# Trained networks -----------------------------------------------------------------------------------------------------


def test_calibration_begins_at_bases_that_suit_trained_weights():
    torch.manual_seed(0)
    network = quantize(build("digits_cnn", (1, 8, 8), 10), recipe(2))
    weight: Any = network.get_submodule("conv2").get_submodule("parametrizations.weight")
    weight.original.data *= 9
    images = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    def error():
        return ((weight[0](weight.original) - weight.original).square().mean() / weight.original.var()).item()

    assert error() > 0.5
    calibrate(network.eval(), images)
    assert error() < 0.13
    activation, found = network.get_submodule("act1"), []
    activation.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    network(images)
    numbers = found[0].relu()
    assert (numbers - activation(found[0])).square().mean() < 0.05 * numbers.square().mean()


def test_boundaries_below_zero_are_below_everything():
    """What is rectified reaches them all; a basis with a negative coefficient has some."""
    quantizer = with_basis(LQNetsActivation(2), [[2.0, -1.0]])
    assert BELOW_ALL < -1.7e308
    assert [boundary.value for boundary in quantizer.boundaries()] == [BELOW_ALL, Fraction(1, 2), Fraction(3, 2)]
    x = torch.tensor([[-9.0, -0.1, 0.0, 0.5, 0.6, 1.5, 1.6, 3.0]], dtype=torch.float64)
    assert quantizer.eval()(x).tolist() == [[0, 0, 0, 0, 1, 1, 2, 2]]
    assert quantizer.codes(x).tolist() == [[0, 0, 0, 0, 3, 3, 1, 1]]
    assert quantizer.code_table() == (2, 0, 3, 1)
    assert torch.equal(quantizer.codes_of(quantizer(x)), quantizer.codes(x))


@pytest.mark.parametrize("basis", [[0.5, 1.0], [1.0, 0.5], [1.5, -0.5]])
def test_lowered_networks_compute_with_any_basis(basis):
    """Coefficients that are powers of two have no rounding: nothing may differ, with boundaries below zero neither."""
    torch.manual_seed(0)
    network = quantize(build("digits_cnn", (1, 8, 8), 10, channels=[4, 6]), recipe(2))
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1
            nn.init.normal_(module.weight, 0, 1)
        if isinstance(module, LQNetsActivation):
            module.coefficients.copy_(torch.tensor([basis]))
    network.train()(torch.from_numpy(images))
    for module in network.modules():
        if isinstance(module, LQNetsActivation):
            module.coefficients.copy_(torch.tensor([basis]))
        if parametrize.is_parametrized(module):
            chain: Any = module.get_submodule("parametrizations.weight")
            quantizer = chain[0]
            quantizer.coefficients.copy_(2.0 ** quantizer.coefficients.log2().round())
    result = verify(network, lower(network, SPEC, (1, 8, 8)), images)
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)
