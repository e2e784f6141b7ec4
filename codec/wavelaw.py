"""The learned local path's view of 16 samples: predictions, errors, blend, the network's inputs. Integers only.

Units: samples in levels, predictions, errors and scales in 1/64 level, logarithms in 1/256 octave.
"""

from __future__ import annotations

from typing import Any

from codec.lanes import (
    LANES,
    float_bits,
    load,
    pick,
    select,
    splat,
    splat_at,
    store,
    to_double,
    to_int,
    vabs,
    vmax,
    vmin,
)
from codec.wavenet import pack
from codec.wavetables import (
    AROUND_FIRST,
    AROUND_STEPS,
    AROUND_STRIDE,
    BLEND,
    DISTANCE_CAP,
    ERROR_CAP,
    ERROR_FIRST,
    ERROR_STEPS,
    ERROR_STRIDE,
    INPUT_LIMIT,
    LEVEL_STRIDE,
    NEAR_CAP,
    PREDICTORS,
    SEEN_OFFSETS,
    SIGNED,
    SKEW,
    SLOTS,
    TAP_OFFSETS,
    inner,
)


@inner
def log256(v: Any) -> Any:
    """Piecewise linear 256 log2(v) for 1 <= v < 2^24, from the float's exponent and leading bits."""
    return (float_bits(v) >> 15) - (127 << 8)


@inner
def power(d: Any) -> Any:
    """About 2^(16 - d/256) for d >= 0, piecewise linear."""
    return (splat(1 << 17) - ((d & 255) << 8)) >> vmin((d >> 8) + 1, splat(31))


@inner
def clamp(v: Any, low: Any, high: Any) -> Any:
    """v within [low, high]."""
    return vmin(vmax(v, low), high)


@inner
def neighbour(level: Any, at: Any, dy: int, dx: int) -> Any:
    """The samples at (dy, dx) from the lanes' own, `at` being lane 0's place in the buffer."""
    return load(level, at + (dx + SKEW * dy) * LEVEL_STRIDE + dy)


@inner
def fixed_predictions(level: Any, at: Any, guess: Any) -> Any:
    """p0..p11 into `guess` int32[14 * 16], not yet clamped; returns activity and direction (0, 1, 2)."""
    w, n, nw = neighbour(level, at, 0, -1), neighbour(level, at, -1, 0), neighbour(level, at, -1, -1)
    ne, ww, nn = neighbour(level, at, -1, 1), neighbour(level, at, 0, -2), neighbour(level, at, -2, 0)
    nne = neighbour(level, at, -2, 1)
    low, high = vmin(w, n), vmax(w, n)
    plane = w + n - nw
    med = vmax(low, vmin(high, plane))
    store(guess, 0, w << 6)
    store(guess, 16, n << 6)
    store(guess, 32, plane << 6)
    store(guess, 48, ne << 6)
    store(guess, 64, (w + ne - n) << 6)
    store(guess, 80, ((w << 1) - ww) << 6)
    store(guess, 96, ((n << 1) - nn) << 6)
    store(guess, 112, ((w + n) << 5) + ((ne - nw) << 4))
    store(guess, 128, med << 6)
    store(guess, 144, (w + ne) << 5)
    store(guess, 160, ((w + n) * 3 - (nw << 1)) << 4)
    store(guess, 176, (n + ne - nne) << 6)
    down, across = vabs(w - nw) + vabs(n - nn), vabs(n - nw) + vabs(w - ww)
    steep = select(down <= (across << 1), splat(1), splat(2))
    return down + across + vabs(n - ne), select((down << 1) < across, splat(0), steep)


@inner
def around(plane: Any, step: Any, dy: Any, dx: Any) -> Any:
    """The samples at (dy, dx), both -1..1, from the lanes' own, of a plane known in advance (`skew_around`)."""
    return load(plane, (step + AROUND_STEPS + dx + SKEW * dy) * AROUND_STRIDE + AROUND_FIRST + dy)


@inner
def fitted_predictions(level: Any, at: Any, activity: Any, direction: Any, previous: Any, step: Any, thresholds: Any,
                       taps: Any, sets: Any, guess: Any) -> None:  # fmt: skip
    """p12 (set 0) and p13 (the set of the sample's class) by least squares; sums wrap.

    `taps` int32[35 or 44 (with a previous frame) * 16], sets innermost.
    """
    if sets == 0:
        store(guess, 192, load(guess, 112))
        store(guess, 208, load(guess, 128))
        return
    own = splat(0)
    if sets > 1:
        directions = (sets - 1) // (thresholds.size + 1)
        own = splat(1)
        for j in range(thresholds.size):
            own = own + select(activity > splat_at(thresholds, j), splat(directions), splat(0))
        if directions > 1:
            own = own + direction
    base = neighbour(level, at, 0, -1) + neighbour(level, at, -1, 0)
    first, second = splat(0), splat(0)
    for j in range(TAP_OFFSETS.size):
        far = (load(level, at + TAP_OFFSETS[j]) << 1) - base
        first = first + far * splat_at(taps, j * 16)
        second = second + far * pick(taps, j * 16, own)
    if previous.size > 0:
        for j in range(9):
            far = (around(previous, step, j // 3 - 1, j % 3 - 1) << 1) - base
            p = (TAP_OFFSETS.size + j) * 16
            first = first + far * splat_at(taps, p)
            second = second + far * pick(taps, p, own)
    store(guess, 192, (base << 5) + (first >> 5))
    store(guess, 208, (base << 5) + (second >> 5))


@inner
def local_errors(error: Any, step: Any, near: Any) -> None:
    """The weighted sums (12 parts) of every slot's errors around the sample into `near` int32[15 * 16]."""
    w, ww = ring(step - 1, 0), ring(step - 2, 0)
    n, nw, ne = ring(step - SKEW, 1), ring(step - SKEW - 1, 1), ring(step - SKEW + 1, 1)
    nww, nee = ring(step - SKEW - 2, 1), ring(step - SKEW + 2, 1)
    nn, nnw, nne = ring(step - 2 * SKEW, 2), ring(step - 2 * SKEW - 1, 2), ring(step - 2 * SKEW + 1, 2)
    for i in range(BLEND + 1):
        p = i * ERROR_STRIDE
        double = load(error, w + p) + load(error, n + p)
        beside = load(error, nw + p) + load(error, ne + p) + load(error, ww + p) + load(error, nn + p)
        beyond = load(error, nnw + p) + load(error, nne + p) + load(error, nww + p) + load(error, nee + p)
        store(near, i * LANES, (double << 1) + beside + beyond)


@inner
def ring(step: Any, above: int) -> Any:
    """Where slot 0 of a step lies in the ring of errors, seen from `above` rows below."""
    return (step & (ERROR_STEPS - 1)) * (SLOTS * ERROR_STRIDE) + ERROR_FIRST - above


@inner
def blend(guess: Any, near: Any, logs: Any) -> Any:
    """The mean of the 14 predictions, weighted by the inverse fourth power of their local errors (1/64 level)."""
    least = splat(1 << 20)
    for i in range(PREDICTORS):
        line = log256(vmin(load(near, i * LANES), splat(NEAR_CAP)) + 96)
        store(logs, i * LANES, line)
        least = vmin(least, line)
    weights = splat(0)
    total = to_double(splat(0))
    for i in range(PREDICTORS):
        weight = power((load(logs, i * LANES) - least) << 2)
        weights = weights + weight
        total = total + to_double(weight) * to_double(load(guess, i * LANES))
    # Below 2^43 over below 2^21: the quotient's float64 never rounds up to the next integer.
    return to_int((total + to_double(weights >> 1)) / to_double(weights))


@inner
def signed_log(d: Any, s0: Any, ls: Any) -> Any:
    """How far d is from 0 measured by s0, in 1/64 octave, with its sign."""
    size = (log256(vmin(vabs(d), splat(DISTANCE_CAP)) + s0) - ls) >> 2
    size = vmin(size, splat(INPUT_LIMIT))
    return select(d < 0, splat(0) - size, size)


@inner
def own_inputs(level: Any, at: Any, error: Any, step: Any, top: Any, guess: Any, near: Any, logs: Any, mean: Any,
               s0: Any, x: Any) -> None:  # fmt: skip
    """The network's first OWN_INPUTS inputs, which a tile gives by itself, into `x` int32[inputs * 16]."""
    ls = log256(s0)
    for j in range(SEEN_OFFSETS.size):
        store(x, j * LANES, signed_log((load(level, at + SEEN_OFFSETS[j]) << 6) - mean, s0, ls))
    count = SEEN_OFFSETS.size
    for i in range(PREDICTORS):
        store(x, (count + i) * LANES, signed_log(load(guess, i * LANES) - mean, s0, ls))
    count += PREDICTORS
    p = SIGNED * ERROR_STRIDE
    store(x, count * LANES, signed_log(load(error, ring(step - 1, 0) + p), s0, ls))
    store(x, (count + 1) * LANES, signed_log(load(error, ring(step - SKEW, 1) + p), s0, ls))
    store(x, (count + 2) * LANES, signed_log(load(error, ring(step - SKEW - 1, 1) + p), s0, ls))
    store(x, (count + 3) * LANES, signed_log(load(error, ring(step - SKEW + 1, 1) + p), s0, ls))
    store(x, (count + 4) * LANES, signed_log(load(error, ring(step - 2, 0) + p), s0, ls))
    store(x, (count + 5) * LANES, signed_log(load(error, ring(step - 2 * SKEW, 2) + p), s0, ls))
    count += 6
    floor = log256(vmin(load(near, BLEND * LANES), splat(NEAR_CAP)) + 96)
    for i in range(PREDICTORS):
        ratio = (load(logs, i * LANES) - floor) >> 2
        store(x, (count + i) * LANES, clamp(ratio, splat(-INPUT_LIMIT), splat(INPUT_LIMIT)))
    count += PREDICTORS
    store(x, count * LANES, clamp((ls >> 2) - 512, splat(-INPUT_LIMIT), splat(INPUT_LIMIT)))
    store(x, (count + 1) * LANES, signed_log(mean, s0, ls) >> 1)
    store(x, (count + 2) * LANES, signed_log(splat(top) - mean, s0, ls) >> 1)


@inner
def upper_inputs(upper: Any, step: Any, k: Any, highest: Any, mean: Any, s0: Any, x: Any, first: Any) -> None:
    """The inputs that G gives: its interval's ends and the middles of the intervals of samples yet to come."""
    ls = log256(s0)
    low = around(upper, step, 0, 0) << k
    high = vmin(low + ((1 << k) - 1), splat(highest))
    store(x, first * LANES, signed_log((low << 6) - 32 - mean, s0, ls))
    store(x, (first + 1) * LANES, signed_log((high << 6) + 32 - mean, s0, ls))
    middle = (32 << k) - mean
    store(x, (first + 2) * LANES, signed_log((around(upper, step, 0, 1) << (6 + k)) + middle, s0, ls))
    for j in range(3):
        far = (around(upper, step, 1, j - 1) << (6 + k)) + middle
        store(x, (first + 3 + j) * LANES, signed_log(far, s0, ls))


@inner
def previous_inputs(level: Any, at: Any, previous: Any, step: Any, mean: Any, s0: Any, x: Any, first: Any) -> None:
    """The inputs that the previous frame gives: its 3 x 3, how neighbours changed, and two predictions from both."""
    ls = log256(s0)
    for j in range(9):
        far = (around(previous, step, j // 3 - 1, j % 3 - 1) << 6) - mean
        store(x, (first + j) * LANES, signed_log(far, s0, ls))
    w = neighbour(level, at, 0, -1) - around(previous, step, 0, -1)
    n = neighbour(level, at, -1, 0) - around(previous, step, -1, 0)
    nw = neighbour(level, at, -1, -1) - around(previous, step, -1, -1)
    ne = neighbour(level, at, -1, 1) - around(previous, step, -1, 1)
    store(x, (first + 9) * LANES, signed_log(w << 6, s0, ls))
    store(x, (first + 10) * LANES, signed_log(n << 6, s0, ls))
    store(x, (first + 11) * LANES, signed_log(nw << 6, s0, ls))
    store(x, (first + 12) * LANES, signed_log(ne << 6, s0, ls))
    far = (around(previous, step, 0, 0) << 6) - mean
    store(x, (first + 13) * LANES, signed_log(far + ((w + n) << 5), s0, ls))
    store(x, (first + 14) * LANES, signed_log(far + ((w + n - nw) << 6), s0, ls))


@inner
def pack_inputs(x: Any, pairs: Any, packed: Any) -> None:
    """Pairs of the inputs `x` int32[2 pairs * 16] as int16 into `packed` int32[pairs * 16]."""
    for j in range(pairs):
        store(packed, j * LANES, pack(load(x, 2 * j * LANES), load(x, (2 * j + 1) * LANES)))


@inner
def clamp_predictions(guess: Any, top: Any) -> None:
    """All predictions within 0..top."""
    for i in range(PREDICTORS):
        store(guess, i * LANES, clamp(load(guess, i * LANES), splat(0), splat(top)))


@inner
def mark_errors(error: Any, step: Any, level: Any, guess: Any, mean: Any) -> None:
    """What the sample, now known, shows of its predictions: absolute errors of all and the blend's with its sign."""
    exact = level << 6
    here = ring(step, 0)
    for i in range(PREDICTORS):
        far = vmin(vabs(exact - load(guess, i * LANES)), splat(ERROR_CAP))
        store(error, here + i * ERROR_STRIDE, far)
    store(error, here + BLEND * ERROR_STRIDE, vmin(vabs(exact - mean), splat(ERROR_CAP)))
    store(error, here + SIGNED * ERROR_STRIDE, exact - mean)
