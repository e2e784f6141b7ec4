"""QIDO-RS routes: parse, ask the index, answer in DICOM JSON (PS3.18 10.6.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from service.access import Handler, RouteSpec, principal_of
from service.media import accepts
from service.qido import RETURNED, Query, parse_query, to_dicom_json
from service.stow_answer import DICOM_JSON, instance_url
from service.trail import record

__all__ = ["ROUTES"]

PATH_KEYWORDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
#: Which UIDs make up the Retrieve URL (0008,1190) of a level.
URL_KEYWORDS = {
    "study": ("StudyInstanceUID",),
    "series": ("StudyInstanceUID", "SeriesInstanceUID"),
    "instance": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
}


def _search(level: str) -> Handler:
    async def search(request: Request) -> Response:
        gateway: Gateway = request.app.state.gateway
        media = accepts(request.headers.get("accept"), DICOM_JSON, "application/json")
        path = {PATH_KEYWORDS[name]: uid for name, uid in request.path_params.items()}
        query = parse_query(level, request.query_params.multi_items(), path)
        rows = await run_in_threadpool(_found, gateway, query)
        await run_in_threadpool(_query_event, request, query, len(rows))
        base = str(request.base_url).rstrip("/")
        headers = {}
        if len(rows) == query.limit > 0:
            headers["Warning"] = '299 palimpsest "There may be more results: ask again with an offset."'
        if not rows:
            return Response(status_code=204)  # PS3.18 Table 10.6.3-1
        return JSONResponse([_item(base, query, row) for row in rows], headers=headers, media_type=media)

    return search


def _found(gateway: Gateway, query: Query) -> list[Mapping[str, Any]]:
    if query.limit == 0:
        return []
    return list(
        gateway.index.search(
            query.level, dict(query.filters), limit=query.limit, offset=query.offset, fuzzy=query.fuzzy
        )
    )


def _item(base: str, query: Query, row: Mapping[str, Any]) -> dict[str, Any]:
    always = set(RETURNED[query.level]) | set(query.filters) | query.include
    wanted = {keyword: value for keyword, value in row.items() if query.include_all or keyword in always}
    wanted["InstanceAvailability"] = "ONLINE"
    uids = [row.get(keyword) for keyword in URL_KEYWORDS[query.level]]
    if all(uids):
        wanted["RetrieveURL"] = instance_url(base, *map(str, uids))
    return to_dicom_json(wanted)


def _query_event(request: Request, query: Query, count: int) -> None:
    """A search shows patient data, so it is a read (PS3.15 A.5.3.10); the trail gets the names of the keys, never their
    values.
    """
    record(
        request.app.state.gateway,
        "retrieved",
        actor=principal_of(request).subject,
        outcome="success",
        study_uid=query.filters.get("StudyInstanceUID"),
        kind="search",
        level=query.level,
        count=count,
    )


studies, series, instances = (_search(level) for level in ("study", "series", "instance"))

ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/dicomweb/studies", studies),
    ("GET", "/dicomweb/series", series),
    ("GET", "/dicomweb/instances", instances),
    ("GET", "/dicomweb/studies/{study}/series", series),
    ("GET", "/dicomweb/studies/{study}/instances", instances),
    ("GET", "/dicomweb/studies/{study}/series/{series}/instances", instances),
)
