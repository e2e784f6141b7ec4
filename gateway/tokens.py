"""Local bearer tokens: short signed statements "this subject has this role until then" (JWT, RFC 7519, HS256).

For the demo profile alone: whoever reads the key ring makes himself anybody. Elsewhere an identity provider says who it
is (`service.oidc`). The signing key is the key ring's current token key; its id rides in the header. Rotating it ends
every local token at once.
"""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import jwt

from gateway.errors import PalimpsestError, PolicyRefused

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

__all__ = ["LOCAL_ONLY", "Principal", "Role", "TokenRefused", "local_issuer", "mint_token", "verify_token"]

ISSUER: Final = "palimpsest"
ALGORITHM: Final = "HS256"
LEEWAY_SECONDS: Final = 5
LOCAL_ONLY: Final = (
    "Local tokens count in the demo profile only. Name the hospital's identity provider (OpenID Connect): "
    "PALIMPSEST_OIDC_ISSUER, PALIMPSEST_OIDC_CLIENT_ID, PALIMPSEST_OIDC_CLIENT_SECRET_FILE; docs/access.md says how."
)
MAX_TTL_SECONDS: Final = 366 * 24 * 3600
_SUBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")


class Role(StrEnum):
    """Who asks over HTTP. What each may do is one table, `service.access.RULES`."""

    CLINICIAN = "clinician"  # finds and reads images
    ADMIN = "admin"  # runs the gateway; sees no image
    AUDITOR = "auditor"  # reads the audit trail
    SERVICE = "service"  # a machine: stores, finds and reads


@dataclass(frozen=True, slots=True)
class Principal:
    """Who was verified. issuer: whose word that is; until: seconds since the epoch, when that word ends."""

    subject: str
    roles: frozenset[Role]
    issuer: str
    until: float


class TokenRefused(PalimpsestError):
    """No valid token: missing, malformed, forged, expired or signed by a key that was rotated away."""

    http_status = 401
    dimse_status = 0x0124
    title = "Not authorized"


def mint_token(gw: Gateway, role: str, subject: str, ttl: float | None = None) -> str:
    """A signed token for `subject` in `role`, valid for `ttl` seconds (default: settings.token_ttl_seconds).

    Raises PolicyRefused outside the demo profile, on an unknown role, a subject outside [A-Za-z0-9_.@+-]{1,64}, or a
    ttl outside one second to a year.
    """
    if gw.settings.profile != "demo":
        raise PolicyRefused("local-token", LOCAL_ONLY)
    if role not in list(Role):
        raise PolicyRefused("unknown-role", f"A role is one of {', '.join(Role)}.")
    if not _SUBJECT.fullmatch(subject):
        raise PolicyRefused("bad-subject", "A subject is 1 to 64 letters, digits or _.@+-.")
    seconds = gw.settings.token_ttl_seconds if ttl is None else ttl
    if not 1 <= seconds <= MAX_TTL_SECONDS:
        raise PolicyRefused("bad-ttl", "A token lives for one second to one year.")
    key_id, key = gw.keys.token_key()
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": subject,
        "role": str(role),
        "iat": now,
        "exp": now + int(seconds),
        "jti": uuid.uuid4().hex,
    }
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": key_id})


def verify_token(gw: Gateway, token: str) -> Principal:
    """The principal a token speaks for. Raises TokenRefused (`token-expired`, `token-invalid`, and outside the demo
    profile `local-token`), saying no more than that.
    """
    if gw.settings.profile != "demo":
        raise TokenRefused("local-token", LOCAL_ONLY)
    key_id, key = gw.keys.token_key()
    try:
        if jwt.get_unverified_header(token).get("kid") != key_id:
            raise TokenRefused("token-invalid", "The token was not signed by this gateway's current key.")
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=ISSUER,
            issuer=ISSUER,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iat", "sub", "jti"]},
        )
    except jwt.ExpiredSignatureError:
        raise TokenRefused("token-expired", "The token has expired.") from None
    except jwt.InvalidTokenError:
        raise TokenRefused("token-invalid", "The token is not valid.") from None
    role = claims.get("role")
    if role not in list(Role):
        raise TokenRefused("token-invalid", "The token names no known role.")
    return Principal(claims["sub"], frozenset({Role(role)}), local_issuer(key_id), float(claims["exp"]))


def local_issuer(key_id: str) -> str:
    """Whose word a local token is: that of the key which signed it."""
    return f"local:{key_id}"
