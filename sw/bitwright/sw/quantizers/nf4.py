"""NF4 (QLoRA, arXiv 2305.14314): indices of four bits for the quantiles of a normal distribution.

Each filter is scaled to [-1, 1], and its indices are decoded to integers: that is what training sees and what the
hardware computes with. With the option ``block`` it is the published form, a scale for every so many weights of a
filter and quantiles that are not rounded, to store and to compare with.
"""

from torch import Tensor

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.filters import CodebookWeight, filter_magnitudes, filter_rows, from_filter_rows
from bitwright.sw.quantizers.formats import NF4, AbsmaxFormat
from bitwright.sw.quantizers.registry import Method


class NF4Weight(CodebookWeight):
    """Weights of four bits; the index is that of the nearest quantile. The gradient passes unchanged.

    Parameters
    ----------
    bits
        4.
    planes
        Bits of the integers, 5 to 8: with fewer, neighbors would share one.
    block
        Weights that share a scale; None for all of a filter, which the hardware needs. Published: 64.
    """

    BITS = range(4, 5)
    PLANES = range(5, 9)

    def __init__(self, bits: int, *, planes: int = 8, block: int | None = None) -> None:
        super().__init__(bits, planes=planes)
        if block is not None and (not isinstance(block, int) or isinstance(block, bool) or block < 1):
            raise BitwrightError(
                f"The option block is {block!r}, expected a positive integer; leave it out for filters."
            )
        self.block = block

    def extra_repr(self) -> str:
        """Show the parameters where the module is printed."""
        return f"{super().extra_repr()}, block={self.block}"

    @property
    def encoding(self) -> Encoding:
        """Two's complement."""
        if (obstacle := self.obstacle()) is not None:
            raise BitwrightError(obstacle)
        return "signed"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, and find the nearest quantile: its integer, unless it is only stored."""
        if self.block is None:
            magnitudes = filter_magnitudes(weight)
            return (NF4.round(weight / magnitudes) * self.greatest).round(), magnitudes / self.greatest
        rows = filter_rows(weight)
        scales = AbsmaxFormat(NF4, self.block).scales(rows)
        return from_filter_rows(NF4.round(rows / scales), weight.shape), from_filter_rows(scales, weight.shape)

    def codebook(self) -> Tensor:
        """Give the integer of each index."""
        return (NF4.values * self.greatest).round().long()

    def obstacle(self) -> str | None:
        """Say that the hardware has no scale for each block."""
        if self.block is None:
            return None
        return (
            f"NF4 in blocks is a format to store and to compare: it has a scale for every {self.block} weights, the "
            "hardware one for each output channel; leave the option block out, so that blocks are filters."
        )


METHOD = Method("nf4", NF4Weight)
