"""LQ-Nets (Zhang et al., ECCV 2018, arXiv 1807.10029): levels that training learns together with the weights.

Weights have codes of -1 and +1 and a basis for each output channel, activations codes of 0 and 1 and one basis for the
layer, as in the authors' code. Every step of training

1. gives each number the nearest level of the *current* basis; these levels are what the network computes with,
2. solves for the basis with the least squared error for these codes, over the weights or over the batch,
3. moves the basis towards it: a moving average of momentum 0.9, without the bias to the initial basis.

Evaluation does the first of these alone.
"""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import (
    Boundary,
    Quantizer,
    StraightThrough,
    WeightQuantizer,
    power_of_two_above,
)
from bitwright.sw.quantizers.basis import (
    BasisActivation,
    BasisCodes,
    BasisEncoding,
    Levels,
    expect_finite,
    fit_basis,
)
from bitwright.sw.quantizers.registry import Method

MOMENTUM = 0.9
"""Of the moving average."""

QUARTILE = 0.6745
"""Three quarters of a normal distribution of deviation 1 are below it: from it bases begin."""

FITTED_NUMBERS = 1 << 20
"""Numbers that calibration fits a basis to, about, so that it takes no longer than a few steps of training."""

FITTING_STEPS = 20
"""How often calibration encodes and solves."""

BELOW_ALL = -(Fraction(2) ** 1024)
"""A boundary that every float is above."""


class MovingBasis(Quantizer):
    """A quantizer whose basis is a moving average.

    Attributes
    ----------
    coefficients
        The basis, shape (bases, bits).
    steps
        How many steps of training have moved it.
    """

    BITS = range(1, 5)
    coefficients: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.register_buffer("coefficients", torch.empty(0, bits))
        self.steps = 0

    def get_extra_state(self) -> Tensor:
        """Give bits and steps."""
        return torch.tensor([self.bits, self.steps])

    def set_extra_state(self, state: Any) -> None:
        """Check the bits, take the steps."""
        super().set_extra_state(state)
        self.steps = int(state[1])

    @torch.no_grad()
    def move(self, best: Tensor) -> None:
        """Move the basis towards the best one of a step, which the first step takes over."""
        self.steps += 1
        self.coefficients.lerp_(best.to(self.coefficients), (1 - MOMENTUM) / (1 - MOMENTUM**self.steps))


class LQNetsWeight(MovingBasis, WeightQuantizer):
    """Weights of LQ-Nets; the gradient passes unchanged."""

    @property
    def encoding(self) -> BasisEncoding:
        """A sum of coefficients, each added or subtracted."""
        return "bipolar_basis"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: there is no common scale."""
        raise BitwrightError(f"{type(self).__name__} has a basis and no scale, expected a uniform quantizer.")

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Begin as the paper does, from the deviation of He's initialization for so many outputs of a weight."""
        outputs = len(values) * math.prod(values.shape[2:])
        least = QUARTILE * math.sqrt(2 / outputs) / 2 ** (self.bits - 1)
        self.coefficients = _powers_of_two(least, values, self.bits).repeat(len(values), 1)
        self.steps = 0

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """Begin at the basis that suits weights which have been trained."""
        self.coefficients = fit_basis(weight, self.bits, self.encoding, iterations=FITTING_STEPS).basis.to(weight)
        self.steps = 0

    def forward(self, weight: Tensor) -> Tensor:
        """Give the nearest levels; in training, move the basis for the next step."""
        levels = Levels.of(self.coefficients, self.encoding)
        values, moments = levels.nearest(_rows(weight.detach()))
        if self.training:
            self.move(levels.best_basis(moments))
        return StraightThrough.apply(weight, values.reshape(weight.shape), None)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Any:
        """Codes and bases of a real weight, as :class:`~bitwright.sw.quantizers.basis.BasisCodes`."""
        expect_finite(weight)
        integers = Levels.of(self.coefficients, self.encoding).integers(_rows(weight))
        return BasisCodes(integers.reshape(weight.shape), self.coefficients.double(), self.encoding)


class LQNetsActivation(MovingBasis, BasisActivation):
    """Activations of LQ-Nets in place of a ReLU; the gradient passes above 0 and below the greatest level."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.coefficients = _powers_of_two(2 * QUARTILE / ((1 << bits) - 1), self.coefficients, bits)

    def basis(self) -> list[Fraction]:
        """Coefficients of the planes."""
        return [Fraction(value) for value in self.coefficients[0].tolist()]

    def boundaries(self) -> list[Boundary]:
        """Halfway between neighbouring levels; what is below 0 is 0, and so above boundaries below 0."""
        return [boundary if boundary.value >= 0 else Boundary(BELOW_ALL, False) for boundary in super().boundaries()]

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give codes, and where the gradient passes."""
        levels = self.levels_now()
        integers = levels.integers(_channels(x.relu())).reshape(x.shape)
        return integers.to(x.dtype), (x > 0) & (x < levels.values[0, -1])

    def forward(self, x: Tensor) -> Tensor:
        """Give the nearest levels; in training, move the basis for the next step."""
        levels, numbers = self.levels_now(), _channels(x.detach().relu())
        values, moments = levels.nearest(numbers)
        if self.training:
            self.move(levels.best_basis(moments, self.importance(numbers)))
        return _Clipped.apply(x, values.reshape(x.shape), levels.values[0, -1])

    def importance(self, numbers: Tensor) -> Tensor | None:
        """Give what the squared error of each channel counts; None where all count the same.

        ``numbers`` are not negative, of shape (n, channels, m); the result has shape (channels,).
        """
        return None

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Fit the basis to what is positive of ``values``, or to evenly spaced images of them if they are many.

        It stays as it is where nothing is.
        """
        expect_finite(values)
        step = -(-values.numel() // FITTED_NUMBERS)
        positive = values[:: min(step, len(values))].relu()
        if not positive.any():
            return
        unit = power_of_two_above(positive.max())  # squares of what it divides do not overflow
        # That of a normal distribution with the same positive half.
        deviation = (2 * (positive / unit).square().mean()).sqrt() * unit
        least = 2 * QUARTILE / ((1 << self.bits) - 1)
        self.coefficients = deviation.to(self.coefficients) * _powers_of_two(least, self.coefficients, self.bits)
        numbers = _channels(positive)
        for _ in range(FITTING_STEPS):
            levels = self.levels_now()
            best = levels.best_basis(levels.nearest(numbers)[1], self.importance(numbers))
            self.coefficients = best.to(self.coefficients)
        self.steps = 0

    def levels_now(self) -> Levels:
        """Levels of the current basis."""
        return Levels.of(self.coefficients, "basis")


class _Clipped(torch.autograd.Function):
    """Value of the second argument, gradient to the first where it is above 0 and below the third, a single number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, greatest: Tensor) -> Tensor:
        """Give ``value``."""
        ctx.save_for_backward(x, greatest)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Give the gradient, masked."""
        x, greatest = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], x, 0.0, greatest.item()), None, None


def _rows(weight: Tensor) -> Tensor:
    """Weights as :class:`Levels` takes numbers, with a basis for each output channel."""
    return weight.reshape(1, len(weight), -1)


def _channels(x: Tensor) -> Tensor:
    """Activations as :class:`Levels` takes numbers."""
    return x.reshape(len(x), x.shape[1], -1)


def _powers_of_two(least: float, like: Tensor, planes: int) -> Tensor:
    """Coefficients of a uniform grid, shape (1, planes)."""
    return least * 2.0 ** torch.arange(planes, dtype=like.dtype, device=like.device)[None]


METHOD = Method("lqnets", LQNetsWeight, {nn.ReLU: LQNetsActivation})
