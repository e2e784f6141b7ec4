"""Finding DICOM files in what a user names, and saying of every other file why it is not one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway import part10
from gateway.errors import PalimpsestError
from palimpsest.compare import dataset_digest


@dataclass(frozen=True)
class Found:
    """A file that can be sent. dataset_digest: SHA-256 of the bytes after group 0002, which is what travels."""

    path: Path
    size: int
    head: part10.Peek
    dataset_digest: str


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be sent: a machine word and a sentence."""

    path: Path
    reason: str
    message: str


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every regular file named or inside a named folder, sorted, each once. A missing path is yielded too."""
    seen: set[Path] = set()
    for path in paths:
        for file in _files_under(path) if path.is_dir() else [path]:
            if file not in seen:
                seen.add(file)
                yield file


def _files_under(folder: Path) -> Iterator[Path]:
    for current, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(current, name) for name in sorted(files))


def inspect(path: Path) -> Found | Skipped:
    """Read a file's UIDs, transfer syntax and digest; memory stays small whatever the file's size."""
    try:
        if not path.is_file():
            return Skipped(path, "no-such-file", "there is no regular file of that name")
        head = part10.peek(path)
        return Found(path, path.stat().st_size, head, dataset_digest(path, head.dataset_offset))
    except PalimpsestError as error:
        return Skipped(path, error.reason, error.message)
    except OSError as error:
        return Skipped(path, "unreadable", error.strerror or type(error).__name__)
