"""One instance's life as data: its states, its forms, and the only transitions there are.

::

    RECEIVED --> CANDIDATE --> VERIFIED --> ARCHIVED --> RELEASED
        ^------------|  ^----------|
          (a candidate that failed its proof is dropped, and the original goes on as PASSTHROUGH)

Whether copies went on to destinations is kept per destination (ForwardState), not here.
"""

from __future__ import annotations

from enum import StrEnum

from gateway.errors import IntegrityError


class State(StrEnum):
    """How far the proof of an instance has come."""

    RECEIVED = "RECEIVED"  # bytes and row are durable
    CANDIDATE = "CANDIDATE"  # an archive object exists, unproven
    VERIFIED = "VERIFIED"  # another process rebuilt the received file from it
    ARCHIVED = "ARCHIVED"  # it is in the archive and was read back
    RELEASED = "RELEASED"  # the spool's copy is gone


class Form(StrEnum):
    """What the archive object holds."""

    CODED = "CODED"  # pixels by the codec, all else sealed beside
    PASSTHROUGH = "PASSTHROUGH"  # the received file, whole, sealed


class ForwardState(StrEnum):
    """One instance on its way to one destination."""

    WAITING = "WAITING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"  # the destination answered for it by storage commitment (PS3.4 J)
    DEAD = "DEAD"  # permanent, or out of attempts: waits for a replay by a person


class CommitmentState(StrEnum):
    """One storage commitment transaction: asked of us (WAITING to REPORTED, or DEAD) or by us (ASKED to the end)."""

    WAITING = "WAITING"  # some of its objects are not safe yet
    READY = "READY"  # the answer is known and must be told
    REPORTED = "REPORTED"  # the requester has acknowledged it
    DEAD = "DEAD"  # the requester could not be told: waits for a replay by a person
    ASKED = "ASKED"
    ANSWERED = "ANSWERED"
    EXPIRED = "EXPIRED"  # no answer in time; asked again under another UID
    REFUSED = "REFUSED"  # the request did not get through


TRANSITIONS: dict[State, frozenset[State]] = {
    # a repeated CANDIDATE is a retry that replaced an unproven object, e.g. by PASSTHROUGH
    State.RECEIVED: frozenset({State.CANDIDATE}),
    State.CANDIDATE: frozenset({State.CANDIDATE, State.VERIFIED, State.RECEIVED}),
    State.VERIFIED: frozenset({State.ARCHIVED, State.CANDIDATE, State.RECEIVED}),
    State.ARCHIVED: frozenset({State.RELEASED}),
    State.RELEASED: frozenset(),
}

DELIVERED: frozenset[ForwardState] = frozenset({ForwardState.SENT, ForwardState.COMMITTED})
"""States in which the destination has the object."""

UNFINISHED: frozenset[State] = frozenset({State.RECEIVED, State.CANDIDATE, State.VERIFIED})
"""States in which a worker still has something to do."""


def check_transition(old: State, new: State) -> None:
    """Raise IntegrityError ``illegal-transition`` unless the table allows old -> new."""
    if new not in TRANSITIONS[old]:
        raise IntegrityError("illegal-transition", f"an instance cannot go from {old} to {new}")
