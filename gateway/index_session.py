"""Sessions of browsers: in the database, so that signing out ends one at once, in every process of the service.

Only the SHA-256 of what the cookie holds is kept: who reads the database cannot use a session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import sqlalchemy as sa
from sqlalchemy import Column, Double, Index, String, Table, Text

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.index_schema import metadata

__all__ = ["SessionRow", "Sessions", "session", "session_id"]

#: id: `session_id` of what the cookie holds; hint: ID token, for signing out at the provider.
session = Table(
    "session",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("subject", String(64), nullable=False),
    Column("roles", String(64), nullable=False),
    Column("issuer", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Index("ix_session_expires", "expires_at"),
)

#: A session is marked as used at most so often: a viewer reads many times a second.
SEEN_EVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SessionRow:
    """Who signed in, in which roles, by whose word; times in seconds since the epoch."""

    subject: str
    roles: tuple[str, ...]
    issuer: str
    created_at: float
    seen_at: float
    expires_at: float


def session_id(cookie: str) -> str:
    """What a session is kept under."""
    return sha256(cookie.encode()).hexdigest()


class Sessions(Database):
    """Made at sign-in, looked up at each request, ended by signing out, by time, or by an administrator."""

    def session_begin(
        self, cookie: str, subject: str, roles: Sequence[str], issuer: str, *, seconds: float, hint: str, address: str
    ) -> None:
        """A new session; those whose time is over go with it. seconds: it lives; address: of the browser."""
        now = self.now()
        values = {"subject": subject, "roles": ",".join(sorted(roles)), "issuer": issuer, "hint": hint}
        times = {"created_at": now, "seen_at": now, "expires_at": now + seconds}
        event = AuditEvent("login", subject, detail={"role": values["roles"], "address": address})
        with self.write() as conn:
            conn.execute(sa.delete(session).where(session.c.expires_at <= now))
            conn.execute(session.insert().values(id=session_id(cookie), **values, **times))
            audit.append(conn, event, now)

    def session_of(self, cookie: str, idle_seconds: float, *, used: bool = True) -> SessionRow | None:
        """The session, unless its time is over or it was not used for `idle_seconds`; now it was, if `used`."""
        now, key = self.now(), session_id(cookie)
        c = session.c
        query = sa.select(c.subject, c.roles, c.issuer, c.created_at, c.seen_at, c.expires_at)
        with self.read() as conn:
            row = conn.execute(query.where(c.id == key)).first()
        if row is None or row.expires_at <= now or row.seen_at + idle_seconds <= now:
            return None
        if used and row.seen_at + min(SEEN_EVERY_SECONDS, idle_seconds / 4) <= now:
            with self.write(durable=False) as conn:
                conn.execute(sa.update(session).where(c.id == key).values(seen_at=now))
        return SessionRow(
            row.subject, tuple(row.roles.split(",")), row.issuer, row.created_at, row.seen_at, row.expires_at
        )

    def session_end(self, cookie: str) -> str:
        """Signed out; the ID token that it began with, '' without one or without such a session."""
        key = session_id(cookie)
        with self.write() as conn:
            row = conn.execute(sa.select(session.c.subject, session.c.hint).where(session.c.id == key)).first()
            if row is None:
                return ""
            conn.execute(sa.delete(session).where(session.c.id == key))
            audit.append(conn, AuditEvent("logout", row.subject), self.now())
            return str(row.hint)

    def sessions_end(self, subject: str | None, actor: str) -> int:
        """End all sessions of `subject`, or of everybody; how many there were."""
        with self.write() as conn:
            where = session.c.subject == subject if subject is not None else sa.true()
            count = int(conn.execute(sa.delete(session).where(where)).rowcount)
            detail: Detail = {"count": count, "kind": "sessions-ended"}
            audit.append(conn, AuditEvent("logout", actor, detail=detail), self.now())
            return count

    def sessions(self) -> list[SessionRow]:
        """Those whose time is not over, newest first."""
        c = session.c
        query = sa.select(c.subject, c.roles, c.issuer, c.created_at, c.seen_at, c.expires_at)
        with self.read() as conn:
            rows = conn.execute(query.where(c.expires_at > self.now()).order_by(c.created_at.desc())).all()
        return [SessionRow(r.subject, tuple(r.roles.split(",")), *r[2:]) for r in rows]
