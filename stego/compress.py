"""Side parts: what is sealed beside the image is compressed first, and expanded within a bound.

Layout of a packed side part (inside the seal): method u8, raw length u64 big-endian, body.
Methods: 0 stored, 1 zstd frame, 2 raw LZMA2 (lc 4, lp 0, pb 0, dictionary 4 MiB). The packer keeps the shortest.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator
from typing import IO, Protocol, cast

import zstandard

from stego.errors import SealError

Data = bytes | bytearray | memoryview

_HEADER = struct.Struct(">BQ")
_STORED, _ZSTD, _LZMA = 0, 1, 2
_READ = 1 << 20
#: a window above 128 MiB is refused: our encoder never asks for one
_MAX_WINDOW = 1 << 27
#: (up to this many bytes, zstd level): headers are worth time, whole files are not
_LEVELS = ((1 << 20, 19), (1 << 24, 9))
_BULK_LEVEL = 3
#: LZMA is tried up to this size: 6 to 8 % below zstd on DICOM headers (153 real files), and slow
_LZMA_LIMIT = 1 << 18
_LZMA_FILTER = {
    "id": lzma.FILTER_LZMA2,
    "preset": 9 | lzma.PRESET_EXTREME,
    "dict_size": 1 << 22,
    "lc": 4,
    "lp": 0,
    "pb": 0,
}


def pack_side(data: Data) -> bytes:
    """The shortest of the methods, with a header."""
    bodies: list[tuple[int, Data]] = [(_STORED, data), (_ZSTD, _zstd(data))]
    if len(data) <= _LZMA_LIMIT:
        bodies.append((_LZMA, lzma.compress(data, format=lzma.FORMAT_RAW, filters=[_LZMA_FILTER])))
    method, body = min(bodies, key=lambda each: len(each[1]))
    return b"".join((_HEADER.pack(method, len(data)), body))


def unpack_side(packed: bytes, limit: int) -> bytes:
    """Inverse of `pack_side`. Never holds more than min(declared, limit) + 1 MiB of output. Raises SealError."""
    if len(packed) < _HEADER.size:
        raise SealError
    method, size = _HEADER.unpack_from(packed)
    if method not in _EXPAND or size > limit:
        raise SealError
    try:
        data = _EXPAND[method](memoryview(packed)[_HEADER.size :], size)
    except (zstandard.ZstdError, lzma.LZMAError):
        data = None
    if data is None or len(data) != size:
        raise SealError
    return data


class Source(Protocol):
    """What can be read to its end."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, all that is left for -1; b'' at the end."""


def side_pieces(source: Source, limit: int) -> Iterator[bytes]:
    """`unpack_side` in pieces of at most 1 MiB, never all at once. Raises SealError, also after some of them."""
    head = source.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise SealError
    method, size = _HEADER.unpack(head)
    if method not in _EXPAND or size > limit:
        raise SealError
    if method == _LZMA:  # headers only, see _LZMA_LIMIT
        yield unpack_side(head + source.read(), limit)
        return
    reader: Source = source
    if method == _ZSTD:
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(cast("IO[bytes]", source))
    left = size
    while True:
        try:
            piece = reader.read(min(_READ, left + 1))
        except zstandard.ZstdError:
            piece = None
        if piece is None or len(piece) > left:
            raise SealError
        if not piece:
            break
        left -= len(piece)
        yield piece
    if left:
        raise SealError


def _zstd(data: Data) -> bytes:
    level = next((level for size, level in _LEVELS if len(data) <= size), _BULK_LEVEL)
    packed: bytes = zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)
    return packed


# Each gives at most size + 1 bytes, so that a body which is too long is noticed and never expanded further.


def _take(body: memoryview, size: int) -> bytes:
    return bytes(body[: size + 1])


def _unzstd(body: memoryview, size: int) -> bytes:
    out = bytearray()
    with zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(body) as reader:
        while len(out) <= size and (piece := reader.read(min(_READ, size + 1 - len(out)))):
            out += piece
    return bytes(out)


def _unlzma(body: memoryview, size: int) -> bytes | None:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=[_LZMA_FILTER])
    out = decompressor.decompress(body, size + 1)
    return out if decompressor.eof and not decompressor.unused_data else None


_EXPAND = {_STORED: _take, _ZSTD: _unzstd, _LZMA: _unlzma}
