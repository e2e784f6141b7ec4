"""Destinations that were not written here: Orthanc by STOW-RS and C-STORE, DCMTK's archive with C-GET and C-MOVE.

The probe must find what they do: Orthanc takes HTJ2K, JPEG XL and a private syntax by STOW-RS with 200, and a C-GET
of them then fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from gateway.instance import ForwardState
from gateway.part10 import EXPLICIT_LE
from gateway.probe_result import RAW_DATA, ProbeResult
from gateway.settings import Destination, load_settings
from gateway.transfer_syntaxes import HTJ2K, JPEG_2000, JPEG_LS, JPEG_XL
from palimpsest.probe import run_probe
from tests.integration.test_orthanc_roundtrip import Orthanc, find_dcmtk, orthanc, run_peer
from tests.object_makers import IDENTITY
from tests.running import free_port
from tests.unit.test_worker_viewable import CT, archive, forward, gateway, picture
from worker.canaries import PRIVATE_SYNTAX

pytestmark = [pytest.mark.peers, pytest.mark.integration]
__all__ = ["orthanc"]  # the fixture

VIEWABLE = 'version=1\n[[delivery]]\nname="v"\nrepresentation="viewable"\nsyntax=["htj2k", "jpeg-ls", "explicit-le"]\n'


def probed(tmp_path: Path, place: Destination, receive: tuple[str, int] | None = None) -> ProbeResult:
    settings = load_settings(home=tmp_path / "home", network_timeout_seconds=120.0)
    for folder in settings.folders:
        folder.mkdir(parents=True, exist_ok=True)
    return run_probe(settings, place, receive=receive)


def web(peer: Orthanc) -> Destination:
    node = {"port": peer.dicom_port, "ae_title": "ORTHANC"}
    return Destination(name="web", kind="stow", url=f"http://127.0.0.1:{peer.http_port}/dicom-web", dimse=node)


def verdicts(result: ProbeResult, *syntaxes: str) -> set[str | None]:
    return {result.verdict(CT, syntax) for syntax in syntaxes}


def test_orthanc_takes_by_stow_what_it_cannot_give_by_c_get(tmp_path: Path, orthanc: Orthanc) -> None:
    result = probed(tmp_path, web(orthanc))
    # this Orthanc allows C-GET and not C-FIND to strangers
    assert result.ways == {"c-find": "gives-nothing-back", "c-get": "", "qido": "", "wado": ""}
    assert verdicts(result, EXPLICIT_LE, JPEG_LS, JPEG_2000) == {"proven"}
    assert result.verdict(RAW_DATA, EXPLICIT_LE) == "proven"
    assert verdicts(result, HTJ2K, JPEG_XL) == {"lost"} and result.refutes(CT, PRIVATE_SYNTAX)
    trap = [each for each in result.findings if each.syntax == HTJ2K]
    assert trap and all(
        (each.stored, each.reads["wado"], each.reads["c-get"]) == ("stored", "equal", "missing") for each in trap
    )


def test_orthanc_refuses_the_same_by_c_store(tmp_path: Path, orthanc: Orthanc) -> None:
    place = Destination(name="pacs", port=orthanc.dicom_port, ae_title="ORTHANC")
    result = probed(tmp_path, place)
    assert verdicts(result, EXPLICIT_LE, JPEG_LS, JPEG_2000) == {"proven"}
    assert verdicts(result, HTJ2K, JPEG_XL, PRIVATE_SYNTAX) == {"refused"}


def test_what_was_refuted_is_not_sent_and_the_rest_arrives_by_stow(tmp_path: Path, orthanc: Orthanc) -> None:
    place = web(orthanc)
    gw = gateway(tmp_path / "home", VIEWABLE, place)
    gw.index.probe_put(run_probe(gw.settings, place), "test")
    study = f"{IDENTITY['StudyInstanceUID']}.7"
    data = picture(StudyInstanceUID=study, SOPInstanceUID="1.2.3.4.77")
    done = forward(gw, archive(gw, data))
    assert (done.state, done.proof, done.sent_syntax) == (ForwardState.SENT, "stored", JPEG_LS)
    body, _ = orthanc.get(
        f"/dicom-web/studies/{study}", 'multipart/related; type="application/dicom"; transfer-syntax=*'
    )
    back = body[body.index(b"\r\n\r\n") + 4 :]
    back = re.sub(rb"\r\n--[^\r\n]+--\s*\Z", b"", back)
    shown = dcmread(BytesIO(back))
    assert shown.PatientID == IDENTITY["PatientID"] and shown.SOPInstanceUID == "1.2.3.4.77"
    assert (shown.pixel_array == dcmread(BytesIO(data)).pixel_array).all()
    gw.close()


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """(its port, the port to which it may send by C-MOVE)."""
    program, port, ours = find_dcmtk("dcmqrscp"), free_port(), free_port()
    (tmp_path / "store").mkdir()
    (tmp_path / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nours = (PROBE, 127.0.0.1, {ours})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQRSCP {tmp_path / 'store'} RW (500, 1024mb) ANY\nAETable END\n"
    )
    command = [program, "-c", str(tmp_path / "dcmqrscp.cfg")]
    for _ in run_peer(command, tmp_path / "log", port):
        yield port, ours


def test_dcmqrscp_gives_back_by_c_get_and_by_c_move(tmp_path: Path, dcmqrscp: tuple[int, int]) -> None:
    port, ours = dcmqrscp
    result = probed(tmp_path, Destination(name="qr", port=port, ae_title="QRSCP"), ("PROBE", ours))
    assert result.ways == {"c-find": "", "c-get": "", "c-move": ""}
    assert result.verdict(RAW_DATA, EXPLICIT_LE) == "proven" and verdicts(result, EXPLICIT_LE) == {"proven"}
    assert verdicts(result, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL, PRIVATE_SYNTAX) == {"refused"}  # as it was started
