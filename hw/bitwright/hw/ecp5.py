"""Counting set bits in the carry chains of Lattice ECP5 FPGAs.

A half of a CCU2C has a four-input LUT whose output both lets the carry through and is added to it; the carry it makes
otherwise is the same LUT's output for C = D = 0. So a bit of an adder can take two products of two bits, without LUTs
for the products, and a half whose LUT is 0 starts a chain, anywhere, with a product as its carry.

Chains inferred from sums take a CCU2C more, to feed a constant to the carry input that these leave open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from amaranth.hdl import Const, Instance, Module, Signal, Value

_ZERO, _ONE = Const(0, 1), Const(1, 1)

Product = tuple[Value, Value]


@dataclass(frozen=True)
class _Half:
    """Half of a CCU2C: the function of its LUT, and what A, B, C and D are connected to."""

    function: Callable[[int, int, int, int], int]
    inputs: tuple[Value, Value, Value, Value]

    @property
    def table(self) -> int:
        """Content of the LUT, whose highest input is D."""
        values = [self.function(*(entry >> place & 1 for place in range(4))) for entry in range(16)]
        return sum(value << entry for entry, value in enumerate(values))


def _start(first: Value, second: Value) -> _Half:
    """Start a chain with a product as its carry."""
    return _Half(lambda a, b, c, d: a & b & (1 - c), (first, second, _ONE, _ONE))


def _two_products(first: Product, second: Product) -> _Half:
    """Add two products of two bits."""
    return _Half(lambda a, b, c, d: (a & b) ^ (c & d), (*first, *second))


def _product_of_four(first: Product, second: Product) -> _Half:
    """Add one product of four bits."""
    return _Half(lambda a, b, c, d: a & b & c & d, (*first, *second))


def _sum(first: Value, second: Value) -> _Half:
    """Add two bits."""
    return _Half(lambda a, b, c, d: a ^ c if d else a, (first, _ZERO, second, _ONE))


_END = _Half(lambda a, b, c, d: 0, (_ZERO, _ZERO, _ZERO, _ZERO))
"""Bring the carry out."""


def count_products(m: Module, first: Value, second: Value, name: str) -> Value:
    """Count the lanes in which both words have a set bit.

    A tree of adders: each takes two counts, and another lane as its carry.

    Parameters
    ----------
    m
        Module to which the primitives are added.
    first, second
        Words of equal width.
    name
        Prefix of signals and instances.

    Returns
    -------
    Value
        Unsigned, as wide as the count needs.
    """
    chains = _Chains(m, name)

    def parts(products: Sequence[Product]) -> tuple[Value, Value]:
        """Counts of two halves of some lanes."""
        more = (len(products) + 1) // 2
        if more <= 4:  # these leaves share a chain, which the second one restarts
            first, second = chains.make(_leaf(products[:more]), _leaf(products[more:]))
            return first, second
        return build(products[:more]), build(products[more:])

    def build(products: Sequence[Product]) -> Value:
        if len(products) <= 4:
            return chains.make(_leaf(products))[0]
        *others, last = products
        return chains.make(_adder(_start(*last), *parts(others), len(products).bit_length()))[0]

    return build([(first[lane], second[lane]) for lane in range(len(first))])


def add(m: Module, first: Value, second: Value, carry: Value, width: int, name: str) -> Value:
    """Sum of two unsigned numbers and a carry, modulo ``2**width``.

    Parameters
    ----------
    m
        Module to which the primitives are added.
    first, second
        The numbers, the longer of which has at least ``width - 1`` bits.
    carry
        One bit.
    width
        Bits of the sum.
    name
        Prefix of signals and instances.
    """
    return _Chains(m, name).make(_adder(_start(carry, _ONE), first, second, width))[0]


def _leaf(products: Sequence[Product]) -> list[_Half]:
    """Count up to four lanes: a start, and a half for each bit of the count."""
    padding = (_ZERO, _ZERO)
    a, b, c, d = [*products, *[padding] * (4 - len(products))]
    if len(products) < 4:
        bits = [_two_products(a, b), *[_END] * (len(products) > 1)]
        return [_start(*c), *bits]
    # The sum of two lanes is one LUT, their carry is added by itself.
    half = (a[0] & a[1]) ^ (b[0] & b[1])
    return [_start(*d), _two_products(c, (half, _ONE)), _product_of_four(a, b), _END]


def _adder(start: _Half, first: Value, second: Value, width: int) -> list[_Half]:
    """Add two numbers and the carry of a start, modulo ``2**width``."""
    halves = [start]
    for bit in range(width):
        if bit >= max(len(first), len(second)):
            halves.append(_END)
            break
        a, b = (value[bit] if bit < len(value) else _ZERO for value in (first, second))
        halves.append(_sum(a, b))
    return halves


class _Chains:
    """Carry chains, as instances in a module."""

    def __init__(self, m: Module, name: str) -> None:
        self._m = m
        self._name = name
        self._numbers = count()

    def make(self, *parts: list[_Half]) -> tuple[Value, ...]:
        """Chain in which each part begins with a start; returns the sum bits of each part."""
        halves = [half for part in parts for half in part]
        number = next(self._numbers)
        bits = Signal(len(halves) + len(halves) % 2, name=f"{self._name}_{number}")
        carries = Signal(len(bits) // 2, name=f"{self._name}_{number}_carry")
        for place in range(0, len(bits), 2):
            low, high = [*halves, _END][place : place + 2]
            # Open ends take no room; a carry input or output in use elsewhere would take a CCU2C.
            below = {"i_CIN": carries[place // 2 - 1]} if place else {}
            above = {"o_COUT": carries[place // 2]} if place + 2 < len(bits) else {}
            self._m.submodules[f"{self._name}_ccu2c_{number}_{place}"] = Instance(
                "CCU2C",
                p_INIT0=Const(low.table, 16),
                p_INIT1=Const(high.table, 16),
                p_INJECT1_0="NO",
                p_INJECT1_1="NO",
                **below,
                **above,
                **{f"i_{pin}0": value for pin, value in zip("ABCD", low.inputs, strict=True)},
                **{f"i_{pin}1": value for pin, value in zip("ABCD", high.inputs, strict=True)},
                o_S0=bits[place],
                o_S1=bits[place + 1],
            )
        sums, place = [], 0
        for part in parts:
            sums.append(bits[place + 1 : place + len(part)])
            place += len(part)
        return tuple(sums)
