"""Getting an instance's bytes, proven, into an open file: from the spool while it is there, else by the retrieve
worker.

The order is what makes "never wrong pixels" true: open, hash the open file to its end, compare, rewind, and only then
hand it on.  What is sent is the very file that was hashed; that it may be unlinked meanwhile (spool release, cache
pruning) changes nothing.  `locate` is the one way to an object in a given transfer syntax.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from gateway import metrics
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, NotFound, Unavailable
from gateway.hotcache import HOT_KIND, cache_key, cache_of
from gateway.index_rows import InstanceRow
from gateway.instance import State
from gateway.part10 import read_meta
from gateway.transfer_syntaxes import MADE, NATIVE
from service.problems import HttpProblem
from service.trail import record

__all__ = [
    "AS_IS", "HOT", "Located", "OpenObject", "derived", "given", "locate", "mismatch", "open_as", "open_given",
    "open_original", "proven",
]  # fmt: skip

CHUNK_BYTES = 256 << 10
RETRIEVE_QUEUE = "retrieve"
RETRIEVE_TASK = "palimpsest.retrieve"
#: Among transfer syntaxes: as the object is here.
AS_IS = "*"
#: Among transfer syntaxes: the copy in the hot cache, if there is one. For pixels alone, and who takes any syntax.
HOT = "hot"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """An open file and the SHA-256 (hex) that it must have; not hashed yet."""

    file: BinaryIO
    digest: str


@dataclass(frozen=True)
class OpenObject:
    """A verified file, open at its start, of `size` bytes; digest: its SHA-256 (hex)."""

    file: BinaryIO
    size: int
    digest: str = ""

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end), once; closes the file."""
        left = (self.size if end is None else end) - start
        with self.file:
            self.file.seek(start)
            while left > 0 and (data := self.file.read(min(CHUNK_BYTES, left))):
                left -= len(data)
                yield data

    def close(self) -> None:
        """For one that is not sent after all."""
        self.file.close()

    def transfer_syntax(self) -> str:
        """The transfer syntax named by the file's meta information, however long that is. Raises InvalidInstance."""
        return syntax_of(self.file)


def syntax_of(file: BinaryIO) -> str:
    """The transfer syntax of an open Part 10 file. Raises InvalidInstance."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return read_meta(mapped)[0]


def given(row: InstanceRow, syntax: str = "") -> str:
    """The kind (see worker/retrieve.py) in which an instance is given under its UIDs: corrected, where it is."""
    if row.coerced:
        return f"corrected:{syntax}" if syntax else "corrected"
    return f"transcoded:{syntax}" if syntax else "original"


def open_given(gateway: Gateway, row: InstanceRow) -> OpenObject:
    """The instance as it is given under its UIDs: the original, or, if it was corrected, that with another header."""
    return derived(gateway, row, given(row)) if row.coerced else open_original(gateway, row)


def open_original(gateway: Gateway, row: InstanceRow) -> OpenObject:
    """The instance as received or, losslessly compressed, as restored. Raises NotFound, Unavailable, IntegrityError.

    A damaged spool file is reported in any case; if the archive has the instance too, that copy is given.
    """
    return _from_spool(gateway, row) or proven(gateway, row, _restored(gateway, row))


def open_as(gateway: Gateway, row: InstanceRow, syntaxes: Sequence[str]) -> OpenObject:
    """The instance in the first of the transfer syntaxes that it can be given in; AS_IS: as it is here. Corrected, if
    it was: `dataclasses.replace(row, coerced=None)` gives the original.

    Raises HttpProblem 406 ``not-transcodable`` when none will do, else as `open_original`.
    """
    for syntax in syntaxes:
        if _is_own(row, syntax):
            return open_given(gateway, row)
        received = None if row.coerced or syntax != row.transfer_syntax else _from_spool(gateway, row)
        if received is not None:
            return received
        if not _possible(row, syntax):
            continue
        try:
            return derived(gateway, row, given(row, syntax))
        except HttpProblem as problem:
            if problem.status_code != 406:
                raise
    raise _not_transcodable()


def locate(gateway: Gateway, row: InstanceRow, syntaxes: Sequence[str], *, spool: bool = True) -> Located:
    """As `open_as`, for who proves what is read in another way than by hashing the whole file first, and reads pixels
    only: the header is the original's. spool: False if the file there is known to be damaged.
    """
    for syntax in syntaxes:
        if syntax == HOT:
            hot = _cached(gateway, row, HOT_KIND)
            if hot is not None:
                return hot
            continue
        spooled = _spooled(gateway, row) if spool and syntax in (AS_IS, row.transfer_syntax) else None
        if spooled is not None:
            return spooled
        if _is_own(row, syntax):
            return _restored(gateway, row)
        if not _possible(row, syntax):
            continue
        try:
            return _answered(gateway, row, f"transcoded:{syntax}")
        except HttpProblem as problem:
            if problem.status_code != 406:
                raise
    raise _not_transcodable()


def derived(gateway: Gateway, row: InstanceRow, kind: str) -> OpenObject:
    """What the retrieve worker makes of an instance; the kinds are those of worker/retrieve.py.

    Raises NotFound, Gone, Unavailable, IntegrityError, HttpProblem 406 with the worker's reason.
    """
    return proven(gateway, row, _answered(gateway, row, kind))


def proven(gateway: Gateway, row: InstanceRow, found: Located) -> OpenObject:
    """The same file, hashed to its end and rewound. Raises IntegrityError; the file is closed then."""
    actual = hashlib.file_digest(found.file, "sha256").hexdigest()
    if actual != found.digest:
        found.file.close()
        raise mismatch(gateway, row)
    size = found.file.tell()
    found.file.seek(0)
    return OpenObject(found.file, size, actual)


def _from_spool(gateway: Gateway, row: InstanceRow) -> OpenObject | None:
    spooled = _spooled(gateway, row)
    try:
        return None if spooled is None else proven(gateway, row, spooled)
    except IntegrityError:
        if row.archive_key is None:
            raise
        return None


def _spooled(gateway: Gateway, row: InstanceRow) -> Located | None:
    if row.state == State.RELEASED:
        return None
    try:
        return Located(gateway.spool.open(row.digest), row.digest)
    except NotFound:
        return None  # released since the row was read


def _restored(gateway: Gateway, row: InstanceRow) -> Located:
    restored = gateway.index.facts(row.id).get("restored_sha256")
    found = _answered(gateway, row, "original")
    if found.digest not in (row.digest, restored):  # whatever the worker states
        found.file.close()
        raise mismatch(gateway, row)
    return found


def _cached(gateway: Gateway, row: InstanceRow, kind: str) -> Located | None:
    """What is in the cache already, compared with its digest just now; the worker is not asked."""
    found = cache_of(gateway.settings).open(cache_key(row.digest, kind))
    metrics.CACHE.labels(result="miss" if found is None else "hit").inc()
    return None if found is None else Located(*found)


def _answered(gateway: Gateway, row: InstanceRow, kind: str) -> Located:
    cached = _cached(gateway, row, kind)
    if cached is not None:
        return cached
    for _ in range(2):  # the cache may be pruned between the answer and the open
        answer = gateway.queue.call(
            RETRIEVE_TASK, [row.id, kind], RETRIEVE_QUEUE, gateway.settings.retrieve_timeout_seconds
        )
        _raise_for(gateway, row, answer)
        try:
            return Located((gateway.settings.cache_dir / _relative(answer["path"])).open("rb"), str(answer["sha256"]))
        except FileNotFoundError:
            continue
    raise Unavailable("retrieve-cache-miss", "The restored file was removed before it could be read.", retry_after=2)


def _relative(path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise IntegrityError("cache-path", "The retrieve worker named a file outside the cache.")
    return relative


def _raise_for(gateway: Gateway, row: InstanceRow, answer: dict[str, Any]) -> None:
    """Turn the worker's refusal (a problem with its HTTP status) into an error of this side."""
    reason = answer.get("error")
    if reason is None:
        return
    status = answer.get("status")
    if status == 500:
        raise mismatch(gateway, row, reason)
    if status == 410:
        raise Gone(reason, "The identity of this instance was destroyed on purpose.")
    if reason == "bad-viewport":
        raise HttpProblem(400, reason, "The region of the viewport lies outside the image.")
    if status in (400, 404):
        raise NotFound(reason, "This instance has nothing of the kind asked for.")
    if status == 415:
        raise HttpProblem(406, reason, "This instance cannot be given in the form asked for.")
    wait = float(answer.get("retry_after") or 5)
    raise Unavailable(reason, "The instance cannot be given just now.", retry_after=wait)


def _is_own(row: InstanceRow, syntax: str) -> bool:
    """Whether the object as it is will do: always, or because what is not compressed is restored byte for byte."""
    return syntax == AS_IS or (syntax == row.transfer_syntax and syntax in NATIVE)


def _possible(row: InstanceRow, syntax: str) -> bool:
    return syntax in MADE or syntax == row.transfer_syntax


def _not_transcodable() -> HttpProblem:
    return HttpProblem(
        406,
        "not-transcodable",
        "The pixels cannot be given without loss in the transfer syntaxes asked for: transfer-syntax=* takes any.",
    )


def mismatch(gateway: Gateway, row: InstanceRow, reason: str = "digest-mismatch") -> IntegrityError:
    """The security event and the error to raise: wrong bytes were found in time and are not served."""
    log.error("digest mismatch on retrieval", extra={"reason": reason, "instance_id": row.id})
    record(gateway, "retrieved", actor="gateway", outcome="failure", reason=reason, instance_id=row.id)
    metrics.RETRIEVED.labels(kind="instances", outcome="failure").inc()
    gateway.index.alert_raise(
        "digest-mismatch", str(row.id), "Bytes read back differ from their digest; nothing was sent.", "critical"
    )
    return IntegrityError(reason, "The stored bytes are not what their digest says; nothing was sent.")
