"""Proofs of properties that Amaranth modules assert, by the SAT solver in Yosys."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from amaranth.back import rtlil  # pyright: ignore[reportAttributeAccessIssue]  # not in the stubs
from amaranth.hdl import Assert, Assume, Elaboratable, Module, Mux, Signal, Value

from bitwright.hw.synthesis import run

_PREPARE = (
    "read_rtlil design.il; hierarchy -top top; proc; flatten; memory_map; chformal -lower; "
    "opt -full -noff; opt_clean -purge"  # without -noff it trips over initial values of bits that are constant
)
_STEPS = re.compile(r"(?:base case|induction step) (\d+)\] Solving")


@dataclass(frozen=True)
class Outcome:
    """Whether the assertions hold.

    Attributes
    ----------
    proven
        No inputs that keep the assumptions break an assertion: in as many cycles as were asked for, or, by induction,
        ever.
    cycles
        Cycles that the last SAT problem spanned; by induction, what holds for so many cycles holds in the next one.
    seconds
        Time it took.
    """

    proven: bool
    cycles: int
    seconds: float


def prove(
    design: Elaboratable,
    inputs: Sequence[Value],
    folder: Path,
    *,
    cycles: int,
    induction: bool = False,
    at_once: bool = False,
) -> Outcome:
    """Look for inputs that break an assertion of a design that starts with its initial values and is never reset.

    Parameters
    ----------
    design
        With statements of :func:`ensure` and :func:`assume`.
    inputs
        Signals that may be anything, in every cycle.
    folder
        Takes files.
    cycles
        Cycles looked at; by induction the most.
    induction
        Prove it for any number of cycles, by temporal induction.
    at_once
        Without induction: one SAT problem for all cycles, instead of one for each number of cycles. That is faster for
        many cycles and easy properties.
    """
    (folder / "design.il").write_text(rtlil.convert(design, name="top", ports=inputs, emit_src=False))
    how = f"-tempinduct -maxsteps {cycles}"
    if at_once:
        how = f"-seq {cycles}"
    elif not induction:
        how += " -tempinduct-baseonly"
    started = time.perf_counter()
    said = run("yosys", ["-p", f"{_PREPARE}; sat -set rst 0 -set-assumes -prove-asserts {how} top"], folder)
    end = "Induction step proven: SUCCESS!" if induction else f"proved base case for {cycles} steps: SUCCESS!"
    proven = "SAT proof finished - no model found: SUCCESS!" in said if at_once else end in said
    return Outcome(proven, int((_STEPS.findall(said) or [cycles])[-1]), time.perf_counter() - started)


def ensure(condition: Value) -> Any:
    """Statement: the condition has to hold in every cycle in which the statement is active."""
    return Assert(condition)  # pyright: ignore[reportCallIssue]  # the stubs want a message


def assume(condition: Value) -> Any:
    """Statement: inputs that break the condition need not be looked at."""
    return Assume(condition)  # pyright: ignore[reportCallIssue]  # the stubs want a message


def mutated(module: ModuleType, old: str, new: str) -> Any:
    """Copy of a module of the hardware with a fault: one exact replacement in its source."""
    source = Path(str(module.__file__)).read_text()
    if (count := source.count(old)) != 1:
        raise ValueError(f"{module.__name__} has {count} times {old!r}, expected once; update the mutation.")
    copy = ModuleType(module.__name__)
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), copy.__dict__)
    return copy


def constant(m: Module, free: Signal) -> Value:
    """What ``free`` is in the first cycle, in all cycles: any number that does not change."""
    first = Signal(init=1, name=f"{free.name}_first")
    kept = Signal.like(free, name=f"{free.name}_kept", reset_less=True)
    m.d.sync += first.eq(0)
    with m.If(first):
        m.d.sync += kept.eq(free)
    return Mux(first, free, kept)
