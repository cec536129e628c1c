"""The contract that generator, golden model and compiler share: array parameters, descriptors, layouts, timing.

Plain Python and NumPy, no Amaranth: every number that two parts need to agree on is computed here and nowhere else.

Activation layout
-----------------
Activations are stored as codes, plane by plane. A *granule* is ``GRANULE`` lanes, the unit in which channels are
packed: a pixel takes ``ceil(channels / GRANULE)`` granules, and pixels lie side by side, row after row, image after
image. The *position* of a granule is its number in the activation memory; word ``position // granules`` holds it::

    position(image, y, x, plane) = base + plane * plane_stride + ((image * height + y) * width + x) * pixel_granules

Channel ``c`` of a pixel is lane ``c % GRANULE`` of granule ``c // GRANULE``; lanes beyond the last channel are zero.
The memory consists of banks of ``BANK`` lanes with an address each, so that a word may start at any bank. There are
``columns / columns_per_copy`` copies of it, all written alike; the columns that share one take turns in loading.

Windows
-------
A window is a sequence of *runs* of consecutive granules: a kernel row of an undilated, ungrouped convolution is one
run, otherwise each kernel tap is. For a group of ``columns`` windows, the loader reads each run in *chunks*, rotates
them into place and packs the runs one after the other, without gaps, into words of the window buffer: plane 0 of the
input, plane 1, and so on, then the planes of the residual addend, which is one run at a position of its own. Granules
outside the image's rows or columns are zero. The array reads the window buffer only.

Weights of output channel ``tile * rows + row`` lie in the bank of ``row``, words as packed in the window buffer::

    address(tile, plane, word) = base + tile * tile_stride + plane_offset + word

Thresholds of output channel ``tile * rows + row`` lie in the bank of ``row``. A code of ``planes`` bits needs
``2**planes - 1`` of them; they lie in the order of a search tree, its root at node 1, the children of node ``n`` at
``2 * n`` and ``2 * n + 1``, and node 0 holds the channel's flags::

    address(tile, node) = base + tile * 2**planes + node    for node = 0 .. 2**planes - 1

The base is a multiple of ``2**planes``, and a word of the memory holds two neighbors. So both thresholds that may come
next are read while a comparison is still going on: no address waits for its outcome.

Coefficients of output channel ``tile * rows + row``, for arrays that have them, lie in the bank of ``row``::

    address(tile, pass) = base + tile * passes + pass

Streams
-------
Weights of a part with ``stream_words`` come in as beats of 32 bits, a word's lowest first: for each row its words, in
the order of their addresses, which begin with ``weight_base``.

Those of a part with ``index_planes`` are coded: a weight is an index into a codebook, whose integers have
``decoded_planes`` planes. Its stream starts with a table for each of these planes, a beat each: bit ``n``, of
``2**codebook_bits``, is the plane of the codebook's entry ``n % 2**index_planes``. Then come the rows. Each row tile of
a row begins with ``plain_words`` words that are stored as they are, those of a residual addend. After these, for each
word of the window, come the ``index_planes`` words of its indices, the most significant plane first; decoded, they
become ``decoded_planes`` words, ``window_length`` addresses apart::

    address(tile, word) = base + tile * tile_stride + word                                          plain words
    address(tile, plane, word) = base + tile * tile_stride + plain_words + plane * window_length + word

Arithmetic
----------
A pass is one (weight plane, activation plane) pair over all words of a window. Passes run by falling significance and
the accumulator doubles between significances (Horner), modulo ``2**accumulator_width``: only the final value must fit.
In a layer with coefficients, each count is multiplied by its pass's coefficient instead.
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
Encoding = Literal["unsigned", "signed", "bipolar", "odd", "ternary", "basis", "bipolar_basis"]

BUS_WIDTH = 32
"""Data bits of the host bus."""

IDENTIFIER = 0x42575254
"""Value of the ``id`` register: ``BWRT`` in ASCII."""

GRANULE = 4
"""Lanes in which channels are packed."""

BANK = 16
"""Lanes of an activation memory bank."""

CODEBOOK_BITS_MAX = 4
"""Most bits of an index into a codebook."""

VERSION = 3
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
        Shape of the PE array: output channels × output pixels computed at once. ``rows`` is a multiple of ``GRANULE``
        up to 64.
    lanes
        Bits that a PE counts in a cycle: 32, 64, 128 or 256.
    columns_per_copy
        Columns that share a copy of the activation memory and take turns in loading their windows; divides ``columns``.
        More of them need less memory, and more cycles to load a window, which hide behind long computations.
    weight_planes_max, activation_planes_max
        Most planes of a weight or an activation, 1..8. Precision is a run-time choice below them.
    accumulator_width
        Bits of an accumulator, 8..30. Compilation checks that each layer's results fit.
    coefficient_bits
        Bits of the fixed-point coefficients of ``basis`` encodings, 2..16; 0 builds PEs without a multiplier.
    drain_planes
        Planes of an output pixel that are compared and written in a cycle: 1, 2 or 4. Each takes a comparator for each
        row, and banks of its own in an activation word.
    residual
        Whether a layer can add a second input, such as the shortcut of a residual block.
    prefetch
        Whether the next descriptor is fetched while a layer runs; it takes a second set of registers.
    weight_stream
        Whether weights can be streamed in while the array computes, for networks larger than the weight memory.
    codebook_bits
        Most bits, 1..4, of an index into a codebook of weights, decoded as they are streamed in; 0 builds no decoder.
    activation_depth
        Words of each copy of the activation memory; like every depth a power of two.
    window_depth
        Words of a window, over all planes, that the window buffer holds twice for each column.
    weight_depth
        Words of each row's weight memory.
    threshold_depth
        Entries of each row's threshold memory.
    coefficient_depth
        Entries of each row's coefficient memory, where there are coefficients.
    descriptor_depth
        Words, of 32 bits, of the descriptor memory.
    result_depth
        Raw accumulators that the result memory holds.
    row_tiles_max
        Most row tiles of one layer; ``rows * row_tiles_max`` is the most output channels.
    counter_width
        Bits of each counter, 24..32; they wrap around.
    zero_skip
        ``off``; ``gate`` reads no word that is zero, and no weights for words that are zero in all columns; ``skip``
        also spends no cycle on those.
    """

    rows: int = 8
    columns: int = 8
    lanes: int = 64
    columns_per_copy: int = 1
    weight_planes_max: int = 8
    activation_planes_max: int = 8
    accumulator_width: int = 24
    coefficient_bits: int = 0
    drain_planes: int = 2
    residual: bool = True
    prefetch: bool = True
    weight_stream: bool = False
    codebook_bits: int = 0
    activation_depth: int = 8192
    window_depth: int = 256
    weight_depth: int = 4096
    threshold_depth: int = 1024
    coefficient_depth: int = 256
    descriptor_depth: int = 1024
    result_depth: int = 256
    row_tiles_max: int = 64
    counter_width: int = 32
    zero_skip: ZeroSkip = "off"

    def __post_init__(self) -> None:
        limits = {
            "rows": (4, 64),
            "columns": (1, 64),
            "lanes": (32, 256),
            "columns_per_copy": (1, 64),
            "weight_planes_max": (1, 8),
            "activation_planes_max": (1, 8),
            "accumulator_width": (8, 30),
            "coefficient_bits": (0, 16),
            "codebook_bits": (0, CODEBOOK_BITS_MAX),
            "drain_planes": (1, 4),
            "activation_depth": (2, 1 << 16),
            "window_depth": (2, 1 << 10),
            "weight_depth": (2, 1 << 16),
            "threshold_depth": (4, 1 << 16),
            "coefficient_depth": (2, 1 << 16),
            "descriptor_depth": (64, 1 << 16),
            "result_depth": (2, 1 << 16),
            "row_tiles_max": (2, 1 << 12),
            "counter_width": (24, 32),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise BitwrightError(f"Array parameter {name} is {value!r}, expected an integer from {low} to {high}.")
            if name.endswith(("lanes", "_depth", "_tiles_max", "drain_planes")) and not _power_of_two(value):
                raise BitwrightError(
                    f"Array parameter {name} is {value}, expected a power of two such as {1 << value.bit_length()}."
                )
        for name in ("residual", "prefetch", "weight_stream"):
            if not isinstance(getattr(self, name), bool):
                raise BitwrightError(f"Array parameter {name} is {getattr(self, name)!r}, expected true or false.")
        if self.rows % GRANULE:
            raise BitwrightError(f"Array parameter rows is {self.rows}, expected a multiple of {GRANULE}.")
        if self.columns % self.columns_per_copy:
            raise BitwrightError(
                f"Array has {self.columns} columns and {self.columns_per_copy} columns_per_copy, "
                "expected a divisor of the columns."
            )
        if self.coefficient_bits == 1:
            raise BitwrightError("Array parameter coefficient_bits is 1, expected 0 (no multiplier) or 2 to 16.")
        if self.codebook_bits and not self.weight_stream:
            raise BitwrightError(
                f"Array has codebook_bits {self.codebook_bits} but no weight_stream, where weights are decoded; "
                "set weight_stream to true, or codebook_bits to 0."
            )
        # A row tile may start at any granule of a bank; two planes written at once must not meet in a bank.
        banks = -(-(self.rows + BANK - GRANULE) // BANK)
        if banks * self.drain_planes > self.lanes // BANK:
            raise BitwrightError(
                f"Array writes {self.drain_planes} planes of {self.rows} rows at once, which touches "
                f"{banks * self.drain_planes} banks of {BANK} lanes, an activation word of {self.lanes} lanes has "
                f"{self.lanes // BANK}; choose fewer rows, fewer drain_planes or more lanes."
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
        activation_planes_max=4,
        accumulator_width=16,
        drain_planes=1,
        residual=False,
        prefetch=False,
        activation_depth=512,
        window_depth=64,
        weight_depth=256,
        threshold_depth=256,
        descriptor_depth=256,
        result_depth=256,
        row_tiles_max=32,
        counter_width=24,
    ),
    "demo": ArraySpec(
        rows=8,
        columns=8,
        lanes=64,
        columns_per_copy=2,
        accumulator_width=24,
        activation_depth=2048,
        window_depth=128,
        weight_depth=2048,
        threshold_depth=2048,
        descriptor_depth=512,
        result_depth=256,
        row_tiles_max=32,
        zero_skip="skip",
    ),
    "edge": ArraySpec(
        rows=8,
        columns=8,
        lanes=64,
        columns_per_copy=4,
        accumulator_width=24,
        activation_depth=4096,
        window_depth=256,
        weight_depth=2048,
        threshold_depth=1024,
        descriptor_depth=1024,
        result_depth=256,
        row_tiles_max=128,
        zero_skip="skip",
    ),
    "large": ArraySpec(
        rows=16,
        columns=16,
        lanes=128,
        columns_per_copy=4,
        accumulator_width=28,
        drain_planes=4,
        activation_depth=16384,
        window_depth=512,
        weight_depth=8192,
        threshold_depth=8192,
        descriptor_depth=4096,
        result_depth=1024,
        row_tiles_max=256,
        zero_skip="skip",
    ),
}
"""Named arrays, from small to large: ``tiny`` for an iCE40 UP5K, ``demo`` for small images, ``edge`` for an ECP5."""


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
    def granules(self) -> int:
        """Granules of a word."""
        return self.spec.lanes // GRANULE

    @property
    def banks(self) -> int:
        """Banks of an activation word."""
        return self.spec.lanes // BANK

    @property
    def tile_granules(self) -> int:
        """Granules of a row tile."""
        return self.spec.rows // GRANULE

    @property
    def copies(self) -> int:
        """Copies of the activation memory."""
        return self.spec.columns // self.spec.columns_per_copy

    @property
    def chunk_unaligned(self) -> int:
        """Granules that a read delivers from any position: a word less what the first bank may waste."""
        return self.granules - (BANK // GRANULE - 1)

    @property
    def plane_skew(self) -> int:
        """Planes are this many granules, modulo a word, apart: planes written at once then never meet in a bank."""
        return self.granules // self.spec.drain_planes

    @property
    def chunks(self) -> int:
        """Host bus words in one memory word."""
        return self.spec.lanes // BUS_WIDTH

    @property
    def activation_address_width(self) -> int:
        """Address bits of an activation memory."""
        return (self.spec.activation_depth - 1).bit_length()

    @property
    def position_width(self) -> int:
        """Bits of a position: the number of a granule in activation memory."""
        return self.activation_address_width + (self.granules - 1).bit_length()

    @property
    def window_address_width(self) -> int:
        """Address bits of one of the two windows of the window buffer."""
        return (self.spec.window_depth - 1).bit_length()

    @property
    def weight_address_width(self) -> int:
        """Address bits of a weight memory."""
        return (self.spec.weight_depth - 1).bit_length()

    @property
    def threshold_address_width(self) -> int:
        """Address bits of a threshold memory."""
        return (self.spec.threshold_depth - 1).bit_length()

    @property
    def coefficient_address_width(self) -> int:
        """Address bits of a coefficient memory."""
        return (self.spec.coefficient_depth - 1).bit_length()

    @property
    def descriptor_address_width(self) -> int:
        """Address bits of the descriptor memory."""
        return (self.spec.descriptor_depth - 1).bit_length()

    @property
    def result_address_width(self) -> int:
        """Address bits of the result memory."""
        return (self.spec.result_depth - 1).bit_length()

    @property
    def tile_index_width(self) -> int:
        """Bits that number the row tiles of a layer."""
        return (self.spec.row_tiles_max - 1).bit_length()

    @property
    def count_width(self) -> int:
        """Bits of a popcount of one word: 0 .. lanes."""
        return self.spec.lanes.bit_length()

    @property
    def threshold_word_width(self) -> int:
        """Address bits of a pair of thresholds."""
        return self.threshold_address_width - 1

    @property
    def code_width(self) -> int:
        """Bits of an activation code."""
        return self.spec.activation_planes_max

    @property
    def lists(self) -> int:
        """Planes that a window may have: of the input and of the residual addend."""
        return self.spec.activation_planes_max * (2 if self.spec.residual else 1)

    @property
    def passes_max(self) -> int:
        """Most passes of a layer."""
        return self.spec.weight_planes_max * self.lists

    @property
    def multiply_stages(self) -> int:
        """Cycles that the multiplier adds to every operation, where there is one."""
        return 1 if self.spec.coefficient_bits else 0

    @property
    def issue_to_load(self) -> int:
        """Cycles from the issue of a tile's last operation to the load of its sums into the drain."""
        return ISSUE_TO_LOAD + self.multiply_stages

    def drain_steps(self, output_planes: int) -> int:
        """Cycles that the drain spends on one column of a row tile."""
        return -(-output_planes // self.spec.drain_planes)

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
            row + self.coefficient_address_width if self.spec.coefficient_bits else 0,
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
            Bank, for weights, thresholds and coefficients.
        chunk
            32-bit part of a word of ``lanes`` bits, least significant first, for weights and activations.
        """
        chunk_width = (self.chunks - 1).bit_length()
        if region == Region.WEIGHTS:
            offset = ((row << self.weight_address_width) | address) << chunk_width | chunk
        elif region == Region.THRESHOLDS:
            offset = (row << self.threshold_address_width) | address
        elif region == Region.COEFFICIENTS:
            offset = (row << self.coefficient_address_width) | address
        elif region == Region.ACTIVATIONS:
            offset = address << chunk_width | chunk
        else:
            offset = address
        return (region << self.region_width) | offset

    @property
    def windows(self) -> "dict[Region, MemoryWindow]":
        """What the host sees of each memory that the array has."""
        spec = self.spec
        windows = {
            Region.DESCRIPTORS: MemoryWindow(spec.descriptor_depth, BUS_WIDTH, 1, "w"),
            Region.WEIGHTS: MemoryWindow(spec.weight_depth, spec.lanes, spec.rows, "w"),
            Region.THRESHOLDS: MemoryWindow(spec.threshold_depth, spec.accumulator_width, spec.rows, "w"),
            Region.ACTIVATIONS: MemoryWindow(spec.activation_depth, spec.lanes, 1, "rw"),
            Region.RESULTS: MemoryWindow(spec.result_depth, BUS_WIDTH, 1, "r"),
        }
        if spec.coefficient_bits:
            windows[Region.COEFFICIENTS] = MemoryWindow(spec.coefficient_depth, spec.coefficient_bits, spec.rows, "w")
        return windows

    def region_words(self, region: "Region") -> int:
        """Addresses from the start of a region to the end of what it holds: banks follow each other without gaps."""
        if region == Region.REGISTERS:
            return max(Register) + 1
        window = self.windows.get(region)
        return window.banks << window.bank_width if window else 0


@dataclass(frozen=True)
class MemoryWindow:
    """What the host sees of a memory.

    Parameters
    ----------
    depth
        Words, or entries, of each bank.
    word_bits
        Bits of a word.
    banks
        Banks: one, or one for each row.
    access
        What the host may do: read, write or both.
    """

    depth: int
    word_bits: int
    banks: int
    access: Literal["r", "w", "rw"]

    @property
    def chunks(self) -> int:
        """Bus words in a word."""
        return -(-self.word_bits // BUS_WIDTH)

    @property
    def bank_width(self) -> int:
        """Address bits within a bank, on the host bus."""
        return (self.depth * self.chunks - 1).bit_length()


class Region(IntEnum):
    """Top address bits of the host bus."""

    REGISTERS = 0
    DESCRIPTORS = 1
    WEIGHTS = 2
    THRESHOLDS = 3
    ACTIVATIONS = 4
    RESULTS = 5
    COEFFICIENTS = 6


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
    LOADS = 16


REGISTER_HELP: dict[Register, tuple[str, str]] = {
    Register.ID: ("r", f"{IDENTIFIER:#010x}, 'BWRT'"),
    Register.VERSION: ("r", "version of this register map and of the descriptors"),
    Register.SPEC: ("r", "check value of the array parameters: must equal that of the Program"),
    Register.CONTROL: ("w", "bit 0: start at descriptor 0; bit 1: stop and clear, also after an error"),
    Register.STATUS: ("r", "bit 0: busy; bit 1: done; bit 2: error"),
    Register.ERROR: ("r", "error code of the last run, 0 if none; bits 31..16 the descriptor field it names"),
    Register.LAYER: ("r", "descriptor that is running, or that the error stopped"),
    Register.CYCLES: ("r", "cycles from start to done"),
    Register.BUSY: ("r", "cycles in which the PE array was given an operation"),
    Register.STALLS: ("r", "cycles in which a tile's last operation waited for the previous drain"),
    Register.COMPUTED: ("r", "window words computed, over all columns"),
    Register.GATED: ("r", "zero window words held still in a column while others computed"),
    Register.SKIPPED: ("r", "window words passed over, as they are zero in all columns"),
    Register.COMPARES: ("r", "cycles of threshold comparisons, of all rows at once"),
    Register.WRITES: ("r", "writes to activation memory (one plane of a row tile) and to result memory"),
    Register.LOADS: ("r", "reads of activation memory, of each copy at once"),
}
"""Access and meaning of each register."""

REGISTER_BITS: dict[Register, dict[str, tuple[int, int]]] = {
    Register.CONTROL: {"start": (0, 1), "stop": (1, 1)},
    Register.STATUS: {"busy": (0, 1), "done": (1, 1), "error": (2, 1)},
    Register.ERROR: {"code": (0, 3), "field": (16, 8)},
}
"""Lowest bit and number of bits of each field, of registers that have several."""

COUNTERS: tuple[str, ...] = (
    "cycles",
    "busy",
    "stalls",
    "computed",
    "gated",
    "skipped",
    "compares",
    "writes",
    "loads",
)
"""Counter names, in register order. They are the events of the energy model."""


class ErrorCode(IntEnum):
    """What stopped the machine."""

    NONE = 0
    FIELD = 1
    """A descriptor field is out of range: bits 31..16 of the register tell which."""
    WINDOW = 2
    """A window has more words than ``window_depth``."""
    END = 3
    """The descriptors run past the end of their memory."""
    BUSY = 4
    """The host wrote to a memory while the machine was running; the write was dropped."""


# ---------------------------------------------------------------------------------------------------------------------
# Descriptors


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


FLAG_LAST, FLAG_RAW, FLAG_OFFSET, FLAG_COEFFICIENTS, FLAG_TABLE = 1, 2, 4, 8, 16
"""Bits of the ``flags`` field: last layer; raw results; weights with an offset; counts times coefficients; code table.

With ``FLAG_OFFSET`` a set weight bit counts +1 and a clear one -1: the value is twice the sum less the column sum, or,
with ``FLAG_COEFFICIENTS``, each count is taken so before it is multiplied.
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
    flags = FLAG_LAST | FLAG_RAW | FLAG_OFFSET | ((FLAG_COEFFICIENTS | FLAG_TABLE) if spec.coefficient_bits else 0)

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
        count("flags", 0, flags, "1 last, 2 raw results, 4 weights with an offset, 8 coefficients, 16 code table"),
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


DOUBLES_MAX = 31
"""Most doublings between the first pass of a layer and its last one."""


PASS_DOUBLES_MAX = 7
"""Most doublings before a pass."""


@dataclass(frozen=True)
class Pass:
    """One (weight plane, activation plane) pair.

    Parameters
    ----------
    weight_offset
        Address of the plane's first word, from the row tile's first, 0 .. 2**14 - 1.
    plane
        Plane of the window, 0..15, in the order of loading: those of the input, the most significant first, then those
        of the residual addend.
    base
        Word of the window buffer at which that plane starts, 0 .. 1023.
    doubles
        How often the accumulators double first, 0..7: by how much the significance falls.
    negate
        Subtract the counts.
    """

    weight_offset: int
    plane: int
    base: int
    doubles: int
    negate: bool

    def encode(self) -> int:
        """Pass word: offset in bits 13..0, plane in 17..14, base in 27..18, negate in 28, doubles in 31..29."""
        if not 0 <= self.weight_offset < 1 << 14:
            raise BitwrightError(
                f"Weight plane starts {self.weight_offset} words into its tile, at most {(1 << 14) - 1} fit."
            )
        if not 0 <= self.doubles <= PASS_DOUBLES_MAX:
            raise BitwrightError(
                f"Significance falls by {self.doubles} between passes, at most {PASS_DOUBLES_MAX} fit."
            )
        if not 0 <= self.plane < 1 << 4:
            raise BitwrightError(f"A pass computes plane {self.plane} of a window, expected at most 15.")
        if not 0 <= self.base < 1 << 10:
            raise BitwrightError(f"A plane starts at word {self.base} of the window buffer, expected at most 1023.")
        return self.weight_offset | self.plane << 14 | self.base << 18 | int(self.negate) << 28 | self.doubles << 29

    @classmethod
    def decode(cls, word: int) -> "Pass":
        """Inverse of :meth:`encode`."""
        return cls(word & 0x3FFF, word >> 14 & 15, word >> 18 & 0x3FF, word >> 29, bool(word >> 28 & 1))


@dataclass(frozen=True)
class WeightPlanes:
    """Planes of one set of weights against planes of one set of activations, for :func:`schedule_passes`.

    Parameters
    ----------
    planes
        Significance and sign of each weight plane, from :func:`weight_planes`.
    weight_offset
        Address of the first plane's first word, from the row tile's first.
    words
        Words of a plane of the window, and so of a weight plane.
    activation_planes
        Planes of the activations; plane ``j`` has significance ``j``.
    first_plane, base
        Number of the first activation plane among the window's, and word of the window buffer at which it starts.
    shift
        Added to all significances.
    """

    planes: tuple[tuple[int, bool], ...]
    weight_offset: int
    words: int
    activation_planes: int
    first_plane: int = 0
    base: int = 0
    shift: int = 0


def weight_planes(encoding: Encoding, bits: int) -> tuple[tuple[int, bool], ...]:
    """Significance and sign of each plane of a weight encoding (its offset apart).

    ``unsigned`` has no sign, as the unit vectors of an identity shortcut; ``signed`` is two's complement; ``bipolar``
    and ``odd`` are ``2·q - (2**bits - 1)`` with ``q`` unsigned, whose offset is the column sum's part; ``ternary`` has
    a plane of +1 and a plane of -1. The planes of ``basis`` and ``bipolar_basis`` have coefficients instead.
    """
    if encoding == "ternary":
        return ((0, False), (0, True))
    if encoding == "signed":
        return tuple((plane, plane == bits - 1) for plane in range(bits))
    if encoding in ("unsigned", "bipolar", "odd"):
        return tuple((plane, False) for plane in range(bits))
    if encoding in ("basis", "bipolar_basis"):
        return ((0, False),) * bits
    raise BitwrightError(
        f"Weight encoding is {encoding!r}, expected unsigned, signed, bipolar, odd, ternary, basis or bipolar_basis."
    )


def has_offset(encoding: Encoding) -> bool:
    """Whether a clear weight bit counts -1: the value is 2·sum - column sum."""
    return encoding in ("bipolar", "odd", "bipolar_basis")


def has_coefficients(encoding: Encoding) -> bool:
    """Whether counts are multiplied by coefficients."""
    return encoding in ("basis", "bipolar_basis")


def schedule_passes(operands: Sequence[WeightPlanes], *, horner: bool = True) -> list[Pass]:
    """List the pairs of planes by falling significance, as Horner's scheme needs.

    Parameters
    ----------
    operands
        The layer's weights, and those of its residual addend.
    horner
        False for layers with coefficients: nothing doubles; weight planes outside, activation planes inside.
    """
    pairs = [
        (significance + j + operand.shift if horner else 0, number, i, j, negate)
        for number, operand in enumerate(operands)
        for i, (significance, negate) in enumerate(operand.planes)
        for j in range(operand.activation_planes)
    ]
    pairs.sort(key=lambda pair: (-pair[0], *pair[1:4]))
    passes: list[Pass] = []
    previous = pairs[0][0]
    for significance, number, i, j, negate in pairs:
        operand = operands[number]
        offset = operand.weight_offset + i * operand.words
        plane = operand.activation_planes - 1 - j  # planes are loaded from the most significant down
        base = operand.base + plane * operand.words
        passes.append(Pass(offset, operand.first_plane + plane, base, previous - significance, negate))
        previous = significance
    return passes


def pass_coefficients(passes: Sequence[Pass]) -> list[int]:
    """What each pass's count contributes to the accumulator without coefficients: ±2**(doublings after it)."""
    coefficients: list[int] = []
    scale = 1
    for entry in reversed(passes):
        coefficients.append(-scale if entry.negate else scale)
        scale <<= entry.doubles
    return coefficients[::-1]


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
        """Cycles that the drain spends on one column of a row tile."""
        return spec.rows if self.raw else spec.derived.drain_steps(self.output_planes)

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


# ---------------------------------------------------------------------------------------------------------------------
# Planes and words


def pack_words(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Pack the last axis, of ``lanes`` bits, to bytes: lane ``n`` is bit ``n % 8`` of byte ``n // 8``."""
    return np.packbits(bits, axis=-1, bitorder="little")


def unpack_words(words: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Inverse of :func:`pack_words`."""
    return np.unpackbits(words, axis=-1, bitorder="little").astype(bool)


def split_planes(values: npt.NDArray[np.integer[Any]], encoding: Encoding, bits: int) -> npt.NDArray[np.bool_]:
    """Bits of integers, on a new first axis, one entry a plane.

    Parameters
    ----------
    values
        Integers of the encoding: 0 .. 2**bits - 1 (``unsigned``, and codes of ``basis`` and ``bipolar_basis``, whose
        bit ``i`` says how coefficient ``i`` counts), two's complement (``signed``), odd numbers from
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
        if encoding in ("unsigned", "basis", "bipolar_basis"):
            codes = values
        elif encoding == "signed":
            codes = values + (1 << (bits - 1))
        elif encoding in ("bipolar", "odd"):
            codes = (values + ((1 << bits) - 1)) >> 1
        else:
            raise BitwrightError(
                f"Encoding is {encoding!r}, expected unsigned, signed, bipolar, odd, ternary or a basis."
            )
        valid = (codes >= 0) & (codes < 1 << bits)
        if encoding in ("bipolar", "odd"):
            valid &= (values & 1).astype(bool)
        if encoding == "signed":
            codes = values & ((1 << bits) - 1)
        planes = np.stack([(codes >> plane & 1).astype(bool) for plane in range(bits)])
    if not valid.all():
        raise BitwrightError(f"Value {values[~valid].flat[0]} is not one of the {bits}-bit {encoding} encoding.")
    return planes


def repeat_table(table: int, index_planes: int, spec: ArraySpec) -> int:
    """Table of a plane of a codebook, as a stream starts with it, from its first ``2**index_planes`` bits."""
    size = 1 << index_planes
    return sum((table & ((1 << size) - 1)) << start for start in range(0, 1 << spec.codebook_bits, size))


def granules_of(channels: int) -> int:
    """Granules that hold so many channels."""
    return -(-channels // GRANULE)


def place_channels(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Fill the last axis, channels, up to whole granules with zeros."""
    missing = -values.shape[-1] % GRANULE
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def split_words(values: npt.NDArray[Any], lanes: int) -> npt.NDArray[Any]:
    """Cut the last axis into words, the last one zero-filled: ``(..., n)`` to ``(..., ceil(n / lanes), lanes)``."""
    filled = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % lanes)])
    return filled.reshape(*values.shape[:-1], -1, lanes)


# ---------------------------------------------------------------------------------------------------------------------
# Thresholds

THRESHOLD_NEGATE, THRESHOLD_POOL_MIN = 1, 2
"""Flags of a channel: invert its comparisons (negative gain); pool by minimum (max pooling before them)."""


def search_order(planes: int) -> npt.NDArray[np.int64]:
    """Thresholds in the order of the search tree, those of nodes 1, 2, ...: indices into an ascending list.

    Node ``2**depth + path`` is reached by a code that begins with the ``depth`` bits of ``path``, and decides the next.
    """
    nodes = np.arange(1, 1 << planes)
    depths = np.log2(nodes).astype(np.int64)
    return ((2 * (nodes - (1 << depths)) + 1) << (planes - 1 - depths)) - 1


def encode_thresholds(
    values: npt.NDArray[np.int64], flags: npt.NDArray[np.uint8], spec: ArraySpec
) -> npt.NDArray[np.uint32]:
    """Entries as the host writes them.

    Parameters
    ----------
    values
        Thresholds, ascending, or descending with ``THRESHOLD_NEGATE``; shape (channels, 2**planes - 1).
    flags
        Of each channel, shape (channels,).

    Returns
    -------
    NDArray
        Flags and then thresholds, in two's complement, of each channel; shape (channels, 2**planes).
    """
    order = search_order((values.shape[1] + 1).bit_length() - 1)
    entries = np.column_stack([flags, values[:, order] & ((1 << spec.accumulator_width) - 1)])
    return entries.astype(np.uint32)


def decode_thresholds(
    entries: npt.NDArray[np.integer[Any]], spec: ArraySpec
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Thresholds and flags of each channel: the inverse of :func:`encode_thresholds`."""
    values = np.empty((len(entries), entries.shape[1] - 1), np.int64)
    low = entries[:, 1:].astype(np.int64)
    sign = low >> (spec.accumulator_width - 1)
    values[:, search_order(entries.shape[1].bit_length() - 1)] = low - (sign << spec.accumulator_width)
    return values, (entries[:, 0] & (THRESHOLD_NEGATE | THRESHOLD_POOL_MIN)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Timing, in cycles. Each is a constant of the component named and checked by its test.

READ_LATENCY = 3
"""Host bus: from a read request to its data."""

HEADER_TO_READY = HEADER_WORDS + 2
"""Sequencer: from the first cycle of a header's fetch to the first cycle in which its layer may start."""

SCHEDULE_START, SCHEDULE_END = 2, 2
"""Pass scheduler: from its start to the cycle that lists the first pass, and from that of the last one to the first
cycle in which the list is complete."""

SCHEDULE_OVERHEAD = SCHEDULE_START + SCHEDULE_END - 1
"""Pass scheduler: cycles beside one for each pass, from its start to the first cycle in which the list is complete."""

STREAM_OVERHEAD = 1
"""Weight streamer: cycles beside one for each beat, from the header's readiness to that of the layer.

With a decoder it is from the cycle after the last word's last plane is decoded: see ``Descriptor.stream_cycles``.
"""

LOAD_LATENCY = 4
"""Window loader: from the cycle after the last read of a group to the cycle in which the group is ready."""

ISSUE_TO_LOAD = 7
"""PE array: from the issue of a tile's last operation to the load of its sums into the drain; see `Derived`."""

DRAIN_TO_WRITE = 4
"""Drain: with ``drain_planes`` turns of a column's steps, from the load of its sums to its first write."""

RAW_TO_WRITE = 1
"""Drain: from the step of a raw result to its write."""
