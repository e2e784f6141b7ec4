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
import sys
import threading
import time
from io import BytesIO
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from gateway.tls import FreshContext
from service.listener_stream import MESSAGE_CAP_BYTES, AssociationStream, Door, WakingQueue

__all__ = ["BoundedProvider", "SpoolingServer", "tls_reason"]

#: How long one open association lets the other processes of a shared port go first, and how many count.
YIELD_SECONDS, MOST_YIELDED = 0.003, 10
#: C-CANCELs kept for requests that nobody has asked about yet.
CANCELS_KEPT = 10
#: How long an association's thread without work sleeps before it looks at its timers.
IDLE_SECONDS = 0.05

log = logging.getLogger(__name__)


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
    """Association server whose associations receive through `AssociationStream`.

    door: what its connections share with those of the process's other ports. listening: a bound socket that several
    processes share; default: one of its own.
    """

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        *args: Any,
        door: Door,
        tls: FreshContext | None = None,
        listening: socket.socket | None = None,
        **kwargs: Any,
    ) -> None:
        self.door = door
        self.tls = tls
        self._listening = listening
        super().__init__(*args, **kwargs | {"request_handler": _SpoolingRequest})

    def server_bind(self) -> None:
        """See AssociationServer; a shared socket is bound already."""
        if self._listening is None:
            super().server_bind()
            return
        assert self.socket is not None
        self.socket.close()
        self.socket = self._listening
        self.socket.setblocking(False)  # another process may be first
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """See TCPServer."""
        if self._listening is None:
            super().server_activate()

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection. Of several processes a busy one lets the others go first."""
        if self._listening is not None:
            time.sleep(min(MOST_YIELDED, self.door.connections.associated) * YIELD_SECONDS)
        connection, address = super().get_request()
        connection.setblocking(True)
        return connection, address

    def service_actions(self) -> None:
        """Nothing: pynetdicom collects garbage here, which stops every association for a tenth of a second."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False, and the connection is closed before anything of it was read, if it may not stay."""
        reason = self.door.connections.admit(client_address)
        if reason:
            self.door.refusals.refuse(reason, str(client_address[0]))
        return not reason

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No association came of a connection."""
        self.door.connections.gone(client_address)
        error = sys.exception()
        if isinstance(error, ssl.SSLError):
            self.door.refusals.refuse(tls_reason(error), str(client_address[0]))
        else:
            log.warning("a connection ended at once", extra={"reason": type(error).__name__})

    def shutdown(self) -> None:
        """Stop accepting and close the listening socket; running associations go on."""
        socketserver.BaseServer.shutdown(self)  # pynetdicom's own also looks for the server in a list that it is not in
        if self._listening is None:
            self.server_close()
        else:  # shutting it down would end it for the other processes, too
            self._listening.close()


def tls_reason(error: ssl.SSLError) -> str:
    """A machine word for a handshake that failed: OpenSSL's own, in our spelling."""
    word = (error.reason or type(error).__name__).lower().replace("_", "-")
    return f"tls-{word}"[:64]


class _SpoolingRequest(RequestHandler):
    """Sets up one association: TLS, TCP_NODELAY, timeouts, bounded receive, and the clean-up at its thread's end."""

    server: SpoolingServer

    def setup(self) -> None:
        """The TLS handshake, in this connection's own thread: a slow peer holds up nobody else."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it Nagle costs 40 ms an object
        if self.server.tls is not None:
            self.request.settimeout(self.server.door.artim_seconds)
            self.request = self.server.tls.get().wrap_socket(self.request, server_side=True)

    def _create_association(self) -> Any:
        request: socket.socket = self.request
        assoc: Any = super()._create_association()
        door = self.server.door
        _set_idle_timeout(request, door.idle_seconds)
        stream = AssociationStream(assoc, door)
        checkpoint = _Checkpoint()
        assoc._reactor_checkpoint = checkpoint
        assoc.dimse = BoundedProvider(assoc)
        assoc.dimse.msg_queue = WakingQueue(checkpoint.work.set)
        dul = assoc.dul
        dul.to_user_queue = WakingQueue(checkpoint.work.set)
        dul.to_provider_queue = WakingQueue(stream.wake)
        dul._is_transport_event = stream.turn
        dul._run_loop_delay = 0  # `turn` waits
        dul.socket.recv = stream.recv
        # Neither thread may keep a stopped process alive.
        assoc.daemon = dul.daemon = True
        read, serve, peer = dul.run, assoc.run, self.client_address

        def run_dul() -> None:
            try:
                read()
            finally:
                dul.to_user_queue.put(None)  # or a connection that ended without a request would be waited for

        def run() -> None:
            try:
                serve()
            finally:
                dul.join(timeout=5)
                stream.close()
                door.connections.gone(peer)

        dul.run, assoc.run = run_dul, run
        assoc.discard_leftovers = stream.close
        assoc.peer = peer
        return assoc
