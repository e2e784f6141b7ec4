"""One capsule hidden in a whole series: every image carries a share, by the square-root law (`stego.spread`).

The more images share a payload, the less any of them changes. Only single-frame images of one series; all images with
anything but air in them carry, which both sides read off the reserved lattice. The restoration record is one for the
series. Whoever lacks one of the images can still restore nothing from the pixels alone: the record in the archive,
which opens by its own wrap, is the way then.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from codec.bitplane import split_words
from gateway.errors import IntegrityError, PolicyRefused, Unsupported
from gateway.keys import KeyRing
from gateway.policy import DEFAULT_ARCHIVE, ArchiveRule
from stego import hidden
from stego.capsule import CAPSULE_CLASSES, Capsule, open_capsule, seal_capsule
from stego.errors import CarrierError, SealError
from stego.imagekey import image_key
from stego.lattice import fingerprint
from stego.record import pack_record, unpack_record
from stego.seal import Context, open_side, seal_record, seal_side
from stego.spread import effective_samples, gather, order, shares, split
from worker import container as box
from worker.attributes import Data
from worker.candidate import Secrets
from worker.container import SectionType
from worker.deid_profile import Profile
from worker.identity import Provenance, identify
from worker.pixelrules import FrameCover, check_object, covers, refusal, with_wet_plateaus, words_of
from worker.pixels import PixelSource, open_pixels, pixel_stream
from worker.sealing import make_wraps, open_wraps, patient_label
from worker.splice import carry_out, read_object
from worker.stegoframe import HIDDEN, Values
from worker.stegoheader import describe, read_header, refresh_range, stego_header, write_stego
from worker.stegoside import (
    SidePart,
    pack_part,
    parse_restoration_envelope,
    restoration_envelope,
    restoration_uid,
    stego_uid,
    unpack_part,
)

LABEL = "restoration-series"
SALT = b"palimpsest/series/v1\x00"
BASIC = Profile()
_ENTRY = struct.Struct("<32sI")


@dataclass(frozen=True)
class StegoSeries:
    """images: (SOP Instance UID, Part 10 bytes) in the order of the files. restoration: its record, to be archived.

    changed: altered samples of each image. shares: bytes of the capsule that each carries.
    """

    images: tuple[tuple[str, bytes], ...] = field(repr=False)
    restoration: bytes = field(repr=False)
    restoration_uid: str
    object_id: bytes
    wraps: tuple[bytes, ...] = field(repr=False)
    patient_key: str
    changed: tuple[int, ...]
    shares: tuple[int, ...]


@dataclass(frozen=True)
class _Seats:
    """Which images carry, in the order of their shares. samples: of each; salt: of the series."""

    places: tuple[int, ...]
    samples: tuple[int, ...]
    prints: tuple[bytes, ...]
    salt: bytes


@dataclass(frozen=True)
class _Series:
    sources: tuple[PixelSource, ...]
    values: tuple[Values, ...]
    seats: _Seats

    def context(self, object_id: bytes) -> Context:
        """What the series' seals are bound to: the first carrying image's shape, and the salt of all."""
        fmt = self.sources[self.seats.places[0]].fmt
        shape = (fmt.rows, fmt.columns, fmt.bits_stored, fmt.signed)
        return Context(object_id, *shape, len(self.seats.places), HIDDEN, self.seats.salt)

    def key(self, ring_key: bytes, place: int) -> bytes:
        """The stego key of one image."""
        return image_key(ring_key, self.seats.prints[place], HIDDEN)


# --- making ---


def make_series(
    files: Sequence[Data],
    facts: Provenance,
    ring: KeyRing,
    *,
    profile: Profile = BASIC,
    secrets: Secrets | None = None,
    rule: ArchiveRule = DEFAULT_ARCHIVE,
) -> StegoSeries:
    """Hide one capsule in all `files`, opened again and compared. Raises Unsupported with the first image's reason;
    PolicyRefused ``not-one-series``; InvalidInstance; Unavailable (key ring)."""
    drawn = secrets or Secrets.draw()
    series, shown = _opened(files), []
    frames = tuple(_cover(source) for source in series.sources)
    records = [identify(data, source.spans.dataset, facts) for data, source in zip(files, series.sources, strict=True)]
    if len({(each.patient_id, each.study_uid, each.series_uid) for each in records}) != 1:
        raise PolicyRefused("not-one-series", "the files are not of one series: spread what belongs together")
    first = records[series.seats.places[0]]
    context, label = series.context(drawn.object_id), patient_label(first.patient_id, first.study_uid)
    packed = pack_record(first, signing_key=ring.signing_key())
    sealed = seal_record(packed, data_key=drawn.data_key, context=context)
    wraps = make_wraps(ring, rule, label, drawn.data_key, context, sealed_bitmap=False)
    ring_key = ring.stego_key()[1]
    capsule = seal_capsule(
        sealed, object_id=drawn.object_id, wrap=wraps.data[0], stego_key=image_key(ring_key, series.seats.salt, HIDDEN),
        salt=series.seats.salt,
    )  # fmt: skip
    done, sizes = _spread(series, frames, capsule, ring_key)
    pseudonyms, entries = ring.pseudonym_key(), []
    for place, (data, source) in enumerate(zip(files, series.sources, strict=True)):
        uid = stego_uid(sha256(drawn.object_id + series.seats.prints[place]).digest()[:16], pseudonyms)
        header = stego_header(read_header(data), profile, pseudonyms, mode=HIDDEN, uid=uid)
        describe(header, HIDDEN, 1)
        refresh_range(header, int(done[place].values.min()), int(done[place].values.max()))
        shown.append((uid, write_stego(header, [frames[place].words(done[place].values)], b"")))
        entries.append(series.seats.prints[place] + _side(source, frames[place], done[place].changes, data))
    sides = b"".join(_ENTRY.pack(each[:32], len(each) - 32) + each[32:] for each in entries)
    container = box.build(
        {
            SectionType.CONTEXT: context.aad(),
            SectionType.WRAPS: box.pack_wraps(wraps.data),
            SectionType.RECORD: sealed,
            SectionType.SIDE: seal_side(sides, data_key=drawn.data_key, context=context, label=LABEL),
        }
    )
    made = StegoSeries(
        tuple(shown), restoration_envelope(container, first, drawn.object_id, pseudonyms),
        restoration_uid(drawn.object_id, pseudonyms), drawn.object_id, wraps.data, wraps.patient_key,
        tuple(each.changed for each in done), sizes,
    )  # fmt: skip
    open_series([image for _, image in made.images], ring, made.restoration)  # nothing leaves that does not come back
    return made


def _spread(
    series: _Series, frames: tuple[FrameCover, ...], capsule: bytes, ring_key: bytes
) -> tuple[list[hidden.Hidden], tuple[int, ...]]:
    """Every image with its share, images without one unchanged; and the shares."""
    done = [hidden.Hidden(values, b"", 0, 0.0, 0.0) for values in series.values]
    sizes = [0] * len(done)
    try:
        parts = split(capsule, series.seats.samples)
        for place, part in zip(series.seats.places, parts, strict=True):
            cover = with_wet_plateaus(frames[place].cover)
            found = hidden.suitability(cover)
            if part and not found.suited and found.reason != "small":
                raise refusal(found.reason)
            if part:
                key, salt = series.key(ring_key, place), series.seats.prints[place]
                done[place] = hidden.embed(cover, part, stego_key=key, salt=salt)
                sizes[place] = len(part)
    except CarrierError as error:
        raise refusal("no-room") from error
    return done, tuple(sizes)


def _cover(source: PixelSource) -> FrameCover:
    return next(covers(source))


def _side(source: PixelSource, cover: FrameCover, changes: bytes, data: Data) -> bytes:
    nonpixel, digest = source.spans.nonpixel(), sha256(data).digest()
    if source.spans.encapsulated:
        pixels = pixel_stream(source, source.fmt, source.layout)
        digest = sha256(carry_out(source.steps, memoryview(nonpixel), memoryview(pixels))).digest()
    part = SidePart(0, source.spans.encapsulated, cover.extended, digest, source.layout, source.steps, changes,
                    memoryview(nonpixel))  # fmt: skip
    return pack_part(part)


# --- both ---


def _opened(files: Sequence[Data]) -> _Series:
    sources = tuple(open_pixels(read_object(data)) for data in files)
    for source in sources:
        check_object(source.spans.dataset, source)
        if source.frames != 1:
            raise Unsupported("multi-frame", "a payload is spread over single-frame images only")
    values = tuple(split_words(source.frame(0), source.fmt)[0] for source in sources)
    return _Series(sources, values, _seats(sources, values))


def _seats(sources: Sequence[PixelSource], values: Sequence[Values]) -> _Seats:
    prints = tuple(
        fingerprint(each, source.fmt.bits_stored, source.fmt.signed, HIDDEN)
        for each, source in zip(values, sources, strict=True)
    )
    weights = [effective_samples(each) for each in values]
    carrying = [place for place, weight in enumerate(weights) if weight]
    if len(set(prints)) != len(prints) or not carrying:
        raise Unsupported("flat", "images of the series look the same, or hold nothing but air")
    places = tuple(carrying[index] for index in order([prints[place] for place in carrying]))
    salt = sha256(SALT + b"".join(prints[place] for place in places)).digest()
    return _Seats(places, tuple(weights[place] for place in places), prints, salt)


# --- opening ---


def open_series(images: Sequence[Data], ring: KeyRing, restoration: bytes) -> list[bytes]:
    """The received files in the order of `images`, all of the series. restoration: its record, a Raw Data object.

    Raises IntegrityError ``seal-refused`` (wrong key, damage, an image missing or of another series),
    ``restoration-other``, ``restore-mismatch``; Unsupported, InvalidInstance for what is no image.
    """
    series = _opened(images)
    try:
        capsule = _gathered(series, ring)
        data_key = open_wraps((capsule.wrap,), ring.find_kek).key
        parsed = parse_restoration_envelope(restoration)
        if parsed.context != series.context(capsule.object_id):
            raise IntegrityError("restoration-other", "the restoration record belongs to another series")
        record = unpack_record(parsed.record(data_key), find_verify_key=ring.find_verify_key)
        sides = _sides(open_side(parsed.sealed_side, data_key=data_key, context=parsed.context, label=LABEL))
    except SealError as error:
        raise IntegrityError("seal-refused", "nothing in these images opens with these keys") from error
    files = [_restored(series, place, sides) for place in range(len(images))]
    signed = series.seats.places[0]
    exact = sha256(files[signed]).hexdigest() == record.file_sha256
    if not exact and not sides[series.seats.prints[signed]].compressed:
        raise IntegrityError("restore-mismatch", "what was restored is not what was recorded")
    return files


def _gathered(series: _Series, ring: KeyRing) -> Capsule:
    for _, ring_key in ring.stego_keys():
        for size in CAPSULE_CLASSES:
            try:
                parts = [
                    hidden.extract(series.values[place], share, stego_key=series.key(ring_key, place),
                                   salt=series.seats.prints[place]) if share else b""
                    for place, share in zip(series.seats.places, shares(size, series.seats.samples), strict=True)
                ]  # fmt: skip
                message = gather(parts, series.seats.samples)
                key = image_key(ring_key, series.seats.salt, HIDDEN)
                return open_capsule(message, stego_key=key, salt=series.seats.salt)
            except (SealError, CarrierError):
                continue
    raise SealError


def _sides(data: bytes) -> dict[bytes, SidePart]:
    found, at = {}, 0
    while at + _ENTRY.size <= len(data):
        name, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        found[name] = unpack_part(data[at : at + length])
        at += length
    return found


def _restored(series: _Series, place: int, sides: dict[bytes, SidePart]) -> bytes:
    side, source, values = sides.get(series.seats.prints[place]), series.sources[place], series.values[place]
    if side is None:
        raise IntegrityError("restoration-other", "the restoration record does not know one of the images")
    try:
        original = hidden.restore(values, side.changes) if side.changes else values
    except CarrierError as error:
        raise IntegrityError("restore-mismatch", "the change map does not fit an image") from error
    pixels = pixel_stream([words_of(original, source.fmt, extended=side.extended)], source.fmt, side.layout)
    data = carry_out(side.steps, side.nonpixel, memoryview(pixels))
    if sha256(data).digest() != side.restored_sha256:
        raise IntegrityError("restore-mismatch", "what was restored is not what was recorded")
    return data
