"""Plots as inline SVG, made on the server: shapes are placed in percent, so they fit any width and text keeps its size.

Colours come from the style sheet by class, since pages allow no inline style. Whoever cannot see them has `<title>` and
`<desc>` (SVG 2, 5.8), and the page puts the numbers in a table behind each plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

__all__ = ["Column", "bar", "columns", "nice_ceiling", "spread"]

HEIGHT: Final = 130
_STEPS: Final = (1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Column:
    """One place on the time axis. label: what it is, in words; mark: text below the axis, or ''; values: one of each
    series.
    """

    label: str
    values: tuple[float, ...]
    mark: str = ""


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is not below `value`; 1 for nothing."""
    if value <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * (1 - 1e-9))


def columns(
    given: Sequence[Column],
    names: Sequence[str],
    title: str,
    description: str,
    limit: float | None = None,
    top: float | None = None,
) -> Markup:
    """Columns side by side, a series each, from zero. limit: a value drawn as a line; top: of the axis."""
    top = top or nice_ceiling(max([limit or 0.0, *(value for each in given for value in each.values)], default=1.0))
    slot = 100.0 / max(len(given), 1)
    width = slot * 0.84 / max(len(names), 1)
    parts = [Markup('<line class="grid" x1="0" x2="100%" y1="{0}%" y2="{0}%"/>').format(y) for y in (0.4, 50)]
    for at, each in enumerate(given):
        drawn = [
            Markup('<rect class="s{}" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%"/>').format(
                number, at * slot + slot * 0.08 + number * width, 100 - _share(value, top), width, _share(value, top)
            )
            for number, value in enumerate(each.values)
            if value > 0
        ]
        inside = Markup("").join(drawn)
        whole = Markup('<rect class="slot" x="{:.2f}%" y="0" width="{:.2f}%" height="100%"/>').format(at * slot, slot)
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(each.label, whole, inside))
    parts.append(_text("0.5%", "12", _short(top), "axis"))
    if limit is not None:
        y = 100 - _share(limit, top)
        parts.append(Markup('<line class="limit" x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>').format(y))
    marks = [_text(f"{at * slot:.2f}%", "12", each.mark, "axis") for at, each in enumerate(given) if each.mark]
    return _svg(Markup("").join(parts), Markup("").join(marks), title, description)


def bar(value: float, most: float, kind: int = 1) -> Markup:
    """A bar from the left beside the number that it shows, which says the same: hidden from readers."""
    return _strip([(0.0, _share(value, most), kind)])


def spread(low: float, middle: float, high: float, most: float) -> Markup:
    """From `low` to `high` with a mark at `middle`, on a logarithmic axis that ends at `most`; hidden from readers."""
    floor = 0.1

    def place(value: float) -> float:
        span = math.log(max(most, 10 * floor) / floor)
        return 98 * min(1.0, max(0.0, math.log(max(value, floor) / floor) / span))

    return _strip([(place(low), max(1.5, place(high) - place(low)), 0), (place(middle), 2.0, 2)])


def _strip(shapes: Sequence[tuple[float, float, int]]) -> Markup:
    drawn = [
        Markup('<rect class="s{}" x="{:.1f}%" width="{:.1f}%" y="0" height="100%"/>').format(kind, x, width)
        for x, width, kind in shapes
    ]
    return Markup('<svg class="strip" aria-hidden="true" focusable="false">{}</svg>').format(Markup("").join(drawn))


def _svg(body: Markup, marks: Markup, title: str, description: str) -> Markup:
    name = "plot-" + "".join(char for char in title.lower() if char.isalnum())
    return Markup(
        '<svg class="plot" role="img" aria-labelledby="{0}-t {0}-d" height="{3}"><title id="{0}-t">{1}</title>'
        '<desc id="{0}-d">{2}</desc>{4}</svg><svg class="marks" aria-hidden="true" focusable="false">{5}</svg>'
    ).format(name, title, description, HEIGHT, body, marks)


def _text(x: str, y: str, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" aria-hidden="true">{}</text>').format(kind, x, y, escape(text))


def _share(value: float, most: float) -> float:
    return 0.0 if most <= 0 else min(100.0, max(0.0, 100.0 * value / most))


def _short(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
