"""Boards: the accelerator behind a serial line, the clock that feeds it, and the pins of ``amaranth-boards``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockDomain, ClockSignal, Elaboratable, Instance, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out

from bitwright.hw.accelerator import Accelerator
from bitwright.hw.errors import BitwrightError
from bitwright.hw.files import replacing
from bitwright.hw.framing import SILENCE_SECONDS
from bitwright.hw.isa import ArraySpec, preset
from bitwright.hw.link import DIVISOR_MIN, Link, UARTReceiver, UARTTransmitter
from bitwright.hw.popcount import Fabric
from bitwright.hw.rtlil import share_modules
from bitwright.hw.synthesis import PARTS, Netlist, bitstream, place_and_route, synthesize

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

    def __init__(self, machine: BoardMachine, clock: "Clock") -> None:
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
        m.submodules.led = led = io.Buffer(io.Direction.Output, platform.request("led", 0, dir="-"))
        m.d.comb += [machine.rx.eq(rx.i), tx.o.eq(machine.tx), led.o.eq(machine.done)]
        return m


Clock = Callable[[Module, Any], Signal]
"""Drives the clock of domain ``sync``; returns whether it is stable."""


def ice40_clock(oscillator_mhz: float, clock_mhz: float) -> Clock:
    """Clock of an iCE40's PLL, straight from the oscillator's pin.

    Raises
    ------
    BitwrightError
        If the PLL cannot make that frequency.
    """
    # Lattice TN1251: a comparison clock of 10 to 133 MHz, an oscillator of 533 to 1066 MHz.
    for shift in range(1, 7):
        multiplier = clock_mhz * (1 << shift) / oscillator_mhz
        if multiplier == int(multiplier) <= 64 and 533 <= clock_mhz * (1 << shift) <= 1066:
            break
    else:
        raise BitwrightError(_no_clock(oscillator_mhz, clock_mhz))

    def make(m: Module, platform: Any) -> Signal:
        stable = Signal()
        m.submodules.pll = Instance(
            "SB_PLL40_PAD",
            p_FEEDBACK_PATH="SIMPLE",
            p_DIVR=0,
            p_DIVF=int(multiplier) - 1,
            p_DIVQ=shift,
            p_FILTER_RANGE=1,
            i_PACKAGEPIN=platform.request(platform.default_clk, dir="-").io,
            i_RESETB=1,
            i_BYPASS=0,
            o_PLLOUTGLOBAL=ClockSignal(),
            o_LOCK=stable,
        )
        return stable

    return make


def ecp5_clock(oscillator_mhz: float, clock_mhz: float) -> Clock:
    """Clock of an ECP5's PLL.

    Raises
    ------
    BitwrightError
        If the PLL cannot make that frequency.
    """
    # Lattice FPGA-TN-02200: an oscillator of 400 to 800 MHz.
    feedback = clock_mhz / oscillator_mhz
    divider = int(600 // clock_mhz)
    if feedback != int(feedback) or not 400 <= divider * clock_mhz <= 800:
        raise BitwrightError(_no_clock(oscillator_mhz, clock_mhz))

    def make(m: Module, platform: Any) -> Signal:
        stable = Signal()
        m.submodules.oscillator = oscillator = io.Buffer(
            io.Direction.Input, platform.request(platform.default_clk, dir="-")
        )
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{oscillator_mhz:g}",
            a_FREQUENCY_PIN_CLKOP=f"{clock_mhz:g}",
            p_CLKI_DIV=1,
            p_CLKFB_DIV=int(feedback),
            p_CLKOP_DIV=divider,
            p_CLKOP_CPHASE=divider // 2,
            p_CLKOP_FPHASE=0,
            p_CLKOP_ENABLE="ENABLED",
            p_FEEDBK_PATH="CLKOP",
            i_CLKI=oscillator.i,
            i_CLKFB=ClockSignal(),
            i_RST=0,
            i_STDBY=0,
            i_PHASESEL0=0,
            i_PHASESEL1=0,
            i_PHASEDIR=1,
            i_PHASESTEP=1,
            i_PHASELOADREG=1,
            i_PLLWAKESYNC=0,
            i_ENCLKOP=0,
            o_CLKOP=ClockSignal(),
            o_LOCK=stable,
        )
        return stable

    return make


def _no_clock(oscillator_mhz: float, clock_mhz: float) -> str:
    return (
        f"The PLL cannot make {clock_mhz:g} MHz of {oscillator_mhz:g} MHz; choose another clock, such as a multiple "
        f"of {oscillator_mhz:g} MHz."
    )


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board that Bitwright builds for.

    Parameters
    ----------
    title
        As people call it.
    part
        Its FPGA, a name in :data:`bitwright.hw.synthesis.PARTS`.
    array
        Array that is built unless another one is asked for, which fits.
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
    part: str
    array: ArraySpec
    oscillator_mhz: float
    clock_mhz: float
    baud: int
    platform: Callable[[], Any]
    pll: Callable[[float, float], Clock]

    @property
    def divisor(self) -> int:
        """Clock cycles of a bit on the serial line."""
        return round(self.clock_mhz * 1e6 / self.baud)

    @property
    def silence_cycles(self) -> int:
        """Cycles after which a frame that has begun is dropped: a power of two, for a plain counter."""
        return 1 << int(self.clock_mhz * 1e6 * SILENCE_SECONDS).bit_length()

    def check(self, spec: ArraySpec) -> None:
        """Refuse what cannot work: a line too fast for the clock, an array that streams weights.

        Raises
        ------
        BitwrightError
            If so.
        """
        error = abs(self.clock_mhz * 1e6 / self.divisor / self.baud - 1) if self.divisor else 1.0
        if self.divisor < DIVISOR_MIN or error > BAUD_ERROR_MAX:
            raise BitwrightError(
                f"At {self.clock_mhz:g} MHz a bit of {self.baud:g} baud takes {self.divisor} cycles, {error:.1%} off; "
                f"expected at least {DIVISOR_MIN} cycles and at most {BAUD_ERROR_MAX:.0%}: choose another clock."
            )
        if spec.weight_stream:
            raise BitwrightError(
                "The array takes a stream of weights (weight_stream), which the serial link does not carry; "
                "choose an array without it."
            )

    def machine(self, spec: ArraySpec, fabric: Fabric = "portable") -> BoardMachine:
        """What :meth:`check` lets pass, as hardware."""
        self.check(spec)
        return BoardMachine(spec, self.divisor, self.silence_cycles, fabric)

    def top(self, spec: ArraySpec, fabric: Fabric) -> BoardTop:
        """All of the board's FPGA."""
        clock = self.pll(self.oscillator_mhz, self.clock_mhz)
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
    weight_depth=128,
    threshold_depth=128,
    descriptor_depth=128,
    result_depth=64,
    row_tiles_max=8,
)
"""``tiny`` with less memory, and so with shorter addresses: with the link it would need more cells than there are."""

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
        clock_mhz=25,
        baud=1_000_000,
        platform=_ulx3s,
        pll=ecp5_clock,
    ),
}
"""Boards by name."""


def board(name: str) -> Board:
    """Board of a name in :data:`BOARDS`."""
    if name not in BOARDS:
        raise BitwrightError(f"Unknown board {name!r}, expected one of {', '.join(BOARDS)}.")
    return BOARDS[name]


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
    part = PARTS[board.part]
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
    part = PARTS[board.part]
    netlist, constraints = synthesize_board(board, spec, cache)
    placed = place_and_route(netlist, part, board.clock_mhz, constraints)
    if placed.frequency < board.clock_mhz:
        raise BitwrightError(
            f"The design reaches {placed.frequency:.1f} MHz on {board.title}, its clock has {board.clock_mhz:g} MHz; "
            f"choose a lower clock (--clock {int(placed.frequency)}) or a smaller array."
        )
    path = folder / f"bitwright.{'bin' if part.family == 'ice40' else 'bit'}"
    content = bitstream(netlist, part, board.clock_mhz, constraints)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return Build(path, placed.frequency, placed.used, placed.available)


def _text(content: str | bytes) -> str:
    return content if isinstance(content, str) else content.decode()
