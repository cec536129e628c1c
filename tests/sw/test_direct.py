import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, quantize
from bitwright.sw.quantizers import method
from bitwright.sw.quantizers.basis import Levels, bit_values
from bitwright.sw.quantizers.direct import LEAST_VARIANCE, DirectActivation, DirectWeight
from bitwright.sw.quantizers.lqnets import LQNetsActivation
from bitwright.sw.training import descend

torch.set_num_threads(1)

BITS = [1, 2, 3, 4]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def fitted(bits, weight):
    quantizer = DirectWeight(bits)
    quantizer.fit(weight)
    return quantizer


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_of_the_basis_is_that_of_looking_codes_up(bits):
    weight, gradient = normal(3, 4, 2, 2).requires_grad_(), normal(3, 4, 2, 2, seed=1)
    quantizer = fitted(bits, weight.detach())
    found = quantizer(weight)
    found.backward(gradient)
    basis = quantizer.coefficients.detach().clone().requires_grad_()
    levels = basis @ bit_values(bits, "bipolar_basis").T
    looked_up = levels.gather(1, quantizer.integers.long().reshape(3, -1)).reshape(weight.shape)
    looked_up.backward(gradient)
    torch.testing.assert_close(found, looked_up, rtol=1e-14, atol=1e-14)
    assert weight.grad is not None
    assert torch.equal(weight.grad, gradient)
    assert basis.grad is not None
    torch.testing.assert_close(quantizer.coefficients.grad, basis.grad / math.sqrt(16), rtol=1e-12, atol=1e-12)


def reconstruction(weights, moved):
    """One update as the method is told: of levels and residuals, number by number."""
    updated = []
    for code, residual, step in weights:
        residual += step
        here = moved[code]
        ordered = sorted(range(len(moved)), key=lambda other: moved[other])
        rank = sum(here + residual > (moved[low] + moved[high]) / 2 for low, high in pairwise(ordered))
        new = ordered[rank]
        updated.append((new, residual + here - moved[new]))
    return updated


@pytest.mark.parametrize("bits", BITS)
def test_steps_add_up_until_they_reach_another_level(bits):
    real = nn.Parameter(normal(2, 30, seed=bits))
    quantizer = fitted(bits, real.detach())
    optimizer = torch.optim.SGD([real, quantizer.coefficients], 0.03)
    counted = bit_values(bits, "bipolar_basis")
    state = [
        [(code, value - level, 0.0) for code, value, level in zip(*rows, strict=True)]
        for rows in zip(quantizer.integers.tolist(), real.tolist(), quantizer(real).tolist(), strict=True)
    ]
    changes = 0
    for step in range(30):
        optimizer.zero_grad()
        (quantizer(real) * normal(2, 30, seed=50 + step)).sum().backward()
        assert real.grad is not None
        steps = (-0.03 * real.grad).tolist()
        before = quantizer.integers.clone()
        optimizer.step()
        quantizer.constrain(real.data)
        levels = (quantizer.coefficients.detach() @ counted.T).tolist()
        for channel in range(2):
            given = [(code, rest, add) for (code, rest, _), add in zip(state[channel], steps[channel], strict=True)]
            updated = reconstruction(given, levels[channel])
            state[channel] = [(code, rest, 0.0) for code, rest in updated]
            assert quantizer.integers[channel].tolist() == [code for code, _ in updated]
            sums = [levels[channel][code] + rest for code, rest in updated]
            np.testing.assert_allclose(real[channel].tolist(), sums, rtol=1e-9, atol=1e-12)
        changes += int((before != quantizer.integers).sum())
    assert changes > 20


def test_weights_move_with_their_levels():
    weight = normal(1, 40)
    quantizer = fitted(2, weight)
    real, codes = weight.clone(), quantizer.integers.clone()
    quantizer.constrain(real)
    assert torch.equal(real, weight)  # nothing has moved
    residuals = real - quantizer(real).detach()
    with torch.no_grad():
        quantizer.coefficients.mul_(1.001)
    quantizer.constrain(real)
    assert torch.equal(quantizer.integers, codes)
    torch.testing.assert_close(real - quantizer(real).detach(), residuals, rtol=1e-12, atol=1e-12)
    assert not torch.equal(real, weight)


def test_evaluation_uses_the_codes_that_training_left():
    weight = normal(2, 10)
    quantizer = fitted(2, weight).eval()
    expected = quantizer(weight)
    assert torch.equal(quantizer(weight * 3), expected)
    codes = quantizer.codes(weight * 3)
    torch.testing.assert_close(codes.values(), expected.detach(), rtol=1e-14, atol=0)
    assert codes.encoding == quantizer.encoding == "bipolar_basis"


@pytest.mark.parametrize("bits", BITS)
def test_filters_of_zeros(bits):
    weight = torch.zeros(2, 9)
    quantizer = fitted(bits, weight)
    quantizer.constrain(weight)
    assert quantizer(weight).abs().max() < 1e-6
    assert quantizer.coefficients.isfinite().all()


def test_numbers_that_are_not_finite_are_refused():
    weight = normal(1, 4)
    quantizer = fitted(2, weight)
    message = "A number is NaN or infinite"
    with pytest.raises(BitwrightError, match=message):
        quantizer.codes(weight * math.nan)
    with pytest.raises(BitwrightError, match=message):
        DirectWeight(2).fit(weight * math.inf)
    quantizer.coefficients.data[0, 0] = math.nan
    with pytest.raises(BitwrightError, match=message):
        quantizer.codes(weight)
    with pytest.raises(BitwrightError, match="DirectWeight has a basis and no scale"):
        quantizer.quantized(weight)


# Activations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_channels_that_vary_alike_make_it_lq_nets_bit_for_bit(bits):
    ours, theirs = DirectActivation(bits), LQNetsActivation(bits)
    for step in range(5):
        x = normal(3, 1, 4, 4, seed=step, dtype=torch.float32).expand(3, 7, 4, 4)
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours.coefficients, theirs.coefficients)
    assert theirs.steps == ours.steps == 5


def test_importance_is_the_reciprocal_of_the_variance():
    x = normal(5, 3, 6) * torch.tensor([0.1, 1.0, 5.0])[:, None]
    variances = x.var((0, 2), correction=0)
    expected = 1 / (variances + LEAST_VARIANCE)
    torch.testing.assert_close(DirectActivation(2).importance(x), expected / expected.max(), rtol=1e-9, atol=0)
    constant = DirectActivation(2).importance(torch.ones(2, 3, 4))
    assert torch.equal(constant, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("bits", BITS)
def test_the_basis_is_that_of_weighted_least_squares(bits):
    x, importance = normal(4, 3, 50).relu(), torch.tensor([1.0, 0.2, 3.0], dtype=torch.float64)
    levels = Levels.of(2.0 ** torch.arange(bits, dtype=torch.float64)[None] * 2 / 2**bits, "basis")
    values, moments = levels.nearest(x)
    bits_of = bit_values(bits, "basis")[levels.integers(x)].reshape(-1, bits)
    torch.testing.assert_close((bits_of @ levels.basis[0]).reshape(x.shape), values, rtol=1e-12, atol=1e-12)
    roots = importance.sqrt()[:, None].expand_as(x).reshape(-1)
    expected = np.linalg.lstsq((bits_of * roots[:, None]).numpy(), (x.reshape(-1) * roots).numpy(), rcond=None)[0]
    np.testing.assert_allclose(levels.best_basis(moments, importance)[0], expected, rtol=1e-4)
    for factor in (1.0, 0.3):  # all equal: as without
        same = levels.best_basis(moments, torch.full((3,), factor, dtype=torch.float64) / factor)
        assert torch.equal(same, levels.best_basis(moments))


def test_most_channels_have_smaller_errors():
    """One channel of large variance draws LQ-Nets' levels to itself."""
    scale = torch.tensor([8.0] + [0.5] * 9)[:, None, None]
    ours, theirs = DirectActivation(2), LQNetsActivation(2)
    x = normal(50, 10, 4, 4, dtype=torch.float32) * scale
    errors = []
    for quantizer in (ours, theirs):
        quantizer.fit(x)
        errors.append((quantizer.eval()(x) - x.relu()).square().mean((0, 2, 3)))
    assert (errors[0] < 0.5 * errors[1])[1:].all()
    assert errors[0][0] > errors[1][0]


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("bits", [1, 3])
def test_the_loss_falls(bits, optimizer):
    torch.manual_seed(0)
    recipe = Recipe(weights="direct", weight_bits=bits, activations="direct", activation_bits=bits)
    network = quantize(build("digits_cnn", (1, 8, 8), 3, channels=[6, 8]), recipe).train()
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(24) % 3
    steps = optimizer(network.parameters(), 1e-2 if optimizer is torch.optim.Adam else 0.1)
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith("integers")}
    losses = [descend(network, steps, images, labels) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    after = dict(network.named_buffers())
    assert all(not torch.equal(after[name], codes) for name, codes in before.items())
    assert len(before) == 3


def test_it_is_offered_by_name():
    assert method("direct").weights is DirectWeight
    assert isinstance(method("direct").replace_activation(nn.ReLU(), 3), DirectActivation)
    with pytest.raises(BitwrightError, match="DirectWeight takes 1 to 4 bits, found 8"):
        DirectWeight(8)
