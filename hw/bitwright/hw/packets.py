"""Commands of the AXI4-Stream port: 32-bit words that load, run and read the accelerator without a processor.

Every command is two words: an opcode in bits 31..30 with a word address of the host bus in bits 29..0, and a count.
``WRITE`` is followed by ``count`` words, for that address and those after it. ``READ`` is answered by ``count`` words
from that address and those after it. ``WAIT`` goes on when the interrupt is, or already was, given for the last run.
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError

ADDRESS_BITS = 30
"""Bits of a command's address; the opcode is above them."""


class Opcode(IntEnum):
    """Commands of the stream."""

    WRITE = 0
    """Write the words that follow to consecutive addresses."""
    READ = 1
    """Send the words at consecutive addresses."""
    WAIT = 2
    """Wait for the end of the run; address and count are 0."""


def command(opcode: Opcode, address: int = 0, count: int = 0) -> list[int]:
    """Header of a command."""
    if not (0 <= address < 1 << ADDRESS_BITS and 0 <= count < 1 << 32):
        raise BitwrightError(
            f"A command has address {address} and count {count}; expected at most {ADDRESS_BITS} and 32 bits."
        )
    return [opcode << ADDRESS_BITS | address, count]


def write_commands(writes: Iterable[tuple[int, int]]) -> npt.NDArray[np.uint32]:
    """Words that make writes: a command for each run of consecutive addresses.

    Parameters
    ----------
    writes
        (bus address, data) of each write, as of :meth:`bitwright.hw.program.Program.host_writes`.
    """
    pairs = np.fromiter((number for pair in writes for number in pair), np.int64).reshape(-1, 2)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-2) != 1)
    counts = np.diff(starts, append=len(pairs))
    heads = [command(Opcode.WRITE, *run) for run in zip(pairs[starts, 0].tolist(), counts.tolist(), strict=True)]
    return np.insert(pairs[:, 1], np.repeat(starts, 2), np.array(heads, np.int64).ravel()).astype(np.uint32)
