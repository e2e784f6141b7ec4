"""Generated instances for `palimpsest selftest`: small, each like no other, of the kinds that take different ways."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from gateway.part10 import read_meta

__all__ = ["SYNTAXES", "Generated", "Source", "dataset_digest"]

CT: Final = UID("1.2.840.10008.5.1.4.1.1.2")
MR: Final = UID("1.2.840.10008.5.1.4.1.1.4")
SECONDARY: Final = UID("1.2.840.10008.5.1.4.1.1.7")
REPORT: Final = UID("1.2.840.10008.5.1.4.1.1.88.11")
SYNTAXES: Final = {CT: ExplicitVRLittleEndian, MR: ImplicitVRLittleEndian, SECONDARY: ExplicitVRLittleEndian,
                   REPORT: ExplicitVRLittleEndian}  # fmt: skip
SIDE: Final = 64  # pixels
A_STUDY: Final = 25  # instances
EVERY_COLOUR, EVERY_REPORT, EVERY_MR = 13, 11, 3


@dataclass(frozen=True, slots=True)
class Generated:
    """One instance as a Part 10 file, and what must come back. dataset: SHA-256 of all bytes after the file meta."""

    path: Path
    sop_class: UID
    uid: str
    study: str
    series: str
    dataset: str


class Source:
    """An endless series of instances, written to a folder as they are asked for; safe in threads."""

    def __init__(self, folder: Path, seed: int) -> None:
        """seed: of UIDs and pixels; two runs with one seed send the same."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._seed = folder, seed
        self._lock = threading.Lock()
        self.made = 0

    def __iter__(self) -> Iterator[Generated]:
        while True:
            with self._lock:
                number, self.made = self.made, self.made + 1
            yield self._make(number)

    def _make(self, number: int) -> Generated:
        sop_class = _kind(number)
        study = self._uid("study", number // A_STUDY)
        series = self._uid(f"series {sop_class}", number // A_STUDY)
        uid = self._uid("instance", number)
        dataset = _dataset(number, self._seed, sop_class)
        dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, uid
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        patient = number // A_STUDY % 7
        dataset.PatientName, dataset.PatientID = f"Selftest^{patient}", f"SELFTEST-{self._seed}-{patient}"
        path = self._folder / f"{number:06d}.dcm"
        dcmwrite(path, dataset, enforce_file_format=True)
        return Generated(path, sop_class, uid, study, series, dataset_digest(path.read_bytes()))

    def _uid(self, what: str, number: int) -> str:
        text = f"palimpsest selftest {self._seed} {what} {number}"
        return f"2.25.{int.from_bytes(sha256(text.encode()).digest()[:16], 'big')}"  # PS3.5 B.2


def dataset_digest(part10: bytes) -> str:
    """SHA-256 (hex) of the data set of a Part 10 file: what a sender sends, without the meta that a receiver writes."""
    return sha256(part10[read_meta(part10)[1] :]).hexdigest()


def _kind(number: int) -> UID:
    if number % EVERY_REPORT == EVERY_REPORT - 1:
        return REPORT
    if number % EVERY_COLOUR == EVERY_COLOUR - 1:
        return SECONDARY
    return MR if number % EVERY_MR == 0 else CT


def _dataset(number: int, seed: int, sop_class: UID) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[sop_class]
    dataset.StudyDate, dataset.AccessionNumber = "20260101", f"S{seed}-{number // A_STUDY}"
    dataset.InstanceNumber = number
    dataset.Modality = {CT: "CT", MR: "MR", SECONDARY: "OT", REPORT: "SR"}[sop_class]
    if sop_class == REPORT:
        dataset.TextValue = random.Random(number).randbytes(40).hex()
        return dataset
    draw = np.random.default_rng((seed, number))
    y, x = np.mgrid[:SIDE, :SIDE]
    image = 1000 + 8 * y + 5 * x + draw.integers(0, 32, (SIDE, SIDE))
    dataset.Rows = dataset.Columns = SIDE
    dataset.PixelRepresentation = 0
    if sop_class == SECONDARY:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = np.stack([image >> 3, image >> 4, image & 255], -1).astype(np.uint8).tobytes()
        return dataset
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = image.astype("<u2").tobytes()
    return dataset
