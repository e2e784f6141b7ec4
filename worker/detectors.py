"""sealwatch's detectors (MPL-2.0, extra `bench`), for samples of more than eight bits.

SPA and WS give a score; SPAM (686 features) and SRMQ1 (12,753) feed a discriminant (stego.steganalysis). For 16 bits:

- SPAM and SRM refuse more than 8 bits at the door; their inner functions, which take any numbers, are called. Residuals
  are quantised with step one (SRM: times sealwatch's order constants). Steps that follow the image's noise, as is often
  advised for 16 bits, were measured and made both blinder: lowest-bit matching at 0.4 bits per sample, 72 tiles of 32
  patients, SPAM .83 with step one, .75, .66, .62 and .61 with 0.12, 0.25, 0.5 and 1 times the median difference.
- SRM's co-occurrences are counted by a kernel of ours, passed in by sealwatch's own argument for it: the same numbers
  (a test compares them), some hundred times faster.
- WS squares samples in single precision: an even number is taken off first, which leaves every lowest bit as it was.

sealwatch imports torch and torchvision for neural networks that are not used here. `load` imports only the modules
above, so that neither has to be there, nor to fit the other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from gateway.errors import Unsupported

SCORES = ("SPA", "WS")
FEATURES = ("SPAM", "SRMQ1")
DETECTORS = (*SCORES, *FEATURES)
_PACKAGES = ("tools", "spam", "spa", "ws")  # whose own __init__ is not run
_RESIDUALS = (
    ("f1", "all1st", 1),
    ("f2", "all2nd", 2),
    ("f3", "all3rd", 3),
    ("f3x3", "all3x3", 4),
    ("f5x5", "all5x5", 12),
)

kernel = numba.njit(nogil=True, cache=True)


class NoDetectors(Unsupported):
    """The extra `bench` is not installed."""

    def __init__(self) -> None:
        super().__init__("no-bench-extra", "detectors need sealwatch: pip install 'palimpsest[bench]'")


@dataclass(frozen=True)
class Detectors:
    """sealwatch's functions: each takes samples (rows, columns) and gives a score or a feature vector."""

    version: str
    scores: dict[str, Callable[[NDArray[np.int32]], float]]
    features: dict[str, Callable[[NDArray[np.int32]], NDArray[np.float32]]]


@cache
def load() -> Detectors:
    """Raises NoDetectors when sealwatch or scipy is missing."""
    try:
        modules = {name: importlib.import_module(f"sealwatch.{name}") for name in _import_names()}
    except ImportError as error:
        raise NoDetectors from error
    spam, spa, ws = modules["spam.spam"], modules["spa._attack"], modules["ws._attack"]
    residuals, symmetry = modules["srm.cooccurrence"], modules["srm.symm"]
    return Detectors(
        version=importlib.metadata.version("sealwatch"),
        scores={"SPA": lambda values: _spa(spa, values), "WS": lambda values: _ws(ws, values)},
        features={
            "SPAM": lambda values: _spam(spam, values),
            "SRMQ1": lambda values: _srm(residuals, symmetry, values),
        },
    )


def _import_names() -> tuple[str, ...]:
    """Put package shells without their __init__ in place. Raises ImportError when there is no sealwatch."""
    if "sealwatch" not in sys.modules:
        spec = importlib.util.find_spec("sealwatch")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("sealwatch")
        places = list(spec.submodule_search_locations)
        top = _shell("sealwatch", places)
        for name in _PACKAGES:
            setattr(top, name, _shell(f"sealwatch.{name}", [f"{place}/{name}" for place in places]))
        tools: Any = sys.modules["sealwatch.tools"]
        tools.matlab = importlib.import_module("sealwatch.tools.matlab")
    return ("spam.spam", "spa._attack", "ws._attack", "srm.cooccurrence", "srm.symm")


def _shell(name: str, places: list[str]) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = places
    sys.modules[name] = module
    return module


def _spa(module: Any, values: NDArray[np.int32]) -> float:
    if (values[:, 1:] >> 1 != values[:, :-1] >> 1).all():
        return 0.0  # no close pair: the quadratic equation has no leading term, and no estimate
    return float(module.attack(values))


def _ws(module: Any, values: NDArray[np.int32]) -> float:
    return float(module.attack(values - 2 * (np.int32(np.median(values)) // 2)))


def _spam(module: Any, values: NDArray[np.int32]) -> NDArray[np.float32]:
    found = module.extract(values.astype(np.float64), rounded=True)
    return np.concatenate([np.ravel(found[name]) for name in sorted(found)]).astype(np.float32)


def _srm(residuals: Any, symmetry: Any, values: NDArray[np.int32]) -> NDArray[np.float32]:
    found: OrderedDict[str, Any] = OrderedDict()
    samples = values.astype(np.int64)
    for prefix, function, order in _RESIDUALS:
        counted = getattr(residuals, function)(samples, order, CoocN=cooccurrence4)
        found = symmetry.post_process(counted, prefix, 1, found)
    return np.concatenate([np.ravel(found[name]) for name in sorted(found)]).astype(np.float32)


def cooccurrence4(residual: NDArray[Any], kind: str, limit: int) -> NDArray[np.float64]:
    """Shares of the (2 limit + 1)^4 quadruples of neighbouring residuals -limit..limit, `kind` 'hor' or 'ver'."""
    lines = {"hor": residual, "ver": residual.T}[kind]
    side = 2 * limit + 1
    counts = _count4(np.ascontiguousarray(lines, dtype=np.int8), limit).reshape(side, side, side, side)
    return np.asarray(counts / counts.sum())


@kernel
def _count4(lines: Any, limit: Any) -> Any:
    """Counts by code: four neighbours of a line as digits, the first one highest."""
    side = 2 * limit + 1
    counts = np.zeros(side**4, np.int64)
    for r in range(lines.shape[0]):
        code = 0
        for c in range(lines.shape[1]):
            if c >= 4:
                code -= (lines[r, c - 4] + limit) * side**3
            code = code * side + lines[r, c] + limit
            if c >= 3:
                counts[code] += 1
    return counts
