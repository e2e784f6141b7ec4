"""DICOM over TLS, both directions: who is let in, who is not and what the trail says of it, with DCMTK as the peer."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]
from typer.testing import CliRunner

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.errors import PolicyRefused, Unavailable
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, load_settings
from gateway.tls import client_context
from palimpsest.addresses import Secure, local_target
from palimpsest.cli import app
from palimpsest.dimse import Answer, SendError, send_all
from palimpsest.scan import inspect
from service.listener import Listener
from tests.certificates import Authority, Identity
from tests.running import free_port, until
from worker.sender import Delivery, open_sender

pytestmark = pytest.mark.integration

CT = str(get_testdata_file("CT_small.dcm", download=False))


@dataclass
class Place:
    """An authority, our identity and a modality's, and a way to make listeners."""

    folder: Path
    authority: Authority
    ours: Identity
    modality: Identity
    make: Callable[..., tuple[Gateway, Listener]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    authority = Authority(tmp_path)
    ours, modality = authority.issue("PALIMPSEST"), authority.issue("CT1")
    running: list[tuple[Gateway, Listener]] = []

    def make(**settings: Any) -> tuple[Gateway, Listener]:
        files = {"dicom_tls_cert": ours.certificate, "dicom_tls_key": ours.key, "dicom_tls_ca": authority.file}
        values = {
            "dicom_port": 0,
            "dicom_tls_port": 0,
            "watermark_bytes": 0,
            "calling_ae_allow": "CT1,ECHOSCU,STORESCU",
        }
        gateway = build(load_settings(home=tmp_path / "home", **values | files | settings), queue=MemoryQueue())
        listener = Listener(gateway)
        listener.start()
        running.append((gateway, listener))
        return gateway, listener

    yield Place(tmp_path, authority, ours, modality, make)
    for gateway, listener in running:
        listener.stop(grace_seconds=0.2)
        gateway.close()


def client(place: Place, identity: Identity | None = None, authority: Authority | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str((authority or place.authority).file))
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


def associate(port: int | None, context: ssl.SSLContext, calling: str = "CT1") -> Any:
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = 120
    entity.add_requested_context(Verification, ImplicitVRLittleEndian)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assert port is not None
    return entity.associate("127.0.0.1", port, ae_title="PALIMPSEST", tls_args=(context, "127.0.0.1"))


def refusals(gateway: Gateway) -> list[tuple[str, str]]:
    found = [event["detail"] for event in audit.tail(gateway.index) if event["event"] == "refused"]
    return [(detail["reason"], detail["address"]) for detail in found]


def test_both_sides_show_a_certificate_and_an_object_goes_through(place: Place) -> None:
    gateway, listener = place.make(profile="production")
    assert listener.port is None, "production listens with TLS only"
    assoc = associate(listener.tls_port, client(place, place.modality))
    assert assoc.is_established
    connection = assoc.dul.socket.socket
    assert connection.version() == "TLSv1.3" and connection.compression() is None
    assert assoc.send_c_echo().Status == 0x0000
    assert [assoc.send_c_store(dcmread(CT)).Status for _ in range(2)] == [0x0000, 0x0000]
    assoc.release()
    assert gateway.index.counts().total == 1
    row = gateway.index.by_sop(dcmread(CT).SOPInstanceUID)
    assert row is not None
    with gateway.spool.open(row.digest) as file:
        assert dcmread(file) == dcmread(CT)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_who_is_not_known_is_not_let_in_and_the_trail_says_why(place: Place) -> None:
    gateway, listener = place.make()
    stranger = Authority(place.folder, "Other CA").issue("CT1", file="stranger")
    expired = place.authority.issue("CT1", days=-2, file="expired")
    old = client(place, place.modality)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    weak = client(place, place.modality)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("AES128-SHA256:AES128-SHA")
    for context in (client(place), client(place, stranger), client(place, expired), old, weak):
        assert not associate(listener.tls_port, context).is_established
    plain = AE(ae_title="CT1")
    plain.acse_timeout = 5
    plain.add_requested_context(Verification)
    assert listener.tls_port is not None
    assert not plain.associate("127.0.0.1", listener.tls_port).is_established
    expected = {
        "tls-peer-did-not-return-a-certificate", "tls-certificate-verify-failed", "tls-unsupported-protocol",
        "tls-no-shared-cipher",
    }  # fmt: skip
    assert until(lambda: expected <= {reason for reason, _ in refusals(gateway)}), refusals(gateway)
    assert {address for _, address in refusals(gateway)} == {"127.0.0.1"}
    # and who is known still is
    again = client(place, place.modality)
    again.maximum_version = ssl.TLSVersion.TLSv1_2
    assoc = associate(listener.tls_port, again)
    assert assoc.is_established and assoc.dul.socket.socket.version() == "TLSv1.2"
    assoc.release()


def test_a_slow_handshake_holds_up_nobody_else(place: Place) -> None:
    _, listener = place.make()
    assert listener.tls_port is not None
    with socket.create_connection(("127.0.0.1", listener.tls_port)) as silent:
        assoc = associate(listener.tls_port, client(place, place.modality))
        assert assoc.is_established
        assoc.release()
        assert silent.fileno() > 0


def test_an_ae_title_may_be_bound_to_its_certificate(place: Place) -> None:
    gateway, listener = place.make(dicom_tls_bind_ae=True)
    own = associate(listener.tls_port, client(place, place.modality))
    assert own.is_established
    own.release()
    borrowed = associate(listener.tls_port, client(place, place.modality), "ECHOSCU")
    assert borrowed.is_rejected
    assert (borrowed.acceptor.primitive.result_source, borrowed.acceptor.primitive.diagnostic) == (0x01, 0x03)
    assert until(lambda: refusals(gateway) == [("calling-ae-not-in-certificate", "127.0.0.1")])


def test_a_renewed_certificate_needs_no_restart(place: Place) -> None:
    _, listener = place.make()

    def serial() -> int:
        assoc = associate(listener.tls_port, client(place, place.modality))
        found = int(assoc.dul.socket.socket.getpeercert()["serialNumber"], 16)
        assoc.release()
        return found

    before = serial()
    place.ours.key.write_text("half written")
    assert serial() == before
    place.authority.issue("PALIMPSEST")
    assert serial() != before


def test_production_without_tls_and_without_a_word_on_it_does_not_start(place: Place) -> None:
    with pytest.raises(PolicyRefused) as caught:
        place.make(profile="production", dicom_tls_cert=None)
    assert caught.value.reason == "no-dicom-port" and "PALIMPSEST_DICOM_PLAIN=allow" in str(caught.value)
    _, both = place.make(profile="production", dicom_plain="allow")
    assert both.port is not None and both.tls_port is not None


@pytest.mark.parametrize("broken", ["dicom_tls_cert", "dicom_tls_key", "dicom_tls_ca"])
def test_files_that_cannot_be_used_are_named(place: Place, broken: str) -> None:
    for value in (place.folder / "missing.pem", None):
        if broken == "dicom_tls_cert" and value is None:
            continue  # that is how TLS is turned off
        with pytest.raises(Unavailable) as caught:
            place.make(**{broken: value})
        assert caught.value.reason == "bad-tls-files" and "PALIMPSEST_DICOM_TLS_" in str(caught.value)


# --- DCMTK -------------------------------------------------------------------------------------------------------


def need(program: str) -> str:
    """The program's path; without it the test is skipped, or fails where peers are required (CI)."""
    found = shutil.which(program)
    if found is None and os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
        pytest.fail(f"{program} is required (PALIMPSEST_REQUIRE_PEERS=1) and not installed")
    return found or pytest.skip(f"{program} is not installed")


def dcmtk(program: str, place: Place, port: int | None, *options: str, identity: Identity | None) -> int:
    tls = ["+tls", str(identity.key), str(identity.certificate)] if identity else ["+tla"]
    command = [need(program), *tls, "+cf", str(place.authority.file), "-aec", "PALIMPSEST", "127.0.0.1", str(port)]
    return subprocess.run([*command, *options], capture_output=True, timeout=120).returncode


@pytest.mark.peers
def test_dcmtk_sends_over_tls(place: Place) -> None:
    gateway, listener = place.make()
    assert dcmtk("echoscu", place, listener.tls_port, identity=place.modality) == 0
    assert dcmtk("storescu", place, listener.tls_port, CT, identity=place.modality) == 0
    assert gateway.index.counts().total == 1
    assert dcmtk("echoscu", place, listener.tls_port, identity=None) != 0
    stranger = Authority(place.folder, "Other CA").issue("CT1", file="stranger")
    assert dcmtk("echoscu", place, listener.tls_port, identity=stranger) != 0
    assert until(lambda: len(refusals(gateway)) == 2)


@pytest.mark.peers
def test_objects_go_out_over_tls_and_to_nobody_else(place: Place) -> None:
    gateway, _ = place.make()
    port, folder = free_port(), place.folder / "received"
    folder.mkdir()
    theirs = place.authority.issue("storescp")
    command = [need("storescp"), "+tls", str(theirs.key), str(theirs.certificate), "+cf", str(place.authority.file)]
    process = subprocess.Popen([*command, "-od", str(folder), str(port)], stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        values: dict[str, Any] = {"name": "pacs", "host": "127.0.0.1", "port": port, "tls": True}
        data = Path(CT).read_bytes()
        with open_sender(gateway.settings, Destination(**values)) as sender:
            assert sender.send("key", data) == Delivery("done", "stored")
        [received] = folder.iterdir()
        assert dcmread(received).PixelData == dcmread(CT).PixelData
        other = Authority(place.folder, "Other CA")
        with open_sender(gateway.settings, Destination(**values, ca_file=other.file)) as sender:
            assert sender.send("key", data).outcome == "down"
        impostor = Destination(**values | {"host": "localhost"})  # its certificate names 127.0.0.1 only
        with open_sender(gateway.settings, impostor) as sender:
            assert sender.send("key", data).outcome == "down"
        assert len(list(folder.iterdir())) == 1
    finally:
        process.terminate()
        process.wait(120)


def test_the_destinations_own_files_count(place: Place) -> None:
    gateway, _ = place.make()
    other = Authority(place.folder, "Other CA")
    ours = other.issue("US", file="us")
    destination = Destination(
        name="x", tls=True, ca_file=other.file, client_cert_file=ours.certificate, client_key_file=ours.key
    )
    context = client_context(gateway.settings, destination)
    assert [dict(part[0])["commonName"] for part in [cert["subject"] for cert in context.get_ca_certs()]] == [
        "Other CA"
    ]
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    with pytest.raises(Unavailable):
        client_context(gateway.settings, destination.model_copy(update={"ca_file": place.folder / "missing"}))


# --- the front door as sender ---


def test_palimpsest_send_goes_by_tls(place: Place) -> None:
    gateway, listener = place.make(profile="production", dicom_tls_port=free_port(), dicom_tls_bind_ae=True)
    assert listener.port is None
    answers: list[Answer] = []
    secure = Secure("CT1.test", place.modality.certificate, place.modality.key)
    with pytest.raises(SendError, match="do its certificate and ours fit"):  # the listener's bears another name
        send_all([inspect(Path(CT))], local_target(gateway.settings, secure), answers.append)  # type: ignore[list-item]
    stranger = Authority(place.folder, "Strange CA")
    with pytest.raises(SendError):
        target = local_target(gateway.settings, replace(secure, name="", authorities=stranger.file))
        send_all([inspect(Path(CT))], target, answers.append)  # type: ignore[list-item]
    target = local_target(gateway.settings, replace(secure, name="PALIMPSEST.test"))
    assert "SSLContext" not in repr(target)
    send_all([inspect(Path(CT))], target, answers.append)  # type: ignore[list-item]
    assert [answer.ok for answer in answers] == [True]
    assert gateway.index.counts().total == 1


def test_the_command_takes_the_tls_port_where_no_other_is_open(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, _ = place.make(profile="production", dicom_tls_port=free_port(), dicom_tls_bind_ae=False)
    monkeypatch.setenv("PALIMPSEST_DICOM_TLS_BIND_AE", "false")  # it sends with the listener's own certificate
    for name in ("profile", "dicom_tls_port", "dicom_tls_cert", "dicom_tls_key", "dicom_tls_ca", "watermark_bytes"):
        monkeypatch.setenv(f"PALIMPSEST_{name.upper()}", str(getattr(gateway.settings, name)))
    monkeypatch.setenv("PALIMPSEST_CALLING_AE_ALLOW", "CT1")
    command = ["send", CT, "--no-fetch", "--patience", "0.2", "--home", str(gateway.settings.home)]
    told = CliRunner().invoke(app, command)  # nobody archives here: it gives up waiting
    assert told.exit_code == 1 and gateway.index.counts().total == 1, told.output
    told = CliRunner().invoke(app, [*command, "--tls-cert", str(place.modality.certificate)])
    assert told.exit_code == 2 and "go together" in told.output


def test_there_is_no_tls_port_without_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        local_target(load_settings(home=tmp_path), Secure())
    assert caught.value.reason == "no-tls-port"
