"""What the bench's frames are coded with beyond the released weights: adapters fitted to an image or to a series."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from codec.bitplane import Words
from codec.errors import CodecError
from codec.fit_adapter import Frame, fit
from codec.pixelformat import PixelFormat
from gateway.errors import PalimpsestError
from worker.bench_inputs import Choice, Input, open_input
from worker.framechain import RUN

SERIES_SAMPLE = 12  # frames that a series' adapter is fitted to


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
        found = fit(
            [(words, fmt, previous)], profile=self.profile, prior=self.prior, seconds=self.limit, threads=self.threads
        )
        return ((found,) if found else ()), time.perf_counter() - started


def fit_series(members: Sequence[Input], choice: Choice, fitted: Fitted, *, chained: bool) -> Fitted:
    """One adapter for the frames of a series, fitted to some that are spread over it.

    `chained`: frames are coded with the one before, so the samples have theirs (where there are two frames at least).
    """
    started = time.perf_counter()
    frames, prior = _sample(members, choice, chained=chained)
    adapter = b""
    if frames:
        adapter = fit(frames, profile=fitted.profile, prior=prior, seconds=fitted.limit, threads=fitted.threads)
    return Fitted(
        False, fitted.profile, prior, fitted.limit, fitted.threads, adapter or None, time.perf_counter() - started
    )


def _sample(members: Sequence[Input], choice: Choice, *, chained: bool) -> tuple[list[Frame], tuple[str, str, str]]:
    """Frames spread over a series, each with the one before if they are coded so; and the anatomical prior."""
    places, prior = list[tuple[int, int]](), ("", "", "")
    for number, each in enumerate(members):
        try:
            with open_input(each, choice) as opened:
                prior = opened.prior
                places += [(number, index) for index in choice.frames(opened.frames)]
        except (PalimpsestError, CodecError):
            continue  # it is skipped, with its reason, when its turn comes
    followers = [place for place in range(len(places)) if place % RUN] if chained else []
    usable = followers or list(range(len(places)))
    step = max(1, len(usable) // SERIES_SAMPLE)
    frames: list[Frame] = []
    for place in usable[step // 2 :: step][:SERIES_SAMPLE]:
        words, fmt = _frame(members, places[place], choice)
        before = _frame(members, places[place - 1], choice) if followers else None
        frames.append((words, fmt, before[0] if before is not None and before[1] == fmt else None))
    return frames, prior


def _frame(members: Sequence[Input], place: tuple[int, int], choice: Choice) -> tuple[Words, PixelFormat]:
    with open_input(members[place[0]], choice) as opened:
        return opened.frame(place[1]), opened.fmt
