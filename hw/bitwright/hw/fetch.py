"""Activation fetch: windows of a group of output pixels, loaded into the window buffer, and lists of their words."""

import itertools
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.isa import BANK, FLAG_DENSE, FLAG_RAW, GRANULE, ArraySpec
from bitwright.hw.registers import registered
from bitwright.hw.walkers import PixelWalker, ReadWalker, coordinate_width, place_width, read_layout


def column_layout(spec: ArraySpec) -> data.StructLayout:
    """Where the window of a column is."""
    coordinate = signed(coordinate_width(spec))
    position = spec.derived.position_width
    return data.StructLayout(
        {
            "position": position,
            **({"residual_position": position} if spec.residual else {}),
            "y": coordinate,
            "x": coordinate,
            "valid": 1,  # there is one
        }
    )


def stage_layout(spec: ArraySpec) -> data.StructLayout:
    """A read on its way through the loader."""
    return data.StructLayout(
        {
            "active": 1,  # there is one
            "turns": spec.columns_per_copy,  # which of the columns that share a copy it is for, one-hot
            "last_turn": 1,
            "buffer": 1,  # half of the buffers that its group is loaded into
            "read": read_layout(spec),
        }
    )


def _rotated(value: Value, amount: Value, unit: int) -> Value:
    """Rotated towards higher bits by ``amount`` units."""
    for bit in range(len(amount)):
        value = Mux(amount[bit], value.rotate_left(unit << bit), value)
    return value


def _below(value: Value, width: int) -> Value:
    """Of ``width`` bits the lowest ``value``."""
    bits: Value = Const(0, width)
    for bit in range(len(value)):
        ones = min(1 << bit, width)
        bits = Mux(value[bit], Cat(Const(-1, ones), bits[: width - ones]), bits)
    return bits


def _lanes(granules: Value) -> Value:
    """Mask of lanes, of a mask of granules."""
    return Cat(granule.replicate(GRANULE) for granule in granules)


class WindowPacker(wiring.Component):
    """Pack what one copy of the activation memory delivers into words: the windows of its columns, turn by turn.

    A read takes four cycles: its position and coordinates (0), the memory (1), half of the rotation (2); and (3) the
    other half, masked and merged into the word that the column has begun. In an array that is pipelined what was read
    waits ``Derived.way_stages`` cycles, which are not counted here, for cycle 2. Words begun wait in a shift register,
    one stage for each column of the copy, so that they need no multiplexer.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor.
    column : ``In(column_layout(spec))``
        Column whose turn it is, in cycle 0.
    offset, y, x
        Of the read, in cycle 0: see :class:`ReadWalker`.
    stage_0, stage_1, stage_2, stage_3 : ``In(stage_layout(spec))``
        The read in each cycle.
    position : ``Out(position_width)``
        Position to read, in cycle 1.
    read_data : ``In(lanes)``
        What was read, in the cycle after 1: granule ``n`` of the memory at place ``n % granules``.
    word : ``Out(lanes)``
        In cycle 3: word of the window, if the read completes one.
    nonzero : ``Out(1)``
        In cycle 4: whether that word has a bit set.
    """

    layer: "data.View[Any]"
    column: "data.View[Any]"
    offset: Signal
    y: Signal
    x: Signal
    stage_0: "data.View[Any]"
    stage_1: "data.View[Any]"
    stage_2: "data.View[Any]"
    stage_3: "data.View[Any]"
    position: Signal
    read_data: Signal
    word: Signal
    nonzero: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        coordinate = signed(coordinate_width(spec))
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "column": In(column_layout(spec)),
                "offset": In(spec.derived.position_width),
                "y": In(coordinate),
                "x": In(coordinate),
                **{f"stage_{number}": In(stage_layout(spec)) for number in range(4)},
                "position": Out(spec.derived.position_width),
                "read_data": In(spec.lanes),
                "word": Out(spec.lanes),
                "nonzero": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, column = self.spec, self.column
        granules, place_bits, lanes = spec.derived.granules, place_width(spec), spec.lanes
        within = (BANK // GRANULE - 1).bit_length()  # bits that number the granules of a bank
        m = Module()

        # Cycle 0.
        y, x = Signal.like(self.y, name="y", reset_less=True), Signal.like(self.x, name="x", reset_less=True)
        valid = Signal()
        position, read_position = column.position, Signal.like(self.position, reset_less=True)
        if spec.residual:
            position = Mux(self.stage_0.read.residual, column.residual_position, position)
        m.d.sync += [
            read_position.eq(position + self.offset),
            y.eq(column.y + self.y),
            x.eq(column.x + self.x),
            valid.eq(column.valid & self.stage_0.active),
        ]
        m.d.comb += self.position.eq(read_position)

        # Cycle 1: which granules are inside the image: from `first` on, and before `end`.
        first, first_next = Signal(place_bits + 1, reset_less=True), Signal(place_bits + 1)
        end, end_next = Signal(place_bits + 1, reset_less=True), Signal(place_bits + 1)
        room = Signal(signed(len(x) + 1))
        m.d.comb += room.eq(self.layer.input_width - x)
        with m.If(self.stage_1.read.residual):
            m.d.comb += end_next.eq(granules)
        with m.Else():
            with m.If(x[-1]):
                m.d.comb += first_next.eq(Mux(x[place_bits:].all(), -x, granules))
            # Negative coordinates are large as unsigned numbers.
            with m.If((y.as_unsigned() < self.layer.input_height) & ~room[-1]):
                m.d.comb += end_next.eq(Mux(room[place_bits:].any(), granules, room))
        amount = Signal(place_bits, reset_less=True)
        m.d.sync += [
            first.eq(first_next),
            end.eq(Mux(valid, end_next, 0)),
            amount.eq(self.stage_1.read.place - self.position[:place_bits]),
        ]

        # Cycle 2: the same for the places of the word that has been begun, and of the next one.
        read, read_data = self.stage_2.read, Value.cast(self.read_data)
        for stage in range(spec.derived.way_stages):
            read_data = registered(m, f"read_data_{stage}", read_data)
            first, end, amount = (
                registered(m, f"{name}_{stage}", value)
                for name, value in {"first": first, "end": end, "amount": amount}.items()
            )
        inside, before = Signal(2 * granules), Signal(2 * granules)
        m.d.comb += [
            before.eq(_below((read.place + first)[: place_bits + 1], 2 * granules)),
            inside.eq(
                _below((read.place + end)[: place_bits + 1], 2 * granules)
                & _below((read.place + read.granules)[: place_bits + 1], 2 * granules)
                & ~before
            ),
        ]
        here, beyond = Signal(granules, reset_less=True), Signal(granules, reset_less=True)
        rotated, rest = Signal(lanes, reset_less=True), Signal(within, reset_less=True)
        m.d.sync += [
            Cat(here, beyond).eq(inside),
            rotated.eq(_rotated(read_data, amount[within:], BANK)),
            rest.eq(amount[:within]),
        ]

        # Cycle 3. While nothing is read, words begun are dropped: those that a stopped run left are gone before the
        # next one's first read, as windows are walked for at least as many cycles as there are columns here.
        begun = [Signal(lanes, name=f"begun_{turn}", reset_less=True) for turn in range(spec.columns_per_copy)]
        placed = Signal(lanes)
        m.d.comb += [
            placed.eq(_rotated(rotated, rest, GRANULE)),
            self.word.eq(begun[-1] | (placed & _lanes(here))),
        ]
        m.d.sync += [
            begun[0].eq(Mux(self.stage_3.read.write | ~self.stage_3.active, placed & _lanes(beyond), self.word)),
            *(older.eq(newer) for newer, older in itertools.pairwise(begun)),
        ]
        bank_nonzero = Signal(spec.derived.banks, reset_less=True)
        m.d.sync += bank_nonzero.eq(
            Cat(self.word[bank * BANK : (bank + 1) * BANK].any() for bank in range(len(bank_nonzero)))
        )
        m.d.comb += self.nonzero.eq(bank_nonzero.any())
        return m


def group_layout(spec: ArraySpec) -> data.StructLayout:
    """What is known of a pixel group beside its windows."""
    return data.StructLayout(
        {
            "valid": spec.columns,  # columns that hold a window: the first ones
            "pool_first": spec.columns,  # columns whose window starts a pooling window
            "pool_last": spec.columns,  # columns whose window ends one
            "drain_cycles": (spec.columns * max(spec.rows, spec.activation_planes_max)).bit_length(),  # of a row tile
            "last": 1,  # of the layer
        }
    )


def length_layout(spec: ArraySpec) -> data.StructLayout:
    """How many words of a plane are listed, and what the scheduler has to know of that number at once."""
    return data.StructLayout({"words": spec.derived.window_address_width + 1, "some": 1, "one": 1})


def entry_layout(spec: ArraySpec) -> data.StructLayout:
    """One word of a plane of the windows of a group, as the word list holds it."""
    return data.StructLayout(
        {
            "word": spec.derived.window_address_width,  # its number in the plane
            "active": spec.columns,  # columns that hold a window and in which, with zero skip, it is not zero
        }
    )


class WindowLoader(wiring.Component):
    """Load the windows of groups of ``columns`` pixels, and list the words to compute on, while others compute.

    A group takes a cycle for each column, in which the windows are walked, and one for each of the columns that share
    a copy and each read of a window, empty ones to write a begun word included. ``Derived.load_latency`` cycles after
    the cycle that follows the last read, it is ready. Groups fill the two halves of the buffers in turn, and are taken
    in turn: between walk and reads a group waits until its half has been released.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor; constant from ``start`` to the end of the layer.
    start : ``In(1)``
        Start the layer. The last one's last group has been taken.
    issuing : ``In(1)``
        Half of the buffers that holds the group that was taken last; the other one is that of the next group.
    take : ``In(1)``
        The next group, which is ready, is being taken: in the next cycle ``issuing`` is its half.
    release : ``In(1)``
        The last operation of the group that was taken is being issued: from the next cycle on, its half may be filled.
    group : ``Out(group_layout(spec))``
        The group that was taken, until the cycle in which it is released.
    ready : ``Out(1)``
        The next group is ready to be taken.
    loaded_planes : ``Out(range(lists + 1))``, length_plane : ``In(range(lists))``, length : ``Out``
        With ``zero_skip`` "skip", else 0: how many of the next group's planes have been loaded and listed, and how long
        their lists are.
    loading : ``Out(1)``
        A read, or an empty one, begins.
    read : ``Out(1)``, read_position : ``Out(copies × position_width)``
        Read from each copy of the activation memory.
    read_data : ``In(copies × lanes)``
        What was read, one cycle later: granule ``n`` of the memory at place ``n % granules``.
    window_write : ``Out(columns)``, window_write_address : ``Out(1 + window_address_width)``
        Write to the window buffers of these columns; the upper half of the addresses is of buffer 1.
    window_write_data : ``Out(columns × lanes)``
        What to write.
    list_address, list_index : ``In(window_address_width)``
        Entry of the group that was taken to look up: number ``list_index`` of the list that begins, as the plane does
        in the window buffer, at ``list_address - list_index``.
    entry : ``Out(entry_layout(spec))``
        That entry, one cycle later.
    overflow : ``Out(1)``
        The window has more words than the buffer holds; this one is not written.
    """

    layer: "data.View[Any]"
    start: Signal
    issuing: Signal
    take: Signal
    release: Signal
    group: "data.View[Any]"
    ready: Signal
    loaded_planes: Signal
    length_plane: Signal
    length: "data.View[Any]"
    loading: Signal
    read: Signal
    read_position: "data.View[Any]"
    read_data: "data.View[Any]"
    window_write: Signal
    window_write_address: Signal
    window_write_data: "data.View[Any]"
    list_address: Signal
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
                "issuing": In(1),
                "take": In(1),
                "release": In(1),
                "group": Out(group_layout(spec)),
                "ready": Out(1),
                "loaded_planes": Out(range(derived.lists + 1)),
                "length_plane": In(range(derived.lists)),
                "length": Out(length_layout(spec)),
                "loading": Out(1),
                "read": Out(1),
                "read_position": Out(data.ArrayLayout(derived.position_width, derived.copies)),
                "read_data": In(data.ArrayLayout(spec.lanes, derived.copies)),
                "window_write": Out(spec.columns),
                "window_write_address": Out(1 + derived.window_address_width),
                "window_write_data": Out(data.ArrayLayout(spec.lanes, spec.columns)),
                "list_address": In(derived.window_address_width),
                "list_index": In(derived.window_address_width),
                "entry": Out(entry_layout(spec)),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, share = self.spec, self.spec.columns_per_copy
        m = Module()
        m.submodules.walker = walker = PixelWalker(spec)
        m.submodules.reads = reads = ReadWalker(spec)
        walking = Signal()
        m.d.comb += [
            walker.layer.eq(self.layer),
            walker.start.eq(self.start),
            walker.step.eq(walking & ~walker.done),
            reads.layer.eq(self.layer),
            reads.start.eq(self.start),
        ]

        # A read goes through the stages one after the other; in stage 0 it begins. Those in which it only waits are
        # not numbered.
        passed = [Signal(stage_layout(spec), name=f"stage_{number}") for number in range(5 + spec.derived.way_stages)]
        stages = [*passed[:2], *passed[2 + spec.derived.way_stages :]]
        turn, last_turn, buffer = Signal(range(share)), Signal(), Signal()
        m.d.comb += [
            last_turn.eq(turn == share - 1),
            reads.step.eq(self.loading & last_turn),
            stages[0].active.eq(self.loading),
            stages[0].last_turn.eq(last_turn),
            stages[0].turns.eq(1 << turn),
            stages[0].buffer.eq(buffer),
            stages[0].read.eq(reads.read),
            self.read.eq(stages[1].active),
        ]
        m.d.sync += [later.eq(stage) for stage, later in itertools.pairwise(passed)]
        with m.If(self.loading):
            m.d.sync += turn.eq(Mux(last_turn, 0, turn + 1))

        # Walk a group, wait for its half of the buffers, load.
        occupied = Signal(data.ArrayLayout(1, 2))  # from a group's first read until it is released
        free, was_loading, first_read = Signal(), Signal(), Signal()
        walked = Signal(range(spec.columns))
        m.d.comb += [first_read.eq(self.loading & ~was_loading), free.eq(~occupied.as_value().all() | self.release)]
        m.d.sync += was_loading.eq(self.loading)
        with m.If(first_read):
            m.d.sync += occupied[buffer].eq(1)
        with m.If(self.release):
            m.d.sync += occupied[self.issuing].eq(0)
        with m.FSM():
            with m.State("idle"), m.If(self.start):
                m.next = "walk"
            with m.State("walk"):
                m.d.comb += walking.eq(1)
                m.d.sync += walked.eq(walked + 1)
                with m.If(walked == spec.columns - 1):
                    m.d.sync += walked.eq(0)
                    m.next = "wait"
                    with m.If(free):
                        m.next = "load"
            with m.State("wait"), m.If(free):
                m.next = "load"
            with m.State("load"):
                m.d.comb += self.loading.eq(1)
                with m.If(last_turn & reads.read.group_end):
                    m.d.sync += buffer.eq(~buffer)
                    m.next = "walk"
                    with m.If(walker.done):
                        m.next = "idle"

        # What is known of the walked windows is copied when their reads begin: the next ones are walked after them.
        groups = Signal(data.ArrayLayout(group_layout(spec), 2), reset_less=True)
        group = groups[buffer]
        m.d.comb += self.group.eq(groups[self.issuing])
        columns = self._columns(m, walker, walking)
        pool_first, pool_last = Signal(spec.columns, reset_less=True), Signal(spec.columns, reset_less=True)
        drain_steps = Signal(range(max(spec.rows, 2 * spec.activation_planes_max) + 1))
        drain_cycles = Signal.like(group.drain_cycles)
        planes_rounded = self.layer.output_planes + (spec.drain_planes - 1)
        search_steps: Value = planes_rounded >> (spec.drain_planes - 1).bit_length()
        if spec.derived.turns == 2:  # `Descriptor.drain_cycles`: a tile takes whole turns
            search_steps = Mux(walked[0], 0, search_steps << 1)
        m.d.comb += drain_steps.eq(Mux((self.layer.flags & FLAG_RAW).any(), spec.rows, search_steps))
        with m.If(walking):
            m.d.sync += [
                pool_first.eq(Cat(pool_first[1:], walker.pool_first)),
                pool_last.eq(Cat(pool_last[1:], walker.pool_last)),
            ]
        with m.If(walker.step):
            m.d.sync += drain_cycles.eq(drain_cycles + drain_steps)
        with m.If(first_read):
            m.d.sync += [
                group.valid.eq(Cat(column.valid for column in columns)),
                group.pool_first.eq(pool_first),
                group.pool_last.eq(pool_last),
                group.drain_cycles.eq(drain_cycles),
                group.last.eq(walker.done),
                drain_cycles.eq(0),
            ]

        # Each copy of the memory serves its columns in turn.
        nonzero, words = Signal(spec.derived.copies), []
        for copy in range(spec.derived.copies):
            m.submodules[f"packer_{copy}"] = packer = WindowPacker(spec)
            m.d.comb += [
                packer.layer.eq(self.layer),
                packer.column.eq(columns[copy * share]),
                packer.offset.eq(reads.offset),
                packer.y.eq(reads.y),
                packer.x.eq(reads.x),
                *(getattr(packer, f"stage_{number}").eq(stages[number]) for number in range(4)),
                self.read_position[copy].eq(packer.position),
                packer.read_data.eq(self.read_data[copy]),
                nonzero[copy].eq(packer.nonzero),
            ]
            words += [packer.word] * share
        m.d.comb += self.window_write_data.eq(Cat(words))
        number, fits, next_word = self._write_words(m, stages[3])
        self._write_lists(m, stages[4], number, fits, next_word, nonzero)
        return m

    def _columns(self, m: Module, walker: PixelWalker, walking: Signal) -> "list[data.View[Any]]":
        """Where the columns' windows are.

        While walking, new windows enter at the last column; after ``columns`` steps the first is in column 0. While
        loading, those of the columns that share a copy take turns in the first of these.
        """
        spec, share = self.spec, self.spec.columns_per_copy
        entering = Signal(column_layout(spec))
        m.d.comb += [
            entering.position.eq(walker.position),
            entering.y.eq(walker.y),
            entering.x.eq(walker.x),
            entering.valid.eq(~walker.done),
        ]
        if spec.residual:
            m.d.comb += entering.residual_position.eq(walker.residual_position)
        columns = [
            Signal(column_layout(spec), name=f"column_{column}", reset_less=True) for column in range(spec.columns)
        ]
        for number, (column, after) in enumerate(itertools.pairwise([*columns, entering])):
            last_of_copy = number % share == share - 1
            with m.If(walking):
                m.d.sync += column.eq(after)
            with m.Elif(self.loading):
                m.d.sync += column.eq(columns[number - share + 1] if last_of_copy else after)
        return columns

    def _write_words(self, m: Module, stage: "data.View[Any]") -> tuple[Value, Value, Value]:
        """Write the words of the windows, in stage 3.

        Returns
        -------
        number, fits, next_word : Value
            In stage 4: number of the word in its plane; whether it was inside the buffer; number of the word after it
            in the window.
        """
        address_width = self.spec.derived.window_address_width
        word, plane_word = Signal(address_width + 1), Signal(address_width)
        number, fits = Signal.like(plane_word, reset_less=True), Signal(reset_less=True)
        inside = ~word[-1]
        writes = stage.active & stage.read.write
        m.d.comb += [
            self.overflow.eq(writes & ~inside),
            self.window_write_address.eq(Cat(word[:-1], stage.buffer)),
            self.window_write.eq(Mux(writes & inside, stage.turns, 0).replicate(self.spec.derived.copies)),
        ]
        m.d.sync += [number.eq(plane_word), fits.eq(inside)]
        with m.If(stage.active & stage.last_turn):
            with m.If(stage.read.write & inside):
                m.d.sync += [word.eq(word + 1), plane_word.eq(plane_word + 1)]
            with m.If(stage.read.plane_end):
                m.d.sync += plane_word.eq(0)
            with m.If(stage.read.group_end):
                m.d.sync += word.eq(0)
        return number, fits, word[:-1]

    def _write_lists(
        self, m: Module, stage: "data.View[Any]", number: Value, fits: Value, next_word: Value, nonzero: Signal
    ) -> None:
        """List the words of the windows, in stage 4, and look entries up.

        Parameters
        ----------
        m
            Module.
        stage
            The read.
        number, fits, next_word
            See :meth:`_write_words`.
        nonzero
            Whether the word has a bit set, in the column of each copy whose turn it is.
        """
        spec, derived = self.spec, self.spec.derived
        skip = spec.zero_skip == "skip"
        turns: list[Value] = [nonzero]
        for turn in reversed(range(spec.columns_per_copy - 1)):
            turns.insert(0, registered(m, f"nonzero_{turn}", turns[0]))
        active: Value = Cat(turn[copy] for copy in range(derived.copies) for turn in turns)
        wanted = active.any() | (self.layer.flags & FLAG_DENSE).any() if skip else Const(1)
        for delay in range(derived.way_stages):
            number, fits, next_word, active, wanted = (
                registered(m, f"list_{name}_{delay}", value)
                for name, value in {
                    "number": number,
                    "fits": fits,
                    "next": next_word,
                    "active": active,
                    "wanted": wanted,
                }.items()
            )
            before, stage = stage, Signal(stage_layout(spec), name=f"list_stage_{delay}")
            m.d.sync += stage.eq(before)
        complete, lists = Signal(), Signal()  # with the last turn the word has been written in all columns
        m.d.comb += [
            complete.eq(stage.active & stage.last_turn),
            lists.eq(complete & stage.read.write & fits & wanted),
        ]
        plane = Signal(range(derived.lists))
        address = Signal(derived.window_address_width)
        length, listed = Signal(length_layout(spec)), Signal(length_layout(spec))
        # Of each half: whether the group in it waits to be taken, its planes that are there, and their lengths.
        loaded = Signal(data.ArrayLayout(1, 2))
        planes = Signal(data.ArrayLayout(range(derived.lists + 1), 2))
        m.d.comb += [
            listed.words.eq(length.words + lists),
            listed.some.eq(length.some | lists),
            listed.one.eq(Mux(lists, ~length.some, length.one)),
            self.ready.eq(loaded[~self.issuing]),
        ]
        if skip:
            # The lists' lengths are few and short, and read in the cycle of their address: FPGAs have LUTs for that.
            m.submodules.lengths = lengths = memory.Memory(
                shape=length_layout(spec), depth=2 << len(self.length_plane), init=[]
            )
            length_write, length_read = lengths.write_port(), lengths.read_port(domain="comb")
            m.d.comb += [
                length_write.addr.eq(Cat(plane, stage.buffer)),
                length_write.data.eq(listed),
                length_write.en.eq(complete & stage.read.plane_end),
                length_read.addr.eq(Cat(self.length_plane, ~self.issuing)),
                self.length.eq(length_read.data),
                self.loaded_planes.eq(planes[~self.issuing]),
            ]
        with m.If(complete):
            m.d.sync += [length.eq(listed), address.eq(address + lists)]
            with m.If(stage.read.plane_end):
                m.d.sync += [
                    planes[stage.buffer].eq(plane + 1),
                    length.eq(0),
                    plane.eq(plane + 1),
                    address.eq(next_word),
                ]
            with m.If(stage.read.group_end):
                m.d.sync += [plane.eq(0), loaded[stage.buffer].eq(1)]
        with m.If(self.take):
            m.d.sync += [loaded[~self.issuing].eq(0), planes[~self.issuing].eq(0)]

        if spec.zero_skip == "off":
            # Every word is listed, in all columns that hold a window: there is no list to keep.
            m.d.sync += [self.entry.word.eq(self.list_index), self.entry.active.eq(self.group.valid)]
            return
        m.submodules.lists = store = memory.Memory(shape=entry_layout(spec), depth=2 * spec.window_depth, init=[])
        write, read = store.write_port(), store.read_port()
        m.d.comb += [
            write.addr.eq(Cat(address, stage.buffer)),
            write.data.word.eq(number),
            write.data.active.eq(active),
            write.en.eq(lists),
            read.addr.eq(Cat(self.list_address, self.issuing)),
            self.entry.eq(read.data),
        ]
