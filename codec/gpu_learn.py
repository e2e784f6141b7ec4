"""What a tile learns from a step's samples, in its head and contexts: phases for single lanes (see codec.gpu_steps)."""

from __future__ import annotations

from typing import Any

import numpy as np

from codec.gpu_lanes import LANES, lane_number, load, splat, splat_at, store
from codec.gpu_steps import ACTIVE, LEVEL, MEAN, for_lanes
from codec.wavecontext import BIAS_LIMIT, CELLS, CONTEXTS, SCALE_LIMIT, SCALE_TABLES
from codec.wavehead import head_gradient
from codec.wavelaw import clamp
from codec.wavetables import ERROR_CAP, HEAD_LIMIT


@for_lanes
def grade(room: Any, law: Any) -> None:
    """The gradient of the last layer's outputs."""
    active = load(room.step, ACTIVE * LANES) > 0
    head_gradient(load(room.step, LEVEL * LANES), active, law.components, room.mix, room.parts, room.gradient)


@for_lanes
def learn_rows(room: Any, pairs: Any, rate: Any, first: Any, stride: Any) -> None:
    """Pairs first, first + stride, .. of the last layer learn; the lane is an output (codec.wavehead.learn_head)."""
    o = lane_number()
    g = o * LANES
    g0, g1, g2, g3 = grade_of(room, g), grade_of(room, g + 1), grade_of(room, g + 2), grade_of(room, g + 3)
    g4, g5, g6, g7 = grade_of(room, g + 4), grade_of(room, g + 5), grade_of(room, g + 6), grade_of(room, g + 7)
    g8, g9, ga, gb = grade_of(room, g + 8), grade_of(room, g + 9), grade_of(room, g + 10), grade_of(room, g + 11)
    gc, gd, ge, gf = grade_of(room, g + 12), grade_of(room, g + 13), grade_of(room, g + 14), grade_of(room, g + 15)
    half = splat(1 << (rate - 1))
    for j in range(first, pairs, stride):
        h, p = room.hidden, j * LANES
        first_row, second_row = load(room.master, 2 * p), load(room.master, 2 * p + LANES)  # slow: asked for early
        even, odd = taught(half, half, g0, splat_at(h, p))
        even, odd = taught(even, odd, g1, splat_at(h, p + 1))
        even, odd = taught(even, odd, g2, splat_at(h, p + 2))
        even, odd = taught(even, odd, g3, splat_at(h, p + 3))
        even, odd = taught(even, odd, g4, splat_at(h, p + 4))
        even, odd = taught(even, odd, g5, splat_at(h, p + 5))
        even, odd = taught(even, odd, g6, splat_at(h, p + 6))
        even, odd = taught(even, odd, g7, splat_at(h, p + 7))
        even, odd = taught(even, odd, g8, splat_at(h, p + 8))
        even, odd = taught(even, odd, g9, splat_at(h, p + 9))
        even, odd = taught(even, odd, ga, splat_at(h, p + 10))
        even, odd = taught(even, odd, gb, splat_at(h, p + 11))
        even, odd = taught(even, odd, gc, splat_at(h, p + 12))
        even, odd = taught(even, odd, gd, splat_at(h, p + 13))
        even, odd = taught(even, odd, ge, splat_at(h, p + 14))
        even, odd = taught(even, odd, gf, splat_at(h, p + 15))
        store(room.master, 2 * p, moved(first_row, even >> rate))
        store(room.master, 2 * p + LANES, moved(second_row, odd >> rate))
        pack_pair(room, j)


@for_lanes
def grade_of(room: Any, place: Any) -> Any:
    """A gradient."""
    return splat_at(room.gradient, place)


@for_lanes
def taught(even: Any, odd: Any, grade: Any, pair: Any) -> Any:
    """Both sums with a lane's gradient times its pair of activations (0..1023) added."""
    return even + grade * (pair & 0xFFFF), odd + grade * (pair >> 16)


@for_lanes
def moved(master: Any, by: Any) -> Any:
    """A master weight after a step."""
    return clamp(master + by, splat(-HEAD_LIMIT), splat(HEAD_LIMIT))


@for_lanes
def pack_pair(room: Any, j: Any) -> None:
    """The weights in use, of the lane's output and inputs 2j and 2j + 1, from the master."""
    even, odd = load(room.master, 2 * j * LANES) >> 16, load(room.master, (2 * j + 1) * LANES) >> 16
    upper = ((even >> 4) & 255) | (((odd >> 4) & 255) << 8)
    store(room.head, j * LANES, upper | ((even & 15) << 16) | ((odd & 15) << 24))


@for_lanes
def add_at(array: Any, place: Any, value: Any) -> None:
    """array[place] += value, whatever other lanes add there (on a device: an atomic addition)."""
    array[place] += value


@for_lanes
def add_to_cells(room: Any) -> None:
    """The sample joins its contexts (codec.wavecontext.learn_contexts, first half)."""
    lane = lane_number()
    if room.step[ACTIVE * LANES + lane] == 0:
        return
    error = (np.int64(room.step[LEVEL * LANES + lane]) << 6) - room.step[MEAN * LANES + lane]
    error = ERROR_CAP if error > ERROR_CAP else (-ERROR_CAP if error < -ERROR_CAP else error)
    size = error if error >= 0 else -error
    for table in range(CONTEXTS):
        cell = room.where[table * LANES + lane]
        add_at(room.cells, cell, np.int32(size if table < SCALE_TABLES else error))
        add_at(room.cells, cell + CELLS, np.int32(1))


@for_lanes
def halve_cells(room: Any) -> None:
    """Cells that are full are halved, each by the first lane that has it (learn_contexts, second half).

    A lane may see the count before or after another halved it: only the first one acts.
    """
    lane = lane_number()
    for table in range(CONTEXTS):
        cell = room.where[table * LANES + lane]
        if room.cells[cell + CELLS] >= (SCALE_LIMIT if table < SCALE_TABLES else BIAS_LIMIT):
            first = True
            for other in range(lane):
                first = first and room.where[table * LANES + other] != cell
            if first:
                room.cells[cell] >>= 1
                room.cells[cell + CELLS] >>= 1
