"""Metrics of all processes of one host: each writes files of its own, and whoever is asked adds them up.

prometheus_client's multiprocess mode: counters and histograms live in memory-mapped files of one folder. It counts per
process id and never forgets one; here each life of a process has a name of its own, `<role>.<host>.<pid>.<random>`, and
holds a lock on `<name>.lock`, which the kernel lets go of when it dies, whatever its PID namespace. What the dead have
counted is added to one pair of files: a counter must never fall, for Prometheus would take that for a restart and count
all of the rest anew. Killed between renaming that sum and deleting its parts, a process leaves them counted twice.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import uuid
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from prometheus_client import CollectorRegistry, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from gateway.settings import name_metrics_folder

__all__ = ["exposed", "roles", "share"]

DEAD: Final = "dead"
KINDS: Final = ("counter", "histogram")
ENDS: Final = ("palimpsest_process_ends", "Processes that ended, however they ended.")
_TORN: Final = (OSError, RuntimeError, ValueError, struct.error)  # a file whose writer was killed while it grew


class _Life:
    """The name of this life of this process, kept by a lock; a fork is another life."""

    def __init__(self, folder: Path, role: str) -> None:
        self._folder, self._role = folder, role
        self._pid, self._name = 0, ""
        self._lock: IO[bytes] | None = None

    def __call__(self) -> str:
        """Called at each count, so almost always a comparison."""
        pid = os.getpid()
        if pid != self._pid:
            host = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname())
            self._pid, self._name = pid, f"{self._role}.{host}.{pid}.{uuid.uuid4().hex[:8]}"
            with _folder_lock(self._folder):  # nobody may find the file before it is locked
                self._lock = (self._folder / f"{self._name}.lock").open("wb")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._name


def share(folder: Path, role: str) -> None:
    """From now on this process, and what it forks, counts in files below `folder`; before it counts anything.

    role: word without a dot, by which `roles` counts it. Metrics must have labels: their values are made at first use.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name_metrics_folder(folder)
    with _folder_lock(folder):
        _bury(folder)
    values.ValueClass = values.MultiProcessValue(_Life(folder, role))  # type: ignore[no-untyped-call]


def exposed(folder: Path) -> bytes:
    """The exposition of all processes that count below `folder`, living and dead; empty if there are none."""
    if not folder.is_dir():
        return b""
    with _folder_lock(folder):
        _bury(folder)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def roles(folder: Path) -> dict[str, int]:
    """How many processes of each role live."""
    if not folder.is_dir():
        return {}
    with _folder_lock(folder):
        return dict(Tally(path.name.split(".")[0] for path in folder.glob("*.lock") if not _ended(path)))


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    with (folder / "folder").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ended(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _bury(folder: Path) -> None:
    """Add the counts of processes that ended to those of the dead. The folder's lock is held."""
    ended = [path for path in folder.glob("*.lock") if _ended(path)]
    if not ended:
        return
    for kind in KINDS:
        sums: dict[str, float] = {}
        parts = [path for lock in ended if (path := folder / f"{kind}_{lock.stem}.db").exists()]
        for path in (folder / f"{kind}_{DEAD}.db", *parts):
            with suppress(*_TORN):
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
                    sums[key] = sums.get(key, 0.0) + value
        if kind == "counter":
            for role, count in Tally(lock.name.split(".")[0] for lock in ended).items():
                key = mmap_key(ENDS[0], f"{ENDS[0]}_total", ["role"], [role], ENDS[1])
                sums[key] = sums.get(key, 0.0) + count
        _write(folder / f"{kind}_{DEAD}.db", sums)
        for path in parts:
            path.unlink(missing_ok=True)
    for lock in ended:
        lock.unlink(missing_ok=True)


def _write(path: Path, sums: dict[str, float]) -> None:
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    made = MmapedDict(str(new))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        made.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    made.close()  # type: ignore[no-untyped-call]
    new.replace(path)
