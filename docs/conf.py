"""Sphinx configuration. Tables of registers, descriptors and so on are generated from the code that they describe."""

import dataclasses
from importlib.metadata import version as installed_version

from bitwright.hw import isa
from bitwright.sim.energy import load_table, table_names

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
        (f"{register.value}", f"`{register.name.lower()}`", *isa.REGISTER_HELP[register]) for register in isa.Register
    ]
    return table(("address", "register", "access", "meaning"), rows)


def regions():
    """Regions of the host address space, for every preset."""
    rows = []
    for name, spec in isa.PRESETS.items():
        derived = spec.derived
        bases = [f"`{derived.host_address(region):#x}`" for region in isa.Region]
        rows.append((f"`{name}`", derived.bus_address_width, *bases))
    return table(("preset", "address bits", *(region.name.lower() for region in isa.Region)), rows)


def presets():
    """Array parameters of every preset."""
    names = [field.name for field in dataclasses.fields(isa.ArraySpec)]
    rows = [(f"`{name}`", *(getattr(spec, name) for spec in isa.PRESETS.values())) for name in names]
    return table(("parameter", *(f"`{name}`" for name in isa.PRESETS)), rows)


def descriptor():
    """Fields of a descriptor header."""
    rows = [
        (
            index // 2,
            "15..0" if index % 2 == 0 else "31..16",
            f"`{field.name}`",
            f"{field.low} to {field.high}",
            field.help,
        )
        for index, field in enumerate(isa.descriptor_fields(isa.preset("edge")))
    ]
    return table(("word", "bits", "field", "range (`edge`)", "meaning"), rows)


def errors():
    """Error codes."""
    meanings = {
        isa.ErrorCode.NONE: "no error",
        isa.ErrorCode.FIELD: "a descriptor field is out of range; bits 31..16 of the register tell which",
        isa.ErrorCode.WINDOW: "a window has more words than `window_words_max`",
        isa.ErrorCode.END: "the descriptors run past the end of their memory",
        isa.ErrorCode.BUSY: "the host wrote to a memory while the machine was running; the write was dropped",
    }
    return table(
        ("code", "name", "meaning"), [(code.value, f"`{code.name}`", meanings[code]) for code in isa.ErrorCode]
    )


def latencies():
    """Timing constants of the contract."""
    rows = [
        ("`READ_LATENCY`", isa.READ_LATENCY, "host bus: from a read request to its data"),
        ("`ISSUE_TO_LOAD`", isa.ISSUE_TO_LOAD, "from the issue of a row tile's last operation to the load of its sums"),
        ("`DRAIN_TO_WRITE`", isa.DRAIN_TO_WRITE, "from the last comparison of a pooled pixel to its first write"),
        ("`HEADER_WORDS`", isa.HEADER_WORDS, "words of a descriptor header, one fetched each cycle"),
    ]
    return table(("constant", "value", "meaning"), rows)


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
    "regions": regions,
    "presets": presets,
    "descriptor": descriptor,
    "errors": errors,
    "latencies": latencies,
    "energy-tables": energy_tables,
}


def fill(app, document, source):
    """Put each generated table where a page asks for it."""
    for name, generate in GENERATED.items():
        mark = f"<!-- generated: {name} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, generate())


def setup(app):
    app.connect("source-read", fill)
