"""Who sends a request: the holder of a bearer token, or a browser that signed in; and how often he may.

Bearer tokens are the identity provider's; local ones (HS256, by the key ring) count in the demo profile alone. Sessions
are rows of the database (`gateway.index_session`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

import jwt

from gateway.bootstrap import Gateway
from gateway.tokens import ALGORITHM, LOCAL_ONLY, Principal, Role, TokenRefused, local_issuer, verify_token
from service.oidc import Provider, provider_of
from service.refusals import RefusalTrail
from service.throttle import Throttle

__all__ = ["Identity"]

_LOCAL: Final = local_issuer("")
DRAWN_BYTES, MARK_BYTES = 20, 12


class Identity:
    """Of one process of the service. Safe in threads; `bearer` and `session` may wait for the network or the disk."""

    def __init__(self, gateway: Gateway) -> None:
        """Raises PolicyRefused ``bad-oidc``."""
        self._gateway = gateway
        self.throttle = Throttle(gateway.settings)
        self.refusals = RefusalTrail(gateway)
        self.provider: Provider | None = provider_of(gateway.settings)

    @property
    def local(self) -> bool:
        """True if local tokens count."""
        return self._gateway.settings.profile == "demo"

    def bearer(self, token: str, address: str) -> Principal:
        """Whose token that is. Raises TokenRefused, TooMany (bad ones from one address), Unavailable.

        Good ones are never held up by others' bad ones: behind one proxy everybody has the same address.
        """
        try:
            return self.verified(token)
        except TokenRefused as error:
            self.refuse(error.reason, address)
            raise

    def refuse(self, reason: str, address: str, who: str = "") -> None:
        """A token, sign-in or role was refused: count it. Raises TooMany."""
        self.refusals.refuse_login(reason, address, who)
        self.throttle.count("refused", who or address)

    def verified(self, token: str) -> Principal:
        """The same; nothing is counted."""
        if self.provider is None or (self.local and _algorithm(token) == ALGORITHM):
            return verify_token(self._gateway, token)
        return self.provider.machine(token)

    def local_token(self, token: str, address: str) -> Principal:
        """Whose local token is pasted into the form. Raises as `bearer`."""
        if not self.local:
            raise TokenRefused("local-token", LOCAL_ONLY)
        try:
            return verify_token(self._gateway, token)
        except TokenRefused as error:
            self.refuse(error.reason, address)
            raise

    def new_cookie(self) -> str:
        """A session's value: 20 random bytes and 12 of their HMAC, so that a guessed one costs the database nothing."""
        drawn = secrets.token_bytes(DRAWN_BYTES)
        return _text(drawn + self._mark(self._gateway.keys.token_key()[1], drawn))

    def made(self, cookie: str) -> bool:
        """Whether `new_cookie` made it, under a key of this ring."""
        try:
            value = base64.b64decode(f"{cookie}=", b"-_", validate=True)
        except (binascii.Error, ValueError):
            return False
        drawn, mark = value[:DRAWN_BYTES], value[DRAWN_BYTES:]
        return any(hmac.compare_digest(mark, self._mark(key, drawn)) for key in self._gateway.keys.token_keys())

    def _mark(self, key: bytes, drawn: bytes) -> bytes:
        return hmac.digest(key, b"session/v1:" + drawn, "sha256")[:MARK_BYTES]

    def session(self, cookie: str, *, used: bool = True) -> Principal | None:
        """Who signed in; None for a session that is over, or whose issuer's word counts no longer.

        used: by a person, whose session does not go idle then.
        """
        settings = self._gateway.settings
        if not self.made(cookie):
            return None
        row = self._gateway.index.session_of(cookie, settings.session_idle_seconds, used=used)
        if row is None:
            return None
        if row.issuer.startswith(_LOCAL):  # rotating the token key ends what it signed
            if not self.local or row.issuer != local_issuer(self._gateway.keys.token_key()[0]):
                return None
        elif row.issuer != settings.oidc_issuer:
            return None
        return Principal(row.subject, frozenset(map(Role, row.roles)), row.issuer, row.expires_at)

    def csrf(self, cookie: str) -> str:
        """The value that forms and scripts of a session's pages send with what they change (hex)."""
        return self._signed("csrf/v2", cookie)

    def login_key(self) -> str:
        """What signs the state of a sign-in that is under way (hex)."""
        return self._signed("login/v1", "")

    def _signed(self, purpose: str, what: str) -> str:
        _, key = self._gateway.keys.token_key()
        return hmac.new(key, f"{purpose}:{what}".encode(), hashlib.sha256).hexdigest()


def _text(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _algorithm(token: str) -> str:
    try:
        return str(jwt.get_unverified_header(token).get("alg"))
    except jwt.PyJWTError:
        return ""
