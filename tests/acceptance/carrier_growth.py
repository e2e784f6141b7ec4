"""What the segmented carrier costs: growth of an archive object over the record's own bits, by modality.

    python -m tests.acceptance.carrier_growth FOLDER [--files N] [--pixels N] [--class BYTES] [--all]

For the frame of each file that the encoder proposes: coded as it is, and coded with as many random bits inside as a
sealed record has. Growth is what the coded frame and the bitmap add, over these bits; beside the image it is 1.
*kept* are the frames that the encoder then really uses, *beside* those where the measured growth sends the record
beside. --all also tries frames whose lowest plane is estimated to be modelled. Exits 1 if a kept frame is above 1.05.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from gateway.errors import PalimpsestError
from gateway.policy import DEFAULT_ARCHIVE, ArchiveRule
from stego.seal import LENGTH_CLASSES
from stego.segmented import suitability
from worker.carrying import MOST_GROWTH, carry, choose_place, growth, without_record
from worker.framechain import ChainCoder
from worker.pixels import PixelSource, open_pixels
from worker.splice import read_object

MODALITY = 0x00080060
INSISTING = ArchiveRule(name="all", carrier="segmented")


@dataclass(frozen=True)
class Growth:
    """estimate: bits per bit of the window; raw: high enough to try. ratio: see above. seconds: that measuring took."""

    path: Path
    modality: str
    raw: bool
    estimate: float
    coder: str
    ratio: float
    seconds: float

    @property
    def fate(self) -> str:
        """'kept', 'beside' (raw by the estimate, and measured to cost more) or 'modelled'."""
        if not self.raw:
            return "modelled"
        return "kept" if self.ratio <= MOST_GROWTH else "beside"


def measure(path: Path, source: PixelSource, record_bytes: int, rule: ArchiveRule) -> Growth | None:
    """None when no frame of it may or can carry."""
    nbits = 8 * record_bytes
    place = choose_place(source, nbits, rule)
    if place.levels is None:
        return None
    found = suitability(source.frame(place.carrier.frame), source.fmt, place.levels, nbits)
    message, keys = os.urandom(record_bytes), {"stego_key": os.urandom(32), "salt": os.urandom(16)}
    coder = ChainCoder()
    carrying = carry(source, place, message, **keys, coder=coder)
    assert carrying is not None
    started = time.perf_counter()
    ratio = growth(carrying, without_record(source, place, carrying, coder))
    spent = time.perf_counter() - started
    modality = source.spans.dataset.ascii(MODALITY) or "?"
    return Growth(path, modality, found.ok, found.entropy, carrying.coded.coder, ratio, spent)


def sources(folder: Path, most_pixels: int, per_modality: int) -> Iterator[tuple[Path, PixelSource]]:
    """At most so many readable objects of each modality, evenly over the sorted list."""
    groups: dict[str, list[tuple[Path, PixelSource]]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            source = open_pixels(read_object(path.read_bytes()))
        except PalimpsestError:
            continue
        if source.fmt.samples == 1 and source.fmt.rows * source.fmt.columns <= most_pixels:
            groups[source.spans.dataset.ascii(MODALITY)].append((path, source))
    for found in groups.values():
        count = min(per_modality, len(found))
        yield from (found[at * len(found) // count] for at in range(count))


def report(rows: list[Growth]) -> None:
    """One line a modality and fate, then all of them, then the worst."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        groups[row.fate, row.modality].append(row.ratio)
        groups[row.fate, "all"].append(row.ratio)
    print(f"{'fate':>10} {'modality':>8} {'files':>5} {'mean':>7} {'median':>7} {'max':>7}   growth / record bits")
    for fate in ("kept", "beside", "modelled"):
        for modality in sorted({name for state, name in groups if state == fate}):
            ratios = groups[fate, modality]
            figures = f"{mean(ratios):7.4f} {median(ratios):7.4f} {max(ratios):7.4f}"
            print(f"{fate:>10} {modality:>8} {len(ratios):5} {figures}")
    for row in sorted(rows, key=lambda row: -row.ratio)[:5]:
        print(f"   {row.ratio:.4f}  estimate {row.estimate:.4f}  {row.coder:<8} {row.modality:<3} {row.path.name[:50]}")


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=12, help="at most so many of each modality")
    parser.add_argument("--pixels", type=int, default=1 << 19, help="leave larger frames out")
    parser.add_argument("--class", dest="size", type=int, default=LENGTH_CLASSES[1], choices=LENGTH_CLASSES)
    parser.add_argument("--all", action="store_true", help="also frames whose lowest plane is modelled")
    arguments = parser.parse_args()
    rule = INSISTING if arguments.all else DEFAULT_ARCHIVE
    found = sources(arguments.folder, arguments.pixels, arguments.files)
    rows = [row for path, source in found if (row := measure(path, source, arguments.size, rule)) is not None]
    report(rows)
    kept, worse = [row for row in rows if row.fate == "kept"], [row for row in rows if row.fate == "beside"]
    print(
        f"{len(rows)} frames, {len(kept)} kept, {len(worse)} beside; {mean(r.seconds for r in rows):.2f} s to measure"
    )
    return 0 if kept and max(row.ratio for row in kept) <= MOST_GROWTH else 1


if __name__ == "__main__":
    sys.exit(main())
