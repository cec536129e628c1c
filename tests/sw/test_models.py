from typing import Any, cast

import pytest
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.models import MODELS, build
from bitwright.sw.stages import stages

torch.set_num_threads(1)

SHAPES = {"mlp": (1, 8, 8), "digits_cnn": (1, 8, 8), "lenet5": (1, 28, 28)} | dict.fromkeys(
    ("cnv", "vgg_small", "resnet20"), (3, 32, 32)
)
WEIGHTS = {
    "mlp": {"fc1": (64, 64), "fc2": (10, 64)},
    "digits_cnn": {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "fc1": (10, 128)},
    "lenet5": {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)},
    "cnv": {
        "conv1": (64, 3, 3, 3),
        "conv2": (64, 64, 3, 3),
        "conv3": (128, 64, 3, 3),
        "conv4": (128, 128, 3, 3),
        "conv5": (256, 128, 3, 3),
        "conv6": (256, 256, 3, 3),
        "fc1": (512, 256),
        "fc2": (512, 512),
        "fc3": (10, 512),
    },
    "vgg_small": {
        "conv1": (128, 3, 3, 3),
        "conv2": (128, 128, 3, 3),
        "conv3": (256, 128, 3, 3),
        "conv4": (256, 256, 3, 3),
        "conv5": (512, 256, 3, 3),
        "conv6": (512, 512, 3, 3),
        "fc1": (10, 8192),
    },
    "resnet20": {"conv1": (16, 3, 3, 3)}
    | {
        f"block{block}.conv{layer}": (channels, before if layer == 1 else channels, 3, 3)
        for block, channels, before in zip(
            range(1, 10), [16] * 3 + [32] * 3 + [64] * 3, [16] * 4 + [32] * 3 + [64] * 2, strict=True
        )
        for layer in (1, 2)
    }
    | {"fc1": (10, 64)},
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_and_shapes(name):
    model = build(name, SHAPES[name], 10)
    found = stages(model)
    assert {stage.name: tuple(stage.weight.shape) for stage in found} == WEIGHTS[name]
    assert all(stage.norm is not None and getattr(stage.layer, "bias", None) is None for stage in found)
    assert model.eval()(torch.rand(2, *SHAPES[name])).shape == (2, 10)


def test_resnet20_is_that_of_the_paper():
    model = build("resnet20", (3, 32, 32), 10)
    found = stages(model)
    assert len(found) == 20
    assert round(sum(stage.weight.numel() for stage in found) / 1e6, 2) == 0.27
    strides = [stage.layer.stride for stage in found if isinstance(stage.layer, nn.Conv2d)]
    assert [index for index, stride in enumerate(strides) if stride == (2, 2)] == [7, 13]
    added = {stage.name: (stage.addend_stage, stage.shortcut.stride) for stage in found if stage.shortcut}
    before = ["conv1", *(f"block{block}.conv2" for block in range(1, 9))]
    assert added == {f"block{block}.conv2": (before[block - 1], 2 if block in (4, 7) else 1) for block in range(1, 10)}
    assert isinstance(found[-1].average, nn.AvgPool2d)
    assert found[-1].average.kernel_size == (8, 8)


def test_a_block_adds_its_input_before_its_second_batch_norm():
    torch.manual_seed(0)
    block = cast("Any", build("resnet20", (3, 32, 32), 10).eval().get_submodule("block4"))
    x = torch.randn(2, 16, 7, 9)
    part = block.get_submodule
    sums = part("conv2")(part("act1")(part("bn1")(part("conv1")(x))))
    sums[:, :16] += x[:, :, ::2, ::2]
    assert torch.equal(block(x), part("act2")(part("bn2")(sums)))


def test_the_same_seed_gives_the_same_weights():
    def weights():
        torch.manual_seed(3)
        return build("digits_cnn", (1, 8, 8), 10).state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_options():
    assert [stage.weight.shape[0] for stage in stages(build("mlp", (1, 4, 4), 3, hidden=[7, 5]))] == [7, 5, 3]
    assert isinstance(build("mlp", (1, 4, 4), 3, activation="hardtanh").get_submodule("act1"), nn.Hardtanh)
    small = build("cnv", (3, 32, 32), 10, channels=[4, 8, 12], hidden=16)
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    short = build("resnet20", (1, 9, 7), 4, channels=[4, 8], blocks=2, activation="hardtanh").eval()
    assert short(torch.rand(2, 1, 9, 7)).shape == (2, 4)
    assert len(stages(short)) == 10


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("lenet", (1, 28, 28), {}, "Unknown model 'lenet'; did you mean 'lenet5'"),
        ("lenet5", (1, 8, 8), {}, "Images of 1 × 8 × 8 are too small for model 'lenet5'; use a smaller model"),
        ("mlp", (1, 8, 8), {"hiden": [4]}, "Model 'mlp' has no option 'hiden'; did you mean 'hidden'"),
        ("mlp", (1, 8, 8), {"hidden": 4}, "option hidden is 4, expected a list of positive integers"),
        ("mlp", (1, 8, 8), {"hidden": [0]}, "expected a list of positive integers"),
        ("lenet5", (1, 28, 28), {"hidden": 0}, "option hidden is 0, expected a positive integer"),
        ("mlp", (1, 8, 8), {"activation": "gelu"}, "option activation is 'gelu', expected relu or hardtanh"),
    ],
)
def test_mistakes_are_named(name, shape, options, message):
    with pytest.raises(BitwrightError, match=message):
        build(name, shape, 10, **options)
