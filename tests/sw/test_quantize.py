import copy
import io
from collections import OrderedDict
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

from bitwright.hw.errors import BitwrightError
from bitwright.sw.models import build
from bitwright.sw.quantize import (
    PaddedConv2d,
    Recipe,
    bit_assignment,
    calibrate,
    constrain_weights,
    quantize,
    summary,
)
from bitwright.sw.quantizers import METHODS, ActivationQuantizer, ImageInput, Method
from bitwright.sw.quantizers.dorefa import DoReFaActivation
from bitwright.sw.quantizers.fpnn import FixedHardtanh, FixedReLU
from bitwright.sw.quantizers.sign import Sign
from bitwright.sw.residual import QuantizedShortcut, Residual, Shortcut
from bitwright.sw.stages import stages

torch.set_num_threads(1)

RECIPES = {
    "fpnn": Recipe(weights="fpnn", weight_bits=4, activations="fpnn", activation_bits=4),
    "qnn": Recipe(weights="qnn", weight_bits=3, activations="qnn", activation_bits=3),
    "sign": Recipe(weights="sign", weight_bits=1, activations="sign", activation_bits=1),
    "dorefa": Recipe(weights="dorefa", weight_bits=2, activations="dorefa", activation_bits=2),
    "dorefa1": Recipe(weights="dorefa", weight_bits=1, activations="dorefa", activation_bits=1, input_bits=4),
}


def recipe_of(method: Method) -> Recipe:
    """Two bits, or the fewest that the method has."""
    activations = method if method.activations else METHODS["dorefa"]
    weight_bits, activation_bits = (
        2 if 2 in offered else offered[0] for offered in (method.weight_bits, activations.activation_bits)
    )
    return Recipe(
        weights=method.name, weight_bits=weight_bits, activations=activations.name, activation_bits=activation_bits
    )


ALL = {name: recipe_of(method) for name, method in METHODS.items()} | RECIPES
"""Recipes of every method; those of ``RECIPES`` have one scale for each channel."""


def pixels(shape, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def trained_like(model):
    """Give batch norms statistics and gains as training does, with both signs and a zero."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for parameter, low, high in ((module.weight, -1, 2), (module.bias, -0.5, 0.5)):
                parameter.data.uniform_(low, high, generator=generator)
            module.weight.data[0] = 0
            state = module.state_dict()
            state["running_mean"].uniform_(-0.2, 0.2, generator=generator)
            state["running_var"].uniform_(0.1, 1.0, generator=generator)
    return model.eval()


def small_cnn(activation="relu"):
    torch.manual_seed(1)
    return build("digits_cnn", (1, 8, 8), 10, channels=[4, 6], activation=activation)


# What a quantized network computes ------------------------------------------------------------------------------------


def reference(network, image):
    """Evaluate stage by stage from codes, integers and scales alone, in float64."""

    def values_of(source, codes):
        return codes.double() * float(source.step()) + float(source.offset())

    codes, outputs = network[0].codes(image), {}
    for stage in stages(network):
        source, layer = cast("Any", stage.source), stage.layer
        values = values_of(source, codes)
        if stage.average is not None:
            values = stage.average(values)
        if not stage.weighted:
            values = layer(values)
        else:
            weight = stage.weight_codes()
            integers = weight.integers.double() * weight.scale.reshape(-1, *[1] * (weight.integers.dim() - 1))
            if isinstance(layer, nn.Conv2d):
                top, side = cast("tuple[int, int]", layer.padding)
                values = functional.pad(values, (side, side, top, top), value=float(source.offset()))
                options = layer.stride, 0, layer.dilation, layer.groups
                values = functional.conv2d(values, integers, layer.bias, *options)
            else:
                values = functional.linear(values.flatten(1), integers, cast("Any", layer).bias)
        if stage.shortcut is not None:
            addend = cast("Any", stage.addend)
            added = values_of(addend, outputs[stage.addend_stage])[
                :, :, :: stage.shortcut.stride, :: stage.shortcut.stride
            ]
            power = 2.0 ** cast("Any", stage.shortcut).exponent
            factor = stage.weight_codes().scale * power * float(source.step() / addend.step())
            values[:, : added.shape[1]] += factor[: added.shape[1], None, None] * added
        if stage.pool is not None and stage.pool_first:
            values = stage.pool(values)
        if stage.norm is not None:
            values = stage.norm(values)
        if stage.activation is None:
            return values
        codes = cast("ActivationQuantizer", stage.activation).codes(values)
        if stage.pool is not None and not stage.pool_first:
            codes = stage.pool(codes.double()).long()
        outputs[stage.name] = codes
    raise AssertionError


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("activation", ["relu", "hardtanh"])
def test_network_equals_its_integers(recipe, activation):
    if activation == "hardtanh" and recipe.activations == "dorefa":
        return
    network = quantize(trained_like(small_cnn(activation)), recipe).double()
    image = pixels((1, 8, 8), 6)
    calibrate(network, image)
    scores = network(image)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, reference(network, image), rtol=1e-12, atol=1e-12)


def user_model():
    """Nested, unnamed in part, pooling in all three places, dropout, bias, stride, a non-square kernel."""
    torch.manual_seed(2)
    block = nn.Sequential(nn.Conv2d(2, 5, (3, 2), stride=(1, 2), padding=(1, 0)), nn.BatchNorm2d(5), nn.MaxPool2d(2))
    features: OrderedDict[str, nn.Module] = OrderedDict(
        stem=block, act=nn.ReLU(), mix=nn.Conv2d(5, 4, 1), relu=nn.ReLU(), pool=nn.MaxPool2d(3, 1)
    )
    head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(24, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 3))
    return nn.Sequential(OrderedDict(features=nn.Sequential(features), head=head))


def test_models_of_users():
    model = trained_like(user_model())
    before = copy.deepcopy(model.state_dict())
    network = quantize(model, RECIPES["fpnn"]).double()
    names = [stage.name for stage in stages(network)]
    assert names == ["features.stem.0", "features.mix", "head.2", "head.5"]
    assert [stage.pool_first for stage in stages(network)] == [False, False, False, False]
    assert [stage.flattened for stage in stages(network)] == [False, False, True, False]
    image = pixels((2, 10, 16))
    calibrate(network, image)
    torch.testing.assert_close(network(image), reference(network, image), rtol=1e-12, atol=1e-12)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(isinstance(module, ActivationQuantizer) for module in model.modules())


def every_kind(activation: type[nn.Module] = nn.ReLU):
    """Depthwise and grouped convolutions, dilation, a residual block, average pooling as a layer and within one."""
    torch.manual_seed(3)
    norm = nn.BatchNorm2d
    part = Residual(
        OrderedDict(
            a=nn.Conv2d(4, 8, 3, 2, 1, groups=2), norm=norm(8), act=activation(),
            b=nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False),
            add=Shortcut(2), bn=norm(8), end=activation(),
        )
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=(1, 2)), norm(4), activation(), part, nn.AvgPool2d(2, 1), activation(),
        nn.Conv2d(8, 6, 1), norm(6), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh])
def test_every_kind_of_layer_equals_its_integers(recipe, activation):
    if activation is nn.Hardtanh and recipe.activations == "dorefa":
        return
    network = quantize(trained_like(every_kind(activation)), recipe).double()
    image = pixels((1, 12, 10), 6)
    calibrate(network, image)
    assert isinstance(network.get_submodule("3.add"), QuantizedShortcut)
    scores = network(image)
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, reference(network, image), rtol=1e-12, atol=1e-12)


def test_average_pooling_has_input_bits_only():
    network = quantize(every_kind(), Recipe(weight_bits=4, activation_bits=4, layers={"4": {"activation_bits": 3}}))
    row = bit_assignment(network)[3]
    assert row == {"name": "4"} | dict.fromkeys(("weight_bits", "weight_planes", "encoding")) | {
        "input_bits": 3,
        "input_planes": 2,
    }
    assert "4 average none none none 3 2 0.0" in [" ".join(line.split()) for line in summary(network).splitlines()]


def test_names_are_kept_and_input_comes_first():
    network = quantize(small_cnn(), RECIPES["fpnn"])
    assert list(network._modules) == ["input", *small_cnn()._modules]
    assert isinstance(network.get_submodule("act1"), FixedReLU)
    assert isinstance(network.get_submodule("input"), ImageInput)


def test_without_bits_the_network_is_the_float_network():
    model = trained_like(small_cnn())
    image = pixels((1, 8, 8))
    network = quantize(model, Recipe())
    torch.testing.assert_close(network(image), model(image / 255))
    assert [row["weight_bits"] for row in bit_assignment(network)] == [None] * 3
    again = quantize(network, RECIPES["dorefa"])  # a float network that takes pixels is as good
    direct = quantize(model, RECIPES["dorefa"])
    assert torch.equal(again(image), direct(image))


def test_training_mode_is_kept():
    assert quantize(small_cnn().train(), RECIPES["fpnn"]).training
    assert not quantize(small_cnn().eval(), RECIPES["fpnn"]).training


def test_double_precision_all_the_way():
    network = quantize(small_cnn().double(), RECIPES["sign"])
    assert network(pixels((1, 8, 8))).dtype == torch.float64
    assert all(stage.weight_codes().scale.dtype == torch.float64 for stage in stages(network))


# Padding --------------------------------------------------------------------------------------------------------------


def test_padding_holds_the_value_of_code_zero():
    network = quantize(small_cnn(), RECIPES["sign"])
    first, second, _ = (stage.layer for stage in stages(network))
    assert not isinstance(first, PaddedConv2d)  # the image begins at 0
    assert isinstance(second, PaddedConv2d)
    x = torch.ones(1, 4, 4, 4)
    expected = functional.conv2d(functional.pad(x, (1, 1, 1, 1), value=-1.0), second.weight)
    assert torch.equal(second(x), expected)


def test_padding_follows_calibration_also_in_a_copy():
    network = quantize(small_cnn("hardtanh"), RECIPES["fpnn"])
    twin = copy.deepcopy(network)
    quantizer, convolution = twin.get_submodule("act1"), twin.get_submodule("conv2")
    assert isinstance(quantizer, FixedHardtanh)
    quantizer.exponent = 3
    expected = functional.conv2d(torch.full((1, 4, 3, 3), -8.0), convolution.weight)  # pyright: ignore
    assert torch.equal(convolution(torch.full((1, 4, 1, 1), -8.0)), expected)
    assert network.get_submodule("act1").state_dict()["_extra_state"].tolist() == [4, 0]


def test_images_that_do_not_begin_at_zero():
    torch.manual_seed(0)
    model = nn.Sequential(
        ImageInput(8, -1.0, 1.0), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )
    network = quantize(model, Recipe(weight_bits=4, activation_bits=4, input_bits=2)).double()
    source = network.get_submodule("0")
    assert isinstance(source, ImageInput)
    assert (source.bits, source.low, source.high) == (2, -1.0, 1.0)
    assert isinstance(network.get_submodule("1"), PaddedConv2d)
    image = pixels((1, 2, 2))
    torch.testing.assert_close(network(image), reference(network, image), rtol=1e-12, atol=1e-12)


# Recipes --------------------------------------------------------------------------------------------------------------


def test_exceptions_by_name_and_glob():
    layers = {
        "conv*": {"weight_bits": 8},
        "conv2": {"weights": "dorefa", "weight_bits": 2, "activation_bits": 3},
        "fc1": {"weight_bits": None, "activations": "dorefa", "activation_bits": 1},
    }
    network = quantize(small_cnn(), Recipe(weight_bits=4, activation_bits=4, input_bits=6, layers=layers))
    rows = {row.pop("name"): row for row in bit_assignment(network)}
    keys = "weight_bits", "weight_planes", "encoding", "input_bits", "input_planes"
    assert tuple(rows["conv1"][key] for key in keys) == (8, 8, "signed", 6, 6)
    assert tuple(rows["conv2"][key] for key in keys) == (2, 2, "odd", 3, 2)
    assert tuple(rows["fc1"][key] for key in keys) == (None, None, None, 1, 1)
    assert isinstance(network.get_submodule("act2"), DoReFaActivation)


def test_the_first_layer_reads_the_image():
    network = quantize(small_cnn(), Recipe(layers={"conv1": {"activation_bits": 3}}))
    assert bit_assignment(network)[0]["input_bits"] == 3
    assert bit_assignment(quantize(small_cnn(), Recipe(input_bits=None)))[0]["input_bits"] == 8


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_any_assignment_is_what_the_recipe_says(data):
    bits = st.none() | st.integers(2, 8)
    layers = {
        name: {"weight_bits": data.draw(bits), "activation_bits": data.draw(bits)} for name in ("conv1", "conv2", "fc1")
    }
    table = bit_assignment(quantize(small_cnn(), Recipe(layers=layers)))
    for row in table:
        wanted = layers[row["name"]]
        assert row["weight_bits"] == wanted["weight_bits"]
        assert row["input_bits"] == (wanted["activation_bits"] or (8 if row["name"] == "conv1" else None))


def test_quantizers_given_as_objects_stay():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), Sign(), nn.Linear(3, 2))
    network = quantize(model, RECIPES["fpnn"])
    assert isinstance(network.get_submodule("2"), Sign)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            Recipe(layers={"conv3": {"weight_bits": 2}}),
            "names layer 'conv3', which the model does not have; did you mean 'conv",
        ),
        (Recipe(layers={"*x*": {}}), "names layer '*x*', which the model does not have; known are conv1, conv2, fc1."),
        (Recipe(layers={"fc1": {"weight_bit": 2}}), "has the key 'weight_bit' for 'fc1'; did you mean 'weight_bits'?"),
        (Recipe(weights="dorfa"), "Unknown quantization method 'dorfa'; did you mean 'dorefa'?"),
        (Recipe(weight_bits=9), "Layer 'conv1': FPNNWeight takes 2 to 8 bits, found 9."),
        (Recipe(layers={"fc1": {"activation_bits": 9}}), "Layer 'act2': FixedReLU takes 2 to 8 bits, found 9."),
        (Recipe(input_bits=9), "ImageInput takes 1 to 8 bits, found 9."),
    ],
)
def test_mistakes_in_recipes_are_named(recipe, message):
    with pytest.raises(BitwrightError) as raised:
        quantize(small_cnn(), recipe)
    assert message in str(raised.value)


# What is not supported ------------------------------------------------------------------------------------------------


def test_shared_layers_and_names_in_use():
    convolution = nn.Conv2d(1, 2, 3)
    with pytest.raises(BitwrightError, match="Layer 'c' is the same module as 'a'"):
        quantize(nn.Sequential(OrderedDict(a=convolution, b=nn.ReLU(), c=convolution)), Recipe())
    with pytest.raises(BitwrightError, match="Layer 'input' has the name of the image input; rename it"):
        quantize(nn.Sequential(OrderedDict(input=convolution)), Recipe())


def test_quantized_models_and_weights_that_are_not_finite():
    with pytest.raises(BitwrightError, match="Layer 'conv1' is already parametrized; quantize the float model instead"):
        quantize(quantize(small_cnn(), RECIPES["fpnn"]), RECIPES["fpnn"])
    model = small_cnn()
    stages(model)[1].real_weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(BitwrightError, match="Layer 'conv2' has weights that are NaN or infinite"):
        quantize(model, RECIPES["fpnn"])
    with pytest.raises(BitwrightError, match="weights of layer 'conv1' are not quantized"):
        stages(small_cnn())[0].weight_codes()


def test_activation_functions_that_a_method_does_not_quantize():
    with pytest.raises(BitwrightError, match="Layer 'act1': Method 'dorefa' does not quantize Hardtanh, expected ReLU"):
        quantize(small_cnn("hardtanh"), RECIPES["dorefa"])


# State, calibration, training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("container", ["torch", "safetensors"])
def test_state_dict_round_trip(name, container):
    image = pixels((1, 8, 8))
    network = quantize(trained_like(small_cnn()), ALL[name])
    calibrate(network, image)
    torch.manual_seed(9)
    fresh = quantize(build("digits_cnn", (1, 8, 8), 10, channels=[4, 6]), ALL[name]).eval()
    if container == "torch":
        file = io.BytesIO()
        torch.save(network.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    else:
        state = load(save({key: value.clone() for key, value in network.state_dict().items()}))
    fresh.load_state_dict(state)
    assert torch.equal(fresh(image), network(image))
    assert state["conv1.parametrizations.weight.0._extra_state"][0] == ALL[name].weight_bits


@pytest.mark.parametrize("name", ALL)
def test_quantization_is_deterministic(name):
    image = pixels((1, 8, 8))
    first, second = (quantize(trained_like(small_cnn()), ALL[name]) for _ in range(2))
    assert torch.equal(first(image), second(image))


def test_calibration_goes_from_first_to_last():
    image = pixels((1, 8, 8), 32)
    network = quantize(trained_like(small_cnn()), Recipe(weight_bits=8, activation_bits=8)).train()
    calibrate(network, image)
    assert network.training
    network.eval()
    values = image
    for module in network:
        if isinstance(module, FixedReLU):
            positive = values[values > 0]
            covered = (positive <= 2.0**module.exponent).double().mean()
            assert covered >= 0.999
            assert (positive <= 2.0 ** (module.exponent - 1)).double().mean() < 0.999
        values = module(values)
    statistics = network.get_submodule("bn1").num_batches_tracked
    assert statistics == 0  # calibration does not train


def test_clipping_after_an_update():
    for name, limit in (("sign", 1.0), ("qnn", None), ("dorefa", 9.0), ("fpnn", 9.0)):
        network = quantize(small_cnn(), ALL[name])
        stage = stages(network)[1]
        assert stage.weight_quantizer is not None
        stage.real_weight.data.fill_(9.0)
        constrain_weights(network)
        limit = limit or stage.weight_quantizer.limit()
        assert limit in (9.0, 1.0, 0.25, 0.5)
        assert torch.all(stage.real_weight == limit)


@pytest.mark.parametrize("name", ALL)
def test_training_lowers_the_loss(name):
    torch.manual_seed(0)
    network = quantize(small_cnn(), ALL[name]).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    image, labels = pixels((1, 8, 8), 32), torch.arange(32) % 10
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(image), labels)
        loss.backward()
        optimizer.step()
        constrain_weights(network)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_summary():
    lines = [" ".join(line.split()) for line in summary(quantize(small_cnn(), RECIPES["fpnn"])).splitlines()]
    assert lines[0] == "layer kind weights weight bits encoding input bits input planes kbit"
    assert lines[2] == "conv2 conv 6 × 4 × 3 × 3 4 signed 4 3 0.9"
    assert "float" in summary(small_cnn())


def test_calibration_names_the_layer_that_does_not_fit():
    network = quantize(small_cnn(), RECIPES["fpnn"])
    with pytest.raises(BitwrightError, match=r"Layer '\w+' does not take values of shape .*; correct the layer"):
        calibrate(network, pixels((1, 5, 5), 3))
    infinite = small_cnn()
    cast(Any, stages(infinite)[0].norm).bias.data.fill_(float("inf"))
    with pytest.raises(BitwrightError, match=r"Layer '\w+' reads values that are NaN or infinite"):
        calibrate(quantize(infinite, RECIPES["fpnn"]), pixels((1, 8, 8), 3))
