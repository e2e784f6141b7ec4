"""The DICOM listener against real associations: pynetdicom in this process, DCMTK's storescu where it is installed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
from pynetdicom import AE, _config
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, Verification

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.instance import State
from gateway.jobs import MemoryQueue
from gateway.settings import child_environment, load_settings
from service.listener import Listener
from service.listener_stream import PDU_CAP_BYTES, REQUEST_CAP_BYTES, AssociationStream, Door
from tests.running import WAIT_SECONDS, free_port, until

pytestmark = [
    pytest.mark.integration,
    # wrong values are sent on purpose
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value"),
]

CT = get_testdata_file("CT_small.dcm", download=False)
PRIVATE_CLASS = "1.2.826.0.1.3680043.10.9999.1"


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(**overrides: Any) -> Gateway:
        settings = load_settings(home=tmp_path / "home", dicom_port=0, watermark_bytes=1, **overrides)
        made.append(build(settings, queue=MemoryQueue()))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Gateway], Listener]]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    running: list[Listener] = []

    def start(gateway: Gateway) -> Listener:
        running.append(Listener(gateway))
        running[-1].start()
        return running[-1]

    yield start
    for listener in running:
        listener.stop(grace_seconds=0.2)


def associate(port: int, contexts: list[tuple[str, list[str]]], calling: str = "SENDER") -> Any:
    entity = AE(ae_title=calling)
    for abstract, syntaxes in contexts:
        entity.add_requested_context(abstract, syntaxes)
    return entity.associate("127.0.0.1", port, ae_title="PALIMPSEST")


def ct(**changes: Any) -> Dataset:
    dataset = dcmread(CT)
    dataset.SOPInstanceUID = generate_uid()
    dataset.update({})
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return dataset


def raw_store(assoc: Any, data: bytes, *, sop_class: str, instance: str | None, priority: int = 0) -> Dataset:
    """C-STORE with a command set that says whatever we like; the response's status and comment."""
    request = C_STORE()
    request.MessageID = 7
    request.AffectedSOPClassUID = sop_class
    request.AffectedSOPInstanceUID = instance
    request.Priority = priority
    request.DataSet = BytesIO(data)
    assoc._reactor_checkpoint.clear()
    while not assoc._is_paused:
        time.sleep(0.001)
    assoc.dimse.send_msg(request, assoc.accepted_contexts[0].context_id)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    answer = Dataset()
    if response is not None:
        answer.Status, answer.ErrorComment = response.Status, response.ErrorComment
    return answer


def incoming(gateway: Gateway) -> list[Path]:
    return [path for path in gateway.settings.incoming_dir.iterdir() if path.is_file()]


def test_echo_and_store(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    port = listen(gateway).port
    dataset = ct()
    assoc = associate(port, [(Verification, [ImplicitVRLittleEndian]), (CTImageStorage, [ExplicitVRLittleEndian])])
    assert assoc.is_established
    assert assoc.send_c_echo().Status == 0x0000
    assert assoc.send_c_store(dataset, priority=1).Status == 0x0000
    assoc.release()

    row = gateway.index.by_sop(dataset.SOPInstanceUID)
    assert row is not None
    assert (row.state, row.source, row.calling_ae, row.priority) == (State.RECEIVED, "dimse", "SENDER", 0)
    with gateway.spool.open(row.digest) as file:
        received = dcmread(file)
    assert received == dataset
    assert received.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert incoming(gateway) == []
    assert [event["event"] for event in audit.tail(gateway.index)] == ["received"]


def test_a_duplicate_is_success_and_no_second_instance(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    port = listen(gateway).port
    dataset = ct()
    for calling in ("SENDER", "OTHER", "SENDER"):
        assoc = associate(port, [(CTImageStorage, [ExplicitVRLittleEndian])], calling)
        assert assoc.send_c_store(dataset).Status == 0x0000
        assoc.release()
    assert gateway.index.counts().total == 1
    assert incoming(gateway) == []


@pytest.mark.parametrize(
    ("instance", "status"),
    [("not-a-uid", 0x0117), ("1." + "2" * 70, 0x0117), ("1..2", 0x0117), ("1.2.3.4.5", 0xA900), ("1.2\\1.3", 0x0117)],
)
def test_wrong_uids_are_refused_by_status(make_gateway: Any, listen: Any, instance: str, status: int) -> None:
    gateway = make_gateway()
    assoc = associate(listen(gateway).port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    dataset = ct()
    data = encode(dataset, False, True)
    answer = raw_store(assoc, data, sop_class=CTImageStorage, instance=instance)
    assert answer.Status == status
    assert answer.ErrorComment and dataset.PatientID not in answer.ErrorComment and len(answer.ErrorComment) <= 64
    # The association lives on, and the next object is taken.
    assert assoc.send_c_store(dataset).Status == 0x0000
    assoc.release()
    assert gateway.index.counts().total == 1
    assert incoming(gateway) == []


def test_another_sop_class_than_the_data_sets_is_a_mismatch(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    assoc = associate(listen(gateway).port, [(MRImageStorage, [ExplicitVRLittleEndian])])
    dataset = ct()
    data = encode(dataset, False, True)
    answer = raw_store(assoc, data, sop_class=MRImageStorage, instance=dataset.SOPInstanceUID)
    assert answer.Status == 0xA900
    assoc.release()
    assert gateway.index.counts().total == 0


def test_noise_instead_of_a_data_set_is_refused_in_the_c000_range(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    assoc = associate(listen(gateway).port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    answer = raw_store(assoc, random.Random(5).randbytes(5000), sop_class=CTImageStorage, instance="1.2.3")
    assert answer.Status & 0xF000 == 0xC000
    assoc.release()
    assert incoming(gateway) == []


@pytest.mark.parametrize("instance", ["", None])
def test_a_request_without_an_instance_uid_ends_the_association_only(
    make_gateway: Any, listen: Any, instance: Any
) -> None:
    gateway = make_gateway()
    port = listen(gateway).port
    assoc = associate(port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    answer = raw_store(assoc, encode(ct(), False, True), sop_class=CTImageStorage, instance=instance)
    assert answer.get("Status") in (None, 0x0117)
    assoc.abort()
    assert until(lambda: not incoming(gateway))
    other = associate(port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    assert other.send_c_store(ct()).Status == 0x0000
    other.release()


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ([JPEGBaseline8Bit, "1.2.840.10008.1.2.4.80", ExplicitVRLittleEndian], ExplicitVRLittleEndian),
        ([JPEGBaseline8Bit, "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.90"], "1.2.840.10008.1.2.4.90"),
        ([JPEGBaseline8Bit], JPEGBaseline8Bit),
        (["1.2.840.10008.1.2.4.202"], "1.2.840.10008.1.2.4.202"),
        ([ImplicitVRLittleEndian, ExplicitVRLittleEndian], ExplicitVRLittleEndian),
    ],
)
def test_uncompressed_then_lossless_then_lossy(
    make_gateway: Any, listen: Any, proposed: list[str], chosen: str
) -> None:
    port = listen(make_gateway()).port
    assoc = associate(port, [(CTImageStorage, proposed), (PRIVATE_CLASS, proposed)])
    assert [cx.transfer_syntax[0] for cx in assoc.accepted_contexts] == [chosen, chosen]
    assoc.release()


def test_private_and_unknown_sop_classes_are_taken(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    assoc = associate(listen(gateway).port, [(PRIVATE_CLASS, [ExplicitVRLittleEndian])])
    dataset = ct(SOPClassUID=PRIVATE_CLASS)
    data = encode(dataset, False, True)
    assert raw_store(assoc, data, sop_class=PRIVATE_CLASS, instance=dataset.SOPInstanceUID).Status == 0x0000
    assoc.release()
    row = gateway.index.by_sop(dataset.SOPInstanceUID)
    assert row is not None and row.sop_class == PRIVATE_CLASS


def test_an_unknown_calling_title_is_rejected(make_gateway: Any, listen: Any) -> None:
    port = listen(make_gateway(calling_ae_allow="CT1,CT2")).port
    refused = associate(port, [(Verification, [ImplicitVRLittleEndian])], "STRANGER")
    assert refused.is_rejected and not refused.is_established
    assert (refused.acceptor.primitive.result_source, refused.acceptor.primitive.diagnostic) == (0x01, 0x03)
    known = associate(port, [(Verification, [ImplicitVRLittleEndian])], "CT2")
    assert known.is_established
    known.release()


def test_production_without_an_allow_list_rejects_everybody(make_gateway: Any, listen: Any) -> None:
    port = listen(make_gateway(profile="production", dicom_plain="allow")).port
    assert associate(port, [(Verification, [ImplicitVRLittleEndian])]).is_rejected


def test_too_large_is_refused_while_it_arrives_and_the_next_is_taken(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway(max_object_bytes=60_000)
    assoc = associate(listen(gateway).port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    large = ct(ImageComments="x" * 100_000)
    data = encode(large, False, True)
    answer = raw_store(assoc, data, sop_class=CTImageStorage, instance=large.SOPInstanceUID)
    assert (answer.Status, answer.ErrorComment) == (0xA700, "object-too-large")
    assert assoc.send_c_store(ct()).Status == 0x0000
    assoc.release()
    assert incoming(gateway) == []


def test_below_the_watermark_nothing_is_taken(make_gateway: Any, listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = make_gateway()
    assoc = associate(listen(gateway).port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    full = shutil.disk_usage(gateway.settings.spool_dir)._replace(free=0)
    with monkeypatch.context() as patch:
        patch.setattr("gateway.spool.shutil.disk_usage", lambda path: full)
        assert assoc.send_c_store(ct()).Status == 0xA700
    assert assoc.send_c_store(ct()).Status == 0x0000
    assoc.release()
    assert incoming(gateway) == []


def half_sent(port: int) -> Any:
    """An association in the middle of a C-STORE of 1 MB."""
    assoc = associate(port, [(CTImageStorage, [ExplicitVRLittleEndian])])
    dataset = ct(ImageComments="x" * 1_000_000)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, dataset.SOPInstanceUID
    request.DataSet = BytesIO(encode(dataset, False, True))
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    pdus = list(message.encode_msg(assoc.accepted_contexts[0].context_id, 64 << 10))
    for pdu in pdus[: len(pdus) // 2]:
        assoc.dul.send_pdu(pdu)
    return assoc


@pytest.mark.parametrize("how", ["abort", "cut"])
def test_a_transfer_that_breaks_off_leaves_no_file(make_gateway: Any, listen: Any, how: str) -> None:
    gateway = make_gateway()
    assoc = half_sent(listen(gateway).port)
    assert until(lambda: incoming(gateway))
    if how == "abort":
        assoc.abort()
    else:
        assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    assert until(lambda: not incoming(gateway))
    assert gateway.index.counts().total == 0
    assoc.kill()


def test_a_sender_that_falls_silent_is_dropped_and_leaves_no_file(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway(network_timeout_seconds=2.5)
    port = listen(gateway).port
    assoc = half_sent(port)
    assert until(lambda: incoming(gateway))
    assert until(lambda: not incoming(gateway))
    assoc.kill()
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS) as peer:
        peer.sendall(b"\x01\x00" + struct.pack(">L", 200) + b"\x00" * 50)  # a PDU that never ends
        assert_ended(peer)
    idle = associate(port, [(Verification, [ImplicitVRLittleEndian])])
    assert idle.is_established
    assert until(lambda: not idle.is_established)


def assert_ended(peer: socket.socket) -> None:
    """Closed, reset (of what was sent, not all was read), or A-ABORT."""
    with suppress(ConnectionResetError):
        assert peer.recv(64)[:1] in (b"", b"\x07")


def test_a_pdu_of_4_gib_is_not_believed(make_gateway: Any, listen: Any) -> None:
    port = listen(make_gateway()).port
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS) as peer:
        peer.sendall(b"\x01\x00" + struct.pack(">L", 0xFFFFFFF0) + b"\x00" * 64)
        assert_ended(peer)
    assoc = associate(port, [(Verification, [ImplicitVRLittleEndian])])
    assert assoc.is_established
    assoc.release()


@pytest.mark.parametrize(("state", "most"), [("Sta2", REQUEST_CAP_BYTES), ("Sta6", PDU_CAP_BYTES)])
def test_a_declared_length_costs_no_memory_before_its_bytes_come(gw: Gateway, state: str, most: int) -> None:
    ours, theirs = socket.socketpair()
    dul = SimpleNamespace(
        socket=SimpleNamespace(socket=ours),
        _is_transport_event=lambda: False,
        state_machine=SimpleNamespace(current_state=state),
    )
    nothing: Any = None
    door = Door(gw.spool, nothing, nothing, nothing, nothing, idle_seconds=60.0)
    with ours, theirs, closing(AssociationStream(SimpleNamespace(dul=dul), door)) as stream:
        theirs.sendall(b"x" * 100)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="more bytes than any peer"):
            stream.recv(most + 1)
        tracemalloc.start()
        try:
            got = stream.recv(most)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert bytes(got) == b"x" * 100
    assert peak < most // 8


@pytest.mark.parametrize("kind", ["command", "data"])
def test_what_is_no_c_store_is_not_gathered_without_end(make_gateway: Any, listen: Any, kind: str) -> None:
    """Fragments that never end, of a command set or of a data set that a C-ECHO must not have."""
    assoc = associate(listen(make_gateway()).port, [(Verification, [ImplicitVRLittleEndian])])
    context = assoc.accepted_contexts[0].context_id
    if kind == "data":
        command = Dataset()
        command.AffectedSOPClassUID, command.CommandField = Verification, 0x0030
        command.MessageID, command.CommandDataSetType = 1, 0x0001
        assoc.dul.send_pdu(fragment(context, b"\x03" + (encode(command, True, True) or b"")))
    for _ in range(64):
        assoc.dul.send_pdu(fragment(context, (b"\x01" if kind == "command" else b"\x00") + bytes(64 << 10)))
    assert until(lambda: not assoc.is_established)
    assoc.kill()


def fragment(context: int, value: bytes) -> P_DATA:
    """One P-DATA with one presentation data value: message control header and bytes (PS3.8 E.2)."""
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[context, value]]
    return primitive


def test_several_associations_at_once(make_gateway: Any, listen: Any) -> None:
    gateway = make_gateway()
    port = listen(gateway).port

    def send(_: int) -> list[int]:
        assoc = associate(port, [(CTImageStorage, [ExplicitVRLittleEndian])])
        statuses = [assoc.send_c_store(ct()).Status for _ in range(3)]
        assoc.release()
        return statuses

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(send, range(12)))
    assert results == [[0, 0, 0]] * 12
    assert gateway.index.counts().total == 36
    assert audit.verify(gateway.index).ok


def test_the_process_listens_and_stops_on_sigterm(make_gateway: Any, tmp_path: Path) -> None:
    port = free_port()
    settings = load_settings(home=tmp_path / "process", dicom_port=port, watermark_bytes=0)
    env = {
        **child_environment(settings),
        "PALIMPSEST_WATERMARK_BYTES": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    process = subprocess.Popen([sys.executable, "-m", "service.listener"], env=env, stderr=subprocess.PIPE)
    try:
        established: list[Any] = []

        def try_once() -> bool:
            assoc = associate(port, [(CTImageStorage, [ExplicitVRLittleEndian])])
            established.append(assoc)
            return bool(assoc.is_established)

        assert until(try_once)
        assert established[-1].send_c_store(ct()).Status == 0x0000
        established[-1].release()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        log = process.stderr.read().decode()
        process.stderr.close()
    assert "CompressedSamples" not in log, "patient data in the log"
    assert list((tmp_path / "process" / "spool" / "incoming").iterdir()) == []


@pytest.mark.peers
def test_dcmtk_storescu(make_gateway: Any, listen: Any) -> None:
    if shutil.which("storescu") is None:
        if os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
            pytest.fail("DCMTK's storescu is required here and not installed")
        pytest.skip("DCMTK's storescu is not installed")
    gateway = make_gateway()
    port = listen(gateway).port
    names = ["CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "SC_rgb_rle.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm"]
    files = [str(get_testdata_file(name, download=False)) for name in names]
    done = subprocess.run(
        ["storescu", "-aet", "DCMTK", "-aec", "PALIMPSEST", "-xv", "-R", "127.0.0.1", str(port), files[0]],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["dcmsend", "-aet", "DCMTK", "-aec", "PALIMPSEST", "--decompress-never", "127.0.0.1", str(port), *files],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for path in files:
        head = dcmread(path, stop_before_pixels=True)
        row = gateway.index.by_sop(head.SOPInstanceUID)
        assert row is not None, path
        assert row.calling_ae == "DCMTK"
    assert incoming(gateway) == []
