from collections import OrderedDict

import pytest
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers import ImageInput
from bitwright.sw.residual import Residual, Shortcut
from bitwright.sw.stages import execute, stages, walk

torch.set_num_threads(1)


def network():
    """Blocks within blocks, average pooling as a layer and within one."""
    torch.manual_seed(0)
    inner = Residual(OrderedDict(a=nn.Conv2d(4, 4, 3, padding=1), add=Shortcut(), act=nn.ReLU()))
    outer = Residual(
        OrderedDict(
            first=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
            block=inner,
            last=nn.Conv2d(4, 6, 3, 2, 1),
            add=Shortcut(2),
            act=nn.ReLU(),
        )
    )
    tail: OrderedDict[str, nn.Module] = OrderedDict(
        pool=nn.AvgPool2d(3, 2), round=nn.ReLU(), average=nn.AvgPool2d(2), flat=nn.Flatten(), fc=nn.Linear(6, 3)
    )
    head: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(2, 4, 3), bn=nn.BatchNorm2d(4), act=nn.ReLU())
    return nn.Sequential(head | {"outer": outer} | tail).eval()


def test_stages_of_blocks_and_averages():
    found = {stage.name: stage for stage in stages(network())}
    assert list(found) == ["conv", "outer.first.0", "outer.block.a", "outer.last", "pool", "fc"]
    assert {name: (stage.shortcut_name, stage.addend_stage) for name, stage in found.items() if stage.shortcut} == {
        "outer.block.a": ("outer.block.add", "outer.first.0"),
        "outer.last": ("outer.add", "conv"),
    }
    assert found["outer.last"].addend is found["outer.first.0"].source
    assert [stage.source_name for stage in found.values()] == [
        "", "act", "outer.first.2", "outer.block.act", "outer.act", "round",
    ]  # fmt: skip
    assert [name for name, stage in found.items() if not stage.weighted] == ["pool"]
    assert isinstance(found["fc"].average, nn.AvgPool2d)
    assert found["fc"].flattened
    assert found["pool"].average is None
    assert found["pool"].weight.numel() == found["pool"].real_weight.numel() == 0


def test_executing_the_walk_is_running_the_network():
    model, x = network(), torch.randn(2, 2, 12, 12)
    steps = [module for _, module in walk(model)]
    expected = model(x)
    for cut in range(len(steps)):
        kept = execute(steps[:cut], (x,))
        assert len(kept) <= 3
        (result,) = execute(steps[cut:], kept)
        assert torch.equal(result, expected)


# What is not supported ------------------------------------------------------------------------------------------------

CONV, LINEAR = nn.Conv2d(1, 2, 3), nn.Linear(8, 8)


def unfinished(*layers):
    """A model that would be fine without ``layers`` after its first convolution."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "The model is a Linear, expected an nn.Sequential"),
        (nn.Sequential(nn.Flatten()), "The model has no convolution and no fully connected layer"),
        (unfinished(nn.LPPool2d(2, 2)), "Layer '1' is a LPPool2d, which is not supported; supported are Conv2d"),
        (unfinished(nn.GELU()), "Layer '1' is a GELU, which is not supported"),
        (unfinished(nn.ReLU6()), "Layer '1' is a ReLU6, which is not supported"),
        (unfinished(nn.ConvTranspose2d(2, 2, 3)), "Layer '1' is a ConvTranspose2d, which is not supported"),
        (unfinished(nn.Hardtanh(0, 6)), "Layer '1' is a Hardtanh from 0 to 6, expected -1 to 1"),
        (unfinished(nn.BatchNorm2d(2), nn.BatchNorm2d(2)), "Layer '2' is a second batch norm in one stage"),
        (unfinished(nn.BatchNorm1d(2)), "Layer '1' is a BatchNorm1d, expected BatchNorm2d there"),
        (unfinished(nn.BatchNorm2d(2, track_running_stats=False)), "Layer '1' has no running statistics"),
        (unfinished(nn.ReLU()), "Layer '2' is a ReLU after an activation"),
        (unfinished(nn.ReLU(), nn.BatchNorm2d(2)), "Layer '2' is a BatchNorm2d after an activation"),
        (unfinished(nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2)), "Layer '3' is a second pooling in one stage"),
        (unfinished(nn.MaxPool2d(4)), "Layer '1' pools 4 × 4, expected 2 × 2 or 3 × 3"),
        (unfinished(nn.MaxPool2d((2, 3))), "Layer '1' pools 2 × 3, expected 2 × 2 or 3 × 3"),
        (unfinished(nn.MaxPool2d(2, padding=1)), "Layer '1' pools with padding, dilation, ceil_mode or return_indices"),
        (unfinished(nn.MaxPool2d(2, ceil_mode=True)), "Layer '1' pools with padding, dilation, ceil_mode"),
        (unfinished(nn.Conv2d(2, 2, 1)), "Layer '0' has no activation before the next layer; add one"),
        (unfinished(nn.ReLU(), nn.Conv2d(2, 2, 3, padding="same")), "Layer '2' has padding 'same', mode 'zeros'"),
        (
            unfinished(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
            "mode 'reflect', expected numbers",
        ),
        (unfinished(nn.Flatten()), "Layer '1' flattens before an activation; put it after"),
        (unfinished(nn.ReLU(), nn.Flatten(2)), "Layer '2' flattens some axes, expected all but the first"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Sequential(nn.ReLU())),
            "Layer '1' is the last layer; remove what",
        ),
        (nn.Sequential(CONV, nn.MaxPool2d(2)), "Layer '0' is the last layer and is pooled"),
        (nn.Sequential(nn.ReLU(), CONV), "Layer '0' comes before the first convolution"),
        (nn.Sequential(nn.Linear(4, 2)), "Layer '0' has no flat input; put an nn.Flatten before it"),
        (nn.Sequential(CONV, nn.ReLU(), nn.Linear(4, 2)), "Layer '2' has no flat input"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), CONV), "Layer '3' is a convolution with a flat input"),
        (nn.Sequential(CONV, nn.ReLU(), nn.Flatten(), nn.MaxPool2d(2)), "Layer '3' is a MaxPool2d after nn.Flatten"),
        (nn.Sequential(CONV, nn.ReLU(), ImageInput(), nn.Flatten()), "Layer '2' is an ImageInput within the network"),
        # Average pooling
        (unfinished(nn.AvgPool2d(2)), "Layer '1' averages what no activation has just made; put an activation before"),
        (
            unfinished(nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1)),
            "Layer '2' has no activation after it to round averages; add an nn.ReLU",
        ),
        (unfinished(nn.ReLU(), nn.AvgPool2d(2), nn.AvgPool2d(2)), "Layer '3' averages what no activation has just"),
        (unfinished(nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)), "Layer '3' is a max pooling after an average"),
        (unfinished(nn.ReLU(), nn.AvgPool2d(2, padding=1)), "Layer '2' averages with padding, ceil_mode or divisor"),
        (unfinished(nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)), "Layer '2' averages with padding, ceil_mode"),
        (unfinished(nn.ReLU(), nn.AvgPool2d(2, divisor_override=3)), "Layer '2' averages with padding, ceil_mode"),
        (unfinished(nn.ReLU(), nn.AdaptiveAvgPool2d(2)), "Layer '2' averages to a size of 2, expected 1, or an AvgP"),
        (unfinished(nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()), "Layer '4' is a ReLU after nn.Flatten"),
        (nn.Sequential(CONV, nn.ReLU(), nn.AvgPool2d(2)), "Layer '0' is the last layer; remove what follows"),
        (
            nn.Sequential(CONV, nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(2)),
            "Layer '2' is an average pooling at the end; put it directly before a fully connected layer",
        ),
        # Residual blocks
        (nn.Sequential(Residual(CONV, Shortcut())), "Layer '0' adds what no activation of a layer has just made"),
        (
            nn.Sequential(ImageInput(), Residual(CONV, Shortcut())),
            "Layer '1' adds what no activation of a layer has just made; put a layer and an activation before it",
        ),
        (unfinished(Residual(CONV, Shortcut())), "Layer '1' adds what no activation of a layer has just made"),
        (
            unfinished(nn.ReLU(), Residual(CONV)),
            "Layer '2' is a residual block with 0 shortcuts of its own",
        ),
        (
            unfinished(nn.ReLU(), Residual(CONV, Shortcut(), nn.ReLU(), CONV, Shortcut())),
            "Layer '2' is a residual block with 2 shortcuts of its own, expected 1",
        ),
        (unfinished(nn.ReLU(), CONV, Shortcut()), "Layer '3' is a shortcut outside of a residual block; put it into"),
        (unfinished(nn.ReLU(), Residual(Shortcut(), CONV)), "Layer '2.0' adds the input of '2', but not directly to a"),
        (
            unfinished(nn.ReLU(), Residual(CONV, nn.BatchNorm2d(2), Shortcut())),
            "Layer '2.2' adds the input of '2', but not directly to a convolution; move it",
        ),
        (unfinished(nn.ReLU(), Residual(CONV, nn.MaxPool2d(2), Shortcut())), "Layer '2.2' adds the input of '2', but"),
        (unfinished(nn.ReLU(), Residual(CONV, nn.ReLU(), Shortcut())), "Layer '2.2' adds the input of '2', but not"),
        (
            unfinished(nn.ReLU(), Residual(CONV, Shortcut(), nn.MaxPool2d(2))),
            "Layer '2.2' pools the sum of a residual block, which hardware does not do",
        ),
        (
            unfinished(nn.ReLU(), Residual(CONV, nn.ReLU(), Residual(CONV, Shortcut()), Shortcut())),
            "Layer '2.3' adds the input of '2', but not directly to a convolution",
        ),
        (unfinished(nn.ReLU(), nn.Flatten(), Residual(LINEAR, Shortcut())), "Layer '3' adds flat or averaged values"),
        (
            nn.Sequential(nn.Flatten(), LINEAR, nn.ReLU(), Residual(LINEAR, Shortcut())),
            "Layer '3' adds flat or averaged values; put it before them",
        ),
    ],
)
def test_unsupported_models_are_named(model, message):
    with pytest.raises(BitwrightError) as raised:
        stages(model)
    assert message in str(raised.value)
