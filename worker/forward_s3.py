"""Delivery into an S3 bucket: conditional put, then read back and compared, because a success code proves nothing.

Write-once by If-None-Match (RFC 9110 13.1.2) and by a look beforehand, for there are endpoints that ignore the header.
boto3 retries nothing: attempts are counted, and waited for, by the forwarder.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from types import TracebackType
from typing import Any, Final, Self

from gateway.s3 import MISSING, s3_client, s3_error
from gateway.settings import Destination, Settings
from worker.sender import Delivery, Outcome

__all__ = ["S3Sender", "classify_s3"]

CHUNK: Final = 1 << 20

#: Error codes of S3 (API reference, "Error responses"); what is not listed goes by its HTTP status.
S3_CLASSES: Final[dict[str, tuple[Outcome, str]]] = {
    "AccessDenied": ("down", "access-denied"),
    "403": ("down", "access-denied"),
    "InvalidAccessKeyId": ("down", "access-denied"),
    "SignatureDoesNotMatch": ("down", "access-denied"),
    "ExpiredToken": ("down", "access-denied"),
    "RequestTimeTooSkewed": ("down", "clock-differs"),
    "NoSuchBucket": ("down", "no-bucket"),
    "PermanentRedirect": ("down", "other-region"),
    "AuthorizationHeaderMalformed": ("down", "other-region"),
    "NotImplemented": ("down", "conditional-put-unsupported"),
    "KMS.DisabledException": ("down", "encryption-key"),
    "KMS.NotFoundException": ("down", "encryption-key"),
    "EntityTooLarge": ("permanent", "too-large-for-peer"),
    "InvalidArgument": ("permanent", "peer-bad-request"),
    "InvalidRequest": ("permanent", "peer-bad-request"),
    "KeyTooLongError": ("permanent", "peer-bad-request"),
    "SlowDown": ("down", "too-many-requests"),
    "Throttling": ("down", "too-many-requests"),
    "ServiceUnavailable": ("down", "peer-unavailable"),
    "ConditionalRequestConflict": ("retry", "conditional-conflict"),
    "QuotaExceeded": ("down", "peer-out-of-resources"),
}


def classify_s3(code: str, status: int) -> Delivery:
    """The delivery that an error of S3 means, by its code, else by its HTTP status."""
    if code in S3_CLASSES:
        return Delivery(*S3_CLASSES[code])
    if status in (401, 403):
        return Delivery("down", "access-denied")
    if status == 429 or status >= 500:
        return Delivery("down" if status in (429, 502, 503, 504, 507) else "retry", f"http-{status}")
    return Delivery("permanent", f"http-{status}")


class S3Sender:
    """One bucket under one prefix."""

    def __init__(self, settings: Settings, destination: Destination) -> None:
        """Raises Unavailable ``boto3-missing``, ``credential-unreadable``."""
        self._destination = destination
        self._client = s3_client(settings, destination)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def accepts(self, sop_class: str, syntaxes: Sequence[str]) -> Sequence[str]:
        """All: an object store reads nothing."""
        return syntaxes

    def send(self, name: str, part10: bytes) -> Delivery:
        """Put one file under <prefix><name>; the same bytes again are a success, other bytes are refused."""
        from botocore.exceptions import BotoCoreError, ClientError

        key = self.key(name)
        try:
            there = self._digest(key, len(part10))
            if there is None:
                there = self._put(key, part10)
                stored = "read-back"
            else:
                stored = "already-there"
        except ClientError as error:
            return classify_s3(*s3_error(error))
        except BotoCoreError as error:
            credentials = "Credential" in type(error).__name__
            return Delivery("down", "no-credentials" if credentials else "unreachable")
        if there == sha256(part10).hexdigest():
            return Delivery("done", stored)
        return (
            Delivery("permanent", "other-bytes-there")
            if stored != "read-back"
            else Delivery("retry", "read-back-differs")
        )

    def key(self, name: str) -> str:
        """The key of a file."""
        return self._destination.prefix + name

    def read(self, name: str, limit: int) -> bytes | None:
        """The file, None if it is not there; at most `limit` bytes of it. Raises botocore's errors."""
        from botocore.exceptions import ClientError

        try:
            body = self._client.get_object(Bucket=self._destination.bucket, Key=self.key(name))["Body"]
        except ClientError as error:
            if s3_error(error)[0] in MISSING:
                return None
            raise
        with body:
            return bytes(body.read(limit))

    def remove(self, name: str) -> bool:
        """Take a file away, for what the probe put there. True if the endpoint says so."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.delete_object(Bucket=self._destination.bucket, Key=self.key(name))
        except (ClientError, BotoCoreError):
            return False
        return True

    def _put(self, key: str, part10: bytes) -> str | None:
        """Digest of what lies there afterwards."""
        from botocore.exceptions import ClientError

        extra: dict[str, Any] = {"IfNoneMatch": "*"} if self._destination.conditional else {}
        if self._destination.sse:
            extra["ServerSideEncryption"] = self._destination.sse
        if self._destination.sse_kms_key:
            extra["SSEKMSKeyId"] = self._destination.sse_kms_key
        try:
            self._client.put_object(
                Bucket=self._destination.bucket, Key=key, Body=part10, ContentType="application/dicom", **extra
            )
        except ClientError as error:
            if s3_error(error)[1] != 412:  # 412: another was quicker; what lies there decides
                raise
        return self._digest(key, len(part10))

    def _digest(self, key: str, size: int) -> str | None:
        """SHA-256 of what lies under a key, None for nothing; of at most one byte more than it should have."""
        from botocore.exceptions import ClientError

        try:
            body = self._client.get_object(Bucket=self._destination.bucket, Key=key)["Body"]
        except ClientError as error:
            if s3_error(error)[0] in MISSING:
                return None
            raise
        hasher, left = sha256(), size + 1
        with body:
            while left > 0 and (chunk := body.read(min(CHUNK, left))):
                hasher.update(chunk)
                left -= len(chunk)
        return hasher.hexdigest()
