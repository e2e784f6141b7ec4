"""Reconciling with a PACS, and taking its archive over: DCMTK's dcmqrscp has the studies, our listener gets them."""

from __future__ import annotations

import io
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, Unavailable
from gateway.settings import Destination
from palimpsest.cli import app
from palimpsest.pacs import Moved, pacs_of
from palimpsest.reconcile import Pace, import_studies, reconcile
from tests.integration.test_orthanc_roundtrip import find_dcmtk, run_peer
from tests.integration.test_query_retrieve import listen, make_gateway, store
from tests.object_makers import packaged
from tests.running import free_port
from worker.sweep import keep_ledger

__all__ = ["listen", "make_gateway"]  # fixtures

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]
Make = Callable[..., Gateway]
FAST = Pace(rate=1e9, backlog=1000)


def study(count: int, date: str) -> tuple[str, list[bytes]]:
    """A study of two series."""
    uid, files = generate_uid(), []
    for number in range(count):
        ds = pydicom.dcmread(io.BytesIO(packaged("CT_small.dcm")))
        ds.StudyInstanceUID, ds.StudyDate, ds.InstanceNumber = uid, date, number
        ds.SeriesInstanceUID, ds.SOPInstanceUID = f"{uid[:50]}.{number % 2}", generate_uid()
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        out = io.BytesIO()
        ds.save_as(out)
        files.append(out.getvalue())
    return str(uid), files


class Archive:
    """A running dcmqrscp that may send to our listener."""

    def __init__(self, folder: Path, ours: int) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "store").mkdir(parents=True)
        (folder / "dcmqrscp.cfg").write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            f"HostTable BEGIN\nours = (PALIMPSEST, 127.0.0.1, {ours})\nHostTable END\n"
            "VendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\nQRSCP {folder / 'store'} RW (500, 1024mb) ANY\nAETable END\n"
        )

    def run(self) -> Iterator[None]:
        command = [find_dcmtk("dcmqrscp"), "-c", str(self.folder / "dcmqrscp.cfg")]
        yield from run_peer(command, self.folder / "log", self.port)

    def fill(self, files: list[bytes]) -> None:
        for number, data in enumerate(files):
            (self.folder / f"{number}.dcm").write_bytes(data)
        names = [str(self.folder / f"{number}.dcm") for number in range(len(files))]
        command = [find_dcmtk("storescu"), "-aec", "QRSCP", "127.0.0.1", str(self.port), *names]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    made = Archive(tmp_path / "pacs", free_port())
    for _ in made.run():
        yield made


def destinations(archive: Archive) -> tuple[Destination, ...]:
    return (Destination(name="pacs", port=archive.port, ae_title="QRSCP", forward=False),)


@pytest.mark.peers
def test_what_the_pacs_has_more_makes_a_study_incomplete(make_gateway: Make, archive: Archive) -> None:
    gateway = make_gateway(destinations=destinations(archive), study_quiet_seconds=0.001)
    uid, files = study(4, "20200105")
    archive.fill(files)
    for data in files[:3]:
        store(gateway, data)
    missing = str(pydicom.dcmread(io.BytesIO(files[3])).SOPInstanceUID)
    with pacs_of(gateway.settings, "pacs") as pacs:
        assert pacs.studies("20200105") == pacs.studies("20200101-") == [uid]
        assert pacs.studies("20200106") == []
        found = reconcile(gateway, pacs, uid)
        assert (found.theirs, found.here, found.missing, found.extra) == (4, 3, (missing,), ())
        keep_ledger(gateway)
        assert gateway.index.study_list(1) == [(uid, "incomplete")]  # whatever the timer says
        store(gateway, files[3])
        keep_ledger(gateway)
        assert gateway.index.study_list(1) == [(uid, "complete")]
        assert reconcile(gateway, pacs, uid).equal


@pytest.mark.peers
def test_an_archive_is_taken_over_and_a_stopped_import_is_resumed(
    make_gateway: Make, listen: Any, tmp_path: Path
) -> None:
    gateway = make_gateway()
    archive = Archive(tmp_path / "pacs", listen(gateway))
    for _ in archive.run():
        gateway.settings.__dict__["destinations"] = destinations(archive)
        studies = dict(study(3, f"2021020{day}") for day in (1, 2, 3))
        archive.fill([data for files in studies.values() for data in files])
        stop = threading.Event()
        waits: list[float] = []
        with pacs_of(gateway.settings, "pacs") as pacs:
            uids = pacs.studies("20210201-20210203")
            assert set(uids) == set(studies)
            running = import_studies(gateway, pacs, uids, Pace(rate=0.005, backlog=1000), stop, wait=waits.append)
            first = next(running)
            assert (first.equal, first.here, first.moved) == (True, 3, Moved(3, 0))
            stop.set()
            assert list(running) == []
            assert 300 < waits[0] < 600  # what is left of the ten minutes that three instances take at that rate
            stop.clear()
            rest = list(import_studies(gateway, pacs, uids, FAST, stop))
            assert [(each.equal, each.moved is None) for each in rest] == [(True, True), (True, False), (True, False)]
        for uid, files in studies.items():
            assert gateway.index.study_instances(uid) == {
                str(pydicom.dcmread(io.BytesIO(data)).SOPInstanceUID) for data in files
            }
            (told,) = gateway.index.study_facts([uid])[uid].evidence
            assert (told.kind, told.source, told.expected, told.missing) == ("c-find", "pacs", 3, 0)


@pytest.mark.peers
def test_the_commands(make_gateway: Make, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = make_gateway()
    home = str(gateway.settings.home)
    uid, files = study(2, "20220101")
    archive.fill(files)
    store(gateway, files[0])
    keep_ledger(gateway)
    shown = [each.model_dump(mode="json", exclude_defaults=True) for each in destinations(archive)]
    monkeypatch.setenv("PALIMPSEST_DESTINATIONS", json.dumps(shown))
    run = CliRunner().invoke
    found = run(app, ["reconcile", "pacs", "--study", uid, "--json", "--home", home])
    assert found.exit_code == 1, found.output
    assert [len(each["missing"]) for each in json.loads(found.output)] == [1]
    found = run(app, ["reconcile", "pacs", "--date", "20220101", "--home", home])
    assert (found.exit_code, "1 instances missing here" in found.output) == (1, True)
    found = run(app, ["studies", "--json", "--home", home])
    (one,) = json.loads(found.output)
    assert (one["study_uid"], one["state"]) == (uid, "incomplete")
    assert uid[:20] in run(app, ["studies", "--home", home]).output
    refused = run(app, ["import", "pacs", "--study", uid, "--home", home])  # nobody listens at our port
    assert refused.exit_code == 1
    assert run(app, ["reconcile", "pacs", "--home", home]).exit_code == 2
    assert run(app, ["reconcile", "pacs", "--date", "May", "--home", home]).exit_code == 2


def test_a_pacs_that_is_unknown_or_away_is_said_so(make_gateway: Make, tmp_path: Path) -> None:
    away = Destination(name="away", port=free_port(), ae_title="NOBODY")
    folder = Destination(name="folder", kind="filesystem", path=str(tmp_path / "x"))
    gateway = make_gateway(destinations=(away, folder))
    with pytest.raises(NotFound, match="there are: away, folder"):
        pacs_of(gateway.settings, "other")
    with pytest.raises(NotFound, match="no DICOM node"):
        pacs_of(gateway.settings, "folder")
    with pacs_of(gateway.settings, "away") as pacs, pytest.raises(Unavailable, match="NOBODY at 127.0.0.1"):
        pacs.studies("20200101")
