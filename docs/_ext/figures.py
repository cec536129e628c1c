"""Pictures of the documentation, each drawn from what it shows when the documentation is built."""

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw import isa
from bitwright.hw.planner import plan
from bitwright.hw.program import Program
from bitwright.hw.shapes import LayerShape
from bitwright.sim import diagram
from bitwright.sim.backends.probes import watch
from bitwright.sim.trace import trace

ARRAY = isa.ArraySpec(
    rows=4,
    columns=4,
    lanes=32,
    columns_per_copy=2,
    drain_planes=1,
    residual=False,
    accumulator_width=16,
    activation_depth=256,
    window_depth=64,
    weight_depth=256,
    threshold_depth=128,
    descriptor_depth=128,
    result_depth=64,
    row_tiles_max=8,
    zero_skip="skip",
)
"""Array of the example: small enough for Amaranth's simulator."""


@cache
def example() -> tuple[Program, npt.NDArray[np.uint8]]:
    """A convolution of 12 channels and a linear layer, with random weights, and a dark image of 8 channels."""
    layers = [
        LayerShape(
            name="convolution",
            kind="conv",
            in_shape=(8, 4, 4),
            out_channels=12,
            kernel=(3, 3),
            padding=(1, 1),
            weight_bits=2,
            output_planes=2,
        ),
        LayerShape(name="classifier", kind="linear", in_shape=(12, 4, 4), out_channels=4, weight_bits=2),
    ]
    rng = np.random.default_rng(1)
    planned = plan(layers, ARRAY, input_bits=2)
    weights = [rng.integers(-2, 2, (12, 8, 3, 3)), rng.integers(-2, 2, (4, 192))]
    thresholds = np.sort(rng.integers(-40, 10, (12, 3)), axis=1)
    program = planned.assemble(
        weights,
        [(thresholds, np.zeros(12, np.uint8)), (np.zeros((4, 0), np.int64), np.zeros(4, np.uint8))],
        output_scale=np.ones(4),
        output_offset=np.zeros(4),
    )
    images = rng.integers(0, 256, (1, 8, 4, 4)) * (rng.random((1, 8, 4, 4)) < 0.06)
    return program, images.astype(np.uint8)


def figure(svg: str, caption: str) -> str:
    """Picture and caption, for a page in Markdown."""
    content = f"{svg}<figcaption>{caption}</figcaption>"
    return f'```{{raw}} html\n<figure style="margin: 1.5rem 0">{content}</figure>\n```\n'


def array(name: str) -> str:
    """Structure of a preset."""
    return figure(diagram.array_svg(isa.preset(name)), f"The array <code>{name}</code>. Drawn from its parameters.")


@cache
def probe() -> dict[str, Any]:
    """What the simulated hardware shows on its probe."""
    return watch(*example())


def excerpt() -> tuple[int, int]:
    """Cycles of the example that are shown from near: the last ones of its first layer."""
    layer = next(each for each in trace(*example()).slices if each.track == "layers")
    return layer.end - 72, layer.end


def timing() -> str:
    """Signals of the probe over some cycles of the example."""
    first, end = excerpt()
    waves = diagram.probe_waves(probe(), first, end)
    return figure(
        diagram.waves_svg(waves, "Signals of the probe", first),
        f"The last pixel groups of a convolution on an array of {ARRAY.rows} × {ARRAY.columns} PEs of {ARRAY.lanes} "
        "lanes: signals of the probe, from a simulation of the hardware.",
    )


def timeline() -> str:
    """Timeline of the example."""
    return figure(
        diagram.trace_svg(trace(*example())),
        "The whole run of the same example, as <code>bitwright simulate --trace</code> writes it.",
    )


def excerpt_figure() -> str:
    """Timeline of the cycles that the timing diagram shows."""
    return figure(
        diagram.trace_svg(trace(*example()), *excerpt()),
        "The cycles of the timing diagram, on the timeline: row tiles in a group, passes in a row tile.",
    )
