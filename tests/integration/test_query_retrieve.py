"""C-FIND, C-MOVE and C-GET of the listener, asked by pynetdicom in this process and by DCMTK's programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.dimse_primitives import C_CANCEL
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation, SOPClassExtendedNegotiation

from gateway import audit
from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError, Unavailable
from gateway.index_rows import InstanceRow
from gateway.jobs import MemoryQueue
from gateway.part10 import read_meta
from gateway.settings import Destination, load_settings
from palimpsest.faultproxy import Fault, FaultProxy, In
from service import listener_exchange, listener_query, listener_retrieve
from service.listener import Listener
from service.listener_identifier import MODELS
from tests.fakes import incoming, part10
from tests.running import free_port, until
from worker.indexing import index_instance
from worker.retrieve import retrieve, retrieve_failure

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]

UIDS = {name: uid for uid, name in MODELS.items()}
STUDY_FIND, STUDY_MOVE, STUDY_GET = (UIDS[("study", name)] for name in ("find", "move", "get"))
PATIENT_FIND = UIDS[("patient", "find")]
CT, MR, SC, PRIVATE = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.7",
    "1.2.3.4.5",
)
PRIVATE_SYNTAX = "1.2.826.0.1.3680043.10.9999.2"
PENDING, SUCCESS, WARNING, CANCEL = 0xFF00, 0x0000, 0xB000, 0xFE00
Files = dict[str, bytes]


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(**overrides: Any) -> Gateway:
        settings = load_settings(home=tmp_path / "home", dicom_port=0, watermark_bytes=1, **overrides)
        queue = MemoryQueue()
        made.append(gateway := build(settings, queue=queue))

        def answer(instance_id: int, kind: str) -> dict[str, Any]:
            try:
                return retrieve(gateway, instance_id, kind)
            except PalimpsestError as error:
                return retrieve_failure(gateway, instance_id, error)

        queue.handlers["palimpsest.retrieve"] = answer
        return gateway

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Gateway], int]]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    running: list[Listener] = []

    def start(gateway: Gateway) -> int:
        running.append(Listener(gateway))
        running[-1].start()
        return running[-1].port

    yield start
    for listener in running:
        listener.stop(grace_seconds=0.2)


def store(gateway: Gateway, data: bytes) -> InstanceRow:
    """Take a file in and index it, without any process."""
    row = accept_instance(gateway, incoming(gateway, data), source="dimse", calling_ae="SENDER", priority=5).row
    index_instance(gateway, row.id)
    return gateway.index.get(row.id)


def packaged(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path).read_bytes()


def series(gateway: Gateway, count: int, study: str = "1.2.3.100") -> list[InstanceRow]:
    """Small images of one series."""
    return [store(gateway, part10(f"{study}.9.{n}", study=study, series=f"{study}.1")) for n in range(count)]


def keys(level: str, **values: Any) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def associate(port: int, *models: str, calling: str = "VIEWER", storage: Any = (), items: Any = (), **more: Any) -> Any:
    """An association for these models; storage: (SOP class, syntaxes) that we take by C-GET."""
    entity = AE(ae_title=calling)
    entity.dimse_timeout = entity.acse_timeout = 120
    for model in models:
        entity.add_requested_context(model, ExplicitVRLittleEndian)
    for sop_class, syntaxes in storage:
        entity.add_requested_context(sop_class, syntaxes)
    roles = [build_role(sop_class, scp_role=True) for sop_class in dict.fromkeys(s for s, _ in storage)]
    return entity.associate("127.0.0.1", port, ae_title="PALIMPSEST", ext_neg=[*roles, *items], **more)


def find(assoc: Any, model: str, query: Dataset) -> tuple[list[Dataset], Any]:
    """The matches and the final status."""
    answers = list(assoc.send_c_find(query, model))
    assert all(status.Status in (0xFF00, 0xFF01) for status, _ in answers[:-1])
    return [match for _, match in answers[:-1]], answers[-1][0]


def body(data: bytes) -> str:
    """Digest of a Part 10 file's data set."""
    return sha256(data[read_meta(data)[1] :]).hexdigest()


class Receiver:
    """Takes C-STOREs and keeps what came: SOP Instance UID -> (syntax, digest of the encoded data set)."""

    def __init__(self, status: int = SUCCESS, wait: Callable[[], object] = lambda: None) -> None:
        self.got: dict[str, tuple[str, str]] = {}
        self.originators: set[Any] = set()
        self.priorities: set[int] = set()
        self._status, self._wait = status, wait

    def on_store(self, event: Any) -> int:
        self._wait()
        data = event.encoded_dataset(include_meta=False)
        uid = str(event.request.AffectedSOPInstanceUID)
        self.got[uid] = (str(event.context.transfer_syntax), sha256(data).hexdigest())
        request = event.request
        self.originators.add((request.MoveOriginatorApplicationEntityTitle, request.MoveOriginatorMessageID))
        self.priorities.add(request.Priority)
        return self._status

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_C_STORE, self.on_store)]


def get(assoc: Any, query: Dataset, model: str = STUDY_GET) -> tuple[Dataset, Dataset | None, list[Dataset]]:
    """Final status, final identifier, and the Pending responses of a C-GET or (by a lambda) a C-MOVE."""
    answers = list(assoc.send_c_get(query, model))
    return answers[-1][0], answers[-1][1], [status for status, _ in answers[:-1]]


# --- C-FIND ---


def test_every_level_of_both_roots(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    rows = series(gateway, 3)
    ct = store(gateway, packaged("CT_small.dcm"))
    assoc = associate(listen(gateway), STUDY_FIND, PATIENT_FIND)
    query = keys("PATIENT", PatientID="", PatientName="compressed*", NumberOfPatientRelatedInstances="")
    (patient,), final = find(assoc, PATIENT_FIND, query)
    assert final.Status == SUCCESS and patient.PatientID == "1CT1" and patient.NumberOfPatientRelatedInstances == 1
    (study,), _ = find(assoc, PATIENT_FIND, keys("STUDY", PatientID="1CT1", StudyInstanceUID="", ModalitiesInStudy=""))
    assert (study.StudyInstanceUID, study.ModalitiesInStudy, study.RetrieveAETitle) == (
        ct.study_uid,
        "CT",
        "PALIMPSEST",
    )
    wanted = {"SeriesInstanceUID": "", "Modality": "", "NumberOfSeriesRelatedInstances": ""}
    (one,), _ = find(assoc, STUDY_FIND, keys("SERIES", StudyInstanceUID="1.2.3.100", **wanted))
    assert (one.SeriesInstanceUID, one.NumberOfSeriesRelatedInstances) == ("1.2.3.100.1", 3)
    above = {"StudyInstanceUID": "1.2.3.100", "SeriesInstanceUID": "1.2.3.100.1"}
    images, _ = find(assoc, STUDY_FIND, keys("IMAGE", **above, SOPInstanceUID="", Rows=None, InstanceNumber=""))
    assert [image.SOPInstanceUID for image in images] == [row.sop_uid for row in rows] and images[0].Rows == 8
    two = [row.sop_uid for row in rows[:2]]
    images, _ = find(assoc, STUDY_FIND, keys("IMAGE", **above, SOPInstanceUID=two))
    assert [image.SOPInstanceUID for image in images] == two
    assoc.release()
    events = [event for event in audit.tail(gateway.index) if event["event"] == "retrieved"]
    assert len(events) == 5 and {event["actor"] for event in events} == {"VIEWER"}
    assert events[0]["detail"]["kind"] == "search" and "compressed" not in str(events)


def test_a_query_that_the_model_does_not_allow_is_a900_and_the_association_lives(
    make_gateway: Any, listen: Any
) -> None:
    gateway = make_gateway()
    series(gateway, 1)
    assoc = associate(listen(gateway), STUDY_FIND, STUDY_MOVE)
    for query in (keys("PATIENT"), keys("SERIES"), keys("STUDY", Modality="CT"), keys("STUDY", StudyDate="yesterday")):
        found, final = find(assoc, STUDY_FIND, query)
        assert (found, final.Status) == ([], 0xA900) and final.ErrorComment
    (status, _), *_ = assoc.send_c_move(keys("STUDY", StudyInstanceUID="1.2"), "NOBODY", STUDY_MOVE)
    assert status.Status == 0xA801
    assert len(find(assoc, STUDY_FIND, keys("STUDY", StudyInstanceUID=""))[0]) == 1
    assoc.release()


def test_unsupported_keys_are_said_and_names_come_in_the_set_that_was_asked_in(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    dataset = dcmread(get_testdata_file("CT_small.dcm", download=False))
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "Müller^Jörg=穆勒"
    path = gateway.settings.home / "named.dcm"
    dataset.save_as(path)
    store(gateway, path.read_bytes())
    assoc = associate(listen(gateway), STUDY_FIND)
    answers = list(assoc.send_c_find(keys("STUDY", PatientName="muller*", InstitutionName=""), STUDY_FIND))
    assert [status.Status for status, _ in answers] == [0xFF01, SUCCESS]
    match = answers[0][1]
    assert match.SpecificCharacterSet == "ISO_IR 192" and match.PatientName == "Müller^Jörg=穆勒"
    assert "InstitutionName" not in match
    assoc.release()


def test_extended_negotiation(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    series(gateway, 1)
    offer = SOPClassExtendedNegotiation()
    offer.sop_class_uid, offer.service_class_application_information = STUDY_FIND, b"\x01\x01\x01\x01\x01"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 8
    assoc = associate(listen(gateway), STUDY_FIND, items=[offer, window])
    assert assoc.acceptor.sop_class_extended == {STUDY_FIND: b"\x01\x01\x01\x00\x00"}
    assert assoc.acceptor.asynchronous_operations == (1, 1)
    assert len(find(assoc, STUDY_FIND, keys("STUDY", Modality="CT"))[0]) == 1  # relational
    assert len(find(assoc, STUDY_FIND, keys("IMAGE", PatientName="jane d"))[0]) == 1  # fuzzy, relational
    assoc.release()


def test_more_matches_than_the_limit_are_said_not_hidden(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway(query_max_matches=2)
    for number in range(3):
        series(gateway, 1, study=f"1.2.3.{number}")
    assoc = associate(listen(gateway), STUDY_FIND)
    found, final = find(assoc, STUDY_FIND, keys("STUDY", StudyInstanceUID=""))
    assert (len(found), final.Status) == (2, 0xA700)
    assoc.release()


def test_a_query_is_cancelled(make_gateway: Any, listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_query, "BURST", 2)
    gateway = make_gateway()
    series(gateway, 40)
    assoc = associate(listen(gateway), STUDY_FIND)
    query = keys("IMAGE", StudyInstanceUID="1.2.3.100", SeriesInstanceUID="1.2.3.100.1")
    stale = assoc.send_c_find(query, STUDY_FIND, msg_id=7)  # a cancel of an earlier request with this id ends no other
    assert len(list(stale)) == 41
    cancel(assoc, 9)
    monkeypatch.setattr(listener_query, "PAUSE_SECONDS", 0.5)
    statuses = []
    for status, _ in assoc.send_c_find(query, STUDY_FIND, msg_id=9):
        statuses.append(status.Status)
        if len(statuses) == 2:
            cancel(assoc, 9)
    assert statuses[-1] == CANCEL and 3 <= len(statuses) < 41
    assoc.release()


def cancel(assoc: Any, message_id: int) -> None:
    request = C_CANCEL()
    request.MessageIDBeingRespondedTo = message_id
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)


def test_who_may_not_query_is_told_so(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway(query_ae_allow="DOCTOR")
    series(gateway, 1)
    port = listen(gateway)
    assoc = associate(port, STUDY_FIND)
    found, final = find(assoc, STUDY_FIND, keys("STUDY"))
    assert (found, final.Status) == ([], 0x0124)
    assoc.release()
    assert [event["event"] for event in audit.tail(gateway.index)].count("refused") == 1
    assoc = associate(port, STUDY_FIND, calling="DOCTOR")
    assert len(find(assoc, STUDY_FIND, keys("STUDY"))[0]) == 1
    assoc.release()


# --- C-GET ---


def test_objects_come_back_byte_for_byte(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    files = [packaged(name) for name in ("CT_small.dcm", "MR_small_RLE.dcm", "JPGExtended.dcm")]
    files.append(part10("1.2.3.7", sop_class=PRIVATE, syntax=PRIVATE_SYNTAX))
    rows = [store(gateway, data) for data in files]
    storage = [
        (CT, [ExplicitVRLittleEndian]),
        (MR, [RLELossless]),
        (SC, ["1.2.840.10008.1.2.4.51"]),
        (PRIVATE, [PRIVATE_SYNTAX]),
    ]  # noqa: E501
    receiver = Receiver()
    assoc = associate(listen(gateway), STUDY_GET, storage=storage, evt_handlers=receiver.handlers)
    for row in rows:
        final, identifier, _ = get(assoc, keys("STUDY", StudyInstanceUID=row.study_uid))
        assert (final.Status, final.NumberOfCompletedSuboperations, identifier) == (SUCCESS, 1, None)
    assoc.release()
    assert receiver.got == {
        row.sop_uid: (row.transfer_syntax, body(data)) for row, data in zip(rows, files, strict=True)
    }
    kinds = [event["detail"].get("source") for event in audit.tail(gateway.index) if event["event"] == "retrieved"]
    assert kinds == ["c-get"] * 4


def test_an_object_comes_in_a_syntax_that_the_peer_takes(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    row = store(gateway, packaged("MR_small_RLE.dcm"))
    expected = dcmread(get_testdata_file("MR_small.dcm", download=False)).pixel_array
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless):
        taken: list[Dataset] = []

        def keep(event: Any, taken: list[Dataset] = taken) -> int:
            taken.append(event.dataset)
            taken[-1].file_meta = event.file_meta
            return SUCCESS

        handlers = [(evt.EVT_C_STORE, keep)]
        assoc = associate(listen(gateway), STUDY_GET, storage=[(MR, [syntax])], evt_handlers=handlers)
        final, _, _ = get(assoc, keys("STUDY", StudyInstanceUID=row.study_uid))
        assoc.release()
        assert final.Status == SUCCESS and taken[0].file_meta.TransferSyntaxUID == syntax
        assert taken[0].SOPInstanceUID == row.sop_uid and (taken[0].pixel_array == expected).all()


def test_what_cannot_be_given_is_counted_and_named(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    study = "1.2.3.100"
    fine = [store(gateway, part10(f"{study}.9.{n}", study=study)) for n in range(2)]
    other = store(gateway, part10(f"{study}.8", study=study, sop_class=MR))  # no context for it
    damaged = store(gateway, part10(f"{study}.7", study=study, pixels=b"ab" * 32))
    gateway.spool.path(damaged.digest).write_bytes(b"not what was received")
    receiver = Receiver()
    port = listen(gateway)
    query = keys("STUDY", StudyInstanceUID=study)
    assoc = associate(port, STUDY_GET, storage=[(CT, [ExplicitVRLittleEndian])], evt_handlers=receiver.handlers)
    final, identifier, pending = get(assoc, query)
    assert (final.Status, final.NumberOfCompletedSuboperations, final.NumberOfFailedSuboperations) == (WARNING, 2, 2)
    assert "NumberOfRemainingSuboperations" not in final
    assert identifier is not None and set(identifier.FailedSOPInstanceUIDList) == {other.sop_uid, damaged.sop_uid}
    assert [status.NumberOfRemainingSuboperations for status in pending] == [3, 2, 1]
    assert set(receiver.got) == {row.sop_uid for row in fine}
    assert [alert.kind for alert in gateway.index.alerts()] == ["digest-mismatch"]
    missing, _, _ = get(assoc, keys("STUDY", StudyInstanceUID="1.2.999"))
    assert (missing.Status, missing.NumberOfCompletedSuboperations) == (SUCCESS, 0)
    assoc.release()
    assoc = associate(port, STUDY_GET, storage=[(SC, [ExplicitVRLittleEndian])])  # nothing of it is taken
    final, identifier, _ = get(assoc, query)
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 4)
    assert identifier is not None and len(identifier.FailedSOPInstanceUIDList) == 4
    assoc.release()


def test_a_get_is_cancelled_between_objects(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    rows = series(gateway, 30)
    receiver = Receiver(wait=lambda: len(receiver.got) == 2 and cancel(assoc, 5))
    storage = [(CT, [ExplicitVRLittleEndian])]
    assoc = associate(listen(gateway), STUDY_GET, storage=storage, evt_handlers=receiver.handlers)
    answers = list(assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.3.100"), STUDY_GET, msg_id=5))
    final = answers[-1][0]
    assert final.Status == CANCEL
    assert final.NumberOfRemainingSuboperations == len(rows) - len(receiver.got) > 0
    assoc.release()


def test_the_requester_hears_of_a_slow_restore_and_a_dead_worker_ends_it(
    make_gateway: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_exchange, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(listener_retrieve, "_WAIT_SECONDS", 0.05)
    gateway = make_gateway()
    series(gateway, 6)
    pending: list[Dataset] = []

    def slow(_gateway: Gateway, wanted: Any, _accepted: Any) -> Any:
        until(lambda: len(pending) > 3)
        raise Unavailable("task-timeout")

    monkeypatch.setattr(listener_retrieve, "prepare", slow)
    assoc = associate(listen(gateway), STUDY_GET, storage=[(CT, [ExplicitVRLittleEndian])])
    for final, _ in assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.3.100"), STUDY_GET):
        pending.append(final)
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 6)
    assert [status.NumberOfRemainingSuboperations for status in pending[:4]] == [6] * 4
    assert assoc.is_established
    assoc.release()


def test_a_peer_that_stops_answering_is_not_waited_for(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway(network_timeout_seconds=2)
    series(gateway, 3)
    done = threading.Event()
    receiver = Receiver(wait=lambda: done.wait(240))
    storage = [(CT, [ExplicitVRLittleEndian])]
    assoc = associate(listen(gateway), STUDY_GET, storage=storage, evt_handlers=receiver.handlers)
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.extend(assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.3.100"), STUDY_GET))
    )
    asking.start()
    try:
        assert until(lambda: assoc.acse.is_aborted())
    finally:
        done.set()
        asking.join()
    assert len(receiver.got) == 1  # nothing followed what was not answered


def test_a_destination_that_goes_silent_in_the_middle_is_reported(
    make_gateway: Any, listen: Any, workstation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver()
    port = workstation(receiver, (CT, [ExplicitVRLittleEndian]))
    fault = Fault("silent", at=In.pdu(12))
    with FaultProxy(("127.0.0.1", port), fault) as proxy:
        gateway = make_gateway(destinations=(move_to(proxy.port),), network_timeout_seconds=2)
        rows = series(gateway, 8)
        monkeypatch.setattr(listener_exchange, "HEARTBEAT_SECONDS", 0.5)
        assoc = associate(listen(gateway), STUDY_MOVE)
        final, identifier, pending = move(assoc, keys("STUDY", StudyInstanceUID="1.2.3.100"))
        assoc.release()
    completed = final.NumberOfCompletedSuboperations
    assert final.Status == WARNING and 0 < completed < 8 and completed + final.NumberOfFailedSuboperations == 8
    assert identifier is not None and len(identifier.FailedSOPInstanceUIDList) == 8 - completed
    assert set(identifier.FailedSOPInstanceUIDList) <= {row.sop_uid for row in rows}
    assert len(pending) > completed  # heard of while waiting, too


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed while we look
            found.append(str(link.readlink()))
    return found


def test_an_association_that_ends_in_the_middle_leaves_nothing_open(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    series(gateway, 30)
    receiver = Receiver(wait=lambda: len(receiver.got) == 3 and assoc.abort())
    port = listen(gateway)
    before = threading.active_count()
    storage = [(CT, [ExplicitVRLittleEndian])]
    assoc = associate(port, STUDY_GET, storage=storage, evt_handlers=receiver.handlers)
    assoc.dimse_timeout = 1
    list(assoc.send_c_get(keys("STUDY", StudyInstanceUID="1.2.3.100"), STUDY_GET))
    assert until(lambda: threading.active_count() <= before)
    home = str(gateway.settings.home)
    assert until(lambda: not [path for path in open_files() if path.startswith(home) and "/spool/" in path])


# --- C-MOVE ---


@pytest.fixture
def workstation() -> Iterator[Callable[..., int]]:
    running = []

    def start(receiver: Receiver, *contexts: tuple[str, list[str]]) -> int:
        entity = AE(ae_title="WORKSTATION")
        for sop_class, syntaxes in contexts:
            entity.add_supported_context(sop_class, syntaxes)
        running.append(entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=receiver.handlers))
        return int(running[-1].server_address[1])

    yield start
    for server in running:
        server.shutdown()


def move_to(port: int, **more: Any) -> Destination:
    return Destination(name="workstation", port=port, ae_title="WORKSTATION", move=True, forward=False, **more)


def move(assoc: Any, query: Dataset, to: str = "WORKSTATION") -> tuple[Dataset, Dataset | None, list[Dataset]]:
    answers = list(assoc.send_c_move(query, to, STUDY_MOVE, msg_id=77, priority=1))
    return answers[-1][0], answers[-1][1], [status for status, _ in answers[:-1]]


def test_a_study_is_moved_with_its_originator(
    make_gateway: Any, listen: Any, workstation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # noqa: E501
    from service import listener_move

    monkeypatch.setattr(listener_move, "MAX_CONTEXTS", 9)  # so that two associations are needed
    receiver = Receiver()
    classes = [f"1.2.840.10008.5.1.4.1.1.{n}" for n in (1, 2, 4, 20)]
    port = workstation(receiver, *((uid, [ExplicitVRLittleEndian, PRIVATE_SYNTAX]) for uid in classes))
    gateway = make_gateway(destinations=(move_to(port), Destination(name="pacs", port=port, ae_title="PACS")))
    study = "1.2.3.100"
    files = {
        f"{study}.9.{n}": part10(f"{study}.9.{n}", study=study, sop_class=uid, syntax=syntax)
        for n, (uid, syntax) in enumerate((uid, s) for uid in classes for s in (ExplicitVRLittleEndian, PRIVATE_SYNTAX))
    }
    for data in files.values():
        store(gateway, data)
    assoc = associate(listen(gateway), STUDY_MOVE)
    final, identifier, pending = move(assoc, keys("STUDY", StudyInstanceUID=study))
    assert (final.Status, final.NumberOfCompletedSuboperations, identifier) == (SUCCESS, 8, None)
    assert [status.NumberOfRemainingSuboperations for status in pending] == list(range(7, 0, -1))
    assert {uid: digest for uid, (_, digest) in receiver.got.items()} == {
        uid: body(data) for uid, data in files.items()
    }
    assert receiver.originators == {("VIEWER", 77)} and receiver.priorities == {1}
    # a destination that only gets forwards is none of C-MOVE's
    assert move(assoc, keys("STUDY", StudyInstanceUID=study), to="PACS")[0].Status == 0xA801
    assoc.release()
    events = [event for event in audit.tail(gateway.index) if event["event"] == "retrieved"]
    assert [event["detail"]["destination"] for event in events] == ["workstation"]


def test_a_destination_that_refuses_or_is_away(make_gateway: Any, listen: Any, workstation: Any) -> None:
    full = Receiver(status=0xA700)
    port = workstation(full, (CT, [ImplicitVRLittleEndian]))
    away = Destination(name="away", port=free_port(), ae_title="AWAY", move=True, forward=False)
    gateway = make_gateway(destinations=(move_to(port), away))
    rows = series(gateway, 2)
    assoc = associate(listen(gateway), STUDY_MOVE)
    query = keys("IMAGE", StudyInstanceUID="1.2.3.100", SeriesInstanceUID="1.2.3.100.1", SOPInstanceUID=rows[0].sop_uid)
    final, identifier, _ = move(assoc, query)
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 1)
    assert identifier is not None and identifier.FailedSOPInstanceUIDList == rows[0].sop_uid
    assert list(full.got) == [rows[0].sop_uid]
    final, identifier, _ = move(assoc, keys("STUDY", StudyInstanceUID="1.2.3.100"), to="AWAY")
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 2)
    assoc.release()


def test_conflicts_and_versions_come_as_the_one_that_is_served(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    first = store(gateway, part10("1.2.3.9", pixels=b"a" * 64))
    store(gateway, part10("1.2.3.9", pixels=b"b" * 64))
    receiver = Receiver()
    storage = [(CT, [ExplicitVRLittleEndian])]
    assoc = associate(listen(gateway), STUDY_GET, storage=storage, evt_handlers=receiver.handlers)
    final, _, _ = get(assoc, keys("STUDY", StudyInstanceUID="1.2.3.100"))
    assoc.release()
    assert final.NumberOfCompletedSuboperations == 1
    assert receiver.got["1.2.3.9"][1] == body(gateway.spool.path(first.digest).read_bytes())


# --- DCMTK ---


def dcmtk(program: str, *arguments: str) -> str:
    """What one of DCMTK's programs says, in its verbose mode."""
    if shutil.which(program) is None:
        if os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
            pytest.fail(f"DCMTK's {program} is required here and not installed")
        pytest.skip(f"DCMTK's {program} is not installed")
    done = subprocess.run([program, "-v", *arguments], capture_output=True, timeout=120, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.mark.peers
def test_dcmtk_finds_gets_and_moves(make_gateway: Any, listen: Any, tmp_path: Path) -> None:
    node = free_port()
    gateway = make_gateway(destinations=(move_to(node),))
    files = {
        row.sop_uid: data for data in map(packaged, ("CT_small.dcm", "rtplan.dcm")) for row in [store(gateway, data)]
    }
    port, to = str(listen(gateway)), ("-aet", "DCMTK", "-aec", "PALIMPSEST", "127.0.0.1")
    study = str(gateway.index.by_sop(next(iter(files))).study_uid)
    said = dcmtk("findscu", "-S", *to, port, "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=CompressedSamples*",
                 "-k", "StudyInstanceUID", "-k", "NumberOfStudyRelatedInstances")  # fmt: skip
    assert f"[{study}" in said and "Find Response: 1 (Pending)" in said and "Final Find Response (Success)" in said
    said = dcmtk("findscu", "-S", *to, port, "-k", "QueryRetrieveLevel=SERIES", "-k", "SeriesInstanceUID")
    assert "DataSetDoesNotMatchSOPClass" in said
    got, moved = tmp_path / "got", tmp_path / "moved"
    got.mkdir(), moved.mkdir()
    level = ("-k", "QueryRetrieveLevel=STUDY", "-k")
    said = dcmtk("getscu", "-S", "+B", "-od", str(got), *to, port, *level, f"StudyInstanceUID={study}")
    assert "Completed Suboperations : 1" in said and "Failed Suboperations    : 0" in said
    scp = subprocess.Popen(["storescp", "-aet", "WORKSTATION", "+B", "+xa", "-od", str(moved), str(node)])
    try:
        assert until(lambda: "Success" in dcmtk("echoscu", "127.0.0.1", str(node)))
        for row in (gateway.index.by_sop(uid) for uid in files):
            said = dcmtk("movescu", "-S", "-aem", "WORKSTATION", *to, port, *level, f"StudyInstanceUID={row.study_uid}")
            assert "Received Final Move Response (Success)" in said
    finally:
        scp.terminate()
        scp.wait()
    assert [body(path.read_bytes()) for path in got.iterdir()] == [body(files[next(iter(files))])]
    assert {body(path.read_bytes()) for path in moved.iterdir()} == set(map(body, files.values()))
    said = dcmtk("movescu", "-S", "-aem", "NOBODY", *to, port, *level, f"StudyInstanceUID={study}")
    assert "MoveDestinationUnknown" in said
