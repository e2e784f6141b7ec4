"""What an image can carry, in each mode, and what that would do to it: measured on the image itself, not estimated.

Bits are those of the best of the first frames. The prediction is made by carrying noise of the payload's size, which
is what a sealed capsule looks like to a carrier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from codec.bitplane import choose_levels, split_words
from gateway.errors import InvalidInstance, Unsupported
from gateway.policy import DEFAULT_ARCHIVE
from stego import hidden, segmented, selfcontained
from stego.capsule import CAPSULE_CLASSES
from stego.errors import CarrierError
from stego.lattice import fingerprint
from stego.seal import LENGTH_CLASSES
from worker.attributes import Data
from worker.carrying import LUT_DEFINED, MOST_GROWTH, carry, choose_place, growth, without_record
from worker.deid_profile import Profile
from worker.framechain import ChainCoder
from worker.pixelrules import MAX_FRAMES_TRIED, REASONS, FrameCover, check_all_frames, covers, with_wet_plateaus
from worker.pixels import PixelSource, open_pixels
from worker.splice import read_object
from worker.stegoframe import HIDDEN, MAX_HIDDEN_RATE, SELF_CONTAINED, Mode, embed_capsule, psnr
from worker.stegoheader import check_deidentifiable, read_header

SEGMENTED: Final = "segmented"
MODE_ORDER: Final = (SEGMENTED, SELF_CONTAINED, HIDDEN)
#: reasons of the segmented carrier alone
_OTHER_REASONS = {
    "modelled": "the local planes are not raw: the record costs less beside the image",
    "capacity": "fewer local samples than the payload has bits",
    "levels": "values lie outside the level table",
}


@dataclass(frozen=True)
class ModeCapacity:
    """One mode. bits: what the frame takes at all (self-contained: by changes of 1; hidden: at a tenth of a bit per
    usable sample). suited: whether the payload asked for fits; reason: a word, '' when suited; why: its sentence.

    For the payload: psnr in dB against the full range, max_change in grey units, changed samples; None if unsuited or
    (segmented) meaningless, as every reader sees the exact image.
    """

    mode: str
    suited: bool
    reason: str
    why: str
    frame: int
    bits: int
    psnr: float | None
    max_change: int | None
    changed: int | None


@dataclass(frozen=True)
class Capacity:
    """The image and its modes. payload_bytes: what was asked for."""

    rows: int
    columns: int
    frames: int
    bits_stored: int
    signed: bool
    payload_bytes: int
    modes: tuple[ModeCapacity, ...]

    def suggested(self) -> str:
        """The mode that `embed --mode auto` takes: a viewable one that restores itself, else the archive object."""
        viewable = next(each for each in self.modes if each.mode == SELF_CONTAINED)
        return SELF_CONTAINED if viewable.suited else SEGMENTED


def measure_capacity(data: Data, payload_bytes: int = CAPSULE_CLASSES[0]) -> Capacity:
    """Judge one file. payload_bytes: a capsule's size, see `stego.capsule.CAPSULE_CLASSES`.

    Raises InvalidInstance for what is no DICOM object, Unsupported for one whose pixels cannot be read at all.
    """
    source = open_pixels(read_object(data))
    fmt = source.fmt
    modes = (
        _segmented(source),
        *(_viewable(data, source, mode, payload_bytes) for mode in (SELF_CONTAINED, HIDDEN)),
    )
    return Capacity(fmt.rows, fmt.columns, source.frames, fmt.bits_stored, fmt.signed, payload_bytes, modes)


def unsuited(mode: str, reason: str, why: str = "") -> ModeCapacity:
    """A mode that the image cannot be used for."""
    return ModeCapacity(mode, False, reason, why or REASONS.get(reason, _OTHER_REASONS.get(reason, reason)), 0, 0,
                        None, None, None)  # fmt: skip


def _segmented(source: PixelSource) -> ModeCapacity:
    """The archive object's carrier: found and measured as `worker.candidate` does, with noise for the record."""
    if source.fmt.samples != 1:
        return unsuited(SEGMENTED, "colour")
    if source.lossy_origin:
        return unsuited(SEGMENTED, "lossy-source")
    if source.photometric in LUT_DEFINED:
        return unsuited(SEGMENTED, "palette")
    nbits = 8 * LENGTH_CLASSES[0]
    place = choose_place(source, nbits, DEFAULT_ARCHIVE)
    judged = range(min(source.frames, MAX_FRAMES_TRIED)) if place.levels is None else (place.carrier.frame,)
    found = max((_judged(source, index, nbits) for index in judged), key=lambda each: each.bits)
    if place.levels is None:
        return found
    coder = ChainCoder()
    carrying = carry(source, place, _noise(nbits // 8), stego_key=bytes(32), salt=bytes(16), coder=coder)
    if carrying is None or growth(carrying, without_record(source, place, carrying, coder)) > MOST_GROWTH:
        return replace(found, suited=False, reason="modelled", why=_OTHER_REASONS["modelled"])
    return found


def _judged(source: PixelSource, index: int, nbits: int) -> ModeCapacity:
    words = source.frame(index)
    found = segmented.suitability(words, source.fmt, choose_levels(split_words(words, source.fmt)[0]), nbits)
    reason = "" if found.ok else found.reason
    why = _OTHER_REASONS.get(reason, "")
    return ModeCapacity(SEGMENTED, found.ok, reason, why, index, found.capacity, None, None, None)


def _viewable(data: Data, source: PixelSource, mode: Mode, payload_bytes: int) -> ModeCapacity:
    try:
        check_deidentifiable(read_header(data), Profile())
        check_all_frames(source, source.fmt)
        return _best(covers(source), mode, payload_bytes)
    except (Unsupported, InvalidInstance) as error:
        return unsuited(mode, error.reason, REASONS.get(error.reason, error.message))


def _best(candidates: Iterator[FrameCover], mode: Mode, payload_bytes: int) -> ModeCapacity:
    """The first frame that takes the payload, else the one with the most room."""
    best: ModeCapacity | None = None
    for cover in candidates:
        this = _frame(cover, mode, payload_bytes)
        if this.suited:
            return this
        best = this if best is None or this.bits > best.bits else best
    return best or unsuited(mode, "flat")


def _frame(cover: FrameCover, mode: Mode, payload_bytes: int) -> ModeCapacity:
    bits = frame_bits(cover, mode)
    key = sha256(b"palimpsest/capacity").digest()
    salt = fingerprint(cover.cover.values, cover.fmt.bits_stored, cover.fmt.signed, mode)
    try:
        done = embed_capsule(cover.cover, _noise(payload_bytes), mode=mode, stego_key=key, salt=salt)
    except Unsupported as error:
        return ModeCapacity(mode, False, error.reason, error.message, cover.index, bits, None, None, None)
    quality = psnr(done.mse, cover.fmt.bits_stored)
    return ModeCapacity(mode, True, "", "", cover.index, bits, quality, done.max_change, done.changed)


def frame_bits(cover: FrameCover, mode: Mode) -> int:
    """Bits that one frame takes in a pixel carrier, see `ModeCapacity.bits`."""
    try:
        if mode == HIDDEN:
            return hidden.capacity(with_wet_plateaus(cover.cover), MAX_HIDDEN_RATE)
        return selfcontained.capacity(cover.cover, max_change=1)
    except CarrierError:
        return 0


def _noise(nbytes: int) -> bytes:
    """Bytes as uniform as a capsule's, and the same at every call."""
    blocks = (sha256(b"palimpsest/capacity" + index.to_bytes(4, "big")).digest() for index in range(-(-nbytes // 32)))
    return b"".join(blocks)[:nbytes]
