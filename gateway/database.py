"""Connections and transactions: SQLite (WAL, synchronous=FULL) or PostgreSQL, one writer at a time in both.

A write transaction of SQLite is BEGIN IMMEDIATE behind a lock file: the kernel wakes the next writer at once, where
SQLite's own busy handler sleeps and can starve one of many processes. PostgreSQL takes an advisory lock for the same
order, which the audit chain needs (each event's hash covers the one before).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import IntegrityError as ConstraintError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from gateway.errors import IntegrityError, OutOfResources, PalimpsestError, PolicyRefused, Unavailable
from gateway.index_schema import HEAD

BUSY_SECONDS: Final = 30.0
#: A host that vanishes in the middle of a write keeps the writers' lock until PostgreSQL misses it: two hours by its
#: defaults, DEAD_SECONDS by these. That is less than others wait for the lock, so none of them fails.
IDLE_SECONDS, PROBE_SECONDS, PROBES = 5, 3, 3
DEAD_SECONDS: Final = IDLE_SECONDS + PROBE_SECONDS * PROBES
FROZEN_SECONDS: Final = 20  # a writer that is there and says nothing for so long loses its transaction
WRITER_LOCK: Final = 0x50414C494D50  # advisory lock of PostgreSQL: 'PALIMP'
MIGRATION_LOCK: Final = WRITER_LOCK + 1


class Database:
    """An engine that is made at the first use, and two kinds of transactions. Not shared over a fork: see `close`."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        """url: SQLAlchemy URL. Opens nothing. clock: seconds since the epoch."""
        self._url = sa.make_url(url)
        self._engine = _engine(self._url)
        self._relaxed = _engine(self._url, relaxed=True)
        self.now = clock

    @property
    def dialect(self) -> str:
        """'sqlite' or 'postgresql'."""
        return self._engine.dialect.name

    def create(self, revision: str = HEAD) -> None:
        """Bring the schema up to date (Alembic); safe to call from many processes at once.

        revision: an older one, for rows of an older release; a newer one is never gone back from. Raises PolicyRefused
        ``newer-release`` for one that this release does not know, asked for or found; Unavailable, OutOfResources.
        """
        if self.dialect == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        with _translated(), ExitStack() as stack:
            if lock := self._lock_path():  # before the first connection: switching to WAL has no busy handler
                stack.enter_context(_file_lock(lock))
                _make_private(str(self._url.database))
            if self._revision() not in (HEAD, revision):
                self._migrate(revision)

    def ping(self) -> None:
        """Raise Unavailable unless the database answers."""
        with self.read() as conn:
            conn.execute(sa.text("SELECT 1"))

    def clock_ahead(self) -> float:
        """Seconds that this host's clock is ahead of the database server's; 0 on SQLite, which has no other host."""
        if self.dialect == "sqlite":
            return 0.0
        with self.read() as conn:
            before = self.now()
            theirs = float(conn.execute(sa.text("SELECT EXTRACT(EPOCH FROM clock_timestamp())")).scalar_one())
            return (before + self.now()) / 2 - theirs

    def close(self) -> None:
        """Close all connections; the object stays usable and opens new ones."""
        self._engine.dispose()
        self._relaxed.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads: one consistent snapshot on SQLite."""
        with _translated(), self._engine.begin() as conn:
            yield conn

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one moment however long it takes."""
        options = {} if self.dialect == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        with _translated(), self._engine.connect().execution_options(**options) as conn, conn.begin():
            yield conn

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A durable transaction, alone among writers; rolled back whole if the block raises.

        durable=False: power loss (not a crash) may take it back, which saves an fsync. Only for what is repeated
        anyway: sent marks, heartbeats. The next durable commit makes it durable, too.
        """
        engine = self._engine if durable else self._relaxed
        with ExitStack() as stack:
            stack.enter_context(_translated())
            if lock := self._lock_path():
                stack.enter_context(_file_lock(lock))
                _make_private(str(self._url.database))
            conn = stack.enter_context(engine.connect().execution_options(palimpsest_write=True))
            with conn.begin():
                yield conn

    @contextmanager
    def session(self) -> Iterator[Connection]:
        """A connection of its own outside any transaction, for locks that end with the session."""
        with _translated(), self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.detach()  # never back to others, who would hold the lock without knowing
            yield conn

    def _lock_path(self) -> str | None:
        if self.dialect != "sqlite" or not self._url.database or self._url.database == ":memory:":
            return None
        return self._url.database + ".lock"

    def _revision(self) -> str | None:
        with self._engine.connect() as conn:
            if not sa.inspect(conn).has_table("alembic_version"):
                return None
            return conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

    def _migrate(self, revision: str) -> None:
        from alembic import command  # 0.3 s of import that only the first start of a release needs
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", "gateway:migrations")
        known = {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}
        for each in (revision, self._revision() or revision):
            if each not in known:
                message = f"the database is of a newer release (schema {each}; this release knows those up to {HEAD})"
                raise PolicyRefused("newer-release", f"{message}: install that one or a newer one")
        with self._engine.connect().execution_options(palimpsest_migration=True) as conn, conn.begin():
            config.attributes["connection"] = conn
            command.upgrade(config, revision)


def _engine(url: sa.URL, *, relaxed: bool = False) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=8, max_overflow=64)
        event.listen(engine, "connect", _prepare_sqlite_relaxed if relaxed else _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = sa.create_engine(url, pool_pre_ping=True, max_overflow=64, connect_args=_KEEPALIVE)
    event.listen(engine, "connect", _prepare_postgresql)
    event.listen(engine, "begin", _begin_postgresql)
    if relaxed:
        event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("SET LOCAL synchronous_commit TO OFF"))
    return engine


#: libpq: this side finds a server that vanished as fast as the server finds us (_DEAD_CLIENT).
_KEEPALIVE: Final = {
    "connect_timeout": 5,
    "keepalives_idle": IDLE_SECONDS,
    "keepalives_interval": PROBE_SECONDS,
    "keepalives_count": PROBES,
    "tcp_user_timeout": DEAD_SECONDS * 1000,
}
#: PostgreSQL 20.3.2: what its side of a TCP connection does; without effect on a unix socket, whose kernel knows.
_DEAD_CLIENT: Final = {
    "tcp_keepalives_idle": IDLE_SECONDS,
    "tcp_keepalives_interval": PROBE_SECONDS,
    "tcp_keepalives_count": PROBES,
    "tcp_user_timeout": DEAD_SECONDS * 1000,  # milliseconds
    "lock_timeout": int(BUSY_SECONDS * 1000),  # then Unavailable, as on SQLite, instead of for ever
}


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    """A server or role whose commits do not wait for its disk would make Success a promise that power loss breaks."""
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )
    for name, value in _DEAD_CLIENT.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
    connection.commit()  # a setting made in a transaction that is rolled back would be lost


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # pysqlite must not begin transactions on its own: _begin_sqlite does
    for pragma in (
        f"busy_timeout={int(BUSY_SECONDS * 1000)}",
        "journal_mode=WAL",
        "synchronous=FULL",  # WAL with NORMAL loses commits at power loss
        "foreign_keys=ON",
        "case_sensitive_like=ON",  # as PostgreSQL
        "secure_delete=ON",  # what shredding deletes must not stay in freed pages
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _prepare_sqlite_relaxed(connection: sqlite3.Connection, record: Any) -> None:
    _prepare_sqlite(connection, record)
    connection.execute("PRAGMA synchronous=NORMAL").close()


def _begin_sqlite(conn: Connection) -> None:
    options = conn.get_execution_options()
    immediate = options.get("palimpsest_write") or options.get("palimpsest_migration")
    conn.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _begin_postgresql(conn: Connection) -> None:
    options = conn.get_execution_options()
    if options.get("palimpsest_write"):
        frozen = f"set_config('idle_in_transaction_session_timeout', '{FROZEN_SECONDS * 1000}', true)"
        conn.exec_driver_sql(f"SELECT {frozen}, pg_advisory_xact_lock({WRITER_LOCK})")
    elif options.get("palimpsest_migration"):
        conn.exec_driver_sql("SET LOCAL lock_timeout TO 0")  # one migrates, the others wait for as long as it takes
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")


@contextmanager
def _file_lock(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make_private(path: str) -> None:
    """A new database file is its owner's alone: it holds names. SQLite gives its -wal and -shm the same mode.

    An existing one is never opened here: closing it would drop this process's locks on it (fcntl(2)).
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


@contextmanager
def _translated() -> Iterator[None]:
    """Driver errors become ours; their texts are dropped, for they quote parameters (patient data)."""
    try:
        yield
    except DBAPIError as error:
        raise _translate(error) from None
    except (PoolTimeout, OSError) as error:
        raise Unavailable("database-unavailable", f"the database cannot be reached ({type(error).__name__})") from None


def _translate(error: DBAPIError) -> PalimpsestError:
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL or getattr(error.orig, "sqlstate", None) == "53100":  # PostgreSQL: disk_full
        return OutOfResources("database-full", "no space left for the database")
    if "append-only" in str(error.orig):
        return IntegrityError("audit-append-only", "the audit trail cannot be changed")
    if isinstance(error, ConstraintError):
        return IntegrityError("constraint", "the database refused a row that contradicts another")
    return Unavailable("database-unavailable", f"the database did not answer ({type(error.orig).__name__})")
