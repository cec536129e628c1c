"""DoReFa-Net (Zhou et al., arXiv 1606.06160), weights and activations."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import NEARLY_ZERO, ActivationQuantizer, Boundary, WeightQuantizer, sign
from bitwright.sw.quantizers.registry import Method


class DoReFaWeight(WeightQuantizer):
    """Weights of DoReFa-Net.

    One bit: ``sign(w) * mean|w|`` over the layer, gradient unchanged. More: ``2 * round(n * (t / 2 + 1/2)) / n - 1``
    with ``t = tanh(w) / max|tanh(w)|`` over the layer and ``n = 2^bits - 1``; the gradient is that of ``t``, the
    maximum included. The integers ``2 q - n`` are odd: no weight is zero.
    """

    @property
    def encoding(self) -> Encoding:
        """Odd integers; bipolar with one bit."""
        return "odd" if self.bits > 1 else "bipolar"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round the normalized tanh, or take the sign."""
        if self.bits == 1:
            return sign(weight), weight.abs().mean()
        n = (1 << self.bits) - 1
        odd = 2 * torch.round(n * (weight / 2 + 0.5)) - n
        return odd, weight.new_full((), 1 / n)

    def surrogate(self, weight: Tensor) -> Tensor:
        """Give the weight, or with more than one bit its normalized tanh; zero for weights that are all zero."""
        if self.bits == 1:
            return weight
        bent = weight.tanh()
        largest = bent.abs().amax()
        return bent / torch.where(largest > NEARLY_ZERO, largest, 1.0)


class DoReFaActivation(ActivationQuantizer):
    """``round(n * clip(x, 0, 1)) / n`` with ``n = 2^bits - 1``; the gradient passes in [0, 1]."""

    def step(self) -> Fraction:
        """Give 1 / n."""
        return Fraction(1, self.levels - 1)

    def offset(self) -> Fraction:
        """Zero."""
        return Fraction(0)

    def boundaries(self) -> list[Boundary]:
        """Halfway between the values; a tie goes to the even code."""
        return [Boundary(Fraction(2 * code - 1, 2 * self.levels - 2), code % 2 == 0) for code in range(1, self.levels)]

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Clip and round."""
        clipped = x.clamp(0, 1)
        return round_product(clipped, self.bits), x == clipped


def round_product(x: Tensor, bits: int) -> Tensor:
    """Round ``n * x``, ``n = 2^bits - 1``, half to even, as if the product were not rounded before.

    The floating-point product may land on a tie that ``n * x`` is only near. Its error is known exactly:
    ``2^bits * x`` is exact, and so are both differences to it (Sterbenz).
    """
    product = x * ((1 << bits) - 1)
    error = x * (1 << bits) - product - x
    code = torch.round(product)
    rest = product - code
    wrong = (rest.abs() == 0.5) & (rest * error > 0)
    return torch.where(wrong, code + 2 * rest, code)


METHOD = Method("dorefa", DoReFaWeight, {nn.ReLU: DoReFaActivation})
