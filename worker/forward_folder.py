"""Delivery into a folder, mounted from anywhere: written aside, fsynced, renamed, read back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.settings import Destination
from worker.sender import Delivery

__all__ = ["FolderSender"]


class FolderSender:
    """A folder, mounted from anywhere: written aside, fsynced, renamed, read back."""

    def __init__(self, destination: Destination) -> None:
        self._root = Path(destination.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def accepts(self, sop_class: str, syntaxes: Sequence[str]) -> Sequence[str]:
        """All: a folder reads nothing."""
        return syntaxes

    def send(self, name: str, part10: bytes) -> Delivery:
        """Write one file as <path>/<name>; the same bytes again are a success, other bytes are refused."""
        target = self._root / name
        try:
            if not self._root.is_dir():
                return Delivery("down", "folder-missing")
            if target.exists():
                same = _digest(target) == sha256(part10).digest()
                return Delivery("done", "already-there") if same else Delivery("permanent", "other-bytes-there")
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(target, part10)
            if _digest(target) != sha256(part10).digest():
                return Delivery("retry", "read-back-differs")
        except OSError:
            return Delivery("down", "folder-io-error")
        return Delivery("done", "stored")


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        hasher = sha256()
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.digest()


def _write_durably(target: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".incoming-", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
