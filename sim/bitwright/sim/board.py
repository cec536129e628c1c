"""Virtual boards: a board's machine, UART pins included, in Verilator: a line in this process, or a serial port."""

import contextlib
import os
import select
import struct
import subprocess
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from bitwright.hw.boards import Board
from bitwright.hw.errors import BitwrightError
from bitwright.hw.isa import ArraySpec
from bitwright.hw.verilog import emit
from bitwright.sim.backends.source import emitted
from bitwright.sim.backends.verilator import compile_simulator

TOP = "bitwright_board"
"""Name of the top module."""

_HARNESS = files("bitwright.sim").joinpath("board.cpp")

_SEND, _RUN, _RESET, _RESTART = range(4)
"""Commands of ``board.cpp``."""

_SLICE = 20_000
"""Cycles that are simulated before a serial port is looked at again."""

_IDLE_CYCLES = 2_000_000
"""Time stands still in a virtual board while nobody speaks with it, after this many cycles or the end of a Program."""


def build_board(board: Board, spec: ArraySpec) -> Path:
    """Compile the simulator of a board with an array, unless that was done before; returns the executable."""
    board.check(spec)
    parameters = f"{spec.to_json()} {board.divisor} {board.silence_cycles}"
    text = emitted(TOP, parameters, lambda: emit(board.machine(spec), TOP))
    return compile_simulator(text, TOP, _HARNESS.read_text())


class SimulatedLine:
    """A line to a simulated board. Its clock is the board's: nothing depends on how fast the simulation is.

    Parameters
    ----------
    board, spec
        Board and its array.

    Attributes
    ----------
    cycles
        Cycles simulated.
    waiting
        Bytes that are not yet sent.
    done
        Whether the last Program has ended.
    """

    def __init__(self, board: Board, spec: ArraySpec) -> None:
        self.name = f"the simulated {board.title}"
        self.cycles, self.waiting, self.done = 0, 0, False
        self._hertz = board.clock_mhz * 1e6
        simulator = build_board(board, spec)
        self._process = subprocess.Popen(  # noqa: S603
            [simulator, str(board.divisor)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def now(self) -> float:
        """Seconds of the board's clock."""
        return self.cycles / self._hertz

    def send(self, message: bytes) -> None:
        """Put bytes on the line."""
        self._command(_SEND, len(message))
        self._pipe("stdin").write(message)

    def receive(self, timeout: float) -> bytes:
        """What the board sends; simulates ``timeout`` seconds at most until it does."""
        return self.simulate(max(1, round(timeout * self._hertz)))

    def simulate(self, cycles: int) -> bytes:
        """What the board sends until it pauses, in so many cycles at most."""
        self._command(_RUN, min(cycles, 0xFFFFFFFF))
        with self._told():
            self._pipe("stdin").flush()
        simulated, count = struct.unpack("<II", self._take(8))
        found = self._take(count)
        self.cycles += simulated
        self.waiting, done = struct.unpack("<II", self._take(8))
        self.done = bool(done)
        return found

    def reset(self) -> None:
        """Reset the board: all registers, no memory."""
        self._command(_RESET)

    def restart(self) -> None:
        """Switch the board off and on."""
        self._command(_RESTART)

    def close(self) -> None:
        """End the simulation."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _command(self, *numbers: int) -> None:
        with self._told():
            self._pipe("stdin").write(struct.pack(f"<{len(numbers)}I", *numbers))

    def _take(self, count: int) -> bytes:
        found = self._pipe("stdout").read(count)
        if len(found) != count:
            raise BitwrightError(f"The simulator of {self.name} has ended; run the command again.")
        return found

    def _pipe(self, name: str) -> Any:
        return getattr(self._process, name)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BitwrightError(f"The simulator of {self.name} has failed: {error}; run the command again.") from error


class VirtualBoard:
    """A simulated board behind a pseudo-terminal, which any program opens as a serial port.

    Parameters
    ----------
    board, spec
        Board and its array.

    Attributes
    ----------
    port
        Name of the serial port.
    line
        The board.
    """

    def __init__(self, board: Board, spec: ArraySpec) -> None:
        self.line = SimulatedLine(board, spec)
        self._near, self._far = os.openpty()  # the far end stays open, so that hosts may come and go
        tty.setraw(self._far)
        self.port = os.ttyname(self._far)

    def serve(self, stop: threading.Event | None = None) -> None:
        """Pass bytes between the port and the board, until ``stop`` is set."""
        quiet = 0
        while stop is None or not stop.is_set():
            idle = quiet > (2 * _SLICE if self.line.done else _IDLE_CYCLES)
            if select.select([self._near], [], [], 0.05 if idle else 0)[0]:
                self.line.send(os.read(self._near, 1 << 16))
                quiet = 0
            elif idle:
                continue
            answer = self.line.simulate(_SLICE)
            quiet = 0 if answer or self.line.waiting else quiet + _SLICE
            if answer:
                os.write(self._near, answer)

    def close(self) -> None:
        """End the simulation and the port."""
        self.line.close()
        os.close(self._near)
        os.close(self._far)


@contextmanager
def serving(board: Board, spec: ArraySpec) -> Iterator[VirtualBoard]:
    """A virtual board that is served by a thread of this process."""
    virtual, stop = VirtualBoard(board, spec), threading.Event()
    thread = threading.Thread(target=virtual.serve, args=(stop,), daemon=True)
    thread.start()
    try:
        yield virtual
    finally:
        stop.set()
        thread.join()
        virtual.close()
