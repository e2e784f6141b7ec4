"""Integer tables of a source of prediction errors and of its best distorted output, found alike on every machine.

A class of activity has errors of a Student-like law, density (1 + (z / s)^2 / m)^-m, with scale s, exponent m and
centre from small lists. Its frequencies sum to 2^16. From them and one number, the price of change, follows the
output's distribution by maximising entropy less price times squared change (stego.bound has the theory): mass flows
over the edge between two values as long as the ratio of their masses exceeds ratio^(2 j + 1), j steps from where it
started. All in int64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego.carriers import dividing, kernel

PRECISION = 16
TOTAL = 1 << PRECISION
SCALES = 128
SHAPES = 4
PRICES = 16 * 22
REACH = 255  # half the widest window
WIDTH = 2 * REACH + 2  # entries of a cumulative table: errors -REACH..REACH and the end
PHASES = 4  # quarters of a unit between the prediction and its whole part
BIASES = 32
FINE_SCALES = 40  # below this index (s < 5.8) the quarter matters
#: distances of a prediction from its segment's first value that have tables of their own
EDGES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192], np.int64)
CUTS = 33  # none, and two for each edge
_GUARD = 14  # extra bits of mass while the output is searched for
_SWEEPS = 160
_WIDE = 8 << 10  # scale from which the search begins with a stretched law
_EIGHTHS = np.array([184, 201, 219, 239, 260, 284, 309, 337], np.int64)  # 184 * 2^(i / 8): s in 1/1024, scales 0..7
_EXPONENTS = np.array([2, 3, 5, 16], np.int64)


@kernel
def price_ratio(code: Any) -> Any:
    """Ratio of neighbouring masses, 16.16 fixed point, at which a change of one is worth its price:
    1 + 2^-12 .. 1 + 2^10, sixteen steps an octave."""
    return TOTAL + ((16 + code % 16) << (code // 16))


@kernel
def scale_of(index: Any) -> Any:
    """s in 1/1024 units."""
    return _EIGHTHS[index % 8] << (index // 8)


@kernel
def half_width(index: Any) -> Any:
    """Errors up to this size take part."""
    return min(REACH, 3 + ((6 * scale_of(index)) >> 10))


@dividing
def _quotient(number: Any, divisor: Any) -> Any:
    """number // divisor of int64 >= 0, the quotient below 2^51. The float's is at most one off; of a number below 2^53
    its floor is exact, as its distance from the next whole number, 1 / divisor or more, is more than what it is
    rounded by. IEEE 754 makes that so on every machine; it vectorises where a division of integers does not."""
    guess = np.int64(np.float64(number) / np.float64(divisor))
    rest = number - guess * divisor
    return guess + (1 if rest >= divisor else 0) - (1 if rest < 0 else 0)


@dividing
def source(index: Any, shape: Any, bias: Any, phase: Any, out: Any) -> Any:
    """Fill `out`[0 .. 2 K + 1] with the cumulative frequencies of errors -K..K; `phase` quarters lie between the
    whole part of the prediction and its real value, `bias` - BIASES / 2 parts of s / BIASES between that and the
    law's centre. Every error has at least frequency 1."""
    reach, scale, exponent = half_width(index), scale_of(index), _EXPONENTS[shape]
    count = 2 * reach + 1
    masses = np.zeros(count, np.int64)
    spread = scale * scale * exponent
    centre = 4 * phase + (((bias - BIASES // 2) * scale) >> 11)
    for part in range(8):
        for n in range(count):
            way = np.int64(16 * (n - reach) - centre + 2 * part - 7)
            weight = 65536.0 + _quotient((way * way) << 28, spread)
            density = 4294967296.0
            for _ in range(exponent):
                density = np.floor(density * 65536.0 / weight)
            masses[n] += np.int64(density)
    total = masses.sum()
    given, mode = np.int64(0), 0
    for n in range(count):
        masses[n] = 1 + _quotient(masses[n] * (TOTAL - count), total)
        given += masses[n]
        if masses[n] > masses[mode]:
            mode = n
    masses[mode] += TOTAL - given
    out[0] = 0
    for n in range(count):
        out[n + 1] = out[n] + masses[n]


@dividing
def _wanted(a: Any, b: Any, p: Any, k: Any, step: Any, ratio: Any, max_change: Any) -> Any:
    """Mass that should cross from the value with `a` (at k, going by `step`) to the one with `b`."""
    crossed, price, square = np.int64(0), np.int64(ratio), (ratio * ratio) >> 16
    for j in range(max_change):
        number, divisor = (a << 16) - price * b, 65536 + price
        if number < (crossed + 1) * divisor:
            return crossed
        at = k - j * step
        if at < 0 or at >= p.size:
            return crossed
        if number < (crossed + p[at] + 1) * divisor:
            return np.int64(np.float64(number) / np.float64(divisor))  # exact, see _quotient
        crossed += p[at]
        price = min((price * square) >> 16, np.int64(1) << 31)
        square = min(square, np.int64(1) << 31)
    return crossed


@kernel
def _root(number: Any) -> Any:
    """Whole square root, rounded down."""
    root = number
    better = (root + 1) // 2
    while better < root:
        root = better
        better = (root + number // root) // 2
    return root


@kernel
def _stretched(cumulative: Any, count: Any, centre: Any, scale: Any, ratio: Any, flow: Any, q: Any) -> Any:
    """Begin with the best output of a normal law, which is as much wider as its own width and the price say: for wide
    laws, where mass would take too many sweeps to get there."""
    variance = (scale * scale) >> 5  # half the square of the scale, in 2^-16
    width = _root(variance)
    wider = (width + _root(variance + (np.int64(2) << 32) // (ratio - TOTAL))) // 2
    if wider <= width:
        return
    before = np.int64(0)
    for n in range(1, count + 1):
        at = min(max((centre << 16) + 32768 + ((((n - centre) << 17) - 65536) * width // (2 * wider)), 0), count << 16)
        whole, part = at >> 16, at & 65535
        here = np.int64(cumulative[whole]) << _GUARD
        if part:
            here += ((np.int64(cumulative[whole + 1] - cumulative[whole]) << _GUARD) * part) >> 16
        if n == count:
            here = np.int64(TOTAL) << _GUARD
        else:
            flow[n - 1] = (np.int64(cumulative[n]) << _GUARD) - here
        q[n - 1] = here - before
        before = here


@kernel
def output(cumulative: Any, count: Any, centre: Any, scale: Any, ratio: Any, max_change: Any, out: Any) -> Any:
    """Fill `out` with the cumulative frequencies of the best output; True where any mass moved. centre: index of
    error 0. scale: the law's, in 1/1024."""
    p = np.empty(count, np.int64)
    for n in range(count):
        p[n] = (cumulative[n + 1] - cumulative[n]) << _GUARD
    q, flow = p.copy(), np.zeros(count, np.int64)
    ratio = min(np.int64(ratio), np.int64(1) << 31)
    if scale >= _WIDE:
        _stretched(cumulative, count, centre, scale, ratio, flow, q)
    stale = np.ones(count + 1, np.bool_)  # edges (at k + 1) beside which mass moved since they were looked at
    for sweep in range(_SWEEPS):
        moved = np.int64(0)
        for n in range(count - 1):
            k = n if sweep % 2 == 0 else count - 2 - n
            if not stale[k + 1]:
                continue
            a, b = q[k] + flow[k], q[k + 1] - flow[k]
            if a >= b:
                w = _wanted(a, b, p, k, 1, ratio, max_change)
            else:
                w = -_wanted(b, a, p, k + 1, -1, ratio, max_change)
            stale[k + 1] = False
            if w != flow[k]:
                stale[k], stale[k + 2] = True, True
                moved += abs(w - flow[k])
                flow[k], q[k], q[k + 1] = w, a - w, b + w
        if moved < 1 << (_GUARD + 4):
            break
    return _rounded(cumulative, count, flow, max_change, out)


@kernel
def _rounded(cumulative: Any, count: Any, flow: Any, max_change: Any, out: Any) -> Any:
    """Cumulative output in whole frequencies, held where no value moves further than `max_change`."""
    changed = False
    out[0], out[count] = 0, TOTAL
    for n in range(1, count):
        at = cumulative[n] - ((flow[n - 1] + (1 << (_GUARD - 1))) >> _GUARD)
        at = max(at, cumulative[max(0, n - max_change)], out[n - 1])
        out[n] = min(at, cumulative[min(count, n + max_change)])
        changed |= out[n] != cumulative[n]
    return changed


@dividing
def cut_source(whole: Any, count: Any, start: Any, clips: Any, out: Any) -> Any:
    """`out` as `whole` when errors before index `start` cannot be: their mass belongs to the first that can (`clips`),
    to nobody, and the rest is stretched to the full sum."""
    before = 0 if clips else whole[start]
    for n in range(start + 1):
        out[n] = 0
    for n in range(start + 1, count + 1):
        out[n] = _quotient(np.int64(whole[n] - before) << PRECISION, TOTAL - before)


@kernel
def solve(law: Any, phase: Any, cut: Any, ratio: Any, max_change: Any, source_out: Any, output_out: Any) -> Any:
    """Source and output tables of a law (scale, shape, bias) with its window cut as `cut_of` says; True where any
    mass moves."""
    count, scale = 2 * half_width(law[0]) + 1, scale_of(law[0])
    source(law[0], law[1], law[2], phase, source_out)
    if cut == 0:
        return output(source_out, count, half_width(law[0]), scale, ratio, max_change, output_out)
    start = half_width(law[0]) - EDGES[(cut - 1) % EDGES.size]
    whole = source_out.copy()
    cut_source(whole, count, start, cut > EDGES.size, source_out)
    for n in range(start):
        output_out[n] = 0
    return output(
        source_out[start:], count - start, half_width(law[0]) - start, scale, ratio, max_change, output_out[start:]
    )


@kernel
def cut_of(distance: Any, reach: Any, clips: Any) -> Any:
    """(kind of cut, lowest error) for a sample whose prediction lies `distance` above its segment's start.

    Kinds: 0 no cut, else 1 + place in the list of edges, for a clipping end past those of a barred one.
    """
    if distance >= reach:
        return 0, -reach
    place = EDGES.size - 1
    while EDGES[place] > distance:
        place -= 1
    return 1 + place + (EDGES.size if clips else 0), -EDGES[place]


@dataclass(frozen=True, slots=True)
class Tables:
    """Tables of a list of classes, made when first asked for (by a kernel, see `look_up`).

    classes int64 (n, 3): scale, shape, bias. widths int64 (n,): half window, 0 where no value of a class ever changes.
    ready bool, sources, outputs int32: by class, phase and cut.
    """

    classes: NDArray[np.int64]
    ratio: int
    max_change: int
    widths: NDArray[np.int64]
    ready: NDArray[np.bool_]
    sources: NDArray[np.int32]
    outputs: NDArray[np.int32]

    @staticmethod
    def of(classes: NDArray[np.int64], price: int, max_change: int) -> Tables:
        shape = (classes.shape[0], PHASES, CUTS)
        blank = Tables(
            classes, int(price_ratio(price)), max_change, np.zeros(shape[0], np.int64), np.zeros(shape, np.bool_),
            np.empty((*shape, WIDTH), np.int32), np.empty((*shape, WIDTH), np.int32),
        )  # fmt: skip
        _whole(classes, blank.ratio, max_change, blank.widths, blank.ready, blank.sources, blank.outputs)
        return blank

    def parts(self) -> tuple[Any, ...]:
        """What a kernel takes."""
        return self.classes, self.ratio, self.max_change, self.widths, self.ready, self.sources, self.outputs


@kernel
def _whole(classes: Any, ratio: Any, max_change: Any, widths: Any, ready: Any, sources: Any, outputs: Any) -> Any:
    for n in range(classes.shape[0]):
        for phase in range(PHASES if classes[n, 0] < FINE_SCALES else 1):
            ready[n, phase, 0] = True
            if solve(classes[n], phase, 0, ratio, max_change, sources[n, phase, 0], outputs[n, phase, 0]):
                widths[n] = half_width(classes[n, 0])


@kernel
def look_up(
    n: Any, phase: Any, cut: Any, classes: Any, ratio: Any, max_change: Any, ready: Any, sources: Any, outputs: Any
) -> Any:
    """Where the tables of class n begin in `sources` and in `outputs` as flat arrays, made now where they are not."""
    if not ready[n, phase, cut]:
        solve(classes[n], phase, cut, ratio, max_change, sources[n, phase, cut], outputs[n, phase, cut])
        ready[n, phase, cut] = True
    return ((n * PHASES + phase) * CUTS + cut) * WIDTH
