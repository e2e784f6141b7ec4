"""Which standard codecs are worth trying beside the learned coder: an estimate that costs a fraction of trying them.

JPEG XL's full effort takes about ten times the learned coder's time, and on images of the kinds that the network was
trained on it is never shorter. It is on odd ones: colour, palettes, screens, drawings and masks, whose structure is in
exact repeats. What tells them apart costs a JPEG-LS run, which competes anyway, and a quick Lempel-Ziv run over a part.
docs/codec-bench.md has how often the estimate was wrong.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

#: nothing gains more than it may on so short a blob
TINY_BYTES = 64
#: of a frame of at most so many levels (8 bits and less), so few bits a sample: screens, text, ultrasound with frame
FEW_LEVELS, SPARSE_BITS = 256, 1.7
#: of any frame: masks and label maps
BARE_BITS = 0.3
#: the learned coder is shorter than JPEG-LS wherever it understands the image
UNLEARNED = 0.985
#: Lempel-Ziv: bytes looked at, in so many runs of rows, and how near it may come to the coded length
REPEAT_BYTES, REPEAT_RUNS, REPEAT_SHARE = 1 << 16, 2, 1.15
#: packed samples: how near the shortest candidate must be
PACKED_SHARE = 0.97


def is_odd(index: NDArray[np.uint16], count: int, shortest: int, jpegls: int | None) -> bool:
    """Whether JPEG XL (or HTJ2K) might be shorter than the learned coder.

    index: level indices, (rows, columns) or (rows, columns, 3), below `count`; shortest: bytes of the learned coder's
    blob; jpegls: those of JPEG-LS, None if it was not tried.
    """
    if shortest <= TINY_BYTES:
        return False
    if index.ndim == 3:
        if not bool((index == index[..., :1]).all()):
            return True
        index, jpegls = np.ascontiguousarray(index[..., 0]), None  # grey three times: JPEG-LS codes it three times
    bits = 8 * shortest / index.size
    if bits < BARE_BITS or (count <= FEW_LEVELS and bits < SPARSE_BITS):
        return True
    if jpegls is not None and shortest > UNLEARNED * jpegls:
        return True
    return _repeats(index, count) * index.size < REPEAT_SHARE * shortest


def packing_may_win(size: int, count: int, shortest: int) -> bool:
    """Whether samples packed in as few bits as they need come near the shortest candidate."""
    return size * (count - 1).bit_length() * PACKED_SHARE < 8 * shortest


def _repeats(index: NDArray[np.uint16], count: int) -> float:
    """Bytes a sample by Lempel-Ziv alone, estimated on whole rows of a part of the frame."""
    rows = index.reshape(index.shape[0], -1)
    narrow = np.uint8 if count <= 256 else np.uint16
    height = max(1, REPEAT_BYTES // (REPEAT_RUNS * rows.shape[1] * np.dtype(narrow).itemsize))
    length = size = 0
    for run in range(REPEAT_RUNS):
        first = max(0, (2 * run + 1) * rows.shape[0] // (2 * REPEAT_RUNS) - height // 2)
        part = rows[first : first + height].astype(narrow)
        length += len(zlib.compress(part.tobytes(), 1))
        size += part.size
    return length / size
