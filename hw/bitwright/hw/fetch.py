"""Activation fetch: which words the array computes on, in which order, for a group of output pixels."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.isa import FLAG_RAW, ArraySpec, descriptor_fields


def descriptor_layout(spec: ArraySpec) -> data.StructLayout:
    """Fields of a descriptor header as the hardware holds them: 16 bits each, in the order of their words."""
    return data.StructLayout(
        {field.name: signed(16) if field.signed else unsigned(16) for field in descriptor_fields(spec)}
    )


def coordinate_width(spec: ArraySpec) -> int:
    """Bits of a signed image coordinate: any pixel of an image that fits in the memory, and any padding."""
    return max(spec.derived.activation_address_width, 8) + 2


class PixelWalker(wiring.Component):
    """Walk the windows of a layer: image, output row, output column, pooling row, pooling column.

    Windows that are pooled together follow each other, so that pooling needs one register and no line buffer.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor; constant while walking.
    start : ``In(1)``
        Go to the first window.
    step : ``In(1)``
        Go to the next window.
    address : ``Out(activation_address_width)``
        Address of the window's first tap, modulo the memory.
    y, x : ``Out(signed(coordinate_width))``
        Image coordinates of the window's first tap.
    pool_first, pool_last : ``Out(1)``
        Whether the window is the first or last of its pooling window.
    done : ``Out(1)``
        All windows have been walked.
    """

    layer: "data.View[Any]"
    start: Signal
    step: Signal
    address: Signal
    y: Signal
    x: Signal
    pool_first: Signal
    pool_last: Signal
    done: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        coordinate = signed(coordinate_width(spec))
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "start": In(1),
                "step": In(1),
                "address": Out(spec.derived.activation_address_width),
                "y": Out(coordinate),
                "x": Out(coordinate),
                "pool_first": Out(1),
                "pool_last": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        layer = self.layer
        coordinate = signed(coordinate_width(self.spec))

        # Outermost level first. Each level keeps the address and coordinates where its current iteration starts;
        # stepping a level moves them, and all levels inside it start from there. The innermost level's are the outputs.
        names = ("image", "output_y", "output_x", "pool_y", "pool_x")
        limits = (layer.images, layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)
        address_steps = (
            layer.image_address_step,
            layer.output_y_address_step,
            layer.output_x_address_step,
            layer.pool_y_address_step,
            layer.pool_x_address_step,
        )
        y_steps = (None, layer.output_y_step, None, layer.pool_y_step, None)
        x_steps = (None, None, layer.output_x_step, None, layer.pool_x_step)

        counts = [Signal(16, name=f"{name}_count") for name in names]
        addresses = [Signal(len(self.address), name=f"{name}_address") for name in names]
        ys = [Signal(coordinate, name=f"{name}_top") for name in names]
        xs = [Signal(coordinate, name=f"{name}_left") for name in names]
        at_end = [Signal(name=f"{name}_end") for name in names]
        m.d.comb += [end.eq(count == limit - 1) for end, count, limit in zip(at_end, counts, limits, strict=True)]

        with m.If(self.start):
            m.d.sync += [count.eq(0) for count in counts]
            m.d.sync += [address.eq(layer.start_address) for address in addresses]
            m.d.sync += [y.eq(layer.start_y) for y in ys]
            m.d.sync += [x.eq(layer.start_x) for x in xs]
            m.d.sync += self.done.eq(0)
        with m.Elif(self.step):
            with m.If(Cat(*at_end).all()):
                m.d.sync += self.done.eq(1)
            for level in reversed(range(len(names))):
                inner_ended = Cat(*at_end[level + 1 :]).all() if level + 1 < len(names) else 1
                with m.If(inner_ended & ~at_end[level]):
                    address = Signal(len(self.address), name=f"{names[level]}_next_address")
                    m.d.comb += address.eq(addresses[level] + address_steps[level])
                    y = self._stepped(m, f"{names[level]}_next_top", ys[level], y_steps[level])
                    x = self._stepped(m, f"{names[level]}_next_left", xs[level], x_steps[level])
                    m.d.sync += counts[level].eq(counts[level] + 1)
                    m.d.sync += [count.eq(0) for count in counts[level + 1 :]]
                    m.d.sync += [inner.eq(address) for inner in addresses[level:]]
                    m.d.sync += [inner.eq(y) for inner in ys[level:]]
                    m.d.sync += [inner.eq(x) for inner in xs[level:]]

        m.d.comb += [
            self.address.eq(addresses[-1]),
            self.y.eq(ys[-1]),
            self.x.eq(xs[-1]),
            self.pool_first.eq((counts[3] == 0) & (counts[4] == 0)),
            self.pool_last.eq(at_end[3] & at_end[4]),
        ]
        return m

    def _stepped(self, m: Module, name: str, value: Signal, step: Value | None) -> Signal:
        if step is None:
            return value
        moved = Signal(value.shape(), name=name)
        m.d.comb += moved.eq(value + step)
        return moved


def group_layout(spec: ArraySpec) -> data.StructLayout:
    """What is known of a pixel group beside its word lists."""
    derived = spec.derived
    return data.StructLayout(
        {
            "valid": spec.columns,  # columns that hold a window
            "pool_first": spec.columns,  # columns whose window starts a pooling window
            "pool_last": spec.columns,  # columns whose window ends one
            "output_address": 16,  # of the first output pixel that the group completes
            "drain_cycles": (spec.columns * max(spec.rows, spec.activation_planes_max)).bit_length(),
            "window_words": derived.word_index_width + 1,  # words of a window, skipped or not
            "list_lengths": data.ArrayLayout(derived.word_index_width + 1, spec.activation_planes_max),
            "last": 1,  # of the layer
        }
    )


def entry_layout(spec: ArraySpec) -> data.StructLayout:
    """One word of the window, as the word list holds it."""
    derived = spec.derived
    return data.StructLayout(
        {
            "offset": derived.activation_address_width,  # from the column's window to the word, its plane included
            "word": derived.word_index_width,  # number of the word in the window
            "active": spec.columns,  # columns in which the word is inside the image and, with zero skip, not zero
        }
    )


class WindowScanner(wiring.Component):
    """Find, for each group of ``columns`` windows, the words to compute on, while the previous group computes.

    For each activation plane the scanner walks the words of the window (kernel row, kernel column, word of the pixel),
    looks up for each column whether the word lies inside the image and, with zero skip, whether it is zero, and
    appends the words to compute to the plane's list. The lists are read back, once a weight plane and row tile,
    without any search: a skipped word costs nothing. A group takes a cycle for each column, each word of each plane,
    and ``SCAN_OVERHEAD``.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor; constant from ``start`` to the end of the layer.
    start : ``In(1)``
        Start the layer.
    flag_addresses : ``Out(columns × activation_address_width)``
        Word whose zero flag is looked up, in each column.
    nonzero : ``In(columns)``
        Whether that word, of the cycle before, has a bit set.
    take : ``In(1)``
        The group is being taken: its lists will be read, and the next group may be scanned into the other buffer. One
        cycle later ``addresses`` must have been copied.
    ready : ``Out(1)``
        A group is ready to be taken.
    group : ``Out(group_layout(spec))``, addresses : ``Out(columns × activation_address_width)``
        The group, while ``ready``; ``addresses`` one cycle longer.
    buffer : ``Out(1)``
        Buffer of the lists of the group that is ready.
    list_buffer, list_plane, list_index
        Word to read from the lists.
    entry : ``Out(entry_layout(spec))``
        That word, one cycle later.
    overflow : ``Out(1)``
        The window has more words than the lists hold.
    """

    layer: "data.View[Any]"
    start: Signal
    flag_addresses: "data.View[Any]"
    nonzero: Signal
    take: Signal
    ready: Signal
    group: "data.View[Any]"
    addresses: "data.View[Any]"
    buffer: Signal
    list_buffer: Signal
    list_plane: Signal
    list_index: Signal
    entry: "data.View[Any]"
    overflow: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        derived = spec.derived
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "start": In(1),
                "flag_addresses": Out(data.ArrayLayout(derived.activation_address_width, spec.columns)),
                "nonzero": In(spec.columns),
                "take": In(1),
                "ready": Out(1),
                "group": Out(group_layout(spec)),
                "addresses": Out(data.ArrayLayout(derived.activation_address_width, spec.columns)),
                "buffer": Out(1),
                "list_buffer": In(1),
                "list_plane": In(3),
                "list_index": In(derived.word_index_width),
                "entry": Out(entry_layout(spec)),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived, layer = self.spec, self.spec.derived, self.layer
        columns, address_width = spec.columns, derived.activation_address_width
        coordinate = signed(coordinate_width(spec))
        m = Module()
        m.submodules.walker = walker = PixelWalker(spec)
        m.d.comb += [walker.layer.eq(layer), walker.start.eq(self.start)]

        # Word lists: buffer, plane, index.
        plane_width = (spec.activation_planes_max - 1).bit_length()
        m.submodules.lists = lists = memory.Memory(
            shape=entry_layout(spec), depth=1 << (1 + plane_width + derived.word_index_width), init=[]
        )
        list_write, list_read = lists.write_port(), lists.read_port()
        m.d.comb += list_read.addr.eq(Cat(self.list_index, self.list_plane[:plane_width], self.list_buffer))
        m.d.comb += self.entry.eq(list_read.data)

        # Columns of the group. New windows enter at the last column; after `columns` steps the first is in column 0.
        ys = Signal(data.ArrayLayout(coordinate, columns))
        xs = Signal(data.ArrayLayout(coordinate, columns))
        output_pointer = Signal(16)
        drain_steps = Signal(range(max(spec.rows, spec.activation_planes_max) + 1))
        m.d.comb += drain_steps.eq(Mux((layer.flags & FLAG_RAW).any(), spec.rows, layer.output_planes))

        # Position of the word being looked up.
        plane = Signal(range(spec.activation_planes_max))
        tap_y, tap_x = Signal(16), Signal(16)
        word = Signal(16)
        word_index = Signal(derived.word_index_width + 1)
        tap_top, tap_left = Signal(coordinate), Signal(coordinate)
        plane_offset, row_offset, tap_offset = Signal(address_width), Signal(address_width), Signal(address_width)
        offset = Signal(address_width)
        m.d.comb += offset.eq(tap_offset + word)
        last_word, last_x, last_y, last_plane = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_word.eq(word == layer.input_words - 1),
            last_x.eq(last_word & (tap_x == layer.kernel_width - 1)),
            last_y.eq(last_x & (tap_y == layer.kernel_height - 1)),
            last_plane.eq(last_y & (plane == layer.activation_planes - 1)),
        ]

        # One cycle later, with the zero flags: the entry.
        inside, inside_next = Signal(columns), Signal(columns)
        entry_valid, entry_last = Signal(), Signal()
        entry_plane = Signal.like(plane)
        entry_word = Signal.like(word_index)
        entry_offset = Signal(address_width)
        for column in range(columns):
            y = Signal(unsigned(coordinate.width), name=f"y_{column}")
            x = Signal(unsigned(coordinate.width), name=f"x_{column}")
            m.d.comb += [
                self.flag_addresses[column].eq(self.addresses[column] + offset),
                y.eq(ys[column] + tap_top),
                x.eq(xs[column] + tap_left),
                # Negative coordinates are large as unsigned numbers.
                inside_next[column].eq(self.group.valid[column] & (y < layer.input_height) & (x < layer.input_width)),
            ]
        active = inside if spec.zero_skip == "off" else inside & self.nonzero
        push = active.any() if spec.zero_skip == "skip" else 1
        length = Signal(derived.word_index_width + 1)
        m.d.comb += [
            list_write.addr.eq(Cat(length[:-1], entry_plane[:plane_width], self.buffer)),
            list_write.data.offset.eq(entry_offset),
            list_write.data.word.eq(entry_word),
            list_write.data.active.eq(active),
            list_write.en.eq(entry_valid & push),
        ]
        m.d.sync += [
            inside.eq(inside_next),
            entry_valid.eq(0),
            entry_last.eq(last_y),
            entry_plane.eq(plane),
            entry_word.eq(word_index),
            entry_offset.eq(offset),
        ]
        lengths = Array(self.group.list_lengths[index] for index in range(spec.activation_planes_max))
        with m.If(entry_valid):
            m.d.sync += length.eq(length + push)
            with m.If(entry_last):
                m.d.sync += [lengths[entry_plane].eq(length + push), length.eq(0)]
                m.d.sync += self.group.window_words.eq(entry_word + 1)

        column_count = Signal(range(columns + 1))
        with m.FSM():
            with m.State("idle"), m.If(self.start):
                m.d.sync += [self.buffer.eq(1), self.ready.eq(0), output_pointer.eq(layer.output_base)]
                m.next = "wait"

            with m.State("wait"), m.If(~self.ready):
                m.d.sync += [
                    column_count.eq(0),
                    self.buffer.eq(~self.buffer),
                    self.group.drain_cycles.eq(0),
                    self.group.output_address.eq(output_pointer),
                ]
                m.next = "columns"

            with m.State("columns"):
                m.d.comb += walker.step.eq(~walker.done)
                m.d.sync += [
                    self.addresses.eq(Cat(self.addresses.as_value()[address_width:], walker.address)),
                    ys.eq(Cat(ys.as_value()[coordinate.width :], walker.y)),
                    xs.eq(Cat(xs.as_value()[coordinate.width :], walker.x)),
                    self.group.valid.eq(Cat(self.group.valid[1:], ~walker.done)),
                    self.group.pool_first.eq(Cat(self.group.pool_first[1:], walker.pool_first)),
                    self.group.pool_last.eq(Cat(self.group.pool_last[1:], walker.pool_last)),
                    column_count.eq(column_count + 1),
                ]
                with m.If(~walker.done):
                    m.d.sync += self.group.drain_cycles.eq(self.group.drain_cycles + drain_steps)
                    with m.If(walker.pool_last):
                        m.d.sync += output_pointer.eq(output_pointer + layer.output_words)
                with m.If(column_count == columns - 1):
                    m.d.sync += [
                        plane.eq(0),
                        tap_y.eq(0),
                        tap_x.eq(0),
                        word.eq(0),
                        word_index.eq(0),
                        tap_top.eq(0),
                        tap_left.eq(0),
                        plane_offset.eq(0),
                        row_offset.eq(0),
                        tap_offset.eq(0),
                        length.eq(0),
                    ]
                    m.next = "words"

            with m.State("words"):
                next_row, next_plane = Signal(address_width), Signal(address_width)
                m.d.comb += [
                    next_row.eq(row_offset + layer.tap_y_stride),
                    next_plane.eq(plane_offset + layer.input_plane_stride),
                ]
                m.d.sync += [entry_valid.eq(1), word.eq(word + 1), word_index.eq(word_index + 1)]
                with m.If(last_word):
                    m.d.sync += [
                        word.eq(0),
                        tap_x.eq(tap_x + 1),
                        tap_left.eq(tap_left + layer.dilation),
                        tap_offset.eq(tap_offset + layer.tap_x_stride),
                    ]
                with m.If(last_x):
                    m.d.sync += [
                        tap_x.eq(0),
                        tap_left.eq(0),
                        tap_y.eq(tap_y + 1),
                        tap_top.eq(tap_top + layer.dilation),
                        row_offset.eq(next_row),
                        tap_offset.eq(next_row),
                    ]
                with m.If(last_y):
                    m.d.sync += [
                        tap_y.eq(0),
                        tap_top.eq(0),
                        word_index.eq(0),
                        plane.eq(plane + 1),
                        plane_offset.eq(next_plane),
                        row_offset.eq(next_plane),
                        tap_offset.eq(next_plane),
                    ]
                m.d.comb += self.overflow.eq(~last_y & (word_index == spec.window_words_max - 1))
                with m.If(last_plane):
                    m.next = "last word"

            with m.State("last word"):
                m.d.sync += [self.ready.eq(1), self.group.last.eq(walker.done)]
                with m.If(walker.done):
                    m.next = "idle"
                with m.Else():
                    m.next = "wait"

        with m.If(self.take):
            m.d.sync += self.ready.eq(0)
        return m
