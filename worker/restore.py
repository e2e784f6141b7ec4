"""From an archive object back: the received file (key), the exact image (mostly no key), the stego image (no key).

Everything that is given out was compared with the digests that came along. What a reader without a key can find wrong
is named (`container-damaged`, `context-mismatch`, ...) and is looked for first; whatever else does not fit, wrong key,
altered seal, swapped part or wrong UID, is the one refusal ``seal-refused``, without cause.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from hashlib import sha256
from threading import Lock

from codec.bitplane import Words
from codec.bitsback import BitsBack
from codec.frame import decode_frame
from codec.groupstack import Opener
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, InvalidInstance, PolicyRefused, Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from gateway.part10 import read_meta
from stego.errors import SealError
from stego.record import Record, unpack_record
from stego.seal import Context, bitmap_key, open_bitmap, open_record, open_side, open_side_pieces
from worker import container as box
from worker.attributes import read_tolerant
from worker.container import CarrierMode, SectionType
from worker.envelope import parse_envelope
from worker.framechain import Decode, FrameChain
from worker.framepass import FramePass, Sections, chain_of, section
from worker.objectcontext import PASSTHROUGH_MODE
from worker.pixels import Layout, frame_bytes, little_endian, pixel_pieces
from worker.sealing import OpenedKey, open_wraps, open_wraps_as, pixel_key_that_opens
from worker.splice import Step, carried, is_decompressed_plan, unpack_plan

SIDE_VERSION = 1
SIDE_LABEL, WHOLE_LABEL = "nonpixel", "whole"
PLANAR_CONFIGURATION = 0x00280006
Write = Callable[[bytes | memoryview | mmap.mmap], object]


@dataclass(frozen=True)
class Rebuilt:
    """sha256: of the file that was written; exact: byte for byte the received file (else native pixels).

    restored_sha256 of the sealed side part was compared for compressed input. pixel_sha256 and nonpixel_sha256 are
    recomputed ('' for passthrough). key_ids: the keys of the ring that opened it and that checks its signature.
    pixels_open: the exact pixels can be read without identity: always, or for a sealed bitmap by the ring's pixel key.
    syntax: the transfer syntax that the file was received in, '' where it cannot be read. pixel_bytes: of the native
    pixels, 0 for passthrough.
    """

    record: Record = field(repr=False)
    sha256: str
    exact: bool
    form: Form
    pixel_sha256: str
    nonpixel_sha256: str
    key_ids: tuple[str, ...] = ()
    pixels_open: bool = True
    syntax: str = ""
    pixel_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Restored(Rebuilt):
    """The same with the restored file itself."""

    data: bytes = field(repr=False)


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
    envelope: bytes | memoryview,
    ring: KeyRing,
    *,
    decode: Decode | None = None,
    sop_uid: str = "",
    member: int | None = None,
) -> Restored:
    """The received file. Arguments and errors as `rebuild`."""
    out = io.BytesIO()
    found = rebuild(envelope, ring, out.write, decode=decode, sop_uid=sop_uid, member=member)
    return Restored(**{each.name: getattr(found, each.name) for each in fields(found)}, data=out.getvalue())


def rebuild(
    envelope: bytes | memoryview,
    ring: KeyRing,
    write: Write,
    *,
    decode: Decode | None = None,
    opener: Opener = BitsBack,
    sop_uid: str = "",
    member: int | None = None,
) -> Rebuilt:
    """Write the received file piece by piece, holding a few frames of it; what was written is good once this returns.

    `decode`, `opener` may be the reference decoder and its stack. sop_uid: the SOP Instance UID that it must have.
    member: which instance of a group's envelope (from 0), None for an envelope of one.
    Raises IntegrityError: ``envelope-damaged``, ``not-an-envelope``, ``container-damaged``, ``container-version``,
    ``bitstream-damaged``, ``context-mismatch``, ``pixel-mismatch``, which anybody can see, and ``seal-refused`` for
    all else; Unsupported ``group``; Unavailable when the ring cannot be read.
    """
    sections = member_of(box.parse(parse_envelope(envelope).container), member)
    return rebuild_member(sections, ring, write, decode=decode, opener=opener, sop_uid=sop_uid)


def rebuild_member(
    sections: Sections,
    ring: KeyRing,
    write: Write,
    *,
    decode: Decode | None = None,
    opener: Opener = BitsBack,
    sop_uid: str = "",
    chain: FrameChain | None = None,
) -> Rebuilt:
    """`rebuild` of an instance's own sections (`container.unpack_members`). chain: as in `FramePass`."""
    context = _context(sections)
    whole = context.mode == PASSTHROUGH_MODE
    coded = None if whole else _Coded(FramePass(sections, decode or decode_frame, chain, opener), context)
    try:
        found = _open_coded(coded, sections, ring, write) if coded else _open_whole(sections, context, ring, write)
    except (SealError, IntegrityError):
        found = None
    if coded is not None:
        coded.finish()
    if found is None or (sop_uid and found.record.sop_uid != sop_uid):
        raise _refused()
    return found


class OpenGroup:
    """A group's envelope, for giving back several of its instances: in coding order each frame is decoded once."""

    def __init__(self, envelope: bytes | memoryview) -> None:
        """Raises IntegrityError, also for an envelope of one instance."""
        self._members = members_of(envelope)
        if not self._members:
            raise IntegrityError("container-damaged", "the envelope holds no group")
        self._chain = chain_through(self._members[0])
        self._lock = Lock()  # the chain stands at one frame

    def rebuild(self, member: int, ring: KeyRing, write: Write) -> Rebuilt:
        """One instance (from 0). Raises as `rebuild`."""
        if not 0 <= member < len(self._members):
            raise IntegrityError("container-damaged", "the envelope holds no such instance")
        with self._lock:
            return rebuild_member(self._members[member], ring, write, chain=self._chain)


def members_of(envelope: bytes | memoryview) -> list[dict[SectionType, memoryview]]:
    """The sections of every instance of a group's envelope; none where it is of one instance. Raises IntegrityError."""
    return box.unpack_members(box.parse(parse_envelope(envelope).container))


def chain_through(member: Sections) -> FrameChain:
    """The decoder that a group's instances share when one is read after another. Raises IntegrityError."""
    return chain_of(member, decode_frame)


def member_of(sections: Sections, member: int | None) -> Sections:
    """An instance's sections of an envelope's. Raises IntegrityError ``container-damaged``; Unsupported ``group``."""
    members = box.unpack_members(sections)
    if member is None and not members:
        return sections
    if member is None:
        raise Unsupported("group", "an envelope of several instances: say which one is meant")
    if not 0 <= member < len(members):
        raise IntegrityError("container-damaged", "the envelope holds no such instance")
    return members[member]


def read_image(
    envelope: bytes | memoryview,
    ring: KeyRing | None = None,
    *,
    recovery: bytes | None = None,
    member: int | None = None,
) -> ExactImage | StegoImage:
    """What the pixels can be read as: exact without any key, but for a sealed bitmap only with one, else a StegoImage.

    recovery: private key of a recovery recipient (`stego.recipients.generate`). A key that does not open is refused.
    member: which instance of a group's envelope. Raises IntegrityError; Unsupported ``passthrough`` without frames,
    ``group``.
    """
    sections, first = _open_frames(envelope, member)
    shape = (first.fmt, first.count, first.image.photometric)
    if first.carrier.mode is not CarrierMode.SEALED:
        digest = first.image.pixel_sha256
        return ExactImage(*shape, lambda: FramePass(sections, decode_frame).clear_frames(), digest.hex())
    if ring is None and recovery is None:
        return StegoImage(*shape, lambda: FramePass(sections, decode_frame).clear_frames())
    bitmap, digest = _bitmap(sections, first, ring, recovery)
    return ExactImage(*shape, lambda: FramePass(sections, decode_frame).exact_frames(bitmap, digest), digest.hex())


def exact_image(
    envelope: bytes | memoryview,
    ring: KeyRing | None = None,
    *,
    recovery: bytes | None = None,
    member: int | None = None,
) -> ExactImage:
    """The exact pixels. Raises as `read_image`, and PolicyRefused ``pixels-sealed`` where they need a key."""
    found = read_image(envelope, ring, recovery=recovery, member=member)
    if isinstance(found, StegoImage):
        raise PolicyRefused("pixels-sealed", "the exact pixels of this object are sealed: they need the key ring")
    return found


def stego_image(envelope: bytes | memoryview, member: int | None = None) -> StegoImage:
    """The pixels as coded, record inside. Raises as `read_image`."""
    sections, first = _open_frames(envelope, member)
    shape = (first.fmt, first.count, first.image.photometric)
    return StegoImage(*shape, lambda: FramePass(sections, decode_frame).stego_frames())


def _open_frames(envelope: bytes | memoryview, member: int | None) -> tuple[Sections, FramePass]:
    sections = member_of(box.parse(parse_envelope(envelope).container), member)
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


def _open_whole(sections: Sections, context: Context, ring: KeyRing, write: Write) -> Rebuilt:
    key = _data_key(sections, ring)
    packed = open_record(bytes(section(sections, SectionType.RECORD)), data_key=key.key, context=context)
    record = unpack_record(packed, find_verify_key=ring.find_verify_key)
    sealed, whole = section(sections, SectionType.WHOLE), sha256()
    for piece in open_side_pieces(sealed, data_key=key.key, context=context, label=WHOLE_LABEL):
        whole.update(piece)
        write(piece)
    digest = _same(whole.hexdigest(), record.file_sha256)
    return Rebuilt(record, digest, True, Form.PASSTHROUGH, "", "", (key.id, record.signer))


class _Coded:
    """One way through the frames of a coded object. What needs no key is compared whether or not the keys open."""

    def __init__(self, frames: FramePass, context: Context) -> None:
        self.frames, self.context = frames, context
        self._clear = self._passing()
        self._damage: IntegrityError | None = None

    def exact_frames(self, bitmap: bytes | None) -> Iterator[Words]:
        """The exact words; bitmap: of a sealed carrier, None for all others."""
        for index, words in enumerate(self._clear):
            yield self.frames.flipped(bitmap) if bitmap is not None and self.frames.carrier.in_frame(index) else words

    def finish(self) -> None:
        """The rest of the way. Raises IntegrityError, now or again, for what anybody can see to be wrong."""
        for _ in self._clear:
            pass
        if self._damage is not None:
            raise self._damage
        if self.frames.context(self.context.object_id) != self.context:
            raise IntegrityError("context-mismatch", "the seals belong to other pixels")

    def _passing(self) -> Iterator[Words]:
        try:
            yield from self.frames.clear_frames()
        except IntegrityError as error:
            self._damage = error
            raise


def _open_coded(coded: _Coded, sections: Sections, ring: KeyRing, write: Write) -> Rebuilt:
    """Write the received file. Raises SealError, IntegrityError, for the caller to join."""
    frames, context, key = coded.frames, coded.context, _data_key(sections, ring)
    side = _read_side(
        open_side(section(sections, SectionType.SIDE), data_key=key.key, context=context, label=SIDE_LABEL)
    )
    bitmap, sealed_digest, pixel_key = _sealed_bitmap(sections, frames, context, key, ring)
    whole, pixels = sha256(), _Digest(coded.exact_frames(bitmap))
    for piece in carried(side.steps, side.nonpixel, pixel_pieces(pixels, frames.fmt, side.layout)):
        whole.update(piece)
        write(piece)
    coded.finish()
    if side.restored_sha256 and not _is_decompressed(side, frames):
        raise IntegrityError("plan", "the splice plan makes another file of the same parts")
    record = unpack_record(frames.record(context, key.key), find_verify_key=ring.find_verify_key)
    found = _same(pixels.hexdigest(), record.pixel_sha256)
    _same(found, sealed_digest or found)
    digest = _same(whole.hexdigest(), side.restored_sha256.hex() if side.restored_sha256 else record.file_sha256)
    nonpixel = _same(sha256(side.nonpixel).hexdigest(), record.nonpixel_sha256)
    key_ids = tuple(each for each in (key.id, record.signer, pixel_key) if each)
    is_open = bitmap is None or bool(pixel_key)
    exact, syntax = digest == record.file_sha256, _syntax(side.nonpixel)
    size = frame_bytes(frames.fmt) * frames.count
    return Rebuilt(record, digest, exact, Form.CODED, found, nonpixel, key_ids, is_open, syntax, size)


def _syntax(nonpixel: memoryview) -> str:
    try:
        return read_meta(nonpixel)[0]
    except InvalidInstance:
        return ""


class _Digest:
    """Frames that are hashed as they pass."""

    def __init__(self, frames: Iterator[Words]) -> None:
        self._frames, self._hash = frames, sha256()

    def __iter__(self) -> Iterator[Words]:
        for words in self._frames:
            self._hash.update(little_endian(words))
            yield words

    def hexdigest(self) -> str:
        """SHA-256 of the frames that passed."""
        return self._hash.hexdigest()


def _sealed_bitmap(
    sections: Sections, frames: FramePass, context: Context, data_key: OpenedKey, ring: KeyRing
) -> tuple[bytes | None, str, str]:
    """The bitmap by the data key, its digest of the exact pixels, and the id of the pixel key that opens it, or ''.

    (None, '', '') where it is not sealed. Raises SealError, IntegrityError.
    """
    if frames.carrier.mode is not CarrierMode.SEALED:
        return None, "", ""
    key = bitmap_key(data_key.key, context)
    bitmap, digest = open_bitmap(frames.carrier.bitmap, key=key, context=context)
    wraps = box.unpack_wraps(section(sections, SectionType.PIXEL_WRAPS))
    return bitmap, digest.hex(), pixel_key_that_opens(wraps, ring, key)


def _is_decompressed(side: _Side, frames: FramePass) -> bool:
    """Whether plan and layout are what compressed input gets: its restored file is signed in parts only."""
    layout, fmt = side.layout, frames.fmt
    header = read_tolerant(bytes(side.nonpixel)) if fmt.samples == 3 else None
    planar = header is not None and header.number(PLANAR_CONFIGURATION) == 1
    if layout != Layout(fmt.bits_allocated // 8, False, planar, False):
        return False
    return is_decompressed_plan(side.steps, side.nonpixel, frame_bytes(fmt) * frames.count, layout.word_bytes)


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
