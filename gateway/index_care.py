"""The index under the archive's care: where scrub and rebuild are, what was found damaged, what was superseded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.index_report import put_alert
from gateway.index_rows import InstanceRow
from gateway.index_schema import care, damage, instance, stego_export, superseded

__all__ = ["RESTORE", "ArchivedObject", "Care", "CareReport", "DamageRow", "put_superseded"]

DAMAGED: Final = "archive-damaged"
PAGE: Final = 500
RESTORE: Final = "restore"  # the name under which a restore that has not ended is kept
#: where archive keys stand, with their digests
_PLACES: Final = (
    (instance.c.archive_key, instance.c.archive_digest),
    (stego_export.c.record_key, stego_export.c.record_digest),
    (superseded.c.archive_key, superseded.c.archive_digest),
)


@dataclass(frozen=True, slots=True)
class ArchivedObject:
    """An object that the index knows to be in the archive. digest: its SHA-256 (hex); rows: instances that it holds."""

    key: str
    digest: str
    rows: tuple[InstanceRow, ...] = ()


@dataclass(frozen=True, slots=True)
class DamageRow:
    """An archive object that was not as recorded. mended_from: 'destination:NAME', 'source',
    'newer-object', 'found-whole'; times in s."""

    archive_key: str
    reason: str
    found_at: float
    last_at: float
    mended_at: float | None
    mended_from: str | None


@dataclass(frozen=True, slots=True)
class CareReport:
    """How the archive is looked after, for status and the admin page. Times: seconds since the epoch; None: never.

    sample_at, whole_at: when the last daily sample, and the last walk over everything, ended; whole_part: 0 to 1, how
    far the present walk has come; damaged: objects that are not mended. to_recode: instances that were coded in a
    hurry; superseded: objects whose instance has a smaller one now, and their bytes.
    """

    sample_at: float | None
    sampled: int
    whole_at: float | None
    whole_part: float | None
    damaged: int
    mended: int
    to_recode: int
    superseded: int
    superseded_bytes: int


class Care(Database):
    """Cursors, damage, and the walk over archived objects."""

    def care_get(self, name: str) -> dict[str, Any]:
        """What was kept under that name; {} if nothing was."""
        with self.read() as conn:
            text = conn.execute(sa.select(care.c.value).where(care.c.name == name)).scalar()
        return dict(json.loads(text)) if text is not None else {}

    def care_set(self, name: str, value: Mapping[str, Any]) -> None:
        """Keep that, in place of what was there."""
        with self.write() as conn:
            put_care(conn, name, value, self.now())

    def restore_unfinished(self) -> bool:
        """Whether this is a restored backup in which patients may stand that were shredded after it was made."""
        return self.care_get(RESTORE).get("state") == "running"

    def restore_over(self) -> None:
        """They were forgotten again: the gateway may start."""
        if self.restore_unfinished():
            self.care_set(RESTORE, {"state": "done"})

    def archived_after(self, key: str, limit: int) -> list[ArchivedObject]:
        """Archived objects by key, those behind `key` first: of instances, restoration records, and superseded ones."""
        with self.read() as conn:
            return [_object(conn, each, digest) for each, digest in conn.execute(_page(key, limit)).all()]

    def archived_count(self) -> int:
        """How many archive objects instances have. Counts all rows: not for every page that is shown."""
        with self.read() as conn:
            return int(conn.execute(sa.select(sa.func.count(instance.c.archive_key.distinct()))).scalar_one())

    def archived_object(self, key: str) -> ArchivedObject | None:
        """What the index knows of that key; None if it knows of no such object."""
        with self.read() as conn:
            for column, digest in _PLACES:
                row = conn.execute(sa.select(digest.label("digest")).where(column == key, digest.is_not(None))).first()
                if row is not None:
                    return _object(conn, key, row.digest)
        return None

    def every_instance(self) -> Iterator[InstanceRow]:
        """All instances by their numbers, a page at a time; those that come meanwhile, too."""
        last = 0
        while True:
            query = sa.select(instance).where(instance.c.id > last).order_by(instance.c.id).limit(PAGE)
            with self.read() as conn:
                page = [InstanceRow.of(row) for row in conn.execute(query).mappings()]
            yield from page
            if not page:
                return
            last = page[-1].id

    def damage_found(self, key: str, reason: str, actor: str) -> bool:
        """An archive object is missing, or is not what was recorded: listed, audited, an alert. True if that is new."""
        now = self.now()
        with self.write() as conn:
            again = sa.update(damage).where(damage.c.archive_key == key, damage.c.mended_at.is_(None))
            known = conn.execute(again.values(last_at=now, reason=reason)).rowcount
            if not known:
                conn.execute(sa.delete(damage).where(damage.c.archive_key == key))
                conn.execute(damage.insert().values(archive_key=key, reason=reason, found_at=now, last_at=now))
                ids = conn.execute(sa.select(instance.c.id).where(instance.c.archive_key == key).limit(1))
                detail: Detail = {"reason": reason, "envelope_uid": _uid(key)}
                event = AuditEvent("scrub-damaged", actor, "failure", ids.scalar(), detail=detail)
                audit.append(conn, event, now)
            message = f"an archive object is not what was recorded ({reason}); `palimpsest scrub --list` names it"
            put_alert(conn, DAMAGED, "archive", message, "critical", now)
            return not known

    def damage_mended(self, key: str, source: str, actor: str) -> None:
        """The object was put back from another copy."""
        now = self.now()
        with self.write() as conn:
            mended = sa.update(damage).where(damage.c.archive_key == key, damage.c.mended_at.is_(None))
            conn.execute(mended.values(mended_at=now, mended_from=source))
            detail: Detail = {"source": source, "envelope_uid": _uid(key)}
            audit.append(conn, AuditEvent("scrub-mended", actor, detail=detail), now)

    def damage_over(self, key: str, actor: str) -> None:
        """The object was looked at and is whole: brought back by a person, or its key was."""
        if self.is_damaged(key):
            self.damage_mended(key, "found-whole", actor)

    def damages(self, open_only: bool = True, limit: int = 1000) -> list[DamageRow]:
        """Damaged objects, oldest first; those that were mended too, unless open_only."""
        query = sa.select(damage).order_by(damage.c.found_at, damage.c.archive_key).limit(limit)
        if open_only:
            query = query.where(damage.c.mended_at.is_(None))
        with self.read() as conn:
            return [DamageRow(**row) for row in conn.execute(query).mappings()]

    def is_damaged(self, key: str) -> bool:
        """Whether an archive object was found damaged and is not mended."""
        query = sa.select(damage.c.archive_key).where(damage.c.archive_key == key, damage.c.mended_at.is_(None))
        with self.read() as conn:
            return conn.execute(query).first() is not None

    def is_superseded(self, key: str) -> bool:
        """Whether the instance of an archive object has a newer one."""
        with self.read() as conn:
            return conn.execute(sa.select(superseded.c.at).where(superseded.c.archive_key == key)).first() is not None

    def superseded_of(self, instance_id: int) -> list[ArchivedObject]:
        """Older archive objects of an instance, newest first."""
        query = sa.select(superseded).where(superseded.c.instance_id == instance_id).order_by(superseded.c.at.desc())
        with self.read() as conn:
            return [ArchivedObject(row.archive_key, row.archive_digest) for row in conn.execute(query)]

    def care_report(self) -> CareReport:
        """As of now."""
        sample, whole = self.care_get("scrub-sample"), self.care_get("scrub-whole")
        total = int(whole.get("total", 0)) if not whole.get("ended") else 0
        with self.read() as conn:

            def count(table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
                return int(conn.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one())

            size = sa.select(sa.func.coalesce(sa.func.sum(superseded.c.size), 0))
            return CareReport(
                sample_at=sample.get("ended"),
                sampled=int(sample.get("checked", 0)),
                whole_at=whole.get("ended"),
                whole_part=min(1.0, int(whole["checked"]) / total) if total else None,
                damaged=count(damage, damage.c.mended_at.is_(None)),
                mended=count(damage, damage.c.mended_at.is_not(None)),
                to_recode=count(instance, instance.c.recode_at.is_not(None)),
                superseded=count(superseded),
                superseded_bytes=int(conn.execute(size).scalar_one()),
            )


def put_care(conn: Connection, name: str, value: Mapping[str, Any], now: float) -> None:
    """As `Care.care_set`, in the caller's write transaction."""
    text = json.dumps(dict(value), sort_keys=True)
    if not conn.execute(sa.update(care).where(care.c.name == name).values(value=text, at=now)).rowcount:
        conn.execute(care.insert().values(name=name, value=text, at=now))


def put_superseded(conn: Connection, instance_id: int, key: str, digest: str, size: int, now: float) -> None:
    """The instance has another archive object now; the older one stays where it is. Again: nothing happens.

    Not while the object is that of others, too: of a group.
    """
    known = conn.execute(sa.select(superseded.c.archive_key).where(superseded.c.archive_key == key)).first()
    others = sa.select(instance.c.id).where(instance.c.archive_key == key, instance.c.id != instance_id).limit(1)
    if known is None and conn.execute(others).first() is None:
        values = {"archive_key": key, "archive_digest": digest, "size": size, "instance_id": instance_id, "at": now}
        conn.execute(superseded.insert().values(**values))


def _page(key: str, limit: int) -> sa.Select[Any]:
    """The next objects in the order of their keys. Each table gives its own next ones: no key is sorted in vain."""
    parts = []
    for column, digest in _PLACES:
        part = sa.select(column.label("key"), digest.label("digest")).distinct()
        parts.append(part.where(column > key, digest.is_not(None)).order_by(column).limit(limit).subquery().select())
    found = sa.union(*parts).subquery()
    return sa.select(found.c.key, found.c.digest).order_by(found.c.key).limit(limit)


def _object(conn: Connection, key: str, digest: str) -> ArchivedObject:
    query = sa.select(instance).where(instance.c.archive_key == key).order_by(instance.c.member)
    rows: Sequence[InstanceRow] = [InstanceRow.of(row) for row in conn.execute(query).mappings()]
    return ArchivedObject(key, digest, tuple(rows))


def _uid(key: str) -> str:
    """Envelope UID of an archive key: a pseudonym."""
    return key.rpartition("/")[2].removesuffix(".dcm")
