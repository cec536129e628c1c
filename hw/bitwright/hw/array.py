"""The PE array: operand registers, PEs, column sums and the registers that drain them."""

from functools import reduce
from operator import or_
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.isa import ISSUE_TO_LOAD, ArraySpec
from bitwright.hw.pe import BASE, COUNT_LATENCY, PopcountAccumulator, ProcessingElement
from bitwright.hw.popcount import Fabric
from bitwright.hw.registers import registered

OPERAND_TO_LOAD = ISSUE_TO_LOAD - 3
"""Cycles from an operand on the inputs of an array to its sum in the accumulators, where it may be loaded, with neither
registers of products nor a multiplier; see `Derived`."""


def accumulate_layout(spec: ArraySpec) -> data.StructLayout:
    """What accumulators do with an operand's counts: start over, double first, subtract; bipolar counts."""
    return data.StructLayout(
        {"valid": 1, "clear": 1, "double": 1, "negate": 1, **({"bipolar": 1} if spec.coefficient_bits else {})}
    )


class PEArray(wiring.Component):
    """``rows × columns`` PEs, a column sum for each column, and a second set of registers that drains.

    An operand takes four cycles: operand registers, counts of parts, counts, sums. In an array that is pipelined the
    products of bits are registered, too, and with a multiplier those of the counts. After the last operand of a row
    tile, ``load`` copies all accumulators to the second set, while the next tile already accumulates; its columns are
    shown one after the other.

    Parameters
    ----------
    spec
        Array parameters.
    fabric
        Form of the arithmetic.

    Members
    -------
    weights : ``In(rows × lanes)``
        Word of each row.
    activations : ``In(columns × lanes)``
        Word of each column.
    active : ``In(columns)``, some_active : ``In(1)``
        Columns whose word counts, none without ``control.valid``, and whether there is one: then the others' operand
        registers become zero, else all of them keep still.
    residual : ``In(1)``
        The operand is of a residual addend, which has no offset: column sums do not count it, and it is not bipolar.
    coefficients : ``In(rows × signed(coefficient_bits))``
        What each row's counts are multiplied by; only in an array with a multiplier. The column sums are not
        multiplied.
    control : ``In(accumulate_layout(spec))``
        What to do with this operand. ``bipolar``, in an array with a multiplier: multiply twice the count less the
        set bits of the column's activations.
    load : ``In(1)``
        Copy the accumulators, in the cycle ``OPERAND_TO_LOAD + way_stages + multiply_stages`` after the last
        operand, and show column 0.
    shift : ``In(1)``
        Show the next column. After the last one, what is shown does not matter.
    sums : ``Out(rows × signed(accumulator_width))``
        Sums of the column shown.
    column_sum : ``Out(signed(accumulator_width))``
        Column sum of the column shown.
    """

    weights: "data.View[Any]"
    activations: "data.View[Any]"
    active: Signal
    some_active: Signal
    residual: Signal
    coefficients: "data.View[Any]"
    control: "data.View[Any]"
    load: Signal
    shift: Signal
    sums: "data.View[Any]"
    column_sum: Signal

    def __init__(self, spec: ArraySpec, fabric: Fabric = "portable") -> None:
        self.spec = spec
        self.fabric: Fabric = fabric
        members = {
            "weights": In(data.ArrayLayout(spec.lanes, spec.rows)),
            "activations": In(data.ArrayLayout(spec.lanes, spec.columns)),
            "active": In(spec.columns),
            "some_active": In(1),
            "residual": In(1),
            "control": In(accumulate_layout(spec)),
            "load": In(1),
            "shift": In(1),
            "sums": Out(data.ArrayLayout(signed(spec.accumulator_width), spec.rows)),
            "column_sum": Out(signed(spec.accumulator_width)),
        }
        if spec.coefficient_bits:
            members["coefficients"] = In(data.ArrayLayout(signed(spec.coefficient_bits), spec.rows))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, fabric = self.spec, self.fabric
        product_stages, multiply_stages = spec.derived.way_stages, spec.derived.multiply_stages
        counted = 1 + product_stages + COUNT_LATENCY
        m = Module()

        # Operand registers keep still while no column has a word. Otherwise those of a column without one become zero:
        # an old word there would meet the other columns' new weights, and its products would change with them.
        weights = Signal(data.ArrayLayout(spec.lanes, spec.rows), reset_less=True)
        activations = Signal(data.ArrayLayout(spec.lanes, spec.columns), reset_less=True)
        with m.If(self.some_active):
            m.d.sync += weights.eq(self.weights)
            for column in range(spec.columns):
                m.d.sync += activations[column].eq(Mux(self.active[column], self.activations[column], 0))

        # What follows the words: with the counts of their parts, with their counts, with what is added.
        idle = registered(m, "idle", ~self.active, counted - 1)
        column_idle = registered(m, "column_idle", ~self.active | self.residual.replicate(spec.columns), counted - 1)
        negate = registered(m, "negate", self.control.negate, counted - 1)
        base = Signal(BASE)
        added = Cat(self.control.valid, self.control.clear, self.control.double)
        m.d.comb += Value.cast(base).eq(registered(m, "base", added, counted + multiply_stages))
        if spec.coefficient_bits:
            coefficients = Signal(data.ArrayLayout(signed(spec.coefficient_bits), spec.rows))
            bipolar = registered(m, "bipolar", self.control.bipolar & ~self.residual, counted)
            m.d.comb += Value.cast(coefficients).eq(
                registered(m, "coefficients", Value.cast(self.coefficients), counted)
            )

        column_sums: list[Signal] = []
        sums: list[list[Signal]] = [[] for _ in range(spec.rows)]
        for column in range(spec.columns):
            total = PopcountAccumulator(spec.lanes, spec.accumulator_width, product_stages, multiply_stages, fabric)
            m.submodules[f"column_sum_{column}"] = total
            m.d.comb += [
                total.word.eq(activations[column]),
                total.ignore.eq(column_idle[column]),
                total.negate.eq(negate),
                total.base.eq(base),
            ]
            column_sums.append(total.sum)
            for row in range(spec.rows):
                pe = ProcessingElement(
                    spec.lanes, spec.accumulator_width, spec.coefficient_bits, product_stages, fabric
                )
                m.submodules[f"pe_{row}_{column}"] = pe
                m.d.comb += [
                    pe.activation.eq(activations[column]),
                    pe.weight.eq(weights[row]),
                    pe.ignore.eq(idle[column]),
                    pe.negate.eq(negate),
                    pe.base.eq(base),
                ]
                if spec.coefficient_bits:
                    m.d.comb += [
                        pe.coefficient.eq(coefficients[row]),
                        pe.bipolar.eq(bipolar),
                        pe.column_count.eq(total.count),
                    ]
                sums[row].append(pe.sum)

        # The sums of the last tile, and which column of them is shown next, but for column 0.
        following = Signal(spec.columns - 1, reset_less=True)  # one-hot
        with m.If(self.load):
            m.d.sync += following.eq(1)
        with m.Elif(self.shift):
            m.d.sync += following.eq(following << 1)
        for row in range(spec.rows):
            m.d.comb += self.sums[row].eq(self._drained(m, f"drain_{row}", sums[row], following))
        m.d.comb += self.column_sum.eq(self._drained(m, "drain_column_sum", column_sums, following))
        return m

    def _drained(self, m: Module, name: str, sums: list[Signal], following: Signal) -> Value:
        """One of the sums of a row, as they were at the last load."""
        shown, *held = [
            Signal.like(total, name=f"{name}_{number}", reset_less=True) for number, total in enumerate(sums)
        ]
        if self.fabric == "ice40":  # a flip-flop has a LUT before it anyway: a chain takes none for selecting
            with m.If(self.load):
                m.d.sync += [register.eq(total) for register, total in zip([shown, *held], sums, strict=True)]
            with m.Elif(self.shift):
                m.d.sync += [register.eq(after) for register, after in zip([shown, *held], held, strict=False)]
            return shown
        with m.If(self.load):
            m.d.sync += [register.eq(total) for register, total in zip(held, sums[1:], strict=True)]
        with m.If(self.load | self.shift):
            chosen = Cat(self.load, following & ~self.load.replicate(len(following)))
            totals = (Mux(bit, total, 0) for bit, total in zip(chosen, [sums[0], *held], strict=True))
            m.d.sync += shown.eq(reduce(or_, totals))
        return shown
