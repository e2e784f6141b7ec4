"""The archive in a bucket: the same keys, objects put once by If-None-Match, and no byte given out unchecked.

S3 answers a put when the object is durable, and reads after it see it (Amazon S3 user guide, "consistency model"); an
endpoint of another vendor must do both. The success code proves nothing all the same: who archives reads back.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from gateway.archive import check_key, check_same, is_key
from gateway.blobs import CHUNK, storage_errors
from gateway.destination import Destination
from gateway.errors import IntegrityError, NotFound, OutOfResources, Unavailable
from gateway.s3 import MISSING, s3_client, s3_error
from gateway.settings import Settings

__all__ = ["S3Archive"]

EXISTS: Final = 412  # Precondition Failed (RFC 9110 15.5.13): something lies under the key
FULL: Final = frozenset({"QuotaExceeded", "EntityTooLarge"})


class S3Archive:
    """An archive under one prefix of one bucket; see ArchiveStore. Raises Unavailable while the bucket is away."""

    def __init__(self, settings: Settings, place: Destination) -> None:
        """Connects at the first use, so after a fork. `map` needs room for one object in <local>/run."""
        self._settings, self._place = settings, place

    @cached_property
    def _client(self) -> Any:
        return s3_client(self._settings, self._place)

    def put(self, key: str, data: bytes, digest: str) -> None:
        """See ArchiveStore."""
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "the bytes to archive are not what their digest says")
        if not self._put(key, data, conditional=True):
            check_same(self, key, digest)

    def get(self, key: str, digest: str) -> bytes:
        """See ArchiveStore."""
        data = self.read_unchecked(key)
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "an archive object is not what was recorded")
        return data

    def map(self, key: str, digest: str) -> memoryview:
        """See ArchiveStore. Fetched into a file that has no name any more: memory stays the system's."""
        hasher = sha256()
        with storage_errors(), tempfile.TemporaryFile(dir=self._folder) as file:
            for piece in self._pieces(key):
                hasher.update(piece)
                file.write(piece)
            if hasher.hexdigest() != digest:
                raise IntegrityError("digest-mismatch", "an archive object is not what was recorded")
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def read_unchecked(self, key: str) -> bytes:
        """See ArchiveStore."""
        return b"".join(self._pieces(key))

    def exists(self, key: str) -> bool:
        """See ArchiveStore."""
        try:
            with _errors():
                self._client.head_object(Bucket=self._place.bucket, Key=self._name(key))
        except NotFound:
            return False
        return True

    def keys(self) -> Iterator[str]:
        """See ArchiveStore. A page of a thousand at a time."""
        with _errors():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._place.bucket, Prefix=self._place.prefix):
                for found in page.get("Contents", ()):
                    key = str(found["Key"])[len(self._place.prefix) :]
                    if is_key(key):
                        yield key

    def mend(self, key: str, data: bytes, digest: str) -> None:
        """See ArchiveStore. A bucket with versions keeps what lay there."""
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch", "the bytes to archive are not what their digest says")
        try:
            self.get(key, digest)
        except (NotFound, IntegrityError):
            self._put(key, data, False)

    def ping(self) -> None:
        """See ArchiveStore: that the bucket may be listed. Raises Unavailable."""
        with _errors():
            self._client.list_objects_v2(Bucket=self._place.bucket, Prefix=self._place.prefix, MaxKeys=1)

    @property
    def _folder(self) -> Path:
        return self._settings.local_run_dir

    def _name(self, key: str) -> str:
        return self._place.prefix + check_key(key)

    def _put(self, key: str, data: bytes, conditional: bool) -> bool:
        """True if the object was made, False if something lay there already."""
        from botocore.exceptions import ClientError

        extra: dict[str, str] = {"IfNoneMatch": "*"} if conditional else {}
        if self._place.sse:
            extra["ServerSideEncryption"] = self._place.sse
        if self._place.sse_kms_key:
            extra["SSEKMSKeyId"] = self._place.sse_kms_key
        name = self._name(key)
        with _errors():
            try:
                self._client.put_object(
                    Bucket=self._place.bucket, Key=name, Body=data, ContentType="application/dicom", **extra
                )
            except ClientError as error:
                if s3_error(error)[1] != EXISTS:
                    raise
                return False
        return True

    def _pieces(self, key: str) -> Iterator[bytes]:
        with _errors():
            body = self._client.get_object(Bucket=self._place.bucket, Key=self._name(key))["Body"]
            with body:
                while piece := bytes(body.read(CHUNK)):
                    yield piece


@contextmanager
def _errors() -> Iterator[None]:
    """botocore's errors become ours; their texts, which hold addresses and key names, are not repeated."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

    try:
        yield
    except ClientError as error:
        code, status = s3_error(error)
        if code in MISSING:
            raise NotFound("not-archived", "there is no archive object of that key") from None
        if code in FULL:
            raise OutOfResources("archive-full", "the bucket takes no more") from None
        raise Unavailable("archive-unavailable", f"the bucket refused ({code or status})") from None
    except (BotoCoreError, HTTPClientError) as error:
        name = type(error).__name__
        raise Unavailable("archive-unavailable", f"the bucket cannot be reached ({name})") from None
