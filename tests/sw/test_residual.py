import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.residual import MISFIT, QuantizedShortcut, Residual, Shortcut
from bitwright.sw.stages import stages

torch.set_num_threads(1)

METHODS = [("fixed", 4), ("qnn", 3), ("qnn", 1), ("dorefa", 1), ("dorefa", 2), ("dorefa", 8), ("sign", 1)]


def block(weights="fixed", bits=4, activations=None, activation_bits=None, **recipe) -> tuple[Any, Any]:
    """A quantized network with one residual block, and its shortcut."""
    torch.manual_seed(0)
    model = build("resnet20", (1, 8, 8), 3, channels=[6], blocks=1)
    network = quantize(
        model,
        Recipe(
            weights=weights,
            weight_bits=bits,
            activations=activations or weights,
            activation_bits=activation_bits or (max(bits, 2) if weights == "qnn" else bits),
            **recipe,
        ),
    )
    return network, next(stage.shortcut for stage in stages(network) if stage.shortcut is not None)


def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=generator)


def test_a_shortcut_subsamples_and_adds_channels_of_zeros():
    x, sums = torch.randn(2, 3, 5, 7), torch.randn(2, 5, 3, 4)
    expected = sums.clone()
    expected[:, :3] += x[:, :, ::2, ::2]
    assert torch.equal(Shortcut(2)(sums, x), expected)
    with pytest.raises(RuntimeError, match="adds 6 channels to 5"):
        Shortcut()(sums, torch.randn(2, 6, 3, 4))


def test_a_residual_is_a_sequential_that_adds_its_input():
    convolution = nn.Conv2d(2, 2, 3, padding=1)
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(Residual(convolution, Shortcut(), nn.ReLU())(x), (convolution(x) + x).relu())


@pytest.mark.parametrize(("method", "bits"), METHODS)
def test_the_factor_is_a_power_of_two_of_integer_units_near_the_gain(method, bits):
    network, shortcut = block(method, bits)
    network.double()
    calibrate(network, images())
    stage = next(stage for stage in stages(network) if stage.shortcut is not None)
    inner, outer, codes = stage.input_quantizer, stage.addend_quantizer, stage.weight_codes()
    assert inner is not None
    assert outer is not None
    unit = codes.scale * float(inner.step() / outer.step())
    assert torch.equal(shortcut.factor().expand(6), unit * 2.0**shortcut.exponent)
    weight, real = stage.weight.detach(), stage.real_weight.detach()
    gain = float((weight * real).sum() / real.square().sum())
    assert shortcut.gain == pytest.approx(gain)
    assert abs(math.log2(float(shortcut.factor().mean()) / gain)) <= 0.5 + 1e-9
    if method in ("fixed", "qnn") and bits > 1:
        assert float(shortcut.factor()) == 1


def test_outputs_are_the_sum_in_accumulator_units():
    network, shortcut = block("dorefa", 2)
    network.double().eval()
    stage = next(stage for stage in stages(network) if stage.shortcut is not None)
    x, sums = torch.rand(1, 6, 3, 3, dtype=torch.float64), torch.randn(1, 6, 3, 3, dtype=torch.float64)
    assert torch.equal(shortcut(sums, x), sums + shortcut.factor() * x)
    x.requires_grad_()
    shortcut(sums, x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, float(shortcut.factor())))
    assert stage.real_weight.grad is None


def test_without_all_three_quantizers_it_stays_as_it_is():
    for layers in (
        {"block1.conv2": {"weight_bits": None}},
        {"block1.conv2": {"activation_bits": None}},
        {"block1.conv1": {"activation_bits": None}},
    ):
        assert type(block(layers=layers)[1]) is Shortcut
    assert type(block(layers={"conv1": {"weight_bits": None}})[1]) is QuantizedShortcut


def test_calibration_chooses_the_exponent_again():
    network, shortcut = block()
    before = shortcut.exponent
    pixels = images()
    network.get_submodule("bn1").weight.data *= 64
    calibrate(network, pixels)
    outer = network.get_submodule("act1")
    inner = network.get_submodule("block1.act1")
    assert outer.exponent - inner.exponent != 0
    assert shortcut.exponent == before + outer.exponent - inner.exponent
    assert float(shortcut.factor()) == 1


def test_training_follows_the_weights():
    network, shortcut = block()
    weight = next(stage for stage in stages(network) if stage.shortcut is not None).real_weight
    before, gain = shortcut.exponent, shortcut.gain
    weight.data *= 4
    network.eval()(images())
    assert shortcut.exponent == before  # evaluation changes nothing
    assert float(shortcut.factor()) == 4
    network.train()(images())
    assert shortcut.exponent == before - 2
    assert float(shortcut.factor()) == 1
    assert shortcut.gain == gain


@pytest.mark.parametrize("side", [-1, 1])
def test_training_keeps_the_exponent_until_the_factor_is_far_off(side):
    """The scale of a 1-bit DoReFa weight is its mean magnitude, which moves a little at every step."""
    network, shortcut = block("dorefa", 1)
    weight = next(stage for stage in stages(network) if stage.shortcut is not None).real_weight
    before = shortcut.exponent
    factor = shortcut.gain * 2.0 ** (side * (MISFIT - 0.01))
    weight.data *= factor / float(shortcut.factor())
    network.train()(images())
    assert shortcut.exponent == before
    weight.data *= 2.0 ** (side * 0.02)
    network(images())
    assert shortcut.exponent == before - side


def test_weights_that_are_all_zero_have_a_gain_of_one():
    network, shortcut = block()
    next(stage for stage in stages(network) if stage.shortcut is not None).real_weight.data.zero_()
    calibrate(network, images())
    assert shortcut.gain == 1
    assert torch.isfinite(shortcut.factor()).all()
    network.train()(images())


def test_a_copy_has_quantizers_of_its_own():
    network, shortcut = block()
    twin = copy.deepcopy(network)
    twin.get_submodule("act1").exponent += 1
    other: Any = twin.get_submodule("block1.add")
    assert float(other.factor()) == 0.5
    assert float(shortcut.factor()) == 1
    assert not list(other.parameters())
    assert not list(other.children())


def test_state_dict_round_trip():
    network, shortcut = block("dorefa", 1)
    shortcut.exponent, shortcut.gain = -3, 0.7
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert state["block1.add._extra_state"].tolist() == [-3, 0.7]
    again, other = block("dorefa", 1)
    again.load_state_dict(state)
    assert (other.exponent, other.gain) == (-3, 0.7)
    assert torch.equal(again.eval()(images()), network.eval()(images()))
    assert "exponent=-3" in repr(other)


def test_calibration_names_a_shortcut_that_does_not_fit():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), Residual(nn.Conv2d(4, 3, 1), Shortcut()), nn.ReLU())
    model.extend([nn.Flatten(), nn.Linear(3, 2)])
    network = quantize(model, Recipe(weight_bits=4, activation_bits=4))
    with pytest.raises(
        BitwrightError, match=r"Layer '2.1' does not take values of .* \(a shortcut adds 4 channels to 3"
    ):
        calibrate(network, images())


@pytest.mark.parametrize(("method", "bits"), [("fixed", 4), ("dorefa", 2), ("sign", 1)])
def test_blocks_are_trained_with_the_sum_of_the_hardware(method, bits):
    """The loss falls, and the shortcut carries a gradient to the layer before the block."""
    network, shortcut = block(method, bits)
    calibrate(network, images())
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    labels, losses = torch.arange(16) % 3, []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images()), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.7 * losses[0]
    assert abs(math.log2(float(shortcut.factor().mean()) / shortcut.gain)) <= MISFIT
