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
        "drain_planes": 1,
        "residual": False,
        "accumulator_width": 16,
        "activation_depth": 512,
        "weight_depth": 512,
        "threshold_depth": 128,
        "descriptor_depth": 512,
        "result_depth": 64,
        "window_depth": 64,
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
    layers = [conv(6, 3, padding=1, output_planes=2), conv(3, 3, padding=1, pool=(3, 2), output_planes=3), linear(4)]
    return _case(spec(4, 3, zero_skip=zero_skip), layers, in_shape=(13, 3, 4), input_bits=2)


def offsets(zero_skip: ZeroSkip) -> Case:
    """Bipolar and odd weights; stride; a kernel and an image that are not square; columns that share a memory.

    Channels do not fill the last granule: lanes that an earlier layer left there would be seen by the column sum.
    """
    bipolar = {"weight_encoding": "bipolar", "weight_bits": 1}
    layers = [
        conv(7, (2, 3), stride=(2, 1), output_planes=2, **bipolar),
        conv(5, (1, 2), padding=(0, 1), output_planes=3, weight_encoding="odd", weight_bits=2),
        linear(5, weight_encoding="odd", weight_bits=3),
    ]
    return _case(spec(4, 2, columns_per_copy=2, zero_skip=zero_skip), layers, in_shape=(6, 5, 6), input_bits=3)


def overlapping(zero_skip: ZeroSkip) -> Case:
    """Overlapping pooling windows of nine pixels, over several groups; more channels than a word has lanes.

    Two columns take turns in a comparator.
    """
    array = spec(8, 4, columns_per_copy=2, pipelined=True, zero_skip=zero_skip)
    layers = [conv(35, 1, pool=3, pool_stride=2, weight_bits=1), conv(2, 2), linear(3)]
    return _case(array, layers, in_shape=(1, 5, 5), input_bits=2)


def batches(zero_skip: ZeroSkip) -> Case:
    """Two runs of two images; ternary weights; dilation, with padding."""
    ternary = {"weight_encoding": "ternary", "weight_bits": 2}
    layers = [conv(6, 1, output_planes=1), conv(4, 2, padding=1, dilation=2, **ternary), linear(3, **ternary)]
    return _case(spec(4, 2, zero_skip=zero_skip), layers, in_shape=(1, 4, 4), input_bits=1, batch=2, images=3)


def drained(zero_skip: ZeroSkip) -> Case:
    """Row tiles that take longer to drain than to compute."""
    layers = [conv(9, 1, weight_bits=1, output_planes=4), conv(9, 1, weight_bits=1, output_planes=1), linear(9)]
    return _case(spec(4, 4, zero_skip=zero_skip), layers, in_shape=(1, 3, 3), input_bits=1)


def wide(zero_skip: ZeroSkip) -> Case:
    """Words of four bus words; eight-bit weights and codes, two planes drained at once; sums that wrap."""
    array = spec(4, 1, lanes=128, drain_planes=2, accumulator_width=9, threshold_depth=256, zero_skip=zero_skip)
    layers = [conv(3, 2, weight_bits=8, output_planes=8), linear(5, weight_bits=8)]
    return _case(array, layers, in_shape=(1, 3, 3), input_bits=8)


def black(zero_skip: ZeroSkip) -> Case:
    """Black images: nothing to compute."""
    layers = [conv(3, 2, stride=2, output_planes=2), linear(3)]
    return _case(spec(4, 2, zero_skip=zero_skip), layers, in_shape=(40, 4, 4), input_bits=2, zeros=1.0)


def sparse(zero_skip: ZeroSkip) -> Case:
    """Dark images: passes in the middle of a window's have nothing to compute, or only words of some columns."""
    layers = [conv(4, 3, stride=2, weight_bits=3, output_planes=4), conv(4, 1, weight_bits=3), linear(3)]
    return _case(spec(4, 2, zero_skip=zero_skip), layers, in_shape=(12, 7, 7), input_bits=6, zeros=0.95)


def binary(zero_skip: ZeroSkip) -> Case:
    """An array for one-bit weights and codes only, with one read port for all descriptors."""
    array = spec(4, 3, weight_planes_max=1, activation_planes_max=1, prefetch=False, zero_skip=zero_skip)
    bipolar = {"weight_encoding": "bipolar", "weight_bits": 1}
    layers = [conv(4, 2, pool=2, output_planes=1, **bipolar), linear(2, **bipolar)]
    return _case(array, layers, in_shape=(2, 5, 5), input_bits=1)


def residual(zero_skip: ZeroSkip) -> Case:
    """Residual blocks: one as it is, one at a stride with weights of its own, and with an offset in the main path."""
    array = spec(4, 2, residual=True, lanes=64, drain_planes=2, zero_skip=zero_skip)
    identity = {"source": 0, "weight_encoding": "unsigned", "weight_bits": 1, "shift": 1}
    # Planes of ternary weights would cancel in a column sum that counted them.
    projection = {"source": 1, "stride": (2, 2), "weight_encoding": "signed", "weight_bits": 2}
    layers = [
        conv(6, 1, output_planes=2),
        conv(6, 3, padding=1, output_planes=3, residual=identity),
        conv(5, 3, stride=2, padding=1, weight_encoding="odd", residual=projection),
        linear(3),
    ]
    return _case(array, layers, in_shape=(3, 5, 4), input_bits=2)


def grouped(zero_skip: ZeroSkip) -> Case:
    """A depthwise and a grouped convolution: several descriptors for a layer, windows of parts of pixels."""
    bipolar = {"weight_encoding": "bipolar", "weight_bits": 1}
    layers = [
        conv(12, 1, weight_bits=1, output_planes=1),
        conv(12, 3, padding=1, groups=12),
        conv(8, 1, groups=2, output_planes=1, **bipolar),
        linear(3),
    ]
    return _case(spec(4, 2, zero_skip=zero_skip), layers, in_shape=(3, 4, 3), input_bits=1)


def bases(zero_skip: ZeroSkip) -> Case:
    """Counts times coefficients, of both kinds and of an addend; codes that do not rise with their ranks."""
    sizes: dict[str, Any] = {"coefficient_bits": 5, "coefficient_depth": 128, "accumulator_width": 18}
    array = spec(4, 2, residual=True, zero_skip=zero_skip, **sizes)
    addend = {"source": 1, "weight_encoding": "signed", "weight_bits": 2}
    layers = [
        conv(5, 2, weight_encoding="basis", weight_bits=2, code_table=(0, 2, 1, 3)),
        conv(6, 1, weight_encoding="bipolar_basis", weight_bits=3, pool=2, output_planes=1, code_table=(1, 0)),
        conv(4, 1, weight_encoding="odd", code_table=(3, 1, 2, 0)),
        conv(6, 1, weight_encoding="bipolar_basis", weight_bits=2, residual=addend),
        linear(3, weight_encoding="basis", weight_bits=2),
    ]
    return _case(array, layers, in_shape=(3, 5, 5), input_bits=2)


def dense(zero_skip: ZeroSkip) -> Case:
    """Dense layers among such that skip where the array does: words of zeros, odd numbers of groups, passes of a word.

    The groups of the second layer are computed in hardly more cycles than listing their passes would take.
    """
    layers = [
        conv(4, 2, output_planes=3),
        conv(4, 1, weight_bits=8, output_planes=2),
        conv(4, 2),
        conv(5, 1, output_planes=2),
        linear(3),
    ]
    return _case(spec(4, 2, zero_skip=zero_skip), layers, in_shape=(12, 4, 4), input_bits=4, zeros=0.9, dense=0b01011)


def streamed(zero_skip: ZeroSkip) -> Case:
    """Weights that do not fit: layers in parts, whose weights come while the part before computes."""
    array = spec(4, 2, lanes=64, weight_stream=True, weight_depth=8, zero_skip=zero_skip)
    return _case(array, [conv(20, 2), conv(9, 2), linear(3)], in_shape=(3, 4, 4), input_bits=2, images=2)


def coded(zero_skip: ZeroSkip) -> Case:
    """Indices of one to three planes, beside weights that stay; a grouped layer; a residual with weights as they are.

    The planes of the last layer take longer to write than its indices to come.
    """
    array = spec(
        4, 2, lanes=64, residual=True, weight_stream=True, codebook_bits=3, weight_depth=64, zero_skip=zero_skip
    )
    identity = {"source": 0, "weight_encoding": "ternary"}
    layers = [
        conv(20, 2, weight_bits=4, codebook=(-7, -3, -1, 0, 2, 4, 7)),
        conv(6, 3, padding=1, residual=identity, weight_encoding="odd", weight_bits=3, codebook=(-5, -1, 1, 7)),
        conv(8, 1, groups=2, weight_encoding="bipolar", weight_bits=1, codebook=(-1, 1)),
        conv(5, 2, weight_bits=3),
        linear(3, weight_bits=8, codebook=(-100, 27)),
    ]
    return _case(array, layers, in_shape=(3, 4, 4), input_bits=2, images=2)


CASES: dict[str, Callable[[ZeroSkip], Case]] = {
    case.__name__: case
    for case in (
        padded,
        offsets,
        batches,
        drained,
        black,
        sparse,
        binary,
        residual,
        grouped,
        bases,
        dense,
        streamed,
        coded,
        overlapping,
        wide,
    )
}
"""Cases by name: functions of the way in which the array skips zeros."""
