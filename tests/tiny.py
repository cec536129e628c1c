"""Tiny Programs, each made to exercise certain parts of the machine; a simulation takes a second or two."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.isa import ArraySpec, ZeroSkip
from bitwright.hw.program import Program
from programs import conv, linear, random_images, random_program

Case = tuple[Program, npt.NDArray[np.uint8]]


def spec(rows: int, columns: int, **options: Any) -> ArraySpec:
    """Array with few lanes and just enough memory."""
    memories: dict[str, Any] = {
        "lanes": 32,
        "accumulator_width": 16,
        "activation_depth": 512,
        "weight_depth": 512,
        "threshold_depth": 128,
        "descriptor_depth": 256,
        "result_depth": 64,
        "window_words_max": 32,
        "row_tiles_max": 16,
    }
    return ArraySpec(rows=rows, columns=columns, **memories | options)


def _case(
    array: ArraySpec, layers: list[dict[str, Any]], *, images: int = 1, zeros: float = 0.3, **options: Any
) -> Case:
    rng = np.random.default_rng(7)
    program = random_program(rng, array, layers, **options)
    return program, random_images(rng, program, images, zeros=zeros)


def padded(zero_skip: ZeroSkip) -> Case:
    """Signed weights; padding on all sides; pooling windows that do not fit in groups of three columns."""
    layers = [conv(5, 3, padding=1, output_planes=2), conv(3, 3, padding=1, pool=(3, 2), output_planes=3), linear(4)]
    return _case(spec(2, 3, zero_skip=zero_skip), layers, in_shape=(33, 3, 4), input_bits=2)


def offsets(zero_skip: ZeroSkip) -> Case:
    """Bipolar and odd weights; stride; a kernel and an image that are not square; rows that do not divide the lanes.

    The second layer's output replaces the image: what stays of it in a word's other lanes would be seen by the column
    sum of the last layer.
    """
    bipolar = {"weight_encoding": "bipolar", "weight_bits": 1}
    layers = [
        conv(7, (2, 3), stride=(2, 1), output_planes=2, **bipolar),
        conv(5, (1, 2), padding=(0, 1), output_planes=3, weight_encoding="odd", weight_bits=2),
        linear(5, weight_encoding="odd", weight_bits=3),
    ]
    return _case(spec(3, 2, zero_skip=zero_skip), layers, in_shape=(6, 5, 6), input_bits=3)


def overlapping(zero_skip: ZeroSkip) -> Case:
    """Overlapping pooling windows of nine pixels, over several groups; more channels than a word has lanes."""
    layers = [conv(35, 1, pool=3, pool_stride=2, output_planes=1, weight_bits=1), conv(2, 2), linear(3)]
    return _case(spec(5, 4, zero_skip=zero_skip), layers, in_shape=(1, 5, 5), input_bits=2)


def batches(zero_skip: ZeroSkip) -> Case:
    """Two runs of two images; ternary weights; dilation, with padding."""
    ternary = {"weight_encoding": "ternary", "weight_bits": 2}
    layers = [conv(6, 1, output_planes=1), conv(4, 2, padding=1, dilation=2, **ternary), linear(3, **ternary)]
    return _case(spec(4, 2, zero_skip=zero_skip), layers, in_shape=(1, 4, 4), input_bits=1, batch=2, images=3)


def drained(zero_skip: ZeroSkip) -> Case:
    """Row tiles that take longer to drain than to compute."""
    layers = [conv(9, 1, weight_bits=1, output_planes=4), conv(9, 1, weight_bits=1, output_planes=1), linear(9)]
    return _case(spec(2, 4, zero_skip=zero_skip), layers, in_shape=(1, 3, 3), input_bits=1)


def wide(zero_skip: ZeroSkip) -> Case:
    """Words of three bus words; eight-bit weights and codes; sums that wrap."""
    array = spec(4, 1, lanes=96, accumulator_width=9, threshold_depth=256, zero_skip=zero_skip)
    layers = [conv(3, 2, weight_bits=8, output_planes=8), linear(5, weight_bits=8)]
    return _case(array, layers, in_shape=(1, 3, 3), input_bits=8)


def black(zero_skip: ZeroSkip) -> Case:
    """Black images: passes with nothing to compute."""
    layers = [conv(3, 2, stride=2, output_planes=2), linear(3)]
    return _case(spec(2, 2, zero_skip=zero_skip), layers, in_shape=(40, 4, 4), input_bits=2, zeros=1.0)


def binary(zero_skip: ZeroSkip) -> Case:
    """An array for one-bit weights and codes only."""
    array = spec(2, 3, weight_planes_max=1, activation_planes_max=1, zero_skip=zero_skip)
    bipolar = {"weight_encoding": "bipolar", "weight_bits": 1}
    layers = [conv(4, 2, pool=2, output_planes=1, **bipolar), linear(2, **bipolar)]
    return _case(array, layers, in_shape=(2, 5, 5), input_bits=1)


CASES: dict[str, Callable[[ZeroSkip], Case]] = {
    case.__name__: case for case in (padded, offsets, batches, drained, black, binary, overlapping, wide)
}
"""Cases by name: functions of the way in which the array skips zeros."""
