"""The host's side of the line: right results or a clear error, whatever the line does."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.hw.errors import BitwrightError
from bitwright.hw.framing import ANSWER_BYTES, ESCAPE, FLAG, Answer, FrameReader
from bitwright.hw.isa import COUNTERS
from bitwright.sim.backends.commands import batches
from bitwright.sim.execution import Execution
from bitwright.sim.golden import execute
from bitwright.sw import host
from bitwright.sw.host import open_board
from board_model import BoardModel
from programs import conv, linear, random_images, random_program
from tiny import spec


@cache
def case() -> tuple[Any, Any, list[Execution]]:
    """A Program of a batch of two, images for two runs and a half, and what they give."""
    rng = np.random.default_rng(3)
    layers = [conv(5, 2, output_planes=2), linear(3)]
    program = random_program(rng, spec(4, 2, zero_skip="skip"), layers, in_shape=(2, 4, 4), input_bits=2, batch=2)
    images = random_images(rng, program, 5)
    return program, images, execute(program, images)


def model(faults: Callable[[BoardModel, bytes], bytes] = lambda _, message: message, seed: int = 0) -> BoardModel:
    program, images, runs = case()
    return BoardModel(program, batches(program, images), runs, faults, seed)


def work(line: BoardModel, **options: Any) -> host.Board:
    """Load, run all images, compare."""
    program, images, expected = case()
    with open_board(line, seed=1, **options) as board:
        board.load(program)
        for predicted, found in zip(expected, board.run(images), strict=True):
            assert np.array_equal(predicted.accumulators, found.accumulators)
            assert (predicted.cycles, predicted.counters) == (found.cycles, found.counters)
    return board


def test_images_are_run_and_counted() -> None:
    board = work(model())
    assert (board.repeated, board.lost) == (0, 0)
    assert board.identity.fingerprint == case()[0].spec.fingerprint


def test_energy_is_that_of_the_events_counted() -> None:
    program, images, expected = case()
    with open_board(model()) as board:
        board.load(program)
        runs = board.run(images)
    assert host.energy(program, images, runs).uj_per_image > 0
    runs[1].counters["loads"] += 1
    with pytest.raises(BitwrightError, match=r"In run 1 the board counted \d+ loads, the golden model \d+"):
        host.energy(program, images, runs)
    assert list(expected[0].counters) == list(COUNTERS)


def test_logits_are_the_networks() -> None:
    program, images, expected = case()
    with open_board(model()) as board:
        board.load(program)
        assert np.array_equal(
            board.logits(images), program.logits(np.concatenate([run.accumulators for run in expected]))
        )


# Single faults, at every place --------------------------------------------------------------------------------------

SINGLE: dict[str, Callable[[BoardModel, bytes], bytes]] = {
    "lost": lambda _, message: b"",
    "twice": lambda _, message: message * 2,
    "byte flipped": lambda _, message: message[:4] + bytes([message[4] ^ 0x20]) + message[5:],
    "noise around": lambda _, message: bytes([0x55, FLAG, 3]) + message + bytes([ESCAPE]),
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_fault_anywhere_changes_nothing(name: str) -> None:
    count = _messages()
    assert count > 40
    for at in range(1, count + 1):
        line = model(lambda board, message, at=at: SINGLE[name](board, message) if board.messages == at else message)
        board = work(line)
        assert board.lost == 0
        assert board.repeated <= 1


@pytest.mark.parametrize("kind", ["reset", "restart", "stop", "meddle"])
def test_a_reset_anywhere_is_recovered_from(kind: str) -> None:
    """Before a message comes, or before its answer leaves; so is a machine that something else stops or starts."""
    for at in range(2, _messages() + 1):

        def fault(board: BoardModel, message: bytes, at: int = at) -> bytes:
            if board.messages == at:
                getattr(board, kind)()
            return message

        assert work(model(fault)).lost <= 1


def test_answers_of_other_sessions_are_not_taken() -> None:
    """Before each answer, one comes that differs from it in the session and the data."""

    def fault(board: BoardModel, message: bytes) -> bytes:
        if board.messages % 2:
            return message
        (payload,) = FrameReader(ANSWER_BYTES).feed(message)
        answer = Answer.decode(payload)
        return replace(answer, session=answer.session ^ 1, data=bytes(len(answer.data))).encode() + message

    assert work(model(fault)).lost == 0


def test_late_answers_are_not_taken_for_those_of_later_requests() -> None:
    """Each answer comes only after the host has given up waiting for it once."""

    def fault(board: BoardModel, message: bytes) -> bytes:
        if board.messages % 2:
            return message
        board.late.append(message)
        return b""

    assert work(model(fault)).repeated > 10


@cache
def _messages() -> int:
    """Messages of work without faults, of both ends."""
    line = model()
    work(line)
    return line.messages


# Many faults --------------------------------------------------------------------------------------------------------


def storm(seed: int) -> Callable[[BoardModel, bytes], bytes]:
    """Faults of all kinds at a rate of the seed's."""
    rng = random.Random(seed)
    rate = rng.choice([0.01, 0.03, 0.1, 0.3])
    silent = 0

    def fault(board: BoardModel, message: bytes) -> bytes:
        nonlocal silent
        if silent:
            silent -= 1
            return b""
        while message and rng.random() < rate:
            at = rng.randrange(len(message))
            kind = rng.randrange(11)
            if kind == 0:
                message = message[:at] + message[at + rng.randint(1, 5) :]
            elif kind == 1:
                message = message[:at] + bytes([message[at] ^ 1 << rng.randrange(8)]) + message[at + 1 :]
            elif kind == 2:
                message = message[: at + rng.randint(1, 9)] + message[at:]
            elif kind == 3:
                message = message[:at] + bytes(rng.choices([FLAG, ESCAPE, rng.randrange(256)], k=3)) + message[at:]
            elif kind == 4:
                board.late.append(message)
                message = b""
            elif kind == 5:
                message = message * rng.randint(2, 3)
            elif kind == 6:
                silent, message = rng.choice([1, 3, 20]), b""
            else:
                (board.reset, board.restart, board.stop, board.meddle)[kind - 7]()
        return message

    return fault


@given(seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_never_a_wrong_result(seed: int) -> None:
    """`work` compares; what it may raise besides is a sentence about the line, in time."""
    line = model(storm(seed), seed)
    message = ""
    try:
        work(line, attempts=4)
    except BitwrightError as error:
        message = str(error)
    assert not message or "does not answer" in message or "was reset" in message
    assert line.waited < 4 * 4 * _messages()


def test_light_storms_are_got_through() -> None:
    through = 0
    for seed in range(40):
        rng = random.Random(seed)

        def fault(board: BoardModel, message: bytes, rng: random.Random = rng) -> bytes:
            return message[1:] if rng.random() < 0.2 else message

        work(model(fault, seed))
        through += 1
    assert through == 40


# Errors -------------------------------------------------------------------------------------------------------------


def test_a_dead_line_is_told_in_time() -> None:
    line = model(lambda _, message: b"")
    with pytest.raises(BitwrightError, match="does not answer, asked 3 times; check its power"):
        work(line, attempts=3, timeout=0.5)
    line = model(lambda _, message: b"")
    with pytest.raises(BitwrightError, match="does not answer"):
        host.Board(line, attempts=3, timeout=0.5)
    assert line.waited == pytest.approx(1.5)


def test_a_board_that_is_reset_again_and_again_is_told() -> None:
    def fault(board: BoardModel, message: bytes) -> bytes:
        if board.messages % 9 == 0:
            board.reset()
        return message

    with pytest.raises(BitwrightError, match="was reset 3 times in a row"):
        work(model(fault), restarts=2)


def test_another_array_is_refused() -> None:
    rng = np.random.default_rng(0)
    other = random_program(rng, spec(4, 1), [conv(5, 2), linear(3)], in_shape=(2, 4, 4), input_bits=2)
    with open_board(model()) as board, pytest.raises(BitwrightError, match=r"has array 0x.*, the Program is for array"):
        board.load(other)


def test_images_without_a_program_are_refused() -> None:
    _, images, _ = case()
    with open_board(model()) as board, pytest.raises(BitwrightError, match="No Program is loaded"):
        board.run(images)


def test_a_port_that_is_not_there_is_told() -> None:
    pytest.importorskip("serial", reason="the extra `board` is not installed")
    with pytest.raises(BitwrightError, match=r"Cannot open /dev/nothing.*check the name"):
        host.SerialLine("/dev/nothing")
