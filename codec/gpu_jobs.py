"""Tiles as jobs that any device takes, and this processor as the device that is always there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.dual import over_tiles
from codec.gpu import current_device
from codec.wave import decode_tile, encode_tile

if TYPE_CHECKING:
    from codec.learneddecode import Setting

__all__ = ["DecodeJob", "Decoded", "EncodeJob", "Processor", "decode_tiles", "encode_tiles"]

Plane = NDArray[np.int32]


@dataclass(frozen=True)
class EncodeJob:
    """The arguments of `codec.wave.encode_tile`."""

    tile: Plane
    anchor: int
    upper: Plane | None
    previous: Plane | None
    setting: Setting
    head: Plane | None = None


@dataclass(frozen=True)
class DecodeJob:
    """The arguments of `codec.wave.decode_tile`; `shape`: rows and columns of the tile."""

    shape: tuple[int, int]
    words: NDArray[np.uint32]
    anchor: int
    upper: Plane | None
    previous: Plane | None
    setting: Setting
    head: Plane | None = None


class Decoded(NamedTuple):
    """A tile's samples, and its head after the last step (see codec.memory)."""

    samples: Plane
    head: Plane


def encode_tiles(jobs: Sequence[EncodeJob], threads: int) -> list[NDArray[np.uint32]]:
    """The words of each tile: on the device of this block (codec.gpu.using), or here by so many threads."""
    device = current_device()
    return device.encode(jobs) if device is not None else over_tiles(_encoded, jobs, threads)


def decode_tiles(jobs: Sequence[DecodeJob], threads: int) -> list[Decoded | None]:
    """Each tile, None where the words are no whole stream; where, as `encode_tiles`."""
    device = current_device()
    return device.decode(jobs) if device is not None else over_tiles(_decoded, jobs, threads)


class Processor:
    """The CPU kernels as a `codec.gpu.Device`: one tile after the other, in the caller's thread."""

    def encode(self, jobs: Sequence[EncodeJob]) -> list[NDArray[np.uint32]]:
        """See `codec.gpu.Device`."""
        return [_encoded(job) for job in jobs]

    def decode(self, jobs: Sequence[DecodeJob]) -> list[Decoded | None]:
        """See `codec.gpu.Device`."""
        return [_decoded(job) for job in jobs]


def _encoded(job: EncodeJob) -> NDArray[np.uint32]:
    return encode_tile(job.tile, job.anchor, job.upper, job.previous, job.setting, job.head)


def _decoded(job: DecodeJob) -> Decoded | None:
    out = np.empty(job.shape, np.int32)
    head = decode_tile(out, job.words, job.anchor, job.upper, job.previous, job.setting, job.head)
    return None if head is None else Decoded(out, head)
