"""What frames are coded with beyond the released weights: an adapter fitted to an image, or one to a series.

A fit takes seconds of the encoder's time, bounded by `seconds`; decoding never fits. Whatever is fitted competes by
code length, its own bytes counted, in `codec.fit_adapter` on samples and in the encoder on each frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codec.bitplane import Words
from codec.fit_adapter import fit
from codec.pixelformat import PixelFormat
from gateway.policy import Adaptation, ArchiveRule
from worker.attributes import DataSet
from worker.framechain import RUN

MODALITY, BODY_PART, MODEL = 0x00080060, 0x00180015, 0x00081090
SAMPLE = 8  # frames that an adapter of several is fitted to
FIT_SECONDS = 4.0  # of one fit, unless the caller says

Sample = tuple[Words, PixelFormat, Words | None]  # words, their format, the frame before


def prior_of(header: DataSet) -> tuple[str, str, str]:
    """The anatomical prior: Modality, BodyPartExamined, Manufacturer's Model Name, '' unknown."""
    return header.ascii(MODALITY), header.ascii(BODY_PART), header.ascii(MODEL)


@dataclass(frozen=True)
class Fitting:
    """What to fit, for an image or for frames that are coded together. seconds: of one fit; prior: see `prior_of`."""

    adapt: Adaptation
    profile: str
    seconds: float
    prior: tuple[str, str, str]
    threads: int = 1

    @classmethod
    def of(cls, rule: ArchiveRule, header: DataSet, *, seconds: float = FIT_SECONDS, threads: int = 1) -> Fitting:
        """As the rule says; without a word of it nothing is fitted."""
        return cls(rule.adapt or "none", rule.profile or "default", seconds, prior_of(header), threads)

    def image(self, words: Words, fmt: PixelFormat, previous: Words | None) -> tuple[bytes, ...]:
        """Adapters that would travel with this frame."""
        found = self._fit([(words, fmt, previous)])
        return (found,) if found else ()

    def together(self, frames: int, frame: Callable[[int], Words], fmt: PixelFormat) -> bytes | None:
        """An adapter for all frames of a chain, from a sample of them; None if none is estimated to pay."""
        if self.adapt == "none":
            return None
        places = sample_of(frames)
        return self._fit([(frame(at), fmt, frame(at - 1) if at % RUN else None) for at in places]) or None

    def _fit(self, samples: Sequence[Sample]) -> bytes:
        if self.adapt == "none" or not samples:
            return b""
        return fit(samples, profile=self.profile, prior=self.prior, seconds=self.seconds, threads=self.threads)


def sample_of(frames: int) -> list[int]:
    """Places of SAMPLE frames at most, evenly spread, none of which is coded without the one before if any is."""
    places = {(2 * at + 1) * frames // (2 * SAMPLE) for at in range(SAMPLE)}
    return sorted(at for at in places if at % RUN) or [0]
