"""QNN: training from scratch on the fixed-point grid (Moons et al., Asilomar 2017; Hubara et al., arXiv 1609.07061).

Unlike FPNN the range stays as it was when training began: real weights outside it get no gradient, and are clipped to
it after every update. Activations are those of :mod:`bitwright.sw.quantizers.fpnn`.
"""

import torch
from torch import Tensor, nn

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import PowerOfTwoScale, WeightQuantizer, covering_exponent, sign
from bitwright.sw.quantizers.fpnn import FixedHardtanh, FixedReLU, fixed_point
from bitwright.sw.quantizers.registry import Method


class QNNWeight(PowerOfTwoScale, WeightQuantizer):
    """Weights in ``[-H, H)`` with ``H = 2**exponent``; with one bit, ``-H`` or ``H``.

    The published range is H = 1, with weights drawn from all of it; :meth:`fit` makes it the smallest power of two that
    covers the given weights, so that usual initializations do not round to zero.
    """

    CLIP = True

    @property
    def encoding(self) -> Encoding:
        """Two's complement; bipolar with one bit."""
        return "signed" if self.bits > 1 else "bipolar"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round to the grid, or take the sign."""
        bound = weight.new_full((), self.limit())
        return fixed_point(weight, self.bits, bound) if self.bits > 1 else (sign(weight), bound)

    def surrogate(self, weight: Tensor) -> Tensor:
        """Clip: the gradient passes where ``|w| <= H``."""
        return weight.clamp(-self.limit(), self.limit())

    def limit(self) -> float:
        """Give H."""
        return 2.0**self.exponent

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Cover all weights."""
        self.exponent = covering_exponent(values.abs())


METHOD = Method("qnn", QNNWeight, {nn.ReLU: FixedReLU, nn.Hardtanh: FixedHardtanh})
