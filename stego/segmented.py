"""Segmented message steganography: the local plane's bit sequence is cut L1 | Ls | L2 and Ls carries the message.

The sequence is the lowest bits of the eligible level indices in raster order (stego.localplane). Ls is the window of
`nbits` bits from `start` on; message bit k (most significant bit of each byte first) stands at Ls[perm[k]], perm keyed
(stego.positions). Bitmap B = Ls xor the original segment, in raster order, lies beside in clear. Hence three readings:

    stego image   what the codec decodes
    exact image   `exact`: flip by B, no key
    message       `extract`: read Ls in keyed order

Grey frames only. The codec must code the stego image with the level table of the cover.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import CodecError, LevelTable, PixelFormat, Words, join_words, split_words
from stego.errors import CarrierError
from stego.localplane import eligible_positions, rawest_window
from stego.positions import permutation

#: bits per bit below which the plane is modelled by the coder and hiding there would cost more than it must
RAW_ENTROPY = 0.99


@dataclass(frozen=True, slots=True)
class Suitability:
    """Whether a frame can carry `nbits` at about their own cost, and where.

    reason: 'ok', 'colour', 'levels' (words and level table disagree), 'capacity', 'modelled'. entropy: bits per bit
    of the best window. capacity: eligible bits. start: first bit of the best window in the sequence of eligible bits.
    """

    ok: bool
    reason: str
    entropy: float
    capacity: int
    start: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """words: the stego image, as the cover's. bitmap: ceil(nbits / 8) bytes, first bit highest, padded with zeros."""

    words: Words
    bitmap: bytes
    start: int
    nbits: int


def suitability(words: Words, fmt: PixelFormat, levels: LevelTable, nbits: int) -> Suitability:
    """Judge the frame and find the window of `nbits` bits that a coder can least predict."""
    if fmt.samples != 1:
        return Suitability(False, "colour", 0.0, 0, 0)
    try:
        idx = _Plane.of(words, fmt, levels)
    except CarrierError:
        return Suitability(False, "levels", 0.0, 0, 0)
    capacity = idx.positions.size
    if nbits < 1 or capacity < nbits:
        return Suitability(False, "capacity", 0.0, capacity, 0)
    start, entropy = rawest_window(idx.image, idx.positions, nbits)
    ok = entropy >= RAW_ENTROPY
    return Suitability(ok, "ok" if ok else "modelled", entropy, capacity, start)


def embed(
    words: Words,
    fmt: PixelFormat,
    levels: LevelTable,
    message: bytes,
    *,
    stego_key: bytes,
    salt: bytes,
    start: int | None = None,
) -> Embedded:
    """Put `message` into the frame; `start` as `suitability` found it (found again when None).

    Raises CarrierError ('colour', 'levels', 'capacity', 'window'). The words given are not changed.
    """
    nbits = 8 * len(message)
    plane = _Plane.of(words, fmt, levels)
    if start is None:
        start = suitability(words, fmt, levels, nbits).start
    places = plane.window(start, nbits)
    segment = np.empty(nbits, np.uint16)
    segment[permutation(nbits, stego_key=stego_key, salt=salt)] = np.unpackbits(np.frombuffer(message, np.uint8))
    flips = (plane.flat[places] & 1) ^ segment
    return Embedded(plane.flipped(places, flips), np.packbits(flips.astype(np.uint8)).tobytes(), start, nbits)


def extract(
    words: Words, fmt: PixelFormat, levels: LevelTable, start: int, nbits: int, *, stego_key: bytes, salt: bytes
) -> bytes:
    """Inverse of `embed`: the message in a stego image. With a wrong key: noise. Raises CarrierError as `embed`."""
    if nbits % 8:
        raise CarrierError("window")
    plane = _Plane.of(words, fmt, levels)
    segment = plane.flat[plane.window(start, nbits)] & 1
    return np.packbits(segment[permutation(nbits, stego_key=stego_key, salt=salt)].astype(np.uint8)).tobytes()


def exact(words: Words, fmt: PixelFormat, levels: LevelTable, bitmap: bytes, start: int, nbits: int) -> Words:
    """Inverse of `embed` without any key: the cover from the stego image. Raises CarrierError, also 'bitmap'."""
    plane = _Plane.of(words, fmt, levels)
    places = plane.window(start, nbits)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8))
    if len(bitmap) != (nbits + 7) // 8 or bits[nbits:].any():
        raise CarrierError("bitmap")
    return plane.flipped(places, bits[:nbits])


def untouched(words: Words, fmt: PixelFormat, levels: LevelTable, start: int = 0, nbits: int = 0) -> bytes:
    """SHA-256 of all that embedding into this window leaves alone; equal for cover and stego image.

    With nbits = 0 of the whole frame (any frame, colour too). Hashed: format, window, then the words as little-endian
    with the carrying bits' samples replaced by their pair's lower level. Raises CarrierError as `embed`.
    """
    if nbits:
        plane = _Plane.of(words, fmt, levels)
        places = plane.window(start, nbits)
        words = plane.flipped(places, plane.flat[places] & 1)
    shape = (fmt.rows, fmt.columns, fmt.samples, fmt.bits_allocated, fmt.bits_stored, fmt.high_bit, fmt.signed)
    digest = sha256(b"palimpsest/untouched/v1\x00" + struct.pack(">IIBBBBBQQ", *shape, start, nbits))
    digest.update(np.ascontiguousarray(words, dtype=words.dtype.newbyteorder("<")).data)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Plane:
    """A frame as level indices with its eligible positions."""

    image: NDArray[np.uint16]  # (rows, columns)
    unused: NDArray[np.uint16] | None
    positions: NDArray[np.uint32]
    fmt: PixelFormat
    levels: LevelTable

    @classmethod
    def of(cls, words: Words, fmt: PixelFormat, levels: LevelTable) -> _Plane:
        if fmt.samples != 1:
            raise CarrierError("colour")
        try:
            values, unused = split_words(words, fmt)
            image: NDArray[np.uint16] | None = levels.rank(values)
        except CodecError:
            image = None
        if image is None:
            raise CarrierError("levels")
        return cls(image, unused, eligible_positions(image, levels), fmt, levels)

    @property
    def flat(self) -> NDArray[np.uint16]:
        """Level indices in raster order."""
        return self.image.reshape(-1)

    def window(self, start: int, nbits: int) -> NDArray[np.uint32]:
        """Raster positions of Ls."""
        if start < 0 or nbits < 1:
            raise CarrierError("window")
        if start + nbits > self.positions.size:
            raise CarrierError("capacity")
        return self.positions[start : start + nbits]

    def flipped(self, places: NDArray[np.uint32], flips: NDArray[np.integer[Any]]) -> Words:
        """The words with the lowest index bit at `places` xored with `flips`."""
        changed = self.flat.copy()
        changed[places] ^= flips.astype(np.uint16)
        return join_words(self.levels.value(changed.reshape(self.image.shape)), self.unused, self.fmt)
