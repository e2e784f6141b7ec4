"""Losslessly compressed frames, decoded twice by unrelated decoders; anything but agreement is refused.

The table `PAIRS` names for each transfer syntax two decoders that share no code: a bug in one of them would otherwise
become the archived truth. A syntax without a second decoder is passed through (``one-decoder``): HTJ2K is one, because
the block decoder of OpenJPEG (ht_dec.c) was written by the author of OpenJPH after his own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt

from codec.bitplane import Words
from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported
from worker.codestream import CodestreamError, Declared, read_jpeg, read_jpeg2000
from worker.jpeg2000_t800 import J2kError, J2kUnsupported, decode_reversible
from worker.jpegls_t87 import JpegLSError
from worker.jpegls_t87 import decode as decode_t87
from worker.rle import RLEError, decode_rle

Samples = npt.NDArray[np.uint16]
Decoder = Callable[[bytes, PixelFormat, Declared], npt.NDArray[np.generic]]

RLE = "1.2.840.10008.1.2.5"
LOSSY = frozenset(
    {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 52, 53, 54, 55, 56, 81, 91, 93, 95, 111, 112, 203, 205)}
    | {f"1.2.840.10008.1.2.4.{n}" for n in (*range(100, 109), "100.1", "101.1", "102.1", "103.1", "104.1", "105.1")}
)
ONE_DECODER = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (92, 94, 110, 201, 202))


def _rle_imagecodecs(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    planes = np.frombuffer(imagecodecs.dicomrle_decode(data, f"<u{fmt.bits_allocated // 8}"), dtype=fmt.dtype)
    return np.ascontiguousarray(planes.reshape(fmt.samples, fmt.rows, fmt.columns).transpose(1, 2, 0))


def _rle_own(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    return decode_rle(data, fmt.rows, fmt.columns, fmt.samples, fmt.bits_allocated // 8)


def _sof3_imagecodecs(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    return np.asarray(imagecodecs.jpegsof3_decode(data))


def _sof3_gdcm(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    from worker.gdcm_decoder import decode_jpeg_lossless  # a C++ library: loaded only where it is needed

    return decode_jpeg_lossless(data, declared)


def _jls_charls(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    return np.asarray(imagecodecs.jpegls_decode(data))


def _jls_own(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    return decode_t87(data)


def _openjph(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    found = np.asarray(imagecodecs.htj2k_decode(data))
    # colour coded without a transform comes by plane
    return found.transpose(1, 2, 0) if found.shape == (fmt.samples, fmt.rows, fmt.columns) else found


def _openjpeg(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _j2k_own(data: bytes, fmt: PixelFormat, declared: Declared) -> npt.NDArray[np.generic]:
    decoded = decode_reversible(data, max_pixels=fmt.rows * fmt.columns)
    return np.ascontiguousarray(decoded.samples.transpose(1, 2, 0))


@dataclass(frozen=True)
class Pair:
    """How a transfer syntax is read: its header reader (None: RLE has none) and two unrelated decoders."""

    read: Callable[[bytes], Declared] | None
    first: Decoder
    second: Decoder


_JPEG_LOSSLESS = Pair(read_jpeg, _sof3_imagecodecs, _sof3_gdcm)
PAIRS: dict[str, Pair] = {
    RLE: Pair(None, _rle_imagecodecs, _rle_own),
    "1.2.840.10008.1.2.4.57": _JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.70": _JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.80": Pair(read_jpeg, _jls_charls, _jls_own),
    "1.2.840.10008.1.2.4.90": Pair(read_jpeg2000, _openjpeg, _j2k_own),
}
#: What is good enough to be shown; the original behind the picture stays as it was received.
VIEWING: dict[str, Pair] = {
    **{f"1.2.840.10008.1.2.4.{n}": Pair(read_jpeg2000, _openjph, _openjpeg) for n in (201, 202, 203)},
    # reversible codestreams under a syntax that allows others: of those the second decoder takes none
    "1.2.840.10008.1.2.4.81": PAIRS["1.2.840.10008.1.2.4.80"],
    "1.2.840.10008.1.2.4.91": PAIRS["1.2.840.10008.1.2.4.90"],
}

_FAILURES = (RuntimeError, ValueError, TypeError, CodestreamError, JpegLSError, RLEError, J2kError)


def find_pair(syntax: str, *, viewing: bool = False) -> Pair:
    """The two decoders; `viewing`: two of one family will do.

    Raises Unsupported: ``lossy-source``, ``one-decoder``, ``transfer-syntax``.
    """
    if syntax in PAIRS:
        return PAIRS[syntax]
    if viewing and syntax in VIEWING:
        return VIEWING[syntax]
    if syntax in LOSSY:
        raise Unsupported("lossy-source", "the pixel data are lossy compressed")
    if syntax in ONE_DECODER:
        raise Unsupported("one-decoder", "no second, unrelated decoder is at hand")
    raise Unsupported("transfer-syntax", "pixel data in a transfer syntax that is not decoded here")


def decode_twice(data: bytes, pair: Pair, fmt: PixelFormat) -> Words:
    """Words of one frame as a native file would hold them (fmt.dtype, fmt.shape).

    Raises Unsupported: ``undecodable``, ``one-decoder``, ``codestream-header``, ``trailing-data``,
    ``decoders-disagree``.
    """
    declared = _declared(data, pair, fmt)
    first = _samples(pair.first, data, fmt, declared)
    second = _samples(pair.second, data, fmt, declared)
    if not np.array_equal(first, second):
        raise Unsupported("decoders-disagree", "two decoders give different pixels")
    return _signed_words(first, fmt, declared)


def decode_by(decoder: Decoder, data: bytes, pair: Pair, fmt: PixelFormat) -> Words:
    """The words that one decoder gives. Raises as `decode_twice`."""
    declared = _declared(data, pair, fmt)
    return _signed_words(_samples(decoder, data, fmt, declared), fmt, declared)


def _declared(data: bytes, pair: Pair, fmt: PixelFormat) -> Declared:
    if pair.read is None:
        return Declared(fmt.rows, fmt.columns, fmt.samples, fmt.bits_allocated, None)
    try:
        found = pair.read(data)
    except CodestreamError as error:
        raise Unsupported("undecodable", "the codestream's header cannot be read") from error
    if found.trailing:
        raise Unsupported("trailing-data", "bytes after the codestream's end would be lost")
    same = (found.rows, found.columns, found.samples) == (fmt.rows, fmt.columns, fmt.samples)
    # a codestream without a sign says nothing of where the sign bit of a shorter sample would be
    lowest = fmt.bits_stored if fmt.signed and found.signed is None else 1
    if not same or not lowest <= found.precision <= fmt.bits_allocated:
        raise Unsupported("codestream-header", "the codestream and the header describe different images")
    if found.signed not in (None, fmt.signed) or fmt.high_bit != fmt.bits_stored - 1:
        raise Unsupported("codestream-header", "the codestream and the header differ in sign or bit position")
    return found


def _samples(decoder: Decoder, data: bytes, fmt: PixelFormat, declared: Declared) -> Samples:
    """uint16 bit patterns, shape fmt.shape; negative numbers in two's complement of 16 bits."""
    try:
        found = decoder(data, fmt, declared)
    except J2kUnsupported as error:
        raise Unsupported("one-decoder", "only one decoder takes this codestream") from error
    except _FAILURES as error:
        raise Unsupported("undecodable", "a decoder refuses the frame") from error
    if found.dtype.kind not in "ui" or found.size != fmt.rows * fmt.columns * fmt.samples:
        raise Unsupported("codestream-header", "a decoder gives a frame of another size")
    return found.reshape(fmt.shape).astype(np.int64).astype(np.uint16)


def _signed_words(samples: Samples, fmt: PixelFormat, declared: Declared) -> Words:
    """PS3.5 8.2: codestreams without a sign hold the low `precision` bits; a native word repeats the sign above."""
    if fmt.signed and declared.signed is None and declared.precision < 16:
        sign = 1 << (declared.precision - 1)
        samples = ((samples.astype(np.int32) ^ sign) - sign).astype(np.uint16)
    return as_words(samples, fmt)


def as_words(stored: npt.NDArray[np.generic], fmt: PixelFormat) -> Words:
    """Native, contiguous words of the format's width."""
    if fmt.bits_allocated == 8:
        return np.ascontiguousarray(stored, dtype=np.uint8)
    return np.ascontiguousarray(stored, dtype=np.uint16)
