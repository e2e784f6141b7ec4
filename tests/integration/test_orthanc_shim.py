"""The test-only routes that outside DICOMweb tests set their scene by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from gateway.bootstrap import build
from gateway.settings import load_settings
from tests.integration.test_service_wado import Working, changed
from tests.orthanc_shim import LEVELS, shim

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[TestClient]:
    queue = Working()
    queue.gateway = build(load_settings(home=tmp_path / "home", watermark_bytes=1), queue=queue)
    with TestClient(shim(queue.gateway), headers={"Authorization": "Basic YTpi"}) as client:
        yield client
    queue.gateway.close()


def test_a_scene_is_set_searched_and_cleared(web: TestClient) -> None:
    data = changed("CT_small.dcm", StudyInstanceUID="1.2.3", PatientID="P")
    for status in ("Success", "AlreadyStored"):
        assert web.post("/instances", content=data).json()["Status"] == status
    assert [len(web.get(f"/{level}").json()) for level in LEVELS] == [1, 1, 1, 1]
    assert (
        web.post("/tools/find", json={"Level": "Study", "Query": {"PatientID": "P"}}).json()
        == web.get("/studies").json()
    )
    found = web.get("/dicom-web/studies", headers={"Accept": "application/json"}).json()
    assert found[0]["0020000D"]["Value"] == ["1.2.3"]
    assert web.get("/dicom-web/studies/1.2.3/metadata").status_code == 200
    for path in ("/exports", "/changes"):
        assert web.get(path).json()["Done"] and web.delete(path).status_code == 200
    assert web.post("/tools/execute-script", content=b"x").status_code == 200
    patient = web.get("/patients").json()[0]
    assert (
        web.delete(f"/patients/{patient}").status_code == 200 and web.delete(f"/patients/{patient}").status_code == 404
    )
    assert web.get("/instances").json() == [] and web.get("/dicom-web/studies").status_code == 204
    assert web.post("/instances", content=data).json()["Status"] == "Success"
    assert len(web.get("/dicom-web/instances").json()) == 1
    assert web.post("/instances", content=b"junk").status_code == 400
