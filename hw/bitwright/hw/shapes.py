"""Layers as the planner sees them: shapes and precisions, and what an array refuses of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    CODE_TABLE_PLANES,
    ArraySpec,
    Encoding,
    has_coefficients,
    has_offset,
    split_planes,
    weight_planes,
)


@dataclass(frozen=True, kw_only=True)
class ResidualShape:
    """A second input of a layer, added before its thresholds: a 1×1 convolution of another layer's output.

    Parameters
    ----------
    source
        Name of the layer whose output is added.
    channels
        Its channels.
    stride
        (vertical, horizontal) steps in its image from one output pixel to the next.
    weight_encoding, weight_bits
        Of its weights, which have no offset; the defaults suit an identity shortcut: unit vectors. In a layer with
        coefficients, the addend's passes have coefficients too.
    shift
        The addend counts ``2**shift`` times; 0 in a layer with coefficients.
    """

    source: str
    channels: int
    stride: tuple[int, int] = (1, 1)
    weight_encoding: Encoding = "unsigned"
    weight_bits: int = 1
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Geometry and precision of a layer: what planning needs.

    Parameters
    ----------
    name
        Of the layer in the network, for messages.
    kind
        ``conv`` or ``linear``; a linear layer takes all of ``in_shape``, flattened channel first.
    in_shape
        (channels, height, width) of its input.
    out_channels
        Output channels, or features.
    kernel, stride, padding, dilation
        (vertical, horizontal) of a convolution.
    groups
        Groups of channels that a convolution keeps apart; as many as there are channels for a depthwise one.
    pool, pool_stride
        (vertical, horizontal) of the max pooling that follows, in floor mode; 1 for none.
    weight_encoding, weight_bits
        Encoding of the weights and its bits.
    output_planes
        Planes of the output codes; None for the last layer, whose results stay raw accumulators.
    source
        Name of the layer whose output it reads; None for the one before, or the image.
    residual
        Second input, or None.
    code_table
        Code of each rank, ``2**output_planes`` numbers, where codes do not rise with ranks; None where they do.
    codebook
        Integers of the weight encoding, in any order, that its weights are among: 2**``codebook_bits`` of the array at
        most. Their indices are streamed in in each run, also where the layer would fit in the weight memory. None for
        weights that are stored as they are.
    """

    name: str
    kind: Literal["conv", "linear"]
    in_shape: tuple[int, int, int]
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    pool: tuple[int, int] = (1, 1)
    pool_stride: tuple[int, int] = (1, 1)
    weight_encoding: Encoding = "signed"
    weight_bits: int = 8
    output_planes: int | None = None
    source: str | None = None
    residual: ResidualShape | None = None
    code_table: tuple[int, ...] | None = None
    codebook: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.conv_shape + self.out_shape) < 1:
            size = " × ".join(map(str, self.in_shape))
            raise BitwrightError(
                f"Layer {self.name!r} has no output: its input of {size} (channels × height × width) is too small for "
                f"its kernel of {self.kernel} and pooling of {self.pool}."
            )
        if self.groups < 1 or self.in_shape[0] % self.groups or self.out_channels % self.groups:
            raise BitwrightError(
                f"Layer {self.name!r} has {self.groups} groups of {self.in_shape[0]} input and {self.out_channels} "
                "output channels, expected a divisor of both."
            )

    @property
    def conv_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the output before pooling."""
        if self.kind == "linear":
            return self.out_channels, 1, 1
        sizes = zip(self.in_shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (
            (size + 2 * pad - step * (taps - 1) - 1) // stride + 1 for size, taps, stride, pad, step in sizes
        )
        return self.out_channels, height, width

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the output."""
        sizes = zip(self.conv_shape[1:], self.pool, self.pool_stride, strict=True)
        height, width = ((size - pool) // stride + 1 for size, pool, stride in sizes)
        return self.out_channels, height, width

    @property
    def stored_encoding(self) -> tuple[Encoding, int]:
        """Encoding and bits of the weights in memory.

        A clear bit of an encoding with an offset counts -1; where a row must not see a channel of another group, its
        weight has to be zero, so grouped convolutions store such weights in two's complement, with a bit more.
        """
        if self.groups > 1 and has_offset(self.weight_encoding):
            return "signed", self.weight_bits + 1
        return self.weight_encoding, self.weight_bits

    @property
    def stored_codebook(self) -> tuple[int, ...] | None:
        """The codebook, rising and each integer once, with the zero that channels of other groups need."""
        if self.codebook is None:
            return None
        return tuple(sorted({*map(int, self.codebook)} | ({0} if self.groups > 1 else set())))


def check_shape(shape: LayerShape, spec: ArraySpec, *, last: bool) -> None:
    """Refuse a layer that an array cannot run, whatever its memories hold.

    Raises
    ------
    BitwrightError
        With what was found and what the array takes.
    """

    def refuse(found: str, expected: str) -> None:
        raise BitwrightError(f"Layer {shape.name!r} {found}, {expected}.")

    if (shape.output_planes is None) != last:
        refuse("is raw" if not last else "has output codes", "expected raw results of the last layer and only there")
    if last and shape.pool != (1, 1):
        refuse("pools its raw results", "expected an activation before the pooling, or no pooling")
    coefficients = has_coefficients(shape.weight_encoding)
    if coefficients and not spec.coefficient_bits:
        refuse(f"has weights of encoding {shape.weight_encoding}", "this array has no multipliers (coefficient_bits 0)")
    if coefficients and shape.groups > 1 and has_offset(shape.weight_encoding):
        refuse("is a grouped convolution of ±1 basis weights", "expected the basis encoding, or no groups")
    if shape.residual is not None:
        if not spec.residual:
            refuse("adds a residual", "this array was built without (residual false)")
        if shape.pool != (1, 1) or shape.kind == "linear":
            refuse("pools or is linear, and adds a residual", "expected a convolution without pooling")
        if has_offset(shape.residual.weight_encoding):
            refuse("adds a residual", "expected weights without an offset for it")
        if coefficients and shape.residual.shift:
            refuse("adds a shifted residual to basis weights", "expected shift 0, and what it counts in coefficients")
    planes = [(len(weight_planes(*shape.stored_encoding)), "weights")]
    if shape.residual is not None:
        residual = weight_planes(shape.residual.weight_encoding, shape.residual.weight_bits)
        planes.append((len(residual), "weights for its residual"))
    for count, what in planes:
        if not 1 <= count <= spec.weight_planes_max:
            refuse(f"has {count}-bit {what}", f"this array takes 1 to {spec.weight_planes_max} (weight_planes_max)")
    if shape.output_planes is not None and not 1 <= shape.output_planes <= spec.activation_planes_max:
        refuse(
            f"has {shape.output_planes}-bit outputs",
            f"this array takes 1 to {spec.activation_planes_max} (activation_planes_max)",
        )
    if shape.code_table is not None:
        if not spec.coefficient_bits or (shape.output_planes or 99) > CODE_TABLE_PLANES:
            refuse(
                f"has a code table for {shape.output_planes} planes",
                f"expected an array with coefficients, and at most {CODE_TABLE_PLANES} planes",
            )
        if sorted(shape.code_table) != list(range(1 << (shape.output_planes or 0))):
            refuse(f"has the code table {shape.code_table}", "expected each code once")
    if shape.stored_codebook is not None:
        _check_codebook(shape, shape.stored_codebook, spec)
    tiles = -(-shape.out_channels // spec.rows)
    if tiles > spec.row_tiles_max:
        refuse(
            f"has {shape.out_channels} output channels",
            f"this array takes at most {spec.rows * spec.row_tiles_max} (rows × row_tiles_max)",
        )


def _check_codebook(shape: LayerShape, codebook: Sequence[int], spec: ArraySpec) -> None:
    """Refuse a codebook that the array cannot decode, or whose integers are not of the layer's encoding."""
    if not spec.codebook_bits:
        raise BitwrightError(
            f"Layer {shape.name!r} has a codebook, this array has no decoder (codebook_bits 0); set codebook_bits and "
            "weight_stream, or plan the layer without its codebook."
        )
    if wrong := [entry for entry in shape.codebook or () if entry not in codebook]:
        raise BitwrightError(f"Layer {shape.name!r} has {wrong[0]} in its codebook, expected integers only.")
    most = 1 << spec.codebook_bits
    if not 1 <= len(codebook) <= most:
        given = set(shape.codebook or ())
        zero = ", with the zero that a grouped convolution needs" if len(codebook) > len(given) else ""
        raise BitwrightError(
            f"Layer {shape.name!r} has a codebook of {len(codebook)} integers{zero}, this array takes 1 to {most} "
            "(2**codebook_bits)."
        )
    try:
        split_planes(np.array(codebook), *shape.stored_encoding)
    except BitwrightError as error:
        raise BitwrightError(f"Layer {shape.name!r} has a codebook beyond its weights: {error}") from error
