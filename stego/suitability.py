"""Which samples of a frame the hidden carrier may change, and whether the frame is fit to hide anything at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stego.costs import noise_variance
from stego.cover import Cover
from stego.lattice import reserved

#: least median noise, in grey units (standard deviation)
MIN_SIGMA = 2.0
#: least share of samples that may change
MIN_USABLE = 0.1
#: smaller frames carry no useful capsule at a hidden rate
MIN_SAMPLES = 64 * 64
#: a used value whose histogram neighbourhood holds this many samples each should not be empty
_EXPECTED = 8.0
_HOLES = 0.02
_HISTOGRAM_RADIUS = 16


@dataclass(frozen=True, slots=True)
class Suitability:
    """reason: 'suited', or why not: 'small', 'flat' (air, padding, clipping), 'smooth' (noise below MIN_SIGMA),
    'comb' (a histogram with regular gaps, as after rescaling: a change by one would show).

    sigma: median local noise of the usable samples, grey units. usable: their share of the frame, 0..1.
    """

    suited: bool
    reason: str
    sigma: float
    usable: float


def usable(cover: Cover, region: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """True where a sample may become value + 1 and value - 1: bool, the frame's shape.

    Left out: the reserved lattice, Cover.wet, everything outside `region`, barred values and their neighbours, both
    ends of the legal range, the frame's own least and greatest value (clipping), and constant surroundings (air).
    """
    values = cover.values
    if region is not None and (region.shape != values.shape or region.dtype != np.bool_):
        raise ValueError("region is a bool array of the frame's shape")
    least, greatest = max(cover.low, int(values.min())), min(cover.high, int(values.max()))
    dry = (values > least) & (values < greatest) & ~reserved(values.shape) & ~_constant(values)
    for value in cover.barred:
        dry &= (values < value - 1) | (values > value + 1)
    if cover.wet is not None:
        dry &= ~cover.wet
    return np.asarray(dry if region is None else dry & region)


def suitability(cover: Cover) -> Suitability:
    """Whether the frame can hide a payload at a low rate; see `Suitability` for the reasons."""
    dry = usable(cover)
    share = float(np.count_nonzero(dry)) / dry.size
    sigma = float(np.sqrt(np.median(noise_variance(cover.values, dry | reserved(dry.shape))[dry]))) if share else 0.0
    if dry.size < MIN_SAMPLES:
        reason = "small"
    elif share < MIN_USABLE:
        reason = "flat"
    elif sigma < MIN_SIGMA:
        reason = "smooth"
    elif holes(cover.values[dry]) > _HOLES:
        reason = "comb"
    else:
        reason = "suited"
    return Suitability(reason == "suited", reason, sigma, share)


def holes(samples: NDArray[np.int32]) -> float:
    """Share of histogram bins that are empty though their neighbours are well filled, 0..1."""
    low = int(samples.min())
    counts = np.bincount(samples.astype(np.int64) - low).astype(np.float64)
    width = 2 * _HISTOGRAM_RADIUS + 1
    if counts.size < width:
        return 0.0
    sums = np.concatenate(([0.0], np.cumsum(counts)))
    around = (sums[width:] - sums[:-width]) / width
    inner = counts[_HISTOGRAM_RADIUS : counts.size - _HISTOGRAM_RADIUS]
    filled = around >= _EXPECTED
    return float(np.count_nonzero(filled & (inner == 0))) / max(1, int(np.count_nonzero(filled)))


def _constant(values: NDArray[np.int32]) -> NDArray[np.bool_]:
    """True where a sample equals all of its (up to eight) neighbours."""
    right = values[:, 1:] == values[:, :-1]
    rows = np.ones(values.shape, dtype=np.bool_)
    rows[:, 1:] &= right
    rows[:, :-1] &= right
    below = values[1:] == values[:-1]
    same = rows.copy()
    same[1:] &= below & rows[:-1]
    same[:-1] &= below & rows[1:]
    return same
