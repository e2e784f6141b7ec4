"""Plain decoder of every frame: NumPy and Python integers, no kernels, no speed. Part of the format.

`reference1` has the dual coder, `reference2` the learned one; what they share with the fast decoders is the layout of
the bytes and the tables. The fast decoders must give the same words for every blob.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words
from codec.blob import Decoders, Frame, Given, decode_with
from codec.limits import DEFAULT_LIMITS, Limits
from codec.memory import Memory
from codec.reference1 import DualReference
from codec.reference2 import LearnedReference


def decode_frame_reference(
    blob: bytes,
    *,
    previous: Words | None = None,
    shared: bytes | None = None,
    upper: Sequence[NDArray[np.int32]] | None = None,
    memory: Memory | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Frame:
    """Decode a blob like codec.frame.decode_frame, the dual and the learned coder's parts by plain code alone."""
    decoders = Decoders(DualReference(), LearnedReference())
    return decode_with(blob, decoders, limits, Given(previous, shared, upper, memory))
