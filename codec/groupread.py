"""Frames that left their global part to a group's stack, and the stack opened for them. No kernels.

Every reader comes this way, the plain one too: which implementation of the stack it opens is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codec.errors import CorruptBitstream, MissingContext
from codec.groupstack import Opener, Shape, decode_stack
from codec.header import read_header
from codec.lattice import Plane
from codec.learnedformat import CodedFrame, read_learned
from codec.limits import DEFAULT_LIMITS, Limits
from codec.wire import Reader

MAX_FRAMES = 16


@dataclass(frozen=True)
class Member:
    """A frame of the learned coder that has a G. `head`: its header's bytes; `shapes`: of its planes that have a G."""

    head: bytes
    frame: CodedFrame
    shapes: tuple[Shape, ...]


def member_of(blob: bytes, *, stacked: bool, limits: Limits = DEFAULT_LIMITS) -> Member | None:
    """A blob's frame if it has a G in the blob (or, `stacked`, in a stack); None for all others.

    Raises CorruptBitstream.
    """
    reader = Reader(blob)
    header = read_header(reader, limits)
    if header.coder != "learned":
        return None
    head = bytes(blob[: reader.position])
    frame = read_learned(reader, header.fmt.shape, header.levels.count)
    if reader.left:
        raise CorruptBitstream(f"{reader.left} bytes after the end")
    rows, columns = header.fmt.rows, header.fmt.columns
    shapes = tuple(Shape(rows, columns, plane.top) for plane in frame.planes if plane.top)
    return Member(head, frame, shapes) if shapes and frame.preface.stacked == stacked else None


def open_with(
    opener: Opener, blobs: Sequence[bytes], stack: bytes, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[list[Plane]], bytes]:
    """G of every blob that left it to the stack (no planes for the others), and the initial bits in whole words.

    The payload is their beginning, as long as the stack holds of it; random bits may follow. Raises CorruptBitstream.
    """
    if len(blobs) > MAX_FRAMES:
        raise CorruptBitstream(f"{len(blobs)} frames; a group has at most {MAX_FRAMES}")
    members = [member_of(blob, stacked=True, limits=limits) for blob in blobs]
    shapes = [shape for member in members if member is not None for shape in member.shapes]
    if not shapes and not stack:
        return [[] for _ in blobs], b""
    if not stack:
        raise MissingContext("frames left their global part to a stack that was not given")
    planes, initial = decode_stack(stack, shapes, opener)
    left = iter(planes)
    return [[next(left) for _ in member.shapes] if member else [] for member in members], initial
