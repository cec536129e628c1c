"""The machine to the letter: packed words, AND, popcount, pass by pass, in and out of one activation memory.

Slow, short and independent of :mod:`bitwright.sim.golden`, which tests compare with it: it shares no code with the
golden model and uses addresses where that uses coordinates.
"""

import numpy as np
import numpy.typing as npt

from bitwright.hw.isa import FLAG_OFFSET, THRESHOLD_NEGATE, THRESHOLD_POOL_MIN, ArraySpec, Descriptor, pack_words
from bitwright.hw.program import Program


class Machine:
    """Memories of an array, loaded with a Program.

    Parameters
    ----------
    program
        What to run.

    Attributes
    ----------
    activations
        Activation memory, ``uint8``, shape (activation_depth, lanes / 8). It starts full of ones: nothing may depend on
        what an earlier run left.
    results
        Result memory, ``int64``, shape (result_depth,).
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        spec = program.spec
        self.activations = np.full((spec.activation_depth, spec.lanes // 8), 255, np.uint8)
        self.results = np.zeros(spec.result_depth, np.int64)

    def run(self, images: npt.NDArray[np.uint8]) -> None:
        """Load images and run all layers."""
        addresses, words = self.program.pack_images(images)
        self.activations[addresses] = words
        for layer in self.program.parsed:
            self.run_layer(layer)

    def run_layer(self, layer: Descriptor) -> None:
        """Compute, drain and write every row tile of every window."""
        spec = self.program.spec
        words = self._fetch(layer)
        slots = spec.derived.slots
        for tile in range(layer.row_tiles):
            numbers = self._sums(layer, words, tile)
            for pixel in range(len(numbers) // layer.pool_area):
                pooled = numbers[pixel * layer.pool_area : (pixel + 1) * layer.pool_area]
                address = layer.output_base + pixel * layer.output_words
                if layer.raw:
                    for row in range(min(spec.rows, layer.channels - tile * spec.rows)):
                        self.results[(address + tile * spec.rows + row) % spec.result_depth] = pooled[0, row]
                    continue
                codes = self._codes(layer, pooled, tile)
                for plane in range(layer.output_planes):
                    word = address + tile // slots + plane * layer.output_plane_stride
                    self._write(word % spec.activation_depth, tile % slots, codes >> plane & 1)

    def _fetch(self, layer: Descriptor) -> npt.NDArray[np.uint8]:
        """Words of all windows in walking order: (windows, planes, window words, bytes), zero outside the image."""
        fetched: list[npt.NDArray[np.uint8]] = []
        walk = np.ndindex(layer.images, layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)
        taps = list(np.ndindex(layer.kernel_height, layer.kernel_width))
        for image, output_y, output_x, pool_y, pool_x in walk:
            top = layer.start_y + output_y * layer.output_y_step + pool_y * layer.pool_y_step
            left = layer.start_x + output_x * layer.output_x_step + pool_x * layer.pool_x_step
            corner = (
                layer.start_address
                + image * layer.image_address_step
                + output_y * layer.output_y_address_step
                + output_x * layer.output_x_address_step
                + pool_y * layer.pool_y_address_step
                + pool_x * layer.pool_x_address_step
            )
            planes = corner + np.arange(layer.activation_planes) * layer.input_plane_stride
            window: list[npt.NDArray[np.uint8]] = []
            for tap_y, tap_x in taps:
                y, x = top + tap_y * layer.dilation, left + tap_x * layer.dilation
                inside = 0 <= y < layer.input_height and 0 <= x < layer.input_width
                offset = tap_y * layer.tap_y_stride + tap_x * layer.tap_x_stride
                addresses = np.add.outer(planes + offset, np.arange(layer.input_words))
                window.append(self.activations[addresses % self.program.spec.activation_depth] * np.uint8(inside))
            fetched.append(np.concatenate(window, axis=1))
        return np.stack(fetched)

    def _sums(self, layer: Descriptor, words: npt.NDArray[np.uint8], tile: int) -> npt.NDArray[np.int64]:
        """Values of a row tile by Horner's scheme, shape (windows, rows)."""
        spec = self.program.spec
        base = layer.weight_base + tile * layer.weight_tile_stride
        sums = np.zeros((len(words), spec.rows), np.int64)
        column_sums = np.zeros((len(words), 1), np.int64)
        for entry in layer.passes:
            addresses = (base + entry.weight_offset + np.arange(layer.window_words)) % spec.weight_depth
            plane = words[:, entry.activation_plane]
            weights = self.program.weights[:, addresses]
            counts = np.bitwise_count(plane[:, None] & weights).sum((-2, -1), dtype=np.int64)
            totals = np.bitwise_count(plane).sum((-2, -1), dtype=np.int64)[:, None]
            sign = -1 if entry.negate else 1
            sums = _wrapped((sums << entry.double) + sign * counts, spec)
            column_sums = _wrapped((column_sums << entry.double) + sign * totals, spec)
        return _wrapped(2 * sums - column_sums, spec) if layer.flags & FLAG_OFFSET else sums

    def _codes(self, layer: Descriptor, numbers: npt.NDArray[np.int64], tile: int) -> npt.NDArray[np.int64]:
        """Pooled codes of the rows, from their values in one pooling window."""
        spec = self.program.spec
        base = layer.threshold_base + tile * ((1 << layer.output_planes) - 1)
        pooled = np.zeros(spec.rows, np.int64)
        for row in range(spec.rows):
            codes: list[int] = []
            flags = 0
            for number in numbers[:, row].tolist():
                code = 0
                for plane in reversed(range(layer.output_planes)):
                    candidate = code | 1 << plane
                    entry = int(self.program.thresholds[row, (base + candidate) % spec.threshold_depth])
                    flags = entry >> spec.accumulator_width
                    threshold = int(_wrapped(np.array(entry), spec))
                    reached = number < threshold if flags & THRESHOLD_NEGATE else number >= threshold
                    code = candidate if reached else code
                codes.append(code)
            pooled[row] = min(codes) if flags & THRESHOLD_POOL_MIN else max(codes)
        return pooled

    def _write(self, address: int, slot: int, bits: npt.NDArray[np.int64]) -> None:
        """Write a row tile's bits to its slot; the first slot clears the rest of the word."""
        spec = self.program.spec
        lanes = np.zeros(spec.lanes, bool)
        lanes[slot * spec.rows : (slot + 1) * spec.rows] = bits
        kept = np.zeros_like(self.activations[address]) if slot == 0 else self.activations[address]
        self.activations[address] = kept & ~pack_words(_slot_mask(slot, spec)) | pack_words(lanes)


def _slot_mask(slot: int, spec: ArraySpec) -> npt.NDArray[np.bool_]:
    lane = np.arange(spec.lanes)
    return (lane >= slot * spec.rows) & (lane < (slot + 1) * spec.rows)


def _wrapped(numbers: npt.NDArray[np.int64], spec: ArraySpec) -> npt.NDArray[np.int64]:
    width = spec.accumulator_width
    low = numbers & ((1 << width) - 1)
    return low - (low >> (width - 1) << width)
