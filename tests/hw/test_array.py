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
    pipelined=st.booleans(),
    lanes=st.sampled_from([32, 64]),
    width=st.integers(8, 20),
    coefficient_bits=st.sampled_from([0, 0, 2, 9]),
    zero_skip=st.sampled_from(["off", "gate", "skip"]),
    fabric=st.sampled_from(["portable", "ice40"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=15, deadline=None)
def test_every_pe_and_column_sum_accumulates_and_drains(
    columns, pipelined, lanes, width, coefficient_bits, zero_skip, fabric, seed
):
    spec = array_spec(
        columns=columns,
        pipelined=pipelined and columns % 2 == 0,
        lanes=lanes,
        accumulator_width=width,
        coefficient_bits=coefficient_bits,
        zero_skip=zero_skip,
    )
    rows = spec.rows
    dut = PEArray(spec, fabric)
    half = 1 << max(coefficient_bits - 1, 0)
    latency = OPERAND_TO_LOAD + spec.derived.way_stages + spec.derived.multiply_stages

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
            ctx.set(dut.some_active, any(active))
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
def test_operands_without_a_word_become_zero_beside_others_and_else_keep_still(zero_skip):
    dut = PEArray(array_spec(columns=2, lanes=32, zero_skip=zero_skip))
    m = dut.elaborate(None)
    pes = [m.submodules[f"pe_0_{column}"] for column in range(2)]

    async def bench(ctx):
        ctx.set(dut.control, {"valid": 1, "clear": 1})
        for word, active, expected in ((1, 0b11, [1, 1]), (2, 0b01, [2, 0]), (3, 0b00, [2, 0]), (4, 0b10, [0, 4])):
            ctx.set(dut.activations, [word, word])
            ctx.set(dut.weights, [word] * 4)
            ctx.set(dut.active, active)
            ctx.set(dut.some_active, active != 0)
            await ctx.tick()
            assert [ctx.get(pe.activation) for pe in pes] == expected
            assert [ctx.get(pe.weight) for pe in pes] == [max(expected)] * 2

    drive(m, bench)
