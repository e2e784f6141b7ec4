"""Storage commitment with Orthanc, in both directions."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.data import get_testdata_file
from pynetdicom import _config

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.index_schema import forward as table
from gateway.instance import CommitmentState, ForwardState, State
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, load_settings
from service.listener import Listener
from tests.fakes import NoStego, part10
from tests.integration.test_orthanc_roundtrip import Orthanc, need, run_peer
from tests.proving import InProcess
from tests.running import until
from worker.delivery import forward_instance
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.sweep import release_spool

pytestmark = [pytest.mark.peers, pytest.mark.integration]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Gateway, Orthanc]]:
    """A gateway that listens, and an Orthanc that knows it."""
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL", "STORE_SEND_CHUNKED_DATASET"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    folder = tmp_path / "orthanc"
    folder.mkdir()
    peer = Orthanc(folder)
    node = Destination(name="orthanc", port=peer.dicom_port, ae_title="ORTHANC", commitment=True)
    gateway = build(
        load_settings(home=tmp_path / "home", watermark_bytes=0, dicom_port=0, destinations=(node,)),
        queue=MemoryQueue(),
    )
    listener = Listener(gateway)
    listener.start()
    modality = {"AET": "PALIMPSEST", "Host": "127.0.0.1", "Port": listener.port, "AllowStorageCommitment": True}
    configuration = json.loads(peer.file.read_text()) | {"DicomModalities": {"palimpsest": modality}}
    peer.file.write_text(json.dumps(configuration))
    for _ in run_peer([need("Orthanc"), str(peer.file)], folder / "log", peer.http_port):
        assert until(peer.ready)
        yield gateway, peer
    listener.stop(grace_seconds=0.5)
    gateway.close()


def uid_of(peer: Orthanc, orthanc_id: str) -> str:
    return str(json.loads(peer.get(f"/instances/{orthanc_id}/simplified-tags")[0])["SOPInstanceUID"])


def post(peer: Orthanc, path: str, body: bytes) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{peer.http_port}{path}", data=body)
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def archive(gateway: Gateway, number: int) -> None:
    assert process_instance(gateway, InProcess(gateway.keys), number, "test") == State.ARCHIVED  # type: ignore[arg-type]
    index_instance(gateway, number)


def test_orthanc_asks_us(site: tuple[Gateway, Orthanc]) -> None:
    gateway, peer = site
    uid = "1.2.826.0.1.3680043.10.1.555"
    stored = post(peer, "/instances", part10(uid))
    asked = {"Resources": [stored["ID"]], "StorageCommitment": True, "Synchronous": True}
    job = post(peer, "/modalities/palimpsest/store", json.dumps(asked).encode())
    transaction = str(job["StorageCommitmentTransactionUID"])

    def answer() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(peer.get(f"/storage-commitment/{transaction}")[0])
        return found

    assert answer()["Status"] == "Pending"
    row = gateway.index.by_sop(uid)
    assert row is not None and row.state is State.RECEIVED
    archive(gateway, row.id)
    assert until(lambda: answer()["Status"] != "Pending")
    assert answer()["Status"] == "Success"
    assert [each["SOPInstanceUID"] for each in answer()["Success"]] == [uid] and answer()["RemoteAET"] == "PALIMPSEST"
    asked_of_us = {"DicomInstances": [{"SOPClassUID": row.sop_class, "SOPInstanceUID": uid}]}
    asked_of_us["DicomInstances"][0]["SOPClassUID"] = "1.2.840.10008.5.1.4.1.1.4"  # an MR, it says
    job = post(peer, "/modalities/palimpsest/storage-commitment", json.dumps(asked_of_us).encode())
    transaction = str(job["ID"])
    assert until(lambda: answer()["Status"] != "Pending")
    assert answer()["Status"] == "Failure"
    assert [each["FailureReason"] for each in answer()["Failures"]] == [0x0119]


def test_orthanc_is_asked_and_has_lost_one(site: tuple[Gateway, Orthanc]) -> None:
    gateway, peer = site
    numbers = []
    for name in ("rtplan.dcm", "test-SR.dcm"):
        incoming = gateway.spool.incoming()
        copyfile(str(get_testdata_file(name, download=False)), incoming)
        numbers.append(accept_instance(gateway, incoming, source="stow", calling_ae="TEST").row.id)
        archive(gateway, numbers[-1])
    rows = [gateway.index.forwards(number)[0] for number in numbers]
    forward_instance(gateway, rows[0].id, "f-1", NoStego())
    assert until(lambda: all(gateway.index.forward_get(r.id).state is ForwardState.COMMITTED for r in rows))
    [transaction] = gateway.index.commitments()
    assert (transaction.role, transaction.state, transaction.failed) == ("scu", CommitmentState.ANSWERED, 0)
    lost = gateway.index.forward_get(rows[0].id).sent_uid
    [orthanc_id] = [each for each in json.loads(peer.get("/instances")[0]) if uid_of(peer, each) == lost]
    request = urllib.request.Request(f"http://127.0.0.1:{peer.http_port}/instances/{orthanc_id}", method="DELETE")
    urllib.request.urlopen(request, timeout=120).close()
    with gateway.index.write() as conn:  # as if it had not been asked yet
        values = {"state": ForwardState.SENT, "commit_due_at": 1.0}
        conn.execute(sa.update(table).where(table.c.id.in_([row.id for row in rows])).values(**values))
    assert release_spool(gateway) == 0
    forward_instance(gateway, rows[0].id, "f-1", NoStego())
    assert until(lambda: gateway.index.forward_get(rows[0].id).state is ForwardState.WAITING)
    assert gateway.index.forward_get(rows[0].id).reason == "uncommitted-peer-has-no-such-object"
    with gateway.index.write() as conn:
        conn.execute(sa.update(table).where(table.c.id == rows[0].id).values(due_at=1.0))
    forward_instance(gateway, rows[0].id, "f-1", NoStego())
    assert until(lambda: all(gateway.index.forward_get(r.id).state is ForwardState.COMMITTED for r in rows))
    assert release_spool(gateway) == 2
