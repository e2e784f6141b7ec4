"""Rejection notes in the index (IHE RAD TF-2 4.66, Imaging Object Change Management): what they hide, and revoking.

A note hides the instances of its own study that it names, those that come later included. It is kept, and so are
they: in the archive, by digest, and at the destinations that have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa

from gateway import audit
from gateway.audit import AuditEvent, AuditOutcome, Detail
from gateway.database import Database
from gateway.errors import NotFound
from gateway.index_intake import fetch
from gateway.index_ledger import touch_study
from gateway.index_report import put_alert
from gateway.index_schema import rejection

__all__ = ["QUALITY", "REJECTIONS", "Rejections"]

QUALITY: Final = "113001"
#: Document titles of a rejection note (PS3.16 CID 7010, 7011), all of the coding scheme DCM.
REJECTIONS: Final = {
    QUALITY: "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
REFUSED: Final = "A rejection note came from a system that may not hide images (rejection_ae_allow); they stay visible."
HIDDEN: Final = "A rejection note hides images; GET /api/rejections names them, and it can be revoked there."


class Rejections(Database):
    """What was rejected, by which note."""

    def rejection_add(
        self,
        note_id: int,
        code: str,
        named: Sequence[tuple[str, str]],
        *,
        quality: Literal["hide", "show"],
        allowed: bool = True,
    ) -> int:
        """Record a rejection note that was received; how many instances it names that were not recorded under it yet.

        named: (Study Instance UID, SOP Instance UID); one that names the note itself is left out. quality: whether
        what was rejected for quality reasons only is hidden. allowed: whether its sender may hide images; if not, the
        note is kept as what it is, an object, and hides nothing. Either way there is an alert.
        """
        now = self.now()
        hidden = allowed and (code != QUALITY or quality == "hide")
        with self.write() as conn:
            note = fetch(conn, note_id)
            have = sa.select(rejection.c.sop_uid).where(rejection.c.note_id == note_id)
            known = {*conn.execute(have).scalars(), note.sop_uid}
            new = {uid: study for study, uid in named if uid not in known}
            if not new:
                return 0
            values = {"note_id": note_id, "code": code, "hidden": hidden, "created_at": now}
            conn.execute(rejection.insert(), [{**values, "sop_uid": uid, "study_uid": of} for uid, of in new.items()])
            for each in set(new.values()):
                touch_study(conn, each)
            detail: Detail = {"kind": code, "count": len(new), "outcome": "hidden" if hidden else "shown"}
            outcome: AuditOutcome = "success" if allowed else "refused"
            audit.append(conn, AuditEvent("rejected", note.calling_ae, outcome, note_id, detail=detail), now)
            if hidden or not allowed:
                kind, text = ("images-hidden", HIDDEN) if hidden else ("rejection-refused", REFUSED)
                put_alert(conn, kind, f"instance {note_id}", text, "warning", now)
            return len(new)

    def rejection_revoke(self, note_id: int, actor: str) -> int:
        """Show again what a note hid, unless another hides it, too; how many. Raises NotFound if it hides nothing."""
        now = self.now()
        mine = sa.and_(rejection.c.note_id == note_id, rejection.c.revoked_at.is_(None))
        with self.write() as conn:
            for uid in conn.execute(sa.select(rejection.c.study_uid).where(mine).distinct()).scalars().all():
                touch_study(conn, uid)
            values = {"hidden": False, "revoked_at": now, "revoked_by": actor[:64]}
            count = int(conn.execute(sa.update(rejection).where(mine).values(**values)).rowcount)
            if not count:
                raise NotFound("unknown-rejection", "no rejection note of that id is in force")
            detail: Detail = {"kind": "revoked", "count": count}
            audit.append(conn, AuditEvent("rejected", actor, instance_id=note_id, detail=detail), now)
            return count

    def rejections(self, limit: int = 200) -> list[dict[str, Any]]:
        """Notes, newest first: id, code, study, how many they name and hide, when, and by whom they were revoked."""
        c = rejection.c
        query = (
            sa.select(
                c.note_id.label("id"),
                c.code,
                sa.func.min(c.study_uid).label("study_uid"),
                sa.func.count().label("instances"),
                sa.func.sum(sa.case((c.hidden, 1), else_=0)).label("hidden"),
                sa.func.min(c.created_at).label("created_at"),
                sa.func.max(c.revoked_at).label("revoked_at"),
                sa.func.max(c.revoked_by).label("revoked_by"),
            )
            .group_by(c.note_id, c.code)
            .order_by(c.note_id.desc())
            .limit(limit)
        )
        with self.read() as conn:
            rows = [dict(row) for row in conn.execute(query).mappings()]
        return [{**row, "title": REJECTIONS[row["code"]], "hidden": int(row["hidden"])} for row in rows]
