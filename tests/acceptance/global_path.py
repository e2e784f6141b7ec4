"""The global path measured: G by the causal coder and by the VAE on one stack a group, for several heights of G.

    python -m tests.acceptance.global_path PATH... [--manifest CSV --use U] [--bits 1,2,3,4,5,6] [--frames 16]
        [--payload BYTES] [--per-source N] [--weights FILE] [--csv FILE] [--planes OUT.npz]

Frames of a file or series in groups of up to 16. For each number of upper bits: bytes of G by the causal coder (one
stream a plane), of the VAE's stack without its start, of the start (what the first frame draws before anything is on
the stack), and how much of a payload of --payload bytes lies in it. The sides count the payload.
`wins`: groups where the stack is shorter with that payload; `bare`: without any payload.
--planes writes planes of G for codec.train.vae instead (of files that may be trained on only: say --use train).
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import choose_levels, split_words
from codec.bitsback import BitsBack
from codec.groupstack import Shape, encode_stack
from codec.learned import encode_upper
from codec.weights import Weights, add, load
from gateway.errors import PalimpsestError
from worker.bench_inputs import Choice, Input, groups, list_inputs, open_input

LARGEST_CROP = 1 << 20  # samples of a frame that are measured
PLANE_SEED = 7
TRAINING_BITS, TRAINING_FRAMES, TRAINING_CROP = 7, 30, 1 << 19


@dataclass(frozen=True)
class Row:
    """One group at one height of G, in bytes. start: the part of the stack that a payload can fill."""

    path: str
    modality: str
    source: str
    bits: int
    frames: int
    samples: int
    causal_global: int
    stack_global: int
    start: int
    carried: int

    def sides(self, payload: int) -> tuple[int, int]:
        """Causal and stack side with a payload of so many bytes counted on each."""
        inside = min(payload, self.start)
        return self.causal_global + payload, self.stack_global + self.start + payload - inside


def planes_of(inputs: Sequence[Input], choice: Choice, most: int) -> Iterator[list[NDArray[np.int32]]]:
    """Level indices of grey frames, up to `most` of one size together; others are left out."""
    kept: list[NDArray[np.int32]] = []
    for each in inputs:
        try:
            with open_input(each, choice) as opened:
                if opened.fmt.samples != 1:
                    continue
                for place in choice.frames(opened.frames):
                    values, _ = split_words(opened.frame(place), opened.fmt)
                    plane = cropped(choose_levels(values).rank(values).astype(np.int32))
                    if kept and (len(kept) == most or kept[0].shape != plane.shape):
                        yield kept
                        kept = []
                    kept.append(plane)
        except PalimpsestError as error:
            print(f"{each.path}: {error.reason}")
    if kept:
        yield kept


def cropped(plane: NDArray[np.int32], most: int = LARGEST_CROP) -> NDArray[np.int32]:
    """The middle of a plane, at most about `most` samples."""
    if plane.size <= most:
        return plane
    part = math.sqrt(most / plane.size)
    rows, columns = int(plane.shape[0] * part), int(plane.shape[1] * part)
    top, left = (plane.shape[0] - rows) // 2, (plane.shape[1] - columns) // 2
    return np.ascontiguousarray(plane[top : top + rows, left : left + columns])


def measure(planes: Sequence[NDArray[np.int32]], bits: int, first: Input, weights: Weights, payload: int) -> Row | None:
    """One group at one height of G; None where no frame has so many bits."""
    uppers, shapes = [], []
    for plane in planes:
        highest = int(plane.max())
        k = highest.bit_length() - bits
        if k >= 1:
            uppers.append(plane >> k)
            shapes.append(Shape(*plane.shape, highest >> k))
    if not uppers:
        return None
    causal = sum(4 * encode_upper(upper, shape.highest).size for upper, shape in zip(uppers, shapes, strict=True))
    sealed = np.random.default_rng(1).bytes(payload)
    coded = encode_stack(uppers, shapes, weights, BitsBack, initial=sealed, seed=1)
    start = coded.used // 8
    return Row(
        str(first.path), first.modality, first.source, bits, len(uppers), sum(upper.size for upper in uppers), causal,
        len(coded.data) - start, start, min(payload, start),
    )  # fmt: skip


def table(rows: Sequence[Row], payload: int) -> str:
    """Sums by modality and height of G."""
    by: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        by[row.modality, row.bits].append(row)
        by["all", row.bits].append(row)
    titles = (
        "modality",
        "bits of G",
        "groups",
        "causal bpp",
        "VAE bpp",
        "VAE / causal",
        "start bpp",
        "carried",
        "wins",
        "bare",
    )
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for (modality, bits), own in sorted(by.items()):
        samples = sum(row.samples for row in own)
        ratio = math.exp(sum(math.log(row.stack_global / row.causal_global) for row in own) / len(own))
        wins, bare = (sum(side[1] < side[0] for side in (row.sides(size) for row in own)) for size in (payload, 0))
        per = [
            8 * sum(getattr(row, name) for row in own) / samples for name in ("causal_global", "stack_global", "start")
        ]
        lines.append(
            f"| {modality} | {bits} | {len(own)} | {per[0]:.4f} | {per[1]:.4f} | {ratio:.3f} | {per[2]:.3f} "
            f"| {sum(row.carried for row in own)} | {wins} | {bare} |"
        )
    return "\n".join(lines)


def write_planes(inputs: Sequence[Input], choice: Choice, out: Path) -> None:
    """Planes of G for training: four heights a frame, drawn at random; of a source at most 30 frames a modality."""
    chance, seen, found = np.random.default_rng(PLANE_SEED), Counter[tuple[str, str]](), {}
    for each in inputs:
        for planes in planes_of([each], choice, 1):
            seen[each.modality, each.source] += 1
            if seen[each.modality, each.source] > TRAINING_FRAMES:
                continue
            plane = cropped(planes[0], TRAINING_CROP)
            for bits in chance.choice(np.arange(1, TRAINING_BITS + 1), 4, replace=False):
                k = int(plane.max()).bit_length() - int(bits)
                if k >= 1 and min(plane.shape) >= 32:
                    found[f"plane_{len(found):05d}"] = (plane >> k).astype(np.uint8)
    np.savez(out, **found)
    print(f"{len(found)} planes of G in {out}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--use", action="append", default=[])
    parser.add_argument("--bits", default="1,2,3,4,5,6")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--payload", type=int, default=4096)
    parser.add_argument("--per-source", type=int, default=0, help="groups of a modality and source; 0: all")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--planes", type=Path)
    options = parser.parse_args()
    choice = Choice(options.frames, True, options.manifest, tuple(options.use))
    inputs = list_inputs(options.paths, choice, {})
    if options.planes:
        write_planes(inputs, choice, options.planes)
        return
    weights = add(options.weights.read_bytes()) if options.weights else load("vae")
    rows: list[Row] = []
    seen = Counter[tuple[str, str]]()
    for part in groups(inputs, by_series=True):
        for planes in planes_of(part, choice, options.frames):
            seen[part[0].modality, part[0].source] += 1
            if not options.per_source or seen[part[0].modality, part[0].source] <= options.per_source:
                for bits in map(int, options.bits.split(",")):
                    row = measure(planes, bits, part[0], weights, options.payload)
                    rows += [row] if row else []
    print(table(rows, options.payload))
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow([each.name for each in fields(Row)])
            out.writerows(astuple(row) for row in rows)


if __name__ == "__main__":
    main()
