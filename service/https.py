"""What the HTTP port speaks: HTTPS by our own certificate, or HTTP to a proxy that is believed, or to this machine."""

from __future__ import annotations

import ssl
from typing import Any

import uvicorn

from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.tls import FreshContext, harden

__all__ = ["proxy_options", "serve_https"]


def proxy_options(settings: Settings) -> dict[str, Any]:
    """uvicorn's: whose X-Forwarded-For and X-Forwarded-Proto are believed; without a trusted proxy nobody's."""
    trusted = settings.http_proxy == "trusted"
    return {"proxy_headers": trusted, "forwarded_allow_ips": list(settings.http_proxy_addresses) if trusted else []}


def serve_https(config: uvicorn.Config, settings: Settings) -> None:
    """Have a server speak TLS 1.2 or 1.3 (RFC 9325) where there is a certificate; a renewed one counts from the next
    connection. Raises Unavailable ``bad-tls-files``.
    """
    if not settings.listens_https:
        return
    fresh = FreshContext(lambda: _context(settings), settings.http_tls_cert, settings.http_tls_key)
    context = fresh.get()

    def renew(connection: ssl.SSLObject, name: str | None, old: ssl.SSLContext) -> None:
        connection.context = fresh.get()

    context.sni_callback = renew  # called for every client hello, with a name or without
    config.load()
    config.ssl = context


def _context(settings: Settings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(str(settings.http_tls_cert), settings.http_tls_key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        what = "PALIMPSEST_HTTP_TLS_CERT and _KEY cannot be used"
        raise Unavailable("bad-tls-files", f"{what} ({type(error).__name__})") from None
    return context
