"""Activation memory: copies of banks, read and written from any position."""

from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.isa import BANK, GRANULE, ArraySpec

BANK_GRANULES = BANK // GRANULE


class ActivationMemory(wiring.Component):
    """Copies of the activations, written alike and read each from a position of its own.

    A copy consists of banks of ``BANK`` lanes. The granules of position ``p`` lie in word ``p // granules``, bank
    ``p // BANK_GRANULES % banks``. As each bank has its own address, a read from ``p`` delivers the ``granules``
    granules from the start of its bank on: granule ``n`` of the memory appears at place ``n % granules``. Positions
    wrap around at the end of the memory.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    read : ``In(1)``, read_position : ``In(copies × position_width)``
        Read all copies.
    read_data : ``Out(copies × lanes)``
        What was read, one cycle later, until the next read; of copy 0, also what the host reads.
    write : ``In(drain_planes)``
        Write so many parts of row tiles at once. None of the banks of one, ``BANK`` lanes each, may be one of another.
        In an array that is pipelined they are written in the next cycle, in which the host must not write.
    write_position : ``In(drain_planes × position_width)``, write_data : ``In(drain_planes × rows)``
        First granule, and bits.
    write_granules : ``In(tile_granules)``
        Granules of the row tiles to write.
    host_write, host_read : ``In(1)``
        Write or read a whole word, in cycles without other writes or reads.
    host_address : ``In(activation_address_width)``, host_data : ``In(lanes)``
        The word, and what to write.
    host_word : ``Out(lanes)``
        What the host has read, one cycle later.
    """

    read: Signal
    read_position: "data.View[Any]"
    read_data: "data.View[Any]"
    write: Signal
    write_position: "data.View[Any]"
    write_data: "data.View[Any]"
    write_granules: Signal
    host_write: Signal
    host_read: Signal
    host_address: Signal
    host_data: Signal
    host_word: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        derived = spec.derived
        super().__init__(
            {
                "read": In(1),
                "read_position": In(data.ArrayLayout(derived.position_width, derived.copies)),
                "read_data": Out(data.ArrayLayout(spec.lanes, derived.copies)),
                "write": In(spec.drain_planes),
                "write_position": In(data.ArrayLayout(derived.position_width, spec.drain_planes)),
                "write_data": In(data.ArrayLayout(spec.rows, spec.drain_planes)),
                "write_granules": In(derived.tile_granules),
                "host_write": In(1),
                "host_read": In(1),
                "host_address": In(derived.activation_address_width),
                "host_data": In(spec.lanes),
                "host_word": Out(spec.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec = self.spec
        m = Module()
        writes = self._bank_writes(m)
        for copy in range(spec.derived.copies):
            word, first_bank = self._split(self.read_position[copy])
            read_enable = self.read
            if copy == 0:
                word = Mux(self.host_read, self.host_address, word)
                first_bank = Mux(self.host_read, 0, first_bank)
                read_enable = self.read | self.host_read
            for bank, (address, lanes, granules) in enumerate(writes):
                m.submodules[f"copy_{copy}_bank_{bank}"] = store = memory.Memory(
                    shape=BANK, depth=spec.activation_depth, init=[]
                )
                read, write = store.read_port(), store.write_port(granularity=GRANULE)
                m.d.comb += [
                    read.addr.eq(word + (first_bank > bank)),
                    read.en.eq(read_enable),
                    self.read_data[copy][bank * BANK : (bank + 1) * BANK].eq(read.data),
                    write.addr.eq(address),
                    write.data.eq(lanes),
                    write.en.eq(granules),
                ]
        m.d.comb += self.host_word.eq(self.read_data[0])
        return m

    def _split(self, position: Value) -> tuple[Value, Value]:
        """Word and bank of a position."""
        within = (BANK_GRANULES - 1).bit_length()
        bank = (self.spec.derived.banks - 1).bit_length()
        return position[within + bank :], position[within : within + bank]

    def _bank_writes(self, m: Module) -> list[tuple[Signal, Signal, Signal]]:
        """For each bank the word that is written, its lanes, and which of its granules to write."""
        spec, banks = self.spec, self.spec.derived.banks
        span = -(-(spec.rows + BANK - GRANULE) // BANK)  # banks that a row tile may touch
        # Whether tile t starts in bank b; its lanes and granules from the start of that bank; its word.
        starts, tiles = [], []
        for number in range(spec.drain_planes):
            position = self.write_position[number]
            word, first_bank = self._split(position)
            lanes = Signal(span * BANK, name=f"tile_{number}_lanes")
            granules = Signal(span * BANK_GRANULES, name=f"tile_{number}_granules")
            within = position[: (BANK_GRANULES - 1).bit_length()]
            m.d.comb += [
                lanes.eq(self.write_data[number] << Cat(Const(0, (GRANULE - 1).bit_length()), within)),
                granules.eq(self.write_granules << within),
            ]
            starts.append([self.write[number] & (first_bank == bank) for bank in range(banks)])
            tiles.append((word, lanes, granules))

        writes = []
        for bank in range(banks):
            address = Signal(spec.derived.activation_address_width, name=f"write_address_{bank}")
            bits, enables = (
                Signal(BANK, name=f"write_lanes_{bank}"),
                Signal(BANK_GRANULES, name=f"write_enables_{bank}"),
            )
            sources = []
            for start, (word, lanes, granules) in zip(starts, tiles, strict=True):
                # Part n of a tile lies n banks after the first, after the last bank in the next word.
                sources += [
                    (
                        start[(bank - part) % banks],
                        word + (part > bank),
                        lanes[part * BANK : (part + 1) * BANK],
                        granules[part * BANK_GRANULES : (part + 1) * BANK_GRANULES],
                    )
                    for part in range(span)
                ]
            host = slice(bank * BANK, (bank + 1) * BANK)
            from_host = self.host_address, self.host_data[host], Const(-1, BANK_GRANULES)
            here, *from_drain = zip(*sources, strict=True)
            for target, values, host_value in zip((address, bits, enables), from_drain, from_host, strict=True):
                written = reduce(or_, (Mux(start, value, 0) for start, value in zip(here, values, strict=True)))
                if spec.pipelined:  # banks are all over the chip
                    late = Signal.like(target, name=f"{target.name}_late", reset_less=target is not enables)
                    m.d.sync += late.eq(written)
                    written = late
                m.d.comb += target.eq(written | Mux(self.host_write, host_value, 0))
            writes.append((address, bits, enables))
        return writes
