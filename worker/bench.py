"""`palimpsest codec bench`: our bytes beside those of the standard codecs, frame by frame, and as geometric means.

Every figure is measured here and now on the files given. The standard codecs get the sample values with their minimum
subtracted and no sign, which is the form they code best; for JPEG-LS the shorter counts: CharLS through imagecodecs or
our plain encoder, which declares the true precision. Libraries run with one thread; `threads` is for our coder.
A frame of ours may use the frame before it in its file, as in the archive; with `adapt` 'series' the files of a series
are coded like a group envelope: one adapter for all, and the frame before may lie in the file before. Of a volume one
frame and the one before it are in memory.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words, split_words
from codec.errors import CodecError
from codec.frame import EncodedFrame, decode_frame, encode_frame
from codec.memory import Memory
from codec.pixelformat import PixelFormat
from codec.standard import STANDARD
from gateway.errors import PalimpsestError
from gateway.keys import KeyRing
from worker.adapting import known_of
from worker.bench_figures import FrameRow, ObjectRow, summary
from worker.bench_fit import Fitted, fit_group
from worker.bench_inputs import Input, Opened, groups, list_inputs, open_input, trained_sources
from worker.bench_objects import archive_objects
from worker.bench_plan import Plan
from worker.framechain import RUN
from worker.jpegls_baseline import encode_jpegls
from worker.pixels import PixelSource

T = TypeVar("T")
LIBRARIES = {"jxl9": ("jxl", 9), "jxl7": ("jxl", 7), "jpegls": ("jpegls", 0), "htj2k": ("htj2k", 0)}
ENCAPSULATION_BYTES = 12 + 8 + 8  # pixel data header, empty offset table item, sequence delimiter; 8 more per frame


@dataclass(frozen=True)
class BenchReport:
    """All rows, whole objects, the summary, and what was skipped with the reason."""

    frames: list[FrameRow]
    objects: list[ObjectRow]
    summary: dict[str, Any]
    skipped: dict[str, str]

    def as_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass
class Context:
    """What coded frames leave for the next one of their chain, as worker.framechain does it."""

    count: int = 0
    previous: Words | None = None
    memory: Memory | None = None
    fmt: PixelFormat | None = None

    def before(self, fmt: PixelFormat) -> tuple[Words | None, Memory | None]:
        """The frame before and what it left, if the next one may use them."""
        return (self.previous, self.memory) if self.fmt == fmt and self.count % RUN else (None, None)

    def coded(self, coded: EncodedFrame, words: Words, fmt: PixelFormat) -> None:
        """Remember a frame."""
        self.count, self.previous, self.memory, self.fmt = self.count + 1, words, coded.memory, fmt


def bench(paths: Sequence[Path], plan: Plan, progress: Callable[[FrameRow], None] | None = None) -> BenchReport:
    """Measure every DICOM, NIfTI and PNG file in `paths` (folders are searched). Raises Unsupported, InvalidInstance
    for a plan or a manifest that cannot be carried out.
    """
    started, skipped = time.monotonic(), dict[str, str]()
    inputs = list_inputs(paths, plan.choice, skipped)
    trained = trained_sources(plan.choice.manifest)
    rows: list[FrameRow] = []
    objects: list[ObjectRow] = []
    warm(plan)
    with tempfile.TemporaryDirectory() as folder:
        ring = KeyRing.load_or_create(Path(folder) / "keys")  # throw-away keys: only the size of the envelope counts
        for members in groups(inputs, by_series=plan.adapt == "series"):
            for row in _measure_group(members, plan, ring, objects, skipped):
                row.held_out = row.source not in trained
                rows.append(row)
                if progress is not None:
                    progress(row)
    facts = {
        "profile": plan.profile,
        "adapt": plan.adapt,
        "threads": plan.threads,
        "without": sorted(plan.without),
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    return BenchReport(rows, objects, {**summary(rows, objects), **facts}, skipped)


def _measure_group(
    members: Sequence[Input], plan: Plan, ring: KeyRing, objects: list[ObjectRow], skipped: dict[str, str]
) -> list[FrameRow]:
    """Rows of files that are coded together."""
    context, rows, whole = Context(), list[FrameRow](), list[tuple[Input, ObjectRow]]()
    fitted = _fitted(members, plan)
    for each in members:
        try:
            with open_input(each, plan.choice) as opened:
                chosen = plan.choice.frames(opened.frames)
                mine = [_measure_frame(each, opened, index, context, plan, fitted) for index in chosen]
                if opened.source is not None and plan.objects and len(mine) == opened.frames:
                    whole.append((each, _object_row(each, opened, opened.source, mine)))
        except (PalimpsestError, CodecError) as error:
            skipped[str(each.path)] = error.reason if isinstance(error, PalimpsestError) else "codec-error"
            context = Context()
            continue
        rows += mine
    _share_out(rows, fitted)
    archive_objects(whole, ring, plan)
    objects += [row for _, row in whole]
    return rows


def _fitted(members: Sequence[Input], plan: Plan) -> Fitted:
    """The adapter of files that are coded together."""
    if plan.adapt == "none" or "adapters" in plan.without:
        return Fitted()
    chained = "previous" not in plan.without
    return fit_group(members, plan.choice, plan.profile, plan.fit_seconds, threads=plan.threads, chained=chained)


def _share_out(rows: Sequence[FrameRow], fitted: Fitted) -> None:
    """What frames share is paid in equal parts: the fit's time, and the bytes of the adapter if any of them uses it."""
    used = any(row.adapter == "shared" for row in rows)
    for row in rows:
        row.fit_s += fitted.seconds / len(rows)
        row.cut = fitted.cut
        if used and fitted.shared:
            row.bytes["ours"] += len(fitted.shared) / len(rows)


def _measure_frame(each: Input, opened: Opened, index: int, context: Context, plan: Plan, fitted: Fitted) -> FrameRow:
    """Code one frame by every coder; `context` moves on to it."""
    fmt, words = opened.fmt, opened.frame(index)
    row = FrameRow(
        path=str(each.path), frame=index, modality=each.modality, source=each.source, rows=fmt.rows,
        columns=fmt.columns, samples=fmt.samples, bits_stored=fmt.bits_stored,
    )  # fmt: skip
    _measure_standards(words, fmt, row)
    previous, memory = (None, None) if "previous" in plan.without else context.before(fmt)
    best, row.encode_s["ours"] = timed(
        lambda: encode_frame(
            words, fmt, profile=plan.profile, adapters=fitted.inline or known_of(opened.prior, plan.profile),
            shared=fitted.shared, previous=previous, memory=memory, threads=plan.threads, without=plan.without,
        )
    )  # fmt: skip
    frame, row.decode_s["ours"] = timed(
        lambda: decode_frame(best.blob, previous=previous, memory=memory, shared=fitted.shared, threads=plan.threads)
    )
    row.exact = frame.fmt == fmt and bool(np.array_equal(frame.words, words))
    row.bytes["ours"], row.coder, row.lengths = len(best.blob), best.coder, dict(best.lengths)
    if best.coder == "learned":
        row.previous = bool(best.details["previous"] or best.details["memory"])
        row.adapter = "inline" if best.details["adapter"] else "shared" if best.details["shared"] else "none"
    context.coded(best, words, fmt)
    return row


def _measure_standards(words: Words, fmt: PixelFormat, row: FrameRow) -> None:
    """The library codecs; a frame that one refuses counts as raw."""
    plane = standard_plane(words, fmt)
    for name, (library, effort) in LIBRARIES.items():
        coder = STANDARD[library]
        try:
            blob, row.encode_s[name] = timed(partial(coder.encode, plane, effort))
        except (RuntimeError, ValueError):
            row.bytes[name] = plane.nbytes
            continue
        row.decode_s[name] = timed(partial(coder.decode, blob))[1]
        row.bytes[name] = min(len(blob), len(encode_jpegls(plane))) if name == "jpegls" else len(blob)


def standard_plane(words: Words, fmt: PixelFormat) -> NDArray[Any]:
    """Sample values less their minimum, uint8 or uint16, in the shape of the frame: what the standard codecs get."""
    values, _ = split_words(words, fmt)
    plane = values - values.min()
    narrow: NDArray[Any] = plane.astype(np.uint8 if plane.max() < 256 else np.uint16)
    return narrow


def _object_row(each: Input, opened: Opened, source: PixelSource, rows: Sequence[FrameRow]) -> ObjectRow:
    """A whole file: as received, and the same header with JPEG XL, JPEG-LS or HTJ2K pixels."""
    around = len(source.spans.nonpixel()) + ENCAPSULATION_BYTES + 8 * source.frames
    sizes = {name: around + round(sum(row.bytes[name] for row in rows)) for name in LIBRARIES}
    return ObjectRow(str(each.path), each.modality, opened.frames, "", sizes | {"received": len(opened.data)})


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and the seconds that it took."""
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def warm(plan: Plan) -> None:
    """Compile the kernels before anything is timed: grey, after a frame before, and colour."""
    ramp = np.add.outer(np.arange(64), 3 * np.arange(64)).astype(np.uint16)
    noise = (ramp + np.random.default_rng(1).integers(0, 32, ramp.shape)).astype(np.uint16)
    grey, colour = PixelFormat(64, 64, 1, 16, 12, 11, False), PixelFormat(64, 64, 3, 16, 12, 11, False)
    frames: tuple[tuple[Words, PixelFormat, Words | None], ...] = (
        (noise, grey, None),
        (noise + np.uint16(3), grey, noise),
        (np.stack([noise, noise + np.uint16(1), noise[::-1]], axis=-1), colour, None),
    )
    for words, fmt, previous in frames:
        blob = encode_frame(words, fmt, previous=previous, profile=plan.profile, threads=plan.threads).blob
        decode_frame(blob, previous=previous, threads=plan.threads)
