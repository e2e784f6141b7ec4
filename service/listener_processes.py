"""The ports of the DICOM listener, bound before its processes are forked."""

from __future__ import annotations

import socket
from typing import NamedTuple

from gateway.settings import Settings

__all__ = ["Sockets", "open_sockets"]

BACKLOG = 128


class Sockets(NamedTuple):
    """Bound and listening, or None for a port that is closed."""

    plain: socket.socket | None
    tls: socket.socket | None


def open_sockets(settings: Settings) -> Sockets:
    """Bind what the settings say. Raises OSError: a port is taken."""

    def bind(port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in settings.dicom_host else socket.AF_INET
        return socket.create_server((settings.dicom_host, port), family=family, backlog=BACKLOG)

    return Sockets(
        bind(settings.dicom_port) if settings.listens_plain else None,
        bind(settings.dicom_tls_port) if settings.listens_tls else None,
    )
