"""Storage commitment at the listener, Push Model (PS3.4 J, PS3.7 10.1.1 and 10.1.4): N-ACTION of requesters, and
N-EVENT-REPORT of destinations that we asked.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom import build_role

from gateway.bootstrap import Gateway
from gateway.commitment import PUSH_MODEL, REQUEST, WELL_KNOWN, Asked, BadCommitment, read_answer, read_asked
from gateway.errors import NotFound, OutOfResources, PalimpsestError, PolicyRefused, Unavailable
from service.listener_commitment_tell import Teller, install_telling
from service.trail import record

__all__ = ["on_commitment_action", "on_commitment_report", "on_requested_commitment"]

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_EVENT: Final = 0x0113
NO_SUCH_ACTION: Final = 0x0123
DUPLICATE_TRANSACTION: Final = 0x0131
RESOURCE_LIMITATION: Final = 0x0213
EVENTS: Final = (1, 2)
#: Open transactions of one requester; beyond them it is told to come later.
MOST_OPEN: Final = 500
_MAX_COMMENT: Final = 64  # (0000,0902) is LO

log = logging.getLogger(__name__)


class DuplicateTransaction(PalimpsestError):
    """The Transaction UID is in use for other references (the number is that of Failure Reason, PS3.3 C.14.1.1)."""

    http_status = 409
    dimse_status = DUPLICATE_TRANSACTION
    title = "Duplicate transaction UID"


class NoSuchAction(PalimpsestError):
    """Not Request Storage Commitment (PS3.4 J.3.2)."""

    http_status = 400
    dimse_status = NO_SUCH_ACTION
    title = "No such action"


class NoSuchEvent(PalimpsestError):
    """Neither of the two events (PS3.4 J.3.3)."""

    http_status = 400
    dimse_status = NO_SUCH_EVENT
    title = "No such event"


def on_requested_commitment(event: Any) -> None:
    """A new association: agree to every role proposed for commitment (PS3.7 D.3.3.4), and let answers be told on it.

    pynetdicom drops role answers of all but storage classes where it accepts every storage class.
    """
    if event.assoc.is_rejected:
        return
    role = event.assoc.requestor.role_selection.get(PUSH_MODEL)
    if role is not None:
        event.assoc.acceptor.add_negotiation_item(
            build_role(PUSH_MODEL, scu_role=bool(role.scu_role), scp_role=bool(role.scp_role))
        )
    install_telling(event.assoc)


def on_commitment_action(event: Any, gateway: Gateway, teller: Teller) -> tuple[Dataset, None]:
    """N-ACTION: Success means that the transaction is durable and will be answered, after a restart, too."""
    calling = str(event.assoc.requestor.ae_title).strip()
    return _answered(gateway, "n-action", calling, lambda: _ask(event, gateway, teller, calling))


def _ask(event: Any, gateway: Gateway, teller: Teller, calling: str) -> None:
    if gateway.settings.commitment_requester(calling) is None:
        raise PolicyRefused("commitment-requester-unknown", "no dicom destination has this AE title")
    _check_instance(event.request.RequestedSOPInstanceUID)
    if event.action_type != REQUEST:
        raise NoSuchAction("no-such-action", "Action Type ID is 1.")
    asked: Asked = _read(lambda: read_asked(event.action_information, gateway.settings.commitment_max_references))
    outcome = gateway.index.commitment_asked(
        calling, asked.uid, asked.references, teller.owner, teller.lease_seconds, most_open=MOST_OPEN
    )
    if outcome == "duplicate":
        raise DuplicateTransaction("duplicate-transaction-uid", "in use for other references")
    row = gateway.index.commitment_of(calling, asked.uid)
    if row is not None:
        teller.heard(row.id, event.assoc, int(event.context.context_id))


def on_commitment_report(event: Any, gateway: Gateway) -> tuple[Dataset, None]:
    """N-EVENT-REPORT: a destination answers. Success means that the answer is written down; doing it twice is safe."""
    calling = str(event.assoc.requestor.ae_title).strip()
    return _answered(gateway, "n-event-report", calling, lambda: _hear(event, gateway, calling))


def _hear(event: Any, gateway: Gateway, calling: str) -> None:
    peers = gateway.settings.commitment_providers(calling)
    if not peers:
        raise PolicyRefused("commitment-provider-unknown", "no destination with commitment has this AE title")
    _check_instance(event.request.AffectedSOPInstanceUID)
    if event.event_type not in EVENTS:
        raise NoSuchEvent("no-such-event", "Event Type ID is 1 or 2.")
    answer = _read(lambda: read_answer(event.event_information))
    most = gateway.settings.commitment_max_askings
    if not gateway.index.commitment_answered(peers, answer.uid, answer.kept, answer.failed, most=most):
        raise BadCommitment("unknown-transaction", "This was not asked of this AE title.")


def _check_instance(uid: Any) -> None:
    if str(uid) != WELL_KNOWN:
        raise NotFound("not-the-well-known-instance", f"The SOP Instance UID is {WELL_KNOWN}.")


def _read(read: Any) -> Any:
    """What a data set says; pydicom parses it only now. Raises BadCommitment, OutOfResources."""
    try:
        return read()
    except PalimpsestError:
        raise
    except Exception as error:  # noqa: BLE001  the DIMSE edge: a hostile data set may break any layer below
        log.warning("a commitment message cannot be read", extra={"reason": type(error).__name__})
        raise BadCommitment("unreadable-data-set", "The data set cannot be read.") from None


def _answered(gateway: Gateway, source: str, calling: str, work: Any) -> tuple[Dataset, None]:
    """Do it, and turn errors into statuses (PS3.7 10.1.1.1.8, 10.1.4.1.10) that name the reason."""
    status = Dataset()
    try:
        work()
        status.Status = SUCCESS
    except PalimpsestError as error:
        passing = isinstance(error, (OutOfResources, Unavailable))
        status.Status = RESOURCE_LIMITATION if passing else error.dimse_status
        status.ErrorComment = f"{error.reason}: {error.message}"[:_MAX_COMMENT]
        log.warning("storage commitment refused", extra={"reason": error.reason, "source": source})
        _record_refusal(gateway, calling, error, source)
    except Exception as error:  # noqa: BLE001  the DIMSE edge: one bad request must not end the association
        status.Status = PROCESSING_FAILURE
        log.error("unexpected error in storage commitment", extra={"reason": type(error).__name__})
    return status, None


def _record_refusal(gateway: Gateway, calling: str, error: PalimpsestError, source: str) -> None:
    try:
        record(gateway, "refused", actor=calling or "unknown", outcome="refused", reason=error.reason, source=source)
    except PalimpsestError as second:
        log.error("a refusal could not be audited", extra={"reason": second.reason})
