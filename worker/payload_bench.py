"""`palimpsest payload bench`: every carrier at every payload, on the files given, beside the naive ones.

Every figure is measured here and now. Distances and growth are against the cover; detection is by sealwatch's detectors
(worker.detectors) with scores that never saw the patient (stego.steganalysis), once on all tiles, once on those that
the hidden carrier's own gate lets through ("suited"). What a carrier refuses is counted with its reason, never dropped
in silence. One thread.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stego.errors import CarrierError
from stego.suitability import suitability
from worker.detectors import DETECTORS, FEATURES, Detectors, load
from worker.payload_detection import Evidence, Verdict, judge
from worker.payload_figures import psnr, sizes, ssim
from worker.payload_modes import MODES, Outcome, make_job, run
from worker.payload_tiles import Choice, Tile, tiles
from worker.stegexpose import Flagged, StegExpose

PAYLOADS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Plan:
    """What to measure. modes: names of MODES, or NAME+REGION (REGIONS). payloads: bits per sample.

    growth_every: coders run on every n-th tile (they take longer than all else). detectors: False leaves the AUC
    columns out, on request alone.
    """

    modes: tuple[str, ...] = tuple(MODES)
    payloads: tuple[float, ...] = PAYLOADS
    choice: Choice = field(default_factory=Choice)
    growth_every: int = 1
    detectors: bool = True
    stegexpose: StegExpose | None = None


@dataclass(frozen=True)
class Row:
    """One tile, one carrier, one payload. Bytes and milliseconds; `refused` says why there is nothing else.

    exact: the message and, where `restores`, every sample came back. beside: bytes that must be kept elsewhere for it.
    growth: coded bytes of the stego tile less those of the cover, by coder, None where not measured.
    """

    path: str
    modality: str
    patient: int
    place: tuple[int, int]
    samples: int
    bits_stored: int
    suited: str
    mode: str
    payload: float
    message: int
    refused: str = ""
    exact: bool | None = None
    restores: bool = False
    psnr: float | None = None
    ssim: float | None = None
    max_change: int = 0
    changed: float = 0.0
    beside: int = 0
    growth: dict[str, int] | None = None
    embed_ms: float = 0.0
    extract_ms: float = 0.0


@dataclass(frozen=True)
class Report:
    """All rows, verdicts of the detectors, what was skipped with the reason, and how it was measured."""

    rows: list[Row]
    verdicts: list[Verdict]
    flagged: list[Flagged]
    skipped: dict[str, str]
    detectors: str
    plan: dict[str, object]
    seconds: float


def bench(
    paths: Sequence[Path],
    plan: Plan,
    json_path: Path | None = None,
    progress: Callable[[Tile, int], None] | None = None,
) -> Report:
    """Measure on every grey DICOM image in `paths`; writes the report as JSON to `json_path`.

    Raises NoDetectors, before anything is measured, when the plan wants detectors and sealwatch is not there.
    """
    started = time.monotonic()
    detectors = load() if plan.detectors else None
    skipped: dict[str, str] = {}
    rows: list[Row] = []
    evidence = Evidence()
    chosen: list[Tile] = []
    for number, tile in enumerate(tiles(paths, plan.choice, skipped)):
        if progress is not None:
            progress(tile, number)
        rows += _measure(tile, number, plan, detectors, evidence)
        if plan.stegexpose is not None:
            chosen.append(tile)
    report = Report(
        rows,
        judge(evidence),
        plan.stegexpose.flag(chosen, plan.modes, plan.payloads) if plan.stegexpose is not None else [],
        skipped,
        f"sealwatch {detectors.version}: {', '.join(DETECTORS)}" if detectors else "none asked for",
        {"modes": plan.modes, "payloads": plan.payloads, **asdict(plan.choice), "growth_every": plan.growth_every},
        time.monotonic() - started,
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _measure(tile: Tile, number: int, plan: Plan, detectors: Detectors | None, evidence: Evidence) -> list[Row]:
    fit = suitability(tile.cover)
    grown = number % plan.growth_every == 0
    before = sizes(tile.cover.values, tile.words(tile.cover.values), tile.fmt) if grown else None
    seen = _look(detectors, tile.cover.values)
    evidence.cover(number, tile.modality, tile.patient, fit.suited, seen)
    rows = []
    for mode in plan.modes:
        for payload in plan.payloads:
            job = make_job(tile, mode, payload)
            row = Row(
                tile.path, tile.modality, tile.patient, tile.place, tile.cover.values.size, tile.fmt.bits_stored,
                fit.reason, mode, payload, len(job.message),
            )  # fmt: skip
            try:
                outcome = run(mode, job)
            except CarrierError as error:
                rows.append(Row(**{**asdict(row), "refused": error.reason}))
                continue
            rows.append(_filled(row, tile, outcome, before))
            evidence.stego(number, mode, payload, _look(detectors, outcome.values))
    return rows


def _look(detectors: Detectors | None, values: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
    if detectors is None:
        return {}
    seen = {name: np.array([score(values)], np.float32) for name, score in detectors.scores.items()}
    return seen | {name: detectors.features[name](values) for name in FEATURES}


def _filled(row: Row, tile: Tile, outcome: Outcome, before: dict[str, int] | None) -> Row:
    cover, stego = tile.cover.values, outcome.values
    growth = None
    if before is not None:
        after = sizes(stego, tile.words(stego), tile.fmt, outcome.levels)
        growth = {name: after[name] - before[name] for name in before}
    distance = psnr(cover, stego)
    measured = {
        "exact": outcome.exact,
        "restores": outcome.restores,
        "psnr": None if math.isinf(distance) else round(distance, 3),
        "ssim": round(ssim(cover, stego), 6),
        "max_change": int(np.abs(stego.astype(np.int64) - cover).max()),
        "changed": round(float(np.mean(cover != stego)), 6),
        "beside": outcome.beside,
        "growth": growth,
        "embed_ms": round(outcome.embed_ms, 2),
        "extract_ms": round(outcome.extract_ms, 2),
    }
    return Row(**{**asdict(row), **measured})
