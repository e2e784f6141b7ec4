"""Security headers of every answer, errors included (OWASP Secure Headers; CSP Level 3; RFC 6797)."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["SecurityHeaders"]

#: Answers for programs: nothing in them is ever run or shown as a page.
_NOTHING: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
#: Pages of ours: scripts and styles from files of ours, nothing inline, no other host.
_PAGE: Final = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer our own forms come with `Origin: null` (Fetch 3.2)
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
#: Images of patients and tokens are never kept by anything between.
_NO_STORE: Final = "no-store"
#: Over HTTPS: for a year nothing else (RFC 6797 6.1). Not for subdomains, which are not ours.
_HSTS: Final = "max-age=31536000"


class SecurityHeaders:
    """ASGI middleware; what a route said for itself stays. It never touches a body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add headers when the answer starts."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", _PAGE if _is_admin(scope["path"]) else _NOTHING)
                headers.setdefault("Cache-Control", _NO_STORE)
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", _HSTS)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def _is_admin(path: str) -> bool:
    return path == "/admin" or path.startswith("/admin/")
