"""What the same objects would weigh as JPEG XL and JPEG-LS DICOM files: the yardstick of `palimpsest send --standards`.

Same header, pixels by the standard codec, encapsulated (PS3.5 A.4). As in `palimpsest codec bench`, the codecs get the
sample values with their minimum subtracted and no sign, which is the form they code best.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gateway.errors import PalimpsestError
from gateway.instance import Form
from palimpsest.journey import Journey

CODECS = ("jxl", "jpegls")
JXL_EFFORT = 7  # the library's default; `codec bench` uses 9, which takes about ten times as long
THREADS = 2  # the libraries let go of the interpreter lock
ENCAPSULATION_BYTES = 12 + 8 + 8  # element header, empty offset table, sequence delimiter; 8 more per frame


@dataclass
class Yardstick:
    """Sums over the coded files that could be measured. objects: whole files; pixels: codestreams alone. Bytes."""

    files: int = 0
    archived: int = 0
    codec: int = 0
    objects: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CODECS, 0))
    pixels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CODECS, 0))

    def add(self, other: Yardstick) -> None:
        """Sum up."""
        self.files += other.files
        self.archived += other.archived
        self.codec += other.codec
        for name in CODECS:
            self.objects[name] += other.objects[name]
            self.pixels[name] += other.pixels[name]


def measure_all(journeys: Iterable[Journey]) -> dict[str, Yardstick]:
    """Modality -> sums, over the journeys whose pixels were coded. Files that no codec takes are left out."""
    coded = [j for j in journeys if j.row is not None and j.row.form is Form.CODED and j.row.archived_size]
    sums: dict[str, Yardstick] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for journey, measured in zip(coded, pool.map(_measure, coded), strict=True):
            if measured is not None:
                assert journey.row is not None
                sums.setdefault(journey.row.modality or "none", Yardstick()).add(measured)
    return dict(sorted(sums.items()))


def _measure(journey: Journey) -> Yardstick | None:
    row = journey.row
    assert row is not None
    try:
        around, pixels = _standard_bytes(journey.found.path)
    except (PalimpsestError, OSError, RuntimeError, ValueError):
        return None
    objects = {name: around + size for name, size in pixels.items()}
    return Yardstick(1, row.archived_size or 0, row.codec_bytes or 0, objects, pixels)


def _standard_bytes(path: Path) -> tuple[int, dict[str, int]]:
    """(bytes around the codestreams, bytes of the codestreams by codec). Raises what cannot be coded."""
    from codec.bitplane import split_words
    from codec.standard import STANDARD
    from worker.pixels import open_pixels
    from worker.splice import read_object

    source = open_pixels(read_object(path.read_bytes()))
    sizes = dict.fromkeys(CODECS, 0)
    for words in source:
        values, _ = split_words(words, source.fmt)
        plane = values - values.min()
        plane = plane.astype(np.uint8 if plane.max() < 256 else np.uint16)
        for name in CODECS:
            sizes[name] += len(STANDARD[name].encode(plane, JXL_EFFORT))
    around = len(source.spans.nonpixel()) + ENCAPSULATION_BYTES + 8 * source.frames
    return around, sizes
