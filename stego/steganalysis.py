"""How well a detector tells stego images from covers: AUC, error rate, cross-validation and intervals by patient.

Tiles of one patient never stand on both sides of a split, and an interval resamples patients, not tiles: tiles of one
patient are alike, and a detector that has seen one of them knows the others. Scores: higher means "more like stego".
Mann and Whitney, Ann. Math. Stat. 18(1), 1947; ridge-regularised Fisher discriminant as in the steganalysis literature
(Cogranne et al., WIFS 2015: it performs as the FLD ensemble does), here in dual form, for few images of many features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Groups = NDArray[np.int64]

FOLDS = 5
ROUNDS = 400
LEVEL = 0.95
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean eigenvalue of the kernel


@dataclass(frozen=True, slots=True)
class Detection:
    """One detector against one carrier at one payload.

    auc: 0.5 is blind, 1.0 sees all. low, high: bootstrap interval of the AUC over patients, None with fewer than two.
    error: P_E, the smallest mean of false alarms and misses over all thresholds. tiles, patients: how many were judged.
    """

    auc: float
    low: float | None
    high: float | None
    error: float
    tiles: int
    patients: int


def auc(covers: Floats, stegos: Floats) -> float:
    """Area under the ROC curve of scores (n,) and (m,): the share of pairs in the right order, ties counting half."""
    return float(_wins(covers, stegos).mean())


def error_rate(covers: Floats, stegos: Floats) -> float:
    """P_E = min over thresholds of (P_FA + P_MD) / 2; at most 0.5, for the detector may stay silent."""
    thresholds = np.unique(np.concatenate((covers, stegos)))
    alarms = 1 - np.searchsorted(np.sort(covers), thresholds, side="left") / covers.size
    misses = np.searchsorted(np.sort(stegos), thresholds, side="left") / stegos.size
    return float(min(0.5, ((alarms + misses) / 2).min()))


def interval(
    covers: Floats, stegos: Floats, groups: Groups, *, rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap of the AUC over patients; scores are paired, groups (n,) names the patient of each pair.

    None with fewer than two patients: there is nothing to resample.
    """
    names, place = np.unique(groups, return_inverse=True)
    if names.size < 2:
        return None
    one_hot = (place[:, None] == np.arange(names.size)[None, :]).astype(np.float64)
    wins = one_hot.T @ _wins(covers, stegos) @ one_hot
    counts = one_hot.sum(0)
    drawn = np.random.default_rng(seed).multinomial(names.size, np.full(names.size, 1 / names.size), rounds)
    top = np.einsum("ri,ij,rj->r", drawn, wins, drawn)
    low, high = np.quantile(top / (drawn @ counts) ** 2, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def detection(covers: Floats, stegos: Floats, groups: Groups, *, seed: int = 0) -> Detection:
    """Everything about paired scores (n,) of covers and of their stego images."""
    low, high = interval(covers, stegos, groups, seed=seed) or (None, None)
    patients = int(np.unique(groups).size)
    return Detection(auc(covers, stegos), low, high, error_rate(covers, stegos), covers.size, patients)


def cross_validated(
    covers: Floats, stegos: Floats, groups: Groups, *, folds: int = FOLDS, seed: int = 0
) -> tuple[Floats, Floats]:
    """Scores (n,), (n,) of paired features (n, d), each by a discriminant that never saw its patient.

    Patients are dealt to at most `folds` folds. The ridge is chosen inside the training patients. Raises ValueError
    with fewer than two patients.
    """
    parts = deal(groups, folds, seed)
    if len(parts) < 2:
        raise ValueError("a split by patient needs at least two patients")
    out = np.empty((2, covers.shape[0]))
    for part in parts:
        test = np.isin(groups, part)
        train = ~test
        machine = _Discriminant(covers[train], stegos[train], groups[train], seed)
        out[0, test], out[1, test] = machine.score(covers[test]), machine.score(stegos[test])
    return out[0], out[1]


def deal(groups: Groups, folds: int, seed: int) -> list[Groups]:
    """Patients in at most `folds` parts of about equal numbers of tiles, the largest patients dealt first."""
    names, counts = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(names.size)
    order = order[np.argsort(-counts[order], kind="stable")]
    parts: list[list[int]] = [[] for _ in range(min(folds, names.size))]
    loads = [0] * len(parts)
    for place in order:
        least = loads.index(min(loads))
        parts[least].append(int(names[place]))
        loads[least] += int(counts[place])
    return [np.array(part, dtype=np.int64) for part in parts]


class _Discriminant:
    """Ridge-regularised Fisher discriminant of paired features, in dual form: n images, any number of features."""

    def __init__(self, covers: Floats, stegos: Floats, groups: Groups, seed: int) -> None:
        pooled = np.concatenate((covers, stegos))
        self._mean = pooled.mean(0)
        spread = pooled.std(0)
        self._scale = np.where(spread > 1e-12, 1 / np.maximum(spread, 1e-12), 0.0)
        train = self._normal(pooled)
        labels = np.concatenate((np.full(len(covers), -1.0), np.full(len(stegos), 1.0)))
        kernel = train @ train.T
        ridge = _choose_ridge(kernel, labels, np.concatenate((groups, groups)), seed)
        self._weights = train.T @ _solve(kernel, labels, ridge)

    def _normal(self, features: Floats) -> Floats:
        return np.asarray((features - self._mean) * self._scale)

    def score(self, features: Floats) -> Floats:
        return np.asarray(self._normal(features) @ self._weights)


def _solve(kernel: Floats, labels: Floats, ridge: float) -> Floats:
    size = len(labels)
    return np.linalg.solve(kernel + ridge * max(np.trace(kernel) / size, 1e-12) * np.eye(size), labels)


def _choose_ridge(kernel: Floats, labels: Floats, groups: Groups, seed: int) -> float:
    """The ridge whose scores of left-out patients have the largest AUC; the middle one when there is one patient."""
    parts = deal(groups, 4, seed + 1)
    if len(parts) < 2:
        return RIDGES[len(RIDGES) // 2]
    return max(RIDGES, key=lambda ridge: _held_out_auc(kernel, labels, groups, parts, ridge))


def _held_out_auc(kernel: Floats, labels: Floats, groups: Groups, parts: Sequence[Groups], ridge: float) -> float:
    scores = np.empty(len(labels))
    for part in parts:
        test = np.isin(groups, part)
        dual = _solve(kernel[np.ix_(~test, ~test)], labels[~test], ridge)
        scores[test] = kernel[np.ix_(test, ~test)] @ dual
    return auc(scores[labels < 0], scores[labels > 0])


def _wins(covers: Floats, stegos: Floats) -> Floats:
    """(n, m): 1 where the stego scores higher, 0.5 on a tie."""
    return np.asarray((stegos[None, :] > covers[:, None]) + 0.5 * (stegos[None, :] == covers[:, None]))
