"""Every refusal over HTTP as RFC 9457 problem details, from one table; nothing of the request is quoted back.

The one broad `except` of the HTTP side is FastAPI's handler for `Exception`, installed here: it logs the class of the
error and answers 500, so that a bug in one request never reaches another and never shows a stack to a client.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from gateway.errors import PalimpsestError, Unavailable
from service.multipart import MultipartError

__all__ = ["HttpProblem", "install", "palimpsest_error", "problem_response"]

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger(__name__)


class HttpProblem(HTTPException):
    """A refusal that belongs to HTTP itself (RFC 9110): wrong media type, no token, bad query."""

    def __init__(self, status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.reason = reason


def problem_response(
    status: int, reason: str, detail: str, *, title: str = "", headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """RFC 9457 response; `reason` is a machine word, `detail` a sentence without patient data."""
    body = {
        "type": f"urn:palimpsest:problem:{reason}",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "reason": reason,
        **more,
    }
    return JSONResponse(body, status, headers, MEDIA_TYPE)


async def palimpsest_error(request: Request, error: Exception) -> Response:
    """The answer to one of our own errors: its problem, with Retry-After or WWW-Authenticate where they belong."""
    assert isinstance(error, PalimpsestError)
    body = error.problem()
    headers = _headers(error)
    if body["status"] >= 500:
        log.warning("request failed", extra={"reason": error.reason, "status": body["status"]})
    return JSONResponse(body, body["status"], headers, MEDIA_TYPE)


def _headers(error: PalimpsestError) -> dict[str, str]:
    if isinstance(error, Unavailable):
        return {"Retry-After": str(max(1, round(error.retry_after)))}
    if error.http_status == 401:
        return {"WWW-Authenticate": 'Bearer realm="palimpsest"'}  # RFC 6750 3
    return {}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, HttpProblem):
        return problem_response(error.status_code, error.reason, error.detail, headers=dict(error.headers or {}))
    phrase = HTTPStatus(error.status_code).phrase
    return problem_response(
        error.status_code, phrase.lower().replace(" ", "-"), phrase, headers=dict(error.headers or {})
    )


async def _multipart(request: Request, error: Exception) -> Response:
    assert isinstance(error, MultipartError)
    return problem_response(400, f"multipart-{error.reason}", str(error))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", extra={"reason": type(error).__name__})
    return problem_response(500, "internal-error", "An unexpected error; the log names it.")


def install(app: FastAPI) -> None:
    """Install the handlers; every answer from 400 up is then application/problem+json."""
    app.add_exception_handler(PalimpsestError, palimpsest_error)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(MultipartError, _multipart)
    app.add_exception_handler(Exception, _unexpected)
