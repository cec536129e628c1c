"""Numbers that the prose of a page quotes from measurements are those of the tables.

A quoted number passes if any row of its unit has it, so of numbers that no longer hold most are noticed, not all.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

TABLES = {
    "energy.md": ["performance.md"],
    "performance.md": ["performance.md", "area.md"],
    "results.md": ["results.md"],
}
"""Pages whose tables a page quotes."""

OTHERS = {
    "energy.md": {"0.2", "0.9 pJ"},  # an 8-bit multiply-accumulate, in publications
}
"""Numbers that a page quotes from elsewhere."""

UNIT = r"%|µJ|pJ|MHz|ns|LUT"
NUMBER = rf"(?<![\w.])(\d[\d,]*(?:\.\d+)?)(?![\w.]*\d)\s?({UNIT})?"


def prose(text: str) -> str:
    """Text of a page without what is generated, code and tables."""
    return re.sub(r"<!-- bench: begin -->.*<!-- bench: end -->|```.*?```|`[^`]*`|^\|.*?$", "", text, flags=re.S | re.M)


def rows(text: str) -> list[tuple[str, list[float]]]:
    """Each row of the tables of a page, below its heading, and the row's numbers."""
    found, heading = [], ""
    for line in text.splitlines():
        if not line.startswith("|"):
            heading = ""
        elif not heading:
            heading = line
        else:
            found.append((f"{heading} {line}", [float(each.replace(",", "")) for each, _ in re.findall(NUMBER, line)]))
    return found


def not_in_tables(page: str, tables: Sequence[str]) -> set[str]:
    """Numbers with a unit or a decimal point that no row of that unit has, rounded to the digits that are quoted."""
    known = [row for table in tables for row in rows(table)]
    missing = set()
    for number, unit in re.findall(NUMBER, prose(page)):
        value, half = float(number.replace(",", "")), 0.5 * 10.0 ** -len(number.partition(".")[2])
        measured = bool(unit) or "." in number
        places = [numbers for line, numbers in known if unit in line]
        if measured and not any(abs(each - value) <= half * (1 + 1e-9) for numbers in places for each in numbers):
            missing.add(f"{number} {unit}".strip())
    return missing


@pytest.mark.parametrize("name", TABLES)
def test_numbers_of_the_prose_are_in_the_tables(name: str) -> None:
    page, *tables = ((DOCS / each).read_text(encoding="utf-8") for each in [name, *TABLES[name]])
    assert not_in_tables(page, tables) <= OTHERS.get(name, set())


def test_a_number_that_no_table_has_is_noticed() -> None:
    table = "| what | value | unit |\n|---|--:|---|\n| clock of `edge` | 53.26 | MHz |\n| cells | 1,044 | LUT6 |\n"
    page = "Routed at 53.3 MHz, 53 MHz, `7.5`, with 4 planes and 1,044 LUTs, not 54 MHz, 53.2 MHz, 53 LUTs or 1.5."
    assert not_in_tables(page, [table]) == {"54 MHz", "53.2 MHz", "53 LUT", "1.5"}
