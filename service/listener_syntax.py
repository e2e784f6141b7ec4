"""Which transfer syntax to take when a sender offers several: uncompressed, then lossless, then lossy (gateway.md,
Taking in).

pynetdicom's unrestricted storage service accepts the *first* syntax of the proposal, and many senders convert to
whatever is
accepted: one that offers JPEG first would then compress lossily for us.  So the proposal is put in our order before it
is negotiated.  Ranks are a table over PS3.6 A.1; a syntax not in it (private, or newer than this file) comes last.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["KNOWN_SYNTAXES", "rank", "sort_syntaxes"]

_JPEG = "1.2.840.10008.1.2.4."

#: PS3.6 A.1, best first.  Deflated is lossless but costs the sender time, so it stands behind the plain ones.
UNCOMPRESSED = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.10008.1.2.1.99",
)
LOSSLESS = (
    *(_JPEG + tail for tail in ("80", "70", "57", "58", "90", "92", "201", "202", "110")),
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
    *(_JPEG + tail for tail in ("65", "66")),  # retired: lossless, hierarchical
)
#: Lossy or lossy-capable: JPEG baseline and extended, near-lossless JPEG-LS, JPEG 2000, HTJ2K, JPEG XL, video.
LOSSY = (
    *(_JPEG + tail for tail in ("81", "91", "93", "203", "112", "111", "50", "51")),
    *(_JPEG + tail for tail in ("52", "53", "54", "55", "56", "59", "60", "61", "62", "63", "64")),  # retired
    *(_JPEG + tail for tail in ("100", "100.1", "101", "101.1", "102", "102.1", "103", "103.1", "104", "104.1")),
    *(_JPEG + tail for tail in ("105", "105.1", "106", "106.1", "107", "108")),
)
#: The pixels are elsewhere (JPIP, SMPTE ST 2110) or the encoding is not Part 5's: taken whole, and only if nothing else
#: is offered.
REFERENCED = (
    *(_JPEG + tail for tail in ("94", "95", "204", "205")),
    *("1.2.840.10008.1.2.7.1", "1.2.840.10008.1.2.7.2", "1.2.840.10008.1.2.7.3"),
)

KNOWN_SYNTAXES = (*UNCOMPRESSED, *LOSSLESS, *LOSSY, *REFERENCED)
_RANK = {uid: place for place, uid in enumerate(KNOWN_SYNTAXES)}


def rank(uid: str) -> int:
    """Place of a transfer syntax in our order of preference; unknown ones share the last place."""
    return _RANK.get(uid, len(_RANK))


def sort_syntaxes(proposed: Iterable[str]) -> list[str]:
    """The proposal in our order; equal ranks keep the sender's order."""
    return sorted(proposed, key=rank)
