"""The index under the admin page's list and search: instances by state, and by what a person has in hand of one.

Each question goes by an index and has a limit. A UID, digest or accession number is matched exactly and never shown.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

import sqlalchemy as sa

from gateway.archive import archive_key
from gateway.database import Database
from gateway.errors import BadUID
from gateway.index_report import PASSED
from gateway.index_rows import InstanceRow
from gateway.index_schema import attributes, forward, instance
from gateway.instance import State

__all__ = ["MOST_FOUND", "Browse"]

MOST_FOUND: Final = 200
_NUMBER: Final = re.compile(r"#?([0-9]{1,17})")
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)+")
_DIGEST: Final = re.compile(r"[0-9A-Fa-f]{64}")


class Browse(Database):
    """Lists for people."""

    def instances_page(
        self, limit: int, before: int | None = None, *, state: State | None = None, passthrough: str | None = None
    ) -> list[InstanceRow]:
        """Newest first. before: id of the last one shown; state, or the reason of a passthrough: only those."""
        c = instance.c
        query = sa.select(instance)
        if passthrough is not None:
            query = query.where(PASSED, c.reason == passthrough).order_by(c.reason.desc(), c.id.desc())
        elif state is not None:
            query = query.where(c.state == state).order_by(c.state.desc(), c.id.desc())
        else:
            query = query.order_by(c.id.desc())
        if before is not None:
            query = query.where(c.id < before)
        return self._found(query.limit(limit))

    def instances_of_study(self, instance_id: int) -> list[InstanceRow]:
        """Those of the study of an instance, newest first, MOST_FOUND at most; itself where it names no study."""
        c = instance.c
        study = sa.select(c.study_uid).where(c.id == instance_id).scalar_subquery()
        found = self._found(sa.select(instance).where(c.study_uid == study).limit(MOST_FOUND))
        found = found or self._found(sa.select(instance).where(c.id == instance_id))
        return sorted(found, key=lambda row: -row.id)

    def instances_found(self, text: str) -> list[InstanceRow]:
        """By number, SHA-256 of the received file, SOP or Study Instance UID, UID of the archive object or of what was
        sent, accession number, or its pseudonym as in de-identified copies. Newest first, MOST_FOUND at most.
        """
        text = text.strip()
        found: dict[int, InstanceRow] = {}
        for where in _asked(text):
            for row in self._found(sa.select(instance).where(where).limit(MOST_FOUND)):
                found[row.id] = row
        return sorted(found.values(), key=lambda row: -row.id)[:MOST_FOUND]

    def accession_pseudonym(self, instance_id: int) -> str | None:
        """As `set_attributes` was given it."""
        query = sa.select(instance.c.accession_pseudonym).where(instance.c.id == instance_id)
        with self.read() as conn:
            return conn.execute(query).scalar()

    def _found(self, query: sa.Select[Any]) -> list[InstanceRow]:
        with self.read() as conn:
            return [InstanceRow.of(row) for row in conn.execute(query).mappings()]


def _asked(text: str) -> list[sa.ColumnElement[bool]]:
    """One condition for each thing that the text may be."""
    c = instance.c
    asked: list[sa.ColumnElement[bool]] = []
    if not 0 < len(text) <= 64 or "\0" in text:  # PostgreSQL has no NUL in a text
        return asked
    if number := _NUMBER.fullmatch(text):
        asked.append(c.id == int(number[1]))
    if _DIGEST.fullmatch(text):
        asked.append(c.digest == text.lower())
    if _UID.fullmatch(text):
        sent = sa.select(forward.c.instance_id).where(forward.c.sent_uid == text).limit(MOST_FOUND)
        asked += [c.sop_uid == text, c.study_uid == text, c.id.in_(sent)]
        with suppress(BadUID):
            asked.append(c.archive_key == archive_key(text))
    of_accession = sa.select(attributes.c.instance_id).where(attributes.c.accession == text).limit(MOST_FOUND)
    return [*asked, c.accession_pseudonym == text, c.id.in_(of_accession)]
