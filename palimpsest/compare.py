"""Was the original given back? Judged from the bytes sent and the bytes fetched, by code that no worker uses.

Three promises, by what was sent:

- uncompressed pixels, or an object that went through whole: every byte of the data set as received;
- losslessly compressed pixels: every pixel, as decoded by pydicom (RLE) or GDCM (JPEG), and every non-pixel byte.

The file meta information (group 0002) is written by whoever makes a file from a network object, so it is not compared,
but for the transfer syntax. Decoders here: pydicom and GDCM; the workers' own are others wherever others exist.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder  # type: ignore[attr-defined]

from gateway import part10
from gateway.errors import PalimpsestError

PIXEL_DATA = 0x7FE00010
BULK = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, PIXEL_DATA})
NATIVE = frozenset({part10.IMPLICIT_LE, part10.EXPLICIT_LE, part10.EXPLICIT_BE, "1.2.840.10008.1.2.1.99"})
LOSSLESS = frozenset(
    f"1.2.840.10008.1.2.{tail}"
    for tail in ("4.57", "4.70", "4.80", "4.90", "4.92", "4.110", "4.201", "4.202", "4.203", "5")
)
# JPEG-LS of unusual depth and HTJ2K: GDCM does not read them
IMAGECODECS = {
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.201": "htj2k_decode",
    "1.2.840.10008.1.2.4.202": "htj2k_decode",
}
Samples = npt.NDArray[np.generic]

# What pydicom and its decoders raise for content that they cannot decode: then nothing is proven.
DECODER_ERRORS = (
    ArithmeticError, AttributeError, LookupError, MemoryError, NotImplementedError, OSError, RuntimeError, TypeError,
    ValueError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`equal` and what it rests on ('bytes' | 'pixels and non-pixel bytes'), or the first difference found."""

    equal: bool
    how: str
    difference: str = ""


def dataset_digest(path: Path, offset: int) -> str:
    """SHA-256 (hex) of the file's bytes from `offset` (where group 0002 ends), read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def compare(sent: Path, fetched: Path) -> Verdict:
    """Compare two Part 10 files. Never raises for their content: what cannot be read is a difference."""
    try:
        return _compare(sent, fetched)
    except PalimpsestError as error:
        return Verdict(False, "unreadable", f"{error.reason}: {error.message}")


def _compare(sent: Path, fetched: Path) -> Verdict:
    with _Mapped(sent) as a, _Mapped(fetched) as b:
        if _same(a.body, b.body):
            same_syntax = a.syntax == b.syntax
            return Verdict(same_syntax, "bytes", "" if same_syntax else f"transfer syntax {a.syntax} became {b.syntax}")
        if a.syntax not in LOSSLESS:
            return Verdict(False, "bytes", first_difference(a.body, b.body))
        problem = _nonpixel_difference(a, b)
        if problem:
            return Verdict(False, "non-pixel bytes", problem)
    problem = _pixel_difference(sent, fetched)
    return Verdict(not problem, "pixels and non-pixel bytes", problem)


class _Mapped:
    """A mapped Part 10 file: its syntax and a view of its data set."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)
        self.syntax, self.offset = part10.read_meta(self.view)
        self.body = self.view[self.offset :]

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.body.release()
        self.view.release()
        self._map.close()
        self._file.close()

    def pixels_at(self) -> part10.Element | None:
        """The Pixel Data element, None if there is none."""
        return next((e for e in part10.walk(self.view, self.syntax, self.offset) if e.tag == PIXEL_DATA), None)


def _nonpixel_difference(a: _Mapped, b: _Mapped) -> str:
    """'' if all bytes before and after Pixel Data are equal. The element's own header may change."""
    pixels_a, pixels_b = a.pixels_at(), b.pixels_at()
    if pixels_a is None or pixels_b is None:
        return "no pixel data"
    if b.syntax != part10.EXPLICIT_LE:
        return f"the restored file's transfer syntax is {b.syntax}, not Explicit VR Little Endian"
    before = first_difference(a.view[a.offset : pixels_a.offset], b.view[b.offset : pixels_b.offset])
    return before or first_difference(a.view[pixels_a.end :], b.view[pixels_b.end :])


def first_difference(a: memoryview | bytes, b: memoryview | bytes) -> str:
    """'' if equal, else where they first differ, without showing what is there (it may name a patient)."""
    if _same(a, b):
        return ""
    shorter = min(len(a), len(b))
    left, right = (np.frombuffer(x, np.uint8, shorter) for x in (a, b))
    differing = np.flatnonzero(left != right) if shorter else np.zeros(0, np.intp)
    where = f"first at data set byte {int(differing[0])}" if differing.size else f"equal up to byte {shorter}"
    return f"{len(a)} bytes sent, {len(b)} bytes back, {where}"


def _same(a: memoryview | bytes, b: memoryview | bytes) -> bool:
    return len(a) == len(b) and bool(np.array_equal(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)))


def _pixel_difference(sent: Path, fetched: Path) -> str:
    """'' if every sample is equal: by pydicom and GDCM, or, where they cannot read what was sent, by imagecodecs."""
    problem = ""
    for read in (_raw_pixels, _imagecodecs_pixels):
        try:
            a, bits = read(sent)
            b, _ = _raw_pixels(fetched)
        except DECODER_ERRORS as error:
            problem = problem or f"pixels could not be decoded for the comparison ({type(error).__name__})"
            continue
        return _sample_difference(a, b, bits)
    return problem


def _sample_difference(a: Samples, b: Samples, bits: int | None) -> str:
    """bits: compare only so many low bits of each sample (all if None): a codestream has no others."""
    if bits is not None and a.dtype.itemsize <= b.dtype.itemsize:
        low = (1 << bits) - 1
        a, b = a.astype(np.int64) & low, b.astype(np.int64) & low
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"pixels {a.shape} {a.dtype} became {b.shape} {b.dtype}"
    differing = int(np.count_nonzero(a != b))
    return f"{differing} of {a.size} samples differ" if differing else ""


def _raw_pixels(path: Path) -> tuple[Samples, None]:
    """Stored samples, (frames, rows, columns[, samples]), no colour conversion; GDCM for all but native and RLE."""
    dataset = _read(path)
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    plugin: dict[str, Any] = {"decoding_plugin": "gdcm"} if "gdcm" in decoder.available_plugins else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the samples' odd values are not what is judged here
        pixels, _ = decoder.as_array(dataset, raw=True, **plugin)
    return pixels, None


def _imagecodecs_pixels(path: Path) -> tuple[Samples, int]:
    """As `_raw_pixels`, for what GDCM does not read (HTJ2K, JPEG-LS of unusual depth); and the bits stored."""
    import imagecodecs

    dataset = _read(path)
    decode = getattr(imagecodecs, IMAGECODECS[str(dataset.file_meta.TransferSyntaxUID)])
    count = int(dataset.get("NumberOfFrames") or 1)
    frames = [decode(data) for data in generate_frames(dataset.PixelData, number_of_frames=count)]
    return np.stack(frames) if count > 1 else frames[0], int(dataset.BitsStored)


def _read(path: Path) -> pydicom.FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path)
