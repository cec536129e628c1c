"""The accelerator: memories, fetch, array, drain and host port."""

import math
from typing import Any

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.array import PEArray
from bitwright.hw.drain import Drain, threshold_layout
from bitwright.hw.fetch import WindowScanner
from bitwright.hw.host import HostPort, host_signature
from bitwright.hw.isa import COUNTERS, ISSUE_TO_LOAD, ArraySpec
from bitwright.hw.popcount import popcount
from bitwright.hw.sequencer import LayerSequencer, TileIssuer, operation_layout, tile_layout


def probe_signature(spec: ArraySpec) -> wiring.Signature:
    """What verification watches, cycle by cycle; it costs nothing where it is left open.

    ``cycle`` numbers the cycles of the program from 0; the other counters include this cycle's events.
    ``layer_start`` and ``layer_done`` mark the first and last cycle of a layer. ``write`` marks a write: of the bits
    of a row tile (``write_slot`` in its word), or of a raw result.
    """
    return wiring.Signature(
        {
            "cycle": Out(32),
            "layer": Out(16),
            "layer_start": Out(1),
            "layer_done": Out(1),
            "write": Out(1),
            "write_raw": Out(1),
            "write_address": Out(16),
            "write_slot": Out(8),
            "write_data": Out(max(spec.rows, spec.accumulator_width)),
            **{name: Out(32) for name in COUNTERS if name != "cycles"},
        }
    )


class ColumnMemory(wiring.Component):
    """A column's copy of the activation memory, with a zero flag for each word.

    Parameters
    ----------
    spec
        Array parameters. Without zero skip there are no flags.

    Members
    -------
    read_address, read_enable, read_data
        Words, one cycle later.
    flag_address, flag
        Whether a word has a bit set, one cycle later.
    write_address, write_data, write_lanes, write_flag
        Lanes to write, in units of ``granularity``, and the word's new flag.
    """

    read_address: Signal
    read_enable: Signal
    read_data: Signal
    flag_address: Signal
    flag: Signal
    write_address: Signal
    write_data: Signal
    write_lanes: Signal
    write_flag: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        self.granularity = write_granularity(spec)
        address = spec.derived.activation_address_width
        super().__init__(
            {
                "read_address": In(address),
                "read_enable": In(1),
                "read_data": Out(spec.lanes),
                "flag_address": In(address),
                "flag": Out(1),
                "write_address": In(address),
                "write_data": In(spec.lanes),
                "write_lanes": In(spec.lanes // self.granularity),
                "write_flag": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec = self.spec
        m = Module()
        m.submodules.words = words = memory.Memory(shape=spec.lanes, depth=spec.activation_depth, init=[])
        read, write = words.read_port(), words.write_port(granularity=self.granularity)
        m.d.comb += [
            read.addr.eq(self.read_address),
            read.en.eq(self.read_enable),
            self.read_data.eq(read.data),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            write.en.eq(self.write_lanes),
        ]
        if spec.zero_skip != "off":
            m.submodules.flags = flags = memory.Memory(shape=1, depth=spec.activation_depth, init=[])
            flag_read, flag_write = flags.read_port(), flags.write_port()
            m.d.comb += [
                flag_read.addr.eq(self.flag_address),
                self.flag.eq(flag_read.data),
                flag_write.addr.eq(self.write_address),
                flag_write.data.eq(self.write_flag),
                flag_write.en.eq(self.write_lanes.any()),
            ]
        return m


def write_granularity(spec: ArraySpec) -> int:
    """Lanes that a write enable of the activation memory covers: slots start at multiples of ``rows``."""
    return math.gcd(spec.rows, spec.lanes)


def accelerator_signature(spec: ArraySpec) -> wiring.Signature:
    """Ports of the accelerator, but clock and reset."""
    return wiring.Signature(
        {"host": In(host_signature(spec)), "interrupt": Out(1), "probe": Out(probe_signature(spec))}
    )


class Accelerator(wiring.Component):
    """The whole machine. See :mod:`bitwright.hw.isa` for what it executes.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    host
        Registers and memories: :class:`bitwright.hw.host.HostPort`.
    interrupt : ``Out(1)``
        A program has ended, or was stopped by an error.
    probe
        For verification: :func:`probe_signature`.
    """

    host: Any
    interrupt: Signal
    probe: Any

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(accelerator_signature(spec))

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, derived = self.spec, self.spec.derived
        m = Module()
        m.submodules.host = host = HostPort(spec)
        wiring.connect(m, wiring.flipped(self.host), host.bus)

        # Whatever holds state of a run starts afresh with each.
        fresh = ResetInserter(host.clear)
        sequencer, scanner, issuer = LayerSequencer(spec), WindowScanner(spec), TileIssuer(spec)
        array, drain = PEArray(spec), Drain(spec)
        m.submodules.sequencer = fresh(sequencer)
        m.submodules.scanner = fresh(scanner)
        m.submodules.issuer = fresh(issuer)
        m.submodules.array = array
        m.submodules.drain = fresh(drain)

        # Descriptors.
        m.submodules.descriptors = descriptors = memory.Memory(shape=32, depth=spec.descriptor_depth, init=[])
        descriptor_read, descriptor_write = descriptors.read_port(), descriptors.write_port()
        m.d.comb += [
            descriptor_read.addr.eq(sequencer.address),
            descriptor_read.en.eq(sequencer.read),
            sequencer.word.eq(descriptor_read.data),
            descriptor_write.addr.eq(host.write_address),
            descriptor_write.data.eq(host.write_data),
            descriptor_write.en.eq(host.write_descriptor),
        ]

        # Control.
        layer = sequencer.layer
        wiring.connect(m, sequencer.passes, issuer.passes)
        m.d.comb += [
            sequencer.start.eq(host.start),
            sequencer.layer_done.eq(drain.layer_done),
            sequencer.overflow.eq(scanner.overflow),
            scanner.layer.eq(layer),
            scanner.start.eq(sequencer.run),
            scanner.take.eq(issuer.take),
            issuer.layer.eq(layer),
            issuer.start.eq(sequencer.run),
            issuer.group.eq(scanner.group),
            issuer.group_ready.eq(scanner.ready),
            issuer.group_buffer.eq(scanner.buffer),
            drain.layer.eq(layer),
        ]

        # Cycle 0 of an operation: its entry is looked up.
        issued = issuer.operation
        m.d.comb += [
            scanner.list_buffer.eq(issued.list_buffer),
            scanner.list_plane.eq(issued.list_plane),
            scanner.list_index.eq(issued.list_index),
        ]

        # Cycle 1: addresses. The columns' addresses of a group are copied one cycle after it is taken, when the
        # previous group's last operation is here.
        operation = Signal(operation_layout(spec))
        taken = Signal()
        addresses = Signal.like(scanner.addresses)
        m.d.sync += [operation.eq(issued), operation.valid.eq(issued.valid & ~host.clear), taken.eq(issuer.take)]
        with m.If(taken):
            m.d.sync += addresses.eq(scanner.addresses)
        computes, active = Signal(), Signal(spec.columns)
        weight_address = Signal(derived.weight_address_width)
        m.d.comb += [
            computes.eq(operation.valid & ~operation.empty),
            active.eq(scanner.entry.active & computes.replicate(spec.columns)),
            weight_address.eq(operation.weight_address + scanner.entry.word),
        ]
        active_operand = Signal(spec.columns)
        control_operand = Signal.like(array.control)
        m.d.sync += [
            active_operand.eq(active),
            control_operand.valid.eq(operation.valid),
            control_operand.clear.eq(operation.clear),
            control_operand.double.eq(operation.double),
            control_operand.negate.eq(operation.negate),
        ]

        # Cycle 2: operands.
        m.d.comb += [array.active.eq(active_operand), array.control.eq(control_operand)]
        for column in range(spec.columns):
            m.submodules[f"column_{column}"] = store = ColumnMemory(spec)
            fetch = addresses[column] + scanner.entry.offset
            if column == 0:  # the host reads this copy
                m.d.comb += [
                    store.read_address.eq(Mux(host.read_activation, host.activation_address, fetch)),
                    store.read_enable.eq(active[column] | host.read_activation),
                    host.activation_data.eq(store.read_data),
                ]
            else:
                m.d.comb += [store.read_address.eq(fetch), store.read_enable.eq(active[column])]
            m.d.comb += [
                array.activations[column].eq(store.read_data),
                store.flag_address.eq(scanner.flag_addresses[column]),
                scanner.nonzero[column].eq(store.flag),
            ]
            self._connect_write(m, store, host, drain)
        for row in range(spec.rows):
            m.submodules[f"weights_{row}"] = weights = memory.Memory(shape=spec.lanes, depth=spec.weight_depth, init=[])
            weight_read, weight_write = weights.read_port(), weights.write_port()
            m.d.comb += [
                weight_read.addr.eq(weight_address),
                weight_read.en.eq(computes),
                array.weights[row].eq(weight_read.data),
                weight_write.addr.eq(host.write_address),
                weight_write.data.eq(host.write_word),
                weight_write.en.eq(host.write_weight & (host.write_row == row)),
            ]

        # The tile follows its last operation to the accumulators.
        loading = Signal(1)
        tile = Signal(tile_layout(spec))
        m.d.comb += [loading.eq(issued.valid & issued.last), tile.eq(issuer.tile)]
        for stage in range(ISSUE_TO_LOAD):
            loading_next, tile_next = (
                Signal(1, name=f"loading_{stage}"),
                Signal(tile_layout(spec), name=f"tile_{stage}"),
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
                shape=threshold_layout(spec), depth=spec.threshold_depth, init=[]
            )
            threshold_read, threshold_write = thresholds.read_port(), thresholds.write_port()
            m.d.comb += [
                threshold_read.addr.eq(drain.threshold_address[row]),
                drain.thresholds[row].eq(threshold_read.data),
                threshold_write.addr.eq(host.write_address),
                threshold_write.data.eq(host.write_data),
                threshold_write.en.eq(host.write_threshold & (host.write_row == row)),
            ]
        m.submodules.results = results = memory.Memory(shape=spec.accumulator_width, depth=spec.result_depth, init=[])
        result_read, result_write = results.read_port(), results.write_port()
        m.d.comb += [
            result_read.addr.eq(host.result_address),
            host.result_data.eq(result_read.data.as_signed()),
            result_write.addr.eq(drain.write_address),
            result_write.data.eq(drain.write_value),
            result_write.en.eq(drain.write & drain.write_raw),
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
        valid = Signal(spec.columns)
        m.d.sync += valid.eq(issuer.tile.valid)
        events = {
            "cycles": sequencer.busy,
            "busy": issued.valid,
            "stalls": issuer.stalled,
            "computed": popcount(m, active, "computed"),
            "gated": popcount(m, valid & ~active & computes.replicate(spec.columns), "gated"),
            "skipped": Mux(issued.valid & issued.pass_last, issuer.skipped, 0),
            "compares": drain.comparing,
            "writes": drain.write,
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
            probe.write.eq(drain.write),
            probe.write_raw.eq(drain.write_raw),
            probe.write_address.eq(drain.write_address),
            probe.write_slot.eq(Mux(drain.write_raw, 0, drain.write_slot)),
            probe.write_data.eq(Mux(drain.write_raw, drain.write_value.as_unsigned(), drain.write_bits)),
        ]
        return m

    def _connect_write(self, m: Module, store: ColumnMemory, host: HostPort, drain: Drain) -> None:
        """Write port of a column: the drain's row tile while running, else the host's whole word."""
        spec = self.spec
        units = spec.rows // store.granularity
        slots = spec.derived.slots
        chosen = [drain.write_slot == slot for slot in range(slots)]
        tile_data = Cat(Mux(chosen[slot], drain.write_bits, 0)[: spec.rows] for slot in range(slots))
        # The first tile of a word clears the rest of it: lanes that no tile writes must not keep what was there before.
        enabled = Cat((chosen[0] | chosen[slot]).replicate(units) for slot in range(slots))
        rest = chosen[0].replicate(len(store.write_lanes) - slots * units)
        tile_lanes = Cat(enabled, rest) & (drain.write & ~drain.write_raw).replicate(len(store.write_lanes))
        with m.If(host.busy):
            m.d.comb += [
                store.write_address.eq(drain.write_address),
                store.write_data.eq(tile_data),
                store.write_lanes.eq(tile_lanes),
                store.write_flag.eq(drain.write_flag),
            ]
        with m.Else():
            m.d.comb += [
                store.write_address.eq(host.write_address),
                store.write_data.eq(host.write_word),
                store.write_lanes.eq(host.write_activation.replicate(len(store.write_lanes))),
                store.write_flag.eq(host.write_word.any()),
            ]
