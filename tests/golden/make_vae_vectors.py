"""Writes the golden vector of the global path's stack (python -m tests.golden.make_vae_vectors): new versions only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.bitsback import BitsBack
from codec.groupstack import Shape, encode_stack
from codec.pixelformat import PixelFormat
from codec.weights import load
from tests.unit.codec_images import noise, picture

FILE = Path(__file__).parent / "vae_v1" / "stack.bin"
INITIAL = bytes(range(200))
FORMAT = PixelFormat(45, 61, 1, 16, 12, 11, False)
SHIFTS = (8, 5, 2)  # 16, 128 and 1024 levels


def planes() -> tuple[list[NDArray[np.int32]], list[Shape]]:
    """Three planes of G, the last one noise."""
    found = [picture(FORMAT, place, 40) >> shift for place, shift in enumerate(SHIFTS)]
    found[-1] = (noise(FORMAT.rows * FORMAT.columns, 9) >> 6).reshape(found[-1].shape).astype(np.int32)
    return found, [Shape(FORMAT.rows, FORMAT.columns, 4095 >> shift) for shift in SHIFTS]


def main() -> None:
    """Write the file."""
    found, shapes = planes()
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(encode_stack(found, shapes, load("vae"), BitsBack, initial=INITIAL, seed=1).data)


if __name__ == "__main__":
    main()
