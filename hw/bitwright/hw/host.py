"""The host's view of the accelerator: registers, counters and memory windows on one simple bus."""

from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.isa import (
    BUS_WIDTH,
    COUNTERS,
    IDENTIFIER,
    REGISTER_BITS,
    VERSION,
    ArraySpec,
    ErrorCode,
    Region,
    Register,
)
from bitwright.hw.schedule import skipped_width


def host_signature(spec: ArraySpec) -> wiring.Signature:
    """Host bus, seen by the host. It addresses 32-bit words and never waits.

    A write is taken in each cycle with ``write``; a read in each cycle with ``read`` gives ``read_data`` and
    ``read_valid`` ``READ_LATENCY`` cycles later. Requests act in order.
    """
    return wiring.Signature(
        {
            "address": Out(spec.derived.bus_address_width),
            "write_data": Out(BUS_WIDTH),
            "write": Out(1),
            "read": Out(1),
            "read_data": In(BUS_WIDTH),
            "read_valid": In(1),
        }
    )


def event_layout(spec: ArraySpec) -> data.StructLayout:
    """How often each counted event happens in one cycle."""
    widths = dict.fromkeys(COUNTERS, 1)
    widths["computed"] = widths["gated"] = spec.columns.bit_length()
    widths["skipped"] = skipped_width(spec)
    widths["writes"] = spec.drain_planes.bit_length()
    return data.StructLayout(widths)


def counter_layout(spec: ArraySpec) -> data.StructLayout:
    """All counters."""
    return data.StructLayout(dict.fromkeys(COUNTERS, spec.counter_width))


def _place(register: Register, **values: Value) -> Value:
    """Content of a register: each field at its bits."""
    places = REGISTER_BITS[register]
    assert values.keys() == places.keys()
    placed = [value.shift_left(places[name][0]) for name, value in values.items()]
    return reduce(or_, placed)


class HostPort(wiring.Component):
    """Decode the host bus, keep the registers and counters, gather memory words from bus words.

    A memory word of ``lanes`` bits is written chunk by chunk, least significant first, into a staging register; its
    last chunk commits it. Memories take writes only between runs: a write during a run is dropped and reported as an
    error.

    Members
    -------
    bus
        :func:`host_signature`.
    start, clear : ``Out(1)``
        Start a program; put everything but memories and registers into its initial state, one cycle before a start,
        when the host stops a run, and after an error.
    write_address, write_row, write_data, write_word
        Address in a memory, row's bank, 32-bit data, word with its last chunk.
    activation_word : ``Out(lanes)``
        That word, when it is of the activation memory.
    write_descriptor, write_weight, write_threshold, write_coefficient, write_activation : ``Out(1)``
        Write to that memory.
    read_activation, activation_address, activation_data, result_address, result_data
        Memories that the host reads; data comes one cycle later.
    busy, finished, error, error_field, layer_index
        From the sequencer.
    events : ``In(event_layout(spec))``
        Events of this cycle.
    counters : ``Out(counter_layout(spec))``, totals : ``Out(counter_layout(spec))``
        Counters before and after this cycle's events. What the host reads is a cycle behind.
    interrupt : ``Out(1)``
        The last program has ended.
    """

    bus: Any
    start: Signal
    clear: Signal
    write_address: Signal
    write_row: Signal
    write_data: Signal
    write_word: Signal
    activation_word: Signal
    write_descriptor: Signal
    write_weight: Signal
    write_threshold: Signal
    write_coefficient: Signal
    write_activation: Signal
    read_activation: Signal
    activation_address: Signal
    activation_data: Signal
    result_address: Signal
    result_data: Signal
    busy: Signal
    finished: Signal
    error: Signal
    error_field: Signal
    layer_index: Signal
    events: "data.View[Any]"
    counters: "data.View[Any]"
    totals: "data.View[Any]"
    interrupt: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        derived = spec.derived
        super().__init__(
            {
                "bus": In(host_signature(spec)),
                "start": Out(1),
                "clear": Out(1),
                "write_address": Out(16),
                "write_row": Out(8),
                "write_data": Out(BUS_WIDTH),
                "write_word": Out(spec.lanes),
                "activation_word": Out(spec.lanes),
                "write_descriptor": Out(1),
                "write_weight": Out(1),
                "write_threshold": Out(1),
                "write_coefficient": Out(1),
                "write_activation": Out(1),
                "read_activation": Out(1),
                "activation_address": Out(derived.activation_address_width),
                "activation_data": In(spec.lanes),
                "result_address": Out(derived.result_address_width),
                "result_data": In(signed(BUS_WIDTH)),
                "busy": In(1),
                "finished": In(1),
                "error": In(3),
                "error_field": In(8),
                "layer_index": In(16),
                "events": In(event_layout(spec)),
                "counters": Out(counter_layout(spec)),
                "totals": Out(counter_layout(spec)),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived = self.spec, self.spec.derived
        m = Module()

        # The request, one cycle later: the bus ends at registers.
        address, value = Signal(derived.bus_address_width), Signal(BUS_WIDTH)
        write, read = Signal(), Signal()
        m.d.sync += [
            address.eq(self.bus.address),
            value.eq(self.bus.write_data),
            write.eq(self.bus.write),
            read.eq(self.bus.read),
        ]
        chunk_width = (derived.chunks - 1).bit_length()
        region, chunk, word_address = self._decode(address)
        closed, dropped = Signal(), Signal()
        m.d.comb += closed.eq(self.busy | self.start)
        requested = self._decode(self.bus.address)[0]
        m.d.sync += [
            dropped.eq(self.bus.write & closed & (requested != Region.REGISTERS)),
            self.read_activation.eq(self.bus.read & ~self.busy & (requested == Region.ACTIVATIONS)),
        ]
        self._writes(m, value, closed)

        # Control, status and counters.
        control = write & (region == Region.REGISTERS) & (address[: derived.region_width] == Register.CONTROL)
        starting, stopping, failed, done = Signal(), Signal(), Signal(), Signal()
        started, stopped = Signal(), Signal()  # in the cycle before
        error, error_field = Signal(3), Signal(8)
        layer = Signal(16)
        m.d.comb += [
            stopping.eq(control & value[REGISTER_BITS[Register.CONTROL]["stop"][0]]),
            starting.eq(
                control
                & value[REGISTER_BITS[Register.CONTROL]["start"][0]]
                & ~stopping
                & ~(self.busy | started | self.start)
            ),
            self.interrupt.eq(done),
        ]
        m.d.sync += [
            started.eq(starting),
            stopped.eq(stopping),
            self.clear.eq(starting | stopping | failed),  # from a register: it goes everywhere
            self.start.eq(started & ~stopping),
            failed.eq(self.finished & (self.error != ErrorCode.NONE)),
        ]
        # The sequencer forgets its layer when it is cleared; the register keeps it until the next start or stop.
        with m.If(self.busy):
            m.d.sync += layer.eq(self.layer_index)
        # Events come late in their cycle: they are added in the next one.
        recent, kept = Signal(event_layout(spec)), Signal(counter_layout(spec))
        for name in COUNTERS:
            m.d.comb += [
                self.counters[name].eq(kept[name] + recent[name]),
                self.totals[name].eq(self.counters[name] + self.events[name]),
            ]
        with m.If(starting | stopping | stopped):
            m.d.sync += [recent.eq(0), kept.eq(0), done.eq(0), layer.eq(0)]
        with m.Else():
            m.d.sync += [recent.eq(self.events), kept.eq(self.counters)]
            with m.If(self.finished):
                m.d.sync += done.eq(1)
        with m.If(starting | stopping):
            m.d.sync += [error.eq(ErrorCode.NONE), error_field.eq(0)]
        with m.Elif(self.finished & ~stopped & (self.error != ErrorCode.NONE)):
            m.d.sync += [error.eq(self.error), error_field.eq(self.error_field)]
        with m.Elif(dropped & (error == ErrorCode.NONE)):  # a write right after a stop, too
            m.d.sync += error.eq(ErrorCode.BUSY)

        # Reads: one cycle for the memories, one for the choice.
        m.d.comb += [
            self.activation_address.eq(word_address),
            self.result_address.eq(address),
        ]
        registers = {
            Register.ID: IDENTIFIER,
            Register.VERSION: VERSION,
            Register.SPEC: spec.fingerprint,
            Register.STATUS: _place(Register.STATUS, busy=self.busy, done=done, error=error != ErrorCode.NONE),
            Register.ERROR: _place(Register.ERROR, code=error, field=error_field),
            Register.LAYER: layer,
        }
        first_counter = Register.CYCLES
        for index, name in enumerate(COUNTERS):
            registers[Register(first_counter + index)] = kept[name]
        register_data = Signal(BUS_WIDTH)
        with m.Switch(address[: derived.region_width]):
            for register, content in registers.items():
                with m.Case(register):
                    m.d.sync += register_data.eq(content)
            with m.Default():
                m.d.sync += register_data.eq(0)
        reading = Signal()
        region_read, chunk_read = Signal(3), Signal(max(chunk_width, 1))
        activation_valid = Signal()
        m.d.sync += [
            reading.eq(read),
            region_read.eq(region),
            chunk_read.eq(chunk),
            activation_valid.eq(self.read_activation),
            self.bus.read_valid.eq(reading),
        ]
        chunks = Array(self.activation_data.word_select(index, BUS_WIDTH) for index in range(derived.chunks))
        with m.Switch(region_read):
            with m.Case(Region.REGISTERS):
                m.d.sync += self.bus.read_data.eq(register_data)
            with m.Case(Region.ACTIVATIONS):
                m.d.sync += self.bus.read_data.eq(Mux(activation_valid, chunks[chunk_read], 0))
            with m.Case(Region.RESULTS):
                m.d.sync += self.bus.read_data.eq(self.result_data)
            with m.Default():
                m.d.sync += self.bus.read_data.eq(0)
        return m

    def _decode(self, address: Value) -> tuple[Value, Value, Value]:
        """Region, chunk of a memory word, and address of the word, of an address on the bus."""
        derived = self.spec.derived
        chunk_width = (derived.chunks - 1).bit_length()
        return address[derived.region_width :], address[:chunk_width], address[chunk_width : derived.region_width]

    def _writes(self, m: Module, value: Signal, closed: Signal) -> None:
        """Memory writes, from registers: they go all over the chip. ``value`` is the data in the cycle of the write."""
        spec, derived, bus = self.spec, self.spec.derived, self.bus
        region, chunk, word_address = self._decode(bus.address)
        local = bus.address[: derived.region_width]
        in_chunks = (region == Region.WEIGHTS) | (region == Region.ACTIVATIONS)
        staging = Signal(spec.lanes - BUS_WIDTH)
        with m.If(bus.write & in_chunks):
            for index in range(derived.chunks - 1):
                with m.If(chunk == index):
                    m.d.sync += staging.word_select(index, BUS_WIDTH).eq(bus.write_data)
        m.d.comb += [self.write_data.eq(value), self.write_word.eq(Cat(staging, value))]
        activation_value: Value = value
        if spec.pipelined:  # a register of its own, which may lie where these memories do
            activation_value = Signal.like(value, reset_less=True)
            with m.If(region == Region.ACTIVATIONS):
                m.d.sync += activation_value.eq(bus.write_data)
        m.d.comb += self.activation_word.eq(Cat(staging, activation_value))
        taken = bus.write & ~closed
        last = (chunk == derived.chunks - 1) if len(chunk) else 1
        m.d.sync += [
            self.write_descriptor.eq(taken & (region == Region.DESCRIPTORS)),
            self.write_threshold.eq(taken & (region == Region.THRESHOLDS)),
            self.write_coefficient.eq(taken & (region == Region.COEFFICIENTS)),
            self.write_weight.eq(taken & last & (region == Region.WEIGHTS)),
            self.write_activation.eq(taken & last & (region == Region.ACTIVATIONS)),
        ]
        banked = {Region.WEIGHTS: (word_address, derived.weight_address_width)}
        banked[Region.THRESHOLDS] = local, derived.threshold_address_width
        if spec.coefficient_bits:
            banked[Region.COEFFICIENTS] = local, derived.coefficient_address_width
        with m.Switch(region):
            for memory, (place, width) in banked.items():
                with m.Case(memory):
                    m.d.sync += [self.write_address.eq(place[:width]), self.write_row.eq(place[width:])]
            with m.Case(Region.ACTIVATIONS):
                m.d.sync += self.write_address.eq(word_address[: derived.activation_address_width])
            with m.Default():
                m.d.sync += self.write_address.eq(local[: derived.descriptor_address_width])
