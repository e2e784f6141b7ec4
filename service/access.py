"""Who may do what: one table from route to roles, and the guard that enforces it on every request.

`RULES` is complete by construction: `service.api.create_app` refuses to build an application with a route that is not
in it, and a test walks the finished application.  Routes not for everyone answer 401 without a valid token and 403 with
one of another role.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from fastapi import Request

from gateway.errors import PolicyRefused
from gateway.tokens import Principal, Role, TokenRefused, verify_token
from service.pages import sent_from_here
from service.trail import record

__all__ = [
    "COOKIE", "PUBLIC", "READERS", "RULES", "VIEWER_COOKIE", "VIEWER_PATHS", "Guard", "Handler", "RouteSpec",
    "guard_for", "principal_of",
]  # fmt: skip

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[object]]
RouteSpec = tuple[str, str, Handler]  # method, path, endpoint

PUBLIC: Final[frozenset[Role]] = frozenset()
"""No token needed. Health only, the pages where a token is entered, and the viewer's own code."""

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
    ("GET", "/admin/login"): PUBLIC,
    ("POST", "/admin/login"): PUBLIC,
    ("GET", "/admin/style.css"): PUBLIC,
    ("GET", "/admin"): _RUN,
    ("POST", "/admin/logout"): _RUN,
    ("POST", "/admin/replay"): _RUN,
    ("POST", "/admin/acknowledge"): _RUN,
    ("GET", "/viewer"): PUBLIC,
    ("GET", "/viewer/login"): PUBLIC,
    ("POST", "/viewer/login"): PUBLIC,
    ("POST", "/viewer/logout"): PUBLIC,
    ("GET", "/viewer/{path:path}"): PUBLIC,
}

COOKIE: Final = "palimpsest_admin"
#: Only pages under this path take the token from the cookie; everything else wants the Authorization header, but for
#: what the viewer reads.
COOKIE_PATH: Final = "/admin"
VIEWER_COOKIE: Final = "palimpsest_viewer"
#: Paths that get the viewer's cookie, and its SameSite: a link from elsewhere may open the viewer, which then reads for
#: itself. Reading takes the token from it for GET and HEAD alone, which change nothing, and for no other origin's page.
VIEWER_PATHS: Final[dict[str, Literal["lax", "strict"]]] = {"/viewer": "lax", "/dicomweb": "strict"}
_VIEWED: Final = "/dicomweb/"


class Guard:
    """FastAPI dependency of one route: verifies the token, checks the role, leaves the principal in `request.state`."""

    def __init__(self, roles: frozenset[Role]) -> None:
        self.roles = roles

    def __call__(self, request: Request) -> None:
        """Raises TokenRefused (401) or PolicyRefused (403)."""
        if not self.roles:
            return
        token = _token_of(request)
        if token is None:
            raise TokenRefused("token-missing", "Send a bearer token (RFC 6750).")
        try:
            principal = verify_token(request.app.state.gateway, token)
        except TokenRefused as error:
            record(request.app.state.gateway, "login-failed", actor="unknown", outcome="refused", reason=error.reason)
            raise
        if principal.role not in self.roles:
            record(
                request.app.state.gateway,
                "login-failed",
                actor=principal.subject,
                outcome="refused",
                reason="role-not-allowed",
            )
            raise PolicyRefused("role-not-allowed", "The role of this token may not do that.")
        request.state.principal = principal


def _token_of(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if request.url.path == COOKIE_PATH or request.url.path.startswith(COOKIE_PATH + "/"):
        return request.cookies.get(COOKIE)
    if request.method in ("GET", "HEAD") and request.url.path.startswith(_VIEWED) and sent_from_here(request):
        return request.cookies.get(VIEWER_COOKIE)
    return None


def guard_for(method: str, path: str) -> Guard:
    """The guard of a route; KeyError when the table does not know it, so that no route can be added without a rule."""
    return Guard(RULES[(method, path)])


def principal_of(request: Request) -> Principal:
    """Who asks; only on routes whose rule is not PUBLIC."""
    principal: Principal = request.state.principal
    return principal
