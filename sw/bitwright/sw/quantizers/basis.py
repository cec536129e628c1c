"""Bases: numbers that are sums of learned coefficients, one for each bit plane, as in LQ-Nets (arXiv 1807.10029).

Weights have a basis for each output channel, activations one for the layer that makes them::

    weight = Σ_i cw[channel, i] * e_i        e_i is bit i of the weight's code: 0 or 1, or -1 or 1 (bipolar)
    activation = offset + Σ_j ca[j] * b_j    b_j is bit j of the activation's code

A quantizer of weights offers its numbers by giving :class:`BasisCodes` in place of
:class:`~bitwright.sw.quantizers.WeightCodes`, one of activations by being a :class:`BasisActivation`. The hardware
multiplies each count of ones by the integer ``round(2**f * cw[channel, i] * ca[j])``; see :func:`fixed_point`.

Bases are learned by alternating two steps, which never raise the squared error: :func:`encode` gives each number the
nearest level, :meth:`Encoded.best_basis` solves for the best basis of these codes (QEM, section 3.2 of the paper).
Numbers are tensors of shape (n, channels, m) there, with one basis for each channel, or one for all.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import ActivationQuantizer, Boundary, StraightThrough

BasisEncoding = Literal["basis", "bipolar_basis"]

REGULARIZATION = 1e-4
"""What holds a coefficient where it was if no code, or every code, has its bit: as in the LQ-Nets authors' code."""


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


@dataclass(frozen=True)
class Encoded:
    """Numbers and the levels nearest to them.

    Attributes
    ----------
    numbers
        Shape (n, channels, m).
    basis
        Shape (channels, planes), or (1, planes) for all channels.
    levels
        Of each basis in ascending order, shape (bases, 2**planes).
    codes
        Of the levels, int64, of their shape.
    bits
        What the bits of these codes count, shape (bases, 2**planes, planes).
    ranks
        uint8, of the numbers' shape: which level each number has.
    """

    numbers: Tensor
    basis: Tensor
    levels: Tensor
    codes: Tensor
    bits: Tensor
    ranks: Tensor

    def values(self) -> Tensor:
        """Levels of the numbers, of their shape."""
        return self._look_up(self.levels, self._entries())

    def integers(self) -> Tensor:
        """Codes of the numbers, int64, of their shape."""
        return self._look_up(self.codes, self._entries())

    def planes(self) -> Iterator[Tensor]:
        """What bit 0 of each number's code counts, then bit 1, and so on; each of the numbers' shape and type."""
        entries = self._entries()
        for plane in range(self.bits.shape[2]):
            yield self._look_up(self.bits[:, :, plane], entries)

    def best_basis(self, importance: Tensor | None = None) -> Tensor:
        """Basis with the least squared error for these codes.

        Parameters
        ----------
        importance
            What the squared error of a channel counts, shape (channels,), for a basis that all share; 1 if not given.

        Returns
        -------
        basis
            float64, of the basis's shape. What no code determines stays as it was, by :data:`REGULARIZATION`.
        """
        counts = [(self.ranks == rank).view(torch.uint8).sum((0, 2), dtype=torch.int32) for rank in
                  range(self.levels.shape[1])]  # fmt: skip
        products = [plane.mul_(self.numbers).sum((0, 2)) for plane in self.planes()]
        counted, moments = torch.stack(counts, 1).double(), torch.stack(products, 1).double()
        if len(self.basis) == 1:
            if importance is not None:
                counted, moments = counted * importance[:, None], moments * importance[:, None]
            counted, moments = counted.sum(0, keepdim=True), moments.sum(0, keepdim=True)
        bits, before = self.bits.double(), self.basis.double()
        squares = (counted[..., None] * bits).mT @ bits
        squares = squares + REGULARIZATION * torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
        moments = moments + REGULARIZATION * before
        return torch.linalg.solve_ex(squares, moments[..., None])[0][..., 0]  # never singular, so no check

    def _entries(self) -> Tensor:
        """Where each number is in a table of all levels, one basis after the other."""
        entries = self.ranks.int()
        if len(self.levels) > 1:
            bases, levels = self.levels.shape
            entries += torch.arange(0, bases * levels, levels, dtype=torch.int32, device=entries.device)[:, None]
        return entries.reshape(-1)

    def _look_up(self, table: Tensor, entries: Tensor) -> Tensor:
        return table.reshape(-1).index_select(0, entries).reshape(self.ranks.shape)


@torch.no_grad()
def encode(numbers: Tensor, basis: Tensor, encoding: BasisEncoding) -> Encoded:
    """Give each number the nearest level, halfway between two the lower one.

    Parameters
    ----------
    numbers
        Shape (n, channels, m).
    basis
        Shape (channels, planes), or (1, planes) for one basis of all channels; of the numbers' type.
    encoding
        What a bit counts.
    """
    numbers = numbers.detach()
    counted = bit_values(basis.shape[1], encoding).to(basis)
    # Sums, not a matrix product, which GPUs may round to fewer bits.
    levels, codes = (basis[:, None] * counted).sum(2).sort(dim=1, stable=True)
    halves = (levels[:, :-1] + levels[:, 1:]) / 2
    ranks = torch.zeros(numbers.shape, dtype=torch.uint8, device=numbers.device)
    for half in halves.unbind(1):  # faster than a search as long as there are few
        ranks += (numbers > half[:, None]).view(torch.uint8)
    return Encoded(numbers, basis, levels, codes, counted[codes], ranks)


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
        basis = encode(flat, basis, encoding).best_basis()
    return BasisCodes(encode(flat, basis, encoding).integers().reshape(weight.shape), basis, encoding)


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
