"""Boards: the accelerator behind a serial line, on the pins of ``amaranth-boards``."""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amaranth.build.res import ResourceError
from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.clocks import Clock, direct_clock, ecp5_clock, ice40_clock, series7_clock
from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.framing import SILENCE_SECONDS
from bitwright.hw.isa import PRESETS, ArraySpec, preset
from bitwright.hw.link import DIVISOR_MIN, Link, UARTReceiver, UARTTransmitter
from bitwright.hw.popcount import Fabric
from bitwright.hw.rtlil import share_modules
from bitwright.hw.synthesis import (
    PARTS,
    Netlist,
    Part,
    TooLargeError,
    bitstream,
    check_size,
    design_text,
    place_and_route,
    synthesize,
)

BAUD_ERROR_MAX = 0.02
"""How far a line may be off: a tenth of a bit after a byte is half of what a sample bears, the rest is the host's."""


class BoardMachine(wiring.Component):
    """An accelerator whose host is a serial line: all of a board but its clock and its pins.

    Parameters
    ----------
    spec
        Array; without ``weight_stream``.
    divisor
        Clock cycles of a bit on the line.
    silence_cycles
        After so long a pause, a frame that has begun is dropped.
    fabric
        What the PEs are built for.

    Members
    -------
    rx, tx : ``In(1)``, ``Out(1)``
        Serial line, from and to the host.
    done : ``Out(1)``
        The last Program has ended.
    """

    rx: Signal
    tx: Signal
    done: Signal

    def __init__(self, spec: ArraySpec, divisor: int, silence_cycles: int, fabric: Fabric = "portable") -> None:
        self.spec, self.divisor, self.silence_cycles = spec, divisor, silence_cycles
        self.fabric: Fabric = fabric
        # The stubs know no initial values of members.
        ports: Any = {"rx": In(1, init=1), "tx": Out(1, init=1), "done": Out(1)}  # pyright: ignore[reportCallIssue]
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        """Describe the hardware."""
        m = Module()
        m.submodules.receiver = receiver = UARTReceiver(self.divisor)
        m.submodules.transmitter = transmitter = UARTTransmitter(self.divisor)
        m.submodules.link = link = Link(self.spec, self.silence_cycles)
        m.submodules.accelerator = accelerator = Accelerator(self.spec, self.fabric)
        wiring.connect(m, receiver.received, link.received)
        wiring.connect(m, link.answer, transmitter.bytes)
        wiring.connect(m, link.bus, accelerator.host)
        m.d.comb += [
            receiver.line.eq(self.rx),
            self.tx.eq(transmitter.line),
            link.interrupt.eq(accelerator.interrupt),
            self.done.eq(accelerator.interrupt),
        ]
        return m


class BoardTop(Elaboratable):
    """A board's machine on its pins, with its clock.

    The machine's clock domain starts in reset and leaves it once the clock is stable.

    Parameters
    ----------
    machine
        What is built.
    clock
        Makes the clock: gets the module and the platform, drives the clock signal and returns whether it is stable.
    """

    def __init__(self, machine: BoardMachine, clock: Clock) -> None:
        self.machine, self.clock = machine, clock

    def elaborate(self, platform: Any) -> Module:
        """Describe the hardware."""
        m = Module()
        m.domains.sync = ClockDomain()
        stable = self.clock(m, platform)
        m.submodules.reset = ResetSynchronizer(~stable)
        m.submodules.machine = machine = self.machine
        uart = platform.request("uart", 0, dir="-")
        m.submodules.rx = rx = io.Buffer(io.Direction.Input, uart.rx)
        m.submodules.tx = tx = io.Buffer(io.Direction.Output, uart.tx)
        m.submodules.led = led = io.Buffer(io.Direction.Output, _lamp(platform))
        m.d.comb += [machine.rx.eq(rx.i), tx.o.eq(machine.tx), led.o.eq(machine.done)]
        return m


def _lamp(platform: Any) -> Any:
    """A lamp, or one color of one."""
    try:
        return platform.request("led", 0, dir="-")
    except ResourceError:
        return platform.request("rgb_led", 0, dir="-").g


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that Bitwright builds for.

    Parameters
    ----------
    title
        As people call it.
    part
        Its FPGA, a name in :data:`bitwright.hw.synthesis.PARTS`, or None if it is none of those.
    array
        Array that is built unless another one is asked for.
    oscillator_mhz, clock_mhz
        Clock on the board, and the one that the machine runs at.
    baud
        Bits a second on the serial line.
    platform
        Makes the platform of ``amaranth-boards``.
    pll
        Makes the clock of ``clock_mhz`` from ``oscillator_mhz``.
    """

    title: str
    part: str | None
    array: ArraySpec
    oscillator_mhz: float
    clock_mhz: float
    baud: int
    platform: Callable[[], Any]
    pll: Callable[[float, float], Clock]

    @property
    def open(self) -> bool:
        """Whether open tools make its bitstream; else those of its vendor do, from :func:`write_project`."""
        return self.part is not None and bool(PARTS[self.part].device)

    @property
    def divisor(self) -> int:
        """Clock cycles of a bit on the serial line."""
        return round(self.clock_mhz * 1e6 / self.baud)

    @property
    def silence_cycles(self) -> int:
        """Cycles after which a frame that has begun is dropped: a power of two, for a plain counter."""
        return 1 << int(self.clock_mhz * 1e6 * SILENCE_SECONDS).bit_length()

    def check(self, spec: ArraySpec) -> None:
        """Refuse what cannot work: no clock, a line too fast for it, an array that streams weights.

        Raises
        ------
        BitwrightError
            If so.
        """
        self._check_clock()
        if spec.weight_stream:
            raise BitwrightError(
                "The array takes a stream of weights (weight_stream), which the serial link does not carry; "
                "choose an array without it."
            )

    def _check_clock(self) -> None:
        if not 0 < self.clock_mhz < math.inf:
            raise BitwrightError(
                f"{self.title} has a clock of {self.clock_mhz:g} MHz, expected a number above 0; choose another clock."
            )
        error = abs(self.clock_mhz * 1e6 / self.divisor / self.baud - 1) if self.divisor else 1.0
        if self.divisor < DIVISOR_MIN or error > BAUD_ERROR_MAX:
            raise BitwrightError(
                f"At {self.clock_mhz:g} MHz a bit of {self.baud:,} baud takes {self.divisor} cycles, {error:.1%} off; "
                f"expected at least {DIVISOR_MIN} cycles and at most {BAUD_ERROR_MAX:.0%}: choose another clock."
            )

    def clock_below(self, most: float) -> int | None:
        """Highest clock, whole MHz and at most ``most``, that the PLL makes and the line bears, if there is one."""
        for clock in range(int(most), 0, -1):
            try:
                replace(self, clock_mhz=clock)._check_clock()
                self.pll(self.oscillator_mhz, clock)
            except BitwrightError:
                continue
            return clock
        return None

    def machine(self, spec: ArraySpec, fabric: Fabric = "portable") -> BoardMachine:
        """What :meth:`check` lets pass, as hardware."""
        self.check(spec)
        return BoardMachine(spec, self.divisor, self.silence_cycles, fabric)

    def top(self, spec: ArraySpec, fabric: Fabric) -> BoardTop:
        """All of the board's FPGA."""
        self._check_clock()
        clock = self.pll(self.oscillator_mhz, self.clock_mhz)  # first: it may refuse the frequency
        return BoardTop(self.machine(spec, fabric), clock)


def _icebreaker() -> Any:
    from amaranth_boards.icebreaker import ICEBreakerPlatform

    return ICEBreakerPlatform()


def _ulx3s() -> Any:
    from amaranth_boards.ulx3s import ULX3S_85F_Platform

    return ULX3S_85F_Platform()


_ICEBREAKER_ARRAY = replace(
    preset("tiny"),
    accumulator_width=14,
    activation_depth=128,
    window_depth=32,
    threshold_depth=128,
    result_depth=64,
    row_tiles_max=8,
)
"""``tiny`` with less memory, and so with shorter addresses: with the link it would need more cells than there are."""


def _ecpix5() -> Any:
    from amaranth_boards.ecpix5 import ECPIX585Platform

    return ECPIX585Platform()


def _arty_a7() -> Any:
    from amaranth_boards.arty_a7 import ArtyA7_35Platform

    return ArtyA7_35Platform()


BOARDS: dict[str, Board] = {
    "icebreaker": Board(
        title="iCEBreaker",
        part="up5k",
        array=_ICEBREAKER_ARRAY,
        oscillator_mhz=12,
        clock_mhz=24,
        baud=1_000_000,
        platform=_icebreaker,
        pll=ice40_clock,
    ),
    "ulx3s": Board(
        title="ULX3S-85F",
        part="85k",
        array=preset("edge"),
        oscillator_mhz=25,
        clock_mhz=62.5,
        baud=1_000_000,
        platform=_ulx3s,
        pll=ecp5_clock,
    ),
    "ecpix5": Board(
        title="ECPIX-5 85F",
        part="um5g-85k",
        array=preset("edge"),
        oscillator_mhz=100,
        clock_mhz=80,
        baud=1_000_000,
        platform=_ecpix5,
        pll=ecp5_clock,
    ),
    "arty-a7": Board(
        title="Arty A7-35",
        part="xc7a35t",
        array=replace(preset("tiny"), rows=16, columns=4, row_tiles_max=16),
        oscillator_mhz=100,
        clock_mhz=50,
        baud=1_000_000,
        platform=_arty_a7,
        pll=series7_clock,
    ),
}
"""Boards by name."""


def board(name: str) -> Board:
    """Board of a name in :data:`BOARDS`, or of a platform as ``module:class``, whose oscillator is the clock.

    Raises
    ------
    BitwrightError
        If there is none, or the platform lacks an oscillator, a serial line or a lamp.
    """
    if ":" in name:
        return _platform_board(name)
    if name not in BOARDS:
        raise BitwrightError(
            f"Unknown board {name!r}, expected one of {', '.join(BOARDS)}, or a platform of amaranth-boards such as "
            "amaranth_boards.nexys4ddr:Nexys4DDRPlatform."
        )
    return BOARDS[name]


def _platform_board(name: str) -> Board:
    module, _, kind = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), kind)
        platform = make()
        resources, oscillator = platform.resources, platform.default_clk_constraint.frequency
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise BitwrightError(
            f"{name!r} gives no Amaranth platform with an oscillator ({error}); name its module and its class, such as "
            "amaranth_boards.nexys4ddr:Nexys4DDRPlatform."
        ) from None
    if ("uart", 0) not in resources or not {("led", 0), ("rgb_led", 0)} & resources.keys():
        raise BitwrightError(f"{name!r} lacks a resource `uart` or a lamp (`led`, `rgb_led`); choose another platform.")
    return Board(
        title=kind,
        part=None,
        array=preset("tiny"),
        oscillator_mhz=oscillator / 1e6,
        clock_mhz=oscillator / 1e6,
        baud=1_000_000,
        platform=make,
        pll=direct_clock,
    )


@dataclass(frozen=True)
class Build:
    """A board's bitstream and what it takes.

    Parameters
    ----------
    bitstream
        File for the board's own loader.
    frequency
        Highest clock frequency, MHz.
    used, available
        Resources by nextpnr's names.
    """

    bitstream: Path
    frequency: float
    used: Mapping[str, int]
    available: Mapping[str, int]


def synthesize_board(board: Board, spec: ArraySpec, cache: Path) -> tuple[Netlist, str]:
    """All of a board's FPGA as a netlist, and the constraints of its pins and clocks.

    Parameters
    ----------
    board, spec
        Board, and its array.
    cache
        Folder that keeps results.

    Raises
    ------
    BitwrightError
        If the board cannot have that array, or its PLL not that clock; if a tool is missing or fails.
    """
    part = _part(board)
    files = board.platform().prepare(board.top(spec, part.fabric), "top").files
    constraints = next(text for name, text in files.items() if name.endswith((".pcf", ".lpf")))
    netlist = synthesize(share_modules(_text(files["top.il"])), part.family, cache, part.synthesis)
    return netlist, _text(constraints)


def build(board: Board, spec: ArraySpec, folder: Path, cache: Path) -> Build:
    """Synthesize, place and route a board, and write its bitstream to a folder.

    Raises
    ------
    BitwrightError
        If the design is too large for the board, and by how much; if it is too slow for the board's clock; if a tool is
        missing or fails.
    """
    part = _part(board)
    if not board.open:
        raise BitwrightError(
            f"Open tools make no bitstream for {part.name}; write a project for its vendor's tools (write_project)."
        )
    netlist, constraints = synthesize_board(board, spec, cache)
    placed = place_and_route(netlist, part, board.clock_mhz, constraints)
    if placed.frequency < board.clock_mhz:
        slower = board.clock_below(placed.frequency)
        raise BitwrightError(
            f"The design reaches {placed.frequency:.1f} MHz on {board.title}, its clock has {board.clock_mhz:g} MHz; "
            f"choose {f'a lower clock (--clock {slower}) or ' if slower else ''}a smaller array."
        )
    path = folder / f"bitwright.{'bin' if part.family == 'ice40' else 'bit'}"
    content = bitstream(netlist, part, board.clock_mhz, constraints)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Build(path, placed.frequency, placed.used, placed.available)


def sizes(board: Board, spec: ArraySpec, cache: Path) -> dict[str, tuple[int, int]]:
    """Resources that a board's machine takes, and those that its FPGA has.

    Raises
    ------
    TooLargeError
        If it takes more.
    BitwrightError
        If the board cannot have that array; if a tool is missing or fails.
    """
    part = _part(board)
    weights = spec.rows * spec.lanes * spec.weight_depth
    if weights > part.memory_bits:  # seen before a synthesis that would take its time
        raise TooLargeError(
            f"The weight memories need {weights:,} bits, but {part.name} has {part.memory_bits:,}: "
            f"{weights - part.memory_bits:,} too many; choose an array with less weight_depth or a larger part."
        )
    if board.open:
        netlist, constraints = synthesize_board(board, spec, cache)
        return check_size(netlist, part, constraints)
    text = design_text(board.machine(spec, part.fabric))
    return check_size(synthesize(text, part.family, cache, part.synthesis), part)


def fit(board: Board, cache: Path) -> str:
    """Largest preset that fits a board.

    Raises
    ------
    BitwrightError
        If none does, or a tool is missing or fails.
    """
    for name, spec in reversed(PRESETS.items()):
        try:
            sizes(board, spec, cache)
        except TooLargeError:
            continue
        return name
    raise BitwrightError(f"No preset fits {board.title}; give an array of your own, with less memory.")


def write_project(board: Board, spec: ArraySpec, folder: Path) -> list[str]:
    """Write what the tools of a board's vendor build a bitstream of: Verilog, constraints, scripts.

    Returns
    -------
    list
        Names of the files; ``build_top.sh`` runs the vendor's tools.

    Raises
    ------
    BitwrightError
        If the board cannot have that array, or its PLL not that clock; if the folder cannot be written.
    """
    fabric = "portable" if board.part is None else PARTS[board.part].fabric
    plan = board.platform().prepare(board.top(spec, fabric), "top")
    for name, content in plan.files.items():  # one by one: the folder may hold other files
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sorted(plan.files)


def _part(board: Board) -> Part:
    if board.part is None:
        raise BitwrightError(
            f"Bitwright does not know the FPGA of {board.title}, and what fits it; leave out --fit and --size-only: "
            "its vendor's tools will tell."
        )
    return PARTS[board.part]


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode()
