"""Outside the demo profile nothing that matters crosses a network in clear or without a password.

PostgreSQL and Redis: over a unix socket, or over TLS with the server's certificate checked (RFC 9325) and a credential.
HTTP: over TLS, behind a proxy that does it, or on this machine only. Checked before anything is opened.
"""

from __future__ import annotations

import sqlalchemy as sa

from gateway.errors import PolicyRefused
from gateway.redis_link import RedisLink
from gateway.settings import Settings

__all__ = ["check_backends", "check_http", "database_problem", "queue_problem"]


def check_backends(settings: Settings) -> None:
    """Raise PolicyRefused ``insecure-transport`` naming each setting that is wrong, and what to say instead."""
    if settings.profile == "demo":
        return
    found = [each for each in (database_problem(settings.database), queue_problem(settings)) if each]
    if found:
        raise PolicyRefused("insecure-transport", "outside the demo profile: " + "; ".join(found))


def database_problem(url: str) -> str:
    """'' if that SQLAlchemy URL is safe to use over a network, else what is missing. Never quotes the URL."""
    made = sa.make_url(url)
    if made.get_backend_name() == "sqlite":
        return ""
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in made.query.items()}
    if "service" in query:
        return "DATABASE_URL must say itself where the database is, not name a service"
    # libpq: lists are tried in turn, hostaddr is where it connects to, and without a host PGHOST decides
    named = [made.host or "", query.get("host", ""), query.get("hostaddr", "")]
    hosts = [each.strip() for text in named for each in text.split(",") if each.strip()]
    if hosts and all(host.startswith(("/", "@")) for host in hosts):
        return ""
    if query.get("sslmode") != "verify-full":
        return "DATABASE_URL must be a unix socket (?host=/run/postgresql), or say sslmode=verify-full and sslrootcert"
    if not (made.password or query.get("passfile") or query.get("sslcert")):
        return "DATABASE_URL needs a password (in it, or by passfile=), or a client certificate (sslcert=, sslkey=)"
    return ""


def queue_problem(settings: Settings) -> str:
    """'' if the way to Redis is safe to use over a network, else what is missing. Raises as `RedisLink.of`."""
    if RedisLink.of(settings).protected:
        return ""
    return (
        "Redis must be a unix socket (REDIS_URL left out, or unix:///run/redis.sock), or TLS and a password: "
        "rediss://HOST or sentinels://HOST,HOST with PALIMPSEST_REDIS_PASSWORD_FILE"
    )


def check_http(settings: Settings) -> None:
    """Raise PolicyRefused ``insecure-http`` if the HTTP port would be open to a network in clear."""
    if settings.http_tls_cert is not None and settings.http_tls_key is None:
        raise PolicyRefused("insecure-http", "PALIMPSEST_HTTP_TLS_CERT needs its private key, PALIMPSEST_HTTP_TLS_KEY")
    if settings.profile == "demo" or settings.listens_https or settings.http_loopback:
        return
    if settings.http_proxy != "trusted":
        raise PolicyRefused(
            "insecure-http",
            "outside the demo profile HTTP is served to this machine only (PALIMPSEST_HTTP_HOST=127.0.0.1), over TLS "
            "(PALIMPSEST_HTTP_TLS_CERT and _KEY), or behind a proxy that ends TLS (PALIMPSEST_HTTP_PROXY=trusted and "
            "PALIMPSEST_HTTP_PROXY_ADDRESSES)",
        )
