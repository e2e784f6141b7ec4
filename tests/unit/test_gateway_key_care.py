"""Care for a ring with patients: backups that need no master, restores that lose nothing and bring nothing back,
recipients, the doctor, and who used which key.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway import keybackup, keyfile, keystate
from gateway.errors import Unavailable
from gateway.keydoctor import Finding, examine
from gateway.keyrecipients import read_public
from gateway.keys import KeyRing, Recipient, ShreddedKey, UnknownKey
from gateway.keyuse import keys_used, note_use, used_keys
from tests.unit.keyring_errors import refused, unavailable

PASSPHRASE = "correct horse battery"
FAST = 10
ANNA, BERT = "P\0Quastenflosser", "P\0bert"


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.load_or_create(tmp_path / "keys")


def backup(ring: KeyRing, path: Path) -> Path:
    ring.backup(path, PASSPHRASE, log2_n=FAST)
    return path


# --- backups ---


def test_a_backup_alone_opens_every_patient(ring: KeyRing, tmp_path: Path) -> None:
    keys = [ring.patient_key(f"P\0{number}") for number in range(7)]
    ring.rotate("pseudo")
    ring.add_recipient(Recipient("vault", "x25519", b"p" * 32, True))
    file = backup(ring, tmp_path / "backup")
    assert all(key.hex().encode() not in file.read_bytes() for _, key in keys)
    again = KeyRing.restore(file, PASSPHRASE, tmp_path / "elsewhere")
    assert [(key_id, again.find_kek(key_id)) for key_id, _ in keys] == keys
    assert [again.patient_key(f"P\0{number}") for number in range(7)] == keys
    assert again.recipients() == ring.recipients() and again.backup_current()
    assert {stat.S_IMODE(path.stat().st_mode) for path in again.folder.rglob("*") if path.is_file()} == {0o600}


def test_sources_may_go_when_a_backup_began_after_their_keys(ring: KeyRing, tmp_path: Path) -> None:
    assert ring.backed_up_until() is None
    before = datetime.now(UTC).timestamp()
    backup(ring, tmp_path / "one")
    until = ring.backed_up_until()
    assert until is not None and before <= until <= datetime.now(UTC).timestamp()
    ring.patient_key(ANNA)
    assert ring.backed_up_until() == until and ring.backup_current()
    ring.rotate("sign")
    assert ring.backed_up_until() is None
    backup(ring, tmp_path / "two")
    assert (ring.backed_up_until() or 0) > until


def test_a_key_counts_as_backed_up_by_its_id_whatever_the_clock_says(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = ring.patient_key(ANNA)[0]
    assert ring.backed_up([anna]) == frozenset()
    file = backup(ring, tmp_path / "one")
    monkeypatch.setattr("gateway.keys._instant", lambda: "2020-01-01T00:00:00.000000+00:00")  # the clock steps back
    bert = ring.patient_key(BERT)[0]
    reader = KeyRing.open_readonly(ring.folder)
    assert reader.backed_up([anna, bert, "pat-" + "0" * 26, "pat-" + "Z" * 26]) == {anna}
    assert ring.backed_up([anna, bert]) == {anna}
    assert "1 patient keys" in problems(examine(ring))["backups"]
    assert KeyRing.restore(file, PASSPHRASE, tmp_path / "again").backed_up([anna, bert]) == {anna}
    ring.destroy_patient_key(bert, b"")
    ring.purge_backup(file, PASSPHRASE, [bert])
    assert ring.backed_up([anna]) == {anna}
    ring.rotate("sign")
    assert ring.backed_up([anna]) == frozenset()
    backup(ring, tmp_path / "two")
    ring.forget_backup(ring.backups()[-1].sha256)
    assert ring.backed_up([anna]) == frozenset()
    (ring.folder / "backed-up").write_bytes(b"")
    assert ring.backed_up([anna]) == frozenset()


def test_a_restore_that_was_killed_is_finished_by_the_next(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [ring.patient_key(f"P\0{number}") for number in range(2)]
    file = backup(ring, tmp_path / "backup")
    ring.rotate("kek")  # the ring that is replaced wraps with a key that the backup's does not have
    keys += [ring.patient_key(f"P\0{number}") for number in range(2, 6)]
    real, left = keyfile.write_atomic, 0

    def killed(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(path, data)

    for writes in range(8):
        left = writes
        with monkeypatch.context() as patch:
            patch.setattr(keyfile, "write_atomic", killed)
            with pytest.raises(KeyboardInterrupt):
                KeyRing.restore(file, PASSPHRASE, ring.folder, overwrite=True)
    again = KeyRing.restore(file, PASSPHRASE, ring.folder, overwrite=True)
    assert [again.find_kek(key_id) for key_id, _ in keys] == [key for _, key in keys]


def test_an_old_backup_restored_over_a_ring_forgets_no_newer_backup(ring: KeyRing, tmp_path: Path) -> None:
    file = backup(ring, tmp_path / "old")
    ring.rotate("sign")
    anna = ring.patient_key(ANNA)[0]
    newer = ring.backup(tmp_path / "new", PASSPHRASE, log2_n=FAST)
    again = KeyRing.restore(file, PASSPHRASE, ring.folder, overwrite=True)
    again.rotate("sign")  # another sign-2 than the one in the newer backup
    assert not again.backup_current() and again.backed_up([anna]) == frozenset()
    again.destroy_patient_key(anna, b"")
    assert [(each.sha256, ids) for each, ids in again.backups_holding([anna])] == [(newer.sha256, (anna,))]


def test_a_backup_of_the_first_release_still_restores(tmp_path: Path) -> None:
    old = keystate.RingState(tuple(keystate.new_key(f"{kind}-1", kind, "2026") for kind in keystate.KINDS[:4]))
    head = {"format": "palimpsest-keyring-backup", "version": 1, "kdf": "scrypt", "log2_n": FAST, "r": 8, "p": 1}
    import base64
    import json

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    facts = {**head, "salt": "00" * 16, "created": "2026-01-01T00:00:00+00:00"}
    header = json.dumps(facts, sort_keys=True).encode()
    key, commitment = keybackup._keys(facts, PASSPHRASE)
    sealed = commitment + AESGCM(key).encrypt(bytes(12), keystate.dump(old), header)
    (tmp_path / "old").write_bytes(header + b"\n" + base64.b64encode(sealed) + b"\n")
    ring = KeyRing.restore(tmp_path / "old", PASSPHRASE, tmp_path / "keys")
    assert ring.find_kek("kek-1") == old.keys[0].secret and ring.stego_key()[0] == "stego-1"


def test_a_damaged_patient_key_stops_a_backup(ring: KeyRing, tmp_path: Path) -> None:
    key_id, _ = ring.patient_key(ANNA)
    ring.patients._path(key_id).write_bytes(b"{}")
    with unavailable("patient-key-damaged"):
        ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    assert not (tmp_path / "backup").exists() and not ring.backup_current()


# --- restoring ---


def test_a_shredded_key_never_comes_back(ring: KeyRing, tmp_path: Path) -> None:
    anna, bert, third = (ring.patient_key(label)[0] for label in (ANNA, BERT, "P\0third"))
    early = backup(ring, tmp_path / "early")
    ring.destroy_patient_key(anna, b"stone")
    late = backup(ring, tmp_path / "late")
    for file, shredded, gone in ((late, (), {anna}), (early, (anna, third), {anna, third})):
        target = tmp_path / f"from {file.name}"
        again = KeyRing.restore(file, PASSPHRASE, target, shredded=shredded)
        assert {stone.id for stone in again.tombstones()} == gone
        for key_id in gone:
            with pytest.raises(ShreddedKey):
                again.find_kek(key_id)
        assert again.find_kek(bert) == ring.find_kek(bert)
    KeyRing.restore(early, PASSPHRASE, ring.folder, overwrite=True)  # over the living ring: its tombstone stands
    with pytest.raises(ShreddedKey):
        ring.find_kek(anna)
    assert ring.tombstones()[0].data == b"stone"


def test_restoring_over_a_ring_keeps_the_patients_it_lacks(ring: KeyRing, tmp_path: Path) -> None:
    ring.patient_key(ANNA)
    file = backup(ring, tmp_path / "backup")
    bert = ring.patient_key(BERT)
    ring.rotate("kek")  # and so under a kek that the backup does not have
    again = KeyRing.restore(file, PASSPHRASE, ring.folder, overwrite=True)
    assert again.kek_current()[0] == "kek-1" and again.find_kek(bert[0]) == bert[1]
    assert again.patients.stored(bert[0]).wrapped.startswith("kek-1:")


def test_a_lost_ring_file_comes_back_around_the_patients_that_are_left(ring: KeyRing, tmp_path: Path) -> None:
    anna = ring.patient_key(ANNA)
    file = backup(ring, tmp_path / "backup")
    bert = ring.patient_key(BERT)
    (ring.folder / keyfile.RING_FILE).unlink()
    again = KeyRing.restore(file, PASSPHRASE, ring.folder)
    assert again.find_kek(anna[0]) == anna[1] and again.find_kek(bert[0]) == bert[1]


def test_two_different_keys_of_one_id_are_not_mixed(ring: KeyRing, tmp_path: Path) -> None:
    anna = ring.patient_key(ANNA)
    file = backup(ring, tmp_path / "backup")
    ring.patients._path(anna[0]).unlink()
    other = KeyRing.load_or_create(ring.folder).patient_key(ANNA)
    assert other[0] == anna[0] and other[1] != anna[1]
    before = {path: path.read_bytes() for path in ring.folder.rglob("*") if path.is_file()}
    with refused("keys-conflict"):
        KeyRing.restore(file, PASSPHRASE, ring.folder, overwrite=True)
    assert {path: path.read_bytes() for path in ring.folder.rglob("*") if path.is_file()} == before


# --- taking keys out of backups ---


def test_a_key_taken_out_of_a_backup_is_out(ring: KeyRing, tmp_path: Path) -> None:
    anna, bert = ring.patient_key(ANNA), ring.patient_key(BERT)
    file = backup(ring, tmp_path / "backup")
    os.link(file, tmp_path / "second name")
    before = file.read_bytes()
    ring.destroy_patient_key(anna[0], b"")
    assert [ids for _, ids in ring.backups_holding([anna[0], bert[0]])] == [(anna[0],)]
    with refused("backup-refused"):
        ring.purge_backup(file, "another passphrase", [anna[0]])
    assert file.read_bytes() == before
    ring.purge_backup(file, PASSPHRASE, [anna[0]])
    assert ring.backups_holding([anna[0]]) == () and ring.backup_current()
    assert (tmp_path / "second name").read_bytes() != before  # the old blocks were written over
    again = KeyRing.restore(file, PASSPHRASE, tmp_path / "again")
    assert again.find_kek(bert[0]) == bert[1]
    with pytest.raises(UnknownKey):
        again.find_kek(anna[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "backup", "keys", "second name"]


def test_a_destroyed_backup_is_struck_off(ring: KeyRing, tmp_path: Path) -> None:
    anna = ring.patient_key(ANNA)[0]
    proof = ring.backup(tmp_path / "backup", PASSPHRASE, log2_n=FAST)
    ring.destroy_patient_key(anna, b"")
    assert ring.backups_holding([anna])
    ring.forget_backup(proof.sha256)
    assert ring.backups_holding([anna]) == () and ring.backups() == () and not ring.backup_current()
    with refused("unknown-backup"):
        ring.forget_backup(proof.sha256)


def test_without_keys_drops_what_is_named_and_keeps_the_passphrase(ring: KeyRing, tmp_path: Path) -> None:
    anna, bert = (ring.patient_key(label)[0] for label in (ANNA, BERT))
    data = backup(ring, tmp_path / "backup").read_bytes()
    purged = keybackup.without_keys(data, PASSPHRASE, [anna])
    assert [key.id for key in keybackup.open_backup(purged, PASSPHRASE).patients] == [bert]
    assert keybackup.open_backup(purged, PASSPHRASE).state.ids() == ring._state().ids()
    assert keybackup.backup_time(purged) == keybackup.backup_time(data)
    with refused("backup-refused"):
        keybackup.without_keys(data, "wrong wrong", [anna])


# --- recipients ---


def test_recipients_are_kept_in_the_ring(ring: KeyRing) -> None:
    one, two = Recipient("research", "x25519", b"r" * 32), Recipient("safe", "xwing", b"s" * 1216, True)
    ring.add_recipient(one)
    ring.add_recipient(two)
    assert KeyRing.open_readonly(ring.folder).recipients() == (one, two)
    with refused("recipient-exists"):
        ring.add_recipient(one)
    ring.remove_recipient("research")
    assert ring.recipients() == (two,)
    with refused("unknown-recipient"):
        ring.remove_recipient("research")


def test_bad_recipients_are_refused(ring: KeyRing) -> None:
    small = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    der = small.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for wrong in (
        Recipient("", "x25519", b"r" * 32), Recipient("a b", "x25519", b"r" * 32), Recipient("x", "dsa", b"r" * 32),
        Recipient("x", "x25519", b"r" * 31), Recipient("x", "xwing", b"r" * 32), Recipient("x", "rsa", b"junk"),
        Recipient("x", "rsa", der), Recipient("x" * 65, "x25519", b"r" * 32),
    ):  # fmt: skip
        with refused("bad-recipient"):
            ring.add_recipient(wrong)
    assert ring.recipients() == ()


def test_public_keys_are_read_as_partners_send_them(tmp_path: Path) -> None:
    import base64

    file = tmp_path / "key"
    curve = X25519PrivateKey.generate().public_key()
    big = rsa.generate_private_key(public_exponent=65537, key_size=3072).public_key()
    spki = PublicFormat.SubjectPublicKeyInfo
    der = big.public_bytes(Encoding.DER, spki)
    raw = curve.public_bytes_raw()
    for data, found in (
        (raw, ("x25519", raw)), (base64.b64encode(raw) + b"\n", ("x25519", raw)),
        (curve.public_bytes(Encoding.PEM, spki), ("x25519", raw)),
        (curve.public_bytes(Encoding.DER, spki), ("x25519", raw)),
        (b"w" * 1216, ("xwing", b"w" * 1216)), (base64.encodebytes(b"w" * 1216), ("xwing", b"w" * 1216)),
        (der, ("rsa", der)), (big.public_bytes(Encoding.PEM, spki), ("rsa", der)),
    ):  # fmt: skip
        file.write_bytes(data)
        assert read_public(file) == found
    wrong = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, spki)
    for data in (b"", b"junk", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", wrong):
        file.write_bytes(data)
        with refused("bad-recipient"):
            read_public(file)
    with refused("recipient-unreadable"):
        read_public(tmp_path / "none")


# --- the doctor ---


def problems(findings: list[Finding]) -> dict[str, str]:
    return {each.check: each.text for each in findings if each.level == "problem"}


def test_a_healthy_ring_has_no_problem(ring: KeyRing, tmp_path: Path) -> None:
    ring.patient_key(ANNA)
    ring.destroy_patient_key(ring.patient_key(BERT)[0], b"")
    backup(ring, tmp_path / "backup")
    found = examine(ring, tmp_path / "archive")
    assert problems(found) == {} and len({each.check for each in found}) >= 10
    assert problems(examine(KeyRing.open_readonly(ring.folder), tmp_path / "archive")) == {}


def test_the_doctor_finds_what_is_wrong_and_says_what_to_do(ring: KeyRing, tmp_path: Path) -> None:
    anna, bert = ring.patient_key(ANNA)[0], ring.patient_key(BERT)[0]
    assert set(problems(examine(ring))) == {"backups"}
    backup(ring, tmp_path / "backup")
    assert problems(examine(ring)) == {}

    path = ring.patients._path(anna)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert anna in problems(examine(ring))["patient keys"]
    path.write_bytes(whole)
    path.chmod(0o640)
    assert "permissions" in problems(examine(ring))
    path.chmod(0o600)
    assert "place" in problems(examine(ring, tmp_path))

    new = ring.patient_key("P\0new")[0]
    assert "1 patient keys are not in the last backup" in problems(examine(ring))["backups"]
    ring._add("kek")  # a rotation that was stopped before the first rewrap
    assert "3 under kek-1" in problems(examine(ring))["versions"]
    ring.rewrap()
    backup(ring, tmp_path / "second")
    assert problems(examine(ring)) == {}

    assert "not here" in problems(examine(ring, named=[anna, "pat-" + "0" * 26]))["index"]
    assert "here again" in problems(examine(ring, shredded=[new]))["index"]
    assert problems(examine(ring, named=[anna, bert, new])) == {}
    ring.destroy_patient_key(bert, b"")
    assert "holds 1 shredded" in problems(examine(ring))["tombstones"]
    for name in ("backup", "second"):
        ring.purge_backup(tmp_path / name, PASSPHRASE, [bert])
    assert problems(examine(ring, named=[anna, bert, new], shredded=[bert])) == {}
    stone = ring.patients._path(bert)
    stone.write_bytes(b"{}")
    stone.chmod(0o600)
    assert "still have a file" in problems(examine(ring))["tombstones"]
    stone.unlink()
    torn = stone.with_name(f".{stone.name}.1.aa")
    torn.touch(0o600)
    os.utime(torn, (1, 1))
    assert set(problems(examine(ring))) == {"tombstones", "left-overs"}


def test_age_is_a_note(ring: KeyRing, tmp_path: Path) -> None:
    backup(ring, tmp_path / "backup")
    later = datetime.now(UTC) + timedelta(days=1500)
    found = examine(ring, now=later)
    assert problems(found) == {}
    notes = {each.text.split()[0] for each in found if each.level == "note"}
    assert {"kek-1", "sign-1", "token-1"} <= notes and "the" in notes and "pseudo-1" not in notes


def test_a_master_that_is_away_is_a_finding(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.patient_key(ANNA)

    def away(*_: object) -> str:
        raise Unavailable("key-master-unreachable", "Vault cannot be reached")

    monkeypatch.setattr(ring.patients._master, "unwrap", away)
    monkeypatch.setattr(KeyRing, "master", property(lambda self: ring.patients._master))
    found = problems(examine(ring))
    assert found["master"] == found["patient keys"] == "Vault cannot be reached"
    assert all(each.advice for each in examine(ring) if each.level != "ok")


def test_findings_name_no_secret(ring: KeyRing) -> None:
    key_id, key = ring.patient_key(ANNA)
    ring.patients._path(key_id).write_bytes(b"x")
    text = " ".join(str(dataclasses.astuple(each)) for each in examine(ring))
    assert "Quastenflosser" not in text and key.hex() not in text and key_id in text


# --- who used which key ---


def test_uses_are_gathered_for_the_work_that_made_them(ring: KeyRing) -> None:
    ring.observer = note_use
    anna = ring.patient_key(ANNA)[0]
    assert keys_used() == ""
    with used_keys() as outer:
        ring.signing_key()
        with used_keys() as inner:
            ring.find_kek(anna)
            ring.find_kek(anna)
            other = threading.Thread(target=ring.token_key)
            other.start()
            other.join()
            assert keys_used() == anna
        ring.pseudonym_key()
    assert list(inner.seen) == [("unwrap", anna)]
    assert outer.ids() == f"sign-1 {anna} pseudo-1" and keys_used() == ""


def test_many_keys_are_counted_not_listed() -> None:
    with used_keys() as used:
        for number in range(40):
            note_use("extract", f"stego-{number}")
    assert used.ids().endswith(" +28") and len(used.ids().split()) == 13
