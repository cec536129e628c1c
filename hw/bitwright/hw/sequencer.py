"""Control: descriptors and passes in, one operation a cycle out."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.drain import tile_layout
from bitwright.hw.fetch import descriptor_layout, group_layout, length_layout
from bitwright.hw.isa import (
    BUS_WIDTH,
    DOUBLES_MAX,
    FIELD_PLACES,
    FLAG_LAST,
    HEADER_WORDS,
    ArraySpec,
    ErrorCode,
    Field,
    descriptor_fields,
)

PASS = data.StructLayout({"weight_offset": 14, "plane": 4, "base": 10, "negate": 1, "doubles": 3})
"""A pass word, as :meth:`bitwright.hw.isa.Pass.encode` lays it out."""

DOUBLES_WIDTH = DOUBLES_MAX.bit_length()
"""Bits of the doublings of an entry: of all passes that were dropped before it, too."""


class LayerSequencer(wiring.Component):
    """Fetch each layer's descriptor, check it, start the layer, wait for its end.

    With ``prefetch``, the next descriptor is fetched while a layer runs; otherwise after it, into the same registers.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    start : ``In(1)``
        Begin at descriptor 0.
    address : ``Out(descriptor_address_width)``, word : ``In(32)``
        Read port of the descriptor memory, with a latency of one cycle.
    fetching : ``Out(1)``
        A header is being read. Without ``prefetch``, no layer runs meanwhile.
    layer : ``Out(descriptor_layout(spec))``
        Fields of the running layer, from ``run`` on.
    pass_address : ``Out(descriptor_address_width)``
        Address of the running layer's first pass word.
    layer_index : ``Out(16)``
        Number of the running layer.
    layer_start : ``Out(1)``
        First cycle of a layer: the cycle after the last one's end.
    run : ``Out(1)``
        First cycle in which the layer runs.
    layer_done : ``In(1)``
        Last write of a layer.
    overflow : ``In(1)``
        The window of the layer is too large.
    stream_start : ``Out(1)``, stream_base, stream_words : ``Out(16)``, stream_done : ``In(1)``
        Load so many words of each row for the next layer; done, in the last cycle of that.
    stream_layer : ``Out(descriptor_layout(spec))``
        Fields of that layer, where weights are decoded as they come in: with ``codebook_bits``.
    busy : ``Out(1)``
        A program is running.
    finished : ``Out(1)``
        In the last cycle of the last layer, or when stopped by an error.
    error, error_field
        Code, valid with ``finished``, and index of the descriptor field it is about.
    """

    start: Signal
    address: Signal
    word: Signal
    fetching: Signal
    layer: "data.View[Any]"
    pass_address: Signal
    layer_index: Signal
    layer_start: Signal
    run: Signal
    layer_done: Signal
    overflow: Signal
    stream_start: Signal
    stream_base: Signal
    stream_words: Signal
    stream_done: Signal
    stream_layer: "data.View[Any]"
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
                "word": In(32),
                "fetching": Out(1),
                "layer": Out(descriptor_layout(spec)),
                "pass_address": Out(spec.derived.descriptor_address_width),
                "layer_index": Out(16),
                "layer_start": Out(1),
                "run": Out(1),
                "layer_done": In(1),
                "overflow": In(1),
                "stream_start": Out(1),
                "stream_base": Out(16),
                "stream_words": Out(16),
                "stream_done": In(1),
                **({"stream_layer": Out(descriptor_layout(spec))} if spec.codebook_bits else {}),
                "busy": Out(1),
                "finished": Out(1),
                "error": Out(3),
                "error_field": Out(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec = self.spec
        m = Module()
        address_width = spec.derived.descriptor_address_width + 1
        pointer = Signal(address_width)  # of the header being fetched; one bit more, to see the end of the memory
        end = Signal(range((1 << address_width) + HEADER_WORDS + (1 << 16)))  # whatever `passes` says

        # Fetch the next header. A field is checked as it arrives, against the range that the compiler uses; which one
        # is wrong is worked out a cycle later, for memory is slow.
        upcoming = Signal(descriptor_layout(spec)) if spec.prefetch else self.layer
        wrong, wrong_field = Signal(), Signal(8)
        bad = Signal(max(len(self._checks(word)) for word in range(HEADER_WORDS)))  # of the word before
        count = Signal(range(HEADER_WORDS + 1))
        ready, failed, failed_code = Signal(), Signal(), Signal(3)
        switch = Signal()
        m.d.comb += end.eq(pointer + HEADER_WORDS + upcoming.passes)
        m.d.comb += self.address.eq(pointer + count)
        with m.FSM(name="fetch"):
            with m.State("idle"), m.If(self.start):
                m.d.sync += [pointer.eq(0), count.eq(0), wrong.eq(0)]
                m.next = "header"

            with m.State("header"):
                m.d.comb += self.fetching.eq(1)
                m.d.sync += count.eq(count + 1)
                with m.Switch(count):
                    for word in range(HEADER_WORDS):
                        with m.Case(word + 1):  # words of the memory come one cycle after their address
                            self._take_word(m, word, upcoming)
                            m.d.sync += bad.eq(Cat(refused for _, refused in self._checks(word)))
                            if word > 0:
                                self._note(m, word - 1, bad, wrong, wrong_field)
                with m.If(count == HEADER_WORDS):
                    m.next = "check"

            with m.State("check"):
                self._note(m, HEADER_WORDS - 1, bad, wrong, wrong_field)
                with m.If(end > spec.descriptor_depth):
                    m.d.sync += [failed.eq(1), failed_code.eq(ErrorCode.END)]
                    m.next = "hold"
                with m.Elif(wrong | bad.any()):
                    m.d.sync += [failed.eq(1), failed_code.eq(ErrorCode.FIELD)]
                    m.next = "hold"
                if spec.weight_stream:
                    with m.Elif(upcoming.stream_words != 0):
                        m.d.comb += self.stream_start.eq(1)
                        m.next = "stream"
                with m.Else():
                    m.d.sync += ready.eq(1)
                    m.next = "hold"

            if spec.weight_stream:
                with m.State("stream"), m.If(self.stream_done):
                    m.d.sync += ready.eq(1)
                    m.next = "hold"

            with m.State("hold"), m.If(switch):
                m.d.sync += [ready.eq(0), pointer.eq(end), count.eq(0), wrong.eq(0)]
                with m.If(upcoming.flags & FLAG_LAST):
                    m.next = "idle"
                with m.Else():
                    m.next = "header" if spec.prefetch else "layer"

            if not spec.prefetch:
                with m.State("layer"), m.If(self.layer_done):
                    m.next = "header"
        m.d.comb += [self.stream_base.eq(upcoming.weight_base), self.stream_words.eq(upcoming.stream_words)]
        if spec.codebook_bits:
            m.d.comb += self.stream_layer.eq(upcoming)

        # Run the layers.
        with m.FSM(name="run") as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("idle"))
            with m.State("idle"), m.If(self.start):
                m.d.sync += [self.layer_index.eq(0), self.layer_start.eq(1)]
                m.next = "wait"

            with m.State("wait"):
                m.d.sync += self.layer_start.eq(0)
                with m.If(failed):
                    m.d.comb += [
                        self.error.eq(failed_code),
                        self.error_field.eq(Mux(failed_code == ErrorCode.FIELD, wrong_field, 0)),
                        self.finished.eq(1),
                    ]
                    m.next = "idle"
                with m.Elif(ready):
                    m.d.comb += switch.eq(1)
                    if spec.prefetch:
                        m.d.sync += self.layer.eq(upcoming)
                    m.d.sync += [
                        self.pass_address.eq(pointer + HEADER_WORDS),
                        self.run.eq(1),
                    ]
                    m.next = "run"

            with m.State("run"):
                m.d.sync += self.run.eq(0)
                with m.If(self.overflow):
                    m.d.comb += [self.error.eq(ErrorCode.WINDOW), self.finished.eq(1)]
                    m.next = "idle"
                with m.Elif(self.layer_done):
                    m.d.sync += self.layer_index.eq(self.layer_index + 1)
                    with m.If(self.layer.flags & FLAG_LAST):
                        m.d.comb += self.finished.eq(1)
                        m.next = "idle"
                    with m.Else():
                        m.d.sync += self.layer_start.eq(1)
                        m.next = "wait"
        return m

    def _fields(self, word: int) -> list[tuple[int, Field, Value]]:
        """Number and description of the fields of a header word, and their bits of the memory's word."""
        found = []
        for index, field in enumerate(descriptor_fields(self.spec)):
            place, bit = FIELD_PLACES[field.name]
            if place == word:
                value = self.word[bit : bit + field.bits]
                found.append((index, field, value.as_signed() if field.signed else value))
        return found

    def _take_word(self, m: Module, word: int, upcoming: "data.View[Any]") -> None:
        """Keep the fields of a header word."""
        for _, field, value in self._fields(word):
            m.d.sync += upcoming[field.name].eq(value)

    def _checks(self, word: int) -> list[tuple[int, Value]]:
        """Number of each field of a header word that has bounds, and whether it is out of them."""
        found = []
        for index, field, value in self._fields(word):
            lowest = -(1 << (field.bits - 1)) if field.signed else 0
            highest = (1 << (field.bits - field.signed)) - 1
            checks = [value < field.low] if field.low > lowest else []
            checks += [value > field.high] if field.high < highest else []
            if checks:
                found.append((index, Cat(*checks).any()))
        return found

    def _note(self, m: Module, word: int, bad: Signal, wrong: Signal, wrong_field: Signal) -> None:
        """Note the first field that is out of its bounds."""
        for place, (index, _) in reversed(list(enumerate(self._checks(word)))):
            with m.If(~wrong & bad[place]):
                m.d.sync += [wrong.eq(1), wrong_field.eq(index)]


def schedule_layout(spec: ArraySpec) -> data.StructLayout:
    """A pass as the issuer needs it."""
    derived = spec.derived
    return data.StructLayout(
        {
            "weight_offset": derived.weight_address_width,
            "base": derived.window_address_width,  # word of the window buffer at which the plane starts
            "length": derived.window_address_width + 1,  # words listed
            "extra": DOUBLES_WIDTH,  # operations without a word, before the words
            "no_word": 1,  # what the issuer has to know of both numbers at once
            "one_word": 1,
            "no_extra": 1,
            "one_extra": 1,
            "double": 1,  # the operations without a word, and the first word's, double
            "negate": 1,
            "residual": 1,  # the words are of the residual addend: column sums do not count them
            "index": (derived.passes_max - 1).bit_length(),  # of the pass, for its coefficient
        }
    )


class PassScheduler(wiring.Component):
    """List the passes that a pixel group needs.

    Without skipping, the list is made once a layer. With it, once a group: passes without a word are left out, and
    their doublings are left to the next one; before the first word there is nothing to double.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``, pass_address
        Descriptor and the address of its first pass word.
    start : ``In(1)``
        First cycle of the layer.
    address : ``Out(descriptor_address_width)``, read : ``Out(1)``, word : ``In(32)``
        Read port of the descriptor memory, with a latency of one cycle while ``read``.
    group : ``In(group_layout(spec))``, group_started, loaded_planes, group_ready, group_buffer
        From the loader. With skipping, a group's passes are listed while it is still being loaded, each as soon as its
        plane is there.
    take : ``In(1)``
        The group is taken.
    complete : ``Out(1)``
        The group's list is complete: ``SCHEDULE_OVERHEAD`` cycles and one for each pass after ``start`` or
        ``group_started``, and more where a pass waits for its plane.
    count : ``Out``, skipped : ``Out``
        Entries of that list, and words of a row tile that it leaves out.
    first : ``Out(schedule_layout(spec))``
        First entry of that list.
    entry_buffer, entry_index, entry_read : ``In``, entry : ``Out(schedule_layout(spec))``
        Read port of the list, with a latency of one cycle while ``entry_read``.
    """

    layer: "data.View[Any]"
    pass_address: Signal
    start: Signal
    address: Signal
    read: Signal
    word: Signal
    group: "data.View[Any]"
    group_started: Signal
    loaded_planes: Signal
    group_ready: Signal
    group_buffer: Signal
    take: Signal
    complete: Signal
    count: Signal
    skipped: Signal
    first: "data.View[Any]"
    entry_buffer: Signal
    entry_index: Signal
    entry_read: Signal
    entry: "data.View[Any]"

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        derived = spec.derived
        self.index_width = (derived.passes_max - 1).bit_length()
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "pass_address": In(derived.descriptor_address_width),
                "start": In(1),
                "address": Out(derived.descriptor_address_width),
                "read": Out(1),
                "word": In(32),
                "group": In(group_layout(spec)),
                "group_started": In(1),
                "loaded_planes": In(range(derived.lists + 1)),
                "group_ready": In(1),
                "group_buffer": In(1),
                "take": In(1),
                "complete": Out(1),
                "count": Out(range(derived.passes_max + 1)),
                "skipped": Out(skipped_width(spec)),
                "first": Out(schedule_layout(spec)),
                "entry_buffer": In(1),
                "entry_index": In(self.index_width),
                "entry_read": In(1),
                "entry": Out(schedule_layout(spec)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, layer = self.spec, self.layer
        skip = spec.zero_skip == "skip"
        m = Module()
        depth = max(2, (2 if skip else 1) << self.index_width)
        m.submodules.entries = entries = memory.Memory(shape=schedule_layout(spec), depth=depth, init=[])
        write, read = entries.write_port(), entries.read_port()
        written = Signal(range(spec.derived.passes_max + 1))
        buffers = [self.group_buffer], [self.entry_buffer]
        m.d.comb += [
            write.addr.eq(Cat(written[: self.index_width], *(buffers[0] if skip else []))),
            read.addr.eq(Cat(self.entry_index, *(buffers[1] if skip else []))),
            read.en.eq(self.entry_read),
            self.entry.eq(read.data),
            self.count.eq(written),
        ]

        begin, fetch, advance, tail = Signal(), Signal(), Signal(), Signal()
        index, current = Signal(range(spec.derived.passes_max + 1)), Signal(range(spec.derived.passes_max + 1))
        fetched, valid, started = Signal(), Signal(), Signal()
        entry_pass = Signal(PASS)
        doubles = Signal(DOUBLES_WIDTH)  # of the passes dropped since the last entry
        m.d.comb += [
            begin.eq(self.group_started if skip else self.start),
            self.address.eq(self.pass_address + Mux(begin, 0, index)),
            self.read.eq(begin | fetch),
            # The word that has come from memory goes to a register when the pass before is listed.
            fetch.eq(fetched & (~valid | advance)),
        ]

        # The pass in the register. Its plane has been listed, or, if the window does not have it, the group is there.
        listed = (self.loaded_planes > entry_pass.plane) | self.group_ready if skip else 1
        m.d.comb += advance.eq(valid & listed)
        residual = Signal()
        m.d.comb += residual.eq(entry_pass.plane >= layer.activation_planes)
        words, length = Signal(spec.derived.window_address_width + 1), Signal(length_layout(spec))
        lengths = Array(self.group.lengths[plane].as_value() for plane in range(spec.derived.lists))
        m.d.comb += words.eq(Mux(residual, layer.residual_length, layer.window_length))
        if skip:
            m.d.comb += length.eq(lengths[entry_pass.plane])
        else:
            m.d.comb += length.eq(Cat(words, words != 0, words == 1))
        total = Signal(DOUBLES_WIDTH)
        m.d.comb += total.eq(doubles + entry_pass.doubles)
        keep = Signal()
        m.d.comb += keep.eq(length.some)  # without skipping, too: the issuer could not end a pass over no plane

        with m.If(tail):  # what is left to double, or nothing at all
            m.d.comb += [
                write.data.no_word.eq(1),
                write.data.one_extra.eq(doubles <= 1),
                write.data.length.eq(0),
                write.data.extra.eq(Mux(doubles == 0, 1, doubles)),
                write.data.double.eq(doubles != 0),
                write.en.eq((doubles != 0) | ~started),
            ]
        with m.Else():
            m.d.comb += [
                write.data.weight_offset.eq(entry_pass.weight_offset),
                write.data.base.eq(entry_pass.base),
                write.data.length.eq(length.words),
                write.data.no_word.eq(~length.some),
                write.data.one_word.eq(length.one),
                write.data.no_extra.eq(~started | (total <= 1)),
                write.data.one_extra.eq(started & (total == 2)),
                write.data.extra.eq(Mux(~started | (total == 0), 0, total - 1)),
                write.data.double.eq(started & (total != 0)),
                write.data.negate.eq(entry_pass.negate),
                write.data.residual.eq(residual),
                write.data.index.eq(current),
                write.en.eq(advance & keep),
            ]
        with m.If(write.en):
            m.d.sync += written.eq(written + 1)
            with m.If(written == 0):
                m.d.sync += self.first.eq(write.data)
        with m.If(advance):
            with m.If(keep):
                m.d.sync += [started.eq(1), doubles.eq(0)]
            with m.Elif(started):
                m.d.sync += doubles.eq(total)
            m.d.sync += self.skipped.eq(self.skipped + words - length.words)

        m.d.sync += tail.eq(0)
        with m.If(begin):
            m.d.sync += [
                fetched.eq(1),
                valid.eq(0),
                index.eq(1),
                written.eq(0),
                started.eq(0),
                doubles.eq(0),
                self.skipped.eq(0),
                self.complete.eq(0),
            ]
        with m.Else():
            with m.If(fetch):
                m.d.sync += [
                    entry_pass.eq(data.View(PASS, self.word)),
                    current.eq(index - 1),
                    index.eq(index + 1),
                    fetched.eq(index != layer.passes),
                ]
            with m.If(fetch | advance):
                m.d.sync += valid.eq(fetch)
            m.d.sync += tail.eq(advance & ~fetched)
        with m.If(tail):
            m.d.sync += self.complete.eq(1)
        if skip:
            with m.If(self.take):
                m.d.sync += self.complete.eq(0)
        return m


def skipped_width(spec: ArraySpec) -> int:
    """Bits of the words that a row tile of a group leaves out: of all passes."""
    return (spec.derived.passes_max * spec.window_depth).bit_length()


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
    group : ``In(group_layout(spec))``, group_ready, group_buffer
        From the loader, once its passes are scheduled.
    count, skipped, first
        Of the group's schedule: entries, words left out, first entry.
    take : ``Out(1)``
        The group is taken; its first operation is issued in the next cycle.
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
    group: "data.View[Any]"
    group_ready: Signal
    group_buffer: Signal
    count: Signal
    skipped: Signal
    first: "data.View[Any]"
    take: Signal
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
                "group": In(group_layout(spec)),
                "group_ready": In(1),
                "group_buffer": In(1),
                "count": In(range(passes + 1)),
                "skipped": In(skipped_width(spec)),
                "first": In(schedule_layout(spec)),
                "take": Out(1),
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
        operation, tile = self.operation, self.tile
        m = Module()

        active = Signal()
        group = Signal(group_layout(spec))
        buffer = Signal()
        count = Signal.like(self.count)
        skipped = Signal.like(self.skipped)
        # The schedule goes round once for each row tile. Memory is slow: it has read the entry after the one in use.
        entry = Signal(schedule_layout(spec))
        number = Signal(range(derived.passes_max + 1))  # of the entry
        ahead = Signal(range(derived.passes_max + 1))  # the number that is to be read next
        extra = Signal(DOUBLES_WIDTH)  # operations without a word that have been issued
        index = Signal(derived.window_address_width + 1)  # words that have been issued
        list_address = Signal(derived.window_address_width)  # of the next word, unless it is the first
        drain_wait = Signal.like(self.group.drain_cycles)

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
            operation.buffer.eq(buffer),
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
            self.take.eq(self.group_ready & (~active | (operation.valid & group_ends))),
            self.entry_read.eq(self.take | (operation.valid & entry_ends)),
            self.entry_buffer.eq(Mux(self.take, self.group_buffer, buffer)),
            self.entry_index.eq(Mux(self.take, self.count != 1, ahead)),
        ]

        with m.If(waiting):
            m.d.sync += [drain_wait.eq(drain_wait - 1), waiting.eq(drain_wait != 1)]
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
                    drain_wait.eq(group.drain_cycles - 1),
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
                group.eq(self.group),
                buffer.eq(self.group_buffer),
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


class WeightStreamer(wiring.Component):
    """Write weights from a stream to the weight memories, row by row, while the array computes.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    beats : ``In(stream.Signature(32))``
        For each row, its words, lowest 32 bits first.
    start : ``In(1)``, base, words
        Load so many words of each row from that address on, from the next cycle.
    done : ``Out(1)``
        Last cycle of it.
    write : ``Out(1)``, write_row, write_address, write_word
        Write port of the weight memories.
    """

    beats: stream.Interface
    start: Signal
    base: Signal
    words: Signal
    done: Signal
    write: Signal
    write_row: Signal
    write_address: Signal
    write_word: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "beats": In(stream.Signature(BUS_WIDTH)),
                "start": In(1),
                "base": In(16),
                "words": In(16),
                "done": Out(1),
                "write": Out(1),
                "write_row": Out(8),
                "write_address": Out(16),
                "write_word": Out(spec.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        chunks = self.spec.derived.chunks
        loading, last = Signal(), Signal()
        chunk, word, row = Signal(range(chunks)), Signal(16), Signal(8)
        m.d.comb += self.beats.ready.eq(loading & ~last)
        m.d.comb += self.done.eq(last)
        m.d.sync += [self.write.eq(0), last.eq(0)]
        with m.If(self.start):
            m.d.sync += [loading.eq(1), chunk.eq(0), word.eq(0), row.eq(0)]
        with m.If(last):
            m.d.sync += loading.eq(0)
        with m.If(self.beats.valid & self.beats.ready):
            # The word fills up from the top; its first chunk ends up lowest.
            m.d.sync += self.write_word.eq(Cat(self.write_word, self.beats.payload)[BUS_WIDTH:])
            m.d.sync += chunk.eq(chunk + 1)
            with m.If(chunk == chunks - 1):
                m.d.sync += [
                    chunk.eq(0),
                    word.eq(word + 1),
                    self.write.eq(1),
                    self.write_row.eq(row),
                    self.write_address.eq(self.base + word),
                ]
                with m.If(word == self.words - 1):
                    m.d.sync += [word.eq(0), row.eq(row + 1)]
                    with m.If(row == self.spec.rows - 1):
                        m.d.sync += last.eq(1)
        return m
