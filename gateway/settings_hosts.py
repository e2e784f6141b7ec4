"""Settings of a gateway on several hosts: where the archive is, how the broker is reached, how many serve HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from gateway.destination import Destination


class HostSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    archive_s3: Destination | None = Field(
        default=None,
        description="archive in a bucket instead of <home>/archive: JSON, the fields of a destination of kind s3",
    )
    http_processes: int = Field(default=1, ge=1, description="processes of the API behind one port")

    redis_sentinel_master: str = Field(default="mymaster", description="by which name the Sentinels know the master")
    redis_password: str = Field(default="", repr=False, description="of the server; default: the URL's")
    redis_sentinel_password: str = Field(default="", repr=False, description="of the Sentinels, if they want one")
    redis_ca_file: Path | None = Field(default=None, description="PEM; default: the CAs that Python trusts")
    redis_cert_file: Path | None = Field(default=None, description="PEM chain, for mutual TLS")
    redis_key_file: Path | None = None

    @field_validator("archive_s3", mode="before")
    @classmethod
    def _bucket(cls, value: Any) -> Any:
        return {"name": "archive", **value, "kind": "s3"} if isinstance(value, dict) else value or None

    @field_validator("archive_s3", mode="after")
    @classmethod
    def _written_once(cls, value: Destination | None) -> Destination | None:
        """Between a look and a put another host may put: only the bucket can keep an object from being overwritten."""
        if value is not None and not value.conditional:
            raise ValueError("an archive needs an endpoint that honours If-None-Match: conditional cannot be false")
        return value

    @field_validator("redis_ca_file", "redis_cert_file", "redis_key_file", mode="before")
    @classmethod
    def _no_file(cls, value: Any) -> Any:
        return value or None
