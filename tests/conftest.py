"""What every test may lean on: no settings from outside, a place for compiled kernels, a gateway, an empty database."""

from __future__ import annotations

import os
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa

from gateway.settings import kernel_sources

ROOT = Path(__file__).resolve().parent.parent
DROP_TRIES = 12


def _kernel_cache() -> Path:
    """A folder that outlives the run, so that kernels are compiled once: in the checkout, else the temporary folder."""
    if os.access(ROOT, os.W_OK):
        return ROOT / "var" / "numba-tests" / kernel_sources()
    return Path(tempfile.gettempdir()) / f"palimpsest-numba-tests-{os.getuid()}" / kernel_sources()


os.environ.setdefault("NUMBA_CACHE_DIR", str(_kernel_cache()))  # before the first import of numba

for _name in ("NO_PROXY", "no_proxy"):  # no server of a test is asked by way of the developer's proxy
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1,localhost")))

from gateway.bootstrap import Gateway, build  # noqa: E402
from gateway.jobs import MemoryQueue  # noqa: E402
from gateway.settings import Settings, load_settings  # noqa: E402
from tests.postgres import postgres_server  # noqa: E402

# No run is red by chance: the same examples each time, and no limit on a time that a busy machine makes.
hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own PALIMPSEST_*, REDIS_URL or DATABASE_URL."""
    for name in list(os.environ):
        ours = name.startswith("PALIMPSEST_") and name != "PALIMPSEST_REQUIRE_PEERS"
        if ours or name in ("REDIS_URL", "DATABASE_URL"):
            monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Demo settings with a home of their own, and no watermark, so that a full test machine fails no test."""
    return load_settings(home=tmp_path / "home", watermark_bytes=0)


@pytest.fixture
def memory_queue() -> MemoryQueue:
    """The queue of the `gw` fixture."""
    return MemoryQueue()


@pytest.fixture
def gw(settings: Settings, memory_queue: MemoryQueue) -> Iterator[Gateway]:
    """A real gateway on SQLite and the file system; only the queue is the in-memory twin."""
    gateway = build(settings, queue=memory_queue)
    yield gateway
    gateway.close()


@pytest.fixture
def nobody_port() -> Iterator[int]:
    """A TCP port of the loopback interface that refuses: it is ours, so nobody else comes to listen there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A PostgreSQL server whose user may create databases: TEST_DATABASE_URL's, else our own, made when asked for."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database: a file, or a database made for this one test."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
    else:
        with empty_database(request.getfixturevalue("postgresql_url")) as url:
            yield url


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """URL of a new database of that PostgreSQL server, dropped when the block ends."""
    server = sa.make_url(server_url).set(drivername="postgresql+psycopg")
    name = f"palimpsest_{uuid.uuid4().hex}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(sa.text(f'CREATE DATABASE "{name}"'))
    yield server.set(database=name).render_as_string(hide_password=False)
    for left in range(DROP_TRIES - 1, -1, -1):
        try:
            with admin.connect() as conn:
                conn.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
            break
        except sa.exc.OperationalError:  # its sessions were told to end and had five seconds: few on a busy machine
            if not left:
                raise
    admin.dispose()
