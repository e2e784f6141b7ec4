"""The sender's choices for the recursive carrier: predictor, classes of activity, price of change.

Only the sender runs this, so it may compute in floats; the receiver is sent the choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego import errortables
from stego.carriers import clips_at, kernel, segment
from stego.errors import CarrierError
from stego.errortables import (
    BIASES,
    FINE_SCALES,
    PHASES,
    PRICES,
    REACH,
    SCALES,
    SHAPES,
    WIDTH,
    Tables,
    half_width,
    source,
)
from stego.interpolation import (
    CLASSES,
    MARGIN,
    PARTS,
    activity,
    class_of,
    fitted_weights,
    quarters,
    row_parts,
    row_weights,
)

MOST_CLASSES = 24
FEWEST = 24  # samples that a class needs to be worth its parameters
_WORTH = 1 / 150  # part of the rate that an outer class must bring to be worth its parameters
MAX_CHANGES = (1, 2, 3, 5, 8, 12, 20, 31)
_CLOSE = 1.03  # a smaller change may cost this much more
_STRIDE = 32
_RICHER = 1.4  # classes are chosen at a rate this much above the one wanted,
_ROUGH = 0.15  # up to this part more
_TAKEN = 1.04  # changes of more than one make their neighbours' errors wider: so much more rate is planned for
_GUESS = 192  # a price that most searches end near
_FALL = 0.04  # part of the bits that the next price takes, about
_FLOOR = 8  # the lowest price worth trying: changes cost next to nothing
_ROOM = 1.1  # a change that can give no more than this part of what is wanted is at its end
_BINS = 2 * REACH + 1
_STRANGE = 18.0  # bits that an error outside its window counts as


@dataclass(frozen=True, slots=True)
class Plan:
    """weights int64 (7,). first: class of activity of classes[0]. classes int64 (n, 3): scale, shape, bias. price,
    max_change as the tables take them. counts float64 (n, 4, 511): errors by class and phase. ends float64
    (n, 4, 256): samples by how far the prediction lies above a barred value, which cuts their law. free:
    max_change is the sender's choice."""

    weights: NDArray[np.int64]
    first: int
    classes: NDArray[np.int64]
    price: int
    max_change: int
    counts: NDArray[np.float64]
    ends: NDArray[np.float64]
    free: bool


def plan_for(
    values: NDArray[np.int32], mask: NDArray[np.bool_], bars: NDArray[np.int64], nbits: int, max_change: int | None
) -> Plan:
    """Plan for `nbits`, with the least max_change that costs little, or the one given; with nbits 0 the plan of the
    greatest rate. Raises CarrierError ('capacity')."""
    weights = fitted_weights(values, mask)
    histogram, ends = np.zeros((CLASSES, PHASES, _BINS)), np.zeros((CLASSES, PHASES, REACH + 1))
    _collect(values, mask, bars, weights, histogram, ends)
    filled = np.flatnonzero(histogram.sum((1, 2)) >= FEWEST)
    if not filled.size:
        raise CarrierError("capacity")
    first = int(filled[0])
    last = min(int(filled[-1]) + 1, first + MOST_CLASSES)
    counts, ends = histogram[first:last], ends[first:last]
    if nbits == 0:
        return Plan(weights, first, _fit_all(counts, ends), 0, max_change or 1, counts, ends, max_change is None)
    rough = Plan(weights, first, _fit_all(counts, ends, 0), 0, 1, counts, ends, max_change is None)
    plan = _priced(_trimmed(rough, nbits, max_change or MAX_CHANGES[-1]), nbits, max_change)
    if plan.max_change == 1:
        return plan
    limits = max(_FLOOR, plan.price - _STRIDE), plan.price
    return replace(plan, price=_Model(plan).price(nbits * _TAKEN, plan.max_change, limits, plan.price))


def refitted(plan: Plan, seen: NDArray[np.float64], ends: NDArray[np.float64], nbits: float) -> Plan:
    """The plan for `nbits` after a walk that saw `seen`, `ends` (as Plan's) among samples already changed."""
    plan = replace(plan, counts=seen, ends=ends, classes=_fit_all(seen, ends))
    model = _Model(plan)
    if plan.free and not model.gives(nbits * _ROOM, plan.price, plan.max_change):
        return _priced(plan, nbits, None)
    limits = max(_FLOOR, plan.price - 64), min(PRICES - 1, plan.price + 32)
    return replace(plan, price=model.price(nbits, plan.max_change, limits, plan.price))


def _priced(plan: Plan, nbits: float, max_change: int | None) -> Plan:
    model, limits = _Model(plan), (_FLOOR, PRICES - 1)
    if max_change is not None:
        return replace(plan, max_change=max_change, price=model.price(nbits, max_change, limits, plan.price))
    free = model.price(nbits, MAX_CHANGES[-1], limits, plan.price)
    least = model.expected(free, MAX_CHANGES[-1])[1]
    for change in MAX_CHANGES[:-1]:
        if model.expected(max(_FLOOR, free - 24), change)[0] < nbits:
            continue
        price = model.price(nbits, change, (max(_FLOOR, free - 24), free), free)
        if model.expected(price, change)[1] <= _CLOSE * least:
            return replace(plan, max_change=change, price=price)
    return replace(plan, max_change=MAX_CHANGES[-1], price=free)


def _trimmed(plan: Plan, nbits: float, max_change: int) -> Plan:
    """Without the first and last classes that bring next to nothing at a rate above the one wanted; the rest fitted."""
    model = _Model(plan)
    price = model.price(nbits * _RICHER, max_change, (_FLOOR, PRICES - 1), _GUESS, _ROUGH)
    bits = model.by_class(price, max_change)[:, 0]
    used = np.flatnonzero(bits > _WORTH * bits.sum())
    if not used.size:
        raise CarrierError("capacity")
    low, high = int(used[0]), int(used[-1]) + 1
    counts, ends = plan.counts[low:high], plan.ends[low:high]
    part = replace(plan, first=plan.first + low, classes=_fit_all(counts, ends), price=price)
    return replace(part, counts=counts, ends=ends)


class _Model:
    """What a plan's errors would give at other prices; remembered, as planning spends its time on their tables."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[tuple[int, int], NDArray[np.float64]] = {}

    def by_class(self, price: int, max_change: int) -> NDArray[np.float64]:
        """float64 (n, 2): bits and squared changes of each class."""
        at = price, max_change
        if at not in self._known:
            self._known[at] = _by_class(self._plan, price, max_change)
        return self._known[at]

    def expected(self, price: int, max_change: int) -> tuple[float, float]:
        """As the function of this name."""
        bits, squares = self.by_class(price, max_change).sum(0).tolist()
        return bits, squares

    def gives(self, wanted: float, price: int, max_change: int) -> bool:
        """Whether some price gives `wanted` bits; `price` is one to begin with, as tables of low ones take long."""
        first = max(_FLOOR, price - _STRIDE)
        return any(self.expected(at, max_change)[0] >= wanted for at in (first, _FLOOR))

    def price(self, wanted: float, max_change: int, limits: tuple[int, int], guess: int, slack: float = 0) -> int:
        """The highest price within `limits` at which the model gives `wanted` bits; the lowest where none does; with
        `slack` one that gives up to this part more will do. Bits fall as the price rises, by a part that hardly changes
        from one price to the next, which the search follows."""
        low, high = limits[0] - 1, limits[1] + 1  # enough at low, too little at high
        at, fall = min(max(guess, limits[0]), limits[1]), _FALL
        last: tuple[int, float] | None = None
        while high - low > 1:
            over = math.log(max(1.0, self.expected(at, max_change)[0]) / wanted)
            low, high = (at, high) if over >= 0 else (low, at)
            if 0 <= over < slack:
                break
            if last is not None and (over - last[1]) * (last[0] - at) > 0:
                fall = min(max((over - last[1]) / (last[0] - at), _FALL / 8), 4 * _FALL)
            last = at, over
            step = min(max(math.floor(over / fall) + (over < 0), -2 * _STRIDE), 2 * _STRIDE)
            at = min(max(at + step, low + 1), high - 1)
        return max(low, limits[0])


def expected(plan: Plan, price: int, max_change: int) -> tuple[float, float]:
    """(bits, sum of squared changes) that the model expects of the frame."""
    bits, squares = _by_class(plan, price, max_change).sum(0).tolist()
    return bits, squares


def _by_class(plan: Plan, price: int, max_change: int) -> NDArray[np.float64]:
    tables = Tables.of(plan.classes, price, max_change)
    gains = np.zeros((plan.classes.shape[0], 2))
    _gain(plan.counts, plan.classes, tables.sources[:, :, 0], tables.outputs[:, :, 0], tables.widths, gains)
    return gains


def _fit_all(counts: NDArray[np.float64], ends: NDArray[np.float64], rounds: int = 12) -> NDArray[np.int64]:
    classes = np.zeros((counts.shape[0], 3), np.int64)
    _fit(counts, ends, classes, rounds)
    return classes


@kernel
def _collect(work: Any, mask: Any, bars: Any, weights: Any, histogram: Any, ends: Any) -> Any:
    rows, columns = work.shape
    parts = np.empty((PARTS, columns), np.int64)
    inner, outer = row_weights(weights)
    for row in range(MARGIN, rows - MARGIN):
        row_parts(work, row, weights, parts)
        here = work[row]
        for column in range(MARGIN, columns - MARGIN):
            if not mask[row, column]:
                continue
            kind = class_of(activity(here, column, parts))
            least, most = segment(here[column], bars)
            if kind == 0 or least >= most:
                continue
            prediction = quarters(here, column, parts, inner, outer)
            error = here[column] - (prediction >> 2)
            if abs(error) <= REACH:
                histogram[kind, prediction & 3, error + REACH] += 1
                distance = (prediction >> 2) - least
                if distance <= REACH and not clips_at(least, bars):
                    ends[kind, prediction & 3, max(0, distance)] += 1


@kernel
def _merged(counts: Any) -> Any:
    """Errors of all phases from the nearest whole prediction, in phase 0."""
    out = np.zeros_like(counts)
    for phase in range(PHASES):
        shift = 1 if phase >= 2 else 0
        for n in range(shift, _BINS):
            out[0, n - shift] += counts[phase, n]
    return out


@kernel
def _cost(counts: Any, merged: Any, ends: Any, law: Any, table: Any) -> Any:
    """Bits of a class's errors under a law (scale, shape, bias), cut where a barred value cuts it."""
    reach, fine, total = half_width(law[0]), law[0] < FINE_SCALES, 0.0
    errors = counts if fine else merged
    inside = 0.0
    for phase in range(PHASES if fine else 1):
        source(law[0], law[1], law[2], phase, table)
        for n in range(2 * reach + 1):
            times = errors[phase, n - reach + REACH]
            if times > 0:
                inside += times
                total -= times * np.log2((table[n + 1] - table[n]) / errortables.TOTAL)
        for part in range(1 if fine else PHASES):
            at = phase if fine else part
            for distance in range(reach):
                if ends[at, distance] > 0:
                    first = min(reach, distance + (1 if not fine and part >= 2 else 0))
                    total += ends[at, distance] * np.log2(1 - table[reach - first] / errortables.TOTAL)
    return total + _STRANGE * (errors.sum() - inside)


@kernel
def _moments(counts: Any) -> Any:
    """(mean, standard deviation) of a class's errors from the real predictions."""
    times, first, second = 0.0, 0.0, 0.0
    for phase in range(PHASES):
        for n in range(_BINS):
            if counts[phase, n] > 0:
                error = n - REACH - phase / 4.0
                times += counts[phase, n]
                first += counts[phase, n] * error
                second += counts[phase, n] * error * error
    if times == 0:
        return 0.0, 1.0
    mean = first / times
    return mean, np.sqrt(max(1e-3, second / times - mean * mean))


@kernel
def _fit(counts: Any, ends: Any, classes: Any, rounds: Any) -> Any:
    """Coordinate search for the law of least cost, from the moments on; with no rounds the moments' own law."""
    table = np.empty(WIDTH, np.int64)
    limits = np.array([SCALES, SHAPES, BIASES])
    for n in range(counts.shape[0]):
        merged = _merged(counts[n])
        mean, deviation = _moments(counts[n])
        scale = int(np.rint(8 * np.log2(deviation * 1024 / 184)))
        law = classes[n]
        law[0], law[1] = min(max(scale, 0), SCALES - 1), SHAPES - 2
        law[2] = min(max(int(np.rint(mean / deviation * BIASES)) + BIASES // 2, 0), BIASES - 1)
        best = _cost(counts[n], merged, ends[n], law, table) if rounds else 0.0
        for _ in range(rounds):
            before = best
            for field in (0, 1, 2):
                for step in (-2, -1, 1, 2):
                    old = law[field]
                    if not 0 <= old + step < limits[field] or (field != 0 and abs(step) > 1):
                        continue
                    law[field] = old + step
                    cost = _cost(counts[n], merged, ends[n], law, table)
                    if cost < best:
                        best = cost
                    else:
                        law[field] = old
            if best == before:
                break


@kernel
def _gain(counts: Any, classes: Any, sources: Any, outputs: Any, widths: Any, gains: Any) -> Any:
    """Expected (bits, squares) of each class: an error's slots spread over outputs in order; each gives log of source
    by output."""
    for n in range(counts.shape[0]):
        total, squares = 0.0, 0.0
        reach = widths[n]
        if reach == 0:
            continue
        fine = classes[n, 0] < FINE_SCALES
        errors = counts[n] if fine else _merged(counts[n])
        for phase in range(PHASES if fine else 1):
            x, y = sources[n, phase], outputs[n, phase]
            at = 0
            for k in range(2 * reach + 1):
                times = errors[phase, k - reach + REACH]
                length = x[k + 1] - x[k]
                slot = x[k]
                while slot < x[k + 1]:
                    while y[at + 1] <= slot:
                        at += 1
                    end = min(x[k + 1], y[at + 1])
                    if times > 0:
                        share = times * (end - slot) / length
                        total += share * np.log2(length / (y[at + 1] - y[at]))
                        squares += share * (at - k) * (at - k)
                    slot = end
        gains[n, 0], gains[n, 1] = total, squares
