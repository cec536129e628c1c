import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, preset
from bitwright.sim import golden
from bitwright.sw.layers import layer_numbers
from bitwright.sw.lowering import layer_shapes, lower, verify
from bitwright.sw.models import build
from bitwright.sw.quantize import Recipe, calibrate, quantize
from bitwright.sw.quantizers import ActivationQuantizer, ImageInput
from bitwright.sw.residual import QuantizedShortcut, Residual, Shortcut
from bitwright.sw.stages import execute, stages, walk

torch.set_num_threads(1)

SPEC = ArraySpec(
    rows=4,
    columns=2,
    lanes=64,
    accumulator_width=30,
    weight_depth=1 << 14,
    threshold_depth=1 << 14,
    descriptor_depth=2048,
)
METHODS = [("fixed", range(2, 9)), ("qnn", range(1, 9)), ("dorefa", range(1, 9)), ("sign", range(1, 2))]


def assert_exact(model, images, spec=SPEC, batch=1):
    program = lower(model, spec, images.shape[1:], batch=batch)
    result = verify(model, program, images)
    assert result.mismatches == dict.fromkeys(result.mismatches, 0)
    assert min(result.activations.values()) >= len(images)
    return program


# Random networks ------------------------------------------------------------------------------------------------------


def convolution(draw, channels, outputs, size, *, stride=None):
    """A convolution with any kernel, groups and dilation, and the size of its output."""
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    strides = (stride or draw(st.integers(1, 2)), stride or draw(st.integers(1, 2)))
    dilation = (draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 1, 2])))
    if stride is None:
        padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    else:  # as many pixels as a shortcut of this stride has
        kernel = tuple(taps | 1 for taps in kernel)
        padding = tuple(step * (taps // 2) for taps, step in zip(kernel, dilation, strict=True))
    groups = draw(st.sampled_from([count for count in (1, 1, 2, 3, channels) if not channels % count]))
    outputs = -(-outputs // groups) * groups
    layer = nn.Conv2d(channels, outputs, kernel, strides, padding, dilation, groups)
    axes = zip(size, padding, dilation, kernel, strides, strict=True)
    size = tuple((length + 2 * pad - step * (taps - 1) - 1) // each + 1 for length, pad, step, taps, each in axes)
    assume(min(size) >= 1)
    return layer, outputs, size


@st.composite
def networks(draw):
    """A quantized network of random parameters, and images."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    channels, *size = shape = (draw(st.sampled_from([1, 3])), draw(st.integers(4, 9)), draw(st.integers(4, 9)))
    low, high = draw(st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-0.4, 2.1)]))
    modules: list[nn.Module] = [ImageInput(8, low, high)]
    for index in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["conv", "block", "average"])) if index else "conv"
        if kind == "conv":
            pooled = draw(st.sampled_from(["no", "no", "before", "after"]))
            layer, channels, size = convolution(draw, channels, draw(st.integers(1, 9)), size)
            if min(size) < 3:
                pooled = "no"
            taps, step = draw(st.integers(2, 3)), draw(st.integers(1, 3))
            pool = nn.MaxPool2d(taps, step)
            modules += [layer, *([pool] if pooled == "before" else []), *draw(norms(channels, nn.BatchNorm2d))]
            modules += [draw(activations()), *([pool] if pooled == "after" else [])]
            if pooled != "no":
                size = tuple((length - taps) // step + 1 for length in size)
        elif kind == "block":
            stride, added = draw(st.integers(1, 2)), channels
            first, inner, middle = convolution(draw, channels, draw(st.integers(1, 9)), size, stride=stride)
            last, channels, size = convolution(draw, inner, draw(st.integers(added, max(9, added))), middle, stride=1)
            block = [first, *draw(norms(inner, nn.BatchNorm2d)), draw(activations()), last, Shortcut(stride)]
            modules.append(Residual(*block, *draw(norms(channels, nn.BatchNorm2d)), draw(activations())))
        else:
            taps, step = draw(st.integers(1, min(3, *size))), draw(st.integers(1, 3))
            size = tuple((length - taps) // step + 1 for length in size)
            modules += [nn.AvgPool2d(taps, step), *draw(norms(channels, nn.BatchNorm2d)), draw(activations())]
    if len(modules) > 1 and draw(st.booleans()):
        modules.append(nn.AdaptiveAvgPool2d(1))
        size = (1, 1)
    modules.append(nn.Flatten())
    features = channels * size[0] * size[1]
    if draw(st.booleans()):
        modules += [nn.Linear(features, 7), *draw(norms(7, nn.BatchNorm1d)), draw(activations())]
        features = 7
    modules += [nn.Linear(features, 5), *draw(norms(5, nn.BatchNorm1d))]
    model = nn.Sequential(*modules)
    layers = {stage.name: draw(layer_recipes()) for stage in stages(model)}
    layers[next(iter(layers))]["activation_bits"] = draw(st.sampled_from([8, 8, 1, 3]))
    for stage in stages(model):  # grouped convolutions store weights with offsets in one more bit
        if getattr(stage.layer, "groups", 1) > 1:
            layers[stage.name]["weight_bits"] = min(7, layers[stage.name]["weight_bits"])
    # Sign takes the place of what a ReLU or Hardtanh would be; DoReFa clips by itself, so ReLU stands for both.
    for stage in stages(model):
        if layers[stage.name]["activations"] == "dorefa" and isinstance(stage.source, nn.Hardtanh):
            parent, _, key = stage.source_name.rpartition(".")
            setattr(model.get_submodule(parent), key, nn.ReLU())
    images = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (6, *shape), np.uint8)
    network = quantize(model.eval(), Recipe(layers=layers))
    calibrate(network, torch.from_numpy(images).float())
    return network, images


@st.composite
def layer_recipes(draw):
    weights, weight_bits = draw(st.sampled_from(METHODS))
    activations, activation_bits = draw(st.sampled_from(METHODS))
    if activations in ("qnn", "fixed"):
        activation_bits = range(2, 9)
    return {
        "weights": weights,
        "weight_bits": draw(st.sampled_from(weight_bits)),
        "activations": activations,
        "activation_bits": draw(st.sampled_from(activation_bits)),
    }


@st.composite
def norms(draw, channels, kind):
    """No batch norm, or one with rising, falling and flat channels."""
    if draw(st.booleans()):
        return []
    norm = kind(channels, affine=draw(st.integers(0, 5)) > 0)
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.05, 2)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, 0, 0.4)
        with torch.no_grad():
            norm.weight[torch.rand(channels) < 0.2] = 0
    return [norm]


@st.composite
def activations(draw):
    return draw(st.sampled_from([nn.ReLU, nn.Hardtanh]))()


@given(networks())
@settings(max_examples=60, deadline=None)
def test_any_network_equals_float64(case):
    network, images = case
    assert_exact(network, images)


def randomize(model):
    """Batch norms with rising and falling channels."""
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)


@pytest.mark.parametrize("activations", ["fixed", "dorefa", "sign"])
@pytest.mark.parametrize(("weights", "bits"), [(name, bits) for name, offered in METHODS for bits in offered])
def test_every_encoding_equals_float64(weights, bits, activations):
    torch.manual_seed(bits)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 4),
    )  # fmt: skip
    randomize(model)
    images = np.random.default_rng(bits).integers(0, 256, (10, 2, 8, 8), np.uint8)
    activation_bits = 1 if activations == "sign" else max(2, bits)
    recipe = Recipe(weights=weights, weight_bits=bits, activations=activations, activation_bits=activation_bits)
    network = quantize(model.eval(), recipe)
    calibrate(network, torch.from_numpy(images).float())
    assert_exact(network, images)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_ties_go_where_the_quantizer_sends_them(activation, bits):
    """With powers of two for all scales float64 is exact, and many values lie on a boundary."""
    torch.manual_seed(bits)
    model = nn.Sequential(
        ImageInput(8, 0.0, 255 / 256), nn.Conv2d(1, 6, 2, bias=False), activation(),
        nn.Conv2d(6, 6, 2, padding=1, bias=False), nn.MaxPool2d(2), activation(),
        nn.Flatten(), nn.Linear(6 * 16, 6, bias=False), activation(), nn.Linear(6, 3, bias=False),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 8, (50, 1, 8, 8), np.uint8) * np.uint8(32)
    recipe = Recipe(weights="fixed", weight_bits=bits, activations="fixed", activation_bits=bits)
    network = quantize(model, recipe)
    calibrate(network, torch.from_numpy(images).float())
    assert ties(network, images) > 100
    assert_exact(network, images)


def ties(network, images):
    """Values exactly on a boundary of their activation."""
    count = 0

    def hook(module, inputs):
        nonlocal count
        for boundary in module.boundaries():
            count += int((inputs[0] == float(boundary.value)).sum())

    network = network.double()
    hooks = [module.register_forward_pre_hook(hook) for module in network if hasattr(module, "boundaries")]
    network(torch.from_numpy(images).double())
    for handle in hooks:
        handle.remove()
    return count


def test_values_equal_to_the_mean_of_a_batch_norm_fall_where_float64_lets_them():
    """Such a value is left with the rounding error of ``beta - factor * mean``: the sign of it is the activation."""
    torch.manual_seed(0)
    channels = 64
    model = nn.Sequential(
        ImageInput(8, 0.0, 255.0), nn.Conv2d(1, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * channels, 3),
    )  # fmt: skip
    norm: Any = model[2]
    signs = torch.where(model.get_parameter("1.weight").flatten() >= 0, 1, -1)
    norm.running_mean.copy_(torch.arange(channels) * signs)
    norm.running_var.uniform_(0.1, 3)
    nn.init.normal_(norm.weight)
    network = quantize(model.eval(), Recipe(weights="sign", weight_bits=1, activations="sign", activation_bits=1))
    images = np.arange(channels, dtype=np.uint8).reshape(-1, 1, 2, 2)
    assert_exact(network, images)


@pytest.mark.parametrize(
    ("weights", "weight_bits", "activations", "activation_bits"),
    [("dorefa", 2, "dorefa", 2), ("fixed", 4, "fixed", 4), ("sign", 1, "sign", 1)],
)
def test_a_trained_network_equals_float64_on_its_whole_test_set(weights, weight_bits, activations, activation_bits):
    torch.manual_seed(0)
    digits: Any = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10),
    )  # fmt: skip
    recipe = Recipe(
        weights=weights, weight_bits=weight_bits, activations=activations, activation_bits=activation_bits,
    )  # fmt: skip
    network = quantize(model, recipe)
    train_images = torch.from_numpy(images[:1300]).float()
    calibrate(network, train_images[:300])
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for step in range(120):
        batch = torch.randint(0, 1300, (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(network(train_images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    program = assert_exact(network, images[1300:], preset("demo"), batch=1)
    runs = golden.execute(program, images[1300:], cycles=False)
    logits = program.logits(np.concatenate([run.accumulators for run in runs]))
    accuracy = (logits.argmax(1) == digits.target[1300:]).mean()
    assert accuracy > 0.75
    outputs = network.double().eval()(torch.from_numpy(images[1300:]).double()).detach().numpy()
    np.testing.assert_allclose(logits, outputs, atol=1e-9)


# Networks of the literature -------------------------------------------------------------------------------------------

ROOMY = dataclasses.replace(
    SPEC,
    rows=8,
    columns=8,
    activation_depth=1 << 15,
    weight_depth=1 << 16,
    threshold_depth=1 << 15,
    descriptor_depth=1 << 13,
    window_depth=1 << 10,
    row_tiles_max=256,
)


def random_bits(model, rng):
    """Any method and any of its bits for every layer: 1 to 8 occur in both operands."""
    layers = {}
    for stage in stages(model):
        weights, weight_bits = METHODS[rng.integers(len(METHODS))]
        activations, activation_bits = METHODS[rng.integers(len(METHODS))]
        offered = [bits for bits in activation_bits if bits > 1 or activations not in ("fixed", "qnn")]
        layers[stage.name] = {
            "weights": weights,
            "weight_bits": int(rng.choice(weight_bits)),
            "activations": activations,
            "activation_bits": int(rng.choice(offered)),
        }
    layers[stages(model)[0].name]["activation_bits"] = 8
    return layers


def calibrated(name, in_shape, recipe, images, **options):
    """A network whose batch norms have statistics of its own values and random gains, so that all codes occur."""
    torch.manual_seed(0)
    network = quantize(build(name, in_shape, 10, **options), recipe).eval()
    values = (images,)
    with torch.no_grad():
        for _, module in walk(network):
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                found = values[0].transpose(0, 1).flatten(1)
                module.running_mean, module.running_var = found.mean(1), found.var(1) + 0.1
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias, 0.3, 0.3)
            elif isinstance(module, ActivationQuantizer):
                module.fit(values[0])
            elif isinstance(module, QuantizedShortcut):
                module.fit()
            values = execute([module], values)
    return network


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "in_shape"), [("resnet20", (3, 32, 32)), ("lenet5", (1, 28, 28)), ("cnv", (3, 32, 32))]
)
def test_networks_of_mixed_bits_equal_float64(name, in_shape, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (6, *in_shape), np.uint8)
    options = {"channels": [16, 24, 32], "hidden": 40} if name == "cnv" else {}
    model = build(name, in_shape, 10, **options)
    recipe = Recipe(layers=random_bits(model, rng))
    network = calibrated(name, in_shape, recipe, torch.from_numpy(images).float(), **options)
    program = assert_exact(network, images[:2], ROOMY)
    (stages_of_six,) = golden.network_values(program, images)
    for info, codes in zip(program.layers[:-1], stages_of_six[1:], strict=False):
        assert len(np.unique(codes)) >= 1 << max(1, info.output_planes - 3), info.name
    if name == "resnet20":
        found = [layer["weight_bits"] for layer in recipe.layers.values()]
        assert {1, 8} <= set(found)
        assert sum(info.residual_source is not None for info in program.layers) == 9


def test_a_shortcut_may_count_less_than_the_sum_it_is_added_to():
    """A coarse sum of fine codes: the exponent is negative, and the accumulators count in the addend's units."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(),
        Residual(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1, bias=False), Shortcut(), nn.ReLU()),
        nn.Flatten(), nn.Linear(5 * 16, 3),
    )  # fmt: skip
    layers = {"2.0": {"activation_bits": 8}, "2.2": {"activation_bits": 2, "weight_bits": 2}}
    network = quantize(model.eval(), Recipe(weight_bits=4, activation_bits=4, layers=layers))
    network.get_submodule("2.2").parametrizations.weight.original.data.mul_(8)  # pyright: ignore
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6), np.uint8)
    calibrate(network, torch.from_numpy(images).float())
    shortcut = stages(network)[2].shortcut
    assert shortcut is not None
    assert shortcut.exponent < 0  # pyright: ignore[reportOperatorIssue]
    program = assert_exact(network, images)
    residual = layer_shapes(network, (1, 6, 6))[2].residual
    assert residual is not None
    assert residual.shift == shortcut.exponent
    assert len(program.layers) == 4


@pytest.mark.parametrize("kernel", [(2, 2), (4, 4), (2, 4)])
def test_averages_before_a_fully_connected_layer_are_part_of_its_weights(kernel):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(kernel), nn.Flatten(),
        nn.Linear(3 * 16 // (kernel[0] * kernel[1]), 4), nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip
    network = quantize(model.eval(), Recipe(weight_bits=3, activation_bits=3))
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6), np.uint8)
    calibrate(network, torch.from_numpy(images).float())
    program = assert_exact(network, images)
    assert [info.name for info in program.layers] == ["0", "4", "6"]
    assert program.layers[1].in_shape == (3, 4, 4)
    assert program.layers[1].fan_in == 48


def test_an_average_pooling_between_layers_is_a_depthwise_convolution_of_one_plane():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AvgPool2d(3, 2), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2, 2),
    )  # fmt: skip
    network = quantize(model.eval(), Recipe(weight_bits=3, activation_bits=4))
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 9, 11), np.uint8)
    calibrate(network, torch.from_numpy(images).float())
    program = assert_exact(network, images)
    averages = [info for info in program.layers if info.weight_encoding == "unsigned"]
    assert [(info.groups, info.kernel, info.stride, info.weight_planes) for info in averages] == [
        (6, (3, 3), (2, 2), 1),
        (2, (3, 4), (1, 1), 1),
    ]


# Mistakes -------------------------------------------------------------------------------------------------------------


def small(**recipe: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(1, 4, 3, bias=False))
    model.add_module("bn1", nn.BatchNorm2d(4))
    model.add_module("act1", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module("fc1", nn.Linear(4 * 16, 3))
    return quantize(model.eval(), Recipe(**{"weight_bits": 4, "activation_bits": 4, **recipe}))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"weight_bits": None}, "'conv1' has float weights"),
        ({"layers": {"fc1": {"weight_bits": None}}}, "'fc1' has float weights"),
        ({"activation_bits": None}, "'conv1' is followed by a ReLU in float"),
    ],
)
def test_float_layers_are_named(recipe, message):
    with pytest.raises(BitwrightError, match=message):
        lower(small(**recipe), SPEC, (1, 6, 6))


@pytest.mark.parametrize(
    ("in_shape", "message"),
    [
        ((2, 6, 6), "'conv1' takes 1 input channels, its input of 2 × 6 × 6 has 2"),
        ((1, 7, 6), "'fc1' takes 64 input features, its input of 4 × 5 × 4 has 80"),
        ((1, 2, 2), "'conv1'.*too small"),
    ],
)
def test_images_of_another_shape_are_named(in_shape, message):
    with pytest.raises(BitwrightError, match=message):
        lower(small(), SPEC, in_shape)


def test_narrow_accumulators_are_refused_with_what_is_needed():
    network = small(activation_bits=8)
    program = lower(network, dataclasses.replace(SPEC, accumulator_width=18), (1, 6, 6))
    assert len(program.layers) == 2
    widest = [stage.weight_codes().integers.abs().flatten(1).sum(1).max() for stage in stages(network)]
    # The greatest code of the image is 255, that of an 8-bit ReLU 127.
    needed = max(int(widest[0]) * 255, int(widest[1]) * 127).bit_length() + 1
    with pytest.raises(BitwrightError, match=rf"needs accumulators of \d+ bits, this array has {needed - 3}"):
        lower(network, dataclasses.replace(SPEC, accumulator_width=needed - 3), (1, 6, 6))
    assert_exact(network, np.full((1, 1, 6, 6), 255, np.uint8), dataclasses.replace(SPEC, accumulator_width=needed))


def test_numbers_that_are_not_finite_are_refused():
    network = small()
    network.bn1.running_mean[1] = torch.nan
    with pytest.raises(BitwrightError, match="'conv1' or its batch norm has a parameter that is NaN"):
        lower(network, SPEC, (1, 6, 6))
    network = small()
    network.conv1.parametrizations.weight.original.data[0] = torch.inf
    with pytest.raises(BitwrightError, match=r"'conv1'.*NaN or infinite"):
        lower(network, SPEC, (1, 6, 6))


def test_too_small_memories_name_the_layer():
    with pytest.raises(BitwrightError, match=r"'fc1' needs \d+ words of weights"):
        lower(small(), dataclasses.replace(SPEC, weight_depth=4), (1, 6, 6))


def test_an_all_zero_channel_has_a_constant_code():
    network = small()
    network.conv1.parametrizations.weight.original.data[0] = 0
    network.bn1.bias.data[0] = 0.4
    assert_exact(network, np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6), np.uint8))


def test_lowering_leaves_the_network_as_it_was():
    network = small().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    program = lower(network, SPEC, (1, 6, 6), meta={"name": "small"})
    verify(network, program, np.zeros((2, 1, 6, 6), np.uint8))
    assert network.training
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert program.meta == {"name": "small"}
    assert not network.conv1._forward_pre_hooks


def test_a_wrong_program_is_found_out():
    network = small()
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6), np.uint8)
    program = lower(network, SPEC, (1, 6, 6))
    thresholds = program.thresholds.copy()
    thresholds[:, : 2**3 - 1] = (1 << SPEC.accumulator_width - 1) - 1
    done: list[int] = []
    changed = dataclasses.replace(program, thresholds=thresholds)
    result = verify(network, changed, images, at_once=2, progress=done.append)
    assert result.mismatches["conv1"] > 0
    assert result.activations == {"conv1": 5 * 4 * 16, "fc1": 15}
    assert done == [2, 2, 1]
    weights = program.weights.copy()
    weights[:, -3:] ^= 1
    result = verify(network, dataclasses.replace(program, weights=weights), images)
    assert result.mismatches["conv1"] == 0
    assert result.mismatches["fc1"] > 0


@pytest.mark.parametrize(
    ("pool", "size", "message"),
    [
        (nn.AvgPool2d(3), 7, "'4' averages 3 × 3 pixels at stride 3 × 3 of 5 × 5, expected windows side by side"),
        (nn.AvgPool2d(3, 2), 7, "'4' averages 3 × 3 pixels at stride 2 × 2 of 5 × 5, expected windows side by side"),
        (nn.AvgPool2d(5), 9, "'4' averages 5 × 5 pixels at stride 5 × 5 of 7 × 7"),
        (nn.AvgPool2d(3), 8, "'4' takes 3 input features, its input of 3 × 6 × 6 has 12"),
    ],
)
def test_averages_that_are_no_weights_are_named(pool, size, message):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(BitwrightError, match=message):
        layer_shapes(quantize(model, Recipe(weight_bits=3, activation_bits=3)), (1, size, size))


def test_a_shortcut_in_float_is_named():
    layers = {"block1.conv1": {"activation_bits": None}}
    network = quantize(
        build("resnet20", (1, 8, 8), 3, channels=[4], blocks=1),
        Recipe(weight_bits=3, activation_bits=3, layers=layers),
    )
    with pytest.raises(BitwrightError, match="'conv1' is followed by a ReLU in float"):
        layer_shapes(network, (1, 8, 8))


def test_a_shortcut_needs_accumulators_for_what_it_adds():
    network = (
        quantize(build("resnet20", (1, 8, 8), 3, channels=[4], blocks=1), Recipe(weight_bits=3, activation_bits=3))
        .double()
        .eval()
    )
    shapes = layer_shapes(network, (1, 8, 8))
    stage, shape = stages(network)[2], shapes[2]
    with_addend = layer_numbers(stage, shape, SPEC)
    without = layer_numbers(stage, dataclasses.replace(shape, residual=None), SPEC)
    assert shape.residual is not None
    added = 3 << shape.residual.shift
    assert [high - added for high in with_addend.high] == without.high
    assert with_addend.low == without.low
    needed = max(with_addend.high).bit_length() + 1
    with pytest.raises(BitwrightError, match=rf"'block1.conv2' needs accumulators of {needed} bits"):
        layer_numbers(stage, shape, dataclasses.replace(SPEC, accumulator_width=needed - 1))


def test_shapes_are_known_without_lowering():
    shapes = layer_shapes(small(), (1, 6, 6))
    assert [shape.name for shape in shapes] == ["conv1", "fc1"]
    assert [shape.in_shape for shape in shapes] == [(1, 6, 6), (4, 4, 4)]
    assert [shape.output_planes for shape in shapes] == [3, None]
