"""The spool: where received files lie, durably, until the archive has proven copies.

Received files are named by the SHA-256 of the whole file. What is being received lies in `incoming/`, inside the same
file system. Free space is looked at before and while receiving: under the watermark nothing more is taken in,
and nothing is ever deleted to make room.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gateway.blobs import CHUNK, BlobStore, storage_errors, sync_folder
from gateway.errors import OutOfResources, PalimpsestError
from gateway.part10 import read_meta
from gateway.settings import Settings

SPACE_CHECK_BYTES = 16 << 20  # received between two looks at the free space
META_BYTES = 1 << 20  # file meta information is looked for in so many bytes


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A received file. digest: SHA-256 of all bytes; dataset_digest: of the data set alone; size: bytes."""

    digest: str
    dataset_digest: str
    size: int
    path: Path


class Spool(BlobStore):
    """The content-addressed folder of received files, with the watermark in front of it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.spool_dir)
        self.incoming_dir = settings.incoming_dir
        self._watermark = settings.watermark_bytes
        self._max_object = settings.max_object_bytes

    def receive(self, head: bytes, buffer: memoryview | None = None) -> Receiving:
        """Begin a file that arrives in pieces; see `Receiving`."""
        return Receiving(self, head, buffer or memoryview(bytearray(CHUNK)))

    def incoming(self) -> Path:
        """A new, empty temporary file (mode 0600) for something about to arrive. Raises OutOfResources."""
        self.check_space()
        with storage_errors():
            fd, name = tempfile.mkstemp(prefix="in-", suffix=".part", dir=self.incoming_dir)
            os.close(fd)
        return Path(name)

    def free_bytes(self) -> int:
        """Free bytes of the spool's file system."""
        with storage_errors():
            return shutil.disk_usage(self.folder).free

    def check_space(self, expected: int = 0) -> None:
        """Raise OutOfResources if `expected` more bytes would bring free space under the watermark."""
        if self.free_bytes() - expected < self._watermark:
            raise OutOfResources("watermark", "free space is under the watermark: nothing more is taken in")

    def check_size(self, size: int) -> None:
        """Raise OutOfResources ``object-too-large`` for an object above the configured bound (bytes)."""
        if size > self._max_object:
            raise OutOfResources("object-too-large", "the object is larger than this gateway takes")

    def measure(self, temporary: Path, dataset_offset: int | None = None) -> StoredFile:
        """fsync a received file and take both digests in one pass; it keeps its temporary name.

        dataset_offset: bytes before the data set; found by `part10.read_meta` when not given.
        """
        with storage_errors(), temporary.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            self.check_size(size)
            if dataset_offset is None:
                _, dataset_offset = read_meta(file.read(META_BYTES))
                file.seek(0)
            os.fsync(file.fileno())
            whole, dataset = sha256(), sha256()
            head = file.read(dataset_offset)
            whole.update(head)
            while chunk := file.read(CHUNK):
                whole.update(chunk)
                dataset.update(chunk)
        digest = whole.hexdigest()
        return StoredFile(digest, dataset.hexdigest(), size, self.path(digest))

    def adopt(self, temporary: Path, dataset_offset: int | None = None) -> StoredFile:
        """Make a received file durable under its digest; the temporary name is gone afterwards.

        Raises OutOfResources (size, disk), Unavailable (I/O), NotDicom. Equal content replaces itself: it heals.
        """
        stored = self.measure(temporary, dataset_offset)
        self.place(temporary, stored.digest)
        return stored

    def place_many(self, received: Sequence[tuple[Path, str]]) -> None:
        """Give fsynced temporary files their final names, all durably: (temporary, digest) each.

        May be repeated after an error: what has its name already keeps it.
        """
        with storage_errors():
            shards = {self.path(digest).parent for _, digest in received}
            # One that another process made, or an earlier try, is there and perhaps not durable yet.
            unsure = [shard for shard in shards if shard not in self._durable or not shard.is_dir()]
            for shard in unsure:
                shard.mkdir(parents=True, exist_ok=True)
            for temporary, digest in received:
                target = self.path(digest)
                if temporary.exists() or not target.exists():
                    temporary.replace(target)
            for folder in ([self.folder] if unsure else []) + sorted(shards):
                sync_folder(folder)
            self._durable.update(shards)

    def sweep_incoming(self, older_than_seconds: float = 3600.0) -> int:
        """Delete what aborted receipts left behind, untouched for that long; returns how many."""
        limit, removed = time.time() - older_than_seconds, 0
        for path in self.incoming_dir.iterdir():
            try:
                if path.stat().st_mtime <= limit:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:
                continue  # its receiver finished in the meantime
        return removed

    def iter_files(self, older_than_seconds: float = 0.0) -> Iterator[str]:
        """Digests of spooled files placed at least that long ago (a younger one may be about to get its row)."""
        limit = time.time() - older_than_seconds
        for digest in self:
            try:
                if self.path(digest).stat().st_ctime <= limit:  # rename sets ctime, not mtime
                    yield digest
            except FileNotFoundError:
                continue


class Receiving:
    """A file of the spool that arrives in pieces: written and measured at once, bounded, fsynced at its end.

    It refuses instead of growing without bound: after that further bytes are dropped, and `finish` says why.
    """

    def __init__(self, spool: Spool, head: bytes, buffer: memoryview) -> None:
        """head: what stands before the data set (PS3.10 7.1); buffer: memory to gather in, lent until the end.

        Raises OutOfResources, Unavailable.
        """
        self._spool = spool
        self._buffer, self._filled = buffer, 0
        self.path = spool.incoming()
        with storage_errors():
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        self._whole, self._dataset = sha256(head), sha256()
        self._size = 0
        self._next_check = SPACE_CHECK_BYTES
        self._refused: PalimpsestError | None = None
        self._append(head)

    def room(self, count: int) -> memoryview:
        """Where up to `count` of the next bytes of the data set may be put; at least one. Then call `took`."""
        if self._filled == len(self._buffer):
            self._flush()
        return self._buffer[self._filled : self._filled + count]

    def took(self, count: int) -> None:
        """So many bytes were put there."""
        self._filled += count

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next bytes of the data set. Never raises."""
        while len(piece):
            room = self.room(len(piece))
            room[:] = piece[: len(room)]
            self.took(len(room))
            piece = piece[len(room) :]

    def _flush(self) -> None:
        """Write and measure what was gathered, in few large calls, or drop it after a refusal."""
        piece, self._filled = self._buffer[: self._filled], 0
        self._append(piece)
        if self._refused is None:
            self._whole.update(piece)
            self._dataset.update(piece)

    def finish(self) -> StoredFile:
        """All has arrived: fsync. Raises OutOfResources, Unavailable: whatever went wrong on the way."""
        self._flush()
        if self._refused is not None:
            raise self._refused
        with storage_errors():
            os.fsync(self._fd)
        self._close()
        digest = self._whole.hexdigest()
        return StoredFile(digest, self._dataset.hexdigest(), self._size, self.path)

    def discard(self) -> None:
        """Remove the file, if it is still under its temporary name. May be called at any time, also twice."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _append(self, piece: bytes | memoryview) -> None:
        self._size += len(piece)
        if self._refused is not None:
            return
        try:
            self._spool.check_size(self._size)
            if self._size >= self._next_check:
                self._spool.check_space()
                self._next_check = self._size + SPACE_CHECK_BYTES
            with storage_errors(), memoryview(piece) as view:
                written = 0
                while written < len(view):  # one write(2) may take less than it was given
                    written += os.write(self._fd, view[written:])
        except PalimpsestError as error:
            self._refused = error
            with suppress(OSError):  # only to free the space early: the file is removed in any case
                os.ftruncate(self._fd, 0)
