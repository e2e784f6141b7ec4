"""The index under storage commitment that we ask of destinations (PS3.4 J): only their answer makes one COMMITTED."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, RowMapping

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.index_report import put_alert
from gateway.index_rows import ForwardRow
from gateway.index_schema import commitment, commitment_item, forward
from gateway.instance import CommitmentState, ForwardState

SCU: Final = "scu"
SUCCESS: Final = 0
UNANSWERED: Final = 0xFFFF
"""Outcome of a reference on which a complete answer says nothing; no Failure Reason (0008,1197) has this value."""
#: Failure Reasons (PS3.3 C.14.1.1) that storing the object again may heal; others are for a person.
SEND_AGAIN: Final = {
    0x0110: "peer-processing-failure",
    0x0112: "peer-has-no-such-object",
    0x0213: "peer-resource-limitation",
}
ASK_AGAIN: Final = {0x0131: "duplicate-transaction", UNANSWERED: "peer-said-nothing"}
FOR_A_PERSON: Final = {0x0119: "peer-class-conflict", 0x0122: "peer-class-not-supported"}
GIVE_UP_AT_ONCE: Final = 500
Reference = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Asking:
    """A transaction to be asked for. references: SOP class and instance UIDs, each once."""

    id: int
    uid: str
    references: tuple[Reference, ...]


class CommitmentWanted(Database):
    """Forwards that were sent to a destination whose word is wanted: `commit_due_at` says when to ask."""

    def commitment_open(
        self, destination: str, uid: str, *, limit: int, answer_seconds: float, most: int
    ) -> Asking | None:
        """Begin a transaction over what is due at a destination, before it is asked for; None if nothing is.

        Each has so many seconds to be answered, then it is due again; after `most` askings it becomes a dead letter.
        """
        now = self.now()
        due = sa.and_(
            forward.c.destination == destination, forward.c.state == ForwardState.SENT, forward.c.commit_due_at <= now
        )
        with self.write() as conn:
            _give_up(conn, sa.and_(due, forward.c.commit_attempts >= most), now, "uncommitted-no-answer")
            query = sa.select(forward).where(due).order_by(forward.c.id).limit(limit)
            rows = [ForwardRow.of(row) for row in conn.execute(query).mappings()]
            if not rows:
                return None
            made = conn.execute(
                commitment.insert().values(
                    role=SCU, peer=destination, transaction_uid=uid, state=CommitmentState.ASKED, attempts=1,
                    created_at=now, due_at=now + answer_seconds,
                )
            )  # fmt: skip
            key = made.inserted_primary_key
            assert key is not None
            conn.execute(
                commitment_item.insert(),
                [
                    {"commitment_id": key[0], "sop_class": r.sent_class, "sop_uid": r.sent_uid, "forward_id": r.id}
                    for r in rows
                ],
            )
            conn.execute(
                sa.update(forward)
                .where(forward.c.id.in_([row.id for row in rows]))
                .values(commit_due_at=now + answer_seconds, commit_attempts=forward.c.commit_attempts + 1, reason=None)
            )
            detail: Detail = {"destination": destination, "count": len(rows)}
            audit.append(conn, AuditEvent("commitment-wanted", "forwarder", detail=detail), now)
            references = dict.fromkeys((str(row.sent_class), str(row.sent_uid)) for row in rows)
            return Asking(int(key[0]), uid, tuple(references))

    def commitment_refused(self, commitment_id: int, reason: str, due_at: float, *, asked: bool = True) -> None:
        """The request did not get through: its objects are asked for again at `due_at`.

        asked=False: the destination did not hear it, and the asking does not count.
        """
        now = self.now()
        with self.write() as conn:
            conn.execute(
                sa.update(commitment)
                .where(commitment.c.id == commitment_id, commitment.c.state == CommitmentState.ASKED)
                .values(state=CommitmentState.REFUSED, reason=reason, due_at=None, done_at=now)
            )
            theirs = sa.select(commitment_item.c.forward_id).where(commitment_item.c.commitment_id == commitment_id)
            conn.execute(
                sa.update(forward)
                .where(forward.c.id.in_(theirs), forward.c.state == ForwardState.SENT)
                .values(
                    commit_due_at=due_at,
                    reason=f"uncommitted-{reason}"[:64],
                    commit_attempts=forward.c.commit_attempts - (0 if asked else 1),
                )
            )

    def commitment_answered(
        self,
        peers: Collection[str],
        uid: str,
        kept: Collection[Reference],
        failed: Mapping[Reference, int],
        *,
        most: int,
    ) -> bool:
        """A destination's answer. False, and nothing is changed, for a transaction that none of these was asked for.

        peers: names of the destinations that the answering AE title is. kept, failed: by SOP class and instance UID;
        failed with the Failure Reason. most: askings after which nothing is sent again. The same answer again changes
        nothing.
        """
        now, c = self.now(), commitment.c
        wanted = sa.select(c.id, c.state, c.peer).where(c.role == SCU, c.transaction_uid == uid, c.peer.in_(peers))
        with self.write() as conn:
            known = conn.execute(wanted).first()
            if known is None:
                return False
            if known.state == CommitmentState.ANSWERED:
                return True
            counts = {True: 0, False: 0}
            items = sa.select(commitment_item).where(commitment_item.c.commitment_id == known.id)
            for item in conn.execute(items).mappings().all():
                reference = (item["sop_class"], item["sop_uid"])
                outcome = failed.get(reference, SUCCESS if reference in kept else UNANSWERED)
                counts[outcome == SUCCESS] += 1
                same = commitment_item.c.id == item["id"]
                conn.execute(sa.update(commitment_item).where(same).values(outcome=outcome))
                _settle(conn, item["forward_id"], reference, outcome, now, most)
            conn.execute(
                sa.update(commitment)
                .where(c.id == known.id)
                .values(state=CommitmentState.ANSWERED, due_at=None, done_at=now)
            )
            detail: Detail = {"destination": known.peer, "count": counts[False]}
            word: audit.AuditOutcome = "failure" if counts[False] else "success"
            audit.append(conn, AuditEvent("commitment-answered", known.peer, word, detail=detail), now)
            return True

    def commitments_expired(self) -> list[str]:
        """Close transactions that were not answered in time; names of their destinations. Their forwards are due."""
        now, c = self.now(), commitment.c
        late = sa.and_(c.role == SCU, c.state == CommitmentState.ASKED, c.due_at <= now)
        with self.read() as conn:
            if conn.execute(sa.select(c.id).where(late).limit(1)).first() is None:
                return []
        with self.write() as conn:
            peers = list(conn.execute(sa.select(c.peer).where(late).distinct()).scalars())
            values = {"state": CommitmentState.EXPIRED, "due_at": None, "reason": "no-answer", "done_at": now}
            conn.execute(sa.update(commitment).where(late).values(**values))
            return peers

    def commitments_to_ask(self, quiet_seconds: float) -> dict[str, int]:
        """Destination -> one of its forwards, where commitment is due and the queue was not told for that long."""
        now, f = self.now(), forward.c
        query = (
            sa.select(f.destination, sa.func.max(f.id))
            .where(f.state == ForwardState.SENT, f.commit_due_at <= now)
            .group_by(f.destination)
            .having(sa.func.coalesce(sa.func.max(f.queued_at), 0.0) <= now - quiet_seconds)
        )
        with self.read() as conn:
            return {str(name): int(number) for name, number in conn.execute(query)}

    def commitment_since(self, destination: str) -> float | None:
        """When the oldest object was sent on which a destination's word is still wanted."""
        wanted = sa.and_(
            forward.c.destination == destination, forward.c.state == ForwardState.SENT,
            forward.c.commit_due_at.is_not(None),
        )  # fmt: skip
        with self.read() as conn:
            return conn.execute(sa.select(sa.func.min(forward.c.sent_at)).where(wanted)).scalar()

    def commitment_waive(self, destination: str) -> int:
        """The destination is not asked for its word any more: what it was sent counts as it is. Returns how many."""
        with self.write() as conn:
            theirs = sa.and_(
                forward.c.destination == destination, forward.c.state == ForwardState.SENT,
                forward.c.commit_due_at.is_not(None),
            )  # fmt: skip
            count = conn.execute(sa.update(forward).where(theirs).values(commit_due_at=None, reason=None)).rowcount
            if count:
                detail: Detail = {"destination": destination, "count": count}
                audit.append(conn, AuditEvent("commitment-waived", "sweep", detail=detail), self.now())
            return int(count)

    def commitment_abandon(self, destination: str) -> int:
        """The destination is gone from the settings: dead letters, to be replayed once it is back."""
        now = self.now()
        with self.write() as conn:
            theirs = sa.and_(
                forward.c.destination == destination, forward.c.state == ForwardState.SENT,
                forward.c.commit_due_at.is_not(None),
            )  # fmt: skip
            return _give_up(conn, theirs, now, "unknown-destination")


def _settle(conn: Connection, forward_id: int, reference: Reference, outcome: int, now: float, most: int) -> None:
    """One forward's part of an answer; one that was sent anew, or as something else, meanwhile is left alone."""
    row = conn.execute(sa.select(forward).where(forward.c.id == forward_id)).mappings().first()
    if row is None or row["state"] != ForwardState.SENT or row["commit_due_at"] is None:
        return
    if (row["sent_class"], row["sent_uid"]) != reference:
        return
    if outcome == SUCCESS:
        values: dict[str, Any] = {"state": ForwardState.COMMITTED, "commit_due_at": None, "proof": "committed"}
        detail: Detail = {"destination": row["destination"], "forward_id": forward_id}
        event = AuditEvent("committed", row["destination"], "success", row["instance_id"], detail=detail)
        conn.execute(sa.update(forward).where(forward.c.id == forward_id).values(**values, reason=None))
        audit.append(conn, event, now)
        return
    why = SEND_AGAIN.get(outcome) or ASK_AGAIN.get(outcome) or FOR_A_PERSON.get(outcome) or f"reason-{outcome:04x}"
    pause = now + 2.0 ** min(row["commit_attempts"], 10)
    if outcome in ASK_AGAIN:
        values = {"commit_due_at": pause}
    elif outcome in SEND_AGAIN and row["commit_attempts"] < most:
        values = {"state": ForwardState.WAITING, "due_at": pause, "queued_at": None, "commit_due_at": None}
    else:
        _bury(conn, row, f"uncommitted-{why}", now)
        return
    conn.execute(sa.update(forward).where(forward.c.id == forward_id).values(**values, reason=f"uncommitted-{why}"))
    detail = {"destination": row["destination"], "reason": why, "forward_id": forward_id}
    event = AuditEvent("commitment-failed", row["destination"], "failure", row["instance_id"], detail=detail)
    audit.append(conn, event, now)


def _give_up(conn: Connection, where: sa.ColumnElement[bool], now: float, reason: str) -> int:
    """Dead letters, a bounded number at a time; the reason counts where the row has none of its own."""
    rows = conn.execute(sa.select(forward).where(where).limit(GIVE_UP_AT_ONCE)).mappings().all()
    for row in rows:
        _bury(conn, row, row["reason"] or reason, now)
    return len(rows)


def _bury(conn: Connection, row: RowMapping, reason: str, now: float) -> None:
    values = {"state": ForwardState.DEAD, "commit_due_at": None, "due_at": None, "reason": reason[:64]}
    conn.execute(sa.update(forward).where(forward.c.id == row["id"]).values(**values))
    detail: Detail = {"destination": row["destination"], "attempts": row["commit_attempts"], "reason": reason[:64]}
    audit.append(conn, AuditEvent("dead-letter", "forwarder", "failure", row["instance_id"], detail=detail), now)
    message = f"{row['destination']} did not commit to objects that it was sent ({reason}); they wait for a replay"
    put_alert(conn, "dead-letter", row["destination"], message, "warning", now)
