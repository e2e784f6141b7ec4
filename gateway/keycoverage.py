"""Which patient keys a proven backup holds, by their ids: an answer that no clock can make wrong.

`backed-up` in the ring's folder: the backup's SHA-256 (64 hex digits), then the ids without their prefix, 26 characters
each, sorted. It says something only while that backup is known; without it nothing counts as backed up.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import overload

from gateway import keyfile
from gateway.errors import Unavailable
from gateway.patientkeys import PREFIX

__all__ = ["COVERAGE_FILE", "covered", "rewrite", "write"]

COVERAGE_FILE = "backed-up"
_HEAD, _NAME = 64, 26


class _Names(Sequence[bytes]):
    """The names in the file, read where they are looked at: a million patients are 26 MB."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data

    def __len__(self) -> int:
        return (len(self._data) - _HEAD) // _NAME

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        if at >= len(self):
            raise IndexError(at)
        return self._data[_HEAD + at * _NAME : _HEAD + (at + 1) * _NAME]


def write(folder: Path, sha256: str, ids: Iterable[str]) -> None:
    """Note what the backup of this digest holds, in place of what was noted before. Raises Unavailable."""
    names = sorted(key_id.removeprefix(PREFIX) for key_id in ids)
    try:
        keyfile.write_atomic(folder / COVERAGE_FILE, (sha256 + "".join(names)).encode("ascii"))
    except OSError:
        raise Unavailable("keys-unwritable", "the key folder cannot be written") from None


def rewrite(folder: Path, old: str, new: str) -> None:
    """The noted backup has another digest now: keys of shredded patients were taken out of it. Raises Unavailable."""
    path = folder / COVERAGE_FILE
    try:
        data = path.read_bytes() if path.exists() else b""
        if data[:_HEAD] == old.encode("ascii"):
            keyfile.write_atomic(path, new.encode("ascii") + data[_HEAD:])
    except OSError:
        raise Unavailable("keys-unwritable", "the key folder cannot be written") from None


def covered(folder: Path, backups: Collection[str], ids: Iterable[str]) -> frozenset[str]:
    """Those of `ids` that the noted backup holds; none unless its digest is one of `backups`. Raises Unavailable."""
    try:
        with (folder / COVERAGE_FILE).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:_HEAD].decode("latin-1") not in backups or (len(data) - _HEAD) % _NAME:
                return frozenset()
            names = _Names(data)
            return frozenset(key_id for key_id in ids if _in(names, key_id.removeprefix(PREFIX).encode("ascii")))
    except (FileNotFoundError, ValueError):  # never written, or empty
        return frozenset()
    except OSError:
        raise Unavailable("keys-missing", "the list of backed-up patient keys cannot be read") from None


def _in(names: _Names, name: bytes) -> bool:
    at = bisect_left(names, name)
    return at < len(names) and names[at] == name
