"""A Part 10 file from metadata and bulk data (PS3.18 8.6.1.2.2, 10.5.1; DICOM JSON: F.2).

Pixel data are copied from their files as they are; everything else of a data set is held in memory, and is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import BytesLengthException
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

from gateway.errors import InvalidInstance
from gateway.part10 import EXPLICIT_LE

__all__ = ["Bulk", "BulkOf", "write_part10"]

CHUNK: Final = 1 << 20
#: Bulk data of one instance other than its pixels.
MEMORY_BYTES: Final = 64 << 20
PIXELS: Final = {"7FE00008": (0x7FE00008, "OF"), "7FE00009": (0x7FE00009, "OD"), "7FE00010": (0x7FE00010, "OW")}
UTF8: Final = "ISO_IR 192"
_NUMBERS: Final = {"SS": "h", "US": "H", "SL": "i", "UL": "I", "SV": "q", "UV": "Q", "FL": "f", "FD": "d"}
_BYTES: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
#: What reading or writing an odd data set raises in pydicom and below it.
ODD: Final = (
    ArithmeticError, AttributeError, BytesLengthException, LookupError, NotImplementedError, RecursionError, TypeError,
    ValueError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bulk:
    """A part of bulk data in a file. syntax: the transfer syntax of its media type, '' for none."""

    path: Path
    size: int
    syntax: str = ""


#: The parts under one URI, in their order. Raises InvalidInstance.
BulkOf = Callable[[str], list[Bulk]]


def write_part10(metadata: Mapping[str, Any], bulk_of: BulkOf, write: Callable[[bytes], None]) -> None:
    """Write the file of one DICOM JSON data set. Explicit VR Little Endian, or the transfer syntax of its pixel data.

    Raises InvalidInstance ``bad-metadata``, ``pixel-data-length``, ``bulk-data-too-large``, ``mixed-syntaxes`` and
    those of `bulk_of`.
    """
    elements = {tag.upper(): element for tag, element in metadata.items() if not tag.startswith("0002")}
    pixels = [(tag, elements.pop(tag)) for tag in PIXELS if "BulkDataURI" in _mapping(elements.get(tag, {}))]
    if len(pixels) > 1:
        raise InvalidInstance("bad-metadata", "A data set has one pixel data element.")
    frames = bulk_of(str(pixels[0][1]["BulkDataURI"])) if pixels else []
    syntaxes = {part.syntax for part in frames} - {""}
    if len(syntaxes) > 1:
        raise InvalidInstance("mixed-syntaxes", "The frames of one object have one transfer syntax.")
    syntax = syntaxes.pop() if syntaxes else EXPLICIT_LE
    try:
        dataset = Dataset.from_json(elements, _reader(bulk_of))
        _to_utf8(dataset)
        head = _meta(dataset, syntax) + _encoded(dataset[:0x7FE00000])
        tail = _encoded(dataset[0x7FE00000:])
    except ODD:
        raise InvalidInstance("bad-metadata", "The metadata are no data set of DICOM JSON or XML.") from None
    write(head)
    if pixels:
        for chunk in _pixel_data(pixels[0][0], str(pixels[0][1].get("vr", "")), frames, syntax, dataset):
            write(chunk)
    write(tail)


def _mapping(element: Any) -> Mapping[str, Any]:
    return element if isinstance(element, Mapping) else {}


def _reader(bulk_of: BulkOf) -> Callable[[str, str, str], Any]:
    """Values of bulk data other than pixels, as pydicom wants them."""
    total = 0

    def read(tag: str, vr: str, uri: str) -> Any:
        nonlocal total
        parts = bulk_of(uri)
        total += sum(part.size for part in parts)
        if total > MEMORY_BYTES:
            raise InvalidInstance("bulk-data-too-large", "Bulk data other than pixels are too long.")
        data = b"".join(part.path.read_bytes() for part in parts)
        if vr in _BYTES:
            return data
        if vr in _NUMBERS:
            size = struct.calcsize(_NUMBERS[vr])
            return list(struct.unpack(f"<{len(data) // size}{_NUMBERS[vr]}", data))
        text = data.decode("utf-8").rstrip("\0 ")
        return text.split("\\") if vr in ("DS", "IS", "UC") else text

    return read


def _to_utf8(dataset: Dataset) -> None:
    """JSON and XML are Unicode, whatever the object once was: the file says so, and no item says otherwise."""
    for element in dataset.iterall():
        if element.VR == "SQ":
            for item in element.value:
                item.pop("SpecificCharacterSet", None)
    dataset.SpecificCharacterSet = UTF8


def _meta(dataset: Dataset, syntax: str) -> bytes:
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    target = DicomBytesIO()
    write_file_meta_info(target, meta)
    return bytes(128) + b"DICM" + target.getvalue()


def _encoded(dataset: Dataset) -> bytes:
    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, False
    write_dataset(target, dataset, "utf-8")
    return target.getvalue()


def _pixel_data(tag: str, vr: str, frames: list[Bulk], syntax: str, dataset: Dataset) -> Iterator[bytes]:
    number, usual = PIXELS[tag]
    head = struct.pack("<HH", number >> 16, number & 0xFFFF)
    if syntax != EXPLICIT_LE:
        yield head + b"OB\0\0" + b"\xff" * 4 + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        for frame in frames:
            yield struct.pack("<HHI", 0xFFFE, 0xE000, frame.size + frame.size % 2)
            yield from _chunks(frame)
            yield b"\0" * (frame.size % 2)
        yield struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        return
    size = sum(frame.size for frame in frames)
    needed = _needed(dataset)
    if size < needed or size >= 0xFFFFFFFE:
        raise InvalidInstance("pixel-data-length", "The pixel data are shorter than the image, or over 4 GB.")
    yield head + (vr if vr in ("OB", "OW", "OF", "OD") else usual).encode() + b"\0\0"
    yield struct.pack("<I", size + size % 2)
    for frame in frames:
        yield from _chunks(frame)
    yield b"\0" * (size % 2)


def _needed(dataset: Dataset) -> int:
    """Bytes of native pixel data (PS3.5 8.1.1), 0 where the metadata do not tell."""
    names = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    numbers = [dataset.get(name) for name in names]
    if not all(isinstance(value, int) for value in numbers) or "422" in str(dataset.get("PhotometricInterpretation")):
        return 0
    try:
        frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        return 0
    rows, columns, samples, bits = (int(value) for value in numbers if value is not None)
    return (rows * columns * samples * bits * frames + 7) // 8


def _chunks(bulk: Bulk) -> Iterator[bytes]:
    file: BinaryIO
    with bulk.path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data
