"""One layer in exact arithmetic: the integers that the hardware holds, and the line from accumulator to value.

Every number of a network is rational: floats are binary fractions, quantization steps are given as fractions, and a
batch norm is the pair of float64 numbers that PyTorch makes of it before it sees any data. Up to its activation
function a layer is therefore exactly::

    x = Σ weight * activation + bias + factor * addend          the addend of a residual block, if there is one
    y = norm_factor * x + norm_shift                            where norm_factor = gamma / sqrt(var + eps)

With ``weight = scale * integer`` and ``activation = step * code + offset``, and the addend scaled as
:mod:`bitwright.sw.residual` says, that is ``y = gain * A + constant`` for an integer accumulator ``A``. With a basis
(:mod:`bitwright.sw.quantizers.basis`) the products of coefficients, and the values of the addend's planes, are rounded
to integers: ``A`` counts units of ``2**-f``, and the line is exact for the rounded ones. Each output channel has its
own ``f``, the largest with which its coefficients fit the array's ``coefficient_bits`` and its sums the accumulators:
thresholds and scales belong to the channel anyway, so that this costs nothing and gives narrow channels the precision
that one ``f`` for the layer would take from them.

An average pooling is a depthwise convolution of ones. Before a fully connected layer it needs no layer of its own: each
weight is repeated for every pixel that its input averages, and divided by their number.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    ArraySpec,
    Encoding,
    has_coefficients,
    has_offset,
    weight_planes,
)
from bitwright.hw.shapes import LayerShape, ResidualShape
from bitwright.sw.quantizers import ActivationQuantizer, ImageInput
from bitwright.sw.quantizers.basis import BasisActivation, BasisCodes, bit_values, fixed_point, rounded
from bitwright.sw.residual import QuantizedShortcut
from bitwright.sw.stages import Average, Stage, pair
from bitwright.sw.thresholds import Grid, Line, integer_thresholds

Ints = npt.NDArray[np.int64]
Shape = tuple[int, int, int]
"""Channels, height, width."""


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def layer_shape(stage: Stage, in_shape: Shape, addend_shape: Shape | None) -> LayerShape:
    """Geometry and precision of a layer.

    Parameters
    ----------
    stage
        The layer and what follows it.
    in_shape
        What the layer before it makes.
    addend_shape
        What its shortcut adds, if it has one.
    """
    encoding, bits = _weight_format(stage)
    options: dict[str, Any] = {}
    layer = stage.layer
    if isinstance(layer, nn.Conv2d):
        sizes = {"kernel": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
        options |= {name: pair(size) for name, size in (sizes | {"dilation": layer.dilation}).items()}  # pyright: ignore[reportArgumentType]: numbers, by `stages`
        options |= {"kind": "conv", "groups": layer.groups, "out_channels": layer.out_channels}
        _expect_size(stage, "input channels", layer.in_channels, in_shape[0], in_shape)
    elif isinstance(layer, nn.Linear):
        options |= {"kind": "linear", "out_channels": layer.out_features}
        windows = _averaged_windows(stage, in_shape)
        features = in_shape[0] * (in_shape[1] // windows[0]) * (in_shape[2] // windows[1])
        _expect_size(stage, "input features", layer.in_features, features, in_shape)
    else:
        kernel, stride = _average_sizes(layer, in_shape)
        options |= {"kind": "conv", "kernel": kernel, "stride": stride}
        options |= {"groups": in_shape[0], "out_channels": in_shape[0]}
    if stage.pool is not None:
        options |= {"pool": pair(stage.pool.kernel_size), "pool_stride": pair(stage.pool.stride)}
    if stage.activation is not None:
        activation = output_quantizer(stage)
        options["output_planes"] = activation.planes
        if isinstance(activation, BasisActivation):
            table = activation.code_table()
            options["code_table"] = None if table == tuple(range(len(table))) else table
    options["codebook"] = _codebook(stage, encoding, bits)
    shape = LayerShape(name=stage.name, in_shape=in_shape, weight_encoding=encoding, weight_bits=bits, **options)
    return shape if addend_shape is None else replace(shape, residual=_residual_shape(stage, shape, addend_shape))


def _expect_size(stage: Stage, what: str, wanted: int, found: int, in_shape: Shape) -> None:
    if wanted != found:
        shown = " × ".join(map(str, in_shape))
        raise BitwrightError(f"Layer {stage.name!r} takes {wanted} {what}, its input of {shown} has {found}.")


def _weight_format(stage: Stage) -> tuple[Encoding, int]:
    """Encoding of the weights and its bits."""
    encoding: Encoding = "unsigned"
    bits = 1
    if stage.weighted:
        quantizer = stage.weight_quantizer
        if quantizer is None:
            raise BitwrightError(f"Layer {stage.name!r} has float weights, expected quantized ones; give them bits.")
        if (obstacle := quantizer.obstacle()) is not None:
            raise BitwrightError(f"Layer {stage.name!r}: {obstacle}")
        encoding, bits = quantizer.encoding, quantizer.planes
    based = any(isinstance(each, BasisActivation) for each in (input_quantizer(stage), stage.addend_quantizer))
    return (basis_encoding(encoding) if based else encoding), bits


def _codebook(stage: Stage, encoding: Encoding, planes: int) -> tuple[int, ...] | None:
    """Integers that the weights are among, where their method numbers them; codes of a basis, where they are that."""
    quantizer = stage.weight_quantizer
    if quantizer is None:
        return None
    try:
        codebook = quantizer.codebook()
    except BitwrightError as error:
        raise BitwrightError(f"Layer {stage.name!r}: {error}") from error
    if codebook is None:
        return None
    integers = codebook.numpy()
    if has_coefficients(encoding):
        integers = _plane_codes(integers, quantizer.encoding, planes)
    return tuple(sorted(integers.tolist()))


def basis_encoding(encoding: Encoding) -> Encoding:
    """Encoding by which the same planes count coefficients: those of a uniform encoding are powers of two."""
    if has_coefficients(encoding):
        return encoding
    return "bipolar_basis" if has_offset(encoding) else "basis"


def _average_sizes(layer: Average, in_shape: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel and stride of an average pooling."""
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return (in_shape[1], in_shape[2]), (1, 1)
    return pair(layer.kernel_size), pair(layer.stride)


def _averaged_windows(stage: Stage, in_shape: Shape) -> tuple[int, int]:
    """Pixels that the average pooling before a fully connected layer makes one of; (1, 1) without it."""
    if stage.average is None:
        return 1, 1
    kernel, stride = _average_sizes(stage.average, in_shape)
    whole = kernel == (in_shape[1], in_shape[2])
    if not whole and (kernel != stride or in_shape[1] % kernel[0] or in_shape[2] % kernel[1]):
        raise BitwrightError(
            f"Layer {stage.name!r} averages {kernel[0]} × {kernel[1]} pixels at stride {stride[0]} × {stride[1]} of "
            f"{in_shape[1]} × {in_shape[2]}, expected windows side by side that cover all of it; put an nn.ReLU after "
            "the pooling to make it a layer of its own."
        )
    return kernel


def _residual_shape(stage: Stage, shape: LayerShape, addend_shape: Shape) -> ResidualShape:
    shortcut = stage.shortcut
    # With a basis the addend's planes have coefficients of their own, otherwise one power of two for all.
    based = has_coefficients(shape.weight_encoding)
    if shortcut is None or stage.addend_quantizer is None or based == isinstance(shortcut, QuantizedShortcut):
        raise BitwrightError(
            f"Layer {stage.name!r} adds {stage.addend_stage!r} in float, expected a quantized shortcut; give bits to "
            "the weights and to both inputs."
        )
    # With an offset the hardware doubles what it has summed up, the addend included.
    exponent = shortcut.exponent if isinstance(shortcut, QuantizedShortcut) else 0
    shift = 0 if based else exponent - has_offset(shape.stored_encoding[0])
    stride = shortcut.stride, shortcut.stride
    return ResidualShape(source=stage.addend_stage, channels=addend_shape[0], stride=stride, shift=shift)


def input_quantizer(stage: Stage) -> ActivationQuantizer | ImageInput:
    """Quantizer of a layer's input."""
    quantizer = stage.input_quantizer
    if quantizer is None:
        raise BitwrightError(f"Layer {stage.name!r} has a float input, expected a quantized one; give it bits.")
    return quantizer


def output_quantizer(stage: Stage) -> ActivationQuantizer:
    """Quantizer of a layer's output."""
    if not isinstance(stage.activation, ActivationQuantizer):
        kind = type(stage.activation).__name__
        raise BitwrightError(
            f"Layer {stage.name!r} is followed by a {kind} in float, expected a quantizer; give it bits."
        )
    return stage.activation


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


@dataclass(frozen=True)
class LayerNumbers:
    """What the hardware holds of one layer, and what its accumulators mean.

    Attributes
    ----------
    weights
        Integers, or codes of a basis, as :meth:`bitwright.hw.plan.Plan.assemble` takes them.
    lines
        From accumulator to value, for each channel.
    low, high
        Least and greatest accumulator of each channel, for any codes.
    residual
        Weights of the addend, shape (channels, channels of the addend); None without.
    coefficients
        Shape (channels, weight planes, input planes); None without a basis.
    residual_coefficients
        Of the addend, shape (channels, 1, its planes); None without it or a basis.
    """

    weights: Ints
    lines: list[Line]
    low: list[int]
    high: list[int]
    residual: Ints | None = None
    coefficients: Ints | None = None
    residual_coefficients: Ints | None = None


def layer_numbers(stage: Stage, shape: LayerShape, spec: ArraySpec) -> LayerNumbers:
    """Integers and lines of a layer whose modules are in float64.

    Raises
    ------
    BitwrightError
        If a parameter is not finite, or the accumulators do not fit the array.
    """
    try:
        weights = _weights(stage, shape)
    except BitwrightError as error:
        raise BitwrightError(f"Layer {stage.name!r}: {error}") from error
    if has_coefficients(shape.weight_encoding):
        return _basis_numbers(stage, shape, weights, spec)
    return _uniform_numbers(stage, shape, weights, spec)


def layer_thresholds(stage: Stage, numbers: LayerNumbers) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """Thresholds, (channels, 2**planes - 1), and each channel's flags.

    Codes that the quantizer does not use are never reached.
    """
    quantizer = output_quantizer(stage)
    grid = Grid.of(quantizer.boundaries())
    entries = (1 << quantizer.planes) - 1
    values = np.empty((len(numbers.lines), entries), np.int64)
    flags = np.empty(len(numbers.lines), np.uint8)
    for channel, (line, least, greatest) in enumerate(zip(numbers.lines, numbers.low, numbers.high, strict=True)):
        negate = line.gain < 0
        found = integer_thresholds(line, grid, least, greatest)
        values[channel, : len(found)] = found
        values[channel, len(found) :] = least if negate else greatest + 1
        pool_min = stage.pool_first and line.falling
        flags[channel] = negate * THRESHOLD_NEGATE + pool_min * THRESHOLD_POOL_MIN
    return values, flags


@dataclass(frozen=True)
class _Weights:
    """Weights of a layer, exactly.

    Attributes
    ----------
    integers
        Integers, or codes of a basis.
    encoding, planes
        What the integers are.
    scales
        Value of the integer 1, for each channel; empty with a basis.
    basis
        Value of each plane, for each channel; empty without.
    """

    integers: Ints
    encoding: Encoding
    planes: int
    scales: list[Fraction]
    basis: list[list[Fraction]]


def _weights(stage: Stage, shape: LayerShape) -> _Weights:
    layer = stage.layer
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        ones = np.ones((shape.out_channels, 1, *shape.kernel), np.int64)
        scale = Fraction(1, shape.kernel[0] * shape.kernel[1])
        weights = _Weights(ones, "unsigned", 1, [scale] * shape.out_channels, [])
    else:
        # Of a quantizer with a basis they are `BasisCodes`, which its parent does not know.
        codes: Any = stage.weight_codes()
        integers = codes.integers.numpy()
        if isinstance(codes, BasisCodes):
            basis = [[Fraction(value) for value in row] for row in codes.basis.tolist()]
            weights = _Weights(integers, codes.encoding, codes.planes, [], basis)
        else:
            scales = [Fraction(scale) for scale in codes.scale.tolist()]
            weights = _Weights(integers, codes.encoding, codes.planes, scales, [])
    if stage.average is not None:
        weights = _averaged(weights, shape.in_shape, _averaged_windows(stage, shape.in_shape))
    return _with_basis(weights) if has_coefficients(shape.weight_encoding) and not weights.basis else weights


def _averaged(weights: _Weights, in_shape: Shape, windows: tuple[int, int]) -> _Weights:
    """Weights of an average's features, repeated for the pixels that they average."""
    (channels, height, width), (rows, columns) = in_shape, windows
    features = weights.integers.reshape(-1, channels, height // rows, width // columns)
    area = rows * columns
    return _Weights(
        features.repeat(rows, 2).repeat(columns, 3).reshape(len(features), -1),
        weights.encoding,
        weights.planes,
        [scale / area for scale in weights.scales],
        [[value / area for value in row] for row in weights.basis],
    )


def _with_basis(weights: _Weights) -> _Weights:
    """Weights of a uniform encoding as codes, whose basis are the significances of the planes."""
    planes, encoding = weights.planes, weights.encoding
    codes = _plane_codes(weights.integers, encoding, planes)
    values = [-(1 << power) if negate else 1 << power for power, negate in weight_planes(encoding, planes)]
    basis = [[scale * value for value in values] for scale in weights.scales]
    return _Weights(codes, basis_encoding(encoding), planes, [], basis)


def _plane_codes(integers: Ints, encoding: Encoding, planes: int) -> Ints:
    """Codes whose bits are the planes of the integers of a uniform encoding."""
    if encoding == "ternary":
        return (integers > 0) + 2 * (integers < 0).astype(np.int64)
    if has_offset(encoding):
        return (integers + (1 << planes) - 1) >> 1
    return integers & ((1 << planes) - 1)


def _uniform_numbers(stage: Stage, shape: LayerShape, weights: _Weights, spec: ArraySpec) -> LayerNumbers:
    source, channels = input_quantizer(stage), len(weights.integers)
    step, offset = source.step(), source.offset()
    flat = weights.integers.reshape(channels, -1)
    largest = source.levels - 1
    low, high = np.minimum(flat, 0).sum(1) * largest, np.maximum(flat, 0).sum(1) * largest
    constants = [scale * offset * total for scale, total in zip(weights.scales, flat.sum(1).tolist(), strict=True)]
    unit, residual = 1, None
    if shape.residual is not None:
        addend, added = stage.addend_quantizer, shape.residual.channels
        assert addend is not None
        # The passes of least significance count 1.
        unit = 1 << max(0, -shape.residual.shift)
        count = unit * Fraction(2) ** (shape.residual.shift + has_offset(shape.stored_encoding[0]))
        assert count.denominator == 1
        residual = np.eye(channels, added, dtype=np.int64)
        low, high = low * unit, high * unit
        high[:added] += count.numerator * (addend.levels - 1)
        for channel in range(added):
            # The addend's codes count `scale * step * count / unit`, which is `factor * addend.step()`.
            factor = weights.scales[channel] * step * count / unit / addend.step()
            constants[channel] += factor * addend.offset()
    _check_width(stage, int(low.min()), int(high.max()), spec)
    gains = [scale * step / unit for scale in weights.scales]
    return LayerNumbers(weights.integers, _lines(stage, gains, constants), low.tolist(), high.tolist(), residual)


def _basis_numbers(stage: Stage, shape: LayerShape, weights: _Weights, spec: ArraySpec) -> LayerNumbers:
    source, channels = input_quantizer(stage), len(weights.integers)
    values = _plane_values(source)
    counts = bit_values(weights.planes, "bipolar_basis" if has_offset(weights.encoding) else "basis").long().numpy()
    inputs = bit_values(len(values), "basis").long().numpy()
    flat = weights.integers.reshape(channels, -1)
    coefficients = np.empty((channels, weights.planes, len(values)), np.int64)
    addend_channels = shape.residual.channels if shape.residual is not None else 0
    addend_values = [] if stage.addend_quantizer is None else _plane_values(stage.addend_quantizer)
    residual = np.zeros((channels, 1, len(addend_values)), np.int64)
    gains, constants, lows, highs = [], [], [], []
    for channel, basis in enumerate(weights.basis):
        addend = addend_values if channel < addend_channels else []
        products = [weight * value for weight in basis for value in values]
        used = np.bincount(flat[channel], minlength=1 << weights.planes)  # how many weights have each code
        f = fixed_point([*products, *addend], spec.coefficient_bits)
        while True:
            numbers = np.array(rounded(products, f), np.int64).reshape(weights.planes, -1)
            added = np.array(rounded(addend, f), np.int64)
            terms = counts @ numbers @ inputs.T  # of each weight's code and each input's
            low = int(used @ terms.min(1)) + int(np.minimum(added, 0).sum())
            high = int(used @ terms.max(1)) + int(np.maximum(added, 0).sum())
            if _width(stage, low, high) <= spec.accumulator_width:
                break
            f -= 1
        if any(products) and not numbers.any():
            raise BitwrightError(
                f"Layer {stage.name!r} leaves no bit for its coefficients in accumulators of {spec.accumulator_width} "
                "bits (accumulator_width); choose a larger array."
            )
        coefficients[channel], residual[channel, :, : len(added)] = numbers, added
        gains.append(1 / Fraction(2) ** f)
        totals = (used @ counts).tolist()
        constant = source.offset() * sum(value * total for value, total in zip(basis, totals, strict=True))
        if addend and stage.addend_quantizer is not None:
            constant += stage.addend_quantizer.offset()
        constants.append(constant)
        lows.append(low)
        highs.append(high)
    found = LayerNumbers(weights.integers, _lines(stage, gains, constants), lows, highs, coefficients=coefficients)
    if shape.residual is None:
        return found
    unit_vectors = np.eye(channels, addend_channels, dtype=np.int64)
    return replace(found, residual=unit_vectors, residual_coefficients=residual)


def _plane_values(source: ActivationQuantizer | ImageInput) -> list[Fraction]:
    """Value of each plane of a quantizer's codes."""
    if isinstance(source, BasisActivation):
        return list(source.basis())
    return [source.step() * (1 << plane) for plane in range(source.planes)]


def _width(stage: Stage, low: int, high: int) -> int:
    """Bits of accumulators from ``low`` to ``high``, and of thresholds just above."""
    # In two's complement n and -n - 1 take the bits of n and a sign.
    return 1 + max((high + (stage.activation is not None)).bit_length(), (-low - 1).bit_length() if low < 0 else 0)


def _check_width(stage: Stage, low: int, high: int, spec: ArraySpec) -> None:
    """Refuse layers whose accumulators, and thresholds just above the greatest of them, do not fit."""
    if (needed := _width(stage, low, high)) > spec.accumulator_width:
        raise BitwrightError(
            f"Layer {stage.name!r} needs accumulators of {needed} bits, this array has {spec.accumulator_width} "
            "(accumulator_width); choose fewer bits for its weights or input, or a larger array."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Lines


def _lines(stage: Stage, gains: list[Fraction], constants: list[Fraction]) -> list[Line]:
    """Lines of all channels, from those up to the bias: ``gain * accumulator + constant``."""
    channels = len(gains)
    biases = _numbers(stage, getattr(stage.layer, "bias", None), channels, 0.0)
    factors, shifts = _norm_line(stage, channels)
    lines: list[Line] = []
    for gain, constant, *floats in zip(gains, constants, biases, factors, shifts, strict=True):
        bias, factor, shift = map(Fraction, floats)
        lines.append(Line(factor * gain, factor * (constant + bias) + shift, factor < 0))
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
