"""Settings of the HTTP side: who may come in, over what, how often. Secrets are never in a repr."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

#: Fields that hold secrets: each may also come from the file that PALIMPSEST_<NAME>_FILE names (Docker secrets).
SECRETS: Final = ("database_url", "redis_url", "redis_password", "redis_sentinel_password", "oidc_client_secret")
#: Signatures by private keys (RFC 7518, RFC 8037). None and HMAC are no choice: a public key would be their secret.
SIGNATURES: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
_RATE: Final = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour)")


class AccessSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535)
    http_tls_cert: Path | None = Field(default=None, description="PEM chain: HTTPS is served; read again if changed")
    http_tls_key: Path | None = Field(default=None, description="PEM private key of it, without a passphrase")
    http_ca_file: Path | None = Field(
        default=None, description="PEM: who signed it, for our own command line; default: the CAs that Python trusts"
    )
    http_proxy: Literal["", "trusted"] = Field(
        default="", description="'trusted': a reverse proxy ends TLS; its X-Forwarded-For and -Proto are believed"
    )
    http_proxy_addresses: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1", "::1"), description="comma-separated addresses or networks of that proxy"
    )
    http_public_url: str = Field(
        default="", description="as browsers see us, without a path: where an identity provider sends them back to"
    )
    session_seconds: int = Field(default=12 * 3600, ge=60, description="then a browser signs in again")
    session_idle_seconds: int = Field(default=3600, ge=60, description="without a request: then, too")

    oidc_issuer: str = Field(default="", description="URL of the identity provider; https, http on this machine only")
    oidc_client_id: str = ""
    oidc_client_secret: str = Field(default="", repr=False, description="empty: a public client, PKCE alone")
    oidc_scopes: str = Field(default="openid", description="asked for, separated by spaces")
    oidc_audience: str = Field(default="", description="`aud` of machines' access tokens; default: the client id")
    oidc_subject_claim: str = Field(default="sub", description="the name in the audit trail; must be unique and stay")
    oidc_roles_claims: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("roles",), description="comma-separated claims with roles, groups or scopes; a path has dots"
    )
    oidc_roles: dict[str, str] = Field(
        default_factory=dict, description='JSON: {"their group": "our role"}; empty: they are called as ours'
    )
    oidc_algorithms: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("RS256", "PS256", "ES256", "ES384", "EdDSA"), description="comma-separated; no other is looked at"
    )
    oidc_leeway_seconds: int = Field(default=30, ge=0, le=300, description="that the clocks may differ")
    oidc_ca_file: Path | None = Field(default=None, description="PEM; default: the CAs that Python trusts")

    rate_requests: str = Field(default="30000/minute", description="of one token, session or, without one, address")
    rate_logins: str = Field(default="20/minute", description="attempts to sign in from one address")
    rate_refused: str = Field(default="60/minute", description="bad tokens from one address that are answered with 401")

    @field_validator("http_tls_cert", "http_tls_key", "http_ca_file", "oidc_ca_file", mode="before")
    @classmethod
    def _no_http_file(cls, value: Any) -> Any:
        return value or None

    @field_validator("http_proxy_addresses", "oidc_algorithms", "oidc_roles_claims", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("http_proxy_addresses", mode="after")
    @classmethod
    def _proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(ip_network(each, strict=False).prefixlen == 0 for each in value):
            raise ValueError("a network of all addresses would let everybody say where he comes from")
        return value

    @field_validator("oidc_algorithms", mode="after")
    @classmethod
    def _signatures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not set(value) <= SIGNATURES:
            raise ValueError(f"of these: {', '.join(sorted(SIGNATURES))}")
        return value

    @field_validator("http_public_url", "oidc_issuer", mode="after")
    @classmethod
    def _safe_url(cls, value: str) -> str:
        if value and not secure_url(value):
            raise ValueError("an https URL (http on this machine only)")
        return value

    @field_validator("http_public_url", mode="after")
    @classmethod
    def _origin(cls, value: str) -> str:
        if urlsplit(value).path not in ("", "/") or urlsplit(value).query:
            raise ValueError("scheme, host and port, without a path")
        return value.rstrip("/")

    @field_validator("oidc_roles", mode="after")
    @classmethod
    def _our_roles(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = set(value.values()) - {"clinician", "admin", "auditor", "service"}
        if unknown:
            raise ValueError(f"no role of ours: {', '.join(sorted(unknown))}")
        return value

    @field_validator("rate_requests", "rate_logins", "rate_refused", mode="after")
    @classmethod
    def _rate(cls, value: str) -> str:
        if not _RATE.fullmatch(value):
            raise ValueError("a rate is COUNT/second, COUNT/minute or COUNT/hour")
        return value

    @property
    def listens_https(self) -> bool:
        """True if this process itself ends TLS."""
        return self.http_tls_cert is not None

    @property
    def http_loopback(self) -> bool:
        """True if the HTTP port can be reached from this machine only."""
        return is_loopback(self.http_host)

    @property
    def public_url(self) -> str:
        """Scheme, host and port under which browsers reach us."""
        if self.http_public_url:
            return self.http_public_url
        host = f"[{self.http_host}]" if ":" in self.http_host else self.http_host
        return f"{'https' if self.listens_https else 'http'}://{host}:{self.http_port}"

    @property
    def audience(self) -> str:
        """What a machine's access token must be meant for."""
        return self.oidc_audience or self.oidc_client_id


def is_loopback(host: str) -> bool:
    """True for localhost and the loopback addresses."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def secure_url(url: str) -> bool:
    """True for https, and for http on this machine, where nobody else listens in; never with credentials in it."""
    parts = urlsplit(url)
    if parts.username or parts.password or not parts.hostname:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
