"""Who codes tiles: this processor, or a device that takes tiles of many frames at once. The bytes are the same.

Nothing here imports CUDA: `open_device` does, when it is called. `using` names the device for the block it stands
around, in this thread; the coder asks `current_device` where it has tiles to code, and without one codes them itself.
Only who computes is said in this way, never what comes out. Choice of technology, figures, plan: docs/gpu.md.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from codec.errors import CodecError

__all__ = [
    "Batcher",
    "Device",
    "DeviceLost",
    "NoDevice",
    "Tally",
    "current_device",
    "open_device",
    "open_processor",
    "using",
]

Job = TypeVar("Job")
Result = TypeVar("Result")


class NoDevice(CodecError):
    """There is no CUDA device to be used here; the message says why and what to do."""


class DeviceLost(CodecError):
    """The device failed in the middle of its work: what it was given has to be done elsewhere."""


class Device(Protocol):
    """Codes tiles, many at once (`codec.gpu_jobs`); results in the order of the jobs. Both raise DeviceLost."""

    def encode(self, jobs: Sequence[Any]) -> list[Any]:
        """The words (uint32) of each EncodeJob."""

    def decode(self, jobs: Sequence[Any]) -> list[Any]:
        """What each DecodeJob gives (Decoded), None where the words are no whole stream."""


_current: ContextVar[Device | None] = ContextVar("palimpsest_device", default=None)


def current_device() -> Device | None:
    """The device of the block we are in, or None: then the caller's own threads do the work."""
    return _current.get()


@contextmanager
def using(device: Device | None) -> Iterator[None]:
    """Code the tiles of this block on `device` (None: on this processor)."""
    token = _current.set(device)
    try:
        yield
    finally:
        _current.reset(token)


def open_device(number: int = 0) -> Device:
    """The CUDA device of that number, its kernels compiled. Raises NoDevice. Never before a fork: CUDA dies of it."""
    from codec.gpu_device import CudaDevice

    return CudaDevice(number)


def open_processor() -> Device:
    """This processor, under the same protocol: what a batcher falls back on."""
    from codec.gpu_jobs import Processor

    return Processor()


@dataclass
class Tally:
    """What a batcher has done: launches, jobs in them, the most in one, and jobs that were done elsewhere."""

    launches: int = 0
    jobs: int = 0
    largest: int = 0
    elsewhere: int = 0


@dataclass
class _Waiting(Generic[Job, Result]):
    """Jobs of one caller, and where the results will be."""

    jobs: Sequence[Job]
    done: threading.Event = field(default_factory=threading.Event)
    results: list[Result] = field(default_factory=list)
    lost: DeviceLost | None = None


class Batcher:
    """A device for many threads: what they ask for while it is busy goes to it together, next.

    most: jobs in one launch. pause: seconds that an idle device waits for company after the first caller came.
    fallback: does the jobs when the device is lost; from then on it does them all. `lost`: why, None while all is well.
    patience: seconds that a caller waits for its results (None: for ever); then the device is given up. `stuck`: it was
    given up in the middle of something, and may hold this process's threads and memory until the process ends.
    """

    def __init__(
        self, device: Device, fallback: Device, *, most: int = 1024, pause: float = 0.002, patience: float | None = None
    ) -> None:
        self.tally = Tally()
        self.lost: DeviceLost | None = None
        self.stuck = False
        self._device, self._fallback, self._most, self._pause = device, fallback, most, pause
        self._patience = patience
        self._running: list[_Waiting[Any, Any]] = []
        self._queues: dict[str, list[_Waiting[Any, Any]]] = {"encode": [], "decode": []}
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return str(self._device)

    @property
    def uuid(self) -> str:
        """How the driver's tools call the device, '' where it has no such name."""
        return str(getattr(self._device, "uuid", ""))

    def encode(self, jobs: Sequence[Any]) -> list[Any]:
        """See Device."""
        return self._ask("encode", jobs)

    def decode(self, jobs: Sequence[Any]) -> list[Any]:
        """See Device."""
        return self._ask("decode", jobs)

    def close(self) -> None:
        """End the thread once what was asked for is done; a stuck one is left behind."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if not self.stuck:
            self._thread.join()

    def give_up(self, reason: str) -> None:
        """Wait for the device no longer: whoever waits, and asks from now on, is served by the fallback."""
        with self._changed:
            self.stuck = True
            self.lost = self.lost or DeviceLost(reason)
            self._release(self._running)

    def _ask(self, kind: str, jobs: Sequence[Any]) -> list[Any]:
        if not jobs:
            return []
        waiting: _Waiting[Any, Any] = _Waiting(jobs)
        with self._changed:
            if self._ended:
                raise DeviceLost("the device is closed")
            lost = self.lost
            if lost is None:
                self._queues[kind].append(waiting)
                self._changed.notify_all()
        if lost is None:
            if not waiting.done.wait(self._patience):
                self.give_up(f"the device gave no answer for {self._patience:g} s")
            lost = waiting.lost
        if lost is None:
            return waiting.results
        with self._changed:
            self.tally.elsewhere += len(jobs)
        # in the caller's own thread: many callers are many threads, as they would be without a device
        return list(getattr(self._fallback, kind)(jobs))

    def _serve(self) -> None:
        try:
            while taken := self._take():
                self._launch(*taken)
        finally:  # whatever ended it: nobody waits for ever
            with self._changed:
                if any(self._queues.values()):
                    self.lost = self.lost or DeviceLost("the device's thread ended")
                self._release([])

    def _release(self, running: Sequence[_Waiting[Any, Any]]) -> None:
        """Tell who waits, and whose jobs are running, that the device is lost."""
        left = [waiting for queue in self._queues.values() for waiting in queue]
        self._queues = {kind: [] for kind in self._queues}
        for waiting in (*left, *running):
            waiting.lost = self.lost
            waiting.done.set()

    def _take(self) -> tuple[str, list[_Waiting[Any, Any]]] | None:
        """The next batch: whole callers, in their order, up to `most` jobs; None at the end."""
        with self._changed:
            while not any(self._queues.values()):
                if self._ended:
                    return None
                self._changed.wait()
            if self._pause and not self._ended:
                self._changed.wait_for(lambda: self._ended, self._pause)
            kind = max(self._queues, key=lambda name: len(self._queues[name]))
            queue, count = self._queues[kind], 0
            batch: list[_Waiting[Any, Any]] = []
            while queue and (not batch or count + len(queue[0].jobs) <= self._most):
                count += len(queue[0].jobs)
                batch.append(queue.pop(0))
            self._running = batch
            return kind, batch

    def _launch(self, kind: str, batch: list[_Waiting[Any, Any]]) -> None:
        jobs = [job for waiting in batch for job in waiting.jobs]
        results: list[Any] = []
        # what holds if anything unforeseen is raised
        lost: DeviceLost | None = self.lost or DeviceLost("the device's thread failed")
        try:
            if self.lost is None:
                results = list(getattr(self._device, kind)(jobs))
                lost = None if len(results) == len(jobs) else DeviceLost("the device lost results")
        except DeviceLost as error:
            lost = error
        finally:
            self._hand_out(batch, len(jobs), results, lost)

    def _hand_out(
        self, batch: list[_Waiting[Any, Any]], jobs: int, results: list[Any], lost: DeviceLost | None
    ) -> None:
        with self._changed:
            if self.stuck:  # too late: they were told, and are served elsewhere
                return
            self.lost, self._running = lost, []
            if lost is None:
                self.tally.launches += 1
                self.tally.jobs += jobs
                self.tally.largest = max(self.tally.largest, jobs)
            for waiting in batch:
                waiting.lost, waiting.results = lost, results[: len(waiting.jobs)]
                results = results[len(waiting.jobs) :]
                waiting.done.set()
