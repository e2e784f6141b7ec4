"""/viewer: OHIF, where it is installed, over this gateway's own DICOMweb, and the form that signs a browser in.

The files are OHIF's and public; what they show comes by DICOMweb, which takes the token from a cookie that script
cannot read, for GET and HEAD alone and never for another site's page (`service.access`).  The policy below lets the
viewer compile its decoders and start its workers, and lets it talk to nobody but this service.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PolicyRefused
from gateway.tokens import TokenRefused, verify_token
from gateway.viewer import PACKAGE, ROOT, VERSION, Installed, StoredFile, installed
from service.access import READERS, VIEWER_COOKIE, VIEWER_PATHS, RouteSpec
from service.admin import SEE_OTHER, SESSION_SECONDS
from service.pages import form_of, page_of, sent_from_here, template_text
from service.trail import record

__all__ = ["ROUTES"]

LOGIN: Final = ROOT + "login"
CONFIG: Final = "app-config.js"
#: Of the page: scripts and workers of ours, WebAssembly, pictures and workers made in the page; no eval, no other host.
#: The styles that OHIF's parts write into the page need 'unsafe-inline'.
POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "media-src 'self' blob:; object-src blob:; frame-src blob:; manifest-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
#: Of the files, which counts where one is a worker: the decoders (Emscripten) make functions from text, so eval is
#: allowed there, where there is no page, no cookie and no other host.
WORKER_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'unsafe-eval'; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:; frame-ancestors 'none'"
)
#: Isolated, with the COOP that every answer has, so that workers may share memory with the page (HTML 7.1.4).
EMBEDDER: Final = {"Cross-Origin-Embedder-Policy": "require-corp"}
TYPES: Final = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".ico": "image/x-icon",
    ".ttf": "font/ttf",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
_HASHED = re.compile(r".*\.[0-9a-f]{16}\.[a-z0-9]+|[0-9a-f]{16}\.wasm")
#: Pages of OHIF that a sign-in may lead to; never another host (`//host`).
_PAGE = re.compile(r"/viewer(/[A-Za-z0-9_-]*)*(\?[\x21-\x7e]*)?")
#: Paths that OHIF's own router answers; anything else that is no file is not found.
_ROUTED = re.compile(r"[a-z0-9-]*(/[a-z0-9-]*)?")


async def root(request: Request) -> Response:
    """GET /viewer."""
    return RedirectResponse(ROOT, SEE_OTHER)


async def login_page(request: Request) -> Response:
    """GET /viewer/login."""
    return _form(request, request.query_params.get("next", ""))


def _form(request: Request, after: str, status: int = 200, error: str = "") -> Response:
    known = VIEWER_COOKIE in request.cookies
    return page_of(request, "viewer_login.html", status, error=error, after=_page_of_ours(after), known=known)


def _page_of_ours(after: str) -> str:
    return after if _PAGE.fullmatch(after) and "//" not in after.partition("?")[0] else ROOT


async def login(request: Request) -> Response:
    """POST /viewer/login: a valid token that may read images becomes the cookie. Raises PolicyRefused ``csrf``."""
    _same_origin(request)
    form = await form_of(request)
    gateway: Gateway = request.app.state.gateway
    token, after = form.get("token", "").strip(), form.get("next", "")
    try:
        await run_in_threadpool(_reader, gateway, token)
    except TokenRefused as error:
        await run_in_threadpool(
            record, gateway, "login-failed", actor="unknown", outcome="refused", reason=error.reason, route="viewer"
        )
        return _form(request, after, 401, error.message)
    response = RedirectResponse(_page_of_ours(after), SEE_OTHER)
    for path, same_site in VIEWER_PATHS.items():
        response.set_cookie(
            VIEWER_COOKIE,
            token,
            max_age=SESSION_SECONDS,
            path=path,
            httponly=True,
            samesite=same_site,
            secure=request.url.scheme == "https",
        )
    return response


def _reader(gateway: Gateway, token: str) -> None:
    if verify_token(gateway, token).role not in READERS:
        raise TokenRefused("role-not-allowed", "This token's role may not see images.")


async def logout(request: Request) -> Response:
    """POST /viewer/logout. Raises PolicyRefused ``csrf``."""
    _same_origin(request)
    response = RedirectResponse(LOGIN, SEE_OTHER)
    for path, same_site in VIEWER_PATHS.items():
        response.delete_cookie(VIEWER_COOKIE, path=path, httponly=True, samesite=same_site)
    return response


def _same_origin(request: Request) -> None:
    if not sent_from_here(request):
        raise PolicyRefused("csrf", "The form was not sent by this page; reload it.")


async def serve(request: Request) -> Response:
    """GET /viewer/...: a file of OHIF's, our settings for it, or its page. Raises NotFound."""
    name = str(request.path_params["path"])
    viewer = await run_in_threadpool(_installed, request)
    if viewer is None:
        response = page_of(request, "viewer_missing.html", 503, package=PACKAGE, version=VERSION)
        return response
    if name == CONFIG:
        return Response(
            template_text(CONFIG), media_type=TYPES[".js"], headers={**EMBEDDER, "Cache-Control": "no-cache"}
        )
    if name in viewer.files:
        return _file(request, name, viewer.files[name])
    if not _ROUTED.fullmatch(name):
        raise NotFound("no-such-page", "The viewer has no such page or file.")
    return await _page(request, viewer)


def _installed(request: Request) -> Installed | None:
    """Read once; again as long as there is none, so that installing it needs no restart."""
    state = request.app.state
    if getattr(state, "viewer", None) is None:
        state.viewer = installed(state.gateway.settings.viewer_dir)
    viewer: Installed | None = state.viewer
    return viewer


async def _page(request: Request, viewer: Installed) -> Response:
    """OHIF's page; without a valid cookie the form, which leads back to it."""
    try:
        await run_in_threadpool(_reader, request.app.state.gateway, request.cookies.get(VIEWER_COOKIE, ""))
    except TokenRefused:
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"{LOGIN}?next={quote(request.url.path + query, safe='')}", SEE_OTHER)
    page = page_of(request, "viewer.html", root=ROOT, script=viewer.script, style=viewer.style)
    page.headers.update({**EMBEDDER, "Content-Security-Policy": POLICY})
    return page


def _file(request: Request, name: str, file: StoredFile) -> Response:
    tag = f'"{file.sha256[:32]}"'
    keep = "public, max-age=31536000, immutable" if _HASHED.fullmatch(name) else "no-cache"
    headers = {**EMBEDDER, "ETag": tag, "Cache-Control": keep, "Vary": "Accept-Encoding"}
    headers["Content-Security-Policy"] = WORKER_POLICY
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    path = file.path
    if file.packed and "gzip" in request.headers.get("accept-encoding", ""):
        path = path.with_name(path.name + ".gz")
        headers["Content-Encoding"] = "gzip"
    if not path.is_file():
        raise NotFound("viewer-incomplete", "A file of the viewer is missing: install it again.")
    return FileResponse(path, headers=headers, media_type=TYPES[file.path.suffix])


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/viewer", root),
    ("GET", "/viewer/login", login_page),
    ("POST", "/viewer/login", login),
    ("POST", "/viewer/logout", logout),
    ("GET", "/viewer/{path:path}", serve),
)
