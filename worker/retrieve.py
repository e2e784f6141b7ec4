"""Giving back: the original, its metadata, a rendered frame or the object in another transfer syntax, as a checked file
in the shared cache.

Source of the original, in this order: the spool (the file as received), then the archive (restored, and compared
with the digest that the proof recorded).  Equal requests coalesce: the second waits for the first and finds its result.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

from gateway.archive import ArchiveStore
from gateway.audit import AuditEvent
from gateway.blobs import file_digest
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, NotFound, PalimpsestError, Unavailable
from gateway.hotcache import TRANSCODED, Cache, CacheEntry, cache_key, cache_of
from gateway.index import InstanceRow
from gateway.instance import Form
from gateway.keyuse import used_keys
from gateway.part10 import read_meta
from gateway.rendering import Rendering
from worker.coerce import write_corrected
from worker.indexing import metadata_of
from worker.render import render, render_image
from worker.restore import OpenGroup, Write, exact_image, rebuild
from worker.transcode import write_transcoded

__all__ = ["original_bytes", "retrieve", "retrieve_failure", "write_original"]

CORRECTED = "corrected"
COPIED_BYTES = 1 << 20


def retrieve(gw: Gateway, instance_id: int, kind: str) -> dict[str, Any]:
    """{'path' relative to the cache folder, 'sha256', 'size'} of what was asked for.

    kind: original | metadata | rendered:<format>:<frame>[:<options>] (gateway/rendering.py; frames count from 1) |
    transcoded:<transfer syntax UID>: the original's UIDs, header and pixels in that syntax, its own: the original |
    corrected[:<transfer syntax UID> or rendered:...]: any of them under the corrections in force (gateway/coercion.py).
    Raises NotFound, IntegrityError, Unavailable, Unsupported (``not-transcodable``, ...), InvalidInstance ``bad-kind``.
    """
    if kind == CORRECTED or kind.startswith(f"{CORRECTED}:"):
        return _corrected(gw, instance_id, kind)
    syntax = kind.removeprefix(TRANSCODED) if kind.startswith(TRANSCODED) else ""
    how = Rendering.parse(kind) if not syntax and kind not in ("original", "metadata") else None
    row = gw.index.get(instance_id)
    key, cache = cache_key(row.digest, kind), cache_of(gw.settings)
    with cache.locked(key):
        entry = cache.find(key)
    if entry is not None:
        return _reply(entry)
    if how is not None and row.shredded_at is not None:
        return _stored(gw, row, cache, key, lambda write: write(_rendered_without_identity(gw, row, how)))
    if how is not None or syntax:
        return _of_original(gw, cache, key, row, how, syntax)
    whole = write_original if kind == "original" else _write_metadata
    return _stored(gw, row, cache, key, lambda write: whole(gw, row, write))


def _corrected(gw: Gateway, instance_id: int, kind: str) -> dict[str, Any]:
    """The object was compared with its digest, or made of one that was, before a byte of its header is changed."""
    wanted = kind.removeprefix(CORRECTED).removeprefix(":")
    how = Rendering.parse(wanted) if wanted.startswith("rendered:") else None
    found = gw.index.replacement(instance_id)
    if found is None:
        return retrieve(gw, instance_id, wanted if how else f"{TRANSCODED}{wanted}" if wanted else "original")
    row, (name, elements) = gw.index.get(instance_id), found
    key, cache = cache_key(row.digest, f"{kind}:{name}"), cache_of(gw.settings)
    with cache.locked(key):
        entry = cache.find(key)
    if entry is not None:
        return _reply(entry)
    if how is not None:
        with _checked(gw, _corrected(gw, instance_id, CORRECTED)) as file:
            return _stored(gw, row, cache, key, lambda write: write(render(file, how)))
    with _open_base(gw, row, wanted) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return _stored(gw, row, cache, key, lambda write: write_corrected(mapped, elements, write))


@contextmanager
def _open_base(gw: Gateway, row: InstanceRow, syntax: str) -> Iterator[BinaryIO]:
    """What a corrected object is made of, digest checked. Raises as `retrieve`."""
    if not syntax:
        with _open_original(gw, row) as file:
            yield file
        return
    with _checked(gw, retrieve(gw, row.id, TRANSCODED + syntax)) as file:
        yield file


@contextmanager
def _checked(gw: Gateway, made: dict[str, Any]) -> Iterator[BinaryIO]:
    """A cached file, digest checked. Raises IntegrityError, Unavailable."""
    with _cached(gw, made) as file:
        if file_digest(file) != made["sha256"]:
            raise IntegrityError("digest-mismatch", "a cached file is not what its name says")
        file.seek(0)
        yield file


def _cached(gw: Gateway, made: dict[str, Any]) -> BinaryIO:
    try:
        return (gw.settings.cache_dir / str(made["path"])).open("rb")
    except FileNotFoundError:
        raise Unavailable("retrieve-cache-miss", "the cache is too small to hold one object", 2) from None


def _stored(
    gw: Gateway, row: InstanceRow, cache: Cache, key: str, write_all: Callable[[Write], object]
) -> dict[str, Any]:
    """row: as it was read before. Raises Gone if the instance was shredded since: nothing of it stays in the cache.

    Shredding marks the row first and empties the cache then, so whichever of the two is later sees the other's work.
    """
    with cache.locked(key):
        entry = cache.find(key) or cache.store_written(key, write_all)
        shredded = row.shredded_at is None and gw.index.get(row.id).shredded_at is not None
    if shredded:
        cache.drop_instances([row.digest])
        raise _gone()
    return _reply(entry)


def _of_original(
    gw: Gateway, cache: Cache, key: str, row: InstanceRow, how: Rendering | None, syntax: str
) -> dict[str, Any]:
    """What is made of the original: the file itself is not held in memory."""
    with _open_original(gw, row) as file:
        if how is not None:
            return _stored(gw, row, cache, key, lambda write: write(render(file, how)))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last view of it
        if read_meta(mapped)[0] == syntax:
            return retrieve(gw, row.id, "original")
        return _stored(gw, row, cache, key, lambda write: write_transcoded(mapped, syntax, _forgetting(mapped, write)))


def _forgetting(mapped: mmap.mmap, write: Write) -> Write:
    """`write`, after which what was read of the map is the system's again: it would count as this process's memory."""

    def write_and_forget(piece: bytes | memoryview | mmap.mmap) -> None:
        write(piece)
        if len(piece) > mmap.PAGESIZE:
            mapped.madvise(mmap.MADV_DONTNEED)

    return write_and_forget


@contextmanager
def _open_original(gw: Gateway, row: InstanceRow) -> Iterator[BinaryIO]:
    """The object as it is given back, digest checked; restored into the cache if the spool has it no more.

    Not to be used under a lock of the cache: it takes one itself. Raises as `write_original`.
    """
    if row.shredded_at is not None:
        raise _gone()
    file = _spooled(gw, row)
    if file is None:
        file = _cached(gw, retrieve(gw, row.id, "original"))
    with file:
        yield file


def _spooled(gw: Gateway, row: InstanceRow) -> BinaryIO | None:
    """The file as received, digest checked; None if it was released, or is damaged and the archive has another."""
    try:
        file = gw.spool.open(row.digest)
    except NotFound:
        return None
    if file_digest(file) == row.digest:
        file.seek(0)
        return file
    file.close()
    if row.archive_key is None:
        raise IntegrityError("digest-mismatch", "a stored file is not what its name says")
    return None


def original_bytes(gw: Gateway, row: InstanceRow) -> bytes:
    """The object as it is given back, digest checked. Raises as `write_original`."""
    out = io.BytesIO()
    write_original(gw, row, out.write)
    return out.getvalue()


def write_original(gw: Gateway, row: InstanceRow, write: Write) -> None:
    """The same, piece by piece; good once this returns. Raises Gone, NotFound, IntegrityError, Unavailable."""
    if row.shredded_at is not None:
        raise _gone()
    file = _spooled(gw, row)
    if file is not None:
        with file:
            while piece := file.read(COPIED_BYTES):
                write(piece)
        return
    if row.archive_key is None or row.archive_digest is None:
        raise NotFound("not-stored", "neither the spool nor the archive holds this instance")
    with used_keys():
        if row.member is None:
            restored = rebuild(gw.archive.map(row.archive_key, row.archive_digest), gw.keys, write)
        else:
            restored = _group(gw.archive, row.archive_key, row.archive_digest).rebuild(row.member, gw.keys, write)
        gw.index.audit(AuditEvent("restored", "worker", instance_id=row.id))
    if restored.sha256 not in (row.digest, gw.index.facts(row.id).get("restored_sha256")):
        raise IntegrityError("restore-digest", "the archive restored to something other than what was proven")


@lru_cache(maxsize=1)
def _group(archive: ArchiveStore, key: str, digest: str) -> OpenGroup:
    """The group that was asked for last stays open: a series is fetched slice after slice, and one read gives all."""
    return OpenGroup(archive.map(key, digest))


def _rendered_without_identity(gw: Gateway, row: InstanceRow, how: Rendering) -> bytes:
    """A picture of a frame of a shredded instance from its pixels alone, which need no patient's key."""
    if row.form is Form.PASSTHROUGH:
        raise _gone()
    envelope = gw.archive.map(str(row.archive_key), str(row.archive_digest))
    return render_image(exact_image(envelope, gw.keys, member=row.member), how)


def _write_metadata(gw: Gateway, row: InstanceRow, write: Write) -> None:
    write(_metadata(gw, row).encode())


def _gone() -> Gone:
    return Gone("identity-shredded", "the identity of this instance was destroyed on purpose")


def _metadata(gw: Gateway, row: InstanceRow) -> str:
    return gw.index.metadata(row.id) or metadata_of(original_bytes(gw, row))


def _reply(entry: CacheEntry) -> dict[str, Any]:
    return {"path": entry.path, "sha256": entry.sha256, "size": entry.size}


def retrieve_failure(gw: Gateway, instance_id: int, error: BaseException) -> dict[str, Any]:
    """What the API is told of a failed retrieval; broken bytes also raise an alert."""
    if isinstance(error, IntegrityError):
        message = f"an instance could not be given back intact ({error.reason})"
        gw.index.alert_raise("retrieve-integrity", f"instance {instance_id}", message, "critical")
    if isinstance(error, PalimpsestError):
        return {"error": error.reason, **error.problem()}
    busy = Unavailable("retrieve-failed", "the retrieval failed; it may be tried again")
    return {"error": busy.reason, **busy.problem()}
