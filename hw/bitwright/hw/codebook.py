"""Decoding of coded weights: indices into a codebook come in, bit planes of its integers go to the weight memories."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.isa import BUS_WIDTH, ArraySpec
from bitwright.hw.streamer import streamer_ports

PLAIN_TABLE = 0xAAAA
"""Table of words that are stored as they are: indices of one plane, whatever the planes above it hold."""


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
        lanes, indices = self.spec.lanes, list(self.indices)
        words = [bit.replicate(lanes) for bit in self.table]

        def choose(index: Value, low: Value, high: Value) -> Signal:
            """In each lane ``high`` where the index is set; of all lanes at once, for the simulators' sake."""
            chosen = Signal(lanes, name="chosen")
            m.d.comb += chosen.eq((low & ~index) | (high & index))
            return chosen

        while len(indices) > 1:
            low, high, *indices = indices
            fours = zip(*(words[n::4] for n in range(4)), strict=True)
            # Where `high` is set, `first` is `low`: a choice of four in a form that fits two LUT4, or one LUT6.
            found: list[Value] = []
            for four in fours:
                first = choose(high, choose(low, four[0], four[1]), low)
                found.append(choose(high, first, choose(first, four[2], four[3])))
            words = found
        m.d.comb += self.word.eq(choose(indices[0], *words) if indices else words[0])
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
    layer, beats, start, done, write, write_row, write_address, write_word
        :func:`bitwright.hw.streamer.streamer_ports`.
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
        super().__init__(streamer_ports(spec))

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, layer = self.spec, self.layer
        m = Module()
        m.submodules.decoder = decoder = CodebookDecoder(spec)
        planes = max(2, spec.weight_planes_max)
        # The upper half has the table of plain words: a multiplexer behind the memory would end up in every lane.
        width = (planes - 1).bit_length()
        m.submodules.tables = tables = memory.Memory(shape=1 << spec.codebook_bits, depth=2 << width, init=[])
        write_table, read_table = tables.write_port(), tables.read_port()
        last_plane = Signal(width)
        m.d.comb += last_plane.eq(layer.decoded_planes - 1)

        # Tables, then words.
        number = Signal(width)  # of the table; 0 in all other states
        m.d.comb += [
            write_table.addr.eq(Cat(number, self.start)),
            write_table.data.eq(Mux(self.start, PLAIN_TABLE, self.beats.payload)),
        ]
        ready = Signal()  # for a beat of a word
        ended = Signal()  # it is the last one
        taken = Signal()
        with m.FSM(name="take"):
            with m.State("idle"), m.If(self.start):
                m.d.comb += write_table.en.eq(1)
                with m.If(layer.index_planes != 0):
                    m.next = "tables"
                with m.Else():
                    m.next = "words"
            with m.State("tables"):
                m.d.comb += [self.beats.ready.eq(1), write_table.en.eq(self.beats.valid)]
                with m.If(self.beats.valid):
                    m.d.sync += number.eq(number + 1)
                    with m.If(number == last_plane):
                        m.d.sync += number.eq(0)
                        m.next = "words"
            with m.State("words"):
                m.d.comb += [self.beats.ready.eq(ready), taken.eq(ready & self.beats.valid)]
                with m.If(taken & ended):
                    m.next = "idle"

        # Collect the beats of a word's indices, the newest one lowest. Planes that they do not have hold what was there
        # before: tables repeat, so that it makes no difference.
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
                m.d.sync += plane.eq(0)
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
            m.d.sync += [chunk.eq(0), plane.eq(0), word.eq(0), row.eq(0)]

        # Decode: a plane each cycle.
        active, single, final = Signal(), Signal(), Signal()
        step, next_step = Signal(width), Signal(width)
        target, target_row = Signal(16), Signal(8)
        indices = [Signal(spec.lanes, name=f"indices_{n}", reset_less=True) for n in range(spec.codebook_bits)]
        step_end = Signal()
        m.d.comb += [
            step_end.eq(single | (step == last_plane)),
            ready.eq(~(complete & active & ~step_end)),
            next_step.eq(Mux(taken & complete, 0, step + 1)),
            read_table.addr.eq(Cat(next_step, taken & complete & plain)),
            decoder.table.eq(read_table.data),
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
        m.d.sync += step.eq(next_step)
        with m.If(taken & complete):
            m.d.sync += [active.eq(1), single.eq(plain), final.eq(ended), target.eq(address), target_row.eq(row)]
            for index, held in enumerate(indices):
                oldest = (index + 1) * chunks - 1
                m.d.sync += held.eq(Cat(everything.word_select(oldest - n, BUS_WIDTH) for n in range(chunks)))
        return m
