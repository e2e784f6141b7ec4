"""Deterministic weights for tests: small random networks, never released."""

from __future__ import annotations

import numpy as np

from codec.weights import Array, write_weights

INPUTS, VOLUME_INPUTS, HIDDEN, OUTPUTS, CODES = 64, 80, (16, 16), 9, 8


def placeholder(
    seed: int = 1,
    *,
    inputs: int = INPUTS,
    volume_inputs: int = VOLUME_INPUTS,
    hidden: tuple[int, int] = HIDDEN,
    outputs: int = OUTPUTS,
    profiles: tuple[str, ...] = ("fast", "default", "max"),
) -> bytes:
    """A weight file with networks 'frame' and 'volume', a basis of adapters, centres and a bank."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for name, first in (("frame", inputs), ("volume", volume_inputs)):
        sizes = (first, *hidden, outputs)
        for layer, (fan_in, units) in enumerate(zip(sizes, sizes[1:], strict=False), 1):
            arrays[f"{name}.w{layer}"] = rng.integers(-20, 21, (units, fan_in)).astype(np.int8)
            arrays[f"{name}.b{layer}"] = rng.integers(-4096, 4097, units).astype(np.int32)
            if layer < 3:
                arrays[f"{name}.g{layer}"] = np.full(units, 64, np.uint8)
        for kind in ("gain", "bias"):
            arrays[f"{name}.basis_{kind}"] = rng.integers(-16, 17, (CODES, sum(hidden))).astype(np.int8)
        arrays[f"{name}.centres"] = rng.integers(-32, 33, (3, CODES)).astype(np.int8)
    return write_weights("placeholder", profiles, arrays, {"centres": ["CT", "MR", "MR/BRAIN"], "seed": seed})
