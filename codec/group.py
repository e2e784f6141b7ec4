"""A group of up to 16 frames whose global parts may share one bits-back stack, with a payload as its initial bits.

Both sides are coded and measured with the payload counted: on the causal side every frame holds its own G and the
payload's bytes lie beside; on the other the frames hold no G, the stack holds it and the payload's first bytes, and the
rest of the payload lies beside. The payload is bytes without meaning here; no pixel depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.bitsback import BitsBack
from codec.blob import Frame
from codec.errors import CodecError, CorruptBitstream, MissingContext, UnsupportedFrame
from codec.frame import decode_frame, encode_frame
from codec.groupstack import CodedStack, Shape, decode_stack, encode_stack, fits
from codec.header import read_header
from codec.lattice import Plane
from codec.learned import decode_upper
from codec.learnedformat import CodedFrame, read_learned, write_learned
from codec.limits import DEFAULT_LIMITS, Limits
from codec.pixelformat import PixelFormat
from codec.weights import Weights, load
from codec.wire import Reader

MAX_FRAMES = 16
WEIGHTS = "vae"
FIXED_BYTES = 24  # of a stack beside its planes: under so many bytes of causal G there is nothing to win


@dataclass(frozen=True)
class GroupReport:
    """What both sides took, in whole bytes, payload included.

    `causal`: all of it with the causal coder; `stacked`: with the stack (None: no frame was worth one). `stack_frames`:
    frames whose G the stack of that side holds; `causal_global`, `stacked_global`: what G of these frames takes (the
    stack less the payload in it). `carried`: bytes of the payload in that stack; `padding`: random bytes in it for want
    of payload, which is what `saved` (= carried) would have been too. `chosen`: "causal" or "stack".
    """

    chosen: str
    causal: int
    stacked: int | None
    stack_frames: tuple[int, ...] = ()
    causal_global: int = 0
    stacked_global: int = 0
    carried: int = 0
    padding: int = 0

    @property
    def saved(self) -> int:
        """Bytes that the payload saved: random ones would have stood in their place."""
        return self.carried if self.chosen == "stack" else 0


@dataclass(frozen=True)
class EncodedGroup:
    """`stack` is empty when the causal side was shorter. `beside`: the part of the payload that the stack lacks."""

    blobs: tuple[bytes, ...]
    stack: bytes
    beside: bytes
    report: GroupReport


@dataclass(frozen=True)
class _Member:
    """A frame of the learned coder that has a G; `head`: its header's bytes."""

    head: bytes
    frame: CodedFrame
    shapes: tuple[Shape, ...]
    planes: tuple[Plane, ...] = ()

    def bare(self) -> bytes:
        """The blob without G."""
        return self.head + write_learned(self.frame.without_upper())


def encode_group(
    frames: Sequence[Words], fmt: PixelFormat, *, payload: bytes = b"", seed: int | None = None, **options: Any
) -> EncodedGroup:
    """Code up to 16 frames of one format; `options` are encode_frame's. See stack_group."""
    return stack_group([encode_frame(words, fmt, **options).blob for words in frames], payload=payload, seed=seed)


def stack_group(
    blobs: Sequence[bytes], *, payload: bytes = b"", seed: int | None = None, weights: Weights | None = None,
    prove: bool = True,
) -> EncodedGroup:  # fmt: skip
    """Move G of finished blobs to a stack where that is shorter, payload counted on both sides.

    The frames whose G the VAE codes in fewer bytes go on the stack. `seed`: of the bits that stand in for a payload
    that is too short (None: the system's). `prove`: decode the stack before it is kept. Raises UnsupportedFrame for
    more than 16 blobs, CodecError when the stack does not decode to what it was made of.
    """
    if len(blobs) > MAX_FRAMES:
        raise UnsupportedFrame(f"{len(blobs)} frames; a group has at most {MAX_FRAMES}")
    members = {place: member for place, blob in enumerate(blobs) if (member := _member(blob)) is not None}
    causal = sum(map(len, blobs)) + len(payload)
    gains = {place: len(blobs[place]) - len(member.bare()) for place, member in members.items()}
    worth = sum(gains.values()) > FIXED_BYTES
    own = load(WEIGHTS) if weights is None and worth else weights
    kept = _worth(members, gains, own) if worth and own is not None else []
    if not kept or own is None:
        return EncodedGroup(tuple(blobs), b"", payload, GroupReport("causal", causal, None))
    coded = _code([members[place] for place in kept], own, payload, seed)
    carried = min(len(payload), coded.used // 8)
    out = [members[place].bare() if place in kept else blob for place, blob in enumerate(blobs)]
    stacked = sum(map(len, out)) + len(coded.data) + len(payload) - carried
    facts = GroupReport(
        "stack" if shorter(stacked, causal) else "causal", causal, stacked, tuple(kept),
        sum(gains[place] for place in kept), len(coded.data) - carried, carried, coded.used // 8 - carried,
    )  # fmt: skip
    if facts.chosen == "causal":
        return EncodedGroup(tuple(blobs), b"", payload, facts)
    if prove:
        _prove([members[place] for place in kept], coded.data, payload[:carried])
    return EncodedGroup(tuple(out), coded.data, payload[carried:], facts)


def shorter(stacked: int, causal: int) -> bool:
    """Whether the stack's side is kept; of equals the causal one, which decodes frame by frame."""
    return stacked < causal


def _worth(members: dict[int, _Member], gains: dict[int, int], weights: Weights) -> list[int]:
    """The frames whose G takes fewer bytes on a stack than in their blobs, its start left out."""
    kept: list[int] = []
    for place, member in members.items():
        if gains[place] > FIXED_BYTES // 4 and fits(member.shapes):
            grown = 4 * sum(_code([member], weights, b"", 0).growth)
            if grown < gains[place] and fits([s for other in (*kept, place) for s in members[other].shapes]):
                kept.append(place)
    return kept if sum(gains[place] for place in kept) > FIXED_BYTES else []


def _code(members: Sequence[_Member], weights: Weights, payload: bytes, seed: int | None) -> CodedStack:
    planes = [plane for member in members for plane in member.planes]
    shapes = [shape for member in members for shape in member.shapes]
    return encode_stack(planes, shapes, weights, BitsBack, initial=payload, seed=seed)


def _prove(members: Sequence[_Member], stack: bytes, payload: bytes) -> None:
    shapes = [shape for member in members for shape in member.shapes]
    planes, initial = decode_stack(stack, shapes, BitsBack)
    wanted = [plane for member in members for plane in member.planes]
    same = all(np.array_equal(one, other) for one, other in zip(planes, wanted, strict=True))
    if not same or not initial.startswith(payload):
        raise CodecError("a stack does not reproduce its frames")


def _member(blob: bytes, *, limits: Limits = DEFAULT_LIMITS, stacked: bool = False) -> _Member | None:
    """A blob's frame if it has a G, in the blob or (`stacked`) in a stack; None for all others."""
    reader = Reader(blob)
    header = read_header(reader, limits)
    if header.coder != "learned":
        return None
    head = blob[: reader.position]
    frame = read_learned(reader, header.fmt.shape, header.levels.count)
    if reader.left:
        raise CorruptBitstream(f"{reader.left} bytes after the end")
    rows, columns = header.fmt.rows, header.fmt.columns
    own = [plane for plane in frame.planes if plane.top]
    if not own or frame.preface.stacked != stacked:
        return None
    shapes = tuple(Shape(rows, columns, plane.top) for plane in own)
    if stacked:
        return _Member(head, frame, shapes)
    planes = []
    for plane in own:
        parts, left = [], rows
        for tile in plane.tiles:
            parts.append(decode_upper(tile.upper, min(plane.tile_rows, left), columns, plane.top))
            left -= plane.tile_rows
        planes.append(np.concatenate(parts))
    return _Member(head, frame, shapes, tuple(planes))


def open_stack(
    blobs: Sequence[bytes], stack: bytes, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[list[Plane]], bytes]:
    """G of every blob that left it to the stack (no planes for the others), and the initial bits in whole words.

    The payload is their beginning, as long as the stack holds of it; random bits may follow. Raises CorruptBitstream.
    """
    if len(blobs) > MAX_FRAMES:
        raise CorruptBitstream(f"{len(blobs)} frames; a group has at most {MAX_FRAMES}")
    members = [_member(blob, limits=limits, stacked=True) for blob in blobs]
    shapes = [shape for member in members if member is not None for shape in member.shapes]
    if not shapes and not stack:
        return [[] for _ in blobs], b""
    if not stack:
        raise MissingContext("frames left their global part to a stack that was not given")
    planes, initial = decode_stack(stack, shapes, BitsBack)
    left = iter(planes)
    return [[next(left) for _ in member.shapes] if member else [] for member in members], initial


def decode_group(
    blobs: Sequence[bytes], stack: bytes, *, threads: int = 1, shared: bytes | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[list[Frame], bytes]:  # fmt: skip
    """All frames of a group, each with the one before as its context, and the initial bits (see open_stack)."""
    uppers, initial = open_stack(blobs, stack, limits)
    frames: list[Frame] = []
    for blob, upper in zip(blobs, uppers, strict=True):
        before = frames[-1].words if frames else None
        frames.append(
            decode_frame(blob, previous=before, shared=shared, upper=upper or None, threads=threads, limits=limits)
        )
    return frames, initial
