"""gateway.keys: created once, owner-only, never shown, never lost, seen alike by every process."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway import keyfile, keystate
from gateway.errors import Unavailable
from gateway.keys import KINDS, KeyRing, UnknownKey
from tests.unit.keyring_errors import refused, unavailable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def secrets_of(ring: KeyRing) -> list[bytes]:
    first = [ring.kek_current()[1], ring.signing_key()[1], ring.pseudonym_key(), ring.token_key()[1]]
    return [*first, ring.stego_key()[1], ring.pixel_key()[1], ring.certify_keys()[-1].secret]


def test_the_first_start_makes_one_owner_only_key_of_each_kind(folder: Path) -> None:
    old = os.umask(0)
    try:
        ring = KeyRing.load_or_create(folder)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert [row.id for row in ring.list()] == [f"{kind}-1" for kind in KINDS]
    assert all(row.current and not row.backed_up for row in ring.list())
    assert len({*secrets_of(ring)}) == len(KINDS) and all(len(secret) == 32 for secret in secrets_of(ring))
    assert secrets_of(KeyRing.load_or_create(folder)) == secrets_of(ring)


def test_keys_are_found_by_id_and_kind(folder: Path) -> None:
    ring = KeyRing.load_or_create(folder)
    assert ring.find_kek("kek-1") == ring.kek_current()[1]
    assert ring.find_token_key("token-1") == ring.token_key()[1]
    key_id, secret = ring.signing_key()
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key()
    assert ring.find_verify_key(key_id) == public.public_bytes_raw()
    for find in (ring.find_kek, ring.find_verify_key, ring.find_token_key):
        for wrong in ("kek-9", "pseudo-1", "", "../x"):
            with pytest.raises(UnknownKey) as caught:
                find(wrong)
            assert isinstance(caught.value, LookupError) and caught.value.reason == "unknown-key"


@pytest.mark.parametrize("kind", KINDS)
def test_rotation_adds_a_version_and_keeps_the_old(folder: Path, kind: str) -> None:
    ring, reader = KeyRing.load_or_create(folder), KeyRing.open_readonly(folder)
    before = ring.find_kek("kek-1"), ring.find_verify_key("sign-1"), ring.find_token_key("token-1")
    old = dict(zip(KINDS, secrets_of(ring), strict=True))
    assert ring.rotate(kind) == f"{kind}-2" and ring.rotate(kind) == f"{kind}-3"
    for each in (ring, reader, KeyRing.load_or_create(folder)):  # other processes see it, too
        new = dict(zip(KINDS, secrets_of(each), strict=True))
        assert {name for name in new if new[name] != old[name]} == {kind}
        assert (each.find_kek("kek-1"), each.find_verify_key("sign-1"), each.find_token_key("token-1")) == before
        assert [row.id for row in each.list() if row.kind == kind and row.current] == [f"{kind}-3"]


def test_an_unknown_kind_is_refused(folder: Path) -> None:
    with refused("unknown-key-kind"):
        KeyRing.load_or_create(folder).rotate("master")


def test_nothing_shows_or_carries_a_secret_away(folder: Path) -> None:
    ring = KeyRing.load_or_create(folder)
    shown = f"{ring!r} {ring} {ring.list()!r} {ring._state()!r} {ring._state().keys!r} {vars(ring)!r}"
    document = json.loads((folder / keyfile.RING_FILE).read_text())
    for secret, stored in zip(secrets_of(ring), document["keys"], strict=True):
        for form in (secret.hex(), repr(secret), repr(secret)[2:-1], stored["secret"], stored["canary"]):
            assert form not in shown
    assert "kek-1" in repr(ring)
    for thing in (ring, ring._state(), ring._state().keys[0]):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
    with pytest.raises(TypeError):
        copy.copy(ring)


def test_a_ring_open_to_others_is_refused_with_what_to_do(folder: Path) -> None:
    ring = KeyRing.load_or_create(folder)
    for path, mode, command in ((folder, 0o750, "chmod 700"), (folder / keyfile.RING_FILE, 0o604, "chmod 600")):
        kept = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        for use in (KeyRing.load_or_create, KeyRing.open_readonly):
            with refused("keys-permissions") as caught:
                use(folder)
            assert command in caught.value.message
        path.chmod(kept)
    (folder / keyfile.RING_FILE).chmod(0o640)
    with refused("keys-permissions"):
        ring.kek_current()  # also a ring that is open already


def test_keys_and_archive_lie_apart(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    (tmp_path / "link").symlink_to(archive)
    for folder in (archive, archive / "keys", tmp_path, tmp_path / "link" / "keys", archive / "x" / ".." / "keys"):
        with refused("keys-in-archive"):
            KeyRing.load_or_create(folder, archive_dir=archive)
        assert not archive.exists()
    KeyRing.load_or_create(tmp_path / "archive-keys", archive_dir=archive)


def test_a_missing_ring_is_an_error_where_there_was_one(folder: Path) -> None:
    with unavailable("keys-missing"):
        KeyRing.open_readonly(folder)
    with unavailable("keys-missing"):
        KeyRing.load_or_create(folder, create=False)
    ring = KeyRing.load_or_create(folder)
    (folder / keyfile.RING_FILE).unlink()
    with unavailable("keys-missing"):
        ring.kek_current()
    with unavailable("keys-missing") as caught:
        KeyRing.load_or_create(folder)  # never a silent new ring that opens nothing
    assert "keys restore" in caught.value.message and caught.value.retry_after > 0
    assert not (folder / keyfile.RING_FILE).exists()


def test_a_crash_before_the_first_ring_was_written_is_no_loss(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / keyfile.LOCK_FILE).touch(mode=0o600)
    assert KeyRing.load_or_create(folder).kek_current()[0] == "kek-1"


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_damage_to_the_file_is_noticed(at: int, bit: int) -> None:
    state = keystate.new_state("2026-01-01T00:00:00+00:00")
    data = bytearray(keystate.dump(state))
    data[at % len(data)] ^= 1 << bit
    try:
        assert keystate.parse(bytes(data)) == state  # a changed space or newline
    except Unavailable as error:
        assert error.reason == "keys-corrupt"


def test_a_damaged_or_cut_ring_is_unavailable_not_replaced(folder: Path) -> None:
    KeyRing.load_or_create(folder)
    path = folder / keyfile.RING_FILE
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"{}", b"[]", b"null", whole.replace(b'"kek-1"', b'"kek-2"', 1)):
        path.write_bytes(data)
        with unavailable("keys-corrupt"):
            KeyRing.load_or_create(folder)
        assert path.read_bytes() == data


def test_a_failed_write_leaves_the_old_ring(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing.load_or_create(folder)
    before = (folder / keyfile.RING_FILE).read_bytes()
    files = sorted(folder.iterdir())

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with unavailable("keys-unwritable"):
        ring.rotate("kek")
    monkeypatch.undo()
    assert (folder / keyfile.RING_FILE).read_bytes() == before and sorted(folder.iterdir()) == files
    assert ring.kek_current()[0] == "kek-1"


def test_writes_are_fsynced_file_then_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing.load_or_create(folder)
    synced: list[str] = []
    real = os.fsync

    def spy(fd: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    ring.rotate("sign")
    assert synced == ["file", "folder"]


def test_the_verifiers_ring_changes_nothing(folder: Path, tmp_path: Path) -> None:
    KeyRing.load_or_create(folder)
    ring = KeyRing.open_readonly(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    secrets_of(ring)
    with refused("keys-readonly"):
        ring.rotate("kek")
    with refused("keys-readonly"):
        ring.backup(tmp_path / "backup", "long enough")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not (tmp_path / "backup").exists()


def _start(folder: str, gate: object, found: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    ring = KeyRing.load_or_create(Path(folder))
    ring.rotate("token")
    found.put(ring.kek_current()[1])  # type: ignore[attr-defined]


def test_processes_that_start_together_share_one_ring(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_start, args=(str(folder), gate, found)) for _ in range(4)]
    for process in processes:
        process.start()
    keks = {found.get(timeout=120) for _ in processes}
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    ring = KeyRing.open_readonly(folder)
    assert keks == {ring.kek_current()[1]}
    assert [row.id for row in ring.list() if row.kind == "token"] == [f"token-{i}" for i in range(1, 6)]  # none lost


def test_threads_read_while_another_rotates(folder: Path) -> None:
    ring = KeyRing.load_or_create(folder)
    first, stop, wrong = ring.find_kek("kek-1"), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if ring.find_kek("kek-1") != first or len(ring.kek_current()[1]) != 32:
                wrong.append(1)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(15):
        ring.rotate("kek")
    stop.set()
    for reader in readers:
        reader.join(120)
    assert not wrong and ring.kek_current()[0] == "kek-16"
