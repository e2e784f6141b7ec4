"""Gauges that nobody counts: what the system of record, the host and the parts say when somebody asks.

Those of the index are the same whichever process of whichever host is asked (`max` over hosts, never `sum`); disk,
circuits and processes are this host's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from gateway import metricfiles, metrics
from gateway.audit_standing import audit_standing
from gateway.circuit import read_circuit
from gateway.errors import PalimpsestError
from gateway.index_rows import Counts
from gateway.index_worker import BEAT_SECONDS
from gateway.instance import ForwardState, State

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

__all__ = ["ROLES", "Collector", "exposition", "host_exposition"]

#: Processes of a gateway, by the role that they give `metricfiles.share`; each is shown, also when none lives.
ROLES: Final = ("listener", "api", "index", "encode", "forward", "retrieve", "sweep")

Depths = Callable[[], Mapping[str, int]]
Dependencies = Callable[[], Mapping[str, bool]]
_TOTALS: Final = ("bytes_in", "bytes_archived", "codec_bytes", "payload_bytes", "conflicts", "outbox", "open_alerts")


class Collector:
    """What prometheus_client asks for the gauges; one part that cannot answer leaves the others alone."""

    def __init__(self, gw: Gateway, depths: Depths, dependencies: Dependencies) -> None:
        self._gw, self._depths, self._dependencies = gw, depths, dependencies

    def collect(self) -> Iterable[Metric]:
        """One family per question."""
        yield _family(
            "palimpsest_dependency_up", "1: the dependency answers.", "dependency",
            {name: int(up) for name, up in self._dependencies().items()},
        )  # fmt: skip
        yield from _host(self._gw)
        for part in (_index, _ages, _gpus, _keys, _destinations, _care, _audit):
            try:
                yield from part(self._gw)
            except (PalimpsestError, OSError):
                continue  # palimpsest_dependency_up says which
        yield _family("palimpsest_queue_depth", "Messages waiting, by queue.", "queue", self._depths())


class _Host:
    """The gauges that are this host's alone."""

    def __init__(self, gw: Gateway) -> None:
        self._gw = gw

    def collect(self) -> Iterable[Metric]:
        yield from _host(self._gw)


def exposition(gw: Gateway, depths: Depths, dependencies: Dependencies) -> bytes:
    """Text exposition: what the processes of this host counted, and the gauges."""
    return _counted(gw) + _latest(Collector(gw, depths, dependencies))


def host_exposition(gw: Gateway) -> bytes:
    """The same of a host without an API: counts, processes and disk, nothing of the index, which other hosts show."""
    return _counted(gw) + _latest(_Host(gw))


def _counted(gw: Gateway) -> bytes:
    """What the processes that share this host's folder counted; this process's own counts where none does."""
    return metricfiles.exposed(gw.settings.metrics_dir) or generate_latest(metrics.REGISTRY)


def _latest(collector: Collector | _Host) -> bytes:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


def _host(gw: Gateway) -> Iterator[Metric]:
    alive = metricfiles.roles(gw.settings.metrics_dir)
    processes = {role: alive.get(role, 0) for role in (*ROLES, *alive)}
    yield _family("palimpsest_processes", "Processes of this host that live.", "role", processes)
    yield from _disk(gw)


def _disk(gw: Gateway) -> Iterator[Metric]:
    free = GaugeMetricFamily("palimpsest_disk_free_bytes", "Bytes free where this lies.", labels=["place"])
    size = GaugeMetricFamily("palimpsest_disk_size_bytes", "Bytes of the file system.", labels=["place"])
    room = GaugeMetricFamily(
        "palimpsest_disk_above_watermark_bytes", "Bytes until nothing more is taken in.", labels=["place"]
    )
    for place, folder in (("spool", gw.settings.spool_dir), ("archive", gw.settings.archive_dir)):
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        free.add_metric([place], usage.free)
        size.add_metric([place], usage.total)
        if place == "spool":
            room.add_metric([place], usage.free - gw.settings.watermark_bytes)
    yield from (free, size, room)
    limit = gw.settings.watermark_bytes
    yield _single("palimpsest_watermark_bytes", "Free bytes under which objects are refused.", limit)


def _index(gw: Gateway) -> Iterator[Metric]:
    counts = gw.index.counts()
    states = {str(state): counts.by_state.get(state, 0) for state in State}
    yield _family("palimpsest_instances", "Instances by state.", "state", states)
    archived = sum(counts.by_state.get(state, 0) for state in (State.ARCHIVED, State.RELEASED))
    yield _single("palimpsest_archived_instances", "Instances whose object is archived.", archived)
    yield _family("palimpsest_forms", "Archive objects by form.", "form", counts.by_form)
    yield _family("palimpsest_passthrough", "Passthrough by reason.", "reason", counts.passthrough_by_reason)
    names = {each.name for each in gw.settings.destinations} | counts.forwards.keys()
    forwards = {
        name: {str(state): counts.forwards.get(name, {}).get(state, 0) for state in ForwardState} for name in names
    }
    yield _nested("palimpsest_forwards", "Forwards.", "destination", forwards)
    yield _nested("palimpsest_commitments", "Storage commitment transactions.", "role", counts.commitments)
    dead = {name: states[ForwardState.DEAD] for name, states in forwards.items()}
    yield _family("palimpsest_dead_letters", "Forwards that wait for a replay.", "destination", dead)
    yield from _modalities(counts)
    for name in _TOTALS:
        yield _single(f"palimpsest_{name}", name.replace("_", " "), getattr(counts, name))
    oldest = counts.oldest_unfinished_at
    yield _single("palimpsest_oldest_unfinished_timestamp_seconds", "0: nothing waits.", oldest or 0.0)
    age = 0.0 if oldest is None else max(0.0, gw.index.now() - oldest)
    yield _single("palimpsest_backlog_age_seconds", "Age of the oldest instance that is not archived; 0: none.", age)


def _modalities(counts: Counts) -> Iterator[Metric]:
    sums: dict[str, dict[str, int]] = {}
    for modality, values in counts.by_modality.items():
        label = metrics.modality_label("" if modality == "?" else modality)
        into = sums.setdefault(label, dict.fromkeys(("instances", "bytes_in", "bytes_archived"), 0))
        for name in into:
            into[name] += values[name]
    for name in ("instances", "bytes_in", "bytes_archived"):
        text = f"Archived, by modality: {name.replace('_', ' ')}."
        values = {label: each[name] for label, each in sums.items()}
        yield _family(f"palimpsest_modality_{name}", text, "modality", values)


def _ages(gw: Gateway) -> Iterator[Metric]:
    yield _family(
        "palimpsest_queue_age_seconds", "Age of the oldest work that is due and that nobody does yet; 0: none.",
        "queue", gw.index.queue_ages(),
    )  # fmt: skip


def _gpus(gw: Gateway) -> Iterator[Metric]:
    """Of workers that beat; what the driver does not tell is left out."""
    labels = ["host", "worker"]
    memory = GaugeMetricFamily("palimpsest_gpu_memory_bytes", "Of a worker's GPU.", labels=[*labels, "kind"])
    busy = GaugeMetricFamily("palimpsest_gpu_busy_ratio", "Utilisation of a worker's GPU, 0 to 1.", labels=labels)
    newest = {(row.host, row.name): row for row in sorted(gw.index.workers(), key=lambda row: row.seen_at)}
    for row in newest.values():  # one that was killed and started again has two rows, and a series comes once
        if not row.device or gw.index.now() - row.seen_at > 6 * BEAT_SECONDS:
            continue
        for kind, value in (("used", row.memory_used), ("total", row.memory_total)):
            if value is not None:
                memory.add_metric([row.host, row.name, kind], value)
        if row.busy is not None:
            busy.add_metric([row.host, row.name], row.busy / 100)
    yield from (memory, busy)


def _keys(gw: Gateway) -> Iterator[Metric]:
    until = gw.keys.backed_up_until()
    yield _single("palimpsest_key_backup_timestamp_seconds", "Of the last proven key backup; 0: none.", until or 0.0)
    quarantined = sum(1 for _ in gw.settings.quarantine_dir.glob("*.dcm"))
    yield _single("palimpsest_quarantined_objects", "Candidates kept because their proof failed.", quarantined)


def _destinations(gw: Gateway) -> Iterator[Metric]:
    opened = GaugeMetricFamily("palimpsest_circuit_open", "1: the destination is left alone.", labels=["destination"])
    failures = GaugeMetricFamily(
        "palimpsest_circuit_failures", "Failures in a row to reach the destination.", labels=["destination"]
    )
    for each in gw.settings.destinations:
        state = read_circuit(gw.settings.run_dir, each.name)
        opened.add_metric([each.name], int(state.is_open))
        failures.add_metric([each.name], state.failures)
    yield from (opened, failures)


def _care(gw: Gateway) -> Iterator[Metric]:
    found = gw.index.care_report()
    yield _single("palimpsest_scrub_damaged_objects", "Archived objects found damaged and not mended.", found.damaged)
    times = {"sample": found.sample_at or 0.0, "whole": found.whole_at or 0.0}
    yield _family("palimpsest_scrub_timestamp_seconds", "When a scrub ended last; 0: never.", "kind", times)
    yield _single("palimpsest_recode_waiting", "Objects archived in a hurry that are recoded later.", found.to_recode)


def _audit(gw: Gateway) -> Iterator[Metric]:
    found = audit_standing(gw)
    lag = found.export_lag_seconds or 0.0
    yield _single("palimpsest_audit_export_lag_seconds", "Age of the oldest audit event not exported; 0: none.", lag)
    yield _single(
        "palimpsest_audit_export_waiting", "Audit events that wait for their export.", found.export_lag_events
    )
    if found.head_age_seconds is not None:
        age = found.head_age_seconds
        yield _single("palimpsest_audit_head_age_seconds", "Of the last signed head of the audit chain.", age)


def _single(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _nested(name: str, text: str, label: str, values: Mapping[str, Mapping[str, int]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label, "state"])
    for outer, states in values.items():
        for state, count in states.items():
            family.add_metric([outer, state], count)
    return family


def _family(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([str(value)], count)
    return family
