"""STOW-RS: store instances (PS3.18 10.5). Bytes stream to the spool; each part is judged on its own.

A part's failure never touches its neighbours: it is dropped, named in the answer, and the next part goes on.  Success
for an instance means what it means for C-STORE, because both doors call `gateway.accept.accept_instance`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from gateway.accept import accept_instance
from gateway.blobs import storage_errors
from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, PalimpsestError
from gateway.part10 import Peek, peek
from gateway.uids import UID, parse_uid
from service.access import RouteSpec, principal_of
from service.media import DICOM, accepts
from service.multipart import MultipartError, PartBegin, PartData, PartEnd, RelatedParser, parse_media_type
from service.problems import HttpProblem
from service.stow_answer import DICOM_JSON, Outcome, answer, instance_url
from service.trail import refused

__all__ = ["ROUTES", "StoreRequest"]

#: Bytes gathered before a thread takes them: one hop a mebibyte instead of one per network read.
BATCH_BYTES = 1 << 20
SPACE_CHECK_BYTES = 16 << 20
MEDIUM_PRIORITY = 5
UNEXPECTED_FAILURE = 0x0110  # PS3.7 C.5.11: processing failure

log = logging.getLogger(__name__)


@dataclass
class _Part:
    """A part under way. Without a file only when none could be made; then `error` says why."""

    path: Path | None = None
    file: BinaryIO | None = None
    size: int = 0
    next_check: int = 0
    error: PalimpsestError | None = None


@dataclass
class StoreRequest:
    """One STOW request, fed with body bytes; runs in worker threads, one call at a time."""

    gateway: Gateway
    actor: str
    study: UID | None
    parser: RelatedParser | None  # None: the body is one bare instance
    outcomes: list[Outcome] = field(default_factory=list)
    _part: _Part | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; raises MultipartError."""
        if self.parser is None:
            if self._part is None:
                self._begin(PartBegin({"content-type": DICOM}))
            self._write(data)
            return
        for event in self.parser.feed(data):
            match event:
                case PartBegin():
                    self._begin(event)
                case PartData(run):
                    self._write(run)
                case PartEnd():
                    self._end()

    def close(self) -> None:
        """The body ended; raises MultipartError if that was too early."""
        if self.parser is not None:
            self.parser.close()
        elif self._part is not None:
            self._end()

    def abandon(self) -> None:
        """Remove the file of a part that never came to its end. Safe to call at any time."""
        part, self._part = self._part, None
        if part is None:
            return
        if part.file is not None:
            part.file.close()
        if part.path is not None:
            part.path.unlink(missing_ok=True)

    def _begin(self, event: PartBegin) -> None:
        part = self._part = _Part()
        try:
            part.path = self.gateway.spool.incoming()
            with storage_errors():
                part.file = part.path.open("wb", buffering=0)
            if parse_media_type(event.headers.get("content-type", DICOM)).essence != DICOM:
                raise InvalidInstance("part-media-type", "A part is not application/dicom.")
        except PalimpsestError as error:
            part.error = error

    def _write(self, data: bytes) -> None:
        part = self._part
        assert part is not None
        part.size += len(data)
        if part.error is not None or part.file is None:
            return
        try:
            self._append(part, part.file, data)
        except PalimpsestError as error:
            part.error = error
            with suppress(OSError):  # only to free the space early: the file is removed in any case
                part.file.truncate(0)

    def _append(self, part: _Part, file: BinaryIO, data: bytes) -> None:
        self.gateway.spool.check_size(part.size)
        if part.size >= part.next_check:
            self.gateway.spool.check_space()
            part.next_check = part.size + SPACE_CHECK_BYTES
        with storage_errors(), memoryview(data) as view:
            written = 0
            while written < len(data):  # unbuffered: one write(2) may take less than it was given
                written += file.write(view[written:])

    def _end(self) -> None:
        part = self._part
        assert part is not None
        try:
            if part.file is not None:
                part.file.close()
            self.outcomes.append(self._judge(part))
        finally:
            self.abandon()

    def _judge(self, part: _Part) -> Outcome:
        seen: Peek | None = None
        try:
            if part.error is not None or part.path is None:
                assert part.error is not None
                refused(self.gateway, part.error, actor=self.actor, source="stow")
                raise part.error
            seen = _seen(part.path)
            accept_instance(
                self.gateway,
                part.path,
                source="stow",
                calling_ae=self.actor,
                priority=MEDIUM_PRIORITY,
                expected_study=self.study,
            )
        except PalimpsestError as error:
            log.warning("instance refused", extra={"reason": error.reason, "source": "stow"})
            status = 413 if error.reason == "object-too-large" else error.http_status
            return _outcome(seen, error.dimse_status, status, error.reason)
        except OSError as error:
            log.error("unexpected error in STOW", extra={"reason": type(error).__name__})
            return _outcome(seen, UNEXPECTED_FAILURE, 500, "internal-error")
        return _outcome(seen)


def _seen(path: Path) -> Peek | None:
    """The UIDs that the answer names the instance by; what is wrong with the file `accept_instance` says."""
    try:
        return peek(path)
    except PalimpsestError:
        return None


def _outcome(seen: Peek | None, failure: int = 0, status: int = 200, reason: str = "") -> Outcome:
    if seen is None:
        return Outcome(failure, status, reason)
    return Outcome(
        failure, status, reason, seen.sop_class_uid, seen.sop_instance_uid, seen.study_uid or "", seen.series_uid or ""
    )


def _parser_for(request: Request) -> RelatedParser | None:
    media = parse_media_type(request.headers.get("content-type", ""))
    if media.essence == DICOM:
        return None
    if media.essence != "multipart/related" or media.parameters.get("type", DICOM).lower() != DICOM:
        raise HttpProblem(415, "unsupported-media-type", 'Send multipart/related; type="application/dicom".')
    return RelatedParser(media.parameters.get("boundary", ""))


async def store(request: Request) -> Response:
    """POST /dicomweb/studies and /dicomweb/studies/{study}."""
    accepts(request.headers.get("accept"), DICOM_JSON, "application/json")
    study = request.path_params.get("study")
    job = StoreRequest(
        request.app.state.gateway,
        principal_of(request).subject,
        parse_uid(study, "study-uid") if study else None,
        _parser_for(request),
    )
    try:
        await _receive(request, job)
    except MultipartError as error:
        if not any(not outcome.failure for outcome in job.outcomes):
            raise
        # What is stored stays stored, and is answered for; the broken rest is one more failure.
        job.outcomes.append(Outcome(0xC000, 400, f"multipart-{error.reason}"))
    finally:
        await run_in_threadpool(job.abandon)
    if not job.outcomes:
        raise HttpProblem(400, "no-instances", "The request holds no instance.")
    base = str(request.base_url).rstrip("/")
    return answer(job.outcomes, lambda *uids: instance_url(base, *uids))


async def _receive(request: Request, job: StoreRequest) -> None:
    """Feed the body to `job` in batches, in worker threads; the idle timeout is on each read, never on the whole."""
    idle = job.gateway.settings.network_timeout_seconds
    chunks = aiter(request.stream())
    batch = bytearray()
    try:
        while True:
            async with asyncio.timeout(idle):
                chunk = await anext(chunks, None)
            if chunk is None:
                break
            batch += chunk
            if len(batch) >= BATCH_BYTES:
                await run_in_threadpool(job.feed, bytes(batch))
                batch.clear()
    except TimeoutError:
        raise HttpProblem(408, "idle-timeout", "The body stopped arriving.") from None
    except ClientDisconnect:
        raise HttpProblem(400, "client-disconnected", "The client went away.") from None
    if batch:
        await run_in_threadpool(job.feed, bytes(batch))
    await run_in_threadpool(job.close)


ROUTES: tuple[RouteSpec, ...] = (
    ("POST", "/dicomweb/studies", store),
    ("POST", "/dicomweb/studies/{study}", store),
)
