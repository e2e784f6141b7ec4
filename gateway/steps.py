"""One step of an object's walk, measured: into the histograms, and as a span where traces are wanted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from gateway import metricfiles, metrics, tracing
from gateway.index_rows import ForwardRow, InstanceRow
from gateway.instance import Form
from gateway.settings import Settings

__all__ = ["Moment", "accepted", "archived", "delivered", "done", "now", "retrieved", "unwatch", "watch"]


@dataclass(frozen=True, slots=True)
class Moment:
    """A beginning, on both clocks: wall in nanoseconds since the epoch, monotonic in seconds."""

    wall: int
    monotonic: float

    @property
    def seconds(self) -> float:
        """Since then."""
        return time.monotonic() - self.monotonic


def watch(settings: Settings, role: str) -> None:
    """From now on this process's counts and, where they are wanted, its traces are this host's; after a fork.

    role: as `metrics_read.ROLES`, or 'gpu', 'worker', 'exporter'. Raises Unavailable ``tracing-missing``.
    """
    metricfiles.share(settings.metrics_dir, role)
    tracing.begin(settings, role)


def unwatch() -> None:
    """Send the traces that wait; the counts lie in files."""
    tracing.end()


def now() -> Moment:
    """This moment."""
    return Moment(time.time_ns(), time.monotonic())


def accepted(row: InstanceRow, began: Moment, *, outcome: str, known_title: bool) -> None:
    """An object is committed. known_title: the calling AE title stands in the allow-list, so it may be a label."""
    metrics.RECEIVED.labels(source=row.source, outcome=outcome).inc()
    metrics.ACCEPT_SECONDS.labels(source=row.source).observe(began.seconds)
    if row.source == "dimse":
        metrics.RECEIVED_FROM.labels(calling_ae=row.calling_ae if known_title else "other").inc()
    if outcome != "duplicate":
        tracing.root(row, began.wall, {"source": row.source, "outcome": outcome})


def done(step: str, rows: Sequence[InstanceRow], began: Moment, outcome: str = "ok") -> None:
    """A worker's step for instances that took it together; each counts an equal part of its time.

    rows: as they are after the step, so that coder and modality are known.
    """
    part = began.seconds / len(rows)
    for row in rows:
        labels = _labels(row)
        if outcome == "ok":
            metrics.STEP_SECONDS.labels(step=step, **labels).observe(part)
        tracing.step(step, row, began.wall, {**labels, "outcome": outcome, "together": len(rows)})


def archived(row: InstanceRow) -> None:
    """An instance is in the archive."""
    labels = _labels(row)
    metrics.ARCHIVED.labels(**labels).inc()
    metrics.ARCHIVED_BYTES.labels(bytes="received", **labels).inc(row.size)
    metrics.ARCHIVED_BYTES.labels(bytes="archived", **labels).inc(row.archived_size or 0)
    metrics.WAIT_SECONDS.labels(modality=labels["modality"]).observe(max(0.0, time.time() - row.received_at))


def delivered(row: InstanceRow, forward: ForwardRow, began: Moment, outcome: str) -> None:
    """One object was sent to one destination, or was not: done, retry, down, permanent."""
    metrics.FORWARD_SECONDS.labels(destination=forward.destination, outcome=outcome).observe(began.seconds)
    tracing.step("forward", row, began.wall, {"destination": forward.destination, "outcome": outcome})


def retrieved(kind: str, began: Moment, outcome: str) -> None:
    """A retrieve worker has answered. kind: its first word, of few."""
    word = kind.partition(":")[0]
    known = word if word in ("original", "metadata", "rendered", "transcoded", "corrected") else "other"
    metrics.RETRIEVE_SECONDS.labels(kind=known, outcome=outcome).observe(began.seconds)


def _labels(row: InstanceRow) -> dict[str, str]:
    coder = None if row.form == Form.PASSTHROUGH else row.coder
    return {"modality": metrics.modality_label(row.modality), "coder": metrics.coder_label(coder)}
