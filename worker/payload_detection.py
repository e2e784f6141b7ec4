"""What the detectors saw during a bench, and the verdict: AUC by carrier, payload, modality and detector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stego.steganalysis import Detection, cross_validated, detection
from worker.detectors import FEATURES, SCORES

Seen = dict[str, NDArray[np.float32]]
ALL = "all"
OWN_PATIENTS = 4  # from so many patients on, a modality has a classifier of its own for its suited tiles


@dataclass(frozen=True)
class Verdict:
    """How well one detector tells one carrier's stego tiles. tiles: 'all' or 'suited' (the hidden carrier's gate).

    trained: 'modality' when the classifier saw this modality alone, 'all' when all of them, '' for a plain score.
    """

    modality: str
    mode: str
    payload: float
    detector: str
    tiles: str
    trained: str
    found: Detection


class _Cover(NamedTuple):
    modality: str
    patient: int
    suited: bool
    seen: Seen


@dataclass
class Evidence:
    """Scores and features of covers by tile number, and of stego tiles by (carrier, payload)."""

    covers: dict[int, _Cover] = field(default_factory=dict)
    stegos: dict[tuple[str, float], dict[int, Seen]] = field(default_factory=dict)

    def cover(self, number: int, modality: str, patient: int, suited: bool, seen: Seen) -> None:
        """One tile as it was."""
        self.covers[number] = _Cover(modality, patient, suited, seen)

    def stego(self, number: int, mode: str, payload: float, seen: Seen) -> None:
        """The same tile after embedding."""
        self.stegos.setdefault((mode, payload), {})[number] = seen


def judge(evidence: Evidence) -> list[Verdict]:
    """Verdicts for every carrier and payload that some tile took; none without detectors or with one patient."""
    return [verdict for key in evidence.stegos for tiles in (ALL, "suited") for verdict in _judge(evidence, key, tiles)]


def _judge(evidence: Evidence, key: tuple[str, float], tiles: str) -> Iterator[Verdict]:
    taken = evidence.stegos[key]
    numbers = [n for n in sorted(taken) if tiles == ALL or evidence.covers[n].suited]
    groups = np.array([evidence.covers[n].patient for n in numbers], np.int64)
    modalities = np.array([evidence.covers[n].modality for n in numbers])
    if np.unique(groups).size < 2:
        return
    for name in (*SCORES, *FEATURES):
        if not all(name in taken[n] for n in numbers):
            return
        covers = np.stack([evidence.covers[n].seen[name] for n in numbers]).astype(np.float64)
        stegos = np.stack([taken[n][name] for n in numbers]).astype(np.float64)
        pooled = _scores(name, covers, stegos, groups)
        yield Verdict(ALL, *key, name, tiles, "" if name in SCORES else ALL, detection(*pooled, groups))
        for modality in sorted(set(modalities.tolist())):
            chosen = modalities == modality
            if np.unique(groups[chosen]).size < 2:
                continue  # an AUC of one patient says something about that patient
            own = name in FEATURES and tiles != ALL and np.unique(groups[chosen]).size >= OWN_PATIENTS
            scores = (pooled[0][chosen], pooled[1][chosen])
            if own:
                scores = _scores(name, covers[chosen], stegos[chosen], groups[chosen])
            trained = "" if name in SCORES else ("modality" if own else ALL)
            yield Verdict(modality, *key, name, tiles, trained, detection(*scores, groups[chosen]))


def _scores(
    name: str, covers: NDArray[np.float64], stegos: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (covers[:, 0], stegos[:, 0]) if name in SCORES else cross_validated(covers, stegos, groups)
