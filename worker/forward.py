"""Delivery to a DICOM node: C-STORE over a kept association."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from gateway.part10 import peek
from gateway.settings import Destination
from worker.forward_status import classify_status
from worker.sender import Delivery, NotReached

__all__ = ["DicomSender", "bound_silence"]

EXPLICIT_LE = "1.2.840.10008.1.2.1"
SENDING = "sending-"  # temporary files begin so; after a kill the sweep finds them by it
MAX_CONTEXTS = 128  # in one association (PS3.8 9.3.2.2: odd numbers from 1 to 255)
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"  # Raw Data Storage, the envelope's SOP class


def bound_silence(event: Any, seconds: float) -> None:
    """A connection that we opened: give it up when the peer falls silent in the middle of a PDU.

    pynetdicom reads without a timeout there, and whoever then aborts waits for that read.
    """
    event.assoc.dul.socket.socket.settimeout(seconds)


class DicomSender:
    """C-STORE SCU (PS3.4 B): one association, kept open over a batch, opened again when the peer dropped it.

    What is proposed: Raw Data, for envelopes, and every SOP class and syntax of what was sent so far. A file of another
    one ends the association, and a new one proposes it, too.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        calling_ae: str,
        timeout: float,
        folder: Path,
        tls: SSLContext | None = None,
    ) -> None:
        self._destination = destination
        self._tls = tls
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

    def _propose(self, pairs: set[tuple[str, str]]) -> None:
        """Have the association propose these; one that does not is released."""
        if pairs <= self._proposed:
            return
        self._release()
        if len(self._proposed | pairs) > MAX_CONTEXTS:
            self._proposed = set()
        self._proposed |= pairs
        self._ae.requested_contexts = [build_context(*pair) for pair in sorted(self._proposed)]

    def accepts(self, sop_class: str, syntaxes: Sequence[str]) -> Sequence[str]:
        """Those that the peer accepts for the class; one context each, so that its choice is no mixture. NotReached."""
        self._propose({(sop_class, syntax) for syntax in syntaxes})
        association = self._associate()
        if isinstance(association, Delivery):
            if association.outcome == "permanent":
                return ()
            raise NotReached(association)
        taken = {
            syntax
            for context in association.accepted_contexts
            if context.abstract_syntax == sop_class
            for syntax in map(str, context.transfer_syntax)
        }
        return [syntax for syntax in syntaxes if syntax in taken]

    def _associate(self) -> Delivery | Association:
        if self._association is not None and self._association.is_established:
            return self._association
        association = self._ae.associate(
            self._destination.host,
            self._destination.port,
            ae_title=self._destination.ae_title,
            evt_handlers=[(evt.EVT_CONN_OPEN, bound_silence, [self._ae.network_timeout])],
            tls_args=(self._tls, self._destination.host) if self._tls is not None else None,
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
        self._propose({(str(found.sop_class_uid), found.transfer_syntax)})
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
