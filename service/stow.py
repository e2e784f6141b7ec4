"""STOW-RS: store instances (PS3.18 10.5). Bytes stream to the spool; each part is judged on its own.

A part's failure never touches its neighbours: it is dropped, named in the answer, and the next part goes on.  Success
for an instance means what it means for C-STORE, because both doors call `gateway.accept.accept_instance`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance
from gateway.uids import UID, parse_uid
from service.access import RouteSpec, principal_of
from service.ledger import stow_evidence
from service.media import DICOM, JSON, XML, accepts
from service.multipart import MultipartError, PartBegin, PartData, PartEnd, RelatedParser, parse_media_type
from service.problems import HttpProblem
from service.stow_answer import Outcome, answer, instance_url
from service.stow_metadata import METADATA, MetadataRequest
from service.stow_part import SpooledPart, judge

__all__ = ["ROUTES", "StoreRequest"]

#: Bytes gathered before a thread takes them: one hop a mebibyte instead of one per network read.
BATCH_BYTES = 1 << 20


@dataclass
class StoreRequest:
    """One STOW request, fed with body bytes; runs in worker threads, one call at a time."""

    gateway: Gateway
    actor: str
    study: UID | None
    parser: RelatedParser | None  # None: the body is one bare instance
    outcomes: list[Outcome] = field(default_factory=list)
    _part: SpooledPart | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; raises MultipartError."""
        if self.parser is None:
            if self._part is None:
                self._begin(PartBegin({"content-type": DICOM}))
            assert self._part is not None
            self._part.write(data)
            return
        for event in self.parser.feed(data):
            match event:
                case PartBegin():
                    self._begin(event)
                case PartData(run):
                    assert self._part is not None
                    self._part.write(run)
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
        if part is not None:
            part.discard()

    def _begin(self, event: PartBegin) -> None:
        part = self._part = SpooledPart(self.gateway)
        if parse_media_type(event.headers.get("content-type", DICOM)).essence != DICOM:
            part.error = part.error or InvalidInstance("part-media-type", "A part is not application/dicom.")

    def _end(self) -> None:
        part = self._part
        assert part is not None
        try:
            part.close()
            self.outcomes.append(judge(self.gateway, part, actor=self.actor, study=self.study))
        finally:
            self.abandon()


def _job_for(request: Request) -> StoreRequest | MetadataRequest:
    """What takes this body. Raises HttpProblem 415, MultipartError, BadUID."""
    study = request.path_params.get("study")
    expected = parse_uid(study, "study-uid") if study else None
    gateway, actor = request.app.state.gateway, principal_of(request).subject
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HttpProblem(415, "content-encoding", "Send the body without a content encoding.")
    media = parse_media_type(request.headers.get("content-type", ""))
    if media.essence == DICOM:
        return StoreRequest(gateway, actor, expected, None)
    kind = media.parameters.get("type", DICOM).lower()
    if media.essence != "multipart/related" or kind not in (DICOM, *METADATA):
        raise HttpProblem(
            415,
            "unsupported-media-type",
            f'Send multipart/related; type="{DICOM}", type="{JSON}" or type="{XML}".',
        )
    parser = RelatedParser(media.parameters.get("boundary", ""))
    if kind == DICOM:
        return StoreRequest(gateway, actor, expected, parser)
    return MetadataRequest(gateway, actor, expected, parser)


async def store(request: Request) -> Response:
    """POST /dicomweb/studies and /dicomweb/studies/{study}."""
    media = accepts(request.headers.get("accept"), JSON, "application/json", XML)
    job = _job_for(request)
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
    await run_in_threadpool(stow_evidence, job.gateway, job.actor, job.outcomes)
    return answer(job.outcomes, lambda *uids: instance_url(base, *uids), media)


async def _receive(request: Request, job: StoreRequest | MetadataRequest) -> None:
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
