"""Sums over many journeys: for people as text, for programs as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.instance import Form
from palimpsest.journey import IN_ARCHIVE, Journey
from palimpsest.scan import Skipped
from palimpsest.standards import CODECS, Yardstick


@dataclass
class Sums:
    """Bytes of a group of archived files. coded_*: only those whose pixels were coded."""

    files: int = 0
    bytes_in: int = 0
    bytes_archived: int = 0
    coded_files: int = 0
    raw_pixel_bytes: int = 0
    codec_bytes: int = 0
    payload_bytes: int = 0

    def add(self, journey: Journey) -> None:
        """Count one archived file."""
        row = journey.row
        assert row is not None
        self.files += 1
        self.bytes_in += journey.found.size
        self.bytes_archived += row.archived_size or 0
        if row.form is Form.CODED:
            self.coded_files += 1
            self.raw_pixel_bytes += row.raw_pixel_bytes or 0
            self.codec_bytes += row.codec_bytes or 0
            self.payload_bytes += row.payload_bytes or 0

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON, with the two ratios (None where nothing was counted)."""
        return {
            **self.__dict__,
            "whole_ratio": _ratio(self.bytes_in, self.bytes_archived),
            "codec_ratio": _ratio(self.raw_pixel_bytes, self.codec_bytes),
        }


@dataclass
class Summary:
    """All counts of one run of `palimpsest send`."""

    named: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    known_before: int = 0
    archived: int = 0
    forwarded: int = 0
    restored: int = 0
    superseded: int = 0
    passthrough: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    by_modality: dict[str, Sums] = field(default_factory=dict)
    total: Sums = field(default_factory=Sums)

    @property
    def clean(self) -> bool:
        """Everything that was accepted is archived, forwarded and restored."""
        return not self.failed


def summarise(journeys: Sequence[Journey], skipped: Iterable[Skipped], *, fetched: bool) -> Summary:
    """Count. `fetched`: originals were asked back, so that what is not restored has failed."""
    summary = Summary()
    for item in skipped:
        summary.named += 1
        summary.refused[item.reason] += 1
        summary.problems.append(f"{item.path.name}: refused: {item.reason}: {item.message}")
    for journey in journeys:
        summary.named += 1
        _count(summary, journey, fetched)
    summary.by_modality = dict(sorted(summary.by_modality.items()))
    return summary


def _count(summary: Summary, journey: Journey, fetched: bool) -> None:
    if journey.refused:
        assert journey.answer is not None
        summary.refused[journey.answer.detail or journey.answer.reason] += 1
        summary.problems.append(f"{journey.found.path.name}: {journey.problem()}")
        return
    row = journey.row
    summary.accepted += 1
    summary.known_before += journey.known_before
    summary.superseded += journey.superseded
    summary.forwarded += bool(journey.forwards) and journey.forwarded
    summary.restored += journey.restored
    if row is not None and row.state in IN_ARCHIVE:
        summary.archived += 1
        summary.by_modality.setdefault(row.modality or "none", Sums()).add(journey)
        summary.total.add(journey)
        if row.form is Form.PASSTHROUGH:
            summary.passthrough[row.reason or "unknown"] += 1
    problem = journey.problem()
    if problem or (fetched and not journey.restored):
        summary.failed[problem.split(":")[0] or "not restored"] += 1
        summary.problems.append(f"{journey.found.path.name}: {problem or 'not given back yet'}")


def print_summary(console: Console, summary: Summary) -> None:
    """Counts, reasons, and the ratio by modality."""
    lines = [
        ("named", summary.named, ""),
        ("refused", sum(summary.refused.values()), _reasons(summary.refused)),
        ("accepted", summary.accepted, f"{summary.known_before} of them known before" if summary.known_before else ""),
        ("archived", summary.archived, ""),
        ("forwarded", summary.forwarded, ""),
        ("restored", summary.restored, f"{summary.superseded} by digest" if summary.superseded else ""),
        ("passthrough", sum(summary.passthrough.values()), _reasons(summary.passthrough)),
        ("failed", sum(summary.failed.values()), _reasons(summary.failed)),
    ]
    for name, count, note in lines:
        console.print(f"{name:<12}{count:>7}  {note}".rstrip(), highlight=False, soft_wrap=True)
    if summary.total.files:
        console.print(_ratio_table(summary))


def _ratio_table(summary: Summary) -> Table:
    table = Table(title="bytes: whole files, and pixels by the codec alone", title_justify="left", header_style="bold")
    names = ("modality", "files", "bytes in", "archived", "ratio", "coded", "raw pixels", "codec", "ratio", "payload")
    for name in names:
        table.add_column(name, justify="left" if name == "modality" else "right")
    rows = [*summary.by_modality.items(), ("all", summary.total)]
    for name, sums in rows:
        table.add_row(
            name, str(sums.files), f"{sums.bytes_in:,}", f"{sums.bytes_archived:,}",
            _show(_ratio(sums.bytes_in, sums.bytes_archived)), str(sums.coded_files), f"{sums.raw_pixel_bytes:,}",
            f"{sums.codec_bytes:,}", _show(_ratio(sums.raw_pixel_bytes, sums.codec_bytes)), f"{sums.payload_bytes:,}",
            end_section=name == rows[-2][0],
        )  # fmt: skip
    return table


def print_standards(console: Console, sums: Mapping[str, Yardstick]) -> None:
    """Our bytes beside those of the standard codecs, whole files and codestreams, for the coded files."""
    table = Table(
        title="coded files against the same as JPEG XL and JPEG-LS", title_justify="left", header_style="bold"
    )
    names = ("modality", "files", "archived", "vs JPEG XL", "vs JPEG-LS", "codec alone", "vs JPEG XL", "vs JPEG-LS")
    for name in names:
        table.add_column(name, justify="left" if name == "modality" else "right")
    total = Yardstick()
    for one in sums.values():
        total.add(one)
    for name, one in [*sums.items(), ("all", total)]:
        whole = [_percent(one.archived, one.objects[codec]) for codec in CODECS]
        alone = [_percent(one.codec, one.pixels[codec]) for codec in CODECS]
        table.add_row(name, str(one.files), f"{one.archived:,}", *whole, f"{one.codec:,}", *alone)
    console.print(table)


def _percent(ours: int, theirs: int) -> str:
    return f"{100 * (ours / theirs - 1):+.1f} %" if theirs else ""


def as_json(summary: Summary, journeys: Sequence[Journey], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """Everything, as JSON-able values: files by path, and of what is in them only sizes and UIDs."""
    counts = {
        name: dict(value) if isinstance(value, Counter) else value
        for name, value in summary.__dict__.items()
        if name not in {"by_modality", "total"}
    }
    return {
        **counts,
        "total": summary.total.as_dict(),
        "by_modality": {name: sums.as_dict() for name, sums in summary.by_modality.items()},
        "files": [_file(j) for j in journeys],
        "not_sent": [{"path": str(s.path), "reason": s.reason, "message": s.message} for s in skipped],
    }


def _file(journey: Journey) -> dict[str, Any]:
    row, head = journey.row, journey.found.head
    facts: dict[str, Any] = {
        "path": str(journey.found.path),
        "sop_instance_uid": head.sop_instance_uid,
        "transfer_syntax": head.transfer_syntax,
        "bytes_in": journey.found.size,
        "known_before": journey.known_before,
        "superseded": journey.superseded,
        "problem": journey.problem(),
        "restored": journey.restored,
        "compared": journey.verdict.how if journey.verdict is not None else None,
        "forwarded": [{"destination": f.destination, "state": str(f.state)} for f in journey.forwards],
    }
    if row is not None:
        names = ("id", "modality", "state", "form", "reason", "coder", "carrier", "archived_size", "codec_bytes")
        facts |= {name: getattr(row, name) for name in (*names, "payload_bytes", "raw_pixel_bytes")}
        facts["global_part"] = journey.global_part
    return facts


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the report, readable for people too."""
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def _reasons(counter: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counter.most_common())


def _ratio(before: int, after: int) -> float | None:
    return before / after if after else None


def _show(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio is not None else ""
