"""The other side of a C-MOVE: which destination is meant, and the associations by which it is sent to.

Only destinations that an administrator marked with `move` are known: what goes there are identified originals.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from gateway.errors import PalimpsestError, Unavailable
from gateway.index_search import Retrievable
from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE
from gateway.settings import Destination, Settings
from gateway.tls import client_context
from service.listener_exchange import Exchange
from service.listener_suboperation import LOSSLESS_OFFERED

__all__ = ["Batch", "Unreachable", "UnknownDestination", "batches", "bound_silence", "destination_of"]

MAX_CONTEXTS: Final = 128  # in one association (PS3.8 9.3.2.2: odd numbers from 1 to 255)
_CONNECT_SECONDS: Final = 10.0
_RELEASE_SECONDS: Final = 5.0

Proposal = tuple[str, tuple[str, ...]]


class UnknownDestination(PalimpsestError):
    """No such AE title among those that C-MOVE may send to (PS3.4 C.4.2.1.5)."""

    http_status = 404
    dimse_status = 0xA801
    title = "Move destination unknown"


class Unreachable(Exception):
    """The destination gave no association. reason: a machine word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def bound_silence(event: Any, seconds: float) -> None:
    """A connection that we opened: give it up when the peer falls silent in the middle of a PDU.

    pynetdicom reads without a timeout there, and whoever then aborts waits for that read.
    """
    event.assoc.dul.socket.socket.settimeout(seconds)


def destination_of(exchange: Exchange) -> Destination:
    """The configured destination that a C-MOVE names. Raises UnknownDestination."""
    found = exchange.gateway.settings.move_destination(str(exchange.request.MoveDestination or ""))
    if found is None:
        raise UnknownDestination("move-destination-unknown", "no destination with move=true has it")
    return found


@dataclass(frozen=True, slots=True)
class Batch:
    """Instances that one association can take, and what it proposes for them."""

    wanted: tuple[Retrievable, ...]
    proposals: tuple[Proposal, ...]

    def open(self, settings: Settings, destination: Destination) -> Any:
        """An association with the destination, its messages ours to read. Raises Unreachable."""
        entity = AE(ae_title=settings.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = settings.network_timeout_seconds
        entity.connection_timeout = min(settings.network_timeout_seconds, _CONNECT_SECONDS)
        entity.maximum_pdu_size = settings.max_pdu
        contexts = [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in self.proposals]
        association = entity.associate(
            destination.host,
            destination.port,
            contexts,
            ae_title=destination.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, bound_silence, [settings.network_timeout_seconds])],
            **_security(settings, destination),
        )
        if not association.is_established:
            raise Unreachable("destination-rejected" if association.is_rejected else "destination-unreachable")
        wire = association.dul.socket
        if wire is not None and wire.socket is not None:
            with suppress(OSError):  # without it Nagle costs 40 ms an object
                wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        association._reactor_checkpoint.clear()  # the reactor must not take the answers
        while not association._is_paused and association.is_alive():
            time.sleep(0.0005)
        return association

    def close(self, association: Any) -> None:
        """Release the association, or end what is left of it."""
        if association.is_established and not association.acse.is_aborted() and association.dul.is_alive():
            association.acse_timeout = _RELEASE_SECONDS  # the requester waits for us
            association.release()
        association._reactor_checkpoint.set()
        if not (association.is_released or association.is_aborted):
            association.abort()


def _security(settings: Settings, destination: Destination) -> dict[str, Any]:
    if not destination.tls:
        return {}
    try:
        return {"tls_args": (client_context(settings, destination), destination.host)}
    except Unavailable as error:
        raise Unreachable(error.reason) from None


def batches(wanted: Sequence[Retrievable]) -> Iterator[Batch]:
    """Cut what is wanted, in its order, so that no association proposes more contexts than there are."""
    part: list[Retrievable] = []
    proposals: dict[Proposal, None] = {}
    for item in wanted:
        more = dict.fromkeys(_proposals(item))
        if part and len(proposals | more) > MAX_CONTEXTS:
            yield Batch(tuple(part), tuple(proposals))
            part, proposals = [], {}
        part.append(item)
        proposals |= more
    if part:
        yield Batch(tuple(part), tuple(proposals))


def _proposals(item: Retrievable) -> Iterator[Proposal]:
    """A context for each way out, so that the destination can say yes to several (PS3.8 9.3.2.2)."""
    yield item.sop_class, (item.transfer_syntax,)
    yield item.sop_class, (EXPLICIT_LE,)
    yield item.sop_class, (IMPLICIT_LE,)
    yield item.sop_class, LOSSLESS_OFFERED
