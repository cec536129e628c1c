import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.activations import ActivationMemory
from bitwright.hw.isa import BANK, GRANULE, ArraySpec
from drive import drive


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    """Arrays with a small activation memory, whose drain writes as many planes at once as its banks allow, or fewer."""
    lanes, rows = draw(
        st.sampled_from([(32, 4), (64, 4), (64, 8), (64, 20), (64, 52), (128, 12), (128, 16), (128, 64)])
    )
    planes = [planes for planes in (1, 2, 4) if -(-(rows + 12) // BANK) * planes <= lanes // BANK]
    columns_per_copy = draw(st.sampled_from([1, 2, 4]))
    columns = columns_per_copy * draw(st.integers(1, 2))
    return ArraySpec(
        rows=rows,
        lanes=lanes,
        drain_planes=draw(st.sampled_from(planes)),
        columns=columns,
        pipelined=columns % 2 == 0 and draw(st.booleans()),
        columns_per_copy=columns_per_copy,
        activation_depth=draw(st.sampled_from([2, 4, 16])),
    )


class Reference:
    """Granules by position: what the memory holds."""

    def __init__(self, spec: ArraySpec) -> None:
        self.places = spec.derived.granules
        self.granules = np.zeros(spec.activation_depth * self.places, int)

    def read(self, position: int) -> int:
        """The granules from the start of the position's bank, each at its place in the word."""
        start = position // (BANK // GRANULE) * (BANK // GRANULE)
        numbers = [start + (place - start) % self.places for place in range(self.places)]
        return self._join(self.granules.take(numbers, mode="wrap"))

    def read_word(self, address: int) -> int:
        return self._join(self.granules[address * self.places :][: self.places])

    def write(self, position: int, data: int, mask: int) -> None:
        for number in range(mask.bit_length()):
            if mask >> number & 1:
                place = (position + number) % len(self.granules)
                self.granules[place] = data >> (number * GRANULE) & (1 << GRANULE) - 1

    def _join(self, granules: np.ndarray) -> int:
        return sum(int(granule) << place * GRANULE for place, granule in enumerate(granules))


@given(spec=specs(), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_memory_is_read_and_written_at_any_position(spec, seed):
    derived = spec.derived
    dut = ActivationMemory(spec)

    async def bench(ctx):
        rng = random.Random(seed)
        reference = Reference(spec)
        positions = len(reference.granules)
        expected: list[int | None] = [None] * derived.copies
        word = None
        choice, late = "", []  # writes that come in the next cycle
        for _ in range(60):
            waits = spec.pipelined and choice == "drain"
            choice = rng.choice(["drain", "drain", "host read" if waits else "host write", "host read"])
            ctx.set(dut.host_write, choice == "host write")
            ctx.set(dut.host_read, choice == "host read")
            address, data = rng.randrange(spec.activation_depth), rng.getrandbits(spec.lanes)
            ctx.set(dut.host_address, address)
            ctx.set(dut.host_data, data)

            # Reads see the memory as it was before this cycle's writes.
            read = choice != "host read" and rng.random() < 0.8
            ctx.set(dut.read, read)
            for copy in range(derived.copies):
                position = rng.randrange(positions)
                ctx.set(dut.read_position[copy], position)
                if read:
                    expected[copy] = reference.read(position)
            if choice == "host read":
                word = reference.read_word(address)

            for write in late:
                reference.write(*write)
            late = []
            enables = rng.getrandbits(spec.drain_planes) if choice == "drain" else 0
            mask = rng.getrandbits(derived.tile_granules)
            start = rng.randrange(positions)
            ctx.set(dut.write, enables)
            ctx.set(dut.write_granules, mask)
            for plane in range(spec.drain_planes):
                distance = plane * (derived.plane_skew + rng.randrange(4) * derived.granules)
                position, bits = (start + distance) % positions, rng.getrandbits(spec.rows)
                ctx.set(dut.write_position[plane], position)
                ctx.set(dut.write_data[plane], bits)
                if enables >> plane & 1:
                    late.append((position, bits, mask))
            if not spec.pipelined:
                for write in late:
                    reference.write(*write)
                late = []
            if choice == "host write":
                reference.write(address * derived.granules, data, (1 << derived.granules) - 1)

            await ctx.tick()
            if choice == "host read":
                assert ctx.get(dut.host_word) == word
                expected[0] = None  # the copy that the host has read from
            for copy, value in enumerate(expected):
                assert value is None or ctx.get(dut.read_data[copy]) == value

    drive(dut, bench)
