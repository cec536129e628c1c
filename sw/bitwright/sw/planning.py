"""Codebooks of weights, handed to the array that decodes them, where that shortens its stream of weights.

Methods such as NF4 number their integers, and the shapes of such layers carry these as a codebook. It is used only on
an array with ``codebook_bits`` whose weights do not fit and are streamed in: the stream then holds indices, and what is
computed stays the same. In all other cases the weights are integers like any others.
"""

from collections.abc import Sequence
from dataclasses import replace

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.plan import Plan
from bitwright.hw.planner import plan
from bitwright.hw.shapes import LayerShape


def plan_weights(
    shapes: Sequence[LayerShape], spec: ArraySpec, *, input_bits: int, batch: int = 1, image_bits: int | None = None
) -> Plan:
    """Plan a network as :func:`bitwright.hw.planner.plan` does, with the codebooks that are worth it.

    Parameters
    ----------
    shapes
        Layers in order; a codebook is an offer, which the array need not be able to take.
    spec, input_bits, batch, image_bits
        As there.

    Raises
    ------
    BitwrightError
        If a layer does not fit.
    """
    integers = [replace(shape, codebook=None) for shape in shapes]
    plain = plan(integers, spec, input_bits=input_bits, batch=batch, image_bits=image_bits)
    if not stream_beats(plain) or not any(decodable(shape, spec) for shape in shapes):
        return plain
    chosen = [shape if decodable(shape, spec) else other for shape, other in zip(shapes, integers, strict=True)]
    try:
        coded = plan(chosen, spec, input_bits=input_bits, batch=batch, image_bits=image_bits)
    except BitwrightError:  # weights that stay on chip leave less room for parts, which may take too many descriptors
        return plain
    return min(coded, plain, key=stream_beats)


def decodable(shape: LayerShape, spec: ArraySpec) -> bool:
    """Tell whether a layer has a codebook that the array can decode, with indices shorter than its integers."""
    codebook = shape.stored_codebook
    if codebook is None or len(codebook) > 1 << spec.codebook_bits:
        return False
    return (len(codebook) - 1).bit_length() < shape.stored_encoding[1]


def stream_beats(planned: Plan) -> int:
    """Beats of 32 bits that stream in during each run, tables of codebooks included."""
    return sum(layer.stream_beats(planned.spec) for layer in planned.descriptors)
