"""Recursive code construction on prediction errors, as one entropy coder that walks the frame.

Zhang, Chen, Yu (IEEE TIP 21(6) 2991, 2012) embed a message by decoding it with the best transition probabilities
P(y | x) and put what tells x from y, H(x | y), into the next block. Here a block is one sample and the coder a stack
(asymmetric numeral systems, Duda 2009): each sample's error x is encoded with the source's frequencies, its new value y
decoded with the output's. The stack, which begins as the message, loses log P(x) - log P(y) bits a sample, H(Y) - H(X)
on average; the receiver walks back, encodes y, decodes x, and ends with the message. Both sides use the same integer
tables (stego.errortables) and the same neighbours (stego.interpolation).

Where the window of errors reaches over the end of a sample's segment, source and output are cut there: at an end of the
legal range what lies beyond belongs to the last value (a scanner clips there), at a barred value it belongs to nobody.
So nothing leaves its segment and nothing has to be listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego import errortables
from stego.carriers import clips_at, dividing, kernel, segment
from stego.classfit import FEWEST, MAX_CHANGES, Plan, expected, plan_for, refitted
from stego.errors import CarrierError, SealError
from stego.errortables import FINE_SCALES, PRECISION, PRICES, REACH, Tables
from stego.interpolation import (
    CLASSES,
    FEATURES,
    LIMIT,
    MARGIN,
    PARTS,
    activity,
    class_of,
    quarters,
    row_parts,
    row_weights,
    set_steepness,
)
from stego.pixelheader import BitReader, BitWriter

MAX_CHANGE = 31
_LOW = 1 << 31  # the coder's state stays in [2^31, 2^39)
_STATE_BITS = 39
_TRIES = 5
_LEAST_USE = 0.93  # a walk that needs less of the frame changes it more than it must
_SPARE = 1.01
_FIRST_SPARE = 1.025  # a second walk costs more time than this costs distortion
_CHEAPEST = (160, 112, 64, 32)  # prices of about the greatest rate
_FIXED_BITS = 9 * FEATURES + 9 + 5 + 6 + 5 + 2 + 28 + _STATE_BITS
_CLASS_BITS = 7 + 2 + 5


def body_bits(plan: Plan) -> int:
    """Length of the body that `forward` will give."""
    return _FIXED_BITS + _CLASS_BITS * int(plan.classes.shape[0])


def prepare(
    values: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], nbits: int, max_change: int | None
) -> Plan:
    """Predictor, classes and price for `nbits` of message. Raises CarrierError ('capacity')."""
    return plan_for(values, mask, bars, int(nbits * _FIRST_SPARE), max_change)


def forward(
    plan: Plan, work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], stack: bytes
) -> BitWriter:
    """Put `stack` into `work`, in place, and say how. Raises CarrierError ('capacity').

    The plan knows the untouched frame; each walk shows what errors are like among changed samples, and the next plan
    follows from that. Where no such plan fits, the ones that `trial` measures the capacity by are tried.
    """
    original, need = work.copy(), 8.0 * len(stack)
    walk = _Walk(work, mask, bars, stack)
    best: tuple[Plan, BitWriter, NDArray[np.int32]] | None = None
    reached = worse = 0
    known: dict[int, float] = {}  # price: bits that the whole frame would take
    for _ in range(_TRIES):
        end = walk.go(plan, original)
        if end.left == 0 and end.stop >= _LEAST_USE * work.size:
            return _body(plan, end)
        if end.left == 0 and end.stop > reached:
            best, reached, worse = (plan, _body(plan, end), work.copy()), end.stop, 0
        elif best is not None:
            worse += 1
        done = max(1.0, (need - 8 * end.left) * work.size / max(1, end.stop))
        known[plan.price] = done
        model = expected(replace(plan, counts=end.seen), plan.price, plan.max_change)[0]
        change = plan.max_change
        plan = refitted(plan, end.seen, end.ends, need * _SPARE * max(0.25, min(3.0, model / done)))
        if plan.max_change != change:
            known.clear()
        plan = replace(plan, price=_between(known, plan.price, need * _SPARE))
        if best is not None and (worse > 1 or (plan.price, plan.max_change) == (best[0].price, best[0].max_change)):
            break  # the next would hardly be better
    if best is not None:
        work[:] = best[2]
        return best[1]
    for last in _widest(plan):
        end = walk.go(last, original)
        if end.left == 0:
            return _body(last, end)
    raise CarrierError("capacity")


def _between(known: dict[int, float], price: int, need: float) -> int:
    """`price`, unless prices that gave too little and too much are known: then one between, by the logarithm."""
    low = max((p for p, bits in known.items() if bits >= need), default=None)
    high = min((p for p, bits in known.items() if bits < need and (low is None or p > low)), default=None)
    if low is None or high is None:
        return price
    share = math.log(known[low] / need) / math.log(known[low] / known[high])
    return min(max(low + int(share * (high - low)), low + 1), high - 1)


def backward(work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], body: BitReader) -> bytes:
    """Inverse of `forward`: undo its changes in place and give back the stack. Raises SealError."""
    weights = np.array([body.get(9) - LIMIT for _ in range(FEATURES)], np.int64)
    price, max_change = body.get(9), body.get(5)
    first, count = body.get(6), body.get(5)
    spare, stop, state = body.get(2), body.get(28), body.get(_STATE_BITS)
    classes = np.array([(body.get(7), body.get(2), body.get(5)) for _ in range(count)], np.int64)
    classes = classes.reshape(count, 3)
    if price >= PRICES or not 1 <= max_change <= MAX_CHANGE or not count or stop > work.size or state < _LOW:
        raise SealError
    if first + count > CLASSES or not body.ended():
        raise SealError
    tables = Tables.of(classes, price, max_change)
    stack = np.empty(2 * work.size + 64, np.uint8)
    state, depth = _BACKWARD(work, mask, bars, weights, first, *tables.parts(), stack, stop, state)
    if depth < spare or state != _LOW or stack[:spare].any():
        raise SealError
    return stack[spare:depth].tobytes()


def trial(plan: Plan, work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], noise: bytes) -> int:
    """Net bits that the frame takes, found by embedding `noise` (longer than can fit) into `work`, in place."""
    original, walk = work.copy(), _Walk(work, mask, bars, noise)
    return max(8 * (len(noise) - walk.go(last, original).left) for last in _widest(plan))


def _widest(plan: Plan) -> list[Plan]:
    """Plans of about the greatest rate: cheap change, as far as the plan allows."""
    changes = sorted({plan.max_change, *(MAX_CHANGES if plan.free else ())})
    return [replace(plan, price=price, max_change=change) for change in changes for price in _CHEAPEST]


@dataclass(frozen=True, slots=True)
class _End:
    """left: bytes that found no room. spare: bytes taken from below the stack. stop: flat index of the first sample not
    visited. state: the coder's. seen, ends: errors met, as in Plan, scaled to the whole
    frame."""

    left: int
    spare: int
    stop: int
    state: int
    seen: NDArray[np.float64]
    ends: NDArray[np.float64]


class _Walk:
    """A frame and a stack to put into it."""

    def __init__(self, work: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], stack: bytes) -> None:
        self._work, self._mask, self._bars, self._stack = work, mask, bars, np.frombuffer(stack, np.uint8)
        self._room = np.empty(len(stack) + 2 * work.size + 64, np.uint8)

    def go(self, plan: Plan, original: NDArray[np.int32]) -> _End:
        """Walk `original`, writing into the frame."""
        self._work[:] = original
        self._room[: self._stack.size] = self._stack
        seen, ends = np.zeros_like(plan.counts), np.zeros_like(plan.ends)
        stop, state, left, spare = _FORWARD(
            self._work, self._mask, self._bars, plan.weights, plan.first,
            *Tables.of(plan.classes, plan.price, plan.max_change).parts(), self._room, self._stack.size, seen, ends,
        )  # fmt: skip
        known = (seen.sum((1, 2)) >= FEWEST)[:, None, None]
        scale = original.size / max(1, int(stop))
        seen, ends = np.where(known, seen * scale, plan.counts), np.where(known, ends * scale, plan.ends)
        return _End(int(left), int(spare), int(stop), int(state), seen, ends)


def _body(plan: Plan, end: _End) -> BitWriter:
    body = BitWriter()
    for weight in plan.weights.tolist():
        body.put(weight + LIMIT, 9)
    body.put(plan.price, 9)
    body.put(plan.max_change, 5)
    body.put(plan.first, 6)
    body.put(plan.classes.shape[0], 5)
    body.put(end.spare, 2)
    body.put(end.stop, 28)
    body.put(end.state, _STATE_BITS)
    for scale, shape, bias in plan.classes.tolist():
        body.put(scale, 7)
        body.put(shape, 2)
        body.put(bias, 5)
    return body


@kernel
def window(
    here: Any, c: Any, parts: Any, inner: Any, outer: Any, bars: Any, first: Any, classes: Any, widths: Any
) -> Any:
    """(class, phase, whole prediction, cut, lowest, highest error, clips above) of sample c of a row; class -1 where it
    does not carry. Only what both sides know goes in: neighbours, and the sample's segment."""
    n = class_of(activity(here, c, parts)) - first
    if n < 0 or n + first == 0 or n >= widths.size or widths[n] == 0:
        return -1, 0, 0, 0, 0, 0, False
    value = np.int64(here[c])
    least, most = segment(value, bars)
    if least >= most:
        return -1, 0, 0, 0, 0, 0, False
    prediction = quarters(here, c, parts, inner, outer)
    phase = prediction & 3
    if classes[n, 0] >= FINE_SCALES:
        whole, phase = (prediction + 2) >> 2, 0
    else:
        whole = prediction >> 2
    whole = min(max(whole, least), most)
    reach = widths[n]
    end = bars.shape[0] - 1
    above = bars[end, 0] == bars[end, 1] and most == bars[end, 0] - 1
    cut, low = errortables.cut_of(whole - least, reach, clips_at(least, bars))
    if not low <= value - whole <= reach:
        return -1, 0, 0, 0, 0, 0, False
    return n, phase, whole, cut, low, min(reach, most - whole), above


@kernel
def _place(slot: Any, count: Any) -> Any:
    """Where a slot of the whole window lies when the first `count` are stretched over all."""
    if count == errortables.TOTAL:
        return np.int64(slot)
    return (min(np.int64(slot), count) << PRECISION) // count


@kernel
def _span(table: Any, zero: Any, error: Any, low: Any, high: Any, count: Any) -> Any:
    """(start, length) of an error's slots; the ends take what lies beyond them. zero: where error 0 is in `table`."""
    start = 0 if error == low else _place(table[zero + error], count)
    end = errortables.TOTAL if error == high else _place(table[zero + error + 1], count)
    return start, end - start


@kernel
def _symbol(table: Any, zero: Any, slot: Any, near: Any, low: Any, high: Any, count: Any) -> Any:
    """The error whose slots hold `slot`, looked for from `near` on; its place is compared without the division."""
    beyond = (slot + 1) * count
    error = near
    while error > low and min(np.int64(table[zero + error]), count) << PRECISION >= beyond:
        error -= 1
    while error < high and min(np.int64(table[zero + error + 1]), count) << PRECISION < beyond:
        error += 1
    return error


@dividing
def _encode(state: Any, start: Any, length: Any, stack: Any, depth: Any) -> Any:
    while state >= length << 23:
        stack[depth] = state & 255
        depth += 1
        state >>= 8
    share = np.int64(np.float64(state) / np.float64(length))  # below 2^53: exact
    return (share << PRECISION) + state - share * length + start, depth


@kernel
def _forward(
    work: Any, mask: Any, bars: Any, weights: Any, first: Any, classes: Any, ratio: Any, max_change: Any, widths: Any,
    ready: Any, sources: Any, outputs: Any, stack: Any, depth: Any, seen: Any, ends: Any,
) -> Any:  # fmt: skip
    """(flat index of the first sample not visited, state, bytes left, bytes taken from below)."""
    rows, columns = work.shape
    parts = np.empty((PARTS, columns), np.int64)
    inner, outer = row_weights(weights)
    source, output = sources.reshape(-1), outputs.reshape(-1)
    state, spare = np.int64(_LOW), 0
    for row in range(MARGIN, rows - MARGIN):
        row_parts(work, row, weights, parts)
        here = work[row]
        for column in range(MARGIN, columns - MARGIN):
            if depth == 0:
                return row * columns + column, state, depth, spare
            if not mask[row, column]:
                continue
            n, phase, whole, cut, low, high, above = window(
                here, column, parts, inner, outer, bars, first, classes, widths
            )
            if n < 0:
                continue
            reach, error = widths[n], np.int64(here[column]) - whole
            zero = reach + errortables.look_up(n, phase, cut, classes, ratio, max_change, ready, sources, outputs)
            slots = np.int64(errortables.TOTAL if above else source[zero + high + 1])
            seen[n, phase, error + REACH] += 1
            if 0 < cut <= errortables.EDGES.size:
                ends[n, phase, -low] += 1
            start, length = _span(source, zero, error, low, high, slots)
            state, depth = _encode(state, start, length, stack, depth)
            slot = state & (errortables.TOTAL - 1)
            error = _symbol(output, zero, slot, error, low, high, slots)
            start, length = _span(output, zero, error, low, high, slots)
            state = length * (state >> PRECISION) + slot - start
            while state < _LOW:
                taken = np.int64(0)
                if depth > 0:
                    depth -= 1
                    taken = np.int64(stack[depth])
                else:
                    spare += 1
                state = state << 8 | taken
            if here[column] != whole + error:
                here[column] = whole + error
                set_steepness(work, row, column, parts)
    return work.size, state, depth, spare


@kernel
def _backward(
    work: Any, mask: Any, bars: Any, weights: Any, first: Any, classes: Any, ratio: Any, max_change: Any, widths: Any,
    ready: Any, sources: Any, outputs: Any, stack: Any, stop: Any, state: Any,
) -> Any:  # fmt: skip
    """(state, bytes on the stack); state 0 where no sender can have made this."""
    rows, columns = work.shape
    parts = np.empty((PARTS, columns), np.int64)
    inner, outer = row_weights(weights)
    source, output = sources.reshape(-1), outputs.reshape(-1)
    depth = 0
    for row in range(rows - MARGIN - 1, MARGIN - 1, -1):
        if row * columns >= stop:
            continue
        row_parts(work, row, weights, parts)
        here = work[row]
        for column in range(columns - MARGIN - 1, MARGIN - 1, -1):
            if row * columns + column >= stop or not mask[row, column]:
                continue
            n, phase, whole, cut, low, high, above = window(
                here, column, parts, inner, outer, bars, first, classes, widths
            )
            if n < 0:
                continue
            reach, error = widths[n], np.int64(here[column]) - whole
            zero = reach + errortables.look_up(n, phase, cut, classes, ratio, max_change, ready, sources, outputs)
            slots = np.int64(errortables.TOTAL if above else source[zero + high + 1])
            start, length = _span(output, zero, error, low, high, slots)
            if length <= 0 or depth + 8 > stack.size:
                return np.int64(0), depth
            state, depth = _encode(state, start, length, stack, depth)
            slot = state & (errortables.TOTAL - 1)
            error = _symbol(source, zero, slot, error, low, high, slots)
            start, length = _span(source, zero, error, low, high, slots)
            state = length * (state >> PRECISION) + slot - start
            while state < _LOW:
                if depth == 0:
                    return np.int64(0), depth
                depth -= 1
                state = state << 8 | np.int64(stack[depth])
            if here[column] != whole + error:
                here[column] = whole + error
                set_steepness(work, row, column, parts)
    return state, depth


#: the kernels, for callers that hand them a bundle of tables
_FORWARD: Any = _forward
_BACKWARD: Any = _backward
