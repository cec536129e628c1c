"""Weights from a stream into their memories, while the array computes."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.isa import BUS_WIDTH, ArraySpec


def streamer_ports(spec: ArraySpec) -> dict[str, Any]:
    """Members of whatever writes weights from a stream to the weight memories.

    ``layer`` is the descriptor of the part whose weights are loaded, stable from ``start`` to ``done``: ``start`` loads
    them, from the next cycle on, ``done`` is the last cycle of it. ``beats`` is a stream as :mod:`bitwright.hw.isa` has
    it. ``write``, with row, address and word, is the write port of the weight memories.
    """
    return {
        "layer": In(descriptor_layout(spec)),
        "beats": In(stream.Signature(BUS_WIDTH)),
        "start": In(1),
        "done": Out(1),
        "write": Out(1),
        "write_row": Out(8),
        "write_address": Out(16),
        "write_word": Out(spec.lanes),
    }


class WeightStreamer(wiring.Component):
    """Write weights from a stream to the weight memories, row by row, while the array computes.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer, beats, start, done, write, write_row, write_address, write_word
        :func:`streamer_ports`. Each row has ``stream_words`` words from ``weight_base`` on.
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
                    self.write_address.eq(self.layer.weight_base + word),
                ]
                with m.If(word == self.layer.stream_words - 1):
                    m.d.sync += [word.eq(0), row.eq(row + 1)]
                    with m.If(row == self.spec.rows - 1):
                        m.d.sync += last.eq(1)
        return m
