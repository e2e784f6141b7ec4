"""Transfer syntaxes (PS3.6 A.1) as tables: what each is, which this gateway can make, and its media type on the web."""

from __future__ import annotations

from typing import Final

from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE

__all__ = [
    "DEFAULT_OF_MEDIA",
    "DEFLATED_LE",
    "FRAME_MEDIA",
    "HTJ2K",
    "HTJ2K_RPCL",
    "JPEG_2000",
    "JPEG_LOSSLESS",
    "JPEG_LOSSLESS_ANY",
    "JPEG_LS",
    "JPEG_XL",
    "LOSSLESS",
    "LOSSY",
    "MADE",
    "NATIVE",
    "REFERENCED",
    "RLE",
    "UNCOMPRESSED",
]

_JPEG: Final = "1.2.840.10008.1.2.4."

DEFLATED_LE: Final = "1.2.840.10008.1.2.1.99"
RLE: Final = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS_ANY: Final = _JPEG + "57"
JPEG_LOSSLESS: Final = _JPEG + "70"
JPEG_LS: Final = _JPEG + "80"
JPEG_2000: Final = _JPEG + "90"
JPEG_XL: Final = _JPEG + "110"
HTJ2K: Final = _JPEG + "201"
HTJ2K_RPCL: Final = _JPEG + "202"

#: Samples as they are, best first.  Deflated is lossless but costs time, so it stands behind the plain ones.
UNCOMPRESSED: Final = (EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, "1.2.840.10008.1.2.1.98", DEFLATED_LE)
#: Native pixel data: no fragments.
NATIVE: Final = frozenset({EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE, DEFLATED_LE})
LOSSLESS: Final = (
    *(_JPEG + tail for tail in ("80", "70", "57", "58", "90", "92", "201", "202", "110")),
    RLE,
    "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
    *(_JPEG + tail for tail in ("65", "66")),  # retired: lossless, hierarchical
)
#: Lossy or lossy-capable: JPEG baseline and extended, near-lossless JPEG-LS, JPEG 2000, HTJ2K, JPEG XL, video.
LOSSY: Final = (
    *(_JPEG + tail for tail in ("81", "91", "93", "203", "112", "111", "50", "51")),
    *(_JPEG + tail for tail in ("52", "53", "54", "55", "56", "59", "60", "61", "62", "63", "64")),  # retired
    *(_JPEG + tail for tail in ("100", "100.1", "101", "101.1", "102", "102.1", "103", "103.1", "104", "104.1")),
    *(_JPEG + tail for tail in ("105", "105.1", "106", "106.1", "107", "108")),
)
#: The pixels are elsewhere (JPIP, SMPTE ST 2110) or the encoding is not Part 5's.
REFERENCED: Final = (
    *(_JPEG + tail for tail in ("94", "95", "204", "205")),
    *("1.2.840.10008.1.2.7.1", "1.2.840.10008.1.2.7.2", "1.2.840.10008.1.2.7.3"),
)

#: What worker/transcode.py makes of an object without changing a pixel, the quickest and most widely read first.
MADE: Final = (
    EXPLICIT_LE,
    IMPLICIT_LE,
    HTJ2K_RPCL,
    HTJ2K,
    JPEG_LS,
    RLE,
    JPEG_LOSSLESS,
    JPEG_2000,
    JPEG_XL,
    DEFLATED_LE,
)

#: Transfer syntax -> media type of its frames (PS3.18 tables 8.7.3-4 and 8.7.3-5); everything native is octets.
FRAME_MEDIA: Final[dict[str, str]] = {
    **{_JPEG + tail: "image/jpeg" for tail in ("50", "51", "57", "70")},
    RLE: "image/dicom-rle",
    **{_JPEG + tail: "image/jls" for tail in ("80", "81")},
    **{_JPEG + tail: "image/jp2" for tail in ("90", "91")},
    **{_JPEG + tail: "image/jpx" for tail in ("92", "93")},
    **{_JPEG + tail: "image/jphc" for tail in ("201", "202", "203")},
    **{_JPEG + tail: "image/jxl" for tail in ("110", "111", "112")},
    **{_JPEG + tail: "video/mpeg" for tail in ("100", "100.1", "101", "101.1")},
    **{
        _JPEG + tail: "video/mp4"
        for tail in ("102", "102.1", "103", "103.1", "104", "104.1", "105", "105.1", "106", "106.1", "107", "108")
    },
}
#: Media type -> its transfer syntax where the client names none (the default, D, of PS3.18 table 8.7.3-5).
DEFAULT_OF_MEDIA: Final[dict[str, str]] = {
    "application/octet-stream": EXPLICIT_LE,
    "image/jpeg": JPEG_LOSSLESS,
    "image/dicom-rle": RLE,
    "image/jls": JPEG_LS,
    "image/jp2": JPEG_2000,
    "image/jphc": HTJ2K,
    "image/jxl": JPEG_XL,
}
