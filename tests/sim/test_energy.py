import dataclasses
import math

import numpy as np
import pytest

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, preset
from bitwright.hw.planner import plan
from bitwright.sim.energy import (
    BETWEEN,
    HOST,
    TABLES,
    bank_writes,
    estimate,
    estimate_plan,
    load_table,
    memory_bits,
    moons_energy,
    plan_activity,
    popcount_adder_bits,
    table_names,
)
from bitwright.sim.golden import execute
from bitwright.sim.timeline import ACCOUNT
from programs import conv, linear, random_program, shapes

SPEC = ArraySpec(
    rows=4,
    columns=2,
    lanes=32,
    activation_depth=1024,
    weight_depth=512,
    threshold_depth=512,
    descriptor_depth=256,
    result_depth=32,
    columns_per_copy=2,
    drain_planes=1,
    window_depth=64,
    row_tiles_max=8,
)
LAYERS = [conv(6, padding=1, weight_bits=3, output_planes=2), conv(9, pool=2, weight_bits=2), linear(5, weight_bits=4)]


@pytest.fixture(scope="module")
def program():
    return random_program(np.random.default_rng(1), SPEC, LAYERS, batch=2)


@pytest.fixture(scope="module")
def executions(program):
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 6, 6), np.uint8)
    return execute(program, images)


# Tables


def test_anchors_of_the_published_table():
    table = load_table("horowitz45")
    assert table.multiply(8) == pytest.approx(0.20, abs=0.005)
    assert table.multiply(32) == pytest.approx(3.10, abs=0.005)
    assert table.add(32) == pytest.approx(0.10)
    assert 32 * table["dram_bit"] == pytest.approx(650)
    assert table["and_bit"] == pytest.approx(0.1 * table.add(1))


def test_memory_access_follows_the_size_of_the_memory():
    table = load_table("horowitz45")
    size = math.log2(64 * 2048)
    one = 0.02455 * size**2 - 0.2656 * size + 0.8661
    assert table.sram(64 * 2048, 64) == pytest.approx(one)
    assert table.sram(64 * 2048, 8) == pytest.approx(one)
    assert table.sram(64 * 2048, 65) == pytest.approx(2 * one)
    assert table.sram(1, 1) == table.sram(1024, 1)


@pytest.mark.parametrize(
    ("bits", "expected"), [(16, "1.340e+06"), (8, "5.326e+05"), (4, "2.148e+05"), (2, "8.758e+04"), (1, "3.602e+04")]
)
def test_worked_example_of_the_analytic_model(bits, expected):
    table = load_table("moons")
    energies = moons_energy(macs=1e6, weights=1e4, activations=1e4, bits=bits, table=table)
    total = sum(count * each for count, each in energies.values()) / table["mac"]  # in E_MAC(16)
    assert f"{total:.3e}" == expected


def test_every_number_of_every_table_has_its_provenance():
    assert table_names() == ["horowitz45", "moons"]
    for name in table_names():
        for constant in load_table(name).constants.values():
            assert constant.mark in ("measured", "published", "assumed")
            assert constant.source
    assert "unverified" in load_table("moons").label


def test_a_users_own_table(tmp_path, program, executions):
    text = (TABLES / "horowitz45.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('name = "horowitz45"', 'name = "mine"').replace("value = 20.3125", "value = 0"))
    table = load_table(path)
    assert table.name == "mine"
    assert ("off-chip",) not in estimate(program, executions, table).by("component")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "has schema 2, expected 1"),
        ("schema = 1", "schema = ", "is not TOML"),
        ('model = "events"', 'model = "magic"', "model is 'magic', expected events or moons"),
        ('technology = "45 nm CMOS, 0.9 V"', "technology = 45", "technology is 45, expected a text"),
        ("and_bit =", "and_bits =", "'and_bits' is not a key; did you mean and_bit"),
        ("[sources]", "[source]", "'source' is not a key; did you mean sources"),
        ('value = 2.7, unit = "pJ"', 'value = 2.7, unit = "nJ"', "control_cycle has unit 'nJ', expected 'pJ'"),
        ("value = 2.7", "value = -2.7", "has value -2.7, expected a positive number"),
        ("value = 2.7", "value = nan", "has value nan, expected a finite number"),
        ("value = 200", "value = 0", "clock has value 0, expected a positive number"),
        ('value = 2.7, unit = "pJ", mark = "assumed"', 'value = 2.7, unit = "pJ", mark = "felt"', "has mark 'felt'"),
        ('mark = "published", source = "aladdin"', 'mark = "published", source = "a dream"', "not in [sources]"),
        ('value = 2.7, unit = "pJ", mark = "assumed", ', 'value = 2.7, unit = "pJ", ', "'mark' is missing"),
    ],
)
def test_wrong_tables_are_refused_in_one_sentence(tmp_path, old, new, message):
    text = (TABLES / "horowitz45.toml").read_text()
    assert old in text
    path = tmp_path / "table.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BitwrightError) as error:
        load_table(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_table():
    with pytest.raises(BitwrightError, match="did you mean horowitz45"):
        load_table("horowitz")
    with pytest.raises(BitwrightError, match="give horowitz45, moons or the path"):
        load_table("nothing.toml")


# Events


@pytest.mark.parametrize(("lanes", "expected"), [(1, 0), (2, 1), (3, 3), (64, 120), (96, 184)])
def test_adder_bits_of_a_popcount(lanes, expected):
    assert popcount_adder_bits(lanes) == expected


def totals(executions, part):
    """Counters of a part, summed over the runs."""
    counters = [run.layers[part].counters for run in executions]
    return {name: sum(each[name] for each in counters) for name in counters[0]}


def entries_of(report, layer):
    return {(entry.component, entry.event): entry for entry in report.entries if entry.layer == layer}


def test_dynamic_energy_by_hand(program, executions):
    report = estimate(program, executions, "horowitz45")
    table, count = report.table, totals(executions, 1)
    found = entries_of(report, "layer1")
    assert found["PE array", "AND"].pj == pytest.approx(count["computed"] * 4 * 32 * 0.0003125)
    assert found["PE array", "popcount"].pj == pytest.approx(count["computed"] * 4 * popcount_adder_bits(32) * 0.003125)
    window = table.sram(2 * 64 * 32, 32)
    assert found["window buffer", "read"].pj == pytest.approx(count["computed"] * window)
    # 16 pixels of 3 × 3 × 8 channels in 3 words of each of 2 planes, in 2 runs of 2 images.
    assert found["window buffer", "write"].pj == pytest.approx(2 * 2 * 16 * 3 * 2 * window)
    # 2 weight planes × 2 input planes × 3 words in 3 row tiles of 16 groups: no operation only doubles.
    assert count["busy"] == 2 * 3 * 16 * 12
    assert found["weight memory", "read"].pj == pytest.approx(count["busy"] * 4 * table.sram(512 * 32, 32))
    # One copy of two banks of 16 bits.
    bank = table.sram(1024 * 16, 16)
    assert found["activation memory", "read"].pj == pytest.approx(2 * count["loads"] * bank)
    # A row tile is a granule, which lies in one bank.
    assert found["activation memory", "write"].pj == pytest.approx(count["writes"] * bank)
    # Each of 2 planes of 9 channels in 12 rows of each of 64 pixels is decided by one comparison.
    assert found["thresholds", "compare"].count == 2 * 12 * 64
    # Sums of 2 columns in 4 rows and below: copied for 3 row tiles of 2 × 16 groups, selected for each of 64 pixels.
    held = SPEC.accumulator_width * 5 * 2
    assert found["drain", "sum registers"].pj == pytest.approx(3 * 2 * 16 * held * table["register_bit"])
    assert found["drain", "select a column"].pj == pytest.approx(3 * 64 * held * table["and_bit"])
    assert ("fetch", "word list read") not in found


def test_a_pipelined_array_has_more_registers():
    def entries(spec):
        report = estimate_plan(plan(shapes((3, 6, 6), LAYERS), spec, input_bits=8))
        found = entries_of(report, "layer0")
        components = "PE array", "column sums", "fetch", "thresholds"
        kept = [key for key in found if key[0] in components and key[1] != "gated word"]
        return {key: (found[key].count, found[key].each_pj) for key in kept}, report.table

    plain, table = entries(SPEC)
    pipelined, _ = entries(dataclasses.replace(SPEC, pipelined=True))
    bit = table["register_bit"]
    for (component, event), beside, bits in (
        (("PE array", "product registers"), "AND", SPEC.lanes),
        (("column sums", "word registers"), "popcount", SPEC.lanes),
        (("fetch", "read registers"), "assembly registers", SPEC.lanes),
        (("thresholds", "registers"), "compare", 2 * SPEC.accumulator_width),
    ):
        assert pipelined.pop((component, event)) == (plain[component, beside][0], pytest.approx(bits * bit))
    assert pipelined == plain


def test_energy_follows_the_memories():
    """An access of each memory is to all of its words, so a larger one takes more for as many accesses."""
    for name, component in (
        ("activation_depth", "activation memory"),
        ("window_depth", "window buffer"),
        ("weight_depth", "weight memory"),
        ("threshold_depth", "thresholds"),
    ):
        small = estimate_plan(plan(shapes((3, 6, 6), LAYERS), SPEC, input_bits=8))
        array = dataclasses.replace(SPEC, **{name: 4 * getattr(SPEC, name)})
        large = estimate_plan(plan(shapes((3, 6, 6), LAYERS), array, input_bits=8))
        grown = {key for (key,), value in large.by("component").items() if value > small.by("component")[key,] * 1.0001}
        assert grown == {component, "leakage"}


def test_copies_of_the_activation_memory_are_written_alike():
    reports = [
        estimate_plan(plan(shapes((3, 6, 6), LAYERS), dataclasses.replace(SPEC, columns_per_copy=each), input_bits=8))
        for each in (1, 2)
    ]
    (two, one) = (entries_of(report, "layer0") for report in reports)
    assert two["activation memory", "write"].count == 2 * one["activation memory", "write"].count
    # Two copies are read at once, so that as many reads take half the cycles.
    assert two["activation memory", "read"].count == one["activation memory", "read"].count
    assert memory_bits(SPEC) == 1024 * 32 + 2 * 2 * 64 * 32 + 4 * 512 * (32 + 24) + 256 * 32 + 32 * 24


def test_word_lists_are_of_arrays_that_look_at_words():
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 6, 6), np.uint8)
    images[:, :, :3] = 0
    lists, counts = {}, {}
    for mode in ("off", "gate", "skip"):
        array = dataclasses.replace(SPEC, zero_skip=mode)
        program = random_program(np.random.default_rng(1), array, LAYERS, batch=2)
        runs = execute(program, images)
        found, counts[mode] = entries_of(estimate(program, runs), "layer0"), totals(runs, 0)
        events = ("fetch", "word list write"), ("fetch", "word list read"), ("weight memory", "read")
        lists[mode] = [found[event].count if event in found else 0 for event in events]
        bits = memory_bits(array)
    # 3 weight planes × 8 input planes × 1 word in 2 row tiles of 36 groups, in 2 runs.
    whole = 3 * 8 * 2 * 36 * 2
    assert lists["off"] == [0, 0, 4 * whole]
    assert lists["gate"] == [8 * 36 * 2, whole, 4 * whole]
    skipped = counts["skip"]["skipped"]
    assert skipped > whole / 4
    # What only doubles reads no weights. A word that is listed is read in 3 passes of 2 row tiles.
    assert counts["skip"]["busy"] > whole - skipped
    assert lists["skip"] == [(whole - skipped) / 6, whole - skipped, 4 * (whole - skipped)]
    assert bits - memory_bits(SPEC) == 2 * 64 * (6 + 2)


def test_a_gated_word_takes_a_share_of_a_computed_one():
    array = dataclasses.replace(SPEC, zero_skip="gate")
    program = random_program(np.random.default_rng(1), array, LAYERS, batch=2)
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 6, 6), np.uint8)
    images[..., 2:] = 0
    runs = execute(program, images)
    found, count = entries_of(estimate(program, runs), "layer0"), totals(runs, 0)
    share = load_table("horowitz45")["gated_share"]
    assert count["gated"] > 0
    for component in ("PE array", "column sums"):
        entries = [entry for (name, event), entry in found.items() if name == component]
        each = {entry.event: entry.pj / count["computed"] for entry in entries if entry.event != "weight registers"}
        assert found[component, "gated word"].count == count["gated"]
        expected = share * sum(pj for event, pj in each.items() if event != "gated word")
        assert found[component, "gated word"].each_pj == pytest.approx(expected)


def test_coefficients_are_read_and_multiplied():
    array = dataclasses.replace(SPEC, coefficient_bits=8, coefficient_depth=64)
    layers = [LAYERS[0] | {"weight_encoding": "basis"}, *LAYERS[1:]]
    report = estimate_plan(plan(shapes((3, 6, 6), layers), array, input_bits=8))
    first, second = entries_of(report, "layer0"), entries_of(report, "layer1")
    table = report.table
    computed = first["PE array", "AND"].count
    assert first["PE array", "multiply"].pj == pytest.approx(computed * table.multiply(math.sqrt((6 + 1) * 8)))
    assert first["coefficients", "read"].count == first["weight memory", "read"].count
    assert first["coefficients", "read"].each_pj == table.sram(64 * 8, 8)
    assert ("coefficients", "read") not in second
    without = estimate_plan(plan(shapes((3, 6, 6), LAYERS), array, input_bits=8))
    entries = plan(shapes((3, 6, 6), layers), array, input_bits=8).coefficient_entries
    assert report.activity.load_bits - without.activity.load_bits == entries * 4 * 8


def test_streamed_weights_come_from_outside_in_each_run():
    array = dataclasses.replace(SPEC, weight_stream=True, weight_depth=32)
    report = estimate_plan(plan(shapes((3, 6, 6), LAYERS), array, input_bits=8, batch=2))
    found = [entries_of(report, f"layer{index}") for index in range(3)]
    words = sum(each["weight memory", "streamed write"].count for each in found)
    assert words == 4 * sum(layer.descriptor.stream_words for each in report.activity.layers for layer in each.parts)
    assert sum(each["off-chip", "streamed weights"].count for each in found) == words * 32
    assert max(len(layer.parts) for layer in report.activity.layers) > 1
    # Whatever the number of parts, a layer has one entry for each event.
    assert len({(entry.layer, entry.component, entry.event) for entry in report.entries}) == len(report.entries)


def test_coded_weights_come_as_indices():
    """Fewer bits come from outside; the words that are written are those of the weights."""
    array = dataclasses.replace(SPEC, weight_stream=True, weight_depth=64, descriptor_depth=512)
    decoding = dataclasses.replace(array, codebook_bits=3)
    layers = [{**layer, "weight_bits": 8} for layer in LAYERS]
    coded = [{**layer, "codebook": (-128, -5, 0, 1, 90)} for layer in layers]
    plain, small = (
        entries_of(estimate_plan(plan(shapes((3, 6, 6), each), spec, input_bits=8)), "layer1")
        for each, spec in ((layers, array), (coded, decoding))
    )
    written = plain["weight memory", "streamed write"].count
    assert small["weight memory", "streamed write"].count == written == small["weight decoder", "look-up"].count
    bits = small["off-chip", "streamed weights"].count
    parts = len([part for part in plan(shapes((3, 6, 6), coded), decoding, input_bits=8).parts if part.layer == 1])
    assert bits == written * 32 * 3 // 8 + parts * 8 * 32  # and a table for each plane
    assert small["weight decoder", "index registers"].count == bits
    assert not any(component == "weight decoder" for component, _ in plain)


@pytest.mark.parametrize("rows", [4, 8, 12, 20])
@pytest.mark.parametrize("channels", [3, 9, 33])
def test_banks_that_writes_touch(rows, channels):
    array = ArraySpec(rows=rows, columns=2, lanes=64, drain_planes=1, weight_depth=8192)
    layers = [conv(channels, pool=2, output_planes=3), linear(5)]
    planned = plan(shapes((3, 9, 7), layers), array, input_bits=3)
    layer = planned.descriptors[0]
    touched = writes = 0
    for pixel in range(layer.output_height * layer.output_width):
        for tile in range(layer.row_tiles):
            for plane in range(3):
                start = layer.output_base + pixel * layer.output_granules + plane * layer.output_plane_stride
                start += tile * rows // 4
                granules = range(start, start + min(rows, 4 * layer.output_granules - tile * rows) // 4)
                touched += len({granule // 4 for granule in granules})
                writes += 1
    assert bank_writes(layer, array) == touched
    assert writes == timeline_writes(planned)


def timeline_writes(planned):
    return estimate_plan(planned).activity.layers[0].counters["writes"]


def test_the_account_of_cycles_is_complete(program, executions):
    work = estimate(program, executions).activity
    for layer in work.layers:
        assert tuple(layer.account) == ACCOUNT
        assert sum(layer.account.values()) == layer.counters["cycles"] * 4 * 2 * 32
    bare = [dataclasses.replace(run, layers=[dataclasses.replace(part, account=None) for part in run.layers])
            for run in executions]  # fmt: skip
    assert estimate(program, bare).activity.layers[0].account == {}


def test_totals_are_the_sums_of_the_parts(program, executions):
    report = estimate(program, executions)
    assert math.fsum(report.by("layer").values()) == pytest.approx(report.uj_per_image)
    assert math.fsum(report.by("component").values()) == pytest.approx(report.uj_per_image)
    assert set(report.by("kind")) == {("dynamic",), ("leakage",)}
    assert report.activity.images == 3
    assert report.activity.cycles == sum(run.cycles for run in executions)
    assert report.energy_delay == pytest.approx(report.uj_per_image * 1e-6 * report.seconds_per_image)
    layers = {layer for (layer,) in report.by("layer")} - {HOST, BETWEEN}
    assert layers == {"layer0", "layer1", "layer2"}


def test_leakage_is_power_times_time(program, executions):
    report = estimate(program, executions)
    leaked = sum(entry.pj for entry in report.entries if entry.kind == "leakage")
    watts = (1.0 * 4 * 2 * 32 + 0.02 * memory_bits(SPEC)) * 1e-9
    assert leaked == pytest.approx(watts * report.activity.cycles / 200e6 * 1e12)


def test_analytic_model_of_a_network(program, executions):
    report = estimate(program, executions, "moons")
    table = report.table
    found = {(entry.layer, entry.component, entry.event): entry for entry in report.entries}
    macs = program.layers[0].macs
    # The 8-bit image on 3-bit hardware takes three passes.
    assert found["layer0", "MACs", "multiply-accumulate"].count == macs * 3 * 3
    assert found["layer0", "MACs", "multiply-accumulate"].each_pj == pytest.approx(table["mac"] * (3 / 16) ** 1.25)
    assert found["layer2", "MACs", "multiply-accumulate"].each_pj == pytest.approx(table["mac"] * (4 / 16) ** 1.25)


def test_report_echoes_its_inputs(program, executions):
    values = estimate(program, executions).to_dict()
    assert values["inputs"]["table"]["constants"]["clock"]["mark"] == "assumed"
    assert values["inputs"]["array"] == dataclasses.asdict(SPEC)
    assert [layer["name"] for layer in values["inputs"]["layers"]] == ["layer0", "layer1", "layer2"]
    assert values["total"]["uj_per_image"] == pytest.approx(sum(entry["pj"] for entry in values["entries"]) / 3 * 1e-6)


def test_executions_of_another_program_are_refused(executions):
    other = random_program(np.random.default_rng(1), SPEC, LAYERS[1:], batch=2)
    with pytest.raises(BitwrightError, match="their layers differ"):
        estimate(other, executions)
    with pytest.raises(BitwrightError, match="no execution"):
        estimate(other, [])


# Plans


def test_a_plan_predicts_what_the_machine_does_without_zero_skip():
    chain = shapes((3, 6, 6), LAYERS)
    predicted = estimate_plan(plan(chain, SPEC, input_bits=8, batch=2))
    program = random_program(np.random.default_rng(3), SPEC, LAYERS, batch=2)
    images = np.random.default_rng(4).integers(0, 256, (2, 3, 6, 6), np.uint8)
    executed = estimate(program, execute(program, images))
    assert executed.entries == predicted.entries


def test_energy_and_cycles_fall_with_the_bits():
    energies = []
    for bits in (8, 4, 2, 1):
        layers = [layer | {"weight_bits": bits, "output_planes": bits} for layer in LAYERS]
        energies.append(estimate_plan(plan(shapes((3, 6, 6), layers), preset("demo"), input_bits=8)).uj_per_image)
    assert energies == sorted(energies, reverse=True)


def test_the_plan_of_a_program_predicts_alike(program):
    planned = plan(shapes((3, 6, 6), LAYERS), SPEC, input_bits=8, batch=2)
    assert plan_activity(program) == plan_activity(planned)
