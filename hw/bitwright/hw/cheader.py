"""The register map, the memory map and the commands of the stream as constants for C."""

from dataclasses import asdict

from bitwright.hw.isa import (
    BUS_WIDTH,
    IDENTIFIER,
    REGISTER_BITS,
    REGISTER_HELP,
    VERSION,
    ArraySpec,
    ErrorCode,
    Region,
)
from bitwright.hw.packets import ADDRESS_BITS, Opcode

PREFIX = "BITWRIGHT"
"""Beginning of every name of the header."""

_BYTES = BUS_WIDTH // 8
_INDICES = {
    Region.DESCRIPTORS: "word",
    Region.THRESHOLDS: "entry",
    Region.RESULTS: "result",
    Region.COEFFICIENTS: "entry",
}
"""What counts the words of a memory that a bus word holds."""


def c_constants(spec: ArraySpec) -> dict[str, dict[str, int]]:
    """Constants by section, without their prefix.

    Addresses are offsets in bytes from where the accelerator is mapped.
    """
    derived = spec.derived
    registers = {f"REG_{register.name}": int(register) * _BYTES for register in REGISTER_HELP}
    bits = {
        f"REG_{register.name}_{name.upper()}_{part}": value
        for register, fields in REGISTER_BITS.items()
        for name, (low, width) in fields.items()
        for part, value in (("SHIFT", low), ("MASK", ((1 << width) - 1) << low))
    }
    memories = {
        f"{region.name}_{part}": value
        for region, window in derived.windows.items()
        for part, value in (
            ("BASE", derived.host_address(region) * _BYTES),
            ("DEPTH", window.depth),
            ("BANKS", window.banks),
            ("CHUNKS", window.chunks),
            ("BANK_BYTES", _BYTES << window.bank_width),
        )
    }
    return {
        "The accelerator: compare the first three with the registers of these names": {
            "ID": IDENTIFIER,
            "VERSION": VERSION,
            "SPEC": spec.fingerprint,
            "ADDRESS_BITS": derived.bus_address_width + (_BYTES - 1).bit_length(),
        },
        "Registers": registers,
        "Fields of registers": bits,
        "Memories: BANKS banks of DEPTH words of CHUNKS bus words": memories,
        "Codes of the error register": {f"CODE_{code.name}": int(code) for code in ErrorCode},
        "Commands of the AXI4-Stream port: opcode and word address, then a count": {
            f"COMMAND_{opcode.name}": opcode << ADDRESS_BITS for opcode in Opcode
        },
        "Array parameters": {
            f"ARRAY_{name.upper()}": int(value) for name, value in asdict(spec).items() if not isinstance(value, str)
        },
    }


def c_header(spec: ArraySpec) -> str:
    """Header for C and C++, for drivers of accelerators of these parameters, whatever their bus."""
    lines = [
        "/* Registers and memories of a Bitwright accelerator, generated. Addresses are offsets in bytes. */",
        f"#ifndef {PREFIX}_H",
        f"#define {PREFIX}_H",
    ]
    for title, constants in c_constants(spec).items():
        lines += ["", f"/* {title}. */"]
        lines += [f"#define {PREFIX}_{name} {_literal(value)}" for name, value in constants.items()]
    lines += ["", "/* Address of a bus word of a memory. */", *_address_macros(spec), "", "#endif", ""]
    return "\n".join(lines)


def _literal(value: int) -> str:
    return f"0x{value:X}u"


def _address_macros(spec: ArraySpec) -> list[str]:
    macros: list[str] = []
    for region, window in spec.derived.windows.items():
        index = _INDICES.get(region, "word")
        name = f"{PREFIX}_{region.name}"
        arguments, terms = [index], [f"{name}_BASE"]
        if window.banks > 1:
            arguments.insert(0, "row")
            terms.append(f"(row) * {name}_BANK_BYTES")
        if region in (Region.WEIGHTS, Region.ACTIVATIONS):
            arguments.append("chunk")
            terms.append(f"(({index}) * {name}_CHUNKS + (chunk)) * {_BYTES}u")
        else:
            terms.append(f"({index}) * {_BYTES}u")
        macros.append(f"#define {name}_ADDRESS({', '.join(arguments)}) ({' + '.join(terms)})")
    return macros
