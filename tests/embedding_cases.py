"""One random embed and everything that must hold of it: for the unit tests a few, for the acceptance run thousands.

A case draws a frame, a carrier, a payload and keys from its number. Carriers: the three by themselves ('segmented',
'self-contained', 'hidden'), and whole DICOM files ('archive object', 'stego object') with their headers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import choose_levels, join_words, sign_extension, split_words
from codec.frame import decode_frame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError, PalimpsestError, Unsupported
from gateway.keys import KeyRing
from stego import hidden, segmented, selfcontained
from stego.capsule import CAPSULE_CLASSES, seal_capsule
from stego.cover import Cover
from stego.errors import CarrierError, SealError
from stego.lattice import fingerprint, lattice
from stego.seal import LENGTH_CLASSES, Context, seal_record, wrap_key
from stego.segmented import _Plane
from tests.object_makers import BIG, EXPLICIT, FACTS, IMPLICIT, image
from worker import container as box
from worker.candidate import build_candidate
from worker.container import SectionType
from worker.envelope import parse_envelope
from worker.pixelrules import cover_of, with_wet_plateaus
from worker.restore import restore
from worker.stegoframe import Mode
from worker.stegoobject import make_stego, open_stego

Values = NDArray[np.int32]
MODES = ("segmented", "self-contained", "hidden", "archive object", "stego object")
WEIGHTS = (0.34, 0.16, 0.47, 0.01, 0.02)  # self-contained takes ten times as long as the other two
SCENES = ("smooth", "air", "saturated", "rician", "texture", "edges", "dark")

#: refusals that no frame justifies: what was embedded did not come back
OUR_FAULT = ("verify", "changes")

_ring: list[KeyRing] = []


def use_ring(folder: Path, create: bool = False) -> None:
    """The key ring of this process's DICOM cases."""
    _ring[:] = [KeyRing.load_or_create(folder, create=create)]


@dataclass(frozen=True)
class Outcome:
    """result: 'exact', 'refused' (`problem` says why) or 'failed' (`problem` says how)."""

    mode: str
    result: str
    problem: str
    scene: str
    rows: int
    columns: int
    bits_stored: int
    signed: bool
    payload_bytes: int
    max_change: int = 0
    milliseconds: float = 0.0
    embedded_bits: dict[str, bytes] = field(default_factory=dict)

    def logged(self) -> dict[str, Any]:
        """As one JSON line; the bits stay out."""
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "embedded_bits"}
        return {**kept, "milliseconds": round(self.milliseconds, 1)}


class Wrong(Exception):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Case:
    """A drawn case. salt: of the carrier, 32 bytes. payload: uniform bytes, as a capsule is."""

    rng: np.random.Generator
    mode: str
    scene: str
    values: Values
    fmt: PixelFormat
    padding: tuple[int, ...]
    payload: bytes
    key: bytes

    @property
    def words(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The frame as stored, the sign repeated."""
        return join_words(self.values, sign_extension(self.values, self.fmt) if self.fmt.signed else None, self.fmt)


def run_case(number: int, seed: int) -> Outcome:
    """Draw, embed, check everything."""
    case = draw(number, seed)
    fmt = case.fmt
    plain = Outcome(
        case.mode, "exact", "", case.scene, fmt.rows, fmt.columns, fmt.bits_stored, fmt.signed, len(case.payload)
    )
    started = time.perf_counter()
    try:
        change, bits = _CHECKS[case.mode](case)
    except (CarrierError, Unsupported) as error:
        broken = error.reason in OUR_FAULT
        return replace(plain, result="failed" if broken else "refused", problem=error.reason)
    except Wrong as error:
        return replace(plain, result="failed", problem=str(error))
    except (SealError, IntegrityError, ValueError, IndexError, AssertionError, OverflowError) as error:
        return replace(plain, result="failed", problem=f"{type(error).__name__}: {error}")
    spent = 1e3 * (time.perf_counter() - started)
    return replace(plain, max_change=change, milliseconds=spent, embedded_bits=bits)


# --- drawing ---


def draw(number: int, seed: int) -> Case:
    """The case of this number."""
    rng = np.random.default_rng([seed, number])
    mode = str(rng.choice(MODES, p=WEIGHTS))
    whole = mode in ("archive object", "stego object")
    rows, columns = (int(n) for n in (rng.integers(180, 300, 2) if whole else rng.integers(24, 224, 2)))
    bits = int(rng.integers(8, 17))
    signed = bool(rng.integers(2))
    allocated = 8 if bits == 8 and rng.integers(2) else 16
    fmt = PixelFormat(rows, columns, 1, allocated, bits, bits - 1, signed)
    scene = str(rng.choice(SCENES))
    values = _scene(rng, scene, rows, columns, bits)
    if signed:
        values = values - (1 << (bits - 1))
    padding = (int(values.min()),) if rng.random() < 0.2 else ()
    payload = _payload(rng, mode, rows * columns)
    return Case(rng, mode, scene, values.astype(np.int32), fmt, padding, payload, rng.bytes(32))


def _payload(rng: np.random.Generator, mode: str, samples: int) -> bytes:
    """A real capsule (in segmented: a sealed record) of an empty record where the frame may hold one, else noise."""
    room = int(samples * rng.uniform(0.01, 0.1 if mode == "self-contained" else 0.35)) // 8
    object_id, data_key, salt = rng.bytes(16), rng.bytes(32), rng.bytes(32)
    context = Context(object_id, 512, 512, 12, False, 1, "hidden", salt)
    sealed = seal_record(bytes(int(rng.integers(1, 900))), data_key=data_key, context=context)
    if mode != "segmented":
        wrap = wrap_key(data_key, kek=bytes(32), kek_id="kek-1")
        sealed = seal_capsule(sealed, object_id=object_id, wrap=wrap, stego_key=bytes(32), salt=salt)
    return sealed if len(sealed) <= room else rng.bytes(max(1, min(room, 2304)))


def _scene(rng: np.random.Generator, scene: str, rows: int, columns: int, bits: int) -> Values:
    """Stored values from 0 up; every kind has something that a carrier must leave alone."""
    top = (1 << bits) - 1
    y, x = np.mgrid[:rows, :columns]
    wave = np.sin(y / rng.uniform(9, 60) + rng.uniform(0, 6)) * np.cos(x / rng.uniform(9, 60))
    level = top * rng.uniform(0.2, 0.6)
    sigma = top * 10 ** rng.uniform(-3.6, -1.6)
    picture = level * (1 + 0.5 * wave) + rng.normal(0, sigma, (rows, columns))
    if scene == "air":
        picture[(y - rows / 2) ** 2 + (x - columns / 2) ** 2 > (min(rows, columns) / 2.3) ** 2] = 0
    elif scene == "saturated":
        picture = np.clip(picture, level * 0.8, level * 1.2)
    elif scene == "rician":
        picture = np.hypot(np.maximum(picture - level, 0), rng.normal(0, sigma, (rows, columns)))
    elif scene == "texture":
        picture += 4 * sigma * rng.choice([-1, 1], (rows, columns))
    elif scene == "edges":
        picture += level * 0.4 * ((y // 7 + x // 11) % 2)
    elif scene == "dark":
        picture = np.maximum(rng.poisson(rng.uniform(0.5, 9), (rows, columns)) - 1, 0)
    return np.clip(np.rint(picture), 0, top).astype(np.int64).astype(np.int32)


# --- carriers by themselves ---


def _check_segmented(case: Case) -> tuple[int, dict[str, bytes]]:
    words, fmt, nbits = case.words, case.fmt, 8 * len(case.payload)
    levels = choose_levels(case.values)
    found = segmented.suitability(words, fmt, levels, nbits)
    if not found.ok and found.reason != "modelled":  # a modelled plane costs more, and carries as well
        raise CarrierError(found.reason)
    salt = case.rng.bytes(16)
    done = segmented.embed(words, fmt, levels, case.payload, stego_key=case.key, salt=salt, start=found.start)
    where = (done.start, done.nbits)
    _must(segmented.extract(done.words, fmt, levels, *where, stego_key=case.key, salt=salt) == case.payload, "payload")
    exact = segmented.exact(done.words, fmt, levels, done.bitmap, *where)
    _must(np.array_equal(exact, words), "original")
    _must(
        segmented.untouched(done.words, fmt, levels, *where) == segmented.untouched(words, fmt, levels, *where), "aad"
    )
    other = segmented.extract(done.words, fmt, levels, *where, stego_key=_turned(case.key), salt=salt)
    _must(len(case.payload) < 8 or other != case.payload, "another key gave the payload")
    plane = _Plane.of(done.words, fmt, levels)
    window = np.packbits((plane.flat[plane.window(*where)] & 1).astype(np.uint8)).tobytes()
    change = int(np.abs(split_words(done.words, fmt)[0] - case.values).max())
    return change, {"segmented windows": window} if len(window) >= LENGTH_CLASSES[0] else {}


def _cover(case: Case, values: Values) -> Cover:
    return cover_of(values, case.fmt, case.padding)


def _check_self_contained(case: Case) -> tuple[int, dict[str, bytes]]:
    cover, salt = _cover(case, case.values), _salt(case, "self-contained")
    done = selfcontained.embed(cover, case.payload, stego_key=case.key, salt=salt)
    _lawful(case, cover, done.values)
    back = _cover(case, done.values)
    _must((back.low, back.high, back.barred) == (cover.low, cover.high, cover.barred), "rules differ for the receiver")
    message, original = selfcontained.extract(back, stego_key=case.key, salt=salt)
    _must(message == case.payload, "payload")
    _must(np.array_equal(original, case.values), "original")
    wrong = int(case.rng.integers(3))
    if wrong == 0:
        _must(_refuses(back, _turned(case.key), salt), "another key was accepted")
    elif wrong == 1:
        _must(_refuses(back, case.key, _turned(salt)), "another salt was accepted")
    else:
        changed = np.argwhere(done.values != case.values)
        damaged = done.values.copy()
        row, column = changed[int(case.rng.integers(len(changed)))]
        damaged[row, column] = case.values[row, column]
        _must(_refuses(_cover(case, damaged), case.key, salt), "damage was accepted")
    return done.max_change, {"self-contained capsules": message} if len(message) >= CAPSULE_CLASSES[0] else {}


def _refuses(cover: Cover, key: bytes, salt: bytes) -> bool:
    try:
        selfcontained.extract(cover, stego_key=key, salt=salt)
    except SealError:
        return True
    return False


def _check_hidden(case: Case) -> tuple[int, dict[str, bytes]]:
    cover, salt = with_wet_plateaus(_cover(case, case.values)), _salt(case, "hidden")
    done = hidden.embed(cover, case.payload, stego_key=case.key, salt=salt)
    _lawful(case, cover, done.values)
    _must(int(np.abs(done.values - case.values).max()) <= 1, "a change by more than one")
    message = hidden.extract(done.values, len(case.payload), stego_key=case.key, salt=salt)
    _must(message == case.payload, "payload")
    _must(np.array_equal(hidden.restore(done.values, done.changes), case.values), "original")
    other = hidden.extract(done.values, len(case.payload), stego_key=_turned(case.key), salt=salt)
    _must(len(case.payload) < 8 or other != case.payload, "another key gave the payload")
    _must(_restores_nothing_else(case, done), "the change map fits another frame")
    return 1, {"hidden capsules": message} if len(message) >= CAPSULE_CLASSES[0] else {}


def _restores_nothing_else(case: Case, done: hidden.Hidden) -> bool:
    """Damage at a changed sample is noticed by the change map."""
    damaged = done.values.copy()
    row, column = (int(n) for n in np.argwhere(done.values != case.values)[0])
    damaged[row, column] = case.values[row, column]
    try:
        hidden.restore(damaged, done.changes)
    except CarrierError:
        return True
    return False


def _lawful(case: Case, cover: Cover, values: Values) -> None:
    """Range, lattice, barred values."""
    changed = values != case.values
    _must(np.array_equal(lattice(values), lattice(case.values)), "the lattice was touched")
    _must(bool(((values >= cover.low) & (values <= cover.high))[changed].all()), "range")
    barred = np.array(cover.barred, dtype=np.int32)
    _must(not np.isin(values[changed], barred).any(), "a barred value was made")
    _must(not np.isin(case.values[changed], barred).any(), "a barred value was changed")
    outside = (case.values < cover.low) | (case.values > cover.high)
    _must(not (changed & outside).any(), "padding at the end of the range was changed")
    if cover.wet is not None:
        _must(not (changed & cover.wet).any(), "a wet sample was changed")


# --- whole files ---


def _file(case: Case) -> bytes:
    patient = f"P{int(case.rng.integers(40)):03d}"
    changes: dict[str, object] = {
        "PixelRepresentation": int(case.fmt.signed),
        "PatientID": patient,
        "PatientName": f"Name^{patient}",
        "SOPInstanceUID": f"1.2.3.{int(case.rng.integers(1 << 40))}",
    }
    syntax = str(case.rng.choice([IMPLICIT, EXPLICIT, BIG]))
    return image([case.words], syntax=syntax, stored=case.fmt.bits_stored, **changes)


def _check_archive_object(case: Case) -> tuple[int, dict[str, bytes]]:
    data, ring = _file(case), _ring[0]
    made = build_candidate(data, FACTS, ring)
    _must(restore(made.envelope, ring).data == data, "file")
    return 0, {"archive objects' windows": _archived_window(made.envelope)} if made.carrier == "segmented" else {}


def _archived_window(envelope: bytes) -> bytes:
    """The bits of the window that carries the record, as any reader of the archive object sees them."""
    sections = box.parse(parse_envelope(envelope).container)
    carrier = box.unpack_carrier(sections[SectionType.CARRIER])
    frame = decode_frame(bytes(box.unpack_frames(sections[SectionType.FRAMES])[carrier.frame]))
    plane = _Plane.of(frame.words, frame.fmt, frame.levels)
    return np.packbits((plane.flat[plane.window(carrier.start, carrier.nbits)] & 1).astype(np.uint8)).tobytes()


def _check_stego_object(case: Case) -> tuple[int, dict[str, bytes]]:
    data, ring = _file(case), _ring[0]
    mode: Mode = "hidden" if case.rng.integers(2) else "self-contained"
    apart = mode == "hidden" or bool(case.rng.integers(2))
    made = make_stego(data, FACTS, ring, mode=mode, side="archive" if apart else "inline")
    back = open_stego(made.part10, ring, restoration=made.restoration)
    _must(back.exact and back.data == data, "file")
    cut = made.part10[: -int(case.rng.integers(2, 4000))]
    _must(_not_opened(cut, ring, made.restoration), "a cut object was opened")
    return made.report.max_change, {}


def _not_opened(data: bytes, ring: KeyRing, restoration: bytes | None) -> bool:
    try:
        open_stego(data, ring, restoration=restoration)
    except PalimpsestError:
        return True
    return False


_CHECKS = {
    "segmented": _check_segmented,
    "self-contained": _check_self_contained,
    "hidden": _check_hidden,
    "archive object": _check_archive_object,
    "stego object": _check_stego_object,
}


def _salt(case: Case, mode: str) -> bytes:
    return fingerprint(case.values, case.fmt.bits_stored, case.fmt.signed, mode)


def _turned(secret: bytes) -> bytes:
    return bytes([secret[0] ^ 1]) + secret[1:]


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)
