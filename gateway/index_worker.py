"""Who works, and on what: heartbeats that every process writes, and the leases on rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from gateway.database import Database
from gateway.index_schema import forward, instance
from gateway.index_schema_admin import worker

__all__ = ["BEAT_SECONDS", "DOORS", "Beating", "Lease", "WorkerRow"]

BEAT_SECONDS: Final = 5.0
FORGOTTEN_SECONDS: Final = 24 * 3600.0
#: Names of the processes that take in and give back; they beat, and work on nothing that waits.
DOORS: Final = frozenset({"listener", "api"})


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One process. owner: the name in its leases; device: the GPU it codes on, ''; task: what it does, '' for
    nothing, on the instance or forward `subject` since `task_since`; done, failed: tasks of this process.
    memory_used, memory_total: bytes of that GPU, all its users together; busy: percent; None: not known.
    """

    owner: str
    name: str
    host: str
    device: str
    task: str
    pid: int
    subject: int | None
    task_since: float | None
    started_at: float
    seen_at: float
    done: int
    failed: int
    memory_used: int | None = None
    memory_total: int | None = None
    busy: int | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A row that a worker holds. kind: 'instance' or 'forward'; until: seconds since the epoch."""

    kind: str
    id: int
    owner: str
    until: float
    attempts: int


class Beating(Database):
    """Heartbeats and leases."""

    def worker_beat(self, beat: WorkerRow) -> None:
        """Note that a worker is alive (its `seen_at` is set here), and forget those that were not for a day."""
        values = {name: getattr(beat, name) for name in WorkerRow.__slots__} | {"seen_at": self.now()}
        with self.write(durable=False) as conn:
            if not conn.execute(sa.update(worker).where(worker.c.owner == beat.owner).values(**values)).rowcount:
                conn.execute(worker.insert().values(**values))
                conn.execute(sa.delete(worker).where(worker.c.seen_at < self.now() - FORGOTTEN_SECONDS))

    def worker_gone(self, owner: str) -> None:
        """A worker ends as it should."""
        with self.write(durable=False) as conn:
            conn.execute(sa.delete(worker).where(worker.c.owner == owner))

    def workers(self, limit: int = 500) -> list[WorkerRow]:
        """Those that were seen last within a day, by name: rows of the dead never keep out who lives."""
        query = sa.select(worker).order_by(worker.c.seen_at.desc(), worker.c.owner).limit(limit)
        with self.read() as conn:
            found = [WorkerRow(**row) for row in conn.execute(query).mappings()]
        return sorted(found, key=lambda each: (each.name, each.owner))

    def leases(self, limit: int = 200) -> list[Lease]:
        """Rows that are being worked on, those that run out first in front."""
        with self.read() as conn:
            found = [*_leases(conn, "instance", instance, limit), *_leases(conn, "forward", forward, limit)]
        return sorted(found, key=lambda each: each.until)[:limit]


def _leases(conn: sa.Connection, kind: str, table: sa.Table, limit: int) -> list[Lease]:
    c: Any = table.c
    query = sa.select(c.id, c.lease_owner, c.lease_until, c.attempts).where(c.lease_until.is_not(None))
    rows = conn.execute(query.order_by(c.lease_until).limit(limit))
    return [Lease(kind, int(row.id), str(row.lease_owner), float(row.lease_until), int(row.attempts)) for row in rows]
