import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw import isa
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, Descriptor, Pass, Region

ENCODINGS = [("signed", bits) for bits in range(1, 9)] + [("odd", bits) for bits in range(1, 9)]
ENCODINGS += [("bipolar", 1), ("ternary", 2)]


def encoded_values(encoding, bits):
    if encoding == "ternary":
        return np.arange(-1, 2)
    if isa.has_offset(encoding):
        return np.arange(-(2**bits - 1), 2**bits, 2)
    return np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rows": 0}, "rows is 0, expected an integer from 1 to"),
        ({"rows": 2.0}, "rows is 2.0"),
        ({"columns": True}, "columns is True"),
        ({"lanes": 48}, "lanes is 48, expected a multiple of 32"),
        ({"rows": 33, "lanes": 32}, "at most as many rows as lanes"),
        ({"weight_depth": 3000}, "weight_depth is 3000, expected a power of two such as 4096"),
        ({"accumulator_width": 31}, "accumulator_width is 31"),
        ({"zero_skip": "maybe"}, "expected off, gate or skip"),
    ],
)
def test_impossible_arrays_are_refused(parameters, message):
    with pytest.raises(BitwrightError, match=message):
        ArraySpec(**parameters)


def test_arrays_from_a_table_start_at_a_preset():
    spec = ArraySpec.from_mapping({"preset": "tiny", "rows": 8})
    assert spec == dataclasses.replace(isa.preset("tiny"), rows=8)
    with pytest.raises(BitwrightError, match="did you mean lanes"):
        ArraySpec.from_mapping({"lane": 64})
    with pytest.raises(BitwrightError, match="'edg'; did you mean edge"):
        ArraySpec.from_mapping({"preset": "edg"})


def test_every_parameter_changes_the_check_value():
    base = ArraySpec()
    changed = [
        dataclasses.replace(base, **{name: 2 * value if name != "rows" else 4})
        for name, value in dataclasses.asdict(base).items()
        if isinstance(value, int) and name not in ("weight_planes_max", "activation_planes_max", "accumulator_width")
    ]
    changed += [dataclasses.replace(base, zero_skip="gate"), dataclasses.replace(base, weight_planes_max=7)]
    changed += [dataclasses.replace(base, activation_planes_max=7), dataclasses.replace(base, accumulator_width=23)]
    assert len({spec.fingerprint for spec in [base, *changed]}) == len(changed) + 1


@pytest.mark.parametrize("name", isa.PRESETS)
def test_host_addresses_are_unique_and_fit_the_bus(name):
    spec = dataclasses.replace(
        isa.preset(name), activation_depth=16, weight_depth=8, threshold_depth=4, descriptor_depth=32, result_depth=16
    )
    derived = spec.derived
    rows, chunks = range(spec.rows), range(derived.chunks)
    addresses = [derived.host_address(Region.REGISTERS, register) for register in isa.Register]
    addresses += [derived.host_address(Region.DESCRIPTORS, word) for word in range(spec.descriptor_depth)]
    addresses += [derived.host_address(Region.RESULTS, word) for word in range(spec.result_depth)]
    addresses += [derived.host_address(Region.THRESHOLDS, n, row) for n in range(spec.threshold_depth) for row in rows]
    addresses += [
        derived.host_address(Region.ACTIVATIONS, word, chunk=chunk)
        for word in range(spec.activation_depth)
        for chunk in chunks
    ]
    addresses += [
        derived.host_address(Region.WEIGHTS, word, row, chunk)
        for word in range(spec.weight_depth)
        for row in rows
        for chunk in chunks
    ]
    assert len(set(addresses)) == len(addresses)
    assert max(addresses) < 1 << derived.bus_address_width


def test_registers_have_help_and_counters_their_registers():
    assert set(isa.REGISTER_HELP) == set(isa.Register)
    counters = [register.name.lower() for register in isa.Register if register >= isa.Register.CYCLES]
    assert tuple(counters) == isa.COUNTERS


# Planes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "bits"), ENCODINGS)
def test_planes_add_up_to_the_values(encoding, bits):
    values = encoded_values(encoding, bits)
    planes = isa.split_planes(values, encoding, bits)
    coefficients = [(-1 if negate else 1) << significance for significance, negate in isa.weight_planes(encoding, bits)]
    total = np.tensordot(coefficients, planes.astype(int), 1)
    if isa.has_offset(encoding):
        total = 2 * total - sum(coefficients)
    np.testing.assert_array_equal(total, values)


@pytest.mark.parametrize(("encoding", "bits"), ENCODINGS)
def test_values_outside_an_encoding_are_refused(encoding, bits):
    values = encoded_values(encoding, bits)
    outside = [values[0] - 1, values[-1] + 1]
    if isa.has_offset(encoding):
        outside += [0, values[-1] + 2]
    for value in outside:
        with pytest.raises(BitwrightError, match=f"Value {value} is not one of the {bits}-bit {encoding}"):
            isa.split_planes(np.array([values[0], value]), encoding, bits)


def test_unknown_encodings_are_refused():
    with pytest.raises(BitwrightError, match="'float'"):
        isa.split_planes(np.zeros(1, int), "float", 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BitwrightError, match="'float'"):
        isa.weight_planes("float", 1)  # pyright: ignore[reportArgumentType]


@given(st.integers(1, 100), st.sampled_from([(32, 32), (64, 60), (96, 7)]))
def test_channels_lie_where_the_layout_says(channels, lanes_used):
    lanes, used = lanes_used
    bits = np.random.default_rng(channels).random((2, channels)) < 0.5
    placed = isa.place_channels(bits, lanes, used)
    assert placed.shape == (2, -(-channels // used), lanes)
    expected = np.zeros_like(placed)
    for channel in range(channels):
        expected[:, channel // used, channel % used] = bits[:, channel]
    np.testing.assert_array_equal(placed, expected)
    words = isa.pack_words(placed)
    np.testing.assert_array_equal(isa.unpack_words(words), placed)
    lane = used - 1 if channels >= used else channels - 1
    assert bool(words[0, 0, lane // 8] >> (lane % 8) & 1) == placed[0, 0, lane]


# Passes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "bits"), ENCODINGS)
@pytest.mark.parametrize("activation_planes", [1, 3, 8])
def test_passes_weigh_each_pair_of_planes_by_its_significance(encoding, bits, activation_planes):
    planes = isa.weight_planes(encoding, bits)
    passes = isa.schedule_passes(planes, activation_planes, 5)
    found = {
        (entry.weight_offset // 5, entry.activation_plane): coefficient
        for entry, coefficient in zip(passes, isa.pass_coefficients(passes), strict=True)
    }
    assert len(passes) == len(planes) * activation_planes
    assert not passes[0].double
    assert found == {
        (i, j): (-1 if negate else 1) << (significance + j)
        for i, (significance, negate) in enumerate(planes)
        for j in range(activation_planes)
    }


@given(st.integers(0, (1 << 14) - 1), st.integers(0, 7), st.booleans(), st.booleans())
def test_pass_words_are_read_back(offset, plane, double, negate):
    entry = Pass(offset, plane, double, negate)
    assert Pass.decode(entry.encode()) == entry


def test_pass_words_out_of_range_are_refused():
    with pytest.raises(BitwrightError, match="16384 words into its tile"):
        Pass(1 << 14, 0, False, False).encode()
    with pytest.raises(BitwrightError, match="0x00080000"):
        Pass.decode(1 << 19)


# Descriptors ----------------------------------------------------------------------------------------------------------


@st.composite
def descriptors(draw, spec):
    fields = {field.name: draw(st.integers(field.low, field.high)) for field in isa.descriptor_fields(spec)}
    fields |= {"kernel_height": 2, "kernel_width": 3, "input_words": draw(st.integers(1, spec.window_words_max // 6))}
    passes = draw(st.integers(1, 4))
    words = [Pass(draw(st.integers(0, 99)), draw(st.integers(0, 7)), draw(st.booleans()), False) for _ in range(passes)]
    return Descriptor(fields=fields | {"passes": passes}, passes=tuple(words))


@given(st.data())
@settings(max_examples=50)
def test_descriptors_are_read_back(data):
    spec = isa.preset("edge")
    layers = data.draw(st.lists(descriptors(spec), min_size=1, max_size=3))
    for index, layer in enumerate(layers):
        flags = layer.fields["flags"] & ~isa.FLAG_LAST | (isa.FLAG_LAST if index == len(layers) - 1 else 0)
        layers[index] = dataclasses.replace(layer, fields={**layer.fields, "flags": flags})
    words = np.concatenate([layer.encode(spec) for layer in layers])
    assert len(words) == sum(layer.words for layer in layers)
    assert isa.decode_descriptors(words, spec) == layers
    for size in (isa.HEADER_WORDS - 1, len(words) - 1):
        with pytest.raises(BitwrightError, match="Descriptors end"):
            isa.decode_descriptors(words[:size], spec)


def test_every_field_out_of_range_is_named():
    spec = isa.preset("edge")
    fields = {field.name: max(field.low, min(1, field.high)) for field in isa.descriptor_fields(spec)}
    good = Descriptor(fields=fields, passes=(Pass(0, 0, False, False),))
    assert len(good.encode(spec)) == isa.HEADER_WORDS + 1
    for field in isa.descriptor_fields(spec):
        for value in (field.low - 1, field.high + 1):
            with pytest.raises(
                BitwrightError, match=f"field {field.name} is {value}, this array accepts {field.low} to"
            ):
                dataclasses.replace(good, fields={**fields, field.name: value}).encode(spec)


def test_windows_and_pass_counts_are_checked():
    spec = isa.preset("edge")
    fields = {field.name: max(field.low, min(1, field.high)) for field in isa.descriptor_fields(spec)}
    one = (Pass(0, 0, False, False),)
    with pytest.raises(BitwrightError, match="window has 300 words, this array holds 256"):
        Descriptor(fields={**fields, "kernel_height": 3, "input_words": 100}, passes=one).encode(spec)
    with pytest.raises(BitwrightError, match="2 passes, its header says 1"):
        Descriptor(fields=fields, passes=one * 2).encode(spec)
    with pytest.raises(AttributeError, match="nothing"):
        _ = Descriptor(fields=fields, passes=one).nothing


# Thresholds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "bits"), [(-(1 << 17), 1 << 17), (-1, (1 << 18) - 1), (0, 0), (99, 99)])
def test_thresholds_are_two_s_complement_with_flags_above(value, bits):
    spec = isa.preset("tiny")
    assert isa.encode_threshold(value, 0, spec) == bits
    assert isa.encode_threshold(value, isa.THRESHOLD_NEGATE, spec) == bits | 1 << 18
    assert isa.encode_threshold(value, isa.THRESHOLD_POOL_MIN, spec) == bits | 1 << 19
    assert spec.derived.threshold_entry_width == 20
