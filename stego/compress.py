"""Side parts: what is sealed beside the image is compressed first, and expanded within a bound.

Layout of a packed side part (inside the seal): method u8, raw length u64 big-endian, body.
Methods: 0 stored, 1 zstd frame.
"""

from __future__ import annotations

import struct

import zstandard

from stego.errors import SealError

_HEADER = struct.Struct(">BQ")
_STORED, _ZSTD = 0, 1
_READ = 1 << 20
#: a window above 128 MiB is refused: our encoder never asks for one
_MAX_WINDOW = 1 << 27
#: (up to this many bytes, zstd level): headers are worth time, whole files are not
_LEVELS = ((1 << 20, 19), (1 << 24, 9))
_BULK_LEVEL = 3


def pack_side(data: bytes | bytearray | memoryview) -> bytes:
    """Shorter of stored and zstd, with a header."""
    level = next((level for size, level in _LEVELS if len(data) <= size), _BULK_LEVEL)
    body = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)
    if len(body) >= len(data):
        return b"".join((_HEADER.pack(_STORED, len(data)), data))
    return _HEADER.pack(_ZSTD, len(data)) + body


def unpack_side(packed: bytes, limit: int) -> bytes:
    """Inverse of `pack_side`. Never holds more than min(declared, limit) + 1 MiB of output. Raises SealError."""
    if len(packed) < _HEADER.size:
        raise SealError
    method, size = _HEADER.unpack_from(packed)
    if method not in (_STORED, _ZSTD) or size > limit:
        raise SealError
    body = memoryview(packed)[_HEADER.size :]
    data = bytes(body[: size + 1]) if method == _STORED else _expand(body, size)
    if len(data) != size:
        raise SealError
    return data


def _expand(body: memoryview, size: int) -> bytes:
    out = bytearray()
    broken = False
    try:
        with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(body) as reader:
            while len(out) <= size and (piece := reader.read(min(_READ, size + 1 - len(out)))):
                out += piece
    except zstandard.ZstdError:
        broken = True
    if broken:
        raise SealError
    return bytes(out)
