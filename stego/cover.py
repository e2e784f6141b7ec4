"""A grey frame as a pixel carrier sees it: what may change, and in which range."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Cover:
    """One frame and its rules. What a receiver needs to know is in `low`, `high` and `barred` and the samples alone.

    values: int32 (rows, columns), stored values with their sign. low, high: legal range, inclusive (BitsStored and
    Pixel Representation, not the allocated bits). barred: values that may neither be changed nor be made (padding).
    wet: bool (rows, columns) or None; samples that the encoder must leave alone (overlays, burned-in text): honoured
    by carriers whose receiver need not know them (hidden), while a self-contained carrier refuses to be given one.
    """

    values: NDArray[np.int32]
    low: int
    high: int
    barred: tuple[int, ...] = ()
    wet: NDArray[np.bool_] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.int32 or not self.values.size:
            raise ValueError("values is a non-empty int32 array (rows, columns)")
        if self.low >= self.high:
            raise ValueError("low < high")
        if self.wet is not None and (self.wet.shape != self.values.shape or self.wet.dtype != np.bool_):
            raise ValueError("wet is a bool array of the frame's shape")
