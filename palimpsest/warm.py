"""Compile every kernel that a worker needs into NUMBA_CACHE_DIR: `python -m palimpsest.warm`.

Tiny frames of each kind go through the codec once, both ways. With a warm cache this takes seconds.
"""

from __future__ import annotations

import numpy as np

from codec.frame import decode_frame, encode_frame
from codec.pixelformat import PixelFormat

SIZE = 48
KINDS = ((8, 8, False, 1), (16, 12, False, 1), (16, 16, True, 1), (8, 8, False, 3))


def warm() -> None:
    """Encode and decode one small frame per pixel format. Raises what the codec raises: then it is broken."""
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE))
    for allocated, stored, signed, samples in KINDS:
        words = (ramp * 5 % (1 << stored)).astype(np.uint8 if allocated == 8 else np.uint16)
        if samples == 3:
            words = np.repeat(words[:, :, None], 3, axis=2)
        fmt = PixelFormat(SIZE, SIZE, samples, allocated, stored, stored - 1, signed)
        encoded = encode_frame(np.ascontiguousarray(words), fmt)
        if not np.array_equal(decode_frame(encoded.blob).words, words):
            raise AssertionError("the codec does not give a frame back")


if __name__ == "__main__":
    warm()
