"""Delivery into S3: written once, read back, and every error in its class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from gateway.errors import Unavailable
from gateway.settings import Destination, Settings, load_settings
from worker.forward_s3 import S3Sender, classify_s3
from worker.sender import Delivery

KEY = "ab/1.2.3.dcm"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with mock_aws():
        client = boto3.client("s3", region_name="eu-central-1")
        client.create_bucket(Bucket="images", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        yield client


@pytest.fixture
def quick(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path, network_timeout_seconds=60.0)


def place(**more: Any) -> Destination:
    return Destination(
        name="lake", kind="s3", **({"bucket": "images", "prefix": "dicom/", "region": "eu-central-1"} | more)
    )


def test_an_object_is_put_once_and_read_back(bucket: Any, quick: Settings) -> None:
    with S3Sender(quick, place(sse="AES256")) as sender:
        assert sender.send(KEY, b"envelope") == Delivery("done", "read-back")
        assert sender.send(KEY, b"envelope") == Delivery("done", "already-there")
        assert sender.send(KEY, b"another") == Delivery("permanent", "other-bytes-there")
        assert sender.read(KEY, 100) == b"envelope" and sender.read("ab/none.dcm", 100) is None
    kept = bucket.get_object(Bucket="images", Key="dicom/" + KEY)
    assert kept["Body"].read() == b"envelope"
    assert (kept["ContentType"], kept["ServerSideEncryption"]) == ("application/dicom", "AES256")
    with S3Sender(quick, place()) as sender:
        assert sender.remove(KEY)
    assert "Contents" not in bucket.list_objects_v2(Bucket="images")


def test_the_put_is_conditional_so_that_of_two_writers_one_wins(bucket: Any, quick: Settings) -> None:
    with S3Sender(quick, place()) as sender:
        calls: list[dict[str, Any]] = []
        put = sender._client.put_object

        def raced(**given: Any) -> Any:
            calls.append(given)
            bucket.put_object(Bucket="images", Key=given["Key"], Body=b"of the other")
            return put(**given)

        sender._client.put_object = raced
        assert sender.send(KEY, b"ours") == Delivery("retry", "read-back-differs")
        assert calls[0]["IfNoneMatch"] == "*"
        sender._client.put_object = put
        assert sender.send(KEY, b"ours") == Delivery("permanent", "other-bytes-there")
    assert bucket.get_object(Bucket="images", Key="dicom/" + KEY)["Body"].read() == b"of the other"


def test_a_success_code_is_no_proof(bucket: Any, quick: Settings) -> None:
    with S3Sender(quick, place(conditional=False)) as sender:
        sender._client.put_object = lambda **_: {"ResponseMetadata": {"HTTPStatusCode": 200}}
        assert sender.send(KEY, b"envelope") == Delivery("retry", "read-back-differs")


def test_what_the_endpoint_refuses_has_its_class(bucket: Any, quick: Settings) -> None:
    with S3Sender(quick, place(bucket="missing")) as sender:
        assert sender.send(KEY, b"envelope") == Delivery("down", "no-bucket")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("AccessDenied", 403, ("down", "access-denied")),
        ("Odd", 401, ("down", "access-denied")),
        ("SlowDown", 503, ("down", "too-many-requests")),
        ("InternalError", 500, ("retry", "http-500")),
        ("Odd", 503, ("down", "http-503")),
        ("EntityTooLarge", 400, ("permanent", "too-large-for-peer")),
        ("NotImplemented", 501, ("down", "conditional-put-unsupported")),
        ("ConditionalRequestConflict", 409, ("retry", "conditional-conflict")),
        ("Odd", 400, ("permanent", "http-400")),
    ],
)
def test_every_error_code_has_its_class(code: str, status: int, expected: tuple[str, str]) -> None:
    found = classify_s3(code, status)
    assert (found.outcome, found.reason) == expected


def test_an_endpoint_that_nobody_serves_is_down(quick: Settings, tmp_path: Path, nobody_port: int) -> None:
    for name in ("access", "secret"):
        (tmp_path / name).write_text("testing\n")
    keys = {"access_key_file": tmp_path / "access", "secret_key_file": tmp_path / "secret"}
    there = place(endpoint_url=f"http://127.0.0.1:{nobody_port}", **keys)
    with S3Sender(quick, there) as sender:
        assert sender.send(KEY, b"envelope") == Delivery("down", "unreachable")
    (tmp_path / "secret").unlink()
    with pytest.raises(Unavailable, match="cannot be read"):
        S3Sender(quick, there)
