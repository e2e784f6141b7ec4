"""What only a database of several hosts can suffer: a writer that is stopped, or gone, and everybody waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway import database
from gateway.database import Database
from gateway.errors import Unavailable
from gateway.leader import leading
from tests.conftest import empty_database

#: of this database: the server is other tests' too, which hold such locks meanwhile
LEADERS_END = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
def url(postgresql_url: str) -> Iterator[str]:
    with empty_database(postgresql_url) as made:
        yield made


def test_a_writer_that_says_nothing_loses_its_transaction_and_the_next_one_writes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, other = Database(url), Database(url)
    with other.write() as conn:
        conn.execute(sa.text("CREATE TABLE mark (n integer)"))
    usual = database.FROZEN_SECONDS
    monkeypatch.setattr(database, "FROZEN_SECONDS", 2)  # for the one that says nothing, not for the other
    held, wrote = threading.Event(), threading.Event()
    seen: list[str] = []

    def stopped() -> None:
        try:
            with frozen.write() as conn:
                conn.execute(sa.text("INSERT INTO mark VALUES (1)"))
                held.set()
                wrote.wait(60)
                conn.execute(sa.text("INSERT INTO mark VALUES (1)"))
        except Unavailable as error:
            seen.append(error.reason)

    thread = threading.Thread(target=stopped)
    thread.start()
    assert held.wait(60)
    monkeypatch.setattr(database, "FROZEN_SECONDS", usual)
    with other.write() as conn:  # waits for the lock until PostgreSQL takes it from the other
        conn.execute(sa.text("INSERT INTO mark VALUES (2)"))
    wrote.set()
    thread.join()
    with other.read() as conn:
        assert conn.execute(sa.text("SELECT n FROM mark")).scalars().all() == [2]
    assert seen == ["database-unavailable"]
    frozen.close()
    other.close()


def test_nobody_waits_for_the_writers_lock_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(database._DEAD_CLIENT, "lock_timeout", 200)
    first, second = Database(url), Database(url)
    with first.write(), pytest.raises(Unavailable), second.write():
        pass
    with second.write():
        pass
    first.close()
    second.close()


def test_both_sides_of_a_connection_look_for_one_that_vanished(postgresql_url: str) -> None:
    """The settings are what PostgreSQL takes; on a unix socket, as here, it reports those of TCP as 0."""
    made = Database(sa.make_url(postgresql_url).set(drivername="postgresql+psycopg").render_as_string(False))
    with made.read() as conn:
        assert conn.execute(sa.text("SHOW lock_timeout")).scalar() == "30s"
        raw = conn.connection.driver_connection
        assert raw is not None
        parameters = raw.info.get_parameters()
    assert {name: int(parameters[name]) for name in database._KEEPALIVE} == database._KEEPALIVE
    assert database.DEAD_SECONDS < database.FROZEN_SECONDS < database.BUSY_SECONDS
    made.close()


def test_one_leads_and_the_next_one_when_its_session_ends(url: str, tmp_path: Path) -> None:
    first, second, seen = Database(url), Database(url), queue.SimpleQueue[str]()
    done = threading.Event()

    def wait() -> None:
        with leading(second, tmp_path, "sweep") as still:
            seen.put("second")
            still()
            done.wait(60)

    thread = threading.Thread(target=wait)
    with leading(first, tmp_path, "sweep") as still, leading(first, tmp_path, "other work"):
        still()
        thread.start()
        with pytest.raises(queue.Empty):
            seen.get(timeout=0.3)
        with second.read() as conn:
            conn.execute(sa.text(LEADERS_END))
        assert seen.get(timeout=60) == "second"
        with pytest.raises(Unavailable, match="another host"):
            still()
    done.set()
    thread.join()
    first.close()
    second.close()


def test_a_clock_that_differs_is_known(url: str) -> None:
    right, wrong = Database(url), Database(url, clock=lambda: time.time() + 60)
    assert abs(right.clock_ahead()) < 5 and 55 < wrong.clock_ahead() < 65
    right.close()
    wrong.close()
