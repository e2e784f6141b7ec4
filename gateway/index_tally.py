"""The index under the admin page: flow, backlog, disks and studies, each by an index or a small table (v0010).

No question here costs more because the archive is large; what could be many is counted up to a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from gateway.database import Database
from gateway.index_report import count_some
from gateway.index_rows import InstanceRow
from gateway.index_schema import forward, instance, study, study_event
from gateway.index_schema_admin import disk_sample, flow, instance_tally, row_tally
from gateway.instance import ForwardState
from gateway.study_state import StudyEvent

__all__ = ["AGES", "BUCKET_SECONDS", "Backlog", "DiskSample", "Done", "FlowRow", "Tallies"]

BUCKET_SECONDS: Final = 300
#: Seconds of waiting that are told apart; the last ones are what a person wants to hear of.
AGES: Final = (60.0, 600.0, 3600.0)
KEPT_SECONDS: Final = 14 * 24 * 3600.0
CONFLICTING: Final = {"sqlite": "instance.conflict = 1", "postgresql": "instance.conflict"}


@dataclass(frozen=True, slots=True)
class FlowRow:
    """Five minutes of one modality ('' for what is not known yet). bytes_in, bytes_archived, seconds (from receipt to
    archive, summed): of what was archived. sent: forwards.
    """

    bucket: int
    modality: str
    received: int
    bytes_received: int
    archived: int
    bytes_in: int
    bytes_archived: int
    sent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits under one name (a priority, a destination): how many, since when the oldest, and how many for longer
    than each of AGES (at most `index_report.MOST_COUNTED`).
    """

    name: str
    waiting: int
    oldest_at: float | None
    older: Mapping[float, int]


@dataclass(frozen=True, slots=True)
class Done:
    """One of the last archived instances: sizes in bytes, seconds from receipt to archive."""

    modality: str
    size: int
    archived_size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DiskSample:
    """How full a file system was; bucket: seconds since the epoch, a multiple of BUCKET_SECONDS."""

    place: str
    bucket: int
    total: int
    free: int


class Tallies(Database):
    """What people who run the gateway look at all day."""

    def flow(self, since: float) -> list[FlowRow]:
        """Buckets from then on (seconds since the epoch), oldest first."""
        query = sa.select(flow).where(flow.c.bucket >= int(since)).order_by(flow.c.bucket, flow.c.modality)
        with self.read() as conn:
            return [FlowRow(**row) for row in conn.execute(query).mappings()]

    def flow_forget(self) -> int:
        """Forget buckets, disk samples and silent workers of more than two weeks ago."""
        before = self.now() - KEPT_SECONDS
        with self.write(durable=False) as conn:
            gone = conn.execute(sa.delete(flow).where(flow.c.bucket < before)).rowcount
            return int(gone + conn.execute(sa.delete(disk_sample).where(disk_sample.c.bucket < before)).rowcount)

    def last_archived(self, limit: int = 1000) -> list[Done]:
        """The newest archived instances, newest first: what ratio and time are shown from."""
        c = instance.c
        query = sa.select(c.modality, c.size, c.archived_size, c.archived_at - c.received_at)
        query = query.where(c.archived_at.is_not(None)).order_by(c.archived_at.desc()).limit(limit)
        with self.read() as conn:
            return [Done(row[0] or "?", int(row[1]), int(row[2] or 0), float(row[3])) for row in conn.execute(query)]

    def last_archived_at(self) -> float | None:
        """When the newest archived instance was archived."""
        with self.read() as conn:
            return conn.execute(sa.select(sa.func.max(instance.c.archived_at))).scalar()

    def backlog(self) -> list[Backlog]:
        """Unfinished instances by priority, most urgent first."""
        tally, c = instance_tally.c, instance.c
        waiting = (
            sa.select(tally.priority, sa.func.sum(tally.instances))
            .where(tally.priority >= 0)
            .group_by(tally.priority)
            .order_by(tally.priority)
        )
        with self.read() as conn:
            return [
                self._backlog(conn, str(name), int(number), c.received_at, c.due_at.is_not(None), c.priority == name)
                for name, number in conn.execute(waiting).all()
            ]

    def forward_backlog(self) -> list[Backlog]:
        """Waiting forwards by destination."""
        c, f = row_tally.c, forward.c
        waiting = sa.select(c.a, c.rows).where(c.topic == "forward", c.b == ForwardState.WAITING).order_by(c.a)
        with self.read() as conn:
            return [
                self._backlog(conn, name, int(number), f.created_at, f.due_at.is_not(None), f.destination == name)
                for name, number in conn.execute(waiting).all()
            ]

    def _backlog(self, conn: sa.Connection, name: str, waiting: int, at: sa.Column[Any], *where: Any) -> Backlog:
        oldest = conn.execute(sa.select(sa.func.min(at)).where(*where)).scalar()
        older = {age: count_some(conn, sa.select(at).where(*where, at < self.now() - age)) for age in AGES}
        return Backlog(name, waiting, oldest, older)

    def conflicts(self, limit: int = 50) -> list[InstanceRow]:
        """Instances whose UID came with other pixels, newest first."""
        query = sa.select(instance).where(sa.text(CONFLICTING[self.dialect]))
        with self.read() as conn:
            found = conn.execute(query.order_by(instance.c.id.desc()).limit(limit)).mappings()
            return [InstanceRow.of(row) for row in found]

    def studies_in(self, states: tuple[str, ...], limit: int = 20) -> list[tuple[str, str, int]]:
        """(Study Instance UID, state, id of its newest instance) of studies in these states, newest first."""
        found: list[tuple[str, str, int]] = []
        with self.read() as conn:
            for state in states:
                query = sa.select(study.c.study_uid, study.c.state, study.c.newest_id).where(study.c.state == state)
                rows = conn.execute(query.order_by(study.c.newest_id.desc()).limit(limit))
                found += [(uid, word, int(number)) for uid, word, number in rows]
        return sorted(found, key=lambda each: -each[2])[:limit]

    def last_study_events(self, limit: int = 30) -> list[StudyEvent]:
        """The newest events of all studies, newest first."""
        query = sa.select(study_event).order_by(study_event.c.id.desc()).limit(limit)
        with self.read() as conn:
            return [StudyEvent(**row) for row in conn.execute(query).mappings()]

    def disk_note(self, place: str, total: int, free: int) -> None:
        """Keep how full a file system is: the newest look of each five minutes."""
        bucket = int(self.now() / BUCKET_SECONDS) * BUCKET_SECONDS
        same = sa.and_(disk_sample.c.place == place, disk_sample.c.bucket == bucket)
        with self.write(durable=False) as conn:
            if not conn.execute(sa.update(disk_sample).where(same).values(total=total, free=free)).rowcount:
                conn.execute(disk_sample.insert().values(place=place, bucket=bucket, total=total, free=free))

    def disk_samples(self, since: float) -> list[DiskSample]:
        """Samples from then on, oldest first."""
        query = sa.select(disk_sample).where(disk_sample.c.place.is_not(None), disk_sample.c.bucket >= int(since))
        with self.read() as conn:
            found = conn.execute(query.order_by(disk_sample.c.place, disk_sample.c.bucket)).mappings()
            return [DiskSample(**row) for row in found]
