"""The header of a stego object: a de-identified image's, that says it is derived, and of which image.

PS3.3: Image Type value 1 (C.7.6.1.1.2), Derivation Description and Code Sequence (C.7.6.1.1.3), Source Image Sequence
(C.7.6.1.1.4). PS3.15 E.1: the header of the source is de-identified first. A hidden object's header holds nothing that
would not stand in any de-identified image.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import dcmwrite
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID

from gateway.errors import IntegrityError, PolicyRefused, Unsupported
from gateway.part10 import EXPLICIT_LE
from worker.attributes import Data, DataSet
from worker.deid import deidentify, refuse_unsafe_pixels
from worker.deid_profile import Profile
from worker.envelope import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, PRIVATE_GROUP

CREATOR: Final = "PALIMPSEST STEGO"
FORMAT_NAME: Final = "palimpsest-stego-object/1"
CODING_SCHEME: Final = "99PALIMPSEST"
_FORMAT, _CONTAINER = 0x01, 0x10
_CREATORS = range(PRIVATE_GROUP << 16 | 0x10, (PRIVATE_GROUP << 16 | 0xFF) + 1)
_MAX_CONTAINER = 0xFFFFFFFE
_DESCRIPTIONS = {
    "self-contained": "Palimpsest: identity sealed inside the pixels, reversibly; samples changed by at most {change}",
    "hidden": "De-identified derived image; pixel values within {change} of the source",
}
_HIDDEN_METHOD = "PS3.15 Annex E Basic Profile"
#: what pydicom raises on data sets that are not as they should be
_FAILURES = (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, IndexError, OSError, EOFError)


def read_header(data: Data) -> Dataset:
    """The data set as pydicom sees it. Raises Unsupported ``header``."""
    try:
        return dcmread(io.BytesIO(bytes(data)))
    except (InvalidDicomError, *_FAILURES) as error:
        raise Unsupported("header", "the header cannot be read") from error


def check_deidentifiable(source: Dataset, profile: Profile) -> None:
    """Raises Unsupported with the reasons of `worker.deid.refuse_unsafe_pixels`."""
    try:
        refuse_unsafe_pixels(source, profile)
    except PolicyRefused as error:
        raise Unsupported(error.reason, error.message) from error


def stego_header(source: Dataset, profile: Profile, key: bytes, *, mode: str, uid: str) -> Dataset:
    """The header, its pixels still the source's. key: the ring's pseudonym key. uid: of the new instance.

    Raises Unsupported with the reasons of `worker.deid.refuse_unsafe_pixels`, and ``header``.
    """
    try:
        out = deidentify(source, profile, key).dataset
        _derived(out, mode, uid)
        _file_meta(out, mode, uid)
    except PolicyRefused as error:
        raise Unsupported(error.reason, error.message) from error
    except _FAILURES as error:
        raise Unsupported("header", "the header cannot be de-identified") from error
    return out


def write_stego(header: Dataset, frames: list[NDArray[np.uint8] | NDArray[np.uint16]], container: bytes) -> bytes:
    """The Part 10 file, Explicit VR Little Endian, native pixels. container: sealed, b'' for none in the header.

    Raises Unsupported ``header`` when pydicom cannot write it, ``too-large``.
    """
    if len(container) > _MAX_CONTAINER:
        raise Unsupported("too-large", "the sealed part does not fit one element")
    pixels = b"".join(np.ascontiguousarray(words, f"<u{words.itemsize}").tobytes() for words in frames)
    try:
        header.PixelData = pixels + bytes(len(pixels) & 1)
        header["PixelData"].VR = "OW" if frames[0].itemsize == 2 else "OB"
        if container:
            block = header.private_block(PRIVATE_GROUP, CREATOR, create=True)
            block.add_new(_FORMAT, "LO", FORMAT_NAME)
            block.add_new(_CONTAINER, "OB", container + bytes(len(container) & 1))
        out = io.BytesIO()
        dcmwrite(out, header, implicit_vr=False, little_endian=True, enforce_file_format=True)
    except _FAILURES as error:
        raise Unsupported("header", "the de-identified header cannot be written") from error
    return out.getvalue()


def describe(header: Dataset, mode: str, max_change: int) -> None:
    """Derivation Description (0008,2111): what was done, and by how much at most."""
    header.DerivationDescription = _DESCRIPTIONS[mode].format(change=max_change)


def refresh_range(header: Dataset, least: int, most: int) -> None:
    """Smallest and Largest Image Pixel Value (0028,0106/0107), and those of the series, where present."""
    vr = "SS" if header.get("PixelRepresentation") == 1 else "US"
    for tag, value in ((0x00280106, least), (0x00280107, most)):
        if tag in header:
            header.add_new(tag, vr, value)
    if isinstance(header.get(0x00280108) and header[0x00280108].value, int):
        header.add_new(0x00280108, vr, min(least, header[0x00280108].value))
    if isinstance(header.get(0x00280109) and header[0x00280109].value, int):
        header.add_new(0x00280109, vr, max(most, header[0x00280109].value))


def find_container(header: DataSet) -> memoryview | None:
    """The sealed container in a stego object's header, wherever a PACS moved the block to; None where there is none."""
    for tag in _CREATORS:
        if _text(header, tag) != CREATOR:
            continue
        block = PRIVATE_GROUP << 16 | (tag & 0xFF) << 8
        element = header.elements.get(block | _CONTAINER)
        if element is None:
            raise IntegrityError("stego-damaged", "the sealed part of the header is missing")
        return memoryview(header.data)[element.value_offset : element.end]
    return None


def _text(header: DataSet, tag: int) -> str:
    return header.ascii(tag) if tag in header.elements else ""


def _derived(out: Dataset, mode: str, uid: str) -> None:
    source_class, source_uid = str(out.SOPClassUID), str(out.SOPInstanceUID)
    out.SOPInstanceUID = UID(uid)
    out.ImageType = ["DERIVED", *(_values(out, "ImageType")[1:] or ["PRIMARY"])]
    for frame_type in _frame_types(out):
        frame_type.FrameType = ["DERIVED", *_values(frame_type, "FrameType")[1:]]
    if mode == "self-contained":
        out.DerivationCodeSequence = [_code("REVERSIBLE-1", CODING_SCHEME, "Reversible embedding of sealed identity")]
    else:
        _without_own_codes(out)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source_class, source_uid
    purpose = _code("121322", "DCM", "Source image for image processing operation")
    reference.PurposeOfReferenceCodeSequence = [purpose]
    out.SourceImageSequence = [reference]


def _without_own_codes(out: Dataset) -> None:
    """A source that was a self-contained object itself says so, which a hidden object made from it must not."""
    codes = out.get("DerivationCodeSequence") or []
    others = [code for code in codes if code.get("CodingSchemeDesignator") != CODING_SCHEME]
    if len(others) < len(codes):
        del out.DerivationCodeSequence
        if others:
            out.DerivationCodeSequence = others


def _file_meta(out: Dataset, mode: str, uid: str) -> None:
    """A hidden object is written by no one in particular: as any tool built on pydicom writes."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = out.SOPClassUID
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = UID(EXPLICIT_LE)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    if mode == "hidden":
        meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
        del meta.ImplementationVersionName  # pydicom writes its own
        out.DeidentificationMethod = _HIDDEN_METHOD
        out.PatientName = out.get("PatientID", "")  # the pseudonym, without our name before it
    out.file_meta = meta
    out.preamble = bytes(128)


def _frame_types(out: Dataset) -> Iterator[Dataset]:
    """Items that hold a Frame Type, in the functional groups of an enhanced image (PS3.3 C.7.6.16)."""
    for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for item in out.get(name) or ():
            for element in item:
                if element.VR == "SQ":
                    yield from (macro for macro in element.value if "FrameType" in macro)


def _values(item: Dataset, name: str) -> list[str]:
    value = item.get(name)
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
