"""Taking an object in: the one use case behind C-STORE and STOW-RS.

When `accept_instance` returns, the bytes are fsynced under their digest and the row, the audit event and the wake-up
messages are committed. Only then may a sender hear Success. With the queue down, the sweep sends the messages later.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import metrics, steps
from gateway.audit import AuditEvent
from gateway.blobs import storage_errors, sync_folder
from gateway.errors import NotFound, PalimpsestError, UIDMismatch, Unavailable
from gateway.hotcache import cache_of
from gateway.index_intake import BEING_SHREDDED, NOT_SPOOLED
from gateway.index_rows import Accepted, NewInstance
from gateway.instance import State
from gateway.jobs import flush_outbox
from gateway.part10 import Peek, peek, pixel_digest
from gateway.receipts import Receipt
from gateway.spool import StoredFile

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

log = logging.getLogger(__name__)

LOWEST_PRIORITY = 9


def accept_instance(
    gw: Gateway,
    temporary: Path,
    *,
    source: str,
    calling_ae: str,
    priority: int = 5,
    expected_sop_class: str | None = None,
    expected_sop_instance: str | None = None,
    expected_study: str | None = None,
    stored: StoredFile | None = None,
    wake: bool = True,
) -> Accepted:
    """Take over a received Part 10 file in `incoming/`; it is moved or removed in every case.

    source: 'dimse' or 'stow'; calling_ae: AE title or token subject; priority: 0 (STAT) to 9. The expected UIDs are
    those of the command set or the URL. stored: what is known of the file if it was measured, and fsynced, while it
    arrived. wake=False: the caller calls `wake_up` when it has answered its sender. Raises NotDicom, BadUID,
    InvalidInstance, UIDMismatch, OutOfResources, Unavailable; the refusal is audited and nothing is kept.
    """
    began = steps.now()
    try:
        with storage_errors():  # an I/O error anywhere is ours and passing, never the sender's
            found = peek(temporary)
            _compare(found.sop_class_uid, expected_sop_class, "sop-class")
            _compare(found.sop_instance_uid, expected_sop_instance, "sop-instance")
            _compare(found.study_uid, expected_study, "study")
            gw.spool.check_space()
            stored = stored or gw.spool.measure(temporary, found.dataset_offset)
            new = _new(stored, found, source, calling_ae, max(0, min(priority, LOWEST_PRIORITY)))
            row = gw.receipts.submit(Receipt(temporary, new))
            accepted = Accepted(row, "new") if row is not None else _store_again(gw, new)
    except PalimpsestError as error:
        _refused(gw, error, source, calling_ae)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    known = bool(gw.settings.calling_ae_allow) and gw.settings.allows_calling_ae(calling_ae)
    steps.accepted(accepted.row, began, outcome=accepted.outcome, known_title=known)
    if wake and accepted.outcome != "duplicate":
        wake_up(gw, accepted.row.id)
    return accepted


def adopt_orphan(gw: Gateway, digest: str) -> Accepted | None:
    """Give a spooled file that has no row its row: a process died, or the database failed, between the two.

    None if there is nothing to do (any more), or not before a shredding is done. Files that cannot be understood any
    more raise InvalidInstance and stay.
    """
    if gw.index.by_digest(digest) is not None or not gw.spool.exists(digest):
        return None
    path = gw.spool.path(digest)
    found = peek(path)
    stored = gw.spool.measure(path, found.dataset_offset)
    with storage_errors():
        sync_folder(path.parent)  # its receipt may have failed just there
    try:
        accepted = _store_again(gw, _new(stored, found, "sweep", "sweep", 5))
    except Unavailable as error:
        if error.reason not in (BEING_SHREDDED, NOT_SPOOLED):
            raise
        return None
    wake_up(gw, accepted.row.id)
    return accepted


def wake_up(gw: Gateway, *instance_ids: int) -> None:
    """Hand these instances' outbox messages to the queue, best effort: the sweep sends what stays behind."""
    try:
        flush_outbox(gw.index, gw.queue, instances=instance_ids, encode_queue=gw.settings.encode_queue)
    except PalimpsestError as error:
        metrics.WAKE_UPS_FAILED.labels(reason=error.reason).inc()
        log.warning("the queue could not be reached, the sweep will send", extra={"reason": error.reason})


def _new(stored: StoredFile, found: Peek, source: str, calling_ae: str, priority: int) -> NewInstance:
    return NewInstance(
        sop_uid=found.sop_instance_uid,
        sop_class=found.sop_class_uid,
        study_uid=found.study_uid,
        series_uid=found.series_uid,
        transfer_syntax=found.transfer_syntax,
        digest=stored.digest,
        dataset_digest=stored.dataset_digest,
        size=stored.size,
        source=source,
        calling_ae=calling_ae,
        priority=priority,
    )


def _store_again(gw: Gateway, new: NewInstance) -> Accepted:
    """Row for a spooled file whose UID may be known: a duplicate, a version, a conflict, or new after all."""
    before = gw.index.find_duplicate(new.sop_uid, new.transfer_syntax, new.dataset_digest)
    try:
        accepted = gw.index.add_received(
            replace(new, pixel_digest=_pixels_if_known_uid(gw, new)),
            spooled=gw.spool.exists,
            destroyed=gw.keys.patients.destroyed,
        )
    except Unavailable as error:
        if error.reason == BEING_SHREDDED and before is not None and before.patient_key is not None:
            gw.index.shred_unfinished(before.patient_key)
        raise
    row = accepted.row
    if before is not None and before.id == row.id and before.digest != row.digest:  # this file took a lost one's place
        cache_of(gw.settings).drop_instances([before.digest])
    # A duplicate with another file meta lies under a digest that no row names, and a released one needs no spool.
    if row.digest != new.digest or row.state is State.RELEASED:
        gw.index.let_go(new.digest, gw.spool.remove)
    return accepted


def _pixels_if_known_uid(gw: Gateway, new: NewInstance) -> str | None:
    """Pixel digest, only if this UID is served already: the common case must not pay for a walk through the file.

    The served row's own digest is filled in from the spool if its index task has not come to it yet. One that a
    rejection note hides counts: the same image sent again into its right study is no conflict.
    """
    served = next((row for row in gw.index.versions(new.sop_uid) if row.current), None)
    if served is None or served.dataset_digest == new.dataset_digest:
        return None
    if served.pixel_digest is None and gw.spool.exists(served.digest):
        earlier = pixel_digest(gw.spool.path(served.digest))
        if earlier is not None:
            gw.index.set_pixel_digest(served.id, earlier)
    return pixel_digest(gw.spool.path(new.digest))


def _compare(found: str | None, expected: str | None, what: str) -> None:
    if expected is not None and found != expected:
        raise UIDMismatch(f"{what}-mismatch", f"the {what} UID announced is not the one in the data set")


def _refused(gw: Gateway, error: PalimpsestError, source: str, calling_ae: str) -> None:
    metrics.REFUSED.labels(source=source, reason=error.reason).inc()
    try:
        gw.index.audit(AuditEvent("refused", calling_ae, "refused", detail={"reason": error.reason, "source": source}))
    except (Unavailable, NotFound) as second:  # the sender hears of a failure in any case
        log.error("a refusal could not be audited", extra={"reason": second.reason})
