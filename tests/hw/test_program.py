import dataclasses
import hashlib
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import PRESETS, ArraySpec, Region, preset, unpack_words
from bitwright.hw.plan import LayerShape, plan
from bitwright.hw.program import InputSpec, Program
from programs import conv, linear, random_images, random_program, shapes

SPEC = preset("demo")


@pytest.fixture(scope="module")
def program():
    rng = np.random.default_rng(0)
    layers = [conv(20, 3, pool=2), conv(9, 3, padding=1, weight_encoding="ternary"), linear(10, weight_encoding="odd")]
    return random_program(rng, SPEC, layers, in_shape=(1, 10, 8), batch=2)


# Images ---------------------------------------------------------------------------------------------------------------


def image_spec(**changes: Any) -> InputSpec:
    return InputSpec(**{"channels": 2, "height": 5, "width": 4, "bits": 8, "base": 0, "plane_stride": 0, **changes})


@pytest.mark.parametrize("bits", range(1, 9))
def test_image_codes_are_rounded_exactly(bits):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    codes = image_spec(channels=1, height=16, width=16, bits=bits).codes(pixels)
    exact = [Fraction(pixel * ((1 << bits) - 1), 255) for pixel in range(256)]
    assert all(value % 1 != Fraction(1, 2) for value in exact)
    assert codes.reshape(-1).tolist() == [round(value) for value in exact]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 2), st.integers(0, 1))
def test_packed_windows_are_the_windows_of_the_convolution(kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 4), np.uint8)
    spec = image_spec(window=(kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x))
    stored = spec.codes(images)
    assert stored.shape == (3, *spec.stored_shape)
    for image, y, x in np.ndindex(stored.shape[:3]):
        window = []
        for row in range(kernel_y):
            for column in range(kernel_x):
                at_y, at_x = y * stride_y - pad_y + row, x * stride_x - pad_x + column
                inside = 0 <= at_y < 5 and 0 <= at_x < 4
                window += images[image, :, at_y, at_x].tolist() if inside else [0, 0]
        assert stored[image, y, x].tolist() == window


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 2, 5, 4)), "dtype float64, expected uint8"),
        (np.zeros((1, 2, 4, 5), np.uint8), r"shape \(1, 2, 4, 5\), expected \(images, 2, 5, 4\)"),
        (np.zeros((2, 5, 4), np.uint8), r"shape \(2, 5, 4\)"),
        (np.uint8(0), "are a uint8, expected a NumPy array"),
        ([[[[0] * 4] * 5] * 2], r"are a list, expected a NumPy array of shape \(images, 2, 5, 4\)"),
    ],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(BitwrightError, match=message):
        image_spec().codes(images)


@pytest.mark.parametrize("in_shape", [(1, 10, 8), (70, 3, 3)])
def test_the_host_stores_every_bit_where_the_layout_says(in_shape):
    rng = np.random.default_rng(0)
    program = random_program(rng, SPEC, [conv(3, 3), linear(2)], in_shape=in_shape, input_bits=3, batch=2)
    images = random_images(rng, program, 1)
    addresses, words = program.pack_images(images)
    assert len(set(addresses.tolist())) == len(addresses)
    memory = np.zeros((SPEC.activation_depth, SPEC.lanes), bool)
    memory[addresses] = unpack_words(words)
    height, width, channels = program.input.stored_shape
    per_pixel = -(-channels // SPEC.lanes)
    codes = program.input.codes(images)
    for y, x, channel in np.ndindex(height, width, channels):
        address = program.input.base + (y * width + x) * per_pixel + channel // SPEC.lanes
        planes = [memory[address + plane * program.input.plane_stride, channel % SPEC.lanes] for plane in range(3)]
        assert sum(int(bit) << plane for plane, bit in enumerate(planes)) == codes[0, y, x, channel]
    # The second image of the batch is black, and nothing else is set.
    assert memory.sum() == sum(int(code).bit_count() for code in codes.reshape(-1))


def test_a_run_takes_a_batch_at_most(program):
    with pytest.raises(BitwrightError, match="1 to 2 images, got 3"):
        program.pack_images(np.zeros((3, 1, 10, 8), np.uint8))
    with pytest.raises(BitwrightError, match="1 to 2 images, got 0"):
        program.pack_images(np.zeros((0, 1, 10, 8), np.uint8))


def test_host_writes_carry_all_memories(program):
    writes = dict(program.host_writes())
    address = SPEC.derived.host_address
    assert len(writes) == len(program.descriptors) + program.weights.size // 4 + program.thresholds.size
    assert writes[address(Region.DESCRIPTORS, 3)] == program.descriptors[3]
    assert writes[address(Region.THRESHOLDS, 5, 2)] == program.thresholds[2, 5]
    row = int(np.argmax(program.weights.any((1, 2))))
    for word in range(program.weights.shape[1]):
        parts = [writes[address(Region.WEIGHTS, word, row, chunk)] for chunk in range(SPEC.derived.chunks)]
        assert sum(part << 32 * n for n, part in enumerate(parts)) == int.from_bytes(
            program.weights[row, word].tobytes(), "little"
        )
    images = random_images(np.random.default_rng(0), program, 2)
    stored = dict(program.image_writes(images))
    addresses, words = program.pack_images(images)
    for word, data in zip(addresses.tolist(), words, strict=True):
        parts = [stored.pop(address(Region.ACTIVATIONS, word, chunk=chunk)) for chunk in range(SPEC.derived.chunks)]
        assert sum(part << 32 * n for n, part in enumerate(parts)) == int.from_bytes(data.tobytes(), "little")
    assert not stored


# The file -------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_program(program, tmp_path):
    path = tmp_path / "net.bw"
    program.save(path)
    again = Program.load(path, SPEC)
    for field in dataclasses.fields(Program):
        ours, theirs = getattr(program, field.name), getattr(again, field.name)
        assert np.array_equal(ours, theirs) if isinstance(ours, np.ndarray) else ours == theirs
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
    assert again.parsed == program.parsed
    program.save(tmp_path / "again.bw")
    assert path.read_bytes() == (tmp_path / "again.bw").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.bw", "net.bw"]


def rewrite(path, change, **tensors):
    """Write a file again with a changed manifest, whose own digest fits again, and other tensors."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        held = {name: file.get_tensor(name) for name in list(file.keys())}
    manifest = json.loads(metadata["manifest"])
    change(manifest)
    for name, tensor in tensors.items():
        manifest["sha256"][name] = hashlib.sha256(tensor.tobytes()).hexdigest()
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    save_file(held | tensors, path, {"manifest": json.dumps(manifest)})


def put(value, *path):
    """Set an entry of the manifest; None deletes it."""

    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        if value is None:
            del manifest[path[-1]]
        else:
            manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("other", "format"), "no Program manifest"),
        (put(99, "version"), "version 99, this release reads 1"),
        (put(3, "spec", "lanes"), "lanes is 3"),
        (put(1, "spec", "colour"), "colour"),
        (put(4, "spec", "rows"), "expected uint8 of shape"),
        (put(12, "spec", "accumulator_width"), "threshold entry"),
        (put(32, "spec", "weight_depth"), "words of weights, this array holds 32"),
        (put(None, "batch"), "batch"),
        (put(3, "batch"), "runs 2 images, the Program says 3"),
        (put("two", "batch"), "batch is 'two'"),
        (put(None, "layers", 0), "3 descriptors for 2 layers"),
        (put(None, "layers", 0, "kind"), "kind"),
        (put(9, "input", "bits"), "input has 9 bits"),
        (put(5000, "input", "base"), "this array holds 2048"),
        (put(None, "sha256", "weights"), "weights"),
        (put("x", "sha256", "weights"), "weights do not match their SHA-256"),
    ],
)
def test_files_with_a_wrong_manifest_are_refused(program, tmp_path, change, message):
    path = tmp_path / "net.bw"
    program.save(path)
    rewrite(path, change)
    with pytest.raises(BitwrightError, match=f"{path}: .*{message}"):
        Program.load(path)


def test_values_of_the_wrong_kind_are_refused(program, tmp_path):
    path = tmp_path / "net.bw"
    program.save(path)
    rewrite(path, put("8", "input", "bits"))
    with pytest.raises(BitwrightError, match="wrong kind"):
        Program.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weights": np.zeros((8, 3, 8), np.uint16)}, "weights are uint16"),
        ({"thresholds": np.zeros((7, 3), np.uint32)}, r"thresholds are uint32 of shape \(7, 3\)"),
        ({"output_offset": np.zeros(9)}, r"output_offset are float64 of shape \(9,\)"),
        ({"output_scale": np.zeros(9), "output_offset": np.zeros(9)}, "one raw result a class"),
        ({"descriptors": np.zeros(30, np.uint32)}, "Descriptor field passes is 0"),
        ({"extra": np.zeros(1)}, "extra"),
    ],
)
def test_files_with_wrong_tensors_are_refused(program, tmp_path, tensors, message):
    path = tmp_path / "net.bw"
    program.save(path)
    rewrite(path, lambda manifest: None, **tensors)
    with pytest.raises(BitwrightError, match=message):
        Program.load(path)


def test_words_after_the_last_descriptor_are_refused(program):
    with pytest.raises(BitwrightError, match=r"descriptor words, its last layer ends after \d+"):
        dataclasses.replace(program, descriptors=np.append(program.descriptors, np.uint32(0)))


def test_damaged_files_are_refused(program, tmp_path):
    path = tmp_path / "net.bw"
    program.save(path)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BitwrightError, match="not a whole Program file"):
            Program.load(path)
    for place in (whole.index(b"weight_bits"), len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(BitwrightError, match="SHA-256"):
            Program.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(BitwrightError, match="no Program manifest"):
        Program.load(path)
    with pytest.raises(BitwrightError, match=r"Cannot read .*missing"):
        Program.load(tmp_path / "missing.bw")
    with pytest.raises(BitwrightError, match=r"Cannot read .*: it is a folder; give a file of"):
        Program.load(tmp_path)


def test_a_program_for_another_array_is_refused(program, tmp_path):
    program.save(tmp_path / "net.bw")
    with pytest.raises(BitwrightError, match=r"another array: lanes 64 \(not 32\), zero_skip skip \(not off\)"):
        Program.load(tmp_path / "net.bw", dataclasses.replace(SPEC, lanes=32, zero_skip="off"))


# Planning -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_regions_of_a_layer_are_disjoint(name):
    spec = preset(name)
    layers = [conv(20, 3, output_planes=1), conv(9, 3, padding=1, pool=2), linear(12, output_planes=3), linear(10)]
    planned = plan(shapes((1, 8, 8), layers), spec, input_bits=4)
    height, width, channels = planned.input.stored_shape
    words = -(-channels // spec.lanes)
    source = region(planned.input.base, planned.input.plane_stride, planned.input.bits, height * width * words)
    for layer in planned.descriptors[:-1]:
        size = layer.images * layer.output_height * layer.output_width * layer.output_words
        target = region(layer.output_base, layer.output_plane_stride, layer.output_planes, size)
        assert len(target) == layer.output_planes * size
        assert not source & target
        assert max(source | target) < spec.activation_depth
        source = target
    weights = [set(layer_words(layer)) for layer in planned.descriptors]
    assert sorted(word for layer in weights for word in layer) == list(range(planned.weight_words))


def region(base, stride, planes, size):
    return {base + plane * stride + word for plane in range(planes) for word in range(size)}


def layer_words(layer):
    offsets = {entry.weight_offset for entry in layer.passes}
    for tile in range(layer.row_tiles):
        for offset in offsets:
            for word in range(layer.window_words):
                yield layer.weight_base + tile * layer.weight_tile_stride + offset + word


def test_lenet5_fits_the_edge_array():
    layers = [conv(20, 5, pool=2), conv(50, 5, pool=2), linear(500), linear(10)]
    planned = plan(shapes((1, 28, 28), layers), preset("edge"), input_bits=8)
    assert [info.out_shape for info in planned.layers] == [(20, 12, 12), (50, 4, 4), (500, 1, 1), (10, 1, 1)]
    assert [info.macs for info in planned.layers] == [288_000, 1_600_000, 400_000, 5_000]
    assert planned.input.window == (5, 5, 1, 1, 0, 0)
    assert [layer.input_words for layer in planned.descriptors] == [1, 1, 16, 8]


def test_images_are_stored_plainly_where_windows_do_not_fit():
    layers = [conv(4, 5), linear(2)]
    spec = dataclasses.replace(SPEC, activation_depth=1024)
    assert plan(shapes((1, 12, 12), layers), spec, input_bits=8).input.window == (5, 5, 1, 1, 0, 0)
    smaller = dataclasses.replace(spec, activation_depth=512)
    with pytest.raises(BitwrightError, match="'layer0'"):
        plan(shapes((1, 12, 12), layers), smaller, input_bits=8)
    planned = plan(shapes((1, 12, 12), [conv(4, 5, stride=2, padding=4), linear(2)]), smaller, input_bits=2)
    assert planned.input.window is not None
    planned = plan(shapes((1, 12, 12), [conv(4, 5, padding=4, pool=4), linear(2)]), smaller, input_bits=2)
    assert planned.input.window is None
    assert planned.descriptors[0].kernel_height == 5
    assert planned.descriptors[0].start_y == -4


def test_wide_images_need_no_windows():
    planned = plan(shapes((64, 5, 5), [conv(4, 3), linear(2)]), SPEC, input_bits=1)
    assert planned.input.window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation_depth": 64},
            r"'layer0' needs \d+ words of activations .* has 64 \(activation_depth\)",
        ),
        ({"weight_depth": 16}, r"needs \d+ words of weights.* this array has 16 \(weight_depth\)"),
        ({"threshold_depth": 4}, r"'layer0' needs 9 thresholds, this array has 4 \(threshold_depth\)"),
        ({"threshold_depth": 8}, r"'layer0' needs 9 thresholds"),
        ({"descriptor_depth": 64}, r"descriptor words, after \d+ of the layers before it, this array has 64"),
        ({"result_depth": 8}, r"'layer2' needs 10 results, this array has 8 \(result_depth\)"),
        ({"weight_planes_max": 1}, r"'layer0' has 2-bit weights, this array takes 1 to 1 \(weight_planes_max\)"),
        ({"activation_planes_max": 1}, r"'layer0' has 2-bit outputs.*activation_planes_max"),
        ({"row_tiles_max": 2}, r"'layer0' has 20 output channels, this array takes at most 16"),
        ({"window_words_max": 2}, r"'layer0': A window has \d+ words"),
    ],
)
def test_what_does_not_fit_is_named_with_its_layer(changes, message):
    layers = [conv(20, 3, pool=2), conv(9, 3), linear(10)]
    with pytest.raises(BitwrightError, match=message):
        plan(shapes((1, 8, 8), layers), dataclasses.replace(SPEC, **changes), input_bits=2)


def shape(**changes: Any) -> LayerShape:
    return LayerShape(**{"name": "conv1", "kind": "conv", "in_shape": (1, 8, 8), "out_channels": 2, **changes})


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "no layers"),
        ([shape(pool=(2, 2), pool_stride=(2, 2))], {}, "'conv1' pools its raw results"),
        ([shape(output_planes=2)], {}, "'conv1' has output codes"),
        ([shape(), shape()], {}, "'conv1' is raw"),
        ([shape(dilation=(1, 2), kernel=(2, 2))], {}, "'conv1' has dilation"),
        ([shape()], {"input_bits": 9}, "image has 9 bits"),
        ([shape()], {"batch": 0}, "batch is 0"),
    ],
)
def test_impossible_layers_are_refused(layers, options, message):
    with pytest.raises(BitwrightError, match=message):
        plan(layers, SPEC, **({"input_bits": 8} | options))


@pytest.mark.parametrize("changes", [{"kernel": (9, 1)}, {"pool": (1, 9)}, {"out_channels": 0}])
def test_layers_without_an_output_are_refused(changes):
    with pytest.raises(BitwrightError, match="'conv1' has no output: its input of 1 × 8 × 8"):
        shape(**changes)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=50)
def test_shapes_are_those_of_the_formula(kernel, stride, padding, pool, pool_stride):
    layer = shape(
        in_shape=(1, 13, 13),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        pool=(pool, pool),
        pool_stride=(pool_stride, pool_stride),
    )
    rows = len(range(-padding, 13 + padding - kernel + 1, stride))
    assert layer.conv_shape == (2, rows, rows)
    assert layer.out_shape[1] == len(range(0, rows - pool + 1, pool_stride))


def test_weights_and_thresholds_must_be_what_the_plan_says(program):
    planned = plan(shapes((1, 2, 2), [conv(3, 1), linear(2)]), ArraySpec(), input_bits=1)
    weights = [np.ones((3, 1, 1, 1), int), np.ones((2, 12), int)]
    thresholds = [(np.zeros((3, 3), np.int64), np.zeros((3, 3), np.uint8))]
    numbers = (np.ones(2), np.zeros(2))
    assert planned.assemble(weights, thresholds, *numbers).layers[0].macs == 12
    with pytest.raises(BitwrightError, match="'layer0': Value 2 is not one of the 2-bit signed"):
        planned.assemble([2 * weights[0], weights[1]], thresholds, *numbers)
    with pytest.raises(BitwrightError, match=r"'layer0' has thresholds of shape \(3, 2\)"):
        planned.assemble(weights, [(np.zeros((3, 2), np.int64), np.zeros((3, 2), np.uint8))], *numbers)


def test_layer_info_counts_planes_and_weights(program):
    info = program.layers[1]
    assert (info.weight_planes, info.fan_in, info.input_planes, info.output_planes) == (2, 180, 2, 2)
    assert program.layers[2].fan_in == 9 * program.layers[1].out_shape[1] * program.layers[1].out_shape[2]
    np.testing.assert_array_equal(program.logits(np.zeros((3, 10), np.int64)), np.tile(program.output_offset, (3, 1)))
