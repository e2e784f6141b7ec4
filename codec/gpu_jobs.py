"""Tiles as jobs that any device takes, and this processor as the device that is always there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.wave import decode_tile, encode_tile

if TYPE_CHECKING:
    from codec.learneddecode import Setting

__all__ = ["DecodeJob", "EncodeJob", "Processor"]

Plane = NDArray[np.int32]


@dataclass(frozen=True)
class EncodeJob:
    """The arguments of `codec.wave.encode_tile`."""

    tile: Plane
    anchor: int
    upper: Plane | None
    previous: Plane | None
    setting: Setting


@dataclass(frozen=True)
class DecodeJob:
    """The arguments of `codec.wave.decode_tile`; `shape`: rows and columns of the tile."""

    shape: tuple[int, int]
    words: NDArray[np.uint32]
    anchor: int
    upper: Plane | None
    previous: Plane | None
    setting: Setting


class Processor:
    """The CPU kernels as a `codec.gpu.Device`: one tile after the other, in the caller's thread."""

    def encode(self, jobs: Sequence[EncodeJob]) -> list[NDArray[np.uint32]]:
        """See `codec.gpu.Device`."""
        return [encode_tile(job.tile, job.anchor, job.upper, job.previous, job.setting) for job in jobs]

    def decode(self, jobs: Sequence[DecodeJob]) -> list[Plane | None]:
        """See `codec.gpu.Device`."""
        return [self._decode(job) for job in jobs]

    @staticmethod
    def _decode(job: DecodeJob) -> Plane | None:
        out = np.empty(job.shape, np.int32)
        whole = decode_tile(out, job.words, job.anchor, job.upper, job.previous, job.setting)
        return out if whole else None
