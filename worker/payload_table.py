"""`payload bench` as plain text: carriers by payload, then the detectors by modality."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median

from stego.steganalysis import Detection
from worker.detectors import DETECTORS
from worker.payload_bench import Report, Row
from worker.payload_detection import ALL, Verdict
from worker.payload_figures import CODERS

FIGURES = (
    "mode", "bpp", "tiles", "refused", "exact", "PSNR", "worst", "SSIM", "max", "changed", "beside", "jls", "j2k",
    "dual", "embed ms", "extract ms",
)  # fmt: skip


def format_table(report: Report) -> str:
    """Everything in the report that a terminal can show."""
    modalities = [ALL, *sorted({row.modality for row in report.rows})]
    parts = [figures(report.rows, modality) for modality in modalities]
    parts += [detections(report.verdicts, modality, tiles) for tiles in ("suited", ALL) for modality in modalities]
    if report.flagged:
        lines = [(f.mode, f"{f.payload:g}", str(f.files), f"{100 * f.flagged / f.files:.1f} %") for f in report.flagged]
        parts.append("StegExpose, 8-bit exports\n" + _grid([("mode", "bpp", "files", "flagged"), *lines]))
    reasons = Counter(report.skipped.values())
    parts.append(f"detectors: {report.detectors}; files skipped: {_counted(reasons)}; {report.seconds:.0f} s")
    return "\n\n".join(part for part in parts if part)


def figures(rows: Sequence[Row], modality: str) -> str:
    """Distances, growth in bytes per payload byte, and speed; '' when the modality has no row."""
    lines = [FIGURES]
    for mode, payload in _keys(rows):
        of = [r for r in rows if (r.mode, r.payload) == (mode, payload) and modality in (ALL, r.modality)]
        if of:
            lines.append((mode, f"{payload:g}", *_figures(of)))
    return f"{_name(modality)}: distances, growth, speed\n{_grid(lines)}" if len(lines) > 1 else ""


def _figures(of: Sequence[Row]) -> tuple[str, ...]:
    taken = [row for row in of if not row.refused]
    refused = _counted(Counter(row.refused for row in of if row.refused))
    if not taken:
        return (str(len(of)), refused, *("",) * 12)
    distances = [row.psnr if row.psnr is not None else math.inf for row in taken]
    similar = [row.ssim for row in taken if row.ssim is not None]
    message = sum(row.message for row in taken)
    return (
        str(len(of)), refused, f"{sum(bool(row.exact) for row in taken)}/{len(taken)}",
        f"{fmean(distances):.1f}", f"{min(distances):.1f}", f"{fmean(similar):.5f}",
        str(max(row.max_change for row in taken)), f"{fmean(row.changed for row in taken):.4f}",
        f"{sum(row.beside for row in taken) / message:.2f}", *(_growth(taken, name) for name in CODERS),
        f"{median(row.embed_ms for row in taken):.0f}", f"{median(row.extract_ms for row in taken):.0f}",
    )  # fmt: skip


def _growth(taken: Sequence[Row], coder: str) -> str:
    measured = [row for row in taken if row.growth is not None]
    if not measured:
        return ""
    return f"{sum(row.growth[coder] for row in measured if row.growth) / sum(row.message for row in measured):+.2f}"


def detections(verdicts: Sequence[Verdict], modality: str, tiles: str) -> str:
    """AUC with its interval by detector; '' when there is none."""
    chosen = [v for v in verdicts if v.modality == modality and v.tiles == tiles]
    found = {(v.mode, v.payload, v.detector): v.found for v in chosen}
    lines = [("mode", "bpp", "tiles", "patients", *DETECTORS, f"P_E {DETECTORS[-1]}")]
    for mode, payload in _keys(chosen):
        cells = [found.get((mode, payload, name)) for name in DETECTORS]
        last = cells[-1]
        if last is not None:
            counts = (str(last.tiles), str(last.patients))
            lines.append((mode, f"{payload:g}", *counts, *map(_auc, cells), f"{last.error:.2f}"))
    trained = sorted({v.trained for v in chosen if v.trained})
    note = f"AUC [95 %, by patient], {tiles} tiles, classifiers trained on {' / '.join(trained) or '-'}"
    return f"{_name(modality)}: {note}\n{_grid(lines)}" if len(lines) > 1 else ""


def _auc(found: Detection | None) -> str:
    if found is None:
        return ""
    bounds = f" [{found.low:.2f} {found.high:.2f}]" if found.low is not None else ""
    return f"{found.auc:.3f}{bounds}"


def _keys(things: Iterable[Row] | Iterable[Verdict]) -> list[tuple[str, float]]:
    """(mode, payload) in order of appearance."""
    return list(dict.fromkeys((thing.mode, thing.payload) for thing in things))


def _counted(reasons: Counter[str]) -> str:
    return " ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "0"


def _name(modality: str) -> str:
    return "all modalities" if modality == ALL else modality or "(no modality)"


def _grid(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
