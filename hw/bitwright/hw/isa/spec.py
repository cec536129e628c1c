"""Array parameters, presets, and the widths and layouts that follow from them."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa.constants import BANK, BUS_WIDTH, CODEBOOK_BITS_MAX, GRANULE, ZeroSkip
from bitwright.hw.isa.registers import MemoryWindow, Region, Register
from bitwright.hw.isa.timing import ISSUE_TO_LOAD, LOAD_LATENCY, RAW_TO_WRITE


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
    pipelined
        Whether there are registers on long ways, such as behind activation memories, before and behind the lists of
        words, behind the products of bits in every PE, and behind the threshold memories, where two columns then take
        turns in a comparator: a faster clock in large parts, for flip-flops and a few cycles of each layer.
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
    pipelined: bool = False

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
        for name in ("residual", "prefetch", "weight_stream", "pipelined"):
            if not isinstance(getattr(self, name), bool):
                raise BitwrightError(f"Array parameter {name} is {getattr(self, name)!r}, expected true or false.")
        if self.rows % GRANULE:
            raise BitwrightError(f"Array parameter rows is {self.rows}, expected a multiple of {GRANULE}.")
        if self.columns % self.columns_per_copy:
            raise BitwrightError(
                f"Array has {self.columns} columns and {self.columns_per_copy} columns_per_copy, "
                "expected a divisor of the columns."
            )
        if self.pipelined and self.columns % 2:
            raise BitwrightError(
                f"Array has {self.columns} columns and is pipelined, expected an even number of columns: "
                "two take turns in a comparator."
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
        pipelined=True,
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
        pipelined=True,
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
    def load_latency(self) -> int:
        """Cycles from the one after the last read of a plane or group to that in which it is there, and listed."""
        return LOAD_LATENCY + 2 * self.way_stages

    @property
    def way_stages(self) -> int:
        """Registers on each long way.

        Of a load: behind the activation memory, and before the lists of words. Of an operation: behind these lists, and
        behind the products of bits.
        """
        return 1 if self.spec.pipelined else 0

    @property
    def issue_to_load(self) -> int:
        """Cycles from the issue of a tile's last operation to the load of its sums into the drain."""
        return ISSUE_TO_LOAD + 2 * self.way_stages + self.multiply_stages

    @property
    def turns(self) -> int:
        """Columns that take turns in a comparator of the drain."""
        return 2 if self.spec.pipelined else 1

    @property
    def raw_to_write(self) -> int:
        """Cycles from the step of a raw result in the drain to its write."""
        return RAW_TO_WRITE + self.turns - 1

    def search_steps(self, output_planes: int) -> int:
        """Bits of a column's codes that each comparator decides."""
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
