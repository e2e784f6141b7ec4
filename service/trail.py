"""The service's own lines in the audit trail: reads, refused logins, replays.

A study is named by its keyed pseudonym, so that "who looked at this study?" can be answered by whoever holds the key
ring, and the trail itself tells nobody whose study it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Final

from gateway import metrics
from gateway.audit import AuditEvent, AuditOutcome
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.pseudonym import pseudonym_uid

__all__ = ["log_used", "record", "refused"]

_PSEUDONYM: Final = re.compile(r"[PS][0-9A-HJKMNP-TV-Z]{15}")  # `pseudonym_patient`

log = logging.getLogger(__name__)


def record(
    gateway: Gateway,
    event: str,
    *,
    actor: str,
    outcome: AuditOutcome = "success",
    instance_id: int | None = None,
    study_uid: str | None = None,
    patient: str | None = None,
    **detail: str | int | None,
) -> None:
    """Append one event in its own transaction. patient: keyed pseudonym. Raises what the index raises: an action that
    cannot be audited does not happen.
    """
    study = pseudonym_uid(study_uid, gateway.keys.pseudonym_key()) if study_uid else None
    given = {name: value for name, value in detail.items() if value is not None}
    gateway.index.audit(AuditEvent(event, actor, outcome, instance_id, study, given, patient))


def log_used(gateway: Gateway, actor: str, kind: str, patients: Iterable[str] = (), form: str | None = None) -> None:
    """Who uses the log is in the log (PS3.15 A.5.3.2): an event for each patient that was looked for, or one.

    Only what can be a pseudonym is written down: somebody may have typed a name.
    """
    named = [each if _PSEUDONYM.fullmatch(each) else None for each in patients]
    for patient in dict.fromkeys(named) or (None,):
        record(gateway, "audit-used", actor=actor, patient=patient, kind=kind, form=form)


def refused(gateway: Gateway, error: PalimpsestError, *, actor: str, source: str) -> None:
    """The event of an object refused before `accept_instance` saw it (which writes its own). The sender hears of it
    anyway.
    """
    metrics.REFUSED.labels(source=source, reason=error.reason).inc()
    try:
        record(gateway, "refused", actor=actor, outcome="refused", reason=error.reason, source=source)
    except PalimpsestError as second:
        log.error("a refusal could not be audited", extra={"reason": second.reason})
