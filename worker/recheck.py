"""Proving archived instances anew for a restore certificate: from the archive alone, by a process of its own.

Neither spool nor cache is looked at: what is asked is whether the archive still gives back what was received.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import groupby

from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.certificate import Recheck, require_proven
from gateway.errors import Gone, IntegrityError, Unsupported
from gateway.index_certificate import Proven
from gateway.keyuse import note_use, used_keys
from worker.pipeline import decoders_of, software
from worker.verify import Verifier, VerifyReport
from worker.weightobject import needed_weights, require_archived

__all__ = ["recheck"]


def recheck(
    gw: Gateway, verifier: Verifier, found: Sequence[Proven], *, actor: str, reference: bool = False
) -> dict[int, Recheck]:
    """By row id, for all of `found`. Each archive object is read once.

    reference: by the NumPy reference decoder, too (slow). Raises Unavailable ``not-proven-yet``, Gone (shredded),
    Unsupported ``reference-of-group``, NotFound and IntegrityError as the archive does, IntegrityError
    ``recheck-failed``: then there is an alert, and the trail has it.
    """
    require_proven(found)
    if any(each.row.shredded_at is not None for each in found):
        raise Gone("identity-shredded", "the identity was destroyed on purpose: no file can be rebuilt any more")
    if reference and any(each.row.member is not None for each in found):
        raise Unsupported("reference-of-group", "the reference decoder proves objects of one instance only")
    by_key = sorted(found, key=lambda each: (str(each.row.archive_key), each.row.id))
    done: dict[int, Recheck] = {}
    for _, together in groupby(by_key, key=lambda each: each.row.archive_key):
        done |= _of_object(gw, verifier, list(together), actor, reference)
    return done


def _of_object(
    gw: Gateway, verifier: Verifier, found: Sequence[Proven], actor: str, reference: bool
) -> dict[int, Recheck]:
    row = found[0].row
    envelope = gw.archive.get(str(row.archive_key), str(row.archive_digest))
    if sha256(envelope).hexdigest() != row.archive_digest:
        raise IntegrityError("archive-read-back", "the archive gave back other bytes than it was given")
    require_archived(gw.archive, envelope)
    weights = tuple(sorted(each.sha256 for each in needed_weights(envelope)))
    reports = _reports(verifier, envelope, found, reference)
    done = {}
    for each, report in zip(found, reports, strict=True):
        _judge(gw, each, report, actor)
        decoders = tuple(decoders_of(report, each.row.form))
        done[each.row.id] = Recheck(gw.index.now(), decoders, software(), weights, report.sha256)
    return done


def _reports(verifier: Verifier, envelope: bytes, found: Sequence[Proven], reference: bool) -> list[VerifyReport]:
    members = [each.row.member for each in found]
    if members == [None]:
        report = verifier.check(envelope)
        return [verifier.check_reference(envelope) if reference and report.ok else report]
    if len(members) == 1:
        return [verifier.check(envelope, members[0])]
    reports = verifier.check_group(envelope)
    refused = VerifyReport(False, "verifier-refused")
    return [reports[at] if at is not None and at < len(reports) else refused for at in members]


def _judge(gw: Gateway, found: Proven, report: VerifyReport, actor: str) -> None:
    """Write to the trail what came of it. Raises IntegrityError ``recheck-failed``."""
    row = found.row
    restored = (row.digest, found.facts.get("restored_sha256"))
    ok = report.ok and report.recorded_sha256 == row.digest and report.sha256 in restored
    with used_keys():
        for key_id in report.keys.split():
            note_use("proof", key_id)
        outcome, reason = ("success", "same") if ok else ("failure", report.reason or "other-object")
        detail = {"reason": reason, "envelope_uid": row.envelope_uid}
        gw.index.audit(AuditEvent("rechecked", actor, outcome, row.id, detail=detail))  # type: ignore[arg-type]
    if not ok:
        message = f"an archived instance does not restore to what was received ({reason})"
        gw.index.alert_raise("recheck-failed", f"instance {row.id}", message, "critical")
        raise IntegrityError("recheck-failed", message)
