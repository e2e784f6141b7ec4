"""One frame's words to a lossless codestream and proven back: RLE, JPEG Lossless, JPEG-LS, JPEG 2000, HTJ2K, JPEG XL.

Frames are taken as `codec.pixelformat` words, shape (rows, columns) or (rows, columns, 3), uint8 or uint16.  A coding
that holds only the bits stored (PS3.5 8.2) takes a frame only if the unused bits repeat the sign, or are zero: overlays
in them (PS3.5 8.1.2, retired) would be lost.  Codestreams declare the bits stored as their precision.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from codec.bitplane import Words
from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported
from gateway.transfer_syntaxes import HTJ2K, HTJ2K_RPCL, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, JPEG_XL, RLE
from worker.decoders import PAIRS, VIEWING, Decoder, Pair, decode_by
from worker.jpeg_lossless import encode_jpeg_lossless
from worker.jpegls_baseline import encode_jpegls
from worker.jpegls_t87 import JpegLSError

__all__ = ["CODERS", "FrameCoder"]

Values = npt.NDArray[Any]
Encoder = Callable[[Words, PixelFormat], bytes]

JPEG_XL_EFFORT = 3  # 20 ms for 512 x 512; higher ones save some percent and cost many times that
THUMBNAIL = 64  # HTJ2K RPCL: the lowest resolution is no larger (PS3.5 10.18)
MAX_DECOMPOSITIONS = 32
_GREY_RGB: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "RGB"})
_FAILURES = (RuntimeError, ValueError, TypeError, OverflowError, JpegLSError)


@dataclass(frozen=True)
class FrameCoder:
    """How a transfer syntax is written. proof: the decoder that must give the words back, where possible unrelated.

    every_bit: unused bits are coded, too. by_pixel: colour is coded by pixel. signed: takes negative numbers.
    photometrics: the only ones it has a meaning for, empty: any.
    """

    encode: Encoder
    pair: Pair
    proof: Decoder
    every_bit: bool = False
    by_pixel: bool = True
    signed: bool = True
    least_bits: int = 1
    photometrics: frozenset[str] = frozenset()

    def check(self, fmt: PixelFormat, photometric: str) -> None:
        """Raises Unsupported ``not-transcodable`` for what this coding cannot hold."""
        if fmt.signed and not self.signed:
            raise _refused("signed pixels")
        if not self.every_bit and fmt.high_bit != fmt.bits_stored - 1:
            raise _refused("pixels whose high bit is not the one above the others")
        if fmt.bits_stored < self.least_bits:
            raise _refused("so few bits")
        if self.photometrics and photometric not in self.photometrics:
            raise _refused("this photometric interpretation")

    def encode_proven(self, words: Words, fmt: PixelFormat) -> bytes:
        """The codestream of a frame, of which the proof decoder gives exactly these words.

        Raises Unsupported ``not-transcodable``.
        """
        if not self.every_bit and not np.array_equal(_sign_extended(words, fmt), words):
            raise _refused("bits beside the pixels, such as an overlay, which it would lose")
        try:
            data = self.encode(words, fmt)
        except _FAILURES as error:
            raise _refused("a frame that its encoder refuses") from error
        if not np.array_equal(decode_by(self.proof, data, self.pair, fmt), words):
            raise _refused("a frame that comes back different")
        return data


def _refused(what: str) -> Unsupported:
    return Unsupported("not-transcodable", f"this transfer syntax cannot hold {what}")


def _sign_extended(words: Words, fmt: PixelFormat) -> Words:
    """The words with their unused high bits as a decoder would set them: the sign repeated, or zero."""
    unused = fmt.bits_allocated - fmt.bits_stored
    if unused == 0:
        return words
    kind = np.dtype(f"{'i' if fmt.signed else 'u'}{fmt.bits_allocated // 8}")
    shifted: Words = ((words << unused).astype(words.dtype).view(kind) >> unused).view(words.dtype)
    return shifted


def _stored(words: Words, fmt: PixelFormat) -> Words:
    """The bits stored as unsigned numbers, for codings without a sign (PS3.5 8.2.1, 8.2.3)."""
    return words & words.dtype.type((1 << fmt.bits_stored) - 1)


def _numbers(words: Words, fmt: PixelFormat) -> Values:
    """The words as signed or unsigned numbers of their width."""
    return np.ascontiguousarray(words).view(f"i{words.dtype.itemsize}") if fmt.signed else words


def _rle(words: Words, fmt: PixelFormat) -> bytes:
    """PS3.5 annex G: a segment for each byte of each sample, the most significant first, rows packed one by one."""
    cube = words.reshape(fmt.rows, fmt.columns, fmt.samples)
    segments = []
    for sample in range(fmt.samples):
        for shift in range(fmt.bits_allocated - 8, -1, -8):
            plane = np.ascontiguousarray((cube[:, :, sample] >> shift).astype(np.uint8))
            packed = imagecodecs.packbits_encode(plane)
            segments.append(packed + b"\0" * (len(packed) & 1))
    offsets = [64 + sum(map(len, segments[:index])) for index in range(len(segments))]
    return struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


def _jpeg_lossless(words: Words, fmt: PixelFormat) -> bytes:
    return encode_jpeg_lossless(_stored(words, fmt), fmt.bits_stored)


def _jpegls(words: Words, fmt: PixelFormat) -> bytes:
    return encode_jpegls(_stored(words, fmt), precision=fmt.bits_stored)


def _jpeg2000(words: Words, fmt: PixelFormat) -> bytes:
    return bytes(
        imagecodecs.jpeg2k_encode(
            _numbers(words, fmt), level=0, reversible=True, codecformat="j2k", bitspersample=fmt.bits_stored, mct=False
        )
    )


def _htj2k(words: Words, fmt: PixelFormat) -> bytes:
    """RPCL with TLM markers and a thumbnail, as .202 asks for and .201 allows (PS3.5 10.18).

    OpenJPH takes the array's width for the precision.  The level shift of unsigned samples (T.800 G.1) is done here for
    the bits stored, and SIZ then says so: the coefficients are those of that precision.
    """
    values = _numbers(words, fmt)
    unused = fmt.bits_allocated - fmt.bits_stored
    if unused and not fmt.signed:
        values = values + values.dtype.type((1 << (fmt.bits_allocated - 1)) - (1 << (fmt.bits_stored - 1)))
    halvings = max(0, (max(fmt.rows, fmt.columns) - 1).bit_length() - THUMBNAIL.bit_length() + 1)
    data = bytearray(
        imagecodecs.htj2k_encode(
            values, reversible=True, rgb=False, tlm=True, resolutions=min(MAX_DECOMPOSITIONS, max(1, halvings))
        )
    )
    for component in range(fmt.samples):
        data[42 + 3 * component] = (fmt.bits_stored - 1) | (0x80 if fmt.signed else 0)  # Ssiz, T.800 A.5.1
    return bytes(data)


def _jpegxl(words: Words, fmt: PixelFormat) -> bytes:
    return bytes(
        imagecodecs.jpegxl_encode(
            words, lossless=True, effort=JPEG_XL_EFFORT, bitspersample=fmt.bits_stored, usecontainer=False, numthreads=1
        )
    )


def _libjxl(data: bytes, fmt: PixelFormat, declared: object) -> Values:
    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


_T87, _T800, _HTJ2K_PAIR = PAIRS[JPEG_LS], PAIRS[JPEG_2000], VIEWING[HTJ2K]
_HTJ2K = FrameCoder(_htj2k, _HTJ2K_PAIR, _HTJ2K_PAIR.second, least_bits=2)
CODERS: Final[dict[str, FrameCoder]] = {
    RLE: FrameCoder(_rle, PAIRS[RLE], PAIRS[RLE].first, every_bit=True, by_pixel=False),
    # GDCM, and what is built on it, breaks at fewer bits than 8
    JPEG_LOSSLESS: FrameCoder(_jpeg_lossless, PAIRS[JPEG_LOSSLESS], PAIRS[JPEG_LOSSLESS].first, least_bits=8),
    JPEG_LS: FrameCoder(_jpegls, _T87, _T87.first, least_bits=2),
    JPEG_2000: FrameCoder(_jpeg2000, _T800, _T800.second, least_bits=2),
    HTJ2K: _HTJ2K,
    HTJ2K_RPCL: _HTJ2K,
    JPEG_XL: FrameCoder(_jpegxl, Pair(None, _libjxl, _libjxl), _libjxl, signed=False, photometrics=_GREY_RGB),
}
