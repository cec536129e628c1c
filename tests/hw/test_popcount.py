# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.hdl import Module, Signal

from bitwright.hw.popcount import count_products, popcount
from drive import drive, random_word


@pytest.mark.parametrize("width", [*range(1, 18), 31, 32, 33, 64, 96, 100, 256])
def test_every_width_counts_its_bits(width):
    word, count = Signal(width), Signal(16)
    m = Module()
    m.d.comb += count.eq(popcount(m, word))
    rng = random.Random(width)
    words = range(1 << width) if width <= 8 else [random_word(rng, width) for _ in range(100)]

    async def bench(ctx):
        for value in [0, (1 << width) - 1, *(1 << bit for bit in range(width)), *words]:
            ctx.set(word, value)
            assert ctx.get(count) == value.bit_count()

    drive(m, bench)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 32, 33, 256])
def test_result_is_as_wide_as_the_count_needs(width):
    assert len(popcount(Module(), Signal(width))) == len(f"{width:b}")


# The forms for xilinx7 and ecp5 name primitives: `test_synthesis` has models of them.
@pytest.mark.parametrize("fabric", ["portable", "ice40"])
@pytest.mark.parametrize("lanes", [*range(1, 10), 15, 16, 32, 64, 128])
@pytest.mark.parametrize("words", [1, 2])
def test_count_of_products(fabric, lanes, words):
    first, second, count = Signal(lanes), Signal(lanes), Signal(16)
    m = Module()
    counted = count_products(m, first, second if words == 2 else None, fabric)
    assert len(counted) == lanes.bit_length()
    m.d.comb += count.eq(counted)
    rng = random.Random(lanes)
    full = (1 << lanes) - 1
    pairs = [(full, full), *((1 << lane, full) for lane in range(lanes))]
    pairs += [(random_word(rng, lanes), random_word(rng, lanes)) for _ in range(100)]

    async def bench(ctx):
        for a, b in pairs:
            ctx.set(first, a)
            ctx.set(second, b)
            assert ctx.get(count) == (a & b if words == 2 else a).bit_count()

    drive(m, bench)
