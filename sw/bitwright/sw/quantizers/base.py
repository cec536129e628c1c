"""What every quantizer offers to training and to lowering.

A quantizer evaluates in the floating-point type of its input, and says exactly, in integers and rationals, what it
computes: :meth:`WeightQuantizer.codes` for weights, :meth:`ActivationQuantizer.boundaries` for activations. Its
gradient is the one that its paper states, not the derivative of the step function.
"""

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import Encoding

NEARLY_ZERO = 2.0**-60
"""Tensors with no magnitude above this count as all zero: a scale that follows them would underflow."""

CLOSEST_RANGE = 8
"""How many powers of two :func:`closest_exponent` tries."""

CODEBOOK_MAX = 16
"""Most entries of a codebook that :class:`WeightCodes` carries: as many as four index planes number."""


@dataclass(frozen=True)
class WeightCodes:
    """A weight tensor as integers, ``weight == integers * scale``.

    Attributes
    ----------
    integers
        int64, of the weight's shape. ``signed``: -2^(planes-1) .. 2^(planes-1) - 1; ``bipolar``: -1 or 1; ``odd``: odd,
        -(2^planes - 1) .. 2^planes - 1; ``ternary``: -1, 0 or 1.
    scale
        float64, shape (output channels,); not negative, and zero only where all weights of the channel are zero.
    encoding
        Which integers are possible, and so what the planes mean.
    planes
        Bit planes of an integer.
    codebook
        int64, ascending: all integers that occur in the layer, at most :data:`CODEBOOK_MAX`, where the method numbers
        its values so that a weight may be stored as an index; None otherwise.
    """

    integers: Tensor
    scale: Tensor
    encoding: Encoding
    planes: int
    codebook: Tensor | None = None

    def indices(self) -> Tensor:
        """Positions of the integers in the codebook, int64, of the weight's shape."""
        if self.codebook is None:
            raise BitwrightError(
                f"These weights have no codebook of at most {CODEBOOK_MAX} entries, expected one; choose a codebook "
                "method of at most 4 bits, such as 'nf4'."
            )
        return torch.searchsorted(self.codebook, self.integers)


@dataclass(frozen=True)
class Boundary:
    """Where a code begins: ``code >= i`` exactly if ``x >= value``, or ``x > value`` where not ``inclusive``."""

    value: Fraction
    inclusive: bool


class Quantizer(nn.Module):
    """Parent of all quantizers: the number of bits, checked, and saved in the state dict.

    Keyword-only parameters of a quantizer are its *options*: recipes set them by name.

    Parameters
    ----------
    bits
        As the method counts them, in :attr:`BITS`. The bit *planes* that hardware needs may be fewer.
    """

    BITS: ClassVar[range] = range(1, 9)
    """Numbers of bits that the method offers."""

    network_wide: bool = False
    """Whether all layers share one scale: :meth:`fit` then gets the weights of all layers, and calibration gives all
    activations the greatest exponent."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not isinstance(bits, int) or isinstance(bits, bool) or bits not in self.BITS:
            listed = " or ".join(map(str, self.BITS))
            expected = f"{self.BITS[0]} to {self.BITS[-1]}" if len(self.BITS) > 2 else listed
            unit = "bit" if expected == "1" else "bits"
            hint = "; for 1 bit use the method 'sign'" if bits == 1 else ""
            raise BitwrightError(f"{type(self).__name__} takes {expected} {unit}, found {bits!r}{hint}.")
        self.bits = bits

    def extra_repr(self) -> str:
        """Show the bits where the module is printed."""
        return f"bits={self.bits}"

    def get_extra_state(self) -> Tensor:
        """Give the numbers that the state dict holds besides parameters: the bits, and what :meth:`fit` set."""
        return torch.tensor([self.bits])

    def set_extra_state(self, state: Any) -> None:
        """Take the numbers from a state dict, which must have been made with the same bits."""
        if int(state[0]) != self.bits:
            raise BitwrightError(
                f"The state dict was made with {int(state[0])} bits where this model's {type(self).__name__} has "
                f"{self.bits}; quantize the model with the recipe of the state dict."
            )

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Adjust the scale to ``values``; methods without an adjustable scale do nothing."""


class PowerOfTwoScale(Quantizer):
    """A quantizer with the adjustable scale ``2**exponent``."""

    def __init__(self, bits: int, exponent: int = 0) -> None:
        super().__init__(bits)
        self.exponent = exponent

    def extra_repr(self) -> str:
        """Show bits and exponent where the module is printed."""
        return f"bits={self.bits}, exponent={self.exponent}"

    def get_extra_state(self) -> Tensor:
        """Give bits and exponent."""
        return torch.tensor([self.bits, self.exponent])

    def set_extra_state(self, state: Any) -> None:
        """Check the bits, take the exponent."""
        super().set_extra_state(state)
        self.exponent = int(state[1])


class WeightQuantizer(Quantizer):
    """Parametrization of a ``weight``: maps the real weight, which training keeps, to the quantized one."""

    CLIP: ClassVar[bool] = False
    """Whether the method clips the real weights to :meth:`limit` after every update."""

    @property
    @abstractmethod
    def encoding(self) -> Encoding:
        """Encoding of the integers."""

    @property
    def planes(self) -> int:
        """Bit planes of an integer."""
        return self.bits

    @abstractmethod
    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Give integers, as floats of the weight's type and shape, and the scale, which broadcasts to that shape.

        ``weight`` is what :meth:`surrogate` makes of the real weight.
        """

    def surrogate(self, weight: Tensor) -> Tensor:
        """Give the function whose derivative stands for the quantizer's; the identity unless the paper says else."""
        return weight

    def limit(self) -> float:
        """Give the magnitude that the real weights are clipped to, for methods that clip."""
        return 1.0

    @torch.no_grad()
    def constrain(self, weight: Tensor) -> None:
        """Bring the real weights, in place, to where the method keeps them: before training and after every update."""
        if self.CLIP:
            weight.clamp_(-self.limit(), self.limit())

    def calibrate(self, weight: Tensor) -> None:
        """Adjust what training would have learned to real weights that were trained without this quantizer."""

    def rate_scale(self, weight: Tensor) -> float:
        """Give the factor by which the method multiplies every update of a real weight."""
        return 1.0

    def codebook(self) -> Tensor | None:
        """Give all integers that may occur, for methods that number them: int64, ascending, of any length."""
        return None

    def obstacle(self) -> str | None:
        """Say why the hardware cannot hold these weights, as a whole sentence; None where it can."""
        return None

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize; backward, the gradient of :meth:`surrogate`."""
        surrogate = self.surrogate(weight)
        integers, scale = self.quantized(surrogate.detach())
        return StraightThrough.apply(surrogate, integers * scale, None)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> WeightCodes:
        """Integers and scales of a real weight, shape (output channels, ...): those that :meth:`forward` uses."""
        if not weight.isfinite().all():
            raise BitwrightError(
                "A weight is NaN or infinite, expected finite numbers; train with a lower learning rate."
            )
        if (obstacle := self.obstacle()) is not None:
            raise BitwrightError(obstacle)
        integers, scale = self.quantized(self.surrogate(weight))
        scale = scale.double().reshape(-1).expand(len(weight)).clone()
        codebook = self.codebook()
        if codebook is not None:
            codebook = codebook.to(integers.device) if len(codebook) <= CODEBOOK_MAX else None
        return WeightCodes(integers.long(), scale, self.encoding, self.planes, codebook)


class ActivationQuantizer(Quantizer):
    """An activation function whose outputs are ``step * code + offset``, with codes 0 .. :attr:`levels` - 1."""

    @property
    def planes(self) -> int:
        """Bit planes of a code."""
        return self.bits

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.planes

    @abstractmethod
    def step(self) -> Fraction:
        """Distance of neighbouring values."""

    @abstractmethod
    def offset(self) -> Fraction:
        """Value of code 0; it is what padding holds."""

    @abstractmethod
    def boundaries(self) -> list[Boundary]:
        """Where the codes 1 .. ``levels - 1`` begin, ascending."""

    @abstractmethod
    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give codes, as floats of the type of ``x``, and where the gradient passes: a mask, best of that type."""

    def forward(self, x: Tensor) -> Tensor:
        """Quantize; backward, the gradient passes where :meth:`quantized` says."""
        codes, passes = self.quantized(x.detach())
        values = code_values(codes, self.step(), self.offset())
        return StraightThrough.apply(x, values, passes)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Codes of ``x``, int64, of its shape."""
        return self.quantized(x)[0].long()


class ImageInput(nn.Module):
    """First module of a network: pixels 0..255, as bytes or as floats, become codes and their values.

    ``code = round(pixel * (2**bits - 1) / 255)``, without ties since 255 is odd; ``value = low + code * step``.

    Parameters
    ----------
    bits
        1 to 8; with 8 every pixel is its own code.
    low, high
        Values of the pixels 0 and 255. One pair for all channels: the values of a dot product need a common step.
    """

    like: Tensor

    def __init__(self, bits: int = 8, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        if not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8:
            raise BitwrightError(f"ImageInput takes 1 to 8 bits, found {bits!r}.")
        if not low < high:
            raise BitwrightError(f"ImageInput has the range {low} to {high}, expected low below high.")
        self.bits, self.low, self.high = bits, low, high
        self.register_buffer("like", torch.empty(0), persistent=False)  # has the network's floating-point type

    def extra_repr(self) -> str:
        """Show the parameters where the module is printed."""
        return f"bits={self.bits}, low={self.low}, high={self.high}"

    def get_extra_state(self) -> Tensor:
        """Give bits and range."""
        return torch.tensor([self.bits, self.low, self.high], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Check that a state dict was made with the same bits and range."""
        if state.tolist() != self.get_extra_state().tolist():
            bits, low, high = state.tolist()
            raise BitwrightError(
                f"The state dict was made with ImageInput(bits={bits:.0f}, low={low}, high={high}), this model has "
                f"ImageInput({self.extra_repr()}); quantize the model with the recipe of the state dict."
            )

    @property
    def planes(self) -> int:
        """Bit planes of a code."""
        return self.bits

    @property
    def levels(self) -> int:
        """Number of codes."""
        return 1 << self.bits

    def step(self) -> Fraction:
        """Distance of neighbouring values."""
        return (Fraction(self.high) - Fraction(self.low)) / (self.levels - 1)

    def offset(self) -> Fraction:
        """Value of code 0."""
        return Fraction(self.low)

    def codes(self, pixels: Tensor) -> Tensor:
        """Codes of the pixels, int64, of their shape."""
        return self._codes(pixels).long()

    def forward(self, pixels: Tensor) -> Tensor:
        """Values of the pixels, in the network's floating-point type."""
        return code_values(self._codes(pixels), self.step(), self.offset())

    def _codes(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.like.dtype)
        return pixels if self.bits == 8 else torch.round(pixels * (self.levels - 1) / 255)


class StraightThrough(torch.autograd.Function):
    """Value of the second argument, gradient to the first: all of it, or multiplied by the third, a mask."""

    @staticmethod
    def forward(ctx: Any, _surrogate: Tensor, value: Tensor, passes: Tensor | None) -> Tensor:
        """Give ``value``."""
        ctx.save_for_backward(passes)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Give the gradient, masked."""
        (passes,) = ctx.saved_tensors
        (gradient,) = gradients
        return (gradient if passes is None else gradient * passes), None, None


def one_of(option: str, value: Any, choices: Sequence[str]) -> str:
    """Give the value of a quantizer's option, which must be one of some words."""
    if value not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise BitwrightError(f"The option {option} is {value!r}, expected {expected}.")
    return value


def switch(option: str, value: Any) -> bool:
    """Give the value of a quantizer's option that is true or false."""
    if not isinstance(value, bool):
        raise BitwrightError(f"The option {option} is {value!r}, expected true or false.")
    return value


def glorot(weight: Tensor) -> float:
    """Glorot's bound of a weight of shape (output channels, input channels, ...): sqrt(1.5 / (fan in + fan out)).

    The update scale of BinaryConnect is its reciprocal (the authors' ``W_LR_scale``).
    """
    return math.sqrt(1.5 / (weight[0].numel() + len(weight) * weight[0, 0].numel()))


def largest_magnitude(x: Tensor) -> Tensor:
    """Largest magnitude, in one pass; NaN if there is one."""
    least, greatest = torch.aminmax(x)
    return torch.maximum(greatest, -least)


def code_values(codes: Tensor, step: Fraction, offset: Fraction) -> Tensor:
    """Give ``step * code + offset``, exact for powers of two and correctly rounded for steps ``1 / n``."""
    values = codes / float(1 / step)
    return values + float(offset) if offset else values


def mask(compare: Callable[..., Any], x: Tensor, other: Tensor | float, out: Tensor | None = None) -> Tensor:
    """Compare, by ``torch.ge`` or the like, and give 1 and 0 of the type of ``x``; into ``out``, if given.

    On a CPU that is several times faster than booleans, and the memory of ``x`` faster than new memory.
    """
    return compare(x, other, out=torch.empty_like(x) if out is None else out)


def magnitude_mask(compare: Callable[..., Any], x: Tensor, other: Tensor | float) -> Tensor:
    """Compare magnitudes, as :func:`mask` does values."""
    magnitudes = x.abs()
    return mask(compare, magnitudes, other, out=magnitudes)


@torch.no_grad()
def sign(x: Tensor) -> Tensor:
    """Sign of ``x``, where the sign of 0 is +1; without gradient."""
    return mask(torch.ge, x, 0).mul_(2).sub_(1)


def power_of_two_above(x: Tensor) -> Tensor:
    """Smallest powers of two that are not below ``x``, exactly; 1 where ``x`` is nearly zero."""
    mantissa, _ = torch.frexp(x)  # x = mantissa * power, mantissa in [1/2, 1)
    power = torch.where(mantissa == 0.5, x, x / mantissa)
    return torch.where(x > NEARLY_ZERO, power, 1.0)


def covering_exponent(magnitudes: Tensor, share: float = 1.0) -> int:
    """Smallest ``e`` such that at least ``share`` of the magnitudes that are not zero are at most ``2**e``.

    Exact, by counting; 0 where there are none.
    """
    exponents = power_of_two_above(magnitudes[magnitudes > NEARLY_ZERO]).log2().round().int()
    if not len(exponents):
        return 0
    candidates, counts = exponents.unique(return_counts=True)
    covered = (counts.cumsum(0).double() / len(exponents)).tolist()
    return int(candidates[bisect_left(covered, share)])


def closest_exponent(values: Tensor, bits: int, lowest: int = -1) -> int:
    """Give the ``e`` whose grid has the least squared error, among the covering one and those below it.

    With few bits that is well below the covering one: the grid clips a few large values, and does not round the others
    to zero.

    Parameters
    ----------
    values
        Finite numbers.
    bits
        Of the grid ``lowest * 2**e, ..., 2**e - step`` of step ``2**(e - bits + 1)``.
    lowest
        -1, or 0 for the half that is not negative.
    """
    greatest, half = covering_exponent(values.abs()), 1 << (bits - 1)

    def error(exponent: int) -> float:
        step = 2.0 ** (exponent - bits + 1)
        rounded = (values / step).round_().clamp_(lowest * half, half - 1).mul_(step)
        return float(rounded.sub_(values).double().square().sum())

    return min(range(greatest, greatest - CLOSEST_RANGE, -1), key=error)
