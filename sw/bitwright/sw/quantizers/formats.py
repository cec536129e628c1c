"""Number formats of few bits: FP8, FP4, NF4, and the block scaling of MX. Pure functions of tensors, no training.

Every format has the same three functions: ``encode`` to codes, ``decode`` back, and ``round``, which is one after the
other. All of them are exact: the boundary between two codes lies where the format says, whatever the type of the input.

Sources: OCP 8-bit Floating Point Specification (OFP8) 1.0 for FP8; OCP Microscaling Formats (MX) 1.0 for E2M1, E8M0 and
blocks; QLoRA (arXiv 2305.14314) and its bitsandbytes implementation for NF4. E3M0 is a convention of this project.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from bitwright.hw.errors import BitwrightError

SCALE_BIAS = 127
"""E8M0: a scale code counts ``2**(code - 127)``."""

SCALE_NAN = 255
"""E8M0: the code of a block that is not a number."""


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format: sign, exponent, mantissa.

    The value is ``(-1)^S * 2^(E - bias) * (1 + M / 2^mantissa_bits)``, or ``(-1)^S * 2^(1 - bias) * M /
    2^mantissa_bits`` where ``E = 0``. Values are rounded to the nearest one, from halfway to the even code.

    Parameters
    ----------
    name
        For messages.
    exponent_bits, mantissa_bits, bias
        Layout.
    special
        What the greatest magnitudes stand for: ``none``: numbers; ``nan``: NaN for the greatest of all, no infinity;
        ``inf``: infinity and NaN for the greatest exponent, as in IEEE 754.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    special: Literal["none", "nan", "inf"]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def finite(self) -> int:
        """Magnitudes that are numbers; their codes come first."""
        reserved = {"none": 0, "nan": 1, "inf": 1 << self.mantissa_bits}[self.special]
        return (1 << (self.bits - 1)) - reserved

    @property
    def unit(self) -> float:
        """Smallest positive value; every value is a multiple of it."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def largest(self) -> float:
        """Greatest finite value."""
        return float(self._magnitudes[self.finite - 1])

    @property
    def greatest_exponent(self) -> int:
        """Exponent of :attr:`largest`: ``emax`` of the MX specification."""
        return math.frexp(self.largest)[1] - 1

    @cached_property
    def _magnitudes(self) -> Tensor:
        """Value of each magnitude as if all were numbers, and of the one above; float64, (2**(bits - 1) + 1,)."""
        codes = torch.arange((1 << (self.bits - 1)) + 1)
        exponent, mantissa = codes >> self.mantissa_bits, codes & ((1 << self.mantissa_bits) - 1)
        significand = mantissa + (exponent > 0) * (1 << self.mantissa_bits)
        return torch.ldexp(significand.double(), exponent.clamp(min=1) - self.bias - self.mantissa_bits)

    @cached_property
    def _values(self) -> Tensor:
        """Value of each code, float64, (2**bits,)."""
        magnitudes = self._magnitudes[:-1].clone()
        magnitudes[self.finite :] = torch.nan
        if self.special == "inf":
            magnitudes[self.finite] = torch.inf
        return torch.cat([magnitudes, -magnitudes])

    @cached_property
    def _boundaries(self) -> Tensor:
        """Greatest float64 that is rounded down to each finite magnitude, (finite,)."""
        halves = (self._magnitudes[: self.finite] + self._magnitudes[1 : self.finite + 1]) / 2
        # Halfway, an odd magnitude goes up to the even one.
        halves[1::2] = torch.nextafter(halves[1::2], torch.zeros(()).double())
        return halves

    def encode(self, x: Tensor, *, saturate: bool = True) -> Tensor:
        """Give the codes of ``x``, uint8, of its shape.

        Parameters
        ----------
        x
            Floats.
        saturate
            Whether values beyond the greatest one, infinities included, become the greatest. Otherwise they overflow,
            from halfway to the next value that the layout would have: to infinity, or to NaN where there is none. A
            format without both always saturates.

        Raises
        ------
        BitwrightError
            If ``x`` has a NaN and the format has none.
        """
        isnan = x.isnan()
        if self.special == "none" and isnan.any():
            raise BitwrightError(f"A number to encode is NaN, which {self.name} does not have; expected numbers.")
        codes = _count_below(self._boundaries, x.abs())
        if saturate or self.special == "none":
            codes = codes.clamp(max=self.finite - 1)
        quiet = self.finite + ((1 << self.mantissa_bits) >> 1 if self.special == "inf" else 0)
        codes = torch.where(isnan, quiet, codes) + (x.signbit().long() << (self.bits - 1))
        return codes.to(torch.uint8)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give the values of codes, of their shape."""
        return _looked_up(self._values, codes, self.name).to(dtype)

    def round(self, x: Tensor, *, saturate: bool = True) -> Tensor:
        """Give the values that the codes of ``x`` stand for, in its type; NaN stays NaN in every format."""
        if saturate and self.mantissa_bits and x.dtype in (torch.float32, torch.float64):
            return self._rounded(x)
        isnan = x.isnan()
        rounded = self.decode(self.encode(x.nan_to_num(0, torch.inf, -torch.inf), saturate=saturate), x.dtype)
        return torch.where(isnan, x, rounded)

    def _rounded(self, x: Tensor) -> Tensor:
        """Round by arithmetic, which is faster than by codes: all steps but one are exact, as they only scale.

        With a mantissa, the even multiple of a step is that of the even code.
        """
        clipped = x.clamp(-self.largest, self.largest)
        magnitude = clipped.abs().clamp(min=2.0 ** (1 - self.bias))
        mantissa, _ = torch.frexp(magnitude)  # in [1/2, 1)
        step = magnitude / mantissa * 2.0 ** (-1 - self.mantissa_bits)
        return (clipped / step).round_() * step


E4M3 = FloatFormat("FP8 E4M3", 4, 3, 7, "nan")
E5M2 = FloatFormat("FP8 E5M2", 5, 2, 15, "inf")
E2M1 = FloatFormat("FP4 E2M1", 2, 1, 1, "none")
E3M0 = FloatFormat("FP4 E3M0", 3, 0, 3, "none")
"""Powers of two, 0.25 .. 16, and 0. No standard has it: bias and the code of zero are this project's convention."""


@dataclass(frozen=True)
class LevelFormat:
    """A format whose codes number given levels, in ascending order.

    A value gets the nearest level, from halfway the lower one; values beyond the ends get the ends.

    Parameters
    ----------
    name
        For messages.
    levels
        Ascending.
    """

    name: str
    levels: tuple[float, ...]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return (len(self.levels) - 1).bit_length()

    @cached_property
    def values(self) -> Tensor:
        """Levels, float64."""
        return torch.tensor(self.levels, dtype=torch.float64)

    @cached_property
    def _boundaries(self) -> Tensor:
        return (self.values[:-1] + self.values[1:]) / 2

    def encode(self, x: Tensor) -> Tensor:
        """Give the codes of ``x``, uint8, of its shape; NaN is refused."""
        if x.isnan().any():
            raise BitwrightError(f"A number to encode is NaN, which {self.name} does not have; expected numbers.")
        return _count_below(self._boundaries, x).to(torch.uint8)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Give the levels of codes, of their shape."""
        return _looked_up(self.values, codes, self.name).to(dtype)

    def round(self, x: Tensor) -> Tensor:
        """Give the nearest levels, in the type of ``x``; NaN stays NaN."""
        codes = _count_below(self._boundaries, x)
        return torch.where(x.isnan(), x, self.values.to(x).take(codes.long()))


NF4 = LevelFormat(
    "NF4",
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip
"""Quantiles of a normal distribution, made so that 0 is one: for numbers divided by the greatest magnitude of a block.

Rounded to float32, as in bitsandbytes. Code 7 is 0.
"""


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


@dataclass(frozen=True)
class Blocks:
    """Numbers in blocks with a scale each.

    Attributes
    ----------
    codes
        uint8, shape (..., blocks, block size); codes beyond ``length`` fill the last block.
    scales
        Shape (..., blocks): E8M0 codes, uint8, of MX; greatest magnitudes, float32, of NF4.
    length
        Numbers in the last axis of what was encoded.
    """

    codes: Tensor
    scales: Tensor
    length: int


@dataclass(frozen=True)
class MXFormat:
    """Microscaling: blocks along the last axis, whose elements share a power of two.

    The shared exponent is that of the greatest magnitude, less the greatest exponent of an element; elements saturate.
    A block that contains NaN or infinity is NaN as a whole. A block of zeros has the least exponent.

    Parameters
    ----------
    element
        Format of an element.
    block
        Elements of a block; 32 in the specification.
    """

    element: FloatFormat
    block: int = 32

    @property
    def bits_per_number(self) -> float:
        """Bits that a number takes, its share of the scale included."""
        return self.element.bits + 8 / self.block

    def encode(self, x: Tensor) -> Blocks:
        """Encode floats of shape (..., n)."""
        blocks = into_blocks(x, self.block)
        exponents, isnan = self._exponents(blocks)
        scaled = torch.where(isnan[..., None], 0, torch.ldexp(blocks, -exponents[..., None]))
        scales = torch.where(isnan, SCALE_NAN, exponents + SCALE_BIAS)
        return Blocks(self.element.encode(scaled), scales.to(torch.uint8), x.shape[-1])

    def decode(self, blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decode to shape (..., n)."""
        exponents = blocks.scales.int() - SCALE_BIAS
        values = torch.ldexp(self.element.decode(blocks.codes, torch.float64), exponents[..., None])
        values = torch.where(blocks.scales[..., None] == SCALE_NAN, torch.nan, values)
        return out_of_blocks(values, blocks.length).to(dtype)

    def round(self, x: Tensor) -> Tensor:
        """Give the values that ``x`` is encoded as, in its type."""
        return self.decode(self.encode(x), x.dtype)

    def scales(self, x: Tensor) -> Tensor:
        """Give the scale of each number's block, a power of two, in shape and type of ``x``; NaN for such blocks."""
        exponents, isnan = self._exponents(into_blocks(x, self.block))
        scales = torch.where(isnan, torch.nan, torch.ldexp(torch.ones_like(exponents, dtype=x.dtype), exponents))
        return out_of_blocks(scales[..., None].expand(*scales.shape, self.block), x.shape[-1])

    def _exponents(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Shared exponents, and which blocks have none."""
        greatest = blocks.abs().amax(-1)
        exponents = torch.frexp(greatest)[1] - 1 - self.element.greatest_exponent
        exponents = torch.where(greatest > 0, exponents, -SCALE_BIAS).clamp(min=-SCALE_BIAS)
        return exponents, ~greatest.isfinite() | (exponents > SCALE_BIAS)


@dataclass(frozen=True)
class AbsmaxFormat:
    """Blocks along the last axis, each divided by its greatest magnitude: how NF4 is stored.

    Parameters
    ----------
    element
        Levels in [-1, 1].
    block
        Elements of a block.
    """

    element: LevelFormat
    block: int = 64

    @property
    def bits_per_number(self) -> float:
        """Bits that a number takes, its share of a scale of 32 bits included."""
        return self.element.bits + 32 / self.block

    def encode(self, x: Tensor) -> Blocks:
        """Encode floats of shape (..., n), all finite."""
        if not x.isfinite().all():
            raise BitwrightError(f"A number to encode as {self.element.name} is NaN or infinite; expected numbers.")
        blocks = into_blocks(x, self.block)
        scales = blocks.abs().amax(-1).float()
        return Blocks(self.element.encode(blocks / _not_zero(scales)[..., None]), scales, x.shape[-1])

    def decode(self, blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
        """Decode to shape (..., n)."""
        values = self.element.decode(blocks.codes, torch.float64) * blocks.scales[..., None]
        return out_of_blocks(values, blocks.length).to(dtype)

    def scales(self, x: Tensor) -> Tensor:
        """Give the scale of each number's block, in shape and type of ``x``; 1 for blocks of zeros."""
        greatest = _not_zero(into_blocks(x, self.block).abs().amax(-1))
        return out_of_blocks(greatest[..., None].expand(*greatest.shape, self.block), x.shape[-1])


def into_blocks(x: Tensor, size: int) -> Tensor:
    """Cut the last axis into blocks, shape (..., ceil(n / size), size); zeros fill the last one."""
    missing = -x.shape[-1] % size
    return torch.nn.functional.pad(x, (0, missing)).unflatten(-1, (-1, size))


def out_of_blocks(blocks: Tensor, length: int) -> Tensor:
    """Undo :func:`into_blocks` for a last axis of ``length``."""
    return blocks.flatten(-2)[..., :length]


def _not_zero(scales: Tensor) -> Tensor:
    """Divisors in place of scales that may be zero; NaN stays."""
    return torch.where(scales == 0, 1, scales)


def _count_below(boundaries: Tensor, x: Tensor) -> Tensor:
    """Count the boundaries, ascending and float64, that are less than each number, exactly; integers."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    # A number of the type of x is above a boundary if it is above the greatest number of its type up to there.
    nearest = boundaries.to(x.dtype)
    lower = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    below = torch.where(nearest.double() > boundaries, lower, nearest)
    if len(below) > 16:
        return torch.searchsorted(below.to(x.device), x.contiguous())
    count = torch.zeros_like(x, dtype=torch.uint8)
    for boundary in below.tolist():
        count += x > boundary
    return count


def _looked_up(values: Tensor, codes: Tensor, name: str) -> Tensor:
    """Values of codes, which are checked."""
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < len(values):
        raise BitwrightError(
            f"A code of {name} is outside 0 to {len(values) - 1}; give codes of {(len(values) - 1).bit_length()} bits."
        )
    return values.to(codes.device)[codes.long()]
