"""Exact comparison of two executions of the same run: the golden model's and a back end's."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bitwright.hw.isa import COUNTERS
from bitwright.sim.execution import Execution, LayerExecution

_COLUMNS = ("cycle", "raw", "address", "slot", "data")
"""Columns of a trace of writes."""


@dataclass(frozen=True)
class Comparison:
    """How many things differ, by kind. Equality is exact everywhere.

    Parameters
    ----------
    value_mismatches
        Raw results that differ.
    cycle_mismatches
        Of the run's cycles and each layer's start and end.
    counter_mismatches
        Of the run's other counters and each layer's share of them.
    trace_mismatches
        Writes of traced layers.
    first
        First difference as a sentence, values before layers, earlier layers before later ones; None if there is none.
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
        Execution of the same run. Where only one of the two has traced a layer, all its writes differ.
    """
    values = list(_value_differences(golden, rtl))
    cycles = list(_cycle_differences(golden, rtl))
    counters = list(_counter_differences(golden, rtl))
    traces = [_trace_differences(layer, golden, rtl) for layer in _traced(golden, rtl)]
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
            yield _differ(f"The first cycle of layer {number} ({expected.name})", expected.start, found.start)
        if expected.end != found.end:
            yield _differ(f"The end of layer {number} ({expected.name})", expected.end, found.end)
    if len(golden.layers) != len(rtl.layers):
        yield _differ("The number of layers that ended", len(golden.layers), len(rtl.layers))
    if golden.cycles != rtl.cycles:
        yield _differ("The run's number of cycles", golden.cycles, rtl.cycles)


def _counter_differences(golden: Execution, rtl: Execution) -> Iterator[str]:
    names = [name for name in COUNTERS if name != "cycles"]
    for number, expected, found in _paired(golden, rtl):
        for name in names:
            if expected.counters[name] != found.counters[name]:
                what = f"Counter {name} of layer {number} ({expected.name})"
                yield _differ(what, expected.counters[name], found.counters[name])
    for name in names:
        if golden.counters[name] != rtl.counters[name]:
            yield _differ(f"Counter {name} of the run", golden.counters[name], rtl.counters[name])


def _traced(golden: Execution, rtl: Execution) -> list[int]:
    return sorted({*(golden.writes or {}), *(rtl.writes or {})})


def _trace_differences(layer: int, golden: Execution, rtl: Execution) -> tuple[int, str | None]:
    """Number of writes of a layer that differ, and the first as a sentence."""
    nothing = np.empty((0, len(_COLUMNS)), np.int64)
    expected = (golden.writes or {}).get(layer, nothing)
    found = (rtl.writes or {}).get(layer, nothing)
    common = min(len(expected), len(found))
    different = np.flatnonzero((expected[:common] != found[:common]).any(axis=1))
    count = len(different) + max(len(expected), len(found)) - common
    if not count:
        return 0, None
    if len(different):
        index = int(different[0])
        column = int(np.flatnonzero(expected[index] != found[index])[0])
        what = f"The {_COLUMNS[column]} of write {index} of layer {layer} (cycle {expected[index, 0]})"
        return count, _differ(what, _number(column, expected[index]), _number(column, found[index]))
    return count, _differ(f"The number of writes of layer {layer}", len(expected), len(found))


def _number(column: int, write: np.ndarray) -> str:
    """Rows of bits and addresses read best in hexadecimal, raw results and the rest in decimal."""
    name, value = _COLUMNS[column], int(write[column])
    return f"{value:#x}" if name == "address" or (name == "data" and not write[1]) else str(value)
