"""A process's heartbeat in the index: that it is alive, and what it does.

A thread of its own writes it every few seconds, so a process that hangs is still seen, with the task it hangs in.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from gateway.errors import PalimpsestError
from gateway.index_worker import BEAT_SECONDS, Beating, WorkerRow

__all__ = ["Alive"]


class Alive:
    """Start it after the fork: threads do not live through one. A database that is away costs beats, nothing else."""

    def __init__(self, index: Beating, owner: str, name: str, device: str = "") -> None:
        """owner: a name that no other process has, that of its leases; name: for people; device: the GPU, or ''."""
        self._index = index
        now = time.time()
        host = socket.gethostname()[:64]
        self._row = WorkerRow(
            owner=owner[:128], name=name[:128], host=host, device=device[:128], task="", pid=os.getpid(),
            subject=None, task_since=None, started_at=now, seen_at=now, done=0, failed=0,
        )  # fmt: skip
        self._changing = threading.Lock()  # tasks and the device's load come from threads of their own
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alive", daemon=True)

    def start(self) -> None:
        """Beat from now on."""
        self._thread.start()

    def on(self, device: str) -> None:
        """The device is known by its name now."""
        self._change(device=device[:128])

    def load(self, memory_used: int | None, memory_total: int | None, busy: int | None) -> None:
        """What the device is used for, by everybody: bytes, bytes, percent; None: not known."""
        self._change(memory_used=memory_used, memory_total=memory_total, busy=busy)

    def close(self) -> None:
        """Say goodbye: what ends as it should is not missed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(BEAT_SECONDS)
        with suppress(PalimpsestError):
            self._index.worker_gone(self._row.owner)

    @contextmanager
    def working(self, task: str, subject: int | None) -> Iterator[None]:
        """Around one task. subject: the instance or forward that it is about."""
        self._change(task=task[:128], subject=subject, task_since=time.time())
        try:
            yield
            self._change(task="", subject=None, task_since=None, done=self._row.done + 1)
        except BaseException:
            self._change(task="", subject=None, task_since=None, failed=self._row.failed + 1)
            raise

    def _change(self, **values: Any) -> None:
        with self._changing:
            self._row = replace(self._row, **values)

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(PalimpsestError):
                self._index.worker_beat(self._row)
            self._stop.wait(BEAT_SECONDS)
