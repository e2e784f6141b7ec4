"""A real rsyslogd for tests: TLS on a port of its own, messages as they came in a file."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.certificates import Authority
from tests.running import free_port, until

__all__ = ["Rsyslog", "rsyslogd"]

CONFIGURATION = """
module(load="imtcp" StreamDriver.Name="{driver}" StreamDriver.Mode="1" StreamDriver.AuthMode="{auth}"{peers})
global(DefaultNetstreamDriverCAFile="{ca}" DefaultNetstreamDriverCertFile="{cert}"
       DefaultNetstreamDriverKeyFile="{key}" workDirectory="{folder}" maxMessageSize="64k"
       parser.escapeControlCharactersOnReceive="off")
template(name="whole" type="string" string="%rawmsg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{out}" template="whole" asyncWriting="off" flushOnTXEnd="on")
"""


def rsyslogd() -> str:
    """The program, or the test is skipped (fails where peers are required)."""
    found = shutil.which("rsyslogd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", "rsyslogd is required"
        pytest.skip("rsyslogd is not installed")
    return found


class Rsyslog:
    """Use as a context, or `start` and `kill`. client: the name that a client's certificate must have, '': none."""

    def __init__(self, folder: Path, authority: Authority, *, driver: str = "ossl", client: str = "") -> None:
        self._program = rsyslogd()
        self._folder = folder
        identity = authority.issue("syslog-server")
        self.port = free_port()
        self.out = folder / "messages.log"
        self._file = folder / "rsyslog.conf"
        peers = f' PermittedPeer=["{client}"]' if client else ""
        self._file.write_text(
            CONFIGURATION.format(
                driver=driver, auth="x509/name" if client else "anon", peers=peers, ca=authority.file,
                cert=identity.certificate, key=identity.key, folder=folder, port=self.port, out=self.out,
            )
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        argv = (self._program, "-n", "-f", str(self._file), "-i", str(self._folder / "pid"))
        with (self._folder / "rsyslogd.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        assert until(self._listens), (self._folder / "rsyslogd.log").read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(120)
            self._process = None

    def lines(self) -> list[str]:
        """Messages so far, without one that is being written."""
        written = self.out.read_bytes() if self.out.exists() else b""
        return written[: written.rfind(b"\n") + 1].decode("utf-8").splitlines()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill(signal.SIGTERM)
