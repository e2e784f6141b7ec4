"""`palimpsest codec bench`: our bytes beside those of the standard codecs, per object and as geometric means.

Every figure is measured here and now on the files given. The standard codecs get the sample values with their minimum
subtracted and no sign, which is the form they code best; for JPEG-LS the shorter counts: CharLS through imagecodecs or
our plain encoder, which declares the true precision. Libraries run with one thread; `threads` is for our coder.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from codec.bitplane import Words, split_words
from codec.errors import CodecError
from codec.frame import decode_frame, encode_frame
from codec.pixelformat import PixelFormat
from codec.standard import STANDARD
from gateway.errors import PalimpsestError
from gateway.keys import KeyRing
from worker.candidate import build_candidate
from worker.identity import Provenance
from worker.jpegls_baseline import encode_jpegls
from worker.pixels import PixelSource, open_pixels
from worker.splice import read_object

T = TypeVar("T")
JXL_EFFORT = 9
CODECS = ("jxl", "jpegls", "htj2k")
ALLOWED_SHARE, ALLOWED_BYTES = 0.005, 48  # codec.md rule 4: never worse than the best standard codec by more than this
ENCAPSULATION_BYTES = 12 + 8 + 8  # pixel data header, empty offset table item, sequence delimiter; 8 more per frame


@dataclass(frozen=True)
class BenchRow:
    """One object. Bytes: coded frames alone, by coder; `objects`: whole files. Speeds in 10^6 samples a second.

    `worst_excess`: of its frames, the largest excess of our bytes over the best standard codec beyond what is allowed.
    """

    path: str
    modality: str
    rows: int
    columns: int
    samples: int
    bits_stored: int
    frames: int
    raw: int
    coder: str
    bytes: dict[str, int]
    objects: dict[str, int]
    encode_mps: dict[str, float]
    decode_mps: dict[str, float]
    worst_excess: float


@dataclass(frozen=True)
class BenchReport:
    """All rows, what was skipped with the reason, and geometric means of byte ratios over the rows."""

    rows: list[BenchRow]
    skipped: dict[str, str]
    means: dict[str, float]
    violations: list[str]
    threads: int
    seconds: float


@dataclass
class _Tally:
    """Bytes and seconds per coder while the frames of one object go by."""

    sizes: Counter[str] = field(default_factory=Counter)
    encode: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    decode: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    coders: Counter[str] = field(default_factory=Counter)
    worst: float = -math.inf


def bench(
    paths: Sequence[Path],
    json_path: Path | None = None,
    threads: int = 1,
    progress: Callable[[BenchRow], None] | None = None,
) -> BenchReport:
    """Measure every DICOM file in `paths` (folders are searched). Writes the report as JSON to `json_path`."""
    started = time.monotonic()
    rows: list[BenchRow] = []
    skipped: dict[str, str] = {}
    _warm(threads)
    with tempfile.TemporaryDirectory() as folder:
        ring = KeyRing.load_or_create(Path(folder) / "keys")  # throw-away keys: only the size of the envelope counts
        for path in find_files(paths):
            try:
                row = measure(path, path.read_bytes(), ring, threads)
            except (PalimpsestError, CodecError) as error:
                skipped[str(path)] = error.reason if isinstance(error, PalimpsestError) else "codec-error"
                continue
            rows.append(row)
            if progress is not None:
                progress(row)
    violations = [row.path for row in rows if row.worst_excess > 0]
    report = BenchReport(rows, skipped, _means(rows), violations, threads, time.monotonic() - started)
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return report


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Files named, and all files below folders named, in order."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def measure(path: Path, data: bytes, ring: KeyRing, threads: int) -> BenchRow:
    """One object. Raises Unsupported or InvalidInstance for what is not coded."""
    source = open_pixels(read_object(data))
    tally = _Tally()
    for words in source:
        _measure_frame(words, source, tally, threads)
    fmt, million = source.fmt, source.fmt.rows * source.fmt.columns * source.fmt.samples * source.frames / 1e6
    return BenchRow(
        path=str(path),
        modality=source.spans.dataset.ascii(0x00080060),
        rows=fmt.rows,
        columns=fmt.columns,
        samples=fmt.samples,
        bits_stored=fmt.bits_stored,
        frames=source.frames,
        raw=source.pixel_bytes,
        coder="+".join(name for name, _ in tally.coders.most_common()),
        bytes=dict(tally.sizes),
        objects=_objects(data, source, tally.sizes, ring, threads),
        encode_mps={name: round(million / max(spent, 1e-9), 3) for name, spent in tally.encode.items()},
        decode_mps={name: round(million / max(spent, 1e-9), 3) for name, spent in tally.decode.items()},
        worst_excess=round(tally.worst, 1),
    )


def _measure_frame(words: Words, source: PixelSource, tally: _Tally, threads: int) -> None:
    values, _ = split_words(words, source.fmt)
    plane = values - values.min()
    plane = plane.astype(np.uint8 if plane.max() < 256 else np.uint16)
    standard = []
    for name in CODECS:
        coder = STANDARD[name]
        try:
            blob, spent = _timed(partial(coder.encode, plane, JXL_EFFORT))
        except (RuntimeError, ValueError):
            blob, spent = bytes(plane.nbytes), 0.0  # a frame that the library refuses counts as raw
        else:
            tally.decode[name] += _timed(partial(coder.decode, blob))[1]
        size = min(len(blob), len(encode_jpegls(plane))) if name == "jpegls" else len(blob)
        standard.append(size)
        tally.sizes[name] += size
        tally.encode[name] += spent
    best, spent = _timed(lambda: encode_frame(words, source.fmt, threads=threads))
    tally.sizes["ours"] += len(best.blob)
    tally.encode["ours"] += spent
    tally.decode["ours"] += _timed(lambda: decode_frame(best.blob, threads=threads))[1]
    tally.coders[best.coder] += 1
    _measure_dual(words, source, tally, threads)
    allowed = max(ALLOWED_SHARE * min(standard), ALLOWED_BYTES)
    tally.worst = max(tally.worst, len(best.blob) - min(standard) - allowed)


def _measure_dual(words: Words, source: PixelSource, tally: _Tally, threads: int) -> None:
    dual, spent = _timed(lambda: encode_frame(words, source.fmt, coders=("dual",), threads=threads, prove=False))
    tally.sizes["dual"] += len(dual.blob)
    tally.encode["dual"] += spent
    tally.decode["dual"] += _timed(lambda: decode_frame(dual.blob, threads=threads))[1]


def _objects(data: bytes, source: PixelSource, sizes: Counter[str], ring: KeyRing, threads: int) -> dict[str, int]:
    """Whole files: ours, the file as received, and the same header with JPEG XL, JPEG-LS or HTJ2K pixels."""
    facts = Provenance("1970-01-01T00:00:00+00:00", "dimse", "BENCH", "palimpsest bench")
    around = len(source.spans.nonpixel()) + ENCAPSULATION_BYTES + 8 * source.frames
    found = {name: around + sizes[name] for name in CODECS}
    found["received"] = len(data)
    found["envelope"] = len(build_candidate(data, facts, ring, threads=threads).envelope)
    return found


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def _warm(threads: int) -> None:
    """Compile the kernels before anything is timed."""
    ramp = np.add.outer(np.arange(64), 3 * np.arange(64)).astype(np.uint16)
    noise = (ramp + np.random.default_rng(1).integers(0, 32, ramp.shape)).astype(np.uint16)
    blob = encode_frame(noise, PixelFormat(64, 64, 1, 16, 12, 11, False), coders=("dual",), threads=threads).blob
    decode_frame(blob, threads=threads)


def _means(rows: Sequence[BenchRow]) -> dict[str, float]:
    """Geometric means of ours/other for coded bytes and for whole objects; grey objects also by themselves."""
    grey = [row for row in rows if row.samples == 1]
    means: dict[str, float] = {}
    for label, chosen in (("", rows), ("grey ", grey)):
        for name in (*CODECS, "dual"):
            means[f"{label}ours/{name}"] = _geometric([r.bytes["ours"] / r.bytes[name] for r in chosen])
        for name in CODECS:
            means[f"{label}dual/{name}"] = _geometric([r.bytes["dual"] / r.bytes[name] for r in chosen])
        for name in (*CODECS, "received"):
            means[f"{label}envelope/{name} object"] = _geometric(
                [r.objects["envelope"] / r.objects[name] for r in chosen]
            )
    return {name: round(value, 4) for name, value in means.items() if not math.isnan(value)}


def _geometric(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


HEADINGS = ("object", "mod", "frames", "raw", "dual", "ours", "coder", "jxl e9", "jpeg-ls", "htj2k", "enc", "dec", "")


def format_table(report: BenchReport) -> str:
    """A plain-text table: bytes, speeds of the dual path in million samples a second, then the means."""
    lines = [HEADINGS, *(_line(row) for row in report.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text += ["", *(f"{name:>32}  {100 * (value - 1):+7.2f} %" for name, value in report.means.items())]
    for name in ("dual", "ours"):
        encode = _geometric([row.encode_mps[name] for row in report.rows])
        decode = _geometric([row.decode_mps[name] for row in report.rows])
        text.append(f"{name:>32}  {encode:.2f} MP/s encode, {decode:.2f} MP/s decode, {report.threads} thread(s)")
    text += [f"{len(report.rows)} objects, {len(report.skipped)} skipped, {len(report.violations)} worse than allowed"]
    return "\n".join(text)


def _line(row: BenchRow) -> tuple[str, ...]:
    sizes = [str(row.bytes[name]) for name in ("dual", "ours")]
    others = [str(row.bytes[name]) for name in CODECS]
    speeds = [f"{speed['dual']:.2f}" for speed in (row.encode_mps, row.decode_mps)]
    mark = f"WORSE by {row.worst_excess:.0f}" if row.worst_excess > 0 else ""
    head = (Path(row.path).name[-28:], row.modality, str(row.frames), str(row.raw))
    return (*head, *sizes, row.coder, *others, *speeds, mark)
