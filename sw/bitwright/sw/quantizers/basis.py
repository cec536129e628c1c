"""Bases: numbers that are sums of learned coefficients, one for each bit plane, as in LQ-Nets (arXiv 1807.10029).

Weights have a basis for each output channel, activations one for the layer that makes them::

    weight = Σ_i cw[channel, i] * e_i        e_i is bit i of the weight's code: 0 or 1, or -1 or 1 (bipolar)
    activation = offset + Σ_j ca[j] * b_j    b_j is bit j of the activation's code

A quantizer of weights offers its numbers by giving :class:`BasisCodes` in place of
:class:`~bitwright.sw.quantizers.WeightCodes`, one of activations by being a :class:`BasisActivation`. The hardware
multiplies each count of ones by the integer ``round(2**f * cw[channel, i] * ca[j])``; see :func:`fixed_point`.

Bases are learned by alternating two steps, which never raise the squared error: :meth:`Levels.nearest` gives each
number the nearest level, :meth:`Levels.best_basis` solves for the best basis of these codes (QEM, section 3.2 there).
Numbers are tensors of shape (n, channels, m) there, with one basis for each channel, or one for all.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import ActivationQuantizer, Boundary, StraightThrough

BasisEncoding = Literal["basis", "bipolar_basis"]

REGULARIZATION = 1e-4
"""What holds a coefficient where it was if no code, or every code, has its bit: as in the LQ-Nets authors' code."""


CACHED_NUMBERS = 1 << 18
"""Numbers of a block that a CPU quantizes at a time, about: with their mask and levels they fit most caches."""


@dataclass(frozen=True)
class BasisCodes:
    """A weight tensor as codes and bases.

    Attributes
    ----------
    integers
        Codes, int64, of the weight's shape, 0 .. 2**planes - 1.
    basis
        float64, shape (output channels, planes).
    encoding
        ``basis``: a set bit counts its coefficient, a clear one nothing; ``bipolar_basis``: a clear one minus that.
    """

    integers: Tensor
    basis: Tensor
    encoding: BasisEncoding

    @property
    def planes(self) -> int:
        """Bit planes of a code."""
        return self.basis.shape[1]

    def values(self) -> Tensor:
        """Weights that the codes stand for, float64."""
        levels = self.basis @ bit_values(self.planes, self.encoding).T
        flat = self.integers.reshape(len(self.basis), -1)
        return levels.gather(1, flat).reshape(self.integers.shape)


class BasisActivation(ActivationQuantizer):
    """An activation function whose outputs are ``offset + Σ_j basis[j] * bit j of the code``.

    An input gets the nearest level, halfway the lower one. Padding holds code 0, which need not be the least level.
    """

    @abstractmethod
    def basis(self) -> Sequence[Fraction]:
        """Coefficients of the planes, of any sign and order."""

    def offset(self) -> Fraction:
        """Value of code 0."""
        return Fraction(0)

    def step(self) -> Fraction:
        """Refuse: there is no common distance."""
        raise BitwrightError(f"{type(self).__name__} has a basis and no step, expected a uniform quantizer.")

    def levels_by_code(self) -> list[Fraction]:
        """Value of each code."""
        basis = self.basis()
        return [
            self.offset() + sum((value for plane, value in enumerate(basis) if code >> plane & 1), Fraction(0))
            for code in range(self.levels)
        ]

    def code_table(self) -> tuple[int, ...]:
        """Code of each rank: of the least level, the next one, and so on."""
        levels = self.levels_by_code()
        return tuple(sorted(range(self.levels), key=lambda code: levels[code]))

    def boundaries(self) -> list[Boundary]:
        """Halfway between neighbouring levels: where the *ranks* 1 .. ``levels - 1`` begin."""
        return [Boundary((low + high) / 2, False) for low, high in pairwise(sorted(self.levels_by_code()))]

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give codes, and that the gradient passes up to the greatest level."""
        halves = x.new_tensor([float(boundary.value) for boundary in self.boundaries()])
        ranks = torch.searchsorted(halves, x.contiguous())
        codes = torch.tensor(self.code_table(), device=x.device)[ranks]
        return codes.to(x.dtype), x < float(max(self.levels_by_code()))

    def forward(self, x: Tensor) -> Tensor:
        """Give the nearest level; backward, the gradient passes where :meth:`quantized` says."""
        codes, passes = self.quantized(x.detach())
        return StraightThrough.apply(x, self.values_of(codes), passes)

    def values_of(self, codes: Tensor) -> Tensor:
        """Give the values of codes, which are floats of the type wanted."""
        return codes.new_tensor([float(level) for level in self.levels_by_code()])[codes.long()]

    def codes_of(self, values: Tensor) -> Tensor:
        """Give the codes of values that are levels, int64: the inverse of :meth:`values_of`."""
        return self.quantized(values)[0].long()


def bit_values(planes: int, encoding: BasisEncoding) -> Tensor:
    """What the bits of each code count, float64 of shape (2**planes, planes): 0 or 1, or -1 or 1."""
    bits = (torch.arange(1 << planes)[:, None] >> torch.arange(planes) & 1).double()
    return 2 * bits - 1 if encoding == "bipolar_basis" else bits


class Moments(NamedTuple):
    """What numbers have each level, of each channel: all that the best basis depends on.

    Attributes
    ----------
    counts, sums
        How many numbers, and their sum; float64, shape (channels, 2**planes), levels in ascending order.
    """

    counts: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Levels:
    """Levels of bases, one basis for each channel or one for all.

    Attributes
    ----------
    basis
        Shape (bases, planes).
    encoding
        What a bit counts.
    values
        Levels in ascending order, shape (bases, 2**planes).
    codes
        Their codes, int64, of the same shape.
    """

    basis: Tensor
    encoding: BasisEncoding
    values: Tensor
    codes: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, basis: Tensor, encoding: BasisEncoding) -> "Levels":
        """Sort the levels of a basis."""
        counted = bit_values(basis.shape[1], encoding).to(basis)
        # Sums, not a matrix product, which GPUs may round to fewer bits.
        values, codes = (basis.detach()[:, None] * counted).sum(2).sort(dim=1, stable=True)
        return cls(basis.detach(), encoding, values, codes)

    @property
    def halves(self) -> Tensor:
        """Halfway between neighbouring levels, shape (bases, 2**planes - 1)."""
        return (self.values[:, :-1] + self.values[:, 1:]) / 2

    @torch.no_grad()
    def nearest(self, numbers: Tensor) -> tuple[Tensor, Moments]:
        """Give the level nearest to each number, halfway between two the lower one, and the moments.

        ``numbers`` have shape (n, channels, m). Levels add up from steps, without a table: that takes fewer and simpler
        passes over memory, in which numbers above a boundary are 1 in a mask. All passes go over one block of numbers
        before the next, which then stays in a CPU's cache.
        """
        found = torch.empty_like(numbers)
        halves, steps = self.halves[..., None].unbind(1), self.values.diff(dim=1)[..., None].unbind(1)
        # Counts and sums over m of the numbers from each level on; short, so that their own type counts exactly.
        rows = numbers.new_empty(2, len(halves) + 1, *numbers.shape[:2])
        rows[0, 0] = numbers.shape[2]
        for block in _blocks(numbers):
            some, mask, levels = numbers[block], torch.empty_like(numbers[block]), found[block]
            (_, *counts), (total, *sums) = (each.unbind() for each in rows[:, :, block].unbind())
            levels.copy_(self.values[:, :1])
            torch.sum(some, 2, out=total)
            for half, step, count, part in zip(halves, steps, counts, sums, strict=True):
                torch.gt(some, half, out=mask)
                levels.addcmul_(mask, step)
                torch.sum(mask, 2, out=count)
                torch.sum(mask.mul_(some), 2, out=part)
        counts, sums = rows.double().sum(2).transpose(1, 2)
        return found, Moments(_between(counts), _between(sums))

    @torch.no_grad()
    def integers(self, numbers: Tensor) -> Tensor:
        """Give the codes of the levels that :meth:`nearest` gives, int64, of the numbers' shape."""
        ranks = torch.zeros(numbers.shape, dtype=torch.int64, device=numbers.device)
        for half in self.halves[..., None].unbind(1):
            ranks += numbers > half
        return torch.take_along_dim(self.codes[None], ranks, 2)

    @torch.no_grad()
    def best_basis(self, moments: Moments, importance: Tensor | None = None) -> Tensor:
        """Basis with the least squared error for the codes that numbers have.

        Parameters
        ----------
        moments
            From :meth:`nearest`.
        importance
            What the squared error of a channel counts, shape (channels,), for a basis that all share; 1 if not given.

        Returns
        -------
        basis
            float64, of the basis's shape. What no code determines stays as it was, by :data:`REGULARIZATION`.
        """
        counts, sums = moments
        if len(self.basis) == 1:
            if importance is not None:
                counts, sums = counts * importance[:, None], sums * importance[:, None]
            counts, sums = counts.sum(0, keepdim=True), sums.sum(0, keepdim=True)
        bits = bit_values(self.basis.shape[1], self.encoding).to(counts.device)[self.codes]
        squares = (bits * counts[..., None]).mT @ bits
        products = (bits * sums[..., None]).sum(1)
        squares += REGULARIZATION * torch.eye(squares.shape[1], dtype=squares.dtype, device=squares.device)
        products += REGULARIZATION * self.basis.double()
        return torch.linalg.solve_ex(squares, products[..., None])[0][..., 0]  # never singular, so no check


def channel_sums(numbers: Tensor) -> Tensor:
    """Sums of (n, channels, m), float64; short ones in the numbers' own type, which counts up to 2**24 exactly."""
    return numbers.sum(2).double().sum(0)


def _blocks(numbers: Tensor) -> list[slice]:
    """Slices of the first axis of about :data:`CACHED_NUMBERS` numbers; on a GPU, which gains nothing, a single one."""
    length = max(1, len(numbers) if numbers.is_cuda else CACHED_NUMBERS // max(1, math.prod(numbers.shape[1:])))
    return [slice(start, start + length) for start in range(0, len(numbers), length)]


def _between(above: Tensor) -> Tensor:
    """From sums over all numbers from each level on, (channels, levels), those over the numbers of each level."""
    return torch.cat([above[:, :-1] - above[:, 1:], above[:, -1:]], 1)


@torch.no_grad()
def fit_basis(
    weight: Tensor, planes: int, encoding: BasisEncoding = "bipolar_basis", *, iterations: int = 20
) -> BasisCodes:
    """Fit a basis to the weights of each output channel, beginning at powers of two.

    Parameters
    ----------
    weight
        Shape (output channels, ...).
    planes
        Coefficients of a channel.
    encoding
        What a bit counts.
    iterations
        How often to encode and solve.

    Raises
    ------
    BitwrightError
        If a weight is not finite.
    """
    expect_finite(weight)
    flat = weight.double().reshape(1, len(weight), -1)
    # Levels that reach twice the mean magnitude: all that matters is that some weights get each code.
    reach = 2 * flat[0].abs().mean(1, keepdim=True) / ((1 << planes) - 1)
    basis = reach * 2.0 ** torch.arange(planes, device=flat.device)
    for _ in range(iterations):
        levels = Levels.of(basis, encoding)
        basis = levels.best_basis(levels.nearest(flat)[1])
    return BasisCodes(Levels.of(basis, encoding).integers(flat).reshape(weight.shape), basis, encoding)


def expect_finite(numbers: Tensor) -> None:
    """Refuse numbers that no level is near to."""
    if not numbers.isfinite().all():
        raise BitwrightError("A number is NaN or infinite, expected finite ones; train with a lower learning rate.")


def fixed_point(values: Sequence[Fraction], bits: int) -> int:
    """Largest ``f`` such that every ``round(2**f * value)`` is an integer of ``bits`` bits in two's complement.

    It may be negative; 0 where all values are 0.
    """
    half = 1 << (bits - 1)
    greatest = max(map(abs, values))
    if not greatest:
        return 0
    # greatest * 2**f is between half and 4 * half here, and the values fit once it is below half - 1/2.
    f = math.ceil(math.log2(half / greatest)) + 1
    while not all(-half <= number < half for number in rounded(values, f)):
        f -= 1
    return f


def rounded(values: Sequence[Fraction], f: int) -> list[int]:
    """``round(2**f * value)``, half to even."""
    return [round(value * Fraction(2) ** f) for value in values]
