"""What one run of the machine gives, predicted or measured."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass
class LayerExecution:
    """One layer of a run.

    Parameters
    ----------
    name
        Of the layer.
    start, end
        Cycles, counted from the start of the run: of the first cycle of the layer and of the one after its last.
    counters
        The layer's own share of every counter of ``isa.COUNTERS`` but ``cycles``, which is ``end - start``.
    """

    name: str
    start: int
    end: int
    counters: dict[str, int]


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
        One entry a layer.
    writes
        For each traced layer ``int64`` of shape (writes, 5): cycle, raw, address, slot, data. The data are the row
        tile's bits of one plane, row 0 in bit 0, or a raw result.
    codes
        Output codes of each layer but the last, ``uint8`` of shape (images, channels, height, width), if asked for.
    """

    accumulators: npt.NDArray[np.int64]
    cycles: int
    counters: dict[str, int]
    layers: list[LayerExecution]
    writes: dict[int, npt.NDArray[np.int64]] | None = None
    codes: list[npt.NDArray[np.uint8]] | None = None
