"""One file's way through the gateway and back, and the tracker that follows many: send, watch, fetch, compare."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.errors import BadUID, NotFound
from gateway.instance import DELIVERED, ForwardState, State
from gateway.uids import parse_uid
from palimpsest import dimse
from palimpsest.client import FetchError, Route, WebClient
from palimpsest.compare import Verdict, compare
from palimpsest.scan import Found, Skipped

if TYPE_CHECKING:
    from gateway.index import ForwardRow, Index, InstanceRow

POLL_SECONDS = 0.4
POLL_BATCH = 200  # rows looked at per round: a status display must not load the database
IN_ARCHIVE = frozenset({State.ARCHIVED, State.RELEASED})


@dataclass
class Journey:
    """What is known of one file so far."""

    found: Found
    answer: dimse.Answer | None = None
    row: InstanceRow | None = None
    forwards: tuple[ForwardRow, ...] = ()
    verdict: Verdict | None = None
    fetch_error: str = ""
    global_part: dict[str, int] = field(default_factory=dict)  # both its lengths (worker.stacking.global_part)
    known_before: bool = False  # the gateway had exactly this data set already
    superseded: bool = False  # another version under the same UID is the current one
    _future: Future[None] | None = field(default=None, repr=False)

    @property
    def refused(self) -> bool:
        """The gateway answered, and not with Success."""
        return self.answer is not None and not self.answer.ok

    @property
    def forwarded(self) -> bool:
        """Every destination has it."""
        return all(f.state in DELIVERED for f in self.forwards)

    @property
    def settled(self) -> bool:
        """Nothing more is going to happen to it."""
        return self.refused or self.verdict is not None or bool(self.fetch_error)

    @property
    def restored(self) -> bool:
        """It came back, and it is what was sent."""
        return self.verdict is not None and self.verdict.equal

    def problem(self) -> str:
        """Why it is not archived, forwarded and restored; '' if it is."""
        if self.answer is not None and not self.answer.ok:
            return f"refused: {self.answer.reason}" + (f" ({self.answer.detail})" if self.answer.detail else "")
        if self.row is None:
            return "accepted, but not found in the index"
        if self.row.state not in IN_ARCHIVE:
            return f"not archived: still {self.row.state}" + (
                f" ({self.row.last_error})" if self.row.last_error else ""
            )
        late = [
            f"{f.destination}: {f.state} {f.reason or ''}".strip() for f in self.forwards if f.state not in DELIVERED
        ]
        if late:
            return "not forwarded: " + ", ".join(late)
        if self.fetch_error:
            return f"not given back: {self.fetch_error}"
        if self.verdict is not None and not self.verdict.equal:
            return f"given back differently: {self.verdict.difference}"
        return ""


@dataclass(frozen=True)
class Plan:
    """What 'finished' means. wait_release: only then does a fetch prove the archive and not the spool."""

    target: dimse.Target
    associations: int = 2
    fetch: bool = True
    wait_forward: bool = True
    wait_release: bool = True
    quiet_seconds: float = 900.0  # give up when nothing changed for so long


class Tracker:
    """Follows files through the gateway on this machine: its index tells the state, its web side gives back."""

    def __init__(self, index: Index, web: WebClient | None, plan: Plan, stopping: threading.Event) -> None:
        self._index = index
        self._web = web
        self._plan = plan
        self._stopping = stopping
        self._fetchers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fetch")
        self.journeys: list[Journey] = []
        self.skipped: list[Skipped] = []
        self._changed_at = time.monotonic()

    @property
    def fetches(self) -> bool:
        """Whether originals are asked back."""
        return self._plan.fetch

    def add(self, item: Found | Skipped) -> Journey | None:
        """Take a file in. A file whose data set was named before (a copy) is followed like any other."""
        if isinstance(item, Skipped):
            self.skipped.append(item)
            return None
        journey = Journey(item)
        self._look_up(journey)
        journey.known_before = journey.row is not None
        self.journeys.append(journey)
        return journey

    def send(self, on_answer: Callable[[Journey], None] | None = None) -> None:
        """C-STORE everything that the gateway does not have yet (so a broken run is resumed). Raises SendError."""
        waiting = {id(j.found): j for j in self.journeys if not j.known_before}

        def answered(answer: dimse.Answer) -> None:
            journey = waiting[id(answer.found)]
            journey.answer = answer
            self._changed_at = time.monotonic()
            if on_answer is not None:
                on_answer(journey)

        files = [j.found for j in waiting.values()]
        dimse.send_all(files, self._plan.target, answered, associations=self._plan.associations)

    def follow(self) -> Iterator[list[Journey]]:
        """Look until all are settled; after every round yields the journeys that settled in it.

        Ends early when told to stop, or when nothing changed for `quiet_seconds`.
        """
        open_journeys = [j for j in self.journeys if not j.refused]
        refused = [j for j in self.journeys if j.refused]
        yield refused
        while open_journeys and not self._stopping.is_set():
            self._round(open_journeys[:POLL_BATCH])
            settled = [j for j in open_journeys if self._is_finished(j)]
            open_journeys = [j for j in open_journeys if not self._is_finished(j)]
            open_journeys = open_journeys[POLL_BATCH:] + open_journeys[:POLL_BATCH]
            yield settled
            if time.monotonic() - self._changed_at > self._plan.quiet_seconds:
                return
            self._stopping.wait(POLL_SECONDS)

    def close(self) -> None:
        """Stop fetching."""
        self._fetchers.shutdown(wait=True, cancel_futures=True)

    def _round(self, journeys: Iterable[Journey]) -> None:
        for journey in journeys:
            before = (journey.row, journey.forwards)
            self._look_up(journey)
            if (journey.row, journey.forwards) != before:
                self._changed_at = time.monotonic()
            if journey._future is None and self._plan.fetch and self._has_arrived(journey):
                journey._future = self._fetchers.submit(self._fetch_and_compare, journey)

    def _look_up(self, journey: Journey) -> None:
        if journey.row is not None:
            try:
                journey.row = self._index.get(journey.row.id)
            except NotFound:
                journey.row = None
        else:
            versions = self._index.versions(journey.found.head.sop_instance_uid)
            wanted = journey.found.dataset_digest
            journey.row = next((row for row in versions if row.dataset_digest == wanted), None)
        if journey.row is not None and journey.row.state in IN_ARCHIVE:
            journey.forwards = tuple(self._index.forwards(instance_id=journey.row.id))
            journey.superseded = not journey.row.current
            journey.global_part = self._index.facts(journey.row.id).get("global_part") or {}

    def _has_arrived(self, journey: Journey) -> bool:
        row = journey.row
        if row is None or row.state not in IN_ARCHIVE:
            return False
        if self._plan.wait_forward and any(f.state == ForwardState.WAITING for f in journey.forwards):
            return False
        dead = any(f.state == ForwardState.DEAD for f in journey.forwards)
        return row.state == State.RELEASED or dead or not self._plan.wait_release

    def _is_finished(self, journey: Journey) -> bool:
        if journey.refused:
            return True
        return journey.settled if self._plan.fetch else self._has_arrived(journey)

    def _fetch_and_compare(self, journey: Journey) -> None:
        """Runs in a fetching thread; sets exactly one of verdict and fetch_error."""
        row = journey.row
        assert row is not None and self._web is not None
        try:
            with self._web.fetch_one(_route(row)) as path:
                journey.verdict = compare(journey.found.path, path)
        except FetchError as error:
            journey.fetch_error = f"{error.reason} {error}" if str(error) != error.reason else error.reason
        except OSError as error:
            journey.fetch_error = f"local file error: {error.strerror or type(error).__name__}"
        self._changed_at = time.monotonic()


def _route(row: InstanceRow) -> Route:
    """By UIDs where they are UIDs and lead to this very version, else by the digest of the file."""
    if row.current and row.study_uid and row.series_uid:
        try:
            return Route.uids(parse_uid(row.study_uid), parse_uid(row.series_uid), row.sop_uid)
        except BadUID:  # real files have them; WADO-RS has no path for those (PS3.18 8.2)
            return Route.digest(row.digest)
    return Route.digest(row.digest)
