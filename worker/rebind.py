"""Giving an orphan its identity back: a stego object or archive object whose header is damaged, stripped or foreign.

What there is to go by, in this order: a container of ours anywhere in the bytes; the pseudonymous UID of an archive
object whose private part was stripped; the pixels, from which the ring's stego keys find the capsule and with it the
object id. What restores the file is then taken from the file itself, from the archive by its index, by the name that
follows from the object id, or by looking through the archive: a lost database costs time, nothing else.

Everything given out was compared with the signed record; all else is one refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from codec.bitplane import split_words
from gateway.archive import archive_key
from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.errors import BadUID, IntegrityError, InvalidInstance, NotFound, PalimpsestError, Unsupported
from gateway.keyuse import used_keys
from stego.errors import SealError
from stego.lattice import fingerprint
from stego.record import Record
from worker import container as box
from worker.container import SectionType
from worker.envelope import RAW_DATA_STORAGE, Source, build_envelope, envelope_uid
from worker.orphan import Reading, Shape, containers, readings, stated_padding, tolerant_header
from worker.pixelrules import MAX_FRAMES_TRIED
from worker.restore import members_of, restore
from worker.sealing import open_wraps
from worker.stegoframe import MODES
from worker.stegoread import StegoReading, find_capsule, rebuild
from worker.stegoside import Restoration, parse_restoration, parse_restoration_envelope, restoration_uid

__all__ = ["Rebound", "audited_rebind", "rebind"]

SOP_CLASS, SOP_INSTANCE = 0x00080016, 0x00080018
#: what a wrong guess, a wrong key and damage look like: the next guess may be right
NOT_THIS = (IntegrityError, InvalidInstance, NotFound, SealError, Unsupported)
_NO_SOURCE: Final = Source("", "", "", "", "")


@dataclass(frozen=True)
class Rebound:
    """data: the original file. found: 'container', 'archive-uid', 'self-contained' or 'hidden'. exact: byte for byte as
    received, else its native form with equal pixels. restored_from: 'file' or 'archive'."""

    data: bytes = field(repr=False)
    record: Record = field(repr=False)
    found: str
    restored_from: str
    exact: bool


def audited_rebind(
    gw: Gateway, data: bytes, actor: str, shape: Shape | None = None, apart: bytes | None = None
) -> Rebound:
    """`rebind`, and an audit event of its success or refusal. Raises Unavailable if that cannot be written."""
    with used_keys() as use:
        try:
            made = rebind(gw, data, shape, apart)
        except PalimpsestError as error:
            detail: dict[str, str | bool] = {"reason": error.reason, "key_id": use.ids()}
            gw.index.audit(AuditEvent("rebind", actor, "failure", detail=detail))
            raise
    row = gw.index.by_digest(made.record.file_sha256)
    detail = {"kind": made.found, "source": made.restored_from, "exact": made.exact, "key_id": use.ids()}
    gw.index.audit(AuditEvent("rebind", actor, instance_id=row.id if row else None, detail=detail))
    return made


def rebind(gw: Gateway, data: bytes, shape: Shape | None = None, apart: bytes | None = None) -> Rebound:
    """The original of an orphan. shape: what is known of its pixels where the file does not say it. apart: its
    restoration record (a Raw Data object), where somebody has it outside the archive.

    Raises IntegrityError: ``seal-refused`` when nothing in the file opens with the ring's keys, whatever the cause;
    ``restoration-missing`` when the pixels told who it is, and what restores the file is nowhere.
    """
    found = _by_container(gw, data) or _by_pixels(gw, data, shape or Shape(), apart) or _by_uid(gw, data)
    if found is None:
        raise IntegrityError("seal-refused", "nothing in this file opens with these keys")
    return found


# --- a container of ours ---


def _by_container(gw: Gateway, data: bytes) -> Rebound | None:
    """An archive object, header or not: what a PACS did around the container does not matter."""
    for found in containers(data):
        sections = box.parse(found)
        if SectionType.MEMBERS in sections:
            raise _several()
        if {SectionType.FRAMES, SectionType.WHOLE} & set(sections):
            try:
                back = restore(build_envelope(bytes(found), _NO_SOURCE, "", bytes(32)), gw.keys)
            except NOT_THIS:
                continue
            return Rebound(back.data, back.record, "container", "file", back.exact)
    return None


def _by_uid(gw: Gateway, data: bytes) -> Rebound | None:
    """The header of an archive object whose private part was stripped: its pseudonymous UID is the archive's key."""
    header = tolerant_header(data)
    if header is None or header.ascii(SOP_CLASS) != RAW_DATA_STORAGE:
        return None
    return _archived(gw, header.ascii(SOP_INSTANCE), "archive-uid")


def _archived(gw: Gateway, uid: str, found: str, file_sha256: str = "") -> Rebound | None:
    """The original out of the archive object of this UID, if it is there, opens, and is of the file that is meant."""
    try:
        envelope = gw.archive.read_unchecked(archive_key(uid))
        count = len(members_of(envelope))
    except (BadUID, *NOT_THIS):
        return None
    if count and not file_sha256:
        raise _several()
    for member in range(count) if count else (None,):
        try:
            back = restore(envelope, gw.keys, member=member)
        except NOT_THIS:
            continue
        if file_sha256 in ("", back.record.file_sha256):
            return Rebound(back.data, back.record, found, "archive", back.exact)
    return None


def _several() -> Unsupported:
    message = "an archive object of several instances: `palimpsest payload extract --member` opens each"
    return Unsupported("group", message)


# --- pixels ---


def _by_pixels(gw: Gateway, data: bytes, shape: Shape, apart: bytes | None) -> Rebound | None:
    tried: list[Reading] = []
    for reading in readings(data, shape):
        tried.append(reading)
        told = _told(gw, reading, reading.paddings)
        if told is not None:
            return _restored(gw, data, reading, told, apart)
    return _by_fingerprint(gw, tried)


def _told(gw: Gateway, reading: Reading, paddings: tuple[tuple[int, ...], ...]) -> StegoReading | None:
    """What the pixels say of themselves, None if nothing opens."""
    source = reading.source
    try:
        frames = [(index, source.frame(index)) for index in range(min(source.frames, MAX_FRAMES_TRIED))]
        return find_capsule(frames, source.fmt, gw.keys, paddings)
    except NOT_THIS:
        return None


def _restored(gw: Gateway, data: bytes, reading: Reading, told: StegoReading, apart: bytes | None) -> Rebound:
    """The file from the pixels and their restoration record, wherever that lies; else from its archive object."""
    for place, restoration in _restorations(gw, data, told.found.capsule.object_id, apart):
        try:
            back = rebuild(reading.source, told, restoration)
        except NOT_THIS:
            continue
        return Rebound(back.data, back.record, back.mode, place, back.exact)
    record = told.record
    row = gw.index.by_digest(record.file_sha256)
    named = envelope_uid(record.file_sha256, gw.keys.pseudonym_key(), told.wrap_key_id)
    uids = (row.envelope_uid if row else None, named)
    for uid in uids:
        found = _archived(gw, uid, told.found.mode, record.file_sha256) if uid else None
        if found is not None:
            return found
    message = "the pixels told who this is, but what restores the file is neither in it nor in the archive"
    raise IntegrityError("restoration-missing", message)


def _restorations(gw: Gateway, data: bytes, object_id: bytes, apart: bytes | None) -> Iterator[tuple[str, Restoration]]:
    """(place, record) of the object: given, in the file, by the index, by the name that follows from the id, by
    searching."""
    if apart is not None:
        yield from _parsed("file", partial(parse_restoration_envelope, apart), object_id)
    for found in containers(data):
        yield from _parsed("file", partial(parse_restoration, found), object_id)
    for export in gw.index.exports(object_id=object_id.hex()):
        if export.record_key and export.record_digest:
            yield from _parsed("archive", partial(_indexed, gw, export.record_key, export.record_digest), object_id)
    named = archive_key(restoration_uid(object_id, gw.keys.pseudonym_key()))
    yield from _parsed("archive", partial(_unindexed, gw, named), object_id)
    for restoration in _all_restorations(gw):
        if restoration.context.object_id == object_id:
            yield "archive", restoration


def _indexed(gw: Gateway, key: str, digest: str) -> Restoration:
    return parse_restoration_envelope(gw.archive.get(key, digest))


def _unindexed(gw: Gateway, key: str) -> Restoration:
    return parse_restoration_envelope(gw.archive.read_unchecked(key))


def _parsed(place: str, read: Callable[[], Restoration], object_id: bytes) -> Iterator[tuple[str, Restoration]]:
    try:
        restoration = read()
    except NOT_THIS:
        return
    if restoration.context.object_id == object_id:
        yield place, restoration


def _all_restorations(gw: Gateway) -> Iterator[Restoration]:
    """Every restoration record in the archive: the slow way, which needs no database."""
    for key in iter(gw.archive.keys()):
        try:
            yield _unindexed(gw, key)
        except NOT_THIS:
            continue


def _by_fingerprint(gw: Gateway, tried: list[Reading]) -> Rebound | None:
    """The restoration record that is bound to these very pixels, and the padding that the original's header states.

    For self-contained images without a header whose padding values are none that the pixels show by themselves.
    """
    prints: dict[bytes, Reading] = {}
    for reading in tried:
        for print_ in _fingerprints(reading):
            prints.setdefault(print_, reading)
    if not prints:
        return None
    for restoration in _all_restorations(gw):
        known = prints.get(restoration.context.untouched)
        if known is None:
            continue
        try:
            side = restoration.side(open_wraps(restoration.wraps, gw.keys.find_kek).key)
            told = _told(gw, known, stated_padding(bytes(side.nonpixel), known.source.fmt))
            back = rebuild(known.source, told, restoration) if told else None
        except NOT_THIS:
            continue
        if back is not None:
            return Rebound(back.data, back.record, back.mode, "archive", back.exact)
    return None


def _fingerprints(reading: Reading) -> Iterator[bytes]:
    source = reading.source
    for index in range(min(source.frames, MAX_FRAMES_TRIED)):
        try:
            values = split_words(source.frame(index), source.fmt)[0]
        except NOT_THIS:
            return
        for mode in MODES:
            yield fingerprint(values, source.fmt.bits_stored, source.fmt.signed, mode)
