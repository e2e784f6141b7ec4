"""The index under storage commitment that others ask of us (PS3.4 J): transactions, what became of each reference, and
whether the answer was told. All of it survives a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import LeaseLost, NotFound, OutOfResources
from gateway.index_rows import CommitmentItem, CommitmentRow, InstanceRow
from gateway.index_schema import commitment, commitment_item, forward, instance
from gateway.instance import DELIVERED, CommitmentState

SCP: Final = "scp"
#: Transactions that a thread still works on.
UNTOLD: Final = (CommitmentState.WAITING, CommitmentState.READY)
References = Sequence[tuple[str, str]]


class CommitmentAsked(Database):
    """Transactions of requesters. Whoever works on one holds its lease."""

    def commitment_asked(
        self, peer: str, uid: str, references: References, owner: str, lease_seconds: float, *, most_open: int
    ) -> Literal["new", "again", "duplicate"]:
        """Record a request; on return it is durable, and leased to `owner`. references: SOP class and instance UIDs.

        again: the same request under the same UID, which, if it was answered, is answered anew. duplicate: the UID is
        in use for other references; nothing is made. Raises OutOfResources if the peer has `most_open` already.
        """
        now = self.now()
        with self.write() as conn:
            known = _by_uid(conn, peer, uid)
            if known is not None:
                return self._again(conn, known, references, now)
            untold = sa.select(sa.func.count()).where(commitment.c.peer == peer, commitment.c.state.in_(UNTOLD))
            if conn.execute(untold).scalar_one() >= most_open:
                raise OutOfResources("too-many-commitments", "this peer has too many open transactions")
            made = conn.execute(
                commitment.insert().values(
                    role=SCP, peer=peer, transaction_uid=uid, state=CommitmentState.WAITING, attempts=0,
                    created_at=now, due_at=now, lease_owner=owner, lease_until=now + lease_seconds,
                )
            )  # fmt: skip
            key = made.inserted_primary_key
            assert key is not None
            conn.execute(
                commitment_item.insert(),
                [{"commitment_id": key[0], "sop_class": each[0], "sop_uid": each[1]} for each in references],
            )
            detail: Detail = {"kind": "storage", "count": len(references)}
            audit.append(conn, AuditEvent("commitment-asked", peer, detail=detail), now)
            return "new"

    def _again(
        self, conn: Connection, known: CommitmentRow, references: References, now: float
    ) -> Literal["again", "duplicate"]:
        items = sa.select(commitment_item.c.sop_class, commitment_item.c.sop_uid)
        there = {tuple(row) for row in conn.execute(items.where(commitment_item.c.commitment_id == known.id))}
        if there != set(references):
            return "duplicate"
        if known.state not in UNTOLD:
            _ask_anew(conn, known.id, now)
        return "again"

    def commitment_due(self, owner: str, *, limit: int = 32, without: Collection[str] = ()) -> list[CommitmentRow]:
        """Transactions that have something to be done now, oldest first: nobody's, or those that `owner` holds.

        without: peers that are left out.
        """
        query = sa.select(commitment).where(_workable(owner, self.now())).order_by(commitment.c.due_at).limit(limit)
        if without:
            query = query.where(commitment.c.peer.not_in(without))
        with self.read() as conn:
            return [CommitmentRow.of(row) for row in conn.execute(query).mappings()]

    def commitment_claim(self, commitment_id: int, owner: str, lease_seconds: float) -> CommitmentRow | None:
        """Lease one of them; None if another was quicker, or there is nothing to do any more."""
        now = self.now()
        with self.write(durable=False) as conn:
            taken = conn.execute(
                sa.update(commitment)
                .where(commitment.c.id == commitment_id, _workable(owner, now))
                .values(lease_owner=owner, lease_until=now + lease_seconds)
            )
            return _fetch(conn, commitment_id) if taken.rowcount else None

    def commitment_items(self, commitment_id: int, *, undecided: bool = False) -> list[CommitmentItem]:
        """Its references in the order asked; only those without an outcome, if so wanted."""
        query = sa.select(commitment_item).where(commitment_item.c.commitment_id == commitment_id)
        if undecided:
            query = query.where(commitment_item.c.outcome.is_(None))
        with self.read() as conn:
            found = conn.execute(query.order_by(commitment_item.c.id)).mappings()
            return [CommitmentItem.of(row) for row in found]

    def commitment_evidence(self, uids: Collection[str]) -> dict[str, list[InstanceRow]]:
        """SOP Instance UID -> all that was ever received under it, versions and conflicts included."""
        found: dict[str, list[InstanceRow]] = {}
        with self.read() as conn:
            for row in conn.execute(sa.select(instance).where(instance.c.sop_uid.in_(uids))).mappings():
                found.setdefault(row["sop_uid"], []).append(InstanceRow.of(row))
        return found

    def copies_of(self, ids: Collection[int]) -> dict[int, int]:
        """Instance -> number of destinations that have it, and that committed to it where that was asked for."""
        f = forward.c
        query = sa.select(f.instance_id, sa.func.count()).where(
            f.instance_id.in_(ids), f.state.in_(DELIVERED), f.commit_due_at.is_(None)
        )
        with self.read() as conn:
            return {int(number): int(count) for number, count in conn.execute(query.group_by(f.instance_id))}

    def commitment_decide(self, commitment_id: int, owner: str, outcomes: Mapping[int, int], due_at: float) -> None:
        """Write down outcomes of items; READY once none is open, else looked at again at `due_at`. Raises LeaseLost."""
        now = self.now()
        with self.write() as conn:
            row = _owned(conn, commitment_id, owner)
            for outcome in set(outcomes.values()):
                ids = [each for each, found in outcomes.items() if found == outcome]
                conn.execute(sa.update(commitment_item).where(commitment_item.c.id.in_(ids)).values(outcome=outcome))
            still = sa.select(sa.func.count()).where(
                commitment_item.c.commitment_id == commitment_id, commitment_item.c.outcome.is_(None)
            )
            if conn.execute(still).scalar_one():
                _set(conn, commitment_id, due_at=due_at)
                return
            _set(conn, commitment_id, state=CommitmentState.READY, due_at=now)
            failed = _failed(conn, commitment_id)
            detail: Detail = {"kind": "storage", "count": failed}
            word: audit.AuditOutcome = "failure" if failed else "success"
            audit.append(conn, AuditEvent("commitment-decided", row.peer, word, detail=detail), now)

    def commitment_told(self, commitment_id: int, owner: str) -> None:
        """The requester has acknowledged the answer. Raises LeaseLost."""
        now = self.now()
        with self.write() as conn:
            row = _owned(conn, commitment_id, owner)
            _set(
                conn, commitment_id, state=CommitmentState.REPORTED, due_at=None, done_at=now, reason=None,
                attempts=row.attempts + 1, lease_owner=None, lease_until=None,
            )  # fmt: skip
            audit.append(conn, AuditEvent("commitment-told", row.peer, detail={"attempts": row.attempts + 1}), now)

    def commitment_untold(self, commitment_id: int, owner: str, reason: str, due_at: float | None) -> None:
        """It could not be told: again at `due_at`, with None not before a person says so. Raises LeaseLost."""
        with self.write() as conn:
            row = _owned(conn, commitment_id, owner)
            state = CommitmentState.DEAD if due_at is None else CommitmentState.READY
            _set(
                conn, commitment_id, state=state, due_at=due_at, reason=reason, attempts=row.attempts + 1,
                lease_owner=None, lease_until=None,
            )  # fmt: skip
            if due_at is None:
                detail: Detail = {"reason": reason, "attempts": row.attempts + 1}
                audit.append(conn, AuditEvent("commitment-untold", row.peer, "failure", detail=detail), self.now())

    def commitment_leases(self, ids: Collection[int], owner: str, lease_seconds: float | None) -> None:
        """Prolong those of these leases that `owner` holds, or, with None, give them back."""
        until = None if lease_seconds is None else self.now() + lease_seconds
        with self.write(durable=False) as conn:
            mine = sa.and_(commitment.c.id.in_(ids), commitment.c.lease_owner == owner)
            values = {"lease_until": until} if until is not None else {"lease_until": None, "lease_owner": None}
            conn.execute(sa.update(commitment).where(mine).values(**values))

    def commitment_of(self, peer: str, uid: str) -> CommitmentRow | None:
        """A requester's transaction by its UID."""
        with self.read() as conn:
            return _by_uid(conn, peer, uid)

    def commitment_replay(self, commitment_id: int, actor: str) -> CommitmentRow:
        """A person's wish: look at it again and tell the answer, now. Raises NotFound for one of no requester."""
        now = self.now()
        with self.write() as conn:
            row = _fetch(conn, commitment_id)
            if row.role != SCP:
                raise NotFound("unknown-commitment", "there is no such transaction of a requester")
            if row.state not in UNTOLD:
                _ask_anew(conn, row.id, now)
            audit.append(conn, AuditEvent("replay", actor, detail={"kind": "commitment"}), now)
            return _fetch(conn, commitment_id)

    def commitments(self, state: CommitmentState | None = None, limit: int = 1000) -> list[CommitmentRow]:
        """Transactions in both roles, newest first, with the number of references and of failures."""
        each = commitment_item.c
        counted = (
            sa.select(sa.func.count()).where(each.commitment_id == commitment.c.id).scalar_subquery().label("items"),
            sa.select(sa.func.count())
            .where(each.commitment_id == commitment.c.id, each.outcome > 0)
            .scalar_subquery()
            .label("failed"),
        )
        query = sa.select(commitment, *counted).order_by(commitment.c.id.desc()).limit(limit)
        if state is not None:
            query = query.where(commitment.c.state == state)
        with self.read() as conn:
            return [CommitmentRow.of(row) for row in conn.execute(query).mappings()]


def forget_references(conn: Connection, renamed: Mapping[str, str]) -> None:
    """Put pseudonyms in the place of SOP Instance UIDs, in the caller's write transaction."""
    query = sa.select(commitment_item.c.id, commitment_item.c.sop_uid).where(commitment_item.c.sop_uid.in_(renamed))
    for number, uid in conn.execute(query).all():
        same = commitment_item.c.id == number
        conn.execute(sa.update(commitment_item).where(same).values(sop_uid=renamed[uid]))


def _workable(owner: str, now: float) -> sa.ColumnElement[bool]:
    c = commitment.c
    free = sa.or_(c.lease_until.is_(None), c.lease_until < now, c.lease_owner == owner)
    return sa.and_(c.role == SCP, c.state.in_(UNTOLD), c.due_at <= now, free)


def _fetch(conn: Connection, commitment_id: int) -> CommitmentRow:
    row = conn.execute(sa.select(commitment).where(commitment.c.id == commitment_id)).mappings().first()
    if row is None:
        raise NotFound("unknown-commitment", "there is no such transaction")
    return CommitmentRow.of(row)


def _by_uid(conn: Connection, peer: str, uid: str) -> CommitmentRow | None:
    c = commitment.c
    query = sa.select(commitment).where(c.role == SCP, c.peer == peer, c.transaction_uid == uid)
    row = conn.execute(query).mappings().first()
    return CommitmentRow.of(row) if row is not None else None


def _owned(conn: Connection, commitment_id: int, owner: str) -> CommitmentRow:
    row = _fetch(conn, commitment_id)
    if row.lease_owner != owner or row.state not in UNTOLD:
        raise LeaseLost("lease-lost", "another process owns this transaction now")
    return row


def _failed(conn: Connection, commitment_id: int) -> int:
    query = sa.select(sa.func.count()).where(
        commitment_item.c.commitment_id == commitment_id, commitment_item.c.outcome > 0
    )
    return int(conn.execute(query).scalar_one())


def _ask_anew(conn: Connection, commitment_id: int, now: float) -> None:
    """As if it were asked for the first time now: what was safe when it was answered need not be any more."""
    theirs = commitment_item.c.commitment_id == commitment_id
    conn.execute(sa.update(commitment_item).where(theirs).values(outcome=None))
    _set(
        conn, commitment_id, state=CommitmentState.WAITING, attempts=0, created_at=now, due_at=now, reason=None,
        done_at=None,
    )  # fmt: skip


def _set(conn: Connection, commitment_id: int, **values: Any) -> None:
    conn.execute(sa.update(commitment).where(commitment.c.id == commitment_id).values(**values))
