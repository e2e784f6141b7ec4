"""What embedding did to an image: distance from the cover, and what the lossless coders make of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import LevelTable, Words
from codec.frame import encode_frame
from codec.pixelformat import PixelFormat
from codec.standard import STANDARD

WINDOW = 8  # SSIM, Wang et al., IEEE TIP 13(4), 2004, with a flat 8 x 8 window
CODERS = ("jpegls", "jpeg2000", "dual")


def psnr(cover: NDArray[np.int32], stego: NDArray[np.int32]) -> float:
    """In dB; the peak is the cover's own range (highest less lowest value), not the stored bits'. inf when equal."""
    error = float(np.mean((cover.astype(np.float64) - stego) ** 2))
    return math.inf if error == 0 else 10 * math.log10(_span(cover) ** 2 / error)


def ssim(cover: NDArray[np.int32], stego: NDArray[np.int32]) -> float:
    """Mean structural similarity over 8 x 8 windows; constants from the cover's own range."""
    a, b = cover.astype(np.float64) - cover.mean(), stego.astype(np.float64) - cover.mean()
    c1, c2 = (0.01 * _span(cover)) ** 2, (0.03 * _span(cover)) ** 2
    shift = float(cover.mean() - cover.min())  # means are taken above the lowest value: luminance is never negative
    mean_a, mean_b = _windows(a), _windows(b)
    var_a, var_b = _windows(a * a) - mean_a**2, _windows(b * b) - mean_b**2
    both = _windows(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + shift, mean_b + shift
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _span(cover: NDArray[np.int32]) -> float:
    return max(1.0, float(cover.max()) - float(cover.min()))


def _windows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over all WINDOW x WINDOW windows that fit."""
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    side = min(WINDOW, *values.shape)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return np.asarray(sums / side**2)


def sizes(
    values: NDArray[np.int32], words: Words, fmt: PixelFormat, levels: LevelTable | None = None
) -> dict[str, int]:
    """Bytes of the frame by coder: JPEG-LS (CharLS), JPEG 2000 (OpenJPEG, reversible) and our dual path.

    The standard coders get the samples less their minimum, which they code best.
    """
    plane = values - values.min()
    plane = plane.astype(np.uint8 if plane.max() < 256 else np.uint16)
    return {
        "jpegls": len(STANDARD["jpegls"].encode(plane, 0)),
        "jpeg2000": len(_jpeg2000(plane)),
        "dual": len(encode_frame(words, fmt, levels=levels, coders=("dual",), prove=False).blob),
    }


def _jpeg2000(plane: NDArray[Any]) -> bytes:
    import imagecodecs

    bits = max(1, int(plane.max()).bit_length())
    return bytes(imagecodecs.jpeg2k_encode(plane, level=0, codecformat="j2k", reversible=True, bitspersample=bits))
