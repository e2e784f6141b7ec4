"""The admin page: rendered on the server, no script, no build step; what it shows is `service.overview`.

Signing in is pasting a token. It then lives in an HttpOnly, SameSite=Strict cookie that only /admin gets, and every
form carries a CSRF value derived from that very token.  Pages are sent with a policy that allows no script at all.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PolicyRefused
from gateway.tokens import Principal, Role, TokenRefused, verify_token
from service.access import COOKIE, COOKIE_PATH, RouteSpec, principal_of
from service.overview import overview
from service.pages import form_of, page_of, template_text
from service.status import replay_failures, replay_forwards, row_number
from service.trail import record

__all__ = ["ROUTES", "csrf_value"]

SESSION_SECONDS: Final = 12 * 3600
SEE_OTHER: Final = 303
#: Words for what an action did, by the `done` parameter; anything else in that parameter shows nothing.
DONE: Final = {
    "failures": "The instances will be worked on again.",
    "forward": "The dead letter will be sent again.",
    "destination": "The destination's dead letters will be sent again.",
    "acknowledge": "The alert is acknowledged.",
    "gone": "There was nothing left to do.",
}


def csrf_value(gateway: Gateway, principal: Principal) -> str:
    """The CSRF value of one token's forms: HMAC of the token's id under the ring's token key."""
    _, key = gateway.keys.token_key()
    return hmac.new(key, f"csrf/v1:{principal.token_id}".encode(), hashlib.sha256).hexdigest()


async def _checked_form(request: Request) -> dict[str, str]:
    """A form of this page, sent by this page; raises PolicyRefused otherwise."""
    form = await form_of(request)
    expected = await run_in_threadpool(csrf_value, request.app.state.gateway, principal_of(request))
    if not hmac.compare_digest(form.get("csrf", "").encode(), expected.encode()):
        raise PolicyRefused("csrf", "The form was not sent by this page; reload it.")
    return form


async def root(request: Request) -> Response:
    """GET /: to the admin page."""
    return RedirectResponse(COOKIE_PATH, SEE_OTHER)


async def style(request: Request) -> Response:
    """GET /admin/style.css."""
    return Response(template_text("style.css"), media_type="text/css", headers={"Cache-Control": "max-age=300"})


async def login_page(request: Request) -> Response:
    """GET /admin/login."""
    return page_of(request, "login.html", error="")


async def login(request: Request) -> Response:
    """POST /admin/login: a valid admin token becomes the cookie; anything else is audited and shows the form again."""
    token = (await form_of(request)).get("token", "").strip()
    gateway: Gateway = request.app.state.gateway
    try:
        principal = await run_in_threadpool(verify_token, gateway, token)
        if principal.role is not Role.ADMIN:
            raise TokenRefused("role-not-allowed", "This token's role is not admin.")
    except TokenRefused as error:
        await run_in_threadpool(_login_failed, gateway, error.reason)
        return page_of(request, "login.html", 401, error=error.message)
    response = RedirectResponse(COOKIE_PATH, SEE_OTHER)
    response.set_cookie(
        COOKIE,
        token,
        max_age=SESSION_SECONDS,
        path=COOKIE_PATH,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


def _login_failed(gateway: Gateway, reason: str) -> None:
    record(gateway, "login-failed", actor="unknown", outcome="refused", reason=reason, route="admin")


async def logout(request: Request) -> Response:
    """POST /admin/logout."""
    await _checked_form(request)
    response = RedirectResponse(COOKIE_PATH + "/login", SEE_OTHER)
    response.delete_cookie(COOKIE, path=COOKIE_PATH, httponly=True, samesite="strict")
    return response


async def page(request: Request) -> Response:
    """GET /admin."""
    gateway: Gateway = request.app.state.gateway
    principal = principal_of(request)
    view = await run_in_threadpool(overview, gateway)
    csrf = await run_in_threadpool(csrf_value, gateway, principal)
    done = DONE.get(request.query_params.get("done", ""), "")
    return page_of(request, "admin.html", view=view, csrf=csrf, subject=principal.subject, done=done)


async def replay(request: Request) -> Response:
    """POST /admin/replay: failures by reason, one dead letter, or all of a destination."""
    form = await _checked_form(request)
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
    return RedirectResponse(f"{COOKIE_PATH}?done={what}", SEE_OTHER)


async def acknowledge(request: Request) -> Response:
    """POST /admin/acknowledge: an alert was seen by a person."""
    form = await _checked_form(request)
    gateway: Gateway = request.app.state.gateway
    number = row_number(form.get("alert", ""))
    if number is None:
        raise NotFound("unknown-alert", "There is no such alert.")
    await run_in_threadpool(gateway.index.alert_ack, number, principal_of(request).subject)
    return RedirectResponse(f"{COOKIE_PATH}?done=acknowledge", SEE_OTHER)


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/", root),
    ("GET", "/admin/login", login_page),
    ("POST", "/admin/login", login),
    ("GET", "/admin/style.css", style),
    ("GET", "/admin", page),
    ("POST", "/admin/logout", logout),
    ("POST", "/admin/replay", replay),
    ("POST", "/admin/acknowledge", acknowledge),
)
