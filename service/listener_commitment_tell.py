"""The answers to commitment requests: decided by `gateway.commitment`, told by N-EVENT-REPORT (PS3.4 J.3.3).

One thread looks for work, one thread per requester does it, so that a requester that hangs delays no other. An answer
goes out on the association of its request while that is open and quiet, else on a new one to the requester's address in
the settings. What was not acknowledged is told again, later and later, by whatever process is alive.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode

from gateway.bootstrap import Gateway
from gateway.commitment import ALL_KEPT, PUSH_MODEL, SOME_FAILED, WELL_KNOWN, judge, pause_before_next
from gateway.errors import LeaseLost, PalimpsestError, Unavailable
from gateway.index_rows import CommitmentItem, CommitmentRow
from gateway.instance import CommitmentState
from gateway.jobs import new_owner
from gateway.settings import Destination, Settings
from gateway.tls import client_context
from service.listener_exchange import alive
from service.listener_move import bound_silence

__all__ = ["Teller", "event_information", "install_telling"]

ROUND_SECONDS: Final = 1.0
WORKERS: Final = 8  # requesters told at the same time
CONNECT_SECONDS: Final = 10.0
#: A requester that sends nothing for so long is not in the middle of sending objects; another message from us would
#: break senders that expect nothing but the answer to theirs.
QUIET_SECONDS: Final = 0.5
SAME_ASSOCIATION_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1
_MAX_ASIDE: Final = 16
BACKOFF_BASE, BACKOFF_CAP = 5.0, 3600.0  # seconds
MOST_TELLINGS: Final = 60  # more than two days
_SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Telling:
    """A message that this process puts among an association's received ones, to be sent by its own thread."""

    context_id: int
    event_type: int
    information: bytes
    done: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    too_late: bool = False
    is_valid_request: bool = False
    msg_type: str = "N-EVENT-REPORT"


def install_telling(association: Any) -> None:
    """Have an association send the reports that are put among its messages; all else stays as it was."""
    association._serve_request = partial(_serve, association, association._serve_request)


def _serve(association: Any, others: Callable[[Any, int], None], message: Any, context_id: int) -> None:
    if not isinstance(message, _Telling):
        others(message, context_id)
        return
    if message.too_late:
        return
    association._is_paused = True
    try:
        message.status = _exchange(association, message)
    finally:
        message.done.set()
        association._is_paused = False


def _exchange(association: Any, telling: _Telling) -> int | None:
    """Send the report and wait for its response; what else arrives meanwhile is put back. None: no response."""
    request = N_EVENT_REPORT()
    request.MessageID = 1
    request.AffectedSOPClassUID = PUSH_MODEL
    request.AffectedSOPInstanceUID = WELL_KNOWN
    request.EventTypeID = telling.event_type
    request.EventInformation = BytesIO(telling.information)
    association.dimse.send_msg(request, telling.context_id)
    deadline = time.monotonic() + SAME_ASSOCIATION_SECONDS
    aside: list[Any] = []
    try:
        while time.monotonic() < deadline and len(aside) < _MAX_ASIDE:
            try:
                message = association.dimse.msg_queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not alive(association):
                    return None
                continue
            if isinstance(message[1], N_EVENT_REPORT) and message[1].MessageIDBeingRespondedTo == 1:
                return None if message[1].Status is None else int(message[1].Status)
            aside.append(message)
        return None
    finally:
        for message in aside:
            association.dimse.msg_queue.put(message)


class Teller:
    """Decides and tells, in threads of its own, from `start` to `stop`. owner: signs its leases."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.owner = new_owner("listener")
        self.lease_seconds = gateway.settings.lease_seconds
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._at_work: set[int] = set()
        self._heard: dict[int, tuple[Any, int]] = {}
        self._prolonged = 0.0

    def start(self) -> None:
        """Begin with what earlier lives left open."""
        threading.Thread(target=self._run, name="commitment", daemon=True).start()

    def stop(self) -> None:
        """Take nothing new on, and leave what is left to other processes."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            left = set(self._heard) - self._at_work
        with suppress(PalimpsestError):
            self._gateway.index.commitment_leases(left, self.owner, None)

    def heard(self, commitment_id: int, association: Any, context_id: int) -> None:
        """A request came on this association, and its answer may be told there."""
        with self._lock:
            self._heard[commitment_id] = (association, context_id)
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(ROUND_SECONDS)
            self._wake.clear()
            try:
                self._hold()
                self._begin()
            except PalimpsestError as error:
                log.warning("commitment requests are not looked at", extra={"reason": error.reason})
            except Exception as error:  # noqa: BLE001  a thread of the DIMSE edge: it must outlive one bad round
                log.error("unexpected error in storage commitment", extra={"reason": type(error).__name__})

    def _hold(self) -> None:
        """Keep what waits for an open association from other processes; let go of what does not."""
        with self._lock:
            gone = [each for each, (association, _) in self._heard.items() if not alive(association)]
            for each in gone:
                del self._heard[each]
            kept = set(self._heard) | self._at_work
            gone = [each for each in gone if each not in kept]
        if gone:
            self._gateway.index.commitment_leases(gone, self.owner, None)
        if kept and time.monotonic() - self._prolonged > self.lease_seconds / 4:
            self._gateway.index.commitment_leases(kept, self.owner, self.lease_seconds)
            self._prolonged = time.monotonic()

    def _begin(self) -> None:
        with self._lock:
            busy = set(self._busy)
        if len(busy) >= WORKERS:
            return
        work: dict[str, list[int]] = {}
        for row in self._gateway.index.commitment_due(self.owner, without=busy):
            work.setdefault(row.peer, []).append(row.id)
        for peer, ids in list(work.items())[: WORKERS - len(busy)]:
            with self._lock:
                self._busy.add(peer)
            threading.Thread(target=self._work_for, args=(peer, ids), daemon=True).start()

    def _work_for(self, peer: str, ids: Sequence[int]) -> None:
        try:
            for each in ids:
                if self._stopping.is_set():
                    return
                self._work_on(each)
        except PalimpsestError as error:
            log.warning("a commitment request waits", extra={"reason": error.reason})
        except Exception as error:  # noqa: BLE001  a thread of the DIMSE edge; the lease runs out, and it is done again
            log.error("unexpected error in storage commitment", extra={"reason": type(error).__name__})
        finally:
            with self._lock:
                self._busy.discard(peer)

    def _work_on(self, commitment_id: int) -> None:
        index = self._gateway.index
        row = index.commitment_claim(commitment_id, self.owner, self.lease_seconds)
        if row is None:
            return
        with self._lock:
            self._at_work.add(row.id)
        try:
            if row.state is CommitmentState.WAITING:
                self._decide(row)
                row = index.commitment_claim(row.id, self.owner, self.lease_seconds)
            if row is not None and row.state is CommitmentState.READY:
                if row.attempts:
                    self._look_again(row)
                self._tell(row)
        except LeaseLost:
            log.info("another process has taken a commitment request over")
        finally:
            with self._lock:
                self._at_work.discard(commitment_id)
                held = commitment_id in self._heard
            if not held:
                index.commitment_leases([commitment_id], self.owner, None)

    def _decide(self, row: CommitmentRow) -> None:
        index = self._gateway.index
        outcomes: dict[int, int] = {}
        for some in judge(self._gateway, row, index.commitment_items(row.id, undecided=True)):
            outcomes |= some
            if self._stopping.is_set():
                return
        now = index.now()
        index.commitment_decide(row.id, self.owner, outcomes, now + pause_before_next(now - row.created_at))

    def _look_again(self, row: CommitmentRow) -> None:
        """An answer that had to wait says what is true when it is told, for a modality deletes on it."""
        index = self._gateway.index
        items = index.commitment_items(row.id)
        known = {item.id: item.outcome for item in items}
        found = {key: outcome for some in judge(self._gateway, row, items) for key, outcome in some.items()}
        changed = {key: outcome for key, outcome in found.items() if known[key] != outcome}
        if changed:
            index.commitment_decide(row.id, self.owner, changed, index.now())

    def _tell(self, row: CommitmentRow) -> None:
        items = self._gateway.index.commitment_items(row.id)
        information, event_type = event_information(row.transaction_uid, items, self._gateway.settings.ae_title)
        reason = self._tell_there(row, information, event_type)
        if reason is None:
            return  # its association is in the middle of something: looked at again in a moment
        if reason:
            reason = self._tell_anew(row, information, event_type)
        with self._lock:
            self._heard.pop(row.id, None)
        if not reason:
            self._gateway.index.commitment_told(row.id, self.owner)
            return
        log.warning("a commitment answer could not be told", extra={"reason": reason})
        last = row.attempts + 1 >= MOST_TELLINGS
        pause = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** min(row.attempts, 16))
        due_at = None if last else self._gateway.index.now() + pause
        self._gateway.index.commitment_untold(row.id, self.owner, reason, due_at)
        if last:
            message = f"{row.peer} could not be told what became of its commitment request ({reason}): replay it"
            self._gateway.index.alert_raise("commitment-untold", row.peer, message, "warning")

    def _tell_there(self, row: CommitmentRow, information: Dataset, event_type: int) -> str | None:
        """Tell it on the association of the request. '': acknowledged; None: not now; else why not there."""
        with self._lock:
            association, context_id = self._heard.get(row.id, (None, 0))
        if association is None or not alive(association):
            return "association-gone"
        timer = association.dul._idle_timer
        if timer.timeout is not None and timer.timeout - timer.remaining < QUIET_SECONDS:
            return None
        syntax = association._accepted_cx[context_id].transfer_syntax[0]
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        telling = _Telling(context_id, event_type, encoded or b"")
        association.dimse.msg_queue.put((context_id, telling))
        telling.too_late = not telling.done.wait(SAME_ASSOCIATION_SECONDS + 5.0)
        return "" if telling.status == 0 else "not-acknowledged"

    def _tell_anew(self, row: CommitmentRow, information: Dataset, event_type: int) -> str:
        """Tell it on a new association, in the SCP's role (PS3.7 D.3.3.4). '': acknowledged; else why not."""
        settings = self._gateway.settings
        destination = settings.commitment_requester(row.peer)
        if destination is None:
            return "requester-unknown"
        try:
            association = _call(settings, destination)
        except Unavailable as error:
            return error.reason
        if not association.is_established:
            if association.rejected_contexts:
                return "no-presentation-context"
            return "requester-rejected" if association.is_rejected else "requester-unreachable"
        try:
            status, _ = association.send_n_event_report(information, event_type, PUSH_MODEL, WELL_KNOWN)
        except (RuntimeError, ValueError):  # ended meanwhile, or the requester takes no such context
            return "no-presentation-context" if association.is_established else "association-lost"
        finally:
            if association.is_established:
                association.release()
        if "Status" not in status:
            return "no-response"
        return "" if status.Status == 0 else f"requester-status-{status.Status:04x}"


def _call(settings: Settings, destination: Destination) -> Any:
    """An association with a requester. Raises Unavailable for TLS files."""
    entity = AE(ae_title=settings.ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = settings.network_timeout_seconds
    entity.connection_timeout = min(settings.network_timeout_seconds, CONNECT_SECONDS)
    entity.add_requested_context(PUSH_MODEL, list(_SYNTAXES))
    security: dict[str, Any] = {}
    if destination.tls:
        security = {"tls_args": (client_context(settings, destination), destination.host)}
    return entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.ae_title,
        ext_neg=[build_role(PUSH_MODEL, scp_role=True)],
        evt_handlers=[(evt.EVT_CONN_OPEN, bound_silence, [settings.network_timeout_seconds])],
        **security,
    )


def event_information(uid: str, items: Sequence[CommitmentItem], ae_title: str) -> tuple[Dataset, int]:
    """Event Information and Event Type ID of an answer (PS3.4 table J.3-2)."""
    dataset = Dataset()
    dataset.TransactionUID = uid
    dataset.RetrieveAETitle = ae_title
    kept = [_reference(item) for item in items if item.outcome == 0]
    failed = [_reference(item, reason=item.outcome) for item in items if item.outcome != 0]
    if kept:
        dataset.ReferencedSOPSequence = kept
    if failed:
        dataset.FailedSOPSequence = failed
    return dataset, SOME_FAILED if failed else ALL_KEPT


def _reference(item: CommitmentItem, reason: int | None = None) -> Dataset:
    dataset = Dataset()
    dataset.ReferencedSOPClassUID = item.sop_class
    dataset.ReferencedSOPInstanceUID = item.sop_uid
    if reason is not None:
        dataset.FailureReason = reason
    return dataset
