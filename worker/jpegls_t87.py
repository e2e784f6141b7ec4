"""A lossless JPEG-LS decoder written from ITU-T T.87 alone.

It exists to be *unrelated* to CharLS, the library behind every other JPEG-LS decoder at hand: a JPEG-LS object is only
re-coded when both decoders give the same samples. Near-lossless streams, mapping tables, restart intervals and the
HP colour transforms are refused, never approximated. Clause numbers refer to ITU-T T.87 (06/98).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["JpegLSError", "decode", "read_header", "StreamHeader"]

MAX_SAMPLES = 1 << 31
SOI, EOI, SOF55, SOS, LSE, DRI, APP8 = 0xD8, 0xD9, 0xF7, 0xDA, 0xF8, 0xDD, 0xE8
RUN_LENGTHS = np.array(  # J, table A.7 of A.2.1
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    dtype=np.int64,
)


class JpegLSError(Exception):
    """The stream is damaged or uses a feature this decoder refuses."""


@dataclass
class Scan:
    """One scan: component positions, interleave mode (0 none, 1 line, 2 sample), entropy-coded bytes [start, end)."""

    components: tuple[int, ...]
    near: int
    interleave: int
    preset: tuple[int, int, int, int, int]
    start: int
    end: int


@dataclass
class StreamHeader:
    """What the markers say: precision in bits, rows, columns, component count and the scans in order."""

    precision: int
    rows: int
    columns: int
    samples: int
    scans: list[Scan] = field(default_factory=list)


def _clamp(value: int, low: int, maxval: int) -> int:
    return low if value > maxval or value < low else value


def thresholds(maxval: int, preset: tuple[int, int, int, int, int]) -> tuple[int, int, int, int]:
    """T1, T2, T3 and RESET for a lossless scan, defaults where the preset says 0 (C.2.4.1.1.1)."""
    if maxval >= 128:
        factor = (min(maxval, 4095) + 128) // 256
        first, second, third = factor + 2, factor * 4 + 3, factor * 17 + 4
    else:
        factor = 256 // (maxval + 1)
        first, second, third = max(2, 3 // factor), max(3, 7 // factor), max(4, 21 // factor)
    first = preset[1] or _clamp(first, 1, maxval)
    second = preset[2] or _clamp(second, first, maxval)
    third = preset[3] or _clamp(third, second, maxval)
    return first, second, third, preset[4] or 64


def _scan_end(data: bytes, start: int) -> int:
    """First marker at or after start: in a scan a byte 0xFF is followed by a byte below 0x80 (A.1)."""
    at = data.find(b"\xff", start)
    while at >= 0:
        if at + 1 >= len(data):
            return len(data)
        if data[at + 1] >= 0x80 and data[at + 1] != 0xFF:
            return at
        at = data.find(b"\xff", at + 1)
    return len(data)


def _read_frame(body: bytes) -> tuple[StreamHeader, list[int]]:
    if len(body) < 6:
        raise JpegLSError("short frame header")
    precision, rows, columns, samples = struct.unpack(">BHHB", body[:6])
    if not (2 <= precision <= 16 and rows and columns and samples and len(body) == 6 + 3 * samples):
        raise JpegLSError("bad frame header")
    if any(body[7 + 3 * i] != 0x11 for i in range(samples)):
        raise JpegLSError("subsampled components")
    if rows * columns * samples > MAX_SAMPLES:
        raise JpegLSError("too many samples")
    return StreamHeader(precision, rows, columns, samples), [body[6 + 3 * i] for i in range(samples)]


def _read_scan(body: bytes, ids: list[int], preset: tuple[int, int, int, int, int]) -> Scan:
    count = body[0] if body else 0
    if not count or len(body) != 4 + 2 * count:
        raise JpegLSError("bad scan header")
    parts = []
    for i in range(count):
        if body[1 + 2 * i] not in ids or body[2 + 2 * i]:
            raise JpegLSError("unknown component or mapping table")
        parts.append(ids.index(body[1 + 2 * i]))
    near, interleave, transform = body[1 + 2 * count], body[2 + 2 * count], body[3 + 2 * count]
    if interleave > 2 or transform or (interleave == 0 and count != 1) or len(set(parts)) != count:
        raise JpegLSError("bad interleave mode or point transform")
    return Scan(tuple(parts), near, interleave, preset, 0, 0)


def read_header(data: bytes) -> StreamHeader:
    """Markers of one JPEG-LS stream. Raises JpegLSError on anything not understood."""
    if data[:2] != b"\xff\xd8":
        raise JpegLSError("no start of image")
    at, preset = 2, (0, 0, 0, 0, 0)
    header: StreamHeader | None = None
    ids: list[int] = []
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise JpegLSError("marker expected")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == EOI:
            break
        length = struct.unpack_from(">H", data, at + 2)[0]
        body = bytes(data[at + 4 : at + 2 + length])
        if length < 2 or len(body) != length - 2:
            raise JpegLSError("short segment")
        at += 2 + length
        if marker == SOF55 and header is None:
            header, ids = _read_frame(body)
        elif marker == LSE:
            if len(body) != 11 or body[0] != 1:
                raise JpegLSError("mapping table or oversize image")
            preset = struct.unpack(">5H", body[1:])
        elif marker == SOS and header is not None:
            scan = _read_scan(body, ids, preset)
            scan.start, scan.end = at, _scan_end(data, at)
            at = scan.end
            header.scans.append(scan)
        elif marker == DRI or (marker == APP8 and body[:4] == b"mrfx" and body[4:5] != b"\0"):
            raise JpegLSError("restart interval or colour transform")
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            raise JpegLSError("unexpected marker")
    if header is None or sorted(c for s in header.scans for c in s.components) != list(range(header.samples)):
        raise JpegLSError("components missing")
    return header


def decode(data: bytes) -> npt.NDArray[np.uint16]:
    """Samples as uint16, shape (rows, columns, samples), C order. Raises JpegLSError; only NEAR = 0 is decoded."""
    header = read_header(data)
    out = np.zeros((header.rows, header.columns, header.samples), dtype=np.uint16)
    stream = np.frombuffer(data, dtype=np.uint8)
    for scan in header.scans:
        if scan.near:
            raise JpegLSError("near-lossless stream")
        maxval = scan.preset[0] or (1 << header.precision) - 1
        if maxval >= 1 << header.precision:
            raise JpegLSError("bad MAXVAL")
        t1, t2, t3, reset = thresholds(maxval, scan.preset)
        if not (1 <= t1 <= t2 <= t3 <= maxval and 3 <= reset <= max(255, maxval)):
            raise JpegLSError("bad thresholds")
        parts = np.array(scan.components, dtype=np.int64)
        limits = np.array([maxval, t1, t2, t3, reset], dtype=np.int64)
        status = _decode_scan(stream[scan.start : scan.end], out, parts, scan.interleave == 2, limits, RUN_LENGTHS)
        if status:
            raise JpegLSError("scan ended early" if status == 1 else "bad code")
    return out


# --- kernel: state is one int64 array so that the small functions can be inlined by numba -------------------------
# bits: [0] position, [1] accumulator, [2] bits held, [3] previous byte was 0xFF, [4] 1 = ran out, 2 = bad code


@numba.njit(cache=True, inline="always")
def _bit(stream, bits):  # type: ignore[no-untyped-def]
    if bits[2] == 0:
        if bits[0] >= stream.size:
            bits[4] = 1
            return 0
        byte = np.int64(stream[bits[0]])
        bits[0] += 1
        bits[1] = byte
        bits[2] = 7 if bits[3] else 8  # A.1: the bit after 0xFF is a stuffed zero
        bits[3] = 1 if byte == 255 else 0
    bits[2] -= 1
    return (bits[1] >> bits[2]) & 1


@numba.njit(cache=True)
def _golomb(stream, bits, k, limit, qbpp):  # type: ignore[no-untyped-def]
    """Limited-length Golomb code (A.5.3)."""
    zeros = 0
    while bits[4] == 0 and _bit(stream, bits) == 0:
        zeros += 1
        if zeros > limit:
            bits[4] = 2
    tail = k
    value = zeros
    if zeros >= limit - qbpp - 1:
        tail = qbpp
        value = 0
    for _ in range(tail):
        value = (value << 1) | _bit(stream, bits)
    return value + 1 if zeros >= limit - qbpp - 1 else value


@numba.njit(cache=True, inline="always")
def _quantise(d, t1, t2, t3):  # type: ignore[no-untyped-def]
    if d <= -t3:
        return -4
    if d <= -t2:
        return -3
    if d <= -t1:
        return -2
    if d < 0:
        return -1
    if d == 0:
        return 0
    if d < t1:
        return 1
    if d < t2:
        return 2
    if d < t3:
        return 3
    return 4


@numba.njit(cache=True)
def _regular(stream, bits, ctx, q, ra, rb, rc, lim):  # type: ignore[no-untyped-def]
    """One sample in regular mode (A.4 to A.6). ctx rows: A, B, C, N. lim: maxval, range, qbpp, limit, reset."""
    sign = 1
    if q < 0:
        q, sign = -q, -1
    if rc >= max(ra, rb):
        px = min(ra, rb)
    elif rc <= min(ra, rb):
        px = max(ra, rb)
    else:
        px = ra + rb - rc
    px = min(max(px + sign * ctx[2, q], 0), lim[0])
    k = 0
    while (ctx[3, q] << k) < ctx[0, q] and k < 32:
        k += 1
    code = _golomb(stream, bits, k, lim[3], lim[2])
    if k == 0 and 2 * ctx[1, q] <= -ctx[3, q]:
        err = (code - 1) >> 1 if code & 1 else -(code >> 1) - 1
    else:
        err = -((code + 1) >> 1) if code & 1 else code >> 1
    ctx[1, q] += err
    ctx[0, q] += abs(err)
    if ctx[3, q] == lim[4]:
        ctx[0, q] >>= 1
        ctx[1, q] = ctx[1, q] >> 1 if ctx[1, q] >= 0 else -((1 - ctx[1, q]) >> 1)
        ctx[3, q] >>= 1
    ctx[3, q] += 1
    if ctx[1, q] <= -ctx[3, q]:
        ctx[1, q] = max(ctx[1, q] + ctx[3, q], 1 - ctx[3, q])
        ctx[2, q] = max(ctx[2, q] - 1, -128)
    elif ctx[1, q] > 0:
        ctx[1, q] = min(ctx[1, q] - ctx[3, q], 0)
        ctx[2, q] = min(ctx[2, q] + 1, 127)
    return _wrap(px + sign * err, lim, bits)


@numba.njit(cache=True, inline="always")
def _wrap(value, lim, bits):  # type: ignore[no-untyped-def]
    if value < 0:
        value += lim[1]
    elif value > lim[0]:
        value -= lim[1]
    if value < 0 or value > lim[0]:
        bits[4] = 2
        return 0
    return value


@numba.njit(cache=True)
def _interruption(stream, bits, ctx, negatives, kind, run_bits, ra, rb, lim):  # type: ignore[no-untyped-def]
    """The sample that ends a run (A.7.2). kind 1: Ra equals Rb."""
    q = 365 + kind
    temp = ctx[0, q] + (ctx[3, q] >> 1 if kind else 0)
    k = 0
    while (ctx[3, q] << k) < temp and k < 32:
        k += 1
    code = _golomb(stream, bits, k, lim[3] - run_bits - 1, lim[2])
    total = code + kind
    odd = total & 1
    err = (total + odd) >> 1
    if (k != 0 or 2 * negatives[kind] >= ctx[3, q]) == (odd == 1):
        err = -err
    if err < 0:
        negatives[kind] += 1
    ctx[0, q] += (code + 1 - kind) >> 1
    if ctx[3, q] == lim[4]:
        ctx[0, q] >>= 1
        ctx[3, q] >>= 1
        negatives[kind] >>= 1
    ctx[3, q] += 1
    if kind:
        return _wrap(ra + err, lim, bits)
    return _wrap(rb + (-err if ra > rb else err), lim, bits)


@numba.njit(cache=True)
def _run(stream, bits, room, index, part, run_lengths):  # type: ignore[no-untyped-def]
    """Run length (A.7.1). Returns (length, interrupted); index[part] is RUNindex, not yet lowered."""
    done = 0
    while bits[4] == 0:
        order = run_lengths[index[part]]
        if _bit(stream, bits):
            step = min(1 << order, room - done)
            done += step
            if step == 1 << order and index[part] < 31:
                index[part] += 1
            if done == room:
                return done, False
        else:
            rest = 0
            for _ in range(order):
                rest = (rest << 1) | _bit(stream, bits)
            if done + rest >= room:
                bits[4] = 2
                return done, False
            return done + rest, True
    return done, False


@numba.njit(cache=True)
def _gradient(prev, cur, x, c, limits):  # type: ignore[no-untyped-def]
    """Signed context number 81 Q1 + 9 Q2 + Q3 (A.3); 0 selects run mode."""
    q1 = _quantise(prev[x + 1, c] - prev[x, c], limits[1], limits[2], limits[3])
    q2 = _quantise(prev[x, c] - prev[x - 1, c], limits[1], limits[2], limits[3])
    q3 = _quantise(prev[x - 1, c] - cur[x - 1, c], limits[1], limits[2], limits[3])
    return 81 * q1 + 9 * q2 + q3


@numba.njit(cache=True)
def _line(stream, bits, ctx, negatives, index, prev, cur, first, last, limits, lim, run_lengths):  # type: ignore[no-untyped-def]
    """One line of components [first, last): together when sample-interleaved, else last = first + 1."""
    width = cur.shape[0] - 2
    for c in range(first, last):
        cur[0, c] = prev[1, c]
        prev[width + 1, c] = prev[width, c]
    x = 1
    while x <= width and bits[4] == 0:
        flat = True
        for c in range(first, last):
            flat = flat and _gradient(prev, cur, x, c, limits) == 0
        if not flat:
            for c in range(first, last):
                q = _gradient(prev, cur, x, c, limits)
                cur[x, c] = _regular(stream, bits, ctx, q, cur[x - 1, c], prev[x, c], prev[x - 1, c], lim)
            x += 1
            continue
        length, broken = _run(stream, bits, width + 1 - x, index, first, run_lengths)
        for i in range(x, x + length):
            for c in range(first, last):
                cur[i, c] = cur[x - 1, c]
        x += length
        if broken:
            order = run_lengths[index[first]]
            for c in range(first, last):
                kind = 1 if last - first == 1 and cur[x - 1, c] == prev[x, c] else 0
                cur[x, c] = _interruption(
                    stream, bits, ctx, negatives, kind, order, cur[x - 1, c], prev[x, c], lim
                )
            if index[first] > 0:
                index[first] -= 1
            x += 1


@numba.njit(cache=True)
def _decode_scan(stream, out, parts, by_sample, limits, run_lengths):  # type: ignore[no-untyped-def]
    """All lines of one scan into out[:, :, parts]. Returns 0, 1 (ran out of bytes) or 2 (impossible code)."""
    rows, columns, count = out.shape[0], out.shape[1], parts.size
    maxval = limits[0]
    qbpp = 0
    while (1 << qbpp) < maxval + 1:
        qbpp += 1
    bpp = max(2, qbpp)
    lim = np.array([maxval, maxval + 1, qbpp, 2 * (bpp + max(8, bpp)), limits[4]], dtype=np.int64)
    ctx = np.zeros((4, 367), dtype=np.int64)
    ctx[0, :] = max(2, (maxval + 1 + 32) >> 6)
    ctx[3, :] = 1
    negatives = np.zeros(2, dtype=np.int64)
    index = np.zeros(count, dtype=np.int64)
    bits = np.zeros(5, dtype=np.int64)
    prev = np.zeros((columns + 2, count), dtype=np.int64)
    cur = np.zeros((columns + 2, count), dtype=np.int64)
    for y in range(rows):
        if by_sample:
            _line(stream, bits, ctx, negatives, index, prev, cur, 0, count, limits, lim, run_lengths)
        else:
            for c in range(count):
                _line(stream, bits, ctx, negatives, index, prev, cur, c, c + 1, limits, lim, run_lengths)
        if bits[4]:
            return bits[4]
        for c in range(count):
            out[y, :, parts[c]] = cur[1 : columns + 1, c]
        prev, cur = cur, prev
    return 0
