"""/viewer: OHIF, where it is installed, over this gateway's own DICOMweb.

The files are OHIF's and public; what they show comes by DICOMweb, to whoever signed in (`service.login`) and never to
another site's page (`service.access`).  The policy below lets the viewer compile its decoders and start its workers,
and lets it talk to nobody but this service.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.errors import NotFound
from gateway.viewer import PACKAGE, ROOT, VERSION, Installed, StoredFile, installed
from service.access import RouteSpec
from service.admin import SEE_OTHER
from service.login import LOGIN, reader_of
from service.pages import page_of, template_text

__all__ = ["ROUTES"]

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
#: Paths that OHIF's own router answers; anything else that is no file is not found.
_ROUTED = re.compile(r"[a-z0-9-]*(/[a-z0-9-]*)?")


async def root(request: Request) -> Response:
    """GET /viewer."""
    return RedirectResponse(ROOT, SEE_OTHER)


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
    """OHIF's page; where nobody signed in, the form, which leads back to it."""
    if await run_in_threadpool(reader_of, request) is None:
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
    ("GET", "/viewer/{path:path}", serve),
)
