"""The machine to the letter: packed words, AND, popcount, pass by pass, in and out of one activation memory.

Slow, short and independent of :mod:`bitwright.sim.golden`, which tests compare with it: it shares no code with the
golden model and uses positions where that uses coordinates.
"""

import numpy as np
import numpy.typing as npt

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
)
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
        Activation memory, ``uint8``, shape (positions,): the lanes of a granule, the first one in bit 0. It starts full
        of ones: nothing may depend on what an earlier run left.
    weights
        Weight memories, ``uint8``, shape (rows, weight_depth, lanes / 8), full of ones where the Program has nothing.
    results
        Result memory, ``int64``, shape (result_depth,).
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        spec = program.spec
        self.activations = np.full(spec.activation_depth * spec.derived.granules, 15, np.uint8)
        self.weights = np.full((spec.rows, spec.weight_depth, spec.lanes // 8), 255, np.uint8)
        self.weights[:, : program.weights.shape[1]] = program.weights
        self.results = np.zeros(spec.result_depth, np.int64)

    def run(self, images: npt.NDArray[np.uint8]) -> None:
        """Load images and run all parts."""
        self.load(images)
        for number in range(len(self.program.parsed)):
            self.run_part(number)

    def load(self, images: npt.NDArray[np.uint8]) -> None:
        """Write images to activation memory."""
        addresses, words = self.program.pack_images(images)
        granules = np.stack([words & 15, words >> 4], axis=-1).reshape(len(words), -1)
        self.activations.reshape(-1, granules.shape[1])[addresses] = granules

    def run_part(self, number: int) -> None:
        """Stream in weights, then compute, drain and write every row tile of every window."""
        spec, layer = self.program.spec, self.program.parsed[number]
        self._stream(number)
        words = self.fetch(layer)
        for tile in range(layer.row_tiles):
            numbers = self._sums(layer, words, tile)
            first = tile * spec.rows
            rows = min(spec.rows, layer.channels - first)
            for pixel in range(len(numbers) // layer.pool_area):
                pooled = numbers[pixel * layer.pool_area : (pixel + 1) * layer.pool_area, :rows]
                base = layer.output_base + pixel * layer.output_granules
                if layer.raw:
                    for row in range(rows):
                        self.results[(base + first + row) % spec.result_depth] = pooled[0, row]
                    continue
                codes = self._codes(layer, pooled, tile)
                for plane in range(layer.output_planes):
                    bits = np.pad(codes >> plane & 1, (0, -rows % GRANULE)).reshape(-1, GRANULE)
                    for granule, lanes in enumerate(bits):
                        position = base + first // GRANULE + granule + plane * layer.output_plane_stride
                        self.activations[position % len(self.activations)] = sum(lanes << np.arange(GRANULE))

    def _stream(self, number: int) -> None:
        """Write a part's weights beat by beat, each row's words one after the other, lowest bits first.

        Of coded ones, collect the beats of a word's indices and write the planes that they stand for.
        """
        parts, spec = self.program.parsed, self.program.spec
        layer, chunks = parts[number], spec.derived.chunks
        beats = iter(self.program.stream[sum(other.stream_beats(spec) for other in parts[:number]) :].tolist())

        def take() -> int:
            """The next word."""
            return sum(next(beats) << 32 * chunk for chunk in range(chunks))

        def write(row: int, address: int, word: int) -> None:
            octets = word.to_bytes(spec.lanes // 8, "little")
            self.weights[row, (layer.weight_base + address) % spec.weight_depth] = np.frombuffer(octets, np.uint8)

        if not layer.index_planes:
            for row, address in np.ndindex(spec.rows, layer.stream_words):
                write(row, address, take())
            return
        tables = [next(beats) for _ in range(layer.decoded_planes)]
        for row, tile in np.ndindex(spec.rows, layer.row_tiles):
            address = tile * layer.weight_tile_stride
            for word in range(layer.plain_words):
                write(row, address + word, take())
            for word in range(layer.window_length):
                planes = [take() for _ in range(layer.index_planes)]
                indices = [
                    sum((bits >> lane & 1) << place for place, bits in enumerate(reversed(planes)))
                    for lane in range(spec.lanes)
                ]
                for plane, table in enumerate(tables):
                    decoded = sum((table >> index & 1) << lane for lane, index in enumerate(indices))
                    write(row, address + layer.plain_words + plane * layer.window_length + word, decoded)

    def fetch(self, layer: Descriptor) -> npt.NDArray[np.uint8]:
        """Window buffer for each window in walking order: (windows, words of all planes, bytes)."""
        walk = np.ndindex(layer.images, layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)
        input_planes, residual_planes = np.arange(layer.activation_planes), np.arange(layer.residual_planes)
        tap_y, tap_x, granule = np.ogrid[: layer.kernel_height, : layer.kernel_width, : layer.run_granules]
        fetched: list[npt.NDArray[np.uint8]] = []
        for image, output_y, output_x, pool_y, pool_x in walk:
            y = layer.start_y + output_y * layer.output_y_rows + pool_y * layer.pool_y_rows + tap_y * layer.tap_y_rows
            right = output_x * layer.output_x_step + pool_x * layer.pool_x_step + tap_x * layer.tap_x_step + granule
            x = layer.start_x + right
            down = output_y * layer.output_y_step + pool_y * layer.pool_y_step + tap_y * layer.tap_y_step
            inside = (y >= 0) & (y < layer.input_height) & (x >= 0) & (x < layer.input_width)
            corner = layer.start_position + image * layer.image_step + down + right
            window = self._read(np.add.outer(input_planes * layer.input_plane_stride, corner)) * inside
            corner = (
                layer.residual_base
                + image * layer.residual_image_step
                + output_y * layer.residual_y_step
                + output_x * layer.residual_x_step
                + np.arange(layer.residual_granules)
            )
            residual = self._read(np.add.outer(residual_planes * layer.residual_plane_stride, corner))
            fetched.append(np.concatenate([self._pack(window), self._pack(residual)]))
        return np.stack(fetched)

    def _read(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return self.activations[positions % len(self.activations)]

    def _pack(self, granules: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Words, (planes × words, bytes), of the granules of each plane, one behind the other without gaps."""
        rows = granules.reshape(len(granules), int(np.prod(granules.shape[1:])))
        filled = np.pad(rows, [(0, 0), (0, -rows.shape[1] % self.program.spec.derived.granules)])
        octets = (filled[:, ::2] | filled[:, 1::2] << 4).astype(np.uint8)
        return octets.reshape(-1, self.program.spec.lanes // 8)

    def _sums(self, layer: Descriptor, words: npt.NDArray[np.uint8], tile: int) -> npt.NDArray[np.int64]:
        """Values of a row tile, pass by pass, shape (windows, rows)."""
        spec = self.program.spec
        offset, multiplied = layer.flags & FLAG_OFFSET, layer.flags & FLAG_COEFFICIENTS
        lengths = layer.plane_words(spec)
        sums = np.zeros((len(words), spec.rows), np.int64)
        column_sums = np.zeros((len(words), 1), np.int64)
        for number, entry in enumerate(layer.passes):
            first = layer.weight_base + tile * layer.weight_tile_stride + entry.weight_offset
            weights = self.weights[:, (first + np.arange(lengths[entry.plane])) % spec.weight_depth]
            plane = words[:, entry.base : entry.base + lengths[entry.plane]]
            counts = np.bitwise_count(plane[:, None] & weights).sum((-2, -1), dtype=np.int64)
            # The residual addend never has an offset.
            window = entry.plane < layer.activation_planes
            totals = np.bitwise_count(plane).sum((-2, -1), dtype=np.int64)[:, None] * window
            if multiplied:
                address = layer.coefficient_base + tile * len(layer.passes) + number
                counts = 2 * counts - totals if offset and window else counts
                counts = counts * self.program.coefficients[:, address % spec.coefficient_depth]
            sign = -1 if entry.negate else 1
            sums = _wrapped((sums << entry.doubles) + sign * counts, spec)
            column_sums = _wrapped((column_sums << entry.doubles) + sign * totals, spec)
        return _wrapped(2 * sums - column_sums, spec) if offset and not multiplied else sums

    def _codes(self, layer: Descriptor, numbers: npt.NDArray[np.int64], tile: int) -> npt.NDArray[np.int64]:
        """Pooled codes of the rows, from their values in one pooling window."""
        spec = self.program.spec
        base = layer.threshold_base + (tile << layer.output_planes)
        pooled = np.zeros(numbers.shape[1], np.int64)
        for row in range(len(pooled)):
            ranks: list[int] = []
            flags = int(self.program.thresholds[row, base % spec.threshold_depth])
            for number in numbers[:, row].tolist():
                node = 1
                for _ in range(layer.output_planes):
                    entry = self.program.thresholds[row, (base + node) % spec.threshold_depth]
                    threshold = int(_wrapped(np.array(entry, np.int64), spec))
                    reached = number < threshold if flags & THRESHOLD_NEGATE else number >= threshold
                    node = 2 * node + reached
                ranks.append(node - (1 << layer.output_planes))
            pooled[row] = min(ranks) if flags & THRESHOLD_POOL_MIN else max(ranks)
        if layer.flags & FLAG_TABLE:
            codes = np.zeros_like(pooled)
            for plane in range(min(layer.output_planes, CODE_TABLE_PLANES)):
                codes |= (layer.fields[f"code_table_{plane}"] >> pooled & 1) << plane
            return codes
        return pooled


def _wrapped(numbers: npt.NDArray[np.int64], spec: ArraySpec) -> npt.NDArray[np.int64]:
    width = spec.accumulator_width
    low = numbers & ((1 << width) - 1)
    return low - (low >> (width - 1) << width)
