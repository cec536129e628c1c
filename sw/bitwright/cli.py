"""The command line: one verb for each step from a configuration to a verified accelerator.

Results go to standard output, progress and messages to standard error. Bad input ends in one sentence and exit code 2,
a difference between golden model and hardware in exit code 1, Ctrl-C in 130. Nothing here imports PyTorch or Amaranth
before a command that needs it runs, so that ``--help`` is quick.
"""

import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bitwright.hw.errors import BitwrightError

if TYPE_CHECKING:
    from bitwright.hw.isa import ArraySpec
    from bitwright.sim.energy import EnergyReport

EXIT_DIFFERENCE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="bitwright",
    help="Quantized PyTorch networks as verified bit-serial accelerators.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out, err = Console(), Console(stderr=True)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, made by [bold]train[/].")]
BoardName = Annotated[str, typer.Option(help="Board: icebreaker, ulx3s, ecpix5, arty-a7, or a platform module:class.")]
ProgramFile = Annotated[Path, typer.Argument(metavar="NET.BW", help="Program, made by [bold]compile[/].")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of tables.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the data sets; else BITWRIGHT_DATA, else a download.")
]
TableName = Annotated[str, typer.Option("--table", help="Energy table: horowitz45, moons, or a TOML file.")]


class Backend(StrEnum):
    """What executes a Program."""

    golden = "golden"
    verilator = "verilator"
    pysim = "pysim"
    cocotb = "cocotb"
    netlist_ice40 = "netlist-ice40"
    netlist_ecp5 = "netlist-ecp5"


class Bus(StrEnum):
    """Ports of an accelerator."""

    host = "host"
    axi = "axi"
    wishbone = "wishbone"


# ---------------------------------------------------------------------------------------------------------------------
# Verbs


@app.command(epilog="Example: bitwright train digits.toml -o runs/digits")
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.TOML", help="What to train.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Run directory to make or go on with.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Train a network, or go on with a training that was stopped."""
    from bitwright.sw.config import load_config

    settings = load_config(config)
    _use_data(data)
    from bitwright.sw.training import train as run_training

    result = run_training(settings, output)
    rows = [
        ("epochs", f"{result.epochs}, best {result.best_epoch}"),
        ("validation accuracy", f"{result.validation_accuracy:.2%}"),
        ("test accuracy", f"{result.test_accuracy:.2%}"),
        ("time", f"{result.seconds:.1f} s"),
        ("run", str(output)),
    ]
    _show(asdict(result), as_json, lambda: _pairs(rows))


@app.command(epilog="Example: bitwright search runs/digits")
def search(run: RunFolder, data: Data = None, as_json: Json = False) -> None:
    """Find how few bits each layer needs, or go on with a search that was stopped."""
    _use_data(data)
    from bitwright.sw.search import search as run_search

    result = run_search(run)

    def table() -> Iterable[Table]:
        found = Table("layer", "input bits", "weight bits", title="Bits of each layer")
        for name, bits in result.bits.items():
            found.add_row(name, str(bits["input"]), str(bits["weight"]))
        yield found
        yield from _pairs(
            [
                ("float accuracy, validation", f"{result.float_validation_accuracy:.2%}"),
                ("accuracy, validation", f"{result.validation_accuracy:.2%} (target {result.target:.2%})"),
                ("accuracy, test", f"{result.test_accuracy:.2%}"),
                ("candidates", str(result.candidates)),
            ]
        )

    _show(asdict(result), as_json, table)


@app.command("compile", epilog="Example: bitwright compile runs/digits -o digits.bw")
def compile_command(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="NET.BW", help="Program to write.")],
    array: Annotated[
        str | None, typer.Option(help="Array: a preset, a board or a TOML file; default: that of the run.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images of one execution; default: the fastest that fits.")] = None,
    bits: Annotated[int | None, typer.Option(help="The same bits everywhere instead of the searched ones.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Lower a network to a Program, by exact arithmetic: all that the hardware needs, in one file."""
    _use_data(data)
    from bitwright.sw.commands import compile_run

    spec = None if array is None else load_array(array)
    with _working(f"compiling {run}"):
        program = compile_run(run, array=spec, batch=batch, bits=bits)
        program.save(output)
    layers = [
        {
            "name": info.name,
            "weight_planes": info.weight_planes,
            "input_planes": info.input_planes,
            "descriptors": len(parts),
            "passes": len(parts[0].passes),
            "zero_skip": sorted({part.zero_skip(program.spec) for part in parts}),
        }
        for number, info in enumerate(program.layers)
        for parts in [[part for part, layer in zip(program.parsed, program.parts, strict=True) if layer == number]]
    ]
    value = {
        "output": str(output),
        "batch": program.batch,
        "layers": layers,
        "descriptor_words": len(program.descriptors),
        "weight_words": program.weights.shape[1],
        "threshold_entries": program.thresholds.shape[1],
        "coefficient_entries": program.coefficients.shape[1],
        "streamed_words": len(program.stream),
    }

    def table() -> Iterable[Table]:
        names = "layer", "weight planes", "input planes", "descriptors", "passes", "words of zeros"
        found = Table(*names, title=str(output))
        for layer in layers:
            found.add_row(*(", ".join(cell) if isinstance(cell, list) else str(cell) for cell in layer.values()))
        yield found
        spec = program.spec
        yield from _pairs(
            [
                ("images in one execution", str(program.batch)),
                ("descriptor words", f"{len(program.descriptors)} of {spec.descriptor_depth}"),
                ("weight words in a row", f"{program.weights.shape[1]} of {spec.weight_depth}"),
                ("thresholds in a row", f"{program.thresholds.shape[1]} of {spec.threshold_depth}"),
            ]
        )
        if program.coefficients.size:
            entries = f"{program.coefficients.shape[1]} of {spec.coefficient_depth}"
            yield from _pairs([("coefficients in a row", entries)])
        if len(program.stream):
            yield from _pairs([("32-bit words streamed", f"{len(program.stream):,} in each execution")])

    _show(value, as_json, table)


@app.command(epilog="Example: bitwright verilog --array demo -o verilog/")
def verilog(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write.")],
    array: Annotated[str, typer.Option(help="Array: a preset, a board or a TOML file.")] = "demo",
    bus: Annotated[Bus, typer.Option(help="Its ports: a simple bus of its own, AXI4, or Wishbone B4.")] = Bus.host,
    as_json: Json = False,
) -> None:
    """Write an accelerator as Verilog, with its ports, registers and memories as JSON and as a C header."""
    from bitwright.hw.verilog import write

    spec = load_array(array)
    with _working(f"writing Verilog to {output}"):
        files = write(spec, output, bus.value)
    _show({"files": [str(path) for path in files]}, as_json, lambda: _pairs([("written", str(path)) for path in files]))


@app.command(epilog="Example: bitwright simulate digits.bw --images 100 --backend verilator")
def simulate(
    program: ProgramFile,
    images: Annotated[int, typer.Option(min=1, help="Test images.")] = 100,
    backend: Annotated[Backend, typer.Option(help="What executes the Program.")] = Backend.golden,
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline of the first batch there, for Perfetto; one cycle is 1 µs.")
    ] = None,
    compare_writes: Annotated[
        list[int] | None, typer.Option(help="Number of a layer whose every write is compared; RTL back ends only.")
    ] = None,
    vcd: Annotated[Path | None, typer.Option(help="Write a waveform there; RTL back ends only.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the comparison to this JSON file, for the report.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Execute a Program on test images; in RTL, also compare it with the golden model, cycle by cycle."""
    _use_data(data)
    from bitwright.hw.program import Program
    from bitwright.sim.trace import trace as trace_run
    from bitwright.sw.commands import execute_program, images_for
    from bitwright.sw.runs import write_json

    loaded = Program.load(program)
    with _working(f"executing {images} images, {backend.value}"):
        result = execute_program(loaded, images, backend.value, compare_writes or [], vcd)
        if trace is not None:
            trace_run(loaded, images_for(loaded, min(images, loaded.batch)).images).write(trace)
    if record is not None:
        write_json(record, result)

    def table() -> Iterable[Table]:
        layers = Table(
            "layer", "cycles", "busy", "stalls", "computed", "held still", "skipped", "loads", "writes", title="Layers"
        )
        for layer in result["layers"]:
            cells = ("cycles", "busy", "stalls", "computed", "gated", "skipped", "loads", "writes")
            layers.add_row(layer["name"], *(f"{layer['counters'][cell]:,}" for cell in cells))
        yield layers
        yield _account_table(result)
        rows = [
            ("back end", result["backend"]),
            ("images", f"{result['images']:,}"),
            ("accuracy", f"{result['accuracy']:.2%}"),
            ("cycles per image", f"{result['cycles_per_image']:,.1f}"),
            ("cycles", f"{result['cycles']:,} in {result['seconds']:.2f} s"),
        ]
        if result["backend"] != "golden":
            rows.append(("differences in values", str(result["value_mismatches"])))
            rows.append(("differences in cycles", str(result["cycle_mismatches"])))
            rows.append(("differences in counters, writes", str(result["other_mismatches"])))
        yield from _pairs(rows)

    _show(result, as_json, table)
    if result.get("first_difference"):
        _say(f"RTL and golden model differ: {result['first_difference']}")
        raise typer.Exit(EXIT_DIFFERENCE)


@app.command("run", epilog="Example: bitwright run digits.bw --port /dev/ttyUSB1 --images 100")
def run_command(
    program: ProgramFile,
    port: Annotated[str, typer.Option(help="Serial port of the board, or of [bold]virtual-board[/].")],
    images: Annotated[int, typer.Option(min=1, help="Test images.")] = 100,
    baud: Annotated[int, typer.Option(min=1, help="Bits a second on the serial line.")] = 1_000_000,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds to wait for an answer.")] = 1.0,
    table: TableName = "horowitz45",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Run a Program on a board, compare it with the golden model, tell its energy by what the board counted."""
    from bitwright.sim.energy import load_table

    energies = load_table(table)
    _use_data(data)
    from bitwright.hw.program import Program
    from bitwright.sw.commands import run_on_board

    loaded = Program.load(program)
    with _working(f"running {images} images on {port}"):
        result = run_on_board(loaded, port, images, energies, baud=baud, timeout=timeout)
    rows = [
        ("board", f"{result['board']}, array {result['fingerprint']:#010x}"),
        (
            "images",
            f"{result['images']:,} in {result['run_seconds']:.2f} s, after {result['load_seconds']:.2f} s of loading",
        ),
        ("accuracy", f"{result['accuracy']:.2%}"),
        ("cycles per image", f"{result['cycles_per_image']:,.1f}"),
        ("energy", f"{result['uj_per_image']:.4g} µJ per image by {energies.label}"),
        ("differences in values", str(result["value_mismatches"])),
        ("requests sent again", str(result["requests_repeated"])),
        ("resets of the board", str(result["sessions_lost"])),
    ]
    _show(result, as_json, lambda: _pairs(rows))
    if result["value_mismatches"]:
        _say(f"The board and the golden model differ in {result['value_mismatches']} values.")
        raise typer.Exit(EXIT_DIFFERENCE)


@app.command("virtual-board", epilog="Example: bitwright virtual-board digits.bw --board icebreaker")
def virtual_board(
    program: ProgramFile,
    board: BoardName = "icebreaker",
    as_json: Json = False,
) -> None:
    """Simulate a board with the array of a Program behind a serial port, until Ctrl-C."""
    from bitwright.hw.boards import board as find_board
    from bitwright.hw.program import Program
    from bitwright.sim.board import VirtualBoard

    found, loaded = find_board(board), Program.load(program)
    with _working(f"building the simulator of {found.title}"):
        virtual = VirtualBoard(found, loaded.spec)
    rows = [("port", virtual.port), ("use it", f"bitwright run {program} --port {virtual.port} --timeout 10")]
    try:
        _show({"port": virtual.port}, as_json, lambda: _pairs(rows))
        virtual.serve()
    except KeyboardInterrupt:
        _say("The virtual board is switched off.")
    finally:
        virtual.close()


@app.command(epilog="Example: bitwright build --board icebreaker -o build/icebreaker")
def build(
    board: BoardName,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the bitstream, or for the vendor's tools.")
    ],
    array: Annotated[
        str | None, typer.Option(help="Array: a preset, a board or a TOML file; default: the board's own.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Take the largest preset that fits.")] = False,
    clock: Annotated[float | None, typer.Option(help="Clock of the machine, MHz; default: the board's own.")] = None,
    size_only: Annotated[bool, typer.Option("--size-only", help="Only tell what the board would take.")] = False,
    as_json: Json = False,
) -> None:
    """Make a board's bitstream without vendor tools, and tell what it takes and how fast it is.

    For FPGAs without open tools, and for other platforms of amaranth-boards, given as module:class, write what their
    vendor's tools build it of.
    """
    import dataclasses

    from bitwright.hw import boards
    from bitwright.sim.backends.source import cache_folder

    found = boards.board(board)
    if clock is not None:
        found = dataclasses.replace(found, clock_mhz=clock)
    if fit and array is not None:
        raise BitwrightError(f"--fit chooses the array, but {array} is given as well; leave one of them out.")
    cache = cache_folder() / "synthesis"
    value: dict[str, Any] = {"board": found.title, "clock_mhz": found.clock_mhz}
    rows: list[tuple[str, str]] = []
    sizes: dict[str, tuple[int, int]] = {}
    with _working(f"building for {found.title}"):
        if fit:
            array = value["array"] = boards.fit(found, cache)
            rows = [("array", array)]
        spec = found.array if array is None else load_array(array)
        value["fingerprint"] = spec.fingerprint
        if size_only:
            sizes = boards.sizes(found, spec, cache)
        elif found.open:
            built = boards.build(found, spec, output, cache)
            value |= {"bitstream": str(built.bitstream), "frequency_mhz": built.frequency}
            sizes = {name: (used, built.available[name]) for name, used in built.used.items()}
            rows += [("clock", f"{built.frequency:.1f} MHz reached, {found.clock_mhz:g} MHz used")]
            rows += [("written", str(built.bitstream))]
        else:
            value["files"] = boards.write_project(found, spec, output)
            rows += [("written", f"{output}: {', '.join(value['files'])}")]
            rows += [("next", f"sh build_top.sh in {output}, with the vendor's tools installed")]
    if sizes:
        value["resources"] = {name: {"used": used, "available": has} for name, (used, has) in sizes.items() if used}
        rows = [(name, f"{used:,} of {has:,}") for name, (used, has) in sizes.items() if used] + rows
    _show(value, as_json, lambda: _pairs(rows))


@app.command(epilog="Example: bitwright energy digits.bw --images 50 --table horowitz45")
def energy(
    program: ProgramFile,
    images: Annotated[int, typer.Option(min=1, help="Test images to count events on.")] = 100,
    table: TableName = "horowitz45",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Estimate energy by events: by layer, component and event."""
    from bitwright.sim.energy import load_table

    energies = load_table(table)
    _use_data(data)
    from bitwright.hw.program import Program
    from bitwright.sw.commands import program_energy

    loaded = Program.load(program)
    with _working(f"counting events of {images} images"):
        report = program_energy(loaded, images, energies)
    _show(report.to_dict(), as_json, lambda: _energy_tables(report))


@app.command(epilog="Example: bitwright report runs/digits --simulation rtl.json -o report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="REPORT.HTML", help="Page to write.")],
    simulation: Annotated[
        list[Path] | None, typer.Option(help="Comparisons recorded by [bold]simulate --record[/], for a single run.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Test images to run; default: all, at most 1000.")] = None,
    table: TableName = "horowitz45",
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained page: energy against accuracy, bits, components, utilization, verification."""
    from bitwright.sim.energy import load_table

    energies = load_table(table)
    _use_data(data)
    from bitwright.hw.files import replacing
    from bitwright.sw.commands import run_report
    from bitwright.sw.report import render

    if simulation and len(runs) > 1:
        raise BitwrightError(f"A recorded simulation is of one run, found {len(runs)} runs; report on one at a time.")
    with _working("executing and drawing"):
        page = render([run_report(run, energies, images=images, simulations=simulation or []) for run in runs])
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    _show({"output": str(output), "bytes": len(page)}, as_json, lambda: _pairs([("written", str(output))]))


@app.command(epilog="Example: bitwright doctor")
def doctor(as_json: Json = False) -> None:
    """Tell which tools are here, what each is for, and how to get it."""
    from bitwright.sim.tools import all_tools, missing_extras

    tools = all_tools()

    def table() -> Iterable[Table | str]:
        found = Table("tool", "found", "needed for", "how to get it")
        for tool in tools:
            mark = f"[green]{escape(tool.version)}[/]" if tool.path else "[red]missing[/]"
            found.add_row(tool.name, mark, tool.purpose, "" if tool.path else escape(tool.remedy))
        yield found
        missing = [tool.name for tool in tools if tool.path is None]
        if missing:
            yield f"Missing: {', '.join(missing)}."
        if extras := missing_extras(tools):
            yield escape(f"All that pip has of it: pip install 'bitwright[{','.join(extras)}]'")

    values = [
        {"name": tool.name, "found": tool.path is not None, "version": tool.version, "path": str(tool.path or "")}
        | {"purpose": tool.purpose, "remedy": tool.remedy}
        for tool in tools
    ]
    _show(values, as_json, table)


# ---------------------------------------------------------------------------------------------------------------------
# Presentation


def load_array(name: str) -> "ArraySpec":
    """Array of a preset, of a board, or of a TOML file of its parameters, by themselves or as a table ``[array]``."""
    from bitwright.hw.boards import BOARDS
    from bitwright.hw.isa import PRESETS, ArraySpec, preset

    path = Path(name)
    if name in BOARDS:
        return BOARDS[name].array
    if name in PRESETS or not path.exists():
        return preset(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise BitwrightError(f"{path} is not TOML: {error}; correct that line.") from error
    parameters = values.get("array", values)
    if not isinstance(parameters, dict) or not parameters:
        raise BitwrightError(f"{path} has no parameters of an array; write a preset or parameters, as under [array].")
    return ArraySpec.from_mapping(parameters)


def _use_data(folder: Path | None) -> None:
    """Make ``folder`` the one that data sets are read from."""
    if folder is None:
        return
    if not folder.is_dir():
        raise BitwrightError(f"--data is {folder}, which is not a folder; give the folder that holds the data sets.")
    os.environ["BITWRIGHT_DATA"] = str(folder)


@contextmanager
def _working(what: str) -> Iterator[None]:
    """Show what takes its time, and for how long already, where standard error is a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        progress.add_task(what, total=None)
        yield


def _show(value: Any, as_json: bool, tables: Callable[[], Iterable[Table | str]]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    for table in tables():
        out.print(table)


def _pairs(rows: Sequence[tuple[str, str]]) -> Iterable[Table]:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    for name, value in rows:
        grid.add_row(name, value)
    yield grid


def _account_table(result: dict[str, Any]) -> Table:
    """What the cycles of each layer were spent on, in percent of the layer's."""
    accounts = {layer["name"]: layer["account"] for layer in result["layers"]}
    names = list(next(iter(accounts.values())))
    total = {name: sum(account[name] for account in accounts.values()) for name in names}
    names = [name for name in names if total[name]]
    found = Table(title="What cycles are spent on, in %", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    found.add_column("layer")
    for name in (*names, "cycles"):
        found.add_column(name.replace("_", " "), justify="right")
    for layer, account in [*accounts.items(), ("all", total)]:
        if account is total:
            found.add_section()
        products = sum(account.values())
        shares = [f"{100 * account[name] / products:.1f}" if account[name] else "" for name in names]
        found.add_row(layer, *shares, f"{products // result['bit_products_per_cycle']:,}")
    return found


def _energy_tables(report: "EnergyReport") -> Iterable[Table]:
    cells = report.by("layer", "component")
    layers = [layer for (layer,) in report.by("layer")]
    found = Table("nJ per image", *layers, "total", title=report.table.label)
    for (component,), total in report.by("component").items():
        values = [cells.get((layer, component), 0.0) for layer in layers]
        found.add_row(component, *(f"{1e3 * value:,.2f}" if value else "" for value in values), f"{1e3 * total:,.2f}")
    found.add_section()
    totals = [f"{1e3 * value:,.2f}" for value in report.by("layer").values()]
    found.add_row("total", *totals, f"[bold]{1e3 * report.uj_per_image:,.2f}[/]")
    yield found
    yield from _pairs(
        [
            ("energy", f"{report.uj_per_image:.4g} µJ per image, over {report.activity.images} images"),
            ("time", f"{report.seconds_per_image * 1e6:,.2f} µs per image at {report.table['clock']:g} MHz"),
            ("energy-delay product", f"{report.energy_delay:.3g} J·s"),
            ("loading the Program, once", f"{report.load_uj:.4g} µJ"),
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def _say(sentence: str) -> None:
    err.print(f"bitwright: {sentence}", markup=False, highlight=False, soft_wrap=True)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        # Typer returns the code of an exit, and None where a command simply ends.
        code = app(args=arguments, prog_name="bitwright", standalone_mode=False)
        if code == EXIT_INTERRUPTED:
            _say("Stopped, and nothing half-written is left; run the same command again.")
        return code if isinstance(code, int) else 0
    except BitwrightError as error:
        _say(str(error))
        return EXIT_INTERRUPTED if type(error).__name__ == "Interrupted" else EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader of the output left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _say(f"Cannot use{where}: {error.strerror or error}; check that it exists, is readable and has room.")
        return EXIT_BAD_INPUT
    except Exception as error:
        message = getattr(error, "format_message", None)  # a mistake in the arguments, as Typer reports it
        if message is None:
            raise
        if text := message():  # empty where no command was given and the help was shown
            _say(f"{text} (see bitwright --help)")
        return EXIT_BAD_INPUT


def main() -> NoReturn:
    """Entry point of the ``bitwright`` command."""
    sys.exit(run())
