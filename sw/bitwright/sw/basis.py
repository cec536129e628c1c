"""Bases: numbers that are sums of learned coefficients, one for each bit plane, as in LQ-Nets (arXiv 1807.10029).

Weights have a basis for each output channel, activations one for the layer that makes them::

    weight = Σ_i cw[channel, i] * e_i        e_i is bit i of the weight's code: 0 or 1, or -1 or 1 (bipolar)
    activation = offset + Σ_j ca[j] * b_j    b_j is bit j of the activation's code

A quantizer of weights offers its numbers by giving :class:`BasisCodes` in place of
:class:`~bitwright.sw.quantizers.WeightCodes`, one of activations by being a :class:`BasisActivation`. The hardware
multiplies each count of ones by the integer ``round(2**f * cw[channel, i] * ca[j])``; see :func:`fixed_point`.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers import ActivationQuantizer, Boundary
from bitwright.sw.quantizers.base import StraightThrough

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


@torch.no_grad()
def fit_basis(
    weight: Tensor, planes: int, encoding: BasisEncoding = "bipolar_basis", *, iterations: int = 20
) -> BasisCodes:
    """Fit a basis to the weights of each output channel, by alternating least squares.

    Each iteration gives every weight the nearest level and then solves for the basis with the least squared error for
    these codes, which never raises the error. It begins at powers of two. Section 3.2 of the paper (QEM).

    Parameters
    ----------
    weight
        Shape (output channels, ...).
    planes
        Coefficients of a channel.
    encoding
        What a bit counts.
    iterations
        How often to alternate.
    """
    flat = weight.double().reshape(len(weight), -1)
    bits = bit_values(planes, encoding)
    # Levels that reach twice the mean magnitude: all that matters is that some weights get each code.
    reach = 2 * flat.abs().mean(1, keepdim=True) / ((1 << planes) - 1)
    basis = reach * 2.0 ** torch.arange(planes)
    for _ in range(iterations):
        chosen = bits[_nearest(flat, basis @ bits.T)]  # (channels, weights, planes)
        squares = chosen.mT @ chosen + REGULARIZATION * torch.eye(planes, dtype=torch.float64)
        moments = chosen.mT @ flat[..., None] + REGULARIZATION * basis[..., None]
        basis = torch.linalg.solve(squares, moments)[..., 0]
    return BasisCodes(_nearest(flat, basis @ bits.T).reshape(weight.shape), basis, encoding)


def _nearest(values: Tensor, levels: Tensor) -> Tensor:
    """Code of the level nearest to each value; rows of both are channels, columns of ``levels`` are codes."""
    ordered, codes = levels.sort(1)
    ranks = torch.searchsorted((ordered[:, :-1] + ordered[:, 1:]) / 2, values.contiguous())
    return codes.gather(1, ranks)


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
