"""The Program: descriptors and packed memories of one network, all that the hardware needs to run it, in one file."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import (
    GRANULE,
    VERSION,
    ArraySpec,
    Descriptor,
    Encoding,
    Region,
    decode_descriptors,
    granules_of,
    pack_words,
    place_channels,
    split_planes,
    split_words,
)

FORMAT = "bitwright-program"
"""Marks the manifest of a Program file."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How the host turns images into codes and where it puts them in activation memory.

    Parameters
    ----------
    channels, height, width
        Shape of an image.
    bits
        Planes of what is stored, 1..8: of a code, ``round(pixel * (2**bits - 1) / 255)`` for ``uint8`` pixels (never a
        tie), or of a digit of one.
    base, plane_stride
        Position of the first granule, of a whole word, and granules from plane to plane.
    window
        None, or (kernel height, kernel width, stride y, stride x, padding y, padding x): the host stores a whole window
        of the first layer, in the order row, column, channel, as the channels of one pixel. Few channels then do not
        waste lanes, and the first layer is a 1×1 convolution over the windows.
    image_bits
        None, or the bits of a code that is stored as digits of ``bits`` bits, in channels of their own: those of a
        channel lie side by side, the least significant first.
    """

    channels: int
    height: int
    width: int
    bits: int
    base: int
    plane_stride: int
    window: tuple[int, int, int, int, int, int] | None = None
    image_bits: int | None = None

    @property
    def digits(self) -> int:
        """Digits of a code."""
        return 1 if self.image_bits is None else -(-self.image_bits // self.bits)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image as it is stored: of digits, and of windows, where they are packed."""
        channels = self.channels * self.digits
        if self.window is None:
            return self.height, self.width, channels
        kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x = self.window
        return (
            (self.height + 2 * pad_y - kernel_y) // stride_y + 1,
            (self.width + 2 * pad_x - kernel_x) // stride_x + 1,
            kernel_y * kernel_x * channels,
        )

    def check(self, images: Any) -> None:
        """Refuse what is not ``uint8`` images of this shape in a NumPy array.

        Raises
        ------
        BitwrightError
            If the images are no array, are not ``uint8`` or have another shape.
        """
        expected = f"(images, {self.channels}, {self.height}, {self.width})"
        if not isinstance(images, np.ndarray):
            raise BitwrightError(f"Images are a {type(images).__name__}, expected a NumPy array of shape {expected}.")
        if images.dtype != np.uint8:
            raise BitwrightError(f"Images have dtype {images.dtype}, expected uint8 pixels from 0 to 255.")
        if images.ndim != 4 or images.shape[1:] != (self.channels, self.height, self.width):
            raise BitwrightError(f"Images have shape {images.shape}, expected {expected}.")

    def codes(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Codes of ``images``, as stored, of shape (images, stored height, stored width, stored channels).

        Parameters
        ----------
        images
            ``uint8``, shape (images, channels, height, width).

        Raises
        ------
        BitwrightError
            If the images are no array, are not ``uint8`` or have another shape.
        """
        self.check(images)
        top = (1 << (self.image_bits or self.bits)) - 1
        table = (2 * np.arange(256) * top + 255) // 510
        digits = table[:, None] >> self.bits * np.arange(self.digits) & ((1 << self.bits) - 1)
        codes = digits.astype(np.uint8)[images.transpose(0, 2, 3, 1)]
        codes = codes.reshape(len(images), self.height, self.width, self.channels * self.digits)
        if self.window is None:
            return codes
        kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x = self.window
        padded = np.pad(codes, ((0, 0), (pad_y, pad_y), (pad_x, pad_x), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel_y, kernel_x), (1, 2))
        windows = windows[:, ::stride_y, ::stride_x].transpose(0, 1, 2, 4, 5, 3)
        return windows.reshape(len(images), *self.stored_shape)


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """What people, the energy model and reports want to know of a layer; the hardware needs only its descriptor.

    Parameters
    ----------
    name
        Of the layer in the network.
    kind
        ``conv`` or ``linear``.
    in_shape, conv_shape, out_shape
        (channels, height, width) of the input, of the output before pooling and after it.
    kernel, stride, padding, dilation
        (vertical, horizontal) of the convolution; a linear layer has a kernel of 1×1.
    pool, pool_stride
        (vertical, horizontal); 1 without pooling.
    groups
        Groups of channels that the convolution keeps apart.
    weight_encoding
        Encoding of the weights in the network.
    stored_encoding, weight_bits
        Encoding of the weights in memory, and its planes: another one for grouped convolutions of weights with offsets.
    input_planes, output_planes
        Planes of the input and output codes; the output of the last layer is raw accumulators: 0.
    source
        Number of the layer whose output it reads, -1 for the image.
    residual_source
        Number of the layer whose output it adds, or None.
    residual_encoding, residual_bits, residual_planes
        Encoding of the addend's weights, its planes, and planes of the addend; 0 planes without one.
    codebook
        Integers, rising, whose indices are streamed in; None where weights are stored as they are.
    """

    name: str
    kind: Literal["conv", "linear"]
    in_shape: tuple[int, int, int]
    conv_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    pool: tuple[int, int]
    pool_stride: tuple[int, int]
    weight_encoding: Encoding
    stored_encoding: Encoding
    weight_bits: int
    input_planes: int
    output_planes: int
    source: int
    residual_source: int | None
    residual_encoding: Encoding
    residual_bits: int
    residual_planes: int
    codebook: tuple[int, ...] | None = None

    @property
    def weight_planes(self) -> int:
        """Planes of a weight: every encoding has one a bit."""
        return self.weight_bits

    @property
    def fan_in(self) -> int:
        """Weights of one output channel."""
        channels, height, width = self.in_shape
        taps = height * width if self.kind == "linear" else self.kernel[0] * self.kernel[1]
        return channels // self.groups * taps

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, before pooling, padding included."""
        channels, height, width = self.conv_shape
        return channels * height * width * self.fan_in


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A network compiled for an array. Checked when made: a Program that exists can run.

    Parameters
    ----------
    spec
        Array that it was compiled for.
    batch
        Images of one run.
    input
        How images get into activation memory.
    layers
        One entry a layer.
    parts
        For each descriptor the number of the layer that it computes, wholly or some of its row tiles; it rises.
    descriptors
        Descriptor memory, ``uint32``, shape (words,).
    weights
        Weight memories, ``uint8``, shape (rows, words, lanes / 8).
    stream
        Weights that are streamed in during each run, ``uint32``, shape (beats,): for each descriptor with
        ``stream_words``, what :mod:`bitwright.hw.isa` says of streams.
    thresholds
        Threshold memories, ``uint32`` entries of :func:`bitwright.hw.isa.encode_thresholds`, shape (rows, entries).
    coefficients
        Coefficient memories, ``int32``, shape (rows, entries); no entries where no layer has coefficients.
    output_scale, output_offset
        ``float64``, shape (classes,): ``logits = accumulators * output_scale + output_offset``.
    meta
        Anything that JSON holds: where the network came from.
    """

    spec: ArraySpec
    batch: int
    input: InputSpec
    layers: tuple[LayerInfo, ...]
    parts: tuple[int, ...]
    descriptors: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.uint8]
    stream: npt.NDArray[np.uint32]
    thresholds: npt.NDArray[np.uint32]
    coefficients: npt.NDArray[np.int32]
    output_scale: npt.NDArray[np.float64]
    output_offset: npt.NDArray[np.float64]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.batch, int) or self.batch < 1:
            raise BitwrightError(f"Program's batch is {self.batch!r}, expected at least 1 image.")
        self._check_memories()
        parsed = self.parsed
        if len(parsed) != len(self.parts) or sorted({*self.parts}) != list(range(len(self.layers))):
            raise BitwrightError(
                f"Program has {len(parsed)} descriptors, which compute layers {self.parts} of {len(self.layers)}; "
                "it is corrupt, compile it again."
            )
        if list(self.parts) != sorted(self.parts):
            raise BitwrightError("Program does not compute its layers in order; it is corrupt, compile it again.")
        if (used := sum(layer.words for layer in parsed)) != len(self.descriptors):
            raise BitwrightError(
                f"Program has {len(self.descriptors)} descriptor words, its last layer ends after {used}; "
                "compile it again."
            )
        for number, layer in zip(self.parts, parsed, strict=True):
            if layer.images != self.batch:
                raise BitwrightError(
                    f"Layer {self.layers[number].name!r} runs {layer.images} images, the Program says {self.batch}; "
                    "compile it again."
                )
        last = [layer for number, layer in zip(self.parts, parsed, strict=True) if number == self.parts[-1]]
        classes = sum(layer.channels for layer in last)
        if not all(layer.raw for layer in last) or len(self.output_scale) != classes:
            raise BitwrightError("Program does not end in a layer with one raw result a class; compile it again.")
        beats = sum(layer.stream_beats(self.spec) for layer in parsed)
        if len(self.stream) != beats:
            raise BitwrightError(
                f"Program streams {len(self.stream)} beats of weights, its descriptors take {beats}; compile it again."
            )

    def _check_memories(self) -> None:
        spec = self.spec
        shapes: dict[str, tuple[Any, tuple[int | None, ...], int]] = {
            "descriptors": (np.uint32, (None,), spec.descriptor_depth),
            "weights": (np.uint8, (spec.rows, None, spec.lanes // 8), spec.weight_depth),
            "stream": (np.uint32, (None,), 1 << 31),
            "thresholds": (np.uint32, (spec.rows, None), spec.threshold_depth),
            "coefficients": (np.int32, (spec.rows, None), spec.coefficient_depth if spec.coefficient_bits else 0),
            "output_scale": (np.float64, (None,), spec.result_depth),
            "output_offset": (np.float64, (len(self.output_scale),), spec.result_depth),
        }
        for name, (dtype, shape, depth) in shapes.items():
            array: npt.NDArray[Any] = getattr(self, name)
            fits = array.ndim == len(shape) and all(
                size is None or size == found for size, found in zip(shape, array.shape, strict=True)
            )
            if array.dtype != dtype or not fits:
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise BitwrightError(
                    f"Program's {name} are {array.dtype} of shape {array.shape}, "
                    f"expected {np.dtype(dtype)} of shape ({wanted})."
                )
            if (words := array.shape[min(1, array.ndim - 1)]) > depth:
                raise BitwrightError(f"Program has {words} words of {name}, this array holds {depth}.")
        if self.thresholds.size and int(self.thresholds.max()) >> spec.accumulator_width:
            raise BitwrightError(
                f"A threshold entry of the Program has more than {spec.accumulator_width} bits; "
                "it is corrupt, compile it again."
            )
        height, width, channels = self.input.stored_shape
        size = self.batch * height * width * granules_of(channels)
        if not 1 <= self.input.bits <= spec.activation_planes_max or min(height, width, channels) < 1:
            raise BitwrightError(
                f"Program's input has {self.input.bits} bits and stores {height}×{width} pixels of {channels} "
                f"channels, this array takes 1 to {spec.activation_planes_max} bits and at least one of each."
            )
        if self.input.image_bits is not None and not self.input.bits < self.input.image_bits <= 8:
            raise BitwrightError(
                f"Program's input stores codes of {self.input.image_bits} bits as digits of {self.input.bits}, "
                "expected more bits than those of a digit, at most 8; compile it again."
            )
        end = self.input.base + (self.input.bits - 1) * self.input.plane_stride + size
        granules = spec.derived.granules
        if self.input.base < 0 or self.input.base % granules or self.input.plane_stride < size:
            raise BitwrightError(
                f"Program's input starts at granule {self.input.base} in planes of {self.input.plane_stride}, "
                f"expected the start of a word and at least {size}; compile it again."
            )
        if end > spec.activation_depth * granules:
            raise BitwrightError(
                f"Program's input ends at word {-(-end // granules)} of activation memory, this array holds "
                f"{spec.activation_depth}."
            )

    @cached_property
    def parsed(self) -> tuple[Descriptor, ...]:
        """Descriptors of the layers."""
        return tuple(decode_descriptors(self.descriptors, self.spec))

    def logits(self, accumulators: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Outputs of the network, of the shape of its raw results: (images, classes)."""
        return accumulators * self.output_scale + self.output_offset

    # Loading the machine ----------------------------------------------------------------------------------------------

    def pack_images(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """What the host writes to activation memory for one run.

        Parameters
        ----------
        images
            ``uint8``, shape (n, channels, height, width); fewer than the batch are filled up with code 0, so that what
            an earlier run left cannot change the cycles.

        Returns
        -------
        addresses
            ``int64``, shape (k,).
        words
            ``uint8``, shape (k, lanes / 8).
        """
        self.input.check(images)
        if not 1 <= len(images) <= self.batch:
            raise BitwrightError(f"A run takes 1 to {self.batch} images, got {len(images)}.")
        codes = self.input.codes(images)
        full = np.zeros((self.batch, *codes.shape[1:]), np.uint8)
        full[: len(codes)] = codes
        planes = place_channels(split_planes(full, "unsigned", self.input.bits)).reshape(self.input.bits, -1)
        stride = self.input.plane_stride * GRANULE
        bits = np.zeros(stride * (self.input.bits - 1) + planes.shape[1], bool)
        for index, plane in enumerate(planes):
            bits[index * stride : index * stride + planes.shape[1]] = plane
        words = pack_words(split_words(bits, self.spec.lanes))
        return self.input.base // self.spec.derived.granules + np.arange(len(words)), words

    def host_writes(self) -> Iterator[tuple[int, int]]:
        """(bus address, 32-bit data) of each write that loads descriptors, weights, thresholds and coefficients."""
        address = self.spec.derived.host_address
        for index, data in enumerate(self.descriptors.tolist()):
            yield address(Region.DESCRIPTORS, index), data
        for row, words in enumerate(self.weights.view("<u4").tolist()):
            for index, chunks in enumerate(words):
                for chunk, data in enumerate(chunks):
                    yield address(Region.WEIGHTS, index, row, chunk), data
        for region, entries in ((Region.THRESHOLDS, self.thresholds), (Region.COEFFICIENTS, self.coefficients)):
            for row, numbers in enumerate(entries.tolist()):
                for index, data in enumerate(numbers):
                    yield address(region, index, row), data & 0xFFFFFFFF

    def image_writes(self, images: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
        """(bus address, 32-bit data) of each write that loads ``images`` for one run."""
        addresses, words = self.pack_images(images)
        for index, chunks in zip(addresses.tolist(), words.view("<u4").tolist(), strict=True):
            for chunk, data in enumerate(chunks):
                yield self.spec.derived.host_address(Region.ACTIVATIONS, index, chunk=chunk), data

    # File -------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON manifest in its metadata; it appears whole or not at all."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "spec": dataclasses.asdict(self.spec),
            "batch": self.batch,
            "input": dataclasses.asdict(self.input),
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "parts": list(self.parts),
            "meta": dict(self.meta),
            "sha256": {name: _digest(tensor.tobytes()) for name, tensor in tensors.items()},
        }
        manifest["manifest_sha256"] = _digest(_canonical(manifest))
        with replacing(path) as temporary:
            # One entry of metadata: safetensors writes several in any order, and equal Programs are to be equal files.
            temporary.write_bytes(save(tensors, {"manifest": _canonical(manifest).decode()}))

    @classmethod
    def load(cls, path: str | Path, spec: ArraySpec | None = None) -> "Program":
        """Read a Program and check all of it; with ``spec``, also that it was compiled for that array.

        Raises
        ------
        BitwrightError
            If the file is not a whole, unchanged Program of this version, or is for another array.
        """
        path = Path(path)
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except OSError as error:
            reason = "it is a folder" if path.is_dir() else error.strerror or "there is no such file"
            raise BitwrightError(f"Cannot read {path}: {reason}; give a file of `bitwright compile`.") from error
        except (SafetensorError, TypeError) as error:
            raise BitwrightError(f"{path} is not a whole Program file ({error}); compile it again.") from error
        try:
            program = cls(**_read_manifest(metadata, tensors), **tensors)
        except BitwrightError as error:
            raise BitwrightError(f"{path}: {error}") from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise BitwrightError(f"{path} has a value of the wrong kind ({error}); compile it again.") from error
        if spec is not None and spec != program.spec:
            pairs = zip(dataclasses.asdict(program.spec).items(), dataclasses.asdict(spec).values(), strict=True)
            changes = ", ".join(f"{name} {ours} (not {theirs})" for (name, ours), theirs in pairs if ours != theirs)
            raise BitwrightError(f"{path} was compiled for another array: {changes}; compile it for this one.")
        return program


_TENSORS = ("descriptors", "weights", "stream", "thresholds", "coefficients", "output_scale", "output_offset")


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_manifest(metadata: Mapping[str, str], tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Arguments of :class:`Program` other than tensors, after comparing the digests of everything."""
    try:
        manifest = json.loads(metadata.get("manifest", ""))
    except json.JSONDecodeError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BitwrightError("The file has no Program manifest; choose a file written by `bitwright compile`.")
    if manifest.get("version") != VERSION:
        raise BitwrightError(
            f"The Program has version {manifest.get('version')}, this release reads {VERSION}; compile it again."
        )
    if manifest.pop("manifest_sha256", None) != _digest(_canonical(manifest)):
        raise BitwrightError("The manifest does not match its SHA-256; the file was changed, compile it again.")
    if tensors.keys() != set(_TENSORS):
        raise BitwrightError(
            f"The Program has tensors {sorted(tensors)}, expected {sorted(_TENSORS)}; compile it again."
        )
    try:
        for name, tensor in tensors.items():
            if manifest["sha256"][name] != _digest(tensor.tobytes()):
                raise BitwrightError(f"The {name} do not match their SHA-256; the file was changed, compile it again.")
        return {
            "spec": ArraySpec(**manifest["spec"]),
            "batch": manifest["batch"],
            "input": InputSpec(**_tuples(manifest["input"])),
            "layers": tuple(LayerInfo(**_tuples(layer)) for layer in manifest["layers"]),
            "parts": tuple(manifest["parts"]),
            "meta": manifest["meta"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise BitwrightError(
            f"The Program's manifest lacks a part or has an unknown one ({error}); compile it again."
        ) from error


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
