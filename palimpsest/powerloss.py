"""What is left on a disk after power loss, made of the platter that `faultlayer.c` kept.

The strict reading of fsync(2): a file's content is what it was at its last fsync, a name is there if its folder was
fsynced since, and nothing else survived. A real disk keeps more, in any mixture: `torn` gives such a mixture, where
each file and each name that was not made durable survives or not by the toss of a coin.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Left", "after_power_loss"]


@dataclass(slots=True)
class Left:
    """files: how many came through; empty: names that survived without content; torn: what survived by chance."""

    files: int = 0
    empty: int = 0
    torn: int = 0


def after_power_loss(platter: Path, target: Path, *, now: Path | None = None, seed: int = 0) -> Left:
    """Make `target` what power loss would leave of the home whose platter this is; its processes are dead.

    now: the home as it is, for a mixture by `seed`; None: nothing survives that was not fsynced.
    """
    left = Left()
    target.mkdir(mode=0o700)
    _folder(platter, "root", target, left)
    if now is not None:
        _tear(now, target, random.Random(seed), left)
    return left


def _folder(platter: Path, key: str, target: Path, left: Left) -> None:
    names = platter / key
    if not names.is_file():
        return  # never fsynced: a folder without any name
    for entry in filter(None, names.read_bytes().split(b"\0")):
        kind, inode, name = entry.decode("utf-8", "surrogateescape").split(" ", 2)
        place = target / name
        if kind == "d":
            place.mkdir(mode=0o700)
            _folder(platter, inode, place, left)
        elif (platter / inode).is_file():
            shutil.copyfile(platter / inode, place)
            place.chmod(0o600)
            left.files += 1
        else:
            place.touch(mode=0o600)
            left.empty += 1


def _tear(now: Path, target: Path, coin: random.Random, left: Left) -> None:
    """Let part of what was not durable survive."""
    for path in sorted(now.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.name.endswith("-shm"):
            continue  # SQLite's shared memory is rebuilt at the first connection
        place = target / path.relative_to(now)
        if coin.random() < 0.5 and (not place.is_file() or place.read_bytes() != path.read_bytes()):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            place.chmod(0o600)
            left.torn += 1
