"""A capsule into one frame and out of it again, by either pixel carrier. No DICOM header is needed to read one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from codec.pixelformat import PixelFormat
from stego import hidden, selfcontained
from stego.capsule import CAPSULE_CLASSES, Capsule, open_capsule
from stego.cover import Cover
from stego.errors import CarrierError, SealError
from stego.imagekey import image_key
from stego.lattice import fingerprint
from stego.seal import Context
from worker.pixelrules import refusal, with_wet_plateaus

Mode = Literal["self-contained", "hidden"]
Values = NDArray[np.int32]
SELF_CONTAINED: Final = "self-contained"
HIDDEN: Final = "hidden"
MODES: Final = (SELF_CONTAINED, HIDDEN)
#: bits per usable sample above which nothing is hidden: beyond it, detectors start to see it
MAX_HIDDEN_RATE: Final = 0.1
#: the most that a self-contained carrier may change a sample; it needs more than 1 only where noise is stronger still
MAX_CHANGE: Final = 16

RingKeys = Iterable[tuple[str, bytes]]
#: what the suitability of the hidden carrier says, in the words of the pixel rules
_HIDDEN_REASONS = {"small": "no-room", "flat": "flat", "smooth": "smooth", "comb": "comb"}


@dataclass(frozen=True)
class Embedded:
    """values: int32 stego frame. changes: the way back, b'' where the frame restores itself. changed: samples altered.

    mse: mean squared change over the frame, in squared stored units. max_change: the largest one.
    """

    values: Values = field(repr=False)
    changes: bytes = field(repr=False)
    changed: int
    mse: float
    max_change: int


@dataclass(frozen=True)
class FrameReading:
    """What a frame held. key_id: the stego key that found it. original: the restored frame, None where `changes` of a
    restoration record are needed (hidden). context: what the capsule's seals are bound to."""

    mode: Mode
    capsule: Capsule
    key_id: str
    context: Context
    original: Values | None = field(repr=False)


def frame_context(values: Values, fmt: PixelFormat, mode: Mode, object_id: bytes) -> Context:
    """The context of seals that ride in this frame, from the frame alone: equal for the cover and the stego frame."""
    salt = fingerprint(values, fmt.bits_stored, fmt.signed, mode)
    return Context(object_id, fmt.rows, fmt.columns, fmt.bits_stored, fmt.signed, 1, mode, salt)


def check_frame(cover: Cover, mode: Mode, nbytes: int) -> None:
    """Whether the frame may carry so much in this mode. Raises Unsupported ``no-room``, ``flat``, ``smooth``, ``comb``.

    A self-contained carrier is asked by embedding only: the exact answer costs as much.
    """
    if mode == SELF_CONTAINED:
        return
    found = hidden.suitability(cover)
    if not found.suited:
        raise refusal(_HIDDEN_REASONS.get(found.reason, "no-room"))
    if hidden.capacity(cover, MAX_HIDDEN_RATE) < 8 * nbytes:
        raise refusal("no-room")


def embed_capsule(cover: Cover, capsule: bytes, *, mode: Mode, stego_key: bytes, salt: bytes) -> Embedded:
    """Put a capsule into a frame. stego_key: of this image (`image_key`). Raises Unsupported as `check_frame`."""
    prepared = with_wet_plateaus(cover) if mode == HIDDEN else cover
    check_frame(prepared, mode, len(capsule))
    try:
        return _CARRIERS[mode](prepared, capsule, stego_key, salt)
    except CarrierError as error:
        raise refusal("no-room") from error


def _self_contained(cover: Cover, capsule: bytes, stego_key: bytes, salt: bytes) -> Embedded:
    done = selfcontained.embed(cover, capsule, stego_key=stego_key, salt=salt)
    if done.max_change > MAX_CHANGE:
        raise refusal("no-room")
    return Embedded(done.values, b"", done.changed, done.mse, done.max_change)


def _hidden(cover: Cover, capsule: bytes, stego_key: bytes, salt: bytes) -> Embedded:
    done = hidden.embed(cover, capsule, stego_key=stego_key, salt=salt)
    return Embedded(done.values, done.changes, done.changed, done.mse, 1 if done.changed else 0)


_CARRIERS: Final[dict[Mode, Callable[[Cover, bytes, bytes, bytes], Embedded]]] = {
    "self-contained": _self_contained,
    "hidden": _hidden,
}


def read_frame(cover: Cover, fmt: PixelFormat, keys: RingKeys, modes: Iterable[str] = MODES) -> FrameReading:
    """Find the capsule in a frame with any of the ring's stego keys ((id, 32 bytes), tried in order).

    cover: `worker.pixelrules.cover_of` the stego frame. Time is bounded by modes x keys x capsule classes.
    Raises SealError when nothing opens, whatever the cause.
    """
    found = list(keys)
    for mode in modes:
        if mode not in _READERS:
            continue  # a restoration record names the mode, and whoever can write a file can name any
        salt = fingerprint(cover.values, fmt.bits_stored, fmt.signed, mode)
        for key_id, ring_key in found:
            try:
                capsule, original = _READERS[cast(Mode, mode)](cover, image_key(ring_key, salt, mode), salt)
            except SealError:
                continue
            context = frame_context(cover.values, fmt, cast(Mode, mode), capsule.object_id)
            return FrameReading(cast(Mode, mode), capsule, key_id, context, original)
    raise SealError


def _read_self_contained(cover: Cover, key: bytes, salt: bytes) -> tuple[Capsule, Values | None]:
    message, original = selfcontained.extract(cover, stego_key=key, salt=salt)
    return open_capsule(message, stego_key=key, salt=salt), original


def _read_hidden(cover: Cover, key: bytes, salt: bytes) -> tuple[Capsule, Values | None]:
    for size in CAPSULE_CLASSES:
        try:
            message = hidden.extract(cover.values, size, stego_key=key, salt=salt)
            return open_capsule(message, stego_key=key, salt=salt), None
        except (SealError, CarrierError):
            continue
    raise SealError


_READERS: Final[dict[Mode, Callable[[Cover, bytes, bytes], tuple[Capsule, Values | None]]]] = {
    "self-contained": _read_self_contained,
    "hidden": _read_hidden,
}


def psnr(mse: float, bits_stored: int) -> float:
    """Peak signal to noise ratio in dB against the full range of `bits_stored`; infinite when nothing changed."""
    return 10 * math.log10(((1 << bits_stored) - 1) ** 2 / mse) if mse > 0 else math.inf
