"""Group commit: what many threads want to make durable at the same moment becomes one batch (Gray & Reuter, 10.5).

An fsync costs the same for one receipt as for twenty. Whoever comes first leads: it does the work of all that wait at
that moment, while later ones gather for the next batch. Alone, a caller waits for nobody: there is no timer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from gateway.errors import PalimpsestError, Unavailable

__all__ = ["GroupCommit"]

T = TypeVar("T")
R = TypeVar("R")
LARGEST: Final = 64  # of one batch: bounds how long its first caller waits for the rest


@dataclass(eq=False, slots=True)
class _Ticket(Generic[T, R]):
    item: T
    answer: R | None = None
    error: PalimpsestError | None = None
    done: bool = False


class GroupCommit(Generic[T, R]):
    """`submit` from any thread; `work` gets a batch and answers each item, in order. It never runs twice at once.

    A batch that fails as a whole is done again one by one, so that no caller pays for its neighbour's item: `work` must
    bear to be repeated after it raised. Not so after an error of the kinds `shared`: those are nobody's own, and an
    fsync that is repeated after it failed says nothing (Rebello et al., USENIX ATC 2020): all are told of it.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Sequence[R]], shared: tuple[type[PalimpsestError], ...] = ()
    ) -> None:
        self._work = work
        self._shared = shared
        self._changed = threading.Condition()
        self._waiting: list[_Ticket[T, R]] = []
        self._led = False

    def submit(self, item: T) -> R:
        """What `work` answered to this item. Raises the PalimpsestError that it raised."""
        ticket: _Ticket[T, R] = _Ticket(item)
        with self._changed:
            self._waiting.append(ticket)
        while not ticket.done:
            self._wait_or_lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer  # type: ignore[return-value]

    def _wait_or_lead(self, ticket: _Ticket[T, R]) -> None:
        with self._changed:
            while self._led and not ticket.done:
                self._changed.wait()
            if ticket.done:
                return
            self._led = True
            batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
        try:
            self._settle(batch)
        finally:  # whatever happened: nobody waits for a leader that is gone
            with self._changed:
                for each in batch:
                    if not each.done:
                        each.error, each.done = Unavailable("internal-error", "the batch could not be done"), True
                self._led = False
                self._changed.notify_all()

    def _settle(self, batch: list[_Ticket[T, R]]) -> None:
        try:
            answers = self._work([each.item for each in batch])
        except PalimpsestError as error:
            if len(batch) > 1 and not isinstance(error, self._shared):
                for each in batch:
                    self._settle([each])
                return
            for each in batch:
                each.error, each.done = error, True
            return
        for each, answer in zip(batch, answers, strict=True):
            each.answer, each.done = answer, True
