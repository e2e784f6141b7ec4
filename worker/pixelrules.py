"""Which images may be altered at all, and which of their samples: checked before anything is embedded.

Every refusal is an `Unsupported` with one of the words in `REASONS`. What a receiver needs in order to read a frame
(range, barred values) comes from Bits Stored, Pixel Representation, padding and the reserved lattice alone, so that
`cover_of` gives the same answer for an image and for its stego image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words, join_words, sign_extension, split_words
from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported
from stego.cover import Cover
from stego.lattice import lattice
from worker.attributes import DataSet
from worker.pixels import PixelSource

#: machine word -> what it means, for reports; every one of them is a reason to leave an image alone
REASONS: Final = {
    "lossy-source": "the pixels come from lossy compression: its pattern would show every change",
    "palette": "pixel values are places in a palette, not brightness",
    "lut-defined": "a modality LUT gives pixel values their meaning: a step of one may be any step",
    "not-a-picture": "pixel values are labels or doses that others calculate with",
    "burned-in": "the pixels are declared or likely to show identifying text",
    "colour": "colour images are not used as carriers",
    "photometric": "only MONOCHROME1 and MONOCHROME2 are used as carriers",
    "few-bits": "fewer than 8 bits stored",
    "unused-bits": "the bits around the sample hold something else, such as an overlay",
    "padding": "the padding range takes out most of the values",
    "too-large": "the frame has more than 2^26 samples: hiding in it would take gigabytes of memory",
    "flat": "almost no sample may change: the frame is empty, constant or saturated",
    "no-room": "the frame cannot hold the payload in this mode",
    "smooth": "too little noise to hide in",
    "comb": "regular gaps in the histogram, which a change of one would fill",
    "burned-in-unknown": "the object does not declare its pixels free of burned-in text",
    "recognizable-features": "the object does not declare its pixels free of a likeness",
    "overlay-in-pixels": "an overlay lies in the unused bits of the pixels",
}
MAX_FRAMES_TRIED = 8
MIN_BITS = 8
GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
#: Segmentation, Label Map Segmentation, Parametric Map, RT Dose, Surface Segmentation
NOT_PICTURES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("66.4", "66.7", "30", "481.2", "66.5", "481.23")
)
PALETTES = (0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222, 0x00281223)
MODALITY_LUT = 0x00283000
#: a lattice extreme that at least one in so many lattice samples shares (and at least PLATEAU_LEAST) is a plateau
PLATEAU_SHARE, PLATEAU_LEAST = 200, 8
MAX_BARRED = 256
MIN_RANGE = 16
MAX_SAMPLES = 1 << 26  # of a frame; a reader tries carriers, keys and frames, each at about 32 bytes a sample


@dataclass(frozen=True)
class FrameCover:
    """Frame `index` as a cover. `extended`: the sign is repeated in the bits above the sample (else they are 0)."""

    index: int
    fmt: PixelFormat
    cover: Cover
    extended: bool
    padding: tuple[int, ...] = field(default=())

    def words(self, values: NDArray[np.int32]) -> Words:
        """`values` as the stored words of this frame."""
        return words_of(values, self.fmt, extended=self.extended)


def check_object(header: DataSet, source: PixelSource) -> None:
    """The rules that hold for the whole object, from its header. Raises Unsupported with one of REASONS."""
    if source.fmt.samples != 1:
        raise refusal("colour")
    if _lossy(header, source):
        raise refusal("lossy-source")
    if any(tag in header.elements for tag in PALETTES) or source.photometric == "PALETTE COLOR":
        raise refusal("palette")
    if source.photometric not in GREY:
        raise refusal("photometric")
    if MODALITY_LUT in header.elements:
        raise refusal("lut-defined")
    if header.ascii(0x00080016) in NOT_PICTURES:
        raise refusal("not-a-picture")
    if header.ascii(0x00280301).upper() == "YES":
        raise refusal("burned-in")
    if source.fmt.bits_stored < MIN_BITS:
        raise refusal("few-bits")


def refusal(reason: str) -> Unsupported:
    """The error for one of REASONS."""
    return Unsupported(reason, REASONS[reason])


def padding_values(header: DataSet, fmt: PixelFormat) -> tuple[int, ...]:
    """Pixel Padding Value (0028,0120), or all values up to Pixel Padding Range Limit (0028,0121), inside the range.

    PS3.3 C.7.5.1.1.2. Both are read with the sign of the pixels, whatever their VR says. Raises Unsupported
    ``header``.
    """
    first = _as_value(header.number(0x00280120), fmt)
    if first is None:
        return ()
    last = _as_value(header.number(0x00280121), fmt)
    ends = (first, first if last is None else last)
    low, high = value_range(fmt)
    return tuple(range(max(low, min(ends)), min(high, max(ends)) + 1))


def value_range(fmt: PixelFormat) -> tuple[int, int]:
    """Smallest and largest sample value: Bits Stored and Pixel Representation, never the allocated bits."""
    half = 1 << (fmt.bits_stored - 1)
    return (-half, half - 1) if fmt.signed else (0, 2 * half - 1)


def cover_of(values: NDArray[np.int32], fmt: PixelFormat, padding: tuple[int, ...] = ()) -> Cover:
    """The frame's rules: the range, less padding at its ends, and barred values: other padding, and plateaus.

    values: int32 (rows, columns). Equal `low`, `high` and `barred` for an image and its stego image.
    Raises Unsupported ``too-large``; ``padding`` when what is left is no range, or has too many holes to mind.
    """
    if values.size > MAX_SAMPLES:
        raise refusal("too-large")
    barred = {*padding, *plateaus(values)}
    low, high = value_range(fmt)
    while low in barred and low < high:
        low += 1
    while high in barred and low < high:
        high -= 1
    inside = tuple(sorted(value for value in barred if low < value < high))
    if high - low < MIN_RANGE or len(inside) > MAX_BARRED:
        raise refusal("padding")
    return Cover(values, low, high, inside)


def plateaus(values: NDArray[np.int32]) -> tuple[int, ...]:
    """The lattice's smallest and largest value where many of its samples share it: constant air, saturation.

    Saturated detectors often clip far below the top of the range, so the range alone does not show it. Computed from
    samples that embedding leaves alone: the receiver finds the same values.
    """
    kept = lattice(values)
    if not kept.size:
        return ()
    enough = max(PLATEAU_LEAST, kept.size // PLATEAU_SHARE)
    extremes = {int(kept.min()), int(kept.max())}
    return tuple(sorted(value for value in extremes if int((kept == value).sum()) >= enough))


def frame_cover(words: Words, fmt: PixelFormat, index: int, padding: tuple[int, ...] = ()) -> FrameCover:
    """One frame as a cover. Raises Unsupported ``unused-bits``, ``padding``, ``flat``."""
    values, unused = split_words(words, fmt)
    extended = clean_unused_bits(values, unused, fmt)
    cover = cover_of(values, fmt, padding)
    if _frozen(cover):
        raise refusal("flat")
    return FrameCover(index, fmt, cover, extended, padding)


def clean_unused_bits(values: NDArray[np.int32], unused: NDArray[np.uint16] | None, fmt: PixelFormat) -> bool:
    """Whether the unused bits repeat the sign (True) or are 0 (False). Raises Unsupported ``unused-bits``.

    Anything else there may be an overlay (retired PS3.3 C.9.2: Overlay Bit Position), that is, text with a name in it.
    """
    extension = sign_extension(values, fmt) if fmt.signed else np.zeros_like(values, dtype=np.uint16)
    if np.array_equal(extension, np.zeros_like(extension) if unused is None else unused):
        return fmt.signed
    if unused is None:
        return False
    raise refusal("unused-bits")


def words_of(values: NDArray[np.int32], fmt: PixelFormat, *, extended: bool) -> Words:
    """Values as stored words, the bits above the sample as `clean_unused_bits` found them."""
    return join_words(values, sign_extension(values, fmt) if extended else None, fmt)


def covers(source: PixelSource) -> Iterator[FrameCover]:
    """The frames that may carry, of the first MAX_FRAMES_TRIED, in order; the object is checked first.

    Raises Unsupported: a rule of the whole object, or, when no frame is left, the last frame's reason.
    """
    header = source.spans.dataset
    check_object(header, source)
    padding = padding_values(header, source.fmt)
    found, reason = False, refusal("flat")
    for index in range(min(source.frames, MAX_FRAMES_TRIED)):
        try:
            cover = frame_cover(source.frame(index), source.fmt, index, padding)
        except Unsupported as error:
            reason = error
            continue
        found = True
        yield cover
    if not found:
        raise reason


def check_all_frames(frames: Iterable[Words], fmt: PixelFormat) -> None:
    """Every frame's unused bits go out with the stego object, so none may hold anything. Raises Unsupported."""
    for words in frames:
        values, unused = split_words(words, fmt)
        clean_unused_bits(values, unused, fmt)


def with_wet_plateaus(cover: Cover) -> Cover:
    """For carriers whose receiver need not know: the frame's own extremes are wet as well where many share them."""
    wet = np.zeros(cover.values.shape, dtype=np.bool_) if cover.wet is None else cover.wet.copy()
    enough = max(PLATEAU_LEAST, cover.values.size // PLATEAU_SHARE)
    for value in (int(cover.values.min()), int(cover.values.max())):
        same = cover.values == value
        if int(same.sum()) >= enough:
            wet |= same
    return replace(cover, wet=wet)


def _frozen(cover: Cover) -> bool:
    """True if fewer than one sample in a hundred may change."""
    free = (cover.values > cover.low) & (cover.values < cover.high)
    if cover.barred:
        free &= ~np.isin(cover.values, np.array(cover.barred, dtype=np.int32))
    return int(free.sum()) * 100 < free.size or int(cover.values.min()) == int(cover.values.max())


def _lossy(header: DataSet, source: PixelSource) -> bool:
    """(0028,2110) 01, a lossy method or ratio named, or LOSSY among the values of Image Type."""
    if source.lossy_origin or header.ascii(0x00282114) or header.ascii(0x00282112):
        return True
    kinds = (header.raw(0x00080008) or b"").decode("ascii", "replace").upper().split("\\")
    return any(kind.strip("\0 ") in ("LOSSY", "LOSSY COMPRESSED") for kind in kinds)


def _as_value(number: int | None, fmt: PixelFormat) -> int | None:
    """A 16-bit number read with the pixels' sign."""
    if number is None or not fmt.signed:
        return number
    return number - 0x10000 if number & 0x8000 else number
