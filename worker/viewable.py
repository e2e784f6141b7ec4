"""The original as other systems read it: its own pixels under its own header, or a de-identified one, in a lossless
transfer syntax that the destination takes (worker/transcode.py makes it and proves every frame).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from pydicom.filewriter import dcmwrite

from gateway.errors import IntegrityError, InvalidInstance, PolicyRefused, Unsupported
from gateway.part10 import DEFLATED, EXPLICIT_LE, IMPLICIT_LE, PIXEL_TAGS, peek, read_meta, walk
from gateway.policy import DeliveryRule, Representation, Syntax
from gateway.probe_result import ProbeResult
from gateway.transfer_syntaxes import HTJ2K, JPEG_2000, JPEG_LS, JPEG_XL, NATIVE
from worker.deid import deidentify
from worker.deid_profile import Profile
from worker.stegoheader import read_header
from worker.transcode import transcode

__all__ = ["PREFERENCE", "SYNTAXES", "ViewableCopy", "candidates", "profile_of", "viewable_copies"]

SYNTAXES: Final[Mapping[Syntax, str]] = {
    "jpeg-xl": JPEG_XL, "jpeg-ls": JPEG_LS, "jpeg-2000": JPEG_2000, "htj2k": HTJ2K, "explicit-le": EXPLICIT_LE,
    "implicit-le": IMPLICIT_LE,
}  # fmt: skip
PREFERENCE: Final = tuple(SYNTAXES.values())
"""Smallest first."""
WIDELY_READ: Final = frozenset({JPEG_LS, JPEG_2000, EXPLICIT_LE, IMPLICIT_LE})
"""Used without proof; the others only where a probe has seen them come back."""


@dataclass(frozen=True, slots=True)
class ViewableCopy:
    """A Part 10 file to send. syntax: its transfer syntax."""

    part10: bytes = field(repr=False)
    syntax: str


def profile_of(rule: DeliveryRule) -> Profile:
    """The de-identification that a rule asks for."""
    return Profile.of(option.replace("-", "_") for option in rule.deidentify)


def candidates(sop_class: str, source: str, rule: DeliveryRule, probe: ProbeResult | None) -> tuple[str, ...]:
    """Transfer syntaxes in which a copy may go out, best first.

    source: that of the original; what was received compressed stays so where it is taken, for only that is certain to
    be possible. Raises Unsupported ``probe-refuted`` when the probe leaves none.
    """
    if rule.syntax:
        wanted = [SYNTAXES[name] for name in rule.syntax]
    elif probe is None:
        wanted = [each for each in PREFERENCE if each in WIDELY_READ]
    else:
        proven = probe.proven(sop_class, PREFERENCE)
        wanted = [*proven, *(each for each in PREFERENCE if each in WIDELY_READ and each not in proven)]
    if source not in NATIVE:
        wanted = [*(() if rule.syntax else (source,)), *wanted, source]
    left = [each for each in dict.fromkeys(wanted) if probe is None or not probe.refutes(sop_class, each)]
    if not left:
        raise Unsupported("probe-refuted", "the probe of this destination has refuted every form it could be sent in")
    return tuple(left)


def viewable_copies(
    data: bytes, form: Representation, rule: DeliveryRule, key: bytes, syntaxes: Sequence[str] = PREFERENCE
) -> Iterator[ViewableCopy]:
    """The copies that can be made, in the order of `syntaxes`, each made when it is asked for.

    key: the ring's pseudonym key. Raises Unsupported: reasons of de-identification, and the last refusal when not one
    copy could be made; InvalidInstance; IntegrityError ``pixel-mismatch``.
    """
    subject = data if form == "viewable" else deidentified(data, profile_of(rule), key)
    own = read_meta(subject)[0]
    refused: Unsupported | None = None
    made = 0
    for syntax in dict.fromkeys((*syntaxes, *((own,) if not syntaxes else ()))):
        try:
            copy = ViewableCopy(transcode(subject, syntax), syntax)
        except Unsupported as error:
            refused = error
            continue
        made += 1
        yield copy
    if not made:
        raise refused or Unsupported("no-syntax-accepted", "no transfer syntax is left to send it in")


def deidentified(data: bytes, profile: Profile, key: bytes) -> bytes:
    """The file under a de-identified header (PS3.15 E), pixel data byte for byte as they were. Deterministic.

    Raises Unsupported with the reasons of `worker.deid.refuse_unsafe_pixels`, ``header``; IntegrityError.
    """
    try:
        dataset = deidentify(read_header(data), profile, key).dataset
        out = io.BytesIO()
        dcmwrite(out, dataset, enforce_file_format=True)
    except PolicyRefused as error:
        raise Unsupported(error.reason, error.message) from error
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, IndexError, OSError) as error:
        raise Unsupported("header", "the de-identified header cannot be written") from error
    made = out.getvalue()
    if _pixels(made) != _pixels(data) or peek(made).transfer_syntax != peek(data).transfer_syntax:
        raise IntegrityError("pixel-mismatch", "de-identifying changed the pixel data")
    return made


def _pixels(data: bytes) -> str | None:
    """SHA-256 of the pixel data value; None where there is none, or the data set is deflated and holds none."""
    syntax, offset = read_meta(data)
    if syntax in DEFLATED:
        raise Unsupported("deflated", "a deflated data set is not de-identified here")
    try:
        for element in walk(data, syntax, offset):
            if element.tag in PIXEL_TAGS:
                return sha256(data[element.value_offset : element.end]).hexdigest()
    except InvalidInstance as error:
        raise Unsupported("header", "the object cannot be read to its end") from error
    return None
