"""The HTTP service over a real gateway: who may do what, STOW, WADO, QIDO, health, replays, the admin page.

The worker's side is played by the test: what it would put into the cache or the index is put there by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
import requests
import uvicorn
from dicomweb_client.api import DICOMwebClient
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.errors import Unavailable
from gateway.instance import State
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, child_environment, load_settings
from gateway.tokens import mint_token
from service.access import PUBLIC, RULES
from service.api import RETRIEVING, create_app
from service.multipart import close_delimiter, frame_part
from tests.running import WAIT_SECONDS, free_port, until

pytestmark = [
    pytest.mark.integration,
    # wrong values are sent on purpose
    pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value"),
]

CT = Path(get_testdata_file("CT_small.dcm", download=False))
RELATED = 'multipart/related; type="application/dicom"; boundary=B'
ROLES = ("clinician", "admin", "auditor", "service")


class AnsweringQueue(MemoryQueue):
    """A queue whose `call` is answered by the test instead of by a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Callable[[int], dict[str, Any]]] = {}
        self.asked: list[str] = []

    def call(self, task: str, args: Any, queue: str, timeout: float, priority: int = 0) -> dict[str, Any]:
        self.asked.append(str(args[1]))
        if args[1] not in self.answers:
            raise Unavailable("retrieve-timeout", "no worker", retry_after=3)
        return self.answers[args[1]](int(args[0]))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    destinations = (Destination(name="pacs", host="127.0.0.1", port=11113, ae_title="PACS"),)
    settings = load_settings(
        home=tmp_path / "home", watermark_bytes=1, max_object_bytes=1_000_000, destinations=destinations
    )
    made = build(settings, queue=AnsweringQueue())
    yield made
    made.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    with TestClient(create_app(gateway), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def bearer(gateway: Gateway, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {mint_token(gateway, role, 'test-' + role)}"}


def instance(**changes: Any) -> bytes:
    dataset = pydicom.dcmread(CT)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def head(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(data), stop_before_pixels=True)


def related(*bodies: bytes) -> bytes:
    parts = [frame_part("B", {"Content-Type": "application/dicom"}, first=i == 0) + b for i, b in enumerate(bodies)]
    return b"".join(parts) + close_delimiter("B")


def stow(web: TestClient, gateway: Gateway, *bodies: bytes, path: str = "/dicomweb/studies") -> httpx.Response:
    headers = {**bearer(gateway, "service"), "Content-Type": RELATED}
    return web.post(path, content=related(*bodies), headers=headers)


def index_as_worker_would(gateway: Gateway, data: bytes) -> None:
    dataset = head(data)
    row = gateway.index.by_sop(dataset.SOPInstanceUID)
    assert row is not None
    keywords = (
        "PatientName",
        "PatientID",
        "StudyDate",
        "Modality",
        "Rows",
        "Columns",
        "SeriesNumber",
        "InstanceNumber",
    )
    values = {name: getattr(dataset, name, None) for name in keywords}
    values = {name: value if isinstance(value, int) or value is None else str(value) for name, value in values.items()}
    gateway.index.set_attributes(row.id, values, json.dumps(dataset.to_json_dict()))


def incoming(gateway: Gateway) -> list[Path]:
    return [path for path in gateway.settings.incoming_dir.rglob("*") if path.is_file()]


def events(gateway: Gateway) -> list[str]:
    return [event["event"] for event in reversed(audit.tail(gateway.index, 1000))]


# --- who may do what ---------------------------------------------------------------------------------------------


def api_routes(web: TestClient) -> list[tuple[str, str]]:
    routes = [route for route in web.app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    assert len(routes) == len(web.app.routes)  # type: ignore[attr-defined]  nothing is mounted beside the table
    with_head = {route.path for route in routes if "GET" in route.methods}
    assert with_head == {route.path for route in routes if "HEAD" in route.methods}  # RFC 9110 9.1: both or none
    return [(method, route.path) for route in routes for method in route.methods - {"HEAD"}]


def test_every_route_has_a_rule_and_every_rule_a_route(web: TestClient) -> None:
    assert sorted(api_routes(web)) == sorted(RULES)
    public = {path for (_, path), roles in RULES.items() if roles == PUBLIC}
    code = {"/admin/style.css", "/admin/live.js", "/viewer", "/viewer/{path:path}"}
    signing_in = {"/login", "/login/start", "/login/callback", "/logout"}
    assert public == {"/", "/healthz", "/readyz", "/openapi.json"} | code | signing_in


def filled(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: "1" if match[1] == "frames" else "1.2.3", path)


def test_every_protected_route_answers_401_and_403(web: TestClient, gateway: Gateway) -> None:
    tokens = {role: bearer(gateway, role) for role in ROLES}
    for (method, path), roles in RULES.items():
        if roles == PUBLIC:
            continue
        bare = web.request(method, filled(path))
        assert bare.status_code == 401, path
        assert bare.headers["www-authenticate"].startswith("Bearer")
        assert bare.headers["content-type"] == "application/problem+json"
        for role, headers in tokens.items():
            answer = web.request(method, filled(path), headers=headers)
            refused = answer.status_code == 403 and answer.json()["reason"] == "role-not-allowed"
            assert refused == (role not in roles), (method, path, role, answer.status_code)


def test_bad_tokens_are_refused_and_audited(web: TestClient, gateway: Gateway) -> None:
    good = mint_token(gateway, "clinician", "someone")
    header, payload, signature = good.split(".")
    flipped = ("A" if signature[5] != "A" else "B").join((signature[:5], signature[6:]))
    for token in ("x", "a.b.c", f"{header}.{payload}.", f"{header}.{payload}.{flipped}", good + "x"):
        answer = web.get("/dicomweb/studies", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["reason"]) == (401, "token-invalid"), token
    assert until(lambda: events(gateway).count("login-failed") == 1)  # the rest of the minute is one line more
    assert web.get("/dicomweb/studies", headers={"Authorization": f"Bearer {good}"}).status_code == 204
    gateway.keys.rotate("token")
    assert web.get("/dicomweb/studies", headers={"Authorization": f"Bearer {good}"}).status_code == 401


def test_answers_carry_security_headers_and_unknown_paths_are_problems(web: TestClient) -> None:
    for path, status in (("/healthz", 200), ("/nowhere", 404), ("/openapi.json", 200), ("/docs", 404)):
        answer = web.get(path)
        assert answer.status_code == status
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert web.get("/nowhere").json()["type"] == "urn:palimpsest:problem:not-found"
    assert web.delete("/healthz").status_code == 405


def test_an_unexpected_error_is_a_500_problem_without_its_text(
    web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any) -> None:
        raise RuntimeError("Doe^John")

    monkeypatch.setattr(type(gateway.index), "counts", broken)
    answer = web.get("/api/status", headers=bearer(gateway, "admin"))
    assert (answer.status_code, answer.json()["reason"]) == (500, "internal-error")
    assert "Doe" not in answer.text


# --- STOW-RS -----------------------------------------------------------------------------------------------------


def test_store_all_some_none(web: TestClient, gateway: Gateway) -> None:
    first, second = instance(), instance()
    done = stow(web, gateway, first, second)
    assert (done.status_code, done.headers["content-type"]) == (200, "application/dicom+json")
    assert [item["00081155"]["Value"] for item in done.json()["00081199"]["Value"]] == [
        [head(first).SOPInstanceUID], [head(second).SOPInstanceUID],
    ]  # fmt: skip
    assert "00081198" not in done.json()

    third = instance()
    some = stow(web, gateway, b"noise", third, instance(SOPInstanceUID="1.2.bad"))
    assert some.status_code == 202
    assert len(some.json()["00081199"]["Value"]) == 1
    assert (
        len(some.json().get("0008119A", {"Value": []})["Value"])
        + len(some.json().get("00081198", {"Value": []})["Value"])
        == 2
    )

    none = stow(web, gateway, b"noise", b"")
    assert none.status_code == 409
    assert {item["00091001"]["Value"][0] for item in none.json()["0008119A"]["Value"]} == {"not-part10"}
    assert gateway.index.counts().total == 3
    assert incoming(gateway) == []


def test_store_again_is_success_and_no_second_instance(web: TestClient, gateway: Gateway) -> None:
    data = instance()
    assert [stow(web, gateway, data).status_code for _ in range(3)] == [200, 200, 200]
    assert gateway.index.counts().total == 1


def test_store_under_a_study(web: TestClient, gateway: Gateway) -> None:
    data = instance()
    study = head(data).StudyInstanceUID
    other = stow(web, gateway, data, path="/dicomweb/studies/1.2.3")
    assert other.status_code == 409
    assert other.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
    assert stow(web, gateway, data, path=f"/dicomweb/studies/{study}").status_code == 200
    assert stow(web, gateway, data, path="/dicomweb/studies/1.2.x").status_code == 400


def test_store_refusals(web: TestClient, gateway: Gateway) -> None:
    headers = bearer(gateway, "service")

    def post(content: bytes, content_type: str, **more: str) -> tuple[int, str]:
        answer = web.post(
            "/dicomweb/studies", content=content, headers={**headers, "Content-Type": content_type, **more}
        )
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code, answer.json()["reason"]

    assert post(b"{}", "application/dicom+json") == (415, "unsupported-media-type")
    assert post(b"", 'multipart/related; type="text/html"; boundary=B')[0] == 415
    assert post(related(instance()), 'multipart/related; type="application/dicom"') == (400, "multipart-bad-boundary")
    assert post(b"", RELATED) == (400, "multipart-truncated")
    assert post(b"--B--\r\n", RELATED) == (400, "no-instances")
    assert post(related(instance())[:-3000], RELATED) == (400, "multipart-truncated")
    assert post(related(instance()), RELATED, Accept="text/html") == (406, "not-acceptable")
    assert post(related(instance(ImageComments="x" * 1_000_001)), RELATED) == (413, "object-too-large")
    assert incoming(gateway) == []
    assert gateway.index.counts().total == 0


def test_store_keeps_the_neighbours_of_a_broken_part(web: TestClient, gateway: Gateway) -> None:
    large, good = instance(ImageComments="x" * 1_000_001), instance()
    answer = stow(web, gateway, large, good, b"DICM")
    assert answer.status_code == 202
    assert gateway.index.by_sop(head(good).SOPInstanceUID) is not None
    cut = related(instance(), instance())[:-9000]
    answer = web.post("/dicomweb/studies", content=cut, headers={**bearer(gateway, "service"), "Content-Type": RELATED})
    assert answer.status_code == 202
    assert answer.json()["0008119A"]["Value"][0]["00091001"]["Value"] == ["multipart-truncated"]
    assert gateway.index.counts().total == 2
    assert incoming(gateway) == []


def test_store_below_the_watermark_is_507(web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(gateway.settings.spool_dir)._replace(free=0)
    monkeypatch.setattr("gateway.spool.shutil.disk_usage", lambda path: full)
    answer = stow(web, gateway, instance())
    assert (answer.status_code, answer.headers["content-type"]) == (507, "application/problem+json")
    ready = web.get("/readyz")
    assert ready.status_code == 503 and not ready.json()["dependencies"]["spool"]["ok"]


def test_one_bare_instance(web: TestClient, gateway: Gateway) -> None:
    headers = {**bearer(gateway, "service"), "Content-Type": "application/dicom"}
    assert web.post("/dicomweb/studies", content=instance(), headers=headers).status_code == 200


# --- WADO-RS -----------------------------------------------------------------------------------------------------


def wado(data: bytes, level: str = "instance") -> str:
    uids = head(data)
    path = f"/dicomweb/studies/{uids.StudyInstanceUID}"
    if level != "study":
        path += f"/series/{uids.SeriesInstanceUID}"
    return path + (f"/instances/{uids.SOPInstanceUID}" if level == "instance" else "")


def test_what_was_stored_comes_back_byte_for_byte(web: TestClient, gateway: Gateway) -> None:
    first, second = instance(), instance()
    stow(web, gateway, first, second)
    headers = bearer(gateway, "clinician")
    single = web.get(wado(first), headers={**headers, "Accept": "application/dicom; transfer-syntax=*"})
    assert (single.status_code, single.content) == (200, first)
    assert int(single.headers["content-length"]) == len(first)
    for level, expected in (("study", {first, second}), ("series", {first, second}), ("instance", {first})):
        answer = web.get(wado(first, level), headers=headers)
        assert answer.status_code == 200
        boundary = answer.headers["content-type"].split("boundary=")[1].encode()
        parts = answer.content.split(b"--" + boundary)[1:-1]
        assert {part.split(b"\r\n\r\n", 1)[1][:-2] for part in parts} == expected
    digest = hashlib.sha256(first).hexdigest()
    assert web.get(f"/dicomweb/objects/{digest}", headers=headers).content == first
    assert events(gateway).count("retrieved") == 5
    shown = web.get("/metrics", headers=bearer(gateway, "auditor")).text
    assert 'palimpsest_retrieved_total{kind="instances",outcome="success"}' in shown


def test_one_accept_header_for_one_and_for_many(web: TestClient, gateway: Gateway) -> None:
    first, second = instance(), instance()
    stow(web, gateway, first, second)
    accept = 'application/dicom; transfer-syntax=*, multipart/related; type="application/dicom"; transfer-syntax=*'
    headers = {**bearer(gateway, "clinician"), "Accept": accept}
    assert web.get(wado(first), headers=headers).content == first
    many = web.get(wado(first, "study"), headers=headers)
    assert many.status_code == 200 and many.headers["content-type"].startswith("multipart/related")
    other_series = wado(first).replace("/series/", "/series/9.")
    assert web.get(other_series, headers=headers).status_code == 404


def test_an_object_with_a_long_file_meta_comes_back(web: TestClient, gateway: Gateway) -> None:
    """File meta information has no bound in PS3.10: what was accepted must be served."""
    dataset = pydicom.dcmread(CT)
    dataset.file_meta.PrivateInformationCreatorUID = generate_uid()
    dataset.file_meta.PrivateInformation = bytes(2 << 20)
    buffer = BytesIO()
    dataset.save_as(buffer)
    store = {**bearer(gateway, "service"), "Content-Type": "application/dicom"}
    gateway.spool._max_object = 8 << 20
    assert web.post("/dicomweb/studies", content=buffer.getvalue(), headers=store).status_code == 200
    headers = {**bearer(gateway, "clinician"), "Accept": "application/dicom; transfer-syntax=*"}
    answer = web.get(wado(buffer.getvalue()), headers=headers)
    assert (answer.status_code, answer.content) == (200, buffer.getvalue())


def test_wado_refusals(web: TestClient, gateway: Gateway) -> None:
    data, other = instance(), instance()
    stow(web, gateway, data, other)
    headers = bearer(gateway, "clinician")

    def get(path: str, accept: str = "*/*") -> tuple[int, str]:
        answer = web.get(path, headers={**headers, "Accept": accept})
        return answer.status_code, answer.json()["reason"]

    assert get("/dicomweb/studies/1.2.3") == (404, "no-such-resource")
    assert get(f"/dicomweb/objects/{'0' * 64}") == (404, "no-such-object")
    assert get("/dicomweb/studies/1.2.x")[0] == 400
    assert get(wado(data), "image/png") == (406, "not-acceptable")
    assert get(wado(data, "study"), "application/dicom") == (406, "not-acceptable")
    jpeg = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50'
    assert get(wado(data), jpeg) == (406, "not-transcodable")
    assert get(wado(data) + "/rendered", "image/tiff") == (406, "not-acceptable")
    assert get(wado(data) + "/frames/0/rendered") == (400, "bad-frame")
    assert get(wado(data) + "/rendered?window=1,2") == (400, "bad-parameter")
    assert get(wado(data) + "/rendered?colour=red") == (400, "unsupported-parameter")


def spool_file(gateway: Gateway, data: bytes) -> Path:
    digest = hashlib.sha256(data).hexdigest()
    found = [path for path in gateway.settings.spool_dir.rglob("*") if path.is_file() and digest in path.name]
    assert len(found) == 1
    return found[0]


def test_a_flipped_bit_is_a_500_and_a_security_event_never_wrong_pixels(web: TestClient, gateway: Gateway) -> None:
    data = instance()
    stow(web, gateway, data)
    path = spool_file(gateway, data)
    broken = bytearray(data)
    broken[-100] ^= 1
    path.chmod(0o600)
    path.write_bytes(broken)
    answer = web.get(wado(data), headers=bearer(gateway, "clinician"))
    assert (answer.status_code, answer.json()["reason"]) == (500, "digest-mismatch")
    assert bytes(broken)[-200:] not in answer.content
    last = audit.tail(gateway.index, 1)[0]
    assert (last["event"], last["outcome"]) == ("retrieved", "failure")
    assert [alert.kind for alert in gateway.index.alerts()] == ["digest-mismatch"]


def cached(gateway: Gateway, data: bytes, **more: Any) -> Callable[[int], dict[str, Any]]:
    digest = hashlib.sha256(data).hexdigest()
    (gateway.settings.cache_dir / digest).write_bytes(data)
    return lambda _: {"path": digest, "sha256": digest, "size": len(data), **more}


def test_without_the_spool_the_worker_is_asked(web: TestClient, gateway: Gateway) -> None:
    data = instance()
    stow(web, gateway, data)
    spool_file(gateway, data).unlink()
    queue: AnsweringQueue = gateway.queue  # type: ignore[assignment]
    headers = {**bearer(gateway, "clinician"), "Accept": "application/dicom"}

    away = web.get(wado(data), headers=headers)
    assert (away.status_code, away.headers["retry-after"]) == (503, "3")
    queue.answers["original"] = lambda _: {"error": "archive-unavailable", "retry_after": 9}
    assert web.get(wado(data), headers=headers).headers["retry-after"] == "9"
    for status, expected in ((404, 404), (400, 404), (415, 406), (500, 500), (503, 503)):
        queue.answers["original"] = lambda _, status=status: {"error": "some-reason", "status": status}
        answer = web.get(wado(data), headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (expected, "some-reason")
    queue.answers["original"] = cached(gateway, data)
    assert web.get(wado(data), headers=headers).content == data
    # Another object than was received: its own digest is right, and it is still not served.
    queue.answers["original"] = cached(gateway, instance())
    assert web.get(wado(data), headers=headers).status_code == 500
    queue.answers["original"] = lambda _: {"path": "../../etc/passwd", "sha256": "0" * 64, "size": 1}
    assert web.get(wado(data), headers=headers).status_code == 500
    # The cache was pruned between the answer and the open.
    queue.answers["original"] = lambda _: {"path": "gone", "sha256": "0" * 64, "size": 1}
    assert web.get(wado(data), headers=headers).status_code == 503


def test_retrievals_that_hang_keep_nothing_else_waiting(served: str, gateway: Gateway) -> None:
    data = instance()
    headers = bearer(gateway, "service")
    stored = requests.post(
        f"{served}/dicomweb/studies", data=data, headers={**headers, "Content-Type": "application/dicom"}, timeout=60
    )
    assert stored.status_code == 200
    spool_file(gateway, data).unlink()
    queue: AnsweringQueue = gateway.queue  # type: ignore[assignment]
    go = threading.Event()

    def hang(_: int) -> dict[str, Any]:
        go.wait(WAIT_SECONDS * 3)
        return {"error": "some-reason", "status": 404}

    queue.answers["original"] = hang
    with ThreadPoolExecutor(60) as pool:  # more than the server has threads
        url = served + wado(data)
        waiting = [pool.submit(requests.get, url, headers=headers, timeout=WAIT_SECONDS * 4) for _ in range(60)]
        try:
            assert until(lambda: len(queue.asked) >= RETRIEVING)
            assert requests.get(f"{served}/readyz", timeout=WAIT_SECONDS).status_code == 200
            again = {**headers, "Content-Type": "application/dicom"}
            answer = requests.post(f"{served}/dicomweb/studies", data=instance(), headers=again, timeout=WAIT_SECONDS)
            assert answer.status_code == 200
            assert len(queue.asked) == RETRIEVING
        finally:
            go.set()
    assert {request.result().status_code for request in waiting} == {404}


def test_metadata_and_rendered(web: TestClient, gateway: Gateway) -> None:
    data = instance()
    stow(web, gateway, data)
    queue: AnsweringQueue = gateway.queue  # type: ignore[assignment]
    headers = bearer(gateway, "clinician")
    queue.answers["metadata"] = cached(gateway, json.dumps([head(data).to_json_dict()]).encode())
    early = web.get(wado(data) + "/metadata", headers=headers)
    index_as_worker_would(gateway, data)
    late = web.get(wado(data, "study") + "/metadata", headers=headers)
    assert early.json() == late.json()
    assert late.json()[0]["00080018"]["Value"] == [head(data).SOPInstanceUID]
    assert queue.asked == ["metadata"]

    queue.answers["rendered:png:1"] = cached(gateway, b"\x89PNG...")
    queue.answers["rendered:jpeg:7"] = cached(gateway, b"\xff\xd8...")
    image = web.get(wado(data) + "/rendered", headers={**headers, "Accept": "image/png"})
    assert (image.content, image.headers["content-type"]) == (b"\x89PNG...", "image/png")
    image = web.get(wado(data) + "/frames/7/rendered", headers=headers)
    assert (image.content, image.headers["content-type"]) == (b"\xff\xd8...", "image/jpeg")


# --- QIDO-RS and a client that is not ours -----------------------------------------------------------------------


@contextmanager
def serving(gateway: Gateway, host: str = "127.0.0.1") -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(gateway), host, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    yield f"http://{host}:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=WAIT_SECONDS)


@pytest.fixture
def served(gateway: Gateway) -> Iterator[str]:
    with serving(gateway) as base:
        yield base


def test_dicomweb_client_unmodified(served: str, gateway: Gateway) -> None:
    client = DICOMwebClient(f"{served}/dicomweb", headers=bearer(gateway, "service"))
    files = [instance(InstanceNumber=number) for number in (1, 2)]
    datasets = [pydicom.dcmread(BytesIO(data)) for data in files]
    study, series = datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID
    stored = client.store_instances(datasets)
    assert len(stored.ReferencedSOPSequence) == 2
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []
    for dataset in datasets:
        buffer = BytesIO()
        pydicom.dcmwrite(buffer, dataset)
        index_as_worker_would(gateway, buffer.getvalue())

    found = (
        client.search_for_studies(search_filters={"PatientName": "Compressed*", "StudyDate": "2004"}) if False else []
    )
    assert found == []
    found = client.search_for_studies(search_filters={"PatientName": "compressed*", "StudyDate": "20040101-20041231"})
    assert [item["0020000D"]["Value"] for item in found] == [[study]]
    assert found[0]["00201208"]["Value"] == [2] and found[0]["00080061"]["Value"] == ["CT"]
    assert [item["0020000E"]["Value"] for item in client.search_for_series(study)] == [[series]]
    assert len(client.search_for_instances(study, series)) == 2
    assert len(client.search_for_instances(limit=1)) == 1
    assert len(client.search_for_instances(study, search_filters={"InstanceNumber": "2"}, get_remaining=True)) == 1

    for back in (client.retrieve_study(study), client.retrieve_series(study, series)):
        assert sorted(item.SOPInstanceUID for item in back) == sorted(item.SOPInstanceUID for item in datasets)
    sop = datasets[0].SOPInstanceUID
    every = (("application/dicom", "*"),)
    assert client.retrieve_instance(study, series, sop, media_types=every) == datasets[0]
    assert len(list(client.iter_study(study))) == 2
    assert client.retrieve_instance_metadata(study, series, sop)["00080018"]["Value"] == [sop]
    assert len(client.retrieve_study_metadata(study)) == 2
    queue: AnsweringQueue = gateway.queue  # type: ignore[assignment]
    queue.answers["rendered:png:1"] = cached(gateway, b"\x89PNG")
    assert client.retrieve_instance_rendered(study, series, sop, media_types=("image/png",)) == b"\x89PNG"
    assert client.retrieve_instance_frames_rendered(study, series, sop, [1], media_types=("image/png",)) == b"\x89PNG"
    with pytest.raises(requests.HTTPError, match="403"):
        DICOMwebClient(f"{served}/dicomweb", headers=bearer(gateway, "clinician")).store_instances(datasets)


def test_paging_and_warning(web: TestClient, gateway: Gateway) -> None:
    files = [instance(StudyInstanceUID=generate_uid(), StudyDate=f"2020010{n}") for n in range(1, 4)]
    stow(web, gateway, *files)
    for data in files:
        index_as_worker_would(gateway, data)
    headers = bearer(gateway, "clinician")
    pages = [web.get(f"/dicomweb/studies?limit=2&offset={offset}", headers=headers) for offset in (0, 2, 4)]
    assert [len(page.json()) if page.content else 0 for page in pages] == [2, 1, 0]
    assert pages[0].headers["warning"].startswith("299") and "warning" not in pages[1].headers
    assert pages[2].status_code == 204
    uids = {item["0020000D"]["Value"][0] for page in pages[:2] for item in page.json()}
    assert uids == {head(data).StudyInstanceUID for data in files}
    assert pages[0].json()[0]["00081190"]["Value"][0].startswith("http://testserver/dicomweb/studies/")
    bad = web.get("/dicomweb/studies?Nonsense=1", headers=headers)
    assert (bad.status_code, bad.json()["reason"]) == (400, "unknown-attribute")


def test_a_client_that_goes_away_leaves_no_file(served: str, gateway: Gateway) -> None:
    address = httpx.URL(served)
    body = related(instance())
    token = bearer(gateway, "service")["Authorization"]
    lines = ["POST /dicomweb/studies HTTP/1.1", "Host: x", f"Authorization: {token}", f"Content-Type: {RELATED}"]
    request = "\r\n".join([*lines, f"Content-Length: {len(body) + 2_000_000}", "", ""]).encode()
    with socket.create_connection((address.host, address.port or 80)) as peer:
        peer.sendall(request + body[:-5000] + b"x" * 1_200_000)  # more than a batch: a file was begun
        assert until(lambda: incoming(gateway))
    assert until(lambda: not incoming(gateway))
    assert gateway.index.counts().total == 0


def test_a_body_that_stops_is_a_408(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "idle", watermark_bytes=1, network_timeout_seconds=0.2)
    gateway = build(settings, queue=MemoryQueue())

    body, token = related(instance()), bearer(gateway, "service")["Authorization"]
    lines = ["POST /dicomweb/studies HTTP/1.1", "Host: x", f"Authorization: {token}", f"Content-Type: {RELATED}"]
    request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""]).encode()
    with serving(gateway) as base:
        address = httpx.URL(base)
        with socket.create_connection((address.host, address.port or 80), timeout=WAIT_SECONDS) as peer:
            peer.sendall(request + body[:5000])
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"idle-timeout"' in answer
    assert incoming(gateway) == []
    gateway.close()


def test_the_process_serves_and_stops_on_sigterm(tmp_path: Path) -> None:
    port = free_port()
    settings = load_settings(home=tmp_path / "process", http_port=port, watermark_bytes=1)
    env = {
        **child_environment(settings),
        "PALIMPSEST_WATERMARK_BYTES": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    process = subprocess.Popen([sys.executable, "-m", "service.api"], env=env, stderr=subprocess.DEVNULL)
    try:

        def alive() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=20).status_code == 200
            except httpx.HTTPError:
                return False

        assert until(alive)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


# --- running it --------------------------------------------------------------------------------------------------


def test_health_names_each_dependency(web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    assert web.get("/healthz").json() == {"status": "ok"}
    ready = web.get("/readyz")
    assert ready.status_code == 200
    assert set(ready.json()["dependencies"]) == {"database", "queue", "spool", "archive", "keys", "clock"}

    def away(self: Any) -> None:
        raise Unavailable("broker-unavailable")

    monkeypatch.setattr(AnsweringQueue, "ping", away)
    degraded = web.get("/readyz")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    gateway.settings.archive_dir.rmdir()
    gone = web.get("/readyz")
    assert gone.status_code == 503
    assert gone.json()["dependencies"]["archive"] == {"ok": False, "required": True, "reason": "archive-not-writable"}


def test_status_instances_and_audit(web: TestClient, gateway: Gateway) -> None:
    data = instance()
    stow(web, gateway, data)
    status = web.get("/api/status", headers=bearer(gateway, "service")).json()
    assert status["total"] == 1 and dict(status["states"])[State.RECEIVED] == 1
    digest = hashlib.sha256(data).hexdigest()
    for query in (f"digest={digest}", f"sop={head(data).SOPInstanceUID}", "id=1"):
        rows = web.get(f"/api/instances?{query}", headers=bearer(gateway, "service")).json()["instances"]
        assert [(row["digest"], row["state"]) for row in rows] == [(digest, "RECEIVED")]
    assert web.get("/api/instances?sop=x", headers=bearer(gateway, "service")).status_code == 400
    assert web.get("/api/instances", headers=bearer(gateway, "service")).json()["reason"] == "bad-query"
    lines = web.get("/api/audit", headers=bearer(gateway, "auditor")).text.splitlines()
    assert "received" in [json.loads(line)["event"] for line in lines]
    patient = str(head(data).PatientName)
    assert not any(patient in line or head(data).StudyInstanceUID in line for line in lines)
    assert web.get("/api/audit/verify", headers=bearer(gateway, "auditor")).json()["ok"]
    metrics = web.get("/metrics", headers=bearer(gateway, "admin"))
    assert metrics.status_code == 200


def archived_with_a_dead_letter(web: TestClient, gateway: Gateway) -> int:
    from gateway.index import CandidateFacts
    from gateway.instance import Form

    data = instance()
    stow(web, gateway, data)
    row = gateway.index.by_digest(hashlib.sha256(data).hexdigest())
    assert row is not None
    assert gateway.index.claim(row.id, "w", 60) is not None
    facts = CandidateFacts("c" * 64, 1000, Form.PASSTHROUGH, "one-decoder", "2.25.7")
    gateway.index.set_candidate(row.id, "w", facts)
    gateway.index.set_verified(row.id, "w", {})
    gateway.index.set_archived(row.id, "w", "aa/2.25.7.dcm", "c" * 64, 1000, ["pacs"])
    forward = gateway.index.forwards(instance_id=row.id)[0]
    assert gateway.index.forward_claim(forward.id, "w", 60) is not None
    gateway.index.forward_failed(forward.id, "w", "no-context-accepted", due_at=None)
    return forward.id


def test_an_administrator_settles_a_conflict(web: TestClient, gateway: Gateway) -> None:
    first = instance()
    dataset = pydicom.dcmread(BytesIO(first))
    dataset.PixelData = bytes(len(dataset.PixelData))
    buffer = BytesIO()
    dataset.save_as(buffer)
    second = buffer.getvalue()
    stow(web, gateway, first, second)
    admin, reader = bearer(gateway, "admin"), {**bearer(gateway, "clinician"), "Accept": "application/dicom"}
    assert web.get(wado(first), headers=reader).content == first
    found = web.get(f"/api/instances?sop={dataset.SOPInstanceUID}", headers=admin).json()["instances"]
    assert [(row["current"], row["conflict"]) for row in found] == [(False, True), (True, True)]
    chosen = web.post("/api/instances/choose", json={"id": found[0]["id"]}, headers=admin).json()["instances"]
    assert [(row["current"], row["conflict"]) for row in chosen] == [(True, False)]
    assert web.get(wado(first), headers=reader).content == second
    assert "version-chosen" in events(gateway)
    assert web.post("/api/instances/choose", json={"id": 999}, headers=admin).status_code == 404
    assert web.post("/api/instances/choose", json={}, headers=admin).status_code == 400


def test_dead_letters_are_shown_and_replayed(web: TestClient, gateway: Gateway) -> None:
    forward = archived_with_a_dead_letter(web, gateway)
    admin = bearer(gateway, "admin")
    dead = web.get("/api/forwards", headers=admin).json()["forwards"]
    assert [(row["id"], row["reason"]) for row in dead] == [(forward, "no-context-accepted")]
    (shown,) = web.get("/api/status", headers=admin).json()["dead"]
    assert shown["id"] == forward and "sent_uid" not in shown
    kinds = {row["kind"] for row in web.get("/api/failures", headers=admin).json()["failures"]}
    assert kinds == {"passthrough", "dead-letter"}
    assert web.post("/api/forwards/replay", json={"destination": "nobody"}, headers=admin).status_code == 404
    assert web.post("/api/forwards/replay", json={"forward": forward}, headers=admin).json() == {"replayed": 1}
    assert web.get("/api/forwards", headers=admin).json()["forwards"] == []
    assert web.post("/api/failures/replay", json={"reason": "nothing"}, headers=admin).status_code == 404
    assert web.post("/api/failures/replay", content=b"[1", headers=admin).status_code == 400
    assert web.post("/api/failures/replay", content=b"x" * 5000, headers=admin).status_code == 413
    assert "replay" in events(gateway)


def test_a_failure_is_shown_by_reason_and_tried_again(web: TestClient, gateway: Gateway) -> None:
    stow(web, gateway, instance())
    assert gateway.index.claim(1, "w", 60) is not None
    gateway.index.release_claim(1, "w", due_at=time.time() + 3600, reason="archive-unavailable")
    admin = bearer(gateway, "admin")
    group = web.get("/api/failures", headers=admin).json()["failures"][0]
    assert (group["kind"], group["reason"], group["ids"]) == ("instance", "archive-unavailable", [1])
    assert "archive-unavailable" in web.get("/admin/failures", headers=admin).text
    assert web.post("/api/failures/replay", json={"reason": group["reason"]}, headers=admin).json() == {"replayed": 1}
    assert gateway.index.get(1).due_at < time.time() + 60  # type: ignore[operator]
    assert web.get("/api/failures", headers=admin).json()["failures"] == []


# --- the admin page ----------------------------------------------------------------------------------------------


def sign_in(web: TestClient, gateway: Gateway) -> str:
    answer = web.post("/login", data={"token": mint_token(gateway, "admin", "root")})
    assert (answer.status_code, answer.headers["location"]) == (303, "/admin")
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Path=/"))
    page = web.get("/admin")
    assert page.status_code == 200
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)
    assert found
    return found[1]


def test_admin_pages_show_and_replay(web: TestClient, gateway: Gateway) -> None:
    forward = archived_with_a_dead_letter(web, gateway)
    gateway.index.alert_raise("quarantine", "1", "A candidate <b>failed</b> its proof.", "critical")
    csrf = sign_in(web, gateway)
    page = "".join(web.get(f"/admin{path}").text for path in ("", "/failures", "/destinations", "/system"))
    for text in ("one-decoder", "no-context-accepted", "pacs", "&lt;b&gt;failed", "database"):
        assert text in page
    assert "CompressedSamples" not in page
    done = web.post("/admin/act", data={"csrf": csrf, "page": "failures", "do": f"forward:{forward}"})
    assert done.headers["location"] == "/admin/failures?done=forwards&n=1"
    assert "1 dead letter will be sent again." in web.get(done.headers["location"]).text
    alert = gateway.index.alerts()[0].id
    assert web.post("/admin/act", data={"csrf": csrf, "do": f"alert:{alert}"}).status_code == 303
    assert gateway.index.alerts() == []
    gone = web.post("/admin/act", data={"csrf": csrf, "do": "failures:x"}).headers["location"]
    assert gone == "/admin?done=none" and "There was nothing left to do." in web.get(gone).text
    assert web.post("/logout", data={"csrf": csrf}).status_code == 303
    assert web.get("/admin", headers={"Accept": "text/html"}).headers["location"] == "/login?next=%2Fadmin"


def test_admin_forms_need_their_csrf_value(web: TestClient, gateway: Gateway) -> None:
    sign_in(web, gateway)
    for path in ("/admin/act", "/admin/search", "/logout"):
        for data in ({}, {"csrf": "0" * 64}, {"csrf": "ü"}):
            answer = web.post(path, data=data)
            assert (answer.status_code, answer.json()["reason"]) == (403, "csrf")


def test_a_browser_without_a_session_is_led_to_the_form(web: TestClient, gateway: Gateway) -> None:
    to_login = web.get("/admin", headers={"Accept": "text/html"})
    assert (to_login.status_code, to_login.headers["location"]) == (303, "/login?next=%2Fadmin")
    assert web.get("/").headers["location"] == "/admin"
    assert web.get("/admin/style.css").headers["content-type"].startswith("text/css")
    assert web.post("/login", data={"token": "<b>x"}).status_code == 401
    assert web.post("/login", content=b"x" * 20_000).status_code == 403
    assert web.post("/login", content="&".join(f"f{n}=1" for n in range(300))).status_code == 403
    assert until(lambda: events(gateway).count("login-failed") == 1)


@pytest.mark.parametrize("number", [10**30, -1, True, "9" * 30, 1.5])
def test_numbers_of_no_row_are_not_found(web: TestClient, gateway: Gateway, number: object) -> None:
    headers = bearer(gateway, "admin")
    for path, key in (("/api/failures/replay", "id"), ("/api/forwards/replay", "forward")):
        answer = web.post(path, json={key: number}, headers=headers)
        assert (answer.status_code, answer.json()["title"]) == (404, "Not found")
