"""MX block scaling (OCP Microscaling Formats), to store weights and to compare with.

Every 32 weights of a filter, of consecutive input channels, share a power of two. The hardware has one scale for each
output channel, so that these do not reach it.
"""

from torch import Tensor

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.base import one_of
from bitwright.sw.quantizers.filters import StoredWeight, filter_rows, from_filter_rows
from bitwright.sw.quantizers.formats import E2M1, E4M3, E5M2, MXFormat
from bitwright.sw.quantizers.registry import Method

FORMS = {"e2m1": E2M1, "e4m3": E4M3, "e5m2": E5M2}


class MXWeight(StoredWeight):
    """Weights in blocks, elements rounded to the nearest and saturated; the gradient passes unchanged.

    Parameters
    ----------
    bits
        Of an element: 4 or 8.
    form
        Format of an element: ``e2m1`` for 4 bits, ``e4m3`` (the default) or ``e5m2`` for 8.
    """

    BITS = range(4, 9, 4)

    def __init__(self, bits: int, *, form: str | None = None) -> None:
        super().__init__(bits)
        form = {4: "e2m1", 8: "e4m3"}[bits] if form is None else one_of("form", form, list(FORMS))
        if FORMS[form].bits != bits:
            raise BitwrightError(f"The option form is {form!r}, of {FORMS[form].bits} bits, expected one of {bits}.")
        self.form = form
        self._mx = MXFormat(FORMS[form])

    def extra_repr(self) -> str:
        """Show bits and form where the module is printed."""
        return f"bits={self.bits}, form={self.form}"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Give the elements, and the scale of each weight's block."""
        rows = filter_rows(weight)
        scales = self._mx.scales(rows)
        elements = self._mx.element.round(rows / scales)
        return from_filter_rows(elements, weight.shape), from_filter_rows(scales, weight.shape)

    def obstacle(self) -> str:
        """Say that the hardware has no scale for each block."""
        return (
            f"MX is a format to store and to compare: it has a scale for every {self._mx.block} weights, the hardware "
            "one for each output channel; choose a method whose blocks are filters, such as 'fp4'."
        )


METHOD = Method("mx", MXWeight)
