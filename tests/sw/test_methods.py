"""What every method of quantization holds to: one that is added is tested here by being in METHODS."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils import deterministic

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, has_coefficients
from bitwright.sw import training
from bitwright.sw.config import parse_config
from bitwright.sw.lowering import lower, verify
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, calibrate, constrain_weights, quantize
from bitwright.sw.quantizers import METHODS, ActivationQuantizer, WeightQuantizer
from bitwright.sw.quantizers.basis import BasisActivation
from bitwright.sw.runs import Run, load_tensors
from bitwright.sw.stages import stages

torch.set_num_threads(1)

SPEC = ArraySpec(
    rows=4,
    columns=2,
    lanes=64,
    accumulator_width=30,
    weight_depth=1 << 14,
    threshold_depth=1 << 14,
    coefficient_bits=16,
)
ROUNDED_SHARE = 0.02
"""Share of activations that may differ where coefficients are rounded to integers."""

every = pytest.mark.parametrize("name", METHODS)
every_activation = pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.activations])
QUANTIZERS = [
    pytest.param(kind, id=kind.__name__)
    for method in METHODS.values()
    for kind in dict.fromkeys([method.weights, *method.activations.values()])
]


def few(offered: range) -> int:
    """Two bits, or the fewest offered."""
    return 2 if 2 in offered else offered[0]


def weights_of(name: str) -> WeightQuantizer:
    method = METHODS[name]
    return method.quantize_weights(few(method.weight_bits))


def recipe_of(name: str, **options: Any) -> Recipe:
    """Weights of a method, and its activations if it has some."""
    method = METHODS[name]
    activations = method if method.activations else METHODS["dorefa"]
    settings: dict[str, Any] = {
        "weights": name,
        "weight_bits": few(method.weight_bits),
        "activations": activations.name,
        "activation_bits": few(activations.activation_bits),
    }
    return Recipe(**settings | options)


def convolutions() -> nn.Sequential:
    """Two convolutions and a fully connected layer, without a batch norm after it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 4),
    )  # fmt: skip


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 2, 8, 8), np.uint8)


def one_sentence(error: BaseException) -> bool:
    text = str(error)
    return text.endswith((".", "?")) and "\n" not in text and ". " not in text


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("bits", [0, 33, -1, 2.0, True, None, "2"])
def test_bits_out_of_range_are_refused_in_one_sentence(kind, bits):
    with pytest.raises(BitwrightError, match=r"takes .*bits?, found") as raised:
        kind(bits)
    assert one_sentence(raised.value)


@every
def test_weights_that_are_not_finite_are_refused(name):
    model = convolutions()
    model[4].weight.data[1, 0, 0, 0] = math.nan  # pyright: ignore
    with pytest.raises(BitwrightError, match="Layer '4' has weights that are NaN or infinite") as raised:
        quantize(model, recipe_of(name))
    assert one_sentence(raised.value)
    network = quantize(convolutions(), recipe_of(name))
    stage = stages(network)[1]
    stage.real_weight.data[1, 0, 0, 0] = math.nan
    quantizer = stage.weight_quantizer
    assert quantizer is not None
    for parameter in quantizer.parameters():  # of methods that train levels in place of weights
        parameter.data[0] = math.nan
    with pytest.raises(BitwrightError) as raised:
        stage.weight_codes()
    assert one_sentence(raised.value)


@every
def test_activations_that_are_not_finite_are_refused(name):
    network = quantize(convolutions(), recipe_of(name))
    network.get_parameter("2.bias").data[1] = math.nan
    with pytest.raises(BitwrightError, match="Layer '3' reads values that are NaN or infinite") as raised:
        calibrate(network, torch.from_numpy(pixels(4)).float())
    assert one_sentence(raised.value)


TEXT = """
[data]
name = "digits"
[model]
name = "mlp"
options = {{ hidden = [8] }}
[train]
epochs = 2
batch_size = 200
learning_rate = 2e-2
threads = 1
[quantize]
weights = "{recipe.weights}"
weight_bits = {recipe.weight_bits}
activations = "{recipe.activations}"
activation_bits = {recipe.activation_bits}
"""


def training_of(name, *changes):
    text = TEXT.format(recipe=recipe_of(name))
    for old, new in changes:
        text = text.replace(old, new)
    return parse_config(text)


@every
def test_training_stops_where_numbers_become_nan(name, tmp_path, monkeypatch):
    """Also where a sign or a comparison hides the NaN from the loss."""
    descend, steps = training.descend, 0

    def poisoned(model, *arguments):
        nonlocal steps
        steps += 1
        if steps == 9:
            stages(model)[0].norm.weight.data[0] = math.nan  # pyright: ignore
        return descend(model, *arguments)

    monkeypatch.setattr(training, "descend", poisoned)
    with pytest.raises(
        BitwrightError, match=r"(NaN or infinite after epoch 2|loss is nan in epoch 2).*lower"
    ) as raised:
        training.train(training_of(name), tmp_path, progress=False)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1
    assert "train.learning_rate, now 0.02." in str(raised.value)


@every
def test_training_refuses_batches_of_one_image_before_it_begins(name, tmp_path):
    with pytest.raises(BitwrightError, match=r"batches have one image.*set train.batch_size to at least 2"):
        training.train(training_of(name, ("batch_size = 200", "batch_size = 1")), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# Values at the edge ---------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e30])
def test_filters_of_zeros_and_of_extreme_numbers(name, value):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * max(value, 0.1)
    weight[2] = value
    quantizer = weights_of(name).train()
    quantizer.fit(weight)
    leaf = weight.clone().requires_grad_()
    quantized = quantizer(leaf)
    assert quantized.isfinite().all()
    quantized.sum().backward()
    assert leaf.grad is None or leaf.grad.isfinite().all()
    if quantizer.obstacle() is None:
        codes: Any = quantizer.eval().codes(weight)
        assert (codes.basis if hasattr(codes, "basis") else codes.scale).isfinite().all()


@every
def test_layers_of_zeros_lower_to_a_network_that_is_equal(name):
    model = convolutions()
    model[4].weight.data.zero_()  # pyright: ignore
    network = quantize(model.eval(), recipe_of(name))
    images = pixels(4)
    calibrate(network, torch.from_numpy(images).float())
    check_lowered(network, images)


@every_activation
@pytest.mark.parametrize("value", [0.0, 1.0, 0.37, -2.0, 1e15, 1e-30, 1e30])
def test_constant_activations(name, value):
    method = METHODS[name]
    quantizer = method.replace_activation(nn.ReLU(), few(method.activation_bits)).train()
    x = torch.full((2, 3, 4, 4), value)
    quantizer.fit(x)
    for batch in (x, x[:1]):
        leaf = batch.clone().requires_grad_()
        values = quantizer(leaf)
        values.sum().backward()
        assert values.isfinite().all()
        assert len(values.unique()) == 1
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@every_activation
@given(
    exponents=st.lists(st.integers(-30, 30), min_size=2, max_size=3),
    seed=st.integers(0, 99),
    bits=st.sampled_from(["few", "most"]),
    fitted=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_activations_of_extreme_sizes_side_by_side(name, exponents, seed, bits, fitted):
    """Channels of 1e-30 to 1e30: nothing overflows in calibration, nor in steps of training."""
    method = METHODS[name]
    offered = method.activation_bits
    quantizer = method.replace_activation(nn.ReLU(), few(offered) if bits == "few" else offered[-1]).train()
    x = torch.randn(4, len(exponents), 3, 3, generator=torch.Generator().manual_seed(seed))
    x *= 10.0 ** torch.tensor(exponents)[:, None, None]
    if fitted:
        quantizer.fit(x)
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        values = quantizer(leaf)
        values.sum().backward()
        assert values.isfinite().all()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    assert quantizer.eval()(x).isfinite().all()


@every
def test_batches_of_one_image(name):
    """Convolutions see many pixels of it; no method divides by a spread of one number."""
    network = quantize(convolutions(), recipe_of(name, gradient_bits=4)).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for seed in range(3):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(torch.from_numpy(pixels(1, seed)).float()), torch.tensor([1]))
        loss.backward()
        optimizer.step()
        constrain_weights(network)
        assert loss.isfinite()
    assert all(value.isfinite().all() for value in network.state_dict().values())


# Levels ---------------------------------------------------------------------------------------------------------------

LEVELS = {
    "fpnn": {2: 4, 4: 16, 8: 256},
    "qnn": {1: 2, 2: 4, 4: 16},
    "sign": {1: 2},
    "binaryconnect": {1: 2},
    "bwn": {1: 2},
    "twn": {2: 3},
    "dorefa": {1: 2, 2: 4, 4: 16, 8: 256},
}
ACTIVATION_LEVELS = {
    ("fpnn", nn.ReLU): {2: 2, 4: 8, 8: 128},
    ("fpnn", nn.Hardtanh): {2: 4, 4: 16, 8: 256},
    ("qnn", nn.ReLU): {2: 2, 4: 8, 8: 128},
    ("qnn", nn.Hardtanh): {2: 4, 4: 16, 8: 256},
    ("sign", nn.ReLU): {1: 2},
    ("sign", nn.Hardtanh): {1: 2},
    ("dorefa", nn.ReLU): {1: 2, 2: 4, 4: 16, 8: 256},
}


@pytest.mark.parametrize(
    ("name", "bits", "count"), [(name, bits, count) for name, table in LEVELS.items() for bits, count in table.items()]
)
def test_weights_have_as_many_levels_as_published(name, bits, count):
    ramp = torch.linspace(-1, 1, 10_001, dtype=torch.float64).reshape(1, -1)
    quantizer = METHODS[name].quantize_weights(bits)
    quantizer.fit(ramp)
    assert len(quantizer(ramp).unique()) == count


@pytest.mark.parametrize(
    ("name", "function", "bits", "count"),
    [(*key, bits, count) for key, table in ACTIVATION_LEVELS.items() for bits, count in table.items()],
)
def test_activations_have_as_many_levels_as_published(name, function, bits, count):
    quantizer = METHODS[name].replace_activation(function(), bits)
    ramp = torch.linspace(-3, 3, 10_001, dtype=torch.float64)
    assert len(quantizer(ramp).unique()) == quantizer.levels == count


# Lowering -------------------------------------------------------------------------------------------------------------


def check_lowered(network: nn.Sequential, images: np.ndarray) -> None:
    """A network equals its Program in float64; but for rounded coefficients, or where the method says why not."""
    obstacles = [stage.weight_quantizer.obstacle() for stage in stages(network) if stage.weight_quantizer is not None]
    if any(obstacles):
        with pytest.raises(BitwrightError) as raised:
            lower(network, SPEC, images.shape[1:])  # pyright: ignore
        assert str(obstacles[0]) in str(raised.value)
        assert one_sentence(raised.value)
        return
    result = verify(network, lower(network, SPEC, images.shape[1:]), images)  # pyright: ignore
    rounded = any(
        isinstance(stage.activation, BasisActivation) or has_coefficients(stage.weight_quantizer.encoding)
        for stage in stages(network)
        if stage.weight_quantizer is not None
    )
    *layers, last = result.activations
    if not rounded:
        assert result.mismatches == dict.fromkeys([*layers, last], 0)
    for layer in layers:  # rounding shows in all numbers of the last layer
        assert result.mismatches[layer] <= ROUNDED_SHARE * result.activations[layer], layer


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        (name, bits)
        for name, method in METHODS.items()
        for bits in dict.fromkeys([few(method.weight_bits), method.weight_bits[-1]])
    ],
)
def test_trained_networks_equal_their_programs(name, bits):
    """After some steps of training with the method, so that all that it keeps has moved."""
    method = METHODS[name]
    activations = {"activation_bits": bits} if method.activations and bits in method.activation_bits else {}
    network = quantize(convolutions(), recipe_of(name, weight_bits=bits, **activations))
    images = pixels(20)
    calibrate(network, torch.from_numpy(images).float())
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(6):
        optimizer.zero_grad()
        functional.cross_entropy(network(torch.from_numpy(images).float()), torch.arange(20) % 4).backward()
        optimizer.step()
        constrain_weights(network)
    check_lowered(network.eval(), images)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fpnn", {"scale": "network"}),
        ("qnn", {"limit": "one"}),
        ("binaryconnect", {"stochastic": True, "test": "sign"}),
        ("binaryconnect", {"stochastic": True}),
        ("twn", {"scale": "filter"}),
        ("bwn", {"gradient": "paper"}),
    ],
)
def test_options_do_not_change_that_programs_are_equal(name, options):
    scale = {"activation_options": options} if name == "fpnn" else {}
    network = quantize(convolutions().eval(), recipe_of(name, weight_options=options, **scale))
    images = pixels(10)
    calibrate(network, torch.from_numpy(images).float())
    check_lowered(network, images)
    if name == "fpnn":
        exponents = {m.exponent for m in network.modules() if isinstance(m, ActivationQuantizer)}  # pyright: ignore
        assert len(exponents) == 1
        scales = {stage.weight_codes().scale.unique().item() for stage in stages(network)}
        assert len(scales) == 1


@every
def test_stochastic_quantization_lowers_as_the_method_does(name):
    network = quantize(convolutions().eval(), recipe_of(name, stochastic={}))
    images = pixels(4)
    calibrate(network, torch.from_numpy(images).float())
    check_lowered(network, images)


# Training -------------------------------------------------------------------------------------------------------------


@every
def test_training_resumes_and_repeats_bit_for_bit(name, tmp_path, monkeypatch):
    config = training_of(name)
    result = training.train(config, tmp_path / "whole", progress=False)
    descend, steps = training.descend, 0

    def interrupted(*arguments):
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return descend(*arguments)

    monkeypatch.setattr(training, "descend", interrupted)
    with pytest.raises(training.Interrupted):
        training.train(config, tmp_path / "resumed", progress=False)
    assert Run(tmp_path / "resumed").state_path.exists()
    torch.rand(1)
    again = training.train(config, tmp_path / "resumed", progress=False)
    assert (again.validation_accuracy, again.test_accuracy) == (result.validation_accuracy, result.test_accuracy)
    ends = [load_tensors(Run(tmp_path / each).checkpoint("last")) for each in ("whole", "resumed")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    model, images = training.load_model(tmp_path / "whole"), training.Images.load(config.data)
    assert training.evaluate(model, images.test_pixels, images.test_labels) == result.test_accuracy


@pytest.fixture(scope="module")
def enlarged():
    """The digits as 28 × 28 pixels: pixels and labels of training, then of test."""
    digits: Any = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] * 255 / 16
    images = functional.interpolate(images, (28, 28), mode="bilinear").round()
    labels = torch.from_numpy(digits.target)
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def learn(network, data, epochs) -> float:
    """Train; give the accuracy on the test images."""
    pixels, labels, test_pixels, test_labels = data
    optimizer = training.make_optimizer(network, parse_config(TEXT.format(recipe=recipe_of("dorefa"))).train)
    for epoch in range(epochs):
        generator = training.seed_everything(0, epoch + 1)
        network.train()
        training.set_learning_rate(optimizer, 2e-3 * (1 - epoch / epochs))
        for batch in torch.randperm(len(labels), generator=generator)[:1344].split(64):
            training.descend(network, optimizer, pixels[batch], labels[batch])
    return training.evaluate(network, test_pixels, test_labels)


@pytest.mark.slow
@every
def test_lenet_learns_the_digits_with_few_bits(name, enlarged):
    """Two bits, or one, four or eight where the method has no two; above 90 %."""
    torch.manual_seed(0)
    model = quantize(build("lenet5", (1, 28, 28), 10), Recipe())
    if name == "clustered":  # clusters are those of trained weights
        learn(model, enlarged, 2)
    model = quantize(model, recipe_of(name))
    constrain_weights(model)
    assert learn(model, enlarged, 5) > 0.9


@every
@pytest.mark.parametrize("options", [{}, {"stochastic": {"granularity": "element"}, "gradient_bits": 4}])
def test_training_does_not_read_memory_that_was_not_written(name, options, monkeypatch):
    """With new memory full of NaN, as PyTorch fills it where it is asked to, the same bits come out."""
    monkeypatch.setattr(deterministic, "fill_uninitialized_memory", True)
    results = []
    for filled in (True, False):
        network = quantize(convolutions(), recipe_of(name, **options)).train()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        torch.use_deterministic_algorithms(filled)
        for seed in range(3):
            optimizer.zero_grad()
            torch.manual_seed(seed)
            functional.cross_entropy(network(torch.from_numpy(pixels(4, seed)).float()), torch.arange(4)).backward()
            optimizer.step()
            constrain_weights(network)
        torch.use_deterministic_algorithms(False)
        results.append(network.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
