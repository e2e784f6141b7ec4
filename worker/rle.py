"""DICOM RLE decoding (PS3.5 annex G), written from the standard alone: the second decoder beside imagecodecs."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt


class RLEError(Exception):
    """The frame is no RLE frame of the expected size."""


def decode_rle(data: bytes, rows: int, columns: int, samples: int, word_bytes: int) -> npt.NDArray[np.uint16]:
    """Samples as uint16 (rows, columns, samples), C order. Raises RLEError."""
    size = rows * columns
    if len(data) < 64:
        raise RLEError("short header")
    count, *offsets = struct.unpack_from("<16I", data)
    if count != samples * word_bytes:
        raise RLEError("unexpected number of segments")
    bounds = [*offsets[:count], len(data)]
    out = np.zeros((samples, size), dtype=np.uint16)
    for index in range(count):
        start, end = bounds[index], bounds[index + 1]
        if not 64 <= start <= end <= len(data):
            raise RLEError("segment outside the frame")
        plane = np.frombuffer(_unpack(data, start, end, size), dtype=np.uint8).astype(np.uint16)
        sample, byte = divmod(index, word_bytes)  # G.2: the most significant byte of each sample comes first
        out[sample] |= plane << np.uint16(8 * (word_bytes - 1 - byte))
    return np.ascontiguousarray(out.T).reshape(rows, columns, samples)


def _unpack(data: bytes, start: int, end: int, size: int) -> bytes:
    """PackBits (G.3.2); bytes after the last sample are padding."""
    out = bytearray()
    at = start
    while at < end and len(out) < size:
        control = data[at]
        if control < 128:
            out += data[at + 1 : min(at + 2 + control, end)]
            at += control + 2
        elif control > 128:
            if at + 1 >= end:
                raise RLEError("run without a value")
            out += data[at + 1 : at + 2] * (257 - control)
            at += 2
        else:
            at += 1
    if len(out) != size:
        raise RLEError("segment of another size")
    return bytes(out)
