"""Networks as the hardware sees them: stage after stage, each a layer with what follows it.

A network is an ``nn.Sequential``, nested at will, of stages: a convolution, a fully connected layer or an average
pooling, then in this order

    shortcut (in a residual block) ► max pooling (optional) ► batch norm (optional) ► activation
    ► max pooling (optional, unless before)

with flattening and dropout between stages. The last stage has no activation and no pooling. Residual blocks are
:class:`~bitwright.sw.residual.Residual` modules; they may stand wherever an activation has just been applied.

An average pooling is a layer of its own, whose activation rounds the averages; directly before a fully connected layer
(with the flattening between them) it needs none, as it is then part of that layer's weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers import ActivationQuantizer, ImageInput, WeightCodes, WeightQuantizer
from bitwright.sw.residual import Residual, Shortcut

Average = nn.AvgPool2d | nn.AdaptiveAvgPool2d
Values = tuple[Tensor, ...]
"""What a network has computed between two of its modules: the current values, and the inputs of open residual blocks,
innermost last."""

AVERAGES = nn.AvgPool2d, nn.AdaptiveAvgPool2d
ACTIVATIONS = nn.ReLU, nn.Hardtanh, ActivationQuantizer
NORMS = nn.BatchNorm1d, nn.BatchNorm2d
SUPPORTED = (
    "Conv2d, Linear, AvgPool2d, AdaptiveAvgPool2d, BatchNorm1d, BatchNorm2d, MaxPool2d, ReLU, Hardtanh, Flatten, "
    "Dropout, Identity, Residual, Shortcut and quantizers"
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One layer of a network with what follows it, as one pass of the hardware computes it.

    Attributes
    ----------
    name
        Name of ``layer``, with dots where Sequentials are nested.
    layer
        Convolution or fully connected layer, quantized or not, or average pooling.
    source
        Module that makes the layer's input: the image input or an activation; None where a float network begins.
    source_name
        Name of ``source``.
    flattened
        Whether the input is flattened first, in the order channel, row, column.
    average
        Average pooling of the input of a fully connected layer, before the flattening.
    shortcut, shortcut_name
        Shortcut that is added before pooling, batch norm and activation, and its name.
    addend, addend_stage
        Module that makes what the shortcut adds, and the name of the stage that it belongs to.
    pool, pool_first
        Max pooling, and whether it comes before batch norm and activation.
    norm
        Batch norm.
    activation
        Activation function or quantizer; None in the last stage.
    """

    name: str
    layer: nn.Conv2d | nn.Linear | Average
    source: nn.Module | None = None
    source_name: str = ""
    flattened: bool = False
    average: Average | None = None
    shortcut: Shortcut | None = None
    shortcut_name: str = ""
    addend: nn.Module | None = None
    addend_stage: str = ""
    pool: nn.MaxPool2d | None = None
    pool_first: bool = False
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None = None
    activation: nn.Module | None = None

    @property
    def weighted(self) -> bool:
        """Whether the layer has weights: an average pooling has none."""
        return not isinstance(self.layer, AVERAGES)

    @property
    def weight_quantizer(self) -> WeightQuantizer | None:
        """Quantizer of the layer's weight; None in float, and where there is none."""
        return parametrized(self.layer)[0]

    @property
    def input_quantizer(self) -> ActivationQuantizer | ImageInput | None:
        """Quantizer of the layer's input; None in float."""
        return self.source if isinstance(self.source, (ActivationQuantizer, ImageInput)) else None

    @property
    def addend_quantizer(self) -> ActivationQuantizer | ImageInput | None:
        """Quantizer of what the shortcut adds; None in float, and without a shortcut."""
        return self.addend if isinstance(self.addend, (ActivationQuantizer, ImageInput)) else None

    @property
    def weight(self) -> Tensor:
        """Weight as the layer uses it: quantized, where it is; empty for an average pooling."""
        return self.layer.weight if isinstance(self.layer, (nn.Conv2d, nn.Linear)) else torch.empty(0)

    @property
    def real_weight(self) -> Tensor:
        """Weight before quantization; empty for an average pooling."""
        return parametrized(self.layer)[1]

    def weight_codes(self) -> WeightCodes:
        """Integers and scales of the layer's weight, which must be quantized."""
        quantizer, weight = parametrized(self.layer)
        if quantizer is None:
            raise BitwrightError(f"The weights of layer {self.name!r} are not quantized; give them bits.")
        return quantizer.codes(weight)


def stages(model: nn.Module) -> list[Stage]:
    """Take a network apart into its stages, float or quantized.

    Raises
    ------
    BitwrightError
        If a module, its settings or its place are not supported.
    """
    if not isinstance(model, nn.Sequential):
        raise BitwrightError(
            f"The model is a {_kind(model)}, expected an nn.Sequential; write its layers as one, in order."
        )
    reader = _Reader()
    for name, module in walk(model):
        reader.read(name, module)
    return reader.finish()


def walk(model: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in order of execution, with their dotted names; a residual block comes before its modules.

    :func:`execute` runs what this gives.
    """
    if isinstance(model, Residual):
        yield prefix.rstrip("."), model
    for key, module in model._modules.items():  # unlike named_children() this repeats a module that occurs twice
        if type(module) in (nn.Sequential, Residual):
            assert isinstance(module, nn.Sequential)
            yield from walk(module, f"{prefix}{key}.")
        elif module is not None:
            yield prefix + key, module


def execute(modules: Iterable[nn.Module], values: Values) -> Values:
    """Run modules, in the order of :func:`walk`: what a residual block gets is kept until its shortcut adds it."""
    current, *kept = values
    for module in modules:
        if isinstance(module, Residual):
            kept.append(current)
        elif isinstance(module, Shortcut):
            current = module(current, kept.pop())
        else:
            current = module(current)
    return (current, *kept)


class _Reader:
    """Reads modules in order of execution and puts stages together.

    Attributes
    ----------
    found
        Complete stages.
    current
        Arguments of the stage being read; empty before the first layer.
    source, source_name
        Module that made the current values, if it is an activation or the image input, and nothing came after it.
    flattened
        Whether the current values are flat.
    average, average_name
        Average pooling of the current values, of which nothing has been read yet.
    blocks
        For each open residual block its name, what made its input, and the name of the stage that this belongs to.
    """

    def __init__(self) -> None:
        self.found: list[Stage] = []
        self.current: dict[str, Any] = {}
        self.source: nn.Module | None = None
        self.source_name = ""
        self.flattened = False
        self.average: Average | None = None
        self.average_name = ""
        self.blocks: list[tuple[str, nn.Module, str]] = []

    def read(self, name: str, module: nn.Module) -> None:
        """Read the next module."""
        _check_settings(name, module)
        if isinstance(module, (nn.Dropout, nn.Identity)):
            return
        if self.average is not None and not self.flattened and isinstance(module, (*NORMS, *ACTIVATIONS)):
            self._begin(self.average_name, self.average)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            self._read_layer(name, module)
        elif isinstance(module, ImageInput):
            expect(not self.current and self.source is None, name, "is an ImageInput within the network; put it first")
            self.source, self.source_name = module, name
        elif isinstance(module, Residual):
            self._open_block(name)
        elif isinstance(module, nn.Flatten):
            ready = not self.current or self.source is not None
            expect(ready, name, "flattens before an activation; put it after")
            self.flattened = True
        else:
            expect(bool(self.current), name, "comes before the first convolution or fully connected layer; remove it")
            expect(not self.flattened, name, f"is a {_kind(module)} after nn.Flatten; put it before")
            if isinstance(module, Shortcut):
                self._read_shortcut(name, module)
            elif isinstance(module, AVERAGES):
                ready = self.source is not None and self.average is None
                expect(ready, name, "averages what no activation has just made; put an activation before it")
                self.average, self.average_name = module, name
            elif isinstance(module, nn.MaxPool2d):
                self._read_pool(name, module)
            else:
                self._read_rest(name, module)

    def finish(self) -> list[Stage]:
        """Give all stages."""
        if not self.current:
            raise BitwrightError("The model has no convolution and no fully connected layer; add one.")
        name = self.current["name"]
        after = self.source is not None or self.flattened or self.average is not None
        expect(not after, name, "is the last layer; remove what follows its batch norm")
        expect("pool" not in self.current, name, "is the last layer and is pooled; add an activation and a last layer")
        weighted = not isinstance(self.current["layer"], AVERAGES)
        expect(weighted, name, "is an average pooling at the end; put it directly before a fully connected layer")
        return [*self.found, Stage(**self.current)]

    def _read_layer(self, name: str, module: nn.Conv2d | nn.Linear) -> None:
        linear_before = bool(self.current) and isinstance(self.current["layer"], nn.Linear)
        flat_before = self.flattened or linear_before
        if isinstance(module, nn.Linear):
            expect(flat_before, name, "has no flat input; put an nn.Flatten before it")
        else:
            expect(not flat_before, name, "is a convolution with a flat input; convolve before nn.Flatten")
            rounded = self.average is None
            expect(rounded, self.average_name, "has no activation after it to round averages; add an nn.ReLU")
        average, self.average = self.average, None
        self._begin(name, module)
        if average is not None:
            self.current["average"] = average

    def _begin(self, name: str, layer: nn.Module) -> None:
        """Begin a stage."""
        if self.current:
            ready = self.source is not None
            expect(ready, self.current["name"], "has no activation before the next layer; add one")
            self.found.append(Stage(**self.current))
        self.current = {"name": name, "layer": layer, "source": self.source, "source_name": self.source_name}
        self.current["flattened"] = self.flattened
        self.source, self.source_name, self.flattened, self.average = None, "", False, None

    def _open_block(self, name: str) -> None:
        ready = self.source is not None and bool(self.current)
        expect(ready, name, "adds what no activation of a layer has just made; put a layer and an activation before it")
        assert self.source is not None
        spatial = not self.flattened and self.average is None and not isinstance(self.current["layer"], nn.Linear)
        expect(spatial, name, "adds flat or averaged values; put it before them")
        self.blocks.append((name, self.source, self.current["name"]))

    def _read_shortcut(self, name: str, module: Shortcut) -> None:
        expect(bool(self.blocks), name, "is a shortcut outside of a residual block; put it into a Residual")
        block, addend, stage = self.blocks.pop()
        unfinished = self.source is None and not {"pool", "norm", "shortcut"} & self.current.keys()
        convolution = isinstance(self.current["layer"], nn.Conv2d)
        expect(
            unfinished and convolution, name, f"adds the input of {block!r}, but not directly to a convolution; move it"
        )
        self.current |= {"shortcut": module, "shortcut_name": name, "addend": addend, "addend_stage": stage}

    def _read_pool(self, name: str, module: nn.MaxPool2d) -> None:
        expect("pool" not in self.current, name, "is a second pooling in one stage; keep one")
        expect(self.average is None, name, "is a max pooling after an average pooling; put an activation between them")
        expect("shortcut" not in self.current, name, "pools the sum of a residual block, which hardware does not do")
        # Between batch norm and activation is as good as after the activation, which never decreases.
        first = self.source is None and "norm" not in self.current
        self.current |= {"pool": module, "pool_first": first}

    def _read_rest(self, name: str, module: nn.Module) -> None:
        """Read a batch norm or an activation."""
        ready = self.source is None
        expect(ready, name, f"is a {_kind(module)} after an activation; put it before or remove it")
        if isinstance(module, NORMS):
            fitting = nn.BatchNorm1d if isinstance(self.current["layer"], nn.Linear) else nn.BatchNorm2d
            expect("norm" not in self.current, name, "is a second batch norm in one stage; keep one")
            expect(isinstance(module, fitting), name, f"is a {_kind(module)}, expected {fitting.__name__} there")
            self.current["norm"] = module
        else:
            self.current["activation"] = module
            self.source, self.source_name = module, name


def parametrized(layer: Any) -> tuple[WeightQuantizer | None, Tensor]:
    """Give the quantizer of a layer's weight, if it has one, and the weight before quantization."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None, getattr(layer, "weight", torch.empty(0))
    chain = layer.parametrizations["weight"]
    return (chain[0] if isinstance(chain[0], WeightQuantizer) else None), chain.original


def expect(holds: bool, name: str, sentence: str) -> None:
    """Refuse a layer by one sentence, unless ``holds``."""
    if not holds:
        raise BitwrightError(f"Layer {name!r} {sentence}.")


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _check_settings(name: str, module: nn.Module) -> None:
    """Refuse types and settings of modules that are not supported."""
    others = nn.Linear, *NORMS, nn.Dropout, nn.Identity, ImageInput, Shortcut
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            shown = f"{module.padding!r}, mode {module.padding_mode!r}"
            expect(False, name, f"has padding {shown}, expected numbers and mode 'zeros'")
    elif isinstance(module, nn.MaxPool2d):
        kernel, stride = pair(module.kernel_size), pair(module.stride)
        expect(kernel in ((2, 2), (3, 3)), name, f"pools {kernel[0]} × {kernel[1]}, expected 2 × 2 or 3 × 3")
        expect(min(stride) >= 1, name, f"has stride {stride}, expected at least 1")
        plain = pair(module.padding) == (0, 0) and pair(module.dilation) == (1, 1)
        plain = plain and not module.ceil_mode and not module.return_indices
        expect(plain, name, "pools with padding, dilation, ceil_mode or return_indices, expected none of them")
    elif isinstance(module, nn.AvgPool2d):
        plain = pair(module.padding) == (0, 0) and not module.ceil_mode and module.divisor_override is None
        expect(plain, name, "averages with padding, ceil_mode or divisor_override, expected none of them")
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        size = module.output_size
        expect(size in (1, (1, 1), [1, 1]), name, f"averages to a size of {size}, expected 1, or an AvgPool2d")
    elif isinstance(module, nn.Flatten):
        expect((module.start_dim, module.end_dim) == (1, -1), name, "flattens some axes, expected all but the first")
    elif isinstance(module, Residual):
        shortcuts = sum(isinstance(child, Shortcut) for child in module)
        expect(shortcuts == 1, name, f"is a residual block with {shortcuts} shortcuts of its own, expected 1")
    elif not isinstance(module, (*ACTIVATIONS, *others)) or isinstance(module, nn.ReLU6):
        expect(False, name, f"is a {_kind(module)}, which is not supported; supported are {SUPPORTED}")
    if isinstance(module, nn.Hardtanh):
        limits = module.min_val, module.max_val
        expect(limits == (-1, 1), name, f"is a Hardtanh from {limits[0]} to {limits[1]}, expected -1 to 1")
    if isinstance(module, NORMS):
        expect(module.running_mean is not None, name, "has no running statistics; set track_running_stats")


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A size that PyTorch lets be one number."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])
