"""Number formats, code by code against ml_dtypes, which knows nothing of this project."""

import itertools
import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.stats import norm

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers.formats import (
    E2M1,
    E3M0,
    E4M3,
    E5M2,
    NF4,
    SCALE_NAN,
    AbsmaxFormat,
    MXFormat,
    into_blocks,
    out_of_blocks,
)

torch.set_num_threads(1)

TYPES: list[Any] = [(E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2), (E2M1, ml_dtypes.float4_e2m1fn)]
FORMATS = [E4M3, E5M2, E2M1, E3M0]
with_types = pytest.mark.parametrize(("ours", "theirs"), TYPES, ids=["e4m3", "e5m2", "e2m1"])
with_formats = pytest.mark.parametrize("ours", FORMATS, ids=["e4m3", "e5m2", "e2m1", "e3m0"])


def peer_encode(x, theirs):
    with np.errstate(invalid="ignore"):
        return np.asarray(x).astype(theirs).view(np.uint8)


def peer_decode(codes, theirs):
    return np.asarray(codes, np.uint8).view(theirs).astype(np.float64)


def codes_of(ours):
    return torch.arange(1 << ours.bits, dtype=torch.uint8)


def edges(ours):
    """All values, the halves between neighbors, and floats next to both, beyond the greatest value as well."""
    values = ours.decode(codes_of(ours), torch.float64)
    values = values[values.isfinite()].unique()
    beyond = ours.largest * torch.tensor([17 / 16, 1.125, 1.25, 1.5, 2, 4], dtype=torch.float64)
    values = torch.cat([-beyond, values, beyond, torch.zeros(1).double().neg()])
    points = torch.cat([values, (values[:-1] + values[1:]) / 2]).float()
    assert (points.double() == torch.cat([values, (values[:-1] + values[1:]) / 2])).all()
    ends = [torch.nextafter(points, torch.full_like(points, end)) for end in (math.inf, -math.inf)]
    return torch.cat([points, *ends])


# Floats ---------------------------------------------------------------------------------------------------------------


@with_types
def test_every_code_decodes_as_in_ml_dtypes(ours, theirs):
    decoded = ours.decode(codes_of(ours), torch.float64).numpy()
    expected = peer_decode(codes_of(ours).numpy(), theirs)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(np.signbit(decoded), np.signbit(expected))


@with_types
def test_every_value_and_every_tie_encodes_as_in_ml_dtypes(ours, theirs):
    x = edges(ours)
    np.testing.assert_array_equal(ours.encode(x, saturate=False).numpy(), peer_encode(x.numpy(), theirs))


@with_types
@given(x=npst.arrays(np.float32, 40, elements=st.floats(-1e6, 1e6, width=32) | st.floats(-8, 8, width=32)))
@settings(max_examples=50, deadline=None)
def test_any_float_encodes_as_in_ml_dtypes(ours, theirs, x):
    np.testing.assert_array_equal(ours.encode(torch.from_numpy(x), saturate=False).numpy(), peer_encode(x, theirs))


@with_types
def test_every_half_precision_number_encodes_as_in_ml_dtypes(ours, theirs):
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[~np.isnan(x)] if ours is E2M1 else x
    np.testing.assert_array_equal(ours.encode(torch.from_numpy(x), saturate=False).numpy(), peer_encode(x, theirs))


@with_formats
def test_doubles_next_to_a_tie_are_not_rounded_twice(ours):
    """NumPy's cast to a type of ml_dtypes takes the way by float32, where these are ties."""
    values = ours.decode(torch.arange(ours.finite), torch.float64)
    halves = (values[:-1] + values[1:]) / 2
    assert torch.equal(ours.round(halves * (1 + 2.0**-50)), values[1:])
    assert torch.equal(ours.round(halves * (1 - 2.0**-50)), values[:-1])
    assert torch.equal(ours.encode(halves) % 2, torch.zeros(len(halves), dtype=torch.uint8))


@with_formats
def test_codes_survive_a_round_trip(ours):
    codes = codes_of(ours)
    values = ours.decode(codes)
    number = ~values.isnan()
    assert torch.equal(ours.encode(values[number], saturate=False), codes[number])
    assert ours.decode(ours.encode(values[~number])).isnan().all() if ours.special != "none" else number.all()
    assert torch.equal(ours.round(values[number], saturate=False), values[number])


@with_formats
def test_saturation_gives_the_greatest_value_and_nothing_else_changes(ours):
    x = torch.cat([edges(ours), torch.tensor([math.inf, -math.inf])])
    saturated = ours.decode(ours.encode(x))
    beyond = x.abs() > ours.largest
    assert beyond.sum() > 8
    assert torch.equal(saturated[beyond], ours.largest * x[beyond].sign())
    assert torch.equal(ours.encode(x)[~beyond], ours.encode(x, saturate=False)[~beyond])


def test_overflow_and_not_a_number_as_the_formats_have_them():
    x = torch.tensor([448.0, 464.0, 464.1, math.inf, -math.inf, math.nan, -math.nan])
    assert E4M3.encode(x, saturate=False).tolist() == [0x7E, 0x7E, 0x7F, 0x7F, 0xFF, 0x7F, 0xFF]
    assert E4M3.encode(x).tolist() == [0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0x7F, 0xFF]
    x = torch.tensor([57344.0, 61439.0, 61440.0, math.inf, -math.inf, math.nan, -math.nan])
    assert E5M2.encode(x, saturate=False).tolist() == [0x7B, 0x7B, 0x7C, 0x7C, 0xFC, 0x7E, 0xFE]
    assert E5M2.encode(x).tolist() == [0x7B, 0x7B, 0x7B, 0x7B, 0xFB, 0x7E, 0xFE]
    x = torch.tensor([6.0, 7.0, 1e30, math.inf, -math.inf])
    assert E2M1.encode(x, saturate=False).tolist() == E2M1.encode(x).tolist() == [7, 7, 7, 7, 15]


@pytest.mark.parametrize(
    ("ours", "bits", "largest", "normal", "unit", "exponent", "values"),
    [
        (E4M3, 8, 448, 2**-6, 2**-9, 8, 253),
        (E5M2, 8, 57344, 2**-14, 2**-16, 15, 247),
        (E2M1, 4, 6, 1, 0.5, 2, 15),
        (E3M0, 4, 16, 0.25, 0.25, 4, 15),
    ],
)
def test_published_ranges(ours, bits, largest, normal, unit, exponent, values):
    assert (ours.bits, ours.largest, ours.unit, ours.greatest_exponent) == (bits, largest, unit, exponent)
    assert ours.decode(torch.tensor([1 << ours.mantissa_bits])).item() == normal
    decoded = ours.decode(codes_of(ours), torch.float64)
    finite = decoded[decoded.isfinite()]
    assert len(finite.unique()) == values
    assert (finite / ours.unit == (finite / ours.unit).round()).all()


def test_e2m1_and_e3m0_by_hand():
    assert E2M1.decode(torch.arange(8)).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert E3M0.decode(torch.arange(8)).tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    assert E3M0.decode(torch.arange(8, 16)).tolist() == [0, -0.25, -0.5, -1, -2, -4, -8, -16]
    x = torch.tensor([2.5, 3.5, 5.0, 5.1, 0.25, 0.75, 7.0])
    assert E2M1.round(x).tolist() == [2, 4, 4, 6, 0, 1, 6]
    # Halfway, to the even code: 0.125 -> 000, 0.375 -> 010, 0.75 -> 010, 1.5 -> 100.
    x = torch.tensor([0.125, 0.375, 0.75, 1.5, 3.0, 6.0, 12.0, 20.0])
    assert E3M0.round(x).tolist() == [0, 0.5, 0.5, 2, 2, 8, 8, 16]


@with_formats
@given(x=st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=80, deadline=None)
def test_rounding_gives_the_nearest_value(ours, x):
    decoded = ours.decode(codes_of(ours), torch.float64)
    values = [Fraction(value) for value in decoded[decoded.isfinite()].tolist()]
    rounded = ours.round(torch.tensor(x, dtype=torch.float64)).item()
    assert abs(Fraction(x) - Fraction(rounded)) == min(abs(Fraction(x) - value) for value in values)


@with_formats
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rounding_gives_the_values_of_the_codes(ours, dtype):
    x = edges(ours).to(dtype)
    x = torch.cat([x, torch.tensor([math.inf, -math.inf, 0.0, -0.0], dtype=dtype)])
    for saturate in (True, False):
        rounded, decoded = ours.round(x, saturate=saturate), ours.decode(ours.encode(x, saturate=saturate), dtype)
        assert torch.equal(rounded.isnan(), decoded.isnan())
        assert torch.equal(rounded.nan_to_num(7), decoded.nan_to_num(7))
        assert torch.equal(rounded.signbit() | rounded.isnan(), decoded.signbit() | decoded.isnan())


@with_formats
def test_rounding_keeps_type_shape_and_not_a_number(ours):
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.tensor([[0.3, math.nan], [-math.inf, 1.0]], dtype=dtype).T
        rounded = ours.round(x)
        assert (rounded.dtype, rounded.shape) == (dtype, x.shape)
        assert rounded.isnan().tolist() == x.isnan().tolist()
        assert rounded[0, 1] == -ours.largest


@pytest.mark.parametrize("ours", [E2M1, E3M0, NF4])
def test_formats_without_nan_refuse_it(ours):
    with pytest.raises(BitwrightError, match=f"is NaN, which {ours.name} does not have"):
        ours.encode(torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize("ours", [E2M1, E4M3, NF4])
@pytest.mark.parametrize("code", [-1, 256])
def test_codes_out_of_range_are_refused(ours, code):
    with pytest.raises(BitwrightError, match=f"outside 0 to .* give codes of {ours.bits} bits"):
        ours.decode(torch.tensor([0, code]))


# NF4 ------------------------------------------------------------------------------------------------------------------


def test_nf4_levels_are_the_quantiles_of_the_paper():
    offset = ((1 - 1 / 30) + (1 - 1 / 32)) / 2
    positive = norm.ppf(np.linspace(offset, 0.5, 9))[:-1]
    negative = -norm.ppf(np.linspace(offset, 0.5, 8))[:-1]
    levels = np.sort(np.concatenate([positive, [0.0], negative]))
    np.testing.assert_allclose(NF4.levels, levels / levels.max(), atol=2e-7)


def test_nf4_thresholds_are_those_of_bitsandbytes():
    thresholds = [
        -0.8480964, -0.6106329, -0.4599953, -0.3396794, -0.2346074, -0.1379117, -0.0455250, 0.0397901, 0.1202553,
        0.2035213, 0.2920138, 0.3893125, 0.5016634, 0.6427869, 0.8614784,
    ]  # fmt: skip
    x = torch.tensor(thresholds, dtype=torch.float64)
    assert NF4.encode(x - 1e-6).tolist() == list(range(15))
    assert NF4.encode(x + 1e-6).tolist() == list(range(1, 16))


def test_nf4_codes_survive_a_round_trip_and_a_tie_goes_down():
    codes = torch.arange(16, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(NF4.encode(NF4.decode(codes, dtype)), codes)
    halves = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(NF4.levels)], dtype=torch.float64)
    assert NF4.encode(halves).tolist() == list(range(15))
    assert NF4.encode(torch.nextafter(halves, torch.ones(()).double())).tolist() == list(range(1, 16))
    assert NF4.round(torch.tensor([-5.0, 5.0, math.nan])).nan_to_num(7).tolist() == [-1, 1, 7]
    assert NF4.decode(torch.tensor([7])).item() == 0


# Blocks ---------------------------------------------------------------------------------------------------------------


def test_nf4_blocks_are_divided_by_their_greatest_magnitude():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 100, generator=generator)
    x[1, :64] = 0
    stored = AbsmaxFormat(NF4)
    blocks = stored.encode(x)
    assert blocks.codes.shape == (3, 2, 64)
    assert (blocks.codes[1, 0] == 7).all()
    expected = torch.zeros(3, 2)
    for row, block in itertools.product(range(3), range(2)):
        part = x[row, 64 * block : 64 * block + 64]
        expected[row, block] = part.abs().max()
        if part.any():
            nearest = (part[:, None].double() / part.abs().max() - torch.tensor(NF4.levels).double()).abs().argmin(1)
            assert blocks.codes[row, block, : len(part)].tolist() == nearest.tolist()
    assert torch.equal(blocks.scales, expected)
    decoded = stored.decode(blocks)
    assert decoded.shape == x.shape
    assert torch.equal(decoded[0, :64], NF4.decode(blocks.codes[0, 0]) * blocks.scales[0, 0])
    assert stored.bits_per_number == 4.5
    with pytest.raises(BitwrightError, match="NF4 is NaN or infinite"):
        stored.encode(torch.tensor([math.inf]))


@with_types
@given(
    x=npst.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 70)), elements=st.floats(-4, 4, width=32)),
    power=st.integers(-60, 60),
)
@settings(max_examples=30, deadline=None)
def test_mx_blocks_are_those_of_the_specification(ours, theirs, x, power):
    """Block by block in NumPy: exponent by math, scale and elements by ml_dtypes."""
    x = np.ldexp(x, power)
    blocks = MXFormat(ours).encode(torch.from_numpy(x))
    decoded = MXFormat(ours).decode(blocks, torch.float64).numpy()
    for row, start in itertools.product(range(len(x)), range(0, x.shape[1], 32)):
        part = x[row, start : start + 32].astype(np.float64)
        greatest = np.abs(part).max()
        exponent = math.frexp(greatest)[1] - 1 - ours.greatest_exponent if greatest else -127
        exponent = max(exponent, -127)
        scale = blocks.scales[row, start // 32].numpy()
        assert scale.view(ml_dtypes.float8_e8m0fnu).astype(np.float64) == 2.0**exponent
        elements = peer_encode(np.clip(part / 2.0**exponent, -ours.largest, ours.largest), theirs)
        np.testing.assert_array_equal(blocks.codes[row, start // 32, : len(part)].numpy(), elements)
        values = peer_decode(elements, theirs) * 2.0**exponent
        np.testing.assert_array_equal(decoded[row, start : start + 32], values)


def test_mx_with_values_by_hand():
    x = torch.zeros(40)
    x[:3] = torch.tensor([12.0, 7.0, -0.4])
    x[33] = -0.75
    blocks = MXFormat(E2M1).encode(x)
    assert blocks.scales.tolist() == [128, 124]  # 12 is 1.5 * 2^3 and 6 is 1.5 * 2^2; 0.75 is 1.5 * 2^-1
    assert MXFormat(E2M1).decode(blocks)[[0, 1, 2, 33]].tolist() == [12, 8, 0, -0.75]
    assert torch.equal(MXFormat(E2M1).round(x), MXFormat(E2M1).decode(blocks))
    scales = MXFormat(E2M1).scales(x)
    assert scales.tolist() == [2.0] * 32 + [0.125] * 8
    assert MXFormat(E2M1).bits_per_number == 4.25


def test_mx_scales_at_the_ends_of_their_range():
    mx = MXFormat(E2M1, block=1)
    x = torch.tensor([0.0, 2.0**-140, 2.0**-125, 2.0**127, math.inf, math.nan])
    blocks = mx.encode(x)
    assert blocks.scales.tolist() == [0, 0, 0, 252, SCALE_NAN, SCALE_NAN]
    assert mx.decode(blocks).nan_to_num(-1).tolist() == [0, 0, 2.0**-125, 2.0**127, -1, -1]
    huge = torch.tensor([2.0**200], dtype=torch.float64)
    assert mx.encode(huge).scales.tolist() == [SCALE_NAN]
    assert mx.scales(huge).isnan().all()
    assert MXFormat(E4M3).round(torch.tensor([1.0, math.nan])).isnan().all()  # all of the block


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 50)), size=st.integers(1, 40))
def test_blocks_cover_the_last_axis(shape, size):
    x = torch.arange(1.0, shape[0] * shape[1] + 1).reshape(shape)
    blocks = into_blocks(x, size)
    assert blocks.shape == (shape[0], -(-shape[1] // size), size)
    assert blocks.count_nonzero() == x.numel()
    assert torch.equal(out_of_blocks(blocks, shape[1]), x)
