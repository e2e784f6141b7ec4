"""What says that audit messages arrived: the syslog server's close_notify, and no mere end of the connection."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.audit_standing import STATE
from gateway.audit_syslog import SyslogConnection
from gateway.bootstrap import build
from gateway.jobs import MemoryQueue
from gateway.settings import load_settings
from gateway.tls import syslog_context
from tests.certificates import Authority
from tests.fakes import FakeClock, part10, take_in
from worker import audit_export
from worker.audit_export import deliver

pytestmark = pytest.mark.integration


class Server:
    """Reads what comes over each connection, then ends it as `ends` says: 'notify', 'fin', 'early', 'reset'; 'stop' and
    'stop-open': its own close_notify comes when a part was read, as from a server that is stopped."""

    def __init__(self, authority: Authority) -> None:
        identity = authority.issue("syslog-server")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(identity.certificate, identity.key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.ends = "notify"
        self.heard = b""
        self.stopped, self.done = threading.Event(), threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listening.accept()
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or its word waits for an acknowledgement
                with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
                    self._one(connection)

    def _one(self, connection: ssl.SSLSocket) -> None:
        ends = self.ends  # the next test's may stand there before this connection's end
        if ends == "early":  # who sits between ends it, in order, when a part was read
            self.heard += connection.recv(10)
            connection.shutdown(socket.SHUT_RDWR)
            return
        if ends.startswith("stop"):
            self.heard += connection.recv(10)
            connection.setblocking(False)
            with suppress(ssl.SSLError):
                connection.unwrap()
            self.stopped.set()
            if ends == "stop-open":
                self.done.wait(120)
            return
        with suppress(ssl.SSLZeroReturnError):
            while data := connection.recv(1 << 16):
                self.heard += data
        if ends == "notify":
            connection.unwrap()
        elif ends == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_only_the_servers_word_moves_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    server = Server(authority)
    settings = load_settings(
        home=tmp_path / "home", watermark_bytes=0, audit_syslog_host="127.0.0.1", audit_syslog_port=server.port,
        audit_syslog_ca=authority.file,
    )  # fmt: skip
    gw, clock = build(settings, queue=MemoryQueue()), FakeClock()
    gw.index.now = clock  # type: ignore[method-assign]
    monkeypatch.setattr(audit_export, "FIRST_PAUSE_SECONDS", 0.0)

    def export(*, close_notify: bool = True) -> int:
        clock.advance(400)
        context = syslog_context(settings)
        return deliver(gw, lambda: SyslogConnection("127.0.0.1", server.port, context, close_notify=close_notify))

    def told() -> tuple[int, str | None]:
        state = gw.index.audit_state(STATE) or {}
        return state.get("seq", 0), state.get("reason")

    for _ in range(3):
        take_in(gw, part10())
    for server.ends, reasons in (
        ("fin", {"no-close-notify"}),
        ("early", {"no-close-notify", "connection-lost"}),
        ("reset", {"connection-lost"}),
    ):
        assert export() == 0, server.ends
        assert told()[0] == 0 and told()[1] in reasons, server.ends
    finish = SyslogConnection.finish
    for server.ends in ("stop", "stop-open"):
        for close_notify in (True, False):
            server.stopped.clear(), server.done.clear()
            with monkeypatch.context() as patch:  # the server's word is there before ours
                patch.setattr(SyslogConnection, "finish", lambda self: (server.stopped.wait(120), finish(self)))
                assert export(close_notify=close_notify) == 0 and told() == (0, "connection-lost"), server.ends
            server.done.set()
    server.heard, server.ends = b"", "notify"
    assert export() == 3 and told() == (3, None)
    assert [server.heard.count(b'sequenceId="%d"' % number) for number in (1, 2, 3)] == [1, 1, 1]
    take_in(gw, part10())
    server.ends = "fin"
    assert export() == 0
    assert export(close_notify=False) == 1 and told() == (4, None)  # believed by the setting
    take_in(gw, part10())
    server.ends = "reset"
    assert export(close_notify=False) == 0, "unread data, or a lost server, is never believed"
    server.close()
    gw.close()
