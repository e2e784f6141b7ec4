"""Filters of the admin pages' templates: figures into words and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup

from gateway.index_report import MOST_COUNTED
from service.figures import Forecast, HalfHour
from service.plots import Column, bar, columns, spread
from service.words import age, count, long, number, size, when

__all__ = ["FILTERS"]

_PRIORITIES: Final = {"0": "STAT", "2": "high", "5": "routine", "8": "low"}
_KEYS: Final = {
    "kek": "wrapping keys", "sign": "signing records", "pseudo": "pseudonyms", "token": "tokens",
    "stego": "finding payloads", "pixel": "sealed bitmaps", "certify": "certificates",
}  # fmt: skip
_HOURS_MARKED: Final = 6
_DISK_COLUMNS: Final = 48


def _stamp(value: float) -> str:
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _capped(value: int) -> str:
    return f"{MOST_COUNTED:,} or more" if value >= MOST_COUNTED else number(value)


def _priority(name: str) -> str:
    return f"{_PRIORITIES[name]} ({name})" if name in _PRIORITIES else name


def _detail(detail: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in detail.items() if value is not None)


def _again(query: Mapping[str, str], before: int) -> str:
    return urlencode({**{name: value for name, value in query.items() if value}, "before": before})


def _throughput(halves: Sequence[HalfHour]) -> Markup:
    shown = [
        Column(
            f"{each.clock}: {number(each.received)} received, {number(each.archived)} archived",
            (each.received, each.archived),
            each.clock if each.at % (_HOURS_MARKED * 3600) == 0 else "",
        )
        for each in halves
    ]
    received, archived = sum(each.received for each in halves), sum(each.archived for each in halves)
    busiest = max(halves, key=lambda each: each.received)
    words = f"{number(received)} received and {number(archived)} archived in 24 hours"
    if busiest.received:
        words += f"; most came from {busiest.clock} on: {number(busiest.received)} in half an hour"
    return columns(shown, ("received", "archived"), "Throughput by half hour", words + ".")


def _spread(seconds: tuple[float, float, float], most: float) -> Markup:
    low, middle, high = seconds
    return spread(low, middle, high, most)


def _used(disk: Forecast) -> Markup:
    """How full the disk was, over the samples there are."""
    step = -(-len(disk.history) // _DISK_COLUMNS) or 1
    kept = disk.history[::-step][::-1] if disk.history else ()
    shown = [Column(f"{when(at)}: {size(used)} used", (float(used),)) for at, used in kept]
    limit = float(disk.total - disk.watermark)
    title = f"Space used on {disk.place}"
    words = f"{size(disk.total - disk.free)} of {size(disk.total)} used; the line is where intake stops."
    return columns(shown, ("used",), title, words, limit, float(disk.total)) if len(shown) > 1 else Markup("")


#: name in templates -> function
FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "size": size,
    "when": when,
    "stamp": _stamp,
    "age": age,
    "long": long,
    "number": number,
    "counted": count,
    "capped": _capped,
    "priority": _priority,
    "key_use": lambda kind: _KEYS.get(kind, kind),
    "detail": _detail,
    "again": _again,
    "throughput": _throughput,
    "used": _used,
    "bar": bar,
    "spread": _spread,
}
