"""Frames on the line between a host and a board: the constants and layouts that both ends share. Plain Python.

A frame is a header, data and a CRC, between two ``FLAG`` bytes. A ``FLAG`` or ``ESCAPE`` byte inside is sent as
``ESCAPE`` and the byte with its bit 5 flipped, as in HDLC (ISO/IEC 13239), so a flag always begins a frame afresh.
Numbers are little endian. The CRC is that of Ethernet, over header and data.

The host sends a request and waits for its answer; the board never speaks first. The board drops what is damaged, so a
lost answer and a lost request look alike: the host repeats the same bytes. A request of the last one's sequence number
is answered again, and its writes are not executed again.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

FLAG, ESCAPE, ESCAPED_BIT = 0x7E, 0x7D, 0x20
"""Byte around frames; byte before one that is sent with the bit flipped."""

BURST_WORDS = 120
"""Most 32-bit words of one request: the board holds them, in 512 bytes, until their CRC has come."""

CRC_BYTES = 4

SILENCE_SECONDS = 0.04
"""A frame whose next byte does not come for at least this long is dropped."""


class Command(IntEnum):
    """What a request asks for."""

    CONNECT = 0
    """Begin a session: its number is that of the frame, the next request's sequence number is one more than this."""
    WRITE = 1
    """Write the data to successive addresses."""
    READ = 2
    """Read as many words from successive addresses."""
    STATUS = 3
    """Answer without data."""


class Reply(IntEnum):
    """How a request was answered."""

    DONE = 0
    """It was executed, now or when it came first."""
    SESSION = 1
    """There is no such session: the board was restarted, or another host has connected."""
    SEQUENCE = 2
    """The sequence number is neither the last one nor the next one."""
    REFUSED = 3
    """Unknown command; other data than the words announced; a write outside of the memories, which was not done."""


REQUEST_FIELDS: tuple[tuple[str, int, str], ...] = (
    ("session", 8, "number that the host has chosen for the session"),
    ("sequence", 8, "one more than that of the request before"),
    ("command", 8, "what to do"),
    ("count", 8, "words to write or read; else 0"),
    ("address", 32, "first address on the host bus; else 0"),
)
"""Header of a request in order: name, bits, meaning."""

ANSWER_FIELDS: tuple[tuple[str, int, str], ...] = (
    ("session", 8, "of the request"),
    ("sequence", 8, "of the request"),
    ("reply", 8, "how it was answered"),
    ("runs", 8, "how often a Program was started since the board was, modulo 256"),
    ("state", 8, "bit 0: the last Program has ended"),
)
"""Header of an answer in order: name, bits, meaning."""

_CODES = {8: "B", 32: "I"}
_REQUEST = struct.Struct("<" + "".join(_CODES[bits] for _, bits, _ in REQUEST_FIELDS))
_ANSWER = struct.Struct("<" + "".join(_CODES[bits] for _, bits, _ in ANSWER_FIELDS))

REQUEST_BYTES, ANSWER_BYTES = _REQUEST.size, _ANSWER.size
"""Bytes of the headers."""

FRAME_BYTES_MAX = REQUEST_BYTES + 4 * BURST_WORDS + CRC_BYTES
"""Most bytes between the flags of a frame, before escaping."""


@dataclass(frozen=True)
class Request:
    """What the host asks.

    Parameters
    ----------
    session, sequence, command, count, address
        :data:`REQUEST_FIELDS`.
    data
        Words to write, little endian, four bytes each.
    """

    session: int
    sequence: int
    command: int
    count: int = 0
    address: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """The frame, flags included."""
        header = _REQUEST.pack(self.session, self.sequence, self.command, self.count, self.address)
        return frame(header + self.data)

    @classmethod
    def decode(cls, payload: bytes) -> "Request":
        """From what stands before the CRC of a whole frame."""
        return cls(*_REQUEST.unpack_from(payload), data=payload[REQUEST_BYTES:])


@dataclass(frozen=True)
class Answer:
    """What the board answers.

    Parameters
    ----------
    session, sequence, reply, runs, state
        :data:`ANSWER_FIELDS`.
    data
        Words read, little endian, four bytes each.
    """

    session: int
    sequence: int
    reply: int
    runs: int
    state: int
    data: bytes = b""

    def encode(self) -> bytes:
        """The frame, flags included."""
        return frame(_ANSWER.pack(self.session, self.sequence, self.reply, self.runs, self.state) + self.data)

    @classmethod
    def decode(cls, payload: bytes) -> "Answer":
        """From what stands before the CRC of a whole frame."""
        return cls(*_ANSWER.unpack_from(payload), data=payload[ANSWER_BYTES:])

    @property
    def done(self) -> bool:
        """Whether the last Program has ended."""
        return bool(self.state & 1)

    @property
    def words(self) -> npt.NDArray[np.uint32]:
        """Data as words."""
        return np.frombuffer(self.data, "<u4").astype(np.uint32)


def frame(payload: bytes) -> bytes:
    """Payload and its CRC, escaped, between flags."""
    content = payload + zlib.crc32(payload).to_bytes(CRC_BYTES, "little")
    # The escape itself first: it is in what replaces a flag.
    for byte in (ESCAPE, FLAG):
        content = content.replace(bytes([byte]), bytes([ESCAPE, byte ^ ESCAPED_BIT]))
    return bytes([FLAG]) + content + bytes([FLAG])


class FrameReader:
    """Finds whole frames in bytes as they come.

    Parameters
    ----------
    least
        Bytes of the header: what is shorter is no frame.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self.restart()

    def restart(self) -> None:
        """Forget a frame that has begun."""
        self._content: bytearray | None = None
        self._escaped = False

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Payloads of the frames that end in these bytes and are whole: header and data, without the CRC."""
        for byte in received:
            if byte == FLAG:
                content, escaped = self._content, self._escaped
                self._content, self._escaped = bytearray(), False
                if content is None or escaped or not self.least + CRC_BYTES <= len(content) <= FRAME_BYTES_MAX:
                    continue
                payload = bytes(content[:-CRC_BYTES])
                if zlib.crc32(payload).to_bytes(CRC_BYTES, "little") == content[-CRC_BYTES:]:
                    yield payload
            elif self._content is not None:
                if byte == ESCAPE:
                    self._escaped = True
                elif len(self._content) <= FRAME_BYTES_MAX:
                    self._content.append(byte ^ (ESCAPED_BIT if self._escaped else 0))
                    self._escaped = False
