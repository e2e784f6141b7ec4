"""Storage commitment in both roles, against pynetdicom: what is asked, answered, told, and told again after a kill."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, _config, build_role, evt

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.commitment import PUSH_MODEL, WELL_KNOWN
from gateway.index_rows import CandidateFacts, InstanceRow
from gateway.instance import CommitmentState, Form
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, load_settings
from gateway.tokens import mint_token
from palimpsest.faultproxy import Fault, FaultProxy, In
from service import listener_commitment_tell
from service.api import create_app
from service.listener import Listener
from tests.certificates import Authority
from tests.fakes import CT, part10, take_in
from tests.running import Rig, until

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]

MODALITY = "MODALITY"
Report = tuple[int, Dataset]


class Requester:
    """An SCU with an address of its own: keeps the reports that it is sent, and answers them with `status`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.status = 0x0000
        self.reports: list[Report] = []
        self.roles: list[Any] = []
        entity = AE(ae_title=MODALITY)
        entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        here = ("127.0.0.1", 0)
        self._server: Any = entity.start_server(here, block=False, evt_handlers=self.handlers, ssl_context=tls)
        self.port = int(self._server.server_address[1])

    @property
    def handlers(self) -> list[Any]:
        return [(evt.EVT_N_EVENT_REPORT, self._report), (evt.EVT_REQUESTED, self._requested)]

    def _requested(self, event: Any) -> None:
        role = event.assoc.requestor.role_selection.get(PUSH_MODEL)
        self.roles.append((role.scu_role, role.scp_role) if role else None)

    def _report(self, event: Any) -> tuple[int, None]:
        self.reports.append((event.event_type, event.event_information))
        return self.status, None

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def requester() -> Iterator[Requester]:
    made = Requester()
    yield made
    made.close()


@pytest.fixture
def make_gateway(tmp_path: Path, requester: Requester) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(**overrides: Any) -> Gateway:
        node = Destination(name="modality", port=requester.port, ae_title=MODALITY, forward=False)
        values = {"destinations": (node,), "dicom_port": 0, "watermark_bytes": 0, "network_timeout_seconds": 60.0}
        made.append(build(load_settings(home=tmp_path / "home", **(values | overrides)), queue=MemoryQueue()))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Gateway], Listener]]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    monkeypatch.setattr(listener_commitment_tell, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(listener_commitment_tell, "BACKOFF_BASE", 0.05)
    monkeypatch.setattr(listener_commitment_tell, "pause_before_next", lambda age: 0.05)
    running: list[Listener] = []

    def start(gateway: Gateway) -> Listener:
        running.append(Listener(gateway))
        running[-1].start()
        return running[-1]

    yield start
    for listener in running:
        listener.stop(grace_seconds=0.2)


def archive(gateway: Gateway, data: bytes | None = None, row: InstanceRow | None = None) -> InstanceRow:
    """Carry a file to ARCHIVED as the pipeline does, without its cost: the archive object is any bytes."""
    row = row or take_in(gateway, data or part10()).row
    envelope = b"envelope of %d" % row.id
    digest = gateway.candidates.put(envelope)
    uid = f"2.25.{row.id}"
    gateway.index.claim(row.id, "w", 60)
    facts = CandidateFacts(digest=digest, size=len(envelope), form=Form.PASSTHROUGH, reason="test", envelope_uid=uid)
    gateway.index.set_candidate(row.id, "w", facts)
    gateway.index.set_verified(row.id, "w")
    key = f"{row.id % 256:02x}/{uid}.dcm"
    gateway.archive.put(key, envelope, digest)
    names = [each.name for each in gateway.settings.destinations if each.forward]
    return gateway.index.set_archived(row.id, "w", key=key, digest=digest, size=len(envelope), destinations=names)


def wish(*uids: str, transaction: str | None = None, sop_class: str = CT) -> Dataset:
    dataset = Dataset()
    dataset.TransactionUID = transaction or generate_uid()
    dataset.ReferencedSOPSequence = []
    for uid in uids:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = uid
        dataset.ReferencedSOPSequence.append(item)
    return dataset


def associate(listener: Listener | int, *, calling: str = MODALITY, handlers: Any = (), roles: Any = ()) -> Any:
    entity = AE(ae_title=calling)
    entity.dimse_timeout = 120
    entity.add_requested_context(PUSH_MODEL)
    port = listener if isinstance(listener, int) else listener.port
    assert port is not None
    assoc = entity.associate("127.0.0.1", port, ext_neg=list(roles), evt_handlers=list(handlers))
    assert assoc.is_established
    return assoc


def ask(
    listener: Listener | int,
    dataset: Dataset | None,
    *,
    calling: str = MODALITY,
    action: int = 1,
    instance: str = WELL_KNOWN,
) -> Any:
    """N-ACTION on an association that is released at once; the status."""
    assoc = associate(listener, calling=calling)
    status, _ = assoc.send_n_action(dataset, action, PUSH_MODEL, instance)
    assoc.release()
    return status


def failed(report: Report) -> dict[str, int]:
    items = report[1].get("FailedSOPSequence", [])
    return {str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in items}


def kept(report: Report) -> set[str]:
    return {str(item.ReferencedSOPInstanceUID) for item in report[1].get("ReferencedSOPSequence", [])}


def test_what_is_archived_is_answered_for_on_a_new_association(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    rows = [archive(gateway) for _ in range(3)]
    wanted = wish(*(row.sop_uid for row in rows), rows[0].sop_uid)  # one of them twice
    assert ask(listen(gateway), wanted).Status == 0x0000
    assert until(lambda: requester.reports)
    [(event_type, report)] = requester.reports
    assert event_type == 1 and "FailedSOPSequence" not in report
    assert report.TransactionUID == wanted.TransactionUID and report.RetrieveAETitle == "PALIMPSEST"
    assert [str(item.ReferencedSOPInstanceUID) for item in report.ReferencedSOPSequence] == [r.sop_uid for r in rows]
    assert requester.roles == [(False, True)]  # we are the SCP, and say so
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    events = [line["event"] for line in audit.tail(gateway.index, 4)]
    assert events == ["commitment-told", "commitment-decided", "commitment-asked", "archived"]


def test_an_open_association_hears_the_answer_once_the_objects_are_safe(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    row = take_in(gateway, part10()).row
    heard: list[Any] = []

    def hear(event: Any) -> tuple[int, None]:
        heard.append((event.event_type, event.event_information))
        return 0x0000, None

    role = build_role(PUSH_MODEL, scu_role=True)
    assoc = associate(listen(gateway), handlers=[(evt.EVT_N_EVENT_REPORT, hear)], roles=[role])
    status, _ = assoc.send_n_action(wish(row.sop_uid), 1, PUSH_MODEL, WELL_KNOWN)
    assert status.Status == 0x0000
    time.sleep(0.3)
    assert heard == [] and gateway.index.commitments()[0].state is CommitmentState.WAITING
    archive(gateway, row=row)
    assert until(lambda: heard)
    assert heard[0][0] == 1 and kept(heard[0]) == {row.sop_uid}
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    assert requester.reports == []
    assert assoc.is_established  # and is of use still
    status, _ = assoc.send_n_action(wish(row.sop_uid), 1, PUSH_MODEL, WELL_KNOWN)
    assert status.Status == 0x0000
    assert until(lambda: len(heard) == 2)
    assoc.release()


def test_failures_have_their_reasons(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway(commitment_unknown_seconds=0.4, commitment_wait_seconds=0.8)
    listener = listen(gateway)
    good, damaged, unsafe = archive(gateway), archive(gateway), take_in(gateway, part10()).row
    path = gateway.settings.archive_dir / str(damaged.archive_key)
    path.chmod(0o600)
    path.write_bytes(b"other bytes")
    assert ask(listener, wish(good.sop_uid, damaged.sop_uid, unsafe.sop_uid, "1.2.3.404")).Status == 0x0000
    assert until(lambda: requester.reports)
    [report] = requester.reports
    assert report[0] == 2 and kept(report) == {good.sop_uid}
    assert failed(report) == {damaged.sop_uid: 0x0110, unsafe.sop_uid: 0x0110, "1.2.3.404": 0x0112}
    assert [alert.kind for alert in gateway.index.alerts()] == ["archive-damaged"]
    requester.reports.clear()
    assert ask(listener, wish(good.sop_uid, sop_class="1.2.840.10008.5.1.4.1.1.4")).Status == 0x0000
    assert until(lambda: requester.reports)
    assert failed(requester.reports[0]) == {good.sop_uid: 0x0119}


def test_an_object_may_come_after_the_request(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    assert ask(listen(gateway), wish("1.2.3.77")).Status == 0x0000
    time.sleep(0.3)
    assert requester.reports == []
    archive(gateway, part10("1.2.3.77"))
    assert until(lambda: requester.reports)
    assert requester.reports[0][0] == 1


def test_no_success_before_policy_has_its_copies_and_the_keys_their_backup(
    tmp_path: Path, make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    node = Destination(name="modality", port=requester.port, ae_title=MODALITY)
    gateway = make_gateway(destinations=(node,), commitment_copies=1)
    row = archive(gateway)
    listener = listen(gateway)
    assert ask(listener, wish(row.sop_uid)).Status == 0x0000
    time.sleep(0.3)
    assert requester.reports == []
    [forward] = gateway.index.forwards(row.id)
    gateway.index.forward_claim(forward.id, "f", 60)
    gateway.index.forward_done(forward.id, "f", "stored")
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    listener.stop(grace_seconds=0.0)
    production = make_gateway(profile="production", dicom_plain="allow", calling_ae_allow=(MODALITY,))
    assert production.settings.require_key_backup
    requester.reports.clear()
    assert ask(listen(production), wish(row.sop_uid)).Status == 0x0000
    time.sleep(0.3)
    assert requester.reports == []  # no backup of the keys: nobody could open the archive after a fire
    production.keys.backup(tmp_path / "backup.bin", "correct horse battery", log2_n=10)
    assert until(lambda: requester.reports)
    assert requester.reports[0][0] == 1


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"calling": "STRANGER"}, 0x0124, "commitment-requester-unknown"),
        ({"action": 2}, 0x0123, "no-such-action"),
        ({"instance": "1.2.3"}, 0x0112, "not-the-well-known-instance"),
        ({"uids": ()}, 0x0115, "no-references"),
        ({"uids": None}, 0x0115, "bad-transaction-uid"),
        ({"uids": ("no uid",)}, 0x0115, "bad-reference"),
        ({"sop_class": ""}, 0x0115, "bad-reference"),
        ({"transaction": "x" * 30}, 0x0115, "bad-transaction-uid"),
        ({"uids": [f"1.2.{n}" for n in range(51)]}, 0x0213, "too-many-references"),
    ],
)
def test_wrong_requests_are_refused_with_their_reason(
    make_gateway: Callable[..., Gateway],
    listen: Callable[[Gateway], Listener],
    change: dict[str, Any],
    status: int,
    reason: str,
) -> None:
    gateway = make_gateway(commitment_max_references=50)
    uids = change.get("uids", ("1.2.3",))
    said = {name: change[name] for name in ("sop_class", "transaction") if name in change}
    others = {name: change[name] for name in ("calling", "action", "instance") if name in change}
    answer = ask(listen(gateway), None if uids is None else wish(*uids, **said), **others)
    assert answer.Status == status
    assert str(answer.ErrorComment).startswith(f"{reason}: "[:64])
    assert gateway.index.commitments() == []
    [line] = audit.tail(gateway.index, 1)
    assert (line["event"], line["detail"]["reason"]) == ("refused", reason)


def test_a_message_beyond_all_bounds_ends_the_association_and_nothing_else(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    listener, row = listen(gateway), archive(gateway)
    hostile = wish(*(f"1.2.3.{n}" for n in range(20_000)))
    assoc = associate(listener)
    status, _ = assoc.send_n_action(hostile, 1, PUSH_MODEL, WELL_KNOWN)
    assert "Status" not in status and until(lambda: assoc.is_aborted)
    assert gateway.index.commitments() == []
    assert ask(listener, wish(row.sop_uid)).Status == 0x0000
    assert until(lambda: requester.reports)


def test_the_same_request_again_is_answered_again_and_another_under_its_uid_is_not(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    listener, row, other = listen(gateway), archive(gateway), archive(gateway)
    wanted = wish(row.sop_uid)
    for _ in range(2):
        requester.reports.clear()
        assert ask(listener, wanted).Status == 0x0000
        assert until(lambda: len(requester.reports) == 1)
        assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    gateway.archive.path(str(row.archive_key)).unlink()  # type: ignore[attr-defined]
    requester.reports.clear()
    assert ask(listener, wanted).Status == 0x0000
    assert until(lambda: len(requester.reports) == 1)
    assert failed(requester.reports[0]) == {row.sop_uid: 0x0110}  # what was told before is looked at anew
    answer = ask(listener, wish(other.sop_uid, transaction=str(wanted.TransactionUID)))
    assert answer.Status == 0x0131 and "duplicate-transaction-uid" in answer.ErrorComment
    assert len(gateway.index.commitments()) == 1


def test_a_requester_that_is_away_is_told_later_and_at_last_an_alert_says_so(
    make_gateway: Callable[..., Gateway],
    listen: Callable[[Gateway], Listener],
    requester: Requester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = make_gateway()
    listener, row = listen(gateway), archive(gateway)
    requester.status = 0x0110
    assert ask(listener, wish(row.sop_uid)).Status == 0x0000
    assert until(lambda: len(requester.reports) > 2)
    assert gateway.index.commitments()[0].reason == "requester-status-0110"
    requester.status = 0x0000
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    monkeypatch.setattr(listener_commitment_tell, "MOST_TELLINGS", 2)
    requester.status = 0x0110
    assert ask(listener, wish(row.sop_uid)).Status == 0x0000
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.DEAD)
    assert until(lambda: [alert.kind for alert in gateway.index.alerts()] == ["commitment-untold"])
    requester.status = 0x0000
    admin = {"Authorization": f"Bearer {mint_token(gateway, 'admin', 'someone')}"}
    with TestClient(create_app(gateway)) as web:
        [shown] = web.get("/api/commitments?state=dead", headers=admin).json()["commitments"]
        said = (shown["role"], shown["peer"], shown["items"], shown["failed"], shown["reason"])
        assert said == ("scp", MODALITY, 1, 0, "requester-status-0110")
        assert web.get("/api/commitments?state=lost", headers=admin).status_code == 400
        assert web.post("/api/commitments/replay", json={"id": 404}, headers=admin).status_code == 404
        assert web.post("/api/commitments/replay", json={}, headers=admin).status_code == 400
        assert 'palimpsest_commitments{role="scp",state="DEAD"} 1.0' in web.get("/metrics", headers=admin).text
        assert web.post("/api/commitments/replay", json={"id": shown["id"]}, headers=admin).status_code == 200
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)


def test_an_answer_that_waited_says_what_is_true_when_it_is_told(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    safe, spoilt = archive(gateway), archive(gateway)
    requester.status = 0x0110
    assert ask(listen(gateway), wish(safe.sop_uid, spoilt.sop_uid)).Status == 0x0000
    assert until(lambda: len(requester.reports) > 0)
    assert kept(requester.reports[0]) == {safe.sop_uid, spoilt.sop_uid}
    file = gateway.settings.archive_dir / str(gateway.index.get(spoilt.id).archive_key)
    file.chmod(0o600)
    file.write_bytes(b"rotten")
    requester.status = 0x0000
    assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    assert kept(requester.reports[-1]) == {safe.sop_uid} and set(failed(requester.reports[-1])) == {spoilt.sop_uid}


def test_a_process_that_is_killed_between_request_and_answer_loses_nothing(
    tmp_path: Path, requester: Requester
) -> None:
    node = Destination(name="modality", port=requester.port, ae_title=MODALITY, forward=False)
    with Rig(tmp_path / "home", destinations=(node,), lease_seconds=2.0) as rig:
        rig.start("listener")
        rig.wait("listener", rig.listens)
        row = take_in(rig.gw, part10()).row
        wanted = wish(row.sop_uid)
        assoc = associate(rig.settings.dicom_port)  # stays open, so that the lease is held
        status, _ = assoc.send_n_action(wanted, 1, PUSH_MODEL, WELL_KNOWN)
        assert status.Status == 0x0000
        [transaction] = rig.gw.index.commitments()
        assert transaction.state is CommitmentState.WAITING and transaction.lease_owner is not None
        process = rig.children["listener"].process
        rig.kill9("listener")
        assert process is not None and process.wait(120) == -9
        archive(rig.gw, row=row)
        rig.wait("the answer", lambda: bool(requester.reports))
        assert requester.reports[0][0] == 1 and kept(requester.reports[0]) == {row.sop_uid}
        assert requester.reports[0][1].TransactionUID == wanted.TransactionUID
        rig.wait("its receipt", lambda: rig.gw.index.commitments()[0].state is CommitmentState.REPORTED)
        assert len(requester.reports) == 1


@pytest.mark.parametrize("kind", ["cut", "silent"])
def test_an_answer_that_is_lost_on_the_way_is_told_again(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester, kind: Any
) -> None:
    with FaultProxy(("127.0.0.1", requester.port), Fault(kind, at=In.pdu(2), way="down")) as proxy:
        node = Destination(name="modality", port=proxy.port, ae_title=MODALITY, forward=False)
        gateway = make_gateway(destinations=(node,), network_timeout_seconds=3.0)
        listener, row = listen(gateway), archive(gateway)
        assert ask(listener, wish(row.sop_uid)).Status == 0x0000
        assert until(lambda: gateway.index.commitments()[0].state is CommitmentState.REPORTED)
    assert gateway.index.commitments()[0].attempts == 2
    assert [(kept(report), str(report[1].TransactionUID)) for report in requester.reports] == [
        ({row.sop_uid}, gateway.index.commitments()[0].transaction_uid)
    ] * 2


def test_of_several_processes_one_tells(
    make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener], requester: Requester
) -> None:
    gateway = make_gateway()
    rows = [archive(gateway) for _ in range(6)]
    doors = [listen(gateway), listen(make_gateway())]
    for number, row in enumerate(rows):
        assert ask(doors[number % 2], wish(row.sop_uid)).Status == 0x0000
    assert until(lambda: gateway.index.counts().commitments == {"scp": {"REPORTED": 6}})
    assert sorted(uid for report in requester.reports for uid in kept(report)) == sorted(row.sop_uid for row in rows)


def test_a_sender_in_the_middle_of_its_objects_is_not_interrupted(
    make_gateway: Callable[..., Gateway],
    listen: Callable[[Gateway], Listener],
    requester: Requester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = make_gateway()
    listener, row = listen(gateway), archive(gateway)
    monkeypatch.setattr(listener_commitment_tell, "QUIET_SECONDS", 50.0)  # more than any store takes
    heard: list[int] = []

    def hear(event: Any) -> tuple[int, None]:
        heard.append(event.event_type)
        return 0x0000, None

    entity = AE(ae_title=MODALITY)
    entity.add_requested_context(PUSH_MODEL)
    entity.add_requested_context(CT, "1.2.840.10008.1.2.1")
    handlers = [(evt.EVT_N_EVENT_REPORT, hear)]
    assert listener.port is not None
    assoc = entity.associate("127.0.0.1", listener.port, evt_handlers=handlers)  # type: ignore[arg-type]
    status, _ = assoc.send_n_action(wish(row.sop_uid), 1, PUSH_MODEL, WELL_KNOWN)
    assert status.Status == 0x0000
    for _ in range(20):
        time.sleep(0.05)
        assert assoc.send_c_store(dcmread(BytesIO(part10()))).Status == 0x0000
    assert heard == [] and requester.reports == []
    monkeypatch.setattr(listener_commitment_tell, "QUIET_SECONDS", 0.5)
    assert until(lambda: heard == [1])
    assoc.release()


def test_over_tls_in_both_directions(
    tmp_path: Path, make_gateway: Callable[..., Gateway], listen: Callable[[Gateway], Listener]
) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("gateway"), authority.issue("modality")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (server, client):
        context.load_cert_chain(theirs.certificate, theirs.key)
        context.load_verify_locations(authority.file)
    server.verify_mode = ssl.CERT_REQUIRED
    requester = Requester(server)
    node = Destination(name="modality", port=requester.port, ae_title=MODALITY, forward=False, tls=True)
    gateway = make_gateway(
        destinations=(node,), dicom_tls_port=0, dicom_tls_cert=ours.certificate, dicom_tls_key=ours.key,
        dicom_tls_ca=authority.file,
    )  # fmt: skip
    listener, row = listen(gateway), archive(gateway)
    entity = AE(ae_title=MODALITY)
    entity.add_requested_context(PUSH_MODEL)
    assert listener.tls_port is not None
    assoc = entity.associate("127.0.0.1", listener.tls_port, tls_args=(client, "127.0.0.1"))
    status, _ = assoc.send_n_action(wish(row.sop_uid), 1, PUSH_MODEL, WELL_KNOWN)
    assoc.release()
    assert status.Status == 0x0000
    assert until(lambda: requester.reports)
    assert kept(requester.reports[0]) == {row.sop_uid}
    requester.close()
