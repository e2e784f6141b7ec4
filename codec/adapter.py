"""From released weights and an adapter's bytes to the network that a frame is coded with. No kernels."""

from __future__ import annotations

from functools import lru_cache

from codec.errors import CorruptBitstream
from codec.network import Network
from codec.weights import Weights, load

FRAME, VOLUME = "frame", "volume"  # names of the networks for frames without and with a previous one


def materialise(weights: Weights, adapter: bytes, previous: bool) -> Network:
    """The network under an adapter (empty: none) for frames with or without a previous one.

    Raises CorruptBitstream on adapter bytes that these weights cannot read, BadWeights when they lack the network.
    """
    if adapter:
        raise CorruptBitstream("these weights know no adapters")
    return Network(**weights.layers(VOLUME if previous else FRAME))


@lru_cache(maxsize=16)
def network_of(weights: bytes, adapter: bytes, previous: bool) -> Network:
    """The network that a blob names by 4 bytes of a weight file's SHA-256. Raises as `load` and `materialise` do."""
    return materialise(load(weights), adapter, previous)
