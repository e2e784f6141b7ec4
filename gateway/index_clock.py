"""Times that a clock wrote which was ahead: nothing may wait for days because a clock was wrong for a minute.

Rows say when they are due or to be coded anew, until when they are leased and when they were last sent to the queue. A
clock that jumped ahead and came back leaves such times in a future that no rule of ours reaches; they are pulled back
to now.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from gateway.database import Database
from gateway.index_recode import RECODE_LONGEST
from gateway.index_schema import forward, instance
from gateway.instance import UNFINISHED, ForwardState

LONGEST_WAIT: Final = 1900.0  # seconds; worker/pipeline.py and worker/delivery.py wait half an hour after a failure


class Clocks(Database):
    """Clocks of hosts are set by people, and set back."""

    def times_pulled_back(self, lease_seconds: float) -> int:
        """Bring times that lie further ahead than any rule puts them to now; returns how many rows had one.

        lease_seconds: what leases are given for; a live holder prolongs its own with its next beat.
        """
        now, pulled = self.now(), 0
        soon = now + 2 * lease_seconds
        for table, waiting, error in (
            (
                instance,
                sa.or_(
                    instance.c.state.in_(UNFINISHED), instance.c.indexed_at.is_(None), instance.c.recode_at.is_not(None)
                ),
                instance.c.last_error,
            ),
            (forward, forward.c.state == ForwardState.WAITING, forward.c.reason),
        ):
            due = table.c.due_at
            ahead: tuple[tuple[sa.Column[Any], ColumnElement[bool], float], ...] = (
                (due, sa.or_(due > now + LONGEST_WAIT, sa.and_(due > soon, error.is_(None))), now),
                (table.c.lease_until, table.c.lease_until > soon, now + lease_seconds),
                (table.c.queued_at, table.c.queued_at > soon, now),
            )
            if table is instance:
                ahead += ((instance.c.recode_at, instance.c.recode_at > soon + RECODE_LONGEST, now),)
            late: ColumnElement[bool] = sa.or_(*(beyond for _, beyond, _ in ahead))
            with self.read() as conn:
                found = conn.execute(sa.select(table.c.id).where(waiting, late)).scalars().all()
            if not found:
                continue
            with self.write() as conn:
                for column, beyond, value in ahead:
                    conn.execute(sa.update(table).where(table.c.id.in_(found), beyond).values({column.name: value}))
            pulled += len(found)
        return pulled
