"""Adapters of the learned coder for an object or a series: which frames the fit sees, and where its result rides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from codec.adapter import of_scanner
from codec.bitplane import Words
from codec.fit_adapter import Frame, fit
from codec.pixelformat import PixelFormat
from codec.weights import UnknownWeights, current
from gateway.policy import ArchiveRule
from worker.attributes import DataSet
from worker.framechain import RUN, ChainCoder
from worker.pixels import PixelSource

MODALITY, BODY_PART, MODEL = 0x00080060, 0x00180015, 0x00081090
FIT_SECONDS = 4.0  # where the rule says nothing
SAMPLE_FRAMES = 12  # that a fit sees at most: each is held, with the one before it

Prior = tuple[str, str, str]


def prior_of(header: DataSet) -> Prior:
    """The anatomical prior: Modality, Body Part Examined, Manufacturer's Model Name, '' where they are missing."""
    return header.ascii(MODALITY), header.ascii(BODY_PART), header.ascii(MODEL)


def sample(count: int, frame: Callable[[int], tuple[Words, PixelFormat]], *, chained: bool = True) -> list[Frame]:
    """Frames spread over a chain of `count`; each with the one before if they are coded so (`chained`, and not one)."""
    followers = [place for place in range(count) if place % RUN] if chained else []
    usable = followers or list(range(count))
    step = max(1, len(usable) // SAMPLE_FRAMES)
    found: list[Frame] = []
    for place in usable[step // 2 :: step][:SAMPLE_FRAMES]:
        words, fmt = frame(place)
        before = frame(place - 1) if followers else None
        found.append((words, fmt, before[0] if before is not None and before[1] == fmt else None))
    return found


def fitted(
    frames: Sequence[Frame], header: DataSet, rule: ArchiveRule, threads: int, most_seconds: float = math.inf,
    stands_for: int = 0,
) -> bytes:  # fmt: skip
    """An adapter for these frames, a sample of `stands_for`, as the rule says but in `most_seconds` at most.

    b'' if none is estimated to pay.
    """
    return fit(
        frames, profile=rule.profile or "default", prior=prior_of(header),
        seconds=min(rule.fit_seconds or FIT_SECONDS, most_seconds), threads=threads, stands_for=stands_for,
    ).adapter  # fmt: skip


def known(header: DataSet, rule: ArchiveRule) -> tuple[bytes, ...]:
    """What the weights of the rule's profile hold for just the scanner that made this, to code with unfitted."""
    return known_of(prior_of(header), rule.profile or "default")


def known_of(prior: Prior, profile: str) -> tuple[bytes, ...]:
    """The same by anatomical prior."""
    try:
        return of_scanner(current(profile), prior)
    except UnknownWeights:
        return ()


def chain_coder(source: PixelSource, rule: ArchiveRule, threads: int) -> ChainCoder:
    """The coder of an object's frames as its rule says, fitted to them if it says so.

    An adapter of one frame rides in its blob, one of several beside the frames. A rule that fits to series means this
    object here: a series that is archived object by object shares nothing.
    """
    coder = ChainCoder(threads, rule.profile or "default", adapters=known(source.spans.dataset, rule))
    if rule.adapt in (None, "none"):
        return coder
    frames = sample(source.frames, lambda index: (source.frame(index), source.fmt))
    found = fitted(frames, source.spans.dataset, rule, threads, stands_for=source.frames)
    if found and source.frames == 1:
        coder.adapters = (found,)
    elif found:
        coder.shared = found
    return coder
