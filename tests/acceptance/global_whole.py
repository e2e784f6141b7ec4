"""Whole frames of the learned coder with 0, 1, 2, ... bits of G, and G in the frames or on a group's stack.

    python -m tests.acceptance.global_whole PATH... [--manifest CSV --use U] [--bits 0,1,2,3] [--frames 4]
        [--payload BYTES] [--per-source N] [--profile P] [--weights FILE]

Answers whether a global part pays at all: bytes of all frames of a group and the payload against the same with no G
(which is what the encoder chooses unless it estimates otherwise), in per cent, for G by the causal coder and by the
VAE on one stack. `free`: the encoder's own choice of k per plane.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codec.bitplane import Words
from codec.frame import encode_frame
from codec.group import stack_group
from codec.pixelformat import PixelFormat
from codec.weights import add
from gateway.errors import PalimpsestError
from worker.bench_inputs import Choice, Input, groups, list_inputs, open_input

LARGEST = 1 << 19  # samples of a frame; larger ones are left out


@dataclass(frozen=True)
class Sides:
    """Bytes of a group with its payload: no G at all; `causal`, `stack` (None: no stack worth it) with `bits` of G."""

    plain: int
    causal: int
    stack: int | None
    carried: int


def frames_of(part: Sequence[Input], choice: Choice, most: int) -> Iterator[tuple[list[Words], PixelFormat]]:
    """Frames of one format together, up to `most`."""
    kept: list[Words] = []
    last: PixelFormat | None = None
    for each in part:
        try:
            with open_input(each, choice) as opened:
                if opened.fmt.rows * opened.fmt.columns * opened.fmt.samples > LARGEST:
                    continue
                for place in choice.frames(opened.frames):
                    if last is not None and (opened.fmt != last or len(kept) == most):
                        yield kept, last
                        kept = []
                    kept, last = [*kept, opened.frame(place)], opened.fmt
        except PalimpsestError as error:
            print(f"{each.path}: {error.reason}")
    if last is not None:
        yield kept, last


def measure(frames: Sequence[Words], fmt: PixelFormat, splits: Sequence[int | None], payload: bytes, profile: str
            ) -> dict[int | None, Sides]:  # fmt: skip
    """A group with every number of bits of G."""
    out: dict[int | None, Sides] = {}
    plain = 0
    for split in (0, *splits):
        blobs = [
            encode_frame(words, fmt, profile=profile, coders=["learned"], split=split, prove=False).blob
            for words in frames
        ]
        group = stack_group(blobs, payload=payload, seed=1)
        plain = plain or group.report.causal
        out[split] = Sides(plain, group.report.causal, group.report.stacked, group.report.carried)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--use", action="append", default=[])
    parser.add_argument("--bits", default="1,2,3")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--payload", type=int, default=4096)
    parser.add_argument("--per-source", type=int, default=1)
    parser.add_argument("--profile", default="default")
    parser.add_argument("--weights", type=Path, help="a weight file of the learned coder that is not released")
    options = parser.parse_args()
    if options.weights:
        add(options.weights.read_bytes())
    choice = Choice(options.frames, True, options.manifest, tuple(options.use))
    splits: list[int | None] = [None, *(int(bits) for bits in options.bits.split(",") if bits != "0")]
    payload = np.random.default_rng(1).bytes(options.payload)
    rows: dict[tuple[str, int | None], list[Sides]] = defaultdict(list)
    seen = Counter[tuple[str, str]]()
    for part in groups(list_inputs(options.paths, choice, {}), by_series=True):
        for frames, fmt in frames_of(part, choice, options.frames):
            seen[part[0].modality, part[0].source] += 1
            if seen[part[0].modality, part[0].source] <= options.per_source:
                for split, sides in measure(frames, fmt, splits, payload, options.profile).items():
                    rows[part[0].modality, split].append(sides)
                    rows["all", split].append(sides)
                    print(part[0].path.name, "free" if split is None else split, sides, flush=True)
    print("| modality | bits of G | groups | causal % | shorter % | stacks below causal | below all | carried |")
    print("|---" * 8 + "|")
    for modality, split in sorted(rows, key=lambda key: (key[0], -1 if key[1] is None else key[1])):
        own = rows[modality, split]
        shorter = [min(side.causal, side.stack or side.causal) for side in own]
        shares = [
            100 * float(np.mean([size / side.plain - 1 for size, side in zip(sizes, own, strict=True)]))
            for sizes in ([side.causal for side in own], shorter)
        ]
        won = [side for size, side in zip(shorter, own, strict=True) if size < side.causal]
        best = sum(size < min(side.causal, side.plain) for size, side in zip(shorter, own, strict=True))
        print(
            f"| {modality} | {'free' if split is None else split} | {len(own)} | {shares[0]:+.2f} | {shares[1]:+.2f} "
            f"| {len(won)} | {best} | {sum(side.carried for side in won)} |"
        )


if __name__ == "__main__":
    main()
