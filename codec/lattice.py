"""The order in which the VAE's likelihood visits a plane of G, and what each sample is told of those before it.

A dyadic lattice: first the sample (0, 0); then, for every stride s from the largest down to 2, with h = s / 2, three
passes: rows h, h + s, ... at columns h, h + s, ... (each in the middle of four known samples); rows 0, s, ... at
columns h, h + s, ...; rows h, h + s, ... at columns 0, s, .... A pass depends only on the passes before it, so it is
one batch of arrays for encoder and decoder alike. Everything here is integer NumPy; no kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.int32]
Matrix = NDArray[np.float32]

MIDDLE, ACROSS, DOWN = 0, 1, 2  # the kinds of passes, in their order within a stride
INPUTS = 32
FIRST_LATENT = 25  # inputs 25 and 26 are the latents of the sample's patch
UNIT = 64  # levels are in 1/64
HIGHEST_INPUT = 1023
BATCH = 1 << 14  # samples of a pass worked on at once: bounds memory, changes no result
# Neighbours (row, column) in units of h: four near ones, eight of the next ring, four more.
_CROSS = ((0, -1), (0, 1), (-1, 0), (1, 0))
_RING = ((-1, -2), (-1, 2), (1, -2), (1, 2), (-2, -1), (-2, 1), (2, -1), (2, 1))
_CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
NEIGHBOURS = (
    _CORNERS + ((-1, -3), (-1, 3), (1, -3), (1, 3), (-3, -1), (-3, 1), (3, -1), (3, 1))
    + ((-3, -3), (-3, 3), (3, -3), (3, 3)),
    _CROSS + _RING + ((0, -3), (0, 3), (-3, 0), (3, 0)),
    _CROSS + _RING + _CORNERS,
)  # fmt: skip
NEAR, RINGED = 4, 12


def log256(number: NDArray[np.int32]) -> NDArray[np.int32]:
    """log2 in 1/256 octave, piecewise linear between powers of two; 1 <= number < 2^24 (bits of an exact float32)."""
    bits: NDArray[np.int32] = (number.astype(np.float32).view(np.int32) >> 15) - (127 << 8)
    return bits


@dataclass(frozen=True)
class Batch:
    """Some rows of one pass of a plane: all crossings of `rows` and `columns` (int64, increasing)."""

    stride: int
    kind: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.rows.size * self.columns.size

    def take(self, plane: NDArray[np.int32]) -> NDArray[np.int32]:
        """The plane's samples of this batch, flat, row by row."""
        part: NDArray[np.int32] = plane[self.rows[0] : self.rows[-1] + 1 : self.stride,
                                        self.columns[0] : self.columns[-1] + 1 : self.stride].ravel()  # fmt: skip
        return part

    def put(self, plane: NDArray[np.int32], values: NDArray[np.int32]) -> None:
        """Write flat values back where `take` reads them."""
        shape = (self.rows.size, self.columns.size)
        plane[self.rows[0] : self.rows[-1] + 1 : self.stride,
              self.columns[0] : self.columns[-1] + 1 : self.stride] = values.reshape(shape)  # fmt: skip


def batches(shape: tuple[int, int], size: int = BATCH) -> Iterator[Batch]:
    """All samples but (0, 0) in coding order, in batches of whole rows of a pass, about `size` samples each."""
    stride = 1 << (max(shape) - 1).bit_length()
    while stride > 1:
        half = stride >> 1
        for kind, (top, left) in enumerate(((half, half), (0, half), (half, 0))):
            rows = np.arange(top, shape[0], stride, dtype=np.int64)
            columns = np.arange(left, shape[1], stride, dtype=np.int64)
            if rows.size and columns.size:
                step = max(1, size // columns.size)
                for first in range(0, rows.size, step):
                    yield Batch(stride, kind, rows[first : first + step], columns)
        stride = half


def _mirrored(places: NDArray[np.int64], half: int, side: int) -> NDArray[np.int64]:
    """Positions in units of `half`, mirrored at the first and the last lattice line; which pass they are of stays."""
    last = (side - 1) // half
    if last == 0:
        return np.zeros_like(places)
    turned = places % (2 * last)
    return np.minimum(turned, 2 * last - turned) * half


def _offsets(batch: Batch, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """The batch's neighbours; in a plane one lattice line high or wide, others along that line stand for them."""
    half = batch.stride >> 1
    out = []
    for down, right in NEIGHBOURS[batch.kind]:
        if (shape[0] - 1) // half == 0:
            down, right = 0, right + 1 - (right & 1)
        elif (shape[1] - 1) // half == 0:
            down, right = down + 1 - (down & 1), 0
        out.append((down, right))
    return out


def _gather(batch: Batch, plane: Plane, count: int) -> list[NDArray[np.int32]]:
    """The first `count` neighbours of every sample, flat each."""
    half = batch.stride >> 1
    out = []
    for down, right in _offsets(batch, (plane.shape[0], plane.shape[1]))[:count]:
        rows = _mirrored(batch.rows // half + down, half, plane.shape[0])
        columns = _mirrored(batch.columns // half + right, half, plane.shape[1])
        out.append(plane[rows[:, None], columns[None, :]].ravel())
    return out


def guess_of(batch: Batch, plane: Plane) -> NDArray[np.int32]:
    """Mean of the four near neighbours in 1/64 level."""
    near = _gather(batch, plane, NEAR)
    guess: NDArray[np.int32] = (near[0] + near[1] + near[2] + near[3]) << 4
    return guess


def errors_of(plane: Plane, size: int = BATCH) -> Plane:
    """|64 sample - guess| of every sample (int32, plane's shape; 0 at (0, 0)): what the decoder will have seen."""
    errors = np.zeros(plane.shape, np.int32)
    for batch in batches((plane.shape[0], plane.shape[1]), size):
        batch.put(errors, np.abs(UNIT * batch.take(plane) - guess_of(batch, plane)))
    return errors


@dataclass(frozen=True)
class Told:
    """What a batch is told: `inputs` float32[32, n] holding integers within +-1023 (1/64 octave), rows 25, 26 zero.

    In 1/64 level: `guess` and `scale`, int32[n], where the law is centred and about how wide it is; `near` int32[4, n],
    the four nearest known samples.
    """

    inputs: Matrix
    guess: NDArray[np.int32]
    scale: NDArray[np.int32]
    near: NDArray[np.int32]


def tell(batch: Batch, plane: Plane, errors: Plane, highest: int) -> Told:
    """Inputs of the likelihood network. `plane`, `errors`: complete in the passes before the batch's."""
    wide = [UNIT * value for value in _gather(batch, plane, len(NEIGHBOURS[0]))]
    guess = (wide[0] + wide[1] + wide[2] + wide[3]) >> 2
    away = [value - guess for value in wide]
    spread = np.zeros(batch.count, np.int32)
    for value in away[:RINGED]:
        spread += np.abs(value)
    scale = (spread * 85 >> 10) + 16
    base = log256(scale)

    def signed(value: NDArray[np.int32]) -> NDArray[np.int32]:
        ratio = (log256(np.abs(value) + scale) - base) >> 2
        return np.where(value < 0, -ratio, ratio)

    inputs = np.zeros((INPUTS, batch.count), np.float32)
    for place, value in enumerate(away):
        inputs[place] = signed(value)
    seen = _gather(batch, errors, RINGED)
    for place in range(NEAR):
        inputs[16 + place] = (log256(seen[place] + 16) - base) >> 2
    ring = np.zeros(batch.count, np.int32)
    for value in seen[NEAR:]:
        ring += value
    inputs[20] = (base >> 2) - 512
    inputs[21] = signed(guess) >> 2
    inputs[22] = signed(UNIT * highest - guess) >> 2
    inputs[23] = int(log256(np.array([highest + 1], np.int32))[0]) // 4 - 256
    inputs[24] = 64 * (batch.stride.bit_length() - 3)
    inputs[29] = (log256((ring >> 3) + 16) - base) >> 2
    same = np.zeros(batch.count, np.int32)
    rounded = (guess + UNIT // 2) & -UNIT
    for value in wide:
        same += value == rounded
    inputs[30] = 32 * same - 256
    inputs[31] = (guess & (UNIT - 1)) * 4 - 128
    return Told(np.clip(inputs, -HIGHEST_INPUT, HIGHEST_INPUT), guess, scale, np.stack(wide[:NEAR]))


# --- patches ---

PATCH, BLOCK = 8, 4  # a patch is 8 x 8 samples, a block 4 x 4 patches
PATCH_INPUTS = 24


def patch_grid(shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches."""
    return -(-shape[0] // PATCH), -(-shape[1] // PATCH)


def patch_inputs(plane: Plane, errors: Plane, highest: int) -> Matrix:
    """What the inference network sees of each patch: float32[24, patches], integers within +-1023, row by row.

    For each of the nine passes inside a patch: mean log error, share of errors of half a level or more; then log of
    the first sample, log of the range of levels, and that share in the four patches around it and in all of these.
    Samples outside the plane count as errors of 0.
    """
    rows, columns = patch_grid((plane.shape[0], plane.shape[1]))
    full = np.zeros((rows * PATCH, columns * PATCH), np.int32)
    full[: plane.shape[0], : plane.shape[1]] = errors
    logs = (log256(full + 16) - 1024) >> 2
    large = np.where(full >= UNIT // 2, 256, 0).astype(np.int32)
    inputs = np.zeros((PATCH_INPUTS, rows, columns), np.int32)
    share = np.zeros((rows, columns), np.int32)
    place = 0
    for stride in (8, 4, 2):
        half = stride >> 1
        for top, left in ((half, half), (0, half), (half, 0)):
            for source in (logs, large):
                part = source[top::stride, left::stride]
                side = PATCH // stride
                summed = part.reshape(rows, side, columns, side).sum(axis=(1, 3), dtype=np.int32)
                inputs[place] = summed >> (2 * (side.bit_length() - 1))
                if source is large and stride == 2:
                    share += inputs[place]
                place += 1
    inputs[18] = (log256(UNIT * plane[::PATCH, ::PATCH] + 16) - 1024) >> 2
    inputs[19] = int(log256(np.array([highest + 1], np.int32))[0]) // 4 - 256
    around = np.pad(share, 1, mode="edge")
    inputs[20], inputs[21] = around[:-2, 1:-1], around[2:, 1:-1]
    inputs[22], inputs[23] = around[1:-1, :-2], around[1:-1, 2:]
    return np.clip(inputs, -HIGHEST_INPUT, HIGHEST_INPUT).reshape(PATCH_INPUTS, -1).astype(np.float32)
