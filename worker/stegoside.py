"""What a stego object needs beside its capsule to give the received file back: sealed, in its header or in the archive.

The same container as an archive object's (`worker.container`), with sections CONTEXT, WRAPS, RECORD and SIDE. The side
part, before compression and sealing under the label "restoration", little endian:

    u8 version 1, u8 flags (1: input was compressed, 2: sign repeated in unused bits), u32 frame that carries,
    SHA-256 of the restored file, pixel layout, splice plan, u32 length of the change map, change map, non-pixel bytes

The container's data key is that of the capsule, so either of the two opens the other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from hashlib import sha256

from gateway.errors import IntegrityError
from gateway.keys import KeyRing
from gateway.pseudonym import pseudonym_uid
from stego.errors import SealError
from stego.record import Record, unpack_record
from stego.seal import Context, open_record, open_side, seal_side
from worker import container as box
from worker.container import SectionType
from worker.envelope import Source, build_envelope, envelope_uid, parse_envelope
from worker.pixels import Layout
from worker.sealing import open_wraps
from worker.splice import Step, pack_plan, unpack_plan

LABEL = "restoration"
_VERSION = 1
_COMPRESSED, _EXTENDED = 1, 2
_HEAD = struct.Struct("<BBI32s")
_LENGTH = struct.Struct("<I")
_SECTIONS = (SectionType.CONTEXT, SectionType.WRAPS, SectionType.RECORD, SectionType.SIDE)


@dataclass(frozen=True)
class SidePart:
    """See above. restored_sha256: 32 bytes. nonpixel: all bytes of the received file but its pixels."""

    frame: int
    compressed: bool
    extended: bool
    restored_sha256: bytes
    layout: Layout
    steps: tuple[Step, ...]
    changes: bytes = field(repr=False)
    nonpixel: memoryview = field(repr=False)


@dataclass(frozen=True)
class Restoration:
    """A parsed container: still sealed."""

    context: Context
    wraps: tuple[bytes, ...]
    sealed_record: bytes = field(repr=False)
    sealed_side: memoryview = field(repr=False)

    def side(self, data_key: bytes) -> SidePart:
        """Open the side part. Raises SealError, IntegrityError."""
        return unpack_part(open_side(self.sealed_side, data_key=data_key, context=self.context, label=LABEL))

    def record(self, data_key: bytes) -> bytes:
        """The packed record. Raises SealError."""
        return open_record(self.sealed_record, data_key=data_key, context=self.context)


def seal_restoration(
    side: SidePart, *, data_key: bytes, context: Context, wraps: tuple[bytes, ...], sealed_record: bytes
) -> bytes:
    """The container's bytes."""
    return box.build(
        {
            SectionType.CONTEXT: context.aad(),
            SectionType.WRAPS: box.pack_wraps(wraps),
            SectionType.RECORD: sealed_record,
            SectionType.SIDE: seal_side(pack_part(side), data_key=data_key, context=context, label=LABEL),
        }
    )


def parse_restoration(container: bytes | memoryview) -> Restoration:
    """Inverse of `seal_restoration`, before any key. Raises IntegrityError ``container-damaged``, ``not-restoration``,
    SealError for a context that is none."""
    sections = box.parse(container)
    if set(sections) != set(_SECTIONS):
        raise IntegrityError("not-restoration", "this archive object does not restore a stego object")
    context = Context.parse(bytes(sections[SectionType.CONTEXT]))
    wraps = tuple(box.unpack_wraps(sections[SectionType.WRAPS]))
    return Restoration(context, wraps, bytes(sections[SectionType.RECORD]), sections[SectionType.SIDE])


def restoration_envelope(container: bytes, record: Record, object_id: bytes, key: bytes) -> bytes:
    """The container as a Raw Data object for the archive. key: the ring's pseudonym key. Deterministic."""
    ids = Source(
        restoration_name(object_id),
        record.patient_id, record.study_uid, record.series_uid, record.sop_uid, record.sop_class,
    )  # fmt: skip
    return build_envelope(container, ids, "", key)


def restoration_name(object_id: bytes) -> str:
    """What the envelope of a restoration record is derived from, as an archive object's is from its file's digest."""
    return sha256(b"palimpsest/restoration/v1\x00" + object_id).hexdigest()


def restoration_uid(object_id: bytes, key: bytes) -> str:
    """SOP Instance UID of the restoration record's envelope: found in an archive without any index."""
    return envelope_uid(restoration_name(object_id), key)


def stego_uid(object_id: bytes, key: bytes) -> str:
    """SOP Instance UID of the stego object: keyed, and a function of the object id, so retries agree."""
    return pseudonym_uid(f"palimpsest/stego/1/{object_id.hex()}", key)


def parse_restoration_envelope(part10: bytes | memoryview) -> Restoration:
    """A restoration record out of its Raw Data object. Raises as `parse_envelope` and `parse_restoration`."""
    return parse_restoration(parse_envelope(part10).container)


@dataclass(frozen=True)
class OpenedRestoration:
    """A restoration record opened by its own wraps, without the stego object. key_id: the key that did."""

    record: Record = field(repr=False)
    side: SidePart
    key_id: str


def open_restoration(part10: bytes | memoryview, ring: KeyRing) -> OpenedRestoration | None:
    """Open a restoration record's Raw Data object; None when it is another kind of archive object.

    The record's signature is verified. Raises IntegrityError (damaged), ``seal-refused``.
    """
    try:
        parsed = parse_restoration_envelope(part10)
        opened = open_wraps(parsed.wraps, ring.find_kek)
        record = unpack_record(parsed.record(opened.key), find_verify_key=ring.find_verify_key)
        return OpenedRestoration(record, parsed.side(opened.key), opened.id)
    except SealError as error:
        raise IntegrityError("seal-refused", "a sealed part does not open") from error
    except IntegrityError as error:
        if error.reason == "not-restoration":
            return None
        raise


def pack_part(side: SidePart) -> bytes:
    """The side part's bytes, see above."""
    flags = (_COMPRESSED if side.compressed else 0) | (_EXTENDED if side.extended else 0)
    head = _HEAD.pack(_VERSION, flags, side.frame, side.restored_sha256)
    changes = _LENGTH.pack(len(side.changes)) + side.changes
    return b"".join((head, side.layout.pack(), pack_plan(side.steps), changes, side.nonpixel))


def unpack_part(data: bytes) -> SidePart:
    """Inverse of `pack_part`. Raises SealError, IntegrityError."""
    if len(data) < _HEAD.size:
        raise SealError
    version, flags, frame, digest = _HEAD.unpack_from(data)
    if version != _VERSION or flags & ~(_COMPRESSED | _EXTENDED):
        raise IntegrityError("side-version", "a side part of a version that this program does not read")
    at = _HEAD.size
    layout, used = Layout.unpack(data[at : at + 16])
    at += used
    steps, used = unpack_plan(data[at : at + (1 << 16)])
    at += used
    length = int.from_bytes(data[at : at + _LENGTH.size], "little")
    at += _LENGTH.size
    if at + length > len(data):
        raise IntegrityError("side-version", "the change map is cut off")
    part = SidePart(
        frame, bool(flags & _COMPRESSED), bool(flags & _EXTENDED), digest, layout, steps, b"", memoryview(b"")
    )
    return replace(part, changes=data[at : at + length], nonpixel=memoryview(data)[at + length :])
