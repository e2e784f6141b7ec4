"""The HTTP service: DICOMweb, status, health and the admin page (`python -m service.api`).

`create_app` builds one application over one gateway.  Routes come from tables; each is given the guard of
`service.access.RULES`, and a route that has none there stops the building.
"""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

import uvicorn
from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from gateway import steps
from gateway.alive import Alive
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError
from gateway.jobs import new_owner
from gateway.lifecycle import announced
from gateway.log import configure_logging
from gateway.settings import Settings, load_settings
from gateway.transport import check_http
from service import (
    admin,
    admin_actions,
    auditing,
    certificates,
    correcting,
    flower,
    health,
    ledger,
    login,
    openapi,
    problems,
    search,
    status,
    stow,
    viewer,
    wado,
    wado_uri,
)
from service.access import RouteSpec, cookie_name, guard_for, install, opens_page
from service.frames import FrameShelf
from service.headers import SecurityHeaders
from service.https import proxy_options, serve_https, serve_the_proxy
from service.login import LOGIN, drop_cookie
from service.pages import page_of
from service.prefetch import Prefetch
from service.processes import run_processes

__all__ = ["ROUTES", "create_app", "main", "run_api"]

ROUTES: tuple[RouteSpec, ...] = (
    *health.ROUTES,
    *stow.ROUTES,
    *wado.ROUTES,
    *wado_uri.ROUTES,
    *search.ROUTES,
    *status.ROUTES,
    *auditing.ROUTES,
    *ledger.ROUTES,
    *correcting.ROUTES,
    *admin.ROUTES,
    *admin_actions.ROUTES,
    *flower.ROUTES,
    *login.ROUTES,
    *viewer.ROUTES,
    *certificates.ROUTES,
    *openapi.ROUTES,
)

STOP_GRACE_SECONDS = 10
START_FAILED = 3  # as uvicorn's own
BACKLOG = 2048  # as uvicorn's own
#: Threads that may wait for the retrieve worker at once, before an answer begins and in the middle of answers. Not of
#: those that all else shares, so that a worker that hangs never keeps objects from being taken in, or health from being
#: told.
RETRIEVING = 16
#: Files this process may have open: a study being sent holds up to `wado.READY_FIRST`, and 1,024 is a common default.
OPEN_FILES = 65_536


def create_app(gateway: Gateway, routes: tuple[RouteSpec, ...] = ROUTES) -> FastAPI:
    """The application over one gateway, or some routes of it.

    Raises KeyError for a route without an access rule, PolicyRefused ``bad-oidc``.
    """
    app = FastAPI(title="Palimpsest", openapi_url=None, docs_url=None, redoc_url=None, lifespan=_life)
    app.state.gateway = gateway
    install(app, gateway)
    app.state.templates = None
    app.state.routes = routes
    app.state.retrieving = CapacityLimiter(RETRIEVING)
    app.state.sending = CapacityLimiter(RETRIEVING)
    app.state.auditing, app.state.auditing_all = auditing.Turns(), auditing.Turns()
    app.state.frames = FrameShelf()
    app.state.streams = set()
    app.state.prefetch = Prefetch()
    for method, path, endpoint in routes:
        app.add_api_route(
            path,
            endpoint,
            methods=["GET", "HEAD"] if method == "GET" else [method],  # RFC 9110 9.1: both or none
            dependencies=[Depends(guard_for(method, path))],
            response_model=None,
            include_in_schema=False,
        )
    problems.install(app)
    app.add_exception_handler(PalimpsestError, _to_login(problems.palimpsest_error))
    app.add_middleware(SecurityHeaders)
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    yield
    await run_in_threadpool(app.state.identity.refusals.stop)


ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def _to_login(otherwise: ErrorHandler) -> ErrorHandler:
    """A browser that opens a page without a session is led to the form; one of another role is told so in words."""

    async def handler(request: Request, error: Exception) -> Response:
        status = getattr(error, "http_status", 500)
        opened = opens_page(request)
        if opened and status == 401:
            query = f"?{request.url.query}" if request.url.query else ""
            response = RedirectResponse(f"{LOGIN}?next={quote(request.url.path + query, safe='')}", 303)
            if getattr(request.state, "bad_cookie", False):  # never a good one: another site's page may lead here
                drop_cookie(request, response, cookie_name(request))
            return response
        if opened and status == 403 and isinstance(error, PalimpsestError):
            return page_of(request, "denied.html", 403, error=error.message)
        return await otherwise(request, error)

    return handler


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, let requests under way end for some seconds, and return."""
    check_http(settings)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))
    if settings.http_processes == 1:
        _serve(settings, None)
        return
    build(settings).close()  # what is wrong with the settings or the database is said here, once
    family = socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET
    with socket.create_server((settings.http_host, settings.http_port), family=family, backlog=BACKLOG) as listening:
        run_processes(settings.http_processes, lambda: _serve(settings, listening), STOP_GRACE_SECONDS + 2.0)


def _serve(settings: Settings, listening: socket.socket | None) -> None:
    """One process; listening: the socket that several share, None: one of its own."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after its shutdown; a stop that was asked for is not a failure.
        signal.signal(number, lambda _number, _frame: None)
    gateway = build(settings)
    steps.watch(settings, "api")
    config = uvicorn.Config(
        create_app(gateway),
        host=settings.http_host,
        port=settings.http_port,
        log_config=None,  # ours is configured; uvicorn's access log would hold UIDs and queries
        access_log=False,
        server_header=False,
        **proxy_options(settings),
        timeout_graceful_shutdown=STOP_GRACE_SECONDS,
    )
    serve_https(config, settings)
    serve_the_proxy(config, settings)
    server = uvicorn.Server(config)
    alive = Alive(gateway.index, new_owner("api"), "api")
    alive.start()
    try:
        server.run(sockets=[listening] if listening is not None else None)
    finally:  # uvicorn leaves by SystemExit where it cannot bind
        alive.close()
    if not server.started:
        raise SystemExit(START_FAILED)
    steps.unwatch()


def main() -> None:
    """`python -m service.api`."""
    settings = load_settings()
    configure_logging(settings)
    with announced(settings, "api"):
        run_api(settings)


if __name__ == "__main__":
    main()
