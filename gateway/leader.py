"""One process of all hosts does it, the others wait: by a lock that ends with its holder, whatever becomes of its host.

PostgreSQL: an advisory lock of a session (its documentation, 13.3.5), which the server lets go of when it misses the
client, after `database.DEAD_SECONDS`. SQLite has one host only: a lock file.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from gateway.database import Database
from gateway.errors import Unavailable

__all__ = ["leading"]

ASK_SECONDS: Final = 2.0


@contextmanager
def leading(database: Database, folder: Path, name: str) -> Iterator[Callable[[], None]]:
    """Wait until nobody else leads under that name; gives a function that raises Unavailable ``lost-the-lead`` once it
    is not sure any more that nobody else does. folder: where SQLite's lock file lies.
    """
    if database.dialect == "sqlite":
        with (folder / f"{name}.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield lambda: None
        return
    number = int.from_bytes(sha256(f"palimpsest:{name}".encode()).digest()[:8], "big", signed=True)
    with database.session() as connection:
        while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(number))).scalar_one():
            time.sleep(ASK_SECONDS)

        def still() -> None:
            try:
                connection.execute(sa.text("SELECT 1"))
            except sa.exc.DBAPIError:  # the session is gone, and the lock with it
                raise Unavailable("lost-the-lead", f"another host may do the work of '{name}' by now") from None

        yield still
