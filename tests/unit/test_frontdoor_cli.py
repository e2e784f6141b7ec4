"""The command line as a newcomer meets it: help everywhere, one-line errors, keys, tokens and trail in a fresh home."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.bootstrap import build
from gateway.settings import load_settings
from gateway.tokens import verify_token
from palimpsest.cli import app

runner = CliRunner()
COMMANDS = {
    "run", "listen", "serve", "work", "sweep", "migrate", "send", "fetch", "status", "token", "keys list",
    "keys rotate", "keys rewrap", "keys backup", "keys restore", "keys drill", "keys doctor", "keys purge",
    "keys forget", "keys shred", "keys recipients list", "keys recipients add", "keys recipients generate",
    "keys recipients remove",
    "keys export-public", "audit verify", "audit export", "audit search", "codec bench", "codec escrow", "codec train",
    "policy check", "policy explain", "policy schema", "payload capacity", "payload embed", "payload extract",
    "payload inspect", "payload rebind", "payload bench", "certify", "check", "probe", "replay", "viewer install",
    "import", "studies", "sessions", "reconcile", "healthy", "warm", "rebuild", "backup", "restore", "scrub", "export",
    "selftest", "exporter", "shadow",
}  # fmt: skip


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def call(*arguments: str, ok: bool = True) -> str:
    result = runner.invoke(app, list(arguments))
    assert (result.exit_code == 0) is ok, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PALIMPSEST_HOME", "PALIMPSEST_PROFILE", "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PALIMPSEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PALIMPSEST_DICOM_PORT", "1")
    monkeypatch.setenv("PALIMPSEST_HTTP_PORT", "1")
    return tmp_path / "home"


def test_all_commands_are_there_and_each_says_what_it_does() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert set(found) == COMMANDS
    for name, command in found.items():
        assert command.help and len(command.help) > 25, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
        assert "Usage" in call(*name.split(), "--help")


def test_without_arguments_it_shows_where_to_start() -> None:
    result = runner.invoke(app, [])
    assert "palimpsest run" in result.output


def test_keys_live_from_first_start_over_backup_to_another_machine(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery staple\n")
    listed = call("keys", "list")
    for kind in ("kek-1", "sign-1", "pseudo-1", "token-1"):
        assert kind in listed
    assert "NO" in listed
    call("keys", "backup", str(tmp_path / "backup.bin"), "--passphrase-file", str(secret))
    assert "NO" not in call("keys", "list")
    assert "kek-2" in call("keys", "rotate", "kek")
    assert "NO" in call("keys", "list")
    call("keys", "export-public", str(tmp_path / "public.json"))
    assert "sign-1" in (tmp_path / "public.json").read_text()

    other = str(tmp_path / "other")
    call("keys", "restore", str(tmp_path / "backup.bin"), "--passphrase-file", str(secret), "--home", other)
    here, there = (build(load_settings(home=path)) for path in (home, other))
    assert there.keys.find_kek("kek-1") == here.keys.find_kek("kek-1")
    assert {"key-rotated", "key-backup", "key-exported"} <= _events(call("audit", "export"))
    assert "key-restored" in _events(call("audit", "export", "--home", other))


def _events(lines: str) -> set[str]:
    return {json.loads(line)["event"] for line in lines.splitlines() if line.startswith("{")}


def test_restoring_over_a_living_ring_must_be_asked_for(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery staple")
    call("keys", "backup", str(tmp_path / "b"), "--passphrase-file", str(secret))
    assert "error:" in call("keys", "restore", str(tmp_path / "b"), "--passphrase-file", str(secret), ok=False)
    secret.write_text("another passphrase altogether")
    assert "error:" in call("keys", "restore", str(tmp_path / "b"), "--passphrase-file", str(secret), ok=False)


def test_new_pseudonyms_must_be_asked_for(home: Path) -> None:
    assert "--new-pseudonyms" in call("keys", "rotate", "pseudo", ok=False)
    assert "pseudo-2" not in call("keys", "list")
    assert "pseudo-2" in call("keys", "rotate", "pseudo", "--new-pseudonyms")


def test_the_trail_verifies_and_an_edit_is_found(home: Path) -> None:
    call("keys", "rotate", "token")
    assert "intact" in call("audit", "verify")
    (trail,) = [home / "palimpsest.db"]
    import sqlite3

    with sqlite3.connect(trail) as database:
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("UPDATE audit SET actor = 'nobody'")
    assert "NOT intact" in call("audit", "verify", ok=False)


def test_a_token_is_what_it_says(home: Path) -> None:
    token = call("token", "--role", "auditor", "--subject", "pat", "--hours", "1").strip()
    gateway = build(load_settings(home=home))
    principal = verify_token(gateway, token)
    assert (principal.subject, principal.roles) == ("pat", {"auditor"})
    assert "error:" in call("token", "--role", "king", ok=False)


def test_status_of_a_gateway_that_does_not_run(home: Path) -> None:
    facts = json.loads(call("status", "--json"))
    assert facts["counts"]["total"] == 0
    assert facts["parts"]["database"] == "ok" and facts["parts"]["listener"] != "ok"
    assert "key backup" in call("status")


def test_sending_without_a_gateway_is_one_clear_line(home: Path) -> None:
    from pydicom.data import get_testdata_file

    output = call("send", str(get_testdata_file("CT_small.dcm", download=False)), ok=False)
    assert "error: nobody answers as PALIMPSEST" in output and "Traceback" not in output


def test_sending_nothing_that_is_dicom_names_each_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    output = call("send", str(tmp_path / "notes.txt"), ok=False)
    assert "notes.txt: not-part10" in output


def test_fetch_wants_exactly_one_way_to_name_an_object(home: Path) -> None:
    assert "name a study" in call("fetch", ok=False)
    assert "name a study" in call("fetch", "1.2", "--digest", "ab", ok=False)


def test_migrate_prepares_everything(home: Path) -> None:
    assert str(home) in call("migrate").replace("\n", "")
    assert (home / "palimpsest.db").is_file() and (home / "keys").is_dir()
