"""Giving back: the original, its metadata, a rendered frame or the object in another transfer syntax, as a checked file
in the shared cache.

Source of the original, in this order: the spool (the file as received), then the archive (restored, and compared
with the digest that the proof recorded).  Equal requests coalesce: the second waits for the first and finds its result.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from gateway.archive import ArchiveStore
from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, InvalidInstance, NotFound, PalimpsestError, Unavailable
from gateway.index import InstanceRow
from gateway.instance import Form
from gateway.keyuse import used_keys
from gateway.part10 import read_meta
from worker.cache import Cache, CacheEntry, request_key
from worker.indexing import metadata_of
from worker.render import render, render_image
from worker.restore import OpenGroup, Write, exact_image, rebuild
from worker.transcode import write_transcoded

__all__ = ["original_bytes", "retrieve", "retrieve_failure", "write_original"]

RENDERER = "render/1"  # part of the key of rendered frames: a new way of drawing is another request
TRANSCODER = "transcode/1"  # the same of transcoded objects
KINDS = re.compile(
    r"(?P<what>original|metadata)|rendered:(?P<format>png|jpeg):(?P<frame>[1-9][0-9]{0,8})"
    r"|transcoded:(?P<syntax>[0-9.]{1,64})"
)


def retrieve(gw: Gateway, instance_id: int, kind: str) -> dict[str, Any]:
    """{'path' relative to the cache folder, 'sha256', 'size'} of what was asked for.

    kind: original | metadata | rendered:png:<frame> | rendered:jpeg:<frame> (frames count from 1) |
    transcoded:<transfer syntax UID>: the original's UIDs, header and pixels in that syntax; its own gives the original.
    Raises NotFound, IntegrityError, Unavailable, Unsupported (``not-transcodable``, ...), InvalidInstance ``bad-kind``.
    """
    match = KINDS.fullmatch(kind)
    if match is None:
        raise InvalidInstance("bad-kind", "not something that can be retrieved")
    row = gw.index.get(instance_id)
    key = request_key(kind, row.digest, RENDERER if match["format"] else TRANSCODER if match["syntax"] else "")
    cache = Cache(gw.settings.cache_dir, gw.settings.cache_max_bytes)
    with cache.locked(key):
        entry = cache.find(key)
    if entry is None and match["syntax"]:
        return _transcoded(gw, cache, key, row, match["syntax"])
    if entry is None:
        with cache.locked(key):
            entry = cache.find(key) or cache.store_written(key, lambda write: _make(gw, row, match, write))
    return _reply(entry)


def _transcoded(gw: Gateway, cache: Cache, key: str, row: InstanceRow, syntax: str) -> dict[str, Any]:
    with _mapped_original(gw, row) as original:
        if read_meta(original)[0] == syntax:
            return retrieve(gw, row.id, "original")
        with cache.locked(key):
            made = cache.find(key) or cache.store_written(key, lambda write: write_transcoded(original, syntax, write))
    return _reply(made)


@contextmanager
def _mapped_original(gw: Gateway, row: InstanceRow) -> Iterator[mmap.mmap]:
    """The object as it is given back, mapped, digest checked; restored into the cache if the spool has it no more.

    Not to be used under a lock of the cache: it takes one itself. Raises as `write_original`.
    """
    if row.shredded_at is not None:
        raise _gone()
    try:
        mapped = gw.spool.map(row.digest)
    except (NotFound, IntegrityError) as error:
        if isinstance(error, IntegrityError) and row.archive_key is None:
            raise
        path = gw.settings.cache_dir / str(retrieve(gw, row.id, "original")["path"])
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise Unavailable("retrieve-cache-miss", "the cache is too small to hold one object", 2) from None
    yield mapped  # closed with the last view of it: an error's traceback may still hold one


def original_bytes(gw: Gateway, row: InstanceRow) -> bytes:
    """The object as it is given back, digest checked. Raises as `write_original`."""
    out = io.BytesIO()
    write_original(gw, row, out.write)
    return out.getvalue()


def write_original(gw: Gateway, row: InstanceRow, write: Write) -> None:
    """The same, piece by piece; good once this returns. Raises Gone, NotFound, IntegrityError, Unavailable."""
    if row.shredded_at is not None:
        raise _gone()
    try:
        write(gw.spool.map(row.digest))
        return
    except NotFound:
        pass  # released
    except IntegrityError:
        if row.archive_key is None:
            raise
    if row.archive_key is None or row.archive_digest is None:
        raise NotFound("not-stored", "neither the spool nor the archive holds this instance")
    with used_keys():
        if row.member is None:
            restored = rebuild(gw.archive.get(row.archive_key, row.archive_digest), gw.keys, write)
        else:
            restored = _group(gw.archive, row.archive_key, row.archive_digest).rebuild(row.member, gw.keys, write)
        gw.index.audit(AuditEvent("restored", "worker", instance_id=row.id))
    if restored.sha256 not in (row.digest, gw.index.facts(row.id).get("restored_sha256")):
        raise IntegrityError("restore-digest", "the archive restored to something other than what was proven")


@lru_cache(maxsize=1)
def _group(archive: ArchiveStore, key: str, digest: str) -> OpenGroup:
    """The group that was asked for last stays open: a series is fetched slice after slice, and one read gives all."""
    return OpenGroup(archive.get(key, digest))


def _make(gw: Gateway, row: InstanceRow, match: re.Match[str], write: Write) -> None:
    if match["what"] == "original":
        write_original(gw, row, write)
    elif match["what"] == "metadata":
        write(_metadata(gw, row).encode())
    else:
        write(_rendered(gw, row, int(match["frame"]), match["format"]))


def _rendered(gw: Gateway, row: InstanceRow, frame: int, image_format: str) -> bytes:
    """A picture of one frame; of a shredded instance from its pixels alone, which need no patient's key."""
    if row.shredded_at is None:
        return render(original_bytes(gw, row), frame=frame, image_format=image_format)
    if row.form is Form.PASSTHROUGH:
        raise _gone()
    envelope = gw.archive.get(str(row.archive_key), str(row.archive_digest))
    return render_image(exact_image(envelope, gw.keys, member=row.member), frame, image_format)


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
