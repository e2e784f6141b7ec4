"""The admin pages: rendered on the server, live by server-sent events, whole without script (docs/admin.md).

What they show is one picture for all viewers (`service.board`); who signed in (`service.login`) sees it. A page is made
of parts; the stream sends the parts that changed, and a static script puts them in their place.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool

from gateway.audit_standing import AuditStanding, audit_standing
from gateway.bootstrap import Gateway
from gateway.errors import Unavailable
from gateway.instance import State
from gateway.study_state import STATES
from gateway.tokens import Role
from service.access import RouteSpec, csrf_of, may_go_on, principal_of
from service.admin_find import life, listing, trail
from service.auditing import in_turn
from service.board import FRESH_SECONDS, Board, Picture
from service.pages import page_of, rendered, template_text
from service.problems import HttpProblem
from service.status import row_number
from service.trail import log_used
from service.words import count

__all__ = ["ADMIN", "PAGES", "ROUTES", "SEE_OTHER", "board_of", "shown"]

ADMIN: Final = "/admin"
SEE_OTHER: Final = 303
#: page -> (path, its name in the menu, its parts in order); parts are templates `part_<name>.html`
PAGES: Final[Mapping[str, tuple[str, str, tuple[str, ...]]]] = {
    "overview": (ADMIN, "Overview", ("troubles", "tiles", "throughput", "backlog", "steps", "modalities")),
    "instances": (f"{ADMIN}/instances", "Instances", ()),
    "failures": (
        f"{ADMIN}/failures", "Failures", ("alerts", "dead", "failures", "conflicts", "quarantine")
    ),
    "destinations": (f"{ADMIN}/destinations", "Destinations", ("destinations", "commitments")),
    "studies": (f"{ADMIN}/studies", "Studies", ("studies", "study_events")),
    "system": (f"{ADMIN}/system", "System", ("dependencies", "workers", "disks", "keys", "care")),
    "audit": (f"{ADMIN}/audit", "Audit", ()),
}  # fmt: skip
PULSE: Final = "pulse"
#: Words for what an action did, by the `done` parameter and its number; anything else shows nothing.
DONE: Final = {
    "failures": ("instance", "will be worked on again"),
    "forwards": ("dead letter", "will be sent again"),
    "alert": ("alert", "acknowledged"),
    "commitment": ("requester", "will be told again"),
    "choose": ("version", "is served from now on"),
}
MAX_STREAMS: Final = 64
MAX_OF_ONE: Final = 16  # of one subject: nobody keeps all others out
STREAM_SECONDS: Final = 900.0
HEARTBEAT_SECONDS: Final = 15.0
RETRY_MS: Final = 2000
SSE: Final = "text/event-stream"


def board_of(request: Request) -> Board:
    """The board of the application that serves this request."""
    state = request.app.state
    if getattr(state, "board", None) is None:
        state.board = Board(state.gateway)
    board: Board = state.board
    return board


def part(request: Request, picture: Picture, name: str) -> Markup:
    """The HTML of a part, made once for each picture."""
    if name not in picture.rendered:
        values = {"v": picture.values, "troubles": picture.troubles, "now": picture.at, "study_states": STATES}
        picture.rendered[name] = Markup(rendered(request, f"part_{name}.html", **values))  # nosec B704
    return picture.rendered[name]


async def shown(request: Request, page: str, template: str, status: int = 200, **values: Any) -> Response:
    """A page inside the frame that all of them have."""
    picture = await run_in_threadpool(board_of(request).picture)
    return await run_in_threadpool(_framed, request, page, template, status, picture, values)


def _framed(
    request: Request, page: str, template: str, status: int, picture: Picture, values: Mapping[str, Any]
) -> Response:
    principal = principal_of(request)
    runs = Role.ADMIN in principal.roles
    names = (PULSE, *PAGES[page][2]) if not picture.down else (PULSE, "troubles", "dependencies")
    menu = [(name, path, words) for name, (path, words, _) in PAGES.items() if runs or name == "audit"]
    frame = {
        "page": page,
        "pages": menu,
        "heading": PAGES[page][1],
        "names": names[1:],
        "parts": {name: part(request, picture, name) if runs else "" for name in names},
        "at": picture.at,
        "now": picture.at,
        "subject": principal.subject,
        "csrf": csrf_of(request),
        "done": _done(request),
    }
    down = bool(picture.down)
    return page_of(request, "admin_page.html" if down else template, 503 if down else status, **frame, **values)


def _done(request: Request) -> str:
    word, number = request.query_params.get("done", ""), row_number(request.query_params.get("n", ""))
    if word == "none" or (word in DONE and not number):
        return "There was nothing left to do."
    if word not in DONE or number is None:
        return ""
    noun, verb = DONE[word]
    return f"{count(number, noun)} {verb}."


async def root(request: Request) -> Response:
    """GET /: to the admin pages."""
    return RedirectResponse(ADMIN, SEE_OTHER)


def _file(name: str, media_type: str) -> Response:
    return Response(template_text(name), media_type=media_type, headers={"Cache-Control": "max-age=300"})


async def style(request: Request) -> Response:
    """GET /admin/style.css."""
    return _file("style.css", "text/css")


async def script(request: Request) -> Response:
    """GET /admin/live.js."""
    return _file("live.js", "text/javascript")


async def page(request: Request) -> Response:
    """GET /admin and the pages that are made of live parts alone."""
    name = request.url.path.removeprefix(ADMIN).strip("/") or "overview"
    return await shown(request, name, "admin_page.html")


async def instances(request: Request) -> Response:
    """GET /admin/instances?state=|passthrough=|study_of=&before=: newest first."""
    query = dict(request.query_params)
    if "state" in query and query["state"] not in list(State):
        raise HttpProblem(400, "bad-state", f"A state is one of {', '.join(State)}.")
    found = await run_in_threadpool(listing, request.app.state.gateway, query)
    return await shown(request, "instances", "admin_instances.html", found=found, states=list(State), asked="")


async def instance(request: Request) -> Response:
    """GET /admin/instances/{id}: one instance's life, step by step."""
    number = row_number(request.path_params["id"])
    if number is None:
        raise HttpProblem(404, "unknown-instance", "There is no such instance.")
    found = await run_in_threadpool(life, request.app.state.gateway, number)
    return await shown(request, "instances", "admin_instance.html", life=found)


async def audit(request: Request) -> Response:
    """GET /admin/audit?event=&actor=&outcome=&instance=&before=: the trail, newest first."""
    gateway: Gateway = request.app.state.gateway
    query = dict(request.query_params)
    asked = [query["patient"].strip()] if query.get("patient") else []

    def work() -> tuple[dict[str, Any], AuditStanding]:
        found = trail(gateway, query)
        log_used(gateway, principal_of(request).subject, "page", asked)
        return found, audit_standing(gateway)

    found, standing = await in_turn(request, work)
    return await shown(request, "audit", "admin_audit.html", found=found, query=query, standing=standing)


async def events(request: Request) -> Response:
    """GET /admin/events?page=: the parts of a page as they change (WHATWG HTML 9.2)."""
    name = request.query_params.get("page", "")
    if name not in PAGES:
        raise HttpProblem(400, "bad-page", f"A page is one of {', '.join(PAGES)}.")
    if request.method == "HEAD":
        return Response(media_type=SSE)
    return StreamingResponse(_stream(request, (PULSE, *PAGES[name][2])), media_type=SSE)


async def _stream(request: Request, names: tuple[str, ...]) -> AsyncIterator[str]:
    streams: set[tuple[str, object]] = request.app.state.streams
    who = principal_of(request).subject
    if len(streams) >= MAX_STREAMS or sum(each == who for each, _ in streams) >= MAX_OF_ONE:
        yield f"retry: {RETRY_MS * 10}\n\n"
        return
    mine = (who, object())
    streams.add(mine)
    sent: dict[str, str] = {}
    until, heard = time.monotonic() + STREAM_SECONDS, time.monotonic()
    try:
        yield f"retry: {RETRY_MS}\n\n"
        while time.monotonic() < until and not await request.is_disconnected():
            if not await _may_go_on(request):
                break
            picture = await run_in_threadpool(board_of(request).picture)
            for name in names if not picture.down else (PULSE,):
                html = await run_in_threadpool(part, request, picture, name)
                if sent.get(name) != html:
                    sent[name], heard = html, time.monotonic()
                    yield _event("part", {"name": name, "html": html, "troubles": len(picture.troubles)})
            if time.monotonic() - heard > HEARTBEAT_SECONDS:
                heard = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(FRESH_SECONDS)
    finally:
        streams.discard(mine)


async def _may_go_on(request: Request) -> bool:
    """While the database is away nobody knows, and nothing is shown but that it is away."""
    try:
        return await may_go_on(request)
    except Unavailable:
        return True


def _event(kind: str, data: Mapping[str, object]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/", root),
    ("GET", "/admin/style.css", style),
    ("GET", "/admin/live.js", script),
    ("GET", "/admin/events", events),
    ("GET", "/admin/instances", instances),
    ("GET", "/admin/instances/{id}", instance),
    ("GET", "/admin/audit", audit),
    *(("GET", path, page) for path, _, parts in PAGES.values() if parts),
)
