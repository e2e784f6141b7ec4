"""The index under restore certificates: what was proven of which instance, and where the trail says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gateway import audit as trail
from gateway.audit import AuditEvent
from gateway.database import Database
from gateway.errors import NotFound
from gateway.index_rows import InstanceRow
from gateway.index_schema import audit, instance, proof

_PAGE = 500


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A place in the trail: number of the event and the chain's SHA-256 (hex) up to it."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Proven:
    """One instance, what is recorded of its proof, and the event of it; None: archived by an earlier release."""

    row: InstanceRow
    facts: Mapping[str, Any]
    entry: AuditEntry | None


class Certified(Database):
    """What a restore certificate states."""

    def proven_instance(self, instance_id: int) -> Proven:
        """That instance. Raises NotFound."""
        found = next(self._proven(instance.c.id == instance_id), None)
        if found is None:
            raise NotFound("unknown-instance", "there is no such instance")
        return found

    def proven_study(self, study_uid: str) -> list[Proven]:
        """Every instance that was received of a study, all versions and rejected ones too, oldest first.

        Raises NotFound.
        """
        found = list(self._proven(instance.c.study_uid == study_uid))
        if not found:
            raise NotFound("unknown-study", "there is no such study")
        return found

    def audit_entry(self, event: AuditEvent) -> AuditEntry:
        """Append one event in a transaction of its own; where it stands. Raises as `Intake.audit`."""
        with self.write() as conn:
            seq = trail.append(conn, event, self.now())
            return AuditEntry(seq, str(conn.execute(sa.select(audit.c.hash).where(audit.c.seq == seq)).scalar()))

    def _proven(self, where: sa.ColumnElement[bool]) -> Iterator[Proven]:
        with self.read() as conn:
            rows = [InstanceRow.of(row) for row in conn.execute(sa.select(instance).where(where)).mappings()]
            rows.sort(key=lambda row: row.id)
            for start in range(0, len(rows), _PAGE):
                page = rows[start : start + _PAGE]
                facts = _facts(conn, [row.id for row in page])
                entries = _entries(conn, [seq for each in facts.values() if (seq := _seq(each)) is not None])
                for row in page:
                    known = facts.get(row.id, {})
                    yield Proven(row, known, entries.get((row.id, _seq(known))))


def _seq(facts: Mapping[str, Any]) -> int | None:
    found = facts.get("verified_seq")
    return found if isinstance(found, int) else None


def _facts(conn: sa.Connection, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    query = sa.select(proof.c.instance_id, proof.c.facts).where(proof.c.instance_id.in_(ids))
    return {row.instance_id: json.loads(row.facts) for row in conn.execute(query)}


def _entries(conn: sa.Connection, seqs: Sequence[int]) -> dict[tuple[int, int | None], AuditEntry]:
    query = sa.select(audit.c.seq, audit.c.instance_id, audit.c.hash).where(
        audit.c.seq.in_(seqs), audit.c.event == "verified"
    )
    return {(row.instance_id, row.seq): AuditEntry(row.seq, row.hash) for row in conn.execute(query)}
