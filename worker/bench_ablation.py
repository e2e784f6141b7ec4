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
from worker.bench import Context, timed, warm
from worker.bench_figures import geometric
from worker.bench_fit import Fitted, fit_group
from worker.bench_inputs import Input, Opened, list_inputs, open_input
from worker.bench_plan import Plan
from worker.bench_table import aligned, percent

WHOLE, VAE = "whole", "vae"
IN_FRAMES = tuple(sorted(ABLATIONS - {VAE}))
PARTS = (*IN_FRAMES, VAE)
OWN_CODERS = ("learned",)
SPLITS = (1, 3)  # bits of G that are put on a stack
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
    """Groups of up to 16 frames with so many bits of G. Bytes, the payload included: `whole` without any split,
    `causal` with G coded causally, `stacked` with G on a stack where that is shorter; and G alone by both,
    where it was tried.

    won, won_whole: groups in which the stack is shorter than the causal coder, and than no split at all. carried: bytes
    of payload in stacks that were kept, which would have been random bits.
    """

    groups: int = 0
    won: int = 0
    won_whole: int = 0
    whole: int = 0
    causal: int = 0
    stacked: int = 0
    causal_global: int = 0
    stacked_global: int = 0
    carried: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    exact: bool = True

    def add(self, report: GroupReport, whole: int) -> None:
        """Count one group; `whole`: its bytes without a split and without the payload."""
        best = report.stacked if report.chosen == "stack" and report.stacked is not None else report.causal
        self.groups += 1
        self.won += best < report.causal
        self.won_whole += best < whole + len(PAYLOAD)
        self.whole += whole + len(PAYLOAD)
        self.causal += report.causal
        self.stacked += best
        self.causal_global += report.causal_global
        self.stacked_global += report.stacked_global
        self.carried += report.saved


def ablate(paths: Sequence[Path], plan: Plan, progress: Callable[[str, int], None] | None = None) -> dict[str, Any]:
    """JSON-able; in `parts`, by what was left out ('whole': nothing): n, bytes, geomean_vs_whole, encode_mp_s (proof
    and fit included), decode_mp_s, exact; in `vae`, VaeSums by the kind of group and the bits of G ('single 1': single
    frames, 'volumes 3'). Raises as worker.bench.bench.
    """
    skipped: dict[str, str] = {}
    sums = {part: Sums() for part in (WHOLE, *IN_FRAMES)}
    stacks = {f"{kind} {bits}": VaeSums() for kind in ("single", "volumes") for bits in SPLITS}
    samples, stackable = 0, _has_vae()
    warm(plan)
    for each in list_inputs(paths, plan.choice, skipped):
        try:
            with open_input(each, plan.choice) as opened:
                fitted = _fitted(each, plan)
                for part, total in sums.items():
                    total.encode_s += 0.0 if part == "adapters" else fitted.seconds
                lengths: list[int] = []
                for index, size, found in _measure_file(opened, fitted, plan):
                    samples += size
                    for part, one in found.items():
                        _add(sums[part], one)
                    lengths += found[WHOLE].lengths
                    if progress is not None:
                        progress(str(each.path), index)
                kind = "single" if len(lengths) == 1 else "volumes"
                for bits in SPLITS if stackable else ():
                    _stack_file(opened, bits, lengths, stacks[f"{kind} {bits}"], fitted, plan)
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


def _measure_file(opened: Opened, fitted: Fitted, plan: Plan) -> Iterator[tuple[int, int, dict[str, Sums]]]:
    """Of every frame: its number, its samples, and figures without each part."""
    contexts = {part: Context() for part in (WHOLE, *IN_FRAMES)}
    for index in plan.choice.frames(opened.frames):
        words = opened.frame(index)
        found = {part: _measure(words, opened.fmt, part, context, plan, fitted) for part, context in contexts.items()}
        yield index, words.size, found


def _measure(words: Words, fmt: PixelFormat, part: str, context: Context, plan: Plan, fitted: Fitted) -> Sums:
    """One frame without one part."""
    without = plan.without | ({part} - {WHOLE})
    previous, memory = (None, None) if "previous" in without else context.before(fmt)
    own = Fitted() if "adapters" in without else fitted
    coded, spent = timed(
        lambda: encode_frame(
            words, fmt, coders=OWN_CODERS, profile=plan.profile, adapters=own.inline, shared=own.shared,
            previous=previous, memory=memory, threads=plan.threads, without=without,
        )
    )  # fmt: skip
    frame, back = timed(
        lambda: decode_frame(coded.blob, previous=previous, memory=memory, shared=own.shared, threads=plan.threads)
    )
    context.coded(coded, words, fmt)
    return Sums([len(coded.blob)], spent, back, bool(np.array_equal(frame.words, words)))


def _stack_file(opened: Opened, bits: int, lengths: Sequence[int], found: VaeSums, fitted: Fitted, plan: Plan) -> None:
    """Code a file's frames with `bits` of G, and let the VAE take G off them, group by group."""
    context, blobs = Context(), list[bytes]()
    for index in plan.choice.frames(opened.frames):
        words = opened.frame(index)
        previous, memory = context.before(opened.fmt)
        coded = encode_frame(
            words, opened.fmt, coders=OWN_CODERS, profile=plan.profile, adapters=fitted.inline, shared=fitted.shared,
            previous=previous, memory=memory, threads=plan.threads, split=bits,
        )  # fmt: skip
        blobs.append(coded.blob)
        context.coded(coded, words, opened.fmt)
    for first in range(0, len(blobs), MAX_FRAMES):
        run = slice(first, first + MAX_FRAMES)
        _stack(blobs[run], sum(lengths[run]), found, fitted.shared, plan)


def _stack(blobs: Sequence[bytes], whole: int, found: VaeSums, shared: bytes | None, plan: Plan) -> None:
    """One group; seconds are those of the stack alone when encoding, and of everything when decoding."""
    group, spent = timed(lambda: stack_group(blobs, payload=PAYLOAD, seed=1))
    (frames, initial), back = timed(lambda: decode_group(group.blobs, group.stack, threads=plan.threads, shared=shared))
    plain, _ = decode_group(blobs, b"", threads=plan.threads, shared=shared)
    same = all(np.array_equal(a.words, b.words) for a, b in zip(frames, plain, strict=True))
    carried = len(PAYLOAD) - len(group.beside)
    found.add(group.report, whole)
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
            changes = [percent(row["stacked"] / row[name]) for name in ("causal", "whole")]
            text.append(
                f"VAE, {kind} bit(s) of G: shorter than causal in {row['won']} of {row['groups']} groups ({changes[0]} "
                f"of all bytes), than no split in {row['won_whole']} ({changes[1]}); G where tried "
                f"{row['causal_global']} causal, {row['stacked_global']} stacked; carried {row['carried']}"
                f"{'' if row['exact'] else '; NOT EXACT'}"
            )
    return "\n".join([*text, f"{len(found['skipped'])} files skipped; profile {found['profile']}"])
