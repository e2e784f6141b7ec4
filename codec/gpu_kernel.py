"""The wavefront on a device: one block of threads codes one tile, 16 lanes times some groups.

All lanes go through the phases of codec.gpu_steps together; `meet` is the barrier. Everything but the network's layers
is done by group 0, the layers by all. No CUDA in here: codec.gpu_device compiles these functions for a device, the
tests run them without one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.gpu_lanes import LANES
from codec.gpu_learn import add_to_cells, grade, halve_cells, learn_rows, pack_pair
from codec.gpu_steps import (
    BLOCK,
    FAILED,
    STEP_ROWS,
    Room,
    advance,
    all_active,
    bring_back,
    drop,
    enter,
    for_lanes,
    head_sums,
    hidden_layer,
    look,
    note,
    pad_read,
    pad_write,
    push,
    put_by,
    raise_row,
    refill,
    search,
    settle,
    weigh,
)
from codec.rans import LOWEST
from codec.wavecontext import CELLS, CONTEXTS
from codec.wavetables import (
    ERROR_ABOVE,
    ERROR_STEPS,
    ERROR_STRIDE,
    LEVEL_ABOVE,
    LEVEL_FIRST,
    LEVEL_STRIDE,
    SHORTEST,
    SLOTS,
)
from codec.wavetile import Law

# Parameters of a tile, int64[FIELDS]; places are in the pool of int32 or, where said, in the array of that name.
(ROWS, COLUMNS, PERIOD, STEPS, ANCHOR, HIGHEST, K, RAW, STATES, SETS, COMPONENTS, RATE, QUADS1, BLOCKS1, QUADS2,
 BLOCKS2, NET, HEAD, BIASES, CELL_PLACE, TAPS, THRESHOLDS, CLASSES, UPPER, UPPER_SIZE, PREVIOUS, PREVIOUS_SIZE, SAMPLES,
 STEP_PLACE, WORDS, WORD_COUNT, LATE, FIELDS) = range(33)  # fmt: skip
TAP_ROOM = 44 * LANES
RESULTS = 2 + LANES  # of a tile, int64: words written or read, 1 if a word was missing, the states at the end

GPU_KEPT = 28  # steps of samples that are looked back at, and more than 25, which is how far row 0 is raised
GPU_STEPS = 2 * GPU_KEPT  # steps that a tile keeps: the kept ones move to the front at once
INPUT_PAIRS, OUTPUT_ROOM, COMPONENT_ROOM = 45, 16, 5  # what a network may have
X_ROOM = 2 * INPUT_PAIRS * LANES  # `hidden` lies over `x`, which nobody reads once it is packed
#: Where each array of a Room begins in a tile's fast memory, in int32. What is read no more gives its place to others:
#: `pads` lies over `near` and `logs`, the gradient over `sums`. From P_HIDDEN on come hidden and head, as large as the
#: network says: four tiles fit an H200's multiprocessor, and none needs more than every device gives (docs/gpu.md).
_SIZES = (
    GPU_STEPS * LEVEL_STRIDE, ERROR_STEPS * SLOTS * ERROR_STRIDE, SLOTS * LANES, SLOTS * LANES, SLOTS * LANES,
    INPUT_PAIRS * LANES, OUTPUT_ROOM * LANES, COMPONENT_ROOM * 4 * LANES, STEP_ROWS * LANES, CONTEXTS * LANES,
)  # fmt: skip
P_LEVEL, P_ERROR, P_GUESS, P_NEAR, P_LOGS, P_PACKED, P_SUMS, P_MIX, P_STEP, P_WHERE, P_HIDDEN = (
    int(place) for place in np.concatenate(([0], np.cumsum(_SIZES)))
)
PART_ROOM = COMPONENT_ROOM * 4 * LANES  # float64
SHARED_LIMIT = (48 << 10) - 256  # bytes of fast memory that a tile may take; what needs more is coded by a processor
LATE_ROOM = LEVEL_ABOVE + SLOTS * ERROR_ABOVE  # int32 of slow memory for each step from lane 15 to lane -1


def fast_size(pairs: int) -> int:
    """int32 of fast (on a device: shared) memory for a tile, by the network's pairs of hidden values."""
    return P_HIDDEN + max(X_ROOM, pairs * LANES) + pairs * LANES


def slow_size(tile: NDArray[np.int64]) -> int:
    """int32 of slow memory for a tile: what lanes -4..-1 will get, the contexts' cells, the master weights."""
    late = int(tile[PERIOD]) - SHORTEST + 1
    return late * LATE_ROOM + 2 * CELLS + int(tile[BLOCKS1] + tile[BLOCKS2]) * BLOCK * LANES


def meet() -> None:
    """The barrier: a stand-in, replaced where the kernels are compiled."""
    raise NotImplementedError


@for_lanes
def law_of(tile: Any, pool: Any) -> Any:
    """How a tile is coded. Of `sizes` only the first is read: the pairs of inputs."""
    net, taps, thresholds, biases = tile[NET], tile[TAPS], tile[THRESHOLDS], tile[BIASES]
    upper, previous = tile[UPPER], tile[PREVIOUS]
    return Law(
        tile[HIGHEST],
        tile[K],
        tile[RAW],
        tile[SETS],
        pool[thresholds : thresholds + tile[CLASSES]],
        pool[taps : taps + TAP_ROOM],
        tile[COMPONENTS],
        pool[net : net + 1],
        pool[net + 1 :],
        pool[biases : biases + OUTPUT_ROOM],
        tile[RATE],
        pool[upper : upper + tile[UPPER_SIZE]],
        pool[previous : previous + tile[PREVIOUS_SIZE]],
    )


@for_lanes
def pairs_of(tile: Any) -> Any:
    """Pairs of hidden values, both layers together."""
    return (tile[BLOCKS1] + tile[BLOCKS2]) * (BLOCK // 2)


@for_lanes
def room_of(tile: Any, fast: Any, slow: Any, parts: Any, counts: Any, state: Any) -> Any:
    """A tile's memory: `fast` int32[fast_size(pairs)], `slow` int32 of all tiles, `parts` float64[PART_ROOM]."""
    late, first, pairs = tile[PERIOD] - SHORTEST + 1, tile[LATE], pairs_of(tile)
    head = P_HIDDEN + (pairs * LANES if pairs * LANES > X_ROOM else X_ROOM)
    cells = first + late * LATE_ROOM
    master = cells + 2 * CELLS
    return Room(
        fast[P_LEVEL:P_ERROR],
        fast[P_ERROR:P_GUESS],
        slow[first : first + late * LEVEL_ABOVE],
        slow[first + late * LEVEL_ABOVE : first + late * LATE_ROOM],
        fast[P_GUESS:P_NEAR],
        fast[P_NEAR:P_LOGS],
        fast[P_LOGS:P_PACKED],
        fast[P_HIDDEN : P_HIDDEN + X_ROOM],
        fast[P_PACKED:P_SUMS],
        fast[P_SUMS:P_MIX],
        fast[P_SUMS:P_MIX],
        fast[P_HIDDEN:head],
        fast[P_MIX:P_STEP],
        fast[P_STEP:P_WHERE],
        fast[P_NEAR:P_PACKED],
        fast[P_WHERE:P_HIDDEN],
        slow[cells : cells + 2 * CELLS],
        fast[head : head + pairs * LANES],
        slow[master : master + 2 * pairs * LANES],
        parts,
        counts,
        state,
    )


@for_lanes
def fill_room(room: Any, tile: Any, pool: Any, thread: Any, threads: Any) -> None:
    """Before the first step all samples are the anchor, all errors 0, nothing is learnt; `state` is set by others."""
    anchor, head, cells = tile[ANCHOR], tile[HEAD], tile[CELL_PLACE]
    for j in range(thread, room.master.size, threads):
        room.master[j] = pool[head + j]
    for j in range(thread, room.cells.size, threads):
        room.cells[j] = pool[cells + j]
    for j in range(thread, room.level.size, threads):
        room.level[j] = anchor
    for j in range(thread, room.late_level.size, threads):
        room.late_level[j] = anchor
    for j in range(thread, room.error.size, threads):
        room.error[j] = 0
    for j in range(thread, room.late_error.size, threads):
        room.late_error[j] = 0
    for j in range(thread, room.packed.size, threads):
        room.packed[j] = 0
    for j in range(thread, 3, threads):
        room.counts[j] = 0


@for_lanes
def move_window(room: Any, thread: Any, threads: Any) -> None:
    """The samples' last steps become the first."""
    for j in range(thread, GPU_KEPT * LEVEL_STRIDE, threads):
        room.level[j] = room.level[(GPU_STEPS - GPU_KEPT) * LEVEL_STRIDE + j]


@for_lanes
def run_layer(room: Any, law: Any, tile: Any, layer: Any, group: Any, groups: Any) -> None:
    """A group's share of a layer."""
    if layer == 0:
        hidden_layer(room.packed, law.net, 0, tile[QUADS1], tile[BLOCKS1], room.hidden, 0, group, groups)
    elif layer == 1:
        at, pairs = (tile[QUADS1] + 2) * tile[BLOCKS1] * BLOCK, tile[BLOCKS1] * (BLOCK // 2)
        hidden_layer(room.hidden, law.net, at, tile[QUADS2], tile[BLOCKS2], room.hidden, pairs, group, groups)
    else:
        outputs = 3 * law.components
        head_sums(room.hidden, pairs_of(tile), room.head, law.biases, outputs, room.sums, group, groups)


@for_lanes
def towards_law(room: Any, law: Any, tile: Any, at: Any, step: Any, group: Any, groups: Any) -> None:
    """From the neighbours to the logistics, for all lanes."""
    if group == 0:
        look(room, law, at, step, tile[ROWS], tile[COLUMNS])
    meet()
    for layer in range(3):
        run_layer(room, law, tile, layer, group, groups)
        meet()
    if group == 0:
        weigh(room, law)


@for_lanes
def pack_head(room: Any, pairs: Any, first: Any, stride: Any) -> None:
    """The last layer's weights in use, from the master."""
    for j in range(first, pairs, stride):
        pack_pair(room, j)


@for_lanes
def after_sample(room: Any, law: Any, tile: Any, at: Any, step: Any, group: Any, groups: Any) -> None:
    """The samples of a step become neighbours, and the tile learns from them."""
    period, late = tile[PERIOD], tile[PERIOD] - SHORTEST
    if group == 0:
        settle(room, at, step)
    meet()
    if group == 0:
        put_by(room, at, step, late)
    meet()
    if group == 0:
        bring_back(room, at, step, late)
    meet()
    if not all_active(room):
        if group == 0:
            pad_read(room, at, step, period)
        meet()
        if group == 0:
            pad_write(room, at, step)
        meet()
        if group == 0:
            put_by(room, at, step, late)
        meet()
        if group == 0:
            bring_back(room, at, step, late)
        meet()
    if group == 0:
        if step < tile[COLUMNS]:
            raise_row(room, at, step)
        add_to_cells(room)
        if law.rate > 0:
            grade(room, law)
        advance(room, period)
    meet()
    if group == 0:
        halve_cells(room)
    if law.rate > 0:
        learn_rows(room, pairs_of(tile), law.rate, group, groups)
    meet()


@for_lanes
def encode_block(tile: Any, pool: Any, samples: Any, starts: Any, freqs: Any, words: Any, results: Any, fast: Any,
                 slow: Any, parts: Any, counts: Any, state: Any, thread: Any, threads: Any) -> None:  # fmt: skip
    """All of a tile's words, backwards and without the states, into `words` (uint32); `results` int64[RESULTS]."""
    law, room = law_of(tile, pool), room_of(tile, fast, slow, parts, counts, state)
    group, groups, states = thread // LANES, threads // LANES, tile[STATES]
    columns, place, first = tile[COLUMNS], tile[SAMPLES], tile[STEP_PLACE]
    mine, begins, lengths = samples[place:], starts[first:], freqs[first:]
    fill_room(room, tile, pool, thread, threads)
    meet()
    pack_head(room, pairs_of(tile), group, groups)
    if group == 0:
        enter(room, tile[ROWS], columns, tile[PERIOD])
        room.state[thread] = LOWEST
    meet()
    at = (GPU_KEPT - 1) * LEVEL_STRIDE + LEVEL_FIRST
    for step in range(tile[STEPS]):
        at += LEVEL_STRIDE
        if at >= GPU_STEPS * LEVEL_STRIDE:
            move_window(room, thread, threads)
            meet()
            at = GPU_KEPT * LEVEL_STRIDE + LEVEL_FIRST
        towards_law(room, law, tile, at, step, group, groups)
        if group == 0:
            note(room, law, step, mine, columns, begins, lengths)
        after_sample(room, law, tile, at, step, group, groups)
    turn, out = 0, words[tile[WORDS] : tile[WORDS] + tile[WORD_COUNT]]
    for step in range(tile[STEPS] - 1, -1, -1):
        for begin in range(LANES - states, -1, -states):
            if group == 0:
                push(room, step, law.raw, mine, columns, tile[PERIOD], begins, lengths, begin, states)
            meet()
            if group == 0:
                drop(room, out, begin, states, turn)
            turn += 1
            meet()
    if thread == 0:
        results[0] = room.counts[turn & 1]
        results[1] = 0
    if group == 0:
        results[2 + thread] = room.state[thread]


@for_lanes
def decode_block(tile: Any, pool: Any, samples: Any, words: Any, results: Any, fast: Any, slow: Any, parts: Any,
                 counts: Any, state: Any, thread: Any, threads: Any) -> None:  # fmt: skip
    """All of a tile's samples; the first 2 * states of its words are the states and were put into `results`."""
    law, room = law_of(tile, pool), room_of(tile, fast, slow, parts, counts, state)
    group, groups, states = thread // LANES, threads // LANES, tile[STATES]
    mine, text = samples[tile[SAMPLES] :], words[tile[WORDS] : tile[WORDS] + tile[WORD_COUNT]]
    fill_room(room, tile, pool, thread, threads)
    meet()
    pack_head(room, pairs_of(tile), group, groups)
    if group == 0:
        enter(room, tile[ROWS], tile[COLUMNS], tile[PERIOD])
        room.state[thread] = results[2 + thread]
    meet()
    at, turn = (GPU_KEPT - 1) * LEVEL_STRIDE + LEVEL_FIRST, 0
    for step in range(tile[STEPS]):
        at += LEVEL_STRIDE
        if at >= GPU_STEPS * LEVEL_STRIDE:
            move_window(room, thread, threads)
            meet()
            at = GPU_KEPT * LEVEL_STRIDE + LEVEL_FIRST
        towards_law(room, law, tile, at, step, group, groups)
        for begin in range(0, LANES, states):
            if group == 0:
                search(room, law, step, begin, states)
            meet()
            if group == 0:
                refill(room, law, text, mine, tile[COLUMNS], begin, states, turn)
            turn += 1
            meet()
        if room.counts[FAILED] != 0:
            break
        after_sample(room, law, tile, at, step, group, groups)
    if thread == 0:
        results[0], results[1] = room.counts[turn & 1], room.counts[FAILED]
    if group == 0:
        results[2 + thread] = room.state[thread]
