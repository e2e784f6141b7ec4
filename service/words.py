"""Numbers, sizes and times in words, for pages: coarse, so that a page that updates itself stays still."""

from __future__ import annotations

import time

__all__ = ["age", "count", "long", "number", "size", "when"]


def size(value: float | None) -> str:
    """Bytes with a decimal unit."""
    number_ = float(value or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number_) < 1000:
            return f"{number_:.0f} {unit}" if unit == "B" or number_ >= 100 else f"{number_:.1f} {unit}"
        number_ /= 1000
    return f"{number_:.1f} TB"


def when(value: float | None) -> str:
    """A point in time, UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value)) + " UTC" if value else "–"


def long(seconds: float | None) -> str:
    """A length of time by its largest unit, two where the largest is small; '–' for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            whole = int(seconds // length)
            return f"{whole} {unit}{'s' if whole > 1 else ''}"
    return f"{seconds:.0f} s"


def age(seconds: float | None) -> str:
    """How long ago: what is under a minute is not told apart, or a page would change all the time."""
    return long(seconds) if seconds is None or seconds >= 60 else "seconds"


def number(value: int) -> str:
    """With thousands apart."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """A number and its noun."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"
