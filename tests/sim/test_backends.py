import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import COUNTERS, FIELD_PLACES, ArraySpec
from bitwright.hw.program import Program
from bitwright.sim.backends import backend, recorder, simulate, source
from bitwright.sim.backends.cocotb import CocotbBackend
from bitwright.sim.compare import compare
from bitwright.sim.execution import Execution
from bitwright.sim.golden import execute
from bitwright.sim.tools import compiler, icarus, verilator
from programs import conv, linear, random_images, random_program
from strategies import programs

MEMORIES: dict[str, Any] = {
    "activation_depth": 4096,
    "weight_depth": 4096,
    "threshold_depth": 2048,
    "descriptor_depth": 1024,
    "window_depth": 256,
    "row_tiles_max": 16,
}
ARRAYS = (
    ArraySpec(rows=4, columns=3, lanes=32, drain_planes=1, accumulator_width=24, zero_skip="skip", **MEMORIES),
    ArraySpec(rows=12, columns=2, lanes=64, columns_per_copy=2, accumulator_width=12, zero_skip="gate", **MEMORIES),
    ArraySpec(
        rows=4, columns=1, lanes=128, drain_planes=4, prefetch=False, accumulator_width=9, zero_skip="off", **MEMORIES
    ),
)
"""One of each zero skip; row tiles that fill a word and that do not; accumulators that wrap."""


def tiny_program(seed: int = 0, batch: int = 2) -> tuple[Program, npt.NDArray[np.uint8]]:
    """A Program with all stages, and images for one run and a half."""
    rng = np.random.default_rng(seed)
    layers = [conv(5, 3, padding=1, pool=2), conv(3, 2, weight_encoding="ternary"), linear(3, weight_encoding="odd")]
    program = random_program(rng, ARRAYS[0], layers, in_shape=(2, 6, 5), input_bits=2, batch=batch)
    return program, random_images(rng, program, batch + 1)


def differences(predicted: list[Execution], measured: list[Execution]) -> list[str | None]:
    return [compare(*pair).first for pair in zip(predicted, measured, strict=True)]


def needs(name: str) -> str:
    """The back end's name, if its tools are here."""
    if name in ("verilator", "cocotb") and not (verilator().path and compiler().path):
        pytest.skip("no Verilator or no C++ compiler")
    return name


@pytest.mark.parametrize("name", ["pysim", "verilator", "cocotb"])
def test_every_back_end_equals_the_golden_model(name: str) -> None:
    program, images = tiny_program()
    trace = range(len(program.layers))
    measured = simulate(program, images, needs(name), trace)
    assert differences(execute(program, images, trace=trace), measured) == [None, None]
    assert [len(run.accumulators) for run in measured] == [2, 1]
    assert list(measured[0].counters) == list(COUNTERS)


def test_cocotb_in_icarus_equals_the_golden_model() -> None:
    if icarus().path is None:
        pytest.skip("no Icarus Verilog")
    rng = np.random.default_rng(1)
    program = random_program(rng, ARRAYS[0], [conv(3, 2, pool=2), linear(4)], in_shape=(1, 4, 4), input_bits=2)
    images = random_images(rng, program, 1)
    measured = CocotbBackend(program.spec, simulator="icarus").run(program, images, (0, 1))
    assert differences(execute(program, images, trace=(0, 1)), measured) == [None]


@settings(max_examples=40, deadline=None)
@given(programs(st.sampled_from(ARRAYS)))
def test_verilator_equals_the_golden_model(example: tuple[Program, npt.NDArray[np.uint8]]) -> None:
    program, images = example
    trace = range(len(program.layers))
    measured = simulate(program, images, needs("verilator"), trace)
    predicted = execute(program, images, trace=trace)
    assert differences(predicted, measured) == [None] * len(predicted)


def test_planes_of_zeros_take_no_cycles() -> None:
    """Planes that are zero in all of a layer, in the middle, on top and at the bottom, and where zeros count."""
    needs("verilator")
    cycles = []
    for zeros in ((0, 0, 0), (0b0110, 0b10, 0b01)):
        options: list[dict[str, Any]] = [{"zero_planes": (each, 0)} for each in zeros]
        layers = [
            conv(5, 3, padding=1, weight_bits=4, **options[0]),
            conv(6, 2, weight_encoding="ternary", **options[1]),
            linear(3, weight_bits=3, **options[2]),
        ]
        rng = np.random.default_rng(3)
        program = random_program(rng, ARRAYS[0], layers, in_shape=(9, 6, 5), input_bits=3)
        images = random_images(rng, program, 2)
        trace = range(len(layers))
        measured = simulate(program, images, "verilator", trace)
        assert differences(execute(program, images, trace=trace), measured) == [None, None]
        cycles.append(measured[0].counters["busy"])
        passes = [len(layer.passes) for layer in program.parsed]
        assert passes == ([12, 4, 6] if not any(zeros) else [6, 2, 5])
    assert cycles[1] < 0.65 * cycles[0]


def test_only_traced_layers_have_writes() -> None:
    program, images = tiny_program()
    for trace in ((), (1,)):
        for run in simulate(program, images, needs("verilator"), trace):
            assert tuple(run.writes or ()) == trace


@pytest.mark.parametrize("name", ["pysim", "verilator"])
def test_a_waveform_is_written_on_request(name: str, tmp_path: Path) -> None:
    program, images = tiny_program(batch=1)
    path = tmp_path / "waves" / "run.vcd"
    simulate(program, images[:1], needs(name), vcd=path)
    assert "$enddefinitions" in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["run.vcd"]


@pytest.mark.filterwarnings("error")
def test_a_waveform_that_cannot_be_written(tmp_path: Path) -> None:
    program, images = tiny_program(batch=1)
    (tmp_path / "file").touch()
    with pytest.raises(BitwrightError, match=r"Cannot write .*run.vcd"):
        simulate(program, images[:1], "pysim", vcd=tmp_path / "file" / "run.vcd")


def test_cocotb_refuses_a_waveform(tmp_path: Path) -> None:
    with pytest.raises(BitwrightError, match="use verilator or pysim"):
        backend("cocotb", ARRAYS[0], tmp_path / "run.vcd")


def test_an_unknown_back_end_is_refused() -> None:
    with pytest.raises(BitwrightError, match="Unknown back end 'modelsim', expected one of pysim, verilator, cocotb"):
        backend("modelsim", ARRAYS[0])


@pytest.mark.parametrize("name", ["pysim", "verilator", "cocotb"])
def test_a_machine_that_does_not_end_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, images = tiny_program()
    monkeypatch.setattr(recorder, "cycle_limit", lambda program: 30)
    with pytest.raises(BitwrightError, match="has not ended after 30 cycles"):
        simulate(program, images, needs(name))


@pytest.mark.parametrize("name", ["pysim", "verilator"])
def test_an_error_of_the_machine_is_told(name: str) -> None:
    program, images = tiny_program()
    assert program.parsed  # checked before the words are spoilt
    word, bit = FIELD_PLACES["row_tiles"]
    program.descriptors[word] &= ~np.uint32(0xFFFF << bit)
    with pytest.raises(BitwrightError, match=r"stopped with error FIELD \(field row_tiles\)"):
        simulate(program, images, needs(name))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if verilator().path is None:
        pytest.skip("no Verilator")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BitwrightError, match=r"g\+\+ is missing, needed for .*; install"):
        backend("verilator", ARRAYS[0])


def test_a_compiler_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs("verilator")
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken && exit\necho "error: broken compiler" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    (broken.parent / "c++").symlink_to(broken)
    monkeypatch.setenv("PATH", f"{broken.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    spec = ArraySpec(rows=4, columns=1, lanes=32, **MEMORIES)
    with pytest.raises(BitwrightError, match=r"could not compile the array: .*broken compiler"):
        backend("verilator", spec)
    assert not any((tmp_path / "cache" / "verilator").iterdir())


def test_verilog_is_kept_until_a_source_of_the_generator_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hw"
    (folder / "isa").mkdir(parents=True)
    monkeypatch.setattr(source, "files", lambda _: folder)
    for number, name in enumerate(("array.py", "cell.v", "isa/timing.py")):
        (folder / name).write_text("changed")
        for text in (f"first {number}", "second"):
            assert source.emitted("top", "8 lanes", lambda text=text: text) == f"first {number}"
