"""The contract that generator, golden model and compiler share: array parameters, descriptors, layouts, timing.

Plain Python and NumPy, no Amaranth: every number that two parts need to agree on is computed here and nowhere else.

Memory layouts
--------------
Activations are stored as codes, one word of ``lanes`` bits for each plane::

    pixel = (image * height + y) * width + x
    address(pixel, word, plane) = base + plane * plane_stride + pixel * words + word

Within a pixel, channel ``c`` is bit ``c % channels_per_word`` of word ``c // channels_per_word``; a layer's output uses
``Derived.channels_per_word`` (whole row tiles), a network's input may use all ``lanes``. Each column of the array has
its own copy of the activation memory, so that any stride, padding and row length reads one word per column and cycle.

Weights of output channel ``tile * rows + row`` lie in the bank of ``row``::

    address(tile, plane, word) = base + tile * tile_stride + plane * window_words + word

with the words of a window in the order kernel row, kernel column, word of the pixel.

Thresholds of output channel ``tile * rows + row`` lie in the bank of ``row``; a code of ``planes`` bits needs
``2**planes - 1`` of them::

    address(tile, index) = base + tile * (2**planes - 1) + index - 1    for index = 1 .. 2**planes - 1

Arithmetic
----------
A pass is one (weight plane, activation plane) pair over all words of a window. Passes run by falling significance and
the accumulator doubles between significances (Horner), modulo ``2**accumulator_width``: only the final value must fit.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError

ZeroSkip = Literal["off", "gate", "skip"]
Encoding = Literal["signed", "bipolar", "odd", "ternary"]

BUS_WIDTH = 32
"""Data bits of the host bus."""

IDENTIFIER = 0x42575254
"""Value of the ``id`` register: ``BWRT`` in ASCII."""

VERSION = 1
"""Version of this contract: of the register map, the descriptors and the Program file."""


# ---------------------------------------------------------------------------------------------------------------------
# Array parameters


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Parameters of an accelerator.

    Parameters
    ----------
    rows, columns
        Shape of the PE array: output channels × output pixels computed at once. ``rows`` at most ``lanes``.
    lanes
        Bits that a PE counts in a cycle; a multiple of 32, from 32 to 256.
    weight_planes_max, activation_planes_max
        Most planes of a weight or an activation, 1..8. Precision is a run-time choice below them.
    accumulator_width
        Bits of an accumulator, 8..30. Compilation checks that each layer's results fit.
    activation_depth
        Words of each column's activation memory; like every depth a power of two.
    weight_depth
        Words of each row's weight memory.
    threshold_depth
        Entries of each row's threshold memory.
    descriptor_depth
        Words, of 32 bits, of the descriptor memory.
    result_depth
        Raw accumulators that the result memory holds.
    window_words_max
        Most words of one window: kernel height × kernel width × words of a pixel.
    row_tiles_max
        Most row tiles of one layer; ``rows * row_tiles_max`` is the most output channels.
    zero_skip
        ``off``; ``gate`` holds a PE's inputs still while its activation word is zero; ``skip`` also spends no cycle on
        words that are zero in all columns.
    """

    rows: int = 8
    columns: int = 8
    lanes: int = 64
    weight_planes_max: int = 8
    activation_planes_max: int = 8
    accumulator_width: int = 24
    activation_depth: int = 8192
    weight_depth: int = 4096
    threshold_depth: int = 1024
    descriptor_depth: int = 1024
    result_depth: int = 256
    window_words_max: int = 256
    row_tiles_max: int = 64
    zero_skip: ZeroSkip = "off"

    def __post_init__(self) -> None:
        limits = {
            "rows": (1, 64),
            "columns": (1, 256),
            "lanes": (32, 256),
            "weight_planes_max": (1, 8),
            "activation_planes_max": (1, 8),
            "accumulator_width": (8, 30),
            "activation_depth": (2, 1 << 16),
            "weight_depth": (2, 1 << 16),
            "threshold_depth": (2, 1 << 16),
            "descriptor_depth": (32, 1 << 16),
            "result_depth": (2, 1 << 16),
            "window_words_max": (2, 1 << 14),
            "row_tiles_max": (2, 1 << 12),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise BitwrightError(f"Array parameter {name} is {value!r}, expected an integer from {low} to {high}.")
            if name.endswith(("_depth", "_words_max", "_tiles_max")) and not _power_of_two(value):
                raise BitwrightError(
                    f"Array parameter {name} is {value}, expected a power of two such as {1 << value.bit_length()}."
                )
        if self.lanes % BUS_WIDTH:
            raise BitwrightError(f"Array parameter lanes is {self.lanes}, expected a multiple of {BUS_WIDTH}.")
        if self.rows > self.lanes:
            raise BitwrightError(
                f"Array has {self.rows} rows and {self.lanes} lanes, expected at most as many rows as lanes: "
                "an output word must hold a whole row tile."
            )
        if self.zero_skip not in ("off", "gate", "skip"):
            raise BitwrightError(f"Array parameter zero_skip is {self.zero_skip!r}, expected off, gate or skip.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "ArraySpec":
        """Build from a mapping such as a TOML table; ``preset`` names the values to start from."""
        values = dict(values)
        base = dataclasses.asdict(preset(values.pop("preset"))) if "preset" in values else {}
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
                raise BitwrightError(f"Unknown array parameter {name!r}; {hint}")
        return cls(**{**base, **values})

    def to_json(self) -> str:
        """Canonical text: equal for equal arrays."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @cached_property
    def fingerprint(self) -> int:
        """32-bit check value of all parameters, readable in the ``spec`` register."""
        return zlib.crc32(self.to_json().encode())

    @cached_property
    def derived(self) -> "Derived":
        """Widths and layouts that follow from the parameters."""
        return Derived(self)


PRESETS: dict[str, ArraySpec] = {
    "tiny": ArraySpec(
        rows=4,
        columns=1,
        lanes=32,
        weight_planes_max=4,
        activation_planes_max=8,
        accumulator_width=18,
        activation_depth=2048,
        weight_depth=2048,
        threshold_depth=2048,
        descriptor_depth=256,
        result_depth=256,
        window_words_max=64,
        row_tiles_max=32,
    ),
    "demo": ArraySpec(
        rows=8,
        columns=8,
        lanes=64,
        accumulator_width=24,
        activation_depth=2048,
        weight_depth=2048,
        threshold_depth=2048,
        descriptor_depth=512,
        result_depth=256,
        window_words_max=64,
        row_tiles_max=32,
        zero_skip="skip",
    ),
    "edge": ArraySpec(
        rows=8,
        columns=8,
        lanes=64,
        accumulator_width=24,
        activation_depth=8192,
        weight_depth=4096,
        threshold_depth=2048,
        descriptor_depth=1024,
        result_depth=256,
        window_words_max=256,
        row_tiles_max=128,
        zero_skip="skip",
    ),
    "large": ArraySpec(
        rows=16,
        columns=16,
        lanes=128,
        accumulator_width=28,
        activation_depth=16384,
        weight_depth=8192,
        threshold_depth=8192,
        descriptor_depth=2048,
        result_depth=1024,
        window_words_max=512,
        row_tiles_max=256,
        zero_skip="skip",
    ),
}
"""Named arrays. ``tiny`` aims at an iCE40 UP5K, ``edge`` at an ECP5-85F; ``demo`` is a small array for small images."""


def preset(name: str) -> ArraySpec:
    """Array of a name in :data:`PRESETS`."""
    if str(name) not in PRESETS:  # a configuration may give anything
        near = get_close_matches(str(name), PRESETS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PRESETS)}."
        raise BitwrightError(f"Unknown array preset {name!r}; {hint}")
    return PRESETS[name]


@dataclass(frozen=True)
class Derived:
    """Widths, in bits, and layouts that follow from an :class:`ArraySpec`."""

    spec: ArraySpec

    @property
    def slots(self) -> int:
        """Row tiles in one activation word."""
        return self.spec.lanes // self.spec.rows

    @property
    def channels_per_word(self) -> int:
        """Channels in one word of a layer's output: whole row tiles, so ``lanes`` wherever ``rows`` divides it."""
        return self.slots * self.spec.rows

    @property
    def chunks(self) -> int:
        """Host bus words in one memory word."""
        return self.spec.lanes // BUS_WIDTH

    @property
    def activation_address_width(self) -> int:
        """Address bits of an activation memory."""
        return (self.spec.activation_depth - 1).bit_length()

    @property
    def weight_address_width(self) -> int:
        """Address bits of a weight memory."""
        return (self.spec.weight_depth - 1).bit_length()

    @property
    def threshold_address_width(self) -> int:
        """Address bits of a threshold memory."""
        return (self.spec.threshold_depth - 1).bit_length()

    @property
    def descriptor_address_width(self) -> int:
        """Address bits of the descriptor memory."""
        return (self.spec.descriptor_depth - 1).bit_length()

    @property
    def result_address_width(self) -> int:
        """Address bits of the result memory."""
        return (self.spec.result_depth - 1).bit_length()

    @property
    def word_index_width(self) -> int:
        """Bits that number the words of a window."""
        return (self.spec.window_words_max - 1).bit_length()

    @property
    def tile_index_width(self) -> int:
        """Bits that number the row tiles of a layer."""
        return (self.spec.row_tiles_max - 1).bit_length()

    @property
    def count_width(self) -> int:
        """Bits of a popcount of one word: 0 .. lanes."""
        return self.spec.lanes.bit_length()

    @property
    def threshold_entry_width(self) -> int:
        """Bits of a threshold entry: the threshold, ``negate``, ``pool_min``."""
        return self.spec.accumulator_width + 2

    @property
    def code_width(self) -> int:
        """Bits of an activation code."""
        return self.spec.activation_planes_max

    @property
    def passes_max(self) -> int:
        """Most passes of a layer."""
        return self.spec.weight_planes_max * self.spec.activation_planes_max

    @property
    def accumulator_range(self) -> tuple[int, int]:
        """Least and greatest value of an accumulator."""
        half = 1 << (self.spec.accumulator_width - 1)
        return -half, half - 1

    # Host address map -------------------------------------------------------------------------------------------------

    @property
    def region_width(self) -> int:
        """Address bits within one region of the host bus: the largest region decides."""
        chunk = (self.chunks - 1).bit_length()
        row = (self.spec.rows - 1).bit_length()
        return max(
            8,
            self.descriptor_address_width,
            row + self.weight_address_width + chunk,
            row + self.threshold_address_width,
            self.activation_address_width + chunk,
            self.result_address_width,
        )

    @property
    def bus_address_width(self) -> int:
        """Address bits of the host bus, which addresses 32-bit words."""
        return self.region_width + 3

    def host_address(self, region: "Region", address: int = 0, row: int = 0, chunk: int = 0) -> int:
        """Host bus address of a 32-bit word.

        Parameters
        ----------
        region
            Memory, or the registers.
        address
            Word or entry within the memory (of one row's bank), or the register.
        row
            Bank, for weights and thresholds.
        chunk
            32-bit part of a word of ``lanes`` bits, least significant first, for weights and activations.
        """
        chunk_width = (self.chunks - 1).bit_length()
        if region == Region.WEIGHTS:
            offset = ((row << self.weight_address_width) | address) << chunk_width | chunk
        elif region == Region.THRESHOLDS:
            offset = (row << self.threshold_address_width) | address
        elif region == Region.ACTIVATIONS:
            offset = address << chunk_width | chunk
        else:
            offset = address
        return (region << self.region_width) | offset


class Region(IntEnum):
    """Top address bits of the host bus."""

    REGISTERS = 0
    DESCRIPTORS = 1
    WEIGHTS = 2
    THRESHOLDS = 3
    ACTIVATIONS = 4
    RESULTS = 5


class Register(IntEnum):
    """Host registers, in the order of their addresses."""

    ID = 0
    VERSION = 1
    SPEC = 2
    CONTROL = 3
    STATUS = 4
    ERROR = 5
    LAYER = 6
    # Counters, in the order of `COUNTERS`.
    CYCLES = 8
    BUSY = 9
    STALLS = 10
    COMPUTED = 11
    GATED = 12
    SKIPPED = 13
    COMPARES = 14
    WRITES = 15


REGISTER_HELP: dict[Register, tuple[str, str]] = {
    Register.ID: ("r", f"{IDENTIFIER:#010x}, 'BWRT'"),
    Register.VERSION: ("r", "version of this register map and of the descriptors"),
    Register.SPEC: ("r", "check value of the array parameters: must equal that of the Program"),
    Register.CONTROL: ("w", "bit 0: start at descriptor 0; bit 1: stop and clear, also after an error"),
    Register.STATUS: ("r", "bit 0: busy; bit 1: done; bit 2: error"),
    Register.ERROR: ("r", "error code of the last run, 0 if none; bits 31..16 the descriptor field it names"),
    Register.LAYER: ("r", "layer that is running, or that the error stopped"),
    Register.CYCLES: ("r", "cycles from start to done"),
    Register.BUSY: ("r", "cycles in which the PE array was given an operation"),
    Register.STALLS: ("r", "cycles in which a tile's last operation waited for the previous drain"),
    Register.COMPUTED: ("r", "activation words computed, over all columns"),
    Register.GATED: ("r", "activation words held still in a column while others computed (zero words and padding)"),
    Register.SKIPPED: ("r", "window words passed over, as they are zero in all columns"),
    Register.COMPARES: ("r", "threshold comparisons, of all rows at once"),
    Register.WRITES: ("r", "writes to activation memory (one plane of a row tile) and to result memory"),
}
"""Access and meaning of each register."""

COUNTERS: tuple[str, ...] = ("cycles", "busy", "stalls", "computed", "gated", "skipped", "compares", "writes")
"""Counter names, in register order. They are the events of the energy model."""


class ErrorCode(IntEnum):
    """What stopped the machine."""

    NONE = 0
    FIELD = 1
    """A descriptor field is out of range: bits 31..16 of the register tell which."""
    WINDOW = 2
    """A window has more words than ``window_words_max``."""
    END = 3
    """The descriptors run past the end of their memory."""
    BUSY = 4
    """The host wrote to a memory while the machine was running; the write was dropped."""


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors


@dataclass(frozen=True)
class Field:
    """One 16-bit field of a descriptor: two share a word, the even one in the low half."""

    name: str
    low: int
    high: int
    help: str
    signed: bool = False


FLAG_LAST, FLAG_RAW, FLAG_OFFSET = 1, 2, 4
"""Bits of the ``flags`` field: last layer; write raw accumulators to result memory; value = 2·acc - column sum."""

_ANY = (0, 0xFFFF)
_COUNT = (1, 0xFFFF)


def descriptor_fields(spec: ArraySpec) -> tuple[Field, ...]:
    """Fields of a descriptor header in order, with the range that this array accepts.

    Addresses and address steps are modulo the memory's depth, so any value stays inside the memory. Counts are never
    zero, so every loop of the hardware ends.
    """
    planes = (1, spec.activation_planes_max)
    return (
        Field("flags", 0, 7, "1 last layer, 2 raw results, 4 weights with an offset (bipolar, odd)"),
        Field("passes", 1, spec.derived.passes_max, "pass words that follow the header"),
        Field("activation_planes", *planes, "planes of the input"),
        Field("row_tiles", 1, spec.row_tiles_max, "row tiles of output channels"),
        Field("input_height", *_COUNT, "rows of the input image, for padding"),
        Field("input_width", *_COUNT, "columns of the input image, for padding"),
        Field("input_words", *_COUNT, "words of an input pixel"),
        Field("input_plane_stride", *_ANY, "address step between planes of the input"),
        Field("kernel_height", *_COUNT, "kernel rows"),
        Field("kernel_width", *_COUNT, "kernel columns"),
        Field("tap_y_stride", *_ANY, "address step between kernel rows"),
        Field("tap_x_stride", *_ANY, "address step between kernel columns"),
        Field("dilation", 1, 255, "image rows or columns between kernel taps"),
        Field("images", *_COUNT, "images of the batch"),
        Field("output_height", *_COUNT, "output rows, after pooling"),
        Field("output_width", *_COUNT, "output columns, after pooling"),
        Field("pool_height", 1, 15, "rows of the pooling window, 1 without pooling"),
        Field("pool_width", 1, 15, "columns of the pooling window, 1 without pooling"),
        Field("start_address", *_ANY, "address of the first window's first tap, padding included"),
        Field("start_y", -128, 127, "image row of the first window's first tap: minus the padding", signed=True),
        Field("start_x", -128, 127, "image column of the first window's first tap: minus the padding", signed=True),
        Field("image_address_step", *_ANY, "address step between images"),
        Field("output_y_address_step", *_ANY, "address step between output rows"),
        Field("output_x_address_step", *_ANY, "address step between output columns"),
        Field("pool_y_address_step", *_ANY, "address step between rows of a pooling window"),
        Field("pool_x_address_step", *_ANY, "address step between columns of a pooling window"),
        Field("output_y_step", *_ANY, "image rows between output rows"),
        Field("output_x_step", *_ANY, "image columns between output columns"),
        Field("pool_y_step", *_ANY, "image rows between rows of a pooling window"),
        Field("pool_x_step", *_ANY, "image columns between columns of a pooling window"),
        Field("weight_base", *_ANY, "address of the first row tile's weights"),
        Field("weight_tile_stride", *_ANY, "address step between row tiles of weights"),
        Field("threshold_base", *_ANY, "address of the first row tile's thresholds, minus one"),
        Field("output_planes", *planes, "planes of the output; thresholds per channel are 2**planes - 1"),
        Field("output_base", *_ANY, "address of the first output word, or of the first raw result"),
        Field("output_plane_stride", *_ANY, "address step between planes of the output"),
        Field("output_words", *_ANY, "address step between output pixels: words of a pixel, or raw channels"),
        Field("channels", *_COUNT, "output channels; rows beyond them are not written as raw results"),
    )


FIELD_NAMES: tuple[str, ...] = tuple(field.name for field in descriptor_fields(ArraySpec()))
HEADER_WORDS = (len(FIELD_NAMES) + 1) // 2
"""Words of a descriptor header; its pass words follow, then the next layer's header."""


@dataclass(frozen=True)
class Pass:
    """One (weight plane, activation plane) pair.

    Parameters
    ----------
    weight_offset
        Address of the plane's first word, from the row tile's first, 0 .. 2**14 - 1.
    activation_plane
        Plane of the input, 0..7.
    double
        Double the accumulators first: the significance falls by one.
    negate
        Subtract the counts.
    """

    weight_offset: int
    activation_plane: int
    double: bool
    negate: bool

    def encode(self) -> int:
        """Pass word: offset in bits 13..0, plane in 16..14, double in 17, negate in 18."""
        if not 0 <= self.weight_offset < 1 << 14:
            raise BitwrightError(
                f"Weight plane starts {self.weight_offset} words into its tile, at most {(1 << 14) - 1} fit."
            )
        return self.weight_offset | self.activation_plane << 14 | int(self.double) << 17 | int(self.negate) << 18

    @classmethod
    def decode(cls, word: int) -> "Pass":
        """Inverse of :meth:`encode`."""
        if word >> 19:
            raise BitwrightError(
                f"Pass word {word:#010x} has bits above 18 set; the Program is corrupt, compile it again."
            )
        return cls(word & 0x3FFF, word >> 14 & 7, bool(word >> 17 & 1), bool(word >> 18 & 1))


def weight_planes(encoding: Encoding, bits: int) -> tuple[tuple[int, bool], ...]:
    """Significance and sign of each plane of a weight encoding (its offset apart).

    ``signed`` is two's complement; ``bipolar`` and ``odd`` are ``2·q - (2**bits - 1)`` with ``q`` unsigned, whose
    offset is the column sum's part; ``ternary`` has a plane of +1 and a plane of -1.
    """
    if encoding == "ternary":
        return ((0, False), (0, True))
    if encoding == "signed":
        return tuple((plane, plane == bits - 1) for plane in range(bits))
    if encoding in ("bipolar", "odd"):
        return tuple((plane, False) for plane in range(bits))
    raise BitwrightError(f"Weight encoding is {encoding!r}, expected signed, bipolar, odd or ternary.")


def has_offset(encoding: Encoding) -> bool:
    """Whether the value is 2·acc - column sum."""
    return encoding in ("bipolar", "odd")


def schedule_passes(planes: Sequence[tuple[int, bool]], activation_planes: int, window_words: int) -> list[Pass]:
    """Order the pairs of planes by falling significance, as Horner's scheme needs.

    Parameters
    ----------
    planes
        Significance and sign of each weight plane, from :func:`weight_planes`.
    activation_planes
        Planes of the input; plane ``j`` has significance ``j``.
    window_words
        Words of a window.
    """
    pairs = [
        (significance + j, i, j, negate)
        for i, (significance, negate) in enumerate(planes)
        for j in range(activation_planes)
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1]))
    passes: list[Pass] = []
    previous = pairs[0][0]
    for significance, i, j, negate in pairs:
        # Every significance between the top and 0 has a pair, so one doubling at a time is enough.
        passes.append(Pass(i * window_words, j, significance != previous, negate))
        previous = significance
    return passes


def pass_coefficients(passes: Sequence[Pass]) -> list[int]:
    """What each pass's count contributes to the accumulator: ±2**(doublings after it)."""
    coefficients: list[int] = []
    scale = 1
    for entry in reversed(passes):
        coefficients.append(-scale if entry.negate else scale)
        scale <<= int(entry.double)
    return coefficients[::-1]


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """The configuration words of one layer: header fields, by name, and passes."""

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
    def window_words(self) -> int:
        """Words of a window."""
        return self.kernel_height * self.kernel_width * self.input_words

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

    def drain_steps(self, spec: ArraySpec) -> int:
        """Cycles that the drain spends on one column of a row tile."""
        return spec.rows if self.raw else self.output_planes

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
        if self.window_words > spec.window_words_max:
            raise BitwrightError(
                f"A window has {self.window_words} words, this array holds {spec.window_words_max}; "
                "raise window_words_max or use more lanes."
            )

    def encode(self, spec: ArraySpec) -> npt.NDArray[np.uint32]:
        """Words for descriptor memory."""
        self.check(spec)
        halves = [self.fields[name] & 0xFFFF for name in FIELD_NAMES] + [0] * (len(FIELD_NAMES) % 2)
        header = [low | high << 16 for low, high in zip(halves[::2], halves[1::2], strict=True)]
        return np.array(header + [entry.encode() for entry in self.passes], np.uint32)

    @classmethod
    def decode(cls, words: npt.NDArray[np.uint32], spec: ArraySpec) -> "Descriptor":
        """Read one descriptor from the start of ``words``, and check it."""
        if len(words) < HEADER_WORDS:
            raise BitwrightError(f"Descriptors end after {len(words)} words of a header of {HEADER_WORDS}.")
        values: dict[str, int] = {}
        for index, field in enumerate(descriptor_fields(spec)):
            value = int(words[index // 2]) >> (16 * (index % 2)) & 0xFFFF
            values[field.name] = value - 0x10000 if field.signed and value & 0x8000 else value
        header = cls(fields=values, passes=())
        header.check(spec)
        if len(words) < HEADER_WORDS + header.fields["passes"]:
            raise BitwrightError(f"Descriptors end inside a list of {header.fields['passes']} passes.")
        body = words[HEADER_WORDS : HEADER_WORDS + header.fields["passes"]]
        return cls(fields=values, passes=tuple(Pass.decode(int(word)) for word in body))


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


# ---------------------------------------------------------------------------------------------------------------------
# Planes and words


def pack_words(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Pack the last axis, of ``lanes`` bits, to bytes: lane ``n`` is bit ``n % 8`` of byte ``n // 8``."""
    return np.packbits(bits, axis=-1, bitorder="little")


def unpack_words(words: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Inverse of :func:`pack_words`."""
    return np.unpackbits(words, axis=-1, bitorder="little").astype(bool)


def split_planes(
    values: npt.NDArray[np.integer[Any]], encoding: Encoding | Literal["unsigned"], bits: int
) -> npt.NDArray[np.bool_]:
    """Bits of integers, on a new first axis, one entry a plane.

    Parameters
    ----------
    values
        Integers of the encoding: 0 .. 2**bits - 1 (``unsigned``), two's complement (``signed``), odd numbers from
        ``-(2**bits - 1)`` to ``2**bits - 1`` (``bipolar``, ``odd``), -1 .. 1 (``ternary``, ``bits`` = 2).

    Raises
    ------
    BitwrightError
        If a value is not one of the encoding.
    """
    values = np.asarray(values, np.int64)
    if encoding == "ternary":
        codes, valid = values, np.abs(values) <= 1
        planes = np.stack([values > 0, values < 0])
    else:
        if encoding == "unsigned":
            codes = values
        elif encoding == "signed":
            codes = values + (1 << (bits - 1))
        elif encoding in ("bipolar", "odd"):
            codes = (values + ((1 << bits) - 1)) >> 1
        else:
            raise BitwrightError(f"Encoding is {encoding!r}, expected unsigned, signed, bipolar, odd or ternary.")
        valid = (codes >= 0) & (codes < 1 << bits)
        if encoding in ("bipolar", "odd"):
            valid &= (values & 1).astype(bool)
        if encoding == "signed":
            codes = values & ((1 << bits) - 1)
        planes = np.stack([(codes >> plane & 1).astype(bool) for plane in range(bits)])
    if not valid.all():
        raise BitwrightError(f"Value {values[~valid].flat[0]} is not one of the {bits}-bit {encoding} encoding.")
    return planes


def place_channels(bits: npt.NDArray[np.bool_], lanes: int, channels_per_word: int) -> npt.NDArray[np.bool_]:
    """Spread the last axis, channels, over words: shape ``(..., channels)`` to ``(..., words, lanes)``, zero-filled."""
    channels = bits.shape[-1]
    words = -(-channels // channels_per_word)
    spread = np.zeros((*bits.shape[:-1], words, lanes), bool)
    for word in range(words):
        part = bits[..., word * channels_per_word : (word + 1) * channels_per_word]
        spread[..., word, : part.shape[-1]] = part
    return spread


# ---------------------------------------------------------------------------------------------------------------------
# Thresholds

THRESHOLD_NEGATE, THRESHOLD_POOL_MIN = 1, 2
"""Flags of a threshold entry: invert the comparison (negative gain); pool by minimum (max pooling before it).

They belong to the channel: all its entries have the same.
"""


def encode_threshold(value: int, flags: int, spec: ArraySpec) -> int:
    """Entry as the host writes it: threshold in two's complement, then ``negate``, then ``pool_min``."""
    width = spec.accumulator_width
    return (value & ((1 << width) - 1)) | flags << width


# ---------------------------------------------------------------------------------------------------------------------
# Timing, in cycles. Each is a constant of the component named and checked by its test.

READ_LATENCY = 3
"""Host bus: from a read request to its data."""

LAYER_TO_RUN = HEADER_WORDS + 2
"""Sequencer: from a layer's first cycle to the cycle in which it runs: its header, the memory's latency, the check."""

SCAN_OVERHEAD = 2
"""Scanner: cycles of a group beside its columns and its words: the wait for the buffer, and the last word's flags."""

ISSUE_TO_LOAD = 5
"""PE array: from the issue of a tile's last operation to the load of its sums into the drain."""

DRAIN_TO_WRITE = 2
"""Drain: from the last comparison of a pooled pixel to its first write."""

RAW_TO_WRITE = 1
"""Drain: from the step of a raw result to its write."""
