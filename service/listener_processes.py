"""Several listener processes behind the same ports: one binds, forks the others, and starts again what dies.

All accept from the same sockets, so a process that is killed takes nobody's place in the queue with it. The parent
serves nothing itself and has no threads, so it may fork at any time; children die with it (prctl PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple

from gateway.settings import Settings

__all__ = ["Sockets", "open_sockets", "run_processes"]

BACKLOG = 128
POLL_SECONDS = 0.2
RESTART_SECONDS = 1.0
STOP_SECONDS = 9.0  # longer than a listener lets its associations end
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class Sockets(NamedTuple):
    """Bound and listening, or None for a port that is closed."""

    plain: socket.socket | None
    tls: socket.socket | None


def open_sockets(settings: Settings) -> Sockets:
    """Bind what the settings say. Raises OSError: a port is taken."""

    def bind(port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in settings.dicom_host else socket.AF_INET
        return socket.create_server((settings.dicom_host, port), family=family, backlog=BACKLOG)

    return Sockets(
        bind(settings.dicom_port) if settings.listens_plain else None,
        bind(settings.dicom_tls_port) if settings.listens_tls else None,
    )


def run_processes(sockets: Sockets, count: int, work: Callable[[Sockets], None]) -> None:
    """Run `work` in `count` forked processes until SIGTERM or SIGINT; call before any thread is started."""
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    running: set[int] = set()
    due = 0.0
    while not stopping:
        while len(running) < count and time.monotonic() >= due:
            running.add(_fork(sockets, work))
        ended = _reap(running)
        if ended and not stopping:
            log.error("a listener process ended and is started again", extra={"count": len(ended)})
            due = time.monotonic() + RESTART_SECONDS
        time.sleep(POLL_SECONDS)
    _end(running)


def _fork(sockets: Sockets, work: Callable[[Sockets], None]) -> int:
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
            work(sockets)
            code = 0
    finally:
        os._exit(code)  # never back into the parent's code


def _reap(running: set[int]) -> list[int]:
    ended = [child for child in running if os.waitpid(child, os.WNOHANG)[0]]
    running.difference_update(ended)
    return ended


def _end(running: set[int]) -> None:
    for child in running:
        os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while running and time.monotonic() < deadline:
        _reap(running)
        time.sleep(0.05)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
