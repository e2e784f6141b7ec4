"""Generated studies for the viewer: a CT series, the same slice as HTJ2K, a multi-frame, a colour image."""

from __future__ import annotations

import io

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
US_CLASS = "1.2.840.10008.5.1.4.1.1.6.1"
US_MULTI_CLASS = "1.2.840.10008.5.1.4.1.1.3.1"
SIZE = 256


def uid(name: str) -> str:
    """A UID that depends on the name alone."""
    return generate_uid(entropy_srcs=["palimpsest viewer", name])


def _header(study: str, series: str, number: int, sop_class: str, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(f"{study}/{series}/{number}")
    ds = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(f"{study}/{series}")
    ds.FrameOfReferenceUID = uid(f"{study}/frame")
    ds.StudyDate = ds.SeriesDate = "20260102"
    ds.StudyTime = ds.SeriesTime = "101500"
    ds.StudyID, ds.AccessionNumber = "1", study[:16].upper()
    ds.PatientName, ds.PatientID = f"Phantom^{study.capitalize()}", f"PH-{study.upper()}"
    ds.PatientBirthDate, ds.PatientSex = "19700101", "O"
    ds.StudyDescription, ds.SeriesDescription = f"Phantom {study}", series
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, number
    ds.Manufacturer, ds.ReferringPhysicianName = "Palimpsest", ""
    return ds


def _pixels(ds: FileDataset, pixels: NDArray[np.uint8] | NDArray[np.int16], bits: int) -> bytes:
    ds.Rows, ds.Columns = pixels.shape[-2:] if pixels.shape[-1] != 3 else pixels.shape[-3:-1]
    ds.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    ds.PhotometricInterpretation = "RGB" if ds.SamplesPerPixel == 3 else "MONOCHROME2"
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def _slice(z: float, size: int) -> NDArray[np.int16]:
    """Hounsfield units of a slice of a body with two lungs, a spine and a ball; z from -1 to 1."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    hu = np.full((size, size), -1000.0)
    hu[(x / 0.85) ** 2 + (y / 0.62) ** 2 < 1] = 40
    for side in (-1, 1):
        hu[((x - side * 0.38) / 0.27) ** 2 + (y / 0.42) ** 2 + (z / 1.1) ** 2 < 1] = -820
    hu[(x / 0.1) ** 2 + ((y - 0.42) / 0.1) ** 2 < 1] = 700
    hu[((x - 0.38) / 0.15) ** 2 + ((y + 0.1) / 0.15) ** 2 + ((z - 0.2) / 0.5) ** 2 < 1] = 60
    noise = np.random.default_rng(int((z + 2) * 1000)).normal(0, 12, hu.shape)
    return np.asarray(np.rint(hu + noise), np.int16)


def ct_series(slices: int = 12, study: str = "thorax", size: int = SIZE) -> list[bytes]:
    """Part 10 files of a CT series, top to bottom."""
    return [_ct(study, number, slices, size) for number in range(1, slices + 1)]


def _ct(study: str, number: int, slices: int, size: int) -> bytes:
    ds = _header(study, "axial", number, CT_CLASS, "CT")
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PixelSpacing, ds.SliceThickness = [384 / size, 384 / size], 5
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-192, -192, 5 * number]
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "HU"
    ds.WindowCenter, ds.WindowWidth, ds.KVP = -300, 1600, 120
    return _pixels(ds, _slice(2 * (number - 1) / max(1, slices - 1) - 1, size), 16)


def colour() -> bytes:
    """An RGB image: hue around, brightness outwards, three discs of pure red, green and blue."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angle = np.arctan2(y, x)
    bright = np.clip(1.1 - np.hypot(x, y), 0, 1)
    picture = np.stack([bright * (1 + np.cos(angle + turn)) / 2 for turn in (0, 2.1, 4.2)], -1)
    rgb = np.asarray(picture * 255, np.uint8)
    for part, at in enumerate((-0.6, 0, 0.6)):
        disc = np.hypot(x - at, y - 0.7) < 0.12
        rgb[disc] = 0
        rgb[disc, part] = 255
    ds = _header("colour", "rgb", 1, US_CLASS, "US")
    return _pixels(ds, rgb, 8)


def multiframe(frames: int = 10) -> bytes:
    """Grey frames with a bar that turns like a clock's hand."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    pictures = []
    for number in range(frames):
        turn = 2 * np.pi * number / frames
        along, across = x * np.cos(turn) + y * np.sin(turn), x * np.sin(turn) - y * np.cos(turn)
        hand = (along > 0) & (along < 0.8) & (np.abs(across) < 0.06)
        pictures.append(np.where(hand, 255, np.where(np.hypot(x, y) < 0.9, 70, 10)).astype(np.uint8))
    ds = _header("clock", "frames", 1, US_MULTI_CLASS, "US")
    ds.NumberOfFrames, ds.FrameTime = frames, 100
    ds.FrameIncrementPointer = 0x00181063
    return _pixels(ds, np.stack(pictures), 8)
