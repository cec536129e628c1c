"""Planning: from layer shapes and precisions to descriptors and memory addresses, without any weights.

Lowering fills the plan with a network's numbers; a search asks it what a candidate would need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    FLAG_LAST,
    FLAG_OFFSET,
    FLAG_RAW,
    THRESHOLD_NEGATE,
    ArraySpec,
    Descriptor,
    Encoding,
    encode_threshold,
    has_offset,
    pack_words,
    place_channels,
    schedule_passes,
    split_planes,
    weight_planes,
)
from bitwright.hw.program import InputSpec, LayerInfo, Program


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Geometry and precision of a layer: what planning needs.

    Parameters
    ----------
    name
        Of the layer in the network, for messages.
    kind
        ``conv`` or ``linear``; a linear layer takes all of ``in_shape``, flattened channel first.
    in_shape
        (channels, height, width) of its input.
    out_channels
        Output channels, or features.
    kernel, stride, padding, dilation
        (vertical, horizontal) of a convolution; both dilations are equal.
    pool, pool_stride
        (vertical, horizontal) of the max pooling that follows, in floor mode; 1 for none.
    weight_encoding, weight_bits
        Encoding of the weights and its bits.
    output_planes
        Planes of the output codes; None for the last layer, whose results stay raw accumulators.
    """

    name: str
    kind: Literal["conv", "linear"]
    in_shape: tuple[int, int, int]
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    pool: tuple[int, int] = (1, 1)
    pool_stride: tuple[int, int] = (1, 1)
    weight_encoding: Encoding = "signed"
    weight_bits: int = 8
    output_planes: int | None = None

    def __post_init__(self) -> None:
        if min(self.conv_shape + self.out_shape) < 1:
            size = " × ".join(map(str, self.in_shape))
            raise BitwrightError(
                f"Layer {self.name!r} has no output: its input of {size} (channels × height × width) is too small for "
                f"its kernel of {self.kernel} and pooling of {self.pool}."
            )

    @property
    def conv_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the output before pooling."""
        if self.kind == "linear":
            return self.out_channels, 1, 1
        sizes = zip(self.in_shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = (
            (size + 2 * pad - step * (taps - 1) - 1) // stride + 1 for size, taps, stride, pad, step in sizes
        )
        return self.out_channels, height, width

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the output."""
        sizes = zip(self.conv_shape[1:], self.pool, self.pool_stride, strict=True)
        height, width = ((size - pool) // stride + 1 for size, pool, stride in sizes)
        return self.out_channels, height, width


@dataclass(frozen=True)
class Plan:
    """Descriptors and addresses of a network.

    Parameters
    ----------
    spec, batch
        Array, and images of one run.
    input
        How the host stores images.
    layers, descriptors
        One entry a layer.
    weight_words, threshold_entries
        Words of each row's weight bank and entries of each row's threshold bank that are used.
    """

    spec: ArraySpec
    batch: int
    input: InputSpec
    layers: tuple[LayerInfo, ...]
    descriptors: tuple[Descriptor, ...]
    weight_words: int
    threshold_entries: int

    def assemble(
        self,
        weights: Sequence[npt.NDArray[np.integer[Any]]],
        thresholds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]],
        output_scale: npt.NDArray[np.float64],
        output_offset: npt.NDArray[np.float64],
        meta: Mapping[str, Any] | None = None,
    ) -> Program:
        """Fill the memories.

        Parameters
        ----------
        weights
            For each layer integers of its encoding, shaped as PyTorch does: (out channels, in channels, kernel height,
            kernel width), or (out features, in features).
        thresholds
            For each layer but the last: values and flags (``THRESHOLD_NEGATE``, ``THRESHOLD_POOL_MIN``), both of shape
            (out channels, 2**planes - 1).
        output_scale, output_offset, meta
            As in :class:`~bitwright.hw.program.Program`.
        """
        spec = self.spec
        weight_memory = np.zeros((spec.rows, self.weight_words, spec.lanes // 8), np.uint8)
        threshold_memory = np.zeros((spec.rows, self.threshold_entries), np.uint32)
        for index, (info, layer) in enumerate(zip(self.layers, self.descriptors, strict=True)):
            words = self._weight_words(index, weights[index])
            weight_memory[:, layer.weight_base : layer.weight_base + words.shape[1]] = words
            if not layer.raw:
                entries = self._threshold_entries(info, layer, *thresholds[index])
                base = (layer.threshold_base + 1) & 0xFFFF
                threshold_memory[:, base : base + entries.shape[1]] = entries
        return Program(
            spec=spec,
            batch=self.batch,
            input=self.input,
            layers=self.layers,
            descriptors=np.concatenate([layer.encode(spec) for layer in self.descriptors]),
            weights=weight_memory,
            thresholds=threshold_memory,
            output_scale=np.asarray(output_scale, np.float64),
            output_offset=np.asarray(output_offset, np.float64),
            meta=dict(meta or {}),
        )

    def _weight_words(self, index: int, weights: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Words of one layer's weights, shape (rows, row tiles × planes × window words, lanes / 8)."""
        info, layer, rows = self.layers[index], self.descriptors[index], self.spec.rows
        taps = info.in_shape[1:] if info.kind == "linear" else info.kernel
        # Row, column, channel: the order in which a window is stored. Packed windows are one pixel of all of it.
        ordered = np.asarray(weights).reshape(info.conv_shape[0], info.in_shape[0], *taps).transpose(0, 2, 3, 1)
        packed = index == 0 and self.input.window is not None
        ordered = ordered.reshape(len(ordered), 1 if packed else taps[0] * taps[1], -1)
        try:
            planes = split_planes(ordered, info.weight_encoding, info.weight_bits)
        except BitwrightError as error:
            raise BitwrightError(f"Layer {info.name!r}: {error}") from error
        placed = place_channels(planes, self.spec.lanes, info.input_channels_per_word)
        memory = np.zeros((len(planes), layer.row_tiles * rows, layer.window_words, self.spec.lanes), bool)
        memory[:, : len(ordered)] = placed.reshape(len(planes), len(ordered), layer.window_words, -1)
        memory = memory.reshape(len(planes), layer.row_tiles, rows, *memory.shape[2:]).transpose(2, 1, 0, 3, 4)
        return pack_words(memory.reshape(rows, -1, self.spec.lanes))

    def _threshold_entries(
        self, info: LayerInfo, layer: Descriptor, values: npt.NDArray[np.int64], flags: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint32]:
        """Entries of one layer's thresholds, shape (rows, row tiles × (2**planes - 1))."""
        levels = (1 << layer.output_planes) - 1
        if values.shape != (layer.channels, levels) or flags.shape != values.shape:
            raise BitwrightError(
                f"Layer {info.name!r} has thresholds of shape {values.shape} with flags of shape {flags.shape}, "
                f"expected {(layer.channels, levels)} for both."
            )
        never = encode_threshold(self.spec.derived.accumulator_range[0], THRESHOLD_NEGATE, self.spec)
        entries = np.full((layer.row_tiles * self.spec.rows, levels), never, np.uint32)
        entries[: layer.channels] = [
            [encode_threshold(value, flag, self.spec) for value, flag in zip(*pair, strict=True)]
            for pair in zip(values.tolist(), flags.tolist(), strict=True)
        ]
        tiles = entries.reshape(layer.row_tiles, self.spec.rows, levels)
        return tiles.transpose(1, 0, 2).reshape(self.spec.rows, -1)


def plan(shapes: Sequence[LayerShape], spec: ArraySpec, *, input_bits: int, batch: int = 1) -> Plan:
    """Plan a network: the last layer of ``shapes`` is raw, all others are not.

    Parameters
    ----------
    shapes
        Layers in order.
    spec
        Array.
    input_bits
        Planes of the image codes.
    batch
        Images of one run.

    Raises
    ------
    BitwrightError
        If a layer does not fit: names the layer, what it needs and what the array has.
    """
    if not shapes:
        raise BitwrightError("The network has no layers, expected at least one convolution or linear layer.")
    for shape in shapes:
        _check_shape(shape, spec, last=shape is shapes[-1])
    if not 1 <= input_bits <= spec.activation_planes_max:
        raise BitwrightError(
            f"The image has {input_bits} bits, this array takes 1 to {spec.activation_planes_max} "
            "(activation_planes_max)."
        )
    if batch < 1:
        raise BitwrightError(f"The batch is {batch}, expected at least 1 image.")
    window = _window(shapes[0], spec)
    if window is None or shapes[0].kind == "linear":
        return _Planner(shapes, spec, input_bits, batch, window).plan()
    try:
        return _Planner(shapes, spec, input_bits, batch, window).plan()
    except BitwrightError:
        # Overlapping windows may take more memory than the image: address the convolution in place instead.
        return _Planner(shapes, spec, input_bits, batch, None).plan()


def _check_shape(shape: LayerShape, spec: ArraySpec, *, last: bool) -> None:
    def refuse(found: str, expected: str) -> None:
        raise BitwrightError(f"Layer {shape.name!r} {found}, {expected}.")

    if (shape.output_planes is None) != last:
        refuse("is raw" if not last else "has output codes", "expected raw results of the last layer and only there")
    if last and shape.pool != (1, 1):
        refuse("pools its raw results", "expected an activation before the pooling, or no pooling")
    planes = len(weight_planes(shape.weight_encoding, shape.weight_bits))
    if not 1 <= planes <= spec.weight_planes_max:
        refuse(f"has {planes}-bit weights", f"this array takes 1 to {spec.weight_planes_max} (weight_planes_max)")
    if shape.output_planes is not None and not 1 <= shape.output_planes <= spec.activation_planes_max:
        refuse(
            f"has {shape.output_planes}-bit outputs",
            f"this array takes 1 to {spec.activation_planes_max} (activation_planes_max)",
        )
    if shape.dilation[0] != shape.dilation[1]:
        refuse(f"has dilation {shape.dilation}", "the array takes the same in both directions")
    tiles = -(-shape.out_channels // spec.rows)
    if tiles > spec.row_tiles_max:
        refuse(
            f"has {shape.out_channels} output channels",
            f"this array takes at most {spec.rows * spec.row_tiles_max} (rows × row_tiles_max)",
        )


def _window(first: LayerShape, spec: ArraySpec) -> tuple[int, int, int, int, int, int] | None:
    """Window that the host packs for the first layer, if that saves words; a linear layer is a window of everything."""
    channels, height, width = first.in_shape
    if first.kind == "linear":
        return height, width, 1, 1, 0, 0
    taps = first.kernel[0] * first.kernel[1]
    if first.dilation == (1, 1) and -(-channels * taps // spec.lanes) < taps * -(-channels // spec.lanes):
        return *first.kernel, *first.stride, *first.padding
    return None


@dataclass
class _Planner:
    """Walks over the layers and hands out memory."""

    shapes: Sequence[LayerShape]
    spec: ArraySpec
    input_bits: int
    batch: int
    window: tuple[int, int, int, int, int, int] | None
    weight_words: int = field(default=0, init=False)
    threshold_entries: int = field(default=0, init=False)
    descriptor_words: int = field(default=0, init=False)

    def plan(self) -> Plan:
        channels, height, width = self.shapes[0].in_shape
        image = InputSpec(
            channels=channels,
            height=height,
            width=width,
            bits=self.input_bits,
            base=0,
            plane_stride=0,
            window=self.window,
        )
        rows, columns, stored = image.stored_shape
        region = _Region(0, rows, columns, -(-stored // self.spec.lanes), self.input_bits, self.batch)
        image = InputSpec(**{**vars(image), "plane_stride": region.plane_words})
        layers: list[LayerInfo] = []
        descriptors: list[Descriptor] = []
        for index, shape in enumerate(self.shapes):
            target = self._output_region(shape, region, high=index % 2 == 0)
            packed = index == 0 and self.window is not None
            descriptor = self._descriptor(shape, region, target, packed=packed)
            layers.append(self._info(shape, region.planes, first=index == 0))
            descriptors.append(descriptor)
            region = target
        return Plan(
            self.spec,
            self.batch,
            image,
            tuple(layers),
            tuple(descriptors),
            self.weight_words,
            self.threshold_entries,
        )

    def _output_region(self, shape: LayerShape, source: "_Region", *, high: bool) -> "_Region":
        """Place a layer's output at the end of the memory that its input does not touch."""
        channels, height, width = shape.out_shape
        if shape.output_planes is None:
            self._need(shape, "results", self.batch * channels * height * width, 0, "result_depth")
            self._need(shape, "words of activations for its input", source.words, 0, "activation_depth")
            return _Region(0, height, width, channels, 1, self.batch)
        words = -(-channels // self.spec.derived.channels_per_word)
        target = _Region(0, height, width, words, shape.output_planes, self.batch)
        what = f"words of activations for its input and output ({source.words} and {target.words})"
        self._need(shape, what, source.words + target.words, 0, "activation_depth")
        if high:
            target.base = self.spec.activation_depth - target.words
        return target

    def _need(self, shape: LayerShape, what: str, words: int, used: int, depth: str) -> None:
        """Refuse a layer that needs more of a memory than there is."""
        held = getattr(self.spec, depth)
        if used + words > held:
            before = f", after {used} of the layers before it" if used else ""
            remedy = (
                "a smaller batch, fewer bits or a larger array" if self.batch > 1 else "fewer bits or a larger array"
            )
            raise BitwrightError(
                f"Layer {shape.name!r} needs {words} {what}{before}, this array has {held} ({depth}); choose {remedy}."
            )

    def _descriptor(self, shape: LayerShape, source: "_Region", target: "_Region", *, packed: bool) -> Descriptor:
        spec = self.spec
        raw = shape.output_planes is None
        flags = FLAG_LAST | FLAG_RAW if raw else 0
        flags |= FLAG_OFFSET if has_offset(shape.weight_encoding) else 0
        height, width, words = source.height, source.width, source.pixel_words
        if shape.kind == "linear":
            # All pixels of an image lie side by side: one pixel of all their words.
            height, width, words = 1, 1, height * width * words
        # Packed windows have done the convolution's walk: a 1×1 kernel over them is left.
        plain = packed or shape.kind == "linear"
        kernel = (1, 1) if plain else shape.kernel
        stride = (1, 1) if plain else shape.stride
        pad_y, pad_x = (0, 0) if plain else shape.padding
        dilation = 1 if plain else shape.dilation[0]
        window_words = kernel[0] * kernel[1] * words
        tiles = -(-shape.out_channels // spec.rows)
        planes = weight_planes(shape.weight_encoding, shape.weight_bits)
        passes = schedule_passes(planes, source.planes, window_words)
        levels = 0 if raw else (1 << target.planes) - 1
        tile_words = len(planes) * window_words
        out_y, out_x = stride[0] * shape.pool_stride[0], stride[1] * shape.pool_stride[1]
        steps = {
            "input_plane_stride": source.plane_words,
            "tap_y_stride": dilation * width * words,
            "tap_x_stride": dilation * words,
            "start_address": source.base - (pad_y * width + pad_x) * words,
            "image_address_step": height * width * words,
            "output_y_address_step": out_y * width * words,
            "output_x_address_step": out_x * words,
            "pool_y_address_step": stride[0] * width * words,
            "pool_x_address_step": stride[1] * words,
            "weight_base": self.weight_words,
            "weight_tile_stride": tile_words,
            "threshold_base": self.threshold_entries - 1,
            "output_base": target.base,
            "output_plane_stride": target.plane_words,
            "output_words": target.pixel_words,
        }
        fields = {
            "flags": flags,
            "passes": len(passes),
            "activation_planes": source.planes,
            "row_tiles": tiles,
            "input_height": height,
            "input_width": width,
            "input_words": words,
            "kernel_height": kernel[0],
            "kernel_width": kernel[1],
            "dilation": dilation,
            "images": self.batch,
            "output_height": target.height,
            "output_width": target.width,
            "pool_height": shape.pool[0],
            "pool_width": shape.pool[1],
            "start_y": -pad_y,
            "start_x": -pad_x,
            "output_y_step": out_y,
            "output_x_step": out_x,
            "pool_y_step": stride[0],
            "pool_x_step": stride[1],
            "output_planes": target.planes,
            "channels": shape.out_channels,
            # The hardware keeps the low bits of every address.
            **{name: value & 0xFFFF for name, value in steps.items()},
        }
        descriptor = Descriptor(fields=fields, passes=tuple(passes))
        try:
            descriptor.encode(spec)
        except BitwrightError as error:
            raise BitwrightError(f"Layer {shape.name!r}: {error}") from error
        self._need(shape, "words of weights", tiles * tile_words, self.weight_words, "weight_depth")
        self._need(shape, "thresholds", tiles * levels, self.threshold_entries, "threshold_depth")
        self._need(shape, "descriptor words", descriptor.words, self.descriptor_words, "descriptor_depth")
        self.weight_words += tiles * tile_words
        self.threshold_entries += tiles * levels
        self.descriptor_words += descriptor.words
        return descriptor

    def _info(self, shape: LayerShape, input_planes: int, *, first: bool) -> LayerInfo:
        return LayerInfo(
            name=shape.name,
            kind=shape.kind,
            in_shape=shape.in_shape,
            conv_shape=shape.conv_shape,
            out_shape=shape.out_shape,
            kernel=shape.kernel,
            stride=shape.stride,
            padding=shape.padding,
            dilation=shape.dilation,
            pool=shape.pool,
            pool_stride=shape.pool_stride,
            weight_encoding=shape.weight_encoding,
            weight_bits=len(weight_planes(shape.weight_encoding, shape.weight_bits)),
            input_planes=input_planes,
            output_planes=shape.output_planes or 0,
            input_channels_per_word=self.spec.lanes if first else self.spec.derived.channels_per_word,
        )


@dataclass
class _Region:
    """Activations in memory: planes of images of pixels of words."""

    base: int
    height: int
    width: int
    pixel_words: int
    planes: int
    images: int

    @property
    def plane_words(self) -> int:
        return self.images * self.height * self.width * self.pixel_words

    @property
    def words(self) -> int:
        return self.planes * self.plane_words
