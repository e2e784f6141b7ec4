"""Frames and bulk values cut out of proven files, without hashing a whole file again for each of them.

The first request for a file reads it once and takes its digest and that of each frame; later ones read the frame alone
and compare it with the frame's own digest.  So a byte still never leaves unchecked, and a viewer that asks for three
hundred frames one by one reads the file twice, not three hundred times.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from threading import Lock
from typing import BinaryIO, Generic, TypeVar

from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, NotFound, Unsupported
from gateway.index_rows import InstanceRow
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE
from gateway.pixelframes import FrameMap, map_frames
from service.objects import HOT, Located, locate, mismatch
from service.problems import HttpProblem

__all__ = ["FrameShelf", "FramedObject"]

PIECE = 1 << 20
FILES_KNOWN = 1024
FRAMES_KNOWN = 1 << 20  # of all known files together: 32 bytes each
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class _Table:
    """What is known of a file by its digest. digests: SHA-256 of each frame, its fragments joined."""

    map: FrameMap
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class FramedObject:
    """An open file with its frames. failed: makes the error for bytes that are not what they were."""

    file: BinaryIO
    digest: str
    table: _Table
    failed: Callable[[], IntegrityError]

    @property
    def syntax(self) -> str:
        """Transfer syntax UID of the file."""
        return self.table.map.syntax

    def __len__(self) -> int:
        return len(self.table.map.frames)

    def size(self, index: int) -> int:
        """Bytes of frame `index` (from 0)."""
        return sum(end - start for start, end in self.table.map.frames[index])

    def frame(self, index: int) -> bytes:
        """Frame `index` (from 0), compared with its digest. Raises IntegrityError."""
        pieces = self.table.map.frames[index]
        data = b"".join(os.pread(self.file.fileno(), end - start, start) for start, end in pieces)
        if sha256(data).digest() != self.table.digests[index]:
            raise self.failed()
        return data

    def close(self) -> None:
        """The file is not needed any more."""
        self.file.close()


class _Recent(Generic[K, V]):
    """What was used last, up to a weight; safe between threads."""

    def __init__(self, most: int, weigh: Callable[[V], int]) -> None:
        self._most, self._weigh = most, weigh
        self._held: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._drop(key)
            self._held[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._most and len(self._held) > 1:
                self._drop(next(iter(self._held)))

    def drop(self, key: K) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: K) -> None:
        if key in self._held:
            self._weight -= self._weigh(self._held.pop(key))


class FrameShelf:
    """The frame tables of the files that were asked for last, and where those files lie."""

    def __init__(self) -> None:
        self._paths: _Recent[tuple[str, str, tuple[str, ...]], tuple[str, str]] = _Recent(FILES_KNOWN, lambda _: 1)
        self._tables: _Recent[str, _Table] = _Recent(FRAMES_KNOWN, lambda table: 1 + len(table.digests))
        self._making = tuple(Lock() for _ in range(16))

    def open(self, gateway: Gateway, row: InstanceRow, syntaxes: Sequence[str]) -> FramedObject:
        """The instance in the first of the syntaxes that it can be given in; little endian in any case.

        Raises NotFound ``no-pixels``, HttpProblem 406, Unavailable, Gone, IntegrityError.
        """
        found = self._located(gateway, row, tuple(syntaxes))
        try:
            framed = self._framed(gateway, row, found)
        except IntegrityError:
            found.file.close()
            if row.archive_key is None or found.file.name != str(gateway.spool.path(row.digest)):
                raise
            framed = self._framed_without_spool(gateway, row, tuple(syntaxes))
        except BaseException:
            found.file.close()
            raise
        if framed.syntax != EXPLICIT_BE:
            return framed
        framed.close()
        return self.open(gateway, row, (EXPLICIT_LE,))

    def _located(self, gateway: Gateway, row: InstanceRow, syntaxes: tuple[str, ...]) -> Located:
        """A hot copy is looked for each time: what was known before it was made is not what is nearest now."""
        if syntaxes[0] == HOT:
            with suppress(HttpProblem):
                return self._known(gateway, row, (HOT,))
            return self._known(gateway, row, syntaxes[1:])
        return self._known(gateway, row, syntaxes)

    def _known(self, gateway: Gateway, row: InstanceRow, syntaxes: tuple[str, ...]) -> Located:
        key = (row.digest, str(row.state), syntaxes)
        known = self._paths.get(key)
        if known is not None:
            with suppress(OSError):  # pruned meanwhile
                file = open(known[0], "rb")  # noqa: SIM115 (the caller closes it)
                os.utime(file.fileno())  # in use: the cache prunes the longest unused first
                return Located(file, known[1])
            self._paths.drop(key)
        found = locate(gateway, row, syntaxes)
        self._paths.put(key, (str(found.file.name), found.digest))
        return found

    def _framed_without_spool(self, gateway: Gateway, row: InstanceRow, syntaxes: tuple[str, ...]) -> FramedObject:
        """From the archive, which then is where this instance is known to lie; the damage was reported."""
        syntaxes = tuple(each for each in syntaxes if each != HOT)  # a copy that is not there, or was found before
        found = locate(gateway, row, syntaxes, spool=False)
        try:
            framed = self._framed(gateway, row, found)
        except BaseException:
            found.file.close()
            raise
        self._paths.put((row.digest, str(row.state), syntaxes), (str(found.file.name), found.digest))
        return framed

    def _failed(self, gateway: Gateway, row: InstanceRow, digest: str) -> IntegrityError:
        """A frame is not what it was. The next request looks at the whole file again, if there is another of it."""
        if row.archive_key is not None:
            self._tables.drop(digest)
        return mismatch(gateway, row)

    def _framed(self, gateway: Gateway, row: InstanceRow, found: Located) -> FramedObject:
        table = self._tables.get(found.digest)
        if table is None:
            with self._making[int(found.digest[:2], 16) % len(self._making)]:
                table = self._tables.get(found.digest)
                if table is None:
                    table = self._read(gateway, row, found)
                    self._tables.put(found.digest, table)
        return FramedObject(found.file, found.digest, table, lambda: self._failed(gateway, row, found.digest))

    def _read(self, gateway: Gateway, row: InstanceRow, found: Located) -> _Table:
        try:
            layout = map_frames(mmap.mmap(found.file.fileno(), 0, access=mmap.ACCESS_READ))
        except Unsupported as error:
            raise HttpProblem(406, error.reason, f"Single frames cannot be given: {error.message}.") from None
        whole, digests = sha256(), []
        reader = _Reader(found.file, whole.update)
        for pieces in layout.frames:
            frame = sha256()
            for start, end in pieces:
                reader.pass_to(start)
                reader.pass_to(end, frame.update)
            digests.append(frame.digest())
        reader.pass_to(os.fstat(found.file.fileno()).st_size)
        if whole.hexdigest() != found.digest:
            raise mismatch(gateway, row)
        return _Table(layout, tuple(digests))


class _Reader:
    """Reads a file once, front to back; every byte goes to `always`."""

    def __init__(self, file: BinaryIO, always: Callable[[bytes], object]) -> None:
        self._file, self._always, self._at = file, always, 0
        file.seek(0)

    def pass_to(self, end: int, also: Callable[[bytes], object] = lambda data: None) -> None:
        """Go on to offset `end`."""
        while self._at < end and (data := self._file.read(min(PIECE, end - self._at))):
            self._at += len(data)
            self._always(data)
            also(data)


def frame_numbers(text: str, most: int = 100_000) -> list[int]:
    """The numbers of a frame list, from 1, in the order asked for: '3', '1,5,7', and '2-4' for a run.

    Raises HttpProblem 400 ``bad-frame``.
    """
    numbers: list[int] = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not _is_number(first) or (dash and not _is_number(last)) or (dash and int(last) < int(first)):
            raise _bad_frame()
        if len(numbers) + (int(last) - int(first) if dash else 0) >= most:
            raise _bad_frame()
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return numbers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0


def _bad_frame() -> HttpProblem:
    return HttpProblem(400, "bad-frame", "Frames are a list of numbers from 1 on, such as 1,3,5-9.")


def in_order(framed: FramedObject, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the frames asked for; closes the file behind the last one."""
    with framed.file:
        for number in numbers:
            yield number, framed.frame(number - 1)


def check_numbers(framed: FramedObject, numbers: Sequence[int]) -> None:
    """Raises NotFound for a frame that the instance does not have."""
    if max(numbers) > len(framed):
        raise NotFound("no-such-frame", "This instance has no frame of that number.")
