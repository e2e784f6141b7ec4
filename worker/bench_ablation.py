"""`palimpsest codec bench --ablate`: the learned coder without one of its parts at a time, on the same frames.

Only our own coder is run (no standard codec competes), so that a part's worth is not hidden by another candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.errors import CodecError
from codec.frame import decode_frame, encode_frame
from codec.pixelformat import PixelFormat
from gateway.errors import PalimpsestError
from worker.bench import Context, Plan, timed, warm
from worker.bench_figures import geometric
from worker.bench_fit import Fitted
from worker.bench_inputs import list_inputs, open_input
from worker.bench_table import aligned, percent

PARTS = ("least-squares", "network", "adapters", "split", "vae", "previous")
WHOLE = "whole"
OWN_CODERS = ("learned",)


@dataclass
class Sums:
    """Figures without one part. lengths: bytes of every frame; seconds: of all frames together."""

    lengths: list[int] = field(default_factory=list)
    encode_s: float = 0.0
    decode_s: float = 0.0
    exact: bool = True


def ablate(paths: Sequence[Path], plan: Plan, progress: Callable[[str, int], None] | None = None) -> dict[str, Any]:
    """JSON-able; in `parts`, by what was left out ('whole': nothing): n, bytes, geomean_vs_whole, encode_mp_s (proof
    and fit included), decode_mp_s, exact. Raises as worker.bench.bench.
    """
    skipped: dict[str, str] = {}
    sums = {part: Sums() for part in (WHOLE, *PARTS)}
    samples = 0
    warm(plan)
    for each in list_inputs(paths, plan.choice, skipped):
        contexts = {part: Context() for part in sums}
        try:
            with open_input(each, plan.choice) as opened:
                fitted = Fitted(plan.adapt == "image", plan.profile, opened.prior, plan.fit_seconds, plan.threads)
                for index in plan.choice.frames(opened.frames):
                    words = opened.frame(index)
                    found = {part: _measure(words, opened.fmt, part, contexts[part], plan, fitted) for part in sums}
                    samples += words.size
                    for part, one in found.items():
                        _add(sums[part], one)
                    if progress is not None:
                        progress(str(each.path), index)
        except (PalimpsestError, CodecError) as error:
            skipped[str(each.path)] = error.reason if isinstance(error, PalimpsestError) else "codec-error"
    parts = {part: _summed(found, sums[WHOLE], samples) for part, found in sums.items()}
    return {"profile": plan.profile, "adapt": plan.adapt, "threads": plan.threads, "parts": parts, "skipped": skipped}


def _measure(words: Words, fmt: PixelFormat, part: str, context: Context, plan: Plan, fitted: Fitted) -> Sums:
    """One frame without one part."""
    without = plan.without | ({part} - {WHOLE})
    previous = None if "previous" in without else context.before(fmt)
    adapters, seconds = ((), 0.0) if "adapters" in without else fitted.inline(words, fmt, previous)
    coded, spent = timed(
        lambda: encode_frame(
            words, fmt, coders=OWN_CODERS, profile=plan.profile, adapters=adapters, previous=previous,
            threads=plan.threads, without=without,
        )
    )  # fmt: skip
    frame, back = timed(lambda: decode_frame(coded.blob, previous=previous, threads=plan.threads))
    context.coded(words, fmt, bool(coded.details["previous"]))
    return Sums([len(coded.blob)], spent + seconds, back, bool(np.array_equal(frame.words, words)))


def _add(total: Sums, one: Sums) -> None:
    total.lengths += one.lengths
    total.encode_s += one.encode_s
    total.decode_s += one.decode_s
    total.exact &= one.exact


def _summed(found: Sums, whole: Sums, samples: int) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(found.lengths, whole.lengths, strict=True)]
    out: dict[str, Any] = {"n": len(ratios), "bytes": sum(found.lengths), "exact": found.exact}
    if ratios:
        out["geomean_vs_whole"] = round(geometric(ratios), 5)
        out["encode_s"], out["decode_s"] = round(found.encode_s, 3), round(found.decode_s, 3)
        out["encode_mp_s"] = round(samples / 1e6 / found.encode_s, 3)
        out["decode_mp_s"] = round(samples / 1e6 / found.decode_s, 3)
    return out


def format_ablation(found: dict[str, Any]) -> str:
    """A plain-text table."""
    lines = [("without", "frames", "bytes", "vs whole", "enc MP/s", "dec MP/s", "")]
    for part, row in found["parts"].items():
        if row["n"]:
            speeds = (f"{row['encode_mp_s']:.2f}", f"{row['decode_mp_s']:.2f}", "" if row["exact"] else "NOT EXACT")
            change = percent(row["geomean_vs_whole"])
            lines.append((part.replace(WHOLE, "(whole)"), str(row["n"]), str(row["bytes"]), change, *speeds))
    return "\n".join([*aligned(lines), f"{len(found['skipped'])} files skipped; profile {found['profile']}"])
