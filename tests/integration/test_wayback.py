"""Backup and restore of database and key ring, and the export of everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard
from typer.testing import CliRunner

from gateway.audit import tail, verify
from gateway.bootstrap import Gateway
from gateway.databackup import dump_database, load_database
from gateway.errors import Gone, IntegrityError, PolicyRefused
from gateway.index import Index
from gateway.index_rows import InstanceRow
from gateway.index_schema import HEAD, metadata
from gateway.instance import State
from palimpsest import export as exporting
from palimpsest.cli import app
from palimpsest.export import export_all
from tests.fakes import take_in
from tests.integration.test_care import archived, finish, opened, picture
from tests.object_makers import packaged
from tests.running import free_port
from worker import reshred
from worker.indexing import index_instance
from worker.reshred import shred_again
from worker.retrieve import original_bytes
from worker.shred import find_patient, shred
from worker.sweep import release_spool

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, done.output


def lose(home: Path, *, keys: bool) -> None:
    for path in home.glob("palimpsest.db*"):
        path.unlink()
    if keys:
        shutil.rmtree(home / "keys")


def assert_same(gw: Gateway, *files: bytes) -> None:
    for data in files:
        row = gw.index.by_digest(sha256(data).hexdigest())
        assert row is not None and original_bytes(gw, row) == data


@pytest.mark.parametrize("lost_keys", [False, True])
def test_a_restore_brings_all_back_and_no_shredded_name(home: Path, passfile: Path, lost_keys: bool) -> None:
    gw = opened(home)
    before = [picture(1, PatientID="STAYS"), packaged("rtplan.dcm")]
    goes = picture(2, PatientID="GOES", PatientName="Gone^Soon", StudyInstanceUID="1.2.2")
    for data in (*before, goes):
        archived(gw, data)
    correction = gw.index.correction_add("admin", {"AccessionNumber": "7"}, study_uid="1.2.2")
    code, said = run("backup", home.parent / "copy", "--passphrase-file", passfile, "--home", home)
    assert code == 0 and "3 instances" in said
    code, said = run("backup", home.parent / "copy", "--passphrase-file", passfile, "--home", home)
    assert code == 1 and "never overwritten" in said
    if not lost_keys:  # with the ring gone, too, nothing tells of what came after the backup
        release_spool(gw)
        shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")
    after = picture(3, PatientID="STAYS")
    archived(gw, after)
    release_spool(gw)
    late = picture(4, PatientID="STAYS")
    take_in(gw, late)
    gw.close()
    lose(home, keys=lost_keys)
    code, said = run("restore", home.parent / "copy", "--passphrase-file", passfile, "--home", home)
    assert code == 0, said
    assert ("key ring restored" if lost_keys else "stays") in said
    gw = opened(home)
    assert_same(gw, *before, after, late)
    assert [each["id"] for each in gw.index.corrections()] == ([correction] if lost_keys else [])
    names = json.dumps(gw.index.search("study", {}, limit=100))
    if lost_keys:
        assert_same(gw, goes)
    else:
        assert "Gone" not in names and "1 shredded again" in said
        [row] = [row for row in gw.index.every_instance() if row.shredded_at is not None]
        with pytest.raises(Gone):
            original_bytes(gw, row)
    assert "index-restored" in {alert.kind for alert in gw.index.alerts()}
    report = verify(gw.index)
    assert report.ok, report
    found = gw.index.by_digest(sha256(late).hexdigest())
    assert found is not None and found.state is State.RECEIVED
    gw.close()
    code, said = run("restore", home.parent / "copy", "--passphrase-file", passfile, "--home", home)
    assert code == 1 and "not empty" in said


def test_a_damaged_or_unfinished_backup_changes_nothing(home: Path, passfile: Path, tmp_path: Path) -> None:
    gw = opened(home)
    archived(gw, packaged("rtplan.dcm"))
    gw.close()
    copy = tmp_path / "copy"
    assert run("backup", copy, "--passphrase-file", passfile, "--home", home)[0] == 0
    assert copy.stat().st_mode & 0o077 == 0 and all(path.stat().st_mode & 0o077 == 0 for path in copy.iterdir())
    lose(home, keys=False)
    wrong = tmp_path / "wrong"
    wrong.write_text("another passphrase")
    assert run("restore", copy, "--passphrase-file", wrong, "--home", home)[0] == 1
    data = (copy / "database.jsonl.zst").read_bytes()
    for damaged in (data[:-9], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        (copy / "database.jsonl.zst").write_bytes(damaged)
        code, said = run("restore", copy, "--passphrase-file", passfile, "--home", home)
        assert code == 1 and "manifest" in said
        other = Index(f"sqlite:///{tmp_path / 'other.db'}")
        other.create()
        with pytest.raises(IntegrityError, match="damaged"):
            load_database(other, copy / "database.jsonl.zst")
        assert other.is_empty()
        other.close()
    (copy / "manifest.json").unlink()
    code, said = run("restore", copy, "--passphrase-file", passfile, "--home", home)
    assert code == 1 and "no finished backup" in said
    assert not (home / "palimpsest.db").exists()


def test_a_copy_goes_into_either_kind_of_database(home: Path, tmp_path: Path, database_url: str) -> None:
    gw = opened(home)
    archived(gw, picture(5))
    archived(gw, packaged("rtplan.dcm"))
    dumped = dump_database(gw.index, tmp_path / "copy")
    with pytest.raises(PolicyRefused, match="never overwritten"):
        dump_database(gw.index, tmp_path / "copy")
    other = Index(database_url)
    assert load_database(other, tmp_path / "copy") == dict(dumped.rows)
    for table in metadata.sorted_tables:
        if table.name in dumped.rows:
            query = sa.select(table).order_by(*table.primary_key.columns)
            with gw.index.read() as ours, other.read() as theirs:
                assert ours.execute(query).all() == theirs.execute(query).all(), table.name
    assert other.counts().by_state == gw.index.counts().by_state
    assert verify(other).ok
    new = other.correction_add("admin", {"AccessionNumber": "7"}, study_uid="1.2.3")  # numbers go on
    assert new == gw.index.correction_add("admin", {"AccessionNumber": "7"}, study_uid="1.2.3")
    with pytest.raises(PolicyRefused, match="not empty"):
        load_database(other, tmp_path / "copy")
    other.close()
    gw.close()


def test_everything_is_exported_as_it_was_received(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gw = opened(home)
    exact = [picture(6), picture(7), packaged("rtplan.dcm")]
    compressed = packaged("MR_small_RLE.dcm")
    for data in (*exact, compressed):
        archived(gw, data)
    archived(gw, picture(8, PatientID="GOES"))
    release_spool(gw)
    shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")
    out = tmp_path / "out"
    written = exporting.write_original
    seen: list[int] = []

    def killed_at_the_third(gateway: Gateway, row: object, write: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        written(gateway, row, write)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "write_original", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        export_all(gw, out, "test")
    assert not (out / "manifest.jsonl").exists()
    gw.close()
    code, said = run("export", "--all", out, "--home", home)
    assert code == 0, said
    assert "there 2" in said and "written 2" in said and "shredded 1" in said
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    files = {line["received_sha256"]: (out / line["file"]).read_bytes() for line in lines}
    assert {digest: files[digest] for digest in files if digest != sha256(compressed).hexdigest()} == {
        sha256(data).hexdigest(): data for data in exact
    }
    assert {line["exact"] for line in lines if line["received_sha256"] == sha256(compressed).hexdigest()} == {False}
    assert all(sha256((out / line["file"]).read_bytes()).hexdigest() == line["sha256"] for line in lines)
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".dcm", ".jsonl", ".json"}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("something else")
    code, said = run("export", "--all", tmp_path / "full", "--home", home)
    assert code == 1 and "something else" in said


def test_a_restore_that_was_killed_before_it_shredded_again_shows_nothing_until_that_is_done(
    home: Path, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gw = opened(home)
    archived(gw, picture(9, PatientID="GOES", PatientName="Gone^Soon"))
    assert run("backup", home.parent / "copy", "--passphrase-file", passfile, "--home", home)[0] == 0
    release_spool(gw)
    shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")
    gw.close()
    lose(home, keys=False)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.backup.shred_again", killed)
    for door in ("HTTP", "DICOM", "DEMO_DESTINATION"):  # `run` looks first whether they are free
        monkeypatch.setenv(f"PALIMPSEST_{door}_PORT", str(free_port()))
    run("restore", home.parent / "copy", "--passphrase-file", passfile, "--home", home)
    index = Index(f"sqlite:///{home / 'palimpsest.db'}")
    assert "Gone" in json.dumps(index.search("study", {}, limit=10))
    for command in (
        ("serve",),
        ("listen",),
        ("work", "--queues", "encode"),
        ("sweep",),
        ("status",),
        ("run", "--once"),
    ):
        code, said = run(*command, "--home", home)
        assert code == 1 and "rebuild --add" in " ".join(said.split()), (command, said)
    with pytest.raises(PolicyRefused, match="restore"):
        opened(home)
    assert run("rebuild", "--add", "--home", home)[0] == 0
    assert "Gone" not in json.dumps(index.search("study", {}, limit=10))
    index.close()
    gw = opened(home)
    [row] = gw.index.every_instance()
    assert row.shredded_at is not None
    gw.close()


def test_a_restore_that_was_killed_before_it_read_the_archive_starts_nothing_but_takes_keys(
    home: Path, passfile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gw = opened(home)
    archived(gw, picture(9, PatientID="STAYS"))
    gw.close()
    copy = home.parent / "copy"
    assert run("backup", copy, "--passphrase-file", passfile, "--home", home)[0] == 0
    lose(home, keys=True)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("palimpsest.backup.rebuild", killed)
    run("restore", copy, "--passphrase-file", passfile, "--home", home)
    with pytest.raises(PolicyRefused, match="restore"):
        opened(home)
    code, said = run(
        "keys", "restore", copy / "keys.backup", "--overwrite", "--passphrase-file", passfile, "--home", home
    )
    assert code == 0, said
    assert run("rebuild", "--add", "--home", home)[0] == 0
    gw = opened(home)
    assert "key-restored" in [event["event"] for event in tail(gw.index)]
    gw.close()


@pytest.mark.parametrize("indexed", [True, False])
def test_what_was_unfinished_in_a_backup_and_shredded_later_is_not_in_the_restored_database(
    home: Path, passfile: Path, indexed: bool
) -> None:
    gw = opened(home)
    archived(gw, picture(20, PatientID="GOES"))  # shredded before: what comes afterwards is the patient's again
    release_spool(gw)
    shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")
    goes = [take_in(gw, picture(n, PatientID="GOES", PatientName="Gone^Soon")).row.id for n in (21, 22)]
    kept = [take_in(gw, picture(n, PatientID=name, PatientName="Stays^Here")).row.id for n, name in ((23, "STAYS"),)]
    for each in (*goes, *kept) if indexed else ():
        index_instance(gw, each)
    assert run("backup", home.parent / "copy", "--passphrase-file", passfile, "--home", home)[0] == 0
    for each in (*goes, *kept):
        finish(gw, each)
    release_spool(gw)
    shred(gw, find_patient(gw, "GOES"), actor="test", reason="wish")
    uid = gw.index.get(kept[0]).sop_uid
    sent_again = picture(22, PatientID="GOES", PatientName="Gone^Soon")
    take_in(gw, sent_again)
    gw.close()
    lose(home, keys=False)
    code, said = run("restore", home.parent / "copy", "--passphrase-file", passfile, "--home", home)
    assert code == 0, said
    gw = opened(home)
    rows = list(gw.index.every_instance())
    living = {row.sop_uid: row for row in rows if row.shredded_at is None}
    assert set(living) == {uid, "1.2.7.22"} and len(rows) == len(living) + 3
    assert living["1.2.7.22"].state is State.RECEIVED and gw.spool.exists(living["1.2.7.22"].digest)
    assert all(row.state is State.RELEASED for row in rows if row.shredded_at is not None)
    assert original_bytes(gw, living[uid]) == picture(23, PatientID="STAYS", PatientName="Stays^Here")
    assert gw.index.search("instance", {"SOPInstanceUID": "1.2.7.21"}) == []
    assert sum(gw.index.counts().by_state.values()) == len(rows)  # the tallies went along
    gw.close()
    assert b"1.2.7.21" not in (home / "palimpsest.db").read_bytes()


def test_shredding_again_holds_a_bounded_number_of_rows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gw = opened(home)
    rows = [archived(gw, picture(n, PatientID=f"P{n % 2}", StudyInstanceUID=f"1.2.{n % 2}")) for n in range(30, 35)]
    for key_id in {str(row.patient_key) for row in rows}:
        gw.keys.destroy_patient_key(key_id, b"")
    forget, held = gw.index.forget, []

    def watched(page: list[InstanceRow], **options: Any) -> None:
        held.append(len(page))
        forget(page, **options)

    monkeypatch.setattr(reshred, "PAGE", 2)
    monkeypatch.setattr(gw.index, "forget", watched)
    assert shred_again(gw, "test") == 5 and held == [2, 2, 1]
    assert all(row.shredded_at is not None and row.state is State.RELEASED for row in gw.index.every_instance())
    assert shred_again(gw, "test") == 0 and len(held) == 3
    gw.close()


def test_a_backup_of_a_newer_release_is_refused_in_words(home: Path, passfile: Path, tmp_path: Path) -> None:
    gw = opened(home)
    gw.close()
    copy = tmp_path / "copy"
    assert run("backup", copy, "--passphrase-file", passfile, "--home", home)[0] == 0
    lose(home, keys=False)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
    code, said = run("restore", copy, "--passphrase-file", passfile, "--home", home)
    assert code == 1 and "newer release: install that one or a newer one" in " ".join(said.split())
    plain = zstandard.ZstdDecompressor().stream_reader((copy / "database.jsonl.zst").read_bytes()).read()
    current = f'"revision":"{HEAD}"'.encode()
    index = Index(f"sqlite:///{home / 'palimpsest.db'}")
    for revision, reason in (
        (b'"revision":"0999"', "newer-release"), (b'"revision":"x"', "backup-damaged"),
        (b'"other":"0001"', "backup-damaged"), (b'"version":2,"revision":"0001"', "newer-release"),
    ):  # fmt: skip
        (copy / "changed").write_bytes(zstandard.ZstdCompressor().compress(plain.replace(current, revision, 1)))
        with pytest.raises((PolicyRefused, IntegrityError)) as refused:
            load_database(index, copy / "changed")
        assert refused.value.reason == reason
    index.close()
    opened(home).close()  # nothing was changed: an empty database
    index = Index(f"sqlite:///{home / 'palimpsest.db'}")
    with index.write() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(PolicyRefused, match="schema 0999"):
        index.create()
    index.close()
