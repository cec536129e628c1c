import pytest
import torch

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.sw import data, models
from bitwright.sw.lowering import lower, verify
from bitwright.sw.quantize import Recipe, quantize
from bitwright.sw.training import descend
from bitwright.sw.wordlength import measure_word_lengths

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
    residual=True,
)


def trained(method, model="digits_cnn", epochs=4, **options):
    """A network of two-bit weights and activations, trained on handwritten digits."""
    digits = data.load("digits")
    pixels, labels = torch.tensor(digits.train_images), torch.tensor(digits.train_labels)
    torch.manual_seed(0)
    recipe = Recipe(weights=method, weight_bits=2, activations=method, activation_bits=2)
    network = quantize(models.build(model, (1, 8, 8), 10, **options), recipe).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(64):
            descend(network, optimizer, pixels[chosen], labels[chosen])
    return network.eval(), digits


@pytest.mark.parametrize("method", ["lqnets", "direct"])
def test_wide_coefficients_are_as_good_as_the_network(method):
    network, digits = trained(method)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    measured = measure_word_lengths(network, SPEC, digits.test_images, digits.test_labels, (4, 8, 16))
    assert [each.coefficient_bits for each in measured] == [None, 4, 8, 16]
    exact, *rounded = measured
    assert (exact.mismatch_rate, exact.agreement) == (0, 1)
    assert exact.accuracy > 0.93
    rates = [each.mismatch_rate for each in rounded]
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] < 1e-3
    compared = verify(network, lower(network, SPEC, (1, 8, 8)), digits.test_images)
    assert compared.activations["fc1"] == len(digits.test_images)  # classes: all outputs are rounded
    assert compared.mismatches["fc1"] == round((1 - rounded[2].agreement) * len(digits.test_images))
    assert rounded[1].accuracy > exact.accuracy - 0.02
    assert rounded[2].agreement > 0.99
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_residual_blocks_with_bases_are_lowered():
    network, digits = trained("lqnets", "resnet20", 2, channels=[8, 12], blocks=1)
    images, labels = digits.test_images[:100], digits.test_labels[:100]
    exact, narrow, wide = measure_word_lengths(network, SPEC, images, labels, (5, 16))
    assert narrow.mismatch_rate > wide.mismatch_rate
    assert wide.mismatch_rate < 1e-3
    assert wide.agreement >= 0.99
    assert exact.accuracy > 0.3  # of ten classes, after two epochs


def test_networks_without_a_basis_are_refused():
    model = models.build("mlp", (1, 8, 8), 10)
    network = quantize(model, Recipe(weights="dorefa", weight_bits=2, activations="dorefa", activation_bits=2))
    digits = data.load("digits")
    with pytest.raises(BitwrightError, match="The network has no layer with a basis; train it with"):
        measure_word_lengths(network, SPEC, digits.test_images[:1], digits.test_labels[:1], [8])
