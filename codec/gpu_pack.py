"""Batches of tile jobs as the flat arrays that the device kernels read: parameters, a pool of int32, places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codec.gpu_jobs import DecodeJob, EncodeJob
from codec.gpu_kernel import (
    ANCHOR,
    BIASES,
    BLOCKS1,
    BLOCKS2,
    CELL_PLACE,
    CLASSES,
    COLUMNS,
    COMPONENT_ROOM,
    COMPONENTS,
    FIELDS,
    HEAD,
    HIGHEST,
    INPUT_PAIRS,
    LATE,
    NET,
    OUTPUT_ROOM,
    PERIOD,
    PREVIOUS,
    PREVIOUS_SIZE,
    QUADS1,
    QUADS2,
    RATE,
    RAW,
    RESULTS,
    ROWS,
    SAMPLES,
    SETS,
    SHARED_LIMIT,
    STATES,
    STEP_PLACE,
    STEPS,
    TAP_ROOM,
    TAPS,
    THRESHOLDS,
    UPPER,
    UPPER_SIZE,
    WORD_COUNT,
    WORDS,
    K,
    fast_size,
    slow_size,
)
from codec.gpu_lanes import LANES
from codec.gpu_steps import BLOCK
from codec.network import Network
from codec.rans import LOWEST
from codec.wave import geometry, skew_around
from codec.wavecontext import fresh_cells

__all__ = ["Batch", "fits", "pack_batch"]

Job = EncodeJob | DecodeJob
FRESH_CELLS = fresh_cells()


def fits(network: Network) -> bool:
    """Whether the device kernels have room for this network; what does not fit is coded by a processor."""
    packed = network.packed
    small = all(int(w.min()) >= -128 and int(w.max()) <= 127 for w in (network.w1, network.w2))
    memory = 4 * fast_size(packed.head.size // (2 * OUTPUT_ROOM))
    return (
        small and network.inputs <= 2 * INPUT_PAIRS and network.components <= COMPONENT_ROOM and memory <= SHARED_LIMIT
    )


def pack_hidden(network: Network) -> NDArray[np.int32]:
    """int32: the pairs of inputs, then per hidden layer weights, biases, gains.

    Weights [block, quad, 8], each int32 four int8 for inputs 4q .. 4q + 3; all padded with zeros to whole blocks.
    """
    parts = [np.array([(network.inputs + 1) // 2], np.int32)]
    columns = -(-network.inputs // 4) * 4
    for w, b, g in ((network.w1, network.b1, network.g1), (network.w2, network.b2, network.g2)):
        rows = -(-w.shape[0] // BLOCK) * BLOCK
        whole = np.zeros((rows, columns), np.int8)
        whole[: w.shape[0], : w.shape[1]] = w
        quads = whole.reshape(rows, columns // 4, 4).view("<i4").reshape(rows // BLOCK, BLOCK, columns // 4)
        parts.append(np.ascontiguousarray(quads.transpose(0, 2, 1)).ravel().astype(np.int32))
        for line in (b, g):
            padded = np.zeros(rows, np.int32)
            padded[: line.size] = line
            parts.append(padded)
        columns = rows
    return np.concatenate(parts)


@dataclass
class _Pool:
    """int32 arrays laid end to end; the same array is laid once."""

    parts: list[NDArray[np.int32]] = field(default_factory=list)
    size: int = 0
    known: dict[int, int] = field(default_factory=dict)
    networks: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def put(self, array: NDArray[np.int32], key: object = None) -> int:
        """Where it begins. `key`: an object that lives as long as the pool and stands for the array."""
        if key is not None and id(key) in self.known:
            return self.known[id(key)]
        place, self.size = self.size, self.size + array.size
        self.parts.append(array)
        if key is not None:
            self.known[id(key)] = place
        return place

    def put_network(self, network: Network) -> tuple[int, int, int]:
        """Where its hidden layers, its head (int32[hidden values, 16], weights << 16) and the head's biases begin."""
        packed = network.packed
        if id(packed) not in self.networks:
            places = self.put(pack_hidden(network)), self.put(packed.head), self.put(packed.biases)
            self.networks[id(packed)] = places
        return self.networks[id(packed)]

    def whole(self) -> NDArray[np.int32]:
        """All of them, int32[1] at least."""
        return np.concatenate([*self.parts, np.zeros(1, np.int32)])


@dataclass(frozen=True)
class Batch:
    """Tiles for one launch.

    tiles int64[n, FIELDS]; pool int32; samples int32 (of all tiles, row by row; to be filled when decoding); words
    uint32 (to be filled when encoding); results int64[n, RESULTS]; steps: room for `starts` and `freqs`, int32 each;
    late: of the slow memory, int32; fast: of the fast memory of each tile.
    """

    tiles: NDArray[np.int64]
    pool: NDArray[np.int32]
    samples: NDArray[np.int32]
    words: NDArray[np.uint32]
    results: NDArray[np.int64]
    steps: int
    late: int
    fast: int

    def plane(self, number: int) -> NDArray[np.int32]:
        """A tile's samples."""
        tile = self.tiles[number]
        rows, columns, place = int(tile[ROWS]), int(tile[COLUMNS]), int(tile[SAMPLES])
        return self.samples[place : place + rows * columns].reshape(rows, columns)

    def master(self, number: int) -> slice:
        """Where a tile's head lies in the slow memory, as Network.packed has it."""
        tile = self.tiles[number]
        end = int(tile[LATE]) + slow_size(tile)
        return slice(end - int(tile[BLOCKS1] + tile[BLOCKS2]) * BLOCK * LANES, end)

    def stream(self, number: int) -> NDArray[np.uint32]:
        """A coded tile's words as the decoder reads them: states, high half first, then the words, turned round."""
        tile, result = self.tiles[number], self.results[number]
        place, states = int(tile[WORDS]), result[2 : 2 + int(tile[STATES])]
        halves = np.stack((states >> 32, states & 0xFFFFFFFF), axis=1).ravel().astype(np.uint32)
        return np.concatenate((halves, self.words[place : place + int(result[0])][::-1]))

    def closed(self, number: int) -> bool:
        """Whether a decoded tile's stream was whole: all words read, none missing, all states as they began."""
        tile, result = self.tiles[number], self.results[number]
        states = result[2 : 2 + int(tile[STATES])]
        return bool(result[0] == tile[WORD_COUNT] and result[1] == 0 and (states == LOWEST).all())


def pack_batch(jobs: Sequence[Job]) -> Batch:
    """The arrays of a batch."""
    pool, tiles = _Pool(), np.zeros((len(jobs), FIELDS), np.int64)
    results = np.zeros((len(jobs), RESULTS), np.int64)
    samples, words, steps, late, room = [], [], 0, 0, 0
    places = 0
    for tile, result, job in zip(tiles, results, jobs, strict=True):
        _put_law(tile, job, pool)
        rows, columns = int(tile[ROWS]), int(tile[COLUMNS])
        tile[SAMPLES], tile[LATE], tile[STEP_PLACE], tile[WORDS] = places, late, steps, room
        places += rows * columns
        late += slow_size(tile)
        result[2:] = LOWEST
        if isinstance(job, EncodeJob):
            samples.append(job.tile.ravel())
            steps += int(tile[STEPS]) * LANES
            tile[WORD_COUNT] = rows * columns * (2 if job.setting.raw else 1)
        else:
            words.append(_open(result, job))
            tile[WORD_COUNT] = words[-1].size
        room += int(tile[WORD_COUNT])
    return Batch(
        tiles,
        pool.whole(),
        np.concatenate(samples).astype(np.int32) if samples else np.zeros(places, np.int32),
        np.concatenate(words) if words else np.zeros(room, np.uint32),
        results,
        steps,
        late,
        max((fast_size(int(tile[BLOCKS1] + tile[BLOCKS2]) * BLOCK // 2) for tile in tiles), default=0),
    )


def _open(result: NDArray[np.int64], job: DecodeJob) -> NDArray[np.uint32]:
    """The words behind the states; the states into `result`."""
    count = job.setting.states
    head = job.words[: 2 * count].astype(np.int64)
    states = head[0::2] << 32 | head[1::2] if head.size == 2 * count else np.zeros(1, np.int64)
    if (states < LOWEST).any():  # also such as have bit 63
        result[2:] = 0  # what comes of it ends in no state that `closed` accepts
        return np.zeros(0, np.uint32)
    result[2 : 2 + count] = states
    return job.words[2 * count :]


def _put_law(tile: NDArray[np.int64], job: Job, pool: _Pool) -> None:
    """Everything of a tile's parameters that says how it is coded (codec.wave._law)."""
    setting = job.setting
    rows, columns = job.tile.shape if isinstance(job, EncodeJob) else job.shape
    shape = geometry(rows, columns)
    bits = setting.highest.bit_length()
    k = min(setting.k, bits)
    tile[[ROWS, COLUMNS, PERIOD, STEPS]] = shape
    tile[[ANCHOR, HIGHEST, K, RAW, STATES]] = job.anchor, setting.highest, k, setting.raw, setting.states
    network = setting.network
    blocks = [-(-w.shape[0] // BLOCK) for w in (network.w1, network.w2)]
    tile[[NET, HEAD, BIASES]] = pool.put_network(network)
    if job.head is not None:
        tile[HEAD] = pool.put(network.pack_head(job.head))
    tile[[QUADS1, BLOCKS1, QUADS2, BLOCKS2]] = -(-network.inputs // 4), blocks[0], blocks[0] * BLOCK // 4, blocks[1]
    tile[COMPONENTS], tile[RATE] = network.components, setting.rate
    tile[CELL_PLACE] = pool.put(FRESH_CELLS, FRESH_CELLS)
    taps, thresholds = setting.predictors.taps, np.minimum(setting.predictors.thresholds, 1 << 30).astype(np.int32)
    arranged = np.zeros((TAP_ROOM // LANES, LANES), np.int32)
    arranged[: taps.shape[1], : taps.shape[0]] = taps.T
    tile[SETS], tile[CLASSES] = taps.shape[0], thresholds.size
    tile[TAPS] = pool.put(arranged.ravel(), setting.predictors)
    tile[THRESHOLDS] = pool.put(thresholds, setting.predictors.thresholds)
    if job.upper is not None and k < bits:
        around = skew_around(np.pad(job.upper, 1, mode="edge"), shape[2], shape[3])
        tile[UPPER], tile[UPPER_SIZE] = pool.put(around), around.size
    if job.previous is not None:
        before = skew_around(np.ascontiguousarray(job.previous), shape[2], shape[3])
        tile[PREVIOUS], tile[PREVIOUS_SIZE] = pool.put(before), before.size
