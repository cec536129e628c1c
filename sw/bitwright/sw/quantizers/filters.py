"""What codebook methods and number formats share: filters, their scales, and integers that indices stand for.

The hardware has one scale for each output channel, since it multiplies what has been summed up. Block scaling therefore
reaches it where a block is a filter: all weights of one output channel.
"""

from typing import Any

import torch
from torch import Tensor

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import NEARLY_ZERO, WeightQuantizer


class CodebookWeight(WeightQuantizer):
    """Weights whose values are numbered, and are integers of ``planes`` bits times a scale.

    Parameters
    ----------
    bits
        Of an index.
    planes
        Bits of the integers that indices stand for: fewer cost fewer cycles, and round the codebook more.
    """

    PLANES = range(2, 9)
    """Numbers of planes that the method offers."""

    def __init__(self, bits: int, *, planes: int = 8) -> None:
        super().__init__(bits)
        if not isinstance(planes, int) or isinstance(planes, bool) or planes not in self.PLANES:
            raise BitwrightError(
                f"The option planes is {planes!r}, expected an integer from {self.PLANES[0]} to {self.PLANES[-1]}."
            )
        self._planes = planes

    def extra_repr(self) -> str:
        """Show bits and planes where the module is printed."""
        return f"bits={self.bits}, planes={self.planes}"

    def get_extra_state(self) -> Tensor:
        """Give bits and planes."""
        return torch.tensor([self.bits, self.planes])

    def set_extra_state(self, state: Any) -> None:
        """Check that the state dict was made with the same bits and planes."""
        super().set_extra_state(state)
        if int(state[1]) != self.planes:
            raise BitwrightError(
                f"The state dict was made with integers of {int(state[1])} planes where this model's "
                f"{type(self).__name__} has {self.planes}; quantize the model with the recipe of the state dict."
            )

    @property
    def encoding(self) -> Encoding:
        """Two's complement."""
        return "signed"

    @property
    def planes(self) -> int:
        """Bits of the integers."""
        return self._planes

    @property
    def greatest(self) -> int:
        """Greatest integer; the least is its negative, so that codebooks may be symmetric."""
        return (1 << (self.planes - 1)) - 1


class StoredWeight(WeightQuantizer):
    """Weights in a format to store and to compare with: training rounds to it, lowering refuses it.

    :meth:`quantized` gives values of the format, which need not be integers.
    """

    @property
    def encoding(self) -> Encoding:
        """Refuse: the hardware has none."""
        raise BitwrightError(str(self.obstacle()))


def filter_magnitudes(weight: Tensor) -> Tensor:
    """Greatest magnitude of each filter, shape (output channels, 1, ...); 1 for filters that are nearly zero."""
    greatest = weight.abs().flatten(1).amax(1)
    greatest = torch.where(greatest <= NEARLY_ZERO, 1, greatest)  # NaN stays
    return greatest.reshape(-1, *[1] * (weight.dim() - 1))


def filter_rows(weight: Tensor) -> Tensor:
    """Filters as rows, (output channels, weights): the input channels of a kernel's tap lie side by side."""
    return weight.movedim(1, -1).flatten(1)


def from_filter_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """Undo :func:`filter_rows` for a weight of some shape."""
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
