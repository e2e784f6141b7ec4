"""Settings of the audit trail: signed heads, and its export to a syslog server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings


class AuditSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    audit_heads_folder: Path | None = Field(
        default=None, description="where signed heads are appended, best on another disk; default <home>/audit-heads"
    )
    audit_head_seconds: float = Field(default=60.0, gt=0, description="between two signed heads")
    audit_source_id: str = Field(default="", max_length=64, description="Audit Source ID; default: the AE title")
    audit_site_id: str = Field(default="", max_length=64, description="Audit Enterprise Site ID")
    audit_syslog_host: str = Field(default="", description="syslog server (RFC 5424 over TLS); empty: no export")
    audit_syslog_port: int = Field(default=6514, ge=1, le=65535)
    audit_syslog_ca: Path | None = Field(default=None, description="PEM; who may vouch for the server's certificate")
    audit_syslog_cert: Path | None = Field(default=None, description="PEM; our certificate, for mutual TLS")
    audit_syslog_key: Path | None = Field(default=None, description="PEM; its private key")
    audit_syslog_name: str = Field(default="", description="name in the server's certificate; default: the host")
    audit_syslog_close: Literal["close-notify", "tcp"] = Field(
        default="close-notify",
        description="what says that all arrived; 'tcp' for servers that only close the connection (rsyslog's gtls)",
    )
    audit_syslog_msgid: Literal["DICOM+RFC3881", "IHE+RFC-3881"] = "DICOM+RFC3881"

    @field_validator("audit_heads_folder", "audit_syslog_ca", "audit_syslog_cert", "audit_syslog_key", mode="before")
    @classmethod
    def _no_audit_file(cls, value: Any) -> Any:
        return value or None

    @field_validator("audit_heads_folder", mode="after")
    @classmethod
    def _absolute_audit_folder(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _complete_syslog(self) -> Self:
        if self.audit_syslog_host and self.audit_syslog_ca is None:
            raise ValueError("PALIMPSEST_AUDIT_SYSLOG_CA is needed: nobody's certificate could be checked without it")
        if (self.audit_syslog_cert is None) != (self.audit_syslog_key is None):
            raise ValueError("PALIMPSEST_AUDIT_SYSLOG_CERT and _KEY go together")
        return self
