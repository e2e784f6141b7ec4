"""One picture of the whole gateway, for `GET /api/status` and the admin page. No patient data, no UID."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from gateway.audit_standing import audit_standing
from gateway.bootstrap import Gateway
from gateway.circuit import read_circuit
from gateway.destination import Destination
from gateway.errors import PalimpsestError
from gateway.index_rows import Counts
from gateway.instance import ForwardState, State
from service.health import readiness

__all__ = ["destinations", "overview", "queue_depths"]

DEAD_LETTERS_SHOWN = 50


def overview(gateway: Gateway) -> dict[str, Any]:
    """Counts, dependencies, queues, disk, failures, destinations, dead letters and alerts, JSON-able."""
    counts = gateway.index.counts()
    ready, dependencies = readiness(gateway)
    return {
        "ready": ready,
        "dependencies": dependencies,
        "total": counts.total,
        "states": [(state.value, counts.by_state.get(state.value, 0)) for state in State],
        "forms": sorted(counts.by_form.items()),
        "passthrough": dict(counts.passthrough_by_reason),
        "modalities": {name: dict(values) for name, values in counts.by_modality.items()},
        "received_bytes": counts.bytes_in,
        "archived_bytes": counts.bytes_archived,
        "raw_pixel_bytes": counts.raw_pixel_bytes,
        "codec_bytes": counts.codec_bytes,
        "payload_bytes": counts.payload_bytes,
        "ratio": f"{counts.bytes_in / counts.bytes_archived:.2f}" if counts.bytes_archived else "–",
        "conflicts": counts.conflicts,
        "outbox": counts.outbox,
        "oldest_unfinished_at": counts.oldest_unfinished_at,
        "queues": queue_depths(gateway),
        "disk": _disk(gateway),
        "audit": asdict(audit_standing(gateway)),
        "failures": [asdict(group) for group in gateway.index.failures()],
        "destinations": _destinations(gateway, counts),
        "dead": [
            {name: value for name, value in asdict(row).items() if name != "sent_uid"}  # may be an original's
            for row in gateway.index.forwards(state=ForwardState.DEAD, limit=DEAD_LETTERS_SHOWN)
        ],
        "alerts": [asdict(alert) for alert in gateway.index.alerts(open_only=True)],
    }


def queue_depths(gateway: Gateway) -> dict[str, int]:
    """Messages waiting, by queue; empty while the broker is away."""
    try:
        return dict(gateway.queue.depths())
    except PalimpsestError:
        return {}


def _disk(gateway: Gateway) -> dict[str, int]:
    usage = shutil.disk_usage(gateway.settings.spool_dir)
    return {"total": usage.total, "free": usage.free, "watermark": gateway.settings.watermark_bytes}


def _destinations(gateway: Gateway, counts: Counts) -> list[dict[str, Any]]:
    """Configured destinations, and those that only old rows still name."""
    configured = {destination.name: destination for destination in gateway.settings.destinations}
    rows = []
    for name in sorted(configured.keys() | counts.forwards.keys()):
        by_state = counts.forwards.get(name, {})
        destination = configured.get(name)
        numbers = {state.value.lower(): by_state.get(state.value, 0) for state in ForwardState}
        rows.append(
            {
                "name": name,
                "kind": destination.kind if destination else None,
                "where": destination.where if destination else "not configured any more",
                **numbers,
                "circuit": _circuit(gateway, name),
                "probe": _probe(gateway, destination) if destination else None,
            }
        )
    return rows


def _circuit(gateway: Gateway, name: str) -> dict[str, Any]:
    """Whether the destination is being left alone, since how many failures and why, and until when."""
    state = read_circuit(gateway.settings.run_dir, name)
    return {
        "open": state.is_open,
        "failures": state.failures,
        "reason": state.reason or None,
        "until": state.open_until if state.is_open else None,
    }


def _probe(gateway: Gateway, destination: Destination) -> dict[str, Any] | None:
    """When it was probed last and with what result; `current` is false once its address is another."""
    result = gateway.index.probe_of(destination.name)
    if result is None:
        return None
    return {
        "at": result.at,
        "when": datetime.fromtimestamp(result.at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "current": result.place == destination.place,
        "counts": result.counts(),
        "summary": ", ".join(f"{number} {word}" for word, number in result.counts().items()),
        "ways": dict(result.ways),
    }


def destinations(gateway: Gateway) -> list[dict[str, Any]]:
    """The same rows, each with the findings of its probe."""
    rows = _destinations(gateway, gateway.index.counts())
    for row in rows:
        result = gateway.index.probe_of(row["name"])
        if row["probe"] is not None and result is not None:
            row["probe"]["findings"] = [asdict(each) for each in result.findings]
    return rows
