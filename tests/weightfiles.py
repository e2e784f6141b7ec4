"""Objects of the codec's weights lie beside the archived ones: tests that count objects leave them out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from codec.weights import RELEASED
from worker.weightobject import weights_uid

WEIGHTS_UIDS = frozenset(weights_uid(each.sha256) for each in RELEASED)


def without_weights(files: Iterable[str | Path]) -> list[str]:
    """The files (named by their SOP Instance UIDs) that hold something received, in order."""
    return [str(file) for file in files if not any(uid in str(file) for uid in WEIGHTS_UIDS)]
