"""What every ArchiveStore does: the file system one and its in-memory twin."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from gateway.archive import ArchiveStore, FilesystemArchive, archive_key
from gateway.errors import BadUID, IntegrityError, NotFound
from tests.fakes import MemoryArchive

KEY = archive_key("2.25.1234567890")
DATA = b"an envelope" * 100
DIGEST = sha256(DATA).hexdigest()


@pytest.fixture(params=["filesystem", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArchiveStore:
    if request.param == "memory":
        return MemoryArchive()
    (tmp_path / "archive").mkdir()
    return FilesystemArchive(tmp_path / "archive")


def test_put_then_get(store: ArchiveStore) -> None:
    assert not store.exists(KEY)
    store.put(KEY, DATA, DIGEST)
    assert store.exists(KEY)
    assert store.get(KEY, DIGEST) == DATA
    assert store.map(KEY, DIGEST) == DATA
    assert list(store.keys()) == [KEY]


def test_the_same_bytes_again_are_no_error(store: ArchiveStore) -> None:
    store.put(KEY, DATA, DIGEST)
    store.put(KEY, DATA, DIGEST)
    assert store.get(KEY, DIGEST) == DATA


def test_other_bytes_under_a_key_are_refused_and_the_first_stay(store: ArchiveStore) -> None:
    store.put(KEY, DATA, DIGEST)
    with pytest.raises(IntegrityError):
        store.put(KEY, b"other", sha256(b"other").hexdigest())
    assert store.get(KEY, DIGEST) == DATA


def test_bytes_that_are_not_their_digest_are_never_stored(store: ArchiveStore) -> None:
    with pytest.raises(IntegrityError):
        store.put(KEY, DATA, sha256(b"other").hexdigest())
    assert not store.exists(KEY)


def test_a_read_is_checked_against_the_recorded_digest(store: ArchiveStore) -> None:
    store.put(KEY, DATA, DIGEST)
    with pytest.raises(IntegrityError):
        store.get(KEY, sha256(b"other").hexdigest())
    with pytest.raises(IntegrityError):
        store.map(KEY, sha256(b"other").hexdigest())


def test_without_a_digest_it_is_read_as_it_lies_there(store: ArchiveStore) -> None:
    with pytest.raises(NotFound):
        store.read_unchecked(KEY)
    store.put(KEY, DATA, DIGEST)
    assert store.read_unchecked(KEY) == DATA


def test_what_is_not_there_is_not_found(store: ArchiveStore) -> None:
    with pytest.raises(NotFound):
        store.get(KEY, DIGEST)
    with pytest.raises(NotFound):
        store.map(KEY, DIGEST)


def test_damage_on_disk_is_found(tmp_path: Path) -> None:
    store = FilesystemArchive(tmp_path)
    store.put(KEY, DATA, DIGEST)
    path = store.path(KEY)
    damaged = bytearray(path.read_bytes())
    damaged[7] ^= 1
    path.write_bytes(damaged)
    for read in (store.get, store.map):
        with pytest.raises(IntegrityError, match="not what was recorded"):
            read(KEY, DIGEST)


@pytest.mark.parametrize("key", ["../../etc/passwd", "aa/../bb.dcm", "/aa/1.dcm", "aa/1.dcm\n", "aa/x.dcm", ""])
def test_keys_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(IntegrityError):
        FilesystemArchive(tmp_path).put(key, DATA, DIGEST)


def test_an_aborted_put_leaves_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FilesystemArchive(tmp_path)

    def fail(_fd: int) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr("gateway.archive.os.fsync", fail)
    with pytest.raises(Exception, match="could not be written"):
        store.put(KEY, DATA, DIGEST)
    assert list(store.keys()) == []
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_folder_that_another_process_made_is_made_durable_too_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FilesystemArchive(tmp_path)
    store.path(KEY).parent.mkdir()  # by one that was killed before it had synced the folder above
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr("gateway.blobs.os.fsync", fsync)
    for _ in range(2):
        store.put(KEY, DATA, DIGEST)
    assert synced.count(tmp_path.resolve()) == 1


def test_key_of_an_envelope() -> None:
    assert KEY.endswith("/2.25.1234567890.dcm")
    with pytest.raises(BadUID):
        archive_key("../1")
