"""What every way to a destination has in common: what is sent, what became of it, and which kind is which.

A sender answers with a `Delivery`, never with an exception for what a peer does: the peer's behaviour is data here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from types import TracebackType
from typing import Literal, Protocol, Self

from gateway.settings import Destination, Settings

__all__ = ["Delivery", "NotReached", "Outcome", "Sender", "open_sender"]

Outcome = Literal["done", "retry", "down", "permanent"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one object at one destination.

    outcome: done | retry (the object may be tried again) | down (the destination itself is out of reach) | permanent.
    reason: a machine word. after: seconds that the destination asked to be left alone (Retry-After), 0 for none.
    """

    outcome: Outcome
    reason: str
    after: float = 0.0


class NotReached(Exception):
    """A destination could not be asked something before anything was sent; `delivery` says what that means."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(delivery.reason)
        self.delivery = delivery


class Sender(Protocol):
    """One open way to one destination."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def accepts(self, sop_class: str, syntaxes: Sequence[str]) -> Sequence[str]:
        """Those transfer syntaxes that the destination says it takes, in their order; all where it cannot be asked.

        Raises NotReached.
        """
        ...

    def send(self, name: str, part10: bytes) -> Delivery:
        """Deliver one Part 10 file; `name` is its archive key, or has the form of one."""
        ...


def open_sender(settings: Settings, destination: Destination) -> Sender:
    """The sender for a destination's kind; opens nothing yet, and loads no other kind's library."""
    kinds: dict[str, Callable[[Settings, Destination], Sender]] = {
        "dicom": _dicom, "stow": _stow, "s3": _s3, "filesystem": _folder
    }  # fmt: skip
    return kinds[destination.kind](settings, destination)


def _dicom(settings: Settings, destination: Destination) -> Sender:
    from worker.forward import DicomSender

    return DicomSender(
        destination,
        calling_ae=settings.ae_title,
        timeout=settings.network_timeout_seconds,
        folder=settings.run_dir,
        tls=tls_context(settings, destination),
    )


def tls_context(settings: Settings, destination: Destination) -> SSLContext | None:
    """The TLS context for DIMSE to a destination, None without TLS. Raises Unavailable for unreadable files."""
    if not destination.tls:
        return None
    from gateway.tls import client_context

    return client_context(settings, destination)


def _stow(settings: Settings, destination: Destination) -> Sender:
    from worker.forward_stow import StowSender

    return StowSender(settings, destination)


def _s3(settings: Settings, destination: Destination) -> Sender:
    from worker.forward_s3 import S3Sender

    return S3Sender(settings, destination)


def _folder(settings: Settings, destination: Destination) -> Sender:
    from worker.forward_folder import FolderSender

    return FolderSender(destination)
