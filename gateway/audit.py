"""The audit trail (PS3.15 A.5): append-only, each event's hash covers the event and the hash before it.

Who did what to which instance, never whose image it is: `detail` takes allow-listed keys only, a study is named by its
keyed pseudonym. The chain alone finds edits, deletions inside and reordering; a cut tail is found against the head that
`write_head` keeps outside the database.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from gateway.blobs import sync_folder
from gateway.index_schema import audit
from gateway.keyuse import keys_used

if TYPE_CHECKING:
    from gateway.database import Database

GENESIS: Final = "0" * 64
DETAIL_FIELDS: Final = frozenset(
    {
        "reason", "destination", "source", "form", "coder", "carrier", "outcome", "attempts", "bytes", "count",
        "seconds", "alert_id", "key_id", "kind", "representation", "status", "role", "token_id", "address",
        "envelope_uid", "version_of", "forward_id", "level", "route", "exact",
    }
)  # fmt: skip
_EVENT: Final = re.compile(r"[a-z][a-z0-9-]{1,31}")
_PAGE: Final = 2000
# Built once: building an expression costs more than running it.
LAST: Final = sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
INSERT: Final = audit.insert()

Detail = Mapping[str, str | int | float | bool | None]
AuditOutcome = Literal["success", "refused", "failure"]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event. actor: AE title, token subject or process; study: keyed pseudonym; detail: see DETAIL_FIELDS."""

    event: str
    actor: str
    outcome: AuditOutcome = "success"
    instance_id: int | None = None
    study: str | None = None
    detail: Detail = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.detail) - DETAIL_FIELDS
        if unknown or _EVENT.fullmatch(self.event) is None:
            raise ValueError(f"audit event or detail outside the allow-list: {self.event} {sorted(unknown)}")


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `verify` found. count and head: of the trail as read; problem: '' or the first contradiction, in words."""

    ok: bool
    count: int
    head: str
    problem: str = ""
    at_seq: int | None = None


def append(conn: Connection, event: AuditEvent, now: float) -> int:
    """Append one event in the caller's write transaction; returns its sequence number (1, 2, ...).

    An event of work that gathers its uses of keys (`keyuse.used_keys`) names them.
    """
    return append_many(conn, [event], now)


def append_many(conn: Connection, events: Sequence[AuditEvent], now: float) -> int:
    """Append events in this order, as `append` does; returns the last one's sequence number, 0 without any event."""
    if not events:
        return 0
    used = keys_used()
    last = conn.execute(LAST).first()
    seq, previous = (last.seq, last.hash) if last else (0, GENESIS)
    rows = []
    for event in events:
        if used and "key_id" not in event.detail:
            event = replace(event, detail={**event.detail, "key_id": used})
        seq += 1
        values: dict[str, Any] = {
            "seq": seq,
            "at_us": int(now * 1_000_000),
            "event": event.event,
            "actor": event.actor[:64],
            "outcome": event.outcome,
            "instance_id": event.instance_id,
            "study": event.study,
            "detail": json.dumps(dict(event.detail), sort_keys=True, separators=(",", ":")),
        }
        previous = _hash(values, previous)
        rows.append({**values, "hash": previous})
    conn.execute(INSERT, rows)
    return seq


def verify(database: Database, head_path: Path | None = None) -> AuditReport:
    """Walk the whole chain, and compare it with the head kept outside, if there is one."""
    previous, expected_seq = GENESIS, 1
    try:
        hashes_at = _kept_head(head_path)
    except (ValueError, KeyError, TypeError):
        return AuditReport(False, 0, GENESIS, "the head kept outside the database cannot be read")
    for row in _rows(database):
        if row["seq"] != expected_seq:
            return AuditReport(False, expected_seq - 1, previous, "events are missing or out of order", expected_seq)
        if _hash(_values(row), previous) != row["hash"]:
            return AuditReport(False, expected_seq - 1, previous, "an event was changed", row["seq"])
        previous, expected_seq = row["hash"], expected_seq + 1
        if hashes_at and hashes_at[0] == row["seq"] and hashes_at[1] != row["hash"]:
            return AuditReport(False, row["seq"], previous, "the trail was rewritten", row["seq"])
    if hashes_at and hashes_at[0] >= expected_seq:
        return AuditReport(False, expected_seq - 1, previous, "the end of the trail was cut off", expected_seq)
    return AuditReport(True, expected_seq - 1, previous)


def export(database: Database, stream: IO[str], since: int = 0) -> int:
    """Write events with seq > since as JSON lines, oldest first; returns how many."""
    count = 0
    for row in _rows(database, since):
        line = {**_values(row), "detail": json.loads(row["detail"]), "hash": row["hash"]}
        stream.write(json.dumps(line, sort_keys=True) + "\n")
        count += 1
    return count


def tail(database: Database, limit: int = 100) -> list[dict[str, Any]]:
    """The last `limit` events, newest first, as dicts like the export's lines."""
    with database.read() as conn:
        rows = conn.execute(sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)).mappings().all()
    return [{**_values(row), "detail": json.loads(row["detail"]), "hash": row["hash"]} for row in rows]


def write_head(database: Database, path: Path) -> None:
    """Keep sequence number and hash of the last event in a file outside the database, durably and atomically."""
    with database.read() as conn:
        last = conn.execute(LAST).first()
    if last is None:
        return
    kept = _kept_head(path)
    if kept and kept[0] >= last.seq:  # never move the head back: that would hide a cut
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"seq": last.seq, "hash": last.hash}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def _kept_head(path: Path | None) -> tuple[int, str] | None:
    if path is None or not path.is_file():
        return None
    kept = json.loads(path.read_text("utf-8"))
    return int(kept["seq"]), str(kept["hash"])


def _rows(database: Database, since: int = 0) -> Iterator[RowMapping]:
    """All events in order, a page at a time, so that a long trail holds no long transaction."""
    while True:
        with database.read() as conn:
            query = sa.select(audit).where(audit.c.seq > since).order_by(audit.c.seq).limit(_PAGE)
            page = conn.execute(query).mappings().all()
        if not page:
            return
        yield from page
        since = page[-1]["seq"]


def _values(row: RowMapping) -> dict[str, Any]:
    return {name: row[name] for name in row if name != "hash"}


def _hash(values: Mapping[str, Any], previous: str) -> str:
    canonical = json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
    return sha256(f"{previous}\n{canonical}".encode()).hexdigest()
