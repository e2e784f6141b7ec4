"""Flower below /admin/flower for admins, if PALIMPSEST_FLOWER=1: a reverse proxy that only reads.

Nothing but GET is passed on, no cookie or token goes either way, and the page's scripts are Flower's own files: of
inline scripts only the one line that it is known to have. Flower itself listens on a unix socket (palimpsest/
flower_process.py).
"""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from typing import Final

import httpx
from fastapi import Request
from fastapi.responses import RedirectResponse, Response

from gateway.errors import NotFound, Unavailable
from gateway.settings import Settings
from service.access import RouteSpec

__all__ = ["PREFIX", "ROUTES"]

PREFIX: Final = "/admin/flower"
ANSWER_SECONDS: Final = 15.0
MAX_BYTES: Final = 32 << 20
#: Its API is for machines, its login for a Flower that stands alone.
CLOSED: Final = ("api", "login", "logout", "metrics")
ASKED: Final = ("accept", "if-none-match", "if-modified-since", "x-requested-with")
GIVEN: Final = ("content-type", "etag", "last-modified", "location", "cache-control", "expires")
_INLINE: Final = re.compile(rb"<script[^>]*>(\s*var autorefresh = \w{1,5};\s*)</script>")


async def flower(request: Request) -> Response:
    """GET /admin/flower/...: what Flower answers. NotFound where it is off, Unavailable where it is not there."""
    settings: Settings = request.app.state.gateway.settings
    path = request.url.path.removeprefix(PREFIX)
    parts = path.strip("/").split("/")
    if not settings.flower or parts[0] in CLOSED or {".", ".."} & set(parts):  # a client would fold /x/../api
        raise NotFound("no-flower", "Flower is off, or has nothing for people here (PALIMPSEST_FLOWER).")
    if not path:
        return RedirectResponse(PREFIX + "/", 307)
    headers = {name: value for name in ASKED if (value := request.headers.get(name))}
    transport = httpx.AsyncHTTPTransport(uds=str(settings.flower_socket))
    try:
        target = httpx.URL("http://flower", raw_path=_raw_target(request))
    except (httpx.InvalidURL, UnicodeDecodeError):
        raise NotFound("no-flower", "Flower has nothing of that name.") from None
    try:
        async with (
            httpx.AsyncClient(transport=transport, timeout=ANSWER_SECONDS, trust_env=False) as client,
            client.stream("GET", target, headers=headers) as answer,
        ):
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Unavailable("flower-too-large", "Flower's answer is larger than a page can be.")
    except httpx.HTTPError:
        raise Unavailable("flower-unavailable", "Flower does not answer; its log says why.", retry_after=5) from None
    given = {name: value for name in GIVEN if (value := answer.headers.get(name))}
    return Response(bytes(body), answer.status_code, {**given, "Content-Security-Policy": _policy(bytes(body))})


def _raw_target(request: Request) -> bytes:
    """Path and query as they came: a proxy does not decode."""
    raw = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return bytes(raw) + (b"?" + query if query else b"")


def _policy(body: bytes) -> str:
    """Flower's own scripts and styles, data URLs of its style sheets' icons; nothing from elsewhere."""
    inline = "".join(
        f" 'sha256-{base64.b64encode(sha256(found).digest()).decode()}'" for found in _INLINE.findall(body)
    )
    return (
        f"default-src 'none'; script-src 'self'{inline}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


ROUTES: tuple[RouteSpec, ...] = (("GET", PREFIX, flower), ("GET", PREFIX + "/{path:path}", flower))
