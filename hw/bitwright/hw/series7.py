"""Counting set bits in the LUTs and carry chains of Xilinx 7-series FPGAs.

Synthesis does not find these forms by itself, so the primitives are placed by name. Each is a counter: it replaces some
*dots*, bits of the same weight, by fewer dots of the same sum.

=================  =====  ===========================================================================================
counter            LUTs   replaces
=================  =====  ===========================================================================================
product pair         1    two products of two bits each, and a dot, by a dot and one of twice the weight
full adder           1    three dots by a dot and one of twice the weight
six counter          2    six dots by dots of single, double and fourfold weight; its two LUTs drive a carry chain
adder                1    per bit: what is left, at most two dots of each weight, by the bits of the count
=================  =====  ===========================================================================================
"""

from collections.abc import Callable, Sequence
from itertools import count

from amaranth.hdl import Cat, Const, Instance, Module, Signal, Value

PAIRS_IN_CHAIN = 8
"""Product pairs that hand their sum on. Longer chains leave fewer dots, and take longer."""

_CARRY_BITS = 4  # of a CARRY4


def count_products(m: Module, first: Value, second: Value | None, name: str) -> Value:
    """Count the lanes in which both words have a set bit.

    Parameters
    ----------
    m
        Module to which the primitives are added.
    first, second
        Words of equal width; without a second word the set bits of the first are counted.
    name
        Prefix of signals and instances.

    Returns
    -------
    Value
        Unsigned, as wide as the count needs.
    """
    lanes = len(first)
    parts = _Primitives(m, name)
    # Dots of each weight, each with the time at which it is there, in LUTs from the operands.
    width = lanes.bit_length()
    dots: list[list[tuple[float, int, Value]]] = [[] for _ in range(width)]
    numbers = count()

    def add(weight: int, time: float, dot: Value) -> None:
        if weight < width:  # a count of all lanes never carries further
            dots[weight].append((time, next(numbers), dot))

    if second is None:
        for lane in range(lanes):
            add(0, 0, first[lane])
    else:
        pairs = [[(first[lane], second[lane]) for lane in (low, low + 1) if lane < lanes] for low in range(0, lanes, 2)]
        for low in range(0, len(pairs), PAIRS_IN_CHAIN):
            total: Value = Const(0, 1)
            for time, products in enumerate(pairs[low : low + PAIRS_IN_CHAIN], 1):
                total, carry = parts.product_pair(products, total)
                add(1, time, carry)
            add(0, time, total)

    for weight in range(width):
        while len(dots[weight]) > 2:
            # What is there first goes first.
            size = 6 if len(dots[weight]) > 4 else 3
            dots[weight].sort()
            taken, dots[weight] = dots[weight][:size], dots[weight][size:]
            time = taken[-1][0] + 1
            values = [dot for _, _, dot in taken]
            outputs = parts.full_adder(values) if size == 3 else parts.six_counter(values)
            for step, dot in enumerate(outputs):
                add(weight + step, time + step * (size == 6) / 4, dot)
    return parts.adder([[dot for _, _, dot in column] for column in dots])


def accumulate(m: Module, total: Value, clear: Value, double: Value, added: Value, carry: Value, name: str) -> Value:
    """Sum of an addend, a carry, and nothing (``clear``), twice (``double``) or once an accumulator.

    A LUT per bit chooses what is added to, and adds to it.

    Parameters
    ----------
    m
        Module to which the primitives are added.
    total, added
        Accumulator and addend, of equal width.
    clear, double, carry
        One bit each.
    name
        Prefix of signals and instances.
    """
    parts = _Primitives(m, name)

    def kept(bits: Sequence[int]) -> int:
        same, lower, clears, doubles, _ = bits
        return 0 if clears else lower if doubles else same

    propagate, generate = [], []
    for bit in range(len(total)):
        lower = total[bit - 1] if bit else Const(0, 1)
        half, both = parts.lut([total[bit], lower, clear, double, added[bit]], lambda bits: kept(bits) ^ bits[4], kept)
        propagate.append(half)
        generate.append(both)
    return parts.carry_chain(Cat(*propagate), Cat(*generate), carry)


class _Primitives:
    """Counters, as instances in a module."""

    def __init__(self, m: Module, name: str) -> None:
        self._m = m
        self._name = name
        self._numbers = count()

    def product_pair(self, products: Sequence[tuple[Value, Value]], dot: Value) -> tuple[Value, Value]:
        """Sum and carry of one or two products and a dot."""
        inputs = [factor for product in products for factor in product]

        def total(bits: Sequence[int]) -> int:
            return sum(a & b for a, b in zip(bits[0:-1:2], bits[1::2], strict=True)) + bits[-1]

        return self.lut([*inputs, dot], lambda bits: total(bits) & 1, lambda bits: total(bits) >> 1)

    def full_adder(self, dots: Sequence[Value]) -> tuple[Value, Value]:
        """Sum and carry of three dots."""
        return self.lut(dots, lambda bits: sum(bits) & 1, lambda bits: sum(bits) >> 1)

    def six_counter(self, dots: Sequence[Value]) -> tuple[Value, ...]:
        """Number of set dots, of up to six.

        Five dots are counted by LUTs: their parity is added to the sixth, half of them, rounded down, to the carry of
        that. The carry of the second bit leaves the chain as the sum of a third, whose LUT is a constant.
        """
        five = dots[:5]
        sixth = dots[5] if len(dots) > 5 else Const(0, 1)
        parity, _ = self.lut(five, lambda bits: sum(bits) & 1, lambda bits: 0)
        one, two = self.lut(five, lambda bits: sum(bits) >> 1 == 1, lambda bits: sum(bits) >> 1 == 2)
        return tuple(self.carry_chain(Cat(parity, one, 0), Cat(0, two, 0), sixth))

    def adder(self, columns: Sequence[Sequence[Value]]) -> Value:
        """Sum of up to two dots of each weight."""
        propagate, generate = [], []
        for column in columns:
            a, b = [*column, Const(0, 1), Const(0, 1)][:2]
            half, carry = self.lut([a, b], lambda bits: bits[0] ^ bits[1], lambda bits: bits[0])
            propagate.append(half)
            generate.append(carry)
        return self.carry_chain(Cat(*propagate), Cat(*generate), Const(0, 1))

    def lut(
        self, inputs: Sequence[Value], upper: Callable[[list[int]], int], lower: Callable[[list[int]], int]
    ) -> tuple[Value, Value]:
        """Two functions of up to five bits."""
        values = [[entry >> place & 1 for place in range(len(inputs))] for entry in range(32)]
        table = sum(int(upper(bits)) << (32 + entry) | int(lower(bits)) << entry for entry, bits in enumerate(values))
        number = next(self._numbers)
        o6, o5 = Signal(name=f"{self._name}_{number}_o6"), Signal(name=f"{self._name}_{number}_o5")
        pins = {f"i_I{place}": value for place, value in enumerate([*inputs, *[Const(0, 1)] * (5 - len(inputs))])}
        self._m.submodules[f"{self._name}_lut_{number}"] = Instance(
            "LUT6_2", p_INIT=Const(table, 64), **pins, i_I5=Const(1, 1), o_O6=o6, o_O5=o5
        )
        return o6, o5

    def carry_chain(self, propagate: Value, generate: Value, carry: Value) -> Value:
        """Sum bits of a carry chain."""
        number = next(self._numbers)
        total = Signal(len(propagate), name=f"{self._name}_{number}_sum")
        below: Value = Const(0, 1)
        for low in range(0, len(propagate), _CARRY_BITS):
            high = min(low + _CARRY_BITS, len(propagate))
            padding = Const(0, _CARRY_BITS - (high - low))
            sums = Signal(_CARRY_BITS, name=f"{self._name}_{number}_{low}_o")
            carries = Signal(_CARRY_BITS, name=f"{self._name}_{number}_{low}_co")
            self._m.submodules[f"{self._name}_carry_{number}_{low}"] = Instance(
                "CARRY4",
                i_CI=below,
                i_CYINIT=Const(0, 1) if low else carry,
                i_S=Cat(propagate[low:high], padding),
                i_DI=Cat(generate[low:high], padding),
                o_O=sums,
                o_CO=carries,
            )
            self._m.d.comb += total[low:high].eq(sums)
            below = carries[-1]
        return total
