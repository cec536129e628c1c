"""Reports: energies by layer, component and event."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bitwright.sim.energy.activities import Activity
from bitwright.sim.energy.tables import EnergyTable

HOST = "(host)"
"""Layer name under which images and results are booked."""

BETWEEN = "(between layers)"
"""Layer name under which cycles outside of every layer are booked: reading descriptors."""


@dataclass(frozen=True)
class EnergyEntry:
    """So many events of one kind in one layer, at so many pJ each."""

    layer: str
    component: str
    event: str
    count: float
    each_pj: float
    kind: Literal["dynamic", "leakage"] = "dynamic"

    @property
    def pj(self) -> float:
        """Energy, in pJ."""
        return self.count * self.each_pj


@dataclass(frozen=True)
class EnergyReport:
    """Energy of an activity, by layer, component and event.

    Attributes
    ----------
    entries
        All energies of running the images. Loading the Program, once, is not among them.
    load_uj
        Energy of loading descriptors, weights and thresholds from outside, once, in µJ; 0 where not modelled.
    parallel_mac_uj
        For scale: arithmetic energy of the same multiply-accumulates on 8-bit bit-parallel multipliers, in µJ an image;
        None where the table has no multiplier.
    """

    table: EnergyTable
    activity: Activity
    entries: tuple[EnergyEntry, ...]
    load_uj: float
    parallel_mac_uj: float | None

    @cached_property
    def total_pj(self) -> float:
        """Energy of all images, in pJ."""
        return math.fsum(entry.pj for entry in self.entries)

    @property
    def uj_per_image(self) -> float:
        """Energy of one image, in µJ."""
        return self.total_pj / self.activity.images * 1e-6

    @property
    def seconds_per_image(self) -> float:
        """Time of one image at the table's clock."""
        return self.activity.cycles / self.activity.images / (self.table["clock"] * 1e6)

    @property
    def energy_delay(self) -> float:
        """Energy-delay product of one image, in J·s."""
        return self.uj_per_image * 1e-6 * self.seconds_per_image

    def by(self, *keys: str) -> dict[tuple[str, ...], float]:
        """Energy of one image in µJ, summed by fields of :class:`EnergyEntry` such as ``layer`` or ``component``."""
        sums: dict[tuple[str, ...], float] = {}
        for entry in self.entries:
            key = tuple(getattr(entry, name) for name in keys)
            sums[key] = sums.get(key, 0.0) + entry.pj / self.activity.images * 1e-6
        return sums

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: totals, every entry, and all inputs."""
        work = self.activity
        return {
            "total": {
                "uj_per_image": self.uj_per_image,
                "seconds_per_image": self.seconds_per_image,
                "energy_delay_js": self.energy_delay,
                "load_uj": self.load_uj,
                "parallel_mac_uj_per_image": self.parallel_mac_uj,
            },
            "uj_per_image": {
                "layer": {layer: value for (layer,), value in self.by("layer").items()},
                "component": {component: value for (component,), value in self.by("component").items()},
                "kind": {kind: value for (kind,), value in self.by("kind").items()},
            },
            "entries": [dataclasses.asdict(entry) | {"pj": entry.pj} for entry in self.entries],
            "inputs": {
                "table": self.table.to_dict(),
                "array": dataclasses.asdict(work.spec),
                "images": work.images,
                "cycles": work.cycles,
                "layers": [
                    dataclasses.asdict(layer.info)
                    | {"macs": layer.info.macs, "counters": layer.counters, "runs": layer.parts[0].runs}
                    for layer in work.layers
                ],
            },
        }
