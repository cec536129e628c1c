"""Weights by codebooks and number formats: clustered, NF4, FP4, FP8, MX."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, preset
from bitwright.sw.lowering import lower, verify
from bitwright.sw.quantize import Recipe, calibrate, quantize, summary
from bitwright.sw.quantizers import WeightQuantizer, method
from bitwright.sw.quantizers.clustering import ClusteredWeight, cluster
from bitwright.sw.quantizers.formats import E2M1, E3M0, E4M3, E5M2, NF4, AbsmaxFormat, MXFormat
from bitwright.sw.quantizers.fp4 import FP4Weight
from bitwright.sw.quantizers.fp8 import FP8Weight
from bitwright.sw.quantizers.mx import MXWeight
from bitwright.sw.quantizers.nf4 import NF4Weight
from bitwright.sw.residual import Residual, Shortcut
from bitwright.sw.runs import load_parameters, save_tensors
from bitwright.sw.stages import stages

torch.set_num_threads(1)

IN_HARDWARE = {
    **{f"clustered{bits}": (ClusteredWeight, bits, {}) for bits in range(1, 9)},
    "clustered3 in 5 planes": (ClusteredWeight, 3, {"planes": 5}),
    **{f"nf4 in {planes} planes": (NF4Weight, 4, {"planes": planes}) for planes in range(5, 9)},
    "fp4 e2m1": (FP4Weight, 4, {}),
    "fp4 e3m0": (FP4Weight, 4, {"form": "e3m0"}),
}
STORED = {
    "nf4 blocks": (NF4Weight, 4, {"block": 64}),
    "fp8 e4m3": (FP8Weight, 8, {}),
    "fp8 e5m2": (FP8Weight, 8, {"form": "e5m2"}),
    "mxfp4": (MXWeight, 4, {}),
    "mxfp8": (MXWeight, 8, {}),
    "mxfp8 e5m2": (MXWeight, 8, {"form": "e5m2"}),
}
in_hardware = pytest.mark.parametrize("which", IN_HARDWARE)
stored = pytest.mark.parametrize("which", STORED)
every = pytest.mark.parametrize("which", [*IN_HARDWARE, *STORED])
formats = pytest.mark.parametrize("which", [name for name in IN_HARDWARE | STORED if "clustered" not in name])


def fitted(which, weight) -> WeightQuantizer:
    kind, bits, options = (IN_HARDWARE | STORED)[which]
    quantizer = kind(bits, **options)
    quantizer.fit(weight)
    return quantizer


def weight_of(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) / 8


def weights():
    values = st.floats(-4, 4, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 1.0, 0.5])
    return st.lists(values, min_size=12, max_size=12).map(lambda v: torch.tensor(v, dtype=torch.float64).reshape(3, 4))


# All methods ----------------------------------------------------------------------------------------------------------


@in_hardware
@given(weight=weights())
@settings(max_examples=15, deadline=None)
def test_weights_are_exactly_integers_times_scale(which, weight):
    quantizer = fitted(which, weight)
    codes = quantizer.codes(weight)
    assert (codes.encoding, codes.planes, codes.integers.dtype) == ("signed", quantizer.planes, torch.int64)
    assert codes.scale.shape == (3,)
    assert (codes.scale > 0).all()
    assert torch.equal(quantizer(weight), codes.integers * codes.scale[:, None])
    assert codes.integers.abs().max() < 1 << (codes.planes - 1)
    if codes.codebook is not None:
        assert torch.equal(codes.codebook, codes.codebook.unique())  # ascending, each once
        assert len(codes.codebook) <= 16
        assert torch.equal(codes.codebook[codes.indices()], codes.integers)


@every
def test_type_of_the_weight_is_kept_and_float32_training_agrees(which):
    weight = weight_of(6, 5, 3, 3, dtype=torch.float32)
    quantizer = fitted(which, weight)
    quantized = quantizer(weight)
    assert quantized.dtype == torch.float32
    assert quantized.shape == weight.shape
    exact = quantizer.double()(weight.double())
    near = (quantized - exact).abs() <= 1e-6 * exact.abs().max()
    assert near.float().mean() > 0.99  # a weight next to a tie may go the other way in float32


@formats
def test_gradient_passes_unchanged(which):
    weight = weight_of(3, 40).requires_grad_()
    upstream = torch.arange(120.0, dtype=torch.float64).reshape(3, 40)
    fitted(which, weight)(weight).backward(upstream)
    assert weight.grad is not None
    assert torch.equal(weight.grad, upstream)


@every
def test_zero_filters_and_zero_layers_stay_zero(which):
    weight = weight_of(4, 40)
    weight[2] = 0
    weight[3] = 1e-45
    for each in (weight, torch.zeros(4, 40), torch.zeros(4, 40).double()):
        quantizer = fitted(which, each)
        quantized = quantizer(each)
        assert not quantized[2].any()
        assert quantized[3].abs().max() <= 1e-45
        assert quantized.isfinite().all()
        if which in IN_HARDWARE:
            codes = quantizer.codes(each)
            assert not codes.integers[2:].any()
            assert codes.scale.isfinite().all()


@every
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(which, value):
    weight = weight_of(3, 40)
    quantizer = fitted(which, weight)
    weight[1, 3] = value
    with pytest.raises(BitwrightError, match="NaN or infinite"):
        quantizer.codes(weight)


@formats
def test_training_sees_weights_that_are_nan(which):
    weight = weight_of(3, 40)
    quantizer = fitted(which, weight)
    weight[1, 3] = math.nan
    assert quantizer(weight)[1, 3].isnan()


@pytest.mark.parametrize(
    ("kind", "offered"),
    [
        (ClusteredWeight, range(1, 9)),
        (NF4Weight, range(4, 5)),
        (FP4Weight, range(4, 5)),
        (FP8Weight, range(8, 9)),
        (MXWeight, (4, 8)),
    ],
)
@pytest.mark.parametrize("bits", [0, 1, 3, 4, 5, 6, 8, 9, True, 4.0, "4", None])
def test_bits_that_are_not_offered_are_refused(kind, offered, bits):
    if bits in offered and type(bits) is int:
        assert kind(bits).bits == bits
    else:
        with pytest.raises(BitwrightError, match=r"takes .* bits?, found"):
            kind(bits)


@pytest.mark.parametrize(
    ("name", "bits", "options", "message"),
    [
        ("clustered", 4, {"planes": 9}, "option planes is 9, expected an integer from 2 to 8"),
        ("nf4", 4, {"planes": 4}, "option planes is 4, expected an integer from 5 to 8"),
        ("nf4", 4, {"planes": True}, "option planes is True"),
        ("nf4", 4, {"block": 0}, "option block is 0, expected a positive integer"),
        ("fp4", 4, {"form": "e4m3"}, "option form is 'e4m3', expected 'e2m1' or 'e3m0'"),
        ("fp8", 8, {"form": "e3m4"}, "option form is 'e3m4', expected 'e4m3' or 'e5m2'"),
        ("mx", 4, {"form": "e4m3"}, "option form is 'e4m3', of 8 bits, expected one of 4"),
        ("mx", 8, {"form": 8}, "option form is 8, expected 'e2m1' or 'e4m3' or 'e5m2'"),
    ],
)
def test_options_are_checked(name, bits, options, message):
    with pytest.raises(BitwrightError, match=message):
        method(name).quantize_weights(bits, options)


@pytest.mark.parametrize("name", ["clustered", "nf4", "fp4", "fp8", "mx"])
def test_methods_are_for_weights_only(name):
    with pytest.raises(BitwrightError, match=f"'{name}' is for weights only"):
        method(name).replace_activation(nn.ReLU(), 4)


@stored
def test_formats_to_store_say_why(which):
    weight = weight_of(3, 40)
    quantizer = fitted(which, weight)
    with pytest.raises(BitwrightError, match="is a format to store and to compare"):
        quantizer.codes(weight)
    with pytest.raises(BitwrightError, match="is a format to store and to compare"):
        _ = quantizer.encoding


# Clusters -------------------------------------------------------------------------------------------------------------


def loss(values, centroids, members):
    return float((values - centroids[members]).square().sum())


@given(
    values=st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=1, max_size=60),
    clusters=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_clusters_are_a_fixed_point_of_k_means(values, clusters):
    x = torch.tensor(values, dtype=torch.float64)
    centroids, members = cluster(x, clusters)
    assert centroids.shape == (clusters,)
    assert (centroids.diff() >= 0).all()
    distances = (x[:, None] - centroids).abs()
    nearest = distances.min(1).values
    torch.testing.assert_close(distances.gather(1, members[:, None])[:, 0], nearest, rtol=0, atol=1e-12)
    for index in members.unique():
        torch.testing.assert_close(centroids[index], x[members == index].mean(), rtol=0, atol=1e-12)
    if len(x.unique()) <= clusters:
        assert torch.equal(centroids[members], x)


def test_k_means_never_raises_the_error():
    x = weight_of(500)
    losses = [loss(x, *cluster(x, 16, iterations=count)) for count in range(1, 30)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0] * 0.9
    assert loss(x, *cluster(x, 16)) <= losses[-1]


@pytest.mark.parametrize("clusters", [2, 5, 16, 64])
def test_clusters_are_those_of_scikit_learn(clusters):
    x = torch.rand(800, generator=torch.Generator().manual_seed(clusters), dtype=torch.float64).pow(2)
    start = np.linspace(float(x.min()), float(x.max()), clusters)[:, None]
    centroids, members = cluster(x, clusters)
    assert len(members.unique()) == clusters  # scikit-learn moves clusters that are empty, the paper says nothing
    options: Any = {"init": start, "n_init": 1, "algorithm": "lloyd", "tol": 0, "max_iter": 1000}
    peer = KMeans(clusters, **options).fit(x.numpy()[:, None])
    np.testing.assert_allclose(centroids, np.sort(peer.cluster_centers_[:, 0]), rtol=1e-9)
    assert loss(x, centroids, members) == pytest.approx(peer.inertia_, rel=1e-9)
    np.testing.assert_array_equal(members, peer.labels_)


def test_clusters_by_hand():
    """Centroids begin at 0, 4.5, 9; the last has two members, the first three, the middle one none and stays."""
    centroids, members = cluster(torch.tensor([9.0, 0.0, 1.0, 8.0, 2.0]), 3)
    assert centroids.tolist() == [1.0, 4.5, 8.5]
    assert members.tolist() == [2, 0, 0, 2, 0]
    centroids, members = cluster(torch.tensor([3.0, 1.0, 3.0]), 4)
    assert centroids.tolist() == [1, 3, 3, 3]
    assert members.tolist() == [1, 0, 1]


def test_pruned_weights_stay_zero_and_are_no_members():
    weight = weight_of(4, 30)
    weight[weight.abs() < 0.05] = 0
    quantizer = fitted("clustered3", weight)
    assert isinstance(quantizer, ClusteredWeight)
    assert torch.equal(quantizer.indices == 8, weight == 0)
    centroids, members = cluster(weight[weight != 0], 8)
    assert torch.equal(quantizer.centroids.detach(), centroids)
    assert torch.equal(quantizer.indices[weight != 0].long(), members)
    quantizer.centroids.data += 1  # as training might: zeros stay
    quantized = quantizer(weight)
    assert torch.equal(quantized == 0, weight == 0)
    codebook = quantizer.codes(weight).codebook
    assert codebook is not None
    assert len(codebook) == 9
    assert 0 in codebook.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_a_centroid_is_the_sum_over_its_members(dtype):
    weight = weight_of(6, 3, 3, 3, dtype=dtype)
    weight[0, 0] = 0
    quantizer = fitted("clustered4", weight)
    assert isinstance(quantizer, ClusteredWeight)
    upstream = torch.arange(float(weight.numel()), dtype=dtype).reshape(weight.shape)  # sums of integers are exact
    original = weight.clone().requires_grad_()
    quantizer(original).backward(upstream)
    assert quantizer.centroids.grad is not None
    sums = [upstream[quantizer.indices == index].sum().item() for index in range(16)]
    assert quantizer.centroids.grad.tolist() == sums
    assert original.grad is None
    gathered = quantizer.centroids.detach().clone().requires_grad_()
    torch.cat([gathered, gathered.new_zeros(1)])[quantizer.indices.long()].backward(upstream)
    assert torch.equal(quantizer.centroids.grad, gathered.grad)  # pyright: ignore[reportArgumentType]


def test_centroids_are_rounded_to_integers_of_the_layer():
    quantizer = ClusteredWeight(2, planes=4)
    weight = torch.tensor([[0.7, -0.31, 0.1, 0.7, 0.0], [0.0, 0.1, -0.31, -0.68, 0.1]])
    quantizer.fit(weight)
    assert quantizer.centroids.tolist() == pytest.approx([-0.68, -0.31, 0.1, 0.7])
    codes = quantizer.codes(weight)
    assert codes.integers.tolist() == [[7, -3, 1, 7, 0], [0, 1, -3, -7, 1]]
    assert codes.scale.tolist() == pytest.approx([0.1, 0.1])
    assert codes.codebook is not None
    assert codes.codebook.tolist() == [-7, -3, 0, 1, 7]
    assert codes.indices().tolist() == [[4, 1, 3, 4, 2], [2, 3, 1, 0, 3]]


def test_codebooks_of_more_than_sixteen_entries_are_not_carried():
    weight = weight_of(4, 300)
    codes = fitted("clustered5", weight).codes(weight)
    assert codes.codebook is None
    with pytest.raises(BitwrightError, match="no codebook of at most 16 entries"):
        codes.indices()
    weight[0, :9] = 0  # 16 centroids, and zero
    codes = fitted("clustered4", weight).codes(weight)
    assert len(codes.integers.unique()) == 17
    assert codes.codebook is None


def test_training_moves_centroids_and_keeps_assignments():
    layer = nn.Linear(20, 10, bias=False)
    quantizer = ClusteredWeight(3)
    quantizer.fit(layer.weight)
    before = quantizer.indices.clone(), quantizer.centroids.detach().clone(), layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", quantizer)
    optimizer = torch.optim.Adam(layer.parameters(), 0.01, weight_decay=0.1)
    x, target = weight_of(64, 20, seed=1, dtype=torch.float32), weight_of(64, 10, seed=2, dtype=torch.float32)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        losses.append((layer(x) - target).square().mean())
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(quantizer.indices, before[0])
    assert not torch.equal(quantizer.centroids.detach(), before[1])
    assert torch.equal(layer.get_parameter("parametrizations.weight.original"), before[2])


def test_clusters_are_saved():
    weight, other = weight_of(4, 9), weight_of(4, 9, seed=1)
    trained, fresh = fitted("clustered3", weight), fitted("clustered3", other)
    assert not torch.equal(fresh(other), trained(weight))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(other), trained(weight))
    with pytest.raises(BitwrightError, match="made with integers of 8 planes where this model's ClusteredWeight has 5"):
        fitted("clustered3 in 5 planes", weight).load_state_dict(trained.state_dict())


def test_centroids_that_are_not_finite_and_clusters_that_are_missing_are_refused():
    weight = weight_of(4, 9)
    with pytest.raises(BitwrightError, match=r"shape \(0,\), found one of \(4, 9\); fit the quantizer"):
        ClusteredWeight(3)(weight)
    with pytest.raises(BitwrightError, match="A weight to cluster is NaN or infinite"):
        ClusteredWeight(3).fit(torch.tensor([[math.nan]]))
    quantizer = fitted("clustered3", weight)
    assert isinstance(quantizer, ClusteredWeight)
    quantizer.centroids.data[2] = math.nan
    assert quantizer(weight).isnan().any()
    with pytest.raises(BitwrightError, match="A centroid is NaN or infinite"):
        quantizer.codes(weight)


# Formats --------------------------------------------------------------------------------------------------------------


def test_integers_of_fp4():
    weight = torch.tensor([[1.2, 0.8, -0.59, 0.39, 0.21, -0.1, 0.04], [0.0, 0.0, 3.0, 6.0, -6.0, 1.0, 2.0]])
    codes = FP4Weight(4).codes(weight)
    assert codes.integers.tolist() == [[12, 8, -6, 4, 2, -1, 0], [0, 0, 6, 12, -12, 2, 4]]
    assert codes.scale.tolist() == pytest.approx([0.1, 0.5])
    assert codes.planes == 5
    assert codes.codebook is not None
    assert codes.codebook.tolist() == [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]
    codes = FP4Weight(4, form="e3m0").codes(torch.tensor([[16.0, -8.5, 0.3, 0.1, 3.1]]))
    assert codes.integers.tolist() == [[64, -32, 1, 0, 16]]
    assert codes.planes == 8
    assert codes.codebook is not None
    assert codes.codebook.tolist() == [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(("form", "float_format"), [("e2m1", E2M1), ("e3m0", E3M0)])
def test_fp4_is_the_format_of_the_scaled_filter(form, float_format):
    weight = weight_of(5, 4, 3, 3)
    greatest = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1) / float_format.largest
    expected = float_format.decode(float_format.encode(weight / greatest), torch.float64) * greatest
    torch.testing.assert_close(FP4Weight(4, form=form)(weight), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("planes", range(5, 9))
def test_nf4_indices_are_those_of_the_format(planes):
    weight = weight_of(5, 40)
    codes = NF4Weight(4, planes=planes).codes(weight)
    greatest = weight.abs().amax(1, keepdim=True)
    assert torch.equal(codes.indices(), NF4.encode(weight / greatest).long())
    assert codes.codebook is not None
    half = 2 ** (planes - 1) - 1
    assert codes.codebook.tolist() == [round(level * half) for level in NF4.levels]
    assert len(codes.codebook.unique()) == 16
    assert torch.equal(codes.scale, greatest[:, 0] / half)


def test_published_nf4_has_blocks_of_64_and_the_quantiles_themselves():
    weight = weight_of(3, 100, dtype=torch.float32)
    blocks = AbsmaxFormat(NF4)
    torch.testing.assert_close(NF4Weight(4, block=64)(weight), blocks.decode(blocks.encode(weight)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "form", "element"), [(4, "e2m1", E2M1), (8, "e4m3", E4M3), (8, "e5m2", E5M2)])
def test_mx_blocks_are_consecutive_input_channels(bits, form, element):
    weight = weight_of(3, 40, 2, 1)
    quantized = MXWeight(bits, form=form)(weight)
    # Blocks run over (kernel row, kernel column, input channel).
    rows = weight.permute(0, 2, 3, 1).reshape(3, 80)
    expected = MXFormat(element).round(rows).reshape(3, 2, 1, 40).permute(0, 3, 1, 2)
    assert torch.equal(quantized, expected)
    if bits == 4:
        assert torch.equal(MXWeight(4)(weight), quantized)


@pytest.mark.parametrize(("form", "float_format"), [("e4m3", E4M3), ("e5m2", E5M2)])
def test_fp8_is_the_format_of_the_scaled_filter(form, float_format):
    weight = weight_of(5, 4, 3, 3)
    greatest = weight.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1) / float_format.largest
    expected = float_format.decode(float_format.encode(weight / greatest), torch.float64) * greatest
    assert torch.equal(FP8Weight(8, form=form)(weight), expected)


def test_more_bits_and_smaller_blocks_are_nearer():
    weight = weight_of(64, 512)

    def error(which):
        return float((fitted(which, weight)(weight) - weight).square().mean().detach())

    clustered = [error(f"clustered{bits}") for bits in range(1, 7)]
    assert all(after < before / 2 for before, after in itertools.pairwise(clustered))
    assert error("fp8 e4m3") < error("fp8 e5m2") < error("nf4 blocks") < error("nf4 in 8 planes")
    assert error("nf4 in 8 planes") < error("nf4 in 6 planes") < error("fp4 e2m1") < error("fp4 e3m0")
    assert error("mxfp8") < error("mxfp4") < error("fp4 e3m0")


# Hardware -------------------------------------------------------------------------------------------------------------

SPEC = ArraySpec(
    rows=4, columns=2, lanes=64, accumulator_width=30, weight_depth=1 << 14, threshold_depth=1 << 14,
    descriptor_depth=2048,
)  # fmt: skip
RECIPES = {
    "clustered1": {"weights": "clustered", "weight_bits": 1},
    "clustered4": {"weights": "clustered", "weight_bits": 4},
    "clustered8": {"weights": "clustered", "weight_bits": 8},
    "clustered3 in 4 planes": {"weights": "clustered", "weight_bits": 3, "weight_options": {"planes": 4}},
    "nf4": {"weights": "nf4", "weight_bits": 4},
    "nf4 in 5 planes": {"weights": "nf4", "weight_bits": 4, "weight_options": {"planes": 5}},
    "fp4 e2m1": {"weights": "fp4", "weight_bits": 4},
    "fp4 e3m0": {"weights": "fp4", "weight_bits": 4, "weight_options": {"form": "e3m0"}},
}


def network_of(recipe):
    """A network with a residual block, an average before the last layer, zero filters and pruned weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        Residual(
            nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1, bias=False), Shortcut(),
            nn.BatchNorm2d(6), nn.ReLU(),
        ),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 10), nn.BatchNorm1d(10),
    )  # fmt: skip
    with torch.no_grad():
        for stage in stages(model):
            stage.weight[0] = 0
            stage.weight[stage.weight.abs() < 0.03] = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return quantize(model, Recipe(activations="dorefa", activation_bits=3, **recipe))


@pytest.fixture(scope="module")
def digits():
    loaded: Any = load_digits()
    return np.round(loaded.images * 255 / 16).astype(np.uint8)[:, None], torch.from_numpy(loaded.target)


def train(network, images, labels, steps):
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    pixels = torch.from_numpy(images).float()
    for step in range(steps):
        batch = torch.randint(0, len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(network(pixels[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("which", RECIPES)
def test_trained_networks_equal_float64(which, digits):
    images, labels = digits
    network = network_of(RECIPES[which])
    calibrate(network, torch.from_numpy(images[:100]).float())
    train(network, images[:1300], labels[:1300], 30)
    program = lower(network, SPEC, (1, 8, 8))
    result = verify(network, program, images[1300:])
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)
    assert result.images == 497
    planes = {"fp4 e2m1": 5, "nf4 in 5 planes": 5, "clustered3 in 4 planes": 4}.get(which, 8)
    assert [info.weight_planes for info in program.layers] == [planes] * 4
    for stage in stages(network.double()):
        codes = stage.weight_codes()
        assert codes.integers.any()
        assert torch.equal(stage.weight, codes.integers * codes.scale.reshape(-1, *[1] * (stage.weight.dim() - 1)))


def test_clustering_a_trained_network_and_training_its_centroids(digits):
    """Deep Compression in small: train, prune, cluster, train the centroids; then hardware."""
    images, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(108, 10),
    )  # fmt: skip
    model = quantize(model, Recipe(weight_bits=None))
    train(model, images[:1300], labels[:1300], 150)
    with torch.no_grad():
        weight = stages(model)[1].weight
        weight[weight.abs() < weight.abs().median()] = 0
    network = quantize(model, Recipe(weights="clustered", weight_bits=3, activations="fpnn", activation_bits=5))
    calibrate(network, torch.from_numpy(images[:300]).float())

    def accuracy():
        outputs = network.eval()(torch.from_numpy(images[1300:]).float())
        return float((outputs.argmax(1) == labels[1300:]).float().mean())

    before = accuracy()
    assignments = [stage.weight_quantizer.indices.clone() for stage in stages(network)]  # pyright: ignore
    train(network, images[:1300], labels[:1300], 60)
    assert accuracy() > max(before, 0.85)
    for stage, indices in zip(stages(network), assignments, strict=True):
        assert torch.equal(stage.weight_quantizer.indices, indices)  # pyright: ignore
    assert torch.equal(stages(network)[1].weight == 0, stages(model)[1].weight == 0)  # half of them
    program = lower(network, preset("demo"), (1, 8, 8))
    assert sum(verify(network, program, images[1300:]).mismatches.values()) == 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"weights": "fp8", "weight_bits": 8}, "'0': FP8 E4M3 is a format to store .* take 19 planes"),
        ({"weights": "fp8", "weight_bits": 8, "weight_options": {"form": "e5m2"}}, "E5M2 .* take 33 planes"),
        ({"weights": "mx", "weight_bits": 4}, "'0': MX .* has a scale for every 32 weights"),
        ({"weights": "nf4", "weight_bits": 4, "weight_options": {"block": 64}}, "a scale for every 64 weights"),
    ],
)
def test_formats_to_store_train_and_are_refused_by_lowering(recipe, message, digits):
    images, labels = digits
    network = network_of(recipe)
    calibrate(network, torch.from_numpy(images[:100]).float())
    before = [stage.real_weight.clone() for stage in stages(network)]
    train(network, images[:1300], labels[:1300], 2)
    assert not any(torch.equal(stage.real_weight, old) for stage, old in zip(stages(network), before, strict=True))
    with pytest.raises(BitwrightError, match=message):
        lower(network, SPEC, (1, 8, 8))
    assert "float" in summary(network)  # no encoding


def test_clusters_come_back_from_a_checkpoint(tmp_path):
    network, other = network_of(RECIPES["clustered4"]), network_of(RECIPES["clustered4"])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    save_tensors(tmp_path / "a.safetensors", network.state_dict())
    load_parameters(other, tmp_path / "a.safetensors")
    pixels = torch.arange(64.0).reshape(1, 1, 8, 8)
    assert torch.equal(other.eval()(pixels), network.eval()(pixels))
