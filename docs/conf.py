"""Sphinx configuration. Tables of registers, descriptors and so on are generated from the code that they describe."""

import dataclasses
import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

from bitwright.hw import framing, isa, packets, verilog
from bitwright.hw.boards import BOARDS
from bitwright.hw.descriptor import PASS
from bitwright.hw.synthesis import PARTS
from bitwright.sim import timeline
from bitwright.sim.energy import load_table, table_names
from bitwright.sim.trace import EVENTS_MAX

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
import figures

project = "Bitwright"
author = "the Bitwright authors"
copyright = "2026, the Bitwright authors"
release = version = installed_version("bitwright")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"Bitwright {release}"
html_theme_options = {"source_directory": "docs/"}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False


def table(heads, rows):
    """Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def registers():
    """Host registers."""
    rows = [
        (register.value, f"`{4 * register.value:#04x}`", f"`{register.name.lower()}`", *isa.REGISTER_HELP[register])
        for register in isa.Register
    ]
    return table(("address", "offset in bytes", "register", "access", "meaning"), rows)


def register_bits():
    """Fields of registers that have several."""
    rows = [
        (f"`{register.name.lower()}`", f"`{name}`", f"{low + width - 1}..{low}" if width > 1 else low)
        for register, fields in isa.REGISTER_BITS.items()
        for name, (low, width) in fields.items()
    ]
    return table(("register", "field", "bits"), rows)


def ports(bus):
    """Ports of the accelerator with a bus, for the largest preset."""
    described = verilog.describe(dataclasses.replace(isa.preset("large"), weight_stream=True), bus)
    rows = [(f"`{port['name']}`", port["direction"], port["bits"], port["meaning"]) for port in described["ports"]]
    return table(("port", "direction", "bits (`large`)", "meaning"), rows)


def commands():
    """Commands of the AXI4-Stream port."""
    meanings = documented(packets, "Opcode")
    rows = [(opcode.value, f"`{opcode.name}`", meanings[opcode.name]) for opcode in packets.Opcode]
    return table(("opcode", "command", "meaning"), rows)


def regions():
    """First address of each region of the host address space, for every preset."""
    derived = {name: spec.derived for name, spec in isa.PRESETS.items()}
    rows = [
        (region.name.lower(), *(f"`{each.host_address(region):#x}`" for each in derived.values()))
        for region in isa.Region
    ]
    rows.append(("*address bits*", *(each.bus_address_width for each in derived.values())))
    return table(("region", *(f"`{name}`" for name in derived)), rows)


def presets():
    """Array parameters of every preset."""
    names = [field.name for field in dataclasses.fields(isa.ArraySpec)]
    rows = [(f"`{name}`", *(getattr(spec, name) for spec in isa.PRESETS.values())) for name in names]
    return table(("parameter", *(f"`{name}`" for name in isa.PRESETS)), rows)


def descriptor():
    """Fields of a descriptor header."""
    rows = []
    for field in isa.descriptor_fields(isa.preset("edge")):
        word, bit = isa.FIELD_PLACES[field.name]
        bits = f"{bit + field.bits - 1}..{bit}"
        high = f"{field.high:#x}" if field.bits == 32 else field.high
        rows.append((word, bits, f"`{field.name}`", f"{field.low} to {high}", field.help))
    return table(("word", "bits", "field", "range (`edge`)", "meaning"), rows)


def parameters(documented):
    """What the docstring of a class says of each of its parameters."""
    section = documented.__doc__.split("Parameters\n    ----------\n")[1]
    entries = re.findall(r"^    (\w[\w, ]*)\n((?:        .*\n|\n)+)", section, re.M)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def passes():
    """Fields of a pass word."""
    meanings = parameters(isa.Pass)
    rows = [
        (f"{field.offset + field.width - 1}..{field.offset}", f"`{name}`", meanings[name])
        for name, field in sorted(PASS, key=lambda entry: entry[1].offset)
    ]
    return table(("bits", "field", "meaning"), rows)


def documented(module, scope=""):
    """What the source of a module says of the names of a class in it, or of its own."""
    found = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
    return {name: " ".join(" ".join(lines).split()) for (owner, name), lines in found.items() if owner == scope}


def account():
    """What cycles are spent on."""
    entries = re.findall(r"``(\w+)``: (.*?)\.(?= |$)", documented(timeline)["ACCOUNT"])
    assert tuple(name for name, _ in entries) == timeline.ACCOUNT
    return table(("spent on", "cycles"), [(f"`{name}`", meaning) for name, meaning in entries])


def errors():
    """Error codes."""
    meanings = documented(isa.registers, "ErrorCode")
    rows = [(code.value, f"`{code.name}`", meanings.get(code.name, "No error.")) for code in isa.ErrorCode]
    return table(("code", "name", "meaning"), rows).replace("``", "`")


def latencies():
    """Timing constants of the contract."""
    meanings = {name: text for name, text in documented(isa.descriptors).items() if name == "HEADER_TO_READY"}
    meanings |= documented(isa.timing)
    rows = [(f"`{name}`", getattr(isa, name), text) for name, text in meanings.items() if hasattr(isa, name)]
    return table(("constant", "value", "cycles"), rows)


def link():
    """Headers, commands and replies of the serial link."""
    parts = []
    for title, fields in (("request", framing.REQUEST_FIELDS), ("answer", framing.ANSWER_FIELDS)):
        ends = [sum(bits for _, bits, _ in fields[: index + 1]) // 8 for index in range(len(fields))]
        rows = [
            (f"{end - bits // 8}" if bits == 8 else f"{end - bits // 8}..{end - 1}", f"`{name}`", meaning)
            for end, (name, bits, meaning) in zip(ends, fields, strict=True)
        ]
        parts.append(table(("byte", title, "meaning"), rows))
    for enum in (framing.Command, framing.Reply):
        meanings = documented(framing, enum.__name__)
        rows = [(each.value, f"`{each.name.lower()}`", meanings[each.name]) for each in enum]
        parts.append(table(("code", enum.__name__.lower(), "meaning"), rows))
    return "\n".join(parts)


def boards():
    """What Bitwright builds for by name."""
    rows = []
    for name, board in BOARDS.items():
        spec, part = board.array, PARTS[board.part]
        array = f"{spec.rows} × {spec.columns} × {spec.lanes}"
        tools = "Yosys, nextpnr" if board.open else "the vendor's"
        rows.append((f"`{name}`", board.title, part.name, array, board.oscillator_mhz, board.clock_mhz, tools))
    heads = ("`--board`", "board", "FPGA", "its array", "oscillator, MHz", "clock, MHz", "tools")
    return table(heads, rows)


def energy_tables():
    """Every constant of every energy table."""
    parts = []
    for name in table_names():
        energies = load_table(name)
        rows = [
            (f"`{constant}`", f"{entry.value:g}", entry.unit, entry.mark, entry.source)
            for constant, entry in energies.constants.items()
        ]
        parts.append(f"### `{name}`, version {energies.version}\n\n{energies.label}. {energies.technology}.\n")
        parts.append(table(("constant", "value", "unit", "mark", "source"), rows))
    return "\n".join(parts)


GENERATED = {
    "registers": registers,
    "register-bits": register_bits,
    "ports-axi": lambda: ports("axi"),
    "ports-wishbone": lambda: ports("wishbone"),
    "commands": commands,
    "regions": regions,
    "presets": presets,
    "descriptor": descriptor,
    "errors": errors,
    "latencies": latencies,
    "link": link,
    "boards": boards,
    "energy-tables": energy_tables,
    "pass": passes,
    "account": account,
    "header-words": lambda: str(isa.HEADER_WORDS),
    "events-max": lambda: f"{EVENTS_MAX:,}",
    "figure-array": lambda: figures.array("demo"),
    "figure-timing": figures.timing,
    "figure-excerpt": figures.excerpt_figure,
    "figure-timeline": figures.timeline,
}


def fill(app, document, source):
    """Put each generated table or picture where a page asks for it."""
    for name, generate in GENERATED.items():
        mark = f"<!-- generated: {name} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, generate())


def setup(app):
    app.connect("source-read", fill)
