"""Asking a DICOM node for what it was sent: C-GET, C-FIND, and C-MOVE to ourselves (PS3.4 C.4), one instance each."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind as FIND,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelGet as GET,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelMove as MOVE,
)
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from gateway.destination import Node
from gateway.part10 import EXPLICIT_LE, IMPLICIT_LE
from worker.canaries import Canary

__all__ = ["DimseReader", "NotOffered"]

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)


class NotOffered(Exception):
    """The node does not do this at all; the text is a machine word."""


@dataclass
class DimseReader:
    """One node, asked object by object: an association that breaks over one must not cost the next.

    receive: (AE title, port) under which the node knows us and may send by C-MOVE; None: it cannot.
    """

    node: Node
    calling_ae: str
    timeout: float
    tls: SSLContext | None = None
    receive: tuple[str, int] | None = None
    _received: dict[str, bytes] = field(default_factory=dict)
    _arrived: threading.Event = field(default_factory=threading.Event)

    def peer(self) -> str:
        """What the node calls itself, by C-ECHO; '' if it does not say or answer."""
        try:
            association = self._associate([build_context(Verification)], [])
        except NotOffered:
            return ""
        if association is None:
            return ""
        acceptor = association.acceptor
        name = f"{acceptor.implementation_version_name or ''} {acceptor.implementation_class_uid or ''}".strip()
        association.release()
        return name

    def find(self, canary: Canary) -> bool:
        """Whether C-FIND knows the instance. Raises NotOffered."""
        association = self._query(FIND, [], [])
        query = _query(canary)
        with self._released(association):
            answers = [identifier for _, identifier in association.send_c_find(query, FIND) if identifier is not None]
        return any(str(each.get("SOPInstanceUID", "")) == canary.uid for each in answers)

    def get(self, canary: Canary) -> bytes | None:
        """The object by C-GET as Part 10, None if it does not come. Raises NotOffered."""
        kept: dict[str, bytes] = {}

        def store(event: Event) -> int:
            kept[str(event.request.AffectedSOPInstanceUID)] = _part10(event)
            return SUCCESS

        storage = _storage(canary)
        roles = [build_role(canary.sop_class, scp_role=True)]
        association = self._query(GET, storage, roles, [(evt.EVT_C_STORE, store)])
        with self._released(association):
            for _ in association.send_c_get(_query(canary), GET):
                pass
        return kept.get(canary.uid)

    def move(self, canary: Canary) -> bytes | None:
        """The object by C-MOVE to ourselves, None if it does not come. Raises NotOffered."""
        if self.receive is None:
            raise NotOffered("not-asked-for")
        association = self._query(MOVE, [], [])
        self._arrived.clear()
        with self._released(association):
            for _ in association.send_c_move(_query(canary), self.receive[0], MOVE):
                pass
        if canary.uid not in self._received:
            self._arrived.wait(1.0)
        return self._received.get(canary.uid)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this runs, C-MOVE may send to us, if a port was given. Raises OSError if it is taken."""
        if self.receive is None:
            yield
            return
        ae = AE(ae_title=self.receive[0])
        ae.supported_contexts = []
        for sop_class, syntaxes in _all_storage():
            ae.add_supported_context(sop_class, syntaxes)
        server: Any = ae.start_server(("", self.receive[1]), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)])
        try:
            yield
        finally:
            server.shutdown()

    def _keep(self, event: Event) -> int:
        self._received[str(event.request.AffectedSOPInstanceUID)] = _part10(event)
        self._arrived.set()
        return SUCCESS

    def _query(self, model: str, storage: list[Any], roles: list[Any], handlers: Any = ()) -> Association:
        association = self._associate([build_context(model), *storage], roles, handlers)
        if association is None:
            raise NotOffered("no-association")
        if not any(context.abstract_syntax == model for context in association.accepted_contexts):
            association.release()
            raise NotOffered("not-offered")
        return association

    def _associate(self, contexts: list[Any], roles: list[Any], handlers: Any = ()) -> Association | None:
        ae = AE(ae_title=self.calling_ae)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = self.timeout
        ae.connection_timeout = min(self.timeout, 10.0)
        association = ae.associate(
            self.node.host,
            self.node.port,
            contexts=contexts,
            ae_title=self.node.ae_title,
            ext_neg=roles,
            evt_handlers=list(handlers),
            tls_args=(self.tls, self.node.host) if self.tls is not None else None,
        )
        if not association.is_established and association.rejected_contexts:
            raise NotOffered("not-offered")
        return association if association.is_established else None

    @contextmanager
    def _released(self, association: Association) -> Iterator[None]:
        """What a peer's odd answer raises in pynetdicom counts as an object that did not come."""
        with suppress(RuntimeError, ValueError, AttributeError):
            yield
        if association.is_established:
            association.release()


def _query(canary: Canary) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID, query.SeriesInstanceUID = canary.study, canary.series
    query.SOPInstanceUID = canary.uid
    return query


def _storage(canary: Canary) -> list[Any]:
    """The canary's own syntax, and what a peer that decompresses would send; each in a context of its own."""
    syntaxes = dict.fromkeys((canary.syntax, EXPLICIT_LE, IMPLICIT_LE))
    return [build_context(canary.sop_class, syntax) for syntax in syntaxes]


def _all_storage() -> Iterator[tuple[str, list[str]]]:
    from gateway.probe_result import RAW_DATA
    from worker.canaries import CLASSES, SYNTAX_NAMES

    for sop_class in (RAW_DATA, *CLASSES.values()):
        yield sop_class, list(SYNTAX_NAMES)


def _part10(event: Event) -> bytes:
    """What was received as a file; not by `event.encoded_dataset`, which wants syntaxes that pydicom knows."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = event.request.AffectedSOPClassUID
    meta.MediaStorageSOPInstanceUID = event.request.AffectedSOPInstanceUID
    meta.TransferSyntaxUID = event.context.transfer_syntax
    meta.ImplementationClassUID = "2.25.1"
    out = io.BytesIO(b"\0" * 128 + b"DICM")
    out.seek(132)
    write_file_meta_info(out, meta, enforce_standard=True)
    return out.getvalue() + event.request.DataSet.getvalue()
