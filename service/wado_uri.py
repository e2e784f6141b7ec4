"""WADO-URI: one object by query parameters (PS3.18 9), for viewers that know nothing newer.

Nothing is answered here that WADO-RS would not give: the parameters are put into its terms, and its functions answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance
from gateway.index_rows import InstanceRow
from gateway.rendering import MAX_SIDE, Rendering
from gateway.uids import parse_uid
from service import answers, wado, wado_rendered
from service.access import RouteSpec
from service.media import DICOM, IMAGES, parse_accept, wants_dicom
from service.objects import derived
from service.problems import HttpProblem
from service.wado_resource import Target, retrieving, rows_of

__all__ = ["ROUTES"]

#: PS3.18 9.1.2.1 (mandatory), 9.1.2.2 and tables 9.4.1-2 and 9.5.1-2. What is not known is ignored (9.1.2).
UIDS: Final = (("studyUID", "study-uid"), ("seriesUID", "series-uid"), ("objectUID", "sop-instance-uid"))
RENDERED_ONLY: Final = frozenset(
    {"frameNumber", "rows", "columns", "region", "windowCenter", "windowWidth", "imageQuality", "annotation"}
)


async def wado_uri(request: Request) -> Response:
    """GET /wado?requestType=WADO&studyUID=...&seriesUID=...&objectUID=..."""
    query = request.query_params
    if query.get("requestType") != "WADO":
        raise HttpProblem(400, "bad-request-type", "requestType is WADO (PS3.18 9.1.2.1.1).")
    missing = [name for name, _ in UIDS if not query.get(name)]
    if missing:
        raise HttpProblem(400, "missing-parameter", f"The query has no {missing[0]} (PS3.18 9.1.2.1).")
    for refused in ("anonymize", "presentationUID"):
        if query.get(refused):
            raise HttpProblem(400, "unsupported-parameter", f"{refused} is not supported.")
    target = Target(*(parse_uid(query[name], what) for name, what in UIDS))
    gateway: Gateway = request.app.state.gateway
    (row,) = await run_in_threadpool(rows_of, gateway, target)
    metadata = await run_in_threadpool(_metadata, gateway, row)
    media = _media(query.get("contentType"), metadata, rendered=bool(RENDERED_ONLY & set(query)))
    if media != DICOM:
        return await _rendered(request, row, _rendering(IMAGES[media], query, metadata), media)
    syntax = query.get("transferSyntax", "")
    return await wado.give(request, row, wants_dicom(f"{DICOM};transfer-syntax={syntax}" if syntax else DICOM))


async def _rendered(request: Request, row: InstanceRow, how: Rendering, media: str) -> Response:
    kind = wado_rendered.kind_of(row, how)
    item = await retrieving(request, derived, request.app.state.gateway, row, kind)
    await wado_rendered.audited(request, [row], [item])
    return answers.single(request, item, media)


def _metadata(gateway: Gateway, row: InstanceRow) -> Mapping[str, Any]:
    text = gateway.index.metadata(row.id)
    if text is None:
        text = b"".join(derived(gateway, row, "metadata").chunks()).decode("utf-8")
    found = json.loads(text)
    metadata: Mapping[str, Any] = found[0] if isinstance(found, list) else found
    return metadata


def _media(wanted: str | None, metadata: Mapping[str, Any], *, rendered: bool) -> str:
    """The media type to give: of one image JPEG if nothing is asked for, of all else the object (PS3.18 9.4, 9.5)."""
    if not wanted:
        image = _number(metadata, "00280010") > 0
        return "image/jpeg" if image and (rendered or _number(metadata, "00280008") <= 1) else DICOM
    for item in parse_accept(wanted):
        if item.essence in ("*/*", "image/*"):
            return "image/jpeg"
        if item.essence in (DICOM, *IMAGES):
            return item.essence
    raise HttpProblem(406, "not-acceptable", f"Objects are given as {DICOM} or {', '.join(IMAGES)}.")


def _rendering(name: str, query: Mapping[str, str], metadata: Mapping[str, Any]) -> Rendering:
    """PS3.18 9.5 in the terms of 8.3.5. Raises HttpProblem 400 with the parameter that is wrong."""
    given: dict[str, str] = {}
    if "windowCenter" in query or "windowWidth" in query:
        given["window"] = f"{query.get('windowCenter', '')},{query.get('windowWidth', '')},linear"
    region = _region(query, metadata)
    sides = (query.get("columns"), query.get("rows"))
    if any(sides) or region:
        own = [min(MAX_SIDE, side) for side in region[2:]] if not any(sides) else (MAX_SIDE, MAX_SIDE)
        fitting = (side or str(most) for side, most in zip(sides, own, strict=True))
        given["viewport"] = ",".join((*fitting, *map(str, region)))
    if "imageQuality" in query:
        given["quality"] = query["imageQuality"]
    if "annotation" in query:
        given["annotation"] = query["annotation"]
    number = query.get("frameNumber", "1")
    if not (number.isascii() and number.isdigit() and 0 < len(number) < 8 and int(number) > 0):
        raise HttpProblem(400, "bad-frame", "frameNumber is a number from 1 on (PS3.18 9.5).")
    try:
        return Rendering.of_query(name, int(number), given)
    except InvalidInstance as error:
        raise HttpProblem(400, error.reason, error.message) from None


def _region(query: Mapping[str, str], metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """x, y, columns, rows in pixels of a region that is given in parts of the image: xmin,ymin,xmax,ymax."""
    if "region" not in query:
        return ()
    problem = HttpProblem(400, "bad-parameter", "region is xmin,ymin,xmax,ymax, each from 0 to 1 (PS3.18 9.5).")
    try:
        left, top, right, bottom = map(float, query["region"].split(","))
    except ValueError:
        raise problem from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise problem
    columns, rows = _number(metadata, "00280011"), _number(metadata, "00280010")
    x, y = int(left * columns), int(top * rows)
    return x, y, max(1, round(right * columns) - x), max(1, round(bottom * rows) - y)


def _number(metadata: Mapping[str, Any], tag: str) -> int:
    values = metadata.get(tag, {}).get("Value") or [0]
    try:
        return int(values[0])
    except (TypeError, ValueError):
        return 0


ROUTES: tuple[RouteSpec, ...] = (("GET", "/wado", wado_uri),)
