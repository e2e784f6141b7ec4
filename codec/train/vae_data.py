"""What the global path's VAE is trained on: blocks of 32 x 32 samples of G, as integer inputs of its networks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codec.lattice import (
    INPUTS,
    PATCH_INPUTS,
    Batch,
    Plane,
    batches,
    errors_of,
    patch_grid,
    patch_inputs,
    tell,
)

SIDE = 32  # samples of a block's side
STRIDES = (2, 4, 8, 16, 32)
LATENT_STRIDES = (2, 4, 8)  # passes that see a latent


@dataclass(frozen=True)
class Source:
    """A plane of G (int32, 0..highest) and how much its blocks count."""

    plane: Plane
    highest: int


@dataclass
class Blocks:
    """N blocks. Per pass (stride, kind): inputs int16[N, groups, n, 32], target int16, guess and scale int32 alike.

    `groups` is 16 (patches) for the strides that see a latent, else 1. `patches` int16[N, 16, 24]; `highest` int32[N].
    """

    inputs: dict[tuple[int, int], NDArray[np.int16]]
    law: dict[tuple[int, int], NDArray[np.int32]]  # [N, groups, n, 7]: target, guess, scale, near
    patches: NDArray[np.int16]
    highest: NDArray[np.int32]
    weight: NDArray[np.float32]


def _grouped(values: NDArray[np.int32], stride: int, corner: tuple[int, int]) -> NDArray[np.int32]:
    """[channels, rows, columns] of one pass: the part that lies in the block at `corner`, as [groups, n, channels]."""
    side = SIDE // stride
    part = values[:, corner[0] * side : (corner[0] + 1) * side, corner[1] * side : (corner[1] + 1) * side]
    if stride not in LATENT_STRIDES:
        return part.reshape(1, values.shape[0], -1).transpose(0, 2, 1)
    own = 8 // stride
    split = part.reshape(values.shape[0], 4, own, 4, own)
    return split.transpose(1, 3, 2, 4, 0).reshape(16, own * own, values.shape[0])


def _passes(source: Source) -> dict[tuple[int, int], NDArray[np.int32]]:
    """Per pass [39, rows, columns]: the 32 inputs, target, guess, scale, four near samples (1/64 level)."""
    plane = source.plane
    errors = errors_of(plane)
    out = {}
    for batch in batches((plane.shape[0], plane.shape[1]), 1 << 30):
        if batch.stride in STRIDES:
            out[batch.stride, batch.kind] = _pass(batch, plane, errors, source.highest)
    seen = patch_inputs(plane, errors, source.highest).astype(np.int32)
    out[0, 0] = seen.reshape(PATCH_INPUTS, *patch_grid((plane.shape[0], plane.shape[1])))
    return out


def _pass(batch: Batch, plane: Plane, errors: Plane, highest: int) -> NDArray[np.int32]:
    told = tell(batch, plane, errors, highest)
    law = np.stack((batch.take(plane), told.guess, told.scale, *told.near))
    stacked = np.concatenate((told.inputs.astype(np.int32), law))
    return stacked.reshape(INPUTS + 7, batch.rows.size, batch.columns.size)


def collect(sources: Iterable[tuple[Source, int]], seed: int) -> Blocks:
    """Blocks drawn at random: (plane, how many of it) each; planes smaller than a block give none."""
    chance = np.random.default_rng(seed)
    inputs: dict[tuple[int, int], list[NDArray[np.int16]]] = {(s, kind): [] for s in STRIDES for kind in range(3)}
    law: dict[tuple[int, int], list[NDArray[np.int32]]] = {key: [] for key in inputs}
    patches, highest = [], []
    for source, wanted in sources:
        rows, columns = source.plane.shape[0] // SIDE, source.plane.shape[1] // SIDE
        if not rows * columns:
            continue
        passes = _passes(source)
        for place in chance.choice(rows * columns, min(wanted, rows * columns), replace=False):
            corner = (int(place) // columns, int(place) % columns)
            for key in inputs:
                grouped = _grouped(passes[key], key[0], corner)
                inputs[key].append(grouped[..., :INPUTS].astype(np.int16))
                law[key].append(grouped[..., INPUTS:].astype(np.int32))
            part = passes[0, 0][:, 4 * corner[0] : 4 * corner[0] + 4, 4 * corner[1] : 4 * corner[1] + 4]
            patches.append(part.reshape(PATCH_INPUTS, 16).T.astype(np.int16))
            highest.append(source.highest)
    return Blocks(
        {key: np.stack(value) for key, value in inputs.items()}, {key: np.stack(value) for key, value in law.items()},
        np.stack(patches), np.array(highest, np.int32), np.ones(len(highest), np.float32),
    )  # fmt: skip
