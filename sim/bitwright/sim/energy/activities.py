"""Activity: what an execution of a network did, or what one run of a planned network would do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import BUS_WIDTH, ArraySpec, Descriptor, granules_of
from bitwright.hw.plan import Plan
from bitwright.hw.program import LayerInfo, Program
from bitwright.sim import timeline
from bitwright.sim.execution import Execution


@dataclass(frozen=True, kw_only=True)
class PartActivity:
    """What one descriptor, of a layer or of some of its row tiles, did, summed over all runs.

    Attributes
    ----------
    counters
        Keys of :data:`bitwright.hw.isa.COUNTERS`.
    account
        Where the cycles went, in bit products, by :data:`bitwright.sim.timeline.ACCOUNT`; empty where it was not
        predicted but measured.
    runs
        How often it was executed: once for each batch.
    """

    descriptor: Descriptor
    counters: Mapping[str, int]
    account: Mapping[str, int]
    runs: int


@dataclass(frozen=True, kw_only=True)
class LayerActivity:
    """What one layer did, by its descriptors."""

    info: LayerInfo
    parts: tuple[PartActivity, ...]

    @cached_property
    def counters(self) -> dict[str, int]:
        """Sums over the parts; keys of :data:`bitwright.hw.isa.COUNTERS`."""
        return _sums([part.counters for part in self.parts])

    @cached_property
    def account(self) -> dict[str, int]:
        """Sums over the parts; keys of :data:`bitwright.sim.timeline.ACCOUNT`."""
        return _sums([part.account for part in self.parts])


def _sums(parts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What the whole machine did.

    Attributes
    ----------
    images
        Images classified; the last run may have had room for more.
    cycles
        Of all runs.
    image_words
        Words that the host writes for all images; a last run with fewer images is filled up.
    image_bits
        Bits of one image outside of the chip: codes of its pixels, before any packing.
    results
        Accumulators that the host reads for one image.
    load_bits
        Bits of descriptors, weights, thresholds and coefficients, loaded once; streamed weights are not among them.
    """

    spec: ArraySpec
    layers: tuple[LayerActivity, ...]
    images: int
    cycles: int
    image_words: int
    image_bits: int
    results: int
    load_bits: int


def activity(program: Program, executions: Execution | Sequence[Execution]) -> Activity:
    """Sum the counters of the runs of a Program."""
    runs = [executions] if isinstance(executions, Execution) else list(executions)
    if not runs:
        raise BitwrightError("There is no execution to account for; simulate at least one image.")
    if any([part.layer for part in run.layers] != list(program.parts) for run in runs):
        raise BitwrightError("The executions are not of this Program: their layers differ.")
    return _activity(program, runs, sum(len(run.accumulators) for run in runs))


def plan_activity(network: Plan | Program) -> Activity:
    """Predict one full run of a network of which only shapes and bits are known: no code is taken to be zero."""
    return _activity(network, [timeline.estimate(network)], network.batch)


def _load_bits(network: Plan | Program) -> int:
    """Bits of the memories that are loaded once."""
    spec = network.spec
    if isinstance(network, Program):
        descriptor_words, weight_words = network.descriptors.size, network.weights.shape[1]
        thresholds, coefficients = network.thresholds.shape[1], network.coefficients.shape[1]
    else:
        descriptor_words = sum(descriptor.words for descriptor in network.descriptors)
        weight_words = network.weight_words
        thresholds, coefficients = network.threshold_entries, network.coefficient_entries
    row = weight_words * spec.lanes + thresholds * spec.accumulator_width
    row += coefficients * spec.coefficient_bits
    return descriptor_words * BUS_WIDTH + spec.rows * row


def _activity(network: Plan | Program, runs: Sequence[Execution], images: int) -> Activity:
    """Sum over runs."""
    if isinstance(network, Program):
        numbers, descriptors = network.parts, network.parsed
    else:
        numbers, descriptors = [part.layer for part in network.parts], network.descriptors
    parts: list[list[PartActivity]] = [[] for _ in network.layers]
    for index, (number, descriptor) in enumerate(zip(numbers, descriptors, strict=True)):
        each = [run.layers[index] for run in runs]
        counters = {"cycles": sum(part.end - part.start for part in each)}
        counters |= _sums([part.counters for part in each])
        account = _sums([part.account or {} for part in each])
        parts[number].append(PartActivity(descriptor=descriptor, counters=counters, account=account, runs=len(runs)))
    image = network.input
    height, width, channels = image.stored_shape
    granules = (image.bits - 1) * image.plane_stride + network.batch * height * width * granules_of(channels)
    return Activity(
        spec=network.spec,
        layers=tuple(
            LayerActivity(info=info, parts=tuple(each)) for info, each in zip(network.layers, parts, strict=True)
        ),
        images=images,
        cycles=sum(run.cycles for run in runs),
        image_words=math.ceil(granules / network.spec.derived.granules) * len(runs),
        image_bits=image.channels * image.height * image.width * image.digits * image.bits,
        results=network.layers[-1].conv_shape[0],
        load_bits=_load_bits(network),
    )
