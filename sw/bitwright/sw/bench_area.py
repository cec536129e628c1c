"""``make bench-area``: what the parts of the machine, and whole machines, take on FPGAs, and how fast they are.

Results are kept below ``build/area`` by the text of the design, so an interrupted run goes on where it was. The table
is printed, written to ``build/bench-area.json`` and filled into ``docs/area.md``.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw import boards
from bitwright.hw.accelerator import Accelerator
from bitwright.hw.array import PEArray
from bitwright.hw.codebook import CodebookDecoder, CodebookStreamer
from bitwright.hw.drain import SearchControl, ThresholdUnit, threshold_layout
from bitwright.hw.isa import ArraySpec, preset
from bitwright.hw.pe import ProcessingElement
from bitwright.hw.popcount import Fabric, count_products
from bitwright.hw.streamer import WeightStreamer
from bitwright.hw.synthesis import (
    LUTS_OF_CELLS,
    PARTS,
    Family,
    Utilization,
    design_text,
    place_and_route,
    synthesize,
    utilization,
)
from bitwright.sim.timeline import estimate
from bitwright.sw.bench import Measurement, measure, mlp_array, network_program

CACHE = Path("build") / "area"

FAMILIES: dict[Family, str] = {"xilinx7": "7-series", "ecp5": "ECP5", "ice40": "iCE40"}
LUT_OF: dict[Family, str] = {"xilinx7": "LUT6", "ecp5": "LUT4", "ice40": "cells"}


def bismo_dpu(lanes: int) -> float:
    """LUTs of BISMO's dot product unit by its published cost model, 7-series (BISMO v2, ``BISMO.scala``)."""
    return 1.17 * lanes + 44.1


class ProductCounter(wiring.Component):
    """AND and popcount between registers.

    Members
    -------
    first, second : ``In(lanes)``
        Words.
    count : ``Out(range(lanes + 1))``
        Lanes that both have set, two cycles later.
    """

    first: Signal
    second: Signal
    count: Signal

    def __init__(self, lanes: int, fabric: Fabric) -> None:
        self.fabric: Fabric = fabric
        super().__init__({"first": In(lanes), "second": In(lanes), "count": Out(range(lanes + 1))})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        first, second = Signal.like(self.first), Signal.like(self.second)
        m.d.sync += [first.eq(self.first), second.eq(self.second)]
        m.d.sync += self.count.eq(count_products(m, first, second, self.fabric))
        return m


class SerialTop(wiring.Component):
    """A component whose ports are shift registers, so that it fits a package and nothing of it is optimized away.

    Members
    -------
    data_in, capture : ``In(1)``
        Next bit for the inputs; take the outputs to shift them out.
    data_out : ``Out(1)``
        Next bit of the outputs.
    """

    data_in: Signal
    capture: Signal
    data_out: Signal

    def __init__(
        self, inner: wiring.Component, outputs: Callable[[Any], list[Any]], inputs: Callable[[Any], list[Any]]
    ):
        self.inner: Any = inner
        self.outputs, self.inputs = outputs, inputs
        super().__init__({"data_in": In(1), "capture": In(1), "data_out": Out(1)})

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.inner = inner = self.inner
        inputs, outputs = Cat(*self.inputs(inner)), Cat(*self.outputs(inner))
        shift_in, shift_out = Signal(len(inputs)), Signal(len(outputs))
        m.d.sync += [shift_in.eq(Cat(self.data_in, shift_in[:-1])), shift_out.eq(shift_out >> 1)]
        with m.If(self.capture):
            m.d.sync += shift_out.eq(outputs)
        m.d.comb += [inputs.eq(shift_in), self.data_out.eq(shift_out[0])]
        return m


class ThresholdBench(wiring.Component):
    """One row's threshold unit with its control and reloadable memory: 64 channels, one value every few cycles.

    Members
    -------
    planes, start, complement, channel
        Bits of a code; a value comes; its complement; its channel.
    write, write_address, write_entry
        Write port of the thresholds.
    code, pool_min, finish
        Result, in the cycle after ``finish``.
    """

    CHANNELS = 64

    def __init__(self, spec: ArraySpec) -> None:
        self.spec = spec
        address = spec.derived.threshold_address_width
        super().__init__(
            {
                "start": In(1),
                "complement": In(spec.accumulator_width),
                "channel": In(range(self.CHANNELS)),
                "write": In(1),
                "write_address": In(address),
                "write_entry": In(spec.accumulator_width),
                "code": Out(spec.derived.code_width),
                "pool_min": Out(1),
                "finish": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        spec, ports = self.spec, vars(self)
        m = Module()
        m.submodules.control = control = SearchControl(spec)
        m.submodules.unit = unit = ThresholdUnit(spec)
        m.submodules.store = store = memory.Memory(
            shape=threshold_layout(spec), depth=spec.threshold_depth // 2, init=[]
        )
        write = store.write_port(granularity=1)
        base = Signal(spec.derived.threshold_word_width)
        bases = [base]
        m.d.comb += base.eq(Cat(Const(0, spec.activation_planes_max - 1), ports["channel"]))
        for stage in range(1, spec.drain_planes):
            held = Signal.like(base, name=f"base_{stage}")
            with m.If(control.stages[stage].take):
                m.d.sync += held.eq(bases[-1])
            bases.append(held)
        m.d.comb += [
            control.planes.eq(spec.activation_planes_max),
            control.start.eq(ports["start"] & control.ready),
            unit.planes.eq(control.planes),
            unit.stages.eq(control.stages),
            unit.complement.eq(ports["complement"]),
            unit.first.eq(base),
            write.addr.eq(ports["write_address"][1:]),
            write.data.eq(Cat(ports["write_entry"], ports["write_entry"])),
            write.en.eq(Mux(ports["write"], 1 << ports["write_address"][0], 0)),
            ports["code"].eq(unit.code),
            ports["pool_min"].eq(unit.pool_min),
            ports["finish"].eq(control.finish),
        ]
        for stage, at in enumerate(bases):
            read = store.read_port()
            m.d.comb += [unit.base[stage].eq(at), read.addr.eq(unit.address[stage]), unit.pairs[stage].eq(read.data)]
        return m


def _taken(component: wiring.Component, family: Family, *arguments: str) -> Utilization:
    return utilization(synthesize(design_text(component), family, CACHE, arguments))


def elements() -> Iterator[Measurement]:
    """AND and popcount, and whole PEs with an accumulator of 24 bits."""
    reach = {64: (62, 110), 128: (124, 180), 256: (248, 320)}
    for lanes, (counter_reach, pe_reach) in reach.items():
        used = _taken(ProductCounter(lanes, "xilinx7"), "xilinx7", "-nodsp")
        yield Measurement(f"AND + popcount, {lanes} lanes, 7-series", used.luts, "LUT6", f"<= {counter_reach}")
        for family, label in FAMILIES.items():
            for fabric in dict.fromkeys(("portable", family)):
                used = _taken(ProcessingElement(lanes, 24, fabric=fabric), family)
                name = f"PE, {lanes} lanes, {label}, {fabric} form"
                unit = LUT_OF[family]
                target = f"<= {pe_reach}" if family == fabric == "xilinx7" else None
                yield Measurement(name, used.luts, unit, target, f"BISMO's model: {bismo_dpu(lanes):.0f} LUT6")
                yield Measurement(f"{name}: per binary product", used.luts / lanes, unit)
                yield Measurement(f"{name}: carries", used.carries, "cells")
                yield Measurement(f"{name}: flip-flops", used.flip_flops, "FF")
    plain = _taken(ProcessingElement(64, 24), "xilinx7").luts
    multiplier = ProcessingElement(64, 24, coefficient_bits=8)
    yield Measurement(
        "multiplier of 8-bit coefficients in a PE, no DSP", _taken(multiplier, "xilinx7", "-nodsp").luts - plain, "LUT6"
    )
    with_dsp = _taken(ProcessingElement(64, 24, coefficient_bits=8), "xilinx7")
    yield Measurement("multiplier of 8-bit coefficients in a PE, with DSPs", with_dsp.luts - plain, "LUT6")
    yield Measurement("multiplier of 8-bit coefficients in a PE, with DSPs: DSPs", with_dsp.dsps, "DSP")


def counters() -> Iterator[Measurement]:
    """A 63-lane counter on an iCE40 HX8K, placed and routed between registers."""
    counter = ProductCounter(63, "ice40")
    top = SerialTop(counter, lambda unit: [unit.count], lambda unit: [unit.first, unit.second])
    placed = place_and_route(synthesize(design_text(top), "ice40", CACHE), PARTS["hx8k"], 104)
    # Yosys merges the input registers with the shift register that feeds them.
    beyond = placed.used["ICESTORM_LC"] - 2 * 63 - len(counter.count)
    yield Measurement("AND + popcount, 63 lanes, HX8K, beyond the input registers", beyond, "cells", "<= 155")
    yield Measurement("AND + popcount, 63 lanes, HX8K", placed.frequency, "MHz", ">= 104")


def thresholds() -> Iterator[Measurement]:
    """Threshold unit of one row: 64 channels, accumulators of 16 bits."""
    for planes, reach in ((1, 39), (2, 72), (4, 135)):
        spec = ArraySpec(
            rows=4,
            lanes=256,
            accumulator_width=16,
            activation_planes_max=planes,
            drain_planes=planes,
            threshold_depth=ThresholdBench.CHANNELS << planes,
        )
        netlist = synthesize(design_text(ThresholdBench(spec)), "xilinx7", CACHE)
        used = utilization(netlist)
        stored = sum(LUTS_OF_CELLS[cell] * number for cell, number in netlist.cells.items() if cell.startswith("RAM")
                     and cell in LUTS_OF_CELLS)  # fmt: skip
        name = f"threshold unit, {planes} bit, a value a cycle, 7-series"
        yield Measurement(f"{name}, without its memory", used.luts - stored, "LUT6", f"<= {reach}", "FINN")
        yield Measurement(f"{name}: memory in LUTs", stored, "LUT6")
        yield Measurement(f"{name}: block RAMs", used.rams, "RAMB18")


def arrays() -> Iterator[Measurement]:
    """The PE array of 8 × 8 × 64, with what drains it: no memory, no control."""
    spec = ArraySpec(rows=8, columns=8, lanes=64)
    products = spec.rows * spec.columns * spec.lanes
    for family, label in FAMILIES.items():
        used = _taken(PEArray(spec, family), family)
        unit = LUT_OF[family]
        model = f"BISMO's model of as many dot product units: {spec.rows * spec.columns * bismo_dpu(64):,.0f} LUT6"
        name = f"array, 8 × 8 × 64, {label}, {family} form"
        yield Measurement(name, used.luts, unit, None, model)
        yield Measurement(f"{name}: per binary product", used.luts / products, unit)
        yield Measurement(f"{name}: carries", used.carries, "cells")
        yield Measurement(f"{name}: flip-flops", used.flip_flops, "FF")


def decoders() -> Iterator[Measurement]:
    """Weight streams of 64 lanes, without a decoder and with one for indices of two and four bits."""
    for family, label in FAMILIES.items():
        unit = {"xilinx7": "LUT6", "ecp5": "LUT4", "ice40": "cells"}[family]
        plain = _taken(WeightStreamer(ArraySpec(weight_stream=True)), family)
        yield Measurement(f"weight stream, 64 lanes, {label}", plain.luts, unit)
        for bits in (2, 4):
            spec = ArraySpec(weight_stream=True, codebook_bits=bits)
            used = _taken(CodebookStreamer(spec), family)
            name = f"weight stream with {bits}-bit codebooks, 64 lanes, {label}"
            yield Measurement(name, used.luts, unit)
            yield Measurement(f"{name}: flip-flops", used.flip_flops, "FF")
            yield Measurement(f"{name}: its look-up alone", _taken(CodebookDecoder(spec), family).luts, unit)


def beside_nngen() -> Iterator[Measurement]:
    """The array that ``bench`` compares with NNgen's MLP 784-128-10."""
    spec = mlp_array()
    used = _taken(Accelerator(spec, "xilinx7"), "xilinx7", "-nodsp")
    name = f"whole machine for an MLP 784-128-10, {spec.rows} × 1 × {spec.lanes}, 7-series"
    yield Measurement(name, used.luts, "LUT6", None, "NNgen at int8: 3,980 LUT6 and 12 DSPs")
    yield Measurement(f"{name}: flip-flops", used.flip_flops, "FF")
    yield Measurement(f"{name}: block RAMs, with all weights", used.rams, "RAMB18")


def machine(name: str, part_name: str, reach: float) -> Iterator[Measurement]:
    """A whole accelerator, its bus and interrupt behind shift registers, its probe open; to reach ``reach`` MHz."""
    spec, part = preset(name), PARTS[part_name]
    top = SerialTop(
        Accelerator(spec, part.fabric),
        lambda inner: [inner.host.read_data, inner.host.read_valid, inner.interrupt, inner.weights.ready],
        lambda inner: [
            inner.host.address,
            inner.host.write_data,
            inner.host.write,
            inner.host.read,
            *([inner.weights.payload, inner.weights.valid] if spec.weight_stream else []),
        ],
    )
    netlist = synthesize(design_text(top), part.family, CACHE, part.synthesis)
    placed = place_and_route(netlist, part, reach)
    label = f"{name} ({spec.rows} × {spec.columns} × {spec.lanes}) on {part.name}"
    yield from _resources(label, placed.used, placed.available)
    yield Measurement(f"{label}: clock", placed.frequency, "MHz", f">= {reach:g}")
    peak = _peak(f"{label}: peak, an AND and its addition", spec, placed.frequency)
    yield peak
    cells = placed.used.get("TRELLIS_COMB") or placed.used["ICESTORM_LC"]
    yield Measurement(f"{label}: peak for each LUT", 1e3 * peak.value / cells, "Mop/s")
    sys.stderr.write(f"{label}: slowest path through {' > '.join(placed.path)}\n")


def on_board(
    name: str, model: str, bits: int, in_shape: tuple[int, int, int], input_bits: int
) -> Iterator[Measurement]:
    """A board's bitstream, and how fast a network is on its array, at the board's clock, without its serial line."""
    board = boards.board(name)
    built = boards.build(board, board.array, CACHE / name, CACHE)
    spec, label = board.array, f"{board.title}, {board.array.rows} × {board.array.columns} × {board.array.lanes}"
    yield from _resources(label, built.used, built.available)
    yield Measurement(f"{label}: clock", built.frequency, "MHz", f">= {board.clock_mhz:g}")
    program = network_program(model, bits, in_shape, dataclasses.replace(spec, zero_skip="off"), 1, input_bits)
    rate = board.clock_mhz * 1e6 / estimate(program).cycles
    yield Measurement(f"{label}: {model} W{bits}/A{bits} at {board.clock_mhz:g} MHz", rate, "images/s")
    yield _peak(f"{label}: peak at {board.clock_mhz:g} MHz", spec, board.clock_mhz)


def _peak(name: str, spec: ArraySpec, clock_mhz: float) -> Measurement:
    return Measurement(name, spec.rows * spec.columns * spec.lanes * clock_mhz / 1e3, "Gop/s")


def _resources(label: str, used: Mapping[str, int], available: Mapping[str, int]) -> Iterator[Measurement]:
    for resource, number in used.items():
        if number and resource.startswith(("TRELLIS_COMB", "TRELLIS_FF", "DP16KD", "ICESTORM_LC", "ICESTORM_RAM")):
            yield Measurement(f"{label}: {resource} of {available[resource]:,}", number, "cells")


GROUPS: dict[str, Callable[[], Iterator[Measurement]]] = {
    "pe": elements,
    "array": arrays,
    "counter": counters,
    "thresholds": thresholds,
    "decoder": decoders,
    "nngen": beside_nngen,
    "tiny": lambda: machine("tiny", "up5k", 24),
    "edge": lambda: machine("edge", "85k", 80),
    "edge-8": lambda: machine("edge", "85k-8", 80),
    "icebreaker": lambda: on_board("icebreaker", "digits_cnn", 3, (1, 8, 8), 3),
    "ulx3s": lambda: on_board("ulx3s", "lenet5", 2, (1, 28, 28), 8),
    "ecpix5": lambda: on_board("ecpix5", "lenet5", 2, (1, 28, 28), 8),
}


def main() -> int:
    """Measure what ``make bench-area`` does."""
    return measure("bench_area", __doc__, GROUPS, Path("docs") / "area.md")


if __name__ == "__main__":
    sys.exit(main())
