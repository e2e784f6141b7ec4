"""WADO-URI (PS3.18 9): the same bytes as WADO-RS gives, asked for in its older way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.part10 import EXPLICIT_LE
from gateway.settings import load_settings
from gateway.tokens import mint_token
from gateway.transfer_syntaxes import JPEG_LS
from service.api import create_app
from tests.integration.test_service_wado import Working, path_of, take_in
from tests.object_makers import packaged

pytestmark = pytest.mark.integration


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    queue = Working()
    queue.gateway = build(load_settings(home=tmp_path / "home", watermark_bytes=1), queue=queue)
    yield queue.gateway
    queue.gateway.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'clinician', 'test')}"}
    with TestClient(create_app(gateway), raise_server_exceptions=False, headers=headers) as client:
        yield client


def named(ds: pydicom.Dataset, **more: str) -> dict[str, str]:
    uids = {"studyUID": ds.StudyInstanceUID, "seriesUID": ds.SeriesInstanceUID, "objectUID": ds.SOPInstanceUID}
    return {"requestType": "WADO", **uids, **more}


def test_an_object_comes_as_wado_rs_gives_it(web: TestClient, gateway: Gateway) -> None:
    data = packaged("CT_small.dcm")
    ds = take_in(gateway, data)
    answer = web.get("/wado", params=named(ds, contentType="application/dicom"))
    assert answer.content == data
    assert answer.headers["content-type"] == f"application/dicom;transfer-syntax={EXPLICIT_LE}"
    answer = web.get("/wado", params=named(ds, contentType="application/dicom", transferSyntax=JPEG_LS))
    assert pydicom.dcmread(io.BytesIO(answer.content)).file_meta.TransferSyntaxUID == JPEG_LS
    assert audit.tail(gateway.index, 1)[0]["event"] == "retrieved"
    report = take_in(gateway, packaged("test-SR.dcm"))
    assert web.get("/wado", params=named(report)).headers["content-type"].startswith("application/dicom")
    frames = take_in(gateway, packaged("rtdose.dcm"))
    assert web.get("/wado", params=named(frames)).headers["content-type"].startswith("application/dicom")
    assert web.get("/wado", params=named(frames, frameNumber="3")).headers["content-type"] == "image/jpeg"


def test_a_picture_is_that_of_wado_rs(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    for older, newer in (
        ({}, ""),
        ({"windowCenter": "40", "windowWidth": "400"}, "?window=40,400,linear"),
        ({"imageQuality": "30"}, "?quality=30"),
        ({"annotation": "technique"}, "?annotation=technique"),
        ({"rows": "64", "columns": "32"}, "?viewport=32,64"),
        ({"region": "0.25,0.5,0.75,1"}, "?viewport=64,64,32,64,64,64"),
        ({"region": "0,0,0.5,0.25", "columns": "16"}, "?viewport=16,8192,0,0,64,32"),
    ):
        old = web.get("/wado", params=named(ds, **older))
        new = web.get(f"{path_of(ds)}/rendered{newer}", headers={"Accept": "image/jpeg"})
        assert old.status_code == new.status_code == 200, older
        assert old.content == new.content and old.headers["content-type"] == "image/jpeg", older
    answer = web.get("/wado", params=named(ds, contentType="image/png", rows="50"))
    assert answer.headers["content-type"] == "image/png" and Image.open(io.BytesIO(answer.content)).size == (50, 50)


def test_what_is_wrong_is_named(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    good = named(ds)
    for changes, status in (
        ({"requestType": "GET"}, 400),
        ({"objectUID": ""}, 400),
        ({"studyUID": "../etc"}, 400),
        ({"objectUID": "1.2.3"}, 404),
        ({"contentType": "video/mp4"}, 406),
        ({"contentType": "application/dicom", "transferSyntax": "1.2.3.4"}, 406),
        ({"anonymize": "yes"}, 400),
        ({"region": "0,0,2,1"}, 400),
        ({"region": "x"}, 400),
        ({"windowCenter": "40"}, 400),
        ({"rows": "0"}, 400),
        ({"frameNumber": "0"}, 400),
        ({"frameNumber": "2"}, 404),
        ({"imageQuality": "101"}, 400),
    ):
        answer = web.get("/wado", params={**good, **changes})
        assert answer.status_code == status, changes
        assert answer.json()["reason"] and "etc" not in answer.text
    assert web.get("/wado", params={**good, "charset": "UTF-8"}).status_code == 200  # what is not known is ignored
    assert web.get("/wado", params=good, headers={"Authorization": ""}).status_code == 401
