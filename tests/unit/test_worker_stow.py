"""Delivery by STOW-RS: what counts is what the answer says of our instance, or what comes back."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.errors import Unavailable
from gateway.part10 import peek
from gateway.settings import Destination, Settings, load_settings
from tests.object_makers import packaged
from worker.forward_stow import StowSender, classify_http
from worker.sender import Delivery

CT = packaged("CT_small.dcm")
UID = str(peek(CT).sop_instance_uid)


def listed(sequence: str, **numbers: int) -> dict[str, Any]:
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [UID]}}
    item |= {tag.removeprefix("t"): {"vr": "US", "Value": [number]} for tag, number in numbers.items()}
    return {sequence: {"vr": "SQ", "Value": [item]}}


STORED = listed("00081199")


class Service:
    """A DICOMweb service that answers `answer` and keeps what it was sent."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answer: tuple[int, Any] = (200, STORED)
        self.headers: dict[str, str] = {}
        self.kept: list[bytes] = []
        self.asked: list[dict[str, str]] = []
        self.gives: bytes | None = None
        self.before: Callable[[], None] = lambda: None
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.asked.append(dict(self.headers))
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                [part] = BytesParser().parsebytes(head + body).get_payload()  # type: ignore[misc]
                service.kept.append(part.get_payload(decode=True))  # type: ignore[union-attr]
                service.before()
                status, document = service.answer
                data = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.reply(status, data, "application/dicom+json")

            def do_GET(self) -> None:
                service.asked.append(dict(self.headers) | {"path": self.path})
                if service.gives is None:
                    self.reply(404, b"", "text/plain")
                    return
                body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + service.gives + b"\r\n--x--\r\n"
                self.reply(200, body, 'multipart/related; type="application/dicom"; boundary=x')

            def reply(self, status: int, data: bytes, kind: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **service.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_address[1]}/dicom-web"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def destination(self, **more: Any) -> Destination:
        return Destination(name="web", kind="stow", url=self.url, **more)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture
def quick(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path, network_timeout_seconds=60.0)


def send(quick: Settings, destination: Destination) -> Delivery:
    with StowSender(quick, destination) as sender:
        return sender.send("k", CT)


def test_an_object_goes_out_with_its_length_and_arrives_byte_for_byte(service: Service, quick: Settings) -> None:
    with StowSender(quick, service.destination()) as sender:
        assert [sender.send("k", CT) for _ in range(2)] == [Delivery("done", "stored")] * 2
    assert service.kept == [CT, CT]
    assert all("Transfer-Encoding" not in each and int(each["Content-Length"]) > len(CT) for each in service.asked)


@pytest.mark.parametrize(
    ("status", "document", "expected"),
    [
        (200, STORED, Delivery("done", "stored")),
        (202, listed("00081199", t00081196=0xB000), Delivery("done", "stored-with-warning")),
        (202, listed("00081199", t00081196=0xB006), Delivery("permanent", "element-discarded")),
        (202, listed("00081198", t00081197=0xA700), Delivery("retry", "peer-out-of-resources")),
        (409, listed("00081198", t00081197=0xC122), Delivery("permanent", "peer-cannot-understand")),
        (409, listed("00081198", t00081197=0x0122), Delivery("permanent", "peer-sop-class-not-supported")),
        (409, listed("00081198", t00081197=0x0110), Delivery("retry", "peer-failure")),
        (409, listed("00081198"), Delivery("retry", "peer-failure")),
        (409, {}, Delivery("permanent", "peer-refused")),
        (200, {}, Delivery("retry", "not-confirmed")),
        (200, b"<xml/>", Delivery("retry", "not-confirmed")),
        (200, [1, 2], Delivery("retry", "not-confirmed")),
        (200, {"00081199": {"Value": "nonsense"}, "00081198": 7}, Delivery("retry", "not-confirmed")),
        (200, {"00081199": {"Value": [{"00081155": {"Value": ["1.2.3"]}}]}}, Delivery("retry", "not-confirmed")),
        (401, {}, Delivery("down", "unauthorized")),
        (503, {}, Delivery("down", "peer-unavailable", 7.0)),
        (302, {}, Delivery("down", "redirected")),
    ],
)  # fmt: skip
def test_what_the_answer_says_of_our_instance_decides(
    service: Service, quick: Settings, status: int, document: Any, expected: Delivery
) -> None:
    service.answer = (status, document)
    service.headers = {"Retry-After": "7"} if status == 503 else {}
    assert send(quick, service.destination()) == expected


def test_an_answer_that_confirms_nothing_is_settled_by_reading_back(service: Service, quick: Settings) -> None:
    service.answer, service.gives = (200, b""), CT
    assert send(quick, service.destination()) == Delivery("done", "read-back")
    service.gives = CT[:20000] + bytes([CT[20000] ^ 1]) + CT[20001:]  # one bit of one pixel
    assert send(quick, service.destination()) == Delivery("retry", "not-confirmed")


def test_a_duplicate_is_a_success_only_if_it_is_the_same_object(service: Service, quick: Settings) -> None:
    service.answer, service.gives = (409, listed("00081198", t00081197=0x0111)), CT
    assert send(quick, service.destination()) == Delivery("done", "read-back")
    service.gives = None
    assert send(quick, service.destination()) == Delivery("permanent", "other-object-there")


def test_read_back_asks_for_every_object(service: Service, quick: Settings) -> None:
    assert send(quick, service.destination(read_back=True)) == Delivery("retry", "read-back-missing")
    service.gives = CT
    assert send(quick, service.destination(read_back=True)) == Delivery("done", "read-back")
    found = peek(CT)
    wanted = f"/dicom-web/studies/{found.study_uid}/series/{found.series_uid}/instances/{UID}"
    assert service.asked[-1]["path"] == wanted


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (400, "permanent"), (403, "down"), (404, "down"), (405, "down"), (406, "permanent"), (408, "retry"),
        (411, "permanent"), (413, "permanent"), (415, "permanent"), (418, "permanent"), (429, "down"), (500, "retry"),
        (502, "down"), (504, "down"), (507, "down"), (599, "retry"), (301, "down"),
    ],
)  # fmt: skip
def test_every_http_status_has_its_class(status: int, outcome: str) -> None:
    assert classify_http(status).outcome == outcome


def test_a_connection_that_breaks_or_never_was_is_down(service: Service, quick: Settings, nobody_port: int) -> None:
    service.before = lambda: (_ for _ in ()).throw(ConnectionAbortedError())  # type: ignore[assignment]
    service.server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    assert send(quick, service.destination()).outcome == "down"
    nobody = Destination(name="web", kind="stow", url=f"http://127.0.0.1:{nobody_port}/dicom-web")
    assert send(quick, nobody) == Delivery("down", "unreachable")


def test_a_service_that_never_answers_is_left_after_the_idle_time(service: Service, tmp_path: Path) -> None:
    over = threading.Event()
    service.before = lambda: (over.wait(120), None)[1]
    impatient = load_settings(home=tmp_path, network_timeout_seconds=0.2)
    assert send(impatient, service.destination()) == Delivery("down", "timeout")
    over.set()


def test_an_answer_without_end_is_cut(service: Service, quick: Settings) -> None:
    service.answer = (200, b" " * (1 << 21))
    assert send(quick, service.destination()) == Delivery("retry", "answer-too-long")


def test_credentials_come_from_files_or_the_environment_and_are_never_shown(
    service: Service, quick: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("abc.def\n")
    monkeypatch.setenv("WEB_PASSWORD", "hunter2")
    assert send(quick, service.destination(token_file=token)).outcome == "done"
    assert service.asked[-1]["Authorization"] == "Bearer abc.def"
    basic = service.destination(username="me", password_env="WEB_PASSWORD")
    assert send(quick, basic).outcome == "done"
    assert service.asked[-1]["Authorization"] == "Basic " + base64.b64encode(b"me:hunter2").decode()
    with StowSender(quick, basic) as sender:
        assert "hunter2" not in repr(sender) + repr(vars(sender))
    token.unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        StowSender(quick, service.destination(token_file=token))


def certificate(folder: Path, name: str, issuer: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """A key and a certificate as files <name>.key and <name>.pem; self-signed, or signed by `issuer`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signer, by = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, False).add_extension(x509.BasicConstraints(issuer is None, None), True)
        .sign(signer, hashes.SHA256())
    )  # fmt: skip
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.key").write_bytes(private)
    return key, made


def test_mutual_tls(quick: Settings, tmp_path: Path) -> None:
    authority = certificate(tmp_path, "ca")
    for name in ("server", "client"):
        certificate(tmp_path, name, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    service = Service(context)
    service.server.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
    ours = {"client_cert_file": tmp_path / "client.pem", "client_key_file": tmp_path / "client.key"}
    assert send(quick, service.destination(ca_file=tmp_path / "ca.pem", **ours)) == Delivery("done", "stored")
    assert send(quick, service.destination(**ours)) == Delivery("down", "tls-failure")  # not signed by anyone we trust
    assert send(quick, service.destination(ca_file=tmp_path / "ca.pem")).outcome == "down"  # no certificate of ours
    with pytest.raises(Unavailable, match="certificate or key of 'web' cannot be read"):
        StowSender(quick, service.destination(ca_file=tmp_path / "missing.pem"))
    service.close()
