"""A DICOMweb service as a client sees it: STOW-RS of one object, WADO-RS of one object, QIDO-RS of one UID.

PS3.18 10.4 (retrieve), 10.5 (store), 10.6 (search). Answers are read to a bound; what a peer does is never an exception
but `PeerError`, whose reason is a machine word.
"""

from __future__ import annotations

import json
import secrets
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx

from gateway.errors import Unavailable
from gateway.part10 import Peek
from gateway.settings import Destination, credential

__all__ = ["Answer", "DicomWebPeer", "PeerError"]

MAX_ANSWER: Final = 1 << 20  # bytes of a STOW or QIDO answer
SLACK: Final = 1 << 20  # bytes by which a retrieved object may be larger than what was sent: other padding, other meta
JSON: Final = "application/dicom+json"


class PeerError(Exception):
    """The service gave no answer that can be used. down: it is out of reach, not this object's fault."""

    def __init__(self, reason: str, *, down: bool = False, status: int = 0, after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.down, self.status, self.after = reason, down, status, after


@dataclass(frozen=True, slots=True)
class Answer:
    """status: HTTP; after: seconds of Retry-After; document: the JSON body, None if it is no JSON object."""

    status: int
    after: float
    document: Mapping[str, Any] | None


class DicomWebPeer:
    """One connection pool to one service; to be closed."""

    def __init__(self, destination: Destination, timeout: float) -> None:
        """Reads the credentials. Raises Unavailable ``credential-unreadable``, ``certificate-unreadable``."""
        self._base = destination.url
        self._client = httpx.Client(
            auth=_basic(destination),
            headers=_bearer(destination) | {"User-Agent": "palimpsest"},
            verify=_trust(destination),
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),  # idle, never the whole exchange
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def store(self, part10: bytes) -> Answer:
        """POST one object. With Content-Length: some services answer 200 to a chunked body and store nothing."""
        boundary = f"palimpsest-{secrets.token_hex(16)}"
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(head) + len(part10) + len(tail)),
            "Accept": JSON,
        }

        def body() -> Iterator[bytes]:
            yield head
            view = memoryview(part10)
            for start in range(0, len(view), 1 << 16):
                yield bytes(view[start : start + (1 << 16)])
            yield tail

        status, after, data, _ = self._exchange("POST", "/studies", headers, MAX_ANSWER, body())
        return Answer(status, after, _object(data))

    def fetch(self, found: Peek, limit: int) -> bytes:
        """The object as Part 10, in the syntax that the service has it in; at most `limit` bytes and some.

        Raises PeerError.
        """
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        status, after, data, kind = self._exchange("GET", _path(found), {"Accept": accept}, limit + SLACK)
        if status != 200:
            raise PeerError(f"http-{status}", status=status, after=after)
        return _only_part(data, kind)

    def knows(self, found: Peek) -> bool:
        """Whether a search finds the instance. Raises PeerError."""
        path = f"/studies/{found.study_uid}/instances?SOPInstanceUID={found.sop_instance_uid}"
        status, after, data, _ = self._exchange("GET", path, {"Accept": JSON}, MAX_ANSWER)
        if status not in (200, 204):
            raise PeerError(f"http-{status}", status=status, after=after)
        return str(found.sop_instance_uid).encode() in data

    def delete_study(self, study_uid: str) -> bool:
        """Ask for a study to be taken away: no part of PS3.18, but many servers offer it. True if it was."""
        try:
            return self._exchange("DELETE", f"/studies/{study_uid}", {}, MAX_ANSWER)[0] in (200, 202, 204)
        except PeerError:
            return False

    def _exchange(
        self, method: str, path: str, headers: dict[str, str], limit: int, content: Iterator[bytes] | None = None
    ) -> tuple[int, float, bytes, str]:
        """(status, seconds to wait, body, content type). Raises PeerError."""
        try:
            with self._client.stream(method, self._base + path, headers=headers, content=content) as response:
                data = bytearray()
                for chunk in response.iter_bytes(1 << 16):
                    data += chunk
                    if len(data) > limit:
                        raise PeerError("answer-too-long", status=response.status_code)
                after = _seconds(response.headers.get("Retry-After", ""))
                return response.status_code, after, bytes(data), response.headers.get("Content-Type", "")
        except httpx.TimeoutException:
            raise PeerError("timeout", down=True) from None
        except httpx.ConnectError as error:
            tls = isinstance(error.__context__, ssl.SSLError) or "SSL" in str(error)
            raise PeerError("tls-failure" if tls else "unreachable", down=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise PeerError(f"http-{type(error).__name__.lower()}"[:64], down=True) from None


def _path(found: Peek) -> str:
    return f"/studies/{found.study_uid}/series/{found.series_uid}/instances/{found.sop_instance_uid}"


def _basic(destination: Destination) -> httpx.BasicAuth | None:
    if not destination.username:
        return None
    return httpx.BasicAuth(destination.username, credential(destination, "password"))


def _bearer(destination: Destination) -> dict[str, str]:
    token = credential(destination, "token")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _trust(destination: Destination) -> ssl.SSLContext | bool:
    """TLS 1.2 or later; the destination's CA and our certificate where they are named."""
    if not destination.url.startswith("https:"):
        return True
    try:
        context = ssl.create_default_context(cafile=destination.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if destination.client_cert_file is not None:
            context.load_cert_chain(destination.client_cert_file, destination.client_key_file)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(
            "certificate-unreadable",
            f"a certificate or key of '{destination.name}' cannot be read ({type(error).__name__})",
        ) from None
    return context


def _seconds(text: str) -> float:
    """Retry-After in seconds (RFC 9110 10.2.3); a date counts as none: our own backoff does then."""
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0.0


def _object(data: bytes) -> Mapping[str, Any] | None:
    """The JSON body: an object, or a list of one as some services give it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) else None


def _only_part(data: bytes, kind: str) -> bytes:
    """The one part of a multipart/related body (RFC 2387), or the body where it is a single part."""
    if not kind.lower().startswith("multipart/"):
        return data
    boundary = _boundary(kind)
    begin = data.find(b"\r\n\r\n", data.find(b"--" + boundary))
    end = data.find(b"\r\n--" + boundary, begin)
    if not boundary or begin < 0 or end < 0:
        raise PeerError("bad-multipart")
    if data[end + 4 + len(boundary) :][:2] != b"--":
        raise PeerError("more-than-one-part")  # another object, which nobody asked for
    return data[begin + 4 : end]


def _boundary(kind: str) -> bytes:
    for part in kind.split(";")[1:]:
        name, _, value = part.strip().partition("=")
        if name.lower() == "boundary":
            return value.strip().strip('"').encode("ascii", "replace")
    return b""
