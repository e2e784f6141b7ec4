"""Storage commitment as SCU (PS3.4 J): one association on which a DICOM node is asked for its word."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from ssl import SSLContext
from types import TracebackType
from typing import Any, Final, Self

from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association

from gateway.commitment import PUSH_MODEL, REQUEST, WELL_KNOWN
from gateway.index_commitment_out import Asking
from gateway.settings import Destination
from worker.forward import bound_silence

__all__ = ["CommitmentUser"]

SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
SUCCESS: Final = 0x0000


class CommitmentUser:
    """One association with a destination; what it answers on it is handed to `hear` in another thread."""

    def __init__(
        self,
        destination: Destination,
        *,
        calling_ae: str,
        timeout: float,
        hear: Callable[[int, Any], int],
        tls: SSLContext | None = None,
    ) -> None:
        """hear: Event Type ID and Event Information (a data set) -> status of the N-EVENT-REPORT response."""
        self._destination = destination
        self._tls = tls
        self._hear = hear
        self._answered = threading.Semaphore(0)
        self._association: Association | None = None
        self._ae = AE(ae_title=calling_ae)
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = timeout
        self._ae.connection_timeout = min(timeout, 10.0)
        self._ae.add_requested_context(PUSH_MODEL, list(SYNTAXES))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._association is not None and self._association.is_established:
            self._association.release()

    def open(self) -> str:
        """'' with an association that takes commitment; 'unreachable', 'association-rejected', or
        'commitment-unsupported' where the peer is there and does not offer it.
        """
        association = self._ae.associate(
            self._destination.host,
            self._destination.port,
            ae_title=self._destination.ae_title,
            ext_neg=[build_role(PUSH_MODEL, scu_role=True)],
            evt_handlers=[
                (evt.EVT_N_EVENT_REPORT, self._report),
                (evt.EVT_CONN_OPEN, bound_silence, [self._ae.network_timeout]),
            ],
            tls_args=(self._tls, self._destination.host) if self._tls is not None else None,
        )
        if association.is_established:
            self._association = association
            return ""
        if association.is_rejected:
            return "association-rejected"
        return "commitment-unsupported" if association.rejected_contexts else "unreachable"

    def ask(self, asking: Asking) -> str:
        """N-ACTION. '' for Success, else a machine word: 'association-lost', 'no-response', 'ask-status-xxxx'."""
        association = self._association
        if association is None or not association.is_established:
            return "association-lost"
        try:
            status, _ = association.send_n_action(action_information(asking), REQUEST, PUSH_MODEL, WELL_KNOWN)
        except RuntimeError:  # ended between two requests
            return "association-lost"
        except ValueError:
            return "commitment-unsupported"
        if "Status" not in status:
            return "no-response"
        return "" if status.Status == SUCCESS else f"ask-status-{status.Status:04x}"

    def wait(self, answers: int, seconds: float) -> None:
        """Leave the association open for so many answers, or for that long: many peers answer at once."""
        deadline = time.monotonic() + seconds
        for _ in range(answers):
            left = deadline - time.monotonic()
            if left <= 0 or not self._answered.acquire(timeout=left):
                return

    def _report(self, event: Any) -> tuple[int, None]:
        if str(event.request.AffectedSOPInstanceUID) != WELL_KNOWN:
            return 0x0112, None
        status = self._hear(event.event_type, event.event_information)
        self._answered.release()
        return status, None


def action_information(asking: Asking) -> Dataset:
    """Action Information of a request (PS3.4 table J.3-1)."""
    dataset = Dataset()
    dataset.TransactionUID = asking.uid
    dataset.ReferencedSOPSequence = []
    for sop_class, sop_uid in asking.references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = sop_uid
        dataset.ReferencedSOPSequence.append(item)
    return dataset
