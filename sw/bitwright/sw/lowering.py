"""Lowering: from a quantized network to a Program, in exact arithmetic.

Every number of the network is rational: floats are binary fractions, quantization steps are given as fractions, and a
batch norm is the pair of float64 numbers that PyTorch makes of it before it sees any data. Up to its activation
function a layer is therefore one exact line for each channel, from the integer accumulator ``A``::

    x = scale * (step * A + offset * sum(weights)) + bias      where inputs and padding are step * code + offset
    y = factor * x + shift          where factor = gamma / sqrt(var + eps) and shift = beta - factor * mean

and "the code of ``y`` is at least ``i``" is ``A >= T`` for an integer ``T``, or ``A < T`` where the line falls. The
idea is that of section 2.8 of DoReFa-Net (Zhou et al., arXiv 1606.06160), and of FINN (Umuroglu et al., arXiv
1612.07119).

The network in float64 agrees wherever its own rounding errors, some 1e-16 of a value, do not decide: always, if all
scales are powers of two; otherwise unless a value lies on a boundary, as a sum of pixels / 255 that cancels to 0 does
before a sign without bias or batch norm.

Max pooling before the batch norm selects the greatest ``x``: the greatest code where the batch norm rises, the least
where it falls. After the batch norm it selects the greatest code.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import THRESHOLD_NEGATE, THRESHOLD_POOL_MIN, ArraySpec
from bitwright.hw.plan import LayerShape, plan
from bitwright.hw.program import Program
from bitwright.sim.golden import network_values
from bitwright.sw.quantize import Stage, stages
from bitwright.sw.quantizers import ActivationQuantizer, Boundary, ImageInput, WeightCodes

Shape = tuple[int, int, int]
"""Channels, height, width."""


def lower(
    model: nn.Module, spec: ArraySpec, in_shape: Shape, *, batch: int = 1, meta: Mapping[str, Any] | None = None
) -> Program:
    """Compile a quantized network for an array.

    The Program computes what ``model.double()`` computes in evaluation mode.

    Parameters
    ----------
    model
        Network from :func:`bitwright.sw.quantize.quantize`, with weights and activations of every layer quantized.
    spec
        Array.
    in_shape
        (channels, height, width) of an image.
    batch
        Images of one run.
    meta
        What to note in the Program, anything that JSON holds.

    Raises
    ------
    BitwrightError
        If a layer is not quantized, has numbers that are not finite, or does not fit the array; it names the layer.
    """
    network = copy.deepcopy(model).double().eval()
    shapes = layer_shapes(network, in_shape)
    parts = stages(network)
    planned = plan(shapes, spec, input_bits=_input_quantizer(parts[0]).planes, batch=batch)
    weights: list[npt.NDArray[np.int64]] = []
    thresholds: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]] = []
    for stage in parts:
        codes = _weight_codes(stage)
        weights.append(codes.integers.numpy())
        low, high = _reach(weights[-1], _input_quantizer(stage).levels - 1)
        _check_width(stage, low, high, spec)
        if stage.activation is not None:
            thresholds.append(_thresholds(stage, codes, low, high))
    lines = _lines(parts[-1], _weight_codes(parts[-1]))
    return planned.assemble(
        weights,
        thresholds,
        np.array([float(line.gain) for line in lines]),
        np.array([float(line.constant) for line in lines]),
        meta,
    )


def layer_shapes(model: nn.Module, in_shape: Shape) -> list[LayerShape]:
    """Geometry and precision of a quantized network's layers: what :func:`bitwright.hw.plan.plan` takes.

    Raises
    ------
    BitwrightError
        If a layer is not quantized or does not take the shape that the layer before it, or the image, has.
    """
    shapes: list[LayerShape] = []
    for stage in stages(model):
        _input_quantizer(stage)
        quantizer, layer = stage.weight_quantizer, stage.layer
        if quantizer is None:
            raise BitwrightError(f"Layer {stage.name!r} has float weights, expected quantized ones; give them bits.")
        options: dict[str, Any] = {}
        if isinstance(layer, nn.Conv2d):
            kind, found, wanted = "conv", in_shape[0], layer.in_channels
            sizes = {"kernel": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
            options |= {name: _pair(size) for name, size in sizes.items()}
        else:
            kind, found, wanted = "linear", in_shape[0] * in_shape[1] * in_shape[2], layer.in_features
        if found != wanted:
            raise BitwrightError(
                f"Layer {stage.name!r} takes {wanted} input {'channels' if kind == 'conv' else 'features'}, its input "
                f"of {' × '.join(map(str, in_shape))} has {found}."
            )
        if stage.pool is not None:
            options |= {"pool": _pair(stage.pool.kernel_size), "pool_stride": _pair(stage.pool.stride)}
        if stage.activation is not None:
            options["output_planes"] = _quantized(stage, stage.activation).planes
        shapes.append(
            LayerShape(
                name=stage.name,
                kind=kind,
                in_shape=in_shape,
                out_channels=layer.weight.shape[0],
                weight_encoding=quantizer.encoding,
                weight_bits=quantizer.planes,
                **options,
            )
        )
        in_shape = shapes[-1].out_shape
    return shapes


def _input_quantizer(stage: Stage) -> ActivationQuantizer | ImageInput:
    """Quantizer of a layer's input."""
    quantizer = stage.input_quantizer
    if quantizer is None:
        raise BitwrightError(f"Layer {stage.name!r} has a float input, expected a quantized one; give it bits.")
    return quantizer


def _quantized(stage: Stage, activation: nn.Module) -> ActivationQuantizer:
    if not isinstance(activation, ActivationQuantizer):
        kind = type(activation).__name__
        raise BitwrightError(
            f"Layer {stage.name!r} is followed by a {kind} in float, expected a quantizer; give it bits."
        )
    return activation


def _weight_codes(stage: Stage) -> WeightCodes:
    try:
        return stage.weight_codes()
    except BitwrightError as error:
        raise BitwrightError(f"Layer {stage.name!r}: {error}") from error


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


# ---------------------------------------------------------------------------------------------------------------------
# One layer


@dataclass(frozen=True)
class Line:
    """What a channel makes of its accumulator before the activation: ``gain * accumulator + constant``.

    ``falling`` tells whether the batch norm alone falls, by which max pooling before it selects.
    """

    gain: Fraction
    constant: Fraction
    falling: bool


def _lines(stage: Stage, codes: WeightCodes) -> list[Line]:
    """Lines of all channels of a layer."""
    source = _input_quantizer(stage)
    step, offset = source.step(), source.offset()
    channels = len(codes.integers)
    sums = codes.integers.reshape(channels, -1).sum(1).tolist()
    biases = _numbers(stage, stage.layer.bias, channels, 0.0)
    factors, shifts = _norm_line(stage, channels)
    lines: list[Line] = []
    for weight_sum, *floats in zip(sums, codes.scale.tolist(), biases, factors, shifts, strict=True):
        scale, bias, factor, shift = map(Fraction, floats)
        constant = factor * (scale * offset * weight_sum + bias) + shift
        lines.append(Line(factor * scale * step, constant, factor < 0))
    return lines


@torch.no_grad()
def _norm_line(stage: Stage, channels: int) -> tuple[list[float], list[float]]:
    """Factor and shift of each channel's batch norm, as PyTorch has them in float64: a value is ``factor * x + shift``.

    PyTorch computes both before it sees any data, and then rounds once, where the processor has a fused multiply-add.
    The shift is its answer to 0: computed here it could differ in the last bit, which decides ties.
    """
    norm = stage.norm
    if norm is None:
        return [1.0] * channels, [0.0] * channels
    assert norm.running_var is not None
    factors = 1 / torch.sqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factors = factors * norm.weight
    zero = torch.zeros((1, channels) if isinstance(norm, nn.BatchNorm1d) else (1, channels, 1, 1), dtype=factors.dtype)
    return _numbers(stage, factors, channels, 1.0), _numbers(stage, norm(zero).reshape(-1), channels, 0.0)


def _numbers(stage: Stage, values: Tensor | None, channels: int, default: float) -> list[float]:
    """Numbers of a layer's channels, all finite."""
    if values is None:
        return [default] * channels
    if not values.isfinite().all():
        raise BitwrightError(
            f"Layer {stage.name!r} or its batch norm has a parameter that is NaN or infinite, expected finite numbers; "
            "train with a lower learning rate."
        )
    return values.detach().tolist()


def _reach(weights: npt.NDArray[np.int64], largest_code: int) -> tuple[list[int], list[int]]:
    """Least and greatest accumulator of each channel, for any codes."""
    flat = weights.reshape(len(weights), -1)
    low, high = np.minimum(flat, 0).sum(1) * largest_code, np.maximum(flat, 0).sum(1) * largest_code
    return low.tolist(), high.tolist()


def _check_width(stage: Stage, low: list[int], high: list[int], spec: ArraySpec) -> None:
    """Refuse layers whose accumulators, and thresholds just above the greatest of them, do not fit."""
    above = 0 if stage.activation is None else 1
    # In two's complement n and -n - 1 take the bits of n and a sign.
    needed = 1 + max(*((value + above).bit_length() for value in high), *((-value - 1).bit_length() for value in low))
    if needed > spec.accumulator_width:
        raise BitwrightError(
            f"Layer {stage.name!r} needs accumulators of {needed} bits, this array has {spec.accumulator_width} "
            "(accumulator_width); choose fewer bits for its weights or input, or a larger array."
        )


def _thresholds(
    stage: Stage, codes: WeightCodes, low: list[int], high: list[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Thresholds and flags, (channels, 2**planes - 1): codes that the quantizer does not use are never reached."""
    assert stage.activation is not None
    quantizer = _quantized(stage, stage.activation)
    grid = Grid.of(quantizer.boundaries())
    entries = (1 << quantizer.planes) - 1
    values = np.empty((len(low), entries), np.int64)
    flags = np.empty((len(low), entries), np.uint8)
    for channel, (line, least, greatest) in enumerate(zip(_lines(stage, codes), low, high, strict=True)):
        negate = line.gain < 0
        found = integer_thresholds(line, grid, least, greatest)
        values[channel, : len(found)] = found
        values[channel, len(found) :] = least if negate else greatest + 1
        pool_min = stage.pool_first and line.falling
        flags[channel] = negate * THRESHOLD_NEGATE + pool_min * THRESHOLD_POOL_MIN
    return values, flags


@dataclass(frozen=True)
class Grid:
    """Boundaries of codes over one denominator: boundary ``i`` lies at ``numerators[i] / denominator``."""

    numerators: list[int]
    denominator: int
    inclusive: list[bool]

    @classmethod
    def of(cls, boundaries: Sequence[Boundary]) -> "Grid":
        """Bring boundaries to a common denominator."""
        denominator = int(np.lcm.reduce([boundary.value.denominator for boundary in boundaries], dtype=object))
        numerators = [int(boundary.value * denominator) for boundary in boundaries]
        return cls(numerators, denominator, [boundary.inclusive for boundary in boundaries])


def integer_thresholds(line: Line, grid: Grid, low: int, high: int) -> list[int]:
    """Accumulators at which a channel's code steps.

    Parameters
    ----------
    line
        From the accumulator to the input of the activation.
    grid
        Boundaries of the activation's codes.
    low, high
        Least and greatest accumulator.

    Returns
    -------
    thresholds
        For each boundary ``T``, from ``low`` to ``high + 1``, such that the boundary is reached exactly if ``A >= T``,
        or for a falling line exactly if ``A < T``.
    """
    gain, constant = line.gain, line.constant
    if gain == 0:
        # The same code for every accumulator: each boundary is below all of them or above.
        distances = (constant - Fraction(numerator, grid.denominator) for numerator in grid.numerators)
        reached = [gap > 0 or (gap == 0 and at) for gap, at in zip(distances, grid.inclusive, strict=True)]
        return [low if below else high + 1 for below in reached]
    # boundary = gain * A + constant, solved for A over one denominator: plain integers, no fraction for each boundary.
    scale = constant.denominator * gain.denominator
    shift = constant.numerator * grid.denominator * gain.denominator
    denominator = grid.denominator * constant.denominator * gain.numerator
    if denominator < 0:
        scale, shift, denominator = -scale, -shift, -denominator
    rising = gain > 0
    thresholds: list[int] = []
    for numerator, inclusive in zip(grid.numerators, grid.inclusive, strict=True):
        crossing = numerator * scale - shift
        # Rising: A >= crossing is A >= ceil, A > crossing is A >= floor + 1. Falling: A <= crossing is A < floor + 1,
        # A < crossing is A < ceil.
        threshold = -(-crossing // denominator) if rising == inclusive else crossing // denominator + 1
        thresholds.append(min(max(threshold, low), high + 1))
    return thresholds


# ---------------------------------------------------------------------------------------------------------------------
# Proof on images


@dataclass(frozen=True)
class Verification:
    """Comparison of a Program with its network in float64.

    Parameters
    ----------
    images
        Images compared.
    activations, mismatches
        Activations compared and those that differ, by layer; for the last layer outputs.
    """

    images: int
    activations: dict[str, int]
    mismatches: dict[str, int]


@torch.no_grad()
def verify(
    model: nn.Module,
    program: Program,
    images: npt.NDArray[np.uint8],
    *,
    at_once: int = 128,
    progress: Callable[[int], object] = lambda images: None,
) -> Verification:
    """Compare every activation of a Program with the network that it was lowered from, evaluated in float64.

    Parameters
    ----------
    model
        Network.
    program
        What :func:`lower` made of it.
    images
        ``uint8``, shape (n, channels, height, width).
    at_once
        Images that are computed together.
    progress
        Called with the number of images after each such group.
    """
    network = copy.deepcopy(model).double().eval()
    parts = stages(network)
    codes: list[npt.NDArray[np.uint8]] = []

    def keep(stage: Stage) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        source = _input_quantizer(stage)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0] - float(source.offset())
            codes.append(torch.round(values / float(source.step())).to(torch.uint8).numpy())

        return hook

    for stage in parts[1:]:
        stage.layer.register_forward_pre_hook(keep(stage))
    names = [stage.name for stage in parts]
    compared, mismatches = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for number, found in enumerate(network_values(program, images, at_once=at_once)):
        codes.clear()
        part = images[number * at_once : (number + 1) * at_once]
        outputs = network(torch.tensor(part, dtype=torch.float64)).numpy()
        for name, layer, ours, theirs in zip(names, program.parsed, found[1:], codes, strict=False):
            ours = np.moveaxis(ours[..., : layer.channels], -1, 1).reshape(theirs.shape)
            compared[name] += theirs.size
            mismatches[name] += int(np.count_nonzero(ours != theirs))
        results = found[-1][..., : outputs.shape[1]].reshape(outputs.shape)
        # Outputs are floats: the accumulator is right if no other one would be as near.
        margin = np.where(program.output_scale == 0, 1e-9, np.abs(program.output_scale) / 2)
        wrong = np.abs(program.logits(results) - outputs) > margin
        compared[names[-1]] += outputs.size
        mismatches[names[-1]] += int(np.count_nonzero(wrong))
        progress(len(part))
    return Verification(len(images), compared, mismatches)
