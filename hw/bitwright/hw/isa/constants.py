"""Widths and names that all parts of the contract share."""

from typing import Literal

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

VERSION = 4
"""Version of this contract: of the register map, the descriptors and the Program file."""
