"""The timeline of a run against the hardware's probe, cycle by cycle, and as trace events."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import tiny
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from bitwright.sim import golden
from bitwright.sim.backends.probes import watch
from bitwright.sim.trace import EVENTS_MAX, TRACKS, Slice, Trace, trace
from programs import conv, linear, random_images, random_program


def cycles_of(slices: list[Slice], cycles: int) -> npt.NDArray[np.int64]:
    """How many of these slices there are in each cycle."""
    found = np.zeros(cycles + 1, np.int64)
    for each in slices:
        assert each.cycles >= 0
        found[each.start : each.end] += 1
    assert not found[-1], "a slice goes on after the run"
    return found[:-1]


def leaves(found: Trace) -> dict[str, list[Slice]]:
    """Slices by what they say: those of the compute track by name, others by track."""
    sorts: dict[str, list[Slice]] = {}
    for each in found.slices:
        sort = each.track
        if sort == "compute":
            sort = each.name.split()[0]
            sort = "pass" if "×" in each.name or sort == "doubling" else sort
        if sort in ("load", "schedule", "drain"):
            sort = f"{sort} {each.name.split()[0]}"
        sorts.setdefault(sort, []).append(each)
    return sorts


@pytest.mark.parametrize(
    ("case", "zero_skip", "prefetch"),
    [
        ("sparse", "skip", True),
        ("residual", "gate", True),
        ("drained", "off", False),
        ("overlapping", "skip", True),
        ("streamed", "skip", True),
        ("streamed", "gate", False),
        ("coded", "skip", True),
        ("bases", "skip", True),
        ("batches", "skip", True),
    ],
)
def test_slices_are_what_the_probe_shows(case: str, zero_skip: Any, prefetch: bool) -> None:
    program, images = tiny.CASES[case](zero_skip)
    program = replace(program, spec=replace(program.spec, prefetch=prefetch))
    found = trace(program, images)
    assert all(told.endswith("passes") for told in found.detail)
    probe = watch(program, images)
    sorts = leaves(found)

    def cycles(*names: str) -> npt.NDArray[np.int64]:
        return cycles_of([each for name in names for each in sorts.get(name, [])], found.cycles)

    np.testing.assert_array_equal(probe["probe__cycle"], np.arange(found.cycles))
    np.testing.assert_array_equal(cycles("load group"), probe["probe__read"])
    np.testing.assert_array_equal(cycles("pass") - cycles("stalls"), probe["probe__issue"])
    np.testing.assert_array_equal(cycles("doubles"), probe["probe__empty"] & probe["probe__issue"])
    np.testing.assert_array_equal(cycles("stalls"), probe["probe__stall"])
    np.testing.assert_array_equal(cycles("drain compare"), probe["probe__compare"])
    np.testing.assert_array_equal(cycles("writes"), probe["probe__write"] != 0)
    streams = sorts.get("weight stream", [])
    assert bool(streams) == program.spec.weight_stream
    if program.spec.codebook_bits:  # beats wait for planes to be written
        taken = probe["weights__valid"] & probe["weights__ready"]
        beats = [layer.stream_beats(program.spec) for layer in program.parsed if layer.stream_words]
        assert [taken[each.start : each.end].sum() for each in streams] == beats
        assert taken.sum() == sum(beats)
    elif program.spec.weight_stream:  # a beat each cycle, and one cycle until the last is stored
        busy = cycles("weight stream")
        for each in streams:
            busy[each.end - 1] = 0
        assert busy.any()
        np.testing.assert_array_equal(busy, probe["weights__valid"] & probe["weights__ready"])

    skipped = np.zeros(found.cycles, np.int64)
    for cycle, words in found.skipped:
        skipped[cycle:] = words
    np.testing.assert_array_equal(skipped, probe["probe__skipped"])


def nested(found: Trace) -> None:
    """Check that slices of a track lie one in the other, the outer one first, or do not overlap."""
    for track in TRACKS:
        open_until: list[int] = []
        start = -1
        for each in (each for each in found.slices if each.track == track):
            assert each.start >= start, (track, each)
            start = each.start
            while open_until and open_until[-1] <= each.start:
                open_until.pop()
            assert not open_until or each.end <= open_until[-1], (track, each)
            open_until.append(each.end)


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
@pytest.mark.parametrize("case", list(tiny.CASES))
def test_slices_agree_with_the_account(case: str, zero_skip: Any) -> None:
    program, images = tiny.CASES[case](zero_skip)
    (run,) = golden.execute(program, images[: program.batch])
    found = trace(program, images)
    nested(found)
    sorts = leaves(found)
    spent = Counter({name: sum(each.cycles for each in slices) for name, slices in sorts.items()})
    account: Counter[str] = Counter()
    for part in run.layers:
        account.update(part.account or {})
    cycle = program.spec.rows * program.spec.columns * program.spec.lanes
    assert spent["doubles"] * cycle == account["doubling"]
    assert spent["stalls"] * cycle == account["drain"]
    assert spent["waits"] * cycle == account["load"]
    assert spent["start"] * cycle == account["start"] + account["weight_stream"]
    assert spent["end"] * cycle == account["end"]
    assert spent["pass"] == run.counters["busy"] + run.counters["stalls"]
    # Waits, groups, start and end fill every cycle.
    kinds = ("start", "group", "waits", "end")
    assert cycles_of([each for kind in kinds for each in sorts.get(kind, [])], run.cycles).tolist() == [1] * run.cycles
    assert found.cycles == run.cycles
    assert found.skipped[-1] == (run.cycles, run.counters["skipped"])
    layers = [each for each in sorts["layers"] if each.name.startswith("layer")]
    assert [each.name for each in layers] == [info.name for info in program.layers]
    assert sum(each.cycles for each in layers) == run.cycles


@pytest.fixture(scope="module")
def larger() -> tuple[Program, npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(3)
    spec = ArraySpec(rows=4, columns=2, lanes=32, drain_planes=1, zero_skip="skip")
    program = random_program(rng, spec, [conv(20, 3, output_planes=2), conv(9, 3), linear(4)], in_shape=(3, 12, 12))
    return program, random_images(rng, program, 1)


@pytest.mark.parametrize("events", [EVENTS_MAX, 12_000, 3000, 600, 100, 1])
def test_the_number_of_events_is_bounded(larger: Any, events: int) -> None:
    """Coarser traces end where the whole one does, and count the same."""
    program, images = larger
    (run,) = golden.execute(program, images)
    found = trace(program, images, events=events)
    nested(found)
    assert sum(1 for _ in found.events()) <= events + 60 * len(program.parsed)
    assert max(each.end for each in found.slices) == found.cycles == run.cycles
    assert found.skipped[-1][1] == run.counters["skipped"]
    groups = [each for each in found.slices if each.track == "compute" and each.name.startswith("group")]
    for name in ("words", "doublings", "stalls"):
        total = sum(int(each.values[name]) for each in groups)
        expected = {"stalls": run.counters["stalls"]}
        expected["words"] = run.counters["busy"] - sum(int(each.values["doublings"]) for each in groups)
        assert total == expected.get(name, total)
    for track, counter in (("load", "loads"), ("writes", "writes")):
        values = ("reads", "planes", "results")
        total = sum(int(each.values.get(name, 0)) for each in found.slices if each.track == track for name in values)
        assert total == run.counters[counter]


KEYS = {
    "M": {"ph", "name", "pid", "tid", "args"},
    "X": {"ph", "name", "cat", "ts", "dur", "pid", "tid", "args"},
    "C": {"ph", "name", "ts", "pid", "tid", "args"},
}


def test_events_have_what_viewers_need(larger: Any, tmp_path: Any) -> None:
    """The trace event format: kinds of events and their keys; numbers of tracks; counters whose values are numbers."""
    program, images = larger
    trace(program, images).write(tmp_path / "trace.json")
    value = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    assert value["displayTimeUnit"] in ("ms", "ns")
    assert "cycle" in value["otherData"]["unit"]
    events = value["traceEvents"]
    named = {event["tid"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"}
    assert len(named) == len(TRACKS)
    for event in events:
        assert event.keys() == KEYS[event["ph"]]
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["args"], dict)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            assert event["args"].keys() in ({"name"}, {"sort_index"})
            continue
        assert isinstance(event["ts"], int)
        assert 0 <= event["ts"] <= value["otherData"]["cycles"]
        if event["ph"] == "X":
            assert event["tid"] in named
            assert isinstance(event["dur"], int)
            assert event["dur"] > 0
        else:
            assert all(isinstance(number, int) for number in event["args"].values())
    last = [event for event in events if event["ph"] == "C"]
    assert [event["ts"] for event in last] == sorted(event["ts"] for event in last)
