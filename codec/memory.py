"""What a frame of the learned coder leaves to the next one beside its samples: its predictors and what its head learnt.

docs/bitstream.md, part 2, section 1.2. A frame that goes on from it sends no taps, and its head begins where the one
before ended. Both decoders make it, and the same of every frame.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codec.dualformat import Predictors

Head = NDArray[np.int32]  # [outputs, hidden values of both layers]: the last layer's weights times 2^16


@dataclass(frozen=True, eq=False)
class PlaneMemory:
    """Of one plane: its predictors, rows of a tile, and every tile's head after its last step."""

    predictors: Predictors
    tile_rows: int
    heads: tuple[Head, ...]

    def head(self, row: int) -> Head:
        """Of the tile that a row lies in."""
        return self.heads[row // self.tile_rows]


@dataclass(frozen=True, eq=False)
class Memory:
    """Of a frame; `volume`: it was coded with a previous frame. A plane of one level leaves None."""

    volume: bool
    planes: tuple[PlaneMemory | None, ...] = field(repr=False)

    @functools.cached_property
    def crc(self) -> int:
        """CRC-32 of all numbers, little-endian int32: of each plane the rows of a tile, thresholds, taps, heads."""
        crc = zlib.crc32(bytes([self.volume, len(self.planes)]))
        for array in self._arrays():
            crc = zlib.crc32(np.ascontiguousarray(array, "<i4").tobytes(), crc)
        return crc

    def _arrays(self) -> Iterator[NDArray[np.int32]]:
        for plane in self.planes:
            if plane is None:
                yield np.zeros(1, np.int32)
                continue
            yield np.array([plane.tile_rows], np.int32)
            yield plane.predictors.thresholds.astype(np.int32)
            yield plane.predictors.taps
            yield from plane.heads
