"""A CUDA device that codes tiles (`codec.gpu.Device`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from codec.gpu import NoDevice


class CudaDevice:
    """Device `number`."""

    def __init__(self, number: int) -> None:
        raise NoDevice(f"CUDA device {number} cannot be used: not written yet")

    def encode(self, jobs: Sequence[Any]) -> list[Any]:
        """See `codec.gpu.Device`."""
        raise NotImplementedError

    def decode(self, jobs: Sequence[Any]) -> list[Any]:
        """See `codec.gpu.Device`."""
        raise NotImplementedError


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m codec.gpu_device [NUMBER]`: whether that device can be used: 0 and what it is, or 1 and why not."""
    number = int((arguments if arguments is not None else sys.argv[1:] or ["0"])[0])
    try:
        print(CudaDevice(number))
    except NoDevice as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
