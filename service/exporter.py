"""`palimpsest exporter`: metrics and health of a host that has no API, behind the same guard."""

from __future__ import annotations

import uvicorn
from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from gateway import steps
from gateway.bootstrap import build
from gateway.log import configure_logging
from gateway.metrics_read import host_exposition
from gateway.settings import load_settings
from gateway.transport import check_http
from service import health
from service.access import RouteSpec
from service.api import create_app
from service.https import proxy_options, serve_https

__all__ = ["ROUTES", "main"]


async def metrics(request: Request) -> Response:
    """GET /metrics: what the processes of this host counted, how many live, and its disks."""
    text = await run_in_threadpool(host_exposition, request.app.state.gateway)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


ROUTES: tuple[RouteSpec, ...] = (*health.ROUTES, ("GET", "/metrics", metrics))


def main() -> None:
    """Serve until SIGTERM or SIGINT; HTTPS as the API's own settings say."""
    settings = load_settings()
    configure_logging(settings)
    here = settings.model_copy(update={"http_host": settings.exporter_host, "http_port": settings.exporter_port})
    check_http(here)
    gateway = build(settings)
    steps.watch(settings, "exporter")
    config = uvicorn.Config(
        create_app(gateway, ROUTES),
        host=here.http_host,
        port=here.http_port,
        log_config=None,
        access_log=False,
        server_header=False,
        **proxy_options(here),
    )
    serve_https(config, here)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
