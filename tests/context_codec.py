"""A codec that needs what it was given, for tests of who hands context to whom: it codes nothing small.

A blob is `P` 2, flags, CRC-32 of the previous words, CRC-32 of the adapter, then a blob of the real coder 'raw' whose
words were exclusive-ored with the previous ones: another previous frame gives other pixels, as with the learned coder.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from codec.bitplane import LevelTable, Words
from codec.blob import Frame
from codec.errors import MissingContext
from codec.frame import EncodedFrame
from codec.frame import decode_frame as decode_plain
from codec.frame import encode_frame as encode_plain
from codec.pixelformat import PixelFormat

HEAD = struct.Struct("<2sBII")


class ContextCodec:
    """`encode` and `decode` stand in for the codec's; `decoded` counts by the frame's own CRC-32."""

    def __init__(self) -> None:
        self.decodes = 0
        self.contexts: list[bool] = []

    def encode(
        self,
        words: Words,
        fmt: PixelFormat,
        *,
        levels: LevelTable | None = None,
        previous: Words | None = None,
        shared: bytes | None = None,
        coders: Sequence[str] = (),
        threads: int = 1,
        prove: bool = True,
        **_: Any,
    ) -> EncodedFrame:
        """As codec.frame.encode_frame."""
        self.contexts.append(previous is not None)
        plain = encode_plain(words, fmt, levels=levels, coders=("raw",), prove=False).blob
        body = _masked(plain, previous)
        flags = (previous is not None) | (shared is not None) << 1
        head = HEAD.pack(b"P\x02", flags, _crc(previous), zlib.crc32(shared or b""))
        return EncodedFrame(head + body, "raw", {"raw": len(body)}, {"shared": int(shared is not None)})

    def decode(self, blob: bytes, *, previous: Words | None = None, shared: bytes | None = None, **_: Any) -> Frame:
        """As codec.frame.decode_frame."""
        if blob[1:2] == b"\x01":
            return decode_plain(blob)
        _, flags, previous_crc, shared_crc = HEAD.unpack_from(blob)
        if flags & 1 and (previous is None or _crc(previous) != previous_crc):
            raise MissingContext("the previous frame is missing")
        if flags & 2 and zlib.crc32(shared or b"") != shared_crc:
            raise MissingContext("the shared adapter is missing")
        self.decodes += 1
        return decode_plain(_masked(blob[HEAD.size :], previous if flags & 1 else None))


def _crc(words: Words | None) -> int:
    return 0 if words is None else zlib.crc32(np.ascontiguousarray(words).tobytes())


def _masked(blob: bytes, previous: Words | None) -> bytes:
    """The blob's bytes changed by the previous frame's: an involution."""
    mask = zlib.crc32(b"" if previous is None else previous.tobytes()) & 0xFF if previous is not None else 0
    return bytes(byte ^ mask for byte in blob)
