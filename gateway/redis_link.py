"""The way to the broker, one for Celery and for every other client: a socket, one server, TLS, or Sentinel.

    redis://[user:password@]host[:port][/db]                      one server, in clear
    rediss://[user:password@]host[:port][/db]                     TLS, certificate and host name checked
    sentinel://[user:password@]host[:port],host[:port],...[/db]   the master that these Sentinels name
    sentinels://...                                               the same, TLS to the Sentinels and to the master

User and password are the server's; those of the Sentinels stand in settings (settings_hosts.py), as do the CA and a
client certificate. Sentinel's protocol: https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, unquote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from gateway.errors import Unavailable
from gateway.settings import Settings

__all__ = ["CONNECT_SECONDS", "RedisLink"]

CONNECT_SECONDS: Final = 2.0
#: A server that vanished without closing (a dead host, a failover) is given up after so long: kombu's Redis transport,
#: socket_timeout. Above the ten seconds that a worker's own read may block.
ANSWER_SECONDS: Final = 15.0
REDIS_PORT, SENTINEL_PORT = 6379, 26379
_ONCE: Final = Retry(NoBackoff(), 0)
SCHEMES: Final = {"redis": False, "rediss": True, "sentinel": False, "sentinels": True}  # scheme -> TLS?
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class RedisLink:
    """Where the broker is and how it is reached. No field with a secret is in the repr."""

    hosts: tuple[tuple[str, int], ...] = ()
    socket: str = ""
    sentinel: bool = False
    tls: bool = False
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    master: str = ""
    sentinel_password: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @classmethod
    def of(cls, settings: Settings) -> RedisLink:
        """Raises Unavailable ``bad-redis-url``, which does not repeat what is in the URL."""
        if settings.redis_url is None:
            return cls(socket=str(settings.redis_socket))
        scheme, _, rest = settings.redis_url.partition("://")
        if scheme in ("unix", "redis+socket"):
            return cls(socket=rest)
        if scheme not in SCHEMES:
            raise _bad("it begins with redis://, rediss://, sentinel:// or sentinels://")
        sentinel = scheme.startswith("sentinel")
        login, hosts, db = _split(rest)
        return cls(
            hosts=_hosts(hosts, SENTINEL_PORT if sentinel else REDIS_PORT, many=sentinel),
            sentinel=sentinel,
            tls=SCHEMES[scheme],
            db=db,
            username=login[0],
            password=settings.redis_password or login[1],
            master=settings.redis_sentinel_master,
            sentinel_password=settings.redis_sentinel_password,
            ca_file=str(settings.redis_ca_file or ""),
            cert_file=str(settings.redis_cert_file or ""),
            key_file=str(settings.redis_key_file or ""),
        )

    @property
    def protected(self) -> bool:
        """Nobody else can read it or speak to it: a socket of this machine, or TLS with a password."""
        return bool(self.socket) or (self.tls and bool(self.password or self.cert_file))

    @property
    def where(self) -> str:
        """The address, for people; no credential."""
        if self.socket:
            return "socket"
        names = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{names} (Sentinel, master {self.master})" if self.sentinel else names

    def client(self, **options: Any) -> redis.Redis:
        """A client of redis-py; options go to its connections. Connects when it is used, and fails at once: who asks
        knows better than redis-py, which would try for seconds, whether to ask again.
        """
        given: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "retry": _ONCE,
        }
        given |= {**self._login, **options}
        if self.socket:
            return redis.Redis(unix_socket_path=self.socket, db=self.db, **given)
        given |= {"db": self.db, "ssl": self.tls, **(self._tls if self.tls else {})}
        if self.sentinel:
            found = Sentinel(  # type: ignore[no-untyped-call]
                list(self.hosts), sentinel_kwargs=self._sentinel_options, **given
            )
            client: redis.Redis = found.master_for(self.master)  # type: ignore[no-untyped-call]
            return client
        host, port = self.hosts[0]
        return redis.Redis(host=host, port=port, **given)

    def celery_settings(self) -> dict[str, Any]:
        """What Celery is told of broker and result backend; `transport_options` are for both."""
        urls = ";".join(self._kombu_url(host, port) for host, port in self.hosts) or f"redis+socket://{self.socket}"
        found: dict[str, Any] = {"broker_url": urls, "result_backend": urls}
        if self.tls:
            found |= {"broker_use_ssl": self._tls, "redis_backend_use_ssl": self._tls}
        return found

    @cached_property
    def transport_options(self) -> dict[str, Any]:
        """Of kombu's transport and of Celery's result backend."""
        if not self.sentinel:
            return {}
        return {"master_name": self.master, "sentinel_kwargs": self._sentinel_options}

    @property
    def _login(self) -> dict[str, str]:
        return {name: value for name, value in (("username", self.username), ("password", self.password)) if value}

    @property
    def _tls(self) -> dict[str, Any]:
        named = {"ssl_ca_certs": self.ca_file, "ssl_certfile": self.cert_file, "ssl_keyfile": self.key_file}
        checks = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
        return checks | {name: value for name, value in named.items() if value}

    @property
    def _sentinel_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": CONNECT_SECONDS}
        options["retry"] = _ONCE
        if self.sentinel_password:
            options["password"] = self.sentinel_password
        return options | ({"ssl": True, **self._tls} if self.tls else {})

    def _kombu_url(self, host: str, port: int) -> str:
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self._login else ""
        return f"{'sentinel' if self.sentinel else 'redis'}://{login}{host}:{port}/{self.db}"


def _split(rest: str) -> tuple[tuple[str, str], str, int]:
    """((user, password), host list, database number) of what stands behind the scheme."""
    if "?" in rest or "#" in rest:
        raise _bad("it takes no options: TLS files and the Sentinel's master are settings (PALIMPSEST_REDIS_...)")
    login, _, place = rest.rpartition("@")
    user, _, password = login.partition(":")
    hosts, _, db = place.partition("/")
    if not re.fullmatch(r"[0-9]{0,4}", db):
        raise _bad("behind the hosts stands /N, the number of a database, or nothing")
    return (unquote(user), unquote(password)), hosts, int(db or 0)


def _hosts(text: str, default: int, *, many: bool) -> tuple[tuple[str, int], ...]:
    found = []
    for part in re.split("[,;]", text):
        match = _HOST.fullmatch(part)
        port = int(match[2] or default) if match else 0
        if match is None or not 0 < port < 65536:
            raise _bad("a host is a name or an address, and behind a colon its port")
        found.append((match[1].strip("[]"), port))
    if len(found) > 1 and not many:
        raise _bad("several hosts are for sentinel:// only")
    return tuple(found)


def _bad(why: str) -> Unavailable:
    return Unavailable("bad-redis-url", f"REDIS_URL cannot be used: {why}")
