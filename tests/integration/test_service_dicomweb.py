"""QIDO-RS and STOW-RS to the letter over a real gateway with its index worker: PS3.18 10.5, 10.6."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from fastapi.testclient import TestClient
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from gateway import index_search
from gateway.bootstrap import Gateway, build
from gateway.settings import load_settings
from gateway.tokens import mint_token
from service.api import create_app
from service.dicomxml import from_native_model, native_model
from service.multipart import close_delimiter, frame_part
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
    assert wide["00180060"]["Value"] == [100] and wide["00181030"]["Value"] == ["protocol 0"]
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
    data = [taken_apart(good, "p"), taken_apart(good, "missing"), taken_apart(good, "short"), {}, 7]
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
        (XML, b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel>&b;</NativeDicomModel>', "bad-metadata"),
        (JSON, b"[]", "no-instances"),
    ],
)
def test_hostile_metadata_are_refused(web: TestClient, kind: str, text: bytes, reason: str) -> None:
    body, headers = related(kind, ({"Content-Type": kind}, text))
    answer = web.post("/dicomweb/studies", content=body, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (400, reason)


def test_bulk_data_above_the_limit_is_a_413(web: TestClient) -> None:
    ds = pydicom.dcmread(io.BytesIO(changed("CT_small.dcm", SOPInstanceUID=generate_uid())))
    text = json.dumps([taken_apart(ds, "p")]).encode()
    body, headers = related(JSON, ({"Content-Type": JSON}, text), bulk("p", bytes(4_000_001)))
    assert web.post("/dicomweb/studies", content=body, headers=headers).status_code == 413
    body, headers = related(JSON, ({"Content-Type": JSON}, text), ({"Content-Type": OCTETS}, b"1"))
    assert web.post("/dicomweb/studies", content=body, headers=headers).json()["reason"].endswith("no-content-location")
