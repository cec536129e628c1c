"""Control: descriptors and passes in, one operation a cycle out."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.fetch import descriptor_layout, group_layout
from bitwright.hw.isa import FLAG_LAST, FLAG_RAW, HEADER_WORDS, ArraySpec, ErrorCode, descriptor_fields

PASS = data.StructLayout({"weight_offset": 14, "activation_plane": 3, "double": 1, "negate": 1})
"""A pass word, as :meth:`bitwright.hw.isa.Pass.encode` lays it out."""

PASS_ITEM = data.StructLayout({"word": PASS, "first": 1, "last": 1})
"""A pass, and whether it is the first or last of its row tile."""


class LayerSequencer(wiring.Component):
    """Fetch each layer's descriptor, check it, start the layer, feed its passes, and wait for its end.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    start : ``In(1)``
        Begin at descriptor 0.
    address, read, word
        Read port of the descriptor memory, with a latency of one cycle while ``read`` is set.
    layer : ``Out(descriptor_layout(spec))``
        Fields of the running layer.
    layer_index : ``Out(16)``
        Number of the running layer.
    layer_start : ``Out(1)``
        First cycle of a layer: its first descriptor word is being fetched.
    run : ``Out(1)``
        First cycle in which a layer, checked, runs: ``LAYER_TO_RUN`` cycles after ``layer_start``.
    layer_done : ``In(1)``
        Last write of a layer.
    overflow : ``In(1)``
        The window of the layer is too large.
    passes : ``Out(stream.Signature(PASS_ITEM))``
        The layer's passes, over and over.
    busy : ``Out(1)``
        A program is running.
    finished : ``Out(1)``
        In the last cycle of the last layer, or when stopped by an error.
    error, error_field
        Code, valid with ``finished``, and index of the descriptor field it is about.
    """

    start: Signal
    address: Signal
    read: Signal
    word: Signal
    layer: "data.View[Any]"
    layer_index: Signal
    layer_start: Signal
    run: Signal
    layer_done: Signal
    overflow: Signal
    passes: stream.Interface
    busy: Signal
    finished: Signal
    error: Signal
    error_field: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "start": In(1),
                "address": Out(spec.derived.descriptor_address_width),
                "read": Out(1),
                "word": In(32),
                "layer": Out(descriptor_layout(spec)),
                "layer_index": Out(16),
                "layer_start": Out(1),
                "run": Out(1),
                "layer_done": In(1),
                "overflow": In(1),
                "passes": Out(stream.Signature(PASS_ITEM)),
                "busy": Out(1),
                "finished": Out(1),
                "error": Out(3),
                "error_field": Out(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, layer = self.spec, self.layer
        m = Module()
        address_width = spec.derived.descriptor_address_width + 1
        pointer = Signal(address_width)  # one bit more than an address, to see the end of the memory
        end = Signal(range((1 << address_width) + HEADER_WORDS + (1 << 16)))  # whatever `passes` says
        m.d.comb += end.eq(pointer + HEADER_WORDS + layer.passes)

        header = Signal(range(HEADER_WORDS + 1))
        next_pass, fetched_pass = Signal(16), Signal(16)

        # A field is checked where it is used: out of range or not, from the table that the compiler uses.
        fields = descriptor_fields(spec)
        wrong = Signal(len(fields))
        for index, field in enumerate(fields):
            value = layer[field.name]
            checks = []
            if field.low > (-(1 << 15) if field.signed else 0):
                checks.append(value < field.low)
            if field.high < ((1 << 15) - 1 if field.signed else (1 << 16) - 1):
                checks.append(value > field.high)
            if checks:
                m.d.comb += wrong[index].eq(Cat(*checks).any())
        wrong_index = Signal(8)
        for index in reversed(range(len(wrong))):
            with m.If(wrong[index]):
                m.d.comb += wrong_index.eq(index)

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("idle"))
            with m.State("idle"), m.If(self.start):
                m.d.sync += [pointer.eq(0), header.eq(0), self.layer_index.eq(0)]
                m.next = "header"

            with m.State("header"):
                m.d.comb += [
                    self.address.eq(pointer + header),
                    self.read.eq(1),
                    self.layer_start.eq(header == 0),
                ]
                m.d.sync += header.eq(header + 1)
                with m.Switch(header):
                    for index in range(HEADER_WORDS):
                        with m.Case(index + 1):  # words of the memory come one cycle after their address
                            pair = fields[2 * index : 2 * index + 2]
                            m.d.sync += [
                                layer[field.name].eq(self.word.word_select(n, 16)) for n, field in enumerate(pair)
                            ]
                with m.If(header == HEADER_WORDS):
                    m.next = "check"

            with m.State("check"):
                m.d.sync += [next_pass.eq(0), self.passes.valid.eq(0)]
                with m.If(end > spec.descriptor_depth):
                    m.d.comb += [self.error.eq(ErrorCode.END), self.finished.eq(1)]
                    m.next = "idle"
                with m.Elif(wrong.any()):
                    m.d.comb += [
                        self.error.eq(ErrorCode.FIELD),
                        self.error_field.eq(wrong_index),
                        self.finished.eq(1),
                    ]
                    m.next = "idle"
                with m.Else():
                    m.next = "run"

            with m.State("run"):
                # The pass being offered stays in the memory's output register until it is taken.
                advance = Signal()
                m.d.comb += [
                    self.run.eq(header != 0),  # left from the header; cleared after the first cycle
                    advance.eq(~self.passes.valid | self.passes.ready),
                    self.address.eq(pointer + HEADER_WORDS + next_pass),
                    self.read.eq(advance),
                ]
                m.d.sync += header.eq(0)
                with m.If(advance):
                    m.d.sync += [
                        self.passes.valid.eq(1),
                        fetched_pass.eq(next_pass),
                        next_pass.eq(Mux(next_pass == layer.passes - 1, 0, next_pass + 1)),
                    ]
                with m.If(self.overflow):
                    m.d.comb += [self.error.eq(ErrorCode.WINDOW), self.finished.eq(1)]
                    m.next = "idle"
                with m.Elif(self.layer_done):
                    m.d.sync += [pointer.eq(end), self.layer_index.eq(self.layer_index + 1)]
                    with m.If(layer.flags & FLAG_LAST):
                        m.d.comb += self.finished.eq(1)
                        m.next = "idle"
                    with m.Else():
                        m.next = "header"

        m.d.comb += [
            self.passes.payload.word.eq(self.word),
            self.passes.payload.first.eq(fetched_pass == 0),
            self.passes.payload.last.eq(fetched_pass == layer.passes - 1),
        ]
        return m


def operation_layout(spec: ArraySpec) -> data.StructLayout:
    """One cycle of the array: a word of the window for one pass of one row tile."""
    derived = spec.derived
    return data.StructLayout(
        {
            "valid": 1,
            "clear": 1,  # first of the row tile
            "double": 1,
            "negate": 1,
            "empty": 1,  # the pass has no word to compute; the operation only doubles or clears
            "last": 1,  # of the row tile
            "pass_last": 1,
            "list_buffer": 1,
            "list_plane": 3,
            "list_index": derived.word_index_width,
            "weight_address": derived.weight_address_width,  # of the plane; the word's number is added to it
        }
    )


def tile_layout(spec: ArraySpec) -> data.StructLayout:
    """What the drain needs to know of a row tile of a pixel group."""
    return data.StructLayout(
        {
            "valid": spec.columns,
            "pool_first": spec.columns,
            "pool_last": spec.columns,
            "output_address": 16,  # of the group's first completed output word, or of the tile's first raw result
            "slot": range(spec.derived.slots),  # place of the tile in its word
            "tile": spec.derived.tile_index_width,
            "channel": 16,  # first channel of the tile
            "threshold_address": spec.derived.threshold_address_width,  # of the tile, minus one
            "last": 1,  # of the layer
        }
    )


class TileIssuer(wiring.Component):
    """Issue one operation a cycle: pixel groups, row tiles, passes, words of the list.

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
    group : ``In(group_layout(spec))``, group_ready, group_buffer
        From the scanner.
    take : ``Out(1)``
        The group is taken; its first operation is issued in the next cycle.
    passes : ``In(stream.Signature(PASS_ITEM))``
        The layer's passes. Always valid by the time that a group is ready.
    operation : ``Out(operation_layout(spec))``
        Operation of this cycle.
    tile : ``Out(tile_layout(spec))``
        Row tile of this operation.
    stalled : ``Out(1)``
        The operation waits for the drain.
    skipped : ``Out(word_index_width + 1)``
        With the last operation of a pass, window words that the pass passed over.
    """

    layer: "data.View[Any]"
    start: Signal
    group: "data.View[Any]"
    group_ready: Signal
    group_buffer: Signal
    take: Signal
    passes: stream.Interface
    operation: "data.View[Any]"
    tile: "data.View[Any]"
    stalled: Signal
    skipped: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "start": In(1),
                "group": In(group_layout(spec)),
                "group_ready": In(1),
                "group_buffer": In(1),
                "take": Out(1),
                "passes": In(stream.Signature(PASS_ITEM)),
                "operation": Out(operation_layout(spec)),
                "tile": Out(tile_layout(spec)),
                "stalled": Out(1),
                "skipped": Out(spec.derived.word_index_width + 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived, layer = self.spec, self.spec.derived, self.layer
        operation, tile = self.operation, self.tile
        m = Module()

        active = Signal()
        group = Signal(group_layout(spec))
        buffer = Signal()
        index = Signal(derived.word_index_width + 1)
        drain_wait = Signal.like(self.group.drain_cycles)

        # Row tile.
        number = Signal(derived.tile_index_width)
        slot = Signal(range(derived.slots))
        word = Signal(16)
        channel = Signal(16)
        weight_address = Signal(derived.weight_address_width)
        threshold_address = Signal(derived.threshold_address_width)
        thresholds = Signal(derived.code_width)
        m.d.comb += thresholds.eq((1 << layer.output_planes[:4]) - 1)
        raw = (layer.flags & FLAG_RAW).any()

        item = self.passes.payload
        lengths = Array(group.list_lengths[plane] for plane in range(spec.activation_planes_max))
        length = Signal(derived.word_index_width + 1)
        pass_last, tile_last, group_last = Signal(), Signal(), Signal()
        m.d.comb += [
            length.eq(lengths[item.word.activation_plane]),
            pass_last.eq(index + 1 >= length),
            tile_last.eq(pass_last & item.last),
            group_last.eq(tile_last & (number == layer.row_tiles - 1)),
            self.stalled.eq(active & tile_last & (drain_wait != 0)),
            operation.valid.eq(active & ~self.stalled),
            operation.clear.eq(item.first & (index == 0)),
            operation.double.eq(item.word.double & (index == 0)),
            operation.negate.eq(item.word.negate),
            operation.empty.eq(length == 0),
            operation.last.eq(tile_last),
            operation.pass_last.eq(pass_last),
            operation.list_buffer.eq(buffer),
            operation.list_plane.eq(item.word.activation_plane),
            operation.list_index.eq(index),
            operation.weight_address.eq(weight_address + item.word.weight_offset),
            self.skipped.eq(group.window_words - length),
            self.passes.ready.eq(operation.valid & pass_last),
            tile.valid.eq(group.valid),
            tile.pool_first.eq(group.pool_first),
            tile.pool_last.eq(group.pool_last),
            tile.output_address.eq(group.output_address + Mux(raw, channel, word)),
            tile.slot.eq(slot),
            tile.tile.eq(number),
            tile.channel.eq(channel),
            tile.threshold_address.eq(threshold_address),
            tile.last.eq(group.last & (number == layer.row_tiles - 1)),
            self.take.eq(self.group_ready & (~active | (operation.valid & group_last))),
        ]

        with m.If(drain_wait != 0):
            m.d.sync += drain_wait.eq(drain_wait - 1)
        with m.If(operation.valid):
            m.d.sync += index.eq(Mux(pass_last, 0, index + 1))
            with m.If(tile_last):
                m.d.sync += [
                    drain_wait.eq(group.drain_cycles - 1),
                    number.eq(number + 1),
                    channel.eq(channel + spec.rows),
                    weight_address.eq(weight_address + layer.weight_tile_stride),
                    threshold_address.eq(threshold_address + thresholds),
                    slot.eq(slot + 1),
                ]
                with m.If(slot == derived.slots - 1):
                    m.d.sync += [slot.eq(0), word.eq(word + 1)]
            with m.If(group_last):
                m.d.sync += active.eq(0)

        with m.If(self.take):
            m.d.sync += [active.eq(1), group.eq(self.group), buffer.eq(self.group_buffer)]
        with m.If(self.take | self.start):
            m.d.sync += [
                index.eq(0),
                number.eq(0),
                slot.eq(0),
                word.eq(0),
                channel.eq(0),
                weight_address.eq(layer.weight_base),
                threshold_address.eq(layer.threshold_base),
            ]
        with m.If(self.start):
            m.d.sync += [active.eq(0), drain_wait.eq(0)]
        return m
