"""Golden model: what the machine computes, integer for integer, one function for each stage of the hardware.

It needs the descriptors and memories of a Program and nothing else: weights, thresholds and coefficients are read back
from the packed memories, as the hardware reads them. Positions are checked once, against where the network's
activations lie; values are then computed in image coordinates. The dot products of all passes of a layer are one matrix
product, in floating point, of a type that provably holds every intermediate result. :mod:`bitwright.sim.bitserial` does
the same pass by pass.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    GRANULE,
    ArraySpec,
    granules_of,
    place_channels,
)
from bitwright.hw.program import Program
from bitwright.sim import timeline
from bitwright.sim.execution import Execution
from bitwright.sim.reader import Block, Layer, Operand, Part, Windows, read_layers, wrap

CHUNK_ELEMENTS = 1 << 19
"""Window elements or sums that are worked on at once: few enough to stay in the processor's caches."""

CHUNK_IMAGES = 1 << 24
"""Window elements of a layer in the images that go through the network at once."""

# ---------------------------------------------------------------------------------------------------------------------
# Stages of the hardware


def fetch_windows(codes: npt.NDArray[np.uint8], windows: Windows, *, lanes: int = GRANULE) -> npt.NDArray[np.uint8]:
    """View of what every window sees, zero outside the image.

    Parameters
    ----------
    codes
        Shape (images, height, width, entries of a pixel's granules).
    windows
        Where the windows lie.
    lanes
        Entries of a granule: ``GRANULE`` channels, or 1.

    Returns
    -------
    view
        Shape (images, pooling rows, pooling columns, output rows, output columns, kernel rows, kernel columns, entries
        of a tap).
    """
    codes = codes.reshape(len(codes), *windows.image, -1)[..., slice(*(lanes * end for end in windows.granules))]
    padding, first = [(0, 0)] * 4, [0, 0]
    for axis in range(2):
        counts = windows.pool[axis], windows.outputs[axis], windows.kernel[axis]
        steps = windows.pool_step[axis], windows.output_step[axis], windows.tap_step[axis]
        start, size = windows.start[axis], windows.image[axis]
        last = start + sum((count - 1) * step for count, step in zip(counts, steps, strict=True))
        padding[axis + 1] = (max(0, -start), max(0, last + 1 - size))
        first[axis] = max(0, start)
    if any(map(any, padding)):
        codes = np.pad(codes, padding)
    codes = codes[:, first[0] :, first[1] :]
    stride, down, right, entry = codes.strides
    steps = (*windows.pool_step, *windows.output_step, *windows.tap_step)
    return np.lib.stride_tricks.as_strided(
        codes,
        (len(codes), *windows.pool, *windows.outputs, *windows.kernel, codes.shape[-1]),
        (stride, *(step * pixel for step, pixel in zip(steps, (down, right) * 3, strict=True)), entry),
        writeable=False,
    )


def accumulate(windows: npt.NDArray[np.uint8], operand: Operand) -> npt.NDArray[Any]:
    """Sums of all channels over all passes of an operand, exact and with the channels' signs.

    Parameters
    ----------
    windows
        Codes, shape (images, output rows, output columns, kernel rows, kernel columns, lanes).
    operand
        Its weights.

    Returns
    -------
    sums
        Shape (windows, channels).
    """
    weights = operand.weights
    elements = len(weights[0])
    if len(weights) == 1:
        return windows.astype(weights[0].dtype, order="C").reshape(-1, elements) @ weights[0]
    codes = np.ascontiguousarray(windows).reshape(-1, elements)
    sums = np.zeros((len(codes), weights[0].shape[1]), weights[0].dtype)
    for plane, matrix in enumerate(weights):
        sums += (codes >> plane & 1).astype(matrix.dtype) @ matrix
    return sums


def values(sums: npt.NDArray[Any], block: Block, width: int) -> npt.NDArray[Any]:
    """What thresholds see, with the channels' signs: the sums modulo ``2**width``."""
    if block.value_bound < 1 << (width - 1):
        return sums
    return wrap(sums.astype(np.int64) * block.signs, width) * block.signs


def ranks(numbers: npt.NDArray[Any], block: Block) -> npt.NDArray[np.uint8]:
    """How many thresholds are reached, by the threshold units' binary search; of (windows, channels), the same shape.

    Where the least rank is to be kept, it is complemented.
    """
    levels = block.thresholds.shape[1]
    # Long rows are faster than short ones: those of several windows side by side.
    side = math.gcd(len(numbers), 64)
    numbers = numbers.reshape(len(numbers) // side, -1)
    found = np.zeros(numbers.shape, np.uint8)
    if block.ordered and levels <= _COUNTED_LEVELS:
        for level in range(levels):
            found += (numbers >= np.tile(block.thresholds[:, level], side)).view(np.uint8)
        return found.reshape(-1, len(block.signs))
    inverted = np.tile(block.inverted, side)
    table = block.thresholds.reshape(-1)
    first_entry = np.tile(np.arange(len(block.thresholds), dtype=np.int32) * levels - 1, side)
    for plane in reversed(range(levels.bit_length())):
        bit = 1 << plane
        if 2 * bit == levels + 1:
            candidates = np.tile(block.thresholds[:, bit - 1], side)
        else:
            candidates = table.take(first_entry + (found | bit))
        found |= ((numbers >= candidates) ^ inverted).view(np.uint8) << plane
    found = found.reshape(-1, len(block.signs))
    return found if block.ordered else found ^ block.complement


_COUNTED_LEVELS = 7
"""Up to so many thresholds, comparing with all of them is faster than a search."""


def block_values(codes: Sequence[npt.NDArray[np.uint8]], block: Block, spec: ArraySpec, out: npt.NDArray[Any]) -> None:
    """All stages of a block.

    Parameters
    ----------
    codes
        What each operand reads, shape (images, height, width, lanes of granules).
    block
        Its numbers.
    spec
        Array.
    out
        Where codes or raw results go, shape (images, output pixels, channels).
    """
    windows = block.operands[0].windows
    images = max(1, CHUNK_ELEMENTS // (out.shape[1] * max(block.operands[0].weights[0].shape)))
    for start in range(0, len(out), images):
        views = [
            fetch_windows(each[start : start + images], operand.windows)
            for each, operand in zip(codes, block.operands, strict=True)
        ]
        pooled: npt.NDArray[Any] = np.empty(0)
        for pool in np.ndindex(windows.pool):
            sums = accumulate(views[0][:, *pool], block.operands[0])
            for view, operand in zip(views[1:], block.operands[1:], strict=True):
                sums += accumulate(view[:, 0, 0], operand)
            numbers = values(sums, block, spec.accumulator_width)
            if not block.ordered:
                numbers = ranks(numbers, block)
            pooled = np.maximum(pooled, numbers, out=pooled) if any(pool) else numbers
        if not block.raw:
            pooled = ranks(pooled, block) if block.ordered else pooled
            if block.complement.any():
                pooled = pooled ^ block.complement
            if block.table is not None:
                pooled = block.table[pooled]
                pooled[:, block.channels :] = 0
        out[start : start + images] = pooled.reshape(-1, *out.shape[1:])


def layer_values(stages: Sequence[npt.NDArray[Any]], layer: Layer, spec: ArraySpec) -> npt.NDArray[Any]:
    """Output of a layer, shape (images, height, width, lanes), from the images' codes and all earlier outputs.

    Codes have whole granules of channels, zero beyond the last one.
    """
    channels = layer.channels if layer.raw else granules_of(layer.channels) * GRANULE
    pixels = layer.output_shape[0] * layer.output_shape[1]
    outputs = np.empty((len(stages[0]), pixels, channels), np.int64 if layer.raw else np.uint8)
    for block in layer.blocks:
        codes = [stages[operand.source + 1] for operand in block.operands]
        block_values(codes, block, spec, outputs[..., block.first : block.first + len(block.signs)])
    return outputs.reshape(len(outputs), *layer.output_shape, channels)


def network_values(
    program: Program, images: npt.NDArray[np.uint8], *, at_once: int = 64
) -> Iterator[list[npt.NDArray[Any]]]:
    """Run images through all layers, ``at_once`` images at a time.

    Yields
    ------
    stages
        For each group of images: the input codes, the output codes of each layer, and the raw results of the last one;
        each of shape (images, height, width, channels).
    """
    layers = read_layers(program)
    channels = [program.input.stored_shape[2], *(layer.channels for layer in layers)]
    for stages in _stages(program, layers, images, at_once):
        yield [stage[..., :count] for stage, count in zip(stages, channels, strict=True)]


def _stages(
    program: Program, layers: Sequence[Layer], images: npt.NDArray[np.uint8], at_once: int
) -> Iterator[list[npt.NDArray[Any]]]:
    """As :func:`network_values`, of codes with whole granules of channels."""
    for start in range(0, len(images), at_once):
        stages: list[npt.NDArray[Any]] = [place_channels(program.input.codes(images[start : start + at_once]))]
        for layer in layers:
            stages.append(layer_values(stages, layer, program.spec))
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
        Numbers of the descriptors whose writes are listed; needs ``cycles``.
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
    layers = read_layers(program)
    clock = _Clock(program, layers, trace) if cycles else None
    results: list[npt.NDArray[np.int64]] = []
    kept: list[list[npt.NDArray[np.uint8]]] = [[] for _ in layers[:-1]]
    for stages in _stages(program, layers, filled, batch * -(-_images_at_once(layers) // batch)):
        results.append(stages[-1].reshape(len(stages[-1]), -1))
        if clock is not None:
            clock.add(stages)
        if keep:
            for codes, layer, output in zip(kept, layers, stages[1:], strict=False):
                codes.append(np.moveaxis(output[..., : layer.channels], -1, 1))
    runs = len(filled) // batch
    executions = timeline.untimed(runs) if clock is None else clock.executions(runs)
    accumulators = np.concatenate(results)
    outputs = [np.concatenate(codes) for codes in kept] if keep else []
    for start, run in zip(range(0, len(images), batch), executions, strict=True):
        real = slice(start, min(start + batch, len(images)))
        run.accumulators = accumulators[real]
        run.codes = [codes[real] for codes in outputs] if keep else None
    return executions


# ---------------------------------------------------------------------------------------------------------------------
# What the cycle model asks


def _images_at_once(layers: Sequence[Layer]) -> int:
    """Many images of a small network, for long vectors, few of a large one, for little memory."""
    windows = [block.operands[0] for layer in layers for block in layer.blocks]
    elements = max(math.prod(each.windows.outputs + each.windows.pool) * len(each.weights[0]) for each in windows)
    return min(512, max(32, CHUNK_IMAGES // elements))


class _Clock:
    """Collects what the cycle model needs, some images at a time."""

    def __init__(self, program: Program, layers: Sequence[Layer], trace: Collection[int]) -> None:
        self.program = program
        self.parts = [part for layer in layers for part in layer.parts]
        self.useful = [timeline.useful_lanes(program, part.number) for part in self.parts]
        self.works: list[list[timeline.Work]] = [[] for _ in self.parts]
        self.traced: dict[int, list[npt.NDArray[Any]]] = {number: [] for number in trace}

    def add(self, stages: Sequence[npt.NDArray[Any]]) -> None:
        """Take in the outputs of all layers for the images of some runs."""
        spec, batch = self.program.spec, self.program.batch
        activity = _part_activity(self.parts, stages, spec, batch)
        for part, useful, works, active in zip(self.parts, self.useful, self.works, activity, strict=True):
            if active is not None or not works:
                works.append(timeline.part_work(part.descriptor, spec, useful, active))
        for number, outputs in self.traced.items():
            part, layer = self.parts[number], self.program.parts[number]
            channels = stages[layer + 1][..., part.first : part.first + part.descriptor.channels]
            outputs.append(channels.reshape(len(channels) // batch, -1, part.descriptor.channels))

    def executions(self, runs: int) -> list[Execution]:
        """Time all runs."""
        spec = self.program.spec
        works = [
            timeline.Work.join(works, part.descriptor.zero_skip(spec))
            for works, part in zip(self.works, self.parts, strict=True)
        ]
        outputs = {number: np.concatenate(parts) for number, parts in self.traced.items()}
        return timeline.run(self.program, runs, works, outputs)


def first_activity(program: Program, images: npt.NDArray[np.uint8]) -> list[list[npt.NDArray[np.uint8]] | None]:
    """Which words each part finds in its windows in the first run, as :func:`timeline.part_work` takes it.

    Parameters
    ----------
    program
        What to run.
    images
        ``uint8``, shape (n, channels, height, width): those of the first run, at least one.
    """
    first = images[: program.batch]
    filled = np.concatenate([first, np.zeros((program.batch - len(first), *first.shape[1:]), first.dtype)])
    layers = read_layers(program)
    parts = [part for layer in layers for part in layer.parts]
    (stages,) = _stages(program, layers, filled, program.batch)
    return list(_part_activity(parts, stages, program.spec, program.batch))


def _part_activity(
    parts: Sequence[Part], stages: Sequence[npt.NDArray[Any]], spec: ArraySpec, batch: int
) -> Iterator[list[npt.NDArray[np.uint8]] | None]:
    """Activity of the words of each part, of its input and its residual; None for arrays without zero skip."""
    active: dict[tuple[int, Windows], npt.NDArray[np.uint8]] = {}
    for part in parts:
        if spec.zero_skip == "off":
            yield None
            continue
        for operand in part.operands:
            key = operand.source, operand.windows
            if key not in active:
                words = word_activity(stages[operand.source + 1], operand.windows, spec)
                active[key] = words.reshape(len(words), words.shape[1] // batch, -1)
        yield [active[operand.source, operand.windows] for operand in part.operands]


def word_activity(codes: npt.NDArray[np.uint8], windows: Windows, spec: ArraySpec) -> npt.NDArray[np.uint8]:
    """Which planes of each word of every window are not zero.

    Parameters
    ----------
    codes
        What the operand reads, shape (images, height, width, lanes of granules).
    windows
        Its windows.
    spec
        Array.

    Returns
    -------
    active
        ``uint8``, plane ``j`` in bit ``j``, shape (words of a plane, images, windows): windows in the order in which
        the hardware walks them (output row, output column, pooling row, pooling column).
    """
    # A granule's four codes become one: bit j says whether plane j has a bit set there.
    granules = np.ascontiguousarray(codes).view(np.uint32)
    granules = granules | granules >> np.uint32(16)
    granules = (granules | granules >> np.uint32(8)).astype(np.uint8)
    # Images, output and pooling pixels, then granules in the order in which they are packed.
    view = fetch_windows(granules, windows, lanes=1).transpose(0, 3, 4, 1, 2, 5, 6, 7)
    walk, taps = view.shape[1:5], view.shape[5:]
    count, per_word = math.prod(taps), spec.derived.granules
    packed = np.zeros((len(codes), *walk, count + -count % per_word), np.uint8)
    packed[..., :count].reshape(view.shape)[...] = view
    # A word's granules are bytes: eight at once.
    octets = packed.view(np.uint64).reshape(len(codes), math.prod(walk), -1, per_word // 8)
    words = octets[..., 0]
    for index in range(1, octets.shape[-1]):
        words = words | octets[..., index]
    for shift in (32, 16, 8):
        words = words | words >> np.uint64(shift)
    return words.transpose(2, 0, 1).astype(np.uint8, order="C")
