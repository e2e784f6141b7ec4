"""A sending PACS, asked over DIMSE as Study Root SCU: which studies and instances it has, and to send some to us."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind as FIND,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelMove as MOVE,
)

from gateway.destination import Node
from gateway.errors import BadUID, NotFound, Unavailable
from gateway.settings import Settings
from gateway.tls import client_context
from gateway.uids import parse_uid

__all__ = ["Moved", "Pacs", "pacs_of"]

PENDING: Final = (0xFF00, 0xFF01)
SUCCESS: Final = 0x0000


@dataclass(frozen=True, slots=True)
class Moved:
    """Sub-operations of one C-MOVE (PS3.7 9.1.4.1): completed ones, warnings included, and failed ones."""

    completed: int
    failed: int


def pacs_of(settings: Settings, name: str) -> Pacs:
    """The PACS of that name among the destinations. Raises NotFound ``unknown-destination``, ``no-dicom-node``."""
    found = settings.destination(name)
    if found is None:
        known = ", ".join(each.name for each in settings.destinations) or "none"
        raise NotFound("unknown-destination", f"no destination '{name}' is configured; there are: {known}")
    node = found if found.kind == "dicom" else found.dimse
    if node is None:
        raise NotFound("no-dicom-node", f"'{name}' is no DICOM node, and has no `dimse` entry")
    tls = client_context(settings, found) if found.kind == "dicom" and found.tls else None
    return Pacs(name, node, settings.ae_title, settings.network_timeout_seconds, tls)


class Pacs:
    """One association, opened by `with` and again whenever it was lost. timeout: seconds between two messages."""

    def __init__(self, name: str, node: Node, ae_title: str, timeout: float, tls: Any = None) -> None:
        self.name = name
        self._node, self._ae_title, self._tls = node, ae_title, tls
        self._ae = AE(ae_title=ae_title)
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = timeout
        self._ae.connection_timeout = min(timeout, 10.0)
        self._association: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._association is not None and self._association.is_established:
            self._association.release()

    def studies(self, date: str) -> list[str]:
        """Study Instance UIDs of a Study Date or range (PS3.4 C.2.2.2.5), each once, in the order of the answer."""
        answers = self._find("STUDY", StudyDate=date, StudyInstanceUID="")
        return list(dict.fromkeys(_uids(answers, "StudyInstanceUID")))

    def instances(self, study: str) -> set[str]:
        """SOP Instance UIDs of a study, asked series by series: a baseline SCP must not be asked otherwise."""
        series = list(_uids(self._find("SERIES", StudyInstanceUID=study, SeriesInstanceUID=""), "SeriesInstanceUID"))
        found: set[str] = set()
        for uid in dict.fromkeys(series):
            keys = {"StudyInstanceUID": study, "SeriesInstanceUID": uid, "SOPInstanceUID": ""}
            found |= set(_uids(self._find("IMAGE", **keys), "SOPInstanceUID"))
        return found

    def move(self, study: str) -> Moved:
        """Have a study sent to our own listener, under our AE title. Raises Unavailable ``pacs-refused``."""
        association = self._open()
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study
        try:
            statuses = [status for status, _ in association.send_c_move(query, self._ae_title, MOVE)]
        except (RuntimeError, ValueError) as error:
            raise _lost(self.name, type(error).__name__) from None
        if not statuses or "Status" not in (status := statuses[-1]):
            raise _lost(self.name, "no answer")
        completed = _number(status, "NumberOfCompletedSuboperations") + _number(status, "NumberOfWarningSuboperations")
        failed = _number(status, "NumberOfFailedSuboperations")
        if status.Status != SUCCESS and not completed:
            raise Unavailable(
                "pacs-refused",
                f"'{self.name}' refused C-MOVE with status {status.Status:#06x}: does it know {self._ae_title} and our "
                "address?",
            )
        return Moved(completed, failed)

    def _find(self, level: str, **keys: str) -> Sequence[Dataset]:
        association = self._open()
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        found = []
        status: Any = Dataset()
        try:
            for status, identifier in association.send_c_find(query, FIND):
                if "Status" in status and status.Status in PENDING and identifier is not None:
                    found.append(identifier)
        except (RuntimeError, ValueError) as error:
            raise _lost(self.name, type(error).__name__) from None
        if "Status" not in status:
            raise _lost(self.name, "no answer")
        if status.Status != SUCCESS:  # half an answer must not count as evidence
            raise Unavailable("pacs-refused", f"'{self.name}' ended C-FIND with status {status.Status:#06x}")
        return found

    def _open(self) -> Any:
        if self._association is not None and self._association.is_established:
            return self._association
        association = self._ae.associate(
            self._node.host,
            self._node.port,
            contexts=[build_context(FIND), build_context(MOVE)],
            ae_title=self._node.ae_title,
            tls_args=(self._tls, self._node.host) if self._tls is not None else None,
        )
        if not association.is_established:
            why = "rejects us" if association.is_rejected else "does not answer"
            raise Unavailable("pacs-unreachable", f"{self._node.ae_title} at {self._node.host}:{self._node.port} {why}")
        self._association = association
        return association


def _uids(answers: Sequence[Dataset], keyword: str) -> Iterator[str]:
    for each in answers:
        try:
            yield str(parse_uid(str(each.get(keyword, "") or ""), keyword))
        except BadUID:
            raise Unavailable("pacs-bad-answer", f"an answer of the PACS has no {keyword}") from None


def _number(status: Dataset, keyword: str) -> int:
    return int(status.get(keyword) or 0)


def _lost(name: str, why: str) -> Unavailable:
    return Unavailable("pacs-lost", f"the association with '{name}' was lost ({why}); run it again")
