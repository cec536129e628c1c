"""What the command line does, without its presentation: from run directories to Programs, executions and reports."""

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import COUNTERS, ArraySpec
from bitwright.hw.plan import Plan
from bitwright.hw.program import Program
from bitwright.sim.backends import backend as rtl_backend
from bitwright.sim.compare import compare
from bitwright.sim.energy import EnergyReport, EnergyTable, activity, estimate, estimate_plan, plan_activity
from bitwright.sim.execution import Execution
from bitwright.sim.golden import execute
from bitwright.sim.timeline import ACCOUNT
from bitwright.sw import data
from bitwright.sw.digits import plan_image
from bitwright.sw.host import Line, open_board
from bitwright.sw.host import energy as board_energy
from bitwright.sw.lowering import layer_shapes, lower
from bitwright.sw.report import Candidate, RunReport, Step, Verification
from bitwright.sw.runs import Run, read_json, read_lines
from bitwright.sw.search import Assignment, assemble, load_quantized
from bitwright.sw.stages import stages
from bitwright.sw.training import load_model

LARGEST_BATCH = 16
"""Most images of one execution that are tried where the user names none."""

REPORT_IMAGES = 1000
"""Test images that a report runs where the user names no number."""


# ---------------------------------------------------------------------------------------------------------------------
# Compile


def compile_run(
    folder: str | Path, array: ArraySpec | None = None, batch: int | None = None, bits: int | None = None
) -> Program:
    """Lower the network of a run.

    Parameters
    ----------
    folder
        Run directory: searched, or trained with quantizers.
    array
        Array; None: that of the run's configuration.
    batch
        Images of one execution; None: the number with the fewest cycles an image that fits.
    bits
        Take these bits everywhere, calibrated after training, instead of the searched ones; float runs only.
    """
    run = Run(folder)
    network, origin = _network(run, bits)
    spec = array if array is not None else ArraySpec.from_mapping(run.config.array)
    in_shape = _in_shape(run)
    meta = {"run": str(folder), "dataset": run.config.data.name, "model": run.config.model.name, "bits": origin}
    batch = best_batch(network, spec, in_shape) if batch is None else batch
    return lower(network, spec, in_shape, batch=batch, meta=meta)


def best_batch(network: nn.Module, spec: ArraySpec, in_shape: tuple[int, int, int]) -> int:
    """Number of images of one execution with the fewest predicted cycles an image, of those that fit."""
    shapes = layer_shapes(network, in_shape)
    input_bits = _input_bits(network)
    cycles: dict[int, float] = {}
    for batch in range(1, LARGEST_BATCH + 1):
        try:
            planned = plan_image(shapes, spec, input_bits=input_bits, batch=batch)
        except BitwrightError:
            if batch == 1:
                raise
            break
        cycles[batch] = plan_activity(planned).cycles / batch
    return min(cycles, key=lambda batch: cycles[batch])


def run_network(folder: str | Path) -> nn.Sequential:
    """Quantized network of a run: what :func:`compile_run` lowers."""
    return _network(Run(folder), None)[0]


def _network(run: Run, bits: int | None) -> tuple[nn.Sequential, str]:
    """Quantized network of a run, and a word about where its bits come from."""
    if bits is not None:
        if run.config.quantize is not None:
            raise BitwrightError(f"{run.folder} was trained with quantizers; --bits is for runs trained in float.")
        if not 1 <= bits <= 8:
            raise BitwrightError(f"--bits is {bits}, expected an integer from 1 to 8.")
        names = [stage.name for stage in stages(load_model(run.folder))]
        everywhere: Assignment = {name: {"input": bits, "weight": bits} for name in names}
        return load_quantized(run.folder, everywhere), f"{bits} everywhere"
    if run.search_path.is_file():
        return load_quantized(run.folder), "searched"
    if run.config.quantize is None:
        raise BitwrightError(
            f"{run.folder} is a float network without bits; run bitwright search {run.folder}, or compile with --bits."
        )
    return load_model(run.folder), "trained"


def _in_shape(run: Run) -> tuple[int, int, int]:
    channels, height, width = run.manifest()["data"]["in_shape"]
    return channels, height, width


def _input_bits(network: nn.Module) -> int:
    quantizer = stages(network)[0].input_quantizer
    assert quantizer is not None
    return quantizer.planes


# ---------------------------------------------------------------------------------------------------------------------
# Execute


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Test images and labels for a Program."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def images_for(program: Program, count: int | None) -> ImageSet:
    """First ``count`` test images of the data set that a Program's network was trained on; None: all."""
    name = program.meta.get("dataset")
    if not isinstance(name, str):
        raise BitwrightError("The Program does not say which data set it is for; compile it from a run directory.")
    source = data.load(name)
    available = len(source.test_labels)
    if count is not None and count > available:
        raise BitwrightError(f"Found {available} test images in {name}, {count} were asked for; ask for fewer.")
    return ImageSet(source.test_images[:count], source.test_labels[:count])


def predictions(program: Program, executions: Sequence[Execution]) -> npt.NDArray[np.int64]:
    """Class of each image."""
    return program.logits(np.concatenate([run.accumulators for run in executions])).argmax(1)


def fingerprint(program: Program) -> str:
    """SHA-256 of all that the hardware is given, to tell whether a record belongs to a Program."""
    digest = hashlib.sha256(program.spec.to_json().encode())
    memories = program.descriptors, program.weights, program.stream, program.thresholds, program.coefficients
    for array in memories:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def execute_program(
    program: Program, count: int, backend: str, trace: Sequence[int] = (), vcd: Path | None = None
) -> dict[str, Any]:
    """Execute a Program on test images; with an RTL back end also on the golden model, and compare.

    Parameters
    ----------
    program
        What to execute.
    count
        Number of test images.
    backend
        ``golden``, or one of :data:`bitwright.sim.backends.BACKENDS`.
    trace
        Numbers of layers whose every write is compared.
    vcd
        Where an RTL back end writes a waveform, if anywhere.

    Returns
    -------
    dict
        Plain values for JSON: accuracy, cycles, counters, and the numbers of differences.
    """
    for number in trace:
        if not 0 <= number < len(program.layers):
            raise BitwrightError(
                f"--compare-writes is {number}, the Program has layers 0 to {len(program.layers) - 1}."
            )
    if vcd is not None and backend == "golden":
        raise BitwrightError("The golden model has no waveform; give --backend verilator or pysim.")
    test = images_for(program, count)
    traced = [part for part, layer in enumerate(program.parts) if layer in trace]
    started = time.perf_counter()
    golden = execute(program, test.images, trace=traced)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "program": fingerprint(program),
        "backend": backend,
        "images": len(test.images),
        "accuracy": float((predictions(program, golden) == test.labels).mean()),
        "cycles": sum(run.cycles for run in golden),
        "cycles_per_image": sum(run.cycles for run in golden) / len(test.images),
        "golden_seconds": seconds,
        "seconds": seconds,
        "bit_products_per_cycle": program.spec.rows * program.spec.columns * program.spec.lanes,
        "layers": _layer_counters(program, golden),
    }
    if backend != "golden":
        started = time.perf_counter()
        machine = rtl_backend(backend, program.spec, vcd)
        built = time.perf_counter()
        executed = machine.run(program, test.images, traced)
        result |= {"build_seconds": built - started, "seconds": time.perf_counter() - built}
        result |= _differences(golden, executed)
    return result


def _layer_counters(program: Program, executions: Sequence[Execution]) -> list[dict[str, Any]]:
    """Counters and account of each layer, over all runs, and in how many descriptors it was computed.

    The account says what the layer's cycles were spent on, by the names of ``timeline.ACCOUNT``, in bit products that
    the array could have computed.
    """
    work = activity(program, executions)
    accounts: list[Counter[str]] = [Counter() for _ in program.layers]
    for part in (part for run in executions for part in run.layers):
        accounts[part.layer].update(part.account or {})
    return [
        {
            "name": layer.info.name,
            "parts": len(layer.parts),
            "counters": layer.counters,
            "account": {name: account[name] for name in ACCOUNT},
        }
        for layer, account in zip(work.layers, accounts, strict=True)
    ]


def _differences(golden: Sequence[Execution], executed: Sequence[Execution]) -> dict[str, Any]:
    comparisons = [compare(expected, found) for expected, found in zip(golden, executed, strict=True)]
    return {
        "value_mismatches": sum(each.value_mismatches for each in comparisons),
        "cycle_mismatches": sum(each.cycle_mismatches for each in comparisons),
        "other_mismatches": sum(each.counter_mismatches + each.trace_mismatches for each in comparisons),
        "first_difference": next((each.first for each in comparisons if each.first), None),
    }


def program_energy(program: Program, count: int, table: EnergyTable) -> EnergyReport:
    """Energy of a Program on test images."""
    return estimate(program, execute(program, images_for(program, count).images), table)


# ---------------------------------------------------------------------------------------------------------------------
# Boards


def run_on_board(program: Program, port: str | Line, count: int, table: EnergyTable, **options: Any) -> dict[str, Any]:
    """Run test images on a board and compare it with the golden model.

    Parameters
    ----------
    program
        Of the board's array.
    port
        Serial port, or a line.
    count
        Number of test images.
    table
        Energy table.
    options
        Of :func:`bitwright.sw.host.open_board`.

    Returns
    -------
    dict
        Plain values for JSON.
    """
    test = images_for(program, count)
    with open_board(port, **options) as board:
        started = time.perf_counter()
        board.load(program)
        loaded = time.perf_counter()
        runs = board.run(test.images)
        ended = time.perf_counter()
    golden = execute(program, test.images)
    pairs = zip(golden, runs, strict=True)
    return {
        "board": board.line.name,
        "fingerprint": board.identity.fingerprint,
        "images": len(test.images),
        "accuracy": float((predictions(program, runs) == test.labels).mean()),
        "cycles": sum(run.cycles for run in runs),
        "cycles_per_image": sum(run.cycles for run in runs) / len(test.images),
        "counters": {name: sum(run.counters[name] for run in runs) for name in COUNTERS},
        "uj_per_image": board_energy(program, test.images, runs, table).uj_per_image,
        "value_mismatches": sum(int((one.accumulators != other.accumulators).sum()) for one, other in pairs),
        "load_seconds": loaded - started,
        "run_seconds": ended - loaded,
        "requests_repeated": board.repeated,
        "sessions_lost": board.lost,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Report


def run_report(
    folder: str | Path,
    table: EnergyTable,
    images: int | None = None,
    simulations: Sequence[Path] = (),
    batch: int | None = None,
) -> RunReport:
    """Gather all that the report shows of a run: its Program is compiled and executed on test images.

    Parameters
    ----------
    folder
        Run directory.
    table
        Energy table.
    images
        Test images; None: all, at most :data:`REPORT_IMAGES`.
    simulations
        Files of :func:`execute_program` with an RTL back end.
    batch
        Images of one execution, at most, in all networks; None: the fastest number that fits the run's own.
    """
    run = Run(folder)
    program = compile_run(folder, batch=batch)
    test = images_for(program, images)
    if images is None:
        test = ImageSet(test.images[:REPORT_IMAGES], test.labels[:REPORT_IMAGES])
    executions = execute(program, test.images)
    predicted = predictions(program, executions)
    classes = len(program.output_scale)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (test.labels, predicted), 1)
    found = read_json(run.search_path) if run.search_path.is_file() else None
    trace = read_lines(run.trace_path) if run.trace_path.is_file() else []
    return RunReport(
        name=Path(folder).resolve().name,
        dataset=run.config.data.name,
        images=len(test.images),
        accuracy_float=_float_accuracy(run),
        accuracy_hardware=float((predicted == test.labels).mean()),
        confusion=confusion.tolist(),
        energy=estimate(program, executions, table),
        baseline=_baseline(run, program, test, table),
        config=run.config_path.read_text(encoding="utf-8"),
        manifest=run.manifest(),
        candidates=_candidates(run, program, found, trace, table) if found else (),
        trace=[_step(entry) for entry in trace],
        target=found["target"] if found else None,
        verification=[_recorded(path, program) for path in simulations],
    )


def _float_accuracy(run: Run) -> float | None:
    """Test accuracy of the float network of a run."""
    training = run.manifest().get("training")
    return None if run.config.quantize is not None or training is None else training["test_accuracy"]


def _baseline(run: Run, program: Program, test: ImageSet, table: EnergyTable) -> EnergyReport | None:
    """Energy of the same float network at 8 bits, executed on the same images; None where there is none that fits."""
    if run.config.quantize is not None:
        return None
    try:
        baseline = compile_run(run.folder, array=program.spec, bits=8)
    except BitwrightError:
        return None
    return estimate(baseline, execute(baseline, test.images), table)


def _step(entry: dict[str, Any]) -> Step:
    return Step(entry["layer"], entry["which"], entry["bits"], entry["accuracy"], entry["accepted"])


def _candidates(
    run: Run, program: Program, found: dict[str, Any], trace: Sequence[dict[str, Any]], table: EnergyTable
) -> list[Candidate]:
    """Every assignment of bits whose accuracy is known, with its predicted energy."""
    in_shape, float_network = _in_shape(run), load_model(run.folder)

    def candidate(label: str, kind: Any, assignment: Assignment, accuracy: float) -> Iterator[Candidate]:
        filled: Assignment = {
            name: {which: bits or 8 for which, bits in entry.items()} for name, entry in assignment.items()
        }
        planned = _largest_plan(
            assemble(float_network, filled, run.config.search), program.spec, in_shape, program.batch
        )
        if planned is not None:  # more bits may need more memory than this array has
            energy = estimate_plan(planned, table)
            bits = {name: (entry["weight"], entry["input"]) for name, entry in assignment.items()}
            cycles = energy.activity.cycles / energy.activity.images
            yield Candidate(label, kind, bits, accuracy, energy.uj_per_image, cycles)

    candidates: list[Candidate] = []
    for entry in trace:
        label = f"{entry['layer']}: {entry['which']} {entry['bits']}"
        candidates += candidate(label, "tried", entry["assignment"], entry["accuracy"])
    for entry in found["uniform"]:
        label = f"{entry['bits']} bits" + ("" if entry["image_bits"] == entry["bits"] else ", image 8 bits")
        candidates += candidate(label, "uniform", entry["assignment"], entry["validation_accuracy"])
    candidates += candidate("search result", "searched", found["bits"], found["validation_accuracy"])
    return candidates


def _largest_plan(network: nn.Module, spec: ArraySpec, in_shape: tuple[int, int, int], batch: int) -> Plan | None:
    """Plan of a network for the largest batch up to ``batch`` that fits, or None."""
    shapes, input_bits = layer_shapes(network, in_shape), _input_bits(network)
    for images in range(batch, 0, -1):
        try:
            return plan_image(shapes, spec, input_bits=input_bits, batch=images)
        except BitwrightError:
            continue
    return None


def _recorded(path: Path, program: Program) -> Verification:
    """Comparison of RTL and golden model from a file."""
    values = read_json(path)
    if not isinstance(values, dict) or "value_mismatches" not in values:
        raise BitwrightError(f"{path} is not a comparison with RTL; make one with bitwright simulate --record.")
    if values.get("program") != fingerprint(program):
        raise BitwrightError(f"{path} is of another Program than the run compiles to; simulate that one again.")
    return Verification(
        backend=values["backend"],
        images=values["images"],
        cycles=values["cycles"],
        value_mismatches=values["value_mismatches"],
        cycle_mismatches=values["cycle_mismatches"],
        other_mismatches=values["other_mismatches"],
        seconds=values["seconds"],
        first=values["first_difference"],
    )
