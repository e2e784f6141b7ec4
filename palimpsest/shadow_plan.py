"""What shadow mode is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Limits", "Plan"]


@dataclass(frozen=True, slots=True)
class Limits:
    """objects, bytes: that wait to be measured; object_bytes: of one; finish_seconds: for what waits at the end."""

    objects: int = 64
    bytes: int = 1 << 30
    object_bytes: int = 256 << 20
    finish_seconds: float = 60.0


@dataclass(frozen=True)
class Plan:
    """What to watch and where to report. buffer_bytes: of copies that the measuring side has not taken yet;
    grace_seconds: for open connections at the end.
    """

    json_file: Path | None
    page: Path | None
    listen: tuple[str, int] = ("127.0.0.1", 0)
    to: tuple[str, int] = ("127.0.0.1", 104)
    link_mbit: float = 100.0
    buffer_bytes: int = 64 << 20
    grace_seconds: float = 10.0
    limits: Limits = field(default_factory=Limits)
