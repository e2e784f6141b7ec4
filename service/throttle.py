"""How often one asker may ask: counted by token, session or address, in fixed windows (library `limits`).

Counts lie in the memory of a process; where several serve, in Redis, so that they share them. Redis away or slow is no
reason to turn anybody away: each process then counts for itself.
"""

from __future__ import annotations

import logging
import time
from hashlib import sha256
from typing import Final, Literal

from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter

from gateway.errors import TooMany
from gateway.redis_link import RedisLink
from gateway.settings import Settings

__all__ = ["Throttle", "What"]

What = Literal["request", "login", "refused"]
#: A request waits for Redis no longer, and after a failure this process counts alone for a while.
REDIS_SECONDS: Final = 0.25
ALONE_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


class Throttle:
    """The limits of one process. Safe in threads; may wait for Redis."""

    def __init__(self, settings: Settings) -> None:
        self._rates: dict[What, RateLimitItem] = {
            "request": parse(settings.rate_requests),
            "login": parse(settings.rate_logins),
            "refused": parse(settings.rate_refused),
        }
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._shared = _shared(settings) if settings.redis_url or settings.http_processes > 1 else None
        self._alone_until = 0.0

    def count(self, what: What, who: str) -> None:
        """One more of `who` (a subject with its issuer, or an address). Raises TooMany ``too-many-requests``."""
        key = sha256(who.encode()).hexdigest()[:32]  # of fixed length, and no name leaves this process
        limiter = self._shared
        if limiter is not None and time.monotonic() >= self._alone_until:
            try:
                return self._hit(limiter, what, key)
            except StorageError:
                self._alone_until = time.monotonic() + ALONE_SECONDS
                log.warning("rate limits are counted by this process alone: Redis does not answer")
        return self._hit(self._own, what, key)

    def _hit(self, limiter: FixedWindowRateLimiter, what: What, key: str) -> None:
        rate = self._rates[what]
        if not limiter.hit(rate, what, key):
            wait = limiter.get_window_stats(rate, what, key).reset_time - time.time()
            raise TooMany("too-many-requests", "Too many requests; wait a little.", max(1.0, wait))


def _shared(settings: Settings) -> FixedWindowRateLimiter:
    link = RedisLink.of(settings)
    client = link.client(socket_timeout=REDIS_SECONDS, socket_connect_timeout=REDIS_SECONDS)
    scheme = "rediss" if link.tls else "redis"
    storage = RedisStorage(f"{scheme}://", connection_pool=client.connection_pool, wrap_exceptions=True)
    return FixedWindowRateLimiter(storage)
