"""WADO-RS: studies, series, instances and their metadata (PS3.18 10.4), in every state from Success on."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PalimpsestError
from gateway.index_rows import InstanceRow
from service import answers, wado_bulk, wado_rendered
from service.access import RouteSpec
from service.dicomxml import xml_parts
from service.media import DICOM, XML, Choice, own_first, wants_dicom, wants_metadata
from service.multipart import close_delimiter, frame_part
from service.objects import OpenObject, derived, open_as
from service.problems import HttpProblem
from service.wado_resource import accept_of, base_url, instance_path, read_event, retrieving, rows_of, target_of

__all__ = ["ROUTES", "give"]

#: Instances made ready, each one proven, before the status line goes out. A study up to this size fails as a clean 404,
#: 500 or 503, or is 206 if some of it cannot be had as asked for; of a larger one a later failure cuts the connection,
#: which every HTTP client notices. Wrong bytes go out in neither case.
READY_FIRST = 64
COERCED = "Palimpsest-Coerced"
#: How the index writes bulk data into metadata: relative to its instance, with this key in front.
_BULK = re.compile(r'"BulkDataURI": ?"bulkdata/')


async def retrieve(request: Request) -> Response:
    """GET a study, series or instance (PS3.18 10.4.1.1.1)."""
    gateway: Gateway = request.app.state.gateway
    target, accept = target_of(request), accept_of(request)
    wants_dicom(accept)  # nonsense is refused before anything is looked up
    rows = await run_in_threadpool(rows_of, gateway, target)
    if len(rows) == 1:
        return await give(request, rows[0], wants_dicom(accept))
    return _said(await _many(request, rows, wants_dicom(accept, many=True)), rows)


def _said(answer: Response, rows: Sequence[InstanceRow]) -> Response:
    """Say how many of the instances are given under corrections: their bytes are not those that were received."""
    if coerced := sum(row.coerced is not None for row in rows):
        answer.headers[COERCED] = str(coerced)
    return answer


async def by_digest(request: Request) -> Response:
    """GET /dicomweb/objects/{digest}: one version, by the SHA-256 (hex) of the file as received. Not of the standard:

    under one SOP Instance UID DICOMweb shows one instance, and here every version stays reachable, uncorrected.
    """
    gateway: Gateway = request.app.state.gateway
    choices = wants_dicom(accept_of(request))
    row = await run_in_threadpool(gateway.index.by_digest, request.path_params["digest"].lower())
    if row is None:
        raise NotFound("no-such-object", "No object of that digest was received.")
    original = replace(row, coerced=None)
    return await give(request, original, [Choice(False, choice.syntaxes) for choice in choices])


async def give(request: Request, row: InstanceRow, choices: list[Choice]) -> Response:
    """One instance: open and prove, write the audit event, and only then answer."""
    return _said(await _one(request, row, choices), [row])


async def _one(request: Request, row: InstanceRow, choices: list[Choice]) -> Response:
    gateway: Gateway = request.app.state.gateway
    choice, item = await retrieving(request, _first_possible, gateway, row, choices)
    await _audited(request, [row], [item])
    if not choice.multipart:
        return answers.single(request, item, f"{DICOM};transfer-syntax={item.transfer_syntax()}")
    boundary, tag = uuid.uuid4().hex, answers.weak_tag(item.digest)
    body = _parts([item], iter(()), boundary)
    return _related(request, [item], body, boundary, tag)


def _first_possible(gateway: Gateway, row: InstanceRow, choices: list[Choice]) -> tuple[Choice, OpenObject]:
    for number, choice in enumerate(own_first(choices, row.transfer_syntax), 1):
        try:
            return choice, open_as(gateway, row, choice.syntaxes)
        except HttpProblem as problem:
            if problem.status_code != 406 or number == len(choices):
                raise
    raise AssertionError("no choice")


async def _many(request: Request, rows: list[InstanceRow], choices: list[Choice]) -> Response:
    gateway: Gateway = request.app.state.gateway
    syntaxes = tuple(dict.fromkeys(uid for choice in choices for uid in choice.syntaxes))
    ready, refused = await retrieving(request, _open_first, gateway, rows, syntaxes)
    await _audited(request, rows, ready)
    boundary = uuid.uuid4().hex
    tag = answers.weak_tag(syntaxes, *((row.digest, row.state, row.coerced) for row in rows))
    later = (open_as(gateway, row, syntaxes) for row in rows[READY_FIRST:])
    missing = f"{refused} instances cannot be given in the transfer syntaxes asked for" if refused else ""
    return _related(request, ready, _parts(ready, later, boundary), boundary, tag, missing)


def _open_first(
    gateway: Gateway, rows: Sequence[InstanceRow], syntaxes: tuple[str, ...]
) -> tuple[list[OpenObject], int]:
    """(the first instances, how many of them cannot be given in these syntaxes). Raises what one alone would."""
    ready: list[OpenObject] = []
    refusal: HttpProblem | None = None
    refused = 0
    try:
        for row in rows[:READY_FIRST]:
            try:
                ready.append(open_as(gateway, row, syntaxes))
            except HttpProblem as problem:
                if problem.status_code != 406:
                    raise
                refusal, refused = problem, refused + 1
        if refusal is not None and not ready:
            raise refusal
    except (PalimpsestError, HttpProblem, OSError):
        _close(ready)
        raise
    return ready, refused


async def _audited(request: Request, rows: Sequence[InstanceRow], ready: list[OpenObject]) -> None:
    try:
        await run_in_threadpool(read_event, request, rows, "instances")
    except PalimpsestError:
        _close(ready)
        raise


def _related(
    request: Request, ready: list[OpenObject], body: Iterator[bytes], boundary: str, tag: str, missing: str = ""
) -> Response:
    same = answers.unchanged(request, tag)
    if same is not None or request.method == "HEAD":
        _close(ready)
    return same or answers.related(request, body, DICOM, boundary, tag, partial=missing, release=lambda: _close(ready))


def _parts(ready: list[OpenObject], later: Iterator[OpenObject], boundary: str) -> Iterator[bytes]:
    """The multipart body. An error in `later` leaves it without its closing delimiter, and the connection is cut."""
    first = True
    try:
        while (item := ready.pop(0) if ready else next(later, None)) is not None:
            headers = {
                "Content-Type": f"{DICOM};transfer-syntax={item.transfer_syntax()}",
                "Content-Length": str(item.size),
            }
            try:
                yield frame_part(boundary, headers, first=first)
                yield from item.chunks()
            finally:
                item.close()
            first = False
        yield close_delimiter(boundary)
    finally:
        _close(ready)


def _close(items: list[OpenObject]) -> None:
    for item in items:
        item.close()


async def metadata(request: Request) -> Response:
    """GET .../metadata (PS3.18 10.4.1.1.2): DICOM JSON, or XML, with references to bulk data."""
    gateway: Gateway = request.app.state.gateway
    media = wants_metadata(accept_of(request))
    rows = await run_in_threadpool(rows_of, gateway, target_of(request))
    base = base_url(request)
    # the first ones now: what the retrieve worker cannot give is a clean answer, not a cut connection
    ready = await retrieving(request, lambda: [_metadata(gateway, row, base) for row in rows[:READY_FIRST]])
    await run_in_threadpool(read_event, request, rows, "metadata")
    tag = answers.weak_tag(media, base, *((row.digest, row.indexed_at, row.coerced) for row in rows))
    same = answers.unchanged(request, tag)
    if same is not None:
        return same

    def texts() -> Iterator[str]:
        yield from ready
        for row in rows[READY_FIRST:]:
            yield _metadata(gateway, row, base)

    if media == XML:
        boundary = uuid.uuid4().hex
        return _said(answers.related(request, xml_parts(texts(), boundary), XML, boundary, tag), rows)
    return _said(answers.text(request, _json_array(texts), media, tag), rows)


def _json_array(texts: Callable[[], Iterator[str]]) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        opening = "["
        for text in texts():
            yield f"{opening}{text}".encode()
            opening = ","
        yield b"]"

    return pieces


def _metadata(gateway: Gateway, row: InstanceRow, base: str) -> str:
    """The DICOM JSON object of one instance, as text: a study's may be too much to parse."""
    text = gateway.index.metadata(row.id)
    if text is None:  # not indexed yet: the worker reads it from the file itself
        text = b"".join(derived(gateway, row, "metadata").chunks()).decode("utf-8")
    text = text.strip().removeprefix("[").removesuffix("]")
    # a quotation mark inside a value is escaped in JSON: the pattern finds keys only
    return _BULK.sub(f'"BulkDataURI": "{base}{instance_path(row)}/bulkdata/', text)


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
    *wado_bulk.ROUTES,
    *wado_rendered.ROUTES,
)
