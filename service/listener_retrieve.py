"""C-MOVE and C-GET as SCP, Patient and Study Root (PS3.4 C.4.2, C.4.3).

Objects are opened and proven ahead of the wire by two threads, so that the retrieve worker restores the next ones while
one is sent. The requester hears a Pending response after each sub-operation, and while it must wait for one.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from gateway import metrics
from gateway.errors import OutOfResources, PalimpsestError, Unavailable
from gateway.index_search import Retrievable
from gateway.settings import Destination
from service.listener_exchange import CANCELLED, PENDING, SUCCESS, AssociationLost, Exchange, Progress
from service.listener_identifier import for_retrieve
from service.listener_move import Batch, Unreachable, batches, destination_of
from service.listener_suboperation import Peer, Prepared, prepare
from service.problems import HttpProblem
from service.trail import record

__all__ = ["on_get", "on_move"]

WARNINGS: Final = 0xB000
UNABLE_TO_PERFORM: Final = 0xA702
MAX_SUBOPERATIONS: Final = 65_535  # the counts are US
AHEAD: Final = 4  # objects open at once
THREADS: Final = 2
#: Objects in a row that could not be had for want of a worker: then the rest is not waited for.
GIVE_UP_AFTER: Final = 3
RELATIONAL: Final = 0  # byte of the application information (PS3.4 C.5.2.1)
_WAIT_SECONDS: Final = 0.5
_WARNED: Final = frozenset({0x0001, 0x0107, 0x0116})  # PS3.7 C.4: stored, with a remark

log = logging.getLogger(__name__)


def on_get(exchange: Exchange) -> None:
    """Serve one C-GET: sub-operations on the same association. Raises PalimpsestError before the first of them."""
    wanted = _wanted(exchange)
    _audit(exchange, wanted, "c-get", None)
    progress = Progress(len(wanted))
    peer = _peer(exchange, exchange.association, move=False)
    try:
        with _workers() as workers:
            _run(exchange, peer, wanted, progress, workers)
    finally:
        peer.give_back()
    _finish(exchange, progress, "c-get")


def on_move(exchange: Exchange) -> None:
    """Serve one C-MOVE: sub-operations on associations with the destination. Raises as `on_get`."""
    destination = destination_of(exchange)
    wanted = _wanted(exchange)
    _audit(exchange, wanted, "c-move", destination)
    progress = Progress(len(wanted))
    with _workers() as workers:
        for batch in batches(wanted):
            if exchange.cancelled:
                break
            try:
                _move(exchange, destination, batch, progress, workers)
            except Unreachable as error:
                log.warning("C-MOVE destination", extra={"reason": error.reason, "destination": destination.name})
                _give_up(progress, batch.wanted)
    _finish(exchange, progress, "c-move")


def _move(
    exchange: Exchange, destination: Destination, batch: Batch, progress: Progress, workers: ThreadPoolExecutor
) -> None:
    opening = workers.submit(batch.open, exchange.gateway.settings, destination)
    while (association := _soon(opening)) is None:
        try:
            exchange.heartbeat(progress)
        except AssociationLost:
            opening.add_done_callback(partial(_close_late, batch))
            raise
    peer = _peer(exchange, association, move=True)
    try:
        _run(exchange, peer, batch.wanted, progress, workers)
    finally:
        batch.close(association)


def _close_late(batch: Batch, opening: Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        batch.close(opening.result())


def _wanted(exchange: Exchange) -> list[Retrievable]:
    """What is asked for, at most as many as the counts can say. Raises BadIdentifier, OutOfResources, Unavailable."""
    asked = for_retrieve(exchange.root, exchange.identifier(), relational=exchange.option(RELATIONAL))
    wanted = exchange.gateway.index.retrievable(asked.unique, MAX_SUBOPERATIONS + 1)
    if len(wanted) > MAX_SUBOPERATIONS:
        raise OutOfResources("too-many-instances", "more than 65,535 instances: ask for less")
    return wanted


def _audit(exchange: Exchange, wanted: Sequence[Retrievable], kind: str, destination: Destination | None) -> None:
    """One event for each study, before a byte leaves: what cannot be audited does not happen."""
    for study, count in Counter(item.study_uid for item in wanted).items():
        record(
            exchange.gateway, "retrieved", actor=exchange.calling, outcome="success", study_uid=study, kind="instances",
            source=kind, count=count, destination=destination.name if destination else None,
        )  # fmt: skip


def _peer(exchange: Exchange, association: Any, *, move: bool) -> Peer:
    return Peer(
        association,
        priority=exchange.request.Priority if exchange.request.Priority in (0, 1, 2) else 0,
        timeout=exchange.gateway.settings.network_timeout_seconds,
        originator=(exchange.calling, exchange.request.MessageID) if move else None,
    )


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    workers = ThreadPoolExecutor(THREADS, thread_name_prefix="retrieve")
    try:
        yield workers
    finally:
        workers.shutdown(wait=False, cancel_futures=True)


def _soon(future: Future[Any]) -> Any:
    """The result, or None if it is not there yet."""
    try:
        return future.result(timeout=_WAIT_SECONDS)
    except NotYet:
        if future.done():  # its own error, of the same class
            raise
        return None


def _close(future: Future[Prepared]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().file.file.close()


def _run(
    exchange: Exchange, peer: Peer, wanted: Sequence[Retrievable], progress: Progress, workers: ThreadPoolExecutor
) -> None:
    """The sub-operations, in order, until done, cancelled or given up. Raises AssociationLost of the requester."""
    rest = iter(wanted)
    ahead: deque[tuple[Retrievable, Future[Prepared]]] = deque()
    silent = 0
    try:
        while True:
            for item in itertools.islice(rest, AHEAD - len(ahead)):
                ahead.append((item, workers.submit(prepare, exchange.gateway, item, peer.accepts(item.sop_class))))
            if not ahead or exchange.cancelled:
                return
            item, future = ahead.popleft()
            try:
                while (prepared := _soon(future)) is None:
                    exchange.heartbeat(progress)
            except AssociationLost:
                future.add_done_callback(_close)
                raise
            except (PalimpsestError, HttpProblem, OSError) as error:
                silent = silent + 1 if isinstance(error, Unavailable) else 0
                _failed(progress, item, getattr(error, "reason", "io-error"))
                if silent == GIVE_UP_AFTER:
                    _give_up(progress, [*(waiting for waiting, _ in ahead), *rest])
                    return
            else:
                silent = 0
                if not _store(exchange, peer, item, prepared, progress):
                    _give_up(progress, [*(waiting for waiting, _ in ahead), *rest])
                    return
            if progress.remaining:
                exchange.progress(PENDING, progress)
    finally:
        for _, future in ahead:
            future.cancel()
            future.add_done_callback(_close)


def _store(exchange: Exchange, peer: Peer, item: Retrievable, prepared: Prepared, progress: Progress) -> bool:
    """Send one object and count what the peer said; False if the peer's association is gone.

    Raises AssociationLost if the requester's is.
    """
    with prepared.file.file:
        try:
            status = peer.store(item, prepared, lambda: exchange.heartbeat(progress))
        except AssociationLost:
            peer.end()
            exchange.check()
            _failed(progress, item, "association-lost")
            return False
    if status == SUCCESS:
        progress.completed += 1
        progress.remaining -= 1
    elif status & 0xF000 == WARNINGS or status in _WARNED:
        progress.warned += 1
        progress.remaining -= 1
    else:
        _failed(progress, item, f"status-{status:04x}")
        return True
    metrics.RETRIEVED.labels(kind="instances", outcome="success").inc()
    return True


def _failed(progress: Progress, item: Retrievable, reason: str) -> None:
    log.warning("a sub-operation failed", extra={"reason": reason, "instance_id": item.id})
    metrics.RETRIEVED.labels(kind="instances", outcome="failure").inc()
    progress.fail(item.sop_uid)


def _give_up(progress: Progress, items: Sequence[Retrievable]) -> None:
    for item in items:
        progress.fail(item.sop_uid)


def _finish(exchange: Exchange, progress: Progress, kind: str) -> None:
    """The final response (PS3.4 tables C.4-2 and C.4-3), and an event if anything was not given."""
    if progress.failed:
        record(
            exchange.gateway, "retrieved", actor=exchange.calling, outcome="failure", kind="instances", source=kind,
            count=progress.failed, reason="sub-operations-failed",
        )  # fmt: skip
    if exchange.cancelled and progress.remaining:
        exchange.progress(CANCELLED, progress)
    elif not progress.failed and not progress.warned:
        exchange.progress(SUCCESS, progress)
    elif progress.completed or progress.warned:
        exchange.progress(WARNINGS, progress)
    else:
        exchange.progress(UNABLE_TO_PERFORM, progress, comment="no sub-operation succeeded")
