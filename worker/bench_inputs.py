"""What the bench measures: DICOM, NIfTI and PNG files, which of them make a series, and which a manifest chooses."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codec.bitplane import Words
from codec.pixelformat import PixelFormat
from gateway.errors import InvalidInstance, PalimpsestError
from worker.adapting import MODALITY, Prior, prior_of
from worker.imagefiles import is_image_file, open_image
from worker.pixels import PixelSource, open_pixels
from worker.slices import Slice, coding_order, slice_of
from worker.splice import read_object

SERIES, INSTANCE = 0x0020000E, 0x00200013


@dataclass(frozen=True)
class Choice:
    """Which frames are measured.

    max_frames: of a file, a run in its middle (0: all). grey_rgb: colour that is grey three times counts
    as grey (NIfTI and PNG). manifest: a CSV file with columns `path` (below its folder), `use`, `source_repo` and
    `modality`; use: its values that are measured (none given: all).
    """

    max_frames: int = 0
    grey_rgb: bool = False
    manifest: Path | None = None
    use: tuple[str, ...] = ()

    def frames(self, count: int) -> list[int]:
        """Numbers of the frames measured of a file of `count`: neighbours, so that most have a previous frame."""
        wanted = min(self.max_frames or count, count)
        first = (count - wanted) // 2
        return list(range(first, first + wanted))


@dataclass(frozen=True)
class Input:
    """One file. series: what files that make a series share (of slices: patient, series and format; else the series'
    UID, or the folder); slice: its place among slices, None of other files; number: Instance Number.

    modality, source: of the header or the manifest, '' unknown. Nothing here is shown but the path and these two.
    """

    path: Path
    series: tuple[object, ...] = field(repr=False)
    number: int
    modality: str
    source: str
    slice: Slice | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Opened:
    """An input's frames as stored words. prior: anatomical prior (Modality, body part, model); source: of DICOM."""

    fmt: PixelFormat
    frames: int
    frame: Callable[[int], Words]
    prior: Prior
    data: bytes = field(repr=False, default=b"")
    source: PixelSource | None = None


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Files named, and all files below folders named, in order."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def list_inputs(paths: Sequence[Path], choice: Choice, skipped: dict[str, str]) -> list[Input]:
    """Every file that looks readable, series by series, each in the order in which a group's frames are coded.

    Files that are none go to `skipped` with the reason. Raises InvalidInstance on an unreadable manifest.
    """
    rows = read_manifest(choice.manifest) if choice.manifest else None
    found: list[Input] = []
    for path in find_files(paths):
        row = None if rows is None else rows.get(path.resolve())
        if rows is not None and (row is None or (choice.use and row["use"] not in choice.use)):
            continue
        try:
            found.append(_describe(path, row or {}))
        except PalimpsestError as error:
            skipped[str(path)] = error.reason
    series: dict[tuple[object, ...], list[Input]] = {}
    for each in found:
        series.setdefault(each.series, []).append(each)
    return [each for members in series.values() for each in _in_order(members)]


def _in_order(members: Sequence[Input]) -> list[Input]:
    """Slices as worker.slices orders them, other files by number and path."""
    plain = sorted(members, key=lambda each: (each.number, str(each.path)))
    slices = [each.slice for each in plain if each.slice is not None]
    return [plain[at] for at in coding_order(slices)] if len(slices) == len(plain) else plain


def read_manifest(path: Path) -> dict[Path, dict[str, str]]:
    """Rows by absolute path. Raises InvalidInstance when a column is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"path", "use", "source_repo", "modality"} <= set(reader.fieldnames or ()):
                raise InvalidInstance("manifest", "the manifest needs the columns path, use, source_repo and modality")
            return {(path.parent / row["path"]).resolve(): row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInstance("manifest", f"the manifest cannot be read ({type(error).__name__})") from None


def trained_sources(manifest: Path | None) -> frozenset[str]:
    """Sources of which some files may be trained on: figures of their other files are not of a source held out."""
    if manifest is None:
        return frozenset()
    return frozenset(row["source_repo"] for row in read_manifest(manifest).values() if row["use"] == "train")


def _describe(path: Path, row: Mapping[str, str]) -> Input:
    modality, source = row.get("modality", ""), row.get("source_repo", "")
    if is_image_file(path):
        return Input(path, (path.parent,), 0, modality, source)
    data = _read(path)
    header, place = read_object(data).dataset, slice_of(data)
    number = header.ascii(INSTANCE)
    return Input(
        path,
        place.kind if place else (header.ascii(SERIES) or path.parent,),
        int(number) if number.isascii() and number.isdigit() and len(number) <= 12 else 0,
        modality or header.ascii(MODALITY),
        source,
        place,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInstance("unreadable-file", f"the file cannot be read ({type(error).__name__})") from None


@contextmanager
def open_input(each: Input, choice: Choice) -> Iterator[Opened]:
    """The frames of one file. Raises InvalidInstance, Unsupported."""
    if is_image_file(each.path):
        with open_image(each.path, grey_rgb=choice.grey_rgb) as image:
            yield Opened(image.fmt, image.frames, image.frame, (each.modality, "", ""))
        return
    data = _read(each.path)
    source = open_pixels(read_object(data))
    yield Opened(source.fmt, source.frames, source.frame, prior_of(source.spans.dataset), data, source)


def groups(inputs: Sequence[Input], *, by_series: bool) -> Iterator[list[Input]]:
    """Inputs that are coded together: each by itself, or those of one series (which stand side by side)."""
    part: list[Input] = []
    for each in inputs:
        if part and not (by_series and each.series == part[0].series):
            yield part
            part = []
        part.append(each)
    if part:
        yield part
