"""Hypothesis strategies for arrays and networks; each example is a small Program with its images."""

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import assume
from hypothesis import strategies as st

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import (
    BANK,
    DOUBLES_MAX,
    GRANULE,
    ArraySpec,
    Descriptor,
    Encoding,
    Pass,
    descriptor_fields,
    has_coefficients,
    split_planes,
)
from bitwright.hw.plan import Plan
from bitwright.hw.planner import plan
from bitwright.hw.program import Program
from programs import conv, linear, random_images, random_program, shapes, with_dense

ENCODINGS = ("signed", "bipolar", "odd", "ternary", "unsigned")


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    """Small arrays: any shape, word length, zero skip and option, and accumulators narrow enough to wrap."""
    rows, lanes = draw(st.sampled_from([4, 8, 12, 20])), draw(st.sampled_from([32, 32, 64, 128]))
    columns_per_copy = draw(st.sampled_from([1, 1, 2, 3]))
    columns = columns_per_copy * draw(st.integers(1, 4 // columns_per_copy))
    banks = -(-(rows + BANK - GRANULE) // BANK)
    weight_stream = draw(st.sampled_from([False, True]))
    codebook_bits = draw(st.sampled_from([0, 1, 2, 3, 4])) if weight_stream else 0
    return ArraySpec(
        rows=rows,
        columns=columns,
        lanes=lanes,
        columns_per_copy=columns_per_copy,
        accumulator_width=draw(st.integers(8, 24)),
        coefficient_bits=draw(st.sampled_from([0, 0, 3, 8])),
        drain_planes=draw(st.sampled_from([planes for planes in (1, 2, 4) if banks * planes <= lanes // BANK])),
        pipelined=columns % 2 == 0 and draw(st.booleans()),
        residual=draw(st.booleans()),
        weight_stream=weight_stream,
        codebook_bits=codebook_bits,
        activation_depth=4096,
        window_depth=256,
        weight_depth=draw(st.sampled_from([8, 16, 64])) if weight_stream else 4096,
        threshold_depth=2048,
        coefficient_depth=2048,
        descriptor_depth=2048,
        result_depth=1024,
        row_tiles_max=16,
        zero_skip=draw(st.sampled_from(["off", "gate", "skip"])),
    )


@st.composite
def weights(draw: st.DrawFn, spec: ArraySpec) -> dict[str, Any]:
    """Encoding and bits of a layer's weights, and of its output."""
    bases = ("basis", "bipolar_basis") if spec.coefficient_bits else ()
    encoding = draw(st.sampled_from(ENCODINGS + bases))
    bits = {"bipolar": 1, "ternary": 2}.get(encoding) or draw(st.integers(1, 4))
    planes = draw(st.integers(1, 4))
    options: dict[str, Any] = {"weight_encoding": encoding, "weight_bits": bits, "output_planes": planes}
    if draw(st.booleans()):
        options["zero_planes"] = draw(st.tuples(st.integers(0, 15), st.sampled_from([0, 0, spec.rows])))
    if spec.coefficient_bits and draw(st.booleans()):
        options["code_table"] = tuple(draw(st.permutations(range(1 << planes))))
    if spec.codebook_bits and draw(st.booleans()):
        options["codebook"] = draw(codebooks(spec, encoding, bits))
    return options


def integers(encoding: Encoding, bits: int) -> list[int]:
    """All integers of an encoding."""
    found: list[int] = []
    for value in range(-(1 << bits), 1 << bits):
        with contextlib.suppress(BitwrightError):
            split_planes(np.array(value), encoding, bits)
            found.append(value)
    return found


@st.composite
def codebooks(draw: st.DrawFn, spec: ArraySpec, encoding: Encoding, bits: int) -> tuple[int, ...]:
    """Integers of an encoding, in any order, as many as an array decodes, or fewer."""
    entries = st.lists(st.sampled_from(integers(encoding, bits)), min_size=1, max_size=1 << spec.codebook_bits)
    return tuple(draw(entries))


@st.composite
def convolutions(
    draw: st.DrawFn, spec: ArraySpec, channels: int, earlier: list[tuple[int, int, int]]
) -> dict[str, Any]:
    """A convolution with any kernel, stride, padding, dilation and pooling, with groups or a residual addend.

    Parameters
    ----------
    spec
        Array.
    channels
        Of its input.
    earlier
        (channels, height, width) of the output of each layer before it.
    """
    if earlier and spec.residual and draw(st.booleans()):
        return draw(_residual(spec, earlier))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    pool = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 3), (1, 2)]))
    options = draw(weights(spec))
    out_channels = draw(st.integers(1, 26))
    if draw(st.booleans()):
        groups = draw(st.sampled_from([count for count in range(1, channels + 1) if channels % count == 0]))
        out_channels = groups * draw(st.integers(1, max(1, 16 // groups)))
        options |= {"groups": groups}
        assume(groups == 1 or options["weight_encoding"] != "bipolar_basis")
    return conv(
        out_channels,
        draw(pairs),
        stride=draw(pairs),
        padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=draw(st.sampled_from([1, 1, 1, 2, (1, 2), (3, 1)])),
        pool=pool,
        pool_stride=draw(st.sampled_from([pool, (2, 2)])) if pool != (1, 1) else (1, 1),
        **options,
    )


@st.composite
def _residual(draw: st.DrawFn, spec: ArraySpec, earlier: list[tuple[int, int, int]]) -> dict[str, Any]:
    """A convolution over the last layer that keeps or halves its image, and adds a layer that fits."""
    _, height, width = earlier[-1]
    stride = draw(st.integers(1, 2))
    size = (-(-height // stride), -(-width // stride))
    fits = [
        (number, (down, across))
        for number, (_, rows, columns) in enumerate(earlier)
        for down in (1, 2)
        for across in (1, 2)
        if (-(-rows // down), -(-columns // across)) == size
    ]
    source, steps = draw(st.sampled_from(fits))
    options = draw(weights(spec))
    encoding = draw(st.sampled_from(["signed", "ternary", "unsigned"]))
    residual = {
        "source": source,
        "stride": steps,
        "weight_encoding": encoding,
        "weight_bits": 2 if encoding == "ternary" else draw(st.integers(1, 3)),
        "shift": 0 if has_coefficients(options["weight_encoding"]) else draw(st.integers(0, 3)),
    }
    kernel = draw(st.sampled_from([1, 3]))
    return conv(draw(st.integers(1, 18)), kernel, stride=stride, padding=kernel // 2, residual=residual, **options)


@st.composite
def descriptors(draw: st.DrawFn, spec: ArraySpec) -> Descriptor:
    """Any header that an array accepts, with windows that fit, and passes over their planes."""
    fields = {field.name: draw(st.integers(field.low, field.high)) for field in descriptor_fields(spec)}
    fields |= {"kernel_height": draw(st.integers(1, 3)), "kernel_width": draw(st.integers(1, 3))}
    fields |= {
        "run_granules": draw(st.integers(1, 12)),
        "residual_granules": draw(st.integers(1, 80 if spec.residual else 1)),
    }
    layer = Descriptor(fields=fields, passes=())
    words = layer.plane_words(spec)
    assume(sum(words) <= spec.window_depth)
    fields |= {"window_length": layer.window_words(spec), "residual_length": layer.residual_words(spec)}
    if fields["index_planes"]:
        fields |= {"row_tiles": draw(st.integers(1, 3)), "plain_words": draw(st.integers(0, 9))}
        fields["decoded_planes"] = draw(st.integers(1, spec.weight_planes_max))
        fields["stream_words"] = fields["row_tiles"] * layer.stream_tile_words
        assume(fields["stream_words"] <= spec.weight_depth)
    passes: list[Pass] = []
    for _ in range(draw(st.integers(1, 6))):
        plane = draw(st.integers(0, len(words) - 1))
        doubles = draw(st.integers(0, min(7, DOUBLES_MAX - sum(entry.doubles for entry in passes))))
        passes.append(
            Pass(draw(st.integers(0, (1 << 14) - 1)), plane, sum(words[:plane]), doubles, draw(st.booleans()))
        )
    return Descriptor(fields=fields | {"passes": len(passes)}, passes=tuple(passes))


@dataclass(frozen=True)
class Network:
    """What :func:`programs.random_program` needs, but its weights."""

    spec: ArraySpec
    layers: list[dict[str, Any]]
    in_shape: tuple[int, int, int]
    input_bits: int
    batch: int
    dense: int


@st.composite
def networks(draw: st.DrawFn, arrays: st.SearchStrategy[ArraySpec] | None = None) -> Network:
    """An array and a network of one to four layers; it may not fit."""
    spec = draw(specs() if arrays is None else arrays)
    in_shape = draw(st.tuples(st.sampled_from([1, 3, 4, 40]), st.integers(2, 7), st.integers(2, 7)))
    layers: list[dict[str, Any]] = []
    outputs: list[tuple[int, int, int]] = []
    try:
        for _ in range(draw(st.sampled_from([2, 3, 1, 0]))):
            layers.append(draw(convolutions(spec, (outputs or [in_shape])[-1][0], outputs)))
            outputs.append(shapes(in_shape, layers)[-1].out_shape)
    except BitwrightError:
        assume(False)
    if draw(st.booleans()) or not layers:
        layers.append(linear(draw(st.integers(1, 11)), **draw(weights(spec))))
    layers[-1] = {**layers[-1], "pool": (1, 1), "pool_stride": (1, 1), "code_table": None}
    input_bits, batch = draw(st.integers(1, spec.activation_planes_max)), draw(st.integers(1, 3))
    return Network(spec, layers, in_shape, input_bits, batch, draw(st.sampled_from([0, 0, 1, 2, 5, -1])))


def planned(network: Network) -> Plan:
    """Plan of a network that fits."""
    try:
        layers = shapes(network.in_shape, network.layers)
        found = plan(layers, network.spec, input_bits=network.input_bits, batch=network.batch)
        return with_dense(found, network.dense)
    except BitwrightError:
        assume(False)
        raise


@st.composite
def programs(
    draw: st.DrawFn, arrays: st.SearchStrategy[ArraySpec] | None = None
) -> tuple[Program, npt.NDArray[np.uint8]]:
    """A Program that fits, and images for up to two of its runs."""
    network = draw(networks(arrays))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    try:
        program = random_program(
            rng,
            network.spec,
            network.layers,
            in_shape=network.in_shape,
            input_bits=network.input_bits,
            batch=network.batch,
            dense=network.dense,
        )
    except BitwrightError:
        assume(False)
        raise
    return program, random_images(rng, program, draw(st.integers(1, 2 * network.batch)))
