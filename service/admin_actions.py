"""What the buttons of the admin pages do. One form for all: the button that was pressed says what (`do`).

The guard has looked at role and CSRF value; every action is audited by the index, under the name of who pressed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PolicyRefused
from gateway.instance import State
from service.access import RouteSpec, principal_of
from service.admin import ADMIN, PAGES, SEE_OTHER, board_of, shown
from service.admin_find import found_by
from service.pages import form_of
from service.status import replay_failures, replay_forwards, row_number
from service.trail import record

__all__ = ["ROUTES"]

#: (gateway, who, what follows the colon) -> how many
Action = Callable[[Gateway, str, str], int]


def _failures(gw: Gateway, actor: str, reason: str) -> int:
    return replay_failures(gw, actor, reason=reason)


def _instance(gw: Gateway, actor: str, number: str) -> int:
    return replay_failures(gw, actor, instance_id=number)


def _forward(gw: Gateway, actor: str, number: str) -> int:
    return replay_forwards(gw, actor, forward_id=number)


def _destination(gw: Gateway, actor: str, name: str) -> int:
    return replay_forwards(gw, actor, destination=name)


def _dead(gw: Gateway, actor: str, which: str) -> int:
    if not which:
        return replay_forwards(gw, actor, everything=True)
    destination, _, reason = which.partition(":")
    return replay_forwards(gw, actor, destination=destination, reason=reason)


def _alert(gw: Gateway, actor: str, number: str) -> int:
    gw.index.alert_ack(_number(number), actor)
    return 1


def _choose(gw: Gateway, actor: str, number: str) -> int:
    gw.index.make_current(_number(number), actor)
    return 1


def _commitment(gw: Gateway, actor: str, number: str) -> int:
    gw.index.commitment_replay(_number(number), actor)
    return 1


def _number(text: str) -> int:
    number = row_number(text)
    if number is None:
        raise NotFound("unknown-row", "There is no such row.")
    return number


#: verb -> (action, the word of `service.admin.DONE`)
ACTIONS: Final[dict[str, tuple[Action, str]]] = {
    "failures": (_failures, "failures"),
    "instance": (_instance, "failures"),
    "forward": (_forward, "forwards"),
    "destination": (_destination, "forwards"),
    "dead": (_dead, "forwards"),
    "alert": (_alert, "alert"),
    "choose": (_choose, "choose"),
    "commitment": (_commitment, "commitment"),
}


async def act(request: Request) -> Response:
    """POST /admin/act: `do` is a verb, and after a colon what it is done to; 'chosen': forwards with a box ticked."""
    form = await form_of(request)
    gateway: Gateway = request.app.state.gateway
    actor = principal_of(request).subject
    verb, _, what = form.get("do", "").partition(":")
    if verb != "chosen" and verb not in ACTIONS:
        raise PolicyRefused("unknown-action", "There is no such action.")
    number = row_number(form.get("instance", ""))
    path = f"{ADMIN}/instances/{number}" if number is not None else PAGES.get(form.get("page", ""), (ADMIN,))[0]
    try:
        if verb == "chosen":
            done, word = await run_in_threadpool(_chosen, gateway, actor, form), "forwards"
        else:
            action, word = ACTIONS[verb]
            done = await run_in_threadpool(action, gateway, actor, what)
    except NotFound:
        return RedirectResponse(f"{path}?done=none", SEE_OTHER)
    await run_in_threadpool(lambda: board_of(request).picture(fresh=True))
    return RedirectResponse(f"{path}?done={word}&n={done}", SEE_OTHER)


def _chosen(gw: Gateway, actor: str, form: dict[str, str]) -> int:
    numbers = [row_number(name[1:]) for name, value in form.items() if name.startswith("f") and value == "on"]
    return sum(replay_forwards(gw, actor, forward_id=number) for number in numbers if number is not None)


async def search(request: Request) -> Response:
    """POST /admin/search: instances by what a person has in hand. By POST, so that no UID stands in an address."""
    form = await form_of(request)
    gateway: Gateway = request.app.state.gateway
    asked = form.get("q", "")
    found = await run_in_threadpool(found_by, gateway, asked)
    await run_in_threadpool(
        lambda: record(
            gateway, "admin-search", actor=principal_of(request).subject, kind="instance", count=len(found.rows)
        )
    )
    if len(found.rows) == 1:
        return RedirectResponse(f"{ADMIN}/instances/{found.rows[0].id}", SEE_OTHER)
    return await shown(
        request, "instances", "admin_instances.html", found=found, states=list(State), asked=form.get("q", "")
    )


ROUTES: tuple[RouteSpec, ...] = (
    ("POST", "/admin/act", act),
    ("POST", "/admin/search", search),
)
