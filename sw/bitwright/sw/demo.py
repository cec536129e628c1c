"""``make demo``: the whole way from images to verified hardware, on handwritten digits, in one command.

Trains, searches bits, compiles, emits Verilog, executes it on test images against the golden model, estimates energy
and writes a report. A second run goes on from what the first one left.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bitwright.cli import EXIT_BAD_INPUT, EXIT_DIFFERENCE, EXIT_INTERRUPTED
from bitwright.hw import verilog
from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.sim.energy import EnergyReport, estimate, load_table
from bitwright.sim.golden import execute
from bitwright.sw.commands import compile_run, execute_program, images_for, predictions, run_network, run_report
from bitwright.sw.config import parse_config
from bitwright.sw.lowering import verify
from bitwright.sw.report import render
from bitwright.sw.runs import write_json
from bitwright.sw.search import search
from bitwright.sw.training import Interrupted, train

BACKEND = "verilator"
TABLE = "horowitz45"


class Steps:
    """Runs steps one after the other, says so, and keeps their times."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        setup = Path(sys.prefix) / ".ready"  # written by the Makefile
        if setup.is_file() and (text := setup.read_text().strip()).isdigit():
            self.seconds["set-up"] = float(text)

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Time a step."""
        self.console.print(f"[bold]{name:<9}[/] {what}", highlight=False)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)
        self.console.print(f"[dim]{'':<9} {self.seconds[name]:.1f} s[/]", highlight=False)


def demo(folder: Path, console: Console) -> dict[str, Any]:
    """Run the demonstration and return its summary, which is also written to ``folder/summary.json``."""
    steps = Steps(console)
    config = parse_config(
        files("bitwright.sw").joinpath("templates/demo.toml").read_text(encoding="utf-8"), "demo.toml"
    )
    run = folder / "digits"
    program_path, rtl_path, report_path = folder / "digits.bw", folder / "rtl.json", folder / "report.html"
    table = load_table(TABLE)

    with steps.step("train", "a float network on handwritten digits"):
        trained = train(config, run)
    with steps.step("search", "the fewest bits of each layer"):
        found = search(run)
    with steps.step("compile", "the network to integers, at the searched bits and at 8 bits everywhere"):
        program, uniform = compile_run(run), compile_run(run, bits=8)
        program.save(program_path)
        test = images_for(program, None)
    with steps.step("check", f"every activation of {len(test.images)} test images against PyTorch in float64"):
        exact = verify(run_network(run), program, test.images)
    with steps.step("verilog", "of the accelerator"):
        sources = verilog.write(program.spec, folder / "verilog")
    with steps.step("rtl", f"{len(test.images)} test images, cycle by cycle, against the golden model"):
        rtl = execute_program(program, len(test.images), BACKEND, trace=range(len(program.layers)))
        write_json(rtl_path, rtl)
    with steps.step("energy", "by events, at the searched bits and at 8 bits"):
        energies: dict[str, EnergyReport] = {}
        accuracies: dict[str, float] = {}
        for name, each in (("8bit", uniform), ("searched", program)):
            executions = execute(each, test.images)
            energies[name] = estimate(each, executions, table)
            accuracies[name] = float((predictions(each, executions) == test.labels).mean())
    with steps.step("report", "one page"):
        page = render([run_report(run, table, simulations=[rtl_path])])
        with replacing(report_path) as temporary:
            temporary.write_text(page, encoding="utf-8")

    summary = {
        "images": rtl["images"],
        "value_mismatches": rtl["value_mismatches"],
        "cycle_mismatches": rtl["cycle_mismatches"],
        "other_mismatches": rtl["other_mismatches"],
        "first_difference": rtl["first_difference"],
        "activations_compared_with_float64": sum(exact.activations.values()),
        "activation_mismatches": sum(exact.mismatches.values()),
        "accuracy_float": trained.test_accuracy,
        "accuracy_hardware": accuracies["searched"],
        "accuracy_hardware_8bit": accuracies["8bit"],
        "energy_uj_per_image": {name: energy.uj_per_image for name, energy in energies.items()},
        "cycles_per_image": rtl["cycles_per_image"],
        "cycles_per_image_8bit": energies["8bit"].activity.cycles / energies["8bit"].activity.images,
        "rtl_cycles": rtl["cycles"],
        "bits": found.bits,
        "seconds": steps.seconds,
        "files": {
            "report": str(report_path),
            "program": str(program_path),
            "verilog": [str(path) for path in sources],
            "run": str(run),
        },
    }
    write_json(folder / "summary.json", summary)
    return summary


def _print(summary: dict[str, Any], console: Console) -> None:
    energy, seconds = summary["energy_uj_per_image"], summary["seconds"]
    differences = summary["value_mismatches"], summary["cycle_mismatches"], summary["other_mismatches"]
    values, cycles, others = differences
    colour = "red" if any(differences) or summary["activation_mismatches"] else "green"
    bits = ", ".join(f"{name} W{each['weight']} A{each['input']}" for name, each in summary["bits"].items())
    table = Table(title="bitwright demo", show_header=False, title_justify="left", min_width=80)
    for name, value in (
        ("accuracy, float → hardware", f"{summary['accuracy_float']:.2%} → {summary['accuracy_hardware']:.2%}"),
        ("bits found", bits),
        ("energy, 8 bits → found", f"{energy['8bit']:.4f} → {energy['searched']:.4f} µJ per image"),
        ("cycles, 8 bits → found", f"{summary['cycles_per_image_8bit']:,.0f} → {summary['cycles_per_image']:,.0f}"),
        (
            "golden model against float64",
            f"[{colour}]{summary['activation_mismatches']} of "
            f"{summary['activations_compared_with_float64']:,} activations differ[/]",
        ),
        (
            f"RTL against golden, {summary['images']} images",
            f"[{colour}]{values} values, {cycles} cycles, {others} counters or writes differ[/]",
        ),
        ("time", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())),
        ("report", summary["files"]["report"]),
        ("Verilog", summary["files"]["verilog"][0]),
    ):
        table.add_row(name, value)
    console.print(table)


def main(arguments: list[str]) -> int:
    """Run the demonstration in the folder given; return the exit code."""
    console = Console()
    try:
        summary = demo(Path(*arguments[:1]) if arguments else Path("build/demo"), console)
    except BitwrightError as error:
        sys.stderr.write(f"demo: {error}\n")
        return EXIT_INTERRUPTED if isinstance(error, Interrupted) else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("demo: stopped; run it again to go on.\n")
        return EXIT_INTERRUPTED
    _print(summary, console)
    keys = ("value_mismatches", "cycle_mismatches", "other_mismatches", "activation_mismatches")
    if wrong := {key: summary[key] for key in keys if summary[key]}:
        sys.stderr.write(
            f"demo: found differences, expected none: {json.dumps(wrong)}; {summary['first_difference']}\n"
        )
        return EXIT_DIFFERENCE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
