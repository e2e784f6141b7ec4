"""One received object, measured: what it weighs in the archive, and with standard pixels, and what that takes.

Ours is the whole archive object as it would be made, under throw-away keys, and opened again: exact means that the
received file came back. The standard codecs get the same header and their own pixels; of many frames a run in the
middle is coded, and their bytes and seconds are taken for all (`scaled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Final, Literal

from codec.errors import CodecError
from codec.standard import STANDARD
from gateway.errors import PalimpsestError
from gateway.instance import Form
from gateway.keys import KeyRing
from gateway.part10 import peek
from gateway.policy import ArchiveRule
from stego.errors import CarrierError
from worker.bench import ENCAPSULATION_BYTES, LIBRARIES, standard_plane, timed
from worker.bench_inputs import Choice
from worker.candidate import build_candidate, build_passthrough
from worker.identity import Provenance
from worker.jpegls_baseline import encode_jpegls
from worker.pixels import PixelSource, open_pixels
from worker.rules import modality_of
from worker.splice import read_object
from worker.verify import check_envelope

__all__ = ["OURS", "STANDARDS", "Measured", "measure"]

OURS: Final = ("default", "fast")
STANDARDS: Final = ("jxl9", "jpegls", "htj2k")
FRAMES: Final = 4
FACTS: Final = Provenance("1970-01-01T00:00:00+00:00", "shadow", "SHADOW", "palimpsest shadow")
REFUSED: Final = (PalimpsestError, CodecError, CarrierError, MemoryError)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of the object by form ('received', ours by profile, the standards); seconds by form.

    reason: '' for an image that is coded, else why ours seals it whole; then the standards keep it as it came. exact:
    every form of ours gave the received object back. scaled: not all frames were coded by the standards.
    """

    modality: str
    reason: str
    exact: bool
    scaled: bool
    bytes: dict[str, int] = field(default_factory=dict)
    encode_s: dict[str, float] = field(default_factory=dict)
    decode_s: dict[str, float] = field(default_factory=dict)


def measure(data: bytes, ring: KeyRing, profiles: Sequence[Literal["default", "fast"]] = OURS) -> Measured:
    """Measure one Part 10 file. ring: throw-away keys. Raises InvalidInstance for what is no DICOM object."""
    peek(data)
    modality, reason, exact = modality_of(data), "", True
    found = Measured(modality, "", True, False, {"received": len(data)})
    for profile in profiles:
        rule = ArchiveRule(name="shadow", profile=profile, adapt="none", fit_seconds=4.0)
        try:
            made, seconds = timed(partial(build_candidate, data, FACTS, ring, rule=rule))
        except REFUSED as error:
            why = error.reason if isinstance(error, PalimpsestError) else type(error).__name__.lower()
            made, seconds = timed(partial(build_passthrough, data, FACTS, ring, why, rule=rule))
        report = check_envelope(made.envelope, ring)
        restored = report.sha256 == sha256(data).hexdigest()
        exact &= report.ok and (restored or (made.form == Form.CODED and report.pixel_sha256 == made.pixel_sha256))
        reason = made.reason or ""
        found.bytes[profile], found.encode_s[profile] = made.size, seconds
        found.decode_s[profile] = report.seconds
    source = None if reason else open_pixels(read_object(data))
    scaled = source is not None and source.frames > FRAMES
    _standards(found, data, source)
    return Measured(modality, reason, exact, scaled, found.bytes, found.encode_s, found.decode_s)


def _standards(found: Measured, data: bytes, source: PixelSource | None) -> None:
    if source is None:
        found.bytes.update(dict.fromkeys(STANDARDS, len(data)))
        return
    around = len(source.spans.nonpixel()) + ENCAPSULATION_BYTES + 8 * source.frames
    frames = Choice(max_frames=FRAMES).frames(source.frames)
    for name in STANDARDS:
        library, effort = LIBRARIES[name]
        coder, pixels, took, back = STANDARD[library], 0, 0.0, 0.0
        for index in frames:
            plane = standard_plane(source.frame(index), source.fmt)
            try:
                blob, seconds = timed(partial(coder.encode, plane, effort))
                back += timed(partial(coder.decode, blob))[1]
            except (RuntimeError, ValueError):
                pixels, seconds = pixels + plane.nbytes, 0.0
            else:
                pixels += min(len(blob), len(encode_jpegls(plane))) if name == "jpegls" else len(blob)
            took += seconds
        share = source.frames / len(frames)
        found.bytes[name] = around + round(pixels * share)
        found.encode_s[name], found.decode_s[name] = took * share, back * share
