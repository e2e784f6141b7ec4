"""`palimpsest keys`: doctor, drill, recipients, purge, as a person types them."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from gateway.accept import accept_instance
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.instance import State
from gateway.jobs import MemoryQueue
from gateway.keys import KeyRing
from gateway.settings import load_settings
from palimpsest.cli import app
from palimpsest.drill import drill
from tests.proving import InProcess
from worker.pipeline import process_instance
from worker.retrieve import original_bytes
from worker.sweep import clean_incoming

runner = CliRunner()
PASSPHRASE = "correct horse battery"


def call(*arguments: str, ok: bool = True) -> str:
    result = runner.invoke(app, list(arguments))
    assert (result.exit_code == 0) is ok, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PALIMPSEST_PROFILE", "DATABASE_URL", "REDIS_URL", "PALIMPSEST_KEY_MASTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    return str(tmp_path / "passphrase")


def archived(gw: Gateway, *names: str) -> list[int]:
    ids = []
    for name in names:
        incoming = gw.spool.incoming()
        copyfile(str(get_testdata_file(name, download=False)), incoming)
        ids.append(accept_instance(gw, incoming, source="stow", calling_ae="TEST").row.id)
        assert process_instance(gw, InProcess(gw.keys), ids[-1], "w") == State.ARCHIVED  # type: ignore[arg-type]
    return ids


def events(gw: Gateway) -> list[dict[str, Any]]:
    return list(reversed(tail(gw.index)))


def test_the_doctor_says_what_is_wrong_and_exits_with_one(home: Path, tmp_path: Path, secret: str) -> None:
    call("keys", "list")
    said = call("keys", "doctor", ok=False)
    assert "backups" in said and "keys backup FILE" in said
    call("keys", "backup", str(tmp_path / "b"), "--passphrase-file", secret)
    assert "problem" not in call("keys", "doctor")
    (home / "keys").chmod(0o755)
    assert "chmod 700" in call("keys", "doctor", ok=False)


def test_recipients_are_added_listed_and_removed(home: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    for kind in ("xwing", "x25519", "rsa"):
        for path in (private, public):
            path.unlink(missing_ok=True)
        call("keys", "recipients", "generate", str(private), str(public), "--kind", kind)
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
        said = call("keys", "recipients", "add", f"to-{kind}", str(public), "--recovery")
        assert kind in said and "fingerprint" in said
    listed = call("keys", "recipients", "list")
    assert "to-xwing" in listed and "to-rsa" in listed and listed.count("yes") == 3
    assert "error:" in call("keys", "recipients", "generate", str(private), str(public), ok=False)
    assert "error:" in call("keys", "recipients", "generate", str(tmp_path / "fresh"), str(public), ok=False)
    assert not (tmp_path / "fresh").exists()
    nowhere = str(tmp_path / "no" / "folder")
    assert "cannot be written" in call("keys", "recipients", "generate", nowhere, str(tmp_path / "p"), ok=False)
    assert "error:" in call("keys", "recipients", "add", "to-rsa", str(public), ok=False)
    public.write_bytes(b"junk")
    assert "error:" in call("keys", "recipients", "add", "other", str(public), ok=False)
    call("keys", "recipients", "remove", "to-rsa")
    gw = build(load_settings(home=home))
    assert [each.name for each in gw.keys.recipients()] == ["to-xwing", "to-x25519"]
    assert {"recipient-added", "recipient-removed"} <= {each["event"] for each in events(gw)}
    gw.close()


def test_a_drill_opens_objects_with_the_backup_alone(home: Path, tmp_path: Path, secret: str) -> None:
    gw = build(load_settings(home=home), queue=MemoryQueue())
    file = tmp_path / "backup"
    gw.keys.backup(file, PASSPHRASE, log2_n=10)
    assert "proves nothing" in call("keys", "drill", str(file), "--passphrase-file", secret, ok=False)
    archived(gw, "CT_small.dcm", "MR_small.dcm")
    file.unlink()
    gw.keys.backup(file, PASSPHRASE, log2_n=10)
    late = archived(gw, "test-SR.dcm")
    (home / "keys").rename(home / "keys-away")  # the drill needs the living ring for nothing
    report = drill(gw, file, PASSPHRASE, 10)
    (home / "keys-away").rename(home / "keys")
    assert report.ok and (report.opened, report.closed, report.failed) == (2, 0, ()) and late
    assert not list(gw.settings.run_dir.glob("drill-*"))
    assert "2 objects restored bit for bit" in call("keys", "drill", str(file), "--passphrase-file", secret)
    assert events(gw)[-1]["event"] == "key-drill" and events(gw)[-1]["detail"]["outcome"] == "passed"
    gw.close()


def test_a_drill_with_another_rings_backup_fails(home: Path, tmp_path: Path, secret: str) -> None:
    gw = build(load_settings(home=home), queue=MemoryQueue())
    archived(gw, "CT_small.dcm")
    other = KeyRing.load_or_create(tmp_path / "other")
    other.backup(tmp_path / "backup", PASSPHRASE, log2_n=10)
    assert "seal-refused" in call("keys", "drill", str(tmp_path / "backup"), "--passphrase-file", secret, ok=False)
    gw.close()


def test_a_purged_backup_holds_no_shredded_key(home: Path, tmp_path: Path, secret: str) -> None:
    gw = build(load_settings(home=home), queue=MemoryQueue())
    key_id = gw.keys.patient_key("P\0anna")[0]
    gw.keys.backup(tmp_path / "backup", PASSPHRASE, log2_n=10)
    gw.keys.destroy_patient_key(key_id, b"")
    assert "holds 1 shredded" in call("keys", "doctor", ok=False)
    call("keys", "purge", str(tmp_path / "backup"), "--passphrase-file", secret)
    assert "shredded keys" not in call("keys", "doctor")
    assert "error:" in call("keys", "forget", "0" * 64, ok=False)
    call("keys", "forget", gw.keys.backups()[0].sha256)
    assert gw.keys.backups() == ()
    gw.close()


def test_rewrap_finishes_a_rotation(home: Path) -> None:
    gw = build(load_settings(home=home), queue=MemoryQueue())
    gw.keys.patient_key("P\0anna")
    gw.keys._add("kek")
    assert "keys rewrap" in call("keys", "doctor", ok=False)
    assert "1 patient keys rewrapped" in call("keys", "rewrap")
    gw.close()


def test_the_trail_names_the_keys_of_sealing_proving_and_restoring(home: Path) -> None:
    gw = build(load_settings(home=home), queue=MemoryQueue())
    (instance_id,) = archived(gw, "CT_small.dcm")
    row = gw.index.get(instance_id)
    gw.spool.remove(row.digest)
    original_bytes(gw, row)
    used = {
        each["event"]: each["detail"].get("key_id", "") for each in events(gw) if each["instance_id"] == instance_id
    }
    wrapping = [key_id for key_id in used["restored"].split() if key_id.startswith(("pat-", "kek-"))]
    assert wrapping and "sign-1" in used["restored"]
    sealing = next(name for name in used if name in ("candidate", "coded", "sealed", "passthrough"))
    assert {*wrapping, "sign-1"} <= set(used[sealing].split()) and "sign-1" in used["verified"]
    assert "1CT1" not in re.sub(r"pat-[0-9A-Z]{26}", "", json.dumps(used))  # the Patient ID
    gw.close()


def test_mistakes_are_one_line_and_change_nothing(home: Path, tmp_path: Path, secret: str) -> None:
    gw = build(load_settings(home=home), queue=MemoryQueue())
    archived(gw, "CT_small.dcm")
    gw.close()
    missing, file, wrong = str(tmp_path / "missing"), str(tmp_path / "backup"), tmp_path / "wrong"
    assert "cannot be read as text" in call("keys", "backup", file, "--passphrase-file", missing, ok=False)
    call("keys", "backup", file, "--passphrase-file", secret)
    wrong.write_text("another passphrase")
    shred = ["keys", "shred", "--patient-id", "-", "--backup", file, "--passphrase-file", str(wrong)]
    asked = runner.invoke(app, shred, input="1CT1\n")
    assert asked.exit_code == 2 and "--yes" in asked.output
    refused = runner.invoke(app, [*shred, "--yes"], input="1CT1\n")
    assert refused.exit_code == 1 and "does not open" in refused.output
    assert KeyRing.open_readonly(home / "keys").tombstones() == ()


def test_what_a_killed_drill_left_is_destroyed(home: Path) -> None:
    gw = build(load_settings(), queue=MemoryQueue())
    old, new = gw.settings.run_dir / "drill-old", gw.settings.run_dir / "drill-new"
    for folder in (old, new):
        (folder / "keys" / "patients").mkdir(parents=True)
        (folder / "keys" / "keyring.json").write_text("secret")
    os.utime(old, (0, 0))
    assert clean_incoming(gw) == 1 and not old.exists() and (new / "keys" / "keyring.json").exists()
    gw.close()
