"""Images of more bits than the array's activations: split into digits, which the first layer reads as channels.

An M-bit code is ``Σ_n 2^(Q n) d_n`` in digits ``d_n`` of Q bits, ``D = ceil(M / Q)`` of them, and so::

    Σ w * code = Σ_n Σ (2^(Q n) w) * d_n

is a layer of D times as many input channels, whose weights are repeated with a factor: the multi-precision first layer
of QNNs (Moons et al., Embedded Deep Learning, chapter 3). Accumulators are the same, and with them thresholds.

A bit-serial array needs none of this where its activations may have M planes: the planes are the digits. It pays W * M
passes over the words of a window then, W being the planes of a weight; split it pays ``(W + Q (D - 1)) * Q``, over more
words unless lanes were idle. With 8 bits and weights of at most 8 planes that is never fewer; with fewer bits and idle
lanes it may be. :func:`input_costs` says what a network's first layer costs either way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec, Encoding, has_coefficients
from bitwright.hw.plan import Plan
from bitwright.hw.shapes import LayerShape
from bitwright.sim.energy import estimate_plan, plan_activity
from bitwright.sw.planning import plan_weights

SIGNED_BITS: dict[Encoding, int] = {"unsigned": 1, "signed": 0, "bipolar": 1, "odd": 1, "ternary": 0}
"""Bits that the integers of an encoding take in two's complement, beyond its planes."""


def digits_of(image_bits: int, digit_bits: int) -> int:
    """Give the number of digits of a code."""
    return -(-image_bits // digit_bits)


def split_shape(shape: LayerShape, image_bits: int, digit_bits: int) -> LayerShape:
    """Give the first layer as it reads digits instead of codes.

    Raises
    ------
    BitwrightError
        If its weights have coefficients.
    """
    if has_coefficients(shape.weight_encoding):
        raise BitwrightError(
            f"Layer {shape.name!r} has weights with a basis, which digits of an image of {image_bits} bits do not "
            f"multiply; choose an array with activation_planes_max = {image_bits}, or other weights."
        )
    digits = digits_of(image_bits, digit_bits)
    shift = digit_bits * (digits - 1)
    channels, height, width = shape.in_shape
    return replace(
        shape,
        in_shape=(channels * digits, height, width),
        weight_encoding="signed",
        weight_bits=shape.weight_bits + SIGNED_BITS[shape.weight_encoding] + shift,
        codebook=None,  # each integer becomes as many as there are digits
    )


def split_weights(
    integers: npt.NDArray[np.integer[Any]], shape: LayerShape, image_bits: int, digit_bits: int
) -> npt.NDArray[np.int64]:
    """Give the weights of :func:`split_shape`: each input channel's for its digits, the least significant first.

    Parameters
    ----------
    integers
        Weights as :meth:`bitwright.hw.plan.Plan.assemble` takes them.
    shape
        The layer as it reads codes.
    image_bits, digit_bits
        Bits of a code and of a digit.
    """
    digits = digits_of(image_bits, digit_bits)
    channels = shape.in_shape[0] // shape.groups
    by_channel = integers.astype(np.int64).reshape(len(integers), channels, 1, -1)
    factors = 1 << digit_bits * np.arange(digits)
    split = by_channel * factors[:, None]
    if shape.kind == "linear":
        return split.reshape(len(integers), -1)
    return split.reshape(len(integers), channels * digits, *shape.kernel)


def plan_image(
    shapes: Sequence[LayerShape], spec: ArraySpec, *, input_bits: int, batch: int = 1, digit_bits: int | None = None
) -> Plan:
    """Plan a network whose image may have more bits than the array's activations: it is then split.

    Parameters
    ----------
    shapes, spec, batch
        As in :func:`bitwright.sw.planning.plan_weights`; the first shape reads codes.
    input_bits
        Bits of the image.
    digit_bits
        Bits of a digit; ``input_bits`` or more do not split. None takes as many as the array has planes.

    Raises
    ------
    BitwrightError
        If a layer does not fit.
    """
    digit_bits = spec.activation_planes_max if digit_bits is None else digit_bits
    if digit_bits < 1:
        raise BitwrightError(f"Digits of the image have {digit_bits} bits, expected at least 1.")
    if digit_bits >= input_bits or not shapes:
        return plan_weights(shapes, spec, input_bits=input_bits, batch=batch)
    first = split_shape(shapes[0], input_bits, digit_bits)
    if first.weight_bits > spec.weight_planes_max:
        raise BitwrightError(
            f"Layer {first.name!r} reads an image of {input_bits} bits in digits of {digit_bits}, for which its "
            f"weights take {first.weight_bits} planes, this array has {spec.weight_planes_max} (weight_planes_max); "
            f"give weights or image fewer bits, or choose an array with activation_planes_max = {input_bits}."
        )
    return plan_weights([first, *shapes[1:]], spec, input_bits=digit_bits, batch=batch, image_bits=input_bits)


@dataclass(frozen=True)
class InputCost:
    """What the first layer costs with the image in one form.

    Attributes
    ----------
    digit_bits
        Bits of a digit; those of the image where it is not split.
    weight_planes, words
        Planes of its weights, and words of a window, as the array visits them.
    cycles
        Of the first layer, for one image.
    uj
        Microjoules of the first layer, for one image.
    """

    digit_bits: int
    weight_planes: int
    words: int
    cycles: float
    uj: float


def input_costs(
    shapes: Sequence[LayerShape], spec: ArraySpec, *, input_bits: int, batch: int = 1, table: str = "horowitz45"
) -> list[InputCost]:
    """Estimate the first layer with the image as planes, and as digits of each number of bits, as far as they fit.

    Parameters
    ----------
    shapes, spec, input_bits, batch
        As in :func:`plan_image`.
    table
        Energy table.

    Returns
    -------
    list of InputCost
        By rising bits of a digit; the last one is the image as planes, where the array has so many.

    Raises
    ------
    BitwrightError
        If the network fits in no form; the sentence is about the last one tried.
    """
    costs, refusal = [], None
    for digit_bits in range(1, min(input_bits, spec.activation_planes_max) + 1):
        try:
            planned = plan_image(shapes, spec, input_bits=input_bits, batch=batch, digit_bits=digit_bits)
        except BitwrightError as error:
            refusal = error
        else:
            costs.append(_first_layer(planned, digit_bits, table))
    if refusal is not None and not costs:
        raise refusal
    return costs


def _first_layer(planned: Plan, digit_bits: int, table: str) -> InputCost:
    first = planned.layers[0]
    words = planned.descriptors[0].window_words(planned.spec)
    cycles = plan_activity(planned).layers[0].counters["cycles"] / planned.batch
    uj = estimate_plan(planned, table).by("layer")[first.name,]
    return InputCost(digit_bits, first.weight_bits, words, cycles, uj)
