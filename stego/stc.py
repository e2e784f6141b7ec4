"""Syndrome-trellis codes: the cheapest set of flips that makes a keyed stream's parity bits spell a message.

Filler, Judas, Fridrich, "Minimizing additive distortion in steganography using syndrome-trellis codes" (IEEE TIFS
2011), written anew. The stream is cut into LANES independent trellises that run in lockstep (lane = innermost axis),
so every Viterbi step is a handful of vector instructions and no state has to be gathered.

Row i of a lane (one message bit) owns the steps between two of `row_bounds`; the first row owns _LEAD times more,
because the first bits are reached by few samples otherwise. Step j of a row uses column j mod (number of columns):
with more steps than columns the cheapest sample of each column stands for all of them, which loses nothing (flipping
two of one column cancels) and bounds the work on large frames.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

LANES = 32
#: constraint height: the trellis has 2^HEIGHT states
HEIGHT = 10
#: distinct columns of a row; a row with more steps uses them again
MAX_COLUMNS = 128
#: sets of columns to choose from: where wet samples leave one without a solution, another has one
VARIANTS = 16
#: cost of a sample that must not change, far above any sum of real costs in one trellis
WET = np.float32(1e6)

#: how many rows' worth of steps the first row gets beside its own
_LEAD = 4
_STATES = 1 << HEIGHT
_UNREACHED = np.float32(1e30)
_WORD = 16
#: steps whose decisions are held at a time: 32 MiB of decision bits
_SECTION_STEPS = (1 << 18) // LANES

Bits = NDArray[np.uint8]


def columns(width: int, variant: int = 0) -> NDArray[np.int64]:
    """The min(width, MAX_COLUMNS) columns of a submatrix: HEIGHT-bit words whose first and last bit are set.

    Drawn without replacement from a fixed splitmix64 stream, so both sides and every release agree. No table of
    chosen columns: eight draws per rate differ by at most 1 % in distortion.
    """
    inner = np.arange(_STATES // 4, dtype=np.int64)
    return ((_mixed_order(inner, VARIANTS * width + variant)[: min(width, MAX_COLUMNS)]) << 1) | 1 | (_STATES >> 1)


def _mixed_order(items: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """`items` sorted by a splitmix64 value each (a fixed, seed-dependent order)."""
    with np.errstate(over="ignore"):
        z = (items.astype(np.uint64) + np.uint64(1 + 65536 * seed)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return items[np.argsort(z ^ (z >> np.uint64(31)), kind="stable")]


def row_bounds(steps: int, rows: int) -> NDArray[np.int64]:
    """First step of every row, and `steps`: int64 (rows + 1), rising."""
    lead = min(_LEAD * steps // (rows + _LEAD), steps - rows)
    bounds = lead + np.arange(rows + 1, dtype=np.int64) * (steps - lead) // rows
    bounds[0] = 0
    return bounds


def syndrome(bits: Bits, rows: int, variant: int = 0) -> Bits:
    """The message bits that a stream spells. bits: uint8 0/1 (steps, LANES); returns uint8 (rows, LANES).

    Raises ValueError unless 0 < rows <= steps (or rows == 0: an empty message).
    """
    _check(bits.shape, rows)
    if rows == 0:
        return np.zeros((0, LANES), dtype=np.uint8)
    bounds = row_bounds(bits.shape[0], rows)
    return np.asarray(_syndrome(bits, columns(_width(bounds), variant), bounds))


def cheapest_flips(costs: NDArray[np.float32], target: Bits, variant: int = 0) -> NDArray[np.bool_]:
    """The cheapest flips whose syndrome is `target`: bool (steps, LANES). Viterbi, exact.

    costs: float32 (steps, LANES), >= 0, WET where a flip is forbidden. target: uint8 0/1 (rows, LANES), the message
    xor the cover's own syndrome. A flip on a WET sample comes back when nothing else reaches the target: the caller
    looks. Memory: about 40 MiB beside the arguments, whatever the size.
    """
    rows = target.shape[0]
    _check(costs.shape, rows)
    flips = np.zeros(costs.shape, dtype=np.bool_)
    if rows == 0:
        return flips
    bounds = row_bounds(costs.shape[0], rows)
    cols = columns(_width(bounds), variant)
    if _width(bounds) <= cols.size:
        _viterbi(costs, target, cols, bounds, flips)
        return flips
    best, where = _cheapest_per_column(costs, bounds, cols.size)
    short = np.zeros(best.shape, dtype=np.bool_)
    _viterbi(best, target, cols, np.arange(rows + 1, dtype=np.int64) * cols.size, short)
    steps, lanes = np.nonzero(short)
    flips[where[steps, lanes], lanes] = True
    return flips


def _width(bounds: NDArray[np.int64]) -> int:
    """Steps of the widest row but the first."""
    return int(np.diff(bounds[1:]).max()) if bounds.size > 2 else int(bounds[1])


def _check(shape: tuple[int, ...], rows: int) -> None:
    if len(shape) != 2 or shape[1] != LANES or rows > shape[0]:
        raise ValueError("a stream is (steps, LANES) with at least one step per row")


def _viterbi(
    costs: NDArray[np.float32],
    target: Bits,
    cols: NDArray[np.int64],
    bounds: NDArray[np.int64],
    flips: NDArray[np.bool_],
) -> None:
    """Forward over sections, keeping the metrics at each start; then back, recomputing a section's decisions."""
    cuts = _sections(bounds)
    metric = np.full((_STATES, LANES), _UNREACHED, dtype=np.float32)
    metric[0] = 0
    longest = max(int(bounds[b] - bounds[a]) for a, b in zip(cuts, cuts[1:], strict=False))
    decisions = np.empty((-(-longest // _WORD), _STATES, LANES), dtype=np.int16)
    starts = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        metric -= metric.min(axis=0)
        starts.append(metric.copy())
        _forward(metric, decisions, costs, target, cols, bounds, first, last)
    state = metric.argmin(axis=0).astype(np.int64)
    for at in range(len(starts) - 1, -1, -1):
        if at < len(starts) - 1:
            _forward(starts[at], decisions, costs, target, cols, bounds, cuts[at], cuts[at + 1])
        _trace(state, decisions, target, cols, bounds, cuts[at], cuts[at + 1], flips)


def _sections(bounds: NDArray[np.int64]) -> list[int]:
    """Row numbers that cut the rows into sections of about _SECTION_STEPS steps."""
    rows = bounds.size - 1
    count = max(1, -(-int(bounds[-1]) // _SECTION_STEPS))
    return sorted({rows * i // count for i in range(count + 1)})


@numba.njit(nogil=True, cache=True)
def _forward(
    metric: NDArray[np.float32],
    decisions: NDArray[np.int16],
    costs: NDArray[np.float32],
    target: Bits,
    cols: NDArray[np.int64],
    bounds: NDArray[np.int64],
    first: int,
    last: int,
) -> None:
    """Viterbi over rows first..last-1. metric float32 (states, lanes) in place; decisions int16, one bit a step."""
    half = metric.shape[0] // 2
    begin = bounds[first]
    for row in range(first, last):
        for step in range(bounds[row], bounds[row + 1]):
            column = cols[(step - bounds[row]) % cols.size]
            word = decisions[(step - begin) >> 4]
            position = (step - begin) & 15
            bit = np.int16(1 << position)
            none = np.int16(0)
            keep = np.int16(-1) if position else none
            for s in range(half):
                p = s ^ column
                for lane in range(LANES):
                    x = metric[s, lane]
                    y = metric[p, lane]
                    over_x = np.float32(x + costs[step, lane])
                    over_y = np.float32(y + costs[step, lane])
                    metric[s, lane] = over_y if over_y < x else x
                    metric[p, lane] = over_x if over_x < y else y
                    word[s, lane] = np.int16((word[s, lane] & keep) | (bit if over_y < x else none))
                    word[p, lane] = np.int16((word[p, lane] & keep) | (bit if over_x < y else none))
        for s in range(half):
            for lane in range(LANES):
                even = metric[2 * s, lane]
                odd = metric[2 * s + 1, lane]
                metric[s, lane] = odd if target[row, lane] else even
        metric[half:] = _UNREACHED


@numba.njit(nogil=True, cache=True)
def _trace(
    state: NDArray[np.int64],
    decisions: NDArray[np.int16],
    target: Bits,
    cols: NDArray[np.int64],
    bounds: NDArray[np.int64],
    first: int,
    last: int,
    flips: NDArray[np.bool_],
) -> None:
    """Back over rows last-1..first from `state` int64 (lanes), which is left at the section's start."""
    begin = bounds[first]
    for row in range(last - 1, first - 1, -1):
        for lane in range(LANES):
            s = 2 * state[lane] + target[row, lane]
            for step in range(bounds[row + 1] - 1, bounds[row] - 1, -1):
                at = step - begin
                if (decisions[at >> 4, s, lane] >> (at & 15)) & 1:
                    flips[step, lane] = True
                    s ^= cols[(step - bounds[row]) % cols.size]
            state[lane] = s


@numba.njit(nogil=True, cache=True)
def _syndrome(bits: Bits, cols: NDArray[np.int64], bounds: NDArray[np.int64]) -> Bits:
    rows = bounds.size - 1
    out = np.zeros((rows, LANES), dtype=np.uint8)
    state = np.zeros(LANES, dtype=np.int64)
    for row in range(rows):
        begin = bounds[row]
        for step in range(begin, bounds[row + 1]):
            column = cols[(step - begin) % cols.size]
            for lane in range(LANES):
                state[lane] ^= column * bits[step, lane]
        for lane in range(LANES):
            out[row, lane] = state[lane] & 1
            state[lane] >>= 1
    return out


@numba.njit(nogil=True, cache=True)
def _cheapest_per_column(
    costs: NDArray[np.float32], bounds: NDArray[np.int64], width: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Per row, column and lane the cheapest step: its cost and number, both (rows * width, lanes)."""
    rows = bounds.size - 1
    best = np.full((rows * width, LANES), np.float32(3e38), dtype=np.float32)
    where = np.zeros((rows * width, LANES), dtype=np.int64)
    for row in range(rows):
        begin = bounds[row]
        for step in range(begin, bounds[row + 1]):
            at = row * width + (step - begin) % width
            for lane in range(LANES):
                if costs[step, lane] < best[at, lane]:
                    best[at, lane] = costs[step, lane]
                    where[at, lane] = step
    return best, where
