"""Energies per event, with technology, source and unit of each number: TOML files, read and checked."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from bitwright.hw.errors import BitwrightError

TABLES = Path(__file__).parents[1] / "tables"
SCHEMA = 1
MARKS = ("measured", "published", "assumed")

_UNITS: dict[str, dict[str, str]] = {
    "events": {
        "add_bit": "pJ",
        "and_bit": "pJ",
        "multiply_square": "pJ",
        "multiply_linear": "pJ",
        "register_bit": "pJ",
        "sram_square": "pJ",
        "sram_linear": "pJ",
        "sram_constant": "pJ",
        "sram_access_bits": "bit",
        "sram_minimum_bits": "bit",
        "dram_bit": "pJ",
        "gated_share": "1",
        "control_cycle": "pJ",
        "leakage_lane": "nW",
        "leakage_memory_bit": "nW",
        "clock": "MHz",
    },
    "moons": {
        "mac": "pJ",
        "mac_bits": "bit",
        "exponent": "1",
        "macs_parallel": "1",
        "macs_parallel_bits": "bit",
        "local_buffer": "1",
        "main_buffer": "1",
        "offchip": "1",
        "extra_operations": "1",
        "clock": "MHz",
    },
}
"""Constants of each model, with their units."""

_MAY_BE_NEGATIVE = {"sram_square", "sram_linear", "sram_constant"}
_MUST_BE_POSITIVE = {"clock", "mac_bits", "macs_parallel", "macs_parallel_bits", "sram_access_bits"}


@dataclass(frozen=True)
class Constant:
    """A number of a table.

    Attributes
    ----------
    mark
        ``measured``, ``published`` or ``assumed``.
    source
        Where the number comes from.
    """

    value: float
    unit: str
    mark: str
    source: str


@dataclass(frozen=True)
class EnergyTable:
    """Energies per event, with their provenance. :func:`load_table` reads one.

    Attributes
    ----------
    model
        ``events``: counters times energies of this machine; ``moons``: analytic, from the network's shape alone.
    constants
        By name; which ones there are follows from the model.
    """

    name: str
    version: str
    model: Literal["events", "moons"]
    label: str
    technology: str
    constants: Mapping[str, Constant]

    def __getitem__(self, name: str) -> float:
        return self.constants[name].value

    def add(self, bits: float) -> float:
        """Energy of an addition, in pJ."""
        return self["add_bit"] * bits

    def multiply(self, bits: float) -> float:
        """Energy of a bit-parallel multiplication, in pJ; of unequal operands, ``bits`` is their geometric mean."""
        return self["multiply_square"] * bits**2 + self["multiply_linear"] * bits

    def sram(self, memory_bits: int, access_bits: int) -> float:
        """Energy of one access of ``access_bits`` to a memory of ``memory_bits``, in pJ."""
        size = math.log2(max(memory_bits, self["sram_minimum_bits"]))
        accesses = math.ceil(access_bits / self["sram_access_bits"])
        return accesses * (self["sram_square"] * size**2 + self["sram_linear"] * size + self["sram_constant"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the whole table."""
        return dataclasses.asdict(self)


def table_names() -> list[str]:
    """Names of the tables that ship with the package."""
    return sorted(path.stem for path in TABLES.glob("*.toml"))


def load_table(name: str | Path) -> EnergyTable:
    """Read a table by its name, or from a TOML file.

    Raises
    ------
    BitwrightError
        If there is no such table, or it is not complete and correct.
    """
    path = TABLES / f"{name}.toml" if str(name) in table_names() else Path(name)
    if not path.is_file():
        near = get_close_matches(str(name), table_names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"give {', '.join(table_names())} or the path of a TOML file."
        raise BitwrightError(f"There is no energy table {str(name)!r}; {hint}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BitwrightError(f"Cannot read {path}: {error.strerror}; give the path of a TOML file.") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise BitwrightError(f"{path} is not TOML: {error}; correct that line.") from error
    return _checked_table(values, str(path))


def _checked_table(values: dict[str, Any], path: str) -> EnergyTable:
    texts = ("name", "version", "model", "label", "technology")
    _only_keys(values, ("schema", *texts, "sources", "constants"), path)
    if values["schema"] != SCHEMA:
        raise BitwrightError(f"{path} has schema {values['schema']!r}, expected {SCHEMA}; write it in that form.")
    for key in texts:
        if not isinstance(values[key], str) or not values[key]:
            raise BitwrightError(f"{path}: {key} is {values[key]!r}, expected a text in quotes; correct it.")
    if values["model"] not in _UNITS:
        raise BitwrightError(f"{path}: model is {values['model']!r}, expected {' or '.join(_UNITS)}; correct it.")
    for key in ("sources", "constants"):
        if not isinstance(values[key], dict):
            raise BitwrightError(f"{path}: {key} is {values[key]!r}, expected a table; correct it.")
    units = _UNITS[values["model"]]
    _only_keys(values["constants"], tuple(units), f"{path}, [constants]")
    constants = {
        name: _checked_constant(values["constants"][name], name, unit, values["sources"], path)
        for name, unit in units.items()
    }
    return EnergyTable(**{key: values[key] for key in texts}, constants=constants)


def _checked_constant(entry: Any, name: str, unit: str, sources: Mapping[str, Any], path: str) -> Constant:
    where = f"{path}: constant {name}"
    if not isinstance(entry, dict):
        raise BitwrightError(f"{where} is {entry!r}, expected {{ value = …, unit = …, mark = …, source = … }}.")
    _only_keys(entry, ("value", "unit", "mark", "source"), where)
    value = entry["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BitwrightError(f"{where} has value {value!r}, expected a finite number; correct it.")
    if (value < 0 and name not in _MAY_BE_NEGATIVE) or (value == 0 and name in _MUST_BE_POSITIVE):
        raise BitwrightError(f"{where} has value {value}, expected a positive number; correct it.")
    if entry["unit"] != unit:
        raise BitwrightError(f"{where} has unit {entry['unit']!r}, expected {unit!r}; convert the value.")
    if entry["mark"] not in MARKS:
        raise BitwrightError(f"{where} has mark {entry['mark']!r}, expected {', '.join(MARKS)}; choose one.")
    if not isinstance(sources.get(entry["source"]), str):
        raise BitwrightError(f"{where} has source {entry['source']!r}, which is not in [sources]; add it there.")
    return Constant(float(value), unit, entry["mark"], sources[entry["source"]])


def _only_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise BitwrightError(f"{where}: {key!r} is not a key; {hint}")
    for key in known:
        if key not in values:
            raise BitwrightError(f"{where}: {key!r} is missing; add it.")
