"""Commands for containers: `migrate` and `warm` before their processes start, `healthy` while they run."""

from __future__ import annotations

import socket
import ssl
import time
import urllib.error
import urllib.request
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.settings import Settings

__all__ = ["Role", "register", "unhealthy"]

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 1.0
BEATS_MISSED = 12  # a worker writes a beat every five seconds, less often while the database is busy


class Role(StrEnum):
    """What is asked about."""

    API = "api"
    LISTENER = "listener"
    WORKER = "worker"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Single processes")(migrate)
    app.command(rich_help_panel="Single processes")(warm)
    app.command(rich_help_panel="Single processes")(healthy)


def warm(home: Home = None) -> None:
    """Compile the codec's kernels for this processor, as `palimpsest run` does, before single workers are started."""
    from gateway.settings import load_settings, use_numba_cache

    settings = load_settings(home=home) if home is not None else load_settings()
    use_numba_cache(settings)  # before the first kernel is imported
    from palimpsest.warm import warm_chain, warm_frames, warm_objects

    warm_frames()
    warm_chain()
    warm_objects()


def migrate(
    wait: Annotated[float, typer.Option(min=0, help="Seconds that the database is waited for.")] = 0.0,
    home: Home = None,
) -> None:
    """Prepare folders, database and key ring, then stop: once before single processes are started."""
    from gateway.bootstrap import build
    from gateway.errors import Unavailable
    from gateway.settings import load_settings

    settings = load_settings(home=home) if home is not None else load_settings()
    deadline = time.monotonic() + wait
    while True:
        try:
            build(settings).close()
            break
        except Unavailable as error:
            if error.reason != "database-unavailable" or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_SECONDS)
    typer.echo(f"ready: {settings.home}")


def healthy(
    role: Annotated[Role, typer.Argument(help="Which of this host's processes.")],
    home: Home = None,
) -> None:
    """Exit 0 if the API answers, the listener takes connections, or a worker of this host beat within a minute; else 1.

    For health checks of containers. What a process depends on (database, archive, space) is in GET /readyz instead.
    """
    from gateway.settings import load_settings

    settings = load_settings(home=home) if home is not None else load_settings()
    if problem := unhealthy(settings, role):
        typer.echo(problem, err=True)
        raise typer.Exit(1)


def unhealthy(settings: Settings, role: Role) -> str:
    """What is wrong, '' for nothing. Raises Unavailable if the database must be asked and does not answer."""
    match role:
        case Role.API:
            return _api(settings)
        case Role.LISTENER:
            return _listener(settings)
        case Role.WORKER:
            return _worker(settings)


def _api(settings: Settings) -> str:
    from palimpsest.addresses import reachable

    host = reachable(settings.http_host)
    place = f"{f'[{host}]' if ':' in host else host}:{settings.http_port}/healthz"
    try:
        if settings.listens_https:
            with urllib.request.urlopen(f"https://{place}", timeout=ANSWER_SECONDS, context=_ours(settings)):
                return ""
        with urllib.request.urlopen(f"http://{place}", timeout=ANSWER_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return f"the API answers {error.code}"
    except (OSError, ValueError) as error:
        return f"the API does not answer ({type(error).__name__})"


def _ours(settings: Settings) -> ssl.SSLContext:
    """Trusts the certificate that this host serves, and no other; under which name it is asked does not matter."""
    context = ssl.create_default_context(cafile=settings.http_tls_cert)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _listener(settings: Settings) -> str:
    from palimpsest.addresses import reachable

    for port in settings.open_dicom_ports:
        try:
            socket.create_connection((reachable(settings.dicom_host), port), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            return f"the listener takes no connection on port {port} ({type(error).__name__})"
    return ""


def _worker(settings: Settings) -> str:
    from gateway.index import Index
    from gateway.index_worker import BEAT_SECONDS, DOORS

    index = Index(settings.database)
    try:
        here, limit = socket.gethostname()[:64], index.now() - BEATS_MISSED * BEAT_SECONDS
        found = [each for each in index.workers() if each.host == here and each.name not in DOORS]
        alive = any(each.seen_at >= limit for each in found)
    finally:
        index.close()
    return "" if alive else f"no worker of this host was seen within {BEATS_MISSED * BEAT_SECONDS:g} s"
