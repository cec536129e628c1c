"""Analytic model of a parallel platform, in the style of Moons et al.: of a network's shape alone, without events."""

import math
from collections.abc import Iterable

from bitwright.sim.energy.activities import Activity, LayerActivity
from bitwright.sim.energy.reports import EnergyEntry
from bitwright.sim.energy.tables import EnergyTable


def moons_energy(
    macs: float, weights: float, activations: float, bits: int, table: EnergyTable, offchip_words: float = 0
) -> dict[tuple[str, str], tuple[float, float]]:
    """Energy by the analytic model, as (component, event) to (count, pJ each).

    Parameters
    ----------
    macs, weights, activations
        Multiply-accumulates N_c, weights and biases N_s, activations A_s, of one image.
    bits
        Word length Q of weights and activations.
    offchip_words
        Words of ``bits`` that come from or go to off-chip memory.

    References
    ----------
    B. Moons et al., "Minimum energy quantized neural networks", Asilomar 2017; reconstructed equations.
    """
    mac = table["mac"] * (bits / table["mac_bits"]) ** table["exponent"]
    local, main = mac * table["local_buffer"], mac * table["main_buffer"]
    parallel = table["macs_parallel"] * table["macs_parallel_bits"] / bits
    fetches = macs / math.sqrt(parallel)  # each local fetch serves a row or a column of a square array
    return {
        ("MACs", "multiply-accumulate"): (macs, mac),
        ("MACs", "bias, batch norm, non-linearity"): (table["extra_operations"] * activations, mac),
        ("weights", "main to local buffer"): (weights, main),
        ("weights", "local fetch"): (fetches, local),
        ("activations", "main buffer write and read"): (2 * activations, main),
        ("activations", "local fetch"): (fetches, local),
        ("off-chip", "word"): (offchip_words, table["offchip"] * mac),
    }


def moons_entries(work: Activity, table: EnergyTable) -> tuple[EnergyEntry, ...]:
    """Energies of all layers of an activity."""
    return tuple(entry for index, layer in enumerate(work.layers) for entry in _moons_layer(work, index, layer, table))


def _moons_layer(work: Activity, index: int, layer: LayerActivity, table: EnergyTable) -> Iterable[EnergyEntry]:
    """One layer. The image, of more bits than the hardware, takes several passes: ceil(image bits / Q)."""
    info = layer.info
    first = index == 0
    bits = info.weight_bits if first else max(info.weight_bits, info.input_planes)
    passes = math.ceil(info.input_planes / bits) if first else 1
    channels = info.conv_shape[0]
    energies = moons_energy(
        macs=info.macs * passes,
        weights=channels * (info.fan_in + 1),
        activations=math.prod(info.out_shape),
        bits=bits,
        table=table,
        offchip_words=work.image_bits / bits if first else 0,
    )
    for (component, event), (count, each) in energies.items():
        if count:
            yield EnergyEntry(info.name, component, event, count * work.images, each)
