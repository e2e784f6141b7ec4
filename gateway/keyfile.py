"""The key ring's files: owner-only, written whole or not at all, locked between processes.

A write goes to a temporary file in the same folder, is fsynced, renamed over the old one, and the folder is fsynced:
after a crash the ring is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gateway.blobs import sync_folder
from gateway.errors import PolicyRefused, Unavailable

RING_FILE = "keyring.json"
LOCK_FILE = "keyring.lock"
#: content of the lock file once a ring was created: from then on a missing ring is a loss, never a first start
RING_EXISTS = b"a key ring was created here\n"


def check_place(folder: Path, archive_dir: Path | None) -> None:
    """Refuse a key folder inside the archive (or around it): who gets the archive must not get its keys."""
    if archive_dir is None:
        return
    keys, archive = folder.resolve(), archive_dir.resolve()
    if keys == archive or keys in archive.parents or archive in keys.parents:
        raise PolicyRefused(
            "keys-in-archive",
            "the key folder and the archive folder must lie apart, so that a copy of the archive never carries its "
            "keys: choose another key folder",
        )


def make_folder(folder: Path) -> None:
    """Create the folder with mode 0700 whatever the umask; an existing one is left as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)


def check_owner_only(path: Path) -> None:
    """Refuse a file or folder that others can read or write, and say what to do. Raises Unavailable if missing."""
    try:
        facts = path.stat()
    except OSError:
        raise Unavailable("keys-missing", f"{path.name} of the key ring cannot be read") from None
    wanted = 0o700 if stat.S_ISDIR(facts.st_mode) else 0o600
    if facts.st_mode & 0o077:
        raise PolicyRefused(
            "keys-permissions",
            f"{path} is open to other users (mode {stat.S_IMODE(facts.st_mode):04o}): run `chmod {wanted:o} {path}`, "
            "and rotate the keys if somebody else may have read them",
        )
    if facts.st_uid != os.geteuid() and os.geteuid() != 0:
        raise PolicyRefused("keys-owner", f"{path} belongs to another user: run Palimpsest as its owner, or `chown` it")


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK_FILE) -> Iterator[int]:
    """Exclusive lock between processes (flock), held for the block; yields the lock file's descriptor."""
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def ring_was_created(lock: int) -> bool:
    """Whether a ring was ever created in the folder of this lock."""
    return os.pread(lock, len(RING_EXISTS), 0) == RING_EXISTS


def mark_created(lock: int) -> None:
    """Remember that a ring exists here."""
    os.pwrite(lock, RING_EXISTS, 0)
    os.fsync(lock)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` with mode 0600, whole or not at all; an existing file is replaced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a new file with mode 0600 and fsync it. Raises FileExistsError; links and renames are not needed (FAT)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def erase(path: Path) -> None:
    """Random bytes over a file, fsynced, before its name goes; a missing one is done already. Raises OSError.

    What a file system or an SSD keeps of the old blocks is beyond us. The caller syncs the folder.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        for _ in range(2):
            os.pwrite(fd, os.urandom(os.fstat(fd).st_size), 0)
            os.fsync(fd)
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)
