import dataclasses
import itertools
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import memory
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.fetch import PixelWalker, WindowScanner, coordinate_width
from bitwright.hw.isa import FLAG_RAW, SCAN_OVERHEAD, ArraySpec
from drive import drive, header, wrap

SPEC = ArraySpec(activation_depth=256, window_words_max=32)


@st.composite
def layers(draw: st.DrawFn) -> dict[str, int]:
    """Descriptors of small windows over small images; the address steps need not fit the geometry."""
    step = st.integers(0, 0xFFFF)
    small = st.integers(1, 3)
    return header(
        flags=draw(st.sampled_from([0, FLAG_RAW])),
        activation_planes=draw(small),
        input_height=draw(st.integers(1, 5)),
        input_width=draw(st.integers(1, 5)),
        input_words=draw(small),
        input_plane_stride=draw(step),
        kernel_height=draw(small),
        kernel_width=draw(small),
        tap_y_stride=draw(step),
        tap_x_stride=draw(step),
        dilation=draw(small),
        images=draw(st.integers(1, 2)),
        output_height=draw(small),
        output_width=draw(small),
        pool_height=draw(small),
        pool_width=draw(small),
        start_address=draw(step),
        start_y=draw(st.integers(-3, 2)),
        start_x=draw(st.integers(-3, 2)),
        image_address_step=draw(step),
        output_y_address_step=draw(step),
        output_x_address_step=draw(step),
        pool_y_address_step=draw(step),
        pool_x_address_step=draw(step),
        output_y_step=draw(small),
        output_x_step=draw(small),
        pool_y_step=draw(small),
        pool_x_step=draw(small),
        output_planes=draw(small),
        output_base=draw(step),
        output_words=draw(small),
    )


@dataclass(frozen=True)
class Window:
    """Where a window starts, and its place in its pooling window."""

    address: int
    y: int
    x: int
    pool_first: bool
    pool_last: bool


def windows(layer: dict[str, int]) -> list[Window]:
    """All windows of a layer, in the order in which they are computed."""
    levels = ("images", "output_height", "output_width", "pool_height", "pool_width")
    found = []
    for image, *position in itertools.product(*(range(layer[level]) for level in levels)):
        output_y, output_x, pool_y, pool_x = position
        address = (
            layer["start_address"]
            + image * layer["image_address_step"]
            + output_y * layer["output_y_address_step"]
            + output_x * layer["output_x_address_step"]
            + pool_y * layer["pool_y_address_step"]
            + pool_x * layer["pool_x_address_step"]
        )
        y = layer["start_y"] + output_y * layer["output_y_step"] + pool_y * layer["pool_y_step"]
        x = layer["start_x"] + output_x * layer["output_x_step"] + pool_x * layer["pool_x_step"]
        last = (layer["pool_height"] - 1, layer["pool_width"] - 1)
        pool = (pool_y, pool_x)
        found.append(Window(address % SPEC.activation_depth, y, x, pool == (0, 0), pool == last))
    return found


# PixelWalker ---------------------------------------------------------------------------------------------------------


@given(layer=layers(), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_walker_visits_every_window_once_and_in_order(layer, seed):
    dut = PixelWalker(SPEC)
    expected = windows(layer)

    async def bench(ctx):
        rng = random.Random(seed)
        ctx.set(dut.layer, layer)
        for walk in (expected[: len(expected) // 2], expected):  # a start in the middle of a walk starts over
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for window in walk:
                while rng.random() < 0.3:
                    ctx.set(dut.step, 0)
                    await ctx.tick()
                assert not ctx.get(dut.done)
                ports = (dut.address, dut.y, dut.x, dut.pool_first, dut.pool_last)
                assert Window(*(ctx.get(port) for port in ports)) == window
                ctx.set(dut.step, 1)
                await ctx.tick()
            ctx.set(dut.step, 0)
        assert ctx.get(dut.done)

    drive(dut, bench)


def test_coordinates_hold_any_image_and_padding():
    # The largest image has one word a pixel and one row; the greatest padding is 128.
    for depth in (2, 256, 1 << 16):
        width = coordinate_width(ArraySpec(activation_depth=depth))
        for coordinate in (-128, depth - 1 + 128):
            assert wrap(coordinate, width) == coordinate


# WindowScanner -------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """What the scanner must say of a group of windows."""

    known: dict[str, int]
    addresses: list[int]
    pool_ends: list[tuple[bool, bool]]
    lists: list[list[dict[str, int]]]


def groups(layer: dict[str, int], spec: ArraySpec, nonzero: list[list[int]]) -> list[Group]:
    """The windows of a layer in groups of ``columns``, with the words to compute of each plane."""
    found = []
    output = layer["output_base"]
    steps = spec.rows if layer["flags"] & FLAG_RAW else layer["output_planes"]
    chunks = [windows(layer)[start:][: spec.columns] for start in range(0, len(windows(layer)), spec.columns)]
    window_words = layer["kernel_height"] * layer["kernel_width"] * layer["input_words"]
    for chunk in chunks:
        lists = []
        for plane in range(layer["activation_planes"]):
            entries = [entry(layer, spec, nonzero, chunk, plane, word) for word in range(window_words)]
            lists.append([item for item in entries if item["active"] or spec.zero_skip != "skip"])
        known = {
            "valid": (1 << len(chunk)) - 1,
            "output_address": output & 0xFFFF,
            "drain_cycles": len(chunk) * steps,
            "window_words": window_words,
            "last": int(chunk is chunks[-1]),
        }
        pool_ends = [(window.pool_first, window.pool_last) for window in chunk]
        found.append(Group(known, [window.address for window in chunk], pool_ends, lists))
        output += layer["output_words"] * sum(window.pool_last for window in chunk)
    return found


def entry(
    layer: dict[str, int], spec: ArraySpec, nonzero: list[list[int]], chunk: list[Window], plane: int, word: int
) -> dict[str, int]:
    """One word of the windows of a group: kernel row, kernel column, word of the pixel."""
    tap_y, rest = divmod(word, layer["kernel_width"] * layer["input_words"])
    tap_x, pixel_word = divmod(rest, layer["input_words"])
    offset = (
        plane * layer["input_plane_stride"] + tap_y * layer["tap_y_stride"] + tap_x * layer["tap_x_stride"] + pixel_word
    )
    active = 0
    for column, window in enumerate(chunk):
        y, x = window.y + tap_y * layer["dilation"], window.x + tap_x * layer["dilation"]
        inside = 0 <= y < layer["input_height"] and 0 <= x < layer["input_width"]
        flag = spec.zero_skip == "off" or nonzero[column][(window.address + offset) % spec.activation_depth]
        active |= int(inside and flag) << column
    return {"offset": offset % spec.activation_depth, "word": word, "active": active}


class Scan:
    """A scanner with the zero flags of each column in a memory, and the cycles in which its groups become ready."""

    def __init__(self, spec: ArraySpec, nonzero: list[list[int]]) -> None:
        self.dut = dut = WindowScanner(spec)
        self.module = m = Module()
        self.cycle = Signal(32)
        self.ready: list[int] = []
        m.submodules.dut = dut
        m.d.sync += self.cycle.eq(self.cycle + 1)
        for column, flags in enumerate(nonzero):
            m.submodules[f"flags_{column}"] = store = memory.Memory(shape=1, depth=spec.activation_depth, init=flags)
            port = store.read_port()
            m.d.comb += [port.addr.eq(dut.flag_addresses[column]), dut.nonzero[column].eq(port.data)]

    def drive(self, layer: dict[str, int], bench: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        """Start the layer in cycle 0, then run the testbench."""

        async def start(ctx: Any) -> None:
            ctx.set(self.dut.layer, layer)
            ctx.set(self.dut.start, 1)
            await ctx.tick()
            ctx.set(self.dut.start, 0)
            await bench(ctx)

        async def watch(ctx: Any) -> None:
            before = 0
            async for _, _, ready, cycle in ctx.tick().sample(self.dut.ready, self.cycle):
                if ready and not before:
                    self.ready.append(cycle)
                before = ready

        drive(self.module, start, background=watch)

    async def read_list(self, ctx: Any, buffer: int, plane: int, length: int) -> list[dict[str, int]]:
        """Read the word list of a plane."""
        dut, entries = self.dut, []
        ctx.set(dut.list_buffer, buffer)
        ctx.set(dut.list_plane, plane)
        for index in range(length):
            ctx.set(dut.list_index, index)
            await ctx.tick()
            entries.append({name: ctx.get(dut.entry[name]) for name in ("offset", "word", "active")})
        return entries


@given(
    layer=layers(),
    columns=st.integers(1, 4),
    planes_max=st.sampled_from([3, 8]),
    zero_skip=st.sampled_from(["off", "gate", "skip"]),
    zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    patience=st.sampled_from([0, 40]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_scanner_lists_the_words_to_compute(layer, columns, planes_max, zero_skip, zeros, patience, seed):
    spec = dataclasses.replace(SPEC, rows=3, columns=columns, activation_planes_max=planes_max, zero_skip=zero_skip)
    rng = random.Random(seed)
    nonzero = [[int(rng.random() >= zeros) for _ in range(spec.activation_depth)] for _ in range(columns)]
    expected = groups(layer, spec, nonzero)
    waits = [rng.randint(0, patience) for _ in expected]
    scan = Scan(spec, nonzero)
    dut = scan.dut
    taken = []

    async def bench(ctx):
        for group, wait in zip(expected, waits, strict=True):
            while not ctx.get(dut.ready):
                assert not ctx.get(dut.overflow)
                await ctx.tick()
            for _ in range(wait):
                await ctx.tick()
            assert {name: ctx.get(dut.group[name]) for name in group.known} == group.known
            for column, ends in enumerate(group.pool_ends):
                assert (ctx.get(dut.group.pool_first[column]), ctx.get(dut.group.pool_last[column])) == ends
            for plane, words in enumerate(group.lists):
                assert ctx.get(dut.group.list_lengths[plane]) == len(words)
            buffer = ctx.get(dut.buffer)
            taken.append(ctx.get(scan.cycle))
            ctx.set(dut.take, 1)
            await ctx.tick()
            ctx.set(dut.take, 0)
            for column, address in enumerate(group.addresses):
                assert ctx.get(dut.addresses[column]) == address
            # The next group is scanned into the other buffer meanwhile.
            for plane, words in enumerate(group.lists):
                assert await scan.read_list(ctx, buffer, plane, len(words)) == words
        await ctx.tick().repeat(100)
        assert not ctx.get(dut.ready)

    scan.drive(layer, bench)
    group_cycles = columns + layer["activation_planes"] * expected[0].known["window_words"] + SCAN_OVERHEAD
    free = [1] + [max(ready, take + 1) for ready, take in zip(scan.ready, taken, strict=True)]
    assert scan.ready == [cycle + group_cycles for cycle in free[:-1]]


@pytest.mark.parametrize(("kernel", "overflows"), [((2, 4, 4), False), ((3, 11, 1), True), ((1, 1, 33), True)])
def test_a_window_longer_than_the_lists_overflows(kernel, overflows):
    height, width, words = kernel
    layer = header(kernel_height=height, kernel_width=width, input_words=words, input_height=9, input_width=9)
    spec = dataclasses.replace(SPEC, columns=2)
    scan = Scan(spec, [[1] * spec.activation_depth] * 2)
    seen = []

    async def bench(ctx):
        for _ in range(spec.window_words_max + spec.columns + SCAN_OVERHEAD):
            if ctx.get(scan.dut.overflow):
                seen.append(ctx.get(scan.cycle))
            await ctx.tick()

    scan.drive(layer, bench)
    # With the last word that fits.
    assert seen == [1 + spec.columns + spec.window_words_max] * overflows
