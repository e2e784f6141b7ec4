"""Several processes behind the same ports: one binds, forks the others, and starts again what dies.

All accept from the same sockets, so a process that is killed takes nobody's place in the queue with it. The parent
serves nothing itself and has no threads, so it may fork at any time; children die with it (prctl PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

__all__ = ["run_processes"]

POLL_SECONDS = 0.2
RESTART_SECONDS = 1.0
STOP_SECONDS = 9.0  # longer than a listener lets its associations end
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def run_processes(count: int, work: Callable[[], None], stop_seconds: float = STOP_SECONDS) -> None:
    """Run `work` in `count` forked processes until SIGTERM or SIGINT; call before any thread is started.

    stop_seconds: that they are given to end by themselves.
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    running: set[int] = set()
    due = 0.0
    while not stopping:
        while len(running) < count and time.monotonic() >= due:
            running.add(_fork(work))
        ended = _reap(running)
        if ended and not stopping:
            log.error("a process ended and is started again", extra={"count": len(ended)})
            due = time.monotonic() + RESTART_SECONDS
        time.sleep(POLL_SECONDS)
    _end(running, stop_seconds)


def _fork(work: Callable[[], None]) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            work()
            code = 0
    finally:
        os._exit(code)  # never back into the parent's code


def _reap(running: set[int]) -> list[int]:
    ended = [child for child in running if os.waitpid(child, os.WNOHANG)[0]]
    running.difference_update(ended)
    return ended


def _end(running: set[int], stop_seconds: float) -> None:
    for child in running:
        os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + stop_seconds
    while running and time.monotonic() < deadline:
        _reap(running)
        time.sleep(0.05)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
