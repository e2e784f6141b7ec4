"""A plain JPEG-LS encoder, for objects given out as JPEG-LS and for the bench, so that it is measured at its best.

imagecodecs declares 16 bits for every 16-bit array, which sets the thresholds of T.87 C.2.4.1.1.1 for 16 bits and costs
images of 9 to 12 bits 1 to 6 %. This one declares the bits in use. Nothing archived depends on it.
"""

from __future__ import annotations

import struct
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from worker.jpegls_t87 import RUN_LENGTHS, thresholds

Plane = npt.NDArray[Any]
MAX_BYTES_PER_SAMPLE = 6  # LIMIT is at most 64 bits a sample in noise; far above any real image


def encode_jpegls(plane: Plane, precision: int = 0) -> bytes:
    """Lossless JPEG-LS of uint8 or uint16 (rows, columns) or (rows, columns, n), one scan a component.

    precision: bits a sample, 0 for as few as hold the largest. Raises ValueError.
    """
    cube = plane.reshape(plane.shape[0], plane.shape[1], -1)
    rows, columns, samples = cube.shape
    precision = precision or max(2, int(cube.max()).bit_length())
    maxval = (1 << precision) - 1
    limits = np.array([maxval, *thresholds(maxval, (0, 0, 0, 0, 0))], dtype=np.int64)
    frame = struct.pack(">BHHB", precision, rows, columns, samples)
    frame += b"".join(bytes((number + 1, 0x11, 0)) for number in range(samples))
    out = [b"\xff\xd8", _segment(0xF7, frame)]
    for number in range(samples):
        room = np.zeros(rows * columns * MAX_BYTES_PER_SAMPLE + 1024, dtype=np.uint8)
        used = _encode_scan(np.ascontiguousarray(cube[:, :, number]), limits, RUN_LENGTHS, room)
        if used < 0:
            raise ValueError("the scan is longer than its room")
        out += [_segment(0xDA, bytes((1, number + 1, 0, 0, 0, 0))), room[:used].tobytes()]
    return b"".join([*out, b"\xff\xd9"])


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


# state: [0] bytes written, [1] accumulator, [2] bits in it, [3] bits the next byte takes (7 after 0xFF), [4] overflow


@numba.njit(cache=True)
def _put(value, count, state, room):  # type: ignore[no-untyped-def]
    for shift in range(count - 1, -1, -1):
        state[1] = (state[1] << 1) | ((value >> shift) & 1)
        state[2] += 1
        if state[2] == state[3]:
            if state[0] >= room.size:
                state[4] = 1
                return
            room[state[0]] = state[1]
            state[0] += 1
            state[3] = 7 if state[1] == 255 else 8
            state[1] = 0
            state[2] = 0


@numba.njit(cache=True)
def _golomb(value, k, limit, qbpp, state, room):  # type: ignore[no-untyped-def]
    zeros = value >> k
    if zeros < limit - qbpp - 1:
        _put(0, zeros, state, room)
        _put(1, 1, state, room)
        _put(value & ((1 << k) - 1), k, state, room)
    else:
        _put(0, limit - qbpp - 1, state, room)
        _put(1, 1, state, room)
        _put(value - 1, qbpp, state, room)


@numba.njit(cache=True)
def _level(d, t1, t2, t3):  # type: ignore[no-untyped-def]
    size = abs(d)
    sign = 1 if d > 0 else -1
    if size == 0:
        return 0
    if size < t1:
        return sign
    if size < t2:
        return 2 * sign
    return 3 * sign if size < t3 else 4 * sign


@numba.njit(cache=True)
def _regular(sample, q, ra, rb, rc, ctx, lim, state, room):  # type: ignore[no-untyped-def]
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
    err = _reduced((sample - px) * sign, lim[1])
    k = 0
    while (ctx[3, q] << k) < ctx[0, q]:
        k += 1
    if k == 0 and 2 * ctx[1, q] <= -ctx[3, q]:
        code = 2 * err + 1 if err >= 0 else -2 * (err + 1)
    else:
        code = 2 * err if err >= 0 else -2 * err - 1
    _golomb(code, k, lim[3], lim[2], state, room)
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


@numba.njit(cache=True)
def _reduced(err, span):  # type: ignore[no-untyped-def]
    if err < 0:
        err += span
    return err - span if err >= (span + 1) // 2 else err


@numba.njit(cache=True)
def _interruption(sample, ra, rb, order, ctx, negatives, lim, state, room):  # type: ignore[no-untyped-def]
    kind = 1 if ra == rb else 0
    err = sample - (ra if kind else rb)
    if not kind and ra > rb:
        err = -err
    err = _reduced(err, lim[1])
    q = 365 + kind
    temp = ctx[0, q] + (ctx[3, q] >> 1 if kind else 0)
    k = 0
    while (ctx[3, q] << k) < temp:
        k += 1
    often = 2 * negatives[kind] >= ctx[3, q]
    bit = 1 if (k == 0 and err > 0 and not often) or (err < 0 and (often or k != 0)) else 0
    code = 2 * abs(err) - kind - bit
    _golomb(code, k, lim[3] - order - 1, lim[2], state, room)
    if err < 0:
        negatives[kind] += 1
    ctx[0, q] += (code + 1 - kind) >> 1
    if ctx[3, q] == lim[4]:
        ctx[0, q] >>= 1
        ctx[3, q] >>= 1
        negatives[kind] >>= 1
    ctx[3, q] += 1


@numba.njit(cache=True)
def _encode_scan(plane, limits, orders, room):  # type: ignore[no-untyped-def]
    """Bytes written to `room`, -1 if they do not fit."""
    rows, columns = plane.shape
    qbpp = 0
    while (1 << qbpp) < limits[0] + 1:
        qbpp += 1
    bpp = max(2, qbpp)
    lim = np.array([limits[0], limits[0] + 1, qbpp, 2 * (bpp + max(8, bpp)), limits[4]], dtype=np.int64)
    ctx = np.zeros((4, 367), dtype=np.int64)
    ctx[0, :] = max(2, (limits[0] + 1 + 32) >> 6)
    ctx[3, :] = 1
    negatives = np.zeros(2, dtype=np.int64)
    state = np.array([0, 0, 0, 8, 0], dtype=np.int64)
    prev, cur = np.zeros(columns + 2, dtype=np.int64), np.zeros(columns + 2, dtype=np.int64)
    run_index = 0
    for y in range(rows):
        cur[0] = prev[1]
        prev[columns + 1] = prev[columns]
        cur[1 : columns + 1] = plane[y]
        x = 1
        while x <= columns:
            ra, rb, rc = cur[x - 1], prev[x], prev[x - 1]
            q = 81 * _level(prev[x + 1] - rb, limits[1], limits[2], limits[3])
            q += 9 * _level(rb - rc, limits[1], limits[2], limits[3])
            q += _level(rc - ra, limits[1], limits[2], limits[3])
            if q != 0:
                _regular(cur[x], q, ra, rb, rc, ctx, lim, state, room)
                x += 1
                continue
            length = 0
            while x + length <= columns and cur[x + length] == ra:
                length += 1
            x += length
            while length >= (1 << orders[run_index]):
                _put(1, 1, state, room)
                length -= 1 << orders[run_index]
                run_index = min(run_index + 1, 31)
            if x > columns:
                if length > 0:
                    _put(1, 1, state, room)
                continue
            order = orders[run_index]
            _put(0, 1, state, room)
            _put(length, order, state, room)
            _interruption(cur[x], cur[x - 1], prev[x], order, ctx, negatives, lim, state, room)
            run_index = max(run_index - 1, 0)
            x += 1
        prev, cur = cur, prev
    while state[2] or state[3] == 7:  # the last byte is filled with zeros; none may end in 0xFF
        _put(0, 1, state, room)
        if state[2] == 0 and state[3] == 8:
            break
    return -1 if state[4] else state[0]
