"""From accumulators to activation memory: thresholds, pooling, packing, raw results."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.isa import (
    CODE_TABLE_PLANES,
    FLAG_COEFFICIENTS,
    FLAG_OFFSET,
    FLAG_RAW,
    FLAG_TABLE,
    GRANULE,
    THRESHOLD_NEGATE,
    THRESHOLD_POOL_MIN,
    ArraySpec,
)
from bitwright.hw.registers import registered


def threshold_layout(spec: ArraySpec) -> data.ArrayLayout:
    """Word of the threshold memory: two neighbors in the search tree, or a channel's flags and the root."""
    return data.ArrayLayout(signed(spec.accumulator_width), 2)


def tile_layout(spec: ArraySpec) -> data.StructLayout:
    """What the drain is told of a row tile of a pixel group; what follows from the order of tiles it counts itself."""
    return data.StructLayout(
        {
            "valid": spec.columns,  # columns that hold a window: the first ones
            "pool_first": spec.columns,  # columns whose window starts a pooling window
            "pool_last": spec.columns,  # columns whose window ends one
            "first": 1,  # of the group
            "last": 1,  # of the layer
        }
    )


def stage_layout() -> data.StructLayout:
    """What a comparator is told in a cycle."""
    return data.StructLayout(
        {
            "free": 1,  # no column stays: the next one may be taken
            "take": 1,  # take the next column, from the comparator before, in the next cycle
            "decide": 1,  # decide a bit
        }
    )


def in_turns(
    m: Module, spec: ArraySpec, state: Value, following: Value, name: str, *, reset_less: bool = False
) -> Value:
    """Registers of the columns that take turns in a comparator: ``state`` is that of the one whose turn it is.

    Whatever follows from the state of a column comes back in its next turn, ``Derived.turns`` cycles later.
    ``reset_less`` is as in ``state``.

    Returns
    -------
    Value
        What ``state`` will be in the next cycle.
    """
    for number in range(spec.derived.turns - 1):
        other = Signal(len(state), name=f"{name}_other_{number}", reset_less=reset_less)
        m.d.sync += other.eq(following)
        following = other
    m.d.sync += state.eq(following)
    return following


class SearchControl(wiring.Component):
    """Say when each comparator decides a bit of a code.

    A column passes all comparators, and spends ``ceil(planes / drain_planes)`` turns in each: a turn is one of
    ``Derived.turns`` cycles. So many columns are in a comparator at a time, and one follows another as soon
    as its turn is free. Comparators whose bits a narrow code does not have decide nothing.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    planes : ``In(range(activation_planes_max + 1))``
        Bits of a code, at least 1; constant from the cycle before a column starts until all are through.
    start : ``In(1)``
        A column starts: the first comparator decides its most significant bit in its next turn. Only with ``ready``.
    ready : ``Out(1)``
        A column may start: this turn is free.
    comparing : ``Out(1)``
        The first comparator decides a bit.
    stages : ``Out(drain_planes × stage_layout())``
        Control of each comparator.
    finish : ``Out(1)``
        Last turn of a column in the last comparator.
    """

    planes: Signal
    start: Signal
    ready: Signal
    comparing: Signal
    stages: "data.View[Any]"
    finish: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "planes": In(range(spec.activation_planes_max + 1)),
                "start": In(1),
                "ready": Out(1),
                "comparing": Out(1),
                "stages": Out(data.ArrayLayout(stage_layout(), spec.drain_planes)),
                "finish": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived = self.spec, self.spec.derived
        m = Module()
        steps_max = derived.search_steps(spec.activation_planes_max)
        last_step = Signal(range(steps_max))
        m.d.sync += last_step.eq((self.planes - 1) >> (spec.drain_planes - 1).bit_length())

        take: Value = self.start
        incoming: Value = self.planes
        for number in range(spec.drain_planes):
            active, last = Signal(name=f"active_{number}"), Signal(name=f"last_{number}")
            step = Signal(range(steps_max), name=f"step_{number}")
            left = Signal.like(self.planes, name=f"left_{number}", reset_less=True)  # bits that are not decided yet
            after = Signal.like(self.planes, name=f"after_{number}")
            m.d.comb += [
                self.stages[number].free.eq(~active | last),
                self.stages[number].take.eq(take),
                self.stages[number].decide.eq(active & (left != 0)),
                after.eq(Mux(left == 0, 0, left - 1)),
            ]
            following, next_step = take | (active & ~last), Mux(take, 0, step + 1)[: len(step)]
            in_turns(m, spec, active, following, f"active_{number}")
            in_turns(m, spec, step, next_step, f"step_{number}")
            in_turns(m, spec, last, following & (next_step == last_step), f"last_{number}")
            in_turns(m, spec, left, Mux(take, incoming, after), f"left_{number}", reset_less=True)
            if number == 0:
                m.d.comb += [self.ready.eq(self.stages[0].free), self.comparing.eq(active)]
            take, incoming = last, after
        m.d.comb += self.finish.eq(take)
        return m


class ThresholdUnit(wiring.Component):
    """Find codes of one row by binary search, a column after the other: a pipeline of ``drain_planes`` comparators.

    ``code`` is the number of thresholds that the value reaches. A threshold is reached if ``value >= threshold``, or,
    with the flag ``THRESHOLD_NEGATE``, if it is not. Each comparator decides its share of the code's bits, most
    significant first, one a turn, while the comparator before works on the next columns. While it compares with one
    node of the search tree, both children are being read; what is read has the turns of the other columns to arrive.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    planes : ``In(range(activation_planes_max + 1))``
        Bits of a code.
    stages : ``In(drain_planes × stage_layout())``
        From :class:`SearchControl`, which the rows share.
    complement : ``In(signed(accumulator_width))``
        Bitwise complement of the value in the first comparator: of each column, in its turns.
    first : ``In(threshold_word_width)``
        Address of the flags and the root of the column that may start.
    base : ``In(drain_planes × threshold_word_width)``
        That address of the column whose turn it is in each comparator.
    address : ``Out(drain_planes × threshold_word_width)``
        Pair that each comparator needs in the column's next turn; anything if it decides no bit then.
    pairs : ``In(drain_planes × threshold_layout(spec))``
        That pair, one cycle later.
    code : ``Out(code_width)``, pool_min : ``Out(1)``
        Result, in the cycle after ``finish``, and the channel's way of pooling.
    """

    planes: Signal
    stages: "data.View[Any]"
    complement: Signal
    first: Signal
    base: "data.View[Any]"
    address: "data.View[Any]"
    pairs: "data.View[Any]"
    code: Signal
    pool_min: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        width, address = spec.derived.code_width, spec.derived.threshold_word_width
        super().__init__(
            {
                "planes": In(range(spec.activation_planes_max + 1)),
                "stages": In(data.ArrayLayout(stage_layout(), spec.drain_planes)),
                "complement": In(signed(spec.accumulator_width)),
                "first": In(address),
                "base": In(data.ArrayLayout(address, spec.drain_planes)),
                "address": Out(data.ArrayLayout(address, spec.drain_planes)),
                "pairs": In(data.ArrayLayout(threshold_layout(spec), spec.drain_planes)),
                "code": Out(width),
                "pool_min": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec = self.spec
        m = Module()
        width = spec.derived.code_width
        incoming: Value = Const(1, width)
        incoming_address: Value = self.first
        complement: Value = self.complement
        in_turns_of_two = spec.derived.turns == 2
        # The first comparator decides the first bit of a code in the turn after its start, with the flags beside it.
        started, read_flags = Signal(), self.pairs[0][0][:2]
        in_turns(m, spec, started, self.stages[0].take, "started")
        if in_turns_of_two:
            read_flags = registered(m, "read_flags", read_flags)
        flags, held_flags = Signal(2), Signal(2, name="flags_0", reset_less=True)
        m.d.comb += flags.eq(Mux(started, read_flags, held_flags))
        in_turns(m, spec, held_flags, flags, "flags_0", reset_less=True)
        for number in range(spec.drain_planes):
            stage = self.stages[number]
            if number > 0:
                held = Signal(signed(spec.accumulator_width), name=f"complement_{number}", reset_less=True)
                held_flags = Signal(2, name=f"flags_{number}", reset_less=True)
                next_held = Mux(stage.take, complement, held)
                next_flags = Mux(stage.take, flags, held_flags)
                in_turns(m, spec, held, next_held, f"complement_{number}", reset_less=True)
                in_turns(m, spec, held_flags, next_flags, f"flags_{number}", reset_less=True)
                complement, flags = held, held_flags
            node = Signal(width, name=f"node_{number}", reset_less=True)  # that is compared with
            after = Signal(width, name=f"after_{number}")
            # value >= threshold is ~value + threshold < 0: a sum takes no inverters between memory and carry chain.
            threshold = Signal(signed(spec.accumulator_width + 1), name=f"chosen_{number}", reset_less=True)
            below = Signal(signed(spec.accumulator_width + 1), name=f"below_{number}")
            reached = Signal(name=f"reached_{number}")
            m.d.comb += [
                below.eq(complement + threshold),
                reached.eq(below[-1] ^ (flags & THRESHOLD_NEGATE).any()),
                after.eq(Mux(stage.decide, Cat(reached, node), node)),
                # The children of the node: of this comparator's, or of the one that it may take over. The base is a
                # multiple of the tree's size.
                self.address[number].eq(Mux(stage.free, incoming_address, self.base[number] | node)),
            ]
            next_node = in_turns(m, spec, node, Mux(stage.take, incoming, after), f"node_{number}", reset_less=True)
            # With turns, the choice is made on the way from the memory to the column's turn. Without, the sign is
            # chosen once more, which makes the threshold the wider operand of the sum: Yosys makes the carries of a
            # 7-series FPGA of the other one, so that the LUT that adds a bit also chooses it.
            left, right = self.pairs[number]
            is_right = next_node[0] if in_turns_of_two else node[0]
            chosen = Cat(Mux(is_right, right, left), Mux(is_right, right[-1], left[-1])).as_signed()
            m.d["sync" if in_turns_of_two else "comb"] += threshold.eq(chosen)
            incoming, incoming_address = after, self.base[number] | node
        # Above the code, its node has a leading one.
        code, pool_min = Signal.like(self.code, reset_less=True), Signal(reset_less=True)
        m.d.sync += [
            code.eq(incoming & ((1 << self.planes) - 1)),
            pool_min.eq((flags & THRESHOLD_POOL_MIN).any()),
        ]
        m.d.comb += [self.code.eq(code), self.pool_min.eq(pool_min)]
        return m


class Drain(wiring.Component):
    """Turn the sums of a row tile into codes, pool them and write them, while the array computes the next tile.

    One column after the other, all rows at once: subtraction of the offset, the comparators, pooling, code table,
    writing. Each but the comparators and the writing takes a cycle; those take ``ceil(output_planes / drain_planes)``
    turns for each comparator and for all planes. As many columns follow in so many turns as take turns in a comparator.
    Raw results take a cycle a row.

    Nothing holds the drain up, and nothing may come too early: a tile may be loaded as many cycles after another as
    that one's valid columns take.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor; constant from the layer's first load to ``layer_done``.
    load : ``In(1)``, tile : ``In(tile_layout(spec))``
        The array copies its sums in this cycle, which are those of this tile.
    sums, column_sum
        Those of one column; of the first one from the cycle after ``load``.
    shift : ``Out(1)``
        Show those of the next column, unless sums are being copied.
    threshold_address : ``Out(drain_planes × rows × threshold_word_width)``
        Pair to read of each row's threshold memory, for each comparator.
    thresholds : ``In(drain_planes × rows × threshold_layout(spec))``
        Those pairs, one cycle later.
    write : ``Out(drain_planes)``
        Writes to activation memory, each of a plane of the row tile.
    write_position : ``Out(drain_planes × position_width)``, write_data : ``Out(drain_planes × rows)``
        Position of the tile's first granule in each of these planes, and the tile's bits there.
    write_granules : ``Out(tile_granules)``
        Granules of the tile to write: those that hold channels. Beyond the last channel their bits are zero.
    write_raw : ``Out(1)``, write_address : ``Out(result_address_width)``, write_value : ``Out(signed(...))``
        A write to result memory.
    comparing : ``Out(1)``
        The first comparator of each row decides a bit.
    layer_done : ``Out(1)``
        With the layer's last write, of raw results in the cycle of the last column's last row, written or not.
    """

    layer: "data.View[Any]"
    load: Signal
    tile: "data.View[Any]"
    sums: "data.View[Any]"
    column_sum: Signal
    shift: Signal
    threshold_address: "data.View[Any]"
    thresholds: "data.View[Any]"
    write: Signal
    write_position: "data.View[Any]"
    write_data: "data.View[Any]"
    write_granules: Signal
    write_raw: Signal
    write_address: Signal
    write_value: Signal
    comparing: Signal
    layer_done: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        derived = spec.derived

        def each(shape: Any, count: int = spec.drain_planes) -> data.ArrayLayout:
            return data.ArrayLayout(shape, count)

        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "load": In(1),
                "tile": In(tile_layout(spec)),
                "sums": In(each(signed(spec.accumulator_width), spec.rows)),
                "column_sum": In(signed(spec.accumulator_width)),
                "shift": Out(1),
                "threshold_address": Out(each(each(derived.threshold_word_width, spec.rows))),
                "thresholds": In(each(each(threshold_layout(spec), spec.rows))),
                "write": Out(spec.drain_planes),
                "write_position": Out(each(derived.position_width)),
                "write_data": Out(each(spec.rows)),
                "write_granules": Out(derived.tile_granules),
                "write_raw": Out(1),
                "write_address": Out(derived.result_address_width),
                "write_value": Out(signed(spec.accumulator_width)),
                "comparing": Out(1),
                "layer_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived, layer = self.spec, self.spec.derived, self.layer
        m = Module()
        raw = Signal()
        m.d.comb += raw.eq((layer.flags & FLAG_RAW).any())

        # What goes along with a column. Positions are those of activations, or addresses of raw results.
        position_width = max(derived.position_width, derived.result_address_width)
        column_layout = data.StructLayout(
            {
                "pool_first": 1,
                "pool_last": 1,
                "tile_first": 1,  # first column of its tile
                "tile_last": 1,  # last valid column of its tile
                "layer_last": 1,  # last one of the layer
                "tile": derived.tile_index_width,
                "rows": range(spec.rows + 1),  # rows that hold channels
                "position": position_width,
                "threshold_address": derived.threshold_word_width,
            }
        )

        # The tile that is being taken in, its next column in bit 0.
        tile, pending, tile_first = Signal(tile_layout(spec), reset_less=True), Signal(), Signal(reset_less=True)
        number = Signal(derived.tile_index_width, reset_less=True)
        channel = Signal(range(spec.rows * spec.row_tiles_max), reset_less=True)  # the tile's first one
        # Of the tile: first pair, which is flags and root; position in the output pixel of the next column.
        threshold_address = Signal(derived.threshold_word_width, reset_less=True)
        position = Signal(position_width, reset_less=True)
        m.submodules.control = control = SearchControl(spec)
        raw_active, raw_row, raw_last = Signal(), Signal(range(spec.rows)), Signal()
        take = Signal()
        remaining = Signal(signed(max(len(layer.channels), len(channel)) + 1))
        taken = Signal(column_layout)
        m.d.comb += [
            raw_last.eq(raw_active & (raw_row == spec.rows - 1)),
            take.eq(pending & Mux(raw, ~raw_active | raw_last, control.ready)),
            control.start.eq(take & ~raw),
            control.planes.eq(layer.output_planes),
            self.shift.eq(take),
            self.comparing.eq(control.comparing),
            remaining.eq(layer.channels - channel),
            taken.pool_first.eq(tile.pool_first[0]),
            taken.pool_last.eq(tile.pool_last[0]),
            taken.tile_first.eq(tile_first),
            taken.tile_last.eq(~tile.valid[1] if spec.columns > 1 else 1),
            taken.layer_last.eq(tile.last & taken.tile_last),
            taken.tile.eq(number),
            taken.rows.eq(Mux(remaining < 0, 0, Mux(remaining < spec.rows, remaining, spec.rows))),
            taken.position.eq(position),
            taken.threshold_address.eq(threshold_address),
        ]
        with m.If(self.load):
            m.d.sync += [
                tile.eq(self.tile),
                tile_first.eq(1),
                pending.eq(1),
            ]
        with m.Elif(take):
            m.d.sync += [
                tile.valid.eq(tile.valid >> 1),
                tile.pool_first.eq(tile.pool_first >> 1),
                tile.pool_last.eq(tile.pool_last >> 1),
                tile_first.eq(0),
                pending.eq(~taken.tile_last),
            ]

        # A group goes on where the one before it ended, its row tiles lie side by side.
        untouched = Signal(init=1)  # no tile of the layer has come
        tile_position, group_end = (Signal(position_width, reset_less=True) for _ in range(2))
        next_pixel = Signal(position_width)  # where the next output pixel begins
        next_group = Signal(position_width)
        first_position = Signal(position_width)  # of the tile that is being loaded
        pixel_done = take & taken.pool_last
        m.d.comb += [
            next_pixel.eq(position + layer.output_granules),
            next_group.eq(Mux(pixel_done & tile.first, next_pixel, group_end)),
            first_position.eq(
                Mux(
                    untouched,
                    layer.output_base,
                    Mux(
                        self.tile.first,
                        next_group,
                        tile_position + Mux(raw, spec.rows, derived.tile_granules),
                    ),
                )
            ),
        ]
        m.d.sync += group_end.eq(next_group)
        with m.If(self.load):
            m.d.sync += [
                untouched.eq(0),
                tile_position.eq(first_position),
                position.eq(first_position),
                number.eq(Mux(self.tile.first, 0, number + 1)),
                channel.eq(Mux(self.tile.first, 0, channel + spec.rows)),
                threshold_address.eq(
                    Mux(
                        self.tile.first,
                        layer.threshold_base >> 1,
                        threshold_address + ((1 << layer.output_planes) >> 1),
                    )
                ),
            ]
            with m.If(untouched):
                m.d.sync += group_end.eq(layer.output_base)
        with m.Elif(pixel_done):
            m.d.sync += position.eq(next_pixel)
        with m.If(self.layer_done):
            m.d.sync += untouched.eq(1)

        # The complement of each row's value, and what goes along with the column: held for raw results, in the first
        # comparator in turns. With turns, sums are taken in a cycle earlier, on the way to the column's first turn.
        in_turns_of_two = spec.derived.turns == 2
        offset = Signal()
        m.d.comb += offset.eq((layer.flags & FLAG_OFFSET).any() & ~(layer.flags & FLAG_COEFFICIENTS).any())

        def complement(total: Value, column_sum: Value) -> Value:
            return ~Mux(offset, total << 1, total) + Mux(offset, column_sum, 0)

        complements = Signal(data.ArrayLayout(signed(spec.accumulator_width), spec.rows), reset_less=True)
        first_column = Signal(column_layout, name="column_0", reset_less=True)
        coming = Mux(take, taken.as_value(), first_column.as_value())
        if in_turns_of_two:
            early_sums, column_sum = Signal.like(complements), Signal.like(self.column_sum, reset_less=True)
            early_column, just_taken = Signal(column_layout, reset_less=True), Signal()
            coming = early_column.as_value()
            with m.If(take):
                m.d.sync += [early_sums.eq(self.sums), column_sum.eq(self.column_sum), early_column.eq(taken)]
            with m.Elif(~raw):  # the other column's
                m.d.sync += [early_sums.eq(complements), early_column.eq(first_column)]
            m.d.sync += [just_taken.eq(take), first_column.eq(early_column)]
            for row in range(spec.rows):
                m.d.sync += complements[row].eq(
                    Mux(just_taken | raw, complement(early_sums[row], column_sum), early_sums[row])
                )
        else:
            with m.If(take):
                m.d.sync += first_column.eq(taken)
                for row in range(spec.rows):
                    m.d.sync += complements[row].eq(complement(self.sums[row], self.column_sum))

        # Columns in the comparators, and the one whose turn it is in the last comparator in the next cycle.
        columns = [first_column]
        for comparator in range(1, spec.drain_planes):
            compared = Signal(column_layout, name=f"column_{comparator}", reset_less=True)
            following = Mux(control.stages[comparator].take, columns[-1].as_value(), compared.as_value())
            coming = in_turns(m, spec, compared.as_value(), following, f"column_{comparator}", reset_less=True)
            columns.append(compared)

        # Search.
        codes, pool_mins = [], []
        for row in range(spec.rows):
            m.submodules[f"threshold_{row}"] = unit = ThresholdUnit(spec)
            m.d.comb += [
                unit.planes.eq(control.planes),
                unit.stages.eq(control.stages),
                unit.complement.eq(complements[row]),
                unit.first.eq(threshold_address),
            ]
            for comparator, compared in enumerate(columns):
                m.d.comb += [
                    unit.base[comparator].eq(compared.threshold_address),
                    self.threshold_address[comparator][row].eq(unit.address[comparator]),
                    unit.pairs[comparator].eq(self.thresholds[comparator][row]),
                ]
            codes.append(unit.code)
            pool_mins.append(unit.pool_min)

        # Raw results, from the first comparator's value.
        with m.If(take & raw):
            m.d.sync += [raw_active.eq(1), raw_row.eq(0)]
        with m.Else():
            m.d.sync += [raw_active.eq(raw_active & ~raw_last), raw_row.eq(raw_row + 1)]
        raw_valid, raw_number = raw_active, raw_row
        if in_turns_of_two:  # their values, too, come a cycle later
            raw_valid, raw_number = Signal(), Signal.like(raw_row)
            m.d.sync += [raw_valid.eq(raw_active), raw_number.eq(raw_row)]
        m.d.comb += [
            self.write_raw.eq(raw_valid & (raw_number < first_column.rows)),
            self.write_address.eq(first_column.position + raw_number),
            self.write_value.eq(~complements[raw_number]),
        ]

        # Pooling, in the cycle after a column's last comparison. A pooling window that a group leaves unfinished is
        # carried to the next group, row tile by row tile; a single row tile's stays where it is. Of two tiles, a
        # carry may have to be read in the very cycle in which it is written, so the port forwards it. With turns there
        # is a cycle more between them, in which it is written from its register.
        pooling, column = Signal(), Signal(column_layout, reset_less=True)
        m.d.sync += [pooling.eq(control.finish), column.eq(columns[-1])]
        codes_layout = data.ArrayLayout(derived.code_width, spec.rows)
        m.submodules.carry = carries = memory.Memory(shape=codes_layout, depth=spec.row_tiles_max, init=[])
        carry_write = carries.write_port()
        carry_read = carries.read_port(transparent_for=(carry_write,))
        pooled, carry_data = Signal(codes_layout, reset_less=True), Signal(codes_layout, reset_less=True)
        next_pooled, carried = Signal(codes_layout), Signal(reset_less=True)
        m.d.sync += [
            carry_data.eq(carry_read.data),
            carried.eq(columns[-1].tile_first & (layer.row_tiles != 1)),
        ]
        writes_carry, carry_tile, carry = pooling & column.tile_last, column.tile, next_pooled
        if in_turns_of_two:
            writes_carry, carry_tile, carry = Signal(), Signal.like(column.tile), pooled
            m.d.sync += [writes_carry.eq(pooling & column.tile_last), carry_tile.eq(column.tile)]
        m.d.comb += [
            carry_read.addr.eq(data.View(column_layout, coming).tile),
            carry_write.addr.eq(carry_tile),
            carry_write.data.eq(carry),
            carry_write.en.eq(writes_carry),
        ]
        for row in range(spec.rows):
            earlier = Mux(carried, carry_data[row], pooled[row])
            smaller = codes[row] < earlier
            keep = Mux(pool_mins[row], ~smaller, smaller) & ~column.pool_first
            m.d.comb += next_pooled[row].eq(Mux(keep, earlier, codes[row]))
        with m.If(pooling):
            m.d.sync += pooled.eq(next_pooled)

        # Writing: in the next cycle the pooled codes are looked up, then their planes go out.
        starting, finished = Signal(), Signal(column_layout, reset_less=True)
        m.d.sync += [starting.eq(pooling & column.pool_last), finished.eq(column)]
        width = max(derived.code_width, spec.drain_planes)
        outgoing_layout = data.StructLayout(
            {
                "planes": width,  # that are to be written
                "codes": data.ArrayLayout(width, spec.rows),
                "positions": data.ArrayLayout(derived.position_width, spec.drain_planes),
                "granules": derived.tile_granules,
                "layer_last": 1,
            }
        )
        outgoing, left = Signal(outgoing_layout), Signal(outgoing_layout)
        planes, stride = outgoing.planes, layer.output_plane_stride
        m.d.comb += [
            left.eq(outgoing),
            left.planes.eq(planes >> spec.drain_planes),
            *(left.codes[row].eq(outgoing.codes[row] >> spec.drain_planes) for row in range(spec.rows)),
            *(
                left.positions[number].eq(outgoing.positions[number] + stride * spec.drain_planes)
                for number in range(spec.drain_planes)
            ),
        ]
        if spec.derived.turns == 2:
            other = Signal(outgoing_layout, name="outgoing_other")
            m.d.sync += other.eq(left)
            left = other
        m.d.sync += outgoing.eq(left)
        with m.If(starting):
            m.d.sync += [
                outgoing.planes.eq((1 << control.planes) - 1),
                outgoing.layer_last.eq(finished.layer_last),
                outgoing.granules.eq(
                    Cat(finished.rows > granule * GRANULE for granule in range(derived.tile_granules))
                ),
            ]
            for row in range(spec.rows):
                m.d.sync += outgoing.codes[row].eq(Mux(row < finished.rows, self._code(pooled[row]), 0))
            for number in range(spec.drain_planes):
                m.d.sync += outgoing.positions[number].eq(finished.position + stride * number)
        m.d.comb += [
            self.write.eq(planes),
            self.write_position.eq(outgoing.positions),
            self.write_granules.eq(outgoing.granules),
            self.layer_done.eq(
                Mux(
                    raw,
                    raw_valid & (raw_number == spec.rows - 1) & first_column.layer_last,
                    planes[0] & ~planes[spec.drain_planes :].any() & outgoing.layer_last,
                )
            ),
        ]
        for number in range(spec.drain_planes):
            m.d.comb += self.write_data[number].eq(Cat(outgoing.codes[row][number] for row in range(spec.rows)))
        return m

    def _code(self, rank: Value) -> Value:
        """Code of the rank, from the code table if the layer has one."""
        if not self.spec.coefficient_bits:
            return rank
        planes = min(CODE_TABLE_PLANES, len(rank))
        looked_up = Cat(self.layer[f"code_table_{plane}"].bit_select(rank[:4], 1) for plane in range(planes))
        return Mux((self.layer.flags & FLAG_TABLE).any(), looked_up, rank)
