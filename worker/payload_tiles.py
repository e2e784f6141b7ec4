"""What `payload bench` measures on: tiles of the first frame that may carry of each image, each with its patient.

Tiles, not whole images: detectors compare images of one size, and a bench must end. Chosen without chance: of a frame's
whole tiles those with most samples that differ from their left neighbour (constant air can carry nothing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words
from codec.errors import CodecError
from codec.pixelformat import PixelFormat
from gateway.errors import PalimpsestError, Unsupported
from stego.cover import Cover
from worker.bench_inputs import find_files
from worker.pixelrules import covers, words_of
from worker.pixels import open_pixels
from worker.splice import ObjectSpans, read_object

SMALLEST = 48  # samples a side: below, neither carriers nor detectors have anything to work on
_PATIENT = (0x00100020, 0x00100010, 0x0020000D)  # Patient ID, else name, else Study Instance UID


@dataclass(frozen=True)
class Tile:
    """Part of a frame, under the whole frame's rules. patient: a number, given in order of appearance."""

    path: str
    modality: str
    patient: int
    place: tuple[int, int]
    cover: Cover
    fmt: PixelFormat
    extended: bool

    def words(self, values: NDArray[np.int32]) -> Words:
        """`values` as the file would hold them."""
        return words_of(values, self.fmt, extended=self.extended)


@dataclass(frozen=True)
class Choice:
    """Which tiles: side in samples, at most `per_image` of a frame and `per_patient` images of a patient."""

    side: int = 256
    per_image: int = 4
    per_patient: int = 4


def tiles(paths: Sequence[Path], choice: Choice, skipped: dict[str, str]) -> Iterator[Tile]:
    """All tiles of the DICOM files in `paths` (folders are searched); `skipped` gets path -> reason of the rest."""
    patients: dict[str, int] = {}
    seen: Counter[int] = Counter()
    for path in _spread(find_files(paths), choice.per_patient):
        try:
            spans = read_object(path.read_bytes())
            name = patient_of(spans, path)
            number = patients.setdefault(name, len(patients))
            if seen[number] >= choice.per_patient:
                continue
            found = list(cut(path, spans, number, choice))
        except (PalimpsestError, CodecError) as error:
            skipped[str(path)] = error.reason if isinstance(error, PalimpsestError) else "codec-error"
            continue
        seen[number] += 1
        yield from found


def _spread(files: Sequence[Path], per_patient: int) -> list[Path]:
    """Files of each folder, first the `per_patient` that lie evenly in it (a series), then the others."""
    folders: dict[Path, list[Path]] = {}
    for path in files:
        folders.setdefault(path.parent, []).append(path)
    out: list[Path] = []
    for members in folders.values():
        count = min(per_patient, len(members))
        even = [members[(2 * i + 1) * len(members) // (2 * count)] for i in range(count)]
        out += [*even, *(path for path in members if path not in set(even))]
    return out


def patient_of(spans: ObjectSpans, path: Path) -> str:
    """What tells patients apart, never shown: the first of Patient ID, name and study that is there, else the folder.

    Images of different people under one made-up Patient ID count as one patient, which is the careful mistake.
    """
    for tag in _PATIENT:
        element = spans.dataset.elements.get(tag)
        if element is not None and element.length:
            value = bytes(spans.dataset.data[element.value_offset : element.value_offset + element.length])
            if value.strip(b" \x00"):
                return value.strip(b" \x00").decode("latin-1")
    return str(path.parent)


def cut(path: Path, spans: ObjectSpans, patient: int, choice: Choice) -> Iterator[Tile]:
    """The chosen tiles of one object. Raises Unsupported with a reason."""
    frame = next(covers(open_pixels(spans)))
    if min(frame.fmt.rows, frame.fmt.columns) < SMALLEST:
        raise Unsupported("too-small", "fewer samples than a tile needs")
    for row, column, rows, columns in places(frame.cover.values, choice):
        values = np.ascontiguousarray(frame.cover.values[row : row + rows, column : column + columns])
        yield Tile(
            str(path), spans.dataset.ascii(0x00080060), patient, (row, column), replace(frame.cover, values=values),
            replace(frame.fmt, rows=rows, columns=columns), frame.extended,
        )  # fmt: skip


def places(values: NDArray[np.int32], choice: Choice) -> list[tuple[int, int, int, int]]:
    """(row, column, rows, columns) of the chosen tiles, best first; a frame smaller than a tile is one tile."""
    rows, columns = min(choice.side, values.shape[0]), min(choice.side, values.shape[1])
    grid = [
        (row, column, rows, columns)
        for row in range(0, values.shape[0] - rows + 1, rows)
        for column in range(0, values.shape[1] - columns + 1, columns)
    ]
    lively = {at: _lively(values[at[0] : at[0] + rows, at[1] : at[1] + columns]) for at in grid}
    chosen = sorted(grid, key=lambda at: -lively[at])[: choice.per_image]
    return [at for at in chosen if lively[at] > 0]


def _lively(values: NDArray[np.int32]) -> float:
    return float(np.count_nonzero(np.diff(values, axis=1))) / values.size
