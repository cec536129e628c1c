"""Hypothesis strategies for arrays and networks; each example is a small Program with its images."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import assume
from hypothesis import strategies as st

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.program import Program
from programs import conv, linear, random_images, random_program

ENCODINGS = ("signed", "bipolar", "odd", "ternary")


def specs() -> st.SearchStrategy[ArraySpec]:
    """Small arrays: any shape, word length, zero skip and accumulators narrow enough to wrap."""
    return st.builds(
        ArraySpec,
        rows=st.integers(1, 9),
        columns=st.integers(1, 5),
        lanes=st.sampled_from([32, 64, 96]),
        accumulator_width=st.integers(8, 24),
        activation_depth=st.just(4096),
        weight_depth=st.just(4096),
        threshold_depth=st.just(2048),
        descriptor_depth=st.just(1024),
        window_words_max=st.just(64),
        row_tiles_max=st.just(16),
        zero_skip=st.sampled_from(["off", "gate", "skip"]),
    )


@st.composite
def weights(draw: st.DrawFn) -> dict[str, Any]:
    """Encoding and bits of a layer's weights."""
    encoding = draw(st.sampled_from(ENCODINGS))
    bits = {"bipolar": 1, "ternary": 2}.get(encoding) or draw(st.integers(1, 4))
    return {"weight_encoding": encoding, "weight_bits": bits, "output_planes": draw(st.integers(1, 4))}


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """A convolution with any kernel, stride, padding, dilation and pooling."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    pool = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 3), (1, 2)]))
    return conv(
        draw(st.integers(1, 11)),
        draw(pairs),
        stride=draw(pairs),
        padding=draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=draw(st.sampled_from([1, 1, 1, 2])),
        pool=pool,
        pool_stride=draw(st.sampled_from([pool, (2, 2)])) if pool != (1, 1) else (1, 1),
        **draw(weights()),
    )


@st.composite
def programs(
    draw: st.DrawFn, arrays: st.SearchStrategy[ArraySpec] | None = None
) -> tuple[Program, npt.NDArray[np.uint8]]:
    """A Program of one to three layers and images for up to two of its runs."""
    layers = draw(st.lists(convolutions(), max_size=2))
    if draw(st.booleans()) or not layers:
        layers.append(linear(draw(st.integers(1, 11)), **draw(weights())))
    layers[-1] |= {"pool": (1, 1)}
    spec = draw(specs() if arrays is None else arrays)
    in_shape = draw(st.tuples(st.sampled_from([1, 3, 40]), st.integers(2, 7), st.integers(2, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch = draw(st.integers(1, 3))
    bits = draw(st.integers(1, spec.activation_planes_max))
    try:
        program = random_program(rng, spec, layers, in_shape=in_shape, input_bits=bits, batch=batch)
    except BitwrightError:
        assume(False)
        raise
    return program, random_images(rng, program, draw(st.integers(1, 2 * batch)))
