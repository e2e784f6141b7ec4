"""One query or retrieve on one association: its answers, its cancellation, and its end.

pynetdicom's own Query/Retrieve service class decodes and encodes what it sends, answers some errors with statuses of
its own and gathers unsent data without bound, so C-FIND, C-MOVE and C-GET are served here, over its DIMSE and upper
layer providers (PS3.7 9.1.2 to 9.1.4, 9.3). One operation at a time: the window is negotiated as 1/1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.dsutils import encode

from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError, PolicyRefused
from service.listener_identifier import MODELS, Identifier, Operation, read_identifier
from service.trail import record

__all__ = ["AssociationLost", "Exchange", "Handler", "Progress", "alive", "install", "wait_room"]

SUCCESS: Final = 0x0000
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
UNABLE_TO_PROCESS: Final = 0xC001
OUT_OF_RESOURCES: Final = 0xA700
CANNOT_COUNT: Final = 0xA701  # of C-MOVE and C-GET: out of resources, before any sub-operation
CANCELLED: Final = 0xFE00
PENDING: Final = 0xFF00
PENDING_PARTIAL: Final = 0xFF01
_OPERATIONS: Final[dict[type[Any], Operation]] = {C_FIND: "find", C_MOVE: "move", C_GET: "get"}
_MAX_COMMENT: Final = 64  # (0000,0902) is LO
_MAX_SHORT_VALUE: Final = 65_534  # bytes, in explicit VR (PS3.5 7.1.2); UI is one of those
QUEUED_PDUS: Final = 8
#: A peer waits for its DIMSE timeout only as long as it hears nothing; 30 s is the shortest that is common.
HEARTBEAT_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


class AssociationLost(Exception):
    """The peer, or we, ended the association in the middle: nobody is left to answer."""


@dataclass(slots=True)
class Progress:
    """Counts of C-STORE sub-operations (PS3.4 C.4.2.1.5 to C.4.2.1.9) and the instances that failed."""

    remaining: int
    completed: int = 0
    warned: int = 0
    failed: int = 0
    failed_uids: list[str] = field(default_factory=list)

    def fail(self, sop_uid: str) -> None:
        """One sub-operation failed."""
        self.remaining -= 1
        self.failed += 1
        self.failed_uids.append(sop_uid)


def alive(association: Any) -> bool:
    """True while both sides hold the association."""
    return bool(
        association.is_established
        and not association._kill
        and association.dul.is_alive()
        and not association.acse.is_aborted()
    )


def wait_room(association: Any, most: int = QUEUED_PDUS) -> None:
    """Wait until at most so many PDUs wait to be sent: memory stays bounded, and the peer sets the pace.

    Raises AssociationLost.
    """
    while association.dul.to_provider_queue.qsize() > most:
        if not alive(association):
            raise AssociationLost
        time.sleep(0.001)


class Exchange:
    """A request being served. `calling`: the peer's AE title."""

    def __init__(self, gateway: Gateway, association: Any, request: Any, context: Any) -> None:
        self.gateway = gateway
        self.association = association
        self.request = request
        self.context_id = int(context.context_id)
        self.syntax = context.transfer_syntax[0]
        self.abstract_syntax = str(context.abstract_syntax)
        self.calling = str(association.requestor.ae_title).strip()
        self._heard = time.monotonic()

    @property
    def root(self) -> Any:
        """'patient' or 'study'."""
        return MODELS[self.abstract_syntax][0]

    def option(self, place: int) -> bool:
        """Whether an option of extended negotiation was agreed (PS3.4 C.5.1.1, C.5.2.1). place: byte, from 0."""
        agreed = self.association.acceptor.sop_class_extended.get(self.abstract_syntax, b"")
        return len(agreed) > place and agreed[place] == 1

    def identifier(self) -> Identifier:
        """What is asked for. Raises BadIdentifier."""
        return read_identifier(self.request.Identifier, self.syntax)

    @property
    def cancelled(self) -> bool:
        """Whether a C-CANCEL named this request (PS3.7 9.3.2.3)."""
        return self.request.MessageID in self.association.dimse.cancel_req

    def check(self) -> None:
        """Raise AssociationLost once there is nobody to answer."""
        if not alive(self.association):
            raise AssociationLost

    def respond(
        self, status: int, identifier: bytes = b"", *, comment: str = "", counts: Mapping[str, int] | None = None
    ) -> None:
        """Send one response (PS3.7 9.3.2.2, 9.3.3.2, 9.3.4.2). Raises AssociationLost."""
        self.check()
        answer: Any = type(self.request)()
        answer.MessageIDBeingRespondedTo = self.request.MessageID
        answer.AffectedSOPClassUID = self.request.AffectedSOPClassUID
        answer.Status = status
        if comment:
            answer.ErrorComment = comment[:_MAX_COMMENT]
        for keyword, value in (counts or {}).items():
            setattr(answer, keyword, value)
        if identifier:
            answer.Identifier = BytesIO(identifier)
        self.association.dimse.send_msg(answer, self.context_id)
        self._heard = time.monotonic()
        wait_room(self.association)

    def progress(self, status: int, progress: Progress, *, comment: str = "") -> None:
        """A response of C-MOVE or C-GET with its counts; a final one names the instances that failed."""
        final = status != PENDING
        counts = {
            "NumberOfCompletedSuboperations": progress.completed,
            "NumberOfFailedSuboperations": progress.failed,
            "NumberOfWarningSuboperations": progress.warned,
        }
        if not final or status == CANCELLED:  # PS3.4 C.4.2.1.6: may be in Pending and Canceled, in no other
            counts["NumberOfRemainingSuboperations"] = progress.remaining
        identifier = b"" if not final or status == SUCCESS else self._failed(progress.failed_uids)
        self.respond(status, identifier, comment=comment, counts=counts)

    def heartbeat(self, progress: Progress) -> None:
        """A Pending response if the peer has heard nothing for a while. Raises AssociationLost."""
        self.check()
        if time.monotonic() - self._heard > HEARTBEAT_SECONDS:
            self.progress(PENDING, progress)

    def _failed(self, uids: list[str]) -> bytes:
        dataset = Dataset()
        room = _MAX_SHORT_VALUE
        kept = []
        for uid in uids:  # what a value of this VR cannot hold is left out; the count says how many there are
            room -= len(uid) + 1
            if room < 0:
                break
            kept.append(uid)
        dataset.FailedSOPInstanceUIDList = kept or None
        return self.encoded(dataset)

    def encoded(self, dataset: Dataset) -> bytes:
        """A data set in the syntax of the context. Raises ValueError if pydicom cannot write it."""
        data = encode(dataset, self.syntax.is_implicit_VR, self.syntax.is_little_endian, self.syntax.is_deflated)
        if data is None:
            raise ValueError("a response cannot be encoded")
        return data


Handler = Callable[[Exchange], None]


def install(association: Any, gateway: Gateway, handlers: Mapping[Operation, Handler]) -> None:
    """Have this association serve C-FIND, C-MOVE and C-GET by these handlers; all else stays pynetdicom's."""
    association._serve_request = partial(_serve, gateway, association, handlers, association._serve_request)


def _serve(
    gateway: Gateway,
    association: Any,
    handlers: Mapping[Operation, Handler],
    others: Callable[[Any, int], None],
    message: Any,
    context_id: int,
) -> None:
    operation = _OPERATIONS.get(type(message))
    if operation is None or not message.is_valid_request:
        others(message, context_id)
        return
    context = association._accepted_cx.get(context_id)
    if context is None:
        association.abort()
        return
    exchange = Exchange(gateway, association, message, context)
    association._is_paused = True  # the reactor is here, and reads no message meanwhile
    try:
        _answer(exchange, operation, handlers)
    except AssociationLost:
        log.info("a query or retrieve ended with its association")
    except Exception as error:  # noqa: BLE001  the DIMSE edge: an answer that cannot even be sent (a peer's absurd PDU)
        log.error("a query or retrieve could not be answered", extra={"reason": type(error).__name__})
        association.abort()
    finally:
        association._is_paused = False
        association.dimse.cancel_req.pop(message.MessageID, None)
        association.dul._idle_timer.restart()  # it counts from the last byte received, which may be long ago


def _answer(exchange: Exchange, operation: Operation, handlers: Mapping[Operation, Handler]) -> None:
    named = str(exchange.request.AffectedSOPClassUID)
    model = MODELS.get(named)
    if model is None or model[1] != operation or named != exchange.abstract_syntax:
        exchange.respond(SOP_CLASS_NOT_SUPPORTED, comment="sop-class-not-supported")
        return
    try:
        if not exchange.gateway.settings.allows_query_ae(exchange.calling):
            raise PolicyRefused("query-not-allowed", "This AE title may not query and retrieve.")
        handlers[operation](exchange)
    except PalimpsestError as error:
        _refuse(exchange, operation, error)
    except AssociationLost:
        raise
    except Exception as error:  # noqa: BLE001  the DIMSE edge: one bad request must not end the association
        log.error("unexpected error in a query or retrieve", extra={"reason": type(error).__name__})
        exchange.respond(UNABLE_TO_PROCESS, comment="internal-error")


def _refuse(exchange: Exchange, operation: Operation, error: PalimpsestError) -> None:
    log.warning("query or retrieve refused", extra={"reason": error.reason, "source": f"c-{operation}"})
    try:
        record(
            exchange.gateway, "refused", actor=exchange.calling or "unknown", outcome="refused", reason=error.reason,
            source=f"c-{operation}",
        )  # fmt: skip
    except PalimpsestError as second:
        log.error("a refusal could not be audited", extra={"reason": second.reason})
    passing = operation != "find" and error.dimse_status == OUT_OF_RESOURCES
    exchange.respond(CANNOT_COUNT if passing else error.dimse_status, comment=f"{error.reason}: {error.message}")
