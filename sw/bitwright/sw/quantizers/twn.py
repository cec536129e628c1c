"""TWN: ternary weights (Li et al., arXiv 1605.04711, section 2)."""

import torch
from torch import Tensor

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import WeightQuantizer, mask, one_of
from bitwright.sw.quantizers.registry import Method

THRESHOLD = 0.7
"""Magnitudes up to this share of their mean become zero: the paper's approximation of the optimum."""


class TWNWeight(WeightQuantizer):
    """Weights ``-alpha``, 0 or ``alpha``: the sign where ``|w| > delta``, else 0; the gradient passes unchanged.

    ``alpha`` is the mean magnitude of the weights that are not zero, which for these signs has the least squared error;
    it is 0 where there are none.

    Parameters
    ----------
    bits
        2, for three values in two bit planes.
    scale
        ``layer``: ``delta = 0.7 * mean|w|`` and ``alpha`` of the whole layer, as in the authors' code. ``filter``: as
        in the code of Stochastic Quantization (arXiv 1708.01001), ``delta = 0.7 * mean|w - mean(w)|`` of the layer, and
        an ``alpha`` for each output channel.
    """

    BITS = range(2, 3)

    def __init__(self, bits: int = 2, *, scale: str = "layer") -> None:
        super().__init__(bits)
        self.scale = one_of("scale", scale, ("layer", "filter"))

    def extra_repr(self) -> str:
        """Show bits and scale where the module is printed."""
        return f"bits={self.bits}, scale={self.scale!r}"

    @property
    def encoding(self) -> Encoding:
        """Minus one, zero or one."""
        return "ternary"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compare with delta, and average what is above."""
        layer = self.scale == "layer"
        axes = tuple(range(weight.dim()))[0 if layer else 1 :]
        magnitudes = weight.abs()
        spread = magnitudes if layer else (weight - weight.mean()).abs_()
        chosen = mask(torch.gt, magnitudes, THRESHOLD * spread.mean())
        counts = chosen.sum(axes, keepdim=True)
        alpha = magnitudes.mul_(chosen).sum(axes, keepdim=True) / counts.clamp_(min=1)
        return chosen.mul_(torch.sign(weight)), alpha


METHOD = Method("twn", TWNWeight)
