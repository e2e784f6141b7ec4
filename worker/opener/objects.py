"""An archive object's container and its sections (docs/archive-object.md), found in whatever a PACS made of the file.

The container is looked for by its own bytes, not by the DICOM element that holds it: it says where it ends and has its
own SHA-256, so nothing in the header, and no rewriting of it, matters.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from worker.opener.errors import Damaged
from worker.opener.symmetric import digest

Sections = dict[int, bytes]
CONTEXT, WRAPS, IMAGE, FRAMES, CARRIER, RECORD, SIDE, WHOLE, PIXEL_WRAPS, ADAPTER, STACK, MEMBERS, SPAN = range(1, 14)
BESIDE, SEGMENTED, SEALED, INITIAL = range(4)
MAGIC = b"PALM"
VERSIONS = (1, 2)
PIECE_BYTES = 1 << 30  # container bytes in one DICOM element
LONGEST = 1 << 33
_HEAD = struct.Struct("<4sBBHQ")
_SECTION = struct.Struct("<HHIQ")
_CARRIER = struct.Struct("<BIQI")


@dataclass(frozen=True)
class Carrier:
    """Where the sealed record lies: mode, frame (INITIAL: number of the stack), first bit, bits, bitmap."""

    mode: int
    frame: int
    start: int
    bits: int
    bitmap: bytes


def find_container(data: bytes, piece: int = PIECE_BYTES) -> bytes:
    """The container in a file, without what follows it. Raises Damaged."""
    at, seen = data.find(MAGIC), False
    while at >= 0:
        if at + _HEAD.size <= len(data):
            _, version, zero, count, total = _HEAD.unpack_from(data, at)
            if version in VERSIONS and not zero and count and _HEAD.size + 32 <= total <= LONGEST:
                seen = True
                found = _joined(data, at, total, piece)
                if sha256(memoryview(found)[:-32]).digest() == found[-32:]:
                    return found
        at = data.find(MAGIC, at + 1)
    raise Damaged("the archive object is damaged" if seen else "no archive object of a known version in this file")


def _joined(data: bytes, at: int, total: int, piece: int) -> bytes:
    """`total` bytes from `at` on; behind each whole piece stands the header of the next DICOM element."""
    if total <= piece:
        return data[at : at + total]
    out = bytearray()
    while len(out) < total:
        part = data[at : at + min(piece, total - len(out))]
        if not part:
            break
        out += part
        at += len(part)
        at += 12 if data[at + 4 : at + 6] in (b"OB", b"OW", b"UN") else 8
    return bytes(out)


def read_sections(container: bytes) -> Sections:
    """Bodies of the container's sections by type. Raises Damaged."""
    count = _HEAD.unpack_from(container)[3]
    return _sections(container, _HEAD.size, count, len(container) - 32)


def _sections(data: bytes, at: int, count: int, end: int) -> Sections:
    out: Sections = {}
    for _ in range(count):
        if at + _SECTION.size > end:
            raise Damaged("a section is cut off")
        kind, _, crc, length = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        body = data[at : at + length]
        if at + length > end or zlib.crc32(body) != crc or kind in out:
            raise Damaged("a section is broken")
        out[kind] = body
        at += length
    if at != end:
        raise Damaged("bytes between the sections and the end")
    return out


def members(sections: Sections) -> Iterator[Sections]:
    """The sections of each received instance: a group's members, or the one that the object holds."""
    if MEMBERS not in sections:
        yield sections
        return
    body = sections[MEMBERS]
    common = {kind: part for kind, part in sections.items() if kind != MEMBERS}
    count = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
    if not 0 < count <= (len(body) - 4) // 4:
        raise Damaged("impossible number of members")
    at = 4 + 4 * count
    for length in struct.unpack_from(f"<{count}I", body, 4):
        part = body[at : at + length]
        if len(part) != length or length < 2:
            raise Damaged("a member is cut off")
        yield {**common, **_sections(part, 2, int.from_bytes(part[:2], "little"), length)}
        at += length


def read_frames(sections: Sections, kind: int = FRAMES) -> list[bytes]:
    """The coded frames of an object, or of a whole group; or its stacks (kind STACK), one every 16 frames or empty."""
    body = part_of(sections, kind)
    count = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
    if not 0 < count <= (len(body) - 4) // 4:
        raise Damaged("impossible number of frames")
    lengths = struct.unpack_from(f"<{count}I", body, 4)
    if 4 + 4 * count + sum(lengths) != len(body):
        raise Damaged("frame lengths do not add up")
    out, at = [], 4 + 4 * count
    for length in lengths:
        out.append(body[at : at + length])
        at += length
    return out


def read_span(sections: Sections, frames: int) -> range:
    """Which of the group's frames are the member's; all where there is no group."""
    if SPAN not in sections:
        return range(frames)
    first, count = struct.unpack("<II", sections[SPAN]) if len(sections[SPAN]) == 8 else (0, 0)
    if not 0 < count <= frames - first:
        raise Damaged("a member's frames are not there")
    return range(first, first + count)


def read_wraps(body: bytes) -> list[bytes]:
    """The wrapped keys of a section WRAPS or PIXEL_WRAPS."""
    out, at = [], 0
    while at + 2 <= len(body):
        length = int.from_bytes(body[at : at + 2], "little")
        out.append(body[at + 2 : at + 2 + length])
        at += 2 + length
    return out


def read_carrier(sections: Sections) -> Carrier:
    """Section CARRIER."""
    body = part_of(sections, CARRIER)
    if len(body) < _CARRIER.size or body[0] > INITIAL:
        raise Damaged("the carrier is broken")
    mode, frame, start, bits = _CARRIER.unpack_from(body)
    bitmap = 0 if mode == INITIAL else (bits + 7) // 8 + (80 if mode == SEALED else 0)
    if len(body) - _CARRIER.size != bitmap or (mode == INITIAL and (start % 8 or bits % 8)):
        raise Damaged("the carrier is broken")
    return Carrier(mode, frame, start, bits, body[_CARRIER.size :])


def part_of(sections: Sections, kind: int) -> bytes:
    """A section that must be there. Raises Damaged."""
    if kind not in sections:
        raise Damaged("a section is missing")
    return sections[kind]


def context_digest(context: bytes) -> bytes:
    """SHA-256 of section CONTEXT: salt of everything that is derived from the data key."""
    return digest(context)
