"""Training quantized weights directly: a reconstruction, inspired by Direct Quantization (Hoang et al., IJCAI 2020).

Only the abstract of that paper (arXiv 2012.13762) was at hand, and no code. It states two ideas, which this file works
out in its own way; results of the paper say nothing about it.

*Quantized weights are what is updated*, with levels that the cost trains. A weight is the level of its code, with
levels of a basis for each output channel, so that hardware of LQ-Nets applies. The optimizer steps the basis along its
gradient, that of looking a code up, and each weight along the gradient of the loss. A step that does not reach another
level is not lost: it stays with the weight as its residual, ``real weight = level + residual``, until the sum is nearer
to another level; what then remains is the new residual (error feedback). When a level moves, its weights move with it,
while in LQ-Nets they stay and get other codes.

*Every channel's error matters*, not only that of the few whose activations vary most. Activations are those of LQ-Nets,
but in the least squares a channel's error counts by the reciprocal of its variance.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import WeightQuantizer, power_of_two_above
from bitwright.sw.quantizers.basis import BasisCodes, BasisEncoding, Levels, channel_sums, expect_finite, fit_basis
from bitwright.sw.quantizers.lqnets import FITTING_STEPS, LQNetsActivation
from bitwright.sw.quantizers.registry import Method

LEAST_VARIANCE = 1e-2
"""Added to the variance of each channel, so that channels that hardly vary do not count without limit."""


class DirectWeight(WeightQuantizer):
    """Weights whose codes move by what gradients have added up to, on levels that gradients move.

    Attributes
    ----------
    coefficients
        The basis, a parameter of shape (output channels, bits). Its gradient is that of the levels, divided by the root
        of the weights of a channel, as many as it adds up: in this way it moves about as far as a weight.
    integers
        Codes, uint8, of the weight's shape.
    anchor
        The basis when the real weights were last brought in line with it.
    """

    BITS = range(1, 5)
    coefficients: nn.Parameter
    integers: Tensor
    anchor: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.coefficients = nn.Parameter(torch.empty(0, bits))
        self.register_buffer("integers", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("anchor", torch.empty(0, bits))

    @property
    def encoding(self) -> BasisEncoding:
        """A sum of coefficients, each added or subtracted."""
        return "bipolar_basis"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: there is no common scale."""
        raise BitwrightError(f"{type(self).__name__} has a basis and no scale, expected a uniform quantizer.")

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Begin at the basis with the least squared error for the weights."""
        fitted = fit_basis(values, self.bits, self.encoding, iterations=FITTING_STEPS)
        self.coefficients = nn.Parameter(fitted.basis.to(values.dtype))
        self.anchor = self.coefficients.detach().clone()
        self.integers = fitted.integers.to(torch.uint8)

    @torch.no_grad()
    def constrain(self, weight: Tensor) -> None:
        """Take an update of basis and weights over: move the weights with their levels, then choose codes anew."""
        weight += _look_up(self.coefficients - self.anchor, self.integers)
        levels = Levels.of(self.coefficients, self.encoding)
        self.integers.copy_(levels.integers(weight.reshape(1, len(weight), -1)).reshape(weight.shape))
        self.anchor.copy_(self.coefficients)

    def forward(self, weight: Tensor) -> Tensor:
        """Give the levels of the codes; the gradient goes to the real weights unchanged, and to the basis."""
        return _LookUp.apply(weight, self.coefficients, self.integers)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Any:
        """Codes and bases, as :class:`~bitwright.sw.quantizers.basis.BasisCodes`."""
        expect_finite(weight)
        expect_finite(self.coefficients)
        return BasisCodes(self.integers.long(), self.coefficients.double(), self.encoding)


class DirectActivation(LQNetsActivation):
    """Activations of LQ-Nets whose basis suits all channels alike, however little they vary."""

    def importance(self, numbers: Tensor) -> Tensor:
        """Give the reciprocal of each channel's variance, relative to the greatest."""
        count = numbers.shape[0] * numbers.shape[2]
        unit = power_of_two_above(numbers.max())  # squares of what it divides do not overflow
        squares = channel_sums((numbers / unit).square_()) * unit.double().square()
        variances = squares / count - (channel_sums(numbers) / count).square()
        reciprocals = 1 / (variances.clamp_min(0) + LEAST_VARIANCE)
        return reciprocals / reciprocals.max()


class _LookUp(torch.autograd.Function):
    """Levels of codes, by their basis; the gradient goes to the first argument unchanged, and to the basis."""

    @staticmethod
    def forward(ctx: Any, _weight: Tensor, basis: Tensor, integers: Tensor) -> Tensor:
        """Give the levels, of the shape of the codes."""
        ctx.save_for_backward(basis, integers)
        return _look_up(basis, integers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Give both gradients."""
        basis, integers = ctx.saved_tensors
        rows = gradients[0].reshape(len(basis), -1)
        moments = [(rows * signs).sum(1) for signs in _signs(basis, integers)]
        return gradients[0], torch.stack(moments, 1) / math.sqrt(rows.shape[1]), None


def _signs(basis: Tensor, integers: Tensor) -> Iterator[Tensor]:
    """-1 or 1 for each bit of the codes, (channels, weights of a channel) of the basis's type, plane by plane."""
    rows = integers.reshape(len(basis), -1)
    for plane in range(basis.shape[1]):
        yield (rows >> plane & 1).to(basis.dtype).mul_(2).sub_(1)


def _look_up(basis: Tensor, integers: Tensor) -> Tensor:
    """Levels of codes, of their shape."""
    levels = torch.zeros((), dtype=basis.dtype, device=basis.device)
    for plane, signs in enumerate(_signs(basis, integers)):
        levels = levels + signs.mul_(basis[:, plane, None])
    return levels.reshape(integers.shape)


METHOD = Method("direct", DirectWeight, {nn.ReLU: DirectActivation})
