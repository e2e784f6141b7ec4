"""How the audit trail stands: how long it is, what was signed of it, what still waits to be exported. Cheap to ask."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.audit_notary import newest_head
from gateway.bootstrap import Gateway
from gateway.index_audit import AuditQuery

__all__ = ["STATE", "AuditStanding", "audit_standing"]

STATE: Final = "syslog"  # name of the export's place, see Index.audit_state


@dataclass(frozen=True, slots=True)
class AuditStanding:
    """events: in the trail; signed: of them up to the newest head here, which is head_age_seconds old (None: no head).

    export_lag_seconds: age of the oldest event that waits for the syslog server, 0 without one, None: no server is
    configured; export_lag_events: how many wait; export_attempts, export_reason: in vain since the last success.
    """

    events: int
    signed: int = 0
    head_age_seconds: float | None = None
    export_lag_seconds: float | None = None
    export_lag_events: int = 0
    export_attempts: int = 0
    export_reason: str = ""


def audit_standing(gw: Gateway) -> AuditStanding:
    """Of this host's heads and the one export. Raises Unavailable."""
    now = gw.index.now()
    events, _ = gw.index.audit_last()
    try:
        head = newest_head(gw)
    except OSError:
        head = None
    age = max(0.0, now - datetime.fromisoformat(head.at).timestamp()) if head else None
    standing = {"events": events, "signed": head.seq if head else 0, "head_age_seconds": age}
    if not gw.settings.audit_syslog_host:
        return AuditStanding(**standing)  # type: ignore[arg-type]
    state = gw.index.audit_state(STATE) or {}
    sent = int(state.get("seq", 0))
    waiting = gw.index.audit_search(AuditQuery(after=sent, oldest_first=True, limit=1))
    return AuditStanding(
        **standing,  # type: ignore[arg-type]
        export_lag_seconds=max(0.0, now - waiting[0]["at_us"] / 1_000_000) if waiting else 0.0,
        export_lag_events=max(0, events - sent),
        export_attempts=int(state.get("attempts", 0)),
        export_reason=str(state.get("reason") or ""),
    )
