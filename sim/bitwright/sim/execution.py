"""What one run of the machine gives, predicted or measured."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass
class LayerExecution:
    """One part of a run: what one descriptor computed, which is a layer or some of its row tiles.

    Parameters
    ----------
    name
        Of the layer.
    layer
        Number of the layer in the network.
    start, end
        Cycles, counted from the start of the run: of the first cycle of the part and of the one after its last.
    counters
        The part's own share of every counter of ``isa.COUNTERS`` but ``cycles``, which is ``end - start``.
    account
        Predicted runs only: where the cycles went, by the names of ``timeline.ACCOUNT``, in bit products that the array
        could have computed: ``rows · columns · lanes`` of them a cycle. The entries sum up to all of ``end - start``.
    """

    name: str
    layer: int
    start: int
    end: int
    counters: dict[str, int]
    account: dict[str, int] | None = None


@dataclass
class Execution:
    """One run: one batch of images through all layers.

    Parameters
    ----------
    accumulators
        Raw results of the last layer, ``int64``, shape (images, results of an image).
    cycles
        Cycles of the run; 0 where only values were asked for.
    counters
        Totals, one for each of ``isa.COUNTERS``.
    layers
        One entry a descriptor.
    writes
        For each traced descriptor, by its number, ``int64`` of shape (writes, 4): cycle, raw, position or address of a
        raw result, data. The data are the row tile's bits of one plane, row 0 in bit 0, or a raw result.
    codes
        Output codes of each layer but the last, ``uint8`` of shape (images, channels, height, width), if asked for.
    """

    accumulators: npt.NDArray[np.int64]
    cycles: int
    counters: dict[str, int]
    layers: list[LayerExecution]
    writes: dict[int, npt.NDArray[np.int64]] | None = None
    codes: list[npt.NDArray[np.uint8]] | None = None
