import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    HEADER_WORDS,
    PRESETS,
    REGISTER_HELP,
    ArraySpec,
    Descriptor,
    Pass,
    Region,
    ZeroSkip,
    descriptor_fields,
)
from bitwright.hw.verilog import TOP, WAIVED_LINT, describe, emit_accelerator, write
from bitwright.sim.tools import icarus, verilator, verilator_environment


def small(zero_skip: ZeroSkip = "skip", rows: int = 4, columns: int = 2, lanes: int = 32, **options: Any) -> ArraySpec:
    """Array with little memory and, as it is, without options."""
    return ArraySpec(
        rows=rows,
        columns=columns,
        lanes=lanes,
        drain_planes=options.pop("drain_planes", 1),
        residual=options.pop("residual", False),
        activation_depth=256,
        weight_depth=128,
        threshold_depth=64,
        descriptor_depth=128,
        result_depth=16,
        window_depth=16,
        row_tiles_max=8,
        zero_skip=zero_skip,
        **options,
    )


@cache
def verilog(spec: ArraySpec) -> str:
    return emit_accelerator(spec)


EVERYTHING = small(
    lanes=64,
    drain_planes=2,
    residual=True,
    coefficient_bits=4,
    weight_stream=True,
    codebook_bits=3,
    columns_per_copy=2,
    coefficient_depth=32,
)
"""An array with all options."""

ARRAYS = {
    "off": small("off", columns=1),
    "gate": small("gate", rows=8, lanes=64, drain_planes=2),
    "skip": small("skip", residual=True),
    "everything": EVERYTHING,
}


def lint(path: Path, *flags: str) -> str:
    if verilator().path is None:
        pytest.skip("no Verilator")
    command = [
        str(verilator().require()),
        "--lint-only",
        "--quiet-stats",
        "-Wall",
        *flags,
        "--top-module",
        TOP,
        str(path),
    ]
    shown = subprocess.run(command, env=verilator_environment(), capture_output=True, text=True, check=False)
    return shown.stdout + shown.stderr


@pytest.mark.parametrize("spec", ARRAYS.values(), ids=ARRAYS)
def test_verilator_has_nothing_to_say(spec: ArraySpec, tmp_path: Path) -> None:
    path = tmp_path / f"{TOP}.v"
    path.write_text(verilog(spec))
    assert lint(path, *(f"-Wno-{name}" for name in WAIVED_LINT)) == ""


def test_every_waiver_is_needed(tmp_path: Path) -> None:
    found: set[str] = set()
    for spec in ARRAYS.values():
        path = tmp_path / f"{TOP}.v"
        path.write_text(verilog(spec))
        found |= set(re.findall(r"%Warning-(\w+):", lint(path)))
    assert found == set(WAIVED_LINT)
    assert all(WAIVED_LINT.values())


@pytest.mark.parametrize("spec", ARRAYS.values(), ids=ARRAYS)
def test_icarus_takes_it_as_verilog_2005(spec: ArraySpec, tmp_path: Path) -> None:
    if icarus().path is None:
        pytest.skip("no Icarus Verilog")
    path = tmp_path / f"{TOP}.v"
    path.write_text(verilog(spec))
    command = [str(icarus().require()), "-g2005", "-Wall", "-Wno-timescale", "-t", "null", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout + shown.stderr) == (0, "")


def test_no_output_is_undefined_after_reset(tmp_path: Path) -> None:
    """Nor before it: registers have initial values."""
    if icarus().path is None:
        pytest.skip("no Icarus Verilog")
    spec = small()
    outputs = [port for port in describe(spec)["ports"] if port["direction"] == "output"]
    inputs = [port for port in describe(spec)["ports"] if port["direction"] == "input"]
    declared = "\n".join(
        [f"reg [{port['bits'] - 1}:0] {port['name']} = 0;" for port in inputs]
        + [f"wire [{port['bits'] - 1}:0] {port['name']};" for port in outputs]
    )
    connected = ", ".join(f".{port['name']}({port['name']})" for port in inputs + outputs)
    everything = ", ".join(port["name"] for port in outputs)
    (tmp_path / "bench.v").write_text(f"""
module bench;
{declared}
{TOP} dut({connected});
always #5 clk = ~clk;
always @(negedge clk) if (^{{{everything}}} === 1'bx) $display("undefined at %0t", $time);
initial begin
  #1 if (^{{{everything}}} === 1'bx) $display("undefined at first");
  rst = 1; #40 rst = 0; #100 $finish;
end
endmodule
""")
    (tmp_path / f"{TOP}.v").write_text(verilog(spec))
    simulation = tmp_path / "bench"
    subprocess.run(
        [
            str(icarus().require()),
            "-g2005",
            "-o",
            str(simulation),
            str(tmp_path / "bench.v"),
            str(tmp_path / f"{TOP}.v"),
        ],
        check=True,
    )
    shown = subprocess.run([str(simulation)], capture_output=True, text=True, check=True)
    assert "undefined" not in shown.stdout


def test_the_text_does_not_depend_on_hash_seeds() -> None:
    code = "import sys; from bitwright.hw.isa import ArraySpec; from bitwright.hw.verilog import emit_accelerator;"
    code += "sys.stdout.write(emit_accelerator(ArraySpec(**__import__('json').loads(sys.argv[1]))))"
    spec = small()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "17"}
    command = [sys.executable, "-c", code, spec.to_json()]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == verilog(spec)


def test_the_header_names_the_array() -> None:
    header = verilog(small()).split("\n\n")[0]
    assert all(line.startswith("// ") for line in header.splitlines())
    header = header.replace("\n//", "")
    for part in (
        "generated by Bitwright",
        "rows 4, columns 2, lanes 32",
        "drain_planes 1",
        "zero_skip skip",
        f"{small().fingerprint:#010x}",
    ):
        assert part in header


def test_equal_components_share_a_module() -> None:
    def modules(spec: ArraySpec) -> list[str]:
        return re.findall(r"^module (\w+)", verilog(spec), re.M)

    assert modules(small()) == modules(small(rows=8, columns=3))
    assert TOP in modules(small())


def test_no_event_is_waited_for_at_time_zero() -> None:
    assert "always @*" not in verilog(small())


@pytest.mark.parametrize("spec", [small(), EVERYTHING], ids=["small", "everything"])
def test_ports_are_those_of_the_verilog(spec: ArraySpec) -> None:
    module = verilog(spec).split(f"module {TOP}(")[1].split("endmodule")[0]
    declared = re.findall(r"^ *(input|output) (?:\[(\d+):0\] )?(\w+);", module, re.M)
    expected = {(port["name"], port["direction"], port["bits"]) for port in describe(spec)["ports"]}
    assert {(name, direction, int(top or 0) + 1) for direction, top, name in declared} == expected
    assert all(port["meaning"] for port in describe(spec)["ports"])


@pytest.mark.parametrize("spec", [*PRESETS.values(), EVERYTHING], ids=[*PRESETS, "everything"])
def test_formulas_give_the_bus_addresses(spec: ArraySpec) -> None:
    described: dict[str, Any] = json.loads(json.dumps(describe(spec)))
    for memory in described["memories"]:
        region = Region[memory["name"].upper()]
        for row, word, chunk in [(0, 0, 0), (0, 1, 0), (memory["banks"] - 1, memory["depth"] - 1, 0)]:
            last = chunk if word == 0 else memory["chunks_per_word"] - 1
            names = {"row": row, "chunk": last, **dict.fromkeys(("word", "entry", "register", "result"), word)}
            address = memory["base"] + eval(memory["formula"].removeprefix("address = "), {}, names)
            assert address == spec.derived.host_address(region, word, row, last), memory["name"]
            assert address < 1 << described["bus"]["address_bits"]


def test_registers_and_descriptor_fields_are_all_described() -> None:
    spec = small()
    described = describe(spec)
    assert [entry["address"] for entry in described["registers"]] == [int(register) for register in REGISTER_HELP]
    fields = described["descriptor"]["fields"]
    assert [entry["name"] for entry in fields] == [field.name for field in descriptor_fields(spec)]
    assert described["descriptor"]["header_words"] == HEADER_WORDS == fields[-1]["word"] + 1
    assert all(entry["meaning"] for entry in (*described["registers"], *fields))


def test_memories_are_those_that_the_array_has() -> None:
    names = [region.name.lower() for region in Region]
    assert {memory["name"] for memory in describe(EVERYTHING)["memories"]} == set(names)
    assert {memory["name"] for memory in describe(small())["memories"]} == {*names} - {"coefficients"}


def test_described_fields_and_passes_are_what_the_machine_reads() -> None:
    """A descriptor put together from the description alone is the one that the contract encodes."""
    described = json.loads(json.dumps(describe(EVERYTHING)["descriptor"]))
    entry = Pass(weight_offset=77, plane=1, base=3, doubles=5, negate=True)
    numbers = {field["name"]: field["low"] for field in described["fields"]}
    numbers |= {"activation_planes": 2, "run_granules": 37, "window_length": 3, "start_y": -2, "image_step": 99_999}
    numbers |= {"flags": described["flags"]["last"] | described["flags"]["table"]}
    words = [0] * described["header_words"]
    for field in described["fields"]:
        words[field["word"]] |= (numbers[field["name"]] & ((1 << field["bits"]) - 1)) << field["bit"]
    pass_word = 0
    for name, (_, low) in described["pass_word"].items():
        pass_word |= int(getattr(entry, name)) << low
    expected = Descriptor(fields=numbers, passes=(entry,)).encode(EVERYTHING)
    assert [*words, pass_word] == expected.tolist()
    tops = sorted((low, top) for top, low in described["pass_word"].values())
    assert [low for low, _ in tops] == [0, *(top + 1 for _, top in tops[:-1])]
    assert tops[-1][1] == 31


def test_both_files_are_written(tmp_path: Path) -> None:
    paths = write(small(), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    assert paths[0].read_text() == verilog(small())
    assert json.loads(paths[1].read_text()) == describe(small())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(BitwrightError, match=r"Cannot write .*choose a folder"):
        write(small(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"
