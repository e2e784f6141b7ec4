"""WADO-RS: rendered images and thumbnails (PS3.18 10.4.1.1.3, 10.4.1.1.4, 8.3.5)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, NotFound, PalimpsestError
from gateway.index_rows import InstanceRow
from gateway.rendering import PARAMETERS, THUMBNAIL, Rendering
from service import answers
from service.access import RouteSpec
from service.frames import frame_numbers
from service.media import parse_accept, wants_image
from service.multipart import close_delimiter, frame_part
from service.objects import OpenObject, derived
from service.problems import HttpProblem
from service.wado_resource import accept_of, instance_path, read_event, retrieving, rows_of, target_of

__all__ = ["ROUTES", "audited", "kind_of"]

#: Images of a study or series rendered before the status line goes out.
READY_FIRST = 16
#: Instances of a study or series that are tried for its thumbnail.
TRIED = 8


async def rendered(request: Request) -> Response:
    """GET .../rendered and .../frames/{list}/rendered: one image, or multipart of several.

    Of an instance without a frame list its first frame; of a study or series the first frame of every image.
    """
    how, media = _wanted(request, PARAMETERS)
    numbers = frame_numbers(request.path_params.get("frames", "1"))
    gateway: Gateway = request.app.state.gateway
    target = target_of(request)
    rows = await run_in_threadpool(rows_of, gateway, target)
    asked = [(row, kind_of(row, replace(how, frame=number))) for row in rows for number in numbers]
    if target.instance is not None and len(numbers) == 1:
        item = await retrieving(request, derived, gateway, *asked[0])
        await audited(request, rows, [item])
        return answers.single(request, item, media)
    if not _takes_several(request):
        raise HttpProblem(406, "not-acceptable", f'Several images are given as multipart/related; type="{media}" only.')
    ready, refused = await retrieving(request, _first, gateway, asked[:READY_FIRST], target.instance is None)
    await audited(request, rows, [item for _, item in ready])
    of = ((row.digest, row.state, row.coerced) for row in rows)
    boundary, tag = uuid.uuid4().hex, answers.weak_tag(how.kind(), numbers, *of)
    same = answers.unchanged(request, tag)
    if same is not None or request.method == "HEAD":
        for _, item in ready:
            item.close()
    missing = f"{refused} instances have no image to be rendered" if refused else ""
    body = _parts(gateway, ready, asked[READY_FIRST:], media, boundary)
    return same or answers.related(request, body, media, boundary, tag, partial=missing)


def kind_of(row: InstanceRow, how: Rendering) -> str:
    """The kind (see worker/retrieve.py) of a picture: what is burnt in of a patient is what corrections say."""
    return f"corrected:{how.kind()}" if row.coerced and how.annotation else how.kind()


async def thumbnail(request: Request) -> Response:
    """GET .../thumbnail of a study, series, instance or frame: a small image of something in it."""
    how, media = _wanted(request, {"viewport": PARAMETERS["viewport"]})
    numbers = frame_numbers(request.path_params.get("frames", "1"))
    if len(numbers) > 1:
        raise HttpProblem(400, "bad-frame", "One frame number, 1 or more, has a thumbnail at a time.")
    if how.viewport is not None and how.viewport.region is not None:
        raise HttpProblem(400, "bad-parameter", "viewport of a thumbnail is width,height (PS3.18 10.4.1.2.2)")
    gateway: Gateway = request.app.state.gateway
    rows = await run_in_threadpool(rows_of, gateway, target_of(request))
    small = replace(how, frame=numbers[0], viewport=how.viewport or THUMBNAIL).kind()
    row, item = await retrieving(request, _thumbnail, gateway, rows, small)
    await audited(request, [row], [item])
    return answers.single(request, item, media)


def _wanted(request: Request, known: Mapping[str, object]) -> tuple[Rendering, str]:
    """(how to render, media type). Raises HttpProblem 400 and 406."""
    query = {name: value for name, value in request.query_params.items() if name != "accept"}
    if not set(query) <= set(known):
        raise HttpProblem(400, "unsupported-parameter", f"The query parameters known here are {', '.join(known)}.")
    media, name = wants_image(accept_of(request))
    try:
        return Rendering.of_query(name, 1, query), media
    except InvalidInstance as error:
        raise HttpProblem(400, error.reason, error.message) from None


def _takes_several(request: Request) -> bool:
    kinds = {item.essence for item in parse_accept(accept_of(request))}
    return bool(kinds & {"*/*", "multipart/*", "multipart/related"})


def _first(
    gateway: Gateway, asked: Sequence[tuple[InstanceRow, str]], skipping: bool
) -> tuple[list[tuple[InstanceRow, OpenObject]], int]:
    """(the first images, how many instances have none). skipping: of a study what is no image is passed over."""
    ready: list[tuple[InstanceRow, OpenObject]] = []
    refused = 0
    try:
        for row, kind in asked:
            try:
                ready.append((row, derived(gateway, row, kind)))
            except HttpProblem as problem:
                if problem.status_code != 406 or not skipping:
                    raise
                refused += 1
        if not ready:
            raise NotFound("no-images", "Nothing under this path can be rendered.")
    except (PalimpsestError, HttpProblem, OSError):
        for _, item in ready:
            item.close()
        raise
    return ready, refused


def _parts(
    gateway: Gateway,
    ready: list[tuple[InstanceRow, OpenObject]],
    later: Sequence[tuple[InstanceRow, str]],
    media: str,
    boundary: str,
) -> Iterator[bytes]:
    rest = _later(gateway, later)
    first = True
    try:
        while (found := ready.pop(0) if ready else next(rest, None)) is not None:
            row, item = found
            headers = {"Content-Type": media, "Content-Location": f"{instance_path(row)}/rendered"}
            yield frame_part(boundary, {**headers, "Content-Length": str(item.size)}, first=first)
            yield from item.chunks()
            first = False
        yield close_delimiter(boundary)
    finally:
        for _, item in ready:
            item.close()


def _later(gateway: Gateway, asked: Sequence[tuple[InstanceRow, str]]) -> Iterator[tuple[InstanceRow, OpenObject]]:
    for row, kind in asked:
        try:
            yield row, derived(gateway, row, kind)
        except HttpProblem:
            continue  # no image


def _thumbnail(gateway: Gateway, rows: Sequence[InstanceRow], kind: str) -> tuple[InstanceRow, OpenObject]:
    """The first image from the middle on that can be rendered. Raises what the last one tried raised."""
    middle = len(rows) // 2
    tried = [*rows[middle:], *rows[:middle]][:TRIED]
    for row in tried[:-1]:
        try:
            return row, derived(gateway, row, kind)
        except HttpProblem:
            continue
    return tried[-1], derived(gateway, tried[-1], kind)


async def audited(request: Request, rows: Sequence[InstanceRow], items: Sequence[OpenObject]) -> None:
    """Write the audit event of a read of pictures, which are not given if that fails."""
    try:
        await run_in_threadpool(read_event, request, rows, "rendered")
    except PalimpsestError:
        for item in items:
            item.close()
        raise


_STUDY = "/dicomweb/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"
_FRAMES = _INSTANCE + "/frames/{frames}"

ROUTES: tuple[RouteSpec, ...] = (
    *(("GET", path + "/rendered", rendered) for path in (_STUDY, _SERIES, _INSTANCE, _FRAMES)),
    *(("GET", path + "/thumbnail", thumbnail) for path in (_STUDY, _SERIES, _INSTANCE, _FRAMES)),
)
