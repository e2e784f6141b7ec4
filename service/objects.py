"""Getting an instance's bytes, proven, into an open file: from the spool while it is there, else by the retrieve
worker.

The order is what makes "never wrong pixels" true: open, hash the open file to its end, compare, rewind, and only then
hand it on.  What is sent is the very file that was hashed; that it may be unlinked meanwhile (spool release, cache
pruning) changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from gateway import metrics
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, NotFound, Unavailable
from gateway.index_rows import InstanceRow
from gateway.instance import State
from gateway.part10 import read_meta
from service.problems import HttpProblem
from service.trail import record

__all__ = ["OpenObject", "derived", "open_original"]

CHUNK_BYTES = 256 << 10
RETRIEVE_QUEUE = "retrieve"
RETRIEVE_TASK = "palimpsest.retrieve"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenObject:
    """A verified file, open at its start, of `size` bytes."""

    file: BinaryIO
    size: int

    def chunks(self) -> Iterator[bytes]:
        """The bytes, once; closes the file."""
        with self.file:
            while data := self.file.read(CHUNK_BYTES):
                yield data

    def transfer_syntax(self) -> str:
        """The transfer syntax named by the file's meta information, however long that is. Raises InvalidInstance."""
        with mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return read_meta(mapped)[0]


def open_original(gateway: Gateway, row: InstanceRow) -> OpenObject:
    """The instance as received or, losslessly compressed, as restored. Raises NotFound, Unavailable, IntegrityError.

    A damaged spool file is reported in any case; if the archive has the instance too, that copy is given.
    """
    if row.state != State.RELEASED:
        try:
            return _proven(gateway, row, gateway.spool.open(row.digest), row.digest)
        except NotFound:
            pass  # released since the row was read
        except IntegrityError:
            if row.archive_key is None:
                raise
    restored = gateway.index.facts(row.id).get("restored_sha256")
    return derived(gateway, row, "original", frozenset({row.digest, restored}))


def derived(gateway: Gateway, row: InstanceRow, kind: str, expected: frozenset[str | None] = frozenset()) -> OpenObject:
    """What the retrieve worker makes of an instance: kind 'original', 'metadata' or 'rendered:<format>:<frame>'.

    `expected`: if not empty, the digests (SHA-256, hex) of which the result must have one, whatever the worker states.
    """
    for _ in range(2):  # the cache may be pruned between the answer and the open
        answer = gateway.queue.call(
            RETRIEVE_TASK, [row.id, kind], RETRIEVE_QUEUE, gateway.settings.retrieve_timeout_seconds
        )
        _raise_for(gateway, row, answer)
        try:
            file = (gateway.settings.cache_dir / _relative(answer["path"])).open("rb")
        except FileNotFoundError:
            continue
        if expected and answer["sha256"] not in expected:
            file.close()
            raise _mismatch(gateway, row)
        return _proven(gateway, row, file, answer["sha256"])
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
        raise _mismatch(gateway, row, reason)
    if status == 410:
        raise Gone(reason, "The identity of this instance was destroyed on purpose.")
    if status in (400, 404):
        raise NotFound(reason, "This instance has nothing of the kind asked for.")
    if status == 415:
        raise HttpProblem(406, reason, "This instance cannot be given in the form asked for.")
    wait = float(answer.get("retry_after") or 5)
    raise Unavailable(reason, "The instance cannot be given just now.", retry_after=wait)


def _proven(gateway: Gateway, row: InstanceRow, file: BinaryIO, digest: str) -> OpenObject:
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        file.close()
        raise _mismatch(gateway, row)
    size = file.tell()
    file.seek(0)
    return OpenObject(file, size)


def _mismatch(gateway: Gateway, row: InstanceRow, reason: str = "digest-mismatch") -> IntegrityError:
    """The security event and the error to raise: wrong bytes were found in time and are not served."""
    log.error("digest mismatch on retrieval", extra={"reason": reason, "instance_id": row.id})
    record(gateway, "retrieved", actor="gateway", outcome="failure", reason=reason, instance_id=row.id)
    metrics.RETRIEVED.labels(kind="instances", outcome="failure").inc()
    gateway.index.alert_raise(
        "digest-mismatch", str(row.id), "Bytes read back differ from their digest; nothing was sent.", "critical"
    )
    return IntegrityError(reason, "The stored bytes are not what their digest says; nothing was sent.")
