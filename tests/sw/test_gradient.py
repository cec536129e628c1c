import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from bitwright.hw.errors import BitwrightError
from bitwright.sw.config import parse_config
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, quantize
from bitwright.sw.quantizers.gradient import GradientQuantizer, quantize_gradient
from bitwright.sw.stages import stages
from bitwright.sw.training import recipe

torch.set_num_threads(1)


def images_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gradients_have_the_published_levels(bits):
    """``2 m (q / n - 1/2)``: multiples of ``2 m / n`` from ``-m`` to ``m``, the greatest magnitude of the image."""
    gradient = images_of((5, 3, 4, 4))
    gradient[1] *= 1e-3
    greatest = gradient.abs().flatten(1).amax(1)
    n = 2**bits - 1
    found = quantize_gradient(gradient, bits)
    codes = (found.flatten(1) / (2 * greatest[:, None]) + 0.5) * n
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert (codes.round() >= 0).all()
    assert (codes.round() <= n).all()
    assert ((found - gradient).flatten(1).abs().amax(1) <= 2 * greatest / n + 1e-12).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gradients_are_right_on_average(bits):
    torch.manual_seed(0)
    gradient, count = images_of((4, 30)), 20_000
    found = quantize_gradient(gradient.repeat(count, 1), bits).reshape(count, *gradient.shape)
    mean, deviation = found.mean(0), found.std(0) / count**0.5
    assert ((mean - gradient).abs() <= 4.5 * deviation + 1e-9).all()
    assert found.std(0).max() > 0  # without noise the mean would be right only on the levels


def test_greatest_gradients_are_kept_exactly():
    gradient = torch.tensor([[3.0, -1.0], [0.5, -2.0]])
    for _ in range(20):
        found = quantize_gradient(gradient, 2)
        assert (found[0, 0].item(), found[1, 1].item()) == pytest.approx((3.0, -2.0))


def test_gradients_of_zero_of_one_image_of_nan_and_of_tiny_values():
    assert quantize_gradient(torch.zeros(2, 3), 4).tolist() == [[0.0] * 3] * 2
    assert quantize_gradient(torch.ones(1, 1), 4).tolist() == [[1.0]]
    assert quantize_gradient(torch.ones(3), 4).tolist() == [1.0] * 3
    broken = quantize_gradient(torch.tensor([[1.0, torch.nan], [1.0, 1.0]]), 4)
    assert broken[0].isnan().all()
    assert broken[1].tolist() == [1.0, 1.0]
    assert quantize_gradient(torch.full((2, 3), 1e-40), 8).isfinite().all()


def test_both_products_of_a_layer_use_the_quantized_gradient():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, bias=False)
    x, upstream = torch.randn(4, 2, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3)
    plain = layer(x)
    layer.register_forward_hook(GradientQuantizer(3))
    output = layer(x)
    assert torch.equal(output, plain)
    torch.manual_seed(1)
    found = torch.autograd.grad(output, (x, layer.weight), upstream)
    torch.manual_seed(1)
    quantized = quantize_gradient(upstream, 3)
    expected = torch.autograd.grad(plain, (x, layer.weight), quantized)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(quantized, upstream)


def network(**options) -> Any:
    torch.manual_seed(0)
    settings = {"weights": "dorefa", "activations": "dorefa", "weight_bits": 2, "activation_bits": 2} | options
    return quantize(build("digits_cnn", (1, 8, 8), 10, channels=[4, 6]), Recipe(**settings))


def hooks(model):
    return {
        stage.name: hook.bits
        for stage in stages(model)
        for hook in stage.layer._forward_hooks.values()
        if isinstance(hook, GradientQuantizer)
    }


def test_recipes_give_gradients_bits_in_every_layer():
    assert hooks(network()) == {}
    assert hooks(network(gradient_bits=6)) == {"conv1": 6, "conv2": 6, "fc1": 6}
    assert hooks(network(gradient_bits=6, layers={"fc1": {"gradient_bits": 8}, "conv1": {"gradient_bits": None}})) == {
        "conv2": 6,
        "fc1": 8,
    }
    assert hooks(network(gradient_bits=4, weight_bits=None))  # float weights may have quantized gradients
    with pytest.raises(BitwrightError, match="Layer 'conv1': Gradients take 1 to 8 bits, found 9"):
        network(gradient_bits=9)


def test_gradients_are_quantized_below_the_batch_norm():
    """What comes back to a layer has two values in each image, what leaves the batch norm above it has many."""
    model = network(gradient_bits=1).train()
    layer = stages(model)[1].layer
    seen = []

    def keep(module, inputs, output):
        output.register_hook(seen.append)

    layer.register_forward_hook(keep)  # above the quantizer, which was registered before
    layer.register_forward_hook(keep, prepend=True)
    images = torch.randint(0, 256, (8, 1, 8, 8)).float()
    functional.cross_entropy(model(images), torch.arange(8)).backward()
    above, below = seen
    assert all(len(image.unique()) > 10 for image in above)
    assert all(len(image.unique()) == 2 for image in below)


def test_training_with_few_bits_of_gradient_lowers_the_loss_and_repeats():
    images, labels = torch.randint(0, 256, (32, 1, 8, 8)).float(), torch.arange(32) % 10

    def losses():
        model = network(gradient_bits=4).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        torch.manual_seed(7)
        for _ in range(60):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            yield loss.item()

    first, second = list(losses()), list(losses())
    assert first == second
    assert first[-1] < 0.8 * first[0]


def test_configurations_name_gradient_bits():
    text = (
        '[data]\nname = "digits"\n[model]\nname = "mlp"\n[train]\nepochs = 1\n[quantize]\nweights = "dorefa"\n'
        'weight_bits = 1\nactivations = "dorefa"\nactivation_bits = 2\n'
    )
    for line, expected in itertools.chain([("", None), ("gradient_bits = 6\n", 6)]):
        config = parse_config(text + line).quantize
        assert config is not None
        assert recipe(config).gradient_bits == expected
    with pytest.raises(BitwrightError, match=r"quantize\.gradient_bits is 32, expected an integer from 1 to 8"):
        parse_config(text + "gradient_bits = 32\n")
