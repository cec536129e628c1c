"""QNN: training from scratch on the fixed-point grid (Moons et al., Asilomar 2017; Hubara et al., arXiv 1609.07061).

Unlike FPNN the range stays as it was when training began: real weights outside it get no gradient, and are clipped to
it after every update. Activations are those of :mod:`bitwright.sw.quantizers.fpnn`.
"""

import torch
from torch import Tensor, nn

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import (
    PowerOfTwoScale,
    StraightThrough,
    WeightQuantizer,
    closest_exponent,
    covering_exponent,
    glorot,
    mask,
    one_of,
    sign,
)
from bitwright.sw.quantizers.fpnn import FixedHardtanh, FixedReLU, fixed_point
from bitwright.sw.quantizers.registry import Method


class RangedWeight(PowerOfTwoScale, WeightQuantizer):
    """Weights in a range [-H, H] with ``H = 2**exponent``, to which the real weights are clipped.

    The published range is H = 1, with initial weights drawn from all of it. The same training with weights drawn from
    another range is had by H at that range: :meth:`fit` covers the given weights, so that usual initializations do not
    round to zero.

    Parameters
    ----------
    limit
        ``weights``: :meth:`fit` sets H to the smallest power of two that covers the weights; ``one``: H = 1.
    update_scale
        ``glorot``: updates are multiplied by ``H / sqrt(1.5 / (fan in + fan out))``, which for H = 1 is ``W_LR_scale``
        of the authors of BinaryConnect; ``none``: they are not.
    """

    CLIP = True

    def __init__(self, bits: int, exponent: int = 0, *, limit: str = "weights", update_scale: str = "none") -> None:
        super().__init__(bits, exponent)
        self.fitted = one_of("limit", limit, ("weights", "one")) == "weights"
        self.scaled = one_of("update_scale", update_scale, ("none", "glorot")) == "glorot"

    def limit(self) -> float:
        """Give H."""
        return 2.0**self.exponent

    def rate_scale(self, weight: Tensor) -> float:
        """Give the scale of updates."""
        return self.limit() / glorot(weight) if self.scaled else 1.0

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Cover all weights, unless H is 1."""
        if self.fitted:
            self.exponent = covering_exponent(values.abs())


class QNNWeight(RangedWeight):
    """Weights on the grid of [-H, H); with one bit, ``-H`` or ``H``. The gradient passes where ``|w| <= H``.

    Parameters are those of :class:`RangedWeight`. With the limit ``weights``, H of weights that have been trained in
    float is the power of two with the least squared error: their few large ones are clipped, where covering them would
    round most of the others to zero.
    """

    @property
    def encoding(self) -> Encoding:
        """Two's complement; bipolar with one bit."""
        return "signed" if self.bits > 1 else "bipolar"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round to the grid, or take the sign."""
        bound = weight.new_full((), self.limit())
        return fixed_point(weight, self.bits, bound) if self.bits > 1 else (sign(weight), bound)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Come closest to weights that have been trained, unless H is 1 or there is no grid."""
        if self.fitted and self.bits > 1:
            self.exponent = closest_exponent(weight, self.bits)

    def surrogate(self, weight: Tensor) -> Tensor:
        """Clip: the gradient passes where ``|w| <= H``."""
        clipped = weight.detach().clamp(-self.limit(), self.limit())
        return StraightThrough.apply(weight, clipped, mask(torch.eq, weight.detach(), clipped))


METHOD = Method("qnn", QNNWeight, {nn.ReLU: FixedReLU, nn.Hardtanh: FixedHardtanh})
