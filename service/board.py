"""What the admin pages show, looked up at most once in a few seconds for all viewers together. No patient data, no UID.

Every question behind it goes by an index or reads a small table (gateway/index_tally.py): what it costs does not grow
with the archive.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from gateway.audit_standing import audit_standing
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.index_care import CareReport
from gateway.index_worker import Lease, WorkerRow
from gateway.keydoctor import BACKUP_DAYS, KEY_DAYS
from gateway.keys import KeyRing
from gateway.pseudonym import pseudonym_uid
from service.figures import Forecast, by_half_hour, by_modality, forecast
from service.health import readiness
from service.overview import overview
from service.verdict import Trouble, judge

__all__ = ["Board", "KeyFact", "Picture", "WorkerFact"]

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 3.0
SLOW_SECONDS: Final = 30.0
CARE_SECONDS: Final = 600.0
DAY: Final = 24 * 3600.0
SILENT_SECONDS: Final = 30.0
HISTORY_SECONDS: Final = 48 * 3600.0
QUARANTINE_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class WorkerFact:
    """A worker process and what it holds. state: 'working', 'idle' or 'silent'."""

    row: WorkerRow
    state: str
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class KeyFact:
    """One key of the ring. due: older than it should become."""

    id: str
    kind: str
    days: int
    current: bool
    saved: bool
    due: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """One look. values: by name, for the templates; troubles: worst first; down: why there is nothing else, or ''."""

    number: int
    at: float
    values: dict[str, Any]
    troubles: tuple[Trouble, ...]
    down: str = ""
    rendered: dict[str, Markup] = field(default_factory=dict, compare=False)  # part -> HTML, filled by who renders it


class Board:
    """The pictures of one process. Safe in threads: one of them looks, the others wait for what it sees."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway, self._clock = gateway, clock
        self._lock = threading.Lock()
        self._picture: Picture | None = None
        self._due = 0.0
        self._slow: dict[str, Any] = {}
        self._slow_due = 0.0
        self._care: CareReport | None = None
        self._care_due = 0.0

    def picture(self, *, fresh: bool = False) -> Picture:
        """The present picture, at most FRESH_SECONDS old. fresh: after something was changed by hand."""
        with self._lock:
            if self._picture is None or fresh or self._clock() >= self._due:
                number = self._picture.number + 1 if self._picture else 1
                self._picture = self._look(number)
                self._due = self._clock() + FRESH_SECONDS
            return self._picture

    def _look(self, number: int) -> Picture:
        now = self._gateway.index.now()
        try:
            values = self._values(now)
        except PalimpsestError as error:
            log.warning("the admin page could not look", extra={"reason": error.reason})
            _, dependencies = readiness(self._gateway)
            trouble = Trouble("bad", f"The gateway cannot be looked at: {error.reason}.", "#dependencies")
            return Picture(number, now, {"dependencies": dependencies}, (trouble,), error.reason)
        return Picture(number, now, values, tuple(judge(values, self._gateway.settings, now)))

    def _values(self, now: float) -> dict[str, Any]:
        gw, index = self._gateway, self._gateway.index
        values = overview(gw)
        counts = index.counts()
        halves = by_half_hour(index.flow(now - DAY), now)
        values |= {
            "halves": halves,
            "day": {
                name: sum(getattr(each, name) for each in halves)
                for name in ("received", "archived", "sent", "bytes_in", "bytes_archived")
            },
            "figures": by_modality(counts.by_modality, index.last_archived()),
            "last_archived_at": index.last_archived_at(),
            "backlog": index.backlog(),
            "shredded": counts.shredded,
            "studies": dict(counts.studies),
            "committing": {role: dict(states) for role, states in counts.commitments.items()},
            "workers": _workers(index.workers(), index.leases(), now),
            "waits_to": {each.name: each for each in index.forward_backlog()},
            "dead_of": {row["id"]: row["instance_id"] for row in values["dead"]},
        }
        if self._clock() >= self._slow_due:
            self._slow = _slow(gw, now)
            self._slow_due = self._clock() + SLOW_SECONDS
        if self._clock() >= self._care_due:  # counts all archive objects while a walk over them is under way
            self._care = index.care_report()
            self._care_due = self._clock() + CARE_SECONDS
        return values | self._slow | {"care": self._care}


def _slow(gw: Gateway, now: float) -> dict[str, Any]:
    """What changes slowly, or lies in files."""
    key, index = gw.keys.pseudonym_key(), gw.index
    return {
        "disks": _disks(gw, now),
        "keys": _keys(gw.keys),
        "backup": _backup(gw, now),
        "quarantine": _quarantine(gw.settings.quarantine_dir),
        "conflicting": [_version(row) for row in index.conflicts()],
        "studies_stuck": [
            {"study": pseudonym_uid(uid, key), "state": state, "newest": newest}
            for uid, state, newest in index.studies_in(("failed", "incomplete"))
        ],
        "study_events": [
            {"study": pseudonym_uid(e.study_uid, key), "kind": e.kind, "destination": e.destination, "count": e.count,
             "at": e.at}
            for e in index.last_study_events()
        ],
        "commitments": [
            {"id": row.id, "role": row.role, "peer": row.peer, "state": row.state.value, "items": row.items,
             "failed": row.failed, "reason": row.reason, "created_at": row.created_at}
            for row in index.commitments(limit=20)
        ],
        "damages": index.damages(),
        "standing": audit_standing(gw),
        "flower": gw.settings.flower,
        "probes": {each.name: index.probe_of(each.name) for each in gw.settings.destinations},
    }  # fmt: skip


def _workers(rows: list[WorkerRow], leases: list[Lease], now: float) -> list[WorkerFact]:
    """Silent ones only while nobody has taken their place: what was killed is started again under its name."""
    held: dict[str, list[Lease]] = {}
    for lease in leases:
        held.setdefault(lease.owner, []).append(lease)
    found = []
    for row in rows:
        silent = now - row.seen_at > SILENT_SECONDS
        heir = any(
            (other.name, other.host) == (row.name, row.host) and other.started_at >= row.seen_at - SILENT_SECONDS
            for other in rows
            if other.owner != row.owner
        )
        if not (silent and heir):
            state = "silent" if silent else "working" if row.task else "idle"
            found.append(WorkerFact(row, state, tuple(held.get(row.owner, ()))))
    return found


def _disks(gw: Gateway, now: float) -> list[Forecast]:
    samples = gw.index.disk_samples(now - HISTORY_SECONDS)
    found = []
    for place in dict.fromkeys(each.place for each in samples):
        mine = [each for each in samples if each.place == place]
        watermark = gw.settings.watermark_bytes if place == "spool" else 0
        found.append(forecast(place, mine[-1].total, mine[-1].free, watermark, mine))
    return found


def _keys(ring: KeyRing) -> list[KeyFact]:
    now = datetime.now(UTC)
    found = []
    for row in ring.list():
        days = (now - datetime.fromisoformat(row.created)).days
        due = row.current and days > KEY_DAYS.get(row.kind, days)
        found.append(KeyFact(row.id, row.kind, days, row.current, row.backed_up, due))
    return found


def _backup(gw: Gateway, now: float) -> dict[str, Any]:
    until = gw.keys.backed_up_until()
    old = until is not None and now - until > BACKUP_DAYS * DAY
    return {"until": until, "required": gw.settings.require_key_backup, "old": old, "master": gw.keys.master.name}


def _quarantine(folder: Path) -> list[dict[str, Any]]:
    """The newest candidates that failed their proof: machine words and numbers, as worker/pipeline.py wrote them."""
    found: list[dict[str, Any]] = []
    try:
        paths = sorted(folder.glob("*.json"), key=lambda path: -path.stat().st_mtime)[:QUARANTINE_SHOWN]
        for path in paths:
            story = json.loads(path.read_text("utf-8"))
            words = {name: str(story.get(name) or "") for name in ("reason", "form", "coder", "software")}
            found.append({"instance": int(story["instance"]), "at": path.stat().st_mtime, **words})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("the quarantine cannot be read as a whole")
    return found


def _version(row: Any) -> dict[str, Any]:
    return {"id": row.id, "current": row.current, "received_at": row.received_at, "modality": row.modality,
            "calling_ae": row.calling_ae, "state": row.state.value}  # fmt: skip
