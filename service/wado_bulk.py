"""WADO-RS: frames and bulk data (PS3.18 10.4.1.1.5 and 10.4.1.1.6)."""

from __future__ import annotations

import mmap
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.elements import find_element, find_elements
from gateway.errors import NotFound, PalimpsestError
from gateway.index_rows import InstanceRow
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, Element, read_meta
from gateway.transfer_syntaxes import DEFLATED_LE, FRAME_MEDIA, NATIVE
from service import answers
from service.access import RouteSpec
from service.frames import FramedObject, FrameShelf, check_numbers, frame_numbers, in_order
from service.media import OCTETS, Choice, own_first, wants_frames
from service.multipart import close_delimiter, frame_part
from service.objects import AS_IS, HOT, OpenObject, derived, open_as
from service.problems import HttpProblem
from service.wado_resource import accept_of, instance_path, read_event, retrieving, rows_of, target_of

__all__ = ["ROUTES"]

PIXEL_PATHS = frozenset({"7FE00010", "7FE00008", "7FE00009"})
_REFERENCES = re.compile(r'"BulkDataURI": ?"bulkdata/([0-9A-F/]+)"')
MAX_LISTED = 100_000  # values that one request for all bulk data may give


@dataclass(frozen=True)
class _Part:
    """One part of an answer. name: its path below the instance."""

    data: bytes | memoryview
    media: str
    name: str


def _named(framed: FramedObject, choice: Choice) -> str:
    """The media type of frames with its transfer syntax."""
    media = choice.media or FRAME_MEDIA.get(framed.syntax, OCTETS)
    if media == OCTETS and framed.syntax in NATIVE:
        return f"{OCTETS};transfer-syntax={EXPLICIT_LE}"  # native samples, little endian, have no other name there
    return f"{media};transfer-syntax={framed.syntax}"


def _open_first(
    shelf: FrameShelf, gateway: Gateway, row: InstanceRow, choices: Sequence[Choice]
) -> tuple[Choice, FramedObject]:
    for number, choice in enumerate(choices, 1):
        try:
            return choice, shelf.open(gateway, row, choice.syntaxes)
        except HttpProblem as problem:
            if problem.status_code != 406 or number == len(choices):
                raise
    raise AssertionError("no choice")


async def frames(request: Request) -> Response:
    """GET .../frames/{list}: one frame alone or in multipart, several in multipart (PS3.18 10.4.1.1.6)."""
    gateway: Gateway = request.app.state.gateway
    numbers = frame_numbers(request.path_params["frames"])
    choices = wants_frames(accept_of(request), many=len(numbers) > 1)
    rows = await run_in_threadpool(rows_of, gateway, target_of(request))
    answer = await _frames(request, rows[0], numbers, choices)
    await run_in_threadpool(request.app.state.prefetch.touch, gateway, rows[0])
    return answer


async def _frames(request: Request, row: InstanceRow, numbers: list[int] | None, choices: list[Choice]) -> Response:
    """numbers: None for all, which native samples are given as one value."""
    gateway: Gateway = request.app.state.gateway
    if numbers is None:  # one value, as the file has it
        choices = [replace(choice, syntaxes=tuple(uid for uid in choice.syntaxes if uid != HOT)) for choice in choices]
    opening = (request.app.state.frames, gateway, row, own_first(choices, row.transfer_syntax))
    choice, framed = await retrieving(request, _open_first, *opening)
    try:
        asked = list(range(1, len(framed) + 1)) if numbers is None else numbers
        check_numbers(framed, asked)
        joined = numbers is None and framed.syntax in NATIVE
        if not choice.multipart and len(asked) > 1 and not joined:
            raise HttpProblem(406, "not-acceptable", "Several compressed frames are given as multipart/related only.")
        await run_in_threadpool(read_event, request, [row], "frames")
    except (PalimpsestError, HttpProblem):
        framed.close()
        raise
    media = _named(framed, choice)
    if not choice.multipart:
        return answers.single(request, _Frames(framed, asked), media)
    boundary, tag = uuid.uuid4().hex, answers.weak_tag(framed.digest, asked, media)
    same = answers.unchanged(request, tag)
    if same is not None or request.method == "HEAD":
        framed.close()
    where = instance_path(row)
    if joined:
        parts = _joined(framed, asked, media, f"{where}/bulkdata/7FE00010", boundary)
    else:
        parts = _multipart((_Part(data, media, f"{where}/frames/{n}") for n, data in in_order(framed, asked)), boundary)
    return same or answers.related(request, parts, media.partition(";")[0], boundary, tag)


class _Frames:
    """Frames one behind the other as one body; each is checked as it is read."""

    def __init__(self, framed: FramedObject, numbers: list[int]) -> None:
        self._framed, self._numbers = framed, numbers
        self.size = sum(framed.size(number - 1) for number in numbers)
        self.digest = f"{framed.digest}-{numbers[0]}-{numbers[-1]}-{len(numbers)}"

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See answers.Body."""
        stop, at = (self.size if end is None else end), 0
        with self._framed.file:
            for number in self._numbers:
                size = self._framed.size(number - 1)
                if at + size > start and at < stop:
                    yield self._framed.frame(number - 1)[max(0, start - at) : stop - at]
                at += size

    def close(self) -> None:
        """See answers.Body."""
        self._framed.close()


def _multipart(parts: Iterator[_Part], boundary: str) -> Iterator[bytes]:
    first = True
    for part in parts:
        headers = {"Content-Type": part.media, "Content-Location": part.name, "Content-Length": str(len(part.data))}
        yield frame_part(boundary, headers, first=first)
        yield from answers.in_pieces(part.data)
        first = False
    yield close_delimiter(boundary)


def _joined(framed: FramedObject, numbers: list[int], media: str, name: str, boundary: str) -> Iterator[bytes]:
    body = _Frames(framed, numbers)
    headers = {"Content-Type": media, "Content-Location": name, "Content-Length": str(body.size)}
    yield frame_part(boundary, headers, first=True)
    yield from body.chunks()
    yield close_delimiter(boundary)


# --- bulk data ---


async def bulkdata_value(request: Request) -> Response:
    """GET .../bulkdata/{path}: what a BulkDataURI of the metadata names."""
    gateway: Gateway = request.app.state.gateway
    path = request.path_params["path"].upper()
    choices = wants_frames(accept_of(request))
    rows = await run_in_threadpool(rows_of, gateway, target_of(request))
    if path in PIXEL_PATHS:
        return await _frames(request, rows[0], None, choices)
    choice = next((choice for choice in choices if {EXPLICIT_LE, AS_IS} & set(choice.syntaxes)), None)
    if choice is None:
        raise HttpProblem(406, "not-acceptable", f"Values other than pixel data are given as {OCTETS}.")
    body = await retrieving(request, _value, gateway, rows[0], path)
    await run_in_threadpool(read_event, request, rows, "bulkdata")
    if not choice.multipart:
        return answers.single(request, body, OCTETS)
    boundary, tag = uuid.uuid4().hex, answers.weak_tag(body.digest)
    part = _Part(body.data, OCTETS, f"{instance_path(rows[0])}/bulkdata/{path}")
    same = answers.unchanged(request, tag)
    return same or answers.related(request, _multipart(iter([part]), boundary), OCTETS, boundary, tag)


def _value(gateway: Gateway, row: InstanceRow, path: str) -> answers.BytesBody:
    """A value little endian, as the file has it, out of a proven file."""
    return answers.BytesBody(_cut(_mapped(gateway, row), path))


def _mapped(gateway: Gateway, row: InstanceRow) -> mmap.mmap:
    item = _little_endian(gateway, row)
    with item.file:  # the map is closed with the last view of it
        return mmap.mmap(item.file.fileno(), 0, access=mmap.ACCESS_READ)


def _little_endian(gateway: Gateway, row: InstanceRow) -> OpenObject:
    odd = row.transfer_syntax in (EXPLICIT_BE, DEFLATED_LE)
    return open_as(gateway, row, (EXPLICIT_LE,) if odd else (AS_IS,))


def _cut(mapped: mmap.mmap, path: str) -> memoryview:
    element = find_element(mapped, *read_meta(mapped), path)
    if not _is_value(element):
        raise NotFound("no-such-value", "what stands under that path is no single value")
    return memoryview(mapped)[element.value_offset : element.end]


def _is_value(element: Element) -> bool:
    return not element.undefined and element.vr != "SQ"


async def bulkdata(request: Request) -> Response:
    """GET .../bulkdata of a study, series or instance: every value that the metadata refers to, pixel data by frame."""
    gateway: Gateway = request.app.state.gateway
    choices = [choice for choice in wants_frames(accept_of(request), many=True) if AS_IS in choice.syntaxes]
    choices = choices or [Choice(True, (EXPLICIT_LE,), OCTETS)]
    rows = await run_in_threadpool(rows_of, gateway, target_of(request))
    boundary, tag = uuid.uuid4().hex, answers.weak_tag("bulkdata", choices, *((row.digest, row.state) for row in rows))
    parts = _all_parts(request.app.state.frames, gateway, rows, choices)
    first = await retrieving(request, next, parts, None)
    await run_in_threadpool(read_event, request, rows, "bulkdata")
    same = answers.unchanged(request, tag)
    if same is not None:
        return same
    if first is None:
        raise NotFound("no-bulkdata", "Nothing under this path has bulk data.")

    def every() -> Iterator[_Part]:
        yield first
        yield from parts

    return answers.related(request, _multipart(every(), boundary), first.media.partition(";")[0], boundary, tag)


def _all_parts(
    shelf: FrameShelf, gateway: Gateway, rows: Sequence[InstanceRow], choices: Sequence[Choice]
) -> Iterator[_Part]:
    for row in rows:
        text = gateway.index.metadata(row.id) or b"".join(derived(gateway, row, "metadata").chunks()).decode("utf-8")
        where = instance_path(row)
        paths = dict.fromkeys(_REFERENCES.findall(text)[:MAX_LISTED])
        values = [path for path in paths if path not in PIXEL_PATHS]
        if values:
            mapped = _mapped(gateway, row)  # proven once, and read once, not for each value
            view, given = memoryview(mapped), 0
            for path, element in find_elements(mapped, *read_meta(mapped), values):
                if _is_value(element):
                    given += 1
                    yield _Part(view[element.value_offset : element.end], OCTETS, f"{where}/bulkdata/{path}")
            if given != len(values):
                raise NotFound("no-such-value", "the metadata refer to a value that the object does not have")
        if len(values) == len(paths):
            continue
        choice, framed = _open_first(shelf, gateway, row, choices)
        media = _named(framed, choice)
        for number, data in in_order(framed, range(1, len(framed) + 1)):
            yield _Part(data, media, f"{where}/frames/{number}")


_STUDY = "/dicomweb/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"

ROUTES: tuple[RouteSpec, ...] = (
    ("GET", _STUDY + "/bulkdata", bulkdata),
    ("GET", _SERIES + "/bulkdata", bulkdata),
    ("GET", _INSTANCE + "/bulkdata", bulkdata),
    ("GET", _INSTANCE + "/bulkdata/{path:path}", bulkdata_value),
    ("GET", _INSTANCE + "/frames/{frames}", frames),
)
