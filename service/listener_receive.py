"""The association server: how each association is set up so that it receives by `AssociationStream`, bounded.

pynetdicom's own parts stay: association control, negotiation, and every service but C-STORE. What is put in their place
for each association: the reading side (listener_stream), a provider that bounds what other messages gather in memory,
and events where pynetdicom polls every millisecond.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from gateway.spool import Spool
from service.listener_stream import MESSAGE_CAP_BYTES, AssociationStream, Refuse, Store, WakingQueue

__all__ = ["MIB", "PDU_CAP_BYTES", "BoundedProvider", "ReceiveLimits", "SpoolingServer"]

MIB = 1 << 20
#: Longest PDU read, whatever we announced: some senders ignore the maximum, and an A-ASSOCIATE-RQ is not bound by it
#: (PS3.8 D.1).
PDU_CAP_BYTES = 64 * MIB
#: C-CANCELs kept for requests that nobody has asked about yet.
CANCELS_KEPT = 10
#: How long an association's thread without work sleeps before it looks at its timers.
IDLE_SECONDS = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceiveLimits:
    """Bounds of one association: seconds without a byte, and bytes of one PDU."""

    idle_seconds: float
    pdu_bytes: int = PDU_CAP_BYTES


class BoundedProvider(DIMSEServiceProvider):
    """The DIMSE provider of one association, for all messages but C-STORE requests: bounds what arrives."""

    def receive_primitive(self, primitive: Any) -> None:
        """Take one P-DATA primitive (PS3.8 9.3.5); a message that cannot be understood ends the association (Evt19)."""
        try:
            self._receive(primitive)
        except Exception as error:  # noqa: BLE001  the DIMSE edge: what a peer sends may break any layer below
            log.warning("invalid DIMSE message", extra={"reason": type(error).__name__})
            self.message = None
            self.dul.event_queue.put("Evt19")

    def _receive(self, primitive: Any) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
        message = self.message
        complete = message.decode_msg(primitive, self.assoc)
        for gathered in (message.encoded_command_set, message.data_set):
            if isinstance(gathered, BytesIO) and gathered.tell() > MESSAGE_CAP_BYTES:
                raise ValueError("a message that is no C-STORE is larger than any needs to be")
        if complete:
            self.message = None
            self._deliver(message)

    def _deliver(self, message: DIMSEMessage) -> None:
        primitive: Any = message.message_to_primitive()
        if isinstance(primitive, C_CANCEL):
            self.cancel_req[int(primitive.MessageIDBeingRespondedTo or 0)] = primitive
            while len(self.cancel_req) > CANCELS_KEPT:
                del self.cancel_req[next(iter(self.cancel_req))]
            return
        if type(message).__name__.endswith("_RQ"):
            if not primitive.is_valid_request:
                # pynetdicom would ignore it and let the peer wait for its timeout (PS3.7: these are mandatory).
                raise ValueError("a request without a mandatory element")
            self.cancel_req.pop(primitive.MessageID, None)  # of an earlier request that had the same id
        self.msg_queue.put((message.context_id, primitive))  # type: ignore[arg-type]


class _Checkpoint(threading.Event):
    """The event at which pynetdicom's association thread pauses in every round: here it also waits for work."""

    def __init__(self) -> None:
        super().__init__()
        self.work = threading.Event()
        self.set()

    def set(self) -> None:
        """Let the association's thread go on, and look around at once."""
        super().set()
        self.work.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Return when there is work, or a timer may have run out, and nobody holds the thread back."""
        super().wait(timeout)
        while True:
            self.work.wait(IDLE_SECONDS)
            self.work.clear()
            if super().wait(timeout):
                return True


def _set_idle_timeout(connection: socket.socket, seconds: float) -> None:
    """Have the kernel count, where Python would ask it to poll before every read; TLS needs Python's way."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(seconds)
        return
    connection.settimeout(None)
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, interval)


class SpoolingServer(ThreadedAssociationServer):
    """Association server whose associations receive through `AssociationStream`."""

    request_queue_size = 64
    daemon_threads = True

    def __init__(
        self, *args: Any, limits: ReceiveLimits, spool: Spool, store: Store, refuse: Refuse, **kwargs: Any
    ) -> None:
        self.limits = limits
        self.make_stream: Callable[[Any], AssociationStream] = lambda assoc: AssociationStream(
            assoc, spool, store, refuse, limits.pdu_bytes
        )
        super().__init__(*args, **kwargs | {"request_handler": _SpoolingRequest})

    def shutdown(self) -> None:
        """Stop accepting and close the listening socket; running associations go on."""
        socketserver.BaseServer.shutdown(self)  # pynetdicom's own also looks for the server in a list that it is not in
        self.server_close()


class _SpoolingRequest(RequestHandler):
    """Sets up one association: TCP_NODELAY, idle timeout, bounded receive, and the clean-up at its thread's end."""

    def _create_association(self) -> Any:
        request: socket.socket = self.request
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it Nagle costs 40 ms an object
        assoc: Any = super()._create_association()
        server: SpoolingServer = self.server  # type: ignore[assignment]
        _set_idle_timeout(request, server.limits.idle_seconds)
        stream = server.make_stream(assoc)
        checkpoint = _Checkpoint()
        assoc._reactor_checkpoint = checkpoint
        assoc.dimse = BoundedProvider(assoc)
        assoc.dimse.msg_queue = WakingQueue(checkpoint.work.set)
        dul = assoc.dul
        dul.to_user_queue = WakingQueue(checkpoint.work.set)
        dul.to_provider_queue = WakingQueue(stream.wake)
        dul._is_transport_event = stream.turn
        dul._run_loop_delay = 0  # `turn` waits
        assert dul.socket is not None
        dul.socket.recv = stream.recv
        # Neither thread may keep a stopped process alive.
        assoc.daemon = dul.daemon = True
        serve = assoc.run

        def run() -> None:
            try:
                serve()
            finally:
                dul.join(timeout=5)
                stream.close()

        assoc.run = run
        assoc.discard_leftovers = stream.close
        return assoc
