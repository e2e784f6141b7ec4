"""What every ArchiveStore does: folder, bucket and the in-memory twin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from gateway.archive import ArchiveStore, FilesystemArchive, archive_key
from gateway.archive_s3 import S3Archive
from gateway.bootstrap import open_archive
from gateway.errors import BadUID, IntegrityError, NotFound, Unavailable
from gateway.settings import load_settings
from tests.fakes import MemoryArchive
from tests.running import free_port

KEY = archive_key("2.25.1234567890")
DATA = b"an envelope" * 100
DIGEST = sha256(DATA).hexdigest()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        client = boto3.client("s3", region_name="eu-central-1")
        client.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield client


def s3_archive(home: Path, **more: Any) -> S3Archive:
    place = {"bucket": "images", "prefix": "archive/", "region": "eu-central-1"} | more
    settings = load_settings(home=home, archive_s3=place, network_timeout_seconds=5.0)
    settings.local_run_dir.mkdir(parents=True, exist_ok=True)
    store = open_archive(settings)
    assert isinstance(store, S3Archive)
    return store


@pytest.fixture(params=["filesystem", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArchiveStore:
    if request.param == "memory":
        return MemoryArchive()
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return s3_archive(tmp_path)
    (tmp_path / "archive").mkdir()
    return FilesystemArchive(tmp_path / "archive")


def test_a_bucket_that_cannot_put_once_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="If-None-Match"):
        s3_archive(tmp_path, conditional=False)


def test_put_then_get(store: ArchiveStore) -> None:
    assert not store.exists(KEY)
    store.put(KEY, DATA, DIGEST)
    assert store.exists(KEY)
    assert store.get(KEY, DIGEST) == DATA
    assert store.map(KEY, DIGEST) == DATA
    assert list(store.keys()) == [KEY]
    store.ping()


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


def test_a_bucket_lists_more_than_a_page_and_nothing_foreign(bucket: Any, tmp_path: Path) -> None:
    store = s3_archive(tmp_path)
    keys = {archive_key(f"2.25.{number}") for number in range(1005)}
    for key in keys:
        bucket.put_object(Bucket="images", Key="archive/" + key, Body=b"")
    for name in ("archive/aa/notes.txt", "other/aa/1.2.dcm", "archive/x/aa/1.2.dcm"):
        bucket.put_object(Bucket="images", Key=name, Body=b"")
    assert set(store.keys()) == keys


def test_only_what_is_damaged_or_gone_is_mended(store: ArchiveStore) -> None:
    store.put(KEY, DATA, DIGEST)
    store.mend(KEY, DATA, DIGEST)
    assert store.get(KEY, DIGEST) == DATA
    with pytest.raises(IntegrityError):
        store.mend(KEY, b"other", DIGEST)
    assert store.get(KEY, DIGEST) == DATA
    other = archive_key("2.25.77")
    store.mend(other, DATA, DIGEST)
    assert store.get(other, DIGEST) == DATA and sorted(store.keys()) == sorted([KEY, other])


def test_a_damaged_file_is_mended_and_kept_aside(tmp_path: Path) -> None:
    store = FilesystemArchive(tmp_path)
    store.put(KEY, DATA, DIGEST)
    store.path(KEY).chmod(0o600)
    store.path(KEY).write_bytes(b"rot")
    store.mend(KEY, DATA, DIGEST)
    assert store.get(KEY, DIGEST) == DATA and list(store.keys()) == [KEY]
    assert [path.read_bytes() for path in store.path(KEY).parent.glob("*.damaged-*")] == [b"rot"]


def test_of_two_hosts_that_put_at_once_one_wins(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one's bytes appear between its look and its put: If-None-Match decides."""
    first, second = s3_archive(tmp_path), s3_archive(tmp_path)
    first.put(KEY, DATA, DIGEST)
    monkeypatch.setattr(S3Archive, "exists", lambda _self, _key: False)
    second.put(KEY, DATA, DIGEST)
    with pytest.raises(IntegrityError, match="other bytes"):
        second.put(KEY, b"other", sha256(b"other").hexdigest())
    assert first.get(KEY, DIGEST) == DATA


def test_a_damaged_object_of_a_bucket_is_found_and_mended(bucket: Any, tmp_path: Path) -> None:
    store = s3_archive(tmp_path, sse="AES256")
    store.put(KEY, DATA, DIGEST)
    bucket.put_object(Bucket="images", Key="archive/" + KEY, Body=DATA[:-1])
    for read in (store.get, store.map):
        with pytest.raises(IntegrityError, match="not what was recorded"):
            read(KEY, DIGEST)
    with pytest.raises(IntegrityError):
        store.mend(KEY, b"other", DIGEST)
    store.mend(KEY, DATA, DIGEST)
    assert store.get(KEY, DIGEST) == DATA
    assert bucket.get_object(Bucket="images", Key="archive/" + KEY)["ServerSideEncryption"] == "AES256"
    assert not list(tmp_path.rglob("*.dcm")) and not list((tmp_path / "run").iterdir())


def test_a_bucket_that_is_away_or_refuses_is_unavailable_and_no_missing_object(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = s3_archive(tmp_path, endpoint_url=f"http://127.0.0.1:{free_port()}")
    for call in (nowhere.ping, lambda: nowhere.get(KEY, DIGEST), lambda: nowhere.put(KEY, DATA, DIGEST)):
        with pytest.raises(Unavailable, match="cannot be reached"):
            call()
    with pytest.raises(Unavailable, match="NoSuchBucket"):
        s3_archive(tmp_path, bucket="none").put(KEY, DATA, DIGEST)
    store = s3_archive(tmp_path)

    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "x")

    monkeypatch.setattr(store._client, "get_object", refuse)
    with pytest.raises(Unavailable, match="AccessDenied"):
        store.get(KEY, DIGEST)


def test_key_of_an_envelope() -> None:
    assert KEY.endswith("/2.25.1234567890.dcm")
    with pytest.raises(BadUID):
        archive_key("../1")
