"""Start, stop and changed settings of a process, as audit events (PS3.15 A.5.3.1, A.5.3.11)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Final

from gateway.audit import AuditEvent, Detail
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError
from gateway.policy_file import policy_path
from gateway.settings import Settings

__all__ = ["announced"]

log = logging.getLogger(__name__)

NAMED: Final = 12  # changed settings that one event names


@contextmanager
def announced(settings: Settings, process: str) -> Iterator[None]:
    """The trail says that `process` runs, under which settings, and that it ended; after a kill it does not say so.

    Nothing is open while the block runs, so that it may fork. Raises what `build` raises: nothing starts unaudited.
    """
    gw = build(settings)
    try:
        _settings_event(gw, process)
        gw.index.audit(AuditEvent("started", process))
    finally:
        gw.close()
    try:
        yield
    finally:
        try:
            gw.index.audit(AuditEvent("stopped", process))
        except PalimpsestError as error:
            log.error("a stop could not be audited", extra={"reason": error.reason, "kind": process})
        finally:
            gw.close()


def _settings_event(gw: Gateway, process: str) -> None:
    """An event if settings are others than when this process ran last: their names, never a value."""
    state = f"configuration/{process}"[:64]
    before = gw.index.audit_state(state)
    now = _digests(gw.settings)
    if before == now:
        return
    changed = sorted(name for name in {*now, *(before or {})} if (before or {}).get(name) != now.get(name))
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    names = " ".join(changed[:NAMED]) + more if before is not None else "first start"
    whole = sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()
    detail: Detail = {"kind": names, "count": len(changed), "sha256": whole}
    gw.index.audit(AuditEvent("configured", process, detail=detail))
    gw.index.audit_state_set(state, now)


def _digests(settings: Settings) -> dict[str, str]:
    """Setting -> short digest of its value; secrets are left out, for a digest is something to guess them by."""
    shown = {name for name, field in Settings.model_fields.items() if field.repr}
    values = settings.model_dump(mode="json", include=shown)
    found = {
        name: sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16] for name, value in values.items()
    }
    try:
        policy = policy_path(settings.policy_file, settings.home).read_bytes()
    except OSError:
        policy = b""
    return {**found, "policy": sha256(policy).hexdigest()[:16]}
