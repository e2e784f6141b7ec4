"""C-STORE statuses and what they mean for a delivery; STOW-RS reports the same numbers (PS3.18 10.5.3.2)."""

from __future__ import annotations

from worker.sender import Delivery, Outcome

__all__ = ["classify_status"]

#: C-STORE statuses by their class (PS3.4 B.2.3, PS3.7 C): the first match decides.  Coercion of elements (B000) and
#: B007 are deliveries with a remark; discarded elements (B006) are none: the payload is an element.
STATUS_CLASSES: tuple[tuple[range, Outcome, str], ...] = (
    (range(0x0000, 0x0001), "done", "stored"),
    (range(0xB006, 0xB007), "permanent", "element-discarded"),
    (range(0xB000, 0xC000), "done", "stored-with-warning"),
    (range(0xA700, 0xA800), "retry", "peer-out-of-resources"),
    (range(0xA900, 0xAA00), "permanent", "peer-dataset-mismatch"),
    (range(0xC000, 0xD000), "permanent", "peer-cannot-understand"),
    (range(0x0122, 0x0123), "permanent", "peer-sop-class-not-supported"),
    (range(0x0117, 0x0118), "permanent", "peer-invalid-instance"),
    (range(0x0000, 0x10000), "retry", "peer-failure"),
)


def classify_status(status: int | None) -> Delivery:
    """The delivery that a C-STORE response status means; None: no answer before the connection ended."""
    if status is None:
        return Delivery("down", "no-response")
    for codes, outcome, reason in STATUS_CLASSES:
        if status in codes:
            return Delivery(outcome, reason)
    return Delivery("retry", "peer-failure")
