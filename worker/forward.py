"""How one object travels to one destination: C-STORE over a kept association, or a file in a folder.

A sender answers with a `Delivery`, never with an exception for what a peer does: the peer's behaviour is data here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from gateway.part10 import peek
from gateway.settings import Destination, Settings

__all__ = ["Delivery", "DicomSender", "FolderSender", "Sender", "open_sender"]

EXPLICIT_LE = "1.2.840.10008.1.2.1"
SENDING = "sending-"  # temporary files begin so; after a kill the sweep finds them by it
MAX_CONTEXTS = 128  # in one association (PS3.8 9.3.2.2: odd numbers from 1 to 255)
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"  # Raw Data Storage, the envelope's SOP class

#: C-STORE statuses by their class (PS3.4 B.2.3, PS3.7 C): the first match decides.  Coercion of elements (B000) and
#: B007 are deliveries with a remark; discarded elements (B006) are none: the payload is an element.
STATUS_CLASSES: tuple[tuple[range, Literal["done", "retry", "permanent"], str], ...] = (
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


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one object at one destination.

    outcome: done | retry (the object may be tried again) | down (the destination itself is out of reach) | permanent.
    reason: a machine word.
    """

    outcome: Literal["done", "retry", "down", "permanent"]
    reason: str


def classify_status(status: int | None) -> Delivery:
    """The delivery that a C-STORE response status means; None: no answer before the connection ended."""
    if status is None:
        return Delivery("down", "no-response")
    for codes, outcome, reason in STATUS_CLASSES:
        if status in codes:
            return Delivery(outcome, reason)
    return Delivery("retry", "peer-failure")


class Sender(Protocol):
    """One open way to one destination."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def send(self, name: str, part10: bytes) -> Delivery:
        """Deliver one Part 10 file; `name` is its archive key, or has the form of one."""
        ...


class DicomSender:
    """C-STORE SCU (PS3.4 B): one association, kept open over a batch, opened again when the peer dropped it.

    What is proposed: Raw Data, for envelopes, and every SOP class and syntax of what was sent so far. A file of another
    one ends the association, and a new one proposes it, too.
    """

    def __init__(self, destination: Destination, *, calling_ae: str, timeout: float, folder: Path) -> None:
        self._destination = destination
        self._folder = folder
        self._association: Association | None = None
        # send the encoded data set as it is: decoding and encoding again would be another file
        _config.STORE_SEND_CHUNKED_DATASET = True
        self._ae = AE(ae_title=calling_ae)
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = timeout
        self._ae.connection_timeout = min(timeout, 10.0)
        self._ae.maximum_pdu_size = 0
        self._proposed = {(RAW_DATA, EXPLICIT_LE)}
        self._ae.add_requested_context(RAW_DATA, EXPLICIT_LE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._association is not None and self._association.is_established:
            self._association.release()
        self._association = None

    def _propose(self, sop_class: str, syntax: str) -> None:
        """Have the association propose this pair; one that does not is released."""
        if (sop_class, syntax) in self._proposed:
            return
        self._release()
        if len(self._proposed) >= MAX_CONTEXTS:
            self._ae.requested_contexts = []
            self._proposed = set()
        self._proposed.add((sop_class, syntax))
        self._ae.requested_contexts = [build_context(*pair) for pair in sorted(self._proposed)]

    def _associate(self) -> Delivery | Association:
        if self._association is not None and self._association.is_established:
            return self._association
        association = self._ae.associate(
            self._destination.host, self._destination.port, ae_title=self._destination.ae_title
        )
        if association.is_established:
            self._association = association
            return association
        if association.is_rejected:
            return Delivery("down", "association-rejected")
        if association.rejected_contexts:  # the peer is there, and takes nothing of it: no retry will change that
            return Delivery("permanent", "no-presentation-context")
        return Delivery("down", "unreachable")

    def send(self, name: str, part10: bytes) -> Delivery:
        """C-STORE one file; `name` is not used: the peer names by UID. Raises InvalidInstance for no Part 10 file."""
        found = peek(part10)
        self._propose(str(found.sop_class_uid), found.transfer_syntax)
        association = self._associate()
        if isinstance(association, Delivery):
            return association
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=SENDING, suffix=".dcm") as file:
            file.write(part10)
            file.flush()
            try:
                response = association.send_c_store(file.name)
            except RuntimeError:  # the peer closed the association between two objects
                return Delivery("down", "association-lost")
            except ValueError:
                return Delivery("permanent", "no-presentation-context")
        return classify_status(response.Status if "Status" in response else None)


class FolderSender:
    """A folder, mounted from anywhere: written aside, fsynced, renamed, read back."""

    def __init__(self, destination: Destination) -> None:
        self._root = Path(destination.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def send(self, name: str, part10: bytes) -> Delivery:
        """Write one file as <path>/<name>; the same bytes again are a success, other bytes are refused."""
        target = self._root / name
        try:
            if not self._root.is_dir():
                return Delivery("down", "folder-missing")
            if target.exists():
                same = _digest(target) == sha256(part10).digest()
                return Delivery("done", "already-there") if same else Delivery("permanent", "other-bytes-there")
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(target, part10)
            if _digest(target) != sha256(part10).digest():
                return Delivery("retry", "read-back-differs")
        except OSError:
            return Delivery("down", "folder-io-error")
        return Delivery("done", "stored")


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        hasher = sha256()
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.digest()


def _write_durably(target: Path, data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".incoming-", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_sender(settings: Settings, destination: Destination) -> Sender:
    """The sender for a destination's kind; opens nothing yet."""
    kinds: dict[str, Callable[[], Sender]] = {
        "dicom": lambda: DicomSender(
            destination,
            calling_ae=settings.ae_title,
            timeout=settings.network_timeout_seconds,
            folder=settings.run_dir,
        ),
        "filesystem": lambda: FolderSender(destination),
    }
    return kinds[destination.kind]()
