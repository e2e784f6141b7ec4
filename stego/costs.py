"""What a change of +-1 costs: HILL and a MiPOD-like noise model for 16-bit frames. Encoder side only.

A receiver never recomputes any of this, so floating point is allowed. Both models end as the same thing: `rho`, the
log odds of one of the two changes, with probability beta = 1 / (2 + exp(rho)) for +1 and as much for -1, scaled so
that the ternary entropy of the whole frame is the payload (Filler, Fridrich 2010).

HILL: Li, Wang, Huang, Li, ICIP 2014. MiPOD: Sedighi, Cogranne, Fridrich, IEEE TIFS 2016; beta I = ln(1/beta - 2) / 2
lambda with the Fisher information I = 2 / sigma^4. The local variance here is not a trigonometric fit but the least
of four directional ones, eroded: an edge is busy across and quiet along, so it counts as quiet.
"""

from __future__ import annotations

import math
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray

from stego.lattice import reserved

Costs = Literal["mipod", "hill"]
Plane = NDArray[np.float32]

#: variance that even a constant sample is taken to have, squared grey units (rounding to integers: 1/12)
_FLOOR = 1 / 12
#: how far structure is kept at a distance, samples
_REACH = 4
#: share of a window's differences that must lie between live samples
_LEAST_LIVE = 0.2
_BINS = 1024
_BISECTIONS = 32


def rho_map(values: NDArray[np.int32], dry: NDArray[np.bool_], bits: float, model: Costs) -> Plane:
    """Log odds `rho` (float32, the frame's shape) at which the `dry` samples carry `bits` bits.

    Raises ValueError for an unknown model, or when `bits` is not below log2(3) bits per dry sample.
    """
    if model == "mipod":
        weight = fisher_information(values, dry | reserved(dry.shape))
    elif model == "hill":
        weight = hill(values)
    else:
        raise ValueError("costs is 'mipod' or 'hill'")
    if not 0 < bits < 1.5 * np.count_nonzero(dry):
        raise ValueError("more bits than the dry samples carry")
    centres, counts, index = _binned(weight[dry])
    scale = _solve(centres, counts, bits, model)
    out = np.full(values.shape, np.float32(np.inf), dtype=np.float32)
    out[dry] = _rho(centres, scale, model).astype(np.float32)[index]
    return out


def _binned(weights: Plane) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Bin centres on a logarithmic axis, samples per bin, and every sample's bin."""
    logs = np.log(weights)
    low, high = float(logs.min()), float(logs.max())
    step = max((high - low) / _BINS, 1e-6)
    index = np.minimum((logs - np.float32(low)) / np.float32(step), _BINS - 1).astype(np.int64)
    return np.exp(low + (np.arange(_BINS) + 0.5) * step), np.bincount(index, minlength=_BINS), index


def _solve(centres: NDArray[np.float64], counts: NDArray[np.int64], bits: float, model: Costs) -> float:
    """The scale at which the bins' ternary entropies add up to `bits`."""
    low, high = -80.0, 80.0  # logarithms; entropy falls with the scale
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if float(counts @ ternary_entropy(_rho(centres, np.exp(middle), model))) > bits:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def _rho(weights: NDArray[np.float64], scale: float, model: Costs) -> NDArray[np.float64]:
    """HILL: rho = scale * cost. MiPOD: rho (2 + e^rho) = scale * I, solved by Newton steps on its logarithm."""
    if model == "hill":
        return weights * scale
    goal = np.log(weights * scale)
    rho = np.where(goal > 2, np.maximum(goal - np.log(np.maximum(goal, 1)), 0.1), np.exp(goal) / 3)
    for _ in range(12):
        grown = np.exp(np.minimum(rho, 600))
        slope = 1 / rho + grown / (2 + grown)
        rho = np.maximum(rho - (np.log(rho) + np.log(2 + grown) - goal) / slope, rho / 8)
    return np.asarray(rho)


def ternary_entropy(rho: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits that a sample carries: entropy of (beta, beta, 1 - 2 beta)."""
    capped = np.minimum(rho, 700.0)
    total = np.exp(-capped) * 2 + 1  # 1 / (1 - 2 beta)
    return np.asarray((np.log(total) + 2 * capped * np.exp(-capped) / total) / np.log(2))


def fisher_information(values: NDArray[np.int32], live: NDArray[np.bool_]) -> Plane:
    """2 / sigma^4 averaged over 7 x 7 samples, float32, with the least variance within _REACH samples.

    The erosion keeps changes away from structure: what is noisy only because an edge is near counts as its quiet side.
    """
    variance = _least_around(noise_variance(values, live), _REACH)
    return box_mean(np.float32(2) / (variance * variance), 3)


def noise_variance(values: NDArray[np.int32], live: NDArray[np.bool_]) -> Plane:
    """Local noise variance, squared grey units, float32: the least of four directional estimates over 7 x 7 samples.

    Each is from the mean magnitude of second differences along a line, which are sqrt(6) sigma wide for white noise;
    a magnitude, not a square, because outliers are structure. Only differences between `live` samples count: the step
    from padding into the image is no noise. Where too few are live the variance is the least there is.
    """
    words = np.ascontiguousarray(values)
    alive = np.ascontiguousarray(live)
    least = np.full(values.shape, np.float32(np.inf), dtype=np.float32)
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        size, counted = _second_differences(words, alive, down, across)
        share = box_mean(counted, 3)
        mean = box_mean(size, 3) / np.maximum(share, np.float32(_LEAST_LIVE))
        np.minimum(least, np.where(share > _LEAST_LIVE, mean, np.float32(0)), out=least)
    # E|d| = sqrt(6) sigma sqrt(2 / pi)
    return np.asarray(least * least * np.float32(math.pi / 12) + np.float32(_FLOOR), dtype=np.float32)


def hill(values: NDArray[np.int32]) -> Plane:
    """HILL's cost map, float32, positive: 3 x 3 high pass, 3 x 3 mean, reciprocal, 15 x 15 mean."""
    residual = box_mean(_high_pass(np.ascontiguousarray(values)), 1)
    return box_mean(np.float32(1) / (residual + np.float32(_FLOOR)), 7)


def box_mean(plane: Plane, radius: int) -> Plane:
    """Mean over (2 radius + 1)^2 samples; at the borders over those that exist."""
    return np.asarray(_box_mean(np.ascontiguousarray(plane, dtype=np.float32), radius))


@numba.njit(nogil=True, cache=True)
def _box_mean(plane: Plane, radius: int) -> Plane:
    rows, columns = plane.shape
    out = np.empty((rows, columns), dtype=np.float32)
    sums = np.zeros(columns, dtype=np.float64)
    for r in range(min(radius, rows)):
        for c in range(columns):
            sums[c] += plane[r, c]
    for r in range(rows):
        if r + radius < rows:
            for c in range(columns):
                sums[c] += plane[r + radius, c]
        if r - radius - 1 >= 0:
            for c in range(columns):
                sums[c] -= plane[r - radius - 1, c]
        high = min(r + radius, rows - 1) - max(r - radius, 0) + 1
        total = 0.0
        for c in range(min(radius, columns)):
            total += sums[c]
        for c in range(columns):
            if c + radius < columns:
                total += sums[c + radius]
            if c - radius - 1 >= 0:
                total -= sums[c - radius - 1]
            wide = min(c + radius, columns - 1) - max(c - radius, 0) + 1
            out[r, c] = np.float32(max(total, 0.0) / (high * wide))
    return out


@numba.njit(nogil=True, cache=True)
def _second_differences(
    values: NDArray[np.int32], live: NDArray[np.bool_], down: int, across: int
) -> tuple[Plane, Plane]:
    """Magnitudes of x[before] + x[after] - 2 x along one line, and 1 where all three are live; 0, 0 elsewhere."""
    rows, columns = values.shape
    size = np.zeros((rows, columns), dtype=np.float32)
    counted = np.zeros((rows, columns), dtype=np.float32)
    margin = abs(across)
    for r in range(down, rows - down):
        for c in range(margin, columns - margin):
            if live[r, c] and live[r - down, c - across] and live[r + down, c + across]:
                ends = np.int64(values[r - down, c - across]) + values[r + down, c + across]
                size[r, c] = np.float32(abs(ends - 2 * np.int64(values[r, c])))
                counted[r, c] = np.float32(1)
    return size, counted


def _least_around(plane: Plane, radius: int) -> Plane:
    """Minimum over (2 radius + 1)^2 samples, or those of them that exist."""
    for _ in range(2):
        least = plane.copy()
        for shift in range(1, min(radius, plane.shape[0] - 1) + 1):
            np.minimum(least[shift:], plane[:-shift], out=least[shift:])
            np.minimum(least[:-shift], plane[shift:], out=least[:-shift])
        plane = least.T
    return np.ascontiguousarray(plane)


@numba.njit(nogil=True, cache=True)
def _high_pass(values: NDArray[np.int32]) -> Plane:
    """Magnitude of the Ker-Boehme kernel's response, divided by 4: float32; borders mirror."""
    rows, columns = values.shape
    out = np.empty((rows, columns), dtype=np.float32)
    for r in range(rows):
        above = r - 1 if r else min(1, rows - 1)
        below = r + 1 if r + 1 < rows else max(rows - 2, 0)
        for c in range(columns):
            left = c - 1 if c else min(1, columns - 1)
            right = c + 1 if c + 1 < columns else max(columns - 2, 0)
            edges = np.int64(values[above, c]) + values[below, c] + values[r, left] + values[r, right]
            corners = np.int64(values[above, left]) + values[above, right] + values[below, left] + values[below, right]
            out[r, c] = np.float32(abs(2 * edges - corners - 4 * np.int64(values[r, c]))) / np.float32(4)
    return out
