import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bitwright.hw import isa
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import BANK, GRANULE, PRESETS, ArraySpec, Descriptor, granules_of, preset
from bitwright.hw.plan import Plan
from bitwright.hw.planner import plan
from bitwright.hw.shapes import LayerShape, ResidualShape
from programs import conv, linear, shapes
from strategies import networks, planned, specs

SPEC = preset("demo")
RICH = dataclasses.replace(SPEC, coefficient_bits=8)


# Where everything lies ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Activations:
    """Where the activations of a layer, or the image, lie by the layout."""

    base: int
    stride: int
    planes: int
    images: int
    shape: tuple[int, int, int]

    @property
    def pixel(self) -> int:
        return granules_of(self.shape[0])

    def position(self, image: int, y: int, x: int, plane: int = 0) -> int:
        _, height, width = self.shape
        return self.base + plane * self.stride + ((image * height + y) * width + x) * self.pixel

    def granules(self) -> set[int]:
        size = self.images * self.shape[1] * self.shape[2] * self.pixel
        return {self.base + plane * self.stride + number for plane in range(self.planes) for number in range(size)}


def stored(result: Plan) -> list[Activations | None]:
    """The image and the output of each layer but the last, in the order of sources from -1 on."""
    height, width, channels = result.input.stored_shape
    image = Activations(
        result.input.base, result.input.plane_stride, result.input.bits, result.batch, (channels, height, width)
    )
    found: list[Activations | None] = [image]
    for number, info in enumerate(result.layers[:-1]):
        first = result.descriptors[[part.layer for part in result.parts].index(number)]
        stride = first.output_plane_stride
        found.append(Activations(first.output_base, stride, info.output_planes, result.batch, info.out_shape))
    return [*found, None]


def windows(layer: Descriptor, plane: int = 0) -> Iterator[list[int | None]]:
    """Positions of the granules of a plane of each window, None where they are zero, as a descriptor says."""
    levels = (layer.images, layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)
    for image, output_y, output_x, pool_y, pool_x in itertools.product(*map(range, levels)):
        across = output_x * layer.output_x_step + pool_x * layer.pool_x_step
        start = layer.start_position + image * layer.image_step + across + plane * layer.input_plane_stride
        start += output_y * layer.output_y_step + pool_y * layer.pool_y_step
        y = layer.start_y + output_y * layer.output_y_rows + pool_y * layer.pool_y_rows
        window: list[int | None] = []
        for tap_y, tap_x in itertools.product(range(layer.kernel_height), range(layer.kernel_width)):
            x = layer.start_x + across + tap_x * layer.tap_x_step
            row = start + tap_y * layer.tap_y_step + tap_x * layer.tap_x_step
            for number in range(layer.run_granules):
                inside = 0 <= y + tap_y * layer.tap_y_rows < layer.input_height and 0 <= x + number < layer.input_width
                window.append((row + number) % (1 << 32) if inside else None)
        yield window


def expected_windows(
    shape: LayerShape, source: Activations, granules: range, *, packed: bool, plane: int = 0
) -> Iterator[list[int | None]]:
    """Positions of the granules of each window as the layer's geometry says: row, column, channels of the part."""
    _, height, width = source.shape
    levels = (source.images, *shape.out_shape[1:], *shape.pool)
    for image, output_y, output_x, pool_y, pool_x in itertools.product(*map(range, levels)):
        y, x = output_y * shape.pool_stride[0] + pool_y, output_x * shape.pool_stride[1] + pool_x
        if packed:
            pixels = [(y, x)]
        elif shape.kind == "linear":
            pixels = list(itertools.product(range(height), range(width)))
        else:
            pixels = [
                (
                    y * shape.stride[0] - shape.padding[0] + tap_y * shape.dilation[0],
                    x * shape.stride[1] - shape.padding[1] + tap_x * shape.dilation[1],
                )
                for tap_y, tap_x in itertools.product(*map(range, shape.kernel))
            ]
        yield [
            source.position(image, row, column, plane) + granule if 0 <= row < height and 0 <= column < width else None
            for row, column in pixels
            for granule in (granules if shape.kind == "conv" else range(source.pixel))
        ]


@given(networks(), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_windows_are_those_of_the_geometry(network, plane):
    result = planned(network)
    layers, places = shapes(network.in_shape, network.layers), stored(result)
    for part, layer in zip(result.parts, result.descriptors, strict=True):
        info = result.layers[part.layer]
        source = places[info.source + 1]
        assert source is not None
        packed = part.layer == 0 and result.input.window is not None
        plane %= source.planes
        # The most significant plane is loaded first.
        bit = source.planes - 1 - plane
        wanted = expected_windows(layers[part.layer], source, part.granules, packed=packed, plane=bit)
        assert list(windows(layer, plane)) == list(wanted)
        assert layer.activation_planes == source.planes == info.input_planes


@given(networks())
@settings(max_examples=100, deadline=None)
def test_reads_deliver_the_granules_that_a_chunk_needs(network):
    """A read from a position delivers a word less the granules before it in its bank."""
    result = planned(network)
    granules, bank = network.spec.derived.granules, BANK // GRANULE
    for layer in result.descriptors:
        assert layer.chunk_granules in (granules, network.spec.derived.chunk_unaligned)
        starts = {window[0] for plane in range(layer.activation_planes) for window in runs(layer, plane)}
        for start in starts:
            for chunk in range(0, layer.run_granules, layer.chunk_granules):
                count = min(layer.chunk_granules, layer.run_granules - chunk)
                assert (start + chunk) % bank + count <= granules
        for start in residual_positions(layer):
            for chunk in range(0, layer.residual_granules, layer.chunk_granules):
                count = min(layer.chunk_granules, layer.residual_granules - chunk)
                assert (start + chunk) % bank + count <= granules


def runs(layer: Descriptor, plane: int) -> Iterator[list[int]]:
    """Positions of each run, whether it lies inside the image or not."""
    everywhere = {"input_height": 1 << 20, "input_width": 1 << 20, "start_y": 1 << 10, "start_x": 1 << 10}
    for window in windows(dataclasses.replace(layer, fields={**layer.fields, **everywhere}), plane):
        positions = [position for position in window if position is not None]
        assert len(positions) == len(window)
        for start in range(0, len(positions), layer.run_granules):
            yield positions[start : start + layer.run_granules]


def residual_positions(layer: Descriptor) -> Iterator[int]:
    """Where the residual pixel of each window starts, plane by plane."""
    levels = (layer.residual_planes, layer.images, layer.output_height, layer.output_width)
    for plane, image, y, x in itertools.product(*map(range, levels)):
        steps = image * layer.residual_image_step + y * layer.residual_y_step + x * layer.residual_x_step
        yield (layer.residual_base + plane * layer.residual_plane_stride + steps) % (1 << 32)


@given(networks(specs().filter(lambda spec: spec.residual)))
@settings(max_examples=150, deadline=None)
def test_residual_pixels_are_those_of_the_geometry(network):
    result = planned(network)
    layers, places = shapes(network.in_shape, network.layers), stored(result)
    for part, layer in zip(result.parts, result.descriptors, strict=True):
        shape, info = layers[part.layer], result.layers[part.layer]
        if shape.residual is None or info.residual_source is None:
            assert not layer.residual_planes
            continue
        addend = places[info.residual_source + 1]
        assert addend is not None
        assert layer.residual_planes == addend.planes == info.residual_planes
        assert layer.residual_granules == addend.pixel
        down, across = shape.residual.stride
        _, height, width = shape.out_shape
        pixels = [range(addend.planes - 1, -1, -1), *map(range, (network.batch, height, width))]
        positions = [
            addend.position(image, y * down, x * across, plane) for plane, image, y, x in itertools.product(*pixels)
        ]
        assert list(residual_positions(layer)) == positions
        assert set(positions) <= addend.granules()


@given(networks())
@settings(max_examples=150, deadline=None)
def test_nothing_is_written_over_what_is_still_read(network):
    result = planned(network)
    spec, places = network.spec, stored(result)
    reads = [{info.source, info.residual_source} - {None} for info in result.layers]
    for number, target in enumerate(places[1:-1]):
        assert target is not None
        kept = {source for later in reads[number:] for source in later if source < number}
        for source in kept:
            other = places[source + 1]
            assert other is not None
            assert not target.granules() & other.granules(), (number, source)
            # Nor do they share a word: where the host writes whole words, and for the sake of what a read delivers.
            words = {position // spec.derived.granules for position in other.granules()}
            assert not words & {position // spec.derived.granules for position in target.granules()}
    for place in places[:-1]:
        assert place is not None
        assert len(place.granules()) == place.planes * network.batch * place.shape[1] * place.shape[2] * place.pixel
        assert max(place.granules()) < spec.activation_depth * spec.derived.granules
        assert place.base % spec.derived.granules == 0
        assert (place.stride - spec.derived.plane_skew) % spec.derived.granules == 0


@given(networks())
@settings(max_examples=100, deadline=None)
def test_parts_write_each_channel_once(network):
    result = planned(network)
    rows = network.spec.rows
    for number, info in enumerate(result.layers):
        written: list[int] = []
        for part, layer in zip(result.parts, result.descriptors, strict=True):
            if part.layer != number:
                continue
            place = stored(result)[number + 1]
            first = part.tiles.start * rows
            assert layer.row_tiles == len(part.tiles)
            assert layer.raw == (place is None) == (number == len(result.layers) - 1)
            if place is None:
                assert (layer.output_base, layer.output_granules) == (first, info.out_shape[0])
            else:
                assert layer.output_base == place.base + first // GRANULE
                assert (layer.output_granules, layer.output_plane_stride) == (place.pixel, place.stride)
                assert layer.output_planes == place.planes
            assert (layer.output_height, layer.output_width) == info.out_shape[1:]
            assert layer.row_tiles == -(-layer.channels // rows)
            written += range(first, first + layer.channels)
        assert written == list(range(info.out_shape[0]))


def test_parts_of_a_layer_start_where_the_last_ended():
    """A depthwise convolution: each row tile sees its own channels."""
    network = [conv(32, 1), conv(32, 3, groups=32, padding=1), linear(3)]
    result = plan(shapes((3, 4, 4), network), SPEC, input_bits=4)
    depthwise = [(part, layer) for part, layer in zip(result.parts, result.descriptors, strict=True) if part.layer == 1]
    assert [part.tiles for part, _ in depthwise] == [range(tile, tile + 1) for tile in range(4)]
    assert [part.granules for part, _ in depthwise] == [range(2 * tile, 2 * tile + 2) for tile in range(4)]
    assert {layer.run_granules for _, layer in depthwise} == {2}
    assert {layer.window_length for _, layer in depthwise} == {-(-9 * 2 // SPEC.derived.granules)}
    # A grouped one, of two tiles a group.
    network = [conv(32, 1), conv(32, 3, groups=2), linear(3)]
    result = plan(shapes((3, 4, 4), network), SPEC, input_bits=4)
    grouped = [part for part in result.parts if part.layer == 1]
    assert [(part.tiles, part.granules) for part in grouped] == [(range(2), range(4)), (range(2, 4), range(4, 8))]


# Memories and passes --------------------------------------------------------------------------------------------------


def tile_words(layer: Descriptor, spec: ArraySpec) -> int:
    """Weight words of a row tile."""
    words = layer.plane_words(spec)
    offsets = {entry.weight_offset: words[entry.plane] for entry in layer.passes}
    taken = [offset + word for offset, count in offsets.items() for word in range(count)]
    assert sorted(taken) == list(range(len(taken)))
    return len(taken)


@given(networks())
@settings(max_examples=150, deadline=None)
def test_memories_are_handed_out_without_gaps(network):
    result = planned(network)
    spec = network.spec
    weights, thresholds, coefficients = [], [], []
    for layer in result.descriptors:
        words = tile_words(layer, spec)
        assert layer.weight_tile_stride == words
        if layer.index_planes:
            assert layer.stream_words == layer.row_tiles * layer.stream_tile_words
            assert words == layer.plain_words + layer.decoded_planes * layer.window_length
        elif layer.stream_words:
            assert layer.stream_words == layer.row_tiles * words
        else:
            weights += range(layer.weight_base, layer.weight_base + layer.row_tiles * words)
        if not layer.raw:
            size = 1 << layer.output_planes
            assert layer.threshold_base == -(-len(thresholds) // size) * size  # the next multiple of it
            thresholds = list(range(layer.threshold_base + layer.row_tiles * size))
        if layer.flags & isa.FLAG_COEFFICIENTS:
            first = layer.coefficient_base
            coefficients += range(first, first + layer.row_tiles * len(layer.passes))
    assert weights == list(range(result.weight_words))
    assert len(thresholds) == result.threshold_entries
    assert coefficients == list(range(result.coefficient_entries))
    assert result.weight_words <= spec.weight_depth
    assert result.threshold_entries <= spec.threshold_depth
    assert sum(layer.words for layer in result.descriptors) <= spec.descriptor_depth
    assert [bool(layer.flags & isa.FLAG_LAST) for layer in result.descriptors] == [False] * (
        len(result.descriptors) - 1
    ) + [True]


@given(networks())
@settings(max_examples=100, deadline=None)
def test_passes_are_all_pairs_of_planes(network):
    result = planned(network)
    layers = shapes(network.in_shape, network.layers)
    for part, layer in zip(result.parts, result.descriptors, strict=True):
        shape = layers[part.layer]
        planes = isa.weight_planes(*shape.stored_encoding)
        words, main, extra = layer.window_length, 0, len(planes) * layer.window_length
        if shape.codebook is not None:  # coded weights follow those of the residual
            main, extra = layer.plain_words, 0
        # Windows begin with the most significant planes of the input, and of the residual.
        top, residual_top = layer.activation_planes - 1, layer.activation_planes + layer.residual_planes - 1
        expected = {
            (main + i * words, top - j): (-1 if negate else 1) << (significance + j)
            for i, (significance, negate) in enumerate(planes)
            for j in range(layer.activation_planes)
        }
        if shape.residual is not None:
            addend = isa.weight_planes(shape.residual.weight_encoding, shape.residual.weight_bits)
            expected |= {
                (extra + i * layer.residual_length, residual_top - j): (-1 if negate else 1)
                << (significance + j + shape.residual.shift)
                for i, (significance, negate) in enumerate(addend)
                for j in range(layer.residual_planes)
            }
        if layer.flags & isa.FLAG_COEFFICIENTS:  # which say how much a pass counts; its sign stays
            expected = {place: 1 if scale > 0 else -1 for place, scale in expected.items()}
        scales = isa.pass_coefficients(layer.passes)
        found = {(entry.weight_offset, entry.plane): scale for entry, scale in zip(layer.passes, scales, strict=True)}
        assert found == expected
        assert len(layer.passes) == len(expected)


def test_streamed_layers_alternate_between_the_halves_of_the_memory():
    spec = dataclasses.replace(SPEC, weight_stream=True, weight_depth=64)
    layers = [conv(40, 3), conv(40, 3), conv(8, 1), linear(10)]
    result = plan(shapes((3, 7, 7), layers), spec, input_bits=8)
    assert len(result.parts) > len(layers)
    assert [layer.weight_base for layer in result.descriptors] == [
        32 * (number % 2) for number in range(len(result.descriptors))
    ]
    assert all(0 < layer.stream_words <= 32 for layer in result.descriptors)
    assert result.weight_words == 0
    # As many row tiles as fit: the next one would be too many.
    for number in range(len(layers)):
        parts = [part for part in result.parts if part.layer == number]
        words = [layer.weight_tile_stride for part, layer in zip(result.parts, result.descriptors, strict=True)
                 if part.layer == number]  # fmt: skip
        assert all((len(part.tiles) + 1) * count > 32 for part, count in zip(parts[:-1], words[:-1], strict=True))


CODED = dataclasses.replace(SPEC, weight_stream=True, codebook_bits=4, weight_depth=256)


def test_coded_weights_are_streamed_between_those_that_stay():
    layers = [conv(40, 3, codebook=(0, 1)), conv(40, 3), conv(8, 1, codebook=(1,)), linear(10, codebook=(-2, 0, 1))]
    result = plan(shapes((3, 7, 7), layers), CODED, input_bits=8)
    assert [part.layer for part in result.parts] == [0, 1, 2, 3]
    resident = result.descriptors[1]
    assert result.weight_words == resident.row_tiles * resident.weight_tile_stride
    assert (resident.stream_words, resident.weight_base, resident.index_planes) == (0, 0, 0)
    room = (256 - result.weight_words) // 2
    for number, (part, layer) in enumerate(zip(result.parts, result.descriptors, strict=True)):
        if part.layer != 1:
            assert layer.weight_base == result.weight_words + number % 2 * room
            assert 0 < layer.row_tiles * layer.weight_tile_stride <= room
            assert (layer.index_planes, layer.decoded_planes) == (2 if part.layer == 3 else 1, 2)
            assert layer.stream_words == layer.row_tiles * layer.index_planes * layer.window_length


def test_weights_that_would_leave_too_little_room_are_streamed_as_well():
    """A row tile of the coded layer takes 64 words: two of them fit beside the 10 that could stay, or alone."""
    layers = [conv(40, 3), linear(10, weight_bits=4, codebook=(0, 1))]
    beside, alone = (
        plan(shapes((4, 7, 7), layers), dataclasses.replace(CODED, weight_depth=depth), input_bits=2)
        for depth in (256, 128)
    )
    assert (beside.weight_words, alone.weight_words) == (10, 0)
    assert [bool(layer.stream_words) for layer in beside.descriptors] == [False, True, True]
    assert [layer.weight_base for layer in alone.descriptors] == [0, 64, 0]
    assert [bool(layer.index_planes) for layer in alone.descriptors] == [False, True, True]
    large = [conv(40, 3, weight_bits=8), conv(40, 3, weight_bits=8), linear(10, codebook=(0, 1))]
    result = plan(shapes((4, 7, 7), large), CODED, input_bits=2)
    assert result.weight_words == 0  # more than half of the memory would stay


def test_a_grouped_layer_adds_a_zero_to_its_codebook():
    options = {"groups": 2, "weight_encoding": "bipolar", "weight_bits": 1}
    result = plan(shapes((4, 3, 3), [conv(4, 1, codebook=(-1, 1), **options), linear(2)]), CODED, input_bits=1)
    assert result.layers[0].codebook == (-1, 0, 1)
    message = r"codebook of 17 integers, with the zero that a grouped convolution needs, this array takes 1 to 16"
    full = conv(4, 1, groups=2, weight_bits=8, codebook=tuple(range(1, 17)))
    with pytest.raises(BitwrightError, match=message):
        plan(shapes((4, 3, 3), [full, linear(2)]), CODED, input_bits=1)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (
            {"codebook": (0, 1)},
            {"codebook_bits": 0},
            r"has a codebook, this array has no decoder \(codebook_bits 0\); set",
        ),
        (
            {"codebook": tuple(range(-3, 2))},
            {"codebook_bits": 2},
            "has a codebook of 5 integers, this array takes 1 to 4",
        ),
        ({"codebook": ()}, {}, "has a codebook of 0 integers, this array takes 1 to 16"),
        ({"codebook": (0.5, 1)}, {}, "has 0.5 in its codebook, expected integers only"),
        (
            {"codebook": (0, 4)},
            {},
            "has a codebook beyond its weights: Value 4 is not one of the 3-bit signed encoding",
        ),
        (
            {"codebook": (0, 1), "weight_encoding": "odd"},
            {},
            "has a codebook beyond its weights: Value 0 is not one of the 3-bit odd encoding",
        ),
    ],
)
def test_codebooks_that_cannot_be_decoded_are_refused(options, changes, message):
    layers = shapes((1, 4, 4), [conv(3, 1, **{"weight_bits": 3, **options}), linear(2)])
    with pytest.raises(BitwrightError, match=f"^Layer 'layer0' {message}") as caught:
        plan(layers, dataclasses.replace(CODED, **changes), input_bits=1)
    assert str(caught.value).endswith(".")
    assert str(caught.value).count(". ") == 0


def test_weights_that_fit_are_not_streamed():
    layers = [conv(40, 3), conv(8, 1), linear(10)]
    resident = plan(shapes((3, 7, 7), layers), SPEC, input_bits=8)
    streaming = plan(shapes((3, 7, 7), layers), dataclasses.replace(SPEC, weight_stream=True), input_bits=8)
    assert resident.descriptors == streaming.descriptors
    assert resident.weight_words == streaming.weight_words > 0


def test_a_code_table_gives_the_code_of_each_rank():
    table = (2, 0, 3, 1)
    layers = [conv(3, 1, code_table=table), linear(2)]
    [first, last] = plan(shapes((3, 2, 2), layers), RICH, input_bits=1).descriptors
    assert first.flags & isa.FLAG_TABLE
    assert not last.flags & isa.FLAG_TABLE
    planes = [first.fields[f"code_table_{plane}"] for plane in range(isa.CODE_TABLE_PLANES)]
    codes = [sum((bits >> rank & 1) << plane for plane, bits in enumerate(planes)) for rank in range(4)]
    assert tuple(codes) == table


# Networks -------------------------------------------------------------------------------------------------------------


def test_lenet5_fits_the_edge_array():
    layers = [conv(20, 5, pool=2), conv(50, 5, pool=2), linear(500), linear(10)]
    result = plan(shapes((1, 28, 28), layers), preset("edge"), input_bits=8)
    assert [info.out_shape for info in result.layers] == [(20, 12, 12), (50, 4, 4), (500, 1, 1), (10, 1, 1)]
    assert [info.macs for info in result.layers] == [288_000, 1_600_000, 400_000, 5_000]
    assert result.input.window == (5, 5, 1, 1, 0, 0)
    assert [layer.window_length for layer in result.descriptors] == [1, 8, 13, 8]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_a_small_network(name):
    layers = [conv(20, 3, output_planes=1), conv(9, 3, padding=1, pool=2), linear(12, output_planes=3), linear(10)]
    result = plan(shapes((1, 8, 8), layers), preset(name), input_bits=4)
    assert len(result.descriptors) == 4


def test_images_are_stored_plainly_where_windows_do_not_fit():
    layers = [conv(4, 5), linear(2)]
    spec = dataclasses.replace(SPEC, activation_depth=256)
    assert plan(shapes((1, 12, 12), layers), spec, input_bits=4).input.window == (5, 5, 1, 1, 0, 0)
    smaller = dataclasses.replace(spec, activation_depth=64)
    result = plan(shapes((1, 12, 12), layers), smaller, input_bits=4)
    assert result.input.window is None
    assert result.descriptors[0].kernel_height == 5
    with pytest.raises(BitwrightError, match="'layer0'"):
        plan(shapes((1, 12, 12), layers), dataclasses.replace(spec, activation_depth=32), input_bits=8)


def test_windows_are_packed_only_where_that_saves_words():
    for in_shape, layer in [((64, 5, 5), conv(4, 3)), ((1, 5, 5), conv(4, 2)), ((3, 5, 5), conv(4, 3, dilation=2))]:
        assert plan(shapes(in_shape, [layer, linear(2)]), SPEC, input_bits=1).input.window is None


def test_a_residual_source_is_kept_until_it_is_added():
    """Memory for two outputs is not enough while a third one is still needed."""
    layers = [conv(16, 3, padding=1, output_planes=3) for _ in range(4)] + [linear(2)]
    spec = dataclasses.replace(SPEC, activation_depth=128)
    plan(shapes((16, 8, 8), layers), spec, input_bits=3)
    layers[3] = {**layers[3], "residual": {"source": 0}}
    with pytest.raises(BitwrightError, match=r"'layer2' needs 147 .* for its output \(98 and 49\), .* has 128"):
        plan(shapes((16, 8, 8), layers), spec, input_bits=3)


def is_dense(layers: list[dict[str, Any]], in_shape: tuple[int, int, int], spec: ArraySpec) -> list[bool]:
    """Which layers skip no words."""
    return [
        bool(layer.flags & isa.FLAG_DENSE) for layer in plan(shapes(in_shape, layers), spec, input_bits=2).descriptors
    ]


def test_layers_skip_where_that_can_pay():
    """Not where loading takes longer than computing, nor where there are hardly any words to leave out."""
    large, narrow, last = conv(64, 3, padding=1), conv(8, 1, weight_bits=1, output_planes=1), linear(10)
    assert is_dense([large, narrow, last], (64, 16, 16), SPEC) == [False, True, True]
    assert is_dense([conv(8, 3), last], (8, 4, 4), SPEC) == [True, True]
    for mode in ("off", "gate"):
        assert not any(is_dense([large, narrow, last], (64, 16, 16), dataclasses.replace(SPEC, zero_skip=mode)))


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_depth": 4}, r"'layer0' needs \d+ words of activations .* has 4 \(activation_depth\)"),
        ({"weight_depth": 16}, r"needs \d+ words of weights.* this array has 16 \(weight_depth\)"),
        (
            {"weight_depth": 4, "weight_stream": True},
            r"'layer1' needs \d+ words of weights for a row tile, half of .* 4",
        ),
        ({"threshold_depth": 4}, r"'layer0' needs 12 threshold entries, this array has 4 \(threshold_depth\)"),
        ({"threshold_depth": 8}, r"'layer0' needs 12 threshold entries"),
        ({"descriptor_depth": 64}, r"descriptor words, after \d+ of the layers before it, this array has 64"),
        ({"result_depth": 8}, r"'layer2' needs 10 results, this array has 8 \(result_depth\)"),
        ({"weight_planes_max": 1}, r"'layer0' has 2-bit weights, this array takes 1 to 1 \(weight_planes_max\)"),
        ({"activation_planes_max": 1}, r"'layer0' has 2-bit outputs, .*activation_planes_max"),
        ({"row_tiles_max": 2}, r"'layer0' has 20 output channels, this array takes at most 16 \(rows × row_tiles_max"),
        ({"window_depth": 2}, r"'layer0': A window has \d+ words|'layer1': .*window_length is 3"),
    ],
)
def test_what_does_not_fit_is_named_with_its_layer(changes, message):
    layers = [conv(20, 3, pool=2), conv(9, 3), linear(10)]
    with pytest.raises(BitwrightError, match=message) as caught:
        plan(shapes((1, 8, 8), layers), dataclasses.replace(SPEC, **changes), input_bits=1)
    assert str(caught.value).endswith(".")
    assert str(caught.value).count(". ") == 0


def test_coefficients_that_do_not_fit_are_refused():
    layers = [conv(20, 3, weight_encoding="basis", weight_bits=4), linear(10)]
    spec = dataclasses.replace(RICH, coefficient_depth=64)
    with pytest.raises(BitwrightError, match=r"'layer0' needs 96 coefficients, this array has 64 "):
        plan(shapes((1, 8, 8), layers), spec, input_bits=8)


def test_free_memory_in_pieces_is_named():
    """What the third layer writes lies in the middle: room is left on both sides of it, but not enough on any."""
    layers = [conv(4, 1, output_planes=planes) for planes in (6, 4, 4, 7)] + [linear(2)]
    layers[2] = {**layers[2], "residual": {"source": 0}}
    spec = dataclasses.replace(SPEC, activation_depth=64)
    message = r"'layer3' needs 31 words .* side by side for its output; 46 of this array's 64 .* not in one piece"
    with pytest.raises(BitwrightError, match=message):
        plan(shapes((4, 8, 8), layers), spec, input_bits=1)


def shape(**changes: Any) -> LayerShape:
    return LayerShape(**{"name": "conv1", "kind": "conv", "in_shape": (1, 8, 8), "out_channels": 2, **changes})


def residual(**changes: Any) -> ResidualShape:
    return ResidualShape(**{"source": "conv0", "channels": 2, **changes})


FIRST = shape(name="conv0", output_planes=2)
SECOND = {"in_shape": (2, 8, 8), "output_planes": 2}
LAST = shape(name="last", in_shape=(2, 8, 8))


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "no layers"),
        ([shape(pool=(2, 2), pool_stride=(2, 2))], {}, "'conv1' pools its raw results"),
        ([shape(output_planes=2)], {}, "'conv1' has output codes"),
        ([shape(), shape()], {}, "'conv1' is raw"),
        ([shape()], {"input_bits": 9}, "image has 9 bits"),
        ([shape()], {"input_bits": 0}, "image has 0 bits"),
        ([shape()], {"batch": 0}, "batch is 0"),
        ([shape(weight_bits=0)], {}, r"'conv1' has 0-bit weights, this array takes 1 to 8 \(weight_planes_max\)"),
        ([shape(weight_bits=9)], {}, r"'conv1' has 9-bit weights, this array takes 1 to 8 \(weight_planes_max\)"),
        (
            [shape(weight_encoding="basis", weight_bits=2)],
            {},
            "encoding basis, this array has no multipliers",
        ),
        ([FIRST, LAST, shape(name="x", source="y")], {}, "'last' is raw"),
        (
            [FIRST, shape(source="nowhere", in_shape=(2, 8, 8))],
            {},
            "reads 'nowhere', expected a layer before it",
        ),
        ([FIRST, shape(source="conv1", in_shape=(2, 8, 8))], {}, "'conv1' reads 'conv1', expected a layer before it"),
        ([FIRST, shape(in_shape=(3, 8, 8))], {}, r"'conv1' reads \(3, 8, 8\), its source has \(2, 8, 8\)"),
        (
            [FIRST, shape(**SECOND, pool=(2, 2), pool_stride=(2, 2), residual=residual()), LAST],
            {},
            "'conv1' pools or is linear, and adds a residual, expected a convolution without pooling",
        ),
        (
            [FIRST, shape(**SECOND, kind="linear", residual=residual()), LAST],
            {},
            "'conv1' pools or is linear, and adds a residual",
        ),
        (
            [FIRST, shape(**SECOND, residual=residual(weight_encoding="odd")), LAST],
            {},
            "'conv1' adds a residual, expected weights without an offset",
        ),
        (
            [FIRST, shape(**SECOND, residual=residual(weight_bits=9)), LAST],
            {},
            "'conv1' has 9-bit weights for its residual",
        ),
        (
            [FIRST, shape(**SECOND, residual=residual(shift=20)), LAST],
            {},
            "'conv1': Significance falls by",
        ),
        (
            [FIRST, shape(**SECOND, residual=residual(channels=3)), LAST],
            {},
            "adds a residual of 2 × 8 × 8 at stride .1, 1., expected 3 channels and as many pixels",
        ),
        (
            [FIRST, shape(**SECOND, residual=residual(stride=(2, 1))), LAST],
            {},
            "'conv1' of 2 × 8 × 8 adds a residual of 2 × 8 × 8 at stride .2, 1., expected",
        ),
        ([FIRST, shape(**SECOND, residual=residual()), LAST], {"residual": False}, r"built without \(residual false\)"),
        (
            [shape(output_planes=2, code_table=(0, 1, 2, 3)), LAST],
            {},
            "'conv1' has a code table for 2 planes, expected an array with coefficients",
        ),
        (
            [shape(output_planes=5, code_table=tuple(range(32))), LAST],
            {"coefficient_bits": 4},
            "'conv1' has a code table for 5 planes, expected .* at most 4 planes",
        ),
        (
            [shape(output_planes=2, code_table=(0, 1, 1, 3)), LAST],
            {"coefficient_bits": 4},
            r"'conv1' has the code table \(0, 1, 1, 3\), expected each code once",
        ),
        (
            [shape(in_shape=(4, 8, 8), groups=2, weight_encoding="bipolar_basis", weight_bits=2)],
            {"coefficient_bits": 4},
            "'conv1' is a grouped convolution of ±1 basis weights, expected the basis encoding, or no groups",
        ),
        (
            [FIRST, shape(**SECOND, weight_encoding="basis", weight_bits=1, residual=residual(shift=1)), LAST],
            {"coefficient_bits": 4},
            "'conv1' adds a shifted residual to basis weights, expected shift 0",
        ),
        (
            [shape(kernel=(300, 1), padding=(150, 0), in_shape=(99, 8, 8))],
            {},
            "'conv1': Descriptor field kernel_height is 300",
        ),
        (
            [shape(output_planes=1, pool=(1, 16), padding=(0, 9)), LAST],
            {},
            "'conv1': Descriptor field pool_width is 16",
        ),
    ],
)
def test_impossible_layers_are_refused(layers, options, message):
    spec = dataclasses.replace(
        SPEC, **{name: options[name] for name in ("residual", "coefficient_bits") if name in options}
    )
    given_options = {name: value for name, value in options.items() if name in ("input_bits", "batch")}
    with pytest.raises(BitwrightError, match=message) as caught:
        plan(layers, spec, **({"input_bits": 8} | given_options))
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "changes", [{"kernel": (9, 1)}, {"pool": (1, 9)}, {"out_channels": 0}, {"dilation": (1, 8), "kernel": (1, 3)}]
)
def test_layers_without_an_output_are_refused(changes):
    with pytest.raises(BitwrightError, match="'conv1' has no output: its input of 1 × 8 × 8"):
        shape(**changes)


@pytest.mark.parametrize(("channels", "out_channels", "groups"), [(4, 6, 4), (6, 4, 4), (4, 4, 0), (3, 3, 2)])
def test_groups_divide_the_channels(channels, out_channels, groups):
    with pytest.raises(BitwrightError, match=f"has {groups} groups of {channels} input and {out_channels} output"):
        shape(in_shape=(channels, 8, 8), out_channels=out_channels, groups=groups)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=50)
def test_shapes_are_those_of_the_formula(kernel, stride, padding, dilation, pool, pool_stride):
    rows = len(range(-padding, 13 + padding - dilation * (kernel - 1), stride))
    assume(rows >= pool)
    layer = shape(
        in_shape=(1, 13, 13),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        pool=(pool, pool),
        pool_stride=(pool_stride, pool_stride),
    )
    assert layer.conv_shape == (2, rows, rows)
    assert layer.out_shape[1] == len(range(0, rows - pool + 1, pool_stride))
