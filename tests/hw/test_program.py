import dataclasses
import hashlib
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import GRANULE, VERSION, Region, granules_of, preset, unpack_words
from bitwright.hw.program import InputSpec, Program
from programs import conv, linear, random_images, random_program

SPEC = dataclasses.replace(preset("demo"), coefficient_bits=6)
STREAMING = dataclasses.replace(SPEC, weight_stream=True, weight_depth=16)
"""Too few weights for the network: they are streamed in."""
LAYERS = [
    conv(20, 3, pool=2),
    conv(9, 3, padding=1, weight_encoding="ternary"),
    conv(9, 1, weight_encoding="basis", weight_bits=3),
    conv(9, 3, padding=1, residual={"source": 1}),
    linear(10, weight_encoding="odd"),
]


@pytest.fixture(scope="module")
def program():
    return random_program(np.random.default_rng(0), SPEC, LAYERS, in_shape=(1, 10, 8), batch=2)


@pytest.fixture(scope="module")
def streamed():
    layers = [*LAYERS[:2], linear(10)]
    return random_program(np.random.default_rng(0), STREAMING, layers, in_shape=(1, 10, 8))


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


@pytest.mark.parametrize("in_shape", [(1, 10, 8), (70, 3, 3), (5, 4, 3)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_host_stores_every_bit_where_the_layout_says(in_shape, kernel):
    rng = np.random.default_rng(0)
    program = random_program(rng, SPEC, [conv(3, kernel), linear(2)], in_shape=in_shape, input_bits=3, batch=2)
    images = random_images(rng, program, 1)
    addresses, words = program.pack_images(images)
    assert len(set(addresses.tolist())) == len(addresses)
    memory = np.zeros((SPEC.activation_depth, SPEC.lanes), bool)
    memory[addresses] = unpack_words(words)
    lanes = memory.reshape(-1)
    height, width, channels = program.input.stored_shape
    codes = program.input.codes(images)
    for y, x, channel in np.ndindex(height, width, channels):
        position = program.input.base + (y * width + x) * granules_of(channels) + channel // GRANULE
        planes = [position + plane * program.input.plane_stride for plane in range(3)]
        bits = [lanes[GRANULE * place + channel % GRANULE] for place in planes]
        assert sum(int(bit) << plane for plane, bit in enumerate(bits)) == codes[0, y, x, channel]
    # The second image of the batch is black, and nothing else is set.
    assert memory.sum() == sum(int(code).bit_count() for code in codes.reshape(-1))
    # All that the layer reads is written, also of the black image: what an earlier run left would be seen.
    size = 2 * height * width * granules_of(channels)
    end = program.input.base + 2 * program.input.plane_stride + size
    assert sorted(addresses.tolist()) == list(
        range(program.input.base // SPEC.derived.granules, -(-end // SPEC.derived.granules))
    )


def test_a_run_takes_a_batch_at_most(program):
    with pytest.raises(BitwrightError, match="1 to 2 images, got 3"):
        program.pack_images(np.zeros((3, 1, 10, 8), np.uint8))
    with pytest.raises(BitwrightError, match="1 to 2 images, got 0"):
        program.pack_images(np.zeros((0, 1, 10, 8), np.uint8))


def test_host_writes_carry_all_memories(program):
    writes = dict(program.host_writes())
    address = SPEC.derived.host_address
    counts = len(program.descriptors), program.weights.size // 4, program.thresholds.size, program.coefficients.size
    assert len(writes) == sum(counts)
    assert min(counts) > 0
    assert writes[address(Region.DESCRIPTORS, 3)] == program.descriptors[3]
    assert writes[address(Region.THRESHOLDS, 5, 2)] == program.thresholds[2, 5]
    row, entry = np.argwhere(program.coefficients < 0)[0]
    assert writes[address(Region.COEFFICIENTS, entry, row)] == (1 << 32) + int(program.coefficients[row, entry])
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


def test_streamed_weights_are_not_loaded(streamed):
    assert not streamed.weights.size
    assert not any(
        address >> streamed.spec.derived.region_width == Region.WEIGHTS for address, _ in streamed.host_writes()
    )
    words = sum(layer.stream_words for layer in streamed.parsed)
    assert len(streamed.stream) == words * SPEC.rows * SPEC.derived.chunks > 0
    assert streamed.stream.any()


# The file -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coded():
    array = dataclasses.replace(STREAMING, codebook_bits=2)
    layers = [conv(5, 2, codebook=(-2, 1, 0)), conv(4, 1), linear(3, codebook=(0, -1))]
    return random_program(np.random.default_rng(0), array, layers, in_shape=(2, 4, 4))


def test_a_file_of_coded_weights_holds_their_codebooks(coded, tmp_path):
    coded.save(tmp_path / "net.bw")
    read = Program.load(tmp_path / "net.bw")
    assert [info.codebook for info in read.layers] == [(-2, 0, 1), None, (-1, 0)]
    assert read.spec.codebook_bits == 2


@pytest.mark.parametrize("made", ["program", "streamed", "coded"])
def test_a_file_gives_the_same_program(made, request, tmp_path):
    program = request.getfixturevalue(made)
    path = tmp_path / "net.bw"
    program.save(path)
    again = Program.load(path, program.spec)
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
        (put(99, "version"), f"version 99, this release reads {VERSION}"),
        (put(3, "spec", "lanes"), "lanes is 3"),
        (put(1, "spec", "colour"), "colour"),
        (put(6, "spec", "rows"), "rows is 6"),
        (put(4, "spec", "rows"), "expected uint8 of shape"),
        (put(12, "spec", "accumulator_width"), "threshold entry"),
        (put(0, "spec", "coefficient_bits"), "words of coefficients, this array holds 0"),
        (put(False, "spec", "residual"), "Descriptor field"),
        (put(32, "spec", "weight_depth"), "words of weights, this array holds 32"),
        (put(None, "batch"), "batch"),
        (put(1, "batch"), "'layer0' runs 2 images, the Program says 1"),
        (put("two", "batch"), "batch is 'two'"),
        (put(2, "version"), f"version 2, this release reads {VERSION}"),
        (put(None, "layers", 0), r"5 descriptors, which compute layers \(0, 1, 2, 3, 4\) of 4"),
        (put([0, 1, 2, 3], "parts"), r"5 descriptors, which compute layers \(0, 1, 2, 3\) of 5"),
        (put([0, 1, 2, 3, 5], "parts"), r"which compute layers \(0, 1, 2, 3, 5\) of 5"),
        (put([0, 2, 1, 3, 4], "parts"), "does not compute its layers in order"),
        (put(None, "layers", 0, "kind"), "kind"),
        (put(9, "input", "bits"), "input has 9 bits"),
        (put(0, "input", "channels"), "at least one of each"),
        (put(1 << 16, "input", "base"), "ends at word 41.. of activation memory, this array holds 2048"),
        (put(-16, "input", "base"), "starts at granule -16"),
        (put(5, "input", "base"), "starts at granule 5 .* expected the start of a word"),
        (put(1, "input", "plane_stride"), "in planes of 1, expected .* at least 160"),
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
        ({"coefficients": np.zeros((7, 3), np.int32)}, r"coefficients are int32 of shape \(7, 3\)"),
        ({"coefficients": np.zeros((8, 300), np.int32)}, "300 words of coefficients, this array holds 256"),
        ({"stream": np.zeros(16, np.uint32)}, "streams 16 beats of weights, its descriptors take 0"),
        ({"stream": np.zeros((1, 16), np.uint32)}, r"stream are uint32 of shape \(1, 16\)"),
        ({"output_offset": np.zeros(9)}, r"output_offset are float64 of shape \(9,\)"),
        ({"output_scale": np.zeros(9), "output_offset": np.zeros(9)}, "one raw result a class"),
        ({"descriptors": np.zeros(40, np.uint32)}, "Descriptor field passes is 0"),
        ({"descriptors": np.zeros(30, np.uint32)}, "Descriptors end after 30 words"),
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
    with pytest.raises(BitwrightError, match=r"another array: lanes 64 \(not 128\), zero_skip skip \(not off\)"):
        Program.load(tmp_path / "net.bw", dataclasses.replace(SPEC, lanes=128, zero_skip="off"))


def test_a_program_of_too_few_beats_is_refused(streamed):
    with pytest.raises(BitwrightError, match=r"streams \d+ beats of weights, its descriptors take \d+"):
        dataclasses.replace(streamed, stream=streamed.stream[:-1])


# Layers ---------------------------------------------------------------------------------------------------------------


def test_layer_info_counts_planes_and_weights(program):
    info = program.layers[1]
    assert (info.weight_planes, info.fan_in, info.input_planes, info.output_planes) == (2, 180, 2, 2)
    assert program.layers[4].fan_in == 9 * program.layers[3].out_shape[1] * program.layers[3].out_shape[2]
    assert [info.macs for info in program.layers] == [20 * 48 * 9, 9 * 12 * 180, 9 * 12 * 9, 9 * 12 * 81, 10 * 108]
    np.testing.assert_array_equal(program.logits(np.zeros((3, 10), np.int64)), np.tile(program.output_offset, (3, 1)))


def test_layer_info_names_what_a_layer_reads(program):
    assert [info.source for info in program.layers] == [-1, 0, 1, 2, 3]
    assert [info.residual_source for info in program.layers] == [None, None, None, 1, None]
    assert [info.residual_planes for info in program.layers] == [0, 0, 0, 2, 0]
    assert program.parts == (0, 1, 2, 3, 4)


def test_layer_info_counts_grouped_weights():
    layers = [conv(8, 1), conv(8, 3, groups=4, weight_encoding="bipolar", weight_bits=1), linear(2)]
    program = random_program(np.random.default_rng(0), SPEC, layers, in_shape=(3, 5, 5))
    info = program.layers[1]
    assert (info.fan_in, info.macs) == (18, 8 * 9 * 18)
    assert (info.weight_encoding, info.stored_encoding, info.weight_planes) == ("bipolar", "signed", 2)
