"""Query and retrieve over TLS, to us and to a C-MOVE destination; and DCMTK's termscu, which must end nothing.

DCMTK's findscu and storescp speak TLS, its movescu and getscu (3.6.7) do not: pynetdicom stands in for those.
"""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config, build_role, evt

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.index_rows import InstanceRow
from gateway.jobs import MemoryQueue
from gateway.part10 import read_meta
from gateway.settings import Destination, load_settings
from service.listener import Listener
from tests.certificates import Authority, Identity
from tests.fakes import CT, incoming, part10
from tests.running import free_port, until

pytestmark = [pytest.mark.integration, pytest.mark.peers]

PROGRAMS = ("echoscu", "findscu", "storescp", "termscu")
MODELS = ("1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3")  # C-MOVE and C-GET, Study Root
LEVEL = ("-k", "QueryRetrieveLevel=STUDY", "-k")


@pytest.fixture(autouse=True)
def _programs() -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing and os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
        pytest.fail(f"DCMTK's {', '.join(missing)} is required here and not installed")
    if missing:
        pytest.skip(f"DCMTK's {', '.join(missing)} is not installed")


def dcmtk(program: str, *arguments: str) -> str:
    done = subprocess.run([program, "-v", *arguments], capture_output=True, timeout=120, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


@pytest.fixture
def listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Gateway, Listener]]]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    running: list[tuple[Gateway, Listener]] = []

    def make(**settings: Any) -> tuple[Gateway, Listener]:
        values = {"dicom_port": 0, "dicom_tls_port": 0, "watermark_bytes": 0, "calling_ae_allow": "DCMTK"}
        gateway = build(load_settings(home=tmp_path / "home", **values | settings), queue=MemoryQueue())
        listener = Listener(gateway)
        listener.start()
        running.append((gateway, listener))
        return running[-1]

    yield make
    for gateway, listener in running:
        listener.stop(grace_seconds=0.2)
        gateway.close()


def take(gateway: Gateway, data: bytes) -> InstanceRow:
    return accept_instance(gateway, incoming(gateway, data), source="dimse", calling_ae="DCMTK", priority=5).row


def test_find_and_move_over_tls_to_a_destination_that_asks_for_a_certificate(listen: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("PALIMPSEST"), authority.issue("DCMTK")
    files = {"dicom_tls_cert": ours.certificate, "dicom_tls_key": ours.key, "dicom_tls_ca": authority.file}
    node = free_port()
    workstation = Destination(name="ws", port=node, ae_title="WS", move=True, forward=False, tls=True)
    gateway, listener = listen(
        profile="production", query_ae_allow="DCMTK", destinations=(workstation,), **files
    )
    row = take(gateway, data := part10())
    tls = ("+tls", str(theirs.key), str(theirs.certificate), "+cf", str(authority.file))
    to = (*tls, "-aet", "DCMTK", "-aec", "PALIMPSEST", "127.0.0.1", str(listener.tls_port))
    assert "Final Find Response (Success)" in dcmtk("findscu", "-S", *to, *LEVEL, "StudyInstanceUID")
    moved = tmp_path / "moved"
    moved.mkdir()
    scp = subprocess.Popen(["storescp", *tls, "+B", "-od", str(moved), str(node)])
    got: list[bytes] = []
    try:
        assert until(lambda: "(Success)" in dcmtk("echoscu", *tls, "127.0.0.1", str(node)))
        assoc = associate(listener.tls_port, authority, theirs, lambda e: got.append(e.encoded_dataset(False)) or 0)
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", row.study_uid
        statuses = [status.Status for status, _ in assoc.send_c_move(query, "WS", MODELS[0])]
        statuses += [status.Status for status, _ in assoc.send_c_get(query, MODELS[1])]
        assoc.release()
    finally:
        scp.terminate()
        scp.wait()
    assert statuses == [0x0000, 0x0000]
    (file,) = (path.read_bytes() for path in moved.iterdir())
    assert file[read_meta(file)[1] :] == data[read_meta(data)[1] :] == got[0]


def associate(port: int, authority: Authority, identity: Identity, on_store: Callable[[Any], int]) -> Any:
    """An association over TLS for C-MOVE, and for C-GET of CT images."""
    context = ssl.create_default_context(cafile=str(authority.file))
    context.load_cert_chain(identity.certificate, identity.key)
    entity = AE(ae_title="DCMTK")
    for abstract in (*MODELS, CT):
        entity.add_requested_context(abstract, ExplicitVRLittleEndian)
    return entity.associate(
        "127.0.0.1", port, ae_title="PALIMPSEST", ext_neg=[build_role(CT, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, on_store)], tls_args=(context, "127.0.0.1"),
    )  # fmt: skip


def test_termscu_ends_nothing(listen: Any) -> None:
    _, listener = listen()
    to = ("-aet", "DCMTK", "-aec", "PALIMPSEST", "127.0.0.1", str(listener.port))
    dcmtk("termscu", *to)
    assert "(Success)" in dcmtk("echoscu", *to)
