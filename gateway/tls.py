"""TLS for DICOM associations, by the BCP 195 (RFC 9325) profiles of PS3.15 Annex B: both sides show a certificate.

TLS 1.2 with forward secrecy and authenticated encryption, or 1.3; no compression, no renegotiation, no session tickets
(a resumed session would not be checked against its certificate again). Files are PEM and are read again when they
change, so that a certificate is renewed without a restart: existing associations go on, new ones get the new one.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.destination import Destination
from gateway.errors import Unavailable
from gateway.settings import Settings

__all__ = ["FreshContext", "certificate_names", "client_context", "harden", "server_context", "syslog_context"]

#: TLS 1.2 (RFC 9325 4.2): ECDHE or DHE with AES-GCM or ChaCha20. Suites of TLS 1.3 are all of this kind.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:!aNULL:!DSS:!PSK:!SRP"

log = logging.getLogger(__name__)


def server_context(settings: Settings) -> ssl.SSLContext:
    """For the listener: a peer without a certificate that our CA file vouches for is not let in.

    Raises Unavailable ``bad-tls-files``: one is missing, unreadable, or does not fit the others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    harden(context)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    _load_identity(context, settings.dicom_tls_cert, settings.dicom_tls_key, "PALIMPSEST_DICOM_TLS_CERT and _KEY")
    _load_authorities(context, settings.dicom_tls_ca, "PALIMPSEST_DICOM_TLS_CA")
    return context


def client_context(settings: Settings, destination: Destination) -> ssl.SSLContext:
    """For associations that we open; the peer's certificate must name the host that we call (RFC 9525).

    The destination's own files count, those that it leaves out are the listener's. Raises Unavailable as
    `server_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    harden(context)
    certificate, key = destination.client_cert_file, destination.client_key_file
    if certificate is None:
        certificate, key = settings.dicom_tls_cert, settings.dicom_tls_key
    name = f"destination {destination.name}"
    _load_identity(context, certificate, key, f"client_cert_file and client_key_file of {name}")
    _load_authorities(context, destination.ca_file or settings.dicom_tls_ca, f"ca_file of {name}")
    return context


def syslog_context(settings: Settings) -> ssl.SSLContext:
    """For connections to the syslog server (RFC 5425 4.2): its certificate must name it; ours is shown if there is one.

    Raises Unavailable as `server_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    harden(context)
    if settings.audit_syslog_cert is not None:
        what = "PALIMPSEST_AUDIT_SYSLOG_CERT and _KEY"
        _load_identity(context, settings.audit_syslog_cert, settings.audit_syslog_key, what)
    _load_authorities(context, settings.audit_syslog_ca, "PALIMPSEST_AUDIT_SYSLOG_CA")
    return context


def certificate_names(certificate: Any) -> frozenset[str]:
    """Common names and DNS names of a peer's certificate as `getpeercert` gives it, in capitals."""
    parts = certificate or {}
    names = [value for rdn in parts.get("subject", ()) for key, value in rdn if key == "commonName"]
    names += [value for kind, value in parts.get("subjectAltName", ()) if kind == "DNS"]
    return frozenset(name.strip().upper() for name in names)


def harden(context: ssl.SSLContext) -> None:
    """Versions, suites and options, the same on both sides."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET


def _load_identity(context: ssl.SSLContext, certificate: Path | None, key: Path | None, what: str) -> None:
    if certificate is None or key is None:
        raise Unavailable("bad-tls-files", f"{what}: TLS needs a certificate and its private key")
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise Unavailable("bad-tls-files", f"{what}: cannot be used ({_reason(error)})") from None


def _load_authorities(context: ssl.SSLContext, authorities: Path | None, what: str) -> None:
    if authorities is None:
        raise Unavailable("bad-tls-files", f"{what}: nobody's certificate could be checked without it")
    try:
        context.load_verify_locations(authorities)
    except (OSError, ValueError) as error:
        raise Unavailable("bad-tls-files", f"{what}: cannot be used ({_reason(error)})") from None


def _no_passphrase() -> str:
    raise ValueError("the private key has a passphrase")  # OpenSSL would ask for it at the terminal


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)[:80]


class FreshContext:
    """A context that is made anew when one of its files has changed; one that cannot be loaded leaves the old one."""

    def __init__(self, make: Callable[[], ssl.SSLContext], *files: Path | None) -> None:
        """Raises what `make` raises."""
        self._make = make
        self._files = [each for each in files if each is not None]
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._context = make()

    def get(self) -> ssl.SSLContext:
        """For the next association."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._context = self._make()
                    log.info("TLS files were read again")
                except Unavailable as error:
                    log.error("changed TLS files cannot be used, the old ones stay", extra={"reason": error.reason})
            return self._context

    def _stamp(self) -> list[tuple[int, int] | None]:
        return [_stamp_of(each) for each in self._files]


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
