"""The admin page: rendered on the server, no script, no build step; what it shows is `service.overview`.

Who signed in (`service.login`) sees it; every form carries the session's CSRF value, which the guard checks.
"""

from __future__ import annotations

from typing import Final

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PolicyRefused
from service.access import RouteSpec, csrf_of, principal_of
from service.overview import overview
from service.pages import form_of, page_of, template_text
from service.status import replay_failures, replay_forwards, row_number

__all__ = ["ROUTES"]

ADMIN: Final = "/admin"
SEE_OTHER: Final = 303
#: Words for what an action did, by the `done` parameter; anything else in that parameter shows nothing.
DONE: Final = {
    "failures": "The instances will be worked on again.",
    "forward": "The dead letter will be sent again.",
    "destination": "The destination's dead letters will be sent again.",
    "acknowledge": "The alert is acknowledged.",
    "gone": "There was nothing left to do.",
}


async def root(request: Request) -> Response:
    """GET /: to the admin page."""
    return RedirectResponse(ADMIN, SEE_OTHER)


async def style(request: Request) -> Response:
    """GET /admin/style.css."""
    return Response(template_text("style.css"), media_type="text/css", headers={"Cache-Control": "max-age=300"})


async def page(request: Request) -> Response:
    """GET /admin."""
    gateway: Gateway = request.app.state.gateway
    principal = principal_of(request)
    view = await run_in_threadpool(overview, gateway)
    csrf = await run_in_threadpool(csrf_of, request)
    done = DONE.get(request.query_params.get("done", ""), "")
    return page_of(request, "admin.html", view=view, csrf=csrf, subject=principal.subject, done=done)


async def replay(request: Request) -> Response:
    """POST /admin/replay: failures by reason, one dead letter, or all of a destination."""
    form = await form_of(request)
    gateway: Gateway = request.app.state.gateway
    actor, what = principal_of(request).subject, form.get("what", "")
    number = row_number(form.get("forward", ""))
    actions = {
        "failures": lambda: replay_failures(gateway, actor, reason=form.get("reason")),
        "forward": lambda: replay_forwards(gateway, actor, forward_id=number),
        "destination": lambda: replay_forwards(gateway, actor, destination=form.get("destination")),
    }
    if what not in actions:
        raise PolicyRefused("unknown-action", "There is no such action.")
    try:
        await run_in_threadpool(actions[what])
    except NotFound:
        what = "gone"
    return RedirectResponse(f"{ADMIN}?done={what}", SEE_OTHER)


async def acknowledge(request: Request) -> Response:
    """POST /admin/acknowledge: an alert was seen by a person."""
    form = await form_of(request)
    gateway: Gateway = request.app.state.gateway
    number = row_number(form.get("alert", ""))
    if number is None:
        raise NotFound("unknown-alert", "There is no such alert.")
    await run_in_threadpool(gateway.index.alert_ack, number, principal_of(request).subject)
    return RedirectResponse(f"{ADMIN}?done=acknowledge", SEE_OTHER)


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/", root),
    ("GET", "/admin/style.css", style),
    ("GET", "/admin", page),
    ("POST", "/admin/replay", replay),
    ("POST", "/admin/acknowledge", acknowledge),
)
