"""Counting the set bits of a word, in a form for each FPGA fabric."""

from itertools import count
from typing import Literal, get_args

from amaranth.hdl import Cat, Module, Signal, Value

from bitwright.hw import ecp5, series7

Fabric = Literal["portable", "xilinx7", "ecp5", "ice40"]
"""What the arithmetic is shaped for. All forms do the same in the same cycles.

``portable`` simulates fastest and suits any tool; ``ice40`` is for 4-input LUTs with carry chains. ``xilinx7`` and
``ecp5`` name primitives of the FPGA, so that only simulators that have models of them can run these.
"""

FABRICS: tuple[Fabric, ...] = get_args(Fabric)


def popcount(m: Module, word: Value, name: str = "popcount") -> Value:
    """Count the set bits of ``word``.

    A tree of adders on many numbers at once: numbers are kept as slices, slice ``b`` holding bit ``b`` of each of them,
    so that one vector operation is one row of full adders. That makes the Verilog shorter than
    an adder for each pair of numbers would.

    Parameters
    ----------
    m
        Module to which intermediate signals are added.
    word
        Any width of at least 1.
    name
        Prefix of the intermediate signals.

    Returns
    -------
    Value
        Unsigned, as wide as the count needs.
    """
    numbers = count()

    def named(value: Value) -> Signal:
        signal = Signal(len(value), name=f"{name}_{next(numbers)}")
        m.d.comb += signal.eq(value)
        return signal

    bits = named(word)
    third = len(word) // 3
    loose: list[Value] = [bits[index] for index in range(3 * third, len(word))]
    slices: list[Value] = []
    if third:
        a, b, c = (bits[index * third : (index + 1) * third] for index in range(3))
        half = named(a ^ b)
        slices = [named(half ^ c), named((a & b) | (half & c))]
    # Ripple adders, each stage halving the numbers; with four left, plain sums are as good.
    while slices and len(slices[0]) > 4:
        pairs = len(slices[0]) // 2
        if len(slices[0]) % 2:
            loose.append(Cat(part[2 * pairs] for part in slices))
        sums: list[Value] = []
        carry: Value | None = None
        for part in slices:
            a, b = part[:pairs], part[pairs : 2 * pairs]
            half = named(a ^ b)
            sums.append(half if carry is None else named(half ^ carry))
            carry = named(a & b) if carry is None else named((a & b) | (half & carry))
        assert carry is not None
        slices = [*sums, carry]
    terms = loose + ([Cat(part[index] for part in slices) for index in range(len(slices[0]))] if slices else [])
    while len(terms) > 1:
        terms.sort(key=len)
        terms = [named(terms[0] + terms[1]), *terms[2:]]
    return terms[0][: len(word).bit_length()]


def count_products(
    m: Module, first: Value, second: Value | None, fabric: Fabric = "portable", name: str = "count"
) -> Value:
    """Count the lanes in which both words have a set bit.

    Parameters
    ----------
    m
        Module to which intermediate signals are added.
    first, second
        Words of equal width; without a second word the set bits of the first are counted.
    fabric
        Form of the counter.
    name
        Prefix of the intermediate signals.

    Returns
    -------
    Value
        Unsigned, as wide as the count needs.
    """
    if fabric == "xilinx7":
        return series7.count_products(m, first, second, name)
    if fabric == "ecp5":
        return ecp5.count_products(m, first, first if second is None else second, name)
    if fabric == "portable":
        return popcount(m, first if second is None else first & second, name)
    return _carry_tree(m, first, first if second is None else second, name)


def _carry_tree(m: Module, first: Value, second: Value, name: str) -> Value:
    """Count by a tree of adders that uses their carry inputs.

    An adder of two counts takes one lane more: as a carry, made by one more bit at the bottom of the chain, which adds
    the lane's two factors. So a lane's AND takes a LUT of its own only in the leaves.
    """
    numbers = count()

    def named(value: Value) -> Signal:
        signal = Signal(len(value), name=f"{name}_{next(numbers)}")
        m.d.comb += signal.eq(value)
        return signal

    def build(low: int, lanes: int) -> Value:
        products = [first[lane] & second[lane] for lane in range(low, low + min(lanes, 3))]
        if lanes == 1:
            return products[0]
        half = products[0] ^ products[1]
        if lanes == 2:
            return Cat(half, products[0] & products[1])
        if lanes == 3:
            half = named(half)
            return named(Cat(half ^ products[2], (products[0] & products[1]) | (half & products[2])))
        more, fewer, last = lanes // 2, (lanes - 1) // 2, low + lanes - 1
        total = Cat(first[last], build(low, more)) + Cat(second[last], build(low + more, fewer))
        return named(total[1 : 1 + lanes.bit_length()])

    return build(0, len(first))
