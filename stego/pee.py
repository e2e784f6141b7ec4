"""Plain prediction-error expansion with the rhombus predictor and sorting: the baseline of the self-contained carrier.

Sachnev, Kim, Nam, Suresh, Shi, "Reversible watermarking algorithm using sorting and prediction", IEEE TCSVT 19(7) 2009.
Two checkerboard passes; each predicts a sample by the mean of its four neighbours, which belong to the other set, and
takes samples by rising local activity. Errors e in [-t, t) expand to 2 e + bit, the others move out by t.

Bits stand on a stack: the sender takes from its top, the receiver, who walks back, puts them back. A sample within
t of an end of its segment is ambiguous; a flag for it goes on the sender's stack and so into the samples that follow,
which takes the place of a location map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego.carriers import kernel, segment
from stego.errors import CarrierError, SealError
from stego.pixelheader import BitReader, BitWriter

BODY_BITS = 5 + 16 + 1 + 28
MAX_CHANGE = 16
_MAX_ACTIVITY = (1 << 16) - 1
_FLAG_ROOM = 64


def prepare(
    values: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], nbits: int, max_change: int | None
) -> int:
    """The plan of this method: how far a sample may move."""
    return MAX_CHANGE if max_change is None else max_change


def body_bits(plan: int) -> int:
    """Length of the body that `forward` will give."""
    return BODY_BITS


def forward(
    plan: int, work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], stack: bytes
) -> BitWriter:
    """Put the bits of `stack` into `work` in place; say how in BODY_BITS bits. Raises CarrierError ('capacity')."""
    original = work.copy()
    bits = np.unpackbits(np.frombuffer(stack, np.uint8))
    for t in range(1, plan + 1):
        for limit in _limits(original, mask, t, bits.size):
            work[:] = original
            stop = _embed(work, mask, bars, bits, t, limit)
            if stop is not None:
                body = BitWriter()
                body.put(t - 1, 5)
                body.put(limit, 16)
                body.put(stop[0], 1)
                body.put(stop[1], 28)
                return body
    raise CarrierError("capacity")


def backward(work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], body: BitReader) -> bytes:
    """Inverse of `forward`: undo its changes in place and give back the stack. Raises SealError."""
    t, limit = body.get(5) + 1, body.get(16)
    last_set, stop = body.get(1), body.get(28)
    if t > MAX_CHANGE or not body.ended():
        raise SealError
    stack = np.empty(2 * work.size + _FLAG_ROOM, np.uint8)
    depth = 0
    for parity in range(last_set, -1, -1):
        order = _order(work, mask, parity, limit)
        count = stop if parity == last_set else order.size
        if count > order.size:
            raise SealError
        depth = _backward(work.reshape(-1), order[:count], work.shape[1], bars, t, stack, depth)
        if depth < 0:
            raise SealError
    if depth % 8:
        raise SealError
    return np.packbits(stack[:depth]).tobytes()


def trial(plan: int, work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], noise: bytes) -> int:
    """Net bits that the frame takes at a change of at most `plan`, found by embedding `noise`, longer than fits, into
    `work`."""
    bits = np.unpackbits(np.frombuffer(noise, np.uint8))
    stack = np.empty(bits.size + 2 * work.size, np.uint8)
    stack[: bits.size] = bits
    depth = bits.size
    for parity in range(2):
        order = _order(work, mask, parity, _MAX_ACTIVITY)
        _, depth = _forward(work.reshape(-1), order, work.shape[1], bars, plan, stack, depth)
    return int(bits.size - depth)


def _limits(work: NDArray[np.int32], mask: NDArray[np.bool_], t: int, nbits: int) -> list[int]:
    """Activity limits worth trying: the least at which enough errors expand in the untouched frame, then wider ones."""
    histogram = _expandable(work, mask, t)
    total = np.cumsum(histogram)
    if int(total[-1]) < nbits:
        return []
    least = int(np.searchsorted(total, nbits))
    return sorted({min(_MAX_ACTIVITY, x) for x in (least, least + 1, least * 5 // 4 + 2, 2 * least + 4, _MAX_ACTIVITY)})


def _embed(
    work: NDArray[np.int32],
    mask: NDArray[np.bool_],
    bars: NDArray[np.int64],
    bits: NDArray[np.uint8],
    t: int,
    limit: int,
) -> tuple[int, int] | None:
    """(set, samples of it) at which the stack was empty, or None when it was not."""
    stack = np.empty(bits.size + 2 * work.size, np.uint8)
    stack[: bits.size] = bits
    depth = bits.size
    for parity in range(2):
        order = _order(work, mask, parity, limit)
        stop, depth = _forward(work.reshape(-1), order, work.shape[1], bars, t, stack, depth)
        if depth == 0:
            return parity, int(stop)
    return None


def _order(work: NDArray[np.int32], mask: NDArray[np.bool_], parity: int, limit: int) -> NDArray[np.int64]:
    """Flat indices of one checkerboard set by rising activity of the other set around, then in raster order."""
    places, activity = _activities(work, mask, parity, limit)
    return np.asarray(places[np.argsort(activity, kind="stable")])


@kernel
def _activity(flat: Any, i: Any, columns: Any) -> Any:
    up, down, left, right = flat[i - columns], flat[i + columns], flat[i - 1], flat[i + 1]
    return abs(up - left) + abs(left - down) + abs(down - right) + abs(right - up)


@kernel
def _error(flat: Any, i: Any, columns: Any) -> Any:
    """(prediction, error) of sample i; the mean is rounded down after adding a half."""
    total = flat[i - columns] + flat[i + columns] + flat[i - 1] + flat[i + 1]
    mean = (total + 2) >> 2
    return mean, flat[i] - mean


@kernel
def _activities(work: Any, mask: Any, parity: Any, limit: Any) -> Any:
    rows, columns = work.shape
    flat = work.reshape(-1)
    places = np.empty(work.size // 2 + 1, np.int64)
    activity = np.empty(work.size // 2 + 1, np.uint16)
    n = 0
    for row in range(rows):
        for column in range((row + parity) & 1, columns, 2):
            if mask[row, column]:
                a = _activity(flat, row * columns + column, columns)
                if a <= limit:
                    places[n], activity[n] = row * columns + column, a
                    n += 1
    return places[:n], activity[:n]


@kernel
def _expandable(work: Any, mask: Any, t: Any) -> Any:
    """int64 (65536,): samples that would take a bit, by activity."""
    rows, columns = work.shape
    flat = work.reshape(-1)
    histogram = np.zeros(65536, np.int64)
    for row in range(rows):
        for column in range(columns):
            if mask[row, column]:
                i = row * columns + column
                error = _error(flat, i, columns)[1]
                if -t <= error < t:
                    histogram[min(_activity(flat, i, columns), 65535)] += 1
    return histogram


@kernel
def _forward(flat: Any, order: Any, columns: Any, bars: Any, t: Any, stack: Any, depth: Any) -> Any:
    """(samples done, bits left)."""
    for k in range(order.size):
        if depth == 0:
            return k, depth
        i = order[k]
        value = np.int64(flat[i])
        first, last = segment(value, bars)
        if last - first < 4 * t:
            continue
        if value - t < first or value + t > last:
            stack[depth] = 0
            depth += 1
            continue
        mean, error = _error(flat, i, columns)
        if error >= t:
            value += t
        elif error < -t:
            value -= t
        else:
            depth -= 1
            value = mean + 2 * error + stack[depth]
        flat[i] = value
        if value < first + t or value > last - t:
            stack[depth] = 1
            depth += 1
    return order.size, depth


@kernel
def _backward(flat: Any, order: Any, columns: Any, bars: Any, t: Any, stack: Any, depth: Any) -> Any:
    """Bits on the stack afterwards; -1 where no sender can have made this."""
    for k in range(order.size - 1, -1, -1):
        i = order[k]
        value = np.int64(flat[i])
        first, last = segment(value, bars)
        if last - first < 4 * t:
            continue
        if value < first + t or value > last - t:
            if depth == 0:
                return -1
            depth -= 1
            if stack[depth] == 0:
                continue
        mean, _ = _error(flat, i, columns)
        error = value - mean
        if error >= 2 * t:
            value -= t
        elif error < -2 * t:
            value += t
        else:
            stack[depth] = error & 1
            depth += 1
            value = mean + (error >> 1)
        if value - t < first or value + t > last or depth >= stack.size:
            return -1
        flat[i] = value
    return depth
