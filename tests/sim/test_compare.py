import copy
from collections.abc import Callable

import numpy as np
import pytest

from bitwright.hw.isa import COUNTERS
from bitwright.sim.compare import compare
from bitwright.sim.execution import Execution, LayerExecution


def execution() -> Execution:
    def counters(value: int) -> dict[str, int]:
        return {name: value for name in COUNTERS if name != "cycles"}

    return Execution(
        accumulators=np.arange(6, dtype=np.int64).reshape(2, 3),
        cycles=90,
        counters={"cycles": 90} | counters(7),
        layers=[LayerExecution("conv1", 0, 3, 40, counters(3)), LayerExecution("fc", 1, 50, 90, counters(4))],
        writes={
            0: np.array([[10, 0, 5, 0b1011], [11, 0, 6, 0b1]], np.int64),
            1: np.array([[80, 1, 0, -7]], np.int64),
        },
    )


def test_where_cycles_went_is_not_compared() -> None:
    predicted = execution()
    predicted.layers[0].account = {"computing": 37}
    assert compare(predicted, execution()).equal


def test_an_execution_equals_itself() -> None:
    result = compare(execution(), execution())
    assert result.equal
    assert result.value_mismatches == result.cycle_mismatches == result.counter_mismatches == 0
    assert result.trace_mismatches == 0
    assert result.first is None


def change_value(run: Execution) -> None:
    run.accumulators[1, 2] = 9


def change_shape(run: Execution) -> None:
    run.accumulators = run.accumulators[:1]


def change_start(run: Execution) -> None:
    run.layers[1].start = 51


def change_end(run: Execution) -> None:
    run.layers[0].end = 41


def change_cycles(run: Execution) -> None:
    run.cycles = 91


def drop_layer(run: Execution) -> None:
    del run.layers[1]


def change_layer_counter(run: Execution) -> None:
    run.layers[1].counters["gated"] = 5


def change_total(run: Execution) -> None:
    run.counters["writes"] = 8


def change_write_data(run: Execution) -> None:
    assert run.writes
    run.writes[0][1, 3] = 0b11


def change_raw_data(run: Execution) -> None:
    assert run.writes
    run.writes[1][0, 3] = 7


def change_write_position(run: Execution) -> None:
    assert run.writes
    run.writes[0][0, 2] = 0x1F


def change_result_address(run: Execution) -> None:
    assert run.writes
    run.writes[1][0, 2] = 0x10


def drop_write(run: Execution) -> None:
    assert run.writes
    run.writes[0] = run.writes[0][:1]


def drop_traces(run: Execution) -> None:
    run.writes = None


@pytest.mark.parametrize(
    ("change", "kind", "count", "sentence"),
    [
        (change_value, "value", 1, "Result 2 of image 1 is 9, the golden model says 5."),
        (change_shape, "value", 1, "The shape of the results is (1, 3), the golden model says (2, 3)."),
        (change_start, "cycle", 1, "The first cycle of part 1 (fc) is 51, the golden model says 50."),
        (change_end, "cycle", 1, "The end of part 0 (conv1) is 41, the golden model says 40."),
        (change_cycles, "cycle", 1, "The run's number of cycles is 91, the golden model says 90."),
        (drop_layer, "cycle", 1, "The number of parts that ended is 1, the golden model says 2."),
        (change_layer_counter, "counter", 1, "Counter gated of part 1 (fc) is 5, the golden model says 4."),
        (change_total, "counter", 1, "Counter writes of the run is 8, the golden model says 7."),
        (
            change_write_data,
            "trace",
            1,
            "The data of write 1 of part 0 (cycle 11) is 0x3, the golden model says 0x1.",
        ),
        (change_raw_data, "trace", 1, "The data of write 0 of part 1 (cycle 80) is 7, the golden model says -7."),
        (
            change_write_position,
            "trace",
            1,
            "The position of write 0 of part 0 (cycle 10) is 0x1f, the golden model says 0x5.",
        ),
        (
            change_result_address,
            "trace",
            1,
            "The address of write 0 of part 1 (cycle 80) is 0x10, the golden model says 0x0.",
        ),
        (drop_write, "trace", 1, "The number of writes of part 0 is 1, the golden model says 2."),
        (drop_traces, "trace", 3, "The number of writes of part 0 is 0, the golden model says 2."),
    ],
)
def test_a_difference_is_counted_and_told(
    change: Callable[[Execution], None], kind: str, count: int, sentence: str
) -> None:
    changed = copy.deepcopy(execution())
    change(changed)
    result = compare(execution(), changed)
    kinds = ("value", "cycle", "counter", "trace")
    assert {name: getattr(result, f"{name}_mismatches") for name in kinds} == {
        name: count if name == kind else 0 for name in kinds
    }
    assert result.first == sentence
    assert not result.equal


def test_values_come_first() -> None:
    changed = copy.deepcopy(execution())
    change_total(changed)
    change_value(changed)
    first = compare(execution(), changed).first
    assert first is not None
    assert first.startswith("Result 2 of image 1")


def test_an_early_part_comes_before_a_late_one() -> None:
    changed = copy.deepcopy(execution())
    change_cycles(changed)
    change_start(changed)
    change_end(changed)
    first = compare(execution(), changed).first
    assert first is not None
    assert first.startswith("The end of part 0")
