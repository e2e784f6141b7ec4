"""The bench's figures as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker.bench import BenchReport
from worker.bench_figures import STANDARDS, FrameRow

HEADINGS = ("frame", "mod", "samples", "ours", "coder", "ctx", *STANDARDS, "vs jxl9", "enc MP/s", "dec MP/s", "")
NAMES = ("geomean_vs_jpegxl9", "worst_vs_jpegxl9", "geomean_vs_jpegls", "geomean_vs_htj2k")


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, right-aligned."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def percent(ratio: float) -> str:
    """A ratio of bytes as a change."""
    return f"{100 * (ratio - 1):+.2f} %"


def format_table(report: BenchReport) -> str:
    """One line a frame, then the summary: by modality and source, speeds, whole objects, what exceeds its allowance."""
    text = aligned([HEADINGS, *map(_line, report.frames)]) if report.frames else []
    found = report.summary
    if report.frames:
        text += ["", *aligned(_groups(found))]
        text += ["", *_speeds(found)]
        text += [_sentence("whole objects", found["objects"], ("geomean_vs_jpegxl9", "geomean_vs_jpegls"))]
        text += [f"worse than allowed: {row['path']}#{row['frame']}" for row in found["worse_than_allowed"]]
    count = len(found["worse_than_allowed"])
    exact = "all exact" if found["exact"] else f"{found['mismatches']} NOT exact"
    text.append(
        f"{found['n']} frames, {exact}, {len(report.skipped)} files skipped, {count} frames worse than allowed; "
        f"profile {found['profile']}, adapt {found['adapt']}, {found['threads']} thread(s)"
    )
    return "\n".join(text)


def _groups(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    parts = [("all", found), ("grey", found["grey"]), ("colour", found["colour"])]
    parts += [(name, each) for kind in ("by_modality", "by_source") for name, each in found.get(kind, {}).items()]
    if "sources_held_out" in found:
        parts.append(("sources held out", found["sources_held_out"]))
    lines = [("", "n", *(name.replace("geomean_", "").replace("_", " ") for name in NAMES))]
    lines += [(name, str(each["n"]), *(percent(each[key]) for key in NAMES)) for name, each in parts if each["n"]]
    return lines


def _speeds(found: Mapping[str, Any]) -> list[str]:
    ours = {"encode": found["encode_mp_s"], "decode": found["decode_mp_s"]}
    speeds = {"ours": ours, **found["speeds_mp_s"]}
    lines = [("MP/s", *speeds)]
    lines += [(way, *(f"{each[way]:.2f}" for each in speeds.values())) for way in ("encode", "decode")]
    cut = f", the clock cut those of {found['cut_by_clock']} frames" if found["cut_by_clock"] else ""
    return [*aligned(lines), f"of our encoding, fits took {found['fit_s']:.1f} s{cut}"]


def _sentence(title: str, found: Mapping[str, float], names: Sequence[str]) -> str:
    parts = [
        f"{percent(found[name])} {name.removeprefix('geomean_').replace('_', ' ')}" for name in names if name in found
    ]
    return f"{title}: {found['n']}" + (f", {', '.join(parts)}" if parts else "")


def _line(row: FrameRow) -> tuple[str, ...]:
    context = ("P" if row.previous else "") + {"inline": "a", "shared": "A"}.get(row.adapter, "")
    mark = "" if row.exact else "NOT EXACT"
    if row.excess > 0:
        mark += f"WORSE by {row.excess:.0f}"
    return (
        f"{Path(row.path).name[-28:]}#{row.frame}",
        row.modality,
        str(row.size),
        f"{row.bytes['ours']:.0f}",
        row.coder,
        context,
        *(str(row.bytes[name]) for name in STANDARDS),
        percent(row.ratio("jxl9")),
        f"{row.size / 1e6 / max(row.encode_s['ours'] + row.fit_s, 1e-9):.2f}",
        f"{row.size / 1e6 / max(row.decode_s['ours'], 1e-9):.2f}",
        mark,
    )
