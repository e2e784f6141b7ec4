"""Identifiers, parsed once at the door: PS3.5 6.2 (AE) and 9.1 (UI). Safe as path keys afterwards.

Leading zeros of a component are against PS3.5 9.1 and common in the field; they are accepted and kept as sent.
"""

from __future__ import annotations

import re

from gateway.errors import BadUID

_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_AE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # the default repertoire without backslash and control characters


class UID(str):
    """A checked UID: digits and dots, at most 64 characters, no empty component."""

    __slots__ = ()


class SOPInstanceUID(UID):
    """A checked SOP Instance UID."""

    __slots__ = ()


class SOPClassUID(UID):
    """A checked SOP Class UID."""

    __slots__ = ()


class AETitle(str):
    """A checked AE title: 1 to 16 characters without the padding spaces."""

    __slots__ = ()


def parse_uid(text: str, what: str = "uid") -> UID:
    """Checked UID. Padding (one NUL or spaces) is dropped. Raises BadUID with reason ``bad-<what>``."""
    value = text.rstrip("\0 ")
    if not value or len(value) > 64 or _UID.fullmatch(value) is None:
        raise BadUID(f"bad-{what}", f"{what} is not a UID of at most 64 digits and dots (PS3.5 9.1)")
    return UID(value)


def parse_sop_instance(text: str) -> SOPInstanceUID:
    """Checked SOP Instance UID, or BadUID ``bad-sop-instance-uid``."""
    return SOPInstanceUID(parse_uid(text, "sop-instance-uid"))


def parse_sop_class(text: str) -> SOPClassUID:
    """Checked SOP Class UID, or BadUID ``bad-sop-class-uid``."""
    return SOPClassUID(parse_uid(text, "sop-class-uid"))


def parse_ae(text: str) -> AETitle:
    """Checked AE title, leading and trailing spaces dropped (PS3.5 6.2). Raises BadUID ``bad-ae-title``."""
    value = text.strip(" ")
    if _AE.fullmatch(value) is None:
        raise BadUID("bad-ae-title", "an AE title is 1 to 16 printable characters without backslash (PS3.5 6.2)")
    return AETitle(value)
