import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitwright.hw import isa
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import BANK, GRANULE, ArraySpec, Descriptor, Pass, Region, WeightPlanes
from drive import header
from strategies import descriptors

ENCODINGS = [("signed", bits) for bits in range(1, 9)] + [("odd", bits) for bits in range(1, 9)]
ENCODINGS += [("unsigned", 1), ("unsigned", 8), ("bipolar", 1), ("ternary", 2)]
BASES = [(encoding, bits) for encoding in ("basis", "bipolar_basis") for bits in (1, 2, 5)]


def encoded_values(encoding, bits):
    if encoding == "ternary":
        return np.arange(-1, 2)
    if encoding == "unsigned" or isa.has_coefficients(encoding):
        return np.arange(2**bits)
    if isa.has_offset(encoding):
        return np.arange(-(2**bits - 1), 2**bits, 2)
    return np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))


# Arrays ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rows": 0}, "rows is 0, expected an integer from 4 to 64"),
        ({"rows": 68}, "rows is 68, expected an integer from 4 to 64"),
        ({"rows": 4.0}, "rows is 4.0, expected an integer"),
        ({"rows": 6}, "rows is 6, expected a multiple of 4"),
        ({"columns": True}, "columns is True"),
        ({"columns": 6, "columns_per_copy": 4}, "6 columns and 4 columns_per_copy, expected a divisor"),
        ({"columns": 4, "columns_per_copy": 8}, "4 columns and 8 columns_per_copy, expected a divisor"),
        ({"columns": 5, "pipelined": True}, "5 columns and is pipelined, expected an even number"),
        ({"lanes": 48}, "lanes is 48, expected a power of two such as 64"),
        ({"lanes": 512}, "lanes is 512, expected an integer from 32 to 256"),
        ({"drain_planes": 3}, "drain_planes is 3, expected a power of two such as 4"),
        ({"drain_planes": 8, "lanes": 256}, "drain_planes is 8, expected an integer from 1 to 4"),
        ({"rows": 8, "lanes": 32, "drain_planes": 2}, "touches 4 banks .* has 2; choose fewer rows"),
        ({"rows": 64, "lanes": 64, "drain_planes": 1}, "1 planes of 64 rows .* touches 5 banks .* has 4"),
        ({"weight_depth": 3000}, "weight_depth is 3000, expected a power of two such as 4096"),
        ({"row_tiles_max": 3}, "row_tiles_max is 3, expected a power of two such as 4"),
        ({"descriptor_depth": 32}, "descriptor_depth is 32, expected an integer from 64 to"),
        ({"accumulator_width": 31}, "accumulator_width is 31"),
        ({"coefficient_bits": 1}, r"coefficient_bits is 1, expected 0 \(no multiplier\) or 2 to 16"),
        ({"coefficient_bits": 17}, "coefficient_bits is 17, expected an integer from 0 to 16"),
        ({"residual": 1}, "residual is 1, expected true or false"),
        ({"weight_stream": "yes"}, "weight_stream is 'yes', expected true or false"),
        ({"codebook_bits": 5, "weight_stream": True}, "codebook_bits is 5, expected an integer from 0 to 4"),
        ({"codebook_bits": 2}, "codebook_bits 2 but no weight_stream, .*; set weight_stream to true"),
        ({"zero_skip": "maybe"}, "zero_skip is 'maybe', expected off, gate or skip"),
    ],
)
def test_impossible_arrays_are_refused(parameters, message):
    with pytest.raises(BitwrightError, match=message):
        ArraySpec(**parameters)


def test_arrays_from_a_table_start_at_a_preset():
    spec = ArraySpec.from_mapping({"preset": "tiny", "columns": 8, "columns_per_copy": 4})
    assert spec == dataclasses.replace(isa.preset("tiny"), columns=8, columns_per_copy=4)
    assert ArraySpec.from_mapping({"rows": 4}) == ArraySpec(rows=4)
    with pytest.raises(BitwrightError, match="did you mean lanes"):
        ArraySpec.from_mapping({"lane": 64})
    with pytest.raises(BitwrightError, match="'edg'; did you mean edge"):
        ArraySpec.from_mapping({"preset": "edg"})
    with pytest.raises(BitwrightError, match="preset 'x'; choose one of tiny, demo, edge, large"):
        isa.preset("x")


def test_every_parameter_changes_the_check_value():
    base = ArraySpec(columns=16, columns_per_copy=2, lanes=128, drain_planes=1, weight_stream=True)
    other = {
        "rows": 16,
        "columns": 8,
        "lanes": 64,
        "columns_per_copy": 4,
        "weight_planes_max": 7,
        "activation_planes_max": 7,
        "accumulator_width": 23,
        "coefficient_bits": 8,
        "drain_planes": 2,
        "pipelined": True,
        "residual": False,
        "weight_stream": False,
        "codebook_bits": 2,
        "prefetch": False,
        "row_tiles_max": 8,
        "counter_width": 24,
        "zero_skip": "gate",
    }
    other |= {name: 512 for name in dataclasses.asdict(base) if name.endswith("_depth")}
    assert other.keys() == dataclasses.asdict(base).keys()
    changed = [dataclasses.replace(base, **{name: value}) for name, value in other.items()]
    assert len({spec.fingerprint for spec in [base, *changed]}) == len(changed) + 1


@st.composite
def arrays(draw):
    """Any shape, word length and number of planes drained at once that there can be."""
    rows, lanes = draw(st.integers(1, 16)) * GRANULE, draw(st.sampled_from([32, 64, 128, 256]))
    try:
        return ArraySpec(rows=rows, lanes=lanes, drain_planes=draw(st.sampled_from([1, 2, 4])))
    except BitwrightError:
        assume(False)
        raise


@given(arrays(), st.integers(0, 63))
def test_planes_written_at_once_do_not_meet_in_a_bank(spec, position):
    """A tile lies at any granule, planes a skew apart; the refusal of arrays for which that fails is exact."""
    derived = spec.derived
    touched = []
    for plane in range(spec.drain_planes):
        start = position + plane * (derived.plane_skew + 3 * derived.granules)
        banks = {
            granule // (BANK // GRANULE) % derived.banks for granule in range(start, start + derived.tile_granules)
        }
        touched += banks
    assert len(touched) == len(set(touched))


@given(st.sampled_from([32, 64, 128, 256]), st.integers(0, 1000))
def test_a_read_delivers_an_unaligned_chunk_from_any_position(lanes, position):
    """It reads a word from the start of the bank of ``position`` on."""
    derived = ArraySpec(rows=4, lanes=lanes, drain_planes=1).derived
    bank = BANK // GRANULE
    delivered = derived.granules - position % bank
    assert delivered >= derived.chunk_unaligned
    assert any(derived.granules - start % bank == derived.chunk_unaligned for start in range(bank))
    assert derived.granules * GRANULE == derived.banks * BANK == derived.chunks * 32 == lanes


@pytest.mark.parametrize("name", [*isa.PRESETS, "stream and coefficients"])
def test_host_addresses_are_unique_and_fit_the_bus(name):
    base = isa.PRESETS.get(name) or dataclasses.replace(isa.preset("demo"), coefficient_bits=8, weight_stream=True)
    depths = {"activation_depth": 16, "weight_depth": 8, "threshold_depth": 4, "coefficient_depth": 32}
    spec = dataclasses.replace(base, descriptor_depth=64, result_depth=16, **depths)
    derived = spec.derived
    rows, chunks = range(spec.rows), range(derived.chunks)
    addresses = [derived.host_address(Region.REGISTERS, register) for register in isa.Register]
    addresses += [derived.host_address(Region.DESCRIPTORS, word) for word in range(spec.descriptor_depth)]
    addresses += [derived.host_address(Region.RESULTS, word) for word in range(spec.result_depth)]
    addresses += [derived.host_address(Region.THRESHOLDS, n, row) for n in range(spec.threshold_depth) for row in rows]
    if spec.coefficient_bits:
        entries = range(spec.coefficient_depth)
        addresses += [derived.host_address(Region.COEFFICIENTS, entry, row) for entry in entries for row in rows]
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


@pytest.mark.parametrize(("encoding", "bits"), BASES)
def test_planes_of_a_basis_are_the_bits_of_its_codes(encoding, bits):
    values = encoded_values(encoding, bits)
    planes = isa.split_planes(values, encoding, bits)
    np.testing.assert_array_equal(np.tensordot(1 << np.arange(bits), planes.astype(int), 1), values)
    assert isa.weight_planes(encoding, bits) == ((0, False),) * bits
    assert isa.has_offset(encoding) == (encoding == "bipolar_basis")


@pytest.mark.parametrize(("encoding", "bits"), ENCODINGS + BASES)
def test_values_outside_an_encoding_are_refused(encoding, bits):
    values = encoded_values(encoding, bits)
    outside = [values[0] - 1, values[-1] + 1]
    if isa.has_offset(encoding) and not isa.has_coefficients(encoding):
        outside += [0, values[-1] + 2]
    for value in outside:
        with pytest.raises(BitwrightError, match=f"Value {value} is not one of the {bits}-bit {encoding}"):
            isa.split_planes(np.array([values[0], value]), encoding, bits)


def test_unknown_encodings_are_refused():
    with pytest.raises(BitwrightError, match="'float'"):
        isa.split_planes(np.zeros(1, int), "float", 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BitwrightError, match="'float'"):
        isa.weight_planes("float", 1)  # pyright: ignore[reportArgumentType]


@given(st.integers(1, 100), st.sampled_from([32, 64, 128]))
def test_channels_fill_granules_and_granules_words(channels, lanes):
    bits = np.random.default_rng(channels).random((2, channels)) < 0.5
    placed = isa.place_channels(bits)
    assert placed.shape == (2, GRANULE * isa.granules_of(channels))
    assert GRANULE * (isa.granules_of(channels) - 1) < channels
    np.testing.assert_array_equal(placed[:, :channels], bits)
    assert not placed[:, channels:].any()
    cut = isa.split_words(placed, lanes)
    assert cut.shape == (2, -(-placed.shape[1] // lanes), lanes)
    np.testing.assert_array_equal(cut.reshape(2, -1)[:, : placed.shape[1]], placed)
    assert not cut.reshape(2, -1)[:, placed.shape[1] :].any()
    words = isa.pack_words(cut)
    np.testing.assert_array_equal(isa.unpack_words(words), cut)
    word, lane = divmod(channels - 1, lanes)
    assert bool(words[0, word, lane // 8] >> (lane % 8) & 1) == bits[0, -1]


# Passes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "bits"), ENCODINGS)
@pytest.mark.parametrize("activation_planes", [1, 3, 8])
def test_passes_weigh_each_pair_of_planes_by_its_significance(encoding, bits, activation_planes):
    planes = isa.weight_planes(encoding, bits)
    passes = isa.schedule_passes([WeightPlanes(planes, 0, 5, activation_planes)])
    top = activation_planes - 1  # bit of the codes that is loaded first
    found = {
        (entry.weight_offset // 5, top - entry.plane): coefficient
        for entry, coefficient in zip(passes, isa.pass_coefficients(passes), strict=True)
    }
    assert len(passes) == len(planes) * activation_planes
    assert passes[0].doubles == 0
    assert all(entry.base == 5 * entry.plane for entry in passes)
    assert found == {
        (i, j): (-1 if negate else 1) << (significance + j)
        for i, (significance, negate) in enumerate(planes)
        for j in range(activation_planes)
    }


@pytest.mark.parametrize("shift", [0, 1, 4, 7])
@pytest.mark.parametrize(("encoding", "bits"), [("signed", 3), ("ternary", 2)])
def test_a_residual_addend_is_weighed_by_its_shift(encoding, bits, shift):
    main, addend = isa.weight_planes("odd", 2), isa.weight_planes(encoding, bits)
    passes = isa.schedule_passes(
        [WeightPlanes(main, 0, 6, 3), WeightPlanes(addend, 12, 2, 4, first_plane=3, base=18, shift=shift)]
    )
    scales = isa.pass_coefficients(passes)
    found = {(entry.weight_offset, entry.plane): (scale, entry.base)
             for entry, scale in zip(passes, scales, strict=True)}  # fmt: skip
    # Plane n of the window holds bit 2 - n of the input's codes, or bit 6 - n of the residual's.
    expected = {(6 * i, n): (1 << (significance + 2 - n), 6 * n)
                for i, (significance, _) in enumerate(main) for n in range(3)}  # fmt: skip
    expected |= {
        (12 + 2 * i, n): ((-1 if negate else 1) << (significance + 6 - n + shift), 18 + 2 * (n - 3))
        for i, (significance, negate) in enumerate(addend)
        for n in range(3, 7)
    }
    assert len(passes) == len(expected)
    assert found == expected


def test_passes_of_a_basis_run_weight_planes_outside_and_never_double():
    passes = isa.schedule_passes([WeightPlanes(isa.weight_planes("basis", 3), 0, 2, 2)], horner=False)
    bits = [(entry.weight_offset, 1 - entry.plane) for entry in passes]
    assert bits == [(2 * i, j) for i in range(3) for j in range(2)]
    assert all(entry.base == 2 * entry.plane for entry in passes)
    assert not any(entry.doubles or entry.negate for entry in passes)


@pytest.mark.parametrize(("encoding", "bits"), ENCODINGS)
@pytest.mark.parametrize("activation_planes", [1, 3, 8])
def test_passes_begin_with_the_planes_that_are_loaded_first(encoding, bits, activation_planes):
    """No plane is computed before all that are loaded before it have been."""
    passes = isa.schedule_passes([WeightPlanes(isa.weight_planes(encoding, bits), 0, 5, activation_planes)])
    assert list(dict.fromkeys(entry.plane for entry in passes)) == list(range(activation_planes))


@given(st.integers(0, (1 << 14) - 1), st.integers(0, 15), st.integers(0, 1023), st.integers(0, 7), st.booleans())
def test_pass_words_are_read_back(offset, plane, base, doubles, negate):
    entry = Pass(offset, plane, base, doubles, negate)
    assert 0 <= entry.encode() < 1 << 32
    assert Pass.decode(entry.encode()) == entry


@given(st.integers(0, 2**32 - 1))
def test_every_word_is_a_pass(word):
    assert Pass.decode(word).encode() == word


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_offset": 1 << 14}, "starts 16384 words into its tile, at most 16383 fit"),
        ({"plane": 16}, "plane 16 of a window, expected at most 15"),
        ({"base": 1024}, "starts at word 1024 of the window buffer, expected at most 1023"),
        ({"doubles": 8}, "falls by 8 between passes, at most 7 fit"),
    ],
)
def test_passes_out_of_range_are_refused(changes, message):
    entry = Pass(0, 0, 0, 0, False)
    with pytest.raises(BitwrightError, match=message):
        dataclasses.replace(entry, **changes).encode()


# Descriptors ----------------------------------------------------------------------------------------------------------

RICH = dataclasses.replace(isa.preset("edge"), coefficient_bits=8, weight_stream=True, codebook_bits=4)
"""An array with everything."""


@given(st.data())
@settings(max_examples=50)
def test_descriptors_are_read_back(data):
    layers = data.draw(st.lists(descriptors(RICH), min_size=1, max_size=3))
    for index, layer in enumerate(layers):
        flags = layer.fields["flags"] & ~isa.FLAG_LAST | (isa.FLAG_LAST if index == len(layers) - 1 else 0)
        layers[index] = dataclasses.replace(layer, fields={**layer.fields, "flags": flags})
    words = np.concatenate([layer.encode(RICH) for layer in layers])
    assert len(words) == sum(layer.words for layer in layers)
    assert isa.decode_descriptors(words, RICH) == layers
    for size in (isa.HEADER_WORDS - 1, len(words) - 1):
        with pytest.raises(BitwrightError, match="Descriptors end"):
            isa.decode_descriptors(words[:size], RICH)


def test_fields_lie_side_by_side_in_the_header():
    used = np.zeros((isa.HEADER_WORDS, 32), int)
    for field in isa.descriptor_fields(RICH):
        word, bit = isa.FIELD_PLACES[field.name]
        used[word, bit : bit + field.bits] += 1
        assert field.width <= field.bits
        assert (field.low < 0) == field.signed
    assert used.max() == 1
    assert used.reshape(-1)[: used.sum()].all()


ONE = (Pass(0, 0, 0, 0, False),)


def test_every_field_out_of_range_is_named():
    for spec in (RICH, isa.preset("tiny")):
        good = Descriptor(fields=header(), passes=ONE)
        assert len(good.encode(spec)) == isa.HEADER_WORDS + 1
        for field in isa.descriptor_fields(spec):
            for value in (field.low - 1, field.high + 1):
                with pytest.raises(
                    BitwrightError,
                    match=f"field {field.name} is {value}, this array accepts {field.low} to {field.high}",
                ):
                    dataclasses.replace(good, fields={**good.fields, field.name: value}).encode(spec)


@pytest.mark.parametrize(
    ("changes", "passes", "message"),
    [
        ({"run_granules": 1600, "window_length": 100, "activation_planes": 3}, 1, "300 words over all"),
        ({"run_granules": 17}, 1, "a plane of a window has 1 words .* its runs have 2 and 0"),
        ({"residual_planes": 1}, 1, "one of its residual 0, its runs have 1 and 1"),
        ({"residual_length": 1}, 1, "one of its residual 1, its runs have 1 and 0"),
        ({}, 2, "2 passes, its header says 1"),
    ],
)
def test_windows_and_pass_counts_are_checked(changes, passes, message):
    with pytest.raises(BitwrightError, match=message):
        Descriptor(fields=header(**changes), passes=ONE * passes).encode(RICH)


CODED = {"index_planes": 2, "decoded_planes": 3, "plain_words": 1, "row_tiles": 2, "run_granules": 33}
CODED |= {"window_length": 3, "stream_words": 2 * (1 + 2 * 3)}


@pytest.mark.parametrize("changes", [{"stream_words": 13}, {"row_tiles": 1}, {"plain_words": 2}, {"decoded_planes": 0}])
def test_a_coded_stream_has_the_words_of_its_row_tiles(changes):
    Descriptor(fields=header(**CODED), passes=ONE).encode(RICH)
    with pytest.raises(BitwrightError, match=r"streams \d+ words of indices, decoded to \d planes; its row tiles have"):
        Descriptor(fields=header(**CODED | changes), passes=ONE).encode(RICH)


def test_a_coded_stream_starts_with_its_tables():
    coded = Descriptor(fields=header(**CODED, weight_base=7, weight_tile_stride=100), passes=ONE)
    assert coded.stream_beats(RICH) == 3 + 14 * RICH.rows * RICH.derived.chunks
    assert coded.stream_addresses().tolist() == [*range(7, 17), *range(107, 117)]
    stored = Descriptor(fields=header(stream_words=14, weight_base=7), passes=ONE)
    assert stored.stream_beats(RICH) == 14 * RICH.rows * RICH.derived.chunks
    assert stored.stream_addresses().tolist() == list(range(7, 21))
    assert Descriptor(fields=header(), passes=ONE).stream_cycles(RICH) == 0


def test_what_is_not_coded_needs_nothing_of_it():
    """An array without a decoder refuses indices, and does not look at the rest."""
    array = dataclasses.replace(RICH, codebook_bits=0)
    Descriptor(fields=header(plain_words=0xFFFF, decoded_planes=0xFF), passes=ONE).encode(array)
    with pytest.raises(BitwrightError, match="field index_planes is 2, this array accepts 0 to 0"):
        Descriptor(fields=header(**CODED), passes=ONE).encode(array)


def test_unknown_fields_have_no_value():
    layer = Descriptor(fields=header(), passes=ONE)
    assert layer.images == 1
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Pass(0, 3, 12, 0, False), "computes plane 3 of a window, which has 3 of them"),
        (Pass(0, 1, 4, 0, False), "finds plane 1 at word 4 of the window buffer, it starts at word 5"),
        (Pass(0, 2, 5, 0, False), "finds plane 2 at word 5 of the window buffer, it starts at word 10"),
    ],
)
def test_passes_are_over_planes_of_the_window(entry, message):
    """Two planes of five words, then one plane of a residual."""
    fields = {"run_granules": 65, "window_length": 5, "activation_planes": 2}
    fields |= {"residual_planes": 1, "residual_length": 1}
    Descriptor(fields=header(**fields), passes=(Pass(0, 2, 10, 0, False),)).encode(RICH)
    with pytest.raises(BitwrightError, match=message):
        Descriptor(fields=header(**fields), passes=(entry,)).encode(RICH)


def test_sums_double_at_most_as_often_as_the_scheduler_can_count():
    """It merges the doublings of passes that it leaves out."""
    fine = (Pass(0, 0, 0, 0, False), *(Pass(0, 0, 0, 7, False),) * 4, Pass(0, 0, 0, 3, False))
    Descriptor(fields=header(passes=6), passes=fine).encode(RICH)
    with pytest.raises(BitwrightError, match="sums double 32 times, at most 31"):
        Descriptor(fields=header(passes=6), passes=(*fine[:-1], Pass(0, 0, 0, 4, False))).encode(RICH)


def loads(runs, granules, chunk, word):
    """Steps that read the runs of a plane, and one more if the last chunk fills a word and begins the next."""
    steps, filled = 0, 0
    straddled = False
    for _ in range(runs):
        left = granules
        while left:
            count = min(chunk, left)
            left -= count
            steps += 1
            straddled = filled + count > word
            filled = (filled + count) % word
    return steps + straddled


@given(st.data())
def test_a_group_is_loaded_chunk_by_chunk(data):
    layer = data.draw(descriptors(RICH))
    word, chunk = RICH.derived.granules, layer.chunk_granules
    runs = layer.kernel_height * layer.kernel_width
    planes = [loads(runs, layer.run_granules, chunk, word)] * layer.activation_planes
    planes += [loads(1, layer.residual_granules, chunk, word)] * layer.residual_planes
    assert layer.plane_loads(RICH) == [steps * RICH.columns_per_copy for steps in planes]
    assert layer.group_loads(RICH) == sum(planes) * RICH.columns_per_copy


@pytest.mark.parametrize(
    ("planes", "residual_planes", "bits"),
    [(1, 0, [0]), (4, 0, [3, 2, 1, 0]), (1, 1, [0, 1]), (3, 2, [2, 1, 0, 4, 3]), (2, 8, [1, 0, *range(9, 1, -1)])],
)
def test_planes_are_loaded_from_the_most_significant_down(planes, residual_planes, bits):
    layer = Descriptor(fields=header(activation_planes=planes, residual_planes=residual_planes), passes=())
    assert [layer.code_bit(plane) for plane in range(planes + residual_planes)] == bits


@pytest.mark.parametrize(("planes", "at_once", "steps"), [(1, 1, 1), (8, 1, 8), (1, 4, 1), (5, 4, 2), (8, 4, 2)])
def test_the_drain_takes_planes_at_once(planes, at_once, steps):
    spec = ArraySpec(rows=4, lanes=128, drain_planes=at_once)
    assert Descriptor(fields=header(output_planes=planes), passes=()).drain_steps(spec) == steps
    raw = Descriptor(fields=header(output_planes=planes, flags=isa.FLAG_RAW), passes=())
    assert raw.drain_steps(spec) == spec.rows


# Thresholds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "bits"), [(-(1 << 17), 1 << 17), (-1, (1 << 18) - 1), (0, 0), (99, 99)])
def test_thresholds_are_two_s_complement(value, bits):
    spec = ArraySpec(accumulator_width=18)
    assert isa.encode_thresholds(np.array([[value]]), np.array([3], np.uint8), spec).tolist() == [[3, bits]]


@pytest.mark.parametrize("planes", range(1, 9))
def test_a_walk_down_the_search_tree_counts_the_thresholds_reached(planes):
    spec = ArraySpec(accumulator_width=18)
    thresholds = np.cumsum(np.arange(1, 1 << planes))[None] - 40
    [tree] = isa.encode_thresholds(thresholds, np.zeros(1, np.uint8), spec).astype(int)
    for value in range(thresholds.min() - 1, thresholds.max() + 2):
        node = 1
        for _ in range(planes):
            node = 2 * node + (value >= tree[node] - (tree[node] >> 17 << 18))
        assert node - (1 << planes) == (value >= thresholds).sum()
    values, flags = isa.decode_thresholds(tree[None], spec)
    np.testing.assert_array_equal(values, thresholds)
    assert flags == [0]
