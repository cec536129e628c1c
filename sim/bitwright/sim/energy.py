"""Energy by events: ``energy = Σ events × energy per event + leakage × time``.

Events are the counters of an execution, which the hardware counts too, times constants of the array and of the layer's
descriptor. Energies per event come from a table: a TOML file that states technology, source and unit of each number and
marks it measured, published or assumed. ``horowitz45`` and ``moons`` ship in ``tables/``; a user's own works alike.
Every memory is charged for by its own width and depth: a bank of a copy of the activation memory, the window buffer of
a column, the weights, thresholds and coefficients of a row, the word lists, the results.

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
from bitwright.hw.isa import BANK, BUS_WIDTH, FLAG_COEFFICIENTS, GRANULE, ArraySpec, Descriptor, granules_of
from bitwright.hw.plan import Plan
from bitwright.hw.program import LayerInfo, Program
from bitwright.sim import timeline
from bitwright.sim.execution import Execution

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


# ---------------------------------------------------------------------------------------------------------------------
# Activity: what an execution did


@dataclass(frozen=True, kw_only=True)
class PartActivity:
    """What one descriptor, of a layer or of some of its row tiles, did, summed over all runs.

    Attributes
    ----------
    counters
        Keys of :data:`bitwright.hw.isa.COUNTERS`.
    account
        Where the cycles went, in bit products, by :data:`bitwright.sim.timeline.ACCOUNT`; empty where it was not
        predicted but measured.
    runs
        How often it was executed: once for each batch.
    """

    descriptor: Descriptor
    counters: Mapping[str, int]
    account: Mapping[str, int]
    runs: int


@dataclass(frozen=True, kw_only=True)
class LayerActivity:
    """What one layer did, by its descriptors."""

    info: LayerInfo
    parts: tuple[PartActivity, ...]

    @cached_property
    def counters(self) -> dict[str, int]:
        """Sums over the parts; keys of :data:`bitwright.hw.isa.COUNTERS`."""
        return _sums([part.counters for part in self.parts])

    @cached_property
    def account(self) -> dict[str, int]:
        """Sums over the parts; keys of :data:`bitwright.sim.timeline.ACCOUNT`."""
        return _sums([part.account for part in self.parts])


def _sums(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


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
        Bits of descriptors, weights, thresholds and coefficients, loaded once; streamed weights are not among them.
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
    if any([part.layer for part in run.layers] != list(program.parts) for run in runs):
        raise BitwrightError("The executions are not of this Program: their layers differ.")
    return _activity(program, runs, sum(len(run.accumulators) for run in runs))


def plan_activity(network: Plan | Program) -> Activity:
    """Predict one full run of a network of which only shapes and bits are known: no code is taken to be zero."""
    return _activity(network, [timeline.estimate(network)], network.batch)


def _load_bits(network: Plan | Program) -> int:
    """Bits of the memories that are loaded once."""
    spec = network.spec
    if isinstance(network, Program):
        descriptor_words, weight_words = network.descriptors.size, network.weights.shape[1]
        thresholds, coefficients = network.thresholds.shape[1], network.coefficients.shape[1]
    else:
        descriptor_words = sum(descriptor.words for descriptor in network.descriptors)
        weight_words = network.weight_words
        thresholds, coefficients = network.threshold_entries, network.coefficient_entries
    row = weight_words * spec.lanes + thresholds * spec.accumulator_width
    row += coefficients * spec.coefficient_bits
    return descriptor_words * BUS_WIDTH + spec.rows * row


def _activity(network: Plan | Program, runs: Sequence[Execution], images: int) -> Activity:
    """Sum over runs."""
    if isinstance(network, Program):
        numbers, descriptors = network.parts, network.parsed
    else:
        numbers, descriptors = [part.layer for part in network.parts], network.descriptors
    parts: list[list[PartActivity]] = [[] for _ in network.layers]
    for index, (number, descriptor) in enumerate(zip(numbers, descriptors, strict=True)):
        each = [run.layers[index] for run in runs]
        counters = {"cycles": sum(part.end - part.start for part in each)}
        counters |= _sums([part.counters for part in each])
        account = _sums([part.account or {} for part in each])
        parts[number].append(PartActivity(descriptor=descriptor, counters=counters, account=account, runs=len(runs)))
    image = network.input
    height, width, channels = image.stored_shape
    granules = (image.bits - 1) * image.plane_stride + network.batch * height * width * granules_of(channels)
    return Activity(
        spec=network.spec,
        layers=tuple(
            LayerActivity(info=info, parts=tuple(each)) for info, each in zip(network.layers, parts, strict=True)
        ),
        images=images,
        cycles=sum(run.cycles for run in runs),
        image_words=math.ceil(granules / network.spec.derived.granules) * len(runs),
        image_bits=image.channels * image.height * image.width * image.digits * image.bits,
        results=network.layers[-1].conv_shape[0],
        load_bits=_load_bits(network),
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
                    | {"macs": layer.info.macs, "counters": layer.counters, "runs": layer.parts[0].runs}
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
    """Energy of a bit assignment before there are weights: an upper bound with zero skip, exact without.

    With zero skip only words that are padding in all columns are skipped.
    """
    return estimate_activity(plan_activity(plan), table)


def estimate_activity(work: Activity, table: EnergyTable | str = "horowitz45") -> EnergyReport:
    """Energy of an activity."""
    table = load_table(table) if isinstance(table, str) else table
    if table.model == "moons":
        entries = [
            entry for index, layer in enumerate(work.layers) for entry in _moons_layer(work, index, layer, table)
        ]
        return EnergyReport(table, work, tuple(entries), 0.0, None)
    entries = [
        entry
        for layer in work.layers
        for part in layer.parts
        for entry in _part_entries(work.spec, layer.info.name, part, table)
    ]
    entries += _machine_entries(work, table)
    macs = sum(layer.info.macs for layer in work.layers)
    return EnergyReport(
        table,
        work,
        _merged(entries),
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


def bank_writes(layer: Descriptor, spec: ArraySpec) -> int:
    """Banks that one run of a descriptor writes to, of one copy of the activation memory, all writes added up.

    A write is one plane of a row tile of a pixel: some granules, which may end in the bank after the one that they
    begin in.
    """
    place = BANK // GRANULE
    tiles, tile_granules = np.arange(layer.row_tiles), spec.derived.tile_granules
    granules = np.minimum(granules_of(layer.channels) - tiles * tile_granules, tile_granules)
    outputs = layer.pixels // layer.pool_area
    # Pixels whose numbers are equal modulo the granules of a bank lie alike in it.
    alike = (outputs + place - 1 - np.arange(place)) // place
    starts = np.add.outer(np.arange(place) * layer.output_granules, tiles * tile_granules)
    starts = np.add.outer(starts + layer.output_base, np.arange(layer.output_planes) * layer.output_plane_stride)
    banks = (starts % place + granules[:, None] - 1) // place + 1
    return int((alike[:, None, None] * banks).sum())


def _merged(entries: Iterable[EnergyEntry]) -> tuple[EnergyEntry, ...]:
    """One entry for each event of a layer, whatever the number of its parts; events that never happen are left out."""
    found: dict[tuple[str, str, str], EnergyEntry] = {}
    for entry in entries:
        if entry.pj:
            key = entry.layer, entry.component, entry.event
            count = entry.count + (found[key].count if key in found else 0)
            found[key] = dataclasses.replace(entry, count=count)
    return tuple(found.values())


def _part_entries(spec: ArraySpec, name: str, part: PartActivity, table: EnergyTable) -> Iterable[EnergyEntry]:
    """Events of one descriptor. A computed word is one that one column's PEs count, in all rows at once."""
    derived, layer, count = spec.derived, part.descriptor, part.counters
    accumulator, lanes, rows, columns = spec.accumulator_width, spec.lanes, spec.rows, spec.columns
    popcount = table.add(popcount_adder_bits(lanes))
    register = table["register_bit"]

    def entry(component: str, event: str, number: float, each_pj: float) -> EnergyEntry:
        return EnergyEntry(name, component, event, number, each_pj)

    groups = part.runs * math.ceil(layer.pixels / columns)
    lengths = layer.plane_words(spec)
    scheduled = layer.row_tiles * groups * sum(lengths[entry.plane] for entry in layer.passes)
    words = scheduled - count["skipped"]  # for which weights are read; an operation may also only double
    computed = count["computed"]
    operations = computed * rows
    results = register * (derived.count_width + accumulator)
    sums = {"popcount": popcount, "accumulate": table.add(accumulator), "registers": results}
    products = {"AND": table["and_bit"] * lanes, "popcount": popcount}
    if layer.flags & FLAG_COEFFICIENTS:
        products["multiply"] = table.multiply(math.sqrt((derived.count_width + 1) * spec.coefficient_bits))
    products |= {"accumulate": table.add(accumulator), "result registers": results}
    for event, each in products.items():
        yield entry("PE array", event, operations, each)
    yield entry("PE array", "activation registers", computed, register * lanes)
    yield entry("PE array", "weight registers", words * rows, register * lanes)
    for event, each in sums.items():
        yield entry("column sums", event, computed, each)
    # A word that is held still is not free: the bits of the word before it become zero, once for many in a row.
    gated, share = count["gated"], table["gated_share"]
    yield entry("PE array", "gated word", gated, share * (rows * sum(products.values()) + register * lanes))
    yield entry("column sums", "gated word", gated, share * sum(sums.values()))

    weight = table.sram(spec.weight_depth * lanes, lanes)
    yield entry("weight memory", "read", words * rows, weight)
    streamed = part.runs * len(layer.stream_addresses()) * rows
    yield entry("weight memory", "streamed write", streamed, weight)
    bits = part.runs * layer.stream_beats(spec) * BUS_WIDTH
    yield entry("off-chip", "streamed weights", bits, table["dram_bit"])
    if spec.codebook_bits:
        # Indices are registered as they come and once they are whole, each plane once; a lane's multiplexer is a tree
        # of two-way ones, of three gates each.
        multiplexers = (1 << spec.codebook_bits) - 1
        yield entry("weight decoder", "index registers", bits, 2 * register)
        yield entry("weight decoder", "look-up", streamed, table["and_bit"] * 3 * multiplexers * lanes)
        yield entry("weight decoder", "word register", streamed, register * lanes)
    if layer.flags & FLAG_COEFFICIENTS:
        each = table.sram(spec.coefficient_depth * spec.coefficient_bits, spec.coefficient_bits)
        yield entry("coefficients", "read", words * rows, each)

    # Loading: a read of every bank of every copy at once, rotated into place and assembled to words of the windows. A
    # gated word is written, but not read: its column's memory holds still.
    window = table.sram(2 * spec.window_depth * lanes, lanes)
    loaded = part.runs * layer.pixels * sum(lengths)
    bank = table.sram(spec.activation_depth * BANK, BANK)
    yield entry("activation memory", "read", count["loads"] * derived.copies * derived.banks, bank)
    yield entry("fetch", "assembly registers", count["loads"] * derived.copies, register * lanes)
    yield entry("window buffer", "write", loaded, window)
    yield entry("window buffer", "read", computed, window)
    if spec.zero_skip != "off":
        entry_bits = derived.window_address_width + columns
        each = table.sram(2 * spec.window_depth * entry_bits, entry_bits)
        listed = groups * sum(lengths) * (words / scheduled)  # all passes of a plane read the same words
        yield entry("fetch", "zero test", loaded, table["and_bit"] * lanes)
        yield entry("fetch", "word list write", listed, each)
        yield entry("fetch", "word list read", words, each)

    # The drain chain, of rows + 1 accumulators a column, is loaded for each row tile and shifts once a pixel.
    moves = layer.row_tiles * (groups + part.runs * layer.pixels)
    yield entry("drain", "chain registers", moves, register * accumulator * (rows + 1) * columns)
    pair = 2 * accumulator  # both thresholds that may be next are read
    # The counter is of one comparator; together the comparators of a row decide every plane of a code.
    compares = count["compares"] // layer.drain_steps(spec) * layer.output_planes * rows
    yield entry("thresholds", "read", compares, table.sram(spec.threshold_depth * accumulator, pair))
    yield entry("thresholds", "compare", compares, table.add(accumulator))
    if layer.raw:
        each = table.sram(spec.result_depth * accumulator, accumulator)
        yield entry("drain", "result write", count["writes"], each)
    else:
        yield entry("activation memory", "write", part.runs * bank_writes(layer, spec) * derived.copies, bank)

    yield from _time_entries(name, spec, count["cycles"], table)


def _machine_entries(work: Activity, table: EnergyTable) -> Iterable[EnergyEntry]:
    """Cycles outside of layers, images and results."""
    spec = work.spec
    yield from _time_entries(BETWEEN, spec, work.cycles - sum(layer.counters["cycles"] for layer in work.layers), table)
    banks = work.image_words * spec.derived.banks * spec.derived.copies
    yield EnergyEntry(HOST, "activation memory", "image write", banks, table.sram(spec.activation_depth * BANK, BANK))
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
    lists = 2 * spec.window_depth * (spec.derived.window_address_width + spec.columns)
    return (
        spec.derived.copies * spec.activation_depth * spec.lanes
        + spec.columns * 2 * spec.window_depth * spec.lanes
        + (lists if spec.zero_skip != "off" else 0)
        + spec.rows * spec.weight_depth * spec.lanes
        + spec.rows * spec.threshold_depth * spec.accumulator_width
        + spec.rows * (spec.coefficient_depth if spec.coefficient_bits else 0) * spec.coefficient_bits
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
