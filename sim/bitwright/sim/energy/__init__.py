"""Energy by events: ``energy = Σ events × energy per event + leakage × time``.

Events are the counters of an execution, which the hardware counts too, times constants of the array and of the layer's
descriptor. Energies per event come from a table: a TOML file that states technology, source and unit of each number and
marks it measured, published or assumed. ``horowitz45`` and ``moons`` ship in ``tables/``; a user's own works alike.
Every memory is charged for by its own width and depth: a bank of a copy of the activation memory, the window buffer of
a column, the weights, thresholds and coefficients of a row, the word lists, the results.

The result is that of a chip in the table's technology, not of an FPGA, for which no open power model exists.
"""

from bitwright.sim.energy.activities import Activity, LayerActivity, PartActivity, activity, plan_activity
from bitwright.sim.energy.estimates import estimate, estimate_activity, estimate_plan
from bitwright.sim.energy.events import bank_writes, memory_bits, popcount_adder_bits
from bitwright.sim.energy.moons import moons_energy
from bitwright.sim.energy.reports import BETWEEN, HOST, EnergyEntry, EnergyReport
from bitwright.sim.energy.tables import TABLES, Constant, EnergyTable, load_table, table_names

__all__ = [
    "BETWEEN",
    "HOST",
    "TABLES",
    "Activity",
    "Constant",
    "EnergyEntry",
    "EnergyReport",
    "EnergyTable",
    "LayerActivity",
    "PartActivity",
    "activity",
    "bank_writes",
    "estimate",
    "estimate_activity",
    "estimate_plan",
    "load_table",
    "memory_bits",
    "moons_energy",
    "plan_activity",
    "popcount_adder_bits",
    "table_names",
]
