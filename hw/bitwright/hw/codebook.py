"""Decoding of coded weights: indices into a codebook come in, bit planes of its integers go to the weight memories."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.fetch import descriptor_layout
from bitwright.hw.isa import BUS_WIDTH, ArraySpec

PLAIN_TABLE = 0b10
"""Table of words that are stored as they are: an index of 0 is a 0, one of 1 is a 1."""


class CodebookDecoder(wiring.Component):
    """Look up one plane of a word of coded weights: in each lane, the table's bit that the lane's index names.

    Combinational: a multiplexer of ``2**codebook_bits`` table bits for each lane.

    Parameters
    ----------
    spec
        Array parameters; ``codebook_bits`` is at least 1.

    Members
    -------
    indices : ``In(lanes).array(codebook_bits)``
        Planes of the indices, the least significant one first.
    table : ``In(2**codebook_bits)``
        Bit ``n`` is the plane of the codebook's entry ``n``.
    word : ``Out(lanes)``
        The plane.
    """

    indices: Any
    table: Signal
    word: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "indices": In(spec.lanes).array(spec.codebook_bits),
                "table": In(1 << spec.codebook_bits),
                "word": Out(spec.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        # All lanes at once, for the simulators' sake; synthesis finds the multiplexers.
        words = [bit.replicate(self.spec.lanes) for bit in self.table]
        for plane in range(self.spec.codebook_bits):
            index = self.indices[plane]
            pairs = zip(words[::2], words[1::2], strict=True)
            halved = [Signal(self.spec.lanes, name=f"choice_{plane}_{n}") for n in range(len(words) // 2)]
            m.d.comb += [
                choice.eq((low & ~index) | (high & index)) for choice, (low, high) in zip(halved, pairs, strict=True)
            ]
            words = halved
        m.d.comb += self.word.eq(words[0])
        return m


class CodebookStreamer(wiring.Component):
    """Write weights from a stream to the weight memories, and decode them on the way where they are coded.

    The indices of the next word come in while the planes of this one are written, one a cycle. The stream waits only
    where there are more planes than beats. A word that is stored as it is passes through the same decoder, as an index
    of one plane.

    Parameters
    ----------
    spec
        Array parameters; ``codebook_bits`` is at least 1.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor of the part whose weights are loaded, stable from ``start`` to ``done``.
    beats : ``In(stream.Signature(32))``
        As :mod:`bitwright.hw.isa` lays streams out.
    start : ``In(1)``
        Load that part's weights, from the next cycle on.
    done : ``Out(1)``
        Last cycle of it.
    write : ``Out(1)``, write_row, write_address, write_word
        Write port of the weight memories.
    """

    layer: "data.View[Any]"
    beats: stream.Interface
    start: Signal
    done: Signal
    write: Signal
    write_row: Signal
    write_address: Signal
    write_word: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "beats": In(stream.Signature(BUS_WIDTH)),
                "start": In(1),
                "done": Out(1),
                "write": Out(1),
                "write_row": Out(8),
                "write_address": Out(16),
                "write_word": Out(spec.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, layer = self.spec, self.layer
        m = Module()
        m.submodules.decoder = decoder = CodebookDecoder(spec)
        planes = max(2, spec.weight_planes_max)
        tables = Array(Signal(1 << spec.codebook_bits, name=f"table_{n}", reset_less=True) for n in range(planes))
        last_plane = Signal(range(planes))
        m.d.comb += last_plane.eq(layer.decoded_planes - 1)

        # Tables, then words.
        number = Signal(range(planes))  # of the table
        ready = Signal()  # for a beat of a word
        ended = Signal()  # it is the last one
        taken = Signal()
        with m.FSM(name="take"):
            with m.State("idle"), m.If(self.start):
                m.d.sync += number.eq(0)
                with m.If(layer.index_planes != 0):
                    m.next = "tables"
                with m.Else():
                    m.next = "words"
            with m.State("tables"):
                m.d.comb += self.beats.ready.eq(1)
                with m.If(self.beats.valid):
                    m.d.sync += [tables[number].eq(self.beats.payload), number.eq(number + 1)]
                    with m.If(number == last_plane):
                        m.next = "words"
            with m.State("words"):
                m.d.comb += [self.beats.ready.eq(ready), taken.eq(ready & self.beats.valid)]
                with m.If(taken & ended):
                    m.next = "idle"

        # Collect the planes of a word's indices, all beats of them, the newest one lowest.
        chunks = spec.derived.chunks
        chunk, plane, word, row = Signal(range(chunks)), Signal(range(spec.codebook_bits)), Signal(16), Signal(8)
        plain, left = Signal(), Signal(16)  # words of this kind that are left in the row tile
        filled, row_end, complete = Signal(), Signal(), Signal()
        m.d.comb += [
            filled.eq(chunk == chunks - 1),
            row_end.eq(filled & (word == layer.stream_words - 1)),
            complete.eq(row_end | filled & (plain | (plane == layer.index_planes - 1))),
            ended.eq(row_end & (row == spec.rows - 1)),
        ]
        beats = Signal((chunks * spec.codebook_bits - 1) * BUS_WIDTH, reset_less=True)
        everything = Cat(self.beats.payload, beats)
        with m.If(taken):
            m.d.sync += [chunk.eq(chunk + 1), beats.eq(everything)]
            with m.If(filled):
                m.d.sync += [chunk.eq(0), plane.eq(plane + 1), word.eq(word + 1)]
            with m.If(complete):
                m.d.sync += [plane.eq(0), beats.eq(0)]  # zero the planes that the next word may not have
            with m.If(row_end):
                m.d.sync += [word.eq(0), row.eq(row + 1)]

        # Where the word goes: the plain words of a row tile, then its coded ones, then the next row tile.
        address, tile_address = Signal(16), Signal(16)
        rewind, turn = Signal(), Signal()
        m.d.comb += [
            rewind.eq(self.start | (taken & row_end)),
            turn.eq(rewind | (taken & complete & (left == 1) & (layer.index_planes != 0))),
        ]
        next_tile = Signal(16)
        m.d.comb += next_tile.eq(Mux(rewind, layer.weight_base, tile_address + layer.weight_tile_stride))
        with m.If(taken & complete):
            m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
        with m.If(turn):
            with m.If(plain & ~rewind):
                m.d.sync += [plain.eq(0), left.eq(layer.window_length)]
            with m.Else():
                begins_plain = layer.plain_words != 0
                m.d.sync += [
                    plain.eq(begins_plain | (layer.index_planes == 0)),
                    left.eq(Mux(begins_plain, layer.plain_words, layer.window_length)),
                    tile_address.eq(next_tile),
                    address.eq(next_tile),
                ]
        with m.If(self.start):
            m.d.sync += [chunk.eq(0), plane.eq(0), word.eq(0), row.eq(0), beats.eq(0)]

        # Decode: a plane each cycle.
        active, single, final = Signal(), Signal(), Signal()
        step, next_step = Signal(range(planes)), Signal(range(planes))
        target, target_row = Signal(16), Signal(8)
        table = Signal(1 << spec.codebook_bits, reset_less=True)
        indices = [Signal(spec.lanes, name=f"indices_{n}", reset_less=True) for n in range(spec.codebook_bits)]
        step_end = Signal()
        m.d.comb += [
            step_end.eq(single | (step == last_plane)),
            ready.eq(~(complete & active & ~step_end)),
            next_step.eq(Mux(taken & complete, 0, step + 1)),
            decoder.table.eq(table),
            *(decoder.indices[n].eq(held) for n, held in enumerate(indices)),
        ]
        m.d.sync += [self.write.eq(active), self.done.eq(active & step_end & final)]
        with m.If(active):
            m.d.sync += [
                self.write_row.eq(target_row),
                self.write_address.eq(target),
                self.write_word.eq(decoder.word),
                target.eq(target + layer.window_length),
            ]
        with m.If(active & step_end):
            m.d.sync += active.eq(0)
        m.d.sync += [step.eq(next_step), table.eq(tables[next_step])]
        with m.If(taken & complete):
            m.d.sync += [active.eq(1), single.eq(plain), final.eq(ended), target.eq(address), target_row.eq(row)]
            for index, held in enumerate(indices):
                oldest = (index + 1) * chunks - 1
                m.d.sync += held.eq(Cat(everything.word_select(oldest - n, BUS_WIDTH) for n in range(chunks)))
            with m.If(plain):
                m.d.sync += table.eq(PLAIN_TABLE)
        return m
