"""BWN: a sign for each weight, a scale for each filter (Rastegari et al., arXiv 1603.05279, section 3.1).

With the activations of ``sign`` this is XNOR-Net without the optional scaling of its inputs.
"""

from typing import Any

import torch
from torch import Tensor

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import StraightThrough, WeightQuantizer, magnitude_mask, one_of, sign
from bitwright.sw.quantizers.registry import Method

GRADIENTS = "authors", "paper", "straight"


class BWNWeight(WeightQuantizer):
    """Weights ``alpha * sign(w)`` with ``alpha = mean|w|`` over each filter, one for each output channel.

    Of all ``alpha * B`` with ``B`` of ones and minus ones this has the least squared distance to the weights. After
    every update the real weights lose their mean over the input channels and are clipped to [-1, 1], as in the authors'
    code, which does both before it quantizes. A layer with one input channel is not centered: nothing would be left.

    Parameters
    ----------
    bits
        1.
    gradient
        What a gradient ``g`` at the quantized weight is at the real one, with ``n`` weights in a filter and ``c`` input
        channels. ``authors``: ``g * (alpha * n * [|w| < 1] + 1) * (1 - 1 / c)``, as their code has it for SGD (for Adam
        it is multiplied by a constant, which Adam takes out again); ``paper``: ``g * (1 / n + alpha * [|w| <= 1])``;
        ``straight``: ``g``, as the authors of Stochastic Quantization train BWN.
    """

    BITS = range(1, 2)
    CLIP = True

    def __init__(self, bits: int = 1, *, gradient: str = "authors") -> None:
        super().__init__(bits)
        self.gradient = one_of("gradient", gradient, GRADIENTS)

    def extra_repr(self) -> str:
        """Show bits and gradient where the module is printed."""
        return f"bits={self.bits}, gradient={self.gradient!r}"

    @property
    def encoding(self) -> Encoding:
        """Plus or minus one."""
        return "bipolar"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Take signs and mean magnitudes."""
        axes = tuple(range(1, weight.dim()))
        return sign(weight), weight.abs().mean(axes, keepdim=True)

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize; backward, the gradient that was chosen."""
        integers, scale = self.quantized(weight.detach())
        if self.gradient == "straight":
            return StraightThrough.apply(weight, integers * scale, None)
        return _Binarize.apply(weight, integers * scale, scale, self.gradient == "authors")

    @torch.no_grad()
    def constrain(self, weight: Tensor) -> None:
        """Center and clip."""
        if weight.shape[1] > 1:
            weight -= weight.mean(1, keepdim=True)
        super().constrain(weight)


class _Binarize(torch.autograd.Function):
    """Value of the second argument; gradient to the first, by the scales of its filters."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, value: Tensor, scale: Tensor, authors: bool) -> Tensor:
        """Give ``value``."""
        ctx.save_for_backward(weight, scale)
        ctx.authors = authors
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Give the gradient of the real weight."""
        (gradient,) = gradients
        weight, scale = ctx.saved_tensors
        count, channels = weight[0].numel(), weight.shape[1]
        if ctx.authors:
            factor = 1 - 1 / channels if channels > 1 else 1.0
            slope = magnitude_mask(torch.lt, weight, 1).mul_(scale * (count * factor)).add_(factor)
        else:
            slope = magnitude_mask(torch.le, weight, 1).mul_(scale).add_(1 / count)
        return slope.mul_(gradient), None, None, None


METHOD = Method("bwn", BWNWeight)
