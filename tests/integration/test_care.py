"""The archive is looked after: scrubbed, mended, and what was coded in a hurry coded anew."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import sqlalchemy as sa

from gateway.blobs import file_digest
from gateway.bootstrap import Gateway, build
from gateway.errors import LeaseLost, PolicyRefused
from gateway.index import ENCODE_TASK, RECODE_TASK, InstanceRow
from gateway.index_schema import forward, instance, proof
from gateway.instance import ForwardState, State
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, Settings
from tests.fakes import NoStego, take_in
from tests.object_makers import image, noisy, packaged
from tests.proving import InProcess
from tests.unit.test_worker_grouping import slice_file
from worker import recode as recoding
from worker.backlog import in_a_hurry, recode_when_idle
from worker.candidate import QUICK_CODERS
from worker.delivery import forward_instance
from worker.grouping import process_series
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.rebuild import rebuild
from worker.recode import recode, recode_failed
from worker.retrieve import original_bytes
from worker.scrub import due, scrub
from worker.shred import find_patient, shred
from worker.sweep import release_spool
from worker.verify import VerifyReport

LIMIT = 600.0


def opened(home: Path, **settings: Any) -> Gateway:
    nas = home.parent / "nas"
    nas.mkdir(exist_ok=True)
    places = (Destination(name="nas", kind="filesystem", path=str(nas)),)
    values = {"watermark_bytes": 0, "codec_profile": "fast", "backlog_limit_seconds": LIMIT, **settings}
    return build(Settings(home=home, destinations=places, **values), queue=MemoryQueue())


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    gateway = opened(tmp_path / "home")
    yield gateway
    gateway.close()


def picture(number: int, **changes: object) -> bytes:
    return image([noisy(64, 64, noise=4, seed=number)], stored=12, SOPInstanceUID=f"1.2.7.{number}", **changes)


def waits_since(gw: Gateway, instance_id: int, seconds: float) -> None:
    long_ago = gw.index.now() - seconds
    with gw.index.write() as conn:
        values = {"received_at": long_ago, "due_at": long_ago}
        conn.execute(sa.update(instance).where(instance.c.id == instance_id).values(**values))


def archived(gw: Gateway, data: bytes, *, forward: bool = True) -> InstanceRow:
    row = take_in(gw, data).row
    finish(gw, row.id, forward=forward)
    return gw.index.get(row.id)


def finish(gw: Gateway, instance_id: int, *, forward: bool = True) -> None:
    process_instance(gw, InProcess(gw.keys), instance_id, "test")  # type: ignore[arg-type]
    index_instance(gw, instance_id)
    for each in gw.index.forwards(instance_id, ForwardState.WAITING) if forward else ():
        forward_instance(gw, each.id, "test", NoStego())


def damage(gw: Gateway, row: InstanceRow) -> None:
    path = gw.settings.archive_dir / str(row.archive_key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_backlog_past_its_limit_is_coded_quickly_and_anew_when_nothing_waits(gw: Gateway) -> None:
    first, waiting = take_in(gw, picture(1)).row, take_in(gw, picture(2)).row
    assert not in_a_hurry(gw, first)
    waits_since(gw, waiting.id, 2 * LIMIT)
    assert gw.index.backlog_age() > LIMIT
    finish(gw, waiting.id)
    quick = gw.index.get(waiting.id)
    assert quick.coder in QUICK_CODERS and quick.carrier == "beside" and quick.recode_at is not None
    assert gw.index.care_report().to_recode == 1
    assert recode_when_idle(gw) == 0  # the other one is not archived yet
    finish(gw, first.id)
    assert gw.index.get(first.id).recode_at is None
    queue = gw.queue
    assert isinstance(queue, MemoryQueue)
    while (message := queue.pop("encode")) is not None:
        assert message[0] == ENCODE_TASK
    assert recode_when_idle(gw) == 1 and queue.pop("encode") == (RECODE_TASK, (waiting.id,))
    assert release_spool(gw) == 2
    assert recode(gw, InProcess(gw.keys), waiting.id, "test") == "recoded"
    new = gw.index.get(waiting.id)
    assert new.recode_at is None and new.lease_owner is None and new.archive_key != quick.archive_key
    assert int(new.archived_size or 0) < int(quick.archived_size or 0)
    assert original_bytes(gw, new) == picture(2)
    [older] = gw.index.superseded_of(new.id)
    assert (older.key, older.digest) == (quick.archive_key, quick.archive_digest)
    assert gw.archive.exists(older.key)  # an archive is written once: nothing is deleted
    assert recode(gw, InProcess(gw.keys), waiting.id, "test") == "not-claimed"
    [sent] = gw.index.forwards(waiting.id)
    assert sent.state is ForwardState.SENT  # the destination keeps the envelope that it has
    gw.close()
    for path in gw.settings.home.glob("palimpsest.db*"):
        path.unlink()
    again = opened(gw.settings.home)
    assert rebuild(again).ok
    found = again.index.by_digest(new.digest)
    assert found is not None and found.archive_key == new.archive_key
    assert [each.key for each in again.index.superseded_of(found.id)] == [quick.archive_key]
    again.close()


def test_recoding_never_undoes_a_shredding_nor_takes_a_larger_object(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = archived(gw, picture(3, PatientID="GOES"))
    gw.index.recode_want(row.id)
    monkeypatch.setattr(recoding, "_unfit", lambda *_: "not-smaller")
    assert recode(gw, InProcess(gw.keys), row.id, "test") == "kept"
    assert gw.index.get(row.id) == row
    monkeypatch.undo()
    gw.index.recode_want(row.id)
    put = gw.archive.put

    def shredded_meanwhile(key: str, data: bytes, digest: str) -> None:
        put(key, data, digest)
        shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")

    monkeypatch.setattr(gw.archive, "put", shredded_meanwhile)
    monkeypatch.setattr(recoding, "_unfit", lambda *_: "")
    with pytest.raises(LeaseLost) as lost:
        recode(gw, InProcess(gw.keys), row.id, "test")
    recode_failed(gw, row.id, "test", lost.value)
    after = gw.index.get(row.id)
    assert after.shredded_at is not None and after.archive_key == row.archive_key
    assert gw.index.recode_due(10) == []


def test_a_destination_gets_the_new_object_where_that_is_wanted(tmp_path: Path) -> None:
    gw = opened(tmp_path / "home", recode_forward="send")
    row = take_in(gw, picture(4)).row
    waits_since(gw, row.id, 2 * LIMIT)
    finish(gw, row.id)
    assert recode(gw, InProcess(gw.keys), row.id, "test") == "recoded"
    [again] = gw.index.forwards(row.id, ForwardState.WAITING)
    forward_instance(gw, again.id, "test", NoStego())
    assert (tmp_path / "nas" / str(gw.index.get(row.id).archive_key)).is_file()
    gw.close()


def test_damage_is_found_listed_and_mended_from_where_another_copy_is(gw: Gateway) -> None:
    whole, sent, passthrough = (archived(gw, data) for data in (picture(10), picture(11), packaged("rtplan.dcm")))
    alone = archived(gw, picture(13), forward=False)
    with gw.index.write() as conn:
        conn.execute(sa.delete(forward).where(forward.c.instance_id == alone.id))
    spooled = archived(gw, picture(12), forward=False)
    release_spool(gw)
    assert gw.index.get(spooled.id).state is State.ARCHIVED and gw.index.get(alone.id).state is State.RELEASED
    prover = InProcess(gw.keys)
    assert due(gw) == "sample"
    assert scrub(gw, prover, "sample", count=100).checked == 5  # type: ignore[arg-type]
    assert due(gw) == "whole"
    for row in (sent, spooled, alone):
        damage(gw, row)
    (gw.settings.archive_dir / str(passthrough.archive_key)).unlink()
    left = iter((True, False))
    first = scrub(gw, prover, "whole", paced=lambda _: next(left))  # type: ignore[arg-type]
    report = gw.index.care_report()
    assert first.checked == 2 and report.whole_at is None and report.whole_part == 0.4
    second = scrub(gw, prover, "whole")  # type: ignore[arg-type]
    assert second.checked == 3 and due(gw) is None

    class Starved(InProcess):
        def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
            return VerifyReport(False, "verifier-timeout")

    starved = scrub(gw, Starved(gw.keys), "drawn", count=100)  # type: ignore[arg-type]
    assert starved.undecided == 3 and gw.index.care_report().damaged == 2  # those whose digest is wrong
    damaged = {key for each in (first, second) for key, _ in each.damaged}
    assert damaged == {row.archive_key for row in (sent, spooled, passthrough, alone)}
    mended = {key: source for each in (first, second) for key, source in each.mended}
    assert mended == {sent.archive_key: "destination:nas", passthrough.archive_key: "destination:nas"}
    assert original_bytes(gw, gw.index.get(sent.id)) == picture(11)
    assert {each.archive_key for each in gw.index.damages()} == {spooled.archive_key, alone.archive_key}
    assert "archive-damaged" in {alert.kind for alert in gw.index.alerts()}
    assert gw.index.recode_due(10) == [spooled.id]  # coded anew from its source
    assert recode(gw, prover, spooled.id, "test") == "recoded"
    now = gw.index.get(spooled.id)
    assert gw.archive.get(str(now.archive_key), str(now.archive_digest))
    assert [each.archive_key for each in gw.index.damages()] == [alone.archive_key]
    assert gw.index.care_report().damaged == 1 and gw.index.care_report().mended == 3
    assert whole.archive_key not in damaged


def test_a_source_stays_until_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    rule = 'version = 1\n[[archive]]\nname = "slices"\nmodality = "MR"\ngroup = "series"\n'
    (home / "policy.toml").write_text(rule)
    gw = opened(home)
    prover = InProcess(gw.keys)
    slices = [slice_file(number, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4") for number in (1, 2, 3)]
    rows = [take_in(gw, data).row for data in slices]
    for row in rows:
        process_series(gw, prover, row.id, "test")
        index_instance(gw, row.id)
    compressed = archived(gw, packaged("MR_small_RLE.dcm"), forward=False)
    rows = [gw.index.get(row.id) for row in rows]
    assert [row.member for row in rows] == [0, 1, 2]
    damage(gw, rows[0])
    damage(gw, compressed)
    with gw.index.write() as conn:
        conn.execute(sa.delete(forward))  # nothing but the damage keeps the sources from now on
    assert len(scrub(gw, prover, "whole").damaged) == 2  # type: ignore[arg-type]
    assert release_spool(gw) == 0
    for row in rows[:2]:
        assert recode(gw, prover, row.id, "test") == "recoded"
    assert {each.archive_key for each in gw.index.damages()} == {rows[0].archive_key, compressed.archive_key}
    assert release_spool(gw) == 2 and gw.spool.exists(rows[2].digest)
    assert recode(gw, prover, rows[2].id, "test") == recode(gw, prover, compressed.id, "test") == "recoded"
    assert gw.index.damages() == [] and release_spool(gw) == 2
    assert [original_bytes(gw, gw.index.get(row.id)) for row in rows] == slices
    assert original_bytes(gw, gw.index.get(compressed.id))
    again = scrub(gw, prover, "whole")  # type: ignore[arg-type]
    assert again.ok and {source for _, source in again.mended} == {"newer-object"}  # superseded ones are no loss
    gw.close()


def test_bytes_that_are_right_and_do_not_open_are_not_called_mended(gw: Gateway) -> None:
    row, goes = archived(gw, picture(20)), archived(gw, picture(21, PatientID="GOES"))
    release_spool(gw)

    class Refusing(InProcess):
        def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
            if gw.index.get(goes.id).shredded_at is None:
                shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")  # while the page is looked at
            return VerifyReport(False, "seal-refused")

    found = scrub(gw, Refusing(gw.keys), "whole")  # type: ignore[arg-type]
    assert found.damaged == [(row.archive_key, "seal-refused")] and not found.mended and not found.ok
    assert scrub(gw, InProcess(gw.keys), "whole").ok  # type: ignore[arg-type]
    assert gw.index.damages() == []  # its key is back


def test_who_could_read_the_older_object_is_not_forgotten(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    row = archived(gw, picture(22, PatientID="GOES"))
    facts = json.dumps({**gw.index.facts(row.id), "shared_with": ["recipient:lab"]})
    with gw.index.write() as conn:
        conn.execute(sa.update(proof).where(proof.c.instance_id == row.id).values(facts=facts))
    gw.index.recode_want(row.id)
    monkeypatch.setattr(recoding, "_unfit", lambda *_: "")
    assert recode(gw, InProcess(gw.keys), row.id, "test") == "recoded"
    with pytest.raises(PolicyRefused, match="shared"):
        shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")


def test_a_sector_that_cannot_be_read_is_damage_of_one_object(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [archived(gw, picture(30)), archived(gw, picture(31))]
    release_spool(gw)
    bad = gw.settings.archive_dir / str(rows[0].archive_key)
    inode, reads, digests = bad.stat().st_ino, Path.read_bytes, file_digest

    def read(path: Path) -> bytes:
        if path == bad and path.stat().st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return reads(path)

    def digest(file: BinaryIO, start: int = 0) -> str:
        if os.fstat(file.fileno()).st_ino == inode:
            raise OSError(errno.EIO, "Input/output error")
        return digests(file, start)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("gateway.archive.file_digest", digest)
    found = scrub(gw, InProcess(gw.keys), "whole")  # type: ignore[arg-type]
    assert found.checked == 2 and found.damaged == [(rows[0].archive_key, "unreadable")]
    assert found.mended == [(rows[0].archive_key, "destination:nas")]
    assert bad.with_name(f"{bad.name}.damaged-unreadab").stat().st_ino == inode
    assert [original_bytes(gw, row) for row in rows] == [picture(30), picture(31)]
