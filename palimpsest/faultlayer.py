"""The layer below Python and SQLite that breaks I/O and clocks on purpose, for `palimpsest selftest` and tests.

`faultlayer.c` is compiled once by the machine's C compiler and preloaded into the processes of a gateway under test
(ld.so(8), LD_PRELOAD). What it does is steered through a control file that they map: see `Layer`. It can also keep a
*platter*: what a disk would hold after power loss if it kept what fsync(2) promises and nothing else;
`palimpsest/powerloss.py` makes a folder of it again.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.errors import Unavailable
from gateway.settings import FAULT_LAYER, kernel_cache

__all__ = ["Action", "Layer", "Operation", "Rule", "compiled"]

SOURCE: Final = Path(__file__).with_suffix(".c")
RULES: Final = 32
_HEAD: Final = struct.Struct("<qq504s504s")  # struct control of faultlayer.c
_RULE: Final = struct.Struct("<iiiiII104s128s")
_SIZE: Final = _HEAD.size + RULES * _RULE.size
_COUNT: Final = struct.Struct("<i")
_OFFSET: Final = struct.Struct("<q")


class Operation(IntFlag):
    """Which calls a rule watches. FSYNC: of files; FOLDER: fsync of folders; SEND: send(2), sendmsg(2)."""

    FSYNC = 1
    FOLDER = 2
    RENAME = 4
    UNLINK = 8
    WRITE = 16
    SEND = 32


class Action(IntEnum):
    """What happens to a call: SIGKILL before or after it, or it fails with that errno."""

    KILL_BEFORE = 1
    KILL_AFTER = 2
    EIO = 3
    ENOSPC = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """Strikes `times` calls after letting `skip` pass. role: part of the process's command line; path: of the file's
    path (the new name of a rename; "socket:" of a socket), '' for any.
    """

    role: str
    operation: Operation
    action: Action
    path: str = ""
    skip: int = 0
    times: int = 1


def compiled() -> Path:
    """The shared library, compiled by `cc` where it is not there yet. Raises Unavailable ``no-c-compiler``."""
    source = SOURCE.read_bytes()
    folder = kernel_cache().parent
    library = folder / f"faultlayer-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable("no-c-compiler", "the faults of I/O and clock need a C compiler (apt-get install gcc)")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = library.with_suffix(f".{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}.tmp")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(temporary), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable("no-c-compiler", f"{compiler} cannot compile {SOURCE.name}: {done.stderr.strip()[-400:]}")
    temporary.replace(library)
    return library


class Layer:
    """The control file of one gateway under test; `environment` brings its processes under it."""

    def __init__(self, control: Path, root: Path, platter: Path | None = None) -> None:
        """control: a new file; root: the home whose platter is kept; platter: where, None: none is."""
        control.write_bytes(bytes(_SIZE))
        self.environment = {"LD_PRELOAD": str(compiled()), FAULT_LAYER: str(control)}
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        names = (str(root.resolve()).encode(), str(platter.resolve()).encode() if platter else b"")
        _HEAD.pack_into(self._map, 0, 0, -1, *names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map.close()

    def set_clock(self, seconds: int) -> None:
        """Put the wall clock of all processes that far from the true one; monotonic clocks stay true."""
        _OFFSET.pack_into(self._map, 0, seconds * 10**9)

    def set_free_bytes(self, count: int | None) -> None:
        """What statvfs(2) tells as free; None: the truth."""
        _OFFSET.pack_into(self._map, 8, -1 if count is None else count)

    @contextmanager
    def armed(self, *rules: Rule) -> Iterator[list[int]]:
        """These rules in force; gives their places for `struck`. Disarmed at the end."""
        free = [each for each in range(RULES) if not self._field(each, 0) and not self._field(each, 3)]
        places = free[: len(rules)]
        assert len(places) == len(rules), "more rules than there is room for"
        for place, rule in zip(places, rules, strict=True):
            at = _HEAD.size + place * _RULE.size
            role, path = rule.role.encode(), rule.path.encode()
            _RULE.pack_into(self._map, at, 0, rule.skip, 0, rule.action, rule.operation, 0, role, path)
            _COUNT.pack_into(self._map, at, rule.times)  # last: from now on it strikes
        try:
            yield places
        finally:
            for place in places:
                at = _HEAD.size + place * _RULE.size
                _COUNT.pack_into(self._map, at, 0)
                _COUNT.pack_into(self._map, at + 12, 0)

    def struck(self, place: int) -> int:
        """How many calls a rule has met."""
        return self._field(place, 2)

    def _field(self, place: int, number: int) -> int:
        found: int = _COUNT.unpack_from(self._map, _HEAD.size + place * _RULE.size + 4 * number)[0]
        return found
