"""Plans: descriptors and memory addresses of a network, and how its numbers fill the memories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    FLAG_COEFFICIENTS,
    FLAG_OFFSET,
    GRANULE,
    PASS_DOUBLES_MAX,
    THRESHOLD_NEGATE,
    ArraySpec,
    Descriptor,
    Pass,
    encode_thresholds,
    pack_words,
    place_channels,
    repeat_table,
    split_planes,
    split_words,
)
from bitwright.hw.program import InputSpec, LayerInfo, Program


@dataclass(frozen=True)
class Part:
    """Some row tiles of a layer that one descriptor computes.

    Parameters
    ----------
    layer
        Number of the layer.
    tiles
        Its row tiles.
    granules
        Granules of an input pixel that its windows hold.
    """

    layer: int
    tiles: range
    granules: range


@dataclass(frozen=True)
class Plan:
    """Descriptors and addresses of a network.

    Parameters
    ----------
    spec, batch
        Array, and images of one run.
    input
        How the host stores images.
    layers
        One entry a layer.
    descriptors, parts
        One entry a descriptor: its fields, and what of which layer it computes.
    weight_words, threshold_entries, coefficient_entries
        Words of each row's weight bank, and entries of its threshold and coefficient banks, that are used.
    """

    spec: ArraySpec
    batch: int
    input: InputSpec
    layers: tuple[LayerInfo, ...]
    descriptors: tuple[Descriptor, ...]
    parts: tuple[Part, ...]
    weight_words: int
    threshold_entries: int
    coefficient_entries: int

    def assemble(
        self,
        weights: Sequence[npt.NDArray[np.integer[Any]]],
        thresholds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]],
        output_scale: npt.NDArray[np.float64],
        output_offset: npt.NDArray[np.float64],
        meta: Mapping[str, Any] | None = None,
        *,
        residual_weights: Mapping[str, npt.NDArray[np.integer[Any]]] | None = None,
        coefficients: Mapping[str, npt.NDArray[np.integer[Any]]] | None = None,
        residual_coefficients: Mapping[str, npt.NDArray[np.integer[Any]]] | None = None,
    ) -> Program:
        """Fill the memories.

        Parameters
        ----------
        weights
            For each layer integers of its encoding, shaped as PyTorch does: (out channels, in channels / groups, kernel
            height, kernel width), or (out features, in features).
        thresholds
            For each layer but the last: values and flags (``THRESHOLD_NEGATE``, ``THRESHOLD_POOL_MIN``), both of shape
            (out channels, 2**planes - 1).
        output_scale, output_offset, meta
            As in :class:`~bitwright.hw.program.Program`.
        residual_weights
            For each layer, by name, with a residual addend: integers, shape (out channels, residual channels).
        coefficients
            For each layer, by name, of a ``basis`` encoding: integers that fit ``coefficient_bits``, shape (out
            channels, weight planes, activation planes).
        residual_coefficients
            For those of them, by name, with a residual addend: shape (out channels, planes of its weights, its planes);
            what a plane of negative weights counts is subtracted.
        """
        spec = self.spec
        weight_memory = np.zeros((spec.rows, self.weight_words, spec.lanes // 8), np.uint8)
        threshold_memory = np.zeros((spec.rows, self.threshold_entries), np.uint32)
        coefficient_memory = np.zeros((spec.rows, self.coefficient_entries), np.int32)
        stream: list[npt.NDArray[np.uint32]] = []
        descriptors: list[Descriptor] = []
        for part, layer in zip(self.parts, self.descriptors, strict=True):
            info = self.layers[part.layer]
            words = self._weight_words(part, layer, weights[part.layer], (residual_weights or {}).get(info.name))
            if spec.zero_skip == "skip" and not layer.index_planes:  # what indices decode to has no words here
                layer = without_zero_planes(layer, words, spec)
            if layer.stream_words:
                if info.codebook is not None:
                    stream.append(_codebook_tables(info, info.codebook, layer.index_planes, spec))
                stream.append(words.reshape(-1).view("<u4"))
            else:
                weight_memory[:, layer.weight_base : layer.weight_base + words.shape[1]] = words
            if not layer.raw:
                entries = self._threshold_entries(info, part, *thresholds[part.layer])
                base = layer.threshold_base
                threshold_memory[:, base : base + entries.shape[1]] = entries
            if layer.flags & FLAG_COEFFICIENTS:
                given = [(each or {}).get(info.name) for each in (coefficients, residual_coefficients)]
                numbers = self._coefficient_entries(info, part, layer, *given)
                coefficient_memory[:, layer.coefficient_base : layer.coefficient_base + numbers.shape[1]] = numbers
            descriptors.append(layer)
        return Program(
            spec=spec,
            batch=self.batch,
            input=self.input,
            layers=self.layers,
            parts=tuple(part.layer for part in self.parts),
            descriptors=np.concatenate([layer.encode(spec) for layer in descriptors]),
            weights=weight_memory,
            stream=np.concatenate(stream) if stream else np.zeros(0, np.uint32),
            thresholds=threshold_memory,
            coefficients=coefficient_memory,
            output_scale=np.asarray(output_scale, np.float64),
            output_offset=np.asarray(output_offset, np.float64),
            meta=dict(meta or {}),
        )

    def _weight_words(
        self,
        part: Part,
        layer: Descriptor,
        weights: npt.NDArray[np.integer[Any]],
        residual: npt.NDArray[np.integer[Any]] | None,
    ) -> npt.NDArray[np.uint8]:
        """Words of one part's weights, coded if it has a codebook: (rows, row tiles × words of a tile, lanes / 8)."""
        info, rows = self.layers[part.layer], self.spec.rows
        channels, groups = info.in_shape[0], info.groups
        taps = info.in_shape[1:] if info.kind == "linear" else info.kernel
        rows_used = range(part.tiles.start * rows, min(part.tiles.stop * rows, info.conv_shape[0]))
        if np.shape(weights)[:1] != info.conv_shape[:1] or np.size(weights) != info.conv_shape[0] * info.fan_in:
            raise BitwrightError(
                f"Layer {info.name!r} has weights of shape {np.shape(weights)}, expected those of {info.conv_shape[0]} "
                f"channels with {info.fan_in} weights each."
            )
        given = np.asarray(weights).reshape(info.conv_shape[0], channels // groups, *taps)
        dense = np.zeros((len(rows_used), channels, *taps), np.int64)
        per_group = info.conv_shape[0] // groups
        for index, row in enumerate(rows_used):
            first = row // per_group * (channels // groups)
            dense[index, first : first + channels // groups] = given[row]
        # Row, column, channel: the order in which a window is stored. Packed windows are one pixel of all of it.
        ordered = dense.transpose(0, 2, 3, 1)
        if info.source < 0 and self.input.window is not None:
            ordered = ordered.reshape(len(ordered), 1, 1, -1)
        try:
            if info.codebook is None:
                planes = split_planes(ordered, info.stored_encoding, info.weight_planes)
            else:
                planes = split_planes(_indices(ordered, info.codebook), "unsigned", layer.index_planes)
            lanes = place_channels(planes)[..., part.granules.start * GRANULE : part.granules.stop * GRANULE]
            words = [split_words(lanes.reshape(*planes.shape[:2], -1), self.spec.lanes)]
            if info.residual_source is not None:
                expected = (info.conv_shape[0], self.layers[info.residual_source].out_shape[0])
                if residual is None or residual.shape != expected:
                    found = "none" if residual is None else f"weights of shape {residual.shape}"
                    raise BitwrightError(f"it adds a residual with {found}, expected weights of shape {expected}.")
                planes = split_planes(residual[rows_used], info.residual_encoding, info.residual_bits)
                words.append(split_words(place_channels(planes), self.spec.lanes))
        except BitwrightError as error:
            raise BitwrightError(f"Layer {info.name!r}: {error}") from error
        # Planes and words of a tile side by side: those of the input, then those of the residual. Coded: those of the
        # residual, then, for each word of the input, the planes of its indices, the most significant first.
        order = [planes.transpose(1, 0, 2, 3) for planes in words]
        if info.codebook is not None:
            order = [*order[1:], words[0][::-1].transpose(1, 2, 0, 3)]
        tile = np.concatenate([each.reshape(len(rows_used), -1, self.spec.lanes) for each in order], axis=1)
        memory = np.zeros((len(part.tiles) * rows, *tile.shape[1:]), bool)
        memory[: len(tile)] = tile
        memory = memory.reshape(len(part.tiles), rows, *tile.shape[1:]).transpose(1, 0, 2, 3)
        return pack_words(memory.reshape(rows, -1, self.spec.lanes))

    def _threshold_entries(
        self, info: LayerInfo, part: Part, values: npt.NDArray[np.int64], flags: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint32]:
        """Entries of one part's thresholds, shape (rows, row tiles × 2**planes)."""
        levels = (1 << info.output_planes) - 1
        channels, rows = info.conv_shape[0], self.spec.rows
        if values.shape != (channels, levels) or flags.shape != (channels,):
            raise BitwrightError(
                f"Layer {info.name!r} has thresholds of shape {values.shape} with flags of shape {flags.shape}, "
                f"expected {(channels, levels)} and {(channels,)}."
            )
        padded = -channels % rows  # rows without a channel never reach a threshold
        values = np.pad(values, ((0, padded), (0, 0)), constant_values=self.spec.derived.accumulator_range[0])
        flags = np.pad(flags, (0, padded), constant_values=THRESHOLD_NEGATE)
        tiles = encode_thresholds(values, flags, self.spec).reshape(-1, rows, levels + 1)
        return tiles[part.tiles.start : part.tiles.stop].transpose(1, 0, 2).reshape(rows, -1)

    def _coefficient_entries(
        self,
        info: LayerInfo,
        part: Part,
        layer: Descriptor,
        values: npt.NDArray[np.integer[Any]] | None,
        residual: npt.NDArray[np.integer[Any]] | None,
    ) -> npt.NDArray[np.int32]:
        """Entries of one part's coefficients, shape (rows, row tiles × passes)."""
        channels, rows = info.conv_shape[0], self.spec.rows
        operands = [("coefficients", values, info.weight_planes, info.input_planes)]
        if info.residual_source is not None:
            operands.append(("coefficients of its residual", residual, info.residual_bits, info.residual_planes))
        half = 1 << (self.spec.coefficient_bits - 1)
        entries = np.zeros((-(-channels // rows) * rows, len(layer.passes)), np.int32)
        first = 0
        for what, given, *planes in operands:
            expected = (channels, *planes)
            if given is None or given.shape != expected:
                found = f"no {what}" if given is None else f"{what} of shape {given.shape}"
                raise BitwrightError(f"Layer {info.name!r} has {found}, expected shape {expected}.")
            if given.size and not (-half <= given.min() and given.max() < half):
                raise BitwrightError(
                    f"Layer {info.name!r} has {what} from {given.min()} to {given.max()}, this array takes "
                    f"{-half} to {half - 1} (coefficient_bits)."
                )
            # Weight planes outside, activation planes inside: the order of `schedule_passes`.
            flat = given.reshape(channels, -1)
            entries[:channels, first : first + flat.shape[1]] = flat
            first += flat.shape[1]
        tiles = entries.reshape(-1, rows, len(layer.passes))[part.tiles.start : part.tiles.stop]
        return tiles.transpose(1, 0, 2).reshape(rows, -1)


def without_zero_planes(layer: Descriptor, words: npt.NDArray[np.uint8], spec: ArraySpec) -> Descriptor:
    """Leave out passes over planes of weights that are zero in all row tiles of a part.

    Their doublings are left to the next pass. The last pass stays where doublings are left for it, and so do passes
    that the column sum needs, as an offset counts for zeros too, and those of layers with coefficients.

    Parameters
    ----------
    layer
        Descriptor of the part.
    words
        Its weights, ``uint8``, shape (rows, row tiles × words of a tile, lanes / 8).
    spec
        Array.
    """
    if layer.flags & FLAG_COEFFICIENTS:
        return layer
    used: npt.NDArray[np.bool_] = np.any(words.reshape(len(words), layer.row_tiles, -1, words.shape[2]), (0, 1, 3))
    lengths = layer.plane_words(spec)
    passes: list[Pass] = []
    doubles = 0
    for number, entry in enumerate(layer.passes):
        doubles = doubles + entry.doubles if passes else 0
        counted = layer.flags & FLAG_OFFSET and entry.plane < layer.activation_planes
        zero = not used[entry.weight_offset : entry.weight_offset + lengths[entry.plane]].any()
        if number + 1 < len(layer.passes):
            carried = doubles + layer.passes[number + 1].doubles <= PASS_DOUBLES_MAX
        else:
            carried = bool(passes) and not doubles
        if counted or not zero or not carried:
            passes.append(replace(entry, doubles=doubles))
            doubles = 0
    return Descriptor(fields={**layer.fields, "passes": len(passes)}, passes=tuple(passes))


def _codebook_tables(
    info: LayerInfo, codebook: Sequence[int], index_planes: int, spec: ArraySpec
) -> npt.NDArray[np.uint32]:
    """Beats with which the stream of a coded part begins: for each plane the bits of the codebook's integers."""
    planes = split_planes(np.array(codebook), info.stored_encoding, info.weight_planes)
    tables = (planes.astype(np.int64) << np.arange(len(codebook))).sum(1)
    return np.array([repeat_table(table, index_planes, spec) for table in tables.tolist()], np.uint32)


def _indices(weights: npt.NDArray[np.int64], codebook: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where each weight is in a rising codebook."""
    entries = np.array(codebook)
    found = np.minimum(np.searchsorted(entries, weights), len(entries) - 1)
    if (wrong := entries[found] != weights).any():
        raise BitwrightError(
            f"it has the weight {weights[wrong].flat[0]}, expected the integers of its codebook, "
            f"{', '.join(map(str, codebook))}."
        )
    return found
