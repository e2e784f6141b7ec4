"""What the listener does with an association and a C-STORE: choose syntaxes, hand the file on, answer with a status.

Nothing here parses a data set.  `gateway.accept.accept_instance` is the one use case, shared with STOW-RS; this module
turns its errors into DIMSE statuses (PS3.4 B.2.3, PS3.7 C) with an Error Comment that names the reason and holds no
patient data.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, PalimpsestError
from gateway.uids import SOPClassUID, SOPInstanceUID, parse_sop_class, parse_sop_instance
from service.listener_receive import BoundedFile
from service.listener_syntax import sort_syntaxes
from service.trail import record, refused

__all__ = ["on_echo", "on_rejected", "on_requested", "on_store", "store_status"]

SUCCESS = 0x0000
UNEXPECTED = 0xC001  # PS3.4 B.2.3: Cxxx, cannot understand; ours: the log knows more
#: DIMSE priority (PS3.7 9.1.1.1: 0 medium, 1 high, 2 low) to the queue's (0 most urgent, 9 least).
QUEUE_PRIORITY = {1: 0, 0: 5, 2: 9}
MAX_COMMENT = 64  # (0000,0902) is LO

log = logging.getLogger(__name__)


def on_echo(event: Any) -> int:
    """C-ECHO (PS3.7 9.1.5): we are here."""
    return SUCCESS


def on_requested(event: Any) -> None:
    """Put every proposed context's transfer syntaxes in our order before they are negotiated.

    A context without any syntax is dropped: it violates PS3.8 9.3.2.2 and would break the negotiation of its
    neighbours.
    """
    request = event.assoc.requestor.primitive
    contexts = [cx for cx in request.presentation_context_definition_list if cx.transfer_syntax]
    for context in contexts:
        context.transfer_syntax = sort_syntaxes(context.transfer_syntax)
    request.presentation_context_definition_list = contexts


def on_rejected(event: Any, gateway: Gateway) -> None:
    """An association was refused: unknown calling AE title, or too many at once."""
    calling = str(event.assoc.requestor.ae_title)
    reason = "too-many-associations" if gateway.settings.allows_calling_ae(calling) else "calling-ae-unknown"
    log.warning("association rejected", extra={"reason": reason})
    record(gateway, "refused", actor=calling or "unknown", outcome="refused", reason=reason, source="dimse")


def on_store(event: Any, gateway: Gateway) -> Dataset:
    """C-STORE: Success means bytes and row are durable and the receipt is in the audit trail; nothing less."""
    try:
        _accept(event, gateway)
    except PalimpsestError as error:
        log.warning("instance refused", extra={"reason": error.reason, "source": "dimse"})
        return store_status(error.dimse_status, error.reason)
    except Exception as error:  # noqa: BLE001  the DIMSE edge: one bad object must not end the association
        log.error("unexpected error in C-STORE", extra={"reason": type(error).__name__})
        return store_status(UNEXPECTED, "internal-error")
    return store_status(SUCCESS)


def _accept(event: Any, gateway: Gateway) -> None:
    calling = str(event.assoc.requestor.ae_title)
    try:
        path, sop_class, sop_instance = _request_of(event)
    except PalimpsestError as error:
        refused(gateway, error, actor=calling, source="dimse")
        raise
    priority = QUEUE_PRIORITY.get(event.request.Priority, QUEUE_PRIORITY[0])
    accept_instance(
        gateway,
        path,
        source="dimse",
        calling_ae=calling,
        priority=priority,
        expected_sop_class=sop_class,
        expected_sop_instance=sop_instance,
    )


def _request_of(event: Any) -> tuple[Path, SOPClassUID, SOPInstanceUID]:
    """The received file and the identifiers of the command set, checked."""
    request = event.request
    file = request._dataset_file
    if not isinstance(file, BoundedFile):
        raise InvalidInstance("no-data-set", "The request carries no data set.")
    if file.refused is not None:
        raise file.refused
    sop_class = parse_sop_class(str(request.AffectedSOPClassUID))
    return Path(file.name), sop_class, parse_sop_instance(str(request.AffectedSOPInstanceUID))


def store_status(status: int, reason: str = "") -> Dataset:
    """A status with its Error Comment (PS3.7 C)."""
    answer = Dataset()
    answer.Status = status
    if reason:
        answer.ErrorComment = reason[:MAX_COMMENT]
    return answer
