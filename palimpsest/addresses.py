"""Where this machine's own gateway is to be reached."""

from __future__ import annotations

from gateway.settings import Settings
from palimpsest.dimse import Target

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def reachable(host: str) -> str:
    """An address at which a server bound to `host` can be reached from this machine."""
    return _ANY.get(host, host)


def base_url(settings: Settings) -> str:
    """The web side."""
    host = reachable(settings.http_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def local_target(settings: Settings) -> Target:
    """The listener, under a calling AE title that it accepts."""
    calling = settings.calling_ae_allow[0] if settings.calling_ae_allow else "PALIMPSEST_SCU"
    return Target(reachable(settings.dicom_host), settings.dicom_port, settings.ae_title, calling)
