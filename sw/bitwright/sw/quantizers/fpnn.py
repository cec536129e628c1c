"""FPNN: fixed point at test time (Moons et al., WACV 2016, arXiv 1603.06777), and the grid that QNN trains on.

A float network is quantized as it is; fine-tuning is possible. With Q bits the weights are the two's complement numbers
-2^(Q-1) .. 2^(Q-1) - 1 times a power of two. Activations are the same grid: all of it after a hardtanh, only its
2^(Q-1) non-negative values after a ReLU, which therefore needs Q - 1 bit planes.

Both rescalings of the paper are here, by the option ``scale``: ``layer`` (dynamic fixed point, the default) gives each
layer its own power of two, ``network`` one to all weights, and one to all activations.

The option ``range`` says which power of two: ``covering`` (published) leaves nothing, or next to nothing, out of range;
``closest`` is that of the least squared error, which with two or three bits lies below.
"""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import (
    ActivationQuantizer,
    Boundary,
    PowerOfTwoScale,
    WeightQuantizer,
    closest_exponent,
    covering_exponent,
    largest_magnitude,
    mask,
    one_of,
    power_of_two_above,
)
from bitwright.sw.quantizers.registry import Method

SCALES = "layer", "network"
RANGES = "covering", "closest"

COVERED_SHARE = 0.999
"""Share of a layer's activations, zeros aside, that calibration keeps in range."""


def fixed_point(weight: Tensor, bits: int, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Round to the grid of ``bits`` bits that covers ``[-bound, bound)``; return integers and step.

    ``q = clip(round(w / step), -2^(bits-1), 2^(bits-1) - 1)`` with ``step = bound / 2^(bits-1)``, ties to even.
    """
    half = 1 << (bits - 1)
    step = bound / half
    return (weight / step).round_().clamp_(-half, half - 1), step


class FPNNWeight(WeightQuantizer):
    """Weights of FPNN: the scale is the smallest power of two that is not below the largest magnitude.

    That of the layer follows the weights during fine-tuning, so that all are in range; that of the network, and the
    closest one, are set when the network is quantized. The gradient passes unchanged.

    Parameters
    ----------
    bits
        2 to 8.
    scale
        ``layer``, or ``network`` for the largest magnitude of all layers.
    range
        ``covering``, or ``closest`` for the power of two with the least squared error.
    """

    BITS = range(2, 9)

    def __init__(self, bits: int, *, scale: str = "layer", range: str = "covering") -> None:  # noqa: A002 (an option)
        super().__init__(bits)
        self.network_wide = one_of("scale", scale, SCALES) == "network"
        self.closest = one_of("range", range, RANGES) == "closest"
        self.exponent = 0

    @property
    def fixed(self) -> bool:
        """Whether the scale is set by :meth:`fit` and does not follow the weights."""
        return self.network_wide or self.closest

    def get_extra_state(self) -> Tensor:
        """Give the bits, and the exponent of a scale that does not follow the weights."""
        return torch.tensor([self.bits, self.exponent] if self.fixed else [self.bits])

    def set_extra_state(self, state: Any) -> None:
        """Check the bits, take the exponent."""
        super().set_extra_state(state)
        if self.fixed:
            self.exponent = int(state[1])

    @property
    def encoding(self) -> Encoding:
        """Two's complement."""
        return "signed"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Round to the grid."""
        fixed = weight.new_full((), 2.0**self.exponent)
        return fixed_point(weight, self.bits, fixed if self.fixed else power_of_two_above(largest_magnitude(weight)))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Cover all weights, or come closest to them."""
        self.exponent = closest_exponent(values, self.bits) if self.closest else covering_exponent(values.abs())


class FixedActivation(PowerOfTwoScale, ActivationQuantizer):
    """Grid of step ``2**(exponent - bits + 1)``, rounded half to even and clipped.

    The gradient passes where the rounded value is on the grid, as in the QNN authors' code: rounding passes it, the
    clip that follows blocks it.
    """

    BITS = range(2, 9)
    LOWEST: int
    """Least integer of the grid, times ``2**(1 - bits)``: 0 or -1."""

    def __init__(
        self,
        bits: int,
        exponent: int = 0,
        *,
        scale: str = "layer",
        range: str = "covering",  # noqa: A002 (an option)
    ) -> None:
        super().__init__(bits, exponent)
        self.network_wide = one_of("scale", scale, SCALES) == "network"
        self.closest = one_of("range", range, RANGES) == "closest"

    def step(self) -> Fraction:
        """A power of two."""
        return Fraction(2) ** (self.exponent - self.bits + 1)

    def offset(self) -> Fraction:
        """Zero, or the negative power of two that the hardtanh form begins at."""
        return self.LOWEST * Fraction(2) ** self.exponent

    def boundaries(self) -> list[Boundary]:
        """Halfway between the values; a tie goes to the even code."""
        return [
            Boundary(self.offset() + self.step() * (code - Fraction(1, 2)), code % 2 == 0)
            for code in range(1, self.levels)
        ]

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Round and clip."""
        half = 1 << (self.bits - 1)
        lowest = self.LOWEST * half
        rounded = (x * float(1 / self.step())).round_()
        clipped = rounded.clamp(lowest, half - 1)
        passes = self.passes(x, mask(torch.eq, rounded, clipped))
        return clipped.sub_(lowest), passes

    def passes(self, x: Tensor, on_grid: Tensor) -> Tensor:
        """Where the gradient passes, 1 or 0."""
        return on_grid

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Set the smallest power of two that covers :data:`COVERED_SHARE` of the non-zero outputs for ``values``.

        With ``range`` ``closest`` it is the one with the least squared error.
        """
        real = self.real(values)
        if self.closest:
            self.exponent = closest_exponent(real, self.bits, self.LOWEST)
        else:
            self.exponent = covering_exponent(real.abs(), COVERED_SHARE)

    def real(self, values: Tensor) -> Tensor:
        """Give what the function is before it is quantized, without its clip."""
        return values


class FixedReLU(FixedActivation):
    """ReLU on the fixed-point grid: values 0 .. 2^exponent - step, in ``bits - 1`` planes."""

    LOWEST = 0

    @property
    def planes(self) -> int:
        """One fewer than bits: the sign is always plus."""
        return self.bits - 1

    def real(self, values: Tensor) -> Tensor:
        """Positive values; the others become 0."""
        return values.relu()


class FixedHardtanh(FixedActivation):
    """Clipping to -2^exponent .. 2^exponent - step, in ``bits`` planes with an offset."""

    LOWEST = -1

    def passes(self, x: Tensor, on_grid: Tensor) -> Tensor:
        """Not below the range, even if the rounded value is its end: the inner clip of the authors' code."""
        return on_grid * mask(torch.ge, x, float(self.offset()))


METHOD = Method("fpnn", FPNNWeight, {nn.ReLU: FixedReLU, nn.Hardtanh: FixedHardtanh})
