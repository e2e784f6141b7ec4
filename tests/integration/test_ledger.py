"""Study ledger, events, corrections and rejections through the doors of a gateway, workers in this process."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt

from gateway import audit
from gateway.bootstrap import Gateway
from gateway.index_rows import InstanceRow
from gateway.settings import load_settings
from gateway.tokens import mint_token
from gateway.webhook import SIGNATURE, Webhook
from service.api import create_app
from tests.integration.test_query_retrieve import CT, STUDY_GET, listen, make_gateway, store
from tests.integration.test_service_api import serving
from tests.object_makers import packaged
from tests.unit.test_worker_coerce import note
from worker.sweep import keep_ledger
from worker.webhooks import Poster, deliver

__all__ = ["listen", "make_gateway"]  # fixtures

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]
Make = Callable[..., Gateway]


def asking(gateway: Gateway, role: str = "admin") -> TestClient:
    headers = {"Authorization": f"Bearer {mint_token(gateway, role, 'test')}"}
    return TestClient(create_app(gateway), raise_server_exceptions=False, headers=headers)


def given(gateway: Gateway, row: InstanceRow, path: str = "") -> httpx.Response:
    path = path or f"/dicomweb/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_uid}"
    headers = {"Accept": "application/dicom; transfer-syntax=*"}
    answer: httpx.Response = asking(gateway, "clinician").get(path, headers=headers)
    return answer


def picture(gateway: Gateway, row: InstanceRow, query: str = "") -> bytes:
    path = f"/dicomweb/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_uid}/rendered{query}"
    answer = asking(gateway, "clinician").get(path, headers={"Accept": "image/png"})
    assert answer.status_code == 200
    return answer.content


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


# --- corrections ---


def test_a_correction_is_given_by_every_door_and_the_original_stays(make_gateway: Make, listen: Any) -> None:
    gateway = make_gateway()
    data = packaged("CT_small.dcm")
    row = store(gateway, data)
    first = given(gateway, row)
    assert first.content == data and "palimpsest-coerced" not in first.headers
    named, bare = picture(gateway, row, "?annotation=patient"), picture(gateway, row)
    admin = asking(gateway)
    body = {"patient_id": "1CT1", "changes": {"PatientID": "NEW-7", "PatientName": "Roe^Ann"}}
    made = admin.post("/api/corrections", json=body)
    assert (made.status_code, made.json()["objects"]) == (201, 1)
    assert asking(gateway, "service").post("/api/corrections", json=body).status_code == 403

    wado = given(gateway, row)
    assert (wado.status_code, wado.headers["palimpsest-coerced"]) == (200, "1")
    assert wado.headers["etag"] != first.headers["etag"]
    corrected = read(wado.content)
    assert (corrected.PatientID, corrected.PatientName) == ("NEW-7", "Roe^Ann")
    assert corrected.OriginalAttributesSequence[0].ModifiedAttributesSequence[0].PatientID == "1CT1"
    assert corrected.PixelData == read(data).PixelData
    (shown,) = asking(gateway, "clinician").get("/dicomweb/studies?PatientID=NEW-7").json()
    assert shown["00100010"]["Value"] == [{"Alphabetic": "Roe^Ann"}]
    metadata = asking(gateway, "clinician").get(f"/dicomweb/studies/{row.study_uid}/metadata")
    assert metadata.headers["palimpsest-coerced"] == "1"
    assert metadata.json()[0]["00100020"]["Value"] == ["NEW-7"]
    assert Dataset.from_json(metadata.json()[0]).OriginalAttributesSequence == corrected.OriginalAttributesSequence
    by_get = c_get(listen(gateway), row)
    assert (by_get.PatientID, by_get.PixelData) == ("NEW-7", corrected.PixelData)
    # the name that is burnt into a picture is the corrected one, also where there is an older picture
    assert picture(gateway, row) == bare
    assert picture(gateway, row, "?annotation=patient") not in (bare, named)
    assert given(gateway, row, f"/dicomweb/objects/{row.digest}").content == data  # as received

    number = made.json()["id"]
    assert [each["id"] for each in admin.get("/api/corrections").json()["corrections"]] == [number]
    seen = next(each for each in audit.tail(gateway.index, 10) if each["event"] == "retrieved")
    assert (seen["actor"], seen["detail"]) == ("test", {"kind": "corrections", "count": 1})
    assert admin.post(f"/api/corrections/{number}/revoke").json() == {"id": number, "objects": 1}
    assert given(gateway, row).content == data
    assert picture(gateway, row, "?annotation=patient") == named
    assert admin.post(f"/api/corrections/{number}/revoke").status_code == 404
    assert "Roe" not in json.dumps(audit.tail(gateway.index, 1000))


def c_get(port: int, row: InstanceRow) -> Dataset:
    got: list[Dataset] = []

    def keep(event: Any) -> int:
        got.append(event.dataset)
        return 0

    ae = AE("GETTER")
    ae.add_requested_context(STUDY_GET)
    ae.add_requested_context(CT, "1.2.840.10008.1.2.1")
    roles: list[Any] = [build_role(CT, scp_role=True)]
    line = ae.associate("127.0.0.1", port, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, keep)])
    assert line.is_established
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", row.study_uid
    for _ in line.send_c_get(query, STUDY_GET):
        pass
    line.release()
    (one,) = got
    return one


def test_a_damaged_original_is_never_given_corrected(make_gateway: Make) -> None:
    gateway = make_gateway()
    row = store(gateway, packaged("CT_small.dcm"))
    body = {"study_uid": row.study_uid, "changes": {"PatientName": "Roe^Ann"}}
    assert asking(gateway).post("/api/corrections", json=body).status_code == 201
    spooled = gateway.spool.path(row.digest)
    damaged = bytearray(spooled.read_bytes())
    damaged[-1] ^= 1
    spooled.chmod(0o600)
    spooled.write_bytes(damaged)
    assert given(gateway, gateway.index.get(row.id)).status_code == 500


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"patient_id": "A"},
        {"patient_id": "A", "changes": []},
        {"study_uid": "1.2.x", "changes": {"PatientName": "B"}},
        {"patient_id": "A", "changes": {"SOPInstanceUID": "1.2"}},
        {"patient_id": 7, "changes": {"PatientName": "B"}},
        {"patient_id": "A", "changes": {"PatientName": "B"}, "why": "x"},
        {"patient_id": "A", "changes": {"PatientName": "\ud800"}},
        {"patient_id": "A\ud800", "changes": {"PatientName": "B"}},
        {"patient_id": "A\0", "changes": {"PatientName": "B"}},
        {"patient_id": "A", "changes": {"PatientBirthDate": "١" * 8}},
        "[" * 4000,
    ],
)
def test_a_correction_that_says_too_little_or_too_much_is_a_400(make_gateway: Make, body: Any) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    answer = asking(make_gateway()).post("/api/corrections", content=text)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")


# --- rejections ---


def test_a_rejection_note_hides_by_every_door_and_can_be_revoked(make_gateway: Make) -> None:
    gateway = make_gateway()
    image = read(packaged("CT_small.dcm"))
    image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = "1.2", "1.2.3", "1.2.3.1"
    image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.1"
    out = io.BytesIO()
    image.save_as(out)
    row = store(gateway, out.getvalue())
    kept = store(gateway, note("113037"))
    assert given(gateway, row).status_code == 404
    assert [(each.kind, each.subject) for each in gateway.index.alerts()] == [("images-hidden", f"instance {kept.id}")]
    assert given(gateway, row, f"/dicomweb/objects/{row.digest}").content == out.getvalue()
    found = asking(gateway, "clinician").get("/dicomweb/studies/1.2/instances").json()
    assert [each["00080018"]["Value"] for each in found] == [[kept.sop_uid]]
    (told,) = asking(gateway).get("/api/rejections").json()["rejections"]
    assert (told["id"], told["title"]) == (kept.id, "Rejected for Patient Safety Reasons")
    assert (told["instances"], told["hidden"]) == (2, 2)
    assert asking(gateway).post(f"/api/rejections/{kept.id}/revoke").json()["instances"] == 2
    assert given(gateway, row).status_code == 200
    assert asking(gateway).post(f"/api/rejections/{kept.id}/revoke").status_code == 404


# --- ledger and events ---


def test_studies_are_listed_with_what_their_state_rests_on(make_gateway: Make) -> None:
    gateway = make_gateway(study_quiet_seconds=1000)
    rows = [store(gateway, packaged(name)) for name in ("CT_small.dcm", "MR_small.dcm")]
    keep_ledger(gateway)
    watch = asking(gateway, "auditor")
    page = watch.get("/api/studies?limit=1").json()
    assert [each["study_uid"] for each in page["studies"]] == [rows[1].study_uid]
    rest = watch.get(f"/api/studies?limit=1&before={page['next']}").json()["studies"]
    assert [(each["study_uid"], each["state"]) for each in rest] == [(rows[0].study_uid, "receiving")]
    gateway.index.study_evidence_add(str(rows[0].study_uid), "c-find", "PACS", 2, 1)
    keep_ledger(gateway)
    (one,) = watch.get("/api/studies?state=incomplete").json()["studies"]
    assert (one["completeness"], one["completeness_by"]["expected"], one["instances"]) == ("incomplete", 2, 1)
    whole = watch.get(f"/api/studies/{rows[0].study_uid}").json()
    assert [each["kind"] for each in whole["events"]] == ["received", "incomplete"]
    assert "Compressed" not in json.dumps(whole)  # of the patient nothing
    assert watch.get("/api/studies/1.2.3").status_code == 404
    assert watch.get("/api/studies?state=fine").status_code == 400
    assert watch.get("/api/studies?before=-1").status_code == 400
    assert asking(gateway, "clinician").get("/api/studies").status_code == 403


def test_one_stow_request_is_the_whole_study_where_the_settings_say_so(make_gateway: Make) -> None:
    gateway = make_gateway(study_quiet_seconds=1000, stow_completes=True)
    data = packaged("CT_small.dcm")
    uid = str(read(data).StudyInstanceUID)
    other = data.replace(
        b"1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322", b"1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12323"
    )
    sender = asking(gateway, "service")

    def send(*files: bytes) -> int:
        body = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files)
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        return sender.post(
            f"/dicomweb/studies/{uid}", content=body + b"--b--", headers={"Content-Type": kind}
        ).status_code

    mismatched = packaged("MR_small.dcm")  # of another study: refused, and named under its own
    assert send(data, mismatched) == 202
    keep_ledger(gateway)
    told = asking(gateway).get(f"/api/studies/{uid}").json()
    assert (told["completeness"], told["completeness_by"]["kind"]) == ("complete", "stow")
    assert told["completeness_by"]["source"] == "test"
    assert send(other) == 200
    assert asking(gateway).get(f"/api/studies/{uid}").json()["completeness_by"]["expected"] == 2


def test_a_stream_goes_on_where_it_was_cut(make_gateway: Make) -> None:
    gateway = make_gateway(study_quiet_seconds=1000, poll_seconds=0.05)
    row = store(gateway, packaged("CT_small.dcm"))
    keep_ledger(gateway)
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'service', 'ris')}", "Accept": "text/event-stream"}
    with serving(gateway) as base:
        with httpx.stream("GET", f"{base}/api/events", headers={**headers, "Last-Event-ID": "0"}, timeout=120) as cut:
            assert cut.headers["content-type"].startswith("text/event-stream")
            lines = cut.iter_lines()
            assert frame(lines)["retry"] == "2000"
            one = frame(lines)
        assert (one["id"], one["event"]) == ("1", "study-received")
        assert json.loads(one["data"])["study_uid"] == row.study_uid
        store(gateway, packaged("MR_small.dcm"))
        keep_ledger(gateway)
        store(gateway, packaged("rtplan.dcm"))
        with httpx.stream("GET", f"{base}/api/events", headers={**headers, "Last-Event-ID": "1"}, timeout=120) as again:
            lines = again.iter_lines()
            assert "retry" in frame(lines)
            assert frame(lines)["id"] == "2"
            keep_ledger(gateway)  # while it is listened to
            assert frame(lines)["id"] == "3"
    watch = asking(gateway, "service")
    assert [each["id"] for each in watch.get("/api/events?after=1").json()["events"]] == [2, 3]
    assert watch.get("/api/events?kind=archived").json() == {"events": []}
    assert watch.get("/api/events?kind=x").status_code == 400
    assert watch.head("/api/events", headers={"Accept": "text/event-stream"}).status_code == 200


def frame(lines: Iterator[str]) -> dict[str, str]:
    """The next event of a stream."""
    found: dict[str, str] = {}
    for line in lines:
        if not line and found:
            return found
        name, _, value = line.partition(": ")
        if name:
            found[name] = value
    raise AssertionError("the stream ended")


# --- webhooks ---


class Receiver:
    """An HTTP server that keeps what is posted to it and answers with `statuses`, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[str, bytes]] = []
        left = list(statuses)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.headers[SIGNATURE], body))
                self.send_response(left.pop(0) if len(left) > 1 else left[0])
                self.send_header("Location", "http://127.0.0.1:1/")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*statuses: int) -> Receiver:
        made.append(Receiver(*statuses))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def test_a_webhook_is_signed_repeated_in_order_and_alone_in_its_trouble(
    make_gateway: Make, receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    gateway = make_gateway(study_quiet_seconds=1000)
    (tmp_path / "secret").write_text("0123456789abcdef\n")
    busy, well = receiver(503, 302, 200), receiver(200)
    hooks = [
        Webhook(name=name, url=at.url, secret_file=tmp_path / "secret", study_uid=name == "well")
        for name, at in (("busy", busy), ("well", well))
    ]
    for hook in hooks:
        assert deliver(gateway, hook, Poster(hook)) == 0  # begins with what comes now
    rows = [store(gateway, packaged(name)) for name in ("CT_small.dcm", "MR_small.dcm")]
    keep_ledger(gateway)
    now = gateway.index.now
    for seconds in (0, 1, 3, 10):
        gateway.index.now = lambda by=seconds: now() + by  # type: ignore[misc]
        for hook in hooks:
            deliver(gateway, hook, Poster(hook))
    assert [json.loads(body)["event"] for _, body in well.got] == [1, 2]
    assert [json.loads(body)["event"] for _, body in busy.got] == [1, 1, 1, 2]  # not followed to the Location
    assert [json.loads(body)["study_uid"] for _, body in well.got] == [row.study_uid for row in rows]
    assert set(json.loads(busy.got[0][1])) == {"event", "kind", "count", "at"}  # names no study
    signed, body = busy.got[-1]
    at, code = (part.partition("=")[2] for part in signed.split(","))
    expected = hmac.new(b"0123456789abcdef", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(code, expected)


def test_what_a_receiver_will_never_take_is_passed_over_with_an_alert(
    make_gateway: Make, receiver: Callable[..., Receiver], tmp_path: Path
) -> None:
    gateway = make_gateway(study_quiet_seconds=1000)
    hook = Webhook(name="odd", url=receiver(400, 200).url, secret_file=tmp_path / "secret", kinds=("received",))
    deliver(gateway, hook, Poster(hook))
    for name in ("CT_small.dcm", "MR_small.dcm"):
        store(gateway, packaged(name))
    keep_ledger(gateway)
    assert deliver(gateway, hook, Poster(hook)) == 0  # there is no secret yet: nothing is sent unsigned
    (tmp_path / "secret").write_text("0123456789abcdef")
    now = gateway.index.now
    gateway.index.now = lambda: now() + 60  # type: ignore[method-assign]
    assert deliver(gateway, hook, Poster(hook)) == 2
    assert [alert.kind for alert in gateway.index.alerts()] == ["webhook-refused"]


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://ris.example/hook"},
        {"url": "https://user:word@ris.example/"},
        {"url": "file://ris.example/hook"},
        {"kinds": ["everything"]},
        {"name": "a:b"},
        {"headers": {"X": "y"}},
    ],
)
def test_a_webhook_that_would_leak_or_do_nothing_is_no_setting(tmp_path: Path, change: dict[str, Any]) -> None:
    good = {"name": "ris", "url": "https://ris.example/hook", "secret_file": "/run/secrets/ris"}
    assert load_settings(home=tmp_path, webhooks=[good]).webhooks[0].name == "ris"
    with pytest.raises(ValidationError):
        load_settings(home=tmp_path, webhooks=[good | change])
