"""Passes: pairs of planes, their order, and what each counts for."""

from collections.abc import Sequence
from dataclasses import dataclass

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa.constants import Encoding

DOUBLES_MAX = 31
"""Most doublings between the first pass of a layer and its last one."""


PASS_DOUBLES_MAX = 7
"""Most doublings before a pass."""


@dataclass(frozen=True)
class Pass:
    """One (weight plane, activation plane) pair.

    Parameters
    ----------
    weight_offset
        Address of the plane's first word, from the row tile's first, 0 .. 2**14 - 1.
    plane
        Plane of the window, 0..15, in the order of loading: those of the input, the most significant first, then those
        of the residual addend.
    base
        Word of the window buffer at which that plane starts, 0 .. 1023.
    doubles
        How often the accumulators double first, 0..7: by how much the significance falls.
    negate
        Subtract the counts.
    """

    weight_offset: int
    plane: int
    base: int
    doubles: int
    negate: bool

    def encode(self) -> int:
        """Pass word: offset in bits 13..0, plane in 17..14, base in 27..18, negate in 28, doubles in 31..29."""
        if not 0 <= self.weight_offset < 1 << 14:
            raise BitwrightError(
                f"Weight plane starts {self.weight_offset} words into its tile, at most {(1 << 14) - 1} fit."
            )
        if not 0 <= self.doubles <= PASS_DOUBLES_MAX:
            raise BitwrightError(
                f"Significance falls by {self.doubles} between passes, at most {PASS_DOUBLES_MAX} fit."
            )
        if not 0 <= self.plane < 1 << 4:
            raise BitwrightError(f"A pass computes plane {self.plane} of a window, expected at most 15.")
        if not 0 <= self.base < 1 << 10:
            raise BitwrightError(f"A plane starts at word {self.base} of the window buffer, expected at most 1023.")
        return self.weight_offset | self.plane << 14 | self.base << 18 | int(self.negate) << 28 | self.doubles << 29

    @classmethod
    def decode(cls, word: int) -> "Pass":
        """Inverse of :meth:`encode`."""
        return cls(word & 0x3FFF, word >> 14 & 15, word >> 18 & 0x3FF, word >> 29, bool(word >> 28 & 1))


@dataclass(frozen=True)
class WeightPlanes:
    """Planes of one set of weights against planes of one set of activations, for :func:`schedule_passes`.

    Parameters
    ----------
    planes
        Significance and sign of each weight plane, from :func:`weight_planes`.
    weight_offset
        Address of the first plane's first word, from the row tile's first.
    words
        Words of a plane of the window, and so of a weight plane.
    activation_planes
        Planes of the activations; plane ``j`` has significance ``j``.
    first_plane, base
        Number of the first activation plane among the window's, and word of the window buffer at which it starts.
    shift
        Added to all significances.
    """

    planes: tuple[tuple[int, bool], ...]
    weight_offset: int
    words: int
    activation_planes: int
    first_plane: int = 0
    base: int = 0
    shift: int = 0


def weight_planes(encoding: Encoding, bits: int) -> tuple[tuple[int, bool], ...]:
    """Significance and sign of each plane of a weight encoding (its offset apart).

    ``unsigned`` has no sign, as the unit vectors of an identity shortcut; ``signed`` is two's complement; ``bipolar``
    and ``odd`` are ``2·q - (2**bits - 1)`` with ``q`` unsigned, whose offset is the column sum's part; ``ternary`` has
    a plane of +1 and a plane of -1. The planes of ``basis`` and ``bipolar_basis`` have coefficients instead.
    """
    if encoding == "ternary":
        return ((0, False), (0, True))
    if encoding == "signed":
        return tuple((plane, plane == bits - 1) for plane in range(bits))
    if encoding in ("unsigned", "bipolar", "odd"):
        return tuple((plane, False) for plane in range(bits))
    if encoding in ("basis", "bipolar_basis"):
        return ((0, False),) * bits
    raise BitwrightError(
        f"Weight encoding is {encoding!r}, expected unsigned, signed, bipolar, odd, ternary, basis or bipolar_basis."
    )


def has_offset(encoding: Encoding) -> bool:
    """Whether a clear weight bit counts -1: the value is 2·sum - column sum."""
    return encoding in ("bipolar", "odd", "bipolar_basis")


def has_coefficients(encoding: Encoding) -> bool:
    """Whether counts are multiplied by coefficients."""
    return encoding in ("basis", "bipolar_basis")


def schedule_passes(operands: Sequence[WeightPlanes], *, horner: bool = True) -> list[Pass]:
    """List the pairs of planes by falling significance, as Horner's scheme needs.

    Parameters
    ----------
    operands
        The layer's weights, and those of its residual addend.
    horner
        False for layers with coefficients: nothing doubles; weight planes outside, activation planes inside.
    """
    pairs = [
        (significance + j + operand.shift if horner else 0, number, i, j, negate)
        for number, operand in enumerate(operands)
        for i, (significance, negate) in enumerate(operand.planes)
        for j in range(operand.activation_planes)
    ]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:4]))
    passes: list[Pass] = []
    previous = pairs[0][0]
    for significance, number, i, j, negate in pairs:
        operand = operands[number]
        offset = operand.weight_offset + i * operand.words
        plane = operand.activation_planes - 1 - j  # planes are loaded from the most significant down
        base = operand.base + plane * operand.words
        passes.append(Pass(offset, operand.first_plane + plane, base, previous - significance, negate))
        previous = significance
    return passes


def pass_coefficients(passes: Sequence[Pass]) -> list[int]:
    """What each pass's count contributes to the accumulator without coefficients: ±2**(doublings after it)."""
    coefficients: list[int] = []
    scale = 1
    for entry in reversed(passes):
        coefficients.append(-scale if entry.negate else scale)
        scale <<= entry.doubles
    return coefficients[::-1]
