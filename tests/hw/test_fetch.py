import dataclasses
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import Module, Signal
from hypothesis import given, settings
from hypothesis import strategies as st

import control
from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.fetch import WindowLoader, length_layout
from bitwright.hw.isa import BANK, FLAG_DENSE, FLAG_RAW, GRANULE, ArraySpec, Descriptor, descriptor_fields
from bitwright.hw.walkers import PixelWalker, coordinate_width
from drive import drive, header, wrap

BANK_GRANULES = BANK // GRANULE
SPEC = ArraySpec(activation_depth=256, window_depth=64)


def test_a_descriptor_keeps_the_bits_of_its_fields():
    layout = descriptor_layout(SPEC)
    for field in descriptor_fields(SPEC):
        assert layout[field.name].width == field.width
        assert getattr(layout[field.name].shape, "signed", False) == field.signed
    assert [name for name, _ in layout] == [field.name for field in descriptor_fields(SPEC)]


# PixelWalker ---------------------------------------------------------------------------------------------------------

LEVELS = ("image", "output_y", "output_x", "pool_y", "pool_x")


@st.composite
def walks(draw: st.DrawFn) -> dict[str, int]:
    """Descriptors whose steps need not fit any geometry."""
    step, small = st.integers(0, 0xFFFFFFFF), st.integers(1, 3)
    coordinate = st.integers(0, 3)
    steps = [f"{level}_step" for level in LEVELS]
    steps += ["start_position", "residual_base", *(f"residual_{level}_step" for level in ("image", "y", "x"))]
    return header(
        **{name: draw(step) for name in steps},
        images=draw(st.integers(1, 2)),
        **{name: draw(small) for name in ("output_height", "output_width", "pool_height", "pool_width")},
        start_y=draw(st.integers(-3, 2)),
        start_x=draw(st.integers(-3, 2)),
        output_y_rows=draw(coordinate),
        pool_y_rows=draw(coordinate),
    )


def walk(layer: dict[str, int], spec: ArraySpec) -> Iterator[tuple[int, ...]]:
    """Position, residual position, y, x, pool_first and pool_last of each window, in order."""
    limits = ("images", "output_height", "output_width", "pool_height", "pool_width")
    granules = spec.activation_depth * spec.derived.granules
    for counts in itertools.product(*(range(layer[limit]) for limit in limits)):
        image, output_y, output_x, pool_y, pool_x = counts
        steps = sum(count * layer[f"{level}_step"] for count, level in zip(counts, LEVELS, strict=True))
        residual = (
            layer["residual_base"]
            + image * layer["residual_image_step"]
            + output_y * layer["residual_y_step"]
            + output_x * layer["residual_x_step"]
        )
        y = layer["start_y"] + output_y * layer["output_y_rows"] + pool_y * layer["pool_y_rows"]
        x = layer["start_x"] + output_x * layer["output_x_step"] + pool_x * layer["pool_x_step"]
        yield (
            (layer["start_position"] + steps) % granules,
            residual % granules if spec.residual else 0,
            wrap(y, coordinate_width(spec)),
            wrap(x, coordinate_width(spec)),
            int((pool_y, pool_x) == (0, 0)),
            int((pool_y, pool_x) == (layer["pool_height"] - 1, layer["pool_width"] - 1)),
        )


def masked(layer: dict[str, int], spec: ArraySpec) -> dict[str, int]:
    """The bits of each field that the hardware keeps."""
    kept = {field.name: layer[field.name] & ((1 << field.width) - 1) for field in descriptor_fields(spec)}
    return {
        field.name: wrap(kept[field.name], field.width) if field.signed else kept[field.name]
        for field in descriptor_fields(spec)
    }


@given(layer=walks(), residual=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_walker_visits_every_window_once_and_in_order(layer, residual, seed):
    spec = dataclasses.replace(SPEC, residual=residual)
    dut = PixelWalker(spec)
    layer = masked(layer, spec)
    expected = list(walk(layer, spec))

    async def bench(ctx):
        rng = random.Random(seed)
        ctx.set(dut.layer, layer)
        for part in (expected[: len(expected) // 2], expected):  # a start in the middle of a walk starts over
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            for window in part:
                while rng.random() < 0.3:
                    ctx.set(dut.step, 0)
                    await ctx.tick()
                assert not ctx.get(dut.done)
                ports = (dut.position, dut.residual_position, dut.y, dut.x, dut.pool_first, dut.pool_last)
                assert tuple(ctx.get(port) for port in ports) == window
                ctx.set(dut.step, 1)
                await ctx.tick()
            ctx.set(dut.step, 0)
        assert ctx.get(dut.done)

    drive(dut, bench)


def test_coordinates_hold_any_image_and_padding():
    # The largest image fills the memory, or its field; padding may be as wide on either side.
    for depth in (2, 256, 1 << 16):
        spec = ArraySpec(activation_depth=depth)
        size = min(depth * spec.derived.granules, 0xFFFF)
        for coordinate in (-size, 2 * size - 1):
            assert wrap(coordinate, coordinate_width(spec)) == coordinate


# WindowLoader --------------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A layer with what is in memory, and what its windows hold, found from the coordinates of the images.

    Windows are lists of planes, a plane one of words, the granules beyond its last zero.
    """

    spec: ArraySpec
    fields: dict[str, int]
    memory: npt.NDArray[np.int64]
    windows: list[list[list[int]]]
    pool_ends: list[tuple[bool, bool]]

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(fields=self.fields, passes=())

    def read(self, position: int) -> int:
        """What a copy of the memory delivers: the granules from the start of the position's bank, each at its place."""
        start, places = position // BANK_GRANULES * BANK_GRANULES, self.spec.derived.granules
        return join(self.memory.take([start + (place - start) % places for place in range(places)], mode="wrap"))

    def groups(self) -> list[list[int]]:
        """Numbers of the windows of each group."""
        numbers = list(range(len(self.windows)))
        return [numbers[start:][: self.spec.columns] for start in range(0, len(numbers), self.spec.columns)]


def join(granules: npt.ArrayLike) -> int:
    """Word of granules."""
    return sum(int(granule) << place * GRANULE for place, granule in enumerate(np.asarray(granules)))


def words(granules: npt.NDArray[np.int64], spec: ArraySpec) -> list[int]:
    """Words of a plane of a window."""
    places = spec.derived.granules
    return [join(granules[start:][:places]) for start in range(0, len(granules), places)]


@dataclass(frozen=True)
class Axis:
    """Convolution and pooling along one axis of an image; of the output pixels, a few in a row."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    pool: int
    pool_stride: int
    first: int
    outputs: int

    def tap(self, output: int, pool: int, tap: int) -> int:
        """Coordinate, negative or beyond the size in the padding."""
        return ((self.first + output) * self.pool_stride + pool) * self.stride - self.padding + tap * self.dilation


def random_axis(rng: random.Random, pooled: bool) -> Axis:
    axis = Axis(
        size=rng.randint(1, 6),
        kernel=rng.randint(1, 3),
        stride=rng.randint(1, 3),
        padding=rng.randint(0, 5),
        dilation=rng.choice([1, 1, 1, 2, 3]),
        pool=rng.randint(1, 2) if pooled else 1,
        pool_stride=rng.randint(1, 3) if pooled else 1,
        first=0,
        outputs=1,
    )
    extent = axis.dilation * (axis.kernel - 1) + (axis.pool - 1) * axis.stride + 1
    missing = max(0, extent - axis.size - 2 * axis.padding)  # padded until a window fits
    axis = dataclasses.replace(axis, padding=axis.padding + (missing + 1) // 2)
    convolved = (axis.size + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1) // axis.stride + 1
    pixels = (convolved - axis.pool) // axis.pool_stride + 1
    outputs = min(rng.randint(1, 4), pixels)
    return dataclasses.replace(axis, first=rng.randint(0, pixels - outputs), outputs=outputs)


def random_spec(rng: random.Random) -> ArraySpec:
    columns_per_copy = rng.choice([1, 2, 4])
    columns = columns_per_copy * rng.randint(1, 3)
    return ArraySpec(
        rows=4,
        columns=columns,
        pipelined=columns % 2 == 0 and rng.random() < 0.5,
        lanes=rng.choice([32, 64, 128]),
        columns_per_copy=columns_per_copy,
        activation_planes_max=rng.choice([2, 3, 8]),
        drain_planes=rng.choice([1, 2]),
        residual=rng.random() < 0.5,
        activation_depth=256,
        window_depth=256,
        result_depth=rng.choice([2, 1 << 14]),
        zero_skip=rng.choice(["off", "gate", "skip"]),
    )


def random_scene(rng: random.Random) -> Scene:
    """A layer of any geometry: convolutions, grouped or not, pooled or with a residual addend, and linear layers."""
    spec = random_spec(rng)
    places = spec.derived.granules
    addend = spec.residual and rng.random() < 0.5
    planes = rng.randint(1, min(3, spec.activation_planes_max))
    images = rng.randint(1, 2)
    pooled = not addend and rng.random() < 0.5
    y_axis, x_axis = random_axis(rng, pooled), random_axis(rng, pooled)
    unit = rng.choice([1, 1, BANK_GRANULES])  # in which positions and sizes are given
    pixel = -(-rng.choice([1, 2, 3, 4, 5, 8, places // 2, places - 1, places, places + 1]) // unit) * unit
    linear = rng.choice([False, False, False, True])
    if linear:  # the image, flattened, is one pixel
        pixel = rng.randint(1, 5 * places)
        images = rng.randint(1, 2 * spec.columns + 1)
        y_axis = x_axis = Axis(
            size=1, kernel=1, stride=1, padding=0, dilation=1, pool=1, pool_stride=1, first=0, outputs=1
        )
    part = range(pixel)
    if rng.random() < 0.5 and not linear:  # the granules of a group of channels
        first = rng.randint(0, pixel - 1) // unit * unit
        part = range(first, rng.randint(first + 1, pixel))

    # In memory the images' planes lie somewhere, then the residual's.
    def somewhere(least: int) -> int:
        return -(-(least + rng.randint(0, 7)) // unit) * unit

    stride = somewhere(images * y_axis.size * x_axis.size * pixel)
    outputs = (images, y_axis.outputs, x_axis.outputs)
    residual_granules = rng.randint(1, 2 * places + 1)
    residual_pixel = -(-(residual_granules + rng.randint(0, 2)) // unit) * unit
    residual_stride = somewhere(int(np.prod(outputs)) * residual_pixel)
    residual_planes = rng.randint(1, min(2, spec.activation_planes_max)) if addend else 0
    needed = planes * stride + 16 + residual_planes * residual_stride
    # Steps and paddings are smaller than the memory, too.
    needed = max(needed, *(pixel * (axis.padding + axis.stride * axis.pool_stride + 1) for axis in (y_axis, x_axis)))
    depth = 1 << (-(-needed // places) - 1).bit_length()
    spec = dataclasses.replace(spec, activation_depth=max(2, depth))
    size = spec.activation_depth * places
    bits = np.random.default_rng(rng.getrandbits(32))
    density = rng.choice([0.05, 0.5, 1.0])
    memory = bits.integers(0, 1 << GRANULE, size) * (bits.random(size) < density)
    base = somewhere(rng.randint(0, size - 1))
    residual_base = somewhere(base + planes * stride)

    def planes_at(start: int, plane_stride: int, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Tensor (plane, image, y, x, granule) of what lies in memory."""
        inner = np.arange(np.prod(shape[1:])).reshape(shape[1:])
        numbers = start + plane_stride * np.arange(shape[0]).reshape(-1, *[1] * len(shape[1:])) + inner
        return memory.take(numbers, mode="wrap")

    tensor = planes_at(base, stride, (planes, images, y_axis.size, x_axis.size, pixel))
    residual = planes_at(residual_base, residual_stride, (residual_planes, *outputs, residual_pixel))

    whole_rows = x_axis.dilation == 1 and len(part) == pixel
    taps = 1 if whole_rows else x_axis.kernel
    run = x_axis.kernel * pixel if whole_rows else len(part)
    row, conv_y, conv_x = x_axis.size * pixel, x_axis.size * pixel * y_axis.stride, pixel * x_axis.stride
    start_position = base + y_axis.tap(0, 0, 0) * row + x_axis.tap(0, 0, 0) * pixel + part[0]
    distances = (start_position, row, pixel * x_axis.stride, pixel * x_axis.dilation, stride)
    residual_distances = (residual_base, residual_pixel, residual_stride) if addend else ()
    aligned = not any(distance % BANK_GRANULES for distance in (*distances, *residual_distances))
    # A chunk from any position must not reach beyond a word; if all begin with a bank, it may be a word.
    longest = spec.derived.chunk_unaligned
    chunk = rng.randint(-(-longest // 4), longest)
    if aligned:
        chunk = rng.randint(1, places // BANK_GRANULES) * BANK_GRANULES
    fields = {
        **header(),
        "flags": rng.choice([0, FLAG_RAW]) | rng.choice([0, 0, FLAG_DENSE]),
        "start_position": start_position % size,
        "image_step": y_axis.size * row,
        "output_y_step": conv_y * y_axis.pool_stride,
        "output_x_step": conv_x * x_axis.pool_stride,
        "pool_y_step": conv_y,
        "pool_x_step": conv_x,
        "tap_y_step": row * y_axis.dilation,
        "tap_x_step": pixel * x_axis.dilation,
        "input_plane_stride": stride % size,
        "residual_base": residual_base % size,
        "residual_image_step": outputs[1] * outputs[2] * residual_pixel,
        "residual_y_step": outputs[2] * residual_pixel,
        "residual_x_step": residual_pixel,
        "residual_plane_stride": residual_stride % size,
        "output_base": rng.randint(0, size - 1),
        "activation_planes": planes,
        "residual_planes": residual_planes,
        "input_height": y_axis.size,
        "input_width": row,
        "kernel_height": y_axis.kernel,
        "kernel_width": taps,
        "run_granules": run,
        "residual_granules": residual_granules if addend else 1,
        "chunk_granules": chunk,
        "tap_y_rows": y_axis.dilation,
        "images": images,
        "output_height": outputs[1],
        "output_width": outputs[2],
        "pool_height": y_axis.pool,
        "pool_width": x_axis.pool,
        "start_y": y_axis.tap(0, 0, 0),
        "start_x": x_axis.tap(0, 0, 0) * pixel + part[0],
        "output_y_rows": y_axis.stride * y_axis.pool_stride,
        "pool_y_rows": y_axis.stride,
        "output_planes": rng.randint(1, spec.activation_planes_max),
        "output_granules": rng.randint(0, 5),
    }

    def window(plane: int, image: int, at: list[int]) -> npt.NDArray[np.int64]:
        """Granules of a plane of a window, from coordinates."""
        parts = []
        for tap_y, tap_x in itertools.product(range(y_axis.kernel), range(x_axis.kernel)):
            y, x = y_axis.tap(at[0], at[2], tap_y), x_axis.tap(at[1], at[3], tap_x)
            inside = 0 <= y < y_axis.size and 0 <= x < x_axis.size
            parts.append(tensor[plane, image, y, x, part] if inside else np.zeros(len(part), np.int64))
        return np.concatenate(parts)

    windows, pool_ends = [], []
    for image, *at in itertools.product(*map(range, (*outputs, y_axis.pool, x_axis.pool))):
        held = [words(window(plane, image, at), spec) for plane in range(planes)]
        held += [words(addends[image, at[0], at[1], :residual_granules], spec) for addends in residual]
        windows.append(held)
        pool_ends.append((at[2:] == [0, 0], at[2:] == [y_axis.pool - 1, x_axis.pool - 1]))
    total = sum(map(len, windows[0]))
    spec = dataclasses.replace(spec, window_depth=max(2, 1 << (total - 1).bit_length()))  # often just enough
    return Scene(spec, fields, memory, windows, pool_ends)


class Load:
    """A loader with a memory that answers its reads, and buffers that keep its writes."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.dut = dut = WindowLoader(scene.spec)
        self.module = m = Module()
        self.cycle = Signal(32)
        m.submodules.dut = dut
        m.d.sync += self.cycle.eq(self.cycle + 1)
        self.starts: list[int] = []
        self.loading: list[int] = []
        # In each cycle: ready, planes loaded, one of the planes, length of its list.
        self.told: list[tuple[int, int, int, int]] = []
        self.overflows = 0
        self.buffers: list[dict[int, int]] = [{} for _ in range(scene.spec.columns)]

    async def start(self, ctx: Any) -> None:
        """Start the layer."""
        self.starts.append(ctx.get(self.cycle))
        ctx.set(self.dut.layer, masked(self.scene.fields, self.scene.spec))
        ctx.set(self.dut.start, 1)
        await ctx.tick()
        ctx.set(self.dut.start, 0)

    async def signal(self, ctx: Any, *, take: bool = False, release: bool = False) -> int:
        """Take the next group, or release the one that was taken, or both; return the cycle in which it is done."""
        dut, now = self.dut, ctx.get(self.cycle)
        ctx.set(dut.take, take)
        ctx.set(dut.release, release)
        await ctx.tick()
        ctx.set(dut.take, 0)
        ctx.set(dut.release, 0)
        if take:
            ctx.set(dut.issuing, 1 - ctx.get(dut.issuing))
        return now

    def drive(self, bench: Any, max_cycles: int = 50_000) -> None:
        """Run the testbench, with the memory."""
        dut, scene, depth = self.dut, self.scene, self.scene.spec.window_depth

        async def watch(ctx: Any) -> None:
            ctx.set(dut.issuing, 1)
            watched = (
                self.cycle,
                dut.ready,
                dut.loaded_planes,
                dut.loading,
                dut.overflow,
                dut.read,
                dut.read_position.as_value(),
            )
            writes = (dut.window_write, dut.window_write_address, dut.window_write_data.as_value())
            position_width, lanes = scene.spec.derived.position_width, scene.spec.lanes
            rng = random.Random(1)
            plane = 0
            async for _, _, *values in ctx.tick().sample(*watched, *writes, dut.length.as_value()):
                cycle, ready, planes, loading, overflow, read, positions, write, address, data, length = values
                self.told.append((ready, planes, plane, length))
                plane = rng.randrange(scene.spec.derived.lists)
                ctx.set(dut.length_plane, plane)
                if loading:
                    self.loading.append(cycle)
                self.overflows += overflow
                assert not (overflow and write)
                answers = 0
                for copy in range(scene.spec.derived.copies):
                    position = positions >> copy * position_width & (1 << position_width) - 1
                    answer = scene.read(position) if read else rng.getrandbits(lanes)
                    answers |= answer << copy * lanes
                ctx.set(dut.read_data.as_value(), answers)
                for column, buffer in enumerate(self.buffers):
                    if write >> column & 1:
                        assert address < 2 * depth
                        buffer[address] = data >> column * lanes & (1 << lanes) - 1

        drive(self.module, bench, background=watch, max_cycles=max_cycles)

    async def read_list(self, ctx: Any, base: int, length: int) -> list[tuple[int, int]]:
        """Read the word list of a plane of the group that was taken: words and active columns."""
        dut, entries = self.dut, []
        for index in range(length):
            ctx.set(dut.list_address, base + index)
            ctx.set(dut.list_index, index)
            await ctx.tick()
            entries.append((ctx.get(dut.entry.word), ctx.get(dut.entry.active)))
        return entries


def word_list(scene: Scene, group: list[int], plane: int) -> list[tuple[int, int]]:
    """What the list of a plane of a group must hold."""
    entries = []
    for word in range(len(scene.windows[group[0]][plane])):
        held = [scene.windows[window][plane][word] for window in group]
        active = sum(int(scene.spec.zero_skip == "off" or value != 0) << column for column, value in enumerate(held))
        if active or scene.descriptor.zero_skip(scene.spec) != "skip":
            entries.append((word, active))
    return entries


def told_length(entries: list[tuple[int, int]], spec: ArraySpec) -> int:
    """Length of the list of a plane, as the loader tells it."""
    (told,) = control.told([len(entries)])
    return length_layout(spec).const({**told}).as_value().value


@given(rng=st.randoms(use_true_random=True))
@settings(max_examples=40, deadline=None)
def test_loader_fills_the_window_buffer_and_lists_its_words(rng):
    scene = random_scene(rng)
    spec, descriptor = scene.spec, scene.descriptor
    groups, count = scene.groups() * 2, len(scene.groups())  # a layer leaves the loader as it was
    length, latency = descriptor.group_loads(spec), spec.derived.load_latency
    latencies = np.cumsum(descriptor.plane_loads(spec)) + latency
    patience = rng.choice([[0], range(20), range(200)])
    waits = [(rng.choice(patience), rng.choice(patience), rng.randint(-1, 2), rng.randrange(2)) for _ in groups]
    load = Load(scene)
    dut = load.dut
    begins: list[int] = []  # of each group its first read, and when it is taken and released
    takes: list[int] = []
    releases: list[int] = []
    plane_words = descriptor.plane_words(spec)
    bases = list(itertools.accumulate(plane_words, initial=0))[:-1]
    lists = [[word_list(scene, group, plane) for plane in range(len(plane_words))] for group in groups]

    def check_windows(group: list[int], buffer: int) -> None:
        for column, store in enumerate(load.buffers):
            for plane, (base, words) in enumerate(zip(bases, plane_words, strict=True)):
                first = buffer * spec.window_depth + base
                held = [store[first + word] for word in range(words)]
                assert held == (scene.windows[group[column]][plane] if column < len(group) else [0] * words)

    def check_group(ctx: Any, group: list[int], last: bool) -> None:
        known = dut.group
        assert ctx.get(known.valid) == (1 << len(group)) - 1
        for column, window in enumerate(group):
            assert (ctx.get(known.pool_first[column]), ctx.get(known.pool_last[column])) == scene.pool_ends[window]
        assert ctx.get(known.drain_cycles) == descriptor.drain_cycles(len(group), spec)
        assert ctx.get(known.last) == last

    async def bench(ctx):
        held = False  # whether a group that was taken has yet to be released
        for number, (group, wait) in enumerate(zip(groups, waits, strict=True)):
            if number % count == 0:
                if held:
                    releases.append(await load.signal(ctx, release=True))
                    held = False
                await load.start(ctx)
            while not ctx.get(dut.ready):
                await ctx.tick()
            for _ in range(wait[0]):
                await ctx.tick()
            takes.append(await load.signal(ctx, take=True, release=held))
            if held:
                releases.append(takes[-1])
            held = True
            last = (number + 1) % count == 0
            check_group(ctx, group, last)
            # The next group is loaded into the other half meanwhile, once it is free.
            for base, entries in zip(bases, lists[number], strict=True):
                assert await load.read_list(ctx, base, len(entries)) == entries
            check_windows(group, number % 2)
            for _ in range(wait[1]):
                await ctx.tick()
            check_group(ctx, group, last)
            if wait[3]:  # it is released before the next one is taken, often about when the walk after that ends
                ends = [begin + length + spec.columns - 1 for begin in firsts(load.loading)]
                while any(0 < end + wait[2] - ctx.get(load.cycle) < 100 for end in ends):
                    await ctx.tick()
                releases.append(await load.signal(ctx, release=True))
                held = False
        if held:
            releases.append(await load.signal(ctx, release=True))
        await ctx.tick().repeat(length + 50)
        assert not ctx.get(dut.ready)

    load.drive(bench)
    assert load.overflows == 0
    for number in range(len(groups)):
        walk_start = begins[-1] + length if number % count else load.starts[number // count] + 1
        begins.append(max(walk_start + spec.columns, releases[number - 2] + 1 if number > 1 else 0))
    assert load.loading == [cycle for begin in begins for cycle in range(begin, begin + length)]
    for cycle, (ready, planes, plane, told) in enumerate(load.told):
        number = sum(take < cycle for take in takes)  # of the next group
        age = cycle - begins[number] if number < len(groups) else 0
        assert ready == (age >= length + latency)
        assert planes == (np.count_nonzero(latencies <= age) if spec.zero_skip == "skip" else 0)
        if plane < planes:
            assert told == told_length(lists[number][plane], spec)


def firsts(cycles: list[int]) -> list[int]:
    """Of cycles, those that do not follow another one."""
    return [cycle for before, cycle in itertools.pairwise([-2, *cycles]) if cycle != before + 1]


@pytest.mark.parametrize("planes", [1, 2])
def test_a_window_longer_than_the_buffer_overflows(planes):
    # Two columns that share a copy, with 5 words in one plane, or 3 in each of two, in a buffer of 4.
    spec = ArraySpec(columns=2, columns_per_copy=2, activation_depth=16, window_depth=4)
    places = spec.derived.granules
    run = {1: 5, 2: 3}[planes] * places - 1
    fields = header(
        activation_planes=planes, run_granules=run, input_width=run, chunk_granules=4, input_plane_stride=4 * places
    )
    rng = np.random.default_rng(0)
    load = Load(Scene(spec, fields, rng.integers(1, 16, 16 * places), [], []))
    first: list[int] = []

    async def bench(ctx):
        await load.start(ctx)
        while not ctx.get(load.dut.overflow):
            await ctx.tick()
        first.append(ctx.get(load.cycle))
        await ctx.tick().repeat(200)

    load.drive(bench)
    # The fifth word is complete with the twentieth read, and written, were there room, three cycles after it begins.
    assert load.loading[0] == load.starts[0] + 1 + spec.columns
    assert first == [load.loading[0] + 2 * 19 + 3]
    assert load.overflows == 2 * planes  # in each column one word or two
    for store in load.buffers:
        assert sorted(store) == [0, 1, 2, 3]
