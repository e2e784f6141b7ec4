"""Holding a row: the heartbeat that keeps a lease alive while one thread works, and the backoff after a failure."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gateway.errors import LeaseLost, PalimpsestError

__all__ = ["backoff_seconds", "heartbeat", "told_of_stop"]

BEATS_PER_LEASE = 4  # so three beats may be lost before the lease is
BACKOFF_BASE = 2.0  # seconds
BACKOFF_CAP = 900.0  # seconds
LOOK_SECONDS = 0.5  # between two looks whether the worker is being stopped; it has some 20 s then


class Beat:
    """What the working thread sees of the heartbeat: `check` raises LeaseLost once the row belongs to someone else."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.lost = threading.Event()

    def check(self) -> None:
        """Raise LeaseLost if a beat found that the lease is gone: everything after would be written by two."""
        if self.lost.is_set():
            raise LeaseLost("lease-lost", "the lease on this row ran out or was taken over")


@contextmanager
def _every(seconds: float, once: Callable[[], bool], over: threading.Event) -> Iterator[None]:
    """Call `once` in a thread until it says True or the block, and with it `over`, ends. Trouble costs calls only."""

    def run() -> None:
        while not over.wait(seconds):
            with suppress(PalimpsestError):
                if once():
                    return

    thread = threading.Thread(target=run, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def heartbeat(beat_once: Callable[[], object], lease_seconds: float) -> Iterator[Beat]:
    """Call `beat_once` every quarter lease in a thread for as long as the block runs.

    A failing database only costs beats (the lease then runs out by itself); LeaseLost ends the beating.
    """
    beat = Beat()

    def once() -> bool:
        try:
            beat_once()
        except LeaseLost:
            beat.lost.set()
        return beat.lost.is_set()

    with _every(lease_seconds / BEATS_PER_LEASE, once, beat.stop):
        yield beat


@contextmanager
def told_of_stop(stopping: Callable[[], bool], tell: Callable[[], object]) -> Iterator[None]:
    """Call `tell` once, from a thread, if this worker is asked to stop while the block runs: it may be killed in it.

    A failing database is asked again; LeaseLost ends it.
    """

    def once() -> bool:
        if not stopping():
            return False
        with suppress(LeaseLost):
            tell()
        return True

    with _every(LOOK_SECONDS, once, threading.Event()):
        yield


def backoff_seconds(attempts: int, *, base: float = BACKOFF_BASE, cap: float = BACKOFF_CAP) -> float:
    """Seconds until the next try after `attempts` tries: doubling, capped, with full jitter in its upper half."""
    ceiling = min(cap, base * 2.0 ** min(max(attempts - 1, 0), 32))
    return ceiling / 2 + random.random() * ceiling / 2
