import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.codebook import PLAIN_TABLE, CodebookDecoder, CodebookStreamer
from bitwright.hw.isa import FLAG_LAST, HEADER_TO_READY, ArraySpec, Descriptor, Pass, repeat_table
from bitwright.hw.sequencer import LayerSequencer
from bitwright.hw.synthesis import design_text, synthesize, utilization
from drive import drive, header


def spec(codebook_bits: int, lanes: int = 32, **options: Any) -> ArraySpec:
    """Array with a decoder and few rows."""
    return ArraySpec(
        rows=4,
        lanes=lanes,
        drain_planes=1,
        weight_stream=True,
        codebook_bits=codebook_bits,
        descriptor_depth=64,
        **options,
    )


def bits_of(word: int, lanes: int) -> npt.NDArray[np.int64]:
    """Lanes of a word."""
    return np.array([word >> lane & 1 for lane in range(lanes)])


def word_of(bits: npt.NDArray[np.integer[Any]]) -> int:
    """Inverse of :func:`bits_of`."""
    return sum(int(bit) << lane for lane, bit in enumerate(bits))


def looked_up(planes: list[int], table: int, lanes: int) -> int:
    """One plane of a word, given the planes of its indices, the least significant first."""
    indices = sum(bits_of(plane, lanes) << place for place, plane in enumerate(planes))
    return word_of(np.array([table >> n & 1 for n in range(16)])[indices])


# CodebookDecoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [32, 128])
@pytest.mark.parametrize("codebook_bits", [1, 2, 3, 4])
def test_each_lane_looks_up_its_index(codebook_bits, lanes):
    dut = CodebookDecoder(spec(codebook_bits, lanes))

    async def bench(ctx):
        rng = random.Random(codebook_bits)
        # Every index, in some lane and in every one; tables with one entry and of all kinds.
        everywhere = [
            [-(n >> place & 1) % (1 << lanes) for place in range(codebook_bits)] for n in range(1 << codebook_bits)
        ]
        mixed = [[rng.getrandbits(lanes) for _ in range(codebook_bits)] for _ in range(10)]
        tables = [1 << n for n in range(1 << codebook_bits)] + [rng.getrandbits(1 << codebook_bits) for _ in range(10)]
        for planes in everywhere + mixed:
            for table in tables:
                for place, plane in enumerate(planes):
                    ctx.set(dut.indices[place], plane)
                ctx.set(dut.table, table)
                await ctx.delay(1e-9)
                assert ctx.get(dut.word) == looked_up(planes, table, lanes)

    drive(dut, bench)


def test_a_plain_word_is_an_index_of_one_plane():
    for above in (0, 0b1111, 0b0110):
        assert looked_up([0b1010, above, above, 0], PLAIN_TABLE, 4) == 0b1010


def test_tables_repeat():
    array = spec(3)
    assert repeat_table(0b10, 1, array) == 0b10101010 == PLAIN_TABLE & 0xFF
    assert repeat_table(0xF6, 2, array) == 0x66
    assert repeat_table(0xF6, 3, array) == 0xF6


@pytest.mark.slow
@pytest.mark.parametrize(("codebook_bits", "luts"), [(1, 0.5), (2, 1), (3, 2.5), (4, 5)])
def test_a_lane_takes_as_many_luts_as_its_choice(codebook_bits, luts, tmp_path):
    """Four-way choices of one six-input LUT each: one for 4 bits of a table, five for 16."""
    text = design_text(CodebookDecoder(spec(codebook_bits, 64)))
    assert utilization(synthesize(text, "xilinx7", tmp_path)).luts <= luts * 64


# CodebookStreamer ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transfer:
    """The stream of a part, and what it writes to each row."""

    layer: Descriptor
    beats: list[int]
    writes: list[tuple[int, int, int]]


def transfer(rng: random.Random, array: ArraySpec, layer: Descriptor) -> Transfer:
    """Random words for a part."""
    chunks, lanes = array.derived.chunks, array.lanes
    beats: list[int] = []
    writes: list[tuple[int, int, int]] = []

    def word() -> int:
        value = rng.getrandbits(lanes)
        beats.extend(value >> 32 * chunk & 0xFFFFFFFF for chunk in range(chunks))
        return value

    if not layer.index_planes:
        for row in range(array.rows):
            writes += [(row, (layer.weight_base + n) % array.weight_depth, word()) for n in range(layer.stream_words)]
        return Transfer(layer, beats, writes)
    tables = [rng.getrandbits(1 << layer.index_planes) for _ in range(layer.decoded_planes)]
    noise = [rng.getrandbits(32) >> (1 << array.codebook_bits) << (1 << array.codebook_bits) for _ in tables]
    beats += [
        repeat_table(table, layer.index_planes, array) | above for table, above in zip(tables, noise, strict=True)
    ]
    for row in range(array.rows):
        for tile in range(layer.row_tiles):
            start = layer.weight_base + tile * layer.weight_tile_stride
            writes += [(row, (start + n) % array.weight_depth, word()) for n in range(layer.plain_words)]
            start += layer.plain_words
            for n in range(layer.window_length):
                planes = [word() for _ in range(layer.index_planes)][::-1]  # the most significant comes first
                writes += [
                    (
                        row,
                        (start + plane * layer.window_length + n) % array.weight_depth,
                        looked_up(planes, table, lanes),
                    )
                    for plane, table in enumerate(tables)
                ]
    return Transfer(layer, beats, writes)


@st.composite
def layers(draw: st.DrawFn, array: ArraySpec) -> Descriptor:
    """A part whose weights are streamed, coded more often than not."""
    fields: dict[str, int] = {"weight_base": draw(st.integers(0, 0xFFFF)), "stream_words": draw(st.integers(1, 5))}
    if draw(st.sampled_from([True, True, False])):
        fields |= {
            "index_planes": draw(st.integers(1, array.codebook_bits)),
            "decoded_planes": draw(st.integers(1, array.weight_planes_max)),
            "window_length": draw(st.integers(1, 3)),
            "plain_words": draw(st.sampled_from([0, 0, 1, 3])),
            "row_tiles": draw(st.integers(1, 2)),
            "weight_tile_stride": draw(st.integers(0, 50)),
        }
        words = fields["plain_words"] + fields["index_planes"] * fields["window_length"]
        fields["stream_words"] = fields["row_tiles"] * words
    return Descriptor(fields=header(**fields), passes=())


async def stream_in(ctx: Any, dut: CodebookStreamer, load: Transfer, rng: random.Random, gaps: float) -> int:
    """Load one part; return the cycles from its start until the layer would be ready."""
    beats, written, cycle = list(load.beats), [], 0
    ctx.set(dut.layer, load.layer.fields)
    ctx.set(dut.beats.valid, 1)  # before the start nothing is taken
    assert not ctx.get(dut.beats.ready)
    ctx.set(dut.start, 1)
    assert not ctx.get(dut.beats.ready)
    await ctx.tick()
    ctx.set(dut.start, 0)
    while True:
        cycle += 1
        valid = bool(beats) and rng.random() >= gaps
        ctx.set(dut.beats.valid, valid)
        ctx.set(dut.beats.payload, beats[0] if valid else 0xDEADBEEF)
        if ctx.get(dut.write):
            address = ctx.get(dut.write_address) % dut.spec.weight_depth
            written.append((ctx.get(dut.write_row), address, ctx.get(dut.write_word)))
        if ctx.get(dut.done):
            break
        if valid and ctx.get(dut.beats.ready):
            beats.pop(0)
        await ctx.tick()
        assert cycle < 10_000
    assert beats == []
    assert written == load.writes
    ctx.set(dut.beats.valid, 1)
    await ctx.tick()
    for _ in range(3):
        assert not any(ctx.get(port) for port in (dut.beats.ready, dut.write, dut.done))
        await ctx.tick()
    return cycle


@given(data=st.data(), gaps=st.sampled_from([0, 0, 0.3, 0.9]), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_streamed_weights_are_decoded_and_written_row_by_row(data, gaps, seed):
    """In as many cycles as the contract says, where beats never wait."""
    array = spec(data.draw(st.integers(1, 4)), data.draw(st.sampled_from([32, 32, 64, 128])),
                 weight_planes_max=data.draw(st.sampled_from([1, 3, 8, 8])))  # fmt: skip
    parts = data.draw(st.lists(layers(array), min_size=1, max_size=3))
    dut = CodebookStreamer(array)

    async def bench(ctx):
        rng = random.Random(seed)
        for layer in parts:
            load = transfer(rng, array, layer)
            assert len(load.beats) == layer.stream_beats(array)
            assert [address for row, address, _ in load.writes if row == 0] == sorted_by_write(layer, array)
            cycles = await stream_in(ctx, dut, load, rng, gaps)
            assert cycles == layer.stream_cycles(array) if not gaps else cycles >= layer.stream_cycles(array)

    drive(dut, bench, max_cycles=30_000)


def sorted_by_write(layer: Descriptor, array: ArraySpec) -> list[int]:
    """Addresses of a row, in the order in which they are written: word by word, planes of a word side by side."""
    addresses = layer.stream_addresses()
    if layer.index_planes:
        tiles = addresses.reshape(layer.row_tiles, -1)
        coded = tiles[:, layer.plain_words :].reshape(layer.row_tiles, layer.decoded_planes, -1)
        tiles = np.concatenate([tiles[:, : layer.plain_words], coded.swapaxes(1, 2).reshape(layer.row_tiles, -1)], 1)
        addresses = tiles.reshape(-1)
    return (addresses % array.weight_depth).tolist()


@pytest.mark.parametrize("decoded_planes", range(1, 9))
@pytest.mark.parametrize("index_planes", range(1, 5))
def test_a_word_takes_its_beats_or_its_planes(index_planes, decoded_planes):
    """Whichever are more; the first word comes after the tables, and the last one's planes after it."""
    array = spec(4, lanes=64)
    words = 3
    fields = header(stream_words=index_planes * words, index_planes=index_planes, decoded_planes=decoded_planes,
                    window_length=words)  # fmt: skip
    layer = Descriptor(fields=fields, passes=())
    beats = array.derived.chunks * index_planes
    steady = (array.rows * words - 1) * max(beats, decoded_planes)
    assert layer.stream_cycles(array) == decoded_planes + beats + steady + decoded_planes + 1
    dut = CodebookStreamer(array)

    async def bench(ctx):
        rng = random.Random(index_planes)
        assert await stream_in(ctx, dut, transfer(rng, array, layer), rng, 0) == layer.stream_cycles(array)

    drive(dut, bench)


@given(st.data(), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_numbers_end(data, seed):
    """Whatever the fields say, as many beats are taken as there are tables and words, and the addresses end."""
    array = spec(data.draw(st.integers(1, 4)), weight_planes_max=data.draw(st.sampled_from([1, 5, 8])))
    numbers = {
        "index_planes": st.integers(0, array.codebook_bits),
        "decoded_planes": st.integers(0, array.weight_planes_max),
        "stream_words": st.integers(1, 9),
        **{name: st.sampled_from([0, 1, 2, 0xFFFF]) for name in ("plain_words", "weight_tile_stride", "weight_base")},
        "window_length": st.integers(1, 9),
    }
    fields = header(**{name: data.draw(values) for name, values in numbers.items()})
    dut = CodebookStreamer(array)

    async def bench(ctx):
        rng = random.Random(seed)
        ctx.set(dut.layer, fields)
        ctx.set(dut.beats.valid, 1)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        taken = cycle = 0
        while not ctx.get(dut.done):
            ctx.set(dut.beats.payload, rng.getrandbits(32))
            taken += ctx.get(dut.beats.ready)
            cycle += 1
            await ctx.tick()
            assert cycle <= MOST_PLANES + MOST_PLANES * (array.rows * fields["stream_words"] + 1) + 2
        tables = taken - array.rows * fields["stream_words"]
        assert 0 <= tables <= MOST_PLANES
        assert tables == fields["decoded_planes"] or not fields["index_planes"] or not fields["decoded_planes"]

    drive(dut, bench)


MOST_PLANES = 8


def test_a_start_ends_what_a_streamer_was_doing():
    """After a reset: planes and indices of a word that never came do not reach the next one."""
    array = spec(3, lanes=64)
    fields = {"index_planes": 3, "decoded_planes": 4, "window_length": 2, "plain_words": 1, "stream_words": 7}
    coded = Descriptor(fields=header(**fields), passes=())
    single = Descriptor(fields=header(**fields | {"index_planes": 1, "stream_words": 3}), passes=())
    m = Module()
    m.submodules.dut = dut = CodebookStreamer(array)
    sync: Any = ClockDomain()
    m.domains.sync = sync

    async def bench(ctx):
        rng = random.Random(1)
        for after in (1, 4, 5, 7, 12, 13, 15, 30):
            load = transfer(rng, array, coded)
            ctx.set(dut.layer, coded.fields)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.beats.valid, 1)
            for beat in load.beats[:after]:
                ctx.set(dut.beats.payload, beat)
                await ctx.tick()
            ctx.set(sync.rst, 1)
            await ctx.tick()
            ctx.set(sync.rst, 0)
            assert not ctx.get(dut.write)
            await stream_in(ctx, dut, transfer(rng, array, single), rng, 0)

    drive(m, bench)


def test_a_layer_waits_until_its_weights_are_decoded():
    array = spec(2, weight_planes_max=4)
    fields = {"index_planes": 2, "decoded_planes": 3, "run_granules": 16, "window_length": 2, "plain_words": 1}
    layer = Descriptor(fields=header(stream_words=5, flags=FLAG_LAST, **fields), passes=(Pass(0, 0, 0, 0, False),))
    m = Module()
    m.submodules.dut = dut = LayerSequencer(array)
    m.submodules.streamer = streamer = CodebookStreamer(array)
    m.submodules.store = store = memory.Memory(shape=32, depth=64, init=layer.encode(array).tolist())
    port = store.read_port()
    m.d.comb += [
        port.addr.eq(dut.address),
        dut.word.eq(port.data),
        streamer.start.eq(dut.stream_start),
        streamer.layer.eq(dut.stream_layer),
        dut.stream_done.eq(streamer.done),
        streamer.beats.valid.eq(1),
    ]

    async def bench(ctx):
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        for _ in range(HEADER_TO_READY + layer.stream_cycles(array) + 1):
            assert not ctx.get(dut.run)
            await ctx.tick()
        assert ctx.get(dut.run)

    drive(m, bench)
