"""The hot cache: what workers made of instances, where the service finds it without asking them. Content-addressed,
bounded, checked by digest whenever it is read, safe to delete.

Layout under the cache folder::

    objects/<aa>/<sha256>     the bytes; the name is their digest, so a reader can check what it got
    entries/<key>.json        {"sha256", "size"}: which object answers one request
    locks/<aa>.lock           flock stripes: equal requests wait for the first one and then find its result

A key is one digest of the instance and one of what was asked for, so that all there is of an instance is found, and
dropped, by its name. Objects and entries appear by rename, so a reader sees all of a file or nothing of it.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from gateway.transfer_syntaxes import HTJ2K_RPCL

if TYPE_CHECKING:
    from gateway.settings import Settings

Buffer = bytes | memoryview | mmap.mmap

__all__ = ["HOT_KIND", "TRANSCODED", "Cache", "CacheEntry", "cache_key", "cache_of"]

TRANSCODED: Final = "transcoded:"
#: The copy that viewers are given: HTJ2K with its resolutions in order of size.
HOT_KIND: Final = TRANSCODED + HTJ2K_RPCL
#: Part of the key: a new way of making something is another request.
_VERSIONS: Final = {
    "original": "",
    "metadata": "",
    "rendered": "render/1",
    "transcoded": "transcode/1",
    "corrected": "correct/1",
}


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """path: relative to the cache folder; sha256: hex digest of the bytes; size: bytes."""

    path: str
    sha256: str
    size: int


def cache_key(digest: str, kind: str) -> str:
    """The key of one kind (worker/retrieve.py) of the instance whose received file has that digest."""
    asked = f"{kind}\0{_VERSIONS.get(kind.partition(':')[0], '')}"
    return f"{_subject(digest)}-{sha256(asked.encode()).hexdigest()[:32]}"


def _subject(digest: str) -> str:
    return sha256(f"instance:{digest}".encode()).hexdigest()[:32]


def cache_of(settings: Settings) -> Cache:
    """The cache of a home folder."""
    return Cache(settings.cache_dir, settings.cache_max_bytes)


class Cache:
    """One cache folder, used by many processes at once."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the key's stripe; the kernel lets go of it if this process dies."""
        path = self._folder / "locks" / f"{key[-2:]}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def find(self, key: str) -> CacheEntry | None:
        """The entry of a request if its object is there and still has its digest; its age restarts."""
        try:
            stored = json.loads(self._entry_path(key).read_bytes())
            entry = _entry(str(stored["sha256"]), int(stored["size"]))
            path = self._folder / entry.path
            if _file_digest(path) != entry.sha256:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except (OSError, ValueError, KeyError, TypeError):  # pruned meanwhile, or damaged: both mean "not cached"
            return None
        return entry

    def store(self, key: str, data: bytes) -> CacheEntry:
        """Put bytes under their digest and let the request's key point to them."""
        entry = _entry(sha256(data).hexdigest(), len(data))
        _replace(self._folder / entry.path, data)
        _replace(self._entry_path(key), json.dumps({"sha256": entry.sha256, "size": entry.size}).encode())
        return entry

    def store_written(self, key: str, write_all: Callable[[Callable[[Buffer], object]], None]) -> CacheEntry:
        """The same for bytes that come in pieces. Nothing is kept when `write_all` raises."""
        folder = self._folder / "objects" / key[:2]  # where `prune` finds what a kill left behind
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                hasher = sha256()

                def write(piece: Buffer) -> None:
                    hasher.update(piece)
                    file.write(piece)

                write_all(write)
                entry = _entry(hasher.hexdigest(), file.tell())
            target = self._folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(name, target)
        finally:
            with suppress(FileNotFoundError):  # renamed: the usual case
                os.unlink(name)
        _replace(self._entry_path(key), json.dumps({"sha256": entry.sha256, "size": entry.size}).encode())
        return entry

    def drop_instances(self, digests: Iterable[str]) -> None:
        """Forget all that was made of the instances whose received files have these digests, and delete it."""
        wanted = {_subject(digest) for digest in digests}
        for path in (self._folder / "entries").glob("*-*.json"):
            if path.stem.partition("-")[0] not in wanted:
                continue
            with self.locked(path.stem), suppress(OSError, ValueError, KeyError, TypeError):
                stored = json.loads(path.read_bytes())
                (self._folder / _entry(str(stored["sha256"]), 0).path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def open(self, key: str) -> tuple[BinaryIO, str] | None:
        """(open file, its SHA-256) of a request, compared just now; None if it is not there or is damaged."""
        entry = self.find(key)
        if entry is None:
            return None
        with suppress(FileNotFoundError):  # pruned meanwhile
            return (self._folder / entry.path).open("rb"), entry.sha256
        return None

    def prune(self) -> int:
        """Delete the longest unused objects until the cache fits its bound, then entries without object; bytes
        freed.
        """
        objects = sorted(self._objects(), key=lambda item: item[1].st_mtime)
        self._drop_of_older_names()
        surplus = sum(status.st_size for _, status in objects) - self._max_bytes
        freed = 0
        for path, status in objects:
            if freed >= surplus:
                break
            path.unlink(missing_ok=True)
            freed += status.st_size
        if freed:
            self._drop_dangling_entries()
        return freed

    def _drop_of_older_names(self) -> None:
        """Entries whose names do not say of which instance they are: nothing could drop them by it."""
        for path in (self._folder / "entries").glob("*.json"):
            if "-" not in path.stem:
                with suppress(OSError, ValueError, KeyError, TypeError):
                    stored = json.loads(path.read_bytes())
                    (self._folder / _entry(str(stored["sha256"]), 0).path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _drop_dangling_entries(self) -> None:
        for path in (self._folder / "entries").glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                stored = json.loads(path.read_bytes())
                if not (self._folder / _entry(str(stored["sha256"]), 0).path).exists():
                    path.unlink(missing_ok=True)

    def _objects(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in (self._folder / "objects").glob("*/*"):
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _entry_path(self, key: str) -> Path:
        return self._folder / "entries" / f"{key}.json"


def _entry(digest: str, size: int) -> CacheEntry:
    return CacheEntry(f"objects/{digest[:2]}/{digest}", digest, size)


def _file_digest(path: Path) -> str:
    hasher = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):  # renamed: the usual case
            os.unlink(name)
