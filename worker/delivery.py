"""Forwarding: claims, backoff, dead letters, and one destination at a time per process.

Isolation: whoever delivers to a destination holds that destination's flock and drains what is due for it, over one
association.  A dead or slow destination therefore keeps at most one pool process busy, whatever its backlog; a
second task for it ends at once and leaves its row to the holder (or to the sweep).  The lock file also carries the
circuit breaker.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import IO

from gateway import steps
from gateway.archive import archive_key
from gateway.bootstrap import Gateway
from gateway.circuit import CircuitState, circuit_path, parse_circuit
from gateway.errors import Unavailable
from gateway.index import ForwardRow
from gateway.part10 import EXPLICIT_LE, peek
from gateway.policy import Representation
from gateway.probe_result import RAW_DATA
from gateway.settings import Destination
from worker.commitment import ask_for_commitment
from worker.leases import backoff_seconds, heartbeat
from worker.represent import HOPELESS, Parcel, StegoProver, represent
from worker.sender import Delivery, NotReached, Sender, open_sender
from worker.weightobject import needed_weights, weights_object, weights_uid

__all__ = ["forward_instance", "record_forward_failure"]

BATCH = 16  # rows asked for at once: a STAT that comes meanwhile waits for so many at most
BATCH_SECONDS = 60.0  # then the lock is given back: the queue's order (STAT first) decides again
SENT_WITH_GROUP = Delivery("done", "sent-with-group")
CIRCUIT_CAP = 60.0  # seconds; a destination that came back is noticed within this
RETRY_AFTER_CAP = 900.0  # seconds; a destination may ask for more patience than that, and does not get it


@dataclass(slots=True)
class Circuit:
    """The breaker of one destination: after a failure to reach it, nothing is tried before `open_until`."""

    file: IO[str]
    state: CircuitState = CircuitState()

    @property
    def open_until(self) -> float:
        """Seconds since the epoch."""
        return self.state.open_until

    @property
    def weights(self) -> frozenset[str]:
        """Which were delivered where, see `_deliver_weights`."""
        return self.state.weights

    def failed(self, reason: str = "", after: float = 0.0) -> None:
        """One more failure in a row: wait longer, and at least `after` seconds."""
        failures = self.state.failures + 1
        pause = max(backoff_seconds(failures, cap=CIRCUIT_CAP), min(after, RETRY_AFTER_CAP))
        self._write(replace(self.state, failures=failures, open_until=time.time() + pause, reason=reason))

    def succeeded(self) -> None:
        """The destination answers."""
        if self.state.failures:
            self._write(replace(self.state, failures=0, open_until=0.0, reason=""))

    def delivered_weights(self, name: str) -> None:
        """This weight object is there; forgotten with the file, and then it is delivered again: no harm."""
        self._write(replace(self.state, weights=self.state.weights | {name}))

    def _write(self, state: CircuitState) -> None:
        self.state = state
        self.file.seek(0)
        self.file.truncate()
        self.file.write(state.dump())
        self.file.flush()


@contextmanager
def destination_lock(run_dir: Path, name: str) -> Iterator[Circuit | None]:
    """The destination's circuit while nobody else delivers to it, else None; the kernel frees it if we die."""
    with circuit_path(run_dir, name).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        file.seek(0)
        yield Circuit(file, parse_circuit(file.read()))


def forward_instance(gw: Gateway, forward_id: int, owner: str, prover: StegoProver) -> int:
    """Deliver this forward and everything else due for its destination; returns how many were delivered.

    0 also when another process is at that destination, or its circuit is open. prover: opens viewable stego objects in
    another process before they are sent for the first time.
    """
    row = gw.index.forward_get(forward_id)
    destination = gw.settings.destination(row.destination)
    if destination is None:
        return _refuse_unknown(gw, row, owner)
    with destination_lock(gw.settings.run_dir, destination.name) as circuit:
        if circuit is None:
            return 0
        try:
            sender = open_sender(gw.settings, destination)
        except Unavailable as error:  # a credential that cannot be read: like a place that cannot be reached
            circuit.failed(error.reason)
            _postpone(gw, row, owner, circuit)
            return 0
        with sender:
            delivered = _drain(Work(gw, sender, circuit, prover, owner, destination), row)
        if circuit.open_until <= time.time():
            ask_for_commitment(gw, destination)
        return delivered


@dataclass(frozen=True, slots=True)
class Work:
    """What every delivery to one destination shares."""

    gw: Gateway
    sender: Sender
    circuit: Circuit
    prover: StegoProver
    owner: str
    destination: Destination


def _drain(work: Work, first: ForwardRow) -> int:
    gw, circuit = work.gw, work.circuit
    delivered, deadline = 0, time.monotonic() + BATCH_SECONDS
    rows = [first]
    while rows:
        for row in rows:
            if circuit.open_until > time.time():
                _postpone(gw, row, work.owner, circuit)
                continue
            delivered += _deliver(work, row)
            if time.monotonic() > deadline:
                return delivered
        if circuit.open_until > time.time():
            return delivered
        rows = gw.index.forwards_overdue(BATCH, 0.0, destination=work.destination.name)
    return delivered


def _deliver(work: Work, row: ForwardRow) -> bool:
    gw, owner, lease = work.gw, work.owner, work.gw.settings.lease_seconds
    claimed = gw.index.forward_claim(row.id, owner, lease)
    if claimed is None:
        return False
    parcel, began = None, steps.now()
    source = gw.index.get(row.instance_id)
    with heartbeat(lambda: gw.index.forward_heartbeat(row.id, owner, lease), lease) as beat:
        try:
            parcel = represent(gw, source, work.destination, work.prover, owner, work.sender.accepts)
            beat.check()  # making and proving a stego object takes its time
            delivery = _send(work, parcel)
        except NotReached as error:
            delivery = error.delivery
        except HOPELESS as error:  # this object's trouble: those behind it must not wait for it
            delivery = Delivery("permanent", error.reason)
        beat.check()
    _settle(gw, claimed, delivery, owner, parcel, commitment=work.destination.commitment)
    steps.delivered(source, claimed, began, delivery.outcome)
    if delivery.outcome == "down":
        work.circuit.failed(delivery.reason, delivery.after)
    else:
        work.circuit.succeeded()
    return delivery.outcome == "done"


def _send(work: Work, parcel: Parcel) -> Delivery:
    if parcel.data is None:
        return SENT_WITH_GROUP
    delivery = _deliver_weights(work, parcel.representation, parcel.data)
    return work.sender.send(parcel.name, parcel.data) if delivery.outcome == "done" else delivery


def _deliver_weights(work: Work, form: Representation, data: bytes) -> Delivery:
    """What the envelope's frames need goes before it, once to every place: that archive must open by itself, too."""
    if form != "envelope":
        return Delivery("done", "no-weights")
    for weights in needed_weights(data):
        name = sha256(f"{work.destination.place}/{weights.sha256}".encode()).hexdigest()
        if name in work.circuit.weights:
            continue
        sent = work.sender.send(archive_key(weights_uid(weights.sha256)), weights_object(weights))
        if sent.outcome != "done":
            return sent
        work.circuit.delivered_weights(name)
    return Delivery("done", "weights-there")


def _settle(
    gw: Gateway,
    row: ForwardRow,
    delivery: Delivery,
    owner: str,
    parcel: Parcel | None = None,
    *,
    commitment: bool = False,
) -> None:
    """Write down what became of one claimed forward. parcel: what was sent, None if it could not be made.

    commitment: the destination's word is wanted, too.
    """
    if delivery.outcome == "done" and parcel is not None:
        gw.index.forward_done(
            row.id, owner, delivery.reason, representation=parcel.representation, reason=parcel.reason,
            sent=_what_was_sent(parcel), commitment=commitment,
        )  # fmt: skip
        return
    dead = delivery.outcome == "permanent" or row.attempts >= gw.settings.forward_max_attempts
    pause = max(backoff_seconds(row.attempts), min(delivery.after, RETRY_AFTER_CAP))
    due_at = None if dead else time.time() + pause
    gw.index.forward_failed(row.id, owner, delivery.reason, due_at=due_at)
    if dead:
        message = f"objects for {row.destination} could not be delivered ({delivery.reason}) and wait for a replay"
        gw.index.alert_raise("dead-letter", row.destination, message, "warning")


def _what_was_sent(parcel: Parcel) -> tuple[str | None, str | None, str | None]:
    """SOP class and instance UID and transfer syntax that the destination now knows; of a group its one object's."""
    if parcel.data is None:
        return RAW_DATA, parcel.sent_uid, EXPLICIT_LE
    found = peek(parcel.data)
    return str(found.sop_class_uid), str(found.sop_instance_uid), found.transfer_syntax


def _postpone(gw: Gateway, row: ForwardRow, owner: str, circuit: Circuit) -> None:
    """The circuit is open: due again when it closes, without an attempt being counted."""
    if gw.index.forward_claim(row.id, owner, gw.settings.lease_seconds) is not None:
        due_at = circuit.open_until + backoff_seconds(1)
        reason = row.reason or circuit.state.reason or "circuit-open"
        gw.index.forward_failed(row.id, owner, reason, due_at=due_at, count_attempt=False)


def _refuse_unknown(gw: Gateway, row: ForwardRow, owner: str) -> int:
    """A destination that was taken out of the settings: dead letter, to be replayed once it is back."""
    if gw.index.forward_claim(row.id, owner, gw.settings.lease_seconds) is not None:
        _settle(gw, row, Delivery("permanent", "unknown-destination"), owner)
    return 0


def record_forward_failure(gw: Gateway, forward_id: int, owner: str, reason: str, *, permanent: bool) -> None:
    """An error of ours (archive unreadable, database away) ended the task: give the row back if we still hold it."""
    row = gw.index.forward_get(forward_id)
    if row.lease_owner == owner:
        _settle(gw, row, Delivery("permanent" if permanent else "retry", reason), owner)
