"""Receiving C-STORE data sets straight into the spool's file system, bounded in size, memory and time.

pynetdicom's chunked receive (`STORE_RECV_CHUNKED_DATASET`) writes a data set to a temporary file while it arrives.
Three things are missing there, and this module adds them per association:

- a bound on one object's size and on free space *while* receiving: what is above it is read and dropped, so that the
sender gets
  a status that names the reason instead of a cut connection, and no disk fills up;
- a bound on one PDU's declared length (a peer may claim 4 GiB), memory only for what has really arrived of it, and an
idle timeout
  inside a PDU;
- a bound on what pynetdicom gathers in memory: command sets, and data sets of messages that are no C-STORE;
- nothing left behind: every temporary file that no handler took over is removed when its association's thread ends.

Threads: the DUL thread receives, the association's thread runs the handlers.  A `BoundedFile` is written by the first
and read by the second only after its message was queued.
"""

from __future__ import annotations

import logging
import socket
import socketserver
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import C_CANCEL, C_STORE
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from gateway.errors import OutOfResources, PalimpsestError

__all__ = ["BoundedFile", "ReceiveLimits", "SpoolingProvider", "SpoolingServer"]

MIB = 1 << 20
#: Bytes between two looks at the free space while an object arrives.
SPACE_CHECK_BYTES = 16 * MIB
#: Longest PDU read, whatever we announced: some senders ignore the maximum, and an A-ASSOCIATE-RQ is not bound by it
#: (PS3.8 D.1).
PDU_CAP_BYTES = 64 * MIB
#: Memory for a PDU grows in such steps as it arrives: claiming a length must cost the peer more than us.
PDU_STEP_BYTES = MIB
#: Longest command set, and longest data set of a message that is no C-STORE (which we refuse anyway).
MESSAGE_CAP_BYTES = MIB
#: Temporary files remembered before those that are gone are forgotten: an association may live for weeks.
FILES_REMEMBERED = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceiveLimits:
    """Bounds of one association: bytes of one object, seconds without a byte, and a check that raises
    OutOfResources.
    """

    max_object_bytes: int
    idle_seconds: float
    check_space: Callable[[], None]
    pdu_bytes: int = PDU_CAP_BYTES


class _TemporaryFile(Protocol):
    name: str
    file: Any

    def write(self, data: bytes) -> int: ...

    def close(self) -> None: ...


class BoundedFile:
    """Stands where pynetdicom keeps its temporary file: same calls, but it refuses instead of growing without bound.

    After a refusal the file is cut to nothing, further bytes are dropped, and `refused` says why.
    """

    def __init__(self, inner: _TemporaryFile, limits: ReceiveLimits) -> None:
        self._inner = inner
        self._limits = limits
        self._size = 0
        self._next_check = 0
        self.name = inner.name
        self.refused: PalimpsestError | None = None

    @property
    def file(self) -> BoundedFile:
        """pynetdicom flushes `.file` after every fragment; here that is for `finish` to do, once."""
        return self

    def flush(self) -> None:
        """Nothing: see `file`."""

    def write(self, data: bytes) -> int:
        """Append a fragment, or drop it after a refusal. Never raises for lack of space."""
        self._size += len(data)
        if self.refused is None:
            try:
                self._append(data)
            except PalimpsestError as error:
                self._refuse(error)
            except OSError:
                self._refuse(OutOfResources("write-failed", "The spool could not be written while the object arrived."))
        return len(data)

    def _append(self, data: bytes) -> None:
        if self._size > self._limits.max_object_bytes:
            raise OutOfResources("object-too-large", "the object is larger than this gateway takes")
        if self._size >= self._next_check:
            self._limits.check_space()
            self._next_check = self._size + SPACE_CHECK_BYTES
        self._inner.write(data)

    def _refuse(self, error: PalimpsestError) -> None:
        self.refused = error
        try:
            self._inner.file.truncate(0)
        except OSError:
            log.warning("could not cut a refused file", extra={"reason": error.reason})

    def finish(self) -> None:
        """The message is complete: hand buffered bytes to the kernel, where the handler's own open finds them."""
        if self.refused is None:
            try:
                self._inner.file.flush()
            except OSError:
                self._refuse(OutOfResources("write-failed", "The spool could not be written while the object arrived."))

    def close(self) -> None:
        """Close the temporary file; its name stays until someone removes or renames it."""
        try:
            self._inner.close()
        except OSError:  # bytes of a refused file that no longer fit
            log.warning("could not flush a refused file", extra={"reason": "write-failed"})


class SpoolingProvider(DIMSEServiceProvider):
    """The DIMSE provider of one association: bounds what arrives, drops what no handler can take, leaves no file."""

    def __init__(self, assoc: Any, limits: ReceiveLimits) -> None:
        super().__init__(assoc)
        self._limits = limits
        self._files: set[Path] = set()

    def receive_primitive(self, primitive: Any) -> None:
        """Take one P-DATA primitive (PS3.8 9.3.5); a message that cannot be understood ends the association (Evt19)."""
        try:
            self._receive(primitive)
        except Exception as error:  # noqa: BLE001  the DIMSE edge: what a peer sends may break any layer below
            log.warning("invalid DIMSE message", extra={"reason": type(error).__name__})
            self._track(self.message)
            self.message = None
            self.dul.event_queue.put("Evt19")

    def _receive(self, primitive: Any) -> None:
        if self.message is None:
            self.message = DIMSEMessage()
        message = self.message
        complete = message.decode_msg(primitive, self.assoc)
        self._track(message)
        for gathered in (message.encoded_command_set, message.data_set):
            if isinstance(gathered, BytesIO) and gathered.tell() > MESSAGE_CAP_BYTES:
                raise ValueError("a message that is no C-STORE is larger than any needs to be")
        if complete:
            self.message = None
            self._deliver(message)

    def _track(self, message: DIMSEMessage | None) -> None:
        """Remember the message's temporary file as soon as there is one, and put the bound around it."""
        file: Any = getattr(message, "_data_set_file", None)
        if file is None or isinstance(file, BoundedFile):
            return
        if len(self._files) >= FILES_REMEMBERED:
            self._files = {path for path in self._files if path.exists()}
        self._files.add(Path(file.name))
        message._data_set_file = BoundedFile(file, self._limits)  # type: ignore[union-attr, assignment]

    def _deliver(self, message: DIMSEMessage) -> None:
        file: Any = message._data_set_file
        if isinstance(file, BoundedFile):
            file.finish()
        primitive = message.message_to_primitive()
        if isinstance(primitive, C_CANCEL):  # nothing here runs long enough to be cancelled
            return
        if isinstance(primitive, C_STORE) and not primitive.is_valid_request:
            # pynetdicom would ignore it and let the sender wait for its timeout (PS3.7 9.1.1.1: these are mandatory).
            raise ValueError("C-STORE-RQ without a mandatory element")
        self.msg_queue.put((message.context_id, primitive))  # type: ignore[arg-type]

    def discard_leftovers(self) -> None:
        """Remove the temporary files that nobody renamed; call when the association's thread has nothing left to
        serve.
        """
        files, self._files = self._files, set()
        for path in files:
            path.unlink(missing_ok=True)


def _exact_reader(wrapper: AssociationSocket, limit: int) -> Callable[[int], bytearray]:
    """A `recv` for `wrapper` that fills one growing buffer instead of joining 4 KiB pieces, and refuses absurd
    lengths.
    """

    def recv(nr_bytes: int) -> bytearray:
        if nr_bytes > limit:
            raise OSError("a PDU declares more bytes than any peer may send")
        buffer, got = bytearray(), 0
        while got < nr_bytes:
            if got == len(buffer):
                buffer += bytes(min(PDU_STEP_BYTES, nr_bytes - got))
            with memoryview(buffer) as view, view[got:] as room:
                count = wrapper.socket.recv_into(room)  # type: ignore[union-attr]
            if count == 0:
                break
            got += count
        del buffer[got:]
        return buffer

    return recv


class SpoolingServer(ThreadedAssociationServer):
    """Association server whose associations receive through `SpoolingProvider`."""

    request_queue_size = 64
    daemon_threads = True

    def __init__(self, *args: Any, limits: ReceiveLimits, **kwargs: Any) -> None:
        self.limits = limits
        super().__init__(*args, request_handler=_SpoolingRequest, **kwargs)

    def shutdown(self) -> None:
        """Stop accepting and close the listening socket; running associations go on."""
        socketserver.BaseServer.shutdown(self)  # pynetdicom's own also looks for the server in a list that it is not in
        self.server_close()


class _SpoolingRequest(RequestHandler):
    """Sets up one association: TCP_NODELAY, idle timeout, bounded receive, and the clean-up at its thread's end."""

    def _create_association(self) -> Any:
        request: socket.socket = self.request
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it Nagle costs 40 ms an object
        assoc = super()._create_association()
        limits: ReceiveLimits = self.server.limits  # type: ignore[attr-defined]
        request.settimeout(limits.idle_seconds)
        wrapper = assoc.dul.socket
        assert wrapper is not None
        wrapper.recv = _exact_reader(wrapper, limits.pdu_bytes)  # type: ignore[method-assign]
        provider = SpoolingProvider(assoc, limits)
        assoc.dimse = provider
        # Neither thread may keep a stopped process alive.
        assoc.daemon = assoc.dul.daemon = True
        serve = assoc.run

        def run() -> None:
            try:
                serve()
            finally:
                assoc.dul.join(timeout=5)
                provider.discard_leftovers()

        assoc.run = run  # type: ignore[method-assign]
        return assoc
