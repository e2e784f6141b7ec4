"""Global parts of coded frames on bits-back stacks, whose first bits are the sealed records of the same instances.

Run by run both sides are counted, the records on each, and the shorter is kept (codec.group). A run whose frames have
no global part costs nothing; behind one in which no frame promised anything the others are not tried.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from codec.errors import CodecError
from codec.group import FIXED_BYTES, stack_group
from worker import container as box
from worker.framechain import RUN, ChainCoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """A sealed record that may ride in a stack of its own frames; b'' for one that may not."""

    first: int
    frames: int
    sealed: bytes

    def touches(self, run: int) -> bool:
        """Whether one of its frames lies in that run."""
        return self.first // RUN <= run <= (self.first + self.frames - 1) // RUN


@dataclass(frozen=True)
class Share:
    """Where a record rides: number of the stack, first byte of its initial bits, and how many bytes are in it."""

    stack: int
    start: int
    size: int


def stack_frames(coder: ChainCoder, offers: Sequence[Offer]) -> dict[int, Share]:
    """Move global parts to stacks where that is shorter; the shares of the offers that got one, by place.

    Records are taken in order, each into one stack, the last perhaps in part.
    """
    shares: dict[int, Share] = {}
    for run in range(coder.runs):
        if sum(coder.uppers[coder.run(run)]) <= FIXED_BYTES:
            continue
        overhead = 0 if coder.stacks else box.SECTION_BYTES + len(box.pack_frames([b""] * coder.runs))
        waiting = [place for place, offer in enumerate(offers) if place not in shares and offer.touches(run)]
        try:
            payload = b"".join(offers[at].sealed for at in waiting)
            group = stack_group(coder.blobs[coder.run(run)], payload=payload, overhead=overhead)
        except CodecError:
            log.error("a stack of global parts does not decode to what it was made of; the frames keep theirs")
            continue
        coder.put_stack(run, group)
        if group.report.stacked is None:
            break
        if group.stack:
            shares |= _shared_out(run, group.report.carried, waiting, offers)
    return shares


def _shared_out(run: int, carried: int, waiting: Sequence[int], offers: Sequence[Offer]) -> dict[int, Share]:
    """Whose bytes the first `carried` ones of the payload were."""
    shares: dict[int, Share] = {}
    start = 0
    for place in waiting:
        size = min(len(offers[place].sealed), carried - start)
        if size > 0:
            shares[place] = Share(run, start, size)
        start += size
    return shares


def global_part(coder: ChainCoder) -> dict[str, int]:
    """Figures of all runs that were tried, for the record; {} where nothing was.

    causal, stack: bytes of the global parts as the causal coder and as stacks take them (without their start where no
    stack was made); frames: in stacks that were kept; record_bytes, random_bytes: in these stacks' start.
    """
    if not coder.reports:
        return {}
    kept = [report for report in coder.reports if report.chosen == "stack"]
    return {
        "causal_bytes": sum(report.causal_global for report in coder.reports),
        "stack_bytes": sum(report.stacked_global for report in coder.reports),
        "frames": sum(len(report.stack_frames) for report in kept),
        "record_bytes": sum(report.carried for report in kept),
        "random_bytes": sum(report.padding for report in kept),
    }
