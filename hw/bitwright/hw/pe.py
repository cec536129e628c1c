"""The processing element: AND, popcount, accumulate."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.popcount import popcount

ACCUMULATE = data.StructLayout({"valid": 1, "clear": 1, "double": 1, "negate": 1})
"""What an accumulator does with the count that arrives: start over, double first, subtract."""


class PopcountAccumulator(wiring.Component):
    """Count the set bits of a word, and accumulate the counts by Horner's scheme.

    Every cycle with ``control.valid``: ``sum <- (0 if clear else 2·sum if double else sum) ± (count if enable else
    0)``, modulo ``2**width``, where ``count`` belongs to the word of the cycle before.

    Parameters
    ----------
    lanes
        Bits of a word.
    width
        Bits of the accumulator.

    Members
    -------
    word : ``In(lanes)``
        Bits to count.
    control : ``In(ACCUMULATE)``
        One cycle after the word.
    enable : ``In(1)``
        Whether the word counts, with ``control``: a word held still from an earlier cycle does not.
    sum : ``Out(signed(width))``
        The accumulator, ``LATENCY`` cycles after the word.
    """

    LATENCY = 2

    word: Signal
    control: "data.View[Any]"
    enable: Signal
    sum: Signal

    def __init__(self, lanes: int, width: int) -> None:
        self.lanes = lanes
        self.width = width
        super().__init__({"word": In(lanes), "control": In(ACCUMULATE), "enable": In(1), "sum": Out(signed(width))})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        control = self.control
        count = Signal(range(self.lanes + 1))
        m.d.sync += count.eq(popcount(m, self.word))

        base = Signal(self.width)
        addend = Signal(self.width)
        m.d.comb += base.eq(Mux(control.clear, 0, Mux(control.double, self.sum << 1, self.sum)))
        m.d.comb += addend.eq((count & self.enable.replicate(len(count))) ^ control.negate.replicate(self.width))
        # -count as the inverted count and a carry in: one adder.
        with m.If(control.valid):
            m.d.sync += self.sum.eq(base + addend + control.negate)
        return m


class ProcessingElement(wiring.Component):
    """One PE: ``popcount(activation & weight)``, accumulated. See :class:`PopcountAccumulator`.

    Members
    -------
    activation, weight : ``In(lanes)``
        Words of one plane each.
    control, enable, sum
        As for :class:`PopcountAccumulator`.
    """

    LATENCY = PopcountAccumulator.LATENCY

    activation: Signal
    weight: Signal
    control: "data.View[Any]"
    enable: Signal
    sum: Signal

    def __init__(self, lanes: int, width: int) -> None:
        self.lanes = lanes
        self.width = width
        super().__init__(
            {
                "activation": In(lanes),
                "weight": In(lanes),
                "control": In(ACCUMULATE),
                "enable": In(1),
                "sum": Out(signed(width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.accumulator = accumulator = PopcountAccumulator(self.lanes, self.width)
        m.d.comb += [
            accumulator.word.eq(self.activation & self.weight),
            accumulator.control.eq(self.control),
            accumulator.enable.eq(self.enable),
            self.sum.eq(accumulator.sum),
        ]
        return m
