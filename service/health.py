"""Liveness and readiness. `/healthz` says that the process answers; `/readyz` names each dependency and how it is.

Not ready means: do not send new work here.  A broker that is down does not make it so, because an object is taken in
without one (the sweep sends its message later); it is shown as degraded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError, Unavailable
from service.access import RouteSpec

__all__ = ["CHECKS", "ROUTES", "dependencies_up", "readiness"]

log = logging.getLogger(__name__)

CLOCKS_DIFFER_SECONDS: Final = 5.0  # a small part of a lease


def _database(gateway: Gateway) -> None:
    gateway.index.ping()


def _queue(gateway: Gateway) -> None:
    gateway.queue.ping()


def _spool(gateway: Gateway) -> None:
    gateway.spool.check_space()


def _archive(gateway: Gateway) -> None:
    gateway.archive.ping()


def _keys(gateway: Gateway) -> None:
    gateway.keys.kek_current()


def _clock(gateway: Gateway) -> None:
    if abs(gateway.index.clock_ahead()) > CLOCKS_DIFFER_SECONDS:
        raise Unavailable("clock-differs", "this host's clock and the database server's differ: leases go wrong")


#: dependency -> (check, needed to take objects in and give them back?)
CHECKS: Final[Mapping[str, tuple[Callable[[Gateway], None], bool]]] = {
    "database": (_database, True),
    "queue": (_queue, False),
    "spool": (_spool, True),
    "archive": (_archive, True),
    "keys": (_keys, True),
    "clock": (_clock, False),
}


def readiness(gateway: Gateway) -> tuple[bool, dict[str, dict[str, Any]]]:
    """(ready?, dependency -> {ok, required, reason}); never raises."""
    report = {name: _look(gateway, check, required) for name, (check, required) in CHECKS.items()}
    return all(entry["ok"] or not entry["required"] for entry in report.values()), report


def dependencies_up(gateway: Gateway) -> dict[str, bool]:
    """dependency -> does it answer?"""
    return {name: entry["ok"] for name, entry in readiness(gateway)[1].items()}


def _look(gateway: Gateway, check: Callable[[Gateway], None], required: bool) -> dict[str, Any]:
    try:
        check(gateway)
    except PalimpsestError as error:
        return {"ok": False, "required": required, "reason": error.reason}
    except OSError as error:
        return {"ok": False, "required": required, "reason": type(error).__name__}
    return {"ok": True, "required": required}


async def healthz(request: Request) -> Response:
    """GET /healthz: the process answers."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """GET /readyz: 200 or 503, with each dependency by name. Anybody may ask, so all who ask at once share one look."""
    state = request.app.state
    look: asyncio.Future[tuple[bool, dict[str, dict[str, Any]]]] | None = getattr(state, "look", None)
    if look is None or look.done():
        look = state.look = asyncio.ensure_future(run_in_threadpool(readiness, state.gateway))
    ready, report = await asyncio.shield(look)
    degraded = [name for name, entry in report.items() if not entry["ok"]]
    status = "ready" if ready and not degraded else "degraded" if ready else "unavailable"
    return JSONResponse({"status": status, "dependencies": report}, 200 if ready else 503)


ROUTES: tuple[RouteSpec, ...] = (("GET", "/healthz", healthz), ("GET", "/readyz", readyz))
