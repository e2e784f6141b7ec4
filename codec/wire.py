"""Byte-level reading and writing with every length checked."""

from __future__ import annotations

import zlib

from codec.errors import CorruptBitstream


def put_varint(out: bytearray, number: int) -> None:
    """Append a non-negative number in base 128, low group first, high bit set on all bytes but the last."""
    while number >= 0x80:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    out.append(number)


def put_signed(out: bytearray, number: int) -> None:
    """Append a signed number as a varint of 2n (n >= 0) or -2n - 1 (n < 0)."""
    put_varint(out, 2 * number if number >= 0 else -2 * number - 1)


class Reader:
    """Cursor over bytes. Every method raises CorruptBitstream instead of reading past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self.position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if count < 0 or count > self.left:
            raise CorruptBitstream(f"{count} bytes wanted, {self.left} left")
        self.position += count
        return self._data[self.position - count : self.position]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self, limit: int) -> int:
        """A varint in its shortest form, at most `limit`."""
        number, shift = 0, 0
        while True:
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 35:
                raise CorruptBitstream("number too long")
        if number > limit or (byte == 0 and shift):
            raise CorruptBitstream(f"number {number} is above {limit} or padded")
        return number

    def signed(self, limit: int) -> int:
        """A signed varint with magnitude at most `limit`."""
        number = self.varint(2 * limit + 1)
        return number >> 1 if number % 2 == 0 else -(number + 1) // 2

    def check_crc(self, start: int, what: str) -> None:
        """Read four bytes and compare them with the CRC-32 of everything since `start`."""
        have = zlib.crc32(self._data[start : self.position])
        if int.from_bytes(self.take(4), "little") != have:
            raise CorruptBitstream(f"checksum of the {what} differs")


def put_crc(out: bytearray, start: int) -> None:
    """Append the CRC-32 (IEEE, little endian) of everything in `out` since `start`."""
    out += zlib.crc32(memoryview(out)[start:]).to_bytes(4, "little")


def inflate(data: bytes | memoryview, size: int) -> bytes:
    """Exactly `size` bytes out of one zlib stream that ends where `data` ends; never more memory than that."""
    engine = zlib.decompressobj()
    try:
        out = engine.decompress(data, size + 1)
    except zlib.error as error:
        raise CorruptBitstream("deflated part is damaged") from error
    if len(out) != size or not engine.eof or engine.unused_data:
        raise CorruptBitstream("deflated part has another size than declared")
    return out
