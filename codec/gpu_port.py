"""Compiles kernels again with other meanings of the names they use: one source for vectors and for single lanes.

A numba kernel finds what it calls among its module's globals. `Port` makes a copy of that namespace in which
`codec.lanes` is replaced by `codec.gpu_lanes`, and every other kernel by its own port; the code itself is the same
object, so the law is written once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from numba.core.dispatcher import Dispatcher

from codec import gpu_lanes, lanes

__all__ = ["Port"]


class Port:
    """`compile`: njit or numba.cuda.jit(device=True), as a function of a Python function.

    given: by name, what takes the place of a global as it is.
    """

    def __init__(self, compile: Callable[[Any], Any], given: Mapping[str, Any] | None = None) -> None:
        self._compile, self._given = compile, dict(given or {})
        self._namespaces: dict[str, dict[str, Any]] = {}
        self._done: dict[tuple[str, str], Any] = {}

    def __call__(self, kernel: Any) -> Any:
        """The port of a kernel (a numba dispatcher or a plain function)."""
        return self._ported(kernel)

    def plain(self, kernel: Any) -> FunctionType:
        """The same, not compiled."""
        source = getattr(kernel, "py_func", kernel)
        return FunctionType(source.__code__, self._namespace(source.__module__), source.__name__)

    def _ported(self, kernel: Any) -> Any:
        source = getattr(kernel, "py_func", kernel)
        key = (source.__module__, source.__name__)
        if key not in self._done:
            self._done[key] = self._compile(self.plain(source))
        return self._done[key]

    def _namespace(self, module: str) -> dict[str, Any]:
        """A module's globals, ported; made once, filled before anything in it is compiled."""
        if module in self._namespaces:
            return self._namespaces[module]
        names = self._namespaces[module] = dict(vars(sys.modules[module]))
        for name, value in list(names.items()):
            if name in self._given:
                names[name] = self._given[name]
            elif hasattr(gpu_lanes, name) and getattr(lanes, name, None) is value:
                names[name] = getattr(gpu_lanes, name)
            elif isinstance(value, Dispatcher) or (isinstance(value, FunctionType) and _is_phase(value)):
                names[name] = self._ported(value)
        return names


def _is_phase(function: FunctionType) -> bool:
    return getattr(function, "for_lanes", False) is True
