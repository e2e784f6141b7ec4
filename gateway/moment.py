"""A time that was written down as text, read again."""

from __future__ import annotations

from datetime import datetime


def moment(text: str) -> float:
    """Seconds since the epoch, 0 for what is no time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
