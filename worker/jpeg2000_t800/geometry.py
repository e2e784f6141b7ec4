"""How a tile is cut (Annex B): components, resolutions, sub-bands, precincts and code-blocks, as flat integer tables.

Tables instead of objects, because the packet reader and the block decoder are compiled loops over them. All
coefficients of a tile-component live in one array in the usual pyramid: the lowest LL at the origin, each level's HL to
the right of what lies below it, LH under it, HH diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported
from worker.jpeg2000_t800.segments import Coding, Quantization

__all__ = ["Component", "TileTables", "plan_tile", "resolution_rectangle"]

Table = npt.NDArray[np.int64]
Rectangle = tuple[int, int, int, int]  # x0, y0, x1, y1
MAX_PLANES = 30  # magnitudes stay below 2**30, so that int32 holds every value a legal codestream can produce
# Bounds on the tables of one tile (some 100 bytes a row), far above what any encoder of medical images makes.
MAX_PRECINCTS = 1 << 19
MAX_BLOCKS = 1 << 21

# columns of TileTables.precincts
COMPONENT, RESOLUTION, NUMBER, TOP, LEFT, FIRST_PART, PARTS = range(7)
# columns of TileTables.parts: a precinct's share of one sub-band; bounds are sub-band coordinates
X0, Y0, X1, Y1, ACROSS, DOWN, FIRST_BLOCK, FIRST_NODE, BAND = range(9)
# columns of TileTables.bands
B_COMPONENT, B_ORIENTATION, B_X, B_Y, B_PLANES, B_STYLE, B_XCB, B_YCB = range(8)
# columns of TileTables.blocks: place in the pyramid, size, band
C_X, C_Y, C_WIDTH, C_HEIGHT, C_BAND = range(5)


@dataclass(frozen=True)
class Component:
    """What one tile-component is coded with."""

    coding: Coding
    quantization: Quantization


@dataclass(frozen=True)
class TileTables:
    """int64 tables, see the column names above. nodes: tag-tree nodes of all parts together."""

    precincts: Table
    parts: Table
    bands: Table
    blocks: Table
    nodes: int


def _up(value: int, exponent: int) -> int:
    """value / 2**exponent, rounded up."""
    return -(-value >> exponent)


def resolution_rectangle(tile: Rectangle, down: int) -> Rectangle:
    """The tile-component at `down` levels below full resolution (B-14)."""
    x0, y0, x1, y1 = tile
    return _up(x0, down), _up(y0, down), _up(x1, down), _up(y1, down)


def _band_rectangle(tile: Rectangle, level: int, orientation: int) -> Rectangle:
    """Sub-band at decomposition `level` (B-15); orientation 0 LL, 1 HL, 2 LH, 3 HH."""
    half = (1 << level) >> 1
    x, y = half * (orientation & 1), half * (orientation >> 1)
    x0, y0, x1, y1 = tile
    return _up(x0 - x, level), _up(y0 - y, level), _up(x1 - x, level), _up(y1 - y, level)


@dataclass(frozen=True)
class _Resolution:
    """One resolution level of one tile-component and its grid of precincts (B.6)."""

    component: int
    resolution: int
    down: int
    rectangle: Rectangle
    exponents: tuple[int, int]

    @property
    def grid(self) -> Rectangle:
        (x0, y0, x1, y1), (px, py) = self.rectangle, self.exponents
        return x0 >> px, y0 >> py, _up(x1, px), _up(y1, py)

    @property
    def count(self) -> int:
        (x0, y0, x1, y1), (left, top, right, bottom) = self.rectangle, self.grid
        return (right - left) * (bottom - top) if x0 < x1 and y0 < y1 else 0


def _resolutions(tile: Rectangle, components: Sequence[Component]) -> list[_Resolution]:
    found = []
    for index, component in enumerate(components):
        levels = component.coding.levels
        for r in range(levels + 1):
            rectangle = resolution_rectangle(tile, levels - r)
            found.append(_Resolution(index, r, levels - r, rectangle, component.coding.precincts[r]))
    return found


def _precinct_rows(level: _Resolution, tile: Rectangle, first_part: int, parts: int) -> Table:
    """Rows of the precinct table; TOP and LEFT are where the position progressions meet a precinct (B.12.1.3)."""
    left, top, right, bottom = level.grid
    rows = np.zeros((level.count, 7), np.int64)
    number = np.arange(level.count, dtype=np.int64)
    down, across = np.divmod(number, right - left)
    rows[:, COMPONENT], rows[:, RESOLUTION], rows[:, NUMBER] = level.component, level.resolution, number
    rows[:, TOP] = np.maximum((top + down) << (level.exponents[1] + level.down), tile[1])
    rows[:, LEFT] = np.maximum((left + across) << (level.exponents[0] + level.down), tile[0])
    rows[:, FIRST_PART], rows[:, PARTS] = first_part + parts * number, parts
    return rows


def _part_rows(level: _Resolution, band: Table, rectangle: Rectangle, band_index: int) -> Table:
    """Rows of the part table for one sub-band: which code-blocks of it each precinct holds (B.7)."""
    left, top, right, _ = level.grid
    halved = int(level.resolution > 0)  # a precinct of a resolution covers half of it in each sub-band
    px, py = level.exponents[0] - halved, level.exponents[1] - halved
    down, across = np.divmod(np.arange(level.count, dtype=np.int64), right - left)
    rows = np.zeros((level.count, 9), np.int64)
    rows[:, X0] = np.maximum((left + across) << px, rectangle[0])
    rows[:, X1] = np.minimum((left + across + 1) << px, rectangle[2])
    rows[:, Y0] = np.maximum((top + down) << py, rectangle[1])
    rows[:, Y1] = np.minimum((top + down + 1) << py, rectangle[3])
    xcb, ycb = int(band[B_XCB]), int(band[B_YCB])
    filled = (rows[:, X0] < rows[:, X1]) & (rows[:, Y0] < rows[:, Y1])
    rows[:, ACROSS] = np.where(filled, -(-rows[:, X1] >> xcb) - (rows[:, X0] >> xcb), 0)
    rows[:, DOWN] = np.where(filled, -(-rows[:, Y1] >> ycb) - (rows[:, Y0] >> ycb), 0)
    rows[:, BAND] = band_index
    return rows


def _band_row(
    level: _Resolution, component: Component, orientation: int, rectangle: Rectangle, base: Rectangle
) -> Table:
    """A row of the band table; B_X and B_Y turn sub-band coordinates into pyramid ones, `base` is the level below."""
    quantization, coding, r = component.quantization, component.coding, level.resolution
    number = 0 if r == 0 else 3 * (r - 1) + orientation
    if number >= len(quantization.exponents):
        raise J2kCorrupt("quantization", "a sub-band without an exponent")
    planes = quantization.guard + quantization.exponents[number] - 1  # (E-2)
    if planes > MAX_PLANES:
        raise J2kUnsupported("bit-planes", "more magnitude bits than this decoder can hold")
    halved = int(r > 0)
    across = (base[2] - base[0]) * (orientation & 1)
    down = (base[3] - base[1]) * (orientation >> 1)
    xcb = min(coding.block_width, level.exponents[0] - halved)
    ycb = min(coding.block_height, level.exponents[1] - halved)
    place = (across - rectangle[0], down - rectangle[1])
    return np.array([level.component, orientation, *place, planes, coding.style, xcb, ycb], np.int64)


def _tree_sizes(across: Table, down: Table) -> Table:
    """Nodes of a tag tree over `across` x `down` leaves (B.10.2), elementwise."""
    across, down, total = across.copy(), down.copy(), across * down
    while np.any(open_ := across * down > 1):
        across, down = (across + 1) >> 1, (down + 1) >> 1
        total += np.where(open_, across * down, 0)
    return total


@numba.njit(cache=True, nogil=True)
def _fill_blocks(parts: Table, bands: Table, blocks: Table) -> None:
    for p in range(parts.shape[0]):
        band, at = parts[p, BAND], parts[p, FIRST_BLOCK]
        xcb, ycb = bands[band, B_XCB], bands[band, B_YCB]
        left, top = parts[p, X0] >> xcb, parts[p, Y0] >> ycb
        for j in range(parts[p, DOWN]):
            for i in range(parts[p, ACROSS]):
                x0, x1 = max(parts[p, X0], (left + i) << xcb), min(parts[p, X1], (left + i + 1) << xcb)
                y0, y1 = max(parts[p, Y0], (top + j) << ycb), min(parts[p, Y1], (top + j + 1) << ycb)
                blocks[at, C_X], blocks[at, C_Y] = x0 + bands[band, B_X], y0 + bands[band, B_Y]
                blocks[at, C_WIDTH], blocks[at, C_HEIGHT], blocks[at, C_BAND] = x1 - x0, y1 - y0, band
                at += 1


def plan_tile(tile: Rectangle, components: Sequence[Component], max_precincts: int) -> TileTables:
    """Cut a tile. More than `max_precincts` is J2kCorrupt: each has a packet a layer, and a packet takes a byte."""
    levels = _resolutions(tile, components)
    total = sum(level.count for level in levels)
    if total > max_precincts:
        raise J2kCorrupt("truncated", "fewer bytes in a tile than it must have packets")
    if total > MAX_PRECINCTS:
        raise J2kUnsupported("too-many-precincts", "more precincts than this decoder takes")
    precincts, parts, bands = [], [], []
    first_part = 0
    for level in levels:
        if level.count == 0:
            continue
        component, r = components[level.component], level.resolution
        base = resolution_rectangle(tile, level.down + 1)
        orientations = (0,) if r == 0 else (1, 2, 3)
        shares = []
        for orientation in orientations:
            rectangle = _band_rectangle(tile, level.down + (r > 0), orientation)
            bands.append(_band_row(level, component, orientation, rectangle, base))
            shares.append(_part_rows(level, bands[-1], rectangle, len(bands) - 1))
        precincts.append(_precinct_rows(level, tile, first_part, len(orientations)))
        parts.append(np.stack(shares, axis=1).reshape(-1, 9))
        first_part += len(parts[-1])
    return _assemble(np.concatenate(precincts), np.concatenate(parts), np.array(bands))


def _assemble(precincts: Table, parts: Table, bands: Table) -> TileTables:
    counts, nodes = parts[:, ACROSS] * parts[:, DOWN], _tree_sizes(parts[:, ACROSS], parts[:, DOWN])
    parts[:, FIRST_BLOCK] = np.cumsum(counts) - counts
    parts[:, FIRST_NODE] = np.cumsum(nodes) - nodes
    if int(counts.sum()) > MAX_BLOCKS:
        raise J2kUnsupported("too-many-blocks", "more code-blocks in a tile than this decoder takes")
    blocks = np.empty((int(counts.sum()), 5), np.int64)
    _fill_blocks(parts, bands, blocks)
    return TileTables(precincts, parts, bands, blocks, int(nodes.sum()))
