"""Where archive objects live for good: write-once, and no byte comes out unchecked.

Keys are pseudonymous: <two hex digits>/<envelope UID>.dcm, the envelope UID being a keyed pseudonym itself.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from gateway.blobs import file_digest, make_durable, storage_errors, sync_folder
from gateway.errors import IntegrityError, NotFound, ObjectUnavailable, Unavailable
from gateway.uids import parse_uid

_KEY: Final = re.compile(r"[0-9a-f]{2}/[0-9.]{1,64}\.dcm")


def archive_key(envelope_uid: str) -> str:
    """The key of an envelope. Raises BadUID."""
    uid = parse_uid(envelope_uid, "envelope-uid")
    return f"{sha256(uid.encode()).hexdigest()[:2]}/{uid}.dcm"


def is_key(key: str) -> bool:
    """True for what `archive_key` may have made."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """The key itself. Raises IntegrityError for a malformed one."""
    if not is_key(key):
        raise IntegrityError("bad-key", "not an archive key")
    return key


class ArchiveStore(Protocol):
    """What every archive must do; tests/contract/test_archive_store.py says it in code."""

    def put(self, key: str, data: bytes, digest: str) -> None:
        """Store durably. Again with the same bytes: nothing happens. With other bytes: IntegrityError."""

    def get(self, key: str, digest: str) -> bytes:
        """The bytes, whose SHA-256 is `digest`. Raises NotFound, IntegrityError, Unavailable."""

    def map(self, key: str, digest: str) -> memoryview:
        """The same without holding them in memory, where the archive can; the system takes back what it wants of it."""

    def read_unchecked(self, key: str) -> bytes:
        """The bytes as they lie there, where no digest is known: only for what checks itself. Raises NotFound."""

    def exists(self, key: str) -> bool:
        """True if something lies under the key."""

    def keys(self) -> Iterator[str]:
        """All keys, in no order: what a rebuild starts from."""

    def mend(self, key: str, data: bytes, digest: str) -> None:
        """Put back what lay under a key, only where something of another digest, or nothing, lies there now.

        data: of that digest. What was there is kept aside where the archive can. Raises IntegrityError, Unavailable.
        """

    def ping(self) -> None:
        """Raise Unavailable unless it can be used."""


def read_one(archive: ArchiveStore, read: Callable[[], bytes]) -> bytes:
    """What `read` gives of one object. Raises ObjectUnavailable where that cannot be read and the archive answers all
    the same, Unavailable where it does not; what `read` raises else.
    """
    try:
        return read()
    except Unavailable as error:
        archive.ping()
        raise ObjectUnavailable(error.reason, error.message, error.retry_after) from None


class FilesystemArchive:
    """An archive in a folder: temporary file, fsync, hard link (which never replaces), fsync of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._durable: set[Path] = set()

    def path(self, key: str) -> Path:
        """Where the object of that key lies. Raises IntegrityError for a malformed key."""
        return self.folder / check_key(key)

    def put(self, key: str, data: bytes, digest: str) -> None:
        """See ArchiveStore."""
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "the bytes to archive are not what their digest says")
        target = self.path(key)
        with storage_errors():
            make_durable(target.parent, self._durable)
            if not self._link(target, data):
                check_same(self, key, digest)
            sync_folder(target.parent)

    def read_unchecked(self, key: str) -> bytes:
        """See ArchiveStore."""
        with storage_errors(), _of_an_object():
            return self.path(key).read_bytes()

    def get(self, key: str, digest: str) -> bytes:
        """See ArchiveStore."""
        data = self.read_unchecked(key)
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "an archive object is not what was recorded")
        return data

    def map(self, key: str, digest: str) -> memoryview:
        """See ArchiveStore. Nobody writes to an object under its key: what was checked stays what is mapped."""
        with storage_errors(), _of_an_object(), self.path(key).open("rb") as file:
            if file_digest(file) != digest:
                raise IntegrityError("digest-mismatch", "an archive object is not what was recorded")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # unmapped with its last view

    def mend(self, key: str, data: bytes, digest: str) -> None:
        """See ArchiveStore. The damaged file gets the name <key>.damaged-<its first digest digits>, which is no key."""
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "the bytes to archive are not what their digest says")
        target = self.path(key)
        with storage_errors():
            if target.exists():
                try:
                    with _of_an_object(), target.open("rb") as file:
                        found = file_digest(file)
                except IntegrityError as error:
                    found = error.reason
                if found == digest:
                    return
                target.replace(target.with_name(f"{target.name}.damaged-{found[:8]}"))
        self.put(key, data, digest)

    def exists(self, key: str) -> bool:
        """See ArchiveStore."""
        return self.path(key).is_file()

    def keys(self) -> Iterator[str]:
        """See ArchiveStore."""
        for shard in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for path in sorted(shard.glob("*.dcm")):
                key = f"{shard.name}/{path.name}"
                if is_key(key):
                    yield key

    def ping(self) -> None:
        """See ArchiveStore."""
        if not (self.folder.is_dir() and os.access(self.folder, os.R_OK | os.W_OK | os.X_OK)):
            raise Unavailable("archive-not-writable", "the archive's folder is missing or cannot be written")

    def _link(self, target: Path, data: bytes) -> bool:
        """True if the object was made, False if something lay there already."""
        fd, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, target)
        except FileExistsError:
            return False
        finally:
            Path(name).unlink(missing_ok=True)
        return True


def check_same(archive: ArchiveStore, key: str, digest: str) -> None:
    """What lies under the key already is what was to be put there. Raises IntegrityError ``write-once``."""
    try:
        archive.get(key, digest)
    except IntegrityError:
        raise IntegrityError("write-once", "other bytes lie under that key already") from None


@contextmanager
def _of_an_object() -> Iterator[None]:
    """What is wrong with one object, and not with the archive: nothing there, or a sector that cannot be read (EIO)."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound("not-archived", "there is no archive object of that key") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise IntegrityError("unreadable", "the disk fails where an archive object lies") from None
