import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.host import HostPort
from bitwright.hw.isa import (
    COUNTERS,
    IDENTIFIER,
    READ_LATENCY,
    VERSION,
    ArraySpec,
    ErrorCode,
    Region,
    Register,
)
from drive import Bus, drive

SPEC = ArraySpec(
    rows=4,
    columns=2,
    lanes=64,
    coefficient_bits=8,
    activation_depth=64,
    weight_depth=32,
    threshold_depth=128,
    descriptor_depth=64,
    result_depth=16,
)
START, STOP = 1, 2
MEMORIES = {
    Region.DESCRIPTORS: "write_descriptor",
    Region.WEIGHTS: "write_weight",
    Region.THRESHOLDS: "write_threshold",
    Region.COEFFICIENTS: "write_coefficient",
    Region.ACTIVATIONS: "write_activation",
}
BANKED = (Region.WEIGHTS, Region.THRESHOLDS, Region.COEFFICIENTS)
"""Memories with a bank for each row."""


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    """Arrays whose memories and words differ in size."""
    names = ("activation_depth", "weight_depth", "threshold_depth", "coefficient_depth", "result_depth")
    columns = draw(st.integers(1, 3))
    depths: dict[str, Any] = {name: draw(st.sampled_from([32, 64, 128])) for name in names}
    return ArraySpec(
        rows=draw(st.sampled_from([4, 8, 12, 20])),
        columns=columns,
        lanes=draw(st.sampled_from([32, 64, 128, 256])),
        drain_planes=1,
        coefficient_bits=draw(st.sampled_from([2, 8, 16])),
        descriptor_depth=draw(st.sampled_from([64, 128])),
        pipelined=columns % 2 == 0 and draw(st.booleans()),
        **depths,
    )


def enables(ctx: Any, dut: HostPort) -> list[Region]:
    """Memories written to in this cycle."""
    return [region for region, name in MEMORIES.items() if ctx.get(getattr(dut, name))]


# Memories ------------------------------------------------------------------------------------------------------------


@given(spec=specs(), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_writes_reach_their_memory_row_and_address(spec, seed):
    dut = HostPort(spec)
    depths = {
        Region.DESCRIPTORS: spec.descriptor_depth,
        Region.WEIGHTS: spec.weight_depth,
        Region.THRESHOLDS: spec.threshold_depth,
        Region.COEFFICIENTS: spec.coefficient_depth,
        Region.ACTIVATIONS: spec.activation_depth,
    }

    async def bench(ctx):
        bus, rng = Bus(ctx, dut.spec, dut.bus), random.Random(seed)
        for _ in range(40):
            region = rng.choice(list(MEMORIES))
            address = rng.choice([0, depths[region] - 1, rng.randrange(depths[region])])
            row = rng.randrange(spec.rows) if region in BANKED else 0
            chunked = region in (Region.WEIGHTS, Region.ACTIVATIONS)
            chunks = [rng.getrandbits(32) for _ in range(spec.derived.chunks if chunked else 1)]
            for chunk, data in enumerate(chunks):
                await bus.write(bus.at(region, address, row, chunk), data)
                assert enables(ctx, dut) == ([region] if chunk == len(chunks) - 1 else [])
            assert ctx.get(dut.write_address) == address
            if region in BANKED:
                assert ctx.get(dut.write_row) == row
            if chunked:
                word = sum(data << 32 * chunk for chunk, data in enumerate(chunks))
                assert ctx.get(dut.write_word) == word
                assert region != Region.ACTIVATIONS or ctx.get(dut.activation_word) == word
            else:
                assert ctx.get(dut.write_data) == chunks[0]
            if rng.random() < 0.5:
                await ctx.tick()
                assert enables(ctx, dut) == []

    drive(dut, bench)


@given(spec=specs(), address=st.integers(0, 31), data=st.integers(0, 2**256 - 1))
@settings(max_examples=25, deadline=None)
def test_reads_of_activations_and_results(spec, address, data):
    dut = HostPort(spec)
    result = data % (1 << 31)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        for chunk in range(spec.derived.chunks):
            bus.request(bus.at(Region.ACTIVATIONS, address, chunk=chunk))
            await ctx.tick()
            bus.idle()
            assert ctx.get(dut.read_activation)
            assert ctx.get(dut.activation_address) == address
            await ctx.tick()
            ctx.set(dut.activation_data, data % (1 << spec.lanes))  # one cycle later, and in no other
            await ctx.tick()
            ctx.set(dut.activation_data, 0)
            assert ctx.get(dut.bus.read_valid)
            assert ctx.get(dut.bus.read_data) == (data % (1 << spec.lanes)) >> 32 * chunk & 0xFFFFFFFF
        bus.request(bus.at(Region.RESULTS, address))
        await ctx.tick()
        bus.idle()
        assert ctx.get(dut.result_address) == address
        await ctx.tick()
        ctx.set(dut.result_data, -result)
        await ctx.tick()
        assert ctx.get(dut.bus.read_data) == -result & 0xFFFFFFFF

    drive(dut, bench)


def test_memories_are_closed_while_a_program_runs():
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        for region in MEMORIES:
            ctx.set(dut.busy, 1)
            for chunk in range(SPEC.derived.chunks):
                await bus.write(bus.at(region, 3, chunk=chunk), 7)
                assert enables(ctx, dut) == []
            await ctx.tick()
            assert await bus.register(Register.ERROR) == ErrorCode.BUSY
            assert await bus.register(Register.STATUS) == 0b101
            await bus.control(STOP)
            await ctx.tick()
            ctx.set(dut.busy, 0)
            assert await bus.register(Register.ERROR) == ErrorCode.NONE
        ctx.set(dut.busy, 1)
        bus.request(bus.at(Region.ACTIVATIONS, 3))
        await ctx.tick()
        assert not ctx.get(dut.read_activation)
        ctx.set(dut.activation_data, 5)
        await ctx.tick().repeat(READ_LATENCY - 1)
        assert ctx.get(dut.bus.read_valid)
        assert ctx.get(dut.bus.read_data) == 0

    drive(dut, bench)


def test_a_write_that_comes_before_a_stop_has_taken_effect_is_told():
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        for region in MEMORIES:
            for between in (0, 1):
                ctx.set(dut.busy, 1)
                await bus.control(STOP)
                if between:
                    await ctx.tick()
                await bus.write(bus.at(region, 3, chunk=SPEC.derived.chunks - 1), 7)
                assert enables(ctx, dut) == []
                if not between:
                    await ctx.tick()
                ctx.set(dut.busy, 0)
                assert await bus.register(Register.ERROR) == ErrorCode.BUSY
                await bus.control(STOP)
                assert await bus.register(Register.ERROR) == ErrorCode.NONE

    drive(dut, bench)


def test_a_write_that_comes_with_the_programs_error_leaves_it():
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        ctx.set(dut.busy, 1)
        await bus.write(bus.at(Region.WEIGHTS, 3), 7)
        ctx.set(dut.finished, 1)
        ctx.set(dut.error, ErrorCode.FIELD)
        ctx.set(dut.error_field, 17)
        await ctx.tick()
        for port in (dut.busy, dut.finished, dut.error, dut.error_field):
            ctx.set(port, 0)
        assert await bus.register(Register.ERROR) == ErrorCode.FIELD | 17 << 16

    drive(dut, bench)


# Registers -----------------------------------------------------------------------------------------------------------


def test_read_latency_and_order():
    dut = HostPort(SPEC)
    expected = {Register.ID: IDENTIFIER, Register.VERSION: VERSION, Register.SPEC: SPEC.fingerprint}
    registers = [*expected, Register.STATUS, Register.CONTROL]

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        for cycle in range(len(registers) + READ_LATENCY):
            if cycle < len(registers):
                bus.request(bus.at(Region.REGISTERS, registers[cycle]))
            else:
                bus.idle()
            answered = cycle - READ_LATENCY
            assert ctx.get(dut.bus.read_valid) == (answered >= 0)
            if answered >= 0:
                assert ctx.get(dut.bus.read_data) == expected.get(registers[answered], 0)
            await ctx.tick()
        assert not ctx.get(dut.bus.read_valid)

    drive(dut, bench)


@pytest.mark.parametrize("region", [Region.DESCRIPTORS, Region.WEIGHTS, Region.THRESHOLDS, Region.COEFFICIENTS, 7])
def test_memories_that_cannot_be_read_give_zero(region):
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        bus.request(bus.at(region, Register.ID))
        await ctx.tick().repeat(READ_LATENCY)
        assert ctx.get(dut.bus.read_valid)
        assert ctx.get(dut.bus.read_data) == 0

    drive(dut, bench)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_counters_add_up_events(seed):
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus, rng = Bus(ctx, dut.spec, dut.bus), random.Random(seed)
        totals = dict.fromkeys(COUNTERS, 0)
        for cycle in range(30):
            events = {name: rng.randrange(1 << len(dut.events[name])) for name in COUNTERS}
            ctx.set(dut.events, events)
            assert {name: ctx.get(dut.counters[name]) for name in COUNTERS} == totals, cycle
            totals = {name: totals[name] + events[name] for name in COUNTERS}
            assert {name: ctx.get(dut.totals[name]) for name in COUNTERS} == totals, cycle
            await ctx.tick()
        ctx.set(dut.events, dict.fromkeys(COUNTERS, 0))
        for name in COUNTERS:
            assert await bus.register(Register[name.upper()]) == totals[name]

    drive(dut, bench)


def test_start_and_end_of_a_program():
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        ctx.set(dut.events.cycles, 1)
        await ctx.tick().repeat(5)
        ctx.set(dut.events.cycles, 0)
        await bus.control(START)
        assert not ctx.get(dut.clear)
        await ctx.tick()
        assert ctx.get(dut.clear)
        assert not ctx.get(dut.start)
        await ctx.tick()
        assert not ctx.get(dut.clear)
        assert ctx.get(dut.start)
        assert ctx.get(dut.counters.cycles) == 0
        await ctx.tick()
        assert not ctx.get(dut.start)
        ctx.set(dut.busy, 1)
        ctx.set(dut.layer_index, 5)
        assert await bus.register(Register.STATUS) == 0b001
        assert await bus.register(Register.LAYER) == 5
        # A program that runs is not started again, and control is no memory.
        await bus.control(START)
        for _ in range(3):
            await ctx.tick()
            assert not ctx.get(dut.clear)
            assert not ctx.get(dut.start)
        assert not ctx.get(dut.interrupt)
        ctx.set(dut.finished, 1)
        await ctx.tick()
        ctx.set(dut.finished, 0)
        ctx.set(dut.busy, 0)
        assert ctx.get(dut.interrupt)
        assert await bus.register(Register.STATUS) == 0b010
        assert await bus.register(Register.ERROR) == ErrorCode.NONE
        # The next start takes the interrupt back.
        await bus.control(START)
        await ctx.tick()
        assert not ctx.get(dut.interrupt)

    drive(dut, bench)


def test_an_error_is_kept_and_clears_the_machine():
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        ctx.set(dut.busy, 1)
        ctx.set(dut.finished, 1)
        ctx.set(dut.error, ErrorCode.FIELD)
        ctx.set(dut.error_field, 17)
        await ctx.tick()
        for port in (dut.busy, dut.finished, dut.error, dut.error_field):
            ctx.set(port, 0)
        assert ctx.get(dut.interrupt)
        await ctx.tick()
        assert ctx.get(dut.clear)
        await ctx.tick()
        assert not ctx.get(dut.clear)
        assert await bus.register(Register.ERROR) == ErrorCode.FIELD | 17 << 16
        assert await bus.register(Register.STATUS) == 0b110
        await bus.control(STOP)
        await ctx.tick()
        assert ctx.get(dut.clear)
        await ctx.tick()
        assert await bus.register(Register.ERROR) == 0
        assert await bus.register(Register.STATUS) == 0

    drive(dut, bench)


def test_a_start_that_is_stopped_at_once_does_not_happen():
    dut = HostPort(SPEC)

    async def bench(ctx):
        bus = Bus(ctx, dut.spec, dut.bus)
        for between in (0, 1):
            await bus.control(START)
            if between:
                await ctx.tick()
            await bus.control(STOP)
            for cycle in range(5):
                # With a cycle between, the start has gone out, and is followed by a clear.
                assert not ctx.get(dut.start) or (between and not cycle)
                await ctx.tick()
            # The counters are those of a machine that is cleared: what a last cycle counts is not kept.
            assert await bus.register(Register.CYCLES) == 0

    drive(dut, bench)
