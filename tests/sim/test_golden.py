import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import COUNTERS, FIELD_PLACES, GRANULE, THRESHOLD_NEGATE, ArraySpec, granules_of, preset
from bitwright.hw.planner import plan
from bitwright.hw.program import Program
from bitwright.sim import golden, reader
from bitwright.sim.bitserial import Machine
from programs import conv, linear, random_images, random_program, shapes
from strategies import programs

SPEC = ArraySpec(rows=4, columns=3, lanes=32, accumulator_width=16)
RICH = dataclasses.replace(SPEC, coefficient_bits=8, rows=8, drain_planes=1)

RESIDUAL = [
    conv(6, 3, padding=1),
    conv(5, 3, stride=2, padding=1),
    conv(7, 1, residual={"source": 0, "stride": (2, 2), "weight_bits": 2, "shift": 1}, output_planes=3),
    linear(3),
]
"""A block with a shortcut; its channels fill no granule."""


def read_codes(machine: Machine, index: int) -> npt.NDArray[np.int64]:
    """Output codes of a layer from activation memory: (images, channels, height, width)."""
    program = machine.program
    parts = [layer for layer, number in zip(program.parsed, program.parts, strict=True) if number == index]
    head, channels = parts[0], sum(layer.channels for layer in parts)
    pixels, granules = head.images * head.output_height * head.output_width, granules_of(channels)
    planes = np.arange(head.output_planes)[:, None]
    positions = head.output_base + planes * head.output_plane_stride + np.arange(pixels * granules)
    bits = machine.activations[positions % len(machine.activations)][..., None] >> np.arange(GRANULE) & 1
    codes = (bits.reshape(head.output_planes, pixels, -1) << planes[..., None]).sum(0)
    assert not codes[:, channels:].any()  # what only fills up a granule
    codes = codes[:, :channels].reshape(head.images, head.output_height, head.output_width, channels)
    return codes.transpose(0, 3, 1, 2)


def assert_equal_to_bit_serial(program: Program, images: npt.NDArray[np.uint8]) -> None:
    runs = golden.execute(program, images, cycles=False, keep=True)
    assert len(runs) == -(-len(images) // program.batch)
    machine = Machine(program)
    for number, run in enumerate(runs):
        batch = images[number * program.batch :][: program.batch]
        machine.load(batch)
        assert run.codes is not None
        assert len(run.codes) == len(program.layers) - 1
        for part, index in enumerate(program.parts):
            machine.run_part(part)
            if part + 1 < len(program.parts) and program.parts[part + 1] != index:
                np.testing.assert_array_equal(run.codes[index], read_codes(machine, index)[: len(batch)])
        results = machine.results[: program.batch * run.accumulators.shape[1]].reshape(program.batch, -1)
        np.testing.assert_array_equal(run.accumulators, results[: len(batch)])


def check(spec: ArraySpec, layers: list[dict[str, Any]], *, in_shape: tuple[int, int, int] = (2, 6, 5)) -> Program:
    """Compare a network of these layers; returns its Program."""
    rng = np.random.default_rng(0)
    program = random_program(rng, spec, layers, in_shape=in_shape, input_bits=3, batch=2)
    assert_equal_to_bit_serial(program, random_images(rng, program, 3))
    return program


@given(programs())
@settings(max_examples=100, deadline=None)
def test_any_network_equals_the_bit_serial_machine(case: tuple[Program, npt.NDArray[np.uint8]]) -> None:
    assert_equal_to_bit_serial(*case)


@pytest.mark.parametrize(
    ("encoding", "bits"),
    [(e, b) for e in ("signed", "odd", "basis", "bipolar_basis") for b in range(1, 9)]
    + [("bipolar", 1), ("ternary", 2)],
)
def test_every_encoding_equals_the_bit_serial_machine(encoding: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    weights = {"weight_encoding": encoding, "weight_bits": bits}
    layers = [conv(6, 3, pool=2, output_planes=bits, **weights), linear(3, **weights)]
    spec = RICH if "basis" in encoding else SPEC
    program = random_program(rng, spec, layers, in_shape=(2, 6, 5), input_bits=8, batch=2)
    assert_equal_to_bit_serial(program, random_images(rng, program, 3))


@pytest.mark.parametrize("encoding", ["signed", "odd"])
def test_a_residual_is_added(encoding: str) -> None:
    layers = [*RESIDUAL[:2], RESIDUAL[2] | {"weight_encoding": encoding}, RESIDUAL[3]]
    program = check(SPEC, layers)
    assert program.parsed[2].residual_planes == 2


@pytest.mark.parametrize("encoding", ["signed", "odd", "ternary", "basis"])
def test_groups_of_channels_see_their_own(encoding: str) -> None:
    """Row tiles whose windows start inside a pixel, and hold other channels too."""
    weights = {"weight_encoding": encoding, "weight_bits": 2}
    spec = RICH if encoding == "basis" else SPEC
    layers = [conv(24, 1), conv(24, 3, groups=4, padding=1, **weights), conv(24, 2, groups=24, **weights), linear(3)]
    program = check(spec, layers)
    assert len({layer.start_x % 6 for layer in program.parsed if layer.run_granules < 6}) > 1


def test_dilated_kernels_are_read_tap_by_tap() -> None:
    program = check(SPEC, [conv(9, 1), conv(5, 3, dilation=(1, 2), padding=2), linear(3)])
    assert (program.parsed[1].kernel_width, program.parsed[1].run_granules) == (3, 3)


def test_codes_come_from_a_table() -> None:
    table = (3, 0, 2, 1)
    program = check(RICH, [conv(30, 3, pool=2, code_table=table), conv(5, 1), linear(3)])
    images = random_images(np.random.default_rng(1), program, 4)
    [ranked, *_] = golden.execute(check(RICH, [conv(30, 3, pool=2), conv(5, 1), linear(3)]), images, keep=True)
    [coded, *_] = golden.execute(program, images, keep=True)
    assert ranked.codes is not None
    assert coded.codes is not None
    assert set(np.unique(ranked.codes[0])) == {0, 1, 2, 3}
    np.testing.assert_array_equal(coded.codes[0], np.array(table)[ranked.codes[0]])


def test_weights_are_streamed_in() -> None:
    spec = dataclasses.replace(SPEC, weight_stream=True, weight_depth=64)
    program = check(spec, [conv(20, 3, padding=1), conv(24, 3, pool=2), linear(7)], in_shape=(2, 7, 7))
    assert len(program.stream) > 0
    assert len(program.parts) > len(program.layers)
    # All parts of a layer see the same windows: one matrix product.
    assert [len(layer.blocks) for layer in reader.read_layers(program)] == [1, 1, 1]
    assert program.weights.shape[1] == 0


CODED = dataclasses.replace(SPEC, weight_stream=True, weight_depth=256, codebook_bits=4)


def test_coded_weights_are_those_that_they_stand_for() -> None:
    """The same network, with the same weights, with and without its codebooks."""
    codebook = (-7, -4, 0, 1, 3, 6)
    options = {"weight_bits": 4, "residual": {"source": 0, "weight_encoding": "ternary"}}
    layers = [conv(20, 3, padding=1, weight_bits=1), conv(24, 3, padding=1, **options), linear(7)]
    coded = [layers[0], {**layers[1], "codebook": codebook}, {**layers[2], "codebook": (-1, 0)}]
    program = check(CODED, coded, in_shape=(2, 7, 7))
    assert any(layer.index_planes and layer.plain_words for layer in program.parsed)
    rng = np.random.default_rng(0)
    weights = [
        rng.integers(-1, 1, (20, 2, 3, 3)),
        rng.choice(codebook, (24, 20, 3, 3)),
        rng.integers(-1, 1, (7, 24 * 49)),
    ]
    residual = {"layer1": rng.integers(-1, 2, (24, 20))}
    thresholds = [
        (np.sort(rng.integers(-30, 30, (channels, 3)), axis=1), np.zeros(channels, np.uint8)) for channels in (20, 24)
    ]
    results, beats, cycles = [], [], []
    for each in (layers, coded):
        planned = plan(shapes((2, 7, 7), each), CODED, input_bits=8)
        made = planned.assemble(weights, thresholds, np.ones(7), np.zeros(7), residual_weights=residual)
        [run] = golden.execute(made, random_images(np.random.default_rng(1), made, 1))
        results.append(run.accumulators.tolist())
        beats.append(len(made.stream))
        cycles.append(run.cycles)
    assert results[0] == results[1]
    assert 0 < beats[1] < 0.8 * beats[0]
    assert cycles[1] < cycles[0]


def test_a_table_that_does_not_repeat_is_refused() -> None:
    layers = [linear(3, codebook=(0, 1))]
    program = random_program(np.random.default_rng(0), CODED, layers, in_shape=(1, 4, 4))
    stream = program.stream.copy()
    stream[0] ^= 1 << 8
    with pytest.raises(BitwrightError, match=r"'layer0': A table of its codebook is 0xabaa, expected .* 0xaaaa"):
        reader.read_layers(dataclasses.replace(program, stream=stream))


def test_values_wrap_as_narrow_accumulators_do() -> None:
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(SPEC, accumulator_width=8)
    layers = [conv(24, 3, weight_bits=8), linear(5, weight_bits=8, weight_encoding="odd")]
    program = random_program(rng, spec, layers, in_shape=(3, 8, 8), batch=4)
    [block] = reader.read_layers(program)[0].blocks
    assert block.value_bound > 1 << 7
    # Values whose sign is changed, and the least one of all, whose negative has no place in the accumulator.
    assert (block.signs < 0).any()
    assert_equal_to_bit_serial(program, random_images(rng, program, 8))


def test_sums_beyond_float32_are_exact() -> None:
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(SPEC, accumulator_width=30, lanes=64)
    program = random_program(rng, spec, [linear(3, weight_bits=8, weight_encoding="odd")], in_shape=(3, 20, 20))
    [[weights]] = [block.operands[0].weights for block in reader.read_layers(program)[0].blocks]
    assert weights.dtype == np.float64
    images = np.full((1, 3, 20, 20), 255, np.uint8)
    assert np.all(weights % 2)
    expected = 255 * weights.astype(np.int64).sum(axis=0)
    np.testing.assert_array_equal(golden.execute(program, images)[0].accumulators[0], expected)
    assert_equal_to_bit_serial(program, images)


def test_the_search_is_binary_even_where_thresholds_are_not_in_order() -> None:
    rng = np.random.default_rng(0)
    layers = [conv(8, 3, pool=2, output_planes=3), linear(2)]
    program = random_program(rng, SPEC, layers, in_shape=(1, 8, 8))
    thresholds = program.thresholds.reshape(SPEC.rows, -1, 8)
    values = rng.permuted(thresholds[:, :, 1:], axis=2)  # the flags stay first
    thresholds = np.concatenate([thresholds[:, :, :1], values], axis=2).reshape(SPEC.rows, -1)
    program = dataclasses.replace(program, thresholds=thresholds)
    assert not reader.read_layers(program)[0].blocks[0].ordered
    assert_equal_to_bit_serial(program, random_images(rng, program, 4))


@given(programs())
@settings(max_examples=60, deadline=None)
def test_word_activity_equals_the_words_that_are_fetched(case: tuple[Program, npt.NDArray[np.uint8]]) -> None:
    program, images = case
    images = images[: program.batch]
    machine = Machine(program)
    machine.load(images)
    black = np.zeros((program.batch - len(images), *images.shape[1:]), np.uint8)
    stages = next(golden.network_values(program, np.concatenate([images, black])))
    padded = [np.pad(codes, [(0, 0)] * 3 + [(0, -codes.shape[-1] % GRANULE)]) for codes in stages[:-1]]
    for layer in reader.read_layers(program):
        for part in layer.parts:
            layer = part.descriptor
            fetched = np.any(machine.fetch(layer), axis=-1)
            active = [
                golden.word_activity(padded[operand.source + 1], operand.windows, program.spec).reshape(
                    -1, 1, layer.pixels
                )
                for operand in part.operands
            ]
            bits = [
                each[:, 0] >> bit & 1
                for each, count in zip(active, (layer.activation_planes, layer.residual_planes), strict=False)
                for bit in range(count)
            ]
            found = [bits[layer.code_bit(plane)] for plane in range(len(bits))]
            np.testing.assert_array_equal(np.concatenate(found).T, fetched)
            machine.run_part(part.number)


def assert_computed_words_are_those_that_are_fetched(program: Program, images: npt.NDArray[np.uint8]) -> None:
    machine = Machine(program)
    machine.load(images)
    [run] = golden.execute(program, images)
    for number, (part, layer) in enumerate(zip(run.layers, program.parsed, strict=True)):
        present = np.any(machine.fetch(layer), axis=-1) | (program.spec.zero_skip == "off")
        lengths = layer.plane_words(program.spec)
        words = sum(np.count_nonzero(present[:, each.base : each.base + lengths[each.plane]]) for each in layer.passes)
        assert part.counters["computed"] == words * layer.row_tiles
        machine.run_part(number)


@given(programs())
@settings(max_examples=60, deadline=None)
def test_computed_words_are_those_that_are_fetched(case: tuple[Program, npt.NDArray[np.uint8]]) -> None:
    program, images = case
    assert_computed_words_are_those_that_are_fetched(program, images[: program.batch])


def test_lanes_without_a_channel_stay_dark() -> None:
    """Whatever the code of rank 0: a granule of dark channels is skipped."""
    spec = dataclasses.replace(RICH, zero_skip="skip")
    layers = [conv(5, 1, output_planes=1, code_table=(1, 0)), conv(3, 1), linear(3)]
    program = random_program(np.random.default_rng(0), spec, layers, in_shape=(1, 6, 6))
    thresholds = np.full_like(program.thresholds, 1 << (spec.accumulator_width - 1))
    thresholds[:, ::2] = 0
    program = dataclasses.replace(program, thresholds=thresholds)  # rank 1: code 0
    assert_computed_words_are_those_that_are_fetched(program, np.full((1, 1, 6, 6), 255, np.uint8))
    [run] = golden.execute(program, np.full((1, 1, 6, 6), 255, np.uint8))
    assert run.layers[1].counters["computed"] == 0
    thresholds[:, ::2] = THRESHOLD_NEGATE
    program = dataclasses.replace(program, thresholds=thresholds)  # rank 0
    [run] = golden.execute(program, np.full((1, 1, 6, 6), 255, np.uint8))
    assert run.layers[1].counters["computed"] > 0


@pytest.mark.parametrize("zero_skip", ["off", "gate", "skip"])
def test_totals_are_the_sums_of_the_parts(zero_skip: Any) -> None:
    rng = np.random.default_rng(0)
    spec = dataclasses.replace(preset("demo"), zero_skip=zero_skip)
    program = random_program(rng, spec, [conv(20, 3, pool=2), linear(10)], in_shape=(1, 8, 8), batch=2)
    runs = golden.execute(program, random_images(rng, program, 3), trace=(0, 1))
    assert [len(run.accumulators) for run in runs] == [2, 1]
    for run in runs:
        assert tuple(run.counters) == COUNTERS
        assert run.cycles == run.counters["cycles"] == sum(part.end - part.start for part in run.layers)
        for name in COUNTERS[1:]:
            assert run.counters[name] == sum(part.counters[name] for part in run.layers)
        assert run.writes is not None
        for index, part in enumerate(run.layers):
            writes = run.writes[index]
            assert len(writes) == part.counters["writes"]
            assert part.start < writes[0, 0]
            assert writes[-1, 0] < part.end
            assert part.account is not None
            assert sum(part.account.values()) == (part.end - part.start) * spec.rows * spec.columns * spec.lanes
            if zero_skip != "skip":
                assert part.counters["skipped"] == 0
            if zero_skip == "off":
                assert part.counters["gated"] == 0
        results = runs_values(program, run)
        np.testing.assert_array_equal(np.sort(run.writes[1][:, 3]), np.sort(results))


def runs_values(program: Program, run: Any) -> npt.NDArray[np.int64]:
    """All raw results of a run, those of the black images that fill it up included."""
    black = golden.execute(program, np.zeros((1, 1, 8, 8), np.uint8), cycles=False)[0].accumulators
    missing = program.batch - len(run.accumulators)
    return np.concatenate([run.accumulators, *[black] * missing]).reshape(-1)


@given(programs())
@settings(max_examples=40, deadline=None)
def test_traced_writes_give_the_memory(case: tuple[Program, npt.NDArray[np.uint8]]) -> None:
    """Replayed, the writes of all parts leave in the memories what the bit-serial machine leaves there."""
    program, images = case
    spec = program.spec
    machine, replayed = Machine(program), Machine(program)
    [run, *_] = golden.execute(program, images, trace=range(len(program.parsed)))
    machine.run(images[: program.batch])
    replayed.load(images[: program.batch])
    assert run.writes is not None
    for number, layer in enumerate(program.parsed):
        rows = run.writes[number]
        assert (np.diff(rows[:, 0]) >= 0).all()
        ended = 0
        for _, raw, position, data in rows.tolist():
            if raw:
                replayed.results[position] = data
                continue
            # Which row tile it is follows from the order: a tile after the other in each group, planes at once.
            first = (position - layer.output_base) % len(machine.activations)
            tile = first % layer.output_plane_stride % layer.output_granules // spec.derived.tile_granules
            granules = min(spec.derived.tile_granules, granules_of(layer.channels - tile * spec.rows))
            for granule in range(granules):
                replayed.activations[(position + granule) % len(machine.activations)] = data >> 4 * granule & 15
            assert data >> 4 * granules == 0
            ended += 1
    np.testing.assert_array_equal(machine.activations, replayed.activations)
    np.testing.assert_array_equal(machine.results, replayed.results)


def test_results_do_not_depend_on_how_images_are_grouped() -> None:
    rng = np.random.default_rng(0)
    program = random_program(rng, SPEC, [conv(5, 3), linear(3)], in_shape=(2, 5, 5))
    images = random_images(rng, program, 9)
    together = np.concatenate([run.accumulators for run in golden.execute(program, images, cycles=False)])
    groups = [stages[-1] for stages in golden.network_values(program, images, at_once=4)]
    assert [len(group) for group in groups] == [4, 4, 1]
    np.testing.assert_array_equal(together, np.concatenate(groups).reshape(9, 3))


def test_runs_do_not_depend_on_each_other() -> None:
    rng = np.random.default_rng(0)
    program = random_program(rng, preset("demo"), [conv(20, 3, pool=2), linear(10)], in_shape=(1, 8, 8))
    images = random_images(rng, program, 300)
    together = golden.execute(program, images, trace=(0,))
    for number in (0, 7, 299):
        [alone] = golden.execute(program, images[number : number + 1], trace=(0,))
        assert (alone.cycles, alone.counters, alone.layers) == (
            together[number].cycles,
            together[number].counters,
            together[number].layers,
        )
        assert alone.writes is not None
        found = together[number].writes
        assert found is not None
        np.testing.assert_array_equal(alone.writes[0], found[0])


# Programs that no compiler writes


def rewritten(program: Program, part: int, **changes: int) -> Program:
    """The Program with other fields in one descriptor."""
    layers = list(program.parsed)
    layers[part] = dataclasses.replace(layers[part], fields=dict(layers[part].fields) | changes)
    return dataclasses.replace(program, descriptors=np.concatenate([layer.encode(program.spec) for layer in layers]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_position": 7}, "start_position is 7"),
        ({"tap_y_step": 1}, "tap_y_step is 1"),
        ({"input_plane_stride": 1}, "input_plane_stride is 1"),
        ({"input_height": 2}, "input has 2 rows"),
        ({"pool_x_step": 5}, "pool_x_step is 5, no multiple"),
        ({"run_granules": 3, "window_length": 1}, "runs hold 3 granules"),
        ({"activation_planes": 1, "passes": 2}, "1 planes"),
        ({"output_granules": 3}, "output_granules is 3"),
        ({"row_tiles": 3}, "3 row tiles for 7 channels"),
    ],
)
def test_layers_that_do_not_read_what_was_written_are_refused(changes: dict[str, int], message: str) -> None:
    rng = np.random.default_rng(0)
    layers = [conv(8, 1), conv(7, 2, pool=2), linear(3)]
    program = random_program(rng, SPEC, layers, in_shape=(1, 6, 6))
    if "passes" in changes:
        layer = program.parsed[1]
        kept = tuple(entry for entry in layer.passes if entry.plane == 0)
        program = dataclasses.replace(
            program,
            descriptors=np.concatenate(
                [
                    dataclasses.replace(
                        each,
                        fields=dict(each.fields) | (changes if each is layer else {}),
                        passes=kept if each is layer else each.passes,
                    ).encode(SPEC)
                    for each in program.parsed
                ]
            ),
        )
    else:
        program = rewritten(program, 1, **changes)
    with pytest.raises(BitwrightError, match=rf"'layer1'.*{message}"):
        reader.read_layers(program)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_base": 0}, "residual goes to"),
        ({"residual_x_step": 3}, "residual_x_step is 3"),
        ({"residual_y_step": 13}, "residual_y_step is 13"),
        ({"residual_plane_stride": 3}, "residual_plane_stride is 3"),
    ],
)
def test_residuals_that_are_not_there_are_refused(changes: dict[str, int], message: str) -> None:
    program = random_program(np.random.default_rng(0), SPEC, RESIDUAL, in_shape=(2, 6, 5), batch=2)
    with pytest.raises(BitwrightError, match=rf"'layer2'.*{message}"):
        reader.read_layers(rewritten(program, 2, **changes))


def test_a_layer_that_overwrites_what_is_needed_is_refused() -> None:
    program = random_program(np.random.default_rng(0), SPEC, RESIDUAL, in_shape=(2, 6, 5), batch=2)
    first, second = program.parsed[:2]
    broken = rewritten(program, 1, output_base=first.output_base)
    start = broken.parsed[2].start_position - second.output_base + first.output_base
    broken = rewritten(broken, 2, start_position=start)
    with pytest.raises(BitwrightError, match=r"'layer1'.* of 'layer0' has been overwritten by 'layer1'"):
        reader.read_layers(broken)


def test_a_layer_that_reads_a_later_one_is_refused() -> None:
    program = random_program(np.random.default_rng(0), SPEC, [conv(4), linear(3)], in_shape=(1, 4, 4))
    infos = (dataclasses.replace(program.layers[0], source=1), program.layers[1])
    with pytest.raises(BitwrightError, match=r"'layer0'.*reads codes of layer 1"):
        reader.read_layers(dataclasses.replace(program, layers=infos))


def test_weights_streamed_over_those_in_use_are_refused() -> None:
    spec = dataclasses.replace(SPEC, weight_stream=True, weight_depth=32)
    layers = [conv(20, 3, padding=1), conv(7, 3)]
    program = random_program(np.random.default_rng(0), spec, layers, in_shape=(2, 7, 7))
    first, second = program.parsed[:2]
    assert second.stream_words
    with pytest.raises(BitwrightError, match=r"'layer0'.*weights are not all there"):
        reader.read_layers(rewritten(program, 1, weight_base=first.weight_base))
    with pytest.raises(BitwrightError, match=r"'layer0'.*weights are not all there"):
        reader.read_layers(rewritten(program, 0, weight_tile_stride=first.weight_tile_stride + 1))


def test_any_list_of_passes_is_computed() -> None:
    """Passes need not be every pair of planes: what each plane counts is added up."""
    rng = np.random.default_rng(0)
    program = random_program(rng, SPEC, [linear(3)], in_shape=(1, 4, 4), input_bits=2)
    layer = program.parsed[0]
    for passes in (layer.passes[::-1], (*layer.passes[1:], layer.passes[1])):
        changed = dataclasses.replace(layer, passes=passes).encode(SPEC)
        assert_equal_to_bit_serial(dataclasses.replace(program, descriptors=changed), random_images(rng, program, 3))


def test_thresholds_that_begin_inside_a_tree_are_refused() -> None:
    program = random_program(np.random.default_rng(0), SPEC, [conv(4, 1), linear(3)], in_shape=(1, 2, 2))
    descriptors = program.descriptors.copy()
    word, bit = FIELD_PLACES["threshold_base"]
    descriptors[word] |= 1 << bit
    with pytest.raises(BitwrightError, match=r"'layer0'.*threshold_base is 1, expected a multiple of 4"):
        reader.read_layers(dataclasses.replace(program, descriptors=descriptors))


def test_images_of_another_shape_are_named_as_given() -> None:
    program = random_program(np.random.default_rng(0), SPEC, [linear(3)], in_shape=(1, 2, 2), batch=2)
    with pytest.raises(BitwrightError, match=r"shape \(3, 1, 2, 3\), expected \(images, 1, 2, 2\)"):
        golden.execute(program, np.zeros((3, 1, 2, 3), np.uint8))


def test_images_are_needed() -> None:
    program = random_program(np.random.default_rng(0), SPEC, [linear(3)], in_shape=(1, 2, 2))
    with pytest.raises(BitwrightError, match="no images"):
        golden.execute(program, np.zeros((0, 1, 2, 2), np.uint8))
