"""The way to a bucket, for the archive and for destinations: boto3's client as we want it, and what its errors say.

boto3 retries nothing: whoever calls counts attempts and waits. boto3 is an extra and is imported when it is used.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.destination import Destination
from gateway.errors import Unavailable
from gateway.settings import Settings, credential

__all__ = ["MISSING", "s3_client", "s3_error"]

#: Error codes of "there is no such object" (API reference, "Error responses"; HEAD has no body and says 404).
MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})


def s3_client(settings: Settings, place: Destination) -> Any:
    """A client for that bucket; safe in threads, not over a fork.

    Raises Unavailable ``boto3-missing``, ``credential-unreadable``.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise Unavailable("boto3-missing", "S3 needs boto3: pip install 'palimpsest[aws]'") from None
    timeout = settings.network_timeout_seconds
    config = Config(
        connect_timeout=min(timeout, 10.0),
        read_timeout=timeout,
        retries={"total_max_attempts": 1},
        # our own digest is the proof; other vendors' endpoints refuse the checksums that boto3 adds by itself
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if place.endpoint_url else None,
    )
    given = {
        "endpoint_url": place.endpoint_url or None,
        "region_name": place.region or None,
        "aws_access_key_id": credential(place, "access_key") or None,
        "aws_secret_access_key": credential(place, "secret_key") or None,
        "verify": str(place.ca_file) if place.ca_file else None,
    }
    return boto3.client("s3", config=config, **{name: value for name, value in given.items() if value})


def s3_error(error: Any) -> tuple[str, int]:
    """(code, HTTP status) of a botocore ClientError."""
    response = error.response
    return str(response.get("Error", {}).get("Code", "")), int(
        response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    )
