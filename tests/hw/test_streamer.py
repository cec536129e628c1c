import dataclasses
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.streamer import WeightStreamer
from control import CONTROL
from drive import drive


@given(
    lanes=st.sampled_from([32, 64, 128]),
    transfers=st.lists(st.tuples(st.integers(0, CONTROL.weight_depth - 6), st.integers(1, 5)), min_size=1, max_size=3),
    gaps=st.sampled_from([0, 0.4, 0.9]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_streamed_words_are_written_row_by_row(lanes, transfers, gaps, seed):
    spec = dataclasses.replace(CONTROL, lanes=lanes)
    dut = WeightStreamer(spec)

    async def bench(ctx):
        rng = random.Random(seed)
        for base, words in transfers:
            data = [[rng.getrandbits(lanes) for _ in range(words)] for _ in range(spec.rows)]
            expected = [(row, base + number, word) for row in range(spec.rows) for number, word in enumerate(data[row])]
            beats = [word >> 32 * chunk & 0xFFFFFFFF for _, _, word in expected for chunk in range(spec.derived.chunks)]
            ctx.set(dut.layer.weight_base, base)
            ctx.set(dut.layer.stream_words, words)
            ctx.set(dut.beats.valid, 1)  # before the start nothing is taken
            for _ in range(rng.randrange(3)):
                assert not ctx.get(dut.beats.ready)
                await ctx.tick()
            ctx.set(dut.start, 1)
            assert not ctx.get(dut.beats.ready)
            await ctx.tick()
            ctx.set(dut.start, 0)
            written, cycle, last = [], 0, 0
            while True:
                cycle += 1
                valid = rng.random() >= gaps
                ctx.set(dut.beats.valid, valid)
                ctx.set(dut.beats.payload, beats[0] if beats else 0xDEADBEEF)
                if ctx.get(dut.write):
                    written.append((ctx.get(dut.write_row), ctx.get(dut.write_address), ctx.get(dut.write_word)))
                if ctx.get(dut.done):
                    break
                assert ctx.get(dut.beats.ready)  # it never waits
                if valid:
                    beats.pop(0)
                    last = cycle
                await ctx.tick()
            assert beats == []
            assert cycle == last + 1
            assert written == expected
            await ctx.tick()
            for _ in range(3):
                assert not ctx.get(dut.beats.ready)
                assert not ctx.get(dut.write)
                await ctx.tick()

    drive(dut, bench)
