"""Thresholds: integers that decide the code of an activation as its exact value would.

Up to its activation function a layer is one exact line for each channel, from the integer accumulator ``A`` to the
value ``gain * A + constant``. "The code of that value is at least ``i``" is ``A >= T`` for an integer ``T``, or
``A < T`` where the line falls. The idea is that of section 2.8 of DoReFa-Net (Zhou et al., arXiv 1606.06160), and of
FINN (Umuroglu et al., arXiv 1612.07119).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from bitwright.sw.quantizers import Boundary


@dataclass(frozen=True)
class Line:
    """What a channel makes of its accumulator before the activation: ``gain * accumulator + constant``.

    ``falling`` tells whether the batch norm alone falls, by which max pooling before it selects.
    """

    gain: Fraction
    constant: Fraction
    falling: bool


@dataclass(frozen=True)
class Grid:
    """Boundaries of codes over one denominator: boundary ``i`` lies at ``numerators[i] / denominator``."""

    numerators: list[int]
    denominator: int
    inclusive: list[bool]

    @classmethod
    def of(cls, boundaries: Sequence[Boundary]) -> "Grid":
        """Bring boundaries to a common denominator."""
        denominator = int(np.lcm.reduce([boundary.value.denominator for boundary in boundaries], dtype=object))
        numerators = [int(boundary.value * denominator) for boundary in boundaries]
        return cls(numerators, denominator, [boundary.inclusive for boundary in boundaries])


def integer_thresholds(line: Line, grid: Grid, low: int, high: int) -> list[int]:
    """Accumulators at which a channel's code steps.

    Parameters
    ----------
    line
        From the accumulator to the input of the activation.
    grid
        Boundaries of the activation's codes.
    low, high
        Least and greatest accumulator.

    Returns
    -------
    thresholds
        For each boundary ``T``, from ``low`` to ``high + 1``, such that the boundary is reached exactly if ``A >= T``,
        or for a falling line exactly if ``A < T``.
    """
    gain, constant = line.gain, line.constant
    if gain == 0:
        # The same code for every accumulator: each boundary is below all of them or above.
        distances = (constant - Fraction(numerator, grid.denominator) for numerator in grid.numerators)
        reached = [gap > 0 or (gap == 0 and at) for gap, at in zip(distances, grid.inclusive, strict=True)]
        return [low if below else high + 1 for below in reached]
    # boundary = gain * A + constant, solved for A over one denominator: plain integers, no fraction for each boundary.
    scale = constant.denominator * gain.denominator
    shift = constant.numerator * grid.denominator * gain.denominator
    denominator = grid.denominator * constant.denominator * gain.numerator
    if denominator < 0:
        scale, shift, denominator = -scale, -shift, -denominator
    rising = gain > 0
    thresholds: list[int] = []
    for numerator, inclusive in zip(grid.numerators, grid.inclusive, strict=True):
        crossing = numerator * scale - shift
        # Rising: A >= crossing is A >= ceil, A > crossing is A >= floor + 1. Falling: A <= crossing is A < floor + 1,
        # A < crossing is A < ceil.
        threshold = -(-crossing // denominator) if rising == inclusive else crossing // denominator + 1
        thresholds.append(min(max(threshold, low), high + 1))
    return thresholds
