"""The accelerator: memories, fetch, array, drain and host port."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.activations import ActivationMemory
from bitwright.hw.array import PEArray
from bitwright.hw.codebook import CodebookStreamer
from bitwright.hw.drain import Drain, threshold_layout, tile_layout
from bitwright.hw.fetch import WindowLoader, entry_layout
from bitwright.hw.host import HostPort, host_signature
from bitwright.hw.isa import BUS_WIDTH, COUNTERS, FLAG_COEFFICIENTS, FLAG_OFFSET, ArraySpec
from bitwright.hw.issuer import TileIssuer, operation_layout
from bitwright.hw.popcount import Fabric, popcount
from bitwright.hw.registers import registered
from bitwright.hw.schedule import PassScheduler
from bitwright.hw.sequencer import LayerSequencer
from bitwright.hw.streamer import WeightStreamer

PROBE_WRITES = 4
"""Writes that the probe can show in a cycle: one for each plane that the drain writes at once."""


def probe_signature() -> wiring.Signature:
    """What verification watches, cycle by cycle; it costs nothing where it is left open.

    ``cycle`` numbers the cycles of the program from 0; the other counters include this cycle's events.
    ``layer_start`` and ``layer_done`` mark the first and last cycle of a layer, by the number of its descriptor.
    ``write`` marks writes of the bits of a row tile, at a position, or, with ``write_raw``, of a raw result, at an
    address. ``read``, ``issue``, ``empty``, ``stall``, ``compare`` show what loader, issuer and drain do.
    """
    flags = ("layer_start", "layer_done", "write_raw", "read", "issue", "empty", "stall", "compare")
    return wiring.Signature(
        {
            "cycle": Out(32),
            "layer": Out(16),
            **dict.fromkeys(flags, Out(1)),
            "write": Out(PROBE_WRITES),
            "write_position": Out(32).array(PROBE_WRITES),
            "write_data": Out(64).array(PROBE_WRITES),
            **{name: Out(32) for name in COUNTERS if name != "cycles"},
        }
    )


def accelerator_signature(spec: ArraySpec) -> wiring.Signature:
    """Ports of the accelerator, but clock and reset."""
    return wiring.Signature(
        {
            "host": In(host_signature(spec)),
            "weights": In(stream.Signature(BUS_WIDTH)),
            "interrupt": Out(1),
            "probe": Out(probe_signature()),
        }
    )


class Accelerator(wiring.Component):
    """The whole machine. See :mod:`bitwright.hw.isa` for what it executes.

    Parameters
    ----------
    spec
        Array parameters.
    fabric
        What the PEs are built for; the portable form is what Verilog is emitted of.

    Members
    -------
    host
        Registers and memories: :class:`bitwright.hw.host.HostPort`.
    weights : ``In(stream.Signature(32))``
        Weights of layers that stream them: :attr:`bitwright.hw.program.Program.stream`. Never ready without
        ``weight_stream``.
    interrupt : ``Out(1)``
        A program has ended, or was stopped by an error.
    probe
        For verification: :func:`probe_signature`.
    """

    host: Any
    weights: stream.Interface
    interrupt: Signal
    probe: Any

    def __init__(self, spec: ArraySpec, fabric: Fabric = "portable") -> None:
        self.spec = spec
        self.fabric: Fabric = fabric
        super().__init__(accelerator_signature(spec))

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived = self.spec, self.spec.derived
        m = Module()
        m.submodules.host = host = HostPort(spec)
        wiring.connect(m, wiring.flipped(self.host), host.bus)

        # Whatever holds state of a run starts afresh with each.
        fresh = ResetInserter(host.clear)
        sequencer, loader, scheduler, issuer = (
            LayerSequencer(spec),
            WindowLoader(spec),
            PassScheduler(spec),
            TileIssuer(spec),
        )
        array, drain = PEArray(spec, self.fabric), Drain(spec)
        m.submodules.sequencer = fresh(sequencer)
        m.submodules.loader = fresh(loader)
        m.submodules.scheduler = fresh(scheduler)
        m.submodules.issuer = fresh(issuer)
        m.submodules.array = array
        m.submodules.drain = fresh(drain)

        # Descriptors: with prefetch, headers and passes are read at the same time.
        m.submodules.descriptors = descriptors = memory.Memory(shape=32, depth=spec.descriptor_depth, init=[])
        header_read = descriptors.read_port()
        pass_read = descriptors.read_port() if spec.prefetch else header_read
        descriptor_write = descriptors.write_port()
        m.d.comb += [
            sequencer.word.eq(header_read.data),
            scheduler.word.eq(pass_read.data),
            descriptor_write.addr.eq(host.write_address),
            descriptor_write.data.eq(host.write_data),
            descriptor_write.en.eq(host.write_descriptor),
        ]
        if spec.prefetch:
            m.d.comb += [
                header_read.addr.eq(sequencer.address),
                pass_read.addr.eq(scheduler.address),
                pass_read.en.eq(scheduler.read),
            ]
        else:
            m.d.comb += [
                header_read.addr.eq(Mux(sequencer.fetching, sequencer.address, scheduler.address)),
                header_read.en.eq(sequencer.fetching | scheduler.read),
            ]

        # Control.
        layer = sequencer.layer
        m.d.comb += [
            sequencer.start.eq(host.start),
            sequencer.layer_done.eq(drain.layer_done),
            sequencer.overflow.eq(loader.overflow),
            loader.layer.eq(layer),
            loader.start.eq(sequencer.run),
            loader.issuing.eq(issuer.buffer),
            loader.take.eq(issuer.take),
            loader.release.eq(issuer.release),
            scheduler.layer.eq(layer),
            scheduler.pass_address.eq(sequencer.pass_address),
            scheduler.start.eq(sequencer.run),
            scheduler.loaded_planes.eq(loader.loaded_planes),
            loader.length_plane.eq(scheduler.length_plane),
            scheduler.length.eq(loader.length),
            scheduler.group_ready.eq(loader.ready),
            scheduler.group_buffer.eq(~issuer.buffer),
            scheduler.take.eq(issuer.take),
            scheduler.entry_buffer.eq(issuer.entry_buffer),
            scheduler.entry_index.eq(issuer.entry_index),
            scheduler.entry_read.eq(issuer.entry_read),
            issuer.layer.eq(layer),
            issuer.start.eq(sequencer.run),
            issuer.group.eq(loader.group),
            issuer.group_ready.eq(loader.ready & scheduler.complete),
            issuer.count.eq(scheduler.count),
            issuer.skipped.eq(scheduler.skipped),
            issuer.first.eq(scheduler.first),
            issuer.entry.eq(scheduler.entry),
            drain.layer.eq(layer),
        ]

        # Activations.
        m.submodules.activations = activations = ActivationMemory(spec)
        m.d.comb += [
            activations.read.eq(loader.read),
            activations.read_position.eq(loader.read_position),
            loader.read_data.eq(activations.read_data),
            activations.write.eq(drain.write),
            activations.write_position.eq(drain.write_position),
            activations.write_data.eq(drain.write_data),
            activations.write_granules.eq(drain.write_granules),
            activations.host_write.eq(host.write_activation),
            activations.host_read.eq(host.read_activation),
            activations.host_address.eq(Mux(host.read_activation, host.activation_address, host.write_address)),
            activations.host_data.eq(host.activation_word),
            host.activation_data.eq(activations.host_word),
        ]

        # Cycle 0 of an operation: its list entry is looked up.
        issued = issuer.operation
        m.d.comb += [
            loader.list_address.eq(issued.list_address),
            loader.list_index.eq(issued.list_index),
        ]

        # Cycle 1: addresses.
        operation = Signal(operation_layout(spec))
        m.d.sync += [operation.eq(issued), operation.valid.eq(issued.valid & ~host.clear)]
        entry = loader.entry
        for stage in range(derived.way_stages):  # memory is slow
            operation_next = Signal(operation_layout(spec), name=f"operation_{stage}")
            m.d.sync += [operation_next.eq(operation), operation_next.valid.eq(operation.valid & ~host.clear)]
            operation = operation_next
            entry = data.View(entry_layout(spec), registered(m, f"entry_{stage}", Value.cast(entry)))
        computes, active = Signal(), Signal(spec.columns)
        weight_address = Signal(derived.weight_address_width)
        window_address = Signal(derived.window_address_width + 1)
        m.d.comb += [
            computes.eq(operation.valid & ~operation.empty),
            active.eq(entry.active & computes.replicate(spec.columns)),
            weight_address.eq(operation.weight_address + entry.word),
            window_address.eq(Cat((operation.base + entry.word)[: derived.window_address_width], operation.buffer)),
        ]

        # Cycle 2: the addresses reach memories all over the chip. Cycle 3: operands.
        read_active, read_any = Signal(spec.columns), Signal()
        read_weight, read_window = Signal.like(weight_address), Signal.like(window_address)
        read_coefficient = Signal.like(operation.coefficient_address)
        control, residual = Signal.like(array.control), Signal()
        active_operand, any_operand, control_operand, residual_operand = (
            Signal.like(read_active),
            Signal.like(read_any),
            Signal.like(control),
            Signal.like(residual),
        )
        m.d.sync += [
            read_active.eq(active),
            read_any.eq(active.any()),
            read_weight.eq(weight_address),
            read_window.eq(window_address),
            read_coefficient.eq(operation.coefficient_address),
            control.valid.eq(operation.valid),
            control.clear.eq(operation.clear),
            control.double.eq(operation.double),
            control.negate.eq(operation.negate),
            residual.eq(operation.residual),
            active_operand.eq(read_active),
            any_operand.eq(read_any),
            control_operand.eq(control),
            residual_operand.eq(residual),
        ]
        m.d.comb += [
            array.active.eq(active_operand),
            array.some_active.eq(any_operand),
            array.control.eq(control_operand),
            array.residual.eq(residual_operand),
        ]
        for column in range(spec.columns):
            m.submodules[f"window_{column}"] = window = memory.Memory(
                shape=spec.lanes, depth=2 * spec.window_depth, init=[]
            )
            window_read, window_write = window.read_port(), window.write_port()
            m.d.comb += [
                window_read.addr.eq(read_window),
                window_read.en.eq(read_active[column]),
                array.activations[column].eq(window_read.data),
                window_write.addr.eq(loader.window_write_address),
                window_write.data.eq(loader.window_write_data[column]),
                window_write.en.eq(loader.window_write[column]),
            ]
        self._connect_weights(m, array, host, sequencer, read_weight, read_any)
        if spec.coefficient_bits:
            self._connect_coefficients(m, array, host, sequencer.layer, read_coefficient)

        # The tile follows its last operation to the accumulators. (Without resets it takes more cells of an iCE40.)
        loading = Signal(1)
        tile = Signal(tile_layout(spec))
        m.d.comb += [loading.eq(issued.valid & issued.last), tile.eq(issuer.tile)]
        for stage in range(derived.issue_to_load):
            loading_next, tile_next = (
                Signal(1, name=f"loading_{stage}"),
                Signal(tile_layout(spec), name=f"tile_{stage}", reset_less=spec.pipelined),
            )
            m.d.sync += [loading_next.eq(loading & ~host.clear), tile_next.eq(tile)]
            loading, tile = loading_next, tile_next
        m.d.comb += [
            array.load.eq(loading),
            array.shift.eq(drain.shift),
            drain.load.eq(loading),
            drain.tile.eq(tile),
            drain.sums.eq(array.sums),
            drain.column_sum.eq(array.column_sum),
        ]

        # Thresholds and results.
        for row in range(spec.rows):
            m.submodules[f"thresholds_{row}"] = thresholds = memory.Memory(
                shape=threshold_layout(spec), depth=spec.threshold_depth // 2, init=[]
            )
            threshold_write = thresholds.write_port(granularity=1)
            written = host.write_threshold & (host.write_row == row)
            address, value = host.write_address[: derived.threshold_address_width], host.write_data
            value = value[: spec.accumulator_width]
            if spec.pipelined:
                address, value, written = _near(m, address, value, written, f"threshold_{row}")
            m.d.comb += [
                threshold_write.addr.eq(address[1:]),
                threshold_write.data[0].eq(value),
                threshold_write.data[1].eq(value),
                threshold_write.en.eq(Mux(written, 1 << address[0], 0)),
            ]
            for comparator in range(spec.drain_planes):
                threshold_read = thresholds.read_port()
                m.d.comb += [
                    threshold_read.addr.eq(drain.threshold_address[comparator][row]),
                    drain.thresholds[comparator][row].eq(threshold_read.data),
                ]
        m.submodules.results = results = memory.Memory(shape=spec.accumulator_width, depth=spec.result_depth, init=[])
        result_read, result_write = results.read_port(), results.write_port()
        address, value, written = Value.cast(drain.write_address), Value.cast(drain.write_value), drain.write_raw
        if spec.pipelined:
            address, value, written = _near(m, address, value, written, "result")
        m.d.comb += [
            result_read.addr.eq(host.result_address),
            host.result_data.eq(result_read.data.as_signed()),
            result_write.addr.eq(address),
            result_write.data.eq(value),
            result_write.en.eq(written),
        ]

        # Counters.
        m.d.comb += [
            host.busy.eq(sequencer.busy),
            host.finished.eq(sequencer.finished),
            host.error.eq(sequencer.error),
            host.error_field.eq(sequencer.error_field),
            host.layer_index.eq(sequencer.layer_index),
            self.interrupt.eq(host.interrupt),
        ]
        valid = registered(m, "valid", issuer.tile.valid, 1 + derived.way_stages)
        events = {
            "cycles": sequencer.busy,
            "busy": issued.valid,
            "stalls": issuer.stalled,
            "computed": popcount(m, active, "computed"),
            # What an array cannot do takes no counter.
            "gated": Const(0)
            if spec.zero_skip == "off"
            else popcount(m, valid & ~active & computes.replicate(spec.columns), "gated"),
            "skipped": issuer.tile_skipped if spec.zero_skip == "skip" else Const(0),
            "compares": drain.comparing,
            "writes": popcount(m, drain.write, "writes") + drain.write_raw,
            "loads": loader.loading,
        }
        probe = self.probe
        for name in COUNTERS:
            m.d.comb += host.events[name].eq(events[name])
            if name != "cycles":
                m.d.comb += getattr(probe, name).eq(host.totals[name])
        m.d.comb += [
            probe.cycle.eq(host.counters.cycles),
            probe.layer.eq(sequencer.layer_index),
            probe.layer_start.eq(sequencer.layer_start),
            probe.layer_done.eq(drain.layer_done),
            probe.read.eq(loader.loading),
            probe.issue.eq(issued.valid),
            probe.empty.eq(issued.empty),
            probe.stall.eq(issuer.stalled),
            probe.compare.eq(drain.comparing),
            probe.write.eq(drain.write | drain.write_raw),
            probe.write_raw.eq(drain.write_raw),
        ]
        for plane in range(spec.drain_planes):
            m.d.comb += [
                probe.write_position[plane].eq(drain.write_position[plane]),
                probe.write_data[plane].eq(drain.write_data[plane]),
            ]
        with m.If(drain.write_raw):
            m.d.comb += [
                probe.write_position[0].eq(drain.write_address),
                probe.write_data[0].eq(drain.write_value.as_unsigned()),
            ]
        return m

    def _connect_weights(
        self,
        m: Module,
        array: PEArray,
        host: HostPort,
        sequencer: LayerSequencer,
        address: Signal,
        read: Value,
    ) -> None:
        """Weight memories: written by the host between runs, or from the stream during them."""
        spec, derived = self.spec, self.spec.derived
        write_address, write_word, write_row, write = (
            Value.cast(signal) for signal in (host.write_address, host.write_word, host.write_row, host.write_weight)
        )
        if spec.weight_stream:
            streamer = CodebookStreamer(spec) if spec.codebook_bits else WeightStreamer(spec)
            m.submodules.streamer = ResetInserter(host.clear)(streamer)
            wiring.connect(m, wiring.flipped(self.weights), streamer.beats)
            m.d.comb += [
                streamer.start.eq(sequencer.stream_start),
                streamer.layer.eq(sequencer.stream_layer),
                sequencer.stream_done.eq(streamer.done),
            ]
            write_address = Mux(host.busy, streamer.write_address, write_address)
            write_word = Mux(host.busy, streamer.write_word, write_word)
            write_row = Mux(host.busy, streamer.write_row, write_row)
            write = write | streamer.write
            if not spec.pipelined:
                width = derived.weight_address_width
                place = Cat(write_address[:width], write_row)
                place, write_word, write = _near(m, place, write_word, write, "weight_write")
                write_address, write_row = place[:width], place[width:]
        for row in range(spec.rows):
            row_address, row_word = write_address[: derived.weight_address_width], write_word
            row_write: Value = write & (write_row == row)
            if spec.pipelined:
                row_address, row_word, row_write = _near(m, row_address, row_word, row_write, f"weight_{row}")
            m.submodules[f"weights_{row}"] = weights = memory.Memory(shape=spec.lanes, depth=spec.weight_depth, init=[])
            weight_read, weight_write = weights.read_port(), weights.write_port()
            m.d.comb += [
                weight_read.addr.eq(address),
                weight_read.en.eq(read),
                array.weights[row].eq(weight_read.data),
                weight_write.addr.eq(row_address),
                weight_write.data.eq(row_word),
                weight_write.en.eq(row_write),
            ]

    def _connect_coefficients(
        self, m: Module, array: PEArray, host: HostPort, layer: "data.View[Any]", address: Signal
    ) -> None:
        """Coefficient memories, read in step with the weights; 1 in layers without coefficients."""
        spec = self.spec
        used = Signal()
        m.d.comb += used.eq((layer.flags & FLAG_COEFFICIENTS).any())
        m.d.comb += array.control.bipolar.eq(used & (layer.flags & FLAG_OFFSET).any())
        for row in range(spec.rows):
            m.submodules[f"coefficients_{row}"] = coefficients = memory.Memory(
                shape=spec.coefficient_bits, depth=spec.coefficient_depth, init=[]
            )
            read, write = coefficients.read_port(), coefficients.write_port()
            m.d.comb += [
                read.addr.eq(address),
                array.coefficients[row].eq(Mux(used, read.data.as_signed(), 1)),
                write.addr.eq(host.write_address),
                write.data.eq(host.write_data),
                write.en.eq(host.write_coefficient & (host.write_row == row)),
            ]


def _near(m: Module, address: Value, word: Value, write: Value, name: str) -> tuple[Value, Value, Value]:
    """A write a cycle later, from registers near its memory: memories are all over the chip."""
    late_address = Signal(len(address), name=f"{name}_address", reset_less=True)
    late_word = Signal(len(word), name=f"{name}_word", reset_less=True)
    late_write = Signal(name=f"{name}_write")
    m.d.sync += late_write.eq(write)
    with m.If(write):  # registers of memories that are not written keep still
        m.d.sync += [late_address.eq(address), late_word.eq(word)]
    return late_address, late_word, late_write
