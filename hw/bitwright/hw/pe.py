"""The processing element: AND, popcount, accumulate."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw import ecp5, series7
from bitwright.hw.popcount import Fabric, count_products
from bitwright.hw.registers import registered

BASE = data.StructLayout({"valid": 1, "clear": 1, "double": 1})
"""What an accumulator adds to: to nothing if ``clear``, to twice its value if ``double``; only if ``valid``."""

COUNT_LATENCY = 2
"""Cycles from a word, or from registers of products, to the count: one to count its parts, one to add the counts up."""

PARTS = 4
"""Parts of a word that are counted for themselves."""


class PopcountAccumulator(wiring.Component):
    """Count the set bits of words, and accumulate the counts by Horner's scheme.

    Every cycle with ``base.valid``: ``sum <- (0 if clear else 2·sum if double else sum) ± (0 if ignore else count)``,
    modulo ``2**width``.

    Parameters
    ----------
    lanes
        Bits of a word.
    width
        Bits of the accumulator, more than a count has.
    product_stages
        Cycles that words wait for the products of bits of PEs with registers of them.
    multiply_stages
        Cycles that the counts wait for the products of PEs with a multiplier.
    fabric
        Form of the counter.

    Attributes
    ----------
    latency
        Cycles from a word to its sum.

    Members
    -------
    word : ``In(lanes)``
        Bits to count.
    ignore : ``In(1)``
        ``1 + product_stages`` cycles after the word: it does not count, being held still from an earlier cycle, say.
    negate : ``In(1)``
        As many cycles after the word: subtract the count.
    base : ``In(BASE)``
        One cycle before the sum.
    count : ``Out(range(lanes + 1))``
        The count, ``product_stages + COUNT_LATENCY`` cycles after the word: 0 with ``ignore``, else with all bits
        inverted if ``negate``.
    sum : ``Out(signed(width))``
        The accumulator.
    """

    word: Signal
    ignore: Signal
    negate: Signal
    base: "data.View[Any]"
    count: Signal
    sum: Signal

    def __init__(
        self,
        lanes: int,
        width: int,
        product_stages: int = 0,
        multiply_stages: int = 0,
        fabric: Fabric = "portable",
    ) -> None:
        self.lanes = lanes
        self.width = width
        self.product_stages = product_stages
        self.multiply_stages = multiply_stages
        self.fabric: Fabric = fabric
        self.latency = product_stages + COUNT_LATENCY + multiply_stages + 1
        super().__init__(
            {
                "word": In(lanes),
                "ignore": In(1),
                "negate": In(1),
                "base": In(BASE),
                "count": Out(range(lanes + 1)),
                "sum": Out(signed(width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        word = registered(m, "word", self.word, self.product_stages)
        count, negative = _count(m, word, None, self.ignore, self.negate, self.fabric)
        m.d.comb += self.count.eq(count)
        count = registered(m, "count", count, self.multiply_stages)
        negative = registered(m, "negative", negative, self.multiply_stages)
        m.d.comb += self.sum.eq(
            _accumulate(m, self.base, Cat(count, negative).as_signed(), negative, self.width, self.fabric)
        )
        return m


class ProcessingElement(wiring.Component):
    """One PE: ``popcount(activation & weight)``, accumulated.

    Every cycle with ``base.valid``: ``sum <- (0 if clear else 2·sum if double else sum) ± (0 if ignore else addend)``,
    modulo ``2**width``. The addend is the count, or, in a PE with a multiplier,
    ``coefficient · (2·count - column count if bipolar else count)``.

    Parameters
    ----------
    lanes
        Bits of a word.
    width
        Bits of the accumulator, more than a count has.
    coefficient_bits
        Bits of a coefficient; 0 leaves the multiplier out, and the members that only it needs.
    product_stages
        Registers of the products of bits, one behind the other; without them bits are multiplied as they are counted.
    fabric
        Form of the counter.

    Attributes
    ----------
    latency
        Cycles from words to their sum.

    Members
    -------
    activation, weight : ``In(lanes)``
        Words of one plane each.
    ignore : ``In(1)``
        ``1 + product_stages`` cycles after the words: they do not count, being held still from an earlier cycle, say.
    negate : ``In(1)``
        As many cycles after the words: subtract.
    base : ``In(BASE)``
        One cycle before the sum.
    coefficient : ``In(signed(coefficient_bits))``, ``bipolar`` : ``In(1)``
        ``product_stages + COUNT_LATENCY`` cycles after the words.
    column_count : ``In(range(lanes + 1))``
        ``PopcountAccumulator.count`` of the activations, with the same ``ignore`` and ``negate``; used if ``bipolar``.
    sum : ``Out(signed(width))``
        The accumulator.
    """

    activation: Signal
    weight: Signal
    ignore: Signal
    negate: Signal
    base: "data.View[Any]"
    coefficient: Signal
    bipolar: Signal
    column_count: Signal
    sum: Signal

    def __init__(
        self,
        lanes: int,
        width: int,
        coefficient_bits: int = 0,
        product_stages: int = 0,
        fabric: Fabric = "portable",
    ) -> None:
        self.lanes = lanes
        self.width = width
        self.coefficient_bits = coefficient_bits
        self.product_stages = product_stages
        self.fabric: Fabric = fabric
        self.latency = product_stages + COUNT_LATENCY + (coefficient_bits > 0) + 1
        members = {
            "activation": In(lanes),
            "weight": In(lanes),
            "ignore": In(1),
            "negate": In(1),
            "base": In(BASE),
            "sum": Out(signed(width)),
        }
        if coefficient_bits:
            members["coefficient"] = In(signed(coefficient_bits))
            members["bipolar"] = In(1)
            members["column_count"] = In(range(lanes + 1))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        first, second = self.activation, self.weight
        if self.product_stages:
            first, second = registered(m, "products", first & second, self.product_stages), None
        count, negative = _count(m, first, second, self.ignore, self.negate, self.fabric)
        addend, carry = Cat(count, negative).as_signed(), negative
        if self.coefficient_bits:
            # As -x is the inverse of x and 1: 2·count is the count with its sign below the lowest bit; what is
            # subtracted is the column's count less its sign, or without it 0 less the sign.
            factor = Signal(signed(len(count) + 1))
            column = Cat(Mux(self.bipolar, self.column_count, negative.replicate(len(count))), negative).as_signed()
            m.d.comb += factor.eq(Mux(self.bipolar, Cat(negative, count, negative).as_signed(), addend) - column)
            product = Signal(signed(min(self.coefficient_bits + len(factor), self.width)), reset_less=True)
            m.d.sync += product.eq(self.coefficient * factor)
            addend, carry = product, Const(0, 1)
        m.d.comb += self.sum.eq(_accumulate(m, self.base, addend, carry, self.width, self.fabric))
        return m


def _count(
    m: Module, first: Value, second: Value | None, ignore: Value, negate: Value, fabric: Fabric
) -> tuple[Signal, Signal]:
    """Registers of a count, inverted if ``negate``, and of its sign; both 0 with ``ignore``."""
    size = -(-len(first) // PARTS)
    terms: list[Any] = []
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        factor = None if second is None else second[part]
        counted = count_products(m, first[part], factor, fabric, f"count_{start}")
        term = Signal(len(counted), name=f"part_{start}", reset_less=True)
        m.d.sync += term.eq(counted)
        terms.append(term)
    while len(terms) > 1:
        rest = terms[len(terms) & ~1 :]
        pairs = zip(terms[::2], terms[1::2], strict=False)
        terms = [*(_added(m, *pair, fabric, f"sum_{len(terms)}_{place}") for place, pair in enumerate(pairs)), *rest]
    width = len(first).bit_length()
    count, negative = Signal(width, reset_less=True), Signal(reset_less=True)
    m.d.sync += [count.eq(terms[0] ^ negate.replicate(width)), negative.eq(negate)]
    with m.If(ignore):  # a synchronous reset, which flip-flops have
        m.d.sync += [count.eq(0), negative.eq(0)]
    return count, negative


def _added(m: Module, first: Value, second: Value, fabric: Fabric, name: str) -> Value:
    """Sum of two counts."""
    if fabric == "ecp5":
        return ecp5.add(m, first, second, Const(0, 1), max(len(first), len(second)) + 1, name)
    return first + second


def _accumulate(m: Module, base: "data.View[Any]", addend: Value, carry: Value, width: int, fabric: Fabric) -> Value:
    """Accumulator: one adder, and with six-input LUTs no logic beside it."""
    # All of one width and unsigned: synthesis then makes one carry chain of the sum, carry included.
    total, following = Signal(width, reset_less=True), Signal(width)
    added = Signal(width)
    m.d.comb += added.eq(addend)
    if fabric == "xilinx7":
        m.d.comb += following.eq(series7.accumulate(m, total, base.clear, base.double, added, carry, "accumulate"))
    else:
        kept = Signal(width)
        m.d.comb += kept.eq(Mux(base.clear, 0, Mux(base.double, total << 1, total)))
        if fabric == "ecp5":
            m.d.comb += following.eq(ecp5.add(m, kept, added, carry, width, "accumulate"))
        else:
            m.d.comb += following.eq(kept + added + carry)
    with m.If(base.valid):
        m.d.sync += total.eq(following)
    return total.as_signed()
