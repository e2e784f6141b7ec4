"""Asking destinations for their word on what they were sent, where `commitment = true` asks for it.

A forward stays SENT, and its source in the spool, until the destination's N-EVENT-REPORT names its object: on the
association of the request, or on one that it opens to our listener (service/listener_commitment.py).
"""

from __future__ import annotations

import uuid
from typing import Any

from gateway.bootstrap import Gateway
from gateway.commitment import PROCESSING_FAILURE, read_answer
from gateway.errors import PalimpsestError
from gateway.settings import Destination
from worker.forward_commitment import CommitmentUser
from worker.leases import backoff_seconds
from worker.sender import tls_context

__all__ = ["ask_for_commitment"]

BATCH = 500  # references of one request: far below what peers take in one message
REQUESTS = 20  # on one association; the rest is asked for next time
ANSWER_WAIT_SECONDS = 2.0
UNANSWERABLE = 0x0115  # invalid argument value (PS3.7 C.4.2)
#: The peer did not refuse anything: it could not be asked, and that is no asking.
UNASKED = frozenset({"association-lost", "unreachable", "association-rejected"})


def ask_for_commitment(gw: Gateway, destination: Destination) -> int:
    """Ask for everything that is due at a destination; returns how many requests it accepted. One asks at a time: the
    destination's lock is held. Raises Unavailable (TLS files, database).
    """
    if not destination.commitment or destination.name not in gw.index.commitments_to_ask(0.0):
        return 0
    settings = gw.settings
    user = CommitmentUser(
        destination,
        calling_ae=settings.ae_title,
        timeout=settings.network_timeout_seconds,
        hear=lambda kind, information: hear(gw, destination, kind, information),
        tls=tls_context(settings, destination),
    )
    with user:
        problem = user.open()
        if problem in UNASKED:  # all stays due, and the sweep comes back
            _tell_if_long(gw, destination, problem)
            return 0
        accepted = 0
        for _ in range(REQUESTS):
            asking = gw.index.commitment_open(
                destination.name,
                f"2.25.{uuid.uuid4().int}",
                limit=BATCH,
                answer_seconds=settings.commitment_answer_seconds,
                most=settings.commitment_max_askings,
            )
            if asking is None:
                break
            if problem := problem or user.ask(asking):
                due_at = gw.index.now() + backoff_seconds(4)
                gw.index.commitment_refused(asking.id, problem, due_at, asked=problem not in UNASKED)
                break
            accepted += 1
        user.wait(accepted, ANSWER_WAIT_SECONDS)
    return accepted


def _tell_if_long(gw: Gateway, destination: Destination, problem: str) -> None:
    since = gw.index.commitment_since(destination.name)
    if since is not None and gw.index.now() - since > gw.settings.commitment_answer_seconds:
        message = f"{destination.name} cannot be asked for commitment to what it was sent ({problem}); it goes on"
        gw.index.alert_raise("commitment-unasked", destination.name, message, "warning")


def hear(gw: Gateway, destination: Destination, kind: int, information: Any) -> int:
    """An answer on the association of the request; the status of the response."""
    if kind not in (1, 2):
        return 0x0113
    try:
        answer = read_answer(information)
        known = gw.index.commitment_answered(
            (destination.name,), answer.uid, answer.kept, answer.failed, most=gw.settings.commitment_max_askings
        )
    except PalimpsestError as error:
        return error.dimse_status if error.dimse_status == UNANSWERABLE else PROCESSING_FAILURE
    return 0x0000 if known else UNANSWERABLE
