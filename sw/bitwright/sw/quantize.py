"""From a float network to a quantized one: methods and bits for every layer, by one recipe.

A network is an ``nn.Sequential``, nested at will, of stages: a convolution or fully connected layer, then in this order

    max pooling (optional) ► batch norm (optional) ► activation ► max pooling (optional, unless before)

with flattening and dropout between stages. The last stage has no activation and no pooling. Quantization keeps all
names: activations become :class:`~bitwright.sw.quantizers.ActivationQuantizer` modules in the same places, weights are
parametrized (``torch.nn.utils.parametrize``), and an ``input`` module that takes pixels comes first.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers import ActivationQuantizer, ImageInput, Method, WeightCodes, WeightQuantizer, method

INPUT_NAME = "input"
SUPPORTED = (
    "Conv2d, Linear, BatchNorm1d, BatchNorm2d, MaxPool2d, ReLU, Hardtanh, Flatten, Dropout, Identity and quantizers"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize a network.

    Attributes
    ----------
    weights, activations
        Names of quantization methods.
    weight_bits, activation_bits
        Bits of weights and of activations; None leaves them in float.
    input_bits
        Bits of the image; None keeps all 8 of a pixel.
    layers
        Exceptions, by layer name or glob, later ones over earlier ones: ``{"conv*": {"weight_bits": 8}}``. Keys are
        ``weights``, ``weight_bits``, ``activations``, ``activation_bits``; the activations of a layer are those that it
        *reads*, and of the first layer the image.
    """

    weights: str = "fixed"
    weight_bits: int | None = None
    activations: str = "fixed"
    activation_bits: int | None = None
    input_bits: int | None = 8
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _LayerRecipe:
    """What the recipe says for one layer."""

    weights: Method
    weight_bits: int | None
    activations: Method
    activation_bits: int | None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One layer of a network with what follows it, as one pass of the hardware computes it.

    Attributes
    ----------
    name
        Name of ``layer``, with dots where Sequentials are nested.
    layer
        Convolution or fully connected layer, quantized or not.
    source
        Module that makes the layer's input: the image input or an activation; None where a float network begins.
    source_name
        Name of ``source``.
    flattened
        Whether the input is flattened first, in the order channel, row, column.
    pool, pool_first
        Max pooling, and whether it comes before batch norm and activation.
    norm
        Batch norm.
    activation
        Activation function or quantizer; None in the last stage.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    source: nn.Module | None = None
    source_name: str = ""
    flattened: bool = False
    pool: nn.MaxPool2d | None = None
    pool_first: bool = False
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None = None
    activation: nn.Module | None = None

    @property
    def weight_quantizer(self) -> WeightQuantizer | None:
        """Quantizer of the layer's weight; None in float."""
        return _parametrized(self.layer)[0]

    @property
    def input_quantizer(self) -> ActivationQuantizer | ImageInput | None:
        """Quantizer of the layer's input; None in float."""
        return self.source if isinstance(self.source, (ActivationQuantizer, ImageInput)) else None

    @property
    def real_weight(self) -> Tensor:
        """Weight before quantization."""
        return _parametrized(self.layer)[1]

    def weight_codes(self) -> WeightCodes:
        """Integers and scales of the layer's weight, which must be quantized."""
        quantizer, weight = _parametrized(self.layer)
        if quantizer is None:
            raise BitwrightError(f"The weights of layer {self.name!r} are not quantized; give them bits.")
        return quantizer.codes(weight)


class PaddedConv2d(nn.Conv2d):
    """A convolution that pads with the value of code 0 of its input, as the hardware does.

    Parameters
    ----------
    convolution
        Convolution to take over, parameters included.
    source
        Quantizer that makes the input.
    """

    def __init__(self, convolution: nn.Conv2d, source: ActivationQuantizer | ImageInput) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(convolution.__dict__)
        self._source = (source,)  # in a tuple: it is a child of the network, not also of this layer

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        padded = functional.pad(x, self._reversed_padding_repeated_twice, value=float(self._source[0].offset()))
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


def quantize(model: nn.Module, recipe: Recipe) -> nn.Sequential:
    """Quantize a copy of a float network.

    The result takes pixels 0..255, shape (N, C, H, W), and returns the scores of the classes as floats. A model that
    already begins with an :class:`~bitwright.sw.quantizers.ImageInput` keeps its range of values. Activation quantizers
    that the model already contains stay as they are. A recipe without bits gives the float network that takes pixels.

    Parameters
    ----------
    model
        Float network, in training or not; it is not changed.
    recipe
        Methods and bits.

    Raises
    ------
    BitwrightError
        If the model or the recipe is not supported; the sentence names the layer.
    """
    float_stages = stages(model)
    _check_float(float_stages)
    recipes = _layer_recipes(recipe, [stage.name for stage in float_stages])
    network = _with_input(model, recipes[0].activation_bits)

    for stage, choice in zip(stages(network)[1:], recipes[1:], strict=True):
        function = stage.source
        if (
            choice.activation_bits is not None
            and function is not None
            and not isinstance(function, ActivationQuantizer)
        ):
            with _naming(stage.source_name):
                quantizer = choice.activations.replace_activation(function, choice.activation_bits)
            _replace(network, stage.source_name, quantizer)
    for stage in stages(network):
        source, layer = stage.input_quantizer, stage.layer
        if isinstance(layer, nn.Conv2d) and source is not None and source.offset() and any(layer.padding):
            _replace(network, stage.name, PaddedConv2d(layer, source))
    for stage, choice in zip(stages(network), recipes, strict=True):
        if choice.weight_bits is not None:
            with _naming(stage.name):
                quantizer = choice.weights.weights(choice.weight_bits)
            quantizer.fit(stage.layer.weight)
            parametrize.register_parametrization(stage.layer, "weight", quantizer)
    return network.train(model.training)


def stages(model: nn.Module) -> list[Stage]:
    """Take a network apart into its stages, float or quantized.

    Raises
    ------
    BitwrightError
        If a module, its settings or its place are not supported.
    """
    if not isinstance(model, nn.Sequential):
        raise BitwrightError(
            f"The model is a {type(model).__name__}, expected an nn.Sequential; write its layers as one, in order."
        )
    found: list[Stage] = []
    current: dict[str, Any] = {}  # the stage being read
    source: nn.Module | None = None
    source_name = ""
    flattened = False
    for name, module in _leaves(model):
        _check_settings(name, module)
        if isinstance(module, (nn.Dropout, nn.Identity)):
            continue
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if current:
                _expect(source is not None, current["name"], "has no activation before the next layer; add one")
                found.append(Stage(**current))
            flat_before = flattened or (bool(found) and isinstance(found[-1].layer, nn.Linear))
            if isinstance(module, nn.Linear):
                _expect(flat_before, name, "has no flat input; put an nn.Flatten before it")
            else:
                _expect(not flat_before, name, "is a convolution with a flat input; convolve before nn.Flatten")
            current = {"name": name, "layer": module, "source": source, "source_name": source_name}
            current["flattened"] = flattened
            source, source_name, flattened = None, "", False
        elif isinstance(module, ImageInput):
            _expect(not current and source is None, name, "is an ImageInput within the network; put it first")
            source, source_name = module, name
        elif isinstance(module, nn.Flatten):
            _expect(not current or source is not None, name, "flattens before an activation; put it after")
            flattened = True
        else:
            _expect(bool(current), name, "comes before the first convolution or fully connected layer; remove it")
            _expect(not flattened, name, f"is a {_kind(module)} after nn.Flatten; put it before")
            if isinstance(module, nn.MaxPool2d):
                _expect("pool" not in current, name, "is a second pooling in one stage; keep one")
                # Between batch norm and activation is as good as after the activation, which never decreases.
                current |= {"pool": module, "pool_first": source is None and "norm" not in current}
                continue
            _expect(source is None, name, f"is a {_kind(module)} after an activation; put it before or remove it")
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                fitting = nn.BatchNorm2d if isinstance(current["layer"], nn.Conv2d) else nn.BatchNorm1d
                _expect("norm" not in current, name, "is a second batch norm in one stage; keep one")
                _expect(isinstance(module, fitting), name, f"is a {_kind(module)}, expected {fitting.__name__} there")
                current["norm"] = module
            else:
                current["activation"] = module
                source, source_name = module, name
    if not current:
        raise BitwrightError("The model has no convolution and no fully connected layer; add one.")
    _expect(source is None and not flattened, current["name"], "is the last layer; remove what follows its batch norm")
    _expect(
        "pool" not in current, current["name"], "is the last layer and is pooled; add an activation and a last layer"
    )
    return [*found, Stage(**current)]


@torch.no_grad()
def calibrate(model: nn.Sequential, images: Tensor) -> None:
    """Set the scales of activation quantizers that have an adjustable one, from first to last.

    In evaluation mode each such quantizer gets the smallest power of two that covers 99.9 % of the non-zero outputs for
    these images, given the quantized layers before it. All images go through the network at once.

    Parameters
    ----------
    model
        Quantized network, whose batch norms have seen training.
    images
        Pixels, shape (N, C, H, W); some hundreds are enough.

    Raises
    ------
    BitwrightError
        If a layer does not take the shape that reaches it, or values are not finite.
    """
    training = model.training
    model.eval()
    values = images.to(next(model.parameters()).device)
    for name, module in _leaves(model):
        if isinstance(module, ActivationQuantizer):
            finite = bool(values.isfinite().all())
            _expect(finite, name, "reads values that are NaN or infinite; train with a lower learning rate")
            module.fit(values)
        try:
            values = module(values)
        except RuntimeError as error:
            shape, reason = tuple(values.shape), str(error).split("\n")[0].rstrip(".")
            _expect(False, name, f"does not take values of shape {shape} ({reason}); correct the layer or the images")
    model.train(training)


@torch.no_grad()
def clip_weights(model: nn.Module) -> None:
    """Clip the real weights of methods that ask for it; to call after every update of the optimizer."""
    for module in model.modules():
        quantizer, weight = _parametrized(module)
        if quantizer is not None and quantizer.CLIP:
            weight.clamp_(-quantizer.limit(), quantizer.limit())


def bit_assignment(model: nn.Module) -> list[dict[str, Any]]:
    """Bits of each layer, in order.

    Returns
    -------
    list of dict
        ``name``; ``weight_bits``, ``weight_planes`` and ``encoding`` of the weights; ``input_bits`` and
        ``input_planes`` of what the layer reads. None where the network computes in float.
    """
    table = []
    for stage in stages(model):
        weight, source = stage.weight_quantizer, stage.input_quantizer
        table.append(
            {
                "name": stage.name,
                "weight_bits": weight.bits if weight else None,
                "weight_planes": weight.planes if weight else None,
                "input_bits": source.bits if source else None,
                "input_planes": source.planes if source else None,
                "encoding": weight.encoding if weight else None,
            }
        )
    return table


def summary(model: nn.Module) -> str:
    """Table of a network's layers, their bits and their sizes, as text."""
    rows: list[tuple[str, ...]] = [
        ("layer", "kind", "weights", "weight bits", "encoding", "input bits", "input planes", "kbit")
    ]
    for stage, bits in zip(stages(model), bit_assignment(model), strict=True):
        shape, kind = tuple(stage.layer.weight.shape), "conv" if isinstance(stage.layer, nn.Conv2d) else "linear"
        size = stage.layer.weight.numel() * (bits["weight_planes"] or torch.finfo(stage.layer.weight.dtype).bits)
        cells = (bits[key] for key in ("weight_bits", "encoding", "input_bits", "input_planes"))
        shown = ["float" if cell is None else str(cell) for cell in cells]
        rows.append((stage.name, kind, " × ".join(map(str, shape)), *shown, f"{size / 1000:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _leaves(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in order of execution, with their dotted names."""
    for key, module in model._modules.items():  # unlike named_children() this repeats a module that occurs twice
        if type(module) is nn.Sequential:
            yield from _leaves(module, f"{prefix}{key}.")
        elif module is not None:
            yield prefix + key, module


def _parametrized(layer: Any) -> tuple[WeightQuantizer | None, Tensor]:
    """Give the quantizer of a layer's weight, if it has one, and the weight before quantization."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None, getattr(layer, "weight", torch.empty(0))
    chain = layer.parametrizations["weight"]
    return (chain[0] if isinstance(chain[0], WeightQuantizer) else None), chain.original


def _expect(holds: bool, name: str, sentence: str) -> None:
    if not holds:
        raise BitwrightError(f"Layer {name!r} {sentence}.")


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _check_settings(name: str, module: nn.Module) -> None:
    """Refuse types and settings of modules that are not supported."""
    activations = nn.ReLU, nn.Hardtanh, ActivationQuantizer
    others = nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout, nn.Identity, ImageInput
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            shown = f"{module.padding!r}, mode {module.padding_mode!r}"
            _expect(False, name, f"has padding {shown}, expected numbers and mode 'zeros'")
        _expect(module.groups == 1, name, f"has {module.groups} groups, expected 1")
        _expect(module.dilation == (1, 1), name, f"has dilation {module.dilation}, expected 1")
    elif isinstance(module, nn.MaxPool2d):
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        _expect(kernel in ((2, 2), (3, 3)), name, f"pools {kernel[0]} × {kernel[1]}, expected 2 × 2 or 3 × 3")
        _expect(min(stride) >= 1, name, f"has stride {stride}, expected at least 1")
        plain = _pair(module.padding) == (0, 0) and _pair(module.dilation) == (1, 1)
        plain = plain and not module.ceil_mode and not module.return_indices
        _expect(plain, name, "pools with padding, dilation, ceil_mode or return_indices, expected none of them")
    elif isinstance(module, nn.Flatten):
        _expect((module.start_dim, module.end_dim) == (1, -1), name, "flattens some axes, expected all but the first")
    elif not isinstance(module, (*activations, *others)) or isinstance(module, nn.ReLU6):
        _expect(False, name, f"is a {_kind(module)}, which is not supported; supported are {SUPPORTED}")
    if isinstance(module, nn.Hardtanh):
        limits = module.min_val, module.max_val
        _expect(limits == (-1, 1), name, f"is a Hardtanh from {limits[0]} to {limits[1]}, expected -1 to 1")
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        _expect(module.running_mean is not None, name, "has no running statistics; set track_running_stats")


def _pair(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _check_float(float_stages: list[Stage]) -> None:
    """Refuse networks that are quantized, share a layer, or hold weights that are not finite."""
    names: dict[int, str] = {}
    for stage in float_stages:
        first = names.setdefault(id(stage.layer), stage.name)
        _expect(first == stage.name, stage.name, f"is the same module as {first!r}; make each layer its own")
        quantized = parametrize.is_parametrized(stage.layer)
        _expect(not quantized, stage.name, "is already parametrized; quantize the float model instead")
        finite = bool(stage.layer.weight.isfinite().all())
        _expect(finite, stage.name, "has weights that are NaN or infinite; train with a lower learning rate")


def _layer_recipes(recipe: Recipe, names: list[str]) -> list[_LayerRecipe]:
    """Give what the recipe says for each layer, exceptions applied."""
    defaults = {key: getattr(recipe, key) for key in ("weights", "weight_bits", "activations", "activation_bits")}
    choices = [dict(defaults) for _ in names]
    choices[0]["activation_bits"] = recipe.input_bits
    for pattern, exceptions in recipe.layers.items():
        for key in exceptions:
            if key not in defaults:
                raise BitwrightError(f"Recipe has the key {key!r} for {pattern!r}; {_suggest(key, defaults)}")
        matching = [choice for name, choice in zip(names, choices, strict=True) if fnmatchcase(name, pattern)]
        if not matching:
            raise BitwrightError(
                f"Recipe names layer {pattern!r}, which the model does not have; {_suggest(pattern, names)}"
            )
        for choice in matching:
            choice |= exceptions
    return [
        _LayerRecipe(
            method(choice["weights"]), choice["weight_bits"], method(choice["activations"]), choice["activation_bits"]
        )
        for choice in choices
    ]


def _suggest(found: str, known: Iterable[str]) -> str:
    near = get_close_matches(found, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."


def _with_input(model: nn.Module, bits: int | None) -> nn.Sequential:
    """Copy a network; put an ImageInput of so many bits first, or in the place of one that is there."""
    network: nn.Sequential = copy.deepcopy(model)  # pyright: ignore[reportAssignmentType]: stages() checked it
    first = stages(network)[0]
    bits = 8 if bits is None else bits
    if isinstance(first.source, ImageInput):
        _replace(network, first.source_name, ImageInput(bits, first.source.low, first.source.high))
    else:
        _expect(INPUT_NAME not in network._modules, INPUT_NAME, "has the name of the image input; rename it")
        network = nn.Sequential(OrderedDict({INPUT_NAME: ImageInput(bits)} | network._modules))
    return network.to(first.layer.weight)


def _replace(network: nn.Sequential, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(network.get_submodule(parent), key, module)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which layer an error is about."""
    try:
        yield
    except BitwrightError as error:
        raise BitwrightError(f"Layer {name!r}: {error}") from None
