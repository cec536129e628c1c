"""Every recipe as a network: built, quantized, and planned for its array, without data."""

from pathlib import Path

import pytest
import torch

from bitwright.hw.isa import ArraySpec
from bitwright.hw.planner import plan
from bitwright.sw import models
from bitwright.sw.config import load_config
from bitwright.sw.lowering import layer_shapes
from bitwright.sw.quantize import bit_assignment, quantize
from bitwright.sw.training import recipe

torch.set_num_threads(1)

RECIPES = sorted((Path(__file__).parents[2] / "sw" / "recipes").glob("*.toml"))
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "cifar-10": (3, 32, 32)}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_network_of_a_recipe_fits_its_array(path):
    config = load_config(path)
    in_shape = SHAPES[config.data.name]
    torch.manual_seed(0)
    network = models.build(config.model.name, in_shape, 10, **config.model.options)
    if config.quantize is not None:
        network = quantize(network, recipe(config.quantize))
        input_bits = config.quantize.input_bits
        plan(layer_shapes(network, in_shape), ArraySpec.from_mapping(config.array), input_bits=input_bits)
    pixels = torch.randint(0, 256, (2, *in_shape), generator=torch.Generator().manual_seed(0))
    assert network(pixels.float()).shape == (2, 10)


@pytest.mark.parametrize("path", [path for path in RECIPES if "-w" in path.stem], ids=lambda path: path.stem)
def test_a_recipe_has_the_bits_of_its_name(path):
    """Between the first layer and the last."""
    config = load_config(path)
    assert config.quantize is not None
    weight_bits, activation_bits = map(int, path.stem.rsplit("-w", 1)[1].split("a"))
    model = models.build(config.model.name, SHAPES[config.data.name], 10, **config.model.options)
    first, *inner, last = bit_assignment(quantize(model, recipe(config.quantize)))
    weighted = [row for row in inner if row["weight_bits"] is not None]
    assert weighted
    assert {(row["weight_bits"], row["input_bits"]) for row in weighted} == {(weight_bits, activation_bits)}
    assert first["input_bits"] == 8
    assert last["input_bits"] == activation_bits


@pytest.mark.parametrize(("network", "milestones"), [("vgg_small", [80, 160, 300]), ("resnet20", [82, 123])])
@pytest.mark.parametrize("method", ["lqnets", "dorefa"])
def test_rates_of_large_networks_fall_at_milestones(network, milestones, method):
    config = load_config(RECIPES[0].parent / f"cifar10-{network}-{method}-w2a2.toml").train
    assert (config.schedule, config.milestones, config.step_factor) == ("milestones", milestones, 0.1)
