"""Quantization methods, one file each; :data:`METHODS` knows them by name.

A new method is a file with a ``METHOD``, and its name in the list below.
"""

from difflib import get_close_matches

from bitwright.hw.errors import BitwrightError
from bitwright.sw.quantizers import (
    binaryconnect,
    bwn,
    clustering,
    direct,
    dorefa,
    fp4,
    fp8,
    fpnn,
    lqnets,
    mx,
    nf4,
    qnn,
    sign,
    twn,
)
from bitwright.sw.quantizers.base import ActivationQuantizer, Boundary, ImageInput, WeightCodes, WeightQuantizer
from bitwright.sw.quantizers.registry import Method

__all__ = [
    "METHODS",
    "ActivationQuantizer",
    "Boundary",
    "ImageInput",
    "Method",
    "WeightCodes",
    "WeightQuantizer",
    "method",
]

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        fpnn,
        qnn,
        sign,
        binaryconnect,
        bwn,
        twn,
        dorefa,
        lqnets,
        direct,
        clustering,
        nf4,
        fp4,
        fp8,
        mx,
    )
}

EARLIER_NAMES = {"fixed": "fpnn"}
"""Names that configurations of earlier runs have."""


def method(name: str) -> Method:
    """Quantization method of a name."""
    name = EARLIER_NAMES.get(name, name)
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(METHODS)}."
        raise BitwrightError(f"Unknown quantization method {name!r}; {hint}")
    return METHODS[name]
