"""The splice plan: how a received file is put together from non-pixel bytes and pixels (docs/archive-object.md, 3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from codec.bitplane import Words
from worker.opener.errors import Damaged

COPY, SKIP, INSERT, PIXELS = range(4)
EXPLICIT_LE = b"1.2.840.10008.1.2.1\0"
Step = tuple[int, int, bytes]  # operation, length, bytes to insert


@dataclass(frozen=True)
class Layout:
    """How words lie in the file: bytes a word, high byte first, colour by plane, byte pairs swapped, the pad."""

    word_bytes: int
    big: bool
    planar: bool
    swapped: bool
    pad: bytes


def read_plan(side: bytes, at: int) -> tuple[list[Step], int]:
    """(steps, where they end). Raises Damaged."""
    count, at = int.from_bytes(side[at : at + 2], "little"), at + 2
    steps: list[Step] = []
    for _ in range(count):
        if at + 9 > len(side):
            raise Damaged("the plan is cut off")
        operation, length = struct.unpack_from("<BQ", side, at)
        at += 9
        data = side[at : at + length] if operation == INSERT else b""
        if operation > PIXELS or (operation == INSERT and len(data) != length):
            raise Damaged("the plan is broken")
        at += len(data)
        steps.append((operation, length, data))
    return steps, at


def pixel_bytes(words: list[Words], layout: Layout) -> bytes:
    """All frames as the file's pixel bytes."""
    dtype = f"{'>' if layout.big else '<'}u{layout.word_bytes}"
    frames = (each.transpose(2, 0, 1) if each.ndim == 3 and layout.planar else each for each in words)
    out = b"".join(np.ascontiguousarray(each, dtype).tobytes() for each in frames)
    return np.frombuffer(out + layout.pad, "<u2").byteswap().tobytes() if layout.swapped else out


def carry_out(steps: list[Step], nonpixel: bytes, pixels: bytes) -> bytes:
    """The file. Raises Damaged unless both streams are used up exactly."""
    parts, left = [], {COPY: 0, PIXELS: 0}
    for operation, length, data in steps:
        if operation == INSERT:
            parts.append(data)
            continue
        stream, source = (PIXELS, pixels) if operation == PIXELS else (COPY, nonpixel)
        if left[stream] + length > len(source):
            raise Damaged("the plan asks for more bytes than there are")
        if operation != SKIP:
            parts.append(source[left[stream] : left[stream] + length])
        left[stream] += length
    if left[COPY] != len(nonpixel) or left[PIXELS] != len(pixels):
        raise Damaged("the plan leaves bytes over")
    return b"".join(parts)


def check_decompressed(steps: list[Step], nonpixel: bytes, layout: Layout, pixels: int) -> None:
    """Refuse another plan than compressed input gets: its restored file is signed in parts only. Raises Damaged.

    Copy, but replace the value of (0002,0000) and the element (0002,0010), and put the native pixel data element in.
    """
    place = next((number for number, step in enumerate(steps) if step[0] == PIXELS), 0)
    before = sum(length for operation, length, _ in steps[:place] if operation in (COPY, SKIP))
    vr = b"OW" if layout.word_bytes == 2 else b"OB"
    element = struct.pack("<HH2sHI", 0x7FE0, 0x10, vr, 0, pixels + (pixels & 1))
    wanted, at = _meta_steps(nonpixel)
    wanted += [(COPY, before - at, b""), (INSERT, len(element), element), (PIXELS, pixels, b"")]
    wanted += [(INSERT, pixels & 1, bytes(pixels & 1)), (COPY, len(nonpixel) - before, b"")]
    if layout.big or layout.swapped or before < at or _merged(steps) != _merged(wanted):
        raise Damaged("the plan makes another file of the same parts")


def _meta_steps(nonpixel: bytes) -> tuple[list[Step], int]:
    """(steps that rewrite the file meta information, bytes that they use up) (PS3.10 7.1)."""
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", len(EXPLICIT_LE)) + EXPLICIT_LE
    steps: list[Step] = []
    at, done, group = 132, 0, 0
    while nonpixel[at : at + 2] == b"\2\0" and at + 12 <= len(nonpixel):
        long = nonpixel[at + 4 : at + 6] in (b"OB", b"UN", b"SQ", b"UT")
        value = at + (12 if long else 8)
        end = value + int.from_bytes(nonpixel[at + 8 : at + 12] if long else nonpixel[at + 6 : at + 8], "little")
        if nonpixel[at + 2 : at + 4] == b"\0\0":
            group, steps, done = len(steps) + 2, [(COPY, value, b""), (SKIP, 4, b"")], end
            length = int.from_bytes(nonpixel[value:end], "little")
        elif nonpixel[at + 2 : at + 4] == b"\x10\0":
            if group:
                changed = length + len(syntax) - (end - at)
                steps.insert(group, (INSERT, 4, changed.to_bytes(4, "little", signed=True)))
            steps += [(COPY, at - done, b""), (SKIP, end - at, b""), (INSERT, len(syntax), syntax)]
            done = end
        at = end
    return steps, done


def _merged(steps: list[Step]) -> list[Step]:
    """Without empty steps; equal operations on a stream joined."""
    out: list[Step] = []
    for operation, length, data in steps:
        if length and out and out[-1][0] == operation and operation != INSERT:
            out[-1] = (operation, out[-1][1] + length, b"")
        elif length:
            out.append((operation, length, data))
    return out
