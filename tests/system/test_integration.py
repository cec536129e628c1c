"""The snippets of the integration guide work, as far as the tools that they are for are here."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.hw.cheader import c_header
from bitwright.hw.isa import Region, Register, preset
from bitwright.hw.verilog import bus_top, describe
from bitwright.sim.backends.source import verilog
from bitwright.sim.tools import verilator, verilator_environment
from programs import linear, random_images, random_program

GUIDE = (Path(__file__).parents[2] / "docs" / "hardware" / "integration.md").read_text(encoding="utf-8")


def block(language: str, word: str) -> str:
    """The snippet of a language with a word in it."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.S) if word in text)
    return found


def litex_ports() -> set[tuple[str, str]]:
    """Direction and name of the ports that the LiteX snippet connects."""
    calls = [node for node in ast.walk(ast.parse(block("python", "litex"))) if isinstance(node, ast.Call)]
    (instance,) = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Instance")
    assert isinstance(instance.args[0], ast.Constant)
    assert instance.args[0].value == bus_top("wishbone").module
    directions = {"i": "input", "o": "output"}
    return {(directions[str(key.arg)[0]], str(key.arg)[2:]) for key in instance.keywords}


def test_litex_connects_every_port_but_stall() -> None:
    described = describe(preset("demo"), "wishbone")
    ports = {(port["direction"], port["name"]) for port in described["ports"]}
    assert ports - litex_ports() == {("output", "wb_stall")}
    assert litex_ports() <= ports


def test_litex_names_of_the_weights_exist() -> None:
    (text,) = re.findall(r"`(i_weights.*?)`", GUIDE, re.S)
    named = set(re.findall(r"[io]_(weights_\w+)=", text))
    described = describe(preset("demo").from_mapping({"preset": "demo", "weight_stream": True}), "wishbone")
    assert named == {port["name"] for port in described["ports"] if "weights" in port["name"]}


def test_litex_builds_a_soc(tmp_path: Path) -> None:
    modules = ("build.generic_platform", "build.io", "build.sim", "soc.integration.soc_core")
    pins, io, sim, soc_core = (
        pytest.importorskip(f"litex.{name}", reason="LiteX is not installed") for name in modules
    )
    if verilator().path is None:
        pytest.skip("no Verilator")
    (tmp_path / "bitwright_wishbone.v").write_text(verilog(preset("tiny"), "wishbone"))
    (tmp_path / "bitwright_wishbone.json").write_text(json.dumps(describe(preset("tiny"), "wishbone")))
    names: dict[str, Any] = {}
    exec(block("python", "litex"), names)
    platform = sim.SimPlatform("SIM", [("sys_clk", 0, pins.Pins(1))])
    soc = soc_core.SoCMini(platform, clk_freq=1_000_000)
    soc.crg = io.CRG(platform.request("sys_clk"))
    names["add_bitwright"](soc, tmp_path)
    soc.finalize()
    platform.get_verilog(soc, name="soc").write(str(tmp_path / "soc.v"))
    flags = ["--lint-only", "--quiet-stats", "-Wno-fatal", "-Wno-style", "-Wno-lint"]
    shown = subprocess.run(
        [str(verilator().require()), *flags, "-Wwarn-PINMISSING", "-Wwarn-WIDTH", "soc.v", "bitwright_wishbone.v"],
        cwd=tmp_path,
        env=verilator_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    (told,) = (line for line in shown.stderr.splitlines() if line.startswith("%Warning-PIN"))
    assert "wb_stall" in told  # which a classic master leaves open


def test_packets_load_and_run_a_network() -> None:
    spec = preset("tiny")
    rng = np.random.default_rng(0)
    program = random_program(rng, spec, [linear(3)], in_shape=(1, 2, 2), input_bits=2)
    names: dict[str, Any] = {"Region": Region, "Register": Register}
    exec(block("python", "load_packet"), names)
    images = random_images(rng, program, 1)
    words = names["run_packet"](program, images).tolist()
    control = spec.derived.host_address(Region.REGISTERS, Register.CONTROL)
    results = spec.derived.host_address(Region.RESULTS)
    assert words[-7:] == [control, 1, 1, 2 << 30, 0, 1 << 30 | results, 3]
    assert len(names["load_packet"](program)) > len(list(program.host_writes()))


def test_c_of_the_guide_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "bitwright_axi.h").write_text(c_header(preset("edge")))
    (tmp_path / "guide.c").write_text(block("c", "bw_run"))
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run([compiler, *flags, str(tmp_path / "guide.c")], check=True)


def test_files_and_commands_of_the_guide_are_those_written() -> None:
    for name in re.findall(r"ip/(bitwright_\w+)\.v", GUIDE):
        assert name in {bus_top("axi").module, bus_top("wishbone").module}
