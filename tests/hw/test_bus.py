import random
from typing import Any

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.bus import StreamRegister, decode
from bitwright.hw.isa import REGISTER_HELP, ArraySpec, Region
from drive import drive


def small(**options: Any) -> ArraySpec:
    depths: dict[str, Any] = {"activation_depth": 32, "weight_depth": 8, "threshold_depth": 16, "result_depth": 8}
    return ArraySpec(drain_planes=1, descriptor_depth=64, coefficient_depth=4, **depths | options)


class Decoder(wiring.Component):
    """The check of addresses by itself."""

    address: Signal
    write: Signal
    mapped: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__({"address": In(spec.derived.bus_address_width), "write": In(1), "mapped": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.mapped.eq(decode(m, self.spec, self.address, self.write))
        return m


def places(spec: ArraySpec) -> dict[int, str]:
    """Access to every address that has something, as the manual's tables say."""
    at = spec.derived.host_address
    found = {at(Region.REGISTERS, register): access for register, (access, _) in REGISTER_HELP.items()}
    chunks = range(spec.lanes // 32)
    found |= {at(Region.DESCRIPTORS, word): "w" for word in range(spec.descriptor_depth)}
    found |= {at(Region.RESULTS, word): "r" for word in range(spec.result_depth)}
    found |= {at(Region.ACTIVATIONS, word, 0, chunk): "rw" for word in range(spec.activation_depth) for chunk in chunks}
    for row in range(spec.rows):
        found |= {at(Region.WEIGHTS, word, row, chunk): "w" for word in range(spec.weight_depth) for chunk in chunks}
        found |= {at(Region.THRESHOLDS, entry, row): "w" for entry in range(spec.threshold_depth)}
        if spec.coefficient_bits:
            found |= {at(Region.COEFFICIENTS, entry, row): "w" for entry in range(spec.coefficient_depth)}
    return found


@pytest.mark.parametrize(
    "spec",
    [small(rows=12, lanes=64, coefficient_bits=8), small(rows=4, lanes=32), small(rows=8, lanes=128)],
    ids=["rows-12", "no-coefficients", "lanes-128"],
)
def test_exactly_what_is_there_is_mapped(spec: ArraySpec) -> None:
    dut = Decoder(spec)
    expected = places(spec)

    async def bench(ctx: Any) -> None:
        for address in range(1 << spec.derived.bus_address_width):
            for write, letter in ((0, "r"), (1, "w")):
                ctx.set(dut.address, address)
                ctx.set(dut.write, write)
                assert ctx.get(dut.mapped) == (letter in expected.get(address, "")), hex(address)

    drive(dut, bench)


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["always-ready", "stalled"])
def test_a_register_keeps_the_order_and_the_pace_of_a_stream(share: float) -> None:
    dut, words = StreamRegister(8), list(range(30))
    taken: list[int] = []
    cycles = 0

    async def send(ctx: Any) -> None:
        ctx.set(dut.i.valid, 1)
        for word in words:
            ctx.set(dut.i.payload, word)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def receive(ctx: Any) -> None:
        nonlocal cycles
        rng = random.Random(1)
        while len(taken) < len(words):
            ready = rng.random() < share
            ctx.set(dut.o.ready, ready)
            *_, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            cycles += 1
            if ready and valid:
                taken.append(payload)

    drive(dut, send, receive)
    assert taken == words
    assert share < 1 or cycles == len(words) + 1
