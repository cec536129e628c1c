"""Residual blocks whose addition the hardware repeats exactly.

The hardware adds a shortcut to the accumulators of a convolution, before batch norm and activation::

    y = activation(batch norm(convolution(h) + factor * shortcut(x)))

An accumulator counts units of ``weight scale * step of h``, the shortcut adds codes of ``x``, which are worth
``step of x`` each, and the only scale between the two is a power of two. So the quantized block has the factor

    factor = 2**exponent * weight scale * step of h / step of x

and is trained with just that. In float the factor is 1. Some methods also scale the weights, which batch norm makes up
for: quantized weights are about ``gain`` times the real ones, DoReFa's by the reciprocal of the largest. The exponent
brings the factor nearest to that gain, within a factor of sqrt(2), so that convolution and shortcut keep their
proportion; where all scales are powers of two and the gain is about 1, the factor is 1.

Where the weights or one of the inputs have a basis (:mod:`bitwright.sw.quantizers.basis`), what a code adds is a
fixed-point number of the hardware like all others, and the factor stays 1.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitwright.sw.quantizers import ActivationQuantizer, ImageInput, WeightQuantizer

MISFIT = 0.75
"""Training picks another exponent where the factor is further from the gain than this power of two: more than the 1/2
that rounding leaves, so that a scale that wanders around a boundary does not make it jump at every step."""


class Shortcut(nn.Module):
    """Where a residual block adds its input: directly after a convolution, before batch norm and activation.

    Without weights, as option A of He et al. (arXiv 1512.03385, section 4.1): of the input every ``stride``-th pixel of
    every ``stride``-th row; channels that the sum has beyond those of the input are left as they are.

    Parameters
    ----------
    stride
        Step in the input from one pixel of the sum to the next: the product of the strides in the block.
    """

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def extra_repr(self) -> str:
        """Show the stride where the module is printed."""
        return f"stride={self.stride}"

    def forward(self, sums: Tensor, x: Tensor) -> Tensor:
        """Add the block's input ``x``, (N, C, H, W), to ``sums``, which has at least as many channels."""
        return sums + self.addend(x, sums.shape[1])

    def addend(self, x: Tensor, channels: int) -> Tensor:
        """Subsample, and append channels of zeros."""
        missing = channels - x.shape[1]
        if missing < 0:
            raise RuntimeError(f"a shortcut adds {x.shape[1]} channels to {channels}")
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, missing))


class Residual(nn.Sequential):
    """A Sequential in which one module is a :class:`Shortcut`, which also gets the input of the whole."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Sequential names it so)
        """Run the modules in order."""
        value = input
        for module in self:
            value = module(value, input) if isinstance(module, Shortcut) else module(value)
        return value


class QuantizedShortcut(Shortcut):
    """A shortcut between integers: it adds codes of ``x``, times a power of two, to integer accumulators.

    Parameters
    ----------
    shortcut
        Shortcut to take over.
    layer
        Convolution before it, whose weight has a :class:`WeightQuantizer`.
    inner, outer
        Quantizers of the convolution's input ``h`` and of the block's input ``x``.

    Attributes
    ----------
    exponent
        A code of ``x`` counts ``2**exponent`` in the units of the convolution's accumulators; it may be negative.
    gain
        What the factor is to be near to, from the weights at the last :meth:`fit`.
    """

    def __init__(
        self,
        shortcut: Shortcut,
        layer: nn.Conv2d,
        inner: ActivationQuantizer | ImageInput,
        outer: ActivationQuantizer | ImageInput,
    ) -> None:
        super().__init__(shortcut.stride)
        self._operands = (layer, inner, outer)  # in a tuple: they are children of the network, not also of this
        self.exponent, self.gain = 0, 1.0
        self.fit()

    def extra_repr(self) -> str:
        """Show stride and exponent where the module is printed."""
        return f"stride={self.stride}, exponent={self.exponent}"

    def get_extra_state(self) -> Tensor:
        """Give exponent and gain."""
        return torch.tensor([self.exponent, self.gain], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Take exponent and gain."""
        self.exponent, self.gain = int(state[0]), float(state[1])

    @torch.no_grad()
    def fit(self) -> None:
        """Measure the gain, in the least squares sense, and choose the exponent."""
        real, integers, scale = self._weights()
        gain = float((integers * scale * real).sum() / real.square().sum())
        self.gain = gain if gain > 0 and math.isfinite(gain) else 1.0
        self.exponent -= round(self._misfit(self.factor()))

    def factor(self) -> Tensor:
        """What the input is multiplied by, of the weight's type, shape (1,) or (channels of the sum,)."""
        _, inner, outer = self._operands
        scale = self._weights()[2].reshape(-1)
        return scale * float(inner.step() / outer.step()) * 2.0**self.exponent

    def forward(self, sums: Tensor, x: Tensor) -> Tensor:
        """Add ``factor * x``; the gradient of ``x`` is multiplied by the factor, which itself gets none."""
        factor = self.factor()
        if self.training and abs(misfit := self._misfit(factor)) > MISFIT:
            self.exponent -= round(misfit)
            factor = self.factor()
        return sums + factor.reshape(-1, 1, 1) * self.addend(x, sums.shape[1])

    @torch.no_grad()
    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Real weight, its integers, and their scale."""
        chain: Any = self._operands[0].get_submodule("parametrizations.weight")
        quantizer: WeightQuantizer = chain[0]
        return chain.original, *quantizer.quantized(quantizer.surrogate(chain.original))

    def _misfit(self, factor: Tensor) -> float:
        """Base 2 logarithm of factor by gain: of many channels, the mean; 0 for weights that are all zero."""
        positive = factor[factor > 0]
        return float(positive.log2().mean()) - math.log2(self.gain) if len(positive) else 0.0
