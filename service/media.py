"""Content negotiation of DICOMweb (PS3.18 8.7, RFC 9110 12.5.1): which of what we can give does the client want?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.multipart import parse_media_type
from service.problems import HttpProblem

__all__ = ["Wanted", "accepts", "parse_accept", "wants_dicom", "wants_image"]

DICOM = "application/dicom"
#: What each rendered format is called (PS3.18 8.7.4); the first is given when the client does not care.
IMAGES = {"image/jpeg": "jpeg", "image/png": "png"}
MAX_RANGES = 64
_QVALUE = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")  # RFC 9110 12.4.2


@dataclass(frozen=True)
class Wanted:
    """One element of an Accept header; `type` is the parameter of multipart/related, `syntax` the transfer syntax or
    ''.
    """

    essence: str
    type: str
    syntax: str
    q: float


def _split(header: str) -> list[str]:
    """Split at commas that are not inside a quoted string."""
    items, quoted, start = [], False, 0
    for at, char in enumerate(header):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            items.append(header[start:at])
            start = at + 1
    return [*items, header[start:]]


def parse_accept(header: str | None) -> list[Wanted]:
    """Parse an Accept header, best first; an absent or empty one means anything. Elements with q=0 are dropped."""
    if header is None or not header.strip():
        return [Wanted("*/*", "", "", 1.0)]
    wanted = []
    for item in _split(header)[:MAX_RANGES]:
        media = parse_media_type(item.strip())
        weight = media.parameters.get("q", "1")
        q = float(weight) if _QVALUE.fullmatch(weight) else 0.0
        if media.essence and q > 0:
            syntax = media.parameters.get("transfer-syntax", "").strip()
            wanted.append(Wanted(media.essence, media.parameters.get("type", "").lower(), syntax, q))
    return sorted(wanted, key=lambda item: -item.q)


def accepts(header: str | None, *offers: str) -> str:
    """The first of `offers` in the client's order of preference; raises 406."""
    for item in parse_accept(header):
        for offer in offers:
            if item.essence in ("*/*", offer, offer.split("/")[0] + "/*"):
                return offer
    raise HttpProblem(406, "not-acceptable", f"This resource is given as {', '.join(offers)} only.")


def wants_dicom(header: str | None, *, many: bool = False) -> tuple[bool, frozenset[str]]:
    """How to give instances: (as multipart?, the transfer syntaxes allowed; empty means as stored). Raises 406.

    many: more than one instance, which only multipart can hold: what asks for a single part is passed over. Absent
    and `*` both mean "as stored": `*` leaves the choice to the server; for an absent one PS3.18 names Explicit VR
    Little Endian, but nothing is transcoded here, and refusing would help nobody.
    """
    multipart, syntaxes = None, set()
    for item in parse_accept(header):
        single = item.essence in (DICOM, "application/*")
        related = item.essence == "multipart/related" and item.type in ("", DICOM, "application/*", "*/*")
        if not (single or related or item.essence in ("*/*", "multipart/*")) or (single and many):
            continue
        if multipart is None:
            multipart = not single
        syntaxes.add(item.syntax)
    if multipart is None:
        raise HttpProblem(
            406,
            "not-acceptable",
            'More than one instance is given as multipart/related; type="application/dicom" only.'
            if many
            else 'Instances are given as multipart/related; type="application/dicom" or application/dicom.',
        )
    return multipart, frozenset() if syntaxes & {"", "*"} else frozenset(syntaxes)


def wants_image(header: str | None) -> tuple[str, str]:
    """(media type, short name) of a rendered image; raises 406."""
    essence = accepts(header, *IMAGES)
    return essence, IMAGES[essence]
