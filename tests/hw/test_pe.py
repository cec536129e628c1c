import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.pe import COUNT_LATENCY, PopcountAccumulator, ProcessingElement
from drive import accumulated, drive, random_word


def random_operations(rng, count):
    """What is done with each word."""
    names = ("ignore", "negate", "valid", "clear", "double", "bipolar")
    return [{name: rng.random() < 0.5 for name in names} for _ in range(count)]


def give(ctx, dut, cycle, operations):
    """Set what goes with the words of a cycle, and with the sums that are accumulated in it."""
    if (before := cycle - 1 - dut.product_stages) >= 0:
        ctx.set(dut.ignore, operations[before]["ignore"])
        ctx.set(dut.negate, operations[before]["negate"])
    if (before := cycle - (dut.latency - 1)) >= 0:
        ctx.set(dut.base, {name: operations[before][name] for name in ("valid", "clear", "double")})


def following(total, addend, width, operation):
    """Accumulator after an operation."""
    if not operation["valid"]:
        return total
    addend = 0 if operation["ignore"] else addend
    return accumulated(
        total, addend, width, clear=operation["clear"], double=operation["double"], negate=operation["negate"]
    )


@given(
    lanes=st.integers(1, 256),
    width=st.integers(10, 30),
    product_stages=st.sampled_from([0, 1]),
    multiply_stages=st.sampled_from([0, 1]),
    fabric=st.sampled_from(["portable", "ice40"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=20, deadline=None)
def test_popcounts_are_accumulated_by_horners_scheme(lanes, width, product_stages, multiply_stages, fabric, seed):
    dut = PopcountAccumulator(lanes, width, product_stages, multiply_stages, fabric)
    rng = random.Random(seed)
    words = [random_word(rng, lanes) for _ in range(80)]
    operations = random_operations(rng, len(words))

    async def bench(ctx):
        totals, counts = [0] * dut.latency, [0] * (product_stages + COUNT_LATENCY)
        for cycle, (word, operation) in enumerate(zip(words, operations, strict=True)):
            ctx.set(dut.word, word)
            give(ctx, dut, cycle, operations)
            assert ctx.get(dut.count) == counts[cycle], cycle
            assert ctx.get(dut.sum) == totals[cycle], cycle
            await ctx.tick()
            count = word.bit_count()
            inverted = count ^ ((1 << len(dut.count)) - 1) if operation["negate"] else count
            counts.append(0 if operation["ignore"] else inverted)
            totals.append(following(totals[-1], count, width, operation))

    drive(dut, bench)


@given(
    lanes=st.integers(1, 256),
    width=st.integers(10, 30),
    coefficient_bits=st.sampled_from([0, 0, 2, 8, 16]),
    product_stages=st.sampled_from([0, 1]),
    fabric=st.sampled_from(["portable", "ice40"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_pe_accumulates_counts_or_their_products(lanes, width, coefficient_bits, product_stages, fabric, seed):
    dut = ProcessingElement(lanes, width, coefficient_bits, product_stages, fabric)
    counted = product_stages + COUNT_LATENCY
    rng = random.Random(seed)
    words = [(random_word(rng, lanes), random_word(rng, lanes)) for _ in range(80)]
    operations = random_operations(rng, len(words))
    half = 1 << max(coefficient_bits - 1, 0)
    coefficients = [rng.choice([-half, half - 1, rng.randrange(-half, half)]) for _ in words]

    async def bench(ctx):
        totals = [0] * dut.latency
        column_counts = [0] * counted
        for cycle, (activation, weight) in enumerate(words):
            ctx.set(dut.activation, activation)
            ctx.set(dut.weight, weight)
            give(ctx, dut, cycle, operations)
            if coefficient_bits and cycle >= counted:
                before = cycle - counted
                ctx.set(dut.coefficient, coefficients[before])
                ctx.set(dut.bipolar, operations[before]["bipolar"])
                ctx.set(dut.column_count, column_counts[cycle])
            assert ctx.get(dut.sum) == totals[cycle], cycle
            await ctx.tick()
            operation = operations[cycle]
            ones = activation.bit_count()
            column = 0 if operation["ignore"] else ones
            flip = operation["negate"] and not operation["ignore"]
            column_counts.append(column ^ ((1 << lanes.bit_length()) - 1) if flip else column)
            addend = (activation & weight).bit_count()
            if coefficient_bits:
                addend = coefficients[cycle] * (2 * addend - ones if operation["bipolar"] else addend)
            totals.append(following(totals[-1], addend, width, operation))

    drive(dut, bench)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PopcountAccumulator, (0, 0)),
        (PopcountAccumulator, (0, 1)),
        (PopcountAccumulator, (1, 0)),
        (ProcessingElement, (0, 0)),
        (ProcessingElement, (0, 1)),
    ],
)
def test_latency(kind, options):
    dut = kind(32, 16, *options)

    async def bench(ctx):
        for port in (dut.word,) if kind is PopcountAccumulator else (dut.activation, dut.weight):
            ctx.set(port, 0b111)
        ctx.set(dut.base, {"valid": 1, "clear": 1})
        for cycle in range(dut.latency):
            assert ctx.get(dut.sum) == 0, cycle
            await ctx.tick()
        assert ctx.get(dut.sum) == 3

    drive(dut, bench)
