"""What a Program's packed memories say, layer by layer: operands, windows, thresholds, places of activations.

Everything is read back from descriptors and memories, as the hardware reads it, and nothing is taken from the compiler.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    CODE_TABLE_PLANES,
    FLAG_COEFFICIENTS,
    FLAG_OFFSET,
    FLAG_TABLE,
    GRANULE,
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    ArraySpec,
    Descriptor,
    decode_thresholds,
    granules_of,
    pack_words,
    pass_coefficients,
    repeat_table,
    unpack_words,
)
from bitwright.hw.program import Program

IMAGE = -1
"""Number of the images among the layers' outputs."""


@dataclass(frozen=True)
class Region:
    """Codes in activation memory: planes of images of pixels of granules.

    Parameters
    ----------
    base, plane_stride
        Position of the first granule, and granules from plane to plane.
    planes, images, height, width, channels
        What lies there.
    """

    base: int
    plane_stride: int
    planes: int
    images: int
    height: int
    width: int
    channels: int

    @property
    def pixel(self) -> int:
        """Granules of a pixel."""
        return granules_of(self.channels)

    def positions(self, memory: int) -> npt.NDArray[np.int64]:
        """Positions of all granules in a memory of so many."""
        granules = np.arange(self.images * self.height * self.width * self.pixel)
        return (self.base + np.add.outer(np.arange(self.planes) * self.plane_stride, granules)) % memory


@dataclass(frozen=True)
class Windows:
    """Where an operand's windows lie in the images that it reads; pairs are (vertical, horizontal).

    Parameters
    ----------
    image
        Height and width, in pixels. A linear layer sees a single row of all pixels.
    start
        Pixel of the first window's first tap: minus the padding.
    outputs, pool, kernel
        Output pixels, pixels of a pooling window, and taps.
    output_step, pool_step, tap_step
        Pixels from one to the next.
    granules
        First granule of a pixel that is seen, and the one after the last.
    """

    image: tuple[int, int]
    start: tuple[int, int]
    outputs: tuple[int, int]
    pool: tuple[int, int]
    kernel: tuple[int, int]
    output_step: tuple[int, int]
    pool_step: tuple[int, int]
    tap_step: tuple[int, int]
    granules: tuple[int, int]


@dataclass(frozen=True)
class Operand:
    """An input of a layer and its weights.

    Parameters
    ----------
    source
        Number of the layer whose codes it reads, or ``IMAGE``.
    windows
        Where.
    weights
        Shape (window elements, channels), elements in the order kernel row, kernel column, channel, and 0 for channels
        that only fill up a granule. One matrix that the codes are multiplied with, or one for each plane of the codes.
    """

    source: int
    windows: Windows
    weights: tuple[npt.NDArray[Any], ...]


@dataclass(frozen=True)
class Block:
    """Channels of a layer that see the same windows: one matrix product.

    Codes have whole granules of channels; those beyond the last one have no weights and never reach a threshold.

    Parameters
    ----------
    raw
        Whether results are raw accumulators.
    first, channels
        Its first channel, and their number.
    operands
        The input and, if there is one, the residual addend; weights ``float32`` or ``float64``, with the channels'
        ``signs``.
    value_bound
        No value has a greater magnitude, before it is taken modulo ``2**accumulator_width``.
    signs
        -1 where values are negated so that pooling keeps the greatest; shape (channels,).
    thresholds
        Shape (channels, 2**planes - 1), for the signed values; empty for raw results.
    inverted
        Channels whose comparisons are inverted; only those where thresholds are not in order, shape (channels,).
    complement
        What is exclusive-ored to a pooled rank: all ones where pooling keeps the least; shape (channels,).
    ordered
        Whether thresholds rise, so that ranks do with values, and pooling may come first.
    table
        Code of each rank, shape (2**planes,), or None.
    """

    raw: bool
    first: int
    channels: int
    operands: tuple[Operand, ...]
    value_bound: int
    signs: npt.NDArray[np.int64]
    thresholds: npt.NDArray[Any]
    inverted: npt.NDArray[np.bool_]
    complement: npt.NDArray[np.uint8]
    ordered: bool
    table: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class Part:
    """What one descriptor computes, as numbers.

    Parameters
    ----------
    descriptor
        Its descriptor.
    number
        Of the descriptor.
    first
        First channel of its layer.
    operands
        As in :class:`Block`, but integers and without signs.
    thresholds
        ``int64``, shape (channels, 2**planes - 1); empty for raw results.
    negate, pool_min
        ``bool``, shape (channels,).
    """

    descriptor: Descriptor
    number: int
    first: int
    operands: tuple[Operand, ...]
    thresholds: npt.NDArray[np.int64]
    negate: npt.NDArray[np.bool_]
    pool_min: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """A layer's numbers, read from its descriptors and the packed memories.

    Parameters
    ----------
    channels, output_shape
        Output channels, and (height, width) of the output.
    raw
        Whether results are raw accumulators.
    parts
        One for each of its descriptors.
    blocks
        The same channels in as few matrix products as possible.
    """

    channels: int
    output_shape: tuple[int, int]
    raw: bool
    parts: tuple[Part, ...]
    blocks: tuple[Block, ...]


def read_layers(program: Program) -> list[Layer]:
    """Read all layers of a Program.

    Raises
    ------
    BitwrightError
        If a layer does not read what it should, because its descriptors point elsewhere or another layer has
        overwritten it, or if passes, weights or thresholds do not belong together. The hardware would run such
        descriptors; no compiler writes them.
    """
    return _Reader(program).read()


class _Reader:
    """Reads layer by layer and keeps track of what lies where."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.spec = spec = program.spec
        height, width, channels = program.input.stored_shape
        image = program.input
        self.regions = {
            IMAGE: Region(image.base, image.plane_stride, image.bits, program.batch, height, width, channels)
        }
        self.weights = np.zeros((spec.rows, spec.weight_depth, spec.lanes // 8), np.uint8)
        self.weights[:, : program.weights.shape[1]] = program.weights
        self.thresholds = np.zeros((spec.rows, spec.threshold_depth), np.int64)
        self.thresholds[:, : program.thresholds.shape[1]] = program.thresholds
        self.coefficients = np.zeros((spec.rows, spec.coefficient_depth), np.int64)
        self.coefficients[:, : program.coefficients.shape[1]] = program.coefficients
        # Number of the layer whose output each granule of activation memory holds.
        self.owners = np.full(spec.activation_depth * spec.derived.granules, IMAGE - 1)
        self._own(IMAGE)

    def read(self) -> list[Layer]:
        self._check_streams()
        layers: list[Layer] = []
        for index, info in enumerate(self.program.layers):
            numbers = [number for number, layer in enumerate(self.program.parts) if layer == index]
            try:
                layers.append(self._layer(index, numbers))
            except BitwrightError as error:
                raise BitwrightError(f"Layer {info.name!r}: {error}") from error
        return layers

    def _layer(self, index: int, numbers: Sequence[int]) -> Layer:
        info, descriptors = self.program.layers[index], [self.program.parsed[number] for number in numbers]
        region = self._output(descriptors)
        parts: list[Part] = []
        first = 0
        for number, layer in zip(numbers, descriptors, strict=True):
            parts.append(self._part(number, first, info.source, info.residual_source))
            first += layer.channels
        if not descriptors[0].raw:
            self.regions[index] = region
            self._own(index)
        for source in (info.source, info.residual_source):
            if source is not None:
                self._check_whole(source)
        return Layer(
            region.channels, (region.height, region.width), descriptors[0].raw, tuple(parts), tuple(self._blocks(parts))
        )

    # Positions --------------------------------------------------------------------------------------------------------

    def _own(self, number: int) -> None:
        """Note that a region holds a layer's output, all of it."""
        positions = self.regions[number].positions(len(self.owners))
        self.owners[positions] = number
        if np.count_nonzero(self.owners == number) != positions.size:
            raise BitwrightError("Planes of its output overlap.")

    def _check_whole(self, number: int) -> None:
        """Check that nothing has overwritten a layer's output."""
        found = self.owners[self.regions[number].positions(len(self.owners))]
        if (found != number).any():
            names = [*(layer.name for layer in self.program.layers), "an earlier run", "the image"]
            by, whose = names[found[found != number].flat[0]], names[number]
            raise BitwrightError(f"What it reads of {whose!r} has been overwritten by {by!r}.")

    def _output(self, parts: Sequence[Descriptor]) -> Region:
        """Where the parts of a layer write, each some channels of the same pixels."""
        head = parts[0]
        channels = sum(layer.channels for layer in parts)
        pixel = channels if head.raw else granules_of(channels)
        same = ("images", "output_height", "output_width", "output_planes", "output_plane_stride")
        first = 0
        for layer in parts:
            base = first if head.raw else head.output_base + first // GRANULE
            memory = self.spec.result_depth if head.raw else len(self.owners)
            expected = {name: head.fields[name] for name in same} | {"output_granules": pixel}
            for name, value in expected.items():
                if layer.fields[name] != value:
                    raise BitwrightError(f"Descriptor field {name} is {layer.fields[name]}, expected {value}.")
            if layer.raw != head.raw or (layer.output_base - base) % memory or (first % GRANULE and not head.raw):
                raise BitwrightError(
                    f"Descriptor field output_base is {layer.output_base}, its channels, from {first} on, go to {base}."
                )
            if not (layer.row_tiles - 1) * self.spec.rows < layer.channels <= layer.row_tiles * self.spec.rows:
                raise BitwrightError(f"It has {layer.row_tiles} row tiles for {layer.channels} channels.")
            first += layer.channels
        return Region(
            head.output_base,
            head.output_plane_stride,
            head.output_planes,
            head.images,
            head.output_height,
            head.output_width,
            channels,
        )

    def _windows(self, layer: Descriptor, region: Region) -> Windows:
        """Windows of the input, after a check that positions follow from coordinates."""
        pixel, height, width = region.pixel, region.height, region.width
        if (layer.input_height, layer.input_width) == (1, height * width * pixel):
            height, width = 1, height * width  # all pixels side by side, as a linear layer sees them
        row = width * pixel
        if (layer.input_height, layer.input_width) != (height, row):
            raise BitwrightError(
                f"Its input has {layer.input_height} rows of {layer.input_width} granules, the image in memory "
                f"{region.height} of {region.width * pixel}."
            )
        if layer.activation_planes != region.planes or layer.images != region.images:
            raise BitwrightError(
                f"Its input has {layer.activation_planes} planes of {layer.images} images, in memory are "
                f"{region.planes} of {region.images}."
            )
        top_plane = region.base + (region.planes - 1) * region.plane_stride
        self._expect(layer, "start_position", top_plane + layer.start_y * row + layer.start_x, 2)
        self._expect(layer, "input_plane_stride", -region.plane_stride, region.planes)
        self._expect(layer, "image_step", region.height * region.width * pixel, region.images)
        self._expect(layer, "output_y_step", layer.output_y_rows * row, layer.output_height)
        self._expect(layer, "pool_y_step", layer.pool_y_rows * row, layer.pool_height)
        self._expect(layer, "tap_y_step", layer.tap_y_rows * row, layer.kernel_height)

        start, granule = divmod(layer.start_x, pixel)
        taps, tap_step = layer.kernel_width, self._pixels(layer, "tap_x_step", pixel, layer.kernel_width)
        granules = (granule, granule + layer.run_granules)
        if taps == 1 and granule == 0 and layer.run_granules % pixel == 0:
            taps, tap_step, granules = layer.run_granules // pixel, 1, (0, pixel)
        if granules[1] > pixel:
            raise BitwrightError(
                f"Its runs hold {layer.run_granules} granules from granule {granule} of a pixel of {pixel} on, "
                "expected whole pixels or a part of one."
            )
        return Windows(
            image=(height, width),
            start=(layer.start_y, start),
            outputs=(layer.output_height, layer.output_width),
            pool=(layer.pool_height, layer.pool_width),
            kernel=(layer.kernel_height, taps),
            output_step=(layer.output_y_rows, self._pixels(layer, "output_x_step", pixel, layer.output_width)),
            pool_step=(layer.pool_y_rows, self._pixels(layer, "pool_x_step", pixel, layer.pool_width)),
            tap_step=(layer.tap_y_rows, tap_step),
            granules=granules,
        )

    def _residual_windows(self, layer: Descriptor, region: Region) -> Windows:
        """Windows of the residual addend, a pixel each, inside the image."""
        pixel, row = region.pixel, region.width * region.pixel
        top_plane = region.base + (region.planes - 1) * region.plane_stride
        if layer.residual_planes != region.planes:
            raise BitwrightError(f"Its residual has {layer.residual_planes} planes, in memory are {region.planes}.")
        if layer.pool_area > 1:
            raise BitwrightError("It pools and adds a residual.")
        self._expect(layer, "residual_plane_stride", -region.plane_stride, region.planes)
        self._expect(layer, "residual_image_step", region.height * row, region.images)
        step_y, rest = divmod(layer.residual_y_step if layer.output_height > 1 else 0, row)
        if rest:
            raise BitwrightError(
                f"Descriptor field residual_y_step is {layer.residual_y_step}, no multiple of a row of {row} granules."
            )
        step_x = self._pixels(layer, "residual_x_step", pixel, layer.output_width)
        y, start = divmod((layer.residual_base - top_plane) % len(self.owners), row)
        x, granule = divmod(start, pixel)
        last = (y + (layer.output_height - 1) * step_y, x + (layer.output_width - 1) * step_x)
        stop = granule + layer.residual_granules
        if last[0] >= region.height or last[1] >= region.width or stop > pixel:
            raise BitwrightError(
                f"Its residual goes to row {last[0]}, column {last[1]} and granule {stop - 1}, in memory are "
                f"{region.height}×{region.width} pixels of {pixel}."
            )
        return Windows(
            image=(region.height, region.width),
            start=(y, x),
            outputs=(layer.output_height, layer.output_width),
            pool=(1, 1),
            kernel=(1, 1),
            output_step=(step_y, step_x),
            pool_step=(1, 1),
            tap_step=(1, 1),
            granules=(granule, stop),
        )

    def _expect(self, layer: Descriptor, name: str, value: int, count: int) -> None:
        """Check a position or a step, which is never taken along an axis of one entry."""
        if count > 1 and (layer.fields[name] - value) % len(self.owners):
            raise BitwrightError(f"Descriptor field {name} is {layer.fields[name]}, what it reads lies at {value}.")

    def _pixels(self, layer: Descriptor, name: str, pixel: int, count: int) -> int:
        """A horizontal step in pixels."""
        if count == 1:
            return 1
        steps, rest = divmod(layer.fields[name], pixel)
        if rest or steps > 0xFFFF:
            raise BitwrightError(
                f"Descriptor field {name} is {layer.fields[name]}, no multiple of a pixel of {pixel} granules."
            )
        return steps

    # Weights ----------------------------------------------------------------------------------------------------------

    def _check_streams(self) -> None:
        """Check that no part's weights are overwritten while it runs: those of the next one come in meanwhile."""
        depth, parts = self.spec.weight_depth, self.program.parsed
        streamed = [layer.stream_addresses() % depth for layer in parts]
        for number, layer in enumerate(parts):
            words = layer.plane_words(self.spec)
            offsets = {(entry.weight_offset, words[entry.plane]) for entry in layer.passes}
            plane_words = np.concatenate([offset + np.arange(length) for offset, length in offsets])
            tiles = layer.weight_base + np.arange(layer.row_tiles) * layer.weight_tile_stride
            used = np.add.outer(tiles, plane_words) % depth
            others = streamed[number + 1 : number + 2] if layer.stream_words else streamed
            own = np.isin(used, streamed[number]).all() or not layer.stream_words
            if not own or any(np.isin(used, other).any() for other in others):
                raise BitwrightError(
                    f"Layer {self.program.layers[self.program.parts[number]].name!r}: its weights are not all there "
                    "while it runs; another part's are streamed over them, or its own are not."
                )

    def _memory(self, number: int) -> npt.NDArray[np.uint8]:
        """Weight memories while a part runs."""
        layer, parts = self.program.parsed[number], self.program.parsed
        if layer.stream_words:
            start = sum(other.stream_beats(self.spec) for other in parts[:number])
            beats = self.program.stream[start : start + layer.stream_beats(self.spec)]
            self.weights[:, layer.stream_addresses() % self.spec.weight_depth] = streamed_words(layer, self.spec, beats)
        return self.weights

    def _part(self, number: int, first: int, source: int, residual_source: int | None) -> Part:
        layer = self.program.parsed[number]
        memory = self._memory(number)
        thresholds, negate, pool_min = self._thresholds(layer)
        for read in (source, residual_source):
            if read is not None and read not in self.regions:
                raise BitwrightError(f"It reads codes of layer {read}, expected one before it, or the image, {IMAGE}.")
        if (residual_source is None) != (layer.residual_planes == 0):
            raise BitwrightError(f"It has {layer.residual_planes} planes of a residual from layer {residual_source}.")
        sources = [(source, self._windows(layer, self.regions[source]))]
        if residual_source is not None:
            sources.append((residual_source, self._residual_windows(layer, self.regions[residual_source])))
        terms, planes = self._terms(layer), layer.activation_planes
        operands: list[Operand] = []
        for (origin, windows), by_plane in zip(sources, (terms[:planes], terms[planes:]), strict=False):
            low, high = (granule * GRANULE for granule in windows.granules)
            used = np.arange(low, high) < self.regions[origin].channels
            lanes = np.tile(used, windows.kernel[0] * windows.kernel[1])
            weights = self._weights(layer, memory, lanes, by_plane, residual=len(operands) > 0)
            operands.append(Operand(origin, windows, weights))
        return Part(layer, number, first, tuple(operands), thresholds, negate, pool_min)

    def _terms(self, layer: Descriptor) -> list[dict[int, npt.NDArray[np.int64]]]:
        """For each bit of the codes and each weight plane that it meets, by offset: what a count contributes."""
        spec = self.spec
        terms: list[dict[int, npt.NDArray[np.int64]]] = [{} for _ in layer.plane_words(spec)]
        tiles = layer.coefficient_base + np.arange(layer.row_tiles) * len(layer.passes)
        for number, (entry, scale) in enumerate(zip(layer.passes, pass_coefficients(layer.passes), strict=True)):
            factor = wrap(np.array([scale % (1 << spec.accumulator_width)]), spec.accumulator_width)
            if layer.flags & FLAG_COEFFICIENTS:
                rows = self.coefficients[:, (tiles + number) % spec.coefficient_depth].T.reshape(-1)
                factor = factor * rows[: layer.channels]
            plane = terms[layer.code_bit(entry.plane)]
            plane[entry.weight_offset] = plane.get(entry.weight_offset, 0) + factor
        return terms

    def _weights(
        self,
        layer: Descriptor,
        memory: npt.NDArray[np.uint8],
        lanes: npt.NDArray[np.bool_],
        terms: Sequence[dict[int, npt.NDArray[np.int64]]],
        *,
        residual: bool,
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """Weights as in :class:`Operand`; ``lanes`` says which ones of a window hold a channel."""
        spec, multiplied = self.spec, layer.flags & FLAG_COEFFICIENTS
        first = layer.weight_base + np.arange(layer.row_tiles) * layer.weight_tile_stride
        words = np.arange(-(-len(lanes) // spec.lanes))
        # With an offset, a sum counts twice, and every set activation bit is taken off once: not those of a residual.
        gain = 2 if layer.flags & FLAG_OFFSET and not (residual and multiplied) else 1
        bias = 1 if layer.flags & FLAG_OFFSET and not residual else 0
        if _proportional(terms, 1 << spec.accumulator_width):
            terms = terms[:1]
        matrices = [np.zeros((layer.channels, len(lanes)), np.int64) for _ in terms]
        for offset in sorted({offset for plane in terms for offset in plane}):
            packed = memory[:, np.add.outer(first + offset, words) % spec.weight_depth]
            packed = packed.swapaxes(0, 1).reshape(-1, len(words), spec.lanes // 8)[: layer.channels]
            bits = unpack_words(packed).reshape(layer.channels, -1)[:, : len(lanes)]
            counts = (gain * bits.astype(np.int8) - np.int8(bias)) * lanes
            for matrix, plane in zip(matrices, terms, strict=True):
                if offset in plane:
                    matrix += plane[offset][:, None] * counts
        return tuple(matrix.T for matrix in matrices)

    def _thresholds(
        self, layer: Descriptor
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Thresholds and flags as in :class:`Part`."""
        spec, channels = self.spec, layer.channels
        if layer.raw:
            return np.zeros((channels, 0), np.int64), np.zeros(channels, bool), np.zeros(channels, bool)
        size = 1 << layer.output_planes
        if layer.threshold_base % size:
            raise BitwrightError(f"threshold_base is {layer.threshold_base}, expected a multiple of {size}.")
        addresses = layer.threshold_base + np.arange(layer.row_tiles * size).reshape(-1, size)
        entries = self.thresholds[:, addresses % spec.threshold_depth].swapaxes(0, 1).reshape(-1, size)[:channels]
        thresholds, flags = decode_thresholds(entries, spec)
        return thresholds, (flags & THRESHOLD_NEGATE) != 0, (flags & THRESHOLD_POOL_MIN) != 0

    # Blocks -----------------------------------------------------------------------------------------------------------

    def _blocks(self, parts: Sequence[Part]) -> list[Block]:
        blocks: list[list[Part]] = []
        for part in parts:
            if not blocks or _sees(blocks[-1][0]) != _sees(part):
                blocks.append([])
            blocks[-1].append(part)
        return [self._block(block) for block in blocks]

    def _block(self, parts: Sequence[Part]) -> Block:
        layer, spec = parts[0].descriptor, self.spec
        thresholds = np.concatenate([part.thresholds for part in parts])
        negate = np.concatenate([part.negate for part in parts])
        pool_min = np.concatenate([part.pool_min for part in parts])
        joined = [
            (operands[0], [np.concatenate(each, axis=1) for each in zip(*(op.weights for op in operands), strict=True)])
            for operands in zip(*(part.operands for part in parts), strict=True)
        ]
        bounds = np.zeros(len(negate), np.int64)
        for operand, matrices in joined:
            largest = (1 << self.regions[operand.source].planes) - 1 if len(matrices) == 1 else 1
            bounds += sum(np.abs(matrix).sum(0) * largest for matrix in matrices)
        bound = int(bounds.max())
        # All partial sums of a dot product, in any order, are integers up to its bound: exact in a type that holds it.
        if bound >= 1 << 53:
            raise BitwrightError(f"Its values reach {bound}, more than the golden model takes, {1 << 53}.")
        exact = np.float32 if bound < 1 << 24 else np.float64

        # Where ranks rise or fall with values, pooling can come first: it keeps the greatest value, after a change of
        # sign where it has to keep the least. A threshold of the value is reached, or missed, as is one of minus it.
        steps = np.diff(thresholds, axis=1)
        ordered = bool((np.where(negate[:, None], -steps, steps) >= 0).all())
        signs = np.where((negate == pool_min) | (not ordered), 1, -1)
        if ordered:
            thresholds = np.sort(np.where(signs[:, None] > 0, thresholds, 1 - thresholds), axis=1)
        half = 1 << (spec.accumulator_width - 1)
        levels = thresholds.shape[1]
        complement = np.where(pool_min, levels, 0).astype(np.uint8)
        inverted = negate & (not ordered)
        if not layer.raw:
            missing = -len(signs) % GRANULE
            joined = [(each, [np.pad(m, [(0, 0), (0, missing)]) for m in matrices]) for each, matrices in joined]
            never = np.full((missing, levels), min(bound + 1, half))
            thresholds = np.concatenate([thresholds, never])
            signs = np.pad(signs, (0, missing))
            complement, inverted = np.pad(complement, (0, missing)), np.pad(inverted, (0, missing))
        if bound < half:
            thresholds = np.clip(thresholds, -bound, bound + 1).astype(exact)
        return Block(
            raw=layer.raw,
            first=parts[0].first,
            channels=len(negate),
            operands=tuple(
                Operand(each.source, each.windows, tuple(np.ascontiguousarray(m * signs, exact) for m in matrices))
                for each, matrices in joined
            ),
            value_bound=bound,
            signs=signs,
            thresholds=thresholds,
            inverted=inverted,
            complement=complement,
            ordered=ordered,
            table=_code_table(layer),
        )


def _sees(part: Part) -> tuple[Any, ...]:
    """What has to be equal for parts to be computed as one."""
    layer = part.descriptor
    return (
        tuple((operand.source, operand.windows, len(operand.weights)) for operand in part.operands),
        None if (table := _code_table(layer)) is None else table.tolist(),
    )


def _code_table(layer: Descriptor) -> npt.NDArray[np.uint8] | None:
    """Code of each rank, if there is a table."""
    if not layer.flags & FLAG_TABLE:
        return None
    if layer.output_planes > CODE_TABLE_PLANES:
        raise BitwrightError(f"It has a code table for {layer.output_planes} planes, expected {CODE_TABLE_PLANES}.")
    ranks = np.arange(1 << layer.output_planes)
    planes = [(layer.fields[f"code_table_{plane}"] >> ranks & 1) << plane for plane in range(layer.output_planes)]
    return np.sum(planes, axis=0).astype(np.uint8)


def _proportional(terms: Sequence[dict[int, npt.NDArray[np.int64]]], modulus: int) -> bool:
    """Whether plane ``j`` counts ``2**j`` times as much as plane 0, so that codes can be multiplied as a whole."""
    return all(
        plane.keys() == terms[0].keys()
        and all(not (((terms[0][offset] << index) - factor) % modulus).any() for offset, factor in plane.items())
        for index, plane in enumerate(terms)
    )


def streamed_words(layer: Descriptor, spec: ArraySpec, beats: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Words that a part's stream writes to each row, decoded where they are coded.

    Parameters
    ----------
    layer, spec
        Descriptor and array.
    beats
        The part's stream, ``uint32``, shape (beats,).

    Returns
    -------
    words
        Shape (rows, words, lanes / 8), in the order of ``Descriptor.stream_addresses``.
    """
    tables = beats[: len(beats) - layer.stream_words * spec.rows * spec.derived.chunks]
    words = beats[len(tables) :].astype("<u4").view(np.uint8).reshape(spec.rows, layer.stream_words, -1)
    if not layer.index_planes:
        return words
    for table in tables.tolist():
        if table != (expected := repeat_table(table, layer.index_planes, spec)):
            raise BitwrightError(f"A table of its codebook is {table:#x}, expected one that repeats, {expected:#x}.")
    tiles = words.reshape(spec.rows, layer.row_tiles, layer.stream_tile_words, -1)
    plain, coded = np.split(tiles, [layer.plain_words], axis=2)
    coded = coded.reshape(spec.rows, layer.row_tiles, layer.window_length, layer.index_planes, -1)
    significance = np.arange(layer.index_planes)[::-1, None]  # the most significant plane comes first
    indices = (unpack_words(coded).astype(np.uint8) << significance).sum(axis=-2)
    decoded = pack_words(np.stack([(table >> indices & 1).astype(bool) for table in tables], axis=2))
    decoded = decoded.reshape(*plain.shape[:2], -1, plain.shape[-1])
    return np.concatenate([plain, decoded], axis=2).reshape(spec.rows, -1, plain.shape[-1])


def wrap(numbers: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """Two's complement of the low ``width`` bits."""
    half = 1 << (width - 1)
    return ((numbers + half) & ((1 << width) - 1)) - half
