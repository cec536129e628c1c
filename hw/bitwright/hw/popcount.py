"""Counting the set bits of a word."""

from itertools import count

from amaranth.hdl import Cat, Module, Signal, Value


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
