"""Delivery to a DICOMweb service: STOW-RS (PS3.18 10.5), its answer read to the instance.

A status alone proves nothing: what counts is that the answer names our instance, or that the object comes back equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from gateway.part10 import Peek, peek
from gateway.settings import Destination, Settings
from worker.compare import same_object
from worker.dicomweb_peer import Answer, DicomWebPeer, PeerError
from worker.forward_status import classify_status
from worker.sender import Delivery, Outcome

__all__ = ["StowSender", "classify_http"]

REFERENCED, FAILED = "00081199", "00081198"
INSTANCE, FAILURE_REASON, WARNING_REASON = "00081155", "00081197", "00081196"
DUPLICATE: Final = frozenset({0x0111, 45070, 45071})  # PS3.7 C.5; what Microsoft's and Google's services say for it

#: HTTP statuses that say nothing of one instance. down: the place is wrong, busy or locked, whatever is sent there.
HTTP_CLASSES: Final[dict[int, tuple[Outcome, str]]] = {
    400: ("permanent", "peer-bad-request"),
    401: ("down", "unauthorized"),
    403: ("down", "forbidden"),
    404: ("down", "no-stow-service"),
    405: ("down", "no-stow-service"),
    406: ("permanent", "media-type-refused"),
    408: ("retry", "timeout"),
    411: ("permanent", "length-required"),
    413: ("permanent", "too-large-for-peer"),
    415: ("permanent", "media-type-refused"),
    429: ("down", "too-many-requests"),
    500: ("retry", "peer-failure"),
    501: ("down", "no-stow-service"),
    502: ("down", "bad-gateway"),
    503: ("down", "peer-unavailable"),
    504: ("down", "gateway-timeout"),
    507: ("down", "peer-out-of-resources"),
}


def classify_http(status: int, after: float = 0.0) -> Delivery:
    """The delivery that an HTTP status without a word on our instance means (2xx and 409 are read further)."""
    if status in HTTP_CLASSES:
        return Delivery(*HTTP_CLASSES[status], after)
    if 300 <= status < 400:
        return Delivery("down", "redirected")
    if 400 <= status < 500:
        return Delivery("permanent", f"http-{status}")
    return Delivery("retry", f"http-{status}", after)


class StowSender:
    """One service. Each object is one request, for it is one row, with its own attempts and its own end."""

    def __init__(self, settings: Settings, destination: Destination) -> None:
        """Raises Unavailable when a credential cannot be read."""
        self._peer = DicomWebPeer(destination, settings.network_timeout_seconds)
        self._read_back = destination.read_back

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._peer.__exit__(kind, error, trace)

    def accepts(self, sop_class: str, syntaxes: Sequence[str]) -> Sequence[str]:
        """All: STOW-RS has no negotiation; the probe says what a service really keeps."""
        return syntaxes

    def send(self, name: str, part10: bytes) -> Delivery:
        """Store one object; `name` is not used: the service names by UID. Raises InvalidInstance for no Part 10."""
        found = peek(part10)
        try:
            delivery = self._settled(found, self._peer.store(part10), part10)
            if delivery.outcome == "done" and self._read_back and delivery.reason != "read-back":
                delivery = self._compared(found, part10, Delivery("retry", "read-back-missing"))
        except PeerError as error:
            return Delivery("down" if error.down else "retry", error.reason, error.after)
        return delivery

    def _settled(self, found: Peek, answer: Answer, part10: bytes) -> Delivery:
        if not (200 <= answer.status < 300 or answer.status == 409):
            return classify_http(answer.status, answer.after)
        document = answer.document or {}
        failed = _item(document, FAILED, found.sop_instance_uid)
        if failed is not None:
            reason = _number(failed, FAILURE_REASON)
            if reason in DUPLICATE:
                return self._compared(found, part10, Delivery("permanent", "other-object-there"))
            return classify_status(reason) if reason is not None else Delivery("retry", "peer-failure")
        stored = _item(document, REFERENCED, found.sop_instance_uid)
        if stored is not None:
            return classify_status(_number(stored, WARNING_REASON) or 0)
        if answer.status == 409:
            return Delivery("permanent", "peer-refused")
        return self._compared(found, part10, Delivery("retry", "not-confirmed"))

    def _compared(self, found: Peek, part10: bytes, otherwise: Delivery) -> Delivery:
        """Fetch the object, for the peer's word is not enough. otherwise: what it means if it is missing or differs."""
        try:
            back = self._peer.fetch(found, len(part10))
        except PeerError as error:
            if error.down:
                raise
            return otherwise
        return Delivery("done", "read-back") if same_object(part10, back) else otherwise


def _item(document: Mapping[str, Any], sequence: str, uid: str) -> Mapping[str, Any] | None:
    """The item of Referenced or Failed SOP Sequence that names our instance (PS3.18 10.5.3.2, F.2)."""
    items = document.get(sequence, {})
    for item in items.get("Value", ()) if isinstance(items, dict) else ():
        if isinstance(item, dict) and uid in _values(item, INSTANCE):
            return item
    return None


def _values(item: Mapping[str, Any], tag: str) -> Sequence[Any]:
    element = item.get(tag, {})
    values = element.get("Value", ()) if isinstance(element, dict) else ()
    return values if isinstance(values, list) else ()


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    values = _values(item, tag)
    return values[0] if values and type(values[0]) is int else None
