"""Lowering: from a quantized network to a Program, in exact arithmetic; and the proof of it on images.

The network in float64 agrees with its Program wherever its own rounding errors, some 1e-16 of a value, do not decide:
always, if all scales are powers of two; otherwise unless a value lies on a boundary, as a sum of pixels / 255 that
cancels to 0 does before a sign without bias or batch norm. Layers with a basis are an exception: their coefficients are
rounded to the integers that the hardware multiplies with, and :func:`verify` measures what that changes.

Max pooling before the batch norm selects the greatest value: the greatest code where the batch norm rises, the least
where it falls. After the batch norm it selects the greatest code.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bitwright.hw.isa import ArraySpec, has_coefficients
from bitwright.hw.program import Program
from bitwright.hw.shapes import LayerShape
from bitwright.sim.golden import network_values
from bitwright.sw.digits import plan_image, split_weights
from bitwright.sw.layers import Ints, Shape, input_quantizer, layer_numbers, layer_shape, layer_thresholds
from bitwright.sw.quantizers.basis import BasisActivation
from bitwright.sw.stages import Stage, stages


def lower(
    model: nn.Module,
    spec: ArraySpec,
    in_shape: Shape,
    *,
    batch: int = 1,
    digit_bits: int | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Program:
    """Compile a quantized network for an array.

    The Program computes what ``model.double()`` computes in evaluation mode.

    Parameters
    ----------
    model
        Network from :func:`bitwright.sw.quantize.quantize`, with weights and activations of every layer quantized.
    spec
        Array.
    in_shape
        (channels, height, width) of an image.
    batch
        Images of one run.
    digit_bits
        Bits of the digits that the image is split into (see :mod:`bitwright.sw.digits`). None splits it only where its
        bits are more than the array's planes.
    meta
        What to note in the Program, anything that JSON holds.

    Raises
    ------
    BitwrightError
        If a layer is not quantized, has numbers that are not finite, or does not fit the array; it names the layer.
    """
    network = copy.deepcopy(model).double().eval()
    shapes = layer_shapes(network, in_shape)
    parts = stages(network)
    planned = plan_image(shapes, spec, input_bits=input_quantizer(parts[0]).planes, batch=batch, digit_bits=digit_bits)
    numbers = [layer_numbers(stage, shape, spec) for stage, shape in zip(parts, shapes, strict=True)]
    weights = [each.weights for each in numbers]
    if planned.input.image_bits is not None:
        weights[0] = split_weights(weights[0], shapes[0], planned.input.image_bits, planned.input.bits)
    lines = numbers[-1].lines
    return planned.assemble(
        weights,
        [layer_thresholds(stage, each) for stage, each in zip(parts[:-1], numbers, strict=False)],
        np.array([float(line.gain) for line in lines]),
        np.array([float(line.constant) for line in lines]),
        meta,
        residual_weights=_by_name(shapes, [each.residual for each in numbers]),
        coefficients=_by_name(shapes, [each.coefficients for each in numbers]),
        residual_coefficients=_by_name(shapes, [each.residual_coefficients for each in numbers]),
    )


def _by_name(shapes: Sequence[LayerShape], numbers: Sequence[Ints | None]) -> dict[str, Ints]:
    """Numbers of the layers that have some."""
    return {shape.name: each for shape, each in zip(shapes, numbers, strict=True) if each is not None}


def layer_shapes(model: nn.Module, in_shape: Shape) -> list[LayerShape]:
    """Geometry and precision of a quantized network's layers: what :func:`bitwright.hw.planner.plan` takes.

    Raises
    ------
    BitwrightError
        If a layer is not quantized or does not take the shape that the layer before it, or the image, has.
    """
    shapes: dict[str, LayerShape] = {}
    for stage in stages(model):
        addend = shapes[stage.addend_stage].out_shape if stage.shortcut is not None else None
        shape = layer_shape(stage, in_shape, addend)
        shapes[stage.name] = shape
        in_shape = shape.out_shape
    return list(shapes.values())


# ---------------------------------------------------------------------------------------------------------------------
# Proof on images


@dataclass(frozen=True)
class Verification:
    """Comparison of a Program with its network in float64.

    Parameters
    ----------
    images
        Images compared.
    activations, mismatches
        Activations compared and those that differ, by layer; for the last layer outputs, or, where it has a basis and
        all outputs are rounded, the classes of the images.
    """

    images: int
    activations: dict[str, int]
    mismatches: dict[str, int]


@torch.no_grad()
def verify(
    model: nn.Module,
    program: Program,
    images: npt.NDArray[np.uint8],
    *,
    at_once: int = 128,
    progress: Callable[[int], object] = lambda images: None,
) -> Verification:
    """Compare every activation of a Program with the network that it was lowered from, evaluated in float64.

    Parameters
    ----------
    model
        Network.
    program
        What :func:`lower` made of it.
    images
        ``uint8``, shape (n, channels, height, width).
    at_once
        Images that are computed together.
    progress
        Called with the number of images after each such group.
    """
    network = copy.deepcopy(model).double().eval()
    parts = stages(network)
    codes: list[npt.NDArray[np.int64]] = []

    def keep(stage: Stage) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: codes.append(_codes(stage, inputs[0]))

    for stage in parts[1:]:
        (stage.average or stage.layer).register_forward_pre_hook(keep(stage))
    names = [stage.name for stage in parts]
    compared, mismatches = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for number, found in enumerate(network_values(program, images, at_once=at_once)):
        codes.clear()
        part = images[number * at_once : (number + 1) * at_once]
        outputs = network(torch.tensor(part, dtype=torch.float64)).numpy()
        for name, ours, theirs in zip(names, found[1:], codes, strict=False):
            ours = np.moveaxis(ours, -1, 1).reshape(theirs.shape)
            compared[name] += theirs.size
            mismatches[name] += int(np.count_nonzero(ours != theirs))
        results = found[-1].reshape(outputs.shape)
        # Outputs are floats: the accumulator is right if no other one would be as near.
        margin = np.where(program.output_scale == 0, 1e-9, np.abs(program.output_scale) / 2)
        wrong = np.abs(program.logits(results) - outputs) > margin
        if has_coefficients(program.layers[-1].weight_encoding):
            wrong = program.logits(results).argmax(1) != outputs.argmax(1)
        compared[names[-1]] += wrong.size
        mismatches[names[-1]] += int(np.count_nonzero(wrong))
        progress(len(part))
    return Verification(len(images), compared, mismatches)


def _codes(stage: Stage, values: Tensor) -> npt.NDArray[np.int64]:
    """Codes of the values that enter a layer."""
    source = input_quantizer(stage)
    if isinstance(source, BasisActivation):
        return source.codes_of(values).numpy()
    return torch.round((values - float(source.offset())) / float(source.step())).long().numpy()
