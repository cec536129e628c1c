"""Layer sequencer: descriptors, one after the other."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.isa import (
    FIELD_PLACES,
    FLAG_LAST,
    HEADER_WORDS,
    ArraySpec,
    ErrorCode,
    Field,
    descriptor_fields,
)
from bitwright.hw.registers import registered


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
    stream_start : ``Out(1)``, stream_layer : ``Out(descriptor_layout(spec))``, stream_done : ``In(1)``
        Load the weights of the next layer, whose fields these are; done, in the last cycle of that.
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
    stream_layer: "data.View[Any]"
    stream_done: Signal
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
                "stream_layer": Out(descriptor_layout(spec)),
                "stream_done": In(1),
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

        # Fetch the next header. Fields are checked as they arrive, against the ranges that the compiler uses. Of the
        # first word with a wrong one the checks are kept; which field they are about is worked out in the end.
        layer = Signal.like(self.layer, reset_less=True)
        upcoming = Signal.like(layer, reset_less=True) if spec.prefetch else layer
        m.d.comb += self.layer.eq(layer)
        count = Signal(range(HEADER_WORDS + 2))
        bad = self._bad(m, count)
        wrong, wrong_word, wrong_checks = Signal(), Signal(range(HEADER_WORDS)), Signal.like(bad)
        ready, failed, failed_code = Signal(), Signal(), Signal(3)
        switch = Signal()
        m.d.comb += end.eq(pointer + HEADER_WORDS + upcoming.passes)
        m.d.comb += self.address.eq(pointer + count)
        with m.If(~wrong):
            m.d.sync += [wrong.eq(bad.any()), wrong_word.eq(count - 2), wrong_checks.eq(bad)]
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
                            for _, field, value in self._fields(self.word, word):
                                m.d.sync += upcoming[field.name].eq(value)
                with m.If(count == HEADER_WORDS):
                    m.next = "check"

            with m.State("check"):
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
        m.d.comb += self.stream_layer.eq(upcoming)

        wrong_field = Signal(8)
        with m.Switch(wrong_word):
            for word in range(HEADER_WORDS):
                with m.Case(word):
                    for place, (index, _) in reversed(list(enumerate(self._checks(self.word, word)))):
                        with m.If(wrong_checks[place]):
                            m.d.comb += wrong_field.eq(index)

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
                        m.d.sync += layer.eq(upcoming)
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

    def _bad(self, m: Module, count: Signal) -> Signal:
        """Checks of a header word that fail, two cycles after its address.

        They pass a register, which lies behind them or, in an array that is pipelined, before them: memory is slow.
        """
        read, lag = self.word, 0
        if self.spec.pipelined:
            read, lag = registered(m, "checked", self.word), 1
        checks = [Cat(refused for _, refused in self._checks(read, word)) for word in range(HEADER_WORDS)]
        found, bad = Signal(max(map(len, checks))), Signal(max(map(len, checks)))
        with m.Switch(count):
            for word, refused in enumerate(checks):
                with m.Case(word + 1 + lag):
                    m.d.comb += found.eq(refused)
        m.d["comb" if lag else "sync"] += bad.eq(found)
        return bad

    def _fields(self, read: Value, word: int) -> list[tuple[int, Field, Value]]:
        """Number and description of the fields of a header word, and their bits of what was read."""
        found = []
        for index, field in enumerate(descriptor_fields(self.spec)):
            place, bit = FIELD_PLACES[field.name]
            if place == word:
                value = read[bit : bit + field.bits]
                found.append((index, field, value.as_signed() if field.signed else value))
        return found

    def _checks(self, read: Value, word: int) -> list[tuple[int, Value]]:
        """Number of each field of a header word that has bounds, and whether it is out of them."""
        found = []
        for index, field, value in self._fields(read, word):
            lowest = -(1 << (field.bits - 1)) if field.signed else 0
            highest = (1 << (field.bits - field.signed)) - 1
            checks = [value < field.low] if field.low > lowest else []
            checks += [value > field.high] if field.high < highest else []
            if checks:
                found.append((index, Cat(*checks).any()))
        return found
