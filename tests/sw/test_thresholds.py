from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.sw.quantizers import Boundary
from bitwright.sw.thresholds import Grid, Line, integer_thresholds

rationals = st.fractions(-20, 20, max_denominator=12)


@given(rationals, rationals, st.lists(rationals, min_size=1, max_size=7), st.lists(st.booleans(), min_size=7))
@settings(max_examples=300)
def test_thresholds_count_boundaries(gain, constant, values, inclusive):
    boundaries = [Boundary(value, at) for value, at in zip(sorted(values), inclusive, strict=False)]
    low, high = -15, 12
    found = integer_thresholds(Line(gain, constant, False), Grid.of(boundaries), low, high)
    assert all(low <= threshold <= high + 1 for threshold in found)
    for accumulator in range(low, high + 1):
        y = gain * accumulator + constant
        for threshold, boundary in zip(found, boundaries, strict=True):
            reached = y >= boundary.value if boundary.inclusive else y > boundary.value
            assert reached == (accumulator < threshold if gain < 0 else accumulator >= threshold)


def test_a_grid_has_a_common_denominator():
    grid = Grid.of([Boundary(Fraction(1, 6), True), Boundary(Fraction(3, 4), False)])
    assert grid == Grid([2, 9], 12, [True, False])
