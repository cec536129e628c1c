"""Whole networks of the literature, from PyTorch to RTL, on real images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.hw.isa import preset
from bitwright.sim.backends import simulate
from bitwright.sim.compare import compare
from bitwright.sim.golden import execute
from bitwright.sw.config import load_config
from bitwright.sw.data import load
from bitwright.sw.lowering import lower, verify
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, quantize
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


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "activations", "bits"), [("sign", "sign", 1), ("dorefa", "dorefa", 2)])
def test_cnv_on_cifar_10(
    data_root: Path, statistics: torch.Generator, weights: str, activations: str, bits: int
) -> None:
    torch.manual_seed(0)
    model = build("cnv", (3, 32, 32), 10)
    randomize_norms(model, statistics)
    network = quantize(model, Recipe(weights=weights, weight_bits=bits, activations=activations, activation_bits=bits))
    spec = preset("edge") if bits == 1 else preset("large")
    program = lower(network, spec, (3, 32, 32))
    image = load("cifar-10", data_root).test_images[:1]

    proof = verify(network, program, image)
    assert sum(proof.mismatches.values()) == 0
    layers = range(len(program.layers))
    comparison = compare(*execute(program, image, trace=layers), *simulate(program, image, "verilator", layers))
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
