"""The dual path: a frame's level indices as planes, planes as tiles, tiles as one rANS stream each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.dualformat import RADIUS, Plan, TileJob, Words
from codec.errors import CorruptBitstream
from codec.globalpath import code_global
from codec.localpath import code_local
from codec.plan import NO_WORDS, TILE_SAMPLES, count_global, make_plan, padded
from codec.rans import ENCODE, FAILED, IO_FIELDS, MODE, SYMBOL, closed, flush, open_stream
from codec.sideinfo import code_coefficients
from codec.tables import PAD, TOP
from codec.wire import put_crc, put_signed, put_varint

NO_GAINS = np.zeros(0, np.float64)
T = TypeVar("T")
Done = TypeVar("Done")


def over_tiles(work: Callable[[T], Done], tiles: Iterable[T], threads: int) -> list[Done]:
    """`work` of every tile in order; the kernels drop the interpreter lock, so threads run in parallel."""
    items = list(tiles)
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(work, items))


def encode_dual(
    index: NDArray[np.uint16], count: int, threads: int, tile_samples: int = TILE_SAMPLES
) -> tuple[bytes, dict[str, int]]:
    """Code level indices, (rows, columns) or (rows, columns, 3), all below `count`; the bytes and facts about them."""
    out, facts = bytearray(), {}
    if index.ndim == 2:
        facts = _encode_plane(out, 0, index.astype(np.int32), count - 1, threads, tile_samples)
        return bytes(out), facts
    kind = color.choose_transform(index)
    out.append(kind)
    start = 0
    for number, plane in enumerate(color.forward(index, kind)):
        low, high = int(plane.min()), int(plane.max())
        put_signed(out, low)
        put_varint(out, high - low)
        shifted = np.ascontiguousarray(plane - np.int32(low))
        for name, fact in _encode_plane(out, start, shifted, high - low, threads, tile_samples).items():
            facts[f"{name}{number}"] = fact
        start = len(out)
    facts["transform"] = kind
    return bytes(out), facts


def _encode_plane(
    out: bytearray, start: int, plane: NDArray[np.int32], highest: int, threads: int, tile_samples: int
) -> dict[str, int]:
    """Append one plane (values 0..highest); its header's checksum begins at `start` of `out`."""
    if highest == 0:
        put_crc(out, start)
        return {"k": 0, "raw": 0, "tiles": 0}
    plan = make_plan(plane, highest, tile_samples)
    side = len(out)
    _put_plan(out, plan)
    side = len(out) - side
    put_crc(out, start)
    tiles = [plane[at : at + plan.tile_rows] for at in range(0, plane.shape[0], plan.tile_rows)]
    for tile, words in zip(tiles, over_tiles(lambda t: _encode_tile(t, highest, plan), tiles, threads), strict=True):
        start = len(out)
        put_varint(out, int(tile[0, 0]))
        put_varint(out, words.size)
        out += words.astype("<u4").tobytes()
        put_crc(out, start)
    return {"k": plan.k, "raw": plan.raw, "tiles": len(tiles), "side": side, "sets": plan.predictors.taps.shape[0]}


def _put_plan(out: bytearray, plan: Plan) -> None:
    """Append a plane's parameters."""
    taps, thresholds = plan.predictors.taps, plan.predictors.thresholds
    out.append(plan.k | plan.raw << 5)
    put_varint(out, plan.tile_rows)
    out.append(taps.shape[0] | plan.precision << 4)
    for gap in np.diff(thresholds, prepend=-1):
        put_varint(out, int(gap) - 1)
    if taps.shape[0]:
        words = code_taps(taps >> plan.precision, RADIUS)
        put_varint(out, words.size)
        out += words.astype("<u4").tobytes()


def code_taps(taps: NDArray[np.int32], radius: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Taps int32[sets, n] as rANS words; `radius` int64[n]: the distance class of each."""
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    io[MODE] = ENCODE
    starts, freqs = np.zeros(taps.size * 64, np.uint32), np.zeros(taps.size * 64, np.uint32)
    code_coefficients(io, NO_WORDS, starts, freqs, cost, taps.copy(), radius)
    words: NDArray[np.uint32] = flush(starts, freqs, int(io[SYMBOL]))
    return words


def read_taps(words: NDArray[np.uint32], sets: int, radius: NDArray[np.int64]) -> NDArray[np.int32]:
    """Inverse of code_taps. Raises CorruptBitstream."""
    taps = np.zeros((sets, radius.size), np.int32)
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    open_stream(io, words)
    code_coefficients(io, words, NO_WORDS, NO_WORDS, cost, taps, radius)
    if not closed(io, words):
        raise CorruptBitstream("predictor coefficients are damaged")
    return taps


def _encode_tile(tile: NDArray[np.int32], highest: int, plan: Plan) -> NDArray[np.uint32]:
    """The rANS words of one tile: all of G, then every sample given G."""
    upper = np.ascontiguousarray(tile >> plan.k)
    decisions = count_global(upper, highest >> plan.k)[1] if highest >> plan.k else 0
    room = decisions + tile.size * (2 if plan.raw else 1)
    starts, freqs = np.empty(room, np.uint32), np.empty(room, np.uint32)
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    io[MODE] = ENCODE
    if highest >> plan.k:
        code_global(io, NO_WORDS, starts, freqs, cost, upper, highest >> plan.k)
    code_local(
        io, NO_WORDS, starts, freqs, cost, padded(tile, int(tile[0, 0])), upper, highest, plan.k, plan.raw,
        plan.predictors.thresholds, plan.predictors.taps, NO_GAINS,
    )  # fmt: skip
    words: NDArray[np.uint32] = flush(starts, freqs, int(io[SYMBOL]))
    return words


class KernelEngine:
    """The fast decoder: numba kernels, tiles spread over `threads` threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def taps(self, words: Words, sets: int) -> NDArray[np.int32]:
        """See Engine."""
        return read_taps(words, sets, RADIUS)

    def tiles(self, job: TileJob) -> NDArray[np.int32]:
        """See Engine."""
        out = np.empty(job.shape, np.int32)

        def work(tile: tuple[int, int, int, Words]) -> bool:
            first, rows, anchor, words = tile
            return _decode_tile(out[first : first + rows], anchor, words, job.highest, job.plan)

        if not all(over_tiles(work, job.tiles, self._threads)):
            raise CorruptBitstream("tile does not end where it should")
        return out


def _decode_tile(out: Any, anchor: int, words: NDArray[np.uint32], highest: int, plan: Plan) -> bool:
    """Decode one tile into `out`; whether its stream was whole."""
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    open_stream(io, words)
    upper = np.zeros(out.shape, np.int32)
    if highest >> plan.k and not io[FAILED]:
        code_global(io, words, NO_WORDS, NO_WORDS, cost, upper, highest >> plan.k)
    if io[FAILED]:
        return False
    buf = padded(np.full(out.shape, anchor, np.int32), anchor)
    code_local(
        io, words, NO_WORDS, NO_WORDS, cost, buf, upper, highest, plan.k, plan.raw,
        plan.predictors.thresholds, plan.predictors.taps, NO_GAINS,
    )  # fmt: skip
    out[:] = buf[TOP:, PAD : PAD + out.shape[1]]
    return closed(io, words)
