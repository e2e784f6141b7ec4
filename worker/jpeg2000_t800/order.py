"""In which order the packets of a tile come (B.12): the five progressions and their changes, as one sorted table.

Each progression is a nest of loops over layer, resolution, component and position; a nest of loops is a sort by its
variables, outermost first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported
from worker.jpeg2000_t800.geometry import COMPONENT, LEFT, NUMBER, RESOLUTION, TOP
from worker.jpeg2000_t800.segments import Progression

__all__ = ["packet_order"]

Table = npt.NDArray[np.int64]
MAX_PACKETS = 1 << 21
LAYER = -1
#: Sort keys per progression order (table A.16), outermost first; LAYER or a column of the precinct table.
KEYS: tuple[tuple[int, ...], ...] = (
    (LAYER, RESOLUTION, COMPONENT, NUMBER),
    (RESOLUTION, LAYER, COMPONENT, NUMBER),
    (RESOLUTION, TOP, LEFT, COMPONENT, NUMBER, LAYER),
    (TOP, LEFT, COMPONENT, RESOLUTION, NUMBER, LAYER),
    (COMPONENT, TOP, LEFT, RESOLUTION, NUMBER, LAYER),
)


def _sorted(precincts: Table, precinct: Table, layer: Table, order: int) -> Table:
    keys = [layer if key == LAYER else precincts[precinct, key] for key in KEYS[order]]
    return np.lexsort(keys[::-1])


def packet_order(precincts: Table, layers: int, order: int, changes: Sequence[Progression]) -> Table:
    """(packets, 2) int64: row of the precinct table and layer of every packet, in codestream order.

    With `changes` (POC) each takes what it names and no earlier one took; J2kCorrupt when they leave packets out.
    """
    if len(precincts) * layers > MAX_PACKETS:
        raise J2kUnsupported("too-many-packets", "more packets in a tile than this decoder takes")
    precinct = np.repeat(np.arange(len(precincts), dtype=np.int64), layers)
    layer = np.tile(np.arange(layers, dtype=np.int64), len(precincts))
    if not changes:
        chosen = _sorted(precincts, precinct, layer, order)
        return np.stack([precinct[chosen], layer[chosen]], axis=1)
    free, taken = np.ones(len(precinct), bool), []
    for change in changes:
        resolution, component = precincts[precinct, RESOLUTION], precincts[precinct, COMPONENT]
        named = free & (layer < change.end_layer)
        named &= (resolution >= change.first_resolution) & (resolution < change.end_resolution)
        named &= (component >= change.first_component) & (component < change.end_component)
        rows = np.flatnonzero(named)
        taken.append(rows[_sorted(precincts, precinct[rows], layer[rows], change.order)])
        free[rows] = False
    if free.any():
        raise J2kCorrupt("progression", "the progression changes leave packets out")
    chosen = np.concatenate(taken)
    return np.stack([precinct[chosen], layer[chosen]], axis=1)
