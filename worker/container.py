"""The archived bytes of one object: a versioned, checksummed list of sections (docs/archive-object.md).

Nothing here needs a key: sealed sections are opaque bytes. Every length is checked before it is used.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import overload

import numpy as np
import numpy.typing as npt

from gateway.errors import IntegrityError
from stego.seal import BITMAP_OVERHEAD

MAGIC = b"PALM"
VERSION, CONTEXT_VERSION = 1, 2  # the second: frames of bitstream version 2, and the sections from ADAPTER on
MAX_SECTIONS = 64
MAX_FRAMES = 1 << 24
MAX_WRAPS = 256  # each is tried: a hostile list must not keep the key ring busy
MAX_MEMBERS = 1024
_HEAD = struct.Struct("<4sBBHQ")  # magic, version, zero, sections, total length with the trailer
_SECTION = struct.Struct("<HHIQ")  # type, zero, CRC-32 of the payload, payload length
_CARRIER = struct.Struct("<BIQI")  # mode, frame, start, bits
_SPAN = struct.Struct("<II")  # first frame, frames
TRAILER_BYTES = 32
SECTION_BYTES = _SECTION.size  # of a section beside its body


class SectionType(IntEnum):
    """What a section holds."""

    CONTEXT = 1
    WRAPS = 2
    IMAGE = 3
    FRAMES = 4
    CARRIER = 5
    RECORD = 6
    SIDE = 7
    WHOLE = 8
    PIXEL_WRAPS = 9
    ADAPTER = 10
    STACK = 11
    MEMBERS = 12
    SPAN = 13


class CarrierMode(IntEnum):
    """Where the sealed record rides, and who can take it out of the pixels again.

    BESIDE: not in the pixels (passthrough objects, frames without room). SEGMENTED: in them, the bitmap in clear.
    SEALED: in them, the bitmap under a key that PIXEL_WRAPS holds. INITIAL: the first bits of a stack of global parts.
    """

    BESIDE = 0
    SEGMENTED = 1
    SEALED = 2
    INITIAL = 3


@dataclass(frozen=True)
class Carrier:
    """Where the carrier is: frame index, first bit of the window and its bits; all zero when BESIDE.

    bitmap: for SEGMENTED what flips back, for SEALED the same sealed (`stego.seal.seal_bitmap`). For INITIAL `frame` is
    the number of the stack, `start` and `nbits` (whole bytes) are of its initial bits, and there is no bitmap.
    """

    mode: CarrierMode
    frame: int = 0
    start: int = 0
    nbits: int = 0
    bitmap: bytes = b""

    def in_frame(self, index: int) -> bool:
        """Whether the pixels of frame `index` carry the record."""
        return self.mode in (CarrierMode.SEGMENTED, CarrierMode.SEALED) and self.frame == index


@dataclass(frozen=True)
class Image:
    """What a reader without a key may know: photometric interpretation ('' if unlisted) and SHA-256 of the words.

    Of the words that this reader gets: the exact ones, or for a SEALED bitmap those with the record inside.
    """

    photometric: str
    pixel_sha256: bytes


def build(sections: Mapping[SectionType, bytes], version: int = VERSION) -> bytes:
    """Container bytes, sections in order of type."""
    parts, digest = _packed(sections), sha256()
    total = _HEAD.size + sum(map(len, parts)) + TRAILER_BYTES
    parts.insert(0, _HEAD.pack(MAGIC, version, 0, len(sections), total))
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def version_for(sections: Mapping[SectionType, bytes], blobs: Sequence[bytes]) -> int:
    """The lowest container version that may hold these sections and coded frames."""
    new = any(kind >= SectionType.ADAPTER for kind in sections) or any(blob[1:2] != b"\x01" for blob in blobs)
    return CONTEXT_VERSION if new else VERSION


def _packed(sections: Mapping[SectionType, bytes]) -> list[bytes]:
    """Head and body of each section in turn, in order of type."""
    parts = []
    for kind, body in sorted(sections.items()):
        parts += [_SECTION.pack(kind, 0, zlib.crc32(body), len(body)), body]
    return parts


def parse(data: bytes | memoryview) -> dict[SectionType, memoryview]:
    """Inverse of `build`. Trailing bytes (a PACS pads values to even length) are allowed after the declared end.

    Raises IntegrityError ``container-damaged`` or ``container-version``.
    """
    view = memoryview(data)
    if len(view) < _HEAD.size + TRAILER_BYTES:
        raise _damaged("shorter than a container")
    magic, version, zero, count, total = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise _damaged("no container here")
    if version not in (VERSION, CONTEXT_VERSION) or zero:
        raise IntegrityError("container-version", "a container of a version that this program does not read")
    if not 0 < count <= MAX_SECTIONS or not _HEAD.size + TRAILER_BYTES <= total <= len(view):
        raise _damaged("the container is cut off")
    end = total - TRAILER_BYTES
    if sha256(view[:end]).digest() != view[end:total]:
        raise _damaged("the container's digest does not match")
    return _sections(view, _HEAD.size, count, end)


def _sections(view: memoryview, at: int, count: int, end: int) -> dict[SectionType, memoryview]:
    found: dict[SectionType, memoryview] = {}
    for _ in range(count):
        if at + _SECTION.size > end:
            raise _damaged("a section's header is cut off")
        kind, zero, crc, length = _SECTION.unpack_from(view, at)
        at += _SECTION.size
        body = view[at : at + length] if length <= end - at else view[:0]
        if zero or len(body) != length or kind not in set(SectionType) or kind in found:
            raise _damaged("a section is broken")
        if zlib.crc32(body) != crc:
            raise _damaged("a section's checksum does not match")
        found[SectionType(kind)] = body
        at += length
    if at != end:
        raise _damaged("bytes between the sections and the trailer")
    return found


def _damaged(message: str) -> IntegrityError:
    return IntegrityError("container-damaged", message)


# --- section bodies, each with its inverse ---


def pack_frames(blobs: Sequence[bytes]) -> bytes:
    """u32 count, u32 length per frame, then the blobs."""
    return b"".join([struct.pack(f"<I{len(blobs)}I", len(blobs), *map(len, blobs)), *blobs])


class FrameParts(Sequence[memoryview]):
    """The coded frames of a section, cut out when asked for: a list of a million empty ones costs no memory."""

    def __init__(self, body: memoryview, ends: npt.NDArray[np.uint64]) -> None:
        self._body, self._ends = body, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._body[int(self._ends[at - 1]) if at else 0 : int(self._ends[at])]


def unpack_frames(body: memoryview) -> FrameParts:
    """Inverse of `pack_frames`. Raises IntegrityError."""
    count = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
    if not 0 < count <= min(MAX_FRAMES, (len(body) - 4) // 4):
        raise _damaged("impossible number of frames")
    ends = np.cumsum(np.frombuffer(body, "<u4", count, 4), dtype=np.uint64)
    blobs = body[4 + 4 * count :]
    if int(ends[-1]) != len(blobs):
        raise _damaged("frame lengths do not add up")
    return FrameParts(blobs, ends)


def unpack_stacks(body: memoryview, runs: int) -> FrameParts:
    """The stack of every run of frames, empty where it has none; packed like frames. Raises IntegrityError."""
    found = unpack_frames(body)
    if len(found) != runs:
        raise _damaged("there is not one stack for every run of frames")
    return found


def pack_wraps(wraps: Iterable[bytes]) -> bytes:
    """u16 length and bytes of each wrapped key."""
    return b"".join(struct.pack("<H", len(wrap)) + wrap for wrap in wraps)


def unpack_wraps(body: memoryview) -> list[bytes]:
    """Inverse of `pack_wraps`. Raises IntegrityError."""
    wraps, at = [], 0
    while at < len(body):
        end = at + 2 + (struct.unpack_from("<H", body, at)[0] if at + 2 <= len(body) else len(body))
        if end > len(body):
            raise _damaged("a wrapped key is cut off")
        if len(wraps) == MAX_WRAPS:
            raise _damaged("more wrapped keys than an object has")
        wraps.append(bytes(body[at + 2 : end]))
        at = end
    return wraps


def pack_carrier(carrier: Carrier) -> bytes:
    """u8 mode, u32 frame, u64 start, u32 bits, bitmap."""
    return _CARRIER.pack(carrier.mode, carrier.frame, carrier.start, carrier.nbits) + carrier.bitmap


def unpack_carrier(body: memoryview) -> Carrier:
    """Inverse of `pack_carrier`. Raises IntegrityError."""
    if len(body) < _CARRIER.size:
        raise _damaged("the carrier is cut off")
    mode, frame, start, nbits = _CARRIER.unpack_from(body)
    if mode not in set(CarrierMode) or len(body) - _CARRIER.size != _bitmap_bytes(CarrierMode(mode), nbits):
        raise _damaged("the carrier is broken")
    if mode == CarrierMode.INITIAL and (start % 8 or nbits % 8 or not nbits):
        raise _damaged("a record in a stack is whole bytes")
    if mode == CarrierMode.BESIDE and any(body):
        raise _damaged("a carrier beside the image has no place in it")
    return Carrier(CarrierMode(mode), frame, start, nbits, bytes(body[_CARRIER.size :]))


def _bitmap_bytes(mode: CarrierMode, nbits: int) -> int:
    if mode is CarrierMode.INITIAL:
        return 0
    return (nbits + 7) // 8 + (BITMAP_OVERHEAD if mode is CarrierMode.SEALED else 0)


def pack_image(image: Image) -> bytes:
    """SHA-256 of the words, then the photometric interpretation."""
    return image.pixel_sha256 + image.photometric.encode("ascii")


def unpack_image(body: memoryview) -> Image:
    """Inverse of `pack_image`. Raises IntegrityError."""
    text = bytes(body[32:])
    if len(body) < 32 or len(text) > 16 or not text.isascii():
        raise _damaged("the image description is broken")
    return Image(text.decode("ascii"), bytes(body[:32]))


# --- groups: several instances over one FRAMES section ---


def pack_span(first: int, count: int) -> bytes:
    """u32 first frame of the group's, u32 number of frames."""
    return _SPAN.pack(first, count)


def unpack_span(body: memoryview, frames: int) -> tuple[int, int]:
    """Inverse of `pack_span`; frames: of the group. Raises IntegrityError."""
    first, count = _SPAN.unpack(body) if len(body) == _SPAN.size else (0, 0)
    if not 0 < count <= frames - first:
        raise _damaged("a member's frames are not there")
    return first, count


def pack_members(members: Sequence[Mapping[SectionType, bytes]]) -> bytes:
    """u32 count, u32 length of each member, then the members: u16 number of sections, and the sections."""
    parts = [b"".join([struct.pack("<H", len(member)), *_packed(member)]) for member in members]
    return b"".join([struct.pack(f"<I{len(parts)}I", len(parts), *map(len, parts)), *parts])


def unpack_members(sections: Mapping[SectionType, memoryview]) -> list[dict[SectionType, memoryview]]:
    """The sections of each instance of a group, those that it shares with the others included.

    Empty for an object of one instance. Raises IntegrityError.
    """
    if SectionType.MEMBERS not in sections:
        return []
    body = sections[SectionType.MEMBERS]
    common = {kind: part for kind, part in sections.items() if kind is not SectionType.MEMBERS}
    count = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
    if not 0 < count <= min(MAX_MEMBERS, (len(body) - 4) // 4):
        raise _damaged("impossible number of members")
    members: list[dict[SectionType, memoryview]] = []
    at = 4 + 4 * count
    for length in struct.unpack_from(f"<{count}I", body, 4):
        part = body[at : at + length]
        if len(part) != length or length < 2:
            raise _damaged("a member is cut off")
        own = _sections(part, 2, struct.unpack_from("<H", part)[0], length)
        if SectionType.SPAN not in own or common.keys() & own.keys():
            raise _damaged("a member's sections are not what they should be")
        members.append({**common, **own})
        at += length
    if at != len(body):
        raise _damaged("bytes after the members")
    return members
