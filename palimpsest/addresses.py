"""Where this machine's own gateway is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.destination import Destination
from gateway.errors import Unavailable
from gateway.settings import Settings
from gateway.tls import client_context
from palimpsest.dimse import Target

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # nothing is bound here  # nosec B104


@dataclass(frozen=True)
class Secure:
    """DICOM over TLS, as a sender wants it. Files that are left out are the listener's own.

    name: that the listener's certificate must bear; '': the address that is called. calling: our AE title; '': one
    that the listener lets in.
    """

    name: str = ""
    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    calling: str = ""


def reachable(host: str) -> str:
    """An address at which a server bound to `host` can be reached from this machine."""
    return _ANY.get(host, host)


def base_url(settings: Settings) -> str:
    """The web side; over TLS by the name that its certificate bears, if that was said."""
    if settings.listens_https and settings.http_public_url:
        return settings.http_public_url
    host = reachable(settings.http_host)
    scheme = "https" if settings.listens_https else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def local_target(settings: Settings, secure: Secure | None = None) -> Target:
    """The listener, under a calling AE title that it accepts; its TLS port if asked for, or if no other is open.

    Raises Unavailable ``no-tls-port``, and ``bad-tls-files`` as `client_context`.
    """
    host = reachable(settings.dicom_host)
    calling = settings.calling_ae_allow[0] if settings.calling_ae_allow else "PALIMPSEST_SCU"
    if secure is None and settings.listens_plain:
        return Target(host, settings.dicom_port, settings.ae_title, calling)
    secure = secure or Secure()
    if not settings.listens_tls:
        raise Unavailable("no-tls-port", "the gateway has no certificate (PALIMPSEST_DICOM_TLS_CERT): no TLS port")
    files = {"client_cert_file": secure.certificate, "client_key_file": secure.key, "ca_file": secure.authorities}
    given = {name: file for name, file in files.items() if file is not None}
    port = settings.dicom_tls_port
    node = Destination.model_validate({"name": "gateway", "host": host, "port": port, "tls": True, **given})
    context = client_context(settings, node)
    return Target(host, port, settings.ae_title, secure.calling or calling, context, secure.name or host)
