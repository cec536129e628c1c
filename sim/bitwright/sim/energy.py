"""Energy by events: ``energy = Σ events × energy per event + leakage × time``.

Events are the counters of an execution, which the hardware counts too, times constants of the array and of the layer's
descriptor. Energies per event come from a table: a TOML file that states technology, source and unit of each number and
marks it measured, published or assumed. ``horowitz45`` and ``moons`` ship in ``tables/``; a user's own works alike.

The result is that of a chip in the table's technology, not of an FPGA, for which no open power model exists.
"""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import BUS_WIDTH, ArraySpec, Descriptor
from bitwright.hw.plan import Plan
from bitwright.hw.program import LayerInfo, Program
from bitwright.sim.execution import Execution
from bitwright.sim.timeline import layer_timing

TABLES = Path(__file__).parent / "tables"
SCHEMA = 1
MARKS = ("measured", "published", "assumed")

HOST = "(host)"
"""Layer name under which images and results are booked."""

BETWEEN = "(between layers)"
"""Layer name under which cycles outside of every layer are booked: reading descriptors."""


# ---------------------------------------------------------------------------------------------------------------------
# Tables

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


# ---------------------------------------------------------------------------------------------------------------------
# Activity: what an execution did


@dataclass(frozen=True, kw_only=True)
class LayerActivity:
    """What one layer did, summed over all runs.

    Attributes
    ----------
    counters
        Keys of :data:`bitwright.hw.isa.COUNTERS`.
    runs
        How often the layer was executed: once for each batch.
    """

    info: LayerInfo
    descriptor: Descriptor
    counters: Mapping[str, int]
    runs: int


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What the whole machine did.

    Attributes
    ----------
    images
        Images classified; the last run may have had room for more.
    cycles
        Of all runs.
    image_words
        Words that the host writes for all images; a last run with fewer images is filled up.
    image_bits
        Bits of one image outside of the chip: codes of its pixels, before any packing.
    results
        Accumulators that the host reads for one image.
    load_bits
        Bits of descriptors, weights and thresholds, loaded once.
    """

    spec: ArraySpec
    layers: tuple[LayerActivity, ...]
    images: int
    cycles: int
    image_words: int
    image_bits: int
    results: int
    load_bits: int


def activity(program: Program, executions: Execution | Sequence[Execution]) -> Activity:
    """Sum the counters of the runs of a Program."""
    runs = [executions] if isinstance(executions, Execution) else list(executions)
    if not runs:
        raise BitwrightError("There is no execution to account for; simulate at least one image.")
    if any(len(run.layers) != len(program.layers) for run in runs):
        raise BitwrightError("The executions are not of this Program: their numbers of layers differ.")
    layers = []
    for index, (info, descriptor) in enumerate(zip(program.layers, program.parsed, strict=True)):
        parts = [run.layers[index] for run in runs]
        counters = {key: sum(part.counters[key] for part in parts) for key in parts[0].counters}
        counters["cycles"] = sum(part.end - part.start for part in parts)
        layers.append(LayerActivity(info=info, descriptor=descriptor, counters=counters, runs=len(runs)))
    load_bits = (
        program.descriptors.size * BUS_WIDTH
        + program.weights.size * 8
        + program.thresholds.size * program.spec.derived.threshold_entry_width
    )
    images = sum(len(run.accumulators) for run in runs)
    return _activity(program, layers, images, len(runs), sum(run.cycles for run in runs), load_bits)


def plan_activity(plan: Plan) -> Activity:
    """Predict one full run of a network of which only shapes and bits are known: no word is taken to be zero."""
    spec = plan.spec
    layers, start = [], np.zeros(1, np.int64)
    for info, descriptor in zip(plan.layers, plan.descriptors, strict=True):
        timing = layer_timing(descriptor, spec, start)
        counters = {name: int(value[0]) for name, value in timing.counters.items()}
        counters["cycles"] = int((timing.end - start)[0]) + 1
        layers.append(LayerActivity(info=info, descriptor=descriptor, counters=counters, runs=1))
        start = timing.end + 1
    load_bits = (
        sum(descriptor.words for descriptor in plan.descriptors) * BUS_WIDTH
        + plan.weight_words * spec.rows * spec.lanes
        + plan.threshold_entries * spec.rows * spec.derived.threshold_entry_width
    )
    return _activity(plan, layers, plan.batch, 1, int(start[0]), load_bits)


def _activity(
    network: Program | Plan, layers: Sequence[LayerActivity], images: int, runs: int, cycles: int, load_bits: int
) -> Activity:
    image, spec = network.input, network.spec
    height, width, channels = image.stored_shape
    words = network.batch * height * width * math.ceil(channels / spec.lanes) * image.bits
    return Activity(
        spec=spec,
        layers=tuple(layers),
        images=images,
        cycles=cycles,
        image_words=words * runs,
        image_bits=image.channels * image.height * image.width * image.bits,
        results=layers[-1].descriptor.channels,
        load_bits=load_bits,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Report


@dataclass(frozen=True)
class EnergyEntry:
    """So many events of one kind in one layer, at so many pJ each."""

    layer: str
    component: str
    event: str
    count: float
    each_pj: float
    kind: Literal["dynamic", "leakage"] = "dynamic"

    @property
    def pj(self) -> float:
        """Energy, in pJ."""
        return self.count * self.each_pj


@dataclass(frozen=True)
class EnergyReport:
    """Energy of an activity, by layer, component and event.

    Attributes
    ----------
    entries
        All energies of running the images. Loading the Program, once, is not among them.
    load_uj
        Energy of loading descriptors, weights and thresholds from outside, once, in µJ; 0 where not modelled.
    parallel_mac_uj
        For scale: arithmetic energy of the same multiply-accumulates on 8-bit bit-parallel multipliers, in µJ an image;
        None where the table has no multiplier.
    """

    table: EnergyTable
    activity: Activity
    entries: tuple[EnergyEntry, ...]
    load_uj: float
    parallel_mac_uj: float | None

    @cached_property
    def total_pj(self) -> float:
        """Energy of all images, in pJ."""
        return math.fsum(entry.pj for entry in self.entries)

    @property
    def uj_per_image(self) -> float:
        """Energy of one image, in µJ."""
        return self.total_pj / self.activity.images * 1e-6

    @property
    def seconds_per_image(self) -> float:
        """Time of one image at the table's clock."""
        return self.activity.cycles / self.activity.images / (self.table["clock"] * 1e6)

    @property
    def energy_delay(self) -> float:
        """Energy-delay product of one image, in J·s."""
        return self.uj_per_image * 1e-6 * self.seconds_per_image

    def by(self, *keys: str) -> dict[tuple[str, ...], float]:
        """Energy of one image in µJ, summed by fields of :class:`EnergyEntry` such as ``layer`` or ``component``."""
        sums: dict[tuple[str, ...], float] = {}
        for entry in self.entries:
            key = tuple(getattr(entry, name) for name in keys)
            sums[key] = sums.get(key, 0.0) + entry.pj / self.activity.images * 1e-6
        return sums

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: totals, every entry, and all inputs."""
        work = self.activity
        return {
            "total": {
                "uj_per_image": self.uj_per_image,
                "seconds_per_image": self.seconds_per_image,
                "energy_delay_js": self.energy_delay,
                "load_uj": self.load_uj,
                "parallel_mac_uj_per_image": self.parallel_mac_uj,
            },
            "uj_per_image": {
                "layer": {layer: value for (layer,), value in self.by("layer").items()},
                "component": {component: value for (component,), value in self.by("component").items()},
                "kind": {kind: value for (kind,), value in self.by("kind").items()},
            },
            "entries": [dataclasses.asdict(entry) | {"pj": entry.pj} for entry in self.entries],
            "inputs": {
                "table": self.table.to_dict(),
                "array": dataclasses.asdict(work.spec),
                "images": work.images,
                "cycles": work.cycles,
                "layers": [
                    dataclasses.asdict(layer.info)
                    | {"macs": layer.info.macs, "counters": dict(layer.counters), "runs": layer.runs}
                    for layer in work.layers
                ],
            },
        }


def estimate(
    program: Program, executions: Execution | Sequence[Execution], table: EnergyTable | str = "horowitz45"
) -> EnergyReport:
    """Energy of executions of a Program, by golden model or by RTL: both count the same events."""
    return estimate_activity(activity(program, executions), table)


def estimate_plan(plan: Plan, table: EnergyTable | str = "horowitz45") -> EnergyReport:
    """Energy of a bit assignment before there are weights: an upper bound with zero skip, exact without."""
    return estimate_activity(plan_activity(plan), table)


def estimate_activity(work: Activity, table: EnergyTable | str = "horowitz45") -> EnergyReport:
    """Energy of an activity."""
    table = load_table(table) if isinstance(table, str) else table
    if table.model == "moons":
        entries = [
            entry for index, layer in enumerate(work.layers) for entry in _moons_layer(work, index, layer, table)
        ]
        return EnergyReport(table, work, tuple(entries), 0.0, None)
    entries = [entry for layer in work.layers for entry in _layer_entries(work.spec, layer, table)]
    entries += _machine_entries(work, table)
    macs = sum(layer.info.macs for layer in work.layers)
    return EnergyReport(
        table,
        work,
        tuple(entry for entry in entries if entry.pj),
        load_uj=work.load_bits * table["dram_bit"] * 1e-6,
        parallel_mac_uj=macs * (table.multiply(8) + table.add(work.spec.accumulator_width)) * 1e-6,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Events of this machine


def popcount_adder_bits(lanes: int) -> int:
    """Bits of all adders of a balanced tree that counts the ones of a word."""
    operands, width, total = lanes, 1, 0
    while operands > 1:
        total += operands // 2 * width
        operands, width = operands - operands // 2, width + 1
    return total


def _layer_entries(spec: ArraySpec, layer: LayerActivity, table: EnergyTable) -> Iterable[EnergyEntry]:
    """Events of one layer. A computed word is one that one column's PEs count, in all rows at once."""
    name = layer.info.name
    derived = spec.derived
    count = layer.counters
    accumulator, lanes, rows, columns = spec.accumulator_width, spec.lanes, spec.rows, spec.columns
    popcount = table.add(popcount_adder_bits(lanes))
    register = table["register_bit"]
    activation_bits = spec.activation_depth * lanes

    def entry(component: str, event: str, number: float, each_pj: float) -> EnergyEntry:
        return EnergyEntry(name, component, event, number, each_pj)

    computed, busy = count["computed"], count["busy"]
    operations = computed * rows
    yield entry("PE array", "AND", operations, table["and_bit"] * lanes)
    yield entry("PE array", "popcount", operations, popcount)
    yield entry("PE array", "accumulate", operations, table.add(accumulator))
    yield entry("PE array", "result registers", operations, register * (derived.count_width + accumulator))
    yield entry("PE array", "activation registers", computed, register * lanes)
    yield entry("PE array", "weight registers", busy * rows, register * lanes)
    yield entry("column sums", "popcount", computed, popcount)
    yield entry("column sums", "accumulate", computed, table.add(accumulator))
    yield entry("column sums", "registers", computed, register * (derived.count_width + accumulator))

    # A gated word is not even read: its zero flag was, when the group of pixels was looked up.
    yield entry("activation memory", "read", computed, table.sram(activation_bits, lanes))
    yield entry("weight memory", "read", busy * rows, table.sram(spec.weight_depth * lanes, lanes))

    descriptor = layer.descriptor
    groups = layer.runs * math.ceil(descriptor.pixels / columns)
    lookups = groups * descriptor.activation_planes * descriptor.window_words
    entry_bits = derived.activation_address_width + derived.word_index_width + columns
    list_access = table.sram(2 * spec.activation_planes_max * spec.window_words_max * entry_bits, entry_bits)
    if spec.zero_skip != "off":
        yield entry("fetch", "zero flag read", lookups * columns, table.sram(spec.activation_depth, 1))
    yield entry("fetch", "word list write", lookups, list_access)
    yield entry("fetch", "word list read", busy, list_access)

    # The drain chain, of rows + 1 accumulators a column, is loaded for each row tile and shifts once a pixel.
    moves = descriptor.row_tiles * (groups + layer.runs * descriptor.pixels)
    yield entry("drain", "chain registers", moves, register * accumulator * (rows + 1) * columns)
    threshold_bits = derived.threshold_entry_width
    compares = count["compares"] * rows
    yield entry("thresholds", "read", compares, table.sram(spec.threshold_depth * threshold_bits, threshold_bits))
    yield entry("thresholds", "compare", compares, table.add(accumulator))
    if descriptor.raw:
        each = table.sram(spec.result_depth * accumulator, accumulator)
        yield entry("drain", "result write", count["writes"], each)
    else:
        # Every column has a copy of the activations.
        yield entry("activation memory", "write", count["writes"] * columns, table.sram(activation_bits, rows))

    yield from _time_entries(name, spec, count["cycles"], table)


def _machine_entries(work: Activity, table: EnergyTable) -> Iterable[EnergyEntry]:
    """Cycles outside of layers, images and results."""
    spec = work.spec
    yield from _time_entries(BETWEEN, spec, work.cycles - sum(layer.counters["cycles"] for layer in work.layers), table)
    memory = spec.activation_depth * spec.lanes
    # Every column has a copy of the activations.
    yield EnergyEntry(
        HOST, "activation memory", "image write", work.image_words * spec.columns, table.sram(memory, spec.lanes)
    )
    yield EnergyEntry(HOST, "off-chip", "image bits", work.images * work.image_bits, table["dram_bit"])
    result_bits = work.images * work.results * spec.accumulator_width
    yield EnergyEntry(HOST, "off-chip", "result bits", result_bits, table["dram_bit"])


def _time_entries(name: str, spec: ArraySpec, cycles: int, table: EnergyTable) -> Iterable[EnergyEntry]:
    """What takes energy whatever is computed: sequencer and leakage."""
    yield EnergyEntry(name, "control", "cycle", cycles, table["control_cycle"])
    # nW / MHz = fJ in one cycle.
    lanes = table["leakage_lane"] * spec.rows * spec.columns * spec.lanes / table["clock"] * 1e-3
    memories = table["leakage_memory_bit"] * memory_bits(spec) / table["clock"] * 1e-3
    yield EnergyEntry(name, "leakage", "PE array", cycles, lanes, "leakage")
    yield EnergyEntry(name, "leakage", "memories", cycles, memories, "leakage")


def memory_bits(spec: ArraySpec) -> int:
    """Bits of all memories of an array."""
    return (
        spec.columns * spec.activation_depth * spec.lanes
        + spec.rows * spec.weight_depth * spec.lanes
        + spec.rows * spec.threshold_depth * spec.derived.threshold_entry_width
        + spec.descriptor_depth * BUS_WIDTH
        + spec.result_depth * spec.accumulator_width
    )


# ---------------------------------------------------------------------------------------------------------------------
# Analytic model of Moons et al.


def moons_energy(
    macs: float, weights: float, activations: float, bits: int, table: EnergyTable, offchip_words: float = 0
) -> dict[tuple[str, str], tuple[float, float]]:
    """Energy by the analytic model, as (component, event) to (count, pJ each).

    Parameters
    ----------
    macs, weights, activations
        Multiply-accumulates N_c, weights and biases N_s, activations A_s, of one image.
    bits
        Word length Q of weights and activations.
    offchip_words
        Words of ``bits`` that come from or go to off-chip memory.

    References
    ----------
    B. Moons et al., "Minimum energy quantized neural networks", Asilomar 2017; reconstructed equations.
    """
    mac = table["mac"] * (bits / table["mac_bits"]) ** table["exponent"]
    local, main = mac * table["local_buffer"], mac * table["main_buffer"]
    parallel = table["macs_parallel"] * table["macs_parallel_bits"] / bits
    fetches = macs / math.sqrt(parallel)  # each local fetch serves a row or a column of a square array
    return {
        ("MACs", "multiply-accumulate"): (macs, mac),
        ("MACs", "bias, batch norm, non-linearity"): (table["extra_operations"] * activations, mac),
        ("weights", "main to local buffer"): (weights, main),
        ("weights", "local fetch"): (fetches, local),
        ("activations", "main buffer write and read"): (2 * activations, main),
        ("activations", "local fetch"): (fetches, local),
        ("off-chip", "word"): (offchip_words, table["offchip"] * mac),
    }


def _moons_layer(work: Activity, index: int, layer: LayerActivity, table: EnergyTable) -> Iterable[EnergyEntry]:
    """One layer. The image, of more bits than the hardware, takes several passes: ceil(image bits / Q)."""
    info = layer.info
    first = index == 0
    bits = info.weight_bits if first else max(info.weight_bits, info.input_planes)
    passes = math.ceil(info.input_planes / bits) if first else 1
    channels = info.conv_shape[0]
    energies = moons_energy(
        macs=info.macs * passes,
        weights=channels * (info.fan_in + 1),
        activations=math.prod(info.out_shape),
        bits=bits,
        table=table,
        offchip_words=work.image_bits / bits if first else 0,
    )
    for (component, event), (count, each) in energies.items():
        if count:
            yield EnergyEntry(info.name, component, event, count * work.images, each)
