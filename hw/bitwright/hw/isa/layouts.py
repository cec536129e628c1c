"""Planes, words, places of channels, search trees of thresholds."""

from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa.constants import GRANULE, Encoding
from bitwright.hw.isa.spec import ArraySpec


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
