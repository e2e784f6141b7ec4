"""The global path's VAE: planes of G on a bits-back stack. Integer arithmetic only; decoder and reference are one.

Lower latents (two a patch of 8 x 8 samples) and upper ones (two a block of 4 x 4 patches), integers -31..31:

    p(upper) p(lower | upper) p(G | lower)   and   q(lower | G) q(upper | lower)

p(G | lower) mixes three logistics around the samples of codec.lattice that are known already with spikes at the four
nearest of them. All networks have int8 weights and int32 biases; sums stay below 2^24, so float32 products are exact in
any order and any BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError
from codec.lattice import (
    BATCH,
    BLOCK,
    FIRST_LATENT,
    INPUTS,
    PATCH,
    PATCH_INPUTS,
    UNIT,
    Batch,
    Plane,
    batches,
    errors_of,
    guess_of,
    log256,
    patch_grid,
    patch_inputs,
    tell,
)
from codec.tables import SCALE_COUNT
from codec.weights import BadWeights, Weights

LATENTS = 2
GRID = 2  # latent integers in one octave of the networks' inputs: coarse, so that the start of a stack is small
LARGEST_LATENT = 31
HIGHEST_LATENT = 2 * LARGEST_LATENT  # latents are stored + 31
PARTS, SPIKES = 3, 4  # of the mixture: logistics; near neighbours
SHARES = PARTS + SPIKES
OUTPUTS = SHARES + 2 * PARTS
LAYERS = 3
HIGHEST_TOP = 1023  # planes of G have at most 2^10 levels
SHAPES = {
    "fine0": (INPUTS, 32, 24, OUTPUTS), "fine1": (INPUTS, 32, 24, OUTPUTS), "fine2": (INPUTS, 32, 24, OUTPUTS),
    "coarse0": (INPUTS, 32, 24, OUTPUTS), "coarse1": (INPUTS, 32, 24, OUTPUTS),
    "coarse2": (INPUTS, 32, 24, OUTPUTS),
    "infer": (PATCH_INPUTS, 32, 24, 2 * LATENTS), "inferup": (LATENTS * BLOCK * BLOCK, 32, 24, 2 * LATENTS),
    "prior": (LATENTS, 24, 24, 2 * LATENTS),
}  # fmt: skip


def network_of(stride: int, kind: int) -> str:
    """Name of the likelihood network of a pass."""
    return f"{'fine' if stride == 2 else 'coarse'}{kind}"


@dataclass(frozen=True)
class Law:
    """Laws of n numbers 0..highest, each a mixture of K logistics on a uniform floor; all int32[K, n].

    `weight` 0..65536, `centre` in 1/64, `scale` an index q of codec.tables.INVERSE_SCALE (2^(q/8) / 64). All weights
    zero: uniform.
    """

    weight: NDArray[np.int32]
    centre: NDArray[np.int32]
    scale: NDArray[np.int32]
    highest: int


class Stack(Protocol):
    """A bits-back stack: `pop` takes numbers out by a law (and draws them, while encoding), `push` is its inverse."""

    def push(self, law: Law, values: NDArray[np.int32]) -> None:
        """Put n numbers on the stack, the last one first."""

    def pop(self, law: Law) -> NDArray[np.int32]:
        """Take n numbers off the stack, the first one first. Raises CorruptBitstream when the stack is empty."""


def falling(distance: NDArray[np.int32]) -> NDArray[np.int32]:
    """2^16 * 2^-d for d >= 0 in 1/256 octave, piecewise linear, 0 from d = 17 * 256 on."""
    whole = np.minimum(distance >> 8, 17)
    steep: NDArray[np.int32] = ((1 << 17) - ((distance & 255) << 8)) >> (whole + 1)
    return np.where(whole > 16, 0, steep).astype(np.int32)


class Model:
    """The networks of a weight file."""

    def __init__(self, weights: Weights) -> None:
        """Raises BadWeights when arrays are missing, of another shape, or could leave float32's exact range."""
        self.id = weights.id
        self._layers = {name: [_layer(weights, name, place) for place in range(LAYERS)] for name in SHAPES}
        self._top = weights.array("top.scale").astype(np.int32)
        if self._top.shape != (LATENTS,) or int(self._top.min()) < 0 or int(self._top.max()) >= SCALE_COUNT:
            raise BadWeights("weights hold no scales of the upper latents")

    def run(self, name: str, inputs: NDArray[np.float32]) -> NDArray[np.int32]:
        """Outputs int32[out, n] (1/4096) of float32[in, n] that holds integers within +-1023 (1/64)."""
        value = inputs
        for place, (matrix, bias) in enumerate(self._layers[name]):
            value = matrix @ value
            value += bias
            if place < LAYERS - 1:
                value *= np.float32(1 / 64)
                np.floor(value, out=value)
                np.clip(value, 0, 1023, out=value)
        return value.astype(np.int32)

    def lower(self, seen: NDArray[np.float32]) -> Law:
        """q(lower | G) of patches, from codec.lattice.patch_inputs."""
        return _latent_law(self.run("infer", seen))

    def upper(self, lower: NDArray[np.int32]) -> Law:
        """q(upper | lower); lower int32[4, patch rows, patch columns], centred."""
        rows, columns = -(-lower.shape[1] // BLOCK), -(-lower.shape[2] // BLOCK)
        full = np.zeros((LATENTS, rows * BLOCK, columns * BLOCK), np.int32)
        full[:, : lower.shape[1], : lower.shape[2]] = lower
        split = full.reshape(LATENTS, rows, BLOCK, columns, BLOCK).transpose(2, 4, 0, 1, 3)
        return _latent_law(
            self.run("inferup", (UNIT // GRID * split).reshape(LATENTS * BLOCK * BLOCK, -1).astype(np.float32))
        )

    def prior(self, upper: NDArray[np.int32], grid: tuple[int, int]) -> Law:
        """p(lower | upper) for a grid of patches; upper int32[4, blocks], centred."""
        law = _latent_law(self.run("prior", (UNIT // GRID * upper).astype(np.float32)))
        rows, columns = np.arange(grid[0]) // BLOCK, np.arange(grid[1]) // BLOCK
        own = (rows[:, None] * (-(-grid[1] // BLOCK)) + columns[None, :]).ravel()
        parts = [part.reshape(LATENTS, -1)[:, own].reshape(1, -1) for part in (law.weight, law.centre, law.scale)]
        return Law(parts[0], parts[1], parts[2], HIGHEST_LATENT)

    def top(self, blocks: int) -> Law:
        """p(upper)."""
        scale = np.repeat(self._top, blocks)[None]
        return Law(np.full_like(scale, 1 << 16), np.full_like(scale, LARGEST_LATENT * UNIT), scale, HIGHEST_LATENT)

    def samples(self, batch: Batch, plane: Plane, errors: Plane, lower: NDArray[np.int32], highest: int) -> Law:
        """p(batch of G | G before it, lower)."""
        told = tell(batch, plane, errors, highest)
        if batch.stride <= PATCH:
            own = lower[:, (batch.rows // PATCH)[:, None], (batch.columns // PATCH)[None, :]]
            told.inputs[FIRST_LATENT : FIRST_LATENT + LATENTS] = (UNIT // GRID * own).reshape(LATENTS, -1)
        out = self.run(network_of(batch.stride, batch.kind), told.inputs)
        share, offset, width = out[:SHARES], out[SHARES : SHARES + PARTS], out[SHARES + PARTS :]
        weight = falling(np.minimum((share.max(axis=0) - share) >> 4, 17 << 8))
        centre = np.concatenate((told.guess + ((np.clip(offset >> 5, -1023, 1023) * told.scale) >> 7), told.near))
        scale = np.zeros_like(centre)  # of the spikes: 1/64 level
        scale[:PARTS] = ((log256(told.scale) << 4) + width) >> 9
        return Law(
            weight, np.clip(centre, 0, UNIT * highest).astype(np.int32),
            np.clip(scale, 0, SCALE_COUNT - 1).astype(np.int32), highest,
        )  # fmt: skip


def _layer(weights: Weights, name: str, place: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One layer as exact float32: [out, in] and [out, 1]."""
    matrix, bias = weights.array(f"{name}.m{place}"), weights.array(f"{name}.c{place}")
    shape = (SHAPES[name][place + 1], SHAPES[name][place])
    if matrix.shape != shape or matrix.dtype != np.int8 or bias.shape != shape[:1]:
        raise BadWeights(f"layer {place} of {name} has another shape")
    reach = np.abs(matrix.astype(np.int64)).sum(axis=1) * 1023 + np.abs(bias.astype(np.int64))
    if int(reach.max()) >= 1 << 24:
        raise BadWeights(f"layer {place} of {name} leaves the exact range")
    return matrix.astype(np.float32), bias.astype(np.float32)[:, None]


def _latent_law(out: NDArray[np.int32]) -> Law:
    """Laws of latents, flat [latent, place], from a network's outputs int32[2 LATENTS, n]."""
    reach = LARGEST_LATENT * UNIT
    centre = np.clip(out[:LATENTS] >> 5, -reach, reach) + reach
    scale = np.clip((out[LATENTS:] >> 9) + 56, 48, 88)  # 56: an octave of the networks
    flat = centre.reshape(1, -1).astype(np.int32)
    return Law(np.full_like(flat, 1 << 16), flat, scale.reshape(1, -1).astype(np.int32), HIGHEST_LATENT)


def _uniform(highest: int) -> Law:
    """The law of the sample (0, 0)."""
    zero = np.zeros((1, 1), np.int32)
    return Law(zero, zero, zero, highest)


def push_plane(stack: Stack, model: Model, plane: Plane, highest: int, size: int = BATCH) -> None:
    """Put a plane of G (int32, 0..highest, 0 < highest <= 1023) on the stack. `size` changes speed only."""
    if not 0 < highest <= HIGHEST_TOP or int(plane.min()) < 0 or int(plane.max()) > highest:
        raise CodecError("plane outside the VAE's range")
    shape = (plane.shape[0], plane.shape[1])
    grid, errors = patch_grid(shape), errors_of(plane, size)
    drawn = stack.pop(model.lower(patch_inputs(plane, errors, highest)))
    lower = drawn.reshape(LATENTS, *grid) - LARGEST_LATENT
    for batch in reversed(list(batches(shape, size))):
        stack.push(model.samples(batch, plane, errors, lower, highest), batch.take(plane))
    stack.push(_uniform(highest), plane[:1, 0])
    chosen = stack.pop(model.upper(lower))
    upper = chosen.reshape(LATENTS, -1) - LARGEST_LATENT
    stack.push(model.prior(upper, grid), drawn)
    stack.push(model.top(upper.shape[1]), chosen)


def pop_plane(stack: Stack, model: Model, shape: tuple[int, int], highest: int, size: int = BATCH) -> Plane:
    """Exact inverse of push_plane: the plane (int32), with the stack as it was before. Raises CorruptBitstream."""
    grid = patch_grid(shape)
    blocks = -(-grid[0] // BLOCK) * -(-grid[1] // BLOCK)
    chosen = stack.pop(model.top(blocks))
    drawn = stack.pop(model.prior(chosen.reshape(LATENTS, -1) - LARGEST_LATENT, grid))
    lower = drawn.reshape(LATENTS, *grid) - LARGEST_LATENT
    stack.push(model.upper(lower), chosen)
    plane, errors = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    plane[0, 0] = stack.pop(_uniform(highest))[0]
    for batch in batches(shape, size):
        values = stack.pop(model.samples(batch, plane, errors, lower, highest))
        batch.put(errors, np.abs(UNIT * values - guess_of(batch, plane)))
        batch.put(plane, values)
    stack.push(model.lower(patch_inputs(plane, errors, highest)), drawn)
    return plane


def latent_count(shape: tuple[int, int]) -> int:
    """Latents of a plane, both levels: how often encoding it pops."""
    rows, columns = patch_grid(shape)
    return LATENTS * (rows * columns + -(-rows // BLOCK) * -(-columns // BLOCK))
