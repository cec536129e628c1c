import dataclasses
import random
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import ClockDomain, Module
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.isa import (
    COUNTERS,
    FIELD_PLACES,
    FLAG_LAST,
    HEADER_TO_READY,
    HEADER_WORDS,
    SCHEDULE_OVERHEAD,
    STREAM_OVERHEAD,
    ArraySpec,
    Descriptor,
    ErrorCode,
    Region,
    Register,
    ZeroSkip,
    descriptor_fields,
)
from bitwright.hw.program import Program
from bitwright.sim import bitserial, golden
from bitwright.sim.backends import commands, recorder, simulate
from bitwright.sim.backends.verilator import build
from bitwright.sim.compare import compare
from bitwright.sim.tools import compiler, verilator
from drive import Bus, drive
from programs import conv, linear, random_images, random_program
from strategies import programs
from tiny import CASES, spec

START, STOP = 1, 2
BUSY, DONE, ERROR = 1, 2, 4

Images = npt.NDArray[np.uint8]


# Whole programs ------------------------------------------------------------------------------------------------------


def assert_exact(program: Program, images: Images) -> None:
    """Values, cycles, counters and every write equal the golden model's."""
    trace = range(len(program.parsed))
    expected = golden.execute(program, images, trace=trace)
    found = simulate(program, images, "pysim", trace)
    assert [compare(*pair).first for pair in zip(expected, found, strict=True)] == [None] * len(expected)


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
@pytest.mark.parametrize("name", CASES)
def test_tiny_programs_are_exact(name: str, zero_skip: ZeroSkip) -> None:
    assert_exact(*CASES[name](zero_skip))


def seconds(case: tuple[Program, Images]) -> bool:
    """Whether the simulation of a case takes no longer."""
    return sum(run.cycles for run in golden.execute(*case)) < 1200


@given(programs().filter(seconds))
@settings(max_examples=8, deadline=None)
def test_any_program_is_exact(case: tuple[Program, Images]) -> None:
    assert_exact(*case)


@pytest.mark.slow
@given(programs().filter(seconds))
@settings(max_examples=120, deadline=None)
def test_any_of_many_programs_is_exact(case: tuple[Program, Images]) -> None:
    assert_exact(*case)


# One machine, many runs ----------------------------------------------------------------------------------------------


class Machine(Bus):
    """The host of a whole accelerator."""

    def __init__(self, ctx: Any, dut: Accelerator) -> None:
        super().__init__(ctx, dut.spec, dut.host)
        self.dut = dut

    async def load(self, writes: Iterable[tuple[int, int]]) -> None:
        """Write a sequence of (address, data), one a cycle."""
        for address, data in writes:
            self.request(address, data)
            await self.ctx.tick()
        self.idle()

    async def start(self, beats: Iterator[int | None] | None = None) -> None:
        """Start a run, and offer the first of its ``beats``, if any: see :meth:`wait`."""
        self.offer(beats)
        await self.control(START)
        await self.ctx.tick()

    def offer(self, beats: Iterator[int | None] | None) -> None:
        """Offer the stream's next beat; a None is a cycle without one."""
        beat = next(beats, None) if beats is not None else None
        self.ctx.set(self.dut.weights.valid, beat is not None)
        if beat is not None:
            self.ctx.set(self.dut.weights.payload, beat)

    async def wait(self, limit: int = 5000, beats: Iterator[int | None] | None = None) -> bool:
        """Wait for the end of a run, and stream weights in; whether it ended within a number of cycles."""
        for _ in range(limit):
            if self.ctx.get(self.dut.interrupt):
                return True
            taken = self.ctx.get(self.dut.weights.valid) and self.ctx.get(self.dut.weights.ready)
            empty = not self.ctx.get(self.dut.weights.valid)
            await self.ctx.tick()
            if taken or empty:
                self.offer(beats)
        return False

    async def results(self, program: Program, images: Images) -> tuple[list[int], dict[str, int]]:
        """Results and counters of the run that has ended."""
        assert await self.register(Register.STATUS) == DONE
        count = len(images) * len(program.output_scale)
        results = [await self.read(self.at(Region.RESULTS, index)) for index in range(count)]
        counters = {name: await self.register(Register[name.upper()]) for name in COUNTERS}
        return np.array(results, np.uint32).astype(np.int32).tolist(), counters

    async def run(
        self, program: Program, images: Images, beats: Iterator[int | None] | None = None
    ) -> tuple[list[int], dict[str, int]]:
        """Load images, run, and return results and counters."""
        await self.load(program.image_writes(images))
        await self.start(beats)
        assert await self.wait(beats=beats)
        return await self.results(program, images)


def predicted(program: Program, images: Images) -> tuple[list[int], dict[str, int]]:
    """What :meth:`Machine.run` returns."""
    [run] = golden.execute(program, images)
    return run.accumulators.reshape(-1).tolist(), run.counters


def small(zero_skip: ZeroSkip = "skip", seed: int = 0) -> tuple[Program, list[Images]]:
    """A Program of a few hundred cycles, and images for several runs."""
    rng = np.random.default_rng(seed)
    layers = [conv(5, 2, pool=2, output_planes=2), conv(3, 1, output_planes=1), linear(3)]
    program = random_program(rng, spec(4, 2, zero_skip=zero_skip), layers, in_shape=(33, 3, 3), input_bits=2)
    return program, [random_images(rng, program, 1, zeros=zeros) for zeros in (0.2, 0.9, 0.5)]


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
def test_runs_follow_each_other(zero_skip: ZeroSkip) -> None:
    program, batches = small(zero_skip)
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for images in batches:
            assert await machine.run(program, images) == predicted(program, images)
        # Loaded and started again from the very cycle of the interrupt on.
        for images in batches:
            await machine.load(program.image_writes(images))
            await machine.start()
            assert not ctx.get(dut.interrupt)
            assert await machine.wait()
        assert await machine.results(program, batches[-1]) == predicted(program, batches[-1])

    drive(dut, bench)


def test_a_program_may_be_loaded_over_another() -> None:
    """Neither the memories nor the state that one leaves disturb the next."""
    array = spec(4, 2, lanes=64, residual=True, coefficient_bits=4, coefficient_depth=64, zero_skip="skip")
    identity = {"source": 0, "weight_encoding": "unsigned", "weight_bits": 1}
    networks: list[list[dict[str, Any]]] = [
        [conv(9, 2, pool=2, weight_encoding="bipolar_basis", code_table=(2, 0, 3, 1)), linear(3)],
        [conv(5, 1, output_planes=3), conv(5, 3, padding=1, residual=identity, output_planes=1), linear(11)],
        [linear(2, weight_encoding="odd")],
    ]
    cases: list[tuple[Program, Images]] = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        program = random_program(rng, array, networks[seed % 3], in_shape=(2, 3, 4), input_bits=2)
        cases.append((program, random_images(rng, program, 1)))
    dut = Accelerator(array)

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        for program, images in cases:
            await machine.load(program.host_writes())
            assert await machine.run(program, images) == predicted(program, images)

    drive(dut, bench)


@given(after=st.lists(st.integers(0, 350), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None)
def test_a_run_may_be_stopped_at_any_time(after: list[int]) -> None:
    program, batches = small()
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
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


@given(after=st.lists(st.integers(0, 350), min_size=2, max_size=4))
@settings(max_examples=6, deadline=None)
def test_the_machine_may_be_reset_at_any_time(after: list[int]) -> None:
    """Memories keep their contents: the Program need not be loaded again."""
    program, batches = small()
    m = Module()
    sync: Any = ClockDomain()
    m.domains.sync = sync
    m.submodules.dut = dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for cycles, images in zip(after, [*batches, batches[0]], strict=False):
            await machine.load(program.image_writes(images))
            await machine.control(START)
            for _ in range(cycles):
                await ctx.tick()
            ctx.set(sync.rst, 1)
            await ctx.tick()
            ctx.set(sync.rst, 0)
            for _ in range(30):
                assert not ctx.get(dut.probe.write)
                assert not ctx.get(dut.interrupt)
                await ctx.tick()
            for register in (Register.STATUS, Register.ERROR, Register.CYCLES, Register.LAYER):
                assert await machine.register(register) == 0
            assert await machine.run(program, images) == predicted(program, images)

    drive(m, bench)


def test_a_stop_leaves_all_registers_clear() -> None:
    program, [images, *_] = small()
    cycles = predicted(program, images)[1]["cycles"]
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
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


def test_a_start_during_a_run_changes_nothing() -> None:
    program, [images, *_] = small()
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        await machine.load(program.image_writes(images))
        await machine.control(START)
        for _ in range(40):
            await machine.control(START)
            await ctx.tick()
        assert await machine.register(Register.STATUS) == BUSY
        assert await machine.wait()
        assert await machine.results(program, images) == predicted(program, images)

    drive(dut, bench)


def test_writes_during_a_run_are_dropped_and_reported() -> None:
    program, [images, others, _] = small()
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
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
        expected, counters = predicted(program, images)
        assert await machine.register(Register.CYCLES) == counters["cycles"]
        assert await machine.read(machine.at(Region.RESULTS, 0)) == expected[0] & 0xFFFFFFFF
        assert await machine.run(program, others) == predicted(program, others)

    drive(dut, bench)


def beats_of(program: Program, gaps: random.Random, share: float) -> Iterator[int | None]:
    """What the weight stream offers in a run, with gaps."""
    for beat in program.stream.tolist():
        while gaps.random() < share:
            yield None
        yield beat


@pytest.mark.parametrize(
    ("name", "share"), [("streamed", 0.0), ("streamed", 0.3), ("streamed", 0.9), ("coded", 0.0), ("coded", 0.6)]
)
def test_weights_may_come_at_any_pace(name: str, share: float) -> None:
    program, images = CASES[name]("skip")
    expected, counters = predicted(program, images[:1])
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
        machine, gaps = Machine(ctx, dut), random.Random(share)
        await machine.load(program.host_writes())
        for stopped_after in (100, 350):
            beats = beats_of(program, gaps, share)
            await machine.load(program.image_writes(images[:1]))
            await machine.start(beats)
            assert not await machine.wait(stopped_after, beats)
            await machine.control(STOP)
            await ctx.tick().repeat(2)
            assert not ctx.get(dut.weights.ready)
            beats = beats_of(program, gaps, share)
            results, found = await machine.run(program, images[:1], beats)
            assert results == expected
            assert next(beats, None) is None
            assert found["cycles"] >= counters["cycles"]
            # What the array computes does not depend on when its weights come.
            assert {**found, "cycles": 0} == {**counters, "cycles": 0}
            if not share:
                assert found == counters

    drive(dut, bench, max_cycles=100_000)


def test_a_layer_waits_for_its_weights() -> None:
    program, images = CASES["streamed"]("off")
    dut = Accelerator(program.spec)

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        await machine.load(program.image_writes(images[:1]))
        await machine.start()
        assert not await machine.wait(1000)
        assert await machine.register(Register.STATUS) == BUSY
        assert await machine.register(Register.BUSY) == 0
        assert await machine.wait(beats=iter(program.stream.tolist()))
        assert (await machine.results(program, images[:1]))[0] == predicted(program, images[:1])[0]

    drive(dut, bench, max_cycles=100_000)


# Activation memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["offsets", "wide", "residual", "grouped", "bases"])
def test_the_memory_holds_the_codes_and_else_what_it_held(name: str) -> None:
    """Layers write the granules of their output, all lanes of them, and nothing else."""
    program, images = CASES[name]("skip")
    array, images = program.spec, images[:1]
    expected = bitserial.Machine(program)
    expected.run(images)
    dut = Accelerator(array)
    places = [(word, chunk) for word in range(array.activation_depth) for chunk in range(array.derived.chunks)]

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        addresses = [machine.at(Region.ACTIVATIONS, word, chunk=chunk) for word, chunk in places]
        await machine.load((address, 0xFFFFFFFF) for address in addresses)
        await machine.load(program.host_writes())
        assert await machine.run(program, images) == predicted(program, images)
        octets = np.array([await machine.read(address) for address in addresses], "<u4").view(np.uint8)
        granules = np.stack([octets & 15, octets >> 4], axis=-1).reshape(-1)
        np.testing.assert_array_equal(granules, expected.activations)
        assert (granules == 15).any()

    drive(dut, bench, max_cycles=30_000)


# Corrupt descriptors -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fate:
    """How a program ends: in which layer, with which error, and after how many cycles at most."""

    layer: int
    error: int
    cycles: int


def fate(words: npt.NDArray[np.uint32], array: ArraySpec) -> Fate:
    """Follow a descriptor memory to its end or to the first error."""
    memory = np.zeros(array.descriptor_depth, np.uint32)
    memory[: len(words)] = words
    position = cycles = 0
    for number in range(array.descriptor_depth):
        fields: dict[str, int] = {}
        wrong: list[int] = []
        for index, field in enumerate(descriptor_fields(array)):
            word, bit = FIELD_PLACES[field.name]
            value = int(memory[(position + word) % len(memory)]) >> bit & ((1 << field.bits) - 1)
            value -= (1 << field.bits) if field.signed and value >> (field.bits - 1) else 0
            fields[field.name] = value
            wrong += [] if field.low <= value <= field.high else [index]
            if field.name == "passes":
                position_after = position + HEADER_WORDS + (value & ((1 << field.width) - 1))
        cycles += HEADER_TO_READY + 100
        if position_after > array.descriptor_depth:
            return Fate(number, ErrorCode.END, cycles)
        if wrong:
            return Fate(number, ErrorCode.FIELD | wrong[0] << 16, cycles)
        layer = Descriptor(fields=fields, passes=())
        cycles += most_cycles(layer, array)
        if sum(layer.plane_words(array)) > array.window_depth:
            return Fate(number, ErrorCode.WINDOW, cycles)
        if fields["flags"] & FLAG_LAST:
            return Fate(number, ErrorCode.NONE, cycles)
        position = position_after
    raise AssertionError("unreachable: every layer has at least a header")


def most_cycles(layer: Descriptor, array: ArraySpec) -> int:
    """Cycles of a layer at most, whatever its passes are."""
    passes = layer.fields["passes"]
    operations = passes * (array.window_depth + 7) + 1
    drain = array.columns * max(array.rows, array.activation_planes_max)
    loads = array.columns + layer.group_loads(array) + array.derived.load_latency
    group = loads + passes + SCHEDULE_OVERHEAD + layer.row_tiles * max(operations, drain)
    # A table for each plane that there may be, then words of so many beats, each decoded to so many planes at most.
    planes = 1 << (array.weight_planes_max - 1).bit_length() if array.codebook_bits else 0
    words = layer.stream_words * array.rows + 1
    stream = planes + words * max(array.derived.chunks, planes) + STREAM_OVERHEAD
    return stream + -(-layer.pixels // array.columns) * group + drain


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_corrupt_descriptors_stop_with_the_error_and_change_nothing_else(data: st.DataObject) -> None:
    program, [images, *_] = small(data.draw(st.sampled_from(["off", "skip"])))
    masks = st.one_of(st.integers(0, 31).map(lambda bit: 1 << bit), st.integers(1, 2**32 - 1))
    places = st.integers(0, len(program.descriptors) - 1)
    corruptions = data.draw(st.lists(st.tuples(places, masks), min_size=1, max_size=4))
    dut = Accelerator(program.spec)

    async def corrupted_run(ctx: Any, machine: Machine, index: int, mask: int) -> None:
        words = program.descriptors.copy()
        words[index] ^= np.uint32(mask)
        expected = fate(words, program.spec)
        await machine.load([(machine.at(Region.DESCRIPTORS, index), int(words[index]))])
        await machine.load(program.image_writes(images))
        await machine.control(START)
        for cycle in range(600):
            await ctx.tick()
            if ctx.get(dut.interrupt):
                break
            assert cycle < expected.cycles
            if ctx.get(dut.probe.write) and expected.error:
                assert ctx.get(dut.probe.layer) < expected.layer
        if ctx.get(dut.interrupt):
            assert await machine.register(Register.ERROR) == expected.error
        else:  # a layer of more work than anybody would wait for
            assert await machine.register(Register.LAYER) <= expected.layer
            await machine.control(STOP)
            await ctx.tick().repeat(2)
        assert not await machine.register(Register.STATUS) & BUSY

    async def bench(ctx: Any) -> None:
        machine = Machine(ctx, dut)
        await machine.load(program.host_writes())
        for index, mask in corruptions:
            await corrupted_run(ctx, machine, index, mask)
            # Weights and thresholds are as before, and the machine works.
            await machine.load([(machine.at(Region.DESCRIPTORS, index), int(program.descriptors[index]))])
            assert await machine.run(program, images) == predicted(program, images)

    drive(dut, bench, max_cycles=20_000)


def place(array: ArraySpec, words: npt.NDArray[np.uint32], first: int, name: str, value: int) -> None:
    """Set a field of the header that starts at word ``first``."""
    [field] = [field for field in descriptor_fields(array) if field.name == name]
    word, bit = FIELD_PLACES[name]
    mask = ((1 << field.bits) - 1) << bit
    words[first + word] = int(words[first + word]) & ~mask | (value << bit) & mask


def corrupted(rng: np.random.Generator, program: Program) -> npt.NDArray[np.uint32]:
    """Descriptors with a bit flipped, words of noise, or fields that say something else, most of them legal."""
    array, words = program.spec, program.descriptors.copy()
    firsts = np.cumsum([0, *(layer.words for layer in program.parsed)])[:-1]
    kind = rng.integers(4)
    if kind == 0:
        words[rng.integers(len(words))] ^= np.uint32(1 << int(rng.integers(32)))
    elif kind == 1:
        for _ in range(rng.integers(1, 4)):
            words[rng.integers(len(words))] = rng.integers(1 << 32)
    else:
        fields = descriptor_fields(array)
        for index in rng.choice(len(fields), rng.integers(1, 6), replace=False).tolist():
            field, first = fields[index], int(rng.choice(firsts))
            # Small numbers as often as large ones: those end soon.
            top = min(field.high, 1 << int(rng.integers(1, 17)))
            place(array, words, first, field.name, int(rng.integers(field.low, top, endpoint=True)))
        if kind == 3:
            layer = int(rng.integers(len(firsts)))
            passes = range(int(firsts[layer]) + HEADER_WORDS, int(firsts[layer]) + program.parsed[layer].words)
            words[passes] = rng.integers(1 << 32, size=len(passes))
    return words


def corrupt_runs(
    simulator: Path, program: Program, images: Images, jobs: list[npt.NDArray[np.uint32]], limit: int
) -> list[int | None]:
    """Run with each job's descriptors, then with the Program's own; the last job is one that did not end in time.

    Returns
    -------
    list
        Value of the error register of each job, or None if there is no end within ``limit`` cycles.
    """
    array = program.spec
    register = {name: array.derived.host_address(Region.REGISTERS, Register[name]) for name in ("CONTROL", "ERROR")}
    results = [array.derived.host_address(Region.RESULTS, index) for index in range(recorder.result_count(program))]
    counters = [array.derived.host_address(Region.REGISTERS, Register[name.upper()]) for name in COUNTERS]
    endless = np.resize(program.stream, 1 << 14) if len(program.stream) else program.stream

    def writes(pairs: Iterable[tuple[int, int]]) -> list[int]:
        return [word for address, data in pairs for word in (commands.WRITE, address, data)]

    def descriptors(words: npt.NDArray[np.uint32]) -> list[int]:
        return writes(
            (array.derived.host_address(Region.DESCRIPTORS, index), data) for index, data in enumerate(words.tolist())
        )

    def run(reads: list[int], stream: npt.NDArray[np.uint32]) -> list[int]:
        loaded = [*writes(program.image_writes(images)), commands.STREAM, len(stream), *stream.tolist()]
        started = [*writes([(register["CONTROL"], START)]), commands.RUN, limit, 0]
        return [*loaded, *started, *(word for address in reads for word in (commands.READ, address))]

    sequence = writes(program.host_writes())
    for words in jobs:
        sequence += [*descriptors(words), *run([register["ERROR"]], endless)]
        sequence += [*descriptors(program.descriptors), *run(results + counters, program.stream)]
    folder = simulator.parent
    (folder / "commands").write_bytes(np.array(sequence, np.uint32).tobytes())
    subprocess.run([simulator, folder / "commands", folder / "records"], check=True)
    records = iter(np.fromfile(folder / "records", np.uint32).tolist())

    def ended() -> bool:
        """Pass over the records of a run."""
        while kind := next(records):
            for _ in range(2 if kind == commands.LAYER_START else 2 + len(recorder.PROBED)):
                next(records)
        return next(records) == 0

    expected, totals = predicted(program, images)
    errors: list[int | None] = []
    for _ in jobs:
        if not ended():
            return [*errors, None]
        errors.append(next(records))
        assert ended()
        found = np.array([next(records) for _ in results], np.uint32).astype(np.int32).tolist()
        assert (found, dict(zip(COUNTERS, records, strict=False))) == (expected, totals)
    return errors


@pytest.mark.parametrize("zero_skip", ["off", "skip"])
def test_thousands_of_corrupt_descriptors_end(zero_skip: ZeroSkip, tmp_path: Path) -> None:
    """With the error that is predicted, or in as many cycles as the work takes at most."""
    if not (verilator().path and compiler().path):
        pytest.skip("no Verilator or no C++ compiler")
    array = spec(
        *(4, 2),
        lanes=64,
        drain_planes=2,
        columns_per_copy=2,
        residual=True,
        coefficient_bits=4,
        coefficient_depth=128,
        weight_stream=True,
        codebook_bits=2 if zero_skip == "skip" else 0,
        weight_depth=16,
        window_depth=32,
        descriptor_depth=256,
        zero_skip=zero_skip,
    )
    rng = np.random.default_rng(11)
    codebook = {"codebook": (-2, 0, 1)} if array.codebook_bits else {}
    layers = [
        conv(10, 2, output_planes=3),
        conv(10, 3, padding=1, residual={"source": 0, "weight_encoding": "ternary"}, **codebook),
        conv(6, 1, weight_encoding="bipolar_basis", pool=2),
        linear(3),
    ]
    program = random_program(rng, array, layers, in_shape=(3, 5, 5), input_bits=2)
    assert len(program.stream) > 0
    images = random_images(rng, program, 1)
    simulator = tmp_path / "simulator"
    simulator.symlink_to(build(array))
    limit = 10_000
    jobs = [corrupted(rng, program) for _ in range(1200)]
    fates = [fate(words, array) for words in jobs]
    seen: dict[int | None, int] = {}
    while jobs:
        errors = corrupt_runs(simulator, program, images, jobs[:30], limit)
        for expected, error in zip(fates, errors, strict=False):
            assert expected.cycles > limit if error is None else error == expected.error
            seen[error] = seen.get(error, 0) + 1
        jobs, fates = jobs[len(errors) :], fates[len(errors) :]
    codes = {ErrorCode(error & 0xFFFF) for error in seen if error is not None}
    assert codes == {ErrorCode.NONE, ErrorCode.FIELD, ErrorCode.WINDOW, ErrorCode.END}
    assert seen[ErrorCode.NONE] > 100


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pool_height": 16}, ErrorCode.FIELD | list(FIELD_PLACES).index("pool_height") << 16),
        ({"kernel_height": 255}, ErrorCode.WINDOW),
    ],
)
def test_the_layer_register_names_the_layer_with_the_error(changes: dict[str, int], code: int) -> None:
    program, [images, *_] = small()
    dut = Accelerator(program.spec)
    words = program.descriptors.copy()
    for name, value in changes.items():
        place(program.spec, words, program.parsed[0].words, name, value)
    broken = [(dut.spec.derived.host_address(Region.DESCRIPTORS, index), int(word)) for index, word in enumerate(words)]

    async def bench(ctx: Any) -> None:
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
