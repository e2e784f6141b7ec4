"""Settings of the key ring's master: what wraps the ring's keys. Credentials are never in a repr."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings


class KeySettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    key_master: Literal["file", "vault", "kms"] = "file"
    key_master_timeout_seconds: float = Field(default=10.0, gt=0, description="one request to Vault or KMS")
    vault_addr: str = Field(default="", description="URL of Vault or OpenBao; https, http on this machine only")
    vault_namespace: str = ""
    vault_ca_file: Path | None = Field(default=None, description="PEM; default: the CAs that Python trusts")
    vault_mount: str = Field(default="transit", description="path of the Transit engine")
    vault_key: str = Field(default="palimpsest", description="name of the Transit key")
    vault_token: str = Field(default="", repr=False)
    vault_token_file: Path | None = Field(default=None, description="wins over vault_token; read anew at each login")
    vault_role_id: str = Field(default="", repr=False, description="AppRole; wins over a token")
    vault_secret_id: str = Field(default="", repr=False)
    vault_secret_id_file: Path | None = Field(default=None, description="wins over vault_secret_id")
    vault_approle_mount: str = "approle"
    kms_key: str = Field(default="alias/palimpsest", description="alias (needed to rotate), key id or ARN")
    kms_region: str = Field(default="", description="default: AWS_REGION or the AWS configuration")
    kms_endpoint: str = Field(default="", description="URL of a private endpoint; default: AWS's own")

    @field_validator("vault_ca_file", "vault_token_file", "vault_secret_id_file", mode="before")
    @classmethod
    def _no_key_file(cls, value: Any) -> Any:
        return value or None
