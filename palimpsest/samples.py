"""The sample study: files that come with pydicom (no download), one for every kind of object that a PACS sends.

Some of those files share a SOP Instance UID, because they are one image in several transfer syntaxes. A gateway treats
equal UIDs as versions of one object, so the second and later ones get a UID of their own, derived from their content:
the same at every start, so that sending the samples twice is a duplicate and not a conflict.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.uid import UID


@dataclass(frozen=True)
class Sample:
    """One packaged file and what it shows."""

    file: str
    shows: str


SAMPLES: tuple[Sample, ...] = (
    Sample("CT_small.dcm", "CT, signed 16 bit"),
    Sample("MR_small.dcm", "MR, signed 16 bit"),
    Sample("MR_small_implicit.dcm", "MR, implicit VR"),
    Sample("MR_small_bigendian.dcm", "MR, big endian"),
    Sample("MR_small_padded.dcm", "MR, padded pixel data"),
    Sample("examples_overlay.dcm", "MR, 12 bit, with overlay"),
    Sample("examples_rgb_color.dcm", "US, RGB"),
    Sample("examples_palette.dcm", "US, palette colour"),
    Sample("ExplVR_BigEnd.dcm", "US, RGB big endian"),
    Sample("SC_rgb_small_odd.dcm", "RGB, odd length"),
    Sample("MR_small_RLE.dcm", "MR, RLE"),
    Sample("SC_rgb_rle_16bit_2frame.dcm", "RGB 16 bit, 2 frames, RLE"),
    Sample("SC_rgb_rle_2frame.dcm", "RGB, 2 frames, RLE"),
    Sample("MR_small_jpeg_ls_lossless.dcm", "MR, JPEG-LS"),
    Sample("SC_rgb_jpeg_gdcm.dcm", "RGB, JPEG Lossless"),
    Sample("MR_small_jp2klossless.dcm", "MR, JPEG 2000"),
    Sample("JPGExtended.dcm", "NM, lossy JPEG"),
    Sample("examples_ybr_color.dcm", "US, 30 frames, lossy JPEG"),
    Sample("rtdose.dcm", "RT dose, 32 bit, 15 frames"),
    Sample("liver_1frame.dcm", "segmentation, 1 bit"),
    Sample("test-SR.dcm", "structured report"),
    Sample("rtplan.dcm", "RT plan"),
    Sample("waveform_ecg.dcm", "ECG"),
)


def fresh_uid(content: bytes) -> str:
    """A UID under 2.25 (PS3.5 B.2) that depends on nothing but the content."""
    return f"2.25.{int.from_bytes(hashlib.sha256(content).digest()[:16], 'big')}"


def packaged_files() -> dict[str, Path]:
    """Sample name -> path, for those that this pydicom release ships. Nothing is downloaded."""
    found = ((sample.file, get_testdata_file(sample.file, download=False)) for sample in SAMPLES)
    return {name: Path(str(path)) for name, path in found if path}


def write_samples(folder: Path) -> list[Path]:
    """Write the sample files into `folder`, byte for byte unless their UID is taken already; the paths, in order.

    Raises OSError when the folder cannot be written, RuntimeError when pydicom ships none of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = packaged_files()
    if not files:
        raise RuntimeError("this pydicom ships none of the sample files")
    seen: set[str] = set()
    written = []
    for name, source in files.items():
        content = source.read_bytes()
        uid, content = _with_own_uid(content, seen)
        seen.add(uid)
        target = folder / name
        target.write_bytes(content)
        written.append(target)
    return written


def _with_own_uid(content: bytes, seen: set[str]) -> tuple[str, bytes]:
    dataset = dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    uid = str(dataset.SOPInstanceUID)
    if uid not in seen:
        return uid, content
    dataset = dcmread(io.BytesIO(content))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(fresh_uid(content))
    out = io.BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    return str(dataset.SOPInstanceUID), out.getvalue()
