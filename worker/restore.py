"""From an archive object back: the received file (key), the exact image (no key), the stego image (no key).

Everything that is given out was compared with the digests that came along; anything else is an IntegrityError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256

from codec.bitplane import Words
from codec.blob import Frame
from codec.errors import CorruptBitstream
from codec.frame import decode_frame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from stego.errors import CarrierError, SealError
from stego.record import Record, unpack_record
from stego.seal import Context, derive, open_record, open_side, unwrap_key
from stego.segmented import exact, extract
from worker import container as box
from worker.container import Carrier, CarrierMode, SectionType
from worker.envelope import parse_envelope
from worker.objectcontext import PASSTHROUGH_MODE, coded_context, frame_digest
from worker.pixels import MAX_NATIVE_BYTES, Layout, bytes_from_words, frame_bytes, swap_pairs
from worker.splice import Step, carry_out, unpack_plan

Decode = Callable[[bytes], Frame]
Sections = Mapping[SectionType, memoryview]
SIDE_VERSION = 1
SIDE_LABEL, WHOLE_LABEL = "nonpixel", "whole"


@dataclass(frozen=True)
class Restored:
    """data: the restored file; sha256: its digest; exact: byte for byte the received file (else native pixels).

    restored_sha256 of the sealed side part was compared for compressed input. pixel_sha256 and nonpixel_sha256 are
    recomputed ('' for passthrough).
    """

    data: bytes = field(repr=False)
    record: Record
    sha256: str
    exact: bool
    form: Form
    pixel_sha256: str
    nonpixel_sha256: str


@dataclass(frozen=True)
class ImageReading:
    """Frames of an object, read without any key. `frames()` decodes anew at each call; exact readings are checked."""

    fmt: PixelFormat
    count: int
    photometric: str
    pixel_sha256: str
    exact: bool
    frames: Callable[[], Iterator[Words]]


@dataclass(frozen=True)
class _Side:
    layout: Layout
    steps: tuple[Step, ...]
    nonpixel: memoryview
    restored_sha256: bytes | None


def restore(envelope: bytes | memoryview, ring: KeyRing, *, decode: Decode = decode_frame) -> Restored:
    """The received file. `decode` may be the reference decoder.

    Raises IntegrityError: ``container-damaged``, ``envelope-damaged``, ``not-an-envelope``, ``seal-refused``,
    ``bitstream-damaged``, ``context-mismatch``, ``restore-mismatch``; Unavailable when the ring cannot be read.
    """
    sections = box.parse(parse_envelope(envelope).container)
    try:
        context = Context.parse(bytes(_section(sections, SectionType.CONTEXT)))
        key = _unwrap(sections, ring)
        if context.mode == PASSTHROUGH_MODE:
            return _restore_whole(sections, context, key, ring)
        return _restore_coded(sections, context, key, ring, decode)
    except SealError as error:
        raise IntegrityError("seal-refused", "a sealed part does not open") from error


def exact_image(envelope: bytes | memoryview) -> ImageReading:
    """The exact pixels, without any key. Raises IntegrityError; Unsupported ``passthrough`` without frames."""
    return _reading(envelope, exactly=True)


def stego_image(envelope: bytes | memoryview) -> ImageReading:
    """The pixels as coded, message inside. Raises as `exact_image`."""
    return _reading(envelope, exactly=False)


# --- whole ---


def _restore_whole(sections: Sections, context: Context, key: bytes, ring: KeyRing) -> Restored:
    sealed = _section(sections, SectionType.WHOLE)
    data = open_side(sealed, data_key=key, context=context, label=WHOLE_LABEL)
    packed = open_record(bytes(_section(sections, SectionType.RECORD)), data_key=key, context=context)
    record = unpack_record(packed, find_verify_key=ring.find_verify_key)
    digest = _same(sha256(data).hexdigest(), record.file_sha256)
    return Restored(data, record, digest, True, Form.PASSTHROUGH, "", "")


# --- coded ---


def _restore_coded(sections: Sections, context: Context, key: bytes, ring: KeyRing, decode: Decode) -> Restored:
    sealed_side = _section(sections, SectionType.SIDE)
    side = _read_side(open_side(sealed_side, data_key=key, context=context, label=SIDE_LABEL))
    pass_ = _Pass(sections, decode)
    pixels = bytearray()
    for words in pass_.exact_frames():
        pixels += bytes_from_words(words, pass_.fmt, side.layout)
    if side.layout.swapped:
        pixels = bytearray(swap_pairs(pixels + side.layout.pad))
    if pass_.context(context.object_id) != context:
        raise IntegrityError("context-mismatch", "the seals belong to other pixels")
    record = unpack_record(pass_.record(context, key), find_verify_key=ring.find_verify_key)
    data = carry_out(side.steps, side.nonpixel, memoryview(pixels))
    digest = sha256(data).hexdigest()
    _same(digest, side.restored_sha256.hex() if side.restored_sha256 else record.file_sha256)
    pixel_digest = _same(pass_.pixel_sha256, record.pixel_sha256)
    nonpixel_digest = _same(sha256(side.nonpixel).hexdigest(), record.nonpixel_sha256)
    exactly = digest == record.file_sha256
    return Restored(data, record, digest, exactly, Form.CODED, pixel_digest, nonpixel_digest)


class _Pass:
    """One pass over the frames of a coded object, gathering the digests on the way."""

    def __init__(self, sections: Sections, decode: Decode) -> None:
        self.blobs = box.unpack_frames(_section(sections, SectionType.FRAMES))
        self.carrier = box.unpack_carrier(_section(sections, SectionType.CARRIER))
        self.image = box.unpack_image(_section(sections, SectionType.IMAGE))
        self._beside = bytes(sections.get(SectionType.RECORD, b""))
        self._decode = decode
        self._kept: Frame | None = None
        self._digests: list[bytes] = []
        self._pixels = sha256()
        if self.carrier.mode is CarrierMode.SEGMENTED and self.carrier.frame >= len(self.blobs):
            raise IntegrityError("container-damaged", "the carrier names a frame that is not there")
        self.fmt = self._frame(0).fmt
        if frame_bytes(self.fmt) * len(self.blobs) > MAX_NATIVE_BYTES:
            raise IntegrityError("bitstream-damaged", "more pixels than an object may hold")

    def exact_frames(self) -> Iterator[Words]:
        """The exact words of every frame; at the end the digest is compared with the one in clear."""
        for index in range(len(self.blobs)):
            frame = self._frame(index)
            if self._carries(index):
                self._kept = frame
            with _carrier_fits():
                self._digests.append(frame_digest(frame.words, frame.fmt, frame.levels, index, self.carrier))
                words = _exactly(frame, self.carrier) if self._carries(index) else frame.words
            self._pixels.update(words.astype(f"<u{words.dtype.itemsize}", copy=False).tobytes())
            yield words
        _same(self.pixel_sha256, self.image.pixel_sha256.hex())

    def stego_frames(self) -> Iterator[Words]:
        """The words as coded."""
        return (self._frame(index).words for index in range(len(self.blobs)))

    @property
    def pixel_sha256(self) -> str:
        """Hex digest of the exact words seen so far."""
        return self._pixels.hexdigest()

    def context(self, object_id: bytes) -> Context:
        """The context as the decoded frames show it."""
        return coded_context(object_id, self.fmt, self.carrier, self._digests)

    def record(self, context: Context, key: bytes) -> bytes:
        """The packed record, out of the image or from beside it."""
        sealed = self._beside
        if self._kept is not None:
            frame, carrier = self._kept, self.carrier
            stego_key, salt, where = derive(key, context, "pos/v1"), context.object_id, (carrier.start, carrier.nbits)
            with _carrier_fits():
                sealed = extract(frame.words, frame.fmt, frame.levels, *where, stego_key=stego_key, salt=salt)
        return open_record(sealed, data_key=key, context=context)

    def _carries(self, index: int) -> bool:
        return self.carrier.mode is CarrierMode.SEGMENTED and index == self.carrier.frame

    def _frame(self, index: int) -> Frame:
        try:
            frame = self._decode(bytes(self.blobs[index]))
        except CorruptBitstream as error:
            raise IntegrityError("bitstream-damaged", "a frame cannot be decoded") from error
        if index and frame.fmt != self.fmt:
            raise IntegrityError("bitstream-damaged", "frames of different formats")
        return frame


@contextmanager
def _carrier_fits() -> Iterator[None]:
    """A carrier description that the decoded frame contradicts is damage like any other."""
    try:
        yield
    except CarrierError as error:
        raise IntegrityError("bitstream-damaged", "the carrier does not fit the frame") from error


def _exactly(frame: Frame, carrier: Carrier) -> Words:
    return exact(frame.words, frame.fmt, frame.levels, carrier.bitmap, carrier.start, carrier.nbits)


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


def _reading(envelope: bytes | memoryview, *, exactly: bool) -> ImageReading:
    sections = box.parse(parse_envelope(envelope).container)
    if SectionType.FRAMES not in sections:
        raise Unsupported("passthrough", "the object was sealed whole: it has no pixels to read without a key")
    first = _Pass(sections, decode_frame)

    def frames() -> Iterator[Words]:
        pass_ = _Pass(sections, decode_frame)
        return pass_.exact_frames() if exactly else pass_.stego_frames()

    image = first.image
    return ImageReading(first.fmt, len(first.blobs), image.photometric, image.pixel_sha256.hex(), exactly, frames)


def _unwrap(sections: Sections, ring: KeyRing) -> bytes:
    """The data key from the first wrap that opens."""
    for wrap in box.unpack_wraps(_section(sections, SectionType.WRAPS)):
        try:
            return unwrap_key(wrap, find_kek=ring.find_kek)
        except SealError:
            continue
    raise SealError


def _section(sections: Sections, kind: SectionType) -> memoryview:
    if kind not in sections:
        raise IntegrityError("container-damaged", "a section is missing")
    return sections[kind]


def _same(found: str, recorded: str) -> str:
    if found != recorded:
        raise IntegrityError("restore-mismatch", "what was restored is not what was recorded")
    return found
