import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers import METHODS, ImageInput, WeightQuantizer, method
from bitwright.sw.quantizers.base import closest_exponent, covering_exponent, glorot, power_of_two_above
from bitwright.sw.quantizers.binaryconnect import BinaryConnectWeight
from bitwright.sw.quantizers.bwn import BWNWeight
from bitwright.sw.quantizers.dorefa import DoReFaActivation, DoReFaWeight
from bitwright.sw.quantizers.fpnn import FixedHardtanh, FixedReLU, FPNNWeight
from bitwright.sw.quantizers.qnn import QNNWeight
from bitwright.sw.quantizers.sign import Sign, SignWeight
from bitwright.sw.quantizers.twn import TWNWeight

torch.set_num_threads(1)

WEIGHTS = [
    (kind, bits)
    for kind in (FPNNWeight, QNNWeight, SignWeight, BinaryConnectWeight, BWNWeight, TWNWeight, DoReFaWeight)
    for bits in kind.BITS
]
ACTIVATIONS = [
    (kind, bits, exponent)
    for kind in (FixedReLU, FixedHardtanh, DoReFaActivation, Sign)
    for bits in kind.BITS
    for exponent in ((-3, 0, 2) if kind in (FixedReLU, FixedHardtanh) else (None,))
]


def activation(kind, bits, exponent):
    return kind(bits) if exponent is None else kind(bits, exponent)


def weight_tensors(magnitude=4.0):
    values = st.floats(-magnitude, magnitude, allow_subnormal=False)
    return st.lists(values, min_size=6, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64).reshape(3, 2))


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bits"), WEIGHTS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_weights_are_exactly_integers_times_scale(kind, bits, data):
    weight = data.draw(weight_tensors())
    quantizer: WeightQuantizer = kind(bits)
    quantizer.fit(weight)
    codes = quantizer.codes(weight)
    assert codes.integers.dtype == torch.int64
    assert codes.scale.dtype == torch.float64
    assert codes.scale.shape == (3,)
    assert torch.equal(quantizer(weight), codes.integers * codes.scale[:, None])
    integers, planes = codes.integers, codes.planes
    if codes.encoding == "signed":
        assert -(1 << (planes - 1)) <= integers.min()
        assert integers.max() < 1 << (planes - 1)
    elif codes.encoding == "ternary":
        assert planes == 2
        assert integers.abs().max() <= 1
    else:
        assert codes.encoding == ("odd" if planes > 1 else "bipolar")
        assert (integers % 2 == 1).all()
        assert integers.abs().max() <= (1 << planes) - 1


@pytest.mark.parametrize("bits", range(2, 9))
@given(weight=weight_tensors())
@settings(max_examples=25, deadline=None)
def test_fixed_weights_follow_the_authors_code(bits, weight):
    largest = weight.abs().max().item()
    if largest < 1e-6:
        return
    nf = math.floor(Fraction(1) / Fraction(largest)).bit_length() - 1 if largest <= 1 else None
    if nf is None:  # floor(log2(1 / max)) for max > 1, without rounding
        nf = -next(e for e in itertools.count() if 2**e >= largest)
    scaled = weight * 2.0 ** (bits - 1 + nf)
    expected = scaled.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) / 2.0 ** (bits - 1 + nf)
    assert torch.equal(FPNNWeight(bits)(weight), expected)


def test_fixed_weights_of_a_known_tensor():
    codes = FPNNWeight(3).codes(torch.tensor([[0.5, -0.5, 0.0625, -0.1875, 0.3]]))
    assert codes.integers.tolist() == [[3, -4, 0, -2, 2]]  # 0.0625 is a tie and goes to 0, -0.1875 one to -2
    assert codes.scale.tolist() == [0.125]


def test_qnn_keeps_its_range_and_clips_to_it():
    quantizer = QNNWeight(2)
    weight = torch.tensor([[-2.0, -0.75, -0.25, 0.0, 0.25, 0.6, 2.0]])
    assert quantizer(weight).tolist() == [[-1.0, -1.0, 0.0, 0.0, 0.0, 0.5, 0.5]]
    quantizer.fit(torch.tensor([0.1, -0.2]))
    assert quantizer.limit() == 0.25
    assert quantizer(weight).tolist() == [[-0.25, -0.25, -0.25, 0.0, 0.125, 0.125, 0.125]]


def test_qnn_with_one_bit_is_the_sign():
    codes = QNNWeight(1).codes(torch.tensor([[0.0, -0.0, 0.3, -0.1]]))
    assert (codes.integers.tolist(), codes.encoding, codes.planes) == ([[1, 1, 1, -1]], "bipolar", 1)


@pytest.mark.parametrize("kind", [SignWeight, DoReFaWeight, QNNWeight, BinaryConnectWeight, BWNWeight])
def test_the_sign_of_zero_is_plus_one(kind):
    assert kind(1).codes(torch.tensor([[0.0, -0.0, -1.0]])).integers.tolist() == [[1, 1, -1]]


@pytest.mark.parametrize("bits", range(2, 9))
@given(weight=weight_tensors())
@settings(max_examples=25, deadline=None)
def test_dorefa_weights_follow_the_paper(bits, weight):
    if weight.abs().max() < 1e-6:
        return
    n = 2**bits - 1
    bent = weight.tanh()
    expected = 2 * torch.round(n * (bent / (2 * bent.abs().max()) + 0.5)) / n - 1
    torch.testing.assert_close(DoReFaWeight(bits)(weight), expected, rtol=1e-15, atol=1e-15)


def test_dorefa_with_one_bit_scales_by_the_mean_magnitude():
    weight = torch.tensor([[0.5, -1.5], [0.0, 1.0]])
    assert DoReFaWeight(1)(weight).tolist() == [[0.75, -0.75], [0.75, 0.75]]


# FPNN, scales of a network --------------------------------------------------------------------------------------------


def test_one_scale_for_the_network_covers_its_greatest_weight():
    quantizer = FPNNWeight(3, scale="network")
    quantizer.fit(torch.tensor([0.1, -3.0]))
    weight = torch.tensor([[0.1, 0.6, -3.0, 5.0]])
    assert quantizer(weight).tolist() == [[0.0, 1.0, -3.0, 3.0]]  # steps of 4 / 4
    codes = quantizer.codes(weight)
    assert (codes.integers.tolist(), codes.scale.tolist()) == ([[0, 1, -3, 3]], [1.0])
    fresh = FPNNWeight(3, scale="network")
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(weight), quantizer(weight))


# BinaryConnect, BWN, TWN ----------------------------------------------------------------------------------------------


def test_binaryconnect_draws_signs_with_the_hard_sigmoid():
    """``P(+1) = clip((w + 1) / 2, 0, 1)``, of the authors' code with H = 1."""
    torch.manual_seed(0)
    quantizer = BinaryConnectWeight(stochastic=True, limit="one")
    levels = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.3, 1.0, 1.5])
    draws = quantizer(levels.repeat(20_000, 1))
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    probability = (draws > 0).double().mean(0)
    expected = ((levels.double() + 1) / 2).clamp(0, 1)
    assert torch.equal(probability[[0, 1, 5, 6]], expected[[0, 1, 5, 6]])
    torch.testing.assert_close(probability, expected, rtol=0, atol=0.015)  # 4 standard deviations
    half = BinaryConnectWeight(stochastic=True)
    half.fit(levels / 4)  # covers 0.5
    assert set(half(levels[None] / 4).unique().tolist()) == {-0.5, 0.5}


def test_binaryconnect_at_test_time():
    weight = torch.tensor([[0.3, -0.4]])
    deterministic = BinaryConnectWeight(limit="one").eval()
    real = BinaryConnectWeight(limit="one", stochastic=True).eval()
    signs = BinaryConnectWeight(limit="one", stochastic=True, test="sign").eval()
    assert deterministic(weight).tolist() == signs(weight).tolist() == [[1.0, -1.0]]
    assert real(weight) is weight
    assert signs.codes(weight).integers.tolist() == [[1, -1]]
    with pytest.raises(BitwrightError, match=r"real weights at test time .* set the option test = 'sign'"):
        real.codes(weight)


def test_binaryconnect_scales_updates_as_the_authors_do():
    """``W_LR_scale = 1 / sqrt(1.5 / (inputs + units))`` for H = 1, with the areas of filters in both."""
    linear, convolution = torch.rand(30, 20) - 0.5, torch.rand(8, 4, 5, 5) - 0.5
    assert glorot(linear) == pytest.approx(math.sqrt(1.5 / 50))
    assert glorot(convolution) == pytest.approx(math.sqrt(1.5 / (100 + 200)))
    assert BinaryConnectWeight(limit="one").rate_scale(linear) == pytest.approx(math.sqrt(50 / 1.5))
    fitted = BinaryConnectWeight()
    fitted.fit(linear)
    assert fitted.rate_scale(linear) == pytest.approx(0.5 * math.sqrt(50 / 1.5))
    assert QNNWeight(2).rate_scale(linear) == BWNWeight().rate_scale(linear) == 1


def test_training_in_another_range_is_the_published_training():
    """All numbers of H = 1/4 are those of H = 1 divided by 4: real weights, updates by Adam, quantized weights."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(4, 6, generator=generator, dtype=torch.float64) * 2 - 1
    first[0, 0] = 1.0
    targets = torch.randn(20, 4, 6, generator=generator, dtype=torch.float64)
    found = []
    for limit, scale in (("one", 1.0), ("weights", 0.25)):
        quantizer = BinaryConnectWeight(limit=limit)
        weight = nn.Parameter(first * scale)
        quantizer.fit(weight.detach())
        optimizer = torch.optim.Adam([weight], 0.01 * quantizer.rate_scale(weight), eps=0)
        for target in targets:
            optimizer.zero_grad()
            (quantizer(weight) / scale * target).sum().backward()
            optimizer.step()
            quantizer.constrain(weight)
        found.append(weight.detach() / scale)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    assert (found[0] != first).all()


def test_bwn_scales_signs_by_the_mean_magnitude_of_each_filter():
    weight = torch.tensor([[0.5, -1.5], [0.0, 1.0], [0.0, 0.0]])
    codes = BWNWeight().codes(weight)
    assert codes.scale.tolist() == [1.0, 0.5, 0.0]
    assert BWNWeight()(weight).tolist() == [[1.0, -1.0], [0.5, 0.5], [0.0, 0.0]]
    best = (weight - BWNWeight()(weight)).square().sum()
    for other in (0.9, 1.1):
        assert (weight - other * BWNWeight()(weight)).square().sum() > best


def test_bwn_centers_over_input_channels_and_clips():
    weight = torch.randn(3, 4, 2, 2, dtype=torch.float64) * 2
    expected = (weight - weight.mean(1, keepdim=True)).clamp(-1, 1)
    BWNWeight().constrain(weight)
    torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    one = torch.tensor([[[[0.5, -3.0]]]])
    BWNWeight().constrain(one)  # one input channel has no mean to lose
    assert one.tolist() == [[[[0.5, -1.0]]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_of_bwn_follow_code_and_paper(channels):
    """Filter by filter and weight by weight, as written in the authors' ``updateBinaryGradWeight``."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, channels, 2, 2, generator=generator, dtype=torch.float64)
    weight[0, 0, 0, 0] = 1.0
    upstream = torch.arange(1.0, weight.numel() + 1, dtype=torch.float64).reshape(weight.shape)
    n = weight[0].numel()
    for name in ("authors", "paper", "straight"):
        found = gradient(BWNWeight(gradient=name), weight)
        for index in itertools.product(*map(range, weight.shape)):
            w, g, alpha = weight[index].item(), upstream[index].item(), weight[index[0]].abs().mean().item()
            if name == "authors":
                expected = g * (alpha * (abs(w) < 1) + 1 / n) * n * (1 - 1 / channels if channels > 1 else 1)
            elif name == "paper":
                expected = g * (1 / n + alpha * (abs(w) <= 1))
            else:
                expected = g
            assert found[index].item() == pytest.approx(expected, rel=1e-12)


def test_twn_of_a_known_tensor():
    weight = torch.tensor([[1.0, -0.3, 0.2], [-0.5, 0.0, 0.4]], dtype=torch.float64)  # mean magnitude 0.4, delta 0.28
    codes = TWNWeight().codes(weight)
    assert codes.integers.tolist() == [[1, -1, 0], [-1, 0, 1]]
    assert codes.scale.tolist() == pytest.approx([0.55, 0.55])
    per_filter = TWNWeight(scale="filter").codes(weight)
    spread = (weight - weight.mean()).abs().mean() * 0.7
    assert per_filter.integers.tolist() == ((weight.abs() > spread) * weight.sign()).tolist()
    for row, scale in zip(weight, per_filter.scale, strict=True):
        assert scale.item() == pytest.approx(row.abs()[row.abs() > spread].mean().item())


def test_twn_filters_without_large_weights_are_zero():
    weight = torch.tensor([[1.0, -1.0], [0.01, 0.02]])
    codes = TWNWeight(scale="filter").codes(weight)
    assert (codes.integers[1].tolist(), codes.scale[1].item()) == ([0, 0], 0.0)


# Gradients ------------------------------------------------------------------------------------------------------------


def gradient(module, x):
    x = x.clone().requires_grad_()
    upstream = torch.arange(1.0, x.numel() + 1, dtype=x.dtype).reshape(x.shape)
    return torch.autograd.grad(module(x), x, upstream)[0]


RAMP = torch.arange(-64, 65, dtype=torch.float64).reshape(1, -1) / 32  # every tie of up to 6 bits is among them
UPSTREAM = torch.arange(1, 130, dtype=torch.float64).reshape(1, -1)


@pytest.mark.parametrize(
    "quantizer",
    [
        FPNNWeight(2),
        FPNNWeight(8),
        FPNNWeight(3, scale="network"),
        SignWeight(1),
        DoReFaWeight(1),
        BinaryConnectWeight(),
        BinaryConnectWeight(stochastic=True),
        BWNWeight(gradient="straight"),
        TWNWeight(),
        TWNWeight(scale="filter"),
    ],
    ids=lambda quantizer: repr(quantizer),
)
def test_gradient_passes_unchanged(quantizer):
    assert torch.equal(gradient(quantizer, RAMP), UPSTREAM)


@pytest.mark.parametrize("bits", [1, 4])
def test_gradient_of_qnn_weights_is_the_indicator(bits):
    assert torch.equal(gradient(QNNWeight(bits), RAMP), UPSTREAM * (RAMP.abs() <= 1))


@pytest.mark.parametrize("bits", [2, 5])
def test_gradient_of_dorefa_weights_flows_through_tanh_and_maximum(bits):
    def smooth(weight):
        return 2 * (weight.tanh() / (2 * weight.tanh().abs().max()) + 0.5) - 1

    weight = torch.tensor([[0.3, -1.2], [0.7, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient(DoReFaWeight(bits), weight), gradient(smooth, weight))
    tied = torch.tensor([[0.5, -0.5], [0.1, 0.5]], dtype=torch.float64)  # three weights have the greatest magnitude
    torch.testing.assert_close(gradient(DoReFaWeight(bits), tied), gradient(smooth, tied))


def finite_differences(function, x, upstream, step=1e-6):
    """Gradient of ``sum(upstream * function(x))``, from values alone."""
    flat = x.flatten()
    found = torch.empty_like(flat)
    for index in range(len(flat)):
        up, down = flat.clone(), flat.clone()
        up[index] += step
        down[index] -= step
        change = function(up.reshape(x.shape)) - function(down.reshape(x.shape))
        found[index] = (upstream * change).sum() / (2 * step)
    return found.reshape(x.shape)


@pytest.mark.parametrize("kind", [quantizer for quantizer, bits in WEIGHTS if bits == quantizer.BITS[0]])
def test_gradients_of_weights_are_the_finite_differences_of_their_surrogates(kind):
    torch.manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.float64)
    quantizer = kind(2 if 2 in kind.BITS else 1)
    if isinstance(quantizer, BWNWeight):
        quantizer.gradient = "straight"  # the other rules are no derivatives; they have their own tests
    upstream = torch.arange(1.0, weight.numel() + 1, dtype=torch.float64).reshape(weight.shape)
    expected = finite_differences(lambda w: quantizer.surrogate(w).detach(), weight, upstream)
    torch.testing.assert_close(gradient(quantizer, weight), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("quantizer", "low", "high"),
    [(DoReFaActivation(2), 0, 1), (Sign(), -1, 1), (FixedReLU(3), -0.125, 0.875), (FixedHardtanh(3), -1, 0.875)],
    ids=["dorefa", "sign", "relu", "hardtanh"],
)
def test_gradients_of_activations_are_the_finite_differences_of_a_clip(quantizer, low, high):
    """Of the grids the clip is that of *rounded* values: it begins half a step outside, except at a hardtanh's end."""
    x = torch.linspace(-2, 2, 41, dtype=torch.float64) + 0.003
    expected = finite_differences(lambda y: y.clamp(low, high), x, torch.arange(1.0, 42, dtype=torch.float64))
    torch.testing.assert_close(gradient(quantizer, x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), WEIGHTS)
@pytest.mark.parametrize("value", [0.0, 1e-45])
def test_weights_that_are_all_zero_stay_finite(kind, bits, value):
    weight = torch.full((4, 3), value)
    quantizer = kind(bits)
    quantizer.fit(weight)
    assert quantizer(weight).isfinite().all()
    assert gradient(quantizer, weight).isfinite().all()
    assert quantizer.codes(weight).scale.isfinite().all()


@pytest.mark.parametrize(("kind", "bits"), WEIGHTS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(kind, bits, value):
    with pytest.raises(BitwrightError, match="NaN or infinite"):
        kind(bits).codes(torch.tensor([[0.5, value]]))


# Activations ----------------------------------------------------------------------------------------------------------


def count_boundaries(quantizer, values: list[float]) -> list[int]:
    boundaries = quantizer.boundaries()

    def code(exact: Fraction) -> int:
        return sum(exact >= b.value if b.inclusive else exact > b.value for b in boundaries)

    return [code(Fraction(value)) for value in values]


def near_boundaries(quantizer, dtype):
    """Floats next to every boundary, and the boundary itself where it is a float."""
    centre = torch.tensor([float(b.value) for b in quantizer.boundaries()], dtype=torch.float64).to(dtype)
    up, down = (torch.nextafter(centre, torch.full_like(centre, end)) for end in (math.inf, -math.inf))
    return torch.cat([centre, up, down])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("kind", "bits", "exponent"), ACTIVATIONS)
def test_codes_next_to_boundaries(kind, bits, exponent, dtype):
    quantizer = activation(kind, bits, exponent)
    x = near_boundaries(quantizer, dtype)
    assert quantizer.codes(x).tolist() == count_boundaries(quantizer, x.tolist())


@pytest.mark.parametrize(("kind", "bits", "exponent"), ACTIVATIONS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_codes_count_boundaries(kind, bits, exponent, data):
    quantizer = activation(kind, bits, exponent)
    floats = st.floats(-10, 10) | st.floats(allow_nan=False, allow_infinity=False)
    x = data.draw(st.lists(floats, min_size=1, max_size=8))
    codes = quantizer.codes(torch.tensor(x, dtype=torch.float64))
    assert codes.tolist() == count_boundaries(quantizer, x)


@pytest.mark.parametrize(("kind", "bits", "exponent"), ACTIVATIONS)
def test_values_are_steps_from_the_offset(kind, bits, exponent):
    quantizer = activation(kind, bits, exponent)
    boundaries = quantizer.boundaries()
    assert len(boundaries) == quantizer.levels - 1
    assert [b.value for b in boundaries] == sorted(b.value for b in boundaries)
    assert quantizer.levels <= 1 << quantizer.planes
    exact = [quantizer.step() * code + quantizer.offset() for code in range(quantizer.levels)]
    values = torch.tensor([float(value) for value in exact], dtype=torch.float64)
    assert quantizer.codes(values).tolist() == list(range(quantizer.levels))
    x = torch.linspace(-9, 9, 5001, dtype=torch.float64)
    assert torch.equal(quantizer(x), values[quantizer.codes(x)])


@pytest.mark.parametrize("bits", range(2, 9))
def test_fixed_activations_follow_the_authors_code(bits):
    x = torch.linspace(-1.5, 1.5, 1537, dtype=torch.float64)  # steps of 2^-9: every tie is among them
    half = 2.0 ** (bits - 1)
    folded = 2 * torch.round(((x + 1) / 2).clamp(0, 1) * 2 * half) / (2 * half) - 1
    assert torch.equal(FixedReLU(bits)(x), folded.clamp(0, 1 - 1 / half))
    assert torch.equal(FixedHardtanh(bits)(x), folded.clamp(-1, 1 - 1 / half))


@pytest.mark.parametrize("form", [FixedReLU, FixedHardtanh])
@pytest.mark.parametrize("bits", [2, 4])
def test_gradient_of_fixed_activations_is_that_of_the_authors_code(form, bits):
    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0]

    def reference(x):
        inner = ((x + 1) / 2).clamp(0, 1)
        folded = 2 * Through.apply(inner * 2**bits) / 2**bits - 1
        return folded.clamp(0 if form is FixedReLU else -1, 1 - 2.0 ** (1 - bits))

    assert torch.equal(gradient(form(bits), RAMP), gradient(reference, RAMP))


def test_gradients_of_sign_and_dorefa_activations():
    assert torch.equal(gradient(Sign(), RAMP), UPSTREAM * (RAMP.abs() <= 1))
    assert torch.equal(gradient(DoReFaActivation(3), RAMP), UPSTREAM * ((RAMP >= 0) & (RAMP <= 1)))


def test_planes_are_not_bits():
    assert [FixedReLU(4).planes, FixedReLU(4).levels] == [3, 8]
    assert [FixedHardtanh(4).planes, FixedHardtanh(4).levels] == [4, 16]
    assert [DoReFaActivation(4).planes, DoReFaActivation(4).levels] == [4, 16]
    assert [Sign().planes, Sign().levels] == [1, 2]


def test_training_sees_activations_that_are_nan():
    for quantizer in (FixedReLU(4), FixedHardtanh(4), DoReFaActivation(2)):
        assert quantizer(torch.tensor([math.nan])).isnan().all()


# Scales ---------------------------------------------------------------------------------------------------------------


@given(st.floats(1e-15, 1e15), st.sampled_from([torch.float32, torch.float64]))
def test_power_of_two_above(value, dtype):
    x = torch.tensor(value, dtype=dtype)
    power = power_of_two_above(x).item()
    assert math.frexp(power)[0] == 0.5
    assert power / 2 < x.item() <= power


@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12), st.integers(2, 5), st.sampled_from([-1, 0]))
def test_closest_exponent_has_the_least_error(values, bits, lowest):
    def error(exponent):
        grid = [2.0 ** (exponent - bits + 1) * n for n in range(lowest << (bits - 1), 1 << (bits - 1))]
        return sum(min((value - level) ** 2 for level in grid) for value in values)

    found = closest_exponent(torch.tensor(values, dtype=torch.float64), bits, lowest)
    greatest = covering_exponent(torch.tensor(values, dtype=torch.float64).abs())
    assert greatest - 8 < found <= greatest
    assert error(found) == pytest.approx(min(error(greatest - below) for below in range(8)), rel=1e-9, abs=1e-12)


def test_closest_grids_clip_what_would_round_the_rest_to_zero():
    """One weight of 1 and many of 0.1: all but the one are zero on the covering grid, and near 0.125 on the closest."""
    weight = torch.cat([torch.tensor([1.0]), torch.tensor([0.1, -0.1]).repeat(200)])[None]
    covering, closest = FPNNWeight(2), FPNNWeight(2, range="closest")
    for quantizer in (covering, closest):
        quantizer.fit(weight)
    assert covering(weight).count_nonzero() == 1
    assert closest(weight).unique().tolist() == [-0.125, 0.125]
    relu = FixedReLU(2, range="closest")
    relu.fit(weight)
    assert relu(weight).unique().tolist() == [0.0, 0.125]
    fresh = FPNNWeight(2, range="closest")
    fresh.load_state_dict(closest.state_dict())
    assert torch.equal(fresh(weight), closest(weight))
    trained = QNNWeight(2)
    trained.fit(weight)
    assert trained.limit() == 1
    trained.calibrate(weight)
    assert trained.limit() == 0.25
    for kept in (QNNWeight(2, limit="one"), QNNWeight(1)):
        kept.fit(weight)
        kept.calibrate(weight)
        assert kept.limit() == 1


def test_covering_exponent():
    assert covering_exponent(torch.zeros(5)) == 0
    assert covering_exponent(torch.empty(0)) == 0
    assert covering_exponent(torch.tensor([0.0, 0.25])) == -2
    assert covering_exponent(torch.tensor([0.0, 0.2501])) == -1
    assert covering_exponent(torch.tensor([1.0] * 99 + [100.0])) == 7
    assert covering_exponent(torch.tensor([1.0] * 99 + [100.0]), share=0.99) == 0


def test_calibration_sets_the_range_of_outputs():
    values = torch.tensor([-50.0, 0.0, 1.0, 2.5])
    relu, hardtanh = FixedReLU(4), FixedHardtanh(4)
    relu.fit(values)
    hardtanh.fit(values)
    assert (relu.exponent, hardtanh.exponent) == (2, 6)
    assert relu(values).tolist() == [0.0, 0.0, 1.0, 2.5]


# The image ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_image_codes_are_rounded_exactly(bits, dtype):
    image = ImageInput(bits, -1.0, 1.0).to(dtype)
    pixels = torch.arange(256, dtype=torch.uint8)
    n = 2**bits - 1
    expected = [(2 * pixel * n + 255) // 510 for pixel in range(256)]
    assert image.codes(pixels).tolist() == expected
    assert image.codes(pixels.float()).tolist() == expected
    values = image(pixels)
    assert values.dtype == dtype
    exact = [float(image.step() * code + image.offset()) for code in expected]
    torch.testing.assert_close(values, torch.tensor(exact, dtype=dtype))
    assert (image.planes, image.levels, image.offset()) == (bits, n + 1, -1)


def test_image_of_eight_bits_is_pixels_over_255():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(ImageInput()(pixels), pixels / 255)


# Modules and names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [FPNNWeight, QNNWeight, DoReFaWeight, FixedReLU, FixedHardtanh, DoReFaActivation, Sign]
)
@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, True, None, "2"])
def test_bits_out_of_range_are_refused(kind, bits):
    with pytest.raises(BitwrightError, match=r"takes (1 to 8 bits|2 to 8 bits|1 bit), found"):
        kind(bits)


def test_fixed_point_with_one_bit_says_what_to_do():
    with pytest.raises(BitwrightError, match="FPNNWeight takes 2 to 8 bits, found 1; for 1 bit use the method 'sign'"):
        FPNNWeight(1)


def test_image_parameters_are_checked():
    with pytest.raises(BitwrightError, match="ImageInput takes 1 to 8 bits, found 9"):
        ImageInput(9)
    with pytest.raises(BitwrightError, match=r"range 1\.0 to 1\.0, expected low below high"):
        ImageInput(8, 1.0, 1.0)


@pytest.mark.parametrize(("kind", "bits"), [*WEIGHTS, *((kind, bits) for kind, bits, _ in ACTIVATIONS)])
def test_type_of_the_input_is_kept(kind, bits):
    for dtype in (torch.float32, torch.float64):
        assert kind(bits)(torch.randn(3, 4, dtype=dtype)).dtype == dtype


def test_state_dict_holds_bits_and_scales():
    calibrated, fresh = FixedReLU(3, exponent=5), FixedReLU(3)
    fresh.load_state_dict(calibrated.state_dict())
    assert fresh.exponent == 5
    with pytest.raises(BitwrightError, match="made with 3 bits where this model's FixedReLU has 4"):
        FixedReLU(4).load_state_dict(calibrated.state_dict())
    with pytest.raises(BitwrightError, match=r"made with ImageInput\(bits=8, low=0\.0, high=1\.0\)"):
        ImageInput(4).load_state_dict(ImageInput(8).state_dict())


def test_methods_by_name():
    assert all(name == METHODS[name].name for name in METHODS)
    assert method("fixed") is method("fpnn")  # what earlier runs call it
    assert method("dorefa").weights is DoReFaWeight
    assert (method("fpnn").weight_bits, method("fpnn").activation_bits) == (range(2, 9), range(2, 9))
    assert (method("sign").weight_bits, method("sign").activation_bits) == (range(1, 2), range(1, 2))
    with pytest.raises(BitwrightError, match="Unknown quantization method 'dorefanet'; did you mean 'dorefa'"):
        method("dorefanet")
    with pytest.raises(BitwrightError, match="choose one of fpnn, qnn, sign, "):
        method("?")


def test_options_by_name():
    assert not method("fpnn").quantize_weights(4).network_wide
    assert method("fpnn").quantize_weights(4, {"scale": "network"}).network_wide
    assert method("fpnn").replace_activation(nn.ReLU(), 4, {"scale": "network"}).network_wide
    with pytest.raises(BitwrightError, match="The option scale is 'net', expected 'layer' or 'network'"):
        method("fpnn").quantize_weights(4, {"scale": "net"})
    with pytest.raises(BitwrightError, match="Method 'fpnn' has no option 'scales' for weights; did you mean 'sca"):
        method("fpnn").quantize_weights(4, {"scales": "layer"})
    with pytest.raises(BitwrightError, match="Method 'sign' has no option 'scale' for activations; it has none"):
        method("sign").replace_activation(nn.ReLU(), 1, {"scale": "layer"})


def test_methods_name_activation_functions_that_they_do_not_quantize():
    assert isinstance(method("fpnn").replace_activation(nn.Hardtanh(), 4), FixedHardtanh)
    with pytest.raises(BitwrightError, match="Method 'dorefa' does not quantize Hardtanh, expected ReLU"):
        method("dorefa").replace_activation(nn.Hardtanh(), 4)
