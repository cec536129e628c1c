"""Networks by name, in float: batch norm follows every layer, the last one included, and no layer has a bias.

Batch norm after the last layer keeps the scores of low-bit weights, which are large integers, in the range that
training needs. Max pooling comes before batch norm, as in BinaryNet and LQ-Nets: it leaves a quarter of the values.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from math import prod
from typing import Any

from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.residual import Residual, Shortcut

Shape = tuple[int, int, int]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "hardtanh": nn.Hardtanh}


class _Builder:
    """Appends layers with names such as ``conv1``, ``bn1``, ``act1``, ``block1.conv1``, and keeps the shape."""

    def __init__(self, model: str, shape: Shape, activation: str) -> None:
        if activation not in ACTIVATIONS:
            raise BitwrightError(f"Model option activation is {activation!r}, expected {' or '.join(ACTIVATIONS)}.")
        self._model, self._in_shape, self._shape = model, shape, shape
        self._activation = ACTIVATIONS[activation]
        self._modules: OrderedDict[str, nn.Module] = OrderedDict()
        self._counts: dict[str, int] = {}

    def convolution(self, channels: int, kernel: int, padding: int = 0, pool: bool = False) -> "_Builder":
        """Convolution, 2 × 2 max pooling if asked, batch norm, activation."""
        self._add("conv", nn.Conv2d(self._shape[0], channels, kernel, padding=padding, bias=False))
        size = [length + 2 * padding - kernel + 1 for length in self._shape[1:]]
        if pool:
            self._add("pool", nn.MaxPool2d(2))
            size = [length // 2 for length in size]
        if min(size) < 1:
            shown = " × ".join(map(str, self._in_shape))
            raise BitwrightError(f"Images of {shown} are too small for model {self._model!r}; use a smaller model.")
        self._shape = (channels, size[0], size[1])
        self._add("bn", nn.BatchNorm2d(channels))
        self._add("act", self._activation())
        return self

    def block(self, channels: int, stride: int = 1) -> "_Builder":
        """Residual block of two padded 3 × 3 convolutions; the shortcut enters before the second batch norm."""
        modules = OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(self._shape[0], channels, 3, stride, padding=1, bias=False),
            bn1=nn.BatchNorm2d(channels),
            act1=self._activation(),
            conv2=nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            add=Shortcut(stride),
            bn2=nn.BatchNorm2d(channels),
            act2=self._activation(),
        )
        self._add("block", Residual(modules))
        self._shape = (channels, -(-self._shape[1] // stride), -(-self._shape[2] // stride))
        return self

    def average(self) -> "_Builder":
        """Average pooling of whole images, before a fully connected layer."""
        self._add("average", nn.AvgPool2d(self._shape[1:]))
        self._shape = (self._shape[0], 1, 1)
        return self

    def linear(self, features: int) -> "_Builder":
        """Fully connected layer, batch norm, activation."""
        self._fully_connected(features)
        self._add("act", self._activation())
        return self

    def finish(self, classes: int) -> nn.Sequential:
        """Fully connected layer and batch norm, for the scores."""
        self._fully_connected(classes)
        return nn.Sequential(self._modules)

    def _fully_connected(self, features: int) -> None:
        if "flatten" not in self._modules:
            self._modules["flatten"] = nn.Flatten()
        self._add("fc", nn.Linear(prod(self._shape), features, bias=False))
        self._add("bn", nn.BatchNorm1d(features))
        self._shape = (features, 1, 1)

    def _add(self, kind: str, module: nn.Module) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._modules[f"{kind}{self._counts[kind]}"] = module


def mlp(in_shape: Shape, classes: int, *, hidden: Sequence[int] = (64,), activation: str = "relu") -> nn.Sequential:
    """Fully connected layers, ``hidden`` features each."""
    layers = _Builder("mlp", in_shape, activation)
    for features in hidden:
        layers.linear(features)
    return layers.finish(classes)


def digits_cnn(
    in_shape: Shape, classes: int, *, channels: Sequence[int] = (16, 32), activation: str = "relu"
) -> nn.Sequential:
    """Two padded 3 × 3 convolutions with pooling and one fully connected layer, for images of 8 × 8 pixels."""
    layers = _Builder("digits_cnn", in_shape, activation)
    for count in channels:
        layers.convolution(count, 3, padding=1, pool=True)
    return layers.finish(classes)


def lenet5(
    in_shape: Shape, classes: int, *, channels: Sequence[int] = (20, 50), hidden: int = 500, activation: str = "relu"
) -> nn.Sequential:
    """LeNet-5 as Caffe defines it, 20C5-MP-50C5-MP-500-10, for images of 28 × 28 pixels."""
    layers = _Builder("lenet5", in_shape, activation)
    for count in channels:
        layers.convolution(count, 5, pool=True)
    return layers.linear(hidden).finish(classes)


def cnv(
    in_shape: Shape,
    classes: int,
    *,
    channels: Sequence[int] = (64, 128, 256),
    hidden: int = 512,
    activation: str = "relu",
) -> nn.Sequential:
    """CNV of FINN (arXiv 1612.07119), 64-64-MP-128-128-MP-256-256-512-512-10, for images of 32 × 32 pixels."""
    layers = _Builder("cnv", in_shape, activation)
    for index, count in enumerate(channels):
        layers.convolution(count, 3).convolution(count, 3, pool=index < len(channels) - 1)
    return layers.linear(hidden).linear(hidden).finish(classes)


def vgg_small(
    in_shape: Shape, classes: int, *, channels: Sequence[int] = (128, 256, 512), activation: str = "relu"
) -> nn.Sequential:
    """VGG-small, 128-128-MP-256-256-MP-512-512-MP-10 of padded 3 × 3 convolutions, for images of 32 × 32 pixels.

    Layers and their order are those of the script of the LQ-Nets authors (arXiv 1807.10029). That other papers which
    report a "VGG-small" or "VGG-7", also for DoReFa, mean exactly this network is unverified: some have one more fully
    connected layer. Those scripts keep the first and the last layer in float; here a recipe decides.
    """
    layers = _Builder("vgg_small", in_shape, activation)
    for count in channels:
        layers.convolution(count, 3, padding=1).convolution(count, 3, padding=1, pool=True)
    return layers.finish(classes)


def resnet20(
    in_shape: Shape,
    classes: int,
    *,
    channels: Sequence[int] = (16, 32, 64),
    blocks: int = 3,
    activation: str = "relu",
) -> nn.Sequential:
    """ResNet-20 of He et al. (arXiv 1512.03385, section 4.2), for images of 32 × 32 pixels.

    A padded 3 × 3 convolution, ``blocks`` residual blocks of two more for each of ``channels``, the first of each
    further stage at stride 2, average pooling, one fully connected layer. Shortcuts are the paper's option A: they have
    no weights, subsample, and leave added channels alone. Unlike the paper, the shortcut is added before the second
    batch norm of a block and not after it, where integers can be added exactly (see :mod:`bitwright.sw.residual`).
    """
    layers = _Builder("resnet20", in_shape, activation).convolution(channels[0], 3, padding=1)
    for stage, count in enumerate(channels):
        for block in range(blocks):
            layers.block(count, stride=2 if stage > 0 and block == 0 else 1)
    return layers.average().finish(classes)


MODELS: dict[str, Callable[..., nn.Sequential]] = {
    builder.__name__: builder for builder in (mlp, digits_cnn, lenet5, cnv, vgg_small, resnet20)
}


def build(name: str, in_shape: Shape, classes: int, **options: Any) -> nn.Sequential:
    """Build a network with fresh weights, drawn from PyTorch's generator.

    Parameters
    ----------
    name
        One of :data:`MODELS`.
    in_shape
        Channels, height and width of the images.
    classes
        Number of classes.
    options
        Keyword arguments of the model's function, such as ``hidden=(64, 32)``.
    """
    if name not in MODELS:
        raise BitwrightError(f"Unknown model {name!r}; {_suggest(name, list(MODELS))}")
    parameters = inspect.signature(MODELS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for key, value in options.items():
        if key not in defaults:
            raise BitwrightError(f"Model {name!r} has no option {key!r}; {_suggest(key, list(defaults))}")
        _check(key, value, defaults[key])
    return MODELS[name](in_shape, classes, **options)


def _check(key: str, value: Any, default: Any) -> None:
    """Check a size, or a list of sizes, by the kind of its default."""
    if isinstance(default, int) and not _is_size(value):
        raise BitwrightError(f"Model option {key} is {value!r}, expected a positive integer.")
    if isinstance(default, tuple) and not (isinstance(value, (list, tuple)) and value and all(map(_is_size, value))):
        raise BitwrightError(f"Model option {key} is {value!r}, expected a list of positive integers.")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _suggest(found: str, known: list[str]) -> str:
    near = get_close_matches(found, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
