"""What the networks are trained on: the kernel's own inputs at sampled places of real frames, kept in one file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.bitplane import Words, choose_levels, split_words
from codec.learneddecode import Setting, framed, previous_planes
from codec.learnedfit import fit_plane
from codec.learnedplan import CLASS_CHOICES
from codec.network import Network
from codec.pixelformat import PixelFormat
from codec.train.trainer import Sampled
from codec.wave import features_tile

MOST_SAMPLES: Final = 1 << 19  # of a plane: the middle of larger ones is used
LEAST_SIDE: Final = 16
SHARPENING: Final = 0.7

Plane = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shot:
    """A frame to train on: words, their format, the frame before (or None); its names see `Sampled`."""

    name: str
    source: str
    kind: str
    words: Words
    fmt: PixelFormat
    previous: Words | None


@dataclass(frozen=True)
class View:
    """How a frame is looked at: turned (0..7), split at k bits below its highest (0: unsplit), samples wanted.

    `change`: 0 as it is, 1 halved in size (means of four), 2 two bits fewer, 3 with noise as strong as its texture,
    4 its middle enlarged by a half (cubic), 5 enlarged twice (linear), 6 square roots of its levels, 7 smoothed,
    8 sharpened: more kinds of statistics than there are sources.
    """

    turn: int
    split: int
    wanted: int
    change: int = 0


def blank_network(inputs: int) -> Network:
    """A network that says nothing: features do not depend on it."""
    zeros, one, three = np.zeros((1, 1), np.int32), np.zeros(1, np.int32), np.zeros(3, np.int32)
    return Network(np.zeros((1, inputs), np.int32), one, one, zeros, one, one, np.zeros((3, 2), np.int32), three)


def planes_of(shot: Shot) -> list[tuple[Plane, int, Plane | None]]:
    """The frame's planes as they are coded: samples from 0, the highest, the previous frame's plane in its range."""
    values, _ = split_words(shot.words, shot.fmt)
    levels = choose_levels(values)
    index = levels.rank(values)
    before = None if shot.previous is None else split_words(shot.previous, shot.fmt)[0]
    transform = None if index.ndim == 2 else color.choose_transform(index)
    planes = [index.astype(np.int32)] if transform is None else list(color.forward(index, transform))
    earlier = None if before is None else previous_planes(before, levels, transform)
    out: list[tuple[Plane, int, Plane | None]] = []
    for number, plane in enumerate(planes):
        low, high = (0, levels.count - 1) if transform is None else (int(plane.min()), int(plane.max()))
        own = None if earlier is None else np.clip(earlier[number] - low, 0, high - low).astype(np.int32)
        out.append(((plane - low).astype(np.int32), high - low, own))
    return out


def middle(plane: Plane) -> Plane:
    """The plane, or its middle when it is large."""
    if plane.size <= MOST_SAMPLES:
        return plane
    share = (MOST_SAMPLES / plane.size) ** 0.5
    rows, columns = (max(1, int(side * share)) for side in plane.shape)
    top, left = (plane.shape[0] - rows) // 2, (plane.shape[1] - columns) // 2
    return plane[top : top + rows, left : left + columns]


def turned(plane: Plane, turn: int) -> Plane:
    """One of the eight orientations of a plane."""
    seen = np.rot90(plane, turn & 3)
    return np.ascontiguousarray(seen[:, ::-1] if turn & 4 else seen)


def changed(plane: Plane, change: int, highest: int, rng: np.random.Generator) -> Plane:
    """A plane with other statistics, in the same range; see View."""
    if change == 1:
        rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
        four = plane[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2)
        return np.asarray(four.sum(axis=(1, 3)) >> 2, np.int32)
    if change == 2:
        return plane >> 2
    if change == 3:
        texture = float(np.abs(np.diff(plane.astype(np.float32), axis=1)).mean())
        noise = rng.standard_normal(plane.shape, np.float32) * np.float32(texture)
        return np.asarray(np.clip(plane + np.rint(noise), 0, highest), np.int32)
    if change == 0:
        return plane
    levels = plane.astype(np.float64)
    if change in (4, 5):
        levels = _enlarged(_enlarged(levels, change == 4).T, change == 4).T
    elif change == 6:
        levels = np.sqrt(levels * highest)
    else:
        soft = _smoothed(levels)
        levels = soft if change == 7 else levels + SHARPENING * (levels - soft)
    return np.asarray(np.clip(np.rint(levels), 0, highest), np.int32)


def _enlarged(plane: Floats, cubic: bool) -> Floats:
    """The middle rows of a plane interpolated to as many as it has: two thirds (Catmull-Rom), or half (linear)."""
    rows = plane.shape[0]
    kept = max(1, rows * 2 // 3 if cubic else rows // 2)
    part = plane[(rows - kept) // 2 : (rows - kept) // 2 + kept]
    place = (np.arange(rows) + 0.5) * kept / rows - 0.5
    first = np.floor(place).astype(np.int64)
    t = (place - first)[:, None]
    weights = {0: 1 - t, 1: t}
    if cubic:
        weights = {
            -1: ((2 - t) * t - 1) * t / 2, 0: ((3 * t - 5) * t * t + 2) / 2, 1: ((4 - 3 * t) * t + 1) * t / 2,
            2: (t - 1) * t * t / 2,
        }  # fmt: skip
    parts = [weight * part[np.clip(first + offset, 0, kept - 1)] for offset, weight in weights.items()]
    return np.asarray(sum(parts))


def _smoothed(plane: Floats) -> Floats:
    """Binomial weights 1 2 1 in rows and columns."""
    wide = np.pad(plane, 1, mode="edge")
    rows = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4)


def sample_plane(
    plane: Plane, highest: int, earlier: Plane | None, view: View, inputs: int, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """Inputs int16[n, inputs] and facts int32[n, 6] (see gradient.facts_of) at about `view.wanted` places."""
    seen = turned(changed(middle(plane), view.change, highest, rng), view.turn)
    before = None
    if earlier is not None:
        before = framed(turned(changed(middle(earlier), view.change, highest, rng), view.turn), 0, highest)
    highest = highest >> 2 if view.change == 2 else highest
    choices, precision = next((c, p) for limit, c, p in CLASS_CHOICES if seen.size <= limit)
    classes, directions = choices[rng.integers(len(choices))] if view.turn or view.split or view.change else choices[-1]
    predictors = fit_plane(seen, before, classes, directions, precision)
    bits = highest.bit_length()
    k = max(1, bits - view.split) if view.split else bits
    setting = Setting(highest, k, 0, predictors, blank_network(inputs), 1)
    upper = seen >> k
    stride = max(1, seen.size // view.wanted)
    x, facts = features_tile(seen, int(seen[0, 0]), upper, before, setting, inputs, stride)
    return x, np.concatenate([facts[:, :5], np.full((len(facts), 1), highest, np.int32)], axis=1)


def sample_shot(shot: Shot, views: Sequence[View], inputs: int, rng: np.random.Generator) -> list[Sampled]:
    """What training sees of a frame: every plane in every view."""
    out = []
    for number, (plane, highest, earlier) in enumerate(planes_of(shot)):
        if highest < 1 or min(plane.shape) < LEAST_SIDE:
            continue
        for view in views:
            if view.change and (highest < 64 or min(plane.shape) < 2 * LEAST_SIDE):
                continue
            x, facts = sample_plane(plane, highest, earlier, view, inputs, rng)
            name = f"{shot.name}#{number}t{view.turn}s{view.split}c{view.change}"
            if len(x):
                out.append(Sampled(name, shot.source, shot.kind, x, facts))
    return out


def store(path: Path, images: Iterable[Sampled]) -> None:
    """Keep samples in one .npz file."""
    every = list(images)
    names = json.dumps([[one.name, one.source, one.kind, len(one.x)] for one in every]).encode()
    fresh = path.with_suffix(".part")
    with fresh.open("wb") as file:
        np.savez(
            file, names=np.frombuffer(names, np.uint8), x=np.concatenate([one.x for one in every]),
            facts=np.concatenate([one.facts for one in every]),
        )  # fmt: skip
    fresh.replace(path)


def restore(path: Path) -> list[Sampled]:
    """Inverse of `store`; the images are views of two large arrays."""
    with np.load(path) as stored:
        names, x, facts = json.loads(stored["names"].tobytes()), stored["x"], stored["facts"]
    out, at = [], 0
    for name, source, kind, count in names:
        out.append(Sampled(name, source, kind, x[at : at + count], facts[at : at + count]))
        at += count
    return out
