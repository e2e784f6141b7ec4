"""DICOMweb before other programs: Orthanc as client, both ways; DCMTK and dciodvfy on what comes out."""

from __future__ import annotations

import io
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

from gateway import transfer_syntaxes as ts
from gateway.bootstrap import Gateway, build
from gateway.part10 import EXPLICIT_LE
from gateway.settings import load_settings
from gateway.tokens import mint_token
from tests.integration.test_orthanc_roundtrip import Orthanc, find_dcmtk, need, run_peer
from tests.integration.test_service_api import serving
from tests.integration.test_service_wado import Working, changed, take_in
from worker.indexing import index_instance

pytestmark = [pytest.mark.peers, pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]

NAMES = ("CT_small.dcm", "MR_small_RLE.dcm", "examples_rgb_color.dcm", "rtplan.dcm", "test-SR.dcm", "rtdose.dcm")
SYNTAXES = ("*", EXPLICIT_LE, ts.HTJ2K, ts.JPEG_LS, ts.RLE)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    queue = Working()
    queue.gateway = build(load_settings(home=tmp_path_factory.mktemp("home"), watermark_bytes=1), queue=queue)
    yield queue.gateway
    queue.gateway.close()


@pytest.fixture(scope="module")
def base(gateway: Gateway) -> Iterator[str]:
    with serving(gateway) as address:
        yield address


def post(peer: Orthanc, path: str, body: bytes | dict[str, Any]) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{peer.http_port}{path}", data=data, method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def delete(peer: Orthanc, path: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{peer.http_port}{path}", method="DELETE")
    urllib.request.urlopen(request, timeout=120).close()


@pytest.fixture(scope="module")
def orthanc(gateway: Gateway, base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    program, folder = need("Orthanc"), tmp_path_factory.mktemp("orthanc")
    peer = Orthanc(folder)
    token = mint_token(gateway, "service", "orthanc")
    server = {"Url": base + "/dicomweb/", "HttpHeaders": {"Authorization": f"Bearer {token}"}}
    configuration = json.loads(peer.file.read_text()) | {"DicomWeb": {"Enable": True, "Servers": {"us": server}}}
    peer.file.write_text(json.dumps(configuration))
    for _ in run_peer([program, str(peer.file)], folder / "log", peer.http_port):
        yield peer


@pytest.mark.parametrize("name", NAMES)
def test_orthanc_stores_here_searches_here_and_fetches_again(gateway: Gateway, orthanc: Orthanc, name: str) -> None:
    data = changed(name, SOPInstanceUID=generate_uid(), StudyInstanceUID=generate_uid())
    ds = pydicom.dcmread(io.BytesIO(data))
    uploaded = post(orthanc, "/instances", data)["ID"]
    post(orthanc, "/dicom-web/servers/us/stow", {"Resources": [uploaded], "Synchronous": True})
    row = gateway.index.by_sop(str(ds.SOPInstanceUID))
    assert row is not None and row.study_uid == ds.StudyInstanceUID
    index_instance(gateway, row.id)
    asked = {"Uri": "/studies", "Arguments": {"StudyInstanceUID": str(ds.StudyInstanceUID)}}
    found = post(orthanc, "/dicom-web/servers/us/qido", asked)
    assert len(found) == 1
    delete(orthanc, f"/instances/{uploaded}")
    post(
        orthanc, "/dicom-web/servers/us/retrieve",
        {"Resources": [{"Study": str(ds.StudyInstanceUID)}], "Synchronous": True},
    )  # fmt: skip
    back = pydicom.dcmread(io.BytesIO(orthanc.get(f"/instances/{uploaded}/file")[0]))
    assert back.SOPInstanceUID == ds.SOPInstanceUID
    assert "PixelData" not in ds or (back.pixel_array == ds.pixel_array).all()
    delete(orthanc, f"/instances/{uploaded}")


def errors_of(path: Path) -> set[str]:
    """Errors that dciodvfy finds, without what differs between two files of one object."""
    done = subprocess.run([need("dciodvfy"), str(path)], capture_output=True, text=True, errors="replace", timeout=120)
    return {re.sub(r"\s+", " ", line) for line in done.stderr.splitlines() if line.startswith("Error")}


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_out_is_as_sound_as_what_went_in(gateway: Gateway, base: str, tmp_path: Path, name: str) -> None:
    data = changed(name, SOPInstanceUID=generate_uid(), StudyInstanceUID=generate_uid())
    ds = take_in(gateway, data)
    (tmp_path / "in.dcm").write_bytes(data)
    before = errors_of(tmp_path / "in.dcm")
    token = mint_token(gateway, "service", "peer")
    uids = (str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID))
    for number, syntax in enumerate(SYNTAXES if "PixelData" in ds else ("*",)):
        out = tmp_path / f"{number}.dcm"
        request = urllib.request.Request(
            f"{base}/dicomweb/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}",
            headers={"Authorization": f"Bearer {token}", "Accept": f"application/dicom; transfer-syntax={syntax}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                out.write_bytes(answer.read())
        except urllib.error.HTTPError as error:  # pixels of 32 bits have no such form
            assert (error.code, name) == (406, "rtdose.dcm") and syntax not in ("*", EXPLICIT_LE)
            continue
        for program in ("dcmftest", "dcmdump"):
            done = subprocess.run([find_dcmtk(program), str(out)], capture_output=True, timeout=120)
            assert done.returncode == 0 and not done.stderr.strip(), (program, syntax, done.stderr[-300:])
        if syntax != ts.HTJ2K:  # dciodvfy of 2023 takes what it does not know for native pixels
            assert errors_of(out) - before == set(), (name, syntax)
