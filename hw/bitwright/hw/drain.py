"""From accumulators to activation memory: thresholds, pooling, packing, raw results."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.fetch import descriptor_layout
from bitwright.hw.isa import FLAG_OFFSET, FLAG_RAW, ArraySpec
from bitwright.hw.sequencer import tile_layout


def threshold_layout(spec: ArraySpec) -> data.StructLayout:
    """Entry of the threshold memory, as :func:`bitwright.hw.isa.encode_threshold` lays it out."""
    return data.StructLayout({"value": signed(spec.accumulator_width), "negate": 1, "pool_min": 1})


class ThresholdUnit(wiring.Component):
    """Find a code of one channel by binary search: one bit a cycle, most significant first.

    ``code`` is the number of thresholds that the value reaches. Threshold ``i`` is reached if ``value >= threshold``,
    or, for a negated entry, if it is not.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    value : ``In(signed(accumulator_width))``
        Value of the channel, constant during its search.
    entry : ``In(threshold_layout(spec))``
        Threshold number ``candidate`` of the channel.
    step : ``In(1)``
        Compare in this cycle.
    bit : ``In(code_width)``
        One-hot: the bit being decided.
    first : ``In(1)``
        The step is the search's first.
    next_code : ``Out(code_width)``
        Code with the bits decided up to and including this cycle's.
    code : ``Out(code_width)``, pool_min : ``Out(1)``
        Result, in the cycle after the last step, and the channel's way of pooling.
    """

    value: Signal
    entry: "data.View[Any]"
    step: Signal
    bit: Signal
    first: Signal
    next_code: Signal
    code: Signal
    pool_min: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        width = spec.derived.code_width
        super().__init__(
            {
                "value": In(signed(spec.accumulator_width)),
                "entry": In(threshold_layout(spec)),
                "step": In(1),
                "bit": In(width),
                "first": In(1),
                "next_code": Out(width),
                "code": Out(width),
                "pool_min": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        reached = Signal()
        m.d.comb += [
            reached.eq((self.value >= self.entry.value) ^ self.entry.negate),
            self.next_code.eq(Mux(self.first, 0, self.code) | (self.bit & reached.replicate(len(self.bit)))),
        ]
        with m.If(self.step):
            m.d.sync += [self.code.eq(self.next_code), self.pool_min.eq(self.entry.pool_min)]
        return m


class Drain(wiring.Component):
    """Turn the sums of a row tile into codes, pool them and write them, while the array computes the next tile.

    One column a time: ``output_planes`` cycles of binary search for all rows at once, then one cycle of pooling, then
    a write a plane. Raw results take a cycle a row instead.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor.
    load : ``In(1)``, tile : ``In(tile_layout(spec))``
        The array loads its chain in this cycle, with the sums of this tile.
    sums, column_sum
        Head of the chain, from the cycle after ``load``.
    shift : ``Out(1)``
        Move the chain.
    threshold_address : ``Out(rows × threshold_address_width)``
        Entry to read of each row's threshold memory.
    thresholds : ``In(rows × threshold_layout(spec))``
        That entry, one cycle later.
    write : ``Out(1)``, write_raw : ``Out(1)``, write_address : ``Out(16)``, write_slot, write_bits, write_flag
        A write to activation memory: the tile's bits of one plane, and whether the word as written so far has a bit
        set.
    write_value : ``Out(signed(accumulator_width))``
        A raw result.
    comparing : ``Out(1)``
        A threshold comparison is being made.
    layer_done : ``Out(1)``
        With the layer's last write.
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
    write_raw: Signal
    write_address: Signal
    write_slot: Signal
    write_bits: Signal
    write_flag: Signal
    write_value: Signal
    comparing: Signal
    layer_done: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        derived = spec.derived
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "load": In(1),
                "tile": In(tile_layout(spec)),
                "sums": In(data.ArrayLayout(signed(spec.accumulator_width), spec.rows)),
                "column_sum": In(signed(spec.accumulator_width)),
                "shift": Out(1),
                "threshold_address": Out(data.ArrayLayout(derived.threshold_address_width, spec.rows)),
                "thresholds": In(data.ArrayLayout(threshold_layout(spec), spec.rows)),
                "write": Out(1),
                "write_raw": Out(1),
                "write_address": Out(16),
                "write_slot": Out(range(derived.slots)),
                "write_bits": Out(spec.rows),
                "write_flag": Out(1),
                "write_value": Out(signed(spec.accumulator_width)),
                "comparing": Out(1),
                "layer_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived, layer = self.spec, self.spec.derived, self.layer
        code_width = derived.code_width
        m = Module()
        raw = (layer.flags & FLAG_RAW).any()

        # Value of each row in the column being drained.
        values = Signal(data.ArrayLayout(signed(spec.accumulator_width), spec.rows))
        for row in range(spec.rows):
            with m.If(layer.flags & FLAG_OFFSET):
                m.d.comb += values[row].eq((self.sums[row] << 1) - self.column_sum)
            with m.Else():
                m.d.comb += values[row].eq(self.sums[row])

        # Columns of the tile, the next one in bit 0.
        tile = Signal(tile_layout(spec))
        active, tile_first, tile_unwritten = Signal(), Signal(), Signal()
        step, raw_row = Signal(code_width), Signal(range(spec.rows))
        top = Signal(code_width)
        column_first, column_last, last = Signal(), Signal(), Signal()
        m.d.comb += [
            top.eq((1 << layer.output_planes[:4]) >> 1),
            column_first.eq(step == top),
            column_last.eq(Mux(raw, raw_row == spec.rows - 1, step[0])),
            last.eq(~tile.valid[1] if spec.columns > 1 else 1),
            self.shift.eq(active & column_last),
            self.comparing.eq(active & ~raw),
        ]
        with m.If(self.load):
            m.d.sync += [active.eq(1), tile.eq(self.tile), tile_first.eq(1), tile_unwritten.eq(1)]
            m.d.sync += [step.eq(top), raw_row.eq(0)]
        with m.Elif(active):
            m.d.sync += [step.eq(step >> 1), raw_row.eq(raw_row + 1)]
            with m.If(column_last):
                m.d.sync += [
                    step.eq(top),
                    raw_row.eq(0),
                    tile_first.eq(0),
                    tile.valid.eq(tile.valid >> 1),
                    tile.pool_first.eq(tile.pool_first >> 1),
                    tile.pool_last.eq(tile.pool_last >> 1),
                    active.eq(~last),
                ]
                with m.If(raw | tile.pool_last[0]):
                    m.d.sync += [
                        tile.output_address.eq(tile.output_address + layer.output_words),
                        tile_unwritten.eq(0),
                    ]

        # Search. The address of the next comparison depends on the result of this one.
        codes, pool_mins = [], []
        for row in range(spec.rows):
            m.submodules[f"threshold_{row}"] = unit = ThresholdUnit(spec)
            m.d.comb += [
                unit.value.eq(values[row]),
                unit.entry.eq(self.thresholds[row]),
                unit.step.eq(active),
                unit.bit.eq(step),
                unit.first.eq(column_first),
            ]
            candidate = Mux(self.load | column_last, top, unit.next_code | (step >> 1))
            base = Mux(self.load, self.tile.threshold_address, tile.threshold_address)
            m.d.comb += self.threshold_address[row].eq(base + candidate)
            codes.append(unit.code)
            pool_mins.append(unit.pool_min)

        # Pooling, in the cycle after a column's last comparison. A pooling window that a group leaves unfinished is
        # carried to the next group, row tile by row tile.
        pooling = Signal()
        pool_tile = Signal(tile_layout(spec))
        pool_start, pool_tile_first, pool_tile_last, pool_tile_unwritten = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [
            pooling.eq(active & column_last & ~raw),
            pool_tile.eq(tile),
            pool_start.eq(tile.pool_first[0]),
            pool_tile_first.eq(tile_first),
            pool_tile_last.eq(last),
            pool_tile_unwritten.eq(tile_unwritten),
        ]
        codes_layout = data.ArrayLayout(code_width, spec.rows)
        m.submodules.carry = carry = memory.Memory(shape=codes_layout, depth=spec.row_tiles_max, init=[])
        # No bypass: a tile's carry is read at least four cycles after it is written, as a group takes longer to scan.
        carry_read, carry_write = carry.read_port(), carry.write_port()
        pooled, pooled_next = Signal(codes_layout), Signal(codes_layout)
        for row in range(spec.rows):
            before = Mux(pool_tile_first, carry_read.data[row], pooled[row])
            smaller = codes[row] < before
            keep = Mux(pool_mins[row], ~smaller, smaller) & ~pool_start
            m.d.comb += pooled_next[row].eq(Mux(keep, before, codes[row]))
        m.d.comb += [
            carry_read.addr.eq(tile.tile),
            carry_write.addr.eq(pool_tile.tile),
            carry_write.data.eq(pooled_next),
            carry_write.en.eq(pooling & pool_tile_last & ~pool_tile.pool_last[0]),
        ]
        with m.If(pooling):
            m.d.sync += pooled.eq(pooled_next)

        # Writing, one plane a cycle. The zero flag of a word covers the slots written so far: the tiles of a word
        # follow each other, each writing the same words in the same order, so their flags are kept by the order of the
        # writes.
        start_write, layer_last = Signal(), Signal()
        outgoing = Signal(codes_layout)
        planes_left = Signal(range(spec.activation_planes_max + 1))
        plane_address = Signal(16)
        slot = Signal(range(derived.slots))
        writing = Signal()
        m.d.comb += [start_write.eq(pooling & pool_tile.pool_last[0]), writing.eq(planes_left != 0)]

        flag_depth = 1 << (spec.columns * spec.activation_planes_max - 1).bit_length()
        m.submodules.flags = flags = memory.Memory(shape=1, depth=flag_depth, init=[])
        flag_write = flags.write_port()
        flag_read = flags.read_port(transparent_for=(flag_write,))
        flag_index, flag_next = Signal(range(flag_depth)), Signal(range(flag_depth))
        m.d.comb += flag_next.eq(Mux(start_write & pool_tile_unwritten, 0, flag_index + writing))
        m.d.sync += flag_index.eq(flag_next)

        with m.If(start_write):
            m.d.sync += [
                outgoing.eq(pooled_next),
                planes_left.eq(layer.output_planes),
                plane_address.eq(pool_tile.output_address),
                slot.eq(pool_tile.slot),
                layer_last.eq(pool_tile.last & pool_tile_last),
            ]
        with m.Elif(writing):
            m.d.sync += [
                Cat(outgoing).eq(Cat(outgoing[row] >> 1 for row in range(spec.rows))),
                planes_left.eq(planes_left - 1),
                plane_address.eq(plane_address + layer.output_plane_stride),
            ]

        raw_write, raw_last = Signal(), Signal()
        raw_address = Signal(16)
        m.d.sync += [
            raw_write.eq(active & raw & (tile.channel + raw_row < layer.channels)),
            raw_last.eq(active & raw & column_last & last & tile.last),
            raw_address.eq(tile.output_address + raw_row),
            self.write_value.eq(values[raw_row]),
        ]

        m.d.comb += [
            self.write.eq(writing | raw_write),
            self.write_raw.eq(raw_write),
            self.write_address.eq(Mux(raw_write, raw_address, plane_address)),
            self.write_slot.eq(slot),
            self.write_bits.eq(Cat(outgoing[row][0] for row in range(spec.rows))),
            self.write_flag.eq(self.write_bits.any() | ((slot != 0) & flag_read.data)),
            self.layer_done.eq(raw_last | (writing & (planes_left == 1) & layer_last)),
            flag_read.addr.eq(flag_next),
            flag_write.addr.eq(flag_index),
            flag_write.data.eq(self.write_flag),
            flag_write.en.eq(writing),
        ]
        return m
