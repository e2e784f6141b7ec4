"""What the listener does with an association and a C-STORE: choose syntaxes, hand the file on, answer with a status.

Nothing here parses a data set.  `gateway.accept.accept_instance` is the one use case, shared with STOW-RS; this module
turns its errors into DIMSE statuses (PS3.4 B.2.3, PS3.7 C) with an Error Comment that names the reason and holds no
patient data.
"""

from __future__ import annotations

import logging
import queue
import ssl
import threading
import time
from contextlib import suppress
from typing import Any

from gateway.accept import accept_instance, wake_up
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.index_rows import Accepted
from gateway.settings import Settings
from gateway.spool import StoredFile
from gateway.tls import certificate_names
from gateway.transfer_syntaxes import MADE
from gateway.uids import parse_sop_class, parse_sop_instance
from service.listener_command import StoreCommand
from service.listener_limits import Connections
from service.listener_stream import Refuse, Store
from service.listener_syntax import sort_syntaxes
from service.refusals import RefusalTrail
from service.trail import refused

__all__ = ["on_echo", "on_limits", "on_rejected", "on_requested", "refusing", "storing"]

#: result, source, diagnostic of an A-ASSOCIATE-RJ (PS3.8 9.3.4)
LOCAL_LIMIT_EXCEEDED = (0x02, 0x03, 0x02)
CALLING_AE_UNKNOWN = (0x01, 0x01, 0x03)

SUCCESS = 0x0000
UNEXPECTED = 0xC001  # PS3.4 B.2.3: Cxxx, cannot understand; ours: the log knows more
#: DIMSE priority (PS3.7 9.1.1.1: 0 medium, 1 high, 2 low) to the queue's (0 most urgent, 9 least).
QUEUE_PRIORITY = {1: 0, 0: 5, 2: 9}

#: Wake-ups are gathered for so long, at least so long after the ones before, and so many at once: a transaction and a
#: round trip to the broker for each object of a study would cost as much as receiving it.
GATHER_SECONDS = 0.03
BETWEEN_SECONDS = 0.25
WAKE_BATCH = 100

log = logging.getLogger(__name__)


def on_echo(event: Any) -> int:
    """C-ECHO (PS3.7 9.1.5): we are here."""
    return SUCCESS


def on_requested(event: Any) -> None:
    """Put every proposed context's transfer syntaxes in our order before they are negotiated; of one in which the peer
    only receives (C-GET) in its own, lossy ones last: what is not stored in one cannot be given in it.

    A context without any syntax is dropped: it violates PS3.8 9.3.2.2 and would break the negotiation of its
    neighbours.
    """
    if event.assoc.is_rejected:
        return
    request = event.assoc.requestor.primitive
    contexts = [cx for cx in request.presentation_context_definition_list if cx.transfer_syntax]
    roles = event.assoc.requestor.role_selection
    for context in contexts:
        role = roles.get(context.abstract_syntax)
        if role is not None and role.scp_role and not role.scu_role:
            context.transfer_syntax = sorted(context.transfer_syntax, key=lambda syntax: syntax not in MADE)
        else:
            context.transfer_syntax = sort_syntaxes(context.transfer_syntax)
    request.presentation_context_definition_list = contexts


def on_limits(event: Any, connections: Connections, refusals: RefusalTrail, settings: Settings) -> None:
    """An association is asked for: reject it if there are too many, or if its certificate is another's."""
    assoc = event.assoc
    calling = str(assoc.requestor.primitive.calling_ae_title)
    reason, rejection = connections.associate(assoc.peer), LOCAL_LIMIT_EXCEEDED
    connection = assoc.dul.socket.socket
    bound = settings.dicom_tls_bind_ae and isinstance(connection, ssl.SSLSocket)
    if not reason and bound and calling.strip().upper() not in certificate_names(connection.getpeercert()):
        reason, rejection = "calling-ae-not-in-certificate", CALLING_AE_UNKNOWN
    if reason:
        refusals.refuse(reason, str(assoc.peer[0]), calling)
        assoc.acse.send_reject(*rejection)
        assoc.kill()  # once the peer has it, or ARTIM ran out


def on_rejected(event: Any, refusals: RefusalTrail) -> None:
    """pynetdicom rejected an association: its calling AE title is not in our list."""
    refusals.refuse("calling-ae-unknown", str(event.assoc.peer[0]), str(event.assoc.requestor.ae_title))


class Waker:
    """Sends wake-ups after the answers, many at once: a slow queue makes no sender wait. The sweep sends the rest."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="waker", daemon=True).start()

    def wake(self, instance_id: int) -> None:
        """Soon send the messages of this instance."""
        self._waiting.put(instance_id)

    def _run(self) -> None:
        again_at = 0.0
        while True:
            batch = [self._waiting.get()]
            time.sleep(max(GATHER_SECONDS, again_at - time.monotonic()))
            with suppress(queue.Empty):
                while len(batch) < WAKE_BATCH:
                    batch.append(self._waiting.get_nowait())
            try:
                wake_up(self._gateway, *batch)
            except Exception as error:  # noqa: BLE001  the only thread that sends them: it outlives one bad batch
                log.error("wake-ups were not sent, the sweep will", extra={"reason": type(error).__name__})
            again_at = time.monotonic() + (BETWEEN_SECONDS if len(batch) < WAKE_BATCH else 0.0)


def storing(gateway: Gateway) -> Store:
    """What the stream calls for a received C-STORE: Success means that bytes and row are durable and the receipt is in
    the audit trail; nothing less.
    """

    waker = Waker(gateway)

    def store(calling: str, request: StoreCommand, file: StoredFile) -> tuple[int, str]:
        try:
            accepted = _accept(gateway, calling, request, file)
        except PalimpsestError as error:
            log.warning("instance refused", extra={"reason": error.reason, "source": "dimse"})
            return error.dimse_status, error.reason
        except Exception as error:  # noqa: BLE001  the DIMSE edge: one bad object must not end the association
            log.error("unexpected error in C-STORE", extra={"reason": type(error).__name__})
            return UNEXPECTED, "internal-error"
        if accepted.outcome != "duplicate":
            waker.wake(accepted.row.id)
        return SUCCESS, ""

    return store


def refusing(gateway: Gateway) -> Refuse:
    """What the stream calls for a C-STORE that was refused while it arrived: audited, answered by status."""

    def refuse(calling: str, error: PalimpsestError) -> tuple[int, str]:
        log.warning("instance refused", extra={"reason": error.reason, "source": "dimse"})
        refused(gateway, error, actor=calling, source="dimse")
        return error.dimse_status, error.reason

    return refuse


def _accept(gateway: Gateway, calling: str, request: StoreCommand, file: StoredFile) -> Accepted:
    try:
        sop_class = parse_sop_class(request.sop_class)
        sop_instance = parse_sop_instance(request.sop_instance)
    except PalimpsestError as error:
        file.path.unlink(missing_ok=True)
        refused(gateway, error, actor=calling, source="dimse")
        raise
    return accept_instance(
        gateway,
        file.path,
        source="dimse",
        calling_ae=calling,
        priority=QUEUE_PRIORITY.get(request.priority, QUEUE_PRIORITY[0]),
        expected_sop_class=sop_class,
        expected_sop_instance=sop_instance,
        stored=file,
        wake=False,
    )
