"""Exact comparison of two executions of the same run: the golden model's and a back end's."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitwright.hw.isa import COUNTERS
from bitwright.sim.execution import Execution, LayerExecution

_COLUMNS = ("cycle", "raw", "position", "data")
"""Columns of a trace of writes; a raw result has an address instead of a position."""


@dataclass(frozen=True)
class Comparison:
    """How many things differ, by kind. Equality is exact everywhere.

    Parameters
    ----------
    value_mismatches
        Raw results that differ.
    cycle_mismatches
        Of the run's cycles and the start and end of each part, which is what one descriptor computes.
    counter_mismatches
        Of the run's other counters and each part's share of them.
    trace_mismatches
        Writes of traced parts.
    first
        First difference as a sentence, values before parts, earlier parts before later ones; None if there is none.
    """

    value_mismatches: int
    cycle_mismatches: int
    counter_mismatches: int
    trace_mismatches: int
    first: str | None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.first is None


def compare(golden: Execution, rtl: Execution) -> Comparison:
    """Compare what was predicted with what was measured.

    Parameters
    ----------
    golden
        Prediction of one run.
    rtl
        Execution of the same run. Where only one of the two has traced a part, all its writes differ.
    """
    values = list(_value_differences(golden, rtl))
    cycles = list(_cycle_differences(golden, rtl))
    counters = list(_counter_differences(golden, rtl))
    traces = [_trace_differences(part, golden, rtl) for part in _traced(golden, rtl)]
    first = next(iter([*values, *cycles, *counters, *(text for _, text in traces if text)]), None)
    return Comparison(len(values), len(cycles), len(counters), sum(count for count, _ in traces), first)


def _differ(what: str, expected: object, found: object) -> str:
    return f"{what} is {found}, the golden model says {expected}."


def _value_differences(golden: Execution, rtl: Execution) -> Iterator[str]:
    expected, found = golden.accumulators, rtl.accumulators
    if expected.shape != found.shape:
        yield _differ("The shape of the results", expected.shape, found.shape)
        return
    for image, result in np.argwhere(expected != found).tolist():
        yield _differ(f"Result {result} of image {image}", expected[image, result], found[image, result])


def _paired(golden: Execution, rtl: Execution) -> Iterator[tuple[int, LayerExecution, LayerExecution]]:
    for number, (expected, found) in enumerate(zip(golden.layers, rtl.layers, strict=False)):
        yield number, expected, found


def _cycle_differences(golden: Execution, rtl: Execution) -> Iterator[str]:
    for number, expected, found in _paired(golden, rtl):
        if expected.start != found.start:
            yield _differ(f"The first cycle of part {number} ({expected.name})", expected.start, found.start)
        if expected.end != found.end:
            yield _differ(f"The end of part {number} ({expected.name})", expected.end, found.end)
    if len(golden.layers) != len(rtl.layers):
        yield _differ("The number of parts that ended", len(golden.layers), len(rtl.layers))
    if golden.cycles != rtl.cycles:
        yield _differ("The run's number of cycles", golden.cycles, rtl.cycles)


def _counter_differences(golden: Execution, rtl: Execution) -> Iterator[str]:
    names = [name for name in COUNTERS if name != "cycles"]
    for number, expected, found in _paired(golden, rtl):
        for name in names:
            if expected.counters[name] != found.counters[name]:
                what = f"Counter {name} of part {number} ({expected.name})"
                yield _differ(what, expected.counters[name], found.counters[name])
    for name in names:
        if golden.counters[name] != rtl.counters[name]:
            yield _differ(f"Counter {name} of the run", golden.counters[name], rtl.counters[name])


def _traced(golden: Execution, rtl: Execution) -> list[int]:
    return sorted({*(golden.writes or {}), *(rtl.writes or {})})


def _trace_differences(part: int, golden: Execution, rtl: Execution) -> tuple[int, str | None]:
    """Number of writes of a part that differ, and the first as a sentence."""
    nothing = np.empty((0, len(_COLUMNS)), np.int64)
    expected = (golden.writes or {}).get(part, nothing)
    found = (rtl.writes or {}).get(part, nothing)
    common = min(len(expected), len(found))
    different = np.flatnonzero((expected[:common] != found[:common]).any(axis=1))
    count = len(different) + max(len(expected), len(found)) - common
    if not count:
        return 0, None
    if len(different):
        index = int(different[0])
        column = int(np.flatnonzero(expected[index] != found[index])[0])
        name = "address" if _COLUMNS[column] == "position" and expected[index, 1] else _COLUMNS[column]
        what = f"The {name} of write {index} of part {part} (cycle {expected[index, 0]})"
        numbers = (_number(name, writes[index, column], raw=bool(writes[index, 1])) for writes in (expected, found))
        return count, _differ(what, *numbers)
    return count, _differ(f"The number of writes of part {part}", len(expected), len(found))


def _number(name: str, value: int, *, raw: bool) -> str:
    """Rows of bits, positions and addresses read best in hexadecimal, raw results and the rest in decimal."""
    return f"{value:#x}" if name in ("position", "address") or (name == "data" and not raw) else str(value)
