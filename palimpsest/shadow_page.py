"""The page of `palimpsest shadow`: one HTML file, its style inside, its plot an SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

__all__ = ["PAGE", "bar_rows"]

_BAR, _GAP, _LEFT, _WIDTH = 26, 10, 170, 720

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Palimpsest: what shadow mode found</title>
<style>
:root {{ color-scheme: light dark; --ink: #1a1f24; --dim: #5a646e; --paper: #fbfaf7; --rule: #d9d6cd; --ours: #1f6f5c;
  --other: #9aa3aa; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e7e5df; --dim: #a3a9ae; --paper: #15181b; --rule: #343a40;
  --ours: #5cc0a4; --other: #6c757c; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
p {{ margin: .3rem 0; }} .dim {{ color: var(--dim); }} .headline {{ font-size: 1.25rem; margin: 1rem 0; }}
.headline strong {{ color: var(--ours); font-size: 1.6rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }}
th[scope=row], thead th:first-child {{ text-align: left; font-weight: 500; }}
thead th {{ color: var(--dim); font-weight: 500; }} .facts td, .facts th {{ text-align: left; white-space: normal; }}
.facts td {{ width: 65%; }}
svg {{ width: 100%; height: auto; }} svg text {{ fill: var(--ink); font: 15px system-ui, sans-serif; }}
.ours {{ fill: var(--ours); }} .other {{ fill: var(--other); }}
</style>
</head>
<body>
<h1>What shadow mode found</h1>
<p class="dim">{when}, in {source}. Nothing was changed on its way.</p>
<p class="headline">{headline}</p>
{bars}
<h2>Saved, by modality</h2>
<p class="dim">Share of the bytes as received; below nought: more bytes.</p>
<div class="scroll"><table>
<thead><tr><th>Modality</th><th>Objects</th><th>Received</th><th>Measured</th><th>Palimpsest</th><th>fast</th>
<th>JPEG XL e9</th><th>JPEG-LS</th><th>HTJ2K</th></tr></thead>
<tbody>
{modalities}</tbody></table></div>
<h2>Bytes and seconds of all that was measured</h2>
<p class="dim">Whole objects. Saved on a line of {link} Mbit/s; coding by one thread beside the traffic, ours with
sealing and candidates, decoding with the proof.</p>
<div class="scroll"><table>
<thead><tr><th>Coder</th><th>Bytes</th><th>Saved</th><th>Share</th><th>Line, s</th><th>Encode, s</th><th>Decode, s</th>
</tr></thead>
<tbody>
{speeds}</tbody></table></div>
<h2>What was looked at</h2>
<table class="facts"><tbody>
{facts}</tbody></table>
</body>
</html>
"""


def bar_rows(values: Sequence[tuple[str, int]]) -> str:
    """A bar for each, the first is what all are compared with."""
    most = max(value for _, value in values) or 1
    height = len(values) * (_BAR + _GAP)
    rows = []
    for at, (label, value) in enumerate(values):
        y, width = at * (_BAR + _GAP), max(1, round((_WIDTH - _LEFT - 60) * value / most))
        kind = "ours" if label.startswith("Palimpsest") else "other"
        share = value / values[0][1] if values[0][1] else 0.0
        rows.append(
            f'<text x="0" y="{y + 18}">{html.escape(label)}</text>'
            f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width}" height="{_BAR}" rx="3"/>'
            f'<text x="{_LEFT + width + 8}" y="{y + 18}">{share:.0%}</text>'
        )
    told = "; ".join(f"{label} {value / (values[0][1] or 1):.0%}" for label, value in values)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(told)}">{"".join(rows)}</svg>'
