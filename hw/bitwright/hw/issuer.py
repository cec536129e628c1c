"""Tile issuer: one operation of the array a cycle."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.drain import tile_layout
from bitwright.hw.fetch import group_layout
from bitwright.hw.isa import (
    ArraySpec,
)
from bitwright.hw.schedule import DOUBLES_WIDTH, schedule_layout, skipped_width


def operation_layout(spec: ArraySpec) -> data.StructLayout:
    """One cycle of the array: a word of the window for one pass of one row tile."""
    derived = spec.derived
    return data.StructLayout(
        {
            "valid": 1,
            "clear": 1,  # first of the row tile
            "double": 1,
            "negate": 1,
            "residual": 1,
            "empty": 1,  # no word to compute; the operation only doubles or clears
            "last": 1,  # of the row tile
            "buffer": 1,
            "base": derived.window_address_width,  # word of the window buffer at which the plane starts
            "list_address": derived.window_address_width,  # of the list entry
            "list_index": derived.window_address_width,  # its number in the plane's list
            "weight_address": derived.weight_address_width,  # of the plane; the word's number is added to it
            "coefficient_address": derived.coefficient_address_width,
        }
    )


class TileIssuer(wiring.Component):
    """Issue one operation a cycle: pixel groups, row tiles, scheduled passes, words of the list.

    The only wait inside a group is for the drain: it takes ``drain_cycles`` to empty a tile, so the last operations of
    successive tiles are issued at least that many cycles apart. Nothing has to come back from the drain for that.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor.
    start : ``In(1)``
        Start the layer.
    group_ready : ``In(1)``
        The next group is loaded and its passes are scheduled.
    count, skipped, first
        Of that group's schedule: entries, words left out, first entry.
    take : ``Out(1)``
        That group is taken; its first operation is issued in the next cycle.
    buffer : ``Out(1)``
        Half of the buffers that holds the group that was taken; the other one holds the next.
    group : ``In(group_layout(spec))``
        The group that was taken, from the cycle after ``take`` to that of ``release``.
    release : ``Out(1)``
        Its last operation is issued.
    entry_buffer, entry_index, entry_read, entry
        Read port of the schedule.
    operation : ``Out(operation_layout(spec))``
        Operation of this cycle.
    tile : ``Out(tile_layout(spec))``
        Row tile of this operation.
    stalled : ``Out(1)``
        The operation waits for the drain.
    tile_skipped : ``Out``
        With the last operation of a row tile, words that it passed over; else 0.
    """

    layer: "data.View[Any]"
    start: Signal
    group_ready: Signal
    count: Signal
    skipped: Signal
    first: "data.View[Any]"
    take: Signal
    buffer: Signal
    group: "data.View[Any]"
    release: Signal
    entry_buffer: Signal
    entry_index: Signal
    entry_read: Signal
    entry: "data.View[Any]"
    operation: "data.View[Any]"
    tile: "data.View[Any]"
    stalled: Signal
    tile_skipped: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        passes = spec.derived.passes_max
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "start": In(1),
                "group_ready": In(1),
                "count": In(range(passes + 1)),
                "skipped": In(skipped_width(spec)),
                "first": In(schedule_layout(spec)),
                "take": Out(1),
                "buffer": Out(1, init=1),  # pyright: ignore[reportCallIssue]  # not in the stubs
                "group": In(group_layout(spec)),
                "release": Out(1),
                "entry_buffer": Out(1),
                "entry_index": Out((passes - 1).bit_length()),
                "entry_read": Out(1),
                "entry": In(schedule_layout(spec)),
                "operation": Out(operation_layout(spec)),
                "tile": Out(tile_layout(spec)),
                "stalled": Out(1),
                "tile_skipped": Out(skipped_width(spec)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived, layer = self.spec, self.spec.derived, self.layer
        operation, tile, group = self.operation, self.tile, self.group
        m = Module()

        active = Signal()
        count = Signal.like(self.count)
        skipped = Signal.like(self.skipped)
        # The schedule goes round once for each row tile. Memory is slow: it has read the entry after the one in use.
        entry = Signal(schedule_layout(spec))
        number = Signal(range(derived.passes_max + 1))  # of the entry
        ahead = Signal(range(derived.passes_max + 1))  # the number that is to be read next
        extra = Signal(DOUBLES_WIDTH)  # operations without a word that have been issued
        index = Signal(derived.window_address_width + 1)  # words that have been issued
        list_address = Signal(derived.window_address_width)  # of the next word, unless it is the first
        drain_wait = Signal.like(group.drain_cycles)

        # Whether an operation is the first or the last of something is known in the cycle before, for what follows from
        # it has to reach memories in the same cycle. An entry brings it along for its first.
        first_entry, only_entry, last_entry = Signal(), Signal(), Signal()
        first_extra, last_extra, extras_done = Signal(), Signal(), Signal()
        first_word, last_word = Signal(), Signal()
        last_tile, waiting = Signal(), Signal()

        # Row tile.
        tile_number = Signal(derived.tile_index_width)
        first_tile = Signal()
        weight_address = Signal(derived.weight_address_width)
        coefficient_address = Signal(derived.coefficient_address_width)

        empty, ends_extras, ends_words, entry_ends = Signal(), Signal(), Signal(), Signal()
        tile_ends, group_ends = Signal(), Signal()
        m.d.comb += [
            empty.eq(~Mux(first_extra, entry.no_extra, extras_done)),
            ends_extras.eq(Mux(first_extra, entry.one_extra, last_extra)),
            ends_words.eq(Mux(first_word, entry.one_word, last_word)),
            entry_ends.eq(Mux(empty, entry.no_word & ends_extras, ends_words)),
            tile_ends.eq(entry_ends & last_entry),
            group_ends.eq(tile_ends & last_tile),
            self.stalled.eq(active & tile_ends & waiting),
            operation.valid.eq(active & ~self.stalled),
            operation.clear.eq(first_entry & first_extra & first_word),
            operation.double.eq(entry.double & first_word),
            operation.negate.eq(entry.negate),
            operation.residual.eq(entry.residual),
            operation.empty.eq(empty),
            operation.last.eq(tile_ends),
            operation.buffer.eq(self.buffer),
            operation.base.eq(entry.base),
            operation.list_address.eq(Mux(first_word, entry.base, list_address)),
            operation.list_index.eq(index),
            operation.weight_address.eq(weight_address + entry.weight_offset),
            operation.coefficient_address.eq(coefficient_address + entry.index),
            self.tile_skipped.eq(Mux(operation.valid & tile_ends, skipped, 0)),
            tile.valid.eq(group.valid),
            tile.pool_first.eq(group.pool_first),
            tile.pool_last.eq(group.pool_last),
            tile.first.eq(first_tile),
            tile.last.eq(group.last & last_tile),
            self.release.eq(operation.valid & group_ends),
            self.take.eq(self.group_ready & (~active | self.release)),
            self.entry_read.eq(self.take | (operation.valid & entry_ends)),
            self.entry_buffer.eq(self.buffer ^ self.take),
            self.entry_index.eq(Mux(self.take, self.count != 1, ahead)),
        ]

        with m.If(waiting):
            m.d.sync += [drain_wait.eq(drain_wait - 1), waiting.eq(drain_wait != 2)]
        with m.If(operation.valid):
            with m.If(empty):
                m.d.sync += [
                    extra.eq(extra + 1),
                    first_extra.eq(0),
                    last_extra.eq(extra + 2 == entry.extra),
                    extras_done.eq(ends_extras),
                ]
            with m.Else():
                m.d.sync += [
                    index.eq(index + 1),
                    first_word.eq(0),
                    last_word.eq(index + 2 == entry.length),
                    list_address.eq(operation.list_address + 1),
                ]
            with m.If(entry_ends):
                self._begin_entry(m, extra, index, first_extra, first_word)
                m.d.sync += [
                    entry.eq(self.entry),
                    number.eq(number + 1),
                    ahead.eq(Mux(ahead + 1 == count, 0, ahead + 1)),
                    first_entry.eq(0),
                    last_entry.eq(number + 2 == count),
                ]
            with m.If(tile_ends):
                m.d.sync += [
                    number.eq(0),
                    first_entry.eq(1),
                    last_entry.eq(only_entry),
                    drain_wait.eq(group.drain_cycles),
                    waiting.eq(group.drain_cycles != 1),
                    tile_number.eq(tile_number + 1),
                    last_tile.eq(tile_number + 2 == layer.row_tiles),
                    first_tile.eq(0),
                    weight_address.eq(weight_address + layer.weight_tile_stride),
                    coefficient_address.eq(coefficient_address + layer.passes),
                ]
            with m.If(group_ends):
                m.d.sync += active.eq(0)

        with m.If(self.take):
            m.d.sync += [
                active.eq(1),
                entry.eq(self.first),
                ahead.eq(Mux(self.count <= 2, 0, 2)),
                self.buffer.eq(~self.buffer),
                count.eq(self.count),
                skipped.eq(self.skipped),
                only_entry.eq(self.count == 1),
                last_entry.eq(self.count == 1),
            ]
        with m.If(self.take | self.start):
            self._begin_entry(m, extra, index, first_extra, first_word)
            m.d.sync += [
                number.eq(0),
                first_entry.eq(1),
                tile_number.eq(0),
                last_tile.eq(layer.row_tiles == 1),
                first_tile.eq(1),
                weight_address.eq(layer.weight_base),
                coefficient_address.eq(layer.coefficient_base),
            ]
        with m.If(self.start):
            m.d.sync += [active.eq(0), waiting.eq(0)]
        return m

    @staticmethod
    def _begin_entry(m: Module, extra: Signal, index: Signal, first_extra: Signal, first_word: Signal) -> None:
        m.d.sync += [extra.eq(0), index.eq(0), first_extra.eq(1), first_word.eq(1)]
