"""Test objects for a destination's probe: generated pixels, test identifiers, nothing of any patient.

One study for each transfer syntax, for there are archives where one unreadable object makes the retrieval of its whole
study fail, and the others must not pay for it.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite

from gateway.errors import Unsupported
from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE, peek
from gateway.transfer_syntaxes import HTJ2K, JPEG_2000, JPEG_LS, JPEG_XL
from worker.envelope import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, Source, build_envelope
from worker.transcode import transcode

__all__ = ["PATIENT_ID", "PRIVATE_SYNTAX", "Canary", "canaries"]

PATIENT_ID: Final = "PALIMPSEST-PROBE"
PRIVATE_SYNTAX: Final = "2.25.311428173912683350429376811592842165037"
"""A syntax that nobody knows; the data set under it is Explicit VR Little Endian."""
SYNTAX_NAMES: Final = {
    EXPLICIT_LE: "Explicit LE", IMPLICIT_LE: "Implicit LE", JPEG_LS: "JPEG-LS", JPEG_2000: "JPEG 2000",
    HTJ2K: "HTJ2K", JPEG_XL: "JPEG XL", PRIVATE_SYNTAX: "private syntax",
}  # fmt: skip
CLASSES: Final = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
}
ROWS, COLUMNS = 60, 70  # not equal, and not a multiple of any block size
ENVELOPE_BYTES: Final = 70_001  # odd: padding is what peers change


@dataclass(frozen=True, slots=True)
class Canary:
    """One test object. name: for people; study, series, uid: its UIDs; syntax, sop_class: UIDs."""

    name: str
    sop_class: str
    syntax: str
    study: str
    series: str
    uid: str
    part10: bytes = field(repr=False)


def canaries() -> Iterator[Canary]:
    """The envelope, then every image class in every syntax that can be made of it; new UIDs each time."""
    yield _envelope(_uid())
    for syntax in SYNTAX_NAMES:
        study = _uid()
        for modality, sop_class in CLASSES.items():
            native = _image(modality, sop_class, study, _uid())
            try:
                part10 = _renamed(native) if syntax == PRIVATE_SYNTAX else transcode(native, syntax)
            except Unsupported:  # not every syntax takes every kind of pixels
                continue
            yield _canary(f"{modality} {SYNTAX_NAMES[syntax]}", part10)


def _uid() -> str:
    return f"2.25.{secrets.randbits(122)}"


def _envelope(study: str) -> Canary:
    """A real envelope around noise, with the probe's patient and study in place of pseudonyms."""
    source = Source(secrets.token_hex(32), "probe", study, study, _uid(), CLASSES["CT"])
    made = build_envelope(secrets.token_bytes(ENVELOPE_BYTES), source, "", secrets.token_bytes(32))
    dataset = dcmread(io.BytesIO(made))
    _identify(dataset, study)
    return _canary("envelope", _written(dataset))


def _canary(name: str, part10: bytes) -> Canary:
    found = peek(part10)
    study, series = str(found.study_uid), str(found.series_uid)
    return Canary(name, found.sop_class_uid, found.transfer_syntax, study, series, found.sop_instance_uid, part10)


def _image(modality: str, sop_class: str, study: str, uid: str) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID = sop_class, uid, _uid()
    dataset.Modality = "OT" if modality == "SC" else modality
    _identify(dataset, study)
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    dataset.ImageType = ["DERIVED", "SECONDARY"] if modality == "SC" else ["ORIGINAL", "PRIMARY"]
    dataset.Manufacturer = "Palimpsest"
    dataset.SeriesDescription = "Palimpsest probe, not a patient"
    dataset.BurnedInAnnotation = "NO"
    for keyword, value in _MODULES[modality].items():
        setattr(dataset, keyword, value)
    _pixels(dataset, modality)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, uid
    meta.TransferSyntaxUID = EXPLICIT_LE
    dataset.file_meta = meta
    return _written(dataset)


def _identify(dataset: Dataset, study: str) -> None:
    now = datetime.now(UTC)
    dataset.PatientName, dataset.PatientID = "PALIMPSEST^PROBE", PATIENT_ID
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyInstanceUID, dataset.StudyID, dataset.AccessionNumber = study, "PROBE", ""
    dataset.StudyDescription = "Palimpsest probe, not a patient"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.ContentDate, dataset.ContentTime = dataset.StudyDate, dataset.StudyTime


_MODULES: Final[dict[str, dict[str, Any]]] = {
    "CT": {
        "RescaleIntercept": "-1024", "RescaleSlope": "1", "RescaleType": "HU", "KVP": "120", "AcquisitionNumber": 1,
        "SliceThickness": "1", "PixelSpacing": ["1", "1"], "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "ImagePositionPatient": ["0", "0", "0"], "PositionReferenceIndicator": "", "PatientPosition": "HFS",
    },
    "MR": {
        "ScanningSequence": "SE", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "2D",
        "EchoTime": "10", "EchoTrainLength": 1, "RepetitionTime": "500", "SliceThickness": "1",
        "PixelSpacing": ["1", "1"], "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
        "ImagePositionPatient": ["0", "0", "0"], "PositionReferenceIndicator": "", "PatientPosition": "HFS",
    },
    "US": {"UltrasoundColorDataPresent": 1},
    "SC": {"ConversionType": "WSD"},
}  # fmt: skip


def _pixels(dataset: Dataset, modality: str) -> None:
    """Noise over a slope: CT signed 16 bit, MR 12 bit, US colour, SC 8 bit grey."""
    random = np.random.default_rng(secrets.randbits(64))
    slope = np.add.outer(np.arange(ROWS) * 11, np.arange(COLUMNS) * 7)
    dataset.Rows, dataset.Columns = ROWS, COLUMNS
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation = 0
    frame: npt.NDArray[Any]
    if modality == "CT":
        frame = (slope - 700 + random.integers(0, 40, slope.shape)).astype("<i2")
        dataset.PixelRepresentation = 1
        bits = 16
    elif modality == "MR":
        frame, bits = (slope + random.integers(0, 40, slope.shape)).astype("<u2"), 12
    elif modality == "US":
        frame, bits = random.integers(0, 256, (ROWS, COLUMNS, 3)).astype("u1"), 8
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    else:
        frame, bits = ((slope >> 3) + random.integers(0, 9, slope.shape)).astype("u1"), 8
    dataset.BitsAllocated = frame.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelData = frame.tobytes()
    dataset["PixelData"].VR = "OW" if frame.dtype.itemsize == 2 else "OB"


def _written(dataset: Dataset) -> bytes:
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def _renamed(part10: bytes) -> bytes:
    """The same data set under the private syntax."""
    dataset = dcmread(io.BytesIO(part10))
    dataset.file_meta.TransferSyntaxUID = PRIVATE_SYNTAX
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return out.getvalue()
