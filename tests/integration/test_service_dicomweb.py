"""QIDO-RS and STOW-RS to the letter over a real gateway with its index worker: PS3.18 10.5, 10.6."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from fastapi.testclient import TestClient
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from gateway import index_search
from gateway.bootstrap import Gateway, build
from gateway.errors import OutOfResources, Unavailable
from gateway.part10 import EXPLICIT_BE, IMPLICIT_LE
from gateway.settings import load_settings
from gateway.tokens import mint_token
from gateway.transfer_syntaxes import DEFLATED_LE
from service import stow_metadata
from service.api import create_app
from service.dicomxml import from_native_model, native_model
from service.multipart import close_delimiter, frame_part
from tests.integration.test_service_api import serving
from tests.integration.test_service_wado import Working, changed, path_of, take_in
from worker.indexing import index_instance
from worker.transcode import transcode

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]

JSON, XML, OCTETS = "application/dicom+json", "application/dicom+xml", "application/octet-stream"
HTJ2K = "1.2.840.10008.1.2.4.201"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    queue = Working()
    settings = load_settings(home=tmp_path / "home", watermark_bytes=1, max_object_bytes=4_000_000)
    queue.gateway = build(settings, queue=queue)
    yield queue.gateway
    queue.gateway.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'service', 'test')}"}
    with TestClient(create_app(gateway), raise_server_exceptions=False, headers=headers) as client:
        yield client


# --- QIDO-RS ---


def requested(step: str) -> Dataset:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = step, "RP-" + step
    return item


@pytest.fixture
def stored(gateway: Gateway) -> list[Dataset]:
    """Three studies of two series each, of two instances each."""
    found = []
    for n in range(3):
        study = generate_uid()
        for series in range(2):
            uid = generate_uid()
            for number in range(2):
                data = changed(
                    "CT_small.dcm", StudyInstanceUID=study, SeriesInstanceUID=uid, SOPInstanceUID=generate_uid(),
                    StudyDate=f"2020010{n + 1}", StudyTime="101112", PatientName=("Müller^Jörg", "Doe^Jane", "山田")[n],
                    SpecificCharacterSet="ISO_IR 192", PatientID=f"P{n}", AccessionNumber="" if n == 0 else f"A{n}",
                    ProtocolName=f"protocol {series}", InstanceNumber=number + 1, KVP=str(100 + 20 * number),
                    RequestAttributesSequence=[requested(f"S{n}{series}")], PatientWeight=str(60 + n),
                )  # fmt: skip
                found.append(take_in(gateway, data))
    return found


def values(answer: httpx.Response, tag: str) -> list[Any]:
    return [item[tag].get("Value", [None])[0] for item in answer.json()] if answer.content else []


#: (path, query) -> how many
SEARCHES = (
    ("studies", "", 3),
    ("studies", "PatientName=muller*", 1),
    ("studies", "PatientName=jor%20mul&fuzzymatching=true", 1),
    ("studies", "PatientName=jor%20mul&fuzzymatching=false", 0),
    ("studies", "PatientName=山田", 1),
    ("studies", "StudyDate=20200101-20200102", 2),
    ("studies", "StudyDate=20200102-&StudyTime=1200-", 1),
    ("studies", "StudyDate=20200102-20200103&StudyTime=1000-1015", 2),
    ("studies", "00100020=P2", 1),
    ("studies", "PatientID=P1%5CP2&multiplevaluematching=true", 2),
    ("studies", "PatientID=P1%5CP2", 0),
    ("studies", "AccessionNumber=%22%22&emptyvaluematching=true", 1),
    ("studies", "AccessionNumber=%22%22", 0),
    ("studies", "AccessionNumber=", 3),
    ("studies", "ModalitiesInStudy=CT", 3),
    ("studies", "PatientWeight=61", 1),
    ("series", "", 6),
    ("series", "RequestAttributesSequence.ScheduledProcedureStepID=S11", 1),
    ("series", "00400275.00400009=S1?", 2),
    ("series", "ProtocolName=protocol%200", 3),
    ("series", "ProtocolName=protocol%200&PatientID=P1", 1),
    ("instances", "", 12),
    ("instances", "KVP=120", 6),
    ("instances", "KVP=120&InstanceNumber=1", 0),
    ("instances", "RequestAttributesSequence.RequestedProcedureID=RP-S00", 2),
    ("instances", "ImageType=*&limit=5", 5),
)


def test_searches_match_what_the_standard_says(web: TestClient, stored: list[Dataset]) -> None:
    for path, query, count in SEARCHES:
        answer = web.get(f"/dicomweb/{path}?{query}")
        assert answer.status_code == (200 if count else 204), (path, query, answer.text)
        assert len(answer.json() if answer.content else []) == count, (path, query)
    uids = [str(ds.StudyInstanceUID) for ds in stored]
    for separator in (",", "%5C"):
        assert len(web.get(f"/dicomweb/studies?StudyInstanceUID={uids[0]}{separator}{uids[4]}").json()) == 2
    assert len(web.get(f"/dicomweb/studies/{uids[0]}/series").json()) == 2
    assert len(web.get(f"/dicomweb/studies/{uids[0]}/instances?KVP=100").json()) == 2
    assert len(web.get(f"/dicomweb/studies/{uids[0]}/series/{stored[0].SeriesInstanceUID}/instances").json()) == 2


def test_what_a_search_returns(web: TestClient, stored: list[Dataset]) -> None:
    study = f"/dicomweb/studies/{stored[0].StudyInstanceUID}"
    series = web.get("/dicomweb/series?00400275.00400009=S00").json()[0]
    assert series["00400275"]["Value"][0]["00400009"]["Value"] == ["S00"]
    assert series["00100020"]["Value"] == ["P0"]  # a search of all series tells whose they are
    assert series["00080005"]["Value"] == ["ISO_IR 192"]
    assert "00100020" not in web.get(f"{study}/series").json()[0]
    assert series["00081190"]["Value"] == [f"http://testserver{path_of(stored[0], 'series')}"]
    assert series["00080056"]["Value"] == ["ONLINE"]
    plain = web.get(f"{study}/instances").json()[0]
    assert "00180060" not in plain and plain["00280010"]["Value"] == [128]
    wide = web.get(f"{study}/instances?includefield=KVP&includefield=00181030,Nonsense").json()[0]
    assert wide["00180060"]["Value"] == [100] and wide["00181030"]["Value"][0] in ("protocol 0", "protocol 1")
    everything = web.get(f"{study}/instances?includefield=all&limit=1").json()[0]
    reference = everything["7FE00010"]["BulkDataURI"]
    assert web.get(reference).status_code == 200 and "00080008" in everything
    of_study = web.get("/dicomweb/studies?includefield=all&PatientID=P2").json()[0]
    assert of_study["00101030"]["Value"] == [62] and "00180060" not in of_study and "7FE00010" not in of_study
    assert of_study["00100010"]["Value"] == [{"Alphabetic": "山田"}]


def test_pages_tell_what_is_left(web: TestClient, stored: list[Dataset]) -> None:
    for query, left in (("limit=2", 1), ("limit=3", 0), ("limit=1&offset=1", 1), ("limit=1&PatientWeight=60", 0)):
        warning = web.get(f"/dicomweb/studies?{query}").headers.get("warning", "")
        assert warning.startswith(f'299 palimpsest "There are {left} additional') == bool(left), query
    pages = [values(web.get(f"/dicomweb/instances?KVP=100&limit=4&offset={at}"), "00080018") for at in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 2, 0] and len({*pages[0], *pages[1]}) == 6


def test_a_search_of_stored_metadata_is_bounded(
    web: TestClient, stored: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_search, "SCANNED", 5)
    answer = web.get("/dicomweb/instances?KVP=100")
    assert (answer.status_code, answer.json()["reason"]) == (413, "search-too-broad")
    assert len(web.get("/dicomweb/instances?KVP=100&PatientID=P1").json()) == 2


def test_a_search_in_xml(web: TestClient, stored: list[Dataset]) -> None:
    answer = web.get("/dicomweb/studies?PatientID=P1", headers={"Accept": f'multipart/related; type="{XML}"'})
    document = answer.content.split(b"\r\n\r\n", 1)[1].split(b"\r\n--")[0]
    assert from_native_model(document)["00100020"]["Value"] == ["P1"]


# --- STOW-RS of metadata and bulk data ---


def related(kind: str, *parts: tuple[dict[str, str], bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(frame_part("B", headers, first=n == 0) + data for n, (headers, data) in enumerate(parts))
    return body + close_delimiter("B"), {"Content-Type": f'multipart/related; type="{kind}"; boundary=B'}


def bulk(location: str, data: bytes, media: str = OCTETS) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": media, "Content-Location": location}, data


def taken_apart(ds: Dataset, location: str) -> dict[str, Any]:
    """DICOM JSON whose pixel data are elsewhere."""
    found = ds.to_json_dict()
    found["7FE00010"] = {"vr": ds["PixelData"].VR, "BulkDataURI": location}
    return found


@pytest.mark.parametrize("kind", [JSON, XML])
@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_rgb_color.dcm", "rtdose.dcm"])
def test_metadata_and_bulk_data_are_put_together(web: TestClient, gateway: Gateway, kind: str, name: str) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.fail(f"{name} is not packaged")
    ds = pydicom.dcmread(path)
    metadata = taken_apart(ds, "instances/1/bulk")
    text = json.dumps([metadata]).encode() if kind == JSON else native_model(metadata)
    body, headers = related(kind, ({"Content-Type": kind}, text), bulk("instances/1/bulk", ds.PixelData))
    answer = web.post("/dicomweb/studies", content=body, headers={**headers, "Accept": kind})
    assert answer.status_code == 200, answer.text
    told = answer.json() if kind == JSON else from_native_model(answer.content)
    assert told["00081199"]["Value"][0]["00081155"]["Value"] == [ds.SOPInstanceUID]
    row = gateway.index.by_sop(str(ds.SOPInstanceUID))
    assert row is not None
    with gateway.spool.open(row.digest) as file:
        back = pydicom.dcmread(io.BytesIO(file.read()))
    assert back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert back.PixelData == ds.PixelData
    assert set(back.keys()) - {0x00080005} == set(ds.keys()) - {0x00080005}
    assert [str(back[tag].value) for tag in (0x00100010, 0x00280010, 0x00080060)] == [
        str(ds[tag].value) for tag in (0x00100010, 0x00280010, 0x00080060)
    ]


def test_compressed_frames_of_bulk_data_keep_their_syntax(web: TestClient, gateway: Gateway) -> None:
    data = transcode(changed("CT_small.dcm", SOPInstanceUID=generate_uid()), HTJ2K)
    ds = pydicom.dcmread(io.BytesIO(data))
    frame = pydicom.encaps.get_frame(ds.PixelData, 0, number_of_frames=1)
    text = json.dumps(taken_apart(ds, "http://elsewhere/frame")).encode()
    part = bulk("http://elsewhere/frame", frame, f"image/jphc; transfer-syntax={HTJ2K}")
    body, headers = related(JSON, ({"Content-Type": JSON}, text), part)
    assert web.post("/dicomweb/studies", content=body, headers=headers).status_code == 200
    row = gateway.index.by_sop(str(ds.SOPInstanceUID))
    assert row is not None and row.transfer_syntax == HTJ2K
    index_instance(gateway, row.id)
    answer = web.get(path_of(ds) + "/frames/1", headers={"Accept": "image/jphc"})
    assert answer.status_code == 200 and answer.content.rstrip(b"\0") == frame.rstrip(b"\0")


def test_each_data_set_is_judged_on_its_own(web: TestClient, gateway: Gateway) -> None:
    good = pydicom.dcmread(io.BytesIO(changed("CT_small.dcm", SOPInstanceUID=generate_uid())))
    data: list[Any] = [taken_apart(good, "p"), taken_apart(good, "missing"), taken_apart(good, "short"), {}, 7]
    data += [{"00080018": {"vr": "UI", "Value": [{"x": 1}]}}, {"00080016": {"vr": "ZZ", "Value": 3}}]
    data.append({**data[0], "00280010": {"vr": "US", "Value": ["x"]}})
    for number in (1, 2):
        data[number]["00080018"] = {"vr": "UI", "Value": [generate_uid()]}
    parts = [bulk("p", good.PixelData), bulk("short", b"1234")]
    body, headers = related(JSON, ({"Content-Type": JSON}, json.dumps(data).encode()), *parts)
    answer = web.post("/dicomweb/studies", content=body, headers=headers)
    assert answer.status_code == 202
    told = answer.json()
    assert len(told["00081199"]["Value"]) == 1
    reasons = [item["00091001"]["Value"][0] for item in told["00081198"]["Value"] + told["0008119A"]["Value"]]

    assert set(reasons) == {"bad-metadata", "bulk-data-missing", "pixel-data-length"} and len(reasons) == 7
    assert [path for path in gateway.settings.incoming_dir.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        (JSON, b"[", "bad-metadata"),
        (JSON, b"[" * 100_000, "bad-metadata"),
        (XML, b"<a>", "bad-metadata"),
        (XML, b"<a/>", "bad-metadata"),
        (XML, b'<?xml version="1.0" encoding="none"?><NativeDicomModel/>', "bad-metadata"),
        (XML, b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel>&b;</NativeDicomModel>', "bad-metadata"),
        (JSON, b"[]", "no-instances"),
    ],
)
def test_hostile_metadata_are_refused(web: TestClient, kind: str, text: bytes, reason: str) -> None:
    body, headers = related(kind, ({"Content-Type": kind}, text))
    answer = web.post("/dicomweb/studies", content=body, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (400, reason)


def test_small_texts_of_many_values_are_refused_before_they_are_parsed(
    web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow_metadata, "MOST_VALUES", 1000)
    monkeypatch.setattr(stow_metadata, "json", SimpleNamespace(loads=lambda text: pytest.fail("parsed")))
    for kind, text in ((JSON, b"[" + b"[]," * 600 + b"0]"), (XML, b"<a>" + b"<b/>" * 1000 + b"</a>")):
        body, headers = related(kind, ({"Content-Type": kind}, text))
        answer = web.post("/dicomweb/studies", content=body, headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (413, "metadata-too-large")
    monkeypatch.undo()
    whole = stow_metadata._Allowance(3)
    monkeypatch.setattr(stow_metadata, "_HELD", whole)
    ds = pydicom.dcmread(io.BytesIO(changed("CT_small.dcm", SOPInstanceUID=generate_uid())))
    body, headers = related(JSON, ({"Content-Type": JSON}, json.dumps(ds.to_json_dict()).encode()))
    answer = web.post("/dicomweb/studies", content=body, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (503, "busy") and answer.headers["retry-after"]
    body, headers = related(JSON, ({"Content-Type": JSON}, b"[]"))
    for _ in range(3):  # what a request took it gives back
        assert web.post("/dicomweb/studies", content=body, headers=headers).status_code == 400
    assert whole.take(3)


def test_one_part_does_not_become_many_files(
    web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stow_metadata, "REPEATED_BYTES", 0)
    ds = pydicom.dcmread(io.BytesIO(changed("CT_small.dcm", SOPInstanceUID=generate_uid())))
    data = [{**taken_apart(ds, "p"), "00080018": {"vr": "UI", "Value": [generate_uid()]}} for _ in range(4)]
    body, headers = related(JSON, ({"Content-Type": JSON}, json.dumps(data).encode()), bulk("p", ds.PixelData))
    told = web.post("/dicomweb/studies", content=body, headers=headers).json()
    assert len(told["00081199"]["Value"]) == 2
    assert [item["00091001"]["Value"] for item in told["00081198"]["Value"]] == [["bulk-data-repeated"]] * 2


@pytest.mark.parametrize("syntax", [EXPLICIT_BE, DEFLATED_LE])
def test_bulk_data_in_a_syntax_that_it_cannot_have_are_named_so(web: TestClient, syntax: str) -> None:
    ds = pydicom.dcmread(io.BytesIO(changed("CT_small.dcm", SOPInstanceUID=generate_uid())))
    part = bulk("p", ds.PixelData, f"{OCTETS}; transfer-syntax={syntax}")
    body, headers = related(JSON, ({"Content-Type": JSON}, json.dumps([taken_apart(ds, "p")]).encode()), part)
    told = web.post("/dicomweb/studies", content=body, headers=headers).json()
    assert told["00081198"]["Value"][0]["00091001"]["Value"] == ["bulk-data-syntax"]
    part = bulk("p", ds.PixelData, f"{OCTETS}; transfer-syntax={IMPLICIT_LE}")
    body, headers = related(JSON, ({"Content-Type": JSON}, json.dumps([taken_apart(ds, "p")]).encode()), part)
    assert web.post("/dicomweb/studies", content=body, headers=headers).status_code == 200


def test_bulk_data_above_the_limit_is_a_413(web: TestClient) -> None:
    ds = pydicom.dcmread(io.BytesIO(changed("CT_small.dcm", SOPInstanceUID=generate_uid())))
    text = json.dumps([taken_apart(ds, "p")]).encode()
    body, headers = related(JSON, ({"Content-Type": JSON}, text), bulk("p", bytes(4_000_001)))
    assert web.post("/dicomweb/studies", content=body, headers=headers).status_code == 413
    body, headers = related(JSON, ({"Content-Type": JSON}, text), ({"Content-Type": OCTETS}, b"1"))
    assert web.post("/dicomweb/studies", content=body, headers=headers).json()["reason"].endswith("no-content-location")


# --- status codes ---

RELATED = 'multipart/related; type="application/dicom"; boundary=B'


def framed(*bodies: bytes) -> bytes:
    parts = (frame_part("B", {"Content-Type": "application/dicom"}, first=n == 0) + b for n, b in enumerate(bodies))
    return b"".join(parts) + close_delimiter("B")


def test_every_status_code_of_the_doors_is_reached_with_its_problem(
    web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = take_in(gateway, changed("CT_small.dcm", SOPInstanceUID=generate_uid()))
    here, study = path_of(ds), path_of(ds, "study")
    new = changed("CT_small.dcm", SOPInstanceUID=generate_uid())
    other = changed("MR_small.dcm", SOPInstanceUID=generate_uid())
    big = changed("CT_small.dcm", SOPInstanceUID=generate_uid(), PixelData=bytes(4_200_000))
    tag = web.get(here).headers["etag"]
    clinician = {"Authorization": f"Bearer {mint_token(gateway, 'clinician', 'test')}"}
    send = {"Content-Type": RELATED}
    reached = [
        (200, web.get(here)),
        (202, web.post("/dicomweb/studies", content=framed(new, b"junk"), headers=send)),
        (204, web.get("/dicomweb/studies?PatientID=nobody")),
        (206, web.get(here, headers={"Range": "bytes=0-9", "Accept": "application/dicom; transfer-syntax=*"})),
        (304, web.get(here, headers={"If-None-Match": tag})),
        (400, web.get("/dicomweb/studies?StudyDate=today")),
        (401, web.get(here, headers={"Authorization": "Bearer x"})),
        (403, web.post("/dicomweb/studies", content=framed(new), headers={**send, **clinician})),
        (404, web.get("/dicomweb/studies/1.2.3")),
        (405, web.delete(here)),
        (406, web.get(here, headers={"Accept": "text/html"})),
        (409, web.post("/dicomweb/studies/1.2.3", content=framed(other), headers=send)),
        (413, web.post("/dicomweb/studies", content=framed(big), headers=send)),
        (415, web.post("/dicomweb/studies", content=b"{}", headers={"Content-Type": "application/json"})),
        (416, web.get(here, headers={"Range": "bytes=99999999-", "Accept": "application/dicom; transfer-syntax=*"})),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(gateway.spool, "check_space", out_of_room)
        reached.append((507, web.post("/dicomweb/studies", content=framed(other), headers=send)))
    with monkeypatch.context() as patch:
        patch.setattr(gateway.queue, "call", nobody_there)
        busy = web.get(here + "/rendered")
        reached.append((503, busy))
        assert int(busy.headers["retry-after"]) > 0
    with monkeypatch.context() as patch:
        patch.setattr("service.wado_resource._forgotten", lambda *_: True)
        reached.append((410, web.get("/dicomweb/studies/1.2.3")))
    for status, answer in reached:
        assert answer.status_code == status, (status, answer.status_code, answer.text[:200])
        if status >= 400 and status != 409:  # a 409 is a store response with the reason of each instance
            assert answer.headers["content-type"] == "application/problem+json", status
            body = answer.json()
            assert body["status"] == status and body["title"] and body["detail"] and body["reason"], body
    assert web.get(study).status_code == 200


def out_of_room() -> None:
    raise OutOfResources("below-watermark", "The disk is full.")


def nobody_there(*_: object, **__: object) -> None:
    raise Unavailable("retrieve-timeout", "No worker.", retry_after=3)


def test_a_store_request_that_waits_for_100_continue(gateway: Gateway) -> None:
    body = framed(changed("CT_small.dcm", SOPInstanceUID=generate_uid()))
    token = mint_token(gateway, "service", "test")
    with serving(gateway) as base:
        address = httpx.URL(base)
        with socket.create_connection((address.host, address.port or 80), timeout=30) as peer:
            head = (
                f"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Type: {RELATED}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
                "Connection: close\r\n\r\n"
            )
            peer.sendall(head.encode())
            assert peer.recv(4096).startswith(b"HTTP/1.1 100")
            peer.sendall(body)
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")


def test_dicomweb_client_searches_with_every_parameter(gateway: Gateway, stored: list[Dataset]) -> None:
    with serving(gateway) as base:
        token = mint_token(gateway, "clinician", "test")
        client = DICOMwebClient(f"{base}/dicomweb", headers={"Authorization": f"Bearer {token}"})
        assert len(client.search_for_studies(limit=1, get_remaining=True)) == 3
        found = client.search_for_studies(
            fuzzymatching=True, fields=["00101030", "PatientID"], search_filters={"PatientName": "doe"}
        )
        assert [item["00101030"]["Value"] for item in found] == [[61.0]]
        assert len(client.search_for_series(search_filters={"ProtocolName": "protocol 1"})) == 3
        assert len(client.search_for_instances(offset=10, fields=["all"])) == 2
