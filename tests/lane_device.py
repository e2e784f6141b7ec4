"""A device without a device: the phases of codec.gpu_steps, compiled for this processor, lane after lane.

The same functions that are compiled for CUDA, over the same packed batches; only the loops around them differ: where a
device has a barrier, the next phase begins here after all lanes have done the one before, each time in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from codec import gpu_kernel, gpu_learn, gpu_steps
from codec.gpu_jobs import Decoded, DecodeJob, EncodeJob
from codec.gpu_kernel import (
    COLUMNS,
    FIELDS,
    GPU_KEPT,
    GPU_STEPS,
    PART_ROOM,
    PERIOD,
    RAW,
    ROWS,
    SAMPLES,
    STATES,
    STEP_PLACE,
    STEPS,
    WORD_COUNT,
    WORDS,
)
from codec.gpu_lanes import LANES, set_lane
from codec.gpu_pack import Batch, fits, pack_batch
from codec.gpu_port import Port
from codec.gpu_steps import FAILED
from codec.rans import LOWEST
from codec.wavetables import LEVEL_FIRST, LEVEL_STRIDE, SHORTEST

GROUPS = 3  # an odd number: shares of the layers that do not come out even


def compile_lane(function: Any) -> Any:
    """For this processor; not cached: the code holds the address of gpu_lanes.LANE."""
    return njit(nogil=True, error_model="numpy")(function)


port = Port(compile_lane)
law_of, room_of, fill_room = port(gpu_kernel.law_of), port(gpu_kernel.room_of), port(gpu_kernel.fill_room)
move_window, run_layer = port(gpu_kernel.move_window), port(gpu_kernel.run_layer)
enter, look, weigh, note = (port(getattr(gpu_steps, name)) for name in ("enter", "look", "weigh", "note"))
push, drop, search, refill = (port(getattr(gpu_steps, name)) for name in ("push", "drop", "search", "refill"))
settle, put_by, bring_back = (port(getattr(gpu_steps, name)) for name in ("settle", "put_by", "bring_back"))
pad_read, pad_write, advance = (port(getattr(gpu_steps, name)) for name in ("pad_read", "pad_write", "advance"))
all_active, raise_row = port(gpu_steps.all_active), port(gpu_steps.raise_row)
pack_head, pairs_of = port(gpu_kernel.pack_head), port(gpu_kernel.pairs_of)
grade, learn_rows = port(gpu_learn.grade), port(gpu_learn.learn_rows)
add_to_cells, halve_cells = port(gpu_learn.add_to_cells), port(gpu_learn.halve_cells)


@njit(nogil=True)
def shuffle(order: Any) -> None:
    """Another order of the lanes (a linear congruential generator's, its state in order[16])."""
    for i in range(LANES - 1, 0, -1):
        order[LANES] = (order[LANES] * 1103515245 + 12345) & 0x7FFFFFFF
        j = (order[LANES] >> 8) % (i + 1)
        order[i], order[j] = order[j], order[i]


@njit(nogil=True, error_model="numpy")
def towards_law(room: Any, law: Any, tile: Any, at: Any, step: Any, order: Any) -> None:
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        look(room, law, at, step, tile[ROWS], tile[COLUMNS])
    for layer in range(3):
        shuffle(order)
        for i in range(LANES):
            set_lane(order[i])
            for group in range(GROUPS):
                run_layer(room, law, tile, layer, group, GROUPS)
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        weigh(room, law)


@njit(nogil=True, error_model="numpy")
def keep(room: Any, at: Any, step: Any, late: Any, order: Any) -> None:
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        put_by(room, at, step, late)
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        bring_back(room, at, step, late)


@njit(nogil=True, error_model="numpy")
def after_sample(room: Any, law: Any, tile: Any, at: Any, step: Any, order: Any) -> None:
    period, late = tile[PERIOD], tile[PERIOD] - SHORTEST
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        settle(room, at, step)
    keep(room, at, step, late, order)
    if not all_active(room):
        shuffle(order)
        for i in range(LANES):
            set_lane(order[i])
            pad_read(room, at, step, period)
        shuffle(order)
        for i in range(LANES):
            set_lane(order[i])
            pad_write(room, at, step)
        keep(room, at, step, late, order)
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        if step < tile[COLUMNS]:
            raise_row(room, at, step)
        add_to_cells(room)
        if law.rate > 0:
            grade(room, law)
        advance(room, period)
    shuffle(order)
    for i in range(LANES):
        set_lane(order[i])
        halve_cells(room)
        for group in range(GROUPS if law.rate > 0 else 0):
            learn_rows(room, pairs_of(tile), law.rate, group, GROUPS)


@njit(nogil=True, error_model="numpy")
def start(room: Any, tile: Any, pool: Any) -> None:
    fill_room(room, tile, pool, 0, 1)
    for lane in range(LANES):
        set_lane(lane)
        pack_head(room, pairs_of(tile), 0, 1)
        enter(room, tile[ROWS], tile[COLUMNS], tile[PERIOD])


@njit(nogil=True, error_model="numpy")
def encode_tile(tile: Any, pool: Any, samples: Any, starts: Any, freqs: Any, words: Any, results: Any, fast: Any,
                slow: Any, parts: Any, counts: Any, state: Any, order: Any) -> None:  # fmt: skip
    """As codec.gpu_kernel.encode_block."""
    law, room = law_of(tile, pool), room_of(tile, fast, slow, parts, counts, state)
    states, columns = tile[STATES], tile[COLUMNS]
    mine, begins, lengths = samples[tile[SAMPLES] :], starts[tile[STEP_PLACE] :], freqs[tile[STEP_PLACE] :]
    start(room, tile, pool)
    room.state[:] = LOWEST
    at = (GPU_KEPT - 1) * LEVEL_STRIDE + LEVEL_FIRST
    for step in range(tile[STEPS]):
        at += LEVEL_STRIDE
        if at >= GPU_STEPS * LEVEL_STRIDE:
            move_window(room, 0, 1)
            at = GPU_KEPT * LEVEL_STRIDE + LEVEL_FIRST
        towards_law(room, law, tile, at, step, order)
        for i in range(LANES):
            set_lane(order[i])
            note(room, law, step, mine, columns, begins, lengths)
        after_sample(room, law, tile, at, step, order)
    turn, out = 0, words[tile[WORDS] : tile[WORDS] + tile[WORD_COUNT]]
    for step in range(tile[STEPS] - 1, -1, -1):
        for begin in range(LANES - states, -1, -states):
            shuffle(order)
            for i in range(LANES):
                set_lane(order[i])
                push(room, step, tile[RAW], mine, columns, tile[PERIOD], begins, lengths, begin, states)
            shuffle(order)
            for i in range(LANES):
                set_lane(order[i])
                drop(room, out, begin, states, turn)
            turn += 1
    results[0], results[1] = room.counts[turn & 1], 0
    results[2:] = room.state


@njit(nogil=True, error_model="numpy")
def decode_tile(tile: Any, pool: Any, samples: Any, words: Any, results: Any, fast: Any, slow: Any, parts: Any,
                counts: Any, state: Any, order: Any) -> None:  # fmt: skip
    """As codec.gpu_kernel.decode_block."""
    law, room = law_of(tile, pool), room_of(tile, fast, slow, parts, counts, state)
    states = tile[STATES]
    mine, text = samples[tile[SAMPLES] :], words[tile[WORDS] : tile[WORDS] + tile[WORD_COUNT]]
    start(room, tile, pool)
    room.state[:] = results[2:]
    at, turn = (GPU_KEPT - 1) * LEVEL_STRIDE + LEVEL_FIRST, 0
    for step in range(tile[STEPS]):
        at += LEVEL_STRIDE
        if at >= GPU_STEPS * LEVEL_STRIDE:
            move_window(room, 0, 1)
            at = GPU_KEPT * LEVEL_STRIDE + LEVEL_FIRST
        towards_law(room, law, tile, at, step, order)
        for begin in range(0, LANES, states):
            shuffle(order)
            for i in range(LANES):
                set_lane(order[i])
                search(room, law, step, begin, states)
            shuffle(order)
            for i in range(LANES):
                set_lane(order[i])
                refill(room, law, text, mine, tile[COLUMNS], begin, states, turn)
            turn += 1
        if room.counts[FAILED] != 0:
            break
        after_sample(room, law, tile, at, step, order)
    results[0], results[1] = room.counts[turn & 1], room.counts[FAILED]
    results[2:] = room.state


class LaneDevice:
    """A codec.gpu.Device; its memory is filled with `garbage` before each tile, as a device's is."""

    def __init__(self, garbage: int = -1_234_567) -> None:
        self.garbage = garbage
        self.order = np.append(np.arange(LANES), 1).astype(np.int64)

    def encode(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        """See codec.gpu.Device."""
        batch = self._pack(jobs)
        starts, freqs = self._room(batch.steps), self._room(batch.steps)
        for tile, results in zip(batch.tiles, batch.results, strict=True):
            arrays = (batch.pool, batch.samples, starts, freqs, batch.words, results)
            encode_tile(tile, *arrays, *self._memory(batch), self.order)
        return [batch.stream(number) for number in range(len(jobs))]

    def decode(self, jobs: Sequence[DecodeJob]) -> list[Any]:
        """See codec.gpu.Device."""
        batch = self._pack(jobs)
        out: list[Decoded | None] = []
        for number, (tile, results) in enumerate(zip(batch.tiles, batch.results, strict=True)):
            memory = self._memory(batch)
            decode_tile(tile, batch.pool, batch.samples, batch.words, results, *memory, self.order)
            head = jobs[number].setting.network.unpack_head(memory[1][batch.master(number)])
            out.append(Decoded(batch.plane(number), head) if batch.closed(number) else None)
        return out

    def _memory(self, batch: Batch) -> tuple[Any, ...]:
        counts, state = np.full(3, self.garbage, np.int64), np.zeros(LANES, np.int64)
        return self._room(batch.fast), self._room(batch.late), np.full(PART_ROOM, np.nan), counts, state

    def _room(self, size: int) -> Any:
        return np.full(size, self.garbage, np.int32)

    @staticmethod
    def _pack(jobs: Sequence[Any]) -> Batch:
        assert all(fits(job.setting.network) for job in jobs)
        batch = pack_batch(jobs)
        assert batch.tiles.shape == (len(jobs), FIELDS)
        return batch
