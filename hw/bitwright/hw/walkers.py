"""Walks over a layer: nested loops, and the addresses and coordinates that follow them."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.descriptor import descriptor_layout
from bitwright.hw.isa import ArraySpec


def coordinate_width(spec: ArraySpec) -> int:
    """Bits of a signed image coordinate, in rows or granules: of any image in the memory, and as much padding."""
    return min(spec.derived.position_width, 16) + 2


def place_width(spec: ArraySpec) -> int:
    """Bits that number the granules of a word."""
    return (spec.derived.granules - 1).bit_length()


# Nested loops, outermost first. A step goes to the next iteration of the innermost loop that has not ended, and to the
# first one of the loops inside that; when all have ended, all begin anew.


def _count(m: Module, names: Sequence[str], limits: Sequence[Value], start: Value, step: Value) -> list[Signal]:
    """Count nested loops, and say of each whether it and all inside it are in their last iterations.

    A loop takes its limit when it begins.
    """
    ended = [Signal(name=f"{name}_ended") for name in names]  # registers: a step depends on them in many places
    inner_ended: Value = Const(1)
    ends_next: Value = Const(1)
    for name, limit, all_ended in reversed([*zip(names, limits, ended, strict=True)]):
        left = Signal(len(limit), name=f"{name}_left", reset_less=True)  # iterations, with this one
        end, end_next = Signal(name=f"{name}_end"), Signal(name=f"{name}_end_next")
        m.d.comb += end_next.eq(end)
        with m.If(start | (step & all_ended)):
            m.d.comb += end_next.eq(limit == 1)
            m.d.sync += left.eq(limit)
        with m.Elif(step & inner_ended):
            m.d.comb += end_next.eq(left == 2)
            m.d.sync += left.eq(left - 1)
        ends_next = ends_next & end_next
        m.d.sync += [end.eq(end_next), all_ended.eq(ends_next)]
        inner_ended = all_ended
    return ended


def _moves(start: Value, ended: Sequence[Value]) -> list[Value]:
    """What the next step does, one-hot: all loops begin, or the first, second, ... loop goes on.

    ``ended`` is of each loop whether it and all inside it are in their last iterations.
    """
    inner_ended = [*ended[1:], Const(1)]
    goes_on = [~start & inner & ~here for here, inner in zip(ended, inner_ended, strict=True)]
    return [start | ended[0], *goes_on]


def _follow(
    m: Module,
    name: str,
    shape: Shape,
    go: Value,
    moves: Sequence[Value],
    origin: Value,
    distances: Sequence[Value | None],
) -> Value:
    """Follow nested loops with an address or a coordinate: ``origin`` plus each loop's iterations times its distance.

    Each loop with a distance keeps the value with which its iteration began: from there it goes on, and so do the
    loops inside it. One adder serves all.

    Parameters
    ----------
    m, name
        Where the registers go, and what they are called.
    shape
        Of the value, which wraps around.
    go
        Take the next step.
    moves
        From :func:`_moves`.
    origin, distances
        Of the first iteration, and of each loop or None.
    """
    moving = [level for level, distance in enumerate(distances) if distance is not None]
    # Of the sum, what each step starts from, and what it adds. Loops inside the last that moves the value do not.
    bases: list[tuple[Value, list[Value]]] = [(origin, [moves[0]])]
    steps: list[Value] = []
    for move, distance in zip(moves[1 : moving[-1] + 2], distances, strict=False):
        if distance is not None:
            bases.append((Signal(shape, name=f"{name}_{len(steps)}", reset_less=True), []))
            steps.append(Mux(move, distance, 0))
        bases[-1][1].append(move)
    moved = Signal(shape, name=f"{name}_moved")
    m.d.comb += moved.eq(reduce(or_, (Mux(Cat(when).any(), base, 0) for base, when in bases)) + reduce(or_, steps))
    for level, (value, _) in zip(moving, bases[1:], strict=True):
        with m.If(go & Cat(moves[: level + 2]).any()):
            m.d.sync += value.eq(moved)
    return bases[-1][0]


class PixelWalker(wiring.Component):
    """Walk the windows of a layer: image, output row, output column, pooling row, pooling column.

    Windows that are pooled together follow each other, so that pooling needs one register and no line buffer.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor; constant while walking.
    start : ``In(1)``
        Go to the first window.
    step : ``In(1)``
        Go to the next window; not after the last.
    position : ``Out(position_width)``
        Position of the window's first tap in plane 0, modulo the memory.
    residual_position : ``Out(position_width)``
        Position of the output pixel's residual addend; 0 in arrays without.
    y, x : ``Out(signed(coordinate_width))``
        Image row, and granule of that row, of the window's first tap.
    pool_first, pool_last : ``Out(1)``
        Whether the window is the first or last of its pooling window.
    done : ``Out(1)``
        All windows have been walked.
    """

    layer: "data.View[Any]"
    start: Signal
    step: Signal
    position: Signal
    residual_position: Signal
    y: Signal
    x: Signal
    pool_first: Signal
    pool_last: Signal
    done: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        coordinate = signed(coordinate_width(spec))
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "start": In(1),
                "step": In(1),
                "position": Out(spec.derived.position_width),
                "residual_position": Out(spec.derived.position_width),
                "y": Out(coordinate),
                "x": Out(coordinate),
                "pool_first": Out(1),
                "pool_last": Out(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        layer = self.layer
        m = Module()
        names = ("image", "output_y", "output_x", "pool_y", "pool_x")
        limits = (layer.images, layer.output_height, layer.output_width, layer.pool_height, layer.pool_width)
        ended = _count(m, names, limits, self.start, self.step)
        moves = _moves(self.start, ended)
        go = Signal()
        m.d.comb += [go.eq(self.start | self.step), self.pool_last.eq(ended[names.index("pool_y")])]
        with m.If(go):
            m.d.sync += [
                self.done.eq(~self.start & ended[0]),
                self.pool_first.eq(Cat(*moves[:4]).any()),  # a loop outside the pooling window goes on
            ]

        def follow(name: str, shape: Shape, origin: Value, *distances: Value | None) -> Value:
            return _follow(m, name, shape, go, moves, origin, distances)

        position, coordinate = unsigned(len(self.position)), signed(coordinate_width(self.spec))
        steps = (layer.image_step, layer.output_y_step, layer.output_x_step, layer.pool_y_step, layer.pool_x_step)
        rows = (None, layer.output_y_rows, None, layer.pool_y_rows, None)
        granules = (None, None, layer.output_x_step, None, layer.pool_x_step)
        m.d.comb += [
            self.position.eq(follow("position", position, layer.start_position, *steps)),
            self.y.eq(follow("y", coordinate, layer.start_y, *rows)),
            self.x.eq(follow("x", coordinate, layer.start_x, *granules)),
        ]
        if self.spec.residual:
            steps = (layer.residual_image_step, layer.residual_y_step, layer.residual_x_step, None, None)
            m.d.comb += self.residual_position.eq(follow("residual", position, layer.residual_base, *steps))
        return m


# Reads ---------------------------------------------------------------------------------------------------------------


def read_layout(spec: ArraySpec) -> data.StructLayout:
    """What happens to the granules of a read, in all columns alike."""
    return data.StructLayout(
        {
            "residual": 1,  # they are of the residual addend
            "place": place_width(spec),  # of the first one in a word of the window
            "granules": spec.derived.granules.bit_length(),  # how many there are; 0 only writes the word begun
            "write": 1,  # a word is complete, or the plane's last
            "plane_end": 1,  # last of a plane
            "group_end": 1,  # last of the window
        }
    )


class ReadWalker(wiring.Component):
    """Walk the reads that load a window: input planes, kernel rows, runs, chunks; then those of the residual addend.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    layer : ``In(descriptor_layout(spec))``
        Descriptor; constant from ``start`` on.
    start : ``In(1)``
        Go to the first read.
    step : ``In(1)``
        Go to the next read, after the last to the first.
    offset : ``Out(position_width)``
        Granules from the window's position, or that of its residual addend, to the read's.
    y, x : ``Out(signed(coordinate_width))``
        Image rows, and granules, from the window's first tap to the read.
    read : ``Out(read_layout(spec))``
        What happens to the granules.
    """

    layer: "data.View[Any]"
    start: Signal
    step: Signal
    offset: Signal
    y: Signal
    x: Signal
    read: "data.View[Any]"

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        coordinate = signed(coordinate_width(spec))
        super().__init__(
            {
                "layer": In(descriptor_layout(spec)),
                "start": In(1),
                "step": In(1),
                "offset": Out(spec.derived.position_width),
                "y": Out(coordinate),
                "x": Out(coordinate),
                "read": Out(read_layout(spec)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, layer, read = self.spec, self.layer, self.read
        m = Module()
        go, flush = Signal(), Signal()
        residual, residual_follows = Signal(), Signal()
        chunk_end, plane_read, all_end, straddles = Signal(), Signal(), Signal(), Signal()

        # A plane whose last chunk completes a word and begins another needs a step of its own to write that: the loops
        # stand still meanwhile.
        held = Signal()
        m.d.comb += go.eq(self.start | (self.step & ~held))
        limits = [layer.activation_planes, layer.kernel_height, layer.kernel_width]
        run_granules = layer.run_granules
        if spec.residual:
            to_residual = Signal()  # the step leads to the residual addend, or stays there
            m.d.comb += [
                residual_follows.eq(~residual & (layer.residual_planes != 0)),
                to_residual.eq(~self.start & Mux(all_end, residual_follows, residual)),
            ]
            of_residual = [layer.residual_planes, 1, 1]
            limits = [Mux(to_residual, other, limit) for other, limit in zip(of_residual, limits, strict=True)]
            run_granules = Mux(to_residual, layer.residual_granules, run_granules)
            with m.If(go):
                m.d.sync += residual.eq(to_residual)
        runs_ended = _count(m, ("plane", "row", "run"), limits, self.start, go & chunk_end)
        ended = [*(runs & chunk_end for runs in runs_ended), chunk_end]
        moves = _moves(self.start, ended)
        m.d.comb += [
            all_end.eq(ended[0]),
            plane_read.eq(ended[1]),
            held.eq(plane_read & straddles & ~flush),
        ]

        # Chunks: of what is left of a run.
        left, rest = Signal.like(layer.run_granules), Signal.like(layer.run_granules, reset_less=True)
        granules = Signal.like(read.granules)
        m.d.comb += left.eq(Mux(self.start | chunk_end, run_granules, rest))
        with m.If(go):
            m.d.sync += [rest.eq(left - layer.chunk_granules), granules.eq(layer.chunk_granules), chunk_end.eq(0)]
            with m.If(left <= layer.chunk_granules):
                m.d.sync += [granules.eq(left), chunk_end.eq(1)]

        # Places in the word of the window that is being put together.
        place, place_after = Signal(place_width(spec)), Signal(place_width(spec) + 1)
        fills = place_after[-1]
        m.d.comb += [
            place_after.eq(place + granules),
            straddles.eq(fills & place_after[:-1].any()),
            read.residual.eq(residual),
            read.place.eq(place),
            read.granules.eq(Mux(flush, 0, granules)),
            read.write.eq(fills | read.plane_end),
            read.plane_end.eq(plane_read & ~held),
            read.group_end.eq(all_end & ~held & ~residual_follows),
        ]
        with m.If(self.start):
            m.d.sync += [place.eq(0), flush.eq(0)]
        with m.Elif(self.step):
            m.d.sync += [place.eq(Mux(read.plane_end, 0, place_after[:-1])), flush.eq(held)]

        # Where the read is.
        def follow(name: str, shape: Shape, *distances: Value | None) -> Value:
            return _follow(m, name, shape, go, moves, Const(0), distances)

        position, coordinate = unsigned(len(self.offset)), signed(coordinate_width(spec))
        plane_stride = layer.input_plane_stride
        if spec.residual:
            plane_stride = Mux(residual, layer.residual_plane_stride, plane_stride)
        granule_steps = (layer.tap_x_step, layer.chunk_granules)
        m.d.comb += [
            self.offset.eq(follow("offset", position, plane_stride, layer.tap_y_step, *granule_steps)),
            self.y.eq(follow("y", coordinate, None, layer.tap_y_rows, None, None)),
            self.x.eq(follow("x", coordinate, None, None, *granule_steps)),
        ]
        return m
