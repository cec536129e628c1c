"""Whole networks of the literature, from PyTorch to RTL, on real images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.hw.isa import ArraySpec, preset
from bitwright.sim.backends import simulate
from bitwright.sim.compare import compare
from bitwright.sim.golden import execute
from bitwright.sw.bench import bits_in_turn
from bitwright.sw.config import load_config
from bitwright.sw.data import load
from bitwright.sw.lowering import lower, verify
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.training import load_model, train

RECIPES = Path(__file__).parents[2] / "sw" / "recipes"


@pytest.fixture
def statistics() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def randomize_norms(model: nn.Module, generator: torch.Generator) -> None:
    """Give batch norms statistics and gains as training would: of both signs, none of them neutral."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for parameter, scale in ((module.weight, 1.0), (module.bias, 0.3), (module.running_mean, 0.1)):
                assert parameter is not None
                parameter.data = scale * torch.randn(parameter.shape, generator=generator)
            assert module.running_var is not None
            module.running_var.data = 0.5 + torch.rand(module.running_var.shape, generator=generator)


ROOMY = ArraySpec(
    activation_depth=1 << 14,
    window_depth=1 << 9,
    weight_depth=1 << 14,
    threshold_depth=1 << 12,
    descriptor_depth=1 << 12,
    row_tiles_max=128,
    zero_skip="skip",
)
"""8 × 8 × 64 with memories for networks of CIFAR-10."""

NETWORKS: dict[str, tuple[str, Recipe, ArraySpec]] = {
    "cnv W1/A1": ("cnv", Recipe(weights="sign", weight_bits=1, activations="sign", activation_bits=1), ROOMY),
    "cnv W2/A2": ("cnv", Recipe(weights="dorefa", weight_bits=2, activations="dorefa", activation_bits=2), ROOMY),
    "resnet20 W2/A2": (
        "resnet20",
        Recipe(weights="dorefa", weight_bits=2, activations="dorefa", activation_bits=2),
        dataclasses.replace(ROOMY, columns_per_copy=2),
    ),
    "resnet20 of 1 to 8 bits": (
        "resnet20",
        Recipe(weights="dorefa", activations="dorefa"),
        dataclasses.replace(ROOMY, columns_per_copy=2, zero_skip="gate", threshold_depth=1 << 13, accumulator_width=28),
    ),
    "vgg_small W2/A2, weights streamed": (
        "vgg_small",
        Recipe(weights="dorefa", weight_bits=2, activations="dorefa", activation_bits=2),
        dataclasses.replace(ROOMY, weight_depth=1 << 11, weight_stream=True, zero_skip="off"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_cifar_10(data_root: Path, statistics: torch.Generator, name: str) -> None:
    torch.manual_seed(0)
    kind, recipe, spec = NETWORKS[name]
    model = build(kind, (3, 32, 32), 10)
    randomize_norms(model, statistics)
    if name == "resnet20 of 1 to 8 bits":
        recipe = dataclasses.replace(recipe, layers=bits_in_turn(model))
    network = quantize(model, recipe)
    image = load("cifar-10", data_root).test_images[:1]
    calibrate(network, torch.from_numpy(image).float())
    program = lower(network, spec, (3, 32, 32))

    proof = verify(network, program, image)
    assert sum(proof.mismatches.values()) == 0
    parts = range(len(program.parsed))
    comparison = compare(*execute(program, image, trace=parts), *simulate(program, image, "verilator", parts))
    assert comparison.first is None


@pytest.mark.slow
def test_lenet5_on_mnist(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_DATA", str(data_root))
    result = train(load_config(RECIPES / "mnist-lenet5-w2a2.toml"), tmp_path / "run", progress=False)
    assert result.test_accuracy >= 0.988

    network = load_model(tmp_path / "run")
    program = lower(network, preset("edge"), (1, 28, 28))
    images = load("mnist", data_root).test_images
    proof = verify(network, program, images)
    assert proof.images == 10_000
    assert sum(proof.mismatches.values()) == 0

    some = images[:100]
    predicted, measured = execute(program, some), simulate(program, some, "verilator")
    differences = [compare(*pair).first for pair in zip(predicted, measured, strict=True)]
    assert differences == [None] * 100
    labels = load("mnist", data_root).test_labels[:100]
    scores = np.concatenate([program.logits(run.accumulators) for run in measured])
    assert (scores.argmax(1) == labels).mean() >= 0.95
