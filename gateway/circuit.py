"""The breaker of a destination as its lock file holds it: written by who delivers, read by whoever shows it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

LONGEST_SECONDS = 1000.0  # beyond what worker/delivery.py ever waits for

__all__ = ["CircuitState", "circuit_path", "parse_circuit", "read_circuit"]


@dataclass(frozen=True, slots=True)
class CircuitState:
    """failures: in a row, to reach it; open_until: seconds since the epoch, nothing is tried before; reason: the last
    failure's; weights: which codec weights were delivered where.
    """

    failures: int = 0
    open_until: float = 0.0
    reason: str = ""
    weights: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def is_open(self) -> bool:
        """True while nothing is tried."""
        return self.open_until > time.time()

    def dump(self) -> str:
        """Inverse of `parse_circuit`."""
        content = {
            "failures": self.failures, "open_until": self.open_until, "reason": self.reason,
            "weights": sorted(self.weights),
        }  # fmt: skip
        return json.dumps(content)


def circuit_path(run_dir: Path, name: str) -> Path:
    """The lock file of a destination."""
    return run_dir / f"forward-{name}.lock"


def parse_circuit(text: str) -> CircuitState:
    """The state; closed if the text is torn, by a kill in the middle of a write, or says a time that no failure asks
    for: a clock was ahead when it was written.
    """
    try:
        kept = json.loads(text or "{}")
        until = float(kept.get("open_until", 0.0))
        return CircuitState(
            int(kept.get("failures", 0)),
            until if until < time.time() + LONGEST_SECONDS else 0.0,
            str(kept.get("reason", "")),
            frozenset(map(str, kept.get("weights", ()))),
        )
    except (ValueError, TypeError, AttributeError):
        return CircuitState()


def read_circuit(run_dir: Path, name: str) -> CircuitState:
    """The state of a destination's circuit on this host; closed where nothing was ever sent."""
    try:
        return parse_circuit(circuit_path(run_dir, name).read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return CircuitState()
