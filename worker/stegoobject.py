"""Viewable stego objects: an ordinary de-identified DICOM image that carries its own identity in its pixels, and back.

`make_stego` gives the object (and, by choice, a restoration record for the archive); `open_stego` gives the received
file back, bit for bit, or refuses. What is made has been opened again and compared before it is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal

from pydicom.dataset import Dataset

from codec.bitplane import Words, split_words
from gateway.errors import IntegrityError, PolicyRefused, Unsupported
from gateway.keys import KeyRing
from gateway.policy import DEFAULT_ARCHIVE, ArchiveRule
from stego.capsule import seal_capsule
from stego.imagekey import image_key
from stego.record import Record, pack_record
from stego.seal import seal_record
from worker.attributes import Data
from worker.candidate import Secrets
from worker.deid_profile import Profile
from worker.identity import Provenance, identify
from worker.pixelrules import FrameCover, check_all_frames, covers, refusal
from worker.pixels import PixelSource, open_pixels, pixel_digest, pixel_stream
from worker.sealing import Wraps, label_of, make_wraps
from worker.splice import carry_out, read_object
from worker.stegoframe import HIDDEN, Embedded, Mode, embed_capsule, frame_context, psnr
from worker.stegoheader import describe, read_header, refresh_range, stego_header, write_stego
from worker.stegoread import RestoredStego, StegoReading, open_stego, read_stego
from worker.stegoside import SidePart, restoration_envelope, restoration_uid, seal_restoration, stego_uid

__all__ = [
    "RestoredStego", "StegoObject", "StegoReading", "StegoReport", "make_stego", "open_stego", "read_stego",
]  # fmt: skip

Side = Literal["inline", "archive"]
BASIC = Profile()


@dataclass(frozen=True)
class StegoReport:
    """frame: which one carries (from 0). changed: samples altered. mse: over that frame, squared units. psnr: dB."""

    frame: int
    capsule_bytes: int
    changed: int
    mse: float
    psnr: float
    max_change: int


@dataclass(frozen=True)
class StegoObject:
    """part10: the image to send. restoration: its record as a Raw Data object, None where it rides in the header.

    stego_uid, restoration_uid: SOP Instance UIDs. object_id: 16 bytes. wraps: of the data key. patient_key: its id.
    key_ids: every key of the ring that was used, for the audit. stego_sha256: of the altered words, as
    `worker.pixels.pixel_digest`; record: what was sealed (never logged).
    """

    part10: bytes = field(repr=False)
    stego_uid: str
    object_id: bytes
    mode: Mode
    restoration: bytes | None = field(repr=False)
    restoration_uid: str
    wraps: tuple[bytes, ...] = field(repr=False)
    patient_key: str
    key_ids: tuple[str, ...]
    stego_sha256: str
    record: Record
    report: StegoReport


@dataclass(frozen=True)
class _Plan:
    """An image on its way to become a stego object."""

    source: PixelSource
    record: Record
    secrets: Secrets = field(repr=False)
    mode: Mode
    ring: KeyRing
    rule: ArchiveRule


@dataclass(frozen=True)
class _Sealed:
    cover: FrameCover
    done: Embedded
    wraps: Wraps
    capsule_bytes: int
    sealed_record: bytes = field(repr=False)
    stego_key_id: str


def make_stego(
    data: Data,
    facts: Provenance,
    ring: KeyRing,
    *,
    mode: Mode,
    profile: Profile = BASIC,
    side: Side = "inline",
    secrets: Secrets | None = None,
    rule: ArchiveRule = DEFAULT_ARCHIVE,
) -> StegoObject:
    """A stego object of `data`, opened again and compared. The same secrets and keys give the same bytes.

    side: where the rest of what restores the file goes. rule: recipients of the data key besides the patient's key.
    Raises Unsupported (a word of `worker.pixelrules.REASONS`, or what `open_pixels` says), InvalidInstance,
    PolicyRefused ``hidden-without-archive``, Unavailable (key ring).
    """
    if mode == HIDDEN and side == "inline":
        raise PolicyRefused("hidden-without-archive", "a hidden object's header shows nothing: archive its restoration")
    source = open_pixels(read_object(data))
    record = replace(
        identify(data, source.spans.dataset, facts),
        pixel_sha256=pixel_digest(source).hex(),
        nonpixel_sha256=sha256(source.spans.nonpixel()).hexdigest(),
    )
    plan = _Plan(source, record, secrets or Secrets.draw(), mode, ring, rule)
    header = stego_header(
        read_header(data), profile, ring.pseudonym_key(), mode=mode,
        uid=stego_uid(plan.secrets.object_id, ring.pseudonym_key()),
    )  # fmt: skip  # before the pixels: it is quick, and may refuse
    check_all_frames(source, source.fmt)
    made = _finish(plan, _embed_first(plan), header, side)
    _prove(made, ring)
    return made


def _embed_first(plan: _Plan) -> _Sealed:
    """Embed in the first frame that takes it. Raises Unsupported with the most hopeful reason of all frames."""
    reason: Unsupported | None = None
    for cover in covers(plan.source):
        try:
            return _embed(plan, cover)
        except Unsupported as error:
            reason = error if reason is None or error.reason == "no-room" else reason
    raise reason or refusal("flat")


def _embed(plan: _Plan, cover: FrameCover) -> _Sealed:
    ring, secrets = plan.ring, plan.secrets
    context = frame_context(cover.cover.values, cover.fmt, plan.mode, secrets.object_id)
    packed = pack_record(plan.record, signing_key=ring.signing_key())
    sealed = seal_record(packed, data_key=secrets.data_key, context=context)
    wraps = make_wraps(ring, plan.rule, label_of(plan.record), secrets.data_key, context, sealed_bitmap=False)
    key_id, ring_key = ring.stego_key()
    key = image_key(ring_key, context.untouched, plan.mode)
    capsule = seal_capsule(
        sealed, object_id=secrets.object_id, wrap=wraps.data[0], stego_key=key, salt=context.untouched
    )
    done = embed_capsule(cover.cover, capsule, mode=plan.mode, stego_key=key, salt=context.untouched)
    return _Sealed(cover, done, wraps, len(capsule), sealed, key_id)


def _finish(plan: _Plan, sealed: _Sealed, header: Dataset, side: Side) -> StegoObject:
    source, cover, done = plan.source, sealed.cover, sealed.done
    container = _restoration(plan, sealed)
    frames: list[Words] = [
        cover.words(done.values) if index == cover.index else words for index, words in enumerate(source)
    ]
    values = [split_words(words, source.fmt)[0] for words in frames]
    refresh_range(header, min(int(each.min()) for each in values), max(int(each.max()) for each in values))
    describe(header, plan.mode, done.max_change)
    part10 = write_stego(header, frames, container if side == "inline" else b"")
    key, object_id = plan.ring.pseudonym_key(), plan.secrets.object_id
    report = StegoReport(
        cover.index, sealed.capsule_bytes, done.changed, done.mse, psnr(done.mse, source.fmt.bits_stored),
        done.max_change,
    )  # fmt: skip
    archived = restoration_envelope(container, plan.record, object_id, key) if side == "archive" else None
    return StegoObject(
        part10, stego_uid(object_id, key), object_id, plan.mode, archived,
        restoration_uid(object_id, key) if archived else "", sealed.wraps.data, sealed.wraps.patient_key,
        (*sealed.wraps.key_ids, sealed.stego_key_id), pixel_digest(frames).hex(), plan.record, report,
    )  # fmt: skip


def _restoration(plan: _Plan, sealed: _Sealed) -> bytes:
    source, nonpixel = plan.source, plan.source.spans.nonpixel()
    digest = bytes.fromhex(plan.record.file_sha256)
    if source.spans.encapsulated:
        pixels = pixel_stream(source, source.fmt, source.layout)
        digest = sha256(carry_out(source.steps, memoryview(nonpixel), memoryview(pixels))).digest()
    side = SidePart(
        sealed.cover.index, source.spans.encapsulated, sealed.cover.extended, digest, source.layout, source.steps,
        sealed.done.changes, memoryview(nonpixel),
    )  # fmt: skip
    context = frame_context(sealed.cover.cover.values, source.fmt, plan.mode, plan.secrets.object_id)
    return seal_restoration(
        side, data_key=plan.secrets.data_key, context=context, wraps=sealed.wraps.data,
        sealed_record=sealed.sealed_record,
    )  # fmt: skip


def _prove(made: StegoObject, ring: KeyRing) -> None:
    """Nothing leaves that does not come back: an error of ours, never a matter of policy."""
    back = open_stego(made.part10, ring, restoration=made.restoration)
    if back.record.file_sha256 != made.record.file_sha256:
        raise IntegrityError("restore-mismatch", "the stego object does not give its file back")
