"""gateway.keys: a backup counts when it was read back and opened a canary, and a restore never destroys a ring."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway import keybackup, keyfile, keystate
from gateway.keys import KINDS, KeyRing
from tests.unit.keyring_errors import refused, unavailable

PASSPHRASE = "correct horse battery"
FAST = 10  # log2 of scrypt's n: only here; the default stays the strong one


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.load_or_create(tmp_path / "keys")


def secrets_of(ring: KeyRing) -> dict[str, bytes]:
    return {key.id: key.secret for key in ring._state().keys}


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_is_current_until_a_key_is_added(ring: KeyRing, tmp_path: Path, kind: str) -> None:
    assert not ring.backup_current()
    proof = ring.backup(tmp_path / "one", PASSPHRASE, log2_n=FAST)
    assert ring.backup_current() and set(proof.ids) == {row.id for row in ring.list()}
    assert KeyRing.open_readonly(ring.folder).backup_current()
    assert all(row.backed_up for row in ring.list())
    ring.rotate(kind)
    assert not ring.backup_current()
    assert [row.id for row in ring.list() if not row.backed_up] == [f"{kind}-2"]
    ring.backup(tmp_path / "two", PASSPHRASE, log2_n=FAST)
    assert ring.backup_current()


def test_restoring_gives_every_key_back(ring: KeyRing, tmp_path: Path) -> None:
    ring.rotate("kek")
    ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    again = KeyRing.restore(tmp_path / "backup", PASSPHRASE, tmp_path / "elsewhere" / "keys")
    assert secrets_of(again) == secrets_of(ring) and again.list() == ring.list()
    assert again.backup_current()  # the file it came from was opened just now
    assert stat.S_IMODE(again.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((again.folder / keyfile.RING_FILE).stat().st_mode) == 0o600
    assert KeyRing.load_or_create(again.folder).rotate("kek") == "kek-3"


def test_a_lost_ring_comes_back_in_place(ring: KeyRing, tmp_path: Path) -> None:
    secrets = secrets_of(ring)
    ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    (ring.folder / keyfile.RING_FILE).unlink()
    KeyRing.restore(tmp_path / "backup", PASSPHRASE, ring.folder)
    assert secrets_of(ring) == secrets  # also in a process that had it open


def test_a_restore_never_destroys_a_ring(ring: KeyRing, tmp_path: Path) -> None:
    ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    ring.rotate("sign")
    before = (ring.folder / keyfile.RING_FILE).read_bytes()
    with refused("keys-exist"):
        KeyRing.restore(tmp_path / "backup", PASSPHRASE, ring.folder)
    assert (ring.folder / keyfile.RING_FILE).read_bytes() == before
    restored = KeyRing.restore(tmp_path / "backup", PASSPHRASE, ring.folder, overwrite=True)
    assert restored.signing_key()[0] == "sign-1"
    kept = [path for path in ring.folder.iterdir() if ".replaced-" in path.name]
    assert [path.read_bytes() for path in kept] == [before] and stat.S_IMODE(kept[0].stat().st_mode) == 0o600


def test_the_file_shows_nothing_and_is_owner_only(ring: KeyRing, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    ring.backup(path, PASSPHRASE, log2_n=FAST)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data = path.read_bytes()
    document = json.loads((ring.folder / keyfile.RING_FILE).read_text())
    assert not any(key["secret"].encode() in data or key["id"].encode() in data for key in document["keys"])
    header = json.loads(data.split(b"\n")[0])
    assert header["kdf"] == "scrypt" and len(header["salt"]) == 32
    assert keybackup.SCRYPT_LOG2_N == 17


def test_a_wrong_passphrase_and_any_damage_are_one_refusal(ring: KeyRing, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    ring.backup(path, PASSPHRASE, log2_n=FAST)
    whole = path.read_bytes()
    line = whole.index(b"\n")
    damaged = [b"", b"\n", whole[:line], whole[:-30], whole + b"x", b"{}" + whole[line:], os.urandom(300), whole[line:]]
    for at in (*range(0, line, 7), line + 3, line + 60, len(whole) - 5):
        flipped = bytearray(whole)
        flipped[at] ^= 2
        damaged.append(bytes(flipped))
    header = json.loads(whole[:line])
    costly: list[dict[str, object]] = [{"log2_n": 60}, {"log2_n": -1}, {"log2_n": "x"}, {"r": 1 << 20}, {"p": 99}]
    for change in (*costly, {"salt": "zz"}, {"version": 1}, {"version": 3}):
        damaged.append(json.dumps({**header, **change}).encode() + whole[line:])
    messages = set()
    for data, passphrase in [(whole, "wrong passphrase"), *((data, PASSPHRASE) for data in damaged)]:
        path.write_bytes(data)
        with refused("backup-refused") as caught:
            KeyRing.restore(path, passphrase, tmp_path / "new")
        messages.add(caught.value.message)
    assert len(messages) == 1 and not (tmp_path / "new").exists()


def test_backups_that_cannot_count_are_refused(ring: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"keep me")
    for path, passphrase, reason in (
        (tmp_path / "there", PASSPHRASE, "backup-exists"),
        (ring.folder / "backup", PASSPHRASE, "backup-in-key-folder"),
        (tmp_path / "keys" / ".." / "keys" / "backup", PASSPHRASE, "backup-in-key-folder"),
        (tmp_path / "short", "1234567", "passphrase-too-short"),
    ):
        with refused(reason):
            ring.backup(path, passphrase, log2_n=FAST)
    with unavailable("backup-unwritable"):
        ring.backup(tmp_path / "no" / "such" / "folder", PASSPHRASE, log2_n=FAST)
    assert (tmp_path / "there").read_bytes() == b"keep me" and not (tmp_path / "short").exists()
    assert not ring.backup_current()


def test_a_backup_that_does_not_open_the_canaries_does_not_count(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read back from the medium is another ring: same ids, other keys."""
    other = keystate.new_state("2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(
        keybackup, "read_backup", lambda path: keybackup.seal_backup(other, PASSPHRASE, "2026", log2_n=FAST)
    )
    with unavailable("backup-unproven"):
        ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    assert not ring.backup_current() and not (tmp_path / "backup").exists()


def test_a_backup_damaged_on_its_medium_does_not_count(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = keybackup.read_backup
    monkeypatch.setattr(keybackup, "read_backup", lambda path: real(path)[:-40])
    with refused("backup-refused"):
        ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    assert not ring.backup_current() and not (tmp_path / "backup").exists()


def test_restoring_checks_its_place_before_it_writes(ring: KeyRing, tmp_path: Path) -> None:
    ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    with refused("keys-in-archive"):
        KeyRing.restore(tmp_path / "backup", PASSPHRASE, tmp_path / "a" / "keys", archive_dir=tmp_path / "a")
    with refused("backup-unreadable"):
        KeyRing.restore(tmp_path / "missing", PASSPHRASE, tmp_path / "new")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    with refused("keys-permissions"):
        KeyRing.restore(tmp_path / "backup", PASSPHRASE, open_to_all)
    assert not any(open_to_all.iterdir()) and not (tmp_path / "new").exists() and not (tmp_path / "a").exists()


def test_exported_keys_are_public_only(ring: KeyRing, tmp_path: Path) -> None:
    ring.rotate("sign")
    ring.export_public(tmp_path / "public.json")
    text = (tmp_path / "public.json").read_text()
    rows = json.loads(text)["keys"]
    assert [(row["id"], row["use"]) for row in rows] == [
        ("sign-1", "sign"), ("certify-1", "certify"), ("sign-2", "sign")
    ]  # fmt: skip
    certify = {key.id: key.public for key in ring.certify_keys()}
    for row in rows:
        public = load_pem_public_key(row["pem"].encode())
        known = certify[row["id"]] if row["use"] == "certify" else ring.find_verify_key(row["id"])
        assert public.public_bytes_raw() == known  # type: ignore[union-attr]
    for key in json.loads((ring.folder / keyfile.RING_FILE).read_text())["keys"]:
        assert key["secret"] not in text
