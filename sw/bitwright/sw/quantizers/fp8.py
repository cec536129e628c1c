"""FP8: floats of eight bits, E4M3 and E5M2 of the OCP specification, to store weights and to compare with.

Each filter is scaled so that its greatest magnitude is the greatest value of the format. As integers these values would
take 19 and 33 planes, so that they do not reach the hardware.
"""

from torch import Tensor

from bitwright.sw.quantizers.base import one_of
from bitwright.sw.quantizers.filters import StoredWeight, filter_magnitudes
from bitwright.sw.quantizers.formats import E4M3, E5M2
from bitwright.sw.quantizers.registry import Method

FORMS = {"e4m3": E4M3, "e5m2": E5M2}


class FP8Weight(StoredWeight):
    """Weights of eight bits, rounded to the nearest; the gradient passes unchanged, as all are in range.

    Parameters
    ----------
    bits
        8.
    form
        ``e4m3`` or ``e5m2``.
    """

    BITS = range(8, 9)

    def __init__(self, bits: int, *, form: str = "e4m3") -> None:
        super().__init__(bits)
        self.form = one_of("form", form, list(FORMS))
        self._format = FORMS[form]

    def extra_repr(self) -> str:
        """Show bits and form where the module is printed."""
        return f"bits={self.bits}, form={self.form}"

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale each filter and round."""
        scale = filter_magnitudes(weight) / self._format.largest
        return self._format.round(weight / scale), scale

    def obstacle(self) -> str:
        """Give the planes that its values would take."""
        planes = int(self._format.largest / self._format.unit).bit_length() + 1
        return (
            f"{self._format.name} is a format to store and to compare: as integers its values take {planes} planes, "
            "the hardware has at most 8; choose another method, such as 'fpnn' with 8 bits."
        )


METHOD = Method("fp8", FP8Weight)
