"""Small networks of random numbers for the codec's tests: the law has to hold for any, not only for trained ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from codec import adapter, weights
from codec.network import Network

FRAME_INPUTS, VOLUME_INPUTS = 74, 90
Array = NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int32]


def layers(seed: int, inputs: int, hidden: tuple[int, int] = (16, 8), parts: int = 3, spread: int = 10
           ) -> dict[str, Array]:  # fmt: skip
    """Random layers as a weight file has them; `spread`: the largest weight."""
    random = np.random.default_rng(seed)

    def layer(number: int, rows: int, columns: int) -> dict[str, Array]:
        return {
            f"w{number}": random.integers(-spread, spread + 1, (rows, columns)).astype(np.int8),
            f"b{number}": random.integers(-4000, 4000, rows).astype(np.int32),
            f"g{number}": random.integers(0, 256, rows).astype(np.uint8),
        }

    out = layer(1, hidden[0], inputs) | layer(2, hidden[1], hidden[0]) | layer(3, 3 * parts, sum(hidden))
    del out["g3"]
    return out


def network(seed: int, inputs: int, hidden: tuple[int, int] = (16, 8), parts: int = 3, spread: int = 10) -> Network:
    """The same as a network."""
    return Network(
        **{name: array.astype(np.int32) for name, array in layers(seed, inputs, hidden, parts, spread).items()}
    )


def weight_file(seed: int = 1) -> bytes:
    """A weight file with both networks, for all profiles."""
    arrays = {f"frame.{name}": array for name, array in layers(seed, FRAME_INPUTS).items()}
    arrays |= {f"volume.{name}": array for name, array in layers(seed + 1, VOLUME_INPUTS).items()}
    return weights.write_weights("test", ("fast", "default", "max"), arrays)


@contextmanager
def known(data: bytes) -> Iterator[weights.Weights]:
    """Make a weight file known for a while, as what all profiles encode with."""
    added = weights.add(data)
    try:
        yield added
    finally:
        weights.drop(added)
        adapter.network_of.cache_clear()
