import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.isa import (
    FIELD_NAMES,
    FLAG_LAST,
    HEADER_WORDS,
    ArraySpec,
    Descriptor,
    ErrorCode,
    Region,
    Register,
    descriptor_fields,
    unpack_words,
)
from bitwright.hw.program import Program
from bitwright.sim import golden
from bitwright.sim.backends import simulate
from bitwright.sim.compare import compare
from drive import Bus, drive
from programs import conv, linear, random_images, random_program
from strategies import programs
from tiny import CASES, spec

START, STOP = 1, 2
BUSY, DONE, ERROR = 1, 2, 4


# Whole programs ------------------------------------------------------------------------------------------------------


def assert_exact(program, images):
    """Values, cycles, counters and every write equal the golden model's."""
    trace = range(len(program.parsed))
    expected = golden.execute(program, images, trace=trace)
    found = simulate(program, images, "pysim", trace)
    assert [compare(*pair).first for pair in zip(expected, found, strict=True)] == [None] * len(expected)


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
@pytest.mark.parametrize("name", CASES)
def test_tiny_programs_are_exact(name, zero_skip):
    assert_exact(*CASES[name](zero_skip))


def seconds(case):
    """Whether the simulation of a case takes no longer."""
    return sum(run.cycles for run in golden.execute(*case)) < 1200


@given(programs().filter(seconds))
@settings(max_examples=8, deadline=None)
def test_any_program_is_exact(case):
    assert_exact(*case)


@pytest.mark.slow
@given(programs().filter(seconds))
@settings(max_examples=120, deadline=None)
def test_any_of_many_programs_is_exact(case):
    assert_exact(*case)


# One machine, many runs ----------------------------------------------------------------------------------------------


class Machine(Bus):
    """The host of a whole accelerator."""

    def __init__(self, ctx: Any, dut: Accelerator) -> None:
        super().__init__(ctx, dut.spec, dut.host)
        self.dut = dut

    async def load(self, writes: Any) -> None:
        """Write a sequence of (address, data), one a cycle."""
        for address, data in writes:
            self.request(address, data)
            await self.ctx.tick()
        self.idle()

    async def wait(self, limit: int = 5000) -> bool:
        """Wait for the end of a run; whether it came within a number of cycles."""
        for _ in range(limit):
            if self.ctx.get(self.dut.interrupt):
                return True
            await self.ctx.tick()
        return False

    async def run(self, program: Program, images: np.ndarray) -> tuple[list[int], int]:
        """Load images, run, and return the results and the cycles."""
        await self.load(program.image_writes(images))
        await self.control(START)
        await self.ctx.tick()
        assert await self.wait()
        assert await self.register(Register.STATUS) == DONE
        count = len(images) * program.parsed[-1].channels
        results = [await self.read(self.at(Region.RESULTS, index)) for index in range(count)]
        return np.array(results, np.uint32).astype(np.int32).tolist(), await self.register(Register.CYCLES)


def predicted(program: Program, images: np.ndarray) -> tuple[list[int], int]:
    """What :meth:`Machine.run` returns."""
    [run] = golden.execute(program, images)
    return run.accumulators.reshape(-1).tolist(), run.cycles


def small(zero_skip: str = "skip", seed: int = 0) -> tuple[Program, list[np.ndarray]]:
    """A Program of a few hundred cycles, and images for several runs."""
    rng = np.random.default_rng(seed)
    layers = [conv(5, 2, pool=2, output_planes=2), conv(3, 1, output_planes=1), linear(3)]
    program = random_program(rng, spec(2, 2, zero_skip=zero_skip), layers, in_shape=(33, 3, 3), input_bits=2)
    return program, [random_images(rng, program, 1, zeros=zeros) for zeros in (0.2, 0.9, 0.5)]


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
def test_runs_follow_each_other(zero_skip):
    program, batches = small(zero_skip)
    dut = Accelerator(program.spec)

    async def bench(ctx):
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for images in batches:
            assert await machine.run(program, images) == predicted(program, images)
        # Loaded and started again from the very cycle of the interrupt on.
        for images in batches:
            await machine.load(program.image_writes(images))
            await machine.control(START)
            await ctx.tick()
            assert not ctx.get(dut.interrupt)
            assert await machine.wait()
        assert await machine.register(Register.CYCLES) == predicted(program, batches[-1])[1]

    drive(dut, bench)


@given(after=st.lists(st.integers(0, 350), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None)
def test_a_run_may_be_stopped_at_any_time(after):
    program, batches = small()
    dut = Accelerator(program.spec)

    async def bench(ctx):
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for cycles, images in zip(after, [*batches, batches[0]], strict=False):
            await machine.load(program.image_writes(images))
            await machine.control(START)
            for _ in range(cycles):
                await ctx.tick()
            await machine.control(STOP)
            await ctx.tick().repeat(2)
            for _ in range(30):
                assert not ctx.get(dut.probe.write)
                assert not ctx.get(dut.interrupt)
                await ctx.tick()
            assert await machine.register(Register.STATUS) == 0
            assert await machine.run(program, images) == predicted(program, images)

    drive(dut, bench)


def test_a_stop_leaves_all_registers_clear():
    program, [images, *_] = small()
    _, cycles = predicted(program, images)
    dut = Accelerator(program.spec)

    async def bench(ctx):
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for after in (50, *range(cycles - 3, cycles + 3)):
            await machine.load(program.image_writes(images))
            await machine.control(START)
            await ctx.tick().repeat(after)
            await machine.control(STOP)
            await ctx.tick().repeat(2)
            for register in (Register.STATUS, Register.ERROR, Register.CYCLES, Register.BUSY):
                assert await machine.register(register) == 0, (after, register)

    drive(dut, bench)


def test_writes_during_a_run_are_dropped_and_reported():
    program, [images, others, _] = small()
    dut = Accelerator(program.spec)

    async def bench(ctx):
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        await machine.load(program.image_writes(images))
        await machine.control(START)
        await ctx.tick().repeat(2)
        await machine.load(program.image_writes(others))
        await machine.load((address, 0) for address, _ in list(program.host_writes())[:100])
        assert await machine.register(Register.STATUS) & BUSY
        assert await machine.wait()
        assert await machine.register(Register.ERROR) == ErrorCode.BUSY
        assert await machine.register(Register.STATUS) == DONE | ERROR
        expected, cycles = predicted(program, images)
        assert await machine.register(Register.CYCLES) == cycles
        assert await machine.read(machine.at(Region.RESULTS, 0)) == expected[0] & 0xFFFFFFFF
        assert await machine.run(program, others) == predicted(program, others)

    drive(dut, bench)


@pytest.mark.parametrize("zero_skip", ["off", "skip"])
@pytest.mark.parametrize(("rows", "lanes"), [(5, 32), (2, 64), (7, 32)])
def test_output_words_hold_the_codes_and_nothing_else(rows, lanes, zero_skip):
    """Whatever was in the memory before, all lanes of an output word are defined by its layer."""
    rng = np.random.default_rng(rows)
    array = spec(rows, 2, lanes=lanes, row_tiles_max=32, zero_skip=zero_skip)
    program = random_program(rng, array, [conv(37, 1, output_planes=2), linear(2)], in_shape=(1, 2, 3), input_bits=1)
    images = random_images(rng, program, 1)
    [expected] = golden.execute(program, images, keep=True)
    assert expected.codes is not None
    layer = program.parsed[0]
    words, pixels = layer.output_words, 6
    codes = expected.codes[0][0].reshape(37, pixels).T
    dut = Accelerator(array)

    async def bench(ctx):
        machine = Machine(ctx, dut)
        everything = [(word, chunk) for word in range(array.activation_depth) for chunk in range(array.derived.chunks)]
        await machine.load(
            (machine.at(Region.ACTIVATIONS, word, chunk=chunk), 0xFFFFFFFF) for word, chunk in everything
        )
        await machine.load(program.host_writes())
        assert await machine.run(program, images) == predicted(program, images)
        for plane in range(2):
            stored = []
            for index in range(pixels * words):
                address = (layer.output_base + plane * layer.output_plane_stride + index) % array.activation_depth
                chunks = [
                    await machine.read(machine.at(Region.ACTIVATIONS, address, chunk=chunk))
                    for chunk in range(array.derived.chunks)
                ]
                stored.append(chunks)
            lanes_of = unpack_words(np.array(stored, "<u4").view(np.uint8)).reshape(pixels, words, lanes)
            per_word = array.derived.channels_per_word
            channels = lanes_of[..., :per_word].reshape(pixels, -1)
            np.testing.assert_array_equal(channels[:, :37], codes >> plane & 1)
            assert not channels[:, 37:].any()
            assert not lanes_of[..., per_word:].any()

    drive(dut, bench, max_cycles=20_000)


# Corrupt descriptors -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stop:
    """Layer in which a program must stop, and why."""

    layer: int
    codes: tuple[int, ...]


def predicted_stop(words: np.ndarray, array: ArraySpec) -> Stop:
    """Follow a descriptor memory to its end or to the first error."""
    memory = np.zeros(array.descriptor_depth + HEADER_WORDS, np.uint32)
    memory[: len(words)] = words
    position = 0
    for number in range(array.descriptor_depth):
        halves = memory[position : position + HEADER_WORDS].view(np.uint16).tolist()
        fields = dict(zip(FIELD_NAMES, halves, strict=False))
        for field in descriptor_fields(array):
            fields[field.name] -= 0x10000 if field.signed and fields[field.name] & 0x8000 else 0
        wrong = [
            index
            for index, field in enumerate(descriptor_fields(array))
            if not field.low <= fields[field.name] <= field.high
        ]
        code = ErrorCode.FIELD | wrong[0] << 16 if wrong else ErrorCode.NONE
        if position + HEADER_WORDS + fields["passes"] > array.descriptor_depth:
            return Stop(number, (ErrorCode.END, code) if wrong else (ErrorCode.END,))
        if wrong:
            return Stop(number, (code,))
        if Descriptor(fields=fields, passes=()).window_words > array.window_words_max:
            return Stop(number, (ErrorCode.WINDOW,))
        if fields["flags"] & FLAG_LAST:
            return Stop(number, (ErrorCode.NONE,))
        position += HEADER_WORDS + fields["passes"]
    raise AssertionError("unreachable: every layer has at least a header")


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_corrupt_descriptors_stop_with_the_error_and_change_nothing_else(data):
    program, [images, *_] = small(data.draw(st.sampled_from(["off", "skip"])))
    masks = st.one_of(st.integers(0, 31).map(lambda bit: 1 << bit), st.integers(1, 2**32 - 1))
    places = st.integers(0, len(program.descriptors) - 1)
    corruptions = data.draw(st.lists(st.tuples(places, masks), min_size=1, max_size=4))
    dut = Accelerator(program.spec)

    async def corrupted_run(ctx: Any, machine: Machine, index: int, mask: int) -> None:
        words = program.descriptors.copy()
        words[index] ^= np.uint32(mask)
        stop = predicted_stop(words, program.spec)
        await machine.load([(machine.at(Region.DESCRIPTORS, index), int(words[index]))])
        await machine.load(program.image_writes(images))
        await machine.control(START)
        for _ in range(600):
            await ctx.tick()
            if ctx.get(dut.interrupt):
                break
            if ctx.get(dut.probe.write) and stop.codes != (ErrorCode.NONE,):
                assert ctx.get(dut.probe.layer) < stop.layer
        if ctx.get(dut.interrupt):
            assert await machine.register(Register.ERROR) in stop.codes
        else:  # a layer of more work than anybody would wait for
            assert await machine.register(Register.LAYER) <= stop.layer
            await machine.control(STOP)
            await ctx.tick().repeat(2)
        assert not await machine.register(Register.STATUS) & BUSY

    async def bench(ctx):
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for index, mask in corruptions:
            await corrupted_run(ctx, machine, index, mask)
            # Weights and thresholds are as before, and the machine works.
            await machine.load([(machine.at(Region.DESCRIPTORS, index), int(program.descriptors[index]))])
            assert await machine.run(program, images) == predicted(program, images)

    drive(dut, bench, max_cycles=20_000)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pool_height": 16}, ErrorCode.FIELD | FIELD_NAMES.index("pool_height") << 16),
        ({"kernel_height": 40}, ErrorCode.WINDOW),
    ],
)
def test_the_layer_register_names_the_layer_with_the_error(changes, code):
    program, [images, *_] = small()
    dut = Accelerator(program.spec)
    first = program.parsed[0].words
    words = program.descriptors.copy()
    for name, value in changes.items():
        index, half = divmod(FIELD_NAMES.index(name), 2)
        words.view(np.uint16)[2 * (first + index) + half] = value
    broken = [(dut.spec.derived.host_address(Region.DESCRIPTORS, index), int(word)) for index, word in enumerate(words)]

    async def bench(ctx):
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        await machine.load(broken)
        await machine.load(program.image_writes(images))
        await machine.control(START)
        assert await machine.wait()
        assert await machine.register(Register.STATUS) == DONE | ERROR
        assert await machine.register(Register.ERROR) == code
        assert await machine.register(Register.LAYER) == 1

    drive(dut, bench)
