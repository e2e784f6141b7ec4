"""Content negotiation of DICOMweb (PS3.18 8.7, RFC 9110 12.5.1): which of what we can give does the client want?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE
from gateway.transfer_syntaxes import DEFAULT_OF_MEDIA, FRAME_MEDIA, HTJ2K_RPCL, JPEG_2000, JPEG_LS, JPEG_XL, RLE
from service.multipart import parse_media_type
from service.objects import AS_IS, HOT
from service.problems import HttpProblem

__all__ = [
    "DICOM",
    "OCTETS",
    "XML",
    "Choice",
    "Wanted",
    "accepts",
    "own_first",
    "parse_accept",
    "wants_dicom",
    "wants_frames",
    "wants_image",
    "wants_metadata",
]

DICOM = "application/dicom"
OCTETS = "application/octet-stream"
JSON = "application/dicom+json"
XML = "application/dicom+xml"
RELATED = "multipart/related"
#: What each rendered format is called (PS3.18 8.7.4); the first is given when the client does not care.
IMAGES = {"image/jpeg": "jpeg", "image/png": "png", "image/gif": "gif"}
#: Names that other servers and older clients use.
ALIASES = {"image/x-dicom-rle": "image/dicom-rle", "image/x-jls": "image/jls", "image/j2c": "image/jphc"}
#: For who takes any compressed image.
ANY_IMAGE = (HTJ2K_RPCL, JPEG_LS, JPEG_2000, JPEG_XL, RLE)
MAX_RANGES = 64
_QVALUE = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")  # RFC 9110 12.4.2
_UID = re.compile(r"[0-9.]{1,64}")


@dataclass(frozen=True)
class Wanted:
    """One element of an Accept header; `type` is the parameter of multipart/related, `syntax` the transfer syntax or
    ''.
    """

    essence: str
    type: str
    syntax: str
    q: float


@dataclass(frozen=True)
class Choice:
    """A form that the client takes. syntaxes: what will do, best first, AS_IS for the object's own.

    media: the media type to be named where it is not the syntax's own, '' otherwise.
    """

    multipart: bool
    syntaxes: tuple[str, ...]
    media: str = ""


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
            kind = media.parameters.get("type", "").lower()
            wanted.append(Wanted(ALIASES.get(media.essence, media.essence), ALIASES.get(kind, kind), syntax, q))
    return sorted(wanted, key=lambda item: -item.q)


def accepts(header: str | None, *offers: str) -> str:
    """The first of `offers` in the client's order of preference; raises 406."""
    for item in parse_accept(header):
        for offer in offers:
            if item.essence in ("*/*", offer, offer.split("/")[0] + "/*"):
                return offer
    raise HttpProblem(406, "not-acceptable", f"This resource is given as {', '.join(offers)} only.")


def wants_dicom(header: str | None, *, many: bool = False) -> list[Choice]:
    """How to give instances, best first. Raises 406 when nothing of what can be given is asked for.

    many: more than one instance, which only multipart can hold: what asks for a single part is passed over.
    Where no transfer syntax is named, application/dicom means Explicit VR Little Endian (PS3.18 8.7.3.1; as it is
    where that would lose pixels), a wildcard the object as it is, which is what viewers expect of it.
    """
    choices = []
    for item in parse_accept(header):
        single = item.essence in (DICOM, "application/*")
        related = item.essence == RELATED and item.type in ("", DICOM, "application/*", "*/*")
        if not (single or related or item.essence in ("*/*", "multipart/*")) or (single and many):
            continue
        named = DICOM in (item.essence, item.type)
        syntaxes = _syntaxes(item.syntax, (EXPLICIT_LE, AS_IS) if named else (AS_IS,))
        if syntaxes:
            choices.append(Choice(not single, syntaxes))
    if choices:
        return choices
    raise HttpProblem(
        406,
        "not-acceptable",
        'More than one instance is given as multipart/related; type="application/dicom" only.'
        if many
        else 'Instances are given as multipart/related; type="application/dicom" or application/dicom.',
    )


def _syntaxes(named: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """What a transfer-syntax parameter asks for; Implicit VR is not given over the web (PS3.18 8.7.3)."""
    if not named:
        return default
    if named == AS_IS:
        return (AS_IS,)
    return (named,) if _UID.fullmatch(named) and named != IMPLICIT_LE else ()


def wants_frames(header: str | None, *, many: bool = False) -> list[Choice]:
    """How to give frames or pixel data, best first (PS3.18 tables 8.7.3-4 and 8.7.3-5). many: as above; raises 406."""
    choices = []
    for item in parse_accept(header):
        related = item.essence in (RELATED, "multipart/*", "*/*")
        kind = (item.type or "*/*") if item.essence == RELATED else "*/*" if related else item.essence
        if many and not related:
            continue
        syntaxes, media = _of_media(kind, item.syntax)
        if syntaxes:
            choices.append(Choice(related, syntaxes, media))
    if choices:
        return choices
    raise HttpProblem(
        406,
        "not-acceptable",
        "Frames are given as application/octet-stream or the image media types of PS3.18 table 8.7.3-5, more than one "
        "as multipart/related.",
    )


def _of_media(kind: str, syntax: str) -> tuple[tuple[str, ...], str]:
    """(transfer syntaxes, media type to name) of one media type with its transfer-syntax parameter."""
    if syntax == AS_IS and kind in ("*/*", "application/*", OCTETS):
        return (HOT, AS_IS), OCTETS if kind == OCTETS else ""
    if kind in ("*/*", "application/*"):
        return _syntaxes(syntax, (AS_IS,)), ""
    if kind == OCTETS:  # compressed frames under this name are no table's, but what viewers ask for
        return _syntaxes(syntax, (EXPLICIT_LE,)), OCTETS
    if kind == "image/*":
        return (_syntaxes(syntax, ANY_IMAGE) if syntax != AS_IS else ANY_IMAGE), ""
    of_kind = tuple(uid for uid, media in FRAME_MEDIA.items() if media == kind)
    if syntax and syntax != AS_IS:
        return ((syntax,) if syntax in of_kind else ()), ""
    default = DEFAULT_OF_MEDIA.get(kind)
    return tuple(sorted(of_kind, key=lambda uid: uid != default)), ""


def own_first(choices: Iterable[Choice], own: str) -> list[Choice]:
    """The same with the object's own syntax first within each choice that has it: it costs nothing."""
    return [
        Choice(c.multipart, tuple(sorted(c.syntaxes, key=lambda uid: uid != own)), c.media) if own in c.syntaxes else c
        for c in choices
    ]


def wants_image(header: str | None) -> tuple[str, str]:
    """(media type, short name) of a rendered image, in a single part or one each; raises 406."""
    for item in parse_accept(header):
        kind = (item.type or "*/*") if item.essence == RELATED else item.essence
        for essence, name in IMAGES.items():
            if kind in ("*/*", "image/*", "multipart/*", essence):
                return essence, name
    raise HttpProblem(406, "not-acceptable", f"Rendered images are given as {', '.join(IMAGES)} only.")


def wants_metadata(header: str | None) -> str:
    """The media type of metadata: DICOM JSON, or XML, which is multipart (PS3.18 table 8.7.3-3); raises 406."""
    for item in parse_accept(header):
        if item.essence == RELATED and item.type in ("", XML):
            return XML
        for offer in (JSON, "application/json"):
            if item.essence in ("*/*", "application/*", offer):
                return offer
    raise HttpProblem(406, "not-acceptable", f'Metadata are given as {JSON} or multipart/related; type="{XML}" only.')
