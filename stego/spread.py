"""Spreading one message over a series by the square-root law.

What can be hidden at a constant risk of detection grows with the square root of a frame's samples, not with the
samples (Ker, Pevny, Kodovsky, Fridrich 2008). Shares are therefore proportional to sqrt(samples). Sizes, message
length and order are known to both sides: what counts as a sample is read off the reserved lattice, and frames are
ordered by their fingerprints; embedding keeps both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stego.errors import CarrierError
from stego.lattice import STEP, lattice

#: the budget of the reference frame: .05 bit a sample of 512 x 512, where detectors stay at chance
REFERENCE_SAMPLES = 512 * 512
REFERENCE_BITS = 13_104
#: no frame carries more than this, however small it is (bits per sample)
MAX_RATE = 0.1


def budget(samples: int) -> int:
    """Bytes that a frame of `samples` samples may carry at the reference risk: square-root law, at most MAX_RATE."""
    if samples < 0:
        raise ValueError("samples >= 0")
    bits = min(REFERENCE_BITS * math.sqrt(samples / REFERENCE_SAMPLES), MAX_RATE * samples)
    return int(bits) // 8


def effective_samples(values: NDArray[np.int32]) -> int:
    """Samples of a frame (rows, columns) that can carry, as the reserved lattice tells: equal for cover and stego.

    Sixteen for every lattice sample that is neither the lattice's least or greatest value nor equal to the one on
    its left (air, padding, clipping): frames of a series that are mostly air get small shares.
    """
    known = lattice(values)
    if not known.size:
        return 0
    inside = (known > known.min()) & (known < known.max())
    inside[:, 1:] &= known[:, 1:] != known[:, :-1]
    return int(np.count_nonzero(inside)) * STEP * STEP


def order(fingerprints: Sequence[bytes]) -> list[int]:
    """Numbers of the frames in the order in which they carry the parts.

    Give only frames with effective samples: air frames may be equal. Raises ValueError for equal fingerprints.
    """
    if len(set(fingerprints)) != len(fingerprints):
        raise ValueError("two frames look the same to both sides")
    return sorted(range(len(fingerprints)), key=lambda i: fingerprints[i])


def shares(total: int, samples: Sequence[int]) -> list[int]:
    """Bytes for each frame, in the order given: sum is `total`, proportional to sqrt(samples), at most `MAX_RATE`.

    Integers only from here on, so that both sides agree: weights are isqrt(samples * 2^32). Raises
    CarrierError('capacity') when the series does not carry `total` bytes at MAX_RATE.
    """
    if total < 0 or any(n < 0 for n in samples):
        raise ValueError("total >= 0 and samples >= 0")
    weights = [math.isqrt(n << 32) for n in samples]
    most = [n // 80 for n in samples]  # MAX_RATE, in bytes
    if sum(most) < total:
        raise CarrierError("capacity")
    out = [0] * len(samples)
    open_frames = [i for i, n in enumerate(most) if n]
    left = total
    while left:
        sum_of_weights = sum(weights[i] for i in open_frames)
        # a frame that would get more than it may carry is filled first; the others share the rest
        full = [i for i in open_frames if left * weights[i] >= most[i] * sum_of_weights]
        if not full:
            break
        for i in full:
            out[i] = most[i]
        open_frames = [i for i in open_frames if i not in set(full)]
        left = total - sum(out)
    return _dealt(out, open_frames, weights, left)


def split(message: bytes, samples: Sequence[int]) -> list[bytes]:
    """The message cut into its shares, in the order of `samples`; some may be empty.

    Raises CarrierError('capacity').
    """
    parts, start = [], 0
    for size in shares(len(message), samples):
        parts.append(message[start : start + size])
        start += size
    return parts


def gather(parts: Sequence[bytes], samples: Sequence[int]) -> bytes:
    """Inverse of `split`. Raises ValueError when the parts' lengths are not the shares."""
    message = b"".join(parts)
    if [len(part) for part in parts] != shares(len(message), samples):
        raise ValueError("these are not the parts of one message")
    return message


def _dealt(out: list[int], frames: list[int], weights: list[int], left: int) -> list[int]:
    """Share `left` bytes among `frames` by weight; the bytes that rounding leaves go to the first of them."""
    sum_of_weights = sum(weights[i] for i in frames)
    given = 0
    for i in frames:
        out[i] = left * weights[i] // sum_of_weights
        given += out[i]
    for i in frames[: left - given]:
        out[i] += 1
    return out
