"""What the wrappers for standard buses share: a check of addresses, one way to the host bus, queues for responses."""

from itertools import pairwise
from typing import Any

from amaranth.hdl import Array, Module, Mux, ShapeLike, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.host import host_signature
from bitwright.hw.isa import BUS_WIDTH, READ_LATENCY, REGISTER_HELP, ArraySpec, Region

QUEUE_DEPTH = READ_LATENCY + 2
"""Requests that may wait for their response to be taken: just enough for one request in every cycle."""


def request_layout(spec: ArraySpec) -> data.StructLayout:
    """A read or a write of one word; ``refuse`` answers it with an error instead."""
    return data.StructLayout(
        {"address": spec.derived.bus_address_width, "data": BUS_WIDTH, "write": 1, "refuse": 1},
    )


def response_layout() -> data.StructLayout:
    """Answer to a read or a write; the data of anything but a read are 0."""
    return data.StructLayout({"data": BUS_WIDTH, "error": 1})


def client_signature(spec: ArraySpec) -> wiring.Signature:
    """Requests of a bus, and a response to each, in order, which cannot wait."""
    return wiring.Signature(
        {
            "request": Out(stream.Signature(request_layout(spec))),
            "response": In(stream.Signature(response_layout(), always_ready=True)),
        }
    )


def decode(m: Module, spec: ArraySpec, address: Value, write: Value) -> Signal:
    """Whether there is something at an address that can be written, or read.

    Parameters
    ----------
    m
        Where to put the comparisons.
    spec
        Array.
    address
        Of the host bus.
    write
        Whether it is to be written.
    """
    derived = spec.derived
    offset = address[: derived.region_width]
    mapped = Signal(name="mapped")
    with m.Switch(address[derived.region_width :]):
        with m.Case(Region.REGISTERS), m.Switch(offset):
            for register, (access, _) in REGISTER_HELP.items():
                with m.Case(register):
                    m.d.comb += mapped.eq(write if access == "w" else ~write)
        for region, window in derived.windows.items():
            allowed = {"r": ~write, "w": write, "rw": 1}[window.access]
            with m.Case(region):
                m.d.comb += mapped.eq((offset >> window.bank_width < window.banks) & allowed)
    return mapped


class HostArbiter(wiring.Component):
    """Gives the host bus to several clients in turn, a request a cycle, and refuses what is not in the address map.

    A response comes ``READ_LATENCY`` cycles after its request was taken, for writes too: then they have acted.

    Parameters
    ----------
    spec
        Array.
    clients
        How many.

    Members
    -------
    clients : ``In(client_signature(spec)).array(clients)``
        Requests and responses.
    host : ``Out(host_signature(spec))``
        The accelerator's bus.
    """

    clients: Any
    host: Any

    def __init__(self, spec: ArraySpec, clients: int) -> None:
        self.spec = spec
        self.count = clients
        super().__init__(
            {"clients": In(client_signature(spec)).array(clients), "host": Out(host_signature(spec))},
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        count = self.count

        # The first client at or after `turn` that asks.
        turn, chosen, asked = Signal(range(count)), Signal(range(count)), Signal()
        with m.Switch(turn):
            for first in range(count):
                with m.Case(first):
                    for client in reversed([*range(first, count), *range(first)]):
                        with m.If(self.clients[client].request.valid):
                            m.d.comb += [chosen.eq(client), asked.eq(1)]
        with m.If(asked):
            m.d.sync += turn.eq(Mux(chosen == count - 1, 0, chosen + 1))

        request = Signal(request_layout(self.spec))
        m.d.comb += request.eq(Array(client.request.payload.as_value() for client in self.clients)[chosen])
        accepted = asked & ~request.refuse & decode(m, self.spec, request.address, request.write)
        m.d.comb += [
            self.host.address.eq(request.address),
            self.host.write_data.eq(request.data),
            self.host.write.eq(accepted & request.write),
            self.host.read.eq(accepted & ~request.write),
        ]

        # Who waits for the response follows the read through the accelerator.
        waiting = data.StructLayout({"client": count, "error": 1})
        stages = [Signal(waiting, name=f"waiting_{stage}") for stage in range(READ_LATENCY + 1)]
        m.d.comb += [stages[0].client.eq(Mux(asked, 1 << chosen, 0)), stages[0].error.eq(~accepted)]
        m.d.sync += [later.eq(earlier) for earlier, later in pairwise(stages)]
        for index, client in enumerate(self.clients):
            m.d.comb += [
                client.request.ready.eq(asked & (chosen == index)),
                client.response.valid.eq(stages[-1].client[index]),
                client.response.payload.data.eq(Mux(self.host.read_valid, self.host.read_data, 0)),
                client.response.payload.error.eq(stages[-1].error),
            ]
        return m


class StreamRegister(wiring.Component):
    """One register on a stream: nothing passes from its inputs to its outputs within a cycle, but ``o.ready``.

    Parameters
    ----------
    shape
        Of the payload.

    Members
    -------
    i : ``In(stream.Signature(shape))``, o : ``Out(stream.Signature(shape))``
        The stream.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, shape: ShapeLike) -> None:
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), self.o.payload.eq(self.i.payload)]
        return m


class ResponseQueue(wiring.Component):
    """Keeps responses that cannot wait until they are taken.

    Parameters
    ----------
    shape
        Of a response.

    Members
    -------
    room : ``Out(1)``
        One more request may be made: there is room for its response.
    claim : ``In(1)``
        A request is made.
    i : ``In(stream.Signature(shape, always_ready=True))``
        Responses.
    o : ``Out(stream.Signature(shape))``
        The same, with back-pressure.
    """

    room: Signal
    claim: Signal
    i: stream.Interface
    o: stream.Interface

    def __init__(self, shape: ShapeLike) -> None:
        self.shape = shape
        super().__init__(
            {
                "room": Out(1),
                "claim": In(1),
                "i": In(stream.Signature(shape, always_ready=True)),
                "o": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        arriving, leaving = Value.cast(self.i.payload), Value.cast(self.o.payload)
        taken = Signal()
        # The newest comes first; a small memory would need ports that not every fabric has.
        entries = [Signal(len(arriving), reset_less=True, name=f"entry_{age}") for age in range(QUEUE_DEPTH)]
        owed, level = Signal(range(QUEUE_DEPTH + 1)), Signal(range(QUEUE_DEPTH + 1))
        m.d.comb += [
            taken.eq(self.o.valid & self.o.ready),
            self.room.eq(owed != QUEUE_DEPTH),
            self.o.valid.eq(level != 0),
        ]
        m.d.sync += [owed.eq(owed + self.claim - taken), level.eq(level + self.i.valid - taken)]
        with m.If(self.i.valid):
            m.d.sync += [entries[0].eq(arriving), *(older.eq(newer) for newer, older in pairwise(entries))]
        with m.Switch(level):
            for age, entry in enumerate(entries):
                with m.Case(age + 1):
                    m.d.comb += leaving.eq(entry)
        return m
