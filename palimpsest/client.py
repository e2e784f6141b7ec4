"""DICOMweb client of the front door: fetches originals by WADO-RS (PS3.18 10.4) into files, whatever their size."""

from __future__ import annotations

import mmap
import re
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ATTEMPTS = 6
MAX_WAIT_SECONDS = 10.0
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)


class FetchError(Exception):
    """The gateway gave no object: `reason` is its machine word or the HTTP status."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


@dataclass(frozen=True)
class Route:
    """Where an object is to be had: by its UIDs (study[, series[, instance]]) or by a file's digest."""

    path: str

    @classmethod
    def uids(cls, study: str, series: str | None = None, instance: str | None = None) -> Route:
        """WADO-RS path of a study, series or instance."""
        parts = [f"studies/{study}"]
        parts += [f"series/{series}"] if series else []
        parts += [f"instances/{instance}"] if series and instance else []
        return cls("/".join(parts))

    @classmethod
    def digest(cls, digest: str) -> Route:
        """One version by the SHA-256 (hex) of the file as the gateway received it."""
        return cls(f"objects/{digest}")


class WebClient:
    """A client with a bearer token. Safe to use from several threads."""

    def __init__(
        self, base_url: str, token: str, timeout_seconds: float = 120.0, *, ca_file: Path | None = None
    ) -> None:
        """ca_file: PEM of who may sign the server's certificate. Raises FetchError ``bad-ca-file``."""
        self._http = httpx.Client(
            base_url=base_url.rstrip("/") + "/dicomweb/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout_seconds,
            verify=_authorities(ca_file),
            trust_env=False,  # a proxy for the web is no way to the gateway beside us
        )

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    @contextmanager
    def fetch_one(self, route: Route) -> Iterator[Path]:
        """The only object of a route, as a temporary file. Raises FetchError, also when there are none or several."""
        with tempfile.TemporaryDirectory(prefix="palimpsest-fetch-") as folder:
            files = list(self.fetch(route, Path(folder)))
            if len(files) != 1:
                raise FetchError("unexpected-count", f"{len(files)} objects instead of one")
            yield files[0]

    def fetch(self, route: Route, folder: Path) -> Iterator[Path]:
        """Every object of a route as a file in `folder`, numbered in the order of arrival. Raises FetchError."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as body:
            content_type = self._download(route, body)
            boundary = _BOUNDARY.search(content_type)
            if boundary is None:
                yield _write_part(folder, 0, _whole(body))
                return
            for number, part in enumerate(_parts(body, boundary.group(1).encode("ascii"))):
                yield _write_part(folder, number, part)

    def _download(self, route: Route, body: BinaryIO) -> str:
        """Write the answer's body to `body`; its content type. 503 is waited for as Retry-After asks."""
        for attempt in range(ATTEMPTS):
            body.seek(0)
            body.truncate()
            try:
                with self._http.stream("GET", route.path, headers={"Accept": ACCEPT}) as answer:
                    if answer.status_code == 200:
                        for chunk in answer.iter_bytes():
                            body.write(chunk)
                        return str(answer.headers.get("content-type", ""))
                    answer.read()
                    problem = _problem(answer)
                    wait = _retry_after(answer) if answer.status_code == 503 else None
            except httpx.HTTPError as error:
                problem, wait = FetchError("no-answer", type(error).__name__), 1.0
            if wait is None or attempt == ATTEMPTS - 1:
                raise problem
            time.sleep(wait)
        raise FetchError("no-answer")


def _authorities(file: Path | None) -> ssl.SSLContext | bool:
    try:
        return ssl.create_default_context(cafile=str(file)) if file is not None else True
    except OSError as error:  # ssl.SSLError is one, too
        raise FetchError("bad-ca-file", f"{file} holds no certificates: {type(error).__name__}") from None


def _problem(answer: httpx.Response) -> FetchError:
    """The RFC 9457 problem of an answer, as far as it has one."""
    try:
        body = answer.json()
        return FetchError(str(body.get("reason", answer.status_code)), str(body.get("detail", "")))
    except (ValueError, AttributeError):
        return FetchError(f"http-{answer.status_code}")


def _retry_after(answer: httpx.Response) -> float:
    try:
        return min(float(answer.headers.get("Retry-After", "1")), MAX_WAIT_SECONDS)
    except ValueError:
        return 1.0


def _whole(body: BinaryIO) -> bytes:
    body.seek(0)
    return body.read()


def _parts(body: BinaryIO, boundary: bytes) -> Iterator[bytes | memoryview]:
    """Contents of the parts of a multipart body (RFC 2046 5.1.1), without their headers.

    Raises FetchError 'cut-off' unless the closing delimiter is there: a broken transfer is no short study.
    """
    body.flush()
    body.seek(0, 2)
    if not body.tell():
        raise FetchError("empty-answer")
    delimiter = b"--" + boundary
    with mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(delimiter)
        while at >= 0 and data[at + len(delimiter) : at + len(delimiter) + 2] != b"--":
            start = data.find(b"\r\n\r\n", at) + 4
            end = data.find(b"\r\n" + delimiter, start)
            if start < 4 or end < 0:
                raise FetchError("cut-off", "the answer ends inside a part")
            yield data[start:end]
            at = end + 2
        if at < 0:
            raise FetchError("cut-off", "the answer has no closing delimiter")


def _write_part(folder: Path, number: int, content: bytes | memoryview) -> Path:
    path = folder / f"{number:06d}.dcm"
    path.touch(mode=0o600)  # an original names its patient
    path.write_bytes(content)
    return path
