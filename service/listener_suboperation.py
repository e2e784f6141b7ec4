"""One C-STORE sub-operation of C-MOVE or C-GET: which syntax the peer takes, the proven bytes, and their way out.

A data set is never parsed on its way: what is sent are the bytes of a file whose digest was just compared, after its
file meta information (PS3.7 9.3.1, PS3.8 E). So nothing can change in them, and private transfer syntaxes go out too.
"""

from __future__ import annotations

import logging
import mmap
import queue
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA

from gateway.bootstrap import Gateway
from gateway.errors import Gone, NotFound
from gateway.index_search import Retrievable
from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE, read_meta
from gateway.transfer_syntaxes import JPEG_2000, JPEG_LOSSLESS, JPEG_LS, MADE, RLE
from service.listener_exchange import AssociationLost, alive, wait_room
from service.objects import OpenObject, derived, given, open_given
from service.problems import HttpProblem

__all__ = ["LOSSLESS_OFFERED", "Peer", "Prepared", "prepare", "storage_contexts"]

#: Standard lossless syntaxes offered to a C-MOVE destination, in one context beside the original's and the plain ones.
LOSSLESS_OFFERED: Final = (JPEG_LS, JPEG_LOSSLESS, JPEG_2000, RLE)
#: What an object is turned into if its own syntax is not accepted: lossless first, as it is smaller on the wire.
_PLAIN: Final = (EXPLICIT_LE, IMPLICIT_LE)
_COMPRESSED: Final = (*LOSSLESS_OFFERED, *(syntax for syntax in MADE if syntax not in (*LOSSLESS_OFFERED, *_PLAIN)))
_PREFERRED: Final = {syntax: place for place, syntax in enumerate((*_COMPRESSED, *_PLAIN))}
_NOT_ACCEPTABLE: Final = 406
PDU_BYTES: Final = 1 << 20  # of memory for one PDU, whatever the peer would take
QUEUED_BYTES: Final = 4 << 20
_POLL_SECONDS: Final = 0.25
_DATA, _DATA_LAST = b"\x00", b"\x02"  # message control headers (PS3.8 E.2)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An object ready to be sent: verified, open, in a syntax that the peer accepted. Closed by who sends it."""

    file: OpenObject
    syntax: str


def storage_contexts(association: Any) -> dict[str, dict[str, int]]:
    """SOP class -> transfer syntax -> context, of those by which we may send: as requestor every accepted one, as
    acceptor (C-GET) those for which the peer took the SCP role (PS3.7 D.3.3.4).
    """
    found: dict[str, dict[str, int]] = {}
    for context in association.accepted_contexts:
        sop_class = str(context.abstract_syntax)
        if association.is_acceptor:
            role = association.requestor.role_selection.get(sop_class)
            if role is None or not role.scp_role:
                continue
        found.setdefault(sop_class, {}).setdefault(str(context.transfer_syntax[0]), int(context.context_id))
    return found


def prepare(gateway: Gateway, wanted: Retrievable, accepted: Sequence[str]) -> Prepared:
    """The object in a syntax of `accepted`: as received, else a standard lossless one, else Explicit or Implicit VR LE.

    Raises NotFound ``no-accepted-syntax``, Gone, Unavailable, IntegrityError, OSError.
    """
    if not accepted:
        raise NotFound("no-presentation-context", "The peer takes no object of this SOP class.")
    row = gateway.index.get(wanted.id)
    if row.shredded_at is not None:
        raise Gone("identity-shredded", "The identity of this instance was destroyed on purpose.")
    if row.transfer_syntax in accepted or EXPLICIT_LE in accepted:  # else it need not be fetched to be converted
        original = open_given(gateway, row)
        if (syntax := original.transfer_syntax()) in accepted:
            return Prepared(original, syntax)
        original.file.close()
    for syntax in sorted(set(accepted) & _PREFERRED.keys(), key=_PREFERRED.__getitem__):
        try:
            return Prepared(derived(gateway, row, given(row, syntax)), syntax)
        except NotFound:
            continue
        except HttpProblem as problem:
            if problem.status_code != _NOT_ACCEPTABLE:
                raise
    raise NotFound("no-accepted-syntax", "The object cannot be given in any syntax that the peer takes.")


def _nothing() -> None:
    """Between the fragments of a message of C-GET."""


def _acknowledge_at_once(association: Any) -> None:
    """Have the kernel delay no acknowledgement of the answer: many peers write it in two pieces and, without
    TCP_NODELAY, hold the second back for the first's (tcp(7), 40 ms an object).
    """
    wire = association.dul.socket
    if wire is not None and wire.socket is not None and hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):
            wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Peer:
    """The receiving side of sub-operations. originator: AE title and message id of a C-MOVE, else None."""

    def __init__(
        self, association: Any, *, priority: int, timeout: float, originator: tuple[str, int] | None = None
    ) -> None:
        self.association = association
        self.contexts: Mapping[str, Mapping[str, int]] = storage_contexts(association)
        self._priority = priority
        self._timeout = timeout
        self._originator = originator
        self._message_id = 0
        self._aside: list[Any] = []

    def accepts(self, sop_class: str) -> Sequence[str]:
        """Transfer syntaxes that the peer takes for a SOP class."""
        return tuple(self.contexts.get(sop_class, {}))

    def store(self, wanted: Retrievable, prepared: Prepared, idle: Callable[[], None]) -> int:
        """Send one object and wait for its status. idle: called now and then while waiting; in C-GET not while
        sending, for no other message may come between the fragments of one (PS3.7 6.3.1).

        Raises AssociationLost when this association is gone, or silent for the timeout.
        """
        self._message_id = self._message_id % 65_535 + 1
        context_id = self.contexts[wanted.sop_class][prepared.syntax]
        request = C_STORE()
        request.MessageID = self._message_id
        request.AffectedSOPClassUID = wanted.sop_class
        request.AffectedSOPInstanceUID = wanted.sop_uid
        request.Priority = self._priority
        if self._originator is not None:
            request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID = self._originator
        self._send(request, context_id, prepared.file.file, idle if self._originator is not None else _nothing)
        return self._status(idle)

    def end(self) -> None:
        """Abort an association whose peer answers no more: what was sent last is unknown, so nothing may follow it."""
        if alive(self.association):
            self.association.abort()

    def give_back(self) -> None:
        """Put messages that were no answers back, for whoever serves the association next."""
        for message in self._aside:
            self.association.dimse.msg_queue.put(message)
        self._aside.clear()

    def _send(self, request: C_STORE, context_id: int, file: BinaryIO, idle: Callable[[], None]) -> None:
        message = C_STORE_RQ()
        message.primitive_to_message(request)
        message.data_set = None
        message.command_set.CommandDataSetType = 0x0001
        message._set_command_group_length()
        limit = min(self.association.dimse.maximum_pdu_size or PDU_BYTES, PDU_BYTES)
        for pdata in message.encode_msg(context_id, limit):
            self.association.dul.send_pdu(pdata)
        room = max(2, QUEUED_BYTES // limit)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _, start = read_meta(mapped)
            size = len(mapped)
        file.seek(start)
        at, heard = start, time.monotonic()
        while at < size:
            piece = file.read(limit - 6)
            at += len(piece)
            if not piece:
                raise AssociationLost  # the file was cut under us: the peer must not take a part for the whole
            pdata = P_DATA()
            pdata.presentation_data_value_list.append((context_id, (_DATA_LAST if at >= size else _DATA) + piece))
            self.association.dul.send_pdu(pdata)
            wait_room(self.association, room)
            if time.monotonic() - heard > _POLL_SECONDS:
                heard = time.monotonic()
                idle()
        wait_room(self.association, 0)
        _acknowledge_at_once(self.association)

    def _status(self, idle: Callable[[], None]) -> int:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                message = self.association.dimse.msg_queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not alive(self.association) or time.monotonic() > deadline:
                    raise AssociationLost from None
                if self.association.dul.to_provider_queue.qsize():
                    deadline = time.monotonic() + self._timeout  # idle, never whole-exchange
                idle()
                continue
            answer = message[1]
            if isinstance(answer, C_STORE) and answer.MessageIDBeingRespondedTo == self._message_id:
                if answer.Status is None:
                    raise AssociationLost
                return int(answer.Status)
            self._aside.append(message)
            if len(self._aside) > 16:  # a peer that floods instead of answering
                raise AssociationLost
