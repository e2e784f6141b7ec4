"""The HTTP service: DICOMweb, status, health and the admin page (`python -m service.api`).

`create_app` builds one application over one gateway.  Routes come from tables; each is given the guard of
`service.access.RULES`, and a route that has none there stops the building.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Awaitable, Callable

import uvicorn
from anyio import CapacityLimiter
from fastapi import Depends, FastAPI
from fastapi.responses import RedirectResponse
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import steps
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError
from gateway.log import configure_logging
from gateway.settings import Settings, load_settings
from service import (
    admin,
    certificates,
    correcting,
    health,
    ledger,
    openapi,
    problems,
    search,
    status,
    stow,
    viewer,
    wado,
)
from service.access import COOKIE_PATH, RouteSpec, guard_for
from service.frames import FrameShelf
from service.prefetch import Prefetch

__all__ = ["ROUTES", "create_app", "main", "run_api"]

ROUTES: tuple[RouteSpec, ...] = (
    *health.ROUTES,
    *stow.ROUTES,
    *wado.ROUTES,
    *search.ROUTES,
    *status.ROUTES,
    *ledger.ROUTES,
    *correcting.ROUTES,
    *admin.ROUTES,
    *viewer.ROUTES,
    *certificates.ROUTES,
    *openapi.ROUTES,
)

#: No script, no frame, no foreign resource; images of patients and tokens are never cached by anything between.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NO_STORE = "no-store"
STOP_GRACE_SECONDS = 10
#: Threads that may wait for the retrieve worker at once, before an answer begins and in the middle of answers. Not of
#: those that all else shares, so that a worker that hangs never keeps objects from being taken in, or health from being
#: told.
RETRIEVING = 16
#: Files this process may have open: a study being sent holds up to `wado.READY_FIRST`, and 1,024 is a common default.
OPEN_FILES = 65_536


class SecurityHeaders:
    """ASGI middleware that adds the headers above to every answer, errors included. It never touches a body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add headers when the answer starts."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", NO_STORE)
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def create_app(gateway: Gateway) -> FastAPI:
    """The application over one gateway. Raises KeyError for a route without an access rule."""
    app = FastAPI(title="Palimpsest", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.gateway = gateway
    app.state.templates = None
    app.state.routes = ROUTES
    app.state.retrieving = CapacityLimiter(RETRIEVING)
    app.state.sending = CapacityLimiter(RETRIEVING)
    app.state.frames = FrameShelf()
    app.state.streams = set()
    app.state.prefetch = Prefetch()
    for method, path, endpoint in ROUTES:
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


ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def _to_login(otherwise: ErrorHandler) -> ErrorHandler:
    """A browser without a valid token is led to the form; everything else gets the problem."""

    async def handler(request: Request, error: Exception) -> Response:
        status = getattr(error, "http_status", 500)
        page = request.method == "GET" and request.url.path == COOKIE_PATH
        if page and status in (401, 403) and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(COOKIE_PATH + "/login", 303)
        return await otherwise(request, error)

    return handler


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, let requests under way end for some seconds, and return."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after its shutdown; a stop that was asked for is not a failure.
        signal.signal(number, lambda _number, _frame: None)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))
    gateway = build(settings)
    steps.watch(settings, "api")
    uvicorn.run(
        create_app(gateway),
        host=settings.http_host,
        port=settings.http_port,
        log_config=None,  # ours is configured; uvicorn's access log would hold UIDs and queries
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_GRACE_SECONDS,
    )
    steps.unwatch()


def main() -> None:
    """`python -m service.api`."""
    settings = load_settings()
    configure_logging(settings)
    run_api(settings)


if __name__ == "__main__":
    main()
