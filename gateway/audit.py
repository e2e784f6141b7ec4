"""The audit trail (PS3.15 A.5): append-only, each event's hash covers the event and the hash before it.

Who did what to which instance, never whose image it is: `detail` takes allow-listed keys only, study and patient are
named by keyed pseudonyms. The chain alone finds edits, deletions inside and reordering; a cut tail and a chain computed
anew are found against the signed heads outside the database (`gateway.audit_heads`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from gateway.audit_events import EVENTS
from gateway.audit_heads import Finding, HeadsRead
from gateway.index_schema import audit
from gateway.keyuse import keys_used

if TYPE_CHECKING:
    from gateway.database import Database

GENESIS: Final = "0" * 64
DETAIL_FIELDS: Final = frozenset(
    {
        "reason", "destination", "source", "form", "coder", "carrier", "outcome", "attempts", "bytes", "count",
        "seconds", "alert_id", "key_id", "kind", "representation", "status", "role", "token_id", "address",
        "envelope_uid", "version_of", "forward_id", "level", "route", "exact", "sha256", "subject",
    }
)  # fmt: skip
_PAGE: Final = 2000
# Built once: building an expression costs more than running it.
LAST: Final = sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
INSERT: Final = audit.insert()

Row = Mapping[str, Any] | RowMapping
"""An event as the database gives it, or as `read_export` does."""
Detail = Mapping[str, str | int | float | bool | None]
AuditOutcome = Literal["success", "refused", "failure"]


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event of `audit_events.EVENTS`. actor: AE title, token subject or process; study, patient: keyed pseudonyms
    (`gateway.pseudonym`); detail: see DETAIL_FIELDS.
    """

    event: str
    actor: str
    outcome: AuditOutcome = "success"
    instance_id: int | None = None
    study: str | None = None
    detail: Detail = field(default_factory=dict)
    patient: str | None = None

    def __post_init__(self) -> None:
        unknown = set(self.detail) - DETAIL_FIELDS
        if unknown:
            raise ValueError(f"audit detail outside the allow-list: {self.event} {sorted(unknown)}")
        if self.event not in EVENTS:
            raise ValueError(f"audit event outside the allow-list: {self.event} is not in gateway/audit_events.py")


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `verify` found. count and head: of the part of the trail that is whole; findings: the first contradiction
    that each of chain, heads, signatures and key ring sees; heads: how many signed heads were compared; newest_head:
    when the last of them was signed; unsigned: events after it.
    """

    ok: bool
    count: int
    head: str
    problem: str = ""
    at_seq: int | None = None
    findings: tuple[Finding, ...] = ()
    heads: int = 0
    newest_head: str = ""
    unsigned: int = 0


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
            "detail": _json(dict(event.detail)),
            "patient": event.patient,
        }
        previous = digest_of(values, previous)
        rows.append({**values, "hash": previous})
    conn.execute(INSERT, rows)
    return seq


def verify(rows: Database | Iterable[Row], heads: HeadsRead | None = None) -> AuditReport:
    """Walk the whole chain, and compare it with the signed heads.

    rows: the database, or events as `export` wrote them, oldest first. heads: what `audit_heads.read_heads` gave.
    """
    walk = _Walk(heads)
    for row in rows if isinstance(rows, Iterable) else read_rows(rows):
        walk.step(row)
    return walk.report()


class _Walk:
    """One pass over a trail. Heads are compared beyond the first contradiction in the chain: they may tell more."""

    def __init__(self, heads: HeadsRead | None) -> None:
        self._heads = heads or HeadsRead()
        self._signed = {head.seq: head.hash for head in self._heads.heads}
        self._found: list[Finding] = []
        self._previous, self._good, self._last = GENESIS, 0, 0
        self._chain_holds = self._heads_hold = self._ring_holds = True

    def step(self, row: Row) -> None:
        """The next event."""
        seq, kept = int(row["seq"]), str(row["hash"])
        if self._chain_holds:
            problem = ""
            if seq != self._last + 1:
                problem = "events are missing or out of order"
            elif digest_of(values_of(row), self._previous) != kept:
                problem = "an event was changed"
            if problem:
                self._chain_holds = False
                self._found.append(Finding("chain", problem, self._last + 1))
            else:
                self._previous, self._good = kept, seq
        if self._heads_hold and self._signed.get(seq, kept) != kept:
            self._heads_hold = False
            self._found.append(Finding("heads", "the trail is not the one that was signed", seq))
        if self._ring_holds and self._heads.remembered.get(seq, kept) != kept:
            self._ring_holds = False
            self._found.append(Finding("key ring", "the trail is not the one that was signed", seq))
        self._last = max(self._last, seq)

    def report(self) -> AuditReport:
        """What was found in all."""
        newest = max(self._heads.heads, key=lambda head: head.seq, default=None)
        if newest is not None and newest.seq > self._last:
            self._found.append(Finding("heads", "the end of the trail was cut off", self._last + 1))
        if max(self._heads.remembered, default=0) > self._last:
            self._found.append(Finding("key ring", "the end of the trail was cut off", self._last + 1))
        found = (*self._found, *self._heads.findings)
        first = found[0] if found else Finding("", "")
        return AuditReport(
            ok=not found,
            count=self._good,
            head=self._previous,
            problem=first.problem,
            at_seq=first.at_seq,
            findings=found,
            heads=len(self._heads.heads),
            newest_head=newest.at if newest else "",
            unsigned=max(0, self._last - newest.seq) if newest else self._last,
        )


def export(database: Database, stream: IO[str], since: int = 0) -> int:
    """Write events with seq > since as JSON lines, oldest first; returns how many."""
    count = 0
    for row in read_rows(database, since):
        stream.write(json.dumps(line_of(row), sort_keys=True) + "\n")
        count += 1
    return count


def read_export(stream: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Inverse of `export`: events as `verify` takes them. Raises ValueError for what is no exported event."""
    for line in stream:
        found = json.loads(line)
        if not isinstance(found, dict) or not {"seq", "hash", "detail"} <= set(found):
            raise ValueError("not an exported audit event")
        yield {**found, "detail": _json(found["detail"])}


def tail(database: Database, limit: int = 100) -> list[dict[str, Any]]:
    """The last `limit` events, newest first, as dicts like the export's lines."""
    with database.read() as conn:
        rows = conn.execute(sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)).mappings().all()
    return [line_of(row) for row in rows]


def line_of(row: Row) -> dict[str, Any]:
    """A row as the export shows it: `detail` as an object."""
    return {**values_of(row), "detail": json.loads(row["detail"]), "hash": row["hash"]}


def read_rows(database: Database, since: int = 0) -> Iterator[RowMapping]:
    """All events after `since` in order, a page at a time, so that a long trail holds no long transaction."""
    while True:
        with database.read() as conn:
            query = sa.select(audit).where(audit.c.seq > since).order_by(audit.c.seq).limit(_PAGE)
            page = conn.execute(query).mappings().all()
        if not page:
            return
        yield from page
        since = page[-1]["seq"]


def digest_of(values: Mapping[str, Any], previous: str) -> str:
    """The hash of an event: SHA-256 (hex) over the hash before it and the event's values in canonical JSON.

    A patient that is not there is left out: events older than that column keep their hash.
    """
    named = {name: value for name, value in values.items() if name != "patient" or value is not None}
    return sha256(f"{previous}\n{_json(named)}".encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def values_of(row: Row) -> dict[str, Any]:
    """What the hash of a row covers."""
    return {name: row[name] for name in row if name != "hash" and (name != "patient" or row[name] is not None)}
