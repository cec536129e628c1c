import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.hw.errors import BitwrightError
from bitwright.hw.packets import Opcode, command, write_commands


def executed(words: list[int]) -> list[tuple[int, int]]:
    """Writes that commands make."""
    writes: list[tuple[int, int]] = []
    while words:
        (head, count), words = words[:2], words[2:]
        assert head >> 30 == Opcode.WRITE
        assert count
        writes += [((head & (1 << 30) - 1) + index, word) for index, word in enumerate(words[:count])]
        words = words[count:]
    return writes


@given(st.lists(st.tuples(st.integers(0, 9) | st.integers(0, (1 << 30) - 1), st.integers(0, (1 << 32) - 1))))
def test_commands_make_the_writes_in_order(writes: list[tuple[int, int]]) -> None:
    words = write_commands(writes)
    assert words.dtype == np.uint32
    assert executed(words.tolist()) == writes


def test_consecutive_writes_are_one_command() -> None:
    assert write_commands([(5, 1), (6, 2), (8, 3), (9, 4)]).tolist() == [5, 2, 1, 2, 8, 2, 3, 4]


def test_headers() -> None:
    assert command(Opcode.READ, 7, 3) == [1 << 30 | 7, 3]
    assert command(Opcode.WAIT) == [2 << 30, 0]


@pytest.mark.parametrize(("address", "count"), [(1 << 30, 1), (0, 1 << 32), (-1, 1)])
def test_what_does_not_fit_is_refused(address: int, count: int) -> None:
    with pytest.raises(BitwrightError, match="expected at most 30 and 32 bits"):
        command(Opcode.WRITE, address, count)
