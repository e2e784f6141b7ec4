"""Frames to train the codec on: DICOM, NIfTI and PNG files below a folder, by its MANIFEST.csv where there is one."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from codec.train.samples import Shot
from gateway.errors import PalimpsestError
from worker.bench_inputs import Choice, Input, Opened, list_inputs, open_input

MANIFEST = "MANIFEST.csv"
PER_FILE = 12  # frames of one file at most, spread over it
PER_SOURCE = 40  # frames of one source and Modality at most
HELD_SHARE = 0.12  # of the frames, in whole sources, that training stops by


@dataclass
class Found:
    """What was read: frames by (source, licence, Modality), and why files were left out."""

    frames: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)


def licences(data: Path) -> dict[str, str]:
    """Licence by source, as the manifest names it."""
    path = data / MANIFEST
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["source_repo"]: row.get("licence", "") for row in csv.DictReader(file) if row["use"] == "train"}


def read_shots(data: Path, found: Found) -> Iterator[Shot]:
    """Frames to train on, files in a fixed order. Only `use` = train of a manifest; a folder is a source without one.

    Raises InvalidInstance on an unreadable manifest.
    """
    manifest = data / MANIFEST
    chosen = Choice(0, True, manifest, ("train",)) if manifest.exists() else Choice(0, True)
    known = licences(data)
    inputs = list_inputs([data], chosen, found.skipped)
    share = _shares(inputs, data)
    before: tuple[Input, Opened] | None = None
    for each in inputs:
        source = each.source or each.path.parent.relative_to(data).as_posix()
        try:
            with open_input(each, chosen) as opened:
                for shot in _shots(each, opened, source, share[source, each.modality], before):
                    found.frames[source, known.get(source, ""), each.modality] += 1
                    yield shot
                before = (each, opened) if opened.source is not None and opened.frames == 1 else None
        except PalimpsestError as error:
            found.skipped[str(each.path)] = error.reason


def _shares(inputs: list[Input], data: Path) -> dict[tuple[str, str], int]:
    """Frames of a file at most, by source and Modality: sources with many files give few of each."""
    files = Counter((each.source or each.path.parent.relative_to(data).as_posix(), each.modality) for each in inputs)
    return {key: max(1, min(PER_FILE, PER_SOURCE // count)) for key, count in files.items()}


def _shots(each: Input, opened: Opened, source: str, share: int, before: tuple[Input, Opened] | None) -> Iterator[Shot]:
    """Frames of one file, evenly spread without its ends, each with the one before it."""
    count = min(share, opened.frames)
    kind = "|".join((opened.prior[0] or each.modality, *opened.prior[1:]))
    for number in range(count):
        index = (2 * number + 1) * opened.frames // (2 * count)
        previous = opened.frame(index - 1) if index else None
        if opened.frames == 1 and before is not None and before[0].series == each.series:
            previous = before[1].frame(0) if before[1].fmt == opened.fmt else None
        words = opened.frame(index)
        yield Shot(f"{each.path.name}[{index}]", source, kind, words, opened.fmt, previous)


def held_sources(frames: Counter[str]) -> frozenset[str]:
    """Whole sources that are not trained on but stopped by, about HELD_SHARE of the frames; the same for every run."""
    order = sorted(frames, key=lambda source: hashlib.sha256(source.encode()).digest())
    held: set[str] = set()
    for source in order:
        together = sum(frames[one] for one in held) + frames[source]
        if together <= HELD_SHARE * sum(frames.values()) * 1.5:
            held.add(source)
        if sum(frames[one] for one in held) >= HELD_SHARE * sum(frames.values()):
            break
    return frozenset(held) if len(held) < len(frames) else frozenset()
