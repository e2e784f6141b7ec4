"""A JPEG lossless encoder: process 14, selection value 1 (ITU-T T.81 H), transfer syntax 1.2.840.10008.1.2.4.70.

Nothing archived depends on it: what it writes is decoded by an unrelated decoder before it is given out.
"""

from __future__ import annotations

import struct
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["encode_jpeg_lossless"]

CATEGORIES = 17  # H.1.2.2: SSSS is 0 to 16
LONGEST_CODE = 16  # bits
Samples = npt.NDArray[Any]


def encode_jpeg_lossless(samples: Samples, precision: int) -> bytes:
    """uint8 or uint16 (rows, columns) or (rows, columns, n), n up to 4, of `precision` bits (2 to 16).

    One scan, components interleaved by sample, one Huffman table fitted to the image. Raises ValueError.
    """
    cube = samples.reshape(samples.shape[0], samples.shape[1], -1)
    rows, columns, count = cube.shape
    if not 2 <= precision <= 16 or not 1 <= count <= 4 or not (0 < rows <= 0xFFFF and 0 < columns <= 0xFFFF):
        raise ValueError("JPEG lossless holds no such image")
    if int(cube.max()) >> precision:
        raise ValueError("a sample has more bits than declared")
    differences = _differences(cube.astype(np.int32), precision)
    categories = _categories(differences)
    lengths = code_lengths(np.bincount(categories, minlength=CATEGORIES))
    order = sorted((int(length), symbol) for symbol, length in enumerate(lengths) if length)
    codes, code, last = np.zeros(CATEGORIES, np.int64), 0, 0
    for length, symbol in order:  # C.2: codes of a length follow each other
        code <<= length - last
        codes[symbol], last = code, length
        code += 1
    counts = bytes(sum(1 for length, _ in order if length == bits) for bits in range(1, LONGEST_CODE + 1))
    table = bytes([0]) + counts + bytes(symbol for _, symbol in order)
    frame = struct.pack(">BHHB", precision, rows, columns, count)
    frame += b"".join(bytes((number + 1, 0x11, 0)) for number in range(count))
    scan = bytes([count]) + b"".join(bytes((number + 1, 0)) for number in range(count)) + bytes((1, 0, 0))
    data = _scan(differences, categories, codes, lengths)
    return b"\xff\xd8" + _segment(0xC3, frame) + _segment(0xC4, table) + _segment(0xDA, scan) + data + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _differences(cube: npt.NDArray[np.int32], precision: int) -> npt.NDArray[np.int32]:
    """Prediction errors by pixel then component, modulo 2^16 as -32767..32768 (H.1.2.1): from the left, the first
    column from above, the first sample from half the range.
    """
    predicted = np.empty_like(cube)
    predicted[:, 1:] = cube[:, :-1]
    predicted[1:, 0] = cube[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    wrapped = (cube - predicted) & 0xFFFF
    return np.where(wrapped > 32768, wrapped - 65536, wrapped).astype(np.int32).ravel()


def _categories(differences: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Bits of each magnitude (table H.2)."""
    bits = np.zeros(differences.shape, np.uint8)
    left = np.abs(differences)
    while left.any():
        bits += left > 0
        left >>= 1
    return bits


def code_lengths(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Huffman code lengths up to 16 bits with no code of all ones, 0 for symbols that do not occur (K.2)."""
    alive = [(int(count), [symbol]) for symbol, count in enumerate(counts) if count]
    alive.append((0, [CATEGORIES]))  # takes the code of all ones
    lengths = np.zeros(CATEGORIES + 1, np.int64)
    while len(alive) > 1:
        alive.sort(key=lambda each: (each[0], -min(each[1])), reverse=True)
        (low, first), (high, second) = alive.pop(), alive.pop()
        lengths[first + second] += 1
        alive.append((low + high, first + second))
    if lengths.max() > LONGEST_CODE:  # flatter counts make shorter codes; equal ones have 5 bits
        return code_lengths((counts + 1) // 2)
    return lengths[:CATEGORIES]


def _scan(
    differences: npt.NDArray[np.int32],
    categories: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> bytes:
    sizes = lengths[categories] + np.where(categories < 16, categories, 0)
    room = np.zeros(int(sizes.sum()) // 4 + 16, np.uint8)  # twice the bits: each byte may be 0xFF
    used = _write(differences, categories, codes, lengths, room)
    return room[:used].tobytes()


@numba.njit(cache=True)
def _write(differences, categories, codes, lengths, room):  # type: ignore[no-untyped-def]
    """Code and additional bits of each difference (H.1.2.2, F.1.2.1.1), a zero stuffed behind 0xFF; bytes used."""
    at = 0
    held = np.int64(0)
    count = 0
    for index in range(differences.size):
        category = categories[index]
        value = codes[category]
        bits = lengths[category]
        if 0 < category < 16:
            difference = np.int64(differences[index])
            if difference < 0:
                difference += (np.int64(1) << category) - 1
            value = (value << category) | difference
            bits += category
        held = (held << bits) | value
        count += bits
        while count >= 8:
            byte = (held >> (count - 8)) & 255
            room[at] = byte
            at += 1
            if byte == 255:
                at += 1
            count -= 8
        held &= (np.int64(1) << count) - 1
    if count:
        byte = ((held << (8 - count)) | ((1 << (8 - count)) - 1)) & 255
        room[at] = byte
        at += 1
        if byte == 255:
            at += 1
    return at
