"""Other vendors' software: envelopes go out by the real forwarder, come back, and restore to what was received.

Orthanc (with its DICOMweb plugin) and DCMTK's storescp run as plain processes on free ports of the loopback interface.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelGet,
    RawDataStorage,
)

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.index import InstanceRow
from gateway.instance import Form, ForwardState
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, load_settings
from tests.fakes import NoStego
from tests.running import free_port, until
from tests.weightfiles import without_weights
from worker.delivery import forward_instance
from worker.pipeline import process_instance
from worker.restore import restore
from worker.verify import VerifyReport, check_envelope

pytestmark = [pytest.mark.peers, pytest.mark.integration]

#: Every kind of envelope: coded grey, signed, colour, multi-frame, compressed, big-endian, deflated; and sealed whole.
NAMES = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "SC_rgb_small_odd.dcm",
    "rtdose.dcm",
    "JPEG2000.dcm",
    "JPEG-lossy.dcm",
    "rtplan.dcm",
    "test-SR.dcm",
    "image_dfl.dcm",
)
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def need(program: str) -> str:
    """The program's path; without it the test is skipped, or fails where peers are required (CI)."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    return found or missing(program)


def missing(program: str) -> NoReturn:
    """Skip, or fail where no suite may be skipped."""
    if os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
        pytest.fail(f"{program} is required (PALIMPSEST_REQUIRE_PEERS=1) and not installed")
    pytest.skip(f"{program} is not installed")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the peer ended at once"
        assert time.monotonic() < deadline, "the peer does not answer"
        time.sleep(0.05)


def run_peer(command: list[str], log: Path, port: int) -> Iterator[None]:
    with log.open("wb") as output:
        environment = {**os.environ, "TCP_NODELAY": "1"}  # or the receiver waits 45 ms an object
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_for(lambda: listens(port), process)
        yield
    finally:
        process.terminate()
        process.wait(120)


class Orthanc:
    """An Orthanc with nothing configured for us: any storage is taken, as by default."""

    def __init__(self, folder: Path) -> None:
        self.dicom_port, self.http_port = free_port(), free_port()
        configuration = {
            "Name": "peer",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomAlwaysAllowGet": True,
            "AuthenticationEnabled": False,
            "Plugins": [str(ORTHANC_PLUGIN)],
        }
        self.file = folder / "orthanc.json"
        self.file.write_text(json.dumps(configuration))

    def get(self, path: str, accept: str = "*/*") -> tuple[bytes, str]:
        """Body and content type of one GET."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read(), answer.headers["Content-Type"]

    def ready(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:  # URLError is one; so is an answer that breaks off
            return False


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    program, folder = need("Orthanc"), tmp_path_factory.mktemp("orthanc")
    peer = Orthanc(folder)
    for _ in run_peer([program, str(peer.file)], folder / "log", peer.http_port):
        assert until(peer.ready), "Orthanc does not answer"
        yield peer


@pytest.fixture(scope="module")
def storescp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    program, folder, port = find_dcmtk("storescp"), tmp_path_factory.mktemp("storescp"), free_port()
    command = [program, "-aet", "DCMTK", "-od", str(folder), "+xa", str(port)]
    for _ in run_peer(command, folder.parent / "storescp.log", port):
        yield port, folder


def find_dcmtk(program: str) -> str:
    """DCMTK's own program: pynetdicom installs commands of the same names into the virtual environment."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidate = Path(folder) / program
        if candidate.is_file() and b"python" not in candidate.read_bytes()[:128]:
            return str(candidate)
    missing(f"DCMTK's {program}")


@pytest.fixture(scope="module")
def sent(
    orthanc: Orthanc, storescp: tuple[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, list[InstanceRow]]]:
    """Every kind of envelope, archived, and forwarded to both peers by the real forwarder."""
    settings = load_settings(
        home=tmp_path_factory.mktemp("home"),
        watermark_bytes=0,
        destinations=(
            Destination(name="orthanc", port=orthanc.dicom_port, ae_title="ORTHANC"),
            Destination(name="dcmtk", port=storescp[0], ae_title="DCMTK"),
        ),
    )
    gw = build(settings, queue=MemoryQueue())
    rows = [archive_one(gw, name) for name in NAMES]
    for forward in gw.index.forwards():
        forward_instance(gw, forward.id, "test-1", NoStego())
    yield gw, rows
    gw.close()


def archive_one(gw: Gateway, name: str) -> InstanceRow:
    incoming = gw.spool.incoming()
    dataset = dcmread(str(get_testdata_file(name, download=False)))
    fresh = f"2.25.{int(sha256(name.encode()).hexdigest()[:30], 16)}"  # the samples share UIDs
    data = Path(str(get_testdata_file(name, download=False))).read_bytes()
    incoming.write_bytes(with_uid(data, str(dataset.SOPInstanceUID), fresh))

    class Prover:
        def check(self, envelope: bytes) -> VerifyReport:
            return check_envelope(envelope, gw.keys)

    instance_id = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id
    process_instance(gw, Prover(), instance_id, "test-1")  # type: ignore[arg-type]
    return gw.index.get(instance_id)


def with_uid(data: bytes, old: str, new: str) -> bytes:
    """The file with another SOP Instance UID of the same length, so that no other byte changes."""
    padded = (new + "1" * 64)[: len(old)]
    padded = padded[:-1] + "1" if padded.endswith(".") else padded
    return data.replace(old.encode(), padded.encode())


def test_every_kind_of_envelope_is_among_those_sent(sent: tuple[Gateway, list[InstanceRow]]) -> None:
    gw, rows = sent
    assert {row.form for row in rows} == {Form.CODED, Form.PASSTHROUGH}
    assert len({row.sop_uid for row in rows}) == len(NAMES)
    assert {row.carrier for row in rows} >= {"passthrough", "segmented"}


@pytest.mark.parametrize("destination", ["orthanc", "dcmtk"])
def test_the_forwarder_has_the_peers_word_for_each(sent: tuple[Gateway, list[InstanceRow]], destination: str) -> None:
    gw, _ = sent
    forwards = [row for row in gw.index.forwards() if row.destination == destination]
    assert [row.state for row in forwards] == [ForwardState.SENT] * len(NAMES), [row.reason for row in forwards]


def restored(gw: Gateway, row: InstanceRow, envelope: bytes) -> None:
    """What a peer gave back restores to the received file, or to what the proof recorded for compressed input."""
    found = restore(envelope, gw.keys)
    assert found.record.file_sha256 == row.digest
    assert found.sha256 == gw.index.facts(row.id)["restored_sha256"]
    if found.exact:
        assert found.data == gw.spool.read(row.digest)
    else:
        facts = gw.index.facts(row.id)
        assert (found.pixel_sha256, found.nonpixel_sha256) == (facts["pixel_sha256"], facts["nonpixel_sha256"])


def test_orthanc_rest_gives_every_object_back(sent: tuple[Gateway, list[InstanceRow]], orthanc: Orthanc) -> None:
    gw, rows = sent
    by_uid = {row.envelope_uid: row for row in rows}
    ids = json.loads(orthanc.get("/instances")[0])
    found = {json.loads(orthanc.get(f"/instances/{each}/simplified-tags")[0])["SOPInstanceUID"]: each for each in ids}
    held = without_weights(found)
    assert len(held) == len(NAMES) and len(found) > len(held)  # what decodes them came along
    for uid in held:
        restored(gw, by_uid.pop(uid), orthanc.get(f"/instances/{found[uid]}/file")[0])
    assert by_uid == {}


def test_orthanc_dicomweb_gives_every_object_back(sent: tuple[Gateway, list[InstanceRow]], orthanc: Orthanc) -> None:
    gw, rows = sent
    for row in rows:
        header = envelope_header(gw, row)
        path = f"studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}/instances/{row.envelope_uid}"
        body, kind = orthanc.get(f"/dicom-web/{path}", 'multipart/related; type="application/dicom"; transfer-syntax=*')
        parts: Any = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body).get_payload()
        [part] = parts
        restored(gw, row, part.get_payload(decode=True))


def envelope_header(gw: Gateway, row: InstanceRow) -> Dataset:
    return dcmread(gw.settings.archive_dir / str(row.archive_key))


def test_orthanc_c_get_gives_every_object_back(sent: tuple[Gateway, list[InstanceRow]], orthanc: Orthanc) -> None:
    gw, rows = sent
    kept: dict[str, bytes] = {}

    def keep(event: evt.Event) -> int:
        kept[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        return 0x0000

    ae = AE(ae_title="PALIMPSEST")
    ae.add_requested_context(PatientRootQueryRetrieveInformationModelGet)
    ae.add_requested_context(RawDataStorage, "1.2.840.10008.1.2.1")
    association = ae.associate(
        "127.0.0.1",
        orthanc.dicom_port,
        ae_title="ORTHANC",
        ext_neg=[build_role(RawDataStorage, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    assert association.is_established
    for row in rows:
        header = envelope_header(gw, row)
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(query, keyword, header[keyword].value)
        for _ in association.send_c_get(query, PatientRootQueryRetrieveInformationModelGet):
            pass
    association.release()
    assert set(kept) == {row.envelope_uid for row in rows}
    for row in rows:
        restored(gw, row, kept[str(row.envelope_uid)])


def test_storescp_keeps_every_object(sent: tuple[Gateway, list[InstanceRow]], storescp: tuple[int, Path]) -> None:
    gw, rows = sent
    by_uid = {row.envelope_uid: row for row in rows}
    files = without_weights(path for path in storescp[1].iterdir() if path.is_file())
    assert len(files) == len(NAMES)
    for path in map(Path, files):
        restored(gw, by_uid.pop(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)), path.read_bytes())


def test_what_peers_hold_shows_no_patient(sent: tuple[Gateway, list[InstanceRow]], orthanc: Orthanc) -> None:
    _, rows = sent
    names = {str(dcmread(str(get_testdata_file(name, download=False))).get("PatientName", "")) for name in NAMES}
    uids = {row.sop_uid for row in rows} | {row.study_uid for row in rows if row.study_uid}
    text = json.dumps(
        [
            json.loads(orthanc.get(f"/instances/{orthanc_id}/simplified-tags")[0])
            for orthanc_id in json.loads(orthanc.get("/instances")[0])
        ]
    )
    assert not [word for word in (names | uids) - {""} if word in text]
