"""Low-bit gradients: section 2.5 of DoReFa-Net (Zhou et al., arXiv 1606.06160)."""

from typing import Any

import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError

GRADIENT_BITS = range(1, 9)

LEAST_MAGNITUDE = 2.0**-100
"""Below it no gradient is divided by the greatest magnitude, which would overflow."""


class GradientQuantizer:
    """Forward hook of a layer: leaves its output as it is, and quantizes the gradient that comes back.

    On the output of a layer, before batch norm, the gradients of its input and of its weights are both products of the
    quantized one, as in the paper's Algorithm 1. The noise is drawn from PyTorch's generator.

    Parameters
    ----------
    bits
        1 to 8.
    """

    def __init__(self, bits: int) -> None:
        if not isinstance(bits, int) or isinstance(bits, bool) or bits not in GRADIENT_BITS:
            raise BitwrightError(f"Gradients take 1 to 8 bits, found {bits!r}.")
        self.bits = bits

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Give the output."""
        return _QuantizeGradient.apply(output, self.bits) if output.requires_grad else output


def quantize_gradient(gradient: Tensor, bits: int) -> Tensor:
    """Quantize a gradient, shape (images, ...), with noise that makes the result right on average.

    ``2 m * (round(n * clip(g / (2 m) + 1/2 + s / n, 0, 1)) / n - 1/2)`` with ``n = 2^bits - 1``, ``m`` the greatest
    magnitude of each image and ``s`` drawn between -1/2 and 1/2.
    """
    n = (1 << bits) - 1
    flat = gradient.flatten(1) if gradient.dim() > 1 else gradient[:, None]
    greatest = torch.maximum(flat.amax(1, keepdim=True), -flat.amin(1, keepdim=True))
    factor = n / (2 * greatest.clamp(min=LEAST_MAGNITUDE))
    # n * (g / (2 m) + 1/2) + s, and from it the code.
    codes = torch.rand_like(flat).add_((n - 1) / 2).addcmul_(flat, factor).round_().clamp_(0, n)
    return codes.sub_(n / 2).mul_(2 * greatest / n).reshape(gradient.shape)


class _QuantizeGradient(torch.autograd.Function):
    """The identity, whose gradient is quantized."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        """Give ``x``."""
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Quantize."""
        return quantize_gradient(gradients[0], ctx.bits), None
