"""`palimpsest fetch`: originals into a folder, named by their SOP Instance UID."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import part10
from gateway.errors import PalimpsestError
from palimpsest.addresses import base_url
from palimpsest.client import FetchError, Route, WebClient

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

TOKEN_SECONDS = 3600.0


def web_client(
    gateway: Callable[[], Gateway], url: str | None, token: str | None, ca_file: Path | None = None
) -> WebClient:
    """A client for `url` with `token`, or for this machine's gateway with a token of its own key ring.

    Raises FetchError ``no-token``, ``bad-ca-file``.
    """
    from palimpsest.own_token import own_token

    if url is not None:
        if token is None:
            raise FetchError("no-token", "another gateway wants a token: --token, or PALIMPSEST_TOKEN")
        return WebClient(url, token, ca_file=ca_file)
    local = gateway()
    try:
        given = token or own_token(local, "service", "palimpsest-fetch", TOKEN_SECONDS)
        return WebClient(base_url(local.settings), given, ca_file=ca_file or local.settings.http_ca_file)
    finally:
        local.close()


def route(study: str | None, series: str | None, instance: str | None, digest: str | None) -> Route:
    """The route that the command line names."""
    if digest is not None:
        return Route.digest(digest)
    assert study is not None
    return Route.uids(study, series, instance)


def fetch_files(web: WebClient, where: Route, folder: Path) -> Iterator[Path]:
    """Fetch, yield each file written. An existing file of that name is kept, and the new one numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            for path in web.fetch(where, Path(temporary)):
                yield path.rename(_free_name(folder, _stem(path)))
    finally:
        web.close()


def _stem(path: Path) -> str:
    try:
        return part10.peek(path).sop_instance_uid
    except PalimpsestError:
        return path.stem


def _free_name(folder: Path, stem: str) -> Path:
    candidate, number = folder / f"{stem}.dcm", 1
    while candidate.exists():
        candidate, number = folder / f"{stem}.{number}.dcm", number + 1
    return candidate
