"""gateway.patientkeys: one durable key per patient, one winner, gone for good once it is destroyed."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import keyfile, keystate, patientkeys
from gateway.errors import Unavailable
from gateway.keys import KeyRing, Recipient, ShreddedKey, UnknownKey
from tests.unit.keyring_errors import refused, unavailable

ANNA, BERT = "P\0Quastenflosser", "P\0bert"


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.load_or_create(tmp_path / "keys")


def files(ring: KeyRing) -> list[Path]:
    return sorted(path for path in (ring.folder / "patients").rglob("*") if path.is_file())


def test_one_key_per_patient_the_same_for_everyone(ring: KeyRing) -> None:
    key_id, key = ring.patient_key(ANNA)
    assert patientkeys._ID.fullmatch(key_id) and len(key_id) == 30 and len(key) == 32
    assert ring.patient_key(ANNA) == (key_id, key) and ring.find_kek(key_id) == key
    for other in (KeyRing.load_or_create(ring.folder), KeyRing.open_readonly(ring.folder)):
        assert other.patient_key(ANNA) == (key_id, key) and other.find_kek(key_id) == key
    labels = (BERT, "S" + ANNA[1:], "P\0", ANNA + "\0" + "0", "P\0ann\u00e4\ud800")
    others = [ring.patient_key(label) for label in labels]
    assert len({key_id, *(each[0] for each in others)}) == 6 and len({key, *(each[1] for each in others)}) == 6
    assert ring.patient_key_ids(ANNA) == [key_id] and ring.patient_key_ids("P\0nobody") == []


def test_files_are_owner_only_wrapped_and_nameless(ring: KeyRing) -> None:
    key_id, key = ring.patient_key(ANNA)
    (path,) = files(ring)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}
    assert path.stem == key_id.removeprefix("pat-") and path.parent.name == path.stem[:2]
    text = path.read_text()
    assert "Quastenflosser" not in text + str(path) and key.hex() not in text and keystate._b64(key) not in text
    assert json.loads(text)["wrapped"].startswith("kek-1:")
    assert key.hex() not in repr(ring.patients.stored(key_id)) and "kek-1:" not in repr(ring.patients.stored(key_id))


def test_a_key_is_fsynced_before_it_is_returned(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def spy(fd: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real(fd)

    monkeypatch.setattr(os, "fsync", spy)
    ring.patient_key(ANNA)
    assert synced == ["folder", "folder", "file", "folder"]  # two new folders, then file and folder of the key
    synced.clear()
    KeyRing.load_or_create(ring.folder).patient_key(ANNA)
    assert synced == ["folder"]  # found by another process: its maker may not have been as far
    synced.clear()
    ring.patient_key(ANNA)
    assert synced == []


def test_unknown_ids_are_unknown(ring: KeyRing) -> None:
    for wrong in ("pat-", "pat-" + "0" * 26, "pat-../../keyring", "pat-" + "/" * 26, "pat-" + "U" * 26):
        with pytest.raises(UnknownKey) as caught:
            ring.find_kek(wrong)
        assert not isinstance(caught.value, ShreddedKey)


def test_a_reader_makes_no_key(ring: KeyRing) -> None:
    reader = KeyRing.open_readonly(ring.folder)
    with refused("keys-readonly"):
        reader.patient_key(ANNA)
    with refused("keys-readonly"):
        reader.destroy_patient_key(ring.patient_key(ANNA)[0], b"")
    assert len(files(ring)) == 1


def _make(folder: str, gate: object, found: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    ring = KeyRing.load_or_create(Path(folder))
    found.put([ring.patient_key(f"P\0{number}") for number in range(20)])  # type: ignore[attr-defined]


def test_processes_agree_on_one_key(ring: KeyRing) -> None:
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_make, args=(str(ring.folder), gate, found)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(120)
    assert all(answer == answers[0] for answer in answers) and len(files(ring)) == 20


def test_the_pseudonym_key_may_rotate(ring: KeyRing) -> None:
    before = ring.patient_key(ANNA)
    ring.rotate("pseudo")
    assert ring.patient_key(ANNA) == before and ring.patient_key_ids(ANNA) == [before[0]]
    ring.destroy_patient_key(before[0], b"gone")
    after = ring.patient_key(ANNA)
    assert after[0] != before[0] and ring.patient_key_ids(ANNA) == [after[0], before[0]]


def test_rotating_rewraps_and_changes_no_key(ring: KeyRing) -> None:
    keys = [ring.patient_key(f"P\0{number}") for number in range(5)]
    assert ring.rotate("kek") == "kek-2"
    assert {ring.patients.stored(key_id).wrapped.split(":")[0] for key_id, _ in keys} == {"kek-2"}
    for each in (ring, KeyRing.open_readonly(ring.folder)):
        assert [(key_id, each.find_kek(key_id)) for key_id, _ in keys] == keys
    assert ring.rewrap() == 0


def test_a_stopped_rewrap_is_taken_up_again(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [ring.patient_key(f"P\0{number}") for number in range(6)]
    real, left = keyfile.write_atomic, [4]  # the ring file, then three keys

    def failing(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(keyfile, "write_atomic", failing)
    with unavailable("keys-unwritable"):
        ring.rotate("kek")
    monkeypatch.undo()
    assert [(key_id, ring.find_kek(key_id)) for key_id, _ in keys] == keys
    assert ring.rewrap() == 3 and ring.rewrap() == 0
    assert [(key_id, ring.find_kek(key_id)) for key_id, _ in keys] == keys


def test_rewrapping_while_keys_are_made_used_and_destroyed(ring: KeyRing) -> None:
    keys = dict(ring.patient_key(f"P\0{number}") for number in range(30))
    doomed = set(list(keys)[:5])
    stop, wrong = threading.Event(), []

    def use() -> None:
        mine = KeyRing.load_or_create(ring.folder)
        number = 0
        while not stop.is_set():
            for key_id, key in keys.items():
                try:
                    if mine.find_kek(key_id) != key:
                        wrong.append("another key")
                except ShreddedKey:
                    if key_id not in doomed:
                        wrong.append("lost")
            number = (number + 1) % 10
            label = f"P\0new {threading.get_ident()} {number}"
            if mine.patient_key(label) != mine.patient_key(label):
                wrong.append("not the same")

    with ThreadPoolExecutor(3) as pool:
        users = [pool.submit(use) for _ in range(3)]
        for key_id in doomed:
            ring.rotate("kek")
            ring.destroy_patient_key(key_id, b"gone")
        stop.set()
    assert not wrong and [user.result() for user in users] == [None] * 3
    ring.rewrap()
    for key_id in ring.patients.ids():
        assert ring.patients.stored(key_id).wrapped.startswith("kek-6:")
    assert not doomed & set(ring.patients.ids()) and set(keys) - doomed <= set(ring.patients.ids())


# --- destruction ---


def test_a_destroyed_key_is_gone_for_everyone_at_once(ring: KeyRing) -> None:
    key_id, key = ring.patient_key(ANNA)
    other = KeyRing.open_readonly(ring.folder)
    assert other.find_kek(key_id) == key  # now in both caches
    ring.destroy_patient_key(key_id, b"signed elsewhere")
    for each in (ring, other, KeyRing.load_or_create(ring.folder)):
        with pytest.raises(ShreddedKey) as caught:
            each.find_kek(key_id)
        assert isinstance(caught.value, UnknownKey) and caught.value.reason == "shredded-key"
    (stone,) = ring.tombstones()
    assert (stone.id, stone.data) == (key_id, b"signed elsewhere") and stone.created <= stone.destroyed
    assert [path.suffix for path in files(ring)] == [".tombstone"]
    ring.destroy_patient_key(key_id, b"again")
    assert ring.tombstones() == (stone,)


def test_the_file_is_overwritten_before_its_name_goes(ring: KeyRing) -> None:
    key_id, _ = ring.patient_key(ANNA)
    (path,) = files(ring)
    before = path.read_bytes()
    os.link(path, ring.folder / "second name")
    leftover = path.with_name(f".{path.name}.123.abc")
    leftover.write_bytes(before)
    ring.destroy_patient_key(key_id, b"")
    after = (ring.folder / "second name").read_bytes()
    assert len(after) == len(before) and after != before and b"wrapped" not in after
    assert not leftover.exists() and not path.exists()


def test_a_kill_after_the_tombstone_leaves_no_usable_key(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, _ = ring.patient_key(ANNA)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keyfile, "erase", killed)
    with pytest.raises(KeyboardInterrupt):
        ring.destroy_patient_key(key_id, b"t")
    monkeypatch.undo()
    assert len(files(ring)) == 2
    with pytest.raises(ShreddedKey):
        ring.find_kek(key_id)
    assert ring.patient_key(ANNA)[0] != key_id and key_id not in ring.patients.ids()
    ring.rotate("kek")
    ring.destroy_patient_key(key_id, b"t")  # finishes what was begun
    assert key_id.removeprefix("pat-") + ".json" not in {path.name for path in files(ring)}


def test_a_patient_who_comes_back_gets_another_key(ring: KeyRing) -> None:
    seen = []
    for _ in range(3):
        key_id, _ = ring.patient_key(ANNA)
        ring.destroy_patient_key(key_id, b"")
        seen.append(key_id)
    living = ring.patient_key(ANNA)[0]
    assert len({*seen, living}) == 4 and ring.patient_key_ids(ANNA) == [living, *reversed(seen)]


def test_an_id_that_is_not_here_can_be_buried(ring: KeyRing) -> None:
    gone = patientkeys.patient_key_id("P\0elsewhere", b"k" * 32)
    ring.destroy_patient_key(gone, b"t")
    assert [stone.id for stone in ring.tombstones()] == [gone] and ring.tombstones()[0].created == ""
    with pytest.raises(ShreddedKey):
        ring.find_kek(gone)
    with pytest.raises(UnknownKey):
        ring.destroy_patient_key("pat-x", b"t")


def test_the_cache_never_serves_a_key_whose_file_is_gone(ring: KeyRing) -> None:
    key_id, _ = ring.patient_key(ANNA)
    files(ring)[0].unlink()
    with pytest.raises(UnknownKey):
        ring.find_kek(key_id)


def test_the_cache_is_bounded(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patientkeys, "_CACHE_KEYS", 4)
    keys = [ring.patient_key(f"P\0{number}") for number in range(11)]
    assert len(ring.patients._cache) <= 4
    assert [ring.find_kek(key_id) for key_id, _ in keys] == [key for _, key in keys]


def test_a_damaged_key_is_unavailable_and_no_other(ring: KeyRing) -> None:
    key_id, _ = ring.patient_key(ANNA)
    other_id, other = ring.patient_key(BERT)
    one, two = (ring.patients._path(each) for each in (key_id, other_id))
    whole, foreign = one.read_bytes(), json.loads(two.read_bytes())
    swapped = {**foreign, "id": key_id}
    for data in (b"", b"{}", whole[:50], two.read_bytes(), json.dumps(swapped).encode(), whole.replace(b"kek-1", b"x")):
        one.write_bytes(data)
        with unavailable("patient-key-damaged"):
            KeyRing.load_or_create(ring.folder).find_kek(key_id)
        assert ring.find_kek(other_id) == other
    with unavailable("patient-key-damaged"):
        ring.rotate("kek")
    assert ring.patients.stored(other_id).wrapped.startswith("kek-2:")  # the others are done all the same
    one.write_bytes(whole)
    assert ring.rewrap() == 1 and len(ring.find_kek(key_id)) == 32


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_damage_to_a_patient_key_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    ring = KeyRing.load_or_create(tmp_path_factory.mktemp("ring") / "keys")
    key_id, key = ring.patient_key(ANNA)
    path = ring.patients._path(key_id)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        assert ring.patients.open(key_id, cached=False) == key  # a changed space, or the time it was made
    except Unavailable as error:
        assert error.reason == "patient-key-damaged"


def test_a_folder_that_cannot_be_written_is_unavailable(ring: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def read_only(path: object, flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    known = ring.patient_key(ANNA)
    monkeypatch.setattr(os, "open", read_only)
    for act in (
        lambda: ring.patient_key(BERT), lambda: ring.rotate("kek"), ring.rewrap,
        lambda: ring.destroy_patient_key(known[0], b""),
        lambda: ring.add_recipient(Recipient("x", "x25519", b"r" * 32)),
    ):  # fmt: skip
        with unavailable("keys-unwritable"):
            act()
    assert ring.patient_key(ANNA) == known


def test_an_unreadable_tombstone_is_not_passed_over(ring: KeyRing) -> None:
    ring.destroy_patient_key(ring.patient_key(ANNA)[0], b"t")
    files(ring)[0].write_bytes(b"{")
    with pytest.raises(Unavailable):
        ring.tombstones()


# --- kinds that later releases brought ---


def old_ring(folder: Path) -> bytes:
    """A ring file as the first release wrote it: version 1, four kinds."""
    state = keystate.RingState(tuple(keystate.new_key(f"{kind}-1", kind, "2026") for kind in keystate.KINDS[:4]))
    document = json.loads(keystate.dump(state))
    content = {"keys": document["keys"], "backups": [{"at": "2026", "ids": list(state.ids()), "sha256": "0"}]}
    head = {"format": "palimpsest-keyring", "version": 1, "sha256": keystate._digest(content)}
    folder.mkdir(mode=0o700)
    keyfile.write_new(folder / keyfile.RING_FILE, json.dumps({**head, **content}).encode())
    return (folder / keyfile.RING_FILE).read_bytes()


def test_an_old_ring_gets_the_later_kinds_when_it_is_opened_for_use(tmp_path: Path) -> None:
    data = old_ring(tmp_path / "old")
    reader = KeyRing.open_readonly(tmp_path / "old")
    kek = reader.kek_current()
    assert reader.stego_keys() == () and reader.backup_current()
    for use in (reader.stego_key, reader.pixel_key):
        with pytest.raises(UnknownKey):
            use()
    assert (tmp_path / "old" / keyfile.RING_FILE).read_bytes() == data
    ring = KeyRing.load_or_create(tmp_path / "old")
    assert ring.kek_current() == kek and not ring.backup_current()
    assert ring.stego_key() == ring.stego_keys()[0] == reader.stego_key() and reader.pixel_key()[0] == "pixel-1"
    assert ring.find_pixel_key("pixel-1") == ring.pixel_key()[1]
    ring.rotate("stego")
    assert [key_id for key_id, _ in ring.stego_keys()] == ["stego-2", "stego-1"]


def test_every_use_is_told_to_the_observer(ring: KeyRing) -> None:
    key_id, _ = ring.patient_key(ANNA)
    seen: list[tuple[str, str]] = []
    ring.observer = lambda purpose, used: seen.append((purpose, used))
    ring.patient_key(ANNA)
    ring.find_kek(key_id)
    ring.signing_key()
    ring.find_verify_key("sign-1")
    ring.stego_keys()
    ring.destroy_patient_key(key_id, b"")
    assert seen == [
        ("wrap", key_id), ("unwrap", key_id), ("sign", "sign-1"), ("verify", "sign-1"), ("extract", "stego-1"),
        ("destroy", key_id),
    ]  # fmt: skip
