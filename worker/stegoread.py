"""From a viewable stego object back to the received file: the capsule out of the pixels, then the restoration record.

Everything that is given out was compared with the signed record; anything else is one IntegrityError. The header is not
trusted, and hardly needed: `find_capsule` works on bare frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from codec.bitplane import Words, split_words
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, Unsupported
from gateway.keys import KeyRing
from stego.errors import CarrierError, SealError
from stego.hidden import restore as without_changes
from stego.record import Record, unpack_record
from stego.seal import open_record
from worker.attributes import Data, DataSet
from worker.pixelrules import MAX_FRAMES_TRIED, cover_of, padding_values, words_of
from worker.pixels import Layout, PixelSource, bytes_from_words, little_endian, open_pixels, swap_pairs
from worker.sealing import open_wraps
from worker.splice import carry_out, is_decompressed_plan, read_object
from worker.stegoframe import MODES, FrameReading, Mode, read_frame
from worker.stegoheader import find_container
from worker.stegoside import Restoration, SidePart, parse_restoration, parse_restoration_envelope


@dataclass(frozen=True)
class StegoReading:
    """What the pixels alone gave: the capsule, opened. frame: the one that carried. record: its signature verified.

    data_key opens the restoration record of the same object. wrap_key_id: the key that gave it.
    """

    frame: int
    found: FrameReading
    record: Record
    data_key: bytes = field(repr=False)
    wrap_key_id: str


@dataclass(frozen=True)
class RestoredStego:
    """data: the restored file. exact: byte for byte the received file (else its native form, pixels equal).

    key_ids: the keys that opened it. The digests were compared with the signed record.
    """

    data: bytes = field(repr=False)
    record: Record
    sha256: str
    exact: bool
    mode: Mode
    object_id: bytes
    frame: int
    pixel_sha256: str
    nonpixel_sha256: str
    key_ids: tuple[str, ...]


def open_stego(part10: Data, ring: KeyRing, *, restoration: bytes | None = None) -> RestoredStego:
    """The received file. restoration: its record (a Raw Data object) where it does not ride in the header.

    Raises IntegrityError: ``seal-refused`` (wrong key, damage: indistinguishable), ``restoration-missing``,
    ``restoration-other`` (of another object), ``restore-mismatch``; Unsupported, InvalidInstance as `read_stego`.
    """
    source = open_pixels(read_object(part10))
    record = restoration_of(source.spans.dataset, restoration)
    reading = read_source(source, ring, MODES if record is None else (record.context.mode,))
    if record is None:
        raise IntegrityError("restoration-missing", "what restores this object is archived apart: give it as well")
    return rebuild(source, reading, record)


def read_stego(part10: Data, ring: KeyRing) -> StegoReading:
    """What the pixels of a stego object tell the holder of the keys, without its restoration record.

    Raises IntegrityError ``seal-refused``, whatever the cause; Unsupported or InvalidInstance for what is no image.
    """
    return read_source(open_pixels(read_object(part10)), ring)


def read_source(source: PixelSource, ring: KeyRing, modes: Iterable[str] = MODES) -> StegoReading:
    """The same for opened pixels: the first frames, with the header's padding values and without."""
    frames = ((index, source.frame(index)) for index in range(min(source.frames, MAX_FRAMES_TRIED)))
    return find_capsule(frames, source.fmt, ring, _paddings(source), modes)


def find_capsule(
    frames: Iterable[tuple[int, Words]],
    fmt: PixelFormat,
    ring: KeyRing,
    paddings: Iterable[tuple[int, ...]] = ((),),
    modes: Iterable[str] = MODES,
) -> StegoReading:
    """The capsule in any of `frames` (index, words), which need no header: `fmt` says all that must be known.

    paddings: sets of padding values to try. Raises IntegrityError ``seal-refused``.
    """
    keys, tries, wanted = ring.stego_keys(), tuple(paddings), tuple(modes)
    for index, words in frames:
        values = split_words(words, fmt)[0]
        for padding in tries:
            try:
                return _authentic(index, read_frame(cover_of(values, fmt, padding), fmt, keys, wanted), ring)
            except (SealError, Unsupported):
                continue
    raise IntegrityError("seal-refused", "nothing in this image opens with these keys")


def restoration_of(header: DataSet, given: bytes | None) -> Restoration | None:
    """The restoration record: the one given, else the header's own, None where there is neither.

    Raises IntegrityError (damaged, or not one).
    """
    try:
        if given is not None:
            return parse_restoration_envelope(given)
        inline = find_container(header)
        return None if inline is None else parse_restoration(inline)
    except SealError as error:
        raise IntegrityError("seal-refused", "a sealed part does not open") from error


def rebuild(source: PixelSource, reading: StegoReading, restoration: Restoration) -> RestoredStego:
    """The received file from the stego pixels, what they told, and the restoration record. Raises as `open_stego`."""
    if restoration.context != reading.found.context:
        raise IntegrityError("restoration-other", "the restoration record belongs to another object")
    try:
        side = restoration.side(reading.data_key)
    except SealError as error:
        raise IntegrityError("seal-refused", "a sealed part does not open") from error
    if side.frame != reading.frame:
        raise IntegrityError("restoration-other", "the restoration record belongs to another frame")
    original = _original_words(source, reading, side)
    pixels, digest = bytearray(), sha256()
    for index in range(source.frames):
        words = original if index == side.frame else source.frame(index)
        digest.update(little_endian(words))
        pixels += bytes_from_words(words, source.fmt, side.layout)
    if side.layout.swapped:
        pixels = bytearray(swap_pairs(pixels + side.layout.pad))
    data = carry_out(side.steps, side.nonpixel, memoryview(pixels))
    if side.compressed and not _is_decompressed(side, source, len(pixels)):
        raise IntegrityError("restore-mismatch", "what was restored is not what was recorded")
    return _compared(data, digest.hexdigest(), side, reading)


def _is_decompressed(side: SidePart, source: PixelSource, pixel_bytes: int) -> bool:
    """As in `worker.restore`: what compressed input restores to is signed in parts only, so its plan is checked."""
    if side.layout != Layout(source.fmt.bits_allocated // 8, False, False, False):
        return False
    return is_decompressed_plan(side.steps, side.nonpixel, pixel_bytes, side.layout.word_bytes)


def _compared(data: bytes, pixel_sha256: str, side: SidePart, reading: StegoReading) -> RestoredStego:
    record, found = reading.record, reading.found
    restored, nonpixel = sha256(data).hexdigest(), sha256(side.nonpixel).hexdigest()
    exact = restored == record.file_sha256
    same = (
        restored == side.restored_sha256.hex(),
        pixel_sha256 == record.pixel_sha256,
        nonpixel == record.nonpixel_sha256,
        exact or side.compressed,
    )
    if not all(same):
        raise IntegrityError("restore-mismatch", "what was restored is not what was recorded")
    keys = (reading.wrap_key_id, found.key_id, record.signer)
    object_id = found.capsule.object_id
    return RestoredStego(
        data, record, restored, exact, found.mode, object_id, reading.frame, pixel_sha256, nonpixel, keys
    )


def _original_words(source: PixelSource, reading: StegoReading, side: SidePart) -> Words:
    values = reading.found.original
    if values is None:
        stego = split_words(source.frame(reading.frame), source.fmt)[0]
        try:
            values = without_changes(stego, side.changes)
        except CarrierError as error:
            raise IntegrityError("restore-mismatch", "the change map does not fit the image") from error
    return words_of(values, source.fmt, extended=side.extended)


def _paddings(source: PixelSource) -> tuple[tuple[int, ...], ...]:
    """The header's padding values, and none, in case the header was altered."""
    try:
        declared = padding_values(source.spans.dataset, source.fmt)
    except Unsupported:
        declared = ()
    return (declared, ()) if declared else ((),)


def _authentic(index: int, found: FrameReading, ring: KeyRing) -> StegoReading:
    key = open_wraps((found.capsule.wrap,), ring.find_kek)
    packed = open_record(found.capsule.sealed_record, data_key=key.key, context=found.context)
    record = unpack_record(packed, find_verify_key=ring.find_verify_key)
    return StegoReading(index, found, record, key.key, key.id)
