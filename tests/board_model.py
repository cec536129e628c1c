"""A board in bytes, in Python, with faults on its line: what the host's side is tested against, by the thousand.

It executes frames as the link does and keeps memories as the host port does. A run computes nothing: its results are
the golden model's where the memories hold the whole Program and one of the batches, and random numbers where they do
not, so that every mistake in loading shows.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np

from bitwright.hw.framing import REQUEST_BYTES, Answer, Command, FrameReader, Reply, Request
from bitwright.hw.isa import COUNTERS, IDENTIFIER, VERSION, Region, Register
from bitwright.hw.program import Program
from bitwright.sim.execution import Execution

Fault = Callable[["BoardModel", bytes], bytes]


class BoardModel:
    """A line with a board behind it.

    Parameters
    ----------
    program
        What will be loaded; its array is the board's.
    images, runs
        Batches of images that will be run, with the golden model's executions.
    faults
        What happens to the bytes of each message; gets the model too, and may reset it.
    seed
        Of what memories hold at the start, how long runs take, and which answers come late.
    """

    name = "the model"

    def __init__(
        self,
        program: Program,
        images: Sequence[np.ndarray],
        runs: Sequence[Execution],
        faults: Fault = lambda _, message: message,
        seed: int = 0,
    ) -> None:
        self.program, self.faults = program, faults
        self.rng = random.Random(seed)
        self.loaded = dict(program.host_writes())
        self.results = {tuple(program.image_writes(batch)): run for batch, run in zip(images, runs, strict=True)}
        self.waited, self.coming, self.messages = 0.0, b"", 0
        self.late: list[bytes] = []
        self.restart()

    # The line ---------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.waited

    def send(self, message: bytes) -> None:
        self.messages += 1
        for payload in self.reader.feed(self.faults(self, message)):
            answer = self.execute(Request.decode(payload))
            self.messages += 1
            self.coming += self.faults(self, answer.encode())

    def receive(self, timeout: float) -> bytes:
        if not self.coming:
            self.waited += timeout
            self.coming = b"".join(self.late)
            self.late.clear()
            return b""
        count = self.rng.randint(1, len(self.coming))
        found, self.coming = self.coming[:count], self.coming[count:]
        return found

    def close(self) -> None:
        self.coming = b""

    # The board --------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Registers as after a reset; memories keep what they hold."""
        self.reader = FrameReader(REQUEST_BYTES)
        self.session: int | None = None
        self.expected = self.runs = self.busy = self.status = 0
        self.counters = dict.fromkeys(COUNTERS, 0)

    def restart(self) -> None:
        """As after switching on: memories hold anything."""
        self.memory: dict[int, int] = {}
        self.read_only: dict[int, int] = {}
        self.reset()

    def stop(self) -> None:
        """Something else stops the machine, which clears its counters."""
        self.busy = self.status = 0
        self.counters = dict.fromkeys(COUNTERS, 0)

    def meddle(self) -> None:
        """Something else runs other images."""
        self.runs, self.busy = (self.runs + 1) % 256, 0
        self.memory = dict.fromkeys(self.memory, 0)
        self.finish()

    def execute(self, request: Request) -> Answer:
        following = (request.sequence + 1) % 256
        reply, data = Reply.DONE, b""
        if request.command == Command.CONNECT:
            self.session, self.expected = request.session, following
        elif self.session != request.session:
            reply = Reply.SESSION
        elif request.sequence == self.expected:
            self.expected = following
            if request.command == Command.WRITE:
                words = np.frombuffer(request.data, "<u4").tolist()
                assert len(words) == request.count
                for index, word in enumerate(words):
                    self.write(request.address + index, word)
        elif following != self.expected:
            reply = Reply.SEQUENCE
        if reply == Reply.DONE and request.command == Command.READ:
            words = [self.read(request.address + index) for index in range(request.count)]
            data = np.array(words, "<u4").tobytes()
        if self.busy and request.command == Command.STATUS:
            self.busy -= 1
            if not self.busy:
                self.finish()
        return Answer(request.session, request.sequence, reply, self.runs, self.status >> 1 & 1, data)

    def write(self, address: int, word: int) -> None:
        if address != Register.CONTROL:
            assert not self.busy
            self.memory[address] = word
        elif word & 2:
            self.stop()
        else:
            assert not self.busy
            self.runs = (self.runs + 1) % 256
            self.busy, self.status = self.rng.randint(1, 3), 1
            self.counters = dict.fromkeys(COUNTERS, 0)

    def finish(self) -> None:
        """End of a run."""
        derived = self.program.spec.derived
        images = derived.host_address(Region.ACTIVATIONS)
        given = {at: word for at, word in self.memory.items() if at >= images}
        whole = {at: word for at, word in self.memory.items() if at < images} == self.loaded
        run = next((run for key, run in self.results.items() if dict(key) == given), None) if whole else None
        self.status = 2
        count = self.program.batch * len(self.program.output_scale)
        found = [self.rng.getrandbits(16) for _ in range(count)]
        self.counters = {name: self.rng.getrandbits(16) for name in COUNTERS}
        if run is not None:
            found = run.accumulators.ravel().tolist() + [0] * (count - run.accumulators.size)
            self.counters = dict(run.counters)
        at = derived.host_address(Region.RESULTS)
        self.read_only = {at + index: value & 0xFFFFFFFF for index, value in enumerate(found)}

    def read(self, address: int) -> int:
        registers = {
            Register.ID: IDENTIFIER,
            Register.VERSION: VERSION,
            Register.SPEC: self.program.spec.fingerprint,
            Register.STATUS: self.status,
            Register.ERROR: 0,
        } | {Register[name.upper()]: value for name, value in self.counters.items()}
        if address in registers:
            return registers[Register(address)]
        return self.read_only.get(address, self.rng.getrandbits(32))
