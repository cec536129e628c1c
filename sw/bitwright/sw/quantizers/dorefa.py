"""DoReFa-Net (Zhou et al., arXiv 1606.06160), weights and activations."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import (
    NEARLY_ZERO,
    ActivationQuantizer,
    Boundary,
    WeightQuantizer,
    largest_magnitude,
    magnitude_mask,
    mask,
    sign,
)
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
        codes = torch.add(weight.new_full((), 0.5), weight, alpha=0.5).mul_(n).round_()
        return codes.mul_(2).sub_(n), weight.new_full((), 1 / n)

    def surrogate(self, weight: Tensor) -> Tensor:
        """Give the weight, or with more than one bit its normalized tanh; zero for weights that are all zero."""
        return weight if self.bits == 1 else _NormalizedTanh.apply(weight)


class _NormalizedTanh(torch.autograd.Function):
    """``tanh(w) / max|tanh(w)|``, in few passes over the weights; zero for weights that are nearly all zero.

    The gradient flows through the maximum, and is shared evenly where several weights have it.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Bend and divide."""
        bent = weight.tanh()
        largest = largest_magnitude(bent)
        largest = torch.where(largest <= NEARLY_ZERO, 1.0, largest)
        normalized = bent.div_(largest)
        ctx.save_for_backward(normalized, largest)
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Derive ``t / m`` by ``t`` and by ``m``, then ``t = tanh(w)`` by ``w``."""
        (gradient,) = gradients
        normalized, largest = ctx.saved_tensors
        through = gradient / largest
        greatest = magnitude_mask(torch.eq, normalized, 1)
        share = torch.dot(through.flatten(), normalized.flatten()) / greatest.sum().clamp_(min=1)
        through.addcmul_(greatest.mul_(normalized), -share)
        bent = torch.mul(normalized, largest, out=greatest)
        return torch.ops.aten.tanh_backward.grad_input(through, bent, grad_input=through)


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
        return round_product(clipped, self.bits), mask(torch.eq, x, clipped)


def round_product(x: Tensor, bits: int) -> Tensor:
    """Round ``n * x``, ``n = 2^bits - 1``, half to even, as if the product were not rounded before.

    The floating-point product may land on a tie that ``n * x`` is only near. There its error decides, which is known
    exactly: ``2^bits * x`` is exact, and so are both differences to it (Sterbenz). Ties are rare.
    """
    product = x * ((1 << bits) - 1)
    codes = product.round()
    rests = product.sub_(codes)
    if largest_magnitude(rests) == 0.5:
        ties = torch.nonzero(rests.abs() == 0.5, as_tuple=True)
        near, rest, code = x[ties], rests[ties], codes[ties]
        error = near * (1 << bits) - (code + rest) - near
        codes[ties] = torch.where(rest * error > 0, code + 2 * rest, code)
    return codes


METHOD = Method("dorefa", DoReFaWeight, {nn.ReLU: DoReFaActivation})
