"""What needs a person, worst first, from one picture of the gateway: the first thing that the admin page says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.index_worker import DOORS
from gateway.settings import Settings
from service.words import count, long

__all__ = ["Trouble", "judge"]

Level = Literal["bad", "warn"]
#: Seconds that the oldest instance may wait.
LATE, VERY_LATE = 600.0, 3600.0
SOON, LATER = 24 * 3600.0, 7 * 24 * 3600.0
FAILURES: Final = "/admin/failures"
DESTINATIONS: Final = "/admin/destinations"
SYSTEM: Final = "/admin/system"


@dataclass(frozen=True, slots=True)
class Trouble:
    """level: 'bad' wants somebody now, 'warn' today; text: a sentence; link: where it is shown in full."""

    level: Level
    text: str
    link: str


def judge(view: Mapping[str, Any], settings: Settings, now: float) -> list[Trouble]:
    """All troubles of a picture, bad ones first; empty: all is well."""
    found = [
        *_dependencies(view),
        *_disks(view),
        *_work(view, now),
        *_failures(view),
        *_destinations(view),
        *_archive(view),
        *_keys(view),
        *_audit(view),
    ]
    return sorted(found, key=lambda each: each.level != "bad")


def _dependencies(view: Mapping[str, Any]) -> Iterator[Trouble]:
    for name, state in view["dependencies"].items():
        if not state["ok"]:
            level: Level = "bad" if state["required"] else "warn"
            yield Trouble(level, f"{name}: {state['reason']}.", f"{SYSTEM}#dependencies")


def _disks(view: Mapping[str, Any]) -> Iterator[Trouble]:
    if view["disk"]["free"] < view["disk"]["watermark"]:
        yield Trouble("bad", "The disk is below its watermark: nothing more is taken in.", f"{SYSTEM}#disks")
        return
    for disk in view["disks"]:
        if disk.full_in is not None and disk.full_in < LATER:
            level: Level = "bad" if disk.full_in < SOON else "warn"
            yield Trouble(level, f"At this rate the {disk.place} is full in {long(disk.full_in)}.", f"{SYSTEM}#disks")


def _work(view: Mapping[str, Any], now: float) -> Iterator[Trouble]:
    oldest = view["oldest_unfinished_at"]
    if oldest is not None and now - oldest > LATE:
        level: Level = "bad" if now - oldest > VERY_LATE else "warn"
        yield Trouble(level, f"The oldest instance has waited for {long(now - oldest)}.", "/admin#backlog")
    alive = {each.row.name for each in view["workers"] if each.state != "silent"}
    if view["backlog"] and not alive - DOORS - {"sweep"}:
        yield Trouble("bad", "Instances wait and no worker is alive.", f"{SYSTEM}#workers")
    silent: dict[str, list[Any]] = {}
    for each in view["workers"]:
        if each.state == "silent":
            silent.setdefault(each.row.host, []).append(each.row)
    for host, rows in silent.items():
        names = ", ".join(sorted({row.name for row in rows}))
        seconds = long(now - min(row.seen_at for row in rows))
        yield Trouble("warn", f"Not heard of on {host} for {seconds}: {names}.", f"{SYSTEM}#workers")


def _failures(view: Mapping[str, Any]) -> Iterator[Trouble]:
    critical = sum(1 for each in view["alerts"] if each["severity"] == "critical")
    if view["alerts"]:
        level: Level = "bad" if critical else "warn"
        yield Trouble(level, f"{count(len(view['alerts']), 'open alert')}, {critical} critical.", f"{FAILURES}#alerts")
    dead = sum(each["count"] for each in view["failures"] if each["kind"] == "dead-letter")
    if dead:
        yield Trouble("bad", f"{count(dead, 'dead letter')} for a person to replay.", f"{FAILURES}#dead")
    failing = sum(each["count"] for each in view["failures"] if each["kind"] == "instance")
    if failing:
        yield Trouble("warn", f"{count(failing, 'instance')} failed and will be tried again.", f"{FAILURES}#failures")
    if view["conflicts"]:
        text = f"{count(view['conflicts'], 'version')} of one UID with different pixels."
        yield Trouble("warn", text, f"{FAILURES}#conflicts")


def _destinations(view: Mapping[str, Any]) -> Iterator[Trouble]:
    for each in view["destinations"]:
        if each["circuit"]["open"]:
            text = f"{each['name']} is left alone: {each['circuit']['reason'] or 'it failed again and again'}."
            yield Trouble("bad", text, f"{DESTINATIONS}#destinations")
        elif each["probe"] is not None and not each["probe"]["current"]:
            text = f"{each['name']} was probed at another address."
            yield Trouble("warn", text, f"{DESTINATIONS}#destinations")


def _archive(view: Mapping[str, Any]) -> Iterator[Trouble]:
    if view["care"].damaged:
        text = f"{count(view['care'].damaged, 'archive object')} damaged and not mended."
        yield Trouble("bad", text, f"{SYSTEM}#care")


def _keys(view: Mapping[str, Any]) -> Iterator[Trouble]:
    backup = view["backup"]
    if backup["until"] is None:
        level: Level = "bad" if backup["required"] else "warn"
        yield Trouble(level, "No proven backup holds every key of the ring.", f"{SYSTEM}#keys")
    elif backup["old"]:
        yield Trouble("warn", "The last key backup is more than a month old.", f"{SYSTEM}#keys")
    for each in view["keys"]:
        if each.due:
            yield Trouble("warn", f"{each.id} has been in use for {each.days} days: rotate it.", f"{SYSTEM}#keys")


def _audit(view: Mapping[str, Any]) -> Iterator[Trouble]:
    lag = view["standing"].export_lag_seconds
    if lag is not None and lag > LATE:
        yield Trouble("warn", f"Audit events have waited for the syslog server for {long(lag)}.", "/admin/audit")
