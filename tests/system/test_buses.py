"""The accelerator on standard buses, against masters that are not ours."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.verilog import TOPS, WAIVED_LINT, Bus, bus_top, describe
from bitwright.sim.backends.cocotb import CocotbSimulator
from bitwright.sim.backends.source import verilog
from bitwright.sim.tools import compiler, verilator, verilator_environment
from tiny import spec as tiny_spec

MODELS = {"axi": "cocotbext.axi", "wishbone": "cocotbext.wishbone"}
BUSES: tuple[Bus, ...] = ("axi", "wishbone")


def bench_spec() -> ArraySpec:
    """Array of the benches."""
    import onbus

    return onbus.SPEC


@cache
def simulator(bus: Bus) -> CocotbSimulator:
    if not (verilator().path and compiler().path):
        pytest.skip("no Verilator or no C++ compiler")
    pytest.importorskip(MODELS[bus], reason="the extra `verify` is not installed")
    return CocotbSimulator(verilog(bench_spec(), bus), bus_top(bus).module, "verilator")


def run(bus: Bus, folder: Path, **environment: str) -> None:
    ended = simulator(bus).run(f"bench_{bus}", folder, {"COCOTB_LOG_LEVEL": "INFO", **environment})
    shown = [line for line in (ended.stdout + ended.stderr).splitlines() if "WARNING" not in line]
    assert ended.returncode == 0, "\n".join(shown[-80:])


@pytest.mark.parametrize("bus", BUSES)
def test_masters_that_are_not_ours_find_what_the_golden_model_predicts(bus: Bus, tmp_path: Path) -> None:
    run(bus, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bus", BUSES)
def test_ten_thousand_random_accesses(bus: Bus, tmp_path: Path) -> None:
    run(bus, tmp_path, BITWRIGHT_TRANSACTIONS="10000", COCOTB_TEST_FILTER="random_accesses")


def test_a_failing_bench_is_noticed(tmp_path: Path) -> None:
    """Masters of one bus find nothing at the ports of the other."""
    ended = simulator("axi").run("bench_wishbone", tmp_path, {"COCOTB_TEST_FILTER": "what_is_refused"})
    assert ended.returncode != 0


@pytest.mark.parametrize("bus", BUSES)
def test_verilator_has_nothing_to_say(bus: Bus, tmp_path: Path) -> None:
    if verilator().path is None:
        pytest.skip("no Verilator")
    path = tmp_path / f"{bus_top(bus).module}.v"
    path.write_text(verilog(bench_spec(), bus))
    command = [str(verilator().require()), "--lint-only", "--quiet-stats", "-Wall"]
    command += [*(f"-Wno-{name}" for name in WAIVED_LINT), "--top-module", path.stem, str(path)]
    shown = subprocess.run(command, env=verilator_environment(), capture_output=True, text=True, check=False)
    assert shown.stdout + shown.stderr == ""


@pytest.mark.parametrize("bus", BUSES)
def test_ports_are_those_of_the_verilog(bus: Bus) -> None:
    described = describe(bench_spec(), bus)
    module = verilog(bench_spec(), bus).split(f"module {bus_top(bus).module}(")[1].split("endmodule")[0]
    declared = re.findall(r"^ *(input|output) (?:\[(\d+):0\] )?(\w+);", module, re.M)
    expected = {(port["name"], port["direction"], port["bits"]) for port in described["ports"]}
    assert {(name, direction, int(top or 0) + 1) for direction, top, name in declared} == expected
    assert all(port["meaning"] for port in described["ports"])


@pytest.mark.parametrize("bus", BUSES)
def test_weights_have_a_port_where_they_are_streamed(bus: Bus) -> None:
    def weights(array: ArraySpec) -> list[Any]:
        return [port["name"] for port in describe(array, bus)["ports"] if "weights" in port["name"]]

    assert len(weights(bench_spec())) == 3
    assert weights(tiny_spec(4, 1)) == []


def test_an_unknown_bus_is_refused() -> None:
    with pytest.raises(BitwrightError, match=f"Unknown bus 'avalon', expected one of {', '.join(TOPS)}"):
        bus_top("avalon")
