import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw import isa
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import GRANULE, ArraySpec, Encoding, Pass, preset
from bitwright.hw.plan import without_zero_planes
from bitwright.hw.planner import plan
from programs import clear_planes, conv, linear, random_program, shapes
from strategies import networks, planned

SPEC = preset("demo")
RICH = dataclasses.replace(SPEC, coefficient_bits=8)
CODED = dataclasses.replace(SPEC, weight_stream=True, codebook_bits=4, weight_depth=256)


def small(**options):
    """An array of four rows."""
    return ArraySpec(rows=4, columns=1, lanes=32, drain_planes=1, **options)


def zero_plane_passes(bits, zero, *, encoding: Encoding = "signed", input_bits=2, channels=4, **options):
    """(weight plane, plane of the window, doublings) of each pass that weights without some planes leave."""
    array = small(zero_skip="skip", **options)
    layers = [linear(channels, weight_encoding=encoding, weight_bits=bits)]
    result = plan(shapes((3, 1, 1), layers), array, input_bits=input_bits)
    weights = np.full((channels, 3), (1 << bits) - 1 if encoding == "unsigned" else -1)
    weights = clear_planes(weights, encoding, bits, zero)
    program = result.assemble([weights], [], np.ones(channels), np.zeros(channels))
    return [(entry.weight_offset, input_bits - 1 - entry.plane, entry.doubles) for entry in program.parsed[0].passes]


def test_passes_over_planes_of_zeros_are_left_out():
    # A window is one word, so that a plane's address is its number.
    assert zero_plane_passes(3, 0b000) == [(2, 1, 0), (1, 1, 1), (2, 0, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1)]
    assert zero_plane_passes(3, 0b100) == [(1, 1, 0), (0, 1, 1), (1, 0, 0), (0, 0, 1)]
    assert zero_plane_passes(3, 0b010) == [(2, 1, 0), (2, 0, 1), (0, 1, 1), (0, 0, 1)]
    # The last pass does the doublings that are left.
    assert zero_plane_passes(3, 0b001) == [(2, 1, 0), (1, 1, 1), (2, 0, 0), (1, 0, 1), (0, 0, 1)]
    assert zero_plane_passes(3, 0b011) == [(2, 1, 0), (2, 0, 1), (0, 0, 2)]
    assert zero_plane_passes(2, 0b01, encoding="ternary") == [(1, 1, 0), (1, 0, 1)]
    # Of a layer without any weight, one pass stays.
    assert zero_plane_passes(3, 0b111) == [(0, 0, 0)]


def test_planes_of_zeros_that_count_are_kept():
    """A clear bit of an offset encoding is -1."""
    kept = zero_plane_passes(2, 0b01, encoding="odd")
    assert kept == zero_plane_passes(2, 0, encoding="odd")
    assert len(kept) == 4


def test_no_pass_doubles_more_than_its_word_can_say():
    planes = zero_plane_passes(8, 0b01111110, encoding="unsigned", input_bits=1)
    assert planes == [(7, 0, 0), (0, 0, 7)]
    array = small(zero_skip="skip")
    layer = plan(shapes((3, 1, 1), [linear(4, weight_bits=3)]), array, input_bits=1).descriptors[0]
    words = np.zeros((4, 3, 4), np.uint8)
    words[:, [0, 2]] = 1
    for doubles, offsets in ((6, [2, 0]), (7, [2, 1, 0])):
        passes = (Pass(2, 0, 0, 0, True), Pass(1, 0, 0, doubles, False), Pass(0, 0, 0, 1, False))
        left = without_zero_planes(dataclasses.replace(layer, passes=passes), words, array).passes
        assert [entry.weight_offset for entry in left] == offsets
        assert sum(entry.doubles for entry in left) == doubles + 1


def test_arrays_that_do_not_skip_keep_all_passes():
    result = plan(shapes((3, 1, 1), [linear(4)]), small(zero_skip="gate"), input_bits=2)
    program = result.assemble([np.zeros((4, 3), np.int64)], [], np.ones(4), np.zeros(4))
    assert [layer.passes for layer in program.parsed] == [layer.passes for layer in result.descriptors]


def test_each_part_leaves_out_its_own_planes_of_zeros():
    array = small(zero_skip="skip", weight_stream=True, weight_depth=4)
    result = plan(shapes((3, 1, 1), [linear(12)]), array, input_bits=1)
    assert len(result.parts) == 3
    weights = np.repeat([[1], [-2], [-1]], 4, axis=0) * np.ones(3, np.int64)
    program = result.assemble([weights], [], np.ones(12), np.zeros(12))
    assert [[entry.weight_offset for entry in part.passes] for part in program.parsed] == [[0], [1, 0], [1, 0]]


def test_a_codebook_is_streamed_with_the_indices_of_the_weights():
    rng = np.random.default_rng(0)
    codebook = (5, -8, 2, 0, 7, -8)
    layers = [conv(12, 3, padding=1, weight_bits=4, codebook=codebook), linear(3, codebook=(1,))]
    result = plan(shapes((5, 4, 4), layers), CODED, input_bits=2)
    assert [info.codebook for info in result.layers] == [(-8, 0, 2, 5, 7), (1,)]
    weights = [rng.choice(codebook, (12, 5, 3, 3)), np.ones((3, 192), int)]
    thresholds = [(np.zeros((12, 3), np.int64), np.zeros(12, np.uint8))]
    program = result.assemble(weights, thresholds, np.ones(3), np.zeros(3))
    layer = result.descriptors[0]
    assert (layer.index_planes, layer.decoded_planes, layer.row_tiles, layer.plain_words) == (3, 4, 2, 0)
    tables, beats = np.split(program.stream[: layer.stream_beats(CODED)], [4])
    integers = [sum((int(table) >> n & 1) << plane for plane, table in enumerate(tables)) for n in range(16)]
    assert integers[:5] == [entry % 16 for entry in (-8, 0, 2, 5, 7)]
    assert integers[8:] == integers[:8]
    words = beats.view(np.uint8).reshape(8, 2, layer.window_length, 3, -1)
    planes = isa.unpack_words(words).astype(int)
    indices = (planes * np.array([4, 2, 1])[:, None]).sum(3).reshape(8, 2, -1)  # rows, tiles, lanes of the window
    for channel in range(12):
        taps = indices[channel % 8, channel // 8][:45].reshape(3, 3, 5)  # the host packs the first layer's windows
        np.testing.assert_array_equal(np.array(integers)[taps], weights[0][channel].transpose(1, 2, 0) % 16)


def test_weights_outside_the_codebook_are_refused():
    result = plan(shapes((1, 2, 2), [conv(3, 1, codebook=(-2, 1)), linear(2)]), CODED, input_bits=1)
    thresholds = [(np.zeros((3, 3), np.int64), np.zeros(3, np.uint8))]
    weights = [np.array([1, -2, 1]).reshape(3, 1, 1, 1), np.ones((2, 12), int)]
    assert len(result.assemble(weights, thresholds, np.ones(2), np.zeros(2)).stream)
    weights[0][2] = -1
    with pytest.raises(
        BitwrightError, match=r"^Layer 'layer0': it has the weight -1, expected .* its codebook, -2, 1\.$"
    ):
        result.assemble(weights, thresholds, np.ones(2), np.zeros(2))


def words_to_bits(words: np.ndarray) -> np.ndarray:
    """Lanes of memory words, side by side."""
    return isa.unpack_words(words).reshape(*words.shape[:-2], -1)


@given(networks(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_weights_meet_the_activations_that_they_belong_to(network, seed):
    """For each weight set, the lane at which it lies is the lane of its activation in the packed window."""
    planned(network)
    program = random_program(
        np.random.default_rng(seed),
        network.spec,
        network.layers,
        in_shape=network.in_shape,
        input_bits=network.input_bits,
        batch=network.batch,
    )
    spec = network.spec
    rng = np.random.default_rng(seed)
    beats = 0
    for number, layer in enumerate(program.parsed):
        info = program.layers[program.parts[number]]
        tiles = layer.row_tiles
        if layer.index_planes:  # an index, of 0 too, stands for an integer that may be anything
            beats += layer.stream_beats(spec)
            continue
        if layer.stream_words:
            size = spec.rows * layer.stream_words * spec.derived.chunks
            flat = program.stream[beats : beats + size].view(np.uint8)
            beats += size
            memory = flat.reshape(spec.rows, layer.stream_words, -1)
        else:
            memory = program.weights[:, layer.weight_base : layer.weight_base + tiles * layer.weight_tile_stride]
        # Rows beyond the last channel have no weights.
        for row in range(layer.channels % spec.rows or spec.rows, spec.rows):
            last = memory[row, (tiles - 1) * layer.weight_tile_stride : tiles * layer.weight_tile_stride]
            assert not last.any()
        # Nor have lanes beyond the window.
        used = GRANULE * layer.window_granules
        tile, row = rng.integers(tiles), rng.integers(spec.rows)
        for plane in range(info.weight_planes):
            start = tile * layer.weight_tile_stride + plane * layer.window_length
            lanes = words_to_bits(memory[row : row + 1, start : start + layer.window_length])[0]
            assert not lanes[used:].any()
    assert beats == len(program.stream)


def test_every_weight_lies_where_the_layout_says():
    """One weight after the other of a small network is set, and found at its place in the memory."""
    layers = [conv(6, 1, weight_bits=1), conv(9, (2, 3), weight_bits=2), linear(2)]
    result = plan(shapes((3, 3, 4), layers), SPEC, input_bits=1)
    numbers = np.ones(2), np.zeros(2)
    empty = [np.zeros((6, 3, 1, 1), int), np.zeros((9, 6, 2, 3), int), np.zeros((2, 36), int)]
    thresholds = [(np.zeros((rows, 3), np.int64), np.zeros(rows, np.uint8)) for rows in (6, 9)]
    layer = result.descriptors[1]
    rng = np.random.default_rng(0)
    for _ in range(40):
        channel, source, y, x = (int(rng.integers(size)) for size in empty[1].shape)
        weights = [values.copy() for values in empty]
        weights[1][channel, source, y, x] = -2  # of its two planes the upper one
        program = result.assemble(weights, thresholds, *numbers)
        [[row, word, byte]] = np.argwhere(program.weights)
        lane = 8 * int(byte) + int(program.weights[row, word, byte]).bit_length() - 1
        tile = channel // SPEC.rows
        assert row == channel % SPEC.rows
        granule, bit = (y * 3 + x) * 2 + source // GRANULE, source % GRANULE
        offset = granule * GRANULE + bit
        first = layer.weight_base + tile * layer.weight_tile_stride + layer.window_length
        assert (word, lane) == (first + offset // SPEC.lanes, offset % SPEC.lanes)


def test_grouped_weights_see_their_own_channels():
    """Weights with an offset become two's complement: a weight that is not there counts nothing."""
    bipolar = {"weight_encoding": "bipolar", "weight_bits": 1}
    layers = [conv(8, 1), conv(8, 1, groups=4, **bipolar), linear(2)]
    result = plan(shapes((3, 1, 1), layers), SPEC, input_bits=1)
    weights = [np.zeros((8, 3, 1, 1), int), np.ones((8, 2, 1, 1), int), np.zeros((2, 8), int)]
    weights[1][1::2] = -1
    thresholds = [(np.zeros((8, 3), np.int64), np.zeros(8, np.uint8))] * 2
    program = result.assemble(weights, thresholds, np.ones(2), np.zeros(2))
    [layer] = [layer for part, layer in zip(result.parts, program.parsed, strict=True) if part.layer == 1]
    assert not layer.flags & isa.FLAG_OFFSET
    planes = [
        words_to_bits(program.weights[:, layer.weight_base + plane : layer.weight_base + plane + 1])[:, :8]
        for plane in range(2)
    ]
    values = planes[0].astype(int) - 2 * planes[1]
    expected = np.zeros((8, 8), int)
    for row in range(8):
        expected[row, row // 2 * 2 : row // 2 * 2 + 2] = 1 - 2 * (row % 2)
    np.testing.assert_array_equal(values, expected)


def test_residual_weights_follow_those_of_the_input():
    layers = [conv(5, 1, weight_bits=1), conv(8, 3, padding=1, residual={"source": 0, "weight_encoding": "ternary"})]
    result = plan(shapes((3, 2, 2), [*layers, linear(2)]), SPEC, input_bits=1)
    weights = [np.zeros((5, 3, 1, 1), int), np.zeros((8, 5, 3, 3), int), np.zeros((2, 32), int)]
    thresholds = [(np.zeros((rows, 3), np.int64), np.zeros(rows, np.uint8)) for rows in (5, 8)]
    numbers = np.ones(2), np.zeros(2)
    addend = np.zeros((8, 5), int)
    addend[3, 4], addend[6, 0] = 1, -1
    program = result.assemble(weights, thresholds, *numbers, residual_weights={"layer1": addend})
    layer = result.descriptors[1]
    main = layer.window_length * 2
    places = [(int(row), int(word) - layer.weight_base) for row, word, _ in np.argwhere(program.weights)]
    assert sorted(places) == [(3, main), (6, main + 1)]
    assert [int(value) for value in program.weights[program.weights > 0]] == [1 << 4, 1]
    for given_weights in ({}, {"layer1": addend[:7]}, {"layer1": addend[:, :4]}):
        with pytest.raises(BitwrightError, match=r"'layer1': it adds a residual with .*, expected .*\(8, 5\)"):
            result.assemble(weights, thresholds, *numbers, residual_weights=given_weights)


def test_thresholds_and_coefficients_lie_tile_by_tile():
    layers = [conv(10, 1, weight_encoding="basis", weight_bits=2, output_planes=2), linear(2)]
    result = plan(shapes((3, 2, 2), layers), RICH, input_bits=3)
    weights = [np.zeros((10, 3, 1, 1), int), np.zeros((2, 40), int)]
    values = np.arange(30).reshape(10, 3) - 15
    flags = (np.arange(10) % 4).astype(np.uint8)
    coefficients = np.arange(60).reshape(10, 2, 3) - 30
    numbers = np.ones(2), np.zeros(2)
    program = result.assemble(weights, [(values, flags)], *numbers, coefficients={"layer0": coefficients})
    layer = program.parsed[0]
    for channel in range(10):
        tile, row = divmod(channel, RICH.rows)
        entries = program.thresholds[row, layer.threshold_base + 4 * tile :][:4].astype(np.int64)
        low, middle, high = values[channel] & (1 << RICH.accumulator_width) - 1
        assert entries.tolist() == [flags[channel], middle, low, high]
    for channel, i, j in np.ndindex(10, 2, 3):
        tile, row = divmod(channel, RICH.rows)
        # Pass 3·i + j computes weight plane i and activation plane j, which is plane 2 - j of the window.
        entry = layer.passes[3 * i + j]
        assert (entry.weight_offset, entry.plane) == (i * layer.window_length, 2 - j)
        entry = program.coefficients[row, layer.coefficient_base + tile * 6 + 3 * i + j]
        assert entry == coefficients[channel, i, j]
    # Rows beyond the last channel never reach a threshold.
    least = RICH.derived.accumulator_range[0] & (1 << RICH.accumulator_width) - 1
    assert (program.thresholds[2:, 4:8] == [isa.THRESHOLD_NEGATE, least, least, least]).all()
    for wrong, message in [
        ({}, r"'layer0' has no coefficients, expected shape \(10, 2, 3\)"),
        ({"layer0": coefficients[:, :1]}, r"'layer0' has coefficients of shape \(10, 1, 3\), expected .*\(10, 2, 3\)"),
        (
            {"layer0": coefficients * 5},
            r"coefficients from -150 to 145, this array takes -128 to 127 \(coefficient_bits",
        ),
    ]:
        with pytest.raises(BitwrightError, match=message):
            result.assemble(weights, [(values, flags)], *numbers, coefficients=wrong)


def test_coefficients_of_an_addend_follow_those_of_the_input():
    spec = dataclasses.replace(RICH, residual=True)
    addend = {"source": 0, "weight_encoding": "signed", "weight_bits": 2}
    layers = [
        conv(5, 1, output_planes=3),
        conv(6, 1, weight_encoding="bipolar_basis", weight_bits=2, output_planes=1, residual=addend),
        linear(2),
    ]
    result = plan(shapes((3, 2, 2), layers), spec, input_bits=3)
    weights = [np.zeros((5, 3, 1, 1), int), np.zeros((6, 5, 1, 1), int), np.zeros((2, 24), int)]
    empty = [(np.zeros((5, 7), int), np.zeros(5, np.uint8)), (np.zeros((6, 1), int), np.zeros(6, np.uint8))]
    own, added = np.arange(36).reshape(6, 2, 3), -np.arange(36).reshape(6, 2, 3)
    given = {"residual_weights": {"layer1": np.zeros((6, 5), int)}, "coefficients": {"layer1": own}}
    program = result.assemble(weights, empty, np.ones(2), np.zeros(2), residual_coefficients={"layer1": added}, **given)
    layer = program.parsed[1]
    for channel, number, i, j in np.ndindex(6, 2, 2, 3):
        tile, row = divmod(channel, spec.rows)
        index = 6 * number + 3 * i + j
        assert layer.code_bit(layer.passes[index].plane) == 3 * number + j
        entry = program.coefficients[row, layer.coefficient_base + tile * 12 + index]
        assert entry == (own, added)[number][channel, i, j]
    with pytest.raises(BitwrightError, match="'layer1' has no coefficients of its residual, expected shape"):
        result.assemble(weights, empty, np.ones(2), np.zeros(2), **given)
    with pytest.raises(BitwrightError, match="has coefficients of its residual from -350 to 0, this array takes -128"):
        result.assemble(weights, empty, np.ones(2), np.zeros(2), residual_coefficients={"layer1": added * 10}, **given)


def test_weights_and_thresholds_must_be_what_the_plan_says():
    result = plan(shapes((1, 2, 2), [conv(3, 1), linear(2)]), ArraySpec(), input_bits=1)
    weights = [np.ones((3, 1, 1, 1), int), np.ones((2, 12), int)]
    thresholds = [(np.zeros((3, 3), np.int64), np.zeros(3, np.uint8))]
    numbers = (np.ones(2), np.zeros(2))
    assert result.assemble(weights, thresholds, *numbers).layers[0].macs == 12
    with pytest.raises(BitwrightError, match="'layer0': Value 2 is not one of the 2-bit signed"):
        result.assemble([2 * weights[0], weights[1]], thresholds, *numbers)
    with pytest.raises(BitwrightError, match=r"'layer0' has weights of shape \(3, 2, 1, 1\), expected .* 3 channels"):
        result.assemble([np.ones((3, 2, 1, 1), int), weights[1]], thresholds, *numbers)
    with pytest.raises(BitwrightError, match=r"'layer0' has thresholds of shape \(3, 2\)"):
        result.assemble(weights, [(np.zeros((3, 2), np.int64), np.zeros(3, np.uint8))], *numbers)
