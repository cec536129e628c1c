"""FP4: floats of four bits, E2M1 of the OCP Microscaling Formats and E3M0 by this project's convention.

Each filter is scaled so that its greatest magnitude is the greatest value of the format. In units of the smallest value
all others are integers: E2M1 has 0, 1, 2, 3, 4, 6, 8, 12 and a sign, in 5 planes; E3M0 has 0 and 1, 2, 4 .. 64 and a
sign, in 8.
"""

import torch
from torch import Tensor

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import WeightQuantizer, one_of
from bitwright.sw.quantizers.filters import filter_magnitudes
from bitwright.sw.quantizers.formats import E2M1, E3M0
from bitwright.sw.quantizers.registry import Method

FORMS = {"e2m1": E2M1, "e3m0": E3M0}


class FP4Weight(WeightQuantizer):
    """Weights of four bits, rounded to the nearest; the gradient passes unchanged, as all are in range.

    Parameters
    ----------
    bits
        4.
    form
        ``e2m1`` or ``e3m0``.
    """

    BITS = range(4, 5)

    def __init__(self, bits: int, *, form: str = "e2m1") -> None:
        super().__init__(bits)
        self.form = one_of("form", form, list(FORMS))
        self._format = FORMS[form]
        self._greatest = int(self._format.largest / self._format.unit)

    def extra_repr(self) -> str:
        """Show bits and form where the module is printed."""
        return f"bits={self.bits}, form={self.form}"

    @property
    def encoding(self) -> Encoding:
        """Two's complement."""
        return "signed"

    @property
    def planes(self) -> int:
        """Those of the greatest integer, and a sign."""
        return self._greatest.bit_length() + 1

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale each filter and round."""
        scale, unit = filter_magnitudes(weight) / self._greatest, self._format.unit
        return self._format.round(weight / scale * unit) / unit, scale

    def codebook(self) -> Tensor:
        """Give all values of the format as integers."""
        values = self._format.decode(torch.arange(1 << self.bits))
        return (values / self._format.unit).long().unique()


METHOD = Method("fp4", FP4Weight)
