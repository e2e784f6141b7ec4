"""The embedded broker under supervision.

It is supervised like every other child (`palimpsest.process`), so it dies with its parent; the wheels' own start-up
code leaves orphans. No TCP port: nobody else on the machine can reach it, and no password has to be kept.
"""

from __future__ import annotations

import time

from gateway.broker import server_command
from gateway.redis_link import RedisLink
from gateway.settings import Settings
from palimpsest.process import ChildSpec


def broker_spec(settings: Settings) -> ChildSpec:
    """The embedded server as a child. Raises Unavailable 'no-broker' where there is no server to start."""
    return ChildSpec("broker", tuple(server_command(settings)), grace_seconds=10)


def wait_for_broker(settings: Settings, seconds: float) -> bool:
    """True as soon as the broker (embedded or REDIS_URL) answers PING, False after `seconds`."""
    import redis

    deadline = time.monotonic() + seconds
    client = RedisLink.of(settings).client(socket_timeout=2)
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
