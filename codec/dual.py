"""The dual path: a frame's level indices as planes, planes as tiles, tiles as one rANS stream each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.errors import CorruptBitstream
from codec.fit import Predictors
from codec.globalpath import code_global
from codec.localpath import code_local
from codec.plan import NO_WORDS, Plan, count_global, make_plan, padded
from codec.rans import ENCODE, FAILED, IO_FIELDS, MODE, SYMBOL, closed, flush, open_stream
from codec.sideinfo import code_coefficients
from codec.tables import PAD, TAPS, TOP
from codec.wire import Reader, put_crc, put_signed, put_varint

MAX_SETS = 12
MAX_WORDS = 1 << 28
MAX_ACTIVITY = 5 << 17
NO_GAINS = np.zeros(0, np.float64)
RADIUS = np.array([min(2, max(-row, abs(column)) - 1) for row, column in TAPS], np.int64)
T = TypeVar("T")
Done = TypeVar("Done")


def _over_tiles(work: Callable[[T], Done], tiles: Iterable[T], threads: int) -> list[Done]:
    """`work` of every tile in order; the kernels drop the interpreter lock, so threads run in parallel."""
    items = list(tiles)
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(work, items))


def encode_dual(index: NDArray[np.uint16], count: int, threads: int) -> tuple[bytes, dict[str, int]]:
    """Code level indices, (rows, columns) or (rows, columns, 3), all below `count`; the bytes and facts about them."""
    out, facts = bytearray(), {}
    if index.ndim == 2:
        facts = _encode_plane(out, 0, index.astype(np.int32), count - 1, threads)
        return bytes(out), facts
    kind = color.choose_transform(index)
    out.append(kind)
    start = 0
    for number, plane in enumerate(color.forward(index, kind)):
        low, high = int(plane.min()), int(plane.max())
        put_signed(out, low)
        put_varint(out, high - low)
        shifted = np.ascontiguousarray(plane - np.int32(low))
        for name, fact in _encode_plane(out, start, shifted, high - low, threads).items():
            facts[f"{name}{number}"] = fact
        start = len(out)
    facts["transform"] = kind
    return bytes(out), facts


def _encode_plane(
    out: bytearray, start: int, plane: NDArray[np.int32], highest: int, threads: int
) -> dict[str, int]:
    """Append one plane (values 0..highest); its header's checksum begins at `start` of `out`."""
    if highest == 0:
        put_crc(out, start)
        return {"k": 0, "raw": 0, "tiles": 0}
    plan = make_plan(plane, highest)
    side = len(out)
    _put_plan(out, plan)
    side = len(out) - side
    put_crc(out, start)
    tiles = [plane[at : at + plan.tile_rows] for at in range(0, plane.shape[0], plan.tile_rows)]
    for tile, words in zip(tiles, _over_tiles(lambda t: _encode_tile(t, highest, plan), tiles, threads), strict=True):
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
        words = _code_taps(taps >> plan.precision)
        put_varint(out, words.size)
        out += words.astype("<u4").tobytes()


def _code_taps(taps: NDArray[np.int32]) -> NDArray[np.uint32]:
    """The taps as rANS words."""
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    io[MODE] = ENCODE
    starts, freqs = np.zeros(taps.size * 64, np.uint32), np.zeros(taps.size * 64, np.uint32)
    code_coefficients(io, NO_WORDS, starts, freqs, cost, taps.copy(), RADIUS)
    words: NDArray[np.uint32] = flush(starts, freqs, int(io[SYMBOL]))
    return words


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


def decode_dual(reader: Reader, shape: tuple[int, ...], count: int, threads: int) -> NDArray[np.int32]:
    """Level indices (int32, `shape`) from the dual coder's part, which ends where `reader` ends."""
    start = reader.position
    if len(shape) == 2:
        return decode_plane(reader, start, (shape[0], shape[1]), count - 1, lambda job: decode_tiles(job, threads))
    return decode_colour(reader, shape, count, lambda job: decode_tiles(job, threads))


class TileJob:
    """Everything needed to decode the tiles of one plane: parameters and, per tile, (first row, anchor, words)."""

    def __init__(self, shape: tuple[int, int], highest: int, plan: Plan) -> None:
        self.shape, self.highest, self.plan = shape, highest, plan
        self.tiles: list[tuple[int, int, NDArray[np.uint32]]] = []


TileDecoder = Callable[[TileJob], NDArray[np.int32]]


def decode_colour(reader: Reader, shape: tuple[int, ...], count: int, decoder: TileDecoder) -> NDArray[np.int32]:
    """Three planes and the inverse colour transform."""
    start = reader.position
    kind = reader.byte()
    if kind >= len(color.TRANSFORMS):
        raise CorruptBitstream("unknown colour transform")
    planes = []
    for _ in range(3):
        low, span = reader.signed(1 << 17), reader.varint((1 << 17) - 1)
        plane = decode_plane(reader, start, (shape[0], shape[1]), span, decoder)
        planes.append(plane + np.int32(low))
        start = reader.position
    index = color.inverse((planes[0], planes[1], planes[2]), kind)
    if int(index.min()) < 0 or int(index.max()) >= count:
        raise CorruptBitstream("sample outside the frame's levels")
    return index


def decode_plane(
    reader: Reader, start: int, shape: tuple[int, int], highest: int, decoder: TileDecoder
) -> NDArray[np.int32]:
    """One plane (int32, `shape`): parameters, tiles, and `decoder` for the samples."""
    if highest == 0:
        reader.check_crc(start, "plane")
        return np.zeros(shape, np.int32)
    job = TileJob(shape, highest, _read_plan(reader, start, shape[0], highest))
    for first in range(0, shape[0], job.plan.tile_rows):
        start = reader.position
        anchor, size = reader.varint(highest), reader.varint(MAX_WORDS)
        words = np.frombuffer(reader.take(4 * size), "<u4").astype(np.uint32)
        reader.check_crc(start, "tile")
        job.tiles.append((first, anchor, words))
    plane = decoder(job)
    if int(plane.max()) > highest:
        raise CorruptBitstream("sample outside the plane's range")
    return plane


def _read_plan(reader: Reader, start: int, rows: int, highest: int) -> Plan:
    """A plane's parameters, checked against their CRC before they are used."""
    split, tile_rows, layout = reader.byte(), reader.varint(rows), reader.byte()
    k, raw, sets, precision = split & 31, split >> 5, layout & 15, layout >> 4
    if not 1 <= k <= highest.bit_length() or raw > k or tile_rows == 0 or sets > MAX_SETS or precision > 4:
        raise CorruptBitstream("plane parameters out of range")
    thresholds, last = [], -1
    for _ in range(max(0, sets - 2)):
        last += 1 + reader.varint(MAX_ACTIVITY)
        thresholds.append(last)
    words = np.zeros(0, np.uint32)
    if sets:
        words = np.frombuffer(reader.take(4 * reader.varint(1 << 12)), "<u4").astype(np.uint32)
    reader.check_crc(start, "plane header")
    taps = np.zeros((sets, len(TAPS)), np.int32)
    if sets:
        io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
        open_stream(io, words)
        code_coefficients(io, words, NO_WORDS, NO_WORDS, cost, taps, RADIUS)
        if not closed(io, words):
            raise CorruptBitstream("predictor coefficients are damaged")
        taps = np.clip(taps.astype(np.int64) << precision, -32767, 32767).astype(np.int32)
    return Plan(k, raw, tile_rows, precision, Predictors(np.array(thresholds, np.int64), taps))


def decode_tiles(job: TileJob, threads: int) -> NDArray[np.int32]:
    """All tiles of a plane with the numba kernels."""
    out = np.empty(job.shape, np.int32)

    def work(item: tuple[int, int, NDArray[np.uint32]]) -> bool:
        first, anchor, words = item
        rows = min(job.plan.tile_rows, job.shape[0] - first)
        return _decode_tile(out[first : first + rows], anchor, words, job.highest, job.plan)

    if not all(_over_tiles(work, job.tiles, threads)):
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
