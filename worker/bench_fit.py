"""Adapters of the bench's frames: of one file or of a series, as the archive makes them (worker.adapting)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from codec.bitplane import Words
from codec.errors import CodecError
from codec.fit_adapter import NOTHING, fit
from codec.pixelformat import PixelFormat
from gateway.errors import PalimpsestError
from worker.adapting import Prior, sample
from worker.bench_inputs import Choice, Input, open_input


@dataclass(frozen=True)
class Fitted:
    """What one group of frames is coded with beyond the released weights, and the seconds that its fit took.

    inline: adapters that ride in a blob (of a single frame); shared: one that stands beside several. cut: whether the
    clock ended the fit, so that another run may give other bytes.
    """

    inline: tuple[bytes, ...] = ()
    shared: bytes | None = None
    seconds: float = 0.0
    cut: bool = False


def fit_group(
    members: Sequence[Input], choice: Choice, profile: str, seconds: float, *, threads: int = 1, chained: bool = True
) -> Fitted:
    """One adapter for the frames of some files, fitted to some of them. `chained`: frames may use the one before."""
    started = time.perf_counter()
    places = list[tuple[Input, int]]()
    prior: Prior = ("", "", "")
    for each in members:
        try:
            with open_input(each, choice) as opened:
                prior = opened.prior
                places += [(each, index) for index in choice.frames(opened.frames)]
        except (PalimpsestError, CodecError):
            continue  # it is skipped, with its reason, when its turn comes

    def frame(place: int) -> tuple[Words, PixelFormat]:
        each, index = places[place]
        with open_input(each, choice) as opened:
            return opened.frame(index), opened.fmt

    try:
        frames = sample(len(places), frame, chained=chained)
    except (PalimpsestError, CodecError):  # a file that breaks off inside
        frames = []
    result = NOTHING
    if frames:
        result = fit(frames, profile=profile, prior=prior, seconds=seconds, threads=threads, stands_for=len(places))
    found, alone = result.adapter or None, len(places) == 1
    spent = time.perf_counter() - started
    return Fitted((found,) if found and alone else (), None if alone else found, spent, result.cut)
