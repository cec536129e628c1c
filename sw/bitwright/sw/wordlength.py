"""How many bits do fixed-point coefficients need: networks with bases, lowered for multipliers of several widths."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.sim.golden import execute
from bitwright.sw.layers import Shape
from bitwright.sw.lowering import lower, verify


@dataclass(frozen=True)
class WordLength:
    """What coefficients of some width do to a network.

    Attributes
    ----------
    coefficient_bits
        Bits of a coefficient; None for the network itself, in float64.
    mismatch_rate
        Share of the codes between layers that differ from those of the network, 0..1.
    accuracy
        Share of the images that are classified correctly, 0..1.
    agreement
        Share of the images that are classified as the network does, 0..1.
    """

    coefficient_bits: int | None
    mismatch_rate: float
    accuracy: float
    agreement: float


def measure_word_lengths(
    model: nn.Module,
    spec: ArraySpec,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    widths: Iterable[int] = range(4, 17),
) -> list[WordLength]:
    """Compare a network with its Programs for arrays that differ in ``coefficient_bits``.

    Parameters
    ----------
    model
        Quantized network with a basis in some layer.
    spec
        Array; its accumulators should be wide, as they limit the coefficients too.
    images
        ``uint8``, shape (n, channels, height, width).
    labels
        Classes of the images, shape (n,).
    widths
        Numbers of bits, 2..16.

    Returns
    -------
    list of WordLength
        The network itself, then one entry for each width.

    Raises
    ------
    BitwrightError
        If the network has no basis, or cannot be lowered.
    """
    network = copy.deepcopy(model).double().eval()
    in_shape: Shape = tuple(images.shape[1:])  # pyright: ignore[reportAssignmentType]: three sizes
    with torch.no_grad():
        expected = network(torch.tensor(images, dtype=torch.float64)).argmax(1).numpy()
    measured = [WordLength(None, 0.0, float((expected == labels).mean()), 1.0)]
    for width in widths:
        program = lower(network, replace(spec, coefficient_bits=width), in_shape)
        if not program.coefficients.size:
            raise BitwrightError("The network has no layer with a basis; train it with 'lqnets' or 'direct'.")
        compared = verify(network, program, images)
        between = list(compared.activations)[:-1]  # the last layer's are results, whose units are the coefficients'
        mismatches = sum(compared.mismatches[name] for name in between)
        total = sum(compared.activations[name] for name in between)
        runs = execute(program, images, cycles=False)
        found = program.logits(np.concatenate([run.accumulators for run in runs])).argmax(1)
        rate = mismatches / total if total else 0.0
        measured.append(WordLength(width, rate, float((found == labels).mean()), float((found == expected).mean())))
    return measured
