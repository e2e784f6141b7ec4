"""Who may do what: one table from route to roles, and the guard that enforces it on every request.

`RULES` is complete by construction: `service.api.create_app` refuses to build an application with a route that is not
in it, and a test walks the finished application.  Routes not for everyone answer 401 without a valid token or session
and 403 with one of another role.  A session's request that changes something must bring the session's CSRF value.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import PolicyRefused
from gateway.tokens import Principal, Role, TokenRefused
from service.identity import Identity
from service.pages import form_of, sent_from_here

__all__ = [
    "PUBLIC", "READERS", "RULES", "Guard", "Handler", "RouteSpec", "address_of", "check_csrf", "cookie_name",
    "cookie_of", "csrf_of", "guard_for", "identity_of", "install", "may_go_on", "opens_page", "principal_of",
    "secure_cookies",
]  # fmt: skip

CSRF_HEADER: Final = "x-csrf-token"
_COOKIE: Final = re.compile(r"[A-Za-z0-9_-]{43}")

Handler = Callable[[Request], Awaitable[object]]
RouteSpec = tuple[str, str, Handler]  # method, path, endpoint

PUBLIC: Final[frozenset[Role]] = frozenset()
"""No token needed. Health only, signing in, and the code of pages."""

READERS: Final[frozenset[Role]] = frozenset({Role.CLINICIAN, Role.SERVICE})
"""Who may see images."""

_READ = READERS
_STORE = frozenset({Role.SERVICE})
_RUN = frozenset({Role.ADMIN})
_WATCH = frozenset({Role.ADMIN, Role.SERVICE, Role.AUDITOR})
_AUDIT = frozenset({Role.AUDITOR})
_PROOF = _READ | _AUDIT

_STUDY = "/dicomweb/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"

#: (method, path) -> roles. Nothing else may be served.
RULES: Final[dict[tuple[str, str], frozenset[Role]]] = {
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("POST", "/dicomweb/studies"): _STORE,
    ("POST", _STUDY): _STORE,
    ("GET", "/dicomweb/studies"): _READ,
    ("GET", "/dicomweb/series"): _READ,
    ("GET", "/dicomweb/instances"): _READ,
    ("GET", _STUDY + "/series"): _READ,
    ("GET", _STUDY + "/instances"): _READ,
    ("GET", _SERIES + "/instances"): _READ,
    ("GET", _STUDY): _READ,
    ("GET", _SERIES): _READ,
    ("GET", _INSTANCE): _READ,
    ("GET", _STUDY + "/metadata"): _READ,
    ("GET", _SERIES + "/metadata"): _READ,
    ("GET", _INSTANCE + "/metadata"): _READ,
    ("GET", _STUDY + "/bulkdata"): _READ,
    ("GET", _SERIES + "/bulkdata"): _READ,
    ("GET", _INSTANCE + "/bulkdata"): _READ,
    ("GET", _INSTANCE + "/bulkdata/{path:path}"): _READ,
    ("GET", _INSTANCE + "/frames/{frames}"): _READ,
    ("GET", _STUDY + "/rendered"): _READ,
    ("GET", _SERIES + "/rendered"): _READ,
    ("GET", _INSTANCE + "/rendered"): _READ,
    ("GET", _INSTANCE + "/frames/{frames}/rendered"): _READ,
    ("GET", _STUDY + "/thumbnail"): _READ,
    ("GET", _SERIES + "/thumbnail"): _READ,
    ("GET", _INSTANCE + "/thumbnail"): _READ,
    ("GET", _INSTANCE + "/frames/{frames}/thumbnail"): _READ,
    ("GET", "/dicomweb/objects/{digest}"): _READ,
    ("GET", "/wado"): _READ,
    ("GET", "/api/status"): _WATCH,
    ("GET", "/api/instances"): _WATCH,
    ("POST", "/api/instances/choose"): _RUN,
    ("GET", "/api/instances/{id}/certificate"): _PROOF,
    ("GET", "/api/studies/{study}/certificate"): _PROOF,
    ("GET", "/api/failures"): _WATCH,
    ("POST", "/api/failures/replay"): _RUN,
    ("GET", "/api/destinations"): _WATCH,
    ("GET", "/api/forwards"): _WATCH,
    ("POST", "/api/forwards/replay"): _RUN,
    ("GET", "/api/commitments"): _WATCH,
    ("POST", "/api/commitments/replay"): _RUN,
    ("GET", "/api/audit"): _AUDIT,
    ("GET", "/api/audit/verify"): _AUDIT,
    ("GET", "/api/audit/search"): _AUDIT | _RUN,
    ("GET", "/fhir/AuditEvent"): _AUDIT | _RUN,
    ("GET", "/fhir/AuditEvent/{id}"): _AUDIT | _RUN,
    ("GET", "/api/studies"): _WATCH,
    ("GET", "/api/studies/{study}"): _WATCH,
    ("GET", "/api/events"): _WATCH,
    ("POST", "/api/corrections"): _RUN,
    ("GET", "/api/corrections"): _RUN,
    ("POST", "/api/corrections/{id}/revoke"): _RUN,
    ("GET", "/api/rejections"): _WATCH,
    ("POST", "/api/rejections/{id}/revoke"): _RUN,
    ("GET", "/metrics"): _WATCH,
    ("GET", "/"): PUBLIC,
    ("GET", "/login"): PUBLIC,
    ("POST", "/login"): PUBLIC,
    ("GET", "/login/start"): PUBLIC,
    ("GET", "/login/callback"): PUBLIC,
    ("POST", "/logout"): PUBLIC,
    ("GET", "/admin/style.css"): PUBLIC,
    ("GET", "/admin"): _RUN,
    ("GET", "/admin/live.js"): PUBLIC,
    ("GET", "/admin/events"): _RUN,
    ("GET", "/admin/instances"): _RUN,
    ("GET", "/admin/instances/{id}"): _RUN,
    ("GET", "/admin/failures"): _RUN,
    ("GET", "/admin/destinations"): _RUN,
    ("GET", "/admin/studies"): _RUN,
    ("GET", "/admin/system"): _RUN,
    ("GET", "/admin/audit"): _RUN | _AUDIT,
    ("POST", "/admin/act"): _RUN,
    ("POST", "/admin/search"): _RUN,
    ("GET", "/admin/flower"): _RUN,
    ("GET", "/admin/flower/{path:path}"): _RUN,
    ("GET", "/viewer"): PUBLIC,
    ("GET", "/viewer/{path:path}"): PUBLIC,
}

#: Answered however often they are asked: what keeps a gateway alive asks them.
_UNCOUNTED: Final = frozenset({"/healthz", "/readyz"})
#: Pages that a link from elsewhere may open in a browser that signed in; everything else is for our own pages to ask.
_PAGES: Final = ("/admin", "/login")
_SAFE: Final = frozenset({"GET", "HEAD"})


class Guard:
    """FastAPI dependency of one route: who asks, may he, how often, and is it really one of our pages that asks?

    Leaves the principal, and the roles that the route wants, in `request.state`.
    """

    def __init__(self, roles: frozenset[Role], *, counted: bool = True) -> None:
        self.roles = roles
        self._counted = counted

    async def __call__(self, request: Request) -> None:
        """Raises TokenRefused (401), PolicyRefused (403), TooMany (429), Unavailable (503)."""
        if self._counted:
            await run_in_threadpool(self._admit, request)
        if getattr(request.state, "session", None) and request.method not in _SAFE:
            await check_csrf(request, request.state.session)

    def _admit(self, request: Request) -> None:
        identity, address = identity_of(request), address_of(request)
        if not self.roles:
            return identity.throttle.count("request", address)
        principal = self._principal(request, identity, address)
        who = f"{principal.issuer} {principal.subject}"
        identity.throttle.count("request", who)
        if not principal.roles & self.roles:
            identity.refuse("role-not-allowed", address, principal.subject)
            raise PolicyRefused("role-not-allowed", "Your role may not do that.")
        request.state.principal, request.state.roles = principal, self.roles
        return None

    def _principal(self, request: Request, identity: Identity, address: str) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return identity.bearer(token.strip(), address)
        cookie = cookie_of(request)
        principal = identity.session(cookie) if cookie and _asked_by_us(request) else None
        if principal is None:
            _nobody(request, identity, address, cookie)
            raise TokenRefused("token-missing", "Send a bearer token (RFC 6750), or sign in.")
        request.state.session = cookie
        return principal


def _nobody(request: Request, identity: Identity, address: str, cookie: str) -> None:
    """Count a request of nobody. Raises TooMany.

    One that opens a page is led to the sign-in, which is no refusal: whoever sits behind the same address may hold
    cookies of an older build. It counts by address alone where we did not make its cookie.
    """
    sent = cookie_name(request) in request.cookies
    made = identity.made(cookie)
    request.state.bad_cookie = sent and not made
    if not opens_page(request):
        if sent and not made:
            return identity.refuse("session-forged", address)
        reason = "token-missing" if not sent else "session-over" if _asked_by_us(request) else "cross-site"
        identity.refusals.refuse_login(reason, address)
    return identity.throttle.count("request", cookie if made else address)


def opens_page(request: Request) -> bool:
    """A browser that asks for a page to show."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


async def may_go_on(request: Request) -> bool:
    """Whether who asked still may: an event stream asks again and again, for people sign out and tokens end.

    Raises Unavailable.
    """
    return await run_in_threadpool(_may_go_on, request)


def _may_go_on(request: Request) -> bool:
    identity, cookie = identity_of(request), getattr(request.state, "session", None)
    roles = request.state.roles
    if cookie:
        principal = identity.session(cookie, used=False)
        return principal is not None and bool(principal.roles & roles)
    try:
        return bool(identity.verified(request.headers["authorization"].partition(" ")[2].strip()).roles & roles)
    except TokenRefused:
        return False


def _asked_by_us(request: Request) -> bool:
    """A page of this origin asks, or a person opens one of our pages, from wherever the link was."""
    if sent_from_here(request):
        return True
    opened = request.headers.get("sec-fetch-mode") == "navigate" and request.headers.get("sec-fetch-dest") == "document"
    return opened and request.method == "GET" and request.url.path.startswith(_PAGES)


async def check_csrf(request: Request, cookie: str) -> None:
    """Raise PolicyRefused ``csrf`` unless the request brings the session's value: in a header, or in its form.

    A cookie alone proves nothing: browsers send it with what other sites make them send.
    """
    given = request.headers.get(CSRF_HEADER, "")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not given and kind == "application/x-www-form-urlencoded":
        given = (await form_of(request)).get("csrf", "")
    expected = await run_in_threadpool(identity_of(request).csrf, cookie)
    if not hmac.compare_digest(given.encode(), expected.encode()) or not sent_from_here(request):
        raise PolicyRefused("csrf", "The form was not sent by this page; reload it.")


def guard_for(method: str, path: str) -> Guard:
    """The guard of a route; KeyError when the table does not know it, so that no route can be added without a rule."""
    return Guard(RULES[(method, path)], counted=path not in _UNCOUNTED)


def install(app: FastAPI, gateway: Gateway) -> None:
    """What the guards of this application work with. Raises PolicyRefused ``bad-oidc``."""
    app.state.identity = Identity(gateway)


def identity_of(request: Request) -> Identity:
    """Of the application that serves this request."""
    identity: Identity = request.app.state.identity
    return identity


def principal_of(request: Request) -> Principal:
    """Who asks; only on routes whose rule is not PUBLIC."""
    principal: Principal = request.state.principal
    return principal


def csrf_of(request: Request) -> str:
    """What the session's forms (field `csrf`) and scripts (header `X-CSRF-Token`) must send; '' without a session."""
    cookie = getattr(request.state, "session", None)
    return identity_of(request).csrf(cookie) if cookie else ""


def address_of(request: Request) -> str:
    """Where the request comes from; behind a trusted proxy what that says (`Settings.http_proxy`)."""
    return request.client.host if request.client else ""


def secure_cookies(request: Request) -> bool:
    """True if cookies are for HTTPS alone: always, but for a demonstration on this machine."""
    settings = request.app.state.gateway.settings
    return bool(request.url.scheme == "https" or settings.public_url.startswith("https:"))


def cookie_name(request: Request, name: str = "palimpsest") -> str:
    """`__Host-`: a browser takes it over HTTPS alone, from this very host (RFC 6265bis 4.1.3.2)."""
    return f"__Host-{name}" if secure_cookies(request) else name


def cookie_of(request: Request) -> str:
    """What the browser's session cookie holds; '' without one that could be ours."""
    found = request.cookies.get(cookie_name(request), "")
    return found if _COOKIE.fullmatch(found) else ""
