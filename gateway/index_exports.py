"""The index of viewable stego objects: committed before anything is sent, so that a retry sends the same object."""

from __future__ import annotations

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import IntegrityError, NotFound
from gateway.index_rows import StegoExport
from gateway.index_schema import stego_export


class Exports(Database):
    """One row per instance, destination and mode; what it names is never changed once it was made."""

    def export_begin(
        self, instance_id: int, destination: str, mode: str, *, object_id: str, wraps: Sequence[str]
    ) -> StegoExport:
        """Commit the secrets of a new object; those of an earlier try win, so that all tries make the same object.

        object_id: 32 hex digits; wraps: the data key's wraps in hex, in the object's order.
        """
        with self.write() as conn:
            known = _find(conn, instance_id, destination, mode)
            if known is not None:
                return known
            conn.execute(
                stego_export.insert().values(
                    instance_id=instance_id, destination=destination, mode=mode, object_id=object_id,
                    wraps=json.dumps(list(wraps)), created_at=self.now(),
                )
            )  # fmt: skip
            made = _find(conn, instance_id, destination, mode)
            assert made is not None  # inserted above, in this transaction
            return made

    def export_made(
        self,
        export_id: int,
        actor: str,
        *,
        stego_uid: str,
        digest: str,
        pixel_digest: str,
        record_key: str | None,
        record_digest: str | None,
        record_size: int | None = None,
        key_ids: Sequence[str] = (),
    ) -> StegoExport:
        """The object was made and proven, and what restores it is in the archive: now it may be sent.

        key_ids: of the keys that were used, for the audit.
        A repetition must bring the same values. Raises IntegrityError ``stego-export-differs``, NotFound.
        """
        values = {
            "stego_uid": stego_uid, "digest": digest, "pixel_digest": pixel_digest, "record_key": record_key,
            "record_digest": record_digest, "record_size": record_size,
        }  # fmt: skip
        with self.write() as conn:
            row = _fetch(conn, export_id)
            if row.digest is not None:
                if any(getattr(row, name) != value for name, value in values.items()):
                    raise IntegrityError("stego-export-differs", "a retry made another object than was recorded")
                return row
            conn.execute(sa.update(stego_export).where(stego_export.c.id == export_id).values(**values))
            detail: Detail = {"destination": row.destination, "representation": row.mode, "key_id": " ".join(key_ids)}
            audit.append(conn, AuditEvent("stego-made", actor, instance_id=row.instance_id, detail=detail), self.now())
            return _fetch(conn, export_id)

    def export_drop(self, export_id: int) -> None:
        """Forget an object that was never recorded as made (the image cannot carry): it never left the house."""
        with self.write() as conn:
            unmade = stego_export.c.digest.is_(None)
            conn.execute(sa.delete(stego_export).where(stego_export.c.id == export_id, unmade))

    def exports(
        self,
        *,
        instance_id: int | None = None,
        object_id: str | None = None,
        stego_uid: str | None = None,
        pixel_digest: str | None = None,
    ) -> list[StegoExport]:
        """Exports of an instance, with an object id, a SOP Instance UID or a pixel digest; newest first."""
        named = {
            "instance_id": instance_id, "object_id": object_id, "stego_uid": stego_uid, "pixel_digest": pixel_digest,
        }  # fmt: skip
        query = sa.select(stego_export).order_by(stego_export.c.id.desc())
        for name, value in named.items():
            if value is not None:
                query = query.where(stego_export.c[name] == value)
        with self.read() as conn:
            return [StegoExport.of(row) for row in conn.execute(query).mappings()]


def _find(conn: Connection, instance_id: int, destination: str, mode: str) -> StegoExport | None:
    row = (
        conn.execute(
            sa.select(stego_export).where(
                stego_export.c.instance_id == instance_id,
                stego_export.c.destination == destination,
                stego_export.c.mode == mode,
            )
        )
        .mappings()
        .first()
    )
    return StegoExport.of(row) if row is not None else None


def _fetch(conn: Connection, export_id: int) -> StegoExport:
    row = conn.execute(sa.select(stego_export).where(stego_export.c.id == export_id)).mappings().first()
    if row is None:
        raise NotFound("unknown-export", "there is no such stego object")
    return StegoExport.of(row)
