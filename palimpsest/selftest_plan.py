"""What `palimpsest selftest` breaks, in which order: the full plan, and the short one that fits into a test run."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Final, Protocol

import redis

from gateway.database import Database
from palimpsest.faultlayer import Action, Operation, Rule
from palimpsest.faultproxy import Fault as Cut
from palimpsest.faultproxy import FaultProxy, In
from palimpsest.selftest_gateway import ROLES, NotRunning, UnderTest
from palimpsest.supervisor import environment

__all__ = ["Break", "Site", "calm_plan", "full_plan", "power_plan", "short_plan"]

STRIKE_SECONDS: Final = 120.0  # that a fault is waited for: work must come by first
CUT_SECONDS: Final = 20.0
WAL: Final = "palimpsest.db-wal"
LONGER_THAN_BUSY: Final = 33.0  # gateway/database.py waits 30 s for SQLite's lock
HOUR: Final = 3600
SMALL_DISK: Final = 8 << 30  # bytes

#: role -> (operation, path, words): the steps of its walk at which something becomes durable or known to others
STEPS: Final[dict[str, tuple[tuple[Operation, str, str], ...]]] = {
    "listener": (
        (Operation.FSYNC, "/incoming/", "fsync of the file"),
        (Operation.RENAME, "/spool/", "rename into the spool"),
        (Operation.FOLDER, "/spool/", "fsync of the folder"),
        (Operation.FSYNC, WAL, "commit"),
        (Operation.SEND, "socket:", "C-STORE response"),
    ),
    "api": (
        (Operation.FSYNC, "/incoming/", "fsync of the file"),
        (Operation.RENAME, "/spool/", "rename into the spool"),
        (Operation.FOLDER, "/spool/", "fsync of the folder"),
        (Operation.FSYNC, WAL, "commit"),
        (Operation.SEND, "socket:", "answer"),
    ),
    "index worker": ((Operation.FSYNC, WAL, "commit"),),
    "encode worker": (
        (Operation.FSYNC, WAL, "commit"),
        (Operation.FSYNC, "/candidates/", "fsync of the candidate"),
        (Operation.RENAME, "/candidates/", "rename of the candidate"),
        (Operation.FOLDER, "/candidates/", "fsync of the candidates' folder"),
        (Operation.FSYNC, "/archive/", "fsync in the archive"),
        (Operation.FOLDER, "/archive/", "fsync of the archive's folder"),
        (Operation.UNLINK, "/candidates/", "removal of the candidate"),
    ),
    "verifier": ((Operation.WRITE, "pipe:", "answer"),),
    "retrieve worker": ((Operation.RENAME, "/cache/", "rename into the cache"),),
    "forward worker": (
        (Operation.FSYNC, "/nas/", "fsync at the destination"),
        (Operation.RENAME, "/nas/", "rename at the destination"),
        (Operation.SEND, "socket:", "C-STORE request"),
        (Operation.FSYNC, WAL, "commit"),
    ),
    "sweep": ((Operation.UNLINK, "/spool/", "release of the spool's copy"), (Operation.FSYNC, WAL, "commit")),
    "broker": ((Operation.WRITE, "", "write"),),
}  # fmt: skip
COMMITS: Final = {"encode worker": 8, "forward worker": 4, "sweep": 2}  # struck one after the other; 1 elsewhere
FAILING: Final = ("listener", "api", "index worker", "encode worker", "retrieve worker", "forward worker", "sweep")


class Site(Protocol):
    """Where a fault happens: the gateway under test, and work that goes on meanwhile."""

    under: UnderTest

    def work_until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Keep everything going, and sending; False if the condition never came true."""

    def pause(self, seconds: float) -> None:
        """The same for so long."""


@dataclass(frozen=True, slots=True)
class Break:
    """One thing that is broken. act: how often it struck, 0 if it did not; None: cannot be done here."""

    group: str
    name: str
    act: Callable[[Site], int | None]


# --- what is done ---


def _rules(rules: Sequence[Rule], site: Site) -> int:
    """Rules that strike as often as they say."""
    with site.under.layer.armed(*rules) as places:
        wanted = [rule.times for rule in rules]

        def struck() -> list[int]:
            return [site.under.layer.struck(place) for place in places]

        site.work_until(lambda: struck() == wanted, STRIKE_SECONDS)
        return sum(struck())


def _window(rules: Sequence[Rule], seconds: float, site: Site) -> int:
    """Rules that strike whatever comes by for some seconds."""
    with site.under.layer.armed(*rules) as places:
        site.pause(seconds)
        return sum(site.under.layer.struck(place) for place in places)


def _kill(role: str, site: Site) -> int:
    site.pause(0.5)  # with work on its way
    site.work_until(lambda: site.under.processes(role), STRIKE_SECONDS)
    struck = int(site.under.kill(role))
    if role == "supervisor":
        site.under.wait_ready()
    return struck


def _nothing(seconds: float, site: Site) -> int:
    site.pause(seconds)
    return 1


def _watermark(seconds: float, site: Site) -> int:
    site.under.layer.set_free_bytes(0)
    site.pause(seconds)
    site.under.layer.set_free_bytes(None)
    return 1


def _fill(seconds: float, site: Site) -> int | None:
    """Really to the last byte, where the folder's file system is small enough to be one made for this."""
    folder = site.under.folder
    if shutil.disk_usage(folder).total > SMALL_DISK:
        return None
    ballast = folder / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), 1 << 16)
            file.seek(0, os.SEEK_END)
    site.pause(seconds)
    ballast.unlink()
    return 1


def _clock(offset: int, seconds: float, site: Site) -> int:
    site.under.layer.set_clock(offset)
    site.pause(seconds)
    return 1


def _flush(site: Site) -> int:
    return int(site.work_until(lambda: _flushed(site.under), STRIKE_SECONDS))


def _flushed(under: UnderTest) -> bool:
    settings = under.settings
    url = settings.redis_url or f"unix://{settings.redis_socket}"
    try:
        with redis.Redis.from_url(url, socket_timeout=5) as client:
            client.flushall()
    except redis.RedisError:  # it is just being started again
        return False
    return True


def _lock(seconds: float, site: Site) -> int | None:
    if site.under.settings.database_url:
        return None
    holder = sqlite3.connect(site.under.settings.database_path, isolation_level=None, timeout=30)
    try:
        holder.execute("BEGIN IMMEDIATE")
        site.pause(seconds)
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    return 1


def _restart(command: str, site: Site) -> int:
    site.under.forget()
    done = subprocess.run(command, shell=True, check=False, stdout=subprocess.DEVNULL)  # the operator's own  # nosec B602
    site.pause(1.0)
    return int(done.returncode == 0)


def _rebuild(site: Site) -> int:
    """Everything dies, the database is deleted and made anew from archive, spool and key ring."""
    under = site.under
    under.forget()
    under.kill_all()
    _delete_database(under)
    command = [sys.executable, "-m", "palimpsest", "rebuild"]
    env = environment(under.settings) | under.layer.environment
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRunning(f"palimpsest rebuild: {(done.stdout + done.stderr).strip()[-800:]}")
    under.start()
    return 1


def _delete_database(under: UnderTest) -> None:
    for path in under.home.glob("palimpsest.db*"):
        path.unlink()
    if under.settings.database_url:
        database = Database(under.settings.database)
        with database.write() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        database.close()


def _power(rule: Rule, seed: int | None, site: Site) -> int:
    """A process dies at a step, and with it everything else; then the machine starts again from what its disk holds."""
    struck = _rules((rule,), site)
    site.under.lose_power(seed=seed)
    site.under.start()
    return struck


def _cut(proxy: Callable[[UnderTest], FaultProxy], fault: Cut, site: Site) -> int:
    there = proxy(site.under)
    before = there.struck
    for _ in range(int(STRIKE_SECONDS / CUT_SECONDS)):
        there.add(fault)  # to the next connection; one that is too short for it uses it up
        if site.work_until(lambda: there.struck > before, CUT_SECONDS):
            break
    return there.struck - before


# --- lists ---


def _kills_at(role: str) -> Iterator[Break]:
    for operation, path, words in STEPS[role]:
        for skip in range(COMMITS.get(role, 1) if words == "commit" else 1):
            for action, when in ((Action.KILL_BEFORE, "before"), (Action.KILL_AFTER, "after")):
                rule = Rule(ROLES[role], operation, action, path, skip)
                which = f" {skip + 1}" if words == "commit" and role in COMMITS else ""
                yield Break("SIGKILL", f"{role}, {when} {words}{which}", partial(_rules, (rule,)))


def _io(role: str) -> Iterator[Break]:
    """EIO and ENOSPC, from where this role writes."""
    words, home = ROLES[role], "/home/"
    names = "/nas/" if role == "forward worker" else home
    for name, rule in (
        ("fsync fails with EIO", Rule(words, Operation.FSYNC, Action.EIO, names, times=3)),
        ("fsync of folders fails with EIO", Rule(words, Operation.FOLDER, Action.EIO, home, times=2)),
        ("commit fails with EIO", Rule(words, Operation.FSYNC, Action.EIO, WAL, times=2)),
        ("writes fail with EIO", Rule(words, Operation.WRITE, Action.EIO, home, skip=3, times=3)),
        ("writes find the disk full", Rule(words, Operation.WRITE, Action.ENOSPC, home, skip=3, times=5)),
        ("rename fails with EIO", Rule(words, Operation.RENAME, Action.EIO, names, times=1)),
    ):
        if role in ("index worker",) and "commit" not in name:
            continue
        if role in ("retrieve worker",) and name not in ("writes find the disk full", "rename fails with EIO"):
            continue
        if role in ("sweep", "forward worker") and "folders" in name:  # they sync none here
            continue
        if role in ("listener", "index worker") and name == "writes fail with EIO":
            rule = Rule(words, Operation.WRITE, Action.EIO, home, times=3)
        yield Break("I/O", f"{role}: {name}", partial(_rules, (rule,)))


def _everything_full(seconds: float) -> Break:
    rule = Rule("", Operation.WRITE, Action.ENOSPC, "/home/", times=1 << 30)
    return Break("disk", f"no byte left for anybody, {seconds:g} s", partial(_window, (rule,), seconds))


def _network() -> Iterator[Break]:
    doors: tuple[tuple[str, Callable[[UnderTest], FaultProxy], int], ...] = (
        ("modality", lambda under: under.to_listener, 4),
        ("destination", lambda under: under.to_peer, 4),
        ("STOW-RS client", lambda under: under.to_api, 0),
    )
    for name, proxy, pdu in doors:
        place = In.pdu(pdu) if pdu else In.offset(3000)
        for fault, words in (
            (Cut("cut", place), "cut in the middle of a PDU" if pdu else "cut in the middle of a body"),
            (Cut("reset", place), "reset in the middle of a PDU" if pdu else "reset in the middle of a body"),
            (Cut("silent", place), "half-open in the middle"),
            (Cut("silent", In.offset(0), way="down"), "half-open before any answer"),
            (Cut("reset", In.pdu(2) if pdu else In.offset(0), way="down"), "reset at the answer"),
            (Cut("delay", seconds=0.2), "delayed"),
            (Cut("crumbs", size=7), "in crumbs of 7 bytes"),
        ):
            yield Break("network", f"{name}: {words}", partial(_cut, proxy, fault))


def _clocks(seconds: float) -> Iterator[Break]:
    for offset, words in (
        (HOUR, "an hour ahead"), (-HOUR, "then two hours back"), (72 * HOUR, "then three days ahead"), (0, "then true"),
    ):  # fmt: skip
        yield Break("clock", words, partial(_clock, offset, seconds))


def _database(restart: str | None, seconds: float) -> Iterator[Break]:
    yield Break("database", f"SQLite locked for {seconds:g} s", partial(_lock, seconds))
    if restart:
        yield Break("database", "server restarted", partial(_restart, restart))
        yield Break("database", "server restarted again", partial(_restart, restart))


def full_plan(restart: str | None = None) -> list[Break]:
    """Every role at every step, and everything else. restart: shell command that restarts the database's server."""
    kills = [list(_kills_at(role)) for role in STEPS]
    mixed = [each for turn in zip_longest(*kills) for each in turn if each is not None]  # one dead role at a time
    outside = [Break("SIGKILL", f"{role}, from outside", partial(_kill, role)) for role in ROLES]
    wiped = Break("queue", "FLUSHALL", _flush)
    failing = [each for turn in zip_longest(*map(_io, FAILING)) for each in turn if each is not None]
    full = [
        Break("disk", "free bytes under the watermark, 5 s", partial(_watermark, 5.0)), _everything_full(3.0),
        Break("disk", "a real disk, full, 5 s", partial(_fill, 5.0)),
    ]  # fmt: skip
    rest = [*_network(), *_database(restart, 3.0), *_database(None, LONGER_THAN_BUSY), *_clocks(5.0)]
    lost = Break("database", "deleted, then rebuilt", _rebuild)
    supervisor = Break("SIGKILL", "supervisor, from outside", partial(_kill, "supervisor"))
    plan = [*outside, wiped, *mixed, wiped, lost, *failing, *full, wiped, supervisor, *rest, lost, wiped]
    return [each for each in plan if not (restart and WAL in repr(each.act))]


def short_plan() -> list[Break]:
    """The most telling ones, for a home with a platter."""
    telling = (
        "listener, before commit", "listener, before C-STORE response", "api, after fsync of the folder",
        "encode worker, after fsync in the archive", "verifier, before answer",
        "forward worker, after C-STORE request", "sweep, after release of the spool's copy", "broker, from outside",
        "FLUSHALL", "modality: reset in the middle of a PDU", "listener: fsync fails with EIO",
        "encode worker: rename fails with EIO", "deleted, then rebuilt",
    )  # fmt: skip
    named = {each.name: each for each in full_plan()}
    ahead, _, _, true = _clocks(1.0)
    watermark = Break("disk", "free bytes under the watermark, 1 s", partial(_watermark, 1.0))
    return [ahead, *(named[name] for name in telling), true, watermark, power_plan(2)[1]]


def calm_plan(minutes: int) -> list[Break]:
    """Nothing breaks: what a long run under load does to memory."""
    return [Break("calm", f"nothing, minute {minute + 1}", partial(_nothing, 60.0)) for minute in range(minutes)]


def power_plan(times: int) -> list[Break]:
    """Power loss again and again, each at another step; by turns nothing else survives, or a mixture does."""
    roles = ("listener", "encode worker", "api", "encode worker", "sweep", "forward worker")
    places = [
        (role, operation, path, words, skip)
        for role in roles
        for operation, path, words in STEPS[role]
        for skip in range(COMMITS.get(role, 1) if words == "commit" else 1)
    ]
    plan = []
    for number in range(times):
        role, operation, path, words, skip = places[number * 7 % len(places)]
        action, when = ((Action.KILL_AFTER, "after"), (Action.KILL_BEFORE, "before"))[number // len(places) % 2]
        seed = None if number % 2 == 0 else number
        left = "nothing left but what was fsynced" if seed is None else f"left a mixture (seed {number})"
        rule = Rule(ROLES[role], operation, action, path, skip)
        plan.append(Break("power loss", f"{role}, {when} {words}; {left}", partial(_power, rule, seed)))
    return plan
