"""Corrections of patient and study attributes, and rejections, over HTTP: made, listed, revoked; never an original."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance
from gateway.pseudonym import pseudonym_patient, pseudonym_uid
from gateway.uids import parse_uid
from service.access import RouteSpec, principal_of
from service.problems import HttpProblem
from service.status import json_body, row_number
from service.trail import record

__all__ = ["ROUTES"]

FIELDS = {"study_uid", "patient_id", "issuer", "changes"}


async def correct(request: Request) -> Response:
    """POST /api/corrections {"study_uid" or "patient_id" [and "issuer"], "changes": {keyword: value}}.

    On return everything that is here is shown under it; what comes later will be. A new PatientID for a patient_id is a
    merge.
    """
    gateway: Gateway = request.app.state.gateway
    body = await json_body(request)
    if unknown := set(body) - FIELDS:
        raise HttpProblem(
            400, "bad-correction", f"{len(unknown)} fields are unknown; there are {', '.join(sorted(FIELDS))}."
        )
    changes = body.get("changes")
    if not isinstance(changes, dict):
        raise InvalidInstance("bad-correction", "changes is an object of keyword and value")
    study, patient, issuer = (_text(body, name) for name in ("study_uid", "patient_id", "issuer"))
    uid = str(parse_uid(study, "study-uid")) if study else None
    actor = principal_of(request).subject

    def work() -> tuple[int, int]:
        key = gateway.keys.pseudonym_key()
        number = gateway.index.correction_add(
            actor, changes, study_uid=uid, patient_id=patient, issuer=issuer,
            study=pseudonym_uid(uid, key) if uid else None,
            patient=pseudonym_patient(patient, "", key) if patient else None,
        )  # fmt: skip
        return number, gateway.index.corrections_run()

    number, looked = await run_in_threadpool(work)
    return JSONResponse({"id": number, "objects": looked}, 201)


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or not value.strip() or len(value) > 64 or _odd(value)):
        raise InvalidInstance("bad-correction", f"{name} is a text of 1 to 64 characters")
    return value.strip() if value is not None else None


def _odd(text: str) -> bool:
    """Whether it holds what no database can: a NUL, a half of a surrogate pair."""
    return any(each == "\0" or "\ud800" <= each <= "\udfff" for each in text)


async def corrections(request: Request) -> Response:
    """GET /api/corrections: the newest 200, revoked ones included. They name patients, so it is a read."""
    gateway: Gateway = request.app.state.gateway
    actor = principal_of(request).subject

    def work() -> list[dict[str, Any]]:
        found = gateway.index.corrections()
        record(gateway, "retrieved", actor=actor, kind="corrections", count=len(found))
        return found

    return JSONResponse({"corrections": await run_in_threadpool(work)})


async def revoke_correction(request: Request) -> Response:
    """POST /api/corrections/{id}/revoke: what it changed is shown as received again."""
    gateway: Gateway = request.app.state.gateway
    number, actor = _id(request), principal_of(request).subject

    def work() -> int:
        gateway.index.correction_revoke(number, actor)
        return gateway.index.corrections_run()

    return JSONResponse({"id": number, "objects": await run_in_threadpool(work)})


async def rejections(request: Request) -> Response:
    """GET /api/rejections: the newest 200 rejection notes (IHE IOCM), revoked ones included."""
    gateway: Gateway = request.app.state.gateway
    return JSONResponse({"rejections": await run_in_threadpool(gateway.index.rejections)})


async def revoke_rejection(request: Request) -> Response:
    """POST /api/rejections/{id}/revoke: what this note hid is shown again, unless another note hides it."""
    gateway: Gateway = request.app.state.gateway
    number = _id(request)
    count = await run_in_threadpool(gateway.index.rejection_revoke, number, principal_of(request).subject)
    return JSONResponse({"id": number, "instances": count})


def _id(request: Request) -> int:
    number = row_number(request.path_params["id"])
    if number is None:
        raise HttpProblem(400, "bad-id", "The id is a whole number.")
    return number


ROUTES: tuple[RouteSpec, ...] = (
    ("POST", "/api/corrections", correct),
    ("GET", "/api/corrections", corrections),
    ("POST", "/api/corrections/{id}/revoke", revoke_correction),
    ("GET", "/api/rejections", rejections),
    ("POST", "/api/rejections/{id}/revoke", revoke_rejection),
)
