"""Signing in and out: by the hospital's identity provider (OpenID Connect, authorization code with PKCE), and in the
demo profile by a pasted token, too.

What a sign-in under way must remember rides in a signed cookie of its own, not in the database: anybody may begin one.
A session is a row of the database, so that signing out ends it; the browser holds random bytes and their MAC
(`Identity.new_cookie`) and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import jwt
from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import PolicyRefused, TooMany, Unavailable
from gateway.tokens import LOCAL_ONLY, Principal, Role, TokenRefused
from service.access import (
    READERS,
    RouteSpec,
    address_of,
    check_csrf,
    cookie_name,
    cookie_of,
    identity_of,
    secure_cookies,
)
from service.oidc import Provider
from service.pages import form_of, page_of, sent_from_here

__all__ = ["LOGIN", "ROUTES", "drop_cookie", "reader_of"]

LOGIN: Final = "/login"
CALLBACK: Final = "/login/callback"
SEE_OTHER: Final = 303
#: A sign-in takes no longer, second factor and lost telephone included.
STATE_SECONDS: Final = 900
STATE_COOKIE: Final = "palimpsest-login"
#: Where a sign-in may lead: pages of ours, never another host (`//host`).
_PAGE: Final = re.compile(r"/(admin|viewer)(/[A-Za-z0-9_.-]*)*(\?[\x21-\x7e]*)?")
_WATCHERS: Final = frozenset({Role.ADMIN, Role.AUDITOR})


async def login_page(request: Request) -> Response:
    """GET /login: by which way, and who is signed in already."""
    return await _form(request, request.query_params.get("next", ""))


async def _form(request: Request, after: str, status: int = 200, error: str = "") -> Response:
    identity, cookie = identity_of(request), cookie_of(request)
    known = await run_in_threadpool(identity.session, cookie) if cookie else None
    values = {
        "error": error,
        "after": _page(after),
        "start": f"/login/start?{urlencode({'next': _page(after)})}" if identity.provider else "",
        "local": identity.local,
        "nobody": "" if identity.provider or identity.local else LOCAL_ONLY,
        "known": known.subject if known else "",
        "csrf": identity.csrf(cookie) if known else "",
    }
    return page_of(request, "login.html", status, **values)


def _page(after: str) -> str:
    """The page to lead to, if it is one of ours."""
    return after if _PAGE.fullmatch(after) and "//" not in after.partition("?")[0] else ""


def _landing(principal: Principal, after: str) -> str:
    """The page that was asked for, if these roles may see it; else the first that they may."""
    mine = _page(after)
    watches, reads = principal.roles & _WATCHERS, principal.roles & READERS
    if (mine.startswith("/admin") and watches) or (mine.startswith("/viewer") and reads):
        return mine
    if Role.ADMIN in principal.roles:
        return "/admin"
    return "/viewer/" if reads else "/admin/audit"


async def login(request: Request) -> Response:
    """POST /login: a local token becomes a session. Raises PolicyRefused ``csrf``, TooMany."""
    if not sent_from_here(request):
        raise PolicyRefused("csrf", "The form was not sent by this page; reload it.")
    identity, address = identity_of(request), address_of(request)
    await run_in_threadpool(identity.throttle.count, "login", address)
    form = await form_of(request)
    after = form.get("next", "")
    try:
        principal = await run_in_threadpool(identity.local_token, form.get("token", "").strip(), address)
    except TokenRefused as error:
        return await _form(request, after, 401, error.message)
    return await _signed_in(request, principal, after, "")


async def _signed_in(request: Request, principal: Principal, after: str, hint: str) -> Response:
    """A new session and its cookie; a new value each time, so that none can be planted (session fixation)."""
    gateway: Gateway = request.app.state.gateway
    settings, cookie = gateway.settings, await run_in_threadpool(identity_of(request).new_cookie)
    seconds = settings.session_seconds
    if identity_of(request).local and not hint:
        seconds = min(seconds, max(1, int(principal.until - time.time())))
    await run_in_threadpool(
        gateway.index.session_begin, cookie, principal.subject, sorted(principal.roles), principal.issuer,
        seconds=seconds, hint=hint, address=address_of(request),
    )  # fmt: skip
    response = RedirectResponse(_landing(principal, after), SEE_OTHER)
    _set_cookie(request, response, cookie_name(request), cookie, seconds)
    return response


def _set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    """Lax, because the way back from the identity provider, and a link in another system, come from another site."""
    response.set_cookie(
        name, value, max_age=seconds, path="/", httponly=True, samesite="lax", secure=secure_cookies(request)
    )


def drop_cookie(request: Request, response: Response, name: str) -> None:
    """Have the browser forget one of our cookies."""
    response.delete_cookie(name, path="/", httponly=True, samesite="lax", secure=secure_cookies(request))


def _provider(request: Request) -> Provider:
    provider = identity_of(request).provider
    if provider is None:
        raise PolicyRefused("no-identity-provider", LOCAL_ONLY)
    return provider


async def start(request: Request) -> Response:
    """GET /login/start: to the identity provider (OpenID Connect Core 3.1.2.1, RFC 7636). Raises TooMany, Unavailable,
    PolicyRefused ``no-identity-provider``.
    """
    provider, identity = _provider(request), identity_of(request)
    await run_in_threadpool(identity.throttle.count, "login", address_of(request))
    place = await run_in_threadpool(provider.endpoint, "authorization_endpoint")
    if not place:
        raise Unavailable("identity-provider", "The identity provider names no page to sign in at.")
    names = ("state", "nonce", "verifier")
    kept: dict[str, Any] = {name: secrets.token_urlsafe(32) for name in names}
    kept |= {"next": _page(request.query_params.get("next", "")), "exp": int(time.time()) + STATE_SECONDS}
    challenge = hashlib.sha256(kept["verifier"].encode()).digest()
    query = {
        "response_type": "code",
        "client_id": provider.settings.oidc_client_id,
        "redirect_uri": provider.settings.public_url + CALLBACK,
        "scope": provider.settings.oidc_scopes,
        "state": kept["state"],
        "nonce": kept["nonce"],
        "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    response = RedirectResponse(f"{place}{'&' if '?' in place else '?'}{urlencode(query)}", SEE_OTHER)
    key = await run_in_threadpool(identity.login_key)
    _set_cookie(request, response, cookie_name(request, STATE_COOKIE), jwt.encode(kept, key, "HS256"), STATE_SECONDS)
    return response


async def callback(request: Request) -> Response:
    """GET /login/callback: back from the identity provider; the code becomes a session, or the form says why not."""
    provider, identity, address = _provider(request), identity_of(request), address_of(request)
    after = ""
    try:
        kept = await run_in_threadpool(_kept, request)
        after = kept["next"]
        principal, hint = await run_in_threadpool(_redeemed, provider, kept, dict(request.query_params))
        if not principal.roles:
            raise TokenRefused("no-role", "Your account has no role here; ask who runs the identity provider.")
        response = await _signed_in(request, principal, after, hint)
    except TokenRefused as error:
        try:
            await run_in_threadpool(identity.refuse, error.reason, address)
        except TooMany as too_many:
            error = TokenRefused(too_many.reason, too_many.message)
        response = await _form(request, after, 401, error.message)
    except Unavailable as error:
        response = await _form(request, after, 503, error.message)
    drop_cookie(request, response, cookie_name(request, STATE_COOKIE))
    return response


def _kept(request: Request) -> dict[str, Any]:
    """What this browser's sign-in remembers. Raises TokenRefused ``state``: it began none, or another, or long ago."""
    refused = TokenRefused("state", "This sign-in did not begin in this browser, or too long ago; begin again.")
    try:
        cookie = request.cookies.get(cookie_name(request, STATE_COOKIE), "")
        kept: dict[str, Any] = jwt.decode(cookie, identity_of(request).login_key(), ["HS256"])
    except jwt.PyJWTError:
        raise refused from None
    if not hmac.compare_digest(request.query_params.get("state", "").encode(), str(kept.get("state")).encode()):
        raise refused
    return kept


def _redeemed(provider: Provider, kept: Mapping[str, Any], query: Mapping[str, str]) -> tuple[Principal, str]:
    """(who, ID token). Raises TokenRefused, Unavailable."""
    named = provider.metadata().get("authorization_response_iss_parameter_supported") is True
    if query.get("iss", "" if named else provider.settings.oidc_issuer) != provider.settings.oidc_issuer:  # RFC 9207
        raise TokenRefused("issuer", "Another identity provider answered.")
    if "error" in query or not query.get("code"):
        raise TokenRefused("not-signed-in", "The identity provider did not sign you in.")
    tokens = provider.redeem(query["code"], kept["verifier"], provider.settings.public_url + CALLBACK)
    id_token, access = tokens.get("id_token"), tokens.get("access_token")
    if not isinstance(id_token, str):
        raise TokenRefused("no-token", "The identity provider did not say who signed in.")
    return provider.person(id_token, kept["nonce"], access if isinstance(access, str) else ""), id_token


async def logout(request: Request) -> Response:
    """POST /logout: the session ends here, and at the identity provider where it offers that (RP-Initiated Logout 1.0).

    Raises PolicyRefused ``csrf``: another site's page may not even take the cookie away.
    """
    if not sent_from_here(request):
        raise PolicyRefused("csrf", "The form was not sent by this page; reload it.")
    identity, cookie = identity_of(request), cookie_of(request)
    hint, known = "", await run_in_threadpool(identity.session, cookie) if cookie else None
    if known is not None:
        await check_csrf(request, cookie)
        gateway: Gateway = request.app.state.gateway
        hint = await run_in_threadpool(gateway.index.session_end, cookie)
    provider = identity.provider
    there = await run_in_threadpool(_end_there, provider, hint) if hint and provider else ""
    response = page_of(request, "logout.html", there=there) if there else RedirectResponse(LOGIN, SEE_OTHER)
    drop_cookie(request, response, cookie_name(request))
    return response


def _end_there(provider: Provider, hint: str) -> str:
    """URL at which the identity provider signs this browser out; '' if it offers none, or does not answer."""
    try:
        place = provider.endpoint("end_session_endpoint")
    except Unavailable:
        return ""
    query = {
        "id_token_hint": hint,
        "client_id": provider.settings.oidc_client_id,
        "post_logout_redirect_uri": provider.settings.public_url + LOGIN,
    }
    return f"{place}{'&' if '?' in place else '?'}{urlencode(query)}" if place else ""


def reader_of(request: Request) -> Principal | None:
    """Who signed in and may see images; None: nobody. May wait for the disk."""
    cookie = cookie_of(request)
    principal = identity_of(request).session(cookie) if cookie else None
    return principal if principal and principal.roles & READERS else None


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", LOGIN, login_page),
    ("POST", LOGIN, login),
    ("GET", "/login/start", start),
    ("GET", CALLBACK, callback),
    ("POST", "/logout", logout),
)
