"""`palimpsest status`: counts from the index, and whether each part answers."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.settings import Settings
from palimpsest.addresses import reachable


def collect(gateway: Gateway) -> dict[str, Any]:
    """Everything that is shown, as JSON-able values."""
    counts = gateway.index.counts()
    return {
        "home": str(gateway.settings.home),
        "profile": gateway.settings.profile,
        "parts": _parts(gateway),
        "counts": {"total": counts.total, **dataclasses.asdict(counts)},
        "care": dataclasses.asdict(gateway.index.care_report()),
        "failures": [dataclasses.asdict(group) for group in gateway.index.failures()],
        "alerts": [dataclasses.asdict(alert) for alert in gateway.index.alerts()],
        "queues": _depths(gateway),
        "key_backup_current": gateway.keys.backup_current(),
        "key_backup_until": gateway.keys.backed_up_until(),
        "free_bytes": shutil.disk_usage(gateway.settings.home).free,
    }


def _parts(gateway: Gateway) -> dict[str, str]:
    settings = gateway.settings
    checks: dict[str, Callable[[], object]] = {
        "database": gateway.index.ping,
        "broker": gateway.queue.ping,
        "spool": gateway.spool.check_space,
        "listener": lambda: [_connect(settings.dicom_host, port) for port in settings.open_dicom_ports],
        "api": lambda: _connect(settings.http_host, settings.http_port),
    }
    return {name: _state(check) for name, check in checks.items()}


def _depths(gateway: Gateway) -> dict[str, int]:
    """Messages waiting, by queue; empty while the broker is away."""
    try:
        return dict(gateway.queue.depths())
    except PalimpsestError:
        return {}


def _state(check: Callable[[], object]) -> str:
    try:
        check()
    except PalimpsestError as error:
        return error.reason
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return "ok"


def _connect(host: str, port: int) -> None:
    with socket.create_connection((reachable(host), port), timeout=2):
        return


def print_status(gateway: Gateway, console: Console, *, as_json: bool) -> None:
    """For people, or as JSON on standard output."""
    facts = collect(gateway)
    if as_json:
        print(json.dumps(facts, indent=1, default=str))
        return
    counts = facts["counts"]
    lines = [
        ("home", f"{facts['home']} ({facts['profile']}), {facts['free_bytes'] / 1e9:.1f} GB free"),
        ("parts", _pairs(facts["parts"])),
        ("instances", f"{counts['total']}: {_pairs(counts['by_state'])}"),
        ("waiting", _pairs(facts["queues"])),
        ("form", _pairs(counts["by_form"])),
        ("passthrough", _pairs(counts["passthrough_by_reason"])),
        ("bytes", _bytes(counts)),
        *((f"to {name}", _pairs(states)) for name, states in counts["forwards"].items()),
        ("oldest open", _age(counts["oldest_unfinished_at"])),
        ("archive", _care(facts["care"])),
        ("key backup", _backup(gateway.settings, facts["key_backup_until"])),
    ]
    for name, text in lines:
        console.print(f"{name:<12} {text or '-'}", highlight=False, soft_wrap=True, markup=False)
    _print_rows(console, "failures", facts["failures"], ("kind", "reason", "destination", "count"))
    _print_rows(console, "open alerts", facts["alerts"], ("severity", "kind", "message", "count"))


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _bytes(counts: Mapping[str, Any]) -> str:
    before, after = counts["bytes_in"], counts["bytes_archived"]
    return f"{before:,} in, {after:,} archived, ratio {before / after:.2f}" if after else ""


def _care(report: Mapping[str, Any]) -> str:
    at = report["sample_at"]
    scrubbed = f"{report['sampled']} objects scrubbed {datetime.fromtimestamp(at, UTC):%Y-%m-%d}" if at else ""
    counts = {name.replace("_", " "): report[name] for name in ("damaged", "to_recode", "superseded") if report[name]}
    return ", ".join(part for part in (_pairs(counts), scrubbed) if part)


def _age(since: float | None) -> str:
    return "" if since is None else f"{max(0, int(time.time() - since))} s"


def _backup(settings: Settings, until: float | None) -> str:
    if until is not None:
        return f"current; patients taken in until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC"
    needed = (
        "the spool is not released until there is one" if settings.require_key_backup else "make one before it matters"
    )
    return f"none, or older than the newest key: {needed} (palimpsest keys backup)"


def _print_rows(console: Console, title: str, rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    if not rows:
        return
    table = Table(*names, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(row[name] if row[name] is not None else "") for name in names))
    console.print(table)
