"""Destinations that are asked for storage commitment: only their word makes a forward COMMITTED and frees the spool."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.sop_class import RawDataStorage  # type: ignore[attr-defined]

from gateway import audit
from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.circuit import read_circuit
from gateway.commitment import PUSH_MODEL, WELL_KNOWN
from gateway.index_rows import ForwardRow
from gateway.index_schema import commitment as transactions
from gateway.index_schema import forward as forwards
from gateway.instance import CommitmentState, ForwardState
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, load_settings
from palimpsest.faultproxy import Fault, FaultProxy, In
from service.listener import Listener
from tests.fakes import NoStego
from tests.proving import InProcess
from tests.running import free_port, until
from worker import commitment
from worker.delivery import forward_instance
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.sweep import ask_commitments, release_spool

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]


class Provider:
    """A PACS that stores Raw Data and commits to it: on the same association, or on one to `port`, or not at all.

    reasons: SOP Instance UID -> Failure Reason; offers: whether it takes commitment; refuses: N-ACTION status.
    """

    def __init__(self, *, offers: bool = True) -> None:
        self.same, self.answers, self.port, self.refuses = False, True, 0, 0x0000
        self.reasons: dict[str, int] = {}
        self.stored: list[str] = []
        self.asked: list[Dataset] = []
        self.statuses: list[Any] = []
        entity = AE(ae_title="PACS")
        entity.add_supported_context(RawDataStorage, "1.2.840.10008.1.2.1")
        if offers:
            entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action), (evt.EVT_DIMSE_SENT, self._sent)]
        self._server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.here = int(self._server.server_address[1])

    def _store(self, event: Any) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def _action(self, event: Any) -> tuple[int, None]:
        self.asked.append(event.action_information)
        return self.refuses, None

    def _sent(self, event: Any) -> None:
        if type(event.message).__name__ != "N_ACTION_RSP" or not self.answers or self.refuses:
            return
        if self.same:
            threading.Thread(target=self._tell, args=(event.assoc, self.asked[-1]), daemon=True).start()

    def _tell(self, association: Any, asked: Dataset) -> None:
        report = self.report(asked)
        kind = 2 if "FailedSOPSequence" in report else 1
        status, _ = association.send_n_event_report(report, kind, PUSH_MODEL, WELL_KNOWN)
        self.statuses.append(status.get("Status"))

    def report(self, asked: Dataset) -> Dataset:
        """The answer, by `reasons`."""
        report = Dataset()
        report.TransactionUID = asked.TransactionUID
        report.ReferencedSOPSequence, report.FailedSOPSequence = [], []
        for item in asked.ReferencedSOPSequence:
            reason = self.reasons.get(str(item.ReferencedSOPInstanceUID))
            if reason is None:
                report.ReferencedSOPSequence.append(item)
            else:
                item.FailureReason = reason
                report.FailedSOPSequence.append(item)
        if not report.FailedSOPSequence:
            del report.FailedSOPSequence
        return report

    def call(self, port: int, report: Dataset, *, title: str = "PACS", kind: int | None = None) -> Any:
        """Tell it on a new association; the status."""
        entity = AE(ae_title=title)
        entity.add_requested_context(PUSH_MODEL)
        association = entity.associate("127.0.0.1", port, ext_neg=[build_role(PUSH_MODEL, scp_role=True)])
        assert association.is_established
        assert association.accepted_contexts[0].as_scp
        wanted = kind or (2 if "FailedSOPSequence" in report else 1)
        status, _ = association.send_n_event_report(report, wanted, PUSH_MODEL, WELL_KNOWN)
        association.release()
        return status

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def pacs() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(port: int, *, wanted: bool = True, **overrides: Any) -> Gateway:
        node = Destination(name="pacs", port=port, ae_title="PACS", commitment=wanted)
        values = {"destinations": (node,), "dicom_port": 0, "watermark_bytes": 0, "network_timeout_seconds": 60.0}
        made.append(build(load_settings(home=tmp_path / "home", **(values | overrides)), queue=MemoryQueue()))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def listener_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Gateway], int]]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL", "STORE_SEND_CHUNKED_DATASET"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    monkeypatch.setattr(commitment, "ANSWER_WAIT_SECONDS", 0.0)
    running: list[Listener] = []

    def start(gateway: Gateway) -> int:
        running.append(Listener(gateway))
        running[-1].start()
        assert running[-1].port is not None
        return running[-1].port

    yield start
    for listener in running:
        listener.stop(grace_seconds=0.2)


def sent(gateway: Gateway, name: str = "rtplan.dcm") -> ForwardRow:
    """An object archived by the pipeline, and forwarded."""
    incoming = gateway.spool.incoming()
    copyfile(str(get_testdata_file(name, download=False)), incoming)
    number = accept_instance(gateway, incoming, source="stow", calling_ae="TEST").row.id
    process_instance(gateway, InProcess(gateway.keys), number, "test-1")  # type: ignore[arg-type]
    index_instance(gateway, number)
    return forward(gateway, number)


def forward(gateway: Gateway, instance_id: int) -> ForwardRow:
    """Do what is due for its destination, as the worker does; the row afterwards."""
    [row] = gateway.index.forwards(instance_id)
    forward_instance(gateway, row.id, "f-1", NoStego())
    return gateway.index.forward_get(row.id)


def soon(gateway: Gateway) -> None:
    """Let what waits for its time be due."""
    with gateway.index.write() as conn:
        conn.execute(sa.update(forwards).where(forwards.c.commit_due_at.is_not(None)).values(commit_due_at=1.0))
        conn.execute(sa.update(forwards).where(forwards.c.due_at.is_not(None)).values(due_at=1.0))
        conn.execute(sa.update(transactions).where(transactions.c.due_at.is_not(None)).values(due_at=1.0))
        conn.execute(sa.update(forwards).values(queued_at=None))


def test_the_word_of_the_destination_comes_on_the_same_association(
    make_gateway: Callable[..., Gateway], pacs: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment, "ANSWER_WAIT_SECONDS", 120.0)  # it ends with the answer
    pacs.same = True
    gateway = make_gateway(pacs.here)
    row = sent(gateway)
    assert until(lambda: gateway.index.forward_get(row.id).state is ForwardState.COMMITTED)
    row = gateway.index.forward_get(row.id)
    assert (row.proof, row.commit_due_at, row.commit_attempts) == ("committed", None, 1)
    [item] = pacs.asked[0].ReferencedSOPSequence
    assert (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)) == (row.sent_class, row.sent_uid)
    assert until(lambda: pacs.statuses == [0x0000])
    assert [each.state for each in gateway.index.commitments()] == [CommitmentState.ANSWERED]
    assert release_spool(gateway) == 1


def test_the_spool_is_kept_until_the_word_comes_to_the_listener(
    make_gateway: Callable[..., Gateway], pacs: Provider, listener_port: Callable[[Gateway], int]
) -> None:
    gateway = make_gateway(pacs.here)
    port = listener_port(gateway)
    row = sent(gateway)
    assert (row.state, row.proof) == (ForwardState.SENT, "stored")
    assert row.commit_due_at is not None and release_spool(gateway) == 0
    report = pacs.report(pacs.asked[0])
    stranger = pacs.call(port, report, title="STRANGER")
    assert stranger.Status == 0x0124 and "commitment-provider-unknown" in stranger.ErrorComment
    other = deepcopy(report)
    other.TransactionUID = "1.2.3.4"
    assert pacs.call(port, other).Status == 0x0115
    assert pacs.call(port, report, kind=3).Status == 0x0113
    assert gateway.index.forward_get(row.id).state is ForwardState.SENT and release_spool(gateway) == 0
    assert pacs.call(port, report).Status == 0x0000
    assert gateway.index.forward_get(row.id).state is ForwardState.COMMITTED
    assert pacs.call(port, report).Status == 0x0000  # told twice: nothing happens
    assert [line["event"] for line in audit.tail(gateway.index, 50)].count("committed") == 1
    assert release_spool(gateway) == 1 and len(pacs.asked) == 1


def test_what_the_destination_has_lost_is_sent_again_and_what_it_refuses_is_a_dead_letter(
    make_gateway: Callable[..., Gateway], pacs: Provider, listener_port: Callable[[Gateway], int]
) -> None:
    gateway = make_gateway(pacs.here)
    port = listener_port(gateway)
    lost, refused = sent(gateway), sent(gateway, "test-SR.dcm")
    pacs.reasons = {str(lost.sent_uid): 0x0112, str(refused.sent_uid): 0x0119}
    for asked in pacs.asked:
        assert pacs.call(port, pacs.report(asked)).Status == 0x0000
    lost, refused = gateway.index.forward_get(lost.id), gateway.index.forward_get(refused.id)
    assert (lost.state, lost.reason) == (ForwardState.WAITING, "uncommitted-peer-has-no-such-object")
    assert (refused.state, refused.reason) == (ForwardState.DEAD, "uncommitted-peer-class-conflict")
    assert [alert.kind for alert in gateway.index.alerts()] == ["dead-letter"]
    pacs.reasons.clear()
    soon(gateway)
    assert forward(gateway, lost.instance_id).state is ForwardState.SENT
    assert pacs.stored.count(str(lost.sent_uid)) == 2 and len(pacs.asked) == 3
    assert pacs.call(port, pacs.report(pacs.asked[-1])).Status == 0x0000
    assert gateway.index.forward_get(lost.id).state is ForwardState.COMMITTED
    gateway.index.forward_replay(refused.id, "admin")
    assert forward(gateway, refused.instance_id).state is ForwardState.SENT
    assert pacs.call(port, pacs.report(pacs.asked[-1])).Status == 0x0000
    assert gateway.index.forward_get(refused.id).state is ForwardState.COMMITTED


def test_silence_is_asked_about_again_and_ends_as_a_dead_letter(
    make_gateway: Callable[..., Gateway], pacs: Provider, listener_port: Callable[[Gateway], int]
) -> None:
    gateway = make_gateway(pacs.here, commitment_max_askings=2)
    port = listener_port(gateway)
    row = sent(gateway)
    assert ask_commitments(gateway) == 0  # not due
    soon(gateway)
    before = gateway.queue.depths()["forward"]
    assert ask_commitments(gateway) == 1 and gateway.queue.depths()["forward"] == before + 1
    assert ask_commitments(gateway) == 0  # it was just asked for
    assert forward(gateway, row.instance_id).state is ForwardState.SENT
    assert [each.state for each in gateway.index.commitments()] == [CommitmentState.ASKED, CommitmentState.EXPIRED]
    assert len({str(asked.TransactionUID) for asked in pacs.asked}) == 2
    soon(gateway)
    row = forward(gateway, row.instance_id)
    assert (row.state, row.reason, len(pacs.asked)) == (ForwardState.DEAD, "uncommitted-no-answer", 2)
    assert [alert.kind for alert in gateway.index.alerts()] == ["dead-letter"]
    assert release_spool(gateway) == 0
    gateway.index.forward_replay(row.id, "admin")
    assert forward(gateway, row.instance_id).commit_attempts == 1
    pacs.call(port, pacs.report(pacs.asked[0]))  # the first asking, late, is a word too
    assert gateway.index.forward_get(row.id).state is ForwardState.COMMITTED


def test_a_destination_that_offers_none_or_is_away_is_no_success(
    make_gateway: Callable[..., Gateway], pacs: Provider
) -> None:
    without = Provider(offers=False)
    gateway = make_gateway(without.here)
    row = sent(gateway)
    assert (row.state, row.reason) == (ForwardState.SENT, "uncommitted-commitment-unsupported")
    assert row.commit_due_at is not None and row.commit_attempts == 1 and release_spool(gateway) == 0
    without.close()
    away = make_gateway(free_port())
    soon(away)
    assert forward(away, row.instance_id).commit_attempts == 1  # it did not hear us: that is no asking
    assert away.index.alerts() == []
    impatient = make_gateway(free_port(), commitment_answer_seconds=0.001)
    assert forward(impatient, row.instance_id).state is ForwardState.SENT
    assert [alert.kind for alert in impatient.index.alerts()] == ["commitment-unasked"]
    pacs.refuses = 0x0213
    busy = make_gateway(pacs.here)
    row = forward(busy, row.instance_id)
    assert (row.state, row.reason, row.commit_attempts) == (ForwardState.SENT, "uncommitted-ask-status-0213", 2)


def test_a_wish_that_is_withdrawn_frees_the_spool_and_a_destination_that_is_gone_does_not(
    make_gateway: Callable[..., Gateway], pacs: Provider
) -> None:
    pacs.answers = False
    gateway = make_gateway(pacs.here)
    row = sent(gateway)
    soon(gateway)
    unwanted = make_gateway(pacs.here, wanted=False)
    assert ask_commitments(unwanted) == 0 and release_spool(unwanted) == 1
    assert audit.tail(unwanted.index, 2)[1]["event"] == "commitment-waived"
    second = sent(gateway, "test-SR.dcm")
    soon(gateway)
    gone = make_gateway(pacs.here, destinations=())
    assert ask_commitments(gone) == 0 and release_spool(gone) == 0
    second = gone.index.forward_get(second.id)
    assert (second.state, second.reason) == (ForwardState.DEAD, "unknown-destination")
    assert gone.index.forward_get(row.id).state is ForwardState.SENT


def test_a_destination_that_falls_silent_inside_a_pdu_holds_nobody(
    make_gateway: Callable[..., Gateway], pacs: Provider
) -> None:
    with FaultProxy(("127.0.0.1", pacs.here), Fault("silent", at=In.pdu(2), way="down")) as proxy:
        gateway = make_gateway(proxy.port, network_timeout_seconds=3.0)
        row = sent(gateway)
        assert (row.state, row.reason) == (ForwardState.WAITING, "no-response")
        soon(gateway)
        assert until(lambda: read_circuit(gateway.settings.run_dir, "pacs").open_until < time.time())
        assert forward(gateway, row.instance_id).state is ForwardState.SENT
