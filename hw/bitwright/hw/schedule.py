"""Pass scheduler: which passes a pixel group needs, with the doublings between them."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import PASS, descriptor_layout
from bitwright.hw.fetch import length_layout
from bitwright.hw.isa import (
    DOUBLES_MAX,
    FLAG_DENSE,
    ArraySpec,
)

DOUBLES_WIDTH = DOUBLES_MAX.bit_length()
"""Bits of the doublings of an entry: of all passes that were dropped before it, too."""


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
    loaded_planes, group_ready, length_plane : ``Out(range(lists))``, length : ``In(length_layout(spec))``
        With skipping: the group that is taken next, as the loader gives it. Its passes are listed while it is still
        being loaded, each as soon as its plane is there.
    group_buffer : ``In(1)``
        Half that its list is written to.
    take : ``In(1)``
        The group is taken: from the next cycle on, the one after it is the next.
    complete : ``Out(1)``
        The list is complete: ``SCHEDULE_OVERHEAD`` cycles and one for each pass after ``start``; with skipping also
        ``SCHEDULE_END`` and one for each pass after ``take``, and more where a pass waits for its plane.
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
    loaded_planes: Signal
    length_plane: Signal
    length: "data.View[Any]"
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
                "loaded_planes": In(range(derived.lists + 1)),
                "length_plane": Out(range(derived.lists)),
                "length": In(length_layout(spec)),
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
        dense = (layer.flags & FLAG_DENSE).any()
        m = Module()
        depth = max(2, (2 if skip else 1) << self.index_width)
        m.submodules.entries = entries = memory.Memory(shape=schedule_layout(spec), depth=depth, init=[])
        write, read = entries.write_port(), entries.read_port()
        written = Signal(range(spec.derived.passes_max + 1))
        buffers = [self.group_buffer & ~dense], [self.entry_buffer & ~dense]
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
        entry_pass = Signal(PASS, reset_less=True)
        doubles = Signal(DOUBLES_WIDTH)  # of the passes dropped since the last entry
        m.d.comb += [
            # With skipping, the first pass of the next list is read as soon as the last of this one is listed.
            begin.eq(self.start | (tail if skip else 0)),
            self.address.eq(self.pass_address + Mux(begin, 0, index)),
            self.read.eq(begin | fetch),
            # The word that has come from memory goes to a register when the pass before is listed.
            fetch.eq(fetched & (~valid | advance)),
        ]

        # The pass in the register. The list before has been taken, and the pass's plane has been listed, or, if the
        # window does not have it, the group is there.
        loaded = (self.loaded_planes > entry_pass.plane) | self.group_ready | dense
        listed = ~self.complete & loaded if skip else 1
        m.d.comb += advance.eq(valid & listed)
        residual = Signal()
        m.d.comb += residual.eq(entry_pass.plane >= layer.activation_planes)
        words, length = Signal(spec.derived.window_address_width + 1), Signal(length_layout(spec))
        m.d.comb += self.length_plane.eq(entry_pass.plane)
        m.d.comb += words.eq(Mux(residual, layer.residual_length, layer.window_length))
        m.d.comb += length.eq(Cat(words, words != 0, words == 1))
        if skip:
            with m.If(~dense):
                m.d.comb += length.eq(self.length)
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
            m.d.sync += [fetched.eq(1), valid.eq(0), index.eq(1)]
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
        with m.If(self.start | (self.take & ~dense if skip else 0)):
            m.d.sync += [
                written.eq(0),
                started.eq(0),
                doubles.eq(0),
                self.skipped.eq(0),
                self.complete.eq(0),
            ]
        return m


def skipped_width(spec: ArraySpec) -> int:
    """Bits of the words that a row tile of a group leaves out: of all passes."""
    return (spec.derived.passes_max * spec.window_depth).bit_length()
