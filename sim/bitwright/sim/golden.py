"""Golden model: what the machine computes, integer for integer, one function for each stage of the hardware.

It needs the descriptors and memories of a Program and nothing else: weights and thresholds are read back from the
packed memories, as the hardware reads them. The dot products of all passes of a layer are one matrix product, in
floating point, of a type that provably holds every intermediate result. :mod:`bitwright.sim.bitserial` does the same
pass by pass.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    FLAG_OFFSET,
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    ArraySpec,
    Descriptor,
    pass_coefficients,
    unpack_words,
)
from bitwright.hw.program import Program
from bitwright.sim import timeline
from bitwright.sim.execution import Execution

CHUNK_ELEMENTS = 1 << 21
"""Window elements or sums that are worked on at once: few enough to stay in the processor's caches."""


# ---------------------------------------------------------------------------------------------------------------------
# What the memories hold


@dataclass(frozen=True)
class Layer:
    """A layer's numbers, read from its descriptor and the packed memories.

    Parameters
    ----------
    descriptor
        Its descriptor.
    channels_per_word
        Lanes used in a full word of the input.
    weights
        ``float32`` or ``float64``, shape (window elements, row tiles × rows), and for weights with an offset a last
        column: what every row would sum up if all its weight bits were set.
    value_bound
        No value of the layer has a greater magnitude, before it is taken modulo ``2**accumulator_width``.
    thresholds
        ``int32``, shape (row tiles × rows, 2**planes - 1); empty for raw results.
    negate, pool_min
        ``bool``, shape (row tiles × rows,).
    """

    descriptor: Descriptor
    channels_per_word: int
    weights: npt.NDArray[np.floating[Any]]
    value_bound: int
    thresholds: npt.NDArray[np.int32]
    negate: npt.NDArray[np.bool_]
    pool_min: npt.NDArray[np.bool_]


def read_layers(program: Program) -> list[Layer]:
    """Read all layers of a Program.

    Raises
    ------
    BitwrightError
        If a layer does not read what the layer before it wrote, or its passes are no product of weight and activation
        planes. The hardware would run such descriptors; no compiler writes them.
    """
    spec = program.spec
    height, width, channels = program.input.stored_shape
    words = -(-channels // spec.lanes)
    # Where the layer's input lies: base, plane stride, words of an image and of a pixel.
    source = (program.input.base, program.input.plane_stride, height * width * words, words)
    used, per_word = np.arange(words * spec.lanes) < channels, spec.lanes
    layers: list[Layer] = []
    for info, layer in zip(program.layers, program.parsed, strict=True):
        try:
            _check_addresses(layer, source, spec)
            weights, bound = _read_weights(layer, program, np.tile(used, layer.input_words // source[3]))
            thresholds, negate, pool_min = _read_thresholds(layer, program)
        except BitwrightError as error:
            raise BitwrightError(f"Layer {info.name!r}: {error}") from error
        layers.append(Layer(layer, per_word, weights, bound, thresholds, negate, pool_min))
        words = layer.output_words
        source = (layer.output_base, layer.output_plane_stride, layer.output_height * layer.output_width * words, words)
        per_word = spec.derived.channels_per_word
        lane = np.arange(spec.lanes)
        word = np.arange(words)[:, None]
        used = ((lane < per_word) & (word * per_word + lane < layer.row_tiles * spec.rows)).reshape(-1)
    return layers


def conv_stride(layer: Descriptor) -> tuple[int, int]:
    """Image rows and columns from one computed window to the next: within a pooling window, where there is one."""
    return (
        layer.pool_y_step if layer.pool_height > 1 else layer.output_y_step,
        layer.pool_x_step if layer.pool_width > 1 else layer.output_x_step,
    )


def pool_stride(layer: Descriptor) -> tuple[int, int]:
    """Windows from one pooling window to the next."""
    stride_y, stride_x = conv_stride(layer)
    return layer.output_y_step // stride_y, layer.output_x_step // stride_x


def _check_addresses(layer: Descriptor, source: tuple[int, int, int, int], spec: ArraySpec) -> None:
    """Check that addresses follow from image coordinates, so that values can be computed without addresses."""
    base, plane_stride, image_words, pixel_words = source
    row = layer.input_width * layer.input_words
    stride_y, stride_x = conv_stride(layer)
    expected = {
        "image_address_step": image_words,
        "input_plane_stride": plane_stride,
        "start_address": base + layer.start_y * row + layer.start_x * layer.input_words,
        "tap_y_stride": layer.dilation * row,
        "tap_x_stride": layer.dilation * layer.input_words,
        "output_y_address_step": layer.output_y_step * row,
        "output_x_address_step": layer.output_x_step * layer.input_words,
        "pool_y_address_step": layer.pool_y_step * row,
        "pool_x_address_step": layer.pool_x_step * layer.input_words,
    }
    # A step along an axis of one entry is never taken.
    single = {
        "image_address_step": layer.images == 1,
        "input_plane_stride": layer.activation_planes == 1,
        "tap_y_stride": layer.kernel_height == 1,
        "tap_x_stride": layer.kernel_width == 1,
        "output_y_address_step": layer.output_height == 1,
        "output_x_address_step": layer.output_width == 1,
        "pool_y_address_step": layer.pool_height == 1,
        "pool_x_address_step": layer.pool_width == 1,
    }
    for name, value in expected.items():
        if not single.get(name) and (layer.fields[name] - value) % spec.activation_depth:
            raise BitwrightError(
                f"Descriptor field {name} is {layer.fields[name]}, its input lies at steps of {value}."
            )
    if layer.input_height * row != image_words or layer.input_words % pixel_words:
        raise BitwrightError(
            f"Its input has {layer.input_height}×{layer.input_width} pixels of {layer.input_words} words, the image in "
            f"memory has {image_words} words in pixels of {pixel_words}."
        )
    if stride_y < 1 or stride_x < 1 or layer.output_y_step % stride_y or layer.output_x_step % stride_x:
        raise BitwrightError("Pooling windows do not start at multiples of the convolution's stride.")


def _plane_coefficients(layer: Descriptor) -> dict[int, int]:
    """What a set bit of the weight plane at each offset contributes."""
    by_pair = {
        (entry.weight_offset, entry.activation_plane): coefficient
        for entry, coefficient in zip(layer.passes, pass_coefficients(layer.passes), strict=True)
    }
    planes = {offset: coefficient for (offset, plane), coefficient in by_pair.items() if plane == 0}
    products = {
        (offset, plane): coefficient << plane
        for offset, coefficient in planes.items()
        for plane in range(layer.activation_planes)
    }
    if by_pair != products or len(by_pair) != len(layer.passes):
        raise BitwrightError("Its passes are not every pair of a weight plane and an activation plane.")
    return planes


def _read_weights(
    layer: Descriptor, program: Program, used: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.floating[Any]], int]:
    """Weights, as in :class:`Layer`, of the lanes of a pixel that are ``used``, and the bound of the values."""
    spec = program.spec
    memory = np.zeros((spec.rows, spec.weight_depth, spec.lanes // 8), np.uint8)
    memory[:, : program.weights.shape[1]] = program.weights
    tile_bases = layer.weight_base + np.arange(layer.row_tiles) * layer.weight_tile_stride
    first = np.add.outer(tile_bases, np.arange(layer.window_words))
    lanes = np.tile(used, layer.kernel_height * layer.kernel_width)
    planes = _plane_coefficients(layer)
    integers = np.zeros((layer.row_tiles * spec.rows, np.count_nonzero(lanes)), np.int64)
    for offset, coefficient in planes.items():
        words = memory[:, (first + offset) % spec.weight_depth].swapaxes(0, 1)
        bits = unpack_words(words.reshape(len(integers), -1, words.shape[-1])).reshape(len(integers), -1)
        integers += coefficient * bits[:, lanes]
    largest_code = (1 << layer.activation_planes) - 1
    if layer.flags & FLAG_OFFSET:
        integers = np.vstack([integers, np.full((1, integers.shape[1]), sum(planes.values()))])
    bounds = np.abs(integers).sum(1) * largest_code
    bound = int(2 * bounds[:-1].max() + bounds[-1] if layer.flags & FLAG_OFFSET else bounds.max())
    # All partial sums of a dot product, in any order, are integers up to its bound: exact in a type that holds it. The
    # largest array stays far below 2**53: 2**14 words of 256 lanes with 8-bit weights and codes give 2**38.
    exact = np.float32 if bound < 1 << 24 else np.float64
    return np.ascontiguousarray(integers.T, exact), bound


def _read_thresholds(
    layer: Descriptor, program: Program
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Thresholds and flags as in :class:`Layer`."""
    spec = program.spec
    channels = layer.row_tiles * spec.rows
    if layer.raw:
        return np.zeros((channels, 0), np.int32), np.zeros(channels, bool), np.zeros(channels, bool)
    levels = (1 << layer.output_planes) - 1
    memory = np.zeros((spec.rows, spec.threshold_depth), np.uint32)
    memory[:, : program.thresholds.shape[1]] = program.thresholds
    addresses = layer.threshold_base + np.add.outer(np.arange(layer.row_tiles) * levels, 1 + np.arange(levels))
    entries = memory[:, addresses % spec.threshold_depth].swapaxes(0, 1).reshape(channels, levels).astype(np.int64)
    flags = entries >> spec.accumulator_width
    if (flags != flags[:, :1]).any():
        raise BitwrightError("A channel's threshold entries have different flags, expected the same in all of them.")
    thresholds = wrap(entries, spec.accumulator_width).astype(np.int32)
    return thresholds, (flags[:, 0] & THRESHOLD_NEGATE) != 0, (flags[:, 0] & THRESHOLD_POOL_MIN) != 0


# ---------------------------------------------------------------------------------------------------------------------
# Stages of the hardware


def fetch_windows(codes: npt.NDArray[np.uint8], layer: Descriptor, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Codes under every window, zero outside the image.

    Parameters
    ----------
    codes
        Input, shape (images, height, width, channels); any shape with as many elements for a linear layer.
    layer
        Descriptor.
    dtype
        Of the result.

    Returns
    -------
    windows
        Shape (images, rows of windows, columns of windows, window elements), elements in the order kernel row, kernel
        column, channel.
    """
    codes = codes.reshape(len(codes), layer.input_height, layer.input_width, -1)
    for axis, start, size, (count, step), taps in (
        (1, layer.start_y, layer.input_height, _windows(layer, 0), layer.kernel_height),
        (3, layer.start_x, layer.input_width, _windows(layer, 1), layer.kernel_width),
    ):
        # After the first round the row taps have an axis of their own behind the rows.
        span = (taps - 1) * layer.dilation + 1
        before = max(0, -start)
        after = max(0, start + (count - 1) * step + span - size)
        codes = np.pad(codes, [(before, after) if index == axis else (0, 0) for index in range(codes.ndim)])
        views = np.lib.stride_tricks.sliding_window_view(codes, span, axis)
        first = start + before
        views = views[(slice(None),) * axis + (slice(first, first + (count - 1) * step + 1, step),)]
        codes = np.moveaxis(views[..., :: layer.dilation], -1, axis + 1)
    images, rows, _, columns = codes.shape[:4]
    # Now (images, rows, row taps, columns, column taps, channels).
    return codes.swapaxes(2, 3).astype(dtype).reshape(images, rows, columns, -1)


def _windows(layer: Descriptor, axis: int) -> tuple[int, int]:
    """Windows along an axis, and image rows or columns between them."""
    outputs = (layer.output_height, layer.output_width)[axis]
    pool = (layer.pool_height, layer.pool_width)[axis]
    return (outputs - 1) * pool_stride(layer)[axis] + pool, conv_stride(layer)[axis]


def accumulate(windows: npt.NDArray[Any], layer: Layer) -> npt.NDArray[Any]:
    """Sums of all rows and, for weights with an offset, the column sum: (..., row tiles × rows (+ 1)), exact."""
    return (windows.reshape(-1, windows.shape[-1]) @ layer.weights).reshape(*windows.shape[:-1], -1)


def values(sums: npt.NDArray[Any], layer: Layer, width: int) -> npt.NDArray[np.signedinteger[Any]]:
    """What thresholds see: the sums, or twice the sums less the column sum, modulo ``2**width``."""
    if layer.descriptor.flags & FLAG_OFFSET:
        sums = 2 * sums[..., :-1] - sums[..., -1:]
    if layer.value_bound < 1 << (width - 1):
        return sums.astype(np.int32)
    return wrap(sums.astype(np.int64), width)


def wrap(numbers: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Two's complement of the low ``width`` bits."""
    half = 1 << (width - 1)
    return ((numbers + half) & ((1 << width) - 1)) - half


def threshold_codes(numbers: npt.NDArray[np.signedinteger[Any]], layer: Layer) -> npt.NDArray[np.uint8]:
    """Codes by the threshold units' binary search, most significant bit first; shape as ``numbers``."""
    codes = np.zeros(numbers.shape, np.uint8)
    levels = layer.thresholds.shape[1]
    table = layer.thresholds.reshape(-1)
    first_entry = np.arange(len(layer.thresholds), dtype=np.int32) * levels - 1
    for plane in reversed(range(layer.descriptor.output_planes)):
        bit = 1 << plane
        first = 2 * bit == levels + 1
        candidates = layer.thresholds[:, bit - 1] if first else table.take(first_entry + (codes | bit))
        codes |= ((numbers >= candidates) ^ layer.negate).view(np.uint8) << plane
    return codes


def pool_codes(codes: npt.NDArray[np.uint8], layer: Layer) -> npt.NDArray[np.uint8]:
    """Greatest code, or least where ``pool_min``, of each pooling window: (images, height, width, channels)."""
    descriptor = layer.descriptor
    if descriptor.pool_area == 1:
        return codes
    # The least code is the greatest of the complements.
    flip = np.where(layer.pool_min, 255, 0).astype(np.uint8)
    codes = codes ^ flip
    step_y, step_x = pool_stride(descriptor)
    parts = [
        codes[:, y:, x:][:, ::step_y, ::step_x][:, : descriptor.output_height, : descriptor.output_width]
        for y in range(descriptor.pool_height)
        for x in range(descriptor.pool_width)
    ]
    pooled = parts[0].copy()
    for part in parts[1:]:
        np.maximum(pooled, part, out=pooled)
    return pooled ^ flip


def layer_values(codes: npt.NDArray[np.uint8], layer: Layer, spec: ArraySpec) -> npt.NDArray[Any]:
    """All stages of a layer.

    Parameters
    ----------
    codes
        Input, shape (images, height, width, channels).
    layer
        Its numbers.
    spec
        Array.

    Returns
    -------
    outputs
        Codes, ``uint8``, or raw results, ``int64``; shape (images, height, width, row tiles × rows).
    """
    descriptor = layer.descriptor
    windows = _windows(descriptor, 0)[0] * _windows(descriptor, 1)[0]
    images = max(1, CHUNK_ELEMENTS // (windows * max(layer.weights.shape)))
    shape = (len(codes), descriptor.output_height, descriptor.output_width, len(layer.negate))
    outputs = np.empty(shape, np.int64 if descriptor.raw else np.uint8)
    for start in range(0, len(codes), images):
        part = slice(start, start + images)
        fetched = fetch_windows(codes[part], descriptor, layer.weights.dtype)
        numbers = values(accumulate(fetched, layer), layer, spec.accumulator_width)
        outputs[part] = numbers if descriptor.raw else pool_codes(threshold_codes(numbers, layer), layer)
    return outputs


def network_values(
    program: Program, images: npt.NDArray[np.uint8], *, at_once: int = 64
) -> Iterator[list[npt.NDArray[Any]]]:
    """Run images through all layers, ``at_once`` images at a time.

    Yields
    ------
    stages
        For each group of images: the input codes, the output codes of each layer, which are the next one's input, and
        the raw results of the last; each of shape (images, height, width, channels). Channels that only fill up a row
        tile are included.
    """
    layers = read_layers(program)
    for start in range(0, len(images), at_once):
        stages: list[npt.NDArray[Any]] = [program.input.codes(images[start : start + at_once])]
        for layer in layers:
            stages.append(layer_values(stages[-1], layer, program.spec))
        yield stages


def execute(
    program: Program,
    images: npt.NDArray[np.uint8],
    *,
    trace: Collection[int] = (),
    cycles: bool = True,
    keep: bool = False,
) -> list[Execution]:
    """Predict the runs that compute ``images``, a batch each; the last one is filled up with black images.

    Parameters
    ----------
    program
        What to run.
    images
        ``uint8``, shape (n, channels, height, width).
    trace
        Layers whose writes are listed; needs ``cycles``.
    cycles
        Predict cycles and counters too.
    keep
        Return the output codes of every layer.

    Returns
    -------
    runs
        ``ceil(n / batch)`` executions.
    """
    batch = program.batch
    program.input.check(images)
    if len(images) == 0:
        raise BitwrightError("There are no images, expected at least one.")
    filled = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)])
    runs: list[Execution] = []
    for stages in network_values(program, filled, at_once=batch * -(-64 // batch)):
        outputs = [stage[..., : layer.channels] for stage, layer in zip(stages[1:], program.parsed, strict=True)]
        group = _timed(program, stages, outputs, trace) if cycles else _untimed(len(stages[0]) // batch)
        for start, run in zip(range(0, len(filled), batch), group, strict=False):
            real = slice(start, min(start + batch, start + len(images) - len(runs) * batch))
            run.accumulators = outputs[-1][real].reshape(len(outputs[-1][real]), -1)
            run.codes = [np.moveaxis(codes[real], -1, 1) for codes in outputs[:-1]] if keep else None
            runs.append(run)
    return runs


def _untimed(runs: int) -> list[Execution]:
    return [Execution(np.empty((0, 0), np.int64), 0, {}, []) for _ in range(runs)]


def _timed(
    program: Program, stages: list[npt.NDArray[Any]], outputs: list[npt.NDArray[Any]], trace: Collection[int]
) -> list[Execution]:
    """Cycles, counters and traced writes of the runs that have these inputs and outputs of all layers."""
    runs = len(stages[0]) // program.batch

    def nonzero(number: int) -> npt.NDArray[np.bool_]:
        per_word = program.layers[number].input_channels_per_word
        active = word_activity(stages[number], program.parsed[number], program.spec, per_word)
        return active.reshape(runs, -1, *active.shape[2:])

    def written(number: int) -> npt.NDArray[Any]:
        return outputs[number].astype(np.int64).reshape(runs, -1, program.parsed[number].channels)

    return timeline.run(program, runs, nonzero, written, trace)


# ---------------------------------------------------------------------------------------------------------------------
# What the cycle model asks


def word_activity(
    codes: npt.NDArray[np.uint8], layer: Descriptor, spec: ArraySpec, channels_per_word: int
) -> npt.NDArray[np.bool_]:
    """Which words of every window a column computes on: those inside the image and, with zero skip, not zero.

    Parameters
    ----------
    codes
        Input of the layer, shape (images, height, width, channels).
    layer
        Descriptor.
    spec
        Array.
    channels_per_word
        Lanes used in a full word of the input.

    Returns
    -------
    active
        Shape (images, windows, planes, window words): windows in the order in which the hardware walks them (output
        row, output column, pooling row, pooling column), words in the order kernel row, kernel column, word.
    """
    ys = _walk(layer.start_y, layer.output_height, layer.output_y_step, layer.pool_height, layer.pool_y_step)
    xs = _walk(layer.start_x, layer.output_width, layer.output_x_step, layer.pool_width, layer.pool_x_step)
    # Axes: output row, output column, pooling row, pooling column, kernel row, kernel column.
    y = ys[:, None, :, None, None, None] + np.arange(layer.kernel_height)[:, None] * layer.dilation
    x = xs[None, :, None, :, None, None] + np.arange(layer.kernel_width) * layer.dilation
    y, x = np.broadcast_arrays(y, x)
    taps = layer.kernel_height * layer.kernel_width
    y, x = y.reshape(-1, taps), x.reshape(-1, taps)
    inside = (y >= 0) & (y < layer.input_height) & (x >= 0) & (x < layer.input_width)
    shape = (len(codes), len(y), layer.activation_planes, taps, layer.input_words)
    if spec.zero_skip == "off":
        return np.broadcast_to(inside[:, None, :, None], shape).reshape(*shape[:3], -1)
    present = _or_words(codes, channels_per_word)
    present = present.reshape(len(codes), layer.input_height, layer.input_width, layer.input_words)
    windows = np.where(inside[..., None], present[:, np.where(inside, y, 0), np.where(inside, x, 0)], 0)
    planes = windows[:, :, None] >> np.arange(layer.activation_planes, dtype=np.uint8)[:, None, None] & 1
    return planes.astype(bool).reshape(*shape[:3], -1)


def _walk(start: int, outputs: int, output_step: int, pool: int, pool_step: int) -> npt.NDArray[np.int64]:
    """Image coordinate of the first tap, by output and place in the pooling window."""
    return start + np.add.outer(np.arange(outputs) * output_step, np.arange(pool) * pool_step)


def _or_words(codes: npt.NDArray[np.uint8], channels_per_word: int) -> npt.NDArray[np.uint8]:
    """Bitwise or of the codes of each word: bit ``j`` says whether plane ``j`` of the word has a bit set."""
    starts = np.arange(0, codes.shape[-1], channels_per_word)
    return np.bitwise_or.reduceat(codes, starts, axis=-1)
