"""A program's side of a board: load a Program over a serial line, run images, read counters; wrong results never.

The same code speaks with a board on a serial port, with a virtual board and with a simulation in this process: each is
a :class:`Line` of bytes. What goes wrong on the way is found by the CRC and numbers of :mod:`bitwright.hw.framing`:

- What is damaged or lost is asked for again, with the same number, so that it is executed once.
- A board that was reset or restarted has no session any more. It is then connected to, identified and loaded anew, and
  the batch under way is run again from its images on.
- Each answer tells how many runs were started, and whether the last one has ended. What is read counts only if it is
  of the run that was started for these images.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bitwright.hw.errors import BitwrightError
from bitwright.hw.framing import ANSWER_BYTES, BURST_WORDS, Answer, Command, FrameReader, Reply, Request
from bitwright.hw.isa import COUNTERS, IDENTIFIER, VERSION, Register
from bitwright.hw.program import Program
from bitwright.sim.backends import recorder
from bitwright.sim.backends.commands import batches
from bitwright.sim.energy import EnergyReport, EnergyTable, estimate
from bitwright.sim.execution import Execution
from bitwright.sim.golden import execute

BAUD = 1_000_000
"""Bits a second on the line, unless told otherwise."""

TIMEOUT, ATTEMPTS, RESTARTS = 1.0, 6, 3
"""Seconds for an answer, how often a request is sent, and how often a batch is begun anew, unless told otherwise."""

Result = TypeVar("Result")


class Line(Protocol):
    """Bytes to a board and back.

    Attributes
    ----------
    name
        For messages.
    """

    name: str

    def now(self) -> float:
        """Seconds on the line's own clock."""
        ...

    def send(self, message: bytes) -> None:
        """Send all of it."""
        ...

    def receive(self, timeout: float) -> bytes:
        """What has come; waits up to ``timeout`` seconds for a first byte."""
        ...

    def close(self) -> None:
        """Leave the line."""
        ...


class SerialLine:
    """A serial port.

    Parameters
    ----------
    port
        Such as ``/dev/ttyUSB0`` or ``COM3``.
    baud
        Bits a second.
    """

    def __init__(self, port: str, baud: int = BAUD) -> None:
        try:
            import serial
        except ModuleNotFoundError:
            raise BitwrightError(
                "Package pyserial is not installed, which serial ports need; "
                "install it with pip install 'bitwright[board]'."
            ) from None
        self.name = port
        try:
            self._port = serial.Serial(port, baud, exclusive=True)
            self._port.reset_input_buffer()
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise BitwrightError(f"Cannot open {port}: {error}; check the name, the cable and your rights.") from error

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def send(self, message: bytes) -> None:
        """Send all of it."""
        with self._told():
            self._port.write(message)

    def receive(self, timeout: float) -> bytes:
        """What has come; waits up to ``timeout`` seconds for a first byte."""
        with self._told():
            self._port.timeout = timeout
            return self._port.read(max(1, self._port.in_waiting))

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BitwrightError(f"{self.name} has failed: {error}; check the cable and open it again.") from error


@dataclass(frozen=True)
class Identity:
    """What a board says of itself.

    Parameters
    ----------
    version
        Of its register map and descriptors.
    fingerprint
        Check value of its array's parameters.
    """

    version: int
    fingerprint: int


class _SessionLostError(Exception):
    """The board was reset, or something else than this has spoken with it."""


class Board:
    """An accelerator at the other end of a line. Made by :func:`open_board`.

    Parameters
    ----------
    line
        To the board.
    timeout
        Seconds on the line's clock for an answer.
    attempts
        How often a request is sent before the board is taken for gone.
    restarts
        How often a batch is begun anew after a reset of the board.
    seed
        Of the session numbers; None: another one each time.

    Attributes
    ----------
    identity
        Of the board.
    repeated, lost
        Requests that were sent again; sessions that were lost.
    """

    identity: Identity

    def __init__(
        self,
        line: Line,
        *,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
        restarts: int = RESTARTS,
        seed: int | None = None,
    ) -> None:
        self.line = line
        self.timeout, self.attempts, self.restarts = timeout, attempts, restarts
        self.repeated = self.lost = 0
        self._random = random.Random(seed)
        self._reader = FrameReader(ANSWER_BYTES)
        self._session = self._random.randrange(256)
        self._sequence = self._random.randrange(256)
        self._runs = 0
        self._program: Program | None = None
        self._cycle_limit = 0
        self._ready = False
        self._persist(lambda: None)

    def load(self, program: Program) -> None:
        """Load a Program: descriptors, weights, thresholds and coefficients.

        Raises
        ------
        BitwrightError
            If the board has another array, or cannot be spoken with.
        """
        if len(program.stream):
            raise BitwrightError(
                f"The Program streams {len(program.stream)} words of weights in each run, which the serial link does "
                "not carry; compile it for an array whose weight memory holds them."
            )
        self._cycle_limit = recorder.cycle_limit(program)
        self._program, self._ready = program, False
        self._persist(lambda: None)

    def run(self, images: npt.NDArray[np.uint8]) -> list[Execution]:
        """Run images, a batch at a time; values, cycles and counters are the board's, which counts no layers.

        Parameters
        ----------
        images
            ``uint8``, shape (images, channels, height, width).

        Raises
        ------
        BitwrightError
            If no Program is loaded, the images are not for it, the machine stops with an error, or the board cannot be
            spoken with.
        """
        return [*self.stream(images)]

    def stream(self, images: npt.NDArray[np.uint8]) -> Iterator[Execution]:
        """Batches of :meth:`run`, one after the other."""
        program = self._loaded()
        program.input.check(images)
        for batch in batches(program, images):
            yield self._persist(lambda batch=batch: self._execute(program, batch))

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Outputs of the network, ``float64``, shape (images, classes)."""
        return self._loaded().logits(np.concatenate([run.accumulators for run in self.run(images)]))

    # Sessions ---------------------------------------------------------------------------------------------------------

    def _loaded(self) -> Program:
        if self._program is None:
            raise BitwrightError("No Program is loaded to the board; call load first.")
        return self._program

    def _persist(self, action: Callable[[], Result]) -> Result:
        """Do something in a session with the Program loaded, again from the beginning if the session is lost."""
        for _ in range(self.restarts + 1):
            try:
                if not self._ready:
                    self._begin()
                    self._ready = True
                return action()
            except _SessionLostError:
                self._ready = False
                self.lost += 1
        raise BitwrightError(
            f"The board at {self.line.name} was reset {self.restarts + 1} times in a row; check its power supply, and "
            "that nothing else speaks with it."
        )

    def _begin(self) -> None:
        """Connect, identify, stop what runs, load the Program."""
        self._session = (self._session + self._random.randrange(1, 256)) % 256
        self._runs = self._ask(Command.CONNECT, begins=True).runs
        identifier, version, fingerprint = self._read(Register.ID, 3).tolist()
        if identifier != IDENTIFIER or version != VERSION:
            raise BitwrightError(
                f"The board at {self.line.name} says it is {identifier:#010x} version {version}, expected "
                f"{IDENTIFIER:#010x} version {VERSION}; build its bitstream with this release."
            )
        self.identity = Identity(version, fingerprint)
        if self._program is None:
            return
        if fingerprint != self._program.spec.fingerprint:
            raise BitwrightError(
                f"The board at {self.line.name} has array {fingerprint:#010x}, the Program is for array "
                f"{self._program.spec.fingerprint:#010x}; compile it for the board's array, or build the board for its."
            )
        self._control(2)
        self._write(self._program.host_writes())

    def _execute(self, program: Program, batch: npt.NDArray[np.uint8]) -> Execution:
        """One run."""
        self._write(program.image_writes(batch))
        self._control(1, starts=True)
        while not self._ask(Command.STATUS).done:
            status, cycles = (int(self._read(register, 1)[0]) for register in (Register.STATUS, Register.CYCLES))
            if not status & 3:  # neither busy nor done
                raise _SessionLostError
            if cycles > self._cycle_limit:
                self._control(2)
                raise BitwrightError(recorder.hung(program))
        words = [
            self._read(int(addresses[0]), len(addresses), ended=True)
            for addresses in _bursts(np.fromiter(recorder.read_addresses(program), np.int64))
        ]
        registers, results = recorder.split_read(np.concatenate(words))
        if registers["error"]:
            raise BitwrightError(recorder.describe_error(program, registers["error"]))
        accumulators = results.reshape(program.batch, -1)[: len(batch)]
        return Execution(accumulators, registers["cycles"], {name: registers[name] for name in COUNTERS}, [])

    # Requests ---------------------------------------------------------------------------------------------------------

    def _control(self, bits: int, *, starts: bool = False) -> None:
        """Write the control register."""
        self._ask(Command.WRITE, 1, Register.CONTROL, bits.to_bytes(4, "little"), starts=starts)

    def _write(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Write words to addresses, in bursts."""
        flat = np.fromiter((number for pair in pairs for number in pair), np.int64).reshape(-1, 2)
        start = 0
        for addresses in _bursts(flat[:, 0]):
            words = flat[start : start + len(addresses), 1].astype("<u4")
            self._ask(Command.WRITE, len(words), int(addresses[0]), words.tobytes())
            start += len(addresses)

    def _read(self, address: int, count: int, *, ended: bool = False) -> npt.NDArray[np.uint32]:
        """Read words; with ``ended``, they count only if the last run has."""
        answer = self._ask(Command.READ, count, address)
        if ended and not answer.done:
            raise _SessionLostError
        return answer.words

    def _ask(
        self,
        command: Command,
        count: int = 0,
        address: int = 0,
        content: bytes = b"",
        *,
        begins: bool = False,
        starts: bool = False,
    ) -> Answer:
        """Answer of a request; ``begins`` a session, or ``starts`` a run."""
        self._sequence = (self._sequence + 1) % 256
        request = Request(self._session, self._sequence, command, count, address, content)
        for attempt in range(self.attempts):
            self.repeated += attempt > 0
            self.line.send(request.encode())
            answer = self._answer(request)
            if answer is not None:
                break
        else:
            raise BitwrightError(
                f"The board at {self.line.name} does not answer, asked {self.attempts} times; check its power, its "
                f"bitstream, the cable and the baud rate."
            )
        if answer.reply == Reply.REFUSED:
            raise BitwrightError(
                f"The board at {self.line.name} refused to {command.name.lower()} {count} words at {address:#x}; this "
                "is a defect of Bitwright, report it."
            )
        if starts:
            self._runs = (self._runs + 1) % 256
        if answer.reply != Reply.DONE or (answer.runs != self._runs and not begins):
            raise _SessionLostError
        return answer

    def _answer(self, request: Request) -> Answer | None:
        """What comes in time and answers the request."""
        self._reader.restart()
        deadline = self.line.now() + self.timeout
        while (left := deadline - self.line.now()) > 0:
            for payload in self._reader.feed(self.line.receive(left)):
                answer = Answer.decode(payload)
                read = request.count if request.command == Command.READ and answer.reply == Reply.DONE else 0
                ours = (answer.session, answer.sequence) == (request.session, request.sequence)
                if ours and len(answer.data) == 4 * read:
                    return answer
        return None


@contextmanager
def open_board(port: str | Line, *, baud: int = BAUD, **options: Any) -> Iterator[Board]:
    """Speak with a board.

    Parameters
    ----------
    port
        Name of a serial port, or a line such as :class:`bitwright.sim.board.SimulatedLine`; it is closed at the end.
    baud
        Bits a second of a serial port.
    options
        ``timeout``, ``attempts``, ``restarts`` and ``seed`` of :class:`Board`.

    Raises
    ------
    BitwrightError
        If nothing answers, or what answers is no accelerator of this version.
    """
    line = SerialLine(port, baud) if isinstance(port, str) else port
    try:
        yield Board(line, **options)
    finally:
        line.close()


def energy(
    program: Program,
    images: npt.NDArray[np.uint8],
    runs: list[Execution],
    table: EnergyTable | str = "horowitz45",
) -> EnergyReport:
    """Energy of what a board has run: of the golden model's events, whose totals must be those the board has counted.

    Raises
    ------
    BitwrightError
        If the board has counted anything else than the golden model.
    """
    predicted = execute(program, images)
    for number, (expected, found) in enumerate(zip(predicted, runs, strict=True)):
        for name in COUNTERS:
            if expected.counters[name] != found.counters[name]:
                raise BitwrightError(
                    f"In run {number} the board counted {found.counters[name]} {name}, the golden model "
                    f"{expected.counters[name]}; build the board's bitstream with this release."
                )
    return estimate(program, predicted, table)


def _bursts(addresses: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Addresses in order, cut where they do not follow each other and where a burst is full."""
    for block in np.split(addresses, np.flatnonzero(np.diff(addresses) != 1) + 1):
        yield from (block[first : first + BURST_WORDS] for first in range(0, len(block), BURST_WORDS))
