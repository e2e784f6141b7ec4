"""Answers that a cache may keep: validators, conditional requests (RFC 9110 13), ranges (14), compressed JSON.

Images of patients are private and checked again before every use (`private, no-cache`): a shredded or corrected object
is never shown from a browser's own copy.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Protocol

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.problems import HttpProblem

__all__ = ["Body", "BytesBody", "in_pieces", "related", "single", "text", "unchanged", "weak_tag"]

CACHE_CONTROL = "private, no-cache"
#: One range; several are answered with the whole, as RFC 9110 14.2 lets a server do.
_RANGE = re.compile(r"bytes=(?:(?P<start>[0-9]{1,15})-(?P<end>[0-9]{0,15})|-(?P<suffix>[0-9]{1,15}))")
_TAG = re.compile(r'(?:W/)?"[!#-~]*"')
MIN_COMPRESSED = 1024
PIECE_BYTES = 1 << 20


class Body(Protocol):
    """Something of a known size and digest, sent once, whole or in part."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def digest(self) -> str:
        """Hex digest of the bytes: the strong validator."""

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end)."""

    def close(self) -> None:
        """Nothing will be sent."""


class BytesBody:
    """A body that is in memory, or mapped."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data
        self.size = len(data)
        self.digest = hashlib.sha256(data).hexdigest()

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See Body."""
        return in_pieces(self.data, start, end)

    def close(self) -> None:
        """See Body."""


def in_pieces(data: bytes | memoryview, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """data[start:end], a piece at a time: what is mapped is never in memory whole."""
    stop = len(data) if end is None else end
    for at in range(start, stop, PIECE_BYTES):
        yield bytes(data[at : min(stop, at + PIECE_BYTES)])


class _Stream(StreamingResponse):
    """Closes what it sends from at its end, however that comes: a client that goes away leaves no open file."""

    def __init__(
        self,
        request: Request,
        pieces: Iterable[bytes],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        *,
        release: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(_in_threads(pieces, request.app.state.sending), status_code, headers)
        self._pieces, self._release = pieces, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See StreamingResponse. No thread reads from the pieces any more when the body's end, or error, is here."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()
            if self._release is not None:
                self._release()  # a generator that never began closes nothing


async def _in_threads(pieces: Iterable[bytes], limiter: CapacityLimiter) -> AsyncIterator[bytes]:
    """The pieces, each fetched in one of the threads set apart for that: one may wait for the retrieve worker."""
    left = iter(pieces)
    while (piece := await to_thread.run_sync(next, left, None, limiter=limiter)) is not None:
        yield piece


def weak_tag(*parts: object) -> str:
    """A validator of an answer that is equal in meaning, not in bytes: each multipart has another boundary."""
    hasher = hashlib.sha256()
    for part in parts:
        text_ = str(part).encode()
        hasher.update(len(text_).to_bytes(8, "big") + text_)
    return f'W/"{hasher.hexdigest()[:32]}"'


def _headers(tag: str, **more: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": CACHE_CONTROL, "Vary": "Accept, Authorization, Accept-Encoding", **more}


def unchanged(request: Request, tag: str) -> Response | None:
    """304 when If-None-Match names the tag (weak comparison, RFC 9110 13.1.2), else None."""
    given = request.headers.get("if-none-match", "")
    known = {found.removeprefix("W/") for found in _TAG.findall(given)}
    if given.strip() == "*" or tag.removeprefix("W/") in known:
        return Response(status_code=304, headers=_headers(tag))
    return None


def single(request: Request, body: Body, media_type: str, **more: str) -> Response:
    """One body: whole, a range (206, 416), or nothing if the client has it (304). Closes what it does not send."""
    tag = f'"{body.digest}"'
    same = unchanged(request, tag)
    if same is not None:
        body.close()
        return same
    headers = _headers(tag, **{"Accept-Ranges": "bytes"}, **more)
    span = _range(request, tag, body)
    start, end, status = (0, body.size, 200) if span is None else (*span, 206)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{body.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        body.close()
        return Response(status_code=status, headers={**headers, "Content-Type": media_type})
    headers["Content-Type"] = media_type
    return _Stream(request, body.chunks(start, end), status, headers, release=body.close)


def _range(request: Request, tag: str, body: Body) -> tuple[int, int] | None:
    """[start, end) of what is asked for, None for the whole. Raises 416."""
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or request.headers.get("if-range", tag) != tag:
        return None
    if match["suffix"] is not None:
        start, end = max(0, body.size - int(match["suffix"])), body.size
    else:
        start, end = int(match["start"]), min(body.size, int(match["end"] or body.size) + 1)
        if match["end"] and int(match["end"]) < start:
            return None  # no range at all (RFC 9110 14.1.1)
    if start >= end:
        body.close()
        raise HttpProblem(
            416, "range", "No byte of this answer is in that range.", {"Content-Range": f"bytes */{body.size}"}
        )
    return start, end


def related(
    request: Request,
    parts: Iterable[bytes],
    media_type: str,
    boundary: str,
    tag: str,
    *,
    partial: str = "",
    release: Callable[[], None] | None = None,
) -> Response:
    """multipart/related from its bytes. partial: why some of the resource is missing (206 with a Warning).

    release: called once nothing more is sent, also when the first byte never was.
    """
    headers = _headers(tag, **{"Content-Type": f'multipart/related; type="{media_type}"; boundary={boundary}'})
    if partial:
        headers["Warning"] = f'299 palimpsest "{partial}"'
    status = 206 if partial else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return _Stream(request, parts, status, headers, release=release)


def text(request: Request, pieces: Callable[[], Iterable[bytes]], media_type: str, tag: str) -> Response:
    """Text in pieces, gzipped for who takes that."""
    headers = _headers(tag, **{"Content-Type": media_type})
    if request.method == "HEAD":
        return Response(headers=headers)
    if not _takes_gzip(request.headers.get("accept-encoding", "")):
        return _Stream(request, pieces(), headers=headers)
    return _Stream(request, _gzipped(pieces()), headers={**headers, "Content-Encoding": "gzip"})


def _takes_gzip(accepted: str) -> bool:
    for item in accepted.lower().split(","):
        coding, _, weight = item.strip().partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0{0,3})?\s*", weight)
    return False


def _gzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    squeeze = zlib.compressobj(1, wbits=31)
    for piece in pieces:
        out = squeeze.compress(piece)
        if out:
            yield out
    yield squeeze.flush()
