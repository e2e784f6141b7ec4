"""The Raw Data envelope: one container in a DICOM object that every PACS keeps and none can interpret.

SOP class Raw Data Storage (PS3.3 A.37, C.19), Explicit VR Little Endian, header pseudonymous in full (PS3.15 Basic
Profile): no value of the source's header stands in it but a standard SOP class. docs/archive-object.md lists the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from gateway.errors import IntegrityError, InvalidInstance
from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE, Element, read_meta, walk
from gateway.pseudonym import pseudonym_patient, pseudonym_uid

RAW_DATA_STORAGE = "1.2.840.10008.5.1.4.1.1.66"
IMPLEMENTATION_UID = "2.25.77300914418151267019759442746308931138"
IMPLEMENTATION_VERSION = "PALIMPSEST_1"
#: Creator-Version UID (0008,9123): one value per container version; a reader that does not know it must not interpret
CREATOR_VERSION_UID = "2.25.175932787189835437686638487071727131560"
CREATOR_VERSION_UIDS = {1: CREATOR_VERSION_UID, 2: "2.25.159930671431847081689948423739784549294"}
PRIVATE_GROUP = 0x4D51
PRIVATE_CREATOR = "PALIMPSEST ARCHIVE"
FORMAT_NAME = "palimpsest-archive-object/1"
DUMMY_DATE, DUMMY_TIME = "19700101", "000000"  # Content Date is Type 1; a true one would tell the day of the study
CHUNK_BYTES = 1 << 30  # container bytes in one OB element
FORMAT, BITSTREAM_DIGEST, PIXEL_DIGEST, LENGTH, FIRST_CHUNK = 0x01, 0x02, 0x03, 0x04, 0x10
_LONG_VRS = frozenset({"OB", "SQ", "UN", "UT"})
_MAX_TEXT = 64


@dataclass(frozen=True)
class Source:
    """The identifiers of the source that are replaced by pseudonyms, '' where the source has none.

    sealed_to: id of the patient's key: after a shredding the same file, sent again, makes another object. mates: SOP
    class and SOP Instance UID of the other instances of a group; file_sha256 is then `group_name`. generation: as in
    `envelope_uid`.
    """

    file_sha256: str
    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)
    sop_class: str = ""
    sealed_to: str = ""
    mates: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    generation: int = 0


@dataclass(frozen=True)
class Envelope:
    """A parsed envelope. `container` is checked against its clear digest; pixel_sha256 is '' for passthrough."""

    container: memoryview
    bitstream_sha256: str
    pixel_sha256: str


def envelope_uid(file_sha256: str, key: bytes, sealed_to: str = "", generation: int = 0) -> str:
    """SOP Instance UID of the envelope: keyed, and a function of what was received and whose key it is sealed to.

    So retries agree, and an archive that is written once never sees two objects under one name. generation: how often
    the instance was coded anew (worker/recode.py).
    """
    name = f"{file_sha256}/{sealed_to}" if sealed_to else file_sha256
    if generation:
        name = f"{name}/{generation}"
    return pseudonym_uid(f"palimpsest/envelope/1/{name}", key)


def group_name(file_digests: Sequence[str]) -> str:
    """What a group's envelope is derived from, as that of one instance is from its file's digest (hex)."""
    return sha256(b"palimpsest/group/v1\x00" + b"".join(map(bytes.fromhex, file_digests))).hexdigest()


def build_envelope(
    container: bytes,
    source: Source,
    pixel_sha256: str,
    key: bytes,
    *,
    encrypted: Sequence[tuple[str, bytes]] = (),
    version: int = 1,
) -> bytes:
    """The Part 10 file. Deterministic.

    key: the ring's pseudonym key. pixel_sha256: hex, '' where no exact pixels are in clear. encrypted: items of the
    Encrypted Attributes Sequence (0400,0500) as (transfer syntax of the content, CMS bytes), PS3.15 E.1.1. version: of
    the container.
    """
    uid = envelope_uid(source.file_sha256, key, source.sealed_to, source.generation)
    private = private_block(FORMAT_NAME, container, pixel_sha256)
    return part10(uid, _identity(source, uid, key, version) + _encrypted_attributes(encrypted) + private)


def part10(uid: str, body: bytes) -> bytes:
    """A Raw Data file of ours: preamble, file meta information (PS3.10 7.1) and data set."""
    meta = b"".join(
        (
            element(0x00020001, "OB", b"\x00\x01"),
            element(0x00020002, "UI", RAW_DATA_STORAGE),
            element(0x00020003, "UI", uid),
            element(0x00020010, "UI", EXPLICIT_LE),
            element(0x00020012, "UI", IMPLEMENTATION_UID),
            element(0x00020013, "SH", IMPLEMENTATION_VERSION),
        )
    )
    group = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    return b"".join((bytes(128), b"DICM", group, meta, body))


def _identity(source: Source, uid: str, key: bytes, version: int) -> bytes:
    """Patient, Study, Series, Equipment, Acquisition Context, Raw Data and SOP Common modules, in tag order."""
    study = source.study_uid or f"palimpsest/no-study/{source.file_sha256}"
    series = source.series_uid or f"palimpsest/no-series/{source.file_sha256}"
    sop = source.sop_uid or f"palimpsest/no-instance/{source.file_sha256}"
    references = [_reference(*each, key) for each in ((source.sop_class, sop), *source.mates)]
    # without a patient id the study stands in, so that one study never shows two patients
    patient = pseudonym_patient(source.patient_id, study, key)
    method = _code("113100", "DCM", "Basic Application Confidentiality Profile")
    own = {
        0x0008114A: sequence(0x0008114A, *references),
        0x00120062: element(0x00120062, "CS", "YES"),
        0x00120064: sequence(0x00120064, method),
        0x00280303: element(0x00280303, "CS", "REMOVED"),
    }
    names = Names(
        uid, f"PALIMPSEST^{patient}", patient, pseudonym_uid(study, key),
        pseudonym_uid(f"palimpsest/envelope-series/1/{series}", key), CREATOR_VERSION_UIDS[version],
    )  # fmt: skip
    return raw_data_header(names, own)


class Names(NamedTuple):
    """What tells a Raw Data object of ours from the others; version: Creator-Version UID (0008,9123)."""

    uid: str
    patient_name: str
    patient_id: str
    study: str
    series: str
    version: str


def raw_data_header(names: Names, own: Mapping[int, bytes]) -> bytes:
    """All elements before group 0400, in tag order: what every object of ours has, and its own by their tags."""
    shared = (
        (0x00080016, "UI", RAW_DATA_STORAGE),
        (0x00080018, "UI", names.uid),
        (0x00080020, "DA", ""),
        (0x00080023, "DA", DUMMY_DATE),
        (0x00080030, "TM", ""),
        (0x00080033, "TM", DUMMY_TIME),
        (0x00080050, "SH", ""),
        (0x00080060, "CS", "OT"),
        (0x00080070, "LO", "Palimpsest"),
        (0x00080090, "PN", ""),
        (0x00089123, "UI", names.version),
        (0x00100010, "PN", names.patient_name),
        (0x00100020, "LO", names.patient_id),
        (0x00100030, "DA", ""),
        (0x00100040, "CS", ""),
        (0x0020000D, "UI", names.study),
        (0x0020000E, "UI", names.series),
        (0x00200010, "SH", ""),
        (0x00200011, "IS", ""),
        (0x00200013, "IS", ""),
        (0x00200060, "CS", ""),
        (0x00400555, "SQ", ""),
    )
    every = {part[0]: element(*part) for part in shared} | own
    return b"".join(every[tag] for tag in sorted(every))


def _reference(sop_class: str, sop_uid: str, key: bytes) -> bytes:
    """An instance that the object holds."""
    shown = sop_class if sop_class.startswith("1.2.840.10008.") else RAW_DATA_STORAGE
    purpose = _code("121322", "DCM", "Source image for image processing operation")
    uids = element(0x00081150, "UI", shown) + element(0x00081155, "UI", pseudonym_uid(sop_uid, key))
    return uids + sequence(0x0040A170, purpose)


def _encrypted_attributes(items: Sequence[tuple[str, bytes]]) -> bytes:
    packed = [element(0x04000510, "UI", syntax) + element(0x04000520, "OB", content) for syntax, content in items]
    return sequence(0x04000500, *packed) if packed else b""


def private_block(name: str, content: bytes, pixel_sha256: str | None = None) -> bytes:
    """Our private block: name and version of the format, SHA-256 and length of the content, the content.

    pixel_sha256: hex of the exact pixels or '', None: no such element.
    """
    base = PRIVATE_GROUP << 16
    block = base | 0x1000
    out = [
        element(base | 0x10, "LO", PRIVATE_CREATOR),
        element(block | FORMAT, "LO", name),
        element(block | BITSTREAM_DIGEST, "LO", sha256(content).hexdigest()),
        element(block | PIXEL_DIGEST, "LO", pixel_sha256) if pixel_sha256 is not None else b"",
        element(block | LENGTH, "LO", str(len(content))),
    ]
    for index, start in enumerate(range(0, len(content), CHUNK_BYTES)):
        out.append(element(block | FIRST_CHUNK + index, "OB", content[start : start + CHUNK_BYTES]))
    return b"".join(out)


def _code(value: str, scheme: str, meaning: str) -> bytes:
    parts = ((0x00080100, "SH", value), (0x00080102, "SH", scheme), (0x00080104, "LO", meaning))
    return b"".join(element(*part) for part in parts)


def sequence(tag: int, *items: bytes) -> bytes:
    """A sequence of items with explicit lengths (PS3.5 7.5)."""
    return element(tag, "SQ", b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items))


def element(tag: int, vr: str, value: str | bytes = b"") -> bytes:
    """One element in Explicit VR Little Endian, padded to even length (PS3.5 6.2, 7.1.2)."""
    data = value.encode("ascii") if isinstance(value, str) else value
    if len(data) & 1:
        data += b"\0" if vr in ("UI", "OB") else b" "
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode("ascii"))
    return head + struct.pack("<HI" if vr in _LONG_VRS else "<H", *((0,) if vr in _LONG_VRS else ()), len(data)) + data


# --- reading it back, whatever a PACS did to the header ---


def parse_envelope(data: bytes | memoryview) -> Envelope:
    """Find the private block and put its chunks together.

    The header may have been rewritten (implicit VR, VR UN, another block number, another padding, added groups, a
    missing preamble). Raises IntegrityError: ``not-an-envelope``, ``envelope-damaged``.
    """
    values = _private_values(memoryview(data))
    if _text(values, FORMAT) != FORMAT_NAME:
        raise IntegrityError("not-an-envelope", "no archive object of a known version in this file")
    length = _text(values, LENGTH)
    chunks = [values[number] for number in range(FIRST_CHUNK, 0x100) if number in values]
    if not length.isdigit() or len(length) > 15 or sum(map(len, chunks)) < int(length):
        raise IntegrityError("envelope-damaged", "the archive object is cut off")
    container = (chunks[0] if len(chunks) == 1 else memoryview(_join(chunks)))[: int(length)]
    digest = sha256(container).hexdigest()
    if digest != _text(values, BITSTREAM_DIGEST):
        raise IntegrityError("envelope-damaged", "the archive object's digest does not match")
    return Envelope(container, digest, _text(values, PIXEL_DIGEST))


def format_of(data: bytes | memoryview) -> str:
    """Name and version of the format of what our private block holds, '' if there is none. Raises IntegrityError."""
    return _text(_private_values(memoryview(data)), FORMAT)


def _join(chunks: Sequence[memoryview]) -> bytes:
    # every chunk but the last is CHUNK_BYTES long (even), so no padding can stand between two
    return b"".join(chunks)


def _private_values(view: memoryview) -> dict[int, memoryview]:
    """Values of our private block by element number within the block."""
    blocks: set[int] = set()
    values: dict[int, memoryview] = {}
    try:
        for element in _elements(view):
            if element.tag >> 16 != PRIVATE_GROUP or element.undefined:
                continue
            number = element.tag & 0xFFFF
            value = view[element.value_offset : element.end]
            if 0x10 <= number <= 0xFF and _clean(value) == PRIVATE_CREATOR:
                blocks.add(number)
            elif number >> 8 in blocks:
                values[number & 0xFF] = value
    except InvalidInstance as error:
        raise IntegrityError("envelope-damaged", "the envelope cannot be read as DICOM") from error
    return values


def _elements(view: memoryview) -> Iterator[Element]:
    if bytes(view[128:132]) == b"DICM":
        syntax, offset = read_meta(view)
        return walk(view, syntax, offset)
    return walk(view, IMPLICIT_LE, 0)  # a bare data set; `walk` notices explicit VR by itself


def _text(values: dict[int, memoryview], number: int) -> str:
    return _clean(values.get(number, memoryview(b"")))


def _clean(value: memoryview) -> str:
    return bytes(value[:_MAX_TEXT]).decode("ascii", "replace").strip("\0 ")
