"""Forwarding: what peers answer, what is written down, and that one destination's trouble stays its own."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, RawDataStorage  # type: ignore[attr-defined]
from typer.testing import CliRunner

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.index import FORWARD_TASK
from gateway.index_schema import forward
from gateway.instance import ForwardState
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, Settings
from palimpsest.cli import app
from tests.fakes import NoStego, part10
from tests.proving import InProcess
from worker.candidate import build_passthrough
from worker.delivery import destination_lock, forward_instance, record_forward_failure
from worker.forward import DicomSender
from worker.forward_folder import FolderSender
from worker.forward_status import classify_status
from worker.identity import Provenance
from worker.pipeline import process_instance
from worker.sender import Delivery
from worker.sweep import requeue_forwards


class Peer:
    """A C-STORE SCP that keeps raw data sets and answers `status`."""

    def __init__(self, sop_class: str, status: int = 0x0000) -> None:
        self.status = status
        self.kept: list[bytes] = []
        self.associations = 0
        ae = AE(ae_title="PEER")
        ae.add_supported_context(sop_class, "1.2.840.10008.1.2.1")
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ACCEPTED, self._accepted)]
        self._server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def _accepted(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int:
        self.kept.append(event.request.DataSet.getvalue())
        return self.status

    def destination(self, name: str = "peer") -> Destination:
        return Destination(name=name, kind="dicom", port=self.port, ae_title="PEER")

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer(RawDataStorage)
    yield made
    made.close()


def make_gateway(home: Path, *destinations: Destination, max_attempts: int = 12) -> Gateway:
    settings = Settings(
        home=home,
        watermark_bytes=0,
        destinations=destinations,
        forward_max_attempts=max_attempts,
        network_timeout_seconds=60.0,
    )
    return build(settings, queue=MemoryQueue())


def archive_one(gw: Gateway, name: str = "rtplan.dcm") -> int:
    incoming = gw.spool.incoming()
    copyfile(str(get_testdata_file(name, download=False)), incoming)
    instance_id = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id
    process_instance(gw, InProcess(gw.keys), instance_id, "test-1")  # type: ignore[arg-type]
    return instance_id


def envelope_of(gw: Gateway, instance_id: int) -> bytes:
    row = gw.index.get(instance_id)
    assert row.archive_key is not None and row.archive_digest is not None
    return gw.archive.get(row.archive_key, row.archive_digest)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, "done"), (0xB000, "done"), (0xB007, "done"), (0xB006, "permanent"), (0xA700, "retry"),
        (0xA7FF, "retry"), (0xA900, "permanent"), (0xC000, "permanent"), (0xCFFF, "permanent"), (0x0122, "permanent"),
        (0x0117, "permanent"), (0x0124, "retry"), (0x0110, "retry"), (0xFE00, "retry"), (None, "down"),
    ],
)  # fmt: skip
def test_every_status_has_its_class(status: int | None, outcome: str) -> None:
    assert classify_status(status).outcome == outcome


def test_the_envelope_arrives_as_it_is_in_the_archive(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path, peer.destination())
    instance_id = archive_one(gw)
    [row] = gw.index.forwards(instance_id)
    assert forward_instance(gw, row.id, "f-1", NoStego()) == 1
    [kept] = peer.kept
    assert envelope_of(gw, instance_id).endswith(kept)
    assert len(envelope_of(gw, instance_id)) - len(kept) < 512  # preamble and file meta only
    [done] = gw.index.forwards(instance_id)
    assert (done.state, done.proof, done.attempts) == (ForwardState.SENT, "stored", 1)
    assert forward_instance(gw, row.id, "f-1", NoStego()) == 0
    assert len(peer.kept) == 1
    gw.close()


def test_one_association_carries_everything_that_is_due(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path, peer.destination())
    for name in ("rtplan.dcm", "test-SR.dcm", "rtdose_1frame.dcm"):
        archive_one(gw, name)
    first = gw.index.forwards()[0]
    assert forward_instance(gw, first.id, "f-1", NoStego()) == 3
    assert (len(peer.kept), peer.associations) == (3, 1)
    gw.close()


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (0xA700, ForwardState.WAITING, "peer-out-of-resources"),
        (0xC000, ForwardState.DEAD, "peer-cannot-understand"),
        (0xB006, ForwardState.DEAD, "element-discarded"),
    ],
)
def test_a_refusal_is_retried_or_not_by_its_class(
    tmp_path: Path, peer: Peer, status: int, state: ForwardState, reason: str
) -> None:
    peer.status = status
    gw = make_gateway(tmp_path, peer.destination())
    instance_id = archive_one(gw)
    forward_instance(gw, gw.index.forwards(instance_id)[0].id, "f-1", NoStego())
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.reason, row.lease_owner) == (state, reason, None)
    assert [alert.kind for alert in gw.index.alerts()] == (["dead-letter"] if state == ForwardState.DEAD else [])
    peer.status = 0
    gw.index.forward_replay(row.id, "admin")
    assert forward_instance(gw, row.id, "f-1", NoStego()) == 1
    gw.close()


def test_a_peer_that_takes_no_raw_data_is_a_dead_letter_at_once(tmp_path: Path) -> None:
    peer = Peer(CTImageStorage)
    gw = make_gateway(tmp_path, peer.destination())
    instance_id = archive_one(gw)
    forward_instance(gw, gw.index.forwards(instance_id)[0].id, "f-1", NoStego())
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.reason) == (ForwardState.DEAD, "no-presentation-context")
    peer.close()
    gw.close()


def test_an_unreachable_peer_is_retried_with_growing_pauses_and_ends_as_a_dead_letter(
    tmp_path: Path, nobody_port: int
) -> None:
    nobody = Destination(name="nobody", port=nobody_port)
    gw = make_gateway(tmp_path, nobody, max_attempts=2)
    instance_id = archive_one(gw)
    [row] = gw.index.forwards(instance_id)
    forward_instance(gw, row.id, "f-1", NoStego())
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.reason, row.attempts) == (ForwardState.WAITING, "unreachable", 1)
    assert row.due_at is not None and row.due_at > row.created_at
    (gw.settings.run_dir / "forward-nobody.lock").unlink()  # the circuit closes again
    age(gw, row.id)
    forward_instance(gw, row.id, "f-1", NoStego())
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.attempts) == (ForwardState.DEAD, 2)
    gw.close()


def age(gw: Gateway, forward_id: int) -> None:
    """The pause is over."""
    with gw.index.write() as conn:
        conn.execute(sa.update(forward).where(forward.c.id == forward_id).values(due_at=0.0))


def test_an_open_circuit_tries_nothing_and_counts_nothing(
    tmp_path: Path, nobody_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.delivery.backoff_seconds", lambda *_, **__: 600.0)  # not over before the second try
    nobody = Destination(name="nobody", port=nobody_port)
    gw = make_gateway(tmp_path, nobody)
    archive_one(gw, "rtplan.dcm")
    archive_one(gw, "test-SR.dcm")
    first, second = sorted(gw.index.forwards(), key=lambda row: row.id)
    forward_instance(gw, first.id, "f-1", NoStego())
    forward_instance(gw, second.id, "f-1", NoStego())
    first, second = sorted(gw.index.forwards(), key=lambda row: row.id)
    assert (first.attempts, second.attempts) == (1, 0)
    assert second.due_at is not None and second.due_at > second.created_at
    assert second.state == ForwardState.WAITING
    gw.close()


def test_a_dead_destination_does_not_touch_its_neighbour(tmp_path: Path, peer: Peer, nobody_port: int) -> None:
    nobody = Destination(name="nobody", port=nobody_port)
    gw = make_gateway(tmp_path, nobody, peer.destination())
    instance_id = archive_one(gw)
    for row in gw.index.forwards(instance_id):
        forward_instance(gw, row.id, "f-1", NoStego())
    states = {row.destination: row.state for row in gw.index.forwards(instance_id)}
    assert states == {"nobody": ForwardState.WAITING, "peer": ForwardState.SENT}
    gw.close()


def test_while_one_process_is_at_a_destination_another_leaves_it_alone(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path, peer.destination())
    instance_id = archive_one(gw)
    [row] = gw.index.forwards(instance_id)
    with destination_lock(gw.settings.run_dir, "peer") as circuit:
        assert circuit is not None
        assert forward_instance(gw, row.id, "f-1", NoStego()) == 0
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.attempts, peer.kept) == (ForwardState.WAITING, 0, [])
    assert forward_instance(gw, row.id, "f-1", NoStego()) == 1
    gw.close()


def test_a_torn_circuit_file_counts_as_closed(tmp_path: Path) -> None:
    (tmp_path / "forward-x.lock").write_text('{"failures": 3, "open_un')
    with destination_lock(tmp_path, "x") as circuit:
        assert circuit is not None
        assert (circuit.state.failures, circuit.open_until) == (0, 0.0)


def test_a_destination_that_is_configured_no_more_is_a_dead_letter(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path, peer.destination())
    instance_id = archive_one(gw)
    gw.close()
    gw = make_gateway(tmp_path)
    [row] = gw.index.forwards(instance_id)
    forward_instance(gw, row.id, "f-1", NoStego())
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.reason) == (ForwardState.DEAD, "unknown-destination")
    gw.close()


def test_a_damaged_archive_object_is_never_sent(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path, peer.destination())
    instance_id = archive_one(gw)
    path = gw.settings.archive_dir / str(gw.index.get(instance_id).archive_key)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    archive_one(gw, "test-SR.dcm")
    [row] = gw.index.forwards(instance_id)
    assert forward_instance(gw, row.id, "f-1", NoStego()) == 1  # the one behind it does not wait
    [row] = gw.index.forwards(instance_id)
    assert (row.state, row.reason, len(peer.kept)) == (ForwardState.DEAD, "digest-mismatch", 1)
    gw.close()


def test_an_error_of_ours_gives_the_claimed_forward_back(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path, peer.destination())
    [row] = gw.index.forwards(archive_one(gw))
    assert gw.index.forward_claim(row.id, "f-1", 60.0) is not None
    record_forward_failure(gw, row.id, "f-2", "storage-error", permanent=False)  # another's claim is left alone
    assert gw.index.forward_get(row.id).lease_owner == "f-1"
    record_forward_failure(gw, row.id, "f-1", "storage-error", permanent=False)
    row = gw.index.forward_get(row.id)
    assert (row.state, row.reason, row.lease_owner) == (ForwardState.WAITING, "storage-error", None)
    gw.close()


# --- senders ---


@pytest.fixture
def folder(tmp_path: Path) -> FolderSender:
    return FolderSender(Destination(name="nas", kind="filesystem", path=str(tmp_path)))


def test_a_folder_keeps_the_envelope_once(folder: FolderSender, tmp_path: Path) -> None:
    assert folder.send("ab/1.2.dcm", b"envelope") == Delivery("done", "stored")
    assert folder.send("ab/1.2.dcm", b"envelope") == Delivery("done", "already-there")
    assert folder.send("ab/1.2.dcm", b"another") == Delivery("permanent", "other-bytes-there")
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["1.2.dcm"]
    assert sha256((tmp_path / "ab/1.2.dcm").read_bytes()).digest() == sha256(b"envelope").digest()


def test_a_folder_that_is_not_mounted_is_down_and_not_created(tmp_path: Path) -> None:
    sender = FolderSender(Destination(name="nas", kind="filesystem", path=str(tmp_path / "unmounted")))
    assert sender.send("ab/1.2.dcm", b"envelope").outcome == "down"
    assert not (tmp_path / "unmounted").exists()


def test_a_peer_that_hangs_up_between_two_objects_is_called_again(tmp_path: Path, peer: Peer) -> None:
    gw = make_gateway(tmp_path / "home", peer.destination())
    envelope = build_passthrough(b"anything", Provenance("t", "stow", "A", "s"), gw.keys, "test").envelope
    with DicomSender(peer.destination(), calling_ae="X", timeout=60.0, folder=tmp_path) as sender:
        assert sender.send("k", envelope).outcome == "done"
        for association in peer._server.active_associations:
            association.abort()
        outcomes = [sender.send("k", envelope).outcome for _ in range(2)]
    assert outcomes[-1] == "done"
    assert list(tmp_path.glob("sending-*")) == []
    gw.close()


def urgent(gw: Gateway, priority: int) -> int:
    data = part10()
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    row = accept_instance(gw, incoming, source="stow", calling_ae="TEST", priority=priority).row
    process_instance(gw, InProcess(gw.keys), row.id, "test-1")  # type: ignore[arg-type]
    return row.id


def test_stat_goes_first_also_while_a_backlog_is_sent_and_after_the_queue_lost_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nas = tmp_path / "nas"
    nas.mkdir()
    gw = make_gateway(tmp_path / "home", Destination(name="nas", kind="filesystem", path=str(nas)))
    routine = [urgent(gw, 5) for _ in range(3)]
    late = urgent(gw, 9)
    queue = gw.queue
    assert isinstance(queue, MemoryQueue)
    while queue.pop("forward"):  # the broker lost its memory
        pass
    with gw.index.write() as conn:
        conn.execute(sa.update(forward).values(queued_at=0.0))
    stat = urgent(gw, 0)
    with gw.index.write() as conn:
        conn.execute(sa.update(forward).values(queued_at=0.0))
    requeue_forwards(gw)
    [first] = gw.index.forwards(stat)
    assert queue.pop("forward") == (FORWARD_TASK, (first.id,))
    sent: list[str] = []
    came: list[int] = []
    send = FolderSender.send

    def noted(sender: FolderSender, name: str, data: bytes) -> Delivery:
        if name == gw.index.get(routine[0]).archive_key:
            came.append(urgent(gw, 0))
        sent.append(name)
        return send(sender, name, data)

    monkeypatch.setattr(FolderSender, "send", noted)
    monkeypatch.setattr("worker.delivery.BATCH", 1)
    assert forward_instance(gw, first.id, "f-1", NoStego()) == 6
    order = [gw.index.get(each).archive_key for each in (stat, routine[0], came[0], routine[1], routine[2], late)]
    assert [name for name in sent if name in order] == order  # beside the codec's weights
    gw.close()


def test_one_dead_letter_some_or_all_are_sent_again(tmp_path: Path, peer: Peer) -> None:
    peer.status = 0xC000
    gw = make_gateway(tmp_path, peer.destination(), peer.destination("other"))
    for name in ("rtplan.dcm", "test-SR.dcm", "rtdose_1frame.dcm"):
        archive_one(gw, name)
    for row in gw.index.forwards(state=ForwardState.WAITING):
        forward_instance(gw, row.id, "f-1", NoStego())
    dead = gw.index.dead_letters()
    assert len(dead) == 6 and len(gw.index.dead_letters("other", "peer-cannot-understand")) == 3
    peer.status = 0x0000
    gw.close()

    def replay(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["replay", "--home", str(tmp_path), *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    def waiting() -> int:
        return len(gw.index.forwards(state=ForwardState.WAITING))

    gw = make_gateway(tmp_path, peer.destination(), peer.destination("other"))
    replay(str(dead[0]))
    assert waiting() == 1
    replay("--destination", "other")
    assert waiting() == 1 + 3 - (gw.index.forward_get(dead[0]).destination == "other")
    replay("--all")
    assert waiting() == 6 and gw.index.dead_letters() == []
    for row in gw.index.forwards(state=ForwardState.WAITING):
        forward_instance(gw, row.id, "f-1", NoStego())
    assert {row.state for row in gw.index.forwards()} == {ForwardState.SENT}
    gw.close()
