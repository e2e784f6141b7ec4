"""What the index learns of an instance: attributes for QIDO-RS and the DICOM JSON metadata for WADO-RS (PS3.18 F).

Reading is tolerant: an odd element is left out, an odd file gets the identifiers that `peek` found at the door.
Indexing never fails an instance, and never writes one: parsing here is for looking only, what is given back is
always spliced bytes.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import BaseTag

from gateway.audit_subject import audit_subject
from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, NotFound
from gateway.index_rejection import REJECTIONS
from gateway.index_rows import InstanceRow
from gateway.index_search import ACCESSION_PSEUDONYM, COLUMNS
from gateway.part10 import DEFLATED, pixel_digest, read_meta, walk
from gateway.pseudonym import pseudonym_accession

__all__ = ["Description", "describe", "index_by_door", "index_instance", "metadata_of", "rejected_by"]

DEFER_BYTES = 64 << 10  # longer values are not read at all
INLINE_BYTES = 1024  # longer binary values are bulk data: the metadata refer to them (PS3.18 F.2.6)
SEQUENCE_BYTES = 64 << 20  # longer sequences are left out
PIXEL_GROUP_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
#: What may be bulk data (PS3.18 F.2.6).
BULK_VRS = frozenset(("DS", "FL", "FD", "IS", "LT", "OB", "OD", "OF", "OL", "OV", "OW"))
BULK_VRS |= frozenset(("SL", "SS", "ST", "SV", "UC", "UL", "UN", "US", "UT", "UV"))
KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
UTF8 = "ISO_IR 192"  # JSON is UTF-8, whatever the file was (PS3.18 F.2)

#: What reading an odd file or element raises in pydicom, numpy and the standard library below it.
ODD = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Description:
    """attributes: DICOM keyword -> text or whole number, only what is there; metadata_json: one DICOM JSON object as
    text.

    complete: False when the file could not be read as a whole and this holds only what could be.
    """

    attributes: dict[str, str | int]
    metadata_json: str
    complete: bool


def describe(source: Path | bytes, known: Mapping[str, str]) -> Description:
    """Attributes and metadata of a Part 10 file.

    known: identifiers from the door (keyword -> UID); they win over what pydicom reads, so that both always agree.
    Raises OSError if the file cannot be opened, nothing for odd ones.
    """
    known = {keyword: value for keyword, value in known.items() if value}
    dataset = _read(source)
    if dataset is None:
        return Description(dict(known), json.dumps(_minimal(known)), complete=False)
    attributes = {**_attributes(dataset), **known}
    try:
        metadata = {**_json(dataset), **_pixel_references(source), **_minimal(known)}
        text = json.dumps(dict(sorted(metadata.items())), allow_nan=False)
    except ODD:
        return Description(attributes, json.dumps(_minimal(known)), complete=False)
    return Description(attributes, text, complete=True)


def index_instance(gw: Gateway, instance_id: int) -> bool:
    """Read a spooled instance and write attributes, metadata and pixel digest to the index; False if only partly
    readable.

    Idempotent. Version or conflict was decided at the door; the pixel digest recorded here lets the door decide the
    next one. Raises NotFound if the file is gone from the spool before it was indexed, OSError, Unavailable.
    """
    row = gw.index.get(instance_id)
    if row.indexed_at is not None:
        return True
    if not gw.spool.exists(row.digest):
        raise NotFound("not-spooled", "the instance is not in the spool any more")
    path = gw.spool.path(row.digest)
    described = describe(path, _identifiers(row))
    if row.sop_class == KEY_OBJECT_SELECTION and (note := rejected_by(described.metadata_json)):
        code, named = note  # before the row counts as indexed: a kill between must not lose it
        allowed = gw.settings.allows_rejection_ae(row.calling_ae)
        gw.index.rejection_add(row.id, code, named, quality=gw.settings.rejected_quality, allowed=allowed)
    patient = str(described.attributes.get("PatientID") or "").strip()
    subject = audit_subject(gw, patient, row.study_uid or str(described.attributes.get("StudyInstanceUID") or ""))
    values = {**described.attributes, **accession_of(gw, described.attributes)}
    gw.index.set_attributes(row.id, values, described.metadata_json, pixel_digest(path), subject)
    return described.complete


def accession_of(gw: Gateway, attributes: Mapping[str, str | int]) -> dict[str, str]:
    """The Accession Number's pseudonym, where there is one: what an administrator may search by."""
    accession = str(attributes.get("AccessionNumber") or "")
    return {ACCESSION_PSEUDONYM: pseudonym_accession(accession, gw.keys.pseudonym_key())} if accession else {}


def rejected_by(metadata_json: str) -> tuple[str, list[tuple[str, str]]] | None:
    """(code, (study, SOP instance) of what it names) of a Key Object Selection that is a rejection note, else None.

    The document title is the Concept Name of the root (PS3.3 C.17.6.2), the instances are those of the Current
    Requested Procedure Evidence Sequence (PS3.3 C.17.2.3), which lists all that the document references.
    """
    root = json.loads(metadata_json)
    code = next(
        (_first(title, "00080100") for title in _items(root, "0040A043") if _first(title, "00080102") == "DCM"), ""
    )
    if code not in REJECTIONS:
        return None
    named = [
        (_first(study, "0020000D"), _first(instance, "00081155"))
        for study in _items(root, "0040A375")
        for series in _items(study, "00081115")
        for instance in _items(series, "00081199")
    ]
    return code, [(study, uid) for study, uid in named if 0 < len(study) <= 64 and 0 < len(uid) <= 64]


def _items(node: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    return [item for item in (node.get(tag) or {}).get("Value") or [] if isinstance(item, Mapping)]


def _first(node: Mapping[str, Any], tag: str) -> str:
    return str(next(iter((node.get(tag) or {}).get("Value") or []), "")).strip()


def index_by_door(gw: Gateway, instance_id: int) -> None:
    """Index an instance by what the door knew alone: for files whose reading broke the task itself."""
    known = _identifiers(gw.index.get(instance_id))
    gw.index.set_attributes(instance_id, known, json.dumps(_minimal(known)))


def _identifiers(row: InstanceRow) -> dict[str, str]:
    """The four UIDs as the door read them, where it found them."""
    found = {
        "SOPClassUID": row.sop_class,
        "SOPInstanceUID": row.sop_uid,
        "StudyInstanceUID": row.study_uid,
        "SeriesInstanceUID": row.series_uid,
    }
    return {keyword: value for keyword, value in found.items() if value}


def metadata_of(source: Path | bytes) -> str:
    """The DICOM JSON metadata of a file, as text; what cannot be read is left out."""
    return describe(source, {}).metadata_json


def _read(source: Path | bytes) -> Dataset | None:
    """The data set without pixel data; values above DEFER_BYTES stay on disk. None if pydicom can make nothing of
    it.
    """
    with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # pydicom goes back for a deferred value by the file's name
            defer = None if isinstance(source, bytes) else DEFER_BYTES
            return pydicom.dcmread(file, force=True, stop_before_pixels=True, defer_size=defer)
        except ODD:
            return None


def _attributes(dataset: Dataset) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for keyword, (_, _, matching) in COLUMNS.items():
        value = _first_value(dataset, keyword, numeric=matching == "number")
        if value is not None and value != "":
            found[keyword] = value
    return found


def _first_value(dataset: Dataset, keyword: str, *, numeric: bool) -> str | int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = dataset.get(keyword)
            if value is None:
                return None
            if isinstance(value, (pydicom.multival.MultiValue, list)):
                value = value[0] if numeric else "\\".join(str(item) for item in value)
            return int(value) if numeric else str(value).replace("\0", "").strip()
        except ODD:
            return None


def _json(dataset: Dataset) -> dict[str, Any]:
    """DICOM JSON of every element that can be read; elements that cannot are left out one by one.

    A BulkDataURI is relative to the instance: 'bulkdata/' and a path as gateway/elements.py reads it.
    """
    result: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, raw in list(dataset.items()):  # as read: asking for an element would fetch a deferred value
            # group lengths are not part of the JSON model (PS3.18 F.2.2)
            if tag.element == 0 or tag in PIXEL_GROUP_TAGS:
                continue
            if _is_deferred(raw):
                result.update(_deferred_json(dataset, tag, raw))
            else:
                result.update(_element_json(dataset, tag))
    if "00080005" in result:
        result["00080005"] = {"vr": "CS", "Value": [UTF8]}
    return result


def _deferred_json(dataset: Dataset, tag: BaseTag, raw: Any) -> dict[str, Any]:
    """A long value: sequences are read after all, other values become references."""
    try:
        vr = str(raw.VR or dictionary_VR(tag))
    except KeyError:
        vr = "UN"
    if vr == "SQ" and raw.length <= SEQUENCE_BYTES:
        return _element_json(dataset, tag)
    vr = "OW" if " or " in vr else vr
    return {_name(tag): {"vr": vr, "BulkDataURI": f"bulkdata/{_name(tag)}"}} if vr in BULK_VRS else {}


def _element_json(dataset: Dataset, tag: BaseTag) -> dict[str, Any]:
    try:
        element = dataset[tag]
        return {_name(tag): _with_references(element.to_json_dict(lambda _: "", 1 << 30), f"bulkdata/{_name(tag)}")}
    except ODD:
        return {}


def _name(tag: int) -> str:
    return f"{int(tag):08X}"


def _with_references(element: Any, path: str) -> Any:
    """A JSON element with references instead of long binary values, and with numbers JSON has."""
    if len(element.get("InlineBinary", "")) > INLINE_BYTES * 4 // 3:
        return {"vr": element["vr"], "BulkDataURI": path}
    if element.get("vr") == "SQ" and element.get("Value"):
        items = enumerate(element["Value"], 1)
        return {"vr": "SQ", "Value": [_item_json(item, f"{path}/{number}") for number, item in items]}
    return _finite(element)


def _item_json(item: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {tag: _with_references(element, f"{path}/{tag}") for tag, element in item.items()}


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_finite(item) for item in node]
    if isinstance(node, float) and not math.isfinite(node):
        # strings, as PS3.18 F.2.3 allows for numbers
        return "NaN" if math.isnan(node) else ("inf" if node > 0 else "-inf")
    return node


def _pixel_references(source: Path | bytes) -> dict[str, Any]:
    """The elements of pixel data, whose values are always bulk data; nothing of a file that cannot be walked."""
    with _mapped(source) as data:
        try:
            syntax, offset = read_meta(data)
            if syntax in DEFLATED:
                return {}
            found = [element for element in walk(data, syntax, offset) if element.tag in PIXEL_GROUP_TAGS]
        except InvalidInstance:
            return {}
        return {
            _name(each.tag): {"vr": each.vr or "OW", "BulkDataURI": f"bulkdata/{_name(each.tag)}"} for each in found
        }


@contextmanager
def _mapped(source: Path | bytes) -> Iterator[bytes | mmap.mmap]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _is_deferred(element: Any) -> bool:
    return isinstance(element, RawDataElement) and element.value is None and element.length > 0


def _minimal(known: Mapping[str, str]) -> dict[str, Any]:
    tags: Iterable[tuple[str, str]] = (
        ("00080016", "SOPClassUID"),
        ("00080018", "SOPInstanceUID"),
        ("0020000D", "StudyInstanceUID"),
        ("0020000E", "SeriesInstanceUID"),
    )
    return {tag: {"vr": "UI", "Value": [known[keyword]]} for tag, keyword in tags if keyword in known}
