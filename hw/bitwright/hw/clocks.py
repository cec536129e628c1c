"""Clocks of boards: the PLLs that make a machine's clock of a board's oscillator."""

from collections.abc import Callable
from typing import Any

from amaranth.hdl import ClockSignal, Const, Instance, Module, Signal, Value
from amaranth.lib import io

from bitwright.hw.errors import BitwrightError

Clock = Callable[[Module, Any], Value]
"""Drives the clock of domain ``sync``; returns whether it is stable."""


def ice40_clock(oscillator_mhz: float, clock_mhz: float) -> Clock:
    """Clock of an iCE40's PLL, straight from the oscillator's pin.

    Raises
    ------
    BitwrightError
        If the PLL cannot make that frequency.
    """
    # Lattice TN1251: an oscillator of 533 to 1066 MHz. The filter below is for a comparison clock from 10 to 20 MHz.
    for shift in range(1, 7):
        multiplier = clock_mhz * (1 << shift) / oscillator_mhz
        if multiplier == int(multiplier) <= 64 and 533 <= clock_mhz * (1 << shift) <= 1066:
            break
    else:
        raise BitwrightError(_no_clock(oscillator_mhz, clock_mhz))
    if not 10 <= oscillator_mhz < 20:
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
    # Lattice FPGA-TN-02200: a comparison clock of at least 10 MHz, an oscillator of 400 to 800 MHz, dividers up to 128.
    divider = min(int(600 // clock_mhz), 128)
    ratios = [(clock_mhz * before / oscillator_mhz, before) for before in range(1, int(oscillator_mhz / 10) + 1)]
    found = [(int(feedback), before) for feedback, before in ratios if feedback == int(feedback)]
    if not found or not 400 <= divider * clock_mhz <= 800:
        raise BitwrightError(_no_clock(oscillator_mhz, clock_mhz))
    feedback, before = found[0]

    def make(m: Module, platform: Any) -> Signal:
        stable = Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=f"{oscillator_mhz:g}",
            a_FREQUENCY_PIN_CLKOP=f"{clock_mhz:g}",
            p_CLKI_DIV=before,
            p_CLKFB_DIV=feedback,
            p_CLKOP_DIV=divider,
            p_CLKOP_CPHASE=divider // 2,
            p_CLKOP_FPHASE=0,
            p_CLKOP_ENABLE="ENABLED",
            p_FEEDBK_PATH="CLKOP",
            i_CLKI=_oscillator(m, platform),
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


def series7_clock(oscillator_mhz: float, clock_mhz: float) -> Clock:
    """Clock of a 7-series PLL.

    Raises
    ------
    BitwrightError
        If the PLL cannot make that frequency.
    """
    # Xilinx UG472 and DS181: an oscillator of 800 to 1600 MHz in the slowest grade, an output divider of at most 128.
    multipliers = [number for number in range(2, 65) if 800 <= number * oscillator_mhz <= 1600]
    dividers = [(number * oscillator_mhz / clock_mhz, number) for number in multipliers]
    found = [(int(divider), number) for divider, number in dividers if divider == int(divider) <= 128]
    if not found:
        raise BitwrightError(_no_clock(oscillator_mhz, clock_mhz))
    divider, multiplier = found[0]

    def make(m: Module, platform: Any) -> Signal:
        stable, loop, output = Signal(), Signal(), Signal()
        m.submodules.pll = Instance(
            "PLLE2_BASE",
            p_CLKIN1_PERIOD=1e3 / oscillator_mhz,
            p_CLKFBOUT_MULT=multiplier,
            p_CLKOUT0_DIVIDE=divider,
            i_CLKIN1=_oscillator(m, platform),
            i_CLKFBIN=loop,
            i_PWRDWN=0,
            i_RST=0,
            o_CLKFBOUT=loop,
            o_CLKOUT0=output,
            o_LOCKED=stable,
        )
        m.submodules.clock_buffer = Instance("BUFG", i_I=output, o_O=ClockSignal())
        return stable

    return make


def direct_clock(oscillator_mhz: float, clock_mhz: float) -> Clock:
    """The oscillator itself, on any platform.

    Raises
    ------
    BitwrightError
        If another frequency is asked for.
    """
    if clock_mhz != oscillator_mhz:
        raise BitwrightError(
            f"The board's oscillator has {oscillator_mhz:g} MHz and is used as it is, but {clock_mhz:g} MHz is asked "
            "for; leave the clock out."
        )

    def make(m: Module, platform: Any) -> Value:
        m.d.comb += ClockSignal().eq(_oscillator(m, platform))
        return Const(1)

    return make


def _oscillator(m: Module, platform: Any) -> Value:
    """The board's oscillator, from its pin."""
    m.submodules.oscillator = oscillator = io.Buffer(
        io.Direction.Input, platform.request(platform.default_clk, dir="-")
    )
    return oscillator.i


def _no_clock(oscillator_mhz: float, clock_mhz: float) -> str:
    return (
        f"The PLL cannot make {clock_mhz:g} MHz of {oscillator_mhz:g} MHz; choose another clock, such as a multiple "
        f"of {oscillator_mhz:g} MHz."
    )
