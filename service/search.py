"""QIDO-RS routes: parse, ask the index, answer in DICOM JSON or XML (PS3.18 10.6.3)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydicom.datadict import keyword_for_tag
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance
from gateway.index_search import Page
from service.access import Handler, RouteSpec, principal_of
from service.dicomxml import xml_parts
from service.media import XML, wants_metadata
from service.problems import HttpProblem
from service.qido import LEVELS, RETURNED, STORED, Query, parse_query, to_dicom_json
from service.qido_attributes import belongs, tag_of
from service.stow_answer import instance_url
from service.trail import record
from service.wado_resource import accept_of

__all__ = ["ROUTES"]

PATH_KEYWORDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
#: Which UIDs make up the Retrieve URL (0008,1190) of a level.
URL_KEYWORDS = {
    "study": ("StudyInstanceUID",),
    "series": ("StudyInstanceUID", "SeriesInstanceUID"),
    "instance": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
}
#: References of the stored metadata, which are relative to their instance.
_BULK = re.compile(r'"BulkDataURI": ?"bulkdata/')


def _search(level: str) -> Handler:
    async def search(request: Request) -> Response:
        gateway: Gateway = request.app.state.gateway
        media = wants_metadata(accept_of(request))
        path = {PATH_KEYWORDS[name]: uid for name, uid in request.path_params.items()}
        query = parse_query(level, request.query_params.multi_items(), path)
        base = str(request.base_url).rstrip("/")
        items, remaining = await run_in_threadpool(_found, gateway, query, base)
        await run_in_threadpool(_query_event, request, query, len(items))
        headers = {}
        if remaining and query.limit:  # PS3.18 8.3.4.4
            text = f"There are {remaining} additional results that can be requested"
            headers["Warning"] = f'299 palimpsest "{text}"'
        if not items:
            return Response(status_code=204, headers=headers)  # PS3.18 Table 10.6.3-1
        if media != XML:
            return JSONResponse(items, headers=headers, media_type=media)
        boundary = uuid.uuid4().hex
        body = b"".join(xml_parts((json.dumps(item) for item in items), boundary))
        return Response(body, headers=headers, media_type=f'multipart/related; type="{XML}"; boundary={boundary}')

    return search


def _found(gateway: Gateway, query: Query, base: str) -> tuple[list[dict[str, Any]], int]:
    """(answers, how many more match). Raises HttpProblem 413 for a search that would read too much."""
    levels = _levels_returned(query)
    try:
        page: Page = gateway.index.page(
            query.level,  # type: ignore[arg-type]
            query.filters,
            query.options,
            limit=query.limit,
            offset=query.offset,
            keys=query.keys,
            stored=(lambda text: json.dumps(_stored(query, levels, text))) if query.limit else None,
        )
    except InvalidInstance as error:
        status = 413 if error.reason == "search-too-broad" else 400  # PS3.18 Table 10.6.3-1
        raise HttpProblem(status, error.reason, error.message) from None
    rows = zip(page.rows, page.stored, strict=False)
    return [_item(base, query, row, stored) for row, stored in rows], page.remaining


def _levels_returned(query: Query) -> list[str]:
    """The level and, of those above it, the ones that the path does not name (PS3.18 10.6.3.3)."""
    above = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
    depth = LEVELS.index(query.level)
    return [level for level in LEVELS[:depth] if above[level] not in query.passed] + [query.level]


def _item(base: str, query: Query, row: Mapping[str, Any], text: str) -> dict[str, Any]:
    levels = _levels_returned(query)
    known = {keyword: value for keyword, value in row.items() if _shown(keyword, query, levels)}
    known["InstanceAvailability"] = "ONLINE"
    uids = [row.get(keyword) for keyword in URL_KEYWORDS[query.level]]
    if all(uids):
        known["RetrieveURL"] = instance_url(base, *map(str, uids))
    answer: dict[str, Any] = json.loads(_BULK.sub(f'"BulkDataURI": "{known.get("RetrieveURL", "")}/bulkdata/', text))
    answer |= to_dicom_json(known)
    plain = json.dumps(answer, ensure_ascii=False).isascii()
    if not plain:
        answer["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    return dict(sorted(answer.items()))


def _shown(keyword: str, query: Query, levels: list[str]) -> bool:
    always = any(keyword in RETURNED[level] for level in levels)
    return always or query.include_all or keyword in query.filters or tag_of(keyword) in query.include


def _stored(query: Query, levels: list[str], text: str) -> dict[str, Any]:
    """What is returned of the stored metadata: attributes of this level and above, references to bulk data of instances
    only, for those of one instance are not those of its study.
    """
    dataset: dict[str, Any] = json.loads(text)
    wanted = {tag_of(keyword) for level in levels for keyword in STORED[level]} | query.include
    answer = {}
    for tag, element in dataset.items():
        if tag not in wanted and not (query.include_all and belongs(keyword_for_tag(int(tag, 16)), query.level)):
            continue
        if query.level == "instance" or '"BulkDataURI"' not in json.dumps(element):
            answer[tag] = element
    return answer


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
