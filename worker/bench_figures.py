"""The bench's rows and what is summed up from them: geometric means of byte ratios, speeds, the worst frames."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

STANDARDS = ("jxl9", "jxl7", "jpegls", "htj2k")
WORST = 10  # frames that the summary lists
# codec.md rule 4: never worse than the best standard codec by more than this
ALLOWED_SHARE, ALLOWED_BYTES = 0.005, 48


@dataclass
class FrameRow:
    """One frame. Bytes by coder in `bytes`, 'ours' with this frame's part of what its series shares.

    encode_s, decode_s: seconds by coder; 'ours' encodes with all candidates and proves by decoding, fit_s on top.
    coder: whose blob is kept. previous: a frame before was at hand. adapter: 'none', 'inline' or 'shared'.
    cut: its fit was cut by the clock. lengths: of every candidate of ours. held_out: False where files of the same
    source may be trained on.
    """

    path: str
    frame: int
    modality: str
    source: str
    rows: int
    columns: int
    samples: int
    bits_stored: int
    bytes: dict[str, float] = field(default_factory=dict)
    encode_s: dict[str, float] = field(default_factory=dict)
    decode_s: dict[str, float] = field(default_factory=dict)
    fit_s: float = 0.0
    cut: bool = False
    coder: str = ""
    previous: bool = False
    adapter: str = "none"
    exact: bool = False
    lengths: dict[str, int] = field(default_factory=dict)
    held_out: bool = True

    @property
    def size(self) -> int:
        """Samples."""
        return self.rows * self.columns * self.samples

    @property
    def excess(self) -> float:
        """Bytes over the best standard codec beyond what is allowed (not above 0: kept)."""
        best = min(self.bytes[name] for name in STANDARDS)
        return self.bytes["ours"] - best - max(ALLOWED_SHARE * best, ALLOWED_BYTES)

    def ratio(self, name: str) -> float:
        """Our bytes over those of another coder."""
        return self.bytes["ours"] / self.bytes[name]


@dataclass
class ObjectRow:
    """One whole DICOM object, in bytes: as received, archived by us, and the same header with standard pixels."""

    path: str
    modality: str
    frames: int
    coder: str
    bytes: dict[str, int]

    def ratio(self, name: str) -> float:
        """The archive object's bytes over those of another form."""
        return self.bytes["archived"] / self.bytes[name]


def geometric(ratios: Sequence[float]) -> float:
    """Geometric mean; nan of nothing."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan


def figures(rows: Sequence[FrameRow]) -> dict[str, float]:
    """n and byte ratios of these frames."""
    out: dict[str, float] = {"n": len(rows)}
    if rows:
        out["geomean_vs_jpegxl9"] = geometric([row.ratio("jxl9") for row in rows])
        out["worst_vs_jpegxl9"] = max(row.ratio("jxl9") for row in rows)
        out["geomean_vs_jpegxl7"] = geometric([row.ratio("jxl7") for row in rows])
        out["geomean_vs_jpegls"] = geometric([row.ratio("jpegls") for row in rows])
        out["geomean_vs_htj2k"] = geometric([row.ratio("htj2k") for row in rows])
        out["total_vs_jpegxl9"] = sum(row.bytes["ours"] for row in rows) / sum(row.bytes["jxl9"] for row in rows)
    return {name: round(value, 5) for name, value in out.items()}


def summary(rows: Sequence[FrameRow], objects: Sequence[ObjectRow]) -> dict[str, Any]:
    """The whole summary, JSON-able. Speeds in 10^6 samples a second: all samples over all seconds."""
    out: dict[str, Any] = dict(figures(rows))
    million = sum(row.size for row in rows) / 1e6
    fit = sum(row.fit_s for row in rows)
    out["encode_mp_s"] = _speed(million, sum(row.encode_s["ours"] for row in rows) + fit)
    out["fit_s"] = round(fit, 3)
    out["cut_by_clock"] = sum(row.cut for row in rows)
    out["decode_mp_s"] = _speed(million, sum(row.decode_s["ours"] for row in rows))
    out["exact"] = bool(rows) and all(row.exact for row in rows)
    out["mismatches"] = sum(not row.exact for row in rows)
    out["samples"] = sum(row.size for row in rows)
    out["bytes"] = {name: round(sum(row.bytes[name] for row in rows)) for name in ("ours", *STANDARDS)}
    out["speeds_mp_s"] = {
        name: {
            "encode": _speed(million, sum(row.encode_s.get(name, 0.0) for row in rows)),
            "decode": _speed(million, sum(row.decode_s.get(name, 0.0) for row in rows)),
        }
        for name in STANDARDS
    }
    out["coders"] = dict(Counter(row.coder for row in rows).most_common())
    out["adapters"] = dict(Counter(row.adapter for row in rows).most_common())
    out["with_previous"] = sum(row.previous for row in rows)
    out["estimate"] = estimate_figures(rows)
    out["worse_than_allowed"] = [_named(row) for row in _worst(rows, lambda row: row.excess) if row.excess > 0]
    out["worst"] = [_named(row) for row in _worst(rows, lambda row: row.ratio("jxl9"))[:WORST]]
    out["by_modality"] = _by(rows, lambda row: row.modality)
    out["grey"] = figures([row for row in rows if row.samples == 1])
    out["colour"] = figures([row for row in rows if row.samples == 3])
    if any(row.source for row in rows):
        out["by_source"] = _by(rows, lambda row: row.source)
        out["sources_held_out"] = figures([row for row in rows if row.held_out])
    out["objects"] = object_figures(objects)
    return out


def estimate_figures(rows: Sequence[FrameRow]) -> dict[str, int]:
    """How often the estimate of when JPEG XL is worth trying was right, of the frames that the learned coder coded.

    tried, in_vain: JPEG XL was tried; and was longer. missed: it was not tried, and one of its two efforts is shorter;
    missed_too_much: by more than is allowed.
    """
    judged = [row for row in rows if "learned" in row.lengths]
    tried = [row for row in judged if "jxl" in row.lengths]
    missed = [
        row for row in judged
        if "jxl" not in row.lengths and min(row.bytes["jxl9"], row.bytes["jxl7"]) < row.bytes["ours"]
    ]  # fmt: skip
    return {
        "n": len(judged),
        "tried": len(tried),
        "in_vain": sum(row.coder != "jxl" for row in tried),
        "missed": len(missed),
        "missed_too_much": sum(row.excess > 0 for row in missed),
    }


def object_figures(objects: Sequence[ObjectRow]) -> dict[str, float]:
    """n, and whole archived bytes over the same file with standard pixels (geometric means)."""
    out: dict[str, float] = {"n": len(objects)}
    for name, label in (("jxl9", "jpegxl9"), ("jpegls", "jpegls"), ("htj2k", "htj2k"), ("received", "received")):
        if objects:
            out[f"geomean_vs_{label}"] = round(geometric([each.ratio(name) for each in objects]), 5)
    return out


def _speed(million: float, seconds: float) -> float:
    return round(million / max(seconds, 1e-9), 3)


def _by(rows: Sequence[FrameRow], key: Callable[[FrameRow], str]) -> dict[str, dict[str, float]]:
    names = sorted({key(row) for row in rows})
    return {name or "unknown": figures([row for row in rows if key(row) == name]) for name in names}


def _worst(rows: Iterable[FrameRow], key: Callable[[FrameRow], float]) -> list[FrameRow]:
    return sorted(rows, key=key, reverse=True)


def _named(row: FrameRow) -> dict[str, Any]:
    return {
        "path": row.path,
        "frame": row.frame,
        "vs_jpegxl9": round(row.ratio("jxl9"), 5),
        "excess_bytes": round(row.excess, 1),
        "ours": row.bytes["ours"],
        "jxl9": row.bytes["jxl9"],
        "coder": row.coder,
    }
