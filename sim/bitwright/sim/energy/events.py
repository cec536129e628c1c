"""Events of this machine: counters times constants of the array and of the layers' descriptors."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from bitwright.hw.isa import BANK, BUS_WIDTH, FLAG_COEFFICIENTS, GRANULE, ArraySpec, Descriptor, granules_of
from bitwright.sim.energy.activities import Activity, PartActivity
from bitwright.sim.energy.reports import BETWEEN, HOST, EnergyEntry
from bitwright.sim.energy.tables import EnergyTable


def event_entries(work: Activity, table: EnergyTable) -> tuple[EnergyEntry, ...]:
    """Energies of all events of an activity."""
    entries = [
        entry
        for layer in work.layers
        for part in layer.parts
        for entry in _part_entries(work.spec, layer.info.name, part, table)
    ]
    return _merged([*entries, *_machine_entries(work, table)])


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
    if derived.way_stages:  # column sums have registers of the words beside those of the products
        sums["word registers"] = products["product registers"] = derived.way_stages * register * lanes
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
    if derived.way_stages:
        waiting = derived.way_stages * register * lanes
        yield entry("fetch", "read registers", count["loads"] * derived.copies, waiting)
    yield entry("window buffer", "write", loaded, window)
    yield entry("window buffer", "read", computed, window)
    if spec.zero_skip != "off":
        entry_bits = derived.window_address_width + columns
        each = table.sram(2 * spec.window_depth * entry_bits, entry_bits)
        listed = groups * sum(lengths) * (words / scheduled)  # all passes of a plane read the same words
        yield entry("fetch", "zero test", loaded, table["and_bit"] * lanes)
        yield entry("fetch", "word list write", listed, each)
        yield entry("fetch", "word list read", words, each)

    # The sums of a tile, rows + 1 accumulators a column, are copied, and one column after the other is selected.
    held = accumulator * (rows + 1) * columns
    yield entry("drain", "sum registers", layer.row_tiles * groups, register * held)
    yield entry("drain", "select a column", layer.row_tiles * part.runs * layer.pixels, table["and_bit"] * held)
    pair = 2 * accumulator  # both thresholds that may be next are read
    # The counter is of one comparator; together the comparators of a row decide every plane of a code.
    compares = count["compares"] // layer.drain_steps(spec) * layer.output_planes * rows
    yield entry("thresholds", "read", compares, table.sram(spec.threshold_depth * accumulator, pair))
    yield entry("thresholds", "compare", compares, table.add(accumulator))
    if derived.turns == 2:  # the threshold, and the value that it is compared with, wait for a turn
        yield entry("thresholds", "registers", compares, register * 2 * accumulator)
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
