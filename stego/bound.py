"""The least distortion at which a reversible embedding of a given rate is possible, under a model of the image.

For an independent source X with known distribution and squared error, the largest rate at distortion D is max H(Y) -
H(X) over Y within distance D (Kalker, Willems, "Capacity bounds and constructions for reversible data-hiding", DSP
2002; Zhang, Chen, Yu, IEEE TIP 21(6) 2991, 2012). The best coupling of X and Y is monotone, its cost a sum over the
edges between neighbouring values k, k+1 of a convex function of the mass that crosses the edge: the j-th unit of way
costs 2 j + 1. So H(Y) - l D is maximised edge by edge; at the optimum q(k) / q(k+1) = exp(l (2 j + 1)) where mass
flows.

`bound` models the image as its rhombus prediction errors, independent within eight classes of activity. A better model
has a lower bound; figures that beat this one do so by a better predictor or by finer classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego.carriers import kernel

CONTEXTS = 8
REACH = 512  # errors beyond this are left alone
_BEYOND = 32  # values past the histogram's ends that the output may reach
_SWEEPS = 400
_TOLERANCE = 1e-7


@dataclass(frozen=True, slots=True)
class Point:
    """rate: bits per sample. mse: squared units per sample. steepness: the Lagrangian l, in nats per squared unit."""

    rate: float
    mse: float
    steepness: float


def bound(
    values: NDArray[np.int32], rate: float, max_change: int = REACH, mask: NDArray[np.bool_] | None = None
) -> float:
    """Least MSE at `rate` bits per sample of the whole frame; infinite where the model has no such rate.

    mask: bool, True where a sample may change at all. Constant air, where a change would be cheapest, has to be left
    out for a figure that means anything for medical images.
    """
    return at_rate(rhombus_histograms(values, mask), values.size, rate, max_change).mse


def at_rate(histograms: NDArray[np.float64], samples: int, rate: float, max_change: int = REACH) -> Point:
    """The point of the rate-distortion curve of `histograms` (classes, symbols; counts) at `rate`, by bisection."""
    steep, flat = 8.0, 1e-5
    if curve(histograms, samples, flat, max_change).rate < rate:
        return Point(rate, float("inf"), 0.0)
    point = Point(0.0, 0.0, steep)
    for _ in range(26):
        middle = (steep * flat) ** 0.5
        point = curve(histograms, samples, middle, max_change)
        steep, flat = (middle, flat) if point.rate < rate else (steep, middle)
        if abs(point.rate - rate) < 1e-3 * rate:
            break
    return point


def curve(histograms: NDArray[np.float64], samples: int, steepness: float, max_change: int = REACH) -> Point:
    """Rate and MSE at one value of the Lagrangian."""
    rate = cost = 0.0
    for counts in histograms:
        total = float(counts.sum())
        filled = np.flatnonzero(counts)
        if total:
            support = counts[max(0, filled[0] - _BEYOND) : filled[-1] + 1 + _BEYOND]
            gain, distortion = optimum(support / total, steepness, max_change)[1:]
            rate, cost = rate + total * gain, cost + total * distortion
    return Point(rate / samples, cost / samples, steepness)


def optimum(p: NDArray[np.float64], steepness: float, max_change: int) -> tuple[NDArray[np.float64], float, float]:
    """(q, bits gained, squared error) per sample of a source with distribution `p` (float64, sums to 1)."""
    flow = np.zeros(p.size - 1)
    q = p.copy()
    _solve(p, q, flow, steepness, max_change, _SWEEPS, _TOLERANCE)
    return q, _entropy(q) - _entropy(p), float(_distortion(p, flow))


def rhombus_histograms(values: NDArray[np.int32], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """float64 (8, 2 REACH + 1): rhombus prediction errors of inner samples in eight equally filled classes."""
    v = values.astype(np.int64)
    centre, up, down, left, right = v[1:-1, 1:-1], v[:-2, 1:-1], v[2:, 1:-1], v[1:-1, :-2], v[1:-1, 2:]
    error = (centre - ((up + down + left + right + 2) >> 2)).reshape(-1)
    activity = (abs(up - left) + abs(left - down) + abs(down - right) + abs(right - up)).reshape(-1)
    if mask is not None:
        error, activity = error[mask[1:-1, 1:-1].reshape(-1)], activity[mask[1:-1, 1:-1].reshape(-1)]
    out = np.zeros((CONTEXTS, 2 * REACH + 1))
    if not error.size:
        return out
    limits = np.sort(activity)[np.arange(1, CONTEXTS) * activity.size // CONTEXTS]
    context = np.searchsorted(limits, activity, side="right")
    inside = np.abs(error) <= REACH
    np.add.at(out, (context[inside], error[inside] + REACH), 1)
    return out


def smoothed(histograms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The histograms under a Gaussian of Silverman's width, 0.9 sigma n^(-1/5), where that is at least half a unit.

    A class of noisy samples has about as many values as samples a value; filling the accidental dents of its histogram
    then looks like capacity, which no coder has, since the receiver would have to be told of them.
    """
    out = histograms.copy()
    errors = np.arange(histograms.shape[1]) - histograms.shape[1] // 2
    for counts, row in zip(histograms, out, strict=True):
        total = counts.sum()
        if total:
            deviation = float(np.sqrt((counts * errors**2).sum() / total))
            width = 0.9 * deviation * total**-0.2
            if width >= 0.5:
                kernel_ = np.exp(-0.5 * (np.arange(-4 * int(width) - 4, 4 * int(width) + 5) / width) ** 2)
                row[:] = np.convolve(counts, kernel_ / kernel_.sum(), "same")
    return out


def _entropy(p: NDArray[np.float64]) -> float:
    filled = p[p > 0]
    return float(-(filled * np.log2(filled)).sum())


@kernel
def _best(a: Any, b: Any, p: Any, k: Any, step: Any, steepness: Any, max_change: Any) -> Any:
    """Mass that should cross from a (at k, going by `step`) to b."""
    crossed, j = 0.0, 0
    while True:
        ratio = np.exp(steepness * (2 * j + 1))
        wanted = (a - ratio * b) / (1 + ratio)
        if wanted <= crossed:
            return crossed
        at = k - j * step
        if j >= max_change or at < 0 or at >= p.size:
            return crossed
        if wanted <= crossed + p[at]:
            return wanted
        crossed += p[at]
        j += 1


@kernel
def _solve(p: Any, q: Any, flow: Any, steepness: Any, max_change: Any, sweeps: Any, tolerance: Any) -> Any:
    for sweep in range(sweeps):
        change = 0.0
        for n in range(flow.size):
            k = n if sweep % 2 == 0 else flow.size - 1 - n
            a, b = q[k] + flow[k], q[k + 1] - flow[k]
            w = (
                _best(a, b, p, k, 1, steepness, max_change)
                if a >= b
                else -_best(b, a, p, k + 1, -1, steepness, max_change)
            )
            change += abs(w - flow[k])
            flow[k], q[k], q[k + 1] = w, a - w, b + w
        if change < tolerance:
            break


@kernel
def _distortion(p: Any, flow: Any) -> Any:
    total = 0.0
    for k in range(flow.size):
        left, step, at = abs(flow[k]), 1 if flow[k] > 0 else -1, k if flow[k] > 0 else k + 1
        j = 0
        while left > 1e-15 and 0 <= at - j * step < p.size:
            part = min(left, p[at - j * step])
            total += (2 * j + 1) * part
            left -= part
            j += 1
    return total
