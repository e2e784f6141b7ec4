"""Every metric, defined once. Counters are per process; totals come from the index when scraped. No patient data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from gateway.index_rows import Counts

REGISTRY: Final = CollectorRegistry()

RECEIVED: Final = Counter("palimpsest_received", "Objects taken in.", ["source", "outcome"], registry=REGISTRY)
REFUSED: Final = Counter("palimpsest_refused", "Objects refused.", ["source", "reason"], registry=REGISTRY)
ACCEPT_SECONDS: Final = Histogram(
    "palimpsest_accept_seconds",
    "From the last byte to a committed row.",
    ["source"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15),
    registry=REGISTRY,
)
WAKE_UPS_FAILED: Final = Counter(
    "palimpsest_wake_ups_failed", "Objects taken in while the queue was down.", registry=REGISTRY
)
CACHE: Final = Counter(
    "palimpsest_cache", "Requests that the service answered from the cache by itself, or not.", ["result"],
    registry=REGISTRY,
)  # fmt: skip
RETRIEVED: Final = Counter("palimpsest_retrieved", "Objects given back.", ["kind", "outcome"], registry=REGISTRY)


class CountsCollector:
    """Gauges read from the system of record at scrape time; the same in every process."""

    def __init__(self, counts: Callable[[], Counts], depths: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts
        self._depths = depths

    def collect(self) -> Iterable[Metric]:
        """One family per question."""
        counts = self._counts()
        yield _family("palimpsest_instances", "Instances by state.", "state", counts.by_state)
        yield _family("palimpsest_forms", "Archive objects by form.", "form", counts.by_form)
        yield _family("palimpsest_passthrough", "Passthrough by reason.", "reason", counts.passthrough_by_reason)
        yield _family("palimpsest_queue_depth", "Messages waiting, by queue.", "queue", self._depths())
        yield _nested("palimpsest_forwards", "Forwards.", "destination", counts.forwards)
        yield _nested("palimpsest_commitments", "Storage commitment transactions.", "role", counts.commitments)
        for name in (
            "bytes_in",
            "bytes_archived",
            "codec_bytes",
            "payload_bytes",
            "conflicts",
            "outbox",
            "open_alerts",
        ):
            yield GaugeMetricFamily(f"palimpsest_{name}", name.replace("_", " "), value=getattr(counts, name))
        oldest = counts.oldest_unfinished_at or 0.0
        yield GaugeMetricFamily("palimpsest_oldest_unfinished_timestamp_seconds", "0: nothing waits.", value=oldest)


def exposition(counts: Callable[[], Counts], depths: Callable[[], Mapping[str, int]]) -> bytes:
    """Text exposition of this process's counters and the index's gauges."""
    registry = CollectorRegistry()
    registry.register(CountsCollector(counts, depths))
    return generate_latest(REGISTRY) + generate_latest(registry)


def _nested(name: str, text: str, label: str, values: Mapping[str, Mapping[str, int]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label, "state"])
    for outer, states in values.items():
        for state, count in states.items():
            family.add_metric([outer, state], count)
    return family


def _family(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
