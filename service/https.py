"""What the HTTP port speaks: HTTPS by our own certificate, or HTTP to a proxy that is believed, or to this machine."""

from __future__ import annotations

import ssl
from ipaddress import ip_address, ip_network
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import metrics
from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.tls import FreshContext, harden
from service.problems import problem_response

__all__ = ["proxy_options", "serve_https", "serve_the_proxy"]

#: What orchestrators ask for from wherever they run; it holds nothing.
HEALTH: Final = frozenset({"/healthz", "/readyz"})
NOT_BY_PROXY: Final = (
    "This address is not that of a trusted proxy, and without one HTTP would cross the network in clear: come by the "
    "proxy, or have PALIMPSEST_HTTP_PROXY_ADDRESSES name its address."
)


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


def serve_the_proxy(config: uvicorn.Config, settings: Settings) -> None:
    """Where a trusted proxy ends TLS, answer nobody but it and this machine; others get 403, or health."""
    if settings.http_proxy != "trusted" or settings.listens_https:
        return
    if not config.loaded:
        config.load()
    networks = [ip_network(each, strict=False) for each in settings.http_proxy_addresses]
    app: ASGIApp = config.loaded_app  # with uvicorn's own middleware inside, which puts X-Forwarded-For for the peer

    async def by_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH or _is_one(scope, networks):
            return await app(scope, receive, send)
        metrics.REFUSED.labels(source="http", reason="not-by-proxy").inc()
        return await problem_response(403, "not-by-proxy", NOT_BY_PROXY)(scope, receive, send)

    config.loaded_app = by_proxy


def _is_one(scope: Scope, networks: list[Any]) -> bool:
    """Whether the TCP peer is in one of the networks, or is this machine: who comes from the very address that it
    comes to is on it, as our own command line is where PALIMPSEST_HTTP_HOST names an address.
    """
    address = (scope.get("client") or ("",))[0]
    try:
        peer = ip_address(address)
    except ValueError:
        return False
    here = (scope.get("server") or ("",))[0] == address
    return peer.is_loopback or here or any(peer in network for network in networks)


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
