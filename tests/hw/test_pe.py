import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.pe import PopcountAccumulator, ProcessingElement
from drive import CONTROLS, accumulated, drive, random_word


@given(
    kind=st.sampled_from([PopcountAccumulator, ProcessingElement]),
    lanes=st.integers(1, 256),
    width=st.integers(8, 30),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_accumulates_counts_by_horners_scheme(kind, lanes, width, seed):
    dut = kind(lanes, width)
    rng = random.Random(seed)
    operands = [(random_word(rng, lanes), random_word(rng, lanes)) for _ in range(80)]
    # The control of the word of cycle n arrives in cycle n + 1.
    controls = [{name: rng.random() < 0.6 for name in CONTROLS} for _ in operands]
    enables = [rng.random() < 0.7 for _ in operands]

    async def bench(ctx):
        totals = [0] * kind.LATENCY
        for cycle, (activation, weight) in enumerate(operands):
            if kind is PopcountAccumulator:
                ctx.set(dut.word, activation)
                weight = activation
            else:
                ctx.set(dut.activation, activation)
                ctx.set(dut.weight, weight)
            if cycle:
                ctx.set(dut.control, controls[cycle - 1])
                ctx.set(dut.enable, enables[cycle - 1])
            assert ctx.get(dut.sum) == totals[cycle], cycle
            await ctx.tick()
            count = (activation & weight).bit_count() if enables[cycle] else 0
            control = dict(controls[cycle])
            valid = control.pop("valid")
            totals.append(accumulated(totals[-1], count, width, **control) if valid else totals[-1])

    drive(dut, bench)


@pytest.mark.parametrize("kind", [PopcountAccumulator, ProcessingElement])
def test_latency(kind):
    dut = kind(32, 16)

    async def bench(ctx):
        for port in (dut.word,) if kind is PopcountAccumulator else (dut.activation, dut.weight):
            ctx.set(port, 0b111)
        ctx.set(dut.control, {"valid": 1, "clear": 1})
        ctx.set(dut.enable, 1)
        for cycle in range(kind.LATENCY):
            assert ctx.get(dut.sum) == 0, cycle
            await ctx.tick()
        assert ctx.get(dut.sum) == 3

    drive(dut, bench)
