"""Worker, broker, listener and sweep killed with SIGKILL in the middle of 100 instances: 0 lost, 0 wrong, 0 stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import BasicTextSRStorage, CTImageStorage  # type: ignore[attr-defined]

from gateway.audit_notary import check_trail
from gateway.instance import UNFINISHED, Form, ForwardState
from gateway.part10 import read_meta
from gateway.settings import Destination
from tests.running import Rig, alive
from tests.weightfiles import without_weights
from worker.retrieve import original_bytes

INSTANCES = 100
EVERY_SR = 10  # each tenth has no pixels and travels whole

pytestmark = [pytest.mark.anomaly, pytest.mark.integration]


def make_object(number: int, study: str, series: tuple[str, str]) -> Dataset:
    """A small CT slice, or a report, that is like no other."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    report = number % EVERY_SR == 0
    dataset.SOPClassUID = BasicTextSRStorage if report else CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series[report]
    dataset.PatientName, dataset.PatientID = "Kill^Nine", "K9"
    dataset.Modality = "SR" if report else "CT"
    dataset.InstanceNumber = number
    if not report:
        draw = np.random.default_rng(number)
        y, x = np.mgrid[:64, :64]
        image = 1000 + 8 * y + 5 * x + draw.integers(0, 32, (64, 64)) + number
        dataset.Rows = dataset.Columns = 64
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.PixelData = image.astype("<u2").tobytes()
    return dataset


def dataset_digest(data: bytes) -> str:
    return sha256(data[read_meta(data)[1] :]).hexdigest()


class Modality(threading.Thread):
    """A sender that, like a scanner, repeats every object until it heard Success."""

    def __init__(self, port: int, objects: list[Dataset]) -> None:
        super().__init__(name="modality", daemon=True)
        self._port = port
        self._objects = objects
        self.acknowledged: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        ae = AE(ae_title="CT_1")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10.0
        for sop_class in (CTImageStorage, BasicTextSRStorage):
            ae.add_requested_context(UID(sop_class), ExplicitVRLittleEndian)
        pending: Iterator[Dataset] = iter(self._objects)
        current = next(pending, None)
        while current is not None and not self.stopped.is_set():
            association = ae.associate("127.0.0.1", self._port, ae_title="PALIMPSEST")
            while association.is_established and current is not None:
                try:
                    status = association.send_c_store(current)
                except RuntimeError:  # the association went away under our hands
                    break
                if "Status" not in status or status.Status != 0x0000:
                    break
                self.acknowledged.append(str(current.SOPInstanceUID))
                current = next(pending, None)
            if association.is_established:
                association.release()
            time.sleep(0.1)


@pytest.mark.timeout(900)
def test_100_instances_survive_the_death_of_every_process(tmp_path: Path) -> None:
    nas = tmp_path / "nas"
    nas.mkdir()
    study, series = generate_uid(), (generate_uid(), generate_uid())
    objects = [make_object(number, study, series) for number in range(INSTANCES)]
    destination = Destination(name="nas", kind="filesystem", path=str(nas))
    with Rig(tmp_path / "home", lease_seconds=4.0, destinations=(destination,)) as rig:
        rig.start("broker")
        rig.wait("broker", rig.broker_answers)
        rig.start("listener", "encode", "forward", "sweep")
        rig.wait("listener", rig.listens)
        modality = Modality(rig.settings.dicom_port, objects)
        modality.start()
        killed = kill_in_the_middle(rig, modality)
        rig.wait("all sent", lambda: len(modality.acknowledged) == INSTANCES)
        rig.wait("all archived and forwarded", lambda: finished(rig) == INSTANCES)
        assert killed == ["encode", "broker", "listener", "sweep", "forward"]
        assert_nothing_lost_wrong_or_stuck(rig, objects, nas)


def kill_in_the_middle(rig: Rig, modality: Modality) -> list[str]:
    """SIGKILL each process at a moment when there is work before, behind and inside it."""
    acknowledged = lambda: len(modality.acknowledged)  # noqa: E731
    archived = lambda: archive_count(rig)  # noqa: E731
    plan: list[tuple[str, Callable[[], int], int]] = [
        ("encode", archived, 3),
        ("broker", archived, 12),
        ("listener", acknowledged, 40),
        ("sweep", archived, 20),
        ("forward", archived, 30),
    ]
    killed = []
    for name, count, threshold in plan:
        rig.wait(f"{name}: {threshold} done", lambda count=count, threshold=threshold: count() >= threshold)  # type: ignore[misc]
        rig.wait(f"{name} lives", lambda name=name: rig.children[name].alive)  # type: ignore[misc]
        assert archived() < INSTANCES
        offspring = psutil.Process(rig.pid(name)).children(recursive=True)
        rig.kill9(name)
        killed.append(name)
        rig.wait(f"what {name} started is gone", lambda pids=offspring: not any(map(alive, pids)))  # type: ignore[misc]
    return killed


def archive_count(rig: Rig) -> int:
    counts = rig.gw.index.counts().by_state
    return counts.get("ARCHIVED", 0) + counts.get("RELEASED", 0)


def finished(rig: Rig) -> int:
    counts = rig.gw.index.counts()
    return counts.by_state.get("RELEASED", 0) if counts.outbox == 0 else 0


def assert_nothing_lost_wrong_or_stuck(rig: Rig, objects: list[Dataset], nas: Path) -> None:
    gw = rig.gw
    counts = gw.index.counts()
    assert counts.total == INSTANCES, "an instance was lost, or made twice"
    assert not any(counts.by_state.get(state, 0) for state in UNFINISHED), "an instance is stuck"
    assert counts.conflicts == 0
    assert gw.index.alerts() == []
    for sent in objects:
        row = gw.index.by_sop(sent.SOPInstanceUID)
        assert row is not None
        expected = Form.PASSTHROUGH if sent.Modality == "SR" else Form.CODED
        assert (row.form, row.indexed_at is not None) == (expected, True), row.reason
        data = original_bytes(gw, row)  # the spool's copy is gone: this is the archive's
        assert sha256(data).hexdigest() == row.digest
        assert dataset_digest(data) == row.dataset_digest
        assert dcmread(BytesIO(data)) == sent
        [forward] = gw.index.forwards(row.id)
        assert forward.state == ForwardState.SENT
        assert row.archive_key is not None and row.archive_digest is not None
        assert sha256((nas / row.archive_key).read_bytes()).hexdigest() == row.archive_digest
    assert len(without_weights(nas.rglob("*.dcm"))) == INSTANCES
    assert list(gw.spool) == []
    assert check_trail(gw).ok
