"""From an archive object back: the received file (key), the exact image (mostly no key), the stego image (no key).

Everything that is given out was compared with the digests that came along. What a reader without a key can find wrong
is named (`container-damaged`, `context-mismatch`, ...) and is looked for first; whatever else does not fit, wrong key,
altered seal, swapped part or wrong UID, is the one refusal ``seal-refused``, without cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from codec.bitplane import Words
from codec.frame import decode_frame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, PolicyRefused, Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from stego.errors import SealError
from stego.record import Record, unpack_record
from stego.seal import Context, bitmap_key, open_bitmap, open_record, open_side
from worker import container as box
from worker.attributes import read_tolerant
from worker.container import CarrierMode, SectionType
from worker.envelope import parse_envelope
from worker.framepass import Decode, FramePass, Sections, section
from worker.objectcontext import PASSTHROUGH_MODE
from worker.pixels import Layout, bytes_from_words, pixel_digest, swap_pairs
from worker.sealing import OpenedKey, open_wraps, open_wraps_as, pixel_key_that_opens
from worker.splice import Step, carry_out, is_decompressed_plan, unpack_plan

SIDE_VERSION = 1
SIDE_LABEL, WHOLE_LABEL = "nonpixel", "whole"
PLANAR_CONFIGURATION = 0x00280006


@dataclass(frozen=True)
class Restored:
    """data: the restored file; sha256: its digest; exact: byte for byte the received file (else native pixels).

    restored_sha256 of the sealed side part was compared for compressed input. pixel_sha256 and nonpixel_sha256 are
    recomputed ('' for passthrough). key_ids: the keys of the ring that opened it and that checks its signature.
    pixels_open: the exact pixels can be read without identity: always, or for a sealed bitmap by the ring's pixel key.
    """

    data: bytes = field(repr=False)
    record: Record = field(repr=False)
    sha256: str
    exact: bool
    form: Form
    pixel_sha256: str
    nonpixel_sha256: str
    key_ids: tuple[str, ...] = ()
    pixels_open: bool = True


@dataclass(frozen=True)
class _Reading:
    """Frames of an object. `frames()` decodes anew at each call and checks the digest behind the last frame."""

    fmt: PixelFormat
    count: int
    photometric: str
    frames: Callable[[], Iterator[Words]]

    def frame(self, index: int) -> Words:
        """Frame `index` (from 0), after the digest over all frames was checked. Raises IntegrityError, IndexError."""
        kept = [words for at, words in enumerate(self.frames()) if at == index]
        return kept[0]


@dataclass(frozen=True)
class ExactImage(_Reading):
    """The pixels as they were received. pixel_sha256: hex digest of them."""

    pixel_sha256: str


@dataclass(frozen=True)
class StegoImage(_Reading):
    """The pixels with the sealed record inside: for looking at, never to be given out under an original's UID."""


@dataclass(frozen=True)
class _Side:
    layout: Layout
    steps: tuple[Step, ...]
    nonpixel: memoryview
    restored_sha256: bytes | None


def restore(
    envelope: bytes | memoryview, ring: KeyRing, *, decode: Decode = decode_frame, sop_uid: str = ""
) -> Restored:
    """The received file. `decode` may be the reference decoder. sop_uid: the SOP Instance UID that it must have.

    Raises IntegrityError: ``envelope-damaged``, ``not-an-envelope``, ``container-damaged``, ``container-version``,
    ``bitstream-damaged``, ``context-mismatch``, ``pixel-mismatch``, which anybody can see, and ``seal-refused`` for
    all else; Unavailable when the ring cannot be read.
    """
    sections = box.parse(parse_envelope(envelope).container)
    context = _context(sections)
    coded = None if context.mode == PASSTHROUGH_MODE else _Coded(sections, context, decode)
    try:
        found = coded.open(ring) if coded else _open_whole(sections, context, ring)
    except (SealError, IntegrityError):
        found = None
    if found is None or (sop_uid and found.record.sop_uid != sop_uid):
        raise _refused()
    return found


def read_image(
    envelope: bytes | memoryview, ring: KeyRing | None = None, *, recovery: bytes | None = None
) -> ExactImage | StegoImage:
    """What the pixels can be read as: exact without any key, but for a sealed bitmap only with one, else a StegoImage.

    recovery: private key of a recovery recipient (`stego.recipients.generate`). A key that does not open is refused.
    Raises IntegrityError; Unsupported ``passthrough`` without frames.
    """
    sections, first = _open_frames(envelope)
    shape = (first.fmt, first.count, first.image.photometric)
    if first.carrier.mode is not CarrierMode.SEALED:
        digest = first.image.pixel_sha256
        return ExactImage(*shape, lambda: FramePass(sections, decode_frame).clear_frames(), digest.hex())
    if ring is None and recovery is None:
        return StegoImage(*shape, lambda: FramePass(sections, decode_frame).clear_frames())
    bitmap, digest = _bitmap(sections, first, ring, recovery)
    return ExactImage(*shape, lambda: FramePass(sections, decode_frame).exact_frames(bitmap, digest), digest.hex())


def exact_image(
    envelope: bytes | memoryview, ring: KeyRing | None = None, *, recovery: bytes | None = None
) -> ExactImage:
    """The exact pixels. Raises as `read_image`, and PolicyRefused ``pixels-sealed`` where they need a key."""
    found = read_image(envelope, ring, recovery=recovery)
    if isinstance(found, StegoImage):
        raise PolicyRefused("pixels-sealed", "the exact pixels of this object are sealed: they need the key ring")
    return found


def stego_image(envelope: bytes | memoryview) -> StegoImage:
    """The pixels as coded, record inside. Raises as `read_image`."""
    sections, first = _open_frames(envelope)
    shape = (first.fmt, first.count, first.image.photometric)
    return StegoImage(*shape, lambda: FramePass(sections, decode_frame).stego_frames())


def _open_frames(envelope: bytes | memoryview) -> tuple[Sections, FramePass]:
    sections = box.parse(parse_envelope(envelope).container)
    if SectionType.FRAMES not in sections:
        raise Unsupported("passthrough", "the object was sealed whole: it has no pixels to read without a key")
    return sections, FramePass(sections, decode_frame)


def _bitmap(sections: Sections, frames: FramePass, ring: KeyRing | None, recovery: bytes | None) -> tuple[bytes, bytes]:
    """(bitmap, digest of the exact pixels) by the ring's pixel key or a recovery key. Raises IntegrityError."""
    context, wraps = _context(sections), box.unpack_wraps(section(sections, SectionType.PIXEL_WRAPS))
    try:
        key = open_wraps(wraps, ring.find_pixel_key) if ring else open_wraps_as(wraps, recovery or b"", context)
        opened = open_bitmap(frames.carrier.bitmap, key=key.key, context=context)
    except SealError:
        opened = None
    if opened is None:
        raise _refused()
    return opened


def _context(sections: Sections) -> Context:
    try:
        context = Context.parse(bytes(section(sections, SectionType.CONTEXT)))
    except SealError:
        context = None
    if context is None:
        raise IntegrityError("container-damaged", "the context is broken")
    return context


# --- with the key ---


def _open_whole(sections: Sections, context: Context, ring: KeyRing) -> Restored:
    key = _data_key(sections, ring)
    data = open_side(section(sections, SectionType.WHOLE), data_key=key.key, context=context, label=WHOLE_LABEL)
    packed = open_record(bytes(section(sections, SectionType.RECORD)), data_key=key.key, context=context)
    record = unpack_record(packed, find_verify_key=ring.find_verify_key)
    digest = _same(sha256(data).hexdigest(), record.file_sha256)
    return Restored(data, record, digest, True, Form.PASSTHROUGH, "", "", (key.id, record.signer))


class _Coded:
    """A coded object. Making it does all that needs no key: decoding, and comparing context and digest in clear."""

    def __init__(self, sections: Sections, context: Context, decode: Decode) -> None:
        self._sections, self._context = sections, context
        self._frames = FramePass(sections, decode)
        self._words = list(self._frames.clear_frames())
        if self._frames.context(context.object_id) != context:
            raise IntegrityError("context-mismatch", "the seals belong to other pixels")

    def open(self, ring: KeyRing) -> Restored:
        """The received file; uses the decoded frames up. Raises SealError, IntegrityError, for the caller to join."""
        key = _data_key(self._sections, ring)
        sealed_side = section(self._sections, SectionType.SIDE)
        side = _read_side(open_side(sealed_side, data_key=key.key, context=self._context, label=SIDE_LABEL))
        record = unpack_record(self._frames.record(self._context, key.key), find_verify_key=ring.find_verify_key)
        pixel_key = self._flip_sealed(key, ring)
        found = _same(pixel_digest(self._words).hex(), record.pixel_sha256)
        pixels = memoryview(self._pixel_stream(side.layout))
        data = carry_out(side.steps, side.nonpixel, pixels)
        digest = sha256(data).hexdigest()
        if side.restored_sha256 and not self._is_decompressed(side, data, len(pixels)):
            raise IntegrityError("plan", "the splice plan makes another file of the same parts")
        _same(digest, side.restored_sha256.hex() if side.restored_sha256 else record.file_sha256)
        nonpixel = _same(sha256(side.nonpixel).hexdigest(), record.nonpixel_sha256)
        key_ids = tuple(each for each in (key.id, record.signer, pixel_key) if each)
        is_open = self._frames.carrier.mode is not CarrierMode.SEALED or bool(pixel_key)
        exactly = digest == record.file_sha256
        return Restored(data, record, digest, exactly, Form.CODED, found, nonpixel, key_ids, is_open)

    def _is_decompressed(self, side: _Side, data: bytes, pixel_bytes: int) -> bool:
        """Whether plan and layout are what compressed input gets: its restored file is signed in parts only."""
        layout, fmt = side.layout, self._frames.fmt
        header = read_tolerant(data) if fmt.samples == 3 else None
        planar = header is not None and header.number(PLANAR_CONFIGURATION) == 1
        if layout != Layout(fmt.bits_allocated // 8, False, planar, False):
            return False
        return is_decompressed_plan(side.steps, side.nonpixel, pixel_bytes, layout.word_bytes)

    def _flip_sealed(self, data_key: OpenedKey, ring: KeyRing) -> str:
        """Flip a sealed bitmap back by the data key; the id of the pixel key that opens it as well, or ''."""
        carrier = self._frames.carrier
        if carrier.mode is not CarrierMode.SEALED:
            return ""
        key = bitmap_key(data_key.key, self._context)
        bitmap, digest = open_bitmap(carrier.bitmap, key=key, context=self._context)
        self._words[carrier.frame] = self._frames.flipped(bitmap)
        _same(pixel_digest(self._words).hex(), digest.hex())
        wraps = box.unpack_wraps(section(self._sections, SectionType.PIXEL_WRAPS))
        return pixel_key_that_opens(wraps, ring, key)

    def _pixel_stream(self, layout: Layout) -> bytearray:
        """The file's pixel bytes; every frame is let go as soon as it was laid out."""
        pixels = bytearray()
        self._words.reverse()
        while self._words:
            pixels += bytes_from_words(self._words.pop(), self._frames.fmt, layout)
        return bytearray(swap_pairs(pixels + layout.pad)) if layout.swapped else pixels


def _data_key(sections: Sections, ring: KeyRing) -> OpenedKey:
    return open_wraps(box.unpack_wraps(section(sections, SectionType.WRAPS)), ring.find_kek)


def _read_side(data: bytes) -> _Side:
    if len(data) < 2 or data[0] != SIDE_VERSION or data[1] > 1:
        raise IntegrityError("side-version", "a side part of a version that this program does not read")
    at, restored = 2, None
    if data[1]:
        restored, at = data[2:34], 34
    layout, used = Layout.unpack(data[at : at + 16])
    at += used
    steps, used = unpack_plan(data[at : at + (1 << 16)])
    return _Side(layout, steps, memoryview(data)[at + used :], restored)


def _refused() -> IntegrityError:
    return IntegrityError("seal-refused", "a sealed part does not open")


def _same(found: str, recorded: str) -> str:
    if found != recorded:
        raise IntegrityError("restore-mismatch", "what was restored is not what was recorded")
    return found
