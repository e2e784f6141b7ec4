"""Restore certificates over HTTP: of one instance by its number, and of a study (docs/certificate.md)."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.certificate import certify_instance, certify_study
from gateway.errors import NotFound
from gateway.uids import parse_uid
from service.access import RouteSpec, principal_of
from service.status import row_number

__all__ = ["ROUTES"]


async def of_instance(request: Request) -> Response:
    """GET /api/instances/{id}/certificate: 404 if there is no such row, 503 while it is not archived yet."""
    number = row_number(request.path_params["id"])
    if number is None:
        raise NotFound("unknown-instance", "An instance is named by its number, as /api/instances shows it.")
    gateway: Gateway = request.app.state.gateway
    actor = principal_of(request).subject
    return _answer(await run_in_threadpool(lambda: certify_instance(gateway, number, actor=actor)))


async def of_study(request: Request) -> Response:
    """GET /api/studies/{study}/certificate: the same for all that was received of a study."""
    study = parse_uid(request.path_params["study"], "study-uid")
    gateway: Gateway = request.app.state.gateway
    actor = principal_of(request).subject
    return _answer(await run_in_threadpool(lambda: certify_study(gateway, study, actor=actor)))


def _answer(certificate: bytes) -> Response:
    return Response(certificate, media_type="application/json")


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/api/instances/{id}/certificate", of_instance),
    ("GET", "/api/studies/{study}/certificate", of_study),
)
