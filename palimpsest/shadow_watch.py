"""The measuring side of shadow mode: a process of its own that may fall behind, be killed or crash at no one's cost.

Copies come in frames (shadow_relay) through a socket, objects are followed out of them (shadow_follow) into files of a
private folder, and a thread measures (worker.sample) what its bounded queue has taken. What does not fit is counted,
not waited for. `python -m palimpsest.shadow_watch`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from gateway.errors import PalimpsestError
from gateway.keys import KeyRing
from gateway.metrics import modality_label
from gateway.settings import use_numba_cache
from palimpsest.shadow_follow import Association, Seen
from palimpsest.shadow_plan import Limits
from palimpsest.shadow_relay import FRAME, FROM_CLIENT, FROM_SERVER, KINDS, LOST, OPENED, STATE
from palimpsest.shadow_report import Report
from worker.process import limit_memory

__all__ = ["Watcher", "main", "step_back"]

FRAME_CAP: Final = 1 << 20
WRITE_SECONDS: Final = 5.0
HEAD_BYTES: Final = 1 << 16  # of a file, in which Modality is looked for
MEMORY_BYTES: Final = 4 << 30
MARK: Final = "measuring"  # there while an object is measured: who finds it at its start knows what killed the last one


class Watcher:
    """Counts, measures and writes the report. Any thread may offer objects; one measures."""

    def __init__(self, report: Report, work: Path, limits: Limits, outs: tuple[Path | None, Path | None]) -> None:
        self.report, self.limits = report, limits
        self._work, self._outs = work, outs
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[Path, str] | None] = queue.Queue()
        self._waiting = 0
        self._waiting_bytes = 0
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._measure_all, name="measure", daemon=True)

    def start(self) -> None:
        """Begin to measure; what a process before left behind is removed and counted."""
        if (self._work / MARK).exists():
            self.missed("crashed")
        for path in self._work.glob("object-*"):
            path.unlink(missing_ok=True)
        (self._work / MARK).unlink(missing_ok=True)
        self.write()
        self._thread.start()

    def missed(self, reason: str) -> None:
        """An object that passed and is not measured."""
        with self._lock:
            self.report.not_measured[reason] = self.report.not_measured.get(reason, 0) + 1

    def offer(self, path: Path, size: int, *, wait: bool = False) -> None:
        """A whole object, whose file is ours from now on unless its name says otherwise; dropped if too many wait."""
        modality = modality_of_file(path)
        with self._lock:
            sums = self.report.of(modality)
            sums.seen += 1
            sums.seen_bytes += size
        while wait and self._full(0):
            time.sleep(0.02)
        if size > self.limits.object_bytes or self._full(size):
            self.missed("too-large" if size > self.limits.object_bytes else "busy")
            self._forget(path)
            return
        with self._lock:
            self._waiting += 1
            self._waiting_bytes += size
        self._queue.put((path, modality))

    def finish(self, seconds: float) -> None:
        """Measure what waits, for so long, and write the last report."""
        self._queue.put(None)
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(WRITE_SECONDS)
            self.write()
        self._hurry.set()
        with self._lock:
            left = self._waiting
        if self._thread.is_alive() and left:
            self.report.not_measured["no-time-left"] = left
        self.write()

    def write(self) -> None:
        """The report, where it is wanted, and where the next process finds it."""
        with self._lock:
            self.report.write(self._work / "state.json", None)
            self.report.write(*self._outs)

    def _full(self, size: int) -> bool:
        with self._lock:
            return self._waiting >= self.limits.objects or self._waiting_bytes + size > self.limits.bytes

    def _forget(self, path: Path) -> None:
        if path.parent == self._work:
            path.unlink(missing_ok=True)

    def _measure_all(self) -> None:
        from worker.bench import warm
        from worker.bench_plan import Plan

        warm(Plan())
        ring = KeyRing.load_or_create(self._work / "keys")  # throw-away: only the size of the sealed parts counts
        while (found := self._queue.get()) is not None and not self._hurry.is_set():
            self._measure(*found, ring)

    def _measure(self, path: Path, modality: str, ring: KeyRing) -> None:
        from worker.sample import measure

        (self._work / MARK).touch()
        size = 0
        try:
            data = path.read_bytes()
            size = len(data)
            made = measure(data, ring)
        except PalimpsestError as error:
            self.missed(error.reason)
        except OSError:
            self.missed("unreadable-file")
        else:
            with self._lock:
                sums = self.report.of(modality)
                sums.measured += 1
                sums.wrong += not made.exact
                sums.scaled += made.scaled
                for into, values in ((sums.encode_s, made.encode_s), (sums.decode_s, made.decode_s)):
                    for form, seconds in values.items():
                        into[form] = into.get(form, 0.0) + seconds
                for form, count in made.bytes.items():
                    sums.bytes[form] = sums.bytes.get(form, 0) + count
                if made.reason:
                    sums.whole[made.reason] = sums.whole.get(made.reason, 0) + 1
        finally:
            self._forget(path)
            (self._work / MARK).unlink(missing_ok=True)
            with self._lock:
                self._waiting -= 1
                self._waiting_bytes -= size


class _File:
    """One object on its way into the private folder (shadow_follow.Object)."""

    def __init__(self, watcher: Watcher, path: Path, limit: int) -> None:
        self._watcher, self._path, self._limit = watcher, path, limit
        self._file = path.open("xb")
        self._size = 0

    def write(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit + FRAME_CAP:
            self._file.write(piece)

    def close(self, whole: bool) -> None:
        self._file.close()
        if whole:
            self._watcher.offer(self._path, self._size)
        else:
            self._path.unlink(missing_ok=True)
            self._watcher.missed("cut-off")


class _Copies:
    """The frames of all connections, each followed by itself."""

    def __init__(self, watcher: Watcher, work: Path) -> None:
        self._watcher, self._work = watcher, work
        self._open: dict[int, tuple[Association, Seen]] = {}
        self._count = 0

    def take(self, kind: int, connection: int, data: bytes) -> None:
        """One frame."""
        if kind == STATE:
            self._watcher.report.relayed = {name: int(value) for name, value in json.loads(data).items()}
        elif kind == OPENED:
            seen = Seen()
            self._open[connection] = (Association(self._begin, seen), seen)
        elif (found := self._open.get(connection)) is not None:
            association, seen = found
            if kind in (FROM_CLIENT, FROM_SERVER):
                association.feed(data, from_client=kind == FROM_CLIENT)
                return
            del self._open[connection]
            association.close()
            if kind == LOST:
                seen.count(seen.lost, "fell-behind")
            report = self._watcher.report
            for into, found_counts in ((report.answers, seen.answers), (report.not_followed, seen.lost)):
                for word, count in found_counts.items():
                    into[word] = into.get(word, 0) + count

    def _begin(self) -> _File:
        self._count += 1
        return _File(self._watcher, self._work / f"object-{self._count}", self._watcher.limits.object_bytes)


def modality_of_file(path: Path) -> str:
    """A Defined Term, 'unknown' or 'other': the report shows nothing that a sender may have written freely."""
    from worker.rules import modality_of

    try:
        with path.open("rb") as file:
            return modality_label(modality_of(file.read(HEAD_BYTES)))
    except (OSError, PalimpsestError):
        return "unknown"


def serve(connection: socket.socket, watcher: Watcher, work: Path) -> None:
    """Take frames until the other side is gone or has ended. Raises ValueError for what is no frame."""
    copies, stream, written = _Copies(watcher, work), connection.makefile("rb"), time.monotonic()
    while len(head := stream.read(FRAME.size)) == FRAME.size:
        kind, number, length = FRAME.unpack(head)
        if kind not in KINDS or length > FRAME_CAP:
            raise ValueError("not a frame")
        copies.take(kind, number, stream.read(length) if length else b"")
        if time.monotonic() - written > WRITE_SECONDS:
            watcher.write()
            written = time.monotonic()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve one relay, until it ends."""
    parser = argparse.ArgumentParser(prog="python -m palimpsest.shadow_watch")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--limits", default="{}")
    parser.add_argument("--link", type=float, default=100.0)
    asked = parser.parse_args(argv)
    step_back()
    use_numba_cache()
    before = Report.read(asked.work / "state.json")
    report = replace(before, link_mbit=asked.link, began=before.began or time.time())
    watcher = Watcher(report, asked.work, Limits(**json.loads(asked.limits)), (asked.json, asked.page))
    threading.excepthook = lambda arguments: os._exit(1)  # what cannot measure is replaced, not left running
    watcher.start()
    serve(socket.socket(fileno=asked.fd), watcher, asked.work)
    watcher.finish(watcher.limits.finish_seconds)


def step_back() -> None:
    """Behind all else of this machine: a tenth of a processor that others want, first to be killed for memory."""
    os.nice(10)
    limit_memory(MEMORY_BYTES)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
