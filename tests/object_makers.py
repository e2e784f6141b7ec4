"""DICOM files made for the archive-object tests: generated pixels, known identity, any layout."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from worker.identity import Provenance

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
RLE, HTJ2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.201"
FACTS = Provenance("2026-03-04T05:06:07+00:00", "dimse", "SENDER", "palimpsest test")
IDENTITY = {
    "PatientName": "Quastenflosser^Wilhelmine",
    "PatientID": "PID-77120-X",
    "PatientBirthDate": "19410923",
    "AccessionNumber": "ACC9938812",
    "StudyDate": "20190817",
    "StudyTime": "131517.123456",
    "InstitutionName": "Hospital of Nowhere-upon-Sea",
    "StudyDescription": "Thorax mit KM",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.11111111111111111111",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.22222222222222222222",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.33333333333333333333",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.44444444444444444444",
}


def packaged(name: str) -> bytes:
    """A file that comes with pydicom."""
    path = get_testdata_file(name, download=False)
    assert path is not None, f"pydicom no longer ships {name}"
    return Path(str(path)).read_bytes()


def outside_uids(data: bytes) -> bytes:
    """`data` without random UIDs (2.25 and up to 39 digits, PS3.5 B.2): by chance one of them holds any date."""
    return re.sub(rb"2\.25\.[0-9]+", b"", data)


def noisy(rows: int = 96, columns: int = 96, *, noise: int = 32, seed: int = 1) -> npt.NDArray[np.uint16]:
    """A smooth 12-bit slope with uniform noise: its lowest planes are raw, so they can carry."""
    slope = np.add.outer(np.arange(rows) * 5, np.arange(columns) * 3) + 400
    return (slope + np.random.default_rng(seed).integers(0, noise, (rows, columns))).astype(np.uint16)


def header(**changes: object) -> Dataset:
    """A CT image's data set without pixels."""
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.Modality = "CT"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelRepresentation = 0
    for name, value in {**IDENTITY, **changes}.items():
        setattr(ds, name, value)
    return ds


def image(
    frames: Sequence[npt.NDArray[np.generic]],
    *,
    syntax: str = EXPLICIT,
    stored: int | None = None,
    planar: int = 0,
    tail: bytes = b"",
    vr: str = "OW",
    **changes: object,
) -> bytes:
    """A Part 10 file with native pixels: `frames` of uint8 or uint16 words, shape (rows, columns[, 3])."""
    ds = _described(frames[0], stored, planar, len(frames), changes)
    big = syntax == BIG
    laid = [f.transpose(2, 0, 1) if f.ndim == 3 and planar else f for f in frames]
    value = b"".join(np.ascontiguousarray(f, f.dtype.newbyteorder(">" if big else "<")).tobytes() for f in laid)
    value += b"\0" * (len(value) & 1)
    if big and vr == "OW" and frames[0].dtype == np.uint8:
        value = np.frombuffer(value, "<u2").byteswap().tobytes()
    ds.PixelData = value + tail
    ds["PixelData"].VR = vr
    return save(ds, syntax)


def compressed(
    frames: Sequence[npt.NDArray[np.generic]],
    streams: Sequence[bytes],
    *,
    syntax: str,
    stored: int | None = None,
    **changes: object,
) -> bytes:
    """A Part 10 file with encapsulated `streams`, one a frame, described as `frames`."""
    ds = _described(frames[0], stored, 0, len(frames), changes)
    ds.PixelData = encapsulate(list(streams))
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return save(ds, syntax)


def save(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    """Part 10 bytes."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    dcmwrite(out, ds, enforce_file_format=True, implicit_vr=syntax == IMPLICIT, little_endian=syntax != BIG)
    return out.getvalue()


def _described(
    frame: npt.NDArray[np.generic], stored: int | None, planar: int, count: int, changes: dict[str, object]
) -> Dataset:
    ds = header()
    bits = frame.dtype.itemsize * 8
    ds.Rows, ds.Columns = frame.shape[:2]
    ds.BitsAllocated, ds.BitsStored = bits, stored or bits
    ds.HighBit = ds.BitsStored - 1
    if frame.ndim == 3:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", planar
    if count > 1:
        ds.NumberOfFrames = str(count)
    for name, value in changes.items():
        setattr(ds, name, value)
    return ds
