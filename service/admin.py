"""The admin page: rendered on the server, no script, no build step; what it shows is `service.overview`.

Signing in is pasting a token. It then lives in an HttpOnly, SameSite=Strict cookie that only /admin gets, and every
form carries a CSRF value derived from that very token.  Pages are sent with a policy that allows no script at all.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Any, Final
from urllib.parse import parse_qs

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PolicyRefused
from gateway.tokens import Principal, Role, TokenRefused, verify_token
from service.access import COOKIE, COOKIE_PATH, RouteSpec, principal_of
from service.overview import overview
from service.status import replay_failures, replay_forwards, row_number
from service.trail import record

__all__ = ["ROUTES", "csrf_value"]

MAX_FORM = 16 << 10
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


def _size(value: float | None) -> str:
    number = float(value or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _when(value: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(value)) + " UTC" if value else "–"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("service"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(size=_size, when=_when)
    return environment


def _page(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    state = request.app.state
    if getattr(state, "templates", None) is None:
        state.templates = _environment()
    return HTMLResponse(state.templates.get_template(name).render(**values), status)


def csrf_value(gateway: Gateway, principal: Principal) -> str:
    """The CSRF value of one token's forms: HMAC of the token's id under the ring's token key."""
    _, key = gateway.keys.token_key()
    return hmac.new(key, f"csrf/v1:{principal.token_id}".encode(), hashlib.sha256).hexdigest()


async def _form(request: Request) -> dict[str, str]:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FORM:
            raise PolicyRefused("form-too-large", "The form is larger than any of this page.")
    try:
        fields = parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise PolicyRefused("form-too-large", "The form has more fields than any of this page.") from None
    return {name: values[-1] for name, values in fields.items()}


async def _checked_form(request: Request) -> dict[str, str]:
    """A form of this page, sent by this page; raises PolicyRefused otherwise."""
    form = await _form(request)
    expected = await run_in_threadpool(csrf_value, request.app.state.gateway, principal_of(request))
    if not hmac.compare_digest(form.get("csrf", "").encode(), expected.encode()):
        raise PolicyRefused("csrf", "The form was not sent by this page; reload it.")
    return form


async def root(request: Request) -> Response:
    """GET /: to the admin page."""
    return RedirectResponse(COOKIE_PATH, SEE_OTHER)


async def style(request: Request) -> Response:
    """GET /admin/style.css."""
    source, _, _ = jinja2.PackageLoader("service").get_source(jinja2.Environment(), "style.css")
    return Response(source, media_type="text/css", headers={"Cache-Control": "max-age=300"})


async def login_page(request: Request) -> Response:
    """GET /admin/login."""
    return _page(request, "login.html", error="")


async def login(request: Request) -> Response:
    """POST /admin/login: a valid admin token becomes the cookie; anything else is audited and shows the form again."""
    token = (await _form(request)).get("token", "").strip()
    gateway: Gateway = request.app.state.gateway
    try:
        principal = await run_in_threadpool(verify_token, gateway, token)
        if principal.role is not Role.ADMIN:
            raise TokenRefused("role-not-allowed", "This token's role is not admin.")
    except TokenRefused as error:
        await run_in_threadpool(_login_failed, gateway, error.reason)
        return _page(request, "login.html", 401, error=error.message)
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
    return _page(request, "admin.html", view=view, csrf=csrf, subject=principal.subject, done=done)


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
