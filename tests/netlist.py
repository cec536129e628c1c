"""Gates of a design before and after synthesis, for many random inputs at once."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitwright.hw.synthesis import Family, Netlist, run

_MODELS: Mapping[Family, str] = {
    "xilinx7": "+/xilinx/cells_sim.v",
    "ecp5": "-D NO_INCLUDES +/ecp5/cells_sim.v",
    "ice40": "+/ice40/cells_sim.v",
}
_GATES = "hierarchy -top top; proc; flatten; opt -full; dffunmap; techmap; simplemap; aigmap; opt_clean -purge"

Words = npt.NDArray[np.uint64]


def gates_of_design(design: str, folder: Path) -> "Gates":
    """Gates of RTLIL; ``folder`` takes the files."""
    (folder / "design.il").write_text(design)
    return Gates("read_rtlil design.il", folder)


def gates_of_netlist(netlist: Netlist, folder: Path, open_ends: bool = False) -> "Gates":
    """Gates of a netlist, by Yosys's models of its cells; an open input is all ``open_ends``."""
    design = json.loads(netlist.path.read_text())
    top = design["modules"]["top"]
    design["modules"] = {"top": top}
    for cell in top["cells"].values():
        pins = cell["connections"]
        opened = [pin for pin, bits in pins.items() if cell["port_directions"][pin] == "output" and bits == ["x"]]
        for pin in opened:
            del pins[pin]
    (folder / "netlist.json").write_text(json.dumps(design))
    fill = "setundef -one" if open_ends else "setundef -zero"
    return Gates(f"read_json netlist.json; {fill}; read_verilog -defer {_MODELS[netlist.family]}", folder)


class Gates:
    """AND gates, inverters and flip-flops, evaluated for 64 runs in every word.

    Parameters
    ----------
    commands
        Yosys commands that read a design with a module ``top``.
    folder
        In which they run; ``gates.json`` there takes the gates.
    """

    def __init__(self, commands: str, folder: Path) -> None:
        run("yosys", ["-q", "-p", f"{commands}; {_GATES}; write_json gates.json"], folder)
        module = json.loads((folder / "gates.json").read_text())["modules"]["top"]
        self.ports = {name: (port["direction"], port["bits"]) for name, port in module["ports"].items()}
        drivers = {}
        self._registers = []
        for cell in module["cells"].values():
            pins = {pin: bits[0] for pin, bits in cell["connections"].items()}
            if cell["type"] == "$_AND_":
                drivers[pins["Y"]] = (pins["A"], pins["B"])
            elif cell["type"] == "$_NOT_":
                drivers[pins["Y"]] = (pins["A"],)
            else:
                assert cell["type"] == "$_DFF_P_", cell["type"]
                self._registers.append((pins["Q"], pins["D"]))
        self._gates = _sorted(drivers)
        self._state: dict[int | str, Words] = {}

    def reset(self) -> None:
        """Set all registers to 0, where they start."""
        self._state = {}

    def step(self, inputs: Mapping[str, Words]) -> dict[str, Words]:
        """Outputs in a cycle, shape (bits, words), after which the clock ticks."""
        shape = next(iter(inputs.values())).shape[1:]
        zero = np.zeros(shape, np.uint64)
        values: dict[int | str, Words] = {"0": zero, "1": ~zero, "x": zero}
        values |= {q: self._state.get(q, zero) for q, _ in self._registers}
        for name, (direction, bits) in self.ports.items():
            if direction == "input" and name not in ("clk", "rst"):
                values |= dict(zip(bits, inputs[name], strict=True))
            elif direction == "input":
                values |= dict.fromkeys(bits, zero)
        for output, operands in self._gates:
            first = values[operands[0]]
            values[output] = first & values[operands[1]] if len(operands) == 2 else ~first
        self._state = {q: values[d] for q, d in self._registers}
        return {
            name: np.stack([values[bit] for bit in bits])
            for name, (direction, bits) in self.ports.items()
            if direction == "output"
        }


def _sorted(drivers: dict[int | str, tuple[int | str, ...]]) -> list[tuple[int | str, tuple[int | str, ...]]]:
    """Gates so that each comes after those that it reads."""
    order: list[tuple[int | str, tuple[int | str, ...]]] = []
    done: set[int | str] = set()
    for root in drivers:
        stack = [root]
        while stack:
            net = stack[-1]
            waiting = [source for source in drivers.get(net, ()) if source in drivers and source not in done]
            stack.extend(waiting)
            if not waiting:
                stack.pop()
                if net not in done:
                    done.add(net)
                    order.append((net, drivers[net]))
    return order
