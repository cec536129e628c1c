"""How many bits of the hardware toggle, counted in the Verilog by Verilator: what zero skip holds still.

Counted are the bits of all nets that have a name, once a cycle at most, as nothing has a delay: no glitches. A net
belongs to the module that drives it; the ports that it goes through, and other names for it, are not counted again.
What the memories hold is not counted, what they read out is. Like every count of toggles this is activity, not energy:
a bit that toggles costs as much as it drives.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.program import Program
from bitwright.hw.verilog import TOP
from bitwright.sim.backends.source import verilog
from bitwright.sim.backends.verilator import VerilatorBackend
from bitwright.sim.execution import Execution

_PE = r"array/pe_\d+_\d+/"
_COMPONENTS: tuple[tuple[str, str], ...] = (
    ("operands", r"array/(activations?|weights)"),
    ("AND", _PE + r"count_\d+_0"),
    ("popcount", _PE + r"(count_\d+_\d+|part_\d+)"),
    ("accumulators", _PE + ".*"),
    ("column sums", r"array/column_sum_\d+/.*"),
    ("drained sums", r"array/.*"),
    ("window buffer", r"window_\d+"),
    ("weight memory", r"weights_\d+"),
    ("fetch", r"(loader|activations)\b.*"),
    ("rest", ".*"),
)
"""Components, and the nets and memories of each; the first that fits counts."""

COMPONENTS: tuple[str, ...] = tuple(name for name, _ in _COMPONENTS)
"""Parts of the hardware whose toggles are told apart.

``operands``: the registers of words that all PEs of a row or column see. ``AND``, ``popcount``, ``accumulators``: in
the PEs; registers of the parts' counts belong to the popcount, that of their sum to the accumulator. ``column sums``:
all of theirs. ``drained sums``: the array's second set of registers, and its control. ``window buffer``, ``weight
memory``: the words read out. ``fetch``: loader and activation memory.
"""

PE_ARRAY = COMPONENTS[:4]
"""Components that compute: the PEs and their operands."""


@dataclass(frozen=True)
class Toggles:
    """Toggles of some runs.

    Attributes
    ----------
    nets
        Of each net, by instances and name, such as ``array/pe_0_0/sum``, or of what a memory reads, by its name.
    """

    nets: Mapping[str, int]

    @cached_property
    def components(self) -> dict[str, int]:
        """Sums, by :data:`COMPONENTS`."""
        sums = dict.fromkeys(COMPONENTS, 0)
        for net, toggles in self.nets.items():
            sums[next(name for name, nets in _COMPONENTS if re.fullmatch(nets, net))] += toggles
        return sums

    @property
    def pe_array(self) -> int:
        """Sum over :data:`PE_ARRAY`."""
        return sum(self.components[name] for name in PE_ARRAY)

    @property
    def total(self) -> int:
        """Sum over everything."""
        return sum(self.nets.values())


def count_toggles(program: Program, images: npt.NDArray[np.uint8]) -> tuple[list[Execution], Toggles]:
    """Execute images in Verilator and count toggles, from the first cycle of each run to its last one.

    Parameters
    ----------
    program
        What to run.
    images
        ``uint8``, shape (n, channels, height, width).

    Returns
    -------
    runs
        One execution for each batch.
    toggles
        Of all of them.

    Raises
    ------
    BitwrightError
        If Verilator or a compiler is missing, or a part of the hardware was not found in what Verilator wrote.
    """
    with tempfile.TemporaryDirectory(prefix="bitwright-") as folder:
        path = Path(folder) / "run"
        runs = VerilatorBackend(program.spec, saif=path).run(program, images)
        counts: dict[str, int] = {}
        for number in range(len(runs)):
            for sign, suffix in ((1, ""), (-1, ".start")):
                with path.with_name(f"run.{number}{suffix}").open(encoding="utf-8") as lines:
                    for net, toggles in read_saif(lines):
                        counts[net] = counts.get(net, 0) + sign * toggles
    names = driven_nets(verilog(program.spec), TOP)
    toggles = Toggles({name: counts[net] for net, name in names.items() if net in counts})
    found = {next(part for part, nets in _COMPONENTS if re.fullmatch(nets, net)) for net in toggles.nets}
    if missing := set(COMPONENTS) - found:
        raise BitwrightError(
            f"Verilator's SAIF has no net of {', '.join(sorted(missing))}; this is a defect of Bitwright, report it."
        )
    return runs, toggles


_SAIF_SCOPE = re.compile(r"\s*\(INSTANCE (\S+)")
_SAIF_NET = re.compile(r"\s*\((\S+?)(?:\\\[\d+\\\])? \(T0 .*\(TC (\d+)\)\)")


def read_saif(lines: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Toggles in a SAIF file as Verilator writes it, one instance or bit a line.

    Yields
    ------
    net, toggles
        Of each bit: instances below the top module and name, separated by slashes.
    """
    scopes: list[str] = []  # of each open bracket: its instance, or nothing
    for line in lines:
        if net := _SAIF_NET.match(line):
            yield "/".join([*(scope for scope in scopes if scope), net[1]]).removeprefix(f"TOP/{TOP}/"), int(net[2])
        elif scope := _SAIF_SCOPE.match(line):
            scopes.append(scope[1])
        elif line.strip() == "(NET":
            scopes.append("")
        elif line.strip() == ")" and scopes:
            scopes.pop()


_NAME = re.compile(r"\\(\S+) |\b([A-Za-z]\w*)|(_\d+_)")
_ASSIGN = re.compile(r"^  assign (.*?) = (.*);$")
_REGISTER = re.compile(r"^ +(?:if \(.*\) )?([^=]*?) <= (.*);$")
_MEMORY = re.compile(r"^  reg \[\d+:0\] (\S+) +\[\d+:0\];$")
_INSTANCE = re.compile(r"^  (\S+) +(\S+) +\($")


def driven_nets(text: str, top: str) -> dict[str, str]:
    """Nets with a name in Verilog, as Yosys writes it, that an operator, a register or a memory drives.

    Parameters
    ----------
    text
        Verilog of a module and of all modules in it.
    top
        Name of the module.

    Returns
    -------
    names
        By instances and name, separated by slashes: the same, or the memory that the net is read from.
    """
    modules = {}
    for module in re.split(r"^module ", text, flags=re.M)[1:]:
        modules[module.split("(")[0].strip().removeprefix("\\")] = _read_module(module)

    def walk(module: str, prefix: str) -> Iterator[tuple[str, str]]:
        nets, instances = modules[module]
        for net, name in nets.items():
            yield prefix + net, prefix + name
        for instance, kind in instances.items():
            yield from walk(kind, f"{prefix}{instance}/")

    return dict(walk(top, ""))


def _read_module(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Driven nets of a module, by name, and modules of its instances."""
    nets: dict[str, str] = {}
    instances: dict[str, str] = {}
    memories: set[str] = set()
    reads: dict[str, str] = {}  # memory of each nameless register that is read from one
    for line in text.splitlines():
        if memory := _MEMORY.match(line):
            memories.add(memory[1].removeprefix("\\"))
        elif instance := _INSTANCE.match(line):
            instances[instance[2].removeprefix("\\")] = instance[1].removeprefix("\\")
        elif assign := _ASSIGN.match(line):
            named, nameless = _names(assign[2])
            read = {reads[name] for name in nameless & reads.keys()} | (named & memories)
            if len(read) == 1 and not named - memories:
                nets |= dict.fromkeys(_names(assign[1])[0], *read)
            elif nameless or re.search(r"[^\w\s\\\[\]{}:,'$.]", assign[2]):  # more than names and brackets
                nets |= {name: name for name in _names(assign[1])[0]}
        elif register := _REGISTER.match(line):
            named, nameless = _names(register[1])
            if read := _names(register[2])[0] & memories:
                reads |= dict.fromkeys(nameless, *read)
            if not named & memories:  # else the other names are of its address
                nets |= {name: name for name in named}
    return nets, instances


def _names(expression: str) -> tuple[set[str], set[str]]:
    """Nets in an expression: those with a name of their own, and those that only Yosys named."""
    found = _NAME.findall(re.sub(r"\d*'s?[bhd][0-9a-fxz]+", "", expression + " "))
    return {escaped or name for escaped, name, _ in found if escaped or name}, {name for _, _, name in found if name}
