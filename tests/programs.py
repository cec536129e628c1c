"""Tiny Programs with random numbers, for tests: any encoding, shape and precision, without torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.isa import (
    FLAG_DENSE,
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    ArraySpec,
    Encoding,
    has_coefficients,
    has_offset,
    pass_coefficients,
)
from bitwright.hw.plan import Plan
from bitwright.hw.planner import plan
from bitwright.hw.program import Program
from bitwright.hw.shapes import LayerShape, ResidualShape


def conv(out_channels: int, kernel: int | tuple[int, int] = 3, **options: Any) -> dict[str, Any]:
    """Convolution for :func:`random_program`; pairs such as ``stride`` may be given as one number."""
    pairs: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "pool": 1} | options
    pairs.setdefault("pool_stride", pairs["pool"])
    for name in ("stride", "padding", "dilation", "pool", "pool_stride"):
        pairs[name] = _pair(pairs[name])
    return {"kind": "conv", "out_channels": out_channels, "kernel": _pair(kernel)} | pairs


def linear(out_channels: int, **options: Any) -> dict[str, Any]:
    """Linear layer for :func:`random_program`."""
    return {"kind": "linear", "out_channels": out_channels} | options


def shapes(in_shape: tuple[int, int, int], layers: Sequence[dict[str, Any]]) -> list[LayerShape]:
    """Layer shapes of a chain of :func:`conv` and :func:`linear`: weights and outputs of 2 bits where not given.

    ``source`` is the number of the layer that one reads, ``residual`` the arguments of a :class:`ResidualShape`, with a
    number as ``source`` too, and without ``channels``. ``zero_planes`` is for :func:`random_program`.
    """
    chain: list[LayerShape] = []
    for index, options in enumerate(layers):
        given: dict[str, Any] = {"weight_bits": 2, "output_planes": 2} | options
        given.pop("zero_planes", None)
        if index == len(layers) - 1:
            given["output_planes"] = None
        if "source" in given:
            in_shape = chain[given["source"]].out_shape
            given["source"] = f"layer{given['source']}"
        if "residual" in given:
            residual = dict(given["residual"])
            source = chain[residual["source"]]
            residual |= {"source": source.name, "channels": source.out_channels}
            given["residual"] = ResidualShape(**residual)
        chain.append(LayerShape(name=f"layer{index}", in_shape=in_shape, **given))
        in_shape = chain[-1].out_shape
    return chain


def with_dense(planned: Plan, dense: int) -> Plan:
    """The plan with ``FLAG_DENSE`` in part ``n`` if bit ``n`` is set, whatever pays; in an array that skips."""
    if planned.spec.zero_skip != "skip":
        return planned
    descriptors = [
        layer.flagged(FLAG_DENSE, bool(dense >> number & 1)) for number, layer in enumerate(planned.descriptors)
    ]
    return replace(planned, descriptors=tuple(descriptors))


def random_program(
    rng: np.random.Generator,
    spec: ArraySpec,
    layers: Sequence[dict[str, Any]],
    *,
    in_shape: tuple[int, int, int] = (3, 6, 6),
    input_bits: int = 8,
    batch: int = 1,
    dense: int = 0,
) -> Program:
    """Program of random weights and thresholds; the thresholds lie where random inputs make all codes likely.

    Parameters
    ----------
    rng
        Source of all numbers.
    spec
        Array.
    layers
        Entries of :func:`conv` and :func:`linear`, in order; the last one is raw. Planes of the weights, and of those
        of a residual, whose bits ``zero_planes`` has are zero, in all channels or from its second number on.
    in_shape
        (channels, height, width) of the images.
    input_bits
        Planes of the image codes.
    batch
        Images of one run.
    dense
        As :func:`with_dense` takes it: as it is, no layer is dense, whatever pays.
    """
    planned = with_dense(plan(shapes(in_shape, layers), spec, input_bits=input_bits, batch=batch), dense)
    weights, thresholds = [], []
    half = 1 << (spec.coefficient_bits - 1) if spec.coefficient_bits else 0
    residuals: dict[str, npt.NDArray[np.int64]] = {}
    coefficients: dict[str, npt.NDArray[np.int64]] = {}
    residual_coefficients: dict[str, npt.NDArray[np.int64]] = {}
    for index, info in enumerate(planned.layers):
        bits = planned.layers[index].weight_bits - (info.stored_encoding != info.weight_encoding)
        shape = (info.conv_shape[0], info.fan_in)
        planes, first = layers[index].get("zero_planes", (0, 0))
        if info.codebook is None:
            values = random_weights(rng, info.weight_encoding, bits, shape)
            values[first:] = clear_planes(values[first:], info.weight_encoding, bits, planes)
        else:
            values = rng.choice(np.array(info.codebook), shape)
        weights.append(values)
        largest = (1 << info.input_planes) - 1
        if has_coefficients(info.weight_encoding):
            shape = (info.conv_shape[0], info.weight_planes, info.input_planes)
            coefficients[info.name] = rng.integers(-half, half, shape)
            mean = coefficients[info.name].sum((1, 2)) * (0.25 if info.weight_encoding == "basis" else 0) * info.fan_in
            spread = np.sqrt((coefficients[info.name] ** 2).sum((1, 2)) * info.fan_in) / 2 + 1
        else:
            mean = values.sum(1) * largest / 2
            spread = np.sqrt((values**2).sum(1)) * largest / 2 + 1
        if info.residual_source is not None:
            channels = planned.layers[info.residual_source].conv_shape[0]
            addend = random_weights(rng, info.residual_encoding, info.residual_bits, (info.conv_shape[0], channels))
            addend[first:] = clear_planes(addend[first:], info.residual_encoding, info.residual_bits, planes)
            residuals[info.name] = addend
            # How often the passes of the input and of the addend count, by the last one of each.
            descriptor = planned.descriptors[[part.layer for part in planned.parts].index(index)]
            scales = pass_coefficients(descriptor.passes)
            main = min(abs(scale) for scale, entry in zip(scales, descriptor.passes, strict=True)
                       if entry.plane < info.input_planes)  # fmt: skip
            extra = min(abs(scale) for scale, entry in zip(scales, descriptor.passes, strict=True)
                        if entry.plane >= info.input_planes)  # fmt: skip
            codes = ((1 << info.residual_planes) - 1) / 2
            mean, spread = mean * main + addend.sum(1) * codes * extra, spread * main + extra
            if info.name in coefficients:
                shape = (info.conv_shape[0], info.residual_bits, info.residual_planes)
                residual_coefficients[info.name] = rng.integers(-half, half, shape)
        if info.output_planes:
            thresholds.append(_random_thresholds(rng, spec, mean, spread, info.output_planes))
    classes = planned.layers[-1].conv_shape[0]
    return planned.assemble(
        weights,
        thresholds,
        rng.random(classes),
        rng.random(classes),
        {"made by": "random_program"},
        residual_weights=residuals,
        coefficients=coefficients,
        residual_coefficients=residual_coefficients,
    )


def random_images(
    rng: np.random.Generator, program: Program, count: int, *, zeros: float = 0.3
) -> npt.NDArray[np.uint8]:
    """``count`` images of a Program's shape with about ``zeros`` of their pixels black, in blocks as real ones are."""
    shape = (count, program.input.channels, program.input.height, program.input.width)
    images = rng.integers(0, 256, shape, np.uint8)
    columns = rng.random((count, 1, 1, program.input.width)) < zeros
    return np.where(columns | (rng.random(shape) < zeros / 2), 0, images).astype(np.uint8)


def random_weights(
    rng: np.random.Generator, encoding: Encoding, bits: int, shape: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Integers of an encoding, uniform."""
    if encoding == "ternary":
        return rng.integers(-1, 2, shape)
    if has_coefficients(encoding) or encoding == "unsigned":
        return rng.integers(0, 1 << bits, shape)
    if has_offset(encoding):
        return 2 * rng.integers(0, 1 << bits, shape) - ((1 << bits) - 1)
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)


def clear_planes(weights: npt.NDArray[np.int64], encoding: Encoding, bits: int, planes: int) -> npt.NDArray[np.int64]:
    """Weights of an encoding with these planes, by their bits, cleared."""
    if encoding == "ternary":
        return np.clip(weights, 0 if planes & 2 else -1, 0 if planes & 1 else 1)
    if encoding == "signed":
        half = 1 << (bits - 1)
        return ((weights & ((1 << bits) - 1) & ~planes) ^ half) - half
    if has_offset(encoding) and not has_coefficients(encoding):
        offset = (1 << bits) - 1
        return 2 * ((weights + offset >> 1) & ~planes) - offset
    return weights & ~planes


def _random_thresholds(
    rng: np.random.Generator,
    spec: ArraySpec,
    mean: npt.NDArray[np.float64],
    spread: npt.NDArray[np.float64],
    planes: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Rising thresholds, or falling ones with the negate flag; a channel pools by maximum or by minimum."""
    levels = (1 << planes) - 1
    low, high = spec.derived.accumulator_range
    values = mean[:, None] + spread[:, None] * rng.standard_normal((len(mean), levels))
    values = np.sort(np.clip(np.rint(values), low, high).astype(np.int64), axis=1)
    negate = rng.random(len(mean)) < 0.4
    values[negate] = values[negate, ::-1]
    flags = negate * THRESHOLD_NEGATE + (rng.random(len(mean)) < 0.4) * THRESHOLD_POOL_MIN
    return values, flags.astype(np.uint8)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
