"""WADO-RS: studies, series, instances, their metadata and rendered images (PS3.18 10.4), in every state from Success
on.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anyio import to_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from gateway import metrics
from gateway.bootstrap import Gateway
from gateway.errors import Gone, NotFound, PalimpsestError
from gateway.index_rows import InstanceRow
from gateway.pseudonym import pseudonym_uid
from gateway.uids import parse_uid
from service.access import RouteSpec, principal_of
from service.media import DICOM, accepts, wants_dicom, wants_image
from service.multipart import close_delimiter, frame_part
from service.objects import OpenObject, derived, open_original
from service.problems import HttpProblem
from service.trail import record

__all__ = ["ROUTES"]

T = TypeVar("T")

DICOM_JSON = "application/dicom+json"
#: Instances made ready, each one proven, before the status line goes out. A study up to this size fails as a clean 404,
#: 500 or 503; of a larger one a later failure cuts the connection, which every HTTP client notices. Wrong bytes go out
#: in neither case.
READY_FIRST = 64


@dataclass(frozen=True)
class _Target:
    """The UIDs of the path, checked."""

    study: str
    series: str | None
    instance: str | None


def _target(request: Request) -> _Target:
    path = request.path_params
    return _Target(
        parse_uid(path["study"], "study-uid"),
        parse_uid(path["series"], "series-uid") if "series" in path else None,
        parse_uid(path["instance"], "sop-instance-uid") if "instance" in path else None,
    )


def _rows(gateway: Gateway, target: _Target) -> list[InstanceRow]:
    """The instances served under a path, in a stable order; raises NotFound, Gone."""
    if target.instance is None:
        rows = gateway.index.by_study(target.study, target.series)
    else:  # by its own UID: a viewer asks for every instance of a great series in turn
        row = gateway.index.by_sop(target.instance)
        rows = [row] if row and (row.study_uid, row.series_uid) == (target.study, target.series) else []
    if not rows:
        if _forgotten(gateway, target.study):
            raise Gone("identity-shredded", "What was stored under this path was destroyed on purpose.")
        raise NotFound("no-such-resource", "Nothing is stored under this path.")
    return sorted(rows, key=lambda row: (row.series_uid or "", row.id))


def _forgotten(gateway: Gateway, study: str) -> bool:
    """Whether instances of this study were shredded: they stand under the pseudonym of its UID."""
    rows = gateway.index.by_study(pseudonym_uid(study, gateway.keys.pseudonym_key()))
    return any(row.shredded_at is not None for row in rows)


def _read_event(request: Request, rows: Sequence[InstanceRow], what: str) -> None:
    """The audit event of a read (PS3.15 A.5.3.6); failing to write it fails the read."""
    record(
        request.app.state.gateway,
        "retrieved",
        actor=principal_of(request).subject,
        outcome="success",
        instance_id=rows[0].id if len(rows) == 1 else None,
        study_uid=rows[0].study_uid,
        kind=what,
        count=len(rows),
    )
    metrics.RETRIEVED.labels(kind=what, outcome="success").inc(len(rows))


async def _retrieving(request: Request, work: Callable[..., T], *args: object) -> T:
    """Run what may wait for the retrieve worker, in one of the threads set apart for that."""
    return await to_thread.run_sync(work, *args, limiter=request.app.state.retrieving)


def _open_allowed(gateway: Gateway, row: InstanceRow, syntaxes: frozenset[str]) -> OpenObject:
    item = open_original(gateway, row)
    if syntaxes and item.transfer_syntax() not in syntaxes:
        item.file.close()
        raise HttpProblem(
            406,
            "transfer-syntax",
            "Instances are given in the transfer syntax they have here: ask for transfer-syntax=*.",
        )
    return item


def _open_first(gateway: Gateway, rows: Sequence[InstanceRow], syntaxes: frozenset[str]) -> list[OpenObject]:
    ready: list[OpenObject] = []
    try:
        for row in rows[:READY_FIRST]:
            ready.append(_open_allowed(gateway, row, syntaxes))
    except (PalimpsestError, HttpProblem, OSError):
        for item in ready:
            item.file.close()
        raise
    return ready


def _parts(
    gateway: Gateway, ready: list[OpenObject], later: Sequence[InstanceRow], syntaxes: frozenset[str], boundary: str
) -> Iterator[bytes]:
    """The multipart body. An error in `later` leaves it without its closing delimiter, and the connection is cut."""
    queue = iter(later)
    first = True
    try:
        while ready or (row := next(queue, None)) is not None:
            item = ready.pop(0) if ready else _open_allowed(gateway, row, syntaxes)
            headers = {
                "Content-Type": f"{DICOM};transfer-syntax={item.transfer_syntax()}",
                "Content-Length": str(item.size),
            }
            yield frame_part(boundary, headers, first=first)
            yield from item.chunks()
            first = False
        yield close_delimiter(boundary)
    finally:
        for item in ready:
            item.file.close()


async def retrieve(request: Request) -> Response:
    """GET a study, series or instance (PS3.18 10.4.1.1.1)."""
    gateway: Gateway = request.app.state.gateway
    target, accept = _target(request), request.headers.get("accept")
    wants_dicom(accept)  # nonsense is refused before anything is looked up
    rows = await run_in_threadpool(_rows, gateway, target)
    multipart, syntaxes = wants_dicom(accept, many=len(rows) > 1)
    return await _give(request, rows, multipart, syntaxes)


async def by_digest(request: Request) -> Response:
    """GET /dicomweb/objects/{digest}: one version, by the SHA-256 (hex) of the file as received. Not of the standard:

    under one SOP Instance UID DICOMweb shows one instance, and here every version stays reachable.
    """
    gateway: Gateway = request.app.state.gateway
    _, syntaxes = wants_dicom(request.headers.get("accept"))
    row = await run_in_threadpool(gateway.index.by_digest, request.path_params["digest"].lower())
    if row is None:
        raise NotFound("no-such-object", "No object of that digest was received.")
    return await _give(request, [row], False, syntaxes)


async def _give(request: Request, rows: Sequence[InstanceRow], multipart: bool, syntaxes: frozenset[str]) -> Response:
    """Open and prove, write the audit event, and only then answer."""
    gateway: Gateway = request.app.state.gateway
    ready = await _retrieving(request, _open_first, gateway, rows, syntaxes)
    try:
        await run_in_threadpool(_read_event, request, rows, "instances")
    except PalimpsestError:
        for item in ready:
            item.file.close()
        raise
    if not multipart:
        media = f"{DICOM};transfer-syntax={ready[0].transfer_syntax()}"
        return StreamingResponse(ready[0].chunks(), headers={"Content-Length": str(ready[0].size)}, media_type=media)
    boundary = uuid.uuid4().hex
    body = _parts(gateway, ready, rows[READY_FIRST:], syntaxes, boundary)
    return StreamingResponse(body, media_type=f'multipart/related; type="{DICOM}"; boundary={boundary}')


def _metadata(gateway: Gateway, row: InstanceRow) -> str:
    """The DICOM JSON object of one instance, as text: a study's may be too much to parse."""
    text = gateway.index.metadata(row.id)
    if text is None:  # not indexed yet: the worker reads it from the file itself
        text = b"".join(derived(gateway, row, "metadata").chunks()).decode("utf-8")
    return text.strip().removeprefix("[").removesuffix("]")


async def metadata(request: Request) -> Response:
    """GET .../metadata (PS3.18 10.4.1.1.2): DICOM JSON without bulk data."""
    gateway: Gateway = request.app.state.gateway
    media = accepts(request.headers.get("accept"), DICOM_JSON, "application/json")
    rows = await run_in_threadpool(_rows, gateway, _target(request))
    found = await _retrieving(request, lambda: "[" + ",".join(_metadata(gateway, row) for row in rows) + "]")
    await run_in_threadpool(_read_event, request, rows, "metadata")
    return Response(found, media_type=media)


async def rendered(request: Request) -> Response:
    """GET .../rendered and .../frames/{n}/rendered (PS3.18 10.4.1.1.3): one PNG or JPEG; without a frame number, frame
    1.
    """
    gateway: Gateway = request.app.state.gateway
    unsupported = sorted(set(request.query_params) - {"accept"})
    if unsupported:
        raise HttpProblem(400, "unsupported-parameter", "No query parameter changes how an image is rendered here.")
    media, name = wants_image(request.query_params.get("accept") or request.headers.get("accept"))
    frame = request.path_params.get("frames", "1")
    if not (frame.isascii() and frame.isdigit() and 1 <= len(frame) <= 9 and int(frame) > 0):
        raise HttpProblem(400, "bad-frame", "One frame number, 1 or more, is rendered at a time.")
    rows = await run_in_threadpool(_rows, gateway, _target(request))
    item = await _retrieving(request, derived, gateway, rows[0], f"rendered:{name}:{int(frame)}")
    await run_in_threadpool(_read_event, request, rows, "rendered")
    return StreamingResponse(item.chunks(), headers={"Content-Length": str(item.size)}, media_type=media)


_STUDY = "/dicomweb/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"

ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/dicomweb/objects/{digest}", by_digest),
    ("GET", _STUDY, retrieve),
    ("GET", _SERIES, retrieve),
    ("GET", _INSTANCE, retrieve),
    ("GET", _STUDY + "/metadata", metadata),
    ("GET", _SERIES + "/metadata", metadata),
    ("GET", _INSTANCE + "/metadata", metadata),
    ("GET", _INSTANCE + "/rendered", rendered),
    ("GET", _INSTANCE + "/frames/{frames}/rendered", rendered),
)
