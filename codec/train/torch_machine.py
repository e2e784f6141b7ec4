"""Training on torch: a CUDA device, or (to prove the same steps without one) the processor."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from codec.train.gradient import Floats


def has_cuda() -> bool:
    """Whether torch was built for CUDA and finds a device."""
    return bool(torch.cuda.is_available())


class TorchMachine:
    """See codec.train.machine.Machine. device: as torch names it."""

    lib: Any = torch

    def __init__(self, device: str) -> None:
        self.name = "cuda" if device.startswith("cuda") else f"torch-{device}"
        self._device = torch.device(device)
        # sums of whole numbers are exact in float32 below 2^24 and in nothing narrower (TF32 has 11 bits)
        torch.set_float32_matmul_precision("highest")

    def put(self, array: NDArray[Any]) -> Floats:
        """See Machine."""
        return cast(Floats, torch.from_numpy(np.array(array)).to(self._device))

    def take(self, array: Floats) -> Floats:
        """See Machine."""
        return cast(Floats, cast(Any, array).cpu().numpy().copy())

    def rows(self, array: Floats, places: NDArray[Any]) -> Floats:
        """See Machine."""
        return cast(Floats, cast(Any, array)[places].to(torch.float32))

    def summed(self, count: int, places: NDArray[Any], rows: Floats) -> Floats:
        """See Machine. By a product with zeros and ones: adding in place is in no fixed order on a device."""
        chosen = torch.arange(count, device=self._device)[:, None] == cast(Any, places)[None]
        return cast(Floats, chosen.to(torch.float32) @ cast(Any, rows))

    def shrink(self, arrays: dict[str, Floats]) -> Any:
        """See Machine. Stays on the device: nothing waits for it."""
        squares = torch.stack([(cast(Any, value) * value).sum() for value in arrays.values()]).to(torch.float64)
        return torch.clip(1.0 / (torch.sqrt(squares.sum()) + 1e-9), None, 1.0).to(torch.float32)
