"""The layer that breaks I/O on purpose breaks what it was told to, and its platter holds what fsync(2) promises."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.faultlayer import Action, Layer, Operation, Rule
from palimpsest.powerloss import after_power_loss

WRITER = """
import os, sys
def durable(path, data):
    with open(path, "wb") as file:
        file.write(data); file.flush(); os.fsync(file.fileno())
def names(folder):
    fd = os.open(folder, os.O_RDONLY); os.fsync(fd); os.close(fd)
"""


def run(layer: Layer, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", WRITER + code]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | layer.environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "platter").mkdir()
    return tmp_path / "home"


def test_rules_strike_where_and_as_often_as_they_say(home: Path, tmp_path: Path) -> None:
    with Layer(tmp_path / "control", home) as layer:
        fail = Rule("-I", Operation.FSYNC, Action.EIO, "/b", skip=1, times=1)
        full = Rule("", Operation.WRITE, Action.ENOSPC, "/full")
        other = Rule("no such program", Operation.FSYNC, Action.KILL_BEFORE)
        with layer.armed(fail, full, other) as places:
            code = """
for name in ("a", "b", "b", "b", "full"):
    try: durable(name, b"x")
    except OSError as error: print(name, error.errno)
"""
            assert run(layer, code, home).stdout.split("\n") == ["b 5", "full 28", ""]
            assert [layer.struck(place) for place in places] == [1, 1, 0]
        assert run(layer, 'durable("b", b"y"); durable("full", b"y")', home).returncode == 0
        with layer.armed(Rule("", Operation.RENAME, Action.KILL_BEFORE, "new")):
            assert run(layer, 'durable("old", b""); os.replace("old", "new")', home).returncode == -signal.SIGKILL
        assert (home / "old").exists() and not (home / "new").exists()
        with layer.armed(Rule("", Operation.RENAME, Action.KILL_AFTER, "new")):
            assert run(layer, 'os.replace("old", "new")', home).returncode == -signal.SIGKILL
        assert (home / "new").exists()


def test_clock_and_free_space_are_what_it_says(home: Path, tmp_path: Path) -> None:
    code = "import time, shutil; print(round(time.time() - os.stat('.').st_mtime), shutil.disk_usage('.').free)"
    with Layer(tmp_path / "control", home) as layer:
        layer.set_clock(-7200)
        layer.set_free_bytes(0)
        ahead, free = run(layer, "durable('now', b''); " + code, home).stdout.split()
        assert -7260 < int(ahead) < -7100 and free == "0"
        layer.set_clock(0)
        layer.set_free_bytes(None)
        ahead, free = run(layer, "durable('then', b''); " + code, home).stdout.split()
        assert abs(int(ahead)) < 60 and int(free) > 0


def test_the_platter_holds_what_was_synced_and_nothing_else(home: Path, tmp_path: Path) -> None:
    with Layer(tmp_path / "control", home, tmp_path / "platter") as layer:
        code = """
os.mkdir("kept"); os.mkdir("lost")
durable("kept/whole", b"1"); durable("kept/changed", b"old"); open("kept/empty", "wb").write(b"never synced")
os.rename("kept/whole", "kept/named"); names("kept"); names(".")
open("kept/changed", "wb").write(b"new")
durable("kept/late", b"no name"); durable("lost/file", b"2")
os.rename("kept/named", "kept/later")
"""
        assert run(layer, code, home).returncode == 0
        left = after_power_loss(tmp_path / "platter", tmp_path / "after")
        found = {path.relative_to(tmp_path / "after").as_posix() for path in (tmp_path / "after").rglob("*")}
        assert found == {"kept", "lost", "kept/named", "kept/changed", "kept/empty"}
        assert (tmp_path / "after/kept/named").read_bytes() == b"1"
        assert (tmp_path / "after/kept/changed").read_bytes() == b"old"
        assert (tmp_path / "after/kept/empty").read_bytes() == b"" and left.empty == 1
        for seed in range(8):  # a mixture has each file as one or the other
            shutil.rmtree(tmp_path / "after")
            after_power_loss(tmp_path / "platter", tmp_path / "after", now=home, seed=seed)
            assert (tmp_path / "after/kept/changed").read_bytes() in (b"old", b"new")


@pytest.mark.parametrize(("synchronous", "rows"), [("FULL", 2), ("NORMAL", 0)])
def test_a_commit_that_sqlite_did_not_sync_is_gone(home: Path, tmp_path: Path, synchronous: str, rows: int) -> None:
    """The reason for synchronous=FULL (gateway/database.py), shown."""
    with Layer(tmp_path / "control", home, tmp_path / "platter") as layer:
        code = f"""
import sqlite3
db = sqlite3.connect("db", isolation_level=None)
for each in ("journal_mode=WAL", "synchronous=FULL"): db.execute("PRAGMA " + each)
db.execute("CREATE TABLE t (n INTEGER)")
names(".")
db.execute("PRAGMA synchronous={synchronous}")
for n in (1, 2): db.execute("INSERT INTO t VALUES (?)", (n,))
os.kill(os.getpid(), 9)
"""
        assert run(layer, code, home).returncode == -signal.SIGKILL
        after_power_loss(tmp_path / "platter", tmp_path / "after")
    with sqlite3.connect(tmp_path / "after" / "db") as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (rows,)
    db.close()
