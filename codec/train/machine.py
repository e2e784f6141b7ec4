"""What training's arrays lie on: NumPy on the processor, or torch on a CUDA device or the processor.

The law and its gradients are written once (codec.train.gradient), the draws are NumPy's on either, and checkpoints
hold NumPy arrays: so a training may go on where another machine left it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from codec.gpu import NoDevice
from codec.train.gradient import Floats

#: names that `open_machine` takes
DEVICES: Final = ("auto", "cpu", "cuda")
INSTALL: Final = "install torch with CUDA (pip install 'palimpsest[learned]'), or train with --device cpu"


class Machine(Protocol):
    """A library of array functions and where its arrays lie; to the type checker its arrays are NumPy's."""

    @property
    def name(self) -> str:
        """What it is called in the model card."""

    @property
    def lib(self) -> Any:
        """Module numpy or torch."""

    def put(self, array: NDArray[Any]) -> Floats:
        """The array, here; dtype and shape stay."""

    def take(self, array: Floats) -> Floats:
        """An array that lies here, in NumPy."""

    def rows(self, array: Floats, places: NDArray[Any]) -> Floats:
        """Some rows of an array, in float32."""

    def summed(self, count: int, places: NDArray[Any], rows: Floats) -> Floats:
        """[count, ...] with the sum of the rows that go to each place; the same every time."""

    def shrink(self, arrays: dict[str, Floats]) -> Any:
        """What arrays are multiplied by so that their Euclidean norm together is 1 at most; float32."""


class Processor:
    """NumPy."""

    name = "cpu"
    lib: Any = np

    def put(self, array: NDArray[Any]) -> Floats:
        """See Machine."""
        return array

    def take(self, array: Floats) -> Floats:
        """See Machine."""
        return array

    def rows(self, array: Floats, places: NDArray[Any]) -> Floats:
        """See Machine."""
        return np.asarray(array[places], np.float32)

    def summed(self, count: int, places: NDArray[Any], rows: Floats) -> Floats:
        """See Machine."""
        out = np.zeros((count, *rows.shape[1:]), np.float32)
        np.add.at(out, places, rows)
        return out

    def shrink(self, arrays: dict[str, Floats]) -> Any:
        """See Machine."""
        norm = float(np.sqrt(sum(float((value * value).sum()) for value in arrays.values())))
        return np.float32(min(1.0, 1.0 / (norm + 1e-9)))


def open_machine(device: str) -> Machine:
    """`cpu`: NumPy; `cuda`: torch on CUDA device 0; `auto`: that where there is one.

    Raises NoDevice where CUDA is asked for and is not to be had, and on an unknown name.
    """
    if device not in DEVICES:
        raise NoDevice(f"unknown device {device}: one of {', '.join(DEVICES)}")
    if device == "cpu" or (device == "auto" and find_spec("torch") is None):
        return Processor()
    if find_spec("torch") is None:
        raise NoDevice(f"no torch here: {INSTALL}")
    from codec.train.torch_machine import TorchMachine, has_cuda

    if has_cuda():
        return TorchMachine("cuda")
    if device == "auto":
        return Processor()
    raise NoDevice(f"torch finds no CUDA device: {INSTALL}")
