"""Taking an object in: the one use case behind C-STORE and STOW-RS.

When `accept_instance` returns, the bytes are fsynced under their digest and the row, the audit event and the wake-up
messages are committed. Only then may a sender hear Success. With the queue down, the sweep sends the messages later.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import metrics
from gateway.audit import AuditEvent
from gateway.blobs import storage_errors
from gateway.errors import NotFound, PalimpsestError, UIDMismatch, Unavailable
from gateway.index_rows import Accepted, InstanceRow, NewInstance
from gateway.instance import State
from gateway.jobs import flush_outbox
from gateway.part10 import Peek, peek, pixel_digest
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
) -> Accepted:
    """Take over a received Part 10 file in `incoming/`; it is moved or removed in every case.

    source: 'dimse' or 'stow'; calling_ae: AE title or token subject; priority: 0 (STAT) to 9. The expected UIDs are
    those of the command set or the URL. Raises NotDicom, BadUID, InvalidInstance, UIDMismatch, OutOfResources,
    Unavailable; the refusal is audited and nothing is kept.
    """
    started = time.monotonic()
    try:
        with storage_errors():  # an I/O error anywhere is ours and passing, never the sender's
            found = peek(temporary)
            _compare(found.sop_class_uid, expected_sop_class, "sop-class")
            _compare(found.sop_instance_uid, expected_sop_instance, "sop-instance")
            _compare(found.study_uid, expected_study, "study")
            gw.spool.check_space()
            accepted = _store(gw, temporary, found, source, calling_ae, max(0, min(priority, LOWEST_PRIORITY)))
    except PalimpsestError as error:
        _refused(gw, error, source, calling_ae)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    metrics.RECEIVED.labels(source=source, outcome=accepted.outcome).inc()
    metrics.ACCEPT_SECONDS.labels(source=source).observe(time.monotonic() - started)
    if accepted.outcome != "duplicate":
        wake_up(gw, accepted.row.id)
    return accepted


def adopt_orphan(gw: Gateway, digest: str) -> Accepted | None:
    """Give a spooled file that has no row its row: a process died, or the database failed, between the two.

    None if there is nothing to do. Files that cannot be understood any more raise InvalidInstance and stay.
    """
    if gw.index.by_digest(digest) is not None or not gw.spool.exists(digest):
        return None
    path = gw.spool.path(digest)
    found = peek(path)
    stored = gw.spool.measure(path, found.dataset_offset)
    accepted = gw.index.add_received(_new(gw, stored, found, path, "sweep", "sweep", 5))
    _drop_second_copy(gw, stored, accepted.row)
    wake_up(gw, accepted.row.id)
    return accepted


def wake_up(gw: Gateway, instance_id: int) -> None:
    """Hand an instance's outbox messages to the queue, best effort: the sweep sends what stays behind."""
    try:
        flush_outbox(gw.index, gw.queue, instance_id=instance_id, encode_queue=gw.settings.encode_queue)
    except PalimpsestError as error:
        metrics.WAKE_UPS_FAILED.inc()
        log.warning("the queue could not be reached, the sweep will send", extra={"reason": error.reason})


def _store(gw: Gateway, temporary: Path, found: Peek, source: str, calling_ae: str, priority: int) -> Accepted:
    stored = gw.spool.measure(temporary, found.dataset_offset)
    new = _new(gw, stored, found, temporary, source, calling_ae, priority)
    known = gw.index.find_duplicate(new.sop_uid, new.transfer_syntax, new.dataset_digest)
    if known is None or (known.digest == stored.digest and known.state is not State.RELEASED):
        gw.spool.place(temporary, stored.digest)  # for a duplicate this repairs a spool file that was lost or damaged
    accepted = gw.index.add_received(new)
    _drop_second_copy(gw, stored, accepted.row)
    return accepted


def _new(
    gw: Gateway, stored: StoredFile, found: Peek, path: Path, source: str, calling_ae: str, priority: int
) -> NewInstance:
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
        pixel_digest=_pixels_if_known_uid(gw, found, stored, path),
    )


def _pixels_if_known_uid(gw: Gateway, found: Peek, stored: StoredFile, path: Path) -> str | None:
    """Pixel digest, only if this UID is served already: the common case must not pay for a walk through the file.

    The served row's own digest is filled in from the spool if its index task has not come to it yet.
    """
    served = gw.index.by_sop(found.sop_instance_uid)
    if served is None or served.dataset_digest == stored.dataset_digest:
        return None
    if served.pixel_digest is None and gw.spool.exists(served.digest):
        earlier = pixel_digest(gw.spool.path(served.digest))
        if earlier is not None:
            gw.index.set_pixel_digest(served.id, earlier)
    return pixel_digest(path)


def _drop_second_copy(gw: Gateway, stored: StoredFile, row: InstanceRow) -> None:
    """A duplicate with another file meta lies under a digest that no row names: the row's own file is enough."""
    if row.digest != stored.digest and gw.spool.exists(stored.digest):
        gw.spool.remove(stored.digest)


def _compare(found: str | None, expected: str | None, what: str) -> None:
    if expected is not None and found != expected:
        raise UIDMismatch(f"{what}-mismatch", f"the {what} UID announced is not the one in the data set")


def _refused(gw: Gateway, error: PalimpsestError, source: str, calling_ae: str) -> None:
    metrics.REFUSED.labels(source=source, reason=error.reason).inc()
    try:
        gw.index.audit(AuditEvent("refused", calling_ae, "refused", detail={"reason": error.reason, "source": source}))
    except (Unavailable, NotFound) as second:  # the sender hears of a failure in any case
        log.error("a refusal could not be audited", extra={"reason": second.reason})
