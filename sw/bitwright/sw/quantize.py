"""From a float network to a quantized one: methods and bits for every layer, by one recipe.

Quantization keeps all names: activations become :class:`~bitwright.sw.quantizers.ActivationQuantizer` modules in the
same places, weights are parametrized (``torch.nn.utils.parametrize``), shortcuts of residual blocks learn in which
units to add, and an ``input`` module that takes pixels comes first. What networks may look like is told in
:mod:`bitwright.sw.stages`.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import has_coefficients
from bitwright.sw.quantizers import ActivationQuantizer, ImageInput, Method, method
from bitwright.sw.quantizers.basis import BasisActivation
from bitwright.sw.quantizers.fpnn import FixedActivation
from bitwright.sw.quantizers.gradient import GradientQuantizer
from bitwright.sw.quantizers.stochastic import StochasticWeight
from bitwright.sw.residual import QuantizedShortcut
from bitwright.sw.stages import Stage, Values, execute, expect, parametrized, stages, walk

INPUT_NAME = "input"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize a network.

    Attributes
    ----------
    weights, activations
        Names of quantization methods.
    weight_bits, activation_bits
        Bits of weights and of activations; None leaves them in float.
    weight_options, activation_options
        Options of the methods, by name, such as ``{"scale": "network"}`` of ``fpnn``.
    gradient_bits
        Bits of the gradients that come back to the output of a layer, before its batch norm; None leaves them in float.
    input_bits
        Bits of the image; None keeps all 8 of a pixel.
    stochastic
        Quantize in training only a share of the weights, drawn anew at every step: the options of
        :class:`~bitwright.sw.quantizers.stochastic.StochasticWeight`, such as ``{"granularity": "element"}``.
    layers
        Exceptions, by layer name or glob, later ones over earlier ones: ``{"conv*": {"weight_bits": 8}}``. Keys are
        ``weights``, ``weight_bits``, ``weight_options``, ``activations``, ``activation_bits``, ``activation_options``,
        ``gradient_bits``; the activations of a layer are those that it *reads*, and of the first layer the image.
        Another method begins without options.
    """

    weights: str = "fpnn"
    weight_bits: int | None = None
    weight_options: Mapping[str, Any] = field(default_factory=dict)
    activations: str = "fpnn"
    activation_bits: int | None = None
    activation_options: Mapping[str, Any] = field(default_factory=dict)
    gradient_bits: int | None = None
    input_bits: int | None = 8
    stochastic: Mapping[str, Any] | None = None
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _LayerRecipe:
    """What the recipe says for one layer."""

    weights: Method
    weight_bits: int | None
    weight_options: Mapping[str, Any]
    activations: Method
    activation_bits: int | None
    activation_options: Mapping[str, Any]
    gradient_bits: int | None


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
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


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
    network = _with_input(model, recipes[0].activation_bits).eval()  # registering parametrizations runs them

    for stage, choice in zip(stages(network)[1:], recipes[1:], strict=True):
        function = stage.source
        if (
            choice.activation_bits is not None
            and function is not None
            and not isinstance(function, ActivationQuantizer)
        ):
            with _naming(stage.source_name):
                quantizer = choice.activations.replace_activation(
                    function, choice.activation_bits, choice.activation_options
                )
            _replace(network, stage.source_name, quantizer)
    for stage in stages(network):
        source, layer = stage.input_quantizer, stage.layer
        if isinstance(layer, nn.Conv2d) and source is not None and source.offset() and any(layer.padding):
            _replace(network, stage.name, PaddedConv2d(layer, source))
    all_weights = torch.cat([stage.weight.detach().flatten() for stage in stages(network)])
    for stage, choice in zip(stages(network), recipes, strict=True):
        if choice.weight_bits is not None and stage.weighted:
            with _naming(stage.name):
                quantizer = choice.weights.quantize_weights(choice.weight_bits, choice.weight_options)
                if recipe.stochastic is not None:
                    quantizer = StochasticWeight(quantizer, **recipe.stochastic)
            quantizer.fit(all_weights if quantizer.network_wide else stage.weight)
            parametrize.register_parametrization(stage.layer, "weight", quantizer)
        if choice.gradient_bits is not None and stage.weighted:
            with _naming(stage.name):
                stage.layer.register_forward_hook(GradientQuantizer(choice.gradient_bits))
    for stage in stages(network):
        weight, inner, outer = stage.weight_quantizer, stage.input_quantizer, stage.addend_quantizer
        if stage.shortcut is None or weight is None or inner is None or outer is None:
            continue
        # Numbers with a basis need no common unit to add in; lowering refuses those with a scale for each block.
        if not (
            weight.obstacle()
            or has_coefficients(weight.encoding)
            or isinstance(inner, BasisActivation)
            or isinstance(outer, BasisActivation)
        ):
            assert isinstance(stage.layer, nn.Conv2d)
            _replace(network, stage.shortcut_name, QuantizedShortcut(stage.shortcut, stage.layer, inner, outer))
    return network.train(model.training)


@torch.no_grad()
def calibrate(model: nn.Sequential, images: Tensor) -> None:
    """Set the scales of quantizers that have an adjustable one, and of shortcuts, from first to last.

    In evaluation mode each activation quantizer gets what suits its outputs for these images, given the layers before
    it, quantized: with fixed point the smallest power of two that covers 99.9 % of those that are not zero. All images
    go through the network at once.

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
    values: Values = (images.to(next(model.parameters()).device),)
    for name, module in walk(model):
        quantizer, weight = parametrized(module)
        if quantizer is not None:
            quantizer.calibrate(weight)
        if isinstance(module, ActivationQuantizer):
            finite = bool(values[0].isfinite().all())
            expect(finite, name, "reads values that are NaN or infinite; train with a lower learning rate")
            module.fit(values[0])
        elif isinstance(module, QuantizedShortcut):
            module.fit()
        try:
            values = execute([module], values)
        except RuntimeError as error:
            shape, reason = tuple(values[0].shape), str(error).split("\n")[0].rstrip(".")
            expect(False, name, f"does not take values of shape {shape} ({reason}); correct the layer or the images")
    wide = [module for module in model.modules() if isinstance(module, FixedActivation) and module.network_wide]
    for module in wide:
        module.exponent = max(each.exponent for each in wide)
    for module in model.modules():
        if wide and isinstance(module, QuantizedShortcut):
            module.fit()
    model.train(training)


@torch.no_grad()
def constrain_weights(model: nn.Module) -> None:
    """Clip, or center, the real weights of methods that ask for it; to call after every update of the optimizer."""
    for module in model.modules():
        quantizer, weight = parametrized(module)
        if quantizer is not None:
            quantizer.constrain(weight)


def quantize_share(model: nn.Module, ratio: float) -> None:
    """Set the share of the weights that stochastic quantization quantizes in training, 0..1."""
    for module in model.modules():
        if isinstance(module, StochasticWeight):
            module.ratio = ratio


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
                "encoding": weight.encoding if weight and not weight.obstacle() else None,
            }
        )
    return table


def summary(model: nn.Module) -> str:
    """Table of a network's layers, their bits and their sizes, as text."""
    rows: list[tuple[str, ...]] = [
        ("layer", "kind", "weights", "weight bits", "encoding", "input bits", "input planes", "kbit")
    ]
    for stage, bits in zip(stages(model), bit_assignment(model), strict=True):
        kind = "conv" if isinstance(stage.layer, nn.Conv2d) else "linear" if stage.weighted else "average"
        size = stage.real_weight.numel() * (bits["weight_planes"] or torch.finfo(stage.real_weight.dtype).bits)
        cells = [bits[key] for key in ("weight_bits", "encoding", "input_bits", "input_planes")]
        shown = ["float" if cell is None else str(cell) for cell in cells]
        if not stage.weighted:
            shown[:2] = "none", "none"
        shape = " × ".join(map(str, stage.real_weight.shape)) if stage.weighted else "none"
        rows.append((stage.name, kind, shape, *shown, f"{size / 1000:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _check_float(float_stages: list[Stage]) -> None:
    """Refuse networks that are quantized, share a layer, or hold weights that are not finite."""
    names: dict[int, str] = {}
    for stage in float_stages:
        first = names.setdefault(id(stage.layer), stage.name)
        expect(first == stage.name, stage.name, f"is the same module as {first!r}; make each layer its own")
        quantized = parametrize.is_parametrized(stage.layer)
        expect(not quantized, stage.name, "is already parametrized; quantize the float model instead")
        finite = bool(stage.weight.isfinite().all())
        expect(finite, stage.name, "has weights that are NaN or infinite; train with a lower learning rate")


def _layer_recipes(recipe: Recipe, names: list[str]) -> list[_LayerRecipe]:
    """Give what the recipe says for each layer, exceptions applied."""
    defaults = {field.name: getattr(recipe, field.name) for field in fields(_LayerRecipe)}
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
            for kind, options in (("weights", "weight_options"), ("activations", "activation_options")):
                if exceptions.get(kind, choice[kind]) != choice[kind]:
                    choice[options] = {}
            choice |= exceptions
    for choice in choices:
        choice |= {"weights": method(choice["weights"]), "activations": method(choice["activations"])}
    return [_LayerRecipe(**choice) for choice in choices]


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
        expect(INPUT_NAME not in network._modules, INPUT_NAME, "has the name of the image input; rename it")
        network = nn.Sequential(OrderedDict({INPUT_NAME: ImageInput(bits)} | network._modules))
    return network.to(first.weight)


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
