"""Codebooks of weights on their way into the stream: the same numbers, fewer beats."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.planner import plan
from bitwright.sim.backends import simulate
from bitwright.sim.compare import compare
from bitwright.sim.golden import execute
from bitwright.sim.tools import compiler, verilator
from bitwright.sw.lowering import layer_shapes, lower, verify
from bitwright.sw.planning import decodable, plan_weights, stream_beats
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.residual import Residual, Shortcut
from programs import conv, linear, shapes

torch.set_num_threads(1)

PLAIN = ArraySpec(
    rows=4,
    columns=2,
    lanes=32,
    accumulator_width=24,
    weight_stream=True,
    weight_depth=64,
    threshold_depth=256,
    descriptor_depth=1024,
    activation_depth=512,
    window_depth=128,
)
"""Its weight memory holds no network of this file; whatever is computed is streamed in."""
CODED = dataclasses.replace(PLAIN, codebook_bits=4)

RECIPES = {
    "clustered2": {"weights": "clustered", "weight_bits": 2},
    "clustered3": {"weights": "clustered", "weight_bits": 3},
    "nf4": {"weights": "nf4", "weight_bits": 4},
    "nf4 in 5 planes": {"weights": "nf4", "weight_bits": 4, "weight_options": {"planes": 5}},
    "fp4 e2m1": {"weights": "fp4", "weight_bits": 4},
    "fp4 e3m0": {"weights": "fp4", "weight_bits": 4, "weight_options": {"form": "e3m0"}},
    "nf4, fp4, clustered": {
        "weights": "nf4",
        "weight_bits": 4,
        "layers": {"3": {"weights": "fp4"}, "7": {"weights": "clustered", "weight_bits": 2}},
    },
}


def network_of(recipe):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip
    nn.init.normal_(model.get_parameter("1.weight"))
    with torch.no_grad():
        model.get_parameter("3.weight")[2] = 0
    settings = {"activations": "dorefa", "activation_bits": 2, "input_bits": 2} | recipe
    network = quantize(model.eval(), Recipe(**settings))
    calibrate(network, torch.from_numpy(images_of(4)).float())
    return network


def images_of(count):
    return np.random.default_rng(0).integers(0, 256, (count, 2, 5, 5), np.uint8)


@pytest.mark.parametrize("which", RECIPES)
def test_indices_are_streamed_and_nothing_else_changes(which):
    network, images = network_of(RECIPES[which]), images_of(3)
    plain, coded = (lower(network, spec, (2, 5, 5)) for spec in (PLAIN, CODED))
    assert all(layer.codebook is None for layer in plain.layers)
    assert all(layer.codebook is not None for layer in coded.layers)
    for ours, theirs in zip(coded.layers, plain.layers, strict=True):
        assert dataclasses.replace(ours, codebook=None) == theirs
    # Where an integer of the stream had its planes, there are those of an index; and a table for each of its planes.
    for layer, before, after in zip(coded.layers, words_of(plain), words_of(coded), strict=True):
        assert after * layer.weight_planes == before * (len(layer.codebook or ()) - 1).bit_length()
    tables = sum(part.decoded_planes for part in coded.parsed)
    words = sum(words_of(coded)) * CODED.rows * CODED.derived.chunks
    assert len(coded.stream) == tables + words < 0.9 * len(plain.stream)
    results = [execute(program, images) for program in (plain, coded)]
    for run, other in zip(*results, strict=True):
        np.testing.assert_array_equal(run.accumulators, other.accumulators)
    proof = verify(network, coded, images)
    assert proof.mismatches == dict.fromkeys(proof.mismatches, 0)


def words_of(program):
    """Words that stream in for each layer."""
    words = [0] * len(program.layers)
    for number, part in zip(program.parts, program.parsed, strict=True):
        words[number] += part.stream_words
    return words


def assert_hardware_equals_the_golden_model(which, backend):
    program, images = lower(network_of(RECIPES[which]), CODED, (2, 5, 5)), images_of(1)
    assert len(program.stream)
    trace = range(len(program.parsed))
    [predicted], [measured] = execute(program, images, trace=trace), simulate(program, images, backend, trace)
    assert compare(predicted, measured).first is None


def test_hardware_decodes_what_the_golden_model_does():
    assert_hardware_equals_the_golden_model("nf4, fp4, clustered", "pysim")


@pytest.mark.slow
@pytest.mark.parametrize("which", RECIPES)
def test_verilog_decodes_what_the_golden_model_does(which):
    if verilator().path is None or compiler().path is None:
        pytest.skip("no Verilator or no C++ compiler")
    assert_hardware_equals_the_golden_model(which, "verilator")


@pytest.mark.parametrize("activations", ["dorefa", "lqnets"])
def test_groups_residuals_and_bases_decode_to_the_same_weights(activations):
    """A grouped convolution needs a zero in its codebook; before a basis, integers become codes of planes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(),
        Residual(
            nn.Conv2d(12, 12, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), Shortcut(),
            nn.BatchNorm2d(12), nn.ReLU(),
        ),
        nn.AvgPool2d(5), nn.Flatten(), nn.Linear(12, 6),
    )  # fmt: skip
    recipe = Recipe(weights="clustered", weight_bits=2, activations=activations, activation_bits=2)
    network = quantize(model.eval(), recipe)
    images = images_of(4)
    calibrate(network, torch.from_numpy(images).float())
    extended = {"coefficient_bits": 12, "weight_depth": 256, "coefficient_depth": 1024}
    programs = [lower(network, dataclasses.replace(spec, **extended), (2, 5, 5)) for spec in (PLAIN, CODED)]
    assert len(programs[1].stream) < 0.5 * len(programs[0].stream)
    assert 0 in (programs[1].layers[1].codebook or ())
    runs = [execute(program, images) for program in programs]
    for run, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(run.accumulators, other.accumulators)


def test_weights_that_fit_their_memory_stay_in_it():
    network = network_of(RECIPES["nf4"])
    roomy = dataclasses.replace(CODED, weight_depth=1 << 12)
    program = lower(network, roomy, (2, 5, 5))
    assert not len(program.stream)
    assert all(layer.codebook is None for layer in program.layers)


@pytest.mark.parametrize(("codebook_bits", "coded"), [(0, []), (1, []), (2, ["7"]), (3, ["7"]), (4, ["0", "3", "7"])])
def test_codebooks_of_more_entries_than_the_array_takes_are_decoded_before(codebook_bits, coded):
    spec = dataclasses.replace(CODED, codebook_bits=codebook_bits)
    network, images = network_of(RECIPES["nf4, fp4, clustered"]), images_of(2)
    program = lower(network, spec, (2, 5, 5))
    assert [layer.name for layer in program.layers if layer.codebook is not None] == coded
    proof = verify(network, program, images)
    assert proof.mismatches == dict.fromkeys(proof.mismatches, 0)


def test_indices_as_long_as_integers_are_not_worth_it():
    """Four clusters in two planes; integers that are longer by the zero of groups."""
    layers = shapes((4, 5, 5), [conv(40, 3, weight_bits=2, codebook=(-2, -1, 0, 1)), linear(4, weight_bits=2)])
    assert not decodable(layers[0], CODED)
    assert decodable(dataclasses.replace(layers[0], weight_bits=3), CODED)
    assert plan_weights(layers, CODED, input_bits=2).layers[0].codebook is None
    grouped = {"groups": 2, "weight_bits": 8}
    assert decodable(shapes((4, 5, 5), [conv(40, 3, codebook=range(16), **grouped), linear(2)])[0], CODED)
    assert not decodable(shapes((4, 5, 5), [conv(40, 3, codebook=range(1, 17), **grouped), linear(2)])[0], CODED)


def test_a_plan_whose_codebooks_need_too_many_descriptors_does_without():
    """Weights that stay on chip beside coded ones leave less room for a part: there are more parts, and descriptors."""
    layers = shapes((32, 5, 5), [conv(80, 3, weight_bits=8, codebook=(-100, 0, 100)), linear(2, weight_bits=8)])
    without = [dataclasses.replace(shape, codebook=None) for shape in layers]
    small = dataclasses.replace(CODED, weight_depth=512, descriptor_depth=512)
    with pytest.raises(BitwrightError, match="descriptor words"):
        plan(layers, small, input_bits=2)
    assert plan_weights(layers, small, input_bits=2) == plan(without, small, input_bits=2)
    large = dataclasses.replace(small, descriptor_depth=1024)
    assert plan_weights(layers, large, input_bits=2) == plan(layers, large, input_bits=2)
    assert stream_beats(plan(layers, large, input_bits=2)) < stream_beats(plan(without, large, input_bits=2)) / 3


def test_shapes_offer_the_codebook_of_each_method():
    network = network_of(RECIPES["nf4, fp4, clustered"])
    offered = [shape.codebook for shape in layer_shapes(network, (2, 5, 5))]
    assert [len(codebook or ()) for codebook in offered] == [16, 15, 4]
    numbered_by_nothing = network_of({"weights": "qnn", "weight_bits": 2})
    assert all(shape.codebook is None for shape in layer_shapes(numbered_by_nothing, (2, 5, 5)))


def test_a_centroid_that_is_nan_is_named_with_its_layer():
    network = network_of(RECIPES["clustered2"])
    network.get_parameter("3.parametrizations.weight.0.centroids").data[1] = torch.nan
    with pytest.raises(BitwrightError, match="'3': A centroid is NaN or infinite"):
        layer_shapes(network, (2, 5, 5))
