"""What an association sends, read on its DUL thread: C-STOREs go straight to the spool, all else goes to pynetdicom.

pynetdicom takes a C-STORE through four object layers and two threads that poll every millisecond; on two cores that
ends at some 150 objects a second. Here a P-DATA-TF PDU (PS3.8 9.3.5, Annex E) is never gathered: its bytes are written
and hashed while they arrive, in pieces of one bounded buffer, and the answer is sent from the same thread. Association
control, every other service and every other state of the state machine stay pynetdicom's.

What a peer cannot do: make one object, one command set or one declared length take memory or disk beyond its bound;
keep a file after its association is gone; hold the thread longer than the idle timeout without sending a byte.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pynetdicom.pdu_primitives import P_DATA

from gateway.errors import InvalidInstance, PalimpsestError
from gateway.spool import Receiving, Spool, StoredFile
from service.listener_command import StoreCommand, file_meta, parse_store, store_response
from service.listener_limits import Connections
from service.refusals import RefusalTrail

__all__ = ["MIB", "PDU_CAP_BYTES", "REQUEST_CAP_BYTES", "AssociationStream", "Door", "Refuse", "Store", "WakingQueue"]

MIB = 1 << 20
#: Longest PDU read, whatever we announced: some senders ignore the maximum (PS3.8 D.1).
PDU_CAP_BYTES = 64 * MIB
#: Longest A-ASSOCIATE-RQ, which anybody may send: 128 contexts of 100 transfer syntaxes and as many roles fit.
REQUEST_CAP_BYTES = 2 * MIB

BUFFER_BYTES = MIB
#: Longest command set, and longest data set of a message that is no C-STORE.
MESSAGE_CAP_BYTES = MIB
#: How long a thread with nothing to do sleeps before it looks at its timers.
IDLE_POLL_MS = 50
CLOSED_PAUSE_SECONDS = 0.002
STEP_BYTES = 64 << 10
P_DATA_TF, A_ABORT = 0x04, 0x07
PDU_HEADER, PDV_HEADER = 6, 6  # bytes: type, reserved, length; length, context, control
HEADERS_BYTES = PDU_HEADER + PDV_HEADER
ESTABLISHED = "Sta6"  # PS3.8 9.2: association established and ready for data transfer
BEFORE_REQUEST = ("Sta1", "Sta2")  # ARTIM runs until the whole A-ASSOCIATE-RQ is there, however slowly it drips

#: (calling AE title, command, received file) -> (status, error comment)
Store = Callable[[str, StoreCommand, StoredFile], tuple[int, str]]
Refuse = Callable[[str, PalimpsestError], tuple[int, str]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """What all associations of one process share."""

    spool: Spool
    store: Store
    refuse: Refuse
    connections: Connections
    refusals: RefusalTrail
    idle_seconds: float
    artim_seconds: float = 30.0


class ProtocolError(Exception):
    """The peer sent what PS3.8 or PS3.7 do not allow; the association is aborted."""


class WakingQueue(queue.Queue[Any]):
    """A queue that tells somebody of every item."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """See queue.Queue."""
        super().put(item, block, timeout)
        self._wake()


class AssociationStream:
    """The reading side of one association. `turn` is called by the DUL thread only; `close` once, when it has ended."""

    def __init__(self, assoc: Any, door: Door) -> None:
        self._assoc = assoc
        self._dul = assoc.dul
        self._spool = door.spool
        self._store = door.store
        self._refuse = door.refuse
        self._asked_until = time.monotonic() + door.artim_seconds
        self._elsewhere: Callable[[], bool] = self._dul._is_transport_event
        self._wake_lock = threading.Lock()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake_fd, select.POLLIN)
        self._polled = -1
        # Fill a buffer in one call; TLS has no such flag.
        self._flags = 0 if isinstance(self._socket(), ssl.SSLSocket) else socket.MSG_WAITALL
        self._pushed = b""
        self._buffer = memoryview(b"")  # made when the association is established
        self._context = self._control = 0
        self._command = bytearray()
        self._request: StoreCommand | None = None
        self._receiving: Receiving | None = None
        self._refused: PalimpsestError | None = None
        self._passing = False  # a data set that pynetdicom gathers

    def wake(self) -> None:
        """Let `turn` return, from any thread."""
        with self._wake_lock:  # or the number may be another file's by the time it is written to
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Drop what is half received."""
        if self._receiving is not None:
            self._receiving.discard()
            self._receiving = None
        self._buffer = memoryview(b"")  # not only when the collector comes to this association
        with self._wake_lock:
            fd, self._wake_fd = self._wake_fd, -1
            if fd >= 0:
                os.close(fd)

    def recv(self, count: int) -> bytearray:
        """Exactly `count` bytes for pynetdicom, fewer at the connection's end; memory only for what has arrived.

        Raises OSError: timeout, broken connection, or a length that no peer may declare.
        """
        unknown = self._dul.state_machine.current_state in BEFORE_REQUEST
        if count > (REQUEST_CAP_BYTES if unknown else PDU_CAP_BYTES):
            raise OSError("a PDU declares more bytes than any peer may send")
        found = bytearray(self._pushed[:count])
        self._pushed = self._pushed[count:]
        while len(found) < count:
            more = self._socket().recv(min(count - len(found), STEP_BYTES))
            if not more:
                break
            found += more
            if unknown and time.monotonic() > self._asked_until:
                raise OSError("the association request takes too long")
        return found

    def turn(self) -> bool:
        """Wait a moment for bytes or `wake`, and take one PDU; True if there was one (see DUL._is_transport_event)."""
        wrapper = self._dul.socket
        if wrapper is None or wrapper.socket is None:
            time.sleep(CLOSED_PAUSE_SECONDS)
            return self._elsewhere()
        if not self._readable(wrapper.socket):
            return self._elsewhere() if self._dul.state_machine.current_state == "Sta13" else False
        if self._dul.state_machine.current_state != ESTABLISHED:
            return self._elsewhere()
        try:
            self._take_pdu()
            while self._request is not None and not self._dul._kill_thread:  # the rest of the message is on its way
                self._take_pdu()
        except (OSError, ValueError):  # ValueError: the socket was closed under our hands
            self._dul.event_queue.put("Evt17")  # transport connection closed
        except ProtocolError as error:
            log.warning("invalid DIMSE message", extra={"reason": str(error)})
            self._drop()
            self._dul.event_queue.put("Evt19")  # invalid PDU: the state machine aborts
        return True

    def _socket(self) -> socket.socket:
        found = self._dul.socket.socket
        if found is None:
            raise OSError("the connection is closed")
        return found  # type: ignore[no-any-return]

    def _readable(self, connection: socket.socket) -> bool:
        pending = getattr(connection, "pending", None)  # bytes that TLS has decrypted already
        if self._pushed or (pending is not None and pending()):
            return True
        fd = connection.fileno()
        if fd != self._polled:
            if fd < 0:
                return True  # closed by another thread: reading will say so
            self._poll.register(fd, select.POLLIN)
            self._polled = fd
        ready = [found for found, _ in self._poll.poll(IDLE_POLL_MS)]
        if self._wake_fd in ready:
            os.eventfd_read(self._wake_fd)
        return fd in ready

    def _take_pdu(self) -> None:
        got = self._pushed + self._some(HEADERS_BYTES - len(self._pushed))
        self._pushed = b""
        while len(got) < PDU_HEADER or (got[0] == P_DATA_TF and len(got) < HEADERS_BYTES):
            more = self._some(HEADERS_BYTES - len(got))
            if not more:
                raise OSError("the connection ended")
            got += more
        if got[0] != P_DATA_TF:
            if self._request is not None and got[0] != A_ABORT:
                raise ProtocolError("pdu-inside-a-data-set")
            self._pushed = got
            self._dul._read_pdu_data()
            self._request = None if got[0] == A_ABORT else self._request
            return
        (left,) = struct.unpack_from(">L", got, 2)
        if left > PDU_CAP_BYTES:
            raise OSError("a PDU declares more bytes than any peer may send")
        if left < PDV_HEADER:
            raise ProtocolError("pdu-without-a-value")
        head = got[PDU_HEADER:]
        while left:
            if not head:
                head = bytes(self.recv(PDV_HEADER))
                if len(head) < PDV_HEADER:
                    raise OSError("the connection ended inside a PDU")
            length, context, control = struct.unpack(">LBB", head)
            if not 2 <= length <= left - 4:
                raise ProtocolError("pdv-longer-than-its-pdu")
            if self._request is not None and context != self._context:  # the file says the syntax of the command's
                raise ProtocolError("data-set-in-another-context")
            self._context, self._control = context, control
            left -= length + 4
            head = b""
            self._take_value(length - 2)

    def _take_value(self, left: int) -> None:
        """The bytes of one presentation data value, in pieces; an empty one is a piece, too."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(BUFFER_BYTES))
        last = bool(self._control & 2)
        receiving = self._receiving if not self._control & 1 else None
        while True:
            if receiving is None:
                piece = self._buffer[: min(left, len(self._buffer))]
                self._fill(piece)
                self._fragment(piece, last=last and left == len(piece))
            else:
                piece = receiving.room(left)
                self._fill(piece)
                receiving.took(len(piece))
            left -= len(piece)
            if not left:
                break
        if receiving is not None and last:
            self._stored(receiving)

    def _some(self, count: int) -> bytes:
        return self._socket().recv(count) if count else b""

    def _fill(self, room: memoryview) -> None:
        """Read until it is full. Raises OSError: timeout, or the connection ended."""
        connection, at = self._socket(), 0
        while at < len(room):
            got = connection.recv_into(room[at:], 0, self._flags)
            if got == 0:
                raise OSError("the connection ended inside a PDU")
            at += got
            self._dul._idle_timer.restart()  # pynetdicom's turn ends with the object, which may take longer than that

    def _fragment(self, piece: memoryview, *, last: bool) -> None:
        if self._control & 1:
            self._command_fragment(piece, last=last)
        elif self._request is not None:  # refused before there was a file: its bytes are read and dropped
            if last:
                self._answer_refusal()
        elif self._passing:
            self._passing = not last
            self._pass_on(2 if last else 0, bytes(piece))
        else:
            raise ProtocolError("data-set-without-command")

    def _command_fragment(self, piece: memoryview, *, last: bool) -> None:
        if self._request is not None or self._passing:
            raise ProtocolError("command-inside-a-data-set")
        self._command += piece
        if len(self._command) > MESSAGE_CAP_BYTES:
            raise ProtocolError("command-too-large")
        if not last:
            return
        command, self._command = bytes(self._command), bytearray()
        try:
            request = parse_store(command)
        except ValueError:
            raise ProtocolError("command-unreadable") from None
        if request is None:
            self._pass_on(3, command)
            message = self._assoc.dimse.message
            self._passing = message is not None  # pynetdicom waits for its data set
            return
        self._begin(request)

    def _begin(self, request: StoreCommand) -> None:
        context = self._assoc._accepted_cx.get(self._context)
        if context is None:
            raise ProtocolError("context-not-accepted")
        self._request = request
        if not request.has_data_set:
            self._refused = InvalidInstance("no-data-set", "The request carries no data set.")
            self._answer_refusal()
            return
        try:
            head = file_meta(request.sop_class, request.sop_instance, str(context.transfer_syntax[0]))
            self._receiving = self._spool.receive(head, self._buffer)
        except PalimpsestError as error:
            self._refused = error

    def _stored(self, receiving: Receiving) -> None:
        request = self._request
        assert request is not None
        try:
            file = receiving.finish()
        except PalimpsestError as error:
            receiving.discard()
            self._receiving, self._refused = None, error
            self._answer_refusal()
            return
        status, reason = self._store(self._calling(), request, file)
        self._request = self._receiving = None  # the file is the index's now, or gone
        self._answer(request, status, reason)

    def _answer_refusal(self) -> None:
        request, error = self._request, self._refused
        assert request is not None and error is not None
        self._request = self._refused = None
        self._answer(request, *self._refuse(self._calling(), error))

    def _answer(self, request: StoreCommand, status: int, reason: str) -> None:
        """Send the response, in as many PDUs as the peer's maximum length asks for (PS3.8 D.1)."""
        message = store_response(request, status, reason)
        room = (self._assoc.dimse.maximum_pdu_size or len(message) + 6) - 6
        step = max(1, min(room, len(message)))
        for at in range(0, len(message), step):
            piece = message[at : at + step]
            control = 1 if at + step < len(message) else 3
            head = struct.pack(">BxLLBB", P_DATA_TF, len(piece) + 6, len(piece) + 2, self._context, control)
            self._socket().sendall(head + piece)

    def _pass_on(self, control: int, data: bytes) -> None:
        primitive = P_DATA()
        primitive.presentation_data_value_list = [[self._context, bytes((control,)) + data]]  # type: ignore[list-item]
        self._assoc.dimse.receive_primitive(primitive)

    def _calling(self) -> str:
        return str(self._assoc.requestor.ae_title)

    def _drop(self) -> None:
        if self._receiving is not None:
            self._receiving.discard()
        self._request = self._receiving = self._refused = None
        self._command, self._passing = bytearray(), False
