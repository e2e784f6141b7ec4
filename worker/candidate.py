"""From a received file to a candidate for the archive. What cannot be coded is sealed whole: nothing is refused."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from codec.bitplane import LevelTable, Words
from codec.errors import CodecError
from gateway.errors import InvalidInstance, Unavailable, Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from gateway.policy import DEFAULT_ARCHIVE, ArchiveRule
from stego.errors import CarrierError
from stego.record import Record, pack_record
from stego.seal import Context, bitmap_key, derive, length_class, seal_bitmap, seal_record, seal_side
from worker import container as box
from worker.adapting import chain_coder
from worker.attributes import Data, read_tolerant
from worker.carrying import (
    BESIDE,
    MOST_GROWTH,
    Carrying,
    Place,
    carry,
    choose_place,
    growth,
    insists,
    may_ride_on_stack,
    waits_for_stack,
    without_record,
)
from worker.container import Carrier, CarrierMode, SectionType
from worker.encrypted_attributes import CmsItem, seal_identity
from worker.envelope import Source, build_envelope, envelope_uid
from worker.framechain import ChainCoder
from worker.identity import Provenance, identify
from worker.objectcontext import MODES, coded_context, frame_digest, passthrough_context
from worker.pixels import PixelSource, little_endian, open_pixels, pixel_digest, pixel_pieces
from worker.sealing import Wraps, known_recipient, label_of, make_wraps
from worker.splice import carried, pack_plan, read_object
from worker.stacking import Offer, Share, global_part, stack_frames

MAX_WHOLE_BYTES = (1 << 31) - 1
#: photometric interpretations that a keyless reader may be told; anything else is written as ''
PHOTOMETRIC = frozenset({"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR"})
#: sections of the image itself; all others are its payload
CLEAR = frozenset(
    {
        SectionType.FRAMES, SectionType.IMAGE, SectionType.CONTEXT, SectionType.ADAPTER, SectionType.STACK,
        SectionType.SPAN,
    }
)  # fmt: skip
CODED = (SectionType.FRAMES, SectionType.ADAPTER, SectionType.STACK)
QUICK_CODERS = ("jpegls", "htj2k", "raw")  # of the codec: a frame in milliseconds
SIDE_VERSION = 1
SIDE_LABEL, WHOLE_LABEL = "nonpixel", "whole"


@dataclass(frozen=True)
class Candidate:
    """An archive object before its proof, with the figures that are reported.

    reason: why passthrough, '' when coded. coder: coder words joined by '+'. carrier: 'segmented', 'sealed-bitmap',
    'initial-bits', 'beside' or 'passthrough'. codec_bytes: coded frames, adapter and stacks; payload_bytes: record,
    bitmap, side parts and wraps. global_part: both lengths of the global parts (`worker.stacking.global_part`).
    wraps: of the data key; pixel_wraps: of the key that opens a sealed bitmap; patient_key: id of the patient's key;
    key_ids: every key of the ring that was used and every recipient, by id or name, for the audit. object_id: 16 bytes.
    member: which instance of a group's envelope this is; share: bytes of that envelope that count for it.
    """

    envelope: bytes
    envelope_uid: str
    form: Form
    reason: str
    coder: str
    carrier: str
    codec_bytes: int
    payload_bytes: int
    raw_pixel_bytes: int
    frames: int
    wraps: tuple[bytes, ...]
    pixel_wraps: tuple[bytes, ...]
    patient_key: str
    key_ids: tuple[str, ...]
    object_id: bytes
    file_sha256: str
    pixel_sha256: str
    nonpixel_sha256: str
    member: int | None = None
    share: int | None = None
    global_part: Mapping[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the archive object, or of a group's what this instance takes of it."""
        return len(self.envelope) if self.share is None else self.share

    @property
    def shared_with(self) -> tuple[str, ...]:
        """Who can open the identity without the ring: names of recipients, as in `key_ids`."""
        return tuple(each for each in self.key_ids if each.startswith(("recipient:", "cms:")))


@dataclass(frozen=True)
class Secrets:
    """The random object id (16 bytes) and data key (32 bytes) of one object; fixed ones only in golden tests."""

    object_id: bytes
    data_key: bytes = field(repr=False)

    @classmethod
    def draw(cls) -> Secrets:
        """Fresh ones."""
        return cls(os.urandom(16), os.urandom(32))


def build_candidate(
    data: Data,
    facts: Provenance,
    ring: KeyRing,
    *,
    threads: int = 1,
    secrets: Secrets | None = None,
    rule: ArchiveRule = DEFAULT_ARCHIVE,
    quick: bool = False,
    generation: int = 0,
) -> Candidate:
    """Code `data` as `rule` says, or seal it whole with the reason. Raises only Unavailable (no key, no recipient).

    quick: by standard codecs alone, with the record beside unless the rule insists. generation: `envelope_uid`.
    """
    sealer = replace(Sealer.of(ring, secrets, hurried(rule) if quick else rule), generation=generation)
    try:
        return _coded(data, facts, sealer, threads, quick)
    except Unsupported as error:
        reason = error.reason
    except InvalidInstance as error:
        reason = f"unreadable-{error.reason}"
    except (CodecError, CarrierError):
        reason = "codec-error"
    except MemoryError:
        reason = "memory"
    return build_passthrough(data, facts, ring, reason, secrets=sealer.secrets, rule=rule)


def hurried(rule: ArchiveRule) -> ArchiveRule:
    """The same rule without what only makes an object smaller: measuring carriers, fitting weights."""
    beside = rule.carrier == "auto" and not rule.seal_bitmap
    return rule.model_copy(update={"adapt": "none", "carrier": "beside" if beside else rule.carrier})


@dataclass(frozen=True)
class Sealer:
    """What sealing needs all along: the ring, the object's secrets, the rule, and (id, private key) of the signer.

    generation: `envelope_uid`.
    """

    ring: KeyRing
    secrets: Secrets
    rule: ArchiveRule
    signer: tuple[str, bytes] = field(repr=False)
    generation: int = 0

    @classmethod
    def of(cls, ring: KeyRing, secrets: Secrets | None, rule: ArchiveRule) -> Sealer:
        """With fresh secrets unless some are given."""
        return cls(ring, secrets or Secrets.draw(), rule, ring.signing_key())


# --- coded ---


def _coded(data: Data, facts: Provenance, sealer: Sealer, threads: int, quick: bool) -> Candidate:
    source = open_pixels(read_object(data))
    coder = chain_coder(source, sealer.rule, threads)
    if quick:
        coder.tried, coder.adapters = QUICK_CODERS, ()
    made = seal_images([code_image(data, source, facts, sealer, coder)], coder)[0]
    made.sections.update(frame_sections(coder))
    version = box.version_for(made.sections, coder.blobs)
    words = "+".join(name for name, _ in Counter(coder.coders).most_common())
    coder.blobs.clear()  # they are in their section: the same bytes twice would be the most that is held
    made_of = _finish(data, made, sealer, Form.CODED, "", words, version)
    return replace(made_of, global_part=global_part(coder))


def frame_sections(coder: ChainCoder) -> dict[SectionType, bytes]:
    """The sections of what was coded: of an object, or of all instances of a group."""
    sections = {SectionType.FRAMES: box.pack_frames(coder.blobs)}
    if coder.uses_shared and coder.shared is not None:
        sections[SectionType.ADAPTER] = coder.shared
    if stacks := coder.packed_stacks():
        sections[SectionType.STACK] = box.pack_frames(stacks)
    return sections


@dataclass(frozen=True)
class CodedImage:
    """An instance whose frames are coded, before its seals are final: its record may still go to a stack.

    context, carrier, sealed: the record where it was placed; packed: that record; side: the side part; both open.
    first: its first frame among those of the coder; frames: how many.
    """

    sealer: Sealer
    record: Record
    context: Context
    carrier: Carrier
    image: box.Image
    sealed: bytes = field(repr=False)
    packed: bytes = field(repr=False)
    side: bytes = field(repr=False)
    first: int
    frames: int
    raw_pixel_bytes: int

    def for_stack(self) -> tuple[Context, bytes] | None:
        """The context and the sealed record if it goes to a stack; None where it may not."""
        if self.carrier.mode is not CarrierMode.BESIDE or not may_ride_on_stack(self.sealer.rule):
            return None
        context = replace(self.context, mode=MODES[CarrierMode.INITIAL])
        return context, seal_record(self.packed, data_key=self.sealer.secrets.data_key, context=context)


@dataclass(frozen=True)
class SealedImage:
    """An instance's own sections, all but its wraps and its frames, which were given to a `ChainCoder`.

    frames, raw_pixel_bytes: 0 for what is sealed whole. in_stack: bytes of its record in a stack.
    """

    sections: dict[SectionType, bytes]
    context: Context
    record: Record
    frames: int = 0
    raw_pixel_bytes: int = 0
    in_stack: int = 0


def code_image(data: Data, source: PixelSource, facts: Provenance, sealer: Sealer, coder: ChainCoder) -> CodedImage:
    """Place and seal the record, and code the frames behind those that `coder` holds.

    Raises CodecError, CarrierError, Unavailable.
    """
    nonpixel, pixels = source.spans.nonpixel(), pixel_digest(source)
    record = replace(
        identify(data, source.spans.dataset, facts),
        pixel_sha256=pixels.hex(),
        nonpixel_sha256=sha256(nonpixel).hexdigest(),
    )
    packed, first = pack_record(record, signing_key=sealer.signer), len(coder.blobs)
    placed = _place_record(source, packed, sealer, coder)
    key, context = sealer.secrets.data_key, placed.context
    shown = _encode(source, placed.carrying, coder)
    carrier = placed.carrying.carrier if placed.carrying else BESIDE.carrier
    if carrier.mode is CarrierMode.SEALED:
        bitmap = seal_bitmap(carrier.bitmap, pixels, key=bitmap_key(key, context), context=context)
        carrier = replace(carrier, bitmap=bitmap)
    photometric = source.photometric if source.photometric in PHOTOMETRIC else ""
    return CodedImage(
        sealer, record, context, carrier, box.Image(photometric, shown), placed.sealed, packed,
        _side_part(source, nonpixel), first, source.frames, source.pixel_bytes,
    )  # fmt: skip


def seal_images(images: Sequence[CodedImage], coder: ChainCoder) -> list[SealedImage]:
    """Stack global parts of all that `coder` holds where that is shorter, and seal what stands beside the frames."""
    waiting = [image.for_stack() for image in images]
    offers = [
        Offer(image.first, image.frames, sealed[1] if sealed else b"")
        for image, sealed in zip(images, waiting, strict=True)
    ]
    shares = stack_frames(coder, offers)
    return [
        _sealed(image, sealed, shares.get(place))
        for place, (image, sealed) in enumerate(zip(images, waiting, strict=True))
    ]


def _sealed(image: CodedImage, for_stack: tuple[Context, bytes] | None, share: Share | None) -> SealedImage:
    context, carrier = image.context, image.carrier
    beside = image.sealed if carrier.mode is CarrierMode.BESIDE else b""
    if for_stack is not None and share is not None:
        context, carrier = for_stack[0], Carrier(CarrierMode.INITIAL, share.stack, 8 * share.start, 8 * share.size)
        beside = for_stack[1][share.size :]
    sections = {
        SectionType.CONTEXT: context.aad(),
        SectionType.IMAGE: box.pack_image(image.image),
        SectionType.CARRIER: box.pack_carrier(carrier),
        SectionType.SIDE: seal_side(
            image.side, data_key=image.sealer.secrets.data_key, context=context, label=SIDE_LABEL
        ),
    }
    if beside:
        sections[SectionType.RECORD] = beside
    in_stack = share.size if share is not None else 0
    return SealedImage(sections, context, image.record, image.frames, image.raw_pixel_bytes, in_stack)


@dataclass(frozen=True)
class _Placed:
    """The sealed record, the context it is bound to, and the frame that carries it (None: it goes beside)."""

    context: Context
    sealed: bytes
    carrying: Carrying | None


def _place_record(source: PixelSource, packed: bytes, sealer: Sealer, coder: ChainCoder) -> _Placed:
    """Seal the record and put it where it costs least: in the pixels if that was measured to cost no more than beside,
    or if the rule insists; not where a stack may take it (`seal_images`).
    """
    place = choose_place(source, 8 * length_class(len(packed)), sealer.rule)
    placed = _sealed_into(source, place, packed, sealer, coder)
    if placed.carrying is None or insists(sealer.rule):
        return placed
    plain = without_record(source, place, placed.carrying, coder)
    if growth(placed.carrying, plain) <= MOST_GROWTH and not waits_for_stack(sealer.rule, plain):
        return placed
    return _sealed_into(source, BESIDE, packed, sealer, coder)  # the first seal is forgotten: nothing of it is kept


def _sealed_into(source: PixelSource, place: Place, packed: bytes, sealer: Sealer, coder: ChainCoder) -> _Placed:
    secrets, levels = sealer.secrets, place.levels or LevelTable(0, 1)
    digests = (
        frame_digest(source.frame(index), source.fmt, levels, index, place.carrier) for index in range(source.frames)
    )
    context = coded_context(secrets.object_id, source.fmt, place.carrier, digests)
    sealed = seal_record(packed, data_key=secrets.data_key, context=context)
    stego_key = derive(secrets.data_key, context, "pos/v1")
    carrying = carry(source, place, sealed, stego_key=stego_key, salt=context.object_id, coder=coder)
    return _Placed(context, sealed, carrying)


def _encode(source: PixelSource, carrying: Carrying | None, coder: ChainCoder) -> bytes:
    """Code every frame but the one that is coded already; SHA-256 of the words that a keyless reader gets."""
    shown = sha256()
    for index in range(source.frames):
        words: Words = source.frame(index)
        if carrying is not None and carrying.carrier.frame == index:
            coder.add(carrying.coded, carrying.words, source.fmt)
            words = carrying.words if carrying.carrier.mode is CarrierMode.SEALED else words
        else:
            coder.add(coder.encode(words, source.fmt, coder.context(source.fmt)), words, source.fmt)
        shown.update(little_endian(words))
    return shown.digest()


def _side_part(source: PixelSource, nonpixel: bytes) -> bytes:
    """u8 version, u8 1 if the input was compressed, then the restored file's SHA-256, layout, plan, non-pixel bytes."""
    head = struct.pack("<BB", SIDE_VERSION, source.spans.encapsulated)
    if source.spans.encapsulated:
        restored = sha256()
        for piece in carried(source.steps, memoryview(nonpixel), pixel_pieces(source, source.fmt, source.layout)):
            restored.update(piece)
        head += restored.digest()
    return b"".join((head, source.layout.pack(), pack_plan(source.steps), nonpixel))


# --- sealed whole ---


def build_passthrough(
    data: Data,
    facts: Provenance,
    ring: KeyRing,
    reason: str,
    *,
    secrets: Secrets | None = None,
    rule: ArchiveRule = DEFAULT_ARCHIVE,
) -> Candidate:
    """Seal the whole file verbatim, whatever it is. Raises Unsupported ``too-large`` from 2 GiB on; Unavailable."""
    if len(data) > MAX_WHOLE_BYTES:
        raise Unsupported("too-large", "a file of 2 GiB or more cannot be sealed whole")
    sealer = Sealer.of(ring, secrets, rule)
    context, key = passthrough_context(sealer.secrets.object_id), sealer.secrets.data_key
    record = identify(data, read_tolerant(data), facts)
    packed = pack_record(record, signing_key=sealer.signer)
    sections = {
        SectionType.CONTEXT: context.aad(),
        SectionType.RECORD: seal_record(packed, data_key=key, context=context),
        SectionType.WHOLE: seal_side(memoryview(data), data_key=key, context=context, label=WHOLE_LABEL),
    }
    return _finish(data, SealedImage(sections, context, record), sealer, Form.PASSTHROUGH, reason, "")


# --- both ---


def _finish(
    data: Data, made: SealedImage, sealer: Sealer, form: Form, reason: str, coder: str, version: int = box.VERSION
) -> Candidate:
    record, wraps = made.record, wrap(made, sealer)
    named = (record.patient_id, record.study_uid, record.series_uid, record.sop_uid, record.sop_class)
    pseudonyms = sealer.ring.pseudonym_key()
    uid = envelope_uid(record.file_sha256, pseudonyms, wraps.patient_key, sealer.generation)
    encrypted = [(item.syntax, item.content) for item in _identity_copy(sealer, data, uid, pseudonyms)]
    shown = "" if wraps.pixel else record.pixel_sha256
    source_ids = Source(record.file_sha256, *named, sealed_to=wraps.patient_key, generation=sealer.generation)
    container = box.build(made.sections, version)
    return candidate_of(
        made,
        wraps,
        envelope=build_envelope(container, source_ids, shown, pseudonyms, encrypted=encrypted, version=version),
        envelope_uid=uid,
        form=form,
        reason=reason,
        coder=coder,
        codec_bytes=sum(len(made.sections.get(kind, b"")) for kind in CODED) - made.in_stack,
        payload_bytes=payload_bytes(made) + sum(len(content) for _, content in encrypted),
        key_ids=(*wraps.key_ids, *(f"cms:{name}" for name in sealer.rule.cms if encrypted), sealer.signer[0]),
    )


def payload_bytes(made: SealedImage) -> int:
    """Bytes of all that is not the image: record, bitmap, side parts and wraps."""
    return made.in_stack + sum(len(part) for kind, part in made.sections.items() if kind not in CLEAR)


def candidate_of(made: SealedImage, wraps: Wraps, **rest: Any) -> Candidate:
    """A candidate with what follows from the instance itself; rest: all other fields."""
    return Candidate(
        carrier=made.context.mode,
        raw_pixel_bytes=made.raw_pixel_bytes,
        frames=made.frames,
        wraps=wraps.data,
        pixel_wraps=wraps.pixel,
        patient_key=wraps.patient_key,
        object_id=made.context.object_id,
        file_sha256=made.record.file_sha256,
        pixel_sha256=made.record.pixel_sha256,
        nonpixel_sha256=made.record.nonpixel_sha256,
        **rest,
    )


def wrap(made: SealedImage, sealer: Sealer) -> Wraps:
    """Wrap the instance's keys, and put the wraps among its sections. Raises Unavailable."""
    sealed_bitmap = made.context.mode == MODES[CarrierMode.SEALED]
    key, label = sealer.secrets.data_key, label_of(made.record)
    wraps = make_wraps(sealer.ring, sealer.rule, label, key, made.context, sealed_bitmap=sealed_bitmap)
    made.sections[SectionType.WRAPS] = box.pack_wraps(wraps.data)
    if wraps.pixel:
        made.sections[SectionType.PIXEL_WRAPS] = box.pack_wraps(wraps.pixel)
    return wraps


def _identity_copy(sealer: Sealer, data: Data, uid: str, pseudonyms: bytes) -> tuple[CmsItem, ...]:
    """The removed attributes as CMS for the rule's recipients; () where the rule names none, or nothing can be read."""
    if not sealer.rule.cms:
        return ()
    recipients = [known_recipient(sealer.ring, name) for name in sealer.rule.cms]
    if any(each.kind != "rsa" for each in recipients):
        raise Unavailable("unfit-recipient", "the policy names a recipient for CMS whose key is not RSA")
    public = [each.public for each in recipients]
    try:
        return (seal_identity(data, public, belongs_to=uid, signer=sealer.signer, key=pseudonyms),)
    except InvalidInstance:  # no header to take anything from: the file is sealed whole, and opens with the ring
        return ()
