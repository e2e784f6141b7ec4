"""Pages rendered on the server and the forms that they send."""

from __future__ import annotations

from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jinja2
from fastapi import Request
from fastapi.responses import HTMLResponse, Response

from gateway.errors import PolicyRefused
from service.admin_filters import FILTERS

__all__ = ["form_of", "page_of", "rendered", "sent_from_here", "template_text"]

MAX_FORM = 16 << 10
MAX_FIELDS = 256  # a page of boxes to tick


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("service"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(FILTERS)
    return environment


def page_of(request: Request, name: str, status: int = 200, **values: Any) -> Response:
    """A template of this package with its values, as an answer."""
    return HTMLResponse(rendered(request, name, **values), status)


def rendered(request: Request, name: str, **values: Any) -> str:
    """A template of this package with its values."""
    state = request.app.state
    if getattr(state, "templates", None) is None:
        state.templates = _environment()
    text: str = state.templates.get_template(name).render(**values)
    return text


def template_text(name: str) -> str:
    """A file of the templates' folder as it is."""
    return (files("service") / "templates" / name).read_text("utf-8")


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form, the last one where a name comes twice; may be asked for again.

    Raises PolicyRefused ``form-too-large``.
    """
    known: dict[str, str] | None = getattr(request.state, "form", None)
    if known is not None:
        return known
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_FORM:
            raise PolicyRefused("form-too-large", "The form is larger than any of this page.")
    try:
        fields = parse_qs(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise PolicyRefused("form-too-large", "The form has more fields than any of this page.") from None
    request.state.form = {name: values[-1] for name, values in fields.items()}
    return dict(request.state.form)


def sent_from_here(request: Request) -> bool:
    """Whether a request comes from a page of this origin, or from no page at all (Fetch Metadata; RFC 6454 for older
    browsers). A site beside ours under the same domain is another origin, and SameSite cookies do not keep it out.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
