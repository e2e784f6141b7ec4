"""Which standard codecs are worth trying beside the learned coder: an estimate that costs a fraction of trying them.

JPEG XL's full effort takes about ten times the learned coder's time, and on images of the kinds that the network was
trained on it is never shorter. It is on odd ones: colour, palettes, screens, drawings and masks, whose structure is in
exact repeats; and on pictures that were processed after they had been quantised. What tells them apart costs a JPEG-LS
run, which competes anyway, and counts over a part of the frame.
docs/codec-bench.md has how often the estimate was wrong.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: nothing gains more than it may on so short a blob
TINY_BYTES = 64
#: almost nothing to code: gradients, blank frames
BARE_BITS = 0.1
#: of the samples whose left and upper neighbours differ by so many levels at least, a share that equals one of the two:
#: drawings, label maps, magnified pixels, ultrasound with its frame. Natural images of the development set have .2 at
#: most (8 bits; .17 of more), those on which JPEG XL was far shorter .22 at least
STEP, COPIES = 4, 0.21
#: of the differences to the left neighbour, the share above the line through the two beside it, summed over those that
#: are clearly more frequent than both, 0 aside. Coarse steps under an offset that varies slowly (a radiograph processed
#: after it was quantised) make such a comb, which JPEG XL's tables of frequencies hold and a mixture of smooth laws
#: cannot. The one image of the development set with a comb has .13, all others .03 at most
COMB = 0.06
CLEARLY = 3.0  # standard deviations
#: the learned coder is shorter than JPEG-LS wherever it understands the image
UNLEARNED = 0.985
#: samples looked at, in so many runs of whole rows
SAMPLES, RUNS = 1 << 16, 4
#: Lempel-Ziv: how near it may come to the coded length
REPEAT_SHARE = 1.15
#: packed samples: how near the shortest candidate must be
PACKED_SHARE = 0.97


def looks_odd(index: NDArray[np.uint16]) -> bool:
    """Whether a frame is odd for what it shows, whatever the learned coder makes of it.

    index: level indices, (rows, columns) or (rows, columns, 3).
    """
    if index.ndim == 3:
        return not bool((index == index[..., :1]).all())
    return _copies(index) > COPIES


def has_comb(index: NDArray[np.uint16]) -> bool:
    """Whether some differences between neighbours are far more frequent than those beside them: then JPEG XL's full
    effort is worth its time, and its quick one says nothing of it.

    index: as for `looks_odd`; colour has none.
    """
    if index.ndim == 3 or index.shape[1] < 2:
        return False
    steps = np.concatenate([(run[:, 1:].astype(np.int32) - run[:, :-1]).ravel() for run in _runs(index)])
    least = int(steps.min()) - 1
    count = np.bincount(steps - least, minlength=int(steps.max()) - least + 2).astype(np.float64)
    before, here, after = count[:-2], count[1:-1], count[2:]
    most = np.maximum(before, after)
    clear = here - most > CLEARLY * np.sqrt(here + most + 1)
    clear &= np.abs(np.arange(here.size) + least + 1) > 1  # no edge in any natural image: many zeros
    return float((here - (before + after) / 2)[clear].sum()) > COMB * steps.size


def is_odd(index: NDArray[np.uint16], shortest: int, jpegls: int | None, repeats: float) -> bool:
    """Whether JPEG XL (or HTJ2K) might be shorter than the learned coder on a frame that does not look odd.

    index: as for `looks_odd`; shortest: bytes of the learned coder's blob; jpegls: those of JPEG-LS, None if it was not
    tried; repeats: of this frame.
    """
    if shortest <= TINY_BYTES:
        return False
    size = index.shape[0] * index.shape[1]  # of grey three times, one of the three
    if index.ndim == 2 and jpegls is not None and shortest > UNLEARNED * jpegls:
        return True
    return bool(8 * shortest / size < BARE_BITS or repeats * size < REPEAT_SHARE * shortest)


def packing_may_win(size: int, count: int, shortest: int) -> bool:
    """Whether samples packed in as few bits as they need come near the shortest candidate."""
    return size * (count - 1).bit_length() * PACKED_SHARE < 8 * shortest


def _runs(index: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
    """Runs of whole rows, two at least, evenly spread over a plane; some SAMPLES together."""
    rows = index.shape[0]
    height = min(rows, max(2, SAMPLES // (RUNS * index.shape[1])))
    for run in range(RUNS):
        first = min(rows - height, (2 * run + 1) * rows // (2 * RUNS))
        yield index[first : first + height]


def _copies(index: NDArray[np.uint16]) -> float:
    """The share of samples that equal the one to the left or the one above, of those where these two differ clearly."""
    differ = copied = 0
    for run in _runs(index):
        here, left, above = run[1:, 1:], run[1:, :-1], run[:-1, 1:]
        edge = np.maximum(left, above) - np.minimum(left, above) >= STEP
        differ += int(edge.sum())
        copied += int((edge & ((here == left) | (here == above))).sum())
    return copied / differ if differ else 0.0


def repeats(index: NDArray[np.uint16], count: int) -> float:
    """Bytes a sample (of one plane) by Lempel-Ziv alone, of a part of the frame. index: all below `count`."""
    index = index if index.ndim == 2 else index[..., 0]
    narrow = np.uint8 if count <= 256 else np.uint16
    length = size = 0
    for run in _runs(index):
        length += len(zlib.compress(run.astype(narrow).tobytes(), 1))
        size += run.size
    return length / size
