"""What the host sees: registers, regions of the address space, counters, error codes."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from bitwright.hw.isa.constants import BUS_WIDTH, IDENTIFIER


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
