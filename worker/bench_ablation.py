"""`palimpsest codec bench --ablate`: the learned coder without one of its parts at a time, on the same frames.

Only our own coder is run (no standard codec competes), so that a part's worth is not hidden by another candidate. The
VAE is no part of a frame but of up to 16 together: it is measured on the coded frames, with a payload of the size of a
sealed record counted on both sides (see codec.group).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.errors import CodecError
from codec.frame import ABLATIONS, decode_frame, encode_frame
from codec.group import MAX_FRAMES, GroupReport, decode_group, stack_group
from codec.pixelformat import PixelFormat
from codec.weights import UnknownWeights, load
from gateway.errors import PalimpsestError
from worker.bench import Context, Plan, timed, warm
from worker.bench_figures import geometric
from worker.bench_fit import Fitted, fit_group
from worker.bench_inputs import Input, Opened, list_inputs, open_input
from worker.bench_table import aligned, percent

WHOLE, VAE = "whole", "vae"
IN_FRAMES = tuple(sorted(ABLATIONS - {VAE}))
PARTS = (*IN_FRAMES, VAE)
OWN_CODERS = ("learned",)
PAYLOAD = bytes(range(256)) * 2  # about what a sealed record takes


@dataclass
class Sums:
    """Figures without one part. lengths: bytes of every frame; seconds: of all frames together."""

    lengths: list[int] = field(default_factory=list)
    encode_s: float = 0.0
    decode_s: float = 0.0
    exact: bool = True


@dataclass
class VaeSums:
    """Groups of up to 16 frames, and where G went. Bytes with the payload: by the causal coder, and the shorter way;
    G alone by both, of the frames whose G a stack would hold. saved: bytes of payload in the stacks that were kept,
    where random bits would have been.
    """

    groups: int = 0
    won: int = 0
    causal: int = 0
    best: int = 0
    causal_global: int = 0
    stacked_global: int = 0
    saved: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    exact: bool = True

    def add(self, report: GroupReport) -> None:
        """Count one group."""
        won = report.chosen == "stack" and report.stacked is not None
        self.groups += 1
        self.won += won
        self.causal += report.causal
        self.best += report.stacked if won and report.stacked is not None else report.causal
        self.causal_global += report.causal_global
        self.stacked_global += report.stacked_global
        self.saved += report.saved


def ablate(paths: Sequence[Path], plan: Plan, progress: Callable[[str, int], None] | None = None) -> dict[str, Any]:
    """JSON-able; in `parts`, by what was left out ('whole': nothing): n, bytes, geomean_vs_whole, encode_mp_s (proof
    and fit included), decode_mp_s, exact; in `vae`, VaeSums by the kind of group ('single' frames, 'volumes'). Raises
    as worker.bench.bench.
    """
    skipped: dict[str, str] = {}
    sums = {part: Sums() for part in (WHOLE, *IN_FRAMES)}
    stacks = {"single": VaeSums(), "volumes": VaeSums()}
    samples, stackable = 0, _has_vae()
    warm(plan)
    for each in list_inputs(paths, plan.choice, skipped):
        try:
            with open_input(each, plan.choice) as opened:
                chain: list[bytes] = []
                fitted = _fitted(each, plan)
                for part, total in sums.items():
                    total.encode_s += 0.0 if part == "adapters" else fitted.seconds
                for index, size, found, blob in _measure_file(opened, fitted, plan):
                    samples += size
                    for part, one in found.items():
                        _add(sums[part], one)
                    chain.append(blob)
                    if progress is not None:
                        progress(str(each.path), index)
                for first in range(0, len(chain) if stackable else 0, MAX_FRAMES):
                    run = chain[first : first + MAX_FRAMES]
                    _stack(run, stacks["single" if len(chain) == 1 else "volumes"], fitted.shared, plan)
        except (PalimpsestError, CodecError) as error:
            skipped[str(each.path)] = error.reason if isinstance(error, PalimpsestError) else "codec-error"
    return {
        "profile": plan.profile,
        "adapt": plan.adapt,
        "threads": plan.threads,
        "parts": {part: _summed(found, sums[WHOLE], samples) for part, found in sums.items()},
        "vae": {kind: asdict(found) for kind, found in stacks.items()},
        "skipped": skipped,
    }


def _has_vae() -> bool:
    """Whether weights of the VAE are at hand; without them `vae` counts no group."""
    try:
        load(VAE)
    except UnknownWeights:
        return False
    return True


def _fitted(each: Input, plan: Plan) -> Fitted:
    """The adapter of one file."""
    if plan.adapt == "none":
        return Fitted()
    return fit_group([each], plan.choice, plan.profile, plan.fit_seconds, threads=plan.threads)


def _measure_file(opened: Opened, fitted: Fitted, plan: Plan) -> Iterator[tuple[int, int, dict[str, Sums], bytes]]:
    """Of every frame: its number, its samples, figures without each part, and the whole coder's blob."""
    contexts = {part: Context() for part in (WHOLE, *IN_FRAMES)}
    for index in plan.choice.frames(opened.frames):
        words, found, blobs = opened.frame(index), dict[str, Sums](), dict[str, bytes]()
        for part, context in contexts.items():
            found[part], blobs[part] = _measure(words, opened.fmt, part, context, plan, fitted)
        yield index, words.size, found, blobs[WHOLE]


def _measure(
    words: Words, fmt: PixelFormat, part: str, context: Context, plan: Plan, fitted: Fitted
) -> tuple[Sums, bytes]:
    """One frame without one part, and its blob."""
    without = plan.without | ({part} - {WHOLE})
    previous = None if "previous" in without else context.before(fmt)
    own = Fitted() if "adapters" in without else fitted
    coded, spent = timed(
        lambda: encode_frame(
            words, fmt, coders=OWN_CODERS, profile=plan.profile, adapters=own.inline, shared=own.shared,
            previous=previous, threads=plan.threads, without=without,
        )
    )  # fmt: skip
    frame, back = timed(lambda: decode_frame(coded.blob, previous=previous, shared=own.shared, threads=plan.threads))
    context.coded(words, fmt)
    exact = bool(np.array_equal(frame.words, words))
    return Sums([len(coded.blob)], spent, back, exact), coded.blob


def _stack(blobs: Sequence[bytes], found: VaeSums, shared: bytes | None, plan: Plan) -> None:
    """Let the VAE try to take G off these frames; seconds are those of the stack alone when encoding."""
    group, spent = timed(lambda: stack_group(blobs, payload=PAYLOAD, seed=1))
    (frames, initial), back = timed(lambda: decode_group(group.blobs, group.stack, threads=plan.threads, shared=shared))
    plain, _ = decode_group(blobs, b"", threads=plan.threads, shared=shared)
    same = all(np.array_equal(a.words, b.words) for a, b in zip(frames, plain, strict=True))
    carried = len(PAYLOAD) - len(group.beside)
    found.add(group.report)
    found.encode_s += spent
    found.decode_s += back
    found.exact &= same and initial[:carried] == PAYLOAD[:carried] and group.beside == PAYLOAD[carried:]


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
    text = aligned(lines)
    for kind, row in found["vae"].items():
        if row["groups"]:
            change = percent(row["best"] / row["causal"])
            text.append(
                f"VAE, {kind}: shorter in {row['won']} of {row['groups']} groups, {change} of all bytes; G where tried "
                f"{row['causal_global']} causal, {row['stacked_global']} stacked; payload saved {row['saved']} "
                f"bytes{'' if row['exact'] else '; NOT EXACT'}"
            )
    return "\n".join([*text, f"{len(found['skipped'])} files skipped; profile {found['profile']}"])
