# amaranth: UnusedElaboratable=no
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.array import OPERAND_TO_LOAD, PEArray
from bitwright.hw.isa import ArraySpec
from drive import CONTROLS, accumulated, drive, random_word


def array_spec(**parameters):
    return ArraySpec(rows=4, drain_planes=1, **parameters)


@given(
    columns=st.integers(1, 4),
    lanes=st.sampled_from([32, 64]),
    width=st.integers(8, 20),
    coefficient_bits=st.sampled_from([0, 0, 2, 9]),
    zero_skip=st.sampled_from(["off", "gate", "skip"]),
    fabric=st.sampled_from(["portable", "ice40"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=15, deadline=None)
def test_every_pe_and_column_sum_accumulates_and_drains(
    columns, lanes, width, coefficient_bits, zero_skip, fabric, seed
):
    spec = array_spec(
        columns=columns,
        lanes=lanes,
        accumulator_width=width,
        coefficient_bits=coefficient_bits,
        zero_skip=zero_skip,
    )
    rows = spec.rows
    dut = PEArray(spec, fabric)
    half = 1 << max(coefficient_bits - 1, 0)
    latency = OPERAND_TO_LOAD + spec.derived.multiply_stages

    async def bench(ctx):
        rng = random.Random(seed)
        # Sums of every cycle so far: rows, then the column sum; an operand is in them `latency` cycles later.
        sums = np.zeros((rows + 1, columns), object)
        history = [sums.copy() for _ in range(latency)]
        held, shown = np.zeros_like(sums), 0
        for cycle in range(80):
            assert [ctx.get(dut.sums[row]) for row in range(rows)] == held[:-1, shown].tolist(), cycle
            assert ctx.get(dut.column_sum) == held[-1, shown], cycle
            weights = [random_word(rng, lanes) for _ in range(rows)]
            activations = [random_word(rng, lanes) for _ in range(columns)]
            control = {name: rng.random() < 0.7 for name in CONTROLS}
            active = [rng.random() < 0.7 and control["valid"] for _ in range(columns)]
            residual, bipolar = rng.random() < 0.3, rng.random() < 0.5
            load, shift = rng.random() < 0.2, rng.random() < 0.6 and shown + 1 < columns
            coefficients = [rng.choice([-half, half - 1, rng.randrange(-half, half)]) for _ in range(rows)]
            ctx.set(dut.weights, weights)
            ctx.set(dut.activations, activations)
            ctx.set(dut.active, sum(bit << column for column, bit in enumerate(active)))
            ctx.set(dut.residual, residual)
            if coefficient_bits:
                ctx.set(dut.coefficients, coefficients)
                ctx.set(dut.control, control | {"bipolar": bipolar})
            else:
                ctx.set(dut.control, control)
            ctx.set(dut.load, load)
            ctx.set(dut.shift, shift)
            await ctx.tick()
            if control.pop("valid"):
                for (row, column), before in np.ndenumerate(sums):
                    ones = activations[column].bit_count()
                    if row == rows:
                        addend = 0 if residual else ones
                    else:
                        addend = (activations[column] & weights[row]).bit_count()
                        if coefficient_bits:
                            doubled = bipolar and not residual
                            addend = coefficients[row] * (2 * addend - ones if doubled else addend)
                    sums[row, column] = accumulated(before, addend if active[column] else 0, width, **control)
            history.append(sums.copy())
            if load:
                held, shown = history[cycle], 0
            elif shift:
                shown += 1

    drive(dut, bench)


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
def test_operands_of_an_inactive_column_are_held_still_only_with_zero_skip(zero_skip):
    dut = PEArray(array_spec(columns=2, lanes=32, zero_skip=zero_skip))
    m = dut.elaborate(None)
    first, second = m.submodules.pe_0_0, m.submodules.pe_0_1

    async def bench(ctx):
        ctx.set(dut.control, {"valid": 1, "clear": 1})
        ctx.set(dut.activations, [1, 2])
        ctx.set(dut.active, 0b11)
        await ctx.tick()
        ctx.set(dut.activations, [3, 4])
        ctx.set(dut.active, 0b01)
        await ctx.tick()
        assert ctx.get(first.activation) == 3
        assert ctx.get(second.activation) == (4 if zero_skip == "off" else 2)

    drive(m, bench)
