"""Signs: the weights of BinaryConnect (arXiv 1511.00363), and the activations of BinaryNet (arXiv 1602.02830)."""

from fractions import Fraction

import torch
from torch import Tensor, nn

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import ActivationQuantizer, Boundary, WeightQuantizer, magnitude_mask, mask, sign
from bitwright.sw.quantizers.registry import Method


class SignWeight(WeightQuantizer):
    """Weights -1 and +1, deterministic; the gradient passes unchanged, and real weights are clipped to [-1, 1]."""

    BITS = range(1, 2)
    CLIP = True

    @property
    def encoding(self) -> Encoding:
        """Plus or minus one."""
        return "bipolar"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Take the sign."""
        return sign(weight), weight.new_ones(())


class Sign(ActivationQuantizer):
    """Activation -1 or +1; the gradient passes where ``|x| <= 1``."""

    BITS = range(1, 2)

    def __init__(self, bits: int = 1) -> None:
        super().__init__(bits)

    def step(self) -> Fraction:
        """From -1 to +1."""
        return Fraction(2)

    def offset(self) -> Fraction:
        """Minus one."""
        return Fraction(-1)

    def boundaries(self) -> list[Boundary]:
        """The sign of 0 is +1."""
        return [Boundary(Fraction(0), inclusive=True)]

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compare with zero."""
        return mask(torch.ge, x, 0), magnitude_mask(torch.le, x, 1)


METHOD = Method("sign", SignWeight, {nn.ReLU: Sign, nn.Hardtanh: Sign})
