"""What the admin page's plots show, from rows to numbers. Pure functions; times are seconds since the epoch, UTC."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

from gateway.index_tally import DiskSample, Done, FlowRow

__all__ = ["Forecast", "HalfHour", "ModalityFigures", "by_half_hour", "by_modality", "forecast"]

HALF_HOUR: Final = 1800
MODALITIES_SHOWN: Final = 12
#: A trend needs samples over half an hour; more than these points add nothing to it.
TREND_SECONDS: Final = 1800.0
TREND_POINTS: Final = 48


@dataclass(frozen=True, slots=True)
class HalfHour:
    """What happened from `at` on. Bytes: of what was archived."""

    at: int
    received: int = 0
    archived: int = 0
    sent: int = 0
    bytes_in: int = 0
    bytes_archived: int = 0

    @property
    def clock(self) -> str:
        """Hours and minutes, UTC."""
        return time.strftime("%H:%M", time.gmtime(self.at))


@dataclass(frozen=True, slots=True)
class ModalityFigures:
    """instances, bytes: of all that was archived; the others of the newest ones, `sample` in number: ratio of the whole
    objects, seconds from receipt to archive (first tenth, middle, 95 of 100).
    """

    name: str
    instances: int
    bytes_in: int
    bytes_archived: int
    sample: int
    ratio: float
    seconds: tuple[float, float, float]

    @property
    def slowest(self) -> float:
        """Seconds within which 95 of 100 were archived."""
        return self.seconds[2]


@dataclass(frozen=True, slots=True)
class Forecast:
    """A file system. rate: bytes a second that it fills by (less than 0: it empties), None: not known yet; full_in:
    seconds until the watermark at this rate, None: never, or not known; history: (time, bytes used), oldest first.
    """

    place: str
    total: int
    free: int
    watermark: int
    rate: float | None
    full_in: float | None
    history: tuple[tuple[int, int], ...]


def by_half_hour(rows: Sequence[FlowRow], now: float, hours: int = 24) -> list[HalfHour]:
    """The last `hours`, oldest first, the present half hour last; those in which nothing happened too."""
    last = int(now // HALF_HOUR) * HALF_HOUR
    sums: dict[int, list[int]] = defaultdict(lambda: [0] * 5)
    for row in rows:
        numbers = (row.received, row.archived, row.sent, row.bytes_in, row.bytes_archived)
        into = sums[row.bucket // HALF_HOUR * HALF_HOUR]
        for place, number in enumerate(numbers):
            into[place] += number
    return [HalfHour(at, *sums[at]) for at in range(last - (2 * hours - 1) * HALF_HOUR, last + 1, HALF_HOUR)]


def by_modality(totals: Mapping[str, Mapping[str, int]], newest: Sequence[Done]) -> list[ModalityFigures]:
    """Most instances first; beyond MODALITIES_SHOWN under 'other': what a sender calls a modality is not bounded."""
    order = sorted(totals, key=lambda name: -totals[name]["instances"])
    shown = set(order[: MODALITIES_SHOWN - 1] if len(order) > MODALITIES_SHOWN else order)
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, values in totals.items():
        into = sums[name if name in shown else "other"]
        for place, key in enumerate(("instances", "bytes_in", "bytes_archived")):
            into[place] += values[key]
    samples: dict[str, list[Done]] = defaultdict(list)
    for each in newest:
        samples[each.modality if each.modality in shown else "other"].append(each)
    made = [_figures(name, sums[name], samples[name]) for name in sums]
    return sorted(made, key=lambda each: (each.name == "other", -each.instances))


def _figures(name: str, sums: Sequence[int], sample: Sequence[Done]) -> ModalityFigures:
    archived = sum(each.archived_size for each in sample)
    ratio = sum(each.size for each in sample) / archived if archived else 0.0
    seconds = sorted(each.seconds for each in sample)
    quantiles = tuple(_quantile(seconds, part) for part in (0.1, 0.5, 0.95))
    return ModalityFigures(name, sums[0], sums[1], sums[2], len(sample), ratio, quantiles)  # type: ignore[arg-type]


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def forecast(place: str, total: int, free: int, watermark: int, samples: Sequence[DiskSample]) -> Forecast:
    """Theil-Sen slope (Sen 1968, JASA 63:1379) of what is used: one large deletion, or one large study, does not turn
    it. samples: of this place, oldest first.
    """
    history = tuple((each.bucket, each.total - each.free) for each in samples)
    thin = history[:: -(-len(history) // TREND_POINTS) or 1]
    rate = None
    if thin and history[-1][0] - thin[0][0] >= TREND_SECONDS:
        rate = median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(thin, 2))
    full_in = max(0.0, free - watermark) / rate if rate is not None and rate > 0 else None
    return Forecast(place, total, free, watermark, rate, full_in, history)
