"""Descriptors: header fields, their places and ranges, and what follows from them."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa.constants import ZeroSkip
from bitwright.hw.isa.passes import DOUBLES_MAX, Pass
from bitwright.hw.isa.spec import ArraySpec
from bitwright.hw.isa.timing import SCHEDULE_END, STREAM_OVERHEAD


@dataclass(frozen=True)
class Field:
    """One field of a descriptor.

    Parameters
    ----------
    name
        Of the field.
    low, high
        Range that the array accepts.
    width
        Bits that the hardware keeps: of addresses and steps the low ones.
    help
        Meaning.
    signed
        Whether it is in two's complement.
    bits
        32 takes a word; smaller fields, which follow, share words, the first in the low bits.
    """

    name: str
    low: int
    high: int
    width: int
    help: str
    signed: bool = False
    bits: Literal[8, 16, 32] = 16


FLAG_LAST, FLAG_RAW, FLAG_OFFSET, FLAG_DENSE, FLAG_COEFFICIENTS, FLAG_TABLE = 1, 2, 4, 8, 16, 32
"""Bits of the ``flags`` field: last layer; raw results; weights with an offset; no word is skipped; counts times
coefficients; code table.

With ``FLAG_OFFSET`` a set weight bit counts +1 and a clear one -1: the value is twice the sum less the column sum, or,
with ``FLAG_COEFFICIENTS``, each count is taken so before it is multiplied. With ``FLAG_DENSE`` an array that skips
only gates, as one whose ``zero_skip`` is "gate" does.
"""

CODE_TABLE_PLANES = 4
"""Most output planes of a layer with a code table."""


def descriptor_fields(spec: ArraySpec) -> tuple[Field, ...]:
    """Fields of a descriptor header in order, with the range that this array accepts.

    Positions, addresses and their steps are modulo the memory, so any value stays inside it. Counts are never zero, so
    every loop of the hardware ends.
    """
    derived = spec.derived
    planes = spec.activation_planes_max
    output_width = max(derived.position_width, derived.result_address_width)
    most = min(0xFFFF, (1 << derived.position_width) - 1)  # nothing in memory has more of anything
    flags = FLAG_LAST | FLAG_RAW | FLAG_OFFSET | FLAG_DENSE
    flags |= (FLAG_COEFFICIENTS | FLAG_TABLE) if spec.coefficient_bits else 0
    bits = "1 last, 2 raw results, 4 weights with an offset, 8 no word is skipped, 16 coefficients, 32 code table"

    def position(name: str, meaning: str, width: int = derived.position_width) -> Field:
        return Field(name, 0, 0xFFFFFFFF, width, meaning, bits=32)

    def count(name: str, low: int, high: int, meaning: str, bits: Literal[8, 16] = 16) -> Field:
        return Field(name, low, high, max(1, high.bit_length()), meaning, bits=bits)

    def address(name: str, width: int, meaning: str) -> Field:
        return Field(name, 0, 0xFFFF, min(width, 16), meaning)

    def coded(name: str, high: int, meaning: str, bits: Literal[8, 16]) -> Field:
        """Of no matter where nothing is coded."""
        if spec.codebook_bits:
            return count(name, 0, high, meaning, bits)
        return Field(name, 0, (1 << bits) - 1, 1, meaning, bits=bits)

    def signed(name: str, meaning: str) -> Field:
        return Field(name, -min(0x8000, most), min(0x7FFF, most), 16, meaning, signed=True)

    return (
        position("start_position", "position of the first window's first run, padding included"),
        position("image_step", "granules between images"),
        position("output_y_step", "granules between output rows"),
        position("output_x_step", "granules between output columns, in memory and in the image row"),
        position("pool_y_step", "granules between rows of a pooling window"),
        position("pool_x_step", "granules between columns of a pooling window, in memory and in the image row"),
        position("tap_y_step", "granules between kernel rows"),
        position("tap_x_step", "granules between the runs of a kernel row, in memory and in the image row"),
        position("input_plane_stride", "granules between planes of the input"),
        position("residual_base", "position of the residual addend of the first output pixel"),
        position("residual_image_step", "granules between images of the residual"),
        position("residual_y_step", "granules between residual rows of successive output rows"),
        position("residual_x_step", "granules between residual pixels of successive output columns"),
        position("residual_plane_stride", "granules between planes of the residual"),
        position("output_base", "position of the first output pixel, or address of the first raw result", output_width),
        position("output_plane_stride", "granules between planes of the output"),
        count("flags", 0, flags, bits),
        count("passes", 1, derived.passes_max, "pass words that follow the header"),
        count("activation_planes", 1, planes, "planes of the input"),
        count("residual_planes", 0, planes if spec.residual else 0, "planes of the residual addend, 0 without one"),
        count("row_tiles", 1, spec.row_tiles_max, "row tiles of output channels"),
        count("input_height", 1, most, "rows of the input image, for padding"),
        count("input_width", 1, most, "granules of a row of the input image, for padding"),
        count("kernel_height", 1, 0xFF, "kernel rows", bits=8),
        count("kernel_width", 1, 0xFF, "runs of a kernel row", bits=8),
        count("run_granules", 1, most, "granules of a run"),
        count("residual_granules", 1, most if spec.residual else 1, "granules of a residual pixel"),
        count("chunk_granules", 1, derived.granules, "granules of a run that one read delivers"),
        count("window_length", 1, spec.window_depth, "words of an input plane of a window"),
        count("residual_length", 0, spec.window_depth if spec.residual else 0, "words of a plane of the residual"),
        count("tap_y_rows", 1, 0xFF, "image rows between kernel rows"),
        count("images", 1, most, "images of the batch"),
        count("output_height", 1, most, "output rows, after pooling"),
        count("output_width", 1, most, "output columns, after pooling"),
        count("pool_height", 1, 15, "rows of the pooling window, 1 without pooling", bits=8),
        count("pool_width", 1, 15, "columns of the pooling window, 1 without pooling", bits=8),
        signed("start_y", "image row of the first window: minus the padding"),
        signed("start_x", "granule of the image row at which the first window's runs start"),
        count("output_y_rows", 0, most, "image rows between output rows"),
        count("pool_y_rows", 0, most, "image rows between rows of a pooling window"),
        address("weight_base", derived.weight_address_width, "address of the first row tile's weights"),
        address("weight_tile_stride", derived.weight_address_width, "address step between row tiles of weights"),
        count(
            "stream_words", 0, spec.weight_depth if spec.weight_stream else 0, "weight words of each row streamed in"
        ),
        coded("plain_words", spec.weight_depth, "words of a coded row tile stored as they are, before the others", 16),
        count("index_planes", 0, spec.codebook_bits, "planes of the indices of coded weights, 0 if not coded", bits=8),
        coded("decoded_planes", spec.weight_planes_max, "planes that the indices are decoded to", 8),
        address(
            "threshold_base",
            derived.threshold_address_width,
            "address of the first tile's flags and thresholds",
        ),
        address(
            "coefficient_base",
            derived.coefficient_address_width if spec.coefficient_bits else 1,
            "address of the first row tile's coefficients",
        ),
        count("output_planes", 1, planes, "planes of the output; thresholds per channel are 2**planes - 1"),
        count("output_granules", 0, most, "granules of an output pixel, or raw results of one"),
        count("channels", 1, spec.rows * spec.row_tiles_max, "output channels; rows beyond them are not written"),
        *(
            address(f"code_table_{plane}", 16 if spec.coefficient_bits else 1, f"bit n: plane {plane} of rank n's code")
            for plane in range(CODE_TABLE_PLANES)
        ),
    )


FIELD_NAMES: tuple[str, ...] = tuple(field.name for field in descriptor_fields(ArraySpec()))


def _place_fields() -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    bit = 0
    for field in descriptor_fields(ArraySpec()):
        places[field.name] = divmod(bit, 32)
        bit += field.bits
    return places


FIELD_PLACES: dict[str, tuple[int, int]] = _place_fields()
"""Header word of each field and the bit at which it starts there."""

HEADER_WORDS = max(word for word, _ in FIELD_PLACES.values()) + 1
"""Words of a descriptor header; its pass words follow, then the next layer's header."""

HEADER_TO_READY = HEADER_WORDS + 2
"""Sequencer: from the first cycle of a header's fetch to the first cycle in which its layer may start."""


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """The configuration words of one layer, or of some row tiles of it: header fields, by name, and passes."""

    fields: Mapping[str, int]
    passes: tuple[Pass, ...]

    def __getattr__(self, name: str) -> int:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def words(self) -> int:
        """Words in descriptor memory."""
        return HEADER_WORDS + len(self.passes)

    @property
    def window_granules(self) -> int:
        """Granules of a window, of one plane."""
        return self.kernel_height * self.kernel_width * self.run_granules

    def window_words(self, spec: ArraySpec) -> int:
        """Words of a window, of one plane."""
        return -(-self.window_granules // spec.derived.granules)

    def residual_words(self, spec: ArraySpec) -> int:
        """Words of a residual pixel, of one plane; 0 without a residual addend."""
        return -(-self.residual_granules // spec.derived.granules) if self.residual_planes else 0

    def plane_words(self, spec: ArraySpec) -> list[int]:
        """Words of each plane of the window buffer: of the input, then of the residual addend."""
        residual = [self.residual_words(spec)] * self.residual_planes
        return [self.window_words(spec)] * self.activation_planes + residual

    def code_bit(self, plane: int) -> int:
        """Bit of the codes that a plane of the window holds; bits of the residual's codes follow those of the input's.

        Planes are loaded from the most significant down: passes begin with those.
        """
        first, planes = (
            (0, self.activation_planes)
            if plane < self.activation_planes
            else (self.activation_planes, self.residual_planes)
        )
        return first + planes - 1 - (plane - first)

    def plane_loads(self, spec: ArraySpec) -> list[int]:
        """Reads of activation memory, one a cycle, that load each plane of the windows of a pixel group."""

        def plane(runs: int, granules: int) -> int:
            chunks = -(-granules // self.chunk_granules)
            last = granules - self.chunk_granules * (chunks - 1)
            # A last chunk that ends beyond the word that it starts in needs one more cycle to write that.
            straddles = (runs * granules - last) % spec.derived.granules + last > spec.derived.granules
            return runs * chunks + straddles

        reads = plane(self.kernel_height * self.kernel_width, self.run_granules) * spec.columns_per_copy
        residual_reads = plane(1, self.residual_granules) * spec.columns_per_copy
        return [reads] * self.activation_planes + [residual_reads] * self.residual_planes

    def group_loads(self, spec: ArraySpec) -> int:
        """Reads of activation memory, one a cycle, that load the windows of a pixel group."""
        return sum(self.plane_loads(spec))

    def ready_cycles(self, spec: ArraySpec) -> int:
        """Cycles from a group's first read until it is ready, its words listed, if nothing else holds that up.

        Where words are skipped, passes are listed one a cycle, and each once its plane is loaded.
        """
        loaded = self.group_loads(spec) + spec.derived.load_latency
        if self.zero_skip(spec) != "skip":
            return loaded
        planes = list(itertools.accumulate(self.plane_loads(spec)))
        listed = 0
        for entry in self.passes:
            listed = max(listed + 1, planes[entry.plane] + spec.derived.load_latency)
        return max(listed + SCHEDULE_END, loaded)

    def flagged(self, flag: int, value: bool = True) -> "Descriptor":
        """The same with this flag set, or clear."""
        return replace(self, fields={**self.fields, "flags": self.flags & ~flag | flag * value})

    def zero_skip(self, spec: ArraySpec) -> ZeroSkip:
        """What this layer does with words of zeros on such an array."""
        return "gate" if spec.zero_skip == "skip" and self.flags & FLAG_DENSE else spec.zero_skip

    @property
    def pixels(self) -> int:
        """Windows computed: every pixel of every pooling window of every image."""
        return self.images * self.output_height * self.output_width * self.pool_area

    @property
    def pool_area(self) -> int:
        """Pixels of a pooling window."""
        return self.pool_height * self.pool_width

    @property
    def raw(self) -> bool:
        """Whether results are raw accumulators."""
        return bool(self.flags & FLAG_RAW)

    @property
    def stream_tile_words(self) -> int:
        """Words of a row tile in a coded stream, of one row."""
        return self.plain_words + self.index_planes * self.window_length

    def stream_beats(self, spec: ArraySpec) -> int:
        """Beats of the stream of weights, tables included."""
        tables = self.decoded_planes if self.index_planes else 0
        return tables + self.stream_words * spec.rows * spec.derived.chunks

    def stream_cycles(self, spec: ArraySpec) -> int:
        """Cycles between the readiness of the header and that of the layer, if the stream always has a beat.

        A coded word takes the cycles in which its indices come in, or those in which the word before is written, a
        plane each: whichever is more.
        """
        if not self.stream_words:
            return 0
        if not self.index_planes:
            return self.stream_beats(spec) + (1 if spec.codebook_bits else 0) + STREAM_OVERHEAD
        chunks, planes, plain = spec.derived.chunks, self.decoded_planes, self.plain_words
        coded = chunks * self.index_planes  # beats of a coded word
        first = chunks if plain else coded  # of the first word of a tile
        tile = max(first, planes) + (self.window_length - 1) * max(coded, planes)
        if plain:
            tile += (plain - 1) * chunks + coded
        # Nothing is being written yet when the first word comes in.
        beats = planes + first - max(first, planes) + spec.rows * self.row_tiles * tile
        return beats + planes + STREAM_OVERHEAD

    def stream_addresses(self) -> npt.NDArray[np.int64]:
        """Addresses, not yet modulo the memory, of the words that the stream writes to each row."""
        if not self.index_planes:
            return self.weight_base + np.arange(self.stream_words)
        tile = np.arange(self.plain_words + self.decoded_planes * self.window_length)
        return (self.weight_base + np.add.outer(np.arange(self.row_tiles) * self.weight_tile_stride, tile)).reshape(-1)

    def drain_steps(self, spec: ArraySpec) -> int:
        """Cycles in which the drain works on one column of a row tile: raw results, or steps of a comparator."""
        return spec.rows if self.raw else spec.derived.search_steps(self.output_planes)

    def drain_offset(self, column: int, spec: ArraySpec) -> int:
        """Cycles from the first column of a row tile to this one in the drain; ``column`` may be an array.

        For the number of columns rounded up to whole turns of a comparator, the cycles that the tile takes.
        """
        turns = 1 if self.raw else spec.derived.turns
        return column // turns * turns * self.drain_steps(spec) + column % turns

    def drain_cycles(self, columns: int, spec: ArraySpec) -> int:
        """Cycles that a row tile with so many valid columns takes to drain, before the next one can follow."""
        turns = spec.derived.turns
        return self.drain_offset(columns if self.raw else -(-columns // turns) * turns, spec)

    def check(self, spec: ArraySpec) -> None:
        """Raise :class:`BitwrightError` naming the first field that this array does not accept."""
        for field in descriptor_fields(spec):
            value = self.fields[field.name]
            if not field.low <= value <= field.high:
                raise BitwrightError(
                    f"Descriptor field {field.name} is {value}, this array accepts {field.low} to {field.high}."
                )
        if self.passes and len(self.passes) != self.fields["passes"]:
            raise BitwrightError(f"Descriptor has {len(self.passes)} passes, its header says {self.fields['passes']}.")
        lengths = self.fields["window_length"], self.fields["residual_length"]
        if (expected := (self.window_words(spec), self.residual_words(spec))) != lengths:
            raise BitwrightError(
                f"Descriptor says that a plane of a window has {lengths[0]} words and one of its residual "
                f"{lengths[1]}, its runs have {expected[0]} and {expected[1]}."
            )
        if self.index_planes:
            expected_words = self.row_tiles * self.stream_tile_words
            if not self.decoded_planes or self.stream_words != expected_words:
                raise BitwrightError(
                    f"Descriptor streams {self.stream_words} words of indices, decoded to {self.decoded_planes} "
                    f"planes; its row tiles have {expected_words}, and at least 1 plane."
                )
        plane_words = self.plane_words(spec)
        if (words := sum(plane_words)) > spec.window_depth:
            raise BitwrightError(
                f"A window has {words} words over all planes, this array holds {spec.window_depth} (window_depth); "
                "choose more lanes, fewer bits or a larger array."
            )
        for entry in self.passes:
            if entry.plane >= len(plane_words):
                raise BitwrightError(
                    f"A pass computes plane {entry.plane} of a window, which has {len(plane_words)} of them."
                )
            if entry.base != (start := sum(plane_words[: entry.plane])):
                raise BitwrightError(
                    f"A pass finds plane {entry.plane} at word {entry.base} of the window buffer, it starts at word "
                    f"{start}."
                )
        if (doubles := sum(entry.doubles for entry in self.passes[1:])) > DOUBLES_MAX:
            raise BitwrightError(f"The sums double {doubles} times, at most {DOUBLES_MAX} fit.")

    def encode(self, spec: ArraySpec) -> npt.NDArray[np.uint32]:
        """Words for descriptor memory."""
        self.check(spec)
        header = [0] * HEADER_WORDS
        for field in descriptor_fields(spec):
            word, bit = FIELD_PLACES[field.name]
            header[word] |= (self.fields[field.name] & ((1 << field.bits) - 1)) << bit
        return np.array(header + [entry.encode() for entry in self.passes], np.uint32)

    @classmethod
    def decode(cls, words: npt.NDArray[np.uint32], spec: ArraySpec) -> "Descriptor":
        """Read one descriptor from the start of ``words``, and check it."""
        if len(words) < HEADER_WORDS:
            raise BitwrightError(f"Descriptors end after {len(words)} words of a header of {HEADER_WORDS}.")
        values: dict[str, int] = {}
        for field in descriptor_fields(spec):
            word, bit = FIELD_PLACES[field.name]
            value = int(words[word]) >> bit & ((1 << field.bits) - 1)
            values[field.name] = value - (1 << field.bits) if field.signed and value >> (field.bits - 1) else value
        header = cls(fields=values, passes=())
        header.check(spec)
        if len(words) < HEADER_WORDS + header.fields["passes"]:
            raise BitwrightError(f"Descriptors end inside a list of {header.fields['passes']} passes.")
        body = words[HEADER_WORDS : HEADER_WORDS + header.fields["passes"]]
        layer = cls(fields=values, passes=tuple(Pass.decode(int(word)) for word in body))
        layer.check(spec)
        return layer


def decode_descriptors(words: npt.NDArray[np.uint32], spec: ArraySpec) -> list[Descriptor]:
    """All layers' descriptors, up to the one flagged last."""
    layers: list[Descriptor] = []
    position = 0
    while True:
        layer = Descriptor.decode(words[position:], spec)
        layers.append(layer)
        position += layer.words
        if layer.flags & FLAG_LAST:
            return layers
