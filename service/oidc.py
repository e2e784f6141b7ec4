"""The hospital's identity provider (OpenID Connect): what it says of itself, its keys, and the tokens it signs.

Discovery (OpenID Connect Discovery 1.0) and keys (RFC 7517) are fetched when first needed and kept for an hour. A key
that nobody heard of makes us look again, at most twice a minute: keys rotate, and forged tokens name any key they like.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import threading
import time
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote_plus

import httpx
import jwt

from gateway.errors import PolicyRefused, Unavailable
from gateway.settings import Settings
from gateway.settings_access import secure_url
from gateway.tokens import Principal, Role, TokenRefused

__all__ = ["Provider", "principal_from", "provider_of"]

#: A whole answer, from looking its host up to the last byte; a server that sends a byte now and then gains nothing.
TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 1 << 20
FRESH_SECONDS: Final = 3600.0
#: While the provider does not answer, its last known keys still count for so long.
STALE_SECONDS: Final = 24 * 3600.0
LOOK_AGAIN_SECONDS: Final = 30.0
MAX_SUBJECT: Final = 64
MAX_TOKEN: Final = 16 << 10
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]{1,255}")

log = logging.getLogger(__name__)


class Provider:
    """One identity provider. Safe in threads; all methods may wait for the network, for `TIMEOUT_SECONDS` each."""

    def __init__(self, settings: Settings) -> None:
        """Fetches nothing. Raises PolicyRefused ``bad-oidc``: no client id, or a CA file that holds none."""
        if not settings.oidc_client_id:
            raise PolicyRefused("bad-oidc", "PALIMPSEST_OIDC_ISSUER needs PALIMPSEST_OIDC_CLIENT_ID beside it")
        self.settings = settings
        try:
            ca_file = settings.oidc_ca_file
            self._trust: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        except OSError as error:  # ssl.SSLError is one
            raise PolicyRefused(
                "bad-oidc", f"PALIMPSEST_OIDC_CA_FILE cannot be used ({type(error).__name__})"
            ) from None
        self._lock = threading.Lock()
        self._keys: dict[str, dict[str, Any]] = {}
        self._about: dict[str, Any] = {}
        self._fetched = -STALE_SECONDS
        self._looked = -STALE_SECONDS

    def metadata(self) -> Mapping[str, Any]:
        """What the provider says of itself. Raises Unavailable ``identity-provider``."""
        self._refresh(FRESH_SECONDS)
        return self._about

    def endpoint(self, name: str) -> str:
        """URL of one of its endpoints, '' if it has none. Raises Unavailable."""
        url = self.metadata().get(name)
        return url if isinstance(url, str) and secure_url(url) else ""

    def person(self, id_token: str, nonce: str, access_token: str) -> Principal:
        """Who signed in (OpenID Connect Core 3.1.3.7): signature, issuer, audience, time and nonce must be right.

        Roles stand in the ID token, or else in what the UserInfo endpoint says. Raises TokenRefused, Unavailable.
        """
        client = self.settings.oidc_client_id
        claims = self._claims(id_token, client, ("exp", "iat", "sub"))
        if claims.get("nonce") != nonce:
            raise TokenRefused("nonce", "The answer belongs to another sign-in.")
        audience = claims["aud"]
        if claims.get("azp", client) != client or (isinstance(audience, list) and set(audience) != {client}):
            raise TokenRefused("token-invalid", "The ID token is meant for another application, too.")
        if access_token and all(_claim(claims, name) is None for name in self.settings.oidc_roles_claims):
            claims = {**self._userinfo(access_token, claims["sub"]), **claims}
        return principal_from(self.settings, claims)

    def machine(self, token: str) -> Principal:
        """Who sends this access token (RFC 9068, and the older JWTs of most providers). Raises as `person`."""
        claims = self._claims(token, self.settings.audience, ("exp", "sub"))
        if "nonce" in claims:  # an ID token says who signed in somewhere; it is no permission to call us
            raise TokenRefused("token-invalid", "This is an ID token; send an access token.")
        return principal_from(self.settings, claims)

    def redeem(self, code: str, verifier: str, redirect_uri: str) -> Mapping[str, Any]:
        """Tokens for an authorization code (RFC 6749 4.1.3, RFC 7636 4.5). Raises TokenRefused, Unavailable."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        return self._token({**form, "code_verifier": verifier})

    def own_token(self) -> str:
        """An access token for ourselves (RFC 6749 4.4): what this machine's command line sends. Raises as `redeem`."""
        answer = self._token({"grant_type": "client_credentials", "scope": self.settings.oidc_scopes})
        return str(answer.get("access_token", ""))

    def _token(self, form: dict[str, str]) -> Mapping[str, Any]:
        url = self.endpoint("token_endpoint")
        if not url:
            raise Unavailable("identity-provider", "The identity provider names no token endpoint.")
        client, secret = self.settings.oidc_client_id, self.settings.oidc_client_secret
        headers, auth = {"Accept": "application/json"}, None
        methods = self.metadata().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if not secret:
            form["client_id"] = client
        elif "client_secret_post" in methods:  # first: not all agree how a header's secret is encoded
            form |= {"client_id": client, "client_secret": secret}
        else:
            auth = httpx.BasicAuth(quote_plus(client), quote_plus(secret))  # RFC 6749 2.3.1
        status, answer = self._ask("POST", url, data=form, headers=headers, auth=auth)
        if status != 200:
            log.warning("the identity provider gave no token", extra={"status": status})
            raise TokenRefused("no-token", "The identity provider did not accept the sign-in.")
        return answer

    def _userinfo(self, access_token: str, subject: str) -> Mapping[str, Any]:
        url = self.endpoint("userinfo_endpoint")
        if not url:
            return {}
        status, answer = self._ask("GET", url, headers={"Authorization": f"Bearer {access_token}"})
        if status != 200 or answer.get("sub") != subject:  # OpenID Connect Core 5.3.2
            raise TokenRefused("userinfo", "The identity provider did not say who that is.")
        return answer

    def _claims(self, token: str, audience: str, required: tuple[str, ...]) -> dict[str, Any]:
        try:
            if len(token) > MAX_TOKEN:
                raise TokenRefused("token-invalid", "The token is too large.")
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in self.settings.oidc_algorithms:
                raise TokenRefused("token-algorithm", "The token is signed in a way that is not allowed here.")
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key(header.get("kid"), algorithm),
                algorithms=[algorithm],
                audience=audience,
                issuer=self.settings.oidc_issuer,
                leeway=self.settings.oidc_leeway_seconds,
                options={"require": [*required, "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused("token-expired", "The token has expired.") from None
        except jwt.PyJWTError:
            raise TokenRefused("token-invalid", "The token is not valid.") from None
        return claims

    def _key(self, kid: object, algorithm: str) -> jwt.PyJWK:
        """The key of that id, for that algorithm; without an id the only one there is. Raises TokenRefused."""
        self._refresh(FRESH_SECONDS)
        found = self._named(kid)
        if found is None:
            self._refresh(LOOK_AGAIN_SECONDS)
            found = self._named(kid)
        if found is None or found.get("alg", algorithm) != algorithm:
            raise TokenRefused("token-invalid", "The token was signed by no key that the identity provider has.")
        return jwt.PyJWK(found, algorithm)

    def _named(self, kid: object) -> dict[str, Any] | None:
        keys = self._keys
        if kid is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        return keys.get(kid) if isinstance(kid, str) else None

    def _refresh(self, older_than: float) -> None:
        """Fetch what was fetched longer ago. All wait for whoever fetches first; later nobody does, for where a
        provider hangs, no thread would be left for anything else.

        Raises Unavailable if there is nothing, or nothing but stale, to go by.
        """
        if time.monotonic() - self._fetched < older_than:
            return
        if not self._lock.acquire(blocking=self._looked < 0):
            if not self._keys:
                raise _unavailable("does not answer")
            return
        try:
            now = time.monotonic()
            if now - self._fetched < older_than:
                return
            if now - self._looked >= (LOOK_AGAIN_SECONDS if self._keys else TIMEOUT_SECONDS):
                try:
                    self._fetch()
                finally:  # from its end on: a deadline is as long as the pause behind it
                    self._looked = time.monotonic()
            elif not self._keys:
                raise _unavailable("did not answer a moment ago")
        except Unavailable:
            if now - self._fetched >= STALE_SECONDS:
                self._keys = {}
                raise
            log.warning("the identity provider does not answer; its last known keys count")
        finally:
            self._lock.release()

    def _fetch(self) -> None:
        issuer = self.settings.oidc_issuer
        status, about = self._ask("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")
        if status != 200 or about.get("issuer") != issuer:  # Discovery 4.3: exactly the same
            raise _unavailable("is not the one that PALIMPSEST_OIDC_ISSUER names")
        place = about.get("jwks_uri")
        if not isinstance(place, str) or not secure_url(place):
            raise _unavailable("names no keys")
        status, found = self._ask("GET", place)
        keys = found.get("keys")
        usable = [key for key in keys if _verifies(key)] if status == 200 and isinstance(keys, list) else []
        if not usable:
            raise _unavailable("has no key that can be used")
        self._keys = {str(key.get("kid")): key for key in usable}
        self._about, self._fetched = dict(about), time.monotonic()

    def _ask(self, method: str, url: str, **options: Any) -> tuple[int, Mapping[str, Any]]:
        """(status, JSON object). Raises Unavailable ``identity-provider``; no text of an answer is repeated.

        For threads. The deadline over the whole exchange takes a loop (httpx's timeouts are for each read), and one
        that goes on: a loop that is closed waits for the lookup of a name, which nothing can break off.
        """
        asked = asyncio.run_coroutine_threadsafe(self._exchange(method, url, options), _loop())
        try:
            status, data = asked.result()
            found = httpx.Response(200, content=data).json()
        except (httpx.HTTPError, TimeoutError) as error:
            raise _unavailable(f"does not answer ({type(error).__name__})") from None
        except ValueError:
            raise _unavailable("answers with something that is no JSON") from None
        if not isinstance(found, dict):
            raise _unavailable("answers with something that is no object")
        return status, found

    async def _exchange(self, method: str, url: str, options: Mapping[str, Any]) -> tuple[int, bytes]:
        """At most MAX_BYTES, as they come: what nobody asked to be compressed is not unpacked."""
        headers = {"Accept-Encoding": "identity", **options.get("headers", {})}
        data = bytearray()
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            httpx.AsyncClient(verify=self._trust, timeout=TIMEOUT_SECONDS, trust_env=False) as client,
            client.stream(method, url, **{**options, "headers": headers}) as answer,
        ):
            async for chunk in answer.aiter_raw():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise _unavailable("answers without end")
        return answer.status_code, bytes(data)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Of one thread that serves all exchanges of this process; names are looked up by threads of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="identity-provider", daemon=True).start()
    return loop


def provider_of(settings: Settings) -> Provider | None:
    """The identity provider of the settings, None without one. Raises PolicyRefused ``bad-oidc``."""
    return Provider(settings) if settings.oidc_issuer else None


def principal_from(settings: Settings, claims: Mapping[str, Any]) -> Principal:
    """Who these verified claims speak for, in which of our roles. Raises TokenRefused: a subject that is none."""
    subject = claims.get(settings.oidc_subject_claim)
    if not isinstance(subject, str) or not _PRINTABLE.fullmatch(subject):
        raise TokenRefused("token-invalid", "The token names nobody in the claim that says who it is.")
    if len(subject) > MAX_SUBJECT:  # what the audit trail has room for; still one name for one person
        subject = f"{subject[:47]}~{sha256(subject.encode()).hexdigest()[:16]}"
    return Principal(subject, _roles(settings, claims), settings.oidc_issuer, float(claims["exp"]))


def _roles(settings: Settings, claims: Mapping[str, Any]) -> frozenset[Role]:
    """A claim is a list, or text with spaces between (as `scope`, RFC 8693 4.2). All the claims count."""
    names: list[Any] = []
    for claim in settings.oidc_roles_claims:
        found = _claim(claims, claim)
        names += [*found.split(), found] if isinstance(found, str) else found if isinstance(found, list) else []
    mapped = settings.oidc_roles or {str(role): str(role) for role in Role}
    return frozenset(Role(mapped[name]) for name in names if isinstance(name, str) and name in mapped)


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of that very name, else the one at that path (`realm_access.roles`)."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _verifies(key: object) -> bool:
    """A public key for signatures (RFC 7517 4.2, 4.3); never a shared secret."""
    if not isinstance(key, dict) or key.get("kty") not in ("RSA", "EC", "OKP"):
        return False
    operations = key.get("key_ops")
    return key.get("use", "sig") == "sig" and (not isinstance(operations, list) or "verify" in operations)


def _unavailable(why: str) -> Unavailable:
    return Unavailable("identity-provider", f"The identity provider {why}.")
