"""Audit messages to a syslog server: RFC 5424 over TLS (RFC 5425), as PS3.15 A.6 and IHE ITI-20 ask.

Syslog has no acknowledgement. The best there is: the server answered our close_notify (RFC 5425 4.4) and then ended the
connection in order, for one with unread data is reset instead (RFC 1122 4.2.2.13). That it read all says not that it
kept all. An end before ours is no answer, and a connection that only ends proves nothing: anybody between can end it
(RFC 8446 6.1). Servers that never answer can be believed by a setting: then an end in order after ours counts.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from gateway.audit_dicom import to_xml
from gateway.audit_message import AuditMessage
from gateway.errors import Unavailable

__all__ = ["SyslogConnection", "event_line", "head_line"]

AUTHPRIV: Final = 10  # facility: security/authorization messages
NOTICE, WARNING = 5, 4
APP_NAME: Final = "palimpsest"
HEAD_MSGID: Final = "audit-head"
BOM: Final = b"\xef\xbb\xbf"  # RFC 5424 6.4: what follows is UTF-8
TIMEOUT_SECONDS: Final = 20.0
NO_NOTIFY: Final = (
    "the syslog server ended the connection without close_notify, so nobody knows what arrived; if it never sends one "
    "(rsyslog's gtls driver), use another driver (ossl) or PALIMPSEST_AUDIT_SYSLOG_CLOSE=tcp"
)
EARLY: Final = "the syslog server ended the connection before we did, so nobody knows what arrived"
_MOST_SEQUENCE: Final = 2_147_483_647  # RFC 5424 7.3.1
_NOT_PRINTABLE: Final = re.compile(r"[^\x21-\x7e]")


def event_line(message: AuditMessage, msgid: str) -> bytes:
    """The syslog message of one event. msgid: 'DICOM+RFC3881' or 'IHE+RFC-3881'."""
    severity = NOTICE if message.outcome == "0" else WARNING
    sequence = (message.seq - 1) % _MOST_SEQUENCE + 1
    data = f'[meta sequenceId="{sequence}"][origin software="{APP_NAME}" swVersion="{_value(message.source.version)}"]'
    return _header(severity, message.at, message.source.node, msgid, data) + BOM + to_xml(message)


def head_line(line: bytes, node: str, at: datetime) -> bytes:
    """The syslog message of a signed head: its line as it stands in the folder of heads."""
    return _header(NOTICE, at, node, HEAD_MSGID, "-") + line


def _header(severity: int, at: datetime, node: str, msgid: str, data: str) -> bytes:
    stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    host = _NOT_PRINTABLE.sub("", node)[:255] or "-"
    return f"<{AUTHPRIV * 8 + severity}>1 {stamp} {host} {APP_NAME} {os.getpid()} {msgid} {data} ".encode("ascii")


def _value(text: str) -> str:
    return re.sub(r'(["\\\]])', r"\\\1", text.encode("ascii", "replace").decode())


class SyslogConnection:
    """One TLS connection. Use as a context; only what `finish` returned after has arrived."""

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext, name: str = "", *, close_notify: bool = True
    ) -> None:
        """name: in the server's certificate, '': the host. close_notify: nothing less says that all arrived.

        Raises Unavailable, its reason says why.
        """
        self._close_notify = close_notify
        try:
            plain = socket.create_connection((host, port), TIMEOUT_SECONDS)
            try:
                self._socket = context.wrap_socket(plain, server_hostname=name or host)
            except BaseException:
                plain.close()
                raise
        except (OSError, ValueError) as error:
            raise _unavailable(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, lines: Iterable[bytes]) -> None:
        """Send syslog messages, each with its length before it (RFC 5425 4.3). Raises Unavailable."""
        try:
            self._socket.sendall(b"".join(b"%d %b" % (len(line), line) for line in lines))
        except OSError as error:
            raise _unavailable(error) from None

    def finish(self) -> None:
        """Close in order (RFC 5425 4.4) and wait for the server to do so, too.

        Raises Unavailable: ``no-close-notify`` if the connection ended without the server's word, ``connection-lost``
        if the server ended it first, or reset it.
        """
        try:
            if self._ended():
                raise Unavailable("connection-lost", EARLY)
            with self._socket.unwrap() as plain:
                plain.shutdown(socket.SHUT_WR)
                if plain.recv(1):
                    raise ConnectionError("more after close_notify")
        except ssl.SSLEOFError:
            if self._close_notify:
                raise Unavailable("no-close-notify", NO_NOTIFY) from None
        except (OSError, ValueError) as error:
            raise _unavailable(error) from None

    def _ended(self) -> bool:
        """Whether the server's close_notify, or its end, came already."""
        self._socket.setblocking(False)
        try:
            return not self._socket.recv(1)
        except ssl.SSLWantReadError:
            return False
        finally:
            self._socket.settimeout(TIMEOUT_SECONDS)


def _unavailable(error: OSError | ValueError) -> Unavailable:
    match error:
        case ssl.SSLCertVerificationError():
            reason = "certificate-refused"
        case ssl.SSLError():
            reason = "tls-failed"
        case TimeoutError():
            reason = "timeout"
        case ConnectionRefusedError():
            reason = "connection-refused"
        case socket.gaierror():
            reason = "unknown-host"
        case _:
            reason = "connection-lost"
    return Unavailable(reason, f"the syslog server cannot be reached ({type(error).__name__})")
