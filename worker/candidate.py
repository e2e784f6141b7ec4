"""From a received file to a candidate for the archive. What cannot be coded is sealed whole: nothing is refused."""

from __future__ import annotations

import os
import struct
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import sha256

from codec.bitplane import LevelTable, Words, choose_levels, split_words
from codec.errors import CodecError
from codec.frame import encode_frame
from gateway.errors import InvalidInstance, Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from stego.errors import CarrierError
from stego.record import Record, pack_record
from stego.seal import Context, derive, length_class, seal_record, seal_side, wrap_key
from stego.segmented import embed, suitability
from worker import container as box
from worker.attributes import Data, read_tolerant
from worker.container import Carrier, CarrierMode, SectionType
from worker.envelope import Source, build_envelope, envelope_uid
from worker.identity import Provenance, identify
from worker.objectcontext import coded_context, frame_digest, passthrough_context
from worker.pixels import PixelSource, open_pixels, pixel_digest, pixel_stream
from worker.splice import carry_out, pack_plan, read_object

MAX_CARRIER_TRIES = 8  # frames judged before the record goes beside: bounds the time on long multi-frame objects
MAX_WHOLE_BYTES = (1 << 31) - 1
LUT_DEFINED = frozenset({"PALETTE COLOR"})  # a palette index is no brightness: its lowest bit may be another colour
#: photometric interpretations that a keyless reader may be told; anything else is written as ''
PHOTOMETRIC = frozenset({"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR"})
SIDE_VERSION = 1
SIDE_LABEL, WHOLE_LABEL = "nonpixel", "whole"


@dataclass(frozen=True)
class Candidate:
    """An archive object before its proof, with the figures that are reported.

    reason: why passthrough, '' when coded. coder: coder words joined by '+'. carrier: 'segmented', 'beside' or
    'passthrough'. codec_bytes: coded frames; payload_bytes: record, bitmap, side parts and wraps.
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
    file_sha256: str
    pixel_sha256: str
    nonpixel_sha256: str


@dataclass(frozen=True)
class Secrets:
    """The random object id (16 bytes) and data key (32 bytes) of one object; fixed ones only in golden tests."""

    object_id: bytes
    data_key: bytes

    @classmethod
    def draw(cls) -> Secrets:
        """Fresh ones."""
        return cls(os.urandom(16), os.urandom(32))


def build_candidate(
    data: Data, facts: Provenance, ring: KeyRing, *, threads: int = 1, secrets: Secrets | None = None
) -> Candidate:
    """Code `data`, or seal it whole with the reason. Raises only Unavailable (no key ring: retry)."""
    secrets = secrets or Secrets.draw()
    try:
        return _coded(data, facts, ring, secrets, threads)
    except Unsupported as error:
        reason = error.reason
    except InvalidInstance as error:
        reason = f"unreadable-{error.reason}"
    except (CodecError, CarrierError):
        reason = "codec-error"
    except MemoryError:
        reason = "memory"
    return build_passthrough(data, facts, ring, reason, secrets=secrets)


# --- coded ---


def _coded(data: Data, facts: Provenance, ring: KeyRing, secrets: Secrets, threads: int) -> Candidate:
    source = open_pixels(read_object(data))
    key = secrets.data_key
    nonpixel, pixels = source.spans.nonpixel(), pixel_digest(source)
    record = replace(
        identify(data, source.spans.dataset, facts),
        pixel_sha256=pixels.hex(),
        nonpixel_sha256=sha256(nonpixel).hexdigest(),
    )
    packed = pack_record(record, signing_key=ring.signing_key())
    carrier, levels = _choose_carrier(source, 8 * length_class(len(packed)))
    digests = (_digest_of(source, index, carrier, levels) for index in range(source.frames))
    context = coded_context(secrets.object_id, source.fmt, carrier, digests)
    sealed = seal_record(packed, data_key=key, context=context)
    carrier, blobs, coders = _encode(source, carrier, levels, sealed, key, context, threads)
    side = _side_part(source, nonpixel)
    image = box.Image(source.photometric if source.photometric in PHOTOMETRIC else "", pixels)
    sections = {
        SectionType.IMAGE: box.pack_image(image),
        SectionType.FRAMES: box.pack_frames(blobs),
        SectionType.CARRIER: box.pack_carrier(carrier),
        SectionType.SIDE: seal_side(side, data_key=key, context=context, label=SIDE_LABEL),
    }
    if carrier.mode is CarrierMode.BESIDE:
        sections[SectionType.RECORD] = sealed
    coder = "+".join(name for name, _ in Counter(coders).most_common())
    return _finish(sections, context, record, ring, key, Form.CODED, "", coder, source)


def _choose_carrier(source: PixelSource, nbits: int) -> tuple[Carrier, LevelTable | None]:
    """The first suitable grey frame, its level table and window; beside when there is none or no carrier may be."""
    if source.fmt.samples != 1 or source.lossy_origin or source.photometric in LUT_DEFINED:
        return Carrier(CarrierMode.BESIDE), None
    for index in range(min(source.frames, MAX_CARRIER_TRIES)):
        words = source.frame(index)
        levels = choose_levels(split_words(words, source.fmt)[0])
        found = suitability(words, source.fmt, levels, nbits)
        if found.ok:
            return Carrier(CarrierMode.SEGMENTED, index, found.start, nbits), levels
    return Carrier(CarrierMode.BESIDE), None


def _digest_of(source: PixelSource, index: int, carrier: Carrier, levels: LevelTable | None) -> bytes:
    return frame_digest(source.frame(index), source.fmt, levels or LevelTable(0, 1), index, carrier)


def _encode(
    source: PixelSource,
    carrier: Carrier,
    levels: LevelTable | None,
    sealed: bytes,
    key: bytes,
    context: Context,
    threads: int,
) -> tuple[Carrier, list[bytes], list[str]]:
    """Code every frame; the carrier's frame after embedding, with the cover's level table."""
    blobs, coders = [], []
    for index in range(source.frames):
        words: Words = source.frame(index)
        table = None
        if carrier.mode is CarrierMode.SEGMENTED and index == carrier.frame and levels is not None:
            stego_key = derive(key, context, "pos/v1")
            embedded = embed(
                words, source.fmt, levels, sealed, stego_key=stego_key, salt=context.object_id, start=carrier.start
            )
            carrier = Carrier(carrier.mode, index, embedded.start, embedded.nbits, embedded.bitmap)
            words, table = embedded.words, levels
        coded = encode_frame(words, source.fmt, levels=table, threads=threads)
        blobs.append(coded.blob)
        coders.append(coded.coder)
    return carrier, blobs, coders


def _side_part(source: PixelSource, nonpixel: bytes) -> bytes:
    """u8 version, u8 1 if the input was compressed, then the restored file's SHA-256, layout, plan, non-pixel bytes."""
    head = struct.pack("<BB", SIDE_VERSION, source.spans.encapsulated)
    if source.spans.encapsulated:
        pixels = pixel_stream(source, source.fmt, source.layout)
        head += sha256(carry_out(source.steps, memoryview(nonpixel), memoryview(pixels))).digest()
    return b"".join((head, source.layout.pack(), pack_plan(source.steps), nonpixel))


# --- sealed whole ---


def build_passthrough(
    data: Data, facts: Provenance, ring: KeyRing, reason: str, *, secrets: Secrets | None = None
) -> Candidate:
    """Seal the whole file verbatim, whatever it is. Raises Unsupported ``too-large`` from 2 GiB on."""
    if len(data) > MAX_WHOLE_BYTES:
        raise Unsupported("too-large", "a file of 2 GiB or more cannot be sealed whole")
    secrets = secrets or Secrets.draw()
    context, key = passthrough_context(secrets.object_id), secrets.data_key
    record = identify(data, read_tolerant(data), facts)
    packed = pack_record(record, signing_key=ring.signing_key())
    sections = {
        SectionType.RECORD: seal_record(packed, data_key=key, context=context),
        SectionType.WHOLE: seal_side(memoryview(data), data_key=key, context=context, label=WHOLE_LABEL),
    }
    return _finish(sections, context, record, ring, key, Form.PASSTHROUGH, reason, "", None)


# --- both ---


def _finish(
    sections: dict[SectionType, bytes],
    context: Context,
    record: Record,
    ring: KeyRing,
    key: bytes,
    form: Form,
    reason: str,
    coder: str,
    source: PixelSource | None,
) -> Candidate:
    kek_id, kek = ring.kek_current()
    wraps = (wrap_key(key, kek=kek, kek_id=kek_id),)
    sections = {**sections, SectionType.CONTEXT: context.aad(), SectionType.WRAPS: box.pack_wraps(wraps)}
    body = box.build(sections)
    codec_bytes = len(sections.get(SectionType.FRAMES, b""))
    clear = (SectionType.FRAMES, SectionType.IMAGE, SectionType.CONTEXT)
    ids = Source(
        record.file_sha256, record.patient_id, record.study_uid, record.series_uid, record.sop_uid, record.sop_class
    )
    pseudonyms = ring.pseudonym_key()
    return Candidate(
        envelope=build_envelope(body, ids, record.pixel_sha256, pseudonyms),
        envelope_uid=envelope_uid(record.file_sha256, pseudonyms),
        form=form,
        reason=reason,
        coder=coder,
        carrier=context.mode,
        codec_bytes=codec_bytes,
        payload_bytes=sum(len(part) for kind, part in sections.items() if kind not in clear),
        raw_pixel_bytes=source.pixel_bytes if source else 0,
        frames=source.frames if source else 0,
        wraps=wraps,
        file_sha256=record.file_sha256,
        pixel_sha256=record.pixel_sha256,
        nonpixel_sha256=record.nonpixel_sha256,
    )
