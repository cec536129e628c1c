# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.hdl import Module, Signal

from bitwright.hw.popcount import popcount
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
