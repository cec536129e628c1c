"""The PE array: operand registers, PEs, column sums and the chain that drains them."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw.isa import ISSUE_TO_LOAD, ArraySpec
from bitwright.hw.pe import ACCUMULATE, PopcountAccumulator, ProcessingElement

OPERAND_TO_LOAD = ISSUE_TO_LOAD - 2
"""Cycles from an operand on the array's inputs to its sum in the accumulators, where the chain may load it."""


class PEArray(wiring.Component):
    """``rows × columns`` PEs, a column sum for each column, and a second set of registers that drains.

    An operand takes three cycles: operand registers, count, accumulate. After the last operand of a row tile,
    ``load`` copies all accumulators to the drain chain, while the next tile already accumulates; ``shift`` moves the
    chain by one column.

    Parameters
    ----------
    spec
        Array parameters.

    Members
    -------
    weights : ``In(rows × lanes)``
        Word of each row.
    activations : ``In(columns × lanes)``
        Word of each column.
    active : ``In(columns)``
        Columns whose word counts. The operand register of another column keeps its value if zero skip is on.
    control : ``In(ACCUMULATE)``
        What to do with this operand.
    load : ``In(1)``
        Copy the accumulators to the chain, in the cycle ``OPERAND_TO_LOAD`` after the last operand.
    shift : ``In(1)``
        Move column ``c + 1`` of the chain to column ``c``.
    sums : ``Out(rows × signed(accumulator_width))``
        Column 0 of the chain.
    column_sum : ``Out(signed(accumulator_width))``
        Column 0 of the chain of column sums.
    """

    weights: "data.View[Any]"
    activations: "data.View[Any]"
    active: Signal
    control: "data.View[Any]"
    load: Signal
    shift: Signal
    sums: "data.View[Any]"
    column_sum: Signal

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "weights": In(data.ArrayLayout(spec.lanes, spec.rows)),
                "activations": In(data.ArrayLayout(spec.lanes, spec.columns)),
                "active": In(spec.columns),
                "control": In(ACCUMULATE),
                "load": In(1),
                "shift": In(1),
                "sums": Out(data.ArrayLayout(signed(spec.accumulator_width), spec.rows)),
                "column_sum": Out(signed(spec.accumulator_width)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec = self.spec
        m = Module()

        # Operand registers, and the control and enables that follow them to the accumulators.
        weights = Signal(data.ArrayLayout(spec.lanes, spec.rows))
        activations = Signal(data.ArrayLayout(spec.lanes, spec.columns))
        control_count, control_sum = Signal(ACCUMULATE), Signal(ACCUMULATE)
        active_count, active_sum = Signal(spec.columns), Signal(spec.columns)
        with m.If(self.control.valid):
            m.d.sync += weights.eq(self.weights)
        for column in range(spec.columns):
            hold = spec.zero_skip != "off"
            with m.If(self.active[column] if hold else self.control.valid):
                m.d.sync += activations[column].eq(self.activations[column])
        m.d.sync += [
            control_count.eq(self.control),
            control_sum.eq(control_count),
            active_count.eq(self.active),
            active_sum.eq(active_count),
        ]

        column_sums: list[Signal] = []
        sums: list[list[Signal]] = [[] for _ in range(spec.rows)]
        for column in range(spec.columns):
            m.submodules[f"column_sum_{column}"] = total = PopcountAccumulator(spec.lanes, spec.accumulator_width)
            m.d.comb += [
                total.word.eq(activations[column]),
                total.control.eq(control_sum),
                total.enable.eq(active_sum[column]),
            ]
            column_sums.append(total.sum)
            for row in range(spec.rows):
                m.submodules[f"pe_{row}_{column}"] = pe = ProcessingElement(spec.lanes, spec.accumulator_width)
                m.d.comb += [
                    pe.activation.eq(activations[column]),
                    pe.weight.eq(weights[row]),
                    pe.control.eq(control_sum),
                    pe.enable.eq(active_sum[column]),
                ]
                sums[row].append(pe.sum)

        for row in range(spec.rows):
            m.d.comb += self.sums[row].eq(self._chain(m, f"drain_{row}", sums[row]))
        m.d.comb += self.column_sum.eq(self._chain(m, "drain_column_sum", column_sums))
        return m

    def _chain(self, m: Module, name: str, sums: list[Signal]) -> Signal:
        width = self.spec.accumulator_width
        chain = Signal(width * len(sums), name=name)
        with m.If(self.load):
            m.d.sync += chain.eq(Cat(*sums))
        with m.Elif(self.shift):
            m.d.sync += chain.eq(chain >> width)
        head = Signal(signed(width), name=f"{name}_head")
        m.d.comb += head.eq(chain[:width])
        return head
