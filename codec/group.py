"""A group of up to 16 frames whose global parts may share one bits-back stack, with a payload as its initial bits.

Both sides are coded and measured with the payload counted: on the causal side every frame holds its own G and the
payload's bytes lie beside; on the other the frames hold no G, the stack holds it and the payload's first bytes, and the
rest of the payload lies beside. The payload is bytes without meaning here; no pixel depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.bitsback import BitsBack
from codec.blob import Frame
from codec.errors import CodecError, UnsupportedFrame
from codec.frame import decode_frame, encode_frame
from codec.groupread import MAX_FRAMES, Member, member_of, open_with
from codec.groupstack import CodedStack, Shape, decode_stack, encode_stack, fits
from codec.lattice import Plane
from codec.learned import decode_upper
from codec.learnedformat import write_learned
from codec.limits import DEFAULT_LIMITS, Limits
from codec.pixelformat import PixelFormat
from codec.weights import Weights, load

WEIGHTS = "vae"
FIXED_BYTES = 24  # of a stack beside its planes: under so many bytes of causal G there is nothing to win
MOST_SAMPLES = 1 << 24  # of an encoder's stack: all of them are decoded for any frame of the group (10 s, 64 MiB)
MOST_LOSSES = 2  # frames in a row whose G is longer on a stack, after which the group's others are not tried


@dataclass(frozen=True)
class GroupReport:
    """What both sides took, in whole bytes, payload included.

    `causal`: all of it with the causal coder; `stacked`: with the stack (None: no frame was worth one). `stack_frames`:
    frames whose G the stack of that side holds; `causal_global`, `stacked_global`: what G of these frames takes (the
    stack less the payload in it; without a stack: of the frames that were tried, no start counted). `carried`: bytes of
    the payload in that stack; `padding`: random bytes in it for want of payload, which is what `saved` (= carried)
    would have been too. `chosen`: "causal" or "stack".
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


def encode_group(
    frames: Sequence[Words], fmt: PixelFormat, *, payload: bytes = b"", seed: int | None = None, **options: Any
) -> EncodedGroup:
    """Code up to 16 frames of one format; `options` are encode_frame's. See stack_group."""
    return stack_group([encode_frame(words, fmt, **options).blob for words in frames], payload=payload, seed=seed)


def stack_group(
    blobs: Sequence[bytes], *, payload: bytes = b"", overhead: int = 0, seed: int | None = None,
    weights: Weights | None = None, prove: bool = True,
) -> EncodedGroup:  # fmt: skip
    """Move G of finished blobs to a stack where that is shorter, payload counted on both sides.

    The frames whose G the VAE codes in fewer bytes go on the stack. `overhead`: bytes that whoever stores it pays for
    having one, counted on its side. `seed`: of the bits that stand in for a payload
    that is too short (None: the system's). `prove`: decode the stack before it is kept. Raises UnsupportedFrame for
    more than 16 blobs, CodecError when the stack does not decode to what it was made of.
    """
    if len(blobs) > MAX_FRAMES:
        raise UnsupportedFrame(f"{len(blobs)} frames; a group has at most {MAX_FRAMES}")
    members = {place: found for place, blob in enumerate(blobs) if (found := member_of(blob, stacked=False))}
    causal = sum(map(len, blobs)) + len(payload)
    gains = {place: len(blobs[place]) - len(_bare(member)) for place, member in members.items()}
    if sum(gains.values()) <= FIXED_BYTES:
        return EncodedGroup(tuple(blobs), b"", payload, GroupReport("causal", causal, None))
    own = load(WEIGHTS) if weights is None else weights
    grown = _grown(members, gains, own)
    kept = _worth(gains, grown)
    if not kept:
        lost = (sum(gains[place] for place in grown), sum(grown.values()))
        return EncodedGroup(tuple(blobs), b"", payload, GroupReport("causal", causal, None, (), *lost))
    coded = _code([members[place] for place in kept], own, payload, seed)
    carried = min(len(payload), coded.used // 8)
    out = [_bare(members[place]) if place in kept else blob for place, blob in enumerate(blobs)]
    stacked = sum(map(len, out)) + len(coded.data) + len(payload) - carried + overhead
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


def promises(blob: bytes) -> bool:
    """Whether G of this frame takes fewer bytes on a stack than in its blob, the stack's start left out."""
    member = member_of(blob, stacked=False)
    if member is None:
        return False
    gains = {0: len(blob) - len(_bare(member))}
    return bool(_worth(gains, _grown({0: member}, gains, load(WEIGHTS))))


def _grown(members: dict[int, Member], gains: dict[int, int], weights: Weights) -> dict[int, int]:
    """Bytes that G of frames takes on a stack, its start left out; of those that were tried.

    Frames too small or too many for one stack are left out, and all behind MOST_LOSSES in a row that take more there.
    """
    grown: dict[int, int] = {}
    losses, shapes = 0, list[Shape]()
    for place, member in members.items():
        together = [*shapes, *member.shapes]
        small = sum(shape.rows * shape.columns for shape in together) <= MOST_SAMPLES
        if gains[place] <= FIXED_BYTES // 4 or not (small and fits(together)) or losses == MOST_LOSSES:
            continue
        grown[place] = 4 * sum(_code([member], weights, b"", 0).growth)
        won = grown[place] < gains[place]
        losses, shapes = (0, together) if won else (losses + 1, shapes)
    return grown


def _worth(gains: dict[int, int], grown: dict[int, int]) -> list[int]:
    """The frames whose G takes fewer bytes on a stack than in their blobs, its start left out."""
    kept = [place for place, size in grown.items() if size < gains[place]]
    return kept if sum(gains[place] for place in kept) > FIXED_BYTES else []


def _code(members: Sequence[Member], weights: Weights, payload: bytes, seed: int | None) -> CodedStack:
    planes = [plane for member in members for plane in _planes(member)]
    shapes = [shape for member in members for shape in member.shapes]
    return encode_stack(planes, shapes, weights, BitsBack, initial=payload, seed=seed)


def _prove(members: Sequence[Member], stack: bytes, payload: bytes) -> None:
    shapes = [shape for member in members for shape in member.shapes]
    planes, initial = decode_stack(stack, shapes, BitsBack)
    wanted = (plane for member in members for plane in _planes(member))
    same = all(np.array_equal(one, other) for one, other in zip(planes, wanted, strict=True))
    if not same or not initial.startswith(payload):
        raise CodecError("a stack does not reproduce its frames")


def _bare(member: Member) -> bytes:
    """The blob without G."""
    return member.head + write_learned(member.frame.without_upper())


def _planes(member: Member) -> Iterator[Plane]:
    """The planes of a frame's own G."""
    for plane in (each for each in member.frame.planes if each.top):
        parts, left = [], member.shapes[0].rows
        for tile in plane.tiles:
            rows = min(plane.tile_rows, left)
            parts.append(decode_upper(tile.upper, rows, member.shapes[0].columns, plane.top))
            left -= rows
        yield np.concatenate(parts)


def open_stack(
    blobs: Sequence[bytes], stack: bytes, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[list[Plane]], bytes]:
    """See codec.groupread.open_with: by the fast stack."""
    return open_with(BitsBack, blobs, stack, limits)


def decode_group(
    blobs: Sequence[bytes], stack: bytes, *, threads: int = 1, shared: bytes | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[list[Frame], bytes]:  # fmt: skip
    """All frames of a group, each with the one before as its context, and the initial bits (see open_stack)."""
    uppers, initial = open_stack(blobs, stack, limits)
    frames: list[Frame] = []
    for blob, upper in zip(blobs, uppers, strict=True):
        words, memory = (frames[-1].words, frames[-1].memory) if frames else (None, None)
        frames.append(
            decode_frame(
                blob, previous=words, memory=memory, shared=shared, upper=upper or None, threads=threads, limits=limits
            )
        )
    return frames, initial
