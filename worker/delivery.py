"""Forwarding: claims, backoff, dead letters, and one destination at a time per process.

Isolation: whoever delivers to a destination holds that destination's flock and drains what is due for it, over one
association.  A dead or slow destination therefore keeps at most one pool process busy, whatever its backlog; a
second task for it ends at once and leaves its row to the holder (or to the sweep).  The lock file also carries the
circuit breaker.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from gateway.archive import archive_key
from gateway.bootstrap import Gateway
from gateway.index import ForwardRow
from gateway.policy import Representation
from gateway.settings import Destination
from worker.forward import Delivery, Sender, open_sender
from worker.leases import backoff_seconds, heartbeat
from worker.represent import HOPELESS, Parcel, StegoProver, represent
from worker.weightobject import needed_weights, weights_object, weights_uid

__all__ = ["forward_instance", "record_forward_failure"]

BATCH = 200  # rows asked for at once
BATCH_SECONDS = 60.0  # then the lock is given back: the queue's order (STAT first) decides again
SENT_WITH_GROUP = Delivery("done", "sent-with-group")
CIRCUIT_CAP = 60.0  # seconds; a destination that came back is noticed within this


@dataclass(slots=True)
class Circuit:
    """The breaker of one destination: after a failure to reach it, nothing is tried before `open_until`."""

    file: IO[str]
    failures: int = 0
    open_until: float = 0.0
    weights: frozenset[str] = frozenset()  # which were delivered where, see `_deliver_weights`

    def failed(self) -> None:
        """One more failure in a row: wait longer."""
        self.failures += 1
        self._write(time.time() + backoff_seconds(self.failures, cap=CIRCUIT_CAP))

    def succeeded(self) -> None:
        """The destination answers."""
        if self.failures:
            self.failures = 0
            self._write(0.0)

    def delivered_weights(self, name: str) -> None:
        """This weight object is there; forgotten with the file, and then it is delivered again: no harm."""
        self.weights |= {name}
        self._write(self.open_until)

    def _write(self, open_until: float) -> None:
        self.open_until = open_until
        self.file.seek(0)
        self.file.truncate()
        content = {"failures": self.failures, "open_until": open_until, "weights": sorted(self.weights)}
        json.dump(content, self.file)
        self.file.flush()


@contextmanager
def destination_lock(run_dir: Path, name: str) -> Iterator[Circuit | None]:
    """The destination's circuit while nobody else delivers to it, else None; the kernel frees it if we die."""
    with (run_dir / f"forward-{name}.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        file.seek(0)
        try:
            kept = json.loads(file.read() or "{}")
            weights = frozenset(map(str, kept.get("weights", ())))
            circuit = Circuit(file, int(kept.get("failures", 0)), float(kept.get("open_until", 0.0)), weights)
        except (ValueError, TypeError, AttributeError):  # torn by a kill in the middle of a write: start closed
            circuit = Circuit(file)
        yield circuit


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
        with open_sender(gw.settings, destination) as sender:
            return _drain(Work(gw, sender, circuit, prover, owner), destination, row)


@dataclass(frozen=True, slots=True)
class Work:
    """What every delivery to one destination shares."""

    gw: Gateway
    sender: Sender
    circuit: Circuit
    prover: StegoProver
    owner: str


def _drain(work: Work, destination: Destination, first: ForwardRow) -> int:
    gw, circuit = work.gw, work.circuit
    delivered, deadline = 0, time.monotonic() + BATCH_SECONDS
    rows = [first]
    while rows:
        for row in rows:
            if circuit.open_until > time.time():
                _postpone(gw, row, work.owner, circuit.open_until)
                continue
            delivered += _deliver(work, row)
            if time.monotonic() > deadline:
                return delivered
        if circuit.open_until > time.time():
            return delivered
        rows = gw.index.forwards_overdue(BATCH, 0.0, destination=destination.name)
    return delivered


def _deliver(work: Work, row: ForwardRow) -> bool:
    gw, owner, lease = work.gw, work.owner, work.gw.settings.lease_seconds
    claimed = gw.index.forward_claim(row.id, owner, lease)
    if claimed is None:
        return False
    parcel = None
    with heartbeat(lambda: gw.index.forward_heartbeat(row.id, owner, lease), lease) as beat:
        try:
            parcel = represent(gw, gw.index.get(row.instance_id), row.destination, work.prover, owner)
            beat.check()  # making and proving a stego object takes its time
            delivery = _send(work, row.destination, parcel)
        except HOPELESS as error:  # this object's trouble: those behind it must not wait for it
            delivery = Delivery("permanent", error.reason)
        beat.check()
    _settle(gw, claimed, delivery, owner, parcel)
    if delivery.outcome == "down":
        work.circuit.failed()
    else:
        work.circuit.succeeded()
    return delivery.outcome == "done"


def _send(work: Work, destination: str, parcel: Parcel) -> Delivery:
    if parcel.data is None:
        return SENT_WITH_GROUP
    delivery = _deliver_weights(work, destination, parcel.representation, parcel.data)
    return work.sender.send(parcel.name, parcel.data) if delivery.outcome == "done" else delivery


def _deliver_weights(work: Work, destination: str, form: Representation, data: bytes) -> Delivery:
    """What the envelope's frames need goes before it, once to every place: that archive must open by itself, too."""
    place = work.gw.settings.destination(destination)
    if form != "envelope" or place is None:
        return Delivery("done", "no-weights")
    for weights in needed_weights(data):
        name = sha256(f"{place.model_dump_json()}/{weights.sha256}".encode()).hexdigest()
        if name in work.circuit.weights:
            continue
        sent = work.sender.send(archive_key(weights_uid(weights.sha256)), weights_object(weights))
        if sent.outcome != "done":
            return sent
        work.circuit.delivered_weights(name)
    return Delivery("done", "weights-there")


def _settle(gw: Gateway, row: ForwardRow, delivery: Delivery, owner: str, parcel: Parcel | None = None) -> None:
    """Write down what became of one claimed forward. parcel: what was sent, None if it could not be made."""
    if delivery.outcome == "done" and parcel is not None:
        gw.index.forward_done(
            row.id, owner, delivery.reason, representation=parcel.representation, reason=parcel.reason
        )
        return
    dead = delivery.outcome == "permanent" or row.attempts >= gw.settings.forward_max_attempts
    due_at = None if dead else time.time() + backoff_seconds(row.attempts)
    gw.index.forward_failed(row.id, owner, delivery.reason, due_at=due_at)
    if dead:
        message = f"objects for {row.destination} could not be delivered ({delivery.reason}) and wait for a replay"
        gw.index.alert_raise("dead-letter", row.destination, message, "warning")


def _postpone(gw: Gateway, row: ForwardRow, owner: str, until: float) -> None:
    """The circuit is open: due again when it closes, without an attempt being counted."""
    if gw.index.forward_claim(row.id, owner, gw.settings.lease_seconds) is not None:
        due_at = until + backoff_seconds(1)
        gw.index.forward_failed(row.id, owner, row.reason or "circuit-open", due_at=due_at, count_attempt=False)


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
