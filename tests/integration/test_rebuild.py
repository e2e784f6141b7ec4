"""The database is deleted, and everything comes back from the archive, the key ring and the spool."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pydicom
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from typer.testing import CliRunner

from gateway.archive_s3 import S3Archive
from gateway.archive_s3 import _errors as s3_errors
from gateway.bootstrap import Gateway, build
from gateway.errors import Gone, ObjectUnavailable, PolicyRefused, Unavailable
from gateway.index_rows import InstanceRow
from gateway.instance import Form, ForwardState, State
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, Settings
from palimpsest.cli import app
from tests.fakes import take_in
from tests.object_makers import image, noisy, packaged
from tests.unit.test_worker_grouping import slice_file
from tests.unit.test_worker_runtime_represent import Prover
from worker import recode as recoding
from worker.delivery import forward_instance
from worker.grouping import process_series
from worker.indexing import index_instance
from worker.pipeline import NATIVE_SYNTAXES
from worker.rebuild import rebuild
from worker.restore import restore
from worker.retrieve import original_bytes, retrieve
from worker.scrub import scrub
from worker.shred import find_patient, shred
from worker.sweep import adopt_orphans, release_spool, sweep_once
from worker.verify import check_group

POLICY = """
version = 1
[[archive]]
name = "slices"
modality = "MR"
group = "series"
[[delivery]]
name = "view"
destination = "viewer"
modality = "CT"
representation = "self-contained"
unsuitable = "envelope"
"""
SERVED = (
    "sop_uid", "sop_class", "study_uid", "series_uid", "transfer_syntax", "digest", "dataset_digest", "current",
    "conflict", "form", "archive_key", "archive_digest", "member", "patient_key", "state", "envelope_uid", "coder",
    "carrier", "modality", "pixel_digest", "raw_pixel_bytes", "calling_ae", "source",
)  # fmt: skip


class GroupProver(Prover):
    def check_group(self, envelope: bytes) -> list[Any]:
        return check_group(envelope, self._gw.keys)


def opened(home: Path, **more: Any) -> Gateway:
    places = tuple(
        Destination(name=name, kind="filesystem", path=str(home.parent / name)) for name in ("viewer", "nas")
    )
    return build(
        Settings(home=home, watermark_bytes=0, codec_profile="fast", destinations=places, **more), queue=MemoryQueue()
    )


def archived(gw: Gateway, *files: bytes) -> list[int]:
    ids = [take_in(gw, data, calling_ae="CT1").row.id for data in files]
    prover = GroupProver(gw)
    for each in ids:
        process_series(gw, prover, each, "test")  # type: ignore[arg-type]
        index_instance(gw, each)
        for row in gw.index.forwards(each, ForwardState.WAITING):
            forward_instance(gw, row.id, "test", prover)
    return ids


def changed(data: bytes, **values: object) -> bytes:
    found = pydicom.dcmread(io.BytesIO(data))
    for name, value in values.items():
        setattr(found, name, value)
    out = io.BytesIO()
    found.save_as(out)
    return out.getvalue()


def delete_database(home: Path) -> None:
    for path in home.glob("palimpsest.db*"):
        path.unlink()


def seen(row: InstanceRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in SERVED}


def rows_of(gw: Gateway) -> dict[str, InstanceRow]:
    return {row.digest: row for row in gw.index.recent(1000)}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    for name in ("home", "viewer", "nas"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "policy.toml").write_text(POLICY)
    yield tmp_path / "home"


def test_everything_comes_back_from_archive_keys_and_spool(home: Path) -> None:
    gw = opened(home)
    picture = image([noisy(256, 256)], stored=12, SOPInstanceUID="1.2.3.1", PatientID="STAYS")
    files = [
        picture,
        changed(picture, StudyDescription="corrected"),  # the same pixels: a version
        image([noisy(64, 64, seed=2)], stored=12, SOPInstanceUID="1.2.3.2"),
        image([noisy(64, 64, seed=3)], stored=12, SOPInstanceUID="1.2.3.2"),  # other pixels: a conflict
        packaged("rtplan.dcm"),
        packaged("JPEG2000.dcm"),  # lossy: sealed whole
        packaged("MR_small_RLE.dcm"),  # compressed: given back in its native form
        packaged("reportsi.dcm"),
    ]
    slices = [slice_file(number, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4") for number in (1, 2, 3)]
    archived(gw, *files, *slices)
    gone = changed(packaged("CT_small.dcm"), PatientID="GOES", SOPInstanceUID="1.2.9.1", StudyInstanceUID="1.2.9")
    archived(gw, gone)
    shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")
    sweep_once(gw)
    assert release_spool(gw) == 0
    kept = packaged("MR_small.dcm")
    archived(gw, kept)  # its source is in the spool still
    waiting = packaged("rtdose_1frame.dcm")
    take_in(gw, waiting)  # received, and not archived
    before, searched = rows_of(gw), gw.index.search("instance", {}, limit=100)
    exports = gw.index.exports()
    assert {row.state for row in before.values()} == {State.RELEASED, State.ARCHIVED, State.RECEIVED}
    assert [row.member for row in before.values() if row.member is not None]
    gw.close()

    delete_database(home)
    gw = opened(home)
    report = rebuild(gw)
    assert report.ok, report.unreadable
    after = rows_of(gw)
    missing = sha256(gone).hexdigest()
    assert set(after) - {missing} >= {sha256(data).hexdigest() for data in (*files, *slices, kept, waiting)}
    for digest, row in before.items():
        if row.shredded_at is None and row.state is not State.RECEIVED:
            assert seen(after[digest]) == seen(row) | {"pixel_digest": after[digest].pixel_digest}
            assert after[digest].pixel_digest in (row.pixel_digest, None)
            native = restore(gw.archive.get(str(row.archive_key), str(row.archive_digest)), gw.keys, member=row.member)
            assert original_bytes(gw, after[digest]) in (native.data, kept)
    for data in (*files, *slices, kept):
        row = after[sha256(data).hexdigest()]
        if row.form is Form.PASSTHROUGH or row.transfer_syntax in NATIVE_SYNTAXES:
            assert original_bytes(gw, row) == data  # byte for byte
    current = gw.index.by_sop("1.2.3.1")
    assert current is not None and original_bytes(gw, current) == files[1]
    rows = gw.index.search("instance", {}, limit=100)
    uids = lambda found: sorted(str(each["SOPInstanceUID"]) for each in found)  # noqa: E731
    assert uids(rows) == uids(searched)
    assert gw.index.search("study", {"PatientName": "*"}) != []
    [shredded] = [row for row in after.values() if row.shredded_at is not None]
    assert shredded.sop_uid == next(row.sop_uid for row in before.values() if row.shredded_at is not None)
    with pytest.raises(Gone):
        original_bytes(gw, shredded)
    assert retrieve(gw, shredded.id, "rendered:jpeg:1")["size"] > 0
    forgotten = next(row.id for row in before.values() if row.shredded_at is not None)  # another number than now
    assert {(each.object_id, each.record_key, each.destination) for each in gw.index.exports()} == {
        (each.object_id, each.record_key, each.destination)
        for each in exports
        if each.record_key and each.instance_id != forgotten
    }
    states = {row.instance_id: set() for row in gw.index.forwards()}
    for row in gw.index.forwards():
        states[row.instance_id].add(row.state)
    assert states[after[sha256(kept).hexdigest()].id] == {ForwardState.WAITING}  # sent again rather than never
    assert states[after[sha256(picture).hexdigest()].id] == {ForwardState.SENT}
    assert after[sha256(waiting).hexdigest()].state is State.RECEIVED
    assert report.counts["adopted"] == 1
    again = rebuild(gw, add=True)
    assert again.ok and not again.counts["added"] and not again.counts["objects"] - again.counts["weights"]
    assert take_in(gw, picture).outcome == "duplicate"
    gw.close()


def test_a_rebuild_that_was_killed_goes_on_and_a_full_index_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gw = opened(home)
    archived(gw, *(image([noisy(48, 48, seed=n)], stored=12, SOPInstanceUID=f"1.2.5.{n}") for n in range(4)))
    with pytest.raises(PolicyRefused, match="not empty"):
        rebuild(gw)
    gw.close()
    delete_database(home)
    gw = opened(home)

    def killed(report: Any) -> None:
        if report.counts["added"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(gw, progress=killed)
    gw.close()
    done = CliRunner().invoke(app, ["rebuild", "--home", str(home)])
    assert done.exit_code == 0, done.output
    assert "added 2" in done.output and "known 2" in done.output
    gw = opened(home)
    assert [alert.kind for alert in gw.index.alerts()] == ["index-rebuilt"]  # corrections are gone: somebody must know
    assert len(rows_of(gw)) == 4 and {row.form for row in rows_of(gw).values()} == {Form.CODED}
    gw.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_the_newest_object_of_an_instance_is_taken_in_whatever_order_the_archive_lists_them(
    coded_thrice: tuple[Path, list[str], tuple[bytes, ...]], tmp_path: Path, order: tuple[int, ...]
) -> None:
    made, keys, pseudonyms = coded_thrice
    shutil.copytree(made, tmp_path / "copy")
    delete_database(tmp_path / "copy")
    gw = opened(tmp_path / "copy")
    assert gw.keys.pseudonym_keys() == pseudonyms
    gw.archive.keys = lambda: iter([keys[at] for at in order])  # type: ignore[method-assign]
    report = rebuild(gw)
    assert report.ok and report.counts["added"] == 1
    [row] = gw.index.every_instance()
    assert row.archive_key == keys[2] and row.recode_at is None
    assert {each.key for each in gw.index.superseded_of(row.id)} == set(keys[:2])
    gw.close()


@pytest.fixture(scope="module")
def coded_thrice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], tuple[bytes, ...]]:
    """A gateway whose one instance was coded anew twice, the second time under another pseudonym key; the objects'
    keys, the oldest first, and the pseudonym keys.
    """
    home = tmp_path_factory.mktemp("coded") / "home"
    home.mkdir()
    gw = opened(home)
    [number] = archived(gw, image([noisy(48, 48)], stored=12, SOPInstanceUID="1.2.8.1"))
    keys = [str(gw.index.get(number).archive_key)]
    for again in range(2):
        if again:
            gw.keys.rotate("pseudo")
        gw.index.recode_want(number)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recoding, "_unfit", lambda *_: "")
            assert recoding.recode(gw, Prover(gw), number, "test") == "recoded"  # type: ignore[arg-type]
        keys.append(str(gw.index.get(number).archive_key))
    release_spool(gw)
    found = gw.keys.pseudonym_keys()
    gw.close()
    return home, keys, found


def test_damage_is_named_and_the_rest_comes_back(home: Path) -> None:
    gw = opened(home)
    ids = archived(gw, *(image([noisy(48, 48, seed=n)], stored=12, SOPInstanceUID=f"1.2.6.{n}") for n in range(3)))
    damaged = str(gw.index.get(ids[1]).archive_key)
    gw.close()
    path = home / "archive" / damaged
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    delete_database(home)
    shutil.rmtree(home / "spool")
    done = CliRunner().invoke(app, ["rebuild", "--home", str(home)])
    assert done.exit_code == 1 and damaged in done.output
    gw = opened(home)
    assert len(rows_of(gw)) == 2
    assert [each.archive_key for each in gw.index.damages()] == [damaged]
    assert {alert.kind for alert in gw.index.alerts()} == {"archive-damaged", "index-rebuilt"}
    gw.close()


def test_without_a_key_ring_nothing_is_begun(home: Path) -> None:
    gw = opened(home)
    archived(gw, packaged("rtplan.dcm"))
    gw.close()
    delete_database(home)
    shutil.rmtree(home / "keys")
    done = CliRunner().invoke(app, ["rebuild", "--home", str(home)])
    assert done.exit_code == 1 and "key ring" in done.output
    assert not (home / "keys").exists()


def test_a_bucket_is_as_good_as_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    place = {"bucket": "images", "prefix": "archive/", "region": "eu-central-1"}
    with mock_aws():
        client = boto3.client("s3", region_name="eu-central-1")
        client.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        gw = opened(home, archive_s3=place)
        files = [packaged("rtplan.dcm"), packaged("test-SR.dcm")]
        archived(gw, *files)
        release_spool(gw)
        gw.close()
        delete_database(home)
        gw = opened(home, archive_s3=place)
        report = rebuild(gw)
        assert report.ok and report.counts["added"] == 2
        assert not list((home / "archive").rglob("*.dcm"))
        for data in files:
            assert original_bytes(gw, rows_of(gw)[sha256(data).hexdigest()]) == data
        gw.close()


def test_objects_that_a_bucket_does_not_give_out_are_passed_over_and_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    place = {"bucket": "images", "prefix": "archive/", "region": "eu-central-1"}
    pieces, asked, ill = S3Archive._pieces, Counter[str](), dict[str, int]()

    def sometimes(self: S3Archive, key: str) -> Iterator[bytes]:
        asked[key] += 1
        if asked[key] <= ill.get(key, 0):
            with s3_errors():
                answer = {"Error": {"Code": "InternalError"}, "ResponseMetadata": {"HTTPStatusCode": 500}}
                raise ClientError(answer, "GetObject")  # type: ignore[arg-type]
        yield from pieces(self, key)

    def command(*arguments: str) -> tuple[int, str]:
        asked.clear()
        done = CliRunner().invoke(app, [*arguments, "--home", str(home)])
        return done.exit_code, done.output

    with mock_aws():
        client = boto3.client("s3", region_name="eu-central-1")
        client.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        gw = opened(home, archive_s3=place)
        ids = archived(gw, packaged("rtplan.dcm"), packaged("test-SR.dcm"), packaged("reportsi.dcm"))
        release_spool(gw)
        never, once, well = sorted(str(gw.index.get(each).archive_key) for each in ids)
        gw.close()
        delete_database(home)
        monkeypatch.setattr(S3Archive, "_pieces", sometimes)
        monkeypatch.setenv("PALIMPSEST_ARCHIVE_S3", json.dumps(place))
        ill.update({never: 99, once: 1})
        code, said = command("rebuild")
        assert code == 1 and f"{never}: archive-unavailable" in said and once not in said and "added 2" in said
        assert asked[never] == 2  # again at the end, once
        ill.clear()
        code, said = command("rebuild", "--add")
        assert code == 0 and "added 1" in said
        ill.update({never: 99, once: 1})
        code, said = command("scrub", "--all")
        assert code == 1 and f"{never}: archive-unavailable" in said and once not in said
        assert "2 objects, 0 damaged" in said and asked[never] == 2 and asked[well] == 1
        gw = opened(home, archive_s3=place)
        assert gw.index.damages(open_only=False) == [] and gw.index.care_report().whole_at is not None
        assert {alert.kind for alert in gw.index.alerts()} == {"index-rebuilt", "archive-unread"}
        monkeypatch.setattr(S3Archive, "ping", lambda _: (_ for _ in ()).throw(Unavailable("archive-unavailable")))
        asked.clear()
        with pytest.raises(Unavailable) as away:  # the bucket itself: nothing can be said of any object
            scrub(gw, Prover(gw), "whole")  # type: ignore[arg-type]
        assert not isinstance(away.value, ObjectUnavailable) and asked.total() == 1
        monkeypatch.undo()
        monkeypatch.setattr(S3Archive, "_pieces", sometimes)
        monkeypatch.setattr("worker.scrub.MAX_IN_A_ROW", 1)
        ill.update(dict.fromkeys((never, once, well), 99))
        asked.clear()
        with pytest.raises(ObjectUnavailable):
            scrub(gw, Prover(gw), "whole")  # type: ignore[arg-type]
        unread = {alert.subject for alert in gw.index.alerts() if alert.kind == "archive-unread"}
        assert unread == {"archive", never[-64:]}
        ill.clear()
        assert scrub(gw, Prover(gw), "whole").ok  # type: ignore[arg-type]
        assert {alert.kind for alert in gw.index.alerts()} == {"index-rebuilt"}  # all were read again
        monkeypatch.undo()
        gw.close()


@pytest.mark.parametrize("by_rebuild", [False, True])
def test_an_orphan_takes_the_place_of_a_lost_file_of_the_same_data_set_and_stops_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch, by_rebuild: bool
) -> None:
    gw = opened(home)
    data = packaged("CT_small.dcm")
    other = pydicom.dcmread(io.BytesIO(data))
    other.file_meta.ImplementationVersionName = "ANOTHER"
    out = io.BytesIO()
    other.save_as(out)
    files = (out.getvalue(), packaged("MR_small.dcm"), b"no DICOM at all")
    lost = take_in(gw, data).row
    gw.spool.remove(lost.digest)
    for each in files:
        gw.spool.put(each)
    monkeypatch.setattr("worker.sweep.ORPHAN_SECONDS", 0.0)
    if by_rebuild:
        assert rebuild(gw, add=True).counts["adopted"] == 2
    else:
        assert adopt_orphans(gw) == 2
    row = gw.index.get(lost.id)
    assert row.digest == sha256(files[0]).hexdigest() and row.state is State.RECEIVED
    process_series(gw, GroupProver(gw), row.id, "test")  # type: ignore[arg-type]
    assert original_bytes(gw, gw.index.get(row.id)) == files[0]
    assert gw.index.by_digest(sha256(files[1]).hexdigest()) is not None
    assert [alert.kind for alert in gw.index.alerts()] == ["orphan-unreadable"]
    gw.close()
