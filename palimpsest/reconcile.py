"""Comparing studies with the PACS that sends them, and taking over what it has: evidence for the study ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gateway.bootstrap import Gateway
from gateway.instance import UNFINISHED
from palimpsest.pacs import Moved, Pacs

__all__ = ["Difference", "Pace", "import_studies", "reconcile"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One study here and there. missing, extra: SOP Instance UIDs that only the PACS has, and that only we have.

    moved: what a C-MOVE did before the two were compared; None: nothing was asked for.
    """

    study: str
    theirs: int
    here: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    moved: Moved | None = None

    @property
    def equal(self) -> bool:
        """Whether all that the PACS has is here."""
        return not self.missing


@dataclass(frozen=True, slots=True)
class Pace:
    """Bounds of an import. rate: instances per second, on average over a study; backlog: unfinished instances at which
    no more is asked for until workers have caught up.
    """

    rate: float
    backlog: int


def reconcile(gateway: Gateway, pacs: Pacs, study: str, moved: Moved | None = None) -> Difference:
    """Compare one study by its SOP Instance UIDs; the answer is recorded as evidence. Raises Unavailable."""
    theirs, here = pacs.instances(study), gateway.index.study_instances(study)
    missing = theirs - here
    if theirs or here:
        # what is expected are those here and those missing: what only we have must not stand for what is missing
        gateway.index.study_evidence_add(study, "c-find", pacs.name, len(here | theirs), len(missing))
    return Difference(
        study, len(theirs), len(here), tuple(sorted(missing)), tuple(sorted(here - theirs)), moved
    )  # fmt: skip


def import_studies(
    gateway: Gateway,
    pacs: Pacs,
    studies: Iterable[str],
    pace: Pace,
    stop: threading.Event,
    *,
    wait: Callable[[float], object] | None = None,
) -> Iterator[Difference]:
    """Study by study: have it sent unless it is here, and compare. What is here already is not asked for again, so an
    import that was stopped is resumed by repeating it. Raises Unavailable.
    """
    pause = wait or stop.wait
    for study in studies:
        if stop.is_set():
            return
        before = reconcile(gateway, pacs, study)
        if before.equal:
            yield before
            continue
        while not stop.is_set() and _unfinished(gateway) > pace.backlog:
            pause(1.0)
        if stop.is_set():
            return
        began = time.monotonic()
        moved = pacs.move(study)
        yield reconcile(gateway, pacs, study, moved)
        pause(max(0.0, moved.completed / pace.rate - (time.monotonic() - began)))


def _unfinished(gateway: Gateway) -> int:
    return sum(count for state, count in gateway.index.counts().by_state.items() if state in UNFINISHED)
