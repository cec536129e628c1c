"""What the tests of the sequencer, the scheduler and the issuer share."""

import dataclasses
from collections.abc import Sequence

from bitwright.hw.isa import ArraySpec

CONTROL = ArraySpec(
    rows=4,
    columns=2,
    lanes=32,
    weight_planes_max=4,
    activation_planes_max=4,
    coefficient_bits=4,
    drain_planes=1,
    weight_stream=True,
    activation_depth=256,
    window_depth=32,
    weight_depth=256,
    threshold_depth=64,
    coefficient_depth=128,
    descriptor_depth=256,
    row_tiles_max=8,
)
RESIDENT_CONTROL = dataclasses.replace(CONTROL, weight_stream=False)


def told(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Lengths as a group has them."""
    return [{"words": length, "some": int(length != 0), "one": int(length == 1)} for length in lengths]


def counted(length: int, extra: int) -> dict[str, int]:
    """Both numbers of an entry, and what the issuer is told of them."""
    told = {"no_word": length == 0, "one_word": length == 1, "no_extra": extra == 0, "one_extra": extra == 1}
    return {"length": length, "extra": extra, **{name: int(value) for name, value in told.items()}}
