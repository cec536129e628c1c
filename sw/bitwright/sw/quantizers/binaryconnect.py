"""BinaryConnect: binary weights for propagation, real ones for updates (Courbariaux et al., arXiv 1511.00363).

Section 2.2 has the two ways to binarize, 2.4 the clipping, 2.6 what is done at test time.
"""

import torch
from torch import Tensor

from bitwright.hw.isa import Encoding
from bitwright.sw.quantizers.base import StraightThrough, one_of, sign, switch
from bitwright.sw.quantizers.qnn import RangedWeight
from bitwright.sw.quantizers.registry import Method


class BinaryConnectWeight(RangedWeight):
    """Weights ``-H`` or ``H``; the gradient passes unchanged, real weights are clipped to [-H, H].

    Parameters
    ----------
    bits
        1.
    exponent
        ``H = 2**exponent``.
    stochastic
        In training draw every weight anew at every step: ``H`` with the probability ``clip((w / H + 1) / 2, 0, 1)``,
        else ``-H``. Otherwise a weight is ``H`` times its sign, and that of 0 is plus.
    test
        What stands for a stochastic weight at test time. ``real``, as published: the real weight, which hardware cannot
        hold, so that lowering refuses; ``sign``: ``H`` times its sign, as in deterministic training, which is lowered.
    limit, update_scale
        As in :class:`~bitwright.sw.quantizers.qnn.RangedWeight`; updates are scaled as in the authors' code.
    """

    BITS = range(1, 2)

    def __init__(
        self,
        bits: int = 1,
        exponent: int = 0,
        *,
        stochastic: bool = False,
        test: str = "real",
        limit: str = "weights",
        update_scale: str = "glorot",
    ) -> None:
        super().__init__(bits, exponent, limit=limit, update_scale=update_scale)
        self.stochastic = switch("stochastic", stochastic)
        self.test = one_of("test", test, ("real", "sign"))

    def extra_repr(self) -> str:
        """Show how the module binarizes where it is printed."""
        return f"{super().extra_repr()}, stochastic={self.stochastic}, test={self.test!r}"

    @property
    def encoding(self) -> Encoding:
        """Plus or minus one."""
        return "bipolar"

    def obstacle(self) -> str | None:
        """Stochastic weights are real at test time, if nothing else is asked."""
        if self.stochastic and self.test == "real":
            return (
                "BinaryConnect uses real weights at test time if they were trained stochastically, which no bit plane "
                "holds; set the option test = 'sign' to lower their signs."
            )
        return None

    def quantized(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Take the sign."""
        return sign(weight), weight.new_full((), self.limit())

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize; backward, the gradient passes unchanged."""
        if not self.stochastic or (not self.training and self.test == "sign"):
            return super().forward(weight)
        if not self.training:
            return weight
        limit = self.limit()
        with torch.no_grad():
            # Up with the probability (w / H + 1) / 2, which a uniform number below it has.
            drawn = sign(weight + limit - 2 * limit * torch.rand_like(weight)) * limit
        return StraightThrough.apply(weight, drawn, None)


METHOD = Method("binaryconnect", BinaryConnectWeight)
