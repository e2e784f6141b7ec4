"""Files by content: a folder of write-once files named by their SHA-256, each durable before its name exists.

Layout: <folder>/<first two hex digits>/<digest>. A temporary file lives in the same file system, because rename must
not cross one; it is fsynced, renamed, and the folder is fsynced: after that a power loss cannot take it back.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from gateway.errors import IntegrityError, NotFound, OutOfResources, Unavailable

CHUNK: Final = 1 << 20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FULL: Final = frozenset({28, 122})  # ENOSPC, EDQUOT (errno(3))


class BlobStore:
    """A content-addressed folder. Several processes may use it at once; equal content is one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._durable: set[Path] = set()  # subfolders whose own names this process has made durable

    def path(self, digest: str) -> Path:
        """Where the content of that digest lies or would lie. Raises IntegrityError for anything but a digest."""
        if _DIGEST.fullmatch(digest) is None:
            raise IntegrityError("bad-digest", "not a SHA-256 in hex")
        return self.folder / digest[:2] / digest

    def exists(self, digest: str) -> bool:
        """True if a file of that name is there (its content is checked when read). Raises Unavailable."""
        path = self.path(digest)
        with storage_errors():
            return path.is_file()

    def put(self, data: bytes) -> str:
        """Store bytes durably; returns the digest. Raises OutOfResources."""
        digest = sha256(data).hexdigest()
        if self.exists(digest) and self.path(digest).stat().st_size == len(data):
            return digest
        with storage_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(prefix=".tmp-", dir=self.folder)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self.place(Path(name), digest)
            finally:
                Path(name).unlink(missing_ok=True)
        return digest

    def place(self, temporary: Path, digest: str) -> Path:
        """Give an fsynced temporary file of this file system its final name, durably."""
        target = self.path(digest)
        with storage_errors():
            make_durable(target.parent, self._durable)
            temporary.replace(target)
            sync_folder(target.parent)
        return target

    def read(self, digest: str) -> bytes:
        """The content, digest checked. Raises NotFound, IntegrityError ``digest-mismatch``, Unavailable."""
        with storage_errors():
            try:
                data = self.path(digest).read_bytes()
            except FileNotFoundError:
                raise NotFound("no-such-file", "there is no file of that digest") from None
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "a stored file is not what its name says")
        return data

    def open(self, digest: str) -> BinaryIO:
        """The file opened for reading, its digest *not* checked: see `check`. Raises NotFound."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise NotFound("no-such-file", "there is no file of that digest") from None

    def map(self, digest: str) -> mmap.mmap:
        """The content as mapped memory, which the system may take back, digest checked. Raises as `read`."""
        with self.open(digest) as file, storage_errors():
            if file_digest(file) != digest:
                raise IntegrityError("digest-mismatch", "a stored file is not what its name says")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def check(self, digest: str) -> None:
        """Read the whole file in bounded memory. Raises NotFound or IntegrityError ``digest-mismatch``."""
        with self.open(digest) as file, storage_errors():
            if file_digest(file) != digest:
                raise IntegrityError("digest-mismatch", "a stored file is not what its name says")

    def remove(self, digest: str) -> None:
        """Delete the file if it is there. Not fsynced: a deletion undone by power loss is swept again.

        Raises Unavailable ``storage-error``: also under the database's lock it is the disk's trouble.
        """
        path = self.path(digest)
        with storage_errors():
            path.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        """Digests of all files, in no order; a snapshot that other processes may overtake."""
        for shard in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for file in shard.iterdir():
                if _DIGEST.fullmatch(file.name):
                    yield file.name


def file_digest(file: BinaryIO, start: int = 0) -> str:
    """SHA-256 (hex) of an open file from byte `start`, in bounded memory."""
    hasher = sha256()
    file.seek(start)
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return hasher.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2): a file's fsync does not cover its folder entry)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_durable(subfolder: Path, known: set[Path]) -> None:
    """Make a folder, and its name in the folder above durable: one that another process made need not be yet.

    known: what this process has seen to before; added to.
    """
    if subfolder in known and subfolder.is_dir():
        return
    subfolder.mkdir(parents=True, exist_ok=True)
    sync_folder(subfolder.parent)
    known.add(subfolder)


@contextmanager
def storage_errors() -> Iterator[None]:
    """OSErrors become ours: a full disk OutOfResources, everything else Unavailable; paths are not repeated."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfResources("disk-full", "no space left on the device") from None
        name = type(error).__name__
        raise Unavailable("storage-error", f"a file could not be written or read ({name} {error.errno})") from None
