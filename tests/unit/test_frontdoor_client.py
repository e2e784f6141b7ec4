"""The DICOMweb client: several parts, cut-off answers, waiting as asked, problems by name."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest.cli import app
from palimpsest.client import FetchError, Route, WebClient
from tests.certificates import Authority

BOUNDARY = "b0undary"
MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def multipart(*parts: bytes, closed: bool = True) -> bytes:
    body = b"".join(
        b"--" + BOUNDARY.encode() + b"\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts
    )
    return body + (b"--" + BOUNDARY.encode() + b"--\r\n" if closed else b"")


class Gateway(ThreadingHTTPServer):
    """Answers with what `answers` holds, one after another, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        answers = self.server.answers
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[WebClient]:
    client = WebClient(f"http://127.0.0.1:{gateway.server_address[1]}", "t0ken")
    yield client
    client.close()


def test_every_part_becomes_a_file(gateway: Gateway, web: WebClient, tmp_path: Path) -> None:
    parts = [b"one", b"", b"\r\n--not the boundary\r\n\r\n", bytes(range(256)) * 5000]
    gateway.answers = [(200, {"Content-Type": MULTIPART}, multipart(*parts))]
    files = list(web.fetch(Route.uids("1.2", "1.3"), tmp_path))
    assert [path.read_bytes() for path in files] == parts
    path, headers = gateway.requests[0]
    assert path == "/dicomweb/studies/1.2/series/1.3"
    assert headers["Authorization"] == "Bearer t0ken" and "transfer-syntax=*" in headers["Accept"]


def test_a_single_part_answer_is_a_file_too(gateway: Gateway, web: WebClient) -> None:
    gateway.answers = [(200, {"Content-Type": "application/dicom"}, b"whole")]
    with web.fetch_one(Route.digest("ab" * 32)) as path:
        assert path.read_bytes() == b"whole"
    assert gateway.requests[0][0] == f"/dicomweb/objects/{'ab' * 32}"
    assert not path.exists()


@pytest.mark.parametrize(
    "body",
    [multipart(b"one", closed=False), multipart(b"one")[:-6], multipart(b"one")[:20], b"no boundary at all"],
)
def test_a_cut_off_answer_is_no_short_study(gateway: Gateway, web: WebClient, body: bytes, tmp_path: Path) -> None:
    gateway.answers = [(200, {"Content-Type": MULTIPART}, body)]
    with pytest.raises(FetchError) as caught:
        list(web.fetch(Route.uids("1.2"), tmp_path))
    assert caught.value.reason == "cut-off"


def test_two_objects_where_one_was_asked_for_are_refused(gateway: Gateway, web: WebClient) -> None:
    gateway.answers = [(200, {"Content-Type": MULTIPART}, multipart(b"one", b"two"))]
    with pytest.raises(FetchError, match="2 objects"), web.fetch_one(Route.uids("1", "2", "3")):
        pass


def test_503_is_waited_for(gateway: Gateway, web: WebClient) -> None:
    busy = (503, {"Retry-After": "0", "Content-Type": "application/problem+json"}, b'{"reason": "busy"}')
    gateway.answers = [busy, busy, (200, {"Content-Type": MULTIPART}, multipart(b"one"))]
    with web.fetch_one(Route.uids("1", "2", "3")) as path:
        assert path.read_bytes() == b"one"
    assert len(gateway.requests) == 3


def test_a_problem_is_raised_by_its_reason_and_not_repeated(gateway: Gateway, web: WebClient) -> None:
    gateway.answers = [(500, {"Content-Type": "application/problem+json"}, b'{"reason": "digest", "detail": "no"}')]
    with pytest.raises(FetchError, match="^no$") as caught, web.fetch_one(Route.uids("1", "2", "3")):
        pass
    assert caught.value.reason == "digest" and len(gateway.requests) == 1


def test_an_answer_without_a_problem_is_named_by_its_status(gateway: Gateway, web: WebClient) -> None:
    gateway.answers = [(404, {}, b"<html>")]
    with pytest.raises(FetchError) as caught, web.fetch_one(Route.uids("1")):
        pass
    assert caught.value.reason == "http-404"


def test_https_by_the_authority_that_is_named(gateway: Gateway, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "Other CA")
    ours = authority.issue("PALIMPSEST")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.certificate, ours.key)
    gateway.socket = context.wrap_socket(gateway.socket, server_side=True)
    gateway.answers = [(200, {"Content-Type": "application/dicom"}, b"whole")]
    url = f"https://127.0.0.1:{gateway.server_address[1]}"
    command = ["fetch", "1.2", "--url", url, "--token", "t0ken", "--out", str(tmp_path / "out"), "--ca-file"]
    told = CliRunner().invoke(app, [*command, str(authority.file)])
    assert told.exit_code == 0, told.output
    assert (tmp_path / "out" / "000000.dcm").read_bytes() == b"whole"
    for file in (other.file, ours.key, tmp_path / "nothing"):
        assert CliRunner().invoke(app, [*command, str(file)]).exit_code == 1
    assert len(gateway.requests) == 1
