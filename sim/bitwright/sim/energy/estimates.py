"""Estimates: from executions, plans and activities to reports."""

from collections.abc import Sequence

from bitwright.hw.plan import Plan
from bitwright.hw.program import Program
from bitwright.sim.energy.activities import Activity, activity, plan_activity
from bitwright.sim.energy.events import event_entries
from bitwright.sim.energy.moons import moons_entries
from bitwright.sim.energy.reports import EnergyReport
from bitwright.sim.energy.tables import EnergyTable, load_table
from bitwright.sim.execution import Execution


def estimate(
    program: Program, executions: Execution | Sequence[Execution], table: EnergyTable | str = "horowitz45"
) -> EnergyReport:
    """Energy of executions of a Program, by golden model or by RTL: both count the same events."""
    return estimate_activity(activity(program, executions), table)


def estimate_plan(plan: Plan, table: EnergyTable | str = "horowitz45") -> EnergyReport:
    """Energy of a bit assignment before there are weights: an upper bound with zero skip, exact without.

    With zero skip only words that are padding in all columns are skipped.
    """
    return estimate_activity(plan_activity(plan), table)


def estimate_activity(work: Activity, table: EnergyTable | str = "horowitz45") -> EnergyReport:
    """Energy of an activity."""
    table = load_table(table) if isinstance(table, str) else table
    if table.model == "moons":
        return EnergyReport(table, work, moons_entries(work, table), 0.0, None)
    macs = sum(layer.info.macs for layer in work.layers)
    return EnergyReport(
        table,
        work,
        event_entries(work, table),
        load_uj=work.load_bits * table["dram_bit"] * 1e-6,
        parallel_mac_uj=macs * (table.multiply(8) + table.add(work.spec.accumulator_width)) * 1e-6,
    )
