"""Synthesis, place and route with the Yosys and nextpnr of the ``synth`` extra: no vendor tool."""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs
from amaranth.hdl import Elaboratable

from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.popcount import Fabric
from bitwright.hw.rtlil import share_modules

Family = Literal["xilinx7", "ecp5", "ice40"]
Tool = Literal["yosys", "nextpnr-ecp5", "nextpnr-ice40", "icepack", "ecppack"]

_SYNTHESIS: Mapping[Family, str] = {
    "xilinx7": "synth_xilinx -family xc7 -noiopad -noclkbuf -flatten",
    # Without wide LUTs, which Yosys would use for too much, at twice the LUTs.
    "ecp5": "synth_ecp5 -nowidelut",
    "ice40": "synth_ice40",
}

_PACKAGES: Mapping[Tool, str] = {"icepack": "nextpnr-ice40", "ecppack": "nextpnr-ecp5"}
"""Tools that come in the package of another one."""

_COLLISIONS = "setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:TRANSPARENCY_MASK=1'0 %i r:CLK_ENABLE=1 %i"
"""No part of the machine uses a word that it reads in the cycle in which the word is written, but for the pooling's
carry, which forwards it: other block RAMs need no logic that settles what such a read gives."""


_RAMS_OF_A_REGISTER = 8
"""Most block RAMs that a register of an ECP5 drives."""


class TooLargeError(BitwrightError):
    """A design takes more than a part has."""


@dataclass(frozen=True)
class Part:
    """An FPGA that nextpnr knows.

    Attributes
    ----------
    name
        As people call it.
    family
        Its fabric.
    device
        Arguments of nextpnr that choose it and its package; none if nextpnr does not know it.
    memory_bits
        Of all block RAMs.
    synthesis
        Arguments of the Yosys command for the family, beside its usual ones.
    fabric
        Form of the PEs that is best after routing.
    resources
        What a part has that nextpnr does not know, by the names in :class:`Utilization`, from its data sheet.
    """

    name: str
    family: Family
    device: tuple[str, ...]
    memory_bits: int
    synthesis: tuple[str, ...] = ()
    fabric: Fabric = "portable"
    resources: Mapping[str, int] = field(default_factory=dict)


PARTS = {
    "hx8k": Part("iCE40 HX8K", "ice40", ("--hx8k", "--package", "ct256"), 32 << 12, fabric="ice40"),
    "up5k": Part(
        "iCE40 UP5K", "ice40", ("--up5k", "--package", "sg48"), 30 << 12, ("-device", "u", "-dsp", "-spram"), "ice40"
    ),
    # The ECP5 form of the PEs is smaller, but its many short carry chains are placed far apart. Speed grade 6 is the
    # slowest; an ECP5-5G has 8.
    "85k": Part("ECP5-85F", "ecp5", ("--85k", "--package", "CABGA381"), 208 * 18 << 10),
    "85k-8": Part("ECP5-85F-8", "ecp5", ("--85k", "--speed", "8", "--package", "CABGA381"), 208 * 18 << 10),
    "um5g-85k": Part("ECP5UM5G-85F", "ecp5", ("--um5g-85k", "--package", "CABGA554"), 208 * 18 << 10),
    # Xilinx DS180.
    "xc7a35t": Part(
        "Artix-7 35T",
        "xilinx7",
        (),
        100 * 18 << 10,
        fabric="xilinx7",
        resources={"luts": 20_800, "flip_flops": 41_600, "rams": 100, "dsps": 90},
    ),
}
"""Parts by nextpnr's name of the device, or their own."""

LUTS_OF_CELLS = {
    "LUT6_2": 1,
    "SRL16E": 1,
    "SRLC32E": 1,
    "RAM32X1S": 1,
    "RAM64X1S": 1,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "RAM32M": 4,
    "RAM64M": 4,
}
"""LUTs of cells that are more than a function."""

_LARGEST: Mapping[Family, str] = {"ecp5": "85k", "ice40": "hx8k"}
"""Parts for which a family's designs are packed to see what they take; packing does not mind what a part has."""

_RESOURCES = {
    "TRELLIS_COMB": "LUTs",
    "TRELLIS_FF": "flip-flops",
    "TRELLIS_RAMW": "LUT memory write ports",
    "DP16KD": "block RAMs",
    "MULT18X18D": "multipliers",
    "ICESTORM_LC": "logic cells",
    "ICESTORM_RAM": "block RAMs",
    "ICESTORM_SPRAM": "single-port RAMs",
    "ICESTORM_DSP": "multipliers",
    "luts": "LUTs",
    "flip_flops": "flip-flops",
    "rams": "block RAMs",
    "dsps": "multipliers",
}
"""What may be too little, by nextpnr's names and those in :class:`Utilization`."""


@dataclass(frozen=True)
class Netlist:
    """A synthesized design.

    Attributes
    ----------
    path
        Yosys's JSON, in a folder that also takes what place and route find out.
    family
        Fabric.
    cells
        Number of cells of each type.
    """

    path: Path
    family: Family
    cells: Mapping[str, int]

    @property
    def module(self) -> dict[str, Any]:
        """The design, as Yosys writes it."""
        return json.loads(self.path.read_text())["modules"]["top"]


@dataclass(frozen=True)
class Utilization:
    """What a design takes.

    Attributes
    ----------
    luts
        ``xilinx7``: six-input LUTs. Those that carry chains need and those placed by name stand alone, small ones of
        the others may share a LUT, by the rule of Yosys's own estimate. ``ecp5``: four-input LUTs, with those that
        carry chains and LUT memories take, and two constants. ``ice40``: logic cells, with constants; a cell has a
        four-input LUT, a carry and a flip-flop, and counts if it needs any.
    flip_flops
        Flip-flops.
    carries
        ``xilinx7``: CARRY4, of four bits; ``ecp5``: CCU2C, of two bits; ``ice40``: SB_CARRY, of one bit.
    rams
        Block RAMs: of 18 kbit in ``xilinx7`` and ``ecp5``, of 4 kbit in ``ice40``.
    dsps
        Multipliers that are no LUTs.
    """

    luts: int
    flip_flops: int
    carries: int
    rams: int
    dsps: int


@dataclass(frozen=True)
class Placement:
    """A design in its place.

    Attributes
    ----------
    frequency
        Highest clock frequency, MHz.
    logic, routing
        Delays on the slowest path between registers, ns.
    path
        Names of the nets along that path.
    used, available
        Resources by nextpnr's names.
    """

    frequency: float
    logic: float
    routing: float
    path: tuple[str, ...]
    used: Mapping[str, int]
    available: Mapping[str, int]


def design_text(component: Elaboratable) -> str:
    """RTLIL of a component, in a module ``top`` and one for all equal parts."""
    return share_modules(rtlil.convert(component, name="top", emit_src=False))


def synthesize(design: str, family: Family, cache: Path, arguments: Sequence[str] = ()) -> Netlist:
    """Synthesize a design.

    Parameters
    ----------
    design
        RTLIL with a module ``top``.
    family
        Fabric.
    cache
        Folder that keeps results, so that nothing is synthesized twice.
    arguments
        Of the Yosys command for the family, such as ``-nodsp``.

    Raises
    ------
    BitwrightError
        If the tool is missing or fails.
    """
    command = " ".join([_SYNTHESIS[family], *arguments, "-top top"])
    if family == "ecp5":
        # By itself Yosys maps with ABC9 here, whose &mfs takes sums' bits for constants that are none, in some runs and
        # not in others: https://github.com/YosysHQ/yosys/issues/5777 is alike.
        command = f"{command} -run :map_luts; abc -dress -lut 4; clean; {command} -run map_cells:"
    folder = cache / _key(version("yosys"), _COLLISIONS, command, f"{_RAMS_OF_A_REGISTER}", design)
    if not folder.is_dir():
        with replacing(folder) as temporary:
            temporary.mkdir()
            (temporary / "design.il").write_text(design)
            # Yosys loses track of bits if a field of a signal is named like a bit of it.
            rename = r"rename -hide w:*\[*"
            script = f"read_rtlil design.il; {rename}; {_COLLISIONS}; {command}; write_json netlist.json"
            run("yosys", ["-q", "-p", script], temporary)
            netlist = json.loads((temporary / "netlist.json").read_text())
            module = netlist["modules"]["top"]
            if family == "ecp5":
                _open_carries(module)
                _copy_registers(module)
                (temporary / "netlist.json").write_text(json.dumps(netlist))
            cells = Counter(cell["type"] for cell in module["cells"].values())
            (temporary / "cells.json").write_text(json.dumps(cells))
    return Netlist(folder / "netlist.json", family, json.loads((folder / "cells.json").read_text()))


def utilization(netlist: Netlist) -> Utilization:
    """What a synthesized design takes; for ``ecp5`` and ``ice40`` as nextpnr packs it."""
    cells = netlist.cells

    def total(pattern: str) -> int:
        return sum(number for name, number in cells.items() if re.fullmatch(pattern, name))

    if netlist.family == "xilinx7":
        return Utilization(
            luts=_luts_xilinx7(netlist),
            flip_flops=total("FD[RSCP]E(_1)?"),
            carries=total("CARRY4"),
            rams=total("RAMB18E1") + 2 * total("RAMB36E1"),
            dsps=total("DSP48E1"),
        )
    used = _report(netlist, PARTS[_LARGEST[netlist.family]], ("--pack-only",))["utilization"]
    if netlist.family == "ecp5":
        return Utilization(
            luts=used["TRELLIS_COMB"]["used"] + 2 * used["TRELLIS_RAMW"]["used"],
            flip_flops=used["TRELLIS_FF"]["used"],
            carries=total("CCU2C"),
            rams=used["DP16KD"]["used"],
            dsps=used["MULT18X18D"]["used"],
        )
    return Utilization(
        luts=used["ICESTORM_LC"]["used"],
        flip_flops=total("SB_DFF.*"),
        carries=total("SB_CARRY"),
        rams=used["ICESTORM_RAM"]["used"],
        dsps=total("SB_MAC16"),
    )


def place_and_route(netlist: Netlist, part: Part, frequency: float, constraints: str = "") -> Placement:
    """Place and route a synthesized design.

    Parameters
    ----------
    netlist
        Of the part's family.
    part
        FPGA.
    frequency
        Clock frequency that nextpnr compares its result with, MHz. A lower one is no error.
    constraints
        Pins and clocks, as nextpnr reads them; pins without one are put anywhere. With constraints there is also a
        configuration, of which :func:`bitstream` is made.

    Raises
    ------
    BitwrightError
        If the design is too large for the part; if a tool is missing or fails.
    """
    check_size(netlist, part, constraints)
    arguments = ["--freq", f"{frequency:g}", "--timing-allow-fail", *_constraints(netlist, constraints)]
    if part.family == "ice40":
        # In a part that is nearly full the router does not come to an end from every placement; from this one it does.
        arguments += ["--seed", "1"]
    if part.family == "ecp5":
        # Of nextpnr's two routers the second one takes minutes for a large design, the first one an hour.
        arguments += ["--router", "router2"]
        # Its usual placer packs a large design densely: wires stay claimed twice for longer than this one takes in all.
        arguments += ["--placer", "static"]
    if constraints:
        output = "--asc" if part.family == "ice40" else "--textcfg"
        arguments += [output, _configuration(netlist, frequency, constraints)]
    report = _report(netlist, part, arguments)
    clocks = report["fmax"]
    slowest = min(clocks, key=lambda clock: clocks[clock]["achieved"])
    paths = [path["path"] for path in report["critical_paths"] if path["from"] == path["to"] == f"posedge {slowest}"]
    path = max(paths, key=lambda path: sum(step["delay"] for step in path))
    routing = sum(step["delay"] for step in path if step["type"] == "routing")
    return Placement(
        frequency=clocks[slowest]["achieved"],
        logic=sum(step["delay"] for step in path) - routing,
        routing=routing,
        path=tuple(step["net"] for step in path if step["type"] == "routing"),
        used={name: resource["used"] for name, resource in report["utilization"].items()},
        available={name: resource["available"] for name, resource in report["utilization"].items()},
    )


def bitstream(netlist: Netlist, part: Part, frequency: float, constraints: str) -> bytes:
    """What the part is configured with: of a design that was placed and routed with the same constraints.

    Raises
    ------
    BitwrightError
        If a tool is missing or fails.
    """
    folder = netlist.path.parent
    routed = _configuration(netlist, frequency, constraints)
    with replacing(folder / "bitstream") as packed:
        paths = [routed, str(packed.relative_to(folder))]
        if part.family == "ice40":
            run("icepack", paths, folder)
        else:
            run("ecppack", ["--compress", *paths], folder)
        return packed.read_bytes()


def _configuration(netlist: Netlist, frequency: float, constraints: str) -> str:
    return f"routed-{_key(f'{frequency:g}', constraints)}.txt"


def _constraints(netlist: Netlist, constraints: str) -> list[str]:
    """Arguments of nextpnr for constraints, which are written for it."""
    if not constraints:
        return []
    given = f"constraints-{_key(constraints)}.txt"
    with replacing(netlist.path.parent / given) as temporary:
        temporary.write_text(constraints)
    return ["--pcf" if netlist.family == "ice40" else "--lpf", given]


def check_size(netlist: Netlist, part: Part, constraints: str = "") -> dict[str, tuple[int, int]]:
    """Resources that a design takes, and those that the part has, by nextpnr's names, or those in `Utilization`.

    Raises
    ------
    TooLargeError
        If the design is too large for the part.
    BitwrightError
        If a tool is missing or fails.
    """
    if part.device:
        packed = _report(netlist, part, ("--pack-only", *_constraints(netlist, constraints)))["utilization"]
        sizes = {name: (resource["used"], resource["available"]) for name, resource in packed.items()}
    else:
        taken = utilization(netlist)
        sizes = {name: (getattr(taken, name), has) for name, has in part.resources.items()}
    excess = {name: size for name, size in sizes.items() if name in _RESOURCES and size[0] > size[1]}
    if excess:
        # The scarcest resource says most.
        name = max(excess, key=lambda name: excess[name][0] / (excess[name][1] or 1))
        used, available = excess[name]
        raise TooLargeError(
            f"The design needs {used} {_RESOURCES[name]}, but {part.name} has {available}: "
            f"{used - available} too many; choose a smaller array or a larger part."
        )
    return sizes


def version(tool: Tool) -> str:
    """Version of a tool's package.

    Raises
    ------
    BitwrightError
        If it is not installed.
    """
    package = f"yowasp-{_PACKAGES.get(tool, tool)}"
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise BitwrightError(
            f"Package {package} is not installed, which synthesis needs; "
            "install it with pip install 'bitwright[synth]'."
        ) from None


def run(tool: Tool, arguments: Sequence[str], folder: Path) -> str:
    """Run a tool in a folder; returns what it says.

    Raises
    ------
    BitwrightError
        If it is not installed, or fails, with its last words.
    """
    version(tool)
    module = f"yowasp_{_PACKAGES.get(tool, tool).replace('-', '_')}"
    call = f"import sys, {module}; sys.exit({module}.run_{tool.replace('-', '_')}(sys.argv[1:]))"
    command = [sys.executable, "-c", call, *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    said = ended.stdout + ended.stderr
    if ended.returncode:
        errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines()[-1:]
        raise BitwrightError(f"{tool} failed in {folder}: {' '.join(errors) or f'exit code {ended.returncode}'}")
    return said


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _report(netlist: Netlist, part: Part, arguments: Sequence[str]) -> dict[str, Any]:
    """Nextpnr's report, kept beside the netlist."""
    tool: Tool = "nextpnr-ecp5" if part.family == "ecp5" else "nextpnr-ice40"
    folder = netlist.path.parent
    path = folder / f"report-{_key(version(tool), *part.device, *arguments)}.json"
    if not path.is_file():
        unconstrained = "--lpf-allow-unconstrained" if part.family == "ecp5" else "--pcf-allow-unconstrained"
        with replacing(path) as temporary:
            # The tool sees the folder that it runs in.
            inputs = ["--json", netlist.path.name, "--report", str(temporary.relative_to(folder))]
            run(tool, [*part.device, *inputs, unconstrained, *arguments], folder)
    return json.loads(path.read_text())


def _luts_xilinx7(netlist: Netlist) -> int:
    cells = netlist.module["cells"].values()
    propagate = {bit for cell in cells if cell["type"] == "CARRY4" for bit in cell["connections"]["S"]}
    sizes, total = Counter[int](), 0
    for cell in cells:
        kind = cell["type"]
        if kind in LUTS_OF_CELLS:
            total += LUTS_OF_CELLS[kind]
        elif size := 1 if kind == "INV" else int(match[1]) if (match := re.fullmatch("LUT([1-6])", kind)) else 0:
            alone = cell["connections"]["O"][0] in propagate
            total += alone
            sizes[size] += not alone
    total += sizes[6]
    for size, partners in ((5, (1,)), (4, (1, 2)), (3, (1, 2, 3)), (2, (2, 1)), (1, (1,))):
        for partner in partners:
            pairs = sizes[size] // 2 if partner == size else min(sizes[size], sizes[partner])
            total += pairs
            sizes[size] -= pairs
            sizes[partner] -= pairs
        total += sizes[size]
    return total


def _open_carries(module: dict[str, Any]) -> None:
    """Leave the ends of ECP5 carry chains open where they do not matter.

    nextpnr spends a CCU2C for a carry that comes from a constant, and one for a carry that goes anywhere, even if
    nothing is there.
    """
    used: Counter[Any] = Counter()
    for cell in module["cells"].values():
        for pin, bits in cell["connections"].items():
            if cell["port_directions"].get(pin) == "input":
                used.update(bits)
    for port in module["ports"].values():
        used.update(port["bits"])
    for cell in module["cells"].values():
        if cell["type"] != "CCU2C":
            continue
        pins = cell["connections"]
        for pin, direction in (("CIN", "input"), ("COUT", "output")):  # ends without a pin are open, too
            pins.setdefault(pin, ["x"])
            cell["port_directions"].setdefault(pin, direction)
        if not used[pins["COUT"][0]]:
            pins["COUT"] = ["x"]
        if pins["CIN"][0] in ("0", "1", "x") and not used[pins["S0"][0]] and not _lets_carry_through(cell):
            pins["CIN"] = ["x"]


def _copy_registers(module: dict[str, Any]) -> None:
    """Give every few block RAMs of an ECP5 a register of their own.

    Block RAMs are all over the part. nextpnr routes one net to all those of the weights over detours that take longer
    than any logic; copies of the register, which Yosys would merge again, are placed near the RAMs that they drive.
    """
    registers: dict[Any, str] = {}
    driven: dict[Any, list[tuple[str, str]]] = {}
    for name, cell in module["cells"].items():
        if cell["type"] == "TRELLIS_FF":
            registers[cell["connections"]["Q"][0]] = name
        elif cell["type"] == "DP16KD":
            for pin, bits in cell["connections"].items():
                if cell["port_directions"][pin] == "input":
                    driven.setdefault(bits[0], []).append((name, pin))
    unused = 1 + max(bit for net in module["netnames"].values() for bit in net["bits"] if isinstance(bit, int))
    for bit, pins in driven.items():
        if bit not in registers:
            continue
        pins.sort()  # RAMs of one memory have names alike
        for number, start in enumerate(range(_RAMS_OF_A_REGISTER, len(pins), _RAMS_OF_A_REGISTER), 1):
            name = f"{registers[bit]}_copy_{number}"
            copy = module["cells"][registers[bit]]
            module["cells"][name] = copy | {"connections": copy["connections"] | {"Q": [unused]}}
            module["netnames"][name] = {"hide_name": 0, "bits": [unused], "attributes": {}}
            for ram, pin in pins[start : start + _RAMS_OF_A_REGISTER]:
                module["cells"][ram]["connections"][pin] = [unused]
            unused += 1


def _lets_carry_through(cell: Mapping[str, Any]) -> bool:
    """Whether any input of the first half of a CCU2C lets the carry through."""
    table = int(cell["parameters"]["INIT0"], 2)
    fixed = {place: cell["connections"][f"{pin}0"][0] for place, pin in enumerate("ABCD")}
    return any(
        table >> entry & 1
        for entry in range(16)
        if all(value not in ("0", "1") or int(value) == entry >> place & 1 for place, value in fixed.items())
    )
