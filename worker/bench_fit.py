"""What the bench's frames are coded with beyond the released weights: adapters fitted to an image or to a series."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from codec.bitplane import Words
from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported

SERIES_SAMPLE = 8  # frames that a series' adapter is fitted to
Sample = tuple[Words, PixelFormat, Words | None]  # words, their format, and the frame before


@dataclass(frozen=True)
class Fitted:
    """Adapters of one group of files. each: one is fitted to every frame, by `profile`, anatomical prior and `limit`
    (seconds). shared: one of all its frames; seconds: that its fit took.
    """

    each: bool = False
    profile: str = "default"
    prior: tuple[str, str, str] = ("", "", "")
    limit: float = 4.0
    threads: int = 1
    shared: bytes | None = None
    seconds: float = 0.0

    def inline(self, words: Words, fmt: PixelFormat, previous: Words | None) -> tuple[Sequence[bytes], float]:
        """Adapters that compete for one frame, and the seconds that they took."""
        if not self.each:
            return (), 0.0
        started = time.perf_counter()
        found = fit([(words, fmt, previous)], self.profile, self.prior, self.limit, self.threads)
        return ((found,) if found else ()), time.perf_counter() - started


def fit(samples: Sequence[Sample], profile: str, prior: tuple[str, str, str], seconds: float, threads: int) -> bytes:
    """One adapter for these frames, b'' when none pays. Raises Unsupported where nothing can be fitted."""
    raise Unsupported("no-fit", "this release has no adapters: use --adapt none")
